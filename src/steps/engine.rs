//! The workflow engine of `mmids-core`, put together with this project's steps.

use super::definition::{Config, ConfigError, ReactorDefinition, Workflow};
use super::executor::{self, Settings};
use super::forwarder::{self, Directory};
use super::parameters::{ParameterError, Parameters};
use super::pull;
use super::reactors::{Identity, Reactors};
use super::{rtmp_receive, rtmp_watch};
use crate::client::{ClientMetrics, Http};
use crate::ffmpeg::{self, PullEvent};
use crate::net;
use crate::net::location::Location;
use crate::net::routes::Routes;
use crate::published::Published;
use crate::relay;
use crate::relay::pull::{Event, Pull};
use crate::telemetry::{Counted, Metrics};
use mmids_core::event_hub::start_event_hub;
use mmids_core::workflows::definitions::{WorkflowStepDefinition, WorkflowStepType};
use mmids_core::workflows::manager::{
    WorkflowManagerRequest, WorkflowManagerRequestOperation, start_workflow_manager,
};
use mmids_core::workflows::steps::StepStatus;
use mmids_core::workflows::steps::factory::{StepGenerator, WorkflowStepFactory};
use mmids_core::workflows::steps::workflow_forwarder::WorkflowForwarderStepGenerator;
use mmids_core::workflows::{WorkflowState, WorkflowStatus};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Every step type, with its parameters.
fn step_types() -> [(&'static str, &'static [&'static str]); 6] {
    let [documented, registered] = forwarder::NAMES;
    [
        ("rtmp_receive", &rtmp_receive::PARAMETERS),
        ("rtmp_watch", &rtmp_watch::PARAMETERS),
        ("rtmp_pull", &pull::NATIVE_PARAMETERS),
        ("ffmpeg_pull", &pull::PARAMETERS),
        (documented, &forwarder::PARAMETERS),
        (registered, &forwarder::PARAMETERS),
    ]
}

/// What the engine is put together from.
pub struct Parts {
    /// Who this node is to reactors.
    pub identity: Identity,
    /// Where steps add their routes.
    pub routes: Arc<Routes>,
    /// The list of this node's publishers.
    pub published: Arc<Published>,
    /// How streams are relayed.
    pub relay: relay::Settings,
    /// How streams are pulled in this process.
    pub pull: net::pull::Settings,
    /// The limits of pulls.
    pub rtmp: crate::rtmp::Limits,
    /// How streams are pulled by ffmpeg.
    pub ffmpeg: ffmpeg::Settings,
    /// The connections to reactors.
    pub http: Http,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is counted of lookups.
    pub client_metrics: ClientMetrics,
    /// Called when a reactor answers again after an outage.
    pub reactor_back: Arc<dyn Fn() + Send + Sync>,
    /// Who waits for the engine's tasks.
    pub tasks: TaskTracker,
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    manager: UnboundedSender<WorkflowManagerRequest>,
    reactors: Arc<Reactors>,
    tasks: TaskTracker,
    stopped: CancellationToken,
}

/// Checks a configuration as far as that is possible without running it. `file` is named in errors.
pub fn check(file: &str, config: &Config, default_port: u16) -> Result<(), ConfigError> {
    for reactor in &config.reactors {
        let settings = Settings::read(file, reactor)?;
        if let Some(target) = &settings.forward_to
            && !config.workflows.iter().any(|workflow| *workflow.definition.name == *target)
        {
            let what = format!("reactor {}: forward_to {target}: there is no such workflow", reactor.name);
            return Err(ConfigError { file: file.to_owned(), line: Some(reactor.line), what });
        }
    }
    for workflow in &config.workflows {
        for (index, step) in workflow.definition.steps.iter().enumerate() {
            check_step(step, &config.reactors, default_port).map_err(|what| ConfigError {
                file: file.to_owned(),
                line: Some(workflow.lines.get(index).copied().unwrap_or(workflow.line)),
                what,
            })?;
        }
    }
    Ok(())
}

fn check_step(
    step: &WorkflowStepDefinition,
    reactors: &[ReactorDefinition],
    default_port: u16,
) -> Result<(), String> {
    let types = step_types();
    let name = step.step_type.0.as_str();
    let Some((_, known)) = types.iter().find(|(known, _)| *known == name) else {
        let all: Vec<&str> = types.iter().map(|(name, _)| *name).collect();
        return Err(format!("the step '{name}' is not known; {} are", all.join(", ")));
    };
    let mut given: Vec<&String> = step.parameters.keys().collect();
    given.sort();
    if let Some(unknown) = given.into_iter().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("{name}: the parameter '{unknown}' is not known; {} are", known.join(", ")));
    }
    if let Some(reactor) = Parameters(step).get("reactor")
        && !reactors.iter().any(|known| known.name == reactor)
    {
        let all: Vec<&str> = reactors.iter().map(|reactor| reactor.name.as_str()).collect();
        let known =
            if all.is_empty() { "none is defined".to_owned() } else { format!("{} are", all.join(", ")) };
        return Err(format!("{name}: reactor={reactor} is not known; {known}"));
    }
    let checked = match name {
        "rtmp_receive" => rtmp_receive::parameters(step, default_port).map(drop),
        "rtmp_watch" => rtmp_watch::parameters(step, default_port).map(drop),
        "rtmp_pull" => pull::parameters(step).and_then(|(location, _)| {
            read_location(&location)?;
            pull::deadlines(step).map(drop)
        }),
        "ffmpeg_pull" => pull::parameters(step).and_then(|(location, _)| {
            let read = ffmpeg::Location::parse(&location).map(drop);
            read.map_err(|error| ParameterError(format!("location: {error}")))
        }),
        _ => forwarder::parameters(step),
    };
    checked.map_err(|error| format!("{name}: {error}"))
}

