//! What is asked of an authority.

use crate::ids::SessionId;
use std::fmt;
use std::net::IpAddr;

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a stream.
    Publish,
    /// Watch one.
    Play,
}

impl Action {
    /// Its name in questions to authorities.
    pub fn name(self) -> &'static str {
        match self {
            Action::Publish => "publish",
            Action::Play => "play",
        }
    }
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
