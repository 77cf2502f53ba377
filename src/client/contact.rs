//! Whether reactors hear a node.

use tokio::time::Instant;

/// Whether reactors hear the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contact {
    /// No call has ended yet.
    Untried,
    /// A reactor takes the node's heartbeats.
    Reachable {
        /// Since when without a failure.
        since: Instant,
        /// Its URL, without user name, password and query.
        reactor: String,
    },
    /// No reactor takes them.
    Unreachable {
        /// Since when.
        since: Instant,
        /// What the last call of each URL came to.
        error: String,
    },
    /// The URLs lead to web servers that know lookups only: there is nobody to tell.
    Plain,
}
