//! Pulls from anything ffmpeg can read, through a pipe.
//!
//! - [`command`]: the arguments, pure.
//! - [`process`]: one ffmpeg process after another, for as long as the pull is wanted.
//! - `stderr`: what ffmpeg says, made fit for a log.
//! - `spawner`: the thread that all ffmpeg processes are children of.
//!
//! What a pull is for, and who watches it, is not known here.

pub mod command;
pub mod process;
mod spawner;
mod stderr;
#[cfg(test)]
mod tests;

pub use command::{Error, Location};
pub use process::{Puller, Settings};
