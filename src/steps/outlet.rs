//! The steps that bring each stream of their workflow somewhere else: `rtmp_push`, `ffmpeg_push` and `ffmpeg_hls`. What is brought is
//! a queue on the stream's feed; who brings it is a task that ends with the stream.
//!
//! ```text
//! stream begins ─▶ queue on its feed ─▶ place free? ─▶ task ─▶ (stream ends) ─▶ task ends ─▶ place is free
//!                                           └─ no: waits ────────────────────────────┘
//! ```
//! A place, that is a target or a file, is for one stream at a time: two that publish to one key, or write one file, would make a mess of
//! both. So a publish that follows another one on the same place begins when that one has said goodbye. Meanwhile its queue fills, so that
//! nothing of its start is lost.

use super::announce;
use super::parameters::ParameterError;
use crate::client::PushLeases;
use crate::ids::{SessionId, StreamName};
use crate::relay::{self, Attachment, FeedRef, Feeds, Queue};
use crate::telemetry::{Metrics, Seldom};
use futures::future::BoxFuture;
use mmids_core::StreamId;
use mmids_core::workflows::definitions::WorkflowStepDefinition;
use mmids_core::workflows::steps::factory::StepGenerator;
use mmids_core::workflows::steps::{
    StepCreationResult, StepFutureResult, StepInputs, StepOutputs, StepStatus, WorkflowStep,
};
use mmids_core::workflows::{MediaNotification, MediaNotificationContent};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The most streams that wait for one place; beyond it they are not brought there at all.
const WAITING: usize = 64;

/// A stream that is to be brought somewhere.
pub struct Began {
    /// Its name.
    pub name: StreamName,
    /// The publish that it is, if it is one on this node.
    pub session: Option<SessionId>,
    /// Its media.
    pub queue: Queue,
}

/// What a step does, read from its definition.
pub struct Plan {
    /// Which streams share a place: those with the same text.
    pub place: Box<dyn Fn(&StreamName) -> String + Send + Sync>,
    /// Brings a stream there, until it ends.
    pub bring: Box<dyn Fn(Began) -> BoxFuture<'static, ()> + Send + Sync>,
    /// It takes streams that are pulled from other nodes of the cluster as well. A restream does not: it belongs to the node that the
    /// stream is published on, which is one.
    pub pulled_too: bool,
}

/// Pushes a stream once this node may, which it is told when no other node does any more, and says so when the push is over.
pub async fn leased<F: Future<Output = ()>>(
    leases: PushLeases,
    Began { name, session, mut queue }: Began,
    push: impl FnOnce(Queue) -> F,
) {
    let Some(session) = session else { return push(queue).await };
    let lease = tokio::select! {
        lease = leases.acquire(&name, session) => lease,
        () = queue.ended() => return,
    };
    match lease {
        Ok(_lease) => push(queue).await,
        Err(superseded) => {
            tracing::info!(stream = %name, session = %session.tag(), "not pushed: {superseded}")
        }
    }
}

/// Reads a definition.
pub type Read = dyn Fn(&WorkflowStepDefinition) -> Result<Plan, ParameterError> + Send + Sync;

/// Makes steps of one kind.
pub struct Generator {
    /// Reads their definitions.
    pub read: Box<Read>,
    /// Where the media of streams is found.
    pub feeds: Arc<Feeds>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who waits for the tasks.
    pub tasks: TaskTracker,
}

impl StepGenerator for Generator {
    fn generate(&self, definition: WorkflowStepDefinition) -> StepCreationResult {
        let plan = (self.read)(&definition)?;
        let step = OutletStep {
            definition,
            status: StepStatus::Active,
            plan,
            feeds: self.feeds.clone(),
            metrics: self.metrics.clone(),
            tasks: self.tasks.clone(),
            stop: CancellationToken::new(),
            attached: HashMap::new(),
            places: HashMap::new(),
        };
        Ok((Box::new(step), Vec::new()))
    }
}

struct OutletStep {
    definition: WorkflowStepDefinition,
    status: StepStatus,
    plan: Plan,
    feeds: Arc<Feeds>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// The queues of streams that live.
    attached: HashMap<StreamId, Attachment>,
    /// Those that something is brought to.
    places: HashMap<String, Place>,
}

struct Place {
    /// Whose task runs.
    taken_by: StreamId,
    /// Who is next.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    stream: StreamId,
    name: StreamName,
    feed: FeedRef,
    /// There already if its turn comes in a moment.
    queue: Option<Queue>,
}

/// The task of a place has ended.
struct Done {
    place: String,
}

impl StepFutureResult for Done {}

struct Stopped;

impl StepFutureResult for Stopped {}

fn wait(
    place: String,
    task: JoinHandle<()>,
    stop: CancellationToken,
) -> BoxFuture<'static, Box<dyn StepFutureResult>> {
    Box::pin(async move {
        tokio::select! {
            () = stop.cancelled() => Box::new(Stopped) as Box<dyn StepFutureResult>,
            ended = task => {
                if let Err(error) = ended {
                    tracing::error!("what brings a stream elsewhere failed: {error}");
                }
                Box::new(Done { place })
            }
        }
    })
}

