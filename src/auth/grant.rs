//! What an authority answers.

use super::notice::Notice;
use crate::ids::{Identity, StreamName, StreamNameError};
use tokio::time::Instant;

/// Leave to publish or play. Dropping it says that it is over.
#[derive(Debug)]
pub struct Grant {
    /// The stream's public name.
    pub name: StreamName,
    /// Who it is, if the authority knows.
    pub identity: Option<Identity>,
    /// When a running session is to end; nothing: it may go on.
    pub until: Option<Instant>,
    /// Who is told that it is over.
    pub(super) _notice: Option<Notice>,
}

impl Grant {
    pub(super) fn of(name: StreamName) -> Self {
        Grant { name, identity: None, until: None, _notice: None }
    }
}

const OUTAGE: &str = "auth_outage";

/// Why somebody may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Denied {
    /// The label of the refusal's counter.
    pub reason: &'static str,
    /// One sentence for the peer, without secrets.
    pub text: String,
}

impl Denied {
    /// Whoever decides cannot be asked now: another time it may be allowed.
    pub(super) fn outage(text: impl Into<String>) -> Self {
        Denied { reason: OUTAGE, text: text.into() }
    }

    /// See [`Denied::outage`].
    pub fn is_outage(&self) -> bool {
        self.reason == OUTAGE
    }

    pub(super) fn new(text: impl Into<String>) -> Self {
        Denied { reason: "unauthorized", text: text.into() }
    }
}

impl From<StreamNameError> for Denied {
    fn from(error: StreamNameError) -> Self {
        Denied { reason: "stream_name", text: error.to_string() }
    }
}

/// What an authority thinks of a request.
pub(super) enum Opinion {
    Granted(Grant),
    Denied(Denied),
    /// It does not decide about this.
    None,
}
