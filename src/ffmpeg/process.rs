//! Keeps one ffmpeg running for as long as a pull is wanted, and pushes what it writes into a feed for each run.
//!
//! ```text
//! start ─▶ running ──(exit, hang, no FLV)──▶ back-off ─▶ running …
//!             └──(handle stopped or dropped, receiver dropped)──▶ killed and reaped
//! ```
//!
//! An ffmpeg that is no longer wanted gets SIGKILL at once, with its process group: a copy to a pipe has nothing to
//! flush, and its source sees the closed connection just as soon.

use super::command::{self, Location};
use super::spawner;
use super::stderr::{Entry, Lines};
use crate::auth::PullKey;
use crate::ids::NodeId;
use crate::media::flv;
use crate::relay::{Feed, Feeds, PullEvent};
use crate::telemetry::{Counted, Metrics};
use backon::{BackoffBuilder, ExponentialBuilder};
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// How many events may wait for the receiver: that a run began to bring media, and that it ended.
const EVENTS: usize = 2;

/// The size of a Linux pipe.
const READ_SIZE: usize = 64 * 1024;

/// After its output has ended, ffmpeg may still say why, for so long.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// How ffmpeg is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program: a path, or a name that is looked up in `PATH`. A script in its place must `exec` the real ffmpeg,
    /// for the death signal reaches only the process that `lb` starts.
    pub ffmpeg: PathBuf,
    /// An ffmpeg that writes nothing for so long is killed and started again. Time spent waiting for the receiver
    /// does not count. Also the longest wait for the network within ffmpeg.
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

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

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
    fn delays(&self) -> impl Iterator<Item = Duration> + use<> {
        ExponentialBuilder::default()
            .with_min_delay(self.backoff_min)
            // The jitter adds up to as much again.
            .with_max_delay((self.backoff_max / 2).max(self.backoff_min))
            .without_max_times()
            .with_jitter()
            // Without a seed of its own, every process would draw the same numbers.
            .with_jitter_seed(rand::random())
            .build()
    }
}

/// Why a run of ffmpeg is over.
#[derive(Debug, thiserror::Error)]
enum EndReason {
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

/// A running pull. Dropping it ends the pull: the process is killed and reaped right after, in the background.
#[derive(Debug)]
pub struct Puller {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Puller {
    /// Starts to pull, on the current tokio runtime. Each run that brings media is a feed, whose timestamps start anew. The
    /// pull also ends when the receiver is dropped.
    pub fn start(
        settings: Settings,
        location: Location,
        feeds: Arc<Feeds>,
        metrics: Arc<Metrics>,
    ) -> (Puller, mpsc::Receiver<PullEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let stop = CancellationToken::new();
        let span = tracing::info_span!("ffmpeg", %location);
        let task = Task { settings, location, feeds, metrics, events, stop: stop.clone() };
        (Puller { stop, task: tokio::spawn(task.run().instrument(span)) }, receiver)
    }

    /// Ends the pull. When this returns the process is gone and reaped.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "an ffmpeg pull did not end as it should");
        }
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        // The task is not aborted: it has a process to reap.
        self.stop.cancel();
    }
}

struct Task {
    settings: Settings,
    location: Location,
    feeds: Arc<Feeds>,
    metrics: Arc<Metrics>,
    events: mpsc::Sender<PullEvent>,
    stop: CancellationToken,
}

/// Nobody wants the pull any more.
struct Unwanted;

impl Task {
    async fn run(self) {
        let _counted = Counted::new(&self.metrics.pulls_in.with_label_values(&["ffmpeg"]));
        let mut delays = self.settings.delays();
        loop {
            self.metrics.pulls_started_total.with_label_values(&["ffmpeg"]).inc();
            let mut media_since = None;
            let Ok(reason) = self.run_once(&mut media_since).await else {
                return;
            };
            if media_since.is_some_and(|since: Instant| since.elapsed() >= self.settings.healthy) {
                delays = self.settings.delays();
            }
            let retry_in = delays.next().unwrap_or(self.settings.backoff_max);
            tracing::debug!(%reason, ?retry_in, "pull ended");
            let pause = async {
                let sent = self.events.send(PullEvent::Ended { reason: reason.to_string(), retry_in }).await;
                tokio::time::sleep(retry_in).await;
                sent.map_err(|_| Unwanted)
            };
            if self.unless_unwanted(pause).await.is_err() {
                return;
            }
        }
    }

