//! One pool of HTTP connections to reactors, with a deadline for each call and a cap on what is read.

use super::error::Error;
use super::urls::shown;
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Request, Response, StatusCode, redirect};
use rustls::ClientConfig;
use std::error::Error as _;
use std::fmt;
use std::sync::Once;
use std::time::Duration;
use tokio::time::timeout;
use url::Url;

/// The longest a connection to a reactor may take to open. Half of the call's deadline, so that a name with a dead and a
/// live address still gets its answer.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// The longest a call may take, from resolving the name to the last byte of the answer. A viewer waits for it.
pub const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// The longest answer that is read, in bytes. A workflow is a few hundred; the reply to a heartbeat that names 500 streams
/// with the longest names is a fifth of this.
pub const BODY_MAX: usize = 1024 * 1024;

/// The most redirects that one call follows.
pub const REDIRECTS_MAX: usize = 3;

/// Idle connections kept for each reactor. One is enough at rest; a herd of viewers leaves some more.
const IDLE_CONNECTIONS: usize = 8;

/// How long an idle connection is kept. Longer than a heartbeat's interval, so that heartbeats keep one open.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// Makes `ring` the process's TLS crypto provider, once. A provider that is installed already stays.
pub fn install_crypto_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The error is that somebody else installed one before, which serves as well.
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("a TLS crypto provider was installed before");
        }
    });
}

/// A pool of connections. Cheap to clone; clones share the connections.
///
/// Environment variables for proxies are not followed: a reactor records the address that a call comes from.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    token: Option<HeaderValue>,
}

/// A complete answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most [`BODY_MAX`] bytes.
    pub body: Bytes,
}

impl Http {
    /// A pool that sends no token. It trusts the roots of the host and those built in; a host may have none.
    pub fn new() -> Result<Self, Error> {
        install_crypto_provider();
        let built = builder().build().or_else(|error| {
            // A host whose certificate files are all broken must not keep a node from starting.
            tracing::warn!(error = cause(&error), "the host's root certificates are not used");
            builder().tls_built_in_native_certs(false).build()
        });
        let client = built.map_err(|error| Error::Client(cause(&error)))?;
        Ok(Http { client, token: None })
    }

    /// A pool that sends no token and believes whom `tls` does.
    pub fn believing(tls: ClientConfig) -> Result<Self, Error> {
        install_crypto_provider();
        let client = builder().use_preconfigured_tls(tls).build();
        Ok(Http { client: client.map_err(|error| Error::Client(cause(&error)))?, token: None })
    }

    /// The same connections, with a bearer token on each call. Meant for reactors only: web servers that a config
    /// names are not to see it. A URL with a user name keeps its own authorization.
    pub fn with_token(&self, token: &str) -> Result<Self, Error> {
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Token);
        }
        let mut token = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| Error::Token)?;
        token.set_sensitive(true);
        Ok(Http { client: self.client.clone(), token: Some(token) })
    }

    /// Sends a call, with a JSON body if there is one, and reads the whole answer within [`CALL_DEADLINE`].
    pub(super) async fn call(&self, method: Method, url: &Url, json: Option<Bytes>) -> Result<Reply, Error> {
        let exchange = async {
            let response = self.send(method, url, json).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok(Reply { status, headers, body: read(response, url).await? })
        };
        timeout(CALL_DEADLINE, exchange).await.unwrap_or_else(|_| Err(deadline(url)))
    }

    /// Asks for an endless answer; its head must come within [`CALL_DEADLINE`].
    pub(super) async fn open(&self, url: &Url) -> Result<Response, Error> {
        let head = self.send(Method::GET, url, None);
        timeout(CALL_DEADLINE, head).await.unwrap_or_else(|_| Err(deadline(url)))
    }

    /// Sends a request and waits for the head of the answer.
    async fn send(&self, method: Method, url: &Url, json: Option<Bytes>) -> Result<Response, Error> {
        let request = || {
            let mut request = self.client.request(method.clone(), url.clone());
            if let Some(json) = json.clone() {
                request = request.header(CONTENT_TYPE, "application/json").body(json);
            } else if method == Method::GET {
                request = request.header(ACCEPT, "text/event-stream");
            }
            let mut request: Request = request.build()?;
            if let Some(token) = &self.token {
                request.headers_mut().entry(AUTHORIZATION).or_insert_with(|| token.clone());
            }
            Ok(request)
        };
        let failed = |error: reqwest::Error| Error::Transport { url: shown(url), why: cause(&error) };
        match self.client.execute(request().map_err(failed)?).await {
            // A kept connection may have died with the reactor's last run. All calls may be repeated, so one more try on
            // a fresh connection tells whether this run is well.
            Err(error) if error.is_request() && !error.is_connect() && !error.is_timeout() => {
                self.client.execute(request().map_err(failed)?).await.map_err(failed)
            }
            other => other.map_err(failed),
        }
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("token", &self.token.as_ref().map(|_| "redacted")).finish()
    }
}

fn builder() -> reqwest::ClientBuilder {
    // 301 to 303 turn a POST into a GET, whose 404 would not be an answer to what was asked: not followed.
    let redirects = redirect::Policy::custom(|attempt| {
        let same_method = matches!(attempt.status().as_u16(), 307 | 308);
        if same_method && attempt.previous().len() <= REDIRECTS_MAX {
            attempt.follow()
        } else {
            attempt.stop()
        }
    });
    reqwest::Client::builder()
        .user_agent(concat!("lb/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_DEADLINE)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_FOR)
        .redirect(redirects)
        .referer(false)
        .no_proxy()
}

fn deadline(url: &Url) -> Error {
    Error::Deadline { url: shown(url), within: CALL_DEADLINE }
}

async fn read(mut response: Response, url: &Url) -> Result<Bytes, Error> {
    let too_long = || Error::TooLong { url: shown(url), most: BODY_MAX };
    if response.content_length().is_some_and(|length| length > BODY_MAX as u64) {
        return Err(too_long());
    }
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > BODY_MAX => return Err(too_long()),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(error) => {
                return Err(Error::Transport { url: shown(url), why: cause(&error) });
            }
        }
    }
}

/// The innermost cause of an error: the outer ones repeat the URL, with whatever secrets it has.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let Some(mut inner) = error.source() else {
        return if error.is_timeout() { "timed out".to_owned() } else { "the request failed".to_owned() };
    };
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Urls;

    #[test]
    fn a_token_is_never_shown() {
        let http = Http::new().unwrap();
        assert_eq!(format!("{http:?}"), "Http { token: None }");
        let http = http.with_token("s3cret").unwrap();
        assert_eq!(format!("{http:?}"), "Http { token: Some(\"redacted\") }");
    }

    #[test]
    fn a_token_that_cannot_stand_in_a_header_is_refused() {
        let http = Http::new().unwrap();
        for bad in ["", "a b", "a\nb", "é"] {
            assert_eq!(http.with_token(bad).err(), Some(Error::Token), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn an_error_names_the_place_without_secrets() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let urls: Urls = format!("http://u:s3cret@{closed}/x?key=s3cret").parse().unwrap();
        let error = Http::new().unwrap().call(Method::GET, &urls.as_slice()[0], None).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("http://{closed}/x: Connection refused")), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}
