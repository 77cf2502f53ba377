//! A connection that publishes: its task pushes what it reads into a feed.

use super::connection::{Connection, Error};
use super::elsewhere::OFFER;
use super::low_water::LowWater;
use super::peers::{Activity, Present};
use super::play::{self, Alone, Play};
use super::rate::Rate;
use super::routes::{Publication, PublishRequest, Refused};
use super::server::Limits;
use crate::api::report::Happening;
use crate::auth::{Action, Grant};
use crate::ids::{SessionId, SessionTag, StreamName};
use crate::journal::Note;
use crate::media::Packet;
use crate::relay::{Feed, FeedRef, Format};
use crate::rtmp::session::Event;
use crate::telemetry::{Counted, Loss, Seldom, shown};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Publishers are pinged so often, so that half-open connections are found.
const PING: Duration = Duration::from_secs(20);

/// Publishers are looked after so often. One whose frames stop coming is heard in full again after this, and after twice
/// this at the latest; all are disconnected so soon after a stop began.
const TICK: Duration = Duration::from_millis(250);

/// After so many reads in a row everything else has its turn, also while a peer sends without end.
const READS: u32 = 64;

/// After so many messages other tasks get their turn: one read may hold 30,000 of the smallest, which take some
/// milliseconds.
const MESSAGES: usize = 1024;

/// A publish that authorisation lets in.
pub(super) struct Publishing {
    pub stream_id: u32,
    pub grant: Grant,
    pub session: SessionId,
    pub query: Option<String>,
}

/// The longest pause of a publisher that sends too much: it is looked after in between.
const THROTTLE_MAX: Duration = Duration::from_secs(1);

/// Publishes until the peer stops (`true`: the connection may be used again), leaves, or is sent away. Beside it the
/// connection may play.
pub(super) async fn run(
    connection: &mut Connection<'_>,
    publishing: Publishing,
    play: &mut Option<Play>,
) -> Result<bool, Error> {
    static BEGUN: Seldom = Seldom::events();
    static ENDED: Seldom = Seldom::events();
    let Publishing { stream_id, grant, session, .. } = &publishing;
    let (name, session) = (grant.name.clone(), session.tag());
    // Dropped at the end, the feed first: that ends the media, and the guard tells the step.
    let gone = CancellationToken::new();
    let _gone = gone.clone().drop_guard();
    let mut feed =
        connection.server.feeds.begin_for(None, Some(publishing.session), connection.holder.clone());
    let publication = match ask(connection, &publishing, feed.reference(), gone, play).await? {
        Asked::Accepted(publication) => publication,
        Asked::Withdrawn => return Ok(true),
        Asked::Left => return Ok(false),
    };
    let _counted = Counted::new(&connection.server.metrics.publishers);
    let (id, peer) = (connection.id, connection.peer);
    if let Some(held_back) = BEGUN.pass() {
        tracing::info!(id, %peer, stream = %name, %session, held_back, "publish");
    }
    let journal = &connection.server.metrics.journal;
    let note = |event| Note::of(event).session(Some(session));
    journal.note(&name, note(Happening::Published).detail(peer.ip().to_string()));
    let peers = &connection.server.peers;
    let mut present = peers.enter(Activity::Publishing, id, &name, peer, Format::Rtmp, Some(session));
    let who = Publisher { stream_id: *stream_id, name: &name, session, until: grant.until };
    let result = relay(connection, &mut feed, publication, &who, &mut present, play).await;
    drop(present);
    connection.server.metrics.journal.note(&name, note(Happening::Unpublished));
    if let Some(held_back) = ENDED.pass() {
        tracing::info!(id, %peer, stream = %name, %session, held_back, "unpublish");
    }
    result
}

