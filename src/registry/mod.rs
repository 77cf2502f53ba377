//! Who owns a stream name: leases, their order (epochs), and the nodes that hold them.
//!
//! A stream name has one owner at a time. Ingest nodes claim names, keep them with heartbeats and release them; playback
//! nodes ask for the owner and follow the changes.
//!
//! | file | what |
//! |---|---|
//! | [`rules`] | who owns a name, who wins, what a takeover is: pure functions, and the only place that decides |
//! | [`pusher`] | who may push a stream on to other servers: pure as well |
//! | [`hold_down`] | two publishers that take a name from each other |
//! | [`record`] | what is kept of a name and of a node |
//! | [`store`] | where records are kept: compare-and-set, expiry, announcements. [`Memory`] is in this process |
//! | [`state`], [`calls`], [`heartbeat`], [`sweep`] | [`Registry`]: reads records, has the rules decide, writes, and begins again if somebody else was faster |
//! | [`known`] | the last owners seen, for when the store cannot be reached |
//!
//! **Nodes keep their streams.** A heartbeat is one write of the record of its node, and touches otherwise only the streams that
//! it names: those that changed, and some others in turn. While the record is there, so are the streams that the node listed.
//! It expires when the node falls silent; every registry looks for that each half second, and ends the streams.
//!
//! **A store that lost its memory**, or its last writes, is another generation. Nodes are asked for their whole list. Until
//! that is there, or the [`Settings::warm_up`] over, names that are not known are answered with [`Error::WarmingUp`].
//!
//! Several registries may share a store; none of them has a part of its own. This module knows nothing of HTTP and nothing
//! of the workflow engine. No clock of one host is compared with another's: times that pass in or out are durations.

mod calls;
#[cfg(test)]
mod contract;
mod heartbeat;
mod hold_down;
mod known;
mod memory;
mod millis;
mod pusher;
#[cfg(test)]
mod pusher_tests;
mod record;
mod redis;
#[cfg(test)]
mod redis_server;
mod rules;
mod settle;
#[cfg(test)]
mod simulation;
mod state;
pub mod store;
#[cfg(test)]
mod store_contract;
mod sweep;
#[cfg(test)]
mod tests;
mod watch;

pub use memory::Memory;
pub use redis::{Redis, RedisUrlError};
pub use state::Registry;

use crate::api::{Change, StreamEntry};
use crate::ids::{Identity, NodeId, Origin, SessionId, StreamName};
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;
use tokio::sync::broadcast;

/// How long a lease lasts that no heartbeat keeps: three of the 60 s in which mmids asks again.
pub const LOOKUP_LEASE: Duration = Duration::from_secs(180);

/// How long an empty store takes to be whole: one heartbeat interval of 5 s, and its jitter and way.
pub const WARM_UP: Duration = Duration::from_secs(6);

/// The most stream names with an owner: about 50 MB of memory. What is being written at the moment is not counted, so
/// several reactors at once may pass it by as many.
pub const MAX_STREAMS: usize = 100_000;

/// The most nodes that send heartbeats, counted in the same way.
pub const MAX_NODES: usize = 10_000;

/// How much longer than the warm-up names may be unknown because some node has not sent its whole list yet. Some seconds
/// are enough for 100,000 streams; a node that never ends its list holds nobody up for longer.
const LISTING_MAX: Duration = Duration::from_secs(30);

/// Changes that a subscriber may be behind before it is told to resync. A change is some 100 bytes.
const CHANGES_KEPT: usize = 1024;

/// What happens when a second session claims a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Where authorisation knows who publishes, only the same identity takes its own name over, at once; anybody else is
    /// refused for as long as the owner lives. Otherwise as [`Policy::Takeover`].
    #[default]
    SameIdentity,
    /// The newest session wins.
    Takeover,
    /// The owner keeps the name until it releases it or its lease lapses.
    FirstWins,
}

/// The text is no [`Policy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a policy for duplicate publishers is 'same-identity', 'takeover' or 'first-wins'")]
pub struct PolicyError;

impl FromStr for Policy {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "same-identity" => Ok(Policy::SameIdentity),
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
    /// How long a lease lasts that no heartbeat keeps.
    pub lease: Duration,
    /// How long an empty store answers [`Error::WarmingUp`] for names it does not know; zero where nobody else can
    /// know one, as in a process that holds all roles by itself. With [`Policy::FirstWins`] also a new session is told so
    /// for that time, since the true owner may not have been heard of yet.
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
    /// Who publishes, if its node knows.
    pub identity: Option<Identity>,
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
            age_ms: millis::millis(lease.age),
            lease_ms: millis::millis(lease.remaining),
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
    /// Policy [`Policy::SameIdentity`], and somebody else owns the name.
    #[error("stream '{0}' is already published by somebody else")]
    Foreign(StreamName),
    /// Takeover hold-down: several publishers took the name from each other; for a while nobody may.
    #[error("stream '{name}' went back and forth between publishers; {origin} keeps it for {} s more", seconds_up(*.left))]
    HeldDown {
        /// The stream's name.
        name: StreamName,
        /// The owner.
        origin: Origin,
        /// How much longer it is protected.
        left: Duration,
    },
    /// The heartbeat comes from a process of a node after which another one has begun.
    #[error("node '{0}': another process with this name has taken its place")]
    Replaced(NodeId),
    /// The wish to push comes from a process that the reactor has not heard of: its heartbeat is on its way.
    #[error("node '{0}' is not heard yet: its heartbeats come first")]
    NotHeard(NodeId),
    /// The wish to push comes from a publish that does not own the name, and has not lost it either.
    #[error("stream '{0}' is not registered for this publish yet")]
    NotOwner(StreamName),
    /// Another publish of the name may still be pushed to other servers.
    #[error("stream '{0}' may still be pushed by node '{1}', where it was published before")]
    PushHeld(StreamName, NodeId),
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
    /// Claims refused by the takeover hold-down, since this process started.
    pub held_down: u64,
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

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
