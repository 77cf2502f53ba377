//! Who owns a stream name: leases, their order (epochs), and the nodes that hold them.
//!
//! A stream name has one owner at a time. Ingest nodes claim names, renew them with heartbeats and release them;
//! playback nodes ask for the owner and follow the changes. [`Registry`] is the contract; [`Memory`] keeps everything
//! in the process.
//!
//! **Epochs.** One counter serves all names: each new session takes the next value, so the epochs of one name rise, with
//! gaps, and nothing has to be kept for names that are gone. A heartbeat that restores a lease with an epoch lifts the
//! counter to at least that value.
//!
//! **Restoring** (a reactor lost its memory and learns from heartbeats). Of two sessions that say they own a name the
//! higher epoch wins, whichever is heard first. Equal epochs (two reactors gave them out apart from each other): the
//! greater session id wins. A session without an epoch (published while no reactor could be reached) counts as newly
//! arrived. A session that claimed its name here is newer than any that is only restored: if a heartbeat names an epoch as high
//! for another session, from a time that this store does not remember, the owner stays and its epoch is lifted above.
//!
//! **Ended sessions** are remembered for [`ENDED_MEMORY`], so that a late renewal is told `superseded` and never
//! takes the name back. Owners without a session (plain mmids nodes) are known by their address; one that lost its
//! name is told so once, and what it claims after that counts as a new publish.
//!
//! **Draining nodes** keep their streams resolvable, for a stream has no other place to be pulled from while its publisher
//! is there. But neither [`Policy::FirstWins`] nor a held name protects them: whoever comes next takes the name.
//!
//! This module knows nothing of HTTP and nothing of the workflow engine. No clock of one host is compared with another's:
//! times that pass in or out are durations.

mod contest;
#[cfg(test)]
mod contract;
mod ended;
mod memory;
mod redis;
pub mod store;
mod table;

pub use memory::Memory;
pub use redis::{Redis, RedisUrlError};

use crate::api::{Change, Heartbeat, HeartbeatReply, NodeEntry, PublishedStream, StreamEntry};
use crate::ids::{NodeId, Origin, SessionId, StreamName};
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;
use tokio::sync::broadcast;

/// How long a lease lasts that no heartbeat renews: three of the 60 s in which mmids asks again.
pub const LOOKUP_LEASE: Duration = Duration::from_secs(180);

/// How many heartbeats may stay away before a node's leases lapse.
pub const SILENT_INTERVALS: u32 = 3;

/// How long an empty store takes to be whole: one heartbeat interval of 5 s, and its jitter and way.
pub const WARM_UP: Duration = Duration::from_secs(6);

/// The most stream names with an owner: about 50 MB of memory.
pub const MAX_STREAMS: usize = 100_000;

/// The most nodes that send heartbeats.
pub const MAX_NODES: usize = 10_000;

/// How long an ended session is remembered. A node that could not reach any reactor for longer than this
/// may take a name back with an old session, until its next heartbeat names the old epoch.
pub const ENDED_MEMORY: Duration = Duration::from_secs(3600);

/// Epochs from here on are taken as unknown: every number format on the way (Lua, JSON) is exact below, and a
/// hostile heartbeat cannot use the counter up.
pub const EPOCH_LIMIT: u64 = 10_000_000_000_000;

/// Changes that a subscriber may be behind before it is told to resync. A change is some 100 bytes.
const CHANGES_KEPT: usize = 1024;

/// How often lapsed leases are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// The shortest heartbeat interval that is believed; what is below is taken as this.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The longest heartbeat interval that is believed, so that no node keeps its leases for hours after it died.
const INTERVAL_MAX: Duration = Duration::from_secs(60);

/// What happens when a second session claims a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The newest session wins.
    #[default]
    Takeover,
    /// The owner keeps the name until it releases it or its lease lapses.
    FirstWins,
}

/// The text is no [`Policy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a policy for duplicate publishers is 'takeover' or 'first-wins'")]
pub struct PolicyError;

