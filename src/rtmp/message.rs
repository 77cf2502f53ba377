//! Messages and their meaning (§5.4, §6, §7): protocol control, user control, commands, aggregates.

use super::amf0::{self, Value};
use super::chunk::{self, CONTROL_CHUNK_STREAM};
use super::{Error, Limits};
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;

/// Set Chunk Size (§5.4.1).
pub const SET_CHUNK_SIZE: u8 = 1;
/// Abort Message (§5.4.2).
pub const ABORT: u8 = 2;
/// Acknowledgement (§5.4.3).
pub const ACKNOWLEDGEMENT: u8 = 3;
/// User Control (§6.2).
pub const USER_CONTROL: u8 = 4;
/// Window Acknowledgement Size (§5.4.4).
pub const WINDOW_ACK_SIZE: u8 = 5;
/// Set Peer Bandwidth (§5.4.5).
pub const SET_PEER_BANDWIDTH: u8 = 6;
/// Audio (§7.1.4).
pub const AUDIO: u8 = 8;
/// Video (§7.1.5).
pub const VIDEO: u8 = 9;
/// Data in AMF 3 (§7.1.2): a byte 0, then AMF 0.
pub const DATA_AMF3: u8 = 15;
/// Command in AMF 3 (§7.1.1): a byte 0, then AMF 0.
pub const COMMAND_AMF3: u8 = 17;
/// Data in AMF 0 (§7.1.2).
pub const DATA_AMF0: u8 = 18;
/// Command in AMF 0 (§7.1.1).
pub const COMMAND_AMF0: u8 = 20;
/// Aggregate (§7.1.6).
pub const AGGREGATE: u8 = 22;

/// One RTMP message.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is, for example [`VIDEO`].
    pub type_id: u8,
    /// Milliseconds on a 32-bit clock that wraps.
    pub timestamp: u32,
    /// The message stream it belongs to; 0 is the connection itself.
    pub stream_id: u32,
    /// The chunk stream it came on.
    pub chunk_stream_id: u32,
    /// Its payload.
    pub body: Bytes,
}

/// The body is shown by its length only: a command's body holds the stream key and its query.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("type_id", &self.type_id)
            .field("timestamp", &self.timestamp)
            .field("stream_id", &self.stream_id)
            .field("chunk_stream_id", &self.chunk_stream_id)
            .field("body_len", &self.body.len())
            .finish()
    }
}

/// A message about the connection rather than a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The sender's chunk size from now on, in bytes.
    SetChunkSize(u32),
    /// The sender will not finish the message on this chunk stream.
    Abort(u32),
    /// Bytes received so far; wraps.
    Acknowledgement(u32),
    /// See [`UserControl`].
    User(UserControl),
    /// The sender wants an acknowledgement each time this many bytes have come.
    WindowAckSize(u32),
    /// The sender wants to get no more than this before it acknowledges.
    SetPeerBandwidth {
        /// The window, in bytes.
        window: u32,
        /// 0 hard, 1 soft, 2 dynamic.
        limit: u8,
    },
}

/// A user control event (§7.1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserControl {
    /// A stream is ready for use.
    StreamBegin(u32),
    /// A stream has no more data.
    StreamEof(u32),
    /// A stream has no data for now.
    StreamDry(u32),
    /// The client's buffer.
    SetBufferLength {
        /// Of this stream.
        stream_id: u32,
        /// Its length in milliseconds.
        millis: u32,
    },
    /// A stream is a recording.
    StreamIsRecorded(u32),
    /// A ping request, with the sender's timestamp.
    PingRequest(u32),
    /// A ping response, with the request's timestamp.
    PingResponse(u32),
    /// An event of another kind, which is ignored.
    Other(u16),
}

