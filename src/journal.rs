//! What happened to streams on this node, until a reactor was told: bounded, and nothing is decided by it.
//!
//! Whoever sees something happen notes it; one task takes the notes. While nobody takes them none are kept.

use crate::api::report::{Happening, REPORT_TEXT_MAX, StreamEvent};
use crate::ids::{SessionTag, StreamName};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The most notes that wait: what a thousand streams have to say in the seconds between two reports.
const KEPT: usize = 5_000;

/// Older ones are of no use to anybody: what reactors keep of a stream is not much longer.
const OLDEST: Duration = Duration::from_secs(600);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Journal {
    taken: AtomicBool,
    lost: AtomicU64,
    notes: Mutex<VecDeque<(Instant, StreamEvent)>>,
}

/// Something that happened, for [`Journal::note`].
#[derive(Debug)]
pub struct Note {
    event: Happening,
    session: Option<SessionTag>,
    number: Option<u64>,
    detail: Option<String>,
}

impl Note {
    /// This happened.
    pub fn of(event: Happening) -> Self {
        Note { event, session: None, number: None, detail: None }
    }

    /// To this publish.
    pub fn session(mut self, session: Option<SessionTag>) -> Self {
        self.session = session;
        self
    }

    /// With this number; see [`Happening`].
    pub fn number(mut self, number: u64) -> Self {
        self.number = Some(number);
        self
    }

    /// After this time.
    pub fn after(self, time: Duration) -> Self {
        self.number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    /// With a text, which is cut if it is too long.
    pub fn detail(mut self, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(REPORT_TEXT_MAX));
        self.detail = Some(text);
        self
    }
}

impl Journal {
    /// From now on somebody takes the notes.
    pub fn keep(&self) {
        self.taken.store(true, Relaxed);
    }

    /// Something happened to a stream.
    pub fn note(&self, stream: &StreamName, note: Note) {
        if !self.taken.load(Relaxed) {
            return;
        }
        let Note { event, session, number, detail } = note;
        let event = StreamEvent { stream_name: stream.clone(), event, ago_ms: 0, session, number, detail };
        let mut notes = self.lock();
        if notes.len() >= KEPT {
            notes.pop_front();
            self.lost.fetch_add(1, Relaxed);
        }
        notes.push_back((Instant::now(), event));
    }

    /// The oldest notes, at most so many, with their age.
    pub fn take(&self, most: usize) -> Vec<StreamEvent> {
        let (now, mut notes) = (Instant::now(), self.lock());
        let most = most.min(notes.len());
        let aged = |(at, event): (Instant, StreamEvent)| {
            let age = now.saturating_duration_since(at);
            let ago_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            (age <= OLDEST).then_some(StreamEvent { ago_ms, ..event })
        };
        notes.drain(..most).filter_map(aged).collect()
    }

    /// How many notes were given up since this was asked last: there was no room.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, StreamEvent)>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn notes_are_kept_in_order_with_their_age_and_bounded() {
        let (journal, name) = (Journal::default(), "x".parse::<StreamName>().unwrap());
        journal.note(&name, Note::of(Happening::Published));
        assert_eq!(journal.take(10), [], "nobody took them");
        journal.keep();
        journal.note(&name, Note::of(Happening::Published).detail("é".repeat(1000)));
        tokio::time::advance(Duration::from_millis(1500)).await;
        journal.note(&name, Note::of(Happening::Unpublished));
        let taken = journal.take(10);
        assert_eq!(taken.iter().map(|event| event.ago_ms).collect::<Vec<_>>(), [1500, 0]);
        assert_eq!(taken[0].detail.as_ref().unwrap().len(), REPORT_TEXT_MAX);
        for _ in 0..KEPT + 3 {
            journal.note(&name, Note::of(Happening::Found));
        }
        assert_eq!((journal.lost(), journal.lost()), (3, 0));
        assert_eq!(journal.take(usize::MAX).len(), KEPT);
    }
}
