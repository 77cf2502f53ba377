//! How a process ends.

use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the end of what remains may take after the drain: the workflows, the ffmpeg processes, the HTTP servers.
pub(super) const LAST_STEPS: Duration = Duration::from_secs(3);

/// The stages of a process' end, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    /// An operator asks for it.
    pub asked: CancellationToken,
    /// Nobody new is taken; heartbeats and the agent-check say so.
    pub draining: CancellationToken,
    /// The HTTP servers end, last.
    pub servers: CancellationToken,
}