impl Control {
    /// Reads a message of types 1 to 6; `None` if it has another type.
    pub fn parse(message: &Message) -> Result<Option<Control>, Error> {
        let fields = Fields { message };
        Ok(Some(match message.type_id {
            SET_CHUNK_SIZE => Control::SetChunkSize(fields.u32_at(0)?),
            ABORT => Control::Abort(fields.u32_at(0)?),
            ACKNOWLEDGEMENT => Control::Acknowledgement(fields.u32_at(0)?),
            USER_CONTROL => Control::User(match fields.u16_at(0)? {
                0 => UserControl::StreamBegin(fields.u32_at(2)?),
                1 => UserControl::StreamEof(fields.u32_at(2)?),
                2 => UserControl::StreamDry(fields.u32_at(2)?),
                3 => UserControl::SetBufferLength { stream_id: fields.u32_at(2)?, millis: fields.u32_at(6)? },
                4 => UserControl::StreamIsRecorded(fields.u32_at(2)?),
                6 => UserControl::PingRequest(fields.u32_at(2)?),
                7 => UserControl::PingResponse(fields.u32_at(2)?),
                other => UserControl::Other(other),
            }),
            WINDOW_ACK_SIZE => Control::WindowAckSize(fields.u32_at(0)?),
            // The last byte is left out by some servers; dynamic is the harmless reading.
            SET_PEER_BANDWIDTH => Control::SetPeerBandwidth {
                window: fields.u32_at(0)?,
                limit: message.body.get(4).copied().unwrap_or(2),
            },
            _ => return Ok(None),
        }))
    }

    /// Appends the message, on the control chunk stream. It is shorter than any chunk size in use.
    pub fn write(&self, out: &mut BytesMut) {
        let mut body = BytesMut::with_capacity(10);
        let type_id = match *self {
            Control::SetChunkSize(size) => {
                body.put_u32(size);
                SET_CHUNK_SIZE
            }
            Control::Abort(chunk_stream_id) => {
                body.put_u32(chunk_stream_id);
                ABORT
            }
            Control::Acknowledgement(bytes) => {
                body.put_u32(bytes);
                ACKNOWLEDGEMENT
            }
            Control::User(event) => {
                event.put(&mut body);
                USER_CONTROL
            }
            Control::WindowAckSize(window) => {
                body.put_u32(window);
                WINDOW_ACK_SIZE
            }
            Control::SetPeerBandwidth { window, limit } => {
                body.put_u32(window);
                body.put_u8(limit);
                SET_PEER_BANDWIDTH
            }
        };
        chunk::write_message(out, CONTROL_CHUNK_STREAM, 0, type_id, 0, &body, chunk::DEFAULT_CHUNK_SIZE);
    }
}

impl UserControl {
    fn put(self, body: &mut BytesMut) {
        let (event, fields): (u16, [Option<u32>; 2]) = match self {
            UserControl::StreamBegin(id) => (0, [Some(id), None]),
            UserControl::StreamEof(id) => (1, [Some(id), None]),
            UserControl::StreamDry(id) => (2, [Some(id), None]),
            UserControl::SetBufferLength { stream_id, millis } => (3, [Some(stream_id), Some(millis)]),
            UserControl::StreamIsRecorded(id) => (4, [Some(id), None]),
            UserControl::PingRequest(time) => (6, [Some(time), None]),
            UserControl::PingResponse(time) => (7, [Some(time), None]),
            UserControl::Other(event) => (event, [None, None]),
        };
        body.put_u16(event);
        fields.into_iter().flatten().for_each(|field| body.put_u32(field));
    }
}

struct Fields<'a> {
    message: &'a Message,
}

impl Fields<'_> {
    fn at<const N: usize>(&self, offset: usize) -> Result<[u8; N], Error> {
        let field = self.message.body.get(offset..).and_then(|rest| rest.first_chunk());
        field.copied().ok_or(Error::ControlTooShort {
            type_id: self.message.type_id,
            length: self.message.body.len(),
            min: offset + N,
        })
    }

    fn u16_at(&self, offset: usize) -> Result<u16, Error> {
        self.at(offset).map(u16::from_be_bytes)
    }

    fn u32_at(&self, offset: usize) -> Result<u32, Error> {
        self.at(offset).map(u32::from_be_bytes)
    }
}

