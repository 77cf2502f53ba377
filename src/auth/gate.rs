//! All authorities of a node, asked in their order.

use super::callback::Callback;
use super::grant::{Denied, Grant, Opinion};
use super::jwks::Jwks;
use super::jwt::Keys;
use super::key_file::KeyFile;
use super::request::{Action, Request};
use super::web::Web;
use crate::ids::{NodeId, StreamName};
use crate::reread::{self, Reread};
use std::path::PathBuf;
use std::sync::Arc;
use url::Url;

/// Where keys for tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file, read again when it changes.
    File(PathBuf),
    /// A URL with a JWK set.
    Url(Url),
}

impl std::str::FromStr for KeySource {
    type Err = std::convert::Infallible;

    /// What begins with `http://` or `https://` is a URL.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_url = text.starts_with("http://") || text.starts_with("https://");
        let url = is_url.then(|| text.parse().ok()).flatten();
        Ok(url.map_or_else(|| KeySource::File(text.into()), KeySource::Url))
    }
}

/// Which authorities there are.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Tokens are checked with these keys.
    pub jwt_keys: Option<KeySource>,
    /// A web server decides.
    pub url: Option<Url>,
    /// A file maps keys to names.
    pub file: Option<PathBuf>,
    /// While the web server does not answer, everybody may.
    pub outage_allows: bool,
    /// A session ends when its token does.
    pub close_on_expiry: bool,
}

impl Settings {
    /// Reads the files once, to find mistakes before anything runs. The error names the file.
    pub fn check(&self) -> Result<(), String> {
        if let Some(KeySource::File(file)) = &self.jwt_keys {
            reread::read(&[file], whole(Keys::parse))?;
        }
        if let Some(file) = &self.file {
            reread::read(&[file], whole(KeyFile::parse))?;
        }
        Ok(())
    }
}

/// The reader of one file.
fn whole<T>(parse: fn(&str) -> Result<T, String>) -> impl Fn(&[Vec<u8>]) -> Result<T, String> {
    move |contents| parse(reread::text(contents.first().map(Vec::as_slice).unwrap_or_default())?)
}

/// The door: all authorities of a node. Without any, everybody may do everything, and a key is a name.
#[derive(Debug, Default)]
pub struct Gate {
    tokens: Option<Tokens>,
    callback: Option<Callback>,
    file: Option<Reread<KeyFile>>,
    close_on_expiry: bool,
}

#[derive(Debug)]
enum Tokens {
    File(Reread<Keys>),
    Url(Jwks),
}

impl Gate {
    /// A door that is open.
    pub fn open() -> Arc<Self> {
        Arc::default()
    }

    /// The authorities of a node, with the tasks that keep them fresh. They end when the gate is dropped.
    ///
    /// Errors: see [`Settings::check`].
    pub fn start(settings: &Settings, web: Arc<dyn Web>, node: &NodeId) -> Result<Arc<Self>, String> {
        let tokens = match &settings.jwt_keys {
            None => None,
            Some(KeySource::File(file)) => Some(Tokens::File(Reread::start(&[file], whole(Keys::parse))?)),
            Some(KeySource::Url(url)) => Some(Tokens::Url(Jwks::start(url.clone(), web.clone()))),
        };
        let allows = settings.outage_allows;
        let callback =
            settings.url.clone().map(|url| Callback::start(url, web.clone(), node.clone(), allows));
        let file =
            settings.file.as_deref().map(|file| Reread::start(&[file], whole(KeyFile::parse))).transpose()?;
        Ok(Arc::new(Gate { tokens, callback, file, close_on_expiry: settings.close_on_expiry }))
    }

    /// Whether anybody may do this: no authority decides about it.
    pub fn is_open(&self, action: Action) -> bool {
        let by_file = self.file.is_some() && action == Action::Publish;
        self.tokens.is_none() && self.callback.is_none() && !by_file
    }

    /// Asks whether somebody may do what they want: the first authority that says yes decides. If none does, the first
    /// refusal is the answer.
    pub async fn ask(&self, request: &Request) -> Result<Grant, Denied> {
        if self.is_open(request.action) {
            return StreamName::parse(&request.key).map(Grant::of).map_err(Denied::from);
        }
        let mut refused = None;
        for authority in 0..3 {
            let opinion = match authority {
                0 => self.by_token(request).await,
                1 => self.by_callback(request).await,
                _ => self.file.as_ref().map_or(Opinion::None, |file| file.get().ask(request)),
            };
            match opinion {
                Opinion::Granted(mut grant) => {
                    grant.until = grant.until.filter(|_| self.close_on_expiry);
                    return Ok(grant);
                }
                Opinion::Denied(denied) => drop(refused.get_or_insert(denied)),
                Opinion::None => {}
            }
        }
        Err(refused.unwrap_or_else(|| Denied::new("a token is needed")))
    }

    async fn by_token(&self, request: &Request) -> Opinion {
        match &self.tokens {
            None => Opinion::None,
            Some(Tokens::File(keys)) => keys.get().ask(request),
            Some(Tokens::Url(jwks)) => {
                let mut keys = jwks.get();
                if keys.lacks(request) {
                    keys = jwks.refreshed().await;
                }
                keys.ask(request)
            }
        }
    }

    async fn by_callback(&self, request: &Request) -> Opinion {
        match &self.callback {
            None => Opinion::None,
            Some(callback) => callback.ask(request).await,
        }
    }
}
