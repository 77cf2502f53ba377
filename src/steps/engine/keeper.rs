//! Keeps the configured workflows running: one that ends although nobody stopped it is started again. While it does not
//! run the process is not ready, and one that cannot be started again ends the process, so that its service manager starts it
//! anew.

use crate::health::Health;
use mmids_core::workflows::WorkflowStatus;
use mmids_core::workflows::definitions::WorkflowDefinition;
use mmids_core::workflows::manager::{WorkflowManagerRequest, WorkflowManagerRequestOperation};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a workflow is started again within [`PERIOD`]: a fault that comes back each time is not mended by trying.
const RESTARTS: usize = 5;

/// See [`RESTARTS`].
const PERIOD: Duration = Duration::from_secs(60);

/// See the module's head. It is told of what starts and ends by [`Keeper::started`] and [`Keeper::ended`].
#[derive(Debug)]
pub(super) struct Keeper {
    kept: HashMap<String, Kept>,
    down: HashSet<String>,
    manager: UnboundedSender<WorkflowManagerRequest>,
    condition: crate::health::Condition,
    failed: CancellationToken,
}

#[derive(Debug)]
struct Kept {
    definition: WorkflowDefinition,
    /// When it was started again.
    restarts: Vec<Instant>,
}

impl Keeper {
    /// Keeps these workflows. `failed` is cancelled when one of them cannot be kept.
    pub fn new(
        workflows: impl IntoIterator<Item = WorkflowDefinition>,
        manager: UnboundedSender<WorkflowManagerRequest>,
        health: &Health,
        failed: CancellationToken,
    ) -> Self {
        let kept = |definition: WorkflowDefinition| {
            (definition.name.to_string(), Kept { definition, restarts: Vec::new() })
        };
        let condition = health.register("workflows");
        condition.set_ready();
        let kept = workflows.into_iter().map(kept).collect();
        Keeper { kept, down: HashSet::new(), manager, condition, failed }
    }

    /// Keeps one more workflow, or one in place of another of its name.
    pub fn keep(&mut self, definition: WorkflowDefinition) {
        let name = definition.name.to_string();
        self.kept.insert(name, Kept { definition, restarts: Vec::new() });
    }

    /// A workflow will end because it is told to.
    pub fn release(&mut self, name: &str) {
        self.kept.remove(name);
        self.down.remove(name);
        self.say();
    }

    /// What is kept.
    pub fn kept(&self) -> Vec<WorkflowDefinition> {
        self.kept.values().map(|kept| kept.definition.clone()).collect()
    }

    /// Whether a workflow was started again and has not been seen running since.
    pub fn is_down(&self, name: &str) -> bool {
        self.down.contains(name)
    }

    /// A workflow that was down is there again, in this state; nothing: it has ended meanwhile, which is told apart.
    pub fn started(&mut self, name: &str, status: Option<WorkflowStatus>) {
        match status {
            Some(WorkflowStatus::Running) => {
                self.down.remove(name);
                tracing::warn!(workflow = name, "the workflow runs again");
            }
            Some(WorkflowStatus::Error { message, .. }) => {
                tracing::error!(
                    workflow = name,
                    "the workflow does not start again, this process ends: {message}"
                );
                self.failed.cancel();
            }
            None => {}
        }
        self.say();
    }

    /// A workflow ended. All are expected to once the engine stops, when this is called no more.
    pub fn ended(&mut self, name: &str) {
        let Some(Kept { definition, restarts }) = self.kept.get_mut(name) else { return };
        self.down.insert(name.to_owned());
        restarts.retain(|at| at.elapsed() < PERIOD);
        if restarts.len() >= RESTARTS {
            tracing::error!(workflow = name, "the workflow ends again and again: this process ends");
            self.failed.cancel();
        } else {
            tracing::error!(
                workflow = name,
                "the workflow ended although nobody stopped it: it is started again"
            );
            restarts.push(Instant::now());
            let operation =
                WorkflowManagerRequestOperation::UpsertWorkflow { definition: definition.clone() };
            let request = WorkflowManagerRequest { request_id: "keeper".to_owned(), operation };
            if self.manager.send(request).is_err() {
                self.failed.cancel();
            }
        }
        self.say();
    }

    fn say(&self) {
        let mut down: Vec<&str> = self.down.iter().map(String::as_str).collect();
        down.sort_unstable();
        match down.is_empty() {
            true => self.condition.set_ready(),
            false => self.condition.set_unready(format!("not running: {}", down.join(", "))),
        }
    }
}
