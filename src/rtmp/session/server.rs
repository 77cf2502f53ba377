//! The answering side of a connection.

mod calls;

use super::event::Event;
use super::link::{Arrival, Link, info};
use super::{LB, PLAY_STREAM_ID, RELAY_ID, TIME, WINDOW_ACK_SIZE};
use crate::rtmp::amf0::{self, Value};
use crate::rtmp::handshake::{self, Nonce};
use crate::rtmp::message::{self, Command, Control, Message, UserControl};
use crate::rtmp::{Error, Limits};
use bytes::Bytes;
use std::collections::VecDeque;

/// The status of a publish that is refused or ended by this side.
const BAD_NAME: &str = "NetStream.Publish.BadName";

/// Room for so many events is kept between two reads of a publisher.
const EVENTS_KEPT: usize = 8;

/// One connection's answering side, handshake included.
///
/// A request that waits for its answer holds back all commands and media behind it, so answers leave in order. What ends or
/// replaces the request is not held back: the request is withdrawn at once, by [`Event::StopPlay`] or [`Event::Unpublish`],
/// or unheard if its own event has not been taken yet. So take all events after each input, before answering anything.
/// Methods that answer do nothing when no request waits.
pub struct Server {
    link: Link,
    state: State,
    events: VecDeque<Event>,
    deferred: VecDeque<(Message, Effect)>,
    deferred_bytes: usize,
    instance: String,
    query: Option<String>,
    time: Option<u64>,
    /// An error in a held-back message, for the next [`Server::input`].
    failed: Option<Error>,
}

enum State {
    Handshake(Box<handshake::Server>),
    /// The handshake is done, and nothing but `connect` is taken.
    Greeted,
    ConnectAsked(Box<ConnectCall>),
    Idle,
    PublishAsked,
    Publishing,
    PlayAsked {
        reset: bool,
    },
    Playing,
    /// The connect was refused: nothing is taken any more.
    Closed,
}

