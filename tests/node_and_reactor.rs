//! A node's list of publishes and a real reactor, without the media between.

// A test fails by panicking; Clippy's switch for tests does not reach helpers outside of `#[test]` functions.
#![allow(clippy::expect_used)]

mod common;

use common::lb::Lb;
use common::{http, wait_for};
use lb::api::Heartbeat;
use lb::client::{Agent, AgentSettings, ClientMetrics, Http};
use lb::ids::SessionId;
use lb::published::{Published, Registration};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// For thousands of streams, on a machine that does other things too.
const WHILE: Duration = Duration::from_secs(60);

/// A publish that was let in.
fn publish(published: &Arc<Published>, name: &str) -> Registration {
    let registration =
        published.register(&name.parse().expect("a name"), SessionId::random(), None, oneshot::channel().0);
    registration.accepted();
    registration
}

fn agent(reactor: &Lb, published: &Arc<Published>, registry: &prometheus::Registry) -> Agent {
    let settings = AgentSettings {
        http: Http::new().expect("a client"),
        reactors: reactor.reactor_url().parse().expect("a URL"),
        node: "n1".parse().expect("a node id"),
        interval: Duration::from_secs(2),
    };
    let metrics = ClientMetrics::register(registry).expect("metrics");
    Agent::start(settings, published.clone(), Heartbeat::default, metrics)
}

/// Heartbeats that a reactor took.
fn taken(registry: &prometheus::Registry) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == "lb_heartbeats_total");
    let counters = family.map(|family| family.get_metric()).unwrap_or_default();
    let ok = counters.iter().filter(|counter| counter.get_label().iter().any(|label| label.value() == "ok"));
    ok.map(|counter| counter.get_counter().get_value()).sum()
}

/// Streams that a reactor says it knows.
fn known(reactor: &Lb) -> usize {
    let (mut count, mut path) = (0, "/streams".to_owned());
    loop {
        let body = http::get(reactor.reactor(), &path).body;
        // A reactor that is warming up lists nothing.
        let Ok(list) = serde_json::from_str::<lb::api::StreamList>(&body) else { return 0 };
        count += list.streams.len();
        match list.next {
            Some(next) => path = format!("/streams?after={next}"),
            None => return count,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reactor_knows_thousands_of_streams_of_a_node_and_learns_them_again_after_a_restart() {
    let reactor = Lb::start(&["--role", "reactor", "--heartbeat", "2s"]);
    let listen = format!("[::]:{}", reactor.reactor().port());
    let published = Published::new();
    let mut publishers: Vec<_> = (0..4_000).map(|n| publish(&published, &format!("{n:0>255}"))).collect();
    let metrics = prometheus::Registry::new();
    let agent = agent(&reactor, &published, &metrics);
    let knows = |reactor: &Lb, count| {
        tokio::task::block_in_place(|| {
            wait_for(&format!("{count} known streams"), WHILE, || known(reactor) == count);
        });
    };
    knows(&reactor, 4_000);
    publishers.truncate(3_600);
    publishers.extend((0..100).map(|n| publish(&published, &format!("new{n}"))));
    knows(&reactor, 3_700);

    reactor.kill();
    // What changes while there is no reactor.
    publishers.truncate(3_650);
    let reactor = Lb::start(&["--role", "reactor", "--heartbeat", "2s", "--reactor-listen", &listen]);
    knows(&reactor, 3_650);
    tokio::task::block_in_place(|| {
        wait_for("a reactor that is whole", WHILE, || http::get(reactor.reactor(), "/readyz").status == 200);
    });
    let name = format!("{{\"stream_name\":\"{:0>255}\"}}", 3_599);
    assert_eq!(http::post(reactor.reactor(), "/watcher_lookup", &name).status, 200);
    // All leases outlive their time by heartbeats that name few of them.
    let before = taken(&metrics);
    tokio::task::block_in_place(|| wait_for("four heartbeats", WHILE, || taken(&metrics) >= before + 4.0));
    assert_eq!(known(&reactor), 3_650);
    agent.shutdown().await;
    assert_eq!(known(&reactor), 0);
}
