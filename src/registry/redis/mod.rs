//! The store in Redis or Valkey, shared by any number of reactors: one server, a master that Sentinels name, or a cluster.
//!
//! Each record is a key of its own, changed by one small script that compares and sets, so that reactors cannot get in
//! between each other's steps and a cluster can spread the keys. Times are those of the server that keeps the key.
//!
//! | part | job |
//! |---|---|
//! | [`address`] | the text after `--store` |
//! | [`connect`] | connections, whatever kind of place it is |
//! | [`keeper`] | the task that keeps them, and follows announcements |
//! | [`generation`] | which processes keep the records, and since when |
//! | [`scripts`] | what a server does as one step |
//!
//! A write whose answer was lost may be sent again by the client of a cluster. The second time it is a conflict, with the
//! record that the first one made.
//!
//! Whatever begins with `lb:` belongs to this program: a key of another type there counts as missing, is reported, and
//! is replaced by the next write.

mod address;
mod connect;
mod generation;
mod keeper;
mod scripts;

pub use address::RedisUrlError;

use super::store::{Key, Kind, Memory, Read, Store, Unreachable, Write, Written};
use crate::telemetry::Seldom;
use address::Address;
use bytes::Bytes;
use connect::{CALL_DEADLINE, Connection, PREFIX};
use futures::future::{BoxFuture, FutureExt, join_all};
use keeper::{Keeper, Shared};
use redis::cluster_routing::Slot;
use redis::{RedisResult, Value};
use scripts::{Record, Reply};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// The longest that a list may take; each of its batches has [`CALL_DEADLINE`].
const LIST_DEADLINE: Duration = Duration::from_secs(20);

/// Records of one call that are under way at a time.
const BATCH: usize = 128;

/// Records of all calls that may be under way. A server that does not answer takes this many and no more.
const IN_FLIGHT: usize = 8192;

/// Lists that may be under way; more of them wait for their turn.
const LISTS: usize = 2;

/// Keys that a server looks at for one step of a list: below a millisecond of its time.
const SCAN_COUNT: usize = 1000;

/// The most records that a list may have: some four times what a reactor takes.
const LIST_MAX: usize = 500_000;

/// A [`Store`] in Redis.
pub struct Redis {
    shared: Arc<Shared>,
    in_flight: Semaphore,
    lists: Semaphore,
    overloaded: Seldom,
    foreign: Seldom,
    /// Ends the task that keeps the connection together with the store.
    _keeper: AbortOnDropHandle<()>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("place", &self.shared.address.place).finish_non_exhaustive()
    }
}

