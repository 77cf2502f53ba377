//! A playback node pulls from servers that are not lb: one built on `rml_rtmp`, as plain mmids nodes are, which loses what
//! arrives before it answered `connect`, and ones that refuse it. And from one that says it is lb, which is asked for
//! everything at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use bytes::{Bytes, BytesMut};
use common::endpoint::{self, Mark};
use common::lb::Lb;
use common::viewer::{Kind, Viewer};
use common::{SOON, http, poll, wait_for};
use lb::rtmp::Limits;
use lb::rtmp::amf0::Value;
use lb::rtmp::message::Command;
use lb::rtmp::session::{Event, Server};
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::sessions::{ServerSession, ServerSessionConfig, ServerSessionEvent, ServerSessionResult};
use rml_rtmp::time::RtmpTimestamp;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// `connect` is answered when nothing came for so long: whoever does not wait for the answer is found out.
const QUIET: Duration = Duration::from_millis(100);

/// What is done to a peer that does not wait for the answer to its `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Early {
    /// What `rml_rtmp` does: `createStream` is answered, `play` is lost.
    Lost,
    /// The command is refused with `_error`, and the connection is closed.
    Refused,
    /// The connection is closed.
    Closed,
}

/// A server with one stream, `x` of any app.
struct Origin {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    connections: usize,
    /// The keys that were played.
    keys: Vec<String>,
    /// Connections that did not wait for the answer to `connect`.
    early: usize,
}

impl Origin {
    fn start(early: Early) -> Origin {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let listener = endpoint::runtime().block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let record = seen.clone();
        let task = endpoint::runtime().spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                record.lock().unwrap().connections += 1;
                let record = record.clone();
                connections.spawn(async move { Strict::serve(socket, early, &record).await });
            }
        });
        Origin { address, seen, _task: AbortOnDropHandle::new(task) }
    }
}

/// One connection of an [`Origin`].
struct Strict<'a> {
    socket: TcpStream,
    session: ServerSession,
    seen: &'a Mutex<Seen>,
    /// The number of a `connect` that waits for its answer.
    connect: Option<u32>,
    /// Commands came before `connect` was answered.
    early: bool,
    /// The message stream that plays.
    playing: Option<u32>,
}

