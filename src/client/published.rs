//! What is published on this node, as reactors are told.

use super::Agent;
use crate::api::PublishedStream;
use crate::ids::{SessionId, StreamName};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The publishes of a node. Shared by the steps that take them and the agent that tells reactors.
#[derive(Debug, Default)]
pub struct Published {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<SessionId, Session>,
    agent: Option<Arc<Agent>>,
}

#[derive(Debug)]
struct Session {
    name: StreamName,
    epoch: Option<u64>,
    accepted: bool,
    evict: Option<oneshot::Sender<String>>,
}

/// A publish in the list. Dropping it takes it off, and tells the reactor that the name is free.
#[derive(Debug)]
pub struct Registration {
    published: Arc<Published>,
    session: SessionId,
}

impl Published {
    /// Nothing is published.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Who tells reactors; nothing: nobody any more.
    pub fn set_agent(&self, agent: Option<Arc<Agent>>) {
        self.lock().agent = agent;
    }

    /// Adds a publish. `evict` resolves when a reactor says that another session owns the name.
    pub fn register(
        self: &Arc<Self>,
        name: &StreamName,
        session: SessionId,
        evict: oneshot::Sender<String>,
    ) -> Registration {
        let entry = Session { name: name.clone(), epoch: None, accepted: false, evict: Some(evict) };
        self.lock().sessions.insert(session, entry);
        Registration { published: self.clone(), session }
    }

    /// A reactor gave a session its epoch.
    pub fn set_epoch(&self, session: SessionId, epoch: u64) {
        if let Some(entry) = self.lock().sessions.get_mut(&session) {
            entry.epoch = Some(epoch);
        }
    }

    /// A reactor says that another session owns the name of this one.
    pub fn supersede(&self, session: SessionId) {
        if let Some(evict) = self.lock().sessions.get_mut(&session).and_then(|entry| entry.evict.take()) {
            // A publisher that just left needs no telling.
            drop(evict.send("another publisher took over this stream".to_owned()));
        }
    }

    /// Whether a name is published here by a session that is older than the one with this epoch, as far as is known.
    pub fn is_outdated(&self, name: &StreamName, epoch: u64) -> bool {
        let older = |entry: &Session| entry.name == *name && entry.epoch.is_none_or(|own| own < epoch);
        self.lock().sessions.values().any(older)
    }

    /// The accepted publishes, for a heartbeat.
    pub fn streams(&self) -> Vec<PublishedStream> {
        let state = self.lock();
        let accepted = state.sessions.iter().filter(|(_, entry)| entry.accepted);
        accepted
            .map(|(session, entry)| PublishedStream {
                stream_name: entry.name.clone(),
                session: *session,
                epoch: entry.epoch,
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// The publish's session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The publisher was let in.
    pub fn accepted(&self) {
        if let Some(entry) = self.published.lock().sessions.get_mut(&self.session) {
            entry.accepted = true;
        }
    }

    /// See [`Published::set_epoch`].
    pub fn set_epoch(&self, epoch: u64) {
        self.published.set_epoch(self.session, epoch);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let (entry, agent) = {
            let mut state = self.published.lock();
            (state.sessions.remove(&self.session), state.agent.clone())
        };
        if let (Some(entry), Some(agent)) = (entry, agent) {
            agent.release(entry.name, self.session);
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
        let registration = published.register(&"x".parse().unwrap(), session, evict);
        assert!(published.streams().is_empty());
        registration.accepted();
        registration.set_epoch(7);
        assert_eq!(published.streams()[0].epoch, Some(7));
        assert!(published.is_outdated(&"x".parse().unwrap(), 8));
        assert!(!published.is_outdated(&"x".parse().unwrap(), 7));
        assert!(!published.is_outdated(&"y".parse().unwrap(), 8));
        published.supersede(session);
        assert!(evicted.try_recv().unwrap().contains("took over"));
        drop(registration);
        assert!(published.streams().is_empty());
    }
}
