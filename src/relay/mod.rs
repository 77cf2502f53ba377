//! One publisher, many viewers.
//!
//! A [`Feed`] is media on its way in; it goes to outlets, of which a stream is one.
//! A [`Hub`] knows the streams of one watch point by name and says which of them somebody wants. A [`Stream`] keeps one
//! [`ring`] of recent messages as wire-ready bytes. A [`Viewer`] is a cursor into that ring: no queue of its own, no copy,
//! no serialisation. A pump per stream writes what is new to all who are at the head; who blocks gets its own turns
//! until it is at the head again.
//!
//! This floor knows neither sockets (a viewer is a [`Sink`] that takes bytes or would block) nor the workflow engine,
//! nor where a stream's packets come from.

pub mod feed;
pub mod headers;
pub mod hub;
mod pump;
pub mod ring;
pub mod settings;
pub mod stream;
pub mod timeline;
pub mod viewer;

pub use feed::{Attachment, Feed, FeedId, FeedRef, Feeds, Outlet, PullEvent};
pub use hub::{Admission, Demand, Hub, Interest, JoinError, Source};
pub use settings::{Gather, Settings};
pub use stream::{RelayId, Stream};
pub use viewer::{Sink, Turn, Viewer};

use std::time::Instant;

/// The runtime's clock, so that a test can stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
