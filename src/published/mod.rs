//! What is published on this node, from the moment a publisher asks until it leaves.
//!
//! Steps register publishes; the agent ([`crate::client::Agent`]) takes from here what it has to tell reactors, and
//! gives back what they say. Neither knows of the other, and this knows of neither: it calls back when a publish ends,
//! and is asked for everything else.

mod roster;

pub use roster::{ENDED_KEPT, Next, Occasion, Report};

use crate::api::{HeartbeatReply, PublishedStream, PublisherRelease};
use crate::ids::{Identity, SessionId, StreamName};
use roster::Roster;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The publishes of a node. Shared by the steps that take them and the agent that tells reactors.
#[derive(Debug)]
pub struct Published {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sessions: HashMap<SessionId, Session>,
    /// The sessions of each name: one, and for a moment two when a publisher comes back.
    names: HashMap<StreamName, Vec<SessionId>>,
    /// Those that were let in.
    roster: Roster,
    on_end: Option<Hook>,
}

#[derive(Debug)]
struct Session {
    name: StreamName,
    identity: Option<Identity>,
    stage: Stage,
    standing: Standing,
    evict: Option<oneshot::Sender<String>>,
}

/// Who decides about a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A reactor was asked or is to be.
    Asked,
    /// The configuration names none: the node lets it in by itself.
    Alone,
}

#[derive(Debug)]
enum Stage {
    /// Whether it may publish is not answered yet.
    Asking { epoch: Option<u64> },
    /// It was let in, and is in the roster.
    Listed,
}

