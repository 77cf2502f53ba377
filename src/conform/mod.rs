//! `lb conform`: does an RTMP server do what encoders and players need of it?
//!
//! Each [`Check`] is a small function that talks to the server over connections of its own, under a stream name of its own,
//! and says in a few words what it saw. The client below them (`peer`, `chunk`) can send any bytes, as most of what is
//! worth checking is what a right client never sends. What servers of all kinds may do differently is no failure: clocks may be
//! shifted, a second publisher may be refused or take over, a start cache may be there or not.
//!
//! It knows nothing of what the server is, lb or not, and asks it nothing but RTMP.

mod bodies;
mod check;
mod checks;
mod chunk;
mod lab;
mod peer;
mod report;
mod scene;

pub use check::{Check, Finding, Group, Row, Seen, Verdict};
pub use checks::all;
pub use lab::{Lab, Site};
pub use peer::Trouble;
pub use report::{Form, Report};

use futures::StreamExt;
use futures::stream;
use lab::PATIENCE;
use peer::Peer;
use std::time::Duration;
use tokio::time::Instant;

/// What a check may take by default.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// How long nothing may come by default before it counts as nothing: some round trips, and the batch window of a relay.
pub const QUIET: Duration = Duration::from_millis(500);

/// Checks that are run side by side by default. Most of their time is waiting.
pub const JOBS: usize = 4;

/// A check ends by itself, in the time that it has. This is for one that does not.
const GRACE: Duration = Duration::from_secs(2);

/// Runs checks, `jobs` side by side, and tells of each in the order of `checks`; the last one when all others are done.
pub async fn run(site: &Site, checks: &[Check], jobs: usize, mut tell: impl FnMut(Row)) {
    let jobs = if site.exact_key { 1 } else { jobs.max(1) };
    let run: u32 = rand::random();
    let Some((last, others)) = checks.split_last() else { return };
    let mut rows = stream::iter(others).map(|check| one(site, check, run)).buffered(jobs);
    while let Some(row) = rows.next().await {
        tell(row);
    }
    tell(one(site, last, run).await);
}

/// Whether the server is there at all.
///
/// Errors: it cannot be connected to, at either address.
pub async fn reach(site: &Site) -> Result<(), Trouble> {
    for location in [&site.publish, &site.play] {
        Peer::open(&location.host, location.port, Instant::now() + site.timeout).await?;
    }
    Ok(())
}

async fn one(site: &Site, check: &Check, run: u32) -> Row {
    let begun = Instant::now();
    let deadline = check.slow.unwrap_or(site.timeout);
    let lab = Lab::new(site, &check.id(), run, deadline);
    let finding =
        match tokio::time::timeout(deadline + site.quiet * PATIENCE + GRACE, (check.run)(&lab)).await {
            Ok(finding) => finding,
            Err(_) => Err(Trouble::Silent("the end of the check".to_owned())),
        };
    if site.exact_key {
        // The next check has the same name, and the server may need a moment to see that this one's connections are gone.
        tokio::time::sleep(site.quiet).await;
    }
    let seen = finding.unwrap_or_else(|trouble| Seen { verdict: Verdict::Fail, text: trouble.to_string() });
    Row { check: *check, seen, took: begun.elapsed() }
}

/// A check that is not run, and why.
pub fn skipped(check: &Check, why: &str) -> Row {
    Row {
        check: *check,
        seen: Seen { verdict: Verdict::Skipped, text: why.to_owned() },
        took: Duration::ZERO,
    }
}
