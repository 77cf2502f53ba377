//! Heartbeats, releases and the sign-off.

use super::lookups::{lookup_with, watch};
use super::server::{Deed, Server, answer};
use super::{HANG, HOUR, count, metrics, moody, skip, until};
use lb::api::{Heartbeat, HeartbeatReply, PublisherRelease};
use lb::client::{Agent, AgentSettings, ClientMetrics, Contact, Http, PLAIN_SERVER_RETRY, Urls};
use lb::ids::SessionId;
use lb::published::{Published, Registration};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

pub fn agent_settings(urls: &str, interval: Duration) -> AgentSettings {
    let reactors: Urls = urls.parse().unwrap();
    AgentSettings { http: Http::new().unwrap(), reactors, node: "n1".parse().unwrap(), interval }
}

pub async fn reaches(agent: &Agent, state: impl FnMut(&Contact) -> bool) -> Contact {
    timeout(HANG, agent.contact().wait_for(state)).await.unwrap().unwrap().clone()
}

/// An agent of a node where nothing happens.
fn idle(url: &str, interval: Duration, metrics: ClientMetrics) -> Agent {
    Agent::start(agent_settings(url, interval), Published::new(), Heartbeat::default, metrics)
}

/// A publish that was let in, and what ends it.
pub fn publish(published: &Arc<Published>, name: &str) -> (Registration, oneshot::Receiver<String>) {
    let (evict, evicted) = oneshot::channel();
    let registration = published.register(&name.parse().unwrap(), SessionId::random(), None, evict);
    registration.accepted();
    (registration, evicted)
}

#[tokio::test]
async fn heartbeats_carry_load_and_list_and_bring_back_what_was_superseded() {
    let published = Published::new();
    let (registration, evicted) = publish(&published, "x");
    let session = registration.session();
    let lost = PublisherRelease { stream_name: "x".parse().unwrap(), session };
    let reply = HeartbeatReply { since: "7".into(), superseded: vec![lost], ..HeartbeatReply::default() };
    let reply = serde_json::to_string(&reply).unwrap();
    let server = Server::start(move |_| answer(200, &reply)).await;
    let load = || Heartbeat { viewers: 3, ..Heartbeat::default() };
    let agent = Agent::start(agent_settings(&server.url, HOUR), published, load, metrics().1);
    assert!(timeout(HANG, evicted).await.unwrap().unwrap().contains("took over"));
    let request = server.requests().remove(0);
    assert_eq!(request.line, "PUT /nodes/n1 HTTP/1.1");
    let sent: Heartbeat = serde_json::from_str(&request.body).unwrap();
    assert_eq!((sent.interval_ms, sent.viewers), (3_600_000, 3));
    assert_eq!((sent.published, sent.streams[0].session, sent.complete), (1, session, true));
    assert_eq!(sent.since, None);
    agent.poke();
    timeout(HANG, server.received(2)).await.unwrap();
    let next: Heartbeat = serde_json::from_str(&server.requests()[1].body).unwrap();
    assert_eq!((next.since.as_deref(), next.instance), (Some("7"), sent.instance));
    timeout(HANG, agent.shutdown()).await.unwrap();
    let sign_off = format!("DELETE /nodes/n1?instance={} HTTP/1.1", sent.instance.unwrap());
    assert_eq!(server.requests().last().unwrap().line, sign_off);
}

#[tokio::test]
async fn pokes_fall_together() {
    let server = Server::start(|_| answer(200, "{}")).await;
    let agent = idle(&server.url, HOUR, metrics().1);
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
    let agent = idle(&server.url, HOUR, metrics.clone());
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
    let published = Published::new();
    let _publisher = publish(&published, "x");
    let settings = agent_settings(&server.url, HOUR);
    let agent = Agent::start(settings, published, Heartbeat::default, metrics().1);
    timeout(HANG, server.received(2)).await.unwrap();
    agent.shutdown().await;
    assert_eq!(server.requests().len(), 3, "two heartbeats and the sign-off");
}

#[tokio::test]
async fn a_plain_web_server_is_left_alone() {
    let server = Server::start(|_| answer(404, "<html>")).await;
    let (registry, metrics) = metrics();
    let published = Published::new();
    let settings = agent_settings(&server.url, HOUR);
    let agent = Agent::start(settings, published.clone(), Heartbeat::default, metrics);
    reaches(&agent, |contact| *contact == Contact::Plain).await;
    agent.poke();
    drop(publish(&published, "x"));
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
    let agent = idle(&server.url, interval, metrics().1);
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
    let published = Published::new();
    let settings = agent_settings(&server.url, HOUR);
    let _agent = Agent::start(settings, published.clone(), Heartbeat::default, metrics);
    let (registration, _) = publish(&published, "x");
    let session = registration.session();
    drop(registration);
    timeout(HANG, server.received(4)).await.unwrap();
    let posts: Vec<_> = server.requests().into_iter().filter(|r| r.line.starts_with("POST")).collect();
    assert_eq!(posts.len(), 3);
    assert_eq!(posts[2].line, "POST /publisher_release HTTP/1.1");
    assert_eq!(posts[2].body, format!(r#"{{"stream_name":"x","session":"{session}"}}"#));
    // No await in between: the agent's task cannot take any of them.
    for _ in 0..1100 {
        drop(publish(&published, "x"));
    }
    assert_eq!(count(&registry, "lb_releases_total", "overflow"), 1100 - 1024);
}

#[tokio::test]
async fn a_node_stops_in_time_when_no_reactor_answers_and_says_why_none_heard_it() {
    let (server, mood) = moody(answer(200, "{}")).await;
    let (registry, metrics) = metrics();
    let agent = idle(&server.url, HOUR, metrics);
    reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
    mood(Deed::Hang);
    agent.poke();
    timeout(HANG, server.received(2)).await.unwrap();
    let (log, _guard) = logged();
    let started = Instant::now();
    agent.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_eq!(count(&registry, "lb_sign_offs_total", "timeout"), 1);
    let log = log.text();
    assert!(log.contains("WARN") && log.contains("no reactor heard that this node stops"), "{log}");
    assert!(log.contains("no answer within 3 s"), "{log}");
}

#[tokio::test]
async fn a_sign_off_that_fails_is_said_with_what_each_reactor_did() {
    let (server, mood) = moody(answer(200, "{}")).await;
    let (registry, metrics) = metrics();
    let agent = idle(&server.url, HOUR, metrics.clone());
    reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
    mood(answer(503, ""));
    let (log, _guard) = logged();
    agent.shutdown().await;
    assert!(log.text().contains("503 Service Unavailable"), "{}", log.text());
    assert_eq!(count(&registry, "lb_sign_offs_total", "failed"), 1);
    // Also that of a node which never reached one: its lookups may have been heard.
    let agent = idle(&super::nowhere().await, HOUR, metrics.clone());
    reaches(&agent, |contact| matches!(contact, Contact::Unreachable { .. })).await;
    agent.shutdown().await;
    assert_eq!(count(&registry, "lb_sign_offs_total", "failed"), 2);
    mood(answer(200, "{}"));
    let agent = idle(&server.url, HOUR, metrics);
    reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
    agent.shutdown().await;
    assert_eq!(count(&registry, "lb_sign_offs_total", "ok"), 1);
}

/// What this thread logs while the guard lives.
fn logged() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
