//! Which reactor is asked first: those that work, in their configured order, then those that failed just now.

use super::urls::{Urls, shown};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

/// How long a URL that failed stands behind the others. Long enough that an outage costs its deadline now and then
/// and not on each call, short enough that the preferred reactor is back in use soon.
const FAILED_FOR: Duration = Duration::from_secs(5);

/// How long a web server that is no reactor (404 or 405 where a reactor has an endpoint) is left alone before it is
/// tried again.
pub const PLAIN_SERVER_RETRY: Duration = Duration::from_secs(60);

/// The URLs of one service with what is known of their health.
#[derive(Debug)]
pub(super) struct Targets(Vec<Target>);

/// One URL and its health.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) url: Url,
    standing: Mutex<Standing>,
}

#[derive(Debug, Clone, Copy)]
enum Standing {
    Untried,
    Works,
    /// Asked after the others until then.
    FailedUntil(Instant),
    /// A web server without the endpoint: not asked until then.
    PlainUntil(Instant),
}

impl Targets {
    pub(super) fn new(urls: &Urls) -> Self {
        Targets(
            urls.as_slice()
                .iter()
                .map(|url| Target { url: url.clone(), standing: Mutex::new(Standing::Untried) })
                .collect(),
        )
    }

    /// The targets to ask, first things first. Empty if all are plain web servers that were asked not long ago.
    pub(super) fn in_order(&self) -> Vec<&Target> {
        let now = Instant::now();
        let mut ranked: Vec<(bool, &Target)> = Vec::with_capacity(self.0.len());
        for target in &self.0 {
            match target.standing() {
                Standing::PlainUntil(until) if until > now => {}
                Standing::FailedUntil(until) if until > now => ranked.push((true, target)),
                _ => ranked.push((false, target)),
            }
        }
        // The sort is stable: the configured order holds within each rank.
        ranked.sort_by_key(|(failed, _)| *failed);
        ranked.into_iter().map(|(_, target)| target).collect()
    }
}

impl Target {
    /// The URL as it may be logged.
    pub(super) fn name(&self) -> String {
        shown(&self.url)
    }

    pub(super) fn works(&self) {
        self.set(Standing::Works);
    }

    pub(super) fn failed(&self) {
        self.set(Standing::FailedUntil(Instant::now() + FAILED_FOR));
    }

    /// The server answered that it has no such endpoint. Says whether that is news.
    pub(super) fn plain(&self) -> bool {
        let news = !matches!(self.standing(), Standing::PlainUntil(_));
        self.set(Standing::PlainUntil(Instant::now() + PLAIN_SERVER_RETRY));
        news
    }

    fn standing(&self) -> Standing {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(targets: &Targets) -> String {
        targets.in_order().iter().filter_map(|t| t.url.host_str()).collect::<Vec<_>>().join(" ")
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_url_stands_behind_for_a_while() {
        let targets = Targets::new(&"http://a,http://b,http://c".parse().unwrap());
        assert_eq!(order(&targets), "a b c");
        targets.0[0].failed();
        assert_eq!(order(&targets), "b c a");
        targets.0[1].failed();
        assert_eq!(order(&targets), "c a b");
        targets.0[0].works();
        assert_eq!(order(&targets), "a c b");
        tokio::time::advance(FAILED_FOR).await;
        assert_eq!(order(&targets), "a b c");
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_web_server_is_left_alone_for_a_minute_and_is_news_once() {
        let targets = Targets::new(&"http://a,http://b".parse().unwrap());
        assert!(targets.0[0].plain());
        assert_eq!(order(&targets), "b");
        tokio::time::advance(PLAIN_SERVER_RETRY).await;
        assert_eq!(order(&targets), "a b");
        assert!(!targets.0[0].plain());
        targets.0[0].works();
        assert!(targets.0[0].plain());
    }
}
