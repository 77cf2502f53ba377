//! A real Redis server for tests: on a Unix socket in a directory of its own, ended with the value.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A running `redis-server` without persistence.
pub struct RedisServer {
    directory: TempDir,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a server; fails the test when the program is missing (Debian: `redis-server`).
    pub fn start() -> Self {
        let mut server = RedisServer { directory: tempfile::tempdir().unwrap(), process: None };
        server.restart();
        server
    }

    /// Starts it again, with an empty memory, at the same place.
    pub fn restart(&mut self) {
        self.kill();
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(self.socket())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.expect("redis-server is needed (Debian package redis-server)"));
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
            std::fs::remove_file(self.socket()).ok();
        }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The process id, to stop and continue it.
    #[allow(dead_code)]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
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
