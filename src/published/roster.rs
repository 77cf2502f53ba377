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
//! again, with what changed since. What is pushed to other servers is named in turn as well, more of it at a time: a reactor
//! takes a push that is not named for some intervals for one that has ended, if somebody else waits for it. No step looks at more entries than a report may have, however long the list is.
//!
//! Pure: no clock, no socket, and no idea of what a reactor does with it.

use crate::api::{
    AUDIT_STREAMS, HEARTBEAT_STREAMS, HeartbeatReply, PUSHING_STREAMS, PublishedStream, PublisherRelease,
};
use crate::ids::{Identity, SessionId, StreamName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

/// The most ended publishes that are kept for a reactor that does not answer: some 3 MB with the longest names.
pub const ENDED_KEPT: usize = 10_000;

/// The streams of a node, and what of them is told already.
#[derive(Debug)]
pub(super) struct Roster {
    sizes: Sizes,
    streams: BTreeMap<SessionId, Stream>,
    /// To be told, beside what [`State::Sending`] has yet to send. All of them are in `streams`.
    changed: BTreeSet<SessionId>,
    /// Told, and a reactor said neither that they own their name nor that they do not: it has no room, or has just
    /// started. Regular heartbeats name them again.
    unjudged: BTreeSet<SessionId>,
    /// Pushed to other servers. All of them are in `streams`.
    pushing: BTreeSet<SessionId>,
    /// The next of these to be named begin behind this session.
    pushing_named: Option<SessionId>,
    /// Pushed to other servers for a moment after the publish has ended.
    still_pushing: BTreeMap<SessionId, StreamName>,
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
    pushing: usize,
    ended_kept: usize,
}

#[derive(Debug)]
struct Stream {
    name: StreamName,
    epoch: Option<u64>,
    identity: Option<Identity>,
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
    /// The streams that it names.
    named: BTreeSet<SessionId>,
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
    /// At most [`PUSHING_STREAMS`], beside the others.
    pub still_pushing: Vec<PublisherRelease>,
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
        Roster::with(Sizes {
            report: HEARTBEAT_STREAMS,
            audit: AUDIT_STREAMS,
            pushing: PUSHING_STREAMS,
            ended_kept: ENDED_KEPT,
        })
    }

    fn with(sizes: Sizes) -> Self {
        Roster {
            sizes,
            streams: BTreeMap::new(),
            changed: BTreeSet::new(),
            unjudged: BTreeSet::new(),
            pushing: BTreeSet::new(),
            pushing_named: None,
            still_pushing: BTreeMap::new(),
            ended: VecDeque::new(),
            forgotten: 0,
            since: None,
            state: State::Sending { after: None },
            in_flight: None,
        }
    }

    pub(super) fn insert(
        &mut self,
        session: SessionId,
        name: StreamName,
        epoch: Option<u64>,
        identity: Option<Identity>,
    ) {
        self.streams.insert(session, Stream { name, epoch, identity });
        self.changed.insert(session);
    }

    /// A publish ended, whether or not it was in the list.
    pub(super) fn end(&mut self, release: PublisherRelease) {
        self.streams.remove(&release.session);
        self.changed.remove(&release.session);
        self.unjudged.remove(&release.session);
        if self.pushing.remove(&release.session) {
            self.still_pushing.insert(release.session, release.stream_name.clone());
        }
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

    /// A session is pushed to other servers from now on, or no longer. No report is due for it: the reactor that let it be pushed
    /// knows, and others hear of it in time.
    pub(super) fn set_pushing(&mut self, name: &StreamName, session: SessionId, pushing: bool) {
        if !pushing {
            self.pushing.remove(&session);
            self.still_pushing.remove(&session);
        } else if self.streams.contains_key(&session) {
            self.pushing.insert(session);
        } else {
            self.still_pushing.insert(session, name.clone());
        }
    }

    /// The next report names what is pushed here: a reactor may have said to somebody else meanwhile that it waits.
    pub(super) fn mark_pushing(&mut self) {
        self.changed.extend(self.pushing.iter().copied());
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
        self.streams.keys().filter_map(|session| self.named(*session))
    }

    /// What to tell now. A report that was not answered is taken for lost.
    pub(super) fn next(&mut self, occasion: Occasion) -> Report {
        self.unanswered();
        let ended: Vec<_> = self.ended.iter().take(self.sizes.report / 2).cloned().collect();
        let room = self.sizes.report - ended.len();
        let mut named: BTreeSet<SessionId> = match self.state {
            State::Sending { after } => self.changed_before(after, room / 2),
            State::Complete { .. } => self.changed.iter().take(room).copied().collect(),
        };
        if occasion == Occasion::Regular {
            let most = (room - named.len()).min(self.sizes.report / 2);
            named.extend(self.unjudged.iter().take(most));
        }
        let still_pushing = match (&self.state, occasion) {
            (State::Complete { .. }, Occasion::Early) => Vec::new(),
            (State::Complete { .. }, Occasion::Regular) => {
                let most = (room - named.len()).min(self.sizes.pushing);
                named.extend(self.pushing_in_turn(most));
                self.still_pushing()
            }
            // A reactor that lost its memory must hear of them before the list is complete.
            (State::Sending { .. }, _) => self.still_pushing(),
        };
        let room = room - named.len();
        let in_turn: Vec<SessionId> = match (&self.state, occasion) {
            (State::Sending { after }, _) => self.behind(*after).take(room).collect(),
            (State::Complete { audited }, Occasion::Regular) => self.audit(*audited, &named, room),
            (State::Complete { .. }, Occasion::Early) => Vec::new(),
        };
        let last = in_turn.last().copied();
        named.extend(in_turn);
        let streams = named.iter().filter_map(|session| self.named(*session)).collect();
        let changed = named.iter().copied().filter(|session| self.changed.remove(session)).collect();
        let then = match self.state {
            State::Sending { after } => {
                let after = last.or(after);
                let is_last = self.changed.is_empty() && self.behind(after).next().is_none();
                if is_last { Then::Sent } else { Then::Sending { after } }
            }
            State::Complete { audited } => Then::Complete { audited: last.or(audited) },
        };
        let complete = matches!(then, Then::Sent);
        self.in_flight = Some(InFlight { changed, ended: ended.len(), then, named });
        Report {
            since: self.since.clone(),
            published: u64::try_from(self.streams.len()).unwrap_or(u64::MAX),
            streams,
            ended,
            still_pushing,
            complete,
            forgotten: std::mem::take(&mut self.forgotten),
        }
    }

    /// The next streams that are pushed, in turn. Whether the report is answered does not matter: their turn comes again.
    fn pushing_in_turn(&mut self, most: usize) -> Vec<SessionId> {
        let from = self.pushing_named.map_or(Unbounded, Excluded);
        let around = self.pushing_named.map(|last| self.pushing.range(..=last));
        let in_turn = self.pushing.range((from, Unbounded)).chain(around.into_iter().flatten());
        let in_turn: Vec<_> = in_turn.copied().take(most).collect();
        self.pushing_named = in_turn.last().copied().or(self.pushing_named);
        in_turn
    }

    /// Those that the next report names. They are few, and gone after seconds.
    fn still_pushing(&self) -> Vec<PublisherRelease> {
        let first = self.still_pushing.iter().take(self.sizes.pushing);
        first
            .map(|(session, name)| PublisherRelease { stream_name: name.clone(), session: *session })
            .collect()
    }

    /// What changed among the streams that were sent already. It gets half of a piece at most: the list must get on.
    fn changed_before(&self, after: Option<SessionId>, most: usize) -> BTreeSet<SessionId> {
        let sent = after.map(|after| self.changed.range(..=after).take(most).copied());
        sent.into_iter().flatten().collect()
    }

    /// The next unchanged streams in turn, all around the list at most once.
    fn audit(&self, audited: Option<SessionId>, named: &BTreeSet<SessionId>, room: usize) -> Vec<SessionId> {
        let around = audited.map(|audited| self.streams.range(..=audited).map(|(session, _)| *session));
        let in_turn = self.behind(audited).chain(around.into_iter().flatten());
        let others = in_turn.filter(|session| !named.contains(session));
        others.take(room.min(self.sizes.audit)).collect()
    }

    fn behind(&self, after: Option<SessionId>) -> impl Iterator<Item = SessionId> {
        let from = after.map_or(Unbounded, Excluded);
        self.streams.range((from, Unbounded)).map(|(session, _)| *session)
    }

    fn named(&self, session: SessionId) -> Option<PublishedStream> {
        let Stream { name, epoch, identity } = self.streams.get(&session)?;
        Some(PublishedStream {
            stream_name: name.clone(),
            session,
            epoch: *epoch,
            identity: *identity,
            pushing: self.pushing.contains(&session),
        })
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
        // A reactor that asks for everything may have taken in nothing of this call. An end that is told twice ends once.
        if !reply.want_all {
            self.ended.drain(..in_flight.ended.min(self.ended.len()));
        }
        self.since = Some(reply.since.clone()).filter(|since| !since.is_empty());
        let silent = self.judge(&in_flight.named, reply);
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

    /// Keeps account of what a reactor said nothing of; true if that is everything that was named.
    fn judge(&mut self, named: &BTreeSet<SessionId>, reply: &HeartbeatReply) -> bool {
        let owned = reply.owned.iter().map(|stream| stream.session);
        let judged: BTreeSet<_> = owned.chain(reply.superseded.iter().map(|lost| lost.session)).collect();
        for session in named {
            if judged.contains(session) {
                self.unjudged.remove(session);
            } else if self.streams.contains_key(session) {
                self.unjudged.insert(*session);
            }
        }
        !named.is_empty() && judged.is_empty()
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

#[cfg(test)]
mod tests;
