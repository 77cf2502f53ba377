//! What nodes reported of their streams: how they are doing, and what happened to them lately. For people to see; nothing is decided by it,
//! and each reactor has what it was told itself.
//!
//! Bounded in streams, in events a stream and in samples a stream. Pure: time comes in as a value. It does not know who owns a name; the
//! [`crate::registry`] does.

use crate::api::report::{Happening, HttpPlay, Report, StreamEvent, StreamReport, Timeline, TimelineEntry};
use crate::ids::{NodeId, SessionTag, StreamName};
use serde::Serialize;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most streams of which something is kept; of more, those of which nothing was heard for longest are forgotten. With what is kept
/// of each that is some 70 MB at most.
const STREAMS: usize = 5_000;

/// The most events that are kept of a stream.
const EVENTS: usize = 64;

/// The most nodes of which reports are kept: as many as a reactor has connections for.
const NODES: usize = 1_000;

/// The most reports that are kept of one stream: its ingest node, and the playback nodes that watch it.
const PLACES: usize = 200;

/// The most switches that are kept of all streams together.
const SWITCHES: usize = 50;

/// The time between two samples of a stream, and how many are kept: an hour.
const SAMPLE: Duration = Duration::from_secs(20);
const SAMPLES: usize = 180;

/// After so long without a word nothing is kept of a stream that is gone.
const KEPT: Duration = Duration::from_secs(3600);

/// The longest interval of reports that is believed.
const INTERVAL_MAX: Duration = Duration::from_secs(60);

/// How often the reports that do not hold any more are given up.
const SWEEP: Duration = Duration::from_secs(5);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Observed {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    streams: HashMap<StreamName, Seen>,
    nodes: HashMap<NodeId, Place>,
    switches: VecDeque<(Instant, TimelineEntry)>,
    /// Nodes that are to drain and have not heard of it.
    drains: HashSet<NodeId>,
    /// When reports were given up last.
    swept: Option<Instant>,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address that its report came from.
    pub source: IpAddr,
    /// What it said.
    pub http: Option<HttpPlay>,
    /// Bits a second that come in, and that go out.
    pub bits_per_second: [u64; 2],
    until: Instant,
}

/// Most streams that a reactor has heard of are gone: what is kept of them is small and in few pieces.
#[derive(Debug)]
struct Seen {
    /// What each node said last, by node. One with several roles says two things of a stream: how it is watched, and how it is published
    /// there.
    on: Vec<Said>,
    /// In the order in which they were heard of.
    events: VecDeque<Event>,
    samples: VecDeque<(Instant, Sample)>,
    heard: Instant,
}

#[derive(Debug)]
struct Said {
    node: NodeId,
    report: StreamReport,
    /// Until when it holds.
    until: Instant,
}

/// A [`TimelineEntry`] of a stream, when it happened, and nothing that can be said again when somebody asks.
#[derive(Debug)]
struct Event {
    at: Instant,
    node: Option<NodeId>,
    event: Happening,
    session: Option<SessionTag>,
    number: Option<u64>,
    detail: Option<Box<str>>,
}

/// More nodes report than are kept account of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{NODES} nodes report here already; there is no room for one more")]
pub struct Full;

/// How a stream was doing at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// How long ago, in seconds.
    pub ago_s: u64,
    /// Bits a second from its publisher.
    pub bits_per_second: u64,
    /// Video frames a second from its publisher.
    pub frames_per_second: f32,
    /// Viewers on all nodes.
    pub viewers: u64,
}

impl Observed {
    /// Takes what a node at this address says. `true`: it is to drain.
    ///
    /// Errors: so many nodes report that there is no room for one more.
    pub fn report(&self, node: &NodeId, source: IpAddr, report: Report, now: Instant) -> Result<bool, Full> {
        let mut state = self.lock();
        state.sweep(now);
        let until = now + 3 * Duration::from_millis(report.interval_ms).min(INTERVAL_MAX);
        state.nodes.retain(|_, place| place.until > now);
        if state.nodes.len() >= NODES && !state.nodes.contains_key(node) {
            return Err(Full);
        }
        let bits_per_second = [report.received_bits_per_second, report.sent_bits_per_second];
        state.nodes.insert(node.clone(), Place { source, http: report.http, bits_per_second, until });
        let names: Vec<StreamName> = report.streams.iter().map(|stream| stream.stream_name.clone()).collect();
        for stream in report.streams {
            state.seen(&stream.stream_name, now).report(node, stream, until, now);
        }
        // Once all of it is known, as a report may say two things of a stream.
        for name in names {
            state.seen(&name, now).sample(now);
        }
        for event in report.events {
            state.note(Some(node.clone()), event, now);
        }
        Ok(state.drains.remove(node))
    }

