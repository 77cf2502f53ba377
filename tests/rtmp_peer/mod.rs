//! An RTMP node inside the test process, and peers that speak to it over real sockets: well-behaved ones, and ones that
//! write every byte by hand.

// Each test file is a crate of its own and uses its own part of this.
#![allow(dead_code)]
// A test fails by panicking; Clippy's switch for tests does not reach helpers outside of `#[test]` functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use bytes::{Bytes, BytesMut};
use lb::drain::Drain;
use lb::media::Packet;
use lb::net::acl::Acl;
use lb::net::routes::{
    KeyPattern, Place, PlayRoute, Publication, PublishRequest, PublishRoute, RouteGuard, Routes,
};
use lb::net::{Limits, Server};
use lb::relay::{Admission, Attachment, FeedRef, Feeds, Hub, Outlet, Settings};
use lb::rtmp::amf0::Value;
use lb::rtmp::chunk::{self, Reader};
use lb::rtmp::message::{self, Command, Control, Message};
use lb::rtmp::session::{Client, ClientEvent, Target};
use lb::telemetry::Metrics;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// What takes longer has failed: long enough for two busy cores.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits for a future, and panics if it takes too long.
#[track_caller]
pub fn soon<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let done = tokio::time::timeout(SOON, future).await;
        done.unwrap_or_else(|_| panic!("{place}: waited in vain for: {what}"))
    }
}

/// Waits for a condition that nobody signals.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A node's RTMP side.
pub struct Node {
    pub routes: Arc<Routes>,
    pub feeds: Arc<Feeds>,
    pub metrics: Arc<Metrics>,
    pub drain: Drain,
    pub port: u16,
    pub tasks: TaskTracker,
    server: Arc<Server>,
    guards: Vec<RouteGuard>,
}

impl Node {
    pub fn start() -> Node {
        Node::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Node {
        Node::with_spread(limits, Duration::from_millis(50))
    }

    /// A node that sends its viewers away over so much time when it drains.
    pub fn with_spread(limits: Limits, spread: Duration) -> Node {
        let (routes, drain) = (Routes::new(), Drain::new());
        let metrics = Arc::new(Metrics::new().unwrap());
        let feeds = Feeds::new(metrics.clone());
        let server = Server::new(lb::net::Parts {
            routes: routes.clone(),
            gate: lb::auth::Gate::open(),
            pull_key: None,
            proxies: Vec::new(),
            limits,
            feeds: feeds.clone(),
            metrics: metrics.clone(),
            drain: drain.clone(),
            node: "node-under-test".parse().unwrap(),
            drain_spread: spread,
        });
        let (tasks, guards) = (TaskTracker::new(), Vec::new());
        let mut node = Node { routes, feeds, metrics, drain, port: 0, tasks, server, guards };
        node.port = node.listen();
        node
    }

    /// One more port.
    pub fn listen(&self) -> u16 {
        let listener = lb::node::listen::bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        self.server.listen(listener).unwrap();
        port
    }

    pub fn place(&self, app: &str, key: &str) -> Place {
        let key = match key {
            "*" => KeyPattern::Any,
            exact => KeyPattern::Exact(exact.parse().unwrap()),
        };
        Place { port: self.port, tls: false, app: app.to_owned(), key, acl: Acl::default() }
    }

    /// Lets publishers in at `app`, whoever they are; the test answers them.
    pub fn publishers(&mut self, app: &str) -> Publishers {
        self.publishers_at(self.place(app, "*"))
    }

    pub fn publishers_at(&mut self, place: Place) -> Publishers {
        let (requests, waiting) = mpsc::channel(16);
        self.guards.push(self.routes.add_publish(place, PublishRoute { requests }).unwrap());
        Publishers(waiting)
    }

    /// Lets viewers in at `app`.
    pub fn hub(&mut self, app: &str, admission: Admission, settings: Settings) -> Arc<Hub> {
        self.hub_at(self.place(app, "*"), admission, settings)
    }

    pub fn hub_at(&mut self, place: Place, admission: Admission, settings: Settings) -> Arc<Hub> {
        let hub = Hub::new(admission, Arc::new(settings), self.metrics.clone(), self.tasks.clone());
        let route = PlayRoute { hub: hub.clone(), pulls: false };
        self.guards.push(self.routes.add_play(place, route).unwrap());
        hub
    }

    pub fn refused(&self, reason: &str) -> u64 {
        self.metrics.refusals_total.with_label_values(&[reason]).get()
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }
}

/// Those who want to publish.
pub struct Publishers(mpsc::Receiver<PublishRequest>);

/// A publisher that was let in.
pub struct Accepted {
    /// What it brings.
    pub media: Media,
    pub evict: Option<oneshot::Sender<String>>,
}

/// What a feed brings, from the moment at which this was made.
pub struct Media {
    packets: mpsc::UnboundedReceiver<Vec<Packet>>,
    _attached: Attachment,
}

#[derive(Debug)]
struct Forward(mpsc::UnboundedSender<Vec<Packet>>);

impl Outlet for Forward {
    fn push(&mut self, packets: &[Packet]) {
        // A test that listens no longer.
        drop(self.0.send(packets.to_vec()));
    }
}

impl Media {
    pub fn of(feed: &FeedRef) -> Media {
        let (forward, packets) = mpsc::unbounded_channel();
        Media { packets, _attached: feed.attach(Box::new(Forward(forward))) }
    }

