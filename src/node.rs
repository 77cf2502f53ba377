//! A process: the one place where the parts are put together.
//!
//! The order is that of linkerd's proxy, for its reasons: sockets are bound early, so that their addresses are known and a
//! taken port is an error before anything runs; the parts are started from the bottom up; readiness comes last; and the
//! stop goes the other way round.

mod agent_check;
mod error;
pub mod listen;
pub mod log;
mod memory;
mod reactor;
mod service;
mod sockets;
mod streams;
mod workflows;

pub use error::Error;
pub use sockets::Addresses;

use crate::api::Heartbeat;
use crate::api::report::HttpPlay;
use crate::auth::{Action, Gate, PullKey};
use crate::budget::Budget;
use crate::cli::PullBy;
use crate::client::{
    Agent, AgentSettings, ClientMetrics, Contact, Event, Events, EventsSettings, Http, KEEP_ALIVE, Reporter,
    Urls,
};
use crate::config::{Checked, Plan};
use crate::drain::Drain;
use crate::health::Health;
use crate::ids::{NodeId, Origin};
use crate::net::{self, Entrance, Peers, routes::Routes};
use crate::published::Published;
use crate::relay::{self, Batching, Feeds};
use crate::steps::reactors::{Identity, PulledAt, Reactors};
use crate::steps::{Engine, Parts, engine};
use crate::telemetry::Metrics;
use crate::web::{self, Door, Secret, admin};
use crate::{ffmpeg, rtmp};
use agent_check::AgentCheck;
use error::start_error;
use service::{Signals, hangups, keep_watchdog, notify, outlive_harmless_signals};
use sockets::Sockets;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use streams::{Reports, StreamMetrics};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use workflows::Workflows;

/// How long the end of what remains may take after the drain: the workflows, the ffmpeg processes, the HTTP servers.
const LAST_STEPS: Duration = Duration::from_secs(3);

/// The part of the drain timeout over which viewers are sent away; the rest is for their last messages.
const SPREAD_PART: f64 = 0.8;

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
    let ready_gauge = {
        let health = health.clone();
        move || u64::from(health.is_ready())
    };
    let help = "Whether this process is ready: 1, or 0 for a reason that /readyz says";
    metrics.look("lb_ready", help, ready_gauge).map_err(start_error)?;
    let stop = CancellationToken::new();
    let drain = CancellationToken::new();
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
        let (routes, warning) = reactor::start(&plan, &metrics, &health, &stop)?;
        servers.spawn(warning);
        servers.spawn(web::server::serve(http.clone(), listener, routes, stop.clone()));
    }
    let urls = plan.reactor_urls(addresses.reactor)?;
    let node = match plan.roles.is_node() {
        true => {
            let configs = plan.configs(sockets.rtmp_port, &urls)?;
            let other_way = sockets.rtmps_port.filter(|_| plan.args.transport.pull_tls);
            let pulled_at = engine::pulled_at(&configs, sockets.rtmp_port, other_way);
            let entrances: Result<Vec<_>, Error> =
                sockets.rtmp.into_iter().map(|rtmp| rtmp.entrance(tls.as_ref())).collect();
            let shared = Shared::new(&plan, &urls, sockets.rtmp_port, pulled_at, &metrics, drain.clone())?;
            Some(Node::start(&plan, shared, configs, entrances?, &health, addresses.http).await?)
        }
        false => None,
    };
    if let Some(listener) = sockets.admin {
        let routes = admin::routes(admin_view(&plan, node.as_ref(), &metrics, &health, drain.clone())?);
        servers.spawn(web::server::serve(http, listener, routes, stop.clone()));
    }
    let draining = CancellationToken::new();
    if let Some(listener) = sockets.agent {
        let (metrics, capacity) = (metrics.clone(), plan.args.limits.max_connections);
        let check = AgentCheck { health: health.clone(), metrics, capacity, draining: draining.clone() };
        servers.spawn(check.serve(listener, stop.clone()));
    }
    serving.set_ready();
    addresses.announce(&plan);
    let apps = node.as_ref().map(|node| node.routes.apps()).unwrap_or_default();
    addresses.guide(&apps, plan.args.transport.https);
    ready(&addresses);
    notify(sd_notify::NotifyState::Ready);
    let watchdog = AbortOnDropHandle::new(tokio::spawn(keep_watchdog()));
    let _harmless = AbortOnDropHandle::new(tokio::spawn(outlive_harmless_signals()?));

    let failed = node.as_ref().map_or_else(CancellationToken::new, |node| node.engine.failed().clone());
    let outcome = loop {
        tokio::select! {
            () = signals.next() => break Ok(()),
            () = drain.cancelled() => {
                tracing::info!("an operator asked this node to drain");
                break Ok(());
            }
            () = failed.cancelled() => {
                break Err(Error::Start("a workflow cannot be kept running".to_owned()));
            }
            _ = hangups.recv() => tokio::select! {
                () = reload(&plan, node.as_ref()) => {}
                () = signals.next() => break Ok(()),
            },
        }
    };
    tracing::info!("stopping");
    notify(sd_notify::NotifyState::Stopping);
    serving.set_unready("draining");
    draining.cancel();
    let ended = async {
        if let Some(node) = node {
            node.stop(plan.args.limits.drain_timeout).await;
        }
        stop.cancel();
        servers.close();
        drop(tokio::time::timeout(LAST_STEPS, servers.wait()).await);
    };
    tokio::select! {
        () = ended => {}
        () = signals.next() => tracing::warn!("stopped at once by a second signal"),
    }
    drop(watchdog);
    outcome
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