    /// Has a node drain, which it hears with its next report. `false`: it does not report.
    pub fn drain(&self, node: &NodeId, now: Instant) -> bool {
        let mut state = self.lock();
        let State { nodes, drains, .. } = &mut *state;
        drains.retain(|node| nodes.contains_key(node));
        nodes.get(node).is_some_and(|place| place.until > now) && {
            drains.insert(node.clone());
            true
        }
    }

    /// Takes note of what this reactor sees happen.
    pub fn note(&self, event: StreamEvent, now: Instant) {
        self.lock().note(None, event, now);
    }

    /// What each node says of a stream now.
    pub fn stream(&self, name: &StreamName, now: Instant) -> Vec<(NodeId, StreamReport)> {
        self.lock().streams.get(name).map_or_else(Vec::new, |seen| seen.now(now).collect())
    }

    /// What a node says of itself now.
    pub fn place(&self, node: &NodeId, now: Instant) -> Option<Place> {
        self.lock().nodes.get(node).filter(|place| place.until > now).cloned()
    }

    /// What happened to a stream, in the order in which it happened.
    pub fn timeline(&self, name: &StreamName, now: Instant) -> Timeline {
        let state = self.lock();
        let mut events: Vec<&Event> =
            state.streams.get(name).into_iter().flat_map(|seen| &seen.events).collect();
        events.sort_by_key(|event| event.at);
        Timeline { events: events.into_iter().map(|event| event.told(name, now)).collect() }
    }

    /// The last hour of a stream, oldest first.
    pub fn samples(&self, name: &StreamName, now: Instant) -> Vec<Sample> {
        let state = self.lock();
        let samples = state.streams.get(name).into_iter().flat_map(|seen| &seen.samples);
        samples
            .map(|(at, sample)| Sample { ago_s: now.saturating_duration_since(*at).as_secs(), ..*sample })
            .collect()
    }

    /// The last switches of all streams, newest first, and when they were.
    pub fn switches(&self) -> Vec<(Instant, TimelineEntry)> {
        self.lock().switches.iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn seen(&mut self, name: &StreamName, now: Instant) -> &mut Seen {
        if self.streams.len() >= STREAMS && !self.streams.contains_key(name) {
            self.streams.retain(|_, seen| now.saturating_duration_since(seen.heard) < KEPT);
            let oldest = self.streams.iter().min_by_key(|(_, seen)| seen.heard).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest.filter(|_| self.streams.len() >= STREAMS) {
                self.streams.remove(&oldest);
            }
        }
        let seen = self.streams.entry(name.clone()).or_insert_with(|| Seen {
            on: Vec::new(),
            events: VecDeque::new(),
            samples: VecDeque::new(),
            heard: now,
        });
        seen.heard = now;
        seen
    }

    fn note(&mut self, node: Option<NodeId>, event: StreamEvent, now: Instant) {
        let at = now.checked_sub(Duration::from_millis(event.ago_ms)).unwrap_or(now);
        let StreamEvent { stream_name: name, event, session, number, detail, .. } = event;
        let event = Event { at, node, event, session, number, detail: detail.map(String::into_boxed_str) };
        if event.event == Happening::Switched {
            // Its age is told by when it was.
            push(&mut self.switches, (at, event.told(&name, at)), SWITCHES);
        }
        push(&mut self.seen(&name, now).events, event, EVENTS);
    }

    /// Gives up what nodes said and do not say any more, now and then.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        for seen in self.streams.values_mut().filter(|seen| !seen.on.is_empty()) {
            seen.on.retain(|said| said.until > now);
            if seen.on.is_empty() {
                seen.on = Vec::new();
                seen.events.shrink_to_fit();
                seen.samples.shrink_to_fit();
            }
        }
    }
}

