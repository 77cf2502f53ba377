//! Follows stream names at mmids reactors, and runs the workflows that their answers name.
//!
//! It stands where `mmids-core` has its reactor manager, and serves that one's requests too, because the engine's
//! forwarder makes them. What runs for whom is kept in [`super::runs`]. Its own is left out for three faults that a stream server meets daily: each request that arrives
//! before the first answer makes a lookup and an endless timer of its own; a name that is dropped and wanted again keeps
//! its old timers; and a workflow that is stopped and started again under its name within a moment is forgotten by the
//! manager while it runs on. Here a followed name is one task with one lookup at a time, however many ask, and each run
//! of a workflow has a name of its own.
//!
//! An answer is final only if it is one: where no reactor answers, what runs goes on.

use super::executor::{self, Settings};
use super::runs::{self, Followed, Runs};
use crate::api::report::Happening;
use crate::api::{ACCEPT_RTMP_PULL, PublisherLookup, WatcherLookup};
use crate::client::{Answer, Lookup};
use crate::ids::{self, NodeId, Origin, SessionId, SessionTag, StreamName};
use crate::journal::Note;
use crate::telemetry::Metrics;
use crate::telemetry::Seldom;
use mmids_core::reactors::ReactorWorkflowUpdate;
use mmids_core::reactors::manager::ReactorManagerRequest;
use mmids_core::workflows::definitions::WorkflowDefinition;
use mmids_core::workflows::manager::{WorkflowManagerRequest, WorkflowManagerRequestOperation};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a name that nobody knows is held while no reactor answers. Then its viewers are refused, clearly.
pub const HOLD: Duration = Duration::from_secs(5);

/// The pause between two tries while no reactor answers.
const RETRY: Duration = Duration::from_millis(500);

/// The pause between two tries while no reactor answers and the stream runs anyway.
const RETRY_RUNNING: Duration = Duration::from_secs(2);

/// The pause between two lookups of a stream that is gone while its viewers are kept for it.
const RETRY_GONE: Duration = Duration::from_secs(1);

/// When every follower should ask again at once, they do so within this time of one another.
const SPREAD: Duration = Duration::from_millis(300);

/// What is known of a followed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing yet.
    Asking,
    /// It may be published, or its workflows run.
    Valid {
        /// The order of its session, if a reactor gave one.
        epoch: Option<u64>,
        /// The names of workflows that want to be routed to.
        routable: Arc<HashSet<Arc<String>>>,
    },
    /// It may not, or is not there; for people.
    Invalid(Arc<str>),
    /// No reactor says whether it is there.
    Unknown,
}

/// What a step wants to know about a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Asker {
    /// May this session publish it? A session has one publisher, so this is never shared.
    Publisher(Publishing),
    /// Where can it be watched? Shared by all who ask.
    Watcher,
}

/// A publish, as reactors are asked about it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Publishing {
    /// The publish.
    pub session: SessionId,
    /// See [`PublisherLookup::identity`].
    pub identity: Option<ids::Identity>,
    /// See [`PublisherLookup::query`]. Secret.
    pub query: Option<String>,
    /// See [`PublisherLookup::peer`].
    pub peer: IpAddr,
}

/// Leaves out what may hold secrets.
impl fmt::Debug for Publishing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.session)
    }
}

/// Who this node is to reactors.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node's id.
    pub node: NodeId,
    /// What it registers, if it is not the address its requests come from.
    pub origin: Option<Origin>,
    /// The ports that it is pulled from, for where there is no `origin`.
    pub pulled_at: PulledAt,
    /// Whether it pulls by itself, see [`ACCEPT_RTMP_PULL`].
    pub native_pull: bool,
}

/// The ports that other nodes pull from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PulledAt {
    /// Without TLS.
    pub rtmp: u16,
    /// By TLS, if it is to be by TLS.
    pub rtmps: Option<u16>,
}

/// All mmids reactors of a node.
pub struct Reactors {
    identity: Identity,
    reactors: HashMap<String, (Settings, Lookup)>,
    manager: UnboundedSender<WorkflowManagerRequest>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    followed: Mutex<HashMap<Key, Arc<Follower>>>,
    runs: Mutex<Runs<Follower>>,
}

type Key = (String, StreamName, Asker);

struct Follower {
    status: watch::Sender<Status>,
    /// Ask again now.
    poke: Notify,
    /// The stream is published again: who pauses before the next attempt to pull it need not.
    nudge: Arc<Notify>,
    /// The publish that the reactor named last, for logs.
    session: Mutex<Option<SessionTag>>,
}

impl fmt::Debug for Reactors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactors").field("names", &self.reactors.keys()).finish_non_exhaustive()
    }
}

