//! All runs in one go, and what they say about each promise.

use super::floor::Share;
use super::report::{self, Row};
use super::servers::{CERTIFICATE, Kind, Programs, Server};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Where things are, and how long to take.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The binary under test
    #[arg(long)]
    lb: PathBuf,
    #[arg(long, default_value = "/usr/sbin/nginx")]
    nginx: PathBuf,
    /// Holds the clips; takes results and logs
    #[arg(long)]
    directory: PathBuf,
    /// One round of short runs
    #[arg(long)]
    quick: bool,
    /// After so many seconds no run is begun any more
    #[arg(long, default_value_t = 1400)]
    limit: u64,
    /// Only the runs whose name has this in it
    #[arg(long)]
    only: Option<String>,
}

/// The results of all runs, by name; several of one name when it was repeated.
#[derive(Default)]
pub struct Results(BTreeMap<String, Vec<Value>>);

impl Results {
    /// The median of a value, named by a JSON pointer.
    pub fn get(&self, name: &str, pointer: &str) -> Option<f64> {
        let runs = self.0.get(name)?;
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run.pointer(pointer)?.as_f64()).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// The sum of a value over all runs of lb.
    pub fn sum_of_lb(&self, pointer: &str) -> Option<f64> {
        let ours = |name: &str| name.contains("lb") || name == "pull native";
        let runs = self.0.iter().filter(|(name, _)| ours(name)).flat_map(|(_, runs)| runs);
        let values: Vec<f64> = runs.filter_map(|run| run.pointer(pointer)?.as_f64()).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

struct Suite {
    args: Args,
    programs: Programs,
    results: Results,
    lines: File,
    begun: Instant,
}

/// Runs everything, prints the tables, and says whether all promises were kept.
pub fn run(args: Args) -> bool {
    let lines = File::create(args.directory.join("results.jsonl")).expect("the results' file");
    let programs =
        Programs { lb: args.lb.clone(), nginx: args.nginx.clone(), scratch: args.directory.clone() };
    let mut suite = Suite { args, programs, results: Results::default(), lines, begun: Instant::now() };
    suite.all();
    let rows: Vec<Row> = report::verdicts(&suite.results);
    report::print(&suite.results, &rows);
    println!(
        "\n{:.0} s; every run is a line of {}/results.jsonl",
        suite.begun.elapsed().as_secs_f64(),
        suite.args.directory.display()
    );
    rows.iter().all(|row| row.kept != Some(false))
}

/// lb with a batch window.
fn batching(millis: &str) -> Kind {
    Kind::Lb(vec!["--batch-ms".to_owned(), millis.to_owned()])
}

impl Suite {
    fn all(&mut self) {
        let quick = self.args.quick;
        let plain = || Kind::Lb(Vec::new());
        let window = if quick { "4" } else { "12" };
        let ramp = if quick { "2" } else { "4" };
        let crowd = ["--viewers", "1000", "--ramp", ramp, "--seconds", window];
        let some = ["--viewers", "300", "--ramp", ramp, "--seconds", window];
        let many =
            ["--streams", "100", "--viewers", "5", "--ramp", "3", "--checked", "50", "--seconds", window];
        let churn = ["--viewers", "1", "--checked", "1", "--churn", "400", "--seconds", "10"];
        let large = ["--viewers", "5000", "--ramp", "8", "--seconds", window];
        // Ten streams with a viewer each, beside a flood of 2-byte messages and without it. The server has both cores.
        let calm =
            ["--streams", "10", "--viewers", "1", "--checked", "10", "--ramp", "1", "--seconds", window];
        let flood = [&calm[..], &["--flood"]].concat();
        // The sides of each comparison take turns, so that what disturbs the machine disturbs all of them.
        for _ in 0..if quick { 1 } else { 3 } {
            for (name, kind, clip, flags) in [
                ("1000 lb", plain(), "2500", &crowd[..]),
                ("1000 floor frame", Kind::Floor(Share::Frame), "2500", &crowd),
                ("1000 nginx", Kind::Nginx, "2500", &crowd),
                ("1000 lb 100ms", batching("100"), "2500", &crowd),
                ("1000 floor 100ms", Kind::Floor(Share::Window), "2500", &crowd),
                ("300 lb", plain(), "2500", &some),
                ("300 lb tls", Kind::Tls, "2500", &some),
                ("300 pulled lb", Kind::Pair(Vec::new()), "2500", &some),
                ("300 pulled lb http", Kind::HttpPair, "2500", &some),
                ("300k 1000 lb", plain(), "300", &crowd),
                ("300k 5000 lb", plain(), "300", &large),
                ("100x5 lb", plain(), "500", &many),
                ("100x5 nginx", Kind::Nginx, "500", &many),
                ("churn lb", plain(), "300", &churn),
                ("churn floor", Kind::Floor(Share::Group), "300", &churn),
                ("flood none lb", Kind::Wide, "500", &calm),
                ("flood lb", Kind::Wide, "500", &flood),
                ("flood none pull lb", Kind::WidePair, "500", &calm),
                ("flood pull lb", Kind::WidePair, "500", &flood),
            ] {
                self.one(name, &kind, clip, flags);
            }
        }
        if !quick {
            for millis in ["0", "20", "33", "50"] {
                self.one(&format!("1000 lb {millis}ms"), &batching(millis), "2500", &crowd);
            }
            self.one("1000 floor message", &Kind::Floor(Share::Message), "2500", &crowd);
            for (name, kind) in [
                ("100 lb", plain()),
                ("100 floor frame", Kind::Floor(Share::Frame)),
                ("100 nginx", Kind::Nginx),
            ] {
                self.one(name, &kind, "2500", &["--viewers", "100", "--ramp", "1", "--seconds", window]);
            }
            // Ten small streams beside a huge one, and without it: how long the small ones wait for the huge one's turns.
            let small =
                ["--streams", "10", "--viewers", "1", "--checked", "10", "--ramp", ramp, "--seconds", window];
            let beside = [&small[..], &["--crowd", "3000"]].concat();
            self.one("small lb", &plain(), "300", &small);
            self.one("small beside 3000 lb", &plain(), "300", &beside);
            self.one("small beside 3000 nginx", &Kind::Nginx, "300", &beside);
            self.one("300k 5000 lb wide", &Kind::Wide, "300", &large);
            self.one("silent 1000 lb", &plain(), "300", &["--viewers", "1000", "--silent", "--seconds", "3"]);
        }
        let most =
            ["--streams", "1000", "--viewers", "1", "--ramp", "5", "--checked", "50", "--seconds", window];
        self.one("1000x1 lb", &plain(), "500", &most);
        // How evenly two cores are used; the load tool takes most of one of them.
        self.one("1000x1 lb wide", &Kind::Wide, "500", &most);
        // The ring is full before the window begins, so that what grows is the stalled viewers' doing.
        let stalled = if quick { "12" } else { "60" };
        let lag = ["--viewers", "20", "--stalled", "50", "--lead", "8", "--seconds", stalled];
        self.one("stalled lb", &plain(), "2500", &lag);
        let joins = ["--viewers", "1000", "--ramp", "10", "--seconds", "2", "--settle", "1"];
        self.one("joins lb", &plain(), "2500", &joins);
        // What the first pull of a process costs once is spread over so many streams; rings are full when they are measured.
        let cold =
            ["--streams", "100", "--viewers", "1", "--ramp", "5", "--settle", "6", "--seconds", window];
        self.one("pull native", &Kind::Pair(Vec::new()), "500", &cold);
        let by_ffmpeg = Kind::Pair(vec!["--pull".to_owned(), "ffmpeg".to_owned()]);
        let cold = ["--streams", "5", "--viewers", "1", "--ramp", "5", "--settle", "3", "--seconds", window];
        self.one("pull ffmpeg", &by_ffmpeg, "500", &cold);
    }

    fn one(&mut self, name: &str, kind: &Kind, clip: &str, flags: &[&str]) {
        if self.args.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return;
        }
        if self.begun.elapsed().as_secs() > self.args.limit {
            eprintln!("        no time for {name}");
            return;
        }
        eprintln!("{:4.0} s  {name}", self.begun.elapsed().as_secs_f64());
        let server = Server::start(kind, &self.programs);
        let clip = self.args.directory.join(format!("{clip}.flv"));
        let mut flags = flags.to_vec();
        for hurry in [["--lead", "2"], ["--settle", "2"]] {
            if self.args.quick && !flags.contains(&hurry[0]) {
                flags.extend(hurry);
            }
        }
        let certificate = self.args.directory.join(CERTIFICATE).display().to_string();
        if matches!(kind, Kind::HttpPair) {
            flags.push("--http");
        }
        if matches!(kind, Kind::Tls) {
            flags.extend(["--certificate", &certificate]);
        }
        let line = load(&server, name, &clip, &flags);
        drop(server);
        let Ok(value) = serde_json::from_str::<Value>(&line) else {
            eprintln!("        no result");
            return;
        };
        writeln!(self.lines, "{line}").expect("the results' file");
        self.results.0.entry(name.to_owned()).or_default().push(value);
    }
}

/// Runs this program once more, on the other core, as what publishes and watches.
fn load(server: &Server, name: &str, clip: &Path, flags: &[&str]) -> String {
    let mut command = Command::new("taskset");
    command.args(["-c", "1"]).arg(std::env::current_exe().expect("this program")).arg("run");
    command.args(["--label", name, "--publish-app", server.publish_app, "--play-app", server.play_app]);
    command.arg("--clip").arg(clip).args(["--ingest", &server.ingest.to_string()]);
    command.args(["--play", &server.play.to_string(), "--pid", &server.pid().to_string()]);
    if let Some(pid) = server.origin_pid() {
        command.args(["--origin-pid", &pid.to_string()]);
    }
    command.args(flags).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().expect("the load runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
