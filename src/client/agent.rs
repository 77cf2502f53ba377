//! The node's agent: it tells reactors what the node does, and hears from them what it does no longer own.

use super::backoff::{Backoff, jittered};
use super::targets::{Target, Targets};
use super::urls::endpoint;
use super::{ClientMetrics, Error, Http, PLAIN_SERVER_RETRY, Reply, Urls};
use crate::api::{Heartbeat, HeartbeatReply, PublisherRelease};
use crate::ids::{NodeId, SessionId, StreamName};
use crate::telemetry::Seldom;
use bytes::Bytes;
use futures::StreamExt;
use reqwest::Method;
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The delay before a heartbeat that failed is sent again; it doubles up to the interval.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// The least time between two heartbeats, however often the agent is poked: a thousand publishers that arrive together
/// cost ten heartbeats a second, not a thousand.
const POKE_GAP: Duration = Duration::from_millis(100);

/// Releases that may wait. A node whose publishers all leave at once has no more than some thousands; a release that
/// finds no room is made up for by the next heartbeat, which no longer lists the stream.
const RELEASES_WAITING: usize = 1024;

/// Releases on their way at a time.
const RELEASES_AT_ONCE: usize = 16;

/// How often a release is tried.
const RELEASE_TRIES: usize = 5;

/// How long after its publisher left a release is still worth a try: after that, the lease has nearly lapsed.
const RELEASE_FOR: Duration = Duration::from_secs(10);

/// How long [`Agent::shutdown`] takes at most: a heartbeat that is on its way, then the call to sign off.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(3);

/// Who the agent speaks for, and to whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The connections, with the token for reactors.
    pub http: Http,
    /// The reactors' base URLs.
    pub reactors: Urls,
    /// The node's name.
    pub node: NodeId,
    /// The time between two heartbeats; each is up to a tenth earlier or later.
    pub interval: Duration,
}

/// Whether reactors hear the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contact {
    /// No call has ended yet.
    Untried,
    /// A reactor takes the node's heartbeats.
    Reachable {
        /// Since when without a failure.
        since: Instant,
        /// Its URL, without user name, password and query.
        reactor: String,
    },
    /// No reactor takes them.
    Unreachable {
        /// Since when.
        since: Instant,
        /// What the last call of each URL came to.
        error: String,
    },
    /// The URLs lead to web servers that know lookups only: there is nobody to tell.
    Plain,
}

/// The running agent of a node. It is one task; dropping the agent ends it without signing off.
#[derive(Debug)]
pub struct Agent {
    poke: Arc<Notify>,
    releases: mpsc::Sender<Release>,
    contact: watch::Receiver<Contact>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
    metrics: ClientMetrics,
    overflow_log: Seldom,
}

/// A release and when its publisher left.
type Release = (PublisherRelease, Instant);

impl Agent {
    /// Starts the agent. `source` gives the picture to send (the agent sets `interval_ms` itself). `on_reply` gets
    /// each reply: what it says of superseded sessions is said again with each heartbeat that still lists them, so a
    /// reader that is behind may drop it. Both are called in the agent's task and must not block.
    pub fn start(
        settings: Settings,
        source: impl Fn() -> Heartbeat + Send + Sync + 'static,
        on_reply: impl Fn(HeartbeatReply) + Send + Sync + 'static,
        metrics: ClientMetrics,
    ) -> Agent {
        let (releases, waiting) = mpsc::channel(RELEASES_WAITING);
        let (contact, watched) = watch::channel(Contact::Untried);
        let (poke, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let worker = Worker {
            targets: Targets::new(&settings.reactors),
            settings,
            source: Box::new(source),
            on_reply: Box::new(on_reply),
            metrics: metrics.clone(),
            contact,
            poke: poke.clone(),
            stop: stop.clone(),
            in_contact: Mutex::new(None),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(Arc::new(worker).run(waiting)));
        Agent { poke, releases, contact: watched, stop, task, metrics, overflow_log: Seldom::default() }
    }

    /// Asks for a heartbeat now: a publisher came or left, the node begins to drain, or a reactor came back. Calls
    /// that fall together cost one heartbeat.
    pub fn poke(&self) {
        self.poke.notify_one();
    }

    /// A handle that pokes, for closures that outlive the borrow of the agent.
    pub fn poker(&self) -> impl Fn() + Send + Sync + Clone + 'static {
        let poke = self.poke.clone();
        move || poke.notify_one()
    }

