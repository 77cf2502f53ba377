//! `lb conform`: whether an RTMP server does what encoders and players need of it, as a table.

use super::failed::Failed;
use crate::conform::{self, Check, Form, Report, Site, Verdict};
use crate::net::location::Location;
use clap::Args;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// What is checked, and how.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = AFTER)]
pub struct ConformArgs {
    /// Where to publish: rtmp://HOST[:PORT]/APP/KEY. Each check publishes under a name of its own, which begins with KEY
    #[arg(required_unless_present = "list")]
    publish: Option<String>,

    /// Where to play what is published there, if elsewhere: rtmp://HOST[:PORT]/APP/KEY
    play: Option<String>,

    /// Only checks of this name or group; several with commas, or repeated
    #[arg(long, value_name = "GROUP|NAME", value_delimiter = ',')]
    only: Vec<String>,

    /// List the checks, and end
    #[arg(long)]
    list: bool,

    /// One JSON document
    #[arg(long, conflicts_with = "markdown")]
    json: bool,

    /// A table for a document
    #[arg(long)]
    markdown: bool,

    /// How long a check may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = super::duration)]
    timeout: Duration,

    /// How long nothing may come before it counts as nothing; slow lines need more
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = super::duration)]
    quiet: Duration,

    /// Checks that are run side by side
    #[arg(long, value_name = "N", default_value_t = conform::JOBS)]
    jobs: usize,

    /// Publish under KEY itself, one check after the other: for servers that let nothing else in
    #[arg(long)]
    exact_key: bool,

    /// Run those checks too that take a minute and a half
    #[arg(long)]
    slow: bool,
}

/// What `--help` says below the flags.
const AFTER: &str = "\
Verdicts: pass; fail: some real encoder or player is hurt; info: one of several ways that are all allowed; skipped.
Exit codes: 0 nothing failed, 1 something did, or the server cannot be reached, 2 wrong usage.

  lb conform rtmp://127.0.0.1/ingest/test rtmp://127.0.0.1/live/test     an lb node with all roles
  lb conform rtmp://server/live/test --only chunks,timestamps            one group or two of another server
  lb conform rtmp://server/live/test --only join/keyframe-first          one check";

/// What stands in the row of a check that is too slow to be run unasked.
const SLOW: &str = "takes up to 95 s: --slow runs it";

impl ConformArgs {
    /// Runs the checks and prints a row for each as it is done.
    ///
    /// Errors: wrong usage, a server that cannot be reached, a check that failed.
    pub(super) fn run(&self) -> Result<String, Failed> {
        let checks = self.checks()?;
        if self.list {
            return Ok(list(&checks));
        }
        let site = self.site()?;
        let report = Report::new(self.form(), &checks);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let report = runtime.map_err(Failed::other)?.block_on(self.carry_out(&site, &checks, report))?;
        let end = report.end().trim_end().to_owned();
        match report.count(Verdict::Fail) {
            0 => Ok(end),
            failed => {
                say(&format!("{end}\n"))?;
                let checks = if failed == 1 { "check" } else { "checks" };
                Err(Failed::other(format!("{failed} {checks} failed")))
            }
        }
    }

    async fn carry_out(&self, site: &Site, checks: &[Check], mut report: Report) -> Result<Report, Failed> {
        let reached = conform::reach(site).await;
        reached.map_err(|trouble| Failed::other(format!("{}: {trouble}", site.publish)))?;
        if matches!(self.form(), Form::Text | Form::Colours) {
            say(&format!("{}, played from {}\n", site.publish, site.play))?;
        }
        let (slow, run): (Vec<Check>, Vec<Check>) =
            checks.iter().copied().partition(|check| check.slow.is_some() && !self.slow);
        let (mut left_out, mut printed) = (slow.into_iter().peekable(), Ok(()));
        let order = |check: &Check| checks.iter().position(|other| other.id() == check.id());
        conform::run(site, &run, self.jobs, |row| {
            while let Some(check) = left_out.next_if(|check| order(check) < order(&row.check)) {
                let text = report.row(conform::skipped(&check, SLOW));
                printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| say(&text));
            }
            let text = report.row(row);
            printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| say(&text));
        })
        .await;
        for check in left_out {
            say(&report.row(conform::skipped(&check, SLOW)))?;
        }
        printed.map(|()| report)
    }

    fn checks(&self) -> Result<Vec<Check>, Failed> {
        let all = conform::all();
        if let Some(word) = self.only.iter().find(|word| !all.iter().any(|check| check.is_called(word))) {
            return Err(Failed::usage(format!(
                "--only: no check or group is called '{word}'; --list has them"
            )));
        }
        let wanted =
            |check: &Check| self.only.is_empty() || self.only.iter().any(|word| check.is_called(word));
        Ok(all.into_iter().filter(wanted).collect())
    }

    fn site(&self) -> Result<Site, Failed> {
        let read = |text: &str| match Location::parse(text) {
            Ok(location) if location.tls => {
                Err(Failed::usage(format!("{location}: only rtmp:// is spoken here, without TLS")))
            }
            Ok(location) => Ok(location),
            Err(error) => Err(Failed::usage(error.to_string())),
        };
        let publish = read(self.publish.as_deref().unwrap_or_default())?;
        let play = self.play.as_deref().map(read).transpose()?.unwrap_or_else(|| publish.clone());
        let (timeout, quiet) = (self.timeout, self.quiet);
        if quiet >= timeout {
            return Err(Failed::usage("--quiet: it must be less than --timeout".to_owned()));
        }
        Ok(Site { publish, play, timeout, quiet, exact_key: self.exact_key })
    }

    fn form(&self) -> Form {
        match (self.json, self.markdown) {
            (true, _) => Form::Json,
            (_, true) => Form::Markdown,
            _ if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() => Form::Colours,
            _ => Form::Text,
        }
    }
}

fn list(checks: &[Check]) -> String {
    let rows = checks
        .iter()
        .map(|check| [check.group.name(), check.name, check.expected, check.source].map(str::to_owned));
    super::table::table(["GROUP", "NAME", "EXPECTED", "BY"], rows)
}

/// Prints at once, as a run takes its time.
fn say(text: &str) -> Result<(), Failed> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failed::other)
}
