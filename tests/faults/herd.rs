//! Very many viewers at once.

use crate::common::endpoint;
use crate::common::publisher::Media;
use crate::common::viewer::Viewer;
use crate::common::{SOON, poll, wait_for};
use crate::nodes::*;
use std::time::{Duration, Instant};

/// Debug builds of client and server share two cores with the rest: the figure is printed, the limit is generous.
const JOIN: Duration = Duration::from_secs(30);

fn lookups(reactor: &crate::common::lb::Lb) -> f64 {
    reactor.metric("lb_reactor_lookups_total{kind=\"watcher\"}")
}

#[track_caller]
fn all_cost_one_lookup_and_one_pull(count: usize) {
    let _machine = whole_machine();
    endpoint::raise_descriptor_limit();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, playback) = (ingest(&url, &[]), playback(&url, &[]));
    let small = Media { rate: 5, gop: 5, frame_bytes: 300, audio: false, ..Media::default() };
    let _publisher = publish(&a, "x", small);
    wait_until_whole(reactor.reactor());
    let before = (lookups(&reactor), a.metric("lb_connections_total"));

    let begun = Instant::now();
    let viewers: Vec<Viewer> = (0..count).map(|_| Viewer::start(playback.rtmp(), "live", "x")).collect();
    measured(&format!("{count} viewers started within"), begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(1));
    let joined = || viewers.iter().filter(|viewer| viewer.join_time().is_some()).count();
    if poll(JOIN, || (joined() == count).then_some(())).is_none() {
        let told = viewers.iter().filter(|viewer| !viewer.seen().statuses.is_empty()).count();
        let lost = viewers.iter().filter(|viewer| !viewer.is_connected()).count();
        let node = [
            "lb_connections_total",
            "lb_connections",
            "lb_viewers",
            "lb_pulls_in",
            "lb_received_bytes_total",
        ]
        .map(|name| (name, playback.metric(name)));
        panic!(
            "of {count} viewers {} have a picture, {told} were told something, {lost} are lost; {node:?}",
            joined()
        );
    }
    let mut joins: Vec<Duration> = viewers.iter().map(|viewer| viewer.join_time().unwrap()).collect();
    joins.sort();
    let (median, late, last) = (joins[count / 2], joins[count * 99 / 100], joins[count - 1]);
    measured(&format!("{count} viewers on a cold stream, join p50, p99, last"), (median, late, last));
    playback.wait_for_metric("lb_viewers", count as f64, SOON);
    assert_eq!(lookups(&reactor) - before.0, 1.0, "lookups at the reactor");
    assert_eq!(a.metric("lb_pulls_out"), 1.0, "pulls at the ingest node");
    assert_eq!(a.metric("lb_connections_total") - before.1, 1.0, "connections to the ingest node");
    assert_eq!(playback.metric("lb_pulls_started_total"), 1.0);
    assert_none_lost(&viewers);
    drop(viewers);
    playback.wait_for_metric("lb_connections", 0.0, SOON);
    a.wait_for_metric("lb_pulls_out", 0.0, SOON);
}

#[test]
fn two_thousand_viewers_cost_one_lookup_and_one_pull() {
    all_cost_one_lookup_and_one_pull(2000);
}

#[test]
fn five_thousand_viewers_cost_one_lookup_and_one_pull() {
    all_cost_one_lookup_and_one_pull(5000);
}

#[test]
fn a_herd_on_a_name_that_does_not_exist_is_turned_away_cheaply() {
    let _machine = whole_machine();
    endpoint::raise_descriptor_limit();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let playback = playback(&url, &[]);
    wait_until_whole(reactor.reactor());
    let refused = |viewers: Vec<Viewer>| {
        for viewer in &viewers {
            let told = viewer.wait_for_end(JOIN);
            assert!(told.iter().any(|status| status.contains("NetStream.Play.StreamNotFound")), "{told:?}");
        }
    };
    let (before, begun) = (lookups(&reactor), Instant::now());
    refused((0..1000).map(|_| Viewer::start(playback.rtmp(), "live", "nobody")).collect());
    let (asked, took) = (lookups(&reactor) - before, begun.elapsed());
    measured("1,000 viewers of one unknown name: lookups, time", (asked, took));
    assert!(asked <= took.as_secs_f64() + 2.0, "one lookup a second at most: {asked} in {took:?}");

    // Each with a name of its own: nothing of it stays. The first rounds bring the process to its working size.
    let mut resident = Vec::new();
    for round in 0..4 {
        let name = |number| format!("made/up/{round}/{number}");
        refused((0..1000).map(|number| Viewer::start(playback.rtmp(), "live", &name(number))).collect());
        playback.wait_for_metric("lb_streams", 0.0, SOON);
        playback.wait_for_metric("lb_connections", 0.0, SOON);
        resident.push(playback.resident());
    }
    measured("resident bytes after each 1,000 viewers of 1,000 unknown names", &resident);
    assert!(resident[3] < resident[1] + (4 << 20), "{resident:?}");
    wait_for("no workflow", SOON, || playback.metric("lb_pulls_in") == 0.0);
}
