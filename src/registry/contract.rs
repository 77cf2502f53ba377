//! What a registry must do, whatever its store: one suite of tests that runs over each of them. The memory store runs on a
//! paused clock, the Redis store on a real server, with short leases.

use super::hold_down::{HOLD_MIN, TAKEOVERS_FREE};
use super::millis::millis;
use super::rules::RESTORED_EPOCH_MAX;
use super::*;
use crate::api::{Heartbeat, HeartbeatReply, PublishedStream, PublisherRelease, PushClaim, PushRelease};
use crate::ids;
use std::net::Ipv4Addr;

const LEASE: Duration = Duration::from_millis(400);

fn settings() -> Settings {
    Settings { lease: LEASE, warm_up: Duration::ZERO, ..Settings::default() }
}

fn first_wins() -> Settings {
    Settings { policy: Policy::FirstWins, ..settings() }
}

fn warming_up() -> Settings {
    Settings { warm_up: LEASE, ..settings() }
}

fn small() -> Settings {
    Settings { max_streams: 2, ..settings() }
}

macro_rules! contract {
    ($($test:ident($settings:ident);)*) => {
        mod in_memory {
            $(#[tokio::test(start_paused = true)]
            async fn $test() {
                let store = std::sync::Arc::new(super::Memory::new());
                super::$test(&super::Registry::start(store, super::$settings())).await;
            })*
        }
        mod in_redis {
            $(#[tokio::test]
            async fn $test() {
                let server = super::redis_server::RedisServer::start();
                let store = super::store_contract::connected(&server).await;
                super::$test(&super::Registry::start(store, super::$settings())).await;
            })*
        }
    };
}

contract! {
    a_claim_is_found_until_it_is_released(settings);
    a_lease_lapses_unless_it_is_renewed(settings);
    the_newest_session_wins_and_the_old_one_is_told(settings);
    an_ended_session_never_comes_back(settings);
    first_wins_refuses_until_the_name_is_free(first_wins);
    only_the_same_identity_takes_a_name_over(settings);
    a_restored_identity_guards_its_name(settings);
    who_was_there_before_gets_the_name_back_from_somebody_else(warming_up);
    a_plain_node_is_known_by_its_address(settings);
    a_heartbeat_renews_and_a_silent_node_loses_its_leases(settings);
    a_short_heartbeat_lease_replaces_that_of_a_lookup(settings);
    the_higher_epoch_wins_whichever_is_restored_first(settings);
    of_equal_epochs_the_greater_session_wins(settings);
    a_claim_is_newer_than_what_is_restored(settings);
    an_absurd_epoch_moves_nothing(settings);
    a_session_without_an_epoch_counts_as_new(settings);
    a_fight_for_a_name_is_held(settings);
    a_draining_owner_is_found_but_not_protected(first_wins);
    removing_a_node_ends_its_leases(settings);
    unknown_names_wait_for_the_warm_up(warming_up);
    the_number_of_streams_is_bounded(small);
    changes_are_told_in_order(settings);
    a_slow_subscriber_is_told_to_resync(settings);
    a_stream_is_pushed_by_one_session_at_a_time(settings);
    what_a_silent_node_pushed_holds_nobody_up(settings);
    who_pushes_is_learned_again_before_anybody_is_let(warming_up);
}

async fn a_claim_is_found_until_it_is_released(registry: &Registry) {
    let (x, session) = (name("live/x"), SessionId::random());
    assert_eq!(registry.owner(x.clone()).await, Ok(None));
    let lease = registry.claim(claim("live/x", session, "a")).await.unwrap();
    assert_eq!((lease.session, lease.node.clone()), (Some(session), Some(node("a"))));
    assert_eq!(lease.origin.to_string(), "10.0.0.97");
    assert!(lease.remaining <= LEASE && lease.remaining > LEASE / 2, "{lease:?}");
    let found = registry.owner(x.clone()).await.unwrap().unwrap();
    assert_eq!((&found.origin, found.epoch, found.session), (&lease.origin, lease.epoch, lease.session));
    assert_eq!(registry.list().await.unwrap().len(), 1);
    assert_eq!(registry.release(x.clone(), SessionId::random()).await, Ok(false), "not the owner");
    assert!(registry.owner(x.clone()).await.unwrap().is_some());
    assert_eq!(registry.release(x.clone(), session).await, Ok(true));
    assert_eq!(registry.owner(x.clone()).await, Ok(None));
    assert_eq!(registry.release(x, session).await, Ok(false));
    assert!(registry.list().await.unwrap().is_empty());
}

