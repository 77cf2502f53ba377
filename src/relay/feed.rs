//! Media on its way into this node: one publish, or one attempt of a pull of one.
//!
//! ```text
//! connection or pull ──push──▶ Feed ──▶ outlets: a relay stream, a push, a transcode
//!                                ▲
//!                engine's steps ─┘ attach outlets, by the feed's id
//! ```
//! Whoever brings media makes a [`Feed`] and pushes into it in its own task; nothing stands between that task and the
//! outlets. A step that is told of a stream attaches what it wants the media to go to. Feeds share nothing with each
//! other. While a feed has no outlet it keeps its headers and the newest group of pictures, both bounded, so that a
//! workflow that takes a moment to start loses nothing.
//!
//! A feed is one publish. Where a pull goes on while the publisher behind it is another one, its feed ends and the next one begins, so
//! that every outlet does what it does for two publishes.
//!
//! A feed knows neither its stream's name nor the workflows: what is routed where is the engine's business.

use super::headers::{Headers, Seen};
use super::stream::RelayId;
use crate::budget::{Budget, Charge, Holder};
use crate::ids::SessionId;
use crate::media::Packet;
use crate::telemetry::{Loss, Metrics};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// The most bytes of media that a feed without an outlet keeps: ten seconds of 12 Mb/s. Workflows start in milliseconds;
/// a group of pictures that is longer than this is given up, and the next keyframe is waited for.
const START_BYTES: usize = 16 << 20;

/// The most messages that a feed without an outlet keeps, of a stream without video: about a second of audio.
const START_SOUND: usize = 50;

/// How long a pull waits for its first outlet: workflows take a millisecond, on a busy machine some ten.
const WAIT: Duration = Duration::from_millis(250);

/// Names a feed, as the id of the engine's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeedId(u64);

impl fmt::Display for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for FeedId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(FeedId)
    }
}

/// What takes a feed's media. It must not block, and bounds what it keeps by itself.
pub trait Outlet: Send + fmt::Debug {
    /// Takes what came together, in order. The first call after it was attached brings the headers and the start.
    fn push(&mut self, packets: &[Packet]);
}

/// What is said of a pull, which brings one feed after another until it is dropped.
#[derive(Debug)]
pub enum PullEvent {
    /// An attempt brings the stream: media came, or an lb node said that it plays it. Where it brought a feed before, that one has ended,
    /// and the attempt goes on: the stream is published anew.
    Began(FeedRef),
    /// The attempt ended, with or without media. Another one follows by itself.
    Ended {
        /// Why, for people.
        reason: String,
        /// When, unless the pull is told that the stream is there again.
        retry_in: Duration,
    },
}

/// All feeds of a process, to be found by their ids.
#[derive(Debug)]
pub struct Feeds {
    table: Mutex<HashMap<FeedId, Weak<Shared>>>,
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
}

/// The end of a feed that media is pushed into. Dropping it ends the feed.
#[derive(Debug)]
pub struct Feed {
    shared: Arc<Shared>,
}

/// The reading side of a feed: outlets attach to it. Whoever announces a stream holds one for as long as it does, so
/// that an outlet that comes after a short publish still gets what is kept of it.
#[derive(Clone, Debug)]
pub struct FeedRef(Arc<Shared>);

/// An outlet on a feed. Dropping it takes the outlet away.
#[derive(Debug)]
pub struct Attachment {
    shared: Arc<Shared>,
    number: u64,
}

#[derive(Debug)]
struct Shared {
    id: FeedId,
    upstream: Option<RelayId>,
    follows_break: bool,
    session: Option<SessionId>,
    holder: Holder,
    feeds: Arc<Feeds>,
    state: Mutex<State>,
    /// An outlet was attached.
    attached: Notify,
}

#[derive(Debug)]
struct State {
    headers: Headers,
    start: Start,
    /// For the headers and the start.
    charge: Charge,
    outlets: Vec<(u64, Box<dyn Outlet>)>,
    next: u64,
    ended: bool,
}

impl State {
    fn of(holder: &Holder) -> Self {
        State {
            headers: Headers::default(),
            start: Start::default(),
            charge: holder.charge(),
            outlets: Vec::new(),
            next: 0,
            ended: false,
        }
    }
}

