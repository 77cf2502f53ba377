//! A cheap viewer that remembers what it got and when.

use super::endpoint::{self, Mark};
use super::poll;
use lb::rtmp::session::{Client, ClientEvent};
use lb::rtmp::{Limits, Message};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

/// What a message is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Keyframe,
    Inter,
    VideoHeader,
    Audio,
    AudioHeader,
    Data,
}

/// One message that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    pub kind: Kind,
    pub timestamp: u32,
    pub mark: Option<Mark>,
}

/// What a viewer has seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub arrivals: Vec<Arrival>,
    pub statuses: Vec<String>,
    /// The connection's end, and what ended it.
    pub ended: Option<(Instant, String)>,
}

impl Seen {
    /// The first keyframe of a publish.
    pub fn first_keyframe(&self, session: u16) -> Option<Arrival> {
        let of_session = |arrival: &&Arrival| arrival.mark.is_some_and(|mark| mark.session == session);
        self.arrivals.iter().filter(|arrival| arrival.kind == Kind::Keyframe).find(of_session).copied()
    }

    /// The keyframes that came, of whatever publish.
    pub fn keyframes(&self) -> Vec<Arrival> {
        self.arrivals.iter().filter(|arrival| arrival.kind == Kind::Keyframe).copied().collect()
    }

    /// How many frames of a publish came.
    pub fn frames(&self, session: u16) -> usize {
        self.arrivals.iter().filter(|arrival| arrival.mark.is_some_and(|m| m.session == session)).count()
    }

    /// The longest time without any message.
    pub fn longest_gap(&self) -> Duration {
        let pairs = self.arrivals.windows(2).map(|pair| pair[1].at - pair[0].at);
        pairs.max().unwrap_or_default()
    }

    /// How much later than the quickest one 99 of 100 frames came at most, by their timestamps. What comes before `since` does
    /// not count: a viewer begins with a whole group of pictures.
    pub fn delay_p99(&self, since: Instant) -> Duration {
        let frames = self.arrivals.iter().filter(|arrival| arrival.mark.is_some() && arrival.at >= since);
        let mut delays: Vec<f64> = frames
            .map(|arrival| (arrival.at - since).as_secs_f64() - f64::from(arrival.timestamp) / 1000.0)
            .collect();
        delays.sort_by(f64::total_cmp);
        let (Some(quickest), Some(last)) = (delays.first(), delays.get(delays.len() * 99 / 100)) else {
            return Duration::ZERO;
        };
        Duration::from_secs_f64(last - quickest)
    }

    /// Checks that time rises strictly on each track, and that no publish comes back after a later one began.
    #[track_caller]
    pub fn assert_in_order(&self) {
        let mut session = 0;
        let mut last = [None::<(u32, Mark)>; 2];
        for arrival in &self.arrivals {
            let track = match arrival.kind {
                Kind::Keyframe | Kind::Inter => 0,
                Kind::Audio => 1,
                _ => continue,
            };
            let Some(mark) = arrival.mark else { continue };
            assert!(mark.session >= session, "publish {} again after {session}", mark.session);
            if mark.session > session && session > 0 {
                assert!(
                    track == 1 || arrival.kind == Kind::Keyframe,
                    "a new publish begins with {arrival:?}"
                );
            }
            session = mark.session;
            if let Some((timestamp, before)) = last[track] {
                assert!(arrival.timestamp > timestamp, "{timestamp} ({before:?}), then {arrival:?}");
                if before.session == session {
                    assert_eq!(mark.number, before.number + 1, "{before:?}, then {arrival:?}");
                }
            }
            last[track] = Some((arrival.timestamp, mark));
        }
    }
}

/// A viewer on the shared runtime. Dropping it closes its connection.
pub struct Viewer {
    seen: Arc<Mutex<Seen>>,
    deaf: Arc<AtomicBool>,
    task: JoinHandle<()>,
    begun: Instant,
}

impl Viewer {
    /// Connects and plays.
    pub fn start(server: SocketAddr, app: &str, key: &str) -> Viewer {
        Viewer::start_with(server, app, key, None)
    }