    /// What comes together; nothing: the feed has ended.
    pub async fn next(&mut self) -> Option<Vec<Packet>> {
        soon("media", self.packets.recv()).await
    }
}

impl Publishers {
    pub async fn next(&mut self) -> PublishRequest {
        soon("a publish request", self.0.recv()).await.expect("the route is there")
    }

    /// Nobody asked.
    pub fn is_quiet(&mut self) -> bool {
        self.0.try_recv().is_err()
    }

    pub async fn accept(&mut self, name: &str) -> Accepted {
        let request = self.next().await;
        assert_eq!(request.name.as_str(), name);
        Accepted::answer(request)
    }
}

impl Accepted {
    /// Lets a publisher in.
    pub fn answer(request: PublishRequest) -> Self {
        let media = Media::of(&request.feed);
        let (evict, evicted) = oneshot::channel();
        request.reply.send(Ok(Publication { evicted })).expect("the publisher waits");
        Accepted { media, evict: Some(evict) }
    }

    /// The next `n` packets.
    pub async fn packets(&mut self, n: usize) -> Vec<Packet> {
        let mut packets = Vec::new();
        while packets.len() < n {
            match self.media.next().await {
                Some(more) => packets.extend(more),
                None => panic!("the end after {} of {n} packets", packets.len()),
            }
        }
        assert_eq!(packets.len(), n);
        packets
    }

    /// The publish ends, with no more media before.
    pub async fn ended(&mut self) {
        let last = self.media.next().await;
        assert!(last.is_none(), "{last:?}");
    }
}

/// A peer that speaks RTMP as it should.
pub struct Peer {
    pub socket: TcpStream,
    pub client: Client,
}

pub fn target(port: u16, app: &str, key: &str) -> Target {
    Target { app: app.into(), tc_url: format!("rtmp://localhost:{port}/{app}"), stream_key: key.into() }
}

impl Peer {
    pub async fn play(node: &Node, app: &str, key: &str) -> Peer {
        Peer::play_at(node.address(), app, key).await
    }

    pub async fn play_at(address: SocketAddr, app: &str, key: &str) -> Peer {
        let client = Client::play(&target(address.port(), app, key), lb::rtmp::Limits::default(), [7; 32]);
        Peer { socket: TcpStream::connect(address).await.unwrap(), client }
    }

    pub async fn publish(node: &Node, app: &str, key: &str) -> Peer {
        Peer::publish_at(node.address(), app, key).await
    }