impl FromStr for Policy {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "takeover" => Ok(Policy::Takeover),
            "first-wins" => Ok(Policy::FirstWins),
            _ => Err(PolicyError),
        }
    }
}

/// How a registry decides.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What happens when a second session claims a name.
    pub policy: Policy,
    /// How long a lease lasts that no heartbeat renews.
    pub lease: Duration,
    /// How long an empty store answers [`Error::WarmingUp`] for names it does not know; zero where nobody else can
    /// know one, as in a process that holds all roles by itself.
    pub warm_up: Duration,
    /// The most stream names with an owner.
    pub max_streams: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            policy: Policy::default(),
            lease: LOOKUP_LEASE,
            warm_up: WARM_UP,
            max_streams: MAX_STREAMS,
        }
    }
}

/// A wish to own a stream name, or to go on owning it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The stream's name.
    pub name: StreamName,
    /// The publish; missing from plain mmids nodes, which are known by `source`.
    pub session: Option<SessionId>,
    /// The node it is published on, if it named itself.
    pub node: Option<NodeId>,
    /// Where the stream can be pulled from.
    pub origin: Origin,
    /// The address that the claim came from.
    pub source: IpAddr,
}

/// The ownership of a stream name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The stream's name.
    pub name: StreamName,
    /// Where it can be pulled from.
    pub origin: Origin,
    /// The publish; missing for plain mmids nodes.
    pub session: Option<SessionId>,
    /// The order of this publish among those of its name.
    pub epoch: u64,
    /// The node it is published on, if it named itself.
    pub node: Option<NodeId>,
    /// Time since the publish took the name.
    pub age: Duration,
    /// Time until the lease lapses unless it is renewed.
    pub remaining: Duration,
}

impl From<Lease> for StreamEntry {
    fn from(lease: Lease) -> StreamEntry {
        StreamEntry {
            stream_name: lease.name,
            origin: lease.origin,
            session: lease.session,
            epoch: lease.epoch,
            node: lease.node,
            age_ms: millis(lease.age),
            lease_ms: millis(lease.remaining),
        }
    }
}

/// Why a registry says no. The texts are what peers and users see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The claim comes from a publish that lost the name.
    #[error("stream '{0}': this publish was superseded by a newer one")]
    Superseded(StreamName),
    /// Policy [`Policy::FirstWins`], and somebody owns the name.
    #[error("stream '{0}' is already published at {1}")]
    Taken(StreamName, Origin),
    /// Several publishers took the name from each other; for a while nobody may.
    #[error("stream '{name}' went back and forth between publishers; {origin} keeps it for {} s more", seconds_up(*.held))]
    Contested {
        /// The stream's name.
        name: StreamName,
        /// The owner.
        origin: Origin,
        /// How much longer the name is held.
        held: Duration,
    },
    /// The limit on streams or nodes is reached.
    #[error("the reactor holds {0} {1} already and takes no more")]
    Full(usize, &'static str),
    /// The store was empty a moment ago, and the name may be one that it has not heard of yet.
    #[error("the reactor has just started and may not know every stream yet")]
    WarmingUp(Duration),
    /// The store cannot be reached, and nothing is known about the name.
    #[error("the reactor's store cannot be reached")]
    Unavailable,
}

/// Whether a registry knows everything that it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// What it does not know does not exist.
    Whole,
    /// It was empty a moment ago, and is whole after this time.
    WarmingUp(Duration),
    /// Its store cannot be reached: it answers from what it last knew.
    Degraded,
}

/// Figures of a registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Streams with an owner.
    pub streams: u64,
    /// Nodes that send heartbeats.
    pub nodes: u64,
    /// Names that went from one living owner to another, since this process started.
    pub takeovers: u64,
    /// Claims refused because their name was held against a fight, since this process started.
    pub contested: u64,
}

/// What a subscriber of a registry hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A name changed its owner.
    Change(Change),
    /// Changes were missed: ask again for everything you follow.
    Resync,
}

