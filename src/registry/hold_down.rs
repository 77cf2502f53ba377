//! Two publishers that take a name from each other, over and over: after some takeovers the owner is protected for a while.
//!
//! Pure: times are milliseconds on the clock of the server that keeps the record.

use super::millis::millis;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Takeovers that follow each other within this time belong together.
const WINDOW: Duration = Duration::from_secs(30);

/// The takeover from which on the new owner is protected. Three in half a minute may be one publisher on a poor line,
/// whose old sessions are still half-open.
pub(super) const TAKEOVERS_FREE: u32 = 4;

/// How long the first hold-down lasts; each further one lasts twice as long.
pub(super) const HOLD_MIN: Duration = Duration::from_secs(10);

/// The longest hold-down: an operator who ended one of the encoders should not wait longer.
const HOLD_MAX: Duration = Duration::from_secs(300);

/// Takeovers of one name that follow each other (two encoders with one key), and the time for which its owner is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HoldDown {
    pub takeovers: u32,
    pub last: u64,
    /// Milliseconds from `last` on in which nobody may take the name.
    pub hold: u64,
}

impl HoldDown {
    /// How much longer nobody may take the name.
    pub(super) fn left(&self, now: u64) -> Option<Duration> {
        // Another server's clock may be far behind.
        let left = self.last.saturating_add(self.hold).saturating_sub(now).min(self.hold);
        (left > 0).then(|| Duration::from_millis(left))
    }

    /// The name went to another owner.
    pub(super) fn count(&mut self, now: u64) {
        let quiet = millis(WINDOW).saturating_add(self.hold.saturating_mul(2));
        let related = self.takeovers > 0 && now < self.last.saturating_add(quiet);
        self.takeovers = if related { self.takeovers.saturating_add(1) } else { 1 };
        self.last = now;
        self.hold = match self.takeovers.checked_sub(TAKEOVERS_FREE) {
            None => 0,
            Some(more) => millis(HOLD_MIN.saturating_mul(1 << more.min(10)).min(HOLD_MAX)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hold_down_grows_while_the_fight_goes_on_and_ends_with_it() {
        let mut now = 1_000_000;
        let mut hold_down = HoldDown::default();
        for _ in 1..TAKEOVERS_FREE {
            assert_eq!(hold_down.left(now), None);
            hold_down.count(now);
            now += 1000;
        }
        let mut holds = Vec::new();
        for _ in 0..7 {
            hold_down.count(now);
            let left = hold_down.left(now).unwrap();
            holds.push(left.as_secs());
            now += millis(left);
            assert_eq!(hold_down.left(now), None, "free again when the time is over");
        }
        assert_eq!(holds, [10, 20, 40, 80, 160, 300, 300]);
        now += millis(2 * HOLD_MAX + WINDOW);
        hold_down.count(now);
        assert_eq!(hold_down.left(now), None, "a quiet time ends the fight");
    }

    #[test]
    fn rare_takeovers_are_never_held_down() {
        let mut now = 1_000_000;
        let mut hold_down = HoldDown::default();
        for _ in 0..20 {
            hold_down.count(now);
            assert_eq!(hold_down.left(now), None);
            now += millis(WINDOW);
        }
    }
}