    pub async fn publish_at(address: SocketAddr, app: &str, key: &str) -> Peer {
        let client = Client::publish(&target(address.port(), app, key), lb::rtmp::Limits::default(), [7; 32]);
        Peer { socket: TcpStream::connect(address).await.unwrap(), client }
    }

    /// Connects from another of this machine's addresses.
    pub async fn connect_from(source: IpAddr, address: SocketAddr) -> TcpStream {
        let socket = match source {
            IpAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            IpAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        }
        .unwrap();
        socket.bind(SocketAddr::new(source, 0)).unwrap();
        socket.connect(address).await.unwrap()
    }

    /// The next event; nothing: the node closed the connection.
    pub async fn event(&mut self) -> Option<ClientEvent> {
        soon("an event", async {
            loop {
                let output = self.client.output();
                // A peer that was closed learns it when it reads.
                self.socket.write_all(&output).await.ok();
                if let Some(event) = self.client.event() {
                    return Some(event);
                }
                let mut buffer = [0; 4096];
                match self.socket.read(&mut buffer).await {
                    Ok(0) | Err(_) => return None,
                    Ok(n) => self.client.input(&buffer[..n]).unwrap(),
                }
            }
        })
        .await
    }

    /// Waits for the word that it may publish or that the stream plays.
    #[track_caller]
    pub fn started(&mut self) -> impl Future<Output = ()> + '_ {
        let place = std::panic::Location::caller();
        async move {
            loop {
                match self.event().await {
                    Some(ClientEvent::Playing { .. } | ClientEvent::Publishing) => return,
                    Some(ClientEvent::Connected) => {}
                    Some(ClientEvent::Status { level, .. }) if level == "status" => {}
                    other => panic!("{place}: {other:?}"),
                }
            }
        }
    }

    pub async fn media(&mut self) -> Message {
        loop {
            match self.event().await {
                Some(ClientEvent::Media(message)) => return message,
                Some(ClientEvent::Closed) | None => panic!("closed"),
                Some(_) => {}
            }
        }
    }

    /// All status codes until the node closes the connection, which it must.
    pub async fn statuses_until_closed(&mut self) -> Vec<String> {
        let mut codes = Vec::new();
        while let Some(event) = self.event().await {
            if let ClientEvent::Status { code, .. } = event {
                codes.push(code);
            }
        }
        codes
    }

    pub async fn send(&mut self, packet: &Packet) {
        assert!(self.client.send_media(&message(packet)), "it may not publish");
        let output = self.client.output();
        self.socket.write_all(&output).await.unwrap();
    }
}

/// A packet as a message on stream 1.
pub fn message(packet: &Packet) -> Message {
    Message {
        type_id: packet.type_id(),
        timestamp: packet.timestamp,
        stream_id: 1,
        chunk_stream_id: lb::rtmp::session::chunk_stream(packet.type_id()),
        body: packet.body.clone(),
    }
}

/// A peer that writes by hand, past its handshake.
pub struct Raw {
    pub socket: TcpStream,
    reader: Reader,
    unread: BytesMut,
}

impl Raw {
    pub async fn connect(node: &Node) -> Raw {
        Raw::over(TcpStream::connect(node.address()).await.unwrap()).await
    }

    pub async fn over(mut socket: TcpStream) -> Raw {
        socket.write_all(&[&[3][..], &[0; 2 * 1536]].concat()).await.unwrap();
        let mut answer = [0; 1 + 2 * 1536];
        soon("the handshake", socket.read_exact(&mut answer)).await.unwrap();
        Raw { socket, reader: Reader::new(&lb::rtmp::Limits::default()), unread: BytesMut::new() }
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        soon("a write", self.socket.write_all(bytes)).await.unwrap();
    }

