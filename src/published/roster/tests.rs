//! A list that changes while calls and replies are lost and reactors forget, against a model of a reactor.

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
        self.roster.insert(session, name(key), None, None);
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
                    let reply = heard.then(|| self.reactors[reactor].heartbeat(&report, &self.roster.sizes));
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
    Sizes { report: 6, audit: 2, pushing: 2, ended_kept: 9 }
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
    sessions.iter().for_each(|session| roster.insert(*session, name(1), None, None));
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
    roster.insert(SessionId::random(), name(1), None, None);
    roster.next(Occasion::Regular);
    let silent = HeartbeatReply { since: "1".to_owned(), ..HeartbeatReply::default() };
    assert_eq!(roster.answered(&silent), Next::Silent);
    assert_eq!(roster.next(Occasion::Early).streams.len(), 1);
}

#[test]
fn a_stream_that_a_reactor_says_nothing_of_is_named_in_each_regular_heartbeat_until_it_does() {
    let mut model = Model::new(Roster::new().sizes);
    (0..2000).for_each(|key| model.publish(key as u8));
    let without_room = model.live[77];
    // Says whether it was named, and what is next.
    let mut beat = |occasion, room| {
        let report = model.roster.next(occasion);
        let mut reply = model.reactors[0].heartbeat(&report, &model.roster.sizes);
        reply.owned.retain(|stream| room || stream.session != without_room);
        let named = report.streams.iter().any(|stream| stream.session == without_room);
        (named, model.roster.answered(&reply))
    };
    while beat(Occasion::Early, false).1 != Next::Rest {}
    for _ in 0..3 {
        assert_eq!(beat(Occasion::Early, false), (false, Next::Rest), "it is not urgent");
        assert_eq!(beat(Occasion::Regular, false), (true, Next::Rest));
    }
    assert_eq!(beat(Occasion::Regular, true), (true, Next::Rest));
    let named = (0..2000 / AUDIT_STREAMS).filter(|_| beat(Occasion::Regular, true).0).count();
    assert!(named <= 1, "it is one of 2,000 now");
}

#[test]
fn an_end_is_told_again_to_a_reactor_that_asks_for_everything() {
    let mut roster = Roster::with(small());
    roster.end(PublisherRelease { stream_name: name(1), session: SessionId::random() });
    let asks = HeartbeatReply { since: "1".to_owned(), want_all: true, ..HeartbeatReply::default() };
    let takes = HeartbeatReply { want_all: false, ..asks.clone() };
    for reply in [asks, takes] {
        assert_eq!(roster.next(Occasion::Early).ended.len(), 1);
        roster.answered(&reply);
    }
    assert_eq!(roster.next(Occasion::Early).ended.len(), 0);
}

#[test]
fn what_is_pushed_is_named_in_turn_also_when_its_publish_has_ended() {
    let mut model = Model::new(Sizes { audit: 0, ..small() });
    (0..5).for_each(|key| model.publish(key));
    model.settle(0);
    let named = |model: &mut Model, occasion| {
        let report = model.report(occasion);
        let reply = model.reactors[0].heartbeat(&report, &model.roster.sizes);
        model.roster.answered(&reply);
        assert!(report.streams.iter().all(|stream| stream.pushing), "{report:?}");
        let still: BTreeSet<_> = report.still_pushing.iter().map(|gone| gone.session).collect();
        (report.streams.iter().map(|stream| stream.session).collect::<BTreeSet<_>>(), still)
    };
    let pushed: BTreeSet<_> = model.live.iter().take(3).copied().collect();
    pushed.iter().for_each(|session| model.roster.set_pushing(&name(0), *session, true));
    let two: Vec<_> = (0..2).map(|_| named(&mut model, Occasion::Regular).0).collect();
    assert_eq!(two.iter().map(BTreeSet::len).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(two.into_iter().flatten().collect::<BTreeSet<_>>(), pushed);
    assert_eq!(named(&mut model, Occasion::Early), (BTreeSet::new(), BTreeSet::new()));
    model.roster.mark_pushing();
    assert_eq!(named(&mut model, Occasion::Early).0, pushed, "changes were missed");
    // A publish ends, and what it sent is on its way still.
    let gone = *pushed.first().unwrap();
    model.roster.end(PublisherRelease { stream_name: name(0), session: gone });
    model.settle(0);
    for _ in 0..3 {
        assert_eq!(named(&mut model, Occasion::Regular).1, BTreeSet::from([gone]));
    }
    // A reactor that lost its memory hears of it with the list.
    model.reactors[0] = Reactor::empty(99);
    named_with_the_list(&mut model, gone);
    model.roster.set_pushing(&name(0), gone, false);
    assert_eq!(named(&mut model, Occasion::Regular).1, BTreeSet::new());
}

fn named_with_the_list(model: &mut Model, gone: SessionId) {
    model.beat(0, Occasion::Early);
    loop {
        let report = model.report(Occasion::Early);
        assert_eq!(report.still_pushing.iter().map(|gone| gone.session).collect::<Vec<_>>(), [gone]);
        let reply = model.reactors[0].heartbeat(&report, &model.roster.sizes);
        model.roster.answered(&reply);
        if report.complete {
            return;
        }
    }
}
