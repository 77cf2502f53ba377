//! Several registries and nodes over one store, with calls that are late, lost, repeated and out of order, from seeds.
//!
//! A schedule is a small world on a virtual clock: one thread, no tokio, every delay and fault drawn from the seed. Faults
//! and publishers come and go for some seconds, then the faults end, and the world has to come to rest. What must hold:
//!
//! - each epoch of a name is given to one session only, and epochs of a name only rise ([`Servers::check`]);
//! - a session that was released or lost its name never owns one again;
//! - while somebody publishes, nobody else claims the name, where identities are known;
//! - a stream whose node was heard all the time is never denied ([`check_denial`]);
//! - no session is let push its stream to other servers while another one of its name is pushed, on a node that was heard and
//!   that has named it ([`Servers::check_pusher`], which says what nobody can know);
//! - when the faults have ended, within [`CALM`]: each name has one live session at most and every registry names it, with
//!   the epoch that its node knows; all other sessions were told that they lost, and who wants to push does
//!   ([`Schedule::unsettled`]).
//!
//! It was seen to find each of these, put in by hand, within a few schedules: a session that has ended is not refused; the epoch
//! does not rise when another session takes a name; a node is not asked for its list when the store is another generation;
//! a process takes the place of another one without having heard that it is asked (a late heartbeat then displaces the
//! process that lives); what is pushed on a node that is heard counts as ended.
//!
//! A failure names its seed: `LB_SIMULATION_SEED=… cargo test --lib simulation` runs that schedule alone.
//! `LB_SIMULATION_SCHEDULES` is the number of schedules of each of the two tests.

use super::record::{Claimant, NodeRecord, Owner, Record, StreamRecord};
use super::store::{Key, Kind, Memory as Age, Read, Store, Unreachable, Write, Written};
use super::{Claim, Error, Policy, Registry, Settings, Status};
use crate::api::{Heartbeat, HeartbeatReply, PublishedStream, PublisherRelease, PushClaim, PushRelease};
use crate::ids::{Identity, NodeId, Origin, SessionId, StreamName};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::broadcast;

/// Schedules of each of the two tests: 100,000 in all.
const SCHEDULES: u64 = 50_000;

/// Milliseconds with faults, and the most that the world may take to come to rest afterwards.
const CHAOS: u64 = 1_800;
const CALM: u64 = 12_000;

/// Milliseconds between two heartbeats, and two sweeps.
const INTERVAL: u64 = 600;
const SWEEP: u64 = 700;

/// Milliseconds of [`Settings::lease`] and [`Settings::warm_up`].
const LEASE: u64 = 2_500;
const WARM_UP: u64 = 900;

/// Streams of a list in one heartbeat, and those that are named in turn: small, so that lists come in pieces.
const PIECE: usize = 2;
const AUDITED: usize = 1;

/// The longest way of a call, and the time after which it is given up, milliseconds.
const WAY: u64 = 60;
const DEADLINE: u64 = 400;

/// The latest that a repeated call arrives.
const LATE: u64 = 900;

/// Milliseconds in which a push that is contested and not named counts as ended: three heartbeats.
const PATIENCE: u64 = 3 * INTERVAL;

#[test]
fn one_owner_a_name_whatever_gets_lost() {
    run(0);
}

#[test]
fn one_owner_a_name_whatever_gets_lost_in_other_schedules() {
    run(1);
}

fn run(part: u64) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("LB_SIMULATION_SEED") {
        return if part == 0 {
            Schedule::new(seed).run()
        };
    }
    let schedules = number("LB_SIMULATION_SCHEDULES").unwrap_or(SCHEDULES);
    for seed in (0..schedules).map(|schedule| 2 * schedule + part) {
        let failed = std::panic::catch_unwind(|| Schedule::new(seed).run());
        assert!(failed.is_ok(), "the schedule of LB_SIMULATION_SEED={seed} failed");
    }
}

// The clock and the tasks.

#[derive(Clone)]
struct Clock(Arc<Mutex<Time>>);

struct Time {
    now: u64,
    random: SmallRng,
    /// The task that runs, and who is to run next: time, order, task.
    task: usize,
    waiting: BinaryHeap<Reverse<(u64, u64, usize)>>,
    order: u64,
    /// What happens is printed.
    told: bool,
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Clock {
    fn lock(&self) -> MutexGuard<'_, Time> {
        self.0.lock().unwrap()
    }

    fn now(&self) -> u64 {
        self.lock().now
    }

    /// A number below a bound.
    fn draw(&self, below: u64) -> u64 {
        self.lock().random.random_range(0..below)
    }

    fn one_in(&self, n: u64) -> bool {
        self.draw(n) == 0
    }

    /// Prints what happens, if one schedule runs alone.
    fn tell(&self, what: impl FnOnce() -> String) {
        let (now, told) = (self.now(), self.lock().told);
        if told {
            println!("{now} {}", what());
        }
    }

    fn sleep(&self, ms: u64) -> Sleep {
        Sleep { clock: self.clone(), until: self.now() + ms, set: false }
    }
}

