//! Writes what is new to all viewers at the head of a stream, one gathered write each.
//!
//! A viewer whose socket would block is handed back to its own task with its place in the ring, and comes back when it
//! has caught up. The pump never waits for a viewer and keeps nothing for one.

use super::ring::Mark;
use super::stream::{State, Stream};
use super::viewer::Sink;
use bytes::{Bytes, BytesMut};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;
use tokio::sync::Notify;

/// After so many writes other tasks get their turn, so that a huge audience does not starve small ones. A write to a
/// socket is about 2 µs, so this is a quarter of a millisecond.
const YIELD_EVERY: usize = 128;

/// A pump that has nothing to write still looks through its viewers when so many came, to forget those that left.
pub(super) const SWEEP: usize = 512;

/// A viewer's place among those at the head.
#[derive(Debug)]
pub(super) struct Seat {
    /// The viewer's task owns the socket: when it ends, the socket is closed at once, whatever the pump does.
    pub sink: Weak<dyn Sink>,
    handed: Mutex<Option<Handover>>,
    recalled: AtomicBool,
    pub wake: Notify,
}

/// What a pump says when it hands a viewer back.
#[derive(Debug)]
pub(super) enum Handover {
    /// The socket took all before `at` but `rest`.
    Behind { rest: Bytes, at: Mark },
    /// The socket is gone.
    Gone(io::Error),
    /// The stream ended, and everything of it was written.
    Ended,
}

impl Seat {
    pub fn new(sink: Weak<dyn Sink>) -> Arc<Self> {
        Arc::new(Seat {
            sink,
            handed: Mutex::new(None),
            recalled: AtomicBool::new(false),
            wake: Notify::new(),
        })
    }

    /// Asks the pump to hand the viewer back instead of writing to it.
    pub fn recall(&self, recalled: bool) {
        self.recalled.store(recalled, Ordering::Relaxed);
    }

    pub fn take(&self) -> Option<Handover> {
        self.handed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }

    fn hand(&self, handover: Handover) {
        *self.handed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(handover);
        self.wake.notify_one();
    }
}

/// What a pump does next.
enum Step {
    /// Write these blocks, of which the first stands behind `from`; all before `next` is written then.
    Flush {
        blocks: Vec<Bytes>,
        from: Mark,
        next: Mark,
    },
    /// Hand back those that are called back, and forget those that are gone.
    Sweep(Mark),
    Wait(Option<Instant>),
    Ended,
    Stop,
}

/// Runs a stream's pump until it has no viewers. Owned by the tracker of the stream's hub.
pub(super) async fn run(stream: Arc<Stream>, index: usize, wake: Arc<Notify>) {
    let mut members: Vec<Arc<Seat>> = Vec::new();
    let ping_every = stream.settings.ping;
    let mut ping_at = super::now() + ping_every;
    let timer = tokio::time::sleep_until(ping_at.into());
    tokio::pin!(timer);
    loop {
        let now = super::now();
        let step = next_step(&mut stream.lock(), index, &mut members, now);
        match step {
            Step::Flush { blocks, from, next } => {
                let wire = gather(blocks);
                write_all(&stream, &mut members, &wire, from, next).await;
            }
            Step::Wait(_) if now >= ping_at => {
                ping_at = now + ping_every;
                let Some(at) = stream.lock().pumps.get(index).map(|pump| pump.frontier) else { break };
                write_all(&stream, &mut members, &ping(), at, at).await;
            }
            Step::Wait(armed) => {
                let until = armed.map_or(ping_at, |armed| armed.min(ping_at));
                timer.as_mut().reset(until.into());
                tokio::select! {
                    () = wake.notified() => {}
                    () = &mut timer => {}
                }
            }
            Step::Sweep(at) => sweep(&mut members, at),
            Step::Ended => {
                members.drain(..).for_each(|seat| seat.hand(Handover::Ended));
            }
            Step::Stop => break,
        }
    }
    stream.metrics.pumps.dec();
}

