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
    // Once more: until its first keyframe it might have been the source before.
    assert_eq!(got[9..12], ["meta@90073", "vhead@90073:new", "ahead@90073:h"]);
    assert_eq!(got[12..], ["key@90073:3", "a@90083:2", "v@90113:4"]);
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

fn late(world: &World) -> impl Future<Output = Vec<String>> {
    let viewer = world.viewer();
    async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        viewer.told()
    }
}

#[tokio::test(start_paused = true)]
async fn who_plays_is_told_where_another_publish_begins() {
    let (world, source) = World::live(|_| {});
    drop(source);
    let source = world.publish();
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    drop(source);
    // It comes back without audio and without metadata.
    let source = world.publish();
    source.push(&[video_header("h")]);
    source.push(&[key(0, "2"), video(40, "3")]);
    world.settle().await;
    let got = ["meta@0", "vhead@0:h", "ahead@0:h", "key@0:1", "begins", "vhead@0:h", "key@33:2", "v@73:3"];
    assert_eq!(viewer.told(), got);
    assert_eq!(late(&world).await, ["vhead@33:h", "key@33:2", "v@73:3"]);

    // Without video: sound is a place to start.
    drop(source);
    let source = world.publish();
    source.push(&[audio_header("h"), audio(0, "4")]);
    world.settle().await;
    assert_eq!(viewer.told()[got.len()..], ["begins", "ahead@73:h", "a@106:4"]);
    assert_eq!(late(&world).await, ["ahead@106:h", "a@106:4"]);

    // The first source of all follows nobody.
    assert_eq!(viewer.told().iter().filter(|text| *text == "begins").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_goes_on_begins_no_publish_and_one_that_does_not_has_its_headers_behind_that() {
    for resumes in [true, false] {
        let (world, source) = World::live(|_| {});
        source.push(&opening());
        source.push(&[key(0, "1"), video(40, "2")]);
        let viewer = world.viewer();
        world.settle().await;
        drop(source);
        let source = world.attach();
        // Whether it goes on is not known before its first keyframe.
        source.push(&[video_header("h")]);
        world.settle().await;
        source.push(&[key(0, if resumes { "1" } else { "3" }), video(40, "2"), video(80, "4")]);
        world.settle().await;
        let told = viewer.told();
        let (want, headers): (&[_], _) = match resumes {
            true => (&["vhead@40:h", "v@80:4"], vec!["meta@0", "vhead@0:h", "ahead@0:h"]),
            false => (
                &["vhead@40:h", "begins", "vhead@73:h", "key@73:3", "v@113:2", "v@153:4"],
                vec!["vhead@73:h"],
            ),
        };
        assert_eq!(told[5..], *want);
        assert_eq!(late(&world).await[..headers.len()], headers);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_brings_another_publish_is_a_break_and_may_still_resume_later() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(0, "black"), video(40, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    drop(source);
    let source = world.attach().after_break(true);
    source.push(&[video_header("h"), key(73, "black"), video(113, "2")]);
    world.settle().await;
    let told = viewer.told();
    assert_eq!(told[5..], ["begins", "vhead@40:h", "key@73:black", "v@113:2"]);
    drop(source);
    // The connection of the pull broke.
    let source = world.attach().after_break(false);
    source.push(&[video_header("h"), key(73, "black"), video(113, "2"), video(153, "3")]);
    world.settle().await;
    assert_eq!(viewer.told()[told.len()..], ["vhead@113:h", "v@153:3"]);
    assert_eq!(late(&world).await[0], "vhead@73:h");
}

#[tokio::test(start_paused = true)]
async fn who_fell_off_the_ring_is_told_of_a_publish_that_began_meanwhile_and_of_no_other() {
    for begins in [true, false] {
        let (world, source) = World::live(|settings| settings.lag = Duration::from_millis(10));
        drop(source);
        let source = world.publish();
        source.push(&opening());
        source.push(&[key(0, "1")]);
        let socket = Socket::open();
        let slow = world.watch(&socket);
        world.settle().await;
        drop(source);
        let mut source = world.publish();
        source.push(&[video_header("h"), key(0, "2")]);
        world.settle().await;
        assert_eq!(slow.told()[4..], ["begins", "vhead@0:h", "key@33:2"]);

        socket.room(10);
        world.settle().await;
        source.push(&[video(40, "does not arrive")]);
        world.settle().await;
        if begins {
            drop(source);
            source = world.publish();
            source.push(&[video_header("h")]);
        }
        for n in 2..9 {
            world.pass(100).await;
            source.push(&[key(n * 100, "new"), video(n * 100 + 40, "new")]);
        }
        world.settle().await;
        socket.room(usize::MAX);
        world.settle().await;
        let told = slow.told();
        let want: &[&str] = if begins { &["begins", "vhead@706:h"] } else { &["vhead@833:h"] };
        let rest = &told[8..];
        assert_eq!(rest[..rest.len() - 2], *want, "{told:?}");
        assert_eq!(world.metrics.viewer_skips_total.get(), 1);
        // One group of pictures after the other; what is said is no message of the stream.
        let skipped = world.metrics.viewer_skipped_messages_total.get();
        assert_eq!(skipped, 6 * 2 + u64::from(begins));
    }
}
