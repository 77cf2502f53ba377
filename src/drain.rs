//! How a process stops: everybody is told, is waited for, and at a deadline it ends.

use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The words of a stop, and the tasks that have to hear them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    closed: CancellationToken,
    draining: CancellationToken,
    ended: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// A process that runs.
    pub fn new() -> Self {
        Drain::default()
    }

    /// Cancelled when the stop begins: no new work.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Cancelled thereafter, once it is known where peers may go: finish what is there.
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Cancelled when time is up: end now.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// The tasks that are waited for.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Takes no new work from now on.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Begins the stop and waits for all tasks, at most `timeout`; what is left then is told to end and given `last`.
    /// `true`: all tasks ended.
    pub async fn stop(&self, timeout: Duration, last: Duration) -> bool {
        self.close();
        self.draining.cancel();
        self.tasks.close();
        if tokio::time::timeout(timeout, self.tasks.wait()).await.is_ok() {
            self.ended.cancel();
            return true;
        }
        self.ended.cancel();
        tokio::time::timeout(last, self.tasks.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_tasks_until_the_deadline_and_then_ends_them() {
        let drain = Drain::new();
        let ended = drain.ended().clone();
        drain.tasks().spawn(async move { ended.cancelled().await });
        let begun = tokio::time::Instant::now();
        assert!(drain.stop(Duration::from_secs(5), Duration::from_secs(1)).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(5));

        let drain = Drain::new();
        drain.tasks().spawn(std::future::pending::<()>());
        assert!(!drain.stop(Duration::from_secs(5), Duration::from_secs(1)).await);
    }
}
