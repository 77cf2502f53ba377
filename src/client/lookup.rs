//! Lookups: may this stream be published, and where can it be pulled from?
//!
//! A reactor that answers 404 or 409 ends a stream, and 400, 401 or 403 refuses a publisher. Everything else that is not a
//! good answer (no connection, no answer in time, 5xx, a text that is no workflow, a wrong token) is an outage: the next URL is asked, then the last
//! good answer is given again. A plain web server that knows nothing but the contract's two lookups serves as well: it
//! ignores the further fields of a question, and its answers come without epoch and origin.

use super::cache::Answers;
use super::http::{CALL_DEADLINE, Http, Reply};
use super::metrics::ClientMetrics;
use super::question::{Kind, Question};
use super::targets::Targets;
use super::urls::Urls;
use crate::api::{
    EPOCH_HEADER, NODE_REFUSED_HEADER, ORIGIN_HEADER, PublisherLookup, Refusal, SESSION_HEADER, WatcherLookup,
};
use crate::ids::{Origin, SessionId, SessionTag, StreamName};
use crate::telemetry::Seldom;
use reqwest::Method;
use reqwest::header::WWW_AUTHENTICATE;
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

/// The most of them for names of which no good answer is known: whoever asks for names that do not exist holds up none that
/// do.
const UNKNOWN_MAX: usize = 48;

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
        /// The tag of the session that owns the name, for logs.
        session: Option<SessionTag>,
        /// False: the last good answer, given again because no reactor gives a better one.
        fresh: bool,
    },
    /// A reactor answered that it does not know the stream (404).
    NotFound {
        /// One sentence for people.
        reason: Arc<str>,
    },
    /// A reactor answered that the name belongs to another publisher (409), or that this one may not publish (400, 401, 403).
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

type Validate = dyn Fn(&str) -> Result<(), String> + Send + Sync;
type Hook = dyn Fn() + Send + Sync;

/// The lookups of one mmids reactor definition: one service, under one or several URLs that are tried in order.
///
/// Which of the two lookups the URLs stand for is the caller's knowledge. All questions of one `Lookup` are taken to
/// come from one node with one list of steps it accepts, since answers are kept by stream name. Each question is a call:
/// whoever has many askers of one name asks once for all of them. Cheap to clone; clones share what they keep.
#[derive(Clone)]
pub struct Lookup {
    shared: Arc<Inner>,
    on_recovery: Option<Arc<Hook>>,
}