impl Feeds {
    /// No feeds, and no limit on what they hold together.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Feeds::within(Budget::new(usize::MAX), metrics)
    }

    /// No feeds. What they and their outlets will hold is charged to a budget.
    pub fn within(budget: Arc<Budget>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Feeds { table: Mutex::default(), metrics, budget })
    }

    /// What they are charged to.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// A feed begins, of a holder of its own. `upstream`: it is a pull that plays this relay stream.
    pub fn begin(self: &Arc<Self>, upstream: Option<RelayId>) -> Feed {
        self.begin_for(upstream, None, self.budget.holder())
    }

    /// A feed begins. What it and its outlets hold is charged to `holder`, who has to end it when it is evicted. `session`: the
    /// publish that it is.
    pub fn begin_for(
        self: &Arc<Self>,
        upstream: Option<RelayId>,
        session: Option<SessionId>,
        holder: Holder,
    ) -> Feed {
        self.add(upstream, false, session, holder)
    }

    fn add(
        self: &Arc<Self>,
        upstream: Option<RelayId>,
        follows_break: bool,
        session: Option<SessionId>,
        holder: Holder,
    ) -> Feed {
        let id = FeedId(rand::random());
        let (feeds, attached) = (self.clone(), Notify::new());
        let state = Mutex::new(State::of(&holder));
        let shared =
            Arc::new(Shared { id, upstream, follows_break, session, holder, feeds, state, attached });
        self.table().insert(id, Arc::downgrade(&shared));
        Feed { shared }
    }

    /// A feed by its id; nothing once it has ended and nobody announces it any more.
    pub fn get(&self, id: FeedId) -> Option<FeedRef> {
        self.table().get(&id)?.upgrade().map(FeedRef)
    }

    fn table(&self) -> MutexGuard<'_, HashMap<FeedId, Weak<Shared>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_lost(&self, messages: usize) {
        self.metrics.lost(Loss::NoOutlet, messages as u64);
    }
}

impl Feed {
    /// The side that outlets attach to.
    pub fn reference(&self) -> FeedRef {
        FeedRef(self.shared.clone())
    }

    /// Ends it, and begins another one for the session that follows in the same pull: to whoever takes the media, one publish is over and
    /// another begins, as where they are published.
    pub fn break_off(self) -> Feed {
        let Shared { feeds, upstream, holder, .. } = &*self.shared;
        let next = feeds.add(*upstream, true, None, holder.clone());
        drop(self);
        next
    }

    /// Waits until there is an outlet, for a moment at most. A pull's first messages are a whole group of pictures and what
    /// follows it; a pull that announces its feed and then waits here does not lose the start of it to the bound of what is kept.
    pub async fn wait_attached(&self) {
        let attached = async {
            loop {
                let attached = self.shared.attached.notified();
                if !self.shared.state().outlets.is_empty() {
                    return;
                }
                attached.await;
            }
        };
        // Nobody takes the stream: it goes on, and what is lost is counted.
        drop(tokio::time::timeout(WAIT, attached).await);
    }

    /// Hands packets to all outlets, in the caller's task.
    pub fn push(&mut self, packets: &[Packet]) {
        let mut lost = 0;
        {
            let mut state = self.shared.state();
            let State { headers, start, charge, outlets, .. } = &mut *state;
            for packet in packets {
                match headers.see(packet) {
                    Seen::Frame if outlets.is_empty() => lost += start.push(packet),
                    // Frames from before cannot be decoded with it.
                    Seen::Changed if Headers::configures_video(packet) => lost += start.clear(),
                    // A header that found no room is counted by the outlets.
                    Seen::Frame | Seen::Same | Seen::Changed | Seen::Cleared | Seen::Refused => {}
                }
            }
            charge.set(start.bytes + headers.held());
            outlets.iter_mut().for_each(|(_, outlet)| outlet.push(packets));
        }
        self.shared.feeds.count_lost(lost);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let outlets = {
            let mut state = self.shared.state();
            state.ended = true;
            std::mem::take(&mut state.outlets)
        };
        // An outlet takes locks of its own when it ends.
        drop(outlets);
    }
}

impl FeedRef {
    /// Its name.
    pub fn id(&self) -> FeedId {
        self.0.id
    }

    /// The relay stream of another server that it plays, if it is a pull that knows it.
    pub fn upstream(&self) -> Option<RelayId> {
        self.0.upstream
    }

    /// What it brings is another session than what the feed before it of the same pull brought: it does not go on there.
    pub fn follows_break(&self) -> bool {
        self.0.follows_break
    }

