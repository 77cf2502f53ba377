//! How the streams of this node are doing: for reactors, and as metrics.

use crate::api::report::{HttpPlay, REPORT_MAX, Report, StreamReport};
use crate::client::REPORTS;
use crate::ids::StreamName;
use crate::net::routes::Routes;
use crate::published::Published;
use crate::relay::Doing;
use crate::telemetry::Metrics;
use prometheus::core::{AtomicU64, GenericCounterVec};
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A stream of this node, its viewers, and whether those are nodes.
struct Stream {
    name: StreamName,
    published: bool,
    viewers: u64,
    doing: Doing,
}

fn streams(routes: &Routes) -> Vec<Stream> {
    let mut all = Vec::new();
    for (_, route) in routes.watch_points() {
        for (stream, viewers) in route.hub.streams() {
            let (name, doing) = (stream.name().clone(), stream.doing());
            all.push(Stream { name, published: route.pulls, viewers: viewers as u64, doing });
        }
    }
    all
}

/// Makes reports for reactors.
pub(super) struct Reports {
    pub routes: Arc<Routes>,
    pub metrics: Arc<Metrics>,
    /// Where viewers play over HTTP; the app is filled in.
    pub http: Option<HttpPlay>,
    pub every: Duration,
    /// What had come of each stream when the last report was made.
    pub before: HashMap<(StreamName, bool), (Instant, u64, u64)>,
    /// When that was, and the bytes that this node had received and sent.
    pub traffic: Option<(Instant, [u64; 2])>,
}

impl Reports {
    /// What is to be told now: at least one report, which says that the node is there.
    pub fn next(&mut self) -> Vec<Report> {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.before);
        let all: Vec<StreamReport> = streams(&self.routes)
            .into_iter()
            .take(REPORTS * REPORT_MAX)
            .map(|stream| self.report(stream, &mut before, now))
            .collect();
        let [received_bits_per_second, sent_bits_per_second] = self.bits_per_second(now);
        let http = self.http.clone().map(|http| HttpPlay { app: self.app(), ..http });
        let report = |streams: &[StreamReport]| Report {
            interval_ms: u64::try_from(self.every.as_millis()).unwrap_or(u64::MAX),
            received_bits_per_second,
            sent_bits_per_second,
            http: http.clone(),
            streams: streams.to_vec(),
            events: self.metrics.journal.take(REPORT_MAX),
        };
        let mut reports: Vec<Report> = all.chunks(REPORT_MAX).map(report).collect();
        if reports.is_empty() {
            reports.push(report(&[]));
        }
        let lost = self.metrics.journal.lost();
        if lost > 0 {
            tracing::warn!(
                lost,
                "more happened to streams than is kept for reports: their timelines have gaps"
            );
        }
        reports
    }

    /// What came in and went out since the last report.
    fn bits_per_second(&mut self, now: Instant) -> [u64; 2] {
        let bytes = [self.metrics.received_bytes_total.get(), self.metrics.sent_bytes_total.get()];
        let before = self.traffic.replace((now, bytes));
        let rates = before.map(|(at, before)| {
            let seconds = now.saturating_duration_since(at).as_secs_f64().max(0.001);
            std::array::from_fn(|way| {
                let passed = bytes.get(way).copied().unwrap_or(0) - before.get(way).copied().unwrap_or(0);
                (passed as f64 * 8.0 / seconds) as u64
            })
        });
        rates.unwrap_or_default()
    }

    fn report(
        &mut self,
        Stream { name, published, viewers, doing }: Stream,
        before: &mut HashMap<(StreamName, bool), (Instant, u64, u64)>,
        now: Instant,
    ) -> StreamReport {
        let Doing { figures, session, live, skips } = doing;
        let key = (name.clone(), published);
        let rate = before.remove(&key).map(|(at, bytes, frames)| {
            let seconds = now.saturating_duration_since(at).as_secs_f64().max(0.001);
            let bits = figures.bytes.saturating_sub(bytes) as f64 * 8.0 / seconds;
            let frames = figures.frames.saturating_sub(frames) as f64 / seconds;
            // One digit behind the point: what flickers beyond it is noise.
            (bits as u64, (frames * 10.0).round() as f32 / 10.0)
        });
        let (bits_per_second, frames_per_second) = rate.unwrap_or_default();
        self.before.insert(key, (now, figures.bytes, figures.frames));
        StreamReport {
            stream_name: name,
            published,
            session,
            live,
            viewers,
            bits_per_second,
            frames_per_second,
            keyframe_ms: figures
                .keyframe_interval
                .map(|interval| u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)),
            video: figures.video.map(|codec| codec.to_string()),
            audio: figures.audio.map(|codec| codec.to_string()),
            size: figures.size,
            skips,
        }
    }

    /// The app of viewers: of several the first by name.
    fn app(&self) -> String {
        let points = self.routes.watch_points();
        points.into_iter().filter(|(_, route)| !route.pulls).map(|(app, _)| app).min().unwrap_or_default()
    }
}

