//! What processes can do.

use clap::ValueEnum;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Role {
    /// Takes publishers, and lets playback nodes pull from it.
    Ingest,
    /// Serves viewers, and pulls what they want from ingest nodes.
    Playback,
    /// Knows which ingest node holds a stream.
    Reactor,
    /// All three in one process.
    All,
}
