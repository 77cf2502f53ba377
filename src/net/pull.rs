//! Pulls a stream from another server, in this process: an RTMP client that plays.
//!
//! A pull is one task. It connects, plays, pushes what arrives into a feed, and connects again when that ends, until it is
//! dropped. It does not know why the stream is wanted, nor whether another server has it by now.

use super::dial::{DialError, dial};
use super::location::Location;
use super::origins::Origins;
use super::transport::Transport;
use crate::auth::{PullKey, Unsigned};
use crate::budget::{Charge, Holder};
use crate::ids::NodeId;
use crate::media::Packet;
use crate::relay::{Feed, Feeds, PullEvent, RelayId};
use crate::retry::pauses;
use crate::rtmp;
use crate::rtmp::session::{Client, ClientEvent, Target};
use crate::telemetry::{Counted, Loss, Metrics, shown};
use rustls::ClientConfig;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// The query parameter of a pull's stream key that names the nodes it came through, for [`hops`].
const HOPS: &str = "lb_hops=";

/// The longest chain of pulls. Nobody builds three on purpose.
const HOPS_MAX: usize = 8;

/// Events that wait for the step: that an attempt began, and that it ended.
const EVENTS: usize = 2;

/// After so many messages other tasks get their turn.
const MESSAGES: usize = 1024;

/// A pull that ran for so long was healthy: the next failure is the first again.
const HEALTHY: Duration = Duration::from_secs(10);

/// How a pull behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// To connect a socket to one address.
    pub connect: Duration,
    /// From the connected socket to the first media.
    pub start: Duration,
    /// Without any media for so long, the pull begins anew.
    pub silence: Duration,
    /// The shortest pause before it begins anew; doubled with each failure, and jittered.
    pub retry_min: Duration,
    /// The longest pause, jitter included.
    pub retry_max: Duration,
    /// This node, for [`hops`].
    pub node: NodeId,
    /// The servers that take all calls of a pull at once. Shared by all pulls of a node.
    pub origins: Origins,
    /// What pulls are signed with, where nodes share a token.
    pub key: Option<PullKey>,
    /// Whom `rtmps://` locations are believed by.
    pub tls: Option<Arc<ClientConfig>>,
    /// Pulls without TLS are refused.
    pub only_tls: bool,
}

impl Settings {
    /// The defaults of a node.
    pub fn new(node: NodeId) -> Self {
        Settings {
            connect: Duration::from_secs(2),
            // An ingest node holds a pull for a publisher that is expected back, so this is longer than `silence`.
            start: Duration::from_secs(5),
            silence: Duration::from_secs(3),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(2),
            node,
            origins: Origins::new(),
            key: None,
            tls: None,
            only_tls: false,
        }
    }

    /// The pauses before the next attempts, without end: none is longer than `retry_max`, jitter included.
    fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        let longest = self.retry_max;
        // The first one is the shortest and its jitter, whatever the longest is.
        pauses(self.retry_min * 2, longest).map(move |pause| pause.min(longest))
    }
}

/// The nodes a pull came through, from the query of the stream key it plays.
pub(super) fn hops(query: &str) -> impl Iterator<Item = &str> {
    let named = query.split('&').filter_map(|parameter| parameter.strip_prefix(HOPS));
    named.flat_map(|list| list.split(',')).take(HOPS_MAX)
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Dial(#[from] DialError),
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] rtmp::Error),
    #[error("nothing arrived for {0:?}")]
    Silence(Duration),
    #[error("refused: {0}")]
    Refused(String),
    #[error("another server than before answers at this address")]
    Changed,
    #[error("the stream ended")]
    Ended,
    #[error("the server closed the connection")]
    Closed,
    #[error("this node pulls by TLS only (--pull-tls), and the location is not rtmps://")]
    OnlyTls,
    #[error("the memory that peers may make this node hold is used up")]
    Evicted,
}

