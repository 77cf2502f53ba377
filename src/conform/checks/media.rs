//! Whether bodies arrive as they were sent: the codecs that FLV can name, and aggregates.

use crate::conform::bodies::{self, Media, noise};
use crate::conform::check::{Check, Finding, Group, fail, pass};
use crate::conform::lab::Lab;
use crate::conform::peer::Trouble;
use crate::conform::scene::{Scene, opening};
use crate::rtmp::message::AGGREGATE;
use bytes::{BufMut, Bytes, BytesMut};

const G: Group = Group::Media;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "avc", "relayed byte for byte", "FLV 10.1 E.4.3.1", |lab| {
        Box::pin(video(lab, b"\x17\0\0\0\0", b"\x17\x01\0\0\x50", b"\x27\x01\0\0\x28"))
    }),
    Check::new(G, "hevc-codec-12", "relayed byte for byte", "older HEVC encoders, SRS", |lab| {
        Box::pin(video(lab, b"\x1c\0\0\0\0", b"\x1c\x01\0\0\0", b"\x2c\x01\0\0\0"))
    }),
    Check::new(G, "h263", "relayed byte for byte", "FLV 10.1 E.4.3.1, Flash", |lab| {
        Box::pin(video(lab, b"", b"\x12", b"\x22"))
    }),
    Check::new(G, "vp6", "relayed byte for byte", "FLV 10.1 E.4.3.1, Flash", |lab| {
        Box::pin(video(lab, b"", b"\x14\0", b"\x24\0"))
    }),
    Check::new(G, "aac", "relayed byte for byte", "FLV 10.1 E.4.2.1", |lab| {
        Box::pin(audio(lab, b"\xaf\0", b"\xaf\x01"))
    }),
    Check::new(G, "mp3", "relayed byte for byte", "FLV 10.1 E.4.2.1", |lab| {
        Box::pin(audio(lab, b"", b"\x2f"))
    }),
    Check::new(G, "speex", "relayed byte for byte", "FLV 10.1 E.4.2.1", |lab| {
        Box::pin(audio(lab, b"", b"\xb2"))
    }),
    Check::new(G, "g711", "relayed byte for byte", "FLV 10.1 E.4.2.1", |lab| {
        Box::pin(audio(lab, b"", b"\x72"))
    }),
    Check::new(G, "large-frame", "a keyframe of 1 MB arrives whole", "4K encoders", |lab| {
        Box::pin(large(lab))
    }),
    Check::new(G, "aggregate", "split into its messages", "RTMP 1.0 §7.1.6, FMS", |lab| {
        Box::pin(aggregate(lab))
    }),
    Check::new(G, "aggregate-times", "their times count from its own", "RTMP 1.0 §7.1.6, FMS", |lab| {
        Box::pin(aggregate_times(lab))
    }),
    Check::new(
        G,
        "codec-change",
        "a new codec: its header, then its frames",
        "encoders that are set anew",
        |lab| Box::pin(codec_change(lab)),
    ),
];

/// A head, and bytes that nobody could take for something behind it.
pub(super) fn body(head: &[u8], mark: u32, length: usize) -> Bytes {
    [head, &noise(mark, length)].concat().into()
}

/// A stream of one video codec: header, keyframes and frames come as they are.
pub(super) async fn video(lab: &Lab, header: &[u8], key: &[u8], frame: &[u8]) -> Finding {
    let start = [
        Media::video(1000, body(header, 100, if header.is_empty() { 0 } else { 30 })),
        Media::audio(1000, bodies::aac_header()),
        Media::video(1000, body(key, 0, 300)),
    ];
    let start: Vec<Media> = start.into_iter().filter(|media| !media.body.is_empty()).collect();
    let mut scene = Scene::start_with(lab, &start).await?;
    let media = [
        Media::video(1040, body(key, 1, 300)),
        Media::video(1080, body(frame, 2, 200)),
        Media::audio(1090, bodies::aac_frame(1)),
        Media::video(1120, body(frame, 3, 100)),
    ];
    scene.relays(&media).await?;
    pass("bytes are the same")
}

