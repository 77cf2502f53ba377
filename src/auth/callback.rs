//! `--auth-url`: a web server decides, and hears when what it allowed is over.

use super::grant::{Denied, Grant, Opinion};
use super::notice::{Notice, Notices};
use super::request::{Action, Request};
use super::web::{Web, shown};
use crate::ids::{Identity, NodeId, SessionId, StreamName};
use crate::telemetry::Seldom;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use url::Url;

/// How long an answer may take, its turn included: a publisher waits for it.
const DEADLINE: Duration = Duration::from_secs(2);

/// Questions under way at a time, so that a herd opens no thousands of connections.
const CALLS_MAX: usize = 64;

/// Answers that are remembered, some 200 bytes each.
const CACHED_MAX: u64 = 10_000;

/// The longest that an answer is remembered, whatever it says.
const CACHE_TIME_MAX: Duration = Duration::from_secs(3600);

/// The longest text that is taken over from a refusal, in characters.
const TEXT_MAX: usize = 200;

/// What the web server is asked or told, as JSON.
#[derive(Debug, Serialize)]
struct Question<'a> {
    /// `publish` or `play`; as a notice `unpublish` or `stop`.
    action: &'static str,
    app: &'a str,
    /// The stream key as the peer sent it, without its query.
    name: &'a str,
    query: &'a str,
    peer: IpAddr,
    node: &'a NodeId,
    session: SessionId,
}

/// What an answer may say, as JSON; all of it may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// The public name, where the key is not the name.
    pub name: Option<StreamName>,
    /// Who it is.
    pub sub: Option<String>,
    /// For how many seconds the answer holds for the same question.
    #[serde(default)]
    pub cache_s: u64,
}

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, with this.
    Allowed(Answer),
    /// No, for this reason.
    Refused(String),
    /// It cannot be told.
    Outage(&'static str),
}

