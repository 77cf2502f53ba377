//! Whether this process can do its work: a shared set of named conditions, each ready or not for a reason.
//!
//! The parts of a process register what they depend on and keep it up to date; the admin port and the service manager
//! read it. Knows nothing of HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The conditions of one process. Cheap to clone; all clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Option<String>>>>);

impl Health {
    /// A set without conditions, which is ready.
    pub fn new() -> Self {
        Health::default()
    }

    /// Adds a condition, not ready yet. A second condition of the same name is the same condition.
    pub fn register(&self, name: &str) -> Condition {
        self.conditions().entry(name.to_owned()).or_insert_with(|| Some("starting".to_owned()));
        Condition { health: self.clone(), name: name.to_owned() }
    }

    /// Whether all conditions are ready.
    pub fn is_ready(&self) -> bool {
        self.conditions().values().all(Option::is_none)
    }

    /// What is not ready and why, as `name: reason`, ordered by name.
    pub fn reasons(&self) -> Vec<String> {
        let conditions = self.conditions();
        conditions.iter().filter_map(|(name, reason)| Some(format!("{name}: {}", reason.as_ref()?))).collect()
    }

    fn conditions(&self) -> MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing that a process depends on.
#[derive(Clone, Debug)]
pub struct Condition {
    health: Health,
    name: String,
}

impl Condition {
    /// It works.
    pub fn set_ready(&self) {
        self.health.conditions().insert(self.name.clone(), None);
    }

    /// It does not, for a reason that is shown to people.
    pub fn set_unready(&self, reason: impl Into<String>) {
        self.health.conditions().insert(self.name.clone(), Some(reason.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_every_condition_is() {
        let health = Health::new();
        assert!(health.is_ready());
        let (rtmp, reactor) = (health.register("rtmp"), health.clone().register("reactor"));
        assert_eq!(health.reasons(), ["reactor: starting", "rtmp: starting"]);
        rtmp.set_ready();
        reactor.set_unready("no answer for 12 s");
        assert_eq!(health.reasons(), ["reactor: no answer for 12 s"]);
        assert!(!health.is_ready());
        reactor.set_ready();
        assert!(health.is_ready() && health.reasons().is_empty());
    }
}
