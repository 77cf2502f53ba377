//! A bounded queue between a feed and something that may be slow: a push to another server, a transcode.
//!
//! The feed's task puts packets in and never waits. When the queue is full, what is older than the newest keyframe is given up; if
//! even the rest is too much, everything is, up to the next keyframe. So whoever reads gets, after a gap, headers and then a keyframe.
//! What was given up is counted.
//!
//! This knows nothing of where the packets go.

use super::feed::Outlet;
use super::headers::{Headers, Seen};
use crate::budget::{Charge, Holder};
use crate::media::Packet;
use crate::telemetry::{Loss, Metrics};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The most bytes that wait: eight seconds of 8 Mb/s, as much as an ordinary stream holds elsewhere.
const BYTES: usize = 8 << 20;

/// The longest time that waits, on the stream's clock: a target that is behind by more will not catch up by itself, and a new
/// connection to it takes less.
const SPAN: Duration = Duration::from_secs(10);

/// The most packets that a reader gets at once.
const BATCH: usize = 128;

/// A queue: the end that a feed pushes into, and the end that is read.
pub fn queue(holder: &Holder, metrics: Arc<Metrics>) -> (Inlet, Queue) {
    let shared = Arc::new(Shared { state: Mutex::new(State::new(holder)), news: Notify::new(), metrics });
    (Inlet(shared.clone()), Queue(shared))
}

/// Where a feed puts packets in. Dropping it ends the queue once it is read.
#[derive(Debug)]
pub struct Inlet(Arc<Shared>);

/// Where packets are read.
#[derive(Debug)]
pub struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    news: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    packets: VecDeque<Packet>,
    bytes: usize,
    headers: Headers,
    charge: Charge,
    /// A frame of video was seen, so audio alone is no start.
    video: bool,
    /// Frames are given up until one comes that a decoder can start with.
    seeking: bool,
    /// Whoever reads next needs the headers first.
    fresh: bool,
    ended: bool,
    /// Nobody reads any more.
    closed: bool,
}

impl State {
    fn new(holder: &Holder) -> Self {
        State {
            packets: VecDeque::new(),
            bytes: 0,
            headers: Headers::default(),
            charge: holder.charge(),
            video: false,
            seeking: false,
            fresh: true,
            ended: false,
            closed: false,
        }
    }

    /// Takes a packet in, and says how many frames were given up.
    fn push(&mut self, packet: &Packet) -> usize {
        if self.closed {
            return usize::from(!packet.kind.is_header());
        }
        let header = self.headers.see(packet) != Seen::Frame;
        self.video |= packet.kind.is_video_frame();
        if self.seeking && (header || !self.is_start(packet)) {
            // The headers come again before the frame that ends the search.
            return usize::from(!header);
        }
        self.seeking = false;
        self.bytes += held(packet);
        self.packets.push_back(packet.clone());
        if self.bytes > BYTES || self.span() > SPAN { self.skip() } else { 0 }
    }

    /// Whether a decoder can start with this frame.
    fn is_start(&self, packet: &Packet) -> bool {
        packet.kind.is_keyframe() || (!self.video && packet.kind.is_audio_frame())
    }

    /// From the oldest frame to the newest. A header says nothing of the time.
    fn span(&self) -> Duration {
        let frame = |packet: &&Packet| !packet.kind.is_header();
        let first = self.packets.iter().find(frame);
        let ends = first.zip(self.packets.iter().rfind(frame));
        let millis = ends.map_or(0, |(first, last)| last.timestamp.wrapping_sub(first.timestamp));
        // What is out of order is not what has waited for days.
        Duration::from_millis(u64::try_from(millis.cast_signed()).unwrap_or(0))
    }

    /// Gives up what is older than the newest keyframe, or everything.
    fn skip(&mut self) -> usize {
        let newest = self.packets.iter().rposition(|packet| packet.kind.is_keyframe());
        let kept = newest.filter(|at| {
            let (rest, bytes) = self.packets.iter().skip(*at).fold((false, 0), |(changed, bytes), packet| {
                (changed || packet.kind.is_sequence_header(), bytes + held(packet))
            });
            // The headers are those of the end: frames from before a change cannot be decoded with them.
            *at > 0 && bytes <= BYTES / 2 && !rest
        });
        let given_up = match kept {
            Some(at) => self.packets.drain(..at).filter(|packet| !packet.kind.is_header()).count(),
            None => {
                self.seeking = true;
                self.packets.drain(..).filter(|packet| !packet.kind.is_header()).count()
            }
        };
        self.bytes = self.packets.iter().map(held).sum();
        self.fresh = true;
        given_up
    }

    /// What waits has to begin with a frame that a decoder can start with.
    fn begin_again(&mut self) -> usize {
        self.fresh = true;
        let start = self.packets.iter().position(|packet| self.is_start(packet));
        self.seeking |= start.is_none();
        let before = self.packets.drain(..start.unwrap_or(self.packets.len()));
        let given_up = before.filter(|packet| !packet.kind.is_header()).count();
        self.bytes = self.packets.iter().map(held).sum();
        given_up
    }

