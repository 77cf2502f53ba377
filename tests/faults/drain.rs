//! A node is told to stop (SIGTERM): it says so first, sends everybody away, and ends in time.

use crate::common::lb::Lb;
use crate::common::publisher::{Media, Publisher};
use crate::common::viewer::Viewer;
use crate::common::{SOON, http, wait_for};
use crate::nodes::*;
use std::time::{Duration, Instant};

fn readiness(admin: std::net::SocketAddr) -> u16 {
    http::try_call(admin, "GET", "/readyz", "").map_or(0, |answer| answer.status)
}

#[test]
fn a_playback_node_sends_its_viewers_away_one_by_one() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, playback) = (ingest(&url, &[]), playback(&url, &[]));
    let _publisher = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 40, 1);
    wait_for("readiness", SOON, || readiness(playback.admin()) == 200);
    let (admin, rtmp) = (playback.admin(), playback.rtmp());
    let begun = Instant::now();
    playback.signal(libc::SIGTERM);
    wait_for("readiness to fall", Duration::from_secs(1), || readiness(admin) == 503);
    measured("readiness fell after", begun.elapsed());
    let late = Viewer::start(rtmp, "live", "x");
    late.wait_for_end(SOON);
    assert!(late.seen().arrivals.is_empty(), "a viewer was let in while the node drains");
    let mut ends = Vec::new();
    for viewer in &viewers {
        let told = viewer.wait_for_end(SOON);
        assert!(!told.is_empty(), "closed without a word");
        ends.push(viewer.seen().ended.as_ref().unwrap().0 - begun);
        viewer.seen().assert_in_order();
    }
    ends.sort();
    measured("40 viewers sent away: first, median, last (drain timeout 3 s)", (ends[0], ends[20], ends[39]));
    assert!(ends[39] - ends[0] > Duration::from_millis(500), "all at once");
    let status = playback.stop(libc::SIGCONT);
    measured("drained playback node ended after", begun.elapsed());
    assert_eq!(status.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(6));
    a.wait_for_metric("lb_pulls_out", 0.0, SOON);
}

#[test]
fn nobody_is_let_in_while_a_node_asks_where_its_peers_may_go() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, playback) = (ingest(&url, &[]), playback(&url, &[]));
    let _publisher = publish(&a, "x", session(1));
    let _viewers = watch(&playback, "x", 1, 1);
    wait_for("readiness", SOON, || readiness(playback.admin()) == 200);
    // It has no answer for anybody.
    reactor.signal(libc::SIGSTOP);
    let (admin, rtmp) = (playback.admin(), playback.rtmp());
    playback.signal(libc::SIGTERM);
    wait_for("readiness to fall", Duration::from_secs(1), || readiness(admin) == 503);
    let late = Viewer::start(rtmp, "live", "x");
    late.wait_for_end(SOON);
    assert!(late.seen().arrivals.is_empty(), "a viewer was let in while the node drains");
    reactor.signal(libc::SIGCONT);
}

#[test]
fn an_ingest_node_lets_its_encoders_go_and_their_viewers_follow() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, b, playback) = (ingest(&url, &[]), ingest(&url, &[]), playback(&url, &[]));
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 20, 1);
    let begun = Instant::now();
    a.signal(libc::SIGTERM);
    let (ended, told) = first.wait_for_end(SOON);
    measured("encoder disconnected after", ended - begun);
    assert!(told.iter().all(|status| !status.contains("error")), "{told:?}");
    assert!(ended - begun < Duration::from_secs(1));
    // What encoders do: they come back, by a balancer or DNS, to a node that is ready.
    let second = publish(&b, "x", session(2));
    let sent = second.wait_for_keyframe();
    let last = viewers.iter().map(|viewer| viewer.wait_for_keyframe(2, SOON)).max().unwrap();
    measured(
        "ingest node drained: first keyframe elsewhere to the last of 20 viewers",
        last.saturating_duration_since(sent),
    );
    assert!(last.saturating_duration_since(sent) < Duration::from_secs(1));
    assert_none_lost(&viewers);
    assert_eq!(a.stop(libc::SIGCONT).code(), Some(0));
    measured("drained ingest node ended after", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(6));
    wait_for("the node to be forgotten", SOON, || {
        !http::get(reactor.reactor(), "/nodes").body.contains("\"draining\":true")
    });
    assert_none_lost(&viewers);
}

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let a = ingest(&url, &[]);
    let playback = Lb::start(&["--role", "playback", "--reactor-url", &url, "--drain-timeout", "60s"]);
    let _publisher = Publisher::start(a.rtmp(), "ingest", "x", Media::default());
    wait_for_owner(reactor.reactor(), "x", &a);
    let _viewers = watch(&playback, "x", 10, 1);
    let begun = Instant::now();
    playback.signal(libc::SIGTERM);
    wait_for("the drain to begin", SOON, || playback.log().contains("stopping"));
    assert_eq!(playback.stop(libc::SIGTERM).code(), Some(0));
    measured("ended by a second signal after", begun.elapsed());
}