/// The RTMP side of a process, with what tells reactors about it.
struct Node {
    drain: Drain,
    engine: Arc<Engine>,
    agent: Agent,
    draining: CancellationToken,
    _events: (Events, AbortOnDropHandle<()>),
    _contact: AbortOnDropHandle<()>,
    _trimming: AbortOnDropHandle<()>,
    _reporter: Option<Reporter>,
    stream_metrics: Arc<StreamMetrics>,
    routes: Arc<Routes>,
    peers: Arc<Peers>,
    /// The port of steps that name none.
    rtmp_port: u16,
    urls: Urls,
}

/// What the parts of a node share.
struct Shared<'a> {
    args: &'a crate::cli::Args,
    urls: &'a Urls,
    node: NodeId,
    /// The port of steps that name none.
    rtmp_port: u16,
    /// Where this node's publishers register: what `--advertise` says, and the port that others pull from.
    origin: Option<Origin>,
    /// The ports that others pull from.
    pulled_at: PulledAt,
    rtmp: rtmp::Limits,
    routes: Arc<Routes>,
    feeds: Arc<Feeds>,
    published: Arc<Published>,
    http: Http,
    gate: Arc<Gate>,
    /// What pulls between nodes are signed with.
    pull_key: Option<PullKey>,
    /// Whom this node believes where it connects by TLS.
    believed: Arc<rustls::ClientConfig>,
    metrics: Arc<Metrics>,
    client_metrics: ClientMetrics,
    draining: CancellationToken,
    asked_to_drain: CancellationToken,
}

