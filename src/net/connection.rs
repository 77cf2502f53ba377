//! A connection: its socket and its session, and what every part of its life does with them: read, write, refuse, close.

use super::idle::Idle;
use super::server::Server;
use super::transport::Transport;
use crate::auth::Action;
use crate::budget::{Charge, Holder};
use crate::rtmp;
use crate::rtmp::session::Server as Session;
use crate::telemetry::{Seldom, shown};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How many streams one connection may publish or play; players that zap stay far below.
const STREAMS: usize = 1000;

/// How long the pending output may take before a close.
const GRACEFUL_CLOSE: Duration = Duration::from_secs(1);

/// What a publisher is charged at least for unfinished messages, so that its charge changes with the largest keyframes only.
const FRAME_BYTES: usize = 128 << 10;

/// Why a connection ended, other than by its own wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] rtmp::Error),
    #[error("nothing was published or played in time")]
    Negotiation,
    #[error("{0}")]
    Misbehaved(&'static str),
    #[error("it sends more than a peer that does not publish may")]
    Flooded,
    #[error("{0}")]
    Refused(String),
    #[error("the memory that peers may make this node hold is used up")]
    Evicted,
}

/// What the parts of a connection's life share.
pub(super) struct Connection<'a> {
    pub server: &'a Arc<Server>,
    pub transport: Transport,
    pub session: Box<Session>,
    pub peer: SocketAddr,
    pub port: u16,
    pub id: u64,
    pub app: String,
    /// Who is charged for what this peer makes the process hold.
    pub holder: Holder,
    /// For the session.
    pub charge: Charge,
    /// What it may send while it does not publish.
    pub idle: Idle,
    /// Publishes and plays that it has asked for.
    pub streams: usize,
    /// The last read was a full one: more is there already. Live media of 20 Mb/s comes in smaller ones.
    pub brings_much: bool,
}

/// Counts a refusal, and says so in the log.
pub(super) fn count_refusal(
    server: &Server,
    id: u64,
    peer: SocketAddr,
    app: &str,
    reason: &'static str,
    text: &str,
) {
    static REFUSED: Seldom = Seldom::new(Duration::from_secs(1));
    server.metrics.refused(reason);
    if let Some(held_back) = REFUSED.pass() {
        let (app, text) = (shown(app), shown(text));
        tracing::info!(id, %peer, app, reason, held_back, "refused: {text}");
    }
}

impl Connection<'_> {
    /// Counts a publish or play, of which one connection and one address may ask for so many only.
    pub fn count_stream(&mut self) -> Result<(), Error> {
        self.streams += 1;
        if self.streams > STREAMS {
            return Err(Error::Refused("too many streams on one connection".to_owned()));
        }
        if !self.server.addresses.join(self.peer.ip(), self.server.limits.joins_per_address) {
            self.server.metrics.refused("joins_per_address");
            let text = "too many connections, publishes and plays of this address";
            return Err(Error::Refused(text.to_owned()));
        }
        Ok(())
    }

    /// Asks the peer to go on elsewhere, if it follows such requests; says whether it was asked.
    pub fn offer_elsewhere(&mut self, action: Action) -> bool {
        let tls = self.transport.is_tls();
        let nodes = self.server.elsewhere.get();
        let origin = nodes.and_then(|nodes| nodes.choose(action, tls, self.peer.ip()));
        let scheme = if tls { "rtmps" } else { "rtmp" };
        let address = origin.map(|origin| format!("{scheme}://{}/{}", origin.authority(), self.app));
        self.session.request_reconnect(address.as_deref())
    }

    /// Refuses a connect and closes.
    pub async fn refuse_connect(&mut self, reason: &'static str, text: &str) -> Result<(), Error> {
        self.session.reject_connect(text);
        Err(self.refused(reason, text).await)
    }

    /// Refuses a publisher and closes: OBS hangs on one without the other.
    pub async fn refuse_publish(
        &mut self,
        stream_id: u32,
        reason: &'static str,
        text: &str,
    ) -> Result<(), Error> {
        self.session.reject_publish(stream_id, text);
        Err(self.refused(reason, text).await)
    }

    /// Answers a viewer that there is no such stream, and closes.
    pub async fn refuse_play(
        &mut self,
        stream_id: u32,
        reason: &'static str,
        text: &str,
    ) -> Result<(), Error> {
        self.session.reject_play(stream_id, text);
        Err(self.refused(reason, text).await)
    }

    async fn refused(&mut self, reason: &'static str, text: &str) -> Error {
        count_refusal(self.server, self.id, self.peer, &self.app, reason, text);
        self.close_gracefully().await;
        Error::Refused(text.to_owned())
    }

    /// Sends what is pending, and closes gracefully.
    pub async fn close_gracefully(&mut self) {
        if let Ok(Ok(())) = tokio::time::timeout(GRACEFUL_CLOSE, self.flush()).await {
            self.transport.linger().await;
        }
    }

    /// Reads once and lets the session look at it. `false`: the peer closed. Safe to drop and call again.
    pub async fn read(&mut self) -> Result<bool, Error> {
        if self.brings_much {
            self.holder.wait_for_room().await;
            // A thousand that bring so much would keep all others waiting for the sum of what they have in their sockets.
            tokio::task::yield_now().await;
        }
        self.idle.wait(&self.transport).await;
        let session = &mut self.session;
        let n = tokio::select! {
            biased;
            n = self.transport.receive(|bytes| session.input(bytes).map_err(Error::from)) => n?,
            () = self.holder.evicted() => return Err(Error::Evicted),
        };
        self.brings_much = n >= self.transport.full_read();
        let held = self.session.held();
        let publishes = self.session.publishes();
        // A frame comes and goes many times a second.
        self.charge.set(if publishes { held.max(FRAME_BYTES) } else { held });
        // One that sends without end never waits for its eviction above.
        if self.charge.is_evicted() {
            return Err(Error::Evicted);
        }
        if !publishes && !self.idle.take(n, Instant::now()) {
            return Err(Error::Flooded);
        }
        self.server.metrics.received_bytes_total.inc_by(n as u64);
        Ok(n > 0)
    }

    /// Writes the session's pending output.
    pub async fn flush(&mut self) -> Result<(), Error> {
        let sent = |bytes| self.server.metrics.sent_bytes_total.inc_by(bytes as u64);
        Ok(self.transport.send(self.session.output(), sent).await?)
    }
}
