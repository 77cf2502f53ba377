//! One run: publishers, viewers, a time to settle, a window to measure, one line of JSON.

use super::check::{Findings, Sent, quantile};
use super::clip::Clip;
use super::epoll::{self, Epoll};
use super::flood::Flood;
use super::link::{self, Link};
use super::proc;
use super::publisher::Publisher;
use super::viewer::{By, Habit, Now, Viewer};
use lb::rtmp::session::Target;
use rustls::ClientConfig;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is waited for beyond the ramp until all have joined: several groups of pictures.
const JOIN: Duration = Duration::from_secs(12);

/// What one read takes: everything that is there, as a rule.
const SCRATCH: usize = 1 << 20;

/// The flooding connection among the sockets.
const FLOOD: usize = usize::MAX;

/// So many of a server's threads are told of: more than there are cores.
const BUSIEST: usize = 4;

/// How many messages are sent between two looks at the sockets.
const SENDS: usize = 256;

/// What to do to a server.
#[derive(clap::Args, Clone, Debug)]
pub struct Plan {
    /// Copied into the result
    #[arg(long, default_value = "")]
    pub label: String,
    /// Where publishers go
    #[arg(long)]
    pub ingest: SocketAddr,
    /// Where viewers go; missing: the same
    #[arg(long)]
    pub play: Option<SocketAddr>,
    #[arg(long, default_value = "live")]
    pub publish_app: String,
    #[arg(long, default_value = "live")]
    pub play_app: String,
    /// The FLV file that is published
    #[arg(long)]
    pub clip: PathBuf,
    #[arg(long, default_value_t = 1)]
    pub streams: usize,
    /// Viewers of each stream
    #[arg(long, default_value_t = 0)]
    pub viewers: usize,
    /// Viewers of one more stream, which only drain
    #[arg(long, default_value_t = 0)]
    pub crowd: usize,
    /// How many of all viewers, without the crowd, check what they get
    #[arg(long, default_value_t = 20)]
    pub checked: usize,
    /// Viewers, beyond the others, that stop to read, when the window begins
    #[arg(long, default_value_t = 0)]
    pub stalled: usize,
    /// Viewers a second, beyond the others, that join and leave during the second half of the window
    #[arg(long, default_value_t = 0.0)]
    pub churn: f64,
    /// Seconds from the publishers' start to the first viewer
    #[arg(long, default_value_t = 3.0)]
    pub lead: f64,
    /// Seconds over which viewers come
    #[arg(long, default_value_t = 2.0)]
    pub ramp: f64,
    /// Seconds from the last join to the window
    #[arg(long, default_value_t = 3.0)]
    pub settle: f64,
    /// Seconds that are measured
    #[arg(long, default_value_t = 15.0)]
    pub seconds: f64,
    /// Publishers fall silent before the window begins
    #[arg(long)]
    pub silent: bool,
    /// One more publisher, with a viewer, sends 2-byte messages during the window as fast as the server takes them
    #[arg(long)]
    pub flood: bool,
    /// Viewers come by TLS, and believe this certificate
    #[arg(long)]
    pub certificate: Option<PathBuf>,
    /// Viewers play FLV over HTTP
    #[arg(long)]
    pub http: bool,
    /// The server's process
    #[arg(long)]
    pub pid: u32,
    /// The process that it pulls from
    #[arg(long)]
    pub origin_pid: Option<u32>,
}

impl Plan {
    /// All streams, that of the crowd among them.
    fn publishers(&self) -> usize {
        self.streams + usize::from(self.crowd > 0)
    }
}

struct Run<'a> {
    plan: &'a Plan,
    clip: &'a Clip,
    epoll: Epoll,
    tls: Option<Arc<ClientConfig>>,
    publishers: Vec<Publisher>,
    viewers: Vec<Option<Viewer>>,
    /// When the next message of a publisher is due.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    flood: Option<Flood>,
    /// The viewer of the flood has what it needs.
    flood_watched: bool,
    sent: Vec<Vec<Sent>>,
    silent: bool,
    /// The most that publishers were late because this tool had no time.
    behind: Duration,
    measuring: bool,
    findings: Findings,
    bytes: u64,
    joins: Vec<Duration>,
    left: u64,
    closed: u64,
    broken_publishers: u64,
    scratch: Vec<u8>,
    ready: Vec<usize>,
}

/// A moment's counters.
struct Snapshot {
    at: Instant,
    server: f64,
    client: f64,
    bytes: u64,
    left: u64,
    threads: BTreeMap<u32, f64>,
}

