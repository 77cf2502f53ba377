//! Writes what is new to all viewers at a stream's live edge, one write each for everything that is due.
//!
//! A viewer whose socket would block is handed back to its own task with its place in the ring, and returns when it has
//! caught up. The pump never waits for a viewer and keeps nothing for one. How it shares the sockets with the viewers'
//! tasks is written at the head of [`crate::relay`].

use super::format::Format;
use super::ring::Mark;
use super::seat::{Handover, Member, Seat};
use super::stream::{Pump, State, Stream};
use bytes::{Bytes, BytesMut};
use std::io;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

/// After so many writes other tasks get their turn, so that a huge audience does not starve small ones. A write to a
/// socket is about 2 µs, so this is a quarter of a millisecond.
const YIELD_EVERY: usize = 128;

impl Stream {
    /// The pump of a new viewer.
    pub(super) fn enter(&self, format: Format) -> usize {
        self.lock().enter(format, self.settings.pump_viewers)
    }

    /// A viewer of this pump leaves; with its seat if it is at the live edge, so that the pump drops its socket.
    pub(super) fn leave(&self, pump: usize, seat: Option<Arc<Seat>>) {
        self.lock().leave(pump, seat);
    }

    /// A viewer of this pump wants to be handed back, even if there is nothing to write.
    pub(super) fn call_back(&self, pump: usize, seat: Arc<Seat>) {
        if let Some(pump) = self.lock().pumps.get_mut(pump) {
            pump.called.push(seat);
            pump.wake.notify_one();
        }
    }

    /// Puts a viewer that stands at the pump's frontier or at the live edge into the pump's inbox, and starts the pump if
    /// it does not run. The caller holds the lock, so that this is still where the viewer stands.
    pub(super) fn seat(self: &Arc<Self>, state: &mut State, index: usize, member: Member, at: Mark) {
        let Some(pump) = state.pumps.get_mut(index) else { return };
        pump.inbox.push((member, at));
        if !pump.running {
            pump.running = true;
            self.metrics.pumps.inc();
            self.tasks.spawn(run(self.clone(), index, pump.format, pump.wake.clone()));
        }
    }
}

impl State {
    /// The pump of one viewer more, in this format and with fewer than so many others.
    pub(super) fn enter(&mut self, format: Format, limit: usize) -> usize {
        let free = self.pumps.iter().position(|pump| pump.format == format && pump.viewers < limit);
        let index = free.unwrap_or_else(|| {
            let frontier = self.ring.live_edge();
            self.pumps.push(Pump {
                format,
                frontier,
                inbox: Vec::new(),
                called: Vec::new(),
                viewers: 0,
                armed: None,
                running: false,
                wake: Arc::new(Notify::new()),
            });
            self.pumps.len() - 1
        });
        if let Some(pump) = self.pumps.get_mut(index) {
            pump.viewers += 1;
        }
        index
    }

    /// See [`Stream::leave`].
    pub(super) fn leave(&mut self, pump: usize, seat: Option<Arc<Seat>>) {
        if let Some(seat) = &seat {
            self.at_start.retain(|(_, waits)| !Arc::ptr_eq(waits, seat));
        }
        if let Some(pump) = self.pumps.get_mut(pump) {
            pump.viewers -= 1;
            if seat.is_some() || pump.viewers == 0 {
                pump.called.extend(seat);
                pump.wake.notify_one();
            }
        }
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
    /// Members that are called back by their tasks, or have left.
    called: Vec<Arc<Seat>>,
}

/// Runs a stream's pump until it has no viewers. Owned by the tracker of the stream's hub.
pub(super) async fn run(stream: Arc<Stream>, index: usize, format: Format, wake: Arc<Notify>) {
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
                let wire = concat(blocks);
                // Empty: its viewers want nothing of these blocks.
                if !wire.is_empty() {
                    write_all(&stream, &mut members, &wire, at, next).await;
                }
            }
            Step::Wait(_) if now >= ping_at => {
                ping_at = now + ping_every;
                write_all(&stream, &mut members, &format.ping(), at, at).await;
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

/// Looks at the stream and says what to do. Nothing: the pump is not known any more.
fn look(state: &mut State, index: usize, members: &mut Vec<Member>, now: Instant) -> Option<Look> {
    let armed = state.pumps.get(index).and_then(|pump| pump.armed);
    if state.ring.is_due(now, armed) {
        state.ring.seal();
    }
    let (ring, ended) = (&mut state.ring, state.ended.is_some());
    let live_edge = ring.live_edge();
    let pump = state.pumps.get_mut(index)?;
    let at = pump.frontier;
    seat_newcomers(pump, members);
    let called = std::mem::take(&mut pump.called);
    let found = |step| Some(Look { step, at, called });
    pump.frontier = live_edge;
    if pump.viewers == 0 {
        pump.running = false;
        return found(Step::Stop);
    }
    if at.number < ring.first() {
        // The ring turned over while the pump had no turn: its members have fallen off.
        members.drain(..).for_each(|member| member.seat.hand(Handover::at(at)));
    } else if at != live_edge {
        let blocks = ring.since(at.number, pump.format).map(|block| block.wire).collect();
        // The next flush will most likely come within a period, brought by a push that wakes this pump. Looking by itself
        // at that time catches what waits without a frame that follows, and saves a wake-up for each that does not.
        pump.armed = Some(now + ring.period());
        return found(Step::Flush(blocks, live_edge));
    }
    if ended {
        pump.armed = None;
        return found(if members.is_empty() { Step::Wait(None) } else { Step::Ended });
    }
    pump.armed = ring.due().or(pump.armed.filter(|armed| *armed > now));
    found(Step::Wait(pump.armed))
}

/// Takes the viewers that reached the live edge.
fn seat_newcomers(pump: &mut Pump, members: &mut Vec<Member>) {
    for (member, at) in pump.inbox.drain(..) {
        if at == pump.frontier {
            members.push(member);
        } else {
            // The frontier moves to the live edge now, and the viewer gets there by itself.
            member.seat.hand(Handover::at(at));
        }
    }
}

/// Gives up members that are called back or have left. A seat that is not found was handed back before.
fn hand_back(members: &mut Vec<Member>, mut called: Vec<Arc<Seat>>, at: Mark) {
    if called.is_empty() {
        return;
    }
    called.sort_unstable_by_key(Arc::as_ptr);
    members.retain(|Member { seat, .. }| {
        let called = called.binary_search_by_key(&Arc::as_ptr(seat), Arc::as_ptr).is_ok();
        if called {
            seat.hand(Handover::at(at));
        }
        !called
    });
}

fn concat(mut blocks: Vec<Bytes>) -> Bytes {
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
                (n < wire.len()).then(|| Handover::Behind { unsent: wire.slice(n..), at: next })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(Handover::at(from)),
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
