//! What a peer may send that does not publish, and how often it is read: such a peer has next to nothing to say.

use super::low_water::ANY_BYTE;
use super::rate::Rate;
use super::transport::Transport;
use tokio::time::Instant;

/// Reads a second, after a burst of two seconds of them. What comes meanwhile waits in the socket and is taken in one read: a few bytes
/// cost a node as much to wake up for as many.
const IDLE_READS: u64 = 15;

/// The low-water mark of a socket that is not read at the moment (SO_RCVLOWAT): more than a player says in that time.
const PAUSED: usize = 16 << 10;

/// See the module's head.
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
    use std::time::Duration;

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
}
