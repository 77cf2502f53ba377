//! The answering side of a connection.

mod calls;
mod streams;

use super::event::Event;
use super::link::{Arrival, Link, info};
use super::{LB, RELAY_ID, TIME, WINDOW_ACK_SIZE};
use crate::rtmp::amf0::{self, Value};
use crate::rtmp::handshake::{self, Nonce};
use crate::rtmp::message::{self, Command, Control, Message, UserControl};
use crate::rtmp::{Error, Limits};
use bytes::Bytes;
use std::collections::VecDeque;
use streams::{Doing, Effect, Stream, Streams};

/// The status of a publish that is refused or ended by this side.
const BAD_NAME: &str = "NetStream.Publish.BadName";

/// Room for so many events is kept between two reads of a publisher.
const EVENTS_KEPT: usize = 8;

/// One connection's answering side, handshake included.
///
/// A connect that waits for its answer holds back all that comes behind it; a publish or play that waits holds back the
/// commands and media of its own message stream, so that answers leave in order there. What ends or replaces the request is
/// not held back: the request is withdrawn at once, by [`Event::StopPlay`] or [`Event::Unpublish`], or unheard if its own event
/// has not been taken yet. So take all events after each input, before answering anything. Methods that answer name the
/// message stream of the request, and do nothing when no request of it waits.
pub struct Server {
    link: Link,
    state: State,
    streams: Streams,
    events: VecDeque<Event>,
    /// What came behind a connect that has no answer yet.
    early: VecDeque<Message>,
    /// All messages that are held back, those of message streams included, and their bytes.
    held_back: (usize, usize),
    instance: String,
    query: Option<String>,
    time: Option<u64>,
    /// The peer said that it follows reconnect requests.
    reconnects: bool,
    /// An error in a held-back message, for the next [`Server::input`].
    failed: Option<Error>,
}

enum State {
    Handshake(Box<handshake::Server>),
    /// The handshake is done, and nothing but `connect` is taken.
    Greeted,
    ConnectAsked(Box<ConnectCall>),
    /// The connect was accepted: message streams are made and used.
    Open,
    /// The connect was refused, or a held-back message was wrong: nothing is taken any more.
    Closed,
}

/// What the answer to a connect needs to know.
struct ConnectCall {
    transaction: f64,
    /// The answer in kind to what Enhanced RTMP offers.
    enhanced: amf0::Properties,
}

impl Server {
    /// A connection that has just been made. `nonce` is random bytes for the handshake.
    pub fn new(limits: Limits, nonce: Nonce) -> Server {
        let mut link = Link::new(limits);
        link.set_publishing(false);
        Server {
            link,
            state: State::Handshake(Box::new(handshake::Server::new(nonce))),
            streams: Streams::default(),
            events: VecDeque::new(),
            early: VecDeque::new(),
            held_back: (0, 0),
            instance: String::new(),
            query: None,
            time: None,
            reconnects: false,
            failed: None,
        }
    }

    /// Takes all of `bytes`. Afterwards take events and output, which are bounded by what `bytes` can hold. After an error
    /// the connection is to be closed.
    pub fn input(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut input = bytes;
        if let State::Handshake(handshake) = &mut self.state {
            if !handshake.read(&mut input, &mut self.link.out)? {
                return Ok(());
            }
            self.state = State::Greeted;
        }
        while !matches!(self.state, State::Closed) {
            match self.link.arrival(&mut input)? {
                Some(Arrival::Message(message)) if matches!(self.state, State::ConnectAsked(_)) => {
                    self.defer_early(message)?;
                }
                Some(Arrival::Message(message)) => self.message(message)?,
                Some(Arrival::User(UserControl::PingResponse(time))) => {
                    self.events.push_back(Event::Pong(time))
                }
                Some(Arrival::User(_)) => {}
                None => break,
            }
        }
        // A message that was held back behind another one may be wrong, too.
        self.failed.take().map_or(Ok(()), Err)
    }

