//! The flags of who may publish and play.

use crate::auth::{KeySource, Settings};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use url::Url;

/// See the module's head.
#[derive(Clone, Debug, Args)]
pub struct AuthArgs {
    /// Tokens (JWT, ?token= in the query of the key or the app) decide who publishes and plays; their keys: a file of
    /// secrets, public keys in PEM or a JWK set, or the URL of a JWK set
    #[arg(long, env = "LB_AUTH_JWT_KEYS", value_name = "FILE|URL", help_heading = "Authorisation")]
    pub auth_jwt_keys: Option<KeySource>,

    /// A web server decides who publishes and plays: it is asked by POST with JSON
    #[arg(
        long,
        env = "LB_AUTH_URL",
        value_name = "URL",
        hide_env_values = true,
        help_heading = "Authorisation"
    )]
    pub auth_url: Option<Url>,

    /// A file decides who publishes: 'key = public name' a line
    #[arg(long, env = "LB_AUTH_FILE", value_name = "FILE", help_heading = "Authorisation")]
    pub auth_file: Option<PathBuf>,

    /// What happens while the web server of --auth-url does not answer
    #[arg(
        long,
        env = "LB_AUTH_OUTAGE",
        value_name = "WHAT",
        value_enum,
        default_value = "refuse",
        help_heading = "Authorisation"
    )]
    pub auth_outage: Outage,

    /// What happens to a running session when its token expires
    #[arg(
        long,
        env = "LB_AUTH_EXPIRY",
        value_name = "WHAT",
        value_enum,
        default_value = "keep",
        help_heading = "Authorisation"
    )]
    pub auth_expiry: Expiry,
}

/// What happens while an authority does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Outage {
    /// Nobody new may publish or play.
    Refuse,
    /// Everybody may, under the name that the key says.
    Allow,
}

/// What happens when a token expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Expiry {
    /// The session goes on; the next one needs another token.
    Keep,
    /// The session is closed.
    Close,
}

impl AuthArgs {
    /// The flags as authorisation takes them.
    pub fn settings(&self) -> Settings {
        Settings {
            jwt_keys: self.auth_jwt_keys.clone(),
            url: self.auth_url.clone(),
            file: self.auth_file.clone(),
            outage_allows: self.auth_outage == Outage::Allow,
            close_on_expiry: self.auth_expiry == Expiry::Close,
        }
    }
}
