//! The asking side of a connection: it plays or publishes one stream.

use super::event::Redacted;
use super::link::{Arrival, Link};
use super::{
    CAN_FORWARD, CAPS_EX, LB, PLAY_STREAM_ID, PUBLISH_NOTIFY, RELAY_ID, TIME, WINDOW_ACK_SIZE, names,
};
use crate::rtmp::amf0::{self, Value};
use crate::rtmp::handshake::{self, Nonce, Progress};
use crate::rtmp::message::{self, Command, Control, Message, SET_DATA_FRAME, UserControl};
use crate::rtmp::{Error, Limits};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;

/// The buffer that a playing client says it has, in milliseconds: what ffmpeg says.
const BUFFER_MILLIS: u32 = 3000;

/// The codecs that a client offers to forward (Enhanced RTMP v2, `fourCcList`).
const FOUR_CCS: [&str; 12] =
    ["av01", "vp08", "vp09", "avc1", "hvc1", "vvc1", "Opus", "mp4a", "fLaC", "ac-3", "ec-3", ".mp3"];

// Transaction ids. Each call is made once, so they are constants.
const CONNECT: f64 = 1.0;
const RELEASE_STREAM: f64 = 2.0;
const FC_PUBLISH: f64 = 3.0;
const CREATE_STREAM: f64 = 4.0;
const PUBLISH: f64 = 5.0;
const PLAY: f64 = 6.0;
const FC_UNPUBLISH: f64 = 7.0;
const DELETE_STREAM: f64 = 8.0;

/// What to play or publish.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// The app.
    pub app: String,
    /// The address, without the stream key: `rtmp://host[:port]/app`.
    pub tc_url: String,
    /// The stream key, with its query if it has one.
    pub stream_key: String,
}

/// Leaves out queries.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (app, _) = names::split_query(&self.app);
        let (key, query) = names::split_query(&self.stream_key);
        f.debug_struct("Target")
            .field("app", &app)
            .field("stream_key", &key)
            .field("query", &query.map(|_| Redacted))
            .finish_non_exhaustive()
    }
}

/// What the server says or sends, in the order in which it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// The connect was accepted.
    Connected,
    /// The server starts to play (`NetStream.Play.Start`).
    Playing {
        /// What identifies the relay stream at the server, if it is an lb node: as given to [`super::Server::accept_play`].
        relay: Option<u64>,
    },
    /// The server takes media (`NetStream.Publish.Start`).
    Publishing,
    /// Audio, video or data of the stream that is played, in the form of [`super::Event::Media`].
    Media(Message),
    /// An lb node says that the media that follows is of another publish than the media before ([`super::publish_notify`]). A command:
    /// what publishers send cannot say so.
    PublishBegins,
    /// Any other status, and every error; the owner decides what it means.
    Status {
        /// For example `NetStream.Play.StreamNotFound`.
        code: String,
        /// For people.
        description: String,
        /// `status`, `warning` or `error`.
        level: String,
    },
    /// The stream has no more data.
    StreamEof,
    /// The answer to [`Client::ping`].
    Pong(u32),
    /// The server refused or ended the session; a [`ClientEvent::Status`] before it says why. Nothing is taken any more.
    Closed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Play,
    Publish,
}

/// One connection's asking side, handshake included.
///
/// [`Client::play`] and [`Client::publish`] do not wait: connect, createStream and play or publish leave together with the
/// handshake's last part, for message stream 1, which is what servers answer. If one answers another, play or publish is
/// repeated there. Not every server takes that: `rml_rtmp`, and so mmids, loses or refuses what arrives before it has
/// answered connect. For servers that are not known, [`Client::connect`] asks for one thing after the other.
pub struct Client {
    link: Link,
    state: State,
    purpose: Purpose,
    target: Box<Target>,
    order: Order,
    /// The server said so in its answer to connect.
    is_lb: bool,
    server_time: Option<u64>,
    stream_id: u32,
    /// The stream was granted: media may be sent.
    started: bool,
    events: VecDeque<ClientEvent>,
}

/// How far the calls up to play or publish have gone, and what has to wait for an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// All have been sent at once, or will be with the handshake's last part; the message stream is guessed.
    Pipelined,
    /// connect has been sent, or will be; nothing else until its answer is here.
    Connecting,
    /// connect was answered, and the owner has not said yet what to play.
    Connected,
    /// createStream has been sent, and play or publish waits for its answer.
    Creating,
    /// Everything has been sent, one after the other.
    Stepwise,
}

enum State {
    Handshake {
        handshake: Box<handshake::Client>,
        /// The commands have been sent.
        asked: bool,
    },
    Open,
    Closed,
}

impl Client {
    /// A connection that will play. `nonce` is random bytes for the handshake. There is output at once.
    pub fn play(target: &Target, limits: Limits, nonce: Nonce) -> Client {
        Client::new(Purpose::Play, Order::Pipelined, target, limits, nonce)
    }

