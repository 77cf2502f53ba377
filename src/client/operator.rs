//! What operators ask of a running cluster: its streams and nodes, and that a publisher be sent away.

use super::error::Error;
use super::http::{Http, Reply};
use super::urls::{Urls, endpoint};
use crate::api::cluster::Cluster;
use crate::api::report::{Timeline, TimelineEntry};
use crate::api::{NodeEntry, NodeList, Refusal, StreamEntry, StreamList};
use crate::ids::{NodeId, StreamName};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;

/// The ages of one event, as two reactors tell them that are asked at the same time, differ by no more than this.
const SAME_MS: u64 = 1_500;

/// Whoever asks, with the reactors that are asked in order.
#[derive(Debug)]
pub struct Operator {
    http: Http,
    reactors: Urls,
}

/// Why there is no answer; one sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No reactor answered.
    #[error("no reactor answers: {0}")]
    Away(String),
    /// A reactor refused.
    #[error("the reactor refuses ({0}): {1}")]
    Refused(StatusCode, String),
    /// The stream is not published.
    #[error("the stream '{0}' is not published")]
    Unknown(StreamName),
    /// No reactor hears of the node.
    #[error("no reactor hears of the node '{0}'")]
    UnknownNode(NodeId),
    /// What came is no answer of a reactor.
    #[error("what answers is no reactor of this version: {0}")]
    Garbage(String),
}

impl Operator {
    /// An operator who reaches reactors by these connections, with the token if they have one.
    pub fn new(http: Http, reactors: Urls) -> Self {
        Operator { http, reactors }
    }

