//! The recent past of one stream as wire-ready bytes.
//!
//! What goes out together is a [`Block`]: a run of whole messages, written once, chunked for the wire with full headers,
//! into one piece of memory of just that size which every viewer shares. A viewer's place is a block's number; a join
//! starts at a block too. Pure: time comes in as a value.

use super::format::Format;
use super::settings::{Batching, Settings};
use crate::media::{Packet, PacketKind};
use crate::rtmp;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The most bytes of a block, but for a message that is longer by itself.
const BLOCK: usize = 64 << 10;

/// What a block takes beyond its bytes: itself, and what the allocator adds to them. A ring of the smallest messages with a
/// block each would otherwise be ten times its limit.
const BLOCK_COST: usize = size_of::<Entry>() + 64;

/// The longest that audio waits for a video frame: at fewer frames a second it stops waiting.
const FRAME_MAX: Duration = Duration::from_millis(50);

/// The wait before two frames have been seen: 30 a second.
const FRAME_DEFAULT: Duration = Duration::from_millis(33);

/// Video that sent no frame for so long has ended, and audio that goes on is a stream without video. Else its last keyframe
/// would stay the place to start, and a late viewer would get minutes of sound in one piece.
const VIDEO_OVER: Duration = Duration::from_secs(30);

/// The longest block of a stream without viewers, where no pump seals what is due.
const UNWATCHED: Duration = Duration::from_millis(200);

/// How much of a stream without video a new viewer gets at once, so that players can fill their buffers.
const AUDIO_START: Duration = Duration::from_millis(500);

/// Whole messages that share their writes.
#[derive(Debug, Clone)]
pub struct Block {
    /// Ready for a socket.
    pub wire: Bytes,
    /// A viewer can start here.
    starts: bool,
    /// The viewers' time of its first message.
    timestamp: u32,
    at: Instant,
    /// How many messages of the stream came before this block.
    index: u64,
}

/// How many times the limit of a ring all derived forms in it may take together. Two are HTTP and WebSocket; beyond that
/// the oldest are given up, and made anew for a viewer that is so far behind.
const DERIVED: usize = 2;

/// What a derived form takes beyond its bytes.
const DERIVED_COST: usize = size_of::<(Format, Bytes)>() + 64;

/// A block, and the forms of it that viewers wanted beside the one it was written in.
#[derive(Debug)]
struct Entry {
    block: Block,
    derived: Vec<(Format, Bytes)>,
}

impl Entry {
    /// The block in a format; what that takes beyond what was there is added to `derived`.
    fn formed(&mut self, format: Format, derived: &mut usize) -> Block {
        if format == Format::Rtmp {
            return self.block.clone();
        }
        let made = self.derived.iter().find(|(of, _)| *of == format).map(|(_, wire)| wire.clone());
        let wire = made.unwrap_or_else(|| {
            let wire = format.of(&self.block.wire);
            *derived += wire.len() + DERIVED_COST;
            self.derived.reserve_exact(1);
            self.derived.push((format, wire.clone()));
            wire
        });
        Block { wire, ..self.block.clone() }
    }

    /// Gives up the derived forms, and says what they took.
    fn forget_derived(&mut self) -> usize {
        let derived = std::mem::take(&mut self.derived);
        derived.iter().map(|(_, wire)| wire.len() + DERIVED_COST).sum()
    }
}

/// A place between two blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The number of the block behind it.
    pub number: u64,
    /// How many messages of the stream came before it.
    pub index: u64,
}

impl Block {
    /// The place before this block, which has this number.
    pub fn mark(&self, number: u64) -> Mark {
        Mark { number, index: self.index }
    }