    /// A connection that will publish. `nonce` is random bytes for the handshake. There is output at once.
    pub fn publish(target: &Target, limits: Limits, nonce: Nonce) -> Client {
        Client::new(Purpose::Publish, Order::Pipelined, target, limits, nonce)
    }

    /// A connection that will play, to a server that may not take calls before it has answered connect. After
    /// [`ClientEvent::Connected`] it waits for [`Client::play_stream`]; the stream key of `target` is not used.
    pub fn connect(target: &Target, limits: Limits, nonce: Nonce) -> Client {
        Client::new(Purpose::Play, Order::Connecting, target, limits, nonce)
    }

    /// A connection that will publish, to a server that may not take calls before it has answered the ones before. It asks for one
    /// thing after the other by itself, as [`Client::publish`] asks for all at once.
    pub fn publish_stepwise(target: &Target, limits: Limits, nonce: Nonce) -> Client {
        Client::new(Purpose::Publish, Order::Connecting, target, limits, nonce)
    }

    fn new(purpose: Purpose, order: Order, target: &Target, limits: Limits, nonce: Nonce) -> Client {
        let mut link = Link::new(limits);
        let handshake = Box::new(handshake::Client::new(nonce, &mut link.out));
        Client {
            link,
            state: State::Handshake { handshake, asked: false },
            purpose,
            target: Box::new(target.clone()),
            order,
            is_lb: false,
            server_time: None,
            stream_id: PLAY_STREAM_ID,
            started: false,
            events: VecDeque::new(),
        }
    }

