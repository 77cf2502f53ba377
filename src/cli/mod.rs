//! The command line, as it is written. What it means is worked out in [`crate::config`].

// What stands at a flag is its help, where a bracket is a bracket.
#![allow(rustdoc::broken_intra_doc_links)]

mod auth;
mod command;
mod conform;
pub mod environment;
mod explain;
mod failed;
mod limits;
mod media;
mod operate;
mod reactor;
mod role;
mod scope;
mod table;
mod top;
mod transport;

pub use auth::AuthArgs;
pub use command::Command;
pub use failed::Failed;
pub use limits::LimitArgs;
pub use media::MediaArgs;
pub use reactor::ReactorArgs;
pub use role::Role;
pub use transport::TransportArgs;

use crate::ids::{NodeId, Origin};
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
#[command(
    name = "lb",
    version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("LB_COMMIT"), ", ", env!("LB_TARGET"), ")"),
    max_term_width = 110,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Args {
    /// Something else than to run a node
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Which flags were typed.
    #[arg(skip)]
    pub typed: scope::Typed,

    /// What this process does; several with commas, or repeated
    #[arg(long, env = "LB_ROLE", value_enum, value_delimiter = ',', required = true)]
    pub role: Vec<Role>,

    /// Where nodes find reactors, tried in order [default: http://127.0.0.1:8080, or the reactor in this process]
    #[arg(long, env = "LB_REACTOR_URL", value_name = "URL[,URL...]", help_heading = "Topology")]
    pub reactor_url: Option<String>,

    /// Where the reactor in this process listens; given beside any role it also starts the reactor [default for the role
    /// reactor: [::]:8080 with a token, trusted nodes or --insecure, else 127.0.0.1:8080]
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

    /// Where viewers play over HTTP, as FLV (/live/NAME.flv) or by WebSocket, or 'off' [default: [::]:8081 of a playback node,
    /// else off]
    #[arg(long, env = "LB_HTTP_LISTEN", value_name = "ADDR:PORT", help_heading = "Topology")]
    pub http_listen: Option<String>,

    /// The host, with or without a port, under which browsers reach --http-listen [default: the address that reactors see]
    #[arg(long, env = "LB_HTTP_ADVERTISE", value_name = "HOST[:PORT]", help_heading = "Topology")]
    pub http_advertise: Option<String>,

    /// The origin this ingest node registers [default: the address its requests come from, and its RTMP port]
    #[arg(long, env = "LB_ADVERTISE", value_name = "HOST[:PORT]", help_heading = "Topology")]
    pub advertise: Option<String>,

    /// This node's name to reactors; no two nodes may have the same [default: HOST-ROLE-PORT]
    #[arg(long, env = "LB_NODE_ID", value_name = "ID", help_heading = "Topology")]
    pub node_id: Option<NodeId>,

    /// Health, metrics and workflows, or 'off' [default: 127.0.0.1:9011; of a playback node alone 127.0.0.1:9012, of a
    /// reactor alone 127.0.0.1:9013]
    #[arg(long, env = "LB_ADMIN_LISTEN", value_name = "ADDR:PORT", help_heading = "Topology")]
    pub admin_listen: Option<String>,

    /// Where HAProxy's agent-check asks how much of this node is free, or 'off' [default: off]
    #[arg(long, env = "LB_AGENT_LISTEN", value_name = "ADDR:PORT", help_heading = "Topology")]
    pub agent_listen: Option<String>,

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

    /// How media is pulled and sent
    #[command(flatten)]
    pub media: MediaArgs,

    /// Who may publish and play
    #[command(flatten)]
    pub auth: AuthArgs,

    /// TLS and proxies
    #[command(flatten)]
    pub transport: TransportArgs,

    /// What peers may make the process hold and do
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Nodes and reactors
    #[command(flatten)]
    pub reactor: ReactorArgs,
}

impl Args {
    /// Reads a command line, and which of its flags were typed.
    ///
    /// Errors: clap's, which can print themselves.
    pub fn read(line: impl IntoIterator<Item: Into<OsString> + Clone>) -> Result<Args, clap::Error> {
        let matches = Args::command().try_get_matches_from(line)?;
        let typed = scope::Typed::of(&matches);
        Ok(Args { typed, ..Args::from_arg_matches(&matches)? })
    }

    /// The origin to register, if one was given. Its port is the RTMP port unless it names another.
    pub fn origin(&self, rtmp_port: u16) -> Result<Option<Origin>, crate::ids::OriginError> {
        self.advertise.as_deref().map(|text| Origin::parse(text, rtmp_port)).transpose()
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
        let window = |args: &[&str]| {
            Args::parse_from([&["lb", "--role", "ingest"], args].concat()).media.batch_window_ms()
        };
        assert_eq!(window(&[]), None);
        assert_eq!(window(&["--batch-ms", "100"]), Some(100));
        assert_eq!(window(&["--gather-ms", "50"]), Some(50));
        assert_eq!(window(&["--gather-ms", "50", "--batch-ms", "0"]), Some(0));
    }
}