impl<'a> Shared<'a> {
    fn new(
        plan: &'a Plan,
        urls: &'a Urls,
        rtmp_port: u16,
        pulled_at: PulledAt,
        metrics: &Arc<Metrics>,
        asked_to_drain: CancellationToken,
    ) -> Result<Self, Error> {
        let args = &plan.args;
        let believed = net::certificate::client(args.transport.ca_file.as_deref()).map_err(start_error)?;
        let plain = Http::believing((*believed).clone()).map_err(start_error)?;
        let node = args.node_id.clone().unwrap_or_else(|| node_id(&plan.roles, rtmp_port));
        let gate = gate(args, &node, &plain)?;
        let asked = args.limits.memory_budget.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let budget = Budget::new(asked.unwrap_or_else(memory::default_budget));
        memory::register(&budget, metrics).map_err(start_error)?;
        let http = match &plan.token {
            Some(token) => plain.with_token(token).map_err(start_error)?,
            None => plain,
        };
        Ok(Shared {
            args,
            urls,
            node,
            gate,
            pull_key: plan.token.as_deref().map(PullKey::of),
            believed,
            rtmp_port,
            origin: origin(args, pulled_at)?,
            pulled_at,
            rtmp: rtmp::Limits { message_bytes: args.limits.max_message_bytes, ..Default::default() },
            routes: Routes::new(),
            feeds: Feeds::within(budget, metrics.clone()),
            published: Published::new(),
            http,
            metrics: metrics.clone(),
            client_metrics: ClientMetrics::register(metrics.registry()).map_err(start_error)?,
            draining: CancellationToken::new(),
            asked_to_drain,
        })
    }

    fn agent(&self, plan: &Plan) -> Agent {
        let beat = Beat {
            roles: plan.roles.names(),
            capacity: self.args.limits.max_connections as u64,
            pulled_at: self.pulled_at,
            origin: self.origin.clone(),
            metrics: self.metrics.clone(),
            draining: self.draining.clone(),
        };
        let settings = AgentSettings {
            http: self.http.clone(),
            reactors: self.urls.clone(),
            node: self.node.clone(),
            interval: self.args.reactor.heartbeat,
        };
        Agent::start(settings, self.published.clone(), move || beat.load(), self.client_metrics.clone())
    }

    /// Where browsers play from this node.
    fn http_play(&self, bound: SocketAddr) -> Result<HttpPlay, Error> {
        let named = self.args.http_advertise.as_deref();
        let named = named.map(|text| Origin::parse(text, bound.port())).transpose().map_err(start_error)?;
        let port = named.as_ref().map_or(bound.port(), Origin::port);
        let host = named.map(|named| named.host().to_owned());
        Ok(HttpPlay { host, port, tls: self.args.transport.https, app: String::new() })
    }

    /// Tells reactors how the streams are doing, unless nobody wants to know.
    fn reporter(&self, http: Option<HttpPlay>) -> Option<Reporter> {
        let every = Some(self.args.reactor.report_interval).filter(|every| !every.is_zero())?;
        self.metrics.journal.keep();
        let (routes, metrics) = (self.routes.clone(), self.metrics.clone());
        let mut reports = Reports { routes, metrics, http, every, before: HashMap::new(), traffic: None };
        let (node, urls, counted) = (self.node.clone(), self.urls, self.client_metrics.clone());
        let drain = self.asked_to_drain.clone();
        Some(Reporter::start(self.http.clone(), urls, node, every, move || reports.next(), drain, counted))
    }

    fn engine_parts(&self, agent: &Agent, health: &Health) -> Parts {
        Parts {
            identity: Identity {
                node: self.node.clone(),
                origin: self.origin.clone(),
                pulled_at: self.pulled_at,
                native_pull: self.args.media.pull == PullBy::Native,
            },
            default_port: self.rtmp_port,
            routes: self.routes.clone(),
            feeds: self.feeds.clone(),
            published: self.published.clone(),
            relay: relay_settings(self.args),
            pull: net::pull::Settings {
                key: self.pull_key.clone(),
                tls: Some(self.believed.clone()),
                only_tls: self.args.transport.pull_tls,
                ..net::pull::Settings::new(self.node.clone())
            },
            rtmp: self.rtmp,
            ffmpeg: ffmpeg::Settings {
                ffmpeg: self.args.media.ffmpeg_path.clone(),
                signer: self.pull_key.clone().map(|key| (key, self.node.clone())),
                ca_file: self.args.transport.ca_file.clone(),
                only_tls: self.args.transport.pull_tls,
                ..Default::default()
            },
            http: self.http.clone(),
            metrics: self.metrics.clone(),
            client_metrics: self.client_metrics.clone(),
            reactor_back: Arc::new(agent.poker()),
            health: health.clone(),
            tasks: TaskTracker::new(),
        }
    }