    /// The publish that it is, if it is one on this node.
    pub fn session(&self) -> Option<SessionId> {
        self.0.session
    }

    /// Who is charged for what the feed and its outlets hold.
    pub fn holder(&self) -> &Holder {
        &self.0.holder
    }

    /// Sends the feed's media to one outlet more: what is kept at once, then all that comes.
    pub fn attach(&self, mut outlet: Box<dyn Outlet>) -> Attachment {
        let mut state = self.0.state();
        let number = state.next;
        state.next += 1;
        let mut kept: Vec<Packet> = state.headers.packets().cloned().collect();
        kept.append(&mut state.start.take());
        let headers = state.headers.held();
        state.charge.set(headers);
        if !kept.is_empty() {
            outlet.push(&kept);
        }
        if !state.ended {
            state.outlets.push((number, outlet));
        }
        drop(state);
        self.0.attached.notify_one();
        Attachment { shared: self.0.clone(), number }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let outlet = {
            let mut state = self.shared.state();
            let at = state.outlets.iter().position(|(number, _)| *number == self.number);
            at.map(|at| state.outlets.remove(at))
        };
        drop(outlet);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.feeds.table().remove(&self.id);
        let lost = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).start.clear();
        self.feeds.count_lost(lost);
    }
}

/// What is kept while there is no outlet: from the newest keyframe on, or the newest audio of a stream without video.
#[derive(Debug, Default)]
struct Start {
    packets: Vec<Packet>,
    bytes: usize,
    /// A frame of video was seen, so audio alone is no start.
    video: bool,
}

impl Start {
    /// Keeps a frame, and says how many were given up.
    fn push(&mut self, packet: &Packet) -> usize {
        let mut lost = 0;
        let begins = packet.kind.is_keyframe()
            // Where a stream has several video tracks, their keyframes of one moment belong together.
            && self.packets.first().is_none_or(|first| first.timestamp != packet.timestamp);
        if begins || !self.video && self.packets.len() >= START_SOUND {
            lost += self.clear();
        }
        self.video |= packet.kind.is_video_frame();
        // With what a packet takes beyond its body, which is most of the smallest ones.
        let held = packet.body.len() + 2 * size_of::<Packet>();
        if self.bytes + held > START_BYTES {
            lost += self.clear();
        }
        if self.video && self.packets.is_empty() && !packet.kind.is_keyframe() {
            return lost + 1;
        }
        self.bytes += held;
        self.packets.push(packet.clone());
        lost
    }

    fn clear(&mut self) -> usize {
        self.take().len()
    }

