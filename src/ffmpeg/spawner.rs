//! The thread that all ffmpeg processes are children of.
//!
//! A child asks the kernel to be killed when its parent dies (`PR_SET_PDEATHSIG`), so that none is left behind even when
//! `lb` is killed with -9. To the kernel, the parent in this matter is the *thread* that forked: a child started from a
//! runtime's worker or blocking thread would be killed when that thread ends, long before the process does. So one thread,
//! which never ends, starts them all.

use std::io;
use std::sync::LazyLock;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// How many processes may be waiting to be started; a starter waits for its turn, which takes a millisecond.
const QUEUE: usize = 64;

struct Job {
    command: Command,
    runtime: Handle,
    reply: oneshot::Sender<io::Result<Child>>,
}

static SPAWNER: LazyLock<io::Result<mpsc::Sender<Job>>> = LazyLock::new(|| {
    let (sender, mut jobs) = mpsc::channel::<Job>(QUEUE);
    std::thread::Builder::new().name("ffmpeg-spawner".into()).spawn(move || {
        while let Some(Job { mut command, runtime, reply }) = jobs.blocking_recv() {
            // The runtime that asked also watches the child's pipes and its end.
            let _entered = runtime.enter();
            // Nobody waits any more: the child is dropped here, which kills it (`kill_on_drop`).
            drop(reply.send(command.spawn()));
        }
    })?;
    Ok(sender)
});

/// Starts a process in a group of its own (a terminal's ctrl-c stays with `lb`) that dies with this process.
///
/// The death signal reaches the child itself, not what it starts, and is lost if the program is set-uid.
pub(super) async fn spawn(mut command: Command) -> io::Result<Child> {
    command.process_group(0).kill_on_drop(true);
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe functions may be called; prctl and getppid are, and making an
    // `io::Error` from a number does not allocate.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the call above; then no signal will ever come.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    let (reply, answer) = oneshot::channel();
    let gone = || io::Error::other("the thread that starts ffmpeg is gone");
    let spawner = SPAWNER.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    let job = Job { command, runtime: Handle::current(), reply };
    spawner.send(job).await.map_err(|_| gone())?;
    answer.await.unwrap_or_else(|_| Err(gone()))
}
