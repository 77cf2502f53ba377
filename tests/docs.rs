//! Documents and code say the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true if path.ends_with("node_modules") => Vec::new(),
            true => sources(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The words in a text that begin so and stand between two of these characters.
fn quoted(text: &str, quote: char) -> BTreeSet<String> {
    let names = text.split(quote).filter(|word| {
        word.starts_with("lb_") && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    });
    names.map(str::to_owned).collect()
}

#[test]
fn every_metric_is_documented_and_none_that_is_not_there() {
    let in_code: BTreeSet<String> = sources(&root().join("src"))
        .iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
            quoted(&code, '"')
        })
        .collect();
    let document = std::fs::read_to_string(root().join("docs/METRICS.md")).unwrap();
    assert!(in_code.len() > 30, "{in_code:?}");
    assert_eq!(quoted(&document, '`'), in_code);
}

/// The calls in the tables at the heads of these modules, as `METHOD /path`.
fn calls_in_heads(modules: &[&str]) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    for module in modules {
        let text = std::fs::read_to_string(root().join("src").join(module)).unwrap();
        let rows = text.lines().filter_map(|line| line.strip_prefix("//! | `"));
        for row in rows {
            // The first column: 'GET /a?b=C`, `/d' is two calls with one method.
            let mut method = "";
            for word in row.split(" | ").next().unwrap().split("`, `") {
                let word = word.trim_end_matches('`');
                let path = word.split_once(' ').map_or(word, |(named, path)| {
                    method = named;
                    path
                });
                calls.insert(format!("{method} {}", path.split('?').next().unwrap()));
            }
        }
    }
    calls
}

#[test]
fn every_call_is_in_the_openapi_document_and_none_that_is_not_there() {
    // The same on every port, and said where they are made.
    let everywhere = ["GET /livez", "GET /readyz", "GET /openapi.json"].map(str::to_owned);
    for (document, modules) in
        [("admin", &["web/admin.rs"][..]), ("reactor", &["api.rs", "api/report.rs", "api/cluster.rs"])]
    {
        let path = root().join(format!("src/web/openapi/{document}.json"));
        let openapi: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut described = BTreeSet::new();
        for (path, methods) in openapi["paths"].as_object().unwrap() {
            let methods = methods.as_object().unwrap().keys().filter(|key| *key != "parameters");
            described.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
        }
        let mut said = calls_in_heads(modules);
        said.extend(everywhere.clone());
        assert!(said.len() > 10, "{said:?}");
        assert_eq!(described, said, "{document}");
    }
}

#[test]
fn documents_lead_to_files_that_are_there() {
    let mut found = 0;
    let documents = [
        "README.md",
        "CONTRIBUTING.md",
        "docs/OPERATING.md",
        "docs/ARCHITECTURE.md",
        "docs/TROUBLESHOOTING.md",
        "docs/DEPLOYING.md",
        "docs/INTEROP.md",
    ];
    for document in documents {
        let path = root().join(document);
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if link.is_empty() || link.contains("://") {
                continue;
            }
            assert!(path.parent().unwrap().join(link).exists(), "{document} leads to {link}");
            found += 1;
        }
    }
    assert!(found > 8);
}
