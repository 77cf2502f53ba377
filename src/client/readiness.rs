//! Asks the admin port of a process whether it is ready.

use super::error::Error;
use super::http::Http;
use super::urls::endpoint;
use crate::telemetry::shown;
use reqwest::Method;
use serde::Deserialize;
use url::Url;

/// Why a process is not, as far as is known; one sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// It says so, with its reasons.
    #[error("not ready: {0}")]
    Reasons(String),
    /// It does not answer.
    #[error(transparent)]
    Silent(#[from] Error),
}

#[derive(Default, Deserialize)]
struct Answer {
    #[serde(default)]
    reasons: Vec<String>,
}

/// Asks within [`super::CALL_DEADLINE`].
///
/// Errors: see [`NotReady`].
pub async fn ready(http: &Http, admin: &Url) -> Result<(), NotReady> {
    let reply = http.call(Method::GET, &endpoint(admin, &["readyz"]), None).await?;
    if reply.status.is_success() {
        return Ok(());
    }
    let Answer { reasons } = serde_json::from_slice(&reply.body).unwrap_or_default();
    let why = if reasons.is_empty() { reply.status.to_string() } else { reasons.join("; ") };
    Err(NotReady::Reasons(shown(&why)))
}