struct Sleep {
    clock: Clock,
    until: u64,
    set: bool,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let clock = self.clock.clone();
        let mut time = clock.lock();
        if time.now >= self.until {
            return Poll::Ready(());
        }
        if !self.set {
            self.set = true;
            time.order += 1;
            let entry = (self.until, time.order, time.task);
            time.waiting.push(Reverse(entry));
        }
        Poll::Pending
    }
}

// The store, which may fail over to a server that has not heard of the last writes.

#[derive(Debug)]
struct Servers {
    clock: Clock,
    state: Mutex<State>,
    announcements: broadcast::Sender<Bytes>,
}

/// What a key holds, and until when.
type Kept = (Bytes, u64);

#[derive(Debug, Default)]
struct State {
    /// Identities guard names.
    guards: bool,
    records: HashMap<Key, Kept>,
    /// The bytes of streams, read.
    streams: HashMap<Bytes, StreamRecord>,
    /// When, which, and what it was before.
    log: Vec<(u64, Key, Option<Kept>)>,
    generation: u64,
    begun: u64,
    away_until: u64,
    /// Calls are late and lost.
    faults: bool,
    /// Who was given an epoch of a name, in this generation; and which sessions cannot own a name any more.
    given: HashMap<(StreamName, u64), SessionId>,
    over: HashSet<SessionId>,
    /// The session that took a name last, and when.
    taken: HashMap<StreamName, (SessionId, u64)>,
    /// Since when the record of a node is there.
    there_since: HashMap<NodeId, u64>,
    /// What nodes push to other servers at this moment. Registries do not see it.
    pushes: BTreeMap<SessionId, Push>,
}

#[derive(Debug)]
struct Push {
    name: StreamName,
    node: NodeId,
    instance: SessionId,
    since: u64,
    /// Of the store, when it was let push.
    generation: u64,
    /// When the last heartbeat was sent that named it and was answered.
    named: u64,
}

impl Servers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Another server takes over, which misses what was written in the last milliseconds.
    fn fail_over(&self, lost: u64, away: u64) {
        let now = self.clock.now();
        self.clock.tell(|| format!("fails over, loses {lost} ms, is away for {away} ms"));
        let mut state = self.state();
        while state.log.last().is_some_and(|(at, ..)| *at + lost >= now) {
            let Some((_, key, before)) = state.log.pop() else { break };
            match before {
                Some(record) => state.records.insert(key, record),
                None => state.records.remove(&key),
            };
        }
        state.log.clear();
        state.generation += 1;
        state.begun = now;
        state.away_until = now + away;
        state.given.clear();
        state.over.clear();
        state.taken.clear();
        state.there_since.clear();
        drop(state);
        self.announcements.send(Bytes::new()).ok();
    }

    /// The way there: nothing if the call is lost, or the server another one by then.
    async fn way(&self, generation: u64) -> Result<(), Unreachable> {
        let faults = self.state().faults;
        if faults {
            let (ms, lost) = (self.clock.draw(WAY), self.clock.one_in(40));
            self.clock.sleep(if lost { DEADLINE } else { ms }).await;
            if lost {
                return Err(Unreachable);
            }
        }
        let state = self.state();
        let there = state.generation == generation && state.away_until <= self.clock.now();
        there.then_some(()).ok_or(Unreachable)
    }

    fn get(&self, state: &mut State, key: &Key) -> Option<Bytes> {
        let now = self.clock.now();
        match state.records.get(key) {
            Some((value, expires)) if *expires > now => Some(value.clone()),
            Some(_) => {
                state.records.remove(key);
                if let Key::Node(node) = key {
                    state.there_since.remove(node);
                }
                None
            }
            None => None,
        }
    }

    fn listed(&self, kind: Kind) -> Vec<(Key, Read)> {
        let (now, state) = (self.clock.now(), self.state());
        let of_kind = state.records.iter().filter(|(key, (_, expires))| key.kind() == kind && *expires > now);
        let read = |value: &Bytes| Read { value: Some(value.clone()), now };
        of_kind.map(|(key, (value, _))| (key.clone(), read(value))).collect()
    }

    fn change(&self, write: Write) -> Written {
        let now = self.clock.now();
        let mut state = self.state();
        let value = self.get(&mut state, &write.key);
        if value != write.expected {
            return Written::Conflict(Read { value, now });
        }
        self.clock.tell(|| {
            let value = write.value.as_deref().map(String::from_utf8_lossy);
            format!("{:?} <- {} {:?}", write.key, value.as_deref().unwrap_or("nothing"), write.expiry)
        });
        self.check(&mut state, &write);
        let record = write.value.map(|value| {
            let expiry = write.expiry.map_or(u64::MAX / 2, |expiry| expiry.as_millis() as u64);
            (value, now + expiry)
        });
        let before = match record {
            Some(record) => state.records.insert(write.key.clone(), record),
            None => state.records.remove(&write.key),
        };
        state.log.push((now, write.key, before));
        if let Some(announcement) = write.announce {
            self.announcements.send(announcement).ok();
        }
        Written::Done
    }

    /// What each write has to keep to.
    fn check(&self, state: &mut State, write: &Write) {
        let name = match &write.key {
            Key::Stream(name) => name,
            Key::Node(node) => {
                let now = self.clock.now();
                match (&write.expected, &write.value) {
                    (_, None) => drop(state.there_since.remove(node)),
                    (None, _) => drop(state.there_since.insert(node.clone(), now)),
                    _ => drop(state.there_since.entry(node.clone()).or_insert(now)),
                }
                return;
            }
        };
        let (value, expected) = (write.value.as_ref().unwrap(), write.expected.as_ref());
        let after = StreamRecord::decode(value).unwrap();
        let before = expected.map(|bytes| state.streams.get(bytes).unwrap().clone()).unwrap_or_default();
        state.streams.insert(value.clone(), after.clone());
        let owner = |record: &StreamRecord| record.owner.as_ref().and_then(|owner| owner.id.session());
        assert!(after.epoch >= before.epoch, "the epoch of {name} fell: {before:?} {after:?}");
        if let Some(former) = owner(&before).filter(|former| owner(&after) != Some(*former)) {
            state.over.insert(former);
        }
        for ended in &after.ended {
            if let Claimant::Session(session) = ended.id {
                state.over.insert(session);
            }
        }
        if state.guards {
            let live = before.owner.as_ref().filter(|owner| {
                // Whether a listed one lives is known to its node's record.
                !owner.lapsed && !owner.early && owner.until > self.clock.now() && owner.listed.is_none()
            });
            // One that a heartbeat lists may come after the end of the other, in one write.
            let claimed = |owner: &&Owner| owner.claimed == Some(state.generation) && owner.listed.is_none();
            let came = after.owner.as_ref().filter(claimed);
            if let (Some(live), Some(came)) = (live, came) {
                assert_eq!(live.identity, came.identity, "somebody else took {name}: {before:?} {after:?}");
            }
        }
        self.check_pusher(state, name, &before, &after);
        if owner(&before) != owner(&after) {
            match owner(&after) {
                Some(session) => state.taken.insert(name.clone(), (session, self.clock.now())),
                None => state.taken.remove(name),
            };
        }
        if let Some(session) = owner(&after) {
            assert!(!state.over.contains(&session), "{session} owns {name} again: {before:?} {after:?}");
            let given = *state.given.entry((name.clone(), after.epoch)).or_insert(session);
            assert_eq!(given, session, "two sessions with one epoch of {name}: {before:?} {after:?}");
        }
    }
}

