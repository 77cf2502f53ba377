//! How many bytes of a publisher are worth a wake-up.
//!
//! Where audio waits for the next video frame anyway ([`crate::relay::Batching`]), waking up for audio alone is wasted. The
//! kernel can hold it back for nothing: until a socket's receive low-water mark is reached it does not report the socket as
//! readable (SO_RCVLOWAT, socket(7)). This module derives the mark from the latest frames: more than the audio between two
//! frames, and less than any frame. It knows no socket and no clock.

use crate::media::{Content, Packet, PacketKind};

/// The mark of a socket that is readable at the first byte: the kernel's default.
const EVERYTHING: usize = 1;

/// The mark is derived from this many frames: about two seconds, usually with a keyframe.
const FRAMES: u32 = 60;

/// The most audio messages that the mark holds back when no frame comes. One or two come between two frames; three are
/// 70 ms of AAC.
const AUDIO: usize = 3;

/// The highest mark, in bytes: far below any receive buffer.
const MOST: usize = 32 << 10;

/// See the module's head.
#[derive(Debug)]
pub(super) struct LowWater {
    mark: usize,
    frames: u32,
    smallest_frame: usize,
    largest_audio: usize,
    /// A frame came since the last [`LowWater::tick`].
    flows: bool,
    /// The mark that the socket has.
    told: usize,
}

impl LowWater {
    pub fn new() -> Self {
        LowWater {
            mark: EVERYTHING,
            frames: 0,
            smallest_frame: usize::MAX,
            largest_audio: 0,
            flows: false,
            told: EVERYTHING,
        }
    }

    /// Takes note of a packet that was read. `audio_waits`: whether audio may be held back until the next frame.
    pub fn see(&mut self, packet: &Packet, audio_waits: impl FnOnce() -> bool) {
        let length = packet.body.len();
        match packet.kind {
            PacketKind::Audio { .. } => self.largest_audio = self.largest_audio.max(length),
            PacketKind::Video { content: Content::Frame, .. } => {
                self.flows = true;
                self.frames += 1;
                self.smallest_frame = self.smallest_frame.min(length);
                if length < self.mark {
                    // The kernel held this frame back until more came: the mark is too high.
                    self.mark = EVERYTHING;
                }
                if self.frames >= FRAMES {
                    let mark = if audio_waits() { self.found() } else { EVERYTHING };
                    *self = LowWater { mark, flows: true, told: self.told, ..LowWater::new() };
                }
            }
            PacketKind::Video { .. } | PacketKind::Data { .. } => {}
        }
    }

    /// To be called at an interval of several frames. If no frame came, the mark is lifted: the stream has become audio
    /// only, or what the kernel holds back is the end of the publish (`FCUnpublish`, `deleteStream`).
    pub fn tick(&mut self) {
        if !std::mem::take(&mut self.flows) {
            self.reset();
        }
    }

    /// Lifts the mark: every byte wakes again.
    pub fn reset(&mut self) {
        *self = LowWater { told: self.told, ..LowWater::new() };
    }

    /// Whether the socket has a mark, so that the kernel may hold bytes back.
    pub fn is_set(&self) -> bool {
        self.told != EVERYTHING
    }

    /// The mark to set on the socket, if it has another. `missing`: the bytes that the message that is being received lacks.
    pub fn news(&mut self, missing: usize) -> Option<usize> {
        let mark = self.mark(missing);
        (std::mem::replace(&mut self.told, mark) != mark).then_some(mark)
    }

    fn mark(&self, missing: usize) -> usize {
        match (self.mark, missing) {
            (EVERYTHING, _) => EVERYTHING,
            (mark, 0) => mark,
            (_, missing) => missing.min(MOST),
        }
    }

    fn found(&self) -> usize {
        // Half, because the next frame may be smaller than all before.
        let mark = (self.smallest_frame / 2).min(self.largest_audio * AUDIO).min(MOST);
        if mark > self.largest_audio && self.largest_audio > 0 { mark } else { EVERYTHING }
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

    /// The mark after two seconds of frames of one size, each after a sound if there is any.
    fn after(low: &mut LowWater, size: usize, sound: Option<usize>, audio_waits: bool) -> usize {
        for _ in 0..FRAMES {
            if let Some(sound) = sound {
                low.see(&audio(sound), || audio_waits);
            }
            low.see(&frame(size), || audio_waits);
        }
        low.mark(0)
    }

    #[test]
    fn audio_wakes_nobody_and_any_frame_does() {
        let mut low = LowWater::new();
        assert_eq!(low.mark(0), EVERYTHING, "nothing is known yet");
        let mark = after(&mut low, 2_000, Some(300), true);
        assert!((2 * 300 + 1..2_000).contains(&mark), "{mark}");
        assert_eq!(low.mark(1_500), 1_500, "the rest of a message");
        assert_eq!(low.mark(1 << 20), MOST);
        assert_eq!((low.news(0), low.news(0), low.is_set()), (Some(mark), None, true));
        low.reset();
        assert_eq!((low.news(0), low.news(0), low.is_set()), (Some(EVERYTHING), None, false));
    }

    #[test]
    fn nothing_waits_where_it_would_not_pay_or_must_not() {
        for (size, sound, audio_waits) in
            [(2_000, Some(300), false), (2_000, None, true), (500, Some(300), true)]
        {
            let mut low = LowWater::new();
            assert_eq!(
                after(&mut low, size, sound, audio_waits),
                EVERYTHING,
                "{size} {sound:?} {audio_waits}"
            );
            assert_eq!(low.mark(100), EVERYTHING);
        }
    }

    #[test]
    fn a_small_frame_waits_once() {
        let mut low = LowWater::new();
        assert!(after(&mut low, 2_000, Some(300), true) > 400);
        low.see(&frame(400), || true);
        assert_eq!(low.mark(0), EVERYTHING);
        assert_eq!(after(&mut low, 2_000, Some(300), true), EVERYTHING, "it was in the same two seconds");
        assert!(after(&mut low, 2_000, Some(300), true) > EVERYTHING);
    }

    #[test]
    fn without_frames_everything_is_worth_it() {
        let mut low = LowWater::new();
        let mark = after(&mut low, 2_000, Some(300), true);
        low.tick();
        assert_eq!(low.mark(0), mark, "frames came since the last time");
        low.see(&audio(300), || true);
        low.tick();
        assert_eq!(low.mark(0), EVERYTHING);
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
