//! A cluster of three masters.

use super::redis_server::{RedisServer, free_address};
use super::*;
use lb::registry::store::{Kind, Unreachable};
use std::collections::BTreeSet;

/// The slots of each master.
const SLOTS: [(u32, u32); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

struct Cluster {
    masters: Vec<RedisServer>,
}

impl Cluster {
    /// Starts three masters, and waits until each of them finds the cluster complete.
    async fn start() -> Cluster {
        let masters: Vec<_> = (0..3).map(|_| member()).collect();
        for (master, (first, last)) in masters.iter().zip(SLOTS) {
            master.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
        }
        for (epoch, master) in (1..).zip(&masters) {
            master.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch.to_string()]);
        }
        for other in &masters[1..] {
            introduce(&masters[0], other);
        }
        let cluster = Cluster { masters };
        cluster.complete(3).await;
        cluster
    }

    async fn complete(&self, members: usize) {
        let known = format!("cluster_known_nodes:{members}");
        let complete = async || {
            let ok = |master: &RedisServer| {
                let info = master.cli(&["CLUSTER", "INFO"]);
                ["cluster_state:ok", "cluster_slots_ok:16384", &known].iter().all(|line| info.contains(line))
            };
            self.masters.iter().all(ok).then_some(())
        };
        eventually("a complete cluster", complete).await;
    }

    fn url(&self) -> String {
        let all: Vec<_> = self.masters.iter().map(|master| master.address().to_string()).collect();
        format!("redis+cluster://{}", all.join(","))
    }

    /// Which master has a stream's record.
    fn master_of(&self, name: &str) -> usize {
        let slot = self.masters[0].cli(&["CLUSTER", "KEYSLOT", &format!("lb:stream:{name}")]);
        let slot: u32 = slot.parse().unwrap();
        SLOTS.iter().position(|(first, last)| (*first..=*last).contains(&slot)).unwrap()
    }

    /// A stream's name of each master.
    fn names(&self) -> Vec<String> {
        let of =
            |index| (0..).map(|i| format!("live/{i}")).find(|name| self.master_of(name) == index).unwrap();
        (0..3).map(of).collect()
    }
}

/// Gives a master a replica, and waits until that is up to date.
async fn replicate(cluster: &Cluster, master: usize) -> RedisServer {
    let replica = member();
    introduce(&cluster.masters[0], &replica);
    cluster.complete(4).await;
    let id = cluster.masters[master].cli(&["CLUSTER", "MYID"]);
    let known = async || replica.cli(&["CLUSTER", "NODES"]).contains(&id).then_some(());
    eventually("the master is known", known).await;
    replica.cli(&["CLUSTER", "REPLICATE", &id]);
    let ready = async || {
        let synced = replica.cli(&["INFO", "replication"]).contains("master_link_status:up");
        let told = cluster.masters.iter().all(|member| member.cli(&["CLUSTER", "NODES"]).contains(" slave "));
        (synced && told).then_some(())
    };
    eventually("a replica that is up to date", ready).await;
    replica
}

/// A server whose masters go on when another one is gone.
fn member() -> RedisServer {
    let bus = free_address().port().to_string();
    RedisServer::on_tcp(&[
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-require-full-coverage",
        "no",
        "--cluster-node-timeout",
        "1000",
        "--cluster-config-file",
        "nodes.conf",
        "--repl-diskless-sync-delay",
        "0",
    ])
}

fn introduce(one: &RedisServer, other: &RedisServer) {
    let (ip, port) = (other.address().ip().to_string(), other.address().port().to_string());
    let bus = other.cli(&["CONFIG", "GET", "cluster-port"]);
    one.cli(&["CLUSTER", "MEET", &ip, &port, bus.lines().last().unwrap()]);
}

