//! The reactor is away, forgets, hangs or talks nonsense; and publishers that want the same name.

use crate::common::host::Host;
use crate::common::http::{self, Response, WebServer};
use crate::common::lb::Lb;
use crate::common::publisher::{Media, Publisher};
use crate::common::viewer::Viewer;
use crate::common::{SOON, wait_for};
use crate::nodes::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// What a web server in front of a reactor answers of its own: 0, nothing; 200, a page; anything else, an error.
type Mood = Arc<AtomicU16>;

/// A web server that passes the two lookups on to a reactor, unless its mood says otherwise, and knows nothing else.
fn moody_server_before(reactor: SocketAddr, mood: Mood) -> WebServer {
    WebServer::start(move |request| {
        let page = |status| Response { status, body: "<html><body>It works!</body></html>".to_owned() };
        let known = ["/publisher_lookup", "/watcher_lookup"];
        match (mood.load(Ordering::Relaxed), request.line.split_once(' ')) {
            (0, Some(("POST", path))) if known.contains(&path) => {
                http::try_call(reactor, "POST", path, &request.body).unwrap_or_else(|_| page(502))
            }
            (0, _) => page(404),
            (status, _) => page(status),
        }
    })
}

/// The same, always in a good mood.
pub fn plain_server_before(reactor: SocketAddr) -> WebServer {
    moody_server_before(reactor, Mood::default())
}

#[test]
fn nobody_who_watches_notices_that_the_reactor_is_away() {
    let _machine = shared_machine();
    let (ingest_config, playback_config) = (busy_ingest_config(), busy_playback_config());
    let reactor = reactor(&[]);
    let (url, listen) = (reactor.reactor_url(), format!("[::]:{}", reactor.reactor().port()));
    let a = ingest(&url, &["--config", path(&ingest_config)]);
    let playback = playback(&url, &["--config", path(&playback_config)]);
    let _x = publish(&a, "x", session(1));
    let _y = publish(&a, "y", session(2));
    let viewers = watch(&playback, "x", 20, 1);
    drop(watch(&playback, "y", 1, 2));
    playback.wait_for_metric("lb_pulls_in", 1.0, SOON);

    reactor.kill();
    // The nodes ask each second here and each minute in operation: this stands for more than five minutes.
    let away = Instant::now();
    let unknown: Vec<Viewer> = (0..10).map(|_| Viewer::start(playback.rtmp(), "live", "z")).collect();
    let late = publish(&a, "late", session(3));
    let known = watch(&playback, "y", 1, 2);
    measured("join of a stream this node knew, reactor away", known[0].join_time().unwrap());
    for viewer in &unknown {
        let told = viewer.wait_for_end(SOON);
        let says = |text: &str| told.iter().any(|told| told.contains(text));
        assert!(says("StreamNotFound") && says("try again") && !says("http"), "{told:?}");
    }
    assert_eq!(playback.metric("lb_refusals_total{reason=\"reactor\"}"), 10.0);
    let held = away.elapsed();
    measured("hold of 10 viewers of an unknown stream until they are refused", held);
    assert!(held > Duration::from_secs(4) && held < Duration::from_secs(10));
    let asked = playback.metric("lb_lookups_total{kind=\"watcher\",result=\"unavailable\"}");
    measured("lookups for those 10 viewers, one at a time", asked);
    assert!(asked <= 14.0, "one lookup each half second, however many wait: {asked}");
    let_pass(Duration::from_secs(6).saturating_sub(away.elapsed()));
    let gap = viewers.iter().map(|viewer| viewer.seen().longest_gap()).max().unwrap();
    measured("longest gap of 20 viewers while the reactor was away", gap);
    assert_none_lost(&viewers);
    assert_none_lost(&known);
    assert!(gap < Duration::from_secs(1));
    assert_eq!(playback.metric("lb_pulls_started_total"), 3.0, "no pull was started anew");

    // Back again, it hears of everything by itself, of what was published meanwhile as well.
    let reactor = crate::nodes::reactor(&["--reactor-listen", &listen]);
    wait_for_owner(reactor.reactor(), "late", &a);
    watch(&playback, "late", 1, 3);
    assert_none_lost(&viewers);
    drop(late);
}

