//! The command line, as it is written. What it means is worked out in [`crate::config`].

use crate::ids::{NodeId, Origin};
use crate::registry::Policy;
use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Role {
    /// Takes publishers, and lets playback nodes pull from it.
    Ingest,
    /// Serves viewers, and pulls what they want from ingest nodes.
    Playback,
    /// Knows which ingest node holds a stream.
    Reactor,
    /// All three in one process.
    All,
}

/// How a playback node asks to pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PullBy {
    /// By an RTMP client in this process.
    Native,
    /// By ffmpeg.
    Ffmpeg,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Dynamic RTMP load balancing: publish to any ingest node, watch from any playback node; a reactor tells playback nodes
/// which ingest node holds a stream, and a stream is pulled only while somebody watches it.
#[derive(Clone, Debug, Parser)]
#[command(name = "lb", version, max_term_width = 110)]
pub struct Args {
    /// What this process does; several with commas, or repeated
    #[arg(long, env = "LB_ROLE", value_enum, value_delimiter = ',', required = true)]
    pub role: Vec<Role>,

    /// Where nodes find reactors, tried in order [default: http://127.0.0.1:8080, or the reactor in this process]
    #[arg(long, env = "LB_REACTOR_URL", value_name = "URL[,URL...]", help_heading = "Topology")]
    pub reactor_url: Option<String>,

    /// Where the reactor in this process listens; given beside any role it also starts the reactor [default for the role
    /// reactor: [::]:8080]
    #[arg(long, env = "LB_REACTOR_LISTEN", value_name = "ADDR:PORT", help_heading = "Topology")]
    pub reactor_listen: Option<SocketAddr>,

