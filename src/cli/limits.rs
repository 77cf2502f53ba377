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
        default_value_t = 5_000,
        help_heading = "Limits"
    )]
    pub max_connections_per_address: usize,

    /// The most connections, publishes and plays of one address within ten seconds
    #[arg(
        long,
        env = "LB_MAX_JOINS_PER_ADDRESS",
        value_name = "N",
        default_value_t = 20_000,
        help_heading = "Limits"
    )]
    pub max_joins_per_address: u64,

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

    /// The most streams that have metrics of their own; 0 for none
    #[arg(
        long,
        env = "LB_STREAM_METRICS",
        value_name = "N",
        default_value_t = 1_000,
        help_heading = "Limits"
    )]
    pub stream_metrics: usize,

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

    /// Messages a second of a publisher, after a burst; what is more waits
    #[arg(
        long,
        env = "LB_MAX_PUBLISH_MESSAGES",
        value_name = "N",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Limits"
    )]
    pub max_publish_messages: u64,

    /// Bytes a second of a publisher, after a burst; what is more waits
    #[arg(
        long,
        env = "LB_MAX_PUBLISH_BYTES",
        value_name = "BYTES",
        default_value = "32MiB",
        value_parser = bytes,
        help_heading = "Limits"
    )]
    pub max_publish_bytes: u64,

    /// What all peers together may make the process hold; beyond it, those who make it hold most are closed [default: half
    /// of the memory that the process may use]
    #[arg(long, env = "LB_MEMORY_BUDGET", value_name = "BYTES", value_parser = bytes, help_heading = "Limits")]
    pub memory_budget: Option<u64>,
}

/// A size like `512MiB`, `2GiB` or `65536`.
fn bytes(text: &str) -> Result<u64, String> {
    let allowed = || "a size is like 65536, 512MiB or 2GiB".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return Err(allowed()),
    };
    let number: u64 = digits.parse().map_err(|_| allowed())?;
    number.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or_else(allowed)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn a_size_is_read_with_its_unit() {
        assert_eq!(bytes("65536"), Ok(65536));
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("2G"), Ok(2 << 30));
        for bad in ["", "0", "MiB", "1.5GiB", "-1", "1 KiB", "1TiB", "99999999999GiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
