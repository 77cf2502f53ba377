//! What an operator can set about relaying, with the reasons for the defaults.

use std::time::Duration;

/// Which messages share a write to the viewers at the live edge.
///
/// Cost follows the number of writes, not the bytes in them, so what can wait a little is batched with what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// Audio waits for the video frame that follows it, for one frame's time at most. Video goes out at once, and so does
    /// everything in a stream without video.
    AudioWithVideo,
    /// A batch window: everything that arrives within this time of the first pending message. Zero: each message at once.
    Window(Duration),
}

/// Settings of all streams of one [`crate::relay::Hub`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// See [`Batching`].
    pub batching: Batching,
    /// The most bytes a ring holds. A group of pictures that is longer loses its start, and late viewers wait for the next
    /// keyframe. 32 MiB is 40 s of 6.5 Mb/s.
    pub ring_bytes: usize,
    /// How much of the past a ring holds before the newest keyframe: what a viewer may be late without losing anything.
    pub lag: Duration,
    /// A viewer that reads nothing for so long is stalled, and is closed.
    pub stall: Duration,
    /// How long viewers are kept when their publisher is gone.
    pub grace: Duration,
    /// How long a viewer waits for the first keyframe of a stream.
    pub start: Duration,
    /// The interval of pings to viewers. A ping also finds peers that are gone without closing their connection.
    pub ping: Duration,
    /// Viewers of one stream beyond this many get a pump of their own, so that a huge audience uses several cores.
    pub pump_viewers: usize,
    /// Its viewers are nodes that pull: what they see happen is not what people see.
    pub for_nodes: bool,
    /// The most stream names that viewers may wait for at once, per hub: the bound for a flood of made-up names.
    pub names: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            batching: Batching::AudioWithVideo,
            ring_bytes: 32 << 20,
            lag: Duration::from_secs(4),
            stall: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            start: Duration::from_secs(15),
            ping: Duration::from_secs(20),
            pump_viewers: 2048,
            for_nodes: false,
            names: 100_000,
        }
    }
}