struct Inner {
    http: Http,
    targets: Targets,
    validate: Box<Validate>,
    answers: Answers,
    metrics: ClientMetrics,
    turns: Semaphore,
    turns_of_unknown: Semaphore,
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
            answers: Answers::new(),
            metrics,
            turns: Semaphore::new(CALLS_MAX),
            turns_of_unknown: Semaphore::new(UNKNOWN_MAX),
            outage: AtomicBool::new(false),
            outage_log: Seldom::default(),
            recovery_log: Seldom::default(),
            config_log: Seldom::default(),
        };
        Lookup { shared: Arc::new(inner), on_recovery: None }
    }

    /// Calls `hook` when a reactor answers again after an outage, for example to send a heartbeat at once. It must not
    /// block.
    pub fn on_recovery(self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        Lookup { on_recovery: Some(Arc::new(hook)), ..self }
    }

    /// Asks whether a stream may be published.
    pub async fn publisher(&self, lookup: &PublisherLookup) -> Answer {
        self.ask(Kind::Publisher, &lookup.stream_name, lookup.session, lookup).await
    }

    /// Asks where a stream can be pulled from. A name that was not found within the last second is answered from the
    /// negative cache, except for a `refresh`.
    pub async fn watcher(&self, lookup: &WatcherLookup, refresh: bool) -> Answer {
        if !refresh && let Some(reason) = self.shared.answers.negative(&lookup.stream_name) {
            return Answer::NotFound { reason };
        }
        self.ask(Kind::Watcher, &lookup.stream_name, None, lookup).await
    }

    /// Something changed about a name: that it was not found a moment ago means nothing any more.
    pub fn changed(&self, name: &StreamName) {
        self.shared.answers.changed(name);
    }

    async fn ask(
        &self,
        kind: Kind,
        name: &StreamName,
        session: Option<SessionId>,
        body: &impl Serialize,
    ) -> Answer {
        let body = match serde_json::to_vec(body) {
            Ok(body) => body.into(),
            Err(error) => {
                return Answer::Unavailable { reason: error.to_string().into() };
            }
        };
        let question = Question { kind, name: name.clone(), session, body };
        self.shared.answer(&question, self.on_recovery.as_deref()).await
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
            Err(failures) => self.stale(question, &failures),
        };
        self.metrics.lookups.with_label_values(&[question.kind.label(), result]).inc();
        self.metrics.lookup_duration.observe(started.elapsed().as_secs_f64());
        answer
    }

    /// Asks one URL after the other; the error says what each of them did.
    async fn ask_reactors(&self, question: &Question) -> Result<Answer, Vec<Failure>> {
        let Ok(_turn) = timeout(CALL_DEADLINE, self.turn(question)).await else {
            return Err(vec![Failure::BadAnswer("too many other lookups wait for reactors".to_owned())]);
        };
        let mut failures = Vec::new();
        for target in self.targets.in_order() {
            let verdict = match self.http.call(Method::POST, &target.url, Some(question.body.clone())).await {
                Ok(reply) => judge(question.kind, &reply, &*self.validate)
                    .map_err(|failure| failure.map(|what| format!("{}: {what}", target.name()))),
                Err(error) => Err(Failure::Outage(error.to_string())),
            };
            let failure = match verdict {
                Ok(answer) => {
                    target.works();
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            if let Failure::Rejected(reason) = &failure
                && let Some(held_back) = self.config_log.pass()
            {
                tracing::error!(
                    reason,
                    held_back,
                    "a reactor does not accept lookups: check its URL and the token"
                );
            }
            target.failed();
            failures.push(failure);
        }
        Err(failures)
    }

    /// Waits until a call may be made.
    async fn turn(&self, question: &Question) -> impl Sized + '_ {
        let of_unknown = match self.answers.last_good(question) {
            Some(_) => None,
            None => Some(self.turns_of_unknown.acquire().await),
        };
        (of_unknown, self.turns.acquire().await)
    }

    fn remember(&self, question: &Question, answer: &Answer) {
        match answer {
            Answer::Found { text, epoch, origin, session, .. } => {
                self.answers.found(question, text.clone(), *epoch, origin.clone(), *session);
            }
            Answer::NotFound { reason } => {
                self.answers.gone(question);
                if question.kind == Kind::Watcher {
                    self.answers.not_found(&question.name, reason.clone());
                }
            }
            Answer::Refused { .. } => self.answers.gone(question),
            Answer::Unavailable { .. } => {}
        }
    }

    /// The stale fallback: the last good answer, if there is one.
    fn stale(&self, question: &Question, failures: &[Failure]) -> (Answer, &'static str) {
        if failures.iter().all(|failure| matches!(failure, Failure::Outage(_))) {
            self.outage.store(true, Ordering::Relaxed);
        }
        let reason = failures.iter().map(Failure::reason).collect::<Vec<_>>().join("; ");
        let good = self.answers.last_good(question);
        if let Some(held_back) = self.outage_log.pass() {
            let stale = good.is_some();
            tracing::warn!(stream = %question.name, reason, stale, held_back, "no reactor answers a lookup");
        }
        match good {
            Some(good) => {
                let (text, epoch, origin, session) = (good.text, good.epoch, good.origin, good.tag);
                (Answer::Found { text, epoch, origin, session, fresh: false }, "stale")
            }
            None => (Answer::Unavailable { reason: reason.into() }, "unavailable"),
        }
    }
}

/// Why a reply is no answer.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The reactor does not answer, or says that it cannot.
    Outage(String),
    /// The answer cannot be used, or too many other calls are under way.
    BadAnswer(String),
    /// The reactor runs, and rejects this node's calls: a wrong URL or token.
    Rejected(String),
}

impl Failure {
    fn reason(&self) -> &str {
        match self {
            Failure::Outage(reason) | Failure::BadAnswer(reason) | Failure::Rejected(reason) => reason,
        }
    }

