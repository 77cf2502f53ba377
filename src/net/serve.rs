//! The life of a connection: negotiate, then publish or play, or both on message streams of their own, until it ends.

use super::connection::{Connection, Error};
use super::idle::Idle;
use super::play::{Alone, Next, Play, Playing};
use super::publish::Publishing;
use super::server::{Entrance, Negotiating, Protocol, Server};
use super::transport::Transport;
use super::{http, play, publish};
use crate::auth::{Action, Request};
use crate::ids::SessionId;
use crate::rtmp::session::{self, Event, Server as Session};
use crate::telemetry::{Loss, Seldom};
use rustls::ServerConnection;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// What a peer wants after its negotiation.
enum Intent {
    Publish(Publishing),
    Play(Playing),
}

/// Serves a connection to its end.
pub(super) async fn serve(
    server: &Arc<Server>,
    socket: TcpStream,
    peer: SocketAddr,
    entrance: Entrance,
    id: u64,
) {
    // Boxed, so that what a handshake takes is not held for as long as the connection lives.
    let transport = match Box::pin(transport(server, socket, &entrance)).await {
        Ok(transport) => transport,
        Err(error) => return no_transport(server, peer, id, &error),
    };
    let (outcome, transport) = match entrance.protocol {
        // Boxed, as it would take its room in the tasks of all others.
        Protocol::Http => Box::pin(http::serve(server, transport, peer, entrance.port, id)).await,
        Protocol::Rtmp => rtmp(server, transport, peer, entrance.port, id).await,
    };
    if matches!(outcome, Err(Error::Flooded)) {
        keep_waiting(server, transport).await;
    }
    ended(server, peer, id, outcome);
}

/// How long a peer is kept that flooded the node: a thousand of them cost a thousand handshakes in that time.
const FLOOD_PAUSE: Duration = Duration::from_secs(2);

/// Keeps a connection open for a while and reads nothing: who flooded the node would come back at once, and begin anew. What else was held
/// for it is given back by now.
async fn keep_waiting(server: &Server, _open: Transport) {
    drop(tokio::time::timeout(FLOOD_PAUSE, server.drain.draining().cancelled()).await);
}

/// Serves a connection that speaks RTMP to its end, and gives back what is left of it.
async fn rtmp(
    server: &Arc<Server>,
    transport: Transport,
    peer: SocketAddr,
    port: u16,
    id: u64,
) -> (Result<(), Error>, Transport) {
    let holder = server.feeds.budget().holder();
    let mut connection = Connection {
        server,
        transport,
        session: Box::new(Session::new(server.limits.rtmp, super::nonce())),
        peer,
        port,
        id,
        app: String::new(),
        charge: holder.charge(),
        idle: Idle::new(server.limits.idle_bytes, Instant::now()),
        holder,
        streams: 0,
        brings_much: false,
    };
    let outcome = connection.run().await;
    server.metrics.lost(Loss::Unusable, connection.session.ignored());
    (outcome, connection.transport)
}

/// Counts how a connection ended, and says so where somebody should know.
fn ended(server: &Server, peer: SocketAddr, id: u64, outcome: Result<(), Error>) {
    static MISBEHAVED: Seldom = Seldom::new(Duration::from_secs(1));
    static EVICTED: Seldom = Seldom::new(Duration::from_secs(1));
    if matches!(outcome, Err(Error::Flooded)) {
        server.metrics.refused("idle_bytes");
    }
    match outcome {
        Ok(()) => tracing::debug!(id, %peer, "connection closed"),
        Err(error @ (Error::Protocol(_) | Error::Misbehaved(_) | Error::Flooded)) => {
            server.metrics.misbehaved_total.inc();
            if let Some(held_back) = MISBEHAVED.pass() {
                tracing::warn!(id, %peer, held_back, "connection closed: {error}");
            }
        }
        Err(Error::Evicted) => {
            server.metrics.refused("memory");
            if let Some(held_back) = EVICTED.pass() {
                tracing::warn!(id, %peer, held_back, "connection closed: {}", Error::Evicted);
            }
        }
        Err(error) => tracing::debug!(id, %peer, "connection closed: {error}"),
    }
}

