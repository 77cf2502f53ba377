//! The pauses between tries.
//!
//! What is tried, and when it counts as healthy again, is known to whoever tries.

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use std::time::Duration;

/// Pauses that double from `first` to `most`, without end. Each is shortened by up to a half at random, so that many
/// nodes that lost one server do not come back in step. What works again begins anew with another of these.
pub fn pauses(first: Duration, most: Duration) -> ExponentialBackoff {
    // The crate's jitter lengthens a pause, by up to itself.
    ExponentialBuilder::new()
        .with_min_delay(first / 2)
        .with_max_delay(most / 2)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(rand::random())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_are_not_those_of_others() {
        let (first, most) = (Duration::from_millis(50), Duration::from_secs(5));
        let of_one: Vec<_> = pauses(first, most).take(20).collect();
        for (step, pause) in (0u32..).zip(&of_one) {
            let full = (first * 2u32.pow(step.min(10))).min(most);
            assert!(*pause >= full / 2 && *pause <= full, "{pause:?} of {full:?}");
        }
        assert_ne!(of_one, pauses(first, most).take(20).collect::<Vec<_>>());
    }
}