#[test]
fn a_reactor_that_lost_its_memory_never_denies_a_live_stream() {
    const STREAMS: u16 = 5;
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let (url, listen) = (reactor.reactor_url(), format!("[::]:{}", reactor.reactor().port()));
    let address = reactor.reactor();
    let (a, b) = (ingest(&url, &[]), ingest(&url, &[]));
    let playback = playback(&url, &[]);
    let names: Vec<String> = (1..=STREAMS).map(|number| format!("s{number}")).collect();
    let publishers: Vec<Publisher> = (1..=STREAMS)
        .map(|number| {
            publish(if number % 2 == 0 { &a } else { &b }, &names[number as usize - 1], session(number))
        })
        .collect();
    wait_until_whole(address);

    let done = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = names
        .iter()
        .cloned()
        .map(|name| {
            let done = done.clone();
            std::thread::spawn(move || {
                let mut answers = BTreeMap::<u16, u32>::new();
                while !done.load(Ordering::Relaxed) {
                    let body = format!("{{\"stream_name\":\"{name}\"}}");
                    let status =
                        http::try_call(address, "POST", "/watcher_lookup", &body).map_or(0, |r| r.status);
                    *answers.entry(status).or_default() += 1;
                }
                answers
            })
        })
        .collect();
    let mut refused = 0;
    let mut reactor = Some(reactor);
    for round in 0..3_usize {
        reactor.take().unwrap().kill();
        // Viewers of streams that this node never asked for arrive while nobody answers.
        let name = &names[round];
        let waiting = Viewer::start(playback.rtmp(), "live", name);
        let begun = Instant::now();
        reactor = Some(crate::nodes::reactor(&["--reactor-listen", &listen]));
        wait_until_whole(address);
        measured("reactor restarted with empty memory, whole after", begun.elapsed());
        waiting.wait_for_keyframe(round as u16 + 1, SOON);
        measured("viewer that came while it was away, join time", waiting.join_time().unwrap());
        refused += usize::from(!waiting.is_connected());
        // Whole means whole.
        for name in &names {
            assert!(
                stream(address, name).is_some(),
                "{name} is missing from a reactor that says it is whole"
            );
        }
    }
    done.store(true, Ordering::Relaxed);
    let mut answers = BTreeMap::<u16, u32>::new();
    for asker in askers {
        for (status, count) in asker.join().unwrap() {
            *answers.entry(status).or_default() += count;
        }
    }
    measured("lookups of live streams over 3 restarts, by status (0: no answer)", &answers);
    assert_eq!(answers.get(&404), None, "a live stream was denied");
    assert!(answers[&200] > 0 && answers.get(&503).is_some_and(|count| *count > 0), "{answers:?}");
    assert_eq!(refused, 0);
    assert!(publishers.iter().all(|publisher| publisher.sent().ended.is_none()));
}

