//! A small RTMP server that does everything right, but for one fault that is put in by hand.
//!
//! It is written apart from lb's own server, so that a check which shares a mistake with lb is found out. It relays in memory
//! and knows one app, `live`.

use super::wire::{Chunk, Input, ReadError, Wire};
use bytes::{Bytes, BytesMut};
use hmac::{Hmac, Mac};
use lb::rtmp::amf0::{self, Value};
use lb::rtmp::chunk;
use lb::rtmp::handshake::{self, PART};
use lb::rtmp::message::{self, Command, Control, UserControl};
use sha2::Sha256;
use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// No fault: it lets one key in and no other.
    OnlyKey(&'static str),
    /// No fault: it joins a stream some time after Play.Start, as a server does that fetches it from another one.
    FetchesAfterStart,
    // Handshake.
    S2Random,
    S2Unsigned(usize),
    S1Unsigned,
    WholeHello,
    DropsBehindC1,
    ChecksC2,
    AnswersVersion6,
    // Chunks: what is read wrong.
    Wire(Wire),
    // Times.
    AudioRounded,
    HighByteLost,
    ClockNeverWraps,
    DataMovesClock,
    // Control messages.
    NoWindow,
    NoBandwidth,
    NoAcknowledgement,
    NoPong,
    NoPongToViewers,
    UnknownEventCloses,
    ShortControlCloses,
    UnknownTypeCloses,
    // Connect.
    ConnectCode,
    NeedsTcUrl,
    ShortConnectOnly,
    NoAmf3Clients,
    NoArguments,
    NoSlash,
    NoQuery,
    NoInstance,
    QueryIsName,
    UnknownAppUnanswered,
    DropsPipelined,
    NoAmf3Commands,
    Unanswered(&'static str),
    // Commands.
    Closes(&'static str),
    AnswersEverything,
    StreamIdIsText,
    DeleteUnknownCloses,
    // AMF.
    Unreadable(&'static str),
    EcmaCountBelieved,
    UnknownMarkerCloses,
    // What ends the whole process.
    Crash(Attack),
    // Publish.
    PublishOnStream0,
    Refuses(Option<&'static str>),
    EagerMediaDropped,
    BadNameStaysOpen,
    NameStaysAfterCut,
    NameStaysAfterDelete,
    PublishesOnce,
    KeepsSetDataFrame,
    NoBareMetadata,
    NoAmf3Data,
    IgnoresClear,
    NoOtherData,
    // Play.
    PlayOnStream0,
    NoStreamBegin,
    NoReset,
    NeedsPlayArguments,
    NobodyCloses,
    EarlyPlayCloses,
    StartWaitsForMedia,
    IgnoresPause,
    IgnoresUnpause,
    SeekCloses,
    IgnoresReceive(u8),
    ReceiveVideoIsFinal,
    IgnoresStop(&'static str),
    PlaysOnce,
    EndUntold,
    OneViewer,
    // Late viewers.
    MetadataLast,
    MetadataNow,
    NoHeader(&'static [u8]),
    StartsWithoutKey(&'static [u8]),
    LosesLastFrame,
    AudioNeedsVideo,
    VideoNeedsAudio,
    FirstHeader,
    HeaderPerCodec,
    FirstMetadata,
    OneTrack,
    NoColour,
    // Media.
    Spoils(&'static [u8], usize),
    Drops(&'static [u8]),
    CutsLong,
    NoAggregates,
    TagsOwnTimes,
    // Limits.
    AnswersHttp,
    HangsAtSize0,
    RefusesAfterLongApp,
}

/// What a server may not outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    DeepNesting,
    ClaimedCount,
    NoHeader,
    Unfinished,
    ManyChunkStreams,
    ManyStreams,
    ManyCalls,
    Noise,
    LongApp,
    ChunkSize0,
}

/// A running server; it ends when this is dropped.
pub struct Faulty {
    pub port: u16,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Debug)]
struct Message {
    type_id: u8,
    time: u32,
    body: Bytes,
}

/// See [`Fault::FetchesAfterStart`].
const FETCH: Duration = Duration::from_millis(150);

type Sender = mpsc::UnboundedSender<Message>;

#[derive(Default)]
struct Stream {
    /// The connection that publishes it.
    publisher: Option<u64>,
    metadata: Option<Message>,
    headers: Vec<Message>,
    frames: Vec<Message>,
    viewers: Vec<(u64, Sender)>,
    seen: [bool; 2],
    moved: u32,
    last: u32,
}

struct Shared {
    fault: Fault,
    streams: Mutex<HashMap<String, Stream>>,
    crashes: watch::Sender<u32>,
    closed_for_business: watch::Sender<bool>,
}

impl Faulty {
    pub async fn start(fault: Fault) -> Faulty {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            fault,
            streams: Mutex::default(),
            crashes: watch::Sender::new(0),
            closed_for_business: watch::Sender::new(false),
        });
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            for id in 1.. {
                let Ok((socket, _)) = listener.accept().await else { return };
                let (shared, mut crashes) = (shared.clone(), shared.crashes.subscribe());
                connections.spawn(async move {
                    tokio::select! {
                        // A process that has died answers nothing.
                        biased;
                        _ = crashes.changed() => {}
                        ended = serve(&shared, id, socket) => drop(ended),
                    }
                    shared.leave(id, true);
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Faulty { port, _task: AbortOnDropHandle::new(task) }
    }
}

/// Ends the connection.
fn over<T>() -> io::Result<T> {
    Err(io::ErrorKind::ConnectionAborted.into())
}

impl Shared {
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// Ends every connection, as a process does that dies and is started again.
    fn crash_if(&self, attack: Attack) -> io::Result<()> {
        if self.has(Fault::Crash(attack)) {
            self.crashes.send_modify(|crashes| *crashes += 1);
        }
        Ok(())
    }

    /// A publisher ends. `cut`: by its connection.
    fn leave(&self, id: u64, cut: bool) {
        let kept = if cut { Fault::NameStaysAfterCut } else { Fault::NameStaysAfterDelete };
        for stream in self.streams.lock().unwrap().values_mut() {
            stream.viewers.retain(|(viewer, _)| *viewer != id || !cut);
            if stream.publisher == Some(id) && !self.has(kept) {
                *stream = Stream { viewers: std::mem::take(&mut stream.viewers), ..Stream::default() };
                if !self.has(Fault::EndUntold) {
                    let end = Message { type_id: 0, time: 0, body: Bytes::new() };
                    stream.viewers.retain(|(_, viewer)| viewer.send(end.clone()).is_ok());
                }
            }
        }
    }
}

/// What one connection is.
struct Connection<'a> {
    shared: &'a Shared,
    id: u64,
    input: Input,
    socket: tokio::net::tcp::OwnedWriteHalf,
    media: mpsc::UnboundedReceiver<Message>,
    sender: Sender,
    app: String,
    publishes: Option<String>,
    published_once: bool,
    plays: Option<String>,
    /// What is to be joined, and when.
    fetches: Option<(Instant, String)>,
    played_once: bool,
    waits_for_media: bool,
    paused: bool,
    wanted: [bool; 2],
    window: u64,
    acknowledged: u64,
    streams: u32,
    calls: u32,
}

async fn serve(shared: &Shared, id: u64, socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let (read, mut socket) = socket.into_split();
    let wire = if let Fault::Wire(wire) = shared.fault { Some(wire) } else { None };
    let mut input = Input::new(read, wire);
    shake_hands(shared, &mut input, &mut socket).await?;
    let (sender, media) = mpsc::unbounded_channel();
    let mut connection = Connection {
        shared,
        id,
        input,
        socket,
        media,
        sender,
        app: String::new(),
        publishes: None,
        published_once: false,
        plays: None,
        fetches: None,
        played_once: false,
        waits_for_media: false,
        paused: false,
        wanted: [true; 2],
        window: 2_500_000,
        acknowledged: 0,
        streams: 0,
        calls: 0,
    };
    connection.run().await
}

async fn shake_hands(
    shared: &Shared,
    input: &mut Input,
    socket: &mut tokio::net::tcp::OwnedWriteHalf,
) -> io::Result<()> {
    let version = input.peek(1).await?[0];
    if shared.has(Fault::WholeHello) && input.buffered() < 1 + PART {
        return over();
    }
    if version != 3 {
        match (version, shared.fault) {
            (6, Fault::AnswersVersion6) => socket.write_all(&[6; 1 + 2 * PART]).await?,
            (b'G', Fault::AnswersHttp) => socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?,
            _ => {}
        }
        return over();
    }
    let hello = input.take(1 + PART).await?;
    if shared.has(Fault::DropsBehindC1) {
        input.clear();
    }
    // Which form it is shows in what is answered.
    let mut answer = BytesMut::new();
    handshake::Server::new([3; 32]).read(&mut &hello[..], &mut answer).map_err(io::Error::other)?;
    let simple = answer[1 + PART..] == hello[1..];
    let schema = usize::from(!in_schema_0(&hello[1..]));
    match shared.fault {
        Fault::S2Random if simple => answer[1 + PART + 8..].fill(0x55),
        Fault::S2Unsigned(wrong) if !simple && wrong == schema => answer[2 * PART] ^= 1,
        Fault::S1Unsigned if !simple => answer[PART] ^= 1,
        _ => {}
    }
    socket.write_all(&answer).await?;
    let c2 = input.take(PART).await?;
    if shared.has(Fault::ChecksC2) && c2[..] != answer[1..1 + PART] {
        return over();
    }
    input.begin();
    Ok(())
}

/// Whether a C1 carries its digest where schema 0 has it.
fn in_schema_0(c1: &[u8]) -> bool {
    let sum: usize = c1[8..12].iter().map(|byte| usize::from(*byte)).sum();
    let at = 12 + sum % 728;
    let mac = Hmac::<Sha256>::new_from_slice(b"Genuine Adobe Flash Player 001").unwrap();
    let mac = mac.chain_update(&c1[..at]).chain_update(&c1[at + 32..]);
    mac.finalize().into_bytes()[..] == c1[at..at + 32]
}

impl Connection<'_> {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            let fetched = self.fetches.as_ref().map(|(at, _)| *at);
            tokio::select! {
                // What comes in first: a viewer that has stopped is not sent what was queued for it.
                biased;
                read = self.input.message() => match read {
                    Ok(message) => self.take(message).await?,
                    Err(error) => return self.unreadable(error).await,
                },
                Some(message) = self.media.recv() => self.pass_on(message).await?,
                () = sleep_until(fetched.unwrap_or_else(Instant::now)), if fetched.is_some() => {
                    let (_, name) = self.fetches.take().unwrap();
                    self.join(name).await?;
                }
            }
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.shared.has(fault)
    }

    async fn unreadable(&mut self, error: ReadError) -> io::Result<()> {
        match error {
            ReadError::Io(_) => {}
            ReadError::Unfinished => self.shared.crash_if(Attack::Unfinished)?,
            ReadError::NoHeader => self.shared.crash_if(Attack::NoHeader)?,
            ReadError::ManyChunkStreams => self.shared.crash_if(Attack::ManyChunkStreams)?,
            ReadError::Noise => self.shared.crash_if(Attack::Noise)?,
            ReadError::ChunkSize0 => {
                self.shared.crash_if(Attack::ChunkSize0)?;
                if self.has(Fault::HangsAtSize0) {
                    std::future::pending::<()>().await;
                }
            }
        }
        over()
    }

    async fn write(&mut self, type_id: u8, stream_id: u32, time: u32, body: &[u8]) -> io::Result<()> {
        let mut wire = BytesMut::new();
        let id = if type_id <= 6 { 2 } else { lb::rtmp::session::chunk_stream(type_id) };
        chunk::write_message(&mut wire, id, time, type_id, stream_id, body, 128);
        self.socket.write_all(&wire).await
    }

    async fn control(&mut self, control: Control) -> io::Result<()> {
        let mut wire = BytesMut::new();
        control.write(&mut wire);
        self.socket.write_all(&wire).await
    }

    async fn answer(&mut self, name: &str, transaction: f64, object: Value, info: Value) -> io::Result<()> {
        let mut wire = BytesMut::new();
        Command::new(name, transaction, object, [info]).write(&mut wire, 3, 0, 128);
        self.socket.write_all(&wire).await
    }

    async fn status(&mut self, stream_id: u32, level: &str, code: &str) -> io::Result<()> {
        let mut wire = BytesMut::new();
        Command::new("onStatus", 0.0, Value::Null, [info(level, code)]).write(&mut wire, 3, stream_id, 128);
        self.socket.write_all(&wire).await
    }

    async fn take(&mut self, message: Chunk) -> io::Result<()> {
        let received = self.input.received();
        if received - self.acknowledged >= self.window && !self.has(Fault::NoAcknowledgement) {
            self.acknowledged = received;
            self.control(Control::Acknowledgement(received as u32)).await?;
        }
        match message.type_id {
            1..=6 => self.take_control(&message).await,
            8 | 9 => self.take_media(&message),
            15 | 18 => self.take_data(&message),
            17 if self.has(Fault::NoAmf3Commands) => Ok(()),
            17 | 20 => self.take_command(&message).await,
            22 if self.has(Fault::NoAggregates) => Ok(()),
            22 => self.take_aggregate(&message),
            _ if self.has(Fault::UnknownTypeCloses) => over(),
            _ => Ok(()),
        }
    }

    async fn take_control(&mut self, message: &Chunk) -> io::Result<()> {
        match Control::parse(&message.message()) {
            Ok(Some(Control::WindowAckSize(window))) => self.window = window.into(),
            Ok(Some(Control::User(UserControl::PingRequest(time)))) => {
                let dead = if self.plays.is_some() { Fault::NoPongToViewers } else { Fault::NoPong };
                if !self.has(dead) {
                    self.control(Control::User(UserControl::PingResponse(time))).await?;
                }
            }
            Ok(Some(Control::User(UserControl::Other(_)))) if self.has(Fault::UnknownEventCloses) => {
                return over();
            }
            Err(_) if self.has(Fault::ShortControlCloses) => return over(),
            _ => {}
        }
        Ok(())
    }

    fn take_aggregate(&mut self, message: &Chunk) -> io::Result<()> {
        let (mut rest, mut first) = (&message.body[..], None);
        while rest.len() >= 11 {
            let size = u32::from_be_bytes([0, rest[1], rest[2], rest[3]]) as usize;
            let time = u32::from_be_bytes([rest[7], rest[4], rest[5], rest[6]]);
            let first = *first.get_or_insert(time);
            let own = message.time + (time - first);
            let time = if self.has(Fault::TagsOwnTimes) { time } else { own };
            let body = Bytes::copy_from_slice(&rest[11..11 + size]);
            self.take_media(&Chunk { type_id: rest[0], time, body, ..message.clone() })?;
            rest = &rest[(11 + size + 4).min(rest.len())..];
        }
        Ok(())
    }

    fn take_media(&mut self, message: &Chunk) -> io::Result<()> {
        let Some(name) = self.publishes.clone().filter(|_| !message.body.is_empty()) else { return Ok(()) };
        let (fault, body) = (self.shared.fault, &message.body);
        if matches!(fault, Fault::Drops(head) if body.starts_with(head)) {
            return Ok(());
        }
        let mut streams = self.shared.streams.lock().unwrap();
        let stream = streams.entry(name).or_default();
        let mut message = Message { type_id: message.type_id, time: message.time, body: body.clone() };
        stream.change(fault, &mut message);
        stream.keep(fault, &message);
        if !stream.is_held_back(fault) {
            stream.viewers.retain(|(_, viewer)| viewer.send(message.clone()).is_ok());
        }
        Ok(())
    }

    fn take_data(&mut self, message: &Chunk) -> io::Result<()> {
        let Some(name) = self.publishes.clone() else { return Ok(()) };
        if message.type_id == 15 && self.has(Fault::NoAmf3Data) {
            return Ok(());
        }
        let mut body = message::amf0_body(&message.message());
        if body.len() > 20 && body.windows(5).skip(12).take(1).any(|start| start[..2] == [3, 0]) {
            self.shared.crash_if(Attack::DeepNesting)?;
        }
        if body.windows(4).any(|count| count == [0xFF; 4]) {
            self.shared.crash_if(Attack::ClaimedCount)?;
        }
        let limits = amf0::Limits::default();
        let mut names = amf0::Reader::new(&body, &limits).map_while(Result::ok);
        let first = names.next().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
        let mut streams = self.shared.streams.lock().unwrap();
        let stream = streams.entry(name).or_default();
        match first.as_str() {
            "@clearDataFrame" => {
                if !self.shared.has(Fault::IgnoresClear) {
                    stream.metadata = None;
                }
                return Ok(());
            }
            "@setDataFrame" if !self.shared.has(Fault::KeepsSetDataFrame) => {
                body = body.slice(message::SET_DATA_FRAME.len()..);
            }
            "@setDataFrame" => {}
            "onMetaData" if self.shared.has(Fault::NoBareMetadata) => return Ok(()),
            "onMetaData" => {}
            "onConform" => return Ok(()),
            _ if self.shared.has(Fault::NoOtherData) => return Ok(()),
            _ => {}
        }
        if self.shared.has(Fault::DataMovesClock) && message.time.saturating_add(1000) < stream.last {
            stream.moved += 5000;
        }
        let is_metadata = first == "@setDataFrame" || first == "onMetaData";
        let message = Message { type_id: 18, time: message.time, body };
        if is_metadata && !(self.shared.has(Fault::FirstMetadata) && stream.metadata.is_some()) {
            stream.metadata = Some(message.clone());
        }
        stream.viewers.retain(|(_, viewer)| viewer.send(message.clone()).is_ok());
        Ok(())
    }

    async fn pass_on(&mut self, message: Message) -> io::Result<()> {
        if self.plays.is_none() {
            return Ok(());
        }
        if self.waits_for_media {
            self.waits_for_media = false;
            self.status(1, "status", "NetStream.Play.Start").await?;
        }
        match message.type_id {
            0 => {
                self.plays = None;
                self.control(Control::User(UserControl::StreamEof(1))).await?;
                self.status(1, "status", "NetStream.Play.UnpublishNotify").await
            }
            8 | 9 if self.paused || !self.wanted[usize::from(message.type_id - 8)] => Ok(()),
            type_id => self.write(type_id, 1, message.time, &message.body).await,
        }
    }

    async fn take_command(&mut self, message: &Chunk) -> io::Result<()> {
        let limits = amf0::Limits::default();
        let whole = amf0::read_all(&message::amf0_body(&message.message()), &limits);
        let Ok(command) = Command::parse(&message.message(), &lb::rtmp::Limits::default()) else {
            return if self.has(Fault::UnknownMarkerCloses) { over() } else { Ok(()) };
        };
        if whole.is_err() && self.has(Fault::UnknownMarkerCloses) {
            return over();
        }
        if matches!(self.shared.fault, Fault::Closes(name) if name == command.name && command.transaction != 0.0)
        {
            return over();
        }
        match command.name.as_str() {
            "connect" => self.connect(&command, &message.body).await,
            "createStream" => self.create_stream(&command).await,
            "publish" => self.publish(&command, message.stream_id).await,
            "play" => self.play(&command).await,
            "deleteStream" | "closeStream" => self.stop(&command),
            "pause" => {
                let paused = command.argument(0).and_then(Value::as_bool).unwrap_or_default();
                let ignored = if paused { Fault::IgnoresPause } else { Fault::IgnoresUnpause };
                if !self.has(ignored) {
                    self.paused = paused;
                }
                Ok(())
            }
            "receiveAudio" | "receiveVideo" => {
                let kind = u8::from(command.name == "receiveVideo");
                let wanted = command.argument(0).and_then(Value::as_bool).unwrap_or_default();
                let ignored = self.has(Fault::IgnoresReceive(kind + 8))
                    || (wanted && kind == 1 && self.has(Fault::ReceiveVideoIsFinal));
                if !ignored {
                    self.wanted[usize::from(kind)] = wanted;
                }
                Ok(())
            }
            "seek" if self.has(Fault::SeekCloses) => over(),
            "seek" => Ok(()),
            _ => {
                self.calls += 1;
                if self.calls > 1000 {
                    self.shared.crash_if(Attack::ManyCalls)?;
                }
                if command.transaction == 0.0 && !self.has(Fault::AnswersEverything) {
                    return Ok(());
                }
                let info = info("error", "NetConnection.Call.Failed");
                self.answer("_error", command.transaction, Value::Null, info).await
            }
        }
    }

    async fn connect(&mut self, command: &Command, body: &[u8]) -> io::Result<()> {
        if body.len() > 50_000 {
            self.shared.crash_if(Attack::LongApp)?;
            self.shared.closed_for_business.send_replace(self.has(Fault::RefusesAfterLongApp));
            return over();
        }
        let text = |name| command.object.get(name).and_then(Value::as_str);
        let app = text("app").unwrap_or_default();
        let (path, query) = app.split_once('?').map_or((app, None), |(path, query)| (path, Some(query)));
        let (name, instance) = path.split_once('/').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let is_ecma_of_none = matches!(command.object, Value::EcmaArray(_))
            && body.windows(5).any(|bytes| bytes == [8, 0, 0, 0, 0]);
        let refused = match self.shared.fault {
            Fault::NeedsTcUrl => text("tcUrl").is_none(),
            Fault::ShortConnectOnly => body.len() > 2048,
            Fault::NoAmf3Clients => command.object.get("objectEncoding").is_some(),
            Fault::NoArguments => !command.arguments.is_empty(),
            Fault::NoSlash => instance == Some(""),
            Fault::NoQuery => query.is_some(),
            Fault::NoInstance => instance.is_some_and(|instance| !instance.is_empty()),
            Fault::EcmaCountBelieved => is_ecma_of_none,
            Fault::Unreadable(kind) => command
                .object
                .properties()
                .unwrap_or_default()
                .iter()
                .any(|(_, value)| kind_of(value) == kind),
            _ => false,
        };
        if name != "live" && self.has(Fault::UnknownAppUnanswered) {
            return Ok(());
        }
        if refused || name != "live" {
            let info = info("error", "NetConnection.Connect.Rejected");
            return self.answer("_error", command.transaction, Value::Null, info).await;
        }
        self.app = instance.unwrap_or_default().to_owned();
        if self.has(Fault::DropsPipelined) {
            self.input.clear();
        }
        if !self.has(Fault::NoWindow) {
            self.control(Control::WindowAckSize(2_500_000)).await?;
        }
        if !self.has(Fault::NoBandwidth) {
            self.control(Control::SetPeerBandwidth { window: 2_500_000, limit: 2 }).await?;
        }
        let answered = ["fourCcList", "videoFourCcInfoMap", "audioFourCcInfoMap", "capsEx"].into_iter();
        let enhanced = answered
            .filter(|name| !self.has(Fault::Unanswered(name)))
            .filter_map(|name| Some((name.to_owned(), command.object.get(name)?.clone())));
        let object = Value::Object(enhanced.collect());
        let code = if self.has(Fault::ConnectCode) { "Success" } else { "NetConnection.Connect.Success" };
        self.answer("_result", command.transaction, object, info("status", code)).await
    }

    async fn create_stream(&mut self, command: &Command) -> io::Result<()> {
        self.streams += 1;
        if self.streams > 500 {
            self.shared.crash_if(Attack::ManyStreams)?;
        }
        let id = if self.has(Fault::StreamIdIsText) { Value::string("1") } else { Value::Number(1.0) };
        self.answer("_result", command.transaction, Value::Null, id).await
    }

    /// The stream's name, with the app's instance in front of it.
    fn name(&self, command: &Command) -> String {
        let key = command.argument(0).and_then(Value::as_str).unwrap_or_default();
        let key = if self.has(Fault::QueryIsName) { key } else { key.split('?').next().unwrap() };
        format!("{}/{key}", self.app)
    }

    async fn publish(&mut self, command: &Command, stream_id: u32) -> io::Result<()> {
        let (name, kind) = (self.name(command), command.argument(1).and_then(Value::as_str));
        let known = matches!(kind, None | Some("live" | "LIVE" | "record" | "append"));
        let refused = !known
            || matches!(self.shared.fault, Fault::OnlyKey(key) if !name.ends_with(&format!("/{key}")))
            || matches!(self.shared.fault, Fault::Refuses(wrong) if wrong == kind)
            || (self.published_once && self.has(Fault::PublishesOnce))
            || *self.shared.closed_for_business.borrow();
        let taken = {
            let mut streams = self.shared.streams.lock().unwrap();
            let stream = streams.entry(name.clone()).or_default();
            let taken = stream.publisher.is_some();
            if !taken && !refused {
                stream.publisher = Some(self.id);
            }
            taken
        };
        if taken || refused {
            self.status(stream_id, "error", "NetStream.Publish.BadName").await?;
            return if self.has(Fault::BadNameStaysOpen) { Ok(()) } else { over() };
        }
        self.publishes = Some(name);
        self.published_once = true;
        if self.has(Fault::EagerMediaDropped) {
            // What is on its way by now is read before the publish is answered, and dropped.
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.input.settle().await?;
        }
        let stream_id = if self.has(Fault::PublishOnStream0) { 0 } else { stream_id };
        self.status(stream_id, "status", "NetStream.Publish.Start").await
    }

    async fn play(&mut self, command: &Command) -> io::Result<()> {
        if command.arguments.len() < 2 && self.has(Fault::NeedsPlayArguments) {
            return over();
        }
        let name = self.name(command);
        let is_nobody = name.ends_with("-nobody");
        let there = self.shared.streams.lock().unwrap().get(&name).is_some_and(|s| s.publisher.is_some());
        if !there || (self.played_once && self.has(Fault::PlaysOnce)) {
            let closes = if is_nobody { Fault::NobodyCloses } else { Fault::EarlyPlayCloses };
            if self.has(closes) {
                return over();
            }
            return self.status(1, "error", "NetStream.Play.StreamNotFound").await;
        }
        self.played_once = true;
        if !self.has(Fault::NoStreamBegin) {
            self.control(Control::User(UserControl::StreamBegin(1))).await?;
        }
        if command.argument(3).and_then(Value::as_bool) == Some(true) && !self.has(Fault::NoReset) {
            self.status(1, "status", "NetStream.Play.Reset").await?;
        }
        if self.has(Fault::FetchesAfterStart) {
            self.fetches = Some((Instant::now() + FETCH, name));
            return self.status(1, "status", "NetStream.Play.Start").await;
        }
        self.join(name).await
    }

    /// The viewer gets a stream from here on.
    async fn join(&mut self, name: String) -> io::Result<()> {
        let (start, waits) = {
            let mut streams = self.shared.streams.lock().unwrap();
            let stream = streams.entry(name.clone()).or_default();
            if self.shared.has(Fault::OneViewer) {
                stream.viewers.clear();
            }
            stream.viewers.retain(|(id, _)| *id != self.id);
            stream.viewers.push((self.id, self.sender.clone()));
            let waits = self.shared.has(Fault::StartWaitsForMedia) && stream.frames.is_empty();
            (stream.start(self.shared.fault), waits)
        };
        self.plays = Some(name);
        self.waits_for_media = waits;
        if !waits && !self.has(Fault::FetchesAfterStart) {
            let stream_id = if self.has(Fault::PlayOnStream0) { 0 } else { 1 };
            self.status(stream_id, "status", "NetStream.Play.Start").await?;
        }
        for message in start {
            self.write(message.type_id, 1, message.time, &message.body).await?;
        }
        Ok(())
    }

    fn stop(&mut self, command: &Command) -> io::Result<()> {
        let named = command.argument(0).and_then(Value::as_number);
        if named.is_some_and(|id| id != 1.0) {
            return if self.has(Fault::DeleteUnknownCloses) { over() } else { Ok(()) };
        }
        self.fetches = None;
        if let Some(name) = &self.plays {
            if matches!(self.shared.fault, Fault::IgnoresStop(call) if call == command.name) {
                return Ok(());
            }
            if let Some(stream) = self.shared.streams.lock().unwrap().get_mut(name) {
                stream.viewers.retain(|(id, _)| *id != self.id);
            }
            self.plays = None;
            while self.media.try_recv().is_ok() {}
        }
        if self.publishes.take().is_some() {
            self.shared.leave(self.id, false);
        }
        Ok(())
    }
}

fn info(level: &str, code: &str) -> Value {
    Value::object([("level", Value::string(level)), ("code", Value::string(code))])
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::LongString(_) => "long-string",
        Value::Date { .. } => "date",
        Value::Undefined => "undefined",
        Value::Unsupported => "unsupported",
        Value::XmlDocument(_) => "xml",
        Value::TypedObject { .. } => "typed-object",
        Value::Reference(_) => "reference",
        Value::StrictArray(_) => "strict-array",
        _ => "other",
    }
}

impl Message {
    /// The configuration of a decoder, or what belongs to it.
    fn is_header(&self) -> bool {
        match (self.type_id, &self.body[..]) {
            (9, [first, 0, ..]) if matches!(first & 0x8F, 7 | 12) => true,
            (9, [first, rest @ ..]) if first & 0x80 != 0 => match first & 0x0F {
                0 | 4 => true,
                6 => rest.first().is_some_and(|kind| kind & 0x0F == 0),
                _ => false,
            },
            (8, [first, 0, ..]) => first >> 4 == 10,
            (8, [first, kind, ..]) if first >> 4 == 9 => match first & 0x0F {
                0 => true,
                5 => kind & 0x0F == 0,
                _ => false,
            },
            _ => false,
        }
    }

    fn is_key(&self) -> bool {
        self.type_id == 9 && !self.is_header() && (self.body[0] >> 4) & 7 == 1
    }

    /// What a newer header stands in place of.
    fn slot(&self, fault: Fault) -> (u8, u8, Vec<u8>) {
        let enhanced = if self.type_id == 9 { self.body[0] & 0x80 != 0 } else { self.body[0] >> 4 == 9 };
        let codec = if fault == Fault::HeaderPerCodec { self.body[0] & 0x0F } else { 0 };
        let track = match (enhanced, self.body[0] & 0x0F) {
            (true, 4) => b"colour".to_vec(),
            (true, 5 | 6) if fault != Fault::OneTrack => self.body[6..7].to_vec(),
            _ => Vec::new(),
        };
        (self.type_id, codec, track)
    }
}

impl Stream {
    /// What the fault does to a message on its way.
    fn change(&mut self, fault: Fault, message: &mut Message) {
        self.seen[usize::from(message.type_id - 8)] = true;
        match fault {
            Fault::AudioRounded if message.type_id == 8 => message.time -= message.time % 100,
            Fault::HighByteLost => message.time &= 0xFF_FFFF,
            Fault::ClockNeverWraps => message.time = message.time.max(self.last),
            Fault::DataMovesClock => message.time = message.time.wrapping_add(self.moved),
            Fault::Spoils(head, least) if message.body.starts_with(head) && message.body.len() >= least => {
                let mut body = message.body.to_vec();
                *body.last_mut().unwrap() ^= 1;
                message.body = body.into();
            }
            Fault::CutsLong if message.body.len() > 500_000 => message.body.truncate(500_000),
            _ => {}
        }
        self.last = message.time;
    }

    /// Nothing is given out yet.
    fn is_held_back(&self, fault: Fault) -> bool {
        match fault {
            Fault::AudioNeedsVideo => !self.seen[1],
            Fault::VideoNeedsAudio => !self.seen[0],
            _ => false,
        }
    }

    /// Keeps what late viewers need.
    fn keep(&mut self, fault: Fault, message: &Message) {
        if !message.is_header() {
            if message.is_key() {
                self.frames.clear();
            }
            self.frames.push(message.clone());
            return;
        }
        let forgotten = match fault {
            Fault::NoHeader(head) => message.body.starts_with(head),
            Fault::NoColour => message.body[0] == 0x94,
            _ => false,
        };
        let slot = message.slot(fault);
        let same = self.headers.iter().position(|header| header.slot(fault) == slot);
        match same {
            _ if forgotten => {}
            Some(_) if fault == Fault::FirstHeader => {}
            Some(index) => self.headers[index] = message.clone(),
            None => self.headers.push(message.clone()),
        }
    }

    /// What a viewer gets at once.
    fn start(&self, fault: Fault) -> Vec<Message> {
        if self.is_held_back(fault) {
            return Vec::new();
        }
        let metadata = self.metadata.iter().cloned().map(|metadata| {
            let time = if fault == Fault::MetadataNow { self.last } else { 0 };
            Message { time, ..metadata }
        });
        let mut frames = self.frames.clone();
        match fault {
            Fault::StartsWithoutKey(head)
                if frames.first().is_some_and(|frame| frame.body.starts_with(head)) && frames.len() > 1 =>
            {
                let last = frames.iter().rposition(|frame| frame.type_id == 9).unwrap();
                frames.drain(..last);
            }
            Fault::LosesLastFrame if frames.iter().filter(|frame| frame.type_id == 9).count() > 2 => {
                let last = frames.iter().rposition(|frame| frame.type_id == 9).unwrap();
                frames.remove(last);
            }
            _ => {}
        }
        let headers = self.headers.iter().cloned();
        match fault {
            Fault::MetadataLast => headers.chain(metadata).chain(frames).collect(),
            _ => metadata.chain(headers).chain(frames).collect(),
        }
    }
}
