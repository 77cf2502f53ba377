//! What `ffmpeg_hls` does for one stream: makes the folder, has ffmpeg write into it, and clears away what is stale.

use super::outlet::Began;
use crate::ffmpeg::{self, Hls, Job, Output};
use crate::ids::StreamName;
use crate::net::hls::{HlsOutputs, segment_prefix};
use crate::telemetry::Metrics;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a stream may be away and be continued in its playlist: encoders are back by then, and players go on.
const KEPT: Duration = Duration::from_secs(30);

/// Makes HLS of streams.
#[derive(Clone)]
pub struct Cutter {
    /// How ffmpeg is run.
    pub ffmpeg: ffmpeg::Settings,
    /// Where players find what is written.
    pub outputs: Arc<HlsOutputs>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who waits for what is cleared away later.
    pub tasks: TaskTracker,
    /// Cancelled when the process stops.
    pub stop: CancellationToken,
}

impl Cutter {
    /// Cuts a stream until it ends; `played_as` is the name that players find it by.
    pub async fn cut(self, hls: Hls, played_as: StreamName, Began { name, queue, .. }: Began) {
        let Cutter { ffmpeg: settings, outputs, metrics, tasks, stop } = self;
        let forgets = hls.count > 0;
        if let Err(error) = prepare(&hls).await {
            let folder = hls.playlist.parent().unwrap_or(Path::new("")).display().to_string();
            tracing::error!(stream = %name, folder, "no HLS: the folder cannot be made or cleared: {error}");
            return;
        }
        let output = outputs.add(played_as, hls.playlist.clone());
        Job { settings, output: Output::Hls(hls.clone()), queue, comes_back: None, metrics }.run().await;
        if !forgets {
            return;
        }
        tasks.spawn(async move {
            let passed = tokio::time::timeout(KEPT, stop.cancelled()).await.is_err();
            drop(output);
            // Another publish may be writing there by now.
            if passed
                && !outputs.is_written(&hls.playlist)
                && let Err(error) = clear(&hls.playlist).await
            {
                tracing::warn!(stream = %name, "stale HLS files stay: {error}");
            }
        });
    }
}

/// Makes the folder. What an earlier process or publish left there too long ago to be continued is removed.
async fn prepare(hls: &Hls) -> io::Result<()> {
    if let Some(folder) = hls.playlist.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let Ok(found) = tokio::fs::metadata(&hls.playlist).await else { return Ok(()) };
    let age = SystemTime::now().duration_since(found.modified()?).unwrap_or_default();
    // One that keeps everything is a recording.
    if hls.count > 0 && age > KEPT { clear(&hls.playlist).await } else { Ok(()) }
}

/// Removes a playlist and its segments.
async fn clear(playlist: &Path) -> io::Result<()> {
    let prefix = segment_prefix(playlist);
    if let Some((folder, prefix)) = playlist.parent().zip(prefix.file_name().and_then(OsStr::to_str)) {
        let mut files = tokio::fs::read_dir(folder).await?;
        while let Some(file) = files.next_entry().await? {
            let name = file.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(".ts"));
            if number.is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit())) {
                tokio::fs::remove_file(file.path()).await?;
            }
        }
    }
    match tokio::fs::remove_file(playlist).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_files_of_the_stream_are_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["x.m3u8", "x-1.ts", "x-22.ts", "x-.m3u8", "x-1-3.ts", "x1.m3u8", "x1-1.ts", "y.ts"];
        files.iter().for_each(|file| std::fs::write(dir.path().join(file), "").unwrap());
        clear(&dir.path().join("x.m3u8")).await.unwrap();
        let left = files.into_iter().filter(|file| dir.path().join(file).exists());
        assert_eq!(left.collect::<Vec<_>>(), ["x-.m3u8", "x-1-3.ts", "x1.m3u8", "x1-1.ts", "y.ts"]);
        clear(&dir.path().join("x.m3u8")).await.unwrap();
    }
}
