//! Publishers and their ingest nodes come and go; viewers stay.

use crate::common::ffmpeg::{self, Clip};
use crate::common::host::Host;
use crate::common::lb::Lb;
use crate::common::publisher::{Media, Publisher};
use crate::common::viewer::{Kind, Viewer};
use crate::common::{SOON, poll, process, wait_for};
use crate::nodes::*;
use std::process::Command;
use std::time::{Duration, Instant};

/// From the new place's first keyframe to the picture of the last viewer.
const SWITCH: Duration = Duration::from_secs(1);

const VIEWERS: usize = 20;

/// Waits until all have the new publish, and checks how long it took the last one, and that nothing is amiss.
#[track_caller]
fn assert_all_switch(what: &str, viewers: &[Viewer], publisher: &Publisher, session: u16) {
    let sent = publisher.wait_for_keyframe();
    let gaps =
        viewers.iter().map(|viewer| viewer.wait_for_keyframe(session, SOON).saturating_duration_since(sent));
    let gap = gaps.max().unwrap();
    measured(&format!("{what}: first keyframe sent to seen by the last of {VIEWERS} viewers"), gap);
    // Some more frames, so that what was mixed in would show.
    for viewer in viewers {
        wait_for("more of the new publish", SOON, || viewer.seen().frames(session) > 50);
    }
    assert_none_lost(viewers);
    for viewer in viewers {
        assert_headers_first(viewer, session);
    }
    assert!(gap < SWITCH, "it took {gap:?}");
}

/// The headers of a publish differ from those before: they must come before its first frames.
#[track_caller]
fn assert_headers_first(viewer: &Viewer, session: u16) {
    let seen = viewer.seen();
    let first = |kind| {
        seen.arrivals.iter().position(|a| a.kind == kind && a.mark.is_some_and(|m| m.session == session))
    };
    let (video, audio) = (first(Kind::VideoHeader), first(Kind::AudioHeader));
    assert!(video.is_some() && video < first(Kind::Keyframe), "no video header before the keyframe");
    assert!(audio.is_some() && audio < first(Kind::Audio), "no audio header before the audio");
}

struct World {
    reactor: Lb,
    playback: Lb,
    a: Lb,
    b: Lb,
}

impl World {
    #[track_caller]
    fn start() -> World {
        let reactor = reactor(&[]);
        let url = reactor.reactor_url();
        let playback = playback(&url, &[]);
        let (a, b) = (ingest(&url, &[]), ingest(&url, &[]));
        wait_until_whole(reactor.reactor());
        World { reactor, playback, a, b }
    }
}

#[test]
fn viewers_follow_a_publisher_that_moves() {
    let _machine = shared_machine();
    let World { reactor, playback, a, b } = World::start();
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", VIEWERS, 1);
    first.leave();
    wait_for("the name to be free", SOON, || stream(reactor.reactor(), "x").is_none());
    let second = publish(&b, "x", session(2));
    assert_all_switch("clean move", &viewers, &second, 2);
    a.wait_for_metric("lb_pulls_out", 0.0, SOON);
    // There and back: the first node has no stale memory of the stream.
    drop(second);
    let third = publish(&a, "x", session(3));
    assert_all_switch("move back after a cut connection", &viewers, &third, 3);
}

#[test]
fn viewers_outlive_the_death_of_an_ingest_node() {
    let _machine = shared_machine();
    let World { reactor, playback, a, b } = World::start();
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", VIEWERS, 1);
    a.kill();
    drop(first);
    let second = publish(&b, "x", session(2));
    assert_all_switch("kill -9 of the ingest node", &viewers, &second, 2);
    wait_for_owner(reactor.reactor(), "x", &b);
}

#[test]
fn the_newest_session_wins_over_a_half_open_one() {
    let _machine = shared_machine();
    let World { reactor: _reactor, playback, a, b } = World::start();
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", VIEWERS, 1);
    first.hang();
    let second = publish(&b, "x", session(2));
    let begun = Instant::now();
    assert_all_switch("move while the old connection is half-open", &viewers, &second, 2);
    a.wait_for_metric("lb_publishers", 0.0, Duration::from_secs(3));
    measured("half-open publisher closed on its old node after", begun.elapsed());
}