    fn take(&mut self) -> Option<Vec<Packet>> {
        if self.packets.is_empty() {
            return None;
        }
        let mut taken = Vec::new();
        if std::mem::take(&mut self.fresh) {
            let first = self.packets.iter().find(|packet| !packet.kind.is_header());
            let timestamp = first.map_or(0, |packet| packet.timestamp);
            // Headers that wait in front are among them.
            let waiting = self.packets.iter().position(|packet| !packet.kind.is_header());
            let in_front = self.packets.drain(..waiting.unwrap_or(self.packets.len()));
            self.bytes = self.bytes.saturating_sub(in_front.map(|packet| held(&packet)).sum());
            taken.extend(self.headers.packets().cloned().map(|packet| Packet { timestamp, ..packet }));
        }
        let some = self.packets.len().min(BATCH);
        let before = taken.len();
        taken.extend(self.packets.drain(..some));
        let read: usize = taken.iter().skip(before).map(held).sum();
        self.bytes = self.bytes.saturating_sub(read);
        Some(taken)
    }

    fn account(&mut self) {
        self.charge.set(self.bytes + self.headers.held());
    }
}

/// With what a packet takes beyond its body, which is most of the smallest ones.
fn held(packet: &Packet) -> usize {
    packet.body.len() + 2 * size_of::<Packet>()
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, packets: usize) {
        self.metrics.lost(Loss::Behind, packets as u64);
    }
}

impl Outlet for Inlet {
    fn push(&mut self, packets: &[Packet]) {
        let given_up = {
            let mut state = self.0.state();
            let given_up = packets.iter().map(|packet| state.push(packet)).sum();
            state.account();
            given_up
        };
        self.0.lost(given_up);
        self.0.news.notify_one();
    }
}

/// What nobody read is lost.
impl Drop for Queue {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.state();
            let left = state.packets.drain(..).filter(|packet| !packet.kind.is_header()).count();
            (state.bytes, state.closed) = (0, true);
            state.charge.set(0);
            left
        };
        self.0.lost(left);
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.news.notify_one();
    }
}

impl Queue {
    /// Waits for packets: the first that are read, and those after a gap, begin with the headers. Nothing: the feed has ended and
    /// everything was read. Safe to drop and call again; one caller at a time.
    pub async fn next(&mut self) -> Option<Vec<Packet>> {
        loop {
            {
                let mut state = self.0.state();
                let taken = state.take();
                state.account();
                if taken.is_some() || state.ended {
                    return taken;
                }
            }
            self.0.news.notified().await;
        }
    }

    /// Waits until the feed has ended, whether or not everything was read. Safe to drop and call again; not beside
    /// [`Queue::next`].
    pub async fn ended(&mut self) {
        while !self.0.state().ended {
            self.0.news.notified().await;
        }
        // For whoever reads what is left.
        self.0.news.notify_one();
    }

    /// Whether the feed has ended.
    pub fn has_ended(&self) -> bool {
        self.0.state().ended
    }

