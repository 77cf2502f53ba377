//! HLS from a playback node's HTTP port: on demand, with real ffmpeg on both sides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::ffmpeg::{self, Clip};
use common::lb::Lb;
use common::{SOON, http, process, root, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;
use tempfile::{NamedTempFile, TempDir};

/// A cluster whose playback node makes HLS of what somebody plays that way.
struct Cluster {
    reactor: Lb,
    ingest: Lb,
    playback: Lb,
    folder: TempDir,
    _config: NamedTempFile,
}

impl Cluster {
    fn start(flags: &[&str]) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let text =
            std::fs::read_to_string(root().join("mmids-configs/scenarios/dynamic-playback.mmids")).unwrap();
        let text = text.replace("/tmp/lb-hls", folder.path().to_str().unwrap());
        let mut config = NamedTempFile::new().unwrap();
        config.write_all(text.as_bytes()).unwrap();
        let reactor = Lb::start(&["--role", "reactor"]);
        let url = reactor.reactor_url();
        let ingest = Lb::start(&["--role", "ingest", "--reactor-url", &url]);
        let own = ["--role", "playback", "--reactor-url", &url, "--config", config.path().to_str().unwrap()];
        let playback = Lb::start(&[&own[..], flags].concat());
        Cluster { reactor, ingest, playback, folder, _config: config }
    }

    fn publish(&self, name: &str) -> process::Peer {
        let publisher = ffmpeg::publish(Clip::Alpha, &self.ingest.rtmp_url("ingest", name));
        let path = format!("/streams/{name}");
        wait_for("the name", SOON, || http::get(self.reactor.reactor(), &path).status == 200);
        publisher
    }

    fn url(&self, file: &str) -> String {
        format!("http://{}/live/{file}", self.playback.http())
    }
}

/// An answer with its head.
struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Asks on a connection that stays.
fn ask(stream: &mut BufReader<TcpStream>, path: &str) -> Answer {
    write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "the connection ended: {head}");
    }
    let mut answer = Answer { head, body: Vec::new() };
    let length = answer.field("content-length").unwrap_or("0").parse().unwrap();
    answer.body.resize(length, 0);
    stream.read_exact(&mut answer.body).unwrap();
    answer
}

fn connect(server: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    BufReader::new(stream)
}

/// The codecs that ffprobe finds at a URL.
#[track_caller]
fn probe(url: &str) -> String {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-show_entries", "stream=codec_name,width", "-of", "csv=p=0", url]);
    let probed = process::run(command, Duration::from_secs(60));
    assert_eq!(probed.code, Some(0), "ffprobe: {}", probed.stderr);
    probed.stdout
}

#[test]
fn a_stream_is_pulled_and_cut_while_somebody_plays_it() {
    let cluster = Cluster::start(&[]);
    let _publisher = cluster.publish("team/x");
    assert!(cluster.playback.children().is_empty(), "nobody plays, so nothing is cut");
    let seen = probe(&cluster.url("team/x.m3u8"));
    assert!(seen.contains("h264,320") && seen.contains("aac"), "{seen}");
    assert_eq!(cluster.playback.metric("lb_pulls_in"), 1.0);

    let mut stream = connect(cluster.playback.http());
    let playlist = ask(&mut stream, "/live/team/x.m3u8");
    assert_eq!(playlist.status(), "200", "{}", playlist.head);
    assert_eq!(playlist.field("content-type"), Some("application/vnd.apple.mpegurl"));
    assert_eq!(playlist.field("cache-control"), Some("no-cache"));
    assert_eq!(playlist.field("access-control-allow-origin"), Some("*"));
    let text = String::from_utf8(playlist.body).unwrap();
    let name = text.lines().rfind(|line| line.ends_with(".ts")).unwrap_or_else(|| panic!("{text}"));
    // On the same connection.
    let segment = ask(&mut stream, &format!("/live/team/{name}"));
    assert_eq!((segment.status(), segment.field("content-type")), ("200", Some("video/mp2t")));
    assert_eq!(segment.field("cache-control"), Some("public, max-age=3600, immutable"));
    assert_eq!((segment.body.len() % 188, segment.body[0]), (0, 0x47), "packets of MPEG-TS");

    // Nobody asks any more: pull and ffmpeg end.
    drop(stream);
    let patience = Duration::from_secs(45);
    wait_for("the end of the pull", patience, || cluster.playback.metric("lb_pulls_in") == 0.0);
    wait_for("the end of ffmpeg", SOON, || cluster.playback.children().is_empty());
    let playlist = cluster.folder.path().join("team/x.m3u8");
    assert!(playlist.exists(), "kept for a moment, should the stream come back");
    wait_for("stale files are cleared away", patience, || !playlist.exists());
}