/// Refuses a publisher and closes; what plays beside it ends between two messages. Gives the error to end with.
pub(super) async fn refuse(
    connection: &mut Connection<'_>,
    play: &mut Option<Play>,
    stream_id: u32,
    reason: &'static str,
    text: &str,
) -> Error {
    match play::finish(play).await {
        Ok(true) => {}
        Ok(false) => return Error::Refused(text.to_owned()),
        Err(error) => return error,
    }
    let refused = connection.refuse_publish(stream_id, reason, text).await;
    refused.err().unwrap_or_else(|| Error::Refused(text.to_owned()))
}

/// What came of asking for leave to publish; a refusal is an error.
enum Asked {
    Accepted(Publication),
    /// The peer does not want to any more; the connection may be used again.
    Withdrawn,
    Left,
}

/// Asks the route's owner, and listens to the peer meanwhile.
async fn ask(
    connection: &mut Connection<'_>,
    Publishing { stream_id, grant, session, query }: &Publishing,
    feed: FeedRef,
    gone: CancellationToken,
    play: &mut Option<Play>,
) -> Result<Asked, Error> {
    let stream_id = *stream_id;
    let route =
        connection.server.routes.publish(connection.port, &connection.app, &grant.name, connection.peer);
    let route = match route {
        Ok(route) => route,
        Err(no) => {
            return Err(refuse(connection, play, stream_id, no.reason(), &no.to_string()).await);
        }
    };
    let (reply, mut answer) = oneshot::channel();
    let (peer, id) = (connection.peer, connection.id);
    let (name, session, query) = (grant.name.clone(), *session, query.clone());
    let identity = grant.identity;
    let request = PublishRequest { name, session, identity, query, peer, connection: id, feed, gone, reply };
    match route.requests.try_send(request) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(_)) => {
            return Err(refuse(connection, play, stream_id, "busy", "the node is busy, try again").await);
        }
        Err(mpsc::error::TrySendError::Closed(_)) => {
            return Err(refuse(connection, play, stream_id, "closed", "the app is closed").await);
        }
    }
    let answer = loop {
        // What of the publish's own message stream comes before the answer is kept for it by the session.
        while let Some(event) = connection.session.event() {
            if event == Event::Unpublish(stream_id) {
                return Ok(Asked::Withdrawn);
            }
            if !aside(connection, play, event).await? {
                return Ok(Asked::Left);
            }
        }
        play::say(connection, play).await?;
        tokio::select! {
            answer = &mut answer => break answer,
            step = play::step(play) => {
                if !play::advance(connection, play, step, Alone::No).await? {
                    return Ok(Asked::Left);
                }
            }
            read = connection.read() => {
                if !read? {
                    return Ok(Asked::Left);
                }
            }
        }
    };
    match answer {
        Ok(Ok(publication)) => {
            connection.session.accept_publish(stream_id);
            Ok(Asked::Accepted(publication))
        }
        Ok(Err(Refused(text))) => Err(refuse(connection, play, stream_id, "publish", &text).await),
        Err(_) => Err(refuse(connection, play, stream_id, "closed", "the app is closed").await),
    }
}

/// Takes what the peer says of other message streams. `false`: the connection is to be closed.
async fn aside(
    connection: &mut Connection<'_>,
    play: &mut Option<Play>,
    event: Event,
) -> Result<bool, Error> {
    if let Event::Publish(other) = event {
        connection.session.reject_publish(other.stream_id, "This connection publishes another stream.");
        return Ok(true);
    }
    play::take(connection, play, event).await
}

/// Who publishes, what and for how long.
struct Publisher<'a> {
    stream_id: u32,
    name: &'a StreamName,
    session: SessionTag,
    /// When its leave expires.
    until: Option<Instant>,
}