fn read_location(location: &str) -> Result<Location, ParameterError> {
    Location::parse(location).map_err(|error| ParameterError(format!("location: {error}")))
}

/// The ports that the steps of a configuration listen on.
pub fn ports(config: &Config, default_port: u16) -> BTreeSet<u16> {
    let steps = config.workflows.iter().flat_map(|workflow| &workflow.definition.steps);
    let sockets = steps.filter(|step| matches!(step.step_type.0.as_str(), "rtmp_receive" | "rtmp_watch"));
    sockets.filter_map(|step| Parameters(step).place(default_port).ok()).map(|place| place.port).collect()
}

impl Engine {
    /// Starts the engine and all workflows of a configuration that was checked.
    pub async fn start(parts: Parts, configs: Vec<(String, Config)>) -> Result<Self, ConfigError> {
        let tasks = parts.tasks;
        let stopped = CancellationToken::new();
        let reactors: Arc<[ReactorDefinition]> =
            configs.iter().flat_map(|(_, config)| config.reactors.clone()).collect();
        let mut lookups = HashMap::new();
        for (file, reactor) in
            configs.iter().flat_map(|(file, config)| config.reactors.iter().map(move |r| (file, r)))
        {
            let settings = Settings::read(file, reactor)?;
            let (known, default_port) = (reactors.clone(), parts.identity.rtmp_port);
            let check = move |step: &WorkflowStepDefinition| check_step(step, &known, default_port);
            let lookup = settings.lookup(parts.http.clone(), parts.client_metrics.clone(), check);
            let back = parts.reactor_back.clone();
            let lookup = lookup.on_recovery(move || back());
            lookups.insert(reactor.name.clone(), (settings, lookup));
        }
        let (publisher, subscriber) = start_event_hub();
        let (directory, following) = Directory::subscribe(&subscriber);
        let (asked, requests) = unbounded_channel();
        let default_port = parts.identity.rtmp_port;
        // The manager takes the factory when it starts, and steps need the manager through the reactors: this channel is
        // what both can have before there is a manager.
        let (manager, mut relayed) = unbounded_channel();
        let reactors = Reactors::new(parts.identity, lookups, manager.clone());
        let mut factory = WorkflowStepFactory::new();
        let mut register = |name: &str, generator: Box<dyn StepGenerator + Sync + Send>| {
            factory.register(WorkflowStepType(name.to_owned()), generator).map_err(|error| ConfigError {
                file: "steps".to_owned(),
                line: None,
                what: error.to_string(),
            })
        };
        for name in forwarder::NAMES {
            let directory = directory.clone();
            let by_reactor = WorkflowForwarderStepGenerator::new(subscriber.clone(), asked.clone());
            register(name, Box::new(forwarder::Generator { directory, by_reactor }))?;
        }
        register(
            "rtmp_receive",
            Box::new(rtmp_receive::Generator {
                routes: parts.routes.clone(),
                reactors: reactors.clone(),
                published: parts.published,
                default_port,
            }),
        )?;
        register(
            "rtmp_watch",
            Box::new(rtmp_watch::Generator {
                routes: parts.routes,
                reactors: reactors.clone(),
                settings: parts.relay,
                metrics: parts.metrics.clone(),
                tasks: tasks.clone(),
                default_port,
            }),
        )?;
        let (settings, limits, metrics) = (parts.pull, parts.rtmp, parts.metrics.clone());
        let native = move |step: &WorkflowStepDefinition, location: &str| {
            let mut settings = settings.clone();
            let [connect, start, silence] = pull::deadlines(step)?;
            settings.connect = connect.unwrap_or(settings.connect);
            settings.start = start.unwrap_or(settings.start);
            settings.silence = silence.unwrap_or(settings.silence);
            Ok(net::pull::start(read_location(location)?, settings, limits, metrics.clone()))
        };
        register("rtmp_pull", Box::new(pull::Generator::new(Arc::new(native), reactors.clone())))?;
        let (settings, metrics) = (parts.ffmpeg, parts.metrics);
        let by_ffmpeg = move |_: &WorkflowStepDefinition, location: &str| {
            let location = ffmpeg::Location::parse(location);
            let location = location.map_err(|error| ParameterError(format!("location: {error}")))?;
            Ok(pull_by_ffmpeg(location, settings.clone(), &metrics))
        };
        register("ffmpeg_pull", Box::new(pull::Generator::new(Arc::new(by_ffmpeg), reactors.clone())))?;

        let core = start_workflow_manager(Arc::new(factory), publisher);
        let stop = stopped.clone();
        tasks.spawn(async move {
            let relay = async {
                while let Some(request) = relayed.recv().await {
                    if core.send(request).is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = relay => {}
            }
        });
        let serving = reactors.clone().serve(requests);
        let stop = stopped.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                ((), ()) = async { tokio::join!(serving, following) } => {}
            }
        });
        let engine = Engine { manager, reactors, tasks, stopped };
        for (file, config) in &configs {
            for workflow in &config.workflows {
                engine.run(file, workflow).await?;
            }
        }
        Ok(engine)
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
        let status = match &state.status {
            WorkflowStatus::Running => json!({"state": "running"}),
            WorkflowStatus::Error { message, .. } => json!({"state": "error", "message": message}),
        };
        let steps = |steps: &[mmids_core::workflows::WorkflowStepState]| -> Vec<Value> {
            steps.iter().map(|step| describe(&step.definition, &step.status)).collect()
        };
        Some(json!({
            "name": name,
            "status": status,
            "active_steps": steps(&state.active_steps),
            "pending_steps": steps(&state.pending_steps),
        }))
    }

    /// Stops all workflows, and waits for everything that ran in them, at most `deadline`. `false`: time ran out.
    pub async fn stop(&self, deadline: Duration) -> bool {
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
        let (response_channel, answer) = oneshot::channel();
        let name = name.clone();
        self.request(WorkflowManagerRequestOperation::GetWorkflowDetails { name, response_channel });
        answer.await.ok().flatten()
    }

    fn request(&self, operation: WorkflowManagerRequestOperation) {
        let request = WorkflowManagerRequest { request_id: "node".to_owned(), operation };
        if self.manager.send(request).is_err() {
            tracing::debug!("the workflow manager is gone");
        }
    }
}