impl Strict<'_> {
    async fn serve(mut socket: TcpStream, early: Early, seen: &Mutex<Seen>) -> io::Result<()> {
        let rest = greet(&mut socket).await?;
        let (session, results) = ServerSession::new(ServerSessionConfig::new()).map_err(io::Error::other)?;
        let mut strict = Strict { socket, session, seen, connect: None, early: false, playing: None };
        strict.take(results).await?;
        strict.input(&rest).await?;
        let mut buffer = [0; 4096];
        // Until nobody says anything any more, `connect` is not answered.
        while let Some(n) = match strict.connect {
            None => Some(strict.socket.read(&mut buffer).await?),
            Some(_) => tokio::time::timeout(QUIET, strict.socket.read(&mut buffer)).await.ok().transpose()?,
        } {
            match n {
                0 => return Ok(()),
                n => strict.input(&buffer[..n]).await?,
            }
        }
        if strict.early {
            seen.lock().unwrap().early += 1;
            match early {
                Early::Lost => {}
                Early::Refused => return strict.refuse().await,
                Early::Closed => return Ok(()),
            }
        }
        let connect = strict.connect.take().expect("it waits");
        let results = strict.session.accept_request(connect).map_err(io::Error::other)?;
        strict.take(results).await?;
        while strict.playing.is_none() {
            match strict.socket.read(&mut buffer).await? {
                0 => return Ok(()),
                n => strict.input(&buffer[..n]).await?,
            }
        }
        strict.play().await
    }

    async fn input(&mut self, bytes: &[u8]) -> io::Result<()> {
        let results = self.session.handle_input(bytes).map_err(io::Error::other)?;
        self.take(results).await
    }

    async fn take(&mut self, results: Vec<ServerSessionResult>) -> io::Result<()> {
        for result in results {
            match result {
                ServerSessionResult::OutboundResponse(packet) => {
                    // The only thing that is said before `connect` is answered is the answer to an early command.
                    self.early |= self.connect.is_some();
                    self.socket.write_all(&packet.bytes).await?;
                }
                ServerSessionResult::RaisedEvent(event) => match event {
                    ServerSessionEvent::ConnectionRequested { request_id, .. } => {
                        self.connect = Some(request_id);
                    }
                    ServerSessionEvent::PlayStreamRequested { request_id, stream_key, stream_id, .. } => {
                        // As mmids does: every key may be played, and the query is part of it.
                        let accepted = self.session.accept_request(request_id).map_err(io::Error::other)?;
                        Box::pin(self.take(accepted)).await?;
                        self.playing = (stream_key == "x").then_some(stream_id);
                        self.seen.lock().unwrap().keys.push(stream_key);
                    }
                    _ => {}
                },
                ServerSessionResult::UnhandleableMessageReceived(_) => {}
            }
        }
        Ok(())
    }

    async fn refuse(&mut self) -> io::Result<()> {
        let info = Value::object([
            ("level", Value::string("error")),
            ("code", Value::string("NetConnection.Call.Failed")),
            ("description", Value::string("connect first")),
        ]);
        let mut wire = BytesMut::new();
        Command::new("_error", 4.0, Value::Null, [info]).write(&mut wire, 7, 0, 4096);
        self.socket.write_all(&wire).await?;
        // What was received and not read would turn the close into a reset.
        let mut buffer = [0; 4096];
        self.socket.shutdown().await?;
        while self.socket.read(&mut buffer).await? > 0 {}
        Ok(())
    }

    /// A header, and 25 frames a second until the peer leaves.
    async fn play(&mut self) -> io::Result<()> {
        let stream = self.playing.expect("it plays");
        let mut tick = tokio::time::interval(Duration::from_millis(40));
        let mut buffer = [0; 4096];
        let mut number = 0;
        self.video(stream, 0, &[0x17, 0, 0, 0, 0, 1, 0x64, 0, 0x1f], None).await?;
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let kind = if number % 25 == 0 { 0x17 } else { 0x27 };
                    let mark = Mark { session: 1, number };
                    self.video(stream, number * 40, &[kind, 1, 0, 0, 0], Some(mark)).await?;
                    number += 1;
                }
                read = self.socket.read(&mut buffer) => match read? {
                    0 => return Ok(()),
                    n => self.input(&buffer[..n]).await?,
                },
            }
        }
    }

    async fn video(&mut self, stream: u32, time: u32, head: &[u8], mark: Option<Mark>) -> io::Result<()> {
        let mut body = head.to_vec();
        mark.inspect(|mark| mark.write(&mut body));
        body.resize(1000, 0);
        let packet = self.session.send_video_data(stream, Bytes::from(body), RtmpTimestamp::new(time), false);
        self.socket.write_all(&packet.map_err(io::Error::other)?.bytes).await
    }
}