    /// As [`Viewer::start`], with a receive buffer of about this many bytes.
    pub fn start_with(server: SocketAddr, app: &str, key: &str, buffer: Option<u32>) -> Viewer {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let deaf = Arc::new(AtomicBool::new(false));
        let (record, closed_ears) = (seen.clone(), deaf.clone());
        let (app, key) = (app.to_owned(), key.to_owned());
        let task = endpoint::runtime().spawn(async move {
            let end = play(server, &app, &key, buffer, &record, &closed_ears).await;
            let how = end.map_or_else(|error| error.to_string(), |()| "closed".to_owned());
            record.lock().unwrap().ended = Some((Instant::now(), how));
        });
        Viewer { seen, deaf, task, begun: Instant::now() }
    }

    /// What it has seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Reads nothing any more, and stays connected.
    pub fn stop_reading(&self) {
        self.deaf.store(true, Ordering::Relaxed);
    }

    /// Reads again.
    pub fn read_on(&self) {
        self.deaf.store(false, Ordering::Relaxed);
    }

    /// Whether its connection stands.
    pub fn is_connected(&self) -> bool {
        self.seen().ended.is_none()
    }

    /// From its start to its first keyframe.
    pub fn join_time(&self) -> Option<Duration> {
        let first = self.seen().arrivals.iter().find(|a| a.kind == Kind::Keyframe).map(|a| a.at);
        first.map(|at| at - self.begun)
    }

    /// Waits for the first keyframe of a publish, and says when it came.
    #[track_caller]
    pub fn wait_for_keyframe(&self, session: u16, deadline: Duration) -> Instant {
        let found = poll(deadline, || self.seen().first_keyframe(session));
        let seen = self.seen();
        found
            .unwrap_or_else(|| {
                let last = seen.arrivals.last();
                panic!("no keyframe of publish {session}: {last:?}, {:?}, {:?}", seen.statuses, seen.ended)
            })
            .at
    }

    /// Waits for the end of the connection, and says what it was told before.
    #[track_caller]
    pub fn wait_for_end(&self, deadline: Duration) -> Vec<String> {
        let ended = poll(deadline, || self.seen().ended.clone());
        assert!(ended.is_some(), "the viewer is still connected after {deadline:?}");
        self.seen().statuses.clone()
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn play(
    server: SocketAddr,
    app: &str,
    key: &str,
    buffer: Option<u32>,
    seen: &Mutex<Seen>,
    deaf: &AtomicBool,
) -> io::Result<()> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    let socket = socket.connect(server).await?;
    socket.set_nodelay(true)?;
    let mut client = Client::play(&endpoint::target(server, app, key), Limits::default(), endpoint::nonce());
    let mut scratch = vec![0; 16 << 10];
    loop {
        endpoint::flush(&socket, &mut client).await?;
        while deaf.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let n = endpoint::receive(&socket, &mut client, &mut scratch).await?;
        while let Some(event) = client.event() {
            match event {
                ClientEvent::Media(message) => seen.lock().unwrap().arrivals.extend(arrival(&message)),
                ClientEvent::Status { code, description, .. } => {
                    seen.lock().unwrap().statuses.push(format!("{code}: {description}"));
                }
                ClientEvent::StreamEof => seen.lock().unwrap().statuses.push("StreamEOF".to_owned()),
                _ => {}
            }
        }
        if n == 0 {
            return Ok(());
        }
    }
}

fn arrival(message: &Message) -> Option<Arrival> {
    let body = &message.body[..];
    let (kind, head) = match (message.type_id, body) {
        (9, [_, 0, ..]) => (Kind::VideoHeader, 5),
        (9, [0x17, ..]) => (Kind::Keyframe, 5),
        (9, _) => (Kind::Inter, 5),
        (8, [_, 0, ..]) => (Kind::AudioHeader, 2),
        (8, _) => (Kind::Audio, 2),
        (18, _) => (Kind::Data, 0),
        _ => return None,
    };
    Some(Arrival { at: Instant::now(), kind, timestamp: message.timestamp, mark: Mark::read(body, head) })
}
