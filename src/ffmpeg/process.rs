//! One ffmpeg process: started in a clean environment, heard, and ended with its group.

use super::spawner;
use super::stderr::{Entry, Lines};
use crate::auth::PullKey;
use crate::ids::NodeId;
use crate::media::flv;
use crate::retry::pauses;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

/// How ffmpeg is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program: a path, or a name that is looked up in `PATH`. A script in its place must `exec` the real ffmpeg,
    /// for the death signal reaches only the process that `lb` starts.
    pub ffmpeg: PathBuf,
    /// An ffmpeg that writes nothing, or takes nothing of what waits for it, for so long is killed and started again. Time
    /// spent waiting for the receiver does not count. Also the longest wait for the network within ffmpeg.
    pub stall: Duration,
    /// The shortest wait before a restart. Each wait is between once and twice its nominal length, by chance, so that
    /// nodes that lost the same source do not return to it together.
    pub backoff_min: Duration,
    /// The longest wait before a restart.
    pub backoff_max: Duration,
    /// After so long with media, the next wait is the shortest again.
    pub healthy: Duration,
    /// The largest FLV tag that is taken, in bytes.
    pub tag_limit: usize,
    /// What pulls from other nodes are signed with, and this node's name, where nodes share a token. ffmpeg cannot learn the
    /// other node's clock: the two may be five minutes apart.
    pub signer: Option<(PullKey, NodeId)>,
    /// Certificates that servers are believed by, in PEM, in place of those of the host.
    pub ca_file: Option<PathBuf>,
    /// Pulls by RTMP without TLS are refused.
    pub only_tls: bool,
}

/// What ffmpeg sees of the environment: where programs, libraries and certificates are.
const KEPT: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"];

impl Default for Settings {
    fn default() -> Self {
        Settings {
            ffmpeg: "ffmpeg".into(),
            stall: Duration::from_secs(10),
            backoff_min: Duration::from_millis(250),
            backoff_max: Duration::from_secs(5),
            healthy: Duration::from_secs(10),
            signer: None,
            ca_file: None,
            only_tls: false,
            tag_limit: flv::TAG_SIZE_MAX,
        }
    }
}

impl Settings {
    /// The waits before restarts, without end.
    pub(super) fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        pauses(self.backoff_min * 2, self.backoff_max.max(self.backoff_min * 2))
    }
}

/// Why a run of ffmpeg is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndReason {
    /// There is no such program.
    #[error("ffmpeg not found at '{}': install it or set --ffmpeg-path", .0.display())]
    NotFound(PathBuf),
    /// The program is there but does not start.
    #[error("ffmpeg at '{}' does not start: {error}", .path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It ended by itself, or somebody else killed it. A file that was read to its end gives success.
    #[error("ffmpeg ended ({status}){}", .said.as_ref().map(|said| format!(": {said}")).unwrap_or_default())]
    Exited {
        /// Its exit status.
        status: ExitStatus,
        /// The last line that it logged, without secrets.
        said: Option<String>,
    },
    /// It wrote nothing for so long, and was killed.
    #[error("ffmpeg wrote nothing for {0:?} and was killed")]
    Stalled(Duration),
    /// It took nothing of what it was given for so long, and was killed.
    #[error("ffmpeg took nothing for {0:?} and was killed")]
    TakesNothing(Duration),
    /// The memory budget is used up, and it was the worst.
    #[error("the memory that peers may make this node hold is used up")]
    Evicted,
    /// It was not started, for what it would pull is not by TLS.
    #[error("this node pulls by TLS only (--pull-tls), and the location is not rtmps://")]
    OnlyTls,
    /// It wrote something that is not FLV, and was killed.
    #[error("ffmpeg was killed for what it wrote: {0}")]
    Flv(flv::Error),
    /// Its output could not be read, and it was killed.
    #[error("ffmpeg's output cannot be read: {0}")]
    Read(io::Error),
}

/// An ffmpeg that was started.
pub(super) struct Running {
    process: Process,
    pub said: Said,
    /// There if it is fed.
    pub stdin: Option<ChildStdin>,
    /// There if what it writes is read.
    pub stdout: Option<ChildStdout>,
}

