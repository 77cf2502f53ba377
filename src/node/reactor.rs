//! The reactor of a process, put together.

use super::error::{Error, start_error};
use crate::api::report::{Happening, StreamEvent};
use crate::config::{self, Plan};
use crate::health::Health;
use crate::observed::Observed;
use crate::registry::store::Store;
use crate::registry::{self, Memory, Notice, Redis, Registry};
use crate::telemetry::Metrics;
use crate::web::reactor::{self, Reactor};
use crate::web::{self, Door, ReactorMetrics, Secret};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A heartbeat is up to a tenth later than its interval.
const BEAT_JITTER: f64 = 1.1;

/// What a heartbeat may take from a busy node to a busy reactor. It does not shrink with the interval.
const BEAT_WAY: Duration = Duration::from_millis(500);

/// How often it is said that a reactor hears everybody.
const INSECURE_WARNING: Duration = Duration::from_secs(60);

/// The routes of the reactor, and a task that runs for as long as it does.
pub(super) fn start(
    plan: &Plan,
    metrics: &Metrics,
    health: &Health,
    stop: &CancellationToken,
) -> Result<(web::Routes, impl Future<Output = ()> + use<>), Error> {
    let args = &plan.args.reactor;
    let settings = registry::Settings {
        policy: args.duplicate_publish,
        warm_up: args.heartbeat.mul_f64(BEAT_JITTER) + BEAT_WAY,
        ..Default::default()
    };
    let store: Arc<dyn Store> = match args.store.as_str() {
        "memory" => Arc::new(Memory::new()),
        url => Arc::new(
            Redis::start(url)
                .map_err(|error| config::Error::Flag { flag: "--store", why: error.to_string() })?,
        ),
    };
    let registry = Registry::start(store, settings);
    let metrics = ReactorMetrics::register(metrics.registry(), &registry).map_err(start_error)?;
    let door = Door {
        token: plan.token.as_deref().map(Secret::new).transpose().map_err(start_error)?,
        trusted_nodes: args.trusted_nodes.clone(),
        trusted_proxies: args.trusted_proxies.clone(),
        hosts: args.reactor_hosts.clone(),
        allowed_origins: args.allowed_origins.clone(),
    };
    let warning = say_who_is_heard(&door, args.insecure, stop.clone());
    let observed = Arc::<Observed>::default();
    let noting = note_changes(registry.clone(), observed.clone(), stop.clone());
    let warning = async move {
        tokio::join!(warning, noting);
    };
    let reactor = Reactor {
        registry,
        observed,
        template: plan.template.clone(),
        door,
        metrics,
        health: health.clone(),
        stop: stop.clone(),
    };
    Ok((reactor::routes(reactor), warning))
}

/// Takes note of what this reactor sees happen to streams.
async fn note_changes(registry: Arc<Registry>, observed: Arc<Observed>, stop: CancellationToken) {
    let mut changes = registry.changes();
    loop {
        let notice = tokio::select! {
            () = stop.cancelled() => return,
            notice = changes.next() => notice,
        };
        let change = match notice {
            None => return,
            // What was missed is on the nodes' own lists.
            Some(Notice::Resync) => continue,
            Some(Notice::Change(change)) => change,
        };
        // The store may take its time to say whose it is.
        let seen = Instant::now();
        let event = if change.origin.is_some() { Happening::Registered } else { Happening::Unregistered };
        let owner = registry.owner(change.stream_name.clone()).await.ok().flatten();
        let owner = owner.filter(|lease| lease.epoch == change.epoch);
        let event = StreamEvent {
            event,
            ago_ms: 0,
            session: owner.and_then(|lease| lease.session).map(|session| session.tag()),
            number: Some(change.epoch),
            detail: change.origin.map(|origin| origin.to_string()),
            stream_name: change.stream_name,
        };
        observed.note(event, seen);
    }
}

/// Says once that only this host is heard, or every minute that everybody is.
fn say_who_is_heard(
    door: &Door,
    insecure: bool,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let guarded = door.token.is_some() || !door.trusted_nodes.is_empty();
    if !guarded && !insecure {
        tracing::info!(
            "the reactor is reached from this host only; for others it takes --reactor-token-file, --trusted-nodes or --insecure"
        );
    }
    async move {
        if guarded || !insecure {
            return;
        }
        let mut minutes = tokio::time::interval(INSECURE_WARNING);
        loop {
            tokio::select! {
                _ = minutes.tick() => {
                    tracing::warn!("--insecure: the reactor hears whoever reaches it: streams can be hijacked");
                }
                () = stop.cancelled() => return,
            }
        }
    }
}
