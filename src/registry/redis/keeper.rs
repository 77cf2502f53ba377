//! One task keeps the connection and the subscription: it makes them, looks after them, and makes them again.
//!
//! Callers find the connection in [`Shared`]. What is announced comes through the subscription; each time it was made,
//! subscribers hear that they may have missed something.

use super::address::Address;
use super::connect::{CALL_DEADLINE, Connected, Connection, PREFIX, describe};
use super::generation::{Lost, Up, Whole, probe};
use super::scripts::Scripts;
use crate::registry::store::{Memory, Unreachable};
use crate::telemetry::Seldom;
use backon::BackoffBuilder;
use bytes::Bytes;
use futures::StreamExt;
use redis::RedisError;
use redis::aio::PubSub;
use redis::cluster_routing::Slot;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, sleep, timeout};

/// Announcements that a subscriber may be behind before it is told so.
const ANNOUNCEMENTS_KEPT: usize = 1024;

/// The longest announcement. Ours are a tenth of this; a longer one is not kept for each subscriber but told as missed.
const ANNOUNCEMENT_MAX: usize = 16 * 1024;

/// How long callers wait for a connection that has just been lost, or not yet been made, before they are refused.
const PATIENCE: Duration = Duration::from_millis(500);

/// The longest that an attempt to connect may take, with all Sentinels or members of a cluster.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The shortest and the longest pause between attempts to connect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How often the servers are probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest time between two probes, however many callers ask for one.
const PROBE_SPACING: Duration = Duration::from_millis(50);

/// How long a probe may take. Together with the interval little more than a call's deadline, so that the second
/// caller of a server that hangs is refused at once.
const PROBE_DEADLINE: Duration = Duration::from_millis(700);

/// How long a cluster may give no answer at all before its connection is given up.
const GIVE_UP: Duration = Duration::from_secs(3);

/// How often the Sentinels are asked whether the master is still the one that is used. A master that knows it was replaced
/// drops its connections; this finds the one that does not know.
const SENTINEL_INTERVAL: Duration = Duration::from_secs(2);

/// How often a cluster that has lost a part is connected to anew.
const REPAIR_INTERVAL: Duration = Duration::from_secs(2);

/// Whether the store can be called.
#[derive(Clone)]
pub(super) enum State {
    /// Not known yet, or just lost: callers wait.
    Connecting,
    /// Callers are refused.
    Down,
    /// Callers are served.
    Up(Arc<Up>),
}

/// What the task shares with the callers.
pub(super) struct Shared {
    pub(super) address: Address,
    pub(super) scripts: Scripts,
    pub(super) channel: String,
    state: watch::Sender<State>,
    announcements: broadcast::Sender<Bytes>,
    /// Asks for a probe at once.
    probe: Notify,
    /// Asks for another subscription.
    resubscribe: Notify,
    refused: Seldom,
}

impl Shared {
    pub(super) fn new(address: Address) -> Self {
        // Channels know no databases.
        let channel = format!("{PREFIX}changes:{}", address.login.db());
        Shared {
            address,
            scripts: Scripts::new(),
            channel,
            state: watch::Sender::new(State::Connecting),
            announcements: broadcast::Sender::new(ANNOUNCEMENTS_KEPT),
            probe: Notify::new(),
            resubscribe: Notify::new(),
            refused: Seldom::default(),
        }
    }

    /// The connection, as soon as it is known whether there is one.
    pub(super) async fn ready(&self) -> Result<Arc<Up>, Unreachable> {
        let mut state = self.state.subscribe();
        let known = state.wait_for(|state| !matches!(state, State::Connecting)).await;
        match known.as_deref() {
            Ok(State::Up(up)) => Ok(up.clone()),
            _ => Err(Unreachable),
        }
    }

    /// Waits until the store is given up: there is no point in waiting for an answer any longer.
    pub(super) async fn down(&self) {
        // The sender lives in `self`.
        self.state.subscribe().wait_for(|state| matches!(state, State::Down)).await.ok();
    }

    /// Waits until there is a connection.
    pub(super) async fn up(&self) {
        // The sender lives in `self`.
        self.state.subscribe().wait_for(|state| matches!(state, State::Up(_))).await.ok();
    }

    /// Waits until it is known which generation a process of a server belongs to that says a record is missing. Until
    /// then this process may still take the memory for an old one, and the record for one that never was.
    pub(super) async fn generation_of(&self, process: &str) -> Result<(), Unreachable> {
        let known = |state: &State| match state {
            State::Connecting => false,
            State::Down => true,
            State::Up(up) => up.whole.as_ref().is_none_or(|whole| whole.processes.contains(process)),
        };
        let mut state = self.state.subscribe();
        if !known(&state.borrow()) {
            self.probe.notify_one();
        }
        match state.wait_for(known).await.as_deref() {
            Ok(State::Up(_)) => Ok(()),
            _ => Err(Unreachable),
        }
    }

