//! Viewers over HTTP: the stream as FLV and by WebSocket, with real processes and players.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::ffmpeg::{self, Clip};
use common::http;
use common::lb::Lb;
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, wait_for};
use lb::media::{Packet, flv};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tungstenite::Message;

const TAG_MAX: usize = 8 << 20;

/// A whole cluster in one process.
fn all(more: &[&str]) -> Lb {
    Lb::start(&[&["--role", "all"], more].concat())
}

/// Publishes, and waits until the stream is known.
fn publish(node: &Lb, name: &str) -> Publisher {
    let publisher = Publisher::start(node.rtmp(), "ingest", name, Media::default());
    publisher.wait_for_keyframe();
    wait_for("the registration", SOON, || {
        http::get(node.reactor(), &format!("/streams/{name}")).status == 200
    });
    publisher
}

/// A player that reads FLV from an HTTP answer.
struct Player {
    socket: TcpStream,
    flv: flv::Reader,
    unread: Vec<u8>,
}

impl Player {
    #[track_caller]
    fn start(server: SocketAddr, path: &str) -> Player {
        let (socket, head, unread) = ask(server, &format!("GET {path} HTTP/1.1\r\nHost: lb\r\n\r\n"));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Type: video/x-flv\r\n"), "{head}");
        assert!(head.contains("\r\nAccess-Control-Allow-Origin: *\r\n"), "{head}");
        Player { socket, flv: flv::Reader::new(TAG_MAX), unread }
    }

    /// The next packet; nothing at the end of the stream.
    fn next(&mut self) -> Option<Packet> {
        loop {
            let mut input = &self.unread[..];
            let packet = self.flv.read(&mut input).expect("FLV");
            self.unread = input.to_vec();
            if packet.is_some() {
                return packet;
            }
            let mut bytes = [0; 16 << 10];
            match self.socket.read(&mut bytes).expect("the stream goes on") {
                0 => return None,
                n => self.unread.extend_from_slice(&bytes[..n]),
            }
        }
    }
}

/// Sends a request, and gives back the head of the answer and what came after it.
#[track_caller]
fn ask(server: SocketAddr, request: &str) -> (TcpStream, String, Vec<u8>) {
    let mut socket = TcpStream::connect(server).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut got = Vec::new();
    loop {
        if let Some(end) = got.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let rest = got.split_off(end + 4);
            return (socket, String::from_utf8(got).unwrap(), rest);
        }
        let mut bytes = [0; 4096];
        let n = socket.read(&mut bytes).expect("an answer");
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&bytes[..n]);
    }
}

#[track_caller]
fn status(server: SocketAddr, request: &str) -> String {
    let (_, head, _) = ask(server, request);
    head.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_player_gets_every_frame_as_flv() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let ingest = Lb::start(&["--role", "ingest", "--reactor-url", &url]);
    let playback = Lb::start(&["--role", "playback", "--reactor-url", &url]);
    let _publisher = ffmpeg::publish(Clip::Alpha, &ingest.rtmp_url("ingest", "alpha"));
    wait_for("the registration", SOON, || http::get(reactor.reactor(), "/streams/alpha").status == 200);
    assert_eq!(playback.metric("lb_pulls_in"), 0.0, "nobody watches");
    ffmpeg::record(&playback.http_url("live", "alpha"), 4).assert_shows(Clip::Alpha, 4);
    playback.wait_for_metric("lb_pulls_in", 0.0, SOON);
}

#[test]
fn a_late_player_starts_with_headers_and_a_keyframe_and_time_goes_on() {
    let node = all(&[]);
    let _publisher = publish(&node, "x");
    for _ in 0..2 {
        let mut player = Player::start(node.http(), "/live/x.flv");
        let first: Vec<Packet> = std::iter::from_fn(|| player.next()).take(80).collect();
        let frame = first.iter().position(|packet| packet.kind.is_video_frame()).unwrap();
        assert!(first[frame].kind.is_keyframe());
        assert_eq!(first[..frame].iter().filter(|packet| packet.kind.is_sequence_header()).count(), 2);
        let times: Vec<u32> = first
            .iter()
            .filter(|packet| packet.kind.is_video_frame())
            .map(|packet| packet.timestamp)
            .collect();
        assert!(times.windows(2).all(|pair| pair[1] > pair[0]), "{times:?}");
    }
}

/// A line between a player and a node, which counts how often the player has to wait for an answer before it can go on.
struct Line {
    address: SocketAddr,
    turns: Arc<AtomicUsize>,
}

