//! Delays with jitter, so that many nodes that lost one reactor do not come back in step.

use std::time::Duration;

/// Delays that double from a least to a greatest one, each shortened by up to a half at random.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Backoff { min, max, next: min }
    }

    /// The delay before the next try.
    pub(super) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.max);
        delay.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// What was tried works: begin with the least delay again.
    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }
}

/// A time that is up to a tenth shorter or longer.
pub(super) fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.9..=1.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_their_limit_and_begin_again() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        for step in 0..20 {
            let full = (min * 2u32.pow(step.min(10))).min(max);
            let delay = backoff.delay();
            assert!(delay >= full / 2 && delay <= full, "{delay:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= min);
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1000 {
            let time = jittered(Duration::from_secs(10));
            assert!(time >= Duration::from_secs(9) && time <= Duration::from_secs(11));
        }
    }
}
