//! Commands that ask a running cluster: what there is, as tables for people or as JSON, and that a publisher be sent away.

use super::failed::Failed;
use crate::api::{NodeEntry, StreamEntry};
use crate::client::{Http, Operator, OperatorError};
use crate::ids::StreamName;
use crate::net::certificate;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

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

    #[command(flatten)]
    pub(super) reach: ReachArgs,
}

impl ReachArgs {
    fn operator(&self) -> Result<Operator, Failed> {
        let urls =
            self.reactor_url.parse().map_err(|error| Failed::usage(format!("--reactor-url: {error}")))?;
        let believed = certificate::client(self.ca_file.as_deref());
        let believed = believed.map_err(|error| Failed::usage(format!("--ca-file: {error}")))?;
        let mut http = Http::believing((*believed).clone()).map_err(Failed::other)?;
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
        crate::client::install_crypto_provider();
        let operator = self.operator()?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failed::other)?;
        runtime.block_on(ask(operator)).map_err(Failed::other)
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

fn node(NodeEntry { node, silent_ms, heartbeat }: &NodeEntry) -> [String; 7] {
    let state = match () {
        () if heartbeat.draining => "draining".to_owned(),
        // The second one is late.
        () if *silent_ms > 2 * heartbeat.interval_ms => {
            format!("silent for {}", age(Duration::from_millis(*silent_ms)))
        }
        () => "well".to_owned(),
    };
    let used = heartbeat.viewers + heartbeat.published + heartbeat.pulls;
    let share =
        (heartbeat.capacity > 0).then(|| format!("{:.1} %", 100.0 * used as f64 / heartbeat.capacity as f64));
    [
        node.as_str().to_owned(),
        heartbeat.roles.join(","),
        state,
        heartbeat.published.to_string(),
        heartbeat.viewers.to_string(),
        heartbeat.pulls.to_string(),
        share.unwrap_or_else(|| "-".to_owned()),
    ]
}

impl KickArgs {
    pub(super) fn kick(&self) -> Result<String, Failed> {
        let name = StreamName::parse(&self.name)
            .map_err(|error| Failed::usage(format!("{}: {error}", self.name)))?;
        self.reach.ask(async |operator| operator.kick(&name).await)?;
        Ok(format!("the publisher of {} is sent away", self.name))
    }
}

/// A time in its two largest units.
fn age(time: Duration) -> String {
    let whole = Duration::from_secs(time.as_secs());
    let shown = humantime::format_duration(whole).to_string();
    shown.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Columns as wide as what stands in them.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let rows = [["a", "long one"], ["öö", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(["X", "Y"], rows.into_iter()), "X   Y\na   long one\nöö  b");
        assert_eq!(table(["X"], std::iter::empty()), "X");
    }

    #[test]
    fn a_time_has_two_units() {
        for (seconds, shown) in [(0, "0s"), (59, "59s"), (3_661, "1h 1m"), (90_061, "1day 1h")] {
            assert_eq!(age(Duration::from_millis(seconds * 1000 + 999)), shown);
        }
    }
}
