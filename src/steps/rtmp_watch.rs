//! The step `rtmp_watch`: lets viewers watch the streams that its workflow is told of. It attaches a relay stream to the feed
//! of each; the media goes there from whoever brings it, and never through this step.
//!
//! With `reactor=NAME` viewers may ask for any stream: the reactor is asked once a name, however many wait, and for as
//! long as somebody does.

use super::announce;
use super::parameters::{ParameterError, Parameters};
use super::reactors::{Asker, Reactors, Status, next_status};
use crate::api::PULL_APP;
use crate::ids::{SessionId, StreamName};
use crate::net::routes::{KeyPattern, Place, PlayRoute, RouteGuard, Routes};
use crate::relay::{Admission, Attachment, Batching, Demand, End, Feeds, Hub, Settings};
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
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The parameters the step knows.
pub const PARAMETERS: [&str; 9] =
    ["rtmp_app", "stream_key", "port", "rtmps", "allow_ips", "deny_ips", "reactor", "batch_ms", "gather_ms"];

/// Makes `rtmp_watch` steps.
pub struct Generator {
    /// Where routes are added.
    pub routes: Arc<Routes>,
    /// Whom to ask.
    pub reactors: Arc<Reactors>,
    /// Where the media of streams is found.
    pub feeds: Arc<Feeds>,
    /// How streams are relayed.
    pub settings: Settings,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who waits for the relay's tasks.
    pub tasks: TaskTracker,
    /// The port where none is named.
    pub default_port: u16,
}

/// Reads the parameters of a step.
pub fn parameters(
    definition: &WorkflowStepDefinition,
    default_port: u16,
) -> Result<(Place, Option<Batching>), ParameterError> {
    let parameters = Parameters(definition);
    let window = |name| parameters.parsed::<u64>(name, "a number of milliseconds");
    // The second is the old name.
    let window = window("batch_ms")?.or(window("gather_ms")?);
    let batching = window.map(|millis| Batching::Window(Duration::from_millis(millis)));
    Ok((parameters.place(default_port)?, batching))
}

impl StepGenerator for Generator {
    fn generate(&self, definition: WorkflowStepDefinition) -> StepCreationResult {
        let (place, batching) = parameters(&definition, self.default_port)?;
        let reactor = Parameters(&definition).get("reactor").map(str::to_owned);
        let admission = if reactor.is_some() { Admission::OnDemand } else { Admission::Live };
        let mut settings = self.settings.clone();
        settings.batching = batching.unwrap_or(settings.batching);
        let pulls = place.app == PULL_APP;
        settings.for_nodes = pulls;
        let hub = Hub::new(admission, Arc::new(settings), self.metrics.clone(), self.tasks.clone());
        let key = place.key.clone();
        let route = self.routes.add_play(place, PlayRoute { hub: hub.clone(), pulls })?;
        let stop = CancellationToken::new();
        let futures = vec![wait_demand(hub.clone(), stop.clone())];
        let step = WatchStep {
            definition,
            status: StepStatus::Active,
            key,
            reactor,
            reactors: self.reactors.clone(),
            feeds: self.feeds.clone(),
            hub,
            route: Some(route),
            stop,
            attached: HashMap::new(),
            followed: HashMap::new(),
        };
        Ok((Box::new(step), futures))
    }
}

struct WatchStep {
    definition: WorkflowStepDefinition,
    status: StepStatus,
    key: KeyPattern,
    reactor: Option<String>,
    reactors: Arc<Reactors>,
    feeds: Arc<Feeds>,
    hub: Arc<Hub>,
    route: Option<RouteGuard>,
    stop: CancellationToken,
    /// The streams that can be watched, by their ids.
    attached: HashMap<StreamId, Attachment>,
    /// The names that are followed; cancelling one ends the interest.
    followed: HashMap<StreamName, CancellationToken>,
}

enum Woken {
    Demand(Vec<Demand>),
    Followed { name: StreamName, status: Status, receiver: watch::Receiver<Status>, stop: CancellationToken },
    Stopped,
}

impl StepFutureResult for Woken {}

fn wait_demand(hub: Arc<Hub>, stop: CancellationToken) -> BoxFuture<'static, Box<dyn StepFutureResult>> {
    Box::pin(async move {
        let woken = tokio::select! {
            () = stop.cancelled() => Woken::Stopped,
            demand = hub.demand() => Woken::Demand(demand),
        };
        Box::new(woken) as Box<dyn StepFutureResult>
    })
}

fn wait_status(
    name: StreamName,
    mut receiver: watch::Receiver<Status>,
    stop: CancellationToken,
) -> BoxFuture<'static, Box<dyn StepFutureResult>> {
    Box::pin(async move {
        let woken = match next_status(&mut receiver, &stop).await {
            Some(status) => Woken::Followed { name, status, receiver, stop },
            None => Woken::Stopped,
        };
        Box::new(woken) as Box<dyn StepFutureResult>
    })
}

