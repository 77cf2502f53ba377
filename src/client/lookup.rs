//! Lookups: may this stream be published, and where can it be pulled from?
//!
//! Only a reactor that answers 404 or 409 ends a stream. Everything else that is not a good answer (no connection, no
//! answer in time, 5xx, a text that is no workflow, a wrong token) is an outage: the next URL is asked, then the last
//! good answer is given again. A plain web server that knows nothing but the contract's two lookups serves as well: it
//! ignores the further fields of a question, and its answers come without epoch and origin.

use super::flights::{self, Flights};
use super::memory::Memory;
use super::targets::Targets;
use super::{CALL_DEADLINE, ClientMetrics, Http, Reply, Urls};
use crate::api::{EPOCH_HEADER, ORIGIN_HEADER, PublisherLookup, Refusal, WatcherLookup};
use crate::ids::{Origin, SessionId, StreamName};
use crate::telemetry::Seldom;
use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The most calls of one [`Lookup`] at a time, so that a herd that asks for thousands of names opens no thousands of
/// connections. A call that waits longer than [`CALL_DEADLINE`] for its turn is answered as in an outage.
const CALLS_MAX: usize = 64;

/// The longest reason that is taken over from a reactor, in characters.
const REASON_MAX: usize = 200;

/// What is known about a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may be published, or it can be pulled.
    Found {
        /// The workflows to run, in the engine's configuration language. May be empty.
        text: Arc<str>,
        /// The epoch of the session that owns the name; a plain web server gives none.
        epoch: Option<u64>,
        /// Where the stream can be pulled from; a plain web server gives none.
        origin: Option<Origin>,
        /// False: the last good answer, given again because no reactor gives a better one.
        fresh: bool,
    },
    /// A reactor answered that it does not know the stream (404).
    NotFound {
        /// One sentence for people.
        reason: Arc<str>,
    },
    /// A reactor answered that the name belongs to another publisher (409).
    Refused {
        /// One sentence for people.
        reason: Arc<str>,
    },
    /// No reactor answered, and nothing is known from before.
    Unavailable {
        /// One sentence for people, with what each URL did.
        reason: Arc<str>,
    },
}

/// The two lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Publisher,
    Watcher,
}

/// One question. Those that are equal share one call.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) kind: Kind,
    pub(super) name: StreamName,
    pub(super) session: Option<SessionId>,
    pub(super) body: String,
    /// Set apart from the others: what was asked before is not an answer to "and now?".
    pub(super) refresh: bool,
}

impl Question {
    /// What the answer is remembered by.
    pub(super) fn key(&self) -> (Kind, StreamName) {
        (self.kind, self.name.clone())
    }
}

impl flights::Question for Question {
    type Answer = Answer;
}

type Validate = dyn Fn(&str) -> Result<(), String> + Send + Sync;
type Hook = dyn Fn() + Send + Sync;

/// The lookups of one mmids reactor definition: one service, under one or several URLs that are tried in order.
///
/// Which of the two lookups the URLs stand for is the caller's knowledge. All questions of one `Lookup` are taken to
/// come from one node with one list of steps it accepts, since answers are remembered by stream name. Cheap to clone;
/// clones share their memory and their calls in flight.
#[derive(Clone)]
pub struct Lookup {
    shared: Arc<Inner>,
    on_recovery: Option<Arc<Hook>>,
    flights: Arc<Flights<Question>>,
}

struct Inner {
    http: Http,
    targets: Targets,
    validate: Box<Validate>,
    memory: Memory,
    metrics: ClientMetrics,
    turns: Semaphore,
    /// No URL was well when the last question was asked.
    outage: AtomicBool,
    outage_log: Seldom,
    recovery_log: Seldom,
    config_log: Seldom,
}

impl Lookup {
    /// Lookups at these URLs. `validate` says whether an answer is a text that the node can use, and if not, why; it
    /// must accept the empty text where a lookup may be answered with no workflow.
    pub fn new(
        http: Http,
        urls: &Urls,
        validate: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static,
        metrics: ClientMetrics,
    ) -> Self {
        let inner = Inner {
            http,
            targets: Targets::new(urls),
            validate: Box::new(validate),
            memory: Memory::new(),
            metrics,
            turns: Semaphore::new(CALLS_MAX),
            outage: AtomicBool::new(false),
            outage_log: Seldom::default(),
            recovery_log: Seldom::default(),
            config_log: Seldom::default(),
        };
        Lookup { shared: Arc::new(inner), on_recovery: None, flights: Arc::default() }
    }

    /// Calls `hook` when a reactor answers again after an outage, for example to send a heartbeat at once. It must not
    /// block.
    pub fn on_recovery(self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        Lookup { on_recovery: Some(Arc::new(hook)), ..self }
    }

    /// Asks whether a stream may be published.
    pub async fn publisher(&self, lookup: &PublisherLookup) -> Answer {
        self.ask(Kind::Publisher, &lookup.stream_name, lookup.session, lookup, false).await
    }