#[tokio::test]
async fn records_are_spread_over_the_masters_and_found_on_all() {
    let cluster = Cluster::start().await;
    for master in &cluster.masters {
        make_user(master, &format!("{RIGHTS} {CLUSTER_RIGHTS}"));
    }
    let with_rights = cluster.url().replace("://", "://reactor:secret@");
    let (one, two) = (connect(&cluster.url()).await, connect(&with_rights).await);
    assert_eq!(one.memory().unwrap().generation, two.memory().unwrap().generation);
    let keys: Vec<_> = (0..2_000).map(|i| stream(format!("live/{i}"))).collect();
    let begin = Instant::now();
    let writes = keys.iter().map(|key| write(key, None, Some("1"))).collect();
    assert_eq!(one.write(writes).await.unwrap(), vec![Written::Done; 2_000]);
    measured("2,000 records written to a cluster", begin.elapsed());
    for master in &cluster.masters {
        let size: u64 = master.cli(&["DBSIZE"]).parse().unwrap();
        assert!(size > 400, "{size}");
    }
    let begin = Instant::now();
    let listed: BTreeSet<_> = two.list(Kind::Stream).await.unwrap().into_iter().map(|(key, _)| key).collect();
    measured("2,000 records listed from a cluster", begin.elapsed());
    assert_eq!(listed, keys.iter().cloned().collect());
    let reads = two.read(keys.clone()).await.unwrap();
    assert!(reads.iter().all(|read| value(read).as_deref() == Some("1")));

    let mut announcements = two.announcements();
    for (name, other) in cluster.names().iter().zip(["a", "b", "c"]) {
        let change = announcing(write(&stream(name), Some("1"), Some(other)), name);
        let refused = announcing(write(&stream(name), Some("1"), None), "a conflict");
        let written = two.write(vec![change, refused]).await.unwrap();
        assert!(
            matches!(&written[..], [Written::Done, Written::Conflict(read)] if value(read).as_deref() == Some(other))
        );
        assert_eq!(heard(&mut announcements).await, *name);
    }
}

