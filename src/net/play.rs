//! A connection that plays.

use super::connection::{Connection, Error};
use super::viewing::{self, Admitted, Watching, Who};
use crate::auth::Grant;
use crate::relay::stream::End;
use crate::relay::{Format, Interest, Viewer};
use crate::rtmp::session::Event;
use futures::FutureExt;
use tokio::time::Instant;

/// Plays until the peer stops (`true`: the connection may be used again), leaves, or the stream ends.
pub(super) async fn run(connection: &mut Connection<'_>, playing: Playing) -> Result<bool, Error> {
    let Playing { grant, looped, node } = playing;
    let (name, begun) = (grant.name.clone(), Instant::now());
    let admitted =
        viewing::admit(connection.server, connection.port, &connection.app, &name, connection.peer, looped);
    let Admitted { route, interest, _counted } = match admitted {
        Ok(admitted) => admitted,
        Err(no) => return connection.refuse_play(no.reason, &no.text).await.map(|()| false),
    };
    match Box::pin(wait(connection, &interest)).await? {
        Waited::Ready => {}
        Waited::Stopped => return Ok(true),
        Waited::Left => return Ok(false),
        Waited::Ended(end) => {
            let no = viewing::refusal(&end);
            return connection.refuse_play(no.reason, &no.text).await.map(|()| false);
        }
    }
    connection.session.accept_play(Some(interest.stream().id().0));
    let prelude = connection.session.output();
    let (id, peer, pulls, until) = (connection.id, connection.peer, route.pulls, grant.until);
    let who = Who { id, peer, format: Format::Rtmp, node, pulls, until };
    let watching = Watching::begin(connection.server, interest.stream(), who, begun.elapsed());
    let mut viewer = Box::new(interest.watch(connection.transport.sink(), prelude, Format::Rtmp));
    let outcome = watch(connection, &mut viewer, watching).await;
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
    viewer: &mut Viewer,
    mut watching: Watching,
) -> Result<Outcome, Error> {
    let ended = |told| if told { Outcome::Ended } else { Outcome::Left };
    loop {
        // Events first: commands that came before the play was accepted are among them.
        while let Some(event) = connection.session.event() {
            match event {
                Event::StopPlay => {
                    let told = viewing::finish(viewer).await?;
                    return Ok(if told { Outcome::Stopped } else { Outcome::Left });
                }
                Event::Pause { paused, .. } => viewer.pause(paused),
                _ => {}
            }
        }
        answer(connection, viewer);
        tokio::select! {
            turn = viewer.turn() => return watching.turned(turn).map(ended),
            read = connection.read() => {
                if !read? {
                    return Ok(Outcome::Left);
                }
            }
            () = watching.sent_away() => return viewing::finish(viewer).await.map(ended),
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
