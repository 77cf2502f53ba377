//! Whether this node may push a stream on to other servers: one node of the cluster does, so that a target never sees two
//! publishers of one stream.
//!
//! A [`PushLease`] is held for as long as a stream is pushed. All pushes of one session share a claim, which is released when the
//! last of them has ended. Who waits for a claim of another node's asks again and again, for as long as its publish lasts.
//!
//! ```text
//!  acquire ─▶ asked ─┬─▶ granted ─▶ held by guards ─▶ the last one is dropped ─▶ released
//!             ▲      │ held, or nobody answers                                     ▲
//!             └──────┤                    everybody who waited has gone ───────────┘
//!                    └─▶ superseded: the publish is over
//! ```
//!
//! A reactor that is away costs a running push nothing: nothing here is renewed by the holder. Heartbeats name what is pushed
//! ([`Published::set_pushing`]), so that reactors know of it that lost their memory. A new push waits until one answers, since nobody
//! else knows whether another node pushes. Where there is nobody to ask, a push may begin at once: web servers that know
//! lookups only, and streams for which the configuration names no reactor.
//!
//! This knows nothing of what a push is or how it ends.

use super::calls::{Outcome, Reactors};
use super::contact::Contact;
use super::http::CALL_DEADLINE;
use super::lookup::said;
use super::metrics::ClientMetrics;
use super::releases::{Queue, Waiting};
use crate::api::{PushClaim, PushRelease};
use crate::ids::{NodeId, SessionId, StreamName};
use crate::published::{Published, Standing};
use crate::retry::pauses;
use crate::telemetry::Seldom;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore, watch};
use tokio::time::{Instant, sleep};

/// The pause before a claim is made again; it doubles up to [`RETRY_MAX`]. The node before has to stop its pushes first, which takes
/// some 300 ms where it hears of the change at once.
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// The longest pause between two claims. It is a part of the gap that the target of a push sees when a publisher moves.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Claims of this node on their way at a time: a node that took over a thousand streams asks for them in turn.
const AT_ONCE: usize = 16;

/// The stream is not to be pushed: its publish has ended, or another one owns the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the publish has ended or has lost its name")]
pub struct Superseded;

/// The streams that this node pushes or wants to. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct PushLeases(Arc<Shared>);

