//! One viewer: a place in a stream's ring and a socket.
//!
//! ```text
//!             a place to start            caught up
//!   Waiting ───────────────────▶ Behind ─────────────▶ AtLiveEdge
//!      ▲                          │  ▲                     │
//!      └── fell off the ring, or ─┘  └── the pump hands it ┘
//!          resumes after a pause         back: the socket is full,
//!          that a keyframe passed        or the task called
//! ```
//! In the first two states the viewer's task writes, at the live edge the pump does: the head of [`crate::relay`] says how
//! they hand over. A viewer's task calls [`Viewer::turn`] for as long as it plays; at the live edge that costs nothing.

use super::format::Format;
use super::hub::Interest;
use super::ring::{Block, Mark};
use super::seat::{Handover, Member, Seat, Sink};
use super::stream::{End, Stream};
use super::unsent::{PIECES, Unsent};
use crate::rtmp::session::{Receives, publish_notify};
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The most control messages, in bytes, that wait for a viewer that has stopped reading. A peer that sends request after
/// request and does not read the replies is closed.
const REPLIES: usize = 64 << 10;

/// Why a viewer's turn came back.
#[derive(Debug)]
pub enum Turn {
    /// The stream is over; everything of it was written.
    Ended(End),
    /// The viewer stopped reading for longer than [`crate::relay::Settings::stall`], or asked for too much without reading
    /// the replies.
    Stalled,
    /// The socket is gone.
    Gone(io::Error),
    /// The viewer was asked to stop, and its last message is whole.
    Stopped,
}

/// See the module's head.
#[derive(Debug)]
pub struct Viewer {
    interest: Interest,
    sink: Arc<dyn Sink>,
    format: Format,
    /// The format that the peer wants; one with video is taken up at the next keyframe.
    wanted: Format,
    seat: Arc<Seat>,
    /// The pump that serves it at the live edge.
    pump: usize,
    state: State,
    flow: Flow,
    /// The version of the headers that were written last.
    headers: Option<u64>,
    /// The bytes of control messages since everything was last written.
    owed: usize,
}

/// The states in the module's head.
#[derive(Debug)]
enum State {
    /// There is no place to start. `fell`: the viewer fell off the ring at this place.
    Waiting { unsent: Unsent, fell: Option<Mark> },
    /// What is before `at` is written, but for what is unsent.
    Behind { unsent: Unsent, at: Mark },
    /// The pump writes. `replies` wait until it hands the viewer back: only one may write at a time.
    AtLiveEdge { replies: BytesMut },
}

/// Whether media is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Playing,
    /// By the peer.
    Paused,
    /// For good: the message that is being written is the last one.
    Stopping,
}

type Blocks = SmallVec<[Block; PIECES]>;

/// What a viewer that is behind does next.
enum Next {
    /// Write blocks; what is before this place is written then.
    Write(Mark),
    /// Its place is not in the ring any more.
    FellOff,
    /// It is among the pump's members now.
    LiveEdge,
    Ended,
}

impl Interest {
    /// Starts to write to a socket: `prelude` and the start of the stream go out together.
    pub fn watch(self, sink: Arc<dyn Sink>, prelude: Bytes, format: Format) -> Viewer {
        Viewer::new(self, sink, prelude, format)
    }
}

impl Viewer {
    /// A viewer that gets `prelude` (the replies to its `play`) and the start of the stream in its first write.
    fn new(interest: Interest, sink: Arc<dyn Sink>, prelude: Bytes, format: Format) -> Self {
        let pump = interest.stream().enter(format);
        let mut unsent = Unsent::default();
        unsent.push(prelude);
        Viewer {
            seat: Arc::default(),
            interest,
            sink,
            format,
            wanted: format,
            pump,
            state: State::Waiting { unsent, fell: None },
            flow: Flow::Playing,
            headers: None,
            owed: 0,
        }
    }

    fn stream(&self) -> &Arc<Stream> {
        self.interest.stream()
    }

