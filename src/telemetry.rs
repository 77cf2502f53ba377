//! Every metric of a node, in one place, and the way logs are written.
//!
//! Names follow the Prometheus conventions: a base unit, and `_total` on what only rises.

use crate::journal::Journal;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Why media messages were not passed on: the label `reason` of `lb_lost_messages_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Their peer sent what no relay can use: an unknown type, or media outside of a publish.
    Unusable,
    /// No step of the workflow takes the stream, and there was no room to keep them.
    NoOutlet,
    /// Another session owns the stream's name by now.
    Superseded,
    /// Frames of a session from before its first keyframe, while viewers of an earlier session watch.
    NoKeyframe,
    /// Headers beyond the limits of a stream: late viewers do not get them.
    Headers,
    /// What a push, a transcode or HLS could not take in time, or did not get because its target was away.
    Behind,
}

impl Loss {
    const ALL: [Loss; 6] =
        [Loss::Unusable, Loss::NoOutlet, Loss::Superseded, Loss::NoKeyframe, Loss::Headers, Loss::Behind];

    fn label(self) -> &'static str {
        match self {
            Loss::Unusable => "unusable",
            Loss::NoOutlet => "no_outlet",
            Loss::Superseded => "superseded",
            Loss::NoKeyframe => "no_keyframe",
            Loss::Headers => "headers",
            Loss::Behind => "behind",
        }
    }
}

/// The metrics of the RTMP side. What the reactor and its clients count stands beside them in the same registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// RTMP connections that are open, those in their handshake included.
    pub connections: IntGauge,
    /// RTMP connections that were ever accepted.
    pub connections_total: IntCounter,
    /// Streams being published to this node.
    pub publishers: IntGauge,
    /// Viewers being served or waiting for their stream, without the pulls of other nodes.
    pub viewers: IntGauge,
    /// Streams this node pulls from other nodes, by the way it pulls (`native`, `ffmpeg`).
    pub pulls_in: IntGaugeVec,
    /// Pulls that were started, restarts included.
    pub pulls_started_total: IntCounterVec,
    /// Other nodes that pull a stream from this one.
    pub pulls_out: IntGauge,
    /// Streams this node pushes to other servers, by the way it pushes (`native`, `ffmpeg`).
    pub pushes: IntGaugeVec,
    /// Connections and processes of pushes that were started.
    pub pushes_started_total: IntCounterVec,
    /// Bytes read from RTMP sockets.
    pub received_bytes_total: IntCounter,
    /// Bytes written to RTMP sockets.
    pub sent_bytes_total: IntCounter,
    /// Media messages received from publishers and pulls.
    pub received_messages_total: IntCounter,
    /// Times a viewer that fell behind jumped to a newer keyframe.
    pub viewer_skips_total: IntCounter,
    /// Messages that viewers lost in those jumps.
    pub viewer_skipped_messages_total: IntCounter,
    /// Viewers closed because they stopped reading (stalled).
    pub viewer_stalls_total: IntCounter,
    /// Connections, publishes and plays refused, by reason.
    pub refusals_total: IntCounterVec,
    /// HTTP connections and requests refused: by limit, or by the status of the answer.
    pub http_refusals_total: IntCounterVec,
    /// Connections closed because their peer broke the protocol or a limit.
    pub misbehaved_total: IntCounter,
    /// Pauses of publishers that sent more messages or bytes than they may.
    pub publishers_throttled_total: IntCounter,
    /// Media messages that were not passed on, by reason. See [`Metrics::lost`].
    pub lost_messages_total: IntCounterVec,
    lost_log: [Seldom; Loss::ALL.len()],
    /// Streams a relay holds, live or in their grace time.
    pub streams: IntGauge,
    /// Pumps that run: one for each stream and format that somebody watches, more for a huge audience.
    pub pumps: IntGauge,
    /// From a viewer's play to its first keyframe.
    pub first_picture: Histogram,
    /// How long viewers saw nothing new while their stream came from elsewhere.
    pub switch_gap: Histogram,
    /// What happened to streams.
    pub journal: Journal,
}

impl Metrics {
    /// Makes and registers all of them.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let new = Maker(&registry);
        let made = Metrics {
            connections: new.gauge("lb_connections", "RTMP connections that are open")?,
            connections_total: new.counter("lb_connections_total", "RTMP connections accepted")?,
            publishers: new.gauge("lb_publishers", "Streams being published to this node")?,
            viewers: new.gauge("lb_viewers", "Viewers on this node, without the pulls of other nodes")?,
            pulls_in: new.gauges("lb_pulls_in", "Streams this node pulls from other nodes", "kind")?,
            pulls_started_total: new.counters(
                "lb_pulls_started_total",
                "Pulls started, restarts included",
                "kind",
            )?,
            pulls_out: new.gauge("lb_pulls_out", "Pulls of other nodes from this node")?,
            pushes: new.gauges("lb_pushes", "Streams this node pushes to other servers", "kind")?,
            pushes_started_total: new.counters(
                "lb_pushes_started_total",
                "Connections and processes of pushes that were started",
                "kind",
            )?,
            received_bytes_total: new.counter("lb_received_bytes_total", "Bytes read from RTMP sockets")?,
            sent_bytes_total: new.counter("lb_sent_bytes_total", "Bytes written to RTMP sockets")?,
            received_messages_total: new
                .counter("lb_received_messages_total", "Media messages received from publishers and pulls")?,
            viewer_skips_total: new.counter(
                "lb_viewer_skips_total",
                "Times a viewer fell behind and jumped to a newer keyframe",
            )?,
            viewer_skipped_messages_total: new
                .counter("lb_viewer_skipped_messages_total", "Messages that viewers lost by jumping")?,
            viewer_stalls_total: new
                .counter("lb_viewer_stalls_total", "Viewers closed because they stopped reading (stalled)")?,
            refusals_total: new.counters(
                "lb_refusals_total",
                "Connections, publishes and plays refused, by reason",
                "reason",
            )?,
            http_refusals_total: new.counters(
                "lb_http_refusals_total",
                "HTTP connections and requests refused, by limit or status",
                "reason",
            )?,
            publishers_throttled_total: new.counter(
                "lb_publishers_throttled_total",
                "Pauses of publishers that sent more messages or bytes than they may.",
            )?,
            misbehaved_total: new.counter(
                "lb_misbehaved_total",
                "Connections closed because the peer broke the protocol or a limit",
            )?,
            lost_messages_total: new.counters(
                "lb_lost_messages_total",
                "Media messages that were not passed on, by reason",
                "reason",
            )?,
            streams: new.gauge("lb_streams", "Streams held, live or in their grace time")?,
            pumps: new.gauge("lb_pumps", "Pumps that serve viewers")?,
            first_picture: new
                .histogram("lb_first_picture_seconds", "From a viewer's play to its first keyframe")?,
            switch_gap: new.histogram(
                "lb_switch_gap_seconds",
                "How long viewers saw nothing new while their stream came from elsewhere",
            )?,
            journal: Journal::default(),
            lost_log: Default::default(),
            registry: registry.clone(),
        };
        new.registered(build_info()?)?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        made.show_zeros();
        Ok(made)
    }

    /// What is zero is shown so, and not left out until it happens for the first time.
    fn show_zeros(&self) {
        for kind in ["native", "ffmpeg"] {
            self.pulls_in.with_label_values(&[kind]).set(0);
        }
        for loss in Loss::ALL {
            self.lost_messages_total.with_label_values(&[loss.label()]).reset();
        }
    }

    /// Where other parts register theirs.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Registers a gauge that is looked up whenever somebody asks. `look` must not block.
    ///
    /// Errors: there is one of this name.
    pub fn look(
        &self,
        name: &str,
        help: &str,
        look: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(Looked { gauge: IntGauge::new(name, help)?, look }))
    }

    /// All metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Counts messages that were not passed on, and says so in the log now and then. Nothing for no messages.
    pub fn lost(&self, loss: Loss, messages: u64) {
        if messages == 0 {
            return;
        }
        let reason = loss.label();
        self.lost_messages_total.with_label_values(&[reason]).inc_by(messages);
        if let Some(held_back) = self.lost_log.get(loss as usize).and_then(Seldom::pass) {
            tracing::warn!(reason, messages, held_back, "media messages were not passed on");
        }
    }

    /// How many messages were not passed on for this reason.
    pub fn lost_total(&self, loss: Loss) -> u64 {
        self.lost_messages_total.with_label_values(&[loss.label()]).get()
    }

    /// Counts a refusal.
    pub fn refused(&self, reason: &str) {
        self.refusals_total.with_label_values(&[reason]).inc();
    }

    /// Counts a refusal of the HTTP side.
    pub fn http_refused(&self, reason: &str) {
        self.http_refusals_total.with_label_values(&[reason]).inc();
    }
}

/// A gauge whose value is somebody else's.
struct Looked<F> {
    gauge: IntGauge,
    look: F,
}

impl<F: Fn() -> u64 + Send + Sync> Collector for Looked<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set(i64::try_from((self.look)()).unwrap_or(i64::MAX));
        self.gauge.collect()
    }
}

/// What this program is, as labels; the value is 1.
fn build_info() -> Result<IntGaugeVec, prometheus::Error> {
    let info = IntGaugeVec::new(
        Opts::new("lb_build_info", "What this program is; always 1"),
        &["version", "commit", "target"],
    )?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), env!("LB_COMMIT"), env!("LB_TARGET")]).set(1);
    Ok(info)
}

/// From a hundredth of a second, which is next to nothing, to half a minute, when viewers have left.
const SECONDS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0];

/// Makes metrics, and registers each.
struct Maker<'a>(&'a Registry);

type Made<T> = Result<T, prometheus::Error>;

impl Maker<'_> {
    fn registered<C: Collector + Clone + 'static>(&self, made: C) -> Made<C> {
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn histogram(&self, name: &str, help: &str) -> Made<Histogram> {
        self.registered(Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))?)
    }

    fn gauge(&self, name: &str, help: &str) -> Made<IntGauge> {
        self.registered(IntGauge::new(name, help)?)
    }

    fn counter(&self, name: &str, help: &str) -> Made<IntCounter> {
        self.registered(IntCounter::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> Made<IntGaugeVec> {
        self.registered(IntGaugeVec::new(Opts::new(name, help), &[label])?)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> Made<IntCounterVec> {
        self.registered(IntCounterVec::new(Opts::new(name, help), &[label])?)
    }
}

/// A gauge that is up by one for as long as this is held.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    /// Raises the gauge.
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The time between two lines where nothing else is said: an outage repeats its line for each stream.
const SELDOM: Duration = Duration::from_secs(10);

/// Lets so many log lines through in a while, and says how many it held back.
#[derive(Debug)]
pub struct Seldom {
    most: u64,
    every: Duration,
    state: Mutex<Passed>,
}

#[derive(Debug)]
struct Passed {
    since: Option<Instant>,
    passed: u64,
    held_back: u64,
}

impl Seldom {
    /// At most one line in `every`.
    pub const fn new(every: Duration) -> Self {
        Seldom::at_most(1, every)
    }

    /// At most so many lines in `every`.
    const fn at_most(most: u64, every: Duration) -> Self {
        Seldom { most, every, state: Mutex::new(Passed { since: None, passed: 0, held_back: 0 }) }
    }

    /// For what is said of each stream or viewer when it changes: all of it in quiet times, and no flood of it when peers come
    /// and go by the thousand.
    pub const fn events() -> Self {
        Seldom::at_most(200, SELDOM)
    }

    /// Whether a line may be written now; if so, how many were held back since the last one.
    pub fn pass(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.since.is_none_or(|since| since.elapsed() >= self.every) {
            (state.since, state.passed) = (Some(Instant::now()), 0);
        }
        if state.passed >= self.most {
            state.held_back += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.held_back))
    }
}

impl Default for Seldom {
    fn default() -> Self {
        Seldom::new(SELDOM)
    }
}

/// The longest text of a peer that a log line shows, in characters.
const SHOWN_MAX: usize = 200;

/// A peer's words as they may stand in a log line: control characters and what changes the direction of text are escaped, and
/// what is too long is cut.
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == SHOWN_MAX {
            shown.push('…');
            break;
        }
        // Direction marks and overrides, which would show a line in another order than it has.
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match c.is_control() || turns {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_and_shown() {
        let metrics = Metrics::new().unwrap();
        metrics.refused("limit");
        metrics.lost(Loss::Headers, 2);
        metrics.pulls_started_total.with_label_values(&["native"]).inc();
        let text = metrics.text();
        for line in [
            "lb_connections 0",
            "lb_pulls_in{kind=\"native\"} 0",
            "lb_refusals_total{reason=\"limit\"} 1",
            "lb_lost_messages_total{reason=\"headers\"} 2",
            "lb_lost_messages_total{reason=\"no_outlet\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_seldom_line_counts_what_it_holds_back() {
        let seldom = Seldom::default();
        assert_eq!(seldom.pass(), Some(0));
        assert_eq!(seldom.pass(), None);
        assert_eq!(seldom.pass(), None);
        tokio::time::advance(SELDOM).await;
        assert_eq!(seldom.pass(), Some(2));
    }

    #[test]
    fn a_peers_words_break_no_line() {
        assert_eq!(shown("live"), "live");
        assert_eq!(shown("a\nb\u{1b}[31m\u{202e}"), "a\\u{a}b\\u{1b}[31m\\u{202e}");
        assert_eq!(shown(&"é".repeat(1000)).chars().count(), SHOWN_MAX + 1);
    }
}
