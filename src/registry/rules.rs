//! Who owns a stream name: the rules, as pure functions. A record, what is known of the nodes, a call and the time go in; the
//! new record, the change to announce and the reply come out.
//!
//! ```text
//!                 claim, restore                 heartbeat lists it
//!      ┌──────┐ ───────────────▶ ┌────────┐ ─────────────────────────▶ ┌────────┐
//!      │ free │                  │ leased │                            │ listed │
//!      └──────┘ ◀─────────────── └────────┘ ◀───────────────────────── └────────┘
//!          ▲    release, ended,      ▲ │      takeover by another session   │
//!          │    sign-off             │ │ lease over              node gone, │
//!          │                         │ ▼                       not in its new list
//!          │                     ┌────────┐                                 │
//!          └───── any other ──── │ lapsed │ ◀───────────────────────────────┘
//!                 session takes  └────────┘ ── its own session comes back ──▶ leased, listed
//!                 the name
//! ```
//!
//! **Leased**: until a time; renewed by claims. **Listed**: for as long as the record of its node is there and its list is the
//! one that names the stream; one write of one record renews all streams of a node. **Lapsed** is as good as free, but its
//! session is recognised when it comes back. A record outlives its owner by [`ENDED_MEMORY`].
//!
//! **Takeover** ([`claim`], [`restore`]). The newest session wins, unless [`Policy::FirstWins`] protects the owner,
//! [`Policy::SameIdentity`] does against everybody else than itself, or the hold-down does: from the `TAKEOVERS_FREE`th takeover in a row on, nobody may take the name for a while. An owner whose
//! node is draining is found, but neither protects it.
//!
//! **Epochs** count per name and only rise. A new session takes the next one. Of two sessions that are restored (a store
//! lost its memory and hears of them in heartbeats) the higher epoch wins, whichever is heard first; of equal ones (given
//! out apart from each other) the greater session id. A session that claimed its name in this generation of the store is
//! newer than any with an epoch that this generation did not give out: its own is lifted above. A session without an epoch
//! (published while no reactor was reached) counts as newly arrived. With [`Policy::FirstWins`] a name that is claimed while
//! the store warms up goes to who claims it first, and back to a session that was there before if one is restored; with
//! [`Policy::SameIdentity`] likewise, if the two are different people's.
//!
//! **Ended sessions** never come back: released, superseded, or told that they lost. An owner without a session (plain
//! mmids) is known by its address; one that lost its name is told so once, and what it claims after that is a new publish.

use super::hold_down::HoldDown;
use super::millis::millis;
use super::record::{Claimant, ENDED_MEMORY, Listed, NodeRecord, Owner, StreamRecord};
use super::{Claim, Error, Lease, Policy, Settings};
use crate::api::{AUDIT_STREAMS, Change, Heartbeat, PublishedStream};
use crate::ids::{Identity, NodeId, Origin, SessionId, StreamName};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// The greatest epoch above what its record knows that a heartbeat is believed: one publish a second for 136 years. Real
/// epochs are below, so a store that lost everything restores them; and no heartbeat leads to where the epochs of later
/// sessions could not go on: above it they still rise by one with each session, and have 2^63 to go.
pub(super) const RESTORED_EPOCH_MAX: u64 = 1 << 32;

/// How many heartbeats may stay away before a node has lost its streams.
const SILENT_INTERVALS: u32 = 3;

/// The shortest heartbeat interval that is believed; what is below is taken as this.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The longest heartbeat interval that is believed, so that no node keeps its streams for hours after it died.
const INTERVAL_MAX: Duration = Duration::from_secs(60);

/// How long a listed stream is believed that its node does not name again, at least. It heals what no list and no ended
/// session would: a stream that was listed by a call that arrived too late.
const LISTED_LEASE_MIN: Duration = Duration::from_secs(3600);

/// The records of nodes that a decision is about; one that is missing has none.
pub(super) type Nodes = HashMap<NodeId, Option<HeardNode>>;

/// A node that is heard.
#[derive(Clone, Debug)]
pub(super) struct HeardNode {
    pub record: NodeRecord,
    /// Milliseconds until it is dead unless it is heard.
    pub left: u64,
}

