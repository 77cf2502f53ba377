//! A process: the one place where the parts are put together.
//!
//! The order is that of linkerd's proxy, for its reasons: sockets are bound early, so that their addresses are known and a
//! taken port is an error before anything runs; the parts are started from the bottom up; readiness comes last; and the
//! stop goes the other way round.

mod agent_check;
mod contact;
mod ending;
mod error;
pub mod listen;
pub mod log;
mod memory;
mod reactor;
mod rtmp;
mod service;
mod sockets;
mod streams;
mod workflows;

pub use error::Error;
pub use sockets::Addresses;

use crate::config::Plan;
use crate::health::Health;
use crate::net;
use crate::steps::engine;
use crate::telemetry::Metrics;
use crate::web::{self, Door, Secret, admin};
use agent_check::AgentCheck;
use ending::{Ending, LAST_STEPS};
use error::start_error;
use rtmp::{Node, Shared};
use service::{Signals, hangups, keep_watchdog, notify, outlive_harmless_signals};
use sockets::{Entrances, Sockets};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use workflows::Workflows;

/// Runs a process until a signal stops it.
///
/// Errors: it cannot start, or a workflow cannot be kept running.
pub async fn run(plan: Plan) -> Result<(), Error> {
    run_and_tell(plan, |_| {}).await
}

/// As [`run`], and says once where it listens when it is ready.
///
/// Errors: as of [`run`].
pub async fn run_and_tell(plan: Plan, ready: impl FnOnce(&Addresses)) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let mut hangups = hangups()?;
    let plan = Arc::new(plan);
    let sockets = Sockets::bind(&plan)?;
    let health = Health::new();
    let serving = health.register("node");
    let metrics = Arc::new(Metrics::new().map_err(start_error)?);
    show_readiness(&health, &metrics)?;
    let ending = Ending::default();
    let servers = TaskTracker::new();
    let addresses = sockets.addresses.clone();

    let certificate = plan.args.transport.certificate();
    let tls = certificate.as_ref().map(net::certificate::server).transpose().map_err(start_error)?;
    let http = web::server::Server {
        tls: tls.clone().filter(|_| plan.args.transport.https),
        limits: web::server::Limits::default(),
        metrics: metrics.clone(),
    };

    if let Some(listener) = sockets.reactor {
        let (routes, warning) = reactor::start(&plan, &metrics, &health, &ending.servers)?;
        servers.spawn(warning);
        servers.spawn(web::server::serve(http.clone(), listener, routes, ending.servers.clone()));
    }
    let urls = plan.reactor_urls(addresses.reactor)?;
    let node = match plan.roles.is_node() {
        true => {
            let configs = plan.configs(sockets.rtmp_port, &urls)?;
            let other_way = sockets.rtmps_port.filter(|_| plan.args.transport.pull_tls);
            let pulled_at = engine::pulled_at(&configs, sockets.rtmp_port, other_way);
            let listeners: Result<Vec<_>, Error> =
                sockets.rtmp.into_iter().map(|rtmp| rtmp.entrance(tls.as_ref())).collect();
            let entrances = Entrances { listeners: listeners?, certificate: tls.clone() };
            let shared = Shared::new(&plan, &urls, sockets.rtmp_port, pulled_at, &metrics, &ending)?;
            Some(Node::start(&plan, shared, configs, entrances, &health, addresses.http).await?)
        }
        false => None,
    };
    if let Some(listener) = sockets.admin {
        let routes =
            admin::routes(admin_view(&plan, node.as_ref(), &metrics, &health, ending.asked.clone())?);
        servers.spawn(web::server::serve(http, listener, routes, ending.servers.clone()));
    }
    if let Some(listener) = sockets.agent {
        let (metrics, capacity) = (metrics.clone(), plan.args.limits.max_connections);
        let check =
            AgentCheck { health: health.clone(), metrics, capacity, draining: ending.draining.clone() };
        servers.spawn(check.serve(listener, ending.servers.clone()));
    }
    serving.set_ready();
    addresses.announce(&plan);
    let apps = node.as_ref().map(|node| node.routes.apps()).unwrap_or_default();
    addresses.guide(&apps, plan.args.transport.https);
    ready(&addresses);
    notify(sd_notify::NotifyState::Ready);
    let watchdog = AbortOnDropHandle::new(tokio::spawn(keep_watchdog()));
    let _harmless = AbortOnDropHandle::new(tokio::spawn(outlive_harmless_signals()?));

    let outcome = serve_until_told(&plan, node.as_ref(), &ending, (&mut signals, &mut hangups)).await;
    tracing::info!("stopping");
    notify(sd_notify::NotifyState::Stopping);
    serving.set_unready("draining");
    stop(node, plan.args.limits.drain_timeout, &ending, &servers, &mut signals).await;
    drop(watchdog);
    outcome
}

