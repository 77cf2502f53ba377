//! What is there runs out.

use crate::common::lb::Lb;
use crate::common::viewer::Viewer;
use crate::common::{SOON, http, wait_for};
use crate::nodes::*;

#[test]
fn a_node_without_descriptors_serves_whom_it_has() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let a = ingest(&url, &[]);
    let playback = Lb::start_by(&["prlimit", "--nofile=64:64"], &playback_flags(&url, &[]));
    let _publisher = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 10, 1);
    let herd: Vec<Viewer> = (0..100).map(|_| Viewer::start(playback.rtmp(), "live", "x")).collect();
    wait_for("refusals in the log", SOON, || playback.log().contains("no connection can be taken"));
    let served = || herd.iter().filter(|viewer| viewer.join_time().is_some()).count();
    wait_for("some to be served", SOON, || served() > 10);
    assert_none_lost(&viewers);
    measured("of 100 more viewers served with 64 descriptors in all", served());
    drop(herd);
    // Whoever waited in the kernel's queue comes and goes; then there is room again.
    wait_for("room for a new viewer", SOON, || {
        let viewer = Viewer::start(playback.rtmp(), "live", "x");
        crate::common::poll(SOON / 10, || viewer.join_time()).is_some()
    });
    assert!(playback.metric("lb_refusals_total{reason=\"exhausted\"}") >= 1.0);
    assert_none_lost(&viewers);
}

#[test]
fn connections_beyond_the_limits_are_refused_and_counted() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let a = ingest(&url, &[]);
    let playback = playback(&url, &["--max-connections", "20", "--max-connections-per-address", "12"]);
    let _publisher = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 12, 1);
    let more: Vec<Viewer> = (0..10).map(|_| Viewer::start(playback.rtmp(), "live", "x")).collect();
    more.iter().for_each(|viewer| drop(viewer.wait_for_end(SOON)));
    assert_eq!(playback.metric("lb_refusals_total{reason=\"connections_per_address\"}"), 10.0);
    assert_none_lost(&viewers);
    assert_eq!(http::get(playback.admin(), "/livez").status, 200);
    drop(viewers);
    playback.wait_for_metric("lb_connections", 0.0, SOON);
    watch(&playback, "x", 12, 1);
}

#[test]
fn an_address_that_joins_all_the_time_is_refused_until_it_pauses() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let a = ingest(&url, &[]);
    // The pull of the playback node is a connection and a play of the same address, at the ingest node.
    let playback = playback(&url, &["--max-joins-per-address", "20"]);
    let _publisher = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 8, 1);
    let more: Vec<Viewer> = (0..8).map(|_| Viewer::start(playback.rtmp(), "live", "x")).collect();
    wait_for("joins to be refused", SOON, || {
        playback.metric("lb_refusals_total{reason=\"joins_per_address\"}") >= 4.0
    });
    assert!(more.iter().filter(|viewer| viewer.join_time().is_some()).count() <= 2);
    assert_none_lost(&viewers);
    drop(more);
    wait_for("room for a new viewer", 2 * SOON, || {
        let viewer = Viewer::start(playback.rtmp(), "live", "x");
        crate::common::poll(SOON / 10, || viewer.join_time()).is_some()
    });
    assert_none_lost(&viewers);
}

#[test]
fn a_full_log_disk_stops_nothing() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let a = ingest(&url, &[]);
    // Standard error is a device that is always full.
    let playback = Lb::start_by(
        &["sh", "-c", "exec \"$0\" \"$@\" 2>/dev/full"],
        &playback_flags(&url, &["--log", "debug"]),
    );
    let _publisher = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 10, 1);
    wait_for("two seconds of media", SOON, || viewers.iter().all(|viewer| viewer.seen().frames(1) > 100));
    assert_none_lost(&viewers);
    measured("viewers lost with a full log disk", 0);
}
