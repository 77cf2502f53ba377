//! The connection to the Redis server: made and made again by one task, used by everyone else with a deadline.

use super::super::{CHANGES_KEPT, Notice, SWEEP_INTERVAL};
use super::known::Known;
use crate::api::Change;
use futures::StreamExt;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult};
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, sleep, timeout};

/// The longest that a call may take. Below the 2 s after which nodes give a reactor up.
const CALL_DEADLINE: Duration = Duration::from_millis(1500);

/// The shortest and the longest pause between attempts to connect; each is drawn from the upper half.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The store did not answer.
#[derive(Debug)]
pub(super) struct Down;

/// State shared by callers and the task that keeps the connection.
pub(super) struct Link {
    client: Client,
    /// The server and the database, without secrets.
    pub(super) place: String,
    channel: String,
    /// Missing while the server cannot be reached. Never held across an await.
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Wakes the task when a caller found the connection broken.
    broken: Notify,
    pub(super) up: watch::Sender<bool>,
    pub(super) changes: broadcast::Sender<Notice>,
    pub(super) known: Known,
}

impl Link {
    pub(super) fn new(client: Client, place: String, channel: String) -> Self {
        Link {
            client,
            place,
            channel,
            connection: Mutex::new(None),
            broken: Notify::new(),
            up: watch::Sender::new(false),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            known: Known::new(),
        }
    }

    /// Makes a call, if the server can be reached. While it cannot, this fails at once: nobody waits for a deadline
    /// that the task has waited for already.
    pub(super) async fn call<T, F: Future<Output = RedisResult<T>>>(
        &self,
        act: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, Down> {
        let connection = self.connection().clone().ok_or(Down)?;
        let error = match timeout(CALL_DEADLINE, act(connection)).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => describe(&error),
            Err(_) => format!("no answer within {} ms", CALL_DEADLINE.as_millis()),
        };
        self.lost(&error);
        Err(Down)
    }

    /// Keeps the connection, passes changes on and sweeps, for as long as it is polled.
    ///
    /// `learn` runs on each new connection, `sweep` then and from time to time.
    pub(super) async fn run<L, F>(&self, learn: impl Fn() -> L, sweep: impl Fn() -> F)
    where
        L: Future<Output = Result<(), Down>>,
        F: Future<Output = Result<(), Down>>,
    {
        let mut pause = RECONNECT.0;
        loop {
            let connected = timeout(CALL_DEADLINE, self.connect()).await;
            match connected.unwrap_or_else(|_| Err("no connection within the deadline".to_owned())) {
                Err(error) => self.lost(&error),
                Ok((connection, changes)) => {
                    *self.connection() = Some(connection);
                    // Before anybody hears of it: the first sweep tells whether the store is whole.
                    if sweep().await.is_ok() {
                        pause = RECONNECT.0;
                        self.found();
                        // What changes meanwhile waits in the subscription.
                        if learn().await.is_ok() {
                            self.follow(changes, &sweep).await;
                        }
                    }
                }
            }
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    async fn connect(&self) -> Result<(MultiplexedConnection, PubSub), String> {
        let connect = async {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(CALL_DEADLINE)
                .set_response_timeout(CALL_DEADLINE);
            let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            let mut changes = self.client.get_async_pubsub().await?;
            changes.subscribe(&self.channel).await?;
            Ok((connection, changes))
        };
        connect.await.map_err(|error: RedisError| describe(&error))
    }

    /// Passes changes on until the connection breaks.
    async fn follow<F: Future<Output = Result<(), Down>>>(&self, changes: PubSub, sweep: &impl Fn() -> F) {
        let mut changes = changes.into_on_message();
        let mut next_sweep = Instant::now() + SWEEP_INTERVAL;
        loop {
            tokio::select! {
                message = changes.next() => {
                    let Some(message) = message else { return self.lost("the subscription ended") };
                    let notice = match serde_json::from_slice::<Change>(message.get_payload_bytes()) {
                        Ok(change) => {
                            self.known.changed(&change);
                            Notice::Change(change)
                        }
                        // Some other program's word, or a newer version's: what it meant was missed.
                        Err(_) => Notice::Resync,
                    };
                    let _ = self.changes.send(notice);
                }
                () = tokio::time::sleep_until(next_sweep) => {
                    if sweep().await.is_err() {
                        return;
                    }
                    next_sweep = Instant::now() + SWEEP_INTERVAL;
                }
                () = self.broken.notified() => {
                    if self.connection().is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn found(&self) {
        if !self.up.send_replace(true) {
            tracing::info!(store = %self.place, "the store is reached");
        }
        // Whatever was published meanwhile was missed.
        let _ = self.changes.send(Notice::Resync);
    }

    fn lost(&self, error: &str) {
        *self.connection() = None;
        if self.up.send_replace(false) {
            tracing::warn!(store = %self.place, error, "the store is lost; answering from what is known");
        } else {
            tracing::debug!(store = %self.place, error, "the store is not reached");
        }
        self.broken.notify_one();
    }

    fn connection(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is safe to log of an error: its kind and the server's code, never what was sent.
fn describe(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("{:?} ({code})", error.kind()),
        None => format!("{:?}", error.kind()),
    }
}