/// Runs a plan to its end.
pub fn run(plan: &Plan) -> Value {
    let clip = Clip::read(&plan.clip);
    let mut run = Run {
        plan,
        clip: &clip,
        epoll: Epoll::new().expect("epoll"),
        tls: plan.certificate.as_deref().map(link::believing),
        publishers: Vec::new(),
        viewers: Vec::new(),
        due: BinaryHeap::new(),
        flood: None,
        flood_watched: false,
        // The last one is the flood's, whose messages nobody compares.
        sent: (0..plan.publishers() + 1).map(|_| Vec::new()).collect(),
        silent: false,
        behind: Duration::ZERO,
        measuring: false,
        findings: Findings::default(),
        bytes: 0,
        joins: Vec::new(),
        left: 0,
        closed: 0,
        broken_publishers: 0,
        scratch: vec![0; SCRATCH],
        ready: Vec::new(),
    };
    run.go()
}

impl Run<'_> {
    fn go(&mut self) -> Value {
        let plan = self.plan;
        let seconds = Duration::from_secs_f64;
        let rss_empty = proc::resident_kib(plan.pid);
        self.publish();
        self.prepare_flood();
        self.turn_for(seconds(plan.lead));
        let rss_before = proc::resident_kib(plan.pid);
        let quiet = self.snapshot();

        let few = plan.streams * plan.viewers;
        let total = few + plan.crowd;
        let every = (few / plan.checked.max(1)).max(1);
        let begun = Instant::now();
        for index in 0..total {
            let at = begun + seconds(plan.ramp * index as f64 / total as f64);
            self.turn_until(at);
            let habit = match index % every == every / 2 && plan.checked > 0 {
                true => Habit::Check,
                false => Habit::Drain,
            };
            match index < few {
                true => self.join(index % plan.streams, habit),
                false => self.join(plan.streams, Habit::Drain),
            }
        }
        let deadline = Instant::now() + JOIN;
        while self.joins.len() < total && Instant::now() < deadline {
            self.turn_for(Duration::from_millis(20));
        }
        let joining = self.snapshot();
        let joined = self.joins.len();
        self.turn_for(seconds(plan.settle));
        if plan.silent {
            self.silent = true;
            self.turn_for(seconds(1.0));
        }
        let rss_joined = proc::resident_kib(plan.pid);
        let origin_joined = plan.origin_pid.map(proc::resident_kib);
        for index in 0..plan.stalled {
            self.join(index % plan.streams, Habit::Stall);
        }

        self.measuring = true;
        self.behind = Duration::ZERO;
        if let Some(flood) = &mut self.flood {
            flood.begin().expect("the flood begins");
            self.epoll.modify(&flood.socket, FLOOD, epoll::READ | epoll::WRITE).expect("epoll");
        }
        let before = self.snapshot();
        let (mut rss_peak, mut origin_peak) = (rss_joined, origin_joined);
        let half = if plan.churn > 0.0 { plan.seconds / 2.0 } else { plan.seconds };
        let end = before.at + seconds(half);
        while Instant::now() < end {
            self.turn_until(end.min(Instant::now() + seconds(1.0)));
            rss_peak = rss_peak.max(proc::resident_kib(plan.pid));
            origin_peak = origin_peak.max(plan.origin_pid.map(proc::resident_kib));
        }
        let after = self.snapshot();
        let churn = (plan.churn > 0.0).then(|| self.churn(&before, &after));
        self.measuring = false;
        if let Some(flood) = &mut self.flood {
            flood.stop();
        }
        let rss_after = proc::resident_kib(plan.pid);

        let gb = (after.bytes - before.bytes) as f64 / 1e9;
        let (server, client) = (after.server - before.server, after.client - before.client);
        let time = (after.at - before.at).as_secs_f64();
        let viewers = self.viewers.iter().flatten().count();
        let Findings { seen, lost, reordered, altered, retimed, ref mut video, ref mut audio } =
            self.findings;
        let span = |values: &mut Vec<Duration>| {
            json!({
                "p50": quantile(values, 0.5),
                "p99": quantile(values, 0.99),
                "max": quantile(values, 1.0),
                "count": values.len(),
            })
        };
        json!({
            "label": plan.label,
            "streams": plan.streams,
            "viewers": total,
            "viewers_at_end": viewers,
            "joined": joined,
            "closed": self.closed,
            "publishers_broken": self.broken_publishers,
            "publishers_live": self.publishers.iter().filter(|publisher| publisher.begun.is_some()).count(),
            "behind_ms": self.behind.as_secs_f64() * 1e3,
            "publisher_late": self.publishers.iter().map(|publisher| publisher.late).sum::<u64>(),
            "seconds": time,
            "gb": gb,
            "server_cpu": server,
            "client_cpu": client,
            "server_share": server / time,
            "client_share": client / time,
            "server_per_gb": server / gb,
            "both_per_gb": (server + client) / gb,
            "video_ms": span(video),
            "audio_ms": span(audio),
            "join_ms": span(&mut self.joins),
            "join_cpu_ms": (joining.server - quiet.server) * 1e3 / total.max(1) as f64,
            "churn": churn,
            "flood": self.flood.as_ref().map(|flood| flood.messages() as f64 / time),
            "threads": busiest(&before.threads, &after.threads, time),
            "check": {
                "seen": seen, "lost": lost, "reordered": reordered, "altered": altered, "retimed": retimed,
            },
            "rss_kib": {
                "empty": rss_empty, "before": rss_before, "joined": rss_joined, "peak": rss_peak, "after": rss_after,
                "origin_joined": origin_joined, "origin_peak": origin_peak,
            },
        })
    }

    /// Lets viewers come and go, and says what one costs beyond what was spent before.
    fn churn(&mut self, before: &Snapshot, quiet: &Snapshot) -> Value {
        let count = (self.plan.churn * self.plan.seconds / 2.0) as u64;
        for index in 0..count {
            self.turn_until(quiet.at + Duration::from_secs_f64(index as f64 / self.plan.churn));
            self.join(index as usize % self.plan.streams, Habit::Leave);
        }
        self.turn_for(Duration::from_millis(300));
        let after = self.snapshot();
        let share = (quiet.server - before.server) / (quiet.at - before.at).as_secs_f64();
        let spent = after.server - quiet.server - share * (after.at - quiet.at).as_secs_f64();
        let left = after.left - quiet.left;
        let mb = (after.bytes - quiet.bytes) as f64 / 1e6 / left.max(1) as f64;
        json!({ "count": count, "left": left, "cpu_ms": spent * 1e3 / left.max(1) as f64, "mb_each": mb })
    }

    fn publish(&mut self) {
        for index in 0..self.plan.publishers() {
            let target = self.target(self.plan.ingest, &self.plan.publish_app, index);
            let socket = connect(self.plan.ingest).expect("a publisher connects");
            let mut publisher = Publisher::new(socket, &target);
            self.epoll.add(&publisher.socket, self.publishers.len(), epoll::READ).expect("epoll");
            publisher.flush().expect("a publisher writes");
            self.publishers.push(publisher);
            // Many publishers do not send their keyframes all at once.
            self.turn_for(Duration::from_millis(4));
        }
        let deadline = Instant::now() + JOIN;
        while self.publishers.iter().any(|publisher| publisher.begun.is_none()) && Instant::now() < deadline {
            self.turn_for(Duration::from_millis(20));
        }
    }

    /// One more publisher, and its viewer, who both wait for the window.
    fn prepare_flood(&mut self) {
        if !self.plan.flood {
            return;
        }
        let index = self.plan.publishers();
        let target = self.target(self.plan.ingest, &self.plan.publish_app, index);
        let socket = connect(self.plan.ingest).expect("the flood connects");
        let flood = Flood::new(socket, &target).expect("the flood writes");
        self.epoll.add(&flood.socket, FLOOD, epoll::READ).expect("epoll");
        self.flood = Some(flood);
        let deadline = Instant::now() + JOIN;
        while self.flood.as_ref().is_some_and(|flood| !flood.is_ready()) && Instant::now() < deadline {
            self.turn_for(Duration::from_millis(20));
        }
        self.join(index, Habit::Drain);
        while !self.flood_watched && Instant::now() < deadline {
            self.turn_for(Duration::from_millis(20));
        }
    }

    fn join(&mut self, stream: usize, habit: Habit) {
        let address = self.plan.play.unwrap_or(self.plan.ingest);
        let begun = Instant::now();
        let Ok(socket) = connect(address) else {
            self.closed += 1;
            return;
        };
        let target = self.target(address, &self.plan.play_app, stream);
        let link = Link::new(socket, address, self.tls.as_ref());
        let by = if self.plan.http { By::Http } else { By::Rtmp };
        let viewer = Viewer::new(link, begun, &target, stream, habit, by);
        let token = self.plan.publishers() + self.viewers.len();
        self.epoll.add(&viewer.link.socket, token, epoll::READ).expect("epoll");
        self.viewers.push(Some(viewer));
    }

    fn target(&self, address: SocketAddr, app: &str, stream: usize) -> Target {
        let tc_url = format!("rtmp://{address}/{app}");
        Target { app: app.to_owned(), tc_url, stream_key: format!("s{stream}") }
    }

    fn turn_for(&mut self, time: Duration) {
        self.turn_until(Instant::now() + time);
    }

    /// Sends and reads until a moment.
    fn turn_until(&mut self, end: Instant) {
        loop {
            let now = self.send_due();
            let next = self.due.peek().map_or(end, |Reverse((at, _))| end.min(*at));
            let wait = next.saturating_duration_since(now);
            let millis = wait.as_micros().div_ceil(1000) as i32;
            let mut ready = std::mem::take(&mut self.ready);
            self.epoll.wait(&mut ready, millis).expect("epoll");
            for &token in &ready {
                match token.checked_sub(self.plan.publishers()) {
                    None => self.serve_publisher(token),
                    Some(_) if token == FLOOD => self.serve_flood(),
                    Some(viewer) => self.serve_viewer(viewer),
                }
            }
            self.ready = ready;
            if Instant::now() >= end {
                return;
            }
        }
    }

    fn send_due(&mut self) -> Instant {
        let mut now = Instant::now();
        // Under too much load the sockets still get their turns.
        for _ in 0..SENDS {
            let Some(&Reverse((at, index))) = self.due.peek() else { break };
            if at > now {
                break;
            }
            self.due.pop();
            self.behind = self.behind.max(now - at);
            if !self.silent {
                let publisher = &mut self.publishers[index];
                match publisher.send(self.clip, self.sent.get_mut(index)) {
                    Ok(()) => {
                        if publisher.is_blocked() {
                            let interest = epoll::READ | epoll::WRITE;
                            self.epoll.modify(&publisher.socket, index, interest).expect("epoll");
                        }
                        let next = publisher.due(self.clip).expect("it has begun");
                        self.due.push(Reverse((next, index)));
                    }
                    Err(_) => self.broken_publishers += 1,
                }
            }
            now = Instant::now();
        }
        now
    }

    fn serve_publisher(&mut self, index: usize) {
        let publisher = &mut self.publishers[index];
        let (had_begun, was_blocked) = (publisher.begun.is_some(), publisher.is_blocked());
        if !publisher.ready(&mut self.scratch, self.clip) {
            self.broken_publishers += 1;
            // Closed sockets are ready for ever: nothing more is heard from this one.
            drop(self.epoll.modify(&publisher.socket, index, 0));
            return;
        }
        if let Some(code) = publisher.refused.take() {
            eprintln!("a publisher was refused: {code}");
        }
        if !had_begun && let Some(at) = publisher.due(self.clip) {
            self.due.push(Reverse((at, index)));
        }
        if was_blocked && !publisher.is_blocked() {
            self.epoll.modify(&publisher.socket, index, epoll::READ).expect("epoll");
        }
    }

    fn serve_flood(&mut self) {
        let Some(flood) = &mut self.flood else { return };
        if !flood.ready(&mut self.scratch) {
            self.broken_publishers += 1;
            self.flood = None;
        }
    }

    fn serve_viewer(&mut self, index: usize) {
        let Some(viewer) = &mut self.viewers[index] else { return };
        let sent = &self.sent[viewer.stream];
        let (now, n) = viewer.ready(&mut self.scratch, sent, self.measuring, &mut self.findings);
        self.bytes += n as u64;
        match (now, viewer.habit) {
            (Now::Same, _) => {}
            (Now::Joined, Habit::Leave) => {
                self.left += 1;
                self.viewers[index] = None;
            }
            (Now::Joined, Habit::Stall) => {
                let token = self.plan.publishers() + index;
                self.epoll.modify(&viewer.link.socket, token, 0).expect("epoll");
            }
            (Now::Joined, _) if viewer.stream == self.plan.publishers() => self.flood_watched = true,
            (Now::Joined, _) => self.joins.extend(viewer.joined),
            (Now::Closed, habit) => {
                if habit != Habit::Stall {
                    self.closed += 1;
                }
                self.viewers[index] = None;
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            at: Instant::now(),
            server: proc::cpu_seconds(self.plan.pid),
            client: proc::cpu_seconds(std::process::id()),
            bytes: self.bytes,
            left: self.left,
            threads: proc::thread_seconds(self.plan.pid),
        }
    }
}

/// What each thread took of a core, the busiest first.
fn busiest(before: &BTreeMap<u32, f64>, after: &BTreeMap<u32, f64>, time: f64) -> Vec<f64> {
    let since = |thread| before.get(thread).copied().unwrap_or(0.0);
    let mut shares: Vec<f64> = after.iter().map(|(thread, now)| (now - since(thread)) / time).collect();
    shares.sort_unstable_by(|a, b| b.total_cmp(a));
    shares.truncate(BUSIEST);
    shares
}

/// Makes a connection: at once, on the loopback, unless the server's queue is full.
fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    Ok(socket)
}
