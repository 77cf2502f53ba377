//! Commands that ask a running cluster: what there is, as tables for people or as JSON, and that a publisher be sent away.

use super::failed::Failed;
use super::table::{age, share, table};
use crate::api::cluster::NodeState;
use crate::api::{NodeEntry, StreamEntry};
use crate::client::{Http, Operator, OperatorError};
use crate::ids::{NodeId, StreamName};
use crate::net::certificate;
use clap::Args;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use url::Url;

/// How a command reaches the cluster.
#[derive(Clone, Debug, Args)]
pub struct ReachArgs {
    /// Where reactors are, tried in order
    #[arg(
        long,
        env = "LB_REACTOR_URL",
        value_name = "URL[,URL...]",
        default_value = "http://127.0.0.1:8080"
    )]
    pub reactor_url: String,

    /// A file that holds the token between nodes and reactors
    #[arg(long, env = "LB_REACTOR_TOKEN_FILE", value_name = "FILE")]
    pub reactor_token_file: Option<PathBuf>,

    /// Certificates that reactors are believed by, in PEM, besides those of the host and those built in
    #[arg(long, env = "LB_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// What is listed.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub(super) reach: ReachArgs,

    /// JSON, as the reactor gives it
    #[arg(long)]
    json: bool,
}

/// Whose publisher is sent away.
#[derive(Clone, Debug, Args)]
pub struct KickArgs {
    /// The stream
    name: String,

    /// Why, for logs and 'lb explain': 200 bytes at most
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    #[command(flatten)]
    pub(super) reach: ReachArgs,
}

/// Which process is asked.
#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// Its admin port
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9011")]
    admin: Url,

    /// Certificates that it is believed by, in PEM, besides those of the host and those built in
    #[arg(long, env = "LB_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// What is watched.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub(super) reach: ReachArgs,

    /// The time between two looks
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = super::duration)]
    every: Duration,

    /// One look, and end
    #[arg(long)]
    once: bool,

    /// One look as JSON, as the reactor gives it, and end
    #[arg(long)]
    json: bool,
}

/// Whose life is told.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// The stream
    name: String,

    #[command(flatten)]
    pub(super) reach: ReachArgs,

    /// JSON, one entry an event, oldest first
    #[arg(long)]
    json: bool,
}

/// Which node drains.
#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// The node, as 'lb status' calls it
    node: NodeId,

    #[command(flatten)]
    pub(super) reach: ReachArgs,
}

/// Calls of servers that are believed by this file too.
fn http(ca_file: Option<&Path>) -> Result<Http, Failed> {
    crate::client::install_crypto_provider();
    let believed = certificate::client(ca_file);
    let believed = believed.map_err(|error| Failed::usage(format!("--ca-file: {error}")))?;
    Http::believing((*believed).clone()).map_err(Failed::other)
}

fn runtime() -> Result<Runtime, Failed> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failed::other)
}

impl HealthArgs {
    pub(super) fn health(&self) -> Result<String, Failed> {
        let http = http(self.ca_file.as_deref())?;
        let ready = runtime()?.block_on(crate::client::ready(&http, &self.admin));
        ready.map(|()| "ready".to_owned()).map_err(Failed::other)
    }
}

impl ReachArgs {
    fn operator(&self) -> Result<Operator, Failed> {
        let urls =
            self.reactor_url.parse().map_err(|error| Failed::usage(format!("--reactor-url: {error}")))?;
        let mut http = http(self.ca_file.as_deref())?;
        if let Some(file) = &self.reactor_token_file {
            let token = std::fs::read_to_string(file).map_err(|error| {
                Failed::usage(format!("--reactor-token-file: {}: cannot be read: {error}", file.display()))
            })?;
            let token = http.with_token(token.trim());
            http = token.map_err(|error| Failed::usage(format!("--reactor-token-file: {error}")))?;
        }
        Ok(Operator::new(http, urls))
    }

    fn ask<T>(&self, ask: impl AsyncFnOnce(Operator) -> Result<T, OperatorError>) -> Result<T, Failed> {
        let operator = self.operator()?;
        runtime()?.block_on(ask(operator)).map_err(Failed::other)
    }
}

