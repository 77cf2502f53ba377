//! One rising clock for a stream whose sources come and go.
//!
//! Every source (an encoder's publish, a pull) has a clock of its own, which may start anywhere. Viewers see one clock
//! that never goes back: when the source changes, the new one is shifted to follow the last message that went out.
//!
//! A pull that only lost its connection begins again with a group of pictures that viewers have partly seen. Where the
//! caller says that the source may resume (it plays the same relay stream of the same server), it is recognised by its
//! first keyframe: when that is the newest one seen, at the same time and of the same content, the shift stays and what was
//! already relayed is dropped, so that viewers see no frame twice. Any other source is a break, however much its first
//! keyframe looks like the last one: encoders start their clocks at zero, and a file, a slide or a black scene starts with
//! the same picture each time.

use crate::media::{Packet, PacketKind};
use std::hash::{DefaultHasher, Hasher};

/// The step in milliseconds from the last message of one source to the first of the next: a frame at 30 per second.
const STEP: u32 = 33;

/// How far a source's clock may go back between two messages before it counts as a new clock. Encoders interleave audio
/// and video a little out of order; nothing real is off by seconds.
const DISORDER: i32 = 5_000;

/// How far past the point of resumption a source must be before nothing of it can be a repetition any more.
const RESUMED: i32 = 1_000;

/// One thing for audio, video and data each.
type PerKind<T> = [T; 3];

/// Maps the timestamps of the current source to the viewers' clock.
#[derive(Debug, Default)]
pub struct Timeline {
    /// Added (wrapping) to a source's timestamp.
    shift: u32,
    /// The highest timestamp sent, on the viewers' clock.
    last: Option<u32>,
    /// The highest time at which a picture is shown, on the viewers' clock: frames that others are predicted from are
    /// sent well before their turn.
    shown: Option<u32>,
    /// The highest timestamps of audio, video and data, each.
    last_of: PerKind<Option<u32>>,
    /// The same as the source before left them. The next source repeats nothing of it and stays above it.
    floor: PerKind<Option<u32>>,
    state: State,
    /// The source that comes next, or now, may continue the one before.
    may_resume: bool,
    /// The newest keyframe of the current source, on the source's clock; the first one where several tracks have theirs
    /// at one time.
    keyframe: Option<Fingerprint>,
    /// The messages that were relayed since that keyframe came, with it.
    since_keyframe: u64,
    /// The current source does not continue the one before, and nobody has been told.
    broke: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next message is the first of a source.
    #[default]
    Fresh,
    /// The source is known; messages are shifted.
    Running,
    /// The source repeats what was relayed up to this time: so many messages at most.
    Resuming { until: u32, left: u64 },
}

impl Timeline {
    /// The next message comes from another source. `may_resume`: it has the clock of the one before, so that it may repeat
    /// what that one brought, and go on. Otherwise it is a break, whatever it begins with.
    pub fn source_changed(&mut self, may_resume: bool) {
        self.state = State::Fresh;
        self.may_resume = may_resume;
        if !may_resume && self.last.is_some() {
            self.keyframe = None;
            self.broke = true;
        }
    }

    /// Whether the current source has sent no frame yet.
    pub fn is_fresh(&self) -> bool {
        self.state == State::Fresh
    }

    /// Whether the last message is from a source that does not continue the one before. Says so once: with the first message of one that
    /// cannot, with the first frame of one that might have.
    pub fn take_break(&mut self) -> bool {
        std::mem::take(&mut self.broke)
    }

