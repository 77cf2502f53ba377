//! One publisher, many viewers.
//!
//! A [`Feed`] is media on its way in; it goes to outlets, of which a stream is one, and a [`queue`] to somewhere else another.
//! A [`Hub`] knows the streams of one watch point by name and says which of them have viewers. A [`Stream`] keeps one
//! [`ring`] of recent messages as wire-ready bytes, in the [`Format`] that a viewer wants. A [`Viewer`] is a place in that ring and a socket: no queue of its
//! own, no copy, no serialisation. A pump per stream writes new blocks to all viewers at the live edge; a viewer whose
//! socket is full writes from the ring by itself until it is at the live edge again.
//!
//! This floor knows neither sockets (a viewer is a [`Sink`] that takes bytes or would block) nor the workflow engine,
//! nor where a stream's packets come from.
//!
//! # How viewer, pump and ring hand over to each other
//!
//! ```text
//!   evicted │ block │ block │ block │ block │ block │ pending
//!           ▲           ▲               ▲           ▲
//!         first     a viewer        frontier    live edge
//!                   that is behind  of a pump
//!
//!   source's task     seals blocks at the live edge, wakes the pumps
//!   pump's task       writes frontier..live edge to its members; the frontier is at the live edge then
//!   viewer's task     writes from the viewer's place up to the frontier
//! ```
//! **Ring.** Messages are pending until they share a block; the *live edge* is the place behind the newest block. A
//! viewer's place and a pump's *frontier* lie between two blocks. Each viewer belongs to one pump from its start to its end;
//! a stream has pumps for each format, and another for each [`Settings::pump_viewers`] viewers.
//!
//! **Who may write to a viewer's socket** is one task at any time:
//! 1. The viewer's task, from [`Interest::watch`] on while the viewer is waiting or behind. It writes up to the frontier and
//!    no further: what is beyond, the pump is about to write to its members, and a viewer that went on alone would chase
//!    it. A viewer that starts beyond the frontier (at a keyframe that the pump has not written yet) goes on to the live
//!    edge instead. While a pump does not run, its frontier counts as the live edge.
//! 2. The pump, from the moment the viewer's socket and seat are in the pump's *inbox*. The viewer's task puts them there
//!    when nothing is unsent and its place is the frontier or the live edge, under the lock under which it looked, so that
//!    the frontier cannot move in between. At its next look the pump takes it as a *member* if its place is the frontier
//!    still; if not, it hands it back to catch up.
//! 3. The viewer's task again, from the moment a hand-over lies in its *seat*. The pump does not write after it.
//!
//! **Going behind.** When a socket would block or takes a part of a write, the pump hands the viewer back at once with
//! its place and the unsent part of the block, and goes on with the next member. The viewer's task waits until the socket is
//! writable, sends the unsent part first (a message is never broken off) and catches up from the ring; then 2. holds
//! again. A viewer whose place was evicted waits for the next place to start and gets the headers again if they
//! changed. One that reads nothing for [`Settings::stall`] is stalled, and is closed.
//!
//! **Called back.** A task that wants its viewer back at the live edge, to send a reply, to pause or to stop, puts its seat
//! on the pump's list of those that are *called back* and wakes it. The pump looks at the list before each write and
//! hands these over between two blocks, which are whole messages. A viewer that is dropped at the live edge is called
//! back likewise; until the pump's next look the pump may still write to its socket, so its task writes to it no more.
//!
//! **Another format.** A viewer that holds a kind of media back gets another [`Format`], whose blocks are made once and shared as
//! all are. Its task, called back, leaves the pump of the one format and enters that of the other at its place. Video comes back at
//! a place to start only: until then the viewer is also on the stream's list of those that are called back when one appears.
//!
//! **End.** [`Stream`] seals what is pending, remembers why it ended and wakes all. A pump first writes up to the live edge,
//! then hands each member over as ended; a viewer that is behind is ended when it has written everything; one that waits
//! is ended at once. A pump ends when its last viewer has left, and is started anew by the next one that reaches the live
//! edge; the hub's owner awaits it.
//!
//! **Locks**, outermost first: a feed's or the hub's (never both), a stream's, a seat's. None is held across an await or a
//! write to a socket.

pub mod feed;
pub mod figures;
pub mod format;
pub mod headers;
pub mod hub;
mod pump;
pub mod queue;
pub mod ring;
mod seat;
pub mod settings;
pub mod stream;
pub mod timeline;
mod unsent;
pub mod viewer;

pub use feed::{Attachment, Feed, FeedId, FeedRef, Feeds, Outlet, PullEvent};
pub use figures::Figures;
pub use format::Format;
pub use hub::{Admission, Demand, Hub, Interest, JoinError, Source};
pub use queue::{Inlet, Queue};
pub use seat::Sink;
pub use settings::{Batching, Settings};
pub use stream::{Doing, End, RelayId, Stream};
pub use viewer::{Turn, Viewer};

use std::time::Instant;

/// The runtime's clock, so that a test can stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
