//! Whether this process can do its work: a shared set of named conditions, each ready or not for a reason.
//!
//! The parts of a process register what they depend on and keep it up to date; the admin port and the service manager
//! read it. Knows nothing of HTTP.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The conditions of one process. Cheap to clone; all clones are the same set.
#[derive(Clone, Default)]
pub struct Health {
    conditions: Arc<Mutex<BTreeMap<String, Option<String>>>>,
    looks: Arc<Mutex<BTreeMap<String, Arc<Look>>>>,
}

type Look = dyn Fn() -> Verdict + Send + Sync;

/// What a look at something finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Ready,
    /// It works well enough; what is to be known about it.
    Remark(String),
    /// It does not, for a reason that is shown to people.
    Unready(String),
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("reasons", &self.reasons()).finish_non_exhaustive()
    }
}

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

    /// Adds something that is looked at whenever somebody asks. `look` must not block.
    pub fn look(&self, name: &str, look: impl Fn() -> Verdict + Send + Sync + 'static) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.insert(name.to_owned(), Arc::new(look));
    }

    /// Whether all conditions are ready.
    pub fn is_ready(&self) -> bool {
        self.reasons().is_empty()
    }

    /// What is not ready and why, as `name: reason`: the conditions ordered by name, then what is looked at.
    pub fn reasons(&self) -> Vec<String> {
        let line = |(name, reason): (&String, &Option<String>)| Some(format!("{name}: {}", reason.as_ref()?));
        let mut reasons: Vec<String> = self.conditions().iter().filter_map(line).collect();
        reasons.extend(self.verdicts().into_iter().filter_map(|(name, verdict)| match verdict {
            Verdict::Unready(reason) => Some(format!("{name}: {reason}")),
            Verdict::Ready | Verdict::Remark(_) => None,
        }));
        reasons
    }

    /// What is to be known of what is ready, as `name: remark`.
    pub fn remarks(&self) -> Vec<String> {
        let remark = |(name, verdict)| match verdict {
            Verdict::Remark(remark) => Some(format!("{name}: {remark}")),
            Verdict::Ready | Verdict::Unready(_) => None,
        };
        self.verdicts().into_iter().filter_map(remark).collect()
    }

    fn verdicts(&self) -> Vec<(String, Verdict)> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        looks.into_iter().map(|(name, look)| (name, look())).collect()
    }

    fn conditions(&self) -> MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
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
        health.look("store", || Verdict::Remark("it is slow".to_owned()));
        assert_eq!((health.is_ready(), health.remarks()), (true, vec!["store: it is slow".to_owned()]));
        health.clone().look("store", || Verdict::Unready("it is away".to_owned()));
        assert_eq!((health.reasons(), health.remarks()), (vec!["store: it is away".to_owned()], Vec::new()));
    }
}