impl Servers {
    /// A session is let push: then nobody else pushes that name, as far as it could be known.
    fn check_pusher(&self, state: &State, name: &StreamName, before: &StreamRecord, after: &StreamRecord) {
        let former = before.pusher.as_ref().map(|pusher| pusher.session);
        let came = after.pusher.as_ref().filter(|came| {
            // What heartbeats tell has no turn. Somebody who pushes already may ask again.
            came.turn > 0 && former != Some(came.session) && !state.pushes.contains_key(&came.session)
        });
        let Some(came) = came else { return };
        let now = self.clock.now();
        for (session, push) in
            state.pushes.iter().filter(|(id, push)| push.name == *name && **id != came.session)
        {
            let record = state.records.get(&Key::Node(push.node.clone())).filter(|(_, until)| *until > now);
            let record = record.and_then(|(value, _)| NodeRecord::decode(value).ok());
            let heard = record.filter(|record| record.instance == Some(push.instance));
            let since = state.there_since.get(&push.node).copied().unwrap_or(now);
            let (earlier, told) = match &heard {
                Some(record) => (
                    push.generation != state.generation,
                    record.generation == state.generation && record.complete && push.since < state.begun,
                ),
                None => continue,
            };
            let unknown = since + 1000 > now || (earlier && !told);
            let unnamed = former == Some(*session) && push.named + PATIENCE <= now;
            // There were two already, for one of the other reasons.
            let second =
                former.is_some_and(|former| former != *session && state.pushes.contains_key(&former));
            assert!(
                unknown || unnamed || second,
                "{} is let push {name} while {session} is pushed: {push:?} {before:?} {after:?}",
                came.session
            );
        }
    }
}

