//! Changes of what runs: a configuration that is read again, and single workflows by the API. What stays the same is not touched, and neither
//! are its sessions: of a workflow that changes the steps that are equal go on, and the others are swapped. Only where a step would
//! take the place of one before it, which must let go of that first, the workflow is stopped and started anew.

use super::super::definition::{Config, ConfigError, ReactorDefinition, Workflow};
use super::check::{Listening, are_same, check_step, listening, place, ports, pulled_at};
use super::{Engine, state};
use crate::net::PortGuard;
use crate::net::routes::Place;
use mmids_core::workflows::definitions::{WorkflowDefinition, WorkflowStepDefinition};
use mmids_core::workflows::manager::WorkflowManagerRequestOperation;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long a workflow may take to end, or to begin.
const CHANGE: Duration = Duration::from_secs(5);

/// What a change came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Workflows that are new or others.
    pub started: Vec<String>,
    /// Workflows that are there no more.
    pub stopped: Vec<String>,
}

impl Engine {
    /// Runs these configurations, which were checked, in place of the ones before.
    ///
    /// Errors: what cannot be changed while the process runs, and then nothing is; or a workflow that does not start, with its
    /// place.
    pub async fn reload(&self, configs: &[(String, Config)]) -> Result<Changed, ConfigError> {
        let _one_at_a_time = self.changing.lock().await;
        self.check_fixed(configs)?;
        // Held until the steps hold them: a port that is used before and after stays open.
        let _ports = self.hold_ports(configs)?;
        let workflows =
            || configs.iter().flat_map(|(file, config)| config.workflows.iter().map(move |w| (file, w)));
        let names: BTreeSet<String> =
            workflows().map(|(_, workflow)| workflow.definition.name.to_string()).collect();
        let mut changed = Changed::default();
        for definition in self.kept() {
            if !names.contains(definition.name.as_str()) {
                self.end(&definition.name).await;
                changed.stopped.push(definition.name.to_string());
            }
        }
        for (file, workflow) in workflows() {
            if self.replace(file, workflow).await? {
                changed.started.push(workflow.definition.name.to_string());
            }
        }
        Ok(changed)
    }

    /// Runs a single workflow beside the others, or in place of the one that has its name.
    ///
    /// Errors: the text is not one workflow that can run here, with the line.
    pub async fn put(&self, config: &Config) -> Result<Changed, ConfigError> {
        const FILE: &str = "the workflow";
        let _one_at_a_time = self.changing.lock().await;
        let error = |what: &str| ConfigError { file: FILE.to_owned(), line: None, what: what.to_owned() };
        let [workflow] = &config.workflows[..] else {
            return Err(error("one workflow is allowed, and nothing else"));
        };
        if !config.reactors.is_empty() {
            return Err(error("reactors are defined by the configuration"));
        }
        for (index, step) in workflow.definition.steps.iter().enumerate() {
            check_step(step, &self.fixed.reactors, self.fixed.default_port).map_err(|what| ConfigError {
                file: FILE.to_owned(),
                line: Some(workflow.lines.get(index).copied().unwrap_or(workflow.line)),
                what,
            })?;
        }
        let configs = [(FILE.to_owned(), config.clone())];
        let _ports = self.hold_ports(&configs)?;
        let name = workflow.definition.name.to_string();
        let started = self.replace(FILE, workflow).await?;
        Ok(Changed { started: if started { vec![name] } else { Vec::new() }, stopped: Vec::new() })
    }

    /// Stops a workflow. `false`: there is none of this name.
    pub async fn remove(&self, name: &str) -> bool {
        let _one_at_a_time = self.changing.lock().await;
        let there = self.workflow(name).await.is_some();
        if there {
            self.end(&Arc::new(name.to_owned())).await;
        }
        there
    }