#[tokio::test]
async fn a_master_that_is_gone_costs_its_own_records_only() {
    let mut cluster = Cluster::start().await;
    let store = connect(&cluster.url()).await;
    let names = cluster.names();
    for name in &names {
        set(&store, &stream(name), "1").await;
    }
    let before = store.memory().unwrap();
    cluster.masters[1].kill();
    eventually("the loss", async || store.memory().is_none().then_some(())).await;
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let [gone, here] = [&names[1], &names[2 * (round % 2)]].map(stream);
        let (begin, lost) = (Instant::now(), store.read(vec![gone]));
        let found = async {
            let found = store.read(vec![here]).await;
            (found.map(|reads| value(&reads[0])), begin.elapsed())
        };
        let (lost, (found, took)) = tokio::join!(async { (lost.await, begin.elapsed()) }, found);
        assert_eq!(found, Ok(Some("1".into())));
        assert_eq!(lost.0, Err(Unreachable));
        assert!(lost.1 < Duration::from_secs(2), "{:?}", lost.1);
        slowest = slowest.max(took);
    }
    measured("20 calls for a master that is gone", begin.elapsed());
    measured("the slowest call of those for the others meanwhile", slowest);
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert_eq!(store.list(Kind::Stream).await, Err(Unreachable), "a list would not be whole");
    // Another process starts meanwhile, and is served in the same way.
    let late = connect(&cluster.url()).await;
    assert_eq!(late.memory(), None);
    assert_eq!(get(&late, &stream(&names[0])).await.as_deref(), Some("1"));

    cluster.masters[1].restart();
    let begin = Instant::now();
    let after = other_memory(&store, before).await;
    measured("a master that came back found again", begin.elapsed());
    assert!(after.age < Duration::from_secs(3), "{after:?}");
    assert_eq!(get(&store, &stream(&names[1])).await, None, "it came back empty");
    set(&store, &stream(&names[1]), "2").await;
    assert_eq!(store.list(Kind::Stream).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_master_that_hangs_costs_its_own_records_only() {
    let cluster = Cluster::start().await;
    let store = connect(&cluster.url()).await;
    let names = cluster.names();
    for name in &names {
        set(&store, &stream(name), "1").await;
    }
    let mut announcements = store.announcements();
    for hanging in 0..3 {
        let before = eventually("the whole cluster", async || store.memory()).await;
        cluster.masters[hanging].signal(libc::SIGSTOP);
        eventually("the loss", async || store.memory().is_none().then_some(())).await;
        let (here, mut slowest) = (&names[(hanging + 1) % 3], Duration::ZERO);
        let calls = async {
            for _ in 0..20 {
                let begin = Instant::now();
                assert_eq!(get(&store, &stream(here)).await.as_deref(), Some("1"));
                slowest = slowest.max(begin.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (lost, ()) = tokio::join!(store.read(vec![stream(&names[hanging])]), calls);
        assert_eq!(lost, Err(Unreachable));
        measured("the slowest call beside a master that hangs", slowest);
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        // Also where the subscription was on the one that hangs.
        let told = announcing(write(&stream(here), Some("1"), Some("1")), "still told");
        eventually("an announcement", async || {
            store.write(vec![told.clone()]).await.unwrap();
            let next = timeout(Duration::from_millis(300), announcements.recv()).await;
            matches!(next, Ok(Ok(announcement)) if announcement == "still told").then_some(())
        })
        .await;
        cluster.masters[hanging].signal(libc::SIGCONT);
        let back = eventually("the whole cluster", async || store.memory()).await;
        assert_eq!(back.generation, before.generation, "nothing was lost");
        cluster.complete(3).await;
    }
}

/// A client that does not reach a master waits for it when it learns the masters anew, and all callers with it.
#[tokio::test]
async fn a_master_that_hung_before_the_start_holds_nobody_up() {
    let cluster = Cluster::start().await;
    let names = cluster.names();
    set(&connect(&cluster.url()).await, &stream(&names[0]), "1").await;
    cluster.masters[1].signal(libc::SIGSTOP);
    let store = connect(&cluster.url()).await;
    let gone = vec![stream(&names[1])];
    eventually("the cluster's verdict", async || {
        let begin = Instant::now();
        assert_eq!(store.read(gone.clone()).await, Err(Unreachable));
        (begin.elapsed() < Duration::from_millis(5)).then_some(())
    })
    .await;
    let (mut slowest, all) = (Duration::ZERO, Instant::now());
    while all.elapsed() < Duration::from_secs(3) {
        assert_eq!(store.read(gone.clone()).await, Err(Unreachable));
        let begin = Instant::now();
        assert_eq!(get(&store, &stream(&names[0])).await.as_deref(), Some("1"));
        slowest = slowest.max(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    measured("the slowest call beside a master that hung before the start", slowest);
    assert!(slowest < Duration::from_millis(300), "{slowest:?}");
    cluster.masters[1].signal(libc::SIGCONT);
    eventually("the whole cluster", async || store.memory()).await;
    set(&store, &gone[0], "1").await;
}

#[tokio::test]
async fn a_replica_that_takes_over_is_used() {
    let mut cluster = Cluster::start().await;
    let replica = replicate(&cluster, 1).await;
    let store = connect(&cluster.url()).await;
    let (name, before) = (cluster.names()[1].clone(), store.memory().unwrap());
    set(&store, &stream(&name), "1").await;
    let key = format!("lb:stream:{name}");
    let replicated = async || replica.cli(&["KEYS", "*"]).contains(&key).then_some(());
    eventually("the record on the replica", replicated).await;
    cluster.masters[1].kill();
    let begin = Instant::now();
    let after = other_memory(&store, before).await;
    measured("a master of the cluster was killed; its replica is used after", begin.elapsed());
    assert!(after.age < Duration::from_secs(3), "what was written last may be lost: {after:?}");
    assert_eq!(get(&store, &stream(&name)).await.as_deref(), Some("1"));
    assert_eq!(store.write(vec![write(&stream(&name), Some("1"), Some("2"))]).await, Ok(vec![Written::Done]));
    assert_eq!(connect(&cluster.url()).await.memory().unwrap().generation, after.generation);
}

/// The client of a cluster follows to another master by itself, before this process knows which generation it is of.
#[tokio::test]
async fn no_record_is_missed_while_a_replica_takes_over() {
    let cluster = Cluster::start().await;
    let replica = replicate(&cluster, 1).await;
    let store = connect(&cluster.url()).await;
    let (key, before) = (stream(&cluster.names()[1]), store.memory().unwrap());
    set(&store, &key, "1").await;
    // What was written is lost with the old master.
    replica.cli(&["CONFIG", "SET", "replica-read-only", "no"]);
    eventually("the record on the replica", async || (replica.cli(&["DBSIZE"]) != "0").then_some(())).await;
    replica.cli(&["FLUSHALL"]);
    replica.cli(&["CLUSTER", "FAILOVER", "TAKEOVER"]);
    eventually("an answer of the replica", async || match store.read(vec![key.clone()]).await {
        Ok(reads) if reads[0].value.is_none() => Some(()),
        _ => None,
    })
    .await;
    assert_ne!(store.memory().map(|memory| memory.generation), Some(before.generation));
}
