//! How authorities reach web servers.

use bytes::Bytes;
use futures::future::BoxFuture;
use std::fmt;
use url::Url;

/// How authorities reach web servers. Each call has a deadline and a bound on the answer.
pub trait Web: Send + Sync + fmt::Debug {
    /// Fetches a document.
    fn get(&self, url: &Url) -> BoxFuture<'static, Result<Fetched, String>>;
    /// Sends JSON.
    fn post(&self, url: &Url, json: Vec<u8>) -> BoxFuture<'static, Result<Fetched, String>>;
}

/// An answer from the web.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// A URL as it may stand in a log.
pub(super) fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}
