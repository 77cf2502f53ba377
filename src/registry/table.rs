//! The rules of ownership as a plain table: no lock, no task, and the time is handed in.

use super::contest::Contest;
use super::ended::Ended;
use super::{
    Claim, ENDED_MEMORY, Error, Lease, MAX_NODES, Policy, Settings, Stats, Status, heartbeat_lease,
    heartbeat_origin, millis, plausible,
};
use crate::api::{Change, Heartbeat, HeartbeatReply, NodeEntry, PublishedStream, PublisherRelease};
use crate::ids::{NodeId, Origin, SessionId, StreamName};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Who a name belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Session(SessionId),
    /// A plain mmids node.
    Source(IpAddr),
}

impl Owner {
    fn session(self) -> Option<SessionId> {
        match self {
            Owner::Session(session) => Some(session),
            Owner::Source(_) => None,
        }
    }
}

#[derive(Debug)]
struct Entry {
    owner: Owner,
    origin: Origin,
    node: Option<NodeId>,
    epoch: u64,
    /// The epoch was given out here and is no memory of a node: see the head of [`super`].
    guessed: bool,
    since: Instant,
    until: Instant,
    contest: Contest,
}

#[derive(Debug)]
struct Node {
    /// Without its streams: they are the leases.
    heartbeat: Heartbeat,
    seen: Instant,
    lease: Duration,
}

/// Leases and nodes. What changes is written to a list that the caller empties with [`Table::take_changes`].
#[derive(Debug)]
pub(super) struct Table {
    settings: Settings,
    whole_at: Instant,
    streams: HashMap<StreamName, Entry>,
    nodes: BTreeMap<NodeId, Node>,
    last_epoch: u64,
    ended_sessions: Ended<SessionId>,
    ended_sources: Ended<(StreamName, IpAddr)>,
    changes: Vec<Change>,
    takeovers: u64,
    contested: u64,
}

