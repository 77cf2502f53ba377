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
    heartbeat_origin, millis, plausible, streams_by_node,
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
        f.debug_struct("Redis")
            .field("place", &self.shared.link.place)
            .finish_non_exhaustive()
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
            async move { shared.link.run(|| shared.sweep()).await }
        });
        Ok(Redis {
            shared,
            _keeper: AbortOnDropHandle::new(keeper),
        })
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
    async fn call<T: FromRedisValue>(&self, op: &str, args: Vec<String>) -> Result<T, Down> {
        let Settings {
            policy,
            lease,
            warm_up,
            max_streams,
        } = self.settings;
        let policy = match policy {
            Policy::Takeover => "takeover",
            Policy::FirstWins => "first-wins",
        };
        let mut invocation = self.script.key(PREFIX);
        invocation.key(&self.channel).arg(op).arg(policy);
        invocation
            .arg(millis(lease))
            .arg(millis(warm_up))
            .arg(max_streams)
            .arg(MAX_NODES);
        for arg in args {
            invocation.arg(arg);
        }
        self.link
            .call(|mut connection| async move { invocation.invoke_async(&mut connection).await })
            .await
    }

    async fn sweep(&self) -> Result<(), Down> {
        let (streams, nodes, warming) = self.call("sweep", Vec::new()).await?;
        self.streams.store(streams, Relaxed);
        self.nodes.store(nodes, Relaxed);
        self.warming.store(warming, Relaxed);
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
                self.takeovers.fetch_add(field(&reply, 2)?, Relaxed);
                self.link.known.saw(&lease);
                Ok(lease)
            }
            ("superseded", _) => Err(Error::Superseded(name)),
            ("full", _) => Err(Error::Full(self.settings.max_streams, "streams")),
            ("taken", Some(_)) => Err(Error::Taken(name, word(&reply, 1)?.parse().map_err(garbled)?)),
            ("contested", Some(_)) => {
                self.contested.fetch_add(1, Relaxed);
                let origin = word(&reply, 1)?.parse().map_err(garbled)?;
                Err(Error::Contested {
                    name,
                    origin,
                    held: Duration::from_millis(field(&reply, 2)?),
                })
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

    async fn list(&self) -> Result<Vec<Lease>, Error> {
        let raw = self
            .call::<Vec<RawLease>>("list", Vec::new())
            .await
            .map_err(unavailable)?;
        let mut leases = raw.into_iter().map(lease).collect::<Result<Vec<_>, _>>()?;
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
        let streams = std::mem::take(&mut heartbeat.streams);
        let mut args = vec![
            node.to_string(),
            millis(heartbeat_lease(&heartbeat)).to_string(),
            u8::from(heartbeat.draining).to_string(),
            origin.to_string(),
            serde_json::to_string(&heartbeat).map_err(garbled)?,
        ];
        for stream in &streams {
            let epoch = optional(plausible(stream.epoch).as_ref());
            args.extend([stream.stream_name.to_string(), stream.session.to_string(), epoch]);
        }
        let Ok(reply) = self.call::<Vec<Value>>("heartbeat", args).await else {
            return Ok(self.heartbeat_from_memory(streams));
        };
        if reply.is_empty() {
            return Err(Error::Full(MAX_NODES, "nodes"));
        }
        let verdicts: Vec<(String, u64, u64)> = field(&reply, 1)?;
        let mut reply = HeartbeatReply::default();
        for (
            PublishedStream {
                stream_name, session, ..
            },
            (verdict, epoch, took),
        ) in streams.into_iter().zip(verdicts)
        {
            self.takeovers.fetch_add(took, Relaxed);
            match verdict.as_str() {
                "owned" => reply.owned.push(PublishedStream {
                    stream_name,
                    session,
                    epoch: Some(epoch),
                }),
                "superseded" => reply.superseded.push(PublisherRelease { stream_name, session }),
                _ => tracing::warn!(stream = %stream_name, %node, "stream not registered: too many"),
            }
        }
        Ok(reply)
    }

    /// During an outage nobody loses a name; those that are known are confirmed.
    fn heartbeat_from_memory(&self, streams: Vec<PublishedStream>) -> HeartbeatReply {
        let confirmed = |stream: PublishedStream| {
            let lease = self.link.known.get(&stream.stream_name)?;
            let owns = lease.session == Some(stream.session);
            owns.then_some(PublishedStream {
                epoch: Some(lease.epoch),
                ..stream
            })
        };
        HeartbeatReply {
            owned: streams.into_iter().filter_map(confirmed).collect(),
            superseded: Vec::new(),
        }
    }

    async fn remove_node(&self, node: NodeId) -> Result<bool, Error> {
        self.call("remove_node", vec![node.to_string()])
            .await
            .map_err(unavailable)
    }

    async fn nodes(&self) -> Result<Vec<NodeEntry>, Error> {
        let mut streams = streams_by_node(self.list().await?);
        let raw = self
            .call::<Vec<(String, u64, String)>>("nodes", Vec::new())
            .await
            .map_err(unavailable)?;
        let entry = |(node, silent_ms, heartbeat): (String, u64, String)| {
            let node: NodeId = node.parse().map_err(garbled)?;
            let mut heartbeat: Heartbeat = serde_json::from_str(&heartbeat).map_err(garbled)?;
            heartbeat.streams = streams.remove(&node).unwrap_or_default();
            Ok(NodeEntry {
                node,
                silent_ms,
                heartbeat,
            })
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
        session: some(session)
            .map(|session| session.parse())
            .transpose()
            .map_err(garbled)?,
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
