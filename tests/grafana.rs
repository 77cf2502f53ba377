//! The dashboard and the alert rules: Prometheus takes them, they name metrics that there are, and each alert fires when it
//! should and only then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::lb::Lb;
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, http, process, root, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of Prometheus itself.
const FOREIGN: [&str; 2] = ["ALERTS", "up"];

/// Whatever is lost or refused is to be seen.
const LOSSES: [&str; 9] = [
    "lb_http_refusals_total",
    "lb_lost_messages_total",
    "lb_misbehaved_total",
    "lb_publishers_throttled_total",
    "lb_refusals_total",
    "lb_stream_skips_total",
    "lb_viewer_skipped_messages_total",
    "lb_viewer_skips_total",
    "lb_viewer_stalls_total",
];

fn folder() -> PathBuf {
    root().join("scripts/deploy/grafana")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

#[track_caller]
fn promtool(folder: &Path, args: &[&str]) {
    let mut command = Command::new("promtool");
    command.args(args).current_dir(folder);
    let ran = process::run(command, SOON);
    assert_eq!(ran.code, Some(0), "promtool {args:?}: {}{}", ran.stdout, ran.stderr);
}

/// Every value of this key, however deep.
fn values<'a>(json: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match json {
        Value::Object(members) => {
            found.extend(members.get(key));
            members.values().for_each(|member| values(member, key, found));
        }
        Value::Array(elements) => elements.iter().for_each(|element| values(element, key, found)),
        _ => {}
    }
}

/// The dashboard, and its queries with Grafana's variables filled in.
fn dashboard() -> (Value, Vec<String>) {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let mut queries = Vec::new();
    values(&dashboard, "expr", &mut queries);
    let queries = queries.into_iter().map(|query| query.as_str().unwrap().replace("$__rate_interval", "1m"));
    let queries = queries.collect();
    (dashboard, queries)
}

/// The words of a query or of rules that begin as ours do.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let ours = words.filter(|word| ["lb_", "lb:", "process_"].iter().any(|prefix| word.starts_with(prefix)));
    ours.map(str::to_owned).collect()
}

/// A query without what stands between two characters: quotes, braces or brackets, none of which is nested here.
fn without(query: &str, open: char, close: char) -> String {
    let mut left = String::new();
    let mut rest = query;
    while let Some((before, inside)) = rest.split_once(open) {
        left.push_str(before);
        rest = inside.split_once(close).unwrap_or_else(|| panic!("{open} without {close} in {query}")).1;
    }
    left + rest
}

/// The names of metrics in a query: the words that are no function, no operator and no label.
fn metrics(query: &str) -> BTreeSet<String> {
    const OPERATORS: [&str; 5] = ["and", "bool", "offset", "or", "unless"];
    const BEFORE_LABELS: [&str; 6] = ["by", "group_left", "group_right", "ignoring", "on", "without"];
    let query = without(&without(&without(query, '"', '"'), '{', '}'), '[', ']');
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = BTreeSet::new();
    let mut rest = query.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, after) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        rest = after.trim_start();
        if BEFORE_LABELS.contains(&word) {
            rest = rest.split_once(')').map_or("", |(_labels, after)| after).trim_start();
        } else if word.is_empty() {
            rest = rest[first.len_utf8()..].trim_start();
        } else if !first.is_ascii_digit() && !OPERATORS.contains(&word) && !is_function(rest) {
            found.insert(word.to_owned());
        }
    }
    found
}

/// Whether the word before was a function: its arguments follow, or the labels by which it groups.
fn is_function(after: &str) -> bool {
    ["(", "by (", "without ("].iter().any(|begin| after.starts_with(begin))
}

/// The names of the series in a scrape: histograms by theirs.
fn scraped(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        match kind {
            "histogram" => found.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}"))),
            _ => {
                found.insert(name.to_owned());
            }
        }
    }
    found
}

