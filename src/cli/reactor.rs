//! The flags of reactors, and of how nodes prove themselves to them.

use super::duration;
use crate::registry::Policy;
use clap::Args;
use ipnet::IpNet;
use std::path::PathBuf;
use std::time::Duration;

/// See the module's head.
#[derive(Clone, Debug, Args)]
pub struct ReactorArgs {
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

    /// What the reactor does with a second publisher of a name: 'same-identity' (where authorisation knows who publishes,
    /// only the same one takes the name over; otherwise as takeover), 'takeover' or 'first-wins'
    #[arg(
        long,
        env = "LB_DUPLICATE_PUBLISH",
        value_name = "POLICY",
        default_value = "same-identity",
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
