//! What an operator can set about relaying, with the reasons for the defaults.

use std::time::Duration;

/// What shares a write to the viewers at the head.
///
/// Cost follows the number of writes, not the bytes in them, so whatever can wait a little travels with the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gather {
    /// Audio rides with the video frame that follows it and waits for it no longer than one frame takes. Video goes out
    /// at once. Streams without video go out at once too.
    AudioWithVideo,
    /// Whatever arrives within this time of the first unsent message shares its write. Zero: each message at once.
    Window(Duration),
}

/// Settings of all streams of one [`crate::relay::Hub`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// See [`Gather`].
    pub gather: Gather,
    /// The most bytes a ring holds. A group of pictures that is longer loses its start, and late viewers wait for the next
    /// keyframe. 32 MiB is 40 s of 6.5 Mb/s.
    pub ring_bytes: usize,
    /// How much of the past a ring holds before the newest keyframe: what a viewer may be late without losing anything.
    pub lag: Duration,
    /// A viewer that takes no byte for so long is closed.
    pub stall: Duration,
    /// How long viewers are kept when their publisher is gone.
    pub grace: Duration,
    /// How long a viewer waits for the first keyframe of a stream.
    pub start: Duration,
    /// Viewers are pinged so often; the ping also finds peers that are gone without a word.
    pub ping: Duration,
    /// Viewers of one stream beyond this many get a pump of their own, so that a huge audience uses several cores.
    pub pump_viewers: usize,
    /// The most stream names that viewers may wait for at once, per hub: what a flood of made-up names can cost.
    pub names: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            gather: Gather::AudioWithVideo,
            ring_bytes: 32 << 20,
            lag: Duration::from_secs(4),
            stall: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            start: Duration::from_secs(15),
            ping: Duration::from_secs(20),
            pump_viewers: 2048,
            names: 100_000,
        }
    }
}