impl Line {
    fn to(server: SocketAddr) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, turns) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = turns.clone();
        std::thread::spawn(move || {
            let (player, _) = listener.accept().unwrap();
            let node = TcpStream::connect(server).unwrap();
            let answered = Arc::new(AtomicBool::new(true));
            let (from, to, answers) =
                (node.try_clone().unwrap(), player.try_clone().unwrap(), answered.clone());
            std::thread::spawn(move || carry(from, to, || answers.store(true, SeqCst)));
            carry(player, node, || {
                counted.fetch_add(usize::from(answered.swap(false, SeqCst)), SeqCst);
            });
        });
        Line { address, turns }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, before: impl Fn()) {
    let mut bytes = [0; 16 << 10];
    while let Ok(n) = from.read(&mut bytes) {
        before();
        if n == 0 || to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
}

/// With the one that TCP takes that is two round trips: 100 ms on a line of 50 ms.
#[test]
fn a_player_has_its_first_keyframe_one_round_trip_after_it_is_connected() {
    let node = all(&[]);
    let _publisher = publish(&node, "x");
    let first = Viewer::start(node.rtmp(), "live", "x");
    first.wait_for_keyframe(1, SOON);

    let line = Line::to(node.http());
    let mut player = Player::start(line.address, "/live/x.flv");
    while !player.next().expect("the stream goes on").kind.is_keyframe() {}
    assert_eq!(line.turns.load(SeqCst), 1);

    let line = Line::to(node.rtmp());
    let viewer = Viewer::start(line.address, "live", "x");
    viewer.wait_for_keyframe(1, SOON);
    let turns = line.turns.load(SeqCst);
    assert!(turns > 1, "RTMP has a handshake: {turns}");
    println!("round trips to the first keyframe, after that of TCP: 1 over HTTP, {turns} over RTMP");
}

#[test]
fn a_player_keeps_its_picture_when_the_publisher_moves() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let [a, b] = [0, 1].map(|_| Lb::start(&["--role", "ingest", "--reactor-url", &url]));
    let playback = Lb::start(&["--role", "playback", "--reactor-url", &url]);
    let first = Publisher::start(a.rtmp(), "ingest", "x", Media::default());
    first.wait_for_keyframe();
    wait_for("the registration", SOON, || http::get(reactor.reactor(), "/streams/x").status == 200);
    let mut player = Player::start(playback.http(), "/live/x.flv");
    let session =
        |packet: &Packet| packet.kind.is_video_frame().then(|| common::endpoint::Mark::read(&packet.body, 5));
    let mut of = |wanted| loop {
        let packet = player.next().expect("the stream goes on");
        if session(&packet).flatten().is_some_and(|mark| mark.session == wanted) {
            return packet;
        }
    };
    of(1);
    let _second = Publisher::start(b.rtmp(), "ingest", "x", Media { session: 2, ..Media::default() });
    assert!(of(2).kind.is_keyframe());
}

