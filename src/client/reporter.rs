//! Tells reactors how the node's streams are doing, for people to see. Each reactor is told, whichever is asked later; nothing is sent twice,
//! as the next report says the same anew.

use super::http::Http;
use super::metrics::ClientMetrics;
use super::targets::PLAIN_SERVER_RETRY;
use super::urls::{Urls, endpoint};
use crate::api::report::{Report, ReportReply};
use crate::ids::NodeId;
use reqwest::Method;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The most reports of one interval: so many times [`crate::api::report::REPORT_MAX`] streams are seen of a node.
pub const REPORTS: usize = 10;

/// The running task. Dropping it ends it.
#[derive(Debug)]
pub struct Reporter(#[expect(dead_code, reason = "ends the task")] AbortOnDropHandle<()>);

impl Reporter {
    /// Tells these reactors in each interval what `reports` gives, which are at most [`REPORTS`]. It is called in this task and must not
    /// block. `drain` is cancelled when one of them says that the node is to drain.
    pub fn start(
        http: Http,
        reactors: &Urls,
        node: NodeId,
        every: Duration,
        reports: impl FnMut() -> Vec<Report> + Send + 'static,
        drain: CancellationToken,
        metrics: ClientMetrics,
    ) -> Self {
        let reactors = reactors.clone();
        let task = run(http, reactors, node, every, reports, drain, metrics);
        Reporter(AbortOnDropHandle::new(tokio::spawn(task)))
    }
}

async fn run(
    http: Http,
    reactors: Urls,
    node: NodeId,
    every: Duration,
    mut reports: impl FnMut() -> Vec<Report>,
    drain: CancellationToken,
    metrics: ClientMetrics,
) {
    let path = ["nodes", node.as_str(), "report"];
    let mut targets: Vec<_> =
        reactors.as_slice().iter().map(|base| (endpoint(base, &path), Instant::now())).collect();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for report in reports() {
            let Ok(body) = serde_json::to_vec(&report).map(bytes::Bytes::from) else { continue };
            let due = targets.iter_mut().filter(|(_, pause)| *pause <= Instant::now());
            let told = due.map(|(url, pause)| {
                let (http, body, drain) = (&http, body.clone(), &drain);
                async move {
                    match http.call(Method::POST, url, Some(body)).await {
                        Ok(reply) if reply.status.is_success() => {
                            let said = serde_json::from_slice::<ReportReply>(&reply.body).unwrap_or_default();
                            if said.drain {
                                drain.cancel();
                            }
                            "ok"
                        }
                        // A web server that knows lookups only, or an older reactor.
                        Ok(reply) if matches!(reply.status.as_u16(), 404 | 405) => {
                            *pause = Instant::now() + PLAIN_SERVER_RETRY;
                            "plain"
                        }
                        Ok(_) | Err(_) => {
                            *pause = Instant::now() + every;
                            "failed"
                        }
                    }
                }
            });
            for result in futures::future::join_all(told).await {
                metrics.reports.with_label_values(&[result]).inc();
            }
        }
    }
}
