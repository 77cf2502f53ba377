//! What both sides of a connection do alike: chunks in, messages out, acknowledgements, pings, pending output.

use super::{COMMAND_CHUNK_STREAM, OUT_CHUNK_SIZE, PLAY_STREAM_ID, PUBLISH_NOTIFY, WINDOW_ACK_SIZE};
use crate::rtmp::amf0::Value;
use crate::rtmp::chunk::{self, Reader};
use crate::rtmp::message::{Command, Control, Message, SET_CHUNK_SIZE, UserControl};
use crate::rtmp::{Error, Limits};
use bytes::{Bytes, BytesMut};

/// What a malformed message weighs in the end, where a sound one takes one off.
const MALFORMED_WEIGHT: u32 = 2;

pub(super) struct Link {
    pub limits: Limits,
    pub out: BytesMut,
    /// Messages that were dropped because they made no sense where they stood.
    pub ignored: u64,
    reader: Reader,
    /// The weight of the malformed messages that sound ones have not made up for.
    malformed: u32,
    publishing: bool,
    out_chunk_size: usize,
    /// Bytes since the handshake; wraps, as the counter on the wire does.
    received: u32,
    acknowledged: u32,
    window: u32,
}

/// A message that is not the link's own business.
pub(super) enum Arrival {
    Message(Message),
    User(UserControl),
}

impl Link {
    pub fn new(limits: Limits) -> Self {
        Link {
            reader: Reader::new(&limits),
            malformed: 0,
            publishing: true,
            limits,
            out: BytesMut::new(),
            ignored: 0,
            out_chunk_size: chunk::DEFAULT_CHUNK_SIZE,
            received: 0,
            acknowledged: 0,
            window: WINDOW_ACK_SIZE,
        }
    }

    /// The next message in `input` that is for the session; `None` once all of `input` is taken.
    pub fn arrival(&mut self, input: &mut &[u8]) -> Result<Option<Arrival>, Error> {
        loop {
            let before = input.len();
            let message = self.reader.read(input)?;
            let taken = u32::try_from(before - input.len()).unwrap_or(u32::MAX);
            self.received = self.received.wrapping_add(taken);
            let Some(message) = message else {
                self.acknowledge();
                return Ok(None);
            };
            self.malformed = self.malformed.saturating_sub(1);
            let control = match Control::parse(&message) {
                Ok(control) => control,
                // How the peer cuts its messages from here on is not known.
                Err(error) if message.type_id == SET_CHUNK_SIZE => return Err(error),
                Err(error) => {
                    self.malformed(error)?;
                    continue;
                }
            };
            match control {
                None => return Ok(Some(Arrival::Message(message))),
                Some(Control::SetChunkSize(size)) => self.reader.set_chunk_size(size)?,
                Some(Control::Abort(chunk_stream_id)) => {
                    self.ignored += u64::from(self.reader.abort(chunk_stream_id));
                }
                // A window of 0 would ask for acknowledgements without end.
                Some(Control::WindowAckSize(window)) if window > 0 => self.window = window,
                Some(Control::User(UserControl::PingRequest(time))) => {
                    self.control(Control::User(UserControl::PingResponse(time)));
                }
                Some(Control::User(UserControl::Other(event))) => {
                    self.malformed(Error::UserControl { event })?;
                }
                Some(Control::User(event)) => return Ok(Some(Arrival::User(event))),
                // Flow control is TCP's business, so acknowledgements and bandwidths change nothing.
                Some(
                    Control::WindowAckSize(_)
                    | Control::Acknowledgement(_)
                    | Control::SetPeerBandwidth { .. },
                ) => {}
            }
        }
    }

    /// A message could not be understood. It is dropped; the connection ends if most are such.
    pub fn malformed(&mut self, error: Error) -> Result<(), Error> {
        self.ignored += 1;
        // The message itself was counted as a sound one, and the first of many had nothing to make up for.
        self.malformed = self.malformed.saturating_add(MALFORMED_WEIGHT + 1);
        let max = self.limits.malformed_messages;
        if self.malformed > max.saturating_mul(MALFORMED_WEIGHT).saturating_add(1) {
            return Err(Error::Malformed { max, last: Box::new(error) });
        }
        Ok(())
    }

    /// A peer that does not publish may hold next to nothing.
    pub fn set_publishing(&mut self, publishing: bool) {
        self.publishing = publishing;
        let Limits { message_bytes, partial_bytes, idle_bytes, .. } = self.limits;
        match publishing {
            true => self.reader.set_message_limits(message_bytes, partial_bytes),
            false => {
                self.reader.set_message_limits(message_bytes.min(idle_bytes), partial_bytes.min(idle_bytes))
            }
        }
    }