fn pull_by_ffmpeg(location: ffmpeg::Location, settings: ffmpeg::Settings, metrics: &Metrics) -> Pull {
    const KIND: &[&str] = &["ffmpeg"];
    let counted = Counted::new(&metrics.pulls_in.with_label_values(KIND));
    let started = metrics.pulls_started_total.with_label_values(KIND);
    started.inc();
    let (puller, events) = ffmpeg::Puller::start(settings, location);
    Pull::new(ReceiverStream::new(events).map(move |event| {
        // The process and its count last as long as somebody listens.
        let _owned = (&puller, &counted);
        match event {
            PullEvent::Started => Event::Started,
            PullEvent::Media(packets) => Event::Packets(packets),
            PullEvent::Ended { reason, .. } => {
                started.inc();
                Event::Ended(reason.to_string())
            }
        }
    }))
}

fn describe(definition: &WorkflowStepDefinition, status: &StepStatus) -> Value {
    let parameters: HashMap<&String, String> = definition
        .parameters
        .iter()
        // Query strings may hold secrets.
        .map(|(key, value)| {
            let value = value.as_deref().unwrap_or_default();
            (key, value.split('?').next().unwrap_or_default().to_owned())
        })
        .collect();
    let status = match status {
        StepStatus::Created => "created".to_owned(),
        StepStatus::Active => "active".to_owned(),
        StepStatus::Shutdown => "shutdown".to_owned(),
        StepStatus::Error { message } => format!("error: {message}"),
    };
    json!({"type": definition.step_type.0, "parameters": parameters, "status": status})
}