impl Reactors {
    /// The reactors of a configuration, with their lookups.
    pub fn new(
        identity: Identity,
        reactors: HashMap<String, (Settings, Lookup)>,
        manager: UnboundedSender<WorkflowManagerRequest>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Reactors {
            identity,
            reactors,
            manager,
            metrics,
            tasks: TaskTracker::new(),
            followed: Mutex::default(),
            runs: Mutex::default(),
        })
    }

    /// Something happened to a stream.
    pub fn note(&self, name: &StreamName, note: Note) {
        self.metrics.journal.note(name, note);
    }

    /// Follows a name for as long as what is returned, or a clone of it, is held.
    pub fn follow(
        self: &Arc<Self>,
        reactor: &str,
        name: &StreamName,
        asker: Asker,
    ) -> watch::Receiver<Status> {
        let key = (reactor.to_owned(), name.clone(), asker);
        let Some((settings, lookup)) = self.reactors.get(reactor) else {
            let unknown = format!("there is no reactor '{reactor}'");
            return watch::channel(Status::Invalid(unknown.into())).1;
        };
        let mut followed = self.lock();
        if let Some(follower) = followed.get(&key) {
            return follower.status.subscribe();
        }
        let (status, receiver) = watch::channel(Status::Asking);
        let session = Mutex::default();
        let follower = Arc::new(Follower { status, poke: Notify::new(), nudge: Arc::default(), session });
        followed.insert(key.clone(), follower.clone());
        let place = (key.0.clone(), key.1.clone());
        let run = self.runs().join(&place, follower.clone());
        let task = Task {
            reactors: self.clone(),
            settings: settings.clone(),
            lookup: lookup.clone(),
            place,
            run,
            running: Vec::new(),
            epoch: None,
            found: None,
            follower,
            key,
        };
        self.tasks.spawn(task.run());
        receiver
    }

    /// Ownership of a name changed: whoever follows it to watch it asks again at once, and so does the next who comes.
    pub fn changed(&self, name: &StreamName) {
        let followed = self.lock();
        for (reactor, (_, lookup)) in &self.reactors {
            lookup.changed(name);
            if let Some(follower) = followed.get(&(reactor.clone(), name.clone(), Asker::Watcher)) {
                follower.poke.notify_one();
            }
        }
    }

    /// Ends the pause of a pull when its stream is published again, also at the address it had before.
    pub fn nudge(&self, name: &StreamName) -> Arc<Notify> {
        let followed = self.lock();
        let watched = |reactor: &String| followed.get(&(reactor.clone(), name.clone(), Asker::Watcher));
        self.reactors.keys().find_map(watched).map(|follower| follower.nudge.clone()).unwrap_or_default()
    }

    /// The publish that a reactor named last for a name that is watched; for logs.
    pub fn session(&self, name: &StreamName) -> Option<SessionTag> {
        let followed = self.lock();
        let watched = |reactor: &String| followed.get(&(reactor.clone(), name.clone(), Asker::Watcher));
        self.reactors.keys().find_map(watched).and_then(|follower| follower.session())
    }

    /// A workflow ended. If a follower runs it and did not stop it, it asks again at once, and so starts it again.
    pub fn workflow_ended(&self, name: &str) {
        self.runs().followers(name).iter().for_each(|follower| follower.poke.notify_one());
    }

    /// Changes may have been missed: everybody who watches asks again.
    pub fn changes_missed(&self) {
        for (key, follower) in self.lock().iter() {
            if key.2 == Asker::Watcher {
                follower.poke.notify_one();
            }
        }
    }

    /// Waits until nothing is followed any more, after the steps were stopped.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// How many names are followed.
    pub fn followed(&self) -> usize {
        self.lock().len()
    }

    /// Answers the requests of the engine's own forwarder, until all who could ask are gone.
    pub async fn serve(self: Arc<Self>, mut requests: UnboundedReceiver<ReactorManagerRequest>) {
        while let Some(request) = requests.recv().await {
            if let ReactorManagerRequest::CreateWorkflowForStreamName {
                reactor_name,
                stream_name,
                response_channel,
            } = request
            {
                match StreamName::parse(&stream_name) {
                    Ok(name) => {
                        let status = self.follow(&reactor_name, &name, Asker::Watcher);
                        self.tasks.spawn(report(status, response_channel));
                    }
                    Err(error) => tracing::warn!("a workflow asked for a stream it cannot have: {error}"),
                }
            }
        }
    }

    fn runs(&self) -> MutexGuard<'_, Runs<Follower>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Follower>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    fn session(&self) -> Option<SessionTag> {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next word on a followed name; nothing once `stop` is cancelled, or there is nobody to say it.