#[test]
fn a_websocket_brings_the_same_stream() {
    let node = all(&[]);
    let _publisher = publish(&node, "x");
    let socket = TcpStream::connect(node.http()).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let (mut socket, _) = tungstenite::client(format!("ws://{}/live/x.flv", node.http()), socket).unwrap();
    let (mut reader, mut frames) = (flv::Reader::new(TAG_MAX), 0);
    socket.send(Message::Ping("are you there?".into())).unwrap();
    let mut pong = false;
    while frames < 60 || !pong {
        match socket.read().unwrap() {
            Message::Binary(bytes) => {
                let mut input = &bytes[..];
                while let Some(packet) = reader.read(&mut input).unwrap() {
                    assert!(frames > 0 || !packet.kind.is_video_frame() || packet.kind.is_keyframe());
                    frames += usize::from(packet.kind.is_video_frame());
                }
                assert!(input.is_empty());
            }
            Message::Pong(payload) => pong = &payload[..] == b"are you there?",
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(node.metric("lb_viewers"), 1.0);
    socket.close(None).unwrap();
    let end = loop {
        match socket.read() {
            Ok(Message::Close(_)) => break "closed",
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(end, "closed");
    node.wait_for_metric("lb_viewers", 0.0, SOON);
}

#[test]
fn a_player_that_talks_all_the_time_is_heard_at_a_pace_to_its_last_word() {
    let node = all(&[]);
    let _publisher = publish(&node, "x");
    let socket = TcpStream::connect(node.http()).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let (mut socket, _) = tungstenite::client(format!("ws://{}/live/x.flv", node.http()), socket).unwrap();
    let begun = Instant::now();
    // Each waits for the answer to the one before, so that none comes in the same read.
    for number in 0..60_u8 {
        socket.send(Message::Ping(vec![number].into())).unwrap();
        while !matches!(socket.read().unwrap(), Message::Pong(payload) if payload[..] == [number]) {}
    }
    // Thirty at once, fifteen a second then.
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
    socket.close(None).unwrap();
    node.wait_for_metric("lb_viewers", 0.0, SOON);
}

#[test]
fn what_cannot_be_played_is_answered_as_a_web_server_would() {
    let node = all(&[]);
    let get = |path: &str| status(node.http(), &format!("GET {path} HTTP/1.1\r\nHost: lb\r\n\r\n"));
    let _publisher = publish(&node, "x");
    wait_for("the reactor to know what there is", 2 * SOON, || {
        http::get(node.reactor(), "/readyz").status == 200
    });
    assert_eq!(get("/live/nobody.flv"), "HTTP/1.1 404 Not Found");
    assert_eq!(get("/live/x"), "HTTP/1.1 404 Not Found");
    assert_eq!(get("/ingest/x.flv"), "HTTP/1.1 404 Not Found");
    assert_eq!(get("/pull_source/x.flv"), "HTTP/1.1 404 Not Found", "that is for nodes");
    assert_eq!(status(node.http(), "POST /live/x.flv HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(status(node.http(), "\x03what is this\r\n\r\n"), "HTTP/1.1 400 Bad Request");
    let (_, head, _) = ask(node.http(), "OPTIONS /live/x.flv HTTP/1.1\r\nOrigin: http://a\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 204") && head.contains("\r\nAccess-Control-Allow-Methods: GET\r\n"));
    assert!(node.metric("lb_refusals_total{reason=\"unknown_stream\"}") >= 1.0);
}

#[test]
fn a_viewer_needs_the_token_that_it_would_need_over_rtmp() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "a-secret-that-is-long-enough-for-hs256-keys\n").unwrap();
    let keys = keys.path().to_str().unwrap();
    let sign = |action: &str| {
        let signed = common::lb::run(&["sign", action, "x", "--ttl", "1h", "--auth-jwt-keys", keys]);
        assert_eq!(signed.code, Some(0), "{}", signed.stderr);
        let token = signed.stdout.split("token=").nth(1).expect("a token");
        token.split_whitespace().next().unwrap().to_owned()
    };
    let node = all(&["--auth-jwt-keys", keys]);
    let publisher =
        Publisher::start(node.rtmp(), "ingest", &format!("x?token={}", sign("publish")), Media::default());
    publisher.wait_for_keyframe();
    let get = |path: &str, fields: &str| {
        status(node.http(), &format!("GET {path} HTTP/1.1\r\nHost: lb\r\n{fields}\r\n"))
    };
    assert_eq!(get("/live/x.flv", ""), "HTTP/1.1 403 Forbidden");
    let play = sign("play");
    assert_eq!(get(&format!("/live/x.flv?token={play}"), ""), "HTTP/1.1 200 OK");
    assert_eq!(get("/live/x.flv", &format!("Authorization: Bearer {play}\r\n")), "HTTP/1.1 200 OK");
    assert!(!node.log().contains(&play));
}

#[test]
fn a_node_that_stops_ends_its_players_between_two_tags() {
    let node = all(&["--drain-timeout", "3s"]);
    let _publisher = publish(&node, "x");
    let mut player = Player::start(node.http(), "/live/x.flv");
    assert!(player.next().is_some());
    node.signal(libc::SIGTERM);
    while player.next().is_some() {}
    assert!(player.unread.is_empty(), "{} bytes of a tag", player.unread.len());
}

#[test]
fn a_silent_or_endless_peer_costs_its_own_connection() {
    let node = all(&["--handshake-timeout", "1s"]);
    let _publisher = publish(&node, "x");
    let mut silent = TcpStream::connect(node.http()).unwrap();
    silent.set_read_timeout(Some(SOON)).unwrap();
    silent.write_all(b"GET /live/x.flv HTTP/1.1\r\nCookie: ").unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0, "it is closed");
    let long = format!("GET /live/x.flv HTTP/1.1\r\nCookie: {}", "a".repeat(20_000));
    assert_eq!(status(node.http(), &long), "HTTP/1.1 431 Request Header Fields Too Large");
    let mut player = Player::start(node.http(), "/live/x.flv");
    let mut talker = Player::start(node.http(), "/live/x.flv");
    wait_for("the talker's end", SOON, || talker.socket.write_all(&[0; 16 << 10]).is_err());
    assert!(std::iter::from_fn(|| player.next()).take(60).count() == 60);
    assert_eq!(node.metric("lb_refusals_total{reason=\"negotiation\"}"), 1.0);
    // It was kept waiting before it was closed, and counted then.
    node.wait_for_metric("lb_refusals_total{reason=\"idle_bytes\"}", 1.0, SOON);
    assert!(node.log().contains("it sends more than a peer that does not publish may"), "{}", node.log());
}