async fn a_lease_lapses_unless_it_is_renewed(registry: &Registry) {
    let mut changes = registry.changes();
    let session = SessionId::random();
    let first = registry.claim(claim("x", session, "a")).await.unwrap();
    for _ in 0..4 {
        tokio::time::sleep(LEASE / 2).await;
        let renewed = registry.claim(claim("x", session, "a")).await.unwrap();
        assert_eq!(renewed.epoch, first.epoch);
        assert!(renewed.age > Duration::ZERO);
    }
    gone(registry, "x").await;
    assert!(registry.list().await.unwrap().is_empty());
    assert_eq!(next_change(&mut changes).await, ("x".into(), Some("10.0.0.97".into()), first.epoch));
    assert_eq!(next_change(&mut changes).await, ("x".into(), None, first.epoch), "a lapse is told too");
    let again = registry.claim(claim("x", session, "a")).await.unwrap();
    assert!(again.epoch > first.epoch, "epochs rise over a lapse");
    registry.claim(claim("x", session, "a")).await.expect("and it goes on renewing");
}

async fn the_newest_session_wins_and_the_old_one_is_told(registry: &Registry) {
    let (old, new) = (SessionId::random(), SessionId::random());
    let first = registry.claim(claim("x", old, "a")).await.unwrap();
    let second = registry.claim(claim("x", new, "b")).await.unwrap();
    assert!(second.epoch > first.epoch);
    assert_eq!(registry.claim(claim("x", old, "a")).await, Err(Error::Superseded(name("x"))));
    let reply = beat(registry, "a", &[("x", old, Some(first.epoch))]).await;
    assert_eq!(reply.superseded, [PublisherRelease { stream_name: name("x"), session: old }]);
    assert_eq!(registry.release(name("x"), old).await, Ok(false));
    let owner = registry.owner(name("x")).await.unwrap().unwrap();
    assert_eq!((owner.session, owner.epoch, owner.node), (Some(new), second.epoch, Some(node("b"))));
    assert_eq!(registry.stats().takeovers, 1);
}

async fn an_ended_session_never_comes_back(registry: &Registry) {
    let session = SessionId::random();
    let lease = registry.claim(claim("x", session, "a")).await.unwrap();
    registry.release(name("x"), session).await.unwrap();
    assert_eq!(registry.claim(claim("x", session, "a")).await, Err(Error::Superseded(name("x"))));
    let reply = beat(registry, "a", &[("x", session, Some(lease.epoch))]).await;
    assert_eq!((reply.owned.len(), reply.superseded.len()), (0, 1));
    assert_eq!(registry.owner(name("x")).await, Ok(None));
    // A release may overtake the claim that it ends.
    let session = SessionId::random();
    registry.release(name("x"), session).await.unwrap();
    assert_eq!(registry.claim(claim("x", session, "a")).await, Err(Error::Superseded(name("x"))));
}

async fn first_wins_refuses_until_the_name_is_free(registry: &Registry) {
    let (first, second) = (SessionId::random(), SessionId::random());
    registry.claim(claim("x", first, "a")).await.unwrap();
    let refused = registry.claim(claim("x", second, "b")).await;
    assert_eq!(refused, Err(Error::Taken(name("x"), "10.0.0.97".parse().unwrap())));
    assert!(registry.claim(claim("x", first, "a")).await.is_ok(), "the owner renews");
    registry.release(name("x"), first).await.unwrap();
    assert!(registry.claim(claim("x", second, "b")).await.is_ok(), "a refused session may try again");
}

