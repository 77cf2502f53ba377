//! The reactor's API, as [`crate::api`] describes it, over a [`Registry`].

use super::cluster::Cluster;
use super::door::{Caller, Door};
use super::metrics::ReactorMetrics;
use super::query::{self, Page};
use super::request::{Failure, Request, decoded, empty, request};
use super::template::Template;
use super::unknown_names::UnknownNames;
use super::{Routes, events, openapi, page, probes};
use crate::api::report::{Happening, REPORT_MAX, REPORT_TEXT_MAX, Report, ReportReply, StreamEvent};
use crate::api::word;
use crate::api::{
    ACCEPT_RTMP_PULL, EPOCH_HEADER, HEARTBEAT_STREAMS, Heartbeat, NodeList, ORIGIN_HEADER, PUSHING_STREAMS,
    PublisherLookup, PublisherRelease, PushClaim, PushRelease, SESSION_HEADER, SUCCESSORS, StreamEntry,
    StreamList, Successors, WatcherLookup,
};
use crate::health::{Health, Verdict};
use crate::ids::{NodeId, Origin, STREAM_NAME_MAX, SessionId, StreamName};
use crate::observed::Observed;
use crate::registry::{Claim, Error, Lease, Registry, Status};
use crate::telemetry::shown;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use warp::http::StatusCode;
use warp::http::header::{HeaderName, HeaderValue};
use warp::reply::Response;
use warp::{Filter, Reply};

/// The greatest body of a lookup or release, bytes. The longest real one is below 2 KiB.
pub const LOOKUP_BODY_MAX: usize = 16 * 1024;

/// The greatest body of a heartbeat, bytes: as many streams and as many ends as it may have, all with the longest names,
/// where a stream's keys, session, epoch and identity take at most 160 bytes; and what it says of the node.
pub const HEARTBEAT_BODY_MAX: usize =
    (2 * HEARTBEAT_STREAMS + PUSHING_STREAMS) * (STREAM_NAME_MAX + 160) + LOOKUP_BODY_MAX;

/// The greatest body of a report, bytes: as many streams and events as it may have, all with the longest names and texts.
pub const REPORT_BODY_MAX: usize =
    2 * REPORT_MAX * (STREAM_NAME_MAX + 2 * REPORT_TEXT_MAX + 256) + LOOKUP_BODY_MAX;

/// The most roles a heartbeat may name, and the longest name of one: they are kept.
const ROLES_MAX: (usize, usize) = (16, 32);

/// When to ask again while something else has to end or to be heard first. A node asks sooner.
const WAIT_RETRY: Duration = Duration::from_secs(1);

/// When to ask again while the store cannot be reached or has no room.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);

/// How often, at most, a wrong-looking origin is warned about.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// A reactor service.
#[derive(Clone)]
pub struct Reactor {
    /// Where leases are kept.
    pub registry: Arc<Registry>,
    /// The text of the reply to a watcher lookup.
    pub template: Template,
    /// Whom it hears.
    pub door: Door,
    /// What nodes report.
    pub observed: Arc<Observed>,
    /// Counts of lookups.
    pub metrics: ReactorMetrics,
    /// Behind `/readyz`; the registry's own status is added.
    pub health: Health,
    /// Ends the event streams; the same as the server's.
    pub stop: CancellationToken,
}

/// The routes of a reactor: those of [`crate::api`], and `GET /livez` and `/readyz`, which need no token.
pub fn routes(reactor: Reactor) -> Routes {
    let registry = Arc::downgrade(&reactor.registry);
    reactor
        .health
        .look("registry", move || registry.upgrade().map_or(Verdict::Ready, |registry| verdict(&registry)));
    let cluster = Cluster::new(reactor.registry.clone(), reactor.observed.clone());
    let unknown_names = UnknownNames::new();
    let reactor = Arc::new(Handler { reactor, cluster, unknown_names, warned: Mutex::new(None) });
    request()
        .and_then(move |request: Request| {
            let reactor = reactor.clone();
            async move { Ok::<_, Infallible>(reactor.answer(request).await.unwrap_or_else(Reply::into_response)) }
        })
        .boxed()
}

struct Handler {
    reactor: Reactor,
    cluster: Arc<Cluster>,
    unknown_names: UnknownNames,
    /// When an origin was warned about last.
    warned: Mutex<Option<Instant>>,
}

