//! The registry in a Redis or Valkey server, shared by any number of reactors.
//!
//! Every operation is one server-side script, so that reactors cannot get in between each other's steps; expiry follows
//! the server's clock. While the server cannot be reached, this process answers from what it last saw (names it knows,
//! renewals of those), refuses the rest with [`Error::Unavailable`], and never says that a name does not exist. A
//! server that lost its data, or was replaced, warms up like an empty memory: leases come back with the heartbeats.
//!
//! One server, or one primary with replicas: Redis Cluster is not supported, as a script touches many keys.

mod known;
mod link;

use super::{
    Changes, Claim, Error, Lease, MAX_NODES, Policy, Registry, Settings, Stats, Status, heartbeat_lease,
    heartbeat_origin, log_takeover, millis, plausible, streams_by_node, warn_left_out,
};
use crate::api::{Heartbeat, HeartbeatReply, NodeEntry, PublishedStream, PublisherRelease};
use crate::ids::{NodeId, SessionId, StreamName};
use futures::future::{BoxFuture, FutureExt};
use link::{Down, Link};
use redis::{Client, ConnectionAddr, FromRedisValue, IntoConnectionInfo, Script, Value};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// The beginning of all keys.
const PREFIX: &str = "lb:";

/// Streams that one script call goes through, so that it holds the server up for some 50 ms at most.
const BATCH: usize = 1000;

const SCRIPT: &str = include_str!("registry.lua");

/// The text is not the address of a Redis server. Says nothing of the text, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the store is not an address of the form redis://[USER:PASSWORD@]HOST[:PORT][/DB] or unix:///PATH[?db=DB]"
)]
pub struct RedisUrlError;

/// A [`Registry`] in a Redis server.
pub struct Redis {
    shared: Arc<Shared>,
    /// Ends the task that keeps the connection together with the registry.
    _keeper: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("place", &self.shared.link.place).finish_non_exhaustive()
    }
}

struct Shared {
    settings: Settings,
    script: Script,
    channel: String,
    link: Link,
    takeovers: AtomicU64,
    contested: AtomicU64,
    /// From the last sweep.
    streams: AtomicU64,
    nodes: AtomicU64,
    /// Milliseconds that were left of the warm-up at the last sweep.
    warming: AtomicU64,
}

/// A lease as the script writes it.
type RawLease = (String, String, String, u64, String, u64, u64);

impl Redis {
    /// Starts to connect, and goes on trying for as long as the registry lives. `url` is
    /// `redis://[user:password@]host[:port][/db]` or `unix:///path[?db=n]`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(url: &str, settings: Settings) -> Result<Self, RedisUrlError> {
        let info = url.into_connection_info().map_err(|_| RedisUrlError)?;
        let db = info.redis.db;
        let place = match &info.addr {
            ConnectionAddr::Tcp(host, port) => format!("{host}:{port}/{db}"),
            ConnectionAddr::Unix(path) => format!("{}?db={db}", path.display()),
            // No TLS is built in.
            ConnectionAddr::TcpTls { .. } => return Err(RedisUrlError),
        };
        // Channels know no databases.
        let channel = format!("{PREFIX}changes:{db}");
        let client = Client::open(info).map_err(|_| RedisUrlError)?;
        let shared = Arc::new(Shared {
            settings,
            script: Script::new(SCRIPT),
            link: Link::new(client, place, channel.clone()),
            channel,
            takeovers: AtomicU64::new(0),
            contested: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            nodes: AtomicU64::new(0),
            warming: AtomicU64::new(millis(settings.warm_up)),
        });
        let keeper = tokio::spawn({
            let shared = shared.clone();
            async move { shared.link.run(|| shared.learn(), || shared.sweep()).await }
        });
        Ok(Redis { shared, _keeper: AbortOnDropHandle::new(keeper) })
    }

    /// Whether the server cannot be reached.
    pub fn degraded(&self) -> bool {
        !*self.shared.link.up.borrow()
    }

    /// Waits until the server is reached.
    pub async fn connected(&self) {
        // The sender lives in `self`.
        let _ = self.shared.link.up.subscribe().wait_for(|up| *up).await;
    }
}

impl Shared {
    /// Runs an operation of the script: five arguments, missing ones are empty, and then the streams it is about.
    async fn call_about<T: FromRedisValue>(
        &self,
        op: &str,
        mut args: Vec<String>,
        streams: impl IntoIterator<Item = String>,
    ) -> Result<T, Down> {
        args.resize(5, String::new());
        args.extend(streams);
        self.call(op, args).await
    }

