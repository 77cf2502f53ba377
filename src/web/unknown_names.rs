//! How many names that are not published an address may ask for: beyond it, the answer comes later.
//!
//! A node asks for such a name once a second, however many of its viewers want it, and waits for its answer. Who asks without end, one
//! name after another, gets an answer after another as well, and costs the reactor no more than that. Names that are published
//! are answered at once, whoever asks.

use super::door::Caller;
use crate::net::customer;
use crate::net::rate::Rate;
use moka::sync::Cache;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Answers a second for an address (IPv6: for one /64), after a burst of two seconds of them.
const A_SECOND: u64 = 1_000;

/// The longest that an answer is held back: nodes give up after 2 s.
const LONGEST: Duration = Duration::from_secs(1);

/// The most addresses that are kept account of, and for how long after they asked: by then they have a burst again.
const ADDRESSES: u64 = 10_000;
const KEPT: Duration = Duration::from_secs(5);

/// See the module's head.
#[derive(Debug)]
pub(super) struct UnknownNames(Cache<IpAddr, Arc<Mutex<Rate>>>);

impl UnknownNames {
    pub fn new() -> Self {
        UnknownNames(Cache::builder().max_capacity(ADDRESSES).time_to_idle(KEPT).build())
    }

    /// Somebody asked for one: how long its answer is held back. Who shows the token is a node, and no stranger.
    pub fn asked(&self, caller: Caller) -> Duration {
        if caller.proven {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let rate =
            self.0.get_with(customer(caller.source), || Arc::new(Mutex::new(Rate::new(A_SECOND, now))));
        let wait = rate.lock().unwrap_or_else(PoisonError::into_inner).take(1, now);
        // Not all at once: they would all be back at once.
        if wait > LONGEST { LONGEST.mul_f64(rand::random_range(0.5..=1.0)) } else { wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(source: &str, proven: bool) -> Caller {
        Caller { source: source.parse().unwrap(), proven }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_one_such_name_after_another_waits_and_nobody_else() {
        let names = UnknownNames::new();
        let stranger = caller("192.0.2.1", false);
        for _ in 0..2 * A_SECOND {
            assert_eq!(names.asked(stranger), Duration::ZERO);
        }
        assert_eq!(names.asked(stranger), Duration::from_millis(1));
        (0..10 * A_SECOND).for_each(|_| assert!(names.asked(stranger) <= LONGEST));
        assert!((LONGEST / 2..=LONGEST).contains(&names.asked(stranger)));
        assert_eq!(names.asked(caller("192.0.2.2", false)), Duration::ZERO);
        // Whoever has a network of IPv6 addresses is one of them.
        for number in 0..3 * A_SECOND {
            assert!(names.asked(caller(&format!("2001:db8::{number:x}"), false)) <= LONGEST);
        }
        assert!(names.asked(caller("2001:db8::ffff:1", false)) > Duration::ZERO);
        assert_eq!(names.asked(caller("192.0.2.1", true)), Duration::ZERO);
    }
}
