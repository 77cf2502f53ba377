//! The Debian package that `scripts/package` builds: what is in it, and what it does on a Debian 12 that was just installed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

#[path = "../common/mod.rs"]
mod common;
mod machine;

use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, http, process, wait_for};
use machine::{Machine, PACKAGES};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

const ROLES: [&str; 4] = ["all", "ingest", "playback", "reactor"];

/// The version of the package before.
const BEFORE: &str = "0.0.9-1";

/// A folder with the package, the same with a lower version, and their names.
struct Packages {
    folder: PathBuf,
    new: String,
    old: String,
}

/// Built once in a run, by the first test that needs them.
fn packages() -> &'static Packages {
    static PACKAGES: OnceLock<Packages> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
        std::fs::create_dir_all(&folder).unwrap();
        let build = |more: &[&str]| {
            let mut command = process::script("scripts/package --fast --output \"$@\"");
            command.arg("package").arg(&folder).args(more);
            let built = process::run(command, process::BUILD_DEADLINE);
            assert_eq!(built.code, Some(0), "{}{}", built.stdout, built.stderr);
            let path = PathBuf::from(built.stdout.trim_end());
            assert!(path.is_file(), "standard output is the path alone: {:?}", built.stdout);
            path.file_name().unwrap().to_str().unwrap().to_owned()
        };
        let (new, old) = (build(&[]), build(&["--version", BEFORE]));
        Packages { folder, new, old }
    })
}

#[track_caller]
fn dpkg_deb(args: &[&str]) -> String {
    let packages = packages();
    let mut command = Command::new("dpkg-deb");
    command.arg(args[0]).arg(packages.folder.join(&packages.new)).args(&args[1..]);
    let ran = process::run(command, SOON);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
    ran.stdout
}

fn boot() -> Machine {
    Machine::boot(&packages().folder)
}

/// Offline: what the package needs is in every Debian.
#[track_caller]
fn install(machine: &Machine, package: &str) -> String {
    let ran = machine
        .try_run(&format!("apt-get install --yes --quiet --option=Dpkg::Use-Pty=0 {PACKAGES}/{package}"));
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.code, Some(0), "{said}");
    said
}

/// Two nodes on one host: the playback node gets other ports.
#[track_caller]
fn set_playback_ports(machine: &Machine) {
    machine.run("echo LB_RTMP_PORT=1936 >>/etc/lb/playback.env");
}

#[track_caller]
fn start(machine: &Machine, roles: &[&str]) {
    for role in roles {
        machine.run(&format!("systemctl start lb@{role}"));
        assert_active(machine, role);
    }
}

#[track_caller]
fn assert_active(machine: &Machine, role: &str) {
    assert_eq!(machine.property(&format!("lb@{role}"), "ActiveState"), "active", "{role}");
}

/// Whether the main process of a node runs the file that is installed now: the device and inode of both.
#[track_caller]
fn runs_what_is_installed(machine: &Machine, role: &str) -> bool {
    let pid = machine.pid(&format!("lb@{role}"));
    let said = machine.run(&format!("stat --dereference --format=%d:%i /proc/{pid}/exe /usr/bin/lb"));
    let (running, installed) = said.trim().split_once('\n').unwrap();
    running == installed
}

#[test]
fn it_holds_what_a_host_needs() {
    let field = |name: &str| dpkg_deb(&["--field", name]).trim().to_owned();
    assert_eq!(field("Package"), "lb");
    assert_eq!(field("Version"), concat!(env!("CARGO_PKG_VERSION"), "-1"));
    let depends = field("Depends");
    let depends: Vec<&str> = depends.split(", ").map(|package| package.split(' ').next().unwrap()).collect();
    assert!(depends.contains(&"libc6"), "{depends:?}");
    assert!(depends.iter().all(|package| ["libc6", "libgcc-s1"].contains(package)), "{depends:?}");

    // Mode and owner by path.
    let listing = dpkg_deb(&["--contents"]);
    let files: BTreeMap<&str, &str> = listing
        .lines()
        .filter(|line| !line.ends_with('/'))
        .map(|line| (line.split_whitespace().last().unwrap().trim_start_matches('.'), line))
        .collect();
    let has = |path: &str, rights: &str| {
        let line = files.get(path).unwrap_or_else(|| panic!("no {path} in {listing}"));
        assert!(line.starts_with(&format!("{rights} 0/0 ")), "{line}");
    };
    has("/usr/bin/lb", "-rwxr-xr-x");
    for path in [
        "/usr/lib/systemd/system/lb@.service",
        "/usr/share/man/man8/lb.8.gz",
        "/usr/share/bash-completion/completions/lb",
        "/usr/share/zsh/vendor-completions/_lb",
        "/usr/share/fish/vendor_completions.d/lb.fish",
        "/usr/share/doc/lb/copyright",
        "/usr/share/doc/lb/docs/OPERATING.md",
    ] {
        has(path, "-rw-r--r--");
    }
    let mut settings = BTreeSet::new();
    for role in ROLES {
        let path = format!("/etc/lb/{role}.env");
        has(&path, "-rw-------");
        settings.insert(path);
    }
    let conffiles = dpkg_deb(&["--info", "conffiles"]);
    assert_eq!(conffiles.lines().map(str::to_owned).collect::<BTreeSet<_>>(), settings);

    let folder = tempfile::tempdir().unwrap();
    dpkg_deb(&["--extract", folder.path().to_str().unwrap()]);
    let unit = std::fs::read_to_string(folder.path().join("usr/lib/systemd/system/lb@.service")).unwrap();
    assert!(unit.contains("\nExecStart=/usr/bin/lb --role %i\n"), "{unit}");
    let mut unpack = Command::new("gzip");
    unpack.arg("-dc").arg(folder.path().join("usr/share/man/man8/lb.8.gz"));
    assert!(process::run(unpack, SOON).stdout.contains("\n.TH lb 8 "));
}