    /// Asks where a stream can be pulled from. A name that was not found within the last second is answered without a
    /// call, except for a `refresh`, which also joins no earlier call other than another refresh.
    pub async fn watcher(&self, lookup: &WatcherLookup, refresh: bool) -> Answer {
        if !refresh && let Some(reason) = self.shared.memory.was_unknown(&lookup.stream_name) {
            return Answer::NotFound { reason };
        }
        self.ask(Kind::Watcher, &lookup.stream_name, None, lookup, refresh).await
    }

    /// Something changed about a name: that it was not found a moment ago means nothing any more.
    pub fn changed(&self, name: &StreamName) {
        self.shared.memory.forget_unknown(name);
    }

    async fn ask(
        &self,
        kind: Kind,
        name: &StreamName,
        session: Option<SessionId>,
        body: &impl Serialize,
        refresh: bool,
    ) -> Answer {
        let body = match serde_json::to_string(body) {
            Ok(body) => body,
            Err(error) => {
                return Answer::Unavailable { reason: error.to_string().into() };
            }
        };
        let question = Question { kind, name: name.clone(), session, body, refresh };
        let call = || {
            let (inner, hook, question) = (self.shared.clone(), self.on_recovery.clone(), question.clone());
            async move { inner.answer(&question, hook.as_deref()).await }
        };
        self.flights.join(&question, call).await
    }
}

impl Inner {
    async fn answer(&self, question: &Question, on_recovery: Option<&Hook>) -> Answer {
        let started = Instant::now();
        let (answer, result) = match self.ask_reactors(question).await {
            Ok(answer) => {
                if self.outage.swap(false, Ordering::Relaxed) {
                    if let Some(held_back) = self.recovery_log.pass() {
                        tracing::info!(held_back, "a reactor answers lookups again");
                    }
                    if let Some(hook) = on_recovery {
                        hook();
                    }
                }
                self.remember(question, &answer);
                let result = match &answer {
                    Answer::Found { .. } => "found",
                    Answer::Refused { .. } => "refused",
                    _ => "unknown",
                };
                (answer, result)
            }
            Err(troubles) => self.make_do(question, &troubles),
        };
        let kind = match question.kind {
            Kind::Publisher => "publisher",
            Kind::Watcher => "watcher",
        };
        self.metrics.lookups.with_label_values(&[kind, result]).inc();
        self.metrics.lookup_duration.observe(started.elapsed().as_secs_f64());
        answer
    }

    /// Asks one URL after the other; the error says what each of them did.
    async fn ask_reactors(&self, question: &Question) -> Result<Answer, Vec<Trouble>> {
        let turn = timeout(CALL_DEADLINE, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(vec![Trouble::Answer(format!("{CALLS_MAX} other lookups wait for reactors"))]);
        };
        let body = Bytes::from(question.body.clone());
        let mut troubles = Vec::new();
        for target in self.targets.in_order() {
            let verdict = match self.http.call(Method::POST, &target.url, Some(body.clone())).await {
                Ok(reply) => judge(&reply, &*self.validate)
                    .map_err(|trouble| trouble.map(|what| format!("{}: {what}", target.name()))),
                Err(error) => Err(Trouble::Outage(error.to_string())),
            };
            let trouble = match verdict {
                Ok(answer) => {
                    target.works();
                    return Ok(answer);
                }
                Err(trouble) => trouble,
            };
            if let Trouble::Config(reason) = &trouble
                && let Some(held_back) = self.config_log.pass()
            {
                tracing::error!(
                    reason,
                    held_back,
                    "a reactor does not accept lookups: check its URL and the token"
                );
            }
            target.failed();
            troubles.push(trouble);
        }
        Err(troubles)
    }

    fn remember(&self, question: &Question, answer: &Answer) {
        match answer {
            Answer::Found { text, epoch, origin, .. } => {
                self.memory.found(question, text.clone(), *epoch, origin.clone());
            }
            Answer::NotFound { reason } => {
                self.memory.gone(question);
                if question.kind == Kind::Watcher {
                    self.memory.unknown(&question.name, reason.clone());
                }
            }
            Answer::Refused { .. } => self.memory.gone(question),
            Answer::Unavailable { .. } => {}
        }
    }

    /// The best answer without a reactor.
    fn make_do(&self, question: &Question, troubles: &[Trouble]) -> (Answer, &'static str) {
        if troubles.iter().all(|trouble| matches!(trouble, Trouble::Outage(_))) {
            self.outage.store(true, Ordering::Relaxed);
        }
        let reason = troubles.iter().map(Trouble::reason).collect::<Vec<_>>().join("; ");
        let good = self.memory.last_good(question);
        if let Some(held_back) = self.outage_log.pass() {
            let stale = good.is_some();
            tracing::warn!(stream = %question.name, reason, stale, held_back, "no reactor answers a lookup");
        }
        match good {
            Some(good) => {
                let (text, epoch, origin) = (good.text, good.epoch, good.origin);
                (Answer::Found { text, epoch, origin, fresh: false }, "stale")
            }
            None => (Answer::Unavailable { reason: reason.into() }, "unavailable"),
        }
    }
}

