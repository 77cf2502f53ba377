//! RTMP without input and output: bytes in, events and bytes out.
//!
//! | module | what it does | specification |
//! |---|---|---|
//! | [`handshake`] | the first 3073 bytes of each direction, simple and digest form | RTMP 1.0 §5.2 |
//! | [`chunk`] | messages out of chunks and into chunks | §5.3 |
//! | [`amf0`] | the values in commands and data messages | AMF 0 |
//! | [`message`] | control messages, commands, aggregates | §5.4, §6, §7 |
//! | [`session`] | one connection: [`session::Server`], [`session::Client`] | §7.2, Enhanced RTMP v2 |
//!
//! Nothing here knows sockets, clocks, tasks or who may do what. Whoever owns a connection feeds what it read, takes
//! events and pending output, and answers requests by method calls. Every limit is in [`Limits`]; every [`Error`] is the
//! peer's fault and ends its connection.

pub mod amf0;
pub mod chunk;
pub mod handshake;
pub mod message;
pub mod session;

pub use handshake::Nonce;
pub use message::Message;

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
            deferred_messages: DEFERRED_MESSAGES,
            deferred_bytes: DEFERRED_BYTES,
        }
    }
}

/// What a peer did wrong. Its connection cannot go on. No text of the peer is repeated in the message, as it may hold a
/// secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first byte is not RTMP's version (§5.2.2).
    #[error("handshake: version {0}; only 3 is allowed")]
    Version(u8),
    /// A chunk refers to a header that was never sent (§5.3.1.2).
    #[error(
        "chunk stream {chunk_stream_id}: the first chunk has a header of format {format}; only 0 is allowed"
    )]
    NoHeader {
        /// The chunk stream.
        chunk_stream_id: u32,
        /// The format of the header that came.
        format: u8,
    },
    /// A message began inside another one of the same chunk stream (§5.3).
    #[error(
        "chunk stream {chunk_stream_id}: a header of format {format} inside an unfinished message; only 3 is allowed"
    )]
    HeaderInsideMessage {
        /// The chunk stream.
        chunk_stream_id: u32,
        /// The format of the header that came.
        format: u8,
    },
    /// A message is longer than [`Limits::message_bytes`].
    #[error(
        "chunk stream {chunk_stream_id}: a message of type {type_id} with {length} bytes; at most {max} are allowed"
    )]
    MessageTooLong {
        /// The chunk stream.
        chunk_stream_id: u32,
        /// The message's type.
        type_id: u8,
        /// Its announced length.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// More chunk streams than [`Limits::chunk_streams`].
    #[error("chunk stream {chunk_stream_id}: one too many; at most {max} are allowed")]
    TooManyChunkStreams {
        /// The one that was too many.
        chunk_stream_id: u32,
        /// The limit.
        max: usize,
    },
    /// More unfinished messages than [`Limits::partial_messages`].
    #[error("chunk stream {chunk_stream_id}: one unfinished message too many; at most {max} are allowed")]
    TooManyPartialMessages {
        /// The chunk stream.
        chunk_stream_id: u32,
        /// The limit.
        max: usize,
    },
    /// The unfinished messages need more memory than [`Limits::partial_bytes`].
    #[error(
        "chunk stream {chunk_stream_id}: unfinished messages are too large; {max} bytes together are allowed"
    )]
    TooManyPartialBytes {
        /// The chunk stream.
        chunk_stream_id: u32,
        /// The limit.
        max: usize,
    },
    /// Set Chunk Size with a value out of range (§5.4.1).
    #[error("set chunk size: {size}; 1 to {max} is allowed")]
    ChunkSize {
        /// What was announced.
        size: u32,
        /// The limit.
        max: usize,
    },
    /// A control message is shorter than its fields (§5.4, §6.2, §7.1.7).
    #[error("control message of type {type_id}: {length} bytes; at least {min} are needed")]
    ControlTooShort {
        /// The message's type.
        type_id: u8,
        /// Its length.
        length: usize,
        /// The length of its fields.
        min: usize,
    },
    /// An AMF value ends beyond the message.
    #[error("AMF0: the value at byte {offset} ends beyond the message")]
    AmfTruncated {
        /// Where in the body.
        offset: usize,
    },
    /// An AMF marker that has no meaning here.
    #[error("AMF0: unknown type marker {marker:#04x} at byte {offset}")]
    AmfMarker {
        /// The marker.
        marker: u8,
        /// Where in the body.
        offset: usize,
    },
    /// Objects and arrays are nested too deep.
    #[error("AMF0: nested too deep at byte {offset}; {max} levels are allowed")]
    AmfDepth {
        /// Where in the body.
        offset: usize,
        /// The limit.
        max: usize,
    },
    /// Too many values in one message.
    #[error("AMF0: too many values at byte {offset}; {max} are allowed")]
    AmfValues {
        /// Where in the body.
        offset: usize,
        /// The limit.
        max: usize,
    },
    /// A command message that does not begin with a name (§7.1.1).
    #[error("command on chunk stream {chunk_stream_id}: it does not begin with a name")]
    Command {
        /// The chunk stream.
        chunk_stream_id: u32,
    },
    /// An app or stream key is too long.
    #[error("{what}: {length} bytes; at most {max} are allowed")]
    NameTooLong {
        /// Which of them.
        what: &'static str,
        /// Its length.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// Too much arrived while a request waited for its answer.
    #[error("too much arrived before a request was answered; {messages} messages, {bytes} bytes are allowed")]
    Impatient {
        /// The limit of messages.
        messages: usize,
        /// The limit of bytes.
        bytes: usize,
    },
}

#[cfg(test)]
mod fuzzing;
