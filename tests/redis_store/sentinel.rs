//! A master and a replica, and three Sentinels that replace the one by the other.

use super::redis_server::RedisServer;
use super::*;
use std::net::SocketAddr;

struct Watched {
    master: RedisServer,
    replica: RedisServer,
    sentinels: Vec<RedisServer>,
}

impl Watched {
    /// Starts all, and waits until every Sentinel knows the replica and the others.
    async fn start() -> Watched {
        let quick = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let master = RedisServer::on_tcp(&quick);
        let (ip, port) = words(master.address());
        let replica = RedisServer::on_tcp(&[&quick[..], &["--replicaof", &ip, &port]].concat());
        let configuration = format!(
            "sentinel monitor main {ip} {port} 2\n\
             sentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 1000\n"
        );
        let sentinels: Vec<_> = (0..3).map(|_| RedisServer::sentinel(&configuration)).collect();
        let ready = async || {
            let synced = replica.cli(&["INFO", "replication"]).contains("master_link_status:up");
            let all = sentinels.iter().all(|sentinel| {
                let main = sentinel.cli(&["INFO", "sentinel"]);
                main.contains("status=ok") && main.contains("slaves=1,sentinels=3")
            });
            (synced && all).then_some(())
        };
        eventually("Sentinels that know each other", ready).await;
        Watched { master, replica, sentinels }
    }

    fn url(&self) -> String {
        let all: Vec<_> = self.sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect();
        format!("redis+sentinel://{}/main", all.join(","))
    }
}

fn words(address: SocketAddr) -> (String, String) {
    (address.ip().to_string(), address.port().to_string())
}

#[tokio::test]
async fn the_store_follows_the_master_that_sentinels_name() {
    let mut watched = Watched::start().await;
    let (one, two) = (connect(&watched.url()).await, connect(&watched.url()).await);
    let before = one.memory().unwrap();
    let x = stream("x");
    set(&one, &x, "1").await;
    let mut announcements = two.announcements();
    let replicated = async || (watched.replica.cli(&["EXISTS", "lb:stream:x"]) == "1").then_some(());
    eventually("the record on the replica", replicated).await;

    watched.master.kill();
    let begin = Instant::now();
    let after = other_memory(&one, before).await;
    measured("the master was killed; another one is used after", begin.elapsed());
    assert_eq!(other_memory(&two, before).await.generation, after.generation, "all see the same");
    assert!(one.memory().unwrap().age < Duration::from_secs(5), "what was written last may be lost");
    assert_eq!(get(&one, &x).await.as_deref(), Some("1"), "the replica had it");
    resync(&mut announcements).await;
    one.write(vec![announcing(write(&x, Some("1"), Some("2")), "on the new one")]).await.unwrap();
    assert_eq!(heard(&mut announcements).await, "on the new one");

    // It comes back as a replica of the other, and stays unused.
    let before = one.memory().unwrap();
    watched.master.restart();
    // Sentinel tells it so as well, after 8 s at best and sometimes only after a minute, which is not what is tested.
    let (host, port) = words(watched.replica.address());
    let told = async || watched.master.try_cli(&["REPLICAOF", &host, &port]).ok();
    eventually("the old master to listen", told).await;
    let demoted =
        async || watched.master.try_cli(&["ROLE"]).is_ok_and(|role| role.starts_with("slave")).then_some(());
    eventually("the old master as a replica", demoted).await;
    assert_eq!(one.memory().unwrap().generation, before.generation);

    // A planned change, while both are there: also a generation of its own.
    let synced = async || {
        let replication = watched.master.try_cli(&["INFO", "replication"]);
        replication.is_ok_and(|text| text.contains("master_link_status:up")).then_some(())
    };
    eventually("a replica that is up to date", synced).await;
    let planned = async || {
        // Refused until the Sentinels have seen the replica and their last failover is over.
        watched.sentinels[0].try_cli(&["SENTINEL", "FAILOVER", "main"]).ok()
    };
    eventually("a planned change", planned).await;
    let begin = Instant::now();
    other_memory(&one, before).await;
    measured("the master was replaced as planned; the new one is used after", begin.elapsed());
    let writable = async || {
        let change = write(&x, Some("2"), Some("3"));
        one.write(vec![change]).await.is_ok_and(|written| written == [Written::Done]).then_some(())
    };
    eventually("a write", writable).await;
}

#[tokio::test]
async fn sentinels_that_are_away_hurt_nobody_who_is_connected() {
    let mut watched = Watched::start().await;
    let store = connect(&watched.url()).await;
    // One that is away is passed over.
    watched.sentinels[0].kill();
    let late = connect(&watched.url()).await;
    for sentinel in &mut watched.sentinels {
        sentinel.kill();
    }
    let generation = store.memory().unwrap().generation;
    let begin = Instant::now();
    let asked = async || {
        get(&store, &stream("x")).await;
        (begin.elapsed() > Duration::from_secs(4)).then_some(())
    };
    eventually("the next question to the Sentinels", asked).await;
    assert_eq!(store.memory().unwrap().generation, generation);
    assert_eq!(late.memory().unwrap().generation, generation);
}

/// As when a master that the Sentinels have replaced cannot hear them, and takes itself for the master still.
#[tokio::test]
async fn a_master_that_does_not_know_of_its_successor_is_left() {
    let (old, new) = (RedisServer::on_tcp(&[]), RedisServer::on_tcp(&[]));
    let monitor = |server: &RedisServer| {
        let (ip, port) = words(server.address());
        format!("SENTINEL MONITOR main {ip} {port} 1")
    };
    let sentinel = RedisServer::sentinel("");
    let say = |line: &str| sentinel.cli(&line.split(' ').collect::<Vec<_>>());
    say(&monitor(&old));
    let store = connect(&format!("redis+sentinel://{}/main", sentinel.address())).await;
    let before = store.memory().unwrap();
    say("SENTINEL REMOVE main");
    say(&monitor(&new));
    let begin = Instant::now();
    other_memory(&store, before).await;
    measured("a master that does not know of its successor was left", begin.elapsed());
    set(&store, &stream("x"), "1").await;
    assert_eq!(new.cli(&["EXISTS", "lb:stream:x"]), "1");
}
