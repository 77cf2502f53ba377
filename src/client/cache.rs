//! The answers that a node keeps: the last good ones, as the fallback in an outage, and for a second the names that do not
//! exist (the negative cache).

use super::question::{Kind, Question};
use crate::ids::{Origin, SessionId, SessionTag, StreamName};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use std::sync::Arc;
use std::time::Duration;

/// The most that last good answers take, in bytes: about 100,000 of the usual size.
const GOOD_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What an entry takes beside its texts, in bytes, roughly.
const GOOD_BYTES_EACH: usize = 256;

/// How long a last good answer is kept that nobody asks for. Each use renews it: a stream that runs is asked for again
/// and again, and so outlives an outage of any length.
const GOOD_IDLE: Duration = Duration::from_secs(12 * 3600);

/// The most names in the negative cache.
const NEGATIVE_MAX: u64 = 10_000;

/// How long a name that was not found is answered without a call: enough to turn a herd into one call a second.
const NEGATIVE_TTL: Duration = Duration::from_secs(1);

/// The answers of one [`crate::client::Lookup`].
pub(super) struct Answers {
    good: Cache<(Kind, StreamName), Good>,
    negative: Cache<StreamName, Arc<str>>,
}

/// An answer that a reactor gave.
#[derive(Clone)]
pub(super) struct Good {
    pub(super) text: Arc<str>,
    pub(super) epoch: Option<u64>,
    pub(super) origin: Option<Origin>,
    /// Of the session that the answer is about.
    pub(super) tag: Option<SessionTag>,
    session: Option<SessionId>,
}

impl Answers {
    pub(super) fn new() -> Self {
        Answers::keeping(GOOD_IDLE)
    }

    fn keeping(idle: Duration) -> Self {
        let weigh = |key: &(Kind, StreamName), good: &Good| {
            let bytes = GOOD_BYTES_EACH + key.1.as_str().len() + good.text.len();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        // Least recently used: the youngest answers are of running streams and must always get in.
        let good = Cache::builder()
            .weigher(weigh)
            .max_capacity(GOOD_BYTES_MAX)
            .time_to_idle(idle)
            .eviction_policy(EvictionPolicy::lru());
        let negative = Cache::builder()
            .max_capacity(NEGATIVE_MAX)
            .time_to_live(NEGATIVE_TTL)
            .eviction_policy(EvictionPolicy::lru());
        Answers { good: good.build(), negative: negative.build() }
    }

    /// A reactor gave this answer.
    pub(super) fn found(
        &self,
        question: &Question,
        text: Arc<str>,
        epoch: Option<u64>,
        origin: Option<Origin>,
        tag: Option<SessionTag>,
    ) {
        self.negative.invalidate(&question.name);
        self.good.insert(question.key(), Good { text, epoch, origin, tag, session: question.session });
    }

    /// A reactor said that the stream is not there, or belongs to another publish: what was true is no longer. What
    /// is known of another session of the name stays.
    pub(super) fn gone(&self, question: &Question) {
        let key = question.key();
        if self.good.get(&key).is_some_and(|good| good.session == question.session) {
            self.good.invalidate(&key);
        }
    }

    /// A reactor does not know this name, for this reason.
    pub(super) fn not_found(&self, name: &StreamName, reason: Arc<str>) {
        self.negative.insert(name.clone(), reason);
    }

    /// There is news of this name: that it was not found means nothing any more.
    pub(super) fn changed(&self, name: &StreamName) {
        self.negative.invalidate(name);
    }

    /// Why this name was not found within the last second.
    pub(super) fn negative(&self, name: &StreamName) -> Option<Arc<str>> {
        self.negative.get(name)
    }

    /// The last good answer. A new publish of a known name gets the old one's, without its epoch.
    pub(super) fn last_good(&self, question: &Question) -> Option<Good> {
        let good = self.good.get(&question.key())?;
        let epoch = good.epoch.filter(|_| good.session == question.session);
        Some(Good { epoch, ..good })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn question(kind: Kind, name: &str, session: Option<SessionId>) -> Question {
        Question { kind, name: name.parse().unwrap(), session, body: "".into() }
    }

    #[test]
    fn a_good_answer_that_is_used_outlives_any_outage_and_one_that_is_not_leaves() {
        assert_eq!(Answers::new().good.policy().time_to_idle(), Some(GOOD_IDLE));
        assert_eq!(Answers::new().good.policy().time_to_live(), None);
        // The cache reads the system's clock, so the time here is real, and short.
        let idle = Duration::from_secs(1);
        let answers = Answers::keeping(idle);
        let (used, unused) = (question(Kind::Watcher, "x", None), question(Kind::Watcher, "y", None));
        answers.found(&used, "text".into(), Some(3), None, None);
        answers.found(&unused, "text".into(), Some(3), None, None);
        let begun = Instant::now();
        while begun.elapsed() < idle * 2 {
            assert_eq!(answers.last_good(&used).map(|good| good.epoch), Some(Some(3)));
            std::thread::sleep(idle / 50);
        }
        assert!(answers.last_good(&unused).is_none());
    }

    #[test]
    fn what_is_known_of_another_session_is_not_taken_for_ones_own() {
        let answers = Answers::new();
        let (old, new) = (SessionId::random(), SessionId::random());
        let (old, new) =
            (question(Kind::Publisher, "x", Some(old)), question(Kind::Publisher, "x", Some(new)));
        answers.found(&old, "".into(), Some(3), None, None);
        assert_eq!(answers.last_good(&old).and_then(|good| good.epoch), Some(3));
        assert_eq!(answers.last_good(&new).map(|good| good.epoch), Some(None));
        answers.gone(&new);
        assert!(answers.last_good(&old).is_some());
        answers.gone(&old);
        assert!(answers.last_good(&old).is_none());
        assert!(answers.last_good(&question(Kind::Watcher, "x", None)).is_none());
    }

    #[test]
    fn a_name_that_was_not_found_is_remembered_for_a_second_or_until_there_is_news() {
        let (answers, asked) = (Answers::new(), question(Kind::Watcher, "x", None));
        assert_eq!(answers.negative.policy().time_to_live(), Some(Duration::from_secs(1)));
        answers.not_found(&asked.name, "no".into());
        assert_eq!(answers.negative(&asked.name).as_deref(), Some("no"));
        answers.found(&asked, "".into(), None, None, None);
        assert_eq!(answers.negative(&asked.name), None);
        answers.not_found(&asked.name, "no".into());
        answers.changed(&asked.name);
        assert_eq!(answers.negative(&asked.name), None);
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_in_names() {
        let answers = Answers::new();
        let text: Arc<str> = "x".repeat(1024 * 1024).into();
        for n in 0..100 {
            let asked = question(Kind::Watcher, &format!("s{n}"), None);
            answers.found(&asked, text.clone(), None, None, None);
        }
        for n in 0..20_000 {
            answers.not_found(&format!("u{n}").parse().unwrap(), "no".into());
        }
        answers.good.run_pending_tasks();
        answers.negative.run_pending_tasks();
        assert!(answers.good.weighted_size() <= GOOD_BYTES_MAX);
        assert!(answers.negative.entry_count() <= NEGATIVE_MAX);
        assert!(answers.last_good(&question(Kind::Watcher, "s99", None)).is_some());
    }
}
