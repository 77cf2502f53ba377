//! The receive low-water mark of a publisher's socket: how many bytes must have arrived before its task is woken.
//!
//! By default audio goes out to viewers together with the next video frame, so a task that is woken for audio alone could
//! only buffer it. The kernel buffers it at no cost: below a socket's SO_RCVLOWAT (socket(7)) it does not report the socket
//! as readable. This module chooses the mark from the sizes of recent messages: more than the audio between two frames, and
//! less than any frame. It knows no socket and no clock.

use crate::media::{Content, Packet, PacketKind};

/// SO_RCVLOWAT's default: any byte wakes the task.
pub(super) const ANY_BYTE: usize = 1;

/// The frames over which sizes are measured before a mark is chosen: about two seconds, which usually contain a keyframe.
const FRAMES: u32 = 60;

/// The most audio messages that may wait in the socket when no frame comes. One or two come between two frames; three are
/// 70 ms of AAC.
const AUDIO_MESSAGES: usize = 3;

/// The highest mark: far below the size of any receive buffer, which a mark must fit into.
const MAX_MARK: usize = 32 << 10;

/// See the module's head.
#[derive(Debug)]
pub(super) struct LowWater {
    /// For the start of a message.
    mark: usize,
    /// The frames of the measurement that runs, and what they showed.
    frames: u32,
    smallest_frame: usize,
    largest_audio: usize,
    /// A frame came since the last [`LowWater::tick`].
    flows: bool,
    /// What the socket is set to.
    applied: usize,
}

impl LowWater {
    pub fn new() -> Self {
        LowWater {
            mark: ANY_BYTE,
            frames: 0,
            smallest_frame: usize::MAX,
            largest_audio: 0,
            flows: false,
            applied: ANY_BYTE,
        }
    }

    /// Measures a message that was read. `rides`: viewers get audio with the next frame, so audio may wait for it.
    pub fn see(&mut self, packet: &Packet, rides: impl FnOnce() -> bool) {
        let length = packet.body.len();
        match packet.kind {
            PacketKind::Audio { .. } => self.largest_audio = self.largest_audio.max(length),
            PacketKind::Video { content: Content::Frame, .. } => {
                self.flows = true;
                self.frames += 1;
                self.smallest_frame = self.smallest_frame.min(length);
                if length < self.mark {
                    // This frame was below the mark and waited until more bytes came; measure again before any other may.
                    self.mark = ANY_BYTE;
                }
                if self.frames >= FRAMES {
                    let mark = if rides() { self.measured() } else { ANY_BYTE };
                    *self = LowWater { mark, flows: true, applied: self.applied, ..LowWater::new() };
                }
            }
            PacketKind::Video { .. } | PacketKind::Data { .. } => {}
        }
    }

    /// To be called at intervals several times as long as a frame. If no frame came since the last call, the default mark is
    /// restored: the video may have stopped while audio goes on, or an unpublish may wait in the socket.
    pub fn tick(&mut self) {
        if !std::mem::take(&mut self.flows) {
            self.reset();
        }
    }

    /// Back to the default mark, and measures anew.
    pub fn reset(&mut self) {
        *self = LowWater { applied: self.applied, ..LowWater::new() };
    }

    /// Whether the socket has another mark than the default, so that bytes may wait in it unread.
    pub fn is_set(&self) -> bool {
        self.applied != ANY_BYTE
    }

    /// The mark to set on the socket, if it has another one now. `missing`: the bytes that are still to come of a message that
    /// was received in part, 0 between messages.
    pub fn news(&mut self, missing: usize) -> Option<usize> {
        let mark = self.mark(missing);
        (std::mem::replace(&mut self.applied, mark) != mark).then_some(mark)
    }

    fn mark(&self, missing: usize) -> usize {
        match (self.mark, missing) {
            (ANY_BYTE, _) => ANY_BYTE,
            (mark, 0) => mark,
            (_, missing) => missing.min(MAX_MARK),
        }
    }

    fn measured(&self) -> usize {
        // Half, because the next frame may be smaller than all that were measured.
        let mark = (self.smallest_frame / 2).min(self.largest_audio * AUDIO_MESSAGES).min(MAX_MARK);
        if mark > self.largest_audio && self.largest_audio > 0 { mark } else { ANY_BYTE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn frame(length: usize) -> Packet {
        Packet::video(0, [&[0x27, 1][..], &vec![0; length - 2]].concat().into())
    }

    fn audio(length: usize) -> Packet {
        Packet::audio(0, [&[0xaf, 1][..], &vec![0; length - 2]].concat().into())
    }

    /// The mark after one whole measurement of frames and audio messages of these sizes.
    fn after(low: &mut LowWater, size: usize, sound: Option<usize>, rides: bool) -> usize {
        for _ in 0..FRAMES {
            if let Some(sound) = sound {
                low.see(&audio(sound), || rides);
            }
            low.see(&frame(size), || rides);
        }
        low.mark(0)
    }

    #[test]
    fn audio_wakes_nobody_and_any_frame_does() {
        let mut low = LowWater::new();
        assert_eq!(low.mark(0), ANY_BYTE, "nothing is known yet");
        let mark = after(&mut low, 2_000, Some(300), true);
        assert!((2 * 300 + 1..2_000).contains(&mark), "{mark}");
        assert_eq!(low.mark(1_500), 1_500, "the rest of a message");
        assert_eq!(low.mark(1 << 20), MAX_MARK);
        assert_eq!((low.news(0), low.news(0), low.is_set()), (Some(mark), None, true));
        low.reset();
        assert_eq!((low.news(0), low.news(0), low.is_set()), (Some(ANY_BYTE), None, false));
    }

    #[test]
    fn nothing_waits_where_it_would_not_pay_or_must_not() {
        for (size, sound, rides) in [(2_000, Some(300), false), (2_000, None, true), (500, Some(300), true)] {
            let mut low = LowWater::new();
            assert_eq!(after(&mut low, size, sound, rides), ANY_BYTE, "{size} {sound:?} {rides}");
            assert_eq!(low.mark(100), ANY_BYTE);
        }
    }

    #[test]
    fn a_small_frame_waits_once() {
        let mut low = LowWater::new();
        assert!(after(&mut low, 2_000, Some(300), true) > 400);
        low.see(&frame(400), || true);
        assert_eq!(low.mark(0), ANY_BYTE);
        assert_eq!(
            after(&mut low, 2_000, Some(300), true),
            ANY_BYTE,
            "the small frame was in the same measurement"
        );
        assert!(after(&mut low, 2_000, Some(300), true) > ANY_BYTE);
    }

    #[test]
    fn without_frames_everything_is_worth_it() {
        let mut low = LowWater::new();
        let mark = after(&mut low, 2_000, Some(300), true);
        low.tick();
        assert_eq!(low.mark(0), mark, "frames came since the last time");
        low.see(&audio(300), || true);
        low.tick();
        assert_eq!(low.mark(0), ANY_BYTE);
    }

    #[test]
    fn a_decoders_configuration_is_no_frame() {
        let mut low = LowWater::new();
        let mark = after(&mut low, 2_000, Some(300), true);
        low.see(&Packet::video(0, Bytes::from_static(&[0x17, 0, 0, 0, 0, 1])), || true);
        assert_eq!(low.mark(0), mark);
        low.see(&Packet::video(0, Bytes::from_static(b"\x94hvc1\x02")), || true);
        assert_eq!(low.mark(0), mark, "nor is the colour information of HDR");
    }
}
