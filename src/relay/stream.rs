//! One stream: its ring, its clock, its headers, and the pumps that serve its viewers.

use super::figures::Figures;
use super::format::Format;
use super::headers::{Headers, Seen};
use super::ring::{Mark, Ring};
use super::seat::{Member, Seat};
use super::settings::Settings;
use super::timeline::Timeline;
use crate::api::report::Happening;
use crate::budget::{Charge, Holder};
use crate::ids::{SessionTag, StreamName};
use crate::journal::Note;
use crate::media::Packet;
use crate::telemetry::{Counted, Loss, Metrics};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// A ring is charged in steps of this many bytes.
const RING_STEP: usize = 256 << 10;

/// Why a stream ended for its viewers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its publisher is gone and did not return within [`Settings::grace`].
    Unpublished,
    /// No node has it, or it sent nothing; the reason is a text for the viewer.
    Refused(String),
    /// It is not known whether a node has it.
    Unknown,
    /// The node stops, or the watch point was removed.
    Closed,
}

/// The clock and the order of one relay stream, for as long as it lives: two pulls that play the same one get the same
/// messages at the same times, so the second may go on where the first broke off. Random; a pull learns it when its play is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelayId(pub u64);

/// See the module's head. Sources push into it through [`crate::relay::hub::Source`].
#[derive(Debug)]
pub struct Stream {
    name: StreamName,
    id: RelayId,
    pub(super) settings: Arc<Settings>,
    pub(super) metrics: Arc<Metrics>,
    /// The owner of the pumps.
    pub(super) tasks: TaskTracker,
    state: Mutex<State>,
    /// Somebody brings it, a place to start appeared, or it ended.
    pub(super) changed: Notify,
    /// Times that a viewer fell behind and jumped to a newer keyframe.
    pub(super) skips: AtomicU64,
    _counted: Counted,
}

/// How a stream is doing right now.
#[derive(Clone, Debug)]
pub struct Doing {
    /// What came in.
    pub figures: Figures,
    /// The publish that it shows, if that is known.
    pub session: Option<SessionTag>,
    /// A source is attached.
    pub live: bool,
    /// Times that a viewer fell behind and jumped to a newer keyframe.
    pub skips: u64,
}

/// What the stream's lock guards. The lock is never held across an await or a write to a socket.
#[derive(Debug)]
pub(super) struct State {
    pub ring: Ring,
    pub headers: Headers,
    timeline: Timeline,
    figures: Figures,
    /// When the last media came.
    heard: Option<Instant>,
    /// Another source took over, and viewers have seen nothing of it yet: when the last media of the one before came.
    switching: Option<Instant>,
    /// The number of the source that may push.
    source: Option<u64>,
    /// The publish that the newest source brings, if that is known.
    session: Option<SessionTag>,
    /// The relay stream of another server that the newest source plays, if it is a pull that knows it.
    upstream: Option<RelayId>,
    /// For the ring and the headers, on whoever brings them.
    charge: Option<Charge>,
    holder: Option<Holder>,
    /// Frees what is kept for the grace time, if memory is short.
    forgetting: Option<AbortOnDropHandle<()>>,
    /// Another source began, and frames that need a keyframe are of no use until there is one.
    wants_keyframe: bool,
    pub ended: Option<End>,
    pub pumps: Vec<Pump>,
    /// Viewers at the live edge that are to be handed back when a viewer may start again, by their pumps.
    pub at_start: Vec<(usize, Arc<Seat>)>,
}

/// What a stream knows of one of its pumps; the head of [`crate::relay`] says who reads and writes what.
#[derive(Debug)]
pub(super) struct Pump {
    /// What its viewers get.
    pub format: Format,
    /// All blocks before this place were written to the pump's members, or left to viewers that are behind.
    pub frontier: Mark,
    /// Viewers that reached the live edge since the pump last looked, and where they stand: at the frontier, or beyond it
    /// when they started at a block that the pump has not written yet.
    pub inbox: Vec<(Member, Mark)>,
    /// Members that left, or whose tasks want to be handed back.
    pub called: Vec<Arc<Seat>>,
    /// All viewers of this pump, at the live edge or not.
    pub viewers: usize,
    /// The pump looks by itself at this time.
    pub armed: Option<Instant>,
    pub running: bool,
    pub wake: Arc<Notify>,
}

