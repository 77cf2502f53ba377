//! The client of the reactor API against servers that do everything a server can do wrong.

// A test says what it expects by `unwrap` and indexing; a panic is its verdict.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod reactor_client_server;

use lb::api::{
    Change, Heartbeat, HeartbeatReply, PublishedStream, PublisherLookup, PublisherRelease, WatcherLookup,
};
use lb::client::{
    Agent, AgentSettings, Answer, BODY_MAX, CALL_DEADLINE, ClientMetrics, Contact, Event, Events,
    EventsSettings, Http, Lookup, PLAIN_SERVER_RETRY, Urls,
};
use lb::ids::SessionId;
use prometheus::Registry;
use reactor_client_server::{Deed, Server, answer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};

const TEXT: &str =
    "workflow ingest_x {\n    ffmpeg_pull location=rtmp://10.0.0.1/pull_source/x stream_name=x\n}\n";

/// Longer than anything in these tests takes: a hang is a failure.
const HANG: Duration = Duration::from_secs(20);

fn metrics() -> (Registry, ClientMetrics) {
    let registry = Registry::new();
    let metrics = ClientMetrics::register(&registry).unwrap();
    (registry, metrics)
}

fn count(registry: &Registry, name: &str, label: &str) -> u64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
    let has =
        |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|pair| pair.value() == label);
    metrics.iter().filter(has).map(|metric| metric.get_counter().get_value() as u64).sum()
}

fn lookup(urls: &str) -> Lookup {
    lookup_with(urls, metrics().1)
}

/// Takes what looks like a workflow, or nothing.
fn lookup_with(urls: &str, metrics: ClientMetrics) -> Lookup {
    let validate = |text: &str| match text.is_empty() || text.starts_with("workflow") {
        true => Ok(()),
        false => Err("no workflow".to_owned()),
    };
    Lookup::new(Http::new().unwrap(), &urls.parse().unwrap(), validate, metrics)
}

fn watch(name: &str) -> WatcherLookup {
    WatcherLookup { stream_name: name.parse().unwrap(), accept: Vec::new(), node: None }
}

fn publish(name: &str, session: Option<SessionId>) -> PublisherLookup {
    PublisherLookup { stream_name: name.parse().unwrap(), session, node: None, origin: None, rtmp_port: None }
}

fn found(fresh: bool) -> Answer {
    let origin = Some("10.0.0.1".parse().unwrap());
    Answer::Found { text: TEXT.into(), epoch: Some(7), origin, fresh }
}

fn good() -> Deed {
    Deed::Reply(200, vec![("lb-epoch", "7".into()), ("lb-origin", "10.0.0.1".into())], TEXT.into())
}

fn is_unavailable(answer: &Answer, with: &str) -> bool {
    matches!(answer, Answer::Unavailable { reason } if reason.contains(with))
}

/// A URL where nobody listens.
async fn nowhere() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A server that does one thing on each call, and can be told to do another.
async fn moody(first: Deed) -> (Server, impl Fn(Deed)) {
    let mood = Arc::new(std::sync::Mutex::new(first));
    let told = mood.clone();
    let server = Server::start(move |_| mood.lock().unwrap().clone()).await;
    (server, move |deed| *told.lock().unwrap() = deed)
}

/// Lets the others work until a counter has come so far.
async fn until(condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, reached).await.unwrap();
}

