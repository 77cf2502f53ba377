//! The load tool: publishers and viewers by the thousand, on one thread, against any RTMP server.
//!
//! `scripts/bench` builds and runs it; docs/BENCHMARKS.md says what is measured and how. Viewers must cost far less than the
//! server that serves them, and the same whatever server that is: plain non-blocking sockets, one epoll, one buffer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a tool that measures stops at the first surprise"
)]
#![allow(missing_docs, reason = "nothing here is anybody's interface")]

mod check;
mod clip;
mod epoll;
mod flood;
mod floor;
mod link;
mod proc;
mod publisher;
mod report;
mod run;
mod servers;
mod suite;
mod viewer;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Measures RTMP servers")]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Runs publishers and viewers against a server, and prints one line of JSON
    Run(Box<run::Plan>),
    /// Runs all measurements, and prints tables
    Suite(suite::Args),
    /// Is the server that the kernel alone would be
    Floor {
        #[arg(value_enum)]
        share: floor::Share,
    },
}

fn main() {
    match Args::parse().command {
        Some(Command::Run(plan)) => println!("{}", run::run(&plan)),
        Some(Command::Suite(args)) => {
            if !suite::run(args) {
                std::process::exit(1);
            }
        }
        Some(Command::Floor { share }) => floor::serve(share),
        None => println!("load: run scripts/bench"),
    }
}
