//! Releases: that a publisher left is said at once, so that its name is free. What does not get through is said again by
//! heartbeats, which name the publishes that ended.

use super::calls::{Outcome, Reactors};
use super::metrics::ClientMetrics;
use crate::api::PublisherRelease;
use crate::retry::pauses;
use crate::telemetry::Seldom;
use futures::StreamExt;
use reqwest::Method;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;

/// Releases that may wait: those of a node whose publishers all leave at once are some thousands at most.
const WAITING: usize = 1024;

/// Releases on their way at a time.
const AT_ONCE: usize = 16;

/// How often a release is tried.
const TRIES: usize = 5;

/// The pause before the second try; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// How long after its publisher left a release is still worth a try: by then, heartbeats have said it.
const WORTH_A_TRY: Duration = Duration::from_secs(10);

/// A release and when its publisher left.
type Release = (PublisherRelease, Instant);

/// Where releases are handed in.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<Release>,
    metrics: ClientMetrics,
    overflow_log: Seldom,
}

/// Releases that are to be sent.
#[derive(Debug)]
pub(super) struct Waiting(mpsc::Receiver<Release>);

pub(super) fn queue(metrics: ClientMetrics) -> (Queue, Waiting) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Queue { sender, metrics, overflow_log: Seldom::default() }, Waiting(receiver))
}

impl Queue {
    /// Returns at once.
    pub(super) fn push(&self, release: PublisherRelease) {
        match self.sender.try_send((release, Instant::now())) {
            // Once the agent has stopped, the node has signed off, which ends all its leases.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full((release, _))) => {
                self.metrics.releases.with_label_values(&["overflow"]).inc();
                if let Some(held_back) = self.overflow_log.pass() {
                    tracing::warn!(stream = %release.stream_name, held_back, "too many releases wait, left to heartbeats");
                }
            }
        }
    }
}

impl Waiting {
    /// Sends what is handed in, until the queue is gone.
    pub(super) async fn send_all(self, reactors: &Reactors, metrics: &ClientMetrics) {
        let release = |(release, left)| async move {
            let result = send(reactors, release, left).await;
            metrics.releases.with_label_values(&[result]).inc();
        };
        ReceiverStream::new(self.0).for_each_concurrent(AT_ONCE, release).await;
    }
}

/// Tries for a while; says what it came to.
async fn send(reactors: &Reactors, release: PublisherRelease, left: Instant) -> &'static str {
    let mut pauses = pauses(RETRY_FIRST, WORTH_A_TRY).take(TRIES - 1);
    loop {
        let error = match reactors.send(Method::POST, &["publisher_release"], &release).await {
            Outcome::Done(..) => return "ok",
            Outcome::Plain => return "plain",
            Outcome::Failed(error) => error,
        };
        match pauses.next() {
            Some(pause) if left.elapsed() <= WORTH_A_TRY => sleep(pause).await,
            _ => {
                tracing::debug!(stream = %release.stream_name, error, "a release is left to heartbeats");
                return "failed";
            }
        }
    }
}