impl Event {
    /// As it is told at this time.
    fn told(&self, name: &StreamName, now: Instant) -> TimelineEntry {
        let age = now.saturating_duration_since(self.at).as_millis();
        let event = StreamEvent {
            stream_name: name.clone(),
            event: self.event,
            ago_ms: u64::try_from(age).unwrap_or(u64::MAX),
            session: self.session,
            number: self.number,
            detail: self.detail.as_deref().map(str::to_owned),
        };
        TimelineEntry::of(self.node.clone(), event)
    }
}

impl Seen {
    fn now(&self, now: Instant) -> impl Iterator<Item = (NodeId, StreamReport)> {
        let fresh = self.on.iter().filter(move |said| said.until > now);
        fresh.map(|said| (said.node.clone(), said.report.clone()))
    }

    /// Takes what a node says, if there is room for one more.
    fn report(&mut self, node: &NodeId, report: StreamReport, until: Instant, now: Instant) {
        self.on.retain(|said| said.until > now);
        let key = (node, report.published);
        let said = Said { node: node.clone(), until, report };
        match self.on.binary_search_by(|other| (&other.node, other.report.published).cmp(&key)) {
            Ok(at) => {
                if let Some(before) = self.on.get_mut(at) {
                    *before = said;
                }
            }
            Err(at) if self.on.len() < PLACES => self.on.insert(at, said),
            Err(_) => {}
        }
    }

    /// Keeps a sample, if the last one is old enough.
    fn sample(&mut self, now: Instant) {
        if self.samples.back().is_some_and(|(at, _)| now.saturating_duration_since(*at) < SAMPLE) {
            return;
        }
        let mut sample = Sample::default();
        for Said { report, .. } in &self.on {
            if report.published {
                sample.bits_per_second = report.bits_per_second;
                sample.frames_per_second = report.frames_per_second;
            } else {
                sample.viewers += report.viewers;
            }
        }
        // A node says nothing of rates when it sees a stream for the first time.
        if self.samples.is_empty() && sample.bits_per_second == 0 {
            return;
        }
        push(&mut self.samples, (now, sample), SAMPLES);
    }
}