    /// Follows changes of ownership for as long as what is returned is held.
    fn follow(&self, reactors: &Arc<Reactors>, agent: &Agent) -> (Events, AbortOnDropHandle<()>) {
        let (http, reactor_urls) = (self.http.clone(), self.urls.clone());
        let settings = EventsSettings { http, reactors: reactor_urls, keep_alive: KEEP_ALIVE };
        let (events, changes) = Events::start(settings, self.client_metrics.clone());
        let following = follow_changes(changes, reactors.clone(), self.published.clone(), agent.poker());
        (events, AbortOnDropHandle::new(tokio::spawn(following)))
    }

    fn listen(&self, entrances: Vec<(TcpListener, Entrance)>, drain: &Drain) -> Result<Arc<Peers>, Error> {
        let limits = net::Limits {
            connections: self.args.limits.max_connections,
            connections_per_address: self.args.limits.max_connections_per_address,
            joins_per_address: self.args.limits.max_joins_per_address,
            negotiation: self.args.limits.handshake_timeout,
            publish_messages: self.args.limits.max_publish_messages,
            publish_bytes: self.args.limits.max_publish_bytes,
            rtmp: self.rtmp,
            ..Default::default()
        };
        let server = net::Server::new(net::Parts {
            routes: self.routes.clone(),
            gate: self.gate.clone(),
            pull_key: self.pull_key.clone(),
            proxies: self.args.transport.proxy_protocol_from.clone(),
            limits,
            feeds: self.feeds.clone(),
            metrics: self.metrics.clone(),
            drain: drain.clone(),
            node: self.node.clone(),
            drain_spread: self.args.limits.drain_timeout.mul_f64(SPREAD_PART),
        });
        let listen = |(listener, entrance)| server.listen_for(listener, entrance);
        entrances.into_iter().try_for_each(listen).map_err(start_error)?;
        Ok(server.peers().clone())
    }
}

/// What this node registers as its origin, if a flag says so.
fn origin(args: &crate::cli::Args, pulled_at: PulledAt) -> Result<Option<Origin>, Error> {
    let origin = args.origin(pulled_at.rtmps.unwrap_or(pulled_at.rtmp)).map_err(start_error)?;
    Ok(match pulled_at.rtmps {
        Some(_) => origin.map(Origin::by_tls),
        None => origin,
    })
}

/// What a node is called that was given no name.
fn node_id(roles: &crate::config::Roles, rtmp_port: u16) -> NodeId {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    NodeId::of(host.trim(), &roles.names(), rtmp_port)
}

/// Who may publish and play, as the flags say.
fn gate(args: &crate::cli::Args, node: &NodeId, web: &Http) -> Result<Arc<Gate>, Error> {
    let gate = Gate::start(&args.auth.settings(), Arc::new(web.clone()), node).map_err(start_error)?;
    for (action, what) in [(Action::Publish, "publish"), (Action::Play, "play")] {
        if gate.is_open(action) {
            tracing::info!("anybody may {what}: no --auth-… flag decides about it");
        }
    }
    Ok(gate)
}

fn relay_settings(args: &crate::cli::Args) -> relay::Settings {
    let window = |millis| Batching::Window(Duration::from_millis(millis));
    relay::Settings {
        batching: args.media.batch_window_ms().map_or(Batching::AudioWithVideo, window),
        grace: args.media.publisher_grace,
        ..Default::default()
    }
}

