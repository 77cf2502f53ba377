//! What the registry keeps: one record a stream name and one a node, each complete by itself.
//!
//! Times are milliseconds on the clock of the server that keeps the record ([`super::store::Read::now`]), and are compared
//! with no other clock. What the fields lead to is said in [`super::rules`].

use super::hold_down::HoldDown;
use super::millis::millis;
use crate::api::Heartbeat;
use crate::ids::{Identity, NodeId, Origin, SessionId};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;

/// The form of the records. A program that meets another one touches nothing.
const VERSION: u8 = 1;

/// How long a record outlives its owner, with its epoch and the sessions that ended: as long as a call of an ended publish
/// could still arrive (deadlines and retries take seconds; mmids asks again after 60 s).
pub(super) const ENDED_MEMORY: Duration = Duration::from_secs(300);

/// Ended publishes that a record remembers; beyond it the oldest is forgotten. Should a forgotten one come back, its epoch
/// is too low by then.
const ENDED_MAX: usize = 16;

/// Processes of a node that a record remembers as replaced.
const FORMER_MAX: usize = 8;

/// Everything about a stream name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamRecord {
    version: u8,
    /// The greatest epoch that was given out: that of the owner, or of the last one.
    pub epoch: u64,
    pub owner: Option<Owner>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<Ended>,
    #[serde(default)]
    pub hold_down: HoldDown,
    /// Who may be pushing the stream on to other servers: the owner, or a publish before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pusher: Option<Pusher>,
}

/// A publish that is pushed to other servers, see [`super::pusher`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pusher {
    pub session: SessionId,
    pub node: NodeId,
    /// The process of the node: what it pushes ends with it.
    pub instance: SessionId,
    /// See [`crate::api::PushClaim::turn`].
    pub turn: u64,
    /// The generation of the store in which its claim was granted, or a heartbeat named it first.
    pub generation: u64,
    /// Another publish waits for it, since this moment of this generation of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contested: Option<Contested>,
}

/// See [`Pusher::contested`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contested {
    pub since: u64,
    pub generation: u64,
}

/// Who a name belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub id: Claimant,
    /// Who publishes, if its node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    pub origin: Origin,
    pub node: Option<NodeId>,
    /// When it took the name.
    pub since: u64,
    /// The end of the lease.
    pub until: u64,
    /// The list of its node that names it, which holds the name for as long as that node is heard.
    pub listed: Option<Listed>,
    /// The generation of the store in which the epoch was given out; nothing: it is what a node remembered.
    pub claimed: Option<u64>,
    /// It claimed the name while the store did not know of every stream yet: a session that was there before may turn up.
    #[serde(default)]
    pub early: bool,
    /// The lease is over, or the node is gone. Kept so that the session is recognised when it comes back.
    pub lapsed: bool,
}

/// How a publish is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Claimant {
    Session(SessionId),
    /// A plain mmids node.
    Source(IpAddr),
}

impl Claimant {
    pub(super) fn session(self) -> Option<SessionId> {
        match self {
            Claimant::Session(session) => Some(session),
            Claimant::Source(_) => None,
        }
    }
}

/// A list of the streams of a node's process, as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listed {
    pub instance: SessionId,
    /// The generation of the store in which the list was begun.
    pub generation: u64,
    /// Rises with each list of that process in that generation.
    pub round: u64,
}

/// A publish that ended, or lost its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub id: Claimant,
    /// Until when it is remembered.
    pub until: u64,
}

