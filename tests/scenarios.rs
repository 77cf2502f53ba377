//! Every scenario of the mmids user guide: a configuration in `mmids-configs/scenarios`, run with real processes and real ffmpeg.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::ffmpeg::{self, Clip};
use common::http::{Response, WebServer};
use common::lb::{self, Lb};
use common::{SOON, poll, read, root, wait_for};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tempfile::NamedTempFile;

/// Seconds that are recorded to compare frames.
const RECORDED: u32 = 2;

/// Where nobody answers: these nodes need no reactor.
const NOBODY: &str = "http://127.0.0.1:1";

/// A scenario's text, with what a test has in place of the names in it. Each of them has to be there.
#[track_caller]
fn scenario(name: &str, changes: &[(&str, &str)]) -> NamedTempFile {
    let mut text = read(&format!("mmids-configs/scenarios/{name}.mmids"));
    for (from, to) in changes {
        assert!(text.contains(from), "{name} has no {from}");
        text = text.replace(from, to);
    }
    let mut file = tempfile::Builder::new().suffix(".mmids").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn start(role: &str, config: &NamedTempFile, reactor: &str) -> Lb {
    Lb::start(&["--role", role, "--reactor-url", reactor, "--config", config.path().to_str().unwrap()])
}

/// What a scenario pushes to: another node, at the app `app`.
fn platform() -> Lb {
    let config = config(
        "workflow w {\n rtmp_receive rtmp_app=app stream_key=*\n rtmp_watch rtmp_app=app stream_key=*\n}\n",
    );
    start("ingest", &config, NOBODY)
}

fn config(text: &str) -> NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".mmids").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[track_caller]
fn wait_for_publisher(node: &Lb, count: f64) {
    node.wait_for_metric("lb_publishers", count, SOON);
}

/// Width and height of the video of a URL or file.
#[track_caller]
fn size(of: &str) -> String {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-select_streams", "v", "-show_entries", "stream=width,height"]);
    command.args(["-of", "csv=p=0:s=x", of]);
    let probed = common::process::run(command, Duration::from_secs(30));
    assert_eq!(probed.code, Some(0), "ffprobe {of}: {}", probed.stderr);
    probed.stdout.trim().to_owned()
}

#[test]
fn each_scenario_is_good_and_has_a_test() {
    let source = read("tests/scenarios.rs");
    let folder = root().join("mmids-configs/scenarios");
    let names: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().trim_end_matches(".mmids").to_owned())
        .collect();
    assert_eq!(names.len(), 12, "{names:?}");
    for name in names {
        assert!(source.contains(&format!("scenario(\"{name}\",")), "{name} has no test");
        let path = format!("{}/mmids-configs/scenarios/{name}.mmids", root().display());
        let checked = lb::run(&["--role", "ingest", "--check", "--config", &path]);
        assert_eq!(checked.code, Some(0), "{name}: {}", checked.stderr);
    }
}

