//! One viewer: a place in a stream's ring and a socket.
//!
//! ```text
//! Waiting ──a keyframe──▶ Behind ──caught up──▶ AtHead (the pump writes)
//!    ▲                      │  ▲                   │
//!    └──fell off the ring───┘  └──socket is full───┘
//! ```
//! A viewer's task calls [`Viewer::turn`] for as long as it plays. It costs nothing while the pump serves.

use super::hub::Interest;
use super::pump::{Handover, Member, Seat};
use super::ring::{Block, Mark};
use super::stream::{End, Stream};
use bytes::Bytes;
use smallvec::SmallVec;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// The most pieces that one write hands to the kernel, and so the most blocks a slow viewer holds at a time.
const PIECES: usize = 64;

/// The most control messages, in bytes, that wait for a viewer which takes nothing. A peer that asks and asks, and does
/// not read its answers, is closed.
const REPLIES: usize = 64 << 10;

/// Something that takes bytes now or would block: a socket.
pub trait Sink: Send + Sync + Debug {
    /// Writes what it can take at once. [`io::ErrorKind::WouldBlock`]: nothing.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// The same for several pieces.
    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Ready when a write may succeed again. Only the viewer's own task asks.
    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Why a viewer's turn came back.
#[derive(Debug)]
pub enum Turn {
    /// The stream is over; everything of it was written.
    Ended(End),
    /// The viewer took nothing for too long, or asked for too much that it did not take.
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
    seat: Arc<Seat>,
    pump: usize,
    place: Place,
    /// Written before anything else: replies and headers, or what the socket did not take of a block.
    rest: SmallVec<[Bytes; 2]>,
    /// The viewer fell off the ring, and had so many messages of the stream.
    fell: Option<u64>,
    /// The version of the headers that were written last.
    headers: Option<u64>,
    /// The socket takes nothing, and since when.
    blocked: Option<Instant>,
    paused: bool,
    stopping: bool,
    /// Control messages that wait for the pump to hand the viewer back: only one may write at a time.
    replies: Option<Bytes>,
    /// The bytes of control messages since everything was last written.
    owed: usize,
}

#[derive(Debug)]
enum Place {
    /// There is no place to start.
    Waiting,
    /// What is before this is written.
    Behind(Mark),
    AtHead,
}

impl Viewer {
    /// A viewer that gets `prelude` (the replies to its `play`) and the start of the stream in its first write.
    pub(super) fn new(interest: Interest, sink: Arc<dyn Sink>, prelude: Bytes) -> Self {
        let pump = interest.stream().enter();
        let mut viewer = Viewer {
            seat: Arc::default(),
            interest,
            sink,
            pump,
            place: Place::Waiting,
            rest: SmallVec::new(),
            fell: None,
            headers: None,
            blocked: None,
            paused: false,
            stopping: false,
            replies: None,
            owed: 0,
        };
        viewer.push_rest(prelude);
        viewer
    }

    fn stream(&self) -> &Arc<Stream> {
        self.interest.stream()
    }

    /// Serves the viewer until something ends it. Safe to drop and call again: the place is kept in the viewer.
    pub async fn turn(&mut self) -> Turn {
        loop {
            if self.owed > REPLIES {
                self.stream().metrics.viewer_stalls_total.inc();
                return Turn::Stalled;
            }
            if self.rest.is_empty() && !matches!(self.place, Place::AtHead) {
                if self.stopping {
                    return Turn::Stopped;
                }
                if self.paused {
                    return self.pausing().await;
                }
            }
            let turn = match self.place {
                Place::AtHead => self.at_head().await,
                Place::Waiting => self.waiting().await,
                Place::Behind(_) => self.behind().await,
            };
            if let Some(turn) = turn {
                return turn;
            }
        }
    }

    /// Holds the media back (`true`), or goes on (`false`): at the newest keyframe, or where it was if that is behind.
    pub fn pause(&mut self, paused: bool) {
        if let (true, false, Place::Behind(at)) = (self.paused, paused, &self.place) {
            let start = self.stream().lock().start();
            if start.is_none_or(|(newest, _)| newest.number > at.number) {
                self.place = Place::Waiting;
                self.fell = None;
            }
        }
        self.paused = paused;
        self.recall();
    }

    /// Sends control messages between two media messages.
    pub fn reply(&mut self, bytes: Bytes) {
        self.owed += bytes.len();
        if matches!(self.place, Place::AtHead) {
            let mut all = bytes::BytesMut::from(self.replies.take().unwrap_or_default());
            all.extend_from_slice(&bytes);
            self.replies = Some(all.freeze());
            self.recall();
        } else {
            self.push_rest(bytes);
        }
    }

    /// Ends the media after the message that is being written; the turn that follows says [`Turn::Stopped`].
    pub fn stop(&mut self) {
        self.stopping = true;
        self.recall();
    }

    /// Asks for the turn to write if the pump has it.
    fn recall(&self) {
        if matches!(self.place, Place::AtHead) && (self.is_held() || self.replies.is_some()) {
            self.stream().recall(self.pump, self.seat.clone());
        }
    }

    /// No more media for now.
    fn is_held(&self) -> bool {
        self.paused || self.stopping
    }

    async fn pausing(&self) -> Turn {
        loop {
            let changed = self.stream().changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(end) = self.ended() {
                return Turn::Ended(end);
            }
            changed.await;
        }
    }

