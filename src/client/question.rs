//! What is asked, and by what its answer is remembered.

use crate::ids::{SessionId, StreamName};
use bytes::Bytes;

/// The two lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Publisher,
    Watcher,
}

/// One question.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) kind: Kind,
    pub(super) name: StreamName,
    pub(super) session: Option<SessionId>,
    pub(super) body: Bytes,
}

impl Kind {
    /// The value of the label of metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Kind::Publisher => "publisher",
            Kind::Watcher => "watcher",
        }
    }
}

impl Question {
    /// What the answer is remembered by.
    pub(super) fn key(&self) -> (Kind, StreamName) {
        (self.kind, self.name.clone())
    }
}