/// What a decision rests on, besides the record and the call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene<'a> {
    pub settings: &'a Settings,
    /// On the clock of the server that keeps the stream's record.
    pub now: u64,
    /// Of the store's memory.
    pub generation: u64,
    /// How long names may exist that the store has not heard of yet.
    pub warming_up: Option<Duration>,
    /// There is room for one more stream with an owner.
    pub room: bool,
    /// There is room for one more record of a name without an owner.
    pub spare: bool,
    pub nodes: &'a Nodes,
}

/// What is to be done to a record, and what the caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision<T> {
    /// What the record becomes; nothing: it stays as it is.
    pub record: Option<StreamRecord>,
    /// What everybody hears if it becomes that.
    pub change: Option<Change>,
    /// The name went from one living owner to another.
    pub takeover: bool,
    pub reply: T,
}

/// What became of a stream in a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restored {
    /// It owns its name, with this epoch.
    Owned(u64),
    Superseded,
    /// Neither: there is no room, or the true owner may not have been heard of yet. It may be told another time.
    LeftOut,
}

/// The process of a node that speaks in a heartbeat.
#[derive(Clone, Debug)]
pub(super) struct Speaker<'a> {
    pub node: &'a NodeId,
    pub record: &'a NodeRecord,
}

/// Who takes a name.
#[derive(Clone, Copy)]
struct Newcomer<'a> {
    id: Claimant,
    identity: Option<Identity>,
    origin: &'a Origin,
}

/// A record while it is decided about.
struct Draft<'a> {
    name: &'a StreamName,
    before: &'a StreamRecord,
    record: StreamRecord,
    change: Option<Change>,
    takeover: bool,
}

/// Takes a name for a new publish, or renews the lease of its owner.
pub(super) fn claim(claim: &Claim, record: &StreamRecord, scene: &Scene) -> Decision<Result<Lease, Error>> {
    let mut draft = Draft::of(&claim.name, record);
    let reply = draft.claim(claim, scene).map(|()| draft.lease(scene)).and_then(|lease| {
        // A lease that was taken a moment ago is not over.
        lease.ok_or_else(|| Error::Superseded(claim.name.clone()))
    });
    draft.decision(reply)
}

/// Ends a publish. Says whether it owned the name.
pub(super) fn release(
    name: &StreamName,
    session: SessionId,
    record: &StreamRecord,
    scene: &Scene,
) -> Decision<bool> {
    let (mut draft, id) = (Draft::of(name, record), Claimant::Session(session));
    let owned = draft.owner(scene).is_some_and(|owner| owner.id == id);
    if record.owner.as_ref().is_some_and(|owner| owner.id == id) {
        draft.end();
        draft.record.owner = None;
    }
    // Also when it owns nothing here: its claim may still be under way.
    let unknown = *record == StreamRecord::default();
    if !record.has_ended(id, scene.now) && (!unknown || scene.spare) {
        draft.record.remember_ended(id, scene.now, ENDED_MEMORY);
    }
    draft.decision(owned)
}

/// A stream that a heartbeat lists: renews it, or restores it in a store that does not know it.
pub(super) fn restore(
    stream: &PublishedStream,
    speaker: &Speaker,
    record: &StreamRecord,
    scene: &Scene,
) -> Decision<Restored> {
    let mut draft = Draft::of(&stream.stream_name, record);
    let reply = draft.restore(stream, speaker, scene);
    if reply == Restored::Superseded {
        let id = Claimant::Session(stream.session);
        if !record.has_ended(id, scene.now) {
            draft.record.remember_ended(id, scene.now, ENDED_MEMORY);
        }
    }
    draft.decision(reply)
}

/// Ends an owner whose lease is over or whose node is gone.
pub(super) fn lapse(name: &StreamName, record: &StreamRecord, scene: &Scene) -> Decision<bool> {
    let mut draft = Draft::of(name, record);
    let over = record.is_owned() && draft.owner(scene).is_none();
    if over {
        draft.end();
    }
    draft.decision(over)
}