    /// The next message; nothing: the node closed the connection.
    pub async fn message(&mut self) -> Option<Message> {
        soon("a message", async {
            loop {
                let mut input = &self.unread[..];
                let message = self.reader.read(&mut input).unwrap();
                let taken = self.unread.len() - input.len();
                bytes::Buf::advance(&mut self.unread, taken);
                if let Some(message) = message {
                    if let Ok(Some(Control::SetChunkSize(size))) = Control::parse(&message) {
                        self.reader.set_chunk_size(size).unwrap();
                    }
                    return Some(message);
                }
                match self.socket.read_buf(&mut self.unread).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        })
        .await
    }

    /// Reads on until a command says `wanted`, as `name transaction code`.
    #[track_caller]
    pub fn hears(&mut self, wanted: &str) -> impl Future<Output = ()> + '_ {
        let place = std::panic::Location::caller();
        let wanted = wanted.to_owned();
        async move {
            let mut heard = Vec::new();
            loop {
                let Some(message) = self.message().await else {
                    panic!("{place}: closed before '{wanted}', after {heard:?}");
                };
                if message.type_id != message::COMMAND_AMF0 {
                    continue;
                }
                let command = Command::parse(&message, &lb::rtmp::Limits::default()).unwrap();
                let code = command.argument(0).and_then(|info| info.get("code")?.as_str()).unwrap_or("-");
                let words = format!("{} {} {code}", command.name, command.transaction);
                if words == wanted {
                    return;
                }
                heard.push(words);
            }
        }
    }

    /// The next media message.
    pub async fn media(&mut self) -> Message {
        loop {
            let message = self.message().await.expect("the connection is open");
            if [8, 9].contains(&message.type_id) {
                return message;
            }
        }
    }

    pub async fn closed(&mut self) {
        while self.message().await.is_some() {}
    }
}

/// Commands and messages as bytes, in chunks of 128 bytes.
#[derive(Default)]
pub struct Wire(pub BytesMut);

impl Wire {
    pub fn connect(mut self, app: &str) -> Wire {
        let object = Value::object([("app", Value::string(app)), ("tcUrl", Value::string("rtmp://h/x"))]);
        Command::new("connect", 1.0, object, []).write(&mut self.0, 3, 0, 128);
        self
    }

    pub fn call(mut self, name: &str, transaction: f64, arguments: impl Into<Vec<Value>>) -> Wire {
        Command::new(name, transaction, Value::Null, arguments).write(&mut self.0, 3, 1, 128);
        self
    }

    pub fn message(mut self, type_id: u8, timestamp: u32, body: &[u8]) -> Wire {
        let chunk_stream_id = lb::rtmp::session::chunk_stream(type_id);
        chunk::write_message(&mut self.0, chunk_stream_id, timestamp, type_id, 1, body, 128);
        self
    }
}

pub fn wire() -> Wire {
    Wire::default()
}

pub fn video_header() -> Packet {
    Packet::video(0, Bytes::from_static(&[0x17, 0, 0, 0, 0, 1, 0x64, 0, 0x1f]))
}

pub fn audio_header() -> Packet {
    Packet::audio(0, Bytes::from_static(&[0xaf, 0, 0x12, 0x10]))
}

pub fn metadata() -> Packet {
    Packet::data(0, Bytes::from_static(b"\x02\x00\x0aonMetaData\x08\0\0\0\0\0\0\x09"))
}

/// A frame that says `mark` in its last byte.
pub fn keyframe(timestamp: u32, mark: u8) -> Packet {
    Packet::video(timestamp, Bytes::copy_from_slice(&[0x17, 1, 0, 0, 0, mark]))
}

pub fn frame(timestamp: u32, mark: u8) -> Packet {
    Packet::video(timestamp, Bytes::copy_from_slice(&[0x27, 1, 0, 0, 0, mark]))
}

pub fn sound(timestamp: u32, mark: u8) -> Packet {
    Packet::audio(timestamp, Bytes::copy_from_slice(&[0xaf, 1, mark]))
}