fn next_step(state: &mut State, index: usize, members: &mut Vec<Arc<Seat>>, now: Instant) -> Step {
    let armed = state.pumps.get(index).and_then(|pump| pump.armed);
    if state.ring.is_due(now, armed) {
        state.ring.seal();
    }
    let pending = state.ring.due();
    let head = state.ring.head();
    let period = state.ring.period();
    let ended = state.ended.is_some();
    let ring = &state.ring;
    let Some(pump) = state.pumps.get_mut(index) else { return Step::Stop };
    let from = pump.frontier;
    for (seat, at) in pump.inbox.drain(..) {
        if at == from {
            members.push(seat);
        } else {
            // The frontier moves to the head now, and the viewer gets there by itself.
            seat.hand(Handover::Behind { rest: Bytes::new(), at });
        }
    }
    if pump.viewers == 0 {
        pump.running = false;
        pump.frontier = head;
        return Step::Stop;
    }
    if from.number < ring.first() {
        // The ring turned over while the pump had no turn: its viewers have fallen off.
        pump.frontier = head;
        members.drain(..).for_each(|seat| seat.hand(Handover::Behind { rest: Bytes::new(), at: from }));
    }
    if pump.frontier != head {
        let blocks = ring.since(from.number).map(|block| block.wire.clone()).collect();
        pump.frontier = head;
        pump.sweep = false;
        // The next flush will most likely come within a period, brought by a push that wakes this pump. Looking by itself
        // at that time catches what waits without anything to ride on, and saves a wake-up for each that does not.
        pump.armed = Some(now + period);
        return Step::Flush { blocks, from, next: head };
    }
    if std::mem::take(&mut pump.sweep) {
        return Step::Sweep(head);
    }
    if ended {
        return if members.is_empty() {
            pump.armed = None;
            Step::Wait(None)
        } else {
            Step::Ended
        };
    }
    pump.armed = match (pending, pump.armed) {
        (Some(due), _) => Some(due),
        (None, Some(armed)) if armed > now => Some(armed),
        (None, _) => None,
    };
    Step::Wait(pump.armed)
}

fn gather(mut blocks: Vec<Bytes>) -> Bytes {
    if blocks.len() == 1 {
        return blocks.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(blocks.iter().map(Bytes::len).sum());
    blocks.iter().for_each(|block| all.extend_from_slice(block));
    all.freeze()
}

/// Writes to all members, and hands back those that cannot take everything now.
async fn write_all(stream: &Stream, members: &mut Vec<Arc<Seat>>, wire: &Bytes, from: Mark, next: Mark) {
    let mut sent = 0;
    let mut index = 0;
    let mut writes = 0;
    while let Some(seat) = members.get(index) {
        let written = seat.sink.upgrade().map(|sink| match seat.recalled.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => sink.try_write(wire),
        });
        let handover = match written {
            Some(Ok(n)) if n == wire.len() => {
                sent += n;
                index += 1;
                None
            }
            Some(Ok(n)) => {
                sent += n;
                Some(Handover::Behind { rest: wire.slice(n..), at: next })
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Some(Handover::Behind { rest: Bytes::new(), at: from })
            }
            Some(Err(error)) => Some(Handover::Gone(error)),
            None => {
                members.swap_remove(index);
                continue;
            }
        };
        if let Some(handover) = handover {
            members.swap_remove(index).hand(handover);
        }
        writes += 1;
        if writes % YIELD_EVERY == 0 {
            tokio::task::yield_now().await;
        }
    }
    stream.metrics.sent_bytes_total.inc_by(sent as u64);
}

fn sweep(members: &mut Vec<Arc<Seat>>, at: Mark) {
    members.retain(|seat| {
        let recalled = seat.recalled.load(Ordering::Relaxed);
        if recalled {
            seat.hand(Handover::Behind { rest: Bytes::new(), at });
        }
        !recalled && seat.sink.strong_count() > 0
    });
}

/// A ping request (RTMP 1.0, 7.1.7), the same bytes for every viewer. Its time is of no use to anybody: zero.
fn ping() -> Bytes {
    let mut wire = BytesMut::new();
    let ping_request = [0, 6, 0, 0, 0, 0];
    crate::rtmp::chunk::write_message(
        &mut wire,
        2,
        0,
        4,
        0,
        &ping_request,
        crate::rtmp::session::OUT_CHUNK_SIZE,
    );
    wire.freeze()
}
