//! Releases: that a publisher left is said at once, so that its name is free, and that a stream is pushed to other servers no
//! longer, so that another node may. What does not get through is said again by heartbeats, which name the publishes that
//! ended and those that are pushed.

use super::calls::{Outcome, Reactors};
use super::metrics::ClientMetrics;
use crate::api::{PublisherRelease, PushRelease};
use crate::ids::StreamName;
use crate::retry::pauses;
use crate::telemetry::Seldom;
use futures::StreamExt;
use prometheus::IntCounterVec;
use reqwest::Method;
use serde::Serialize;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep, sleep_until};
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

/// What reactors are told with a call of its own.
pub(super) trait Release: Serialize + Send {
    /// The path of the call.
    const PATH: &'static str;

    fn stream(&self) -> &StreamName;

    /// Where it is counted, by result.
    fn counter(metrics: &ClientMetrics) -> &IntCounterVec;
}

impl Release for PublisherRelease {
    const PATH: &'static str = "publisher_release";

    fn stream(&self) -> &StreamName {
        &self.stream_name
    }

    fn counter(metrics: &ClientMetrics) -> &IntCounterVec {
        &metrics.releases
    }
}

impl Release for PushRelease {
    const PATH: &'static str = "push_release";

    fn stream(&self) -> &StreamName {
        &self.stream_name
    }

    fn counter(metrics: &ClientMetrics) -> &IntCounterVec {
        &metrics.push_releases
    }
}

/// Where releases are handed in.
#[derive(Debug)]
pub(super) struct Queue<R> {
    sender: mpsc::Sender<(R, Instant)>,
    metrics: ClientMetrics,
    overflow_log: Seldom,
}

/// Releases that are to be sent, and when they are due.
#[derive(Debug)]
pub(super) struct Waiting<R>(mpsc::Receiver<(R, Instant)>);

pub(super) fn queue<R: Release>(metrics: ClientMetrics) -> (Queue<R>, Waiting<R>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Queue { sender, metrics, overflow_log: Seldom::default() }, Waiting(receiver))
}

impl<R: Release> Queue<R> {
    /// Sends it as soon as may be. Returns at once.
    pub(super) fn push(&self, release: R) {
        self.push_due(release, Instant::now());
    }

    /// Sends it when it is due. Returns at once.
    pub(super) fn push_due(&self, release: R, due: Instant) {
        match self.sender.try_send((release, due)) {
            // Once the agent has stopped, the node has signed off, which ends all its leases.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full((release, _))) => {
                R::counter(&self.metrics).with_label_values(&["overflow"]).inc();
                if let Some(held_back) = self.overflow_log.pass() {
                    let (stream, call) = (release.stream(), R::PATH);
                    tracing::warn!(%stream, call, held_back, "too many releases wait, left to heartbeats");
                }
            }
        }
    }
}

impl<R: Release> Waiting<R> {
    /// Sends what is handed in, until the queue is gone.
    pub(super) async fn send_all(self, reactors: &Reactors, metrics: &ClientMetrics) {
        let release = |(release, due)| async move {
            sleep_until(due).await;
            let result = send::<R>(reactors, release, due).await;
            R::counter(metrics).with_label_values(&[result]).inc();
        };
        ReceiverStream::new(self.0).for_each_concurrent(AT_ONCE, release).await;
    }
}

/// Tries for a while; says what it came to.
async fn send<R: Release>(reactors: &Reactors, release: R, due: Instant) -> &'static str {
    let mut pauses = pauses(RETRY_FIRST, WORTH_A_TRY).take(TRIES - 1);
    loop {
        let error = match reactors.send(Method::POST, &[R::PATH], &release).await {
            Outcome::Done(..) => return "ok",
            Outcome::Plain => return "plain",
            Outcome::Failed(error) => error,
        };
        match pauses.next() {
            Some(pause) if due.elapsed() <= WORTH_A_TRY => sleep(pause).await,
            _ => {
                tracing::debug!(stream = %release.stream(), call = R::PATH, error, "a release is left to heartbeats");
                return "failed";
            }
        }
    }
}
