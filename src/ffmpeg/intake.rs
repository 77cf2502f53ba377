//! What ffmpeg writes to a pipe, as a feed.

use super::process::{EndReason, Said, Settings, read_some};
use crate::ids::SessionId;
use crate::media::flv;
use crate::relay::{Feed, Feeds, PullEvent};
use crate::telemetry::Metrics;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::ChildStdout;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The size of a Linux pipe.
const READ_SIZE: usize = 64 * 1024;

/// After its output has ended, ffmpeg may still say why, for so long.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Nobody wants the feed any more.
pub(super) struct Unwanted;

/// Where what ffmpeg writes goes.
pub(super) struct Intake<'a> {
    pub settings: &'a Settings,
    pub feeds: &'a Arc<Feeds>,
    pub metrics: &'a Metrics,
    /// Who is told of the feed.
    pub events: &'a mpsc::Sender<PullEvent>,
    /// The publish that it comes from, if that is one on this node.
    pub session: Option<SessionId>,
}

impl Intake<'_> {
    /// Passes on what ffmpeg writes, until it closes its output (`None`) or has to be ended.
    pub async fn read(
        &self,
        mut stdout: ChildStdout,
        said: &mut Said,
        media_since: &mut Option<Instant>,
    ) -> Result<Option<EndReason>, Unwanted> {
        let Intake { settings, feeds, .. } = self;
        let stall = settings.stall;
        let mut feed: Option<Feed> = None;
        let holder = feeds.budget().holder();
        let mut reader = flv::Reader::new(settings.tag_limit);
        let mut buffer = vec![0; READ_SIZE];
        let stalled = tokio::time::sleep(stall);
        tokio::pin!(stalled);
        loop {
            let read = tokio::select! {
                read = read_some(&mut stdout, &mut buffer) => read,
                () = said.log_next() => continue,
                () = &mut stalled => return Ok(Some(EndReason::Stalled(stall))),
                () = holder.evicted() => {
                    self.metrics.refused("memory");
                    return Ok(Some(EndReason::Evicted));
                }
            };
            let mut input = match read {
                Ok([]) => break,
                Ok(input) => input,
                Err(error) => return Ok(Some(EndReason::Read(error))),
            };
            let mut packets = Vec::new();
            let error = loop {
                match reader.read(&mut input) {
                    Ok(Some(packet)) => packets.push(packet),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            if !packets.is_empty() {
                let feed = match &mut feed {
                    Some(feed) => feed,
                    none => {
                        *media_since = Some(Instant::now());
                        let feed = feeds.begin_for(None, self.session, holder.clone());
                        self.tell(PullEvent::Began(feed.reference())).await?;
                        feed.wait_attached().await;
                        none.insert(feed)
                    }
                };
                feed.push(&packets);
            }
            if let Some(error) = error {
                return Ok(Some(EndReason::Flv(error)));
            }
            stalled.as_mut().reset(Instant::now() + stall);
        }
        let last_words = async {
            while said.pipe.is_some() {
                said.log_next().await;
            }
        };
        // Too late is no error: a process that outlives its output is killed next.
        tokio::time::timeout(LAST_WORDS, last_words).await.ok();
        Ok(None)
    }

    async fn tell(&self, event: PullEvent) -> Result<(), Unwanted> {
        self.events.send(event).await.map_err(|_| Unwanted)
    }
}
