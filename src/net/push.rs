//! Pushes a stream to another server, in this process: an RTMP client that publishes.
//!
//! A push is one task. It connects, publishes what comes out of its [`Queue`], and connects again when that ends, until the feed
//! ends. A target that is slow or away costs the feed nothing: the queue is bounded, and what it gives up is counted. It knows
//! neither why the stream is pushed nor whether another node pushes it too.

use super::dial::{DialError, dial};
use super::location::Location;
use super::transport::Transport;
use crate::media::Packet;
use crate::relay::Queue;
use crate::retry::pauses;
use crate::rtmp;
use crate::rtmp::session::{Client, ClientEvent, Target};
use crate::rtmp::{Limits, Message};
use crate::telemetry::{Counted, Metrics, Seldom, shown};
use rustls::ClientConfig;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// A push that ran for so long was healthy: the next failure is the first again.
const HEALTHY: Duration = Duration::from_secs(10);

/// The chunk stream of all messages: what is sent stands in one queue anyway.
const CHUNK_STREAM: u32 = 6;

/// The code by which a server asks for another connection (Enhanced RTMP v2, "Reconnect Request").
const RECONNECT: &str = "NetConnection.Connect.ReconnectRequest";

/// How a push behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// To find the target's address, to connect to one, and to shake hands by TLS, each.
    pub connect: Duration,
    /// From the connection to the leave to publish.
    pub start: Duration,
    /// A target that takes not a byte for so long is connected to anew.
    pub stall: Duration,
    /// For the goodbye, so that the target knows that the stream has ended.
    pub close: Duration,
    /// The shortest pause before the next connection, about; doubled with each failure, and jittered.
    pub retry_min: Duration,
    /// The longest.
    pub retry_max: Duration,
    /// Whom `rtmps://` targets are believed by.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            connect: Duration::from_secs(5),
            // Platforms look the key up first.
            start: Duration::from_secs(10),
            stall: Duration::from_secs(10),
            close: Duration::from_millis(500),
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(10),
            tls: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Dial(#[from] DialError),
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] rtmp::Error),
    #[error("no leave to publish within {0:?}")]
    Start(Duration),
    #[error("it took nothing for {0:?}")]
    Stalled(Duration),
    #[error("refused: {0}")]
    Refused(String),
    #[error("it asks for another connection")]
    Reconnect,
    #[error("it closed the connection")]
    Closed,
}

/// Pushes what comes out of a queue to a location, until the feed ends. Returns once the target was told, or the time for that is
/// over.
pub async fn push(
    location: Location,
    settings: Settings,
    limits: Limits,
    metrics: Arc<Metrics>,
    mut queue: Queue,
) {
    static ENDED: Seldom = Seldom::events();
    let _counted = Counted::new(&metrics.pushes.with_label_values(&["native"]));
    let target = location.without_key();
    let pusher = Pusher { location, settings, limits, metrics };
    let Settings { retry_min, retry_max, .. } = pusher.settings;
    let mut waits = pauses(retry_min, retry_max);
    loop {
        pusher.metrics.pushes_started_total.with_label_values(&["native"]).inc();
        let begun = Instant::now();
        let mut unsent = 0;
        let Err(error) = pusher.once(&mut queue, &mut unsent).await else { return };
        if begun.elapsed() >= HEALTHY {
            waits = pauses(retry_min, retry_max);
        }
        let pause = waits.next().unwrap_or(retry_max);
        if let Some(held_back) = ENDED.pass() {
            tracing::warn!(%target, retry_in = ?pause, held_back, "push ended: {error}");
        }
        queue.begin_again(unsent);
        if timeout(pause, queue.ended()).await.is_ok() {
            return;
        }
    }
}

struct Pusher {
    location: Location,
    settings: Settings,
    limits: Limits,
    metrics: Arc<Metrics>,
}

