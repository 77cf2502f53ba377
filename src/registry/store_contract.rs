//! What every [`Store`] must do: one suite of tests that runs against each of them. The memory store runs on a paused
//! clock, the Redis store on a real server.

use super::store::{Key, Kind, Read, Store, Write, Written};
use super::{MAX_NODES, Memory, Redis, redis_server};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;

/// How long records last in these tests.
const SHORT: Duration = Duration::from_millis(300);

macro_rules! contract {
    ($($test:ident;)*) => {
        mod in_memory {
            $(#[tokio::test(start_paused = true)]
            async fn $test() {
                super::$test(std::sync::Arc::new(super::Memory::new())).await;
            })*
        }
        mod in_redis {
            $(#[tokio::test]
            async fn $test() {
                let server = super::redis_server::RedisServer::start();
                super::$test(super::connected(&server).await).await;
            })*
        }
    };
}

contract! {
    a_write_needs_what_the_record_was;
    of_writers_that_race_one_wins_each_time;
    writes_stand_for_themselves_and_answers_keep_their_order;
    records_expire_and_a_write_says_anew_when;
    all_records_of_a_kind_are_listed;
    only_what_happened_is_announced;
    a_subscriber_that_lags_is_told;
    time_goes_on_and_the_memory_is_one;
}

/// The store of a server, once it is connected.
pub(super) async fn connected(server: &redis_server::RedisServer) -> Arc<Redis> {
    let store = Redis::start(&server.url()).unwrap();
    let connected = async {
        while store.memory().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), connected).await.expect("no connection to Redis");
    Arc::new(store)
}

async fn a_write_needs_what_the_record_was(store: Arc<dyn Store>) {
    assert_eq!(value(&*store, "x").await, None);
    assert_eq!(one(&*store, write("x", None, Some("1"))).await, Written::Done);
    for wrong in [None, Some("2")] {
        let conflict = one(&*store, write("x", wrong, Some("3"))).await;
        assert!(matches!(conflict, Written::Conflict(Read { value: Some(is), .. }) if is == "1"));
    }
    assert_eq!(value(&*store, "x").await.as_deref(), Some("1"));
    assert_eq!(one(&*store, write("x", Some("1"), None)).await, Written::Done);
    assert!(matches!(
        one(&*store, write("x", Some("1"), None)).await,
        Written::Conflict(Read { value: None, .. })
    ));
    assert_eq!(one(&*store, write("x", None, None)).await, Written::Done, "nothing stays nothing");
}

