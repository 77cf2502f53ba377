//! A process: the one place where the parts are put together.
//!
//! The order is that of linkerd's proxy, for its reasons: sockets are bound early, so that their addresses are known and a
//! taken port is an error before anything runs; the parts are started from the bottom up; readiness comes last; and the
//! stop goes the other way round.

mod error;
pub mod listen;
mod memory;
mod reactor;

pub use error::Error;

use crate::api::Heartbeat;
use crate::auth::{Action, Gate, PullKey};
use crate::budget::Budget;
use crate::cli::PullBy;
use crate::client::{
    Agent, AgentSettings, ClientMetrics, Contact, Event, Events, EventsSettings, Http, KEEP_ALIVE, Urls,
};
use crate::config::Plan;
use crate::drain::Drain;
use crate::health::Health;
use crate::ids::{NodeId, Origin};
use crate::net::{self, Entrance, routes::Routes};
use crate::published::Published;
use crate::relay::{self, Batching, Feeds};
use crate::steps::reactors::{Identity, Reactors};
use crate::steps::{Engine, Parts, engine};
use crate::telemetry::Metrics;
use crate::web::{self, admin};
use crate::{ffmpeg, rtmp};
use error::start_error;
use futures::FutureExt;
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// How long the end of what remains may take after the drain: the workflows, the ffmpeg processes, the HTTP servers.
const LAST_STEPS: Duration = Duration::from_secs(3);

/// The part of the drain timeout over which viewers are sent away; the rest is for their last messages.
const SPREAD_PART: f64 = 0.8;

/// Runs a process until a signal stops it.
pub async fn run(plan: Plan) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let sockets = Sockets::bind(&plan)?;
    let health = Health::new();
    let serving = health.register("node");
    let metrics = Arc::new(Metrics::new().map_err(start_error)?);
    let stop = CancellationToken::new();
    let servers = TaskTracker::new();
    let (addresses, rtmp_port) = (sockets.addresses.clone(), sockets.rtmp_port);

    if let Some(listener) = sockets.reactor {
        let (routes, warning) = reactor::start(&plan, &metrics, &health, &stop)?;
        servers.spawn(warning);
        servers.spawn(web::server::serve(listener, routes, Default::default(), stop.clone()));
    }
    let urls = plan.reactor_urls(addresses.reactor)?;
    let node = match plan.roles.is_node() {
        true => Some(
            Node::start(&plan, &urls, rtmp_port, (sockets.rtmp, sockets.rtmps), &metrics, &health).await?,
        ),
        false => None,
    };
    if let Some(listener) = sockets.admin {
        let engine = node.as_ref().map(|node| node.engine.clone());
        let routes = admin::routes(admin_view(engine, &metrics, &health));
        servers.spawn(web::server::serve(listener, routes, Default::default(), stop.clone()));
    }
    serving.set_ready();
    addresses.announce(&plan);
    notify(sd_notify::NotifyState::Ready);
    let watchdog = AbortOnDropHandle::new(tokio::spawn(keep_watchdog()));

    let failed = node.as_ref().map_or_else(CancellationToken::new, |node| node.engine.failed().clone());
    let outcome = tokio::select! {
        () = signals.next() => Ok(()),
        () = failed.cancelled() => Err(Error::Start("a workflow cannot be kept running".to_owned())),
    };
    tracing::info!("stopping");
    notify(sd_notify::NotifyState::Stopping);
    serving.set_unready("draining");
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

/// Everything this process listens with, bound before anything runs.
struct Sockets {
    rtmp: Vec<TcpListener>,
    rtmp_port: u16,
    rtmps: Option<TcpListener>,
    reactor: Option<TcpListener>,
    admin: Option<TcpListener>,
    addresses: Addresses,
}

