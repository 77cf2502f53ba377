//! Tells a web server that what it allowed is over.

use super::web::{Web, shown};
use crate::telemetry::Seldom;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// Notices that wait to be sent; beyond that they are lost, counted and logged.
const NOTICES: usize = 1024;

/// The way to the web server.
#[derive(Debug)]
pub(super) struct Notices {
    queue: mpsc::Sender<Vec<u8>>,
    _sending: AbortOnDropHandle<()>,
}

impl Notices {
    pub fn start(url: Url, web: Arc<dyn Web>, deadline: Duration) -> Self {
        let (queue, waiting) = mpsc::channel(NOTICES);
        let sending = tokio::spawn(send(waiting, url, web, deadline));
        Notices { queue, _sending: AbortOnDropHandle::new(sending) }
    }

    /// What sends a body when it is dropped.
    pub fn when_over(&self, body: Vec<u8>) -> Notice {
        Notice { body, notices: self.queue.clone() }
    }
}

/// Tells the web server, when it is dropped, that what it allowed is over.
pub struct Notice {
    body: Vec<u8>,
    notices: mpsc::Sender<Vec<u8>>,
}

impl std::fmt::Debug for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notice")
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        static LOST: Seldom = Seldom::new(Duration::from_secs(5));
        if self.notices.try_send(std::mem::take(&mut self.body)).is_err()
            && let Some(held_back) = LOST.pass()
        {
            tracing::warn!(
                held_back,
                "the authorisation service is not told that a session ended: too many wait"
            );
        }
    }
}

async fn send(mut waiting: mpsc::Receiver<Vec<u8>>, url: Url, web: Arc<dyn Web>, deadline: Duration) {
    static FAILED: Seldom = Seldom::new(Duration::from_secs(5));
    while let Some(body) = waiting.recv().await {
        let told = timeout(deadline, web.post(&url, body)).await;
        if !matches!(told, Ok(Ok(_)))
            && let Some(held_back) = FAILED.pass()
        {
            tracing::warn!(
                url = shown(&url),
                held_back,
                "the authorisation service could not be told that a session ended"
            );
        }
    }
}
