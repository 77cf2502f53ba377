//! Viewers that are slow, stop, flap or vanish.

use crate::common::host::Host;
use crate::common::lb::Lb;
use crate::common::publisher::{Media, Publisher};
use crate::common::viewer::Viewer;
use crate::common::{SOON, poll, wait_for};
use crate::nodes::*;
use std::time::{Duration, Instant};

/// 8 Mb/s, so that what a viewer does not take is soon more than sockets hold.
const HEAVY: Media = Media {
    session: 1,
    rate: 25,
    gop: 25,
    frame_bytes: 40_000,
    audio: false,
    video: true,
    first_timestamp: 0,
    comes_back: None,
};

#[test]
fn stopped_viewers_are_closed_and_slow_ones_skip_at_nobodys_cost() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, playback) = (ingest(&url, &[]), playback(&url, &[]));
    let _publisher = publish(&a, "x", HEAVY);
    let healthy = watch(&playback, "x", 3, 1);
    let slow = Viewer::start_with(playback.rtmp(), "live", "x", Some(64 << 10));
    slow.wait_for_keyframe(1, SOON);
    // The ring reaches its size before anything is measured.
    let_pass(Duration::from_secs(4));
    let resident = playback.resident();
    let stopped: Vec<Viewer> =
        (0..20).map(|_| Viewer::start_with(playback.rtmp(), "live", "x", Some(64 << 10))).collect();
    wait_for_all(&stopped, 1);
    let begun = Instant::now();
    stopped.iter().chain([&slow]).for_each(Viewer::stop_reading);
    // Long enough to fall off the ring, too short to count as stopped.
    wait_for("a viewer to fall behind", SOON, || begun.elapsed() > Duration::from_secs(7));
    slow.read_on();
    playback.wait_for_metric("lb_viewer_stalls_total", 20.0, SOON);
    measured("20 stopped viewers of 8 Mb/s closed after", begun.elapsed());
    let grown = playback.resident().saturating_sub(resident);
    measured("memory gained by 20 stopped viewers, bytes", grown);
    assert!(grown < 24 << 20, "less than a ring");
    playback.wait_for_metric("lb_viewers", 4.0, SOON);
    assert_none_lost(&healthy);
    let gap = healthy.iter().map(|viewer| viewer.seen().longest_gap()).max().unwrap();
    measured("longest gap of viewers beside them", gap);
    assert!(gap < Duration::from_secs(1));
    // The slow one is still there, lost a piece that was counted, and is up to date again.
    assert!(slow.is_connected());
    let skips = playback.metric("lb_viewer_skips_total");
    let lost = playback.metric("lb_viewer_skipped_messages_total");
    measured("slow viewer: skips, messages lost", (skips, lost));
    assert!(skips >= 1.0 && lost >= 1.0);
    let newest =
        |viewer: &Viewer| viewer.seen().arrivals.last().and_then(|arrival| arrival.mark).unwrap().number;
    wait_for("the slow viewer to be up to date", SOON, || newest(&slow) + 5 > newest(&healthy[0]));
    let times: Vec<u32> =
        slow.seen().arrivals.iter().filter(|a| a.mark.is_some()).map(|a| a.timestamp).collect();
    assert!(times.is_sorted(), "time went back");
}

#[test]
fn a_pull_ends_with_its_last_viewer() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, playback) = (ingest(&url, &[]), playback(&url, &[]));
    let _publisher = publish(&a, "x", session(1));
    for _ in 0..3 {
        let mut viewers = watch(&playback, "x", 5, 1);
        a.wait_for_metric("lb_pulls_out", 1.0, SOON);
        let last = viewers.pop();
        drop(viewers);
        playback.wait_for_metric("lb_viewers", 1.0, SOON);
        assert_eq!(a.metric("lb_pulls_out"), 1.0, "somebody still watches");
        let begun = Instant::now();
        drop(last);
        a.wait_for_metric("lb_pulls_out", 0.0, Duration::from_secs(1));
        measured("pull ended after its last viewer left", begun.elapsed());
    }
}

#[test]
fn a_half_open_viewer_is_found_and_its_pull_ends() {
    let _machine = shared_machine();
    let host = Host::start();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let a = ingest(&url, &[]);
    // The viewer is outside, and the cable between it and the node is cut.
    let reactor_seen = format!("http://{}:{}", host.gateway(), reactor.reactor().port());
    let playback = Lb::start_on(&host, &playback_flags(&reactor_seen, &[]));
    drop(a);
    let a = Lb::start_on(&host, &ingest_flags(&reactor_seen, &[]));
    let publisher_host = Publisher::start(a.rtmp(), "ingest", "x", session(1));
    publisher_host.wait_for_keyframe();
    let viewers = watch(&playback, "x", 3, 1);
    // Only what leaves for the viewers' ports is dropped, so that everything else goes on.
    let port = playback.rtmp_port().to_string();
    host.run(&[
        "iptables",
        "-w",
        "-I",
        "OUTPUT",
        "-p",
        "tcp",
        "--sport",
        &port,
        "-d",
        &host.gateway().to_string(),
        "-j",
        "DROP",
    ]);
    host.run(&[
        "iptables",
        "-w",
        "-I",
        "INPUT",
        "-p",
        "tcp",
        "--dport",
        &port,
        "-s",
        &host.gateway().to_string(),
        "-j",
        "DROP",
    ]);
    let cut = Instant::now();
    playback.wait_for_metric("lb_viewers", 0.0, Duration::from_secs(45));
    measured("half-open viewers found after", cut.elapsed());
    a.wait_for_metric("lb_pulls_out", 0.0, Duration::from_secs(1));
    assert!(publisher_host.sent().ended.is_none());
    drop(viewers);
    host.mend();
}

