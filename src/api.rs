//! The words between nodes and reactors: the bodies of the reactor's HTTP API, as both sides see them.
//!
//! | call | body | answers |
//! |---|---|---|
//! | `POST /publisher_lookup`, `PUT /publisher_lookup` | [`PublisherLookup`], or the bare name | `200`, empty, [`EPOCH_HEADER`] if a session was named; `400`, `401`, `403`, `409`, `503` [`Refusal`] |
//! | `POST /publisher_release` | [`PublisherRelease`] | `204`, whether or not the session still owned the name |
//! | `POST /watcher_lookup`, `PUT /watcher_lookup` | [`WatcherLookup`], or the bare name | `200`, workflow text, [`ORIGIN_HEADER`], [`EPOCH_HEADER`], [`SESSION_HEADER`]; `404`, `400`, `503` [`Refusal`] |
//! | `PUT /nodes/{node}` | [`Heartbeat`] | `200` [`HeartbeatReply`]; `400`, `409`, `413`, `503` [`Refusal`] |
//! | `DELETE /nodes/{node}?instance=HEX` | | `204`; the streams of that process of the node end, without `instance` those of the node |
//! | `GET /events` | | Server-Sent Events, see [`Change`] |
//! | `GET /streams?after=NAME&limit=N` | | `200` [`StreamList`]; `400` [`Refusal`] |
//! | `GET /streams/{name}` | | `200` [`StreamEntry`]; `404` |
//! | `DELETE /streams/{name}?reason=TEXT` | | `204`, its publisher is sent away; `404`; `409` on plain mmids nodes |
//! | `GET /nodes?after=NODE&limit=N` | | `200` [`NodeList`]; `400` [`Refusal`] |
//!
//! What nodes report for people to see is in [`report`], and what people see in [`cluster`]. How names are written in the text of a
//! workflow is in [`word`].
//!
//! Plain mmids nodes know the two lookups only, with nothing but a `stream_name` in the body; every other field is
//! optional, and what a plain node would not understand travels in headers. The guide of mmids has the name alone as the body
//! (`text/plain`), which a reactor takes as well. No clock of one host is ever compared with another's: all times here are
//! durations.

pub mod cluster;
pub mod report;
pub mod word;

use crate::ids::{DEFAULT_RTMP_PORT, Identity, NodeId, Origin, SessionId, StreamName};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Reply header with the epoch of the stream's current session.
pub const EPOCH_HEADER: &str = "lb-epoch";

/// Reply header with the tag ([`crate::ids::SessionTag`]) of the session that a watcher lookup was answered with, for logs.
pub const SESSION_HEADER: &str = "lb-session";

/// Reply header with the [`Origin`] a watcher lookup was answered with.
pub const ORIGIN_HEADER: &str = "lb-origin";

/// Reply header of a refusal that is about the node and not about what it asks for: all its calls are refused.
pub const NODE_REFUSED_HEADER: &str = "lb-node-refused";

/// The app under which nodes pull streams from each other.
pub const PULL_APP: &str = "pull_source";

/// The word in [`WatcherLookup::accept`] of a node that has the `rtmp_pull` step.
pub const ACCEPT_RTMP_PULL: &str = "rtmp_pull";

/// An ingest node asks whether a stream may be published, and thereby claims its name or renews its claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublisherLookup {
    /// The stream that is published.
    pub stream_name: StreamName,
    /// The publish. A new one takes the next epoch. Missing from plain mmids nodes, which are known by their address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The node that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Where the stream can be pulled from; missing: the address the request came from and `rtmp_port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The node's RTMP port where `origin` is missing; missing as well: 1935.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmp_port: Option<u16>,
    /// Where `origin` is missing: the port at which the node is to be pulled from by TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmps_port: Option<u16>,
    /// Who publishes, where the node's authorisation knows: only the same identity takes the name over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// The query of the stream key or of the app, as the publisher sent it, for a web server that decides by it. It may hold
    /// secrets: nobody logs it, and `lb`'s own reactor does not look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The publisher's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
}

impl From<StreamName> for PublisherLookup {
    /// What a call with the bare name asks.
    fn from(stream_name: StreamName) -> Self {
        PublisherLookup {
            stream_name,
            session: None,
            node: None,
            origin: None,
            rtmp_port: None,
            rtmps_port: None,
            identity: None,
            query: None,
            peer: None,
        }
    }
}

/// Where a node is pulled from that called from `source`: what it named, or else that address.
pub fn origin(named: Option<&Origin>, source: IpAddr, rtmp: Option<u16>, rtmps: Option<u16>) -> Origin {
    match (named, rtmps) {
        (Some(named), _) => named.clone(),
        (None, Some(port)) => Origin::from_ip(source, port).by_tls(),
        (None, None) => Origin::from_ip(source, rtmp.unwrap_or(DEFAULT_RTMP_PORT)),
    }
}

/// An ingest node says that a publisher left: the name is free at once, if that session still owns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublisherRelease {
    /// The stream that was published.
    pub stream_name: StreamName,
    /// The publish that ended.
    pub session: SessionId,
}

/// A playback node asks where a stream can be pulled from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherLookup {
    /// The stream that somebody wants to watch.
    pub stream_name: StreamName,
    /// The steps, beyond the contract's `ffmpeg_pull`, that the node can pull with, see [`ACCEPT_RTMP_PULL`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<String>,
    /// The node that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
}