#[tokio::test]
async fn a_question_and_its_answer_are_those_of_the_contract() {
    let server = Server::start(|request| match request.line.as_str() {
        "POST /watcher_lookup HTTP/1.1" => good(),
        _ => answer(200, ""),
    })
    .await;
    let watchers = lookup(&format!("{}/watcher_lookup", server.url));
    assert_eq!(watchers.watcher(&watch("x"), false).await, found(true));
    let publishers = lookup(&format!("{}/publisher_lookup", server.url));
    let plain = Answer::Found { text: "".into(), epoch: None, origin: None, fresh: true };
    assert_eq!(publishers.publisher(&publish("x", None)).await, plain);
    let requests = server.requests();
    assert_eq!(requests[0].body, r#"{"stream_name":"x"}"#);
    assert_eq!(requests[1].line, "POST /publisher_lookup HTTP/1.1");
    assert_eq!(requests[0].header("content-type"), Some("application/json"));
    assert_eq!(requests[0].header("user-agent"), Some(concat!("lb/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(requests[0].header("authorization"), None);
}

#[tokio::test]
async fn the_token_goes_to_the_reactor_and_not_where_it_redirects_to() {
    let other = Server::start(|_| good()).await;
    let elsewhere = format!("{}/elsewhere", other.url);
    let reactor =
        Server::start(move |_| Deed::Reply(307, vec![("location", elsewhere.clone())], String::new())).await;
    let http = Http::new().unwrap().with_token("s3cret").unwrap();
    let lookup = Lookup::new(http, &reactor.url.parse().unwrap(), |_| Ok(()), metrics().1);
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    assert_eq!(reactor.requests()[0].header("authorization"), Some("Bearer s3cret"));
    assert_eq!(other.requests()[0].header("authorization"), None);
    assert_eq!(other.requests()[0].body, r#"{"stream_name":"x"}"#);
}

#[tokio::test]
async fn redirects_end_and_never_turn_a_question_into_another() {
    let loops = Server::start(|_| Deed::Reply(307, vec![("location", "/again".into())], String::new())).await;
    let answer = lookup(&loops.url).watcher(&watch("x"), false).await;
    assert!(is_unavailable(&answer, "307"), "{answer:?}");
    assert_eq!(loops.requests().len(), 1 + lb::client::REDIRECTS_MAX);
    let found = Server::start(|_| Deed::Reply(302, vec![("location", "/x".into())], String::new())).await;
    let answer = lookup(&found.url).watcher(&watch("x"), false).await;
    assert!(is_unavailable(&answer, "302"), "{answer:?}");
    assert_eq!(found.requests().len(), 1);
}

#[tokio::test]
async fn whatever_an_outage_looks_like_the_last_good_answer_is_given_again() {
    let (server, mood) = moody(good()).await;
    let lookup = lookup(&server.url);
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    let huge = "x".repeat(BODY_MAX + 1);
    for (deed, reason) in [
        (answer(500, "oops"), "500"),
        (answer(503, r#"{"error":"warming up"}"#), "warming up"),
        (answer(401, ""), "401"),
        (answer(403, ""), "403"),
        (answer(400, ""), "400"),
        (answer(200, "<html>welcome"), "no workflow"),
        (Deed::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xff".to_vec()), "UTF-8"),
        (Deed::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\nworkflow".to_vec()), "127.0.0.1"),
        (Deed::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "127.0.0.1"),
        (Deed::Raw(Vec::new()), "127.0.0.1"),
        (answer(200, &huge), "longer than"),
        (Deed::Raw(format!("HTTP/1.1 200 OK\r\n\r\n{huge}").into_bytes()), "longer than"),
    ] {
        mood(deed);
        let unknown = lookup.watcher(&watch("y"), false).await;
        assert!(is_unavailable(&unknown, reason), "{reason}: {unknown:?}");
        assert_eq!(lookup.watcher(&watch("x"), false).await, found(false), "{reason}");
    }
    mood(good());
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
}

#[tokio::test]
async fn a_reactor_that_hangs_or_drips_costs_its_deadline_and_the_next_one_answers() {
    let second = Server::start(|_| good()).await;
    for deed in [Deed::Hang, Deed::Drip(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n".to_vec())] {
        let first = Server::start(move |_| deed.clone()).await;
        let lookup = lookup(&format!("{},{}", first.url, second.url));
        let started = Instant::now();
        assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
        let took = started.elapsed();
        assert!(took >= CALL_DEADLINE && took < CALL_DEADLINE + Duration::from_secs(2), "{took:?}");
        // From now on the one that failed stands behind.
        assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
        assert_eq!(first.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_dead_reactor_is_passed_over_at_once() {
    let second = Server::start(|_| good()).await;
    let lookup = lookup(&format!("{},{}", nowhere().await, second.url));
    let started = Instant::now();
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_404_of_the_first_reactor_that_answers_is_final_and_a_503_is_not() {
    let second = Server::start(|_| good()).await;
    let (first, mood) = moody(answer(503, "")).await;
    let urls = format!("{},{}", first.url, second.url);
    assert_eq!(lookup(&urls).watcher(&watch("x"), false).await, found(true));
    mood(answer(404, r#"{"error":"nobody publishes x"}"#));
    let reason = "nobody publishes x".into();
    assert_eq!(lookup(&urls).watcher(&watch("x"), false).await, Answer::NotFound { reason });
    mood(answer(409, ""));
    assert!(matches!(lookup(&urls).publisher(&publish("x", None)).await, Answer::Refused { .. }));
}

#[tokio::test]
async fn a_true_404_ends_what_was_known() {
    let (server, mood) = moody(good()).await;
    let lookup = lookup(&server.url);
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    mood(answer(404, ""));
    assert!(matches!(lookup.watcher(&watch("x"), false).await, Answer::NotFound { .. }));
    mood(answer(500, ""));
    assert!(matches!(lookup.watcher(&watch("x"), true).await, Answer::Unavailable { .. }));
}

#[tokio::test]
async fn a_stream_that_is_asked_for_outlives_an_outage_of_days() {
    let (server, mood) = moody(good()).await;
    let lookup = lookup(&server.url);
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    mood(answer(500, ""));
    for _ in 0..8 {
        skip(Duration::from_secs(11 * 3600)).await;
        assert_eq!(lookup.watcher(&watch("x"), false).await, found(false));
    }
}

/// Lets time pass in no time. Sockets do not mix with a clock that is paused throughout.
async fn skip(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_publisher_that_returns_in_an_outage_does_not_get_the_epoch_of_its_last_session() {
    let (server, mood) = moody(good()).await;
    let lookup = lookup(&server.url);
    let session = Some(SessionId::random());
    assert_eq!(lookup.publisher(&publish("x", session)).await, found(true));
    mood(answer(503, ""));
    assert_eq!(lookup.publisher(&publish("x", session)).await, found(false));
    let new = lookup.publisher(&publish("x", Some(SessionId::random()))).await;
    assert!(matches!(new, Answer::Found { epoch: None, fresh: false, .. }), "{new:?}");
}

#[tokio::test]
async fn a_reactor_that_restarts_under_a_kept_connection_is_asked_again() {
    let calls = AtomicUsize::new(0);
    let server = Server::start(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
        // A connection that was fine breaks without an answer.
        1 => Deed::Raw(Vec::new()),
        _ => good(),
    })
    .await;
    let lookup = lookup(&server.url);
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    assert_eq!(lookup.watcher(&watch("y"), false).await, found(true));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_thousand_who_ask_for_one_stream_cost_one_request() {
    let (open, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (server_open, server_gate) = (open.clone(), gate.clone());
    let server = Server::start(move |_| {
        server_open.notify_one();
        Deed::After(server_gate.clone(), Box::new(good()))
    })
    .await;
    let (registry, metrics) = metrics();
    let lookup = lookup_with(&server.url, metrics);
    // The one who starts the call leaves.
    let leaver = tokio::spawn({
        let lookup = lookup.clone();
        async move { lookup.watcher(&watch("x"), false).await }
    });
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let lookup = lookup.clone();
        callers.spawn(async move { lookup.watcher(&watch("x"), false).await });
    }
    timeout(HANG, open.notified()).await.unwrap();
    leaver.abort();
    gate.notify_one();
    let mut answered = 0;
    while let Some(answer) = timeout(HANG, callers.join_next()).await.unwrap() {
        assert_eq!(answer.unwrap(), found(true));
        answered += 1;
    }
    assert_eq!((answered, server.requests().len()), (1000, 1));
    assert_eq!(count(&registry, "lb_lookups_total", "found"), 1);
}

#[tokio::test]
async fn a_herd_on_an_unknown_name_is_one_request_a_second() {
    let server = Server::start(|_| answer(404, "")).await;
    let lookup = lookup(&server.url);
    for _ in 0..100 {
        assert!(matches!(lookup.watcher(&watch("x"), false).await, Answer::NotFound { .. }));
    }
    assert_eq!(server.requests().len(), 1);
    lookup.watcher(&watch("x"), true).await;
    assert_eq!(server.requests().len(), 2);
    skip(Duration::from_secs(1)).await;
    lookup.watcher(&watch("x"), false).await;
    assert_eq!(server.requests().len(), 3);
    lookup.publisher(&publish("x", None)).await;
    lookup.publisher(&publish("x", None)).await;
    assert_eq!(server.requests().len(), 5, "a publisher is always asked for");
}

#[tokio::test]
async fn results_are_counted_and_recovery_is_told_once() {
    let (server, mood) = moody(answer(503, "")).await;
    let (registry, metrics) = metrics();
    let told = Arc::new(AtomicUsize::new(0));
    let hook = told.clone();
    let lookup = lookup_with(&server.url, metrics).on_recovery(move || {
        hook.fetch_add(1, Ordering::Relaxed);
    });
    lookup.watcher(&watch("x"), false).await;
    mood(good());
    lookup.watcher(&watch("x"), false).await;
    lookup.watcher(&watch("x"), false).await;
    assert_eq!(told.load(Ordering::Relaxed), 1);
    mood(answer(200, "<html>"));
    lookup.watcher(&watch("x"), false).await;
    mood(answer(404, ""));
    lookup.watcher(&watch("x"), false).await;
    mood(answer(409, ""));
    lookup.publisher(&publish("x", None)).await;
    assert_eq!(told.load(Ordering::Relaxed), 1, "an answer that cannot be used is no outage");
    for (result, times) in [("found", 2), ("stale", 1), ("unknown", 1), ("refused", 1), ("unavailable", 1)] {
        assert_eq!(count(&registry, "lb_lookups_total", result), times, "{result}");
    }
    assert_eq!(count(&registry, "lb_lookups_total", "publisher"), 1);
}

#[tokio::test]
async fn https_is_spoken_and_a_certificate_that_nobody_vouches_for_is_refused() {
    let port = reactor_client_server::self_signed();
    let answer = lookup(&format!("https://127.0.0.1:{port}")).watcher(&watch("x"), false).await;
    assert!(is_unavailable(&answer, "certificate"), "{answer:?}");
    let plain = Server::start(|_| good()).await;
    let answer = lookup(&plain.url.replace("http:", "https:")).watcher(&watch("x"), false).await;
    assert!(matches!(answer, Answer::Unavailable { .. }), "{answer:?}");
}

fn agent_settings(urls: &str, interval: Duration) -> AgentSettings {
    let reactors: Urls = urls.parse().unwrap();
    AgentSettings { http: Http::new().unwrap(), reactors, node: "n1".parse().unwrap(), interval }
}

const HOUR: Duration = Duration::from_secs(3600);

async fn reaches(agent: &Agent, state: impl FnMut(&Contact) -> bool) -> Contact {
    timeout(HANG, agent.contact().wait_for(state)).await.unwrap().unwrap().clone()
}

#[tokio::test]
async fn heartbeats_carry_the_picture_and_bring_back_what_was_superseded() {
    let session = SessionId::random();
    let lost = PublisherRelease { stream_name: "x".parse().unwrap(), session };
    let reply =
        HeartbeatReply { owned: Vec::new(), superseded: vec![lost.clone()], ..HeartbeatReply::default() };
    let reply = serde_json::to_string(&reply).unwrap();
    let server = Server::start(move |_| answer(200, &reply)).await;
    let (replies, mut heard) = mpsc::channel(8);
    let source = move || Heartbeat {
        streams: vec![PublishedStream { stream_name: "x".parse().unwrap(), session, epoch: None }],
        viewers: 3,
        ..Heartbeat::default()
    };
    let on_reply = move |reply| drop(replies.try_send(reply));
    let agent = Agent::start(agent_settings(&server.url, HOUR), source, on_reply, metrics().1);
    assert_eq!(timeout(HANG, heard.recv()).await.unwrap().unwrap().superseded, [lost]);
    let request = server.requests().remove(0);
    assert_eq!(request.line, "PUT /nodes/n1 HTTP/1.1");
    let sent: Heartbeat = serde_json::from_str(&request.body).unwrap();
    assert_eq!((sent.interval_ms, sent.viewers, sent.streams.len()), (3_600_000, 3, 1));
    timeout(HANG, agent.shutdown()).await.unwrap();
    assert_eq!(server.requests().last().unwrap().line, "DELETE /nodes/n1 HTTP/1.1");
}

#[tokio::test]
async fn pokes_fall_together() {
    let server = Server::start(|_| answer(200, "{}")).await;
    let agent = Agent::start(agent_settings(&server.url, HOUR), Heartbeat::default, |_| {}, metrics().1);
    reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
    for _ in 0..1000 {
        agent.poke();
    }
    timeout(HANG, server.received(2)).await.unwrap();
    agent.shutdown().await;
    assert_eq!(server.requests().len(), 3, "two heartbeats and the sign-off");
}

#[tokio::test]
async fn a_reactor_that_comes_back_hears_of_the_node_long_before_the_interval() {
    let (server, mood) = moody(answer(503, "")).await;
    let (registry, metrics) = metrics();
    let agent = Agent::start(agent_settings(&server.url, HOUR), Heartbeat::default, |_| {}, metrics.clone());
    let contact = reaches(&agent, |contact| matches!(contact, Contact::Unreachable { .. })).await;
    assert!(matches!(contact, Contact::Unreachable { error, .. } if error.contains("503")));
    mood(answer(200, "{}"));
    reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
    // The same by way of a lookup that notices first.
    mood(answer(503, ""));
    let lookup = lookup_with(&server.url, metrics).on_recovery(agent.poker());
    lookup.watcher(&watch("x"), false).await;
    let before = server.requests().len();
    mood(answer(200, ""));
    lookup.watcher(&watch("x"), false).await;
    timeout(HANG, server.received(before + 2)).await.unwrap();
    assert_eq!(server.requests().last().unwrap().line, "PUT /nodes/n1 HTTP/1.1");
    assert!(count(&registry, "lb_heartbeats_total", "ok") >= 1);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_reactor_that_forgot_the_listed_streams_is_told_once_more() {
    let server = Server::start(|_| answer(200, "{}")).await;
    let source = || Heartbeat {
        streams: vec![PublishedStream {
            stream_name: "x".parse().unwrap(),
            session: SessionId::random(),
            epoch: None,
        }],
        ..Heartbeat::default()
    };
    let agent = Agent::start(agent_settings(&server.url, HOUR), source, |_| {}, metrics().1);
    timeout(HANG, server.received(2)).await.unwrap();
    agent.shutdown().await;
    assert_eq!(server.requests().len(), 3, "two heartbeats and the sign-off");
}

#[tokio::test]
async fn a_plain_web_server_is_left_alone() {
    let server = Server::start(|_| answer(404, "<html>")).await;
    let (registry, metrics) = metrics();
    let agent = Agent::start(agent_settings(&server.url, HOUR), Heartbeat::default, |_| {}, metrics);
    reaches(&agent, |contact| *contact == Contact::Plain).await;
    agent.poke();
    agent.release("x".parse().unwrap(), SessionId::random());
    until(|| count(&registry, "lb_heartbeats_total", "plain") == 2).await;
    until(|| count(&registry, "lb_releases_total", "plain") == 1).await;
    skip(PLAIN_SERVER_RETRY + Duration::from_secs(1)).await;
    timeout(HANG, server.received(2)).await.unwrap();
    agent.shutdown().await;
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.line.starts_with("PUT")), "{requests:?}");
    assert_eq!(requests.len(), 2);
}

#[tokio::test]
async fn a_404_from_before_a_reactor_that_was_there_is_an_outage() {
    let (server, mood) = moody(answer(200, "{}")).await;
    let interval = Duration::from_millis(50);
    let agent = Agent::start(agent_settings(&server.url, interval), Heartbeat::default, |_| {}, metrics().1);
    reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
    mood(answer(404, ""));
    reaches(&agent, |contact| matches!(contact, Contact::Unreachable { .. })).await;
    mood(answer(200, "{}"));
    reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
}

#[tokio::test]
async fn a_release_is_tried_again_and_too_many_are_counted() {
    let failures = AtomicUsize::new(2);
    let server = Server::start(move |request| {
        let fail = |left: usize| left.checked_sub(1);
        match request.line.starts_with("POST")
            && failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fail).is_ok()
        {
            true => answer(503, ""),
            false => answer(200, "{}"),
        }
    })
    .await;
    let (registry, metrics) = metrics();
    let agent = Agent::start(agent_settings(&server.url, HOUR), Heartbeat::default, |_| {}, metrics);
    let session = SessionId::random();
    agent.release("x".parse().unwrap(), session);
    timeout(HANG, server.received(4)).await.unwrap();
    let posts: Vec<_> = server.requests().into_iter().filter(|r| r.line.starts_with("POST")).collect();
    assert_eq!(posts.len(), 3);
    assert_eq!(posts[2].line, "POST /publisher_release HTTP/1.1");
    assert_eq!(posts[2].body, format!(r#"{{"stream_name":"x","session":"{session}"}}"#));
    // No await in between: the agent's task cannot take any of them.
    for _ in 0..1100 {
        agent.release("x".parse().unwrap(), session);
    }
    assert_eq!(count(&registry, "lb_releases_total", "overflow"), 1100 - 1024);
}

#[tokio::test]
async fn a_node_stops_in_time_when_no_reactor_answers() {
    let (server, mood) = moody(answer(200, "{}")).await;
    let agent = Agent::start(agent_settings(&server.url, HOUR), Heartbeat::default, |_| {}, metrics().1);
    reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
    mood(Deed::Hang);
    agent.poke();
    timeout(HANG, server.received(2)).await.unwrap();
    let started = Instant::now();
    agent.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

fn events_settings(urls: &str) -> EventsSettings {
    EventsSettings {
        http: Http::new().unwrap(),
        reactors: urls.parse().unwrap(),
        keep_alive: Duration::from_millis(200),
    }
}

fn change(epoch: u64) -> Change {
    Change { stream_name: "x".parse().unwrap(), origin: None, epoch }
}

fn sse(change: &Change) -> Vec<u8> {
    format!("event: change\ndata: {}\n\n", serde_json::to_string(change).unwrap()).into_bytes()
}

const HELLO: &[u8] = b"event: hello\ndata: {}\n\n";

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(HANG, events.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn events_are_followed_and_a_lost_connection_is_opened_again_with_a_hello() {
    let (server, streams) = Server::streaming().await;
    let (events, mut receiver) = Events::start(events_settings(&server.url), metrics().1);
    for epoch in 0..3 {
        let stream = streams.accept().await;
        // In pieces, between comments and events of other kinds.
        stream.send(b": welcome\n\nevent: hel").await;
        stream.send(b"lo\ndata: {}\n\nevent: news\ndata: x\n\n:\n\n").await;
        assert_eq!(next(&mut receiver).await, Event::Hello);
        stream.send(&sse(&change(epoch))).await;
        assert_eq!(next(&mut receiver).await, Event::Change(change(epoch)));
    }
    assert_eq!(server.requests()[0].line, "GET /events HTTP/1.1");
    assert_eq!(server.requests()[0].header("accept"), Some("text/event-stream"));
    timeout(HANG, events.shutdown()).await.unwrap();
    assert_eq!(receiver.recv().await, None);
}

#[tokio::test]
async fn a_half_open_connection_for_events_is_found_and_one_with_keep_alives_is_kept() {
    let (server, streams) = Server::streaming().await;
    let (_events, mut receiver) = Events::start(events_settings(&server.url), metrics().1);
    let silent = streams.accept().await;
    silent.send(HELLO).await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    let kept = streams.accept().await;
    kept.send(HELLO).await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..15 {
        beat.tick().await;
        kept.send(b":\n\n").await;
    }
    kept.send(&sse(&change(1))).await;
    assert_eq!(next(&mut receiver).await, Event::Change(change(1)));
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn an_event_that_does_not_end_or_cannot_be_read_costs_a_hello_and_no_memory() {
    let (server, streams) = Server::streaming().await;
    let (registry, metrics) = metrics();
    let settings = EventsSettings { keep_alive: HOUR, ..events_settings(&server.url) };
    let (_events, mut receiver) = Events::start(settings, metrics);
    let endless = streams.accept().await;
    endless.send(HELLO).await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    endless.send(b"event: change\ndata: {\n\n").await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    endless.send(&b"data: xxxxxxxxxxxxxxxxxx\n".repeat(1000)).await;
    let fresh = streams.accept().await;
    fresh.send(HELLO).await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    assert_eq!(count(&registry, "lb_reactor_events_total", "lost"), 1);
}

#[tokio::test]
async fn a_reader_that_is_behind_gets_a_hello_for_what_it_missed() {
    let (server, streams) = Server::streaming().await;
    let (registry, metrics) = metrics();
    let (_events, mut receiver) = Events::start(events_settings(&server.url), metrics);
    let stream = streams.accept().await;
    stream.send(HELLO).await;
    let sent = 3000;
    for epoch in 0..sent {
        stream.send(&sse(&change(epoch))).await;
    }
    // All are read, whether or not there was room.
    let of = |event| count(&registry, "lb_reactor_events_total", event);
    until(|| of("change") + of("dropped") == sent).await;
    let dropped = count(&registry, "lb_reactor_events_total", "dropped");
    assert!(dropped > 0);
    for expected in 0..sent - dropped + 1 {
        let event = next(&mut receiver).await;
        let wanted = if expected == 0 { Event::Hello } else { Event::Change(change(expected - 1)) };
        assert_eq!(event, wanted);
    }
    assert_eq!(next(&mut receiver).await, Event::Hello);
    stream.send(&sse(&change(sent))).await;
    assert_eq!(next(&mut receiver).await, Event::Change(change(sent)));
}

#[tokio::test]
async fn the_first_reactor_with_events_is_followed() {
    let plain = Server::start(|_| answer(200, "<html>")).await;
    let (server, streams) = Server::streaming().await;
    let urls = format!("{},{},{}", nowhere().await, plain.url, server.url);
    let (_events, mut receiver) = Events::start(events_settings(&urls), metrics().1);
    for asked in [1, 1, 2] {
        if asked == 2 {
            skip(PLAIN_SERVER_RETRY).await;
        }
        let stream = streams.accept().await;
        stream.send(HELLO).await;
        assert_eq!(next(&mut receiver).await, Event::Hello);
        assert_eq!(plain.requests().len(), asked, "a server without events is asked once a minute");
    }
}
