//! How messages share the connection (§5.3), and what changes that (§5.4).

use crate::conform::bodies::{self, Media};
use crate::conform::check::{Check, Finding, Group, info, judge, pass};
use crate::conform::chunk::{Header, put_continuation, put_message};
use crate::conform::lab::Lab;
use crate::conform::scene::{Scene, send};
use crate::rtmp::message::Control;
use bytes::{BufMut, BytesMut};

const G: Group = Group::Chunks;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "id-2-byte", "chunk streams 64 to 319 are taken", "RTMP 1.0 §5.3.1.1", |lab| {
        Box::pin(ids(lab, [64, 319]))
    }),
    Check::new(G, "id-3-byte", "chunk streams 320 to 65599 are taken", "RTMP 1.0 §5.3.1.1", |lab| {
        Box::pin(ids(lab, [320, 65_599]))
    }),
    Check::new(G, "interleaved", "audio between two chunks of video", "RTMP 1.0 §5.3", |lab| {
        Box::pin(interleaved(lab))
    }),
    Check::new(G, "control-inside", "a control message between two chunks", "RTMP 1.0 §5.4", |lab| {
        Box::pin(control_inside(lab))
    }),
    Check::new(G, "format-1", "a header without a stream id", "RTMP 1.0 §5.3.1.2.2, ffmpeg", |lab| {
        Box::pin(formats(lab, 1))
    }),
    Check::new(G, "format-2", "a header with a delta alone", "RTMP 1.0 §5.3.1.2.3, ffmpeg", |lab| {
        Box::pin(formats(lab, 2))
    }),
    Check::new(
        G,
        "format-3",
        "a header of nothing repeats the delta",
        "RTMP 1.0 §5.3.1.2.4, ffmpeg",
        |lab| Box::pin(formats(lab, 3)),
    ),
    Check::new(G, "format-3-after-0", "its delta is the timestamp itself", "RTMP 1.0 §5.3.1.2.4", |lab| {
        Box::pin(format_3_after_0(lab))
    }),
    Check::new(G, "size-1", "chunks of one byte", "RTMP 1.0 §5.4.1", |lab| Box::pin(size_1(lab))),
    Check::new(G, "size-65536", "chunks of 64 KiB", "ffmpeg sends 60,000", |lab| Box::pin(size(lab, 65_536))),
    Check::new(G, "size-maximum", "chunks of 2147483647 bytes", "RTMP 1.0 §5.4.1", |lab| {
        Box::pin(size(lab, 0x7FFF_FFFF))
    }),
    Check::new(G, "size-changes", "the size changes between messages", "RTMP 1.0 §5.4.1", |lab| {
        Box::pin(size_changes(lab))
    }),
    Check::new(G, "abort", "what was aborted is not relayed", "RTMP 1.0 §5.4.2", |lab| Box::pin(abort(lab))),
    Check::new(
        G,
        "empty-message",
        "a message without a body does no harm",
        "encoders that send them",
        |lab| Box::pin(empty(lab)),
    ),
];

/// Video of this length needs several chunks of 128 bytes.
const LONG: usize = 500;

async fn ids(lab: &Lab, [video, audio]: [u32; 2]) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let media = [
        Media::video(1040, bodies::long_avc_key(1, LONG)),
        Media::audio(1050, bodies::aac_frame(2)),
        Media::video(1080, bodies::avc_frame(3)),
    ];
    let mut wire = BytesMut::new();
    for media in &media {
        let id = if media.kind() == "video" { video } else { audio };
        let header = Header { chunk_stream_id: id, ..Header::of(media, scene.publisher.stream_id) };
        put_message(&mut wire, header, &media.body, scene.publisher.chunk_size, None);
    }
    scene.publisher.write(&wire).await?;
    scene.arrives(&media).await?;
    pass(format!("relayed on {video} and {audio}"))
}

/// A video message with something between its first two chunks.
async fn with_inside(scene: &mut Scene, video: &Media, inside: &[u8]) -> Finding {
    let (size, mut wire) = (scene.publisher.chunk_size, BytesMut::new());
    let (head, rest) = video.body.split_at_checked(size).unwrap_or_default();
    let header = Header::of(video, scene.publisher.stream_id);
    header.put(&mut wire);
    wire.put_slice(head);
    wire.put_slice(inside);
    for piece in rest.chunks(size) {
        put_continuation(&mut wire, header.chunk_stream_id, None);
        wire.put_slice(piece);
    }
    scene.publisher.write(&wire).await?;
    pass("relayed whole")
}

async fn interleaved(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let video = Media::video(1040, bodies::long_avc_key(1, LONG));
    let audio = Media::audio(1045, bodies::aac_frame(2));
    let inside = scene.publisher.wire(audio.type_id, audio.time, &audio.body);
    let sent = with_inside(&mut scene, &video, &inside).await;
    scene.arrives(&[video, audio]).await?;
    sent
}

