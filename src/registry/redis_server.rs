//! A real Redis server for tests, in a directory of its own, ended with the value.

#![allow(clippy::unwrap_used, clippy::expect_used)]
// Each test binary uses some of it.
#![allow(dead_code)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest that a server may take to start.
const START: Duration = Duration::from_secs(10);

/// A running `redis-server` without persistence.
pub struct RedisServer {
    directory: TempDir,
    arguments: Vec<String>,
    address: Option<SocketAddr>,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a server on a Unix socket; fails the test when the program is missing (Debian: `redis-server`).
    pub fn start() -> Self {
        Self::start_with(None, &["--port", "0"])
    }

    /// Starts a server on a port.
    pub fn on_tcp(arguments: &[&str]) -> Self {
        let address = free_address();
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        // Others know a server by the address that its connections come from.
        let mut all =
            vec!["--bind", &ip, "--bind-source-addr", &ip, "--port", &port, "--protected-mode", "no"];
        all.extend(arguments);
        Self::start_with(Some(address), &all)
    }

    /// Starts a server that speaks TLS at this address and asks for no client's certificate.
    pub fn on_tls(address: SocketAddr, certificate: &str, key: &str, ca: &str) -> Self {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let tls = ["--bind", &ip, "--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"];
        let files = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ca];
        Self::start_with(Some(address), &[&tls[..], &files[..]].concat())
    }

    fn start_with(address: Option<SocketAddr>, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("redis.sock");
        let mut all = ["--save", "", "--appendonly", "no", "--unixsocket"].map(str::to_owned).to_vec();
        all.push(socket.display().to_string());
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        Self::spawn(directory, address, all)
    }

    /// Starts a Sentinel on a port.
    pub fn sentinel(configuration: &str) -> Self {
        let (directory, address) = (tempfile::tempdir().unwrap(), free_address());
        let file = directory.path().join("sentinel.conf");
        let ip = address.ip();
        let bind = format!("bind {ip}\nbind-source-addr {ip}\nport {}\nprotected-mode no\n", address.port());
        std::fs::write(&file, bind + configuration).unwrap();
        Self::spawn(directory, Some(address), vec![file.display().to_string(), "--sentinel".to_owned()])
    }

    fn spawn(directory: TempDir, address: Option<SocketAddr>, arguments: Vec<String>) -> Self {
        let mut server = RedisServer { directory, arguments, address, process: None };
        server.restart();
        server
    }

    /// Starts it again, with an empty memory, at the same place, and waits until it takes connections.
    pub fn restart(&mut self) {
        self.kill();
        let process = Command::new("redis-server")
            .args(&self.arguments)
            .current_dir(self.directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.expect("redis-server is needed (Debian package redis-server)"));
        let begin = Instant::now();
        while !self.takes_connections() {
            assert!(begin.elapsed() < START, "redis-server does not start: {:?}", self.arguments);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn takes_connections(&self) -> bool {
        match self.address {
            Some(address) => TcpStream::connect(address).is_ok(),
            None => UnixStream::connect(self.socket()).is_ok(),
        }
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
            std::fs::remove_file(self.socket()).ok();
        }
    }

    /// Where it is, for a store.
    pub fn url(&self) -> String {
        match self.address {
            Some(address) => format!("redis://{address}"),
            None => format!("unix://{}", self.socket().display()),
        }
    }

    /// Its address, if it is on a port.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("the server is on a port")
    }

    /// What `redis-cli` says when it is given this; fails the test when that is an error.
    pub fn cli(&self, words: &[&str]) -> String {
        self.try_cli(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The same, or the error: the server refuses it, or drops connections at the moment.
    pub fn try_cli(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new("redis-cli");
        match self.address {
            Some(address) => {
                command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
            }
            None => command.arg("-s").arg(self.socket()),
        };
        let output = command.arg("-e").args(words).output().expect("redis-cli is needed (redis-tools)");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!("{} {}", text(&output.stdout), text(&output.stderr))),
        }
    }

    /// The process id, to stop and continue it.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Stops it, as a host does that hangs, or lets it go on.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.pid()).unwrap();
        // SAFETY: kill(2) takes no pointers; the process is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// The directory that is the server's own.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An address that nobody uses, on a loopback network of this process, where no outgoing connection takes the port
/// before the server does.
pub fn free_address() -> SocketAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, high | 64, middle, low.clamp(1, 254));
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}
