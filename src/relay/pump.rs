//! Writes what is new to all viewers at the head of a stream, one gathered write each.
//!
//! A viewer whose socket would block is handed back to its own task with its place in the ring, and comes back when it
//! has caught up. The pump never waits for a viewer and keeps nothing for one.

use super::ring::Mark;
use super::stream::{State, Stream};
use super::viewer::Sink;
use bytes::{Bytes, BytesMut};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Notify;

/// After so many writes other tasks get their turn, so that a huge audience does not starve small ones. A write to a
/// socket is about 2 µs, so this is a quarter of a millisecond.
const YIELD_EVERY: usize = 128;

/// A viewer among those at the head. They stand behind one another in memory, and a write touches nothing but this and the
/// sink: what lies elsewhere has left the processor's caches since the last flush.
#[derive(Debug)]
pub(super) struct Member {
    pub sink: Arc<dyn Sink>,
    pub seat: Arc<Seat>,
}

/// Where a pump and a viewer's task meet.
#[derive(Debug, Default)]
pub(super) struct Seat {
    handed: Mutex<Option<Handover>>,
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
    /// Write these blocks; all before this mark is written then.
    Flush(Vec<Bytes>, Mark),
    Wait(Option<Instant>),
    Ended,
    Stop,
}

/// What a pump found when it looked.
struct Look {
    step: Step,
    /// Where the members stand.
    at: Mark,
    /// Those that are called back, or have left.
    called: Vec<Arc<Seat>>,
}

/// Runs a stream's pump until it has no viewers. Owned by the tracker of the stream's hub.
pub(super) async fn run(stream: Arc<Stream>, index: usize, wake: Arc<Notify>) {
    let mut members: Vec<Member> = Vec::new();
    let ping_every = stream.settings.ping;
    let mut ping_at = super::now() + ping_every;
    let timer = tokio::time::sleep_until(ping_at.into());
    tokio::pin!(timer);
    loop {
        let now = super::now();
        let Some(Look { step, at, called }) = look(&mut stream.lock(), index, &mut members, now) else {
            break;
        };
        hand_back(&mut members, called, at);
        match step {
            Step::Flush(blocks, next) => {
                let wire = gather(blocks);
                write_all(&stream, &mut members, &wire, at, next).await;
            }
            Step::Wait(_) if now >= ping_at => {
                ping_at = now + ping_every;
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
            Step::Ended => {
                members.drain(..).for_each(|member| member.seat.hand(Handover::Ended));
            }
            Step::Stop => break,
        }
    }
    stream.metrics.pumps.dec();
}

/// Nothing: the pump is not known any more.
fn look(state: &mut State, index: usize, members: &mut Vec<Member>, now: Instant) -> Option<Look> {
    let armed = state.pumps.get(index).and_then(|pump| pump.armed);
    if state.ring.is_due(now, armed) {
        state.ring.seal();
    }
    let pending = state.ring.due();
    let head = state.ring.head();
    let period = state.ring.period();
    let ended = state.ended.is_some();
    let ring = &state.ring;
    let pump = state.pumps.get_mut(index)?;
    let at = pump.frontier;
    for (member, stands) in pump.inbox.drain(..) {
        if stands == at {
            members.push(member);
        } else {
            // The frontier moves to the head now, and the viewer gets there by itself.
            member.seat.hand(Handover::Behind { rest: Bytes::new(), at: stands });
        }
    }
    let called = std::mem::take(&mut pump.called);
    let found = |step| Some(Look { step, at, called });
    if pump.viewers == 0 {
        pump.running = false;
        pump.frontier = head;
        return found(Step::Stop);
    }
    if at.number < ring.first() {
        // The ring turned over while the pump had no turn: its viewers have fallen off.
        pump.frontier = head;
        members.drain(..).for_each(|member| member.seat.hand(Handover::Behind { rest: Bytes::new(), at }));
    }
    if pump.frontier != head {
        let blocks = ring.since(at.number).map(|block| block.wire.clone()).collect();
        pump.frontier = head;
        // The next flush will most likely come within a period, brought by a push that wakes this pump. Looking by itself
        // at that time catches what waits without anything to ride on, and saves a wake-up for each that does not.
        pump.armed = Some(now + period);
        return found(Step::Flush(blocks, head));
    }
    if ended {
        pump.armed = None;
        return found(if members.is_empty() { Step::Wait(None) } else { Step::Ended });
    }
    pump.armed = match (pending, pump.armed) {
        (Some(due), _) => Some(due),
        (None, Some(armed)) if armed > now => Some(armed),
        (None, _) => None,
    };
    found(Step::Wait(pump.armed))
}

/// Lets go of members that are called back or have left. Who is not here any more was handed back before.
fn hand_back(members: &mut Vec<Member>, mut called: Vec<Arc<Seat>>, at: Mark) {
    if called.is_empty() {
        return;
    }
    called.sort_unstable_by_key(Arc::as_ptr);
    members.retain(|Member { seat, .. }| {
        let called = called.binary_search_by_key(&Arc::as_ptr(seat), Arc::as_ptr).is_ok();
        if called {
            seat.hand(Handover::Behind { rest: Bytes::new(), at });
        }
        !called
    });
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
async fn write_all(stream: &Stream, members: &mut Vec<Member>, wire: &Bytes, from: Mark, next: Mark) {
    let mut sent = 0;
    let mut index = 0;
    let mut writes = 0;
    while let Some(member) = members.get(index) {
        let handover = match member.sink.try_write(wire) {
            Ok(n) => {
                sent += n;
                (n < wire.len()).then(|| Handover::Behind { rest: wire.slice(n..), at: next })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Some(Handover::Behind { rest: Bytes::new(), at: from })
            }
            Err(error) => Some(Handover::Gone(error)),
        };
        match handover {
            Some(handover) => members.swap_remove(index).seat.hand(handover),
            None => index += 1,
        }
        writes += 1;
        if writes % YIELD_EVERY == 0 {
            tokio::task::yield_now().await;
        }
    }
    stream.metrics.sent_bytes_total.inc_by(sent as u64);
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