    /// The viewers' time of a message, or nothing if viewers have had it already.
    pub fn map(&mut self, packet: &Packet) -> Option<u32> {
        if self.state == State::Fresh {
            if packet.kind.is_header() {
                return Some(self.last.unwrap_or(packet.timestamp));
            }
            self.begin(packet);
        }
        if packet.kind.is_keyframe()
            && self.keyframe.is_none_or(|newest| newest.timestamp != packet.timestamp)
        {
            self.keyframe = Some(Fingerprint::of(packet));
            self.since_keyframe = 0;
        }
        let mut time = packet.timestamp.wrapping_add(self.shift);
        if packet.kind.is_header() && self.state != State::Running {
            return self.last;
        }
        if let Some(last) = self.last
            && (ahead(time, last) < -DISORDER || ahead(time, last) > DISORDER)
            && !(packet.kind.is_video_frame() || packet.kind.is_audio_frame())
        {
            // Encoders send headers and data messages with a time of zero, or with any. They do not move the clock.
            return Some(last);
        }
        let floor = self.floor.get_mut(slot(packet.kind));
        let above = floor.as_ref().and_then(|floor| **floor).map(|floor| ahead(time, floor));
        if let State::Resuming { until, left } = &mut self.state {
            // A source whose clock stands still would look like a repetition for ever.
            if above.is_some_and(|above| above <= 0) && *left > 0 {
                *left -= 1;
                return None;
            }
            if ahead(time, *until) > RESUMED || *left == 0 {
                self.state = State::Running;
            }
        } else if let Some(last) = self.last
            && ahead(time, last) < -DISORDER
        {
            // The encoder reset its clock without a new publish.
            time = self.follow(last, packet);
            self.shift = time.wrapping_sub(packet.timestamp);
        } else if let Some(floor) = floor {
            // Sources differ in how they interleave. No track goes back for that, so the first moments are compressed.
            if above.is_some_and(|above| (-DISORDER..=0).contains(&above)) {
                *floor = floor.map(|floor| floor.wrapping_add(1));
                time = floor.unwrap_or(time);
            } else {
                *floor = None;
            }
        }
        self.since_keyframe += 1;
        raise(&mut self.last, time);
        if matches!(packet.kind, PacketKind::Video { .. }) {
            raise(&mut self.shown, time.wrapping_add(composition_time(packet)));
        }
        if let Some(last) = self.last_of.get_mut(slot(packet.kind)) {
            raise(last, time);
        }
        Some(time)
    }

    fn begin(&mut self, packet: &Packet) {
        self.state = State::Running;
        self.floor = self.last_of;
        let Some(last) = self.last else { return };
        let resumes = self.may_resume && packet.kind.is_keyframe();
        if resumes && self.keyframe == Some(Fingerprint::of(packet)) {
            self.state = State::Resuming { until: last, left: self.since_keyframe };
        } else {
            self.shift = self.follow(last, packet).wrapping_sub(packet.timestamp);
            self.keyframe = None;
            // Else it was known before.
            self.broke |= self.may_resume;
        }
    }

    /// When the first message of a new clock is sent, so that it is sent and shown after everything before it: a source
    /// that breaks off leaves pictures that are shown later than its last message was sent.
    fn follow(&self, last: u32, first: &Packet) -> u32 {
        let shown = self.shown.unwrap_or(last).wrapping_sub(composition_time(first));
        (if ahead(shown, last) > 0 { shown } else { last }).wrapping_add(STEP)
    }
}

/// How much later than it is sent a picture is shown, as far as that is believed.
fn composition_time(packet: &Packet) -> u32 {
    packet.composition_time.clamp(0, DISORDER) as u32
}

/// What a keyframe is recognised by, without keeping it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    timestamp: u32,
    length: usize,
    hash: u64,
}

impl Fingerprint {
    fn of(packet: &Packet) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(&packet.body);
        Fingerprint { timestamp: packet.timestamp, length: packet.body.len(), hash: hasher.finish() }
    }
}

/// How far `time` is ahead of `other` on a clock that wraps; negative: behind.
fn ahead(time: u32, other: u32) -> i32 {
    time.wrapping_sub(other) as i32
}

fn raise(last: &mut Option<u32>, time: u32) {
    if last.is_none_or(|last| ahead(time, last) > 0) {
        *last = Some(time);
    }
}