impl Pusher {
    /// One connection, from its beginning to its end. No error: the feed has ended, and the target was told.
    async fn once(&self, queue: &mut Queue, unsent: &mut usize) -> Result<(), Error> {
        let dialled = dial(&self.location, self.settings.connect, self.settings.tls.as_ref());
        let transport = tokio::select! {
            transport = dialled => transport?,
            // There is nobody to say goodbye to.
            () = queue.ended() => return Ok(()),
        };
        let mut client = Client::publish_stepwise(&self.target(), self.limits, super::nonce());
        self.begin(&transport, &mut client).await?;
        loop {
            let packets = tokio::select! {
                biased;
                packets = queue.next() => packets,
                received = self.receive(&transport, &mut client) => {
                    received?;
                    Some(Vec::new())
                }
            };
            let Some(packets) = packets else { break };
            *unsent = packets.iter().filter(|packet| !packet.kind.is_header()).count();
            packets.into_iter().for_each(|packet| send(&mut client, packet));
            self.flush(&transport, &mut client).await?;
            *unsent = 0;
        }
        client.close();
        // A target that does not take it sees the connection end.
        drop(timeout(self.settings.close, self.flush(&transport, &mut client)).await);
        transport.linger().await;
        Ok(())
    }

    /// From the handshake to the leave to publish.
    async fn begin(&self, transport: &Transport, client: &mut Client) -> Result<(), Error> {
        let deadline = Instant::now() + self.settings.start;
        let begun = async {
            loop {
                self.flush(transport, client).await?;
                if self.receive(transport, client).await? {
                    return Ok(());
                }
            }
        };
        timeout_at(deadline, begun).await.unwrap_or(Err(Error::Start(self.settings.start)))
    }

    /// Reads once. `true`: the target gives leave to publish. Safe to drop and call again.
    async fn receive(&self, transport: &Transport, client: &mut Client) -> Result<bool, Error> {
        let n = transport.receive(|bytes| client.input(bytes).map_err(Error::from)).await?;
        self.metrics.received_bytes_total.inc_by(n as u64);
        let publishing = consider(client)?;
        if n == 0 { Err(Error::Closed) } else { Ok(publishing) }
    }

    /// Sends all that the client has to say, and hears meanwhile what the target says, so that neither waits for the other.
    async fn flush(&self, transport: &Transport, client: &mut Client) -> Result<(), Error> {
        let stall = self.settings.stall;
        loop {
            let output = client.output();
            if output.is_empty() {
                return Ok(());
            }
            let moves = AtomicBool::new(false);
            let mut send = pin!(transport.send(output, |n| {
                moves.store(true, Relaxed);
                self.metrics.sent_bytes_total.inc_by(n as u64);
            }));
            let mut stalled = pin!(sleep(stall));
            loop {
                tokio::select! {
                    biased;
                    sent = &mut send => {
                        sent?;
                        break;
                    }
                    received = transport.receive(|bytes| client.input(bytes).map_err(Error::from)) => {
                        if received? == 0 {
                            return Err(Error::Closed);
                        }
                    }
                    () = &mut stalled => {
                        if !moves.swap(false, Relaxed) {
                            return Err(Error::Stalled(stall));
                        }
                        stalled.as_mut().reset(Instant::now() + stall);
                    }
                }
            }
        }
    }

    fn target(&self) -> Target {
        let Location { app, name, query, .. } = &self.location;
        let key = query.as_ref().map_or_else(|| name.clone(), |query| format!("{name}?{query}"));
        Target { app: app.clone(), tc_url: self.location.tc_url(), stream_key: key }
    }
}

/// What the target said. `true`: it gives leave to publish.
fn consider(client: &mut Client) -> Result<bool, Error> {
    let mut publishing = false;
    while let Some(event) = client.event() {
        match event {
            ClientEvent::Publishing => publishing = true,
            ClientEvent::Status { code, .. } if code == RECONNECT => return Err(Error::Reconnect),
            ClientEvent::Status { level, code, description } if level == "error" => {
                return Err(Error::Refused(shown(&format!("{code} {description}"))));
            }
            ClientEvent::Closed => return Err(Error::Closed),
            _ => {}
        }
    }
    Ok(publishing)
}

fn send(client: &mut Client, packet: Packet) {
    let (type_id, stream_id) = (packet.type_id(), client.stream_id());
    // It was given leave to publish.
    let _sent = client.send_media(&Message {
        type_id,
        timestamp: packet.timestamp,
        chunk_stream_id: CHUNK_STREAM,
        stream_id,
        body: packet.body,
    });
}
