//! Calls to reactors: to one URL after the other, until a reactor takes it.

use super::http::{Http, Reply};
use super::targets::{Target, Targets};
use super::urls::{Urls, endpoint};
use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The reactors that are told, in the order in which they are tried.
#[derive(Debug)]
pub(super) struct Reactors {
    http: Http,
    targets: Targets,
    /// The one that took the last heartbeat.
    in_contact: Mutex<Option<String>>,
}

/// What a call came to.
pub(super) enum Outcome {
    /// This reactor took it, or refused it with a status that is an answer to the caller.
    Done(Reply, String),
    /// None of the servers has the endpoint.
    Plain,
    /// What each of the URLs did.
    Failed(String),
}

impl Reactors {
    pub(super) fn new(http: Http, urls: &Urls) -> Self {
        Reactors { http, targets: Targets::new(urls), in_contact: Mutex::new(None) }
    }

    /// A heartbeat was taken by this one.
    pub(super) fn heard_by(&self, reactor: &str) {
        *self.in_contact() = Some(reactor.to_owned());
    }

    /// A call with a JSON body.
    pub(super) async fn send(&self, method: Method, path: &[&str], body: &impl Serialize) -> Outcome {
        match serde_json::to_vec(body) {
            Ok(body) => self.call(method, path, None, Some(body.into()), &[]).await,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    /// A call with a JSON body to which these statuses are answers, beside success.
    pub(super) async fn question(&self, path: &[&str], body: &impl Serialize, answers: &[u16]) -> Outcome {
        match serde_json::to_vec(body) {
            Ok(body) => self.call(Method::POST, path, None, Some(body.into()), answers).await,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    /// A call with these query parameters and no body.
    pub(super) async fn ask(&self, method: Method, path: &[&str], query: (&str, &str)) -> Outcome {
        self.call(method, path, Some(query), None, &[]).await
    }

    async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: Option<(&str, &str)>,
        body: Option<Bytes>,
        answers: &[u16],
    ) -> Outcome {
        let mut errors: Vec<String> = Vec::new();
        for target in self.targets.in_order() {
            let mut url = endpoint(&target.url, path);
            if let Some((key, value)) = query {
                url.query_pairs_mut().append_pair(key, value);
            }
            match self.http.call(method.clone(), &url, body.clone()).await {
                Ok(reply) if reply.status.is_success() || answers.contains(&reply.status.as_u16()) => {
                    target.works();
                    return Outcome::Done(reply, target.name());
                }
                Ok(reply) if matches!(reply.status.as_u16(), 404 | 405) && !self.knows(target) => {
                    if target.plain() {
                        tracing::info!(
                            url = target.name(),
                            "this web server knows lookups only: it gets no heartbeats, and is asked again now and then"
                        );
                    }
                }
                Ok(reply) => {
                    target.failed();
                    errors.push(format!("{}: {}", target.name(), reply.status));
                }
                Err(error) => {
                    target.failed();
                    errors.push(error.to_string());
                }
            }
        }
        if errors.is_empty() { Outcome::Plain } else { Outcome::Failed(errors.join("; ")) }
    }

    /// Whether this is the reactor that took the last heartbeat: its 404 comes from a proxy before it, in an outage.
    fn knows(&self, target: &Target) -> bool {
        self.in_contact().as_deref() == Some(&target.name())
    }

    fn in_contact(&self) -> MutexGuard<'_, Option<String>> {
        self.in_contact.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
