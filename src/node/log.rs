//! How log lines are written, and which: set at the start, and changed while the process runs.

use crate::cli::{Args, LogFormat};
use crate::config::{self, check_log};
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

static FILTER: OnceLock<(reload::Handle<EnvFilter, Registry>, Mutex<String>)> = OnceLock::new();

/// Starts to log as the flags say.
///
/// Errors: the filter is none.
pub fn start(args: &Args) -> Result<(), config::Error> {
    let flag = |why: String| config::Error::Flag { flag: "--log", why };
    let (filter, handle) = reload::Layer::new(read(&args.log).map_err(flag)?);
    // What cannot be logged, because the disk is full or the pipe is gone, is lost: the default is to say so on standard
    // error, which panics for the same reason.
    let lines = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = match args.log_format {
        LogFormat::Text => lines.with_ansi(is_coloured()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_err() {
        // Somebody logs already, as in tests.
        return Ok(());
    }
    // It is set once a process.
    let _set = FILTER.set((handle, Mutex::new(args.log.clone())));
    Ok(())
}

/// The filter that is in force.
pub(super) fn current() -> String {
    let filter = FILTER.get().map(|(_, text)| text.lock().unwrap_or_else(PoisonError::into_inner).clone());
    filter.unwrap_or_default()
}

/// Puts another filter in force.
///
/// Errors: it is none.
pub(super) fn set(text: &str) -> Result<(), String> {
    check_log(text)?;
    let filter = read(text)?;
    let Some((handle, current)) = FILTER.get() else { return Ok(()) };
    handle.reload(filter).map_err(|error| error.to_string())?;
    *current.lock().unwrap_or_else(PoisonError::into_inner) = text.to_owned();
    Ok(())
}

fn read(text: &str) -> Result<EnvFilter, String> {
    // The engine writes two spans a message at `info`, which would cost more than the message.
    let engine = if text.contains("mmids_core") { "" } else { ",mmids_core=warn" };
    // The store logs its outages; the crate logs each call that fails in one.
    let redis = if text.contains("redis") { "" } else { ",redis=off" };
    EnvFilter::try_new(format!("{text}{engine}{redis}"))
        .map_err(|error| format!("'{text}' is not a filter: {error}"))
}

/// Colours are for people who want them (<https://no-color.org>).
fn is_coloured() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !unwanted && std::io::IsTerminal::is_terminal(&std::io::stderr())
}
