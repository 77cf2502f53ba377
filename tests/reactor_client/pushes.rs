//! Who may push a stream on: two nodes and a real reactor, and servers that answer as they are told.

use super::agent::{agent_settings, publish, reaches};
use super::server::{Deed, Server, answer};
use super::{HANG, HOUR, count, metrics, moody, nowhere, skip, until};
use lb::api::{Heartbeat, PushClaim, PushRelease};
use lb::client::{Agent, AgentSettings, CALL_DEADLINE, Contact, PushLease, PushLeases, Superseded};
use lb::health::Health;
use lb::ids::{SessionId, StreamName};
use lb::node::listen;
use lb::published::{Published, Registration};
use lb::registry::{Memory, Registry, Settings};
use lb::telemetry::Metrics;
use lb::web::reactor::{self, Reactor};
use lb::web::server::{Limits, Server as Web, serve};
use lb::web::{Door, ReactorMetrics, Template};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// The heartbeats of nodes that may fall silent.
const SHORT: Duration = Duration::from_millis(300);

fn x() -> StreamName {
    "x".parse().unwrap()
}

/// A reactor that runs for as long as this lives.
struct Service {
    url: String,
    registry: Arc<Registry>,
    _stop: DropGuard,
    _task: AbortOnDropHandle<()>,
}

impl Service {
    fn start() -> Service {
        let settings = Settings { warm_up: Duration::ZERO, ..Settings::default() };
        let registry = Registry::start(Arc::new(Memory::new()), settings);
        let stop = CancellationToken::new();
        let routes = reactor::routes(Reactor {
            observed: Default::default(),
            metrics: ReactorMetrics::register(&prometheus::Registry::new(), &registry).unwrap(),
            registry: registry.clone(),
            template: Template::default(),
            door: Door::default(),
            health: Health::new(),
            stop: stop.clone(),
        });
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let metrics = Arc::new(Metrics::new().unwrap());
        let web = Web { tls: None, limits: Limits::default(), metrics };
        let task = tokio::spawn(serve(web, listener, routes, stop.clone()));
        Service { url, registry, _stop: stop.drop_guard(), _task: AbortOnDropHandle::new(task) }
    }

    async fn owner(&self) -> Option<SessionId> {
        self.registry.owner(x()).await.unwrap().and_then(|lease| lease.session)
    }
}

/// A node, as far as its publishes and pushes go.
struct Node {
    agent: Agent,
    published: Arc<Published>,
    counters: prometheus::Registry,
    leases: PushLeases,
}

impl Node {
    async fn start(url: &str, name: &str, interval: Duration) -> Node {
        let (counters, client_metrics) = metrics();
        let published = Published::new();
        let settings = AgentSettings { node: name.parse().unwrap(), ..agent_settings(url, interval) };
        let agent = Agent::start(settings, published.clone(), Heartbeat::default, client_metrics);
        reaches(&agent, |contact| *contact != Contact::Untried).await;
        let leases = agent.push_leases();
        Node { agent, published, counters, leases }
    }

    /// Publishes the stream here, and has a reactor hear of it.
    async fn publish(&self, service: &Service) -> (Registration, oneshot::Receiver<String>) {
        let (registration, evicted) = publish(&self.published, "x");
        self.agent.poke();
        let owns = async {
            while service.owner().await != Some(registration.session()) {
                tokio::task::yield_now().await;
            }
        };
        timeout(HANG, owns).await.unwrap();
        (registration, evicted)
    }

    async fn acquire(&self, session: SessionId) -> Result<PushLease, Superseded> {
        timeout(HANG, self.leases.acquire(&x(), session)).await.unwrap()
    }

    fn claims(&self, result: &str) -> u64 {
        count(&self.counters, "lb_push_claims_total", result)
    }
}

#[tokio::test]
async fn the_successor_pushes_once_the_predecessor_has_stopped() {
    let service = Service::start();
    let (a, b) = (Node::start(&service.url, "a", HOUR).await, Node::start(&service.url, "b", HOUR).await);
    let (old, evicted) = a.publish(&service).await;
    let lease = a.acquire(old.session()).await.unwrap();
    let (new, _publisher) = b.publish(&service).await;
    let release = async {
        until(|| b.claims("held") > 0).await;
        // Its publisher leaves, and the last of its media is on its way for a while.
        a.published.changes_missed();
        a.agent.poke();
        assert!(timeout(HANG, evicted).await.unwrap().unwrap().contains("took over"));
        drop(old);
        let held = b.claims("held");
        until(|| b.claims("held") >= held + 2).await;
        drop(lease);
        Instant::now()
    };
    let granted = async { (b.acquire(new.session()).await.unwrap(), Instant::now()) };
    let (released, (_lease, granted)) = tokio::join!(release, granted);
    let waited = granted.checked_duration_since(released).expect("not before the release");
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    println!("granted {waited:?} after the release");
    assert_eq!(b.claims("granted"), 1);
}