async fn only_the_same_identity_takes_a_name_over(registry: &Registry) {
    let (alice, bob) = (Some(ids::Identity::of("sub", "alice")), Some(ids::Identity::of("sub", "bob")));
    let (first, second) = (SessionId::random(), SessionId::random());
    let as_who = |session, identity| Claim { identity, ..claim("x", session, "a") };
    registry.claim(as_who(first, alice)).await.unwrap();
    for stranger in
        [as_who(SessionId::random(), bob), as_who(SessionId::random(), None), plain("x", "10.0.0.9")]
    {
        assert_eq!(registry.claim(stranger).await, Err(Error::Foreign(name("x"))));
    }
    registry.claim(as_who(first, alice)).await.expect("a renewal");
    let lease = registry.claim(as_who(second, alice)).await.expect("her own half-open session");
    assert_eq!(lease.session, Some(second));
    assert_eq!(registry.claim(as_who(first, alice)).await, Err(Error::Superseded(name("x"))));
    registry.release(name("x"), second).await.unwrap();
    registry.claim(as_who(SessionId::random(), bob)).await.expect("the name is free");

    let nobody = SessionId::random();
    registry.claim(claim("y", nobody, "a")).await.unwrap();
    registry
        .claim(Claim { identity: bob, ..claim("y", SessionId::random(), "a") })
        .await
        .expect("as takeover");
}

async fn a_restored_identity_guards_its_name(registry: &Registry) {
    let (alice, bob) = (Some(ids::Identity::of("sub", "alice")), Some(ids::Identity::of("sub", "bob")));
    let session = SessionId::random();
    let published = |session, epoch, identity| PublishedStream {
        stream_name: name("x"),
        session,
        epoch,
        identity,
        pushing: false,
    };
    let beat = async |at: &str, stream| {
        let heartbeat = Heartbeat { interval_ms: 60_000, streams: vec![stream], ..Heartbeat::default() };
        registry.heartbeat(node(at), heartbeat, source(at)).await.unwrap()
    };
    assert_eq!(beat("a", published(session, Some(5), alice)).await.owned.len(), 1);
    let claimed = registry.claim(Claim { identity: bob, ..claim("x", SessionId::random(), "b") }).await;
    assert_eq!(claimed, Err(Error::Foreign(name("x"))));
    let reply = beat("b", published(SessionId::random(), None, bob)).await;
    assert_eq!((reply.owned.len(), reply.superseded.len()), (0, 1), "nor one that began in an outage");
    let own = registry.claim(Claim { identity: alice, ..claim("x", SessionId::random(), "b") }).await;
    assert!(own.unwrap().epoch > 5);
}

async fn who_was_there_before_gets_the_name_back_from_somebody_else(registry: &Registry) {
    let (alice, bob) = (Some(ids::Identity::of("sub", "alice")), Some(ids::Identity::of("sub", "bob")));
    let (before, moved) = (SessionId::random(), SessionId::random());
    let beat = async |stream: &str, identity| {
        let stream = PublishedStream {
            stream_name: name(stream),
            session: before,
            epoch: Some(5),
            identity,
            pushing: false,
        };
        let heartbeat = Heartbeat { interval_ms: 60_000, streams: vec![stream], ..Heartbeat::default() };
        registry.heartbeat(node("a"), heartbeat, source("a")).await.unwrap()
    };
    registry.claim(Claim { identity: bob, ..claim("x", SessionId::random(), "b") }).await.unwrap();
    assert_eq!(beat("x", alice).await.owned.len(), 1);
    assert_eq!(registry.owner(name("x")).await.unwrap().unwrap().session, Some(before));

    registry.claim(Claim { identity: alice, ..claim("y", moved, "b") }).await.unwrap();
    assert_eq!(
        beat("y", alice).await.superseded.len(),
        1,
        "her encoder went elsewhere while the store was empty"
    );
    assert_eq!(registry.owner(name("y")).await.unwrap().unwrap().session, Some(moved));
}

async fn a_plain_node_is_known_by_its_address(registry: &Registry) {
    let a = plain("x", "10.0.0.1");
    let first = registry.claim(a.clone()).await.unwrap();
    assert_eq!((first.session, first.node.clone()), (None, None));
    assert_eq!(registry.claim(a.clone()).await.unwrap().epoch, first.epoch, "asking again renews");
    let second = registry.claim(plain("x", "10.0.0.2")).await.unwrap();
    assert!(second.epoch > first.epoch);
    assert_eq!(
        registry.claim(a.clone()).await,
        Err(Error::Superseded(name("x"))),
        "the old one is told once"
    );
    let third = registry.claim(a.clone()).await.unwrap();
    assert!(third.epoch > second.epoch, "and after that it is a new publish");
    assert_eq!(registry.claim(plain("x", "10.0.0.2")).await, Err(Error::Superseded(name("x"))));
    // A free name has no past.
    gone(registry, "x").await;
    registry.claim(plain("x", "10.0.0.2")).await.unwrap();
}