/// The handshake, and what came behind it.
async fn greet(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut handshake = Handshake::new(PeerType::Server);
    let error = |error| io::Error::other(format!("{error:?}"));
    socket.write_all(&handshake.generate_outbound_p0_and_p1().map_err(error)?).await?;
    let mut buffer = [0; 4096];
    loop {
        let n = socket.read(&mut buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match handshake.process_bytes(&buffer[..n]).map_err(error)? {
            HandshakeProcessResult::InProgress { response_bytes } => {
                socket.write_all(&response_bytes).await?
            }
            HandshakeProcessResult::Completed { response_bytes, remaining_bytes } => {
                socket.write_all(&response_bytes).await?;
                return Ok(remaining_bytes);
            }
        }
    }
}

/// A reactor that knows `x` at this address, as if a plain mmids node had announced it, and a playback node.
fn nodes(origin: SocketAddr) -> (Lb, Lb) {
    let reactor = Lb::start(&["--role", "reactor", "--heartbeat", "300ms"]);
    let claim = format!("{{\"stream_name\":\"x\",\"origin\":\"{origin}\"}}");
    assert_eq!(http::post(reactor.reactor(), "/publisher_lookup", &claim).status, 200);
    let playback = Lb::start(&["--role", "playback", "--reactor-url", &reactor.reactor_url()]);
    (reactor, playback)
}

/// A viewer sees the stream of a server that does this to peers which do not wait, and the server finds nothing wrong.
#[track_caller]
fn is_watched(early: Early) {
    let origin = Origin::start(early);
    let (_reactor, playback) = nodes(origin.address);
    let viewer = Viewer::start(playback.rtmp(), "live", "x");
    wait_for("the picture", SOON, || viewer.seen().frames(1) > 50);
    let seen = viewer.seen();
    assert_eq!(seen.arrivals[0].kind, Kind::VideoHeader);
    seen.assert_in_order();
    assert!(seen.statuses.iter().all(|status| status.starts_with("NetStream.Play.Reset")), "{seen:?}");
    let origin = origin.seen.lock().unwrap();
    assert_eq!((origin.connections, origin.early), (1, 0), "{origin:?}");
    assert_eq!(origin.keys, ["x"], "the query of lb's own would be part of another server's key");
}

#[test]
fn a_server_that_loses_what_comes_before_its_answer_is_pulled_from() {
    is_watched(Early::Lost);
}

#[test]
fn a_server_that_refuses_calls_out_of_order_is_pulled_from() {
    is_watched(Early::Refused);
}

#[test]
fn a_server_that_closes_upon_calls_out_of_order_is_pulled_from() {
    is_watched(Early::Closed);
}

/// A server that says it is lb.
struct Fake(std::net::TcpListener);

/// What a pull has asked for before its connect is answered.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Connect,
    Everything,
}

impl Fake {
    /// Takes the next connection, waits for the connect and for what comes with it, and then refuses to play, or closes
    /// without an answer.
    #[track_caller]
    fn next(&self, answers: bool) -> Asked {
        let (socket, _) = poll(SOON, || self.0.accept().ok()).expect("the pull comes back");
        socket.set_nonblocking(true).unwrap();
        let serve = async { serve_as_lb(TcpStream::from_std(socket).unwrap(), answers).await };
        endpoint::runtime().block_on(async { tokio::time::timeout(SOON, serve).await }).expect("in time")
    }
}

async fn serve_as_lb(mut socket: TcpStream, answers: bool) -> Asked {
    let mut server = Server::new(Limits::default(), endpoint::nonce());
    while !matches!(server.event(), Some(Event::Connect(_))) {
        read(&mut socket, &mut server).await;
        socket.write_all(&server.output()).await.unwrap();
    }
    while tokio::time::timeout(QUIET, read(&mut socket, &mut server)).await.is_ok() {}
    server.accept_connect();
    let play = server.event();
    let asked = if play.is_some() { Asked::Everything } else { Asked::Connect };
    if answers {
        socket.write_all(&server.output()).await.unwrap();
        let mut play = play;
        while play.is_none() {
            read(&mut socket, &mut server).await;
            play = server.event();
        }
        assert!(matches!(&play, Some(Event::Play(play)) if play.stream_key == "x"), "{play:?}");
        server.reject_play(1, "no such stream");
        socket.write_all(&server.output()).await.unwrap();
    }
    asked
}

async fn read(socket: &mut TcpStream, server: &mut Server) {
    let mut buffer = [0; 4096];
    let n = socket.read(&mut buffer).await.unwrap();
    assert!(n > 0, "the pull gave up");
    server.input(&buffer[..n]).unwrap();
}

#[test]
fn an_lb_node_is_asked_for_everything_at_once_until_it_does_not_answer() {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let mut config = tempfile::NamedTempFile::new().unwrap();
    let step = format!("rtmp_pull location=rtmp://{address}/pull_source/x stream_name=x");
    write!(config, "workflow pulled {{\n    {step}\n}}\n").unwrap();
    let path = config.path().to_str().unwrap();
    let _node = Lb::start(&["--role", "playback", "--reactor-url", "http://127.0.0.1:1", "--config", path]);
    let fake = Fake(listener);
    assert_eq!(fake.next(true), Asked::Connect, "nothing is known of it");
    assert_eq!(fake.next(true), Asked::Everything);
    assert_eq!(fake.next(false), Asked::Everything);
    assert_eq!(fake.next(true), Asked::Connect, "another server may answer there now");
    assert_eq!(fake.next(true), Asked::Everything);
}
