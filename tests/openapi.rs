//! The description of both APIs: a property-based tester makes calls from it, good ones and bad ones, and finds no fault of a server and no
//! answer that is not described.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::lb::Lb;
use common::{SOON, http, process, wait_for};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Some thousand calls.
const DEADLINE: Duration = Duration::from_secs(120);

#[track_caller]
fn assert_described(server: SocketAddr, left_out: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tool = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/python/bin/schemathesis");
    assert!(tool.exists(), "run scripts/setup test first");
    let checks =
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let mut command = Command::new(tool);
    command.arg("--config-file").arg(root.join("tests/openapi/schemathesis.toml"));
    command.args(["run", &format!("http://{server}/openapi.json"), "--checks", checks]);
    command.args(["--max-examples", "20", "--generation-deterministic", "--no-color"]);
    command.args(["--exclude-path-regex", left_out, "--request-timeout", "10"]);
    // It keeps what it found in the directory that it runs in.
    let folder = tempfile::tempdir().unwrap();
    command.current_dir(folder.path());
    let ran = process::run(command, DEADLINE);
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
    let passed = ran.stdout.lines().find(|line| line.contains(" generated, ")).unwrap_or_default();
    let count = passed.split_whitespace().next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    assert!(count > 300, "it made hardly any calls: {}", ran.stdout);
    println!("{server}: {}", passed.trim());
}

#[test]
fn every_answer_of_both_ports_is_described() {
    let node = Lb::start(&["--role", "all", "--heartbeat", "1s"]);
    wait_for("the reactor to know what there is", 2 * SOON, || {
        http::get(node.reactor(), "/readyz").status == 200
    });
    // Event streams have no end, and a process that drains answers nothing more.
    assert_described(node.reactor(), "events$|drain$");
    assert_described(node.admin(), "drain$");
}
