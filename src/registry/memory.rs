//! The store in the memory of this process.

use super::store::{Key, Kind, Memory as Age, Read, Store, Unreachable, Write, Written};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;
use tokio::time::Instant;

/// Announcements that a subscriber may be behind before it is told that it missed some. One is some 100 bytes.
const ANNOUNCEMENTS_KEPT: usize = 4096;

/// A [`Store`] that lives and dies with the process.
#[derive(Debug)]
pub struct Memory {
    generation: u64,
    begun: Instant,
    /// Never held across an await.
    state: Mutex<State>,
    announcements: broadcast::Sender<Bytes>,
}

#[derive(Debug, Default)]
struct State {
    records: HashMap<Key, Record>,
    /// The records that expire, in that order.
    expiring: BTreeSet<(Instant, Key)>,
}

#[derive(Debug)]
struct Record {
    value: Bytes,
    expires: Option<Instant>,
}

impl State {
    /// Drops what has expired.
    fn at(&mut self, now: Instant) -> &mut Self {
        while let Some((_, key)) = self.expiring.first().filter(|(expires, _)| *expires <= now).cloned() {
            self.set(key, None);
        }
        self
    }

    fn set(&mut self, key: Key, record: Option<Record>) {
        let expires = record.as_ref().and_then(|record| record.expires);
        let old = match record {
            Some(record) => self.records.insert(key.clone(), record),
            None => self.records.remove(&key),
        };
        if let Some(expired) = old.and_then(|old| old.expires) {
            self.expiring.remove(&(expired, key.clone()));
        }
        if let Some(expires) = expires {
            self.expiring.insert((expires, key));
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Memory {
            generation: rand::random(),
            begun: Instant::now(),
            state: Mutex::default(),
            announcements: broadcast::Sender::new(ANNOUNCEMENTS_KEPT),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self, now: Instant) -> u64 {
        super::millis::millis(now - self.begun)
    }

    fn change(&self, state: &mut State, write: Write, now: Instant) -> Written {
        let value = state.records.get(&write.key).map(|record| record.value.clone());
        if value != write.expected {
            return Written::Conflict(Read { value, now: self.now(now) });
        }
        let expires = write.expiry.and_then(|expiry| now.checked_add(expiry));
        state.set(write.key, write.value.map(|value| Record { value, expires }));
        if let Some(announcement) = write.announce {
            // Without subscribers nobody misses it.
            self.announcements.send(announcement).ok();
        }
        Written::Done
    }
}

impl Store for Memory {
    fn read(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Read>, Unreachable>> {
        let now = Instant::now();
        let mut state = self.lock();
        let state = state.at(now);
        let value = |key| state.records.get(key).map(|record| record.value.clone());
        let reads = keys.iter().map(|key| Read { value: value(key), now: self.now(now) }).collect();
        ready(Ok(reads)).boxed()
    }

    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Vec<Written>, Unreachable>> {
        let now = Instant::now();
        let mut state = self.lock();
        let state = state.at(now);
        let written = writes.into_iter().map(|write| self.change(state, write, now)).collect();
        ready(Ok(written)).boxed()
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<Vec<(Key, Read)>, Unreachable>> {
        let now = Instant::now();
        let mut state = self.lock();
        let records = state.at(now).records.iter().filter(|(key, _)| key.kind() == kind);
        let read = |record: &Record| Read { value: Some(record.value.clone()), now: self.now(now) };
        ready(Ok(records.map(|(key, record)| (key.clone(), read(record))).collect())).boxed()
    }

    fn announcements(&self) -> broadcast::Receiver<Bytes> {
        self.announcements.subscribe()
    }

    fn memory(&self) -> Option<Age> {
        Some(Age { generation: self.generation, age: self.begun.elapsed() })
    }
}