/// What the bytes of a connection go through, within the time for negotiations.
async fn transport(server: &Server, socket: TcpStream, entrance: &Entrance) -> io::Result<Transport> {
    let Some(config) = &entrance.tls else { return Ok(Transport::plain(socket)) };
    let _negotiating = Negotiating::begin(server);
    let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
    let begun = tokio::time::timeout(server.limits.negotiation, Transport::tls(socket, connection));
    begun.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn no_transport(server: &Server, peer: SocketAddr, id: u64, error: &io::Error) {
    static FAILED: Seldom = Seldom::new(Duration::from_secs(1));
    server.metrics.refused("tls");
    if let Some(held_back) = FAILED.pass() {
        tracing::info!(id, %peer, held_back, "connection closed before TLS was agreed on: {error}");
    }
}

impl Connection<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        // Beside it the connection may publish.
        let mut play = None;
        loop {
            let intent = match &mut play {
                // Boxed, so that the negotiation's state takes no memory while the peer plays for hours.
                None => Box::pin(self.negotiate_in_time()).await?,
                Some(_) => match play::run(self, &mut play).await? {
                    Next::Over => continue,
                    Next::Publish(publish) => self.publish_beside(publish, &mut play).await.map(Some)?,
                    Next::Close => None,
                },
            };
            match intent {
                Some(Intent::Publish(publishing)) => {
                    if !Box::pin(publish::run(self, publishing, &mut play)).await? {
                        return Ok(());
                    }
                }
                Some(Intent::Play(playing)) => play = Play::begin(self, playing, Alone::Yes).await?,
                None => return Ok(()),
            }
        }
    }

    /// Waits for what the peer wants. Nothing: it left, or the node stops.
    async fn negotiate_in_time(&mut self) -> Result<Option<Intent>, Error> {
        let deadline = self.server.limits.negotiation;
        let _negotiating = Negotiating::begin(self.server);
        tokio::time::timeout(deadline, self.negotiate()).await.unwrap_or_else(|_| {
            self.server.metrics.refused("negotiation");
            Err(Error::Negotiation)
        })
    }

    /// Reads until the peer wants to publish or play. Nothing: it left, or the node stops.
    async fn negotiate(&mut self) -> Result<Option<Intent>, Error> {
        let closed = self.server.drain.closed().clone();
        // A peer that has asked for nothing yet is disconnected without an error: encoders take an error on their first
        // connect for final, and reconnect after a mere disconnect.
        while !closed.is_cancelled() {
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
                () = closed.cancelled() => {}
            }
        }
        Ok(None)
    }

    async fn consider(&mut self, event: Event) -> Result<Option<Intent>, Error> {
        match event {
            Event::Connect(connect) => {
                self.app = connect.app;
                if !self.server.routes.has_app(self.port, &self.app) {
                    return self.refuse_connect("app", "no such app").await.map(|()| None);
                }
                self.session.set_time(super::pull::now());
                self.session.accept_connect();
            }
            Event::Publish(publish) => return self.publish_beside(publish, &mut None).await.map(Some),
            Event::Play(play) => {
                self.count_stream()?;
                let stream_id = play.stream_id;
                return match play::leave(self, play).await {
                    Ok(playing) => Ok(Some(Intent::Play(playing))),
                    Err(no) => self.refuse_play(stream_id, no.reason, &no.text).await.map(|()| None),
                };
            }
            _ => {}
        }
        Ok(None)
    }

    /// Asks for leave to publish. A refusal is an error, and ends what plays beside it.
    async fn publish_beside(
        &mut self,
        publish: session::Publish,
        play: &mut Option<Play>,
    ) -> Result<Intent, Error> {
        self.count_stream()?;
        let session::Publish { stream_id, stream_key: key, query, .. } = publish;
        let (app, peer, session) = (self.app.clone(), self.peer.ip(), SessionId::random());
        let request = Request { action: Action::Publish, app, key, query, peer, session };
        match self.server.gate.ask(&request).await {
            Ok(grant) => {
                let query = request.query;
                Ok(Intent::Publish(Publishing { stream_id, grant, session, query }))
            }
            Err(denied) => Err(publish::refuse(self, play, stream_id, denied.reason, &denied.text).await),
        }
    }
}