#[test]
fn a_publisher_that_comes_back_without_audio_goes_on_in_the_playlist_behind_a_discontinuity() {
    let cluster = Cluster::start(&[]);
    let first = cluster.publish("x");
    let mut stream = connect(cluster.playback.http());
    // What stands in the playlist, of which somebody asks for it all the time.
    let mut playlist = || String::from_utf8(ask(&mut stream, "/live/x.m3u8").body).unwrap();
    // The names of segments rise.
    let segments = |text: &str| -> Vec<String> {
        let names = text.lines().filter_map(|line| line.strip_prefix("x-")?.strip_suffix(".ts"));
        names.map(str::to_owned).collect()
    };
    wait_for("a segment", SOON, || !segments(&playlist()).is_empty());
    let before = cluster.playback.metric("lb_pulls_started_total");
    drop(first);
    let last: u64 = segments(&playlist()).last().unwrap().parse().unwrap();
    let url = cluster.ingest.rtmp_url("ingest", "x");
    let _second = ffmpeg::publish_with(Clip::Alpha, &["-an"], &url);
    let mut newest = String::new();
    wait_for("two segments of the second publish", 2 * SOON, || {
        let text = playlist();
        let (_, behind) = text.rsplit_once("#EXT-X-DISCONTINUITY\n").unwrap_or_default();
        let behind = segments(behind);
        newest = behind.last().cloned().unwrap_or_default();
        behind.len() > 1 && behind[0].parse::<u64>().unwrap() > last
    });
    let seen = probe(&cluster.url(&format!("x-{newest}.ts")));
    assert!(seen.contains("h264,320") && !seen.contains("aac"), "{seen}");
    assert_eq!(cluster.playback.metric("lb_pulls_started_total"), before, "the pull went on");
}

#[test]
fn what_is_not_there_is_said_to_be_not_there() {
    let cluster = Cluster::start(&[]);
    // Until then it may not know every stream.
    wait_for("the reactor", SOON, || http::get(cluster.reactor.reactor(), "/readyz").status == 200);
    let mut stream = connect(cluster.playback.http());
    let absent = ask(&mut stream, "/live/nobody.m3u8");
    assert_eq!(absent.status(), "404", "{}", absent.head);
    for (path, status) in
        [("/live/nobody-1.ts", "404"), ("/live/x-1.mp4", "404"), ("/live/..%2f..%2fetc-1.ts", "403")]
    {
        let answer = ask(&mut connect(cluster.playback.http()), path);
        assert_eq!(answer.status(), status, "{path}: {}", answer.head);
    }
    // The bundled configuration makes no HLS.
    let plain = Lb::start(&["--role", "playback", "--reactor-url", &cluster.reactor.reactor_url()]);
    let answer = ask(&mut connect(plain.http()), "/live/x.m3u8");
    assert_eq!(answer.status(), "404");
    assert!(String::from_utf8_lossy(&answer.body).contains("makes no HLS"));
}

#[test]
fn who_may_not_play_gets_neither_playlist_nor_segment() {
    let keys = NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "0123456789abcdef0123456789abcdef\n").unwrap();
    let cluster = Cluster::start(&["--auth-jwt-keys", keys.path().to_str().unwrap()]);
    let _publisher = cluster.publish("x");
    for path in ["/live/x.m3u8", "/live/x-1.ts", "/live/x.m3u8?token=wrong"] {
        let answer = ask(&mut connect(cluster.playback.http()), path);
        assert_eq!(answer.status(), "403", "{path}: {}", answer.head);
    }
    assert_eq!(cluster.playback.metric("lb_pulls_in"), 0.0);
    let signed = common::lb::run(&["sign", "play", "x", "--auth-jwt-keys", keys.path().to_str().unwrap()]);
    let token = signed.stdout.split("token=").nth(1).unwrap_or_else(|| panic!("{signed:?}"));
    let token = token.split(|c: char| c.is_whitespace() || c == '"' || c == '&').next().unwrap();
    // The player asks for segments with what it asked for the playlist with.
    let seen = probe(&cluster.url(&format!("x.m3u8?token={token}")));
    assert!(seen.contains("h264,320"), "{seen}");
    let mut stream = connect(cluster.playback.http());
    let playlist = ask(&mut stream, &format!("/live/x.m3u8?token={token}"));
    let text = String::from_utf8(playlist.body).unwrap();
    let name = text.lines().rfind(|line| line.contains(".ts?token=")).unwrap_or_else(|| panic!("{text}"));
    let segment = ask(&mut stream, &format!("/live/{name}"));
    assert_eq!(segment.field("cache-control"), Some("private, max-age=3600, immutable"));
}
