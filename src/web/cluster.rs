//! The whole cluster as people see it: streams with where they are and how they are doing, nodes, the last switches. As one answer, or as
//! Server-Sent Events: everything once, then what changed, within half a second.
//!
//! One task looks at the registry for all who watch, and only while somebody does.

use crate::api::cluster::{NodeState, NodeView, PullView, StreamView, Switch};
use crate::api::report::HttpPlay;
use crate::api::{NodeEntry, StreamEntry};
use crate::ids::{NodeId, SessionTag, StreamName};
use crate::observed::{Observed, Place};
use crate::registry::{Error, Registry};
use futures::stream::{self, Stream, StreamExt};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use warp::Reply;
use warp::http::header::HeaderValue;
use warp::reply::Response;
use warp::sse::Event;

/// The time between two looks at the registry.
const LOOK: Duration = Duration::from_millis(500);

/// All of it, each part as JSON, so that what changed is found by comparing.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    streams: BTreeMap<StreamName, Arc<str>>,
    nodes: BTreeMap<NodeId, Arc<str>>,
    switches: Arc<str>,
}

/// See the module's head.
pub(super) struct Cluster {
    registry: Arc<Registry>,
    pub observed: Arc<Observed>,
    /// One moment by both clocks: whatever is shown with a time is placed by it, and does not flicker.
    clocks: (Instant, Duration),
    /// The look that goes on while somebody watches.
    looking: Mutex<Weak<Looking>>,
}

struct Looking {
    view: watch::Receiver<View>,
    _task: AbortOnDropHandle<()>,
}

/// When each session began, with its epoch: told again as it was told before, so that it does not flicker by a second.
type Begun = HashMap<StreamName, (u64, u64)>;

impl Cluster {
    pub fn new(registry: Arc<Registry>, observed: Arc<Observed>) -> Arc<Self> {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Arc::new(Cluster { registry, observed, clocks: (Instant::now(), clock), looking: Mutex::default() })
    }

    /// Everything, once.
    ///
    /// Errors: the registry cannot be read.
    pub async fn answer(&self) -> Result<Response, Error> {
        Ok(json(whole(&self.look(&mut Begun::new()).await?)))
    }

    /// Everything, and then what changes.
    pub fn follow(self: &Arc<Self>, stop: CancellationToken) -> Response {
        let events =
            self.events(stop).map(|data| Ok::<_, Infallible>(Event::default().event("cluster").data(data)));
        let keep_alive = warp::sse::keep_alive().interval(super::events::KEEP_ALIVE);
        let mut response = warp::sse::reply(keep_alive.stream(events)).into_response();
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }

    fn events(self: &Arc<Self>, stop: CancellationToken) -> impl Stream<Item = String> + Send + 'static {
        let looking = self.looking();
        let mut view = looking.view.clone();
        view.mark_changed();
        // Boxed, as a stream has to stay where it is.
        Box::pin(stream::unfold(
            (looking, view, None::<View>, stop),
            |(looking, mut view, told, stop)| async move {
                loop {
                    tokio::select! {
                        () = stop.cancelled() => return None,
                        changed = view.changed() => changed.ok()?,
                    }
                    let now = view.borrow_and_update().clone();
                    // The first look may not be done.
                    if now.switches.is_empty() {
                        continue;
                    }
                    let change = told.as_ref().map_or_else(|| whole(&now), |told| change(told, &now));
                    if !change.is_empty() {
                        return Some((change, (looking, view, Some(now), stop)));
                    }
                }
            },
        ))
    }

    fn looking(self: &Arc<Self>) -> Arc<Looking> {
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(looking) = looking.upgrade() {
            return looking;
        }
        let (sender, view) = watch::channel(View::default());
        let cluster = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            let mut begun = Begun::new();
            while let Some(cluster) = cluster.upgrade() {
                // While the store cannot be reached what is shown stays as it is; readiness says so.
                if let Ok(view) = cluster.look(&mut begun).await {
                    sender.send_replace(view);
                }
                let mut changes = cluster.registry.changes();
                drop(cluster);
                tokio::select! {
                    // What happens is seen at once; a burst of it within one look.
                    _ = changes.next() => tokio::time::sleep(LOOK / 10).await,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        });
        let new = Arc::new(Looking { view, _task: AbortOnDropHandle::new(task) });
        *looking = Arc::downgrade(&new);
        new
    }

    async fn look(&self, begun: &mut Begun) -> Result<View, Error> {
        let (leases, nodes) = (self.registry.list().await?, self.registry.nodes().await?);
        let now = Instant::now();
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut view = View::default();
        let before = std::mem::take(begun);
        for lease in leases {
            let (name, epoch) = (lease.name.clone(), lease.epoch);
            let known = before.get(&name).filter(|(of, _)| *of == epoch);
            let since = known.map_or_else(|| clock.saturating_sub(lease.age).as_secs(), |(_, since)| *since);
            begun.insert(name.clone(), (epoch, since));
            let session = lease.session.map(|session| session.tag());
            let stream = self.stream(StreamEntry::from(lease), session, since, now);
            view.streams.insert(name, text(&stream));
        }
        for entry in nodes {
            let node = self.node(&entry, now);
            view.nodes.insert(entry.node, text(&node));
        }
        let at = |at: Instant| {
            let (then, clock) = self.clocks;
            let after = clock + at.saturating_duration_since(then);
            after.saturating_sub(then.saturating_duration_since(at)).as_secs()
        };
        let switches = self.observed.switches().into_iter();
        view.switches =
            text(&switches.map(|(when, entry)| Switch { at: at(when), entry }).collect::<Vec<_>>());
        Ok(view)
    }

    fn stream(
        &self,
        entry: StreamEntry,
        session: Option<SessionTag>,
        since: u64,
        now: Instant,
    ) -> StreamView {
        let (mut source, mut pulls) = (None, Vec::new());
        for (node, report) in self.observed.stream(&entry.stream_name, now) {
            match report.published {
                // An ingest node that lost the name may not have heard of it.
                true if entry.node.as_ref() == Some(&node) => source = Some(report),
                true => {}
                false => pulls.push(PullView {
                    node,
                    live: report.live,
                    viewers: report.viewers,
                    skips: report.skips,
                }),
            }
        }
        let viewers = pulls.iter().map(|pull| pull.viewers).sum();
        let StreamEntry { node, origin, epoch, .. } = entry;
        StreamView { node, origin, epoch, session, since, viewers, source, pulls }
    }

    fn node(&self, entry: &NodeEntry, now: Instant) -> NodeView {
        let heartbeat = &entry.heartbeat;
        let place = self.observed.place(&entry.node, now);
        let [received_bits_per_second, sent_bits_per_second] =
            place.as_ref().map(|place| place.bits_per_second).unwrap_or_default();
        NodeView {
            roles: heartbeat.roles.clone(),
            state: NodeState::of(entry),
            published: heartbeat.published,
            pulls: heartbeat.pulls,
            viewers: heartbeat.viewers,
            capacity: heartbeat.capacity,
            received_bits_per_second,
            sent_bits_per_second,
            http: place.and_then(reached_at),
        }
    }
}

