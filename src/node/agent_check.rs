//! Tells HAProxy how much of this node is free (agent-check in its configuration manual): one line a connection, then it is closed.
//!
//! `ready up 73%` is the share of its connections that is free, `drain` that no new ones may come, `down # why` that it is not ready. The
//! truth is that of `/readyz`.

use crate::health::Health;
use crate::telemetry::Metrics;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long one answer may take: the line is shorter than any socket's buffer.
const DEADLINE: Duration = Duration::from_secs(1);

/// A pause after a failed accept, which mostly means that there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// See the module's head.
pub(super) struct AgentCheck {
    pub health: Health,
    pub metrics: Arc<Metrics>,
    /// The most connections of the node.
    pub capacity: usize,
    /// Cancelled when the node begins to drain.
    pub draining: CancellationToken,
}

impl AgentCheck {
    /// Answers until `stop`: one at a time, as each answer is at once.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, _)) => {
                    let line = self.line();
                    if let Ok(Err(error)) | Err(error) =
                        timeout(DEADLINE, answer(socket, &line)).await.map_err(io::Error::from)
                    {
                        tracing::debug!(%error, "an agent-check was not answered");
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no agent-check can be taken");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn line(&self) -> String {
        if self.draining.is_cancelled() {
            return "drain\n".to_owned();
        }
        let taken = usize::try_from(self.metrics.connections.get()).unwrap_or(0);
        line(&self.health.reasons(), taken, self.capacity)
    }
}

async fn answer(mut socket: TcpStream, line: &str) -> io::Result<()> {
    socket.write_all(line.as_bytes()).await?;
    socket.shutdown().await
}

fn line(reasons: &[String], taken: usize, capacity: usize) -> String {
    if !reasons.is_empty() {
        let why: String = reasons.join("; ").chars().filter(|c| !c.is_control()).take(100).collect();
        return format!("down # {why}\n");
    }
    let free = 100 * capacity.saturating_sub(taken) / capacity.max(1);
    // No weight at all would be a drain.
    format!("ready up {}%\n", free.clamp(1, 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_what_is_free_and_why_it_is_not_ready() {
        assert_eq!(line(&[], 0, 1000), "ready up 100%\n");
        assert_eq!(line(&[], 270, 1000), "ready up 73%\n");
        assert_eq!(line(&[], 5000, 1000), "ready up 1%\n");
        assert_eq!(line(&[], 0, 0), "ready up 1%\n");
        assert_eq!(line(&["reactor: no\nanswer".to_owned()], 0, 10), "down # reactor: noanswer\n");
    }
}
