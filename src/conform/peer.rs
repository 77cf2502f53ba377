//! One connection to the server under test, by a client that can send any bytes.
//!
//! Unlike [`crate::rtmp::session::Client`] it does nothing by itself but what a connection cannot live without: it follows the
//! server's chunk size and answers its pings. Whatever the server sends, memory is bounded by the limits of
//! [`chunk::Reader`], and time by the deadline of the check.

use crate::rtmp::amf0::{self, Value};
use crate::rtmp::chunk::{self, Reader};
use crate::rtmp::message::{self, Command, Control, Message, UserControl};
use crate::rtmp::session::{COMMAND_CHUNK_STREAM, chunk_stream};
use crate::rtmp::{self, Limits};
use crate::telemetry::shown;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// How much is read at a time.
const READ: usize = 16 << 10;

/// How much one connection is read of. The largest frame of a check has a megabyte; what is more is a flood, and some checks keep
/// all that they hear.
const RECEIVED: usize = 8 << 20;

/// Why a check could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The connection ended.
    #[error("closed before {0}")]
    Closed(String),
    /// Nothing of the kind came within the deadline.
    #[error("waited in vain for {0}")]
    Silent(String),
    /// A status of level "error", or an `_error`.
    #[error("{what}: {code}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The status code, or what stands in its place.
        code: String,
    },
    /// What the server sent cannot be read.
    #[error("sent what is no RTMP: {0}")]
    Garbled(#[from] rtmp::Error),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// Something else than was expected.
    #[error("{0}")]
    Other(String),
}

impl Trouble {
    pub(super) fn other(text: impl Into<String>) -> Trouble {
        Trouble::Other(text.into())
    }

    /// The server ended the connection.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Trouble::Closed(_))
    }
}

/// What an `onStatus`, or the answer to a call, says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub level: String,
    pub code: String,
}

impl Status {
    pub fn of(command: &Command) -> Status {
        let text = |name| {
            let value = command.argument(0).and_then(|info| info.get(name)?.as_str());
            value.map(shown).unwrap_or_default()
        };
        Status { level: text("level"), code: text("code") }
    }
}

/// See the module's head.
pub(super) struct Peer {
    socket: TcpStream,
    reader: Reader,
    unread: BytesMut,
    /// Read, and to be read again: see [`Peer::begins`].
    kept: VecDeque<Message>,
    deadline: Instant,
    /// The message stream that `createStream` gave.
    pub stream_id: u32,
    /// The chunk size of what this side sends.
    pub chunk_size: usize,
    calls: f64,
    received: usize,
}

