//! What the tests with real processes share: starting `lb` and ffmpeg, asking over HTTP, waiting for a condition.
//!
//! Nothing here knows what a test is about. Every process that is started here ends with its guard, and with the test
//! process even if that is killed. Ports are picked by the system and read back from what the processes print.

// Each test file is a crate of its own and uses its own part of this.
#![allow(dead_code)]
// A test fails by panicking; Clippy's switch for tests does not reach helpers outside of `#[test]` functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

pub mod cluster;
pub mod endpoint;
pub mod ffmpeg;
pub mod host;
pub mod http;
pub mod lb;
pub mod nginx;
pub mod process;
pub mod publisher;
pub mod secrets;
pub mod shown;
pub mod viewer;
pub mod witness;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For things that take a moment on an idle machine, and longer on one with two busy cores.
pub const SOON: Duration = Duration::from_secs(20);

/// The folder of the project.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the project.
#[track_caller]
pub fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A tool that `scripts/setup test` puts beside what cargo builds.
#[track_caller]
pub fn tool(path: &str) -> PathBuf {
    let tool = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools").join(path);
    assert!(tool.exists(), "{path} is not installed; `scripts/setup test` installs it");
    tool
}

/// A port for a server that cannot be told to pick one and say which.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Waits until `condition` holds, and panics with `what` if it does not within `deadline`.
#[track_caller]
pub fn wait_for(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let held = poll(deadline, || condition().then_some(()));
    assert!(held.is_some(), "waited {deadline:?} in vain for: {what}");
}

/// Asks `probe` until it finds something; `None` if it does not within `deadline`.
///
/// The only place in the tests that sleeps: it asks again every 10 ms.
pub fn poll<T>(deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        // Asked once more at the end: what came true while this thread did not run has come true.
        let last = Instant::now() >= end;
        let found = probe();
        if found.is_some() || last {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