/// Ends an owner that is published on a node that signs off: one of its process, or any without a process being named.
pub(super) fn sign_off(
    name: &StreamName,
    node: &NodeId,
    instance: Option<SessionId>,
    record: &StreamRecord,
    scene: &Scene,
) -> Decision<()> {
    let mut draft = Draft::of(name, record);
    if let Some(owner) = record.owner.as_ref().filter(|owner| !owner.lapsed && is_of(owner, node, instance)) {
        draft.end();
        // The publishes of a process end with it. Without one this is somebody else's wish, and the node may live.
        if instance.is_some() {
            draft.record.owner = None;
            draft.record.remember_ended(owner.id, scene.now, ENDED_MEMORY);
        }
    }
    draft.decision(())
}

/// Whether an owner is published on a node, and there listed by a process if one is named.
pub(super) fn is_of(owner: &Owner, node: &NodeId, instance: Option<SessionId>) -> bool {
    let of_process = instance.is_none_or(|of| owner.listed.is_some_and(|listed| listed.instance == of));
    owner.node.as_ref() == Some(node) && of_process
}

/// The owner of a name.
pub(super) fn owner(name: &StreamName, record: &StreamRecord, scene: &Scene) -> Option<Lease> {
    Draft::of(name, record).lease(scene)
}

/// What became of a node's record in a heartbeat.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heard {
    /// What it becomes: before the streams are taken in.
    pub record: NodeRecord,
    /// What the node carries in its next heartbeat.
    pub since: String,
    /// The streams are taken in. Not so those of a process that has still to show that it is the one that lives.
    pub taken: bool,
    /// When the streams have been taken in, its list is complete.
    pub completes: bool,
    /// The rest of the list is not known: a new list begins.
    pub want_all: bool,
}

/// Takes in what a heartbeat says of the node itself. `heartbeat` comes without its streams; `listed` says whether it had
/// any.
///
/// Calls may be late: one of an earlier process must not displace its successor, and one that was overtaken must not pass
/// for a new list without streams. Both are told by [`Heartbeat::since`]: only who names a list has heard that it begins.
///
/// Errors: [`Error::Replaced`].
pub(super) fn heartbeat(
    node: &NodeId,
    heartbeat: Heartbeat,
    listed: bool,
    source: IpAddr,
    record: Option<&NodeRecord>,
    scene: &Scene,
) -> Result<Heard, Error> {
    let origin = heartbeat_origin(&heartbeat, source);
    let mut next = NodeRecord::new(heartbeat, origin, scene.now);
    next.generation = scene.generation;
    next.lease = millis(heartbeat_lease(&next.heartbeat));
    let mut goes_on = false;
    if let Some(record) = record {
        next.former.clone_from(&record.former);
        next.round = scene.now.max(record.round.saturating_add(1));
        let named = next.heartbeat.since.take();
        let names = |list: Option<Listed>| list.filter(|list| named.as_ref() == Some(&since(*list)));
        if record.instance == next.instance {
            next.candidate = record.candidate;
            // Where the node can be pulled from stands in the record of each of its streams.
            let same = record.generation == next.generation && record.origin == next.origin;
            goes_on = same && names(record.listed()).is_some();
            if goes_on {
                (next.round, next.complete) = (record.round, record.complete);
            }
        } else {
            match names(record.candidate).filter(|list| list.generation == next.generation) {
                Some(list) if Some(list.instance) == next.instance => {
                    (goes_on, next.round) = (true, list.round);
                    record.instance.into_iter().for_each(|former| next.remember_former(former));
                }
                _ => return ask(node, next, record),
            }
        }
    }
    let ends = next.instance.is_none() || (goes_on && next.heartbeat.complete);
    // With nothing to take in it is complete at once.
    next.complete |= ends && (!listed || next.instance.is_none());
    Ok(Heard {
        since: next.listed().map(since).unwrap_or_default(),
        taken: true,
        completes: ends && !next.complete,
        want_all: !goes_on && !ends,
        record: next,
    })
}

