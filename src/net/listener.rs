//! Takes connections from RTMP ports, within limits.

use super::server::{AddressSlot, Server};
use super::{serve, socket};
use crate::telemetry::{Counted, Seldom};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// The pause after the process ran out of descriptors, so that the accept loop does not spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

impl Server {
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
        let id = self.next_id();
        let server = self.clone();
        self.drain.tasks().spawn(async move {
            let ended = server.drain.ended().clone();
            tokio::select! {
                () = ended.cancelled() => {}
                () = serve::serve(&server, socket, peer, port, id) => {}
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
