//! A file that is read again when it changes: keys are added and withdrawn without a restart.

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

/// What a file says, as it is now.
#[derive(Debug)]
pub(super) struct Reread<T> {
    value: Arc<RwLock<Arc<T>>>,
    _looking: AbortOnDropHandle<()>,
}

/// When a file was written, and how long it is: what changes when it does.
type Stamp = Option<(SystemTime, u64)>;

impl<T: Send + Sync + fmt::Debug + 'static> Reread<T> {
    /// Reads a file now, and again whenever it changes. One that cannot be read or understood later changes nothing, and
    /// is logged.
    ///
    /// Errors: with the file's name, what `parse` says of it now.
    pub fn start(
        file: &Path,
        parse: impl Fn(&str) -> Result<T, String> + Send + 'static,
    ) -> Result<Self, String> {
        let mut seen = stamp(file);
        let value = Arc::new(RwLock::new(Arc::new(read(file, &parse)?)));
        let (shared, file): (_, PathBuf) = (value.clone(), file.to_owned());
        let looking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let now = stamp(&file);
                if now == seen {
                    continue;
                }
                seen = now;
                match read(&file, &parse) {
                    Ok(new) => {
                        *shared.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                        tracing::info!(file = %file.display(), "read again");
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

/// Reads a file once. The error names it.
pub(super) fn read<T>(file: &Path, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
    let name = file.display();
    let unreadable = |error: std::io::Error| format!("{name}: cannot be read: {error}");
    let length = std::fs::metadata(file).map_err(unreadable)?.len();
    if length > FILE_MAX {
        return Err(format!("{name}: it has {length} bytes; at most {FILE_MAX} are allowed"));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    parse(&text).map_err(|what| format!("{name}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_and_a_mistake_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let parse = |text: &str| text.trim().parse::<u32>().map_err(|error| error.to_string());
        let error = Reread::start(file.path(), parse).unwrap_err();
        assert!(error.starts_with(&file.path().display().to_string()), "{error}");
        std::fs::write(file.path(), "1").unwrap();
        let reread = Reread::start(file.path(), parse).unwrap();
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