impl OutletStep {
    fn take(&mut self, notification: &MediaNotification, outputs: &mut StepOutputs) {
        let MediaNotification { stream_id, content } = notification;
        match content {
            MediaNotificationContent::NewIncomingStream { stream_name } => {
                self.begin(stream_id, stream_name, outputs);
            }
            MediaNotificationContent::StreamDisconnected => self.end(stream_id),
            // Media does not pass the engine.
            _ => {}
        }
    }

    fn begin(&mut self, stream: &StreamId, stream_name: &str, outputs: &mut StepOutputs) {
        static PULLED: Seldom = Seldom::events();
        let known = |place: &Place| {
            place.taken_by == *stream || place.waiting.iter().any(|waiting| waiting.stream == *stream)
        };
        // The engine tells steps again of streams that they know when other steps of their workflow change.
        if self.attached.contains_key(stream) || self.places.values().any(known) {
            return;
        }
        let (Ok(name), Some(feed)) = (StreamName::parse(stream_name), announce::feed(&self.feeds, stream))
        else {
            return;
        };
        if feed.upstream().is_some() && !self.plan.pulled_too {
            if let Some(held_back) = PULLED.pass() {
                let step = &self.definition.step_type;
                tracing::warn!(stream = %name, %step, held_back, "not pushed: it is pulled from another node, and belongs to the one it is published on");
            }
            return;
        }
        let waiting = Waiting { stream: stream.clone(), name, feed, queue: None };
        self.find_place(waiting, outputs);
    }

    fn find_place(&mut self, mut waiting: Waiting, outputs: &mut StepOutputs) {
        static TAKEN: Seldom = Seldom::events();
        let place = (self.plan.place)(&waiting.name);
        let Some(Place { taken_by, waiting: others }) = self.places.get(&place) else {
            return self.start(place, waiting, outputs);
        };
        if others.len() >= WAITING {
            tracing::warn!(stream = %waiting.name, "not brought there: too many streams wait for their turn");
            return;
        }
        if !self.attached.contains_key(taken_by) && others.is_empty() {
            // The one before is saying goodbye.
            waiting.queue = Some(self.attach(&waiting));
        } else if let Some(held_back) = TAKEN.pass() {
            let step = &self.definition.step_type;
            tracing::warn!(stream = %waiting.name, %step, held_back, "waits: another stream of this workflow is brought there, and one at a time can be");
        }
        if let Some(place) = self.places.get_mut(&place) {
            place.waiting.push_back(waiting);
        }
    }

    /// Has the feed fill a queue from now on.
    fn attach(&mut self, Waiting { stream, feed, .. }: &Waiting) -> Queue {
        let (inlet, queue) = relay::queue::queue(feed.holder(), self.metrics.clone());
        self.attached.insert(stream.clone(), feed.attach(Box::new(inlet)));
        queue
    }

    fn start(&mut self, place: String, mut waiting: Waiting, outputs: &mut StepOutputs) {
        let queue = waiting.queue.take().unwrap_or_else(|| self.attach(&waiting));
        let Waiting { stream, name, feed, .. } = waiting;
        let task = self.tasks.spawn((self.plan.bring)(Began { name, session: feed.session(), queue }));
        outputs.futures.push(wait(place.clone(), task, self.stop.clone()));
        let place = self.places.entry(place);
        let place = place.or_insert_with(|| Place { taken_by: stream.clone(), waiting: VecDeque::new() });
        place.taken_by = stream;
    }

    fn end(&mut self, stream: &StreamId) {
        self.attached.remove(stream);
        for place in self.places.values_mut() {
            place.waiting.retain(|waiting| waiting.stream != *stream);
        }
    }

    /// The next one's turn.
    fn done(&mut self, place: String, outputs: &mut StepOutputs) {
        let Some(next) = self.places.get_mut(&place).map(|place| place.waiting.pop_front()) else { return };
        match next {
            Some(next) => self.start(place, next, outputs),
            None => drop(self.places.remove(&place)),
        }
    }
}

impl WorkflowStep for OutletStep {
    fn get_status(&self) -> &StepStatus {
        &self.status
    }

    fn get_definition(&self) -> &WorkflowStepDefinition {
        &self.definition
    }

    fn execute(&mut self, inputs: &mut StepInputs, outputs: &mut StepOutputs) {
        for notification in inputs.notifications.drain(..) {
            if let Ok(done) = notification.downcast::<Done>() {
                self.done(done.place, outputs);
            }
        }
        for media in inputs.media.drain(..) {
            self.take(&media, outputs);
            outputs.media.push(media);
        }
    }

    /// What runs ends by itself, as its queue does.
    fn shutdown(&mut self) {
        self.status = StepStatus::Shutdown;
        self.stop.cancel();
        self.attached.clear();
        self.places.clear();
    }
}

impl Drop for OutletStep {
    fn drop(&mut self) {
        self.shutdown();
    }
}
