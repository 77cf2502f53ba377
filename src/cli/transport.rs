//! The flags of TLS, and of proxies in front of the RTMP ports.

use crate::net::certificate::{Files, Password};
use clap::Args;
use ipnet::IpNet;
use std::path::PathBuf;

/// See the module's head.
#[derive(Clone, Debug, Args)]
pub struct TransportArgs {
    /// The port for RTMPS, beside the RTMP port and for the same apps; 0 picks a free one
    #[arg(long, env = "LB_RTMPS_PORT", value_name = "PORT", help_heading = "TLS and proxies")]
    pub rtmps_port: Option<u16>,

    /// Let the reactor, the admin port and the port of viewers over HTTP speak HTTPS only
    #[arg(long, env = "LB_HTTPS", help_heading = "TLS and proxies")]
    pub https: bool,

    /// Pulls between nodes go by TLS: an ingest node registers its RTMPS port, and a playback node pulls in no other way
    #[arg(long, env = "LB_PULL_TLS", help_heading = "TLS and proxies")]
    pub pull_tls: bool,

    /// The certificate chain for RTMPS and HTTPS in PEM, or with its key in PKCS#12; read again when it changes
    #[arg(long, env = "LB_TLS_CERT", value_name = "FILE", help_heading = "TLS and proxies")]
    pub tls_cert: Option<PathBuf>,

    /// Its private key, in PEM, unless the certificate's file is PKCS#12
    #[arg(
        long,
        env = "LB_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert",
        help_heading = "TLS and proxies"
    )]
    pub tls_key: Option<PathBuf>,

    /// A file with the password of a PKCS#12 file [default: none]
    #[arg(
        long,
        env = "LB_TLS_PASSWORD_FILE",
        value_name = "FILE",
        requires = "tls_cert",
        help_heading = "TLS and proxies"
    )]
    pub tls_password_file: Option<PathBuf>,

    /// That password from a configuration file.
    #[arg(skip)]
    pub tls_password: Option<Password>,

    /// Certificates that other servers are believed by, in PEM, besides those of the host and those built in: reactors and
    /// other https:// URLs, and rtmps:// locations
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

impl TransportArgs {
    /// The certificate of this node, if it has one.
    pub fn certificate(&self) -> Option<Files> {
        let password = self.tls_password_file.clone().map(Password::File);
        let (key, password) = (self.tls_key.clone(), password.or_else(|| self.tls_password.clone()));
        self.tls_cert.clone().map(|certificate| Files { certificate, key, password })
    }
}