impl Peer {
    pub async fn open(host: &str, port: u16, deadline: Instant) -> Result<Peer, Trouble> {
        let connecting = timeout_at(deadline, TcpStream::connect((host, port)));
        let socket = connecting.await.map_err(|_| Trouble::Connect(io::ErrorKind::TimedOut.into()))?;
        let socket = socket.map_err(Trouble::Connect)?;
        socket.set_nodelay(true).map_err(Trouble::Connect)?;
        Ok(Peer {
            socket,
            reader: Reader::new(&Limits::default()),
            unread: BytesMut::new(),
            kept: VecDeque::new(),
            deadline,
            stream_id: 1,
            chunk_size: chunk::DEFAULT_CHUNK_SIZE,
            calls: 1.0,
            received: 0,
        })
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        match timeout_at(self.deadline, self.socket.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Trouble::Closed("it had read everything".to_owned())),
            Err(_) => Err(Trouble::Silent("the server to read on".to_owned())),
        }
    }

    /// Exactly so many bytes, for the handshake.
    pub async fn bytes(&mut self, count: usize, what: &str) -> Result<Bytes, Trouble> {
        while self.unread.len() < count {
            if !self.fill(self.deadline, what).await? {
                return Err(Trouble::Silent(what.to_owned()));
            }
        }
        Ok(self.unread.split_to(count).freeze())
    }

    /// Reads once; false if nothing comes in time.
    async fn fill(&mut self, until: Instant, what: &str) -> Result<bool, Trouble> {
        if self.received > RECEIVED {
            return Err(Trouble::other(format!("sent more than {} MB before {what}", RECEIVED >> 20)));
        }
        self.unread.reserve(READ);
        match timeout_at(until.min(self.deadline), self.socket.read_buf(&mut self.unread)).await {
            Ok(Ok(0) | Err(_)) => Err(Trouble::Closed(what.to_owned())),
            Ok(Ok(count)) => {
                self.received += count;
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    /// The next message; nothing if none is complete in time.
    pub async fn message_until(&mut self, until: Instant, what: &str) -> Result<Option<Message>, Trouble> {
        match self.kept.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.next_until(until, what).await,
        }
    }

    /// The same of what was not read yet.
    async fn next_until(&mut self, until: Instant, what: &str) -> Result<Option<Message>, Trouble> {
        loop {
            let mut input = &*self.unread;
            let message = self.reader.read(&mut input)?;
            let taken = self.unread.len() - input.len();
            self.unread.advance(taken);
            match message {
                Some(message) => {
                    self.follow(&message).await?;
                    return Ok(Some(message));
                }
                None if !self.fill(until, what).await? => return Ok(None),
                None => {}
            }
        }
    }

    /// Waits for the first audio or video, at most this long, and leaves everything to be read.
    pub async fn begins(&mut self, time: Duration) -> Result<(), Trouble> {
        let until = Instant::now() + time;
        while let Some(message) = self.next_until(until, "media").await? {
            let begun = matches!(message.type_id, message::AUDIO | message::VIDEO);
            self.kept.push_back(message);
            if begun {
                break;
            }
        }
        Ok(())
    }

    /// What no connection can live without.
    async fn follow(&mut self, message: &Message) -> Result<(), Trouble> {
        match Control::parse(message)? {
            Some(Control::SetChunkSize(size)) => self.reader.set_chunk_size(size)?,
            Some(Control::User(UserControl::PingRequest(time))) => {
                self.control(Control::User(UserControl::PingResponse(time))).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads on until `find` finds something.
    pub async fn until<T>(
        &mut self,
        what: &str,
        mut find: impl FnMut(&Message) -> Option<T>,
    ) -> Result<T, Trouble> {
        loop {
            match self.message_until(self.deadline, what).await? {
                Some(message) => {
                    if let Some(found) = find(&message) {
                        return Ok(found);
                    }
                }
                None => return Err(Trouble::Silent(what.to_owned())),
            }
        }
    }

    /// Everything that comes within this time, up to the end of the connection, and that end if there is one.
    pub async fn heard_within(&mut self, time: Duration) -> (Vec<Message>, Option<Trouble>) {
        let until = Instant::now() + time;
        let mut messages = Vec::new();
        loop {
            match self.message_until(until, "the end of the silence").await {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return (messages, None),
                Err(trouble) => return (messages, Some(trouble)),
            }
        }
    }

    /// Everything that comes within this time on a connection that has to stay open.
    pub async fn all_within(&mut self, time: Duration) -> Result<Vec<Message>, Trouble> {
        match self.heard_within(time).await {
            (messages, None) => Ok(messages),
            (_, Some(trouble)) => Err(trouble),
        }
    }

    /// Reads until the server closes the connection.
    pub async fn closed(&mut self) -> Trouble {
        loop {
            match self.message_until(self.deadline, "what it brought was relayed").await {
                Ok(Some(_)) => {}
                Ok(None) => std::future::pending().await,
                Err(trouble) => return trouble,
            }
        }
    }

    /// What is done from now on has at least this long.
    pub fn grant(&mut self, time: Duration) {
        self.deadline = self.deadline.max(Instant::now() + time);
    }

    /// Whether the server closes the connection within this time, whatever it says before.
    pub async fn closes_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            match self.message_until(until, "").await {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    pub async fn control(&mut self, control: Control) -> Result<(), Trouble> {
        let mut wire = BytesMut::new();
        control.write(&mut wire);
        self.write(&wire).await
    }

    /// Sets the chunk size, and waits until the server has read that. Some servers are hurt when what follows a smaller size
    /// has been read with it.
    pub async fn set_chunk_size(&mut self, size: u32) -> Result<(), Trouble> {
        self.calls += 1.0;
        let mut wire = BytesMut::new();
        let call = Command::new("createStream", self.calls, Value::Null, []);
        call.write(&mut wire, COMMAND_CHUNK_STREAM, 0, self.chunk_size);
        // Both are read at once, and the first one is answered.
        Control::SetChunkSize(size).write(&mut wire);
        self.write(&wire).await?;
        self.chunk_size = size as usize;
        self.answer(self.calls, "the answer to one more call").await.map(drop)
    }

    /// One message in a header of format 0, on the chunk stream of its type.
    pub async fn send(&mut self, type_id: u8, timestamp: u32, body: &[u8]) -> Result<(), Trouble> {
        let wire = self.wire(type_id, timestamp, body);
        self.write(&wire).await
    }

    /// The bytes of [`Peer::send`].
    pub fn wire(&self, type_id: u8, timestamp: u32, body: &[u8]) -> BytesMut {
        let mut wire = BytesMut::new();
        let chunk_stream_id = chunk_stream(type_id);
        chunk::write_message(
            &mut wire,
            chunk_stream_id,
            timestamp,
            type_id,
            self.stream_id,
            body,
            self.chunk_size,
        );
        wire
    }

    /// Calls a command on a message stream, and gives the transaction id.
    pub async fn call(
        &mut self,
        stream_id: u32,
        name: &str,
        arguments: impl Into<Vec<Value>>,
    ) -> Result<f64, Trouble> {
        self.calls += 1.0;
        let command = Command::new(name, self.calls, Value::Null, arguments);
        self.command(stream_id, &command).await?;
        Ok(self.calls)
    }

    pub async fn command(&mut self, stream_id: u32, command: &Command) -> Result<(), Trouble> {
        let mut wire = BytesMut::new();
        command.write(&mut wire, COMMAND_CHUNK_STREAM, stream_id, self.chunk_size);
        self.write(&wire).await
    }

    /// The `_result` or `_error` of a call.
    pub async fn answer(&mut self, transaction: f64, what: &str) -> Result<Command, Trouble> {
        self.until(what, |message| answer_to(message, transaction)).await
    }

    /// Whether the server still answers on this connection. It is asked for one more message stream, as not every server
    /// answers pings.
    pub async fn goes_on(&mut self) -> Result<(), Trouble> {
        let transaction = self.call(0, "createStream", []).await?;
        self.answer(transaction, "the answer to one more call").await.map(drop)
    }

    /// Waits for an `onStatus` with one of these codes. One of level "error" that is none of them is a refusal.
    pub async fn status(&mut self, what: &str, codes: &[&str]) -> Result<Status, Trouble> {
        let status = self
            .until(what, |message| {
                let status = status_of(message)?;
                (codes.contains(&status.code.as_str()) || status.level == "error").then_some(status)
            })
            .await?;
        match codes.contains(&status.code.as_str()) {
            true => Ok(status),
            false => Err(Trouble::Refused { what: what.to_owned(), code: status.code }),
        }
    }

    /// The next audio, video or data message.
    pub async fn media(&mut self, what: &str) -> Result<Message, Trouble> {
        self.until(what, |message| is_media(message).then(|| message.clone())).await
    }
}

/// Audio, video or data.
pub(super) fn is_media(message: &Message) -> bool {
    matches!(message.type_id, message::AUDIO | message::VIDEO | message::DATA_AMF0 | message::DATA_AMF3)
}

/// The command in a message, if it is one.
pub(super) fn command_of(message: &Message) -> Option<Command> {
    matches!(message.type_id, message::COMMAND_AMF0 | message::COMMAND_AMF3)
        .then(|| Command::parse(message, &Limits::default()).ok())?
}

/// What an `onStatus` says.
pub(super) fn status_of(message: &Message) -> Option<Status> {
    let command = command_of(message)?;
    (command.name == "onStatus").then(|| Status::of(&command))
}

/// The answer to a call, if the message is that.
pub(super) fn answer_to(message: &Message, transaction: f64) -> Option<Command> {
    let command = command_of(message)?;
    let answers = matches!(command.name.as_str(), "_result" | "_error");
    (answers && command.transaction == transaction).then_some(command)
}

/// The name and the values of a data message.
pub(super) fn data_of(message: &Message) -> Option<(String, Vec<Value>)> {
    if !matches!(message.type_id, message::DATA_AMF0 | message::DATA_AMF3) {
        return None;
    }
    let body = message::amf0_body(message);
    let mut values = amf0::read_all(&body, &amf0::Limits::default()).ok()?;
    let name = values.first()?.as_str()?.to_owned();
    Some((name, values.split_off(1)))
}
