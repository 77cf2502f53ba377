//! What the host wants of a process: its signals, and the words with the service manager.

use super::Error;
use super::error::start_error;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that stop a process.
pub(super) struct Signals([Signal; 2]);

impl Signals {
    pub fn new() -> Result<Self, Error> {
        Ok(Signals([listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?]))
    }

    /// Waits for the next one. Safe to drop and call again.
    pub async fn next(&mut self) {
        either(&mut self.0).await;
    }
}

/// Signals that have the configuration read again.
pub(super) fn hangups() -> Result<Signal, Error> {
    listen(SignalKind::hangup())
}

fn listen(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(start_error)
}

async fn either([first, second]: &mut [Signal; 2]) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

/// Signals that end a process which does nothing about them, and that nobody sends to end one.
pub(super) fn outlive_harmless_signals() -> Result<impl Future<Output = ()>, Error> {
    let mut both = [listen(SignalKind::user_defined1())?, listen(SignalKind::user_defined2())?];
    Ok(async move {
        loop {
            either(&mut both).await;
        }
    })
}

/// Tells the service manager, if there is one.
pub(super) fn notify(state: sd_notify::NotifyState) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Feeds the service manager's watchdog from a task, so that a runtime that no longer turns is found.
pub(super) async fn keep_watchdog() {
    let mut micros = 0;
    if !sd_notify::watchdog_enabled(false, &mut micros) {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_micros(micros / 3).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        notify(sd_notify::NotifyState::Watchdog);
    }
}