/// Understands an answer.
pub fn judge(status: u16, body: &[u8]) -> Verdict {
    match status {
        200..=299 if body.trim_ascii().is_empty() => Verdict::Allowed(Answer::default()),
        200..=299 => match serde_json::from_slice(body) {
            Ok(answer) => Verdict::Allowed(answer),
            // A page or a word: the status alone decides.
            Err(_) if !body.trim_ascii_start().starts_with(b"{") => Verdict::Allowed(Answer::default()),
            Err(_) => Verdict::Outage("the answer of the authorisation service cannot be read"),
        },
        401 | 403 => {
            let text: String =
                String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
            let text = text.trim();
            // Pages are for browsers.
            let usable = !text.is_empty() && !text.starts_with(['<', '{']);
            Verdict::Refused(if usable { text.to_owned() } else { "not allowed".to_owned() })
        }
        _ => Verdict::Outage("the authorisation service does not answer as it should"),
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Callback {
    url: Url,
    web: Arc<dyn Web>,
    node: NodeId,
    /// An outage allows instead of refusing.
    outage_allows: bool,
    turns: Semaphore,
    cached: Cache<[u8; 32], (Verdict, Instant)>,
    notices: Notices,
}

impl Callback {
    pub fn start(url: Url, web: Arc<dyn Web>, node: NodeId, outage_allows: bool) -> Self {
        let notices = Notices::start(url.clone(), web.clone(), DEADLINE);
        let cached = Cache::builder().max_capacity(CACHED_MAX).time_to_live(CACHE_TIME_MAX).build();
        let turns = Semaphore::new(CALLS_MAX);
        Callback { url, web, node, outage_allows, turns, cached, notices }
    }

    pub async fn ask(&self, request: &Request) -> Opinion {
        match self.verdict(request).await {
            Verdict::Allowed(answer) => self.granted(request, answer),
            Verdict::Refused(text) => Opinion::Denied(Denied::new(text)),
            Verdict::Outage(what) => self.outage(request, what),
        }
    }

    async fn verdict(&self, request: &Request) -> Verdict {
        let key = digest(request);
        if let Some((verdict, _)) = self.cached.get(&key).filter(|(_, until)| *until > Instant::now()) {
            return verdict;
        }
        let body = self.body(request, request.action.name());
        let asked = timeout(DEADLINE, async {
            let _turn = self.turns.acquire().await.ok()?;
            self.web.post(&self.url, body).await.ok()
        });
        let Ok(Some(fetched)) = asked.await else {
            return Verdict::Outage("the authorisation service does not answer");
        };
        let verdict = judge(fetched.status, &fetched.body);
        if let Verdict::Allowed(Answer { cache_s: seconds @ 1.., .. }) = verdict {
            let until = Instant::now() + Duration::from_secs(seconds).min(CACHE_TIME_MAX);
            self.cached.insert(key, (verdict.clone(), until));
        }
        verdict
    }

    fn granted(&self, request: &Request, answer: Answer) -> Opinion {
        let name = answer.name.map_or_else(|| StreamName::parse(&request.key), Ok);
        match name {
            Ok(name) => Opinion::Granted(Grant {
                identity: answer.sub.as_deref().map(|sub| Identity::of("sub", sub)),
                _notice: Some(self.notice(request)),
                ..Grant::of(name)
            }),
            Err(error) => Opinion::Denied(Denied { reason: "stream_name", text: error.to_string() }),
        }
    }

    fn outage(&self, request: &Request, what: &'static str) -> Opinion {
        static OUTAGE: Seldom = Seldom::new(Duration::from_secs(5));
        if let Some(held_back) = OUTAGE.pass() {
            let allowed = self.outage_allows;
            tracing::warn!(url = shown(&self.url), allowed, held_back, "{what}");
        }
        match self.outage_allows {
            true => self.granted(request, Answer::default()),
            false => Opinion::Denied(Denied::outage(format!("{what}, try again"))),
        }
    }

    fn body(&self, request: &Request, action: &'static str) -> Vec<u8> {
        let question = Question {
            action,
            app: &request.app,
            name: &request.key,
            query: request.query.as_deref().unwrap_or_default(),
            peer: request.peer,
            node: &self.node,
            session: request.session,
        };
        serde_json::to_vec(&question).unwrap_or_default()
    }

    fn notice(&self, request: &Request) -> Notice {
        let over = match request.action {
            Action::Publish => "unpublish",
            Action::Play => "stop",
        };
        self.notices.when_over(self.body(request, over))
    }
}

/// What the answer is remembered by.
fn digest(request: &Request) -> [u8; 32] {
    let mut digest = Sha256::new();
    let query = request.query.as_deref().unwrap_or_default();
    for part in [request.action.name(), &request.app, &request.key, query, &request.peer.to_string()] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_status_decides_and_a_body_may_say_more() {
        let allowed = |answer| Verdict::Allowed(answer);
        assert_eq!(judge(204, b""), allowed(Answer::default()));
        assert_eq!(judge(200, b"OK\n"), allowed(Answer::default()));
        let answer = Answer { name: "show".parse().ok(), sub: Some("bob".to_owned()), cache_s: 9 };
        assert_eq!(judge(200, br#"{"name":"show","sub":"bob","cache_s":9,"more":1}"#), allowed(answer));
        for bad in [&br#"{"name":"a b"}"#[..], br#"{"cache_s":-1}"#, b"{"] {
            assert!(matches!(judge(200, bad), Verdict::Outage(_)), "a name that cannot be read is no leave");
        }
        assert_eq!(judge(403, b"not\x1b[1m today\r\n"), Verdict::Refused("not[1m today".to_owned()));
        assert_eq!(judge(401, b"<html>"), Verdict::Refused("not allowed".to_owned()));
        for status in [100, 301, 400, 404, 429, 500, 503] {
            assert!(matches!(judge(status, b""), Verdict::Outage(_)), "{status}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_understood(status in 0..700u16, body in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Verdict::Refused(text) = judge(status, &body) {
                prop_assert!(!text.is_empty() && !text.chars().any(char::is_control));
            }
        }
    }
}
