//! One connection: negotiate, then publish or play, until it ends.

use super::listener::Server;
use super::{play, publish, socket};
use crate::ids::StreamName;
use crate::rtmp;
use crate::rtmp::session::{Event, Server as Session};
use crate::telemetry::{Loss, Seldom};
use bytes::Bytes;
use socket2::SockRef;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// How long a graceful close may take for each of its two steps: sending what is pending, and waiting for the peer's close.
const GRACEFUL_CLOSE: Duration = Duration::from_secs(1);

/// How many streams one connection may publish or play after one another; players that zap stay far below.
const STREAMS: usize = 1000;

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
    Refused(String),
}

/// What the parts of a connection's life share.
pub(super) struct Connection<'a> {
    pub server: &'a Arc<Server>,
    pub socket: Arc<TcpStream>,
    pub session: Box<Session>,
    pub peer: SocketAddr,
    pub port: u16,
    pub id: u64,
    pub app: String,
}

/// What a peer wants after its negotiation.
pub(super) enum Intent {
    Publish(StreamName),
    /// With whether this is a pull that came through this node before.
    Play(StreamName, bool),
}

/// Serves a connection to its end.
pub(super) async fn serve(server: &Arc<Server>, socket: TcpStream, peer: SocketAddr, port: u16, id: u64) {
    static MISBEHAVED: Seldom = Seldom::new(Duration::from_secs(1));
    let mut connection = Connection {
        server,
        socket: Arc::new(socket),
        session: Box::new(Session::new(server.limits.rtmp, super::nonce())),
        peer,
        port,
        id,
        app: String::new(),
    };
    let outcome = connection.run().await;
    server.metrics.lost(Loss::Unusable, connection.session.ignored());
    match outcome {
        Ok(()) => tracing::debug!(id, %peer, "connection closed"),
        Err(Error::Protocol(error)) => {
            server.metrics.misbehaved_total.inc();
            if let Some(held_back) = MISBEHAVED.pass() {
                tracing::warn!(id, %peer, held_back, "connection closed: {error}");
            }
        }
        Err(error) => tracing::debug!(id, %peer, "connection closed: {error}"),
    }
}