fn slot(kind: PacketKind) -> usize {
    match kind {
        PacketKind::Audio { .. } => 0,
        PacketKind::Video { .. } => 1,
        PacketKind::Data { .. } => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Content;
    use bytes::Bytes;

    fn packet(kind: PacketKind, timestamp: u32, body: &'static str) -> Packet {
        Packet { kind, ..Packet::data(timestamp, Bytes::from_static(body.as_bytes())) }
    }
    fn key(timestamp: u32, body: &'static str) -> Packet {
        packet(PacketKind::Video { content: Content::Frame, keyframe: true }, timestamp, body)
    }
    fn frame(timestamp: u32) -> Packet {
        packet(PacketKind::Video { content: Content::Frame, keyframe: false }, timestamp, "p")
    }
    fn header(timestamp: u32) -> Packet {
        packet(PacketKind::Video { content: Content::SequenceHeader, keyframe: false }, timestamp, "h")
    }

    #[test]
    fn the_first_source_keeps_its_times_across_the_wrap() {
        let mut timeline = Timeline::default();
        for time in [u32::MAX - 10, u32::MAX, 30, 60] {
            assert_eq!(timeline.map(&frame(time)), Some(time));
        }
    }

    #[test]
    fn a_new_source_follows_the_last_message_of_the_old_one() {
        let mut timeline = Timeline::default();
        timeline.map(&key(1_000, "a"));
        timeline.map(&frame(1_040));
        timeline.source_changed(true);
        assert_eq!(timeline.map(&header(0)), Some(1_040));
        assert_eq!(timeline.map(&key(7, "b")), Some(1_073));
        assert_eq!(timeline.map(&frame(47)), Some(1_113));
    }

    #[test]
    fn no_picture_of_a_new_source_is_shown_before_those_of_the_old_one() {
        // A keyframe (0x17) or another frame (0x27) of AVC, sent at one time and shown later.
        let avc = |head: u8, timestamp, composition_time: u8| {
            Packet::video(timestamp, Bytes::from(vec![head, 1, 0, 0, composition_time, 9]))
        };
        let mut timeline = Timeline::default();
        timeline.map(&avc(0x17, 1_000, 80));
        timeline.map(&avc(0x27, 1_040, 160));
        timeline.source_changed(true);
        // The last picture is shown at 1,200; the new one 33 ms after that.
        assert_eq!(timeline.map(&avc(0x17, 0, 80)), Some(1_153));
        timeline.source_changed(true);
        assert_eq!(timeline.map(&avc(0x17, 0, 200)), Some(1_186), "sent after the last message in any case");
    }

    #[test]
    fn a_source_that_resumes_repeats_nothing() {
        let mut timeline = Timeline::default();
        timeline.map(&key(1_000, "a"));
        timeline.map(&frame(1_040));
        timeline.map(&frame(1_080));
        timeline.source_changed(true);
        assert_eq!(timeline.map(&header(0)), Some(1_080));
        assert_eq!(timeline.map(&key(1_000, "a")), None);
        assert_eq!(timeline.map(&frame(1_040)), None);
        assert_eq!(timeline.map(&frame(1_080)), None);
        let audio = packet(PacketKind::Audio { content: Content::Frame }, 1_070, "a");
        assert_eq!(timeline.map(&audio), Some(1_070), "a late track loses nothing");
        assert_eq!(timeline.map(&audio), Some(1_070), "nor does one of two tracks");
        assert_eq!(timeline.map(&frame(1_120)), Some(1_120));
    }

    #[test]
    fn only_a_source_that_may_resume_does() {
        for (may_resume, again) in [(true, [None, None]), (false, [Some(1_073), Some(1_113)])] {
            let mut timeline = Timeline::default();
            timeline.map(&key(0, "the same picture"));
            timeline.map(&frame(1_040));
            timeline.source_changed(may_resume);
            assert_eq!([&key(0, "the same picture"), &frame(40)].map(|packet| timeline.map(packet)), again);
            assert_eq!(timeline.take_break(), !may_resume);
        }
    }

    #[test]
    fn a_break_is_known_with_the_first_message_unless_the_source_may_resume() {
        for (may_resume, with) in [(false, "header"), (true, "frame")] {
            let mut timeline = Timeline::default();
            assert!(!timeline.take_break());
            timeline.source_changed(false);
            timeline.map(&key(0, "1"));
            assert!(!timeline.take_break(), "there was nothing before");
            timeline.source_changed(may_resume);
            timeline.map(&header(0));
            assert_eq!(timeline.take_break(), with == "header");
            timeline.map(&key(0, "2"));
            assert_eq!(timeline.take_break(), with == "frame");
            timeline.map(&frame(40));
            assert!(!timeline.take_break());
        }
    }

    #[test]
    fn no_more_is_taken_for_a_repetition_than_was_relayed() {
        let mut timeline = Timeline::default();
        timeline.map(&key(1_000, "k"));
        (0..5).for_each(|_| assert!(timeline.map(&frame(1_000)).is_some()));
        timeline.source_changed(true);
        let again = [key(1_000, "k")].into_iter().chain((0..10).map(|_| frame(1_000)));
        let relayed = again.filter(|packet| timeline.map(packet).is_some()).count();
        assert_eq!(relayed, 5, "six were repeated, and five are new");
    }

    #[test]
    fn a_clock_that_is_reset_mid_stream_does_not_go_back_for_viewers() {
        let mut timeline = Timeline::default();
        timeline.map(&frame(100_000));
        assert_eq!(timeline.map(&frame(0)), Some(100_033));
        assert_eq!(timeline.map(&frame(40)), Some(100_073));
    }

    #[test]
    fn small_disorder_of_audio_and_video_is_relayed_as_it_is() {
        let mut timeline = Timeline::default();
        timeline.map(&frame(1_000));
        assert_eq!(timeline.map(&frame(980)), Some(980));
        timeline.source_changed(true);
        assert_eq!(timeline.map(&key(0, "n")), Some(1_033), "the highest time counts, not the latest");
    }
}
