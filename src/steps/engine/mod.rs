//! The workflow engine of `mmids-core`, with this project's steps: it says what begins, ends and is routed where. Media does
//! not pass it.
//!
//! - `check`: what can be said of a configuration before it runs.
//! - `assembly`: the steps, and what each is made from.
//! - `keeper`: starts a workflow again that ended by itself.
//! - `steering`: changes of what runs.
//! - `describe`: what a workflow does, for people and tools.

mod assembly;
mod check;
mod describe;
mod keeper;
mod steering;

pub use assembly::Parts;
pub use check::{check, check_answer, needs_ffmpeg, overlaps, ports, pulled_at};
pub use steering::Changed;

use super::definition::{Config, ConfigError, ReactorDefinition, Workflow};
use super::forwarder::Directory;
use super::reactors::{PulledAt, Reactors};
use crate::net::routes::Routes;
use keeper::Keeper;
use mmids_core::event_hub::{SubscriptionRequest, WorkflowStartedOrStoppedEvent, start_event_hub};
use mmids_core::workflows::manager::{
    WorkflowManagerRequest, WorkflowManagerRequestOperation, start_workflow_manager,
};
use mmids_core::workflows::{WorkflowState, WorkflowStatus};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    manager: UnboundedSender<WorkflowManagerRequest>,
    reactors: Arc<Reactors>,
    directory: Arc<Directory>,
    keeper: Arc<Mutex<Keeper>>,
    fixed: Fixed,
    routes: Arc<Routes>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    /// Workflows end from now on because they are told to.
    stopping: CancellationToken,
    /// Everything has ended.
    stopped: CancellationToken,
    failed: CancellationToken,
}

/// What is there from the start of a process to its end.
#[derive(Debug)]
struct Fixed {
    reactors: Vec<ReactorDefinition>,
    /// Where other nodes pull from, as the steps say: reactors were told.
    pulled_at: PulledAt,
    /// The port of steps that name none.
    default_port: u16,
}

impl Engine {
    /// Starts the engine and all workflows of a configuration that was checked.
    pub async fn start(parts: Parts, configs: Vec<(String, Config)>) -> Result<Self, ConfigError> {
        let (tasks, health, routes) = (parts.tasks.clone(), parts.health.clone(), parts.routes.clone());
        let [stopping, stopped, failed] = std::array::from_fn(|_| CancellationToken::new());
        let (publisher, subscriber) = start_event_hub();
        let (asked, requests) = unbounded_channel();
        // The manager takes the factory when it starts, and steps need the manager through the reactors: this channel is
        // what both can have before there is a manager.
        let (manager, relayed) = unbounded_channel();
        let reactors = assembly::reactors(&parts, &configs, manager.clone())?;
        let default_port = parts.default_port;
        let fixed = Fixed {
            reactors: configs.iter().flat_map(|(_, config)| config.reactors.clone()).collect(),
            pulled_at: pulled_at(&configs, default_port, None),
            default_port,
        };
        let directory = Arc::new(Directory::default());
        let factory = assembly::factory(parts, &reactors, &directory, &subscriber, &asked)?;
        let (channel, events) = unbounded_channel();
        if subscriber.send(SubscriptionRequest::WorkflowStartedOrStopped { channel }).is_err() {
            tracing::error!("the engine's event hub is gone");
        }
        let core = start_workflow_manager(Arc::new(factory), publisher);
        let workflows =
            || configs.iter().flat_map(|(file, config)| config.workflows.iter().map(move |w| (file, w)));
        let definitions = workflows().map(|(_, workflow)| workflow.definition.clone());
        let keeper = Arc::new(Mutex::new(Keeper::new(definitions, manager.clone(), &health, failed.clone())));
        let following = follow(
            events,
            directory.clone(),
            keeper.clone(),
            manager.clone(),
            reactors.clone(),
            stopping.clone(),
        );
        let engine = Engine {
            manager,
            reactors: reactors.clone(),
            directory,
            keeper,
            fixed,
            routes,
            changing: tokio::sync::Mutex::default(),
            tasks,
            stopping,
            stopped,
            failed,
        };
        engine.run_until_stopped(relay(relayed, core));
        engine.run_until_stopped(reactors.serve(requests));
        engine.run_until_stopped(following);
        for (file, workflow) in workflows() {
            engine.run(file, workflow).await?;
        }
        Ok(engine)
    }

