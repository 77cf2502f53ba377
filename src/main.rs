//! The `lb` binary: reads the command line, then runs a node.

use lb::cli::{Args, Command, environment};
use lb::config::Plan;
use lb::node;
use std::process::ExitCode;

fn main() -> ExitCode {
    for name in environment::empty(std::env::vars_os()) {
        // SAFETY: no thread of ours runs yet, and the one of the allocator reads no environment.
        unsafe { std::env::remove_var(name) };
    }
    let args = Args::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    if let Some(Command::Demo(demo)) = &args.command {
        // What a node's environment says is not meant for it.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LB_")) {
            // SAFETY: no thread of ours runs yet, and the one of the allocator reads no environment.
            unsafe { std::env::remove_var(name) };
        }
        let plan = lb::demo::plan(&demo.log).map_err(node::Error::from);
        return ended(plan.and_then(|plan| run(plan, lb::demo::run)));
    }
    if let Some(command) = &args.command {
        return match command.run() {
            Ok(text) => {
                say(&format!("{text}\n"));
                ExitCode::SUCCESS
            }
            Err(failed) => {
                eprintln!("lb: {}", failed.text);
                ExitCode::from(failed.code)
            }
        };
    }
    ended(Plan::new(args).map_err(node::Error::from).and_then(carry_out))
}

fn ended(outcome: Result<(), node::Error>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn carry_out(plan: Plan) -> Result<(), node::Error> {
    if plan.args.check || plan.args.print_config {
        // Nothing is bound here, so a port that would be picked is shown as the usual one.
        let usual = |port: u16, usual: u16| if port == 0 { usual } else { port };
        let port = usual(plan.args.rtmp_port, lb::ids::DEFAULT_RTMP_PORT);
        let reactor = plan.reactor_listen.map(|mut listen| {
            listen.set_port(usual(listen.port(), lb::config::DEFAULT_REACTOR_PORT));
            listen
        });
        let urls = plan.reactor_urls(reactor)?;
        plan.configs(port, &urls)?;
        match plan.args.print_config {
            true => say(&plan.print(port, &urls)?),
            false => {
                // No log runs; who checks wants to see it.
                environment::unknown(std::env::vars_os().map(|(name, _)| name))
                    .iter()
                    .chain(&plan.notes)
                    .for_each(|line| eprintln!("lb: warning: {line}"));
                say("the configuration is good\n");
            }
        }
        return Ok(());
    }
    run(plan, node::run)
}

/// Runs what a plan says, until it ends.
fn run<F: Future<Output = Result<(), node::Error>>>(
    plan: Plan,
    run: impl FnOnce(Plan) -> F,
) -> Result<(), node::Error> {
    node::log::start(&plan.args)?;
    for line in environment::unknown(std::env::vars_os().map(|(name, _)| name)) {
        tracing::warn!("{line}");
    }
    for line in &plan.notes {
        tracing::warn!("{line}");
    }
    lb::client::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| node::Error::Start(error.to_string()))?;
    runtime.block_on(run(plan))
}

/// Writes to standard output. Whoever closed it does not want the rest.
fn say(text: &str) {
    use std::io::Write;
    if let Err(error) = std::io::stdout().write_all(text.as_bytes()) {
        tracing::debug!(%error, "standard output");
    }
}