    /// Takes all of `bytes`. Afterwards take events and output. After an error the connection is to be closed.
    pub fn input(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut input = bytes;
        if let State::Handshake { handshake, asked } = &mut self.state {
            let progress = handshake.read(&mut input, &mut self.link.out)?;
            let ask =
                progress != Progress::Waiting && !std::mem::replace(asked, progress != Progress::Waiting);
            if progress == Progress::Done {
                self.state = State::Open;
            }
            if ask {
                self.ask();
            }
        }
        while matches!(self.state, State::Open) {
            match self.link.arrival(&mut input)? {
                Some(Arrival::Message(message)) => self.message(message)?,
                Some(Arrival::User(UserControl::StreamEof(_))) => {
                    self.events.push_back(ClientEvent::StreamEof)
                }
                Some(Arrival::User(UserControl::PingResponse(time))) => {
                    self.events.push_back(ClientEvent::Pong(time));
                }
                Some(Arrival::User(_)) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// The next event.
    pub fn event(&mut self) -> Option<ClientEvent> {
        let event = self.events.pop_front();
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
        event
    }

    /// Takes all pending output; empty when there is none. No buffer is kept.
    pub fn output(&mut self) -> Bytes {
        self.link.output()
    }

    /// Messages that were dropped so far because they could not be understood, were aborted, or had no place where they
    /// stood.
    pub fn ignored(&self) -> u64 {
        self.link.ignored
    }

    /// The memory that the server makes this session hold, in bytes.
    pub fn held(&self) -> usize {
        self.link.held()
    }

    /// Whether the server has said, in its answer to connect, that it is lb: then calls may be pipelined.
    pub fn is_lb(&self) -> bool {
        self.is_lb
    }

    /// What time it was at the server when it answered connect, in seconds since 1970, if it said so.
    pub fn server_time(&self) -> Option<u64> {
        self.server_time
    }

    /// Plays a stream over a connection of [`Client::connect`]; once, and not before [`ClientEvent::Connected`]. To an lb
    /// server createStream and play leave together; from any other, the message stream is awaited first.
    pub fn play_stream(&mut self, stream_key: &str) {
        if self.order != Order::Connected || !matches!(self.state, State::Open) {
            return;
        }
        self.target.stream_key = stream_key.to_owned();
        self.link.command(0, Command::new("createStream", CREATE_STREAM, Value::Null, []));
        if self.is_lb {
            self.order = Order::Pipelined;
            self.ask_for_stream();
        } else {
            self.order = Order::Creating;
        }
    }

    /// The message stream that the server gave, for media written elsewhere.
    pub fn stream_id(&self) -> u32 {
        self.stream_id
    }

    /// Appends a media message to the output, and says whether it did: only after [`ClientEvent::Publishing`]. Metadata is
    /// wrapped in `@setDataFrame`, as servers expect it from publishers.
    pub fn send_media(&mut self, message: &Message) -> bool {
        let open = matches!(self.state, State::Open) && self.started && self.purpose == Purpose::Publish;
        if open
            && message.type_id == message::DATA_AMF0
            && message.body.starts_with(b"\x02\x00\x0aonMetaData")
        {
            let body = [SET_DATA_FRAME, &message.body].concat();
            self.link.media(self.stream_id, message.timestamp, message.type_id, &body);
        } else if open {
            self.link.media(self.stream_id, message.timestamp, message.type_id, &message.body);
        }
        open
    }

    /// The bytes since the handshake, by the counter that wraps: a test begins near its end.
    #[cfg(test)]
    pub(super) fn set_received(&mut self, bytes: u32) {
        self.link.set_received(bytes);
    }

    /// Asks whether the server is there; [`ClientEvent::Pong`] is the answer.
    pub fn ping(&mut self, timestamp: u32) {
        if matches!(self.state, State::Open) {
            self.link.control(Control::User(UserControl::PingRequest(timestamp)));
        }
    }

    /// Ends the session: `FCUnpublish` of a publisher, `deleteStream`. Nothing is taken any more; close the connection once the
    /// output is written.
    pub fn close(&mut self) {
        if matches!(self.state, State::Open) {
            if self.purpose == Purpose::Publish {
                let key = [Value::string(self.target.stream_key.as_str())];
                self.link.command(0, Command::new("FCUnpublish", FC_UNPUBLISH, Value::Null, key));
            }
            let id = [Value::Number(self.stream_id.into())];
            self.link.command(0, Command::new("deleteStream", DELETE_STREAM, Value::Null, id));
        }
        self.state = State::Closed;
    }

    /// Sends everything up to play or publish, or connect alone.
    fn ask(&mut self) {
        let connect = Command::new("connect", CONNECT, self.connect_object(), []);
        self.link.command(0, connect);
        if self.order != Order::Pipelined {
            return;
        }
        self.announce();
        self.create_stream();
        self.ask_for_stream();
    }

    /// With the calls around it that Flash Media encoders make.
    fn create_stream(&mut self) {
        if self.purpose == Purpose::Publish {
            let key = || [Value::string(self.target.stream_key.as_str())];
            self.link.command(0, Command::new("releaseStream", RELEASE_STREAM, Value::Null, key()));
            self.link.command(0, Command::new("FCPublish", FC_PUBLISH, Value::Null, key()));
        }
        self.link.command(0, Command::new("createStream", CREATE_STREAM, Value::Null, []));
    }

    /// Comes after connect: some servers expect that to be the first message.
    fn announce(&mut self) {
        self.link.control(Control::WindowAckSize(WINDOW_ACK_SIZE));
        self.link.announce_chunk_size();
    }

    fn ask_for_stream(&mut self) {
        let stream_id = self.stream_id;
        let key = Value::string(self.target.stream_key.as_str());
        match self.purpose {
            Purpose::Publish => {
                let arguments = [key, Value::string("live")];
                self.link.command(stream_id, Command::new("publish", PUBLISH, Value::Null, arguments));
            }
            Purpose::Play => {
                let millis = BUFFER_MILLIS;
                self.link.control(Control::User(UserControl::SetBufferLength { stream_id, millis }));
                // Live if there is such a stream, in milliseconds as ffmpeg sends it.
                let arguments = [key, Value::Number(-2000.0)];
                self.link.command(stream_id, Command::new("play", PLAY, Value::Null, arguments));
            }
        }
    }

    fn connect_object(&self) -> Value {
        let flash_ver = match self.purpose {
            Purpose::Play => "LNX 9,0,124,2",
            Purpose::Publish => "FMLE/3.0 (compatible; lb)",
        };
        let any_codec = || Value::object([("*", Value::Number(CAN_FORWARD))]);
        Value::object([
            ("app", Value::string(self.target.app.as_str())),
            ("type", Value::string("nonprivate")),
            ("flashVer", Value::string(flash_ver)),
            ("tcUrl", Value::string(self.target.tc_url.as_str())),
            ("fpad", Value::Boolean(false)),
            ("capabilities", Value::Number(15.0)),
            ("audioCodecs", Value::Number(4071.0)),
            ("videoCodecs", Value::Number(252.0)),
            ("videoFunction", Value::Number(1.0)),
            ("objectEncoding", Value::Number(0.0)),
            ("fourCcList", Value::StrictArray(FOUR_CCS.map(Value::string).into())),
            ("videoFourCcInfoMap", any_codec()),
            ("audioFourCcInfoMap", any_codec()),
            ("capsEx", Value::Number(CAPS_EX.into())),
        ])
    }

    fn message(&mut self, message: Message) -> Result<(), Error> {
        match message.type_id {
            message::COMMAND_AMF0 | message::COMMAND_AMF3 => {
                match Command::parse(&message, &self.link.limits) {
                    Ok(command) => self.command(message.stream_id, &command),
                    Err(error) => self.link.malformed(error)?,
                }
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
            _ if self.purpose != Purpose::Play => None,
            message::AUDIO | message::VIDEO => (!message.body.is_empty()).then_some(message),
            message::DATA_AMF0 | message::DATA_AMF3 => {
                match message::plain_data(&message, &self.link.limits.amf) {
                    Some(data) if self.is_about_session(&data) => return,
                    data => data,
                }
            }
            _ => None,
        };
        match media {
            Some(message) => self.events.push_back(ClientEvent::Media(message)),
            None => self.link.ignored += 1,
        }
    }

    /// Data messages that the server writes itself; they are not part of the stream.
    fn is_about_session(&mut self, data: &Message) -> bool {
        let mut values = amf0::Reader::new(&data.body, &self.link.limits.amf).map_while(Result::ok);
        match values.next().as_ref().and_then(Value::as_str) {
            Some("|RtmpSampleAccess") => true,
            Some("onStatus" | "onPlayStatus") => {
                let info = values.find(|value| value.properties().is_some());
                self.push_status(info.as_ref());
                true
            }
            _ => false,
        }
    }

    fn command(&mut self, stream_id: u32, command: &Command) {
        let is_answer_to = |call: f64| command.transaction == call;
        match command.name.as_str() {
            "_result" if is_answer_to(CONNECT) => self.connected(command),
            "_result" if is_answer_to(CREATE_STREAM) => self.created(command.argument(0)),
            "_error" if is_answer_to(CONNECT) || is_answer_to(CREATE_STREAM) => {
                self.push_status(command.argument(0));
                self.finish();
            }
            "_result" | "_error" => {}
            // The stream that was guessed is not the one that was given: what became of it does not matter.
            "onStatus"
                if self.order == Order::Pipelined
                    && stream_id == PLAY_STREAM_ID
                    && self.stream_id != PLAY_STREAM_ID => {}
            "onStatus" => self.status(command.argument(0)),
            "close" => self.finish(),
            "onBWDone" | "onFCPublish" | "onFCSubscribe" | "onFCUnpublish" => {}
            _ => {
                self.link.ignored += 1;
                self.link.error(command, "Unknown call.");
            }
        }
    }

    fn connected(&mut self, answer: &Command) {
        self.is_lb = answer.object.get(LB).and_then(Value::as_str).is_some();
        // The cast saturates, so any number is safe.
        self.server_time = answer.object.get(TIME).and_then(Value::as_number).map(|time| time as u64);
        if self.order == Order::Connecting {
            self.order = Order::Connected;
            self.announce();
            if self.purpose == Purpose::Publish {
                self.create_stream();
                self.order = Order::Creating;
            }
        }
        self.events.push_back(ClientEvent::Connected);
    }

    fn created(&mut self, id: Option<&Value>) {
        let id = id.and_then(Value::as_number).unwrap_or(PLAY_STREAM_ID.into());
        // The cast saturates, so any number is safe.
        let guessed = std::mem::replace(&mut self.stream_id, id as u32);
        match self.order {
            Order::Creating => {
                self.order = Order::Stepwise;
                self.ask_for_stream();
            }
            Order::Pipelined if guessed != self.stream_id => self.ask_for_stream(),
            // Nobody asked.
            _ => self.stream_id = guessed,
        }
    }

    fn status(&mut self, info: Option<&Value>) {
        let code = info.and_then(|info| info.get("code")?.as_str()).unwrap_or_default();
        let level = info.and_then(|info| info.get("level")?.as_str()).unwrap_or_default();
        match (code, self.purpose) {
            // `rml_rtmp` refuses with this code, too.
            _ if level == "error" => {
                self.push_status(info);
                self.finish();
            }
            ("NetStream.Play.Start", Purpose::Play) if !self.started => {
                self.started = true;
                let relay = info.and_then(|info| info.get(RELAY_ID)?.as_str());
                let relay = relay.and_then(|digits| u64::from_str_radix(digits, 16).ok());
                self.events.push_back(ClientEvent::Playing { relay });
            }
            // From another server it may say that somebody publishes what was waited for.
            (PUBLISH_NOTIFY, Purpose::Play) if self.is_lb => {
                self.events.push_back(ClientEvent::PublishBegins)
            }
            ("NetStream.Publish.Start", Purpose::Publish) if !self.started => {
                self.started = true;
                self.events.push_back(ClientEvent::Publishing);
            }
            _ => {
                self.push_status(info);
                if code == "NetConnection.Connect.Closed" {
                    self.finish();
                }
            }
        }
    }

    fn push_status(&mut self, info: Option<&Value>) {
        let text = |name| info.and_then(|info| info.get(name)?.as_str()).unwrap_or_default().to_owned();
        self.events.push_back(ClientEvent::Status {
            code: text("code"),
            description: text("description"),
            level: text("level"),
        });
    }

    fn finish(&mut self) {
        self.state = State::Closed;
        self.events.push_back(ClientEvent::Closed);
    }
}
