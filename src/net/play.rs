//! What a connection plays: one stream at a time, alone or beside a publish on another message stream.
//!
//! ```text
//!   Asking ──granted──▶ Waiting ──known──▶ Watching ──▶ over
//! ```
//! A play is a state of its connection and not a task: whoever runs the connection waits for its next [`Step`] beside what
//! else it waits for, and takes it with [`advance`]. While one watches, its relay viewer alone writes to the socket, so
//! whatever else is to be said goes through it ([`say`]).

use super::connection::{Connection, Error, count_refusal};
use super::elsewhere::OFFER;
use super::server::Server;
use super::viewing::{self, Admitted, NotAdmitted, Watching, Who};
use crate::auth::{Action, Denied, Grant, Request};
use crate::ids::SessionId;
use crate::relay::{Format, Turn, Viewer};
use crate::rtmp::session::{self, Event, Receives};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A play, from its request to its end.
pub(super) struct Play {
    stream_id: u32,
    stage: Stage,
}

/// The states in the module's head. Boxed, as a connection holds one for hours.
enum Stage {
    Asking(BoxFuture<'static, Result<Playing, Denied>>),
    Waiting(Box<Waiting>),
    Watching(Box<Watched>),
}

/// What is to be played, and to whom.
pub(super) struct Playing {
    stream_id: u32,
    grant: Grant,
    /// This is a pull that came through this node before.
    looped: bool,
    /// The node that pulls, as it calls itself.
    node: Option<String>,
    receives: Receives,
}

struct Waiting {
    playing: Playing,
    admitted: Admitted,
    begun: Instant,
    closed: CancellationToken,
}

struct Watched {
    viewer: Viewer,
    watching: Watching,
    _counted: crate::telemetry::Counted,
}

/// What happens to a play next.
pub(super) enum Step {
    Granted(Playing),
    Refused(NotAdmitted),
    /// Its stream is there.
    Known,
    /// It watched to the end, or can watch no more.
    Turned(Turn),
    /// It has to go.
    SentAway,
}

/// Whether a connection does nothing else, so that it is closed when its play is refused or ends by this side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Alone {
    Yes,
    No,
}

/// What a connection does after a play.
pub(super) enum Next {
    /// The play is over, and the connection may be used again.
    Over,
    /// It plays on, and wants to publish as well.
    Publish(session::Publish),
    Close,
}

/// Runs a play until it is over, the peer leaves, or wants to publish beside it.
pub(super) async fn run(connection: &mut Connection<'_>, play: &mut Option<Play>) -> Result<Next, Error> {
    loop {
        // Events first: commands that came before the play was accepted are among them.
        while let Some(event) = connection.session.event() {
            match event {
                Event::Publish(publish) => return Ok(Next::Publish(publish)),
                event => {
                    if !take(connection, play, event).await? {
                        return Ok(Next::Close);
                    }
                }
            }
        }
        say(connection, play).await?;
        if play.is_none() {
            return Ok(Next::Over);
        }
        tokio::select! {
            step = step(play) => {
                if !advance(connection, play, step, Alone::Yes).await? {
                    return Ok(Next::Close);
                }
            }
            read = connection.read() => {
                if !read? {
                    return Ok(Next::Close);
                }
            }
        }
    }
}

/// Asks for leave to play.
pub(super) fn leave(
    connection: &Connection<'_>,
    play: session::Play,
) -> BoxFuture<'static, Result<Playing, Denied>> {
    let (server, app) = (connection.server.clone(), connection.app.clone());
    let (port, peer) = (connection.port, connection.peer);
    async move {
        let session::Play { stream_id, stream_key: key, query, receives, .. } = play;
        let named = query.as_deref().unwrap_or_default();
        let looped = super::pull::hops(named).any(|hop| hop == server.node.as_str());
        let node = super::pull::hops(named).last().map(str::to_owned);
        let pulls = server.routes.serves_pulls(port, &app);
        let (ip, session) = (peer.ip(), SessionId::random());
        let request = Request { action: Action::Play, app, key, query, peer: ip, session };
        // Nodes that pull are not viewers: they prove themselves otherwise.
        let gate = if pulls { &server.open } else { &server.gate };
        let grant = gate.ask(&request).await?;
        if pulls {
            check_pull(&server, port, &request, &grant, peer)?;
        }
        Ok(Playing { stream_id, grant, looped, node, receives })
    }
    .boxed()
}