async fn a_heartbeat_renews_and_a_silent_node_loses_its_leases(registry: &Registry) {
    let session = SessionId::random();
    let lease = registry.claim(claim("x", session, "a")).await.unwrap();
    for _ in 0..12 {
        let reply = beat(registry, "a", &[("x", session, Some(lease.epoch))]).await;
        assert_eq!(reply.superseded, []);
        assert_eq!(reply.owned.len(), 1);
        assert_eq!(reply.owned[0].epoch, Some(lease.epoch));
        tokio::time::sleep(LEASE / 8).await;
    }
    let nodes = registry.nodes().await.unwrap();
    assert_eq!((nodes.len(), nodes[0].node.clone(), nodes[0].heartbeat.viewers), (1, node("a"), 7));
    assert_eq!(nodes[0].heartbeat.published, 1);
    let listed = registry.list().await.unwrap();
    assert_eq!(
        (listed[0].session, listed[0].epoch, listed[0].node.clone()),
        (Some(session), lease.epoch, Some(node("a")))
    );
    gone(registry, "x").await;
    // Its record expires by the store's own clock.
    let silent = async {
        while !registry.nodes().await.unwrap().is_empty() {
            tokio::time::sleep(LEASE / 8).await;
        }
    };
    tokio::time::timeout(LEASE, silent).await.expect("the node is listed for ever");
}

async fn a_short_heartbeat_lease_replaces_that_of_a_lookup(registry: &Registry) {
    let session = SessionId::random();
    beat(registry, "a", &[]).await;
    let lease = registry.claim(claim("x", session, "a")).await.unwrap();
    assert!(lease.remaining <= BEAT * 3 && lease.remaining > BEAT, "{lease:?}");
}

async fn the_higher_epoch_wins_whichever_is_restored_first(registry: &Registry) {
    let (low, high) = (SessionId::random(), SessionId::random());
    assert_eq!(beat(registry, "a", &[("x", low, Some(7))]).await.owned.len(), 1);
    assert_eq!(beat(registry, "b", &[("x", high, Some(9))]).await.owned.len(), 1);
    assert_eq!(beat(registry, "a", &[("x", low, Some(7))]).await.superseded.len(), 1);
    let (low, high) = (SessionId::random(), SessionId::random());
    assert_eq!(beat(registry, "b", &[("y", high, Some(19))]).await.owned.len(), 1);
    assert_eq!(beat(registry, "a", &[("y", low, Some(17))]).await.superseded.len(), 1);
    for (stream, epoch) in [("x", 9), ("y", 19)] {
        let owner = registry.owner(name(stream)).await.unwrap().unwrap();
        assert_eq!((owner.epoch, owner.node), (epoch, Some(node("b"))));
    }
    let next = registry.claim(claim("x", SessionId::random(), "a")).await.unwrap();
    assert!(next.epoch > 9, "new epochs are above restored ones");
}

async fn of_equal_epochs_the_greater_session_wins(registry: &Registry) {
    let mut sessions = [SessionId::random(), SessionId::random()];
    sessions.sort();
    let [small, great] = sessions;
    assert_eq!(beat(registry, "a", &[("x", small, Some(7))]).await.owned.len(), 1);
    assert_eq!(beat(registry, "b", &[("x", great, Some(7))]).await.owned.len(), 1);
    assert_eq!(beat(registry, "a", &[("x", small, Some(7))]).await.superseded.len(), 1);
    let mut sessions = [SessionId::random(), SessionId::random()];
    sessions.sort();
    let [small, great] = sessions;
    assert_eq!(beat(registry, "b", &[("y", great, Some(7))]).await.owned.len(), 1);
    assert_eq!(beat(registry, "a", &[("y", small, Some(7))]).await.superseded.len(), 1);
}

