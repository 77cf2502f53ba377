//! The product under test: the real binary, as a process.

use super::host::Host;
use super::http;
use super::process::{self, Finished};
use super::{SOON, poll};
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::NamedTempFile;

/// A node that is told to stop has stopped after this: the default of `--drain-timeout` and a margin.
pub const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// What `lb` started must be gone this soon after `lb`.
const CHILDREN_DEADLINE: Duration = Duration::from_secs(3);

/// The binary, without any `LB_` variable of the caller's environment.
pub fn command(args: &[&str]) -> Command {
    command_by(&[DEVELOPMENT], args)
}

const DEVELOPMENT: &str = env!("CARGO_BIN_EXE_lb");

/// The words before the arguments: the binary, maybe after another command that becomes it.
fn command_by(words: &[&str], args: &[&str]) -> Command {
    let words = [words, args].concat();
    let mut command = Command::new(words[0]);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        // COLUMNS decides how help is wrapped; NOTIFY_SOCKET and WATCHDOG_USEC would reach whoever runs the tests.
        if name.starts_with("LB_")
            || ["COLUMNS", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "RUST_LOG"].contains(&&*name)
        {
            command.env_remove(&*name);
        }
    }
    command.args(&words[1..]);
    command
}

/// Runs the binary for a command that ends by itself.
#[track_caller]
pub fn run(args: &[&str]) -> Finished {
    run_with(args, &[])
}

/// As [`run`], with variables in its environment.
#[track_caller]
pub fn run_with(args: &[&str], variables: &[(&str, &str)]) -> Finished {
    let mut command = command(args);
    command.envs(variables.iter().copied());
    process::run(command, SOON)
}

/// A running `lb`. Dropping it stops it, and fails the test if it does not end cleanly or leaves a child.
pub struct Lb {
    child: Child,
    ready: String,
    log: NamedTempFile,
    host: IpAddr,
    ended: bool,
}

impl Lb {
    /// Starts `lb` and waits until it says that it is ready. Ports that `args` does not name are picked by the system.
    #[track_caller]
    pub fn start(args: &[&str]) -> Lb {
        Lb::start_with(args, &[])
    }

    /// As [`Lb::start`], with variables in its environment.
    #[track_caller]
    pub fn start_with(args: &[&str], variables: &[(&str, &str)]) -> Lb {
        Lb::launch(&[DEVELOPMENT], Ipv4Addr::LOCALHOST.into(), args, variables)
    }

    /// As [`Lb::start`], of the build that ships: where figures are measured.
    #[track_caller]
    pub fn start_release(args: &[&str]) -> Lb {
        Lb::launch(&[process::release()], Ipv4Addr::LOCALHOST.into(), args, &[])
    }

    /// As [`Lb::start`], run by another command (`prlimit …`) that becomes it.
    #[track_caller]
    pub fn start_by(prefix: &[&str], args: &[&str]) -> Lb {
        Lb::launch(&[prefix, &[DEVELOPMENT]].concat(), Ipv4Addr::LOCALHOST.into(), args, &[])
    }

    /// As [`Lb::start`], on a host of its own.
    #[track_caller]
    pub fn start_on(host: &Host, args: &[&str]) -> Lb {
        let admin = SocketAddr::new(host.address(), 0).to_string();
        let words = [&host.prefix()[..], &[DEVELOPMENT]].concat();
        Lb::launch(&words, host.address(), &[args, &["--admin-listen", &admin]].concat(), &[])
    }