/// Where nodes share a token, a pull is signed with it, or comes from an address that the step lists: plain mmids nodes
/// know no token.
fn check_pull(
    server: &Server,
    port: u16,
    request: &Request,
    grant: &Grant,
    peer: SocketAddr,
) -> Result<(), Denied> {
    let Some(key) = &server.pull_key else { return Ok(()) };
    let signed = key.check(&grant.name, request.query.as_deref(), super::pull::now());
    let listed = || server.routes.lists_viewer(port, &request.app, &grant.name, peer.ip());
    match signed {
        Err(unsigned) if !listed() => Err(Denied { reason: "signature", text: unsigned.to_string() }),
        _ => Ok(()),
    }
}

/// Waits for what happens to a play next; without one, for ever. Safe to drop and call again.
pub(super) async fn step(play: &mut Option<Play>) -> Step {
    let Some(Play { stage, .. }) = play else { return std::future::pending().await };
    match stage {
        Stage::Asking(leave) => match leave.await {
            Ok(playing) => Step::Granted(playing),
            Err(denied) => Step::Refused(NotAdmitted::denied(denied)),
        },
        Stage::Waiting(waiting) => {
            tokio::select! {
                known = waiting.admitted.interest.known() => match known {
                    Ok(()) => Step::Known,
                    Err(end) => Step::Refused(viewing::refusal(&end)),
                },
                () = waiting.closed.cancelled() => {
                    Step::Refused(viewing::refusal(&crate::relay::End::Closed))
                }
            }
        }
        Stage::Watching(watched) => {
            let Watched { viewer, watching, .. } = &mut **watched;
            tokio::select! {
                turn = viewer.turn() => Step::Turned(turn),
                () = watching.sent_away() => Step::SentAway,
            }
        }
    }
}

/// Takes what happened to a play. `false`: the connection is to be closed, without another word.
pub(super) async fn advance(
    connection: &mut Connection<'_>,
    play: &mut Option<Play>,
    step: Step,
    alone: Alone,
) -> Result<bool, Error> {
    let Some(Play { stream_id, stage }) = play.take() else { return Ok(true) };
    match (step, stage) {
        (Step::Granted(playing), _) => *play = Play::begin(connection, playing, alone).await?,
        (Step::Refused(no), _) => refuse(connection, stream_id, &no, alone).await?,
        (Step::Known, Stage::Waiting(waiting)) => {
            let stage = Stage::Watching(Box::new(watch(connection, *waiting)));
            *play = Some(Play { stream_id, stage });
        }
        (Step::Turned(turn), Stage::Watching(watched)) => {
            let told = watched.watching.turned(turn)?;
            return ended(connection, stream_id, watched, told, alone).await;
        }
        (Step::SentAway, Stage::Watching(mut watched)) => {
            if watched.watching.may_be_offered() && connection.offer_elsewhere(Action::Play) {
                watched.watching.stay(OFFER);
                *play = Some(Play { stream_id, stage: Stage::Watching(watched) });
                return Ok(true);
            }
            let told = viewing::finish(&mut watched.viewer).await?;
            return ended(connection, stream_id, watched, told, alone).await;
        }
        (Step::Known | Step::Turned(_) | Step::SentAway, _) => {}
    }
    Ok(true)
}

/// A play ended by this side. `told`: between two messages, so that the peer can be told. `false`: the connection is to be
/// closed, without another word.
async fn ended(
    connection: &mut Connection<'_>,
    stream_id: u32,
    watched: Box<Watched>,
    told: bool,
    alone: Alone,
) -> Result<bool, Error> {
    // From here on only this task writes to the socket.
    drop(watched);
    if told {
        connection.session.end_play(stream_id);
        if alone == Alone::Yes {
            connection.close_gracefully().await;
        }
    }
    Ok(told && alone == Alone::No)
}