async fn relay(
    connection: &mut Connection<'_>,
    feed: &mut Feed,
    Publication { mut evicted }: Publication,
    who: &Publisher<'_>,
    present: &mut Present,
    play: &mut Option<Play>,
) -> Result<bool, Error> {
    let mut heard = Instant::now();
    let mut upkeep = Upkeep { ping_at: heard + PING, offered: None };
    let mut tick = ticks(connection, heard);
    let mut intake = Intake { packets: Vec::new(), others: Vec::new(), low_water: LowWater::new() };
    let mut reads = 0_u32;
    let mut pace = Pace::new(&connection.server.limits, heard);
    loop {
        let Some(handed) = intake.take(connection, feed, play).await? else { return Ok(false) };
        if handed.over {
            return Ok(true);
        }
        pace.keep(connection, &handed, heard).await;
        reads = reads.wrapping_add(1);
        let read = async {
            if reads.is_multiple_of(READS) {
                tokio::task::yield_now().await;
            }
            connection.read().await
        };
        tokio::select! {
            // Whatever stands here is looked at again after each frame, so what may be a little late waits for the tick.
            biased;
            read = read => {
                if !read? {
                    return Ok(false);
                }
                heard = Instant::now();
            }
            step = play::step(play) => {
                if !play::advance(connection, play, step, Alone::No).await? {
                    return Ok(false);
                }
            }
            reason = &mut evicted => {
                let reason = reason.unwrap_or_else(|_| "the app is closed".to_owned());
                return end(connection, play, who, &reason).await;
            }
            reason = present.kicked() => return end(connection, play, who, &reason).await,
            now = tick.tick() => {
                match upkeep.tick(connection, who, heard, now) {
                    Due::Nothing => {}
                    Due::Disconnect => return Ok(false),
                    Due::End(reason) => return end(connection, play, who, reason).await,
                }
                if intake.low_water.is_set() {
                    intake.low_water.tick();
                }
            }
        }
    }
}

/// What is looked after now and then, while somebody publishes.
struct Upkeep {
    ping_at: Instant,
    /// When it was asked to go on elsewhere, as the node drains.
    offered: Option<Instant>,
}

/// What becomes of a publish at such a moment.
enum Due {
    Nothing,
    /// It is disconnected without a word.
    Disconnect,
    /// It is told why, and disconnected.
    End(&'static str),
}

impl Upkeep {
    fn tick(
        &mut self,
        connection: &mut Connection<'_>,
        who: &Publisher<'_>,
        heard: Instant,
        now: Instant,
    ) -> Due {
        // An encoder comes back only after a disconnect, so that is all that most of them get.
        if connection.server.drain.draining().is_cancelled() {
            if self.offered.is_none() && connection.offer_elsewhere(Action::Publish) {
                self.offered = Some(now);
            }
            if self.offered.is_none_or(|offered| now >= offered + OFFER) {
                return Due::Disconnect;
            }
        }
        if who.until.is_some_and(|until| until <= now) {
            return Due::End("the leave to publish has expired");
        }
        if now >= self.ping_at {
            if heard.elapsed() > connection.server.limits.publisher_silence {
                return Due::End("nothing was sent for too long");
            }
            self.ping_at = now + PING;
            connection.session.ping(0);
        }
        Due::Nothing
    }
}

/// How much a publisher may send a second.
struct Pace {
    messages: Rate,
    bytes: Rate,
}

impl Pace {
    fn new(limits: &Limits, now: Instant) -> Self {
        let (messages, bytes) = (limits.publish_messages, limits.publish_bytes);
        Pace { messages: Rate::new(messages, now), bytes: Rate::new(bytes, now) }
    }

