//! The list of a node and how a reactor comes to know it: in pieces, then by changes.

use super::agent::{agent_settings, publish, reaches};
use super::server::{Deed, Request, Server, answer};
use super::{HANG, HOUR, metrics, until};
use lb::api::{AUDIT_STREAMS, HEARTBEAT_STREAMS, Heartbeat, HeartbeatReply, PublishedStream};
use lb::client::{Agent, Contact};
use lb::ids::SessionId;
use lb::published::Published;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// The greatest body of a heartbeat, and of its reply, bytes.
const BODY_MAX: usize = 256 * 1024;

/// What the reactor gives, one of the longest there are.
const EPOCH: u64 = u64::MAX - 1;

/// A reactor as far as the list of one node goes.
#[derive(Default)]
struct Reactor {
    known: BTreeSet<SessionId>,
    /// Whether the whole list was received.
    whole: bool,
    round: u64,
    beats: Vec<Heartbeat>,
    greatest: usize,
}

impl Reactor {
    fn take(&mut self, request: &Request) -> Deed {
        if !request.line.starts_with("PUT") {
            return answer(204, "");
        }
        let beat: Heartbeat = serde_json::from_str(&request.body).unwrap();
        assert!(beat.streams.len() <= HEARTBEAT_STREAMS && beat.ended.len() <= HEARTBEAT_STREAMS);
        self.known.retain(|session| beat.ended.iter().all(|ended| ended.session != *session));
        self.known.extend(beat.streams.iter().map(|stream| stream.session));
        let goes_on = beat.since == Some(self.round.to_string());
        self.round += u64::from(!goes_on);
        let whole = beat.streams.len() as u64 == beat.published;
        self.whole = whole || (goes_on && (self.whole || beat.complete));
        let given = |stream: &PublishedStream| PublishedStream {
            epoch: stream.epoch.or(Some(EPOCH)),
            identity: None,
            ..stream.clone()
        };
        let reply = HeartbeatReply {
            since: self.round.to_string(),
            owned: beat.streams.iter().map(given).collect(),
            superseded: Vec::new(),
            want_all: !goes_on && !self.whole,
        };
        let reply = serde_json::to_string(&reply).unwrap();
        self.greatest = self.greatest.max(reply.len()).max(request.body.len());
        self.beats.push(beat);
        answer(200, &reply)
    }

    fn forget(&mut self) {
        *self = Reactor { round: self.round + 1000, greatest: self.greatest, ..Reactor::default() };
    }
}

/// What a reactor knows, behind a server that can be told to fail instead.
struct Stand {
    server: Server,
    reactor: Arc<Mutex<Reactor>>,
    failing: Arc<Mutex<Option<Deed>>>,
}

impl Stand {
    async fn new() -> Self {
        let (reactor, failing) = (Arc::new(Mutex::new(Reactor::default())), Arc::new(Mutex::new(None)));
        let (taking, first) = (reactor.clone(), failing.clone());
        let server = Server::start(move |request| {
            let deed: Option<Deed> = first.lock().unwrap().clone();
            deed.unwrap_or_else(|| taking.lock().unwrap().take(request))
        })
        .await;
        Stand { server, reactor, failing }
    }

    fn see<T>(&self, see: impl FnOnce(&mut Reactor) -> T) -> T {
        see(&mut self.reactor.lock().unwrap())
    }

    fn fail(&self, deed: Option<Deed>) {
        *self.failing.lock().unwrap() = deed;
    }
}

#[tokio::test]
async fn twenty_thousand_streams_with_the_longest_names_are_known_in_small_pieces_and_again_when_forgotten() {
    let (stand, published) = (Stand::new().await, Published::new());
    let publishers: Vec<_> = (0..20_000).map(|n| publish(&published, &format!("{n:0>255}"))).collect();
    let sessions: BTreeSet<_> = publishers.iter().map(|(registration, _)| registration.session()).collect();
    let settings = agent_settings(&stand.server.url, HOUR);
    let agent = Agent::start(settings, published.clone(), Heartbeat::default, metrics().1);
    until(|| stand.see(|reactor| reactor.whole)).await;
    for _ in 0..2 {
        let pieces = 20_000 / HEARTBEAT_STREAMS;
        stand.see(|reactor| {
            assert!(reactor.known == sessions);
            assert!(reactor.greatest > 128 * 1024 && reactor.greatest < BODY_MAX, "{}", reactor.greatest);
            assert!(reactor.beats.iter().all(|beat| beat.published == 20_000));
            let last = reactor.beats.iter().position(|beat| beat.complete);
            // The first may have been the one that asked.
            assert!(last.is_some_and(|last| last <= pieces), "{last:?}");
            reactor.forget();
        });
        // The replies were read: the node knows each epoch.
        let known = |stream: &PublishedStream| stream.epoch == Some(EPOCH);
        until(|| published.streams().iter().all(known)).await;
        agent.poke();
        until(|| stand.see(|reactor| reactor.whole)).await;
    }
    agent.shutdown().await;
}