/// Takes what the peer says of a play. `false`: the connection is to be closed, without another word.
pub(super) async fn take(
    connection: &mut Connection<'_>,
    play: &mut Option<Play>,
    event: Event,
) -> Result<bool, Error> {
    match (event, &mut *play) {
        (Event::Play(other), Some(_)) => {
            connection.session.fail_play(other.stream_id, "This connection plays another stream.");
        }
        (Event::Play(wanted), None) => {
            connection.count_stream()?;
            let stream_id = wanted.stream_id;
            *play = Some(Play { stream_id, stage: Stage::Asking(leave(connection, wanted)) });
        }
        (Event::StopPlay(id), Some(Play { stream_id, .. })) if id == *stream_id => return finish(play).await,
        (Event::Pause { paused, .. }, Some(play)) => {
            if let Stage::Watching(watched) = &mut play.stage {
                watched.viewer.pause(paused);
            }
        }
        (Event::Receive { wanted, .. }, Some(play)) => match &mut play.stage {
            Stage::Watching(watched) => watched.viewer.receive(wanted),
            Stage::Waiting(waiting) => waiting.playing.receives = wanted,
            Stage::Asking(_) => {}
        },
        _ => {}
    }
    Ok(true)
}

/// Ends a play between two messages, if there is one. `false`: its socket is in the middle of one, and nothing more may be
/// written.
pub(super) async fn finish(play: &mut Option<Play>) -> Result<bool, Error> {
    match play.take() {
        Some(Play { stage: Stage::Watching(mut watched), .. }) => viewing::finish(&mut watched.viewer).await,
        _ => Ok(true),
    }
}

/// Sends what the session has to say, through whoever writes to the socket.
pub(super) async fn say(connection: &mut Connection<'_>, play: &mut Option<Play>) -> Result<(), Error> {
    let Some(Play { stage: Stage::Watching(watched), .. }) = play else { return connection.flush().await };
    let output = connection.session.output();
    if !output.is_empty() {
        watched.viewer.reply(output);
    }
    Ok(())
}

impl Play {
    /// Begins a play that is granted. Nothing: it is refused, and the connection does something else as well.
    pub async fn begin(
        connection: &mut Connection<'_>,
        playing: Playing,
        alone: Alone,
    ) -> Result<Option<Play>, Error> {
        let (stream_id, name, begun) = (playing.stream_id, &playing.grant.name, Instant::now());
        let (server, peer) = (connection.server, connection.peer);
        let admitted = viewing::admit(server, connection.port, &connection.app, name, peer, playing.looped);
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(no) => return refuse(connection, stream_id, &no, alone).await.map(|()| None),
        };
        // If the stream is there, the pending answers go out with its start in one write.
        let known = admitted.interest.known().now_or_never();
        let closed = server.drain.closed().clone();
        let waiting = Waiting { playing, admitted, begun, closed };
        let stage = match known {
            Some(Ok(())) => Stage::Watching(Box::new(watch(connection, waiting))),
            _ => Stage::Waiting(Box::new(waiting)),
        };
        Ok(Some(Play { stream_id, stage }))
    }
}

/// Answers that it plays, and hands the socket to the relay.
fn watch(connection: &mut Connection<'_>, waiting: Waiting) -> Watched {
    let Waiting { playing, admitted, begun, .. } = waiting;
    let Playing { stream_id, grant, node, receives, .. } = playing;
    let Admitted { route, interest, _counted } = admitted;
    connection.session.accept_play(stream_id, Some(interest.stream().id().0));
    let prelude = connection.session.output();
    let (id, peer, pulls, until) = (connection.id, connection.peer, route.pulls, grant.until);
    let format = Format::rtmp(stream_id, receives);
    let who = Who { id, peer, format, node, pulls, until };
    let watching = Watching::begin(connection.server, interest.stream(), who, begun.elapsed());
    let viewer = interest.watch(connection.transport.sink(), prelude, format);
    Watched { viewer, watching, _counted }
}

/// Answers that there is no such stream, and closes a connection that does nothing else.
async fn refuse(
    connection: &mut Connection<'_>,
    stream_id: u32,
    no: &NotAdmitted,
    alone: Alone,
) -> Result<(), Error> {
    if alone == Alone::Yes {
        return connection.refuse_play(stream_id, no.reason, &no.text).await;
    }
    let (server, id, peer) = (connection.server, connection.id, connection.peer);
    count_refusal(server, id, peer, &connection.app, no.reason, &no.text);
    connection.session.reject_play(stream_id, &no.text);
    Ok(())
}