    /// Leaves what a publisher sends in its socket for a moment, if it sends more than it may.
    async fn keep(&mut self, connection: &Connection<'_>, handed: &Handed, now: Instant) {
        static THROTTLED: Seldom = Seldom::new(Duration::from_secs(5));
        let wait = self.messages.take(handed.messages, now).max(self.bytes.take(handed.bytes, now));
        if wait.is_zero() {
            return;
        }
        connection.server.metrics.publishers_throttled_total.inc();
        if let Some(held_back) = THROTTLED.pass() {
            let (id, peer) = (connection.id, connection.peer);
            tracing::warn!(id, %peer, held_back, "publisher throttled: it sends more than it may");
        }
        tokio::time::sleep(wait.min(THROTTLE_MAX)).await;
    }
}

/// When a publisher is looked after: its low-water mark, its pings, whether the node drains.
fn ticks(connection: &Connection<'_>, now: Instant) -> Interval {
    // All publishers at the same moments, so that it is one wake-up of the process and not one for each of them.
    let since = now.duration_since(connection.server.begun).as_nanos() % TICK.as_nanos();
    let first = now + TICK - Duration::from_nanos(u64::try_from(since).unwrap_or(0));
    let mut tick = tokio::time::interval_at(first, TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    tick
}

/// What was given to the feed.
struct Handed {
    /// The publish is over.
    over: bool,
    messages: u64,
    bytes: u64,
}

/// Takes in what was read of a publish. Both lists are empty in between, and keep their memory.
struct Intake {
    packets: Vec<Packet>,
    /// What was said of other message streams.
    others: Vec<Event>,
    low_water: LowWater,
}

impl Intake {
    /// Everything that was read, and what the socket is to wait for next. Nothing: the connection is to be closed.
    async fn take(
        &mut self,
        connection: &mut Connection<'_>,
        feed: &mut Feed,
        play: &mut Option<Play>,
    ) -> Result<Option<Handed>, Error> {
        let handed = self.hand_on(connection, feed).await;
        for event in self.others.drain(..) {
            if !aside(connection, play, event).await? {
                return Ok(None);
            }
        }
        play::say(connection, play).await?;
        if handed.over {
            // Another conversation may begin on this connection.
            self.low_water.reset();
        }
        if let Some(mark) = self.low_water.news(connection.session.missing()) {
            connection.transport.set_low_water(mark);
        }
        Ok(Some(handed))
    }

    /// Gives media to the feed, and sets aside what is said of other message streams.
    async fn hand_on(&mut self, connection: &mut Connection<'_>, feed: &mut Feed) -> Handed {
        let Intake { packets, others, low_water } = self;
        let (mut messages, mut bytes) = (0, 0);
        let (server, session) = (connection.server, &mut connection.session);
        loop {
            let (mut over, mut more) = (false, false);
            while let Some(event) = session.event() {
                match event {
                    Event::Media(message) => {
                        let packet = Packet::from_message(message.type_id, message.timestamp, message.body);
                        server.metrics.lost(Loss::Unusable, u64::from(packet.is_none()));
                        packets.extend(packet);
                    }
                    // One at a time: the media before belongs to it.
                    Event::Unpublish(_) => over = true,
                    Event::Pong(_) => {}
                    event => others.push(event),
                }
                more = packets.len() >= MESSAGES;
                if over || more {
                    break;
                }
            }
            if !packets.is_empty() {
                packets
                    .iter()
                    .for_each(|packet| low_water.see(packet, || server.routes.audio_waits_for_video()));
                server.metrics.received_messages_total.inc_by(packets.len() as u64);
                messages += packets.len() as u64;
                bytes += packets.iter().map(|packet| packet.body.len() as u64).sum::<u64>();
                feed.push(packets);
                packets.clear();
            }
            if over || !more {
                return Handed { over, messages, bytes };
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn end(
    connection: &mut Connection<'_>,
    play: &mut Option<Play>,
    Publisher { stream_id, name, session, .. }: &Publisher<'_>,
    reason: &str,
) -> Result<bool, Error> {
    static SENT_AWAY: Seldom = Seldom::events();
    if let Some(held_back) = SENT_AWAY.pass() {
        let (id, peer, reason) = (connection.id, connection.peer, shown(reason));
        tracing::info!(id, %peer, stream = %name, %session, held_back, "publisher sent away: {reason}");
    }
    if play::finish(play).await? {
        connection.session.end_publish(*stream_id, reason);
        connection.close_gracefully().await;
    }
    Ok(false)
}