#[tokio::test]
async fn a_release_lets_who_has_just_begun_to_wait_push_with_the_next_claim() {
    let service = Service::start();
    let (a, b) = (Node::start(&service.url, "a", HOUR).await, Node::start(&service.url, "b", HOUR).await);
    let (old, _publisher) = a.publish(&service).await;
    let lease = a.acquire(old.session()).await.unwrap();
    let (new, _publisher) = b.publish(&service).await;
    let release = async {
        until(|| b.claims("held") > 0).await;
        drop(lease);
        (Instant::now(), b.claims("held"))
    };
    let granted = async { (b.acquire(new.session()).await.unwrap(), Instant::now()) };
    let ((released, held), (_lease, granted)) = tokio::join!(release, granted);
    let waited = granted.saturating_duration_since(released);
    println!("granted {waited:?} after the release");
    // The first pauses are 50 and 100 ms, so this is some 150 ms. A machine that does other things has more time.
    assert!(held <= 2 && b.claims("held") <= held + 1, "{held} {}", b.claims("held"));
    assert!(waited < Duration::from_secs(1), "{waited:?}");
}

#[tokio::test]
async fn what_a_killed_node_pushed_holds_its_successor_up_until_it_counts_as_silent() {
    let service = Service::start();
    let (a, b) = (Node::start(&service.url, "a", SHORT).await, Node::start(&service.url, "b", SHORT).await);
    let (old, _publisher) = a.publish(&service).await;
    let lease = a.acquire(old.session()).await.unwrap();
    let (new, _publisher) = b.publish(&service).await;
    // Without a word: its release goes nowhere, and no heartbeat follows.
    let Node { agent, .. } = a;
    drop(agent);
    let killed = Instant::now();
    drop(lease);
    let _lease = b.acquire(new.session()).await.unwrap();
    let waited = killed.elapsed();
    println!("granted {waited:?} after the node was killed");
    assert!(b.claims("held") > 0);
    assert!(waited < 3 * SHORT + Duration::from_secs(1), "{waited:?}");
}