    pub fn is_publishing(&self) -> bool {
        self.publishing
    }

    /// The memory of unfinished messages and of what is not sent yet.
    pub fn held(&self) -> usize {
        self.reader.partial_bytes() + self.out.len()
    }

    pub fn missing(&self) -> usize {
        self.reader.missing()
    }

    /// At most one acknowledgement for each input, however small the peer's window.
    fn acknowledge(&mut self) {
        if self.received.wrapping_sub(self.acknowledged) >= self.window {
            self.acknowledged = self.received;
            self.control(Control::Acknowledgement(self.received));
        }
    }

    pub fn control(&mut self, control: Control) {
        control.write(&mut self.out);
    }

    /// Announces [`OUT_CHUNK_SIZE`] and uses it from now on.
    pub fn announce_chunk_size(&mut self) {
        self.control(Control::SetChunkSize(OUT_CHUNK_SIZE as u32));
        self.out_chunk_size = OUT_CHUNK_SIZE;
    }

    pub fn command(&mut self, stream_id: u32, command: Command) {
        command.write(&mut self.out, COMMAND_CHUNK_STREAM, stream_id, self.out_chunk_size);
    }

    pub fn media(&mut self, stream_id: u32, timestamp: u32, type_id: u8, body: &[u8]) {
        let chunk_stream_id = super::chunk_stream(type_id);
        let size = self.out_chunk_size;
        chunk::write_message(&mut self.out, chunk_stream_id, timestamp, type_id, stream_id, body, size);
    }

    /// `onStatus` on a message stream (§7.2.2).
    pub fn status(&mut self, stream_id: u32, level: &str, code: &str, description: &str) {
        let info = [info(level, code, description)];
        self.command(stream_id, Command::new("onStatus", 0.0, Value::Null, info));
    }

    /// Answers a call, if an answer is wanted.
    pub fn result(&mut self, call: &Command, value: Value) {
        if call.transaction != 0.0 {
            self.command(0, Command::new("_result", call.transaction, Value::Null, [value]));
        }
    }

    /// Refuses a call, if an answer is wanted.
    pub fn error(&mut self, call: &Command, description: &str) {
        if call.transaction != 0.0 {
            let info = [info("error", "NetConnection.Call.Failed", description)];
            self.command(0, Command::new("_error", call.transaction, Value::Null, info));
        }
    }

    /// Puts the count of received bytes near its wrap.
    #[cfg(test)]
    pub fn set_received(&mut self, bytes: u32) {
        (self.received, self.acknowledged) = (bytes, bytes);
    }

    /// All pending output. No buffer is kept.
    pub fn output(&mut self) -> Bytes {
        std::mem::take(&mut self.out).freeze()
    }
}

/// The object that says how a request went.
pub(super) fn info(level: &str, code: &str, description: &str) -> Value {
    Value::object([
        ("level", Value::string(level)),
        ("code", Value::string(code)),
        ("description", Value::string(description)),
    ])
}

/// Says that another publish begins (`NetStream.Play.PublishNotify`), on message stream [`PLAY_STREAM_ID`]: to stand among shared
/// media bytes.
pub fn publish_notify() -> Bytes {
    let mut wire = BytesMut::new();
    let info = [info("status", PUBLISH_NOTIFY, "Another publish begins.")];
    let status = Command::new("onStatus", 0.0, Value::Null, info);
    status.write(&mut wire, COMMAND_CHUNK_STREAM, PLAY_STREAM_ID, OUT_CHUNK_SIZE);
    wire.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtmp::chunk::Reader;

    #[test]
    fn the_byte_count_wraps() {
        let mut link = Link::new(Limits { message_bytes: 200, ..Limits::default() });
        link.received = u32::MAX - 50;
        link.acknowledged = u32::MAX - 50;
        link.window = 100;
        let mut wire = BytesMut::new();
        chunk::write_message(&mut wire, 4, 0, 8, 1, &[0; 90], 128);
        let mut input = &wire[..];
        assert!(matches!(link.arrival(&mut input), Ok(Some(Arrival::Message(_)))));
        assert!(matches!(link.arrival(&mut input), Ok(None)));
        let reply = link.output();
        let reply = Reader::new(&Limits::default()).read(&mut &reply[..]).unwrap().unwrap();
        // 51 bytes up to the wrap, and the rest of 102.
        assert_eq!(Control::parse(&reply), Ok(Some(Control::Acknowledgement(51))));
    }
}