    /// Says that a publisher left. Returns at once; the agent tries for some seconds. What does not get through is made
    /// up for by heartbeats, which no longer list the stream.
    pub fn release(&self, stream_name: StreamName, session: SessionId) {
        let release = PublisherRelease { stream_name, session };
        if let Err(TrySendError::Full((release, _)) | TrySendError::Closed((release, _))) =
            self.releases.try_send((release, Instant::now()))
        {
            self.metrics.releases.with_label_values(&["overflow"]).inc();
            if let Some(held_back) = self.overflow_log.pass() {
                tracing::warn!(stream = %release.stream_name, held_back, "too many releases wait, left to heartbeats");
            }
        }
    }

    /// Whether reactors hear the node: the value now, and its changes.
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.clone()
    }

    /// Signs the node off (`DELETE /nodes/{node}`), which ends all its leases, and ends the task. Takes three seconds at
    /// most.
    pub async fn shutdown(self) {
        self.stop.cancel();
        match timeout(SHUTDOWN_DEADLINE, self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the node's agent failed"),
            Err(_) => tracing::warn!("no reactor heard in time that this node stops"),
        }
    }
}

struct Worker {
    settings: Settings,
    targets: Targets,
    source: Box<dyn Fn() -> Heartbeat + Send + Sync>,
    on_reply: Box<dyn Fn(HeartbeatReply) + Send + Sync>,
    metrics: ClientMetrics,
    contact: watch::Sender<Contact>,
    poke: Arc<Notify>,
    stop: CancellationToken,
    /// The reactor that took the last heartbeat.
    in_contact: Mutex<Option<String>>,
}

/// What a call to the reactors came to.
enum Outcome {
    Done(Reply, String),
    /// None of the servers has the endpoint.
    Plain,
    Failed(String),
}