/// A command (§7.1.1, §7.2): a call, or the answer to one.
#[derive(Clone, PartialEq)]
pub struct Command {
    /// What to do.
    pub name: String,
    /// Names the call in its answer; 0 when none is wanted.
    pub transaction: f64,
    /// The command object, often null.
    pub object: Value,
    /// What follows it.
    pub arguments: Vec<Value>,
}

/// Arguments are left out: they hold the stream key and its query.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} {} +{})", self.name, self.transaction, self.arguments.len())
    }
}

impl Command {
    /// A command to be sent.
    pub fn new(name: &str, transaction: f64, object: Value, arguments: impl Into<Vec<Value>>) -> Self {
        Command { name: name.to_owned(), transaction, object, arguments: arguments.into() }
    }

    /// Reads a command message, in AMF 0 or of the AMF 3 type. Only a missing name is an error. A missing
    /// transaction id is 0, and arguments are read up to the first that cannot be.
    pub fn parse(message: &Message, limits: &Limits) -> Result<Command, Error> {
        let body = amf0_body(message);
        let mut values = amf0::Reader::new(&body, &limits.amf).map_while(Result::ok).peekable();
        let name = values.next().and_then(|value| value.as_str().map(str::to_owned));
        let name = name.ok_or(Error::Command { chunk_stream_id: message.chunk_stream_id })?;
        let transaction = values.next_if(|value| value.as_number().is_some());
        Ok(Command {
            name,
            transaction: transaction.and_then(|value| value.as_number()).unwrap_or(0.0),
            object: values.next().unwrap_or(Value::Null),
            arguments: values.collect(),
        })
    }

    /// The argument at `index`, counted after the command object.
    pub fn argument(&self, index: usize) -> Option<&Value> {
        self.arguments.get(index)
    }

    /// Appends the command as one message.
    pub fn write(&self, out: &mut BytesMut, chunk_stream_id: u32, stream_id: u32, chunk_size: usize) {
        let mut body = BytesMut::new();
        amf0::write(&mut body, &Value::string(self.name.as_str()));
        amf0::write(&mut body, &Value::Number(self.transaction));
        amf0::write(&mut body, &self.object);
        self.arguments.iter().for_each(|argument| amf0::write(&mut body, argument));
        chunk::write_message(out, chunk_stream_id, 0, COMMAND_AMF0, stream_id, &body, chunk_size);
    }
}

/// The AMF 0 values of a command or data message: AMF 3 messages have a zero byte in front of them.
pub fn amf0_body(message: &Message) -> Bytes {
    let disguised = matches!(message.type_id, COMMAND_AMF3 | DATA_AMF3);
    match message.body.first() {
        Some(0) if disguised => message.body.slice(1..),
        _ => message.body.clone(),
    }
}

/// The wrapper that publishers put around metadata: the AMF 0 string `@setDataFrame`.
pub const SET_DATA_FRAME: &[u8] = b"\x02\x00\x0d@setDataFrame";

/// A data message in the form in which it is passed on: type [`DATA_AMF0`], and without the `@setDataFrame` wrapper, so
/// that the body starts with its real name. `None` if there is no name, or if values are nested deeper than `limits`
/// allow: such a message could crash a viewer that parses it. Nothing else is checked.
pub fn plain_data(message: &Message, limits: &amf0::Limits) -> Option<Message> {
    let mut body = amf0_body(message);
    if body.starts_with(SET_DATA_FRAME) {
        body = body.slice(SET_DATA_FRAME.len()..);
    }
    let mut values = amf0::Reader::new(&body, limits);
    values.next()?.ok()?.as_str()?;
    if values.any(|value| matches!(value, Err(Error::AmfDepth { .. }))) {
        return None;
    }
    Some(Message { type_id: DATA_AMF0, body, ..*message })
}

/// The messages in an aggregate (§7.1.6), without copying. The aggregate's timestamp is that of the first; the others keep
/// their distance to it. Ends at the first tag that is cut off.
pub fn split_aggregate(message: &Message) -> Tags {
    Tags { aggregate: message.clone(), offset: 0, base: None }
}

