//! Serves routes on a socket: HTTP/1.1 with deadlines, a cap on connections, and a stop that nobody can hold up.
//!
//! The framework's own server has neither header deadlines nor a cap nor a deadline for its stop, so its routes run
//! under hyper's connection here.

use super::Routes;
use crate::telemetry::{Metrics, Seldom};
use hyper::StatusCode;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
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

/// The most connections of one address at a time: a node has two at rest, and some more while a herd of viewers comes.
pub const CONNECTIONS_PER_ADDRESS: usize = 256;

/// What a server allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// See [`CONNECTIONS_PER_ADDRESS`]. Without a bound for peers on this host.
    pub connections_per_address: usize,
    /// See [`CONNECTIONS_MAX`].
    pub connections: usize,
    /// See [`HEAD_DEADLINE`].
    pub head_deadline: Duration,
    /// See [`STOP_DEADLINE`].
    pub stop_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_per_address: CONNECTIONS_PER_ADDRESS,
            connections: CONNECTIONS_MAX,
            head_deadline: HEAD_DEADLINE,
            stop_deadline: STOP_DEADLINE,
        }
    }
}

/// Who a connection is from, as handlers see it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// IPv4-mapped addresses are IPv4.
    pub address: IpAddr,
    /// Set by a handler that knows the peer: its connection is not given up for somebody else's.
    pub known: Arc<AtomicBool>,
}

/// The connections that are open.
#[derive(Default)]
struct Open {
    next: u64,
    /// Oldest first.
    connections: BTreeMap<u64, (Peer, CancellationToken)>,
    addresses: HashMap<IpAddr, usize>,
}

impl Open {
    /// Makes room for one more. Where there is none, the oldest connection of somebody who is not known has to go: a node that
    /// has shown its token is never kept out by those who hold connections open without one. The error names the limit.
    fn admit(&mut self, peer: &Peer, limits: Limits) -> Result<(u64, CancellationToken), &'static str> {
        let of_address = self.addresses.get(&peer.address).copied().unwrap_or(0);
        if of_address >= limits.connections_per_address && !peer.address.is_loopback() {
            return Err("connections_per_address");
        }
        if self.connections.len() >= limits.connections {
            let unknown = |(_, (peer, cut)): &(&u64, &(Peer, CancellationToken))| {
                !peer.known.load(Relaxed) && !cut.is_cancelled()
            };
            let (_, (_, cut)) = self.connections.iter().find(unknown).ok_or("connections")?;
            cut.cancel();
        }
        let (number, cut) = (self.next, CancellationToken::new());
        self.next += 1;
        self.connections.insert(number, (peer.clone(), cut.clone()));
        *self.addresses.entry(peer.address).or_default() += 1;
        Ok((number, cut))
    }

    fn closed(&mut self, number: u64) {
        let Some((peer, _)) = self.connections.remove(&number) else { return };
        if let Some(count) = self.addresses.get_mut(&peer.address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&peer.address);
            }
        }
    }
}

/// How a port is served.
#[derive(Clone, Debug)]
pub struct Server {
    /// By HTTPS, with this certificate.
    pub tls: Option<Arc<ServerConfig>>,
    /// See [`Limits`].
    pub limits: Limits,
    /// Where refusals are counted.
    pub metrics: Arc<Metrics>,
}

/// Serves until the stop signal, then lets running requests end within the deadline.
///
/// Connections beyond the limits are closed at once: holding them back would let a few slow peers shut all others out.
pub async fn serve(server: Server, listener: TcpListener, routes: Routes, stop: CancellationToken) {
    static REFUSED: Seldom = Seldom::new(Duration::from_secs(5));
    let limits = server.limits;
    let mut connections = JoinSet::new();
    let mut open = Open::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                match ended {
                    Ok(number) => open.closed(number),
                    Err(error) => tracing::error!(%error, "an HTTP connection's task broke off: a fault of this program"),
                }
                continue;
            }
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let peer = Peer { address: from.ip().to_canonical(), known: Arc::default() };
        let (number, cut) = match open.admit(&peer, limits) {
            Ok(admitted) => admitted,
            Err(full) => {
                server.metrics.http_refused(full);
                if let Some(held_back) = REFUSED.pass() {
                    tracing::warn!(peer = %from, held_back, limit = full, "HTTP connection refused: the limit is reached");
                }
                continue;
            }
        };
        let connection = connection(server.clone(), stream, peer, routes.clone(), stop.clone());
        let metrics = server.metrics.clone();
        connections.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = cut.cancelled() => {
                    metrics.http_refused("replaced");
                    tracing::debug!(peer = %from, "HTTP connection given up for another one");
                }
            }
            number
        });
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.stop_deadline, all).await.is_err() {
        tracing::info!(left = connections.len(), "HTTP connections cut at the stop deadline");
        connections.shutdown().await;
    }
}

async fn connection(server: Server, stream: TcpStream, peer: Peer, routes: Routes, stop: CancellationToken) {
    let address = peer.address;
    if let Err(error) = configure(&stream) {
        tracing::debug!(peer = %address, %error, "HTTP connection not served");
        return;
    }
    let Some(tls) = server.tls.clone() else {
        return answer(server, stream, peer, routes, stop).await;
    };
    let begun = tokio::time::timeout(server.limits.head_deadline, TlsAcceptor::from(tls).accept(stream));
    match begun.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => answer(server, stream, peer, routes, stop).await,
        Err(error) => {
            server.metrics.http_refused("tls");
            tracing::debug!(peer = %address, %error, "HTTP connection ended before TLS was agreed on");
        }
    }
}

async fn answer(
    server: Server,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    routes: Routes,
    stop: CancellationToken,
) {
    let address = peer.address;
    let head_deadline = server.limits.head_deadline;
    let routes = TowerToHyperService::new(warp::service(routes));
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let (answer, metrics) = (routes.call(request), server.metrics.clone());
        async move {
            let answer = answer.await?;
            if is_refusal(answer.status()) {
                metrics.http_refused(answer.status().as_str());
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_deadline)
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
        tracing::debug!(peer = %address, %error, "HTTP connection ended");
    }
}

/// Whether an answer says that the caller did what it may not. A stream that is not published, or that somebody else owns, is
/// an answer.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() && !matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT)
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