impl Worker {
    // Shared, since the compiler cannot yet see that futures of a closure are `Send` when they borrow.
    async fn run(self: Arc<Self>, waiting: mpsc::Receiver<Release>) {
        let releases =
            ReceiverStream::new(waiting).for_each_concurrent(RELEASES_AT_ONCE, |(release, left)| {
                let worker = self.clone();
                async move { worker.release(release, left).await }
            });
        let releases = async {
            // What waits when the node stops is left out: signing off ends all leases of the node.
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = releases => {}
            }
        };
        tokio::join!(self.beat_on(), releases);
        let heard = self.in_contact.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if heard && let Outcome::Failed(error) = self.call(Method::DELETE, &self.node_path(), None).await {
            tracing::warn!(error, "no reactor heard that this node stops");
        }
    }

    async fn beat_on(&self) {
        let mut retry = Backoff::new(RETRY_FIRST, self.settings.interval.max(RETRY_FIRST));
        let mut repeated = false;
        loop {
            // Not cut short by a stop: a heartbeat that is still on its way must not overtake the sign-off.
            let beat = self.beat().await;
            let gap = Instant::now() + POKE_GAP;
            let wait = match beat {
                // A reactor that says nothing of the listed streams has just lost its memory: tell it once more, soon.
                Beat::Taken { forgotten: true } if !repeated => {
                    repeated = true;
                    Duration::ZERO
                }
                Beat::Taken { forgotten } => {
                    repeated = forgotten;
                    retry.reset();
                    jittered(self.settings.interval)
                }
                Beat::Plain => PLAIN_SERVER_RETRY,
                Beat::Failed => retry.delay().min(self.settings.interval),
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.poke.notified() => {}
                () = sleep(wait) => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep_until(gap) => {}
            }
        }
    }

    async fn beat(&self) -> Beat {
        let mut picture = (self.source)();
        picture.interval_ms = u64::try_from(self.settings.interval.as_millis()).unwrap_or(u64::MAX);
        let listed = !picture.streams.is_empty();
        let outcome = match json(&picture) {
            Ok(body) => self.call(Method::PUT, &self.node_path(), Some(body)).await,
            Err(error) => Outcome::Failed(error),
        };
        let outcome = match outcome {
            Outcome::Done(reply, reactor) => match serde_json::from_slice::<HeartbeatReply>(&reply.body) {
                Ok(reply) => Ok((reply, reactor)),
                Err(error) => {
                    Err(Some(format!("{reactor}: the reply to a heartbeat cannot be read: {error}")))
                }
            },
            Outcome::Plain => Err(None),
            Outcome::Failed(error) => Err(Some(error)),
        };
        let (beat, result, contact) = match outcome {
            Ok((reply, reactor)) => {
                let forgotten = listed && reply.owned.is_empty() && reply.superseded.is_empty();
                (self.on_reply)(reply);
                (Beat::Taken { forgotten }, "ok", self.reached(reactor))
            }
            Err(Some(error)) => (Beat::Failed, "failed", self.not_reached(error)),
            Err(None) => (Beat::Plain, "plain", Contact::Plain),
        };
        self.metrics.heartbeats.with_label_values(&[result]).inc();
        self.contact.send_replace(contact);
        beat
    }

    fn reached(&self, reactor: String) -> Contact {
        *self.in_contact.lock().unwrap_or_else(PoisonError::into_inner) = Some(reactor.clone());
        match &*self.contact.borrow() {
            Contact::Reachable { since, .. } => Contact::Reachable { since: *since, reactor },
            _ => {
                tracing::info!(reactor, node = %self.settings.node, "a reactor takes this node's heartbeats");
                Contact::Reachable { since: Instant::now(), reactor }
            }
        }
    }

    fn not_reached(&self, error: String) -> Contact {
        match &*self.contact.borrow() {
            Contact::Unreachable { since, .. } => Contact::Unreachable { since: *since, error },
            _ => {
                tracing::warn!(error, "no reactor takes this node's heartbeats; running streams go on");
                Contact::Unreachable { since: Instant::now(), error }
            }
        }
    }

    async fn release(&self, release: PublisherRelease, left: Instant) {
        let mut retry = Backoff::new(POKE_GAP, RELEASE_FOR);
        let mut tries = 0;
        let result = loop {
            let outcome = match json(&release) {
                Ok(body) => self.call(Method::POST, &["publisher_release"], Some(body)).await,
                Err(error) => Outcome::Failed(error),
            };
            tries += 1;
            match outcome {
                Outcome::Done(..) => break "ok",
                Outcome::Plain => break "plain",
                Outcome::Failed(error) if tries == RELEASE_TRIES || left.elapsed() > RELEASE_FOR => {
                    tracing::debug!(stream = %release.stream_name, error, "a release is left to heartbeats");
                    break "failed";
                }
                Outcome::Failed(_) => sleep(retry.delay()).await,
            }
        };
        self.metrics.releases.with_label_values(&[result]).inc();
    }

    /// Puts a call to one reactor after the other until one of them takes it.
    async fn call(&self, method: Method, path: &[&str], body: Option<Bytes>) -> Outcome {
        let mut errors: Vec<String> = Vec::new();
        for target in self.targets.in_order() {
            let url = endpoint(&target.url, path);
            match self.settings.http.call(method.clone(), &url, body.clone()).await {
                Ok(reply) if reply.status.is_success() => {
                    target.works();
                    return Outcome::Done(reply, target.name());
                }
                Ok(reply) if matches!(reply.status.as_u16(), 404 | 405) && !self.knows(target) => {
                    if target.plain() {
                        tracing::info!(
                            url = target.name(),
                            "this web server knows lookups only: it gets no heartbeats, and is asked again now and then"
                        );
                    }
                }
                Ok(reply) => errors.push(failed(target, &format_args!("{}", reply.status))),
                Err(error) => errors.push(failed_call(target, &error)),
            }
        }
        if errors.is_empty() { Outcome::Plain } else { Outcome::Failed(errors.join("; ")) }
    }

    /// Whether this is the reactor that took the last heartbeat: its 404 comes from a proxy before it, in an outage.
    fn knows(&self, target: &Target) -> bool {
        let in_contact = self.in_contact.lock().unwrap_or_else(PoisonError::into_inner);
        in_contact.as_deref() == Some(&target.name())
    }

    fn node_path(&self) -> [&str; 2] {
        ["nodes", self.settings.node.as_str()]
    }
}

/// What a heartbeat came to.
enum Beat {
    Taken {
        /// The reply says nothing of the streams that were listed.
        forgotten: bool,
    },
    Plain,
    Failed,
}

fn failed(target: &Target, what: &dyn std::fmt::Display) -> String {
    target.failed();
    format!("{}: {what}", target.name())
}

fn failed_call(target: &Target, error: &Error) -> String {
    target.failed();
    error.to_string()
}

fn json(value: &impl Serialize) -> Result<Bytes, String> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| error.to_string())
}
