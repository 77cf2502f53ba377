//! The Redis store against real servers: one, one with TLS, Sentinel with a replica, and a cluster.
//!
//! `cargo test --test redis_store -- --nocapture` prints what was measured.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod cluster;
mod operation;
#[path = "../../src/registry/redis_server.rs"]
mod redis_server;
mod sentinel;
mod single;
mod tls;

use bytes::Bytes;
use lb::registry::Redis;
use lb::registry::store::{Key, Memory, Read, Store, Write, Written};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

/// The longest that a test waits for anything.
const SOON: Duration = Duration::from_secs(45);

/// What a user of the store may do, as docs/OPERATING.md says.
const RIGHTS: &str =
    "~lb:* &lb:* +eval +evalsha +get +set +del +expire +time +info +scan +publish +subscribe";

/// What it needs in a cluster besides.
const CLUSTER_RIGHTS: &str = "+cluster|info +cluster|nodes +cluster|slots +asking +ping";

/// Makes a user `reactor` with the password `secret`.
fn make_user(server: &redis_server::RedisServer, rights: &str) {
    let words = format!("ACL SETUSER reactor on >secret {rights}");
    server.cli(&words.split(' ').collect::<Vec<_>>());
}

/// A store that is connected.
async fn connect(url: &str) -> Redis {
    let store = Redis::start(url).unwrap();
    timeout(SOON, store.connected()).await.expect("the store is reached");
    store
}

fn stream(name: impl ToString) -> Key {
    Key::Stream(name.to_string().parse().unwrap())
}

fn node(name: &str) -> Key {
    Key::Node(name.parse().unwrap())
}

/// A write of a value where there must be another, or none.
fn write(key: &Key, expected: Option<&str>, value: Option<&str>) -> Write {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Write {
        key: key.clone(),
        expected: expected.map(bytes),
        value: value.map(bytes),
        expiry: Some(Duration::from_secs(60)),
        announce: None,
    }
}

fn announcing(mut write: Write, what: &str) -> Write {
    write.announce = Some(Bytes::copy_from_slice(what.as_bytes()));
    write
}

async fn set(store: &Redis, key: &Key, value: &str) {
    assert_eq!(store.write(vec![write(key, None, Some(value))]).await, Ok(vec![Written::Done]));
}

async fn get(store: &Redis, key: &Key) -> Option<String> {
    let reads = store.read(vec![key.clone()]).await.unwrap();
    value(&reads[0])
}

fn value(read: &Read) -> Option<String> {
    read.value.as_ref().map(|value| String::from_utf8(value.to_vec()).unwrap())
}

/// What is announced next that is not the word that something may have been missed.
async fn heard(announcements: &mut broadcast::Receiver<Bytes>) -> String {
    loop {
        match timeout(SOON, announcements.recv()).await.expect("an announcement") {
            Ok(announcement) if announcement.is_empty() => {}
            Ok(announcement) => return String::from_utf8(announcement.to_vec()).unwrap(),
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Waits for the word that something may have been missed.
async fn resync(announcements: &mut broadcast::Receiver<Bytes>) {
    loop {
        match timeout(SOON, announcements.recv()).await.expect("the word to resync") {
            Ok(announcement) if announcement.is_empty() => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// The memory once it is another one.
async fn other_memory(store: &Redis, before: Memory) -> Memory {
    eventually("another generation", async || match store.memory() {
        Some(memory) if memory.generation != before.generation => Some(memory),
        _ => None,
    })
    .await
}

async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(begin.elapsed() < SOON, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn measured(what: &str, value: impl std::fmt::Debug) {
    println!("measured: {what}: {value:?}");
}