    async fn at_head(&mut self) -> Option<Turn> {
        self.seat.wake.notified().await;
        let handover = self.seat.take()?;
        match handover {
            Handover::Behind { rest, at } => {
                self.place = Place::Behind(at);
                self.push_rest(rest);
                let replies = self.replies.take();
                self.push_rest(replies.unwrap_or_default());
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
        if !self.is_held() && self.try_start() {
            return None;
        }
        if self.rest.is_empty() {
            if let Some(end) = self.ended() {
                let had = self.fell.take();
                self.count_lost(had, stream.lock().ring.head());
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
            Ok(Caught::Up | Caught::More) => None,
            Ok(Caught::Ended) => Some(Turn::Ended(self.end())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await,
            Err(error) => Some(Turn::Gone(error)),
        }
    }

    async fn writable(&mut self) -> Option<Turn> {
        let since = *self.blocked.get_or_insert_with(super::now);
        let until = since + self.stream().settings.stall;
        let sink = self.sink.clone();
        let writable = std::future::poll_fn(|context| sink.poll_writable(context));
        match tokio::time::timeout_at(until.into(), writable).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Turn::Gone(error)),
            Err(_) => {
                self.stream().metrics.viewer_stalls_total.inc();
                Some(Turn::Stalled)
            }
        }
    }

    /// Takes the newest place to start, if there is one.
    fn try_start(&mut self) -> bool {
        let stream = self.stream().clone();
        let mut state = stream.lock();
        let Some((at, timestamp)) = state.start() else { return false };
        if self.headers != Some(state.headers.version()) {
            self.headers = Some(state.headers.version());
            let headers = state.headers.wire(timestamp);
            self.push_rest(headers);
        }
        let had = self.fell.take();
        self.count_lost(had, at);
        self.place = Place::Behind(at);
        true
    }

    fn count_lost(&self, had: Option<u64>, at: Mark) {
        let lost = had.map_or(0, |had| at.index.saturating_sub(had));
        self.stream().metrics.viewer_skipped_messages_total.inc_by(lost);
    }

    /// Writes from the ring until the socket is full or the head is reached.
    fn catch_up(&mut self) -> io::Result<Caught> {
        let Place::Behind(at) = self.place else { return Ok(Caught::Up) };
        let stream = self.stream().clone();
        let mut blocks: SmallVec<[Block; PIECES]> = SmallVec::new();
        let next = {
            let mut state = stream.lock();
            let frontier = state.frontier(self.pump);
            let head = state.ring.head();
            if at.number < state.ring.first() {
                drop(state);
                stream.metrics.viewer_skips_total.inc();
                self.fell = Some(at.index);
                self.place = Place::Waiting;
                return Ok(Caught::More);
            }
            if self.rest.is_empty() {
                if state.ended.is_some() && at.number >= head.number {
                    return Ok(Caught::Ended);
                }
                if at.number == frontier || at.number >= head.number {
                    let member = Member { sink: self.sink.clone(), seat: self.seat.clone() };
                    stream.seat(&mut state, self.pump, member, at);
                    self.place = Place::AtHead;
                    return Ok(Caught::Up);
                }
            }
            // Who started at a block that the pump has not given out yet goes on to the end of the ring.
            let limit = if at.number > frontier { head.number } else { frontier };
            let room = if self.is_held() { 0 } else { PIECES.saturating_sub(self.rest.len()) };
            let count = usize::try_from(limit.saturating_sub(at.number)).unwrap_or(usize::MAX).min(room);
            blocks.extend(state.ring.since(at.number).take(count).cloned());
            Mark { number: at.number + count as u64, index: state.ring.index(at.number + count as u64) }
        };
        let begun = self.write(&blocks)?;
        let left = blocks.get(begun).map(|block| block.mark(at.number + begun as u64));
        self.place = Place::Behind(left.unwrap_or(next));
        Ok(Caught::More)
    }

    /// Writes what is left over and then blocks, as far as the socket takes them at once, and says how many of the blocks
    /// were begun. What it does not take of one that was begun is left over; the others are given up again, so that a
    /// slow viewer holds no memory.
    fn write(&mut self, blocks: &[Block]) -> io::Result<usize> {
        let wires = blocks.iter().map(|block| &block.wire);
        let pieces: SmallVec<[IoSlice<'_>; PIECES]> =
            self.rest.iter().chain(wires).take(PIECES).map(|piece| IoSlice::new(piece)).collect();
        if pieces.is_empty() {
            return Ok(0);
        }
        let mut written = self.sink.try_write_vectored(&pieces)?;
        drop(pieces);
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.blocked = None;
        self.stream().metrics.sent_bytes_total.inc_by(written as u64);
        let mut left: SmallVec<[Bytes; 2]> = SmallVec::new();
        for piece in std::mem::take(&mut self.rest) {
            let taken = written.min(piece.len());
            written -= taken;
            if taken < piece.len() {
                left.push(piece.slice(taken..));
            }
        }
        let mut begun = 0;
        for block in blocks.iter().map(|block| &block.wire) {
            if written == 0 {
                break;
            }
            let taken = written.min(block.len());
            written -= taken;
            begun += 1;
            if taken < block.len() {
                left.push(block.slice(taken..));
            }
        }
        self.rest = left;
        if self.rest.is_empty() {
            self.owed = 0;
        }
        Ok(begun)
    }

    fn push_rest(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.rest.push(bytes);
        }
    }

    fn ended(&self) -> Option<End> {
        self.stream().lock().ended.clone()
    }

    fn end(&self) -> End {
        self.ended().unwrap_or(End::Closed)
    }
}

enum Caught {
    Up,
    More,
    Ended,
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let seat = matches!(self.place, Place::AtHead).then(|| self.seat.clone());
        self.stream().leave(self.pump, seat);
    }
}
