//! A connection that plays over HTTP: `GET /APP/NAME.flv` is answered with the stream as FLV (HTTP-FLV), or as FLV in the messages of a
//! WebSocket if the player asks for one.
//!
//! The stream comes from the same ring, on demand and by the same rules as over RTMP, so this knows no more of HTTP than one request: the
//! socket is the relay's from then on. A connection plays one stream and ends with it.

pub mod request;
pub mod websocket;

use super::admission::{self, Admitted};
use super::peers::{Doing, Present, Protocol};
use super::rate::Rate;
use super::server::{Negotiating, Server};
use super::transport::Transport;
use crate::auth::{Action, Grant};
use crate::budget::Holder;
use crate::ids::SessionId;
use crate::relay::stream::End;
use crate::relay::{Format, Interest, Turn, Viewer, format};
use crate::telemetry::{Seldom, shown};
use bytes::{Bytes, BytesMut};
use request::{Request, Status, Wanted};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tungstenite::protocol::frame::coding::{Control, OpCode};
use websocket::Received;

/// How long the last block may take when the node sends its viewers away.
const LAST_BLOCK: Duration = Duration::from_secs(1);

/// Why a connection ended, other than by its own wish.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error("nothing was asked for in time")]
    Silent,
    #[error("it sends what no player does")]
    Misbehaved,
    #[error("the memory that peers may make this node hold is used up")]
    Evicted,
    #[error("{1}")]
    Refused(Status, String),
}

struct Connection<'a> {
    server: &'a Server,
    transport: Transport,
    peer: SocketAddr,
    /// The port whose routes it leads to.
    port: u16,
    id: u64,
    holder: Holder,
    /// What it may send.
    rate: Rate,
    input: BytesMut,
}

/// Serves a connection to its end.
pub(super) async fn serve(server: &Server, transport: Transport, peer: SocketAddr, port: u16, id: u64) {
    let rate = Rate::new(server.limits.idle_bytes, Instant::now());
    let holder = server.feeds.budget().holder();
    let mut connection =
        Connection { server, transport, peer, port, id, holder, rate, input: BytesMut::new() };
    match connection.run().await {
        Ok(()) => tracing::debug!(id, %peer, "connection closed"),
        Err(Ended::Refused(status, text)) => {
            connection.say(request::refusal(status, &text).into()).await;
            tracing::debug!(id, %peer, "connection closed: {text}");
        }
        Err(ended) => {
            match ended {
                Ended::Evicted => server.metrics.refused("memory"),
                Ended::Silent => server.metrics.refused("negotiation"),
                Ended::Misbehaved => server.metrics.misbehaved_total.inc(),
                _ => {}
            }
            tracing::debug!(id, %peer, "connection closed: {ended}");
        }
    }
}

