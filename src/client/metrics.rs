//! What a node counts about its reactors.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};

/// The counters of lookups, heartbeats, releases and events. Clones share them.
#[derive(Clone, Debug)]
pub struct ClientMetrics {
    /// `lb_lookups_total{kind,result}`: questions put to reactors, without those that the negative cache answered.
    pub(super) lookups: IntCounterVec,
    /// `lb_lookup_duration_seconds`: from the question to its answer, over all URLs that were tried.
    pub(super) lookup_duration: Histogram,
    /// `lb_heartbeats_total{result}`.
    pub(super) heartbeats: IntCounterVec,
    /// `lb_releases_total{result}`.
    pub(super) releases: IntCounterVec,
    /// `lb_push_claims_total{result}`.
    pub(super) push_claims: IntCounterVec,
    /// `lb_push_releases_total{result}`.
    pub(super) push_releases: IntCounterVec,
    /// `lb_sign_offs_total{result}`.
    pub(super) sign_offs: IntCounterVec,
    /// `lb_reports_total{result}`.
    pub(super) reports: IntCounterVec,
    /// `lb_reactor_events_total{event}`.
    pub(super) events: IntCounterVec,
}

impl ClientMetrics {
    /// Makes the metrics and registers them. Fails if one of their names is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let lookup_duration = Histogram::with_opts(
            HistogramOpts::new("lb_lookup_duration_seconds", "Time from a lookup to its answer.")
                .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]),
        )?;
        registry.register(Box::new(lookup_duration.clone()))?;
        Ok(ClientMetrics {
            lookups: counter(
                "lb_lookups_total",
                "Lookups put to reactors, by kind (publisher, watcher) and result (found, stale, unknown, refused, unavailable).",
                &["kind", "result"],
            )?,
            lookup_duration,
            heartbeats: counter(
                "lb_heartbeats_total",
                "Heartbeats, by result (ok, failed, plain: no server has the endpoint).",
                &["result"],
            )?,
            releases: counter(
                "lb_releases_total",
                "Releases of publishers, by result (ok, failed, plain, overflow: the queue was full, \
                 forgotten: not kept for a reactor that is away for long).",
                &["result"],
            )?,
            push_claims: counter(
                "lb_push_claims_total",
                "Times a reactor was asked whether a stream may be pushed to other servers, by result (granted, held: another \
                 node may still push it, superseded, failed, alone: nobody was to be asked).",
                &["result"],
            )?,
            push_releases: counter(
                "lb_push_releases_total",
                "Times reactors were told that a stream is pushed no longer, by result (ok, failed, plain, overflow: the \
                 queue was full).",
                &["result"],
            )?,
            sign_offs: counter(
                "lb_sign_offs_total",
                "Times a node that stops said so, by result (ok, failed, timeout).",
                &["result"],
            )?,
            reports: counter(
                "lb_reports_total",
                "Reports on streams, by result (ok, failed, plain: no reactor, or an older one).",
                &["result"],
            )?,
            events: counter(
                "lb_reactor_events_total",
                "Events from reactors (hello, change, dropped: the reader was behind, lost: a connection ended).",
                &["event"],
            )?,
        })
    }
}