fn push<T>(list: &mut VecDeque<T>, one: T, most: usize) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(one);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &StreamName, event: Happening, ago_ms: u64) -> StreamEvent {
        StreamEvent { stream_name: name.clone(), event, ago_ms, session: None, number: None, detail: None }
    }

    fn stream(name: &StreamName, published: bool, viewers: u64) -> StreamReport {
        StreamReport {
            stream_name: name.clone(),
            published,
            session: None,
            live: true,
            viewers,
            bits_per_second: 1000,
            frames_per_second: 25.0,
            keyframe_ms: None,
            video: None,
            audio: None,
            size: None,
            skips: 0,
        }
    }

    fn report(streams: Vec<StreamReport>, events: Vec<StreamEvent>) -> Report {
        Report { interval_ms: 1000, streams, events, ..Report::default() }
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn what_happened_on_several_nodes_is_told_in_its_order() {
        let (observed, now) = (Observed::default(), Instant::now());
        let (name, a, b): (StreamName, NodeId, NodeId) =
            ("x".parse().unwrap(), "a".parse().unwrap(), "b".parse().unwrap());
        observed
            .report(&b, HERE, report(vec![], vec![event(&name, Happening::PullBrings, 100)]), now)
            .unwrap();
        observed
            .report(&a, HERE, report(vec![], vec![event(&name, Happening::Published, 900)]), now)
            .unwrap();
        observed.note(event(&name, Happening::Registered, 0), now - Duration::from_millis(500));
        let told = observed.timeline(&name, now + Duration::from_secs(1)).events;
        let told: Vec<_> = told
            .iter()
            .map(|e| (e.node.as_ref().map(NodeId::as_str), e.event.event, e.event.ago_ms))
            .collect();
        let expected = [
            (Some("a"), Happening::Published, 1900),
            (None, Happening::Registered, 1500),
            (Some("b"), Happening::PullBrings, 1100),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_a_node_says_holds_for_three_intervals() {
        let (observed, now) = (Observed::default(), Instant::now());
        let (name, a): (StreamName, NodeId) = ("x".parse().unwrap(), "a".parse().unwrap());
        observed.report(&a, HERE, report(vec![stream(&name, true, 1)], vec![]), now).unwrap();
        assert_eq!(observed.stream(&name, now + Duration::from_millis(2999)).len(), 1);
        assert_eq!(observed.stream(&name, now + Duration::from_secs(3)).len(), 0);
        assert!(
            observed.place(&a, now).is_some() && observed.place(&a, now + Duration::from_secs(3)).is_none()
        );
    }

    #[test]
    fn of_a_stream_that_is_gone_only_what_happened_is_kept() {
        let (observed, now) = (Observed::default(), Instant::now());
        let (name, a): (StreamName, NodeId) = ("x".parse().unwrap(), "a".parse().unwrap());
        let both = report(vec![stream(&name, true, 1)], vec![event(&name, Happening::Published, 0)]);
        observed.report(&a, HERE, both, now).unwrap();
        let later = now + Duration::from_secs(3).max(SWEEP);
        observed.report(&a, HERE, report(vec![], vec![]), later).unwrap();
        let state = observed.lock();
        let seen = &state.streams[&name];
        assert_eq!((seen.on.capacity(), seen.events.len(), seen.samples.len()), (0, 1, 1));
        drop(state);
        assert_eq!(observed.timeline(&name, later).events[0].what, "published from ?");
    }

    #[test]
    fn a_node_that_is_published_to_and_watched_says_both() {
        let (observed, now) = (Observed::default(), Instant::now());
        let (name, a): (StreamName, NodeId) = ("x".parse().unwrap(), "a".parse().unwrap());
        observed
            .report(&a, HERE, report(vec![stream(&name, true, 1), stream(&name, false, 7)], vec![]), now)
            .unwrap();
        let said = observed.stream(&name, now);
        assert_eq!(said.iter().map(|(_, said)| said.viewers).collect::<Vec<_>>(), [7, 1]);
        let samples = observed.samples(&name, now);
        assert_eq!((samples.len(), samples[0].bits_per_second, samples[0].viewers), (1, 1000, 7));
    }

    #[test]
    fn nodes_are_bounded_for_a_stream_and_in_all() {
        let (observed, now) = (Observed::default(), Instant::now());
        let name: StreamName = "x".parse().unwrap();
        for number in 0..NODES + 10 {
            let node: NodeId = format!("n{number}").parse().unwrap();
            observed.report(&node, HERE, report(vec![stream(&name, false, 1)], vec![]), now).ok();
        }
        let more = observed.report(&"more".parse().unwrap(), HERE, report(vec![], vec![]), now);
        assert_eq!(more, Err(Full));
        assert_eq!(observed.lock().nodes.len(), NODES);
        assert_eq!(observed.stream(&name, now).len(), PLACES);
        let later = now + Duration::from_secs(4);
        let late: NodeId = "late".parse().unwrap();
        observed.report(&late, HERE, report(vec![stream(&name, false, 1)], vec![]), later).unwrap();
        assert_eq!(observed.stream(&name, later).len(), 1, "those who fell silent make room");
    }

    #[test]
    fn samples_sum_up_viewers_and_everything_is_bounded() {
        let (observed, begun) = (Observed::default(), Instant::now());
        let (name, a): (StreamName, NodeId) = ("x".parse().unwrap(), "a".parse().unwrap());
        for (number, node) in ["b", "c"].iter().enumerate() {
            let node = node.parse().unwrap();
            let at = begun + Duration::from_millis(number as u64);
            observed.report(&node, HERE, report(vec![stream(&name, false, 2)], vec![]), at).unwrap();
        }
        for step in 1..=SAMPLES as u64 + 10 {
            let now = begun + SAMPLE * step as u32;
            for node in ["b", "c"] {
                let node = node.parse().unwrap();
                observed.report(&node, HERE, report(vec![stream(&name, false, 2)], vec![]), now).unwrap();
            }
            observed
                .report(
                    &a,
                    HERE,
                    report(vec![stream(&name, true, 2)], vec![event(&name, Happening::Found, 0); 3]),
                    now,
                )
                .unwrap();
        }
        let samples = observed.samples(&name, begun + SAMPLE * (SAMPLES as u32 + 10));
        assert_eq!((samples.len(), samples[SAMPLES - 1].ago_s), (SAMPLES, 0));
        assert_eq!(observed.timeline(&name, begun).events.len(), EVENTS);
        for number in 0..STREAMS + 10 {
            let other: StreamName = format!("s{number}").parse().unwrap();
            observed.note(event(&other, Happening::Found, 0), begun + Duration::from_secs(9000));
        }
        assert_eq!(observed.lock().streams.len(), STREAMS);
    }
}