#[test]
fn viewers_outlive_a_host_that_loses_power() {
    let _machine = shared_machine();
    let host = Host::start();
    let reactor = Lb::start(&[
        "--role",
        "reactor",
        "--heartbeat",
        "300ms",
        "--reactor-listen",
        "0.0.0.0:0",
        "--insecure",
    ]);
    let url = reactor.reactor_url();
    let from_host = format!("http://{}:{}", host.gateway(), reactor.reactor().port());
    let playback = playback(&url, &[]);
    let a = Lb::start_on(&host, &ingest_flags(&from_host, &[]));
    let b = ingest(&url, &[]);

    let _first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", VIEWERS, 1);
    host.cut();
    let cut = Instant::now();
    // By the silence of the pull or by the lapse of the lease, whichever is first.
    wait_for("the stall to be noticed", Duration::from_secs(4), || {
        playback.log().contains("pull ended") || playback.metric("lb_pulls_in") == 0.0
    });
    measured("power loss noticed after", cut.elapsed());
    let second = publish(&b, "x", session(2));
    assert_all_switch("power loss", &viewers, &second, 2);
    // So that the node can end cleanly.
    host.mend();
    drop(a);
}

#[test]
fn a_stall_is_looked_up_again_even_where_nobody_tells_of_changes() {
    let _machine = shared_machine();
    // A reactor of plain mmids: it knows lookups, and no events. The interval is the default, a minute.
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, b) = (ingest(&url, &[]), ingest(&url, &[]));
    let plain = crate::registry::plain_server_before(reactor.reactor());
    let playback = playback(&format!("http://{}", plain.addr()), &[]);
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", VIEWERS, 1);
    a.kill();
    drop(first);
    let second = publish(&b, "x", session(2));
    let sent = second.wait_for_keyframe();
    let last = viewers.iter().map(|viewer| viewer.wait_for_keyframe(2, SOON)).max().unwrap();
    measured("move found by looking up again, without events", last - sent);
    assert_none_lost(&viewers);
    assert!(last - sent < Duration::from_secs(5));
}

#[test]
fn a_node_that_restarts_mixes_nothing_in() {
    let _machine = shared_machine();
    let World { reactor, playback, a, b: _b } = World::start();
    let port = a.rtmp_port().to_string();
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", VIEWERS, 1);
    let epoch = |entry: serde_json::Value| entry["epoch"].as_u64().unwrap();
    let before = stream(reactor.reactor(), "x").map(epoch).unwrap();
    a.kill();
    drop(first);
    let a = ingest(&reactor.reactor_url(), &["--rtmp-port", &port]);
    let second = publish(&a, "x", session(2));
    assert_all_switch("restart on the same address", &viewers, &second, 2);
    let after = stream(reactor.reactor(), "x").map(epoch).unwrap();
    assert!(after > before, "epoch {after} after {before}");
}

#[test]
fn a_publisher_that_comes_back_to_its_node_is_followed() {
    let _machine = shared_machine();
    let World { reactor: _reactor, playback, a, b: _b } = World::start();
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", VIEWERS, 1);
    drop(first);
    let second = publish(&a, "x", session(2));
    assert_all_switch("back on the same node", &viewers, &second, 2);
    // And without the old connection having ended.
    second.hang();
    let third = publish(&a, "x", session(3));
    assert_all_switch("back on the same node beside a half-open connection", &viewers, &third, 3);
    a.wait_for_metric("lb_publishers", 1.0, SOON);
}

#[test]
fn a_publisher_that_starts_over_with_the_same_picture_freezes_nobody() {
    let _machine = shared_machine();
    let World { reactor: _reactor, playback, a, b: _b } = World::start();
    // As a file with a group of pictures of 20 s: each publish begins with the same keyframe at the same time.
    let file = Media { session: 1, gop: 500, ..Media::default() };
    let first = publish(&a, "x", file);
    let viewers = watch(&playback, "x", VIEWERS, 1);
    wait_for("some seconds of the first publish", SOON, || viewers[0].seen().frames(1) > 150);
    drop(first);
    let second = publish(&a, "x", file);
    let sent = second.wait_for_keyframe();
    let mut gap = Duration::ZERO;
    for viewer in &viewers {
        wait_for("the second publish", SOON, || viewer.seen().keyframes().len() == 2);
        let seen = viewer.seen();
        let begins = seen.keyframes()[1];
        gap = gap.max(begins.at.saturating_duration_since(sent));
        let after: Vec<_> = seen.arrivals.iter().skip_while(|arrival| arrival.at < begins.at).collect();
        let frames = after.iter().filter(|arrival| matches!(arrival.kind, Kind::Keyframe | Kind::Inter));
        let marks: Vec<u32> = frames.filter_map(|arrival| arrival.mark).map(|mark| mark.number).collect();
        assert!(
            marks.iter().copied().eq(0..marks.len() as u32),
            "decoded against another keyframe: {marks:?}"
        );
    }
    measured("the same picture again, first keyframe sent to seen by the last of 20 viewers", gap);
    assert!(gap < SWITCH, "it took {gap:?}");
    let late = &watch(&playback, "x", 1, 1)[0];
    let newest = viewers[0].seen().keyframes()[1].timestamp;
    assert_eq!(
        late.seen().keyframes()[0].timestamp,
        newest,
        "a late viewer starts with the publish that is there"
    );
}

