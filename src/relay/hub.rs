//! The streams of one watch point, by name: their sources, their viewers, and which of them are in demand.
//!
//! Where streams are pulled on demand, the hub says with [`Hub::demand`] which names have viewers, once a name however
//! many they are, and what changes quickly is said only if it lasts. The hub does not know how a wish is granted.

use super::feed::Outlet;
use super::settings::{Batching, Settings};
use super::stream::{self, End, RelayId, Stream};
use crate::api::report::Happening;
use crate::budget::Holder;
use crate::ids::{SessionTag, StreamName};
use crate::journal::Note;
use crate::media::Packet;
use crate::telemetry::Metrics;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

/// Which viewers a hub admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Viewers of streams that are there.
    Live,
    /// Viewers of any stream: it will be pulled, or refused with [`Hub::refuse`].
    OnDemand,
}

/// Why a viewer is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// No such stream.
    #[error("no such stream")]
    Unknown,
    /// Too many names are waited for.
    #[error("too many streams are waited for")]
    Full,
    /// The watch point is gone.
    #[error("the node is stopping")]
    Closed,
}

/// A change of demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Somebody waits for or watches this stream.
    Wanted(StreamName),
    /// Nobody waits for it or watches it any more.
    Unwanted(StreamName),
}

/// See the module's head.
#[derive(Debug)]
pub struct Hub {
    admission: Admission,
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    state: Mutex<State>,
    changed: Notify,
    /// The entries that [`Hub::demand`] has looked at.
    #[cfg(test)]
    pub(super) looked: std::sync::atomic::AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<StreamName, Entry>,
    /// Names whose demand may have changed since [`Hub::demand`] last returned.
    touched: HashSet<StreamName>,
    /// The grace times of all entries, soonest end first.
    ends: BTreeSet<(Instant, StreamName)>,
    next_source: u64,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    stream: Arc<Stream>,
    viewers: usize,
    /// Whether [`Hub::demand`] said last that it is wanted.
    told: bool,
    /// The publisher is gone, and its viewers are kept until then; listed in [`State::ends`] too.
    ends: Option<Instant>,
}