    /// A call failed: asks for a probe. If the connection is surely broken, callers wait for the next one from now on.
    pub(super) fn failed(&self, used: &Connection, error: &RedisError) {
        if matches!(used, Connection::One(_)) && error.is_unrecoverable_error() {
            self.state.send_if_modified(|state| match state {
                State::Up(_) => {
                    *state = State::Connecting;
                    true
                }
                _ => false,
            });
        }
        self.probe.notify_one();
        if error.code().is_some()
            && let Some(held_back) = self.refused.pass()
        {
            let (store, error) = (&self.address.place, describe(error));
            tracing::warn!(%store, %error, held_back, "the store refuses a call");
        }
    }

    /// A call took too long: asks for a probe.
    pub(super) fn late(&self) {
        self.probe.notify_one();
    }

    pub(super) fn memory(&self) -> Option<Memory> {
        match &*self.state.borrow() {
            State::Up(up) => up.whole.as_ref().map(Whole::memory),
            _ => None,
        }
    }

    pub(super) fn announcements(&self) -> broadcast::Receiver<Bytes> {
        self.announcements.subscribe()
    }

    fn failed_slots(&self) -> Arc<HashSet<Slot>> {
        match &*self.state.borrow() {
            State::Up(up) => up.failed.clone(),
            _ => Arc::default(),
        }
    }

    fn masters(&self) -> Vec<String> {
        match &*self.state.borrow() {
            State::Up(up) => up.whole.as_ref().map(|whole| whole.masters.clone()).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// Passes an announcement on. That nobody subscribes is no error.
    fn announce(&self, announcement: Bytes) {
        let kept = if announcement.len() > ANNOUNCEMENT_MAX { Bytes::new() } else { announcement };
        self.announcements.send(kept).ok();
    }

    /// Tells all subscribers that they may have missed something.
    fn announce_resync(&self) {
        self.announce(Bytes::new());
    }
}

/// What was logged last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logged {
    Nothing,
    Down,
    Degraded,
    Whole(u64),
}

/// The task. Ends when it is dropped.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    logged: Logged,
    /// Keeps a connection that comes and goes from filling the log.
    lines: Seldom,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Keeper { shared, logged: Logged::Nothing, lines: Seldom::new(Duration::from_secs(1)) }
    }

    /// Runs for as long as it is polled.
    pub(super) async fn run(mut self) {
        let pauses = backon::ExponentialBuilder::default()
            .with_min_delay(RECONNECT.0)
            .with_max_delay(RECONNECT.1)
            .with_jitter()
            .without_max_times();
        let mut pause = pauses.build();
        loop {
            match self.attempt().await {
                Ok((connected, up, subscription)) => {
                    pause = pauses.build();
                    let lost = self.keep(connected, up, subscription).await;
                    self.shared.state.send_replace(match lost {
                        Lost::Broken(_) => State::Connecting,
                        // Callers have waited long enough for it.
                        Lost::Silent => State::Down,
                    });
                    self.log_down(&lost.to_string());
                }
                Err(error) => {
                    self.shared.state.send_replace(State::Down);
                    self.log_down(&error);
                }
            }
            sleep(pause.next().unwrap_or(RECONNECT.1)).await;
        }
    }

    async fn attempt(&self) -> Result<(Connected, Up, PubSub), String> {
        let shared = self.shared.clone();
        let open = async move {
            let connected = shared.address.connect(CALL_DEADLINE).await.map_err(broken)?;
            let up = probe(&connected.connection, &shared.scripts, PROBE_DEADLINE).await?;
            let masters = up.whole.as_ref().map_or(&[][..], |whole| &whole.masters);
            let subscription =
                shared.address.subscribe(connected.server.as_ref(), masters, &shared.channel).await;
            Ok::<_, Lost>((connected, up, subscription.map_err(broken)?))
        };
        let mut open = std::pin::pin!(open);
        let opened = match timeout(PATIENCE, &mut open).await {
            Ok(opened) => Ok(opened),
            Err(_) => {
                self.shared.state.send_replace(State::Down);
                timeout(CONNECT_DEADLINE, open).await
            }
        };
        let late = || format!("no connection within {} s", CONNECT_DEADLINE.as_secs());
        opened.map_err(|_| late())?.map_err(|lost| lost.to_string())
    }

    /// Serves until the connection is lost, and says why it is.
    async fn keep(&mut self, connected: Connected, up: Up, subscription: PubSub) -> Lost {
        let shared = self.shared.clone();
        self.publish(up);
        shared.announce_resync();
        tokio::select! {
            lost = self.watch(&connected) => lost,
            lost = follow(&shared, &connected, subscription) => lost,
        }
    }

    /// Makes callers use this from now on.
    fn publish(&mut self, up: Up) {
        let before = match &*self.shared.state.borrow() {
            State::Up(up) => Some(up.whole.as_ref().map(Whole::generation)),
            _ => None,
        };
        let generation = up.whole.as_ref().map(Whole::generation);
        self.shared.state.send_replace(State::Up(Arc::new(up)));
        if before.is_some_and(|before| before != generation) {
            // The member of a cluster that the subscription is on may be the one that is gone.
            self.shared.resubscribe.notify_one();
        }
        self.log(generation.map_or(Logged::Degraded, Logged::Whole), None);
    }

    /// Probes the servers until they do not answer.
    async fn watch(&mut self, connected: &Connected) -> Lost {
        let shared = self.shared.clone();
        let mut connection = connected.connection.clone();
        let (mut answered, mut repaired, mut asked) = (Instant::now(), Instant::now(), Instant::now());
        loop {
            // However many callers ask for a probe.
            sleep(PROBE_SPACING).await;
            // Asked for, or due.
            timeout(PROBE_INTERVAL - PROBE_SPACING, shared.probe.notified()).await.ok();
            match probe(&connection, &shared.scripts, PROBE_DEADLINE).await {
                Ok(up) => {
                    answered = Instant::now();
                    self.publish(up);
                }
                Err(lost) if connected.server.is_some() || answered.elapsed() > GIVE_UP => return lost,
                Err(_) => {
                    let failed = shared.failed_slots();
                    self.publish(Up { connection: connection.clone(), whole: None, failed });
                }
            }
            if shared.memory().is_none() && repaired.elapsed() >= REPAIR_INTERVAL {
                repaired = Instant::now();
                if let Some(up) = repair(&shared).await {
                    connection = up.connection.clone();
                    self.publish(up);
                }
            }
            if asked.elapsed() >= SENTINEL_INTERVAL {
                asked = Instant::now();
                if let Some(lost) = self.replaced(connected).await {
                    return lost;
                }
            }
        }
    }

    /// Whether the Sentinels name another master. Sentinels that cannot be reached name none.
    async fn replaced(&self, connected: &Connected) -> Option<Lost> {
        let master = timeout(PROBE_DEADLINE, self.shared.address.master()).await.ok()??.ok()?;
        let (used, named) = (connected.server.as_ref()?, master.get_connection_info().addr());
        let other = used.get_connection_info().addr() != named;
        other.then(|| Lost::Broken(format!("Sentinel names another master, {named}")))
    }

    fn log_down(&mut self, error: &str) {
        self.log(Logged::Down, Some(error));
    }

    /// One line for each change, and not more than one a second; what is held back is logged after the next probe.
    fn log(&mut self, now: Logged, error: Option<&str>) {
        let store = &self.shared.address.place;
        if self.logged == now {
            tracing::debug!(%store, error, "still {now:?}");
            return;
        }
        let Some(held_back) = self.lines.pass() else { return };
        match now {
            Logged::Nothing => {}
            Logged::Down => tracing::warn!(%store, error, held_back, "the store cannot be reached"),
            Logged::Degraded => tracing::warn!(%store, held_back, "a part of the store cannot be reached"),
            Logged::Whole(generation) => {
                tracing::info!(%store, generation, held_back, "the store is reached")
            }
        }
        self.logged = now;
    }
}

