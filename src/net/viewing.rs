//! What is the same for all who watch, in whatever way they are connected: how they are let in, and what ends it.

use super::connection::Error;
use super::peers::{Activity, Present};
use super::routes::{NoRoute, PlayRoute};
use super::server::Server;
use crate::auth::Denied;
use crate::ids::StreamName;
use crate::relay::stream::{End, Stream};
use crate::relay::{Admission, Format, Interest, JoinError, Turn, Viewer};
use crate::telemetry::{Counted, Seldom, shown};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// How long a viewer that is sent away may take to read the rest of what was begun.
const LAST_MESSAGE: Duration = Duration::from_secs(1);

/// A viewer that is let in.
pub(super) struct Admitted {
    pub route: PlayRoute,
    pub interest: Interest,
    /// Counts it for as long as it is here.
    pub _counted: Counted,
}

/// Whether it is worth to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prospect {
    /// There is no such thing.
    Absent,
    /// Not for this peer.
    Forbidden,
    /// Not now.
    Later,
}

/// Why one is not.
pub(super) struct NotAdmitted {
    /// What may become of it.
    pub prospect: Prospect,
    /// The label of the refusal's counter.
    pub reason: &'static str,
    /// For the peer.
    pub text: String,
}

impl NotAdmitted {
    fn new(prospect: Prospect, reason: &'static str, text: impl Into<String>) -> Self {
        NotAdmitted { prospect, reason, text: text.into() }
    }

    /// Authorisation says no.
    pub fn denied(Denied { reason, text }: Denied) -> Self {
        NotAdmitted::new(Prospect::Forbidden, reason, text)
    }
}

impl NotAdmitted {
    /// What it waits for takes too long.
    pub fn late() -> Self {
        NotAdmitted::new(Prospect::Later, "late", "the stream takes too long to begin, try again")
    }
}

/// Lets a viewer in at a port and an app, if there is a route and room. `looped`: it is a pull that came through this node before.
pub(super) fn admit(
    server: &Server,
    port: u16,
    app: &str,
    name: &StreamName,
    peer: SocketAddr,
    looped: bool,
) -> Result<Admitted, NotAdmitted> {
    let route = server.routes.play(port, app, name, peer).map_err(|no| {
        let prospect = if no == NoRoute::Address { Prospect::Forbidden } else { Prospect::Absent };
        NotAdmitted::new(prospect, no.reason(), no.to_string())
    })?;
    if looped && route.hub.admission() == Admission::OnDemand {
        // A stream that is published here may be pulled from here; one that is not would be pulled in a loop.
        return Err(NotAdmitted::new(Prospect::Absent, "loop", "this node would pull from itself"));
    }
    let taken = usize::try_from(server.metrics.connections.get()).unwrap_or(0);
    let (connections, reserve) = (server.limits.connections, server.limits.reserve);
    if !route.pulls && taken > connections.saturating_sub(reserve.min(connections / 10)) {
        return Err(NotAdmitted::new(Prospect::Later, "reserve", "this node is full"));
    }
    let gauge = if route.pulls { &server.metrics.pulls_out } else { &server.metrics.viewers };
    let _counted = Counted::new(gauge);
    let interest = route.hub.join(name).map_err(|error| {
        let (prospect, reason) = match error {
            JoinError::Unknown => (Prospect::Absent, "unknown_stream"),
            JoinError::Full => (Prospect::Later, "names"),
            JoinError::Closed => (Prospect::Later, "closed"),
        };
        NotAdmitted::new(prospect, reason, error.to_string())
    })?;
    Ok(Admitted { route, interest, _counted })
}

/// What a viewer is told whose stream ended before it began.
pub(super) fn refusal(end: &End) -> NotAdmitted {
    match end {
        End::Refused(text) => NotAdmitted::new(Prospect::Absent, "unknown_stream", text),
        End::Unknown => NotAdmitted::new(
            Prospect::Later,
            "reactor",
            "it cannot be found out now where this stream is, try again",
        ),
        End::Unpublished => NotAdmitted::new(Prospect::Absent, "unpublished", "the stream has ended"),
        End::Closed => NotAdmitted::new(Prospect::Later, "closed", "the node is stopping"),
    }
}

