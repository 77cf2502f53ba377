//! Keeps one ffmpeg running for as long as a pull is wanted, and pushes what it writes into a feed for each run.
//!
//! ```text
//! start ─▶ running ──(exit, hang, no FLV)──▶ back-off ─▶ running …
//!             └──(handle stopped or dropped, receiver dropped)──▶ killed and reaped
//! ```
//!
//! An ffmpeg that is no longer wanted gets SIGKILL at once, with its process group: a copy to a pipe has nothing to
//! flush, and its source sees the closed connection just as soon.

use super::command::{self, Location};
use super::intake::{Intake, Unwanted};
use super::process::{EndReason, Pipes, Running, Settings};
use crate::relay::{Feeds, PullEvent};
use crate::telemetry::{Counted, Metrics};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// How many events may wait for the receiver: that a run began to bring media, and that it ended.
const EVENTS: usize = 2;

/// A running pull. Dropping it ends the pull: the process is killed and reaped right after, in the background.
#[derive(Debug)]
pub struct Puller {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Puller {
    /// Starts to pull, on the current tokio runtime. Each run that brings media is a feed, whose timestamps start anew. The
    /// pull also ends when the receiver is dropped.
    pub fn start(
        settings: Settings,
        location: Location,
        feeds: Arc<Feeds>,
        metrics: Arc<Metrics>,
    ) -> (Puller, mpsc::Receiver<PullEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let stop = CancellationToken::new();
        let span = tracing::info_span!("ffmpeg", %location);
        let task = Task { settings, location, feeds, metrics, events, stop: stop.clone() };
        (Puller { stop, task: tokio::spawn(task.run().instrument(span)) }, receiver)
    }

    /// Ends the pull. When this returns the process is gone and reaped.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "an ffmpeg pull did not end as it should");
        }
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        // The task is not aborted: it has a process to reap.
        self.stop.cancel();
    }
}

struct Task {
    settings: Settings,
    location: Location,
    feeds: Arc<Feeds>,
    metrics: Arc<Metrics>,
    events: mpsc::Sender<PullEvent>,
    stop: CancellationToken,
}

impl Task {
    async fn run(self) {
        let _counted = Counted::new(&self.metrics.pulls_in.with_label_values(&["ffmpeg"]));
        let mut delays = self.settings.pauses();
        loop {
            self.metrics.pulls_started_total.with_label_values(&["ffmpeg"]).inc();
            let mut media_since = None;
            let Ok(reason) = self.run_once(&mut media_since).await else {
                return;
            };
            if media_since.is_some_and(|since: Instant| since.elapsed() >= self.settings.healthy) {
                delays = self.settings.pauses();
            }
            let retry_in = delays.next().unwrap_or(self.settings.backoff_max);
            tracing::debug!(%reason, ?retry_in, "pull ended");
            let pause = async {
                let sent = self.events.send(PullEvent::Ended { reason: reason.to_string(), retry_in }).await;
                tokio::time::sleep(retry_in).await;
                sent.map_err(|_| Unwanted)
            };
            if self.unless_unwanted(pause).await.is_err() {
                return;
            }
        }
    }

    /// One process, from its start until it is reaped.
    async fn run_once(&self, media_since: &mut Option<Instant>) -> Result<EndReason, Unwanted> {
        if self.settings.only_tls && self.location.is_plain_rtmp() {
            return Ok(EndReason::OnlyTls);
        }
        let location = self.settings.signer.as_ref().map_or_else(
            || self.location.clone(),
            |(key, node)| self.location.signed(|name| key.sign(name, node, unix_seconds())),
        );
        let arguments = command::arguments(&location, self.settings.stall, self.settings.ca_file.as_deref());
        let pipes = Pipes { stdout: true, ..Pipes::default() };
        let mut running = match Running::start(&self.settings, arguments, pipes, None).await {
            Ok(running) => running,
            Err(reason) => return Ok(reason),
        };
        let outcome = match running.stdout.take() {
            Some(stdout) => {
                let Task { settings, feeds, metrics, events, .. } = self;
                let intake = Intake { settings, feeds, metrics, events, session: None };
                self.unless_unwanted(intake.read(stdout, &mut running.said, media_since)).await
            }
            None => Ok(None),
        };
        let exited = running.end().await;
        Ok(outcome?.unwrap_or(exited))
    }

    async fn unless_unwanted<T>(
        &self,
        work: impl Future<Output = Result<T, Unwanted>>,
    ) -> Result<T, Unwanted> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Unwanted),
            () = self.events.closed() => Err(Unwanted),
            done = work => done,
        }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