/// Asks a process that speaks under the name of another one for its list.
fn ask(node: &NodeId, next: NodeRecord, record: &NodeRecord) -> Result<Heard, Error> {
    let candidate = next.listed().filter(|list| !record.former.contains(&list.instance));
    let Some(mut list) = candidate else {
        return Err(Error::Replaced(node.clone()));
    };
    list.round = list.round.max(record.candidate.map_or(0, |earlier| earlier.round.saturating_add(1)));
    let mut record = record.clone();
    record.candidate = Some(list);
    Ok(Heard { record, since: since(list), taken: false, completes: false, want_all: true })
}

/// The word for a list.
fn since(list: Listed) -> String {
    format!("{:x}.{:x}", list.generation, list.round)
}

/// How long a node lives that is not heard.
fn heartbeat_lease(heartbeat: &Heartbeat) -> Duration {
    Duration::from_millis(heartbeat.interval_ms).clamp(INTERVAL_MIN, INTERVAL_MAX) * SILENT_INTERVALS
}

/// Where the streams of a node can be pulled from.
fn heartbeat_origin(heartbeat: &Heartbeat, source: IpAddr) -> Origin {
    crate::api::origin(heartbeat.origin.as_ref(), source, heartbeat.rtmp_port, heartbeat.rtmps_port)
}

/// How long a listed stream is believed that is not named again: four rounds of the audit.
fn listed_lease(node: &NodeRecord) -> Duration {
    let rounds = u32::try_from(node.heartbeat.published / AUDIT_STREAMS as u64 + 1).unwrap_or(u32::MAX);
    let interval = Duration::from_millis(node.heartbeat.interval_ms).min(INTERVAL_MAX);
    LISTED_LEASE_MIN.max(interval.saturating_mul(rounds).saturating_mul(4))
}

impl<'a> Draft<'a> {
    fn of(name: &'a StreamName, before: &'a StreamRecord) -> Self {
        Draft { name, before, record: before.clone(), change: None, takeover: false }
    }

    fn decision<T>(self, reply: T) -> Decision<T> {
        let Draft { before, record, change, takeover, .. } = self;
        Decision { record: (record != *before).then_some(record), change, takeover, reply }
    }

    /// The owner, if it is alive.
    fn owner(&self, scene: &Scene) -> Option<&Owner> {
        let kept = |listed| heard(self.record.owner.as_ref(), scene).is_some_and(|n| n.record.keeps(listed));
        let alive =
            |owner: &&Owner| !owner.lapsed && owner.until > scene.now && owner.listed.is_none_or(kept);
        self.record.owner.as_ref().filter(alive)
    }

    fn lease(&self, scene: &Scene) -> Option<Lease> {
        let owner = self.owner(scene)?;
        let node = heard(Some(owner), scene).filter(|_| owner.listed.is_some());
        let left = owner.until.saturating_sub(scene.now);
        Some(Lease {
            name: self.name.clone(),
            origin: owner.origin.clone(),
            session: owner.id.session(),
            epoch: self.record.epoch,
            node: owner.node.clone(),
            age: Duration::from_millis(scene.now.saturating_sub(owner.since)),
            remaining: Duration::from_millis(node.map_or(left, |node| node.left.min(left))),
        })
    }

    fn claim(&mut self, claim: &Claim, scene: &Scene) -> Result<(), Error> {
        let (name, now) = (self.name.clone(), scene.now);
        let id = claim.session.map_or(Claimant::Source(claim.source), Claimant::Session);
        let newcomer = Newcomer { id, identity: claim.identity, origin: &claim.origin };
        let ended = self.record.has_ended(id, now);
        if ended && claim.session.is_some() {
            return Err(Error::Superseded(name));
        }
        let claimed = Some(scene.generation);
        match self.owner(scene) {
            Some(owner) if owner.id == id => {}
            Some(owner) => {
                let (origin, leaves) = (owner.origin.clone(), is_draining(owner, scene));
                if ended {
                    self.record.ended.retain(|ended| ended.id != id);
                    return Err(Error::Superseded(name));
                }
                if is_foreign(owner, claim.identity, scene) {
                    return Err(Error::Foreign(name));
                }
                if !leaves && scene.settings.policy == Policy::FirstWins {
                    return Err(Error::Taken(name, origin));
                }
                if let Some(left) = self.record.hold_down.left(now).filter(|_| !leaves) {
                    return Err(Error::HeldDown { name, origin, left });
                }
                self.take(newcomer, None, claimed, scene);
            }
            None => {
                self.need_room(scene)?;
                self.record.ended.retain(|ended| ended.id != id);
                self.take(newcomer, None, claimed, scene);
                let early = scene.settings.policy != Policy::Takeover && scene.warming_up.is_some();
                self.record.owner.iter_mut().for_each(|owner| owner.early = early);
            }
        }
        let node = claim.node.as_ref().and_then(|node| scene.nodes.get(node)?.as_ref());
        let lease = node.map_or(millis(scene.settings.lease), |node| node.record.lease);
        self.renew(&claim.origin, claim.node.as_ref(), now.saturating_add(lease), None);
        Ok(())
    }

