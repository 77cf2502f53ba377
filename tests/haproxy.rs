//! The HAProxy configuration that is shipped, with the real HAProxy in front of real nodes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::http;
use common::lb::Lb;
use common::process::{self, Peer};
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, free_port, wait_for};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PUBLISHERS: usize = 10;
const VIEWERS: usize = 200;

/// A node that is started again at the same ports.
struct Node {
    role: &'static str,
    id: String,
    reactor: String,
    rtmp: u16,
    agent: u16,
    http: u16,
    lb: Option<Lb>,
}

impl Node {
    fn start(role: &'static str, number: usize, reactor: &str) -> Node {
        let [rtmp, agent, http] = [0; 3].map(|_| free_port());
        let id = format!("{role}-{number}");
        let mut node = Node { role, id, reactor: reactor.to_owned(), rtmp, agent, http, lb: None };
        node.begin();
        node
    }

    fn begin(&mut self) {
        let (rtmp, agent) = (self.rtmp.to_string(), format!("127.0.0.1:{}", self.agent));
        let http = format!("127.0.0.1:{}", self.http);
        let mut args = vec!["--role", self.role, "--node-id", &self.id, "--reactor-url", &self.reactor];
        args.extend([
            "--rtmp-port",
            &rtmp,
            "--agent-listen",
            &agent,
            "--proxy-protocol-from",
            "127.0.0.2/32",
        ]);
        args.extend(["--drain-timeout", "4s", "--heartbeat", "1s"]);
        if self.role == "playback" {
            args.extend(["--http-listen", &http]);
        }
        self.lb = Some(Lb::start(&args));
        wait_for("the node to be ready", SOON, || self.agent_says().starts_with("ready up"));
    }

    /// Drains, ends, and starts again.
    fn restart(&mut self) {
        let status = self.lb.take().unwrap().stop(libc::SIGTERM);
        assert_eq!(status.code(), Some(0));
        self.begin();
    }

    fn agent_says(&self) -> String {
        let mut said = String::new();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.agent));
        TcpStream::connect(address).and_then(|mut socket| socket.read_to_string(&mut said)).ok();
        said
    }

    fn lb(&self) -> &Lb {
        self.lb.as_ref().unwrap()
    }
}

/// HAProxy with the shipped configuration.
struct Proxy {
    publishers: SocketAddr,
    viewers: SocketAddr,
    http: SocketAddr,
    _process: Peer,
}

impl Proxy {
    fn start(ingest: &[Node], playback: &[Node]) -> Proxy {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deploy/haproxy/haproxy.cfg");
        let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let [publishers, viewers, http] = [0; 3].map(|_| local(free_port()));
        let mut variables = vec![
            ("SOURCE".to_owned(), "127.0.0.2".to_owned()),
            ("PUBLISHERS".to_owned(), publishers.to_string()),
            ("VIEWERS".to_owned(), viewers.to_string()),
            ("VIEWERS_HTTP".to_owned(), http.to_string()),
        ];
        for (kind, nodes) in [("INGEST", ingest), ("PLAYBACK", playback)] {
            for (number, node) in nodes.iter().enumerate() {
                let name = format!("{kind}_{}", number + 1);
                variables.push((name.clone(), local(node.rtmp).to_string()));
                variables.push((format!("{name}_AGENT"), node.agent.to_string()));
                variables.push((format!("{name}_HTTP"), local(node.http).to_string()));
            }
        }
        let program =
            ["/usr/sbin/haproxy", "/usr/bin/haproxy"].into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("HAProxy is installed: run scripts/setup test");
        let command = |flags: &[&str]| {
            let mut command = Command::new(program);
            command.args(flags).arg("-f").arg(&file).envs(variables.clone());
            command
        };
        let checked = process::run(command(&["-c"]), SOON);
        assert_eq!(checked.code, Some(0), "{}{}", checked.stdout, checked.stderr);
        let mut run = command(&["-db"]);
        run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Peer::new(process::spawn_tool(run));
        wait_for("HAProxy", SOON, || TcpStream::connect(publishers).is_ok());
        Proxy { publishers, viewers, http, _process: process }
    }
}

