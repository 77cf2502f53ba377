//! A connection that plays over HTTP: `GET /APP/NAME.flv` is answered with the stream as FLV (HTTP-FLV), or as FLV in the messages of a
//! WebSocket if the player asks for one; `GET /APP/NAME.m3u8`, and what that names, with files of HLS.
//!
//! The stream comes from the same ring, on demand and by the same rules as over RTMP, so this knows little of HTTP: after a request for a
//! stream the socket is the relay's. A connection plays one stream and ends with it, or asks for one file after another.

mod hls;
pub mod request;
pub mod websocket;

use super::connection::{Error, count_refusal};
use super::idle::Idle;
use super::server::{Negotiating, Server};
use super::transport::Transport;
use super::viewing::{self, Admitted, NotAdmitted, Prospect, Watching, Who};
use crate::auth::{Action, Grant};
use crate::budget::Holder;
use crate::ids::SessionId;
use crate::relay::stream::End;
use crate::relay::{Format, Interest, Viewer, format};
use bytes::{Bytes, BytesMut};
use request::{HlsWanted, Request, Status, Wanted};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tungstenite::protocol::frame::coding::{Control, OpCode};
use websocket::Received;

/// How long an answer that is no stream may take.
const ANSWER: Duration = Duration::from_secs(1);

/// What is said of a peer that sends more, or other things, than a player does.
const NO_PLAYER: Error = Error::Misbehaved("it sends what no player does");

/// What a peer asks for.
enum Asked {
    Stream(Wanted),
    File(HlsWanted),
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
    idle: Idle,
    input: BytesMut,
}

/// Serves a connection to its end, and gives back what is left of it.
pub(super) async fn serve(
    server: &Server,
    transport: Transport,
    peer: SocketAddr,
    port: u16,
    id: u64,
) -> (Result<(), Error>, Transport) {
    let idle = Idle::new(server.limits.idle_bytes, Instant::now());
    let holder = server.feeds.budget().holder();
    let mut connection =
        Connection { server, transport, peer, port, id, holder, idle, input: BytesMut::new() };
    let outcome = connection.run().await;
    (outcome, connection.transport)
}

