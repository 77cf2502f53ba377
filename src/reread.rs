//! Files that are read again when they change: keys and certificates are replaced without a restart.

use std::fmt;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio_util::task::AbortOnDropHandle;

/// How often it is looked whether a file changed. One call to the system each time.
const LOOK: Duration = Duration::from_secs(1);

/// The longest file that is read: 10,000 keys of 400 bytes.
const FILE_MAX: u64 = 4 << 20;

/// What one or several files say together, as they are now.
#[derive(Debug)]
pub struct Reread<T> {
    value: Arc<RwLock<Arc<T>>>,
    _looking: AbortOnDropHandle<()>,
}

/// When a file was written, and how long it is: what changes when it does.
type Stamp = Option<(SystemTime, u64)>;

impl<T: Send + Sync + fmt::Debug + 'static> Reread<T> {
    /// Reads files now, and again whenever one of them changes. What cannot be read or understood later changes nothing, and
    /// is logged. `parse` gets the content of each file.
    ///
    /// Errors: with the first file's name, what `parse` says now.
    pub fn start(
        files: &[&Path],
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + 'static,
    ) -> Result<Self, String> {
        let files: Vec<PathBuf> = files.iter().map(|file| file.to_path_buf()).collect();
        let mut seen: Vec<Stamp> = files.iter().map(|file| stamp(file)).collect();
        let value = Arc::new(RwLock::new(Arc::new(read(&files, &parse)?)));
        let shared = value.clone();
        let looking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let now: Vec<Stamp> = files.iter().map(|file| stamp(file)).collect();
                if now == seen {
                    continue;
                }
                seen = now;
                match read(&files, &parse) {
                    Ok(new) => {
                        *shared.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                        tracing::info!(file = name(&files), "read again");
                    }
                    Err(error) => tracing::error!("{error}; what was read before stays in force"),
                }
            }
        });
        Ok(Reread { value, _looking: AbortOnDropHandle::new(looking) })
    }

    /// What the file said last.
    pub fn get(&self) -> Arc<T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn stamp(file: &Path) -> Stamp {
    let metadata: Metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Reads files once. The error names the first one.
///
/// Errors: as of [`Reread::start`].
pub fn read<T>(
    files: &[impl AsRef<Path>],
    parse: impl Fn(&[Vec<u8>]) -> Result<T, String>,
) -> Result<T, String> {
    let contents: Result<Vec<Vec<u8>>, String> = files.iter().map(|file| content(file.as_ref())).collect();
    parse(&contents?).map_err(|what| format!("{}: {what}", name(files)))
}

fn name(files: &[impl AsRef<Path>]) -> String {
    files.first().map(|file| file.as_ref().display().to_string()).unwrap_or_default()
}

/// The content of a file as text.
///
/// Errors: it is not in UTF-8.
pub fn text(content: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(content).map_err(|_| "it is not a text in UTF-8".to_owned())
}

fn content(file: &Path) -> Result<Vec<u8>, String> {
    let name = file.display();
    let unreadable = |error: std::io::Error| format!("{name}: cannot be read: {error}");
    let length = std::fs::metadata(file).map_err(unreadable)?.len();
    if length > FILE_MAX {
        return Err(format!("{name}: it has {length} bytes; at most {FILE_MAX} are allowed"));
    }
    std::fs::read(file).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_and_a_mistake_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let parse = |contents: &[Vec<u8>]| {
            text(&contents[0])?.trim().parse::<u32>().map_err(|error| error.to_string())
        };
        let error = Reread::start(&[file.path()], parse).unwrap_err();
        assert!(error.starts_with(&file.path().display().to_string()), "{error}");
        std::fs::write(file.path(), "1").unwrap();
        let reread = Reread::start(&[file.path()], parse).unwrap();
        assert_eq!(*reread.get(), 1);
        for (text, value) in [("seven hundred", 1), ("22", 22)] {
            std::fs::write(file.path(), text).unwrap();
            // Longer than the interval; nothing tells that a mistake was ignored.
            tokio::time::timeout(Duration::from_secs(3), async {
                while *reread.get() != 22 && value == 22 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await
            .unwrap();
            assert_eq!(*reread.get(), value);
        }
    }
}
