//! What this process saw of the owners of names: its answers while the store cannot be reached (stale fallback).

use super::{Claim, Lease, MAX_STREAMS};
use crate::api::Change;
use crate::ids::{NodeId, StreamName};
use moka::ops::compute::Op;
use moka::sync::Cache;
use std::sync::Arc;
use std::time::Duration;

/// The owners seen last; those longest unused are forgotten first.
#[derive(Debug)]
pub(super) struct Known(Cache<StreamName, Seen>);

#[derive(Clone, Debug)]
struct Seen {
    epoch: u64,
    /// Nothing: the name lost its owner. Kept so that an older answer that arrives late is recognised.
    lease: Option<Lease>,
}

impl Known {
    pub(super) fn new() -> Self {
        Known(Cache::new(MAX_STREAMS as u64))
    }

    pub(super) fn get(&self, name: &StreamName) -> Option<Lease> {
        self.0.get(name)?.lease
    }

    /// The node of the owner seen last.
    pub(super) fn node(&self, name: &StreamName) -> Option<NodeId> {
        self.get(name)?.node
    }

    /// Takes in what the store said of a name. What is older than what was seen is no news.
    pub(super) fn saw(&self, name: &StreamName, epoch: u64, lease: Option<Lease>) {
        self.0.entry_by_ref(name).and_compute_with(|seen| {
            match (seen.map(|seen| seen.into_value()), lease) {
                (Some(seen), _) if seen.epoch > epoch => Op::Nop,
                // A name that was never seen needs no telling that it has no owner.
                (None, None) => Op::Nop,
                (_, lease) => Op::Put(Seen { epoch, lease }),
            }
        });
    }

    /// Takes in a change that some reactor announced.
    pub(super) fn changed(&self, change: &Change) {
        let Change { stream_name: name, origin, epoch } = change;
        let lease = origin.as_ref().map(|origin| match self.get(name) {
            Some(lease) if lease.epoch == *epoch => Lease { origin: origin.clone(), ..lease },
            _ => Lease {
                name: name.clone(),
                origin: origin.clone(),
                session: None,
                epoch: *epoch,
                node: None,
                age: Duration::ZERO,
                remaining: Duration::ZERO,
            },
        });
        self.saw(name, *epoch, lease);
    }

    /// The names that something is known of.
    pub(super) fn names(&self) -> Vec<Arc<StreamName>> {
        self.0.iter().map(|(name, _)| name).collect()
    }

    /// Forgets a name that the store has no record of: its epochs begin anew.
    pub(super) fn forget(&self, name: &StreamName) {
        self.0.invalidate(name);
    }

    /// The lease that a claim would only renew. A plain node's claim renews what is pulled from the same place.
    pub(super) fn renewal(&self, claim: &Claim) -> Option<Lease> {
        let lease = self.get(&claim.name)?;
        let same =
            lease.session == claim.session && (claim.session.is_some() || lease.origin == claim.origin);
        same.then_some(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_answer_that_arrives_late_changes_nothing() {
        let (known, name) = (Known::new(), "x".parse::<StreamName>().unwrap());
        let change = |origin: Option<&str>, epoch| Change {
            stream_name: name.clone(),
            origin: origin.map(|origin| origin.parse().unwrap()),
            epoch,
        };
        let origin = || known.get(&name).map(|lease| lease.origin.to_string());
        known.changed(&change(Some("a"), 7));
        let late = known.get(&name);
        known.changed(&change(Some("b"), 8));
        known.saw(&name, 7, late.clone());
        assert_eq!(origin().as_deref(), Some("b"));
        known.changed(&change(None, 7));
        assert_eq!(origin().as_deref(), Some("b"), "nor the end of the older one");
        known.changed(&change(None, 8));
        known.saw(&name, 7, late);
        assert_eq!(origin(), None, "also when the newer one has ended");
    }
}