impl Store for Servers {
    fn read(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Read>, Unreachable>> {
        async move {
            let Age { generation, .. } = self.memory().ok_or(Unreachable)?;
            self.way(generation).await?;
            let mut reads = Vec::with_capacity(keys.len());
            for key in keys {
                let value = self.get(&mut self.state(), &key);
                reads.push(Read { value, now: self.clock.now() });
                // The keys of a call stand at different moments.
                let apart = self.state().faults && self.clock.one_in(4);
                if apart {
                    self.way(generation).await?;
                }
            }
            self.way(generation).await?;
            Ok(reads)
        }
        .boxed()
    }

    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Vec<Written>, Unreachable>> {
        async move {
            let Age { generation, .. } = self.memory().ok_or(Unreachable)?;
            let mut written = Vec::with_capacity(writes.len());
            self.way(generation).await?;
            for write in writes {
                written.push(self.change(write));
            }
            self.way(generation).await?;
            Ok(written)
        }
        .boxed()
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<Vec<(Key, Read)>, Unreachable>> {
        async move {
            let Age { generation, .. } = self.memory().ok_or(Unreachable)?;
            self.way(generation).await?;
            let mut listed = self.listed(kind);
            // The order of a map is not the seed's.
            listed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            self.way(generation).await?;
            Ok(listed)
        }
        .boxed()
    }

    fn announcements(&self) -> broadcast::Receiver<Bytes> {
        self.announcements.subscribe()
    }

    fn memory(&self) -> Option<Age> {
        let (now, state) = (self.clock.now(), self.state());
        let age = Duration::from_millis(now - state.begun);
        (state.away_until <= now).then_some(Age { generation: state.generation, age })
    }
}

// The nodes, as far as registries hear of them.

struct Node {
    id: NodeId,
    source: IpAddr,
    instance: SessionId,
    since: Option<String>,
    sessions: BTreeMap<SessionId, Session>,
    /// What heartbeats have to tell: new or changed, ended, and what is left of a list that was asked for.
    changed: BTreeSet<SessionId>,
    ended: BTreeMap<SessionId, StreamName>,
    list: Option<BTreeSet<SessionId>>,
    audited: Option<SessionId>,
    /// Sessions that are to be pushed to other servers, and those that are.
    to_push: BTreeSet<SessionId>,
    pushed: BTreeMap<SessionId, StreamName>,
}

struct Session {
    name: StreamName,
    epoch: Option<u64>,
    /// Since when heartbeats are told that it owns its name, in which generation.
    owns: Option<(u64, u64)>,
}

/// Everything that a schedule is made of.
struct World {
    clock: Clock,
    store: Arc<Servers>,
    settings: Settings,
    registries: Vec<RefCell<(Arc<Registry>, broadcast::Receiver<Bytes>)>>,
    nodes: Vec<RefCell<Node>>,
    names: Vec<StreamName>,
    spawned: RefCell<Vec<Pin<Box<dyn Future<Output = ()>>>>>,
    /// Repeated calls that are under way.
    late: Cell<u32>,
    /// The last claim of a push.
    turn: Cell<u64>,
    over: Cell<bool>,
}

type Shared = Rc<World>;

impl World {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawned.borrow_mut().push(Box::pin(task));
    }

    fn registry(&self) -> Arc<Registry> {
        let index = self.clock.draw(self.registries.len() as u64) as usize;
        self.registries[index].borrow().0.clone()
    }

    fn session_id(&self) -> SessionId {
        format!("{:032x}", self.clock.lock().random.random::<u128>()).parse().unwrap()
    }

    /// A call of a node: nothing if it or its reply got lost. It may arrive once more, later.
    ///
    /// With the reply comes the generation of the store that it is from.
    async fn call<T, F>(self: &Rc<Self>, call: impl Fn(Arc<Registry>) -> F + 'static) -> Option<(T, u64)>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        let faults = self.store.state().faults;
        let generation = || self.store.state().generation;
        if !faults {
            return Some((call(self.registry()).await, generation()));
        }
        self.clock.sleep(self.clock.draw(WAY)).await;
        let repeated = self.clock.one_in(12);
        let lost = self.clock.one_in(12);
        let reply = if lost { None } else { Some((call(self.registry()).await, generation())) };
        if repeated {
            let world = self.clone();
            world.late.update(|late| late + 1);
            self.spawn(async move {
                world.clock.sleep(world.clock.draw(LATE)).await;
                call(world.registry()).await;
                world.late.update(|late| late - 1);
            });
        }
        self.clock.sleep(self.clock.draw(WAY)).await;
        reply.filter(|_| !self.clock.one_in(12))
    }

    /// A publisher comes to a node.
    async fn publish(self: Rc<Self>, node: usize, name: StreamName) {
        let session = self.session_id();
        let instance = self.nodes[node].borrow().instance;
        let claim = self.claim_of(node, &name, session);
        let mut epoch = None;
        for _ in 0..2 {
            let claim = claim.clone();
            let ask = move |registry: Arc<Registry>| {
                let claim = claim.clone();
                async move { registry.claim(claim).await }
            };
            match self.call(ask).await {
                Some((Ok(lease), _)) => {
                    epoch = Some(lease.epoch);
                    break;
                }
                // As in an outage: the publisher is let in, and heartbeats settle it.
                None | Some((Err(Error::Unavailable | Error::WarmingUp(_) | Error::Full(..)), _)) => {}
                Some((Err(_), _)) => return self.leave_behind(session, name).await,
            }
        }
        {
            let mut at = self.nodes[node].borrow_mut();
            if at.instance != instance {
                return;
            }
            at.sessions.insert(session, Session { name: name.clone(), epoch, owns: None });
            at.changed.insert(session);
        }
        if self.clock.one_in(2) {
            self.spawn(self.clone().push_on(node, name.clone(), session));
        }
        if self.clock.one_in(2) {
            self.clock.sleep(500 + self.clock.draw(1500)).await;
            self.renew(node, name, session).await;
        }
    }

    /// A publish is pushed to other servers for as long as it lasts, sometimes with a pause.
    async fn push_on(self: Rc<Self>, index: usize, name: StreamName, session: SessionId) {
        let instance = self.nodes[index].borrow().instance;
        self.nodes[index].borrow_mut().to_push.insert(session);
        let here = |world: &World| {
            let node = world.nodes[index].borrow();
            (node.instance == instance, node.sessions.contains_key(&session))
        };
        while here(&self) == (true, true) {
            self.turn.update(|turn| turn + 1);
            let turn = self.turn.get();
            if self.let_push(index, &name, session, turn).await {
                let pause = self.clock.one_in(4);
                self.push(index, &name, session, instance, pause).await;
            }
            if here(&self).0 {
                let release = PushRelease { stream_name: name.clone(), session, turn };
                self.release_push(release).await;
            }
        }
    }

    /// Asks until it may push; false if its publish is over before.
    async fn let_push(
        self: &Rc<Self>,
        index: usize,
        name: &StreamName,
        session: SessionId,
        turn: u64,
    ) -> bool {
        let (node, instance) = {
            let node = self.nodes[index].borrow();
            (node.id.clone(), node.instance)
        };
        let claim = PushClaim { stream_name: name.clone(), session, node: node.clone(), instance, turn };
        loop {
            let ask = {
                let claim = claim.clone();
                move |registry: Arc<Registry>| {
                    let claim = claim.clone();
                    async move { registry.claim_push(claim).await }
                }
            };
            let generation = self.store.state().generation;
            let answer = self.call(ask).await;
            self.clock.tell(|| format!("push of {session} at {node}: {answer:?}"));
            {
                let mut at = self.nodes[index].borrow_mut();
                if at.instance != instance || !at.sessions.contains_key(&session) {
                    return false;
                }
                if let Some((Ok(()), _)) = answer {
                    at.pushed.insert(session, name.clone());
                    let now = self.clock.now();
                    let (name, since, named) = (name.clone(), now, now);
                    let push = Push { name, node, instance, since, generation, named };
                    self.store.state().pushes.insert(session, push);
                    return true;
                }
            }
            // Also if it has lost its name: then a heartbeat will hear of it.
            self.clock.sleep(30 + self.clock.draw(60)).await;
        }
    }

    /// Pushes until the publish is over, or a pause comes, and for a moment more: what is on its way has to arrive.
    async fn push(
        &self,
        index: usize,
        name: &StreamName,
        session: SessionId,
        instance: SessionId,
        pause: bool,
    ) {
        let until = if pause { self.clock.now() + self.clock.draw(800) } else { u64::MAX };
        while self.clock.now() < until && self.nodes[index].borrow().sessions.contains_key(&session) {
            self.clock.sleep(40).await;
        }
        self.clock.sleep(self.clock.draw(300)).await;
        let mut node = self.nodes[index].borrow_mut();
        if node.instance == instance {
            node.pushed.remove(&session);
            self.store.state().pushes.remove(&session);
            self.clock.tell(|| format!("push of {session} of {name} has ended"));
        }
    }

    async fn release_push(self: &Rc<Self>, release: PushRelease) {
        let tell = move |registry: Arc<Registry>| {
            let release = release.clone();
            async move { registry.release_push(release).await }
        };
        for _ in 0..2 {
            if let Some((Ok(()), _)) = self.call(tell.clone()).await {
                return;
            }
        }
    }

    /// A lookup of a publisher that is there for a while.
    async fn renew(self: &Rc<Self>, node: usize, name: StreamName, session: SessionId) {
        if !self.nodes[node].borrow().sessions.contains_key(&session) {
            return;
        }
        let claim = self.claim_of(node, &name, session);
        let ask = move |registry: Arc<Registry>| {
            let claim = claim.clone();
            async move { registry.claim(claim).await }
        };
        match self.call(ask).await {
            Some((Ok(lease), _)) => {
                if let Some(session) = self.nodes[node].borrow_mut().sessions.get_mut(&session) {
                    session.epoch = session.epoch.max(Some(lease.epoch));
                }
            }
            Some((
                Err(Error::Superseded(_) | Error::Taken(..) | Error::Foreign(_) | Error::HeldDown { .. }),
                _,
            )) => {
                self.clone().leave(node, session).await;
            }
            _ => {}
        }
    }

    fn claim_of(&self, node: usize, name: &StreamName, session: SessionId) -> Claim {
        let node = self.nodes[node].borrow();
        Claim {
            name: name.clone(),
            session: Some(session),
            node: Some(node.id.clone()),
            origin: Origin::from_ip(node.source, 1935),
            source: node.source,
            identity: identity_of(session),
        }
    }

    /// A publisher leaves, or is closed.
    async fn leave(self: Rc<Self>, node: usize, session: SessionId) {
        let name = {
            let mut node = self.nodes[node].borrow_mut();
            let Some(Session { name, .. }) = node.sessions.remove(&session) else { return };
            node.changed.remove(&session);
            if let Some(list) = &mut node.list {
                list.remove(&session);
            }
            node.ended.insert(session, name.clone());
            name
        };
        self.leave_behind(session, name).await;
    }

    /// Tells that a session is over.
    async fn leave_behind(self: Rc<Self>, session: SessionId, name: StreamName) {
        let tell = move |registry: Arc<Registry>| {
            let name = name.clone();
            async move { registry.release(name, session).await }
        };
        for _ in 0..2 {
            if let Some((Ok(_), _)) = self.call(tell.clone()).await {
                return;
            }
        }
    }

    /// The process of a node ends without a word, and another one begins under its name.
    fn crash(self: &Rc<Self>, index: usize) {
        let instance = self.session_id();
        self.clock.tell(|| format!("n{index} crashes"));
        let mut node = self.nodes[index].borrow_mut();
        let (id, source) = (node.id.clone(), node.source);
        self.store.state().pushes.retain(|_, push| push.node != id);
        *node = Node::new(id, source, instance);
        drop(node);
        self.spawn(self.clone().beat_on(index, instance));
    }

    async fn beat_on(self: Rc<Self>, index: usize, instance: SessionId) {
        while self.nodes[index].borrow().instance == instance {
            let heartbeat = self.nodes[index].borrow_mut().heartbeat();
            let (id, source) = {
                let node = self.nodes[index].borrow();
                (node.id.clone(), node.source)
            };
            let (sent, sent_at) = (heartbeat.clone(), self.clock.now());
            let tell = move |registry: Arc<Registry>| {
                let (id, heartbeat) = (id.clone(), heartbeat.clone());
                async move { registry.heartbeat(id, heartbeat, source).await }
            };
            let reply = self.call(tell).await;
            self.clock.tell(|| format!("n{index} says {sent:?}, hears {reply:?}"));
            if self.nodes[index].borrow().instance != instance {
                return;
            }
            if let Some((Ok(reply), generation)) = reply {
                if !reply.since.is_empty() && !reply.want_all {
                    self.named(&sent, sent_at);
                }
                self.heard(index, &sent, reply, generation);
            }
            let hurry = {
                let node = self.nodes[index].borrow();
                node.list.is_some() || !node.changed.is_empty()
            };
            let most = if hurry { 100 } else { INTERVAL };
            self.clock.sleep(most * 9 / 10 + self.clock.draw(most / 5)).await;
        }
    }

    /// A heartbeat that was taken in has named what is pushed.
    fn named(&self, sent: &Heartbeat, at: u64) {
        let mut state = self.store.state();
        let published = sent.streams.iter().filter(|stream| stream.pushing).map(|stream| stream.session);
        for session in published.chain(sent.still_pushing.iter().map(|gone| gone.session)) {
            if let Some(push) = state.pushes.get_mut(&session) {
                push.named = push.named.max(at);
            }
        }
    }

    /// A heartbeat was answered.
    fn heard(self: &Rc<Self>, index: usize, sent: &Heartbeat, reply: HeartbeatReply, generation: u64) {
        let now = self.clock.now();
        let mut node = self.nodes[index].borrow_mut();
        node.since = Some(reply.since.clone());
        for PublishedStream { session, epoch, .. } in &sent.streams {
            if node.sessions.get(session).is_some_and(|now| now.epoch == *epoch) {
                node.changed.remove(session);
            }
            if let Some(list) = &mut node.list {
                list.remove(session);
            }
        }
        sent.ended.iter().for_each(|ended| drop(node.ended.remove(&ended.session)));
        if sent.complete {
            node.list = None;
        }
        if reply.want_all {
            node.list = Some(node.sessions.keys().copied().collect());
        }
        // In an outage the reply says what was known, and nothing of the store as it is.
        let certain = !reply.since.is_empty();
        for PublishedStream { session, epoch, .. } in reply.owned {
            if let Some(session) = node.sessions.get_mut(&session) {
                session.epoch = session.epoch.max(epoch);
                if certain && session.owns.is_none_or(|(_, of)| of != generation) {
                    session.owns = Some((now, generation));
                }
            }
        }
        drop(node);
        for PublisherRelease { session, .. } in reply.superseded {
            self.spawn(self.clone().leave(index, session));
        }
    }
}

impl Node {
    fn new(id: NodeId, source: IpAddr, instance: SessionId) -> Self {
        Node {
            id,
            source,
            instance,
            since: None,
            sessions: BTreeMap::new(),
            changed: BTreeSet::new(),
            ended: BTreeMap::new(),
            list: None,
            audited: None,
            to_push: BTreeSet::new(),
            pushed: BTreeMap::new(),
        }
    }