    /// What is there from the start to the end of the process.
    fn check_fixed(&self, configs: &[(String, Config)]) -> Result<(), ConfigError> {
        let same = |new: &ReactorDefinition, old: &ReactorDefinition| {
            new.name == old.name
                && new.executor == old.executor
                && new.update_interval == old.update_interval
                && new.parameters == old.parameters
        };
        let known = &self.fixed.reactors;
        let reactors =
            || configs.iter().flat_map(|(file, config)| config.reactors.iter().map(move |r| (file, r)));
        for (file, reactor) in reactors() {
            if !known.iter().any(|old| same(reactor, old)) {
                let what = format!("reactor {}: another one than before takes a restart", reactor.name);
                return Err(ConfigError { file: file.clone(), line: Some(reactor.line), what });
            }
        }
        if pulled_at(configs, self.fixed.default_port, None) != self.fixed.pulled_at {
            let file = configs.first().map(|(file, _)| file.clone()).unwrap_or_default();
            let what = "other nodes pull from another port than before, which takes a restart".to_owned();
            return Err(ConfigError { file, line: None, what });
        }
        Ok(())
    }

    /// Has all ports of these configurations open, so that what cannot be had is known before anything changes.
    fn hold_ports(&self, configs: &[(String, Config)]) -> Result<Vec<PortGuard>, ConfigError> {
        ports(configs, self.fixed.default_port)?;
        let hold = |one: Listening<'_>| {
            let guard = self.routes.hold(one.place.port, one.place.tls);
            guard.map_err(|error| one.error(format!("{}: {error}", one.step.step_type)))
        };
        listening(configs, self.fixed.default_port).map(hold).collect()
    }

    /// Runs a workflow unless it runs already just so. `true`: it was started.
    async fn replace(&self, file: &str, workflow: &Workflow) -> Result<bool, ConfigError> {
        let new = &workflow.definition;
        let old = self.kept().into_iter().find(|old| old.name == new.name);
        if old.as_ref().is_some_and(|old| is_same(old, new)) {
            return Ok(false);
        }
        if !old.as_ref().is_some_and(|old| can_swap(old, new, self.fixed.default_port)) {
            self.end(&new.name).await;
        }
        match self.run(file, workflow).await {
            Ok(()) => {
                self.keeper().keep(new.clone());
                Ok(true)
            }
            Err(error) => {
                self.end(&new.name).await;
                if let Some(old) = old {
                    self.request(WorkflowManagerRequestOperation::UpsertWorkflow { definition: old.clone() });
                    self.keeper().keep(old);
                }
                Err(error)
            }
        }
    }

    /// Stops a workflow, and waits until it has let go of what it held.
    async fn end(&self, name: &Arc<String>) {
        self.keeper().release(name);
        if state(&self.manager, name).await.is_none() {
            return;
        }
        if tokio::time::timeout(CHANGE, self.directory.end(name)).await.is_err() {
            tracing::warn!(workflow = %name, "the workflow does not end");
        }
    }

    fn kept(&self) -> Vec<WorkflowDefinition> {
        self.keeper().kept()
    }

    fn keeper(&self) -> std::sync::MutexGuard<'_, super::keeper::Keeper> {
        super::lock(&self.keeper)
    }
}

/// Whether the steps of a running workflow can be swapped for others while those that are equal go on: none of the new ones listens at a
/// place that one before it has until it is gone.
fn can_swap(old: &WorkflowDefinition, new: &WorkflowDefinition, default_port: u16) -> bool {
    let before: BTreeSet<u64> = old.steps.iter().map(|step| step.get_id()).collect();
    let added = new.steps.iter().filter(|step| !before.contains(&step.get_id()));
    let has_place = |step: &WorkflowStepDefinition, at: &Place| {
        place(step, default_port).is_some_and(|place| are_same(&place, at))
    };
    let free = |step: &WorkflowStepDefinition| {
        let at = place(step, default_port);
        let rivals = old.steps.iter().filter(|other| other.step_type == step.step_type);
        at.is_none_or(|at| !rivals.into_iter().any(|other| has_place(other, &at)))
    };
    old.routed_by_reactor == new.routed_by_reactor && added.into_iter().all(free)
}

fn is_same(one: &WorkflowDefinition, other: &WorkflowDefinition) -> bool {
    let steps = |definition: &WorkflowDefinition| {
        definition.steps.iter().map(|step| step.get_id()).collect::<Vec<_>>()
    };
    one.routed_by_reactor == other.routed_by_reactor && steps(one) == steps(other)
}