async fn a_claim_is_newer_than_what_is_restored(registry: &Registry) {
    let (new, half_open) = (SessionId::random(), SessionId::random());
    registry.claim(claim("x", new, "b")).await.unwrap();
    let reply = beat(registry, "a", &[("x", half_open, Some(500))]).await;
    assert_eq!(reply.superseded.len(), 1);
    let owner = registry.owner(name("x")).await.unwrap().unwrap();
    assert_eq!(owner.session, Some(new));
    assert!(owner.epoch > 500);
    // But a claim that turns out to be the renewal of an older publish gets its own epoch back.
    let session = SessionId::random();
    registry.claim(claim("y", session, "a")).await.unwrap();
    let reply = beat(registry, "a", &[("y", session, Some(700))]).await;
    assert_eq!(reply.owned, reply_streams("y", session, 700));
}

async fn an_absurd_epoch_moves_nothing(registry: &Registry) {
    let (x, y) = (SessionId::random(), SessionId::random());
    for epoch in [u64::MAX, 9_999_999_999_999, RESTORED_EPOCH_MAX + 1] {
        let (stream, session) = (format!("x-{epoch}"), SessionId::random());
        let reply = beat(registry, "a", &[(&stream, session, Some(epoch))]).await;
        assert_eq!(reply.owned[0].epoch, Some(1), "on a free name it is taken as unknown");
        assert_eq!(registry.claim(claim(&stream, SessionId::random(), "b")).await.unwrap().epoch, 2);
    }
    assert_eq!(registry.claim(claim("x", x, "a")).await.unwrap().epoch, 1);
    let reply = beat(registry, "b", &[("x", y, Some(u64::MAX))]).await;
    assert_eq!(reply.superseded.len(), 1, "it beats nobody");
    // The greatest epoch that is believed leaves room for those that follow, in the store and in heartbeats.
    let high = RESTORED_EPOCH_MAX;
    let reply = beat(registry, "a", &[("y", y, Some(high))]).await;
    assert_eq!(reply.owned[0].epoch, Some(high), "it survives its way exactly");
    let (old, new) = (SessionId::random(), SessionId::random());
    let first = registry.claim(claim("y", old, "a")).await.unwrap().epoch;
    let second = registry.claim(claim("y", new, "b")).await.unwrap().epoch;
    assert_eq!((first, second), (high + 1, high + 2));
    assert_eq!(beat(registry, "a", &[("y", old, Some(first))]).await.superseded.len(), 1);
    assert_eq!(beat(registry, "b", &[("y", new, Some(second))]).await.owned, reply_streams("y", new, second));
}

async fn a_session_without_an_epoch_counts_as_new(registry: &Registry) {
    let (old, new) = (SessionId::random(), SessionId::random());
    let first = beat(registry, "a", &[("x", old, None)]).await;
    let second = beat(registry, "b", &[("x", new, None)]).await;
    assert!(second.owned[0].epoch > first.owned[0].epoch);
    for _ in 0..5 {
        assert_eq!(beat(registry, "a", &[("x", old, None)]).await.superseded.len(), 1);
        assert_eq!(beat(registry, "b", &[("x", new, None)]).await.owned.len(), 1);
    }
}

async fn a_fight_for_a_name_is_held(registry: &Registry) {
    let mut owner = SessionId::random();
    registry.claim(claim("x", owner, "a")).await.unwrap();
    for round in 0..TAKEOVERS_FREE {
        owner = SessionId::random();
        let at = if round % 2 == 0 { "b" } else { "a" };
        registry.claim(claim("x", owner, at)).await.expect("the first takeovers go through at once");
    }
    let late = SessionId::random();
    for _ in 0..3 {
        let refused = registry.claim(claim("x", late, "b")).await.unwrap_err();
        assert!(matches!(&refused, Error::HeldDown { left, .. } if *left <= HOLD_MIN), "{refused:?}");
        let text = refused.to_string();
        assert!(
            text.starts_with("stream 'x' went back and forth between publishers; 10.0.0.97 keeps it"),
            "{text}"
        );
    }
    assert_eq!(beat(registry, "b", &[("x", late, None)]).await.superseded.len(), 1, "nor by a heartbeat");
    assert_eq!(registry.stats().held_down, 3);
    assert!(registry.claim(claim("x", owner, "a")).await.is_ok(), "the owner renews");
    registry.release(name("x"), owner).await.unwrap();
    assert!(registry.claim(claim("x", SessionId::random(), "b")).await.is_ok(), "a free name is free");
}

