//! Many viewers, several pumps, and how often they write.

use super::*;

#[tokio::test(start_paused = true)]
async fn thousands_of_viewers_over_several_pumps_all_get_everything() {
    let (world, source) = World::live(|settings| {
        settings.pump_viewers = 700;
        settings.batching = Batching::AudioWithVideo;
    });
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let viewers: Vec<_> = (0..3000).map(|_| world.viewer()).collect();
    world.settle().await;
    assert_eq!(world.metrics.pumps.get(), 5);
    for n in 1..10 {
        source.push(&[audio(n * 33 - 10, "a"), video(n * 33, "v")]);
        world.pass(33).await;
    }
    let all = viewers[0].got();
    assert_eq!(all.len(), 4 + 18);
    assert!(viewers.iter().all(|viewer| viewer.got() == all));
    let writes = viewers.iter().map(|viewer| viewer.socket.writes()).max().unwrap();
    assert!(writes <= 11, "{writes} writes: the start, and one for each frame");
    drop(source);
    for viewer in viewers {
        viewer.leave().await;
    }
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_pump_lets_others_run_between_its_writes() {
    let (world, source) = World::live(|_| {});
    source.push(&[key(0, "1")]);
    let viewers: Vec<_> = (0..1000).map(|_| world.viewer()).collect();
    world.settle().await;
    source.push(&[video(40, "2")]);
    let served = || viewers.iter().filter(|viewer| viewer.socket.writes() == 2).count();
    let mut seen = Vec::new();
    while served() < 1000 {
        tokio::task::yield_now().await;
        seen.push(served());
    }
    let largest = seen.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(largest <= 128, "{largest} writes without a break");
}

#[tokio::test(start_paused = true)]
async fn a_viewer_may_start_ahead_of_its_pump() {
    let (world, source) = World::live(|_| {});
    source.push(&[key(0, "1")]);
    let viewers: Vec<_> = (0..1000).map(|_| world.viewer()).collect();
    world.settle().await;
    source.push(&[video(40, "2")]);
    while viewers.iter().all(|viewer| viewer.socket.writes() == 1) {
        tokio::task::yield_now().await;
    }
    // The pump is in the middle of its viewers when the next keyframe comes, behind a block that it has not seen.
    source.push(&[audio(70, "3"), key(80, "4")]);
    let early = world.viewer();
    tokio::task::yield_now().await;
    source.push(&[video(120, "5")]);
    world.settle().await;
    source.push(&[video(160, "6")]);
    world.settle().await;
    assert_eq!(early.got(), ["key@80:4", "v@120:5", "v@160:6"]);
    for viewer in viewers {
        assert_eq!(viewer.got(), ["key@0:1", "v@40:2", "a@70:3", "key@80:4", "v@120:5", "v@160:6"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pump_that_was_overtaken_by_the_ring_lets_its_viewers_skip() {
    let (world, source) = World::live(|settings| settings.ring_bytes = 100_000);
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    // More than a ring while the pump had no chance to look.
    let body = "x".repeat(30_000);
    for n in 1..20 {
        let frame = if n == 18 { key(n * 40, &body) } else { video(n * 40, &body) };
        source.push(&[frame]);
    }
    world.settle().await;
    let got: Vec<_> = viewer.got().iter().map(|text| text.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(got, ["key@0", "key@720", "v@760"]);
    assert_eq!(world.metrics.viewer_skips_total.get(), 1);
    assert_eq!(world.metrics.viewer_skipped_messages_total.get(), 17);
}

#[tokio::test(start_paused = true)]
async fn audio_is_batched_with_the_next_frame() {
    let (world, source) = World::live(|settings| settings.batching = Batching::AudioWithVideo);
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    // 25 frames and 50 audio messages a second.
    let before = viewer.socket.writes();
    for n in 1..=250 {
        world.pass(15).await;
        source.push(&[audio(n * 40 - 25, "a")]);
        world.pass(20).await;
        source.push(&[audio(n * 40 - 5, "b")]);
        world.pass(5).await;
        source.push(&[video(n * 40, "v")]);
        world.settle().await;
    }
    assert_eq!(viewer.got().len(), 4 + 750);
    assert_eq!(viewer.socket.writes() - before, 250, "one write a frame");
}

#[tokio::test(start_paused = true)]
async fn audio_waits_two_frames_at_most_for_a_frame_that_does_not_come() {
    for delay in 0..80 {
        let (world, source) = World::live(|settings| settings.batching = Batching::AudioWithVideo);
        source.push(&opening());
        let viewer = world.viewer();
        source.push(&[key(0, "1")]);
        world.pass(delay).await;
        let written = viewer.socket.writes();
        source.push(&[audio(delay as u32, "late")]);
        let mut waited = 0;
        while viewer.socket.writes() == written {
            world.pass(1).await;
            waited += 1;
            assert!(waited <= 68, "pushed {delay} ms after the frame, waited {waited} ms");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn audio_alone_flows_at_once() {
    let (world, source) = World::live(|settings| settings.batching = Batching::AudioWithVideo);
    source.push(&[audio_header("h"), audio(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    for n in 1..50 {
        let written = viewer.socket.writes();
        source.push(&[audio(n * 20, "1")]);
        world.settle().await;
        assert_eq!(viewer.socket.writes(), written + 1);
        world.pass(20).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_bounds_the_writes_and_the_delay() {
    let (world, source) =
        World::live(|settings| settings.batching = Batching::Window(Duration::from_millis(100)));
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    let before = viewer.socket.writes();
    for n in 1..=100 {
        source.push(&[video(n * 10, "v"), audio(n * 10 + 1, "a")]);
        world.pass(10).await;
        // 100 ms are 20 messages, and a timer's tick on either side.
        let missing = 1 + n as usize * 2 - viewer.got().len();
        assert!(missing <= 24, "{missing} messages wait");
    }
    let writes = viewer.socket.writes() - before;
    assert!((9..=11).contains(&writes), "{writes} writes in a second");
}

#[tokio::test(start_paused = true)]
async fn viewers_are_pinged_and_the_ping_hurts_no_message() {
    let (world, source) = World::live(|settings| settings.ping = Duration::from_secs(20));
    source.push(&[key(0, "1")]);
    let (viewer, narrow) = (world.viewer(), Socket::with(19, usize::MAX));
    let blocked = world.watch(&narrow);
    world.pass(20_100).await;
    let pings =
        |socket: &Socket| socket.messages().iter().filter(|m| m.type_id == message::USER_CONTROL).count();
    assert_eq!(pings(&viewer.socket), 1);
    narrow.room(10);
    world.pass(1).await;
    narrow.room(usize::MAX);
    world.pass(20_000).await;
    assert_eq!(pings(&viewer.socket), 2);
    assert!(narrow.read().1);
    drop(blocked);
}

#[tokio::test(start_paused = true)]
async fn viewers_that_flap_leave_nothing_behind() {
    let (world, source) = World::live(|_| {});
    source.push(&[key(0, "1")]);
    let stays = world.viewer();
    for _ in 0..2000 {
        let viewer = world.viewer();
        tokio::task::yield_now().await;
        viewer.leave().await;
    }
    world.settle().await;
    source.push(&[video(40, "2")]);
    world.settle().await;
    assert_eq!(stays.got().len(), 2);
    assert_eq!(world.hub.streams()[0].1, 1);
    stays.leave().await;
    drop(source);
    world.is_empty().await;
}