    async fn call<T: FromRedisValue>(&self, op: &str, args: Vec<String>) -> Result<T, Down> {
        let Settings { policy, lease, warm_up, max_streams } = self.settings;
        let policy = match policy {
            Policy::Takeover => "takeover",
            Policy::FirstWins => "first-wins",
        };
        let mut invocation = self.script.key(PREFIX);
        invocation.key(&self.channel).arg(op).arg(policy);
        invocation.arg(millis(lease)).arg(millis(warm_up)).arg(max_streams).arg(MAX_NODES);
        for arg in args {
            invocation.arg(arg);
        }
        self.link.call(|mut connection| async move { invocation.invoke_async(&mut connection).await }).await
    }

    async fn sweep(&self) -> Result<(), Down> {
        let (streams, nodes, warming) = self.call("sweep", Vec::new()).await?;
        self.streams.store(streams, Relaxed);
        self.nodes.store(nodes, Relaxed);
        self.warming.store(warming, Relaxed);
        Ok(())
    }

    /// Learns what was there before this process was: all of it is needed when the server goes away.
    async fn learn(&self) -> Result<(), Down> {
        for lease in self.leases().await? {
            self.link.known.saw(&lease);
        }
        Ok(())
    }

    async fn claim(&self, claim: Claim) -> Result<Lease, Error> {
        let args = vec![
            claim.name.to_string(),
            optional(claim.session.as_ref()),
            optional(claim.node.as_ref()),
            claim.origin.to_string(),
            claim.source.to_string(),
        ];
        let Ok(reply) = self.call::<Vec<Value>>("claim", args).await else {
            return self.link.known.renewal(&claim).ok_or(Error::Unavailable);
        };
        let name = claim.name;
        match (word(&reply, 0)?.as_str(), reply.get(1)) {
            ("ok", _) => {
                let lease = lease(field(&reply, 1)?)?;
                let takeovers: u64 = field(&reply, 2)?;
                if takeovers > 0 {
                    self.takeovers.fetch_add(takeovers, Relaxed);
                    let held = Duration::from_millis(field(&reply, 3)?);
                    log_takeover(&lease.name, &lease.origin, lease.epoch, held);
                }
                self.link.known.saw(&lease);
                Ok(lease)
            }
            ("superseded", _) => Err(Error::Superseded(name)),
            ("full", _) => Err(Error::Full(self.settings.max_streams, "streams")),
            ("taken", Some(_)) => Err(Error::Taken(name, word(&reply, 1)?.parse().map_err(garbled)?)),
            ("contested", Some(_)) => {
                self.contested.fetch_add(1, Relaxed);
                let origin = word(&reply, 1)?.parse().map_err(garbled)?;
                Err(Error::Contested { name, origin, held: Duration::from_millis(field(&reply, 2)?) })
            }
            _ => Err(Error::Unavailable),
        }
    }

    async fn release(&self, name: StreamName, session: SessionId) -> Result<bool, Error> {
        let args = vec![name.to_string(), session.to_string()];
        let owned = self.call("release", args).await.map_err(unavailable)?;
        if owned {
            self.link.known.gone(&name);
        }
        Ok(owned)
    }

    async fn owner(&self, name: StreamName) -> Result<Option<Lease>, Error> {
        let Ok(reply) = self.call::<Vec<Value>>("owner", vec![name.to_string()]).await else {
            return self.link.known.get(&name).map(Some).ok_or(Error::Unavailable);
        };
        if word(&reply, 0)? == "ok" {
            let lease = lease(field(&reply, 1)?)?;
            self.link.known.saw(&lease);
            return Ok(Some(lease));
        }
        match field(&reply, 1)? {
            0 => {
                self.link.known.gone(&name);
                Ok(None)
            }
            // The server forgot, this process did not.
            left => match self.link.known.get(&name) {
                Some(lease) => Ok(Some(lease)),
                None => Err(Error::WarmingUp(Duration::from_millis(left))),
            },
        }
    }

    async fn leases(&self) -> Result<Vec<Lease>, Down> {
        let names: Vec<String> = self.call("names", Vec::new()).await?;
        let mut leases = Vec::with_capacity(names.len());
        for names in names.chunks(BATCH) {
            let raw: Vec<RawLease> = self.call_about("leases", Vec::new(), names.iter().cloned()).await?;
            leases.extend(raw.into_iter().filter_map(|raw| lease(raw).ok()));
        }
        Ok(leases)
    }

    async fn list(&self) -> Result<Vec<Lease>, Error> {
        let mut leases = self.leases().await.map_err(unavailable)?;
        leases.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(leases)
    }

