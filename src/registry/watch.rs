//! What one sweep of a registry has to know of the one before: who was heard, and which leases are over when.

use super::MAX_STREAMS;
use super::record::Listed;
use super::rules::Nodes;
use crate::ids::{NodeId, SessionId, StreamName};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// How often is looked.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// What one sweep has to know of the one before.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub sweeps: u64,
    /// The store was reached, and in which generation.
    pub generation: Option<u64>,
    /// It cannot be reached, and this was said.
    pub outage: bool,
    /// All streams have to be looked through.
    pub look: bool,
    /// The nodes that were heard, and the list that is complete.
    pub heard: HashMap<NodeId, (Option<SessionId>, Option<Listed>)>,
    pub leases: Leases,
}

/// Leases that no node keeps, by the sweep in which they are over. No more than [`MAX_STREAMS`]; those beyond are found
/// when all streams are looked through.
#[derive(Debug, Default)]
pub(super) struct Leases {
    over: HashMap<StreamName, u64>,
    order: BTreeSet<(u64, StreamName)>,
}

impl Leases {
    fn remove(&mut self, name: &StreamName) {
        if let Some((name, sweep)) = self.over.remove_entry(name) {
            self.order.remove(&(sweep, name));
        }
    }

    fn insert(&mut self, name: &StreamName, sweep: u64) {
        self.remove(name);
        if self.over.len() < MAX_STREAMS {
            self.over.insert(name.clone(), sweep);
            self.order.insert((sweep, name.clone()));
        }
    }

    pub fn over(&mut self, sweep: u64) -> Vec<StreamName> {
        let mut names = Vec::new();
        while let Some((_, name)) = self.order.first().filter(|(over, _)| *over <= sweep).cloned() {
            self.remove(&name);
            names.push(name);
        }
        names
    }
}

impl Watch {
    /// A name is leased for so many milliseconds; nothing: it is not, or a node keeps it.
    pub(super) fn lease(&mut self, name: &StreamName, left: Option<u64>) {
        match left {
            Some(left) => {
                let interval = SWEEP_INTERVAL.as_millis() as u64;
                self.leases.insert(name, self.sweeps.saturating_add(left / interval + 1));
            }
            None => self.leases.remove(name),
        }
    }

    /// Takes in which nodes are heard now. Says whether streams may have lost theirs.
    pub(super) fn nodes(&mut self, nodes: &Nodes) -> bool {
        let heard = nodes.iter().filter_map(|(node, heard)| {
            let record = &heard.as_ref()?.record;
            Some((node.clone(), (record.instance, record.listed().filter(|_| record.complete))))
        });
        let heard: HashMap<_, _> = heard.collect();
        let lost = self.heard.iter().any(|(node, (instance, listed))| match heard.get(node) {
            Some((now, complete)) => now != instance || (complete.is_some() && complete != listed),
            None => true,
        });
        self.heard = heard;
        lost
    }
}
