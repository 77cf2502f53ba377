//! Which processes keep the records, and since when: the *generation* of what is stored.
//!
//! It changes when a server restarts, when a replica takes over (also when the first master gets its place back), when
//! a cluster's masters are others than before, and when everything was flushed. Every process that uses the store sees
//! the same number, since it is made of what the servers say.

use super::connect::{Connection, PREFIX, describe};
use super::scripts::Scripts;
use crate::registry::store::Memory;
use redis::cluster_routing::Slot;
use redis::{Cmd, ErrorKind, RedisResult};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long it is remembered, after the last process that used it, when a generation was first seen.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The slots of every cluster.
const SLOTS: usize = 16384;

/// A connection that works.
pub(super) struct Up {
    pub(super) connection: Connection,
    /// All masters answer, and are these. Nothing: a part of the cluster is missing.
    pub(super) whole: Option<Whole>,
    /// The slots of masters that the cluster has found to have failed. Calls for these are refused at once: the client
    /// would wait for those masters, and everybody else with it.
    pub(super) failed: Arc<HashSet<Slot>>,
}

/// What all masters together are.
pub(super) struct Whole {
    /// The masters' addresses.
    pub(super) masters: Vec<String>,
    /// The `run_id` of each, which every process of a server has anew.
    pub(super) processes: BTreeSet<String>,
    generation: u64,
    /// How old the generation was, and when that was.
    age: Duration,
    at: Instant,
}

impl Whole {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn memory(&self) -> Memory {
        Memory { generation: self.generation, age: self.age + self.at.elapsed() }
    }
}

/// Why a connection cannot be used any longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// It is closed, or leads to a server that cannot be used.
    #[error("{0}")]
    Broken(String),
    /// Nobody answers in time.
    #[error("no answer in time")]
    Silent,
}

/// Asks all masters who they are. An error: none of them can be used.
pub(super) async fn probe(on: &Connection, scripts: &Scripts, deadline: Duration) -> Result<Up, Lost> {
    let lost = match timeout(deadline, whole(on, scripts)).await {
        Ok(Ok(Some(whole))) => {
            return Ok(Up { connection: on.clone(), whole: Some(whole), failed: Arc::default() });
        }
        Ok(Ok(None)) => Lost::Broken("the cluster is not complete".to_owned()),
        Ok(Err(error)) => Lost::Broken(describe(&error)),
        Err(_) => Lost::Silent,
    };
    // One of the masters of a cluster does not answer, or serves nobody; is there any that does?
    if let Connection::Cluster(_) = on
        && let Ok(Ok(nodes)) = timeout(deadline, on.call(cluster("NODES"))).await
        && let Ok(nodes) = redis::from_redis_value::<String>(nodes)
    {
        return Ok(Up { connection: on.clone(), whole: None, failed: Arc::new(failed_slots(&nodes)) });
    }
    Err(lost)
}

async fn whole(connection: &Connection, scripts: &Scripts) -> RedisResult<Option<Whole>> {
    let info = |section: &str| {
        let mut info = redis::cmd("INFO");
        info.arg(section);
        connection.on_masters(info)
    };
    let (servers, replication) = tokio::try_join!(info("server"), info("replication"))?;
    if replication.iter().any(|(_, text)| line(text, "role") != Some("master")) {
        return match connection {
            Connection::One(_) => Err((ErrorKind::InvalidClientConfig, "the server is a replica").into()),
            // The cluster has another master by now, which is not known yet.
            Connection::Cluster(_) => Ok(None),
        };
    }
    if matches!(connection, Connection::Cluster(_)) && !complete(connection, servers.len()).await? {
        return Ok(None);
    }
    let ids = |texts: &[(String, String)], name| -> BTreeSet<String> {
        texts.iter().filter_map(|(_, text)| line(text, name)).map(str::to_owned).collect()
    };
    // The first is another one for each process, the second for each time that a process becomes a master.
    let (processes, terms) = (ids(&servers, "run_id"), ids(&replication, "master_replid"));
    if processes.len() != servers.len() {
        return Err((ErrorKind::UnexpectedReturnType, "a server without a run_id").into());
    }
    let together = digest(processes.iter().chain(&terms).map(String::as_bytes));
    let key = format!("{PREFIX}memory:{together:016x}");
    let kept = KEPT.as_secs().to_string();
    let seen = scripts.first_seen.call(connection, &key, &[kept.as_bytes()]).await?;
    let (first_seen, now): (u64, u64) = redis::from_redis_value(seen)?;
    Ok(Some(Whole {
        masters: servers.into_iter().map(|(address, _)| address).collect(),
        processes,
        // After a flush the processes are the same, but they were first seen at another time.
        generation: digest([&together.to_be_bytes(), &first_seen.to_be_bytes()]),
        age: Duration::from_millis(now.saturating_sub(first_seen)),
        at: Instant::now(),
    }))
}

/// Whether these are all masters of a cluster, and each of them serves its slots: one that has just joined refuses calls
/// for a while.
async fn complete(connection: &Connection, masters: usize) -> RedisResult<bool> {
    let serves = |info: &str| {
        let number = |name| line(info, name).and_then(|number| number.parse().ok());
        line(info, "cluster_state") == Some("ok")
            && number("cluster_slots_ok") == Some(SLOTS)
            && number("cluster_size") == Some(masters)
    };
    let said = connection.on_masters(cluster("INFO")).await?;
    Ok(said.len() == masters && said.iter().all(|(_, info)| serves(info)))
}

fn cluster(subcommand: &str) -> Cmd {
    let mut cluster = redis::cmd("CLUSTER");
    cluster.arg(subcommand);
    cluster
}

/// The slots of masters that a majority of the others says have failed, from what `CLUSTER NODES` says. A line is: id,
/// address, flags, master, ping, pong, epoch, link, and then the ranges of slots.
fn failed_slots(nodes: &str) -> HashSet<Slot> {
    let mut failed = HashSet::new();
    for line in nodes.lines() {
        let mut fields = line.split_ascii_whitespace();
        if fields.nth(2).is_some_and(|flags| flags.split(',').any(|flag| flag == "fail")) {
            let ranges = fields.skip(5).filter_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                Some(first.parse().ok()?..=last.parse().ok()?)
            });
            failed.extend(ranges.flatten().take(SLOTS).filter_map(Slot::new));
        }
    }
    failed
}

/// A field of what `INFO` says.
fn line<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn digest<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> u64 {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
        digest.update([0]);
    }
    let digest: [u8; 32] = digest.finalize().into();
    u64::from_be_bytes(std::array::from_fn(|index| digest.get(index).copied().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_of_masters_that_failed_are_known() {
        let nodes = "\
            a 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-5460\n\
            b 127.0.0.1:7001@17001 master,fail - 1 1 2 disconnected 5461-5463 6000 [93-<-a]\n\
            c 127.0.0.1:7002@17002 master,fail? - 1 1 3 connected 10923-16383\n\
            d 127.0.0.1:7003@17003 master,fail - 1 1 4 disconnected\n\
            e 127.0.0.1:7004@17004 slave,fail b 1 1 2 disconnected\n";
        let slots = [5461, 5462, 5463, 6000].map(|slot| Slot::new(slot).unwrap());
        assert_eq!(failed_slots(nodes), HashSet::from(slots));
        assert!(failed_slots("garbage fail fail fail - -").is_empty());
    }
}
