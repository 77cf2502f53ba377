//! The RTMP sockets of a node: listeners and connections, publishing and playing, pulling from other servers and pushing to them.
//!
//! A connection is one task that reads as a story: negotiate, then publish or play, until it ends. Who may do what is
//! decided by the [`routes`], which the floors above fill; this floor knows nothing of workflows or reactors.

pub mod acl;
mod addresses;
mod audience;
pub mod certificate;
mod connection;
mod dial;
mod elsewhere;
pub mod hls;
pub mod http;
mod idle;
mod listener;
pub mod location;
mod low_water;
pub mod origins;
pub mod peers;
mod play;
pub mod ports;
pub mod proxy;
mod publish;
pub mod pull;
pub mod push;
pub mod rate;
pub mod routes;
mod serve;
pub mod server;
mod socket;
mod tls;
mod transport;
mod viewing;

pub use addresses::customer;
pub use elsewhere::Elsewhere;
pub use peers::Peers;
pub use ports::{PortGuard, Ports};
pub use server::{Entrance, Limits, Parts, Protocol, Server};

/// Random bytes for a handshake.
fn nonce() -> crate::rtmp::Nonce {
    let mut nonce = [0; size_of::<crate::rtmp::Nonce>()];
    rand::Rng::fill(&mut rand::rng(), &mut nonce[..]);
    nonce
}
