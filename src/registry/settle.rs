//! Read, decide, write: the loop around the rules for the records of streams.

use super::record::{NodeRecord, Owner, Pusher, Record, StreamRecord, Unreadable};
use super::rules::{self, Decision, HeardNode, Nodes, Scene};
use super::state::Registry;
use super::store::{Key, Read, Unreachable, Write, Written};
use crate::ids::{NodeId, StreamName};
use crate::telemetry::Seldom;
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

/// How often a decision begins again because somebody else wrote the record meanwhile. With each conflict one of those
/// who write has come through, so only as many reactors as this could keep one out.
const ROUNDS: usize = 16;

type Decide<'a, T> = dyn Fn(&StreamRecord, &Scene) -> Decision<T> + Send + Sync + 'a;

/// What is to be decided about the record of a name.
pub(super) struct Job<'a, T> {
    pub name: StreamName,
    pub decide: Box<Decide<'a, T>>,
}

impl<'a, T> Job<'a, T> {
    pub(super) fn new(
        name: StreamName,
        decide: impl Fn(&StreamRecord, &Scene) -> Decision<T> + Send + Sync + 'a,
    ) -> Self {
        Job { name, decide: Box::new(decide) }
    }
}

/// A record as it was read.
pub(super) struct Found {
    pub raw: Option<Bytes>,
    pub record: StreamRecord,
    pub now: u64,
}

impl Found {
    /// Errors: another version wrote it, or it is garbage.
    pub(super) fn of(read: Read) -> Result<Self, Unreadable> {
        let record = read.value.as_deref().map(StreamRecord::decode).transpose()?.unwrap_or_default();
        Ok(Found { raw: read.value, record, now: read.now })
    }
}

/// A job that is not done, and the record that it is about.
struct Open {
    job: usize,
    found: Found,
}

/// Why a job was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undone {
    /// The record cannot be read by this program.
    Unreadable,
    /// Others wrote it again and again.
    Conflicts,
}

/// What is known of nodes while jobs are done.
pub(super) struct Facts {
    pub nodes: Nodes,
    /// Nodes whose record was read before, or at the same time as, that of the stream: one that is missing there may have
    /// come with the stream.
    early: HashSet<NodeId>,
}

impl Facts {
    pub(super) fn new(nodes: Nodes) -> Self {
        Facts { nodes, early: HashSet::new() }
    }

    /// Adds nodes that were read together with the stream.
    pub(super) fn early(&mut self, nodes: impl Iterator<Item = (NodeId, Option<HeardNode>)>) {
        for (node, heard) in nodes {
            self.early.insert(node.clone());
            self.nodes.insert(node, heard);
        }
    }

    /// The stream was read again: what is known of nodes is older now.
    pub(super) fn all_early(&mut self) {
        self.early.extend(self.nodes.keys().cloned());
    }

    /// The node whose record has to be read before anything is said about a stream's owner.
    pub(super) fn needed(&self, record: &StreamRecord) -> Option<NodeId> {
        let owner = record.owner.as_ref().filter(|owner| !owner.lapsed)?;
        let node = owner.node.as_ref()?;
        let Some(known) = self.nodes.get(node) else {
            return Some(node.clone());
        };
        let kept = |listed| known.as_ref().is_some_and(|known| known.record.keeps(listed));
        let doubtful = self.early.contains(node) && owner.listed.is_some_and(|listed| !kept(listed));
        doubtful.then(|| node.clone())
    }

    /// The node whose record has to be read before anything is said about who pushes a stream.
    fn needed_of_pusher(&self, record: &StreamRecord) -> Option<NodeId> {
        let Pusher { node, instance, .. } = record.pusher.as_ref()?;
        let Some(known) = self.nodes.get(node) else {
            return Some(node.clone());
        };
        let runs = known.as_ref().is_some_and(|known| known.record.instance == Some(*instance));
        (self.early.contains(node) && !runs).then(|| node.clone())
    }
}

