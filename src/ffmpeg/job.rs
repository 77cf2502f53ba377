//! Keeps one ffmpeg running that takes a stream on its standard input, for as long as the stream lives.
//!
//! ```text
//! queue ─▶ FLV ─▶ standard input ─▶ ffmpeg ─▶ a server, files, or standard output ─▶ FLV ─▶ another feed
//! ```
//! When the feed ends, ffmpeg sees the end of its input, writes what it has, and ends; only one that takes too long over it is killed.
//! One that ends earlier, or takes nothing more, is started again. What the stream's queue cannot keep meanwhile is lost, and counted.

use super::intake::{Intake, Unwanted};
use super::output::Output;
use super::process::{EndReason, Pipes, Running, Settings};
use crate::ids::SessionId;
use crate::media::{Packet, flv};
use crate::relay::{Feeds, PullEvent, Queue};
use crate::telemetry::{Counted, Metrics, Seldom};
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

/// How long ffmpeg may take to write the rest, once its input has ended.
const FINISH: Duration = Duration::from_secs(3);

/// Where a transcoded stream goes.
#[derive(Debug)]
pub struct ComesBack {
    /// Where its feeds are.
    pub feeds: Arc<Feeds>,
    /// Who is told of them: each run of ffmpeg is one.
    pub events: mpsc::Sender<PullEvent>,
    /// The publish that it comes from, if that is one on this node.
    pub session: Option<SessionId>,
}

/// An ffmpeg for one stream.
#[derive(Debug)]
pub struct Job {
    /// How ffmpeg is run.
    pub settings: Settings,
    /// What it is to do.
    pub output: Output,
    /// The stream.
    pub queue: Queue,
    /// For an output that comes back.
    pub comes_back: Option<ComesBack>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// How a run ended.
enum Run {
    /// The feed has ended, or nobody wants what comes of it.
    Over,
    Failed(EndReason),
}

/// Why ffmpeg gets nothing more.
enum Fed {
    Everything,
    /// It does not read any more.
    Closed,
    TakesNothing,
}

impl Job {
    /// Runs it until the feed ends. Returns once ffmpeg is gone and reaped.
    pub async fn run(self) {
        let span = tracing::info_span!("ffmpeg", output = %self.output);
        self.keep_running().instrument(span).await;
    }

    async fn keep_running(mut self) {
        static ENDED: Seldom = Seldom::events();
        let metrics = self.metrics.clone();
        let _counted = matches!(self.output, Output::Push(_))
            .then(|| Counted::new(&metrics.pushes.with_label_values(&["ffmpeg"])));
        let mut pauses = self.settings.pauses();
        loop {
            if matches!(self.output, Output::Push(_)) {
                metrics.pushes_started_total.with_label_values(&["ffmpeg"]).inc();
            }
            let begun = Instant::now();
            let mut unsent = 0;
            let Run::Failed(reason) = self.run_once(&mut unsent).await else { return };
            if begun.elapsed() >= self.settings.healthy {
                pauses = self.settings.pauses();
            }
            let retry_in = pauses.next().unwrap_or(self.settings.backoff_max);
            if let Some(held_back) = ENDED.pass() {
                tracing::warn!(?retry_in, held_back, "ended before its stream: {reason}");
            }
            self.queue.begin_again(unsent);
            if let Some(ComesBack { events, .. }) = &self.comes_back {
                let ended = PullEvent::Ended { reason: reason.to_string(), retry_in };
                if events.send(ended).await.is_err() {
                    return;
                }
            }
            if timeout(retry_in, self.queue.ended()).await.is_ok() {
                return;
            }
        }
    }

    /// One process, from its start until it is reaped.
    async fn run_once(&mut self, unsent: &mut usize) -> Run {
        let Job { settings, output, queue, comes_back, metrics } = self;
        let arguments = output.arguments(settings.stall, settings.ca_file.as_deref());
        let pipes = Pipes { stdin: true, stdout: output.comes_back() };
        let mut running = match Running::start(settings, arguments, pipes, output.secret()).await {
            Ok(running) => running,
            Err(reason) => return Run::Failed(reason),
        };
        let Some(stdin) = running.stdin.take() else { return Run::Failed(running.end().await) };
        let outcome = {
            let hear = hear(&mut running, comes_back.as_ref(), settings, metrics);
            tokio::pin!(hear);
            tokio::select! {
                heard = &mut hear => heard,
                fed = feed(stdin, queue, settings.stall, unsent) => match fed {
                    Fed::Everything => match timeout(FINISH, hear).await {
                        Ok(Err(Unwanted)) | Ok(Ok(None)) | Err(_) => Err(Unwanted),
                        Ok(Ok(reason)) => Ok(reason),
                    },
                    Fed::TakesNothing => Ok(Some(EndReason::TakesNothing(settings.stall))),
                    // It is about to end, and says why.
                    Fed::Closed => timeout(FINISH, hear).await.unwrap_or(Ok(None)),
                },
            }
        };
        let exited = running.end().await;
        match outcome {
            Err(Unwanted) => Run::Over,
            Ok(reason) => Run::Failed(reason.unwrap_or(exited)),
        }
    }
}

/// Hears what ffmpeg says until it ends, and takes what comes back.
async fn hear(
    running: &mut Running,
    comes_back: Option<&ComesBack>,
    settings: &Settings,
    metrics: &Metrics,
) -> Result<Option<EndReason>, Unwanted> {
    let (Some(stdout), Some(ComesBack { feeds, events, session })) = (running.stdout.take(), comes_back)
    else {
        running.ended().await;
        return Ok(None);
    };
    let intake = Intake { settings, feeds, metrics, events, session: *session };
    let mut media_since = None;
    tokio::select! {
        biased;
        () = events.closed() => Err(Unwanted),
        read = intake.read(stdout, &mut running.said, &mut media_since) => read,
    }
}

/// Gives ffmpeg what comes out of the queue. Its input ends with this.
async fn feed(mut stdin: ChildStdin, queue: &mut Queue, stall: Duration, unsent: &mut usize) -> Fed {
    let mut flv = BytesMut::new();
    // Both may come, and ffmpeg looks for what does for a moment.
    flv::write_header(&mut flv, true, true);
    while let Some(packets) = queue.next().await {
        *unsent = packets.iter().filter(|packet| !packet.kind.is_header()).count();
        packets.iter().for_each(|packet| write(&mut flv, packet));
        while !flv.is_empty() {
            match timeout(stall, stdin.write_buf(&mut flv)).await {
                Ok(Ok(n)) if n > 0 => {}
                Ok(_) => return Fed::Closed,
                Err(_) => return Fed::TakesNothing,
            }
        }
        *unsent = 0;
    }
    Fed::Everything
}

fn write(flv: &mut BytesMut, packet: &Packet) {
    // A body is within what a message can have, which is what a tag can have.
    let _fits = flv::write_tag(flv, packet);
}
