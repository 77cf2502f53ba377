//! The dashboard and the alert rules: they name metrics that there are, and each alert comes when it should and only then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::lb::Lb;
use common::{SOON, http, process};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deploy/grafana")
}

/// The names of metrics in a text: words that begin as ours do.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("lb_") || word.starts_with("process_"));
    // A histogram has its series by these endings.
    ours.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let node = Lb::start(&["--role", "all"]);
    let document =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md")).unwrap();
    let mut there = names(&document);
    there.extend(names(&http::get(node.admin(), "/metrics").body));
    for file in ["dashboard.json", "alerts.yaml"] {
        let text = std::fs::read_to_string(folder().join(file)).unwrap();
        let used = names(&text);
        assert!(used.len() > 10, "{file}: {used:?}");
        let unknown: Vec<_> = used.difference(&there).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    let dashboard = std::fs::read_to_string(folder().join("dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has a number of its own");
    // Whatever is lost or refused is to be seen.
    let shown = names(&dashboard.to_string());
    for metric in
        ["lb_lost_messages_total", "lb_refusals_total", "lb_http_refusals_total", "lb_viewer_skips_total"]
    {
        assert!(shown.contains(metric), "{metric}");
    }
}

#[test]
fn each_alert_comes_when_it_should() {
    for args in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        let mut command = Command::new("promtool");
        command.args(args).current_dir(folder());
        let ran = process::run(command, SOON);
        assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    }
    let rules = std::fs::read_to_string(folder().join("alerts.yaml")).unwrap();
    let tests = std::fs::read_to_string(folder().join("alerts_test.yaml")).unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(alert), "{alert} is not tested");
    }
}
