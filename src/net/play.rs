//! A connection that plays.

use super::admission::{self, Admitted};
use super::connection::{Connection, Error};
use super::peers::{Doing, Present, Protocol};
use super::routes::PlayRoute;
use crate::auth::Grant;
use crate::relay::stream::End;
use crate::relay::{Format, Interest, Turn, Viewer};
use crate::rtmp::session::Event;
use crate::telemetry::{Seldom, shown};
use futures::FutureExt;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How long a viewer that is disconnected may take to read the rest of the message that was begun.
const LAST_MESSAGE: Duration = Duration::from_secs(1);

/// Plays until the peer stops (`true`: the connection may be used again), leaves, or the stream ends.
pub(super) async fn run(connection: &mut Connection<'_>, playing: Playing) -> Result<bool, Error> {
    static JOINED: Seldom = Seldom::events();
    static PULLED: Seldom = Seldom::events();
    let Playing { grant, looped, node } = playing;
    let (name, begun) = (grant.name.clone(), Instant::now());
    let admitted =
        admission::admit(connection.server, connection.port, &connection.app, &name, connection.peer, looped);
    let Admitted { route, interest, _counted } = match admitted {
        Ok(admitted) => admitted,
        Err(no) => return connection.refuse_play(no.reason, &no.text).await.map(|()| false),
    };
    match Box::pin(wait(connection, &interest)).await? {
        Waited::Ready => {}
        Waited::Stopped => return Ok(true),
        Waited::Left => return Ok(false),
        Waited::Ended(end) => {
            let no = admission::refusal(&end);
            return connection.refuse_play(no.reason, &no.text).await.map(|()| false);
        }
    }
    connection.session.accept_play(Some(interest.stream().id().0));
    let prelude = connection.session.output();
    let session = interest.stream().session().map_or_else(|| "unknown".to_owned(), |tag| tag.to_string());
    let mut viewer = Box::new(interest.watch(connection.transport.sink(), prelude, Format::Rtmp));
    let (id, peer) = (connection.id, connection.peer);
    if route.pulls {
        if let Some(held_back) = PULLED.pass() {
            let node = node.as_deref().map_or_else(|| "unknown".to_owned(), shown);
            tracing::info!(id, %peer, %node, stream = %name, %session, held_back, "pulled by a node");
        }
    } else if let Some(held_back) = JOINED.pass() {
        let after = begun.elapsed();
        tracing::info!(id, %peer, stream = %name, %session, ?after, held_back, "viewer joined");
    }
    let doing = if route.pulls { Doing::Pulling } else { Doing::Watching };
    let present = connection.server.peers.enter(doing, id, &name, peer, Protocol::Rtmp, None);
    let outcome = watch(connection, &route, &mut viewer, grant.until, &present).await;
    drop(present);
    // From here on only this task writes to the socket.
    drop(viewer);
    match outcome? {
        Outcome::Stopped => {
            connection.flush().await?;
            Ok(true)
        }
        Outcome::Left => Ok(false),
        Outcome::Ended => {
            connection.session.end_play();
            connection.close_gracefully().await;
            Ok(false)
        }
    }
}

/// What is to be played, and to whom.
pub(super) struct Playing {
    pub grant: Grant,
    /// This is a pull that came through this node before.
    pub looped: bool,
    /// The node that pulls, as it calls itself.
    pub node: Option<String>,
}

enum Waited {
    Ready,
    Stopped,
    Left,
    Ended(End),
}

/// Waits for the stream to show something, and listens to the peer meanwhile.
async fn wait(connection: &mut Connection<'_>, interest: &Interest) -> Result<Waited, Error> {
    let draining = connection.server.drain.draining().clone();
    let ready = interest.ready();
    tokio::pin!(ready);
    // If the stream can start at once, the pending answers go out with it in one write; otherwise they are sent now.
    if let Some(ready) = ready.as_mut().now_or_never() {
        return Ok(ready.map_or_else(Waited::Ended, |()| Waited::Ready));
    }
    connection.flush().await?;
    loop {
        tokio::select! {
            ready = &mut ready => {
                return Ok(ready.map_or_else(Waited::Ended, |()| Waited::Ready));
            }
            () = draining.cancelled() => return Ok(Waited::Ended(End::Closed)),
            read = connection.read() => {
                if !read? {
                    return Ok(Waited::Left);
                }
                while let Some(event) = connection.session.event() {
                    if matches!(event, Event::StopPlay) {
                        return Ok(Waited::Stopped);
                    }
                }
                connection.flush().await?;
            }
        }
    }
}