/// Where browsers reach a node; the host is left out if it is the reactor's, under whatever name that is called.
fn reached_at(Place { source, http, .. }: Place) -> Option<HttpPlay> {
    let http = http?;
    let source = Some(source).filter(|source| !source.is_loopback()).map(|source| match source {
        IpAddr::V6(ip) => format!("[{ip}]"),
        IpAddr::V4(ip) => ip.to_string(),
    });
    Some(HttpPlay { host: http.host.or(source), ..http })
}

fn text(value: &impl Serialize) -> Arc<str> {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned()).into()
}

/// Everything, as JSON.
fn whole(view: &View) -> String {
    let streams = differences(&BTreeMap::new(), &view.streams).unwrap_or_else(|| "{}".to_owned());
    let nodes = differences(&BTreeMap::new(), &view.nodes).unwrap_or_else(|| "{}".to_owned());
    let switches = if view.switches.is_empty() { "[]" } else { &*view.switches };
    format!("{{\"streams\":{streams},\"nodes\":{nodes},\"switches\":{switches}}}")
}

/// What is to be told to somebody who knows `before`, as JSON; empty: nothing.
fn change(before: &View, now: &View) -> String {
    let streams = differences(&before.streams, &now.streams);
    let nodes = differences(&before.nodes, &now.nodes);
    let switches = (before.switches != now.switches).then_some(&now.switches);
    if streams.is_none() && nodes.is_none() && switches.is_none() {
        return String::new();
    }
    let part = |name: &str, text: Option<String>| text.map(|text| format!("\"{name}\":{text}"));
    let parts = [
        part("streams", streams),
        part("nodes", nodes),
        part("switches", switches.map(|text| text.to_string())),
    ];
    format!("{{{}}}", parts.into_iter().flatten().collect::<Vec<_>>().join(","))
}

/// The entries that are new or others, and `null` for those that are gone.
fn differences<K: Ord + Serialize>(
    before: &BTreeMap<K, Arc<str>>,
    now: &BTreeMap<K, Arc<str>>,
) -> Option<String> {
    let key = |key: &K| serde_json::to_string(key).unwrap_or_default();
    let other = now.iter().filter(|(name, text)| before.get(name) != Some(text));
    let gone = before.keys().filter(|name| !now.contains_key(name));
    let parts: Vec<String> = other
        .map(|(name, text)| format!("{}:{text}", key(name)))
        .chain(gone.map(|name| format!("{}:null", key(name))))
        .collect();
    (!parts.is_empty()).then(|| format!("{{{}}}", parts.join(",")))
}

fn json(text: String) -> Response {
    warp::reply::with_header(text, "content-type", "application/json").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_told_and_nothing_else() {
        let view = |streams: &[(&str, &str)]| View {
            streams: streams.iter().map(|(name, text)| (name.parse().unwrap(), (*text).into())).collect(),
            switches: "[]".into(),
            ..View::default()
        };
        let (old, new) = (view(&[("a", "1"), ("b", "2")]), view(&[("b", "3"), ("c", "4")]));
        assert_eq!(whole(&old), r#"{"streams":{"a":1,"b":2},"nodes":{},"switches":[]}"#);
        assert_eq!(change(&old, &new), r#"{"streams":{"b":3,"c":4,"a":null}}"#);
        assert_eq!(change(&new, &new), "");
    }
}