    /// Serves the viewer until something ends it. Safe to drop and call again: all state is kept in the viewer.
    pub async fn turn(&mut self) -> Turn {
        loop {
            if self.owed > REPLIES {
                return self.stalled();
            }
            if self.state.unsent().is_some()
                && let Err(error) = self.sink.try_flush()
            {
                match self.would_block(error).await {
                    Some(turn) => return turn,
                    None => continue,
                }
            }
            let between_messages = self.state.unsent().is_some_and(|unsent| unsent.is_empty());
            let turn = match (&self.state, self.flow) {
                (State::AtLiveEdge { .. }, _) => self.at_live_edge().await,
                (_, Flow::Stopping) if between_messages => return Turn::Stopped,
                (_, Flow::Paused) if between_messages => return self.paused().await,
                (State::Waiting { .. }, _) => self.waiting().await,
                (State::Behind { .. }, _) => self.behind().await,
            };
            if let Some(turn) = turn {
                return turn;
            }
        }
    }

    /// Holds the media back (`true`), or goes on (`false`): at the newest keyframe, or where it was if that is behind.
    pub fn pause(&mut self, paused: bool) {
        match (self.flow, paused) {
            (Flow::Playing, true) => self.flow = Flow::Paused,
            (Flow::Paused, false) => {
                self.flow = Flow::Playing;
                self.skip_to_newest();
            }
            (Flow::Playing, false) | (Flow::Paused, true) | (Flow::Stopping, _) => {}
        }
        self.call();
    }

    /// Holds kinds of media back, or sends them again: audio and its headers at once, video from the next keyframe on. What is
    /// held back was not wanted, and is no loss.
    pub fn receive(&mut self, receives: Receives) {
        self.wanted = self.wanted.receiving(receives);
        self.call();
    }

    /// Sends control messages between two media messages.
    pub fn reply(&mut self, bytes: Bytes) {
        self.owed += bytes.len();
        match &mut self.state {
            State::Waiting { unsent, .. } | State::Behind { unsent, .. } => unsent.push(bytes),
            State::AtLiveEdge { replies } => {
                replies.extend_from_slice(&bytes);
                self.call();
            }
        }
    }

    /// Ends the media after the message that is being written; the turn that follows says [`Turn::Stopped`].
    pub fn stop(&mut self) {
        self.flow = Flow::Stopping;
        self.call();
    }

    /// Asks the pump to hand the viewer back, if it has it and there is something for the task to do.
    fn call(&self) {
        if let State::AtLiveEdge { replies } = &self.state
            && (self.flow != Flow::Playing || !replies.is_empty() || self.wanted != self.format)
        {
            self.stream().call_back(self.pump, self.seat.clone());
        }
    }

    /// After a pause: goes on at the newest place to start, if that is not behind the viewer.
    fn skip_to_newest(&mut self) {
        let State::Behind { unsent, at } = &mut self.state else { return };
        let newest = self.interest.stream().lock().start();
        if newest.is_none_or(|(newest, _)| newest.number > at.number) {
            self.state = State::Waiting { unsent: std::mem::take(unsent), fell: None };
        }
    }

    async fn at_live_edge(&mut self) -> Option<Turn> {
        match self.seat.handed().await {
            Handover::Behind { unsent: rest, at } => {
                let State::AtLiveEdge { replies } = &mut self.state else { return None };
                let mut unsent = Unsent::default();
                unsent.push(rest);
                unsent.push(replies.split().freeze());
                self.state = State::Behind { unsent, at };
                None
            }
            Handover::Gone(error) => Some(Turn::Gone(error)),
            Handover::Ended => Some(Turn::Ended(self.end())),
        }
    }

