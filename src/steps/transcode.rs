//! The step `ffmpeg_transcode`: the steps behind it get, in place of each stream, what ffmpeg makes of it.

use super::announce::{self, Announced};
use super::outputs;
use crate::ffmpeg::{self, ComesBack, Job, Output, Transcode};
use crate::ids::StreamName;
use crate::relay::{self, Attachment, FeedRef, Feeds, PullEvent};
use crate::telemetry::{Metrics, Seldom};
use futures::future::BoxFuture;
use mmids_core::StreamId;
use mmids_core::workflows::definitions::WorkflowStepDefinition;
use mmids_core::workflows::steps::factory::StepGenerator;
use mmids_core::workflows::steps::{
    StepCreationResult, StepFutureResult, StepInputs, StepOutputs, StepStatus, WorkflowStep,
};
use mmids_core::workflows::{MediaNotification, MediaNotificationContent};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many events may wait for the step: that a run began to bring media, and that it ended.
const EVENTS: usize = 2;

/// Makes the steps.
pub struct Generator {
    /// How ffmpeg is run.
    pub ffmpeg: ffmpeg::Settings,
    /// Where the media of streams is found.
    pub feeds: Arc<Feeds>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who waits for the tasks.
    pub tasks: TaskTracker,
}

impl StepGenerator for Generator {
    fn generate(&self, definition: WorkflowStepDefinition) -> StepCreationResult {
        let transcode = outputs::transcode(&definition)?;
        let step = TranscodeStep {
            definition,
            status: StepStatus::Active,
            transcode,
            ffmpeg: self.ffmpeg.clone(),
            feeds: self.feeds.clone(),
            metrics: self.metrics.clone(),
            tasks: self.tasks.clone(),
            stop: CancellationToken::new(),
            streams: HashMap::new(),
        };
        Ok((Box::new(step), Vec::new()))
    }
}

struct TranscodeStep {
    definition: WorkflowStepDefinition,
    status: StepStatus,
    transcode: Transcode,
    ffmpeg: ffmpeg::Settings,
    feeds: Arc<Feeds>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// By the ids of what comes in.
    streams: HashMap<StreamId, Stream>,
}

struct Stream {
    name: StreamName,
    /// What comes in, while it lives.
    attached: Option<Attachment>,
    /// What comes out.
    announced: Option<Announced>,
}

/// Something happened to what ffmpeg makes of a stream; nothing: it is over.
struct Happened {
    stream: StreamId,
    event: Option<PullEvent>,
    events: mpsc::Receiver<PullEvent>,
}

impl StepFutureResult for Happened {}

struct Stopped;

impl StepFutureResult for Stopped {}

fn wait(
    stream: StreamId,
    mut events: mpsc::Receiver<PullEvent>,
    stop: CancellationToken,
) -> BoxFuture<'static, Box<dyn StepFutureResult>> {
    Box::pin(async move {
        let event = tokio::select! {
            () = stop.cancelled() => return Box::new(Stopped) as Box<dyn StepFutureResult>,
            event = events.recv() => event,
        };
        Box::new(Happened { stream, event, events })
    })
}

impl TranscodeStep {
    /// Takes what is said of a stream; only what is made of it is passed on.
    fn take(&mut self, media: MediaNotification, outputs: &mut StepOutputs) {
        match &media.content {
            MediaNotificationContent::NewIncomingStream { stream_name } => {
                let found =
                    StreamName::parse(stream_name).ok().zip(announce::feed(&self.feeds, &media.stream_id));
                if let Some((name, feed)) = found
                    && !self.streams.contains_key(&media.stream_id)
                {
                    self.begin(media.stream_id, name, &feed, outputs);
                }
            }
            MediaNotificationContent::StreamDisconnected => {
                if let Some(stream) = self.streams.get_mut(&media.stream_id) {
                    // ffmpeg writes what it has, and ends.
                    stream.attached = None;
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, id: StreamId, name: StreamName, feed: &FeedRef, outputs: &mut StepOutputs) {
        let (inlet, queue) = relay::queue::queue(feed.holder(), self.metrics.clone());
        let (events, happens) = mpsc::channel(EVENTS);
        let comes_back = ComesBack { feeds: self.feeds.clone(), events, session: feed.session() };
        let job = Job {
            settings: self.ffmpeg.clone(),
            output: Output::Transcode(self.transcode.clone()),
            queue,
            comes_back: Some(comes_back),
            metrics: self.metrics.clone(),
        };
        self.tasks.spawn(job.run());
        outputs.futures.push(wait(id.clone(), happens, self.stop.clone()));
        let attached = Some(feed.attach(Box::new(inlet)));
        self.streams.insert(id, Stream { name, attached, announced: None });
    }

    fn happened(&mut self, Happened { stream: id, event, events }: Happened, outputs: &mut StepOutputs) {
        static BEGAN: Seldom = Seldom::events();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        outputs.media.extend(stream.announced.take().map(Announced::end));
        let Some(event) = event else {
            self.streams.remove(&id);
            return;
        };
        if let PullEvent::Began(feed) = event {
            if let Some(held_back) = BEGAN.pass() {
                tracing::info!(stream = %stream.name, held_back, "transcode brings media");
            }
            let (announced, begin) = Announced::begin(feed, stream.name.as_str());
            outputs.media.push(begin);
            stream.announced = Some(announced);
        }
        outputs.futures.push(wait(id, events, self.stop.clone()));
    }
}

impl WorkflowStep for TranscodeStep {
    fn get_status(&self) -> &StepStatus {
        &self.status
    }

    fn get_definition(&self) -> &WorkflowStepDefinition {
        &self.definition
    }

    fn execute(&mut self, inputs: &mut StepInputs, outputs: &mut StepOutputs) {
        for notification in inputs.notifications.drain(..) {
            if let Ok(happened) = notification.downcast::<Happened>() {
                self.happened(*happened, outputs);
            }
        }
        for media in inputs.media.drain(..) {
            self.take(media, outputs);
        }
    }

    fn shutdown(&mut self) {
        self.status = StepStatus::Shutdown;
        self.stop.cancel();
        self.streams.clear();
    }
}

impl Drop for TranscodeStep {
    fn drop(&mut self) {
        self.shutdown();
    }
}
