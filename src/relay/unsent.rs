//! What a viewer's socket has not taken yet.

use super::ring::Block;
use super::seat::Sink;
use bytes::Bytes;
use smallvec::SmallVec;
use std::io::{self, IoSlice};
use std::time::Instant;

/// The most pieces that one write hands to the kernel, and so the most blocks a slow viewer holds at a time.
pub(super) const PIECES: usize = 64;

/// Bytes that are written before any block: replies, headers, and what the socket did not take of a block.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    pieces: SmallVec<[Bytes; 2]>,
    /// Since when the socket would block; none while it takes bytes.
    pub blocked: Option<Instant>,
}

/// What a write did.
pub(super) struct Written {
    pub bytes: usize,
    /// How many of the blocks were begun. What the socket did not take of one that was begun is unsent now; the others are
    /// given up again, so that a slow viewer holds no memory.
    pub begun: usize,
}

impl Unsent {
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.pieces.push(bytes);
        }
    }

    /// Whether everything is sent, so that a message may begin.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// How many blocks one write may add.
    pub fn room(&self) -> usize {
        PIECES.saturating_sub(self.pieces.len())
    }

    /// Writes what is unsent and then blocks, as far as the socket takes them at once.
    pub fn write(&mut self, sink: &dyn Sink, blocks: &[Block]) -> io::Result<Written> {
        // A block is empty where a viewer wants nothing of it.
        let wires = blocks.iter().map(|block| &block.wire).filter(|wire| !wire.is_empty());
        let pieces: SmallVec<[IoSlice<'_>; PIECES]> =
            self.pieces.iter().chain(wires).take(PIECES).map(|piece| IoSlice::new(piece)).collect();
        if pieces.is_empty() {
            return Ok(Written { bytes: 0, begun: blocks.len() });
        }
        let bytes = sink.try_write_vectored(&pieces)?;
        drop(pieces);
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.blocked = None;
        let mut written = bytes;
        for piece in std::mem::take(&mut self.pieces) {
            self.keep_rest(&piece, &mut written);
        }
        let mut begun = 0;
        while let Some(block) = blocks.get(begun).filter(|block| written > 0 || block.wire.is_empty()) {
            self.keep_rest(&block.wire, &mut written);
            begun += 1;
        }
        Ok(Written { bytes, begun })
    }

    /// Keeps of a piece what the `written` bytes do not reach.
    fn keep_rest(&mut self, piece: &Bytes, written: &mut usize) {
        let taken = piece.len().min(*written);
        *written -= taken;
        self.push(piece.slice(taken..));
    }
}