async fn a_draining_owner_is_found_but_not_protected(registry: &Registry) {
    let session = SessionId::random();
    registry.claim(claim("x", session, "a")).await.unwrap();
    let draining = Heartbeat { draining: true, ..heartbeat(&[("x", session, None)]) };
    registry.heartbeat(node("a"), draining, source("a")).await.unwrap();
    assert!(registry.owner(name("x")).await.unwrap().is_some());
    assert!(registry.nodes().await.unwrap()[0].heartbeat.draining);
    let next = registry.claim(claim("x", SessionId::random(), "b")).await.unwrap();
    assert_eq!(next.node, Some(node("b")));
}

async fn removing_a_node_ends_its_leases(registry: &Registry) {
    let (x, y) = (SessionId::random(), SessionId::random());
    beat(registry, "a", &[("x", x, None), ("y", y, None)]).await;
    beat(registry, "b", &[("z", SessionId::random(), None)]).await;
    assert_eq!(registry.sign_off(node("a"), None).await, Ok(true));
    assert_eq!(registry.sign_off(node("a"), None).await, Ok(false));
    let names: Vec<_> = registry.list().await.unwrap().into_iter().map(|lease| lease.name).collect();
    assert_eq!(names, [name("z")]);
    assert_eq!(registry.nodes().await.unwrap().len(), 1);
}

async fn unknown_names_wait_for_the_warm_up(registry: &Registry) {
    let unknown = registry.owner(name("x")).await;
    assert!(
        matches!(unknown, Err(Error::WarmingUp(left)) if left <= LEASE && left > Duration::ZERO),
        "{unknown:?}"
    );
    assert!(matches!(registry.status(), Status::WarmingUp(_)));
    let session = SessionId::random();
    registry.claim(claim("y", session, "a")).await.expect("claims are always taken");
    assert!(registry.owner(name("y")).await.unwrap().is_some(), "known names are answered at once");
    eventually(async || registry.owner(name("x")).await == Ok(None)).await;
    eventually(async || registry.status() == Status::Whole).await;
}

async fn the_number_of_streams_is_bounded(registry: &Registry) {
    let session = SessionId::random();
    registry.claim(claim("x", session, "a")).await.unwrap();
    registry.claim(claim("y", SessionId::random(), "a")).await.unwrap();
    assert_eq!(registry.claim(claim("z", SessionId::random(), "a")).await, Err(Error::Full(2, "streams")));
    let reply = beat(registry, "b", &[("z", SessionId::random(), Some(3))]).await;
    assert_eq!(
        (reply.owned.len(), reply.superseded.len()),
        (0, 0),
        "a stream without room is neither owned nor lost"
    );
    registry.claim(claim("x", SessionId::random(), "b")).await.expect("a name that is held has room");
    gone(registry, "x").await;
    gone(registry, "y").await;
    eventually(async || registry.claim(claim("z", SessionId::random(), "a")).await.is_ok()).await;
}

async fn changes_are_told_in_order(registry: &Registry) {
    let mut changes = registry.changes();
    let (old, new) = (SessionId::random(), SessionId::random());
    let first = registry.claim(claim("x", old, "a")).await.unwrap().epoch;
    registry.claim(claim("x", old, "a")).await.unwrap();
    let second = registry.claim(claim("x", new, "b")).await.unwrap().epoch;
    registry.claim(Claim { origin: "moved:9".parse().unwrap(), ..claim("x", new, "b") }).await.unwrap();
    registry.release(name("x"), new).await.unwrap();
    for (origin, epoch) in
        [(Some("10.0.0.97"), first), (Some("10.0.0.98"), second), (Some("moved:9"), second), (None, second)]
    {
        assert_eq!(next_change(&mut changes).await, ("x".into(), origin.map(str::to_owned), epoch));
    }
}