/// A running pull. It ends when this is dropped.
#[derive(Debug)]
pub struct Pull {
    _task: AbortOnDropHandle<()>,
}

/// Starts a pull, and says what is told of it. `nudge`: somebody publishes the stream again, so a pause is over.
pub fn start(
    location: Location,
    settings: Settings,
    limits: rtmp::Limits,
    feeds: Arc<Feeds>,
    metrics: Arc<Metrics>,
    nudge: Arc<Notify>,
) -> (Pull, mpsc::Receiver<PullEvent>) {
    let (events, receiver) = mpsc::channel(EVENTS);
    let puller = Puller { location, settings, limits, feeds, metrics, nudge, events };
    (Pull { _task: AbortOnDropHandle::new(tokio::spawn(async move { puller.run().await })) }, receiver)
}

struct Puller {
    location: Location,
    settings: Settings,
    limits: rtmp::Limits,
    feeds: Arc<Feeds>,
    metrics: Arc<Metrics>,
    nudge: Arc<Notify>,
    events: mpsc::Sender<PullEvent>,
}

/// What one attempt knows.
struct Attempt {
    /// Who is charged for what the server makes the process hold.
    holder: Holder,
    /// For the session.
    charge: Charge,
    /// The relay stream that is played, if the server says so.
    upstream: Option<RelayId>,
    /// There once media came, or an lb node said that it plays.
    feed: Option<Feed>,
    /// The feed brought media.
    brought: bool,
}

/// What [`Puller::consider`] found.
enum Heard {
    /// All that was read.
    All,
    /// What comes next is media of another session than what came before.
    Break,
}

impl Puller {
    async fn run(&self) {
        let _counted = Counted::new(&self.metrics.pulls_in.with_label_values(&["native"]));
        let mut pauses = self.settings.pauses();
        loop {
            self.metrics.pulls_started_total.with_label_values(&["native"]).inc();
            let begun = Instant::now();
            let Err(error) = self.pull().await;
            if matches!(error, Error::Evicted) {
                self.metrics.refused("memory");
            }
            if begun.elapsed() >= HEALTHY {
                pauses = self.settings.pauses();
            }
            let pause = pauses.next().unwrap_or(self.settings.retry_max);
            tracing::debug!(location = %self.location, ?pause, "pull ended: {error}");
            if self
                .events
                .send(PullEvent::Ended { reason: error.to_string(), retry_in: pause })
                .await
                .is_err()
            {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.nudge.notified() => pauses = self.settings.pauses(),
                () = self.events.closed() => return,
            }
        }
    }

    async fn pull(&self) -> Result<std::convert::Infallible, Error> {
        let transport = self.transport().await?;
        let origins = &self.settings.origins;
        let pipelined = origins.is_lb(&self.location);
        let target = Target {
            app: self.location.app.clone(),
            tc_url: self.location.tc_url(),
            stream_key: self.stream_key(true),
        };
        let mut client = match pipelined {
            true => Client::play(&target, self.limits, super::nonce()),
            false => Client::connect(&target, self.limits, super::nonce()),
        };
        let end = self.play(&transport, &mut client, pipelined).await;
        self.metrics.lost(Loss::Unusable, client.ignored());
        if pipelined && !client.is_lb() {
            // It may be another server by now, which does not take calls before it has answered connect.
            origins.forget(&self.location);
        }
        end
    }