#[derive(Clone)]
struct Hook(Arc<dyn Fn(PublisherRelease) + Send + Sync>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

/// A publish in the list. Dropping it takes it off, and the name is free.
#[derive(Debug)]
pub struct Registration {
    published: Arc<Published>,
    session: SessionId,
}

impl Published {
    /// Nothing is published.
    pub fn new() -> Arc<Self> {
        let state =
            State { sessions: HashMap::new(), names: HashMap::new(), roster: Roster::new(), on_end: None };
        Arc::new(Published { state: Mutex::new(state) })
    }

    /// Calls `hook` for each publish that ends from now on. It takes the place of an earlier one. It is called by
    /// whoever drops a [`Registration`] and must not block.
    pub fn on_end(&self, hook: impl Fn(PublisherRelease) + Send + Sync + 'static) {
        self.lock().on_end = Some(Hook(Arc::new(hook)));
    }

    /// Adds a publish. `evict` resolves when a reactor says that another session owns the name.
    pub fn register(
        self: &Arc<Self>,
        name: &StreamName,
        session: SessionId,
        identity: Option<Identity>,
        evict: oneshot::Sender<String>,
    ) -> Registration {
        let stage = Stage::Asking { epoch: None };
        let mut state = self.lock();
        let (name_of, standing, evict) = (name.clone(), Standing::Asked, Some(evict));
        state.sessions.insert(session, Session { name: name_of, identity, stage, standing, evict });
        state.names.entry(name.clone()).or_default().push(session);
        Registration { published: self.clone(), session }
    }

    /// A lookup gave a session its epoch.
    pub fn set_epoch(&self, session: SessionId, new: u64) {
        let State { sessions, roster, .. } = &mut *self.lock();
        match sessions.get_mut(&session).map(|entry| &mut entry.stage) {
            Some(Stage::Asking { epoch }) => *epoch = Some(new),
            Some(Stage::Listed) => roster.set_epoch(session, new),
            None => {}
        }
    }

    /// Who decides about a publish; nothing: it has ended.
    pub fn standing(&self, session: SessionId) -> Option<Standing> {
        Some(self.lock().sessions.get(&session)?.standing)
    }

    /// A publish is pushed to other servers from now on, or no longer. Heartbeats name it, also when its publisher has left.
    pub fn set_pushing(&self, name: &StreamName, session: SessionId, pushing: bool) {
        self.lock().roster.set_pushing(name, session, pushing);
    }

    /// Changes of ownership were missed. The next heartbeat names what is pushed to other servers, so that a reactor says what
    /// is to end.
    pub fn changes_missed(&self) {
        self.lock().roster.mark_pushing();
    }

    /// A reactor says that another session owns the name of this one.
    pub fn supersede(&self, session: SessionId) {
        self.lock().supersede(session);
    }

    /// The name belongs to a session with this epoch now. Sessions of it that are published here and are older, as far
    /// as is known, are in the next heartbeat, so that a reactor says what becomes of them; false if there are none.
    pub fn changed_hands(&self, name: &StreamName, epoch: u64) -> bool {
        let State { sessions, names, roster, .. } = &mut *self.lock();
        let mut any = false;
        for session in names.get(name).into_iter().flatten() {
            let own = match sessions.get(session).map(|entry| &entry.stage) {
                Some(Stage::Asking { epoch }) => *epoch,
                Some(Stage::Listed) => roster.epoch(*session),
                None => continue,
            };
            if own.is_none_or(|own| own < epoch) {
                roster.mark(*session);
                any = true;
            }
        }
        any
    }

    /// All publishes that were let in, in no order of meaning.
    pub fn streams(&self) -> Vec<PublishedStream> {
        self.lock().roster.iter().collect()
    }

    /// What the next heartbeat says. It counts as told only once [`Published::answered`] is called; the next report
    /// carries it again otherwise.
    pub fn report(&self, occasion: Occasion) -> Report {
        self.lock().roster.next(occasion)
    }

    /// A reactor answered the last report: takes over epochs, evicts those that are superseded, and says what is to be
    /// told next.
    pub fn answered(&self, reply: &HeartbeatReply) -> Next {
        let mut state = self.lock();
        reply.superseded.iter().for_each(|lost| state.supersede(lost.session));
        state.roster.answered(reply)
    }

    /// Nobody was told anything, or those who were do not matter any more: what ended is not kept, and the next reports
    /// carry everything that is published.
    pub fn start_over(&self) {
        self.lock().roster.start_over();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn supersede(&mut self, session: SessionId) {
        if let Some(evict) = self.sessions.get_mut(&session).and_then(|entry| entry.evict.take()) {
            // A publisher that just left needs no telling.
            drop(evict.send("another publisher took over this stream".to_owned()));
        }
    }

    fn remove(&mut self, session: SessionId) -> Option<PublisherRelease> {
        let stream_name = self.sessions.remove(&session)?.name;
        if let Some(sessions) = self.names.get_mut(&stream_name) {
            sessions.retain(|other| *other != session);
            if sessions.is_empty() {
                self.names.remove(&stream_name);
            }
        }
        let release = PublisherRelease { stream_name, session };
        // Also one that was not let in: the question alone claims the name, and its answer may have been lost.
        self.roster.end(release.clone());
        Some(release)
    }
}

impl Registration {
    /// The publish's session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The publisher was let in.
    pub fn accepted(&self) {
        let State { sessions, roster, .. } = &mut *self.published.lock();
        let Some(entry) = sessions.get_mut(&self.session) else {
            return;
        };
        if let Stage::Asking { epoch } = std::mem::replace(&mut entry.stage, Stage::Listed) {
            roster.insert(self.session, entry.name.clone(), epoch, entry.identity);
        }
    }

    /// No reactor is asked about it.
    pub fn stands_alone(&self) {
        if let Some(entry) = self.published.lock().sessions.get_mut(&self.session) {
            entry.standing = Standing::Alone;
        }
    }

    /// See [`Published::set_epoch`].
    pub fn set_epoch(&self, epoch: u64) {
        self.published.set_epoch(self.session, epoch);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let (release, hook) = {
            let mut state = self.published.lock();
            (state.remove(self.session), state.on_end.clone())
        };
        if let (Some(release), Some(Hook(hook))) = (release, hook) {
            hook(release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_listed_from_its_acceptance_to_its_end() {
        let published = Published::new();
        let (evict, mut evicted) = oneshot::channel();
        let session = SessionId::random();
        let registration = published.register(&"x".parse().unwrap(), session, None, evict);
        assert!(published.streams().is_empty());
        registration.accepted();
        registration.set_epoch(7);
        assert_eq!(published.streams()[0].epoch, Some(7));
        assert!(published.changed_hands(&"x".parse().unwrap(), 8));
        assert!(!published.changed_hands(&"x".parse().unwrap(), 7));
        assert!(!published.changed_hands(&"y".parse().unwrap(), 8));
        published.supersede(session);
        assert!(evicted.try_recv().unwrap().contains("took over"));
        drop(registration);
        assert!(published.streams().is_empty());
        assert!(!published.changed_hands(&"x".parse().unwrap(), 8));
    }

    #[test]
    fn every_end_is_told_also_of_a_publisher_that_was_not_let_in() {
        let published = Published::new();
        let (told, heard) = std::sync::mpsc::channel();
        published.on_end(move |release| told.send(release).unwrap());
        for accepted in [false, true] {
            let session = SessionId::random();
            let registration = published.register(&"x".parse().unwrap(), session, None, oneshot::channel().0);
            if accepted {
                registration.accepted();
            }
            drop(registration);
            assert_eq!(heard.try_recv().unwrap().session, session);
            assert_eq!(published.report(Occasion::Early).ended.last().unwrap().session, session);
        }
    }
}