/// What a message does to a publish or play that has no answer yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    /// Ends it.
    Ends,
    /// Ends a play, and begins another.
    Plays,
    Publishes,
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
            events: VecDeque::new(),
            deferred: VecDeque::new(),
            deferred_bytes: 0,
            instance: String::new(),
            query: None,
            time: None,
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
                Some(Arrival::Message(message)) if self.is_waiting() => self.behind_request(message)?,
                Some(Arrival::Message(message)) => self.message(message)?,
                Some(Arrival::User(UserControl::PingResponse(time))) => {
                    self.events.push_back(Event::Pong(time))
                }
                Some(Arrival::User(_)) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// The next event.
    pub fn event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        // A publisher needs the same few places again for its next frame; who only watches keeps none.
        let kept = if matches!(self.state, State::Publishing) { EVENTS_KEPT } else { 0 };
        if self.events.is_empty() && self.events.capacity() > kept {
            self.events = VecDeque::new();
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
        self.link.held() + self.deferred_bytes
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
        self.state = State::Idle;
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
        self.resume();
    }

    /// Answers [`Event::Connect`]: `NetConnection.Connect.Rejected`. Nothing is taken any more; close the connection.
    pub fn reject_connect(&mut self, description: &str) {
        let State::ConnectAsked(call) = &self.state else {
            return;
        };
        let info = [info("error", "NetConnection.Connect.Rejected", description)];
        self.link.command(0, Command::new("_error", call.transaction, Value::Null, info));
        self.state = State::Closed;
        self.resume();
    }

    /// Answers [`Event::Publish`]: `NetStream.Publish.Start`.
    pub fn accept_publish(&mut self) {
        if !matches!(self.state, State::PublishAsked) {
            return;
        }
        self.state = State::Publishing;
        self.link.control(Control::User(UserControl::StreamBegin(PLAY_STREAM_ID)));
        self.link.status("status", "NetStream.Publish.Start", "Publishing.");
        self.resume();
    }

    /// Answers [`Event::Publish`]: `NetStream.Publish.BadName`, the refusal that every encoder understands. The media that the
    /// publisher sent already is dropped. Close the connection as well: OBS waits for ever on one without the other.
    pub fn reject_publish(&mut self, description: &str) {
        if !matches!(self.state, State::PublishAsked) {
            return;
        }
        self.state = State::Idle;
        self.link.set_publishing(false);
        self.link.status("error", BAD_NAME, description);
        self.resume();
    }

    /// Sends a publisher away that was accepted before, for example because another one took over; otherwise as
    /// [`Server::reject_publish`].
    pub fn end_publish(&mut self, description: &str) {
        if matches!(self.state, State::Publishing) {
            self.state = State::Idle;
            self.link.status("error", BAD_NAME, description);
        } else {
            self.reject_publish(description);
        }
    }

    /// Answers [`Event::Play`]: `StreamBegin`, `NetStream.Play.Reset` if a reset was asked for, `NetStream.Play.Start`. The
    /// media follows from elsewhere; see the module's head. `relay` identifies the relay stream that is played: a pull that
    /// reconnects compares it ([`super::ClientEvent::Playing`]) to know whether it gets the same one. Other players ignore it.
    pub fn accept_play(&mut self, relay: Option<u64>) {
        let State::PlayAsked { reset } = self.state else {
            return;
        };
        self.state = State::Playing;
        self.link.control(Control::User(UserControl::StreamBegin(PLAY_STREAM_ID)));
        if reset {
            self.link.status("status", "NetStream.Play.Reset", "Playing and resetting.");
        }
        let mut start = info("status", "NetStream.Play.Start", "Started playing.");
        if let (Some(relay), Value::Object(start)) = (relay, &mut start) {
            // In text, as a number of AMF 0 has 53 bits.
            start.push((RELAY_ID.to_owned(), Value::string(format!("{relay:x}"))));
        }
        self.link.command(PLAY_STREAM_ID, Command::new("onStatus", 0.0, Value::Null, [start]));
        self.resume();
    }

    /// Answers [`Event::Play`]: `NetStream.Play.StreamNotFound`.
    pub fn reject_play(&mut self, description: &str) {
        if matches!(self.state, State::PlayAsked { .. }) {
            self.state = State::Idle;
            self.link.status("error", "NetStream.Play.StreamNotFound", description);
            self.resume();
        }
    }

    /// Tells a viewer that its publisher is gone for good: `StreamEOF`, `NetStream.Play.UnpublishNotify`,
    /// `NetStream.Play.Stop`.
    pub fn end_play(&mut self) {
        if matches!(self.state, State::Playing) {
            self.state = State::Idle;
            self.link.control(Control::User(UserControl::StreamEof(PLAY_STREAM_ID)));
            self.link.status("status", "NetStream.Play.UnpublishNotify", "The publisher has left.");
            self.link.status("status", "NetStream.Play.Stop", "Stopped playing.");
        }
    }

    /// Asks whether the peer is there; [`Event::Pong`] is the answer. `timestamp` is any value to know it by.
    pub fn ping(&mut self, timestamp: u32) {
        if self.handshake_done() {
            self.link.control(Control::User(UserControl::PingRequest(timestamp)));
        }
    }

    #[cfg(test)]
    pub(super) fn owns_nothing(&self) -> bool {
        let capacities = [self.link.out.capacity(), self.events.capacity(), self.deferred.capacity()];
        capacities == [0; 3]
    }

    fn is_waiting(&self) -> bool {
        matches!(self.state, State::ConnectAsked(_) | State::PublishAsked | State::PlayAsked { .. })
    }

    /// Takes a message that came behind a request which has no answer yet.
    fn behind_request(&mut self, message: Message) -> Result<(), Error> {
        let effect = self.effect(&message);
        // What was held back behind one request may be another one, to which the same applies.
        while self.is_withdrawn_by(effect) {
            self.stop();
            self.resume();
        }
        match self.failed.take() {
            Some(error) => Err(error),
            None if self.is_waiting() => self.defer(message, effect),
            None => self.message(message),
        }
    }

    fn effect(&self, message: &Message) -> Effect {
        if !matches!(message.type_id, message::COMMAND_AMF0 | message::COMMAND_AMF3) {
            return Effect::None;
        }
        // A command that cannot be read is an error when its turn comes.
        let command = Command::parse(message, &self.link.limits);
        match command.as_ref().map(|command| command.name.as_str()) {
            // Its media may follow before its turn comes.
            Ok("publish") => Effect::Publishes,
            Ok("closeStream" | "deleteStream" | "FCUnpublish") => Effect::Ends,
            Ok("play" | "play2") => Effect::Plays,
            _ => Effect::None,
        }
    }

    fn is_withdrawn_by(&self, effect: Effect) -> bool {
        match self.state {
            State::PublishAsked => effect == Effect::Ends,
            State::PlayAsked { .. } => matches!(effect, Effect::Ends | Effect::Plays),
            _ => false,
        }
    }

    fn defer(&mut self, message: Message, effect: Effect) -> Result<(), Error> {
        let Limits { deferred_messages: messages, deferred_bytes, idle_bytes, .. } = self.link.limits;
        if effect == Effect::Publishes {
            self.link.set_publishing(true);
        }
        let publishes = matches!(self.state, State::PublishAsked)
            || self.deferred.iter().any(|(_, effect)| *effect == Effect::Publishes);
        let bytes = if publishes { deferred_bytes } else { deferred_bytes.min(idle_bytes) };
        self.deferred_bytes += message.body.len();
        if self.deferred.len() >= messages || self.deferred_bytes > bytes {
            return Err(Error::Impatient { messages, bytes });
        }
        self.deferred.push_back((message, effect));
        Ok(())
    }

    /// Goes on with what was held back, up to the next request that waits.
    fn resume(&mut self) {
        loop {
            if self.is_waiting() {
                if !self.deferred.iter().any(|(_, effect)| self.is_withdrawn_by(*effect)) {
                    return;
                }
                self.stop();
            }
            let Some((message, _)) = self.deferred.pop_front() else {
                self.deferred = VecDeque::new();
                return;
            };
            self.deferred_bytes -= message.body.len();
            if matches!(self.state, State::Closed) {
                self.link.ignored += 1;
            } else if let Err(error) = self.message(message) {
                self.failed = Some(error);
                self.state = State::Closed;
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<(), Error> {
        match message.type_id {
            message::COMMAND_AMF0 | message::COMMAND_AMF3 => {
                let command = Command::parse(&message, &self.link.limits)?;
                self.command(&command)?;
            }
            message::AGGREGATE => {
                let mut tags = message::split_aggregate(&message);
                tags.by_ref().for_each(|tag| self.media(tag));
                self.link.ignored += u64::from(tags.is_cut());
            }
            _ => self.media(message),
        }
        Ok(())
    }

    fn media(&mut self, message: Message) {
        let media = match message.type_id {
            _ if !matches!(self.state, State::Publishing) => None,
            // An empty body says nothing, and some encoders send them by the thousand.
            message::AUDIO | message::VIDEO => (!message.body.is_empty()).then_some(message),
            message::DATA_AMF0 | message::DATA_AMF3 => message::plain_data(&message, &self.link.limits.amf),
            _ => None,
        };
        match media {
            Some(message) => self.events.push_back(Event::Media(message)),
            None => self.link.ignored += 1,
        }
    }

    /// Ends what the one stream does, or withdraws what was asked for it.
    fn stop(&mut self) {
        let end = match self.state {
            State::Publishing | State::PublishAsked => Event::Unpublish,
            State::Playing | State::PlayAsked { .. } => Event::StopPlay,
            _ => return,
        };
        // The owner need not hear of a request that is withdrawn before it was taken.
        let untaken =
            self.events.iter().rposition(|event| matches!(event, Event::Publish(_) | Event::Play(_)));
        match untaken.filter(|_| self.is_waiting()) {
            Some(index) => drop(self.events.remove(index)),
            None => self.events.push_back(end),
        }
        self.link.set_publishing(false);
        self.state = State::Idle;
    }
}
