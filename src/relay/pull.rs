//! A running pull, as those see it who want its stream, however it is done.

use crate::media::Packet;
use futures::StreamExt;
use futures::stream::{BoxStream, Stream};
use std::fmt;

/// The most events that are handed out together. A workflow keeps room for as much as it was ever given at once, so what
/// comes in one piece when a pull begins is not all handed out in one.
const BATCH: usize = 2;

/// What a pull brings.
#[derive(Debug)]
pub enum Event {
    /// The first media of an attempt follows.
    Started,
    /// Media, in order.
    Packets(Vec<Packet>),
    /// An attempt ended, for this reason. Another one follows by itself.
    Ended(String),
}

/// A pull that runs until this is dropped.
pub struct Pull(BoxStream<'static, Vec<Event>>);

impl Pull {
    /// A pull that is done when these events, which own it, are dropped.
    pub fn new(events: impl Stream<Item = Event> + Send + 'static) -> Self {
        Pull(events.ready_chunks(BATCH).boxed())
    }

    /// Waits for events, and takes all that are there. Nothing: the pull has ended for good.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        self.0.next().await
    }
}

impl fmt::Debug for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pull").finish_non_exhaustive()
    }
}
