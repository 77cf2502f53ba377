//! What this process saw of the owners of names: its answers while the store cannot be reached.

use crate::api::Change;
use crate::ids::{NodeId, Origin, SessionId, StreamName};
use crate::registry::{Claim, Lease, MAX_STREAMS};
use moka::sync::Cache;
use std::time::Duration;

/// The owners seen last; those longest unused are forgotten first.
#[derive(Debug)]
pub(super) struct Known(Cache<StreamName, Lease>);

impl Known {
    pub(super) fn new() -> Self {
        Known(Cache::new(MAX_STREAMS as u64))
    }

    pub(super) fn get(&self, name: &StreamName) -> Option<Lease> {
        self.0.get(name)
    }

    pub(super) fn saw(&self, lease: &Lease) {
        self.0.insert(lease.name.clone(), lease.clone());
    }

    /// A heartbeat's stream that owns its name. Nothing is written if nothing is new: heartbeats are many.
    pub(super) fn confirmed(
        &self,
        name: &StreamName,
        node: &NodeId,
        session: SessionId,
        epoch: u64,
        origin: &Origin,
    ) {
        let known = self.get(name);
        if known.is_some_and(|l| l.session == Some(session) && l.epoch == epoch && l.origin == *origin) {
            return;
        }
        self.saw(&Lease {
            name: name.clone(),
            origin: origin.clone(),
            session: Some(session),
            epoch,
            node: Some(node.clone()),
            age: Duration::ZERO,
            remaining: Duration::ZERO,
        });
    }

    pub(super) fn gone(&self, name: &StreamName) {
        self.0.invalidate(name);
    }

    /// Takes in a change that some reactor made. One that is older than what was seen is no news.
    pub(super) fn changed(&self, change: &Change) {
        let seen = self.get(&change.stream_name);
        if seen.as_ref().is_some_and(|lease| lease.epoch > change.epoch) {
            return;
        }
        match (&change.origin, seen) {
            (None, _) => self.gone(&change.stream_name),
            (Some(origin), Some(lease)) if lease.epoch == change.epoch => {
                self.saw(&Lease { origin: origin.clone(), ..lease });
            }
            (Some(origin), _) => self.saw(&Lease {
                name: change.stream_name.clone(),
                origin: origin.clone(),
                session: None,
                epoch: change.epoch,
                node: None,
                age: Duration::ZERO,
                remaining: Duration::ZERO,
            }),
        }
    }

    /// The lease that a claim would only renew. A plain node's claim renews what is pulled from the same place.
    pub(super) fn renewal(&self, claim: &Claim) -> Option<Lease> {
        let lease = self.get(&claim.name)?;
        let same =
            lease.session == claim.session && (claim.session.is_some() || lease.origin == claim.origin);
        same.then_some(lease)
    }
}
