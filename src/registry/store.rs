//! Where the registry keeps its records: compare-and-set with expiry, and news of what was written.
//!
//! A store has no opinion: it does not know what a record means, who owns a stream name or when somebody loses it
//! ([`super::rules`] decides that). Each key is independent of every other, so that a cluster can spread them.

use crate::ids::{NodeId, StreamName};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::fmt;
use std::time::Duration;
use tokio::sync::broadcast;

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The record of a stream name.
    Stream(StreamName),
    /// The record of a node.
    Node(NodeId),
}

/// The kinds of keys, for [`Store::list`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`Key::Stream`].
    Stream,
    /// [`Key::Node`].
    Node,
}

/// A record as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The record; nothing: there is none, or it has expired.
    pub value: Option<Bytes>,
    /// Milliseconds on the clock of the server that keeps this key. Times in a record are compared with this and with
    /// no other clock.
    pub now: u64,
}

/// A change of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which record.
    pub key: Key,
    /// What the record must be for the change to happen.
    pub expected: Option<Bytes>,
    /// What it becomes; nothing: it is removed.
    pub value: Option<Bytes>,
    /// The record disappears by itself after this time; nothing: it stays.
    pub expiry: Option<Duration>,
    /// What every subscriber of every process hears if the change happens, and only then.
    pub announce: Option<Bytes>,
}

/// What became of a [`Write`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The record is what the write says.
    Done,
    /// The record was something else, which is this. Nothing was changed.
    Conflict(Read),
}

/// The store cannot be reached, or did not answer in time. A write may or may not have happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be reached")]
pub struct Unreachable;

/// How long a store has kept what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Another number: it has begun anew, or may have lost what was written last (another server took over). Every process
    /// that uses the store sees the same number.
    pub generation: u64,
    /// Time since this generation began.
    pub age: Duration,
}

/// See the module's head. All calls are bounded in time.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Reads records, in the order of the keys, each as it stands at some moment during the call.
    fn read(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Read>, Unreachable>>;

    /// Changes records, each for itself: some may be done and others not. In the order of the writes.
    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Vec<Written>, Unreachable>>;

    /// All records of a kind. Not a snapshot: what changes during the call may be seen before or after its change.
    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<Vec<(Key, Read)>, Unreachable>>;

    /// What is announced from now on, by any process. A subscriber that lags is told so by the channel. An empty
    /// announcement means that others may be missing: the store could not be reached for a while, or another server
    /// took over.
    fn announcements(&self) -> broadcast::Receiver<Bytes>;

    /// How long it has kept what it was told; nothing while it cannot be reached.
    fn memory(&self) -> Option<Memory>;
}