#[test]
fn an_ingest_node_that_the_reactor_does_not_hear_gets_its_viewers_back() {
    let _machine = shared_machine();
    let host = Host::start();
    let reactor = reactor(&[]);
    let port = reactor.reactor().port().to_string();
    let playback = playback(&reactor.reactor_url(), &[]);
    let a = Lb::start_on(&host, &ingest_flags(&format!("http://{}:{port}", host.gateway()), &[]));
    wait_until_whole(reactor.reactor());
    let publisher = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 10, 1);
    // Only what goes to the reactor is lost. Its word is that the stream is gone, so the pull ends.
    let rule = ["OUTPUT", "-p", "tcp", "--dport", &port, "-j", "DROP"];
    host.run(&[&["iptables", "-w", "-I"], &rule[..]].concat());
    wait_for("the lease to lapse", SOON, || stream(reactor.reactor(), "x").is_none());
    playback.wait_for_metric("lb_pulls_in", 0.0, SOON);
    let frames = viewers[0].seen().frames(1);
    host.mend();
    let mended = Instant::now();
    wait_for("the picture to come back", SOON, || {
        viewers.iter().all(|viewer| viewer.seen().frames(1) > frames + 10)
    });
    measured("ingest node heard again by the reactor, picture back after", mended.elapsed());
    assert!(viewers.iter().all(Viewer::is_connected));
    assert!(publisher.sent().ended.is_none(), "the publisher never noticed");
    let times = |viewer: &Viewer| viewer.seen().arrivals.iter().map(|a| a.timestamp).collect::<Vec<_>>();
    assert!(viewers.iter().all(|viewer| times(viewer).is_sorted()));
}

#[test]
fn a_reactor_that_hangs_costs_its_deadline_and_nothing_else() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let a = ingest(&url, &[]);
    let playback = playback(&url, &[]);
    let _x = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 10, 1);
    drop(watch(&playback, "x", 1, 1));
    let _y = publish(&a, "y", session(2));
    drop(watch(&playback, "y", 1, 2));
    playback.wait_for_metric("lb_pulls_in", 1.0, SOON);

    reactor.signal(libc::SIGSTOP);
    let known = watch(&playback, "y", 1, 2);
    let join = known[0].join_time().unwrap();
    measured("join of a known stream, reactor hung (deadline 2 s)", join);
    assert!(join < Duration::from_secs(4));
    assert_none_lost(&viewers);
    assert!(viewers.iter().all(|viewer| viewer.seen().longest_gap() < Duration::from_secs(1)));
    // A node that stops does not wait for it either.
    let begun = Instant::now();
    drop((known, viewers));
    drop(playback);
    measured("stop of a playback node, reactor hung", begun.elapsed());
    reactor.signal(libc::SIGCONT);
}

#[test]
fn garbage_and_errors_never_replace_a_good_answer() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let a = ingest(&reactor.reactor_url(), &[]);
    let playback_config = busy_playback_config();
    let mood = Mood::default();
    let server = moody_server_before(reactor.reactor(), mood.clone());
    let playback = playback(&format!("http://{}", server.addr()), &["--config", path(&playback_config)]);
    let _x = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 10, 1);
    let before = server.seen().len();
    for status in [200, 500, 302] {
        mood.store(status, Ordering::Relaxed);
        let asked = server.seen().len();
        wait_for("more lookups", SOON, || server.seen().len() > asked + 1);
    }
    measured("lookups answered with garbage or errors, viewers lost 0", server.seen().len() - before);
    let late = watch(&playback, "x", 1, 1);
    assert_none_lost(&viewers);
    assert_none_lost(&late);
    assert!(playback.metric("lb_lookups_total{kind=\"watcher\",result=\"stale\"}") >= 3.0);
}

#[test]
fn the_next_reactor_is_asked_when_the_first_fails() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let broken = WebServer::start(|_| Response { status: 200, body: "}".to_owned() });
    // A port that nobody listens on, a server that talks nonsense, and the reactor.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let urls = format!("http://{closed},http://{},{}", broken.addr(), reactor.reactor_url());
    let a = ingest(&reactor.reactor_url(), &[]);
    let playback = playback(&urls, &[]);
    let _x = publish(&a, "x", session(1));
    wait_until_whole(reactor.reactor());
    let viewers = watch(&playback, "x", 1, 1);
    measured("join by the third reactor URL", viewers[0].join_time().unwrap());
    assert!(viewers[0].join_time().unwrap() < Duration::from_secs(3));
}

