//! Who may push, one rule after the other.

use super::pusher::{claim, confirm, release};
use super::record::{NodeRecord, Record, StreamRecord};
use super::rules::{self, HeardNode, Nodes, Scene, Speaker};
use super::{Claim, Error, Settings};
use crate::api::{Heartbeat, PUSHING_STREAMS, PushClaim, PushRelease};
use crate::ids::{NodeId, Origin, SessionId, StreamName};
use std::time::Duration;

/// Milliseconds in which a node of these tests falls silent.
const SILENT: u64 = 15_000;

/// A name that goes from node `a` to node `b`, and what is known of both.
struct Case {
    record: StreamRecord,
    nodes: Nodes,
    settings: Settings,
    now: u64,
    generation: u64,
    warming_up: Option<Duration>,
}

fn name() -> StreamName {
    "x".parse().unwrap()
}

fn node(text: &str) -> NodeId {
    text.parse().unwrap()
}

/// The process of a node.
fn instance(of: &str) -> SessionId {
    format!("{:032x}", of.as_bytes()[0]).parse().unwrap()
}

fn heard(instance: SessionId, published: u64) -> HeardNode {
    let heartbeat =
        Heartbeat { interval_ms: 5000, instance: Some(instance), published, ..Heartbeat::default() };
    let mut record = NodeRecord::new(heartbeat, "10.0.0.1".parse().unwrap(), 0);
    record.lease = SILENT;
    HeardNode { record, left: SILENT }
}

impl Case {
    fn new() -> Case {
        let nodes = ["a", "b"].map(|id| (node(id), Some(heard(instance(id), 1))));
        Case {
            record: StreamRecord::default(),
            nodes: nodes.into_iter().collect(),
            settings: Settings::default(),
            now: 1_000_000,
            generation: 1,
            warming_up: None,
        }
    }

    fn scene(&self) -> Scene<'_> {
        Scene {
            settings: &self.settings,
            now: self.now,
            generation: self.generation,
            warming_up: self.warming_up,
            room: true,
            spare: true,
            nodes: &self.nodes,
        }
    }

    /// Another session takes the name.
    fn publish(&mut self, at: &str) -> SessionId {
        let session = SessionId::random();
        let origin: Origin = "10.0.0.1".parse().unwrap();
        let source = [10, 0, 0, 1].into();
        let claim = Claim {
            name: name(),
            session: Some(session),
            node: Some(node(at)),
            origin,
            source,
            identity: None,
        };
        let decision = rules::claim(&claim, &self.record, &self.scene());
        decision.reply.unwrap();
        self.record = decision.record.unwrap();
        // As if heartbeats listed it.
        self.record.owner.as_mut().unwrap().until = u64::MAX;
        session
    }

    fn asks(&mut self, session: SessionId, at: &str, turn: u64) -> Result<(), Error> {
        let (stream_name, node, instance) = (name(), node(at), instance(at));
        let wish = PushClaim { stream_name, session, node, instance, turn };
        let decision = claim(&wish, &self.record, &self.scene());
        self.record = decision.record.unwrap_or(self.record.clone());
        decision.reply
    }

    fn releases(&mut self, session: SessionId, turn: u64) {
        let decision = release(&PushRelease { stream_name: name(), session, turn }, &self.record);
        self.record = decision.record.unwrap_or(self.record.clone());
    }

    /// A heartbeat names a session as pushed.
    fn confirms(&mut self, session: SessionId, owns: bool, at: &str) {
        let (id, record) = (node(at), heard(instance(at), 1).record);
        let speaker = Speaker { node: &id, record: &record };
        let decision = confirm(session, owns, &speaker, &self.record, &self.scene());
        self.record = decision.record.unwrap_or(self.record.clone());
    }

    fn pusher(&self) -> Option<SessionId> {
        self.record.pusher.as_ref().map(|pusher| pusher.session)
    }
}

fn held() -> Result<(), Error> {
    Err(Error::PushHeld(name(), node("a")))
}

#[test]
fn the_successor_waits_until_the_predecessor_has_released() {
    let mut case = Case::new();
    let old = case.publish("a");
    assert_eq!(case.asks(old, "a", 1), Ok(()));
    assert_eq!(case.asks(old, "a", 1), Ok(()), "asking again changes nothing");
    let new = case.publish("b");
    assert_eq!(case.asks(new, "b", 1), held());
    assert_eq!(case.asks(old, "a", 2), Err(Error::Superseded(name())));
    case.releases(new, 9);
    assert_eq!(case.asks(new, "b", 1), held(), "its own release frees nothing");
    case.releases(old, 1);
    assert_eq!(case.asks(new, "b", 1), Ok(()));
    assert_eq!(case.pusher(), Some(new));
}

#[test]
fn only_the_owner_on_a_node_that_is_heard_is_let_push() {
    let mut case = Case::new();
    let stranger = SessionId::random();
    assert_eq!(case.asks(stranger, "a", 1), Err(Error::NotOwner(name())));
    let session = case.publish("a");
    assert_eq!(case.asks(stranger, "b", 1), Err(Error::NotOwner(name())));
    // Otherwise its successor would take it for dead.
    let process = case.nodes.insert(node("a"), None).unwrap();
    assert_eq!(case.asks(session, "a", 1), Err(Error::NotHeard(node("a"))));
    case.nodes.insert(node("a"), Some(heard(SessionId::random(), 1)));
    assert_eq!(case.asks(session, "a", 1), Err(Error::NotHeard(node("a"))), "another process");
    case.nodes.insert(node("a"), process);
    case.warming_up = Some(Duration::from_secs(1));
    assert_eq!(case.asks(session, "a", 1), Err(Error::WarmingUp(Duration::from_secs(1))));
    assert_eq!(case.pusher(), None);
}