impl Redis {
    /// Starts to connect, and goes on trying for as long as the store lives. Reads the file of a CA, if `url` names one.
    ///
    /// Errors: `url` is no address of a store. That nobody answers there is not an error.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(url: &str) -> Result<Self, RedisUrlError> {
        let shared = Arc::new(Shared::new(Address::parse(url)?));
        let keeper = tokio::spawn(Keeper::new(shared.clone()).run());
        Ok(Redis {
            shared,
            in_flight: Semaphore::new(IN_FLIGHT),
            lists: Semaphore::new(LISTS),
            overloaded: Seldom::default(),
            foreign: Seldom::default(),
            _keeper: AbortOnDropHandle::new(keeper),
        })
    }

    /// Whether `url` can be given to [`Redis::start`].
    ///
    /// Errors: it cannot, and why.
    pub fn check(url: &str) -> Result<(), RedisUrlError> {
        Address::parse(url).map(drop)
    }

    /// Waits until it can be called.
    pub async fn connected(&self) {
        self.shared.up().await;
    }

    /// One step for each of some records, all under way together. In their order.
    async fn each<'a, T, F>(
        &'a self,
        items: &'a [T],
        key: impl Fn(&T) -> &Key,
        step: impl Fn(Connection, &'a T) -> F,
    ) -> Replies
    where
        F: Future<Output = RedisResult<Value>>,
    {
        let mut replies = Vec::with_capacity(items.len());
        for items in items.chunks(BATCH) {
            let permits = u32::try_from(items.len()).unwrap_or(u32::MAX);
            let Ok(_permits) = self.in_flight.try_acquire_many(permits) else {
                if let Some(held_back) = self.overloaded.pass() {
                    let store = &self.shared.address.place;
                    tracing::warn!(%store, held_back, "too many calls wait for the store: refused");
                }
                return Err(Unreachable);
            };
            let up = self.shared.ready().await?;
            let failed = |item| up.failed.contains(&Slot::for_key(text(key(item))));
            if !up.failed.is_empty() && items.iter().any(failed) {
                return Err(Unreachable);
            }
            let answers = join_all(items.iter().map(|item| step(up.connection.clone(), item)));
            let answers = tokio::select! {
                answers = answers => answers,
                () = self.shared.down() => return Err(Unreachable),
            };
            for answer in answers {
                replies.push(self.reply(&up.connection, answer).await?);
            }
        }
        Ok(replies)
    }

    async fn reply(&self, used: &Connection, answer: RedisResult<Value>) -> Result<Reply, Unreachable> {
        let answer = answer.map_err(|error| {
            self.shared.failed(used, &error);
            Unreachable
        })?;
        let Some(reply) = Reply::decode(answer) else {
            tracing::warn!(store = %self.shared.address.place, "the store answers what no script of ours says");
            return Err(Unreachable);
        };
        if let Reply::Record(Record { foreign: true, .. }) = &reply
            && let Some(held_back) = self.foreign.pass()
        {
            let store = &self.shared.address.place;
            tracing::warn!(%store, held_back, "a key of ours holds what another program wrote; it counts as missing");
        }
        if let Reply::Record(Record { process: Some(process), .. }) = &reply {
            self.shared.generation_of(process).await?;
        }
        Ok(reply)
    }

    async fn read_all(&self, keys: &[Key]) -> Result<Vec<Read>, Unreachable> {
        let replies = self.each(keys, |key| key, |on, key| self.read_one(on, key)).await?;
        let record = |reply| match reply {
            Reply::Record(Record { value, now, .. }) => Ok(Read { value, now }),
            Reply::Done => Err(Unreachable),
        };
        replies.into_iter().map(record).collect()
    }

    async fn read_one(&self, on: Connection, key: &Key) -> RedisResult<Value> {
        self.shared.scripts.read.call(&on, &text(key), &[]).await
    }

    async fn write_all(&self, writes: &[Write]) -> Result<Vec<Written>, Unreachable> {
        let replies = self.each(writes, |write| &write.key, |on, write| self.write_one(on, write)).await?;
        let written = |reply| match reply {
            Reply::Done => Written::Done,
            Reply::Record(Record { value, now, .. }) => Written::Conflict(Read { value, now }),
        };
        Ok(replies.into_iter().map(written).collect())
    }

    async fn write_one(&self, on: Connection, write: &Write) -> RedisResult<Value> {
        // Zero is none; what expires within the millisecond expires after one.
        let expiry = write.expiry.map_or(0, |expiry| expiry.as_millis().max(1)).to_string();
        let args = [
            flag(&write.expected),
            bytes(&write.expected),
            flag(&write.value),
            bytes(&write.value),
            expiry.as_bytes(),
            flag(&write.announce),
            self.shared.channel.as_bytes(),
            bytes(&write.announce),
        ];
        self.shared.scripts.write.call(&on, &text(&write.key), &args).await
    }

    async fn list_all(&self, kind: Kind) -> Result<Vec<(Key, Read)>, Unreachable> {
        // The semaphore is never closed.
        let _turn = self.lists.acquire().await.map_err(|_| Unreachable)?;
        let up = self.shared.ready().await?;
        let masters = &up.whole.as_ref().ok_or(Unreachable)?.masters;
        let mut keys = HashSet::new();
        for master in masters {
            self.scan(&up.connection, master, kind, &mut keys).await?;
        }
        let mut records = Vec::with_capacity(keys.len());
        let keys: Vec<_> = keys.into_iter().collect();
        for keys in keys.chunks(BATCH) {
            let reads = timeout(CALL_DEADLINE, self.read_all(keys)).await.map_err(|_| Unreachable)??;
            records.extend(keys.iter().cloned().zip(reads).filter(|(_, read)| read.value.is_some()));
        }
        Ok(records)
    }

    /// All keys of a kind that one master has. A scan may name a key twice.
    async fn scan(
        &self,
        on: &Connection,
        master: &str,
        kind: Kind,
        keys: &mut HashSet<Key>,
    ) -> Result<(), Unreachable> {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(format!("{PREFIX}{}*", word(kind)));
            scan.arg("COUNT").arg(SCAN_COUNT);
            let page = timeout(CALL_DEADLINE, on.call_on(master, scan)).await.map_err(|_| Unreachable)?;
            let page = page.and_then(|page| Ok(redis::from_redis_value::<(String, Vec<String>)>(page)?));
            let (next, page) = page.map_err(|error| {
                self.shared.failed(on, &error);
                Unreachable
            })?;
            keys.extend(page.iter().filter_map(|text| key(kind, text)));
            if keys.len() > LIST_MAX {
                tracing::warn!(store = %self.shared.address.place, "the store holds too many records to list");
                return Err(Unreachable);
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }
}

type Replies = Result<Vec<Reply>, Unreachable>;

impl Store for Redis {
    fn read(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Read>, Unreachable>> {
        async move { in_time(CALL_DEADLINE, &self.shared, self.read_all(&keys)).await }.boxed()
    }

    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Vec<Written>, Unreachable>> {
        async move { in_time(CALL_DEADLINE, &self.shared, self.write_all(&writes)).await }.boxed()
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<Vec<(Key, Read)>, Unreachable>> {
        in_time(LIST_DEADLINE, &self.shared, self.list_all(kind)).boxed()
    }

    fn announcements(&self) -> broadcast::Receiver<Bytes> {
        self.shared.announcements()
    }

    fn memory(&self) -> Option<Memory> {
        self.shared.memory()
    }
}

async fn in_time<T>(
    deadline: Duration,
    shared: &Shared,
    call: impl Future<Output = Result<T, Unreachable>>,
) -> Result<T, Unreachable> {
    timeout(deadline, call).await.unwrap_or_else(|_| {
        shared.late();
        Err(Unreachable)
    })
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "stream:",
        Kind::Node => "node:",
    }
}

/// A record's key on the server.
fn text(key: &Key) -> String {
    match key {
        Key::Stream(name) => format!("{PREFIX}{}{name}", word(Kind::Stream)),
        Key::Node(id) => format!("{PREFIX}{}{id}", word(Kind::Node)),
    }
}

/// The record that a key on the server is; nothing: none, whoever wrote it.
fn key(kind: Kind, text: &str) -> Option<Key> {
    let name = text.strip_prefix(PREFIX)?.strip_prefix(word(kind))?;
    match kind {
        Kind::Stream => name.parse().ok().map(Key::Stream),
        Kind::Node => name.parse().ok().map(Key::Node),
    }
}

fn flag(value: &Option<Bytes>) -> &[u8] {
    if value.is_some() { b"1" } else { b"0" }
}

fn bytes(value: &Option<Bytes>) -> &[u8] {
    value.as_deref().unwrap_or_default()
}