/// The node drains, then the servers end; at a second signal everything does at once.
async fn stop(
    node: Option<Node>,
    drain_timeout: Duration,
    ending: &Ending,
    servers: &TaskTracker,
    signals: &mut Signals,
) {
    ending.draining.cancel();
    let ended = async {
        if let Some(node) = node {
            node.stop(drain_timeout).await;
        }
        ending.servers.cancel();
        servers.close();
        drop(tokio::time::timeout(LAST_STEPS, servers.wait()).await);
    };
    tokio::select! {
        () = ended => {}
        () = signals.next() => tracing::warn!("stopped at once by a second signal"),
    }
}

/// Readiness as a metric.
fn show_readiness(health: &Health, metrics: &Metrics) -> Result<(), Error> {
    let health = health.clone();
    let help = "Whether this process is ready: 1, or 0 for a reason that /readyz says";
    metrics.look("lb_ready", help, move || u64::from(health.is_ready())).map_err(start_error)
}

/// Returns when the process is to stop; meanwhile reads the configuration again whenever it is told to.
///
/// Errors: a workflow cannot be kept running.
async fn serve_until_told(
    plan: &Plan,
    node: Option<&Node>,
    ending: &Ending,
    (signals, hangups): (&mut Signals, &mut Signal),
) -> Result<(), Error> {
    let failed = node.map_or_else(CancellationToken::new, |node| node.engine.failed().clone());
    loop {
        tokio::select! {
            () = signals.next() => return Ok(()),
            () = ending.asked.cancelled() => {
                tracing::info!("an operator asked this node to drain");
                return Ok(());
            }
            () = failed.cancelled() => {
                return Err(Error::Start("a workflow cannot be kept running".to_owned()));
            }
            _ = hangups.recv() => tokio::select! {
                () = reload(plan, node) => {}
                () = signals.next() => return Ok(()),
            },
        }
    }
}

/// What the admin port shows of a process, and changes.
fn admin_view(
    plan: &Arc<Plan>,
    node: Option<&Node>,
    metrics: &Arc<Metrics>,
    health: &Health,
    drain: CancellationToken,
) -> Result<admin::Admin, Error> {
    let (metrics, streams) = (metrics.clone(), node.map(|node| node.stream_metrics.clone()));
    let workflows = node.map(|node| {
        let (engine, urls) = (node.engine.clone(), node.urls.clone());
        Arc::new(Workflows { engine, plan: plan.clone(), rtmp_port: node.rtmp_port, urls })
            as Arc<dyn admin::Workflows>
    });
    let token = plan.token.as_deref().map(Secret::new).transpose().map_err(start_error)?;
    Ok(admin::Admin {
        drain,
        health: health.clone(),
        metrics: Arc::new(move || match &streams {
            Some(streams) => streams.filled(|| metrics.text()),
            None => metrics.text(),
        }),
        workflows,
        peers: node.map(|node| node.peers.clone()),
        log: admin::Log { get: log::current, set: log::set },
        door: Door { token, ..Door::default() },
    })
}

/// Takes the configuration and the log's filter as they stand in files and flags now. What is wrong with them changes nothing; keys and
/// certificates are read again whenever they change.
async fn reload(plan: &Plan, node: Option<&Node>) {
    notify(sd_notify::NotifyState::Reloading);
    if let Err(error) = log::set(&plan.args.log) {
        tracing::error!("the log's filter stays as it is: {error}");
    }
    if let Some(node) = node {
        let configs = plan.reread().and_then(|plan| plan.configs(node.rtmp_port, &node.urls));
        let changed = match configs {
            Ok(configs) => node.engine.reload(&configs).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match changed {
            Ok(changed) => {
                let (started, stopped) = (changed.started.join(", "), changed.stopped.join(", "));
                tracing::info!(started, stopped, "the configuration was read again");
            }
            Err(error) => tracing::error!("the configuration stays as it is: {error}"),
        }
    }
    notify(sd_notify::NotifyState::Ready);
}