    async fn play(
        &self,
        transport: &Transport,
        client: &mut Client,
        pipelined: bool,
    ) -> Result<std::convert::Infallible, Error> {
        let holder = self.feeds.budget().holder();
        let mut attempt =
            Attempt { charge: holder.charge(), holder, upstream: None, feed: None, brought: false };
        let mut deadline = Instant::now() + self.settings.start;
        // One timer for the whole attempt: to set it anew for each read would cost more than the read's own bookkeeping. It
        // rings where the deadline once was, and is set to where it is by then.
        let timer = tokio::time::sleep_until(deadline);
        tokio::pin!(timer);
        let mut packets = Vec::new();
        let mut heard = false;
        loop {
            transport.send(client.output(), |_| {}).await?;
            let n = tokio::select! {
                biased;
                n = transport.receive(|bytes| client.input(bytes).map_err(Error::from)) => n?,
                () = attempt.holder.evicted() => return Err(Error::Evicted),
                () = &mut timer => {
                    if Instant::now() < deadline {
                        timer.as_mut().reset(deadline);
                        continue;
                    }
                    return Err(Error::Silence(match heard {
                        true => self.settings.silence,
                        false => self.settings.start,
                    }));
                }
            };
            self.metrics.received_bytes_total.inc_by(n as u64);
            attempt.charge.set(client.held());
            // One that sends without end never waits for its eviction above.
            if attempt.charge.is_evicted() {
                return Err(Error::Evicted);
            }
            loop {
                let end = self.consider(client, &mut attempt, pipelined, &mut packets);
                if !packets.is_empty() {
                    self.metrics.received_messages_total.inc_by(packets.len() as u64);
                    self.hand_on(&mut attempt, &packets).await?;
                    packets.clear();
                    heard = true;
                    deadline = Instant::now() + self.settings.silence;
                } else if attempt.upstream.is_some() && end.is_ok() {
                    // An lb node says that it plays once it knows the stream: viewers need not wait for media to hear so, too.
                    self.begin(&mut attempt).await?;
                }
                match end? {
                    Heard::All => break,
                    Heard::Break => self.break_off(&mut attempt).await?,
                }
            }
            if n == 0 {
                return Err(Error::Closed);
            }
            if n >= transport.full_read() {
                // More is there already: what others have to do comes first.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Begins the attempt's feed, unless it has begun.
    async fn begin<'a>(&self, attempt: &'a mut Attempt) -> Result<&'a mut Feed, Error> {
        match &mut attempt.feed {
            Some(feed) => Ok(feed),
            none => {
                let feed = self.feeds.begin_for(attempt.upstream, None, attempt.holder.clone());
                self.announce(&feed).await?;
                Ok(none.insert(feed))
            }
        }
    }

    /// Ends the attempt's feed and begins another one for the session that follows.
    async fn break_off(&self, attempt: &mut Attempt) -> Result<(), Error> {
        // Of what has brought nothing, nobody took anything for a part of another session.
        if std::mem::take(&mut attempt.brought)
            && let Some(feed) = attempt.feed.take()
        {
            let feed = attempt.feed.insert(feed.break_off());
            self.announce(feed).await?;
        }
        Ok(())
    }

    async fn announce(&self, feed: &Feed) -> Result<(), Error> {
        self.tell(PullEvent::Began(feed.reference())).await?;
        feed.wait_attached().await;
        Ok(())
    }

    /// Gives what was read to the attempt's feed.
    async fn hand_on(&self, attempt: &mut Attempt, packets: &[Packet]) -> Result<(), Error> {
        attempt.brought = true;
        let feed = self.begin(attempt).await?;
        for (index, some) in packets.chunks(MESSAGES).enumerate() {
            if index > 0 {
                tokio::task::yield_now().await;
            }
            feed.push(some);
        }
        Ok(())
    }

    /// Takes what was read, up to where another session begins.
    fn consider(
        &self,
        client: &mut Client,
        attempt: &mut Attempt,
        pipelined: bool,
        packets: &mut Vec<Packet>,
    ) -> Result<Heard, Error> {
        while let Some(event) = client.event() {
            match event {
                ClientEvent::Media(message) => {
                    let packet = Packet::from_message(message.type_id, message.timestamp, message.body);
                    self.metrics.lost(Loss::Unusable, u64::from(packet.is_none()));
                    packets.extend(packet);
                }
                ClientEvent::Connected => {
                    let is_lb = client.is_lb();
                    if pipelined && !is_lb {
                        return Err(Error::Changed);
                    }
                    if is_lb {
                        let time = client
                            .server_time()
                            .map_or(0, |time| time.cast_signed().wrapping_sub(now().cast_signed()));
                        self.settings.origins.learn(&self.location, time);
                    }
                    client.play_stream(&self.stream_key(is_lb));
                }
                ClientEvent::PublishBegins => return Ok(Heard::Break),
                ClientEvent::Playing { relay } => attempt.upstream = relay.map(RelayId),
                ClientEvent::Status { level, code, description } if level == "error" => {
                    if description == Unsigned::Expired.to_string() {
                        // Its clock, or this one, was set since it was learnt.
                        self.settings.origins.forget(&self.location);
                    }
                    return Err(Error::Refused(shown(&format!("{code} {description}"))));
                }
                ClientEvent::Status { code, .. }
                    if code == "NetStream.Play.UnpublishNotify" || code == "NetStream.Play.Stop" =>
                {
                    return Err(Error::Ended);
                }
                _ => {}
            }
        }
        Ok(Heard::All)
    }

    async fn tell(&self, event: PullEvent) -> Result<(), Error> {
        self.events.send(event).await.map_err(|_| Error::Ended)
    }

    /// The stream key with its own query and, for an lb node, this node among the hops: another server may take the query
    /// for a part of the key.
    fn stream_key(&self, is_lb: bool) -> String {
        let Location { name, query, .. } = &self.location;
        if !is_lb {
            return query.as_ref().map_or_else(|| name.clone(), |query| format!("{name}?{query}"));
        }
        let own = query.as_deref().unwrap_or_default();
        let before: Vec<&str> = hops(own).collect();
        let mut kept: Vec<&str> = own.split('&').filter(|p| !p.is_empty() && !p.starts_with(HOPS)).collect();
        let hops = format!("{HOPS}{}", [before, vec![self.settings.node.as_str()]].concat().join(","));
        kept.push(&hops);
        let ahead = self.settings.origins.ahead(&self.location);
        let sign = |key: &PullKey| key.sign(name, &self.settings.node, now().saturating_add_signed(ahead));
        let signature = self.settings.key.as_ref().map(sign);
        kept.extend(signature.as_deref());
        format!("{name}?{}", kept.join("&"))
    }

    async fn transport(&self) -> Result<Transport, Error> {
        if self.settings.only_tls && !self.location.tls {
            return Err(Error::OnlyTls);
        }
        Ok(dial(&self.location, self.settings.connect, self.settings.tls.as_ref()).await?)
    }
}

/// Seconds since 1970, by this host's clock.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(min: u64, max: u64) -> Settings {
        let (retry_min, retry_max) = (Duration::from_millis(min), Duration::from_millis(max));
        Settings { retry_min, retry_max, ..Settings::new("n".parse().unwrap()) }
    }

    proptest! {
        #[test]
        fn no_pause_is_longer_than_the_longest_or_shorter_than_the_shortest(
            min in 1..5_000u64,
            max in 1..5_000u64,
        ) {
            let settings = settings(min, max);
            for pause in settings.pauses().take(30) {
                prop_assert!(pause <= settings.retry_max, "{pause:?}");
                prop_assert!(pause >= settings.retry_min.min(settings.retry_max / 2), "{pause:?}");
            }
        }
    }

    #[test]
    fn pauses_grow_and_differ_from_pull_to_pull() {
        let settings = Settings::new("n".parse().unwrap());
        let last = || settings.pauses().nth(20).unwrap();
        let lasts: Vec<Duration> = (0..20).map(|_| last()).collect();
        assert!(lasts.iter().all(|pause| *pause >= settings.retry_max / 2), "{lasts:?}");
        assert!(lasts.iter().any(|pause| *pause != lasts[0]), "{lasts:?}");
        assert!(settings.pauses().next().unwrap() <= settings.retry_min * 2);
    }
}
