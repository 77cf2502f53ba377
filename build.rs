//! Tells the binary which commit and target it is built from, for `lb --version`.

use std::process::Command;

fn main() {
    let commit = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok();
    let commit =
        commit.filter(|said| said.status.success()).and_then(|said| String::from_utf8(said.stdout).ok());
    // What is built from an archive has no commit.
    let commit = commit.as_deref().map(str::trim).unwrap_or("unknown commit");
    println!("cargo::rustc-env=LB_COMMIT={commit}");
    println!("cargo::rustc-env=LB_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    println!("cargo::rerun-if-changed=build.rs");
    // Moves with each commit; missing in an archive.
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        if std::path::Path::new(file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
}