    fn restore(&mut self, stream: &PublishedStream, speaker: &Speaker, scene: &Scene) -> Restored {
        let (id, now) = (Claimant::Session(stream.session), scene.now);
        if self.record.has_ended(id, now) {
            return Restored::Superseded;
        }
        let believed = stream.epoch.filter(|epoch| *epoch <= self.record.epoch.max(RESTORED_EPOCH_MAX));
        let own = self.record.owner.as_ref().is_some_and(|owner| owner.id == id);
        let other = self.owner(scene).filter(|owner| owner.id != id).cloned();
        let first_wins = scene.settings.policy == Policy::FirstWins;
        match (&other, believed) {
            (Some(other), _) if !self.wins(stream, believed, other, scene) => return Restored::Superseded,
            (None, Some(epoch)) if !own && epoch < self.record.epoch => return Restored::Superseded,
            (None, None) if !own && first_wins && scene.warming_up.is_some() => return Restored::LeftOut,
            _ => {}
        }
        if other.is_none() && self.need_room(scene).is_err() {
            return Restored::LeftOut;
        }
        let origin = &speaker.record.origin;
        if !own {
            let claimed = believed.is_none().then_some(scene.generation);
            self.take(Newcomer { id, identity: stream.identity, origin }, believed, claimed, scene);
        } else if let Some(epoch) = believed.filter(|epoch| *epoch > self.record.epoch) {
            // What claimed the name was the renewal of an older publish.
            self.record.owner.iter_mut().for_each(|owner| owner.claimed = None);
            self.lift(epoch);
        }
        let node = speaker.record;
        let (lease, listed) = match node.listed() {
            Some(listed) => (millis(listed_lease(node)), Some(listed)),
            None => (node.lease, None),
        };
        self.renew(origin, Some(speaker.node), now.saturating_add(lease), listed);
        Restored::Owned(self.record.epoch)
    }

    /// Whether a session that is restored takes the name from a living owner.
    fn wins(
        &mut self,
        stream: &PublishedStream,
        believed: Option<u64>,
        other: &Owner,
        scene: &Scene,
    ) -> bool {
        let absurd = believed.is_none() && stream.epoch.is_some();
        let foreign = is_foreign(other, stream.identity, scene);
        let gives_way = other.early && (foreign || scene.settings.policy == Policy::FirstWins);
        match believed {
            _ if gives_way && scene.warming_up.is_some() && !absurd => true,
            Some(epoch) if epoch >= self.record.epoch && other.claimed == Some(scene.generation) => {
                self.lift(epoch + 1);
                false
            }
            Some(epoch) => (epoch, Some(stream.session)) > (self.record.epoch, other.id.session()),
            // An epoch that cannot be right beats nobody.
            None if absurd || foreign => false,
            None => {
                let held = self.record.hold_down.left(scene.now).is_some();
                is_draining(other, scene) || (scene.settings.policy != Policy::FirstWins && !held)
            }
        }
    }

    fn need_room(&self, scene: &Scene) -> Result<(), Error> {
        if scene.room || self.record.is_owned() {
            return Ok(());
        }
        Err(Error::Full(scene.settings.max_streams, "streams"))
    }