    #[track_caller]
    fn launch(words: &[&str], host: IpAddr, args: &[&str], variables: &[(&str, &str)]) -> Lb {
        let mut command = command_by(words, args);
        let named = |flag: &str, variable: &str| {
            args.iter().any(|arg| *arg == flag || arg.starts_with(&format!("{flag}=")))
                || variables.iter().any(|(name, _)| *name == variable)
        };
        if !named("--rtmp-port", "LB_RTMP_PORT") {
            // Not as a flag, which a reactor has no use for.
            command.env("LB_RTMP_PORT", "0");
        }
        if !named("--admin-listen", "LB_ADMIN_LISTEN") {
            command.args(["--admin-listen", "127.0.0.1:0"]);
        }
        let playback =
            args.iter().any(|arg| arg.contains("playback") && !arg.contains("--")) || args.contains(&"all");
        if playback && !named("--http-listen", "LB_HTTP_LISTEN") {
            command.args(["--http-listen", "[::]:0"]);
        }
        let reactor =
            args.iter().any(|arg| arg.contains("reactor") && !arg.contains("--")) || args.contains(&"all");
        if reactor && !named("--reactor-listen", "LB_REACTOR_LISTEN") {
            command.args(["--reactor-listen", "[::]:0"]);
        }
        let guarded = named("--insecure", "LB_INSECURE")
            || named("--trusted-nodes", "LB_TRUSTED_NODES")
            || named("--reactor-token", "LB_REACTOR_TOKEN")
            || named("--reactor-token-file", "CREDENTIALS_DIRECTORY");
        if reactor && !guarded {
            // The hosts of tests.
            command.args(["--trusted-nodes", "127.0.0.0/8,::1/128,10.0.0.0/8"]);
        }
        command.envs(variables.iter().copied());

        let log = NamedTempFile::new().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.reopen().unwrap());
        let mut child = process::spawn(command).expect("lb starts");
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).ok();
            sender.send(line).ok();
            // Standard output stays open, so that nothing written there later fails.
            stdout.read_to_end(&mut Vec::new()).ok();
        });
        let ready = receiver.recv_timeout(SOON).unwrap_or_default();
        // From here on the guard ends the process, whatever happens.
        let mut lb = Lb { child, ready, log, host, ended: false };
        if !lb.ready.starts_with("lb ready: ") {
            let status = lb.child.try_wait().unwrap();
            lb.end_now();
            panic!("lb {args:?} is not ready but said {:?} ({status:?}); its log:\n{}", lb.ready, lb.log());
        }
        lb
    }

    /// The line that says it is ready.
    pub fn ready_line(&self) -> &str {
        self.ready.trim_end()
    }

    /// An address of the ready line, with the host's address in place of the unspecified one.
    #[track_caller]
    fn address(&self, part: &str) -> SocketAddr {
        let text = self.ready_line().split(' ').find_map(|word| word.strip_prefix(part)?.strip_prefix('='));
        let text = text.unwrap_or_else(|| panic!("no {part} address in: {}", self.ready_line()));
        let mut addr: SocketAddr = text.parse().unwrap_or_else(|error| panic!("{part}={text}: {error}"));
        if addr.ip().is_unspecified() {
            // [::] is dual-stack, so an IPv4 address reaches it as well.
            addr.set_ip(self.host);
        }
        addr
    }

    /// The port of its RTMP listener.
    #[track_caller]
    pub fn rtmp_port(&self) -> u16 {
        self.address("rtmp").port()
    }

    /// The port of its RTMPS listener.
    #[track_caller]
    pub fn rtmps_port(&self) -> u16 {
        self.address("rtmps").port()
    }

    /// Where its RTMP listener is reached.
    #[track_caller]
    pub fn rtmp(&self) -> SocketAddr {
        self.address("rtmp")
    }

    /// A URL for encoders and players: `rtmp_url("live", "alpha")`.
    #[track_caller]
    pub fn rtmp_url(&self, app: &str, key: &str) -> String {
        format!("rtmp://{}/{app}/{key}", self.rtmp())
    }

    /// Where its viewers over HTTP are served.
    #[track_caller]
    pub fn http(&self) -> SocketAddr {
        self.address("http")
    }

    /// A URL for players over HTTP.
    #[track_caller]
    pub fn http_url(&self, app: &str, key: &str) -> String {
        format!("http://{}/{app}/{key}.flv", self.http())
    }

    /// Where its admin endpoint listens.
    #[track_caller]
    pub fn admin(&self) -> SocketAddr {
        self.address("admin")
    }

    /// Where its reactor endpoint listens.
    #[track_caller]
    pub fn reactor(&self) -> SocketAddr {
        self.address("reactor")
    }

    /// The base URL of its reactor, for `--reactor-url`.
    #[track_caller]
    pub fn reactor_url(&self) -> String {
        format!("http://{}", self.reactor())
    }

    /// The sum of all samples of a metric, or of those with a label: `lb_pulls_out`, `lb_lookups_total{kind="watcher"}`.
    /// A metric without samples is 0: a counter with labels has none before it first counts.
    #[track_caller]
    pub fn metric(&self, wanted: &str) -> f64 {
        let (name, labels) = wanted.split_once('{').unwrap_or((wanted, ""));
        let labels: Vec<&str> = labels.trim_end_matches('}').split(',').filter(|l| !l.is_empty()).collect();
        let text = http::get(self.admin(), "/metrics").body;
        let mut sum = 0.0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (series, has) = series.split_once('{').unwrap_or((series, ""));
            if series == name && labels.iter().all(|label| has.contains(label)) {
                sum += value.parse::<f64>().unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
        sum
    }

    /// Waits until [`Lb::metric`] is `value`.
    #[track_caller]
    pub fn wait_for_metric(&self, name: &str, value: f64, deadline: Duration) {
        let mut last = f64::NAN;
        poll(deadline, || {
            last = self.metric(name);
            (last == value).then_some(())
        });
        assert_eq!(last, value, "{name} after {deadline:?}; log:\n{}", self.log());
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, and waits for nothing.
    pub fn signal(&self, signal: i32) {
        process::signal(&self.child, signal);
    }

    /// Its open file descriptors.
    #[track_caller]
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }

    /// Its resident memory, in bytes.
    #[track_caller]
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// The living processes that it started.
    pub fn children(&self) -> Vec<(u32, String)> {
        process::session_members(self.pid())
    }

    /// What it wrote to its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log.path()).unwrap_or_default()).into_owned()
    }

    /// Kills it (`kill -9`), and checks that its children are gone as well.
    #[track_caller]
    pub fn kill(mut self) {
        self.end_now();
        self.assert_no_children();
    }

    /// Sends a signal and waits for the end.
    #[track_caller]
    pub fn stop(mut self, signal: i32) -> ExitStatus {
        process::signal(&self.child, signal);
        let status = self.wait_for_end(signal);
        self.assert_no_children();
        status
    }

    /// Waits for the end that something else brought about.
    #[track_caller]
    pub fn wait(mut self) -> ExitStatus {
        let status = self.wait_for_end(0);
        self.assert_no_children();
        status
    }

    /// Waits for the end after a signal was sent; kills it and panics if it does not come.
    #[track_caller]
    fn wait_for_end(&mut self, signal: i32) -> ExitStatus {
        let status = process::wait_for_exit(&mut self.child, STOP_DEADLINE);
        self.end_now();
        status.unwrap_or_else(|| {
            panic!("lb runs on {STOP_DEADLINE:?} after signal {signal}; its log:\n{}", self.log())
        })
    }

    fn end_now(&mut self) {
        self.ended = true;
        self.child.kill().ok();
        self.child.wait().ok();
    }

    #[track_caller]
    fn assert_no_children(&self) {
        poll(CHILDREN_DEADLINE, || self.children().is_empty().then_some(()));
        let left = self.children();
        for (pid, _) in &left {
            // SAFETY: kill has no memory effects; the process belongs to the session that this test made.
            unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
        }
        assert!(left.is_empty(), "lb left processes behind: {left:?}; its log:\n{}", self.log());
    }
}

impl Drop for Lb {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end_now();
            eprintln!("--- log of lb (process {}, {})\n{}---", self.pid(), self.ready_line(), self.log());
        } else if !self.ended {
            process::signal(&self.child, libc::SIGTERM);
            let status = self.wait_for_end(libc::SIGTERM);
            assert_eq!(status.code(), Some(0), "lb did not end cleanly; its log:\n{}", self.log());
            self.assert_no_children();
        }
    }
}
