//! Tells the binary which commit and target it is built from, for `lb --version`, and embeds the reactor's page.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The bundled page, which `scripts/setup` makes.
const PAGE: &str = "src/web/page/dist";

/// What it consists of.
const FILES: [&str; 3] = ["index.html", "page.js", "page.css"];

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
        if Path::new(file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
    embed_page();
}

/// Copies the page to where the source includes it from. Without one the binary is whole but for a page that says how to get it.
fn embed_page() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo::rerun-if-changed={PAGE}");
    let there = FILES.iter().all(|file| Path::new(PAGE).join(file).exists());
    if !there {
        println!("cargo::warning=the reactor's page is not built in: run scripts/setup first");
    }
    for file in FILES {
        let content = match there {
            true => std::fs::read(Path::new(PAGE).join(file)),
            false => Ok(missing(file).into()),
        };
        let written = content.and_then(|content| std::fs::write(out.join(file), content));
        if let Err(error) = written {
            println!("cargo::error=the page cannot be embedded: {file}: {error}");
        }
    }
}

fn missing(file: &str) -> &'static str {
    match file {
        "index.html" => {
            "<!doctype html><title>lb</title><p>This binary was built without its page. Run scripts/setup, and build it again.</p>\n"
        }
        _ => "",
    }
}
