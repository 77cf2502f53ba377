//! Reads the parameters of a step definition.

use crate::ids::StreamName;
use crate::net::acl::Acl;
use crate::net::routes::{KeyPattern, Place};
use mmids_core::workflows::definitions::WorkflowStepDefinition;
use std::str::FromStr;

/// The port of steps with `rtmps` that name none, as mmids has it.
const DEFAULT_RTMPS_PORT: u16 = 443;

/// Why a step cannot be made from its definition; says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParameterError(pub String);

/// A definition's parameters, taken by name.
pub struct Parameters<'a>(pub &'a WorkflowStepDefinition);

impl<'a> Parameters<'a> {
    /// A parameter that may be missing.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0.parameters.get(name)?.as_deref()
    }

    /// A parameter that must be there.
    pub fn required(&self, name: &str, allowed: &str) -> Result<&'a str, ParameterError> {
        let step = &self.0.step_type;
        self.get(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| ParameterError(format!("{step} lacks {name}={allowed}")))
    }

    /// A parameter with a form.
    pub fn parsed<T: FromStr>(&self, name: &str, allowed: &str) -> Result<Option<T>, ParameterError> {
        let parse = |text: &str| {
            text.parse().map_err(|_| ParameterError(format!("{name}={text} is not allowed; {allowed} is")))
        };
        self.get(name).map(parse).transpose()
    }

    /// A stream name, `stream_name` or another.
    pub fn stream_name(&self, name: &str) -> Result<StreamName, ParameterError> {
        let text = self.required(name, "NAME")?;
        StreamName::parse(text).map_err(|error| ParameterError(format!("{name}={text}: {error}")))
    }

    /// `rtmps`: the step's port speaks TLS. With or without a value, as mmids has it.
    fn rtmps(&self) -> Result<bool, ParameterError> {
        match self.0.parameters.get("rtmps").map(Option::as_deref) {
            None | Some(Some("false")) => Ok(false),
            Some(None | Some("" | "true")) => Ok(true),
            Some(Some(other)) => Err(ParameterError(format!(
                "rtmps={other} is not allowed; rtmps, rtmps=true or rtmps=false is"
            ))),
        }
    }

    /// `port`, `rtmps`, `rtmp_app`, `stream_key`, `allow_ips` and `deny_ips`.
    pub fn place(&self, default_port: u16) -> Result<Place, ParameterError> {
        let tls = self.rtmps()?;
        let default_port = if tls { DEFAULT_RTMPS_PORT } else { default_port };
        let port: Option<u16> = self.parsed("port", "a port from 1 to 65535")?;
        if port == Some(0) {
            return Err(ParameterError("port=0 is not allowed; a port from 1 to 65535 is".to_owned()));
        }
        let app = self.required("rtmp_app", "APP")?.trim_matches('/');
        if app.is_empty() || app.contains(['/', '?']) {
            let what = format!(
                "rtmp_app={app} is not allowed; a name without / and ? is (a/b is the key b of the app a)"
            );
            return Err(ParameterError(what));
        }
        let key = match self.required("stream_key", "* or a stream name")? {
            "*" => KeyPattern::Any,
            _ => KeyPattern::Exact(self.stream_name("stream_key")?),
        };
        let acl = Acl::parse(self.get("allow_ips"), self.get("deny_ips"))
            .map_err(|error| ParameterError(format!("allow_ips or deny_ips: {error}")))?;
        Ok(Place { port: port.unwrap_or(default_port), tls, app: app.to_owned(), key, acl })
    }
}
