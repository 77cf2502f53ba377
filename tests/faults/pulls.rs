//! Pulls that cannot work: an ffmpeg that is missing, crashes or hangs; a node that is told to pull from itself.

use crate::common::ffmpeg::{self, Clip};
use crate::common::http;
use crate::common::lb::Lb;
use crate::common::viewer::{Kind, Viewer};
use crate::common::{SOON, wait_for};
use crate::nodes::*;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use tempfile::TempPath;

/// A program in ffmpeg's place.
fn program(text: &str) -> TempPath {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "#!/bin/sh\n{text}").unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    file.into_temp_path()
}

/// A playback node that pulls by this program, and three viewers who wait for their picture in vain.
#[track_caller]
fn pull_by(ffmpeg: &str, log: &str) -> Lb {
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, playback) = (ingest(&url, &[]), playback(&url, &["--pull", "ffmpeg", "--ffmpeg-path", ffmpeg]));
    let _publisher = publish(&a, "x", session(1));
    wait_for_owner(reactor.reactor(), "x", &a);
    let viewers: Vec<Viewer> = (0..3).map(|_| Viewer::start(playback.rtmp(), "live", "x")).collect();
    wait_for(&format!("{log:?} in the log"), SOON, || playback.log().contains(log));
    // It is tried again, not too fast, and the node serves on.
    wait_for("another try", SOON, || playback.metric("lb_pulls_started_total") >= 2.0);
    let_pass(Duration::from_secs(2));
    let tries = playback.metric("lb_pulls_started_total");
    measured(&format!("tries to pull by {log:?} within some seconds"), tries);
    assert!(tries < 20.0, "restarted in a tight loop");
    assert_eq!(http::get(playback.admin(), "/livez").status, 200);
    drop(viewers);
    playback.wait_for_metric("lb_pulls_in", 0.0, Duration::from_secs(3));
    wait_for("no process to be left", SOON, || playback.children().is_empty());
    playback
}

#[test]
fn an_ffmpeg_that_cannot_be_started_is_named_in_the_log() {
    let _machine = shared_machine();
    // It is there when the node starts, which looks for it.
    let broken = program("");
    std::fs::write(&broken, "#!/nonexistent/interpreter\n").unwrap();
    let broken = broken.to_str().unwrap();
    drop(pull_by(broken, &format!("ffmpeg not found at '{broken}'")));
}

#[test]
fn an_ffmpeg_that_crashes_is_restarted_and_its_words_are_logged() {
    let _machine = shared_machine();
    let crashing = program("echo 'Segmentation of the fault' >&2; exit 139");
    drop(pull_by(crashing.to_str().unwrap(), "Segmentation of the fault"));
}

#[test]
fn an_ffmpeg_that_hangs_is_ended_and_leaves_no_orphan() {
    let _machine = shared_machine();
    // It ignores polite requests, and has a child of its own.
    let hanging = program("trap '' TERM INT; sleep 1000 & wait; wait");
    let playback = pull_by(hanging.to_str().unwrap(), "pull ended");
    drop(playback);
}

#[test]
fn no_ffmpeg_outlives_a_killed_node() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, playback) = (ingest(&url, &[]), playback(&url, &["--pull", "ffmpeg"]));
    let _publisher = ffmpeg::publish(Clip::Alpha, &a.rtmp_url("ingest", "x"));
    wait_for_owner(reactor.reactor(), "x", &a);
    let _viewer = Viewer::start(playback.rtmp(), "live", "x");
    wait_for("ffmpeg to run", SOON, || playback.children().iter().any(|(_, name)| name.contains("ffmpeg")));
    // The guard fails the test if anything of the node's session is left.
    playback.kill();
    a.wait_for_metric("lb_pulls_out", 0.0, SOON);
}

#[test]
fn a_pull_keeps_the_deadline_of_its_step() {
    let _machine = shared_machine();
    // The kernel takes the connection, and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let location = format!("rtmp://{}/live/x", silent.local_addr().expect("an address"));
    let text =
        format!("workflow pulled {{\n    rtmp_pull location={location} stream_name=x start_ms=300\n}}\n");
    let config = config(&text);
    let reactor = reactor(&[]);
    let playback = playback(&reactor.reactor_url(), &["--config", path(&config)]);
    wait_for("the pull to give up", SOON, || playback.log().contains("nothing arrived for 300ms"));
}

#[test]
fn a_node_that_is_told_to_pull_from_itself_refuses() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    // A node whose pull source asks the reactor as well: one wrong word in a configuration makes this.
    let text = include_str!("../../mmids-configs/playback.mmids");
    let line = "    rtmp_watch rtmp_app=live stream_key=* port=${RTMP_PORT} reactor=watchers\n";
    let both = text.replace(line, &format!("{line}{}", line.replace("app=live", "app=pull_source")));
    assert_ne!(both, text);
    let config = config(&both);
    let playback = playback(&reactor.reactor_url(), &["--config", path(&config)]);
    let claim = format!("{{\"stream_name\":\"x\",\"origin\":\"127.0.0.1:{}\"}}", playback.rtmp_port());
    assert_eq!(http::post(reactor.reactor(), "/publisher_lookup", &claim).status, 200);
    let viewer = Viewer::start(playback.rtmp(), "live", "x");
    wait_for("the refusal", SOON, || playback.metric("lb_refusals_total{reason=\"loop\"}") >= 1.0);
    wait_for("the log to say so", SOON, || playback.log().contains("would pull from itself"));
    let_pass(Duration::from_secs(2));
    let connections = playback.metric("lb_connections_total");
    measured("connections made in 2 s by a pull from itself", connections);
    assert!(connections < 40.0);
    drop(viewer);
    playback.wait_for_metric("lb_pulls_in", 0.0, SOON);
    playback.wait_for_metric("lb_connections", 0.0, SOON);
}

#[test]
fn pulls_by_ffmpeg_follow_a_publisher_that_moves() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, b, playback) = (ingest(&url, &[]), ingest(&url, &[]), playback(&url, &["--pull", "ffmpeg"]));
    wait_until_whole(reactor.reactor());
    let first = ffmpeg::publish(Clip::Alpha, &a.rtmp_url("ingest", "x"));
    wait_for_owner(reactor.reactor(), "x", &a);
    let viewers: Vec<Viewer> = (0..5).map(|_| Viewer::start(playback.rtmp(), "live", "x")).collect();
    let frames = |viewer: &Viewer| viewer.seen().arrivals.len();
    wait_for("the picture", SOON, || viewers.iter().all(|viewer| frames(viewer) > 50));
    drop(first);
    let _second = ffmpeg::publish(Clip::Beta, &b.rtmp_url("ingest", "x"));
    wait_for_owner(reactor.reactor(), "x", &b);
    let (moved, before) = (Instant::now(), viewers.iter().map(frames).max().unwrap());
    wait_for("the picture from the other node", SOON, || {
        viewers.iter().all(|viewer| frames(viewer) > before + 50)
    });
    measured("move with ffmpeg pulls: registered to 50 messages at the last viewer", moved.elapsed());
    assert!(viewers.iter().all(Viewer::is_connected));
    assert_eq!(playback.children().len(), 1, "one ffmpeg, for the new place");
    for viewer in &viewers {
        let seen = viewer.seen();
        for kinds in [&[Kind::Keyframe, Kind::Inter][..], &[Kind::Audio]] {
            let track = seen.arrivals.iter().filter(|arrival| kinds.contains(&arrival.kind));
            let times: Vec<u32> = track.map(|arrival| arrival.timestamp).collect();
            assert!(times.is_sorted_by(|one, two| one < two), "time does not rise");
        }
    }
}
