//! Real servers, and what docs/INTEROP.md says of them. `UPDATE_INTEROP=1` has the document say what is seen.

use super::common::lb::{self, Lb};
use super::common::nginx::Nginx;
use super::common::{process, read, root};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

/// Rows that lb is known to fail. A row that passes may not stay here.
const KNOWN: &[&str] = &[];

/// For two busy cores, with a row or two that wait in vain.
const DEADLINE: Duration = Duration::from_secs(400);

/// The checks that take long, and are run beside the others.
const SLOW: &str = "handshake/silent-client,control/server-pings";

/// The rows of `lb conform --markdown`: all, and those that are run on request only.
fn table(publish: &str, play: &str) -> Vec<String> {
    let run = |more: &[&str]| {
        let words =
            [&["conform", publish, play, "--markdown", "--timeout", "20s", "--quiet", "1s"], more].concat();
        let finished = process::run(lb::command(&words), DEADLINE);
        assert!(matches!(finished.code, Some(0 | 1)), "{finished:?}");
        assert!(finished.stdout.contains(" checks: "), "{finished:?}");
        rows(&finished.stdout)
    };
    let slow = std::thread::scope(|scope| {
        let slow = scope.spawn(|| run(&["--slow", "--only", SLOW]));
        (run(&[]), slow.join().unwrap())
    });
    let (mut rows, slow) = slow;
    for row in slow {
        let place = rows.iter_mut().find(|other| cells(other)[0] == cells(&row)[0]).expect("it was skipped");
        *place = row;
    }
    rows
}

/// The lines of a table's rows.
fn rows(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect()
}

fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split(" | ").map(str::trim).collect()
}

/// What may not change from run to run: everything but what was seen, which has times and counts in it.
fn lasting(rows: &[String]) -> Vec<Vec<&str>> {
    rows.iter().map(|row| cells(row)[..4].to_vec()).collect()
}

/// The document's section on a server is what was seen.
#[track_caller]
fn is_documented(heading: &str, seen: &[String]) {
    // Two tests write to one file.
    static FILE: Mutex<()> = Mutex::new(());
    let _writing = FILE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let document = read("docs/INTEROP.md");
    let (before, section) = document.split_once(heading).unwrap_or_else(|| panic!("no section {heading:?}"));
    let end = section[1..].find("\n##").map_or(section.len(), |end| end + 1);
    let (section, after) = section.split_at(end);
    let written = rows(section);
    if std::env::var_os("UPDATE_INTEROP").is_some() {
        let text = section.lines().filter(|line| !line.starts_with("| ") && !line.starts_with("|-"));
        let text = text.collect::<Vec<_>>().join("\n");
        let head = "| check | expected | by | verdict | seen |\n|---|---|---|---|---|";
        let text = format!("{before}{heading}{}\n\n{head}\n{}\n{after}", text.trim_end(), seen.join("\n"));
        std::fs::write(root().join("docs/INTEROP.md"), text).unwrap();
        return;
    }
    let (written, seen) = (lasting(&written), lasting(seen));
    let wrong: Vec<_> = seen.iter().filter(|row| !written.contains(row)).collect();
    assert_eq!(written, seen, "not so in docs/INTEROP.md: {wrong:#?}");
}

#[test]
fn lb_passes_what_it_is_not_known_to_fail() {
    let lb = Lb::start(&["--role", "all", "--publisher-grace", "1s"]);
    let rows = table(&lb.rtmp_url("ingest", "conform"), &lb.rtmp_url("live", "conform"));
    let failed: Vec<&String> = rows.iter().filter(|row| cells(row)[3] == "**fail**").collect();
    let names: BTreeSet<&str> = failed.iter().map(|row| cells(row)[0].trim_matches('`')).collect();
    assert_eq!(names, KNOWN.iter().copied().collect(), "{failed:#?}");
    is_documented("### lb\n", &rows);
}

#[test]
fn nginx_rtmp_does_what_the_document_says() {
    let nginx = Nginx::start("");
    let url = nginx.url("conform");
    is_documented("### nginx-rtmp\n", &table(&url, &url));
}
