//! What a node remembers of its lookups: the last good answers for an outage, and for a moment the names that do not exist.

use super::lookup::{Kind, Question};
use crate::ids::{Origin, SessionId, StreamName};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The most that last good answers take, in bytes: about 100,000 of the usual size.
const GOOD_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What an entry takes beside its texts, in bytes, roughly.
const GOOD_BYTES_EACH: usize = 256;

/// How long a last good answer is kept that nobody asks for. Each use renews it: a stream that runs is asked for again
/// and again, and so outlives an outage of any length.
const GOOD_FOR: Duration = Duration::from_secs(12 * 3600);

/// The most unknown names that are remembered.
const UNKNOWN_MAX: u64 = 10_000;

/// How long an unknown name is answered without a call: enough to turn a herd into one call a second.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);

type Key = (Kind, StreamName);

/// The memory of one [`super::Lookup`].
pub(super) struct Memory {
    good: Cache<Key, Good>,
    unknown: Cache<StreamName, (Instant, Arc<str>)>,
}

/// An answer that a reactor gave.
#[derive(Clone)]
pub(super) struct Good {
    pub(super) text: Arc<str>,
    pub(super) epoch: Option<u64>,
    pub(super) origin: Option<Origin>,
    session: Option<SessionId>,
    used: Arc<Mutex<Instant>>,
}

impl Memory {
    pub(super) fn new() -> Self {
        let weigh = |key: &Key, good: &Good| {
            let bytes = GOOD_BYTES_EACH + key.1.as_str().len() + good.text.len();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        // The youngest answers are of running streams: they must always get in.
        let good = Cache::builder()
            .weigher(weigh)
            .max_capacity(GOOD_BYTES_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let unknown =
            Cache::builder().max_capacity(UNKNOWN_MAX).eviction_policy(EvictionPolicy::lru()).build();
        Memory { good, unknown }
    }

    /// A reactor gave this answer.
    pub(super) fn found(
        &self,
        question: &Question,
        text: Arc<str>,
        epoch: Option<u64>,
        origin: Option<Origin>,
    ) {
        self.unknown.invalidate(&question.name);
        let good = Good { text, epoch, origin, session: question.session, used: now() };
        self.good.insert(question.key(), good);
    }

    /// A reactor said that the stream is not there, or belongs to another publish: what was true is no longer. What
    /// is known of another session of the name stays.
    pub(super) fn gone(&self, question: &Question) {
        let key = question.key();
        if self.good.get(&key).is_some_and(|good| good.session == question.session) {
            self.good.invalidate(&key);
        }
    }

    /// Remembers for a moment that a reactor does not know this name.
    pub(super) fn unknown(&self, name: &StreamName, reason: Arc<str>) {
        self.unknown.insert(name.clone(), (Instant::now(), reason));
    }

    /// Forgets that a name was not found a moment ago.
    pub(super) fn forget_unknown(&self, name: &StreamName) {
        self.unknown.invalidate(name);
    }

    /// Why a name was not found a moment ago.
    pub(super) fn was_unknown(&self, name: &StreamName) -> Option<Arc<str>> {
        let (since, reason) = self.unknown.get(name)?;
        (since.elapsed() < UNKNOWN_FOR).then_some(reason)
    }

    /// The last good answer. A new publish of a known name gets the old one's, without its epoch.
    pub(super) fn last_good(&self, question: &Question) -> Option<Good> {
        let key = question.key();
        let good = self.good.get(&key)?;
        let used = std::mem::replace(&mut *lock(&good.used), Instant::now());
        if used.elapsed() >= GOOD_FOR {
            self.good.invalidate(&key);
            return None;
        }
        let epoch = good.epoch.filter(|_| good.session == question.session);
        Some(Good { epoch, ..good })
    }
}

fn now() -> Arc<Mutex<Instant>> {
    Arc::new(Mutex::new(Instant::now()))
}

fn lock(used: &Mutex<Instant>) -> MutexGuard<'_, Instant> {
    used.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const HOUR: Duration = Duration::from_secs(3600);

    fn question(kind: Kind, name: &str, session: Option<SessionId>) -> Question {
        Question { kind, name: name.parse().unwrap(), session, body: String::new(), refresh: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_answer_that_is_used_survives_any_outage() {
        let (memory, running) = (Memory::new(), question(Kind::Watcher, "x", None));
        memory.found(&running, "text".into(), Some(3), None);
        for _ in 0..10 {
            advance(11 * HOUR).await;
            assert_eq!(memory.last_good(&running).map(|good| good.epoch), Some(Some(3)));
        }
        advance(12 * HOUR).await;
        assert!(memory.last_good(&running).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_another_session_is_not_taken_for_ones_own() {
        let memory = Memory::new();
        let (old, new) = (SessionId::random(), SessionId::random());
        let (old, new) =
            (question(Kind::Publisher, "x", Some(old)), question(Kind::Publisher, "x", Some(new)));
        memory.found(&old, "".into(), Some(3), None);
        assert_eq!(memory.last_good(&old).and_then(|good| good.epoch), Some(3));
        assert_eq!(memory.last_good(&new).map(|good| good.epoch), Some(None));
        memory.gone(&new);
        assert!(memory.last_good(&old).is_some());
        memory.gone(&old);
        assert!(memory.last_good(&old).is_none());
        assert!(memory.last_good(&question(Kind::Watcher, "x", None)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_name_is_remembered_for_a_second_or_until_there_is_news() {
        let (memory, asked) = (Memory::new(), question(Kind::Watcher, "x", None));
        memory.unknown(&asked.name, "no".into());
        advance(UNKNOWN_FOR - Duration::from_millis(1)).await;
        assert_eq!(memory.was_unknown(&asked.name).as_deref(), Some("no"));
        advance(Duration::from_millis(1)).await;
        assert_eq!(memory.was_unknown(&asked.name), None);
        memory.unknown(&asked.name, "no".into());
        memory.found(&asked, "".into(), None, None);
        assert_eq!(memory.was_unknown(&asked.name), None);
        memory.unknown(&asked.name, "no".into());
        memory.forget_unknown(&asked.name);
        assert_eq!(memory.was_unknown(&asked.name), None);
    }

    #[tokio::test]
    async fn memory_is_bounded_in_bytes_and_in_names() {
        let memory = Memory::new();
        let text: Arc<str> = "x".repeat(1024 * 1024).into();
        for n in 0..100 {
            let asked = question(Kind::Watcher, &format!("s{n}"), None);
            memory.found(&asked, text.clone(), None, None);
        }
        for n in 0..20_000 {
            memory.unknown(&format!("u{n}").parse().unwrap(), "no".into());
        }
        memory.good.run_pending_tasks();
        memory.unknown.run_pending_tasks();
        assert!(memory.good.weighted_size() <= GOOD_BYTES_MAX);
        assert!(memory.unknown.entry_count() <= UNKNOWN_MAX);
        assert!(memory.last_good(&question(Kind::Watcher, "s99", None)).is_some());
    }
}