    /// What is read next goes to a new decoder: it begins with the headers and a frame to start with. What was read before and did
    /// not arrive, `unsent` frames, is counted as lost.
    pub fn begin_again(&mut self, unsent: usize) {
        let given_up = self.0.state().begin_again();
        self.0.lost(given_up + unsent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::relay::Feeds;
    use bytes::Bytes;
    use futures::FutureExt;

    fn video(head: u8, kind: u8, time: u32, size: usize) -> Packet {
        Packet::video(time, Bytes::from([&[head, kind, 0, 0, 0][..], &vec![7; size]].concat()))
    }
    fn key(time: u32) -> Packet {
        video(0x17, 1, time, 9)
    }
    fn frame(time: u32) -> Packet {
        video(0x27, 1, time, 9)
    }
    fn header(time: u32) -> Packet {
        video(0x17, 0, time, 3)
    }
    fn audio(time: u32) -> Packet {
        Packet::audio(time, Bytes::from_static(&[0xaf, 1, 5]))
    }

    fn parts() -> (Inlet, Queue, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (inlet, queue) = queue(&Budget::new(usize::MAX).holder(), metrics.clone());
        (inlet, queue, metrics)
    }

    /// All that waits.
    fn read(queue: &mut Queue) -> Vec<Packet> {
        let mut all = Vec::new();
        while let Some(Some(some)) = queue.next().now_or_never() {
            all.extend(some);
        }
        all
    }

    #[test]
    fn what_goes_in_comes_out_and_then_the_end() {
        let (mut inlet, mut queue, metrics) = parts();
        assert!(queue.next().now_or_never().is_none(), "it waits");
        inlet.push(&[header(0), key(0), audio(5), frame(40)]);
        assert_eq!(read(&mut queue), [header(0), key(0), audio(5), frame(40)]);
        inlet.push(&[frame(80)]);
        drop(inlet);
        assert_eq!(read(&mut queue), [frame(80)]);
        assert_eq!(queue.next().now_or_never(), Some(None));
        assert_eq!(metrics.lost_total(Loss::Behind), 0);
    }

    #[test]
    fn a_reader_that_is_behind_goes_on_at_the_newest_keyframe() {
        let (mut inlet, mut queue, metrics) = parts();
        inlet.push(&[header(0), key(0)]);
        assert_eq!(read(&mut queue).len(), 2);
        for second in 1..=10 {
            inlet.push(&[key(second * 1000), frame(second * 1000 + 500)]);
        }
        assert_eq!(metrics.lost_total(Loss::Behind), 0, "ten seconds fit");
        inlet.push(&[key(11_000), frame(11_500)]);
        let got = read(&mut queue);
        assert_eq!(got, [header(11_000), key(11_000), frame(11_500)], "headers first, then a keyframe");
        assert_eq!(metrics.lost_total(Loss::Behind), 20);
    }

    #[test]
    fn a_group_that_is_too_long_is_given_up_to_its_end() {
        let (mut inlet, mut queue, metrics) = parts();
        inlet.push(&[header(0), key(0)]);
        (1..=9).for_each(|n| inlet.push(&[video(0x27, 1, n, BYTES / 8)]));
        inlet.push(&[frame(10), audio(10)]);
        assert!(queue.next().now_or_never().is_none(), "nothing that could be decoded");
        let newer = video(0x17, 0, 20, 4);
        inlet.push(&[newer.clone(), key(20)]);
        assert_eq!(read(&mut queue), [newer, key(20)], "with the headers of now");
        assert_eq!(metrics.lost_total(Loss::Behind), 12);
    }

    #[test]
    fn frames_from_before_a_change_of_codec_do_not_get_the_headers_after_it() {
        let (mut inlet, mut queue, _) = parts();
        inlet.push(&[header(0), key(0), key(5_000), video(0x17, 0, 5_001, 4), frame(10_001), key(10_002)]);
        let got = read(&mut queue);
        assert_eq!(got, [video(0x17, 0, 10_002, 4), key(10_002)]);
    }

    #[test]
    fn a_new_decoder_starts_at_a_keyframe_and_what_did_not_arrive_is_lost() {
        let (mut inlet, mut queue, metrics) = parts();
        inlet.push(&[header(0), key(0)]);
        assert_eq!(read(&mut queue).len(), 2);
        inlet.push(&[frame(40), key(80), frame(120)]);
        queue.begin_again(2);
        assert_eq!(read(&mut queue), [header(80), key(80), frame(120)]);
        assert_eq!(metrics.lost_total(Loss::Behind), 3);
        inlet.push(&[frame(160)]);
        queue.begin_again(0);
        inlet.push(&[frame(200), audio(200), key(240)]);
        assert_eq!(read(&mut queue), [header(240), key(240)]);
        assert_eq!(metrics.lost_total(Loss::Behind), 6);
    }

    #[test]
    fn sound_alone_starts_with_any_frame() {
        let (mut inlet, mut queue, metrics) = parts();
        (0..=600).for_each(|n| inlet.push(&[audio(n * 20)]));
        let got = read(&mut queue);
        assert!(!got.is_empty() && got.len() <= 501, "{}", got.len());
        assert_eq!(got.last(), Some(&audio(12_000)));
        assert_eq!(metrics.lost_total(Loss::Behind) + got.len() as u64, 601);
    }

    #[test]
    fn what_waits_is_charged_and_given_back() {
        let budget = Budget::new(usize::MAX);
        let (mut inlet, mut queue) = queue(&budget.holder(), Arc::new(Metrics::new().unwrap()));
        inlet.push(&[key(0), video(0x27, 1, 40, 1 << 20)]);
        assert!(budget.used() >= 1 << 20);
        read(&mut queue);
        assert_eq!(budget.used(), 0);
        (0..100_000).for_each(|n| inlet.push(&[video(0x27, 1, n, 0)]));
        assert!(budget.used() <= BYTES + (1 << 20), "{} bytes of the smallest frames", budget.used());
    }

    #[tokio::test]
    async fn a_queue_takes_what_a_feed_has_kept() {
        let feeds = Feeds::new(Arc::new(Metrics::new().unwrap()));
        let mut feed = feeds.begin(None);
        feed.push(&[header(0), key(0), frame(40)]);
        let (inlet, mut queue, _) = parts();
        let attached = feed.reference().attach(Box::new(inlet));
        assert_eq!(queue.next().await.unwrap(), [header(0), key(0), frame(40)]);
        assert!(!queue.has_ended());
        drop(attached);
        queue.ended().await;
        assert_eq!(queue.next().await, None);
    }
}