/// A member of a cluster that came back at another address, or a replica that took over while the master did not answer,
/// is found by connecting anew. Nothing: that does not make the cluster whole.
async fn repair(shared: &Shared) -> Option<Up> {
    let anew = timeout(CALL_DEADLINE, shared.address.connect(CALL_DEADLINE)).await.ok()?.ok()?;
    let up = probe(&anew.connection, &shared.scripts, PROBE_DEADLINE).await.ok()?;
    up.whole.is_some().then_some(up)
}

fn broken(error: RedisError) -> Lost {
    Lost::Broken(describe(&error))
}

/// Passes on what is announced. Where there are other members of a cluster it goes on with another one; else it says why
/// it ended.
async fn follow(shared: &Shared, connected: &Connected, mut subscription: PubSub) -> Lost {
    let mut masters = shared.masters();
    loop {
        let ended = pass_on(shared, &mut subscription).await;
        if connected.server.is_some() {
            if ended {
                return Lost::Broken("the subscription ended".to_owned());
            }
            shared.announce_resync();
            continue;
        }
        // While a part is missing, those that were there before may have more members than the address names.
        let now = shared.masters();
        if !now.is_empty() {
            masters = now;
        }
        match shared.address.subscribe(None, &masters, &shared.channel).await {
            Ok(anew) => subscription = anew,
            Err(error) => return Lost::Broken(describe(&error)),
        }
        shared.announce_resync();
    }
}

/// Returns when the subscription has ended (true), or the servers are not those they were.
async fn pass_on(shared: &Shared, subscription: &mut PubSub) -> bool {
    let mut messages = subscription.on_message();
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => shared.announce(Bytes::copy_from_slice(message.get_payload_bytes())),
                None => return true,
            },
            () = shared.resubscribe.notified() => return false,
        }
    }
}