enum Outcome {
    Stopped,
    Left,
    Ended,
}

async fn watch(
    connection: &mut Connection<'_>,
    route: &PlayRoute,
    viewer: &mut Viewer,
    until: Option<Instant>,
    present: &Present,
) -> Result<Outcome, Error> {
    let draining = connection.server.drain.draining().clone();
    // Boxed, as next to no viewer has one.
    let mut expiry = until.map(|until| Box::pin(tokio::time::sleep_until(until)));
    loop {
        // Events first: commands that came before the play was accepted are among them.
        while let Some(event) = connection.session.event() {
            match event {
                Event::StopPlay => return finish(viewer, Outcome::Stopped).await,
                Event::Pause { paused, .. } => viewer.pause(paused),
                _ => {}
            }
        }
        answer(connection, viewer);
        tokio::select! {
            turn = viewer.turn() => return after(connection, turn),
            read = connection.read() => {
                if !read? {
                    return Ok(Outcome::Left);
                }
            }
            () = draining.cancelled() => return Box::pin(send_away(connection, route, viewer)).await,
            reason = present.kicked() => {
                let (id, peer, reason) = (connection.id, connection.peer, shown(&reason));
                tracing::info!(id, %peer, "viewer sent away: {reason}");
                return finish(viewer, Outcome::Ended).await;
            }
            () = passed(&mut expiry) => return finish(viewer, Outcome::Ended).await,
        }
    }
}

async fn passed(time: &mut Option<Pin<Box<Sleep>>>) {
    match time {
        Some(time) => time.as_mut().await,
        None => std::future::pending().await,
    }
}

/// What the end of a viewer's turn means. One that stalled may stand in the middle of a message, so it is told nothing more.
fn after(connection: &Connection<'_>, turn: Turn) -> Result<Outcome, Error> {
    match turn {
        Turn::Ended(_) | Turn::Stopped => Ok(Outcome::Ended),
        Turn::Gone(error) => Err(error.into()),
        Turn::Stalled => {
            tracing::info!(id = connection.id, peer = %connection.peer, "viewer closed: it stopped reading (stalled)");
            Ok(Outcome::Left)
        }
    }
}

/// Hands the session's answers to the viewer.
fn answer(connection: &mut Connection<'_>, viewer: &mut Viewer) {
    let replies = connection.session.output();
    if !replies.is_empty() {
        viewer.reply(replies);
    }
}

/// The node drains: pulls are disconnected at once, viewers at random moments of the drain's spread, so that they do not all
/// reconnect at once.
async fn send_away(
    connection: &mut Connection<'_>,
    route: &PlayRoute,
    viewer: &mut Viewer,
) -> Result<Outcome, Error> {
    if !route.pulls {
        let spread = connection.server.drain_spread.mul_f64(rand::random::<f64>());
        let moment = tokio::time::sleep(spread);
        tokio::pin!(moment);
        loop {
            tokio::select! {
                () = &mut moment => break,
                turn = viewer.turn() => return after(connection, turn),
                read = connection.read() => {
                    if !read? {
                        return Ok(Outcome::Left);
                    }
                    while let Some(event) = connection.session.event() {
                        if matches!(event, Event::StopPlay) {
                            return finish(viewer, Outcome::Stopped).await;
                        }
                    }
                    answer(connection, viewer);
                }
            }
        }
    }
    finish(viewer, Outcome::Ended).await
}

/// Ends the media at a message border. A peer that does not take the rest of a message in time gets nothing more: it would
/// be read as a part of that message.
async fn finish(viewer: &mut Viewer, outcome: Outcome) -> Result<Outcome, Error> {
    viewer.stop();
    match tokio::time::timeout(LAST_MESSAGE, viewer.turn()).await {
        Ok(Turn::Stopped | Turn::Ended(_)) => Ok(outcome),
        Ok(Turn::Gone(error)) => Err(error.into()),
        Ok(Turn::Stalled) | Err(_) => Ok(Outcome::Left),
    }
}
