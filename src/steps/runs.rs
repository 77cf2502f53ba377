//! Which workflows run for a followed name, and on whose account.
//!
//! A publisher and those who want its stream routed may follow one name at one reactor, and both are answered with the
//! same workflows: they run once, and end when the last of them wants them no longer. A name that is dropped and wanted
//! again is another run, with names of its own, so that the end of the first cannot hurt the second. Pure bookkeeping: it
//! starts and stops nothing.

use crate::ids::StreamName;
use std::collections::HashMap;
use std::sync::Arc;

/// Stands between a workflow's name and the number of its run.
const SEPARATOR: char = '~';

/// A stream name at a reactor.
pub type Followed = (String, StreamName);

/// See the module's head. `F` is whoever follows.
#[derive(Debug)]
pub struct Runs<F> {
    runs: HashMap<Followed, Run<F>>,
    by_number: HashMap<u64, Followed>,
    next: u64,
}

#[derive(Debug)]
struct Run<F> {
    number: u64,
    followers: Vec<Arc<F>>,
    /// The workflows, and how many followers want each.
    wanted: HashMap<Arc<String>, usize>,
}

impl<F> Default for Runs<F> {
    fn default() -> Self {
        Runs { runs: HashMap::new(), by_number: HashMap::new(), next: 0 }
    }
}

impl<F> Runs<F> {
    /// Somebody follows a name. Says the number of the run.
    pub fn join(&mut self, followed: &Followed, follower: Arc<F>) -> u64 {
        let next = &mut self.next;
        let run = self.runs.entry(followed.clone()).or_insert_with(|| {
            *next += 1;
            Run { number: *next, followers: Vec::new(), wanted: HashMap::new() }
        });
        run.followers.push(follower);
        self.by_number.insert(run.number, followed.clone());
        run.number
    }

    /// Somebody follows no longer, and wants no workflow any more.
    pub fn leave(&mut self, followed: &Followed, follower: &Arc<F>) {
        let Some(run) = self.runs.get_mut(followed) else { return };
        run.followers.retain(|other| !Arc::ptr_eq(other, follower));
        if run.followers.is_empty() {
            self.by_number.remove(&run.number);
            self.runs.remove(followed);
        }
    }

    /// A follower wants other workflows than before. Says which ones nobody wants any more.
    pub fn change(
        &mut self,
        followed: &Followed,
        before: &[Arc<String>],
        after: &[Arc<String>],
    ) -> Vec<Arc<String>> {
        let Some(run) = self.runs.get_mut(followed) else { return before.to_vec() };
        for name in after {
            *run.wanted.entry(name.clone()).or_insert(0) += 1;
        }
        let mut unwanted = Vec::new();
        for name in before {
            if let Some(count) = run.wanted.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    run.wanted.remove(name);
                    unwanted.push(name.clone());
                }
            }
        }
        unwanted
    }

    /// Who follows the name that a workflow runs for, if it runs for one.
    pub fn followers(&self, workflow: &str) -> &[Arc<F>] {
        let number = workflow.rsplit_once(SEPARATOR).and_then(|(_, number)| number.parse().ok());
        let followed = number.and_then(|number: u64| self.by_number.get(&number));
        followed.and_then(|followed| self.runs.get(followed)).map_or(&[], |run| &run.followers)
    }
}

/// The name of a workflow in a run.
pub fn name(workflow: &str, run: u64) -> Arc<String> {
    Arc::new(format!("{workflow}{SEPARATOR}{run}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workflow_runs_for_as_long_as_anybody_wants_it_and_another_run_has_other_names() {
        let mut runs = Runs::default();
        let followed = ("r".to_owned(), "x".parse().unwrap());
        let (one, two) = (Arc::new(1), Arc::new(2));
        let first = runs.join(&followed, one.clone());
        assert_eq!(runs.join(&followed, two.clone()), first, "the same run");
        let (w, v) = (name("w", first), name("v", first));
        assert!(runs.change(&followed, &[], std::slice::from_ref(&w)).is_empty());
        assert!(runs.change(&followed, &[], &[w.clone(), v.clone()]).is_empty());
        assert_eq!(runs.followers(&w), [one.clone(), two.clone()]);
        let running = w.clone();
        assert!(runs.change(&followed, std::slice::from_ref(&w), &[]).is_empty(), "the other wants it");
        runs.leave(&followed, &one);
        assert_eq!(runs.change(&followed, &[w.clone(), v.clone()], std::slice::from_ref(&v)), [w]);
        assert_eq!(runs.change(&followed, std::slice::from_ref(&v), &[]), [v]);
        runs.leave(&followed, &two);
        assert!(runs.followers(&running).is_empty() && runs.followers("configured").is_empty());
        assert_ne!(runs.join(&followed, two), first);
    }
}