/// A viewer that watches: it is listed for operators, and is sent away when its leave expires, when an operator says so, or when the
/// node drains.
pub(super) struct Watching {
    id: u64,
    peer: SocketAddr,
    present: Present,
    draining: CancellationToken,
    /// How late in a drain it goes: at a random moment, so that viewers do not all come back at once; nodes that pull go at once.
    stagger: Duration,
    drains: bool,
    /// It may be asked once to go on elsewhere: it is no node that pulls, and goes because this node drains.
    offer: bool,
    until: Option<Instant>,
    /// Boxed, as next to no viewer has one.
    leave: Option<Pin<Box<Sleep>>>,
}

/// Who watches, and how.
pub(super) struct Who {
    pub id: u64,
    pub peer: SocketAddr,
    pub format: Format,
    /// It is a node that pulls, by this name.
    pub node: Option<String>,
    pub pulls: bool,
    /// Until its leave expires.
    pub until: Option<Instant>,
}

impl Watching {
    /// Lists a viewer whose stream was there after this time, and says so in the log.
    pub fn begin(server: &Server, stream: &Stream, who: Who, after: Duration) -> Self {
        static JOINED: Seldom = Seldom::events();
        static PULLED: Seldom = Seldom::events();
        let Who { id, peer, format, node, pulls, until } = who;
        let name = stream.name();
        let session = stream.session().map_or_else(|| "unknown".to_owned(), |tag| tag.to_string());
        if pulls {
            if let Some(held_back) = PULLED.pass() {
                let node = node.as_deref().map_or_else(|| "unknown".to_owned(), shown);
                tracing::info!(id, %peer, %node, stream = %name, %session, held_back, "pulled by a node");
            }
        } else if let Some(held_back) = JOINED.pass() {
            let by = format.name();
            tracing::info!(id, %peer, stream = %name, %session, ?after, by, held_back, "viewer joined");
        }
        let activity = if pulls { Activity::Pulling } else { Activity::Watching };
        Watching {
            id,
            peer,
            present: server.peers.enter(activity, id, name, peer, format, None),
            draining: server.drain.draining().clone(),
            stagger: if pulls { Duration::ZERO } else { server.drain_spread.mul_f64(rand::random()) },
            drains: false,
            offer: !pulls,
            until,
            leave: until.map(|until| Box::pin(sleep_until(until))),
        }
    }

    /// Whether to ask it to go on elsewhere before it is sent away. Says so once.
    pub fn may_be_offered(&mut self) -> bool {
        let expired = self.until.is_some_and(|until| until <= Instant::now());
        self.drains && !expired && std::mem::take(&mut self.offer)
    }

    /// It has to go after this time.
    pub fn stay(&mut self, time: Duration) {
        self.leave = Some(Box::pin(sleep_until(Instant::now() + time)));
    }

    /// Waits until it has to go. Safe to drop and call again.
    pub async fn sent_away(&mut self) {
        loop {
            tokio::select! {
                reason = self.present.kicked() => {
                    let (id, peer, reason) = (self.id, self.peer, shown(&reason));
                    tracing::info!(id, %peer, "viewer sent away: {reason}");
                    self.offer = false;
                    return;
                }
                () = passed(&mut self.leave) => return,
                () = self.draining.cancelled(), if !self.drains => {
                    self.drains = true;
                    let at = Instant::now() + self.stagger;
                    let at = self.until.map_or(at, |until| until.min(at));
                    self.leave = Some(Box::pin(sleep_until(at)));
                }
            }
        }
    }

    /// What the end of a viewer's turn means. `false`: it stalled, maybe in the middle of a message, so it is told nothing more.
    pub fn turned(&self, turn: Turn) -> Result<bool, Error> {
        match turn {
            Turn::Ended(_) | Turn::Stopped => Ok(true),
            Turn::Gone(error) => Err(error.into()),
            Turn::Stalled => {
                let (id, peer) = (self.id, self.peer);
                tracing::info!(id, %peer, "viewer closed: it stopped reading (stalled)");
                Ok(false)
            }
        }
    }
}

async fn passed(time: &mut Option<Pin<Box<Sleep>>>) {
    match time {
        Some(time) => time.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Ends the media at a message border. `false`: the peer does not take the rest of a message in time, and gets nothing more, as it would
/// be read as a part of that message.
pub(super) async fn finish(viewer: &mut Viewer) -> Result<bool, Error> {
    viewer.stop();
    match timeout(LAST_MESSAGE, viewer.turn()).await {
        Ok(Turn::Stopped | Turn::Ended(_)) => Ok(true),
        Ok(Turn::Gone(error)) => Err(error.into()),
        Ok(Turn::Stalled) | Err(_) => Ok(false),
    }
}
