//! Which part of the list of publishes the next heartbeat carries.
//!
//! A heartbeat names what changed since the last one that was answered and, in turn, some streams that did not change
//! (the audit). A reactor that lacks the rest asks for the whole list; it goes out in pieces, in the order of the
//! sessions, while the list goes on changing.
//!
//! ```text
//!           ┌── want_all; nothing named is known there; an end was forgotten ──┐
//!           ▼                                                                    │
//!  start ─▶ Sending { after } ─────── the last piece is answered ──────▶ Complete { audited }
//!           │     ▲                                                      │     ▲
//!           └─────┘ a piece is answered                                  └─────┘ changes and audit are answered
//! ```
//!
//! A reactor that asks for everything while it is being sent has lost what it was told so far: the list begins anew.
//!
//! One report is in flight at a time. What it carried counts as told once it is answered; until then it is carried
//! again, with what changed since. No step looks at more entries than a report may have, however long the list is.
//!
//! Pure: no clock, no socket, and no idea of what a reactor does with it.

use crate::api::{HEARTBEAT_STREAMS, HeartbeatReply, PublishedStream, PublisherRelease};
use crate::ids::{SessionId, StreamName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

/// The most unchanged streams in a regular heartbeat. What a reactor missed of 1,000 streams is healed after 16 of them.
pub const AUDIT_STREAMS: usize = 64;

/// The most ended publishes that are kept for a reactor that does not answer: some 3 MB with the longest names.
pub const ENDED_KEPT: usize = 10_000;

/// The streams of a node, and what of them is told already.
#[derive(Debug)]
pub(super) struct Roster {
    sizes: Sizes,
    streams: BTreeMap<SessionId, Stream>,
    /// To be told, beside what [`State::Sending`] has yet to send. All of them are in `streams`.
    changed: BTreeSet<SessionId>,
    /// To be told, the oldest first.
    ended: VecDeque<PublisherRelease>,
    forgotten: u64,
    since: Option<String>,
    state: State,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct Sizes {
    report: usize,
    audit: usize,
    ended_kept: usize,
}

#[derive(Debug)]
struct Stream {
    name: StreamName,
    epoch: Option<u64>,
}

#[derive(Debug)]
enum State {
    /// The whole list is being sent: all up to this session have been.
    Sending { after: Option<SessionId> },
    /// The whole list was taken in. The next audit begins behind this session.
    Complete { audited: Option<SessionId> },
}

/// What the report carries that is not answered yet.
#[derive(Debug)]
struct InFlight {
    /// Taken out of [`Roster::changed`].
    changed: BTreeSet<SessionId>,
    /// So many from the front of [`Roster::ended`].
    ended: usize,
    then: Then,
    /// It names streams, so that an answer without a word on any of them is one of a reactor that forgot.
    names: bool,
}

/// The state once the report is answered.
#[derive(Debug)]
enum Then {
    /// A piece; there is more.
    Sending { after: Option<SessionId> },
    /// The last piece.
    Sent,
    /// Changes and audit.
    Complete { audited: Option<SessionId> },
}

/// Why a heartbeat is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The interval is over: some unchanged streams are named too.
    Regular,
    /// Something happened: only that is told.
    Early,
}

/// The part of a heartbeat that says what is published; see the fields of [`crate::api::Heartbeat`] of the same names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The word of the last reply.
    pub since: Option<String>,
    /// How many streams there are.
    pub published: u64,
    /// Together with `ended` at most [`HEARTBEAT_STREAMS`].
    pub streams: Vec<PublishedStream>,
    /// At most half as many.
    pub ended: Vec<PublisherRelease>,
    /// The last piece of the whole list.
    pub complete: bool,
    /// Not for the wire: how many ends were given up since the last report, because more than [`ENDED_KEPT`] waited.
    pub forgotten: u64,
}

/// What there is to tell after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing before the next regular heartbeat.
    Rest,
    /// The rest of what was to be told: now.
    More,
    /// Everything from the beginning, because the reactor asks for it: now, unless it asked just before.
    Again,
    /// Everything from the beginning, because the reactor says nothing of the streams that were named: it has lost them,
    /// or no room for them.
    Silent,
}

