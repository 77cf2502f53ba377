//! Two encoders with one key: each takes the name from the other, again and again. A contest counts such takeovers, and
//! holds the name for its owner when they come too often.

use std::time::Duration;
use tokio::time::Instant;

/// Takeovers that follow each other within this time belong together.
pub(super) const WINDOW: Duration = Duration::from_secs(30);

/// The takeover from which on the new owner is protected. Three in half a minute may be one publisher on a poor line,
/// whose old sessions are still half-open.
pub(super) const STRIKES: u32 = 4;

/// How long the first protection lasts; each further one lasts twice as long.
pub(super) const HOLD_MIN: Duration = Duration::from_secs(10);

/// The longest protection: an operator who ended one of the encoders should not wait longer.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(300);

/// The takeovers of one name while it has an owner.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Contest {
    strikes: u32,
    last: Option<Instant>,
    hold: Duration,
}

impl Contest {
    /// How much longer nobody may take the name.
    pub(super) fn held(&self, now: Instant) -> Option<Duration> {
        let until = self.last? + self.hold;
        (until > now).then(|| until - now)
    }

    /// The name went to another owner.
    pub(super) fn strike(&mut self, now: Instant) {
        let quiet = WINDOW + 2 * self.hold;
        let related = self.last.is_some_and(|last| now < last + quiet);
        self.strikes = if related { self.strikes.saturating_add(1) } else { 1 };
        self.last = Some(now);
        self.hold = hold(self.strikes);
    }
}

/// The protection after that many takeovers.
fn hold(strikes: u32) -> Duration {
    match strikes.checked_sub(STRIKES) {
        None => Duration::ZERO,
        Some(more) => HOLD_MIN.saturating_mul(1 << more.min(10)).min(HOLD_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_grows_while_the_fight_goes_on_and_ends_with_it() {
        let mut now = Instant::now();
        let mut contest = Contest::default();
        for _ in 1..STRIKES {
            assert_eq!(contest.held(now), None);
            contest.strike(now);
            now += Duration::from_secs(1);
        }
        let mut holds = Vec::new();
        for _ in 0..7 {
            contest.strike(now);
            let held = contest.held(now).unwrap();
            holds.push(held.as_secs());
            now += held;
            assert_eq!(contest.held(now), None, "free again when the time is over");
        }
        assert_eq!(holds, [10, 20, 40, 80, 160, 300, 300]);
        now += 2 * HOLD_MAX + WINDOW;
        contest.strike(now);
        assert_eq!(contest.held(now), None, "a quiet time ends the fight");
    }

    #[test]
    fn rare_takeovers_are_never_held() {
        let mut now = Instant::now();
        let mut contest = Contest::default();
        for _ in 0..20 {
            contest.strike(now);
            assert_eq!(contest.held(now), None);
            now += WINDOW;
        }
    }
}
