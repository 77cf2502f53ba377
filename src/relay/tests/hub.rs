//! What is wanted, refused, kept and forgotten.

use super::*;
use crate::budget::Budget;
use crate::relay::stream::End;
use crate::relay::{Demand, JoinError};
use futures::FutureExt;

fn on_demand(change: impl FnOnce(&mut Settings)) -> World {
    World::new(Admission::OnDemand, change)
}

fn demand(world: &World) -> Vec<Demand> {
    world.hub.demand().now_or_never().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_name_is_wanted_once_however_many_wait() {
    let world = on_demand(|_| {});
    let viewers: Vec<_> = (0..2000).map(|_| world.hub.join(&name()).unwrap()).collect();
    assert_eq!(demand(&world), [Demand::Wanted(name())]);
    assert_eq!(demand(&world), []);
    drop(viewers);
    assert_eq!(demand(&world), [Demand::Unwanted(name())]);
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_does_not_last_is_not_told() {
    let world = on_demand(|_| {});
    drop(world.hub.join(&name()).unwrap());
    assert_eq!(demand(&world), []);
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn demand_wakes_when_somebody_comes() {
    let world = on_demand(|_| {});
    let hub = world.hub.clone();
    let waiting = tokio::spawn(async move { hub.demand().await });
    world.settle().await;
    let viewer = world.hub.join(&name()).unwrap();
    assert_eq!(waiting.await.unwrap(), [Demand::Wanted(name())]);
    drop(viewer);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_is_told_why_and_the_name_is_wanted_anew() {
    let world = on_demand(|_| {});
    let interest = world.hub.join(&name()).unwrap();
    assert_eq!(demand(&world), [Demand::Wanted(name())]);
    assert!(world.hub.refuse(&name(), End::Refused("no such stream".to_owned())));
    let next = world.hub.join(&name()).unwrap();
    assert_eq!(interest.ready().await, Err(End::Refused("no such stream".to_owned())));
    drop(interest);
    assert_eq!(demand(&world), [Demand::Wanted(name())]);
    assert_eq!(world.hub.streams()[0].1, 1);
    drop(next);
    assert_eq!(demand(&world), [Demand::Unwanted(name())]);
    world.is_empty().await;
    assert!(world.hub.refuse(&name(), End::Refused("nobody waits".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_seen_is_not_refused_but_left_to_its_grace_time() {
    let world = on_demand(|settings| settings.grace = Duration::from_secs(5));
    let source = world.attach();
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    assert_eq!(demand(&world), [Demand::Wanted(name())]);
    drop(source);
    assert!(!world.hub.refuse(&name(), End::Refused("gone".to_owned())));
    let hub = world.hub.clone();
    let told = tokio::spawn(async move { hub.demand().await });
    assert!(matches!(viewer.turn().await, Turn::Ended(End::Unpublished)));
    assert_eq!(told.await.unwrap(), [Demand::Unwanted(name())]);
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_sends_nothing_is_not_waited_for_without_end() {
    let world = on_demand(|settings| settings.start = Duration::from_secs(15));
    let interest = world.hub.join(&name()).unwrap();
    let source = world.attach();
    source.push(&opening());
    let begun = tokio::time::Instant::now();
    assert!(matches!(interest.ready().await, Err(End::Refused(_))));
    assert_eq!(begun.elapsed().as_secs(), 15);
    source.push(&[key(0, "1")]);
    assert_eq!(interest.ready().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn names_are_bounded_and_a_closed_hub_lets_nobody_in() {
    let world = on_demand(|settings| settings.names = 2);
    let names: Vec<StreamName> = ["a", "b", "c"].iter().map(|text| text.parse().unwrap()).collect();
    let held: Vec<_> = names[..2].iter().map(|name| world.hub.join(name).unwrap()).collect();
    assert_eq!(world.hub.join(&names[2]).err(), Some(JoinError::Full));
    assert!(world.hub.join(&names[0]).is_ok());
    drop(held);
    demand(&world);
    assert!(world.hub.join(&names[2]).is_ok());
    world.hub.close();
    assert_eq!(world.hub.join(&names[0]).err(), Some(JoinError::Closed));
    let live = World::new(Admission::Live, |_| {});
    assert_eq!(live.hub.join(&names[0]).err(), Some(JoinError::Unknown));
}

#[tokio::test(start_paused = true)]
async fn a_wake_up_costs_what_changed_however_many_names_there_are() {
    const NAMES: usize = 100_000;
    let world = on_demand(|settings| settings.names = NAMES + 1);
    let held: Vec<_> =
        (0..NAMES).map(|n| world.hub.join(&format!("n{n}").parse().unwrap()).unwrap()).collect();
    assert_eq!(demand(&world).len(), NAMES);
    let looked = || world.hub.looked.swap(0, std::sync::atomic::Ordering::Relaxed);
    looked();
    let viewer = world.hub.join(&name()).unwrap();
    assert_eq!(demand(&world), [Demand::Wanted(name())]);
    assert!(looked() <= 2, "somebody came");
    let source = world.attach();
    drop(source);
    assert_eq!(demand(&world), []);
    assert!(looked() <= 2, "a publisher left, and its grace time began");
    tokio::time::advance(Settings::default().grace).await;
    assert_eq!(demand(&world), [Demand::Unwanted(name())]);
    assert!(looked() <= 2, "its grace time is over");
    assert_eq!(viewer.ready().await, Err(End::Unpublished));
    drop((held, viewer));
}

#[tokio::test(start_paused = true)]
async fn each_grace_time_ends_by_itself_and_one_that_is_cut_short_ends_nothing() {
    let world = on_demand(|settings| settings.grace = Duration::from_secs(5));
    let names: Vec<StreamName> = ["a", "b", "c"].iter().map(|text| text.parse().unwrap()).collect();
    let held: Vec<_> = names.iter().map(|name| world.hub.join(name).unwrap()).collect();
    assert_eq!(demand(&world).len(), 3);
    for name in &names {
        drop(world.hub.attach(name, None));
        world.pass(1_000).await;
    }
    let back = world.hub.attach(&names[1], None);
    world.pass(2_500).await;
    // Seconds since the publishers left: 5.5, (back), 3.5.
    assert_eq!(demand(&world), [Demand::Unwanted(names[0].clone())]);
    world.pass(3_000).await;
    assert_eq!(demand(&world), [Demand::Unwanted(names[2].clone())]);
    drop(back);
    world.pass(4_900).await;
    assert_eq!(demand(&world), [], "a grace time begins when the last publisher leaves");
    world.pass(200).await;
    assert_eq!(demand(&world), [Demand::Unwanted(names[1].clone())]);
    drop(held);
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_publisher_that_left_is_freed_when_memory_is_short() {
    let world = World::new(Admission::Live, |_| {});
    let budget = Budget::new(2 << 20);
    // The newest goes first, and it is the one that left.
    let (older, newer) = (budget.holder(), budget.holder());
    let source = world.publish().charged_to(&newer);
    source.push(&[key(0, &"k".repeat(1 << 20))]);
    let viewer = world.hub.join(&name()).unwrap();
    drop(source);
    world.settle().await;
    assert!(viewer.stream().ring_bytes() > 1 << 20, "it is kept for who comes back");
    let mut charge = older.charge();
    charge.set(2 << 20);
    world.settle().await;
    assert_eq!((viewer.stream().ring_bytes(), budget.used()), (0, 2 << 20));
}
