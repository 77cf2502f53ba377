//! Serves routes on a socket: HTTP/1.1 with deadlines, a cap on connections, and a stop that nobody can hold up.
//!
//! The framework's own server has neither header deadlines nor a cap nor a deadline for its stop, so its routes run
//! under hyper's connection here.

use super::Routes;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The most connections at a time: one event stream and one pooled connection for each of 1,000 nodes.
pub const CONNECTIONS_MAX: usize = 2048;

/// How long the head of a request may take, from the end of the one before: also the longest idle time of a
/// connection. Above the interval of heartbeats, so that they keep theirs.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(20);

/// How long requests may go on after a stop. Every answer takes less, except to peers that do not read or write.
pub const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// How long sent data may stay unacknowledged, or a full window closed, before the kernel ends the connection.
const PEER_DEADLINE: Duration = Duration::from_secs(30);

/// The read buffer of a connection, and with it the greatest head of a request.
const BUFFER_MAX: usize = 32 * 1024;

/// A pause after a failed accept, which mostly means that there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// See [`CONNECTIONS_MAX`].
    pub connections: usize,
    /// See [`HEAD_DEADLINE`].
    pub head_deadline: Duration,
    /// See [`STOP_DEADLINE`].
    pub stop_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: CONNECTIONS_MAX, head_deadline: HEAD_DEADLINE, stop_deadline: STOP_DEADLINE }
    }
}

/// The address that a connection came from, as handlers see it: IPv4-mapped addresses are IPv4.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub IpAddr);

/// Serves until the stop signal, then lets running requests end within the deadline.
///
/// Connections beyond the limit are closed at once: holding them back would let a few slow peers shut all others out.
pub async fn serve(listener: TcpListener, routes: Routes, limits: Limits, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let mut refused: u64 = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            // Takes back what ended connections leave in the set.
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            refused += 1;
            // Powers of two: loud at the first, never a flood.
            if refused.is_power_of_two() {
                tracing::warn!(refused, limit = limits.connections, "HTTP connections refused: too many");
            }
            continue;
        };
        let connection = connection(stream, peer, routes.clone(), limits, stop.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.stop_deadline, all).await.is_err() {
        tracing::info!(left = connections.len(), "HTTP connections cut at the stop deadline");
        connections.shutdown().await;
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    routes: Routes,
    limits: Limits,
    stop: CancellationToken,
) {
    if let Err(error) = configure(&stream) {
        tracing::debug!(%peer, %error, "HTTP connection not served");
        return;
    }
    let routes = TowerToHyperService::new(warp::service(routes));
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip().to_canonical()));
        routes.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_deadline)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut stopping = pin!(stop.cancelled());
    let mut told = false;
    let result = loop {
        tokio::select! {
            result = connection.as_mut() => break result,
            () = stopping.as_mut(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "HTTP connection ended");
    }
}

/// Finds half-open peers and those that do not read; small replies are not held back.
fn configure(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    stream.set_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(PEER_DEADLINE / 2).with_interval(PEER_DEADLINE / 4),
    )?;
    socket.set_tcp_user_timeout(Some(PEER_DEADLINE))
}