#[test]
fn all_roles_run_on_a_fresh_host_and_media_flows() {
    let machine = boot();
    install(&machine, &packages().new);
    assert!(machine.run("lb --version").starts_with("lb "));
    assert_eq!(machine.run("stat --format='%a %U %s' /etc/lb/reactor.token"), "600 root 65\n");
    machine.run("bash -c '. /usr/share/bash-completion/completions/lb && complete -p lb'");
    for role in ROLES {
        assert_eq!(machine.property(&format!("lb@{role}"), "ActiveState"), "inactive", "{role}");
        assert_eq!(machine.try_run(&format!("systemctl is-enabled lb@{role}")).stdout, "disabled\n");
    }
    set_playback_ports(&machine);
    // Faster than the 30 s that are shipped.
    machine.run(
        "mkdir -p /run/systemd/system/lb@playback.service.d &&
         printf '[Service]\\nWatchdogSec=4s\\n' >/run/systemd/system/lb@playback.service.d/fast.conf &&
         systemctl daemon-reload",
    );
    start(&machine, &["reactor", "ingest", "playback"]);
    for role in ["reactor", "ingest", "playback"] {
        assert!(machine.journal(&format!("lb@{role}")).contains("lb ready: "), "{role}");
        // A user of its own, from systemd's range of those that exist while a unit runs.
        let user = machine.run(&format!("stat --format=%u /proc/{}", machine.pid(&format!("lb@{role}"))));
        assert!((61184..=65519).contains(&user.trim().parse::<u32>().unwrap()), "{role}: {user}");
    }
    for port in [9011, 9012, 9013] {
        let admin = machine.door(port);
        wait_for("readiness", SOON, || {
            http::try_call(admin, "GET", "/readyz", "").is_ok_and(|said| said.status == 200)
        });
    }
    // The page is built in.
    assert!(http::get(machine.door(8080), "/").body.contains("page.js"));

    let publisher = Publisher::start(machine.door(1935), "ingest", "x", Media::default());
    publisher.wait_for_keyframe();
    wait_for("the registration", SOON, || {
        machine.run("lb streams --reactor-token-file /etc/lb/reactor.token").contains("x ")
    });
    let viewer = Viewer::start(machine.door(1936), "live", "x");
    viewer.wait_for_keyframe(1, SOON);
    let nodes = machine.run("lb status --reactor-token-file /etc/lb/reactor.token");
    assert!(nodes.contains("ingest") && nodes.contains("playback"), "{nodes}");

    // A reload: nobody is sent away.
    for role in ["ingest", "playback"] {
        let unit = format!("lb@{role}");
        let before = machine.pid(&unit);
        machine.run(&format!("systemctl reload {unit}"));
        machine.wait_for_line(&unit, "the configuration was read again");
        assert_eq!(machine.pid(&unit), before);
        assert_active(&machine, role);
    }
    assert!(viewer.is_connected());

    // A stop drains: the viewer is told before its connection ends.
    machine.run("systemctl stop lb@playback");
    viewer.wait_for_end(SOON);
    machine.wait_for_line("lb@playback", "stopping");
    assert_eq!(machine.property("lb@playback", "Result"), "success");

    // One that is killed comes back, and so does one that hangs.
    start(&machine, &["playback"]);
    for (role, signal, line) in
        [("ingest", "KILL", "status=9/KILL"), ("playback", "STOP", "Watchdog timeout")]
    {
        let unit = format!("lb@{role}");
        let before = machine.pid(&unit);
        machine.run(&format!("systemctl kill --kill-whom=main --signal={signal} {unit}"));
        machine.wait_for_line(&unit, line);
        wait_for("another process", SOON, || ![0, before].contains(&machine.pid(&unit)));
        wait_for("it to be ready", SOON, || machine.property(&unit, "ActiveState") == "active");
    }
}