impl WatchStep {
    fn wanted(&mut self, name: StreamName, outputs: &mut StepOutputs) {
        let Some(reactor) = &self.reactor else { return };
        let mut receiver = self.reactors.follow(reactor, &name, Asker::Watcher);
        let stop = self.stop.child_token();
        self.followed.insert(name.clone(), stop.clone());
        // What is already known is news to this step.
        receiver.mark_changed();
        outputs.futures.push(wait_status(name, receiver, stop));
    }

    fn unfollow(&mut self, name: &StreamName) {
        if let Some(stop) = self.followed.remove(name) {
            stop.cancel();
        }
    }

    fn wake(&mut self, woken: Woken, outputs: &mut StepOutputs) {
        match woken {
            Woken::Demand(changes) => {
                for change in changes {
                    match change {
                        Demand::Wanted(name) => self.wanted(name, outputs),
                        Demand::Unwanted(name) => self.unfollow(&name),
                    }
                }
                outputs.futures.push(wait_demand(self.hub.clone(), self.stop.clone()));
            }
            Woken::Followed { stop, .. } if stop.is_cancelled() => {}
            Woken::Followed { name, status, receiver, stop } => {
                let why = match &status {
                    Status::Invalid(reason) => Some(End::Refused(reason.to_string())),
                    Status::Unknown => Some(End::Unknown),
                    Status::Asking | Status::Valid { .. } => None,
                };
                if why.is_some_and(|why| self.hub.refuse(&name, why)) {
                    self.unfollow(&name);
                    return;
                }
                outputs.futures.push(wait_status(name, receiver, stop));
            }
            Woken::Stopped => {}
        }
    }

    fn take(&mut self, MediaNotification { stream_id, content }: &MediaNotification) {
        match content {
            MediaNotificationContent::NewIncomingStream { stream_name } => self.begin(stream_id, stream_name),
            MediaNotificationContent::StreamDisconnected => {
                self.attached.remove(stream_id);
            }
            // Media does not pass the engine.
            _ => {}
        }
    }

    fn begin(&mut self, stream: &StreamId, stream_name: &str) {
        if self.attached.contains_key(stream) {
            // The engine tells steps again of streams that they know when other steps of their workflow change.
            return;
        }
        static UNWATCHABLE: Seldom = Seldom::new(Duration::from_secs(10));
        let name = match &self.key {
            KeyPattern::Exact(name) => Ok(name.clone()),
            KeyPattern::Any => StreamName::parse(stream_name),
        };
        match (name, announce::feed(&self.feeds, stream)) {
            (Ok(name), Some(feed)) => {
                // A pull brings whatever publish the reactor named last.
                let session = feed.session().map(SessionId::tag).or_else(|| self.reactors.session(&name));
                let source = self.hub.attach(&name, feed.upstream()).after_break(feed.follows_break());
                let source = source.charged_to(feed.holder()).of_session(session);
                self.attached.insert(stream.clone(), feed.attach(Box::new(source)));
            }
            // It ended before the workflow heard that it began.
            (Ok(_), None) => {}
            (Err(error), _) => {
                if let Some(held_back) = UNWATCHABLE.pass() {
                    tracing::warn!(
                        stream = stream_name,
                        held_back,
                        "a stream that nobody can watch: {error}"
                    );
                }
            }
        }
    }
}

impl WorkflowStep for WatchStep {
    fn get_status(&self) -> &StepStatus {
        &self.status
    }

    fn get_definition(&self) -> &WorkflowStepDefinition {
        &self.definition
    }

    fn execute(&mut self, inputs: &mut StepInputs, outputs: &mut StepOutputs) {
        for notification in inputs.notifications.drain(..) {
            if let Ok(woken) = notification.downcast::<Woken>() {
                self.wake(*woken, outputs);
            }
        }
        inputs.media.iter().for_each(|notification| self.take(notification));
        outputs.media.append(&mut inputs.media);
    }

    fn shutdown(&mut self) {
        self.status = StepStatus::Shutdown;
        self.stop.cancel();
        self.route = None;
        self.hub.close();
        self.attached.clear();
    }
}

impl Drop for WatchStep {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmids_core::workflows::definitions::WorkflowStepType;

    #[test]
    fn the_batch_window_is_set_by_its_name_or_its_old_one() {
        let batching = |set: &[(&str, &str)]| {
            let place = [("rtmp_app", "live"), ("stream_key", "*")];
            let texts = place.iter().chain(set);
            let definition = WorkflowStepDefinition {
                step_type: WorkflowStepType("rtmp_watch".to_owned()),
                parameters: texts.map(|(name, text)| (name.to_string(), Some(text.to_string()))).collect(),
            };
            parameters(&definition, 1935).map(|(_, batching)| batching)
        };
        let window = |millis| Some(Batching::Window(Duration::from_millis(millis)));
        assert_eq!(batching(&[]), Ok(None));
        assert_eq!(batching(&[("batch_ms", "100")]), Ok(window(100)));
        assert_eq!(batching(&[("gather_ms", "50")]), Ok(window(50)));
        assert_eq!(batching(&[("gather_ms", "50"), ("batch_ms", "0")]), Ok(window(0)));
        assert!(batching(&[("batch_ms", "soon")]).unwrap_err().0.contains("batch_ms=soon"));
    }
}