/// The metrics of each stream, filled when they are asked for.
pub(super) struct StreamMetrics {
    routes: Arc<Routes>,
    registered: Arc<Published>,
    /// The most streams that are shown.
    most: usize,
    received: GenericCounterVec<AtomicU64>,
    frames: GenericCounterVec<AtomicU64>,
    skips: GenericCounterVec<AtomicU64>,
    viewers: IntGaugeVec,
    keyframe_interval: GaugeVec,
    epoch: IntGaugeVec,
    hidden: prometheus::IntGauge,
    filling: Mutex<()>,
}

impl StreamMetrics {
    pub fn register(
        routes: Arc<Routes>,
        registered: Arc<Published>,
        most: usize,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        const LABELS: [&str; 2] = ["stream", "side"];
        let counter = |name: &str, help: &str| {
            let counter = GenericCounterVec::<AtomicU64>::new(Opts::new(name, help), &LABELS)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let made = StreamMetrics {
            routes,
            registered,
            most,
            received: counter("lb_stream_in_bytes_total", "Bytes of media that came in, by stream")?,
            frames: counter("lb_stream_frames_total", "Video frames that came in, by stream")?,
            skips: counter(
                "lb_stream_skips_total",
                "Times a viewer fell behind and jumped to a newer keyframe, by stream",
            )?,
            viewers: IntGaugeVec::new(
                Opts::new(
                    "lb_stream_viewers",
                    "Viewers of a stream (side 'play'), or nodes that pull it ('publish')",
                ),
                &LABELS,
            )?,
            keyframe_interval: GaugeVec::new(
                Opts::new(
                    "lb_stream_keyframe_interval_seconds",
                    "Time between the last two keyframes, by stream",
                ),
                &LABELS,
            )?,
            epoch: IntGaugeVec::new(
                Opts::new("lb_stream_epoch", "Epoch that a reactor gave the publish of a stream"),
                &LABELS,
            )?,
            hidden: prometheus::IntGauge::new(
                "lb_streams_without_metrics",
                "Streams beyond --stream-metrics, which have no metrics of their own",
            )?,
            filling: Mutex::new(()),
        };
        registry.register(Box::new(made.viewers.clone()))?;
        registry.register(Box::new(made.keyframe_interval.clone()))?;
        registry.register(Box::new(made.epoch.clone()))?;
        registry.register(Box::new(made.hidden.clone()))?;
        Ok(made)
    }

    /// Writes all metrics with those of streams filled in by `write`.
    pub fn filled(&self, write: impl FnOnce() -> String) -> String {
        // Two who ask at a time would see each other's half.
        let _one_at_a_time = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        self.received.reset();
        self.frames.reset();
        self.skips.reset();
        self.viewers.reset();
        self.keyframe_interval.reset();
        self.epoch.reset();
        let epochs: HashMap<StreamName, u64> = self
            .registered
            .streams()
            .into_iter()
            .filter_map(|stream| Some((stream.stream_name, stream.epoch?)))
            .collect();
        let mut all = streams(&self.routes);
        // Those with the most viewers first, so that what is left out is what matters least.
        all.sort_by(|a, b| b.viewers.cmp(&a.viewers).then_with(|| a.name.cmp(&b.name)));
        self.hidden.set(i64::try_from(all.len().saturating_sub(self.most)).unwrap_or(i64::MAX));
        for Stream { name, published, viewers, doing } in all.into_iter().take(self.most) {
            let labels = [name.as_str(), if published { "publish" } else { "play" }];
            self.received.with_label_values(&labels).inc_by(doing.figures.bytes);
            self.frames.with_label_values(&labels).inc_by(doing.figures.frames);
            self.skips.with_label_values(&labels).inc_by(doing.skips);
            self.viewers.with_label_values(&labels).set(i64::try_from(viewers).unwrap_or(i64::MAX));
            if let Some(epoch) = epochs.get(&name).filter(|_| published) {
                self.epoch.with_label_values(&labels).set(i64::try_from(*epoch).unwrap_or(i64::MAX));
            }
            if let Some(interval) = doing.figures.keyframe_interval {
                self.keyframe_interval.with_label_values(&labels).set(interval.as_secs_f64());
            }
        }
        write()
    }
}
