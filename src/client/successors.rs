//! Where a node's peers may go on when it drains.

use super::http::Http;
use super::urls::{Urls, endpoint};
use crate::api::Successors;
use crate::ids::{NodeId, Origin};
use reqwest::Method;
use std::time::Duration;
use tokio::time::timeout;

/// How long a drain waits to know it. Reactors answer in a few milliseconds; peers who are told of no other node come back by
/// themselves.
const DEADLINE: Duration = Duration::from_millis(250);

/// Other nodes of this role that take new work, as the first reactor says that answers; none if none does in time.
pub async fn successors(http: &Http, reactors: &Urls, node: &NodeId, role: &str) -> Vec<Origin> {
    let ask = async {
        for base in reactors.as_slice() {
            let mut url = endpoint(base, &["nodes", node.as_str(), "successors"]);
            url.query_pairs_mut().append_pair("role", role);
            match http.call(Method::GET, &url, None).await {
                // One of an older version knows no such call.
                Ok(reply) if reply.status.is_success() => {
                    let said = serde_json::from_slice::<Successors>(&reply.body);
                    return said.map(|said| said.origins).unwrap_or_default();
                }
                Ok(reply) => tracing::debug!(status = %reply.status, "a reactor names no successors"),
                Err(error) => tracing::debug!("a reactor names no successors: {error}"),
            }
        }
        Vec::new()
    };
    timeout(DEADLINE, ask).await.unwrap_or_default()
}