/// Iterator of [`split_aggregate`].
pub struct Tags {
    aggregate: Message,
    offset: usize,
    base: Option<u32>,
}

impl Tags {
    /// True if bytes are left that are no complete tag.
    pub fn is_cut(&self) -> bool {
        self.offset < self.aggregate.body.len()
    }
}

impl Iterator for Tags {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        // An FLV tag: type, size, timestamp with its high byte last, stream id; then the data and a back pointer.
        const HEADER: usize = 11;
        const BACK_POINTER: usize = 4;
        let body = &self.aggregate.body;
        let rest = body.get(self.offset..)?;
        let [type_id, s2, s1, s0, t2, t1, t0, t3, _, _, _] = *rest.first_chunk::<HEADER>()?;
        let size = u32::from_be_bytes([0, s2, s1, s0]) as usize;
        let time = u32::from_be_bytes([t3, t2, t1, t0]);
        let start = self.offset + HEADER;
        let end = start + size;
        if end > body.len() {
            return None;
        }
        // The last back pointer is left out by some senders.
        self.offset = (end + BACK_POINTER).min(body.len());
        let base = *self.base.get_or_insert(time);
        Some(Message {
            type_id,
            timestamp: self.aggregate.timestamp.wrapping_add(time.wrapping_sub(base)),
            body: body.slice(start..end),
            ..self.aggregate
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtmp::chunk::Reader;

    fn message(type_id: u8, body: &[u8]) -> Message {
        Message {
            type_id,
            timestamp: 0,
            stream_id: 0,
            chunk_stream_id: 2,
            body: Bytes::copy_from_slice(body),
        }
    }

    fn read(wire: &[u8]) -> Message {
        Reader::new(&Limits::default()).read(&mut &wire[..]).unwrap().unwrap()
    }

    #[test]
    fn control_messages_round_trip_and_their_cuts_are_errors() {
        let user = [
            UserControl::StreamBegin(1),
            UserControl::StreamEof(2),
            UserControl::StreamDry(3),
            UserControl::SetBufferLength { stream_id: 1, millis: 3000 },
            UserControl::StreamIsRecorded(4),
            UserControl::PingRequest(u32::MAX),
            UserControl::PingResponse(6),
            UserControl::Other(31),
        ];
        let controls = [
            Control::SetChunkSize(4096),
            Control::Abort(6),
            Control::Acknowledgement(u32::MAX),
            Control::WindowAckSize(2_500_000),
            Control::SetPeerBandwidth { window: 1, limit: 2 },
        ];
        for control in controls.into_iter().chain(user.map(Control::User)) {
            let mut wire = BytesMut::new();
            control.write(&mut wire);
            let message = read(&wire);
            assert_eq!((message.chunk_stream_id, message.stream_id), (2, 0));
            assert_eq!(Control::parse(&message), Ok(Some(control)));
            let cut = Message { body: message.body.slice(..1), ..message };
            assert!(matches!(Control::parse(&cut), Err(Error::ControlTooShort { length: 1, .. })));
        }
        assert_eq!(Control::parse(&message(AUDIO, b"")), Ok(None));
    }

    #[test]
    fn a_command_is_read_in_both_disguises_and_as_far_as_it_goes() {
        let command = Command::new("play", 4.0, Value::Null, [Value::string("x"), Value::Number(-2.0)]);
        let mut wire = BytesMut::new();
        command.write(&mut wire, 3, 1, 128);
        let plain = read(&wire);
        assert_eq!(Command::parse(&plain, &Limits::default()).as_ref(), Ok(&command));
        let amf3 = message(COMMAND_AMF3, &[&[0], &plain.body[..]].concat());
        assert_eq!(Command::parse(&amf3, &Limits::default()).as_ref(), Ok(&command));
        let amf3_without_zero = message(COMMAND_AMF3, &plain.body);
        assert_eq!(Command::parse(&amf3_without_zero, &Limits::default()).as_ref(), Ok(&command));
        let spoilt = message(COMMAND_AMF0, &[&plain.body[..], &[0x11, 4, 4]].concat());
        assert_eq!(Command::parse(&spoilt, &Limits::default()).as_ref(), Ok(&command));

        let bare = Command::parse(&message(COMMAND_AMF0, b"\x02\0\x01a"), &Limits::default()).unwrap();
        assert_eq!(bare, Command::new("a", 0.0, Value::Null, []));
        for nameless in [&b""[..], b"\x05", b"\x02\0\x09a"] {
            let error = Command::parse(&message(COMMAND_AMF0, nameless), &Limits::default());
            assert_eq!(error, Err(Error::Command { chunk_stream_id: 2 }));
        }
    }

    #[test]
    fn data_loses_its_wrapper_and_keeps_the_rest_to_the_byte() {
        let limits = amf0::Limits::default();
        let metadata = &b"\x02\0\x0aonMetaData\x08\0\0\0\x09\0\x01a\x05\0\0\x09"[..];
        for (type_id, prefix) in
            [(DATA_AMF0, &b""[..]), (DATA_AMF0, SET_DATA_FRAME), (DATA_AMF3, b"\0"), (DATA_AMF3, b"")]
        {
            let plain = plain_data(&message(type_id, &[prefix, metadata].concat()), &limits).unwrap();
            assert_eq!((plain.type_id, &plain.body[..]), (DATA_AMF0, metadata));
        }
        let unclosed = &metadata[..metadata.len() - 3];
        assert_eq!(plain_data(&message(DATA_AMF0, unclosed), &limits).unwrap().body, unclosed);
    }

    #[test]
    fn data_without_a_name_or_nested_too_deep_is_dropped() {
        let limits = amf0::Limits::default();
        let deep = [&b"\x02\0\x0aonMetaData"[..], &b"\x03\0\x01a".repeat(100_000)].concat();
        for body in [&deep[..], b"", b"\x05", b"\x02\0\xFFa"] {
            assert_eq!(plain_data(&message(DATA_AMF0, body), &limits), None);
        }
    }

    fn tag(type_id: u8, time: u32, body: &[u8]) -> Vec<u8> {
        let [t3, t2, t1, t0] = time.to_be_bytes();
        let header = [type_id, 0, 0, body.len() as u8, t2, t1, t0, t3, 0, 0, 0];
        [&header[..], body, &(11 + body.len() as u32).to_be_bytes()].concat()
    }

    #[test]
    fn an_aggregate_is_split_and_rebased_on_its_first_tag() {
        let body =
            [tag(VIDEO, 0x0100_0000, b"vv"), tag(AUDIO, 0x0100_0017, b"a"), tag(VIDEO, 0x0100_0021, b"")];
        let body = body.concat();
        let whole = Message { timestamp: 5000, stream_id: 1, ..message(AGGREGATE, &body) };
        let split = |message: &Message| -> Vec<_> {
            split_aggregate(message).map(|tag| (tag.type_id, tag.timestamp, tag.body)).collect()
        };
        let want = [(VIDEO, 5000, "vv"), (AUDIO, 5023, "a"), (VIDEO, 5033, "")];
        let want = want.map(|(type_id, time, body)| (type_id, time, Bytes::from_static(body.as_bytes())));
        assert_eq!(split(&whole), want);
        let no_pointer = Message { body: whole.body.slice(..body.len() - 4), ..whole.clone() };
        assert_eq!(split(&no_pointer), want, "without the last back pointer");
        let cut = Message { body: whole.body.slice(..body.len() - 5), ..whole };
        let mut tags = split_aggregate(&cut);
        assert_eq!(tags.by_ref().count(), 2);
        assert!(tags.is_cut());
    }

    #[test]
    fn debug_texts_hold_no_body() {
        let command = Command::new("publish", 1.0, Value::Null, [Value::string("key?token=secret")]);
        assert!(!format!("{command:?} {:?}", message(COMMAND_AMF0, b"secret")).contains("secret"));
    }
}