    async fn heartbeat(
        &self,
        node: NodeId,
        mut heartbeat: Heartbeat,
        source: IpAddr,
    ) -> Result<HeartbeatReply, Error> {
        let origin = heartbeat_origin(&heartbeat, source);
        let mut streams = std::mem::take(&mut heartbeat.streams);
        let args = vec![
            node.to_string(),
            millis(heartbeat_lease(&heartbeat)).to_string(),
            u8::from(heartbeat.draining).to_string(),
            origin.to_string(),
            serde_json::to_string(&heartbeat).map_err(garbled)?,
        ];
        let (mut reply, mut left_out) = (HeartbeatReply::default(), 0);
        loop {
            let batch: Vec<_> = streams.drain(..streams.len().min(BATCH)).collect();
            let texts = batch.iter().flat_map(|stream| {
                let epoch = optional(plausible(stream.epoch).as_ref());
                [stream.stream_name.to_string(), stream.session.to_string(), epoch]
            });
            let Ok(verdicts) = self.call_about::<Vec<Value>>("heartbeat", args.clone(), texts).await else {
                reply.owned.extend(self.confirmed(batch.into_iter().chain(streams)));
                break;
            };
            if verdicts.is_empty() {
                return Err(Error::Full(MAX_NODES, "nodes"));
            }
            let verdicts: Vec<(String, u64, u64)> = field(&verdicts, 1)?;
            for (PublishedStream { stream_name, session, .. }, (verdict, epoch, took)) in
                batch.into_iter().zip(verdicts)
            {
                self.takeovers.fetch_add(took, Relaxed);
                match verdict.as_str() {
                    "owned" => {
                        self.link.known.confirmed(&stream_name, &node, session, epoch, &origin);
                        reply.owned.push(PublishedStream { stream_name, session, epoch: Some(epoch) });
                    }
                    "superseded" => reply.superseded.push(PublisherRelease { stream_name, session }),
                    _ => left_out += 1,
                }
            }
            if streams.is_empty() {
                break;
            }
        }
        warn_left_out(&node, left_out);
        Ok(reply)
    }

    /// During an outage nobody loses a name; those that are known are confirmed.
    fn confirmed(&self, streams: impl Iterator<Item = PublishedStream>) -> Vec<PublishedStream> {
        let confirmed = |stream: PublishedStream| {
            let lease = self.link.known.get(&stream.stream_name)?;
            let owns = lease.session == Some(stream.session);
            owns.then_some(PublishedStream { epoch: Some(lease.epoch), ..stream })
        };
        streams.filter_map(confirmed).collect()
    }

    async fn remove_node(&self, node: NodeId) -> Result<bool, Error> {
        let names: Vec<String> = self.call("names", Vec::new()).await.map_err(unavailable)?;
        for names in names.chunks(BATCH) {
            let left = self.call_about::<u8>("leave", vec![node.to_string()], names.iter().cloned()).await;
            left.map_err(unavailable)?;
        }
        self.call("remove_node", vec![node.to_string()]).await.map_err(unavailable)
    }

    async fn nodes(&self) -> Result<Vec<NodeEntry>, Error> {
        let mut streams = streams_by_node(self.list().await?);
        let raw = self.call::<Vec<(String, u64, String)>>("nodes", Vec::new()).await.map_err(unavailable)?;
        let entry = |(node, silent_ms, heartbeat): (String, u64, String)| {
            let node: NodeId = node.parse().map_err(garbled)?;
            let mut heartbeat: Heartbeat = serde_json::from_str(&heartbeat).map_err(garbled)?;
            heartbeat.streams = streams.remove(&node).unwrap_or_default();
            Ok(NodeEntry { node, silent_ms, heartbeat })
        };
        let mut nodes = raw.into_iter().map(entry).collect::<Result<Vec<_>, Error>>()?;
        nodes.sort_unstable_by(|a, b| a.node.cmp(&b.node));
        Ok(nodes)
    }
}

impl Registry for Redis {
    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Lease, Error>> {
        self.shared.claim(claim).boxed()
    }