    fn cost(&self) -> usize {
        self.wire.len() + BLOCK_COST
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Ring {
    batching: Batching,
    limit: usize,
    lag: Duration,
    blocks: VecDeque<Entry>,
    /// The number of the first block.
    first: u64,
    bytes: usize,
    /// The bytes of all derived forms. They count for the memory that the ring is charged for and not for its limit: how far back a ring
    /// goes does not change with the form in which somebody watches.
    derived: usize,
    /// The number of the newest block that starts with a keyframe, while it is there.
    keyframe: Option<u64>,
    /// The time of the keyframe that came last, while viewers may start there.
    keyframe_time: Option<u32>,
    /// The messages that wait to become a block, with their times on the viewers' clock; serialised then, as the size is
    /// known.
    pending: Vec<(Packet, u32)>,
    batch: Option<Batch>,
    /// Whether audio came since the source began.
    audio: bool,
    /// When the last video came, and its time on the viewers' clock.
    video: Option<(Instant, u32)>,
    /// The time between frames, smoothed.
    frame: Duration,
    /// Messages in all blocks that ever were.
    messages: u64,
    /// The number of the newest block that says that another session begins.
    broke: Option<u64>,
}

/// The messages in `pending`.
#[derive(Debug)]
struct Batch {
    since: Instant,
    due: Instant,
    timestamp: u32,
    starts: bool,
    keyframe: bool,
    /// What `pending` will be on the wire.
    bytes: usize,
}

/// Writes a packet as a viewer gets it.
pub fn write_wire(out: &mut BytesMut, packet: &Packet, timestamp: u32) {
    rtmp::chunk::write_message(
        out,
        chunk_stream(packet),
        timestamp,
        packet.type_id(),
        rtmp::session::PLAY_STREAM_ID,
        &packet.body,
        rtmp::session::OUT_CHUNK_SIZE,
    );
}

fn wire_len(packet: &Packet, timestamp: u32) -> usize {
    let chunk_size = rtmp::session::OUT_CHUNK_SIZE;
    rtmp::chunk::wire_len(chunk_stream(packet), timestamp, packet.body.len(), chunk_size)
}

fn chunk_stream(packet: &Packet) -> u32 {
    match packet.kind {
        PacketKind::Audio { .. } => rtmp::session::AUDIO_CHUNK_STREAM,
        PacketKind::Video { .. } => rtmp::session::VIDEO_CHUNK_STREAM,
        PacketKind::Data { .. } => rtmp::session::DATA_CHUNK_STREAM,
    }
}

impl Ring {
    /// An empty ring.
    pub fn new(settings: &Settings) -> Self {
        Ring {
            batching: settings.batching,
            limit: settings.ring_bytes,
            lag: settings.lag,
            blocks: VecDeque::new(),
            first: 0,
            bytes: 0,
            derived: 0,
            keyframe: None,
            keyframe_time: None,
            pending: Vec::new(),
            batch: None,
            audio: false,
            video: None,
            frame: FRAME_DEFAULT,
            messages: 0,
            broke: None,
        }
    }

    /// Appends a message that goes out at `timestamp` (the viewers' clock).
    pub fn push(&mut self, packet: &Packet, timestamp: u32, now: Instant) {
        if self.video.is_some_and(|(last, _)| now.saturating_duration_since(last) > VIDEO_OVER) {
            self.source_changed();
        }
        // Where a stream has several video tracks, their keyframes of one moment belong together.
        let keyframe = packet.kind.is_keyframe() && self.keyframe_time != Some(timestamp);
        let frame = packet.kind.is_video_frame();
        let video = matches!(packet.kind, PacketKind::Video { .. });
        self.audio |= packet.kind.is_audio_frame();
        let alone = self.video.is_none() && !video && !packet.kind.is_header();
        // A viewer starts at a block's first byte, and a block should not grow without end.
        let overdue = self.due().is_some_and(|due| now > due + UNWATCHED);
        let begins = keyframe || alone && self.batch.as_ref().is_some_and(|batch| !batch.starts);
        let bytes = wire_len(packet, timestamp);
        let batched = self.batch.as_ref().map_or(0, |batch| batch.bytes);
        if begins || overdue || batched + bytes > BLOCK {
            self.seal();
        }
        if keyframe {
            self.keyframe_time = Some(timestamp);
        }
        if frame {
            self.measure_frame(timestamp, now);
        }
        let due = match self.batching {
            Batching::Window(window) => now + window,
            Batching::AudioWithVideo if frame || !self.video_flows(now) => now,
            Batching::AudioWithVideo => now + self.frame,
        };
        self.pending.push((packet.clone(), timestamp));
        let batch = self.batch.get_or_insert(Batch {
            since: now,
            due,
            timestamp,
            starts: keyframe || alone,
            keyframe,
            bytes: 0,
        });
        batch.bytes += bytes;
        batch.due = batch.due.min(due);
    }

    /// Makes a block of what is pending.
    pub fn seal(&mut self) {
        let Some(batch) = self.batch.take() else { return };
        if batch.keyframe {
            self.keyframe = Some(self.end());
        }
        let messages = self.pending.len() as u64;
        let mut wire = BytesMut::with_capacity(batch.bytes);
        self.pending.drain(..).for_each(|(packet, timestamp)| write_wire(&mut wire, &packet, timestamp));
        self.append(Block {
            wire: wire.freeze(),
            starts: batch.starts,
            timestamp: batch.timestamp,
            at: batch.since,
            index: self.messages,
        });
        self.messages += messages;
    }

    fn append(&mut self, block: Block) {
        let now = block.at;
        self.bytes += block.cost();
        self.blocks.push_back(Entry { block, derived: Vec::new() });
        self.evict(now);
    }

    /// Says that what follows is another session, in a block of its own: who starts behind it has no need of it.
    pub fn announce_break(&mut self, timestamp: u32, now: Instant) {
        self.seal();
        self.broke = Some(self.end());
        let wire = rtmp::session::publish_notify();
        // It is no message of the stream, and no loss to whom it does not reach.
        self.append(Block { wire, starts: false, timestamp, at: now, index: self.messages });
    }

    /// Whether another session began at this place or behind it.
    pub fn broke_since(&self, place: Mark) -> bool {
        self.broke.is_some_and(|broke| broke >= place.number)
    }

    /// When what is pending has to go out; nothing if nothing is pending.
    pub fn due(&self) -> Option<Instant> {
        self.batch.as_ref().map(|batch| batch.due)
    }

    /// Whether what is pending goes out now, given when the pump meant to look by itself.
    pub fn is_due(&self, now: Instant, armed: Option<Instant>) -> bool {
        let window_over =
            matches!(self.batching, Batching::Window(_)) && armed.is_some_and(|armed| armed <= now);
        self.due().is_some_and(|due| due <= now || window_over)
    }

    /// Whether a pump that looks by itself at `armed` comes too late for what is pending. A frame's time of slack saves
    /// it a wake-up for audio that the next frame will carry anyway.
    pub fn is_urgent(&self, now: Instant, armed: Option<Instant>) -> bool {
        self.due().is_some_and(|due| due <= now || armed.is_none_or(|armed| armed > due + self.frame))
    }

    /// How long after a write the next may be worth waiting for together with what comes before it.
    pub fn period(&self) -> Duration {
        match self.batching {
            Batching::AudioWithVideo => self.frame * 2,
            Batching::Window(window) => window,
        }
    }

    /// The number behind the newest block.
    pub fn end(&self) -> u64 {
        self.first + self.blocks.len() as u64
    }

    /// The place behind the newest block.
    pub fn live_edge(&self) -> Mark {
        Mark { number: self.end(), index: self.messages }
    }

    /// The number of the oldest block.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The bytes of all blocks, with what each takes beside them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The same with what waits to become a block.
    pub fn held(&self) -> usize {
        self.bytes + self.derived + self.batch.as_ref().map_or(0, |batch| batch.bytes)
    }

    /// The block with a number, if it is still here.
    pub fn block(&self, number: u64) -> Option<&Block> {
        let entry = self.blocks.get(usize::try_from(number.checked_sub(self.first)?).ok()?)?;
        Some(&entry.block)
    }

    /// Blocks from a number on, in this format.
    pub fn since(&mut self, number: u64, format: Format) -> impl Iterator<Item = Block> {
        let skip = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let derived = &mut self.derived;
        self.blocks.iter_mut().skip(skip).map(move |entry| entry.formed(format, derived))
    }

    /// The number of the first block from `from` on where a viewer can start.
    pub fn next_start(&self, from: u64) -> Option<u64> {
        let skip = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let at = self.blocks.iter().skip(skip).position(|entry| entry.block.starts)?;
        Some(from.max(self.first) + at as u64)
    }

    /// Makes a block of what is pending if a viewer can start there.
    pub fn seal_start(&mut self) {
        if self.batch.as_ref().is_some_and(|batch| batch.starts) {
            self.seal();
        }
    }

    /// The viewers' time at the block with this number, or of the newest one if it is not there.
    pub fn time(&self, number: u64) -> u32 {
        let newest = || self.blocks.back().map(|entry| &entry.block);
        self.block(number).or_else(newest).map_or(0, |block| block.timestamp)
    }

    /// How many messages of the stream stand before the block with this number.
    pub fn index(&self, number: u64) -> u64 {
        self.block(number).map_or(self.messages, |block| block.index)
    }

    /// Where a new viewer starts, and the time its headers carry: at the newest keyframe, or shortly before the newest
    /// message where there is no video. Nothing while there is no such place.
    pub fn start(&mut self) -> Option<(Mark, u32)> {
        let keyframe = self.batch.as_ref().is_some_and(|batch| batch.keyframe);
        if keyframe || self.sealed_start().is_none() {
            self.seal();
        }
        self.sealed_start()
    }

    fn sealed_start(&self) -> Option<(Mark, u32)> {
        let number = match self.keyframe {
            Some(number) => number,
            None if self.video.is_some() => return None,
            None => {
                let newest = self.blocks.back()?.block.at;
                let recent = |Entry { block, .. }: &&Entry| {
                    block.starts && newest.saturating_duration_since(block.at) <= AUDIO_START
                };
                let count = self.blocks.iter().rev().take_while(recent).count();
                self.end() - count as u64
            }
        };
        let block = self.block(number)?;
        Some((block.mark(number), block.timestamp))
    }

    /// Whether [`Ring::start`] has an answer.
    pub fn can_start(&self) -> bool {
        let alone = self.video.is_none();
        let starts = |batch: &Batch| batch.keyframe || batch.starts && alone;
        // Asked for each push, so it does not look at a block that has long left the processor's caches.
        self.keyframe.is_some()
            || self.batch.as_ref().is_some_and(starts)
            || alone && self.blocks.back().is_some_and(|entry| entry.block.starts)
    }

    /// Frames from before this moment can be no viewer's first: the decoder's configuration changed, or the source.
    pub fn forget_start(&mut self) {
        self.seal();
        self.keyframe = None;
        self.keyframe_time = None;
        for entry in &mut self.blocks {
            entry.block.starts = false;
        }
    }

    /// Gives all memory back. Viewers that are behind fall off, and go on with what comes next.
    pub fn clear(&mut self) {
        self.forget_start();
        self.first = self.end();
        self.blocks = VecDeque::new();
        (self.bytes, self.derived) = (0, 0);
    }

    /// The source changed: what is known of its rhythm counts no more.
    pub fn source_changed(&mut self) {
        self.forget_start();
        self.audio = false;
        self.video = None;
        self.frame = FRAME_DEFAULT;
    }

    /// Video is a part of this stream although no frame was seen yet, so audio alone is no place to start.
    pub fn expect_video(&mut self, timestamp: u32, now: Instant) {
        self.video.get_or_insert((now, timestamp));
    }

    /// Whether audio came since the source began.
    pub fn has_audio(&self) -> bool {
        self.audio
    }

    /// Whether there is video, as far as is known.
    pub fn has_video(&self) -> bool {
        self.video.is_some()
    }

    fn measure_frame(&mut self, timestamp: u32, now: Instant) {
        if let Some((_, last)) = self.video.replace((now, timestamp)) {
            let gap = Duration::from_millis(u64::from(timestamp.wrapping_sub(last))).min(FRAME_MAX);
            self.frame = (self.frame * 7 + gap) / 8;
        }
    }

    fn video_flows(&self, now: Instant) -> bool {
        self.video.is_some_and(|(last, _)| now.saturating_duration_since(last) <= FRAME_MAX * 2)
    }

    fn evict(&mut self, now: Instant) {
        while let Some(Entry { block: oldest, .. }) = self.blocks.front() {
            let needed = match self.keyframe {
                Some(keyframe) => self.first >= keyframe,
                None => false,
            };
            let recent = now.saturating_duration_since(oldest.at) <= self.lag;
            if (needed || recent) && self.bytes <= self.limit || self.blocks.len() == 1 {
                break;
            }
            self.bytes -= oldest.cost();
            self.derived -= self.blocks.pop_front().map_or(0, |mut oldest| oldest.forget_derived());
            self.first += 1;
        }
        let limit = self.limit.saturating_mul(DERIVED);
        if self.derived > limit {
            // Half of them, so that it is not done again for the next block.
            for entry in &mut self.blocks {
                self.derived -= entry.forget_derived();
                if self.derived <= limit / 2 {
                    break;
                }
            }
        }
        if self.keyframe.is_some_and(|keyframe| keyframe < self.first) {
            self.keyframe = None;
        }
    }
}
