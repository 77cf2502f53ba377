//! The RTMP side of a process: its parts put together, started from the bottom up, and stopped.

use super::contact::{Beat, follow_changes, watch_contact};
use super::ending::{Ending, LAST_STEPS};
use super::error::{Error, start_error};
use super::listen;
use super::memory;
use super::sockets::Entrances;
use super::streams::{Reports, StreamMetrics};
use crate::api::report::HttpPlay;
use crate::auth::{Action, Gate, PullKey};
use crate::budget::Budget;
use crate::cli::PullBy;
use crate::client::{
    self, Agent, AgentSettings, ClientMetrics, Events, EventsSettings, Http, KEEP_ALIVE, Reporter, Urls,
};
use crate::config::{Checked, Plan};
use crate::drain::Drain;
use crate::health::Health;
use crate::ids::{NodeId, Origin};
use crate::net::hls::HlsOutputs;
use crate::net::{self, Elsewhere, Peers, Ports, routes::Routes};
use crate::published::Published;
use crate::relay::{self, Batching, Feeds};
use crate::steps::reactors::{Identity, PulledAt, Reactors};
use crate::steps::{Engine, Parts};
use crate::telemetry::Metrics;
use crate::{ffmpeg, rtmp};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// The part of the drain timeout over which viewers are sent away; the rest is for their last messages.
const SPREAD_PART: f64 = 0.8;

/// See the module's head.
pub(super) struct Node {
    drain: Drain,
    pub engine: Arc<Engine>,
    agent: Agent,
    _events: (Events, AbortOnDropHandle<()>),
    _contact: AbortOnDropHandle<()>,
    _reporter: Option<Reporter>,
    pub stream_metrics: Arc<StreamMetrics>,
    pub routes: Arc<Routes>,
    pub peers: Arc<Peers>,
    server: Arc<net::Server>,
    /// By whose name, and how, reactors are asked.
    node: NodeId,
    http: Http,
    /// The port of steps that name none.
    pub rtmp_port: u16,
    pub urls: Urls,
}

/// What the parts of a node share.
pub(super) struct Shared<'a> {
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
    /// What `ffmpeg_hls` writes.
    hls: Arc<HlsOutputs>,
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
    ending: Ending,
}

impl<'a> Shared<'a> {
    pub fn new(
        plan: &'a Plan,
        urls: &'a Urls,
        rtmp_port: u16,
        pulled_at: PulledAt,
        metrics: &Arc<Metrics>,
        ending: &Ending,
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
            hls: HlsOutputs::new(),
            feeds: Feeds::within(budget, metrics.clone()),
            published: Published::new(),
            http,
            metrics: metrics.clone(),
            client_metrics: ClientMetrics::register(metrics.registry()).map_err(start_error)?,
            ending: ending.clone(),
        })
    }

    fn agent(&self, plan: &Plan) -> Agent {
        let beat = Beat {
            roles: plan.roles.names(),
            capacity: self.args.limits.max_connections as u64,
            pulled_at: self.pulled_at,
            origin: self.origin.clone(),
            metrics: self.metrics.clone(),
            draining: self.ending.draining.clone(),
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
        let drain = self.ending.asked.clone();
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
            push: net::push::Settings { tls: Some(self.believed.clone()), ..Default::default() },
            hls: self.hls.clone(),
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
            push_leases: agent.push_leases(),
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

    /// What takes connections. From now on routes have their ports opened by it; `entrances` are open already, with which it begins later.
    fn server(&self, entrances: &Entrances, drain: &Drain) -> Result<Arc<net::Server>, Error> {
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
            hls: self.hls.clone(),
            feeds: self.feeds.clone(),
            metrics: self.metrics.clone(),
            drain: drain.clone(),
            node: self.node.clone(),
            drain_spread: self.args.limits.drain_timeout.mul_f64(SPREAD_PART),
        });
        let open = server.opener(entrances.certificate.clone(), listen::bind_port);
        self.routes.open_by(Ports::new(entrances.steps_ports()?, open));
        Ok(server)
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
    pub async fn start(
        plan: &Plan,
        shared: Shared<'_>,
        configs: Vec<Checked>,
        entrances: Entrances,
        health: &Health,
        http: Option<SocketAddr>,
    ) -> Result<Self, Error> {
        let drain = Drain::new();
        let agent = shared.agent(plan);
        let server = shared.server(&entrances, &drain)?;
        let engine = Arc::new(Engine::start(shared.engine_parts(&agent, health), configs).await?);
        let events = shared.follow(engine.reactors(), &agent);
        let listen = |(listener, entrance)| server.listen_for(listener, entrance);
        entrances.listeners.into_iter().try_for_each(listen).map_err(start_error)?;
        let contact = tokio::spawn(watch_contact(agent.contact(), health.register("reactor")));
        let contact = AbortOnDropHandle::new(contact);
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
            peers: server.peers().clone(),
            server,
            node: shared.node.clone(),
            http: shared.http.clone(),
            rtmp_port: shared.rtmp_port,
            urls: shared.urls.clone(),
            stream_metrics: Arc::new(stream_metrics.map_err(start_error)?),
            drain,
            engine,
            agent,
            _events: events,
            _contact: contact,
        })
    }

    /// Tells reactors that it drains, which [`Ending`] says by now, waits for its peers, and ends what is left.
    pub async fn stop(self, timeout: Duration) {
        self.drain.close();
        self.agent.poke();
        let ask = |role| client::successors(&self.http, &self.urls, &self.node, role);
        let (ingest, playback) = tokio::join!(ask("ingest"), ask("playback"));
        self.server.set_elsewhere(Elsewhere { ingest, playback });
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