/// The leave to push a stream, until this is dropped: then nothing of it must be on its way to a target any more.
#[derive(Debug)]
pub struct PushLease(#[expect(dead_code, reason = "released when the last one is dropped")] Arc<Held>);

#[derive(Debug)]
struct Shared {
    reactors: Reactors,
    node: NodeId,
    instance: SessionId,
    contact: watch::Receiver<Contact>,
    published: Arc<Published>,
    releases: Queue<PushRelease>,
    metrics: ClientMetrics,
    /// Those that somebody holds or waits for.
    held: Mutex<HashMap<SessionId, Weak<Held>>>,
    turns: AtomicU64,
    calls: Semaphore,
    waiting_log: Seldom,
}

/// What the pushes of one session share.
#[derive(Debug)]
struct Held {
    shared: Arc<Shared>,
    name: StreamName,
    session: SessionId,
    turn: u64,
    granted: OnceCell<()>,
    /// A reactor may have been asked.
    asked: AtomicBool,
    /// A claim is on its way.
    asking: AtomicBool,
}

/// What became of a claim.
enum Answer {
    Granted,
    Superseded,
    /// Why not now.
    Wait(String),
}

impl PushLeases {
    /// Those of the process `instance` of a node, whose agent tells of its `contact` with reactors. `reactors` are not those of the
    /// agent: one of an older program lacks these calls, and is to get heartbeats all the same.
    pub(super) fn new(
        reactors: Reactors,
        node: NodeId,
        instance: SessionId,
        contact: watch::Receiver<Contact>,
        published: Arc<Published>,
        releases: Queue<PushRelease>,
        metrics: ClientMetrics,
    ) -> Self {
        PushLeases(Arc::new(Shared {
            reactors,
            node,
            instance,
            contact,
            published,
            releases,
            metrics,
            held: Mutex::default(),
            turns: AtomicU64::new(1),
            calls: Semaphore::new(AT_ONCE),
            waiting_log: Seldom::events(),
        }))
    }

    /// Those of a node that has nobody to ask.
    #[cfg(test)]
    pub(crate) fn alone(published: Arc<Published>, metrics: ClientMetrics) -> Self {
        let reactors = Reactors::new(super::Http::new().unwrap(), &"http://localhost".parse().unwrap());
        let (releases, _) = super::releases::queue(metrics.clone());
        let (node, instance) = (NodeId::random(), SessionId::random());
        let contact = watch::channel(Contact::Plain).1;
        PushLeases::new(reactors, node, instance, contact, published, releases, metrics)
    }

    /// Waits until a stream may be pushed: until no other node does, and a reactor says so. `session` is the publish that is to
    /// be pushed; a stream that comes from elsewhere has none and needs no lease.
    ///
    /// Cancel safe: a claim that nobody waits for any more is released.
    ///
    /// Errors: [`Superseded`].
    pub async fn acquire(&self, name: &StreamName, session: SessionId) -> Result<PushLease, Superseded> {
        let held = self.0.hold(name, session);
        // If who asks goes away, another one who waits for the same session asks in its place.
        held.granted.get_or_try_init(|| self.0.wait(&held)).await?;
        Ok(PushLease(held))
    }

    /// Tells reactors what is not pushed any more, until the queue is gone.
    pub(super) async fn send_releases(&self, waiting: Waiting<PushRelease>) {
        waiting.send_all(&self.0.reactors, &self.0.metrics).await;
    }
}

impl Shared {
    fn hold(self: &Arc<Self>, name: &StreamName, session: SessionId) -> Arc<Held> {
        let mut all = self.held();
        if let Some(held) = all.get(&session).and_then(Weak::upgrade) {
            return held;
        }
        let held = Arc::new(Held {
            shared: self.clone(),
            name: name.clone(),
            session,
            turn: self.turns.fetch_add(1, Relaxed),
            granted: OnceCell::new(),
            asked: AtomicBool::new(false),
            asking: AtomicBool::new(false),
        });
        all.insert(session, Arc::downgrade(&held));
        held
    }

    /// Asks until there is an answer that counts.
    async fn wait(&self, held: &Held) -> Result<(), Superseded> {
        let (begun, mut pauses) = (Instant::now(), pauses(RETRY_FIRST, RETRY_MAX));
        let mut told = false;
        loop {
            let reason = match self.ask(held).await {
                Answer::Granted => break,
                Answer::Superseded => {
                    self.count("superseded");
                    return Err(Superseded);
                }
                Answer::Wait(reason) => reason,
            };
            if !std::mem::replace(&mut told, true)
                && let Some(held_back) = self.waiting_log.pass()
            {
                let session = held.session.tag();
                tracing::info!(stream = %held.name, %session, reason, held_back, "push waits");
            }
            sleep(pauses.next().unwrap_or(RETRY_MAX)).await;
        }
        if told {
            let (session, waited_ms) = (held.session.tag(), begun.elapsed().as_millis());
            tracing::info!(stream = %held.name, %session, waited_ms, "push may begin");
        }
        self.published.set_pushing(&held.name, held.session, true);
        Ok(())
    }

    async fn ask(&self, held: &Held) -> Answer {
        let alone = match self.published.standing(held.session) {
            None => return Answer::Superseded,
            Some(standing) => standing == Standing::Alone,
        };
        let contact = self.contact.borrow().clone();
        match contact {
            _ if alone => return self.answer("alone", Answer::Granted),
            Contact::Plain => return self.answer("alone", Answer::Granted),
            Contact::Untried => return Answer::Wait("no reactor was reached yet".to_owned()),
            // A 404 of this one is that of a proxy before it, in an outage.
            Contact::Reachable { reactor, .. } => self.reactors.heard_by(&reactor),
            Contact::Unreachable { .. } => {}
        }
        // Never closed.
        let _turn = self.calls.acquire().await;
        held.asked.store(true, Relaxed);
        held.asking.store(true, Relaxed);
        let claim = PushClaim {
            stream_name: held.name.clone(),
            session: held.session,
            node: self.node.clone(),
            instance: self.instance,
            turn: held.turn,
        };
        let outcome = self.reactors.question(&["push_claim"], &claim, &[409, 410]).await;
        held.asking.store(false, Relaxed);
        match outcome {
            Outcome::Done(reply, _) => match reply.status.as_u16() {
                409 => self.answer("held", Answer::Wait(said(&reply, "another node may still push it"))),
                410 => Answer::Superseded,
                _ => self.answer("granted", Answer::Granted),
            },
            Outcome::Plain => self.answer("alone", Answer::Granted),
            Outcome::Failed(error) => self.answer("failed", Answer::Wait(error)),
        }
    }

    fn answer(&self, result: &str, answer: Answer) -> Answer {
        self.count(result);
        answer
    }

    fn count(&self, result: &str) {
        self.metrics.push_claims.with_label_values(&[result]).inc();
    }

    /// Nobody holds it or waits for it any more.
    fn left(&self, held: &Held) {
        let mut all = self.held();
        // Somebody may have begun anew meanwhile.
        if all.get(&held.session).is_some_and(|other| other.strong_count() == 0) {
            all.remove(&held.session);
            self.published.set_pushing(&held.name, held.session, false);
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<SessionId, Weak<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.left(self);
        if !self.asked.load(Relaxed) && !self.granted.initialized() {
            return;
        }
        let release =
            || PushRelease { stream_name: self.name.clone(), session: self.session, turn: self.turn };
        self.shared.releases.push(release());
        if self.asking.load(Relaxed) {
            // The claim may arrive after its release. By then it has, or never will.
            self.shared.releases.push_due(release(), Instant::now() + CALL_DEADLINE);
        }
    }
}