    fn run_until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stopped.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Cancelled when a configured workflow does not run and cannot be started again: the process has to end.
    pub fn failed(&self) -> &CancellationToken {
        &self.failed
    }

    async fn run(&self, file: &str, workflow: &Workflow) -> Result<(), ConfigError> {
        let Workflow { definition, line, .. } = workflow;
        self.request(WorkflowManagerRequestOperation::UpsertWorkflow { definition: definition.clone() });
        let failed = match self.state(&definition.name).await {
            Some(WorkflowState { status: WorkflowStatus::Error { message, .. }, .. }) => message,
            Some(_) => return Ok(()),
            None => "it does not run".to_owned(),
        };
        let what = format!("workflow {}: {failed}", definition.name);
        Err(ConfigError { file: file.to_owned(), line: Some(*line), what })
    }

    /// The followers of stream names.
    pub fn reactors(&self) -> &Arc<Reactors> {
        &self.reactors
    }

    /// The names of the workflows that run.
    pub async fn workflows(&self) -> Vec<String> {
        let (response_channel, answer) = oneshot::channel();
        self.request(WorkflowManagerRequestOperation::GetRunningWorkflows { response_channel });
        let mut names: Vec<String> =
            answer.await.unwrap_or_default().iter().map(|workflow| workflow.name.to_string()).collect();
        names.sort();
        names
    }

    /// What a workflow does, for people and tools; nothing if it does not run.
    pub async fn workflow(&self, name: &str) -> Option<Value> {
        let state = self.state(&Arc::new(name.to_owned())).await?;
        Some(describe::workflow(name, &state))
    }

    /// Stops all workflows, and waits for everything that ran in them, at most `deadline`. `false`: time ran out.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.stopping.cancel();
        for name in self.workflows().await {
            self.request(WorkflowManagerRequestOperation::StopWorkflow { name: Arc::new(name) });
        }
        self.tasks.close();
        let all = async {
            // The followers still have workflows to stop, through the task that waits for `stopped`.
            self.reactors.ended().await;
            self.stopped.cancel();
            self.tasks.wait().await;
        };
        tokio::time::timeout(deadline, all).await.is_ok()
    }

    async fn state(&self, name: &Arc<String>) -> Option<WorkflowState> {
        state(&self.manager, name).await
    }

    fn request(&self, operation: WorkflowManagerRequestOperation) {
        let request = WorkflowManagerRequest { request_id: "node".to_owned(), operation };
        if self.manager.send(request).is_err() {
            tracing::debug!("the workflow manager is gone");
        }
    }
}

/// What a workflow says of itself; nothing if it does not run.
async fn state(
    manager: &UnboundedSender<WorkflowManagerRequest>,
    name: &Arc<String>,
) -> Option<WorkflowState> {
    let (response_channel, answer) = oneshot::channel();
    let name = name.clone();
    let operation = WorkflowManagerRequestOperation::GetWorkflowDetails { name, response_channel };
    manager.send(WorkflowManagerRequest { request_id: "node".to_owned(), operation }).ok()?;
    answer.await.ok().flatten()
}

/// Hands requests to the manager.
async fn relay(
    mut requests: UnboundedReceiver<WorkflowManagerRequest>,
    manager: UnboundedSender<WorkflowManagerRequest>,
) {
    while let Some(request) = requests.recv().await {
        if manager.send(request).is_err() {
            break;
        }
    }
}

fn lock(keeper: &Mutex<Keeper>) -> MutexGuard<'_, Keeper> {
    keeper.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells those who need to know which workflows start and end.
async fn follow(
    mut events: UnboundedReceiver<WorkflowStartedOrStoppedEvent>,
    directory: Arc<Directory>,
    keeper: Arc<Mutex<Keeper>>,
    manager: UnboundedSender<WorkflowManagerRequest>,
    reactors: Arc<Reactors>,
    stopping: CancellationToken,
) {
    while let Some(event) = events.recv().await {
        match event {
            WorkflowStartedOrStoppedEvent::WorkflowStarted { name, channel } => {
                directory.set(&name, Some(channel));
                if lock(&keeper).is_down(&name) {
                    let status = state(&manager, &name).await.map(|state| state.status);
                    lock(&keeper).started(&name, status);
                }
            }
            WorkflowStartedOrStoppedEvent::WorkflowEnded { name } => {
                directory.set(&name, None);
                if !stopping.is_cancelled() {
                    lock(&keeper).ended(&name);
                    reactors.workflow_ended(&name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
