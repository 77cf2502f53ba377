//! A restream has one owner: whatever its publisher does, the target sees one publisher at a time, and no long gap.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::http::{self, Response, WebServer};
use common::lb::Lb;
use common::nginx::Nginx;
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, wait_for};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// The longest time without media at the target while a publisher moves.
const GAP: Duration = Duration::from_secs(2);

/// What nginx says of its publishers.
#[derive(Clone, Debug)]
struct Target {
    calls: Arc<Mutex<Vec<(Instant, bool, String)>>>,
}

impl Target {
    fn start() -> (Target, WebServer) {
        let target = Target { calls: Arc::default() };
        let calls = target.calls.clone();
        let server = WebServer::start(move |request| {
            let value = |name: &str| {
                let found = request.body.split('&').find_map(|field| field.strip_prefix(name));
                found.unwrap_or_default().to_owned()
            };
            let begins = value("call=") == "publish";
            calls.lock().unwrap().push((Instant::now(), begins, value("clientid=")));
            Response { status: 200, body: String::new() }
        });
        (target, server)
    }

    /// How many publishes began so far. Fails if one began while another one was there.
    #[track_caller]
    fn publishes(&self) -> usize {
        let calls = self.calls.lock().unwrap();
        let mut present: Option<&str> = None;
        let mut count = 0;
        for (_, begins, client) in calls.iter() {
            match begins {
                true => {
                    assert!(present.is_none(), "two pushers at once: {calls:#?}");
                    present = Some(client);
                    count += 1;
                }
                false if present == Some(client) => present = None,
                false => {}
            }
        }
        count
    }
}

fn ingest(reactor: &Lb, target: &str, step: &str) -> (Lb, NamedTempFile) {
    let mut config = NamedTempFile::new().unwrap();
    let text = format!(
        "reactor publishers executor=simple_http update_interval=60 {{\n url ${{REACTOR_URL}}/publisher_lookup\n}}\n\
         workflow ingestion {{\n rtmp_receive rtmp_app=ingest stream_key=* reactor=publishers\n\
         rtmp_watch rtmp_app=pull_source stream_key=*\n {step} target={target}\n}}\n"
    );
    config.write_all(text.as_bytes()).unwrap();
    let path = config.path().to_str().unwrap();
    let node = Lb::start(&["--role", "ingest", "--reactor-url", &reactor.reactor_url(), "--config", path]);
    (node, config)
}

/// How a publisher goes to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// It takes leave, and comes to the other one.
    Clean,
    /// Its connection is half-open: it sends nothing more, and the old node has not noticed.
    HalfOpen,
    /// The old one goes on publishing: a second encoder has the key.
    Twice,
}

#[test]
fn ten_moves_between_three_nodes_have_one_pusher_each_and_short_gaps() {
    let (target, hooks) = Target::start();
    let directives =
        format!("on_publish http://{0}/p; on_publish_done http://{0}/d; notify_method post;", hooks.addr());
    let nginx = Nginx::start(&directives);
    let reactor = Lb::start(&["--role", "reactor"]);
    let nodes = [(); 3].map(|()| ingest(&reactor, &nginx.url("out"), "rtmp_push").0);
    wait_for("the reactor", SOON, || http::get(reactor.reactor(), "/readyz").status == 200);
    let viewer = Viewer::start(nginx.rtmp(), "live", "out");
    let media = |session| Media { session, gop: 12, ..Media::default() };
    let mut publisher = Publisher::start(nodes[0].rtmp(), "ingest", "x", media(1));
    let mut old = Vec::new();
    let arrived = |session: u16| viewer.seen().frames(session) >= 20;
    wait_for("the first publish at the target", SOON, || arrived(1));
    for number in 1..=10_u16 {
        let (session, node) = (number + 1, &nodes[usize::from(number) % nodes.len()]);
        let how = [Move::Clean, Move::HalfOpen, Move::Twice][usize::from(number) % 3];
        match how {
            Move::Clean => {
                publisher.leave();
                // An encoder takes longer than the word of its leave; one that is faster takes the name from a publish that has ended, and
                // four takeovers in a row are a fight.
                let known = || http::get(reactor.reactor(), "/streams/x").status != 404;
                wait_for("the name is free", SOON, || !known());
                publisher = Publisher::start(node.rtmp(), "ingest", "x", media(session));
            }
            Move::HalfOpen | Move::Twice => {
                if how == Move::HalfOpen {
                    publisher.hang();
                }
                let next = Publisher::start(node.rtmp(), "ingest", "x", media(session));
                old.push(std::mem::replace(&mut publisher, next));
            }
        }
        wait_for(&format!("publish {session} at the target ({how:?})"), SOON, || arrived(session));
        assert_eq!(target.publishes(), usize::from(session), "after {how:?}");
        old.clear();
    }
    let seen = viewer.seen().clone();
    assert!(seen.ended.is_none(), "{:?}", seen.ended);
    let mut gaps = Vec::new();
    for session in 2..=11 {
        let of = |session| seen.arrivals.iter().filter(move |a| a.mark.is_some_and(|m| m.session == session));
        let (last, first) = (of(session - 1).next_back().unwrap(), of(session).next().unwrap());
        gaps.push(first.at - last.at);
    }
    eprintln!("gaps at the target: {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < GAP), "{gaps:?}");
}

#[test]
fn a_node_that_has_not_heard_of_the_move_keeps_the_next_one_waiting() {
    let (target, hooks) = Target::start();
    let directives =
        format!("on_publish http://{0}/p; on_publish_done http://{0}/d; notify_method post;", hooks.addr());
    let nginx = Nginx::start(&directives);
    let reactor = Lb::start(&["--role", "reactor"]);
    let [old, new] = [(); 2].map(|()| ingest(&reactor, &nginx.url("out"), "rtmp_push").0);
    wait_for("the reactor", SOON, || http::get(reactor.reactor(), "/readyz").status == 200);
    let viewer = Viewer::start(nginx.rtmp(), "live", "out");
    let _first = Publisher::start(old.rtmp(), "ingest", "x", Media { session: 1, ..Media::default() });
    wait_for("the first publish at the target", SOON, || viewer.seen().frames(1) >= 20);
    // Its connection to the target stays, and it hears nothing.
    old.signal(libc::SIGSTOP);
    let second = Publisher::start(new.rtmp(), "ingest", "x", Media { session: 2, ..Media::default() });
    second.wait_for_keyframe();
    wait_for("the next one waits", SOON, || new.log().contains("push waits"));
    assert_eq!(target.publishes(), 1);
    old.signal(libc::SIGCONT);
    wait_for("the second publish at the target", SOON, || viewer.seen().frames(2) >= 20);
    assert_eq!(target.publishes(), 2);
}
