//! The engine's parts put together: which steps there are, and what each is made from.

use super::super::definition::{Config, ConfigError, ReactorDefinition};
use super::super::executor::Settings;
use super::super::forwarder::{self, Directory};
use super::super::parameters::ParameterError;
use super::super::pull::{self, Pull};
use super::super::reactors::{Identity, Reactors};
use super::super::{rtmp_receive, rtmp_watch};
use super::check::{check_step, place, read_location};
use crate::client::{ClientMetrics, Http};
use crate::ffmpeg;
use crate::health::Health;
use crate::ids::StreamName;
use crate::net;
use crate::net::routes::Routes;
use crate::published::Published;
use crate::relay::{self, Feeds};
use crate::telemetry::Metrics;
use mmids_core::event_hub::SubscriptionRequest;
use mmids_core::reactors::manager::ReactorManagerRequest;
use mmids_core::workflows::definitions::{WorkflowStepDefinition, WorkflowStepType};
use mmids_core::workflows::manager::WorkflowManagerRequest;
use mmids_core::workflows::steps::factory::{StepGenerator, WorkflowStepFactory};
use mmids_core::workflows::steps::workflow_forwarder::WorkflowForwarderStepGenerator;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::task::TaskTracker;

/// What the engine is put together from.
pub struct Parts {
    /// Who this node is to reactors.
    pub identity: Identity,
    /// The RTMP port of steps that name none.
    pub default_port: u16,
    /// Where steps add their routes.
    pub routes: Arc<Routes>,
    /// Where the media of streams is found.
    pub feeds: Arc<Feeds>,
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
    /// Where it is said that a workflow does not run.
    pub health: Health,
    /// Who waits for the engine's tasks.
    pub tasks: TaskTracker,
}

/// The mmids reactors of all configurations, which follow names and run workflows through `manager`.
pub(super) fn reactors(
    parts: &Parts,
    configs: &[(String, Config)],
    manager: UnboundedSender<WorkflowManagerRequest>,
) -> Result<Arc<Reactors>, ConfigError> {
    let defined = || configs.iter().flat_map(|(file, config)| config.reactors.iter().map(move |r| (file, r)));
    let known: Arc<[ReactorDefinition]> = defined().map(|(_, reactor)| reactor.clone()).collect();
    let mut lookups = HashMap::new();
    for (file, reactor) in defined() {
        let settings = Settings::read(file, reactor)?;
        let (known, default_port, routes) = (known.clone(), parts.default_port, parts.routes.clone());
        // An answer whose ports cannot be had is none: what runs goes on, and the log says why.
        let check = move |step: &WorkflowStepDefinition| {
            check_step(step, &known, default_port)?;
            let held = place(step, default_port).map(|place| routes.hold(place.port, place.tls));
            held.transpose().map(drop).map_err(|error| format!("{}: {error}", step.step_type))
        };
        let lookup = settings.lookup(parts.http.clone(), parts.client_metrics.clone(), check);
        let back = parts.reactor_back.clone();
        lookups.insert(reactor.name.clone(), (settings, lookup.on_recovery(move || back())));
    }
    Ok(Reactors::new(parts.identity.clone(), lookups, manager, parts.metrics.clone()))
}

/// The makers of all steps, by the names they have in configurations. `events` and `asked` are the engine's own channels,
/// for its forwarder.
pub(super) fn factory(
    parts: Parts,
    reactors: &Arc<Reactors>,
    directory: &Arc<Directory>,
    events: &UnboundedSender<SubscriptionRequest>,
    asked: &UnboundedSender<ReactorManagerRequest>,
) -> Result<WorkflowStepFactory, ConfigError> {
    let mut steps: Vec<(&str, Box<dyn StepGenerator + Sync + Send>)> = Vec::new();
    for name in forwarder::NAMES {
        let by_reactor = WorkflowForwarderStepGenerator::new(events.clone(), asked.clone());
        let directory = directory.clone();
        steps.push((name, Box::new(forwarder::Generator { directory, by_reactor })));
    }
    let native = native_pull(&parts, reactors.clone());
    let by_ffmpeg = ffmpeg_pull(&parts);
    steps.push(("rtmp_pull", Box::new(pull::Generator::new(native, reactors.clone()))));
    steps.push(("ffmpeg_pull", Box::new(pull::Generator::new(by_ffmpeg, reactors.clone()))));
    let receive = rtmp_receive::Generator {
        routes: parts.routes.clone(),
        reactors: reactors.clone(),
        published: parts.published,
        default_port: parts.default_port,
    };
    steps.push(("rtmp_receive", Box::new(receive)));
    let watch = rtmp_watch::Generator {
        routes: parts.routes,
        reactors: reactors.clone(),
        feeds: parts.feeds,
        settings: parts.relay,
        metrics: parts.metrics,
        tasks: parts.tasks,
        default_port: parts.default_port,
    };
    steps.push(("rtmp_watch", Box::new(watch)));
    let mut factory = WorkflowStepFactory::new();
    for (name, generator) in steps {
        let registered = factory.register(WorkflowStepType(name.to_owned()), generator);
        registered.map_err(|error| ConfigError {
            file: "steps".to_owned(),
            line: None,
            what: error.to_string(),
        })?;
    }
    Ok(factory)
}

/// How `rtmp_pull` starts.
fn native_pull(parts: &Parts, reactors: Arc<Reactors>) -> Arc<pull::Start> {
    let (defaults, limits) = (parts.pull.clone(), parts.rtmp);
    let (feeds, metrics) = (parts.feeds.clone(), parts.metrics.clone());
    Arc::new(move |step: &WorkflowStepDefinition, name: &StreamName, location: &str| {
        let mut settings = defaults.clone();
        let [connect, start, silence] = pull::deadlines(step)?;
        settings.connect = connect.unwrap_or(settings.connect);
        settings.start = start.unwrap_or(settings.start);
        settings.silence = silence.unwrap_or(settings.silence);
        let (location, nudge) = (read_location(location)?, reactors.nudge(name));
        let (feeds, metrics) = (feeds.clone(), metrics.clone());
        let (pull, events) = net::pull::start(location, settings, limits, feeds, metrics, nudge);
        Ok(Pull { events, running: Box::new(pull) })
    })
}

/// How `ffmpeg_pull` starts.
fn ffmpeg_pull(parts: &Parts) -> Arc<pull::Start> {
    let (settings, feeds, metrics) = (parts.ffmpeg.clone(), parts.feeds.clone(), parts.metrics.clone());
    Arc::new(move |_: &WorkflowStepDefinition, _: &StreamName, location: &str| {
        let location = ffmpeg::Location::parse(location);
        let location = location.map_err(|error| ParameterError(format!("location: {error}")))?;
        let (puller, events) =
            ffmpeg::Puller::start(settings.clone(), location, feeds.clone(), metrics.clone());
        Ok(Pull { events, running: Box::new(puller) })
    })
}
