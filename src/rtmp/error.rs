//! What a peer can do wrong.

/// What a peer did wrong. Unless only a message is lost by it, its connection cannot go on. No text of the peer is repeated in the message, as it may hold a
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
    /// A message is longer than [`Limits::message_bytes`](crate::rtmp::Limits::message_bytes).
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
    /// More chunk streams than [`Limits::chunk_streams`](crate::rtmp::Limits::chunk_streams).
    #[error("chunk stream {chunk_stream_id}: one too many; at most {max} are allowed")]
    TooManyChunkStreams {
        /// The one that was too many.
        chunk_stream_id: u32,
        /// The limit.
        max: usize,
    },
    /// More unfinished messages than [`Limits::partial_messages`](crate::rtmp::Limits::partial_messages).
    #[error("chunk stream {chunk_stream_id}: one unfinished message too many; at most {max} are allowed")]
    TooManyPartialMessages {
        /// The chunk stream.
        chunk_stream_id: u32,
        /// The limit.
        max: usize,
    },
    /// The unfinished messages need more memory than [`Limits::partial_bytes`](crate::rtmp::Limits::partial_bytes).
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
    /// A user control event that is not known (§7.1.7).
    #[error("user control event {event}: it is not known")]
    UserControl {
        /// The event.
        event: u16,
    },
    /// More malformed messages than [`Limits::malformed_messages`](crate::rtmp::Limits::malformed_messages) allow.
    #[error("too many malformed messages, more than {max} beyond one in three; the last: {last}")]
    Malformed {
        /// The limit.
        max: u32,
        /// What was wrong with the last of them.
        last: Box<Error>,
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