impl Roster {
    pub(super) fn new() -> Self {
        Roster::with(Sizes { report: HEARTBEAT_STREAMS, audit: AUDIT_STREAMS, ended_kept: ENDED_KEPT })
    }

    fn with(sizes: Sizes) -> Self {
        Roster {
            sizes,
            streams: BTreeMap::new(),
            changed: BTreeSet::new(),
            ended: VecDeque::new(),
            forgotten: 0,
            since: None,
            state: State::Sending { after: None },
            in_flight: None,
        }
    }

    pub(super) fn insert(&mut self, session: SessionId, name: StreamName, epoch: Option<u64>) {
        self.streams.insert(session, Stream { name, epoch });
        self.changed.insert(session);
    }

    /// A publish ended, whether or not it was in the list.
    pub(super) fn end(&mut self, release: PublisherRelease) {
        self.streams.remove(&release.session);
        self.changed.remove(&release.session);
        if self.ended.len() >= self.sizes.ended_kept {
            self.unanswered();
            self.ended.pop_front();
            self.forgotten += 1;
            self.begin_again();
        }
        self.ended.push_back(release);
    }

    /// Another way than a heartbeat led to this epoch.
    pub(super) fn set_epoch(&mut self, session: SessionId, epoch: u64) {
        if let Some(stream) = self.streams.get_mut(&session)
            && stream.epoch != Some(epoch)
        {
            stream.epoch = Some(epoch);
            self.changed.insert(session);
        }
    }

    pub(super) fn epoch(&self, session: SessionId) -> Option<u64> {
        self.streams.get(&session)?.epoch
    }