impl Table {
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        Table {
            settings,
            whole_at: now + settings.warm_up,
            streams: HashMap::new(),
            nodes: BTreeMap::new(),
            last_epoch: 0,
            ended_sessions: Ended::new(ENDED_MEMORY),
            // Long enough for the next time the old node asks again, and no longer: its address is all it is known by.
            ended_sources: Ended::new(settings.lease),
            changes: Vec::new(),
            takeovers: 0,
            contested: 0,
        }
    }

    pub(super) fn claim(&mut self, claim: Claim, now: Instant) -> Result<Lease, Error> {
        let Claim { name, session, node, origin, source } = claim;
        let owner = session.map_or(Owner::Source(source), Owner::Session);
        if session.is_some_and(|session| self.ended_sessions.contains(&session, now)) {
            return Err(Error::Superseded(name));
        }
        let until = now + self.lease_time(node.as_ref());
        match self.live(&name, now) {
            Some(entry) if entry.owner == owner => {}
            Some(entry) => {
                let (held, held_by) = (entry.contest.held(now), entry.origin.clone());
                let leaves = self.leaves(&name);
                if session.is_none() && self.ended_sources.remove(&(name.clone(), source), now) {
                    return Err(Error::Superseded(name));
                }
                if !leaves && self.settings.policy == Policy::FirstWins {
                    return Err(Error::Taken(name, held_by));
                }
                if let Some(held) = held.filter(|_| !leaves) {
                    self.contested += 1;
                    tracing::debug!(stream = %name, owner = %held_by, refused = %origin, "claim refused: contested");
                    return Err(Error::Contested { name, origin: held_by, held });
                }
                self.take_over(&name, owner, &origin, None, now);
            }
            None => {
                self.ended_sources.remove(&(name.clone(), source), now);
                self.insert(&name, owner, &origin, None, now)?;
            }
        }
        self.renew(&name, &origin, node, until);
        self.owner(&name, now)?.ok_or(Error::Superseded(name))
    }

    pub(super) fn release(&mut self, name: &StreamName, session: SessionId, now: Instant) -> bool {
        // Also when it owns nothing here: its claim may still be under way.
        self.ended_sessions.insert(session, now);
        let owns = self.live(name, now).is_some_and(|entry| entry.owner == Owner::Session(session));
        if owns {
            self.end(name);
        }
        owns
    }

    pub(super) fn owner(&self, name: &StreamName, now: Instant) -> Result<Option<Lease>, Error> {
        match (self.live(name, now), self.status(now)) {
            (Some(entry), _) => Ok(Some(lease(name, entry, now))),
            (None, Status::WarmingUp(left)) => Err(Error::WarmingUp(left)),
            (None, _) => Ok(None),
        }
    }

    pub(super) fn list(&self, now: Instant) -> Vec<Lease> {
        let live = self.streams.iter().filter(|(_, entry)| entry.until > now);
        let mut leases: Vec<_> = live.map(|(name, entry)| lease(name, entry, now)).collect();
        leases.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        leases
    }

    pub(super) fn heartbeat(
        &mut self,
        node: NodeId,
        mut heartbeat: Heartbeat,
        source: IpAddr,
        now: Instant,
    ) -> Result<HeartbeatReply, Error> {
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(&node) {
            return Err(Error::Full(MAX_NODES, "nodes"));
        }
        let lease = heartbeat_lease(&heartbeat);
        let origin = heartbeat_origin(&heartbeat, source);
        let streams = std::mem::take(&mut heartbeat.streams);
        self.nodes.insert(node.clone(), Node { heartbeat, seen: now, lease });
        let (mut reply, mut left_out) = (HeartbeatReply::default(), 0);
        for PublishedStream { stream_name: name, session, epoch } in streams {
            match self.restore(&name, session, plausible(epoch), &origin, now) {
                Ok(true) => {
                    self.renew(&name, &origin, Some(node.clone()), now + lease);
                    let epoch = self.streams.get(&name).map(|entry| entry.epoch);
                    reply.owned.push(PublishedStream { stream_name: name, session, epoch });
                }
                Ok(false) => reply.superseded.push(PublisherRelease { stream_name: name, session }),
                // Neither owned nor lost: the node goes on, and may find room next time.
                Err(_) => left_out += 1,
            }
        }
        super::warn_left_out(&node, left_out);
        Ok(reply)
    }

    pub(super) fn remove_node(&mut self, node: &NodeId) -> bool {
        let of_node = |entry: &Entry| entry.node.as_ref() == Some(node);
        let names: Vec<_> =
            self.streams.iter().filter(|(_, entry)| of_node(entry)).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.end(&name);
        }
        self.nodes.remove(node).is_some()
    }

    pub(super) fn nodes(&self, now: Instant) -> Vec<NodeEntry> {
        let mut streams = super::streams_by_node(self.list(now));
        let live = self.nodes.iter().filter(|(_, node)| node.seen + node.lease > now);
        live.map(|(id, node)| NodeEntry {
            node: id.clone(),
            silent_ms: millis(now - node.seen),
            heartbeat: Heartbeat {
                streams: streams.remove(id).unwrap_or_default(),
                ..node.heartbeat.clone()
            },
        })
        .collect()
    }

    pub(super) fn status(&self, now: Instant) -> Status {
        if now < self.whole_at { Status::WarmingUp(self.whole_at - now) } else { Status::Whole }
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            streams: self.streams.len() as u64,
            nodes: self.nodes.len() as u64,
            takeovers: self.takeovers,
            contested: self.contested,
        }
    }

    /// Ends what has lapsed.
    pub(super) fn sweep(&mut self, now: Instant) {
        let lapsed = |entry: &Entry| entry.until <= now;
        let names: Vec<_> =
            self.streams.iter().filter(|(_, entry)| lapsed(entry)).map(|(name, _)| name.clone()).collect();
        for name in names {
            tracing::info!(stream = %name, "lease lapsed");
            self.end(&name);
        }
        self.nodes.retain(|_, node| node.seen + node.lease > now);
        self.ended_sessions.sweep(now);
        self.ended_sources.sweep(now);
    }

    /// What changed since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Whether a session that a heartbeat lists owns its name, which it may have taken just now.
    fn restore(
        &mut self,
        name: &StreamName,
        session: SessionId,
        known: Option<u64>,
        origin: &Origin,
        now: Instant,
    ) -> Result<bool, Error> {
        if self.ended_sessions.contains(&session, now) {
            return Ok(false);
        }
        let owner = Owner::Session(session);
        let Some(entry) = self.live(name, now) else {
            self.insert(name, owner, origin, known, now)?;
            return Ok(true);
        };
        if entry.owner == owner {
            if let Some(epoch) = known.filter(|epoch| *epoch > entry.epoch) {
                self.lift(name, epoch);
            }
            return Ok(true);
        }
        let leaves = self.leaves(name);
        let wins = match known {
            Some(epoch) if epoch >= entry.epoch && entry.guessed => {
                self.lift(name, epoch.max(self.last_epoch) + 1);
                false
            }
            Some(epoch) => (epoch, Some(session)) > (entry.epoch, entry.owner.session()),
            None => leaves || (self.settings.policy == Policy::Takeover && entry.contest.held(now).is_none()),
        };
        if wins {
            self.take_over(name, owner, origin, known, now);
        } else {
            self.ended_sessions.insert(session, now);
        }
        Ok(wins)
    }

    fn live(&self, name: &StreamName, now: Instant) -> Option<&Entry> {
        self.streams.get(name).filter(|entry| entry.until > now)
    }

    /// Whether a name is owned by a node that drains.
    fn leaves(&self, name: &StreamName) -> bool {
        let node = self.streams.get(name).and_then(|entry| entry.node.as_ref());
        node.and_then(|node| self.nodes.get(node)).is_some_and(|node| node.heartbeat.draining)
    }

    /// A node that sends heartbeats renews with them; one that does not has to last from lookup to lookup.
    fn lease_time(&self, node: Option<&NodeId>) -> Duration {
        node.and_then(|node| self.nodes.get(node)).map_or(self.settings.lease, |node| node.lease)
    }

    fn next_epoch(&mut self, known: Option<u64>) -> u64 {
        let epoch = known.unwrap_or(self.last_epoch + 1);
        self.last_epoch = self.last_epoch.max(epoch);
        epoch
    }

    /// Gives a free name to an owner. The entry lapses at once unless it is renewed.
    fn insert(
        &mut self,
        name: &StreamName,
        owner: Owner,
        origin: &Origin,
        known: Option<u64>,
        now: Instant,
    ) -> Result<(), Error> {
        if self.streams.len() >= self.settings.max_streams && !self.streams.contains_key(name) {
            return Err(Error::Full(self.settings.max_streams, "streams"));
        }
        let entry = Entry {
            owner,
            origin: origin.clone(),
            node: None,
            epoch: self.next_epoch(known),
            guessed: known.is_none(),
            since: now,
            until: now,
            contest: Contest::default(),
        };
        tracing::debug!(stream = %name, %origin, epoch = entry.epoch, "registered");
        self.changes.push(change(name, Some(origin), entry.epoch));
        self.streams.insert(name.clone(), entry);
        Ok(())
    }

    /// Gives a name with an owner to another one.
    fn take_over(
        &mut self,
        name: &StreamName,
        owner: Owner,
        origin: &Origin,
        known: Option<u64>,
        now: Instant,
    ) {
        let epoch = self.next_epoch(known);
        let leaves = self.leaves(name);
        let Some(entry) = self.streams.get_mut(name) else {
            return;
        };
        match entry.owner {
            Owner::Session(session) => self.ended_sessions.insert(session, now),
            Owner::Source(source) => self.ended_sources.insert((name.clone(), source), now),
        }
        if !leaves {
            entry.contest.strike(now);
        }
        super::log_takeover(name, origin, epoch, entry.contest.held(now).unwrap_or_default());
        self.takeovers += 1;
        self.changes.push(change(name, Some(origin), epoch));
        *entry = Entry {
            owner,
            origin: origin.clone(),
            node: None,
            epoch,
            guessed: known.is_none(),
            since: now,
            ..*entry
        };
    }

    /// Renews a lease, and notes where its owner is now.
    fn renew(&mut self, name: &StreamName, origin: &Origin, node: Option<NodeId>, until: Instant) {
        let Some(entry) = self.streams.get_mut(name) else {
            return;
        };
        entry.until = until;
        entry.node = node.or(entry.node.take());
        if entry.origin != *origin {
            entry.origin = origin.clone();
            self.changes.push(change(name, Some(origin), entry.epoch));
        }
    }

    fn lift(&mut self, name: &StreamName, epoch: u64) {
        self.last_epoch = self.last_epoch.max(epoch);
        if let Some(entry) = self.streams.get_mut(name) {
            (entry.epoch, entry.guessed) = (epoch, false);
            self.changes.push(change(name, Some(&entry.origin), epoch));
        }
    }

    fn end(&mut self, name: &StreamName) {
        if let Some(entry) = self.streams.remove(name) {
            self.changes.push(change(name, None, entry.epoch));
        }
    }
}

fn change(name: &StreamName, origin: Option<&Origin>, epoch: u64) -> Change {
    Change { stream_name: name.clone(), origin: origin.cloned(), epoch }
}

fn lease(name: &StreamName, entry: &Entry, now: Instant) -> Lease {
    Lease {
        name: name.clone(),
        origin: entry.origin.clone(),
        session: entry.owner.session(),
        epoch: entry.epoch,
        node: entry.node.clone(),
        age: now - entry.since,
        remaining: entry.until - now,
    }
}