    /// All streams, ordered by name.
    ///
    /// Errors: the first reactor that answers does not give them, or none answers.
    pub async fn streams(&self) -> Result<Vec<StreamEntry>, OperatorError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let StreamList { streams, next } = self.list("streams", after.as_deref()).await?;
            all.extend(streams);
            match next {
                Some(next) => after = Some(next.as_str().to_owned()),
                None => return Ok(all),
            }
        }
    }

    /// All nodes, ordered by id.
    ///
    /// Errors: as of [`Operator::streams`].
    pub async fn nodes(&self) -> Result<Vec<NodeEntry>, OperatorError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let NodeList { nodes, next } = self.list("nodes", after.as_deref()).await?;
            all.extend(nodes);
            match next {
                Some(next) => after = Some(next.as_str().to_owned()),
                None => return Ok(all),
            }
        }
    }

    /// Sends the publisher of a stream away, for this reason if there is one. An encoder that reconnects is let in again.
    ///
    /// Errors: the stream is not published; and as of [`Operator::streams`].
    pub async fn kick(&self, name: &StreamName, reason: Option<&str>) -> Result<(), OperatorError> {
        let mut path = vec!["streams"];
        path.extend(name.as_str().split('/'));
        let reply = self.call(Method::DELETE, &path, reason.map(|reason| ("reason", reason))).await?;
        match reply.status {
            StatusCode::NOT_FOUND => Err(OperatorError::Unknown(name.clone())),
            status if status.is_success() => Ok(()),
            status => Err(refused(status, &reply)),
        }
    }

    /// The whole cluster as the page shows it.
    ///
    /// Errors: as of [`Operator::streams`].
    pub async fn cluster(&self) -> Result<Cluster, OperatorError> {
        self.list("cluster", None).await
    }

    /// Has a node drain and stop. Every reactor is asked, as the node may report to any of them.
    ///
    /// Errors: no reactor hears of the node.
    pub async fn drain(&self, node: &NodeId) -> Result<(), OperatorError> {
        let replies = self.each(Method::POST, &["nodes", node.as_str(), "drain"]).await?;
        if replies.iter().any(|reply| reply.status.is_success()) {
            return Ok(());
        }
        match replies.into_iter().next() {
            Some(reply) if reply.status == StatusCode::NOT_FOUND => {
                Err(OperatorError::UnknownNode(node.clone()))
            }
            Some(reply) => Err(refused(reply.status, &reply)),
            None => Err(OperatorError::UnknownNode(node.clone())),
        }
    }

    /// What happened to a stream, oldest first, as all reactors together know it.
    ///
    /// Errors: no reactor answers.
    pub async fn timeline(&self, name: &StreamName) -> Result<Vec<TimelineEntry>, OperatorError> {
        let mut path = vec!["timelines"];
        path.extend(name.as_str().split('/'));
        let mut all: Vec<TimelineEntry> = Vec::new();
        for reply in self.each(Method::GET, &path).await? {
            if !reply.status.is_success() {
                return Err(refused(reply.status, &reply));
            }
            let timeline: Timeline = serde_json::from_slice(&reply.body)
                .map_err(|error| OperatorError::Garbage(error.to_string()))?;
            for entry in timeline.events {
                if !all.iter().any(|known| is_same(known, &entry)) {
                    all.push(entry);
                }
            }
        }
        all.sort_by_key(|entry| std::cmp::Reverse(entry.event.ago_ms));
        Ok(all)
    }

    /// The answers of all reactors that give one.
    async fn each(&self, method: Method, path: &[&str]) -> Result<Vec<Reply>, OperatorError> {
        let calls = self.reactors.as_slice().iter().map(|base| {
            let (method, url) = (method.clone(), endpoint(base, path));
            // Without a token a reactor takes JSON only, which no foreign page can make a browser send.
            let body = (method != Method::GET).then(|| bytes::Bytes::from_static(b"{}"));
            async move { self.http.call(method, &url, body).await }
        });
        let (mut replies, mut errors) = (Vec::new(), Vec::new());
        for outcome in futures::future::join_all(calls).await {
            match outcome {
                Ok(reply) => replies.push(reply),
                Err(error) => errors.push(error.to_string()),
            }
        }
        if replies.is_empty() { Err(OperatorError::Away(errors.join("; "))) } else { Ok(replies) }
    }

    async fn list<T: DeserializeOwned>(&self, what: &str, after: Option<&str>) -> Result<T, OperatorError> {
        let reply = self.call(Method::GET, &[what], after.map(|after| ("after", after))).await?;
        if !reply.status.is_success() {
            return Err(refused(reply.status, &reply));
        }
        serde_json::from_slice(&reply.body).map_err(|error| OperatorError::Garbage(error.to_string()))
    }

    /// The answer of the first reactor that gives one.
    async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: Option<(&str, &str)>,
    ) -> Result<Reply, OperatorError> {
        let mut errors = Vec::new();
        for base in self.reactors.as_slice() {
            let mut url = endpoint(base, path);
            if let Some((key, value)) = query {
                url.query_pairs_mut().append_pair(key, value);
            }
            match self.http.call(method.clone(), &url, None).await {
                // It may be warming up, or have lost its store: another one may be better off.
                Ok(reply) if reply.status.is_server_error() => {
                    errors.push(refused(reply.status, &reply).to_string())
                }
                Ok(reply) => return Ok(reply),
                Err(error) => errors.push(Error::to_string(&error)),
            }
        }
        Err(OperatorError::Away(errors.join("; ")))
    }
}

/// Whether two reactors were told the same.
fn is_same(one: &TimelineEntry, other: &TimelineEntry) -> bool {
    let near = one.event.ago_ms.abs_diff(other.event.ago_ms) <= SAME_MS;
    let bare = |entry: &TimelineEntry| {
        let mut entry = entry.clone();
        entry.event.ago_ms = 0;
        entry
    };
    near && bare(one) == bare(other)
}

fn refused(status: StatusCode, reply: &Reply) -> OperatorError {
    let said = serde_json::from_slice::<Refusal>(&reply.body).map(|refusal| refusal.error);
    let said = said.unwrap_or_else(|_| "it says no more".to_owned());
    OperatorError::Refused(status, crate::telemetry::shown(&said))
}
