//! What a message costs between a publisher's socket and its viewers': ring, pump, feed.
#![allow(missing_docs, reason = "the macro makes functions that nobody calls")]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a benchmark stops at the first surprise")]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lb::ids::StreamName;
use lb::media::Packet;
use lb::relay::ring::Ring;
use lb::relay::{Admission, Batching, Feeds, Format, Hub, Settings, Sink};
use lb::telemetry::Metrics;
use std::hint::black_box;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

const NAME: &str = "s";

/// A second of 2.5 Mb/s: 30 video and 43 audio messages, as they interleave, from a keyframe on.
fn second() -> Vec<Packet> {
    let video = |key: u8| Bytes::from([&[key, 1, 0, 0, 0][..], &[7; 9_600]].concat());
    let (key, frame) = (video(0x17), video(0x27));
    let audio = Bytes::from([&[0xaf, 1][..], &[7; 370]].concat());
    let packet = |index: u32| match index {
        0 => Packet::video(0, key.clone()),
        index if index % 5 < 2 => Packet::video(index * 14, frame.clone()),
        index => Packet::audio(index * 14, audio.clone()),
    };
    (0..73).map(packet).collect()
}

/// Takes everything, and says so when enough came.
#[derive(Debug, Default)]
struct Counter {
    bytes: AtomicUsize,
    grew: Notify,
}

impl Counter {
    fn add(&self, n: usize) -> io::Result<usize> {
        self.bytes.fetch_add(n, Ordering::Relaxed);
        self.grew.notify_one();
        Ok(n)
    }

    async fn reaches(&self, bytes: usize) {
        while self.bytes.load(Ordering::Relaxed) < bytes {
            self.grew.notified().await;
        }
    }
}

impl Sink for Counter {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.add(bytes.len())
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.add(pieces.iter().map(|piece| piece.len()).sum())
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn at_once() -> Settings {
    Settings { batching: Batching::Window(Duration::ZERO), ..Settings::default() }
}

fn ring(criterion: &mut Criterion) {
    let packets = second();
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(packets.len() as u64));
    group.bench_function("push and drain a second", |bencher| {
        let mut ring = Ring::new(&Settings::default());
        let (mut time, mut timestamp) = (Instant::now(), 0);
        bencher.iter(|| {
            for packet in &packets {
                ring.push(packet, timestamp + packet.timestamp, time);
                if ring.is_due(time, None) {
                    let from = ring.end();
                    ring.seal();
                    ring.since(from, Format::Rtmp).for_each(|block| drop(black_box(block.wire.clone())));
                }
                time += Duration::from_micros(13_700);
            }
            timestamp += 1_000;
        });
    });
    group.finish();
}

/// The pump without a kernel: what a viewer at the live edge costs a flush beside its `send`.
fn pump(criterion: &mut Criterion) {
    const VIEWERS: usize = 1_000;
    let runtime = Runtime::new().expect("a runtime");
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let hub = Hub::new(Admission::Live, Arc::new(at_once()), metrics, TaskTracker::new());
    let name = StreamName::parse(NAME).expect("a name");
    let source = hub.attach(&name, None);
    let packets = second();
    source.push(&packets[..1]);
    let sinks: Vec<Arc<Counter>> = (0..VIEWERS).map(|_| Arc::default()).collect();
    for sink in &sinks {
        let interest = hub.join(&name).expect("the stream is there");
        let mut viewer = interest.watch(sink.clone(), Bytes::new(), Format::Rtmp);
        runtime.spawn(async move { viewer.turn().await });
    }
    let mut group = criterion.benchmark_group("pump");
    group.throughput(Throughput::Elements(VIEWERS as u64));
    group.bench_function("a frame to 1,000 viewers at the live edge", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let before: Vec<usize> =
                    sinks.iter().map(|sink| sink.bytes.load(Ordering::Relaxed)).collect();
                source.push(&packets[1..2]);
                for (sink, before) in sinks.iter().zip(before) {
                    sink.reaches(before + packets[1].body.len()).await;
                }
            });
        });
    });
    group.finish();
}

/// From a publisher's feed into a ring and out to one viewer.
fn feed(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let hub = Hub::new(Admission::Live, Arc::new(at_once()), metrics.clone(), TaskTracker::new());
    let name = StreamName::parse(NAME).expect("a name");
    let mut feed = Feeds::new(metrics).begin(None);
    let _attached = feed.reference().attach(Box::new(hub.attach(&name, None)));
    let packets = second();
    feed.push(&packets[..1]);
    let sink: Arc<Counter> = Arc::default();
    let mut viewer =
        hub.join(&name).expect("the stream is there").watch(sink.clone(), Bytes::new(), Format::Rtmp);
    runtime.spawn(async move { viewer.turn().await });
    let bytes: usize = packets.iter().map(|packet| packet.body.len()).sum();
    let mut group = criterion.benchmark_group("feed");
    group.throughput(Throughput::Elements(packets.len() as u64));
    for batch in [1, 8, 73] {
        let mut round = 0;
        group.bench_function(format!("a second to one viewer, {batch} messages a batch"), |bencher| {
            bencher.iter(|| {
                runtime.block_on(async {
                    let before = sink.bytes.load(Ordering::Relaxed);
                    round += 1;
                    for packets in packets.chunks(batch) {
                        let later = |packet: &Packet| {
                            let timestamp = packet.timestamp + round * 1_000;
                            Packet { timestamp, ..packet.clone() }
                        };
                        let packets: Vec<Packet> = packets.iter().map(later).collect();
                        feed.push(&packets);
                    }
                    sink.reaches(before + bytes).await;
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, ring, pump, feed);
criterion_main!(benches);
