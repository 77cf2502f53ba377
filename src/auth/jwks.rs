//! Keys for tokens that are published at a URL: fetched at the start, again from time to time, and when a token names a key
//! that is not known yet. While the URL does not answer, the keys from before stay in force.

use super::jwt::Keys;
use super::web::Web;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// How often the keys are fetched.
const INTERVAL: Duration = Duration::from_secs(300);

/// How soon they are fetched again when a token names an unknown key, or when they could not be fetched. Tokens are made up
/// easily, so this is also the most that strangers can make of it.
const SOON: Duration = Duration::from_secs(5);

/// How long a token with an unknown key waits for the next fetch.
const WAIT: Duration = Duration::from_secs(2);

/// See the module's head.
#[derive(Debug)]
pub(super) struct Jwks {
    keys: Arc<RwLock<Arc<Keys>>>,
    wanted: Arc<Notify>,
    fetched: watch::Receiver<u64>,
    _fetching: AbortOnDropHandle<()>,
}

impl Jwks {
    pub fn start(url: Url, web: Arc<dyn Web>) -> Self {
        let (keys, wanted) = (Arc::default(), Arc::new(Notify::new()));
        let (told, fetched) = watch::channel(0);
        let fetching = fetch(url, web, Arc::clone(&keys), wanted.clone(), told);
        Jwks { keys, wanted, fetched, _fetching: AbortOnDropHandle::new(tokio::spawn(fetching)) }
    }

    /// The keys as they are known.
    pub fn get(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys after another fetch, if there is one soon.
    pub async fn refreshed(&self) -> Arc<Keys> {
        let mut fetched = self.fetched.clone();
        fetched.mark_unchanged();
        self.wanted.notify_one();
        drop(tokio::time::timeout(WAIT, fetched.changed()).await);
        self.get()
    }
}

async fn fetch(
    url: Url,
    web: Arc<dyn Web>,
    keys: Arc<RwLock<Arc<Keys>>>,
    wanted: Arc<Notify>,
    told: watch::Sender<u64>,
) {
    loop {
        let fetched = match web.get(&url).await {
            Ok(fetched) if fetched.status == 200 => Keys::parse(&String::from_utf8_lossy(&fetched.body)),
            Ok(fetched) => Err(format!("the status is {}", fetched.status)),
            Err(error) => Err(error),
        };
        let failed = fetched.is_err();
        match fetched {
            Ok(new) => *keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new),
            Err(error) => tracing::warn!(
                "the keys for tokens cannot be fetched: {error}; those from before stay in force"
            ),
        }
        told.send_modify(|count| *count += 1);
        tokio::time::sleep(SOON).await;
        if !failed {
            drop(tokio::time::timeout(INTERVAL, wanted.notified()).await);
        }
    }
}