/// The series of a process that has done all it can do, and the counters in METRICS.md, which have no sample before they count.
fn series() -> BTreeSet<String> {
    let node = Lb::start(&["--role", "all"]);
    let _publisher = Publisher::start(node.rtmp(), "ingest", "x", Media::default());
    let _viewer = Viewer::start(node.rtmp(), "live", "x");
    node.wait_for_metric("lb_stream_viewers{side=\"play\"}", 1.0, SOON);
    wait_for("two keyframes", SOON, || node.metric("lb_stream_keyframe_interval_seconds") > 0.0);
    let mut there = scraped(&http::get(node.admin(), "/metrics").body);
    for name in
        ["lb_build_info", "lb_first_picture_seconds_bucket", "lb_stream_frames_total", "process_open_fds"]
    {
        assert!(there.contains(name), "{name} in {there:?}");
    }
    let document = std::fs::read_to_string(root().join("docs/METRICS.md")).unwrap();
    let counters = document.lines().filter(|line| line.contains("| counter |"));
    there.extend(counters.flat_map(names).filter(|name| name.ends_with("_total")));
    there
}

#[test]
fn the_names_of_metrics_are_found_in_a_query() {
    let query = r#"sum by (le, lb_no) (rate(lb_a_bucket{job=~"lb_b|x"}[5m])) / on (job) group_left () lb:c > 2 * up offset 1d
        unless topk(3, lb_d) or histogram_quantile(0.5, sum(lb_e) by (x)) and time() - typo > bool 4e2"#;
    let found: Vec<_> = metrics(query).into_iter().collect();
    assert_eq!(found, ["lb:c", "lb_a_bucket", "lb_d", "lb_e", "typo", "up"]);
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let (dashboard, queries) = dashboard();
    let rules = read("alerts.yaml");
    let mut there = series();
    there.extend(FOREIGN.map(str::to_owned));
    let records = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: "));
    there.extend(records.map(str::to_owned));

    // Beside the words that must be metrics, those in matchers of __name__.
    let shown: BTreeSet<String> =
        queries.iter().flat_map(|query| metrics(query).into_iter().chain(names(query))).collect();
    let mut used = shown.clone();
    let mut variables = Vec::new();
    values(&dashboard["templating"], "definition", &mut variables);
    used.extend(variables.into_iter().flat_map(|variable| names(variable.as_str().unwrap())));
    // What the comments and texts of the rules name is there too.
    used.extend(names(&rules));
    let unknown: Vec<_> = used.difference(&there).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not among {there:?}");
    assert!(queries.len() > 60, "{} queries", queries.len());
    for metric in LOSSES {
        assert!(shown.contains(metric), "the dashboard lacks {metric}");
    }
}

#[test]
fn prometheus_takes_every_query_of_the_dashboard() {
    let (dashboard, queries) = dashboard();
    let rule = |(number, expr): (usize, &String)| json!({ "record": format!("q:{number}"), "expr": expr });
    let rules: Vec<Value> = queries.iter().enumerate().map(rule).collect();
    // JSON is YAML.
    let file = json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("queries.yaml"), file).unwrap();
    promtool(dir.path(), &["check", "rules", "queries.yaml"]);

    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has a number of its own");
    let mut sources = Vec::new();
    values(&dashboard["panels"], "datasource", &mut sources);
    assert!(sources.iter().all(|source| source["uid"] == "${datasource}"), "the data source is a variable");
}

#[test]
fn each_alert_fires_when_it_should() {
    promtool(&folder(), &["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"]);
    promtool(&folder(), &["check", "config", "prometheus.yml"]);
    promtool(&folder(), &["test", "rules", "alerts_test.yaml"]);
}

#[test]
fn each_alert_is_tested_and_says_what_to_do() {
    let (rules, tests) = (read("alerts.yaml"), read("alerts_test.yaml"));
    let operating = std::fs::read_to_string(root().join("docs/OPERATING.md")).unwrap();
    let headings = operating.lines().filter_map(|line| line.strip_prefix("## "));
    let anchor = |heading: &str| -> String {
        let kept = heading.chars().filter(|c| c.is_ascii_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let anchors: BTreeSet<String> = headings.map(anchor).collect();
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 10, "{}", alerts.len());
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        let forms = [format!("alertname=\"{name}\""), format!("alertname: {name}\n")];
        assert!(forms.iter().any(|form| tests.contains(form)), "{name} is not tested");
        for part in ["for: ", "severity: ", "summary: ", "description: "] {
            assert!(alert.contains(part), "{name} has no {part}");
        }
        let section = alert.split("runbook: docs/OPERATING.md#").nth(1).and_then(|rest| rest.lines().next());
        assert!(
            section.is_some_and(|section| anchors.contains(section)),
            "{name}: {section:?} in {anchors:?}"
        );
        assert!(operating.contains(&format!("`{name}`")), "docs/OPERATING.md does not name {name}");
    }
}