fn cluster() -> (Lb, [Node; 2], [Node; 2], Proxy) {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let ingest = [1, 2].map(|number| Node::start("ingest", number, &url));
    let playback = [1, 2].map(|number| Node::start("playback", number, &url));
    let proxy = Proxy::start(&ingest, &playback);
    (reactor, ingest, playback, proxy)
}

#[test]
fn a_node_that_drains_gets_nobody_new_and_peers_have_their_own_addresses() {
    let (reactor, ingest, mut playback, proxy) = cluster();
    let publisher = Publisher::start(proxy.publishers, "ingest", "x", Media::default());
    publisher.wait_for_keyframe();
    wait_for("the registration", SOON, || http::get(reactor.reactor(), "/streams/x").status == 200);
    let viewer = Viewer::start(proxy.viewers, "live", "x");
    viewer.wait_for_keyframe(1, SOON);
    let mut flv = TcpStream::connect(proxy.http).unwrap();
    std::io::Write::write_all(&mut flv, b"GET /live/x.flv HTTP/1.1\r\n\r\n").unwrap();
    let mut head = [0; 15];
    flv.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let log: String = ingest.iter().map(|node| node.lb().log()).collect();
    assert!(log.contains("peer=127.0.0.1:"), "{log}");
    drop((viewer, flv));

    // One drains: whoever comes once it takes nobody any more is served by the other, at the first try.
    let first = playback[0].lb.take().unwrap();
    first.signal(libc::SIGTERM);
    wait_for("its port to be closed", SOON, || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, playback[0].rtmp)).is_err()
    });
    let viewers: Vec<Viewer> = (0..6).map(|_| Viewer::start(proxy.viewers, "live", "x")).collect();
    for viewer in &viewers {
        viewer.wait_for_keyframe(1, SOON);
    }
    // Those of before may take a moment to be gone.
    playback[1].lb().wait_for_metric("lb_viewers", 6.0, SOON);
    assert_eq!(first.wait().code(), Some(0));
}

#[test]
fn a_rolling_restart_brings_every_stream_back_to_every_viewer() {
    let (reactor, mut ingest, mut playback, proxy) = cluster();
    let name = |number: usize| format!("s{}", number % PUBLISHERS);
    let media = Media { comes_back: Some(Duration::from_millis(500)), rate: 15, gop: 15, ..Media::default() };
    let _publishers: Vec<_> = (0..PUBLISHERS)
        .map(|number| Publisher::start(proxy.publishers, "ingest", &name(number), media))
        .collect();
    for number in 0..PUBLISHERS {
        let path = format!("/streams/{}", name(number));
        wait_for("the registration", SOON, || http::get(reactor.reactor(), &path).status == 200);
    }
    // Each viewer comes back as players do: another one takes its place.
    let start = |number: usize| Viewer::start(proxy.viewers, "live", &name(number));
    let mut seats: Vec<Vec<Viewer>> = (0..VIEWERS).map(|number| vec![start(number)]).collect();
    let watches =
        |viewer: &Viewer, since: Instant| viewer.seen().arrivals.last().is_some_and(|last| last.at > since);
    let mut settle = |what: &str| {
        let since = Instant::now();
        wait_for(what, 3 * SOON, || {
            for (number, seat) in seats.iter_mut().enumerate() {
                if seat.last().is_some_and(|viewer| !viewer.is_connected()) {
                    seat.push(start(number));
                }
            }
            seats.iter().all(|seat| seat.last().is_some_and(|viewer| watches(viewer, since)))
        });
    };
    settle("every viewer to watch");
    for node in ingest.iter_mut().chain(&mut playback) {
        node.restart();
        settle("every viewer to watch again");
    }
    let gaps = seats.iter().map(|seat| {
        let mut times: Vec<Instant> = seat
            .iter()
            .flat_map(|viewer| viewer.seen().arrivals.iter().map(|a| a.at).collect::<Vec<_>>())
            .collect();
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    });
    let mut gaps: Vec<Duration> = gaps.collect();
    gaps.sort_unstable();
    println!(
        "rolling restart of four nodes, {VIEWERS} viewers: gaps p50 {:?}, worst {:?}",
        gaps[VIEWERS / 2],
        gaps[VIEWERS - 1]
    );
}
