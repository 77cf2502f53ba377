//! The relay as its viewers see it: sockets that take what a test lets them take, a clock that only tests move, and the
//! bytes read back into messages.

mod hub;
mod property;
mod pump;
mod receive;
mod ring;
mod splice;
mod viewers;

use super::{Admission, Batching, Format, Hub, RelayId, Settings, Sink, Source, Turn};
use crate::ids::StreamName;
use crate::media::Packet;
use crate::rtmp::message::{self, Message};
use crate::rtmp::session::Receives;
use crate::rtmp::{Limits, chunk, session};
use crate::telemetry::Metrics;
use bytes::{Bytes, BytesMut};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// A hub with one stream, and what it counts.
struct World {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
}

impl World {
    fn new(admission: Admission, change: impl FnOnce(&mut Settings)) -> Self {
        // A flush for each push, unless a test is about what shares one.
        let mut settings = Settings { batching: Batching::Window(Duration::ZERO), ..Settings::default() };
        change(&mut settings);
        let (metrics, tasks) = (Arc::new(Metrics::new().unwrap()), TaskTracker::new());
        let hub = Hub::new(admission, Arc::new(settings), metrics.clone(), tasks.clone());
        World { hub, metrics, tasks }
    }

    fn live(change: impl FnOnce(&mut Settings)) -> (Self, Source) {
        let world = World::new(Admission::Live, change);
        let source = world.attach();
        (world, source)
    }

    /// A pull, always of the same relay stream.
    fn attach(&self) -> Source {
        self.hub.attach(&name(), Some(RelayId(1)))
    }

    /// A publish.
    fn publish(&self) -> Source {
        self.hub.attach(&name(), None)
    }

    /// A viewer with a task of its own, as the network floor runs it.
    fn watch(&self, socket: &Arc<Socket>) -> Watcher {
        let viewer = self.hub.join(&name()).unwrap().watch(socket.clone(), Bytes::new(), Format::Rtmp);
        Watcher::run(viewer, socket.clone())
    }

    fn viewer(&self) -> Watcher {
        self.watch(&Socket::open())
    }