    /// One process, from its start until it is reaped.
    async fn run_once(&self, media_since: &mut Option<Instant>) -> Result<EndReason, Unwanted> {
        if self.settings.only_tls && self.location.is_plain_rtmp() {
            return Ok(EndReason::OnlyTls);
        }
        let path = &self.settings.ffmpeg;
        let mut command = Command::new(path);
        let location = self.settings.signer.as_ref().map_or_else(
            || self.location.clone(),
            |(key, node)| self.location.signed(|name| key.sign(name, node, unix_seconds())),
        );
        command.args(command::arguments(&location, self.settings.stall, self.settings.ca_file.as_deref()));
        // Whatever else stands in the environment of lb, secrets among it, is not ffmpeg's business.
        command
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| *name == **kept)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Not given up halfway: it takes a millisecond, and what it starts must be reaped.
        let mut process = match spawner::spawn(command).await {
            Ok(child) => Process(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(EndReason::NotFound(path.clone()));
            }
            Err(error) => {
                return Ok(EndReason::Start { path: path.clone(), error });
            }
        };
        let mut said = Said { pipe: process.0.stderr.take(), lines: Lines::default(), last: None };
        let outcome = match process.0.stdout.take() {
            Some(stdout) => self.unless_unwanted(self.read(stdout, &mut said, media_since)).await,
            None => Ok(None),
        };
        let status = process.end().await;
        said.finish();
        Ok(match (outcome?, status) {
            (Some(reason), _) => reason,
            (None, Ok(status)) => EndReason::Exited { status, said: said.last },
            (None, Err(error)) => EndReason::Start { path: path.clone(), error },
        })
    }

    /// Passes on what ffmpeg writes, until it closes its output (`None`) or has to be ended.
    async fn read(
        &self,
        mut stdout: ChildStdout,
        said: &mut Said,
        media_since: &mut Option<Instant>,
    ) -> Result<Option<EndReason>, Unwanted> {
        let stall = self.settings.stall;
        let mut feed: Option<Feed> = None;
        let holder = self.feeds.budget().holder();
        let mut reader = flv::Reader::new(self.settings.tag_limit);
        let mut buffer = vec![0; READ_SIZE];
        let stalled = tokio::time::sleep(stall);
        tokio::pin!(stalled);
        loop {
            let read = tokio::select! {
                read = read_some(&mut stdout, &mut buffer) => read,
                () = said.log_next() => continue,
                () = &mut stalled => return Ok(Some(EndReason::Stalled(stall))),
                () = holder.evicted() => {
                    self.metrics.refused("memory");
                    return Ok(Some(EndReason::Evicted));
                }
            };
            let mut input = match read {
                Ok([]) => break,
                Ok(input) => input,
                Err(error) => return Ok(Some(EndReason::Read(error))),
            };
            let mut packets = Vec::new();
            let error = loop {
                match reader.read(&mut input) {
                    Ok(Some(packet)) => packets.push(packet),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            if !packets.is_empty() {
                let feed = match &mut feed {
                    Some(feed) => feed,
                    none => {
                        *media_since = Some(Instant::now());
                        let feed = self.feeds.begin_for(None, None, holder.clone());
                        self.send(PullEvent::Began(feed.reference())).await?;
                        feed.wait_attached().await;
                        none.insert(feed)
                    }
                };
                feed.push(&packets);
            }
            if let Some(error) = error {
                return Ok(Some(EndReason::Flv(error)));
            }
            stalled.as_mut().reset(Instant::now() + stall);
        }
        let last_words = async {
            while said.pipe.is_some() {
                said.log_next().await;
            }
        };
        // Too late is no error: a process that outlives its output is killed next.
        tokio::time::timeout(LAST_WORDS, last_words).await.ok();
        Ok(None)
    }

    async fn send(&self, event: PullEvent) -> Result<(), Unwanted> {
        self.events.send(event).await.map_err(|_| Unwanted)
    }

    async fn unless_unwanted<T>(
        &self,
        work: impl Future<Output = Result<T, Unwanted>>,
    ) -> Result<T, Unwanted> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Unwanted),
            () = self.events.closed() => Err(Unwanted),
            done = work => done,
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
struct Said {
    /// Gone once it has ended.
    pipe: Option<ChildStderr>,
    lines: Lines,
    last: Option<String>,
}

impl Said {
    /// Logs the next piece; waits for ever once there will be none.
    async fn log_next(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return std::future::pending().await;
        };
        let mut buffer = [0; 2048];
        match read_some(pipe, &mut buffer).await {
            Ok([]) | Err(_) => self.pipe = None,
            Ok(piece) => {
                self.lines.push(piece, Instant::now().into_std(), |entry| log(entry, &mut self.last))
            }
        }
    }

    fn finish(&mut self) {
        self.lines.finish(Instant::now().into_std(), |entry| log(entry, &mut self.last));
    }
}

fn log(entry: Entry, last: &mut Option<String>) {
    match entry {
        Entry::Line(line) => {
            tracing::warn!(line, "ffmpeg says");
            *last = Some(line);
        }
        Entry::LeftOut(lines) => tracing::warn!(lines, "ffmpeg says too much; lines were left out"),
    }
}

/// Reads once; an empty slice is the end.
async fn read_some<'a>(from: &mut (impl AsyncRead + Unpin), buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let length = from.read(buffer).await?;
    Ok(buffer.get(..length).unwrap_or_default())
}
