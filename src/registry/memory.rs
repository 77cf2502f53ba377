//! The registry in the memory of this process.

use super::table::Table;
use super::{
    CHANGES_KEPT, Changes, Claim, Error, Lease, Notice, Registry, SWEEP_INTERVAL, Settings, Stats, Status,
};
use crate::api::{Heartbeat, HeartbeatReply, NodeEntry};
use crate::ids::{NodeId, SessionId, StreamName};
use futures::future::{BoxFuture, FutureExt, ready};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// A [`Registry`] that lives and dies with the process.
#[derive(Debug)]
pub struct Memory {
    shared: Arc<Shared>,
    /// Ends the sweeper together with the registry.
    _sweeper: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// Never held across an await.
    table: Mutex<Table>,
    changes: broadcast::Sender<Notice>,
}

impl Shared {
    /// Does something to the table, and tells subscribers in the order in which it happened.
    fn with<T>(&self, act: impl FnOnce(&mut Table, Instant) -> T) -> T {
        // Every change of the table is complete before anything that could panic.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut table, Instant::now());
        for change in table.take_changes() {
            // Without subscribers nobody misses it.
            let _ = self.changes.send(Notice::Change(change));
        }
        result
    }
}

impl Memory {
    /// An empty registry, and the task that sweeps it, which ends when the registry is dropped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(settings: Settings) -> Self {
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(settings, Instant::now())),
            changes: broadcast::Sender::new(CHANGES_KEPT),
        });
        let sweeper = tokio::spawn({
            let shared = shared.clone();
            async move {
                loop {
                    tokio::time::sleep(SWEEP_INTERVAL).await;
                    shared.with(|table, now| table.sweep(now));
                }
            }
        });
        Memory { shared, _sweeper: AbortOnDropHandle::new(sweeper) }
    }

    fn reply<T: Send + 'static>(&self, act: impl FnOnce(&mut Table, Instant) -> T) -> BoxFuture<'_, T> {
        ready(self.shared.with(act)).boxed()
    }
}

impl Registry for Memory {
    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Lease, Error>> {
        self.reply(|table, now| table.claim(claim, now))
    }

    fn release(&self, name: StreamName, session: SessionId) -> BoxFuture<'_, Result<bool, Error>> {
        self.reply(|table, now| Ok(table.release(&name, session, now)))
    }

    fn owner(&self, name: StreamName) -> BoxFuture<'_, Result<Option<Lease>, Error>> {
        self.reply(|table, now| table.owner(&name, now))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Lease>, Error>> {
        self.reply(|table, now| Ok(table.list(now)))
    }

    fn heartbeat(
        &self,
        node: NodeId,
        heartbeat: Heartbeat,
        source: IpAddr,
    ) -> BoxFuture<'_, Result<HeartbeatReply, Error>> {
        self.reply(move |table, now| table.heartbeat(node, heartbeat, source, now))
    }

    fn remove_node(&self, node: NodeId) -> BoxFuture<'_, Result<bool, Error>> {
        self.reply(|table, _| Ok(table.remove_node(&node)))
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeEntry>, Error>> {
        self.reply(|table, now| Ok(table.nodes(now)))
    }

    fn changes(&self) -> Changes {
        Changes(self.shared.changes.subscribe())
    }

    fn status(&self) -> Status {
        self.shared.with(|table, now| table.status(now))
    }

    fn stats(&self) -> Stats {
        self.shared.with(|table, _| table.stats())
    }
}