    fn release(&self, name: StreamName, session: SessionId) -> BoxFuture<'_, Result<bool, Error>> {
        self.shared.release(name, session).boxed()
    }

    fn owner(&self, name: StreamName) -> BoxFuture<'_, Result<Option<Lease>, Error>> {
        self.shared.owner(name).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Lease>, Error>> {
        self.shared.list().boxed()
    }

    fn heartbeat(
        &self,
        node: NodeId,
        heartbeat: Heartbeat,
        source: IpAddr,
    ) -> BoxFuture<'_, Result<HeartbeatReply, Error>> {
        self.shared.heartbeat(node, heartbeat, source).boxed()
    }

    fn remove_node(&self, node: NodeId) -> BoxFuture<'_, Result<bool, Error>> {
        self.shared.remove_node(node).boxed()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeEntry>, Error>> {
        self.shared.nodes().boxed()
    }

    fn changes(&self) -> Changes {
        Changes(self.shared.link.changes.subscribe())
    }

    fn status(&self) -> Status {
        match self.shared.warming.load(Relaxed) {
            _ if self.degraded() => Status::Degraded,
            0 => Status::Whole,
            left => Status::WarmingUp(Duration::from_millis(left)),
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            streams: self.shared.streams.load(Relaxed),
            nodes: self.shared.nodes.load(Relaxed),
            takeovers: self.shared.takeovers.load(Relaxed),
            contested: self.shared.contested.load(Relaxed),
        }
    }
}

fn optional(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

fn lease((name, origin, session, epoch, node, age, remaining): RawLease) -> Result<Lease, Error> {
    let some = |text: String| (!text.is_empty()).then_some(text);
    Ok(Lease {
        name: name.parse().map_err(garbled)?,
        origin: origin.parse().map_err(garbled)?,
        session: some(session).map(|session| session.parse()).transpose().map_err(garbled)?,
        epoch,
        node: some(node).map(|node| node.parse()).transpose().map_err(garbled)?,
        age: Duration::from_millis(age),
        remaining: Duration::from_millis(remaining),
    })
}

fn field<T: FromRedisValue>(reply: &[Value], index: usize) -> Result<T, Error> {
    reply
        .get(index)
        .and_then(|value| T::from_redis_value(value).ok())
        .ok_or_else(|| garbled("a missing field"))
}

fn word(reply: &[Value], index: usize) -> Result<String, Error> {
    field(reply, index)
}

fn unavailable(_: Down) -> Error {
    Error::Unavailable
}

/// Something else writes to our keys, or an incompatible version does.
fn garbled(error: impl std::fmt::Display) -> Error {
    tracing::warn!(%error, "the store holds what was not written by this program");
    Error::Unavailable
}

#[cfg(test)]
mod tests {
    use super::super::redis_server::RedisServer;
    use super::*;

    fn heartbeat(node: usize, streams: usize) -> Heartbeat {
        let stream = |i| PublishedStream {
            stream_name: format!("{node}/{i}").parse().unwrap(),
            session: SessionId::random(),
            epoch: None,
        };
        let streams = (0..streams).map(stream).collect();
        Heartbeat { interval_ms: 5000, streams, ..Heartbeat::default() }
    }

    #[tokio::test]
    async fn what_was_there_before_is_known_in_an_outage() {
        let mut server = RedisServer::start();
        let settings = Settings { warm_up: Duration::ZERO, ..Settings::default() };
        let one = Redis::start(&server.url(), settings).unwrap();
        one.connected().await;
        one.heartbeat("n".parse().unwrap(), heartbeat(1, 2), [10, 0, 0, 1].into()).await.unwrap();
        let two = Redis::start(&server.url(), settings).unwrap();
        two.connected().await;
        while two.shared.link.known.get(&"1/1".parse().unwrap()).is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.kill();
        for registry in [&one, &two] {
            let lease = registry.owner("1/1".parse().unwrap()).await.unwrap().unwrap();
            assert_eq!(lease.origin.to_string(), "10.0.0.1");
            assert_eq!(registry.owner("1/2".parse().unwrap()).await, Err(Error::Unavailable));
            assert_eq!(registry.list().await, Err(Error::Unavailable));
        }
    }

    #[tokio::test]
    async fn thousands_of_streams_go_in_batches() {
        let server = RedisServer::start();
        let registry = Redis::start(&server.url(), Settings::default()).unwrap();
        registry.connected().await;
        for node in 0..2 {
            let id = format!("n{node}").parse().unwrap();
            let reply = registry.heartbeat(id, heartbeat(node, 5_500), [10, 0, 0, 1].into()).await.unwrap();
            assert_eq!(reply.owned.len(), 5_500);
        }
        assert_eq!(registry.list().await.unwrap().len(), 11_000);
        assert_eq!(registry.remove_node("n0".parse().unwrap()).await, Ok(true));
        assert_eq!(registry.list().await.unwrap().len(), 5_500);
        assert!(!registry.degraded(), "no call took longer than its deadline");
    }
}
