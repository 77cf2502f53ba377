//! Who may push a stream on to other servers: the rules, as pure functions like [`super::rules`].
//!
//! A stream is pushed by one node at a time, the one where the current session of its name is published. A session that lost
//! the name is pushed until its node has heard of it and has ended what it pushes; until then its successor waits.
//!
//! ```text
//!             claim of the owner                       the owner claims: held
//!  ┌────────┐ ─────────────────▶ ┌────────┐ ──────────────────────────────────▶ ┌───────────┐
//!  │ nobody │                    │ pusher │ another session has taken the name  │ contested │
//!  └────────┘ ◀───────────────── └────────┘ ◀────────────────────────────────── └───────────┘
//!              release                ▲         a heartbeat names it as pushed     │
//!                                     └───── to the owner: released; node gone or ─┘
//!                                            another process; not named in time
//! ```
//!
//! **Nobody waits for ever.** A pusher counts for as long as the record of its node is there, with the same process in it.
//! A node that is heard names what it pushes in its heartbeats; a contested pusher that is not named for as
//! long as three rounds of that take has ended, and its release was lost.
//!
//! **A store that lost its memory** hears of pushers from heartbeats. Until every node had its time to tell, nobody is let push.
//! A release or a claim that arrives late changes nothing that came after it, see [`PushClaim::turn`]; a claim that arrives after
//! its own release leaves a pusher that no heartbeat names.

use super::Error;
use super::record::{Claimant, Contested, Pusher, StreamRecord};
use super::rules::{self, Decision, HeardNode, Scene, Speaker};
use crate::api::{PUSHING_STREAMS, PushClaim, PushRelease};
use crate::ids::SessionId;

/// Lets a session push if it owns the name and nobody else may still be pushing.
pub(super) fn claim(claim: &PushClaim, record: &StreamRecord, scene: &Scene) -> Decision<Result<(), Error>> {
    let mut after = record.clone();
    let reply = may_claim(claim, record, scene).and_then(|()| take(claim, &mut after, scene));
    decision(record, after, reply)
}

/// Ends what a claim and those before it allowed.
pub(super) fn release(release: &PushRelease, record: &StreamRecord) -> Decision<()> {
    let mut after = record.clone();
    after.pusher.take_if(|pusher| pusher.session == release.session && pusher.turn <= release.turn);
    decision(record, after, ())
}

/// A heartbeat says that its node pushes a session, which `owns` the name or does not any more.
///
/// A store that has not lost its memory knows the pusher from its claim: what a heartbeat says of a session that lost its name is
/// new only while it warms up, and after that a call that was overtaken by the release.
pub(super) fn confirm(
    session: SessionId,
    owns: bool,
    speaker: &Speaker,
    record: &StreamRecord,
    scene: &Scene,
) -> Decision<()> {
    let mut after = record.clone();
    let Some(instance) = speaker.record.instance else { return decision(record, after, ()) };
    let (turn, takes) = match &record.pusher {
        Some(pusher) if pusher.session == session => (pusher.turn, true),
        Some(pusher) => {
            // What the store remembers may be older than the last grant, which it lost.
            let doubtful = scene.warming_up.is_some() && pusher.generation != scene.generation;
            (0, owns || doubtful || node_of(pusher, scene).is_none())
        }
        None => (0, owns || scene.warming_up.is_some()),
    };
    if takes {
        let node = speaker.node.clone();
        let generation = scene.generation;
        after.pusher = Some(Pusher { session, node, instance, turn, generation, contested: None });
    }
    decision(record, after, ())
}

/// Whether a claim comes from the owner of the name, on a node that is heard.
fn may_claim(claim: &PushClaim, record: &StreamRecord, scene: &Scene) -> Result<(), Error> {
    let name = &claim.stream_name;
    if record.has_ended(Claimant::Session(claim.session), scene.now) {
        return Err(Error::Superseded(name.clone()));
    }
    if let Some(left) = scene.warming_up {
        return Err(Error::WarmingUp(left));
    }
    // A process that is not heard would pass for one that has ended, and what it pushes with it.
    let node = scene.nodes.get(&claim.node).and_then(Option::as_ref);
    if node.is_none_or(|node| node.record.instance != Some(claim.instance)) {
        return Err(Error::NotHeard(claim.node.clone()));
    }
    let owner = rules::owner(name, record, scene).and_then(|lease| lease.session);
    if owner == Some(claim.session) { Ok(()) } else { Err(Error::NotOwner(name.clone())) }
}

/// Makes a session the pusher, unless another one may be pushed still. That one is contested from now on.
fn take(claim: &PushClaim, after: &mut StreamRecord, scene: &Scene) -> Result<(), Error> {
    let mut turn = claim.turn;
    match &mut after.pusher {
        Some(pusher) if pusher.session == claim.session => turn = turn.max(pusher.turn),
        Some(pusher) => {
            if let Some(node) = node_of(pusher, scene) {
                let (now, generation) = (scene.now, scene.generation);
                // Another server's clock may be far behind.
                let known = pusher.contested.filter(|it| it.generation == generation && it.since <= now);
                let contested = known.unwrap_or(Contested { since: now, generation });
                pusher.contested = Some(contested);
                if now - contested.since < patience(node) {
                    return Err(Error::PushHeld(claim.stream_name.clone(), pusher.node.clone()));
                }
            }
        }
        None => {}
    }
    let (session, node, instance) = (claim.session, claim.node.clone(), claim.instance);
    let generation = scene.generation;
    after.pusher = Some(Pusher { session, node, instance, turn, generation, contested: None });
    Ok(())
}

/// The node of a pusher, if it is heard and its process still the one that pushed.
fn node_of<'a>(pusher: &Pusher, scene: &Scene<'a>) -> Option<&'a HeardNode> {
    let node = scene.nodes.get(&pusher.node)?.as_ref()?;
    (node.record.instance == Some(pusher.instance)).then_some(node)
}

/// Milliseconds in which a node names each stream that it pushes three times.
fn patience(node: &HeardNode) -> u64 {
    let rounds = node.record.heartbeat.published / PUSHING_STREAMS as u64 + 1;
    node.record.lease.saturating_mul(rounds)
}

fn decision<T>(before: &StreamRecord, after: StreamRecord, reply: T) -> Decision<T> {
    Decision { record: (after != *before).then_some(after), change: None, takeover: false, reply }
}