impl Hub {
    /// An empty hub. Its pumps belong to `tasks`.
    pub fn new(
        admission: Admission,
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Hub {
            admission,
            settings,
            metrics,
            tasks,
            state: Mutex::default(),
            changed: Notify::new(),
            #[cfg(test)]
            looked: Default::default(),
        })
    }

    /// Which viewers it admits.
    pub fn admission(&self) -> Admission {
        self.admission
    }

    /// Which messages share a write to its viewers.
    pub fn batching(&self) -> Batching {
        self.settings.batching
    }

    /// A viewer joins. Its interest lasts as long as what is returned.
    pub fn join(self: &Arc<Self>, name: &StreamName) -> Result<Interest, JoinError> {
        let mut state = self.lock();
        if state.closed {
            return Err(JoinError::Closed);
        }
        if !state.entries.contains_key(name) {
            if self.admission == Admission::Live {
                return Err(JoinError::Unknown);
            }
            if state.entries.len() >= self.settings.names {
                return Err(JoinError::Full);
            }
        }
        let entry = self.entry(&mut state, name);
        entry.viewers += 1;
        let (first, stream) = (entry.viewers == 1, entry.stream.clone());
        if first {
            self.touch(&mut state, name);
        }
        drop(state);
        if first {
            self.note(name, Note::of(Happening::FirstViewer));
        }
        Ok(Interest { hub: self.clone(), stream, first, since: super::now() })
    }

    /// Attaches a source to a stream; what an older one of the same name still pushes is dropped and counted. `upstream`: it is a pull of this
    /// relay stream, and goes on where an earlier pull of the same one broke off; any other source is a break for viewers.
    pub fn attach(self: &Arc<Self>, name: &StreamName, upstream: Option<RelayId>) -> Source {
        let mut state = self.lock();
        state.next_source += 1;
        let number = state.next_source;
        state.set_end(name, None);
        let entry = self.entry(&mut state, name);
        entry.stream.attach(number, upstream);
        Source { hub: self.clone(), stream: entry.stream.clone(), number }
    }

    /// No node has this stream, or nobody knows: viewers that wait for it are refused, and the next viewer makes the name wanted again. `false`: the
    /// stream was seen before, and is left to its grace time.
    pub fn refuse(&self, name: &StreamName, why: End) -> bool {
        let mut state = self.lock();
        match state.entries.get_mut(name) {
            Some(entry) if entry.stream.is_untouched() => {
                entry.told = false;
                if let End::Refused(why) = &why {
                    self.note(name, Note::of(Happening::Refused).detail(why));
                }
                entry.stream.end(why);
                self.forget_stream(&mut state, name);
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    /// Waits until what is wanted has changed, and says how. While it waits it also ends streams whose grace time is over.
    /// One caller only. Safe to drop and call again.
    pub async fn demand(&self) -> Vec<Demand> {
        loop {
            let changed = self.changed.notified();
            let (changes, next) = self.look();
            if !changes.is_empty() {
                return changes;
            }
            match next {
                None => changed.await,
                Some(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at.into()) => {}
                    }
                }
            }
        }
    }

    /// Ends every stream and admits no more viewers.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for (_, entry) in state.entries.drain() {
            entry.stream.end(End::Closed);
        }
        state.touched.clear();
        state.ends.clear();
    }

    /// The streams that are there or waited for, with their viewers.
    pub fn streams(&self) -> Vec<(Arc<Stream>, usize)> {
        self.lock().entries.values().map(|entry| (entry.stream.clone(), entry.viewers)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn entry<'a>(&self, state: &'a mut State, name: &StreamName) -> &'a mut Entry {
        state.entries.entry(name.clone()).or_insert_with(|| Entry {
            stream: self.stream(name),
            viewers: 0,
            told: false,
            ends: None,
        })
    }

    fn stream(&self, name: &StreamName) -> Arc<Stream> {
        Stream::new(name.clone(), self.settings.clone(), self.metrics.clone(), self.tasks.clone())
    }

    fn touch(&self, state: &mut State, name: &StreamName) {
        if self.admission == Admission::OnDemand {
            state.touched.insert(name.clone());
            self.changed.notify_one();
        } else if state.entries.get(name).is_some_and(Entry::is_idle) {
            state.remove(name);
        }
    }

    /// The name's stream ended: viewers that come from now on wait for another one.
    fn forget_stream(&self, state: &mut State, name: &StreamName) {
        state.set_end(name, None);
        if let Some(entry) = state.entries.get_mut(name) {
            entry.stream = self.stream(name);
            entry.viewers = 0;
            self.touch(state, name);
        }
    }

    /// What changed since the last look, and when the next grace time ends. Costs what changed, not what there is.
    fn look(&self) -> (Vec<Demand>, Option<Instant>) {
        let mut state = self.lock();
        self.end_grace_times(&mut state, super::now());
        let touched = std::mem::take(&mut state.touched);
        self.count_looked(touched.len());
        let mut changes = Vec::new();
        for name in touched {
            let Some(entry) = state.entries.get_mut(&name) else { continue };
            let wanted = entry.viewers > 0;
            let told = std::mem::replace(&mut entry.told, wanted);
            if entry.is_idle() {
                state.remove(&name);
            }
            if wanted != told {
                changes.push(if wanted { Demand::Wanted(name) } else { Demand::Unwanted(name) });
            }
        }
        (changes, state.ends.first().map(|(at, _)| *at))
    }

    /// Ends the streams whose publishers did not come back in time.
    fn end_grace_times(&self, state: &mut State, now: Instant) {
        while state.ends.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, name)) = state.ends.pop_first() else { break };
            self.count_looked(1);
            if let Some(entry) = state.entries.get(&name) {
                entry.stream.end(End::Unpublished);
                self.note(&name, Note::of(Happening::Ended).session(entry.stream.session()));
            }
            self.forget_stream(state, &name);
        }
    }

    /// Tests see here what a wake-up cost.
    fn count_looked(&self, _entries: usize) {
        #[cfg(test)]
        self.looked.fetch_add(_entries, std::sync::atomic::Ordering::Relaxed);
    }

    fn leave(&self, stream: &Arc<Stream>) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(stream.name())
            && Arc::ptr_eq(&entry.stream, stream)
        {
            entry.viewers -= 1;
            if entry.viewers == 0 {
                self.touch(&mut state, stream.name());
                drop(state);
                self.note(stream.name(), Note::of(Happening::LastViewerLeft).session(stream.session()));
            }
        }
    }

    fn note(&self, name: &StreamName, note: Note) {
        if !self.settings.for_nodes {
            self.metrics.journal.note(name, note);
        }
    }

    fn detach(&self, stream: &Arc<Stream>, number: u64) {
        let mut state = self.lock();
        if !stream.detach(number) {
            return;
        }
        if state.entries.get(stream.name()).is_some_and(|entry| Arc::ptr_eq(&entry.stream, stream)) {
            state.set_end(stream.name(), Some(super::now() + self.settings.grace));
            self.touch(&mut state, stream.name());
            // The grace timer may have to be set anew.
            self.changed.notify_one();
        }
    }
}

