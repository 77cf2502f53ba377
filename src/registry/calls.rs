//! The registry: what its callers may ask.

use super::pusher;
use super::record::{NodeRecord, Record};
use super::rules::{self, Nodes};
use super::settle::{Facts, Found, Job, Undone};
use super::state::{BATCH, Registry};
use super::store::{Key, Kind, Store, Unreachable, Write, Written};
use super::{Changes, Claim, Error, LISTING_MAX, Lease, Settings, Stats, Status};
use crate::api::{NodeEntry, PushClaim, PushRelease};
use crate::ids::{NodeId, Origin, SessionId, StreamName};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// When to ask again while some node has not sent its whole list.
const LISTING_RETRY: Duration = Duration::from_secs(1);

/// How often a lookup begins again because the owner changed while it was read.
const LOOKUP_ROUNDS: usize = 4;

impl Registry {
    /// A registry over a store, and the task that looks after it, which ends when the registry is dropped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(store: Arc<dyn Store>, settings: Settings) -> Arc<Self> {
        let registry = Arc::new(Registry::new(store, settings));
        let announcements = registry.store.announcements();
        let upkeep = tokio::spawn(super::sweep::upkeep(Arc::downgrade(&registry), announcements));
        // It was made here, so nobody else has set it.
        registry.upkeep.set(AbortOnDropHandle::new(upkeep)).ok();
        registry
    }

    /// Takes a name for a new publish, or renews the lease of its owner.
    ///
    /// Errors: [`Error::Superseded`], [`Error::Taken`], [`Error::Foreign`], [`Error::HeldDown`], [`Error::Full`], [`Error::WarmingUp`],
    /// [`Error::Unavailable`].
    pub async fn claim(&self, claim: Claim) -> Result<Lease, Error> {
        let job = Job::new(claim.name.clone(), |record, scene| rules::claim(&claim, record, scene));
        // Most likely these nodes are asked for next.
        let nodes = claim.node.iter().cloned().chain(self.known.node(&claim.name)).collect();
        let Ok(replies) = self.settle(&[job], Nodes::new(), nodes).await else {
            return self.known.renewal(&claim).ok_or(Error::Unavailable);
        };
        let reply = only(replies)?;
        if let Err(Error::HeldDown { name, origin, .. }) = &reply {
            self.figures.held_down.fetch_add(1, Relaxed);
            tracing::debug!(stream = %name, owner = %origin, refused = %claim.origin, "claim refused: hold-down");
        }
        reply
    }

    /// Ends a publish. Frees the name if that session still owns it, and says whether it did.
    ///
    /// Errors: [`Error::Unavailable`].
    pub async fn release(&self, name: StreamName, session: SessionId) -> Result<bool, Error> {
        let nodes = self.known.node(&name).into_iter().collect();
        let job = Job::new(name.clone(), |record, scene| rules::release(&name, session, record, scene));
        let replies = self.settle(&[job], Nodes::new(), nodes).await;
        only(replies.map_err(|Unreachable| Error::Unavailable)?)
    }

    /// Lets a session push its stream to other servers, if nobody else may still be doing so.
    ///
    /// Errors: [`Error::Superseded`], [`Error::NotOwner`], [`Error::PushHeld`], [`Error::NotHeard`], [`Error::WarmingUp`],
    /// [`Error::Unavailable`].
    pub async fn claim_push(&self, claim: PushClaim) -> Result<(), Error> {
        let job = Job::new(claim.stream_name.clone(), |record, scene| pusher::claim(&claim, record, scene));
        let replies = self.settle(&[job], Nodes::new(), vec![claim.node.clone()]).await;
        only(replies.map_err(|Unreachable| Error::Unavailable)?)?
    }

    /// A session is pushed no longer.
    ///
    /// Errors: [`Error::Unavailable`].
    pub async fn release_push(&self, release: PushRelease) -> Result<(), Error> {
        let job = Job::new(release.stream_name.clone(), |record, _| pusher::release(&release, record));
        let replies = self.settle(&[job], Nodes::new(), Vec::new()).await;
        only(replies.map_err(|Unreachable| Error::Unavailable)?)
    }

    /// The owner of a name; `None` only if there surely is none. While the store cannot be reached, or does not know the
    /// name because it has just lost its memory, the owner that was seen last.
    ///
    /// Errors: [`Error::WarmingUp`], [`Error::Unavailable`].
    pub async fn owner(&self, name: StreamName) -> Result<Option<Lease>, Error> {
        let found = match self.look_up(&name).await {
            Ok(Some(lease)) => return Ok(Some(lease)),
            Ok(None) => self.status(),
            Err(Undone::Unreadable) => return Err(Error::Unavailable),
            Err(Undone::Conflicts) => Status::Degraded,
        };
        match (found, self.known.get(&name)) {
            (Status::Whole, _) => Ok(None),
            (_, Some(lease)) => Ok(Some(lease)),
            (Status::WarmingUp(left), None) => Err(Error::WarmingUp(left)),
            (Status::Degraded, None) => Err(Error::Unavailable),
        }
    }

    /// Asks the store. Two calls at most, a third if the owner's node is gone. That the store cannot be reached counts as a
    /// conflict: nothing is known.
    async fn look_up(&self, name: &StreamName) -> Result<Option<Lease>, Undone> {
        let lost = |Unreachable| Undone::Conflicts;
        let key = Key::Stream(name.clone());
        let guess = self.known.node(name);
        let keys = [Some(key.clone()), guess.clone().map(Key::Node)].into_iter().flatten().collect();
        let mut reads = self.store.read(keys).await.map_err(lost)?.into_iter();
        let mut facts = Facts::new(Nodes::new());
        let Some(mut found) = reads.next().map(|read| self.found(read)).transpose()? else {
            return Err(Undone::Conflicts);
        };
        facts.early(guess.into_iter().zip(reads.map(|read| self.heard(&read))));
        for _ in 0..LOOKUP_ROUNDS {
            let needed = facts.needed(&found.record);
            if let Some(node) = needed.clone() {
                let reads = self.store.read(vec![Key::Node(node.clone())]).await.map_err(lost)?;
                facts.nodes.insert(node, reads.first().and_then(|read| self.heard(read)));
            }
            let generation = self.store.memory().ok_or(Undone::Conflicts)?.generation;
            let scene = self.scene(found.now, generation, &facts.nodes);
            let lease = rules::owner(name, &found.record, &scene);
            let doubtful = lease.is_none() && found.record.is_owned() && needed.is_some();
            if !doubtful {
                self.saw(name, &found.record, &scene);
                return Ok(lease);
            }
            // The node may have ended one list and begun another between the two calls: then the stream's record is new.
            let reads = self.store.read(vec![key.clone()]).await.map_err(lost)?;
            let Some(again) = reads.into_iter().next().map(|read| self.found(read)).transpose()? else {
                return Err(Undone::Conflicts);
            };
            if again.raw == found.raw {
                self.saw(name, &found.record, &self.scene(found.now, generation, &facts.nodes));
                return Ok(None);
            }
            facts.all_early();
            found = again;
        }
        Err(Undone::Conflicts)
    }

    fn found(&self, read: super::store::Read) -> Result<Found, Undone> {
        Found::of(read).map_err(|unreadable| {
            self.report(&unreadable);
            Undone::Unreadable
        })
    }

    /// All leases, ordered by name. No snapshot: what changes during the call may be there or not.
    ///
    /// Errors: [`Error::Unavailable`].
    pub async fn list(&self) -> Result<Vec<Lease>, Error> {
        let streams = self.store.list(Kind::Stream).await.map_err(|Unreachable| Error::Unavailable)?;
        let nodes = self.list_nodes().await.map_err(|Unreachable| Error::Unavailable)?;
        let generation = self.store.memory().ok_or(Error::Unavailable)?.generation;
        let mut leases = Vec::new();
        for (key, read) in streams {
            if let (Key::Stream(name), Ok(found)) = (key, self.found(read)) {
                leases.extend(rules::owner(&name, &found.record, &self.scene(found.now, generation, &nodes)));
            }
        }
        leases.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(leases)
    }

    /// All nodes that send heartbeats, ordered by id.
    ///
    /// Errors: [`Error::Unavailable`].
    pub async fn nodes(&self) -> Result<Vec<NodeEntry>, Error> {
        let nodes = self.list_nodes().await.map_err(|Unreachable| Error::Unavailable)?;
        let mut entries: Vec<_> = nodes
            .into_iter()
            .filter_map(|(node, heard)| {
                let heard = heard?;
                let silent_ms = heard.record.lease.saturating_sub(heard.left);
                Some(NodeEntry { node, silent_ms, heartbeat: heard.record.heartbeat })
            })
            .collect();
        entries.sort_unstable_by(|a, b| a.node.cmp(&b.node));
        Ok(entries)
    }

    /// Where other nodes of a role can be reached that take new work, those with the least of it first, `most` of them.
    ///
    /// Errors: [`Error::Unavailable`].
    pub async fn successors(&self, node: &NodeId, role: &str, most: usize) -> Result<Vec<Origin>, Error> {
        let nodes = self.list_nodes().await.map_err(|Unreachable| Error::Unavailable)?;
        let mut others: Vec<(f64, NodeId, Origin)> = nodes
            .into_iter()
            .filter_map(|(other, heard)| {
                let NodeRecord { origin, heartbeat, .. } = heard?.record;
                let takes = !heartbeat.draining && heartbeat.roles.iter().any(|has| has == role);
                let work = (heartbeat.viewers + heartbeat.published) as f64;
                let load = work / heartbeat.capacity.max(1) as f64;
                (takes && other != *node).then_some((load, other, origin))
            })
            .collect();
        others.sort_unstable_by(|(a, x, _), (b, y, _)| a.total_cmp(b).then_with(|| x.cmp(y)));
        Ok(others.into_iter().take(most).map(|(_, _, origin)| origin).collect())
    }

    pub(super) async fn list_nodes(&self) -> Result<Nodes, Unreachable> {
        let nodes = self.store.list(Kind::Node).await?.into_iter();
        let node = |(key, read)| match key {
            Key::Node(node) => Some((node, self.heard(&read))),
            Key::Stream(_) => None,
        };
        Ok(nodes.filter_map(node).collect())
    }

    /// Forgets a node, and ends the streams that this process of it listed; without `instance` whichever it has. Says
    /// whether the node was known. A process that another one has replaced ends nothing.
    ///
    /// Errors: [`Error::Unavailable`].
    pub async fn sign_off(&self, node: NodeId, instance: Option<SessionId>) -> Result<bool, Error> {
        self.try_sign_off(node, instance).await.map_err(|Unreachable| Error::Unavailable)
    }

    async fn try_sign_off(&self, node: NodeId, instance: Option<SessionId>) -> Result<bool, Unreachable> {
        let key = Key::Node(node.clone());
        let mut raw = match self.store.read(vec![key.clone()]).await?.pop() {
            Some(read) => read.value,
            None => None,
        };
        let known = loop {
            let Some(value) = &raw else { break false };
            let record = NodeRecord::decode(value).inspect_err(|unreadable| self.report(unreadable));
            let replaced = record.is_ok_and(|record| instance.is_some() && record.instance != instance);
            if replaced {
                return Ok(false);
            }
            let write = Write { key: key.clone(), expected: raw, value: None, expiry: None, announce: None };
            match self.store.write(vec![write]).await?.pop() {
                Some(Written::Conflict(read)) => raw = read.value,
                _ => {
                    self.figures.nodes.down();
                    break true;
                }
            }
        };
        self.end_streams(&node, instance).await?;
        Ok(known)
    }

    async fn end_streams(&self, node: &NodeId, instance: Option<SessionId>) -> Result<(), Unreachable> {
        let of_node = |(key, read)| match (key, self.found(read).ok()?.record.owner) {
            (Key::Stream(name), Some(owner)) => rules::is_of(&owner, node, instance).then_some(name),
            _ => None,
        };
        let names: Vec<_> = self.store.list(Kind::Stream).await?.into_iter().filter_map(of_node).collect();
        for names in names.chunks(BATCH) {
            let job = |name: &StreamName| {
                let name = name.clone();
                Job::new(name.clone(), move |record, scene| {
                    rules::sign_off(&name, node, instance, record, scene)
                })
            };
            let jobs: Vec<_> = names.iter().map(job).collect();
            self.settle(&jobs, Nodes::new(), Vec::new()).await?;
        }
        Ok(())
    }

    /// Changes of ownership from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.changes.subscribe())
    }

    /// Whether it knows everything that it should.
    pub fn status(&self) -> Status {
        let Some(memory) = self.store.memory() else {
            return Status::Degraded;
        };
        let warm_up = self.settings.warm_up;
        if let Some(left) = warm_up.checked_sub(memory.age).filter(|left| *left > Duration::ZERO) {
            return Status::WarmingUp(left);
        }
        let listing = warm_up > Duration::ZERO && self.figures.listing.load(Relaxed);
        match (warm_up + LISTING_MAX).checked_sub(memory.age) {
            Some(left) if listing && left > Duration::ZERO => Status::WarmingUp(left.min(LISTING_RETRY)),
            _ => Status::Whole,
        }
    }

    /// Its figures. How many streams and nodes there are is approximate by what is under way.
    pub fn stats(&self) -> Stats {
        Stats {
            streams: self.figures.streams.get(),
            nodes: self.figures.nodes.get(),
            takeovers: self.figures.takeovers.load(Relaxed),
            held_down: self.figures.held_down.load(Relaxed),
        }
    }
}

/// The reply to the only job.
fn only<T>(replies: Vec<Result<T, Undone>>) -> Result<T, Error> {
    replies.into_iter().next().and_then(Result::ok).ok_or(Error::Unavailable)
}