impl Node {
    async fn start(
        plan: &Plan,
        shared: Shared<'_>,
        configs: Vec<Checked>,
        entrances: Vec<(TcpListener, Entrance)>,
        health: &Health,
        http: Option<SocketAddr>,
    ) -> Result<Self, Error> {
        let drain = Drain::new();
        let agent = shared.agent(plan);
        let engine = Arc::new(Engine::start(shared.engine_parts(&agent, health), configs).await?);
        let events = shared.follow(engine.reactors(), &agent);
        let peers = shared.listen(entrances, &drain)?;
        let contact = tokio::spawn(watch_contact(agent.contact(), health.register("reactor")));
        let contact = AbortOnDropHandle::new(contact);
        let trimming = AbortOnDropHandle::new(tokio::spawn(memory::give_back()));
        let http = http.map(|address| shared.http_play(address)).transpose()?;
        let reporter = shared.reporter(http);
        let most = shared.args.limits.stream_metrics;
        let stream_metrics = StreamMetrics::register(
            shared.routes.clone(),
            shared.published.clone(),
            most,
            shared.metrics.registry(),
        );
        Ok(Node {
            _reporter: reporter,
            routes: shared.routes.clone(),
            peers,
            rtmp_port: shared.rtmp_port,
            urls: shared.urls.clone(),
            stream_metrics: Arc::new(stream_metrics.map_err(start_error)?),
            drain,
            engine,
            agent,
            draining: shared.draining,
            _events: events,
            _contact: contact,
            _trimming: trimming,
        })
    }

    /// Tells everybody, waits, and ends what is left.
    async fn stop(self, timeout: Duration) {
        self.draining.cancel();
        self.agent.poke();
        if !self.drain.stop(timeout, LAST_STEPS).await {
            tracing::warn!("some connections did not end in time");
        }
        // The admin port may be answering about the engine at this moment, so it is not ours alone.
        if !self.engine.stop(LAST_STEPS).await {
            tracing::warn!("some workflows did not end in time");
        }
        self.agent.shutdown().await;
    }
}

/// What a heartbeat says beside what is published.
struct Beat {
    roles: Vec<String>,
    capacity: u64,
    pulled_at: PulledAt,
    origin: Option<Origin>,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
}

impl Beat {
    fn load(&self) -> Heartbeat {
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        let pulls = ["native", "ffmpeg"].map(|kind| self.metrics.pulls_in.with_label_values(&[kind]).get());
        Heartbeat {
            origin: self.origin.clone(),
            rtmp_port: Some(self.pulled_at.rtmp),
            rtmps_port: self.pulled_at.rtmps,
            draining: self.draining.is_cancelled(),
            roles: self.roles.clone(),
            viewers: count(self.metrics.viewers.get()),
            pulls: count(pulls.iter().sum()),
            received_bytes: self.metrics.received_bytes_total.get(),
            sent_bytes: self.metrics.sent_bytes_total.get(),
            capacity: self.capacity,
            ..Heartbeat::default()
        }
    }
}

/// Acts on changes of ownership at once: who watches a stream follows it, and a publisher that lost its name hears of it
/// from the reply to the heartbeat that is sent now, which names it.
async fn follow_changes(
    mut changes: mpsc::Receiver<Event>,
    reactors: Arc<Reactors>,
    published: Arc<Published>,
    poke: impl Fn(),
) {
    while let Some(event) = changes.recv().await {
        match event {
            Event::Hello => {
                // Most likely a reactor that was away. It asks for the whole list if it lost it.
                poke();
                reactors.changes_missed();
            }
            Event::Change(change) => {
                if published.changed_hands(&change.stream_name, change.epoch) {
                    poke();
                }
                reactors.changed(&change.stream_name);
            }
        }
    }
}

/// A node is ready once a reactor has heard it. After that an outage of reactors is no reason to send viewers away.
async fn watch_contact(
    mut contact: tokio::sync::watch::Receiver<Contact>,
    condition: crate::health::Condition,
) {
    condition.set_unready("no reactor was reached yet");
    loop {
        match &*contact.borrow_and_update() {
            Contact::Untried => {}
            Contact::Unreachable { error, .. } => {
                condition.set_unready(format!("no reactor was reached yet: {error}"));
            }
            Contact::Reachable { .. } | Contact::Plain => {
                condition.set_ready();
                return;
            }
        }
        if contact.changed().await.is_err() {
            return;
        }
    }
}