#[test]
fn viewers_of_a_publisher_that_stays_away_get_a_clean_end() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let playback = playback(&url, &["--publisher-grace", "2s"]);
    let a = ingest(&url, &["--publisher-grace", "2s"]);
    wait_until_whole(reactor.reactor());
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", VIEWERS, 1);
    first.leave();
    let left = Instant::now();
    for viewer in &viewers {
        let told = viewer.wait_for_end(SOON);
        assert!(told.iter().any(|status| status.contains("NetStream.Play.UnpublishNotify")), "{told:?}");
    }
    let held = left.elapsed();
    measured("viewers held after their publisher left (grace 2 s)", held);
    assert!(held > Duration::from_millis(1900) && held < Duration::from_secs(4));
    playback.wait_for_metric("lb_streams", 0.0, SOON);
    // The name can be used again at once, even though it was not there a moment ago.
    let vain = Viewer::start(playback.rtmp(), "live", "x");
    vain.wait_for_end(SOON);
    let changes = || playback.metric("lb_reactor_events_total{event=\"change\"}");
    let before = changes();
    let _second = publish(&a, "x", Media { session: 2, ..Media::default() });
    wait_for("the change to be told", SOON, || changes() > before);
    watch(&playback, "x", 1, 2);
}

#[test]
fn a_picture_that_moves_stays_decodable() {
    let _machine = shared_machine();
    let World { reactor, playback, a, b } = World::start();
    let first = ffmpeg::publish(Clip::Alpha, &a.rtmp_url("ingest", "x"));
    wait_for_owner(reactor.reactor(), "x", &a);
    let file = tempfile::Builder::new().suffix(".flv").tempfile().unwrap().into_temp_path();
    let mut player = Command::new("ffmpeg");
    player.args(["-nostdin", "-v", "warning", "-i", &playback.rtmp_url("live", "x")]);
    player.args(["-t", "12", "-c", "copy", "-f", "flv", "-y"]).arg(&file);
    let recorder = std::thread::spawn(move || process::run(player, Duration::from_secs(60)));
    let recorded = || std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
    let grown = |bytes: u64| {
        let before = recorded();
        wait_for("the recording to grow", SOON, || recorded() > before + bytes);
    };
    grown(100_000);
    // Once from A to B with its connection cut, once from B to A by the death of B.
    drop(first);
    let second = ffmpeg::publish(Clip::Beta, &b.rtmp_url("ingest", "x"));
    wait_for_owner(reactor.reactor(), "x", &b);
    grown(100_000);
    b.kill();
    drop(second);
    let _third = ffmpeg::publish(Clip::Alpha, &a.rtmp_url("ingest", "x"));
    let finished = recorder.join().unwrap();
    assert_eq!(finished.code, Some(0), "the player lost its stream: {}", finished.stderr);

    assert_eq!(ffmpeg::codecs(&file), ["aac", "h264"]);
    let mut decoder = Command::new("ffmpeg");
    decoder.args(["-nostdin", "-v", "error", "-xerror", "-i"]).arg(&file).args(["-f", "null", "-"]);
    let decoded = process::run(decoder, Duration::from_secs(60));
    assert_eq!((decoded.code, decoded.stderr.as_str()), (Some(0), ""), "decoding gives errors");
    let frames = ffmpeg::frame_hashes(&file);
    measured("frames recorded over two moves, all decodable", (frames["video"].len(), frames["audio"].len()));
    assert!(poll(SOON, || (playback.metric("lb_viewers") == 0.0).then_some(())).is_some());
}
