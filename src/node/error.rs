//! Why a process does not run.

use crate::config;
use crate::steps::ConfigError;
use std::io;
use std::net::SocketAddr;

/// Why a process ends other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags, files, configurations: exit code 2.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// A configuration that turned out wrong when it ran: exit code 2.
    #[error(transparent)]
    Workflow(#[from] ConfigError),
    /// A port that cannot be listened on.
    #[error("{what} cannot listen on {address}: {error}")]
    Bind {
        /// What wanted it.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The system does not give what is needed.
    #[error("{0}")]
    Start(String),
}

impl Error {
    /// The exit code: 2 for wrong usage or configuration, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) | Error::Workflow(_) => 2,
            Error::Bind { .. } | Error::Start(_) => 1,
        }
    }
}

/// Whatever the system does not give.
pub(super) fn start_error(error: impl std::fmt::Display) -> Error {
    Error::Start(error.to_string())
}
