//! The flags of what peers may make the process hold and do.

use super::duration;
use clap::Args;
use std::time::Duration;

/// See the module's head.
#[derive(Clone, Debug, Args)]
pub struct LimitArgs {
    /// The most RTMP connections
    #[arg(
        long,
        env = "LB_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 100_000,
        help_heading = "Limits"
    )]
    pub max_connections: usize,

    /// The most RTMP connections of one address
    #[arg(
        long,
        env = "LB_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "N",
        default_value_t = 20_000,
        help_heading = "Limits"
    )]
    pub max_connections_per_address: usize,

    /// From a connection's first byte to its publish or play
    #[arg(
        long,
        env = "LB_HANDSHAKE_TIMEOUT",
        value_name = "TIME",
        default_value = "10s",
        value_parser = duration,
        help_heading = "Limits"
    )]
    pub handshake_timeout: Duration,

    /// The longest RTMP message, in bytes
    #[arg(
        long,
        env = "LB_MAX_MESSAGE_BYTES",
        value_name = "BYTES",
        default_value_t = crate::rtmp::MESSAGE_BYTES,
        help_heading = "Limits"
    )]
    pub max_message_bytes: usize,

    /// How long a stop may take until connections are cut
    #[arg(
        long,
        env = "LB_DRAIN_TIMEOUT",
        value_name = "TIME",
        default_value = "10s",
        value_parser = duration,
        help_heading = "Limits"
    )]
    pub drain_timeout: Duration,
}
