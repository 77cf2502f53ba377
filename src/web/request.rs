//! What handlers see of a request, and how they refuse one.

use super::server::Peer;
use crate::api::{NODE_REFUSED_HEADER, Refusal};
use crate::ids::StreamName;
use bytes::Buf;
use futures::stream::{BoxStream, Stream, StreamExt};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use warp::filters::path::FullPath;
use warp::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

/// How long a body may take to arrive: 4 MiB at 400 kB/s.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// A body beyond its limit is still read up to here, and thrown away: closing a connection on a peer that still
/// sends would take the reply from it.
const DISCARD_MAX: usize = 8 * 1024 * 1024;

/// A body that grows beyond this, bytes, needs one of [`BIG_BODIES`].
const BIG_BODY: usize = 64 * 1024;

/// The big bodies in memory at any time, whatever the number of connections: 256 MiB with the greatest limit.
static BIG_BODIES: Semaphore = Semaphore::const_new(64);

/// One request.
pub(super) struct Request {
    pub method: Method,
    /// As sent: percent-encoded, without the query.
    pub path: String,
    /// As sent; empty where there is none.
    pub query: String,
    pub headers: HeaderMap,
    pub peer: IpAddr,
    known: Arc<AtomicBool>,
    body: BoxStream<'static, Result<bytes::Bytes, warp::Error>>,
}

/// Extracts the whole request, whatever its method and path.
pub(super) fn request() -> impl Filter<Extract = (Request,), Error = Rejection> + Clone {
    warp::method()
        .and(warp::path::full())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Peer>())
        .and(warp::body::stream())
        .map(|method, path: FullPath, query, headers, peer: Peer, body| Request {
            method,
            path: path.as_str().to_owned(),
            query,
            headers,
            peer: peer.address,
            known: peer.known,
            body: chunks(body).boxed(),
        })
}

fn chunks<B: Buf>(
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> impl Stream<Item = Result<bytes::Bytes, warp::Error>> {
    body.map(|chunk| chunk.map(|mut chunk| chunk.copy_to_bytes(chunk.remaining())))
}

impl Request {
    /// The peer is known: it is never given up for a stranger's connection.
    pub fn set_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Refuses other methods than the given one; `GET` stands for `HEAD` too.
    pub fn expect(&self, method: &'static str) -> Result<(), Failure> {
        let fits = self.method == method || (method == "GET" && self.method == Method::HEAD);
        if fits { Ok(()) } else { Err(Failure::method(method)) }
    }

    /// Whether the content type is this one, whatever its parameters.
    pub fn is_of_type(&self, wanted: &str) -> bool {
        let kind = self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()?.split(';').next());
        kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted))
    }

    /// Reads the body as JSON, whatever its content type says.
    pub async fn json<T: DeserializeOwned>(&mut self, limit: usize) -> Result<T, Failure> {
        from_json(&self.timely_body(limit).await?)
    }

    /// Reads the question of a lookup: JSON, or the bare stream name where the body is plain text or the method `PUT`. No
    /// name begins with a brace, so JSON is known also where its content type says something else.
    pub async fn lookup<T: DeserializeOwned + From<StreamName>>(
        &mut self,
        limit: usize,
    ) -> Result<T, Failure> {
        let body = self.timely_body(limit).await?;
        let body = body.trim_ascii();
        let may_be_bare = self.is_of_type("text/plain") || self.method == Method::PUT;
        if !may_be_bare || self.is_of_type("application/json") || body.starts_with(b"{") {
            return from_json(body);
        }
        let name = std::str::from_utf8(body).map_err(|_| not_utf8())?;
        StreamName::parse(name).map(T::from).map_err(|error| Failure::bad(error.to_string()))
    }

    async fn timely_body(&mut self, limit: usize) -> Result<Vec<u8>, Failure> {
        let body = timeout(BODY_DEADLINE, self.body(limit));
        body.await.map_err(|_| {
            Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body took longer than {} s", BODY_DEADLINE.as_secs()),
            )
        })?
    }

    /// Reads the body as text.
    pub async fn text(&mut self, limit: usize) -> Result<String, Failure> {
        let body = self.timely_body(limit).await?;
        String::from_utf8(body).map_err(|_| not_utf8())
    }

    async fn body(&mut self, limit: usize) -> Result<Vec<u8>, Failure> {
        let too_large =
            || Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes"));
        let announced =
            self.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > DISCARD_MAX) {
            return Err(too_large());
        }
        let (mut body, mut length, mut big) = (Vec::new(), 0, None);
        while let Some(chunk) = self.body.next().await {
            let chunk = chunk.map_err(|_| Failure::bad("the body broke off".to_owned()))?;
            length += chunk.len();
            if length > DISCARD_MAX {
                return Err(too_large());
            }
            if length > limit {
                body = Vec::new();
                continue;
            }
            if length > BIG_BODY && big.is_none() {
                big = BIG_BODIES.acquire().await.ok();
            }
            body.extend_from_slice(&chunk);
        }
        if length > limit { Err(too_large()) } else { Ok(body) }
    }
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::bad(format!("the body is not valid: {error}")))
}

fn not_utf8() -> Failure {
    Failure::bad("the body is not UTF-8".to_owned())
}

/// A refused request: a status, and one sentence for people.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: StatusCode,
    error: String,
    retry_after: Option<u64>,
    allow: Option<&'static str>,
    about_node: bool,
}

impl Failure {
    pub fn new(status: StatusCode, error: String) -> Self {
        Failure { status, error, retry_after: None, allow: None, about_node: false }
    }

    /// The request does not say what it should.
    pub fn bad(error: String) -> Self {
        Failure::new(StatusCode::BAD_REQUEST, error)
    }

    /// There is nothing under this path.
    pub fn no_path(path: &str) -> Self {
        // What was asked for could be anything: only so much of it comes back.
        let path: String = path.chars().take(100).collect();
        Failure::new(StatusCode::NOT_FOUND, format!("there is nothing at '{path}'"))
    }

    /// The path exists, but not for this method.
    pub fn method(allow: &'static str) -> Self {
        let error = format!("only {allow} is allowed here");
        Failure { allow: Some(allow), ..Failure::new(StatusCode::METHOD_NOT_ALLOWED, error) }
    }

    /// Says that it is the node that is refused, whatever it asks: see [`NODE_REFUSED_HEADER`].
    pub fn about_node(mut self) -> Self {
        self.about_node = true;
        self
    }

    /// Says when to try again: in whole seconds, at least one.
    pub fn retry_after(mut self, time: Duration) -> Self {
        self.retry_after = Some((time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1));
        self
    }
}

impl Reply for Failure {
    fn into_response(self) -> Response {
        let refusal = warp::reply::json(&Refusal { error: self.error });
        let mut response = warp::reply::with_status(refusal, self.status).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.about_node {
            headers.insert(NODE_REFUSED_HEADER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A reply with a status and no body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = warp::reply().into_response();
    *response.status_mut() = status;
    response
}

/// Undoes percent-encoding (RFC 3986, section 2.1). The names of workflows and streams may hold slashes.
pub(super) fn decoded(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    // The crate leaves what is no escape as it stands; each that is one is two bytes shorter now.
    let escapes = text.matches('%').count();
    (decoded.len() + 2 * escapes == text.len()).then(|| decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn percent_encoding_is_undone_or_refused() {
        assert_eq!(decoded("ingest_live%2Fa/b").as_deref(), Some("ingest_live/a/b"));
        assert_eq!(decoded("%C3%A9").as_deref(), Some("é"));
        for bad in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(decoded(bad), None, "{bad}");
        }
    }
}