/// The same of one audio codec.
pub(super) async fn audio(lab: &Lab, header: &[u8], frame: &[u8]) -> Finding {
    let start = [
        Media::audio(1000, body(header, 100, if header.is_empty() { 0 } else { 19 })),
        Media::video(1000, bodies::avc_header()),
        Media::video(1000, bodies::avc_key(0)),
        Media::audio(1000, body(frame, 0, 90)),
    ];
    let start: Vec<Media> = start.into_iter().filter(|media| !media.body.is_empty()).collect();
    let mut scene = Scene::start_with(lab, &start).await?;
    let media = [
        Media::audio(1020, body(frame, 1, 90)),
        Media::video(1040, bodies::avc_key(1)),
        Media::audio(1040, body(frame, 2, 400)),
    ];
    scene.relays(&media).await?;
    pass("bytes are the same")
}

async fn large(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    scene.relays(&[Media::video(1040, bodies::long_avc_key(1, 1_000_000))]).await?;
    pass("bytes are the same")
}

/// An FLV tag with its back pointer (§7.1.6).
fn put_tag(out: &mut BytesMut, media: &Media) {
    let start = out.len();
    out.put_u8(media.type_id);
    out.put_uint(media.body.len() as u64, 3);
    out.put_uint((media.time & 0xFF_FFFF).into(), 3);
    out.put_u8((media.time >> 24) as u8);
    out.put_uint(0, 3);
    out.put_slice(&media.body);
    out.put_u32(u32::try_from(out.len() - start).unwrap_or(u32::MAX));
}

/// Sends three messages in an aggregate at 1040, whose tags count from 500,000; gives them with the times they should have.
async fn aggregated(scene: &mut Scene) -> Result<Vec<Media>, Trouble> {
    let media = [
        Media::video(1040, bodies::avc_key(1)),
        Media::audio(1050, bodies::aac_frame(1)),
        Media::video(1083, bodies::avc_frame(2)),
    ];
    let mut tags = BytesMut::new();
    for media in &media {
        put_tag(&mut tags, &Media { time: media.time - 1040 + 500_000, ..media.clone() });
    }
    scene.publisher.send(AGGREGATE, 1040, &tags).await?;
    Ok(media.into())
}

async fn aggregate(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let media = aggregated(&mut scene).await?;
    scene.arrives(&media).await?;
    pass("all three arrive")
}

async fn aggregate_times(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    // What stands before the aggregate shows whether its clock is the stream's.
    let before = Media::video(1020, bodies::avc_key(9));
    let wire = scene.publisher.wire(before.type_id, before.time, &before.body);
    scene.publisher.write(&wire).await?;
    let media = aggregated(&mut scene).await?;
    scene.on_time(&[&[before], &media[..]].concat()).await?;
    pass("distances are right")
}

async fn codec_change(lab: &Lab) -> Finding {
    let mut scene = Scene::start_with(lab, &opening(1000)).await?;
    let change = [
        Media::video(1040, body(b"\x1c\0\0\0\0", 1, 40)),
        Media::video(1040, body(b"\x1c\x01\0\0\0", 2, 200)),
        Media::audio(1045, body(b"\x2f", 3, 90)),
        Media::video(1080, body(b"\x2c\x01\0\0\0", 4, 100)),
    ];
    scene.relays(&change).await?;
    // Who joins now needs the new header, and must not get the old one.
    let mut late = lab.viewer().await?;
    let next = [Media::video(1120, body(b"\x1c\x01\0\0\0", 5, 200))];
    scene.relays(&next).await?;
    let header =
        late.until("a header", |message| (message.type_id == 9).then(|| message.body.clone())).await?;
    match header == bodies::avc_header() {
        true => fail("a late viewer gets the old header"),
        false => pass("header and frames arrive"),
    }
}
