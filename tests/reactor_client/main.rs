//! The client of the reactor API against servers that do everything a server can do wrong.

// A test says what it expects by `unwrap` and indexing; a panic is its verdict.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod agent;
mod events;
mod lists;
mod lookups;
mod pushes;
mod server;

use lb::client::ClientMetrics;
use prometheus::Registry;
use server::{Deed, Server};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Longer than anything in these tests takes: a hang is a failure.
const HANG: Duration = Duration::from_secs(20);

fn metrics() -> (Registry, ClientMetrics) {
    let registry = Registry::new();
    let metrics = ClientMetrics::register(&registry).unwrap();
    (registry, metrics)
}

fn count(registry: &Registry, name: &str, label: &str) -> u64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
    let has =
        |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|pair| pair.value() == label);
    metrics.iter().filter(has).map(|metric| metric.get_counter().get_value() as u64).sum()
}

const HOUR: Duration = Duration::from_secs(3600);

/// A URL where nobody listens.
async fn nowhere() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A server that does one thing on each call, and can be told to do another.
async fn moody(first: Deed) -> (Server, impl Fn(Deed)) {
    let mood = Arc::new(std::sync::Mutex::new(first));
    let told = mood.clone();
    let server = Server::start(move |_| mood.lock().unwrap().clone()).await;
    (server, move |deed| *told.lock().unwrap() = deed)
}

/// Lets the others work until a counter has come so far.
async fn until(condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, reached).await.unwrap();
}

/// Lets time pass in no time. Sockets do not mix with a clock that is paused throughout.
async fn skip(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