impl Handler {
    async fn answer(&self, request: Request) -> Result<Response, Failure> {
        let path = request.path.clone();
        let registry = &self.reactor.registry;
        if let Some(part) = page::answer(&path, request.method.as_str()) {
            return part;
        }
        match path.as_str() {
            "/publisher_lookup" => self.counted("publisher", self.publisher_lookup(request).await),
            "/watcher_lookup" => self.counted("watcher", self.watcher_lookup(request).await),
            "/publisher_release" => self.publisher_release(request).await,
            "/push_claim" => self.push_claim(request).await,
            "/push_release" => self.push_release(request).await,
            "/events" => {
                self.admit(&request, "GET")?;
                Ok(events::reply(registry.changes(), self.reactor.stop.clone()))
            }
            "/streams" => {
                let caller = self.admit(&request, "GET")?;
                let page = Page::read(&request.query)?;
                let (leases, next) = page.of(registry.list().await?, |lease| &lease.name);
                let streams = leases.into_iter().map(|lease| entry(lease, caller)).collect();
                Ok(warp::reply::json(&StreamList { streams, next }).into_response())
            }
            "/nodes" => {
                self.admit(&request, "GET")?;
                let page = Page::read(&request.query)?;
                let (nodes, next) = page.of(registry.nodes().await?, |entry| &entry.node);
                Ok(warp::reply::json(&NodeList { nodes, next }).into_response())
            }
            "/cluster" => {
                self.admit(&request, "GET")?;
                Ok(self.cluster.answer().await?)
            }
            "/cluster/events" => {
                self.admit(&request, "GET")?;
                Ok(self.cluster.follow(self.reactor.stop.clone()))
            }
            "/openapi.json" => {
                request.expect("GET")?;
                Ok(warp::reply::json(&openapi::reactor()).into_response())
            }
            "/livez" => request.expect("GET").map(|()| probes::live()),
            "/readyz" => request.expect("GET").map(|()| probes::ready(&self.reactor.health)),
            _ => self.one(&path, request).await,
        }
    }

    /// What is asked of one node or stream.
    async fn one(&self, path: &str, request: Request) -> Result<Response, Failure> {
        match path.strip_prefix("/nodes/").and_then(|path| path.split_once('/')) {
            Some((node, "report")) => return self.report(node, request).await,
            Some((node, "drain")) => return self.drain(node, request),
            Some((node, "successors")) => return self.successors(node, request).await,
            _ => {}
        }
        if let Some(name) = path.strip_prefix("/timelines/").and_then(decoded) {
            return self.timeline(&name, request);
        }
        if let Some(node) =
            path.strip_prefix("/nodes/").filter(|node| !node.is_empty() && !node.contains('/'))
        {
            return self.node(node, request).await;
        }
        let name = path.strip_prefix("/streams/").and_then(decoded).filter(|name| !name.is_empty());
        match name {
            Some(name) => self.stream(&name, request).await,
            None => Err(Failure::no_path(path)),
        }
    }

