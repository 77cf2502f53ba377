//! The reactor's figures for Prometheus.

use crate::registry::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};
use std::sync::{Arc, Weak};

/// Counts of lookups by result; the registry's own figures are read when they are asked for.
#[derive(Clone, Debug)]
pub struct ReactorMetrics {
    lookups: IntCounterVec,
    /// See [`super::unknown_names`].
    pub(super) delayed: IntCounter,
}

impl ReactorMetrics {
    /// Registers all metrics of a reactor.
    ///
    /// Errors: metrics of these names are registered there already.
    pub fn register(
        metrics: &prometheus::Registry,
        registry: &Arc<Registry>,
    ) -> Result<Self, prometheus::Error> {
        let help = "Lookups answered by the reactor.";
        let lookups = IntCounterVec::new(Opts::new("lb_reactor_lookups_total", help), &["kind", "result"])?;
        for kind in ["publisher", "watcher"] {
            for result in ["ok", "unknown", "refused", "bad", "unavailable"] {
                lookups.with_label_values(&[kind, result]);
            }
        }
        metrics.register(Box::new(lookups.clone()))?;
        let delayed = IntCounter::new(
            "lb_reactor_lookups_delayed_total",
            "Answers that a name is not published, held back as their address asks for too many such names.",
        )?;
        metrics.register(Box::new(delayed.clone()))?;
        metrics.register(Box::new(Figures::new(Arc::downgrade(registry))?))?;
        Ok(ReactorMetrics { lookups, delayed })
    }

    pub(super) fn lookup(&self, kind: &str, result: &str) {
        self.lookups.with_label_values(&[kind, result]).inc();
    }
}

/// Reads [`Registry::stats`] at each scrape.
struct Figures {
    registry: Weak<Registry>,
    streams: IntGauge,
    nodes: IntGauge,
    takeovers: IntCounter,
    held_down: IntCounter,
}

impl Figures {
    fn new(registry: Weak<Registry>) -> Result<Self, prometheus::Error> {
        Ok(Figures {
            registry,
            streams: IntGauge::new("lb_reactor_streams", "Streams with an owner.")?,
            nodes: IntGauge::new("lb_reactor_nodes", "Nodes that send heartbeats.")?,
            takeovers: IntCounter::new(
                "lb_reactor_takeovers_total",
                "Names that went from one living owner to another.",
            )?,
            held_down: IntCounter::new(
                "lb_reactor_contested_total",
                "Claims refused by the takeover hold-down: publishers fight for their name.",
            )?,
        })
    }
}

impl Collector for Figures {
    fn desc(&self) -> Vec<&Desc> {
        let collectors: [&dyn Collector; 4] = [&self.streams, &self.nodes, &self.takeovers, &self.held_down];
        collectors.into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(stats) = self.registry.upgrade().map(|registry| registry.stats()) {
            self.streams.set(i64::try_from(stats.streams).unwrap_or(i64::MAX));
            self.nodes.set(i64::try_from(stats.nodes).unwrap_or(i64::MAX));
            self.takeovers.inc_by(stats.takeovers.saturating_sub(self.takeovers.get()));
            self.held_down.inc_by(stats.held_down.saturating_sub(self.held_down.get()));
        }
        let collectors: [&dyn Collector; 4] = [&self.streams, &self.nodes, &self.takeovers, &self.held_down];
        collectors.into_iter().flat_map(Collector::collect).collect()
    }
}