#[tokio::test]
async fn what_does_not_change_is_named_in_turn_and_what_changes_at_once() {
    let (stand, published) = (Stand::new().await, Published::new());
    let publishers: Vec<_> = (0..1000).map(|n| publish(&published, &format!("s{n}"))).collect();
    let interval = Duration::from_millis(20);
    let settings = agent_settings(&stand.server.url, interval);
    let agent = Agent::start(settings, published.clone(), Heartbeat::default, metrics().1);
    until(|| stand.see(|reactor| reactor.whole)).await;
    stand.see(|reactor| reactor.beats.clear());
    until(|| stand.see(|reactor| reactor.beats.len() > 1000 / AUDIT_STREAMS + 1)).await;
    stand.see(|reactor| {
        assert!(
            reactor.beats.iter().all(|beat| beat.streams.len() <= AUDIT_STREAMS && beat.ended.is_empty())
        );
        let named = reactor.beats.iter().flat_map(|beat| &beat.streams).map(|stream| stream.session);
        assert_eq!(named.collect::<BTreeSet<_>>().len(), 1000, "each was named");
    });
    agent.shutdown().await;
    let settings = agent_settings(&stand.server.url, HOUR);
    let agent = Agent::start(settings, published.clone(), Heartbeat::default, metrics().1);
    reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
    until(|| stand.see(|reactor| reactor.whole && reactor.beats.last().is_some_and(|beat| beat.complete)))
        .await;
    stand.see(|reactor| reactor.beats.clear());
    // A name changed hands, as far as an event says: a reactor is asked about just this one.
    let (registration, _) = &publishers[500];
    registration.set_epoch(4);
    agent.poke();
    until(|| stand.see(|reactor| reactor.beats.len() == 1)).await;
    assert!(published.changed_hands(&"s500".parse().unwrap(), u64::MAX));
    agent.poke();
    until(|| stand.see(|reactor| reactor.beats.len() == 2)).await;
    stand.see(|reactor| {
        for beat in &reactor.beats {
            assert_eq!(beat.streams.len(), 1);
            assert_eq!(beat.streams[0].session, registration.session());
        }
    });
    agent.shutdown().await;
}

#[tokio::test]
async fn a_heartbeat_that_fails_loses_nothing() {
    let (stand, published) = (Stand::new().await, Published::new());
    let mut publishers: Vec<_> = (0..700).map(|n| publish(&published, &format!("s{n}"))).collect();
    let settings = agent_settings(&stand.server.url, HOUR);
    let agent = Agent::start(settings, published.clone(), Heartbeat::default, metrics().1);
    until(|| stand.see(|reactor| reactor.whole)).await;
    for (round, deed) in
        [answer(503, ""), Deed::Raw(Vec::new()), answer(200, "garbage")].into_iter().enumerate()
    {
        stand.fail(Some(deed));
        publishers.truncate(600 - round * 50);
        publishers.extend((0..50).map(|n| publish(&published, &format!("r{round}n{n}"))));
        agent.poke();
        reaches(&agent, |contact| matches!(contact, Contact::Unreachable { .. })).await;
        // And what changes while nobody answers.
        publishers.extend((0..7).map(|n| publish(&published, &format!("r{round}m{n}"))));
        publishers.remove(3);
        let sessions: BTreeSet<_> =
            publishers.iter().map(|(registration, _)| registration.session()).collect();
        stand.see(|reactor| reactor.beats.clear());
        stand.fail(None);
        until(|| stand.see(|reactor| reactor.known == sessions)).await;
        stand.see(|reactor| {
            let named: usize = reactor.beats.iter().map(|beat| beat.streams.len()).sum();
            assert!(named < 200, "{named} streams were named, not the changed ones only");
        });
        reaches(&agent, |contact| matches!(contact, Contact::Reachable { .. })).await;
    }
    timeout(HANG, agent.shutdown()).await.unwrap();
}

#[tokio::test]
async fn another_reactor_that_takes_over_asks_for_everything_and_gets_it() {
    let (first, second) = (Stand::new().await, Stand::new().await);
    let published = Published::new();
    let publishers: Vec<_> = (0..1200).map(|n| publish(&published, &format!("s{n}"))).collect();
    let sessions: BTreeSet<_> = publishers.iter().map(|(registration, _)| registration.session()).collect();
    let settings = agent_settings(&format!("{},{}", first.server.url, second.server.url), HOUR);
    let agent = Agent::start(settings, published.clone(), Heartbeat::default, metrics().1);
    until(|| first.see(|reactor| reactor.whole)).await;
    second.see(|reactor| reactor.round = 500);
    first.fail(Some(answer(503, "")));
    agent.poke();
    until(|| second.see(|reactor| reactor.whole && reactor.known == sessions)).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn a_reactor_that_asks_for_everything_for_ever_is_not_given_it_as_fast_as_the_network_goes() {
    let reply = HeartbeatReply { since: "1".into(), want_all: true, ..HeartbeatReply::default() };
    let reply = serde_json::to_string(&reply).unwrap();
    let server = Server::start(move |_| answer(200, &reply)).await;
    let settings = agent_settings(&server.url, HOUR);
    let agent = Agent::start(settings, Published::new(), Heartbeat::default, metrics().1);
    timeout(HANG, server.received(2)).await.unwrap();
    let twice = Instant::now();
    timeout(HANG, server.received(4)).await.unwrap();
    // Half of a quarter of a second, and of half a second.
    assert!(twice.elapsed() >= Duration::from_millis(370), "{:?}", twice.elapsed());
    agent.shutdown().await;
}
