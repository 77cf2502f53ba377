//! Child processes that never outlive the tests.

use super::poll;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

/// For a release build from nothing, on two slow cores beside other builds.
pub const BUILD_DEADLINE: Duration = Duration::from_secs(1200);

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts a process that the kernel kills when the test process ends, however it ends.
///
/// The process leads a session of its own, so that [`session_members`] finds all it started. The kernel ties the
/// parent-death signal to the *thread* that forked; hence one thread, which lives as long as the test process, starts
/// them all.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                reply.send(command.spawn()).ok();
            }
        });
        orders
    });
    let parent = std::process::id().cast_signed();
    // SAFETY: between fork and exec the closure makes three system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 || libc::setsid() == -1 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the signal was asked for.
            if libc::getppid() != parent {
                return Err(io::ErrorKind::NotConnected.into());
            }
            Ok(())
        });
    }
    let (reply, answer) = mpsc::channel();
    starter.send((command, reply)).expect("the starter thread lives as long as the process");
    answer.recv().expect("the starter thread answers every order")
}

/// As [`spawn`], for a tool from the distribution: a missing one is a failure that says what to do.
pub fn spawn_tool(command: Command) -> Child {
    let name = command.get_program().to_string_lossy().into_owned();
    spawn(command).unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => panic!("'{name}' is not installed; `scripts/setup test` installs it"),
        _ => panic!("'{name}' does not start: {error}"),
    })
}

/// A script of the project, as from a shell: what cargo tells a test about its package would have it build dependencies once more.
pub fn script(words: &str) -> Command {
    let mut command = Command::new("bash");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-euc", words]);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if told.iter().any(|told| name.starts_with(told)) || ["CARGO", "OUT_DIR"].contains(&&*name) {
            command.env_remove(name);
        }
    }
    command
}

/// The build that ships, made now if it is not there yet.
pub fn release() -> &'static str {
    static BINARY: OnceLock<String> = OnceLock::new();
    BINARY.get_or_init(|| {
        let build = "source scripts/lib.sh; build_release >&2; echo \"$(target_dir)/release/lb\"";
        let built = run(script(build), BUILD_DEADLINE);
        assert_eq!(built.code, Some(0), "{}", built.stderr);
        built.stdout.trim_end().to_owned()
    })
}

/// What a finished process left.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; missing when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to standard error.
    pub stderr: String,
}

/// Runs a tool to its end; panics when that takes longer than `deadline`.
#[track_caller]
pub fn run(mut command: Command, deadline: Duration) -> Finished {
    let name = format!("{command:?}");
    let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    let mut child = spawn_tool(command);
    let status = wait_for_exit(&mut child, deadline);
    if status.is_none() {
        child.kill().ok();
        child.wait().ok();
    }
    let (stdout, stderr) = (read_back(out), read_back(err));
    let Some(status) = status else {
        panic!("still runs after {deadline:?}: {name}\nstdout: {stdout}\nstderr: {stderr}");
    };
    Finished { code: status.code(), signal: status.signal(), stdout, stderr }
}

/// Waits for the end of a process; `None` if it still runs after `deadline`.
pub fn wait_for_exit(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    poll(deadline, || child.try_wait().expect("a child can be waited for"))
}

/// Sends a signal to a process that has not been waited for.
pub fn signal(child: &Child, signal: i32) {
    // SAFETY: kill has no memory effects; the id is that of an own child that is not reaped yet.
    let result = unsafe { libc::kill(child.id().cast_signed(), signal) };
    assert_eq!(result, 0, "signal {signal}: {}", io::Error::last_os_error());
}

/// The living processes of the session that `leader` leads, without `leader`: whatever it started and is not gone.
pub fn session_members(leader: u32) -> Vec<(u32, String)> {
    let mut members = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // The process may end while it is looked at.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // pid (comm) state ppid pgrp session …; comm may hold anything, so the fields are counted after its last ')'.
        let Some((head, fields)) = stat.rsplit_once(')') else {
            continue;
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let (state, session) = (fields[0], fields[3]);
        if pid != leader && state != "Z" && session == leader.to_string() {
            members.push((pid, head.split_once('(').map_or("", |(_, comm)| comm).to_owned()));
        }
    }
    members
}

/// A process that is killed when this is dropped, with all that it started.
pub struct Peer(Child);

impl Peer {
    /// Takes over a process.
    pub fn new(child: Child) -> Self {
        Peer(child)
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("a child can be waited for").is_none()
    }

    /// Asks it to end, as ctrl-c does, and waits until it has; panics when that takes longer than `deadline`.
    #[track_caller]
    pub fn interrupt(mut self, deadline: Duration) -> ExitStatus {
        signal(&self.0, libc::SIGINT);
        wait_for_exit(&mut self.0, deadline).unwrap_or_else(|| panic!("still runs after {deadline:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if self.is_running() {
            // SAFETY: kill has no memory effects; the process leads a group of its own and is not reaped yet.
            unsafe { libc::kill(-self.0.id().cast_signed(), libc::SIGKILL) };
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// All that a process wrote to a file it shares with the test.
pub fn read_back(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