    /// The next report names this stream.
    pub(super) fn mark(&mut self, session: SessionId) {
        if self.streams.contains_key(&session) {
            self.changed.insert(session);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PublishedStream> {
        self.streams.iter().map(|(session, stream)| stream.named(*session))
    }

    /// What to tell now. A report that was not answered is taken for lost.
    pub(super) fn next(&mut self, occasion: Occasion) -> Report {
        self.unanswered();
        let ended: Vec<_> = self.ended.iter().take(self.sizes.report / 2).cloned().collect();
        let room = self.sizes.report - ended.len();
        let mut chosen = match self.state {
            State::Sending { after } => self.changed_before(after, room / 2),
            State::Complete { .. } => self.changed.iter().take(room).copied().collect(),
        };
        let in_turn = match self.state {
            State::Sending { after } => self.behind(after).take(room - chosen.len()).collect(),
            State::Complete { audited } => self.audit(audited, room - chosen.len(), occasion),
        };
        let last = in_turn.last().copied();
        chosen.extend(in_turn);
        let streams: Vec<_> = chosen.iter().filter_map(|session| self.named(*session)).collect();
        let changed = chosen.into_iter().filter(|session| self.changed.remove(session)).collect();
        let then = match self.state {
            State::Sending { after } => {
                let after = last.or(after);
                let is_last = self.changed.is_empty() && self.behind(after).next().is_none();
                if is_last { Then::Sent } else { Then::Sending { after } }
            }
            State::Complete { audited } => Then::Complete { audited: last.or(audited) },
        };
        let complete = matches!(then, Then::Sent);
        self.in_flight = Some(InFlight { changed, ended: ended.len(), then, names: !streams.is_empty() });
        Report {
            since: self.since.clone(),
            published: u64::try_from(self.streams.len()).unwrap_or(u64::MAX),
            streams,
            ended,
            complete,
            forgotten: std::mem::take(&mut self.forgotten),
        }
    }

    /// What changed among the streams that were sent already. It gets half of a piece at most: the list must get on.
    fn changed_before(&self, after: Option<SessionId>, most: usize) -> Vec<SessionId> {
        let sent = after.map(|after| self.changed.range(..=after).take(most).copied());
        sent.into_iter().flatten().collect()
    }

    /// The next unchanged streams in turn, all around the list at most once.
    fn audit(&self, audited: Option<SessionId>, room: usize, occasion: Occasion) -> Vec<SessionId> {
        if occasion == Occasion::Early {
            return Vec::new();
        }
        let around = audited.map(|audited| self.streams.range(..=audited).map(|(session, _)| *session));
        let in_turn = self.behind(audited).chain(around.into_iter().flatten());
        let unchanged = in_turn.filter(|session| !self.changed.contains(session));
        unchanged.take(room.min(self.sizes.audit)).collect()
    }

    fn behind(&self, after: Option<SessionId>) -> impl Iterator<Item = SessionId> {
        let from = after.map_or(Unbounded, Excluded);
        self.streams.range((from, Unbounded)).map(|(session, _)| *session)
    }

    fn named(&self, session: SessionId) -> Option<PublishedStream> {
        self.streams.get(&session).map(|stream| stream.named(session))
    }

    /// A reactor answered the report in flight.
    pub(super) fn answered(&mut self, reply: &HeartbeatReply) -> Next {
        for owned in &reply.owned {
            if let (Some(stream), Some(_)) = (self.streams.get_mut(&owned.session), owned.epoch) {
                stream.epoch = owned.epoch;
            }
        }
        // Nothing is in flight if the whole list has to be told anew since it was sent.
        let Some(in_flight) = self.in_flight.take() else {
            return Next::More;
        };
        self.ended.drain(..in_flight.ended.min(self.ended.len()));
        self.since = Some(reply.since.clone()).filter(|since| !since.is_empty());
        let silent = in_flight.names && reply.owned.is_empty() && reply.superseded.is_empty();
        self.state = match in_flight.then {
            _ if reply.want_all => State::Sending { after: None },
            Then::Sending { after } => State::Sending { after },
            _ if silent => State::Sending { after: None },
            // A reactor of an older program keeps no list: it gets the whole one each time.
            _ if self.since.is_none() => State::Sending { after: None },
            Then::Sent => State::Complete { audited: None },
            Then::Complete { audited } => State::Complete { audited },
        };
        match self.state {
            _ if reply.want_all => Next::Again,
            State::Sending { after: Some(_) } => Next::More,
            _ if silent => Next::Silent,
            _ if self.changed.is_empty() && self.ended.is_empty() => Next::Rest,
            _ => Next::More,
        }
    }

    /// Nobody answered the report in flight.
    pub(super) fn unanswered(&mut self) {
        if let Some(in_flight) = self.in_flight.take() {
            let still_here = |session: &SessionId| self.streams.contains_key(session);
            self.changed.extend(in_flight.changed.into_iter().filter(still_here));
        }
    }

    /// Nobody was told anything: whoever is found is told everything.
    pub(super) fn start_over(&mut self) {
        self.unanswered();
        self.ended.clear();
        self.begin_again();
    }

    fn begin_again(&mut self) {
        self.since = None;
        self.state = State::Sending { after: None };
    }
}

impl Stream {
    fn named(&self, session: SessionId) -> PublishedStream {
        PublishedStream { stream_name: self.name.clone(), session, epoch: self.epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A reactor, as far as the list of one node goes. It takes a list for complete only if no piece of it can be missing.
    struct Reactor {
        list: BTreeMap<SessionId, StreamName>,
        round: u64,
        /// What was named in this round; nothing: the list is complete.
        named: Option<BTreeSet<SessionId>>,
    }

    impl Reactor {
        fn empty(round: u64) -> Self {
            Reactor { list: BTreeMap::new(), round, named: Some(BTreeSet::new()) }
        }

        fn heartbeat(&mut self, report: &Report, sizes: &Sizes) -> HeartbeatReply {
            assert!(report.streams.len() + report.ended.len() <= sizes.report);
            let goes_on = report.since == Some(self.round.to_string());
            if !goes_on {
                self.round += 1;
                self.named = Some(BTreeSet::new());
            }
            report.ended.iter().for_each(|ended| drop(self.list.remove(&ended.session)));
            for stream in &report.streams {
                self.list.insert(stream.session, stream.stream_name.clone());
                self.named.as_mut().map(|named| named.insert(stream.session));
            }
            let whole = report.streams.len() as u64 >= report.published;
            if let Some(named) = self.named.take_if(|_| whole || (goes_on && report.complete)) {
                self.list.retain(|session, _| named.contains(session));
            }
            let epoch = |stream: &PublishedStream| PublishedStream { epoch: Some(1), ..stream.clone() };
            HeartbeatReply {
                since: self.round.to_string(),
                owned: report.streams.iter().map(epoch).collect(),
                superseded: Vec::new(),
                want_all: !goes_on && self.named.is_some(),
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Publish(u8),
        End(u8),
        Epoch(u8),
        Mark(u8),
        /// To this reactor; whether it hears it, and whether it is heard.
        Beat {
            reactor: usize,
            regular: bool,
            heard: bool,
            answered: bool,
        },
        /// What happens while a heartbeat is on its way.
        EndMeanwhile(u8),
        PublishMeanwhile(u8),
        Forget(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => any::<u8>().prop_map(Step::Publish),
            3 => any::<u8>().prop_map(Step::End),
            1 => any::<u8>().prop_map(Step::Epoch),
            1 => any::<u8>().prop_map(Step::Mark),
            1 => any::<u8>().prop_map(Step::EndMeanwhile),
            1 => any::<u8>().prop_map(Step::PublishMeanwhile),
            1 => (0..2usize).prop_map(Step::Forget),
            6 => (0..2usize, any::<bool>(), prop::bool::weighted(0.7), prop::bool::weighted(0.7))
                .prop_map(|(reactor, regular, heard, answered)| Step::Beat { reactor, regular, heard, answered }),
        ];
        prop::collection::vec(step, 0..120)
    }

    struct Model {
        roster: Roster,
        live: Vec<SessionId>,
        reactors: [Reactor; 2],
    }

    impl Model {
        fn new(sizes: Sizes) -> Self {
            let reactors = [Reactor::empty(0), Reactor::empty(1000)];
            Model { roster: Roster::with(sizes), live: Vec::new(), reactors }
        }

        fn publish(&mut self, key: u8) {
            let session = SessionId::random();
            self.live.push(session);
            self.roster.insert(session, name(key), None);
        }

        fn end(&mut self, key: u8) {
            if !self.live.is_empty() {
                let session = self.live.swap_remove(usize::from(key) % self.live.len());
                self.roster.end(PublisherRelease { stream_name: name(0), session });
            }
        }

        fn one(&self, key: u8) -> Option<SessionId> {
            self.live.get(usize::from(key) % self.live.len().max(1)).copied()
        }

        fn report(&mut self, occasion: Occasion) -> Report {
            let report = self.roster.next(occasion);
            assert!(!report.complete || self.roster.changed.is_empty(), "complete, and yet there is more");
            report
        }

        fn beat(&mut self, reactor: usize, occasion: Occasion) -> Next {
            let report = self.report(occasion);
            let reply = self.reactors[reactor].heartbeat(&report, &self.roster.sizes);
            self.roster.answered(&reply)
        }

        fn run(&mut self, steps: Vec<Step>) {
            let mut meanwhile = Vec::new();
            for step in steps {
                match step {
                    Step::Publish(key) => self.publish(key),
                    Step::End(key) => self.end(key),
                    Step::Epoch(key) => self.one(key).into_iter().for_each(|s| self.roster.set_epoch(s, 9)),
                    Step::Mark(key) => self.one(key).into_iter().for_each(|s| self.roster.mark(s)),
                    Step::EndMeanwhile(_) | Step::PublishMeanwhile(_) => meanwhile.push(step),
                    Step::Forget(reactor) => {
                        self.reactors[reactor] = Reactor::empty(self.reactors[reactor].round + 7);
                    }
                    Step::Beat { reactor, regular, heard, answered } => {
                        let occasion = if regular { Occasion::Regular } else { Occasion::Early };
                        let report = self.report(occasion);
                        let reply =
                            heard.then(|| self.reactors[reactor].heartbeat(&report, &self.roster.sizes));
                        for step in meanwhile.drain(..) {
                            match step {
                                Step::EndMeanwhile(key) => self.end(key),
                                Step::PublishMeanwhile(key) => self.publish(key),
                                _ => {}
                            }
                        }
                        match reply.filter(|_| answered) {
                            Some(reply) => drop(self.roster.answered(&reply)),
                            None => self.roster.unanswered(),
                        }
                    }
                }
            }
        }

        /// Heartbeats that all arrive, until there is nothing to tell; how many it took.
        fn settle(&mut self, reactor: usize) -> usize {
            for beats in 1..1000 {
                if self.beat(reactor, Occasion::Early) == Next::Rest {
                    return beats;
                }
            }
            panic!("there is always more to tell");
        }

        fn check(&self, reactor: usize) {
            let ours: BTreeSet<_> = self.live.iter().copied().collect();
            let theirs: BTreeSet<_> = self.reactors[reactor].list.keys().copied().collect();
            assert_eq!(ours, theirs);
        }
    }

    fn name(key: u8) -> StreamName {
        format!("s{key}").parse().unwrap()
    }

    fn small() -> Sizes {
        Sizes { report: 6, audit: 2, ended_kept: 9 }
    }

    proptest! {
        #[test]
        fn a_reactor_knows_the_list_once_heartbeats_get_through(steps in steps(), last in 0..2usize) {
            let mut model = Model::new(small());
            model.run(steps);
            let beats = model.settle(last);
            model.check(last);
            // Twice the list in pieces of which half may be changes and half of the rest ends, and what asks for it.
            prop_assert!(beats <= 2 * (model.live.len() + 9) + 4, "{beats} for {}", model.live.len());
        }

        #[test]
        fn what_a_reactor_loses_unseen_is_healed_by_the_audit(count in 1..40usize, lost in any::<u8>()) {
            let mut model = Model::new(small());
            (0..count).for_each(|key| model.publish(key as u8));
            model.settle(0);
            let session = model.one(lost).unwrap();
            model.reactors[0].list.remove(&session);
            for _ in 0..count.div_ceil(2) {
                prop_assert_eq!(model.beat(0, Occasion::Regular), Next::Rest);
            }
            model.check(0);
        }
    }

    #[test]
    fn a_heartbeat_of_a_great_list_that_does_not_change_names_64_streams_and_an_early_one_none() {
        let mut model = Model::new(Roster::new().sizes);
        (0..2000).for_each(|key| model.publish(key as u8));
        assert!(model.settle(0) <= 5);
        assert_eq!(model.roster.next(Occasion::Regular).streams.len(), AUDIT_STREAMS);
        assert_eq!(model.roster.next(Occasion::Early).streams.len(), 0);
        let marked = model.live[7];
        model.roster.mark(marked);
        assert_eq!(model.roster.next(Occasion::Early).streams[0].session, marked);
    }

    #[test]
    fn ends_that_nobody_hears_of_are_bounded_and_what_is_given_up_begins_the_list_anew() {
        let mut model = Model::new(small());
        (0..20).for_each(|key| model.publish(key));
        model.settle(0);
        (0..12).for_each(|key| model.end(key));
        let report = model.roster.next(Occasion::Early);
        assert_eq!((report.since, report.ended.len(), report.forgotten), (None, 3, 3));
        assert_eq!(model.roster.next(Occasion::Early).forgotten, 0);
        model.settle(0);
        model.check(0);
    }

    #[test]
    fn a_reactor_of_an_older_program_gets_the_whole_list_with_each_regular_heartbeat() {
        let mut roster = Roster::with(small());
        let sessions: Vec<_> = (0..4).map(|_| SessionId::random()).collect();
        sessions.iter().for_each(|session| roster.insert(*session, name(1), None));
        for _ in 0..3 {
            let report = roster.next(Occasion::Regular);
            assert_eq!((report.streams.len(), report.complete), (4, true));
            let reply = HeartbeatReply { owned: report.streams, ..HeartbeatReply::default() };
            assert_eq!(roster.answered(&reply), Next::Rest);
        }
    }

    #[test]
    fn a_reactor_that_says_nothing_of_the_named_streams_is_told_again() {
        let mut roster = Roster::with(small());
        roster.insert(SessionId::random(), name(1), None);
        roster.next(Occasion::Regular);
        let silent = HeartbeatReply { since: "1".to_owned(), ..HeartbeatReply::default() };
        assert_eq!(roster.answered(&silent), Next::Silent);
        assert_eq!(roster.next(Occasion::Early).streams.len(), 1);
    }
}
