//! The flags of how media is pulled and sent.

use super::{PullBy, duration};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// See the module's head.
#[derive(Clone, Debug, Args)]
pub struct MediaArgs {
    /// How a playback node asks to pull
    #[arg(
        long,
        env = "LB_PULL",
        value_name = "BY",
        value_enum,
        default_value = "native",
        help_heading = "Media"
    )]
    pub pull: PullBy,

    /// The ffmpeg that ffmpeg_pull runs
    #[arg(
        long,
        env = "LB_FFMPEG_PATH",
        value_name = "PATH",
        default_value = "ffmpeg",
        help_heading = "Media"
    )]
    pub ffmpeg_path: PathBuf,

    /// The batch window: what arrives within this many milliseconds is sent to viewers in one write [default: audio is sent
    /// with the video frame that follows it]
    #[arg(long, env = "LB_BATCH_MS", value_name = "MS", help_heading = "Media")]
    pub batch_ms: Option<u64>,

    /// The old name of `--batch-ms`, which comes first
    #[arg(long, env = "LB_GATHER_MS", value_name = "MS", hide = true)]
    gather_ms: Option<u64>,

    /// How long viewers are kept when their publisher is gone
    #[arg(
        long,
        env = "LB_PUBLISHER_GRACE",
        value_name = "TIME",
        default_value = "30s",
        value_parser = duration,
        help_heading = "Media"
    )]
    pub publisher_grace: Duration,
}

impl MediaArgs {
    /// The batch window in milliseconds, if one was set, by its name or its old one.
    pub fn batch_window_ms(&self) -> Option<u64> {
        self.batch_ms.or(self.gather_ms)
    }
}
