//! Things that ended and are remembered for a fixed time, so that their echo is recognised.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;
use tokio::time::Instant;

/// The most things remembered of one sort; beyond it the oldest are forgotten first. 200,000 publishes an hour is
/// 55 a second.
const ENDED_MAX: usize = 200_000;

/// A set whose members leave by themselves after a fixed time.
#[derive(Debug)]
pub(super) struct Ended<K> {
    memory: Duration,
    until: HashMap<K, Instant>,
    order: VecDeque<(Instant, K)>,
}

impl<K: Clone + Eq + Hash> Ended<K> {
    pub(super) fn new(memory: Duration) -> Self {
        Ended { memory, until: HashMap::new(), order: VecDeque::new() }
    }

    pub(super) fn insert(&mut self, key: K, now: Instant) {
        let until = now + self.memory;
        self.until.insert(key.clone(), until);
        self.order.push_back((until, key));
        while self.order.len() > ENDED_MAX {
            self.drop_oldest();
        }
    }

    pub(super) fn contains(&self, key: &K, now: Instant) -> bool {
        self.until.get(key).is_some_and(|until| *until > now)
    }

    /// Forgets a member and says whether it was one.
    pub(super) fn remove(&mut self, key: &K, now: Instant) -> bool {
        self.until.remove(key).is_some_and(|until| until > now)
    }

    /// Frees the memory of members that have left.
    pub(super) fn sweep(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        // A key that was inserted again has a later line in the queue: only its own line may end it.
        if let Some((until, key)) = self.order.pop_front()
            && self.until.get(&key) == Some(&until)
        {
            self.until.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_leave_after_their_time_and_a_second_insert_prolongs_it() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut ended = Ended::new(10 * second);
        ended.insert("a", start);
        ended.insert("b", start);
        ended.insert("a", start + 5 * second);
        ended.sweep(start + 12 * second);
        assert!(ended.contains(&"a", start + 12 * second));
        assert!(!ended.contains(&"b", start + 12 * second));
        assert!(!ended.contains(&"a", start + 15 * second), "also before a sweep");
        ended.sweep(start + 15 * second);
        assert!(ended.until.is_empty() && ended.order.is_empty());
        ended.insert("c", start);
        assert!(ended.remove(&"c", start) && !ended.remove(&"c", start));
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut ended = Ended::new(Duration::from_secs(1));
        for key in 0..=ENDED_MAX {
            ended.insert(key, now);
        }
        assert!(!ended.contains(&0, now) && ended.contains(&ENDED_MAX, now));
        assert_eq!(ended.order.len(), ENDED_MAX);
    }
}