pub async fn next_status(status: &mut watch::Receiver<Status>, stop: &CancellationToken) -> Option<Status> {
    tokio::select! {
        () = stop.cancelled() => None,
        changed = status.changed() => changed.ok().map(|()| status.borrow_and_update().clone()),
    }
}

/// Passes a followed name's status on in the engine's own words.
async fn report(mut status: watch::Receiver<Status>, channel: UnboundedSender<ReactorWorkflowUpdate>) {
    loop {
        let update = match &*status.borrow_and_update() {
            Status::Asking => None,
            Status::Valid { routable, .. } => {
                Some(ReactorWorkflowUpdate { is_valid: true, routable_workflow_names: (**routable).clone() })
            }
            Status::Invalid(_) | Status::Unknown => {
                Some(ReactorWorkflowUpdate { is_valid: false, routable_workflow_names: HashSet::new() })
            }
        };
        if update.is_some_and(|update| channel.send(update).is_err()) {
            return;
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = channel.closed() => return,
        }
    }
}

struct Task {
    reactors: Arc<Reactors>,
    settings: Settings,
    lookup: Lookup,
    follower: Arc<Follower>,
    key: Key,
    /// The name at its reactor.
    place: Followed,
    /// Tells this run's workflows from those of an earlier run that are still being stopped.
    run: u64,
    running: Vec<Arc<String>>,
    /// The order of the session that was last heard of.
    epoch: Option<u64>,
    /// Where the stream was last, and which publish it was.
    found: Option<(Option<Origin>, Option<SessionTag>)>,
}

/// What may be unknown, as it stands in a log line.
fn text(what: Option<impl fmt::Display>) -> String {
    what.map_or_else(|| "unknown".to_owned(), |what| what.to_string())
}

impl Task {
    async fn run(mut self) {
        let begun = Instant::now();
        let mut refresh = false;
        loop {
            let answer = tokio::select! {
                answer = self.ask(refresh) => answer,
                () = self.follower.status.closed() => {
                    if self.give_up() {
                        return;
                    }
                    continue;
                }
            };
            let pause = self.act(answer, begun.elapsed());
            let poked = tokio::select! {
                () = sleep(pause) => false,
                () = self.follower.poke.notified() => true,
                () = self.follower.status.closed() => {
                    if self.give_up() {
                        return;
                    }
                    false
                }
            };
            if poked {
                tokio::time::sleep(SPREAD.mul_f64(rand::random::<f64>() * self.crowd())).await;
            }
            refresh = true;
        }
    }

    /// A change of one name needs no spreading; a change of everything does.
    fn crowd(&self) -> f64 {
        (self.reactors.followed() as f64 / 1000.0).min(1.0)
    }

    async fn ask(&self, refresh: bool) -> Answer {
        let (_, name, asker) = &self.key;
        let identity = &self.reactors.identity;
        match asker {
            Asker::Publisher(Publishing { session, identity: publisher, query, peer }) => {
                let lookup = PublisherLookup {
                    stream_name: name.clone(),
                    session: Some(*session),
                    node: Some(identity.node.clone()),
                    origin: identity.origin.clone(),
                    rtmp_port: Some(identity.pulled_at.rtmp),
                    rtmps_port: identity.pulled_at.rtmps,
                    identity: *publisher,
                    query: query.clone(),
                    peer: Some(*peer),
                };
                self.lookup.publisher(&lookup).await
            }
            Asker::Watcher => {
                let accept =
                    if identity.native_pull { vec![ACCEPT_RTMP_PULL.to_owned()] } else { Vec::new() };
                let lookup =
                    WatcherLookup { stream_name: name.clone(), accept, node: Some(identity.node.clone()) };
                self.lookup.watcher(&lookup, refresh).await
            }
        }
    }

    /// Does what an answer says, and says when to ask again.
    fn act(&mut self, answer: Answer, asked_for: Duration) -> Option<Duration> {
        let asker = self.key.2.clone();
        let interval = self.settings.update_interval;
        let regular = (!interval.is_zero()).then_some(interval);
        match answer {
            Answer::Found { text, epoch, fresh, origin, session } => {
                self.found(origin, session, epoch);
                let (reactor, name, _) = &self.key;
                match executor::read(&text, self.settings.forward_to.as_deref()) {
                    Ok(workflows) => self.apply(workflows, epoch),
                    // Answers are checked before they are remembered, so this one was not.
                    Err(error) => tracing::error!(reactor, stream = %name, "unreadable answer: {error}"),
                }
                if fresh { regular } else { Some(RETRY_RUNNING) }
            }
            Answer::NotFound { reason } | Answer::Refused { reason } => {
                // Whoever still follows a stream that is gone waits for its publisher to come back.
                let pause = if asker == Asker::Watcher { Some(RETRY_GONE) } else { regular };
                self.stop_workflows();
                self.tell(Status::Invalid(reason));
                pause
            }
            Answer::Unavailable { .. } => match asker {
                // A publisher is never turned away because a reactor is: it is registered as soon as one answers.
                Asker::Publisher(_) => {
                    self.tell(Status::Valid { epoch: None, routable: Arc::default() });
                    Some(RETRY_RUNNING)
                }
                Asker::Watcher if !self.running.is_empty() => Some(RETRY_RUNNING),
                Asker::Watcher if asked_for < HOLD => Some(RETRY),
                // What the reactors did is in the log, with their URLs, which are not a viewer's business.
                Asker::Watcher => {
                    self.tell(Status::Unknown);
                    Some(RETRY_RUNNING)
                }
            },
        }
    }

