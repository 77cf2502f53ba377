//! Where a pump and a viewer's task meet: the types of the hand-over that the head of [`crate::relay`] describes.

use super::ring::Mark;
use bytes::Bytes;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::Notify;

/// Something that takes bytes now or would block: a socket.
pub trait Sink: Send + Sync + Debug {
    /// Writes what it can take at once. [`io::ErrorKind::WouldBlock`]: nothing.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// The same for several pieces.
    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Sends what it has taken and not sent yet. [`io::ErrorKind::WouldBlock`]: some of it is left. A socket keeps nothing back;
    /// TLS does.
    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }
    /// Ready when a write may succeed again. Only the viewer's own task asks.
    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// A viewer at the live edge, as its pump holds it. A pump's members lie side by side in memory, and a write touches
/// nothing but this and the sink: anything else has left the processor's caches since the last flush.
#[derive(Debug)]
pub(super) struct Member {
    pub sink: Arc<dyn Sink>,
    pub seat: Arc<Seat>,
}

/// Where a pump leaves a viewer's hand-over, and wakes the viewer's task.
#[derive(Debug, Default)]
pub(super) struct Seat {
    handed: Mutex<Option<Handover>>,
    wake: Notify,
}

/// What a pump says when it hands a viewer back. It does not write to the viewer's socket any more.
#[derive(Debug)]
pub(super) enum Handover {
    /// Everything before `at` was written but for `unsent`, the part of a message that the socket did not take.
    Behind { unsent: Bytes, at: Mark },
    /// The socket is gone.
    Gone(io::Error),
    /// The stream ended, and everything of it was written.
    Ended,
}

impl Handover {
    /// At the end of a block, with nothing left over.
    pub fn at(at: Mark) -> Self {
        Handover::Behind { unsent: Bytes::new(), at }
    }
}

impl Seat {
    /// Waits for the hand-over. Safe to drop and call again. One caller only.
    pub async fn handed(&self) -> Handover {
        loop {
            if let Some(handover) = self.handed.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return handover;
            }
            self.wake.notified().await;
        }
    }

    pub fn hand(&self, handover: Handover) {
        *self.handed.lock().unwrap_or_else(PoisonError::into_inner) = Some(handover);
        self.wake.notify_one();
    }
}
