//! The servers under test, each a process of its own on the first core.

use super::floor::Share;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server must be ready this soon.
const READY: Duration = Duration::from_secs(10);

/// A server that is told to stop has stopped after this, or is killed.
const STOP: Duration = Duration::from_secs(5);

/// The certificate of servers that speak TLS, which `scripts/bench` makes.
pub const CERTIFICATE: &str = "bench.pem";

/// What there is to measure.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An ingest node with its reactor, viewed where playback nodes pull; more flags.
    Lb(Vec<String>),
    /// The same, viewed by TLS.
    Tls,
    /// The same as the first on both cores, beside what publishes and watches.
    Wide,
    /// An ingest node with its reactor and a playback node, which is what is measured; the latter's flags.
    Pair(Vec<String>),
    /// The same, viewed as FLV over HTTP.
    HttpPair,
    /// The same on both cores.
    WidePair,
    Nginx,
    Floor(Share),
}

/// A running server. Dropped, its processes end.
pub struct Server {
    /// The last one is measured.
    children: Vec<Child>,
    pub ingest: SocketAddr,
    pub play: SocketAddr,
    /// Where viewers play over HTTP; the same where they cannot.
    pub http: SocketAddr,
    pub publish_app: &'static str,
    pub play_app: &'static str,
}

/// Where the programs are.
pub struct Programs {
    pub lb: PathBuf,
    pub nginx: PathBuf,
    pub scratch: PathBuf,
}

impl Server {
    pub fn start(kind: &Kind, programs: &Programs) -> Server {
        match kind {
            Kind::Lb(flags) => {
                let reactor = ["--reactor-listen", "127.0.0.1:0"];
                ingest(lb(pinned(&programs.lb), programs, "ingest,reactor", flags, &reactor))
            }
            Kind::Tls => {
                let file = |name: &str| programs.scratch.join(name).display().to_string();
                let (certificate, key) = (file(CERTIFICATE), file("bench.key"));
                let flags = ["--rtmps-port", "0", "--tls-cert", &certificate, "--tls-key", &key];
                let more = [&["--reactor-listen", "127.0.0.1:0"][..], &flags].concat();
                let (child, ready) = lb(pinned(&programs.lb), programs, "ingest,reactor", &[], &more);
                let play = address(&ready, "rtmps");
                let mut server = ingest((child, ready));
                server.play = play;
                server
            }
            Kind::Wide => {
                let reactor = ["--reactor-listen", "127.0.0.1:0"];
                ingest(lb(Command::new(&programs.lb), programs, "ingest,reactor", &[], &reactor))
            }
            Kind::Pair(flags) => pair(|| pinned(&programs.lb), programs, flags),
            Kind::HttpPair => {
                let mut server = pair(|| pinned(&programs.lb), programs, &[]);
                server.play = server.http;
                server
            }
            Kind::WidePair => pair(|| Command::new(&programs.lb), programs, &[]),
            Kind::Nginx => nginx(programs),
            Kind::Floor(share) => {
                let share = clap::ValueEnum::to_possible_value(share).expect("none is hidden");
                let mut command = pinned(&std::env::current_exe().expect("this program"));
                command.args(["floor", share.get_name()]).stdout(Stdio::piped());
                let mut child = command.spawn().expect("the floor starts");
                let line = first_line(&mut child);
                let port = line.rsplit(' ').next().and_then(|port| port.trim().parse().ok()).expect("a port");
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                live(child, address)
            }
        }
    }

    /// The process that is measured.
    pub fn pid(&self) -> u32 {
        self.children.last().map_or(0, Child::id)
    }

    /// The process that the measured one pulls from.
    pub fn origin_pid(&self) -> Option<u32> {
        let (_, others) = self.children.split_last()?;
        others.last().map(Child::id)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            // SAFETY: a system call without pointers, for a child that was not waited for yet.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
            let deadline = Instant::now() + STOP;
            while child.try_wait().expect("wait").is_none() {
                if Instant::now() > deadline {
                    drop(child.kill());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// An ingest node with its reactor, and a playback node.
fn pair(program: impl Fn() -> Command, programs: &Programs, flags: &[String]) -> Server {
    let reactor = ["--reactor-listen", "127.0.0.1:0"];
    let (first, ready) = lb(program(), programs, "ingest,reactor", &[], &reactor);
    let reactor = format!("http://{}", address(&ready, "reactor"));
    let (second, other) = lb(
        program(),
        programs,
        "playback",
        flags,
        &["--reactor-url", &reactor, "--http-listen", "127.0.0.1:0"],
    );
    Server {
        children: vec![first, second],
        ingest: address(&ready, "rtmp"),
        play: address(&other, "rtmp"),
        http: address(&other, "http"),
        publish_app: "ingest",
        play_app: "live",
    }
}

/// An ingest node, viewed where playback nodes pull.
fn ingest((child, ready): (Child, String)) -> Server {
    let address = address(&ready, "rtmp");
    Server {
        children: vec![child],
        ingest: address,
        play: address,
        http: address,
        publish_app: "ingest",
        play_app: "pull_source",
    }
}

fn live(child: Child, address: SocketAddr) -> Server {
    Server {
        children: vec![child],
        ingest: address,
        play: address,
        http: address,
        publish_app: "live",
        play_app: "live",
    }
}

/// A program on the server's core.
fn pinned(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program).stdin(Stdio::null());
    command
}

/// Starts lb, and gives its line of readiness.
fn lb(
    mut command: Command,
    programs: &Programs,
    role: &str,
    flags: &[String],
    more: &[&str],
) -> (Child, String) {
    command.args(["--role", role, "--rtmp-port", "0", "--admin-listen", "127.0.0.1:0", "--log", "warn"]);
    command.args(["--drain-timeout", "1s"]).args(more).args(flags).stdout(Stdio::piped());
    let log = File::options().create(true).append(true).open(programs.scratch.join("lb.log"));
    command.stderr(log.expect("a log"));
    let mut child = command.spawn().expect("lb starts");
    let line = first_line(&mut child);
    assert!(line.starts_with("lb ready: "), "lb is not ready, see {}/lb.log", programs.scratch.display());
    (child, line)
}

/// What the line of readiness says of one address, as the loopback reaches it.
fn address(ready: &str, name: &str) -> SocketAddr {
    let text = ready.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let address: SocketAddr = text.and_then(|text| text.parse().ok()).expect("an address");
    SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()))
}

fn first_line(child: &mut Child) -> String {
    let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    // Standard output stays open, so that nothing written there later fails.
    std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
    line
}

/// nginx with the module's defaults, but for `wait_key`: other servers begin with a keyframe too.
fn nginx(programs: &Programs) -> Server {
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let scratch = programs.scratch.display();
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_rtmp_module.so;
daemon off; master_process off; worker_processes 1;
error_log {scratch}/nginx.log error; pid {scratch}/nginx.pid;
events {{ worker_connections 19000; }}
rtmp {{ access_log off; server {{
    listen 127.0.0.1:{port}; ping 10m;
    application live {{ live on; wait_key on; }}
}} }}
"
    );
    let path = programs.scratch.join("nginx.conf");
    fs::write(&path, config).expect("a configuration");
    let child = pinned(&programs.nginx).arg("-c").arg(&path).spawn().expect("nginx starts");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let deadline = Instant::now() + READY;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nginx is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    live(child, address)
}
