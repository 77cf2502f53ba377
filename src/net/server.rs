//! What all connections of a node share, and the limits that hold for all of them together.

use super::addresses::Addresses;
use super::audience::Audience;
use super::elsewhere::Elsewhere;
use super::hls::HlsOutputs;
use super::peers::Peers;
use super::routes::Routes;
use crate::auth::{Gate, PullKey};
use crate::drain::Drain;
use crate::ids::NodeId;
use crate::relay::Feeds;
use crate::rtmp;
use crate::telemetry::Metrics;
use ipnet::IpNet;
use rustls::ServerConfig;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// What the RTMP side of a node takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections in all: each costs a descriptor, and a viewer about 3.5 KiB (docs/BENCHMARKS.md).
    pub connections: usize,
    /// Connections of one IPv4 address, or of one IPv6 network of 64 bits, which is what a single customer has. Viewers
    /// behind one carrier's translation share theirs, so this is generous.
    pub connections_per_address: usize,
    /// Connections, publishes and plays of one address, counted as above, within ten seconds: twice what it may have
    /// connections, each of which plays at once and is then lost and made anew.
    pub joins_per_address: u64,
    /// From the first byte to the publish or play: a slow phone on a bad network needs a few seconds.
    pub negotiation: Duration,
    /// Messages a second of a publisher, after a burst of two seconds of them; what is more waits in its socket. Encoders send
    /// below 200, with many tracks below 2,000.
    pub publish_messages: u64,
    /// Bytes a second of a publisher, in the same way. 32 MiB is 268 Mb/s.
    pub publish_bytes: u64,
    /// Bytes a second of a peer that does not publish, after a burst of two seconds of them; one that sends more is read no more, and closed.
    /// Calls, pongs and acknowledgements are some hundred a second at most.
    pub idle_bytes: u64,
    /// The part of `connections` that viewers may not use: it is kept for publishers and for nodes that pull.
    pub reserve: usize,
    /// Connections that have not published or played yet, in all.
    pub negotiating: usize,
    /// A publisher that sends nothing at all for so long counts as gone, even if TCP has reported nothing.
    pub publisher_silence: Duration,
    /// The protocol's own limits.
    pub rtmp: rtmp::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 100_000,
            connections_per_address: 5_000,
            joins_per_address: 20_000,
            publish_messages: 10_000,
            publish_bytes: 32 << 20,
            idle_bytes: 16 << 10,
            reserve: 5_000,
            negotiating: 10_000,
            negotiation: Duration::from_secs(10),
            publisher_silence: Duration::from_secs(60),
            rtmp: rtmp::Limits::default(),
        }
    }
}

/// What the RTMP side of a node is made from.
#[derive(Debug)]
pub struct Parts {
    /// Who may publish and play what.
    pub routes: Arc<Routes>,
    /// Who may publish and play.
    pub gate: Arc<Gate>,
    /// What pulls of other nodes are checked with, where nodes share a token.
    pub pull_key: Option<PullKey>,
    /// Who sends the PROXY protocol.
    pub proxies: Vec<IpNet>,
    /// See [`Limits`].
    pub limits: Limits,
    /// What `ffmpeg_hls` writes.
    pub hls: Arc<HlsOutputs>,
    /// Where publishers' media goes.
    pub feeds: Arc<Feeds>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// When to stop.
    pub drain: Drain,
    /// This node's name, by which it detects a pull from itself.
    pub node: NodeId,
    /// Over how long a draining node staggers its disconnects of viewers, so that they do not all reconnect at once.
    pub drain_spread: Duration,
}

/// What the peers of a listener speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RTMP: they publish or play.
    Rtmp,
    /// HTTP: they play FLV.
    Http,
}

/// What a listener leads to.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// The routes of this port.
    pub port: u16,
    /// What peers speak.
    pub protocol: Protocol,
    /// They speak it through TLS.
    pub tls: Option<Arc<ServerConfig>>,
}

/// What all connections of a node share.
#[derive(Debug)]
pub struct Server {
    parts: Parts,
    /// For pulls of other nodes, which are no viewers.
    pub(super) open: Arc<Gate>,
    /// Periodic work on connections runs at multiples of its period after this, so that it shares wake-ups.
    pub(super) begun: Instant,
    next: AtomicU64,
    /// Connections that have not published or played yet.
    pub(super) negotiating: Arc<AtomicUsize>,
    pub(super) addresses: Addresses,
    pub(super) peers: Arc<Peers>,
    /// Who plays by HLS.
    pub(super) audience: Audience,
    /// Known once the node drains.
    pub(super) elsewhere: OnceLock<Elsewhere>,
}

impl Deref for Server {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Server {
    /// A server without listeners.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Server {
            parts,
            open: Gate::open(),
            begun: Instant::now(),
            next: AtomicU64::new(1),
            negotiating: Arc::default(),
            addresses: Addresses::default(),
            peers: Arc::default(),
            audience: Audience::default(),
            elsewhere: OnceLock::new(),
        })
    }

    /// Says where peers may go on, before the node drains; the first word counts.
    pub fn set_elsewhere(&self, elsewhere: Elsewhere) {
        // A second drain of a process says the same.
        drop(self.elsewhere.set(elsewhere));
    }

    /// Who publishes and plays.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Whether an address is a proxy's, which says whose connection it hands on.
    pub(super) fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|net| net.contains(&address))
    }

    /// A number for a new connection, for logs.
    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

/// One more connection that has not published or played yet, for as long as this is there.
pub(super) struct Negotiating(Arc<AtomicUsize>);

impl Negotiating {
    pub fn begin(server: &Server) -> Self {
        server.negotiating.fetch_add(1, Ordering::Relaxed);
        Negotiating(server.negotiating.clone())
    }
}

impl Drop for Negotiating {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
