//! What can go wrong between a node and a reactor.

use std::time::Duration;

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
    /// Slower than [`super::CALL_DEADLINE`].
    #[error("{url}: no complete answer within {} s", within.as_secs())]
    Deadline {
        /// The URL, without user name, password and query.
        url: String,
        /// The deadline.
        within: Duration,
    },
    /// Longer than [`super::BODY_MAX`].
    #[error("{url}: the answer is longer than {most} bytes")]
    TooLong {
        /// The URL, without user name, password and query.
        url: String,
        /// The limit, in bytes.
        most: usize,
    },
}
