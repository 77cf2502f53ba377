//! The steps `rtmp_pull` and `ffmpeg_pull`: run a pull from another server, and announce each of its feeds to the workflow.

use super::announce::Announced;
use super::parameters::{ParameterError, Parameters};
use super::reactors::Reactors;
use crate::api::report::Happening;
use crate::ids::StreamName;
use crate::journal::Note;
use crate::relay::PullEvent;
use crate::telemetry::Seldom;
use mmids_core::workflows::definitions::WorkflowStepDefinition;
use mmids_core::workflows::steps::factory::StepGenerator;
use mmids_core::workflows::steps::{
    StepCreationResult, StepFutureResult, StepInputs, StepOutputs, StepStatus, WorkflowStep,
};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A running pull, however it is done. It ends when this is dropped.
pub struct Pull {
    /// What is said of it.
    pub events: mpsc::Receiver<PullEvent>,
    /// What it needs to run.
    pub running: Box<dyn Any + Send>,
}

/// Starts a pull of a stream from a location; the two steps differ only in this.
pub type Start =
    dyn Fn(&WorkflowStepDefinition, &StreamName, &str) -> Result<Pull, ParameterError> + Send + Sync;

/// Makes pull steps.
pub struct Generator {
    start: Arc<Start>,
    reactors: Arc<Reactors>,
}

impl Generator {
    /// A kind of pull.
    pub fn new(start: Arc<Start>, reactors: Arc<Reactors>) -> Self {
        Generator { start, reactors }
    }
}

/// The parameters of `ffmpeg_pull`.
pub const PARAMETERS: [&str; 2] = ["location", "stream_name"];

/// The parameters of `rtmp_pull`.
pub const NATIVE_PARAMETERS: [&str; 5] = ["location", "stream_name", "connect_ms", "start_ms", "silence_ms"];

/// The longest deadline that makes sense: who waits longer for a picture has left.
const DEADLINE_MAX: u64 = 600_000;

/// Reads the deadlines of `rtmp_pull`: to connect, to the first media, and without media.
pub fn deadlines(definition: &WorkflowStepDefinition) -> Result<[Option<Duration>; 3], ParameterError> {
    let allowed = format!("a number of milliseconds from 1 to {DEADLINE_MAX}");
    let read = |name| match Parameters(definition).parsed::<u64>(name, &allowed)? {
        Some(millis) if !(1..=DEADLINE_MAX).contains(&millis) => {
            Err(ParameterError(format!("{name}={millis} is not allowed; {allowed} is")))
        }
        millis => Ok(millis.map(Duration::from_millis)),
    };
    Ok([read("connect_ms")?, read("start_ms")?, read("silence_ms")?])
}

/// Reads `location` and `stream_name`.
pub fn parameters(definition: &WorkflowStepDefinition) -> Result<(String, StreamName), ParameterError> {
    let parameters = Parameters(definition);
    let location = parameters.required("location", "URL")?.to_owned();
    Ok((location, parameters.stream_name("stream_name")?))
}

impl StepGenerator for Generator {
    fn generate(&self, definition: WorkflowStepDefinition) -> StepCreationResult {
        let (location, name) = parameters(&definition)?;
        let pull = (self.start)(&definition, &name, &location)?;
        let stop = CancellationToken::new();
        let futures = vec![wait(pull, stop.clone())];
        let reactors = self.reactors.clone();
        let step = PullStep {
            definition,
            status: StepStatus::Active,
            name,
            reactors,
            stop,
            since: Instant::now(),
            announced: None,
        };
        Ok((Box::new(step), futures))
    }
}

struct PullStep {
    definition: WorkflowStepDefinition,
    status: StepStatus,
    name: StreamName,
    reactors: Arc<Reactors>,
    /// The engine keeps the futures of a step that it removed, so they are told to end.
    stop: CancellationToken,
    /// When the current attempt, or the pause before it, began.
    since: Instant,
    /// What the current attempt brings.
    announced: Option<Announced>,
}

struct Arrived {
    event: Option<PullEvent>,
    pull: Pull,
}

impl StepFutureResult for Arrived {}

struct Stopped;

impl StepFutureResult for Stopped {}

fn wait(
    mut pull: Pull,
    stop: CancellationToken,
) -> futures::future::BoxFuture<'static, Box<dyn StepFutureResult>> {
    Box::pin(async move {
        let event = tokio::select! {
            () = stop.cancelled() => return Box::new(Stopped) as Box<dyn StepFutureResult>,
            event = pull.events.recv() => event,
        };
        Box::new(Arrived { event, pull })
    })
}

impl PullStep {
    fn take(&mut self, event: PullEvent, outputs: &mut StepOutputs) {
        static BEGAN: Seldom = Seldom::events();
        static ENDED: Seldom = Seldom::events();
        let goes_on = self.announced.is_some();
        self.end(outputs);
        let tag = self.reactors.session(&self.name);
        let session = tag.map_or_else(|| "unknown".to_owned(), |tag| tag.to_string());
        match event {
            PullEvent::Began(feed) => {
                if goes_on {
                    tracing::debug!(stream = %self.name, %session, "pull brings another publish");
                } else {
                    let note = Note::of(Happening::PullBrings).session(tag).after(self.since.elapsed());
                    self.reactors.note(&self.name, note);
                    if let Some(held_back) = BEGAN.pass() {
                        let after = self.since.elapsed();
                        tracing::info!(stream = %self.name, %session, ?after, held_back, "pull brings media");
                    }
                }
                let (announced, begin) = Announced::begin(feed, self.name.as_str());
                outputs.media.push(begin);
                self.announced = Some(announced);
            }
            // It tries again at the same place by itself; but by now the stream may be at another.
            PullEvent::Ended { reason, retry_in } => {
                let note = Note::of(Happening::PullEnded).session(tag).detail(reason.to_string());
                self.reactors.note(&self.name, note);
                if let Some(held_back) = ENDED.pass() {
                    tracing::info!(stream = %self.name, %session, ?retry_in, held_back, "pull ended: {reason}");
                }
                self.since = Instant::now();
                self.reactors.changed(&self.name);
            }
        }
    }

    fn end(&mut self, outputs: &mut StepOutputs) {
        outputs.media.extend(self.announced.take().map(Announced::end));
    }
}

impl WorkflowStep for PullStep {
    fn get_status(&self) -> &StepStatus {
        &self.status
    }

    fn get_definition(&self) -> &WorkflowStepDefinition {
        &self.definition
    }

    fn execute(&mut self, inputs: &mut StepInputs, outputs: &mut StepOutputs) {
        outputs.media.append(&mut inputs.media);
        for notification in inputs.notifications.drain(..) {
            let Ok(arrived) = notification.downcast::<Arrived>() else { continue };
            let Arrived { event, pull } = *arrived;
            match event {
                Some(event) => {
                    self.take(event, outputs);
                    outputs.futures.push(wait(pull, self.stop.clone()));
                }
                None => {
                    self.end(outputs);
                    self.status = StepStatus::Error { message: "the pull ended for good".to_owned() };
                }
            }
        }
    }

    fn shutdown(&mut self) {
        self.status = StepStatus::Shutdown;
        self.stop.cancel();
    }
}

impl Drop for PullStep {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
