//! A node's side of the reactor's HTTP API: lookups, heartbeats and events, see [`crate::api`].
//!
//! One rule shapes this module: an outage of the registry must never hurt a running stream. A question is answered with
//! the last good answer for as long as no reactor says anything better, every call has a deadline, and nothing here
//! blocks on a slow reactor or on a slow reader.
//!
//! | part | job |
//! |---|---|
//! | [`Http`] | one pool of connections, with deadlines and caps |
//! | [`Lookup`] | who may publish, and where a stream can be pulled from |
//! | [`Agent`] | heartbeats and releases |
//! | [`Events`] | changes of ownership, as they happen |
//!
//! It deliberately does not know workflows, RTMP or what a node does with an answer.

mod agent;
mod backoff;
mod events;
mod flights;
mod http;
mod lookup;
mod memory;
mod metrics;
mod published;
mod targets;
mod urls;

pub use agent::{Agent, Contact, Settings as AgentSettings};
pub use events::{Event, Events, KEEP_ALIVE, Settings as EventsSettings};
pub use http::{
    BODY_MAX, CALL_DEADLINE, CONNECT_DEADLINE, Http, REDIRECTS_MAX, Reply, install_crypto_provider,
};
pub use lookup::{Answer, Lookup};
pub use metrics::ClientMetrics;
pub use published::{Published, Registration};
pub use urls::Urls;

/// How long a web server that is no reactor (404 or 405 where a reactor has an endpoint) is left alone before it is
/// tried again.
pub const PLAIN_SERVER_RETRY: std::time::Duration = std::time::Duration::from_secs(60);

/// What can go wrong between a node and a reactor. No text holds user names, passwords or query strings of URLs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A configured URL cannot be used. The text itself is not shown: it may hold a password.
    #[error(
        "reactor URL number {position} {why}; http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH] is allowed, \
         several are separated by commas"
    )]
    Url {
        /// Which one of the list, counted from 1.
        position: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The bearer token cannot be sent.
    #[error("the reactor token is empty or has a character outside visible ASCII")]
    Token,
    /// The HTTP client cannot be built.
    #[error("the HTTP client cannot be built: {0}")]
    Client(String),
    /// No connection, or it broke.
    #[error("{url}: {why}")]
    Transport {
        /// The URL, without user name, password and query.
        url: String,
        /// The innermost cause.
        why: String,
    },
    /// Slower than [`CALL_DEADLINE`].
    #[error("{url}: no complete answer within {} s", CALL_DEADLINE.as_secs())]
    Deadline {
        /// The URL, without user name, password and query.
        url: String,
    },
    /// Longer than [`BODY_MAX`].
    #[error("{url}: the answer is longer than {BODY_MAX} bytes")]
    TooLong {
        /// The URL, without user name, password and query.
        url: String,
    },
}
