//! What a node tells reactors and hears from them: heartbeats, changes of ownership, and whether one was reached.

use crate::api::Heartbeat;
use crate::client::{Contact, Event};
use crate::health::Condition;
use crate::ids::Origin;
use crate::published::Published;
use crate::steps::reactors::{PulledAt, Reactors};
use crate::telemetry::Metrics;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What a heartbeat says beside what is published.
pub(super) struct Beat {
    pub roles: Vec<String>,
    pub capacity: u64,
    pub pulled_at: PulledAt,
    pub origin: Option<Origin>,
    pub metrics: Arc<Metrics>,
    pub draining: CancellationToken,
}

impl Beat {
    pub fn load(&self) -> Heartbeat {
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        let pulls = ["native", "ffmpeg"].map(|kind| self.metrics.pulls_in.with_label_values(&[kind]).get());
        Heartbeat {
            origin: self.origin.clone(),
            rtmp_port: Some(self.pulled_at.rtmp),
            rtmps_port: self.pulled_at.rtmps,
            draining: self.draining.is_cancelled(),
            roles: self.roles.clone(),
            viewers: count(self.metrics.viewers.get()),
            pulls: count(pulls.iter().sum()),
            received_bytes: self.metrics.received_bytes_total.get(),
            sent_bytes: self.metrics.sent_bytes_total.get(),
            capacity: self.capacity,
            ..Heartbeat::default()
        }
    }
}

/// Acts on changes of ownership at once: who watches a stream follows it, and a publisher that lost its name hears of it
/// from the reply to the heartbeat that is sent now, which names it.
pub(super) async fn follow_changes(
    mut changes: mpsc::Receiver<Event>,
    reactors: Arc<Reactors>,
    published: Arc<Published>,
    poke: impl Fn(),
) {
    while let Some(event) = changes.recv().await {
        match event {
            Event::Hello => {
                // Most likely a reactor that was away. It asks for the whole list if it lost it.
                published.changes_missed();
                poke();
                reactors.changes_missed();
            }
            Event::Change(change) => {
                if published.changed_hands(&change.stream_name, change.epoch) {
                    poke();
                }
                reactors.changed(&change.stream_name);
            }
        }
    }
}

/// A node is ready once a reactor has heard it. After that an outage of reactors is no reason to send viewers away.
pub(super) async fn watch_contact(mut contact: watch::Receiver<Contact>, condition: Condition) {
    condition.set_unready("no reactor was reached yet");
    loop {
        match &*contact.borrow_and_update() {
            Contact::Untried => {}
            Contact::Unreachable { error, .. } => {
                condition.set_unready(format!("no reactor was reached yet: {error}"));
            }
            Contact::Reachable { .. } | Contact::Plain => {
                condition.set_ready();
                return;
            }
        }
        if contact.changed().await.is_err() {
            return;
        }
    }
}
