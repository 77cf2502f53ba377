//! The flags of TLS, and of proxies in front of the RTMP ports.

use clap::Args;
use ipnet::IpNet;
use std::path::PathBuf;

/// See the module's head.
#[derive(Clone, Debug, Args)]
pub struct TransportArgs {
    /// The port for RTMPS, beside the RTMP port and for the same apps; 0 picks a free one
    #[arg(
        long,
        env = "LB_RTMPS_PORT",
        value_name = "PORT",
        requires = "tls_cert",
        help_heading = "TLS and proxies"
    )]
    pub rtmps_port: Option<u16>,

    /// The certificate chain for RTMPS, in PEM; read again when it changes
    #[arg(
        long,
        env = "LB_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key",
        help_heading = "TLS and proxies"
    )]
    pub tls_cert: Option<PathBuf>,

    /// Its private key, in PEM
    #[arg(
        long,
        env = "LB_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert",
        help_heading = "TLS and proxies"
    )]
    pub tls_key: Option<PathBuf>,

    /// Certificates that rtmps:// locations are believed by, in PEM, besides those of the host and those built in
    #[arg(long, env = "LB_CA_FILE", value_name = "FILE", help_heading = "TLS and proxies")]
    pub ca_file: Option<PathBuf>,

    /// Proxies in front of the RTMP ports: they must send the PROXY protocol (1 or 2), and the address they name counts
    #[arg(
        long,
        env = "LB_PROXY_PROTOCOL_FROM",
        value_name = "NET[,NET...]",
        value_delimiter = ',',
        help_heading = "TLS and proxies"
    )]
    pub proxy_protocol_from: Vec<IpNet>,
}