    /// Gives the name to another owner, whose lease is over at once unless it is renewed.
    fn take(
        &mut self,
        Newcomer { id, identity, origin }: Newcomer,
        epoch: Option<u64>,
        claimed: Option<u64>,
        scene: &Scene,
    ) {
        let now = scene.now;
        let alive = self.owner(scene).map(|owner| is_draining(owner, scene));
        match (self.record.owner.as_ref().map(|owner| owner.id), alive) {
            // Also one that was silent: it is older than whoever has come.
            (Some(former @ Claimant::Session(_)), _) if former != id => {
                self.record.remember_ended(former, now, ENDED_MEMORY);
            }
            // Long enough for the next time the old node asks again, and no longer: its address is all it is known by.
            (Some(former @ Claimant::Source(_)), Some(_)) => {
                self.record.remember_ended(former, now, scene.settings.lease);
            }
            _ => {}
        }
        match alive {
            Some(leaves) => {
                if !leaves {
                    self.record.hold_down.count(now);
                }
                self.takeover = true;
            }
            None => self.record.hold_down = HoldDown::default(),
        }
        // Of equal epochs the winner gets a higher one, so that nobody is taken for the other.
        let next = self.record.epoch.saturating_add(1);
        self.record.epoch = epoch.filter(|epoch| *epoch > self.record.epoch).unwrap_or(next);
        self.record.owner = Some(Owner {
            id,
            identity,
            origin: origin.clone(),
            node: None,
            since: now,
            until: now,
            listed: None,
            claimed,
            early: false,
            lapsed: false,
        });
        self.announce(Some(origin));
    }

    /// Renews the owner's lease, and notes where it is now. Writes nothing that is not worth it: a listed stream is kept by
    /// its node, and half of its own long lease has to be over.
    fn renew(&mut self, origin: &Origin, node: Option<&NodeId>, until: u64, listed: Option<Listed>) {
        let Some(owner) = &mut self.record.owner else {
            return;
        };
        let moved = owner.origin != *origin || owner.lapsed;
        owner.lapsed = false;
        owner.origin.clone_from(origin);
        owner.node = node.cloned().or(owner.node.take());
        match (owner.listed, listed) {
            // A claim of a listed stream adds nothing.
            (Some(_), None) => {}
            // A call that was overtaken by one of a later list.
            (Some(old), Some(new))
                if (old.instance, old.generation) == (new.instance, new.generation)
                    && old.round > new.round => {}
            (Some(old), Some(new)) if old == new && worth_keeping(owner.until, until) => {}
            _ => (owner.listed, owner.until) = (listed, until),
        }
        if moved && self.change.is_none() {
            let origin = origin.clone();
            self.announce(Some(&origin));
        }
    }

    fn lift(&mut self, epoch: u64) {
        self.record.epoch = epoch;
        let origin = self.record.owner.as_ref().map(|owner| owner.origin.clone());
        self.announce(origin.as_ref());
    }

    /// Ends the owner. Its session is kept as lapsed.
    fn end(&mut self) {
        if let Some(owner) = self.record.owner.as_mut().filter(|owner| !owner.lapsed) {
            owner.lapsed = true;
            self.announce(None);
        }
    }

    fn announce(&mut self, origin: Option<&Origin>) {
        let (stream_name, epoch) = (self.name.clone(), self.record.epoch);
        self.change = Some(Change { stream_name, origin: origin.cloned(), epoch });
    }
}

/// Whether more than half of a lease up to `until` is left.
fn worth_keeping(current: u64, until: u64) -> bool {
    // Both are counted from the same moment, so their difference is what has passed.
    until.saturating_sub(current) < millis(LISTED_LEASE_MIN) / 2
}

/// The node of an owner, if it is heard.
fn heard<'a>(owner: Option<&Owner>, scene: &Scene<'a>) -> Option<&'a HeardNode> {
    scene.nodes.get(owner?.node.as_ref()?)?.as_ref()
}

/// Whether a name belongs to somebody else than who wants it. Whoever publishes without an identity has nothing that protects
/// the name.
fn is_foreign(owner: &Owner, identity: Option<Identity>, scene: &Scene) -> bool {
    scene.settings.policy == Policy::SameIdentity && owner.identity.is_some() && owner.identity != identity
}

fn is_draining(owner: &Owner, scene: &Scene) -> bool {
    heard(Some(owner), scene).is_some_and(|node| node.record.heartbeat.draining)
}