/// The addresses that were bound.
#[derive(Clone)]
struct Addresses {
    rtmp: Vec<SocketAddr>,
    rtmps: Option<SocketAddr>,
    reactor: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

impl Sockets {
    fn bind(plan: &Plan) -> Result<Self, Error> {
        let reactor = plan.reactor_listen.map(|address| bind_http("the reactor", address)).transpose()?;
        let admin = plan.admin_listen.map(|address| bind_http("the admin port", address)).transpose()?;
        let (mut rtmp, mut rtmp_port) = (Vec::new(), plan.args.rtmp_port);
        if plan.roles.is_node() {
            let mut free = None;
            if rtmp_port == 0 {
                let (listener, address) = bind_rtmp(0)?;
                rtmp_port = address.port();
                free = Some((listener, address));
            }
            let embedded = local(reactor.as_ref());
            let configs = plan.configs(rtmp_port, &plan.reactor_urls(embedded)?)?;
            let ports: BTreeSet<u16> =
                configs.iter().flat_map(|(_, config)| engine::ports(config, rtmp_port)).collect();
            for port in ports {
                rtmp.push(match free.take_if(|(_, address)| address.port() == port) {
                    Some(bound) => bound,
                    None => bind_rtmp(port)?,
                });
            }
        }
        let rtmps_port = plan.args.transport.rtmps_port.filter(|_| plan.roles.is_node());
        let rtmps = rtmps_port.map(|port| bind_rtmp(port).map(|(listener, _)| listener)).transpose()?;
        let addresses = Addresses {
            rtmps: local(rtmps.as_ref()),
            rtmp: rtmp.iter().map(|(_, address)| *address).collect(),
            reactor: local(reactor.as_ref()),
            admin: local(admin.as_ref()),
        };
        let rtmp = rtmp.into_iter().map(|(listener, _)| listener).collect();
        Ok(Sockets { rtmp, rtmp_port, rtmps, reactor, admin, addresses })
    }
}

fn local(listener: Option<&TcpListener>) -> Option<SocketAddr> {
    listener.and_then(|listener| listener.local_addr().ok())
}

fn bind_rtmp(port: u16) -> Result<(TcpListener, SocketAddr), Error> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let bound = listen::bind(address).and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|error| Error::Bind { what: "RTMP", address, error })
}

fn bind_http(what: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    listen::bind(address).map_err(|error| Error::Bind { what, address, error })
}

impl Addresses {
    /// The one line that says that the process is ready, for people and for scripts.
    fn announce(&self, plan: &Plan) {
        let mut line = format!("lb ready: roles={}", plan.roles.names().join(","));
        let one = |name: &str, address: &SocketAddr| format!(" {name}={address}");
        self.rtmp.iter().for_each(|address| line += &one("rtmp", address));
        self.rtmps.iter().for_each(|address| line += &one("rtmps", address));
        self.admin.iter().for_each(|address| line += &one("admin", address));
        self.reactor.iter().for_each(|address| line += &one("reactor", address));
        // Whoever closed our output does not want the line; the service goes on.
        if let Err(error) = writeln!(io::stdout(), "{line}") {
            tracing::debug!(%error, "stdout");
        }
    }
}

fn admin_view(engine: Option<Arc<Engine>>, metrics: &Arc<Metrics>, health: &Health) -> admin::Admin {
    let (metrics, of_one) = (metrics.clone(), engine.clone());
    admin::Admin {
        health: health.clone(),
        metrics: Arc::new(move || metrics.text()),
        workflows: Arc::new(move || {
            let engine = engine.clone();
            async move {
                let names = match engine {
                    Some(engine) => engine.workflows().await,
                    None => Vec::new(),
                };
                json!({ "workflows": names })
            }
            .boxed()
        }),
        workflow: Arc::new(move |name| {
            let engine = of_one.clone();
            async move { engine?.workflow(&name).await }.boxed()
        }),
    }
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
    /// The port that others pull from, where there is no origin.
    pull_port: u16,
    rtmp: rtmp::Limits,
    routes: Arc<Routes>,
    feeds: Arc<Feeds>,
    published: Arc<Published>,
    http: Http,
    gate: Arc<Gate>,
    /// What pulls between nodes are signed with.
    pull_key: Option<PullKey>,
    /// Whom pulls by TLS believe.
    pull_tls: Arc<rustls::ClientConfig>,
    metrics: Arc<Metrics>,
    client_metrics: ClientMetrics,
    draining: CancellationToken,
}

