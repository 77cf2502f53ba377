//! What heartbeats cost a reactor: CPU time for the same number of heartbeats, with 1,000 streams and with 100,000.
//!
//! `cargo bench --bench registry`. A hundred nodes send a heartbeat each 5 s, each of which names 10 streams in turn
//! where the node has 10, and 64 where it has more, as nodes do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use lb::api::{Heartbeat, PublishedStream};
use lb::ids::{NodeId, SessionId};
use lb::registry::{Memory, Registry, Settings};
use std::sync::Arc;
use std::time::Duration;

const NODES: usize = 100;

/// Rounds of heartbeats that are measured: each stands for 5 s.
const ROUNDS: usize = 20;

struct Node {
    id: NodeId,
    instance: SessionId,
    since: Option<String>,
    streams: Vec<PublishedStream>,
    audited: usize,
}

impl Node {
    async fn beat(&mut self, registry: &Registry, streams: Vec<PublishedStream>, complete: bool) {
        let heartbeat = Heartbeat {
            interval_ms: 5000,
            instance: Some(self.instance),
            since: self.since.take(),
            published: self.streams.len() as u64,
            streams,
            complete,
            ..Heartbeat::default()
        };
        let reply = registry.heartbeat(self.id.clone(), heartbeat, [10, 0, 0, 1].into()).await.unwrap();
        assert!(reply.superseded.is_empty());
        self.since = Some(reply.since);
    }

    fn audit(&mut self, count: usize) -> Vec<PublishedStream> {
        let next: Vec<_> = self.streams.iter().cycle().skip(self.audited).take(count).cloned().collect();
        self.audited = (self.audited + count) % self.streams.len();
        next
    }
}

fn node(id: usize, streams: usize) -> Node {
    let stream = |index| PublishedStream {
        stream_name: format!("live/{id}/{index}").parse().unwrap(),
        session: SessionId::random(),
        epoch: Some(1),
        identity: None,
        pushing: false,
    };
    let streams = (0..streams).map(stream).collect();
    Node {
        id: format!("n{id}").parse().unwrap(),
        instance: SessionId::random(),
        since: None,
        streams,
        audited: 0,
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

async fn measure(streams: usize, audited: usize) -> Duration {
    let registry = Registry::start(Arc::new(Memory::new()), Settings::default());
    let mut nodes: Vec<_> = (0..NODES).map(|id| node(id, streams / NODES)).collect();
    for node in &mut nodes {
        node.beat(&registry, Vec::new(), false).await;
        let all = node.streams.clone();
        let pieces: Vec<_> = all.chunks(500).collect();
        for (index, piece) in pieces.iter().enumerate() {
            node.beat(&registry, piece.to_vec(), index + 1 == pieces.len()).await;
        }
    }
    let begin = cpu();
    for _ in 0..ROUNDS {
        for node in &mut nodes {
            let audit = node.audit(audited);
            node.beat(&registry, audit, false).await;
        }
    }
    let spent = cpu() - begin;
    assert_eq!(registry.stats().streams, streams as u64);
    spent
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let beats = (NODES * ROUNDS) as u32;
    for (streams, audited) in [(1_000, 10), (100_000, 10), (100_000, 64)] {
        let spent = runtime.block_on(measure(streams, audited));
        println!(
            "{streams} streams, {NODES} nodes, {audited} streams named: {:?} CPU a heartbeat",
            spent / beats
        );
    }
}
