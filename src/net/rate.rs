//! How much of something a peer may send a second: a token bucket, and what a peer may send that does not publish.
//! Time comes in as a value.

use super::low_water::ANY_BYTE;
use super::transport::Transport;
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

/// Reads a second of a peer that does not publish, after a burst of two seconds of them. What it sends meanwhile waits in its socket, and
/// comes in one read: it costs a few bytes to have the node wake up for it, and players have next to nothing to say.
const IDLE_READS: u64 = 15;

/// The low-water mark of a socket that is not read at the moment (SO_RCVLOWAT): more than a player says in that time.
const PAUSED: usize = 16 << 10;

/// What a peer may send that does not publish, and how often it is read.
#[derive(Debug)]
pub(super) struct Idle {
    bytes: Rate,
    reads: Rate,
    /// When it is read again; nothing: at once.
    next: Option<Instant>,
}

impl Idle {
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        Idle { bytes: Rate::new(bytes_per_second, now), reads: Rate::new(IDLE_READS, now), next: None }
    }

    /// It was read. `false`: it has sent more than it may.
    #[must_use]
    pub fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let wait = self.reads.take(1, now);
        self.next = (!wait.is_zero()).then(|| now + wait);
        self.bytes.take(bytes as u64, now).is_zero()
    }

    /// Waits until it may be read again. Safe to drop and call again; nobody reads it otherwise after a call that was dropped.
    pub async fn wait(&mut self, transport: &Transport) {
        let Some(at) = self.next else { return };
        // What comes meanwhile would wake this process up, a packet at a time.
        transport.set_low_water(PAUSED);
        tokio::time::sleep_until(at).await;
        transport.set_low_water(ANY_BYTE);
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_publish_is_read_at_a_pace_however_little_it_sends() {
        let begun = Instant::now();
        let mut idle = Idle::new(1000, begun);
        for _ in 0..2 * IDLE_READS {
            assert!(idle.take(6, begun));
            assert_eq!(idle.next, None, "a burst is read as it comes");
        }
        let mut now = begun;
        for _ in 0..1000 {
            assert!(idle.take(6, now));
            now = idle.next.unwrap_or(now);
        }
        let paced = now - begun;
        assert!(paced.abs_diff(Duration::from_secs(1000 / IDLE_READS)) < Duration::from_secs(1), "{paced:?}");
        assert!(!idle.take(5000, now), "a flood is one in a single read, too");
    }

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
