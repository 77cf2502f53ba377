//! The node's agent: it tells reactors what the node does, and hears from them what it does no longer own.

use super::calls::{Outcome, Reactors};
use super::contact::Contact;
use super::http::Http;
use super::metrics::ClientMetrics;
use super::push_lease::PushLeases;
use super::releases::{self, Waiting};
use super::targets::PLAIN_SERVER_RETRY;
use super::urls::Urls;
use crate::api::{Heartbeat, HeartbeatReply, PublisherRelease, PushRelease};
use crate::ids::{NodeId, SessionId};
use crate::published::{Next, Occasion, Published, Report};
use crate::retry::pauses;
use crate::telemetry::Seldom;
use reqwest::Method;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The delay before a heartbeat that failed is sent again; it doubles up to the interval.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// The least time between two heartbeats, however often the agent is poked: a thousand changes of ownership at once
/// cost ten heartbeats a second, not a thousand. The pieces of one list follow each other without it.
const POKE_GAP: Duration = Duration::from_millis(100);

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

/// The running agent of a node. It is one task; dropping the agent ends it without signing off.
#[derive(Debug)]
pub struct Agent {
    poke: Arc<Notify>,
    contact: watch::Receiver<Contact>,
    stop: CancellationToken,
    task: AbortOnDropHandle<SignOff>,
    push_leases: PushLeases,
    metrics: ClientMetrics,
}

impl Agent {
    /// Starts the agent, which from now on tells reactors what `published` lists, and that a publish ended as soon as
    /// it does. `load` gives the other fields of a heartbeat; the agent sets `interval_ms`, `instance` and what is
    /// published. It is called in the agent's task and must not block.
    pub fn start(
        settings: Settings,
        published: Arc<Published>,
        load: impl Fn() -> Heartbeat + Send + Sync + 'static,
        metrics: ClientMetrics,
    ) -> Agent {
        let (contact, watched) = watch::channel(Contact::Untried);
        let (poke, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let (releases, waiting) = releases::queue(metrics.clone());
        published.on_end(move |release| releases.push(release));
        published.start_over();
        let (push_releases, waiting_pushes) = releases::queue(metrics.clone());
        let instance = SessionId::random();
        let push_leases = PushLeases::new(
            Reactors::new(settings.http.clone(), &settings.reactors),
            settings.node.clone(),
            instance,
            watched.clone(),
            published.clone(),
            push_releases,
            metrics.clone(),
        );
        let worker = Worker {
            reactors: Reactors::new(settings.http.clone(), &settings.reactors),
            settings,
            instance,
            published,
            load: Box::new(load),
            metrics: metrics.clone(),
            push_leases: push_leases.clone(),
            contact,
            poke: poke.clone(),
            stop: stop.clone(),
            forgotten_log: Seldom::default(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(worker.run(waiting, waiting_pushes)));
        Agent { poke, contact: watched, stop, task, push_leases, metrics }
    }

    /// Asks for a heartbeat now: a name changed hands, the node begins to drain, or a reactor came back. Calls that
    /// fall together cost one heartbeat.
    pub fn poke(&self) {
        self.poke.notify_one();
    }

    /// A handle that pokes, for closures that outlive the borrow of the agent.
    pub fn poker(&self) -> impl Fn() + Send + Sync + Clone + 'static {
        let poke = self.poke.clone();
        move || poke.notify_one()
    }

    /// Who may push streams to other servers, as reactors say.
    pub fn push_leases(&self) -> PushLeases {
        self.push_leases.clone()
    }

    /// Whether reactors hear the node: the value now, and its changes.
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.clone()
    }

    /// Signs the node off (`DELETE /nodes/{node}`), which ends all its leases, and ends the task. Takes three seconds at
    /// most. That no reactor heard it is logged and counted: the leases then end by the node's silence.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let missed = |result, reason: &str| {
            self.metrics.sign_offs.with_label_values(&[result]).inc();
            tracing::warn!(reason, "no reactor heard that this node stops; its leases lapse by themselves");
        };
        match timeout(SHUTDOWN_DEADLINE, self.task).await {
            Ok(Ok(SignOff::Heard)) => self.metrics.sign_offs.with_label_values(&["ok"]).inc(),
            Ok(Ok(SignOff::Nobody)) => {}
            Ok(Ok(SignOff::Missed(reason))) => missed("failed", &reason),
            Ok(Err(error)) => missed("failed", &format!("the node's agent failed: {error}")),
            Err(_) => {
                let seconds = SHUTDOWN_DEADLINE.as_secs();
                let reason = match &*self.contact.borrow() {
                    Contact::Unreachable { error, .. } => {
                        format!("no answer within {seconds} s, after {error}")
                    }
                    _ => format!("no answer within {seconds} s"),
                };
                missed("timeout", &reason);
            }
        }
    }
}

/// What the sign-off came to.
#[derive(Debug)]
enum SignOff {
    Heard,
    /// The URLs lead to web servers that know lookups only.
    Nobody,
    Missed(String),
}

