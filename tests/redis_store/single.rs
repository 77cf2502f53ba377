//! One server.

use super::redis_server::{RedisServer, free_address};
use super::*;
use lb::registry::store::{Kind, Unreachable};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::task::JoinSet;

#[tokio::test]
async fn a_record_is_what_was_written_and_expires() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let (x, n) = (stream("live/x"), node("n"));
    let reads = store.read(vec![x.clone(), n.clone()]).await.unwrap();
    assert_eq!((value(&reads[0]), value(&reads[1])), (None, None));
    set(&store, &x, "1").await;
    set(&store, &n, "2").await;
    let reads = store.read(vec![n.clone(), x.clone(), stream("y"), n.clone()]).await.unwrap();
    let values: Vec<_> = reads.iter().map(value).collect();
    assert_eq!(
        values,
        [Some("2".into()), Some("1".into()), None, Some("2".into())],
        "in the order of the keys"
    );
    let seconds: u64 = server.cli(&["TIME"]).lines().next().unwrap().parse().unwrap();
    assert!(
        reads[0].now / 1000 <= seconds && reads[0].now / 1000 + 5 > seconds,
        "{} {seconds}",
        reads[0].now
    );

    let short = Write { expiry: Some(Duration::from_millis(80)), ..write(&x, Some("1"), Some("short")) };
    let removed = write(&n, Some("2"), None);
    assert_eq!(store.write(vec![short, removed]).await, Ok(vec![Written::Done; 2]));
    assert_eq!(get(&store, &n).await, None);
    eventually("expiry", async || get(&store, &x).await.is_none().then_some(())).await;
    let kept = Write { expiry: None, ..write(&x, None, Some("kept")) };
    assert_eq!(store.write(vec![kept]).await, Ok(vec![Written::Done]));
    assert_eq!(server.cli(&["PTTL", "lb:stream:live/x"]), "-1");
}

#[tokio::test]
async fn a_write_that_expects_something_else_changes_nothing_and_says_what_is_there() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let (x, y) = (stream("x"), stream("y"));
    set(&store, &x, "1").await;
    let written = store
        .write(vec![
            write(&x, None, Some("2")),
            write(&y, Some("1"), Some("2")),
            write(&x, Some("2"), None),
            write(&y, None, Some("3")),
            // An empty record is not a missing one.
            write(&x, Some(""), Some("2")),
        ])
        .await
        .unwrap();
    let said: Vec<_> = written
        .iter()
        .map(|written| match written {
            Written::Done => "done".to_owned(),
            Written::Conflict(read) => format!("{:?}", value(read)),
        })
        .collect();
    assert_eq!(said, ["Some(\"1\")", "None", "Some(\"1\")", "done", "Some(\"1\")"]);
    assert_eq!((get(&store, &x).await, get(&store, &y).await), (Some("1".into()), Some("3".into())));
}

#[tokio::test]
async fn concurrent_writers_lose_no_update() {
    let server = RedisServer::start();
    let (key, mut writers) = (stream("counter"), JoinSet::new());
    for _ in 0..4 {
        let (store, key) = (connect(&server.url()).await, key.clone());
        writers.spawn(async move {
            let mut conflicts = 0;
            for _ in 0..50 {
                let mut before = get(&store, &key).await;
                loop {
                    let next = before.as_deref().map_or(0, |text| text.parse::<u64>().unwrap()) + 1;
                    let change = write(&key, before.as_deref(), Some(&next.to_string()));
                    match &store.write(vec![change]).await.unwrap()[..] {
                        [Written::Conflict(read)] => before = value(read),
                        _ => break,
                    }
                    conflicts += 1;
                }
            }
            conflicts
        });
    }
    let conflicts: u64 = writers.join_all().await.into_iter().sum();
    let store = connect(&server.url()).await;
    assert_eq!(get(&store, &key).await.as_deref(), Some("200"));
    assert!(conflicts > 0, "the writers met");
}

#[tokio::test]
async fn any_bytes_are_kept() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let all: Bytes = (0..=255u8).cycle().take(64 * 1024).collect();
    let (x, y) = (stream("x"), stream("y"));
    let binary = |key: &Key, value: &Bytes| Write { value: Some(value.clone()), ..write(key, None, None) };
    let written = store.write(vec![binary(&x, &all), binary(&y, &Bytes::new())]).await;
    assert_eq!(written, Ok(vec![Written::Done; 2]));
    let reads = store.read(vec![x.clone(), y]).await.unwrap();
    assert_eq!((reads[0].value.as_ref(), reads[1].value.as_ref()), (Some(&all), Some(&Bytes::new())));
    let change = Write { expected: Some(all), ..write(&x, None, Some("1")) };
    assert_eq!(store.write(vec![change]).await, Ok(vec![Written::Done]));
}

