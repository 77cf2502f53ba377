//! The step `workflow_forwarder` (also `forward_to_workflow`) towards one named workflow: tells it which streams begin and
//! end.
//!
//! `mmids-core` has this step, and where it routes by a reactor that one is used. But each of its instances keeps an entry
//! and a future for every workflow of the node, so a playback node that pulls a thousand streams, each in a workflow of
//! its own, would hold a million of them. Here one [`Directory`] follows the workflows, and a step its target alone.

use super::parameters::{ParameterError, Parameters};
use futures::future::BoxFuture;
use mmids_core::StreamId;
use mmids_core::workflows::definitions::WorkflowStepDefinition;
use mmids_core::workflows::steps::factory::StepGenerator;
use mmids_core::workflows::steps::workflow_forwarder::WorkflowForwarderStepGenerator;
use mmids_core::workflows::steps::{
    StepCreationResult, StepFutureResult, StepInputs, StepOutputs, StepStatus, WorkflowStep,
};
use mmids_core::workflows::{
    MediaNotification, MediaNotificationContent, WorkflowRequest, WorkflowRequestOperation,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The names of the step: the documented one, and the one that mmids registers.
pub const NAMES: [&str; 2] = ["workflow_forwarder", "forward_to_workflow"];

/// The parameters the step knows.
pub const PARAMETERS: [&str; 2] = ["target_workflow", "reactor"];

/// Where a workflow takes requests.
pub type Channel = UnboundedSender<WorkflowRequest>;

/// The workflows that run, for those who forward to one.
#[derive(Debug, Default)]
pub struct Directory {
    workflows: Mutex<HashMap<String, watch::Sender<Option<Channel>>>>,
}

impl Directory {
    /// A workflow runs, or does not any more.
    pub fn set(&self, name: &str, channel: Option<Channel>) {
        let mut workflows = self.lock();
        let gone = channel.is_none();
        let entry = workflows.entry(name.to_owned()).or_insert_with(|| watch::channel(None).0);
        entry.send_replace(channel);
        if gone && entry.receiver_count() == 0 {
            workflows.remove(name);
        }
    }

    /// Has a workflow stop, and waits until it has let go of everything. Through its own channel: the engine's manager
    /// forgets a workflow before it has ended, and then takes its end for that of the next one of its name.
    pub async fn end(&self, name: &str) {
        let mut target = self.watch(name);
        let Some(channel) = target.borrow_and_update().clone() else { return };
        let operation = WorkflowRequestOperation::StopWorkflow;
        if channel.send(WorkflowRequest { request_id: "stop".to_owned(), operation }).is_err() {
            tracing::debug!(name, "the workflow has ended by itself");
        }
        while target.borrow_and_update().is_some() {
            if target.changed().await.is_err() {
                return;
            }
        }
    }

    fn watch(&self, name: &str) -> watch::Receiver<Option<Channel>> {
        self.lock().entry(name.to_owned()).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// Where a workflow takes requests, as soon as it runs.
    #[cfg(test)]
    pub async fn channel(&self, name: &str) -> Channel {
        let mut target = self.watch(name);
        loop {
            if let Some(channel) = target.borrow_and_update().clone().filter(|channel| !channel.is_closed()) {
                return channel;
            }
            target.changed().await.expect("the directory lives");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Option<Channel>>>> {
        self.workflows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes forwarders.
pub struct Generator {
    /// The workflows.
    pub directory: Arc<Directory>,
    /// The engine's own, for routing by a reactor.
    pub by_reactor: WorkflowForwarderStepGenerator,
}

/// Checks the parameters of a step.
pub fn parameters(definition: &WorkflowStepDefinition) -> Result<(), ParameterError> {
    let parameters = Parameters(definition);
    match (parameters.get("target_workflow"), parameters.get("reactor")) {
        (Some(_), None) | (None, Some(_)) => Ok(()),
        _ => Err(ParameterError("either target_workflow=NAME or reactor=NAME is needed".to_owned())),
    }
}

impl StepGenerator for Generator {
    fn generate(&self, definition: WorkflowStepDefinition) -> StepCreationResult {
        parameters(&definition)?;
        let Some(target) = Parameters(&definition).get("target_workflow") else {
            return self.by_reactor.generate(definition);
        };
        let target = self.directory.watch(target);
        let stop = CancellationToken::new();
        let futures = vec![wait(target.clone(), stop.clone())];
        let step =
            Forwarder { definition, status: StepStatus::Active, target, stop, streams: HashMap::new() };
        Ok((Box::new(step), futures))
    }
}

struct Forwarder {
    definition: WorkflowStepDefinition,
    status: StepStatus,
    target: watch::Receiver<Option<Channel>>,
    stop: CancellationToken,
    /// The beginnings of the streams that are there, for a target that starts late.
    streams: HashMap<StreamId, MediaNotification>,
}

struct TargetChanged(watch::Receiver<Option<Channel>>);

impl StepFutureResult for TargetChanged {}

struct Stopped;

impl StepFutureResult for Stopped {}

fn wait(
    mut target: watch::Receiver<Option<Channel>>,
    stop: CancellationToken,
) -> BoxFuture<'static, Box<dyn StepFutureResult>> {
    Box::pin(async move {
        tokio::select! {
            () = stop.cancelled() => Box::new(Stopped) as Box<dyn StepFutureResult>,
            changed = target.changed() => match changed {
                Ok(()) => Box::new(TargetChanged(target)) as Box<dyn StepFutureResult>,
                Err(_) => Box::new(Stopped),
            },
        }
    })
}

impl Forwarder {
    fn send(&self, media: MediaNotification) {
        if let Some(target) = self.target.borrow().as_ref() {
            let operation = WorkflowRequestOperation::MediaNotification { media };
            // A target that has just ended: the directory says so in a moment.
            drop(target.send(WorkflowRequest { request_id: String::new(), operation }));
        }
    }

    fn remember(&mut self, media: &MediaNotification) {
        match &media.content {
            MediaNotificationContent::NewIncomingStream { .. } => {
                self.streams.insert(media.stream_id.clone(), media.clone());
            }
            MediaNotificationContent::StreamDisconnected => {
                self.streams.remove(&media.stream_id);
            }
            _ => {}
        }
    }
}

impl WorkflowStep for Forwarder {
    fn get_status(&self) -> &StepStatus {
        &self.status
    }

    fn get_definition(&self) -> &WorkflowStepDefinition {
        &self.definition
    }

    fn execute(&mut self, inputs: &mut StepInputs, outputs: &mut StepOutputs) {
        for notification in inputs.notifications.drain(..) {
            if let Ok(changed) = notification.downcast::<TargetChanged>() {
                outputs.futures.push(wait(changed.0, self.stop.clone()));
                self.streams.values().for_each(|begin| self.send(begin.clone()));
            }
        }
        for media in inputs.media.drain(..) {
            self.remember(&media);
            self.send(media.clone());
            outputs.media.push(media);
        }
    }

    fn shutdown(&mut self) {
        self.status = StepStatus::Shutdown;
        self.stop.cancel();
        let streams: Vec<StreamId> = self.streams.drain().map(|(stream, _)| stream).collect();
        for stream_id in streams {
            self.send(MediaNotification { stream_id, content: MediaNotificationContent::StreamDisconnected });
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shutdown();
    }
}
