//! Child processes: pulls from anything ffmpeg can read, and what it makes of a stream, through pipes.
//!
//! - [`command`]: the arguments of a pull, pure.
//! - [`output`]: the arguments of a push, of HLS, of a transcode, pure.
//! - [`process`]: one ffmpeg process.
//! - [`pull`]: one after another, for as long as a pull is wanted.
//! - [`job`]: one after another, for as long as there is a stream to give them.
//! - `intake`: what ffmpeg writes, as a feed.
//! - `stderr`: what ffmpeg says, made fit for a log.
//! - `spawner`: the thread that all ffmpeg processes are children of.
//!
//! What a pull is for, and who watches it, is not known here.

pub mod command;
mod intake;
pub mod job;
pub mod output;
pub mod process;
pub mod pull;
mod spawner;
mod stderr;
#[cfg(test)]
mod tests;

pub use command::{Error, Location};
pub use job::{ComesBack, Job};
pub use output::{AudioCodec, Hls, Output, PRESETS, Transcode, VideoCodec};
pub use process::Settings;
pub use pull::Puller;