    /// Takes how the streams of a node are doing.
    async fn report(&self, node: &str, mut request: Request) -> Result<Response, Failure> {
        let caller = self.admit(&request, "POST")?;
        let node: NodeId = node.parse().map_err(|error| Failure::bad(format!("{error}")))?;
        let report: Report = request.json(REPORT_BODY_MAX).await?;
        check(&report).map_err(Failure::bad)?;
        let drain = self.reactor.observed.report(&node, caller.source, report, Instant::now());
        let drain = drain.map_err(|full| {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, full.to_string()).retry_after(UNAVAILABLE_RETRY)
        })?;
        Ok(warp::reply::json(&ReportReply { drain }).into_response())
    }

    /// Where the peers of a node may go on.
    async fn successors(&self, node: &str, request: Request) -> Result<Response, Failure> {
        self.admit(&request, "GET")?;
        let node: NodeId = node.parse().map_err(|error| Failure::bad(format!("{error}")))?;
        let role = query::role(&request.query)?;
        let origins = self.reactor.registry.successors(&node, &role, SUCCESSORS).await?;
        Ok(warp::reply::json(&Successors { origins }).into_response())
    }

    /// Has a node drain and stop.
    fn drain(&self, node: &str, request: Request) -> Result<Response, Failure> {
        let caller = self.admit(&request, "POST")?;
        let node: NodeId = node.parse().map_err(|error| Failure::bad(format!("{error}")))?;
        if !self.reactor.observed.drain(&node, Instant::now()) {
            let text = format!("node '{node}' does not report to this reactor");
            return Err(Failure::new(StatusCode::NOT_FOUND, text));
        }
        tracing::info!(%node, source = %caller.source, "node asked to drain");
        Ok(empty(StatusCode::ACCEPTED))
    }

    /// What happened to a stream, and how it was doing in the last hour.
    fn timeline(&self, name: &str, request: Request) -> Result<Response, Failure> {
        self.admit(&request, "GET")?;
        let name = StreamName::parse(name).map_err(|error| Failure::bad(error.to_string()))?;
        let (observed, now) = (&self.reactor.observed, Instant::now());
        let (events, samples) = (observed.timeline(&name, now).events, observed.samples(&name, now));
        Ok(warp::reply::json(&serde_json::json!({ "events": events, "samples": samples })).into_response())
    }

    /// Shows a stream, or sends its publisher away: its node hears that the session has ended.
    async fn stream(&self, name: &str, request: Request) -> Result<Response, Failure> {
        let delete = request.method == "DELETE";
        if !delete {
            request.expect("GET").map_err(|_| Failure::method("GET, DELETE"))?;
        }
        let caller = self.reactor.door.admit(&request)?;
        let name = StreamName::parse(name).map_err(|error| Failure::bad(error.to_string()))?;
        let registry = &self.reactor.registry;
        let Some(lease) = registry.owner(name.clone()).await? else {
            return Err(Failure::new(StatusCode::NOT_FOUND, format!("stream '{name}' is not published")));
        };
        if !delete {
            return Ok(warp::reply::json(&entry(lease, caller)).into_response());
        }
        let Some(session) = lease.session else {
            let text = format!("stream '{name}' is published on a node that cannot be told");
            return Err(Failure::new(StatusCode::CONFLICT, text));
        };
        let reason = query::reason(&request.query)?;
        registry.release(name.clone(), session).await?;
        let (tag, source, shown) = (session.tag(), caller.source, shown(&reason));
        tracing::info!(stream = %name, session = %tag, %source, reason = %shown, "publisher kicked");
        let event = StreamEvent {
            stream_name: name,
            event: Happening::Kicked,
            ago_ms: 0,
            session: Some(tag),
            number: None,
            detail: Some(reason),
        };
        self.reactor.observed.note(event, Instant::now());
        Ok(empty(StatusCode::NO_CONTENT))
    }

    async fn publisher_lookup(&self, mut request: Request) -> Result<Response, Failure> {
        let caller = self.admit_lookup(&request)?;
        let lookup: PublisherLookup = request.lookup(LOOKUP_BODY_MAX).await?;
        let origin = self.origin(lookup.origin.as_ref(), [lookup.rtmp_port, lookup.rtmps_port], caller)?;
        let source = caller.source;
        let (name, session) = (lookup.stream_name, lookup.session);
        let claim = Claim { name, session, node: lookup.node, origin, source, identity: lookup.identity };
        let lease = self.reactor.registry.claim(claim).await?;
        let mut response = empty(StatusCode::OK);
        if session.is_some() {
            response.headers_mut().insert(EPOCH_HEADER, lease.epoch.into());
        }
        Ok(response)
    }

    async fn publisher_release(&self, mut request: Request) -> Result<Response, Failure> {
        self.admit(&request, "POST")?;
        let PublisherRelease { stream_name, session } = request.json(LOOKUP_BODY_MAX).await?;
        self.reactor.registry.release(stream_name, session).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    async fn push_claim(&self, mut request: Request) -> Result<Response, Failure> {
        self.admit(&request, "POST")?;
        let claim: PushClaim = request.json(LOOKUP_BODY_MAX).await?;
        match self.reactor.registry.claim_push(claim).await {
            Ok(()) => Ok(empty(StatusCode::NO_CONTENT)),
            // Unlike the other refusals this one is for ever.
            Err(error @ Error::Superseded(_)) => Err(Failure::new(StatusCode::GONE, error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    async fn push_release(&self, mut request: Request) -> Result<Response, Failure> {
        self.admit(&request, "POST")?;
        let release: PushRelease = request.json(LOOKUP_BODY_MAX).await?;
        self.reactor.registry.release_push(release).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    async fn watcher_lookup(&self, mut request: Request) -> Result<Response, Failure> {
        let caller = self.admit_lookup(&request)?;
        let lookup: WatcherLookup = request.lookup(LOOKUP_BODY_MAX).await?;
        let name = lookup.stream_name;
        let Some(lease) = self.reactor.registry.owner(name.clone()).await? else {
            let wait = self.unknown_names.asked(caller);
            if !wait.is_zero() {
                self.reactor.metrics.delayed.inc();
                tokio::time::sleep(wait).await;
            }
            return Err(Failure::new(StatusCode::NOT_FOUND, format!("stream '{name}' is not published")));
        };
        // An lb node says more than a name. To a plain one 404 is final, where another status is an outage that it sits out.
        if lookup.node.is_none() && lookup.accept.is_empty() && !word::is_plain_word(name.as_str()) {
            let text = format!(
                "stream '{name}' has a character that a plain mmids node cannot read in a workflow; only lb nodes can pull it"
            );
            return Err(Failure::new(StatusCode::NOT_FOUND, text));
        }
        let native = lookup.accept.iter().any(|step| step == ACCEPT_RTMP_PULL);
        let mut response = self.reactor.template.render(&name, &lease.origin, native).into_response();
        let headers = response.headers_mut();
        headers.insert(EPOCH_HEADER, lease.epoch.into());
        if let Ok(origin) = HeaderValue::try_from(lease.origin.to_string()) {
            headers.insert(ORIGIN_HEADER, origin);
        }
        let tag = lease.session.and_then(|session| HeaderValue::try_from(session.tag().to_string()).ok());
        headers.extend(tag.map(|tag| (HeaderName::from_static(SESSION_HEADER), tag)));
        Ok(response)
    }

    async fn node(&self, node: &str, mut request: Request) -> Result<Response, Failure> {
        let put = request.method == "PUT";
        if !put && request.method != "DELETE" {
            return Err(Failure::method("PUT, DELETE"));
        }
        let caller = self.reactor.door.admit(&request)?;
        let node: NodeId = node.parse().map_err(|error| Failure::bad(format!("{error}")))?;
        if !put {
            self.reactor.registry.sign_off(node, instance(&request.query)?).await?;
            return Ok(empty(StatusCode::NO_CONTENT));
        }
        let heartbeat: Heartbeat = request.json(HEARTBEAT_BODY_MAX).await?;
        let (count, length) = ROLES_MAX;
        if heartbeat.roles.len() > count || heartbeat.roles.iter().any(|role| role.len() > length) {
            return Err(Failure::bad(format!("at most {count} roles of {length} characters are allowed")));
        }
        if heartbeat.streams.len().max(heartbeat.ended.len()) > HEARTBEAT_STREAMS {
            let most =
                format!("at most {HEARTBEAT_STREAMS} streams and {HEARTBEAT_STREAMS} ends of publishes");
            return Err(Failure::bad(format!(
                "{most} are allowed in a heartbeat; the rest goes in further ones"
            )));
        }
        if heartbeat.still_pushing.len() > PUSHING_STREAMS {
            return Err(Failure::bad(format!(
                "at most {PUSHING_STREAMS} streams are allowed in still_pushing"
            )));
        }
        self.origin(heartbeat.origin.as_ref(), [heartbeat.rtmp_port, heartbeat.rtmps_port], caller)?;
        let reply = self.reactor.registry.heartbeat(node, heartbeat, caller.source).await?;
        Ok(warp::reply::json(&reply).into_response())
    }

    fn counted(&self, kind: &str, answer: Result<Response, Failure>) -> Result<Response, Failure> {
        let result = match answer.as_ref().map_err(|failure| failure.status) {
            Ok(_) => "ok",
            Err(StatusCode::NOT_FOUND) => "unknown",
            Err(StatusCode::CONFLICT) => "refused",
            Err(StatusCode::SERVICE_UNAVAILABLE) => "unavailable",
            Err(_) => "bad",
        };
        self.reactor.metrics.lookup(kind, result);
        answer
    }

    fn admit(&self, request: &Request, method: &'static str) -> Result<Caller, Failure> {
        request.expect(method)?;
        self.reactor.door.admit(request)
    }

    /// A lookup comes as a POST, or as the PUT of the guide of mmids.
    fn admit_lookup(&self, request: &Request) -> Result<Caller, Failure> {
        request.expect("POST").or(request.expect("PUT")).map_err(|_| Failure::method("POST, PUT"))?;
        self.reactor.door.admit_text(request)
    }

    /// Where a node's streams can be pulled from; warns when nobody else could.
    fn origin(
        &self,
        named: Option<&Origin>,
        ports: [Option<u16>; 2],
        caller: Caller,
    ) -> Result<Origin, Failure> {
        let source = caller.source;
        if ports.contains(&Some(0)) {
            return Err(Failure::bad("rtmp_port or rtmps_port is 0; 1 to 65535 is allowed".to_owned()));
        }
        let [rtmp, rtmps] = ports;
        let origin = crate::api::origin(named, source, rtmp, rtmps);
        self.reactor.door.believes(caller, &origin)?;
        let wrong =
            origin.ip().is_some_and(|ip| ip.is_unspecified() || (ip.is_loopback() && !source.is_loopback()));
        if wrong {
            let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
            if warned.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
                *warned = Some(Instant::now());
                tracing::warn!(%origin, %source, "a node registers an origin that others cannot pull from");
            }
        }
        Ok(origin)
    }
}

/// What stands against the registry.
fn verdict(registry: &Registry) -> Verdict {
    match registry.status() {
        Status::Whole => Verdict::Ready,
        Status::WarmingUp(left) => {
            Verdict::Unready(format!("warming up, {} s left", left.as_secs_f32().ceil()))
        }
        // Known streams are answered still, and other reactors would be no better off.
        Status::Degraded => Verdict::Remark("the store cannot be reached".to_owned()),
    }
}

/// A stream as a caller may see it: whoever knows a session can end its publish.
fn entry(lease: Lease, caller: Caller) -> StreamEntry {
    let entry = StreamEntry::from(lease);
    StreamEntry { session: entry.session.filter(|_| caller.proven), ..entry }
}

/// Whether a report is within its limits.
fn check(report: &Report) -> Result<(), String> {
    if report.streams.len().max(report.events.len()) > REPORT_MAX {
        return Err(format!("at most {REPORT_MAX} streams and {REPORT_MAX} events are allowed in a report"));
    }
    let details = report.events.iter().map(|event| &event.detail);
    let codecs = report.streams.iter().flat_map(|stream| [&stream.video, &stream.audio]);
    let texts = details.chain(codecs).flatten().map(String::as_str);
    let place =
        report.http.iter().flat_map(|http| [http.app.as_str(), http.host.as_deref().unwrap_or_default()]);
    if texts.chain(place).any(|text| text.len() > REPORT_TEXT_MAX) {
        return Err(format!("a text in a report has at most {REPORT_TEXT_MAX} bytes"));
    }
    Ok(())
}

/// The process of a node that signs off, in the query of its request.
fn instance(query: &str) -> Result<Option<SessionId>, Failure> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let instance = pairs.find(|(key, _)| key == "instance").map(|(_, value)| value.parse());
    instance.transpose().map_err(|_| Failure::bad("instance is 32 hexadecimal digits".to_owned()))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let text = error.to_string();
        match error {
            Error::Superseded(_) | Error::Taken(..) | Error::Foreign(_) | Error::Replaced(_) => {
                Failure::new(StatusCode::CONFLICT, text)
            }
            Error::NotOwner(_) | Error::PushHeld(..) => {
                Failure::new(StatusCode::CONFLICT, text).retry_after(WAIT_RETRY)
            }
            Error::NotHeard(_) => Failure::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(WAIT_RETRY),
            Error::HeldDown { left, .. } => Failure::new(StatusCode::CONFLICT, text).retry_after(left),
            Error::WarmingUp(left) => Failure::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(left),
            Error::Full(..) | Error::Unavailable => {
                Failure::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(UNAVAILABLE_RETRY)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::Peer;
    use super::*;
    use crate::registry::{Memory, Settings};
    use std::net::Ipv4Addr;

    /// The clock is paused, so that what took time was held back.
    #[tokio::test(start_paused = true)]
    async fn that_a_name_is_unknown_is_said_at_a_pace_and_where_one_is_at_once() {
        let settings = Settings { warm_up: Duration::ZERO, ..Settings::default() };
        let registry = Registry::start(Arc::new(Memory::new()), settings);
        let prometheus = prometheus::Registry::new();
        let metrics = ReactorMetrics::register(&prometheus, &registry).unwrap();
        let routes = routes(Reactor {
            registry,
            template: Template::default(),
            door: Door::default(),
            observed: Arc::default(),
            metrics: metrics.clone(),
            health: Health::new(),
            stop: CancellationToken::new(),
        });
        let call = async |path: &str, name: &str| {
            let peer = Peer { address: Ipv4Addr::LOCALHOST.into(), known: Arc::default() };
            let begun = tokio::time::Instant::now();
            let request = warp::test::request().method("POST").path(path).header("host", "localhost");
            let body = format!("{{\"stream_name\":\"{name}\"}}");
            let request = request.header("content-type", "application/json").extension(peer).body(body);
            (request.reply(&routes).await.status().as_u16(), begun.elapsed())
        };
        assert_eq!(call("/publisher_lookup", "known").await.0, 200);
        let mut held_back = 0;
        for number in 0..2_500 {
            let (status, took) = call("/watcher_lookup", &format!("none{number}")).await;
            assert_eq!(status, 404);
            held_back += u64::from(!took.is_zero());
        }
        assert!((400..=500).contains(&held_back), "{held_back}");
        assert_eq!(metrics.delayed.get(), held_back);
        assert_eq!(call("/watcher_lookup", "known").await, (200, Duration::ZERO));
    }
}
