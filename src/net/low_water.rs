//! How many bytes of a publisher are worth a wake-up.
//!
//! Where audio rides with the video frame behind it ([`crate::relay::Gather`]), who wakes up for audio alone can only put
//! it aside. The kernel does that for nothing: until a socket's receive low-water mark is reached it tells nobody that
//! there is something to read (SO_RCVLOWAT, socket(7)). This module finds the mark from what came lately: more than the
//! audio between two frames, and less than any frame. It knows no socket and no clock.

use crate::media::{Content, Packet, PacketKind};

/// The mark of a socket that says everything at once.
const EVERYTHING: usize = 1;

/// So many frames are looked at before a mark is set: two seconds or so, and a keyframe as a rule.
const FRAMES: u32 = 60;

/// At most so much audio waits when no frame comes, in messages: one or two come between two frames, and three are 70 ms of AAC.
const AUDIO: usize = 3;

/// The most bytes that are waited for: far less than any receive buffer.
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
    /// What the socket was told last.
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

    /// Looks at what was read. `rides`: audio may wait for the next frame.
    pub fn see(&mut self, packet: &Packet, rides: impl FnOnce() -> bool) {
        let length = packet.body.len();
        match packet.kind {
            PacketKind::Audio { .. } => self.largest_audio = self.largest_audio.max(length),
            PacketKind::Video { content: Content::Frame, .. } => {
                self.flows = true;
                self.frames += 1;
                self.smallest_frame = self.smallest_frame.min(length);
                if length < self.mark {
                    // It had to wait for what came behind it. The next of its kind shall not.
                    self.mark = EVERYTHING;
                }
                if self.frames >= FRAMES {
                    let mark = if rides() { self.found() } else { EVERYTHING };
                    *self = LowWater { mark, flows: true, told: self.told, ..LowWater::new() };
                }
            }
            PacketKind::Video { .. } | PacketKind::Data { .. } => {}
        }
    }

    /// To be called now and then, far less often than frames come. When none came, anything is worth a wake-up: audio goes
    /// on alone, or the last words of somebody who leaves lie there.
    pub fn tick(&mut self) {
        if !std::mem::take(&mut self.flows) {
            self.reset();
        }
    }

    /// Each word counts again.
    pub fn reset(&mut self) {
        *self = LowWater { told: self.told, ..LowWater::new() };
    }

    /// Whether anything waits in the socket.
    pub fn is_set(&self) -> bool {
        self.told != EVERYTHING
    }

    /// What the socket is to be told, if that is news, when the message that is being received lacks so many bytes.
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

    /// What came in two seconds, frames of one size among them.
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
        for (size, sound, rides) in [(2_000, Some(300), false), (2_000, None, true), (500, Some(300), true)] {
            let mut low = LowWater::new();
            assert_eq!(after(&mut low, size, sound, rides), EVERYTHING, "{size} {sound:?} {rides}");
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