    fn heartbeat(&mut self) -> Heartbeat {
        let mut named = self.changed.clone();
        let mut complete = false;
        if let Some(list) = &self.list {
            let piece: Vec<_> = list.iter().copied().take(PIECE).collect();
            complete = piece.len() == list.len();
            named.extend(piece);
        } else {
            let after = |session: &&SessionId| self.audited.is_none_or(|last| **session > last);
            let next: Vec<_> = self.sessions.keys().filter(after).copied().take(AUDITED).collect();
            self.audited = next.last().copied();
            named.extend(next);
        }
        named.extend(self.pushed.keys());
        let gone = self.pushed.iter().filter(|(session, _)| !self.sessions.contains_key(session));
        let stream = |session: SessionId| {
            let Session { name, epoch, .. } = self.sessions.get(&session)?;
            let (stream_name, epoch) = (name.clone(), *epoch);
            let identity = identity_of(session);
            let pushing = self.pushed.contains_key(&session);
            Some(PublishedStream { stream_name, session, epoch, identity, pushing })
        };
        let ended = |(session, name): (&SessionId, &StreamName)| PublisherRelease {
            stream_name: name.clone(),
            session: *session,
        };
        Heartbeat {
            interval_ms: INTERVAL,
            instance: Some(self.instance),
            since: self.since.clone(),
            published: self.sessions.len() as u64,
            streams: named.into_iter().filter_map(stream).collect(),
            ended: self.ended.iter().map(ended).collect(),
            still_pushing: gone.map(ended).collect(),
            complete,
            ..Heartbeat::default()
        }
    }
}

/// One of two people.
fn identity_of(session: SessionId) -> Option<Identity> {
    let person = if session.to_string().ends_with(['0', '1', '2', '3']) { "one" } else { "two" };
    Some(Identity::of("sub", person))
}

// A schedule.

struct Schedule {
    world: Shared,
    tasks: Vec<Option<Pin<Box<dyn Future<Output = ()>>>>>,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let time = Time {
            now: 1_000_000,
            random: SmallRng::seed_from_u64(seed),
            task: 0,
            waiting: BinaryHeap::new(),
            order: 0,
            told: std::env::var_os("LB_SIMULATION_SEED").is_some(),
        };
        let clock = Clock(Arc::new(Mutex::new(time)));
        let policy = match clock.draw(3) {
            0 => Policy::FirstWins,
            1 => Policy::SameIdentity,
            _ => Policy::Takeover,
        };
        // A store that has just begun, or one that has been there for long.
        let begun = clock.now() - clock.draw(2) * WARM_UP;
        let guards = policy == Policy::SameIdentity;
        let state = State { begun, generation: 1, faults: true, guards, ..State::default() };
        let store = Arc::new(Servers {
            clock: clock.clone(),
            state: Mutex::new(state),
            announcements: broadcast::Sender::new(256),
        });
        let settings = Settings {
            policy,
            lease: Duration::from_millis(LEASE),
            warm_up: Duration::from_millis(WARM_UP),
            ..Settings::default()
        };
        let registry =
            || RefCell::new((Arc::new(Registry::new(store.clone(), settings)), store.announcements()));
        let registries = (0..1 + clock.draw(2)).map(|_| registry()).collect();
        let node = |index: u64| {
            let id = format!("n{index}").parse().unwrap();
            let source = Ipv4Addr::new(10, 0, 0, index as u8 + 1).into();
            let instance = format!("{index:032x}").parse().unwrap();
            RefCell::new(Node::new(id, source, instance))
        };
        let nodes = (0..2 + clock.draw(2)).map(node).collect();
        let names = (0..1 + clock.draw(3)).map(|index| format!("s{index}").parse().unwrap()).collect();
        let world = World {
            clock,
            store,
            settings,
            registries,
            nodes,
            names,
            spawned: RefCell::default(),
            late: Cell::new(0),
            turn: Cell::new(0),
            over: Cell::new(false),
        };
        Schedule { world: Rc::new(world), tasks: Vec::new() }
    }