struct Worker {
    settings: Settings,
    instance: SessionId,
    reactors: Reactors,
    published: Arc<Published>,
    load: Box<dyn Fn() -> Heartbeat + Send + Sync>,
    push_leases: PushLeases,
    metrics: ClientMetrics,
    contact: watch::Sender<Contact>,
    poke: Arc<Notify>,
    stop: CancellationToken,
    forgotten_log: Seldom,
}

/// What a heartbeat came to.
enum Beat {
    Taken(Next),
    Plain,
    Failed,
}

impl Worker {
    async fn run(self, waiting: Waiting<PublisherRelease>, pushes: Waiting<PushRelease>) -> SignOff {
        let of_publishers = waiting.send_all(&self.reactors, &self.metrics);
        let sent = async { tokio::join!(of_publishers, self.push_leases.send_releases(pushes)) };
        let releases = async {
            // What waits when the node stops is left out: signing off ends all leases of the node.
            tokio::select! {
                () = self.stop.cancelled() => {}
                ((), ()) = sent => {}
            }
        };
        tokio::join!(self.beat_on(), releases);
        self.sign_off().await
    }

    async fn beat_on(&self) {
        let retry_max = self.settings.interval.max(RETRY_FIRST);
        let mut retry = pauses(RETRY_FIRST, retry_max);
        let mut due = Instant::now();
        let mut told_again = false;
        loop {
            let occasion = if due <= Instant::now() { Occasion::Regular } else { Occasion::Early };
            // Not cut short by a stop: a heartbeat that is still on its way must not overtake the sign-off.
            let beat = self.beat(occasion).await;
            let gap = Instant::now() + POKE_GAP;
            if let (Beat::Taken(_), Occasion::Regular) = (&beat, occasion) {
                due = Instant::now() + jittered(self.settings.interval);
            }
            let pause = |pause: Option<Duration>| pause.unwrap_or(retry_max).min(self.settings.interval);
            let until = match beat {
                Beat::Taken(Next::More) if !self.stop.is_cancelled() => continue,
                // Once: a reactor that asks for everything each time must not have it as fast as the network goes.
                Beat::Taken(Next::Again | Next::Silent) if !told_again && !self.stop.is_cancelled() => {
                    told_again = true;
                    continue;
                }
                Beat::Taken(Next::Again) => Instant::now() + pause(retry.next()),
                Beat::Taken(next) => {
                    told_again = next == Next::Silent;
                    retry = pauses(RETRY_FIRST, retry_max);
                    due
                }
                Beat::Plain => Instant::now() + PLAIN_SERVER_RETRY,
                Beat::Failed => Instant::now() + pause(retry.next()),
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.poke.notified() => {}
                () = sleep_until(until) => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep_until(gap) => {}
            }
        }
    }

    async fn beat(&self, occasion: Occasion) -> Beat {
        let heartbeat = self.heartbeat(self.published.report(occasion));
        let outcome = match self.reactors.send(Method::PUT, &self.path(), &heartbeat).await {
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
                let next = self.published.answered(&reply);
                (Beat::Taken(next), "ok", self.reached(reactor))
            }
            // What it told is in the next report.
            Err(Some(error)) => (Beat::Failed, "failed", self.not_reached(error)),
            // Whoever takes the place of these servers knows nothing.
            Err(None) => {
                self.published.start_over();
                (Beat::Plain, "plain", Contact::Plain)
            }
        };
        self.metrics.heartbeats.with_label_values(&[result]).inc();
        self.contact.send_replace(contact);
        beat
    }

    fn heartbeat(&self, report: Report) -> Heartbeat {
        let Report { since, published, streams, ended, still_pushing, complete, forgotten } = report;
        if forgotten > 0 {
            self.metrics.releases.with_label_values(&["forgotten"]).inc_by(forgotten);
            if let Some(held_back) = self.forgotten_log.pass() {
                tracing::warn!(
                    forgotten,
                    held_back,
                    "more publishes ended than are kept for a reactor that is away"
                );
            }
        }
        Heartbeat {
            interval_ms: u64::try_from(self.settings.interval.as_millis()).unwrap_or(u64::MAX),
            instance: Some(self.instance),
            since,
            published,
            streams,
            ended,
            still_pushing,
            complete,
            ..(self.load)()
        }
    }

    async fn sign_off(&self) -> SignOff {
        if *self.contact.borrow() == Contact::Plain {
            return SignOff::Nobody;
        }
        let instance = self.instance.to_string();
        match self.reactors.ask(Method::DELETE, &self.path(), ("instance", &instance)).await {
            Outcome::Done(..) => SignOff::Heard,
            Outcome::Plain => SignOff::Nobody,
            Outcome::Failed(error) => SignOff::Missed(error),
        }
    }

    fn reached(&self, reactor: String) -> Contact {
        self.reactors.heard_by(&reactor);
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

    fn path(&self) -> [&str; 2] {
        ["nodes", self.settings.node.as_str()]
    }
}

/// A time that is up to a tenth shorter or longer, so that nodes that were started together do not call together.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.9..=1.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1000 {
            let time = jittered(Duration::from_secs(10));
            assert!(time >= Duration::from_secs(9) && time <= Duration::from_secs(11));
        }
    }
}
