//! Binds RTMP ports and takes connections, within limits.

use super::routes::Routes;
use super::{connection, socket};
use crate::drain::Drain;
use crate::ids::NodeId;
use crate::relay::Feeds;
use crate::rtmp;
use crate::telemetry::{Counted, Metrics, Seldom};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// The pause after the process ran out of descriptors, so that the accept loop does not spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

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
    /// A publisher that sends nothing at all for so long counts as gone, even if TCP has reported nothing.
    pub publisher_silence: Duration,
    /// The protocol's own limits.
    pub rtmp: rtmp::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 100_000,
            connections_per_address: 20_000,
            negotiation: Duration::from_secs(10),
            publisher_silence: Duration::from_secs(60),
            rtmp: rtmp::Limits::default(),
        }
    }
}

/// What all connections of a node share.
#[derive(Debug)]
pub struct Server {
    /// Who may publish and play what.
    pub routes: Arc<Routes>,
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
    /// Periodic work on connections runs at multiples of its period after this, so that it shares wake-ups.
    pub(super) begun: Instant,
    next: AtomicU64,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

impl Server {
    /// A server without listeners.
    pub fn new(
        routes: Arc<Routes>,
        feeds: Arc<Feeds>,
        limits: Limits,
        metrics: Arc<Metrics>,
        drain: Drain,
        node: NodeId,
        drain_spread: Duration,
    ) -> Arc<Self> {
        Arc::new(Server {
            routes,
            feeds,
            limits,
            metrics,
            drain,
            node,
            drain_spread,
            begun: Instant::now(),
            next: AtomicU64::new(1),
            addresses: Mutex::default(),
        })
    }

    /// Takes connections from a listener until the node drains. The task belongs to the drain's tracker.
    pub fn listen(self: &Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let port = listener.local_addr()?.port();
        socket::prepare_listener(&listener);
        let server = self.clone();
        self.drain.tasks().spawn(async move {
            let draining = server.drain.draining().clone();
            tokio::select! {
                () = draining.cancelled() => {}
                () = server.accept(&listener, port) => {}
            }
        });
        Ok(())
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener, port: u16) {
        static EXHAUSTED: Seldom = Seldom::new(Duration::from_secs(5));
        loop {
            match listener.accept().await {
                Ok((socket, peer)) => self.admit(socket, peer, port),
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    self.metrics.refused("exhausted");
                    if let Some(held_back) = EXHAUSTED.pass() {
                        tracing::error!(%error, held_back, "no connection can be taken");
                    }
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, socket: TcpStream, peer: SocketAddr, port: u16) {
        static FULL: Seldom = Seldom::new(Duration::from_secs(5));
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let full = usize::try_from(self.metrics.connections.get()).unwrap_or(0) >= self.limits.connections;
        let slot = if full { None } else { AddressSlot::take(self, peer.ip()) };
        let Some(slot) = slot else {
            self.metrics.refused(if full { "connections" } else { "connections_per_address" });
            if let Some(held_back) = FULL.pass() {
                tracing::warn!(%peer, held_back, "connection refused: the limit is reached");
            }
            return;
        };
        self.metrics.connections_total.inc();
        let counted = Counted::new(&self.metrics.connections);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let server = self.clone();
        self.drain.tasks().spawn(async move {
            let ended = server.drain.ended().clone();
            tokio::select! {
                () = ended.cancelled() => {}
                () = connection::serve(&server, socket, peer, port, id) => {}
            }
            drop((counted, slot));
        });
    }
}

/// Errors of one connection that ended before it was taken, not of the listener.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// The network that one customer of a provider has: an IPv4 address, or an IPv6 network of 64 bits.
fn customer(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
    }
}

/// One of the connections that an address may have; free again when it is dropped.
struct AddressSlot {
    server: Arc<Server>,
    address: IpAddr,
}

impl AddressSlot {
    fn take(server: &Arc<Server>, address: IpAddr) -> Option<Self> {
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