/// The pipes that an ffmpeg gets beside its standard error.
#[derive(Clone, Copy, Default)]
pub(super) struct Pipes {
    pub stdin: bool,
    pub stdout: bool,
}

impl Running {
    /// Starts an ffmpeg. `secret` is left out of what it says.
    pub async fn start(
        settings: &Settings,
        arguments: Vec<String>,
        pipes: Pipes,
        secret: Option<String>,
    ) -> Result<Running, EndReason> {
        let path = &settings.ffmpeg;
        let mut command = Command::new(path);
        command.args(arguments);
        // Whatever else stands in the environment of lb, secrets among it, is not ffmpeg's business.
        command
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| *name == **kept)));
        let pipe = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        command.stdin(pipe(pipes.stdin)).stdout(pipe(pipes.stdout)).stderr(Stdio::piped());
        // Not given up halfway: it takes a millisecond, and what it starts must be reaped.
        let mut process = match spawner::spawn(command).await {
            Ok(child) => Process(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(EndReason::NotFound(path.clone()));
            }
            Err(error) => return Err(EndReason::Start { path: path.clone(), error }),
        };
        let (stdin, stdout) = (process.0.stdin.take(), process.0.stdout.take());
        let said = Said { pipe: process.0.stderr.take(), lines: Lines::default(), last: None, secret };
        Ok(Running { process, said, stdin, stdout })
    }

    /// Waits until it ends by itself, and hears what it says meanwhile.
    pub async fn ended(&mut self) {
        loop {
            tokio::select! {
                // Its status is there again when it is reaped.
                _ended = self.process.0.wait() => return,
                () = self.said.log_next() => {}
            }
        }
    }

    /// Kills what is left of it, reaps it, and says how it ended if it did so by itself.
    pub async fn end(mut self) -> EndReason {
        let status = self.process.end().await;
        self.said.finish();
        match status {
            Ok(status) => EndReason::Exited { status, said: self.said.last },
            Err(error) => EndReason::Read(error),
        }
    }
}

/// A process that leads its own group. Dropped, which happens when a runtime is torn down, it is killed; tokio reaps it.
struct Process(Child);

impl Process {
    /// Kills what is left of the process and its group, and reaps it. A process that has ended keeps its own status.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        self.kill();
        self.0.wait().await
    }

    fn kill(&self) {
        // There is no id once the process is reaped, so this can never hit a stranger.
        let Some(group) = self.0.id().and_then(|id| libc::pid_t::try_from(id).ok()) else {
            return;
        };
        // SAFETY: kill takes two numbers and touches no memory of ours. It fails only if nobody is left, which is fine.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// ffmpeg's standard error on its way to the log.
pub(super) struct Said {
    /// Gone once it has ended.
    pub pipe: Option<ChildStderr>,
    lines: Lines,
    last: Option<String>,
    secret: Option<String>,
}

impl Said {
    /// Logs the next piece; waits for ever once there will be none.
    pub async fn log_next(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return std::future::pending().await;
        };
        let mut buffer = [0; 2048];
        match read_some(pipe, &mut buffer).await {
            Ok([]) | Err(_) => self.pipe = None,
            Ok(piece) => {
                let (last, secret) = (&mut self.last, self.secret.as_deref());
                self.lines.push(piece, Instant::now().into_std(), |entry| log(entry, secret, last));
            }
        }
    }

    fn finish(&mut self) {
        let (last, secret) = (&mut self.last, self.secret.as_deref());
        self.lines.finish(Instant::now().into_std(), |entry| log(entry, secret, last));
    }
}

fn log(entry: Entry, secret: Option<&str>, last: &mut Option<String>) {
    match entry {
        Entry::Line(line) => {
            let line = secret.map_or_else(|| line.clone(), |secret| line.replace(secret, "…"));
            tracing::warn!(line, "ffmpeg says");
            *last = Some(line);
        }
        Entry::LeftOut(lines) => tracing::warn!(lines, "ffmpeg says too much; lines were left out"),
    }
}

/// Reads once; an empty slice is the end.
pub(super) async fn read_some<'a>(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &'a mut [u8],
) -> io::Result<&'a [u8]> {
    let length = from.read(buffer).await?;
    Ok(buffer.get(..length).unwrap_or_default())
}