#[test]
fn the_newest_publisher_takes_over_once() {
    let _machine = shared_machine();
    let ingest_config = busy_ingest_config();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let config = ["--config", path(&ingest_config)];
    let (a, b) = (ingest(&url, &config), ingest(&url, &config));
    let playback = playback(&url, &[]);
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 10, 1);
    let second = publish(&b, "x", session(2));
    let taken = second.sent().accepted[0];
    let (ended, told) = first.wait_for_end(SOON);
    measured("loser told and closed after", ended.saturating_duration_since(taken));
    assert!(ended.saturating_duration_since(taken) < Duration::from_secs(1));
    assert!(told.iter().any(|status| status.contains("NetStream.Publish.BadName")), "{told:?}");
    // Five update intervals of a second.
    let_pass(Duration::from_secs(5));
    wait_for_owner(reactor.reactor(), "x", &b);
    assert_eq!(reactor.metric("lb_reactor_takeovers_total"), 1.0, "the name alternates");
    assert!(second.sent().ended.is_none());
    wait_for_all(&viewers, 2);
    assert_none_lost(&viewers);
}

#[test]
fn the_first_publisher_keeps_its_name() {
    let _machine = shared_machine();
    let ingest_config = busy_ingest_config();
    let reactor = reactor(&["--duplicate-publish", "first-wins"]);
    let url = reactor.reactor_url();
    let config = ["--config", path(&ingest_config)];
    let (a, b) = (ingest(&url, &config), ingest(&url, &config));
    let first = publish(&a, "x", session(1));
    let begun = Instant::now();
    let stubborn = Media { comes_back: Some(Duration::from_millis(300)), ..session(2) };
    let second = Publisher::start(b.rtmp(), "ingest", "x", stubborn);
    let (ended, told) = second.wait_for_end(SOON);
    measured("newcomer refused after", ended - begun);
    assert!(ended - begun < Duration::from_secs(1));
    assert!(told.iter().any(|status| status.contains("NetStream.Publish.BadName")), "{told:?}");
    let_pass(Duration::from_secs(5));
    assert!(first.sent().ended.is_none() && second.sent().accepted.is_empty());
    assert_eq!(reactor.metric("lb_reactor_takeovers_total"), 0.0);
    wait_for_owner(reactor.reactor(), "x", &a);
    // When the owner leaves, the other one gets in.
    first.leave();
    let left = Instant::now();
    second.wait_for_keyframe();
    measured("stubborn newcomer let in after the owner left", left.elapsed());
    wait_for_owner(reactor.reactor(), "x", &b);
}

#[test]
fn two_encoders_that_fight_are_held_apart() {
    let _machine = shared_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (a, b) = (ingest(&url, &[]), ingest(&url, &[]));
    let playback = playback(&url, &[]);
    let stubborn = |number| Media { comes_back: Some(Duration::from_millis(100)), ..session(number) };
    let first = Publisher::start(a.rtmp(), "ingest", "x", stubborn(1));
    first.wait_for_keyframe();
    let viewers: Vec<Viewer> = (0..10).map(|_| Viewer::start(playback.rtmp(), "live", "x")).collect();
    let second = Publisher::start(b.rtmp(), "ingest", "x", stubborn(2));
    wait_for("the fight to be held", SOON, || reactor.metric("lb_reactor_contested_total") >= 3.0);
    let takeovers = reactor.metric("lb_reactor_takeovers_total");
    let_pass(Duration::from_secs(4));
    measured(
        "takeovers until the name was held, and 4 s later",
        (takeovers, reactor.metric("lb_reactor_takeovers_total")),
    );
    assert_eq!(reactor.metric("lb_reactor_takeovers_total"), takeovers, "the fight goes on");
    assert!(takeovers <= 4.0);
    assert!(reactor.log().contains("publishers fight for a name"), "{}", reactor.log());
    assert!(viewers.iter().all(Viewer::is_connected));
    let standing = [&first, &second].iter().filter(|p| p.sent().statuses.len() < 100).count();
    assert_eq!(standing, 2, "refused encoders do not come back in a tight loop");
}
