//! The flags of TLS and of proxies in front of the RTMP ports.

use clap::Args;

/// See the module's head.
#[derive(Clone, Debug, Args)]
pub struct TransportArgs {}