#[tokio::test]
async fn a_lost_release_holds_nobody_up_for_ever_while_a_push_that_goes_on_does() {
    let service = Service::start();
    let (a, b) = (Node::start(&service.url, "a", SHORT).await, Node::start(&service.url, "b", SHORT).await);
    let (old, evicted) = a.publish(&service).await;
    let lease = a.acquire(old.session()).await.unwrap();
    let (new, _publisher) = b.publish(&service).await;
    timeout(HANG, evicted).await.unwrap().unwrap();
    let session = old.session();
    drop(old);
    let waiting = {
        let (leases, session) = (b.leases.clone(), new.session());
        AbortOnDropHandle::new(tokio::spawn(async move { leases.acquire(&x(), session).await }))
    };
    // Several times as long as one that is not named may take.
    sleep(10 * SHORT).await;
    assert!(!waiting.is_finished(), "its heartbeats name it");
    // As if no release had ever come through.
    std::mem::forget(lease);
    a.published.set_pushing(&x(), session, false);
    timeout(HANG, waiting).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_publish_that_lost_its_name_or_has_ended_is_not_pushed() {
    let service = Service::start();
    let (a, b) = (Node::start(&service.url, "a", HOUR).await, Node::start(&service.url, "b", HOUR).await);
    let (old, _evicted) = a.publish(&service).await;
    let (_new, _publisher) = b.publish(&service).await;
    assert_eq!(a.acquire(old.session()).await.map(drop), Err(Superseded));
    let session = old.session();
    drop(old);
    assert_eq!(a.acquire(session).await.map(drop), Err(Superseded));
    assert_eq!(a.claims("superseded"), 2);
}

/// A reactor that takes heartbeats and releases, and does this on claims.
async fn claims_get(first: Deed) -> (Server, impl Fn(Deed)) {
    let mood = Arc::new(std::sync::Mutex::new(first));
    let told = mood.clone();
    let server = Server::start(move |request| match request.line.split(' ').nth(1) {
        Some("/push_claim") => mood.lock().unwrap().clone(),
        _ => answer(200, "{}"),
    });
    (server.await, move |deed| *told.lock().unwrap() = deed)
}

/// What a server was told at this path.
fn told<T: serde::de::DeserializeOwned>(server: &Server, path: &str) -> Vec<T> {
    let line = format!("POST /{path} HTTP/1.1");
    let requests = server.requests().into_iter().filter(|request| request.line == line);
    requests.map(|request| serde_json::from_str(&request.body).unwrap()).collect()
}

#[tokio::test]
async fn pushes_of_one_session_share_a_claim_that_the_last_one_releases() {
    let (server, _) = claims_get(answer(204, "")).await;
    let node = Node::start(&server.url, "n1", HOUR).await;
    let (publisher, _evicted) = publish(&node.published, "x");
    let session = publisher.session();
    let first = node.acquire(session).await.unwrap();
    let second = node.acquire(session).await.unwrap();
    assert!(node.published.streams()[0].pushing);
    drop(first);
    assert!(node.published.streams()[0].pushing, "the other one goes on");
    drop(second);
    assert!(!node.published.streams()[0].pushing);
    until(|| count(&node.counters, "lb_push_releases_total", "ok") == 1).await;
    let claims: Vec<PushClaim> = told(&server, "push_claim");
    assert_eq!(claims.len(), 1);
    assert_eq!((&claims[0].stream_name, claims[0].session), (&x(), session));
    let releases: Vec<PushRelease> = told(&server, "push_release");
    assert_eq!(releases, [PushRelease { stream_name: x(), session, turn: claims[0].turn }]);
    // The next one is another claim, which a late release of the first does not end.
    let _lease = node.acquire(session).await.unwrap();
    let claims: Vec<PushClaim> = told(&server, "push_claim");
    assert!(claims[1].turn > claims[0].turn);
    node.agent.shutdown().await;
    let sign_off = format!("DELETE /nodes/n1?instance={} HTTP/1.1", claims[0].instance);
    assert_eq!(server.requests().last().unwrap().line, sign_off, "it is the process that heartbeats name");
}

#[tokio::test]
async fn a_claim_that_nobody_waits_for_any_more_is_released_when_it_cannot_arrive_any_more() {
    let (server, _) = claims_get(Deed::Hang).await;
    let node = Node::start(&server.url, "n1", HOUR).await;
    let (publisher, _evicted) = publish(&node.published, "x");
    let session = publisher.session();
    let (leases, name) = (node.leases.clone(), x());
    let waiting = tokio::spawn(async move { leases.acquire(&name, session).await });
    let calls = |path: &str| server.requests().iter().filter(|call| call.line.contains(path)).count();
    until(|| calls("push_claim") == 1).await;
    waiting.abort();
    until(|| calls("push_release") == 1).await;
    skip(CALL_DEADLINE).await;
    until(|| calls("push_release") == 2).await;
    assert!(!node.published.streams()[0].pushing);
}

#[tokio::test]
async fn another_push_asks_where_the_one_that_asked_gave_up() {
    let (server, mood) = claims_get(Deed::Hang).await;
    let node = Node::start(&server.url, "n1", HOUR).await;
    let (publisher, _evicted) = publish(&node.published, "x");
    let session = publisher.session();
    let calls = || server.requests().iter().filter(|call| call.line.contains("push_claim")).count();
    let (leases, name) = (node.leases.clone(), x());
    let first = tokio::spawn(async move { leases.acquire(&name, session).await });
    until(|| calls() == 1).await;
    let (leases, name) = (node.leases.clone(), x());
    let second = tokio::spawn(async move { leases.acquire(&name, session).await });
    mood(answer(204, ""));
    first.abort();
    timeout(HANG, second).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn while_no_reactor_answers_a_push_goes_on_and_another_waits() {
    let (server, mood) = moody(answer(200, "{}")).await;
    let node = Node::start(&server.url, "n1", HOUR).await;
    let (running, _evicted) = publish(&node.published, "x");
    let (coming, _evicted) = publish(&node.published, "y");
    let lease = node.acquire(running.session()).await.unwrap();
    mood(answer(503, r#"{"error":"away"}"#));
    let (leases, session) = (node.leases.clone(), coming.session());
    let waiting =
        tokio::spawn(async move { leases.acquire(&"y".parse().unwrap(), session).await.map(|_| ()) });
    until(|| node.claims("failed") > 2).await;
    assert!(!waiting.is_finished());
    let again = node.acquire(running.session()).await.unwrap();
    drop((lease, again));
    mood(answer(200, "{}"));
    timeout(HANG, waiting).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn where_nobody_is_to_be_asked_a_push_begins_at_once() {
    let server = Server::start(|_| answer(404, "<html>")).await;
    let plain = Node::start(&server.url, "n1", HOUR).await;
    let (publisher, _evicted) = publish(&plain.published, "x");
    let before = server.requests().len();
    let _lease = plain.acquire(publisher.session()).await.unwrap();
    assert_eq!(server.requests().len(), before);
    let away = Node::start(&nowhere().await, "n1", HOUR).await;
    let (publisher, _evicted) = publish(&away.published, "x");
    publisher.stands_alone();
    let _lease = away.acquire(publisher.session()).await.unwrap();
    assert_eq!((plain.claims("alone"), away.claims("alone")), (1, 1));
}