impl ListArgs {
    pub(super) fn streams(&self) -> Result<String, Failed> {
        let streams = self.reach.ask(async |operator| operator.streams().await)?;
        if self.json {
            return Ok(json!({ "streams": streams }).to_string());
        }
        let row = |stream: &StreamEntry| {
            let node = stream.node.as_ref().map_or("-", |node| node.as_str()).to_owned();
            let age = age(Duration::from_millis(stream.age_ms));
            let (name, origin) = (stream.stream_name.to_string(), stream.origin.to_string());
            [name, node, origin, stream.epoch.to_string(), age]
        };
        Ok(table(["STREAM", "NODE", "PULLED FROM", "EPOCH", "AGE"], streams.iter().map(row)))
    }

    pub(super) fn status(&self) -> Result<String, Failed> {
        let nodes = self.reach.ask(async |operator| operator.nodes().await)?;
        if self.json {
            return Ok(json!({ "nodes": nodes }).to_string());
        }
        Ok(table(
            ["NODE", "ROLES", "STATE", "PUBLISHERS", "VIEWERS", "PULLS", "OF ITS CAPACITY"],
            nodes.iter().map(node),
        ))
    }
}

fn node(entry: &NodeEntry) -> [String; 7] {
    let NodeEntry { node, silent_ms, heartbeat } = entry;
    let state = match NodeState::of(entry) {
        NodeState::Silent => format!("silent for {}", age(Duration::from_millis(*silent_ms))),
        other => other.name().to_owned(),
    };
    let used = heartbeat.viewers + heartbeat.published + heartbeat.pulls;
    [
        node.as_str().to_owned(),
        heartbeat.roles.join(","),
        state,
        heartbeat.published.to_string(),
        heartbeat.viewers.to_string(),
        heartbeat.pulls.to_string(),
        share(used, heartbeat.capacity),
    ]
}

impl KickArgs {
    pub(super) fn kick(&self) -> Result<String, Failed> {
        let name = StreamName::parse(&self.name)
            .map_err(|error| Failed::usage(format!("{}: {error}", self.name)))?;
        self.reach.ask(async |operator| operator.kick(&name, self.reason.as_deref()).await)?;
        Ok(format!("the publisher of {} is sent away", self.name))
    }
}

impl TopArgs {
    pub(super) fn top(&self) -> Result<String, Failed> {
        if self.json {
            let cluster = self.reach.ask(async |operator| operator.cluster().await)?;
            return serde_json::to_string(&cluster).map_err(Failed::other);
        }
        let rows = || std::env::var("LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(40);
        loop {
            let cluster = self.reach.ask(async |operator| operator.cluster().await)?;
            let screen = super::top::screen(&cluster, rows());
            if self.once || !std::io::stdout().is_terminal() {
                return Ok(screen);
            }
            // Cleared and written in one piece, so that it does not flicker (ECMA-48, ED and CUP).
            let written = writeln!(std::io::stdout(), "\x1b[H\x1b[2J{screen}");
            if written.and_then(|()| std::io::stdout().flush()).is_err() {
                return Ok(String::new());
            }
            std::thread::sleep(self.every);
        }
    }
}

impl ExplainArgs {
    pub(super) fn explain(&self) -> Result<String, Failed> {
        let name = StreamName::parse(&self.name)
            .map_err(|error| Failed::usage(format!("{}: {error}", self.name)))?;
        let entries = self.reach.ask(async |operator| operator.timeline(&name).await)?;
        match self.json {
            true => serde_json::to_string(&json!({ "events": entries })).map_err(Failed::other),
            false => Ok(super::explain::timeline(&self.name, &entries)),
        }
    }
}

impl DrainArgs {
    pub(super) fn drain(&self) -> Result<String, Failed> {
        self.reach.ask(async |operator| operator.drain(&self.node).await)?;
        Ok(format!("{} is asked to drain: it takes nobody new, sends its peers away, and stops", self.node))
    }
}