    fn run(mut self) {
        let world = self.world.clone();
        let begin = world.clock.now();
        for index in 0..world.nodes.len() {
            let instance = world.nodes[index].borrow().instance;
            world.spawn(world.clone().beat_on(index, instance));
        }
        for index in 0..world.registries.len() {
            world.spawn(look_after(world.clone(), index));
        }
        world.spawn(watch(world.clone()));
        world.spawn(disturb(world.clone(), begin + CHAOS));
        self.run_until(begin + CHAOS);
        world.store.state().faults = false;
        // What is under way may still arrive. Then it has to stay as it is.
        let mut settled = false;
        loop {
            let now = world.clock.now();
            self.run_until(now + INTERVAL);
            let unsettled =
                if world.late.get() > 0 { Some("calls are late".to_owned()) } else { self.unsettled() };
            if settled && unsettled.is_none() {
                break;
            }
            settled = unsettled.is_none();
            assert!(now < begin + CHAOS + CALM, "not settled: {}", unsettled.unwrap_or_default());
        }
        world.over.set(true);
    }

    fn run_until(&mut self, end: u64) {
        loop {
            let spawned: Vec<_> = self.world.spawned.borrow_mut().drain(..).collect();
            let none = spawned.is_empty();
            for task in spawned {
                self.tasks.push(Some(task));
                self.poll(self.tasks.len() - 1);
            }
            if !none {
                continue;
            }
            let mut time = self.world.clock.lock();
            match time.waiting.peek() {
                Some(Reverse((at, _, task))) if *at <= end => {
                    let (at, task) = (*at, *task);
                    time.waiting.pop();
                    time.now = at;
                    drop(time);
                    self.poll(task);
                }
                _ => {
                    time.now = end;
                    return;
                }
            }
        }
    }

