//! The cluster as people see it.
//!
//! | call | answers |
//! |---|---|
//! | `GET /cluster` | `200` [`Cluster`]; `503` while the store is away |
//! | `GET /cluster/events` | what changes of it, as Server-Sent Events |
//!
//! An event's data is a [`Cluster`] with what is new or another, and `null` for what is gone; the first one has everything. The
//! event's name is `cluster`.

use super::NodeEntry;
use super::report::{HttpPlay, StreamReport, TimelineEntry};
use crate::ids::{NodeId, Origin, SessionTag, StreamName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// The streams that are published.
    #[serde(default)]
    pub streams: BTreeMap<StreamName, StreamView>,
    /// The nodes that send heartbeats.
    #[serde(default)]
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// The last switches, newest first.
    #[serde(default)]
    pub switches: Vec<Switch>,
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamView {
    /// The node it is published on; missing for plain mmids nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Where it can be pulled from.
    pub origin: Origin,
    /// The order of its session among those of its name.
    pub epoch: u64,
    /// Its publish, by the digits that logs show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionTag>,
    /// When it began, in seconds since 1970 by the reactor's clock.
    pub since: u64,
    /// Viewers on all nodes.
    pub viewers: u64,
    /// What its ingest node says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<StreamReport>,
    /// Where it is watched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pulls: Vec<PullView>,
}

/// A stream on a playback node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullView {
    /// The node.
    pub node: NodeId,
    /// Media comes in.
    pub live: bool,
    /// Viewers there.
    pub viewers: u64,
    /// Times that one of them fell behind and jumped to a newer keyframe.
    pub skips: u64,
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Its heartbeats come.
    Well,
    /// It takes no new work and will stop soon.
    Draining,
    /// Its second heartbeat is late.
    Silent,
}

impl NodeState {
    /// How a node is by its last heartbeat.
    pub fn of(entry: &NodeEntry) -> Self {
        match () {
            () if entry.heartbeat.draining => NodeState::Draining,
            () if entry.silent_ms > LATE * entry.heartbeat.interval_ms => NodeState::Silent,
            () => NodeState::Well,
        }
    }

    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Well => "well",
            NodeState::Draining => "draining",
            NodeState::Silent => "silent",
        }
    }
}

/// A node is silent when so many of its heartbeats are late: one may be lost.
const LATE: u64 = 2;

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its roles.
    pub roles: Vec<String>,
    /// See [`NodeState`].
    pub state: NodeState,
    /// Streams that are published on it.
    pub published: u64,
    /// Streams that it pulls.
    pub pulls: u64,
    /// Viewers connected to it.
    pub viewers: u64,
    /// The most connections it takes.
    pub capacity: u64,
    /// Bits a second that come in, as of its last report.
    pub received_bits_per_second: u64,
    /// Bits a second that go out, likewise.
    pub sent_bits_per_second: u64,
    /// Where it serves viewers over HTTP; without a host where that is the reactor's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpPlay>,
}

/// A stream that came from elsewhere, on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// When, in seconds since 1970 by the reactor's clock.
    pub at: u64,
    /// What happened, and where; of its age the time is left.
    #[serde(flatten)]
    pub entry: TimelineEntry,
}