impl<'a> Shared<'a> {
    fn new(
        plan: &'a Plan,
        urls: &'a Urls,
        rtmp_port: u16,
        pull_port: u16,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Error> {
        let args = &plan.args;
        let plain = Http::new().map_err(start_error)?;
        let node = args.node_id.clone().unwrap_or_else(NodeId::random);
        let gate = gate(args, &node, &plain)?;
        let asked = args.limits.memory_budget.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let budget = asked.unwrap_or_else(memory::default_budget);
        tracing::info!(bytes = budget, "memory budget for what peers make this process hold");
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
            pull_tls: net::certificate::client(args.transport.ca_file.as_deref()).map_err(start_error)?,
            rtmp_port,
            origin: args.origin(pull_port).map_err(start_error)?,
            pull_port,
            rtmp: rtmp::Limits { message_bytes: args.limits.max_message_bytes, ..Default::default() },
            routes: Routes::new(),
            feeds: Feeds::within(Budget::new(budget), metrics.clone()),
            published: Published::new(),
            http,
            metrics: metrics.clone(),
            client_metrics: ClientMetrics::register(metrics.registry()).map_err(start_error)?,
            draining: CancellationToken::new(),
        })
    }

    fn agent(&self, plan: &Plan) -> Agent {
        let beat = Beat {
            roles: plan.roles.names(),
            capacity: self.args.limits.max_connections as u64,
            pull_port: self.pull_port,
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

    fn engine_parts(&self, agent: &Agent, health: &Health) -> Parts {
        Parts {
            identity: Identity {
                node: self.node.clone(),
                origin: self.origin.clone(),
                rtmp_port: self.pull_port,
                native_pull: self.args.media.pull == PullBy::Native,
            },
            default_port: self.rtmp_port,
            routes: self.routes.clone(),
            feeds: self.feeds.clone(),
            published: self.published.clone(),
            relay: relay_settings(self.args),
            pull: net::pull::Settings {
                key: self.pull_key.clone(),
                tls: Some(self.pull_tls.clone()),
                ..net::pull::Settings::new(self.node.clone())
            },
            rtmp: self.rtmp,
            ffmpeg: ffmpeg::Settings {
                ffmpeg: self.args.media.ffmpeg_path.clone(),
                signer: self.pull_key.clone().map(|key| (key, self.node.clone())),
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

    fn listen(
        &self,
        (plain, tls): (Vec<TcpListener>, Option<TcpListener>),
        drain: &Drain,
    ) -> Result<(), Error> {
        let limits = net::Limits {
            connections: self.args.limits.max_connections,
            connections_per_address: self.args.limits.max_connections_per_address,
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
        plain.into_iter().try_for_each(|listener| server.listen(listener)).map_err(start_error)?;
        let files = &self.args.transport;
        let (Some(listener), Some(certificate), Some(key)) = (tls, &files.tls_cert, &files.tls_key) else {
            return Ok(());
        };
        // Another way to the same apps.
        let tls = Some(net::certificate::server(certificate, key).map_err(start_error)?);
        server.listen_for(listener, Entrance { port: self.rtmp_port, tls }).map_err(start_error)
    }
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
        urls: &Urls,
        rtmp_port: u16,
        listeners: (Vec<TcpListener>, Option<TcpListener>),
        metrics: &Arc<Metrics>,
        health: &Health,
    ) -> Result<Self, Error> {
        let configs = plan.configs(rtmp_port, urls)?;
        let pull_port = engine::pull_port(&configs, rtmp_port);
        let shared = Shared::new(plan, urls, rtmp_port, pull_port, metrics)?;
        let drain = Drain::new();
        let agent = shared.agent(plan);
        let engine = Arc::new(Engine::start(shared.engine_parts(&agent, health), configs).await?);
        let events = shared.follow(engine.reactors(), &agent);
        shared.listen(listeners, &drain)?;
        let contact = tokio::spawn(watch_contact(agent.contact(), health.register("reactor")));
        let contact = AbortOnDropHandle::new(contact);
        let trimming = AbortOnDropHandle::new(tokio::spawn(memory::trim_after_crowds(metrics.clone())));
        Ok(Node {
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
    pull_port: u16,
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
            rtmp_port: Some(self.pull_port),
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

/// The signals that stop a process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(start_error);
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Tells the service manager, if there is one.
fn notify(state: sd_notify::NotifyState) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Feeds the service manager's watchdog from a task, so that a runtime that no longer turns is found.
async fn keep_watchdog() {
    let mut micros = 0;
    if !sd_notify::watchdog_enabled(false, &mut micros) {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_micros(micros / 3).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        notify(sd_notify::NotifyState::Watchdog);
    }
}
