//! Follows a reactor's Server-Sent Events, so that a node learns of a change well before it would ask again.
//!
//! Events are a shortcut, not the truth: whatever is missed, on the way or because the reader is behind, is made up for by
//! one [`Event::Hello`], on which the node asks again for everything that it follows.

use super::http::{CALL_DEADLINE, Http, cause};
use super::metrics::ClientMetrics;
use super::targets::{PLAIN_SERVER_RETRY, Target, Targets};
use super::urls::{Urls, endpoint};
use crate::api::Change;
use crate::retry::pauses;
use bytes::Bytes;
use eventsource_stream::EventStream;
use futures::{Stream, StreamExt, stream};
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use std::pin::{Pin, pin};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// How often a reactor sends at least a comment on a connection that is otherwise silent.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How many keep-alives may be missing before a connection counts as dead.
const KEEP_ALIVES_MISSING: u32 = 3;

/// The delay before a lost connection is opened again; it doubles up to the greatest one.
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// The greatest delay before a lost connection is opened again.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The longest event, in bytes. A change is some 400.
const EVENT_MAX: usize = 16 * 1024;

/// Events that may wait for the reader: some seconds of a busy reactor. More are replaced by one hello.
const EVENTS_WAITING: usize = 1024;

/// What a node is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something may have been missed: ask again for everything that is followed.
    Hello,
    /// A stream has another owner, or none.
    Change(Change),
}

/// Where events come from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The connections, with the token for reactors.
    pub http: Http,
    /// The reactors' base URLs.
    pub reactors: Urls,
    /// See [`KEEP_ALIVE`]. A connection that is silent for three of these is dead.
    pub keep_alive: Duration,
}

/// The running follower: one task, which ends when this is dropped or when the receiver is.
#[derive(Debug)]
pub struct Events {
    task: AbortOnDropHandle<()>,
}

impl Events {
    /// Starts to follow the first reactor that can be reached.
    pub fn start(settings: Settings, metrics: ClientMetrics) -> (Events, mpsc::Receiver<Event>) {
        Events::with_capacity(settings, metrics, EVENTS_WAITING)
    }

    fn with_capacity(
        settings: Settings,
        metrics: ClientMetrics,
        capacity: usize,
    ) -> (Events, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(capacity);
        let follower = Follower { delivery: Delivery { sender, owed: false, metrics } };
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run(settings)));
        (Events { task }, receiver)
    }

    /// Ends the task.
    pub async fn shutdown(self) {
        self.task.abort();
        match self.task.await {
            Err(error) if error.is_panic() => tracing::error!(%error, "the follower of events failed"),
            _ => {}
        }
    }
}

/// The receiver is gone: nobody is interested.
struct Gone;

struct Follower {
    delivery: Delivery,
}

impl Follower {
    async fn run(mut self, settings: Settings) {
        let targets = Targets::new(&settings.reactors);
        let mut retry = pauses(RETRY_FIRST, RETRY_MAX);
        let mut silent = false;
        loop {
            let Ok(connected) = self.delivery.meanwhile(connect(&settings.http, &targets)).await else {
                return;
            };
            let wait = match connected {
                Ok((target, response)) => {
                    let since = Instant::now();
                    let silence = settings.keep_alive * KEEP_ALIVES_MISSING;
                    let Ok(end) = self.follow(response, silence).await else {
                        return;
                    };
                    self.delivery.count("lost");
                    target.failed();
                    tracing::info!(reactor = target.name(), end, "the connection for events ended");
                    // A reactor that takes connections only to close them is not hurried.
                    if since.elapsed() >= RETRY_MAX {
                        retry = pauses(RETRY_FIRST, RETRY_MAX);
                    }
                    silent = false;
                    retry.next().unwrap_or(RETRY_MAX)
                }
                Err(None) => PLAIN_SERVER_RETRY,
                Err(Some(error)) => {
                    if !std::mem::replace(&mut silent, true) {
                        tracing::warn!(error, "no reactor sends events; lookups are repeated instead");
                    }
                    retry.next().unwrap_or(RETRY_MAX)
                }
            };
            if self.delivery.meanwhile(sleep(wait)).await.is_err() {
                return;
            }
        }
    }