impl Connection<'_> {
    async fn run(&mut self) -> Result<(), Ended> {
        let negotiating = Negotiating::begin(self.server);
        let mut charge = self.holder.charge();
        charge.set(request::HEAD_MAX);
        let request = timeout(self.server.limits.negotiation, self.request()).await;
        let wanted = match request.unwrap_or(Err(Ended::Silent))? {
            None => return Ok(()),
            Some(Request::Play(wanted)) => wanted,
            Some(Request::Preflight) => {
                self.say(request::preflight().into()).await;
                return Ok(());
            }
            Some(Request::Refused(status, why)) => return Err(self.refused(status, "http", why)),
        };
        drop((negotiating, charge));
        // Boxed, so that what it takes is not held for as long as the viewer watches.
        let begun = Instant::now();
        let Some((admitted, grant)) = Box::pin(self.admit(&wanted)).await? else { return Ok(()) };
        let format = if wanted.websocket.is_some() { Format::WebSocket } else { Format::Flv };
        let Admitted { interest, _counted, .. } = admitted;
        self.joined(&interest, begun.elapsed(), format);
        let head = request::stream_head(wanted.websocket.as_deref());
        let mut viewer = Box::new(interest.watch(self.transport.sink(), head.into(), format));
        let protocol = if format == Format::Flv { Protocol::HttpFlv } else { Protocol::WebsocketFlv };
        let (peers, name) = (&self.server.peers, &grant.name);
        let present = peers.enter(Doing::Watching, self.id, name, self.peer, protocol, None);
        let outcome = self.watch(&mut viewer, format, grant.until, &present).await;
        drop(present);
        // From here on only this task writes to the socket.
        drop(viewer);
        match outcome? {
            Outcome::Left => {}
            // What the player has not read yet would be lost by a reset.
            Outcome::Ended if format == Format::WebSocket => self.say(close()).await,
            Outcome::Ended => self.transport.linger().await,
        }
        Ok(())
    }

    /// Reads the request. Nothing: the peer left, or the node stops.
    async fn request(&mut self) -> Result<Option<Request>, Ended> {
        let draining = self.server.drain.draining().clone();
        loop {
            if let Some(request) = request::read(&self.input) {
                self.input = BytesMut::new();
                return Ok(Some(request));
            }
            tokio::select! {
                read = self.read() => {
                    if !read? {
                        return Ok(None);
                    }
                }
                () = draining.cancelled() => return Ok(None),
            }
        }
    }

    /// Lets a viewer in, once its stream has something to show. Nothing: the peer left.
    async fn admit(&mut self, wanted: &Wanted) -> Result<Option<(Admitted, Grant)>, Ended> {
        let request = crate::auth::Request {
            action: Action::Play,
            app: wanted.app.clone(),
            key: wanted.key.clone(),
            query: wanted.query.clone(),
            peer: self.peer.ip(),
            session: SessionId::random(),
        };
        let grant = match self.server.gate.ask(&request).await {
            Ok(grant) => grant,
            Err(denied) => return Err(self.refused(Status::Forbidden, denied.reason, &denied.text)),
        };
        if self.server.routes.serves_pulls(self.port, &wanted.app) {
            return Err(self.refused(Status::NotFound, "app", "no such app"));
        }
        let admitted = admission::admit(self.server, self.port, &wanted.app, &grant.name, self.peer, false);
        let admitted = admitted.map_err(|no| self.refused(status(no.reason), no.reason, &no.text))?;
        let stays = self.wait(&admitted.interest).await?;
        Ok(stays.then_some((admitted, grant)))
    }

    /// Waits until a stream has something to show. `false`: the peer left.
    async fn wait(&mut self, interest: &Interest) -> Result<bool, Ended> {
        let draining = self.server.drain.draining().clone();
        let ready = interest.ready();
        tokio::pin!(ready);
        loop {
            tokio::select! {
                biased;
                ready = &mut ready => return ready.map(|()| true).map_err(|end| self.not_ready(&end)),
                () = draining.cancelled() => return Err(self.not_ready(&End::Closed)),
                read = self.read() => {
                    if !read? {
                        return Ok(false);
                    }
                    // A player that asks for a WebSocket may send a ping at once, and none says more than that.
                    if self.input.len() > request::HEAD_MAX {
                        return Err(Ended::Misbehaved);
                    }
                }
            }
        }
    }

    fn not_ready(&self, end: &End) -> Ended {
        let no = admission::refusal(end);
        self.refused(status(no.reason), no.reason, &no.text)
    }

    fn refused(&self, status: Status, reason: &'static str, text: &str) -> Ended {
        static REFUSED: Seldom = Seldom::new(Duration::from_secs(1));
        self.server.metrics.refused(reason);
        if let Some(held_back) = REFUSED.pass() {
            let text = shown(text);
            tracing::info!(id = self.id, peer = %self.peer, reason, held_back, "refused over HTTP: {text}");
        }
        Ended::Refused(status, text.to_owned())
    }

    fn joined(&self, interest: &Interest, after: Duration, format: Format) {
        static JOINED: Seldom = Seldom::events();
        let Some(held_back) = JOINED.pass() else { return };
        let stream = interest.stream();
        let session = stream.session().map_or_else(|| "unknown".to_owned(), |tag| tag.to_string());
        let (id, name) = (self.id, stream.name());
        tracing::info!(id, peer = %self.peer, stream = %name, %session, ?after, ?format, held_back, "viewer joined");
    }

    async fn watch(
        &mut self,
        viewer: &mut Viewer,
        format: Format,
        until: Option<Instant>,
        present: &Present,
    ) -> Result<Outcome, Ended> {
        let draining = self.server.drain.draining().clone();
        // Sooner at a random moment when the node drains, so that they do not all come back at once.
        let mut leave = until;
        let mut drains = false;
        loop {
            let leaves = leave;
            let moment = async move {
                match leaves {
                    Some(moment) => sleep_until(moment).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                turn = viewer.turn() => return self.after(turn),
                read = self.read() => {
                    if !read? {
                        return Ok(Outcome::Left);
                    }
                    match format {
                        Format::WebSocket => {
                            if self.listen(viewer)? {
                                return Ok(finish(viewer).await);
                            }
                        }
                        // Nothing is expected after a request.
                        _ => self.input.clear(),
                    }
                }
                reason = present.kicked() => {
                    let (id, reason) = (self.id, shown(&reason));
                    tracing::info!(id, peer = %self.peer, "viewer sent away: {reason}");
                    return Ok(finish(viewer).await);
                }
                () = moment => return Ok(finish(viewer).await),
                () = draining.cancelled(), if !drains => {
                    drains = true;
                    let spread = Instant::now() + self.server.drain_spread.mul_f64(rand::random());
                    leave = Some(leave.map_or(spread, |leave| leave.min(spread)));
                }
            }
        }
    }

    /// Answers what a player says on its WebSocket. `true`: it wants to end.
    fn listen(&mut self, viewer: &mut Viewer) -> Result<bool, Ended> {
        while let Some(received) = websocket::take(&mut self.input).map_err(|_| Ended::Misbehaved)? {
            match received {
                Received::Ping(payload) => {
                    viewer.reply(format::framed(OpCode::Control(Control::Pong), &payload));
                }
                Received::Close => return Ok(true),
                Received::Other => {}
            }
        }
        Ok(false)
    }

    fn after(&self, turn: Turn) -> Result<Outcome, Ended> {
        match turn {
            Turn::Ended(_) | Turn::Stopped => Ok(Outcome::Ended),
            Turn::Gone(error) => Err(error.into()),
            Turn::Stalled => {
                tracing::info!(id = self.id, peer = %self.peer, "viewer closed: it stopped reading (stalled)");
                Ok(Outcome::Left)
            }
        }
    }

    /// Reads once. `false`: the peer closed. Safe to drop and call again.
    async fn read(&mut self) -> Result<bool, Ended> {
        let input = &mut self.input;
        let n = tokio::select! {
            biased;
            n = self.transport.receive(|bytes| {
                input.extend_from_slice(bytes);
                Ok::<(), io::Error>(())
            }) => n?,
            () = self.holder.evicted() => return Err(Ended::Evicted),
        };
        if !self.rate.take(n as u64, Instant::now()).is_zero() {
            self.server.metrics.refused("idle_bytes");
            return Err(Ended::Misbehaved);
        }
        self.server.metrics.received_bytes_total.inc_by(n as u64);
        Ok(n > 0)
    }

    /// Sends what comes last, and closes gracefully.
    async fn say(&self, bytes: Bytes) {
        let sent = |bytes| self.server.metrics.sent_bytes_total.inc_by(bytes as u64);
        if let Ok(Ok(())) = timeout(LAST_BLOCK, self.transport.send(bytes, sent)).await {
            self.transport.linger().await;
        }
    }
}

enum Outcome {
    Left,
    Ended,
}

/// Ends the media between two blocks. A player that does not take the rest of one in time gets nothing more.
async fn finish(viewer: &mut Viewer) -> Outcome {
    viewer.stop();
    tokio::select! {
        turn = viewer.turn() => match turn {
            Turn::Stopped | Turn::Ended(_) => Outcome::Ended,
            Turn::Gone(_) | Turn::Stalled => Outcome::Left,
        },
        () = sleep(LAST_BLOCK) => Outcome::Left,
    }
}

/// A close with status 1001: this side goes away.
fn close() -> Bytes {
    format::framed(OpCode::Control(Control::Close), &1001u16.to_be_bytes())
}

/// The status for a reason of a refusal.
fn status(reason: &str) -> Status {
    match reason {
        "unknown_stream" | "unpublished" | "app" | "stream_key" => Status::NotFound,
        "address" => Status::Forbidden,
        _ => Status::Unavailable,
    }
}
