//! A Debian of its own: booted by systemd-nspawn, with its own processes, files and network, and gone with its guard.
//!
//! Its files are those that `scripts/setup test` fetched, below a layer in memory that takes what is written.

use crate::common::process::{self, Finished, Peer};
use crate::common::{SOON, poll, wait_for};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::NamedTempFile;

/// The longest that a command inside may take: apt with a stop that drains.
const DEADLINE: Duration = Duration::from_secs(90);

/// Where the machine sees the packages.
pub const PACKAGES: &str = "/packages";

/// Puts itself in a control group of its own on hosts without systemd, as the machine's systemd takes the one below: `$0` is its name.
const BEGIN: &str = r#"
for folder in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    if [ ! -d /run/systemd/system ] && [ -e "$folder/cgroup.procs" ]; then
        mkdir "$folder/$0" && echo $$ >"$folder/$0/cgroup.procs"
    fi
done
exec "$@""#;

/// A running machine.
pub struct Machine {
    process: Option<Peer>,
    /// Its first process, by the id that it has outside.
    init: u32,
    group: String,
    console: NamedTempFile,
}

impl Machine {
    /// Boots one that sees a folder of packages, and waits until it is up.
    #[track_caller]
    pub fn boot(packages: &Path) -> Machine {
        let debian = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/bookworm");
        assert!(debian.exists(), "run scripts/setup test first");
        let console = NamedTempFile::new().unwrap();
        // The name of a machine, of which there may be several at a time.
        let unique =
            console.path().file_name().unwrap().to_string_lossy().trim_start_matches(".tmp").to_owned();
        let group = format!("lb-package-{unique}");
        let mut command = Command::new("unshare");
        // All of it ends with this process, and nothing that it mounts is seen outside.
        command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]);
        command.args(["sh", "-c", BEGIN, &group, "systemd-nspawn", "--boot", "--console=pipe"]);
        command.args(["--private-network", "--volatile=overlay", "--settings=no", "--link-journal=no"]);
        command.arg("--directory").arg(debian.canonicalize().unwrap());
        command.arg(format!("--bind-ro={}:{PACKAGES}", packages.display()));
        command.arg(format!("--machine=lb-{}", std::process::id()));
        command.arg("--register=no");
        if !Path::new("/run/systemd/system").exists() {
            command.arg("--keep-unit");
        }
        command.stdin(Stdio::null());
        command.stdout(console.reopen().unwrap()).stderr(console.reopen().unwrap());
        let child = process::spawn_tool(command);
        let outer = child.id();
        // From here on the guard ends it.
        let mut machine = Machine { process: Some(Peer::new(child)), init: 0, group, console };
        let init = poll(SOON, || only_child(only_child(outer)?).filter(|init| name(*init) == "systemd"));
        machine.init = init.unwrap_or_else(|| panic!("it does not start: {}", machine.said()));
        // A unit that failed is what `degraded` means.
        let up = poll(SOON, || {
            (machine.try_run("systemctl is-system-running").stdout == "running\n").then_some(())
        });
        assert!(up.is_some(), "it is not up: {}", machine.said());
        machine
    }

    fn said(&self) -> String {
        process::read_back(self.console.reopen().unwrap())
    }

    /// Runs a line of shell inside, as root.
    #[track_caller]
    pub fn try_run(&self, line: &str) -> Finished {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "sh", "-c", line]);
        command.env_clear();
        command.envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("DEBIAN_FRONTEND", "noninteractive")]);
        process::run(command, DEADLINE)
    }

    /// As [`Machine::try_run`], and expects that it succeeds; what it printed.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let ran = self.try_run(line);
        assert_eq!(ran.code, Some(0), "{line}: {}{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// A property of a unit.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show --property={name} --value {unit}")).trim().to_owned()
    }

    /// The main process of a unit, by its id inside.
    #[track_caller]
    pub fn pid(&self, unit: &str) -> u32 {
        self.property(unit, "MainPID").parse().unwrap()
    }

    /// What a unit and systemd wrote about it to the journal.
    #[track_caller]
    pub fn journal(&self, unit: &str) -> String {
        self.run(&format!("journalctl --no-pager --output=cat --unit={unit}"))
    }

    /// Waits for a line in the journal of a unit.
    #[track_caller]
    pub fn wait_for_line(&self, unit: &str, wanted: &str) {
        let found = poll(SOON, || self.journal(unit).contains(wanted).then_some(()));
        assert!(found.is_some(), "no '{wanted}' in the journal of {unit}:\n{}", self.journal(unit));
    }

    /// An address out here that leads to a port on the loopback interface inside, until the test process ends.
    pub fn door(&self, port: u16) -> SocketAddr {
        let network = File::open(format!("/proc/{}/ns/net", self.init)).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let door = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            // The listener stays out here; sockets that this thread makes from now on are inside.
            // SAFETY: setns has no memory effects, and it concerns this thread alone.
            let entered = unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "{}", io::Error::last_os_error());
            for outside in listener.incoming().flatten() {
                // A port that nobody listens on shows as a connection that ends at once.
                let Ok(inside) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
                    continue;
                };
                let (outside_2, inside_2) = (outside.try_clone().unwrap(), inside.try_clone().unwrap());
                std::thread::spawn(move || pass(outside, inside));
                std::thread::spawn(move || pass(inside_2, outside_2));
            }
        });
        door
    }
}

/// Passes on what comes, and that no more comes.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    io::copy(&mut from, &mut to).ok();
    to.shutdown(std::net::Shutdown::Write).ok();
}

/// The only child of a process, once it is there.
fn only_child(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.trim().parse().ok()
}

/// The command of a process; nothing when it has ended.
fn name(pid: u32) -> String {
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split('\0').next().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned()
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.init != 0 {
            let journal = self.try_run("journalctl --no-pager --output=short-monotonic --lines=80");
            eprintln!("--- journal of the machine\n{}---", journal.stdout);
        }
        self.process = None;
        let folders = ["systemd/", "unified/", ""].map(|kind| format!("/sys/fs/cgroup/{kind}{}", self.group));
        // The kernel ends what is inside after its first process; only then can the groups be removed.
        let removed =
            poll(SOON, || folders.iter().all(|folder| remove_group(Path::new(folder))).then_some(()));
        if !std::thread::panicking() {
            assert!(removed.is_some(), "processes of the machine are left in {}", self.group);
            wait_for("its first process to be gone", SOON, || name(self.init) != "systemd");
        }
    }
}

/// Whether a control group and those in it are gone. What stands in their folders are no files that could be removed.
fn remove_group(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return true;
    };
    let inner: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect();
    inner.iter().all(|inner| remove_group(inner)) && std::fs::remove_dir(folder).is_ok()
}