    async fn waiting(&mut self) -> Option<Turn> {
        let stream = self.stream().clone();
        let changed = stream.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if self.flow == Flow::Playing && self.try_start() {
            return None;
        }
        let State::Waiting { unsent, fell } = &mut self.state else { return None };
        if unsent.is_empty() {
            if let Some(end) = stream.ended() {
                let fell = fell.take();
                self.count_skipped(fell, stream.lock().ring.live_edge());
                return Some(Turn::Ended(end));
            }
            changed.await;
            return None;
        }
        match self.write(&[]) {
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::select! {
                    () = changed => None,
                    turn = self.writable() => turn,
                }
            }
            Err(error) => Some(Turn::Gone(error)),
        }
    }

    async fn behind(&mut self) -> Option<Turn> {
        match self.catch_up() {
            Ok(turn) => turn,
            Err(error) => self.would_block(error).await,
        }
    }

    /// Paused by the peer, with everything sent: waits for the end of the stream, or to be dropped.
    async fn paused(&self) -> Turn {
        loop {
            let changed = self.stream().changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(end) = self.stream().ended() {
                return Turn::Ended(end);
            }
            changed.await;
        }
    }

    /// Waits until a socket that would block takes bytes again.
    async fn writable(&mut self) -> Option<Turn> {
        let now = super::now();
        let since = self.state.unsent_mut().map_or(now, |unsent| *unsent.blocked.get_or_insert(now));
        let until = since + self.stream().settings.stall;
        let sink = self.sink.clone();
        let writable = std::future::poll_fn(|context| sink.poll_writable(context));
        match tokio::time::timeout_at(until.into(), writable).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Turn::Gone(error)),
            Err(_) => Some(self.stalled()),
        }
    }

    /// What an error of the sink means: to wait for it, or the end.
    async fn would_block(&mut self, error: io::Error) -> Option<Turn> {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.writable().await,
            _ => Some(Turn::Gone(error)),
        }
    }

    fn stalled(&self) -> Turn {
        self.stream().metrics.viewer_stalls_total.inc();
        Turn::Stalled
    }

    /// Takes the newest place to start, if there is one.
    fn try_start(&mut self) -> bool {
        let stream = self.stream().clone();
        let State::Waiting { unsent, fell } = &mut self.state else { return false };
        let mut state = stream.lock();
        let Some((at, timestamp)) = state.start() else { return false };
        let version = Some(state.headers.version());
        let first = self.headers.is_none();
        if first {
            unsent.push(self.format.opening(state.has_audio(), state.has_video()));
        }
        let changed = self.wanted != self.format;
        if changed {
            state.leave(self.pump, None);
            self.format = self.wanted;
            self.pump = state.enter(self.format, stream.settings.pump_viewers);
        }
        if fell.is_some_and(|fell| state.ring.broke_since(fell)) {
            // It stands in a block that the viewer does not get.
            unsent.push(self.format.of(&publish_notify()));
        }
        if std::mem::replace(&mut self.headers, version) != version || changed {
            unsent.push(state.headers.formed(timestamp, self.format));
        }
        drop(state);
        let (unsent, fell) = (std::mem::take(unsent), fell.take());
        if first {
            self.interest.has_picture();
        }
        self.count_skipped(fell, at);
        self.state = State::Behind { unsent, at };
        true
    }

    /// Counts what a viewer that fell off the ring does not get.
    fn count_skipped(&self, fell: Option<Mark>, at: Mark) {
        let skipped = fell.map_or(0, |fell| at.index.saturating_sub(fell.index));
        self.stream().metrics.viewer_skipped_messages_total.inc_by(skipped);
    }

    /// Does the next thing on the way to the live edge; the turn if there is no more to do.
    fn catch_up(&mut self) -> io::Result<Option<Turn>> {
        self.take_up_wish();
        let State::Behind { unsent, at } = &self.state else { return Ok(None) };
        let (from, mut blocks) = (*at, Blocks::new());
        match self.next(from, unsent, &mut blocks) {
            Next::Write(next) => {
                let begun = self.write(&blocks)?;
                let left = blocks.get(begun).map(|block| block.mark(from.number + begun as u64));
                if let State::Behind { at, .. } = &mut self.state {
                    *at = left.unwrap_or(next);
                }
            }
            Next::FellOff => {
                self.stream().metrics.viewer_skips_total.inc();
                self.stream().skips.fetch_add(1, Relaxed);
                let unsent = self.state.unsent_mut().map(std::mem::take).unwrap_or_default();
                self.state = State::Waiting { unsent, fell: Some(from) };
            }
            Next::LiveEdge => self.state = State::AtLiveEdge { replies: BytesMut::new() },
            Next::Ended => return Ok(Some(Turn::Ended(self.end()))),
        }
        Ok(None)
    }

    /// Takes up the format that the peer wants as far as its place allows: video goes on where a viewer can start.
    fn take_up_wish(&mut self) {
        if self.wanted == self.format {
            return;
        }
        let stream = self.stream().clone();
        let State::Behind { unsent, at } = &mut self.state else { return };
        let mut state = stream.lock();
        state.ring.seal_start();
        let (has, wants) = (self.format.receives(), self.wanted.receives());
        let video = wants.video && (has.video || state.ring.next_start(at.number) == Some(at.number));
        let format = self.wanted.receiving(Receives { video, ..wants });
        if format == self.format {
            return;
        }
        let new = Receives { audio: wants.audio && !has.audio, video: video && !has.video };
        if new.audio || new.video {
            // What configures a decoder was held back, too.
            let time = state.ring.time(at.number);
            unsent.push(state.headers.formed(time, format.receiving(new)));
        }
        state.leave(self.pump, None);
        self.format = format;
        self.pump = state.enter(format, stream.settings.pump_viewers);
    }

    /// Finds what is next for a viewer at this place, under one lock of the stream.
    fn next(&self, at: Mark, unsent: &Unsent, blocks: &mut Blocks) -> Next {
        let stream = self.stream();
        let mut state = stream.lock();
        let frontier = state.frontier(self.pump);
        let live_edge = state.ring.live_edge();
        if at.number < state.ring.first() {
            return Next::FellOff;
        }
        // Where it is to get another format, it goes there by itself.
        let change = (self.wanted != self.format).then(|| state.ring.next_start(at.number + 1)).flatten();
        if unsent.is_empty() {
            if state.ended.is_some() && at.number >= live_edge.number {
                return Next::Ended;
            }
            if change.is_none() && (at.number == frontier || at.number >= live_edge.number) {
                let member = Member { sink: self.sink.clone(), seat: self.seat.clone() };
                stream.seat(&mut state, self.pump, member, at);
                if self.wanted != self.format {
                    state.at_start.push((self.pump, self.seat.clone()));
                }
                return Next::LiveEdge;
            }
        }
        // A viewer that started beyond the frontier goes on to the live edge.
        let limit = if at.number > frontier { live_edge.number } else { frontier };
        let limit = change.unwrap_or(limit);
        let room = if self.flow == Flow::Playing { unsent.room() } else { 0 };
        let count = usize::try_from(limit.saturating_sub(at.number)).unwrap_or(usize::MAX).min(room);
        blocks.extend(state.ring.since(at.number, self.format).take(count));
        let number = at.number + count as u64;
        Next::Write(Mark { number, index: state.ring.index(number) })
    }

    /// Writes what is unsent and then blocks, and says how many of the blocks were begun.
    fn write(&mut self, blocks: &[Block]) -> io::Result<usize> {
        let Some(unsent) = self.state.unsent_mut() else { return Ok(0) };
        let written = unsent.write(&*self.sink, blocks)?;
        if unsent.is_empty() {
            self.owed = 0;
        }
        self.stream().metrics.sent_bytes_total.inc_by(written.bytes as u64);
        Ok(written.begun)
    }

    fn end(&self) -> End {
        self.stream().ended().unwrap_or(End::Closed)
    }
}

impl State {
    /// Nothing at the live edge, where the task does not write.
    fn unsent(&self) -> Option<&Unsent> {
        match self {
            State::Waiting { unsent, .. } | State::Behind { unsent, .. } => Some(unsent),
            State::AtLiveEdge { .. } => None,
        }
    }

    fn unsent_mut(&mut self) -> Option<&mut Unsent> {
        match self {
            State::Waiting { unsent, .. } | State::Behind { unsent, .. } => Some(unsent),
            State::AtLiveEdge { .. } => None,
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let seat = matches!(self.state, State::AtLiveEdge { .. }).then(|| self.seat.clone());
        self.stream().leave(self.pump, seat);
    }
}