async fn of_writers_that_race_one_wins_each_time(store: Arc<dyn Store>) {
    const WRITERS: u64 = 8;
    const TIMES: u64 = 20;
    let add = |store: Arc<dyn Store>| async move {
        for _ in 0..TIMES {
            let mut seen = value(&*store, "x").await;
            loop {
                let next = seen.as_deref().map_or(0, |text| text.parse::<u64>().unwrap()) + 1;
                match one(&*store, write("x", seen.as_deref(), Some(&next.to_string()))).await {
                    Written::Done => break,
                    Written::Conflict(read) => seen = read.value.map(text),
                }
            }
        }
    };
    let writers: Vec<_> = (0..WRITERS).map(|_| tokio::spawn(add(store.clone()))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(value(&*store, "x").await, Some((WRITERS * TIMES).to_string()), "no write was lost");
}

async fn writes_stand_for_themselves_and_answers_keep_their_order(store: Arc<dyn Store>) {
    one(&*store, write("b", None, Some("0"))).await;
    let writes = ["a", "b", "c", "a"].map(|name| write(name, None, Some(name)));
    let written = store.write(writes.to_vec()).await.unwrap();
    let done: Vec<_> = written.iter().map(|written| *written == Written::Done).collect();
    assert_eq!(done, [true, false, true, false], "one after the other also within a call");
    let keys = ["c", "none", "b", "a", "c"].map(stream);
    let reads = store.read(keys.to_vec()).await.unwrap().into_iter().map(|read| read.value.map(text));
    let expected = [Some("c"), None, Some("0"), Some("a"), Some("c")].map(|value| value.map(str::to_owned));
    assert_eq!(reads.collect::<Vec<_>>(), expected);
    assert!(
        store.read(Vec::new()).await.unwrap().is_empty() && store.write(Vec::new()).await.unwrap().is_empty()
    );
    // Any bytes, and many of them.
    let bytes: Bytes = (0..65_536_u32).map(|i| i as u8).collect();
    let big = Write { value: Some(bytes.clone()), ..write("big", None, None) };
    assert_eq!(one(&*store, big).await, Written::Done);
    assert_eq!(store.read(vec![stream("big")]).await.unwrap()[0].value, Some(bytes));
}

async fn records_expire_and_a_write_says_anew_when(store: Arc<dyn Store>) {
    let short = |expected, value| Write { expiry: Some(SHORT), ..write("x", expected, Some(value)) };
    one(&*store, write("stays", None, Some("1"))).await;
    one(&*store, short(None, "1")).await;
    tokio::time::sleep(SHORT / 2).await;
    one(&*store, short(Some("1"), "1")).await;
    tokio::time::sleep(SHORT * 3 / 4).await;
    assert_eq!(value(&*store, "x").await.as_deref(), Some("1"), "the later write counts");
    tokio::time::sleep(SHORT).await;
    assert_eq!(value(&*store, "x").await, None);
    assert_eq!(store.list(Kind::Stream).await.unwrap().len(), 1);
    assert_eq!(one(&*store, short(None, "2")).await, Written::Done, "an expired record is none");
    assert_eq!(one(&*store, write("x", Some("2"), Some("3"))).await, Written::Done);
    tokio::time::sleep(SHORT * 2).await;
    assert_eq!(value(&*store, "x").await.as_deref(), Some("3"), "without an expiry it stays");
    assert_eq!(value(&*store, "stays").await.as_deref(), Some("1"));
}

async fn all_records_of_a_kind_are_listed(store: Arc<dyn Store>) {
    let node = |index: usize| Key::Node(format!("node-{index}").parse().unwrap());
    let of = |key: Key| Write { key, ..write("x", None, Some("1")) };
    let count = MAX_NODES / 4;
    let keys = (0..count).flat_map(|index| [node(index), stream(&format!("live/{index}"))]);
    let writes: Vec<_> = keys.map(of).collect();
    for writes in writes.chunks(500) {
        store.write(writes.to_vec()).await.unwrap();
    }
    let mut nodes: Vec<_> = store.list(Kind::Node).await.unwrap().into_iter().map(|(key, _)| key).collect();
    let mut expected: Vec<_> = (0..count).map(node).collect();
    nodes.sort();
    expected.sort();
    assert_eq!(nodes, expected);
    let streams = store.list(Kind::Stream).await.unwrap();
    assert_eq!(streams.len(), count);
    assert!(
        streams.iter().all(|(key, read)| key.kind() == Kind::Stream && read.value.as_deref() == Some(b"1"))
    );
}

async fn only_what_happened_is_announced(store: Arc<dyn Store>) {
    let say = |expected, value, announce: &'static str| Write {
        announce: Some(Bytes::from_static(announce.as_bytes())),
        ..write("x", expected, value)
    };
    let mut heard = [store.announcements(), store.announcements()];
    one(&*store, say(None, Some("1"), "first")).await;
    one(&*store, say(None, Some("2"), "never")).await;
    one(&*store, write("x", Some("1"), Some("2"))).await;
    one(&*store, say(Some("2"), None, "last")).await;
    for heard in &mut heard {
        assert_eq!((next(heard).await, next(heard).await), ("first".to_owned(), "last".to_owned()));
    }
}

async fn a_subscriber_that_lags_is_told(store: Arc<dyn Store>) {
    let mut slow = store.announcements();
    let announce = Some(Bytes::from_static(b"again"));
    let writes = vec![Write { announce, ..write("x", None, None) }; 100];
    let lagged = async {
        loop {
            store.write(writes.clone()).await.unwrap();
            if slow.len() > 4000 && matches!(slow.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_)))
            {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), lagged).await.expect("it never lags");
}

async fn time_goes_on_and_the_memory_is_one(store: Arc<dyn Store>) {
    let before = (store.memory().unwrap(), store.read(vec![stream("x")]).await.unwrap()[0].now);
    tokio::time::sleep(SHORT).await;
    let after = (store.memory().unwrap(), store.read(vec![stream("x")]).await.unwrap()[0].now);
    assert_eq!(before.0.generation, after.0.generation);
    assert!(after.0.age >= before.0.age + SHORT / 2, "{before:?} {after:?}");
    assert!(after.1 >= before.1 + 150, "{before:?} {after:?}");
}

fn stream(name: &str) -> Key {
    Key::Stream(name.parse().unwrap())
}

fn write(name: &str, expected: Option<&str>, value: Option<&str>) -> Write {
    let bytes = |text: Option<&str>| text.map(|text| Bytes::copy_from_slice(text.as_bytes()));
    Write { key: stream(name), expected: bytes(expected), value: bytes(value), expiry: None, announce: None }
}

async fn one(store: &dyn Store, write: Write) -> Written {
    store.write(vec![write]).await.unwrap().remove(0)
}

async fn value(store: &dyn Store, name: &str) -> Option<String> {
    store.read(vec![stream(name)]).await.unwrap().remove(0).value.map(text)
}

async fn next(heard: &mut broadcast::Receiver<Bytes>) -> String {
    let announced = tokio::time::timeout(Duration::from_secs(5), heard.recv()).await;
    text(announced.expect("within 5 s").unwrap())
}

fn text(bytes: Bytes) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