impl Connection<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        // Boxed, so that what these take is not held for as long as the viewer watches.
        let Some(wanted) = Box::pin(self.serve_files()).await? else { return Ok(()) };
        let begun = Instant::now();
        let Some((admitted, grant)) = Box::pin(self.admit(&wanted)).await? else { return Ok(()) };
        let Admitted { interest, _counted, .. } = admitted;
        let format = if wanted.websocket.is_some() { Format::WebSocket } else { Format::Flv };
        let (id, peer, until) = (self.id, self.peer, grant.until);
        let who = Who { id, peer, format, node: None, pulls: false, until };
        let watching = Watching::begin(self.server, interest.stream(), who, begun.elapsed());
        let head = request::stream_head(wanted.websocket.as_deref());
        let mut viewer = Box::new(interest.watch(self.transport.sink(), head.into(), format));
        let told = self.watch(&mut viewer, format, watching).await;
        // From here on only this task writes to the socket.
        drop(viewer);
        match told? {
            false => {}
            // What the player has not read yet would be lost by a reset.
            true if format == Format::WebSocket => self.say(close()).await,
            true => self.transport.linger().await,
        }
        Ok(())
    }

    /// Answers what is asked for until that is a stream. Nothing: the peer left, or has its answers.
    async fn serve_files(&mut self) -> Result<Option<Wanted>, Error> {
        let mut again = false;
        loop {
            match self.negotiate(again).await? {
                None => return Ok(None),
                Some(Asked::Stream(wanted)) => return Ok(Some(wanted)),
                Some(Asked::File(wanted)) => {
                    if !self.hls(&wanted).await? {
                        return Ok(None);
                    }
                    again = true;
                }
            }
        }
    }

    /// Reads what the peer wants. Nothing: it left, or has its answer. `again`: it had one before, and may leave without a word.
    async fn negotiate(&mut self, again: bool) -> Result<Option<Asked>, Error> {
        let _negotiating = Negotiating::begin(self.server);
        let mut charge = self.holder.charge();
        charge.set(request::HEAD_MAX);
        let request = timeout(self.server.limits.negotiation, self.request()).await;
        let request = request.unwrap_or_else(|_| match again {
            true => Ok(None),
            false => {
                self.server.metrics.refused("negotiation");
                Err(Error::Negotiation)
            }
        });
        match request? {
            None => Ok(None),
            Some(Request::Play(wanted)) => Ok(Some(Asked::Stream(wanted))),
            Some(Request::Hls(wanted)) => Ok(Some(Asked::File(wanted))),
            Some(Request::Preflight) => {
                self.say(request::preflight().into()).await;
                Ok(None)
            }
            Some(Request::Refused(status, why)) => Err(self.refuse(status, "", "http", why).await),
        }
    }

    /// Reads the request. Nothing: the peer left, or the node stops.
    async fn request(&mut self) -> Result<Option<Request>, Error> {
        let closed = self.server.drain.closed().clone();
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
                () = closed.cancelled() => return Ok(None),
            }
        }
    }

    /// Lets a viewer in, once its stream has something to show. Nothing: the peer left.
    async fn admit(&mut self, wanted: &Wanted) -> Result<Option<(Admitted, Grant)>, Error> {
        let grant = self.ask(&wanted.app, &wanted.key, wanted.query.as_ref()).await?;
        let admitted = viewing::admit(self.server, self.port, &wanted.app, &grant.name, self.peer, false);
        let ready = match admitted {
            Ok(admitted) => self.wait(&admitted.interest).await?.map(|stays| stays.then_some(admitted)),
            Err(no) => Err(no),
        };
        match ready {
            Ok(admitted) => Ok(admitted.map(|admitted| (admitted, grant))),
            Err(no) => Err(self.refuse(status(no.prospect), &wanted.app, no.reason, &no.text).await),
        }
    }

    /// Asks whether the peer may play; one that may not has its answer, which is an error.
    async fn ask(&self, app: &str, key: &str, query: Option<&String>) -> Result<Grant, Error> {
        let request = crate::auth::Request {
            action: Action::Play,
            app: app.to_owned(),
            key: key.to_owned(),
            query: query.cloned(),
            peer: self.peer.ip(),
            session: SessionId::random(),
        };
        let grant = match self.server.gate.ask(&request).await {
            Ok(grant) => grant,
            Err(denied) => {
                let status = if denied.is_outage() { Status::Unavailable } else { Status::Forbidden };
                return Err(self.refuse(status, app, denied.reason, &denied.text).await);
            }
        };
        if self.server.routes.serves_pulls(self.port, app) {
            return Err(self.refuse(Status::NotFound, app, "app", "no such app").await);
        }
        Ok(grant)
    }

    /// Waits until a stream has something to show. `false`: the peer left; inside is why there is nothing to show.
    async fn wait(&mut self, interest: &Interest) -> Result<Result<bool, NotAdmitted>, Error> {
        let closed = self.server.drain.closed().clone();
        let ready = interest.ready();
        tokio::pin!(ready);
        loop {
            tokio::select! {
                biased;
                ready = &mut ready => {
                    return Ok(ready.map(|()| true).map_err(|end| viewing::refusal(&end)));
                }
                () = closed.cancelled() => return Ok(Err(viewing::refusal(&End::Closed))),
                read = self.read() => {
                    if !read? {
                        return Ok(Ok(false));
                    }
                    // A player that asks for a WebSocket may send a ping at once, and none says more than that.
                    if self.input.len() > request::HEAD_MAX {
                        return Err(NO_PLAYER);
                    }
                }
            }
        }
    }

    /// Answers with an error, and closes.
    async fn refuse(&self, status: Status, app: &str, reason: &'static str, text: &str) -> Error {
        count_refusal(self.server, self.id, self.peer, app, reason, text);
        self.say(request::refusal(status, text).into()).await;
        Error::Refused(text.to_owned())
    }

    /// `true`: the stream ended between two blocks, so that something may be said after it.
    async fn watch(
        &mut self,
        viewer: &mut Viewer,
        format: Format,
        mut watching: Watching,
    ) -> Result<bool, Error> {
        loop {
            tokio::select! {
                turn = viewer.turn() => return watching.turned(turn),
                read = self.read() => {
                    if !read? {
                        return Ok(false);
                    }
                    if format == Format::WebSocket && self.listen(viewer)? {
                        return viewing::finish(viewer).await;
                    }
                    if format == Format::Flv {
                        // Nothing is expected after a request.
                        self.input = BytesMut::new();
                    }
                }
                () = watching.sent_away() => return viewing::finish(viewer).await,
            }
        }
    }

    /// Answers what a player says on its WebSocket. `true`: it wants to end.
    fn listen(&mut self, viewer: &mut Viewer) -> Result<bool, Error> {
        while let Some(received) = websocket::take(&mut self.input).map_err(|_| NO_PLAYER)? {
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

    /// Reads once. `false`: the peer closed. Safe to drop and call again.
    async fn read(&mut self) -> Result<bool, Error> {
        self.idle.wait(&self.transport).await;
        let input = &mut self.input;
        let n = tokio::select! {
            biased;
            n = self.transport.receive(|bytes| {
                input.extend_from_slice(bytes);
                Ok::<(), io::Error>(())
            }) => n?,
            () = self.holder.evicted() => return Err(Error::Evicted),
        };
        if !self.idle.take(n, Instant::now()) {
            return Err(Error::Flooded);
        }
        self.server.metrics.received_bytes_total.inc_by(n as u64);
        Ok(n > 0)
    }

    /// Sends what comes last, and closes gracefully.
    async fn say(&self, bytes: Bytes) {
        let sent = |bytes| self.server.metrics.sent_bytes_total.inc_by(bytes as u64);
        if let Ok(Ok(())) = timeout(ANSWER, self.transport.send(bytes, sent)).await {
            self.transport.linger().await;
        }
    }
}

/// A close with status 1001: this side goes away.
fn close() -> Bytes {
    format::framed(OpCode::Control(Control::Close), &1001u16.to_be_bytes())
}

fn status(prospect: Prospect) -> Status {
    match prospect {
        Prospect::Absent => Status::NotFound,
        Prospect::Forbidden => Status::Forbidden,
        Prospect::Later => Status::Unavailable,
    }
}