async fn control_inside(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let video = Media::video(1040, bodies::long_avc_key(1, LONG));
    let mut inside = BytesMut::new();
    Control::Acknowledgement(5000).write(&mut inside);
    let sent = with_inside(&mut scene, &video, &inside).await;
    scene.arrives(&[video]).await?;
    sent
}

/// Frames behind one of format 0: the format in question comes last, with those before it that it needs.
async fn formats(lab: &Lab, last: u8) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let mut media = vec![Media::video(1040, bodies::avc_key(1))];
    let mut formats = vec![0];
    match last {
        1 => formats.push(1),
        // Format 2 leaves the length as it is, and so does format 3.
        2 => formats.extend([2, 2]),
        _ => formats.extend([1, 3, 3]),
    }
    for index in 1..formats.len() as u32 {
        let delta = if last == 3 { 40 } else { 20 + 13 * index };
        let before = media.last().map_or(0, |before| before.time);
        media.push(Media::video(before + delta, bodies::avc_frame(1 + index)));
    }
    let mut wire = BytesMut::new();
    let mut before = 0;
    for (media, format) in media.iter().zip(&formats) {
        let time = if *format == 0 { media.time } else { media.time - before };
        before = media.time;
        let header = Header { format: *format, time, ..Header::of(media, scene.publisher.stream_id) };
        put_message(&mut wire, header, &media.body, scene.publisher.chunk_size, None);
    }
    scene.publisher.write(&wire).await?;
    scene.on_time(&media).await?;
    pass("bodies and times are right")
}

async fn format_3_after_0(lab: &Lab) -> Finding {
    // A clock that starts at 40, so that doubling it is no jump.
    let mut scene = Scene::start(lab, 0).await?;
    let media = [Media::video(40, bodies::avc_key(1)), Media::video(80, bodies::avc_frame(1))];
    let mut wire = BytesMut::new();
    for (format, media) in (0..).step_by(3).zip(&media) {
        let header = Header { format, ..Header::of(media, scene.publisher.stream_id) };
        put_message(&mut wire, header, &media.body, scene.publisher.chunk_size, None);
    }
    scene.publisher.write(&wire).await?;
    let got = scene.arrives(&media).await?;
    let times: Vec<u32> = got.iter().map(|message| message.timestamp).collect();
    match times.as_slice() {
        [one, next] if next.wrapping_sub(*one) == 40 => pass("the timestamp is the delta"),
        [one, next] if next == one => info("the delta is 0, as nginx-rtmp reads it"),
        _ => judge(false, format!("times {times:?}")),
    }
}

fn frames(length: usize) -> [Media; 3] {
    [
        Media::video(1040, bodies::long_avc_key(1, length)),
        Media::audio(1050, bodies::aac_frame(2)),
        Media::video(1080, bodies::avc_frame(3)),
    ]
}

async fn size_1(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    scene.publisher.set_chunk_size(1).await?;
    scene.relays(&frames(300)).await?;
    pass("relayed whole")
}

/// The size and what is sent by it, in one write.
async fn size(lab: &Lab, size: u32) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let mut wire = BytesMut::new();
    Control::SetChunkSize(size).write(&mut wire);
    scene.publisher.chunk_size = size as usize;
    let media = frames(100_000);
    for media in &media {
        wire.extend_from_slice(&scene.publisher.wire(media.type_id, media.time, &media.body));
    }
    scene.publisher.write(&wire).await?;
    scene.arrives(&media).await?;
    pass("relayed whole")
}

async fn size_changes(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    for (mark, size) in (1..).zip([200, 64, 4096, 129]) {
        scene.publisher.set_chunk_size(size).await?;
        scene.relays(&[Media::video(1000 + 40 * mark, bodies::long_avc_key(mark, LONG))]).await?;
    }
    pass("relayed whole at four sizes")
}

async fn abort(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let aborted = Media::video(1040, bodies::long_avc_key(1, LONG));
    let next = Media::video(1080, bodies::long_avc_key(2, LONG));
    let (size, mut wire) = (scene.publisher.chunk_size, BytesMut::new());
    let header = Header::of(&aborted, scene.publisher.stream_id);
    header.put(&mut wire);
    wire.put_slice(aborted.body.get(..size).unwrap_or_default());
    Control::Abort(header.chunk_stream_id).write(&mut wire);
    let header = Header::of(&next, scene.publisher.stream_id);
    put_message(&mut wire, header, &next.body, size, None);
    scene.publisher.write(&wire).await?;
    scene.arrives(&[next]).await?;
    pass("the next message is whole")
}

async fn empty(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    send(&mut scene.publisher, &[Media::audio(1010, &b""[..]), Media::video(1020, &b""[..])]).await?;
    let media = [Media::video(1040, bodies::avc_key(1)), Media::audio(1050, bodies::aac_frame(2))];
    scene.relays(&media).await?;
    pass("the stream goes on")
}