async fn a_slow_subscriber_is_told_to_resync(registry: &Registry) {
    let mut slow = registry.changes();
    let mut fast = registry.changes();
    let session = SessionId::random();
    for round in 0..=CHANGES_KEPT as u16 {
        let moved = Claim { origin: Origin::from_ip(source("a"), round + 1), ..claim("x", session, "a") };
        registry.claim(moved).await.unwrap();
        next_change(&mut fast).await;
    }
    let notice = slow.next().await;
    assert_eq!(notice, Some(Notice::Resync));
    assert!(matches!(slow.next().await, Some(Notice::Change(_))), "and then hears what follows");
}

/// A process of a node that pushes, and its heartbeats.
struct Pusher<'a> {
    registry: &'a Registry,
    node: &'static str,
    instance: SessionId,
    since: std::cell::RefCell<Option<String>>,
}

impl Pusher<'_> {
    fn new<'a>(registry: &'a Registry, node: &'static str) -> Pusher<'a> {
        Pusher { registry, node, instance: SessionId::random(), since: Default::default() }
    }

    /// Sends the whole list, as often as it is asked for it.
    async fn beat(&self, streams: &[PublishedStream], still_pushing: &[SessionId]) {
        for _ in 0..3 {
            let still = |session: &SessionId| PublisherRelease { stream_name: name("x"), session: *session };
            let heartbeat = Heartbeat {
                instance: Some(self.instance),
                since: self.since.take(),
                streams: streams.to_vec(),
                published: streams.len() as u64,
                still_pushing: still_pushing.iter().map(still).collect(),
                complete: true,
                ..heartbeat(&[])
            };
            let reply = self.registry.heartbeat(node(self.node), heartbeat, source(self.node)).await.unwrap();
            self.since.replace(Some(reply.since));
            if !reply.want_all {
                return;
            }
        }
        panic!("the list is never complete");
    }

    async fn asks(&self, session: SessionId) -> Result<(), Error> {
        let (stream_name, node, instance) = (name("x"), node(self.node), self.instance);
        self.registry.claim_push(PushClaim { stream_name, session, node, instance, turn: 1 }).await
    }

    async fn releases(&self, session: SessionId) {
        let release = PushRelease { stream_name: name("x"), session, turn: 1 };
        self.registry.release_push(release).await.unwrap();
    }
}

async fn a_stream_is_pushed_by_one_session_at_a_time(registry: &Registry) {
    let (old, new) = (SessionId::random(), SessionId::random());
    let (a, b) = (Pusher::new(registry, "a"), Pusher::new(registry, "b"));
    registry.claim(claim("x", old, "a")).await.unwrap();
    assert_eq!(a.asks(old).await, Err(Error::NotHeard(node("a"))));
    a.beat(&[], &[]).await;
    b.beat(&[], &[]).await;
    assert_eq!(a.asks(old).await, Ok(()));
    registry.claim(claim("x", new, "b")).await.unwrap();
    assert_eq!(b.asks(new).await, Err(Error::PushHeld(name("x"), node("a"))));
    assert_eq!(a.asks(old).await, Err(Error::Superseded(name("x"))));
    // Its publisher has left; what it sent is on its way still.
    registry.release(name("x"), old).await.unwrap();
    assert_eq!(b.asks(new).await, Err(Error::PushHeld(name("x"), node("a"))));
    a.releases(old).await;
    assert_eq!(b.asks(new).await, Ok(()));
    // The name may be nobody's for a while.
    registry.release(name("x"), new).await.unwrap();
    let third = SessionId::random();
    registry.claim(claim("x", third, "a")).await.unwrap();
    assert_eq!(a.asks(third).await, Err(Error::PushHeld(name("x"), node("b"))));
    b.releases(new).await;
    assert_eq!(a.asks(third).await, Ok(()));
}

async fn what_a_silent_node_pushed_holds_nobody_up(registry: &Registry) {
    let (old, new) = (SessionId::random(), SessionId::random());
    let (a, b) = (Pusher::new(registry, "a"), Pusher::new(registry, "b"));
    a.beat(&[], &[]).await;
    registry.claim(claim("x", old, "a")).await.unwrap();
    a.asks(old).await.unwrap();
    let free = async || {
        b.beat(&[], &[]).await;
        b.asks(new).await == Ok(())
    };
    registry.claim(claim("x", new, "b")).await.unwrap();
    assert!(!free().await);
    eventually(free).await;
    // One that signs off as well, at once.
    registry.claim(claim("x", old, "a")).await.unwrap_err();
    let third = SessionId::random();
    a.beat(&[], &[]).await;
    registry.claim(claim("x", third, "a")).await.unwrap();
    assert_eq!(a.asks(third).await, Err(Error::PushHeld(name("x"), node("b"))));
    registry.sign_off(node("b"), Some(b.instance)).await.unwrap();
    assert_eq!(a.asks(third).await, Ok(()));
}