    fn poll(&mut self, index: usize) {
        self.world.clock.lock().task = index;
        let Some(task) = &mut self.tasks[index] else { return };
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            self.tasks[index] = None;
        }
    }

    /// What is not as it must be at rest.
    fn unsettled(&self) -> Option<String> {
        let world = &self.world;
        for name in &world.names {
            let mut live = Vec::new();
            for node in &world.nodes {
                let node = node.borrow();
                let of_name = node.sessions.iter().filter(|(_, session)| session.name == *name);
                live.extend(of_name.map(|(id, session)| (*id, session.epoch, node.id.clone())));
                let waits = |session: &&SessionId| {
                    node.sessions.contains_key(session) && !node.pushed.contains_key(session)
                };
                if let Some(session) = node.to_push.iter().find(waits) {
                    return Some(format!("{session} wants to push"));
                }
            }
            if live.len() > 1 {
                return Some(format!("several sessions of {name} think that they own it: {live:?}"));
            }
            let expected = live.pop();
            for registry in &world.registries {
                let registry = registry.borrow().0.clone();
                let owner =
                    registry.owner(name.clone()).now_or_never().expect("without faults nothing waits");
                let owner = match owner {
                    Ok(owner) => owner,
                    Err(error) => return Some(format!("{name}: {error}")),
                };
                if registry.status() != Status::Whole {
                    return Some(format!("{:?}", registry.status()));
                }
                let owner =
                    owner.map(|lease| (lease.session.unwrap(), Some(lease.epoch), lease.node.unwrap()));
                if owner != expected {
                    return Some(format!("{name} is {expected:?}, a registry says {owner:?}"));
                }
            }
        }
        None
    }
}

