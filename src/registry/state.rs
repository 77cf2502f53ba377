//! What a registry is made of, and what all its parts need: its store, its figures, what it knows.

use super::known::Known;
use super::record::Unreadable;
use super::rules::{Nodes, Scene};
use super::store::Store;
use super::watch::Watch;
use super::{CHANGES_KEPT, Notice, Settings, Status};
use crate::telemetry::Seldom;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;

/// So many records there may be for each stream with an owner: names that ended are kept for some minutes.
const RECORDS_A_STREAM: u64 = 3;

/// Streams that one call of the store is about at most.
pub(super) const BATCH: usize = 500;

/// Who owns which name, in a [`Store`] that it may share with others of its kind. See the head of [`super`].
#[derive(Debug)]
pub struct Registry {
    pub(super) store: Arc<dyn Store>,
    pub(super) settings: Settings,
    pub(super) known: Known,
    pub(super) changes: broadcast::Sender<Notice>,
    pub(super) figures: Figures,
    /// Never held across an await.
    pub(super) watch: Mutex<Watch>,
    pub(super) unreadable: Seldom,
    pub(super) left_out: Seldom,
    /// The task of [`Registry::start`], which ends with the registry.
    pub(super) upkeep: OnceLock<AbortOnDropHandle<()>>,
}

/// What is counted. Streams, records and nodes are what the last look at the store showed, and what this process wrote since.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub streams: Count,
    /// Records of names, with or without an owner.
    pub records: Count,
    pub nodes: Count,
    pub takeovers: AtomicU64,
    pub held_down: AtomicU64,
    /// Some node has not sent its whole list to this generation of the store.
    pub listing: AtomicBool,
}

/// A number that goes up and down, and not below zero.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(super) fn set(&self, count: usize) {
        self.0.store(count as u64, Relaxed);
    }

    pub(super) fn up(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(super) fn down(&self) {
        // The closure never refuses.
        self.0.fetch_update(Relaxed, Relaxed, |count| Some(count.saturating_sub(1))).ok();
    }
}

impl Registry {
    /// One that nobody looks after: whoever made it calls [`Registry::sweep`] and [`Registry::hear`].
    pub(super) fn new(store: Arc<dyn Store>, settings: Settings) -> Self {
        Registry {
            store,
            settings,
            known: Known::new(),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            figures: Figures::default(),
            watch: Mutex::default(),
            unreadable: Seldom::default(),
            left_out: Seldom::default(),
            upkeep: OnceLock::new(),
        }
    }

    pub(super) fn scene<'a>(&'a self, now: u64, generation: u64, nodes: &'a Nodes) -> Scene<'a> {
        let most = self.settings.max_streams as u64;
        let warming_up = match self.status() {
            Status::WarmingUp(left) => Some(left),
            Status::Whole | Status::Degraded => None,
        };
        Scene {
            settings: &self.settings,
            now,
            generation,
            warming_up,
            room: self.figures.streams.get() < most,
            spare: self.figures.records.get() < most.saturating_mul(RECORDS_A_STREAM),
            nodes,
        }
    }

    /// Says that the store holds what was not written by this program.
    pub(super) fn report(&self, unreadable: &Unreadable) {
        if let Some(held_back) = self.unreadable.pass() {
            tracing::warn!(error = %unreadable, held_back, "the store");
        }
    }

    /// Tells subscribers.
    pub(super) fn tell(&self, notice: Notice) {
        // Without subscribers nobody misses it.
        self.changes.send(notice).ok();
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    pub(super) fn figures(&self) -> &Figures {
        &self.figures
    }

    pub(super) fn watch(&self) -> MutexGuard<'_, Watch> {
        // Every change is complete before anything that could panic.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
