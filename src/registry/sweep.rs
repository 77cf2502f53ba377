//! What has to be noticed without a call: nodes that fell silent, leases that are over, a store that lost its memory.
//!
//! Every registry of a store does this; who comes first writes, and the others find nothing left to do.

use super::Notice;
use super::rules::{self, Nodes};
use super::settle::{Found, Job};
use super::state::{BATCH, Registry};
use super::store::{Key, Kind, Unreachable};
use super::watch::SWEEP_INTERVAL;
use crate::api::Change;
use crate::ids::StreamName;
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::broadcast::{self, error::RecvError};

/// After so many sweeps all streams are looked through, also when nothing happened: their number is counted, and what
/// another registry left behind is ended. A minute: 100,000 records are some 40 MB.
const LOOK_EVERY: u64 = 120;

/// Records that are looked through without a pause for other tasks.
const PAUSE_AFTER: usize = 1000;

/// Looks after a registry for as long as it is there.
pub(super) async fn upkeep(registry: Weak<Registry>, announcements: broadcast::Receiver<Bytes>) {
    tokio::join!(listen(registry.clone(), announcements), sweep_on(registry));
}

async fn listen(registry: Weak<Registry>, mut announcements: broadcast::Receiver<Bytes>) {
    loop {
        let announcement = match announcements.recv().await {
            Ok(announcement) => announcement,
            // Some were missed.
            Err(RecvError::Lagged(_)) => Bytes::new(),
            Err(RecvError::Closed) => return,
        };
        let Some(registry) = registry.upgrade() else { return };
        registry.hear(&announcement);
    }
}

async fn sweep_on(registry: Weak<Registry>) {
    loop {
        let Some(registry) = registry.upgrade() else { return };
        registry.sweep().await;
        drop(registry);
        tokio::time::sleep(SWEEP_INTERVAL).await;
    }
}

impl Registry {
    /// Takes in what the store announced: a change, or that some may be missing.
    pub(super) fn hear(&self, announcement: &[u8]) {
        match serde_json::from_slice::<Change>(announcement) {
            Ok(change) => {
                self.known().changed(&change);
                self.tell(Notice::Change(change));
            }
            Err(error) => {
                if !announcement.is_empty() {
                    self.report(&error.into());
                }
                self.watch().look = true;
                self.tell(Notice::Resync);
            }
        }
    }

    /// One look. See the module's head.
    pub(super) async fn sweep(&self) {
        let outage = self.try_sweep().await.is_err();
        let mut watch = self.watch();
        match (outage, std::mem::replace(&mut watch.outage, outage)) {
            (true, false) => {
                tracing::warn!(
                    "the store cannot be reached: known streams are answered from memory until it is"
                );
            }
            (false, true) => tracing::info!("the store is reached again"),
            _ => {}
        }
    }

    async fn try_sweep(&self) -> Result<(), Unreachable> {
        let nodes = self.list_nodes().await?;
        let generation = self.store().memory().ok_or(Unreachable)?.generation;
        self.figures().nodes.set(nodes.len());
        let listing =
            |node: &super::rules::HeardNode| !node.record.complete || node.record.generation != generation;
        self.figures().listing.store(nodes.values().flatten().any(listing), Relaxed);
        let (over, look, prune) = {
            let mut watch = self.watch();
            let lost = watch.nodes(&nodes);
            let before = watch.generation.replace(generation);
            if before.is_some_and(|before| before != generation) {
                self.tell(Notice::Resync);
            }
            watch.sweeps += 1;
            let (sweep, due) = (watch.sweeps, watch.sweeps.is_multiple_of(LOOK_EVERY));
            watch.look |= lost || due || before != Some(generation);
            (watch.leases.over(sweep), watch.look, due)
        };
        for names in over.chunks(BATCH) {
            if let Err(error) = self.lapse(names).await {
                over.iter().for_each(|name| self.watch().lease(name, Some(0)));
                return Err(error);
            }
        }
        if look {
            self.watch().look = false;
            if let Err(error) = self.look(&nodes, generation, prune).await {
                self.watch().look = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Looks through all streams: counts them, and ends what is over. With `prune` it forgets names that have no record.
    async fn look(&self, nodes: &Nodes, generation: u64, prune: bool) -> Result<(), Unreachable> {
        let before = if prune { self.known().names() } else { Vec::new() };
        let streams = self.store().list(Kind::Stream).await?;
        let (mut owned, mut over, mut names) = (0, Vec::new(), HashSet::with_capacity(streams.len()));
        for (index, (key, read)) in streams.into_iter().enumerate() {
            if index % PAUSE_AFTER == PAUSE_AFTER - 1 {
                tokio::task::yield_now().await;
            }
            let Key::Stream(name) = key else { continue };
            match Found::of(read) {
                Ok(found) => {
                    let scene = self.scene(found.now, generation, nodes);
                    self.saw(&name, &found.record, &scene);
                    if found.record.is_owned() {
                        owned += 1;
                        if rules::owner(&name, &found.record, &scene).is_none() {
                            over.push(name.clone());
                        }
                    }
                }
                Err(unreadable) => self.report(&unreadable),
            }
            names.insert(name);
        }
        self.figures().streams.set(owned);
        self.figures().records.set(names.len());
        before.iter().filter(|name| !names.contains(&***name)).for_each(|name| self.known().forget(name));
        for names in over.chunks(BATCH) {
            self.lapse(names).await?;
        }
        Ok(())
    }

    /// Ends those of some names whose lease is over or whose node is gone.
    async fn lapse(&self, names: &[StreamName]) -> Result<(), Unreachable> {
        let job = |name: &StreamName| {
            let name = name.clone();
            Job::new(name.clone(), move |record, scene| rules::lapse(&name, record, scene))
        };
        let jobs: Vec<_> = names.iter().map(job).collect();
        let replies = self.settle(&jobs, Nodes::new(), Vec::new()).await?;
        for (name, reply) in names.iter().zip(replies) {
            if reply == Ok(true) {
                tracing::info!(stream = %name, "lease lapsed");
            }
        }
        Ok(())
    }
}