    /// Hands on the events of one connection until it ends; says why it did.
    async fn follow(&mut self, response: Response, silence: Duration) -> Result<String, Gone> {
        let bytes = response.bytes_stream().map(|chunk| chunk.map_err(|error| cause(&error)));
        let mut events = pin!(EventStream::new(guarded(bytes, silence)));
        let mut greeted = false;
        loop {
            let next = async {
                if greeted {
                    return events.next().await;
                }
                // Comments keep a connection alive, but a reactor says hello at once.
                timeout(CALL_DEADLINE, events.next()).await.unwrap_or_default()
            };
            let event = match self.delivery.meanwhile(next).await? {
                Some(Ok(event)) => event,
                Some(Err(error)) => return Ok(error.to_string()),
                None if greeted => return Ok("closed".to_owned()),
                None => return Ok("closed, or silent from the start".to_owned()),
            };
            if !greeted {
                greeted = true;
                self.delivery.hello();
            }
            match event.event.as_str() {
                "hello" => self.delivery.hello(),
                "change" => match serde_json::from_str(&event.data) {
                    Ok(change) => self.delivery.change(change)?,
                    Err(error) => {
                        tracing::warn!(%error, "a change from a reactor cannot be read");
                        self.delivery.dropped();
                    }
                },
                _ => {}
            }
        }
    }
}

/// The way to the reader, which is never waited for.
struct Delivery {
    sender: mpsc::Sender<Event>,
    /// A hello is due as soon as there is room.
    owed: bool,
    metrics: ClientMetrics,
}

impl Delivery {
    /// Waits for something else; a hello that is due goes out meanwhile.
    async fn meanwhile<T>(&mut self, what: impl Future<Output = T>) -> Result<T, Gone> {
        let mut what = pin!(what);
        loop {
            tokio::select! {
                // The hello first: it stands for what came before.
                biased;
                permit = self.sender.reserve(), if self.owed => {
                    permit.map_err(|_| Gone)?.send(Event::Hello);
                    self.owed = false;
                    self.count("hello");
                }
                () = self.sender.closed() => return Err(Gone),
                output = &mut what => return Ok(output),
            }
        }
    }

    fn hello(&mut self) {
        self.owed = true;
    }

    fn change(&mut self, change: Change) -> Result<(), Gone> {
        if self.owed {
            // The hello that is due tells the reader to ask, which brings this change too.
            self.dropped();
            return Ok(());
        }
        match self.sender.try_send(Event::Change(change)) {
            Ok(()) => self.count("change"),
            Err(TrySendError::Full(_)) => self.dropped(),
            Err(TrySendError::Closed(_)) => return Err(Gone),
        }
        Ok(())
    }

    fn dropped(&mut self) {
        self.count("dropped");
        self.owed = true;
    }

    fn count(&self, event: &str) {
        self.metrics.events.with_label_values(&[event]).inc();
    }
}

/// Opens a connection to the first reactor that has events. The error is what each said, or nothing if none of the
/// servers has the endpoint.
async fn connect<'a>(http: &Http, targets: &'a Targets) -> Result<(&'a Target, Response), Option<String>> {
    let mut errors: Vec<String> = Vec::new();
    for target in targets.in_order() {
        match http.open(&endpoint(&target.url, &["events"])).await {
            Ok(response) if response.status().is_success() && sends_events(&response) => {
                target.works();
                return Ok((target, response));
            }
            Ok(response)
                if response.status().is_success() || matches!(response.status().as_u16(), 404 | 405) =>
            {
                if target.plain() {
                    tracing::info!(
                        url = target.name(),
                        "this web server has no events; lookups are repeated instead"
                    );
                }
            }
            Ok(response) => {
                target.failed();
                errors.push(format!("{}: {}", target.name(), response.status()));
            }
            Err(error) => {
                target.failed();
                errors.push(error.to_string());
            }
        }
    }
    Err(if errors.is_empty() { None } else { Some(errors.join("; ")) })
}

fn sends_events(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
}

/// The same bytes, ended with an error when none come for a while or when an event does not end.
fn guarded<S>(bytes: S, silence: Duration) -> impl Stream<Item = Result<Bytes, String>>
where
    S: Stream<Item = Result<Bytes, String>>,
{
    struct State<S> {
        bytes: Pin<Box<S>>,
        event: usize,
        line_is_empty: bool,
    }
    let state = State { bytes: Box::pin(bytes), event: 0, line_is_empty: true };
    stream::try_unfold(state, move |mut state| async move {
        let Ok(next) = timeout(silence, state.bytes.next()).await else {
            return Err(format!("silent for {silence:?}"));
        };
        let Some(chunk) = next.transpose()? else {
            return Ok(None);
        };
        for byte in &chunk {
            match byte {
                // An empty line ends an event.
                b'\n' if state.line_is_empty => state.event = 0,
                b'\n' => state.line_is_empty = true,
                b'\r' => {}
                _ => {
                    state.line_is_empty = false;
                    state.event += 1;
                }
            }
            if state.event > EVENT_MAX {
                return Err(format!("an event is longer than {EVENT_MAX} bytes"));
            }
        }
        Ok(Some((chunk, state)))
    })
}