    /// Moves the clock. Whatever can run has run before and after.
    async fn pass(&self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Lets whatever can run do so.
    async fn settle(&self) {
        self.pass(1).await;
    }

    /// All viewers left: no pump, no stream and no task may be left.
    async fn is_empty(&self) {
        self.tasks.close();
        let ended = tokio::time::timeout(Duration::from_secs(60), self.tasks.wait()).await;
        assert!(ended.is_ok(), "{} tasks are left", self.tasks.len());
        assert_eq!((self.metrics.pumps.get(), self.hub.streams().len()), (0, 0));
    }
}

fn name() -> StreamName {
    "x".parse().unwrap()
}

/// A viewer's task. Dropping it is a viewer that leaves without a word.
struct Watcher {
    socket: Arc<Socket>,
    ask: mpsc::Sender<Ask>,
    task: JoinHandle<Turn>,
}

enum Ask {
    Pause(bool),
    Receive(Receives),
    Reply(Bytes),
    Stop,
}

impl Watcher {
    fn run(mut viewer: super::Viewer, socket: Arc<Socket>) -> Self {
        let (ask, mut asked) = mpsc::channel(64);
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    turn = viewer.turn() => return turn,
                    Some(ask) = asked.recv() => match ask {
                        Ask::Pause(paused) => viewer.pause(paused),
                        Ask::Receive(receives) => viewer.receive(receives),
                        Ask::Reply(bytes) => viewer.reply(bytes),
                        Ask::Stop => viewer.stop(),
                    },
                }
            }
        });
        Watcher { socket, ask, task }
    }

    fn ask(&self, ask: Ask) {
        self.ask.try_send(ask).ok().unwrap();
    }

    /// What arrived, as `type@time:body`; the pings of the pump are left out, and that another publish begins.
    fn got(&self) -> Vec<String> {
        let mut got = self.told();
        got.retain(|text| text != "begins");
        got
    }

    /// The same, with `begins` where that is said.
    fn told(&self) -> Vec<String> {
        self.socket.messages().iter().filter(|m| m.type_id != message::USER_CONTROL).map(text).collect()
    }

    async fn turn(self) -> Turn {
        self.task.await.unwrap()
    }

    async fn leave(self) {
        self.task.abort();
        // The socket is closed when the task is gone.
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

/// A viewer's socket: takes `room` bytes and `step` of them in a write.
#[derive(Debug)]
struct Socket(Mutex<State>);

#[derive(Debug)]
struct State {
    got: Vec<u8>,
    room: usize,
    step: usize,
    writes: usize,
    broken: bool,
    waker: Option<Waker>,
}

impl Socket {
    fn with(room: usize, step: usize) -> Arc<Self> {
        let got = Vec::new();
        Arc::new(Socket(Mutex::new(State { got, room, step, writes: 0, broken: false, waker: None })))
    }

    fn open() -> Arc<Self> {
        Socket::with(usize::MAX, usize::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on the socket has room for so many bytes.
    fn room(&self, bytes: usize) {
        let mut state = self.lock();
        state.room = bytes;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    fn breaks(&self) {
        self.lock().broken = true;
        self.room(0);
    }

    fn writes(&self) -> usize {
        self.lock().writes
    }

    /// The whole messages that arrived. Panics if the chunks are broken.
    fn messages(&self) -> Vec<Message> {
        self.read().0
    }

    /// The same, and whether the last message is whole.
    fn read(&self) -> (Vec<Message>, bool) {
        let state = self.lock();
        let mut reader = chunk::Reader::new(&Limits::default());
        reader.set_chunk_size(session::OUT_CHUNK_SIZE as u32).unwrap();
        let (mut input, mut messages) = (&state.got[..], Vec::new());
        let mut whole = 0;
        while let Some(message) = reader.read(&mut input).unwrap() {
            assert!(matches!(message.type_id, 3 | 4 | 8 | 9 | 18 | 20), "{message:?}");
            messages.push(message);
            whole = state.got.len() - input.len();
        }
        (messages, whole == state.got.len())
    }
}

impl Sink for Socket {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        state.writes += 1;
        if state.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let n = bytes.len().min(state.room).min(state.step);
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.got.extend_from_slice(&bytes[..n]);
        if state.room != usize::MAX {
            state.room -= n;
        }
        Ok(n)
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        assert!(pieces.iter().all(|piece| !piece.is_empty()));
        let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.try_write(&all)
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if state.room > 0 || state.broken {
            return Poll::Ready(Ok(()));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

fn text(message: &Message) -> String {
    let head = match message.type_id {
        8 | 9 => 2 + 3 * usize::from(message.type_id == 9),
        _ => 0,
    };
    let body: String = message.body[head..].iter().map(|byte| char::from(*byte)).collect();
    let kind = match (message.type_id, message.body[0], message.body.get(1)) {
        (8, _, Some(0)) => "ahead",
        (8, ..) => "a",
        (9, _, Some(0)) => "vhead",
        (9, 0x17, _) => "key",
        (9, ..) => "v",
        (18, ..) => return format!("meta@{}", message.timestamp),
        (20, ..) => {
            let body = String::from_utf8_lossy(&message.body);
            assert!(body.contains("NetStream.Play.PublishNotify"), "{body}");
            return "begins".to_owned();
        }
        (kind, ..) => return format!("{kind}"),
    };
    format!("{kind}@{}:{body}", message.timestamp)
}

fn packet(head: &[u8], time: u32, body: &str) -> Packet {
    let bytes = Bytes::from([head, body.as_bytes()].concat());
    if head[0] == 0xaf { Packet::audio(time, bytes) } else { Packet::video(time, bytes) }
}
fn key(time: u32, body: &str) -> Packet {
    packet(&[0x17, 1, 0, 0, 0], time, body)
}
fn video(time: u32, body: &str) -> Packet {
    packet(&[0x27, 1, 0, 0, 0], time, body)
}
fn audio(time: u32, body: &str) -> Packet {
    packet(&[0xaf, 1], time, body)
}
fn video_header(body: &str) -> Packet {
    packet(&[0x17, 0, 0, 0, 0], 0, body)
}
fn audio_header(body: &str) -> Packet {
    packet(&[0xaf, 0], 0, body)
}
fn metadata(time: u32) -> Packet {
    Packet::data(time, Bytes::from_static(b"\x02\0\x0aonMetaData"))
}
/// A control message, as a session sends it between media.
fn reply() -> Bytes {
    let mut out = BytesMut::new();
    chunk::write_message(&mut out, 2, 0, message::ACKNOWLEDGEMENT, 0, &[0, 0, 0, 9], 128);
    out.freeze()
}
/// What an encoder sends first.
fn opening() -> [Packet; 3] {
    [metadata(0), video_header("h"), audio_header("h")]
}
