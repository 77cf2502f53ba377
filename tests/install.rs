//! What `scripts/install` puts in place, and that systemd takes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::process::{self, Finished};
use common::{SOON, http, lb, root};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const ROLES: [&str; 4] = ["ingest", "playback", "reactor", "all"];

fn try_install(args: &[&str]) -> Finished {
    let mut install = Command::new(root().join("scripts/install"));
    install.args(args);
    process::run(install, SOON)
}

#[track_caller]
fn install(destdir: &Path) {
    let installed =
        try_install(&["--destdir", destdir.to_str().unwrap(), "--binary", env!("CARGO_BIN_EXE_lb")]);
    assert_eq!(installed.code, Some(0), "{installed:?}");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
        & 0o7777
}

#[test]
fn everything_is_put_in_place_with_its_rights() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path());
    assert_eq!(mode(&dir.path().join("usr/local/bin/lb")), 0o755);
    assert_eq!(mode(&dir.path().join("etc/systemd/system/lb@.service")), 0o644);
    for role in ROLES {
        // It may hold a token.
        assert_eq!(mode(&dir.path().join(format!("etc/lb/{role}.env"))), 0o600);
    }
    let mut installed = Command::new(dir.path().join("usr/local/bin/lb"));
    installed.arg("--version");
    assert_eq!(process::run(installed, SOON).code, Some(0));
}

#[test]
fn an_update_keeps_settings_that_were_edited() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path());
    let edited = dir.path().join("etc/lb/ingest.env");
    std::fs::write(&edited, "LB_RTMP_PORT=1936\n").unwrap();
    install(dir.path());
    assert_eq!(std::fs::read_to_string(&edited).unwrap(), "LB_RTMP_PORT=1936\n");
    let shipped = std::fs::read_to_string(root().join("scripts/systemd/ingest.env")).unwrap();
    let beside = dir.path().join("etc/lb/ingest.env.new");
    assert_eq!(std::fs::read_to_string(beside).unwrap(), shipped);
    assert!(!dir.path().join("etc/lb/reactor.env.new").exists(), "nothing was edited there");
}

#[test]
fn a_token_is_made_once_and_reaches_lb_as_a_credential() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path());
    let file = dir.path().join("etc/lb/reactor.token");
    assert_eq!(mode(&file), 0o600);
    let token = std::fs::read_to_string(&file).unwrap();
    assert_eq!(token.trim().len(), 64, "{token}");
    install(dir.path());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), token, "an update keeps it");
    let unit = std::fs::read_to_string(dir.path().join("etc/systemd/system/lb@.service")).unwrap();
    assert!(unit.contains("\nLoadCredential=reactor.token:/etc/lb/reactor.token\n"), "{unit}");
    // systemd hands it over in a folder that it names.
    let folder = file.parent().unwrap().to_str().unwrap();
    let reactor = lb::Lb::start_with(&["--role", "reactor"], &[("CREDENTIALS_DIRECTORY", folder)]);
    assert_eq!(http::get(reactor.reactor(), "/streams").status, 401);
}

#[test]
fn another_prefix_reaches_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    let destdir = dir.path().to_str().unwrap();
    let binary = env!("CARGO_BIN_EXE_lb");
    let installed = try_install(&["--destdir", destdir, "--prefix", "/opt/lb", "--binary", binary]);
    assert_eq!(installed.code, Some(0), "{installed:?}");
    assert_eq!(mode(&dir.path().join("opt/lb/bin/lb")), 0o755);
    let unit = std::fs::read_to_string(dir.path().join("etc/systemd/system/lb@.service")).unwrap();
    assert!(unit.contains("\nExecStart=/opt/lb/bin/lb --role %i\n"), "{unit}");
}

#[test]
fn wrong_usage_of_the_installer_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let destdir = dir.path().to_str().unwrap();
    for args in [
        &["--destdir", destdir, "--binary", "/does/not/exist"][..],
        &["--destdir", destdir, "--prefix", "relative"],
        &["--destdir", destdir, "--what"],
        &["--destdir"],
    ] {
        let failed = try_install(args);
        assert_eq!(failed.code, Some(2), "{args:?}: {failed:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Every variable in a file of settings is one that `lb` knows, with a value it takes, the commented-out ones too.
#[test]
fn the_settings_are_ones_that_lb_takes() {
    let help = lb::run(&["--help"]).stdout;
    for role in ROLES {
        let text = std::fs::read_to_string(root().join(format!("scripts/systemd/{role}.env"))).unwrap();
        let (mut set, mut all) = (lb::command(&["--role", role, "--check"]), Vec::new());
        for line in text.lines() {
            let Some((name, value)) = line.trim_start_matches('#').split_once('=') else {
                continue;
            };
            if !name.starts_with("LB_") || name.contains(' ') {
                continue;
            }
            all.push(name);
            assert!(
                help.contains(&format!("[env: {name}=")) || help.contains(&format!("[env: {name}]")),
                "{role}.env: lb has no {name}"
            );
            // Files that the operator may make do not exist here, and a token is for the operator to choose.
            if !value.starts_with("/etc/") && !value.is_empty() {
                set.env(name, value);
            }
        }
        assert!(all.len() >= 5, "{role}.env names only {all:?}");
        let checked = process::run(set, SOON);
        assert_eq!(checked.code, Some(0), "{role}.env: {}", checked.stderr);
    }
}

#[test]
fn systemd_takes_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path());
    // systemd wants the command to exist, and it stands below the directory that plays the host.
    let unit = std::fs::read_to_string(dir.path().join("etc/systemd/system/lb@.service")).unwrap();
    let command = dir.path().join("usr/local/bin/lb");
    let unit = unit.replace("ExecStart=/usr/local/bin/lb", &format!("ExecStart={}", command.display()));
    let verified = dir.path().join("lb@.service");
    std::fs::write(&verified, unit).unwrap();

    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).arg(&verified);
    let judged = process::run(verify, SOON);
    assert_eq!((judged.code, judged.stderr.as_str()), (Some(0), ""), "{}", judged.stdout);
}

/// The score is systemd's own: 0 is sealed, 10 is bare. A setting that falls out of the unit shows here.
#[test]
fn the_unit_is_hardened() {
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=yes", "--no-pager", "--threshold=12"]);
    security.arg(root().join("scripts/systemd/lb@.service"));
    let judged = process::run(security, SOON);
    assert_eq!(judged.code, Some(0), "{}{}", judged.stdout, judged.stderr);
}