impl Registry {
    /// Does jobs, in the order of which the replies come. At most three calls of the store if nobody else writes the same
    /// records: `read_too` are nodes that will be needed, which saves the second. Nothing in `nodes` is read again.
    pub(super) async fn settle<T>(
        &self,
        jobs: &[Job<'_, T>],
        nodes: Nodes,
        read_too: Vec<NodeId>,
    ) -> Result<Vec<Result<T, Undone>>, Unreachable> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let generation = self.store().memory().ok_or(Unreachable)?.generation;
        let (mut facts, mut open, mut replies) = self.first_read(jobs, nodes, read_too).await?;
        for _ in 0..ROUNDS {
            self.read_nodes(&mut facts, &open).await?;
            let mut writes = Vec::new();
            let mut written = Vec::new();
            for Open { job, found } in open.drain(..) {
                let Some(Job { name, decide }) = jobs.get(job) else { continue };
                let scene = self.scene(found.now, generation, &facts.nodes);
                let decision = decide(&found.record, &scene);
                let after = decision.record.as_ref().unwrap_or(&found.record);
                if decision.record.is_none() {
                    self.saw(name, after, &scene);
                    set(&mut replies, job, Ok(decision.reply));
                    continue;
                }
                match self.write_of(name, &found, &decision, &scene) {
                    Ok(write) => {
                        writes.push(write);
                        written.push((job, found, decision));
                    }
                    Err(unreadable) => {
                        self.report(&unreadable);
                        set(&mut replies, job, Err(Undone::Unreadable));
                    }
                }
            }
            if writes.is_empty() {
                break;
            }
            let results = self.store().write(writes).await?;
            for ((job, found, decision), result) in written.into_iter().zip(results) {
                let Some(Job { name, .. }) = jobs.get(job) else { continue };
                match result {
                    Written::Done => {
                        let scene = self.scene(found.now, generation, &facts.nodes);
                        self.wrote(name, &found, &decision, &scene);
                        set(&mut replies, job, Ok(decision.reply));
                    }
                    Written::Conflict(read) => match Found::of(read) {
                        Ok(found) => open.push(Open { job, found }),
                        Err(unreadable) => {
                            self.report(&unreadable);
                            set(&mut replies, job, Err(Undone::Unreadable));
                        }
                    },
                }
            }
            if open.is_empty() {
                break;
            }
            // What is known of nodes is older than the records that the conflicts showed.
            facts.all_early();
        }
        Ok(replies)
    }