/// Says whether a text is a workflow definition that mmids-core's own parser takes, as plain mmids nodes would. The
/// brackets of an IPv6 address are let through: that parser knows none, so plain nodes can have no such origin anyway.
pub fn check_answer(text: &str) -> Result<(), String> {
    executor::read(text, None)?;
    match mmids_core::config::parse(&text.replace(['[', ']'], "_")) {
        Ok(parsed) if parsed.workflows.is_empty() => Err("it defines no workflow".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("mmids cannot read it: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_checked_with_its_parameters() {
        let check = |step: &str| {
            let text = format!("workflow w {{\n {step}\n}}\n");
            let config = super::super::definition::parse("f", &text, &HashMap::new()).unwrap();
            check_step(&config.workflows[0].definition.steps[0], &[], 1935)
        };
        assert_eq!(check("rtmp_pull location=rtmp://[::1]/a/x stream_name=x"), Ok(()));
        assert_eq!(
            check("rtmp_pull location=rtmp://h/a/x stream_name=x connect_ms=1 silence_ms=600000"),
            Ok(())
        );
        assert_eq!(check("rtmp_watch rtmp_app=live/ stream_key=*"), Ok(()));
        for (bad, part) in [
            ("rtmp_pull location=nonsense stream_name=x", "not a URL"),
            ("rtmp_pull location=rtmp://h/a/x stream_name=a//b", "stream_name=a//b"),
            ("rtmp_pull location=rtmp://h/a/x", "lacks stream_name"),
            ("rtmp_pull location=rtmp://h/a/x stream_name=x start_ms=soon", "start_ms=soon is not allowed"),
            ("rtmp_pull location=rtmp://h/a/x stream_name=x silence_ms=0", "from 1 to 600000"),
            ("ffmpeg_pull location=rtmp://h/a/x stream_name=x silence_ms=1", "'silence_ms' is not known"),
            ("made_up x=y", "'made_up' is not known"),
            ("rtmp_watch rtmp_app=live/inst stream_key=*", "rtmp_app=live/inst is not allowed"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