async fn who_pushes_is_learned_again_before_anybody_is_let(registry: &Registry) {
    // What nodes remember of the time before: the one lost its name to the other while it was pushing.
    let (old, new) = (SessionId::random(), SessionId::random());
    let (a, b) = (Pusher::new(registry, "a"), Pusher::new(registry, "b"));
    let published = |session, epoch, pushing| PublishedStream {
        stream_name: name("x"),
        session,
        epoch: Some(epoch),
        identity: None,
        pushing,
    };
    b.beat(&[published(new, 8, false)], &[]).await;
    assert!(matches!(b.asks(new).await, Err(Error::WarmingUp(_))));
    a.beat(&[published(old, 7, true)], &[]).await;
    let whole = async || {
        a.beat(&[], &[old]).await;
        b.beat(&[published(new, 8, false)], &[]).await;
        registry.status() == Status::Whole
    };
    eventually(whole).await;
    for _ in 0..2 * LEASE.as_millis() / BEAT.as_millis() {
        a.beat(&[], &[old]).await;
        b.beat(&[published(new, 8, false)], &[]).await;
        assert_eq!(b.asks(new).await, Err(Error::PushHeld(name("x"), node("a"))));
        tokio::time::sleep(BEAT).await;
    }
    a.releases(old).await;
    assert_eq!(b.asks(new).await, Ok(()));
}

/// The heartbeat interval of the tests.
const BEAT: Duration = Duration::from_millis(100);

fn name(text: &str) -> StreamName {
    text.parse().unwrap()
}

fn node(text: &str) -> NodeId {
    text.parse().unwrap()
}

/// The address of a node named by one letter.
fn source(node: &str) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, node.as_bytes()[0]).into()
}

fn claim(stream: &str, session: SessionId, at: &str) -> Claim {
    Claim {
        name: name(stream),
        session: Some(session),
        node: Some(node(at)),
        origin: Origin::from_ip(source(at), 1935),
        source: source(at),
        identity: None,
    }
}

fn plain(stream: &str, ip: &str) -> Claim {
    let source: IpAddr = ip.parse().unwrap();
    Claim {
        name: name(stream),
        session: None,
        node: None,
        origin: Origin::from_ip(source, 1935),
        source,
        identity: None,
    }
}

fn heartbeat(streams: &[(&str, SessionId, Option<u64>)]) -> Heartbeat {
    let streams = streams.iter().map(|(stream, session, epoch)| PublishedStream {
        stream_name: name(stream),
        session: *session,
        epoch: *epoch,
        identity: None,
        pushing: false,
    });
    Heartbeat { interval_ms: millis(BEAT), streams: streams.collect(), viewers: 7, ..Heartbeat::default() }
}

async fn beat(registry: &Registry, at: &str, streams: &[(&str, SessionId, Option<u64>)]) -> HeartbeatReply {
    registry.heartbeat(node(at), heartbeat(streams), source(at)).await.unwrap()
}

fn reply_streams(stream: &str, session: SessionId, epoch: u64) -> Vec<PublishedStream> {
    let epoch = Some(epoch);
    vec![PublishedStream { stream_name: name(stream), session, epoch, identity: None, pushing: false }]
}

async fn next_change(changes: &mut Changes) -> (String, Option<String>, u64) {
    loop {
        match tokio::time::timeout(Duration::from_secs(5), changes.next()).await {
            Ok(Some(Notice::Change(change))) => {
                return (change.stream_name.to_string(), change.origin.map(|o| o.to_string()), change.epoch);
            }
            Ok(Some(Notice::Resync)) => {}
            end => panic!("no change within 5 s: {end:?}"),
        }
    }
}

async fn gone(registry: &Registry, stream: &str) {
    eventually(async || registry.owner(name(stream)).await == Ok(None)).await;
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("within 5 s");
}