impl StreamRecord {
    /// Whether it counts as a stream with an owner.
    pub(super) fn is_owned(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| !owner.lapsed)
    }

    /// Whether it must not be forgotten, however many records there are.
    pub(super) fn is_needed(&self) -> bool {
        self.is_owned() || self.pusher.is_some()
    }

    pub(super) fn has_ended(&self, id: Claimant, now: u64) -> bool {
        self.ended.iter().any(|ended| ended.id == id && ended.until > now)
    }

    pub(super) fn remember_ended(&mut self, id: Claimant, now: u64, memory: Duration) {
        self.ended.retain(|ended| ended.id != id && ended.until > now);
        if self.ended.len() >= ENDED_MAX {
            self.ended.remove(0);
        }
        self.ended.push(Ended { id, until: now.saturating_add(millis(memory)) });
    }

    /// How long the store keeps it.
    pub(super) fn expiry(&self, now: u64) -> Duration {
        let owner = self.owner.as_ref().filter(|owner| !owner.lapsed);
        let left = owner.map_or(0, |owner| owner.until.saturating_sub(now));
        Duration::from_millis(left).saturating_add(ENDED_MEMORY)
    }
}

/// Everything about a node that sends heartbeats. It lives exactly as long as its record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    version: u8,
    /// The process; missing: an older program, whose list is complete in each heartbeat.
    pub instance: Option<SessionId>,
    /// Processes that were replaced by this one or those before it.
    pub former: Vec<SessionId>,
    /// Another process that spoke under this name, and the list that it was asked for. It takes the place of this one when it
    /// shows that it has heard the question: then it is no late call of a process that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Listed>,
    /// The list that is being received or was received last, see [`Listed`].
    pub generation: u64,
    /// See [`Listed`].
    pub round: u64,
    /// That list was received to its end.
    pub complete: bool,
    pub seen: u64,
    /// Milliseconds from `seen` on until the record expires.
    pub lease: u64,
    pub origin: Origin,
    /// The last heartbeat, without its streams.
    pub heartbeat: Heartbeat,
}

impl NodeRecord {
    /// The record of a node that is heard for the first time, or for the first time after it fell silent.
    pub(super) fn new(heartbeat: Heartbeat, origin: Origin, now: u64) -> Self {
        NodeRecord {
            version: VERSION,
            instance: heartbeat.instance,
            former: Vec::new(),
            candidate: None,
            generation: 0,
            // Above the rounds before the silence.
            round: now,
            complete: false,
            seen: now,
            lease: 0,
            origin,
            heartbeat,
        }
    }

    /// The list that it is in, if it has lists.
    pub(super) fn listed(&self) -> Option<Listed> {
        let (generation, round) = (self.generation, self.round);
        self.instance.map(|instance| Listed { instance, generation, round })
    }

    pub(super) fn remember_former(&mut self, instance: SessionId) {
        if self.former.len() >= FORMER_MAX {
            self.former.remove(0);
        }
        self.former.push(instance);
    }

    /// Whether a stream of this node is kept by its heartbeats. While a new list is being received, those of the list before
    /// it are.
    pub(super) fn keeps(&self, listed: Listed) -> bool {
        self.instance == Some(listed.instance) && (self.listed() == Some(listed) || !self.complete)
    }

    /// Milliseconds until it is dead unless it is heard.
    pub(super) fn left(&self, now: u64) -> u64 {
        self.seen.saturating_add(self.lease).saturating_sub(now)
    }
}

/// A record that this program did not write: garbage, or another version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store holds a record that this version of lb cannot read: {0}")]
pub(super) struct Unreadable(String);

impl From<serde_json::Error> for Unreadable {
    fn from(error: serde_json::Error) -> Self {
        Unreadable(error.to_string())
    }
}

/// What is kept in a store.
pub(super) trait Record: Serialize + DeserializeOwned {
    fn version(&mut self) -> &mut u8;

    fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut record: Self = serde_json::from_slice(bytes)?;
        match *record.version() {
            VERSION => Ok(record),
            other => Err(Unreadable(format!("version {other}"))),
        }
    }

    fn encode(mut self) -> Result<Bytes, Unreadable> {
        *self.version() = VERSION;
        Ok(serde_json::to_vec(&self)?.into())
    }
}

impl Record for StreamRecord {
    fn version(&mut self) -> &mut u8 {
        &mut self.version
    }
}

impl Record for NodeRecord {
    fn version(&mut self) -> &mut u8 {
        &mut self.version
    }
}