/// What must be back where it was: descriptors of each process and the gauges of what lives in it.
fn footprint(nodes: &[&Lb]) -> Vec<(usize, Vec<f64>)> {
    let gauges = [
        "lb_connections",
        "lb_viewers",
        "lb_pulls_in",
        "lb_pulls_out",
        "lb_streams",
        "lb_pumps",
        "lb_publishers",
    ];
    let of = |node: &&Lb| (node.descriptors(), gauges.iter().map(|gauge| node.metric(gauge)).collect());
    nodes.iter().map(of).collect()
}

/// A viewer that comes back when it is refused, as players do: news of a publish may be a moment later than the viewer.
#[track_caller]
fn persistent_viewer(node: &Lb, name: &str) -> Viewer {
    let joined = poll(SOON, || {
        let viewer = Viewer::start(node.rtmp(), "live", name);
        let settled =
            || viewer.join_time().map(|_| true).or_else(|| (!viewer.is_connected()).then_some(false));
        (poll(SOON, settled) == Some(true)).then_some(viewer)
    });
    joined.unwrap_or_else(|| panic!("{name} cannot be joined"))
}

#[test]
fn flapping_leaves_nothing_behind() {
    /// An hour in which everybody comes and goes twice a minute, without the time in between.
    const ROUNDS: usize = 120;
    let _machine = whole_machine();
    let reactor = reactor(&[]);
    let (url, address) = (reactor.reactor_url(), reactor.reactor());
    let listen = format!("[::]:{}", address.port());
    let mut reactor = Some(reactor);
    let (a, b) =
        (ingest(&url, &["--publisher-grace", "500ms"]), ingest(&url, &["--publisher-grace", "500ms"]));
    let playback = playback(&url, &["--publisher-grace", "500ms"]);
    let nodes = [&a, &b, &playback];
    let small = Media { frame_bytes: 300, ..session(1) };
    let steady = publish(&a, "steady", small);
    let calm = || {
        for (node, gauge, value) in [
            (&playback, "lb_connections", 0.0),
            (&playback, "lb_pulls_in", 0.0),
            (&playback, "lb_streams", 0.0),
            (&a, "lb_publishers", 1.0),
            (&b, "lb_publishers", 0.0),
            (&a, "lb_connections", 1.0),
            (&b, "lb_connections", 0.0),
            (&a, "lb_streams", 1.0),
            (&b, "lb_streams", 0.0),
        ] {
            node.wait_for_metric(gauge, value, SOON);
        }
    };
    let mut flap = |round: usize, reactor_too: bool| {
        // Viewers that leave at every stage, publishers that jump between nodes, and now and then the reactor.
        let name = format!("flap{}", round % 5);
        let node = if round.is_multiple_of(2) { &a } else { &b };
        let publisher = publish(node, &name, small);
        let on_steady: Vec<Viewer> =
            (0..10).map(|_| Viewer::start(playback.rtmp(), "live", "steady")).collect();
        drop(on_steady);
        let stayed: Vec<Viewer> = (0..5).map(|_| persistent_viewer(&playback, &name)).collect();
        let vain: Vec<Viewer> = (0..5).map(|_| Viewer::start(playback.rtmp(), "live", "nobody")).collect();
        if reactor_too {
            reactor.take().unwrap().kill();
            reactor = Some(crate::nodes::reactor(&["--reactor-listen", &listen]));
            wait_until_whole(address);
        }
        if round.is_multiple_of(3) {
            publisher.leave()
        } else {
            drop(publisher)
        }
        drop((stayed, vain));
    };
    // The first rounds bring everything to its working size.
    (0..10).for_each(|round| flap(round, round == 5));
    calm();
    let memory = || nodes.map(|node| node.resident());
    let (before, resident) = (footprint(&nodes), memory());
    let begun = Instant::now();
    (0..ROUNDS).for_each(|round| flap(round, round % 10 == 5));
    calm();
    // Connections to reactors that were kept for reuse close by themselves in a while; there are few of them.
    let settled = |after: &[(usize, Vec<f64>)]| {
        before.iter().zip(after).all(|(before, after)| after.0 <= before.0 + 4 && before.1 == after.1)
    };
    wait_for("descriptors and gauges to be back", SOON, || settled(&footprint(&nodes)));
    let gained: Vec<i64> =
        memory().iter().zip(resident).map(|(now, then)| *now as i64 - then as i64).collect();
    measured("rounds of flapping, and their time", (ROUNDS, begun.elapsed()));
    measured(
        "descriptors before, after",
        (before.iter().map(|f| f.0).collect::<Vec<_>>(), nodes.map(|n| n.descriptors())),
    );
    measured("resident bytes gained by ingest a, ingest b, playback", &gained);
    assert!(gained.iter().all(|bytes| *bytes < 8 << 20), "{gained:?}");
    assert!(steady.sent().ended.is_none());
}