    /// Reads the records that jobs are about, and some nodes with them.
    async fn first_read<T>(
        &self,
        jobs: &[Job<'_, T>],
        nodes: Nodes,
        mut read_too: Vec<NodeId>,
    ) -> Result<(Facts, Vec<Open>, Vec<Result<T, Undone>>), Unreachable> {
        let mut facts = Facts::new(nodes);
        read_too.retain(|node| !facts.nodes.contains_key(node));
        read_too.sort_unstable();
        read_too.dedup();
        let streams = jobs.iter().map(|job| Key::Stream(job.name.clone()));
        let keys = streams.chain(read_too.iter().cloned().map(Key::Node)).collect();
        let mut reads = self.store().read(keys).await?.into_iter();
        let (mut open, mut replies) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for (job, read) in reads.by_ref().take(jobs.len()).enumerate() {
            replies.push(Err(Undone::Conflicts));
            match Found::of(read) {
                Ok(found) => open.push(Open { job, found }),
                Err(unreadable) => {
                    self.report(&unreadable);
                    set(&mut replies, job, Err(Undone::Unreadable));
                }
            }
        }
        facts.early(read_too.into_iter().zip(reads.map(|read| self.heard(&read))));
        Ok((facts, open, replies))
    }

    async fn read_nodes(&self, facts: &mut Facts, open: &[Open]) -> Result<(), Unreachable> {
        let needed = open.iter().flat_map(|open| {
            let record = &open.found.record;
            [facts.needed(record), facts.needed_of_pusher(record)]
        });
        let needed: HashSet<_> = needed.flatten().collect();
        if needed.is_empty() {
            return Ok(());
        }
        let needed: Vec<NodeId> = needed.into_iter().collect();
        let keys = needed.iter().cloned().map(Key::Node).collect();
        let reads = self.store().read(keys).await?;
        for (node, read) in needed.into_iter().zip(reads) {
            facts.early.remove(&node);
            facts.nodes.insert(node, self.heard(&read));
        }
        Ok(())
    }

    /// A node as its record says. One that cannot be read counts as silent.
    pub(super) fn heard(&self, read: &Read) -> Option<HeardNode> {
        let record = NodeRecord::decode(read.value.as_deref()?);
        let record = record.inspect_err(|unreadable| self.report(unreadable)).ok()?;
        let left = record.left(read.now);
        Some(HeardNode { record, left })
    }

    fn write_of<T>(
        &self,
        name: &StreamName,
        found: &Found,
        decision: &Decision<T>,
        scene: &Scene,
    ) -> Result<Write, Unreadable> {
        let after = decision.record.clone().filter(|after| after.is_needed() || scene.spare);
        let expiry = after.as_ref().map(|after| after.expiry(scene.now));
        let announce = decision.change.as_ref().map(serde_json::to_vec).transpose();
        Ok(Write {
            key: Key::Stream(name.clone()),
            expected: found.raw.clone(),
            value: after.map(StreamRecord::encode).transpose()?,
            expiry,
            announce: announce.map_err(Unreadable::from)?.map(Bytes::from),
        })
    }

    /// A record was changed: counts, and says so.
    fn wrote<T>(&self, name: &StreamName, found: &Found, decision: &Decision<T>, scene: &Scene) {
        let after = decision.record.as_ref().unwrap_or(&found.record);
        let figures = self.figures();
        match (found.record.is_owned(), after.is_owned()) {
            (false, true) => figures.streams.up(),
            (true, false) => figures.streams.down(),
            _ => {}
        }
        match (found.raw.is_some(), after.is_needed() || scene.spare) {
            (false, true) => figures.records.up(),
            (true, false) => figures.records.down(),
            _ => {}
        }
        say(name, &found.record, after);
        let origin = decision.change.as_ref().and_then(|change| change.origin.as_ref());
        if let (true, Some(to)) = (decision.takeover, origin) {
            figures.takeovers.fetch_add(1, Relaxed);
            tracing::info!(stream = %name, %to, epoch = after.epoch, "taken over");
            if let Some(left) = after.hold_down.left(scene.now) {
                let seconds = super::seconds_up(left);
                tracing::warn!(stream = %name, owner = %to, seconds, "publishers fight for a name: held");
            }
        }
        self.saw(name, after, scene);
    }

    /// Notes what a record says: for answers while the store cannot be reached, and for the end of its lease.
    pub(super) fn saw(&self, name: &StreamName, record: &StreamRecord, scene: &Scene) {
        self.known().saw(name, record.epoch, rules::owner(name, record, scene));
        let leased = record.owner.as_ref().filter(|owner| !owner.lapsed && owner.listed.is_none());
        self.watch().lease(name, leased.map(|owner| owner.until.saturating_sub(scene.now)));
    }
}

/// Says who got a name, or that it is free.
fn say(name: &StreamName, before: &StreamRecord, after: &StreamRecord) {
    static CAME: Seldom = Seldom::events();
    static WENT: Seldom = Seldom::events();
    let owner = |record: &StreamRecord| record.owner.clone().filter(|_| record.is_owned());
    let tag = |owner: &Owner| {
        owner.id.session().map_or_else(|| "none".to_owned(), |session| session.tag().to_string())
    };
    match (owner(before), owner(after)) {
        (Some(before), Some(after)) if before.id == after.id => {}
        (before, Some(after)) => {
            let Some(held_back) = CAME.pass() else { return };
            let (origin, session) = (&after.origin, tag(&after));
            match before {
                None => tracing::info!(stream = %name, %session, %origin, held_back, "registered"),
                Some(before) => {
                    let former = tag(&before);
                    tracing::info!(stream = %name, %session, %origin, %former, held_back, "registered in another's place");
                }
            }
        }
        (Some(before), None) => {
            if let Some(held_back) = WENT.pass() {
                tracing::info!(stream = %name, session = %tag(&before), held_back, "no longer registered");
            }
        }
        (None, None) => {}
    }
}

fn set<T>(replies: &mut [Result<T, Undone>], job: usize, reply: Result<T, Undone>) {
    if let Some(place) = replies.get_mut(job) {
        *place = reply;
    }
}