impl Stream {
    pub(super) fn new(
        name: StreamName,
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Stream {
            state: Mutex::new(State {
                ring: Ring::new(&settings),
                headers: Headers::default(),
                timeline: Timeline::default(),
                figures: Figures::default(),
                heard: None,
                switching: None,
                source: None,
                session: None,
                upstream: None,
                charge: None,
                holder: None,
                forgetting: None,
                wants_keyframe: false,
                ended: None,
                pumps: Vec::new(),
                at_start: Vec::new(),
            }),
            skips: AtomicU64::new(0),
            _counted: Counted::new(&metrics.streams),
            name,
            id: RelayId(rand::random()),
            settings,
            metrics,
            tasks,
            changed: Notify::new(),
        })
    }

    /// The stream's name.
    pub fn name(&self) -> &StreamName {
        &self.name
    }

    /// What a pull of this stream is told, see [`RelayId`].
    pub fn id(&self) -> RelayId {
        self.id
    }

    /// The publish that it shows, or showed last; for logs.
    pub fn session(&self) -> Option<SessionTag> {
        self.lock().session
    }

    /// How it is doing.
    pub fn doing(&self) -> Doing {
        let state = self.lock();
        let (figures, session, live) = (state.figures.clone(), state.session, state.source.is_some());
        drop(state);
        Doing { figures, session, live, skips: self.skips.load(Relaxed) }
    }

    pub(super) fn set_session(&self, source: u64, session: Option<SessionTag>) {
        let mut state = self.lock();
        if state.source == Some(source) {
            state.session = session;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether a source is attached right now.
    pub fn is_live(&self) -> bool {
        self.lock().is_live()
    }

    /// The bytes in its ring.
    pub fn ring_bytes(&self) -> usize {
        self.lock().ring.bytes()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held left at worst an unsealed block; serving on is right.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn attach(&self, source: u64, upstream: Option<RelayId>) {
        let mut state = self.lock();
        state.source = Some(source);
        state.forgetting = None;
        state.figures.source_changed();
        state.switching = state.switching.or(state.heard);
        let before = std::mem::replace(&mut state.upstream, upstream);
        state.timeline.source_changed(upstream.is_some() && upstream == before);
        state.headers.source_changed();
    }

    /// What the source that may push now brings is another session than what came before, although it is the same pull.
    pub(super) fn follows_break(&self, source: u64) {
        let mut state = self.lock();
        if state.source == Some(source) {
            state.timeline.source_changed(false);
        }
    }

    /// Charges the ring to whoever brings the source that may push now.
    pub(super) fn charge(&self, source: u64, holder: &Holder) {
        let mut state = self.lock();
        if state.source == Some(source) {
            let mut charge = holder.charge();
            charge.set(state.held());
            state.charge = Some(charge);
            state.holder = Some(holder.clone());
        }
    }

    /// Ends a source; `false` if another one had taken its place before.
    pub(super) fn detach(self: &Arc<Self>, source: u64) -> bool {
        let mut state = self.lock();
        if state.source != Some(source) {
            return false;
        }
        state.source = None;
        state.ring.seal();
        let holder = state.holder.take();
        if state.charge.as_ref().is_some_and(Charge::is_evicted) {
            state.forget();
        } else if let Some(holder) = holder {
            state.forgetting = self.forget_on_eviction(holder);
        }
        drop(state);
        self.wake_pumps();
        true
    }

    /// Whoever brought what is kept for the grace time is gone, and cannot be told that it has to be freed.
    /// Nothing: the process ends.
    fn forget_on_eviction(self: &Arc<Self>, holder: Holder) -> Option<AbortOnDropHandle<()>> {
        let stream = Arc::downgrade(self);
        let forgetting = tokio::runtime::Handle::try_current().ok()?.spawn(async move {
            holder.evicted().await;
            if let Some(stream) = stream.upgrade() {
                let mut state = stream.lock();
                if state.source.is_none() {
                    state.forget();
                }
            }
        });
        Some(AbortOnDropHandle::new(forgetting))
    }

    /// Takes what a source brings, unless another source has taken its place or the stream has ended.
    pub(super) fn push(&self, source: u64, packets: &[Packet], now: Instant) {
        let mut state = self.lock();
        if state.source != Some(source) || state.ended.is_some() {
            drop(state);
            self.metrics.lost(Loss::Superseded, packets.len() as u64);
            return;
        }
        let (could_start, end) = (state.can_start(), state.ring.end());
        let mut gap = None;
        for packet in packets {
            gap = state.end_of_gap(packet, now).or(gap);
            state.figures.see(packet);
            if packet.clears_metadata() && !self.settings.for_nodes {
                // Nodes that pull keep metadata of their own; a viewer keeps what it was told.
                state.headers.see(packet);
                continue;
            }
            if let Some(loss) = state.push(packet, now) {
                self.metrics.lost(loss, 1);
            }
        }
        let sealed = state.ring.end() != end;
        let held = state.held();
        state.charge.iter_mut().for_each(|charge| charge.set(held));
        for pump in state.pumps.iter().filter(|pump| pump.running) {
            if sealed || state.ring.is_urgent(now, pump.armed) {
                pump.wake.notify_one();
            }
        }
        state.heard = Some(now);
        let (can_start, session) = (state.can_start(), state.session);
        let watched = state.pumps.iter().any(|pump| pump.viewers > 0);
        drop(state);
        if let Some(gap) = gap.filter(|_| watched && !self.settings.for_nodes) {
            self.metrics.switch_gap.observe(gap.as_secs_f64());
            self.metrics.journal.note(&self.name, Note::of(Happening::Switched).session(session).after(gap));
        }
        if can_start && !could_start {
            self.changed.notify_waiters();
        }
    }

    pub(super) fn end(&self, end: End) {
        let mut state = self.lock();
        state.ring.seal();
        state.ended.get_or_insert(end);
        state.forgetting = None;
        drop(state);
        self.wake_pumps();
        self.changed.notify_waiters();
    }

    /// Why it ended, once it has.
    pub(super) fn ended(&self) -> Option<End> {
        self.lock().ended.clone()
    }

    /// Whether nothing was ever relayed.
    pub(super) fn is_untouched(&self) -> bool {
        let state = self.lock();
        state.source.is_none() && state.ring.end() == 0
    }

    fn wake_pumps(&self) {
        for pump in &self.lock().pumps {
            pump.wake.notify_one();
        }
    }
}

impl State {
    /// The bytes it is charged for: in larger steps, as they change with each block.
    fn held(&self) -> usize {
        (self.ring.held() + self.headers.held()).next_multiple_of(RING_STEP)
    }

    /// Frees memory now, and not when the grace time is over.
    fn forget(&mut self) {
        self.ring.clear();
        self.headers.clear();
        self.charge = None;
    }

    /// How long viewers saw nothing new, if this is the first that they see of another source.
    fn end_of_gap(&mut self, packet: &Packet, now: Instant) -> Option<Duration> {
        self.switching?;
        let shows = match self.headers.has_video() {
            true => packet.kind.is_keyframe() || packet.kind.is_video_frame() && !self.wants_keyframe,
            false => packet.kind.is_audio_frame() || packet.kind.is_video_frame(),
        };
        // Until the first packet it is not known whether the source goes on where the one before broke off.
        if !shows || self.timeline.is_fresh() && !packet.kind.is_keyframe() {
            return None;
        }
        self.switching.take().map(|since| now.saturating_duration_since(since))
    }

    /// Says what was lost, if anything.
    fn push(&mut self, packet: &Packet, now: Instant) -> Option<Loss> {
        // What a pull repeats of what viewers have had is no loss.
        let timestamp = self.timeline.map(packet)?;
        if self.timeline.take_break() {
            self.break_off(timestamp, now);
        }
        if self.wants_keyframe && packet.kind.is_video_frame() {
            if !packet.kind.is_keyframe() {
                return Some(Loss::NoKeyframe);
            }
            self.wants_keyframe = false;
        }
        let seen = self.headers.see(packet);
        if matches!(seen, Seen::Changed | Seen::Refused) && Headers::configures_video(packet) {
            self.ring.forget_start();
            self.ring.expect_video(timestamp, now);
        }
        self.ring.push(packet, timestamp, now);
        if packet.kind.is_keyframe() && !self.at_start.is_empty() {
            self.call_back_at_start();
        }
        (seen == Seen::Refused).then_some(Loss::Headers)
    }

    /// What comes from now on is another session. Nodes that pull the stream are told so, and viewers with them: a pull goes on across the
    /// break, and would take the headers of the session before for those of this one.
    fn break_off(&mut self, timestamp: u32, now: Instant) {
        self.wants_keyframe = true;
        self.ring.source_changed();
        self.headers.forget_older();
        self.ring.announce_break(timestamp, now);
        // Of a source that might have resumed, they came before it was known that it does not.
        self.headers.packets().for_each(|header| self.ring.push(header, timestamp, now));
        if self.headers.has_video() {
            self.ring.expect_video(timestamp, now);
        }
    }

    /// Hands back the viewers that wait for a place to start.
    fn call_back_at_start(&mut self) {
        for (pump, seat) in std::mem::take(&mut self.at_start) {
            if let Some(pump) = self.pumps.get_mut(pump) {
                pump.called.push(seat);
                pump.wake.notify_one();
            }
        }
    }

    /// Whether somebody brings it right now.
    pub fn is_live(&self) -> bool {
        self.source.is_some()
    }

    /// Whether there is, or most likely will be, audio.
    pub fn has_audio(&self) -> bool {
        self.headers.has_audio() || self.ring.has_audio()
    }

    /// Whether there is, or most likely will be, video.
    pub fn has_video(&self) -> bool {
        self.headers.has_video() || self.ring.has_video()
    }

    /// How far a viewer of this pump writes by itself; what is beyond, the pump writes. While it does not run that is
    /// everything.
    pub fn frontier(&mut self, index: usize) -> u64 {
        let end = self.ring.end();
        match self.pumps.get_mut(index) {
            Some(pump) if pump.running => pump.frontier.number,
            Some(pump) => {
                self.ring.seal();
                pump.frontier = self.ring.live_edge();
                pump.frontier.number
            }
            None => end,
        }
    }

    /// Where a viewer may start now. A source that is gone, or has not shown yet whether it continues the one before,
    /// leaves only the past, which is no place to start.
    pub fn start(&mut self) -> Option<(Mark, u32)> {
        if self.can_start() { self.ring.start() } else { None }
    }

    /// Whether [`State::start`] has an answer.
    pub fn can_start(&self) -> bool {
        self.source.is_some() && !self.timeline.is_fresh() && self.ring.can_start()
    }
}
