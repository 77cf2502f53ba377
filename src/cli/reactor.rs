//! The flags of reactors, and of how nodes prove themselves to them.

use super::duration;
use crate::registry::Policy;
use crate::web::AllowedOrigin;
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

    /// A file that holds the token [default: reactor.token in $CREDENTIALS_DIRECTORY, if it is there]
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

    /// How often nodes tell reactors how their streams are doing, for the page, 'lb top' and 'lb explain'; 0 for never
    #[arg(
        long,
        env = "LB_REPORT_INTERVAL",
        value_name = "TIME",
        default_value = "2s",
        value_parser = duration,
        help_heading = "Reactor"
    )]
    pub report_interval: Duration,

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

    /// Networks whose hosts are heard without a token, as plain mmids nodes, which can show none
    #[arg(
        long,
        env = "LB_TRUSTED_NODES",
        value_name = "NET[,NET...]",
        value_delimiter = ',',
        help_heading = "Reactor"
    )]
    pub trusted_nodes: Vec<IpNet>,

    /// Let the reactor hear whoever reaches it, on any address
    #[arg(long, env = "LB_INSECURE", help_heading = "Reactor")]
    pub insecure: bool,

    /// What nodes may register as their origins: networks and host names [default: with the token anything, without it the
    /// address that they call from]
    #[arg(
        long,
        env = "LB_ALLOWED_ORIGINS",
        value_name = "NET|HOST[,...]",
        value_delimiter = ',',
        help_heading = "Reactor"
    )]
    pub allowed_origins: Vec<AllowedOrigin>,

    /// The names by which nodes without a token call the reactor, besides its addresses and localhost
    #[arg(
        long,
        env = "LB_REACTOR_HOSTS",
        value_name = "NAME[,NAME...]",
        value_delimiter = ',',
        help_heading = "Reactor"
    )]
    pub reactor_hosts: Vec<String>,

    /// Proxies in front of the reactor, whose Forwarded or X-Forwarded-For is believed
    #[arg(
        long,
        env = "LB_TRUSTED_PROXIES",
        value_name = "NET[,NET...]",
        value_delimiter = ',',
        help_heading = "Reactor"
    )]
    pub trusted_proxies: Vec<IpNet>,
}