/// A subscription to changes of ownership. Bounded: one that falls behind gets a [`Notice::Resync`] instead.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<Notice>);

impl Changes {
    /// The next notice; nothing when the registry is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<Notice> {
        match self.0.recv().await {
            Ok(notice) => Some(notice),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Notice::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// A store of leases and nodes.
pub trait Registry: Send + Sync + 'static {
    /// Takes a name for a new publish, or renews the lease of its owner.
    ///
    /// Errors: [`Error::Superseded`], [`Error::Taken`], [`Error::Contested`], [`Error::Full`], [`Error::Unavailable`].
    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Lease, Error>>;

    /// Ends a publish. Frees the name if that session still owns it, and says whether it did.
    fn release(&self, name: StreamName, session: SessionId) -> BoxFuture<'_, Result<bool, Error>>;

    /// The owner of a name; `None` only if there surely is none, else [`Error::WarmingUp`] or [`Error::Unavailable`].
    fn owner(&self, name: StreamName) -> BoxFuture<'_, Result<Option<Lease>, Error>>;

    /// All leases, ordered by name.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Lease>, Error>>;

    /// Takes in a node's full picture: renews and restores leases, and names those that it lost.
    fn heartbeat(
        &self,
        node: NodeId,
        heartbeat: Heartbeat,
        source: IpAddr,
    ) -> BoxFuture<'_, Result<HeartbeatReply, Error>>;

    /// Forgets a node and ends its leases. Says whether it was known.
    fn remove_node(&self, node: NodeId) -> BoxFuture<'_, Result<bool, Error>>;

    /// All nodes that send heartbeats, ordered by id. Their `streams` are the leases that they own.
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeEntry>, Error>>;

    /// Changes of ownership from now on.
    fn changes(&self) -> Changes;

    /// Whether it knows everything that it should.
    fn status(&self) -> Status;

    /// Its figures.
    fn stats(&self) -> Stats;
}

/// Milliseconds as the wire has them.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// How long a lease lasts that a heartbeat renews.
fn heartbeat_lease(heartbeat: &Heartbeat) -> Duration {
    Duration::from_millis(heartbeat.interval_ms).clamp(INTERVAL_MIN, INTERVAL_MAX) * SILENT_INTERVALS
}

/// Where the streams of a node can be pulled from.
fn heartbeat_origin(heartbeat: &Heartbeat, source: IpAddr) -> Origin {
    let port = heartbeat.rtmp_port.unwrap_or(crate::ids::DEFAULT_RTMP_PORT);
    heartbeat.origin.clone().unwrap_or_else(|| Origin::from_ip(source, port))
}

fn log_takeover(name: &StreamName, to: &Origin, epoch: u64, held: Duration) {
    tracing::info!(stream = %name, %to, epoch, "taken over");
    if held > Duration::ZERO {
        tracing::warn!(stream = %name, owner = %to, seconds = seconds_up(held), "publishers fight for a name: held");
    }
}

/// Says once a heartbeat how many of its streams found no room.
fn warn_left_out(node: &NodeId, streams: usize) {
    if streams > 0 {
        tracing::warn!(%node, streams, "streams not registered: the reactor holds too many");
    }
}

/// What a list of leases says about each node. Leases without a session are no publishes that a node reported.
fn streams_by_node(leases: Vec<Lease>) -> HashMap<NodeId, Vec<PublishedStream>> {
    let mut streams = HashMap::<_, Vec<_>>::new();
    for Lease { name, session, epoch, node, .. } in leases {
        if let (Some(node), Some(session)) = (node, session) {
            let stream = PublishedStream { stream_name: name, session, epoch: Some(epoch) };
            streams.entry(node).or_default().push(stream);
        }
    }
    streams
}

/// An epoch that can be worked with.
fn plausible(epoch: Option<u64>) -> Option<u64> {
    epoch.filter(|epoch| *epoch < EPOCH_LIMIT)
}
