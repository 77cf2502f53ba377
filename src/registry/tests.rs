//! What the registry asks of its store, and what it leaves in it.

use super::record::ENDED_MEMORY;
use super::store::{Key, Kind, Memory as Age, Read, Store, Unreachable, Write, Written};
use super::*;
use crate::api::{Heartbeat, HeartbeatReply, PublishedStream, PublisherRelease};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A store that counts calls, and the keys that they name.
#[derive(Debug, Default)]
struct Counting {
    memory: Memory,
    calls: AtomicUsize,
    keys: AtomicUsize,
}

impl Counting {
    fn count(&self, keys: usize) {
        self.calls.fetch_add(1, Relaxed);
        self.keys.fetch_add(keys, Relaxed);
    }

    /// Calls and keys since the last time.
    fn take(&self) -> (usize, usize) {
        (self.calls.swap(0, Relaxed), self.keys.swap(0, Relaxed))
    }
}

impl Store for Counting {
    fn read(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Read>, Unreachable>> {
        self.count(keys.len());
        self.memory.read(keys)
    }

    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Vec<Written>, Unreachable>> {
        self.count(writes.len());
        self.memory.write(writes)
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<Vec<(Key, Read)>, Unreachable>> {
        self.count(1_000_000);
        self.memory.list(kind)
    }

    fn announcements(&self) -> broadcast::Receiver<Bytes> {
        self.memory.announcements()
    }

    fn memory(&self) -> Option<Age> {
        self.memory.memory()
    }
}

const SETTINGS: Settings = Settings {
    policy: Policy::Takeover,
    lease: LOOKUP_LEASE,
    warm_up: Duration::ZERO,
    max_streams: MAX_STREAMS,
};

/// A registry that nobody sweeps, and its store.
fn counted() -> (Arc<Counting>, Registry) {
    let store = Arc::new(Counting::default());
    (store.clone(), Registry::new(store, SETTINGS))
}

/// A node with its streams, each sent and owned.
struct Node {
    id: NodeId,
    instance: SessionId,
    since: Option<String>,
    streams: Vec<PublishedStream>,
}

impl Node {
    fn new(id: usize, streams: usize) -> Node {
        let stream = |index| PublishedStream {
            stream_name: format!("{id}/{index}").parse().unwrap(),
            session: SessionId::random(),
            epoch: Some(1),
            identity: None,
            pushing: false,
        };
        let id: NodeId = format!("n{id}").parse().unwrap();
        let streams = (0..streams).map(stream).collect();
        Node { id, instance: SessionId::random(), since: None, streams }
    }

    async fn beat(
        &mut self,
        registry: &Registry,
        streams: &[PublishedStream],
        complete: bool,
    ) -> HeartbeatReply {
        let heartbeat = Heartbeat {
            interval_ms: 5000,
            instance: Some(self.instance),
            since: self.since.take(),
            published: self.streams.len() as u64,
            streams: streams.to_vec(),
            complete,
            ..Heartbeat::default()
        };
        let reply = registry.heartbeat(self.id.clone(), heartbeat, [10, 0, 0, 1].into()).await.unwrap();
        self.since = Some(reply.since.clone());
        reply
    }

    async fn send_all(&mut self, registry: &Registry) {
        assert!(self.beat(registry, &[], false).await.want_all);
        let streams = self.streams.clone();
        let mut pieces = streams.chunks(500).peekable();
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            let reply = self.beat(registry, piece, last).await;
            assert_eq!((reply.owned.len(), reply.want_all), (piece.len(), false));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_costs_the_same_however_many_streams_there_are() {
    let mut costs = Vec::new();
    for streams in [100, 1000, 5000] {
        let (store, registry) = counted();
        let mut node = Node::new(1, streams);
        node.send_all(&registry).await;
        store.take();
        let audited = node.streams[..64].to_vec();
        assert_eq!(node.beat(&registry, &audited, false).await.owned.len(), 64);
        costs.push(store.take());
        node.beat(&registry, &[], false).await;
        costs.push(store.take());
    }
    // The node's record is read and written, and the streams that are named are read.
    let cost = [(3, 66), (2, 2)];
    assert_eq!(costs, [cost, cost, cost].concat());
}

#[tokio::test(start_paused = true)]
async fn a_claim_and_a_lookup_ask_the_store_three_times_at_most() {
    let (store, registry) = counted();
    let mut node = Node::new(1, 2);
    node.send_all(&registry).await;
    let (x, y) = (node.streams[0].clone(), node.streams[1].clone());
    let stranger = Registry::new(store.clone(), SETTINGS);
    store.take();
    for (asked, most) in [(&registry, 1), (&stranger, 2), (&stranger, 1)] {
        assert!(asked.owner(x.stream_name.clone()).await.unwrap().is_some());
        assert!(store.take().0 <= most, "a lookup, and one of a stream that was never seen");
    }
    assert_eq!(registry.owner("none".parse().unwrap()).await, Ok(None));
    assert_eq!(store.take().0, 1);
    let claim = |stream: &PublishedStream, session, at: &str| Claim {
        name: stream.stream_name.clone(),
        session: Some(session),
        node: Some(at.parse().unwrap()),
        origin: "10.0.0.2".parse().unwrap(),
        source: [10, 0, 0, 2].into(),
        identity: None,
    };
    let stranger = Registry::new(store.clone(), SETTINGS);
    stranger.claim(claim(&y, SessionId::random(), "n2")).await.unwrap();
    assert_eq!(store.take().0, 3, "a takeover from a node that was never seen");
    registry.claim(claim(&x, SessionId::random(), "n2")).await.unwrap();
    assert_eq!(store.take().0, 2, "a takeover");
    registry.release(x.stream_name.clone(), x.session).await.unwrap();
    assert!(store.take().0 <= 2);
}

#[tokio::test(start_paused = true)]
async fn what_ended_leaves_the_store_after_minutes() {
    let (store, registry) = counted();
    for index in 0..100 {
        let (name, session) = (format!("x{index}").parse::<StreamName>().unwrap(), SessionId::random());
        let origin: Origin = "10.0.0.2".parse().unwrap();
        let claim = Claim {
            name: name.clone(),
            session: Some(session),
            node: None,
            origin,
            source: [10, 0, 0, 2].into(),
            identity: None,
        };
        registry.claim(claim).await.unwrap();
        registry.release(name, session).await.unwrap();
        // Nor does a session that never owned anything stay.
        registry.release(format!("y{index}").parse().unwrap(), SessionId::random()).await.unwrap();
    }
    assert_eq!(store.list(Kind::Stream).await.unwrap().len(), 200);
    tokio::time::sleep(ENDED_MEMORY + Duration::from_secs(1)).await;
    assert_eq!(store.list(Kind::Stream).await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_what_ended_is_bounded() {
    let store = Arc::new(Memory::new());
    let settings = Settings { warm_up: Duration::ZERO, max_streams: 10, ..Settings::default() };
    let registry = Registry::start(store.clone(), settings);
    for index in 0..100 {
        registry.release(format!("y{index}").parse().unwrap(), SessionId::random()).await.unwrap();
    }
    assert_eq!(store.list(Kind::Stream).await.unwrap().len(), 30);
}

#[tokio::test(start_paused = true)]
async fn first_wins_holds_in_the_seconds_after_a_restart() {
    let warm_up = Duration::from_secs(6);
    let settings = Settings { policy: Policy::FirstWins, warm_up, ..Settings::default() };
    let registry = Registry::start(Arc::new(Memory::new()), settings);
    let mut owner = Node::new(1, 1);
    let mut newcomer = Node::new(2, 1);
    newcomer.streams[0].stream_name = owner.streams[0].stream_name.clone();
    newcomer.streams[0].epoch = None;
    let stream = newcomer.streams[0].clone();
    let claim = |session| Claim {
        name: stream.stream_name.clone(),
        session: Some(session),
        node: Some(newcomer.id.clone()),
        origin: "10.0.0.2".parse().unwrap(),
        source: [10, 0, 0, 2].into(),
        identity: None,
    };
    registry.claim(claim(stream.session)).await.unwrap();
    let second = registry.claim(claim(SessionId::random())).await;
    assert!(matches!(second, Err(Error::Taken(..))), "of those who claim, too, the first wins: {second:?}");
    // But one that was there before the restart has the older right, whatever the epoch that it was given then.
    owner.send_all(&registry).await;
    let mut newcomer = Node { streams: vec![stream.clone()], ..Node::new(2, 0) };
    newcomer.beat(&registry, std::slice::from_ref(&stream), false).await;
    let reply = newcomer.beat(&registry, std::slice::from_ref(&stream), true).await;
    assert_eq!(
        reply.superseded,
        [PublisherRelease { stream_name: stream.stream_name.clone(), session: stream.session }]
    );
    let found = registry.owner(stream.stream_name.clone()).await.unwrap().unwrap();
    assert_eq!(found.session, Some(owner.streams[0].session));
    // Where nobody owns the name, it does after the warm-up.
    let alone = PublishedStream {
        stream_name: "alone".parse().unwrap(),
        session: SessionId::random(),
        epoch: None,
        identity: None,
        pushing: false,
    };
    assert_eq!(newcomer.beat(&registry, std::slice::from_ref(&alone), false).await.owned.len(), 0);
    tokio::time::sleep(warm_up).await;
    assert_eq!(newcomer.beat(&registry, &[alone], false).await.owned.len(), 1);
    // A plain node is let in, but a session that is restored wins over it.
    let registry = Registry::start(Arc::new(Memory::new()), settings);
    let plain = Claim { session: None, node: None, ..claim(stream.session) };
    registry.claim(plain).await.unwrap();
    let mut owner = Node::new(1, 1);
    owner.streams[0].stream_name = stream.stream_name.clone();
    owner.send_all(&registry).await;
    let found = registry.owner(stream.stream_name.clone()).await.unwrap().unwrap();
    assert_eq!(found.session, Some(owner.streams[0].session));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_not_complete_holds_denials_off_and_not_for_ever() {
    let settings = Settings { warm_up: Duration::from_secs(1), ..Settings::default() };
    let registry = Registry::start(Arc::new(Memory::new()), settings);
    let unknown = || registry.owner("unknown".parse().unwrap());
    let mut node = Node::new(1, 3);
    node.beat(&registry, &[], false).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(matches!(unknown().await, Err(Error::WarmingUp(_))), "the node has more to tell");
    let streams = node.streams.clone();
    node.beat(&registry, &streams, true).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(unknown().await, Ok(None));
    let begin = tokio::time::Instant::now();
    let mut hostile = Node::new(2, 3);
    while !matches!(unknown().await, Ok(None)) || begin.elapsed() < Duration::from_secs(2) {
        hostile.since = None;
        hostile.beat(&registry, &[], false).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(begin.elapsed() <= LISTING_MAX, "a node that never ends its list holds nobody up for longer");
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_left_alone() {
    let (store, registry) = counted();
    let key = Key::Stream("x".parse().unwrap());
    let garbage = Bytes::from_static(br#"{"version":2,"epoch":1,"owner":null}"#);
    let write = Write {
        key: key.clone(),
        expected: None,
        value: Some(garbage.clone()),
        expiry: None,
        announce: None,
    };
    store.write(vec![write]).await.unwrap();
    assert_eq!(registry.owner("x".parse().unwrap()).await, Err(Error::Unavailable));
    let mut node = Node::new(1, 1);
    node.streams[0].stream_name = "x".parse().unwrap();
    node.beat(&registry, &[], false).await;
    let streams = node.streams.clone();
    let reply = node.beat(&registry, &streams, true).await;
    assert_eq!((reply.owned.len(), reply.superseded.len()), (0, 0), "neither owned nor lost");
    assert_eq!(store.read(vec![key]).await.unwrap()[0].value, Some(garbage));
    assert_eq!(registry.release("x".parse().unwrap(), SessionId::random()).await, Err(Error::Unavailable));
}