#[tokio::test]
async fn all_records_of_a_kind_are_listed() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let keys: Vec<_> = (0..5_000).map(|i| stream(format!("live/{i}"))).collect();
    let begin = Instant::now();
    let writes = keys.iter().map(|key| write(key, None, Some("record"))).collect();
    assert_eq!(store.write(writes).await.unwrap(), vec![Written::Done; 5_000]);
    measured("5,000 records written", begin.elapsed());
    set(&store, &node("n"), "node").await;
    server.cli(&["SET", "lb:stream:not a name", "x"]);
    server.cli(&["SET", "stream:other", "x"]);
    let begin = Instant::now();
    let list = store.list(Kind::Stream).await.unwrap();
    measured("5,000 records listed", begin.elapsed());
    assert_eq!(list.len(), 5_000);
    assert!(list.iter().all(|(_, read)| value(read).as_deref() == Some("record")));
    let listed: BTreeSet<_> = list.into_iter().map(|(key, _)| key).collect();
    assert_eq!(listed, keys.into_iter().collect());
    let nodes = store.list(Kind::Node).await.unwrap();
    assert_eq!(
        nodes.iter().map(|(key, read)| (key.clone(), value(read))).collect::<Vec<_>>(),
        [(node("n"), Some("node".into()))]
    );
}

#[tokio::test]
async fn what_was_written_is_announced_to_every_process_and_nothing_else() {
    let server = RedisServer::start();
    let (one, two) = (connect(&server.url()).await, connect(&server.url()).await);
    let (mut here, mut there) = (one.announcements(), two.announcements());
    let x = stream("x");
    let writes = vec![
        announcing(write(&x, None, Some("1")), "first"),
        announcing(write(&x, None, Some("2")), "conflict"),
        write(&x, Some("1"), Some("2")),
        announcing(write(&x, Some("2"), None), "removed"),
    ];
    one.write(writes).await.unwrap();
    for announcements in [&mut here, &mut there] {
        assert_eq!(heard(announcements).await, "first");
        assert_eq!(heard(announcements).await, "removed");
    }
    // Another database is another store.
    let elsewhere = connect(&format!("{}?db=1", server.url())).await;
    elsewhere.write(vec![announcing(write(&x, None, Some("1")), "elsewhere")]).await.unwrap();
    one.write(vec![announcing(write(&x, None, Some("1")), "last")]).await.unwrap();
    assert_eq!(heard(&mut there).await, "last");
    // Longer than anything of ours: not kept for each subscriber.
    server.cli(&["PUBLISH", "lb:changes:0", &"x".repeat(20_000)]);
    resync(&mut there).await;
}

#[tokio::test]
async fn a_key_of_another_type_counts_as_missing_and_hurts_no_other() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    set(&store, &stream("a"), "1").await;
    server.cli(&["LPUSH", "lb:stream:x", "foreign"]);
    let keys = ["a", "x", "y"].map(stream).to_vec();
    let values: Vec<_> = store.read(keys).await.unwrap().iter().map(value).collect();
    assert_eq!(values, [Some("1".into()), None, None]);
    let written = store
        .write(vec![
            write(&stream("x"), Some("1"), Some("2")),
            write(&stream("a"), Some("1"), Some("2")),
            write(&stream("x"), None, Some("3")),
        ])
        .await
        .unwrap();
    assert!(matches!(&written[0], Written::Conflict(read) if read.value.is_none()));
    assert_eq!(written[1..], [Written::Done, Written::Done], "the next write replaces it");
    assert_eq!(get(&store, &stream("x")).await.as_deref(), Some("3"));
    assert!(store.memory().is_some(), "the connection stays");
}

#[tokio::test]
async fn a_server_that_refuses_writes_is_still_read() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    set(&store, &stream("x"), "1").await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(store.write(vec![write(&stream("y"), None, Some("1"))]).await, Err(Unreachable));
    assert_eq!(get(&store, &stream("x")).await.as_deref(), Some("1"));
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    set(&store, &stream("y"), "1").await;
}

#[tokio::test]
async fn flushed_scripts_are_sent_again() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    set(&store, &stream("x"), "1").await;
    server.cli(&["SCRIPT", "FLUSH", "SYNC"]);
    assert_eq!(get(&store, &stream("x")).await.as_deref(), Some("1"));
    set(&store, &stream("y"), "1").await;
}

#[tokio::test]
async fn all_processes_see_the_same_memory_and_its_age() {
    let server = RedisServer::start();
    let one = connect(&server.url()).await;
    let first = one.memory().unwrap();
    assert!(first.age < Duration::from_secs(5), "{first:?}");
    let aged = async || one.memory().filter(|memory| memory.age > first.age + Duration::from_millis(300));
    eventually("age", aged).await;
    let second = connect(&server.url()).await.memory().unwrap();
    assert_eq!(first.generation, second.generation);
    assert!(second.age >= Duration::from_millis(300), "known from before: {second:?}");
    // A flush is a beginning, though no server restarted.
    let mut announcements = one.announcements();
    server.cli(&["FLUSHALL"]);
    let flushed = other_memory(&one, first).await;
    assert!(flushed.age < Duration::from_secs(2), "{flushed:?}");
    resync(&mut announcements).await;
}

