//! Takes connections from RTMP ports, within limits.

use super::addresses::Slot;
use super::ports::{InUse, Opener, PortError};
use super::server::{Entrance, Negotiating, Protocol, Server};
use super::{proxy, serve, socket};
use crate::telemetry::{Counted, Seldom};
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};

/// The pause after the process ran out of descriptors, so that the accept loop does not spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// Takes connections from a listener, which is for the routes of its port: see [`Server::listen_for`].
    pub fn listen(self: &Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let port = listener.local_addr()?.port();
        self.listen_for(listener, Entrance { port, protocol: Protocol::Rtmp, tls: None })
    }

    /// Takes connections from a listener until the node drains, and owns their tasks until they have ended or the node ends.
    /// The task belongs to the drain's tracker.
    pub fn listen_for(self: &Arc<Self>, listener: TcpListener, entrance: Entrance) -> io::Result<()> {
        socket::prepare_listener(&listener);
        let server = self.clone();
        self.drain.tasks().spawn(async move {
            let mut connections = JoinSet::new();
            let closed = server.drain.closed().clone();
            tokio::select! {
                () = closed.cancelled() => {}
                () = server.accept(&listener, &entrance, &mut connections) => {}
            }
            drop(listener);
            server.see_out(connections).await;
        });
        Ok(())
    }

    /// What opens ports for this server while it runs, with the node's certificate and by what binds a port.
    pub fn opener(
        self: &Arc<Self>,
        certificate: Option<Arc<ServerConfig>>,
        bind: impl Fn(u16) -> io::Result<TcpListener> + Send + Sync + 'static,
    ) -> Box<Opener> {
        // The server leads to its routes, and these to whoever opens their ports.
        let server = Arc::downgrade(self);
        Box::new(move |used: InUse, tls: bool| {
            let port = used.port();
            let tls = match tls {
                true => Some(certificate.clone().ok_or(PortError::NoCertificate(port))?),
                false => None,
            };
            let server = server.upgrade().filter(|server| !server.drain.closed().is_cancelled());
            let server = server.ok_or(PortError::Stopping(port))?;
            let listener = bind(port).map_err(|error| PortError::Bind { port, error })?;
            server.listen_while_used(listener, Entrance { port, protocol: Protocol::Rtmp, tls }, used);
            Ok(())
        })
    }

    /// As [`Server::listen_for`], until nobody uses the port. Connections that are there by then go on until their workflow ends them.
    fn listen_while_used(self: &Arc<Self>, listener: TcpListener, entrance: Entrance, used: InUse) {
        socket::prepare_listener(&listener);
        let server = self.clone();
        self.drain.tasks().spawn(async move {
            let mut connections = JoinSet::new();
            let closed = server.drain.closed().clone();
            let mut open = Some(listener);
            while let Some(listener) = open.take() {
                tokio::select! {
                    () = closed.cancelled() => {}
                    () = server.accept(&listener, &entrance, &mut connections) => {}
                    () = used.unused() => open = used.close(listener),
                }
            }
            server.see_out(connections).await;
        });
    }

    /// Owns the tasks of connections until they have ended or the node ends. The end of the node is told to all of them from here: each
    /// of them looking for it at each of its turns would be a lock that all streams share.
    async fn see_out(&self, mut connections: JoinSet<()>) {
        let ended = self.drain.ended().clone();
        tokio::select! {
            () = ended.cancelled() => connections.shutdown().await,
            () = async { while connections.join_next().await.is_some_and(reaped) {} } => {}
        }
    }

    async fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
        entrance: &Entrance,
        connections: &mut JoinSet<()>,
    ) {
        static EXHAUSTED: Seldom = Seldom::new(Duration::from_secs(5));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(ended) = connections.join_next() => {
                    reaped(ended);
                    continue;
                }
            };
            match accepted {
                Ok((socket, peer)) => self.admit(socket, peer, entrance.clone(), connections),
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

    /// Which limit leaves no room for one more connection.
    fn full(&self) -> Option<&'static str> {
        let taken = usize::try_from(self.metrics.connections.get()).unwrap_or(0);
        match () {
            () if taken >= self.limits.connections => Some("connections"),
            () if self.negotiating.load(Ordering::Relaxed) >= self.limits.negotiating => Some("negotiating"),
            () => None,
        }
    }

    /// One of the connections that an address may have; the error is the limit that it has reached.
    fn take_slot(&self, peer: SocketAddr) -> Result<Slot, &'static str> {
        if !self.addresses.join(peer.ip(), self.limits.joins_per_address) {
            return Err("joins_per_address");
        }
        self.addresses
            .connect(peer.ip(), self.limits.connections_per_address)
            .ok_or("connections_per_address")
    }

    fn refuse(&self, peer: SocketAddr, reason: &'static str) {
        static FULL: Seldom = Seldom::new(Duration::from_secs(5));
        self.metrics.refused(reason);
        if let Some(held_back) = FULL.pass() {
            tracing::warn!(%peer, reason, held_back, "connection refused: the limit is reached");
        }
    }

    /// Serves a connection that a proxy hands on: the address it names counts for everything.
    async fn admit_proxied(
        self: &Arc<Self>,
        mut socket: TcpStream,
        proxy: SocketAddr,
        entrance: Entrance,
        id: u64,
    ) {
        static UNREADABLE: Seldom = Seldom::new(Duration::from_secs(5));
        let negotiating = Negotiating::begin(self);
        let header = tokio::time::timeout(self.limits.negotiation, proxy::read_header(&mut socket)).await;
        drop(negotiating);
        let named = match header.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(named) => named,
            Err(error) => {
                self.metrics.refused("proxy_protocol");
                if let Some(held_back) = UNREADABLE.pass() {
                    tracing::warn!(%proxy, held_back, "connection of a proxy refused: {error}");
                }
                return proxy::refuse(socket).await;
            }
        };
        let peer = named.map_or(proxy, |peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()));
        match self.take_slot(peer) {
            Ok(_slot) => serve::serve(self, socket, peer, entrance, id).await,
            Err(reason) => self.refuse(peer, reason),
        }
    }

    fn admit(
        self: &Arc<Self>,
        socket: TcpStream,
        peer: SocketAddr,
        entrance: Entrance,
        connections: &mut JoinSet<()>,
    ) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let slot = match self.full() {
            Some(reason) => Err(reason),
            // Whose connection it is is known later.
            None if self.is_proxy(peer.ip()) => Ok(None),
            None => self.take_slot(peer).map(Some),
        };
        let slot = match slot {
            Ok(slot) => slot,
            Err(reason) => return self.refuse(peer, reason),
        };
        self.metrics.connections_total.inc();
        let counted = Counted::new(&self.metrics.connections);
        let id = self.next_id();
        let server = self.clone();
        connections.spawn(async move {
            let _counted = counted;
            match slot {
                Some(_slot) => serve::serve(&server, socket, peer, entrance, id).await,
                None => Box::pin(server.admit_proxied(socket, peer, entrance, id)).await,
            }
        });
    }
}

/// Takes note of a connection's task that has ended. `true`, for loops.
fn reaped(ended: Result<(), JoinError>) -> bool {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task broke off: a fault of this program");
    }
    true
}

/// Errors of one connection that ended before it was taken, not of the listener.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