/// Sweeps, and passes announcements on, late.
async fn look_after(world: Shared, index: usize) {
    while !world.over.get() {
        let registry = world.registries[index].borrow().0.clone();
        registry.sweep().await;
        for _ in 0..SWEEP / 100 {
            world.clock.sleep(100).await;
            loop {
                let next = world.registries[index].borrow_mut().1.try_recv();
                match next {
                    Ok(announcement) => world.registries[index].borrow().0.hear(&announcement),
                    Err(broadcast::error::TryRecvError::Lagged(_)) => {
                        world.registries[index].borrow().0.hear(&[]);
                    }
                    Err(_) => break,
                }
            }
        }
    }
}

/// Asks for names, and never accepts that one is not there that surely is.
async fn watch(world: Shared) {
    while !world.over.get() {
        world.clock.sleep(world.clock.draw(250)).await;
        let name = world.names[world.clock.draw(world.names.len() as u64) as usize].clone();
        let begun = world.clock.now();
        let answer = world.registry().owner(name.clone()).await;
        if answer == Ok(None) {
            check_denial(&world, &name, begun);
        }
    }
}

/// A name was denied: no session may have owned it since before the lookup began, told so in this generation of the store,
/// on a node that was heard all the time.
fn check_denial(world: &Shared, name: &StreamName, begun: u64) {
    let state = world.store.state();
    let Some((session, taken)) = state.taken.get(name) else { return };
    for node in &world.nodes {
        let node = node.borrow();
        let there = state.there_since.get(&node.id).copied();
        if let (Some(Session { owns: Some((since, generation)), .. }), Some(there)) =
            (node.sessions.get(session), there)
        {
            // What it was told before its node fell silent for too long counts no more.
            let sure = *generation == state.generation && *since >= there && *since.max(taken) < begun;
            assert!(!sure, "{name} was denied, but {session} owns it since {since}, asked at {begun}");
        }
    }
}

/// Publishers come and go, processes end, the store fails over.
async fn disturb(world: Shared, end: u64) {
    let pick = |of: usize| world.clock.draw(of as u64) as usize;
    loop {
        world.clock.sleep(world.clock.draw(200)).await;
        if world.clock.now() >= end {
            return;
        }
        let (node, name) = (pick(world.nodes.len()), world.names[pick(world.names.len())].clone());
        match pick(20) {
            0 => world.crash(node),
            1 => {
                // Some of the last writes, or everything.
                let lost = [0, 100, 500, CHAOS + CALM][pick(4)];
                world.store.fail_over(lost, world.clock.draw(300));
            }
            2 | 3 => {
                let at = &world.registries[pick(world.registries.len())];
                let registry = Registry::new(world.store.clone(), world.settings);
                at.borrow_mut().0 = Arc::new(registry);
            }
            4..9 => {
                let session = world.nodes[node].borrow().sessions.keys().next().copied();
                if let Some(session) = session {
                    world.spawn(world.clone().leave(node, session));
                }
            }
            _ => world.spawn(world.clone().publish(node, name)),
        }
    }
}