/// Why a reply is no answer.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// The reactor is not well.
    Outage(String),
    /// This one answer cannot be had or used.
    Answer(String),
    /// The reactor is well, and does not want this node's calls.
    Config(String),
}

impl Trouble {
    fn reason(&self) -> &str {
        match self {
            Trouble::Outage(reason) | Trouble::Answer(reason) | Trouble::Config(reason) => reason,
        }
    }

    fn map(self, say: impl FnOnce(String) -> String) -> Self {
        match self {
            Trouble::Outage(reason) => Trouble::Outage(say(reason)),
            Trouble::Answer(reason) => Trouble::Answer(say(reason)),
            Trouble::Config(reason) => Trouble::Config(say(reason)),
        }
    }
}

fn judge(reply: &Reply, validate: &Validate) -> Result<Answer, Trouble> {
    match reply.status.as_u16() {
        200..=299 => {
            let text = std::str::from_utf8(&reply.body)
                .map_err(|error| Trouble::Answer(format!("the answer is not UTF-8: {error}")))?;
            validate(text)
                .map_err(|why| Trouble::Answer(format!("the answer cannot be used: {}", printable(&why))))?;
            let (epoch, origin) = (header(reply, EPOCH_HEADER), header(reply, ORIGIN_HEADER));
            Ok(Answer::Found { text: text.into(), epoch, origin, fresh: true })
        }
        404 => Ok(Answer::NotFound { reason: said(reply, "the stream is not known").into() }),
        409 => Ok(Answer::Refused { reason: said(reply, "the name belongs to another publisher").into() }),
        408 | 425 | 429 | 500.. => {
            Err(Trouble::Outage(format!("{}: {}", reply.status, said(reply, "no reason"))))
        }
        _ => Err(Trouble::Config(format!("{}: {}", reply.status, said(reply, "no reason")))),
    }
}

fn header<T: FromStr>(reply: &Reply, name: &str) -> Option<T> {
    reply.headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The reason in the body of a refusal. A plain web server sends none, or a page.
fn said(reply: &Reply, otherwise: &str) -> String {
    match serde_json::from_slice::<Refusal>(&reply.body) {
        Ok(refusal) => printable(&refusal.error),
        Err(_) => otherwise.to_owned(),
    }
}

/// A foreign text as it may stand in a log line.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::StatusCode;
    use reqwest::header::HeaderMap;

    fn reply(status: u16, body: &'static [u8]) -> Reply {
        let status = StatusCode::from_u16(status).unwrap();
        Reply { status, headers: HeaderMap::new(), body: Bytes::from_static(body) }
    }

    /// `f`ound, `n`ot found, `r`efused, `o`utage, unusable `a`nswer, `c`onfiguration.
    fn letter(status: u16, body: &'static [u8]) -> char {
        let validate = |text: &str| {
            if text.contains('{') { Err("brace".to_owned()) } else { Ok(()) }
        };
        match judge(&reply(status, body), &validate) {
            Ok(Answer::Found { .. }) => 'f',
            Ok(Answer::NotFound { .. }) => 'n',
            Ok(Answer::Refused { .. }) => 'r',
            Ok(Answer::Unavailable { .. }) => '?',
            Err(Trouble::Outage(_)) => 'o',
            Err(Trouble::Answer(_)) => 'a',
            Err(Trouble::Config(_)) => 'c',
        }
    }

    #[test]
    fn only_404_and_409_are_final() {
        for (status, meaning) in [
            (200, 'f'),
            (204, 'f'),
            (301, 'c'),
            (302, 'c'),
            (400, 'c'),
            (401, 'c'),
            (403, 'c'),
            (404, 'n'),
            (405, 'c'),
            (408, 'o'),
            (409, 'r'),
            (410, 'c'),
            (429, 'o'),
            (500, 'o'),
            (502, 'o'),
            (503, 'o'),
            (599, 'o'),
        ] {
            assert_eq!(letter(status, b""), meaning, "{status}");
        }
        assert_eq!(letter(200, b"\xff"), 'a');
        assert_eq!(letter(200, b"{"), 'a');
    }

    #[test]
    fn a_reason_is_taken_over_without_what_would_break_a_log_line() {
        assert_eq!(said(&reply(404, br#"{"error":"no\nsuch\u001b[1m"}"#), "-"), "nosuch[1m");
        assert_eq!(said(&reply(404, b"<html>"), "-"), "-");
        assert_eq!(printable(&"x".repeat(1000)).len(), REASON_MAX);
    }
}