    fn map(self, say: impl FnOnce(String) -> String) -> Self {
        match self {
            Failure::Outage(reason) => Failure::Outage(say(reason)),
            Failure::BadAnswer(reason) => Failure::BadAnswer(say(reason)),
            Failure::Rejected(reason) => Failure::Rejected(say(reason)),
        }
    }
}

fn judge(kind: Kind, reply: &Reply, validate: &Validate) -> Result<Answer, Failure> {
    match reply.status.as_u16() {
        200..=299 => {
            let text = std::str::from_utf8(&reply.body)
                .map_err(|error| Failure::BadAnswer(format!("the answer is not UTF-8: {error}")))?;
            validate(text).map_err(|why| {
                Failure::BadAnswer(format!("the answer cannot be used: {}", printable(&why)))
            })?;
            let (epoch, origin) = (header(reply, EPOCH_HEADER), header(reply, ORIGIN_HEADER));
            let session = header(reply, SESSION_HEADER);
            Ok(Answer::Found { text: text.into(), epoch, origin, session, fresh: true })
        }
        404 => Ok(Answer::NotFound { reason: said(reply, "the stream is not known").into() }),
        409 => Ok(Answer::Refused { reason: said(reply, "the name belongs to another publisher").into() }),
        // Not about the publisher, but about this node: a reactor would say the same of each of its publishers, running ones
        // too, which must not end because somebody changed a token.
        400 | 401 | 403 if kind == Kind::Publisher && !is_about_node(reply) => {
            Ok(Answer::Refused { reason: said(reply, "the publisher is not allowed").into() })
        }
        408 | 425 | 429 | 500.. => {
            Err(Failure::Outage(format!("{}: {}", reply.status, said(reply, "no reason"))))
        }
        _ => Err(Failure::Rejected(format!("{}: {}", reply.status, said(reply, "no reason")))),
    }
}

/// Whether a refusal is about the node that asks: it is challenged for its credentials (RFC 9110, section 11.6.1), or an lb
/// reactor says so.
fn is_about_node(reply: &Reply) -> bool {
    reply.headers.contains_key(WWW_AUTHENTICATE) || reply.headers.contains_key(NODE_REFUSED_HEADER)
}

fn header<T: FromStr>(reply: &Reply, name: &str) -> Option<T> {
    reply.headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The reason in the body of a refusal. A plain web server sends none, or a page.
pub(super) fn said(reply: &Reply, otherwise: &str) -> String {
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
    use bytes::Bytes;
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
        match judge(Kind::Watcher, &reply(status, body), &validate) {
            Ok(Answer::Found { .. }) => 'f',
            Ok(Answer::NotFound { .. }) => 'n',
            Ok(Answer::Refused { .. }) => 'r',
            Ok(Answer::Unavailable { .. }) => '?',
            Err(Failure::Outage(_)) => 'o',
            Err(Failure::BadAnswer(_)) => 'a',
            Err(Failure::Rejected(_)) => 'c',
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
    fn a_publisher_is_refused_unless_it_is_the_node_that_is_not_heard() {
        let judged = |header: Option<&'static str>, status| {
            let mut reply = reply(status, br#"{"error":"not you"}"#);
            if let Some(name) = header {
                reply.headers.insert(name, reqwest::header::HeaderValue::from_static("x"));
            }
            judge(Kind::Publisher, &reply, &|_: &str| Ok(()))
        };
        for status in [400, 401, 403] {
            assert_eq!(judged(None, status), Ok(Answer::Refused { reason: "not you".into() }));
            for header in ["www-authenticate", NODE_REFUSED_HEADER] {
                assert!(
                    matches!(judged(Some(header), status), Err(Failure::Rejected(_))),
                    "{header} {status}"
                );
            }
        }
        assert!(matches!(judged(None, 405), Err(Failure::Rejected(_))));
    }

    #[test]
    fn a_reason_is_taken_over_without_what_would_break_a_log_line() {
        assert_eq!(said(&reply(404, br#"{"error":"no\nsuch\u001b[1m"}"#), "-"), "nosuch[1m");
        assert_eq!(said(&reply(404, b"<html>"), "-"), "-");
        assert_eq!(printable(&"x".repeat(1000)).len(), REASON_MAX);
    }
}