impl State {
    /// Sets or stops the grace time of a name.
    fn set_end(&mut self, name: &StreamName, ends: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let before = std::mem::replace(&mut entry.ends, ends);
        if let Some(at) = before {
            self.ends.remove(&(at, name.clone()));
        }
        self.ends.extend(ends.map(|at| (at, name.clone())));
    }

    fn remove(&mut self, name: &StreamName) {
        self.set_end(name, None);
        self.entries.remove(name);
    }
}

impl Entry {
    /// It has no source and no viewer, and [`Hub::demand`] has nothing to say of it.
    fn is_idle(&self) -> bool {
        self.viewers == 0 && !self.told && !self.stream.is_live()
    }
}

/// Somebody waits for or watches a stream. The interest ends when this is dropped.
#[derive(Debug)]
pub struct Interest {
    hub: Arc<Hub>,
    stream: Arc<Stream>,
    /// Nobody else was there when it came.
    first: bool,
    since: Instant,
}

impl Interest {
    /// The stream.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// The viewer gets its first picture, or sound.
    pub(super) fn has_picture(&self) {
        if self.hub.settings.for_nodes {
            return;
        }
        let after = super::now().saturating_duration_since(self.since);
        self.hub.metrics.first_picture.observe(after.as_secs_f64());
        if self.first {
            let note = Note::of(Happening::FirstPicture).session(self.stream.session()).after(after);
            self.hub.note(self.stream.name(), note);
        }
    }

    /// Waits until the stream is known: somebody brings it, whether or not anything of it has come yet. `Err`: it ended before,
    /// or nobody brought it in time. Safe to drop and call again.
    pub async fn known(&self) -> Result<(), End> {
        self.until(stream::State::is_live).await
    }

    /// Waits for something to show. `Err`: the stream ended before, or nothing came in time. Safe to drop and call again.
    pub async fn ready(&self) -> Result<(), End> {
        self.until(stream::State::can_start).await
    }

    async fn until(&self, condition: impl Fn(&stream::State) -> bool) -> Result<(), End> {
        let wait = async {
            loop {
                let changed = self.stream.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                {
                    let state = self.stream.lock();
                    if let Some(end) = &state.ended {
                        return Err(end.clone());
                    }
                    if condition(&state) {
                        return Ok(());
                    }
                }
                changed.await;
            }
        };
        // From the join on, so that a caller may drop this and call again.
        let deadline = self.since + self.hub.settings.start;
        let timeout = tokio::time::timeout_at(deadline.into(), wait);
        timeout.await.unwrap_or_else(|_| Err(End::Refused("the stream sends nothing".to_owned())))
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.hub.leave(&self.stream);
    }
}

/// The right to push into a stream, until another source of the same name takes it over. Dropping it starts the grace
/// time of the stream's viewers.
#[derive(Debug)]
pub struct Source {
    hub: Arc<Hub>,
    stream: Arc<Stream>,
    number: u64,
}

impl Source {
    /// Charges what the stream holds to somebody.
    pub fn charged_to(self, holder: &Holder) -> Self {
        self.stream.charge(self.number, holder);
        self
    }

    /// Says whether what it brings is another session than what came before, although it is the same pull.
    pub fn after_break(self, breaks: bool) -> Self {
        if breaks {
            self.stream.follows_break(self.number);
        }
        self
    }

    /// Says which publish it brings, for logs, and to viewers that wait that the stream is known. Without it they hear so with
    /// the first media.
    pub fn of_session(self, session: Option<SessionTag>) -> Self {
        self.stream.set_session(self.number, session);
        self
    }

    /// Hands packets on to all viewers.
    pub fn push(&self, packets: &[Packet]) {
        self.stream.push(self.number, packets, super::now());
    }
}

impl Outlet for Source {
    fn push(&mut self, packets: &[Packet]) {
        Source::push(self, packets);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.hub.detach(&self.stream, self.number);
    }
}
