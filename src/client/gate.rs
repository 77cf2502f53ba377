//! Keeps a log line that an outage repeats for each stream down to one in a while.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::time::Instant;

/// The time between two lines that pass one gate.
const PERIOD: Duration = Duration::from_secs(10);

/// Lets one line pass in ten seconds, and counts those it held back.
#[derive(Debug, Default)]
pub(super) struct LogGate(Mutex<(Option<Instant>, u64)>);

impl LogGate {
    /// Whether a line may be written now, and how many were held back since the last one.
    pub(super) fn pass(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, held_back) = &mut *state;
        if last.is_some_and(|last| last.elapsed() < PERIOD) {
            *held_back += 1;
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_passes_in_a_period_and_tells_what_was_held_back() {
        let gate = LogGate::default();
        assert_eq!(gate.pass(), Some(0));
        assert_eq!(gate.pass(), None);
        assert_eq!(gate.pass(), None);
        tokio::time::advance(PERIOD).await;
        assert_eq!(gate.pass(), Some(2));
    }
}
