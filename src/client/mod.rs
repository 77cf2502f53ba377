//! A node's side of the reactor's HTTP API: lookups, heartbeats and events, see [`crate::api`].
//!
//! One rule shapes this module: an outage of the registry must never hurt a running stream. A question is answered with
//! the last good answer for as long as no reactor says anything better, every call has a deadline, and nothing here
//! blocks on a slow reactor or on a slow reader.
//!
//! | part | job |
//! |---|---|
//! | [`Http`] | one pool of connections, with deadlines and caps |
//! | [`Lookup`] | who may publish, and where a stream can be pulled from |
//! | [`Agent`] | heartbeats and releases of what [`crate::published::Published`] lists |
//! | [`PushLeases`] | whether this node may push a stream to other servers |
//! | [`Events`] | changes of ownership, as they happen |
//! | [`Reporter`] | how streams are doing, for people |
//! | [`Operator`] | what an operator's commands ask |
//! | [`successors()`] | where a node's peers may go on when it drains |
//!
//! It deliberately does not know workflows, RTMP or what a node does with an answer.

mod agent;
mod cache;
mod calls;
mod contact;
mod error;
mod events;
mod http;
mod lookup;
mod metrics;
mod operator;
mod push_lease;
mod question;
mod readiness;
mod releases;
mod reporter;
mod successors;
mod targets;
mod urls;
mod web;

pub use agent::{Agent, Settings as AgentSettings};
pub use contact::Contact;
pub use error::Error;
pub use events::{Event, Events, KEEP_ALIVE, Settings as EventsSettings};
pub use http::{
    BODY_MAX, CALL_DEADLINE, CONNECT_DEADLINE, Http, REDIRECTS_MAX, Reply, install_crypto_provider,
};
pub use lookup::{Answer, Lookup};
pub use metrics::ClientMetrics;
pub use operator::{Operator, OperatorError};
pub use push_lease::{PushLease, PushLeases, Superseded};
pub use readiness::{NotReady, ready};
pub use reporter::{REPORTS, Reporter};
pub use successors::successors;
pub use targets::PLAIN_SERVER_RETRY;
pub use urls::Urls;
