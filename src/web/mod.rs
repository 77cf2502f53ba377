//! The HTTP side of `lb`: the reactor's API and the admin port. The only place that names the web framework.
//!
//! [`reactor`] and [`admin`] make routes, [`server`] serves them on a socket that is bound already. Handlers see a
//! [`request::Request`] and answer with a reply or a [`request::Failure`], which is always JSON with an `error`.
//! Nothing here knows how leases are kept, what a workflow is or how metrics are collected: all that is handed in.

pub mod admin;
mod cluster;
mod door;
mod events;
pub mod forwarded;
mod metrics;
mod openapi;
mod page;
mod probes;
mod query;
pub mod reactor;
mod request;
mod secret;
pub mod server;
mod template;
mod unknown_names;

pub use door::{AllowedOrigin, Door};
pub use metrics::ReactorMetrics;
pub use secret::{Secret, SecretError};
pub use template::{Template, TemplateError};

use warp::filters::BoxedFilter;
use warp::reply::Response;

/// What a server answers with.
pub type Routes = BoxedFilter<(Response,)>;