    /// The RTMP port; fills ${RTMP_PORT} in configs; 0 picks a free one
    #[arg(
        long,
        env = "LB_RTMP_PORT",
        value_name = "PORT",
        default_value_t = 1935,
        help_heading = "Topology"
    )]
    pub rtmp_port: u16,

    /// The origin this ingest node registers [default: the address its requests come from, and its RTMP port]
    #[arg(long, env = "LB_ADVERTISE", value_name = "HOST[:PORT]", help_heading = "Topology")]
    pub advertise: Option<String>,

    /// This node's name to reactors [default: a random one]
    #[arg(long, env = "LB_NODE_ID", value_name = "ID", help_heading = "Topology")]
    pub node_id: Option<NodeId>,

    /// Health, metrics and workflows, or 'off'
    #[arg(
        long,
        env = "LB_ADMIN_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:9011",
        help_heading = "Topology"
    )]
    pub admin_listen: String,

    /// Replaces the role's bundled mmids config
    #[arg(long, env = "LB_CONFIG", value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,

    /// Check flags and config, and exit
    #[arg(long, help_heading = "Configuration")]
    pub check: bool,

    /// Print the config that would run, and exit
    #[arg(long, help_heading = "Configuration")]
    pub print_config: bool,

    /// What is logged, as 'LEVEL' or 'LEVEL,TARGET=LEVEL,...'
    #[arg(
        long,
        env = "LB_LOG",
        value_name = "FILTER",
        default_value = "info",
        help_heading = "Configuration"
    )]
    pub log: String,

    /// How it is logged
    #[arg(
        long,
        env = "LB_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Configuration"
    )]
    pub log_format: LogFormat,

    /// How a playback node asks to pull
    #[arg(
        long,
        env = "LB_PULL",
        value_name = "BY",
        value_enum,
        default_value = "native",
        help_heading = "Media"
    )]
    pub pull: PullBy,

    /// The ffmpeg that ffmpeg_pull runs
    #[arg(
        long,
        env = "LB_FFMPEG_PATH",
        value_name = "PATH",
        default_value = "ffmpeg",
        help_heading = "Media"
    )]
    pub ffmpeg_path: PathBuf,

    /// The batch window: what arrives within this many milliseconds is sent to viewers in one write [default: audio is sent
    /// with the video frame that follows it]
    #[arg(long, env = "LB_BATCH_MS", value_name = "MS", help_heading = "Media")]
    pub batch_ms: Option<u64>,

    /// The old name of `--batch-ms`, which comes first
    #[arg(long, env = "LB_GATHER_MS", value_name = "MS", hide = true)]
    gather_ms: Option<u64>,

    /// How long viewers are kept when their publisher is gone
    #[arg(
        long,
        env = "LB_PUBLISHER_GRACE",
        value_name = "TIME",
        default_value = "30s",
        value_parser = duration,
        help_heading = "Media"
    )]
    pub publisher_grace: Duration,

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

    /// The token that nodes show to reactors and reactors ask of nodes
    #[arg(
        long,
        env = "LB_REACTOR_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "reactor_token_file",
        help_heading = "Reactor"
    )]
    pub reactor_token: Option<String>,

    /// A file that holds the token
    #[arg(long, env = "LB_REACTOR_TOKEN_FILE", value_name = "FILE", help_heading = "Reactor")]
    pub reactor_token_file: Option<PathBuf>,

    /// How often nodes report to the reactor; a node that misses three reports loses its streams
    #[arg(
        long,
        env = "LB_HEARTBEAT",
        value_name = "TIME",
        default_value = "5s",
        value_parser = duration,
        help_heading = "Reactor"
    )]
    pub heartbeat: Duration,

    /// The reactor's store: 'memory', redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// with TLS, or
    /// redis+sentinel://HOST[,HOST...]/MASTER-NAME or redis+cluster://HOST[,HOST...]; see docs/OPERATING.md
    #[arg(
        long,
        env = "LB_STORE",
        value_name = "STORE",
        default_value = "memory",
        hide_env_values = true,
        help_heading = "Reactor"
    )]
    pub store: String,

    /// The reactor's reply to watcher lookups: a workflow with {stream_name} and {ip_address}, and {pull} for the step
    #[arg(long, env = "LB_WATCHER_TEMPLATE", value_name = "FILE", help_heading = "Reactor")]
    pub watcher_template: Option<PathBuf>,

    /// What the reactor does with a second publisher of a name: 'takeover' or 'first-wins'
    #[arg(
        long,
        env = "LB_DUPLICATE_PUBLISH",
        value_name = "POLICY",
        default_value = "takeover",
        help_heading = "Reactor"
    )]
    pub duplicate_publish: Policy,

    /// Proxies in front of the reactor, whose X-Forwarded-For is believed
    #[arg(
        long,
        env = "LB_TRUSTED_PROXIES",
        value_name = "NET[,NET...]",
        value_delimiter = ',',
        help_heading = "Reactor"
    )]
    pub trusted_proxies: Vec<IpNet>,
}

impl Args {
    /// The origin to register, if one was given. Its port is the RTMP port unless it names another.
    pub fn origin(&self, rtmp_port: u16) -> Result<Option<Origin>, crate::ids::OriginError> {
        self.advertise.as_deref().map(|text| Origin::parse(text, rtmp_port)).transpose()
    }

    /// The batch window in milliseconds, if one was set, by its name or its old one.
    pub fn batch_window_ms(&self) -> Option<u64> {
        self.batch_ms.or(self.gather_ms)
    }
}

/// A time like `5s`, `250ms` or `2m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| "a time is like 250ms, 5s or 2m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_window_is_set_by_its_name_or_its_old_one() {
        let window =
            |args: &[&str]| Args::parse_from([&["lb", "--role", "ingest"], args].concat()).batch_window_ms();
        assert_eq!(window(&[]), None);
        assert_eq!(window(&["--batch-ms", "100"]), Some(100));
        assert_eq!(window(&["--gather-ms", "50"]), Some(50));
        assert_eq!(window(&["--gather-ms", "50", "--batch-ms", "0"]), Some(0));
    }
}