    fn take(&mut self) -> Vec<Packet> {
        self.bytes = 0;
        std::mem::take(&mut self.packets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[derive(Clone, Debug, Default)]
    struct Collected(Arc<Mutex<Vec<Packet>>>);

    impl Outlet for Collected {
        fn push(&mut self, packets: &[Packet]) {
            self.0.lock().unwrap().extend_from_slice(packets);
        }
    }

    impl Collected {
        fn got(&self) -> Vec<Packet> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    fn feeds() -> (Arc<Feeds>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        (Feeds::new(metrics.clone()), metrics)
    }
    fn lost(metrics: &Metrics) -> u64 {
        metrics.lost_total(Loss::NoOutlet)
    }
    fn video(head: u8, kind: u8, time: u32, size: usize) -> Packet {
        Packet::video(time, Bytes::from([&[head, kind, 0, 0, 0][..], &vec![7; size]].concat()))
    }
    fn key(time: u32) -> Packet {
        video(0x17, 1, time, 9)
    }
    fn frame(time: u32) -> Packet {
        video(0x27, 1, time, 9)
    }
    fn header() -> Packet {
        video(0x17, 0, 0, 3)
    }
    fn audio(time: u32) -> Packet {
        Packet::audio(time, Bytes::from_static(&[0xaf, 1, 5]))
    }

    #[test]
    fn the_first_outlet_gets_the_headers_and_the_newest_group_and_then_all() {
        let (feeds, metrics) = feeds();
        let mut feed = feeds.begin(None);
        feed.push(&[header(), audio(0), frame(0), key(40), frame(80), key(120), audio(130), frame(160)]);
        let (one, two) = (Collected::default(), Collected::default());
        let id = feed.reference().id().to_string().parse().unwrap();
        let attached = feeds.get(id).unwrap().attach(Box::new(one.clone()));
        assert_eq!(one.got(), [header(), key(120), audio(130), frame(160)]);
        assert_eq!(lost(&metrics), 4, "what nobody took is counted");
        feed.push(&[frame(200)]);
        let _late = feed.reference().attach(Box::new(two.clone()));
        feed.push(&[key(240)]);
        assert_eq!((one.got(), two.got()), (vec![frame(200), key(240)], vec![header(), key(240)]));
        drop(attached);
        feed.push(&[frame(280)]);
        assert_eq!((one.got(), two.got()), (vec![], vec![frame(280)]));
        drop(feed);
        assert_eq!(Arc::strong_count(&two.0), 1, "the outlet went with its feed");
        assert_eq!(lost(&metrics), 4);
    }

    #[test]
    fn another_session_of_the_same_pull_is_another_feed_with_nothing_of_the_one_before() {
        let (feeds, metrics) = feeds();
        let mut feed = feeds.begin(Some(RelayId(3)));
        let (one, two) = (Collected::default(), Collected::default());
        let before = feed.reference();
        let _one = before.attach(Box::new(one.clone()));
        feed.push(&[header(), audio(0), key(0)]);
        let mut feed = feed.break_off();
        assert_eq!(Arc::strong_count(&one.0), 1, "for its outlets the feed before has ended");
        let after = feed.reference();
        assert_eq!((before.follows_break(), after.follows_break()), (false, true));
        assert_eq!(after.upstream(), Some(RelayId(3)));
        feed.push(&[key(40)]);
        let _two = after.attach(Box::new(two.clone()));
        feed.push(&[frame(80)]);
        assert_eq!((one.got(), two.got()), (vec![header(), audio(0), key(0)], vec![key(40), frame(80)]));
        assert_eq!(lost(&metrics), 0);
    }

    #[test]
    fn a_feed_that_ended_is_found_while_it_is_announced_and_gives_what_it_kept() {
        let (feeds, _) = feeds();
        let mut feed = feeds.begin(Some(RelayId(3)));
        feed.push(&[header(), key(0)]);
        let announced = feed.reference();
        drop(feed);
        let collected = Collected::default();
        let found = feeds.get(announced.id()).unwrap();
        assert_eq!(found.upstream(), Some(RelayId(3)));
        let _attached = found.attach(Box::new(collected.clone()));
        assert_eq!(collected.got(), [header(), key(0)]);
        assert_eq!(Arc::strong_count(&collected.0), 1, "nothing more will come");
        let id = announced.id();
        drop((announced, found, _attached));
        assert!(feeds.get(id).is_none() && feeds.table().is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (feeds, metrics) = feeds();
        let mut feed = feeds.begin(None);
        let large = START_BYTES / 4;
        feed.push(&[
            key(0),
            video(0x27, 1, 40, large),
            video(0x27, 1, 80, large),
            video(0x27, 1, 120, large),
        ]);
        assert_eq!(lost(&metrics), 0);
        feed.push(&[video(0x27, 1, 160, large), frame(200)]);
        assert_eq!(lost(&metrics), 6, "a group that is too long is given up to its end");
        feed.push(&[key(240)]);
        let collected = Collected::default();
        let _attached = feed.reference().attach(Box::new(collected.clone()));
        assert_eq!(collected.got(), [key(240)]);

        let mut tiny = feeds.begin(None);
        tiny.push(&[key(0)]);
        (0..400_000).for_each(|_| tiny.push(&[video(0x27, 1, 40, 0)]));
        let _attached = tiny.reference().attach(Box::new(collected.clone()));
        let kept = collected.got().len() * size_of::<Packet>();
        assert!(kept <= START_BYTES, "{kept} bytes of the smallest frames");

        let mut sound = feeds.begin(None);
        (0..10_000).for_each(|n| sound.push(&[audio(n * 20)]));
        let _attached = sound.reference().attach(Box::new(collected.clone()));
        let kept = collected.got();
        assert!((1..=START_SOUND).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept.last(), Some(&audio(9_999 * 20)));
    }

    #[test]
    fn a_new_configuration_ends_the_group_before_it() {
        let (feeds, _) = feeds();
        let mut feed = feeds.begin(None);
        let other = video(0x17, 0, 0, 8);
        feed.push(&[header(), key(0), other.clone(), frame(40), key(80)]);
        let collected = Collected::default();
        let _attached = feed.reference().attach(Box::new(collected.clone()));
        assert_eq!(collected.got(), [other, key(80)]);
    }
}