impl Connection<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        for _ in 0..STREAMS {
            // Boxed, so that the negotiation's state takes no memory while the peer plays for hours.
            let deadline = self.server.limits.negotiation;
            let negotiated = Box::pin(self.negotiate());
            let intent = match tokio::time::timeout(deadline, negotiated).await {
                Ok(Ok(Some(intent))) => intent,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    self.server.metrics.refused("negotiation");
                    return Err(Error::Negotiation);
                }
            };
            let stays = match intent {
                Intent::Publish(name) => Box::pin(publish::run(self, name)).await?,
                Intent::Play(name, looped) => play::run(self, name, looped).await?,
            };
            if !stays {
                return Ok(());
            }
        }
        Err(Error::Refused("too many streams on one connection".to_owned()))
    }

    /// Reads until the peer wants to publish or play. Nothing: it left, or the node stops.
    async fn negotiate(&mut self) -> Result<Option<Intent>, Error> {
        let draining = self.server.drain.draining().clone();
        // A peer that has asked for nothing yet is disconnected without an error: encoders take an error on their first
        // connect for final, and reconnect after a mere disconnect.
        while !draining.is_cancelled() {
            while let Some(event) = self.session.event() {
                if let Some(intent) = self.consider(event).await? {
                    return Ok(Some(intent));
                }
            }
            self.flush().await?;
            // Reports a protocol error in messages that were held back until the answer: no more input may follow them.
            self.session.input(&[])?;
            tokio::select! {
                read = self.read() => {
                    if !read? {
                        return Ok(None);
                    }
                }
                () = draining.cancelled() => {}
            }
        }
        Ok(None)
    }

    async fn consider(&mut self, event: Event) -> Result<Option<Intent>, Error> {
        match event {
            Event::Connect(connect) => {
                self.app = connect.app;
                if !self.server.routes.has_app(self.port, &self.app) {
                    return self.refuse_connect("app", "no such app").await;
                }
                self.session.accept_connect();
            }
            Event::Publish(publish) => {
                return match StreamName::parse(&publish.stream_key) {
                    Ok(name) => Ok(Some(Intent::Publish(name))),
                    Err(error) => self.refuse_publish("stream_name", &error.to_string()).await.map(|()| None),
                };
            }
            Event::Play(play) => {
                let looped = play.query.as_deref().is_some_and(|query| self.is_loop(query));
                return match StreamName::parse(&play.stream_key) {
                    Ok(name) => Ok(Some(Intent::Play(name, looped))),
                    Err(error) => self.refuse_play("stream_name", &error.to_string()).await.map(|()| None),
                };
            }
            _ => {}
        }
        Ok(None)
    }

    /// Whether a pull has come through this node before.
    fn is_loop(&self, query: &str) -> bool {
        super::pull::hops(query).any(|hop| hop == self.server.node.as_str())
    }

    async fn refuse_connect(&mut self, reason: &'static str, text: &str) -> Result<Option<Intent>, Error> {
        self.session.reject_connect(text);
        Err(self.refused(reason, text).await)
    }

    /// Refuses a publisher and closes: OBS hangs on one without the other.
    pub async fn refuse_publish(&mut self, reason: &'static str, text: &str) -> Result<(), Error> {
        self.session.reject_publish(text);
        Err(self.refused(reason, text).await)
    }

    /// Answers a viewer that there is no such stream, and closes.
    pub async fn refuse_play(&mut self, reason: &'static str, text: &str) -> Result<(), Error> {
        self.session.reject_play(text);
        Err(self.refused(reason, text).await)
    }

    async fn refused(&mut self, reason: &'static str, text: &str) -> Error {
        static REFUSED: Seldom = Seldom::new(Duration::from_secs(1));
        self.server.metrics.refused(reason);
        if let Some(held_back) = REFUSED.pass() {
            tracing::info!(id = self.id, peer = %self.peer, app = self.app, reason, held_back, "refused: {text}");
        }
        self.close_gracefully().await;
        Error::Refused(text.to_owned())
    }

    /// Closes gracefully: sends what is pending, ends the sending side, and reads until the peer closes or the time is up. A
    /// close with unread input would be a reset, and could cost the peer what was sent last.
    pub async fn close_gracefully(&mut self) {
        if let Ok(Ok(())) = tokio::time::timeout(GRACEFUL_CLOSE, self.flush()).await {
            if let Err(error) = SockRef::from(self.socket.as_ref()).shutdown(std::net::Shutdown::Write) {
                tracing::debug!(id = self.id, %error, "shutdown");
                return;
            }
            let ignore = |_: &[u8]| Ok::<(), io::Error>(());
            let drained =
                async { while matches!(socket::receive(&self.socket, ignore).await, Ok(n) if n > 0) {} };
            // After the timeout the connection is closed all the same.
            drop(tokio::time::timeout(GRACEFUL_CLOSE, drained).await);
        }
    }

    /// Reads once and lets the session look at it. `false`: the peer closed. Safe to drop and call again.
    pub async fn read(&mut self) -> Result<bool, Error> {
        let session = &mut self.session;
        let n = socket::receive(&self.socket, |bytes| session.input(bytes).map_err(Error::from)).await?;
        self.server.metrics.received_bytes_total.inc_by(n as u64);
        Ok(n > 0)
    }

    /// Writes the session's pending output.
    pub async fn flush(&mut self) -> Result<(), Error> {
        let mut output: Bytes = self.session.output();
        while !output.is_empty() {
            match self.socket.try_write(&output) {
                Ok(n) => {
                    self.server.metrics.sent_bytes_total.inc_by(n as u64);
                    bytes::Buf::advance(&mut output, n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
