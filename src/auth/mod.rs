//! Who may publish and play: asks the authorities that are configured, in their order.
//!
//! What a publisher types into its encoder is a secret; the name of a stream is public. An authority maps the one to the
//! other and may say who the publisher is. Nothing here knows connections, routes or reactors.

use crate::ids::{Identity, SessionId, StreamName};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::time::Instant;

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a stream.
    Publish,
    /// Watch one.
    Play,
}

/// What is asked of an authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// What is wanted.
    pub action: Action,
    /// The RTMP app.
    pub app: String,
    /// The stream key without its query, as the peer sent it. Secret when publishing.
    pub key: String,
    /// The query of the key, else that of the app, without `?`. Secret.
    pub query: Option<String>,
    /// The peer's address.
    pub peer: IpAddr,
    /// This publish or play.
    pub session: SessionId,
}

/// Leaves out what may hold secrets.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("action", &self.action)
            .field("app", &self.app)
            .field("peer", &self.peer)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// Leave to publish or play.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The stream's public name.
    pub name: StreamName,
    /// Who it is, if the authority knows.
    pub identity: Option<Identity>,
    /// When a running session is to end; nothing: it may go on.
    pub until: Option<Instant>,
}

/// Why somebody may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Denied {
    /// The label of the refusal's counter.
    pub reason: &'static str,
    /// One sentence for the peer, without secrets.
    pub text: String,
}

/// The door: all authorities of a node. Without any, everybody may do everything, and a key is a name.
#[derive(Debug, Default)]
pub struct Gate {}

impl Gate {
    /// A door that is open.
    pub fn open() -> Arc<Self> {
        Arc::default()
    }

    /// Asks whether somebody may do what they want.
    pub async fn ask(&self, request: &Request) -> Result<Grant, Denied> {
        match StreamName::parse(&request.key) {
            Ok(name) => Ok(Grant { name, identity: None, until: None }),
            Err(error) => Err(Denied { reason: "stream_name", text: error.to_string() }),
        }
    }
}
