//! What one peer may make this process spend.

use super::amf0;

/// The longest message body that is taken by default. The 24-bit length field allows 16 MiB - 1; a keyframe of 8 MiB is
/// far beyond what any encoder sends.
pub const MESSAGE_BYTES: usize = 8 << 20;

/// Messages that may be unfinished at a time by default: audio, video, data and commands interleave, twice over.
pub const PARTIAL_MESSAGES: usize = 8;

/// What all unfinished messages of one connection may occupy together by default: one of the largest, and room for others
/// beside it.
pub const PARTIAL_BYTES: usize = 12 << 20;

/// Chunk streams a connection may use by default. Encoders use up to six; each costs 24 bytes for as long as the
/// connection lives.
pub const CHUNK_STREAMS: usize = 64;

/// The largest chunk size that a peer may announce by default: the specification's own limit (§5.4.1). It costs nothing,
/// as memory follows the bytes that arrive.
pub const CHUNK_SIZE: usize = 0x7FFF_FFFF;

/// The longest app or stream key, query included, by default. Queries carry tokens of a kilobyte or two.
pub const NAME_BYTES: usize = 4096;

/// Messages that may arrive by default while a connect, publish or play waits for its answer: a pipelined round of
/// commands, and a few seconds of media of a publisher that does not wait.
pub const DEFERRED_MESSAGES: usize = 1024;

/// What the messages counted by [`DEFERRED_MESSAGES`] may occupy together by default.
pub const DEFERRED_BYTES: usize = 4 << 20;

/// What a peer may make a server hold that does not publish: its calls have some hundred bytes.
pub const IDLE_BYTES: usize = 64 << 10;

/// Messages that make no sense by themselves (too short for their fields, of an unknown event, a command without a name) and
/// that a connection may send by default beyond one in three of all. One costs itself only, as players and encoders send such
/// here and there; a peer that sends mostly those has lost its place in its own stream, or speaks something else.
pub const MALFORMED_MESSAGES: u32 = 64;

/// Message streams that a connection may have open at a time by default. A player needs one, a caller that publishes and
/// plays two; more are open only while one is being exchanged for another. Each costs some hundred bytes.
pub const MESSAGE_STREAMS: u32 = 8;

/// The most codecs that are named back to a peer that names its own (Enhanced RTMP): there are a dozen.
pub const CODECS: usize = 64;

/// What one peer may make this process spend. [`Default`] gives the values for production.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest message body, in bytes; see [`MESSAGE_BYTES`].
    pub message_bytes: usize,
    /// Unfinished messages at a time; see [`PARTIAL_MESSAGES`].
    pub partial_messages: usize,
    /// Memory of all unfinished messages together, in bytes; see [`PARTIAL_BYTES`].
    pub partial_bytes: usize,
    /// Chunk streams in use; see [`CHUNK_STREAMS`].
    pub chunk_streams: usize,
    /// The largest chunk size that the peer may set, in bytes; see [`CHUNK_SIZE`].
    pub chunk_size: usize,
    /// Depth and count of AMF values.
    pub amf: amf0::Limits,
    /// The longest app or stream key with its query, in bytes; see [`NAME_BYTES`].
    pub name_bytes: usize,
    /// The longest message and the memory of unfinished ones of a peer that does not publish, in bytes; see [`IDLE_BYTES`].
    pub idle_bytes: usize,
    /// Malformed messages beyond one in three of all; see [`MALFORMED_MESSAGES`].
    pub malformed_messages: u32,
    /// Message streams open at a time, with ids from 1 on; see [`MESSAGE_STREAMS`].
    pub message_streams: u32,
    /// Messages held back while a request waits for its answer; see [`DEFERRED_MESSAGES`].
    pub deferred_messages: usize,
    /// Memory of those messages, in bytes; see [`DEFERRED_BYTES`].
    pub deferred_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_bytes: MESSAGE_BYTES,
            partial_messages: PARTIAL_MESSAGES,
            partial_bytes: PARTIAL_BYTES,
            chunk_streams: CHUNK_STREAMS,
            chunk_size: CHUNK_SIZE,
            amf: amf0::Limits::default(),
            name_bytes: NAME_BYTES,
            idle_bytes: IDLE_BYTES,
            malformed_messages: MALFORMED_MESSAGES,
            message_streams: MESSAGE_STREAMS,
            deferred_messages: DEFERRED_MESSAGES,
            deferred_bytes: DEFERRED_BYTES,
        }
    }
}
