//! What viewers see of sources that come and go.

use super::*;
use crate::relay::stream::End;

fn times(got: &[String]) -> Vec<u32> {
    got.iter().map(|text| text.split(['@', ':']).nth(1).unwrap().parse().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn another_source_follows_with_its_headers_and_rising_times() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(90_000, "1"), audio(90_010, "1"), video(90_040, "2")]);
    let viewer = world.viewer();
    world.settle().await;
    drop(source);
    world.pass(500).await;
    let source = world.attach();
    source.push(&[metadata(0), video_header("new"), audio_header("h")]);
    source.push(&[key(0, "3"), audio(10, "2"), video(40, "4")]);
    world.settle().await;
    let got = viewer.got();
    assert_eq!(got[6..9], ["meta@90040", "vhead@90040:new", "ahead@90040:h"]);
    assert_eq!(got[9..], ["key@90073:3", "a@90083:2", "v@90113:4"]);
    assert!(times(&got).is_sorted());
}

#[tokio::test(start_paused = true)]
async fn no_track_goes_back_in_time_when_the_next_source_is_interleaved_otherwise() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(1000, "1"), audio(1040, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    drop(source);
    let source = world.attach();
    source.push(&opening());
    // The audio of this source lags 100 ms behind its video.
    source.push(&[
        key(500, "2"),
        audio(400, "2"),
        audio(420, "3"),
        video(540, "3"),
        audio(440, "4"),
        audio(520, "5"),
    ]);
    world.settle().await;
    let of = |kind: &str| -> Vec<u32> {
        let got = viewer.got();
        times(&got.into_iter().filter(|text| text.starts_with(kind)).collect::<Vec<_>>())
    };
    assert_eq!(of("a@"), [1040, 1041, 1042, 1043, 1093]);
    assert_eq!((of("key@"), of("v@")), (vec![1000, 1073], vec![1113]));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_resumes_repeats_and_loses_nothing() {
    let (world, source) = World::live(|_| {});
    let all: Vec<Packet> = (0..20)
        .flat_map(|n| {
            let body = n.to_string();
            [
                if n % 10 == 0 { key(n * 40, &body) } else { video(n * 40, &body) },
                audio(n * 40 + 5, &body),
                audio(n * 40 + 5, &body),
            ]
        })
        .collect();
    source.push(&opening());
    source.push(&all[..15]);
    let viewer = world.viewer();
    world.settle().await;
    drop(source);
    let source = world.attach();
    source.push(&opening());
    source.push(&all);
    world.settle().await;
    let media: Vec<_> =
        viewer.got().into_iter().filter(|text| !text.contains("head@") && !text.contains("meta@")).collect();
    assert_eq!(media.len(), all.len(), "{media:?}");
    assert!(times(&media).is_sorted());
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_comes_back_with_the_same_picture_is_shown_at_once() {
    let (world, source) = World::live(|_| {});
    drop(source);
    let clip = |last: &str| {
        let mut clip = opening().to_vec();
        clip.extend([key(0, "black"), video(40, "1"), video(80, last)]);
        clip
    };
    let source = world.publish();
    source.push(&clip("one"));
    source.push(&[video(6_000, "far")]);
    let viewer = world.viewer();
    world.settle().await;
    drop(source);
    let source = world.publish();
    source.push(&clip("two"));
    world.settle().await;
    let again = ["key@6033:black", "v@6073:1", "v@6113:two"];
    assert_eq!(viewer.got()[viewer.got().len() - 3..], again, "nothing is left out as a repetition");
    let late = world.viewer();
    world.settle().await;
    assert_eq!(late.got()[3..], again, "a late viewer starts with the session that is there");
}

#[tokio::test(start_paused = true)]
async fn another_source_is_heard_from_its_first_keyframe() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    drop(source);
    let source = world.publish();
    source.push(&opening());
    source.push(&[video(0, "needs another"), audio(0, "2"), video(40, "needs another"), key(80, "2")]);
    world.settle().await;
    let got = viewer.got();
    assert_eq!(got[got.len() - 2..], ["a@33:2", "key@113:2"]);
    assert_eq!(world.metrics.lost_total(crate::telemetry::Loss::NoKeyframe), 2);
}

#[tokio::test(start_paused = true)]
async fn out_of_band_messages_do_not_move_the_clock() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(100_000, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    let cue = |time| Packet::data(time, Bytes::from_static(b"\x02\0\x02hi"));
    source.push(&[metadata(0), audio_header("other"), cue(0), cue(3_000_000_000), video(100_040, "2")]);
    world.settle().await;
    assert_eq!(times(&viewer.got())[4..], [100_000, 100_000, 100_000, 100_000, 100_040]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_while_others_watch_starts_with_the_new_source() {
    for announced in [true, false] {
        let (world, source) = World::live(|settings| settings.batching = Batching::AudioWithVideo);
        source.push(&opening());
        source.push(&[key(0, "1")]);
        let watching = world.viewer();
        world.settle().await;
        drop(source);
        let waiting = world.viewer();
        world.settle().await;
        assert_eq!(waiting.got(), [""; 0], "the past is no place to start");
        let source = world.attach();
        source.push(&opening());
        if announced {
            world.settle().await;
        }
        source.push(&[audio(0, "2"), audio(20, "3"), key(40, "2"), video(80, "3")]);
        world.pass(200).await;
        let got = waiting.got();
        assert_eq!(got, ["meta@0", "vhead@73:h", "ahead@73:h", "key@73:2", "v@113:3"], "{announced}");
        assert_eq!(watching.got()[watching.got().len() - 2..], got[3..]);
    }
}

#[tokio::test(start_paused = true)]
async fn audio_of_a_returning_source_is_no_place_to_start_before_its_keyframe() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let _watching = world.viewer();
    drop(source);
    let source = world.attach();
    source.push(&opening());
    source.push(&[audio(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    assert_eq!(viewer.got(), [""; 0]);
    source.push(&[key(10, "2")]);
    world.settle().await;
    assert_eq!(viewer.got().last().unwrap(), "key@43:2");
    assert_eq!(viewer.got().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn all_tracks_of_one_moment_start_together() {
    let (world, source) = World::live(|_| {});
    let packets = [key(0, "one"), key(0, "two"), video(40, "one"), video(40, "two")];
    source.push(&[video_header("h")]);
    source.push(&packets);
    let viewer = world.viewer();
    world.settle().await;
    assert_eq!(viewer.got(), ["vhead@0:h", "key@0:one", "key@0:two", "v@40:one", "v@40:two"]);
    // And the same again after a break of the connection: both keyframes are known.
    drop(source);
    let source = world.attach();
    source.push(&packets);
    source.push(&[video(80, "one"), video(80, "two")]);
    world.settle().await;
    assert_eq!(viewer.got()[5..], ["v@80:one", "v@80:two"]);
}

#[tokio::test(start_paused = true)]
async fn viewers_are_kept_for_the_grace_time() {
    let (world, source) = World::live(|settings| settings.grace = Duration::from_secs(30));
    let hub = world.hub.clone();
    let demand = tokio::spawn(async move { hub.demand().await });
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    drop(source);
    world.pass(29_900).await;
    let source = world.attach();
    world.pass(60_000).await;
    drop(source);
    world.pass(29_900).await;
    assert!(!viewer.task.is_finished(), "a source that came back sets the time anew");
    world.pass(200).await;
    assert!(viewer.task.is_finished());
    assert!(matches!(viewer.turn().await, Turn::Ended(End::Unpublished)));
    assert!(!demand.is_finished());
    demand.abort();
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_was_replaced_is_not_heard() {
    let (world, old) = World::live(|_| {});
    old.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    let new = world.attach();
    old.push(&[video(40, "old")]);
    drop(old);
    new.push(&[key(0, "new")]);
    world.settle().await;
    assert_eq!(viewer.got(), ["key@0:1", "key@33:new"]);
    assert!(world.hub.streams()[0].0.is_live());
}
