//! Several reactors that share one Redis, and a Redis that goes away.

use crate::common::lb::Lb;
use crate::common::process::{self, Peer};
use crate::common::{SOON, http, wait_for};
use crate::nodes::*;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A real Redis without persistence: each start is with an empty memory.
struct Redis {
    directory: TempDir,
    process: Option<Peer>,
}

impl Redis {
    fn start() -> Redis {
        let mut redis = Redis { directory: tempfile::tempdir().unwrap(), process: None };
        redis.restart();
        redis
    }

    fn url(&self) -> String {
        format!("unix://{}/redis.sock", self.directory.path().display())
    }

    fn stop(&mut self) {
        self.process = None;
        std::fs::remove_file(self.directory.path().join("redis.sock")).ok();
    }

    fn restart(&mut self) {
        self.stop();
        let socket = self.directory.path().join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Peer::new(process::spawn_tool(command)));
        wait_for("Redis", SOON, || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }
}

#[test]
fn two_reactors_share_one_redis_that_restarts() {
    let _machine = shared_machine();
    let mut redis = Redis::start();
    let store = redis.url();
    let (one, two) = (reactor(&["--store", &store]), reactor(&["--store", &store]));
    let (a, b) = (ingest(&one.reactor_url(), &[]), ingest(&two.reactor_url(), &[]));
    let playback = playback(&two.reactor_url(), &[]);
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 10, 1);
    wait_for_owner(two.reactor(), "x", &a);
    first.leave();
    // It comes and goes by one reactor, and its viewers hear of it by the other.
    let second = publish(&b, "x", session(2));
    let sent = second.wait_for_keyframe();
    let last = viewers.iter().map(|viewer| viewer.wait_for_keyframe(2, SOON)).max().unwrap();
    measured("move between nodes of two reactors that share a Redis", last.saturating_duration_since(sent));
    assert!(last.saturating_duration_since(sent) < Duration::from_secs(1));

    wait_until_whole(one.reactor());
    wait_until_whole(two.reactor());
    let done = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = [one.reactor(), two.reactor()]
        .into_iter()
        .map(|reactor| {
            let done = done.clone();
            std::thread::spawn(move || {
                let mut answers = BTreeMap::<u16, u32>::new();
                while !done.load(Ordering::Relaxed) {
                    let answer =
                        http::try_call(reactor, "POST", "/watcher_lookup", "{\"stream_name\":\"x\"}");
                    *answers.entry(answer.map_or(0, |answer| answer.status)).or_default() += 1;
                }
                answers
            })
        })
        .collect();
    redis.stop();
    wait_for("the outage to be noticed", SOON, || two.log().to_lowercase().contains("redis"));
    let_pass(HEARTBEAT * 5);
    redis.restart();
    let back = Instant::now();
    wait_for("the lease to come back from a heartbeat", SOON, || {
        [&one, &two].iter().all(|reactor| stream(reactor.reactor(), "x").is_some())
    });
    measured("lease back after Redis restarted empty", back.elapsed());
    let_pass(HEARTBEAT * 5);
    done.store(true, Ordering::Relaxed);
    let answers: Vec<_> = askers.into_iter().map(|asker| asker.join().unwrap()).collect();
    measured("lookups of a live stream at both reactors, by status", &answers);
    assert!(
        answers.iter().all(|answers| !answers.contains_key(&404)),
        "a live stream was denied: {answers:?}"
    );
    assert_none_lost(&viewers);
    wait_for_owner(two.reactor(), "x", &b);
    drop(second);
}

#[test]
fn a_reactor_that_hangs_is_passed_over() {
    let _machine = shared_machine();
    let redis = Redis::start();
    let store = redis.url();
    // A lease, three heartbeats, must outlast the 2 s that a heartbeat loses to the hung reactor.
    let start = |role, flags: &[&str]| Lb::start(&[&["--role", role, "--heartbeat", "2s"], flags].concat());
    let (one, two) = (start("reactor", &["--store", &store]), start("reactor", &["--store", &store]));
    let urls = format!("{},{}", one.reactor_url(), two.reactor_url());
    let (a, playback) =
        (start("ingest", &["--reactor-url", &urls]), start("playback", &["--reactor-url", &urls]));
    let _x = publish(&a, "x", session(1));
    let _y = publish(&a, "y", session(2));
    wait_until_whole(one.reactor());
    wait_until_whole(two.reactor());
    let viewers = watch(&playback, "x", 5, 1);
    one.signal(libc::SIGSTOP);
    // Of a stream that this node never asked for.
    let late = watch(&playback, "y", 1, 2);
    let join = late[0].join_time().unwrap();
    measured("join of a cold stream, first of two reactors hung (deadline 2 s)", join);
    assert!(join < Duration::from_secs(4));
    // The leases go on by the other one, and so do new publishers.
    let begun = Instant::now();
    let _z = publish(&a, "z", session(3));
    measured("publish, first of two reactors hung", begun.elapsed());
    wait_for_owner(two.reactor(), "z", &a);
    let_pass(Duration::from_secs(7));
    for name in ["x", "y", "z"] {
        wait_for_owner(two.reactor(), name, &a);
    }
    assert_none_lost(&viewers);
    assert_none_lost(&late);
    one.signal(libc::SIGCONT);
}