#[tokio::test]
async fn a_restarted_server_is_found_again_with_another_memory() {
    let mut server = RedisServer::on_tcp(&[]);
    let store = connect(&server.url()).await;
    let x = stream("x");
    set(&store, &x, "1").await;
    let before = store.memory().unwrap();
    let mut announcements = store.announcements();
    server.kill();
    eventually("the outage", async || store.memory().is_none().then_some(())).await;
    let begin = Instant::now();
    for _ in 0..50 {
        assert_eq!(store.read(vec![x.clone()]).await, Err(Unreachable));
    }
    measured("50 calls of a server that is away", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(2), "nobody waits for it");
    server.restart();
    let begin = Instant::now();
    let after = other_memory(&store, before).await;
    measured("a restarted server found again", begin.elapsed());
    assert!(after.age < Duration::from_secs(2), "{after:?}");
    assert_eq!(get(&store, &x).await, None);
    resync(&mut announcements).await;
    store.write(vec![announcing(write(&x, None, Some("2")), "again")]).await.unwrap();
    assert_eq!(heard(&mut announcements).await, "again");
}

/// What the other one was told meanwhile may be lost.
#[tokio::test]
async fn a_server_that_was_a_replica_for_a_while_has_another_memory() {
    let (server, other) = (RedisServer::on_tcp(&[]), RedisServer::on_tcp(&[]));
    let store = connect(&server.url()).await;
    let before = store.memory().unwrap();
    let (ip, port) = (other.address().ip().to_string(), other.address().port().to_string());
    server.cli(&["REPLICAOF", &ip, &port]);
    eventually("the loss", async || store.memory().is_none().then_some(())).await;
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    let after = other_memory(&store, before).await;
    assert!(after.age < Duration::from_secs(5), "{after:?}");
    set(&store, &stream("x"), "1").await;
}

/// The first answer of a server that came back empty must not be taken for one of the old memory.
#[tokio::test]
async fn no_record_is_missed_while_the_memory_is_still_the_old_one() {
    let mut server = RedisServer::on_tcp(&[]);
    let store = Arc::new(connect(&server.url()).await);
    let x = stream("x");
    set(&store, &x, "1").await;
    let before = store.memory().unwrap();
    server.kill();
    server.restart();
    let (mut missing, begin) = (0, Instant::now());
    while missing < 20 {
        assert!(begin.elapsed() < SOON);
        match store.read(vec![x.clone()]).await {
            Ok(reads) if reads[0].value.is_none() => {
                assert_ne!(store.memory().map(|memory| memory.generation), Some(before.generation));
                missing += 1;
            }
            Ok(_) => panic!("the server is empty"),
            Err(Unreachable) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_in_time() {
    let server = RedisServer::on_tcp(&[]);
    let store = connect(&server.url()).await;
    let (x, before) = (stream("x"), store.memory().unwrap());
    set(&store, &x, "1").await;
    server.signal(libc::SIGSTOP);
    let begin = Instant::now();
    assert_eq!(store.read(vec![x.clone()]).await, Err(Unreachable));
    let first = begin.elapsed();
    assert_eq!(store.read(vec![x.clone()]).await, Err(Unreachable));
    measured("two calls of a server that hangs", (first, begin.elapsed()));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    server.signal(libc::SIGCONT);
    eventually("the server", async || store.memory()).await;
    // Many wait for an answer, but not any number.
    server.signal(libc::SIGSTOP);
    let begin = Instant::now();
    let calls = (0..8_200).map(|_| async {
        assert_eq!(store.read(vec![x.clone()]).await, Err(Unreachable));
        begin.elapsed()
    });
    let took = futures::future::join_all(calls).await;
    assert_eq!(took.iter().filter(|took| **took < Duration::from_millis(300)).count(), 8, "refused at once");
    server.signal(libc::SIGCONT);
    eventually("the server", async || store.memory()).await;
    assert_eq!(get(&store, &x).await.as_deref(), Some("1"));
    assert_eq!(store.memory().unwrap().generation, before.generation, "nothing was lost");
}

#[tokio::test]
async fn a_store_waits_for_its_server_and_takes_no_replica() {
    let address = free_address();
    let store = Redis::start(&format!("redis://user:secret@{address}/3")).unwrap();
    assert_eq!(format!("{store:?}"), format!("Redis {{ place: \"{address}/3\", .. }}"));
    assert_eq!(store.memory(), None);
    assert_eq!(store.read(vec![stream("x")]).await, Err(Unreachable));
    assert_eq!(store.list(Kind::Stream).await, Err(Unreachable));

    let master = RedisServer::on_tcp(&[]);
    let (ip, port) = (master.address().ip().to_string(), master.address().port().to_string());
    let server = RedisServer::on_tcp(&["--replicaof", &ip, &port, "--requirepass", "secret"]);
    let url = server.url().replace("redis://", "redis://:secret@");
    let store = Redis::start(&url).unwrap();
    assert_eq!(store.read(vec![stream("x")]).await, Err(Unreachable));
    let replicaof = ["--no-auth-warning", "-a", "secret", "REPLICAOF", "NO", "ONE"];
    server.cli(&replicaof);
    timeout(SOON, store.connected()).await.expect("a master now");
    set(&store, &stream("x"), "1").await;
}