impl From<StreamName> for WatcherLookup {
    /// What a call with the bare name asks.
    fn from(stream_name: StreamName) -> Self {
        WatcherLookup { stream_name, accept: Vec::new(), node: None }
    }
}

/// Why a call was refused, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One sentence for people.
    pub error: String,
}

/// The most streams in one [`Heartbeat`], and the most ends of publishes. Whatever the length of the names, its body and
/// reply stay below half a megabyte.
pub const HEARTBEAT_STREAMS: usize = 500;

/// The most unchanged streams that a regular [`Heartbeat`] names, in turn: the audit, which heals whatever was missed. Few, so
/// that a node with thousands of streams costs a reactor hardly more than one with some; at an interval of 5 s a thousand
/// streams are named anew within nine minutes.
pub const AUDIT_STREAMS: usize = 10;

/// A node's sign of life, sent every few seconds: its load, and what changed in the list of its streams. It keeps every
/// stream that a reactor knows of this process, whether it is named here or not.
///
/// A reactor that does not know the rest of the list says so ([`HeartbeatReply::want_all`]). The node then sends its
/// streams anew in consecutive heartbeats of at most [`HEARTBEAT_STREAMS`], the last of them `complete`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Milliseconds until the next one is due. A node that stays silent for three of them has lost its streams.
    pub interval_ms: u64,
    /// This process of the node: random at its start. Missing from older programs, which list all their streams in each
    /// heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<SessionId>,
    /// [`HeartbeatReply::since`] of the last reply that the node has taken in. Missing: it has none yet, or lost count of what
    /// it has told and begins anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// How many streams are published on it in all.
    #[serde(default)]
    pub published: u64,
    /// See [`PublisherLookup::origin`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// See [`PublisherLookup::rtmp_port`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmp_port: Option<u16>,
    /// See [`PublisherLookup::rtmps_port`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmps_port: Option<u16>,
    /// The node takes no new work and will stop soon.
    #[serde(default)]
    pub draining: bool,
    /// The roles of the process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// What was published or changed since the last heartbeat that was answered, then some unchanged streams in turn, so
    /// that whatever was lost on the way heals. At most [`HEARTBEAT_STREAMS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<PublishedStream>,
    /// Publishes that ended since the last heartbeat that was answered. At most [`HEARTBEAT_STREAMS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<PublisherRelease>,
    /// With this heartbeat every stream has been sent since the reactor asked for all.
    #[serde(default)]
    pub complete: bool,
    /// Viewers connected to it.
    #[serde(default)]
    pub viewers: u64,
    /// Streams it pulls from other nodes.
    #[serde(default)]
    pub pulls: u64,
    /// Bytes received on RTMP sockets since the node started.
    #[serde(default)]
    pub received_bytes: u64,
    /// Bytes sent on RTMP sockets since the node started.
    #[serde(default)]
    pub sent_bytes: u64,
    /// The most connections it takes.
    #[serde(default)]
    pub capacity: u64,
}

/// One publish in a [`Heartbeat`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedStream {
    /// The stream's name.
    pub stream_name: StreamName,
    /// The publish.
    pub session: SessionId,
    /// The epoch that a reactor gave it; missing while none was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// See [`PublisherLookup::identity`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// What a reactor thinks of a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// What the next heartbeat carries as [`Heartbeat::since`]. Means nothing to the node.
    #[serde(default)]
    pub since: String,
    /// The listed streams that this node owns, with their epochs.
    #[serde(default)]
    pub owned: Vec<PublishedStream>,
    /// The listed sessions that own their name no longer: the node closes those publishers.
    #[serde(default)]
    pub superseded: Vec<PublisherRelease>,
    /// The rest of the node's list is not known here: it sends everything, from the beginning, in pieces.
    #[serde(default)]
    pub want_all: bool,
}

/// One change of ownership, the data of an event of `GET /events`. The event's name is `change`.
///
/// The first event on each connection is `hello`, without meaning beyond this: what happened before was missed, so the
/// node asks again for what it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The stream's name.
    pub stream_name: StreamName,
    /// Where it can be pulled from now; missing: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The epoch of the session that came or went.
    pub epoch: u64,
}

/// The most entries in one answer of `GET /streams` or `GET /nodes`, and how many there are unless fewer are asked for.
pub const LIST_MAX: usize = 1000;

/// Reply of `GET /streams`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamList {
    /// One entry a stream, ordered by name.
    pub streams: Vec<StreamEntry>,
    /// There are more: the value of `after` that leads to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<StreamName>,
}

/// One registered stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEntry {
    /// The stream's name.
    pub stream_name: StreamName,
    /// Where it can be pulled from.
    pub origin: Origin,
    /// The publish; missing for plain mmids nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The order of this session among those of its name.
    pub epoch: u64,
    /// The node it is published on; missing for plain mmids nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Milliseconds since the session took the name.
    pub age_ms: u64,
    /// Milliseconds until the lease lapses unless it is renewed.
    pub lease_ms: u64,
}

/// Reply of `GET /nodes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeList {
    /// One entry a node, ordered by id.
    pub nodes: Vec<NodeEntry>,
    /// There are more: the value of `after` that leads to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NodeId>,
}

/// One node that sends heartbeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The node's id.
    pub node: NodeId,
    /// Milliseconds since its last heartbeat.
    pub silent_ms: u64,
    /// That heartbeat, without streams: [`StreamList`] has them, and [`Heartbeat::published`] their number.
    pub heartbeat: Heartbeat,
}
