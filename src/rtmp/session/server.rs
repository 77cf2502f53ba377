//! The answering side of a connection.

use super::event::{Connect, Event, Play, Publish, PublishKind, PublishRefusal};
use super::link::{Arrival, Link, info};
use super::{CAN_FORWARD, CAPS_EX, PLAY_STREAM_ID, RELAY_ID, WINDOW_ACK_SIZE, names};
use crate::rtmp::amf0::{self, Value};
use crate::rtmp::handshake::{self, Nonce};
use crate::rtmp::message::{self, Command, Control, Message, UserControl};
use crate::rtmp::{Error, Limits};
use bytes::Bytes;
use std::collections::VecDeque;

/// Room for so many events is kept between two reads of a publisher.
const EVENTS_KEPT: usize = 8;

/// One connection's answering side, handshake included.
///
/// A request that waits for its answer holds back all commands and media behind it, so answers leave in order. Methods that
/// answer do nothing when no such request waits.
pub struct Server {
    link: Link,
    state: State,
    events: VecDeque<Event>,
    deferred: VecDeque<Message>,
    deferred_bytes: usize,
    instance: String,
    query: Option<String>,
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

/// What the answer to a connect needs to know.
struct ConnectCall {
    transaction: f64,
    /// The answer in kind to what Enhanced RTMP offers.
    enhanced: amf0::Properties,
}

impl Server {
    /// A connection that has just been made. `nonce` is random bytes for the handshake.
    pub fn new(limits: Limits, nonce: Nonce) -> Server {
        Server {
            link: Link::new(limits),
            state: State::Handshake(Box::new(handshake::Server::new(nonce))),
            events: VecDeque::new(),
            deferred: VecDeque::new(),
            deferred_bytes: 0,
            instance: String::new(),
            query: None,
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
                Some(Arrival::Message(message)) if self.is_waiting() => self.defer(message)?,
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

    /// Messages that were dropped so far because they could not be understood, were aborted, or had no place where they
    /// stood (media of someone who does not publish).
    pub fn ignored(&self) -> u64 {
        self.link.ignored
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
        ];
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

    /// Answers [`Event::Publish`] with a refusal. The media that the publisher sent already is dropped.
    pub fn reject_publish(&mut self, code: PublishRefusal, description: &str) {
        if !matches!(self.state, State::PublishAsked) {
            return;
        }
        self.state = State::Idle;
        self.link.status("error", code.code(), description);
        self.resume();
    }

    /// Sends a publisher away that was accepted before, for example because another one took over.
    pub fn end_publish(&mut self, code: PublishRefusal, description: &str) {
        if matches!(self.state, State::Publishing) {
            self.state = State::Idle;
            self.link.status("error", code.code(), description);
        } else {
            self.reject_publish(code, description);
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
        self.refuse_play("NetStream.Play.StreamNotFound", description);
    }

    /// Answers [`Event::Play`]: `NetStream.Play.Failed`, for reasons that are not the stream's absence.
    pub fn fail_play(&mut self, description: &str) {
        self.refuse_play("NetStream.Play.Failed", description);
    }

    fn refuse_play(&mut self, code: &str, description: &str) {
        if matches!(self.state, State::PlayAsked { .. }) {
            self.state = State::Idle;
            self.link.status("error", code, description);
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

    fn defer(&mut self, message: Message) -> Result<(), Error> {
        let Limits { deferred_messages: messages, deferred_bytes: bytes, .. } = self.link.limits;
        self.deferred_bytes += message.body.len();
        if self.deferred.len() >= messages || self.deferred_bytes > bytes {
            return Err(Error::Impatient { messages, bytes });
        }
        self.deferred.push_back(message);
        Ok(())
    }

    /// Goes on with what was held back, up to the next request that waits.
    fn resume(&mut self) {
        while !self.is_waiting() {
            let Some(message) = self.deferred.pop_front() else {
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

    fn command(&mut self, command: &Command) -> Result<(), Error> {
        if matches!(self.state, State::Greeted) {
            match command.name.as_str() {
                "connect" => self.connect(command)?,
                _ => self.link.ignored += 1,
            }
            return Ok(());
        }
        match command.name.as_str() {
            "createStream" => match self.state {
                State::Idle => self.link.result(command, Value::Number(PLAY_STREAM_ID.into())),
                _ => self.link.error(command, "One stream a connection."),
            },
            "releaseStream" | "_checkbw" => self.link.result(command, Value::Undefined),
            "getStreamLength" => self.link.result(command, Value::Number(0.0)),
            "FCPublish" => {
                self.link.result(command, Value::Undefined);
                self.notify("onFCPublish", "NetStream.Publish.Start", "FCPublish to stream.");
            }
            "FCSubscribe" => {
                self.link.result(command, Value::Undefined);
                self.notify("onFCSubscribe", "NetStream.Play.Start", "FCSubscribe to stream.");
            }
            "FCUnpublish" => {
                self.link.result(command, Value::Undefined);
                self.notify("onFCUnpublish", "NetStream.Unpublish.Success", "FCUnpublish to stream.");
                self.stop();
            }
            "publish" => self.publish(command)?,
            // `play(false)` is how ActionScript stops.
            "play" if command.argument(0) == Some(&Value::Boolean(false)) => self.stop(),
            "play" => {
                let number =
                    |index, default| command.argument(index).and_then(Value::as_number).unwrap_or(default);
                let reset = command.argument(3).and_then(Value::as_bool).unwrap_or(true);
                self.play(command.argument(0), number(1, -2.0), number(2, -1.0), reset)?;
            }
            "play2" => {
                let options = command.argument(0);
                let number = |name, default| {
                    options.and_then(|options| options.get(name)?.as_number()).unwrap_or(default)
                };
                let key = options.and_then(|options| options.get("streamName"));
                self.play(key, number("start", -2.0), number("len", -1.0), true)?;
            }
            "pause" | "pauseRaw" if matches!(self.state, State::Playing) => {
                let paused = command.argument(0).and_then(Value::as_bool).unwrap_or(true);
                let millis = command.argument(1).and_then(Value::as_number).unwrap_or(0.0);
                match paused {
                    true => self.link.status("status", "NetStream.Pause.Notify", "Paused."),
                    false => self.link.status("status", "NetStream.Unpause.Notify", "Playing again."),
                }
                self.events.push_back(Event::Pause { paused, millis });
            }
            "receiveAudio" => {
                let audio = command.argument(0).and_then(Value::as_bool);
                self.events.push_back(Event::Receive { audio, video: None });
            }
            "receiveVideo" => {
                let video = command.argument(0).and_then(Value::as_bool);
                self.events.push_back(Event::Receive { audio: None, video });
            }
            // A warning, as players take an error for the end.
            "seek" => {
                self.link.status("warning", "NetStream.Seek.Failed", "A live stream has one place only.")
            }
            "closeStream" => {
                match self.state {
                    State::Publishing => {
                        self.link.status("status", "NetStream.Unpublish.Success", "Stopped publishing.");
                    }
                    State::Playing => self.link.status("status", "NetStream.Play.Stop", "Stopped playing."),
                    _ => {}
                }
                self.stop();
            }
            "deleteStream" => self.stop(),
            // Answers to what was never asked: an answer to them could go on for ever.
            "_result" | "_error" | "onStatus" => self.link.ignored += 1,
            _ => {
                self.link.ignored += 1;
                self.link.error(command, "Unknown call.");
            }
        }
        Ok(())
    }

    fn connect(&mut self, command: &Command) -> Result<(), Error> {
        let text = |name| command.object.get(name).and_then(Value::as_str).unwrap_or_default();
        let (app, tc_url) = (text("app"), text("tcUrl"));
        self.check_length("app", app)?;
        self.check_length("tcUrl", tc_url)?;
        let names::App { app, instance, query } = names::split_app(app);
        let (tc_url, tc_query) = names::split_query(tc_url);
        self.instance = instance;
        self.query = query.or(tc_query);
        let connect = Connect {
            app,
            query: self.query.clone(),
            tc_url: tc_url.to_owned(),
            flash_ver: text("flashVer").to_owned(),
        };
        self.state = State::ConnectAsked(Box::new(ConnectCall {
            transaction: command.transaction,
            enhanced: enhanced_answer(&command.object),
        }));
        self.events.push_back(Event::Connect(connect));
        Ok(())
    }

    fn publish(&mut self, command: &Command) -> Result<(), Error> {
        if !matches!(self.state, State::Idle) {
            self.link.status(
                "error",
                PublishRefusal::BadName.code(),
                "This connection has a stream already.",
            );
            return Ok(());
        }
        let (stream_key, query) = self.stream_key(command.argument(0))?;
        let kind = command.argument(1).and_then(Value::as_str).unwrap_or_default();
        let kind = match kind.to_ascii_lowercase().as_str() {
            "record" => PublishKind::Record,
            "append" => PublishKind::Append,
            _ => PublishKind::Live,
        };
        self.state = State::PublishAsked;
        self.events.push_back(Event::Publish(Publish { stream_key, query, kind }));
        Ok(())
    }

    fn play(&mut self, key: Option<&Value>, start: f64, duration: f64, reset: bool) -> Result<(), Error> {
        match self.state {
            State::Idle => {}
            // Another play replaces the one that runs.
            State::Playing => self.stop(),
            _ => {
                self.link.status("error", "NetStream.Play.Failed", "This connection publishes.");
                return Ok(());
            }
        }
        let (stream_key, query) = self.stream_key(key)?;
        self.state = State::PlayAsked { reset };
        self.events.push_back(Event::Play(Play { stream_key, query, start, duration, reset }));
        Ok(())
    }

    fn stream_key(&self, value: Option<&Value>) -> Result<(String, Option<String>), Error> {
        let key = value.and_then(Value::as_str).unwrap_or_default();
        self.check_length("stream key", key)?;
        let (name, query) = names::stream_key(&self.instance, key);
        Ok((name, query.or_else(|| self.query.clone())))
    }

    fn check_length(&self, what: &'static str, text: &str) -> Result<(), Error> {
        let (length, max) = (text.len(), self.link.limits.name_bytes);
        if length > max { Err(Error::NameTooLong { what, length, max }) } else { Ok(()) }
    }

    /// Ends what the one stream does.
    fn stop(&mut self) {
        match self.state {
            State::Publishing => self.events.push_back(Event::Unpublish),
            State::Playing => self.events.push_back(Event::StopPlay),
            _ => return,
        }
        self.state = State::Idle;
    }

    fn notify(&mut self, name: &str, code: &str, description: &str) {
        let info = [info("status", code, description)];
        self.link.command(0, Command::new(name, 0.0, Value::Null, info));
    }
}

/// Answers in kind to the fields of Enhanced RTMP in a connect's object: every codec can be forwarded, as bodies are
/// passed on verbatim.
fn enhanced_answer(object: &Value) -> amf0::Properties {
    let mut answer = Vec::new();
    if let Some(Value::StrictArray(codecs)) = object.get("fourCcList") {
        let codecs = codecs.iter().filter(|codec| codec.as_str().is_some()).cloned().collect();
        answer.push(("fourCcList".to_owned(), Value::StrictArray(codecs)));
    }
    for name in ["videoFourCcInfoMap", "audioFourCcInfoMap"] {
        if object.get(name).is_some() {
            let any_codec = Value::object([("*", Value::Number(CAN_FORWARD))]);
            answer.push((name.to_owned(), any_codec));
        }
    }
    if let Some(caps) = object.get("capsEx").and_then(Value::as_number) {
        // The cast saturates, so any number is safe.
        answer.push(("capsEx".to_owned(), Value::Number((caps as u32 & CAPS_EX).into())));
    }
    answer
}