#[test]
fn simple() {
    let node = start("ingest", &scenario("simple", &[]), NOBODY);
    let _publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("live", "x"));
    wait_for_publisher(&node, 1.0);
    ffmpeg::record(&node.rtmp_url("live", "x"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
}

#[test]
fn key_restricted() {
    let node = start("ingest", &scenario("key-restricted", &[]), NOBODY);
    ffmpeg::publish_in_vain(Clip::Alpha, &node.rtmp_url("live", "a-wrong-key"));
    let _publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("live", "a-long-secret-key"));
    wait_for_publisher(&node, 1.0);
    ffmpeg::record(&node.rtmp_url("watch", "show"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
    ffmpeg::watch_in_vain(&node.rtmp_url("watch", "a-long-secret-key"));
}

#[test]
fn network_restricted() {
    let node = start("ingest", &scenario("network-restricted", &[]), NOBODY);
    // The test is from 127.0.0.1, which may publish, and watches from there.
    let _publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("live", "x"));
    wait_for_publisher(&node, 1.0);
    ffmpeg::record(&node.rtmp_url("live", "x"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
    // Seen from the other side: nobody from here may publish, or watch.
    let others =
        [("allow_ips=127.0.0.1,192.0.2.0/24", "allow_ips=192.0.2.0/24"), ("198.51.100.0/24", "127.0.0.0/8")];
    let node = start("ingest", &scenario("network-restricted", &others), NOBODY);
    ffmpeg::publish_in_vain(Clip::Alpha, &node.rtmp_url("live", "x"));
    ffmpeg::watch_in_vain(&node.rtmp_url("live", "x"));
}

#[test]
fn per_publisher() {
    let service = WebServer::start(|request| {
        let body = "workflow of_x routed_by_reactor {\n    rtmp_watch rtmp_app=live stream_key=x\n}\n";
        match request.body.contains("\"x\"") {
            true => Response { status: 200, body: body.to_owned() },
            false => Response { status: 404, body: String::new() },
        }
    });
    let url = format!("http://{}", service.addr());
    let node = start("ingest", &scenario("per-publisher", &[]), &url);
    ffmpeg::publish_in_vain(Clip::Alpha, &node.rtmp_url("live", "y"));
    let _publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("live", "x"));
    wait_for_publisher(&node, 1.0);
    ffmpeg::record(&node.rtmp_url("live", "x"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
}

#[test]
fn hls() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let changes = [("/tmp/lb-hls", path), ("duration=2", "duration=1"), ("count=10", "count=3")];
    let node = start("ingest", &scenario("hls", &changes), NOBODY);
    // A name with a folder in it, and what an earlier process left of it.
    std::fs::create_dir(folder.path().join("team")).unwrap();
    let stale = folder.path().join("team/x-7.ts");
    for file in [folder.path().join("team/x.m3u8"), stale.clone()] {
        std::fs::write(&file, "#EXTM3U\n").unwrap();
        let old = std::time::SystemTime::now() - Duration::from_secs(60);
        std::fs::File::open(&file).unwrap().set_modified(old).unwrap();
    }
    let publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("live", "team/x"));
    let playlist = folder.path().join("team/x.m3u8");
    let segments = || {
        let text = std::fs::read_to_string(&playlist).unwrap_or_default();
        text.lines().filter(|line| line.ends_with(".ts")).map(str::to_owned).collect::<Vec<_>>()
    };
    wait_for("three segments", SOON, || segments().len() == 3);
    assert!(!stale.exists(), "what is stale is cleared away");
    assert!(segments().iter().all(|segment| segment.starts_with("x-")), "{:?}", segments());
    let first = folder.path().join("team").join(&segments()[0]);
    // ffprobe names the tracks of MPEG-TS once for the program and once by themselves.
    let codecs = ffmpeg::codecs(&first);
    assert!(codecs.contains(&"aac".to_owned()) && codecs.contains(&"h264".to_owned()), "{codecs:?}");
    assert!(size(first.to_str().unwrap()).starts_with("320x180"));
    wait_for("old segments are deleted", SOON, || !first.exists());
    drop(publisher);
    wait_for_publisher(&node, 0.0);
    wait_for("ffmpeg ends with the stream", SOON, || node.children().is_empty());
}

#[test]
fn multistream() {
    let (first, second) = (platform(), platform());
    let changes =
        [("first.example.com", first.rtmp().to_string()), ("second.example.com", second.rtmp().to_string())];
    let changes: Vec<(&str, &str)> = changes.iter().map(|(from, to)| (*from, to.as_str())).collect();
    let node = start("ingest", &scenario("multistream", &changes), NOBODY);
    let publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("live", "my-show"));
    wait_for_publisher(&first, 1.0);
    wait_for_publisher(&second, 1.0);
    ffmpeg::record(&first.rtmp_url("app", "first-key"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
    ffmpeg::record(&second.rtmp_url("app", "second-key"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
    // The targets know that the stream has ended.
    drop(publisher);
    wait_for_publisher(&first, 0.0);
    wait_for_publisher(&second, 0.0);
    for secret in ["first-key", "second-key"] {
        assert!(!node.log().contains(secret), "the log names a key:\n{}", node.log());
    }
}

#[test]
fn multistream_transcode() {
    let (first, second) = (platform(), platform());
    let changes = [
        ("first.example.com", first.rtmp().to_string()),
        ("second.example.com", second.rtmp().to_string()),
        // Smaller, as this machine has other work to do.
        ("size=1280x720 kbps=3000", "size=160x90 kbps=200".to_owned()),
        ("size=640x360 bitrate=800", "size=80x46 bitrate=100".to_owned()),
    ];
    let changes: Vec<(&str, &str)> = changes.iter().map(|(from, to)| (*from, to.as_str())).collect();
    let node = start("ingest", &scenario("multistream-transcode", &changes), NOBODY);
    let _publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("live", "my-show"));
    wait_for_publisher(&first, 1.0);
    wait_for_publisher(&second, 1.0);
    assert_eq!(size(&first.rtmp_url("app", "first-key")), "160x90");
    assert_eq!(size(&second.rtmp_url("app", "second-key")), "80x46");
}

#[test]
fn static_load_balancing() {
    let ingest = start("ingest", &scenario("static-ingest", &[]), NOBODY);
    let at = ingest.rtmp().to_string();
    let playback = start("playback", &scenario("static-playback", &[("ingest.example.com", &at)]), NOBODY);
    let _publisher = ffmpeg::publish(Clip::Alpha, &ingest.rtmp_url("ingest", "show"));
    wait_for_publisher(&ingest, 1.0);
    wait_for("the pull", SOON, || ingest.metric("lb_pulls_out") == 1.0);
    ffmpeg::record(&playback.rtmp_url("live", "show"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
    ffmpeg::publish_in_vain(Clip::Alpha, &ingest.rtmp_url("ingest", "other"));
}

#[test]
fn dynamic_load_balancing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let ingest = start("ingest", &scenario("dynamic-ingest", &[]), &url);
    let playback = start("playback", &scenario("dynamic-playback", &[("/tmp/lb-hls", path)]), &url);
    let _publisher = ffmpeg::publish(Clip::Alpha, &ingest.rtmp_url("ingest", "x"));
    wait_for("the name", SOON, || common::http::get(reactor.reactor(), "/streams/x").status == 200);
    ffmpeg::record(&playback.rtmp_url("live", "x"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
    playback.wait_for_metric("lb_pulls_in", 0.0, SOON);
    wait_for("ffmpeg ends with the pull", SOON, || playback.children().is_empty());
}

#[test]
fn dynamic_definitions() {
    let source = platform();
    let at = source.rtmp();
    let service = WebServer::start(move |request| match request.body.contains("\"camera-1\"") {
        true => Response { status: 200, body: camera(at) },
        false => Response { status: 404, body: String::new() },
    });
    let url = format!("http://{}", service.addr());
    let node = start("playback", &scenario("dynamic-definitions", &[]), &url);
    let _camera = ffmpeg::publish(Clip::Alpha, &source.rtmp_url("app", "main"));
    wait_for_publisher(&source, 1.0);
    ffmpeg::watch_in_vain(&node.rtmp_url("live", "camera-2"));
    assert_eq!(size(&node.rtmp_url("live", "camera-1")), "80x46");
    // Nobody watches any more.
    wait_for("ffmpeg ends with its viewer", SOON, || node.children().is_empty());
}

/// The example in the scenario's text, smaller and from a source that there is.
fn camera(at: SocketAddr) -> String {
    let text = read("mmids-configs/scenarios/dynamic-definitions.mmids");
    let example = text.lines().filter_map(|line| line.strip_prefix("#     "));
    let example: String = example.map(|line| format!("{line}\n")).collect();
    let example = example.replace("rtsp://10.0.0.9/main", &format!("rtmp://{at}/app/main"));
    assert!(example.contains("size=640x360") && example.contains("/app/main"), "{example}");
    example.replace("size=640x360", "size=80x46")
}

/// What a node leaves in a folder is its own business; this test's folder is its own.
#[test]
fn a_folder_that_cannot_be_made_costs_the_hls_and_nothing_else() {
    let file = NamedTempFile::new().unwrap();
    let path = Path::new(file.path()).join("hls");
    let node = start("ingest", &scenario("hls", &[("/tmp/lb-hls", path.to_str().unwrap())]), NOBODY);
    let _publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("live", "x"));
    wait_for_publisher(&node, 1.0);
    let said = poll(SOON, || node.log().contains("no HLS: the folder cannot be made").then_some(()));
    assert!(said.is_some(), "{}", node.log());
    assert_eq!(node.metric("lb_publishers"), 1.0);
}