#[test]
fn what_a_process_pushes_ends_with_it() {
    for end in [None, Some(heard(SessionId::random(), 1))] {
        let mut case = Case::new();
        let old = case.publish("a");
        case.asks(old, "a", 1).unwrap();
        let new = case.publish("b");
        assert_eq!(case.asks(new, "b", 1), held());
        case.nodes.insert(node("a"), end);
        assert_eq!(case.asks(new, "b", 1), Ok(()));
    }
}

#[test]
fn a_late_call_ends_or_claims_nothing_that_came_after_it() {
    let mut case = Case::new();
    let session = case.publish("a");
    case.asks(session, "a", 1).unwrap();
    case.asks(session, "a", 2).unwrap();
    case.releases(session, 1);
    assert_eq!(case.pusher(), Some(session), "the release of the claim before");
    case.asks(session, "a", 1).unwrap();
    case.releases(session, 2);
    assert_eq!(case.pusher(), None, "the claim before came late");
}

#[test]
fn a_lost_release_holds_nobody_up_for_longer_than_a_silent_node() {
    let mut case = Case::new();
    let old = case.publish("a");
    case.asks(old, "a", 1).unwrap();
    case.now += 10 * SILENT;
    let new = case.publish("b");
    assert_eq!(case.asks(new, "b", 1), held(), "it is the claim that puts it in doubt");
    case.now += SILENT - 1;
    assert_eq!(case.asks(new, "b", 1), held());
    case.confirms(old, false, "a");
    case.now += 1;
    assert_eq!(case.asks(new, "b", 1), held(), "its node still pushes it");
    case.now += SILENT - 1;
    assert_eq!(case.asks(new, "b", 1), held());
    case.now += 1;
    assert_eq!(case.asks(new, "b", 1), Ok(()));
}

#[test]
fn a_node_with_many_pushes_has_time_to_name_them_all() {
    let mut case = Case::new();
    let old = case.publish("a");
    case.asks(old, "a", 1).unwrap();
    case.nodes.insert(node("a"), Some(heard(instance("a"), PUSHING_STREAMS as u64)));
    let new = case.publish("b");
    assert_eq!(case.asks(new, "b", 1), held());
    case.now += 2 * SILENT - 1;
    assert_eq!(case.asks(new, "b", 1), held());
    case.now += 1;
    assert_eq!(case.asks(new, "b", 1), Ok(()));
}

#[test]
fn a_store_that_lost_its_memory_learns_of_the_predecessor_while_it_warms_up() {
    let mut case = Case::new();
    let (old, new) = (case.publish("a"), case.publish("b"));
    case.record.pusher = None;
    case.warming_up = Some(Duration::from_secs(1));
    case.confirms(old, false, "a");
    assert_eq!(case.pusher(), Some(old));
    case.warming_up = None;
    assert_eq!(case.asks(new, "b", 1), held());
    case.releases(old, 1);
    // A heartbeat that the release has overtaken.
    case.confirms(old, false, "a");
    assert_eq!(case.asks(new, "b", 1), Ok(()));
}

#[test]
fn what_nodes_say_counts_more_than_what_a_store_remembers_that_lost_its_last_writes() {
    let mut case = Case::new();
    let first = case.publish("a");
    case.asks(first, "a", 1).unwrap();
    let remembered = case.record.pusher.clone();
    let second = case.publish("b");
    case.releases(first, 1);
    case.asks(second, "b", 1).unwrap();
    let third = case.publish("a");
    case.record.pusher = remembered;
    case.generation = 2;
    case.warming_up = Some(Duration::from_secs(1));
    case.confirms(second, false, "b");
    case.warming_up = None;
    assert_eq!(case.asks(third, "a", 1), Err(Error::PushHeld(name(), node("b"))));
    case.confirms(first, false, "a");
    assert_eq!(case.pusher(), Some(second));
}

#[test]
fn the_owner_that_pushes_is_believed_over_what_a_store_remembers() {
    let mut case = Case::new();
    let old = case.publish("a");
    case.asks(old, "a", 1).unwrap();
    let new = case.publish("b");
    case.confirms(new, true, "b");
    assert_eq!(case.pusher(), Some(new));
    case.confirms(old, false, "a");
    assert_eq!(case.pusher(), Some(new), "unlike whoever lost the name");
}

#[test]
fn another_servers_clock_ends_no_wait_early_nor_never() {
    let mut case = Case::new();
    let old = case.publish("a");
    case.asks(old, "a", 1).unwrap();
    let new = case.publish("b");
    assert_eq!(case.asks(new, "b", 1), held());
    (case.generation, case.now) = (2, case.now + 100 * SILENT);
    assert_eq!(case.asks(new, "b", 1), held(), "the wait begins anew");
    case.now -= 50 * SILENT;
    assert_eq!(case.asks(new, "b", 1), held());
    case.now += SILENT;
    assert_eq!(case.asks(new, "b", 1), Ok(()));
}

#[test]
fn records_of_older_programs_are_read_and_stay_the_same() {
    let mut case = Case::new();
    case.publish("a");
    let text = String::from_utf8(case.record.clone().encode().unwrap().to_vec()).unwrap();
    assert!(!text.contains("pusher"), "{text}");
    assert_eq!(StreamRecord::decode(text.as_bytes()).unwrap().pusher, None);
}
