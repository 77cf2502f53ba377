//! What becomes of the sender's clock: a stream of five hours, one of seven weeks. Servers may shift clocks, so only
//! distances are compared.

use crate::conform::bodies::{self, Media};
use crate::conform::check::{Check, Finding, Group, pass};
use crate::conform::chunk::{Header, put_message};
use crate::conform::lab::Lab;
use crate::conform::scene::Scene;
use bytes::BytesMut;

const G: Group = Group::Timestamps;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "in-order", "distances in time stay as they are", "every player", |lab| {
        Box::pin(plain(lab, 1000, [40, 10, 30, 33]))
    }),
    Check::new(G, "past-0xffffff", "a clock that goes past 4 h 39 m 37 s", "RTMP 1.0 §5.3.1.3", |lab| {
        Box::pin(plain(lab, 0xFF_FFD0, [40, 40, 40, 40]))
    }),
    Check::new(G, "exactly-0xffffff", "this value is extended as well", "RTMP 1.0 §5.3.1.3", |lab| {
        Box::pin(plain(lab, 0xFF_FFFF - 40, [40, 40, 40, 40]))
    }),
    Check::new(
        G,
        "extended-repeated",
        "continuations repeat the extended time",
        "RTMP 1.0 §5.3.1.3, FMLE, OBS",
        |lab| Box::pin(extended(lab, true)),
    ),
    Check::new(G, "extended-once", "continuations do not repeat it", "old librtmp, old ffmpeg", |lab| {
        Box::pin(extended(lab, false))
    }),
    Check::new(G, "extended-then-delta", "deltas behind an extended time", "RTMP 1.0 §5.3.1.3", |lab| {
        Box::pin(extended_then_delta(lab))
    }),
    Check::new(G, "wrap", "a clock that goes past 49.7 days", "RTMP 1.0 §5.3.1.3", |lab| {
        Box::pin(plain(lab, u32::MAX - 60, [40, 40, 40, 40]))
    }),
    Check::new(
        G,
        "data-at-zero",
        "data with time 0 does not stop the clock",
        "encoders whose data has no time",
        |lab| Box::pin(data_at_zero(lab)),
    ),
];

/// Long enough for several chunks of 128 bytes.
const LONG: usize = 500;

/// Frames at these distances, in headers of format 0, as any sender may write them.
async fn plain(lab: &Lab, start: u32, steps: [u32; 4]) -> Finding {
    let mut scene = Scene::start(lab, start).await?;
    let mut time = start;
    let mut media = Vec::new();
    for (mark, step) in (1..).zip(steps) {
        time = time.wrapping_add(step);
        media.push(Media::video(time, bodies::long_avc_key(mark, LONG)));
        media.push(Media::audio(time, bodies::aac_frame(mark)));
    }
    let mut wire = BytesMut::new();
    for media in &media {
        wire.extend_from_slice(&scene.publisher.wire(media.type_id, media.time, &media.body));
    }
    scene.publisher.write(&wire).await?;
    scene.on_time(&media).await?;
    pass("distances are right")
}

async fn extended(lab: &Lab, repeat: bool) -> Finding {
    let start = 0x0100_0000;
    let mut scene = Scene::start(lab, start).await?;
    let frames = (1..4).map(|mark| Media::video(start + 40 * mark, bodies::long_avc_key(mark, LONG)));
    let media: Vec<Media> = frames.collect();
    let mut wire = BytesMut::new();
    for media in &media {
        let header = Header::of(media, scene.publisher.stream_id);
        put_message(&mut wire, header, &media.body, scene.publisher.chunk_size, repeat.then_some(media.time));
    }
    scene.publisher.write(&wire).await?;
    scene.on_time(&media).await?;
    pass("bodies and distances are right")
}

async fn extended_then_delta(lab: &Lab) -> Finding {
    let start = 0x0100_0000;
    let mut scene = Scene::start(lab, start).await?;
    let media = [40, 73, 113].map(|step| Media::video(start + step, bodies::long_avc_key(step, LONG)));
    let mut wire = BytesMut::new();
    for (index, (media, delta)) in media.iter().zip([0, 33, 40]).enumerate() {
        let header = Header::of(media, scene.publisher.stream_id);
        let (header, repeat) = match index {
            0 => (header, Some(media.time)),
            _ => (Header { format: 1, time: delta, ..header }, None),
        };
        put_message(&mut wire, header, &media.body, scene.publisher.chunk_size, repeat);
    }
    scene.publisher.write(&wire).await?;
    scene.on_time(&media).await?;
    pass("bodies and distances are right")
}

async fn data_at_zero(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 600_000).await?;
    let media = [1, 2, 3].map(|mark| Media::video(600_000 + 40 * mark, bodies::avc_key(mark)));
    let [one, two, three] = media.clone();
    let data = bodies::sent_metadata(0, 321.0);
    for media in [one, data.clone(), two, data, three] {
        let wire = scene.publisher.wire(media.type_id, media.time, &media.body);
        scene.publisher.write(&wire).await?;
    }
    scene.on_time(&media).await?;
    pass("distances are right")
}