    /// The next event.
    pub fn event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        // A publisher needs the same few places again for its next frame; who only watches keeps none.
        if self.events.is_empty() && self.events.capacity() > 0 {
            let publishing = self.streams.iter().any(|stream| stream.doing == Doing::Publishing);
            if self.events.capacity() > if publishing { EVENTS_KEPT } else { 0 } {
                self.events = VecDeque::new();
            }
        }
        event
    }

    /// Takes all pending output; empty when there is none. No buffer is kept. All answers to one input leave together.
    pub fn output(&mut self) -> Bytes {
        self.link.output()
    }

    /// True once the handshake is complete.
    pub fn handshake_done(&self) -> bool {
        !matches!(self.state, State::Handshake(_))
    }

    /// The bytes that the messages lack whose beginning was taken: at least so many come before the next message is
    /// whole. Zero between messages.
    pub fn missing(&self) -> usize {
        self.link.missing()
    }

    /// Whether the peer publishes, or has asked to: it may send media.
    pub fn publishes(&self) -> bool {
        self.link.is_publishing()
    }

    /// The memory that the peer makes this session hold, in bytes: unfinished messages, those that wait for an answer, and what is
    /// not sent yet.
    pub fn held(&self) -> usize {
        self.link.held() + self.held_back.1
    }

    /// Messages that were dropped so far because they could not be understood, were aborted, or had no place where they
    /// stood (media of someone who does not publish).
    pub fn ignored(&self) -> u64 {
        self.link.ignored
    }

    /// What time it is here, in seconds since 1970: told with the answer to connect.
    pub fn set_time(&mut self, unix_seconds: u64) {
        self.time = Some(unix_seconds);
    }

    /// Answers [`Event::Connect`]: `NetConnection.Connect.Success`.
    pub fn accept_connect(&mut self) {
        let State::ConnectAsked(call) = &mut self.state else {
            return;
        };
        let transaction = call.transaction;
        let enhanced = std::mem::take(&mut call.enhanced);
        self.state = State::Open;
        self.link.control(Control::WindowAckSize(WINDOW_ACK_SIZE));
        self.link.control(Control::SetPeerBandwidth { window: WINDOW_ACK_SIZE, limit: 2 });
        self.link.announce_chunk_size();
        let mut properties = vec![
            ("fmsVer".to_owned(), Value::string("FMS/3,5,7,7009")),
            ("capabilities".to_owned(), Value::Number(31.0)),
            ("mode".to_owned(), Value::Number(1.0)),
            (LB.to_owned(), Value::string(env!("CARGO_PKG_VERSION"))),
        ];
        // Exact up to 2^53.
        properties.extend(self.time.map(|time| (TIME.to_owned(), Value::Number(time as f64))));
        properties.extend(enhanced);
        let mut info = info("status", "NetConnection.Connect.Success", "Connection succeeded.");
        if let Value::Object(info) = &mut info {
            // Commands are answered in AMF 0, whatever was asked for: Flash then stays with it.
            info.push(("objectEncoding".to_owned(), Value::Number(0.0)));
        }
        self.link.command(0, Command::new("_result", transaction, Value::Object(properties), [info]));
        self.take_early();
    }

    /// Answers [`Event::Connect`]: `NetConnection.Connect.Rejected`. Nothing is taken any more; close the connection.
    pub fn reject_connect(&mut self, description: &str) {
        let State::ConnectAsked(call) = &self.state else {
            return;
        };
        let info = [info("error", "NetConnection.Connect.Rejected", description)];
        self.link.command(0, Command::new("_error", call.transaction, Value::Null, info));
        self.state = State::Closed;
        self.take_early();
    }

    /// Answers [`Event::Publish`]: `NetStream.Publish.Start`.
    pub fn accept_publish(&mut self, stream_id: u32) {
        if let Some(stream) = self.asked(stream_id, |doing| doing == Doing::PublishAsked) {
            stream.doing = Doing::Publishing;
            self.link.control(Control::User(UserControl::StreamBegin(stream_id)));
            self.link.status(stream_id, "status", "NetStream.Publish.Start", "Publishing.");
            self.resume(stream_id);
        }
    }

    /// Answers [`Event::Publish`]: `NetStream.Publish.BadName`, the refusal that every encoder understands. The media that the
    /// publisher sent already is dropped. Close the connection as well: OBS waits for ever on one without the other.
    pub fn reject_publish(&mut self, stream_id: u32, description: &str) {
        if let Some(stream) = self.asked(stream_id, |doing| doing == Doing::PublishAsked) {
            stream.doing = Doing::Nothing;
            self.link.status(stream_id, "error", BAD_NAME, description);
            self.resume(stream_id);
            self.limit_messages();
        }
    }

    /// Sends a publisher away that was accepted before, for example because another one took over; otherwise as
    /// [`Server::reject_publish`].
    pub fn end_publish(&mut self, stream_id: u32, description: &str) {
        match self.asked(stream_id, |doing| doing == Doing::Publishing) {
            Some(stream) => {
                stream.doing = Doing::Nothing;
                self.link.status(stream_id, "error", BAD_NAME, description);
            }
            None => self.reject_publish(stream_id, description),
        }
    }

    /// Answers [`Event::Play`]: `StreamBegin`, `NetStream.Play.Reset` if a reset was asked for, `NetStream.Play.Start`. The
    /// media follows from elsewhere; see the module's head. `relay` identifies the relay stream that is played: a pull that
    /// reconnects compares it ([`super::ClientEvent::Playing`]) to know whether it gets the same one. Other players ignore it.
    pub fn accept_play(&mut self, stream_id: u32, relay: Option<u64>) {
        let Some(stream) = self.asked(stream_id, |doing| matches!(doing, Doing::PlayAsked { .. })) else {
            return;
        };
        let reset = std::mem::replace(&mut stream.doing, Doing::Playing) == Doing::PlayAsked { reset: true };
        self.link.control(Control::User(UserControl::StreamBegin(stream_id)));
        if reset {
            self.link.status(stream_id, "status", "NetStream.Play.Reset", "Playing and resetting.");
        }
        let mut start = info("status", "NetStream.Play.Start", "Started playing.");
        if let (Some(relay), Value::Object(start)) = (relay, &mut start) {
            // In text, as a number of AMF 0 has 53 bits.
            start.push((RELAY_ID.to_owned(), Value::string(format!("{relay:x}"))));
        }
        self.link.command(stream_id, Command::new("onStatus", 0.0, Value::Null, [start]));
        self.resume(stream_id);
    }

    /// Answers [`Event::Play`]: `NetStream.Play.StreamNotFound`.
    pub fn reject_play(&mut self, stream_id: u32, description: &str) {
        self.refuse_play(stream_id, "NetStream.Play.StreamNotFound", description);
    }

    /// Answers [`Event::Play`]: `NetStream.Play.Failed`. There may be such a stream, but not for this peer now.
    pub fn fail_play(&mut self, stream_id: u32, description: &str) {
        self.refuse_play(stream_id, "NetStream.Play.Failed", description);
    }

    fn refuse_play(&mut self, stream_id: u32, code: &str, description: &str) {
        if let Some(stream) = self.asked(stream_id, |doing| matches!(doing, Doing::PlayAsked { .. })) {
            stream.doing = Doing::Nothing;
            self.link.status(stream_id, "error", code, description);
            self.resume(stream_id);
        }
    }

    /// Tells a viewer that its publisher is gone for good: `StreamEOF`, `NetStream.Play.UnpublishNotify`,
    /// `NetStream.Play.Stop`.
    pub fn end_play(&mut self, stream_id: u32) {
        if let Some(stream) = self.asked(stream_id, |doing| doing == Doing::Playing) {
            stream.doing = Doing::Nothing;
            self.link.control(Control::User(UserControl::StreamEof(stream_id)));
            let notify = "NetStream.Play.UnpublishNotify";
            self.link.status(stream_id, "status", notify, "The publisher has left.");
            self.link.status(stream_id, "status", "NetStream.Play.Stop", "Stopped playing.");
        }
    }

    /// Asks the peer to connect anew and go on there (Enhanced RTMP v2, `NetConnection.Connect.ReconnectRequest`), if it said
    /// that it follows such requests. `address`: where, as `rtmp://host[:port]/app`; the app's instance and query stay those of
    /// the connect. Without one, the peer connects where it did. Says whether the peer was asked.
    pub fn request_reconnect(&mut self, address: Option<&str>) -> bool {
        if !self.reconnects || !matches!(self.state, State::Open) {
            return false;
        }
        let mut request =
            info("status", "NetConnection.Connect.ReconnectRequest", "The node is stopping, connect again.");
        if let (Some(address), Value::Object(request)) = (address, &mut request) {
            let mut address = address.to_owned();
            if !self.instance.is_empty() {
                address = format!("{address}/{}", self.instance);
            }
            if let Some(query) = &self.query {
                address = format!("{address}?{query}");
            }
            request.push(("tcUrl".to_owned(), Value::string(address)));
        }
        self.link.command(0, Command::new("onStatus", 0.0, Value::Null, [request]));
        true
    }

    /// Asks whether the peer is there; [`Event::Pong`] is the answer. `timestamp` is any value to know it by.
    pub fn ping(&mut self, timestamp: u32) {
        if self.handshake_done() {
            self.link.control(Control::User(UserControl::PingRequest(timestamp)));
        }
    }

    #[cfg(test)]
    pub(super) fn owns_nothing(&self) -> bool {
        let capacities = [self.link.out.capacity(), self.events.capacity(), self.early.capacity()];
        capacities == [0; 3] && self.streams.iter().all(Stream::owns_nothing)
    }

    /// The bytes since the handshake, by the counter that wraps: a test begins near its end.
    #[cfg(test)]
    pub(super) fn set_received(&mut self, bytes: u32) {
        self.link.set_received(bytes);
    }

    /// A message stream that does what its caller waits for.
    fn asked(&mut self, stream_id: u32, what: impl Fn(Doing) -> bool) -> Option<&mut Stream> {
        self.streams.get_mut(stream_id).filter(|stream| what(stream.doing))
    }

    /// A peer of whom no media can come may hold next to nothing.
    fn limit_messages(&mut self) {
        let publishes = self.streams.iter().any(Stream::may_bring_media);
        self.link.set_publishing(publishes);
    }

    /// Keeps a message that came behind a connect.
    fn defer_early(&mut self, message: Message) -> Result<(), Error> {
        if self.effect(&message) == Effect::Publishes {
            // Its media may follow before its turn comes.
            self.link.set_publishing(true);
        }
        self.hold_back(message.body.len())?;
        self.early.push_back(message);
        Ok(())
    }

    /// Goes on with what came behind a connect, now that it is answered.
    fn take_early(&mut self) {
        for message in std::mem::take(&mut self.early) {
            self.let_go(message.body.len());
            if matches!(self.state, State::Closed) {
                self.link.ignored += 1;
            } else if let Err(error) = self.message(message) {
                self.fail(error);
            }
        }
        self.limit_messages();
    }

    fn fail(&mut self, error: Error) {
        self.failed = Some(error);
        self.state = State::Closed;
    }

    /// Counts a message that is held back.
    fn hold_back(&mut self, length: usize) -> Result<(), Error> {
        let Limits { deferred_messages: messages, deferred_bytes, idle_bytes, .. } = self.link.limits;
        let bytes = if self.link.is_publishing() { deferred_bytes } else { deferred_bytes.min(idle_bytes) };
        let (held, held_bytes) = &mut self.held_back;
        *held_bytes += length;
        if *held >= messages || *held_bytes > bytes {
            return Err(Error::Impatient { messages, bytes });
        }
        *held += 1;
        Ok(())
    }

    fn let_go(&mut self, length: usize) {
        self.held_back.0 -= 1;
        self.held_back.1 -= length;
    }

    fn effect(&self, message: &Message) -> Effect {
        if !matches!(message.type_id, message::COMMAND_AMF0 | message::COMMAND_AMF3) {
            return Effect::None;
        }
        let command = Command::parse(message, &self.link.limits);
        command.map_or(Effect::None, |command| Effect::of(&command.name))
    }

    /// Keeps a message of a message stream behind the request of it that waits.
    fn defer(&mut self, stream_id: u32, message: Message, effect: Effect) -> Result<(), Error> {
        if effect == Effect::Publishes {
            self.link.set_publishing(true);
        }
        self.hold_back(message.body.len())?;
        match self.streams.get_mut(stream_id) {
            Some(stream) => stream.defer(message, effect),
            None => self.let_go(message.body.len()),
        }
        Ok(())
    }

    /// Goes on with what was held back on a message stream, up to its next request that waits.
    fn resume(&mut self, stream_id: u32) {
        while !matches!(self.state, State::Closed) {
            let Some(stream) = self.streams.get_mut(stream_id) else { return };
            if stream.is_waiting() {
                if !stream.is_withdrawn() {
                    return;
                }
                self.stop(stream_id);
                continue;
            }
            let Some(message) = stream.take_deferred() else { return };
            self.let_go(message.body.len());
            if let Err(error) = self.message(message) {
                self.fail(error);
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<(), Error> {
        match message.type_id {
            message::COMMAND_AMF0 | message::COMMAND_AMF3 => {
                match Command::parse(&message, &self.link.limits) {
                    Ok(command) => self.command(message, &command),
                    Err(error) => self.link.malformed(error),
                }
            }
            _ => self.media(message),
        }
    }

    fn media(&mut self, message: Message) -> Result<(), Error> {
        let stream_id = self.streams.meant_by(message.stream_id);
        match self.streams.get(stream_id) {
            Some(stream) if stream.is_waiting() => self.defer(stream_id, message, Effect::None)?,
            Some(stream) if stream.doing == Doing::Publishing => self.media_of(stream_id, message),
            _ => self.link.ignored += 1,
        }
        Ok(())
    }

    fn media_of(&mut self, stream_id: u32, message: Message) {
        if message.type_id == message::AGGREGATE {
            let mut tags = message::split_aggregate(&message);
            tags.by_ref().for_each(|tag| self.single_media_of(stream_id, tag));
            self.link.ignored += u64::from(tags.is_cut());
        } else {
            self.single_media_of(stream_id, message);
        }
    }

    fn single_media_of(&mut self, stream_id: u32, message: Message) {
        let media = match message.type_id {
            // An empty body says nothing, and some encoders send them by the thousand.
            message::AUDIO | message::VIDEO => (!message.body.is_empty()).then_some(message),
            message::DATA_AMF0 | message::DATA_AMF3 => message::plain_data(&message, &self.link.limits.amf),
            _ => None,
        };
        match media {
            Some(message) => self.events.push_back(Event::Media(Message { stream_id, ..message })),
            None => self.link.ignored += 1,
        }
    }

    /// Ends what a message stream does, or withdraws what was asked for it.
    fn stop(&mut self, stream_id: u32) {
        let Some(stream) = self.streams.get_mut(stream_id) else { return };
        let waits = stream.is_waiting();
        let end = match std::mem::replace(&mut stream.doing, Doing::Nothing) {
            Doing::Nothing => return,
            Doing::Publishing | Doing::PublishAsked => Event::Unpublish(stream_id),
            Doing::Playing | Doing::PlayAsked { .. } => Event::StopPlay(stream_id),
        };
        // The owner need not hear of a request that is withdrawn before it was taken.
        let untaken = self.events.iter().rposition(|event| match event {
            Event::Publish(publish) => publish.stream_id == stream_id,
            Event::Play(play) => play.stream_id == stream_id,
            _ => false,
        });
        match untaken.filter(|_| waits) {
            Some(index) => drop(self.events.remove(index)),
            None => self.events.push_back(end),
        }
        self.limit_messages();
    }

    /// Ends what a message stream does, and whatever waits behind it to be asked.
    fn stop_all(&mut self, stream_id: u32) {
        self.stop(stream_id);
        self.resume(stream_id);
        // What was held back behind one request may be another one.
        while self.streams.get(stream_id).is_some_and(Stream::is_waiting) {
            self.stop(stream_id);
            self.resume(stream_id);
        }
    }
}
