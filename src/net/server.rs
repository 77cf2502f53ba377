//! What all connections of a node share, and the limits that hold for all of them together.

use super::routes::Routes;
use crate::auth::{Gate, PullKey};
use crate::drain::Drain;
use crate::ids::NodeId;
use crate::relay::Feeds;
use crate::rtmp;
use crate::telemetry::Metrics;
use ipnet::IpNet;
use rustls::ServerConfig;
use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// From the first byte to the publish or play: a slow phone on a bad network needs a few seconds.
    pub negotiation: Duration,
    /// Messages a second of a publisher, after a burst of two seconds of them; what is more waits in its socket. Encoders send
    /// below 200, with many tracks below 2,000.
    pub publish_messages: u64,
    /// Bytes a second of a publisher, in the same way. 32 MiB is 268 Mb/s.
    pub publish_bytes: u64,
    /// Bytes a second of a peer that does not publish, after a burst of two seconds of them; one that sends more is closed.
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
            publish_messages: 10_000,
            publish_bytes: 32 << 20,
            idle_bytes: 32 << 10,
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

/// What a listener leads to.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// The routes of this port.
    pub port: u16,
    /// Peers speak TLS.
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
    addresses: Mutex<HashMap<IpAddr, usize>>,
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
            addresses: Mutex::default(),
        })
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

/// The network that one customer of a provider has: an IPv4 address, or an IPv6 network of 64 bits.
fn customer(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
    }
}

/// One of the connections that an address may have; free again when it is dropped.
pub(super) struct AddressSlot {
    server: Arc<Server>,
    address: IpAddr,
}

impl AddressSlot {
    /// Nothing: it has as many as it may.
    pub fn take(server: &Arc<Server>, address: IpAddr) -> Option<Self> {
        let address = customer(address);
        let mut addresses = server.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_insert(0);
        if *count >= server.limits.connections_per_address {
            return None;
        }
        *count += 1;
        Some(AddressSlot { server: server.clone(), address })
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut addresses = self.server.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_with_a_network_of_its_own_counts_once() {
        let customer = |text: &str| customer(text.parse().unwrap()).to_string();
        assert_eq!(customer("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_ne!(customer("2001:db8:1:3::1"), customer("2001:db8:1:2::1"));
        assert_eq!(customer("192.0.2.7"), "192.0.2.7");
    }
}
