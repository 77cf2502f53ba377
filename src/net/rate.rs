//! How much of something a peer may send a second: a token bucket. Pure: time comes in as a value.

use std::time::Duration;
use tokio::time::Instant;

/// A burst of so many seconds' worth is taken at once: encoders send a group of pictures when they connect.
const BURST_SECONDS: f64 = 2.0;

/// See the module's head.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    /// What may be taken at once; below zero: what was taken too early.
    left: f64,
    at: Instant,
}

impl Rate {
    /// So much a second, and a burst of two seconds of it.
    pub fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second as f64;
        Rate { per_second, left: per_second * BURST_SECONDS, at: now }
    }

    /// Takes so much, and says how long to wait before anything more is taken; zero: no time.
    pub fn take(&mut self, amount: u64, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left =
            (self.left + passed * self.per_second).min(self.per_second * BURST_SECONDS) - amount as f64;
        Duration::try_from_secs_f64(-self.left / self.per_second).unwrap_or(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_after_it_the_rate_holds() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let mut rate = Rate::new(100, begun);
        assert_eq!(rate.take(200, at(0)), Duration::ZERO);
        assert_eq!(rate.take(50, at(0)), Duration::from_millis(500));
        assert_eq!(rate.take(0, at(500)), Duration::ZERO);
        assert_eq!(rate.take(100, at(1500)), Duration::ZERO);
        assert_eq!(rate.take(200, at(100_000)), Duration::ZERO, "an idle hour saves up no more than a burst");
        assert_eq!(rate.take(1, at(100_000)), Duration::from_millis(10));
    }
}