    /// Says where a stream is, when that is news.
    fn found(&mut self, origin: Option<Origin>, session: Option<SessionTag>, epoch: Option<u64>) {
        static FOUND: Seldom = Seldom::events();
        if self.key.2 != Asker::Watcher {
            return;
        }
        *self.follower.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
        let now = Some((origin, session));
        if self.found == now {
            return;
        }
        let (what, event) = match self.found {
            None => ("found", Happening::Found),
            Some(_) => ("moved", Happening::Moved),
        };
        self.found = now;
        let (origin, session) = self.found.clone().unwrap_or_default();
        let tag = session;
        let (origin, session) = (text(origin), text(session));
        self.reactors.note(&self.key.1, Note::of(event).session(tag).detail(&origin));
        let Some(held_back) = FOUND.pass() else { return };
        tracing::info!(stream = %self.key.1, %session, %origin, epoch, held_back, "{what}");
    }

    fn tell(&self, status: Status) {
        self.follower.status.send_if_modified(|old| {
            let news = *old != status;
            *old = status;
            news
        });
    }

    /// Starts, changes and stops workflows until those of the answer run. A step that stays the same is left alone by the
    /// engine, so a pull that moves does not disturb what comes behind it.
    fn apply(&mut self, mut workflows: Vec<WorkflowDefinition>, epoch: Option<u64>) {
        let own: HashMap<Arc<String>, Arc<String>> = workflows
            .iter()
            .map(|workflow| (workflow.name.clone(), runs::name(&workflow.name, self.run)))
            .collect();
        let mut routable = HashSet::new();
        for workflow in &mut workflows {
            for step in &mut workflow.steps {
                if let Some(Some(target)) = step.parameters.get_mut("target_workflow")
                    && let Some(name) = own.get(&*target)
                {
                    *target = name.to_string();
                }
            }
            if let Some(name) = own.get(&workflow.name) {
                workflow.name = name.clone();
            }
            if workflow.routed_by_reactor {
                routable.insert(workflow.name.clone());
            }
        }
        let running: Vec<_> = workflows.iter().map(|workflow| workflow.name.clone()).collect();
        self.set_running(running);
        for definition in workflows {
            self.request(WorkflowManagerRequestOperation::UpsertWorkflow { definition });
        }
        if epoch.is_some() && std::mem::replace(&mut self.epoch, epoch) != epoch {
            self.follower.nudge.notify_one();
        }
        self.tell(Status::Valid { epoch, routable: Arc::new(routable) });
    }

    fn stop_workflows(&mut self) {
        self.set_running(Vec::new());
    }

    /// Takes note of what runs now, and stops what nobody wants any more.
    fn set_running(&mut self, running: Vec<Arc<String>>) {
        let mut runs = self.reactors.runs();
        // Told while the lock is held: whoever wants one of them a moment later starts it after this.
        for name in runs.change(&self.place, &self.running, &running) {
            self.request(WorkflowManagerRequestOperation::StopWorkflow { name });
        }
        drop(runs);
        self.running = running;
    }

    fn request(&self, operation: WorkflowManagerRequestOperation) {
        let request = WorkflowManagerRequest { request_id: format!("follow {}", self.key.1), operation };
        if self.reactors.manager.send(request).is_err() {
            tracing::debug!("the workflow manager is gone");
        }
    }

    /// Nobody holds the status any more: ends, unless somebody came at the same moment.
    fn give_up(&mut self) -> bool {
        {
            let mut followed = self.reactors.lock();
            if self.follower.status.receiver_count() > 0 {
                return false;
            }
            followed.remove(&self.key);
        }
        self.stop_workflows();
        self.reactors.runs().leave(&self.place, &self.follower);
        true
    }
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        // A tenth earlier or later, so that what began together does not ask together for ever.
        Some(pause) => tokio::time::sleep(pause.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await,
        None => std::future::pending().await,
    }
}