#[test]
fn an_upgrade_restarts_what_runs_and_keeps_what_was_edited() {
    let machine = boot();
    install(&machine, &packages().old);
    machine.run("systemctl enable lb@reactor lb@ingest lb@playback");
    machine.run("echo '# edited' >>/etc/lb/ingest.env");
    let token = machine.run("cat /etc/lb/reactor.token");
    start(&machine, &["reactor", "ingest"]);
    let before = ["reactor", "ingest"].map(|role| machine.pid(&format!("lb@{role}")));
    let media = Media { comes_back: Some(Duration::from_millis(500)), ..Media::default() };
    let publisher = Publisher::start(machine.door(1935), "ingest", "x", media);
    publisher.wait_for_keyframe();

    let said = install(&machine, &packages().new);
    assert!(said.contains("lb: restarting lb@reactor\nlb: restarting lb@ingest\n"), "{said}");
    let version = machine.run("dpkg-query --show --showformat='${Version} ${Status}' lb");
    assert_eq!(version, concat!(env!("CARGO_PKG_VERSION"), "-1 install ok installed"));
    for (role, before) in ["reactor", "ingest"].into_iter().zip(before) {
        assert_active(&machine, role);
        assert_ne!(machine.pid(&format!("lb@{role}")), before, "{role}");
        assert!(runs_what_is_installed(&machine, role), "{role}");
        // The one before drained, and was not killed.
        assert!(machine.journal(&format!("lb@{role}")).contains("stopping"), "{role}");
    }
    wait_for("the encoder to be back", SOON, || publisher.sent().accepted.len() == 2);
    // What was stopped stays so, enabled or not.
    assert_eq!(machine.property("lb@playback", "ActiveState"), "inactive");
    assert_eq!(machine.run("cat /etc/lb/reactor.token"), token);
    assert!(machine.run("cat /etc/lb/ingest.env").ends_with("# edited\n"));
}

#[test]
fn an_upgrade_is_done_also_where_a_node_cannot_start() {
    let machine = boot();
    install(&machine, &packages().old);
    start(&machine, &["reactor"]);
    machine.run("echo LB_HEARTBEAT=often >>/etc/lb/reactor.env");
    let said = install(&machine, &packages().new);
    assert!(said.contains("lb: lb@reactor does not start: see journalctl -u lb@reactor"), "{said}");
    assert_eq!(machine.property("lb@reactor", "ActiveState"), "failed");
}

#[test]
fn a_policy_of_the_host_keeps_an_upgrade_from_restarting() {
    let machine = boot();
    install(&machine, &packages().old);
    start(&machine, &["reactor"]);
    let before = machine.pid("lb@reactor");
    machine.run("printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d");
    install(&machine, &packages().new);
    assert_active(&machine, "reactor");
    assert_eq!(machine.pid("lb@reactor"), before);
    assert!(!runs_what_is_installed(&machine, "reactor"));
    // At a time of one's own.
    machine.run("systemctl restart lb@reactor");
    assert!(runs_what_is_installed(&machine, "reactor"));
}

/// Every file of the machine but what apt, dpkg and the journal write for themselves.
#[track_caller]
fn files(machine: &Machine) -> BTreeSet<String> {
    let list = machine.run(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /packages -o -path /var/lib/dpkg -o \
         -path /var/lib/apt -o -path /var/cache -o -path /var/log -o -path /var/tmp -o -path /var/lib/systemd \\) -prune -o -print",
    );
    list.lines().map(str::to_owned).collect()
}

#[test]
fn a_removal_stops_it_and_a_purge_leaves_nothing() {
    let machine = boot();
    let before = files(&machine);
    install(&machine, &packages().new);
    machine.run("systemctl enable lb@reactor lb@ingest");
    start(&machine, &["reactor", "ingest"]);
    machine.run("echo '# edited' >>/etc/lb/ingest.env && echo secret >/etc/lb/jwt.keys");
    let publisher = Publisher::start(machine.door(1935), "ingest", "x", Media::default());
    publisher.wait_for_keyframe();

    machine.run("apt-get remove --yes --quiet lb");
    publisher.wait_for_end(SOON);
    for role in ["reactor", "ingest"] {
        assert!(machine.journal(&format!("lb@{role}")).contains("stopping"), "{role}");
        assert_eq!(machine.property(&format!("lb@{role}"), "ActiveState"), "inactive", "{role}");
    }
    // Settings outlive that, and which units are enabled.
    machine
        .run("test ! -e /usr/bin/lb && test -e /etc/lb/reactor.token && grep -q edited /etc/lb/ingest.env");
    let token = machine.run("cat /etc/lb/reactor.token");
    install(&machine, &packages().new);
    assert_eq!(machine.run("cat /etc/lb/reactor.token"), token);
    assert_eq!(machine.run("systemctl is-enabled lb@reactor lb@ingest"), "enabled\nenabled\n");

    start(&machine, &["reactor", "ingest"]);
    machine.run("apt-get purge --yes --quiet lb");
    assert_eq!(machine.try_run("pidof lb").stdout, "");
    assert_eq!(machine.run("systemctl list-units --all --plain --no-legend 'lb@*'"), "");
    let left: Vec<String> = files(&machine).difference(&before).cloned().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// `scripts/install` puts its unit where systemd looks first: it would go on starting the binary that it installed.
#[test]
fn a_unit_that_comes_before_the_one_of_the_package_is_named() {
    let machine = boot();
    machine.run("touch /etc/systemd/system/lb@.service");
    let said = install(&machine, &packages().new);
    assert!(
        said.contains("lb: /etc/systemd/system/lb@.service is in use, not the unit of this package"),
        "{said}"
    );
}
