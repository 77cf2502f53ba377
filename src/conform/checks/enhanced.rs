//! Enhanced RTMP: what is agreed at connect, bodies with a FourCC, and what late viewers need of them.

use super::media::{audio, body, video};
use crate::conform::bodies::{Media, values};
use crate::conform::check::{Check, Finding, Group, fail, pass};
use crate::conform::lab::{Lab, Side};
use crate::conform::peer::Trouble;
use crate::conform::scene::{Scene, publishing, send};
use crate::rtmp::amf0::Value;
use bytes::Bytes;

const G: Group = Group::Enhanced;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "fourcc-list", "answered with a list of its own", "Enhanced RTMP v1, connect", |lab| {
        let list = ["avc1", "hvc1", "av01", "vp09", "Opus"].map(Value::string);
        Box::pin(in_kind(lab, "fourCcList", Value::StrictArray(list.into())))
    }),
    Check::new(G, "video-fourcc-map", "answered with a map of its own", "Enhanced RTMP v2, connect", |lab| {
        Box::pin(in_kind(lab, "videoFourCcInfoMap", Value::object([("*", Value::Number(4.0))])))
    }),
    Check::new(G, "audio-fourcc-map", "answered with a map of its own", "Enhanced RTMP v2, connect", |lab| {
        Box::pin(in_kind(lab, "audioFourCcInfoMap", Value::object([("*", Value::Number(4.0))])))
    }),
    Check::new(G, "caps-ex", "answered with its own capabilities", "Enhanced RTMP v2, connect", |lab| {
        Box::pin(in_kind(lab, "capsEx", Value::Number(15.0)))
    }),
    Check::new(G, "avc", "relayed byte for byte", "Enhanced RTMP v2, ExVideoTagHeader", |lab| {
        Box::pin(video(lab, b"\x90avc1", b"\x91avc1\0\0\0", b"\xa1avc1\0\0\x28"))
    }),
    Check::new(G, "hevc", "relayed byte for byte", "Enhanced RTMP v1, ffmpeg, OBS", |lab| {
        Box::pin(video(lab, b"\x90hvc1", b"\x91hvc1\0\0\0", b"\xa3hvc1"))
    }),
    Check::new(G, "vvc", "relayed byte for byte", "Enhanced RTMP v2, ExVideoTagHeader", |lab| {
        Box::pin(video(lab, b"\x90vvc1", b"\x91vvc1\0\0\0", b"\xa1vvc1\0\0\0"))
    }),
    Check::new(G, "av1", "relayed byte for byte", "Enhanced RTMP v1, OBS", |lab| {
        Box::pin(video(lab, b"\x90av01", b"\x91av01", b"\xa1av01"))
    }),
    Check::new(G, "vp8", "relayed byte for byte", "Enhanced RTMP v2, ExVideoTagHeader", |lab| {
        Box::pin(video(lab, b"\x90vp08", b"\x91vp08", b"\xa1vp08"))
    }),
    Check::new(G, "vp9", "relayed byte for byte", "Enhanced RTMP v1, ffmpeg", |lab| {
        Box::pin(video(lab, b"\x90vp09", b"\x91vp09", b"\xa1vp09"))
    }),
    Check::new(G, "opus", "relayed byte for byte", "Enhanced RTMP v2, ffmpeg", |lab| {
        Box::pin(audio(lab, b"\x90Opus", b"\x91Opus"))
    }),
    Check::new(G, "flac", "relayed byte for byte", "Enhanced RTMP v2, ffmpeg", |lab| {
        Box::pin(audio(lab, b"\x90fLaC", b"\x91fLaC"))
    }),
    Check::new(G, "ac3", "relayed byte for byte", "Enhanced RTMP v2, ffmpeg", |lab| {
        Box::pin(audio(lab, b"", b"\x91ac-3"))
    }),
    Check::new(G, "eac3", "relayed byte for byte", "Enhanced RTMP v2, ffmpeg", |lab| {
        Box::pin(audio(lab, b"", b"\x91ec-3"))
    }),
    Check::new(G, "multitrack-video", "relayed byte for byte", "Enhanced RTMP v2, OBS, Twitch", |lab| {
        Box::pin(video(lab, b"\x96\x00hvc1\x01", b"\x96\x01hvc1\x01\0\0\0", b"\xa6\x01hvc1\x01\0\0\0"))
    }),
    Check::new(G, "multitrack-audio", "relayed byte for byte", "Enhanced RTMP v2, ffmpeg, OBS", |lab| {
        Box::pin(audio(lab, b"\x95\x00Opus\x01", b"\x95\x01Opus\x01"))
    }),
    Check::new(G, "mod-ex", "nanosecond offsets are relayed", "Enhanced RTMP v2, ModEx", |lab| {
        Box::pin(video(
            lab,
            b"\x90hvc1",
            b"\x97\x02\0\0\x10\x01hvc1\0\0\0",
            b"\xa7\x02\0\0\x20\x01hvc1\0\0\0",
        ))
    }),
    Check::new(G, "unknown-fourcc", "relayed byte for byte", "codecs not named yet", |lab| {
        Box::pin(video(lab, b"\x90cfm1", b"\x91cfm1", b"\xa1cfm1"))
    }),
    Check::new(G, "sequence-end", "passed on", "Enhanced RTMP v2, ffmpeg", |lab| Box::pin(sequence_end(lab))),
    Check::new(G, "join-header", "a late viewer gets SequenceStart first", "every player", |lab| {
        Box::pin(join_header(lab))
    }),
    Check::new(G, "join-keyframe", "a late viewer gets a keyframe first", "every player", |lab| {
        Box::pin(join_keyframe(lab))
    }),
    Check::new(G, "join-tracks", "a late viewer gets each track's header", "multitrack players", |lab| {
        Box::pin(join_tracks(lab))
    }),
    Check::new(G, "join-colour", "a late viewer gets the colour of HDR", "Enhanced RTMP v1, HDR", |lab| {
        Box::pin(join_colour(lab))
    }),
];

/// What a client offers is answered by the same property, of the same type.
async fn in_kind(lab: &Lab, name: &str, offer: Value) -> Finding {
    let connect = lab.plain_connect(Side::Publish).with(name, offer.clone());
    let (_, answer) = lab.connected_by(Side::Publish, connect).await?;
    let said = answer.object.get(name).or_else(|| answer.argument(0)?.get(name));
    match said {
        None => fail("not answered"),
        Some(said) if std::mem::discriminant(said) == std::mem::discriminant(&offer) => pass(match said {
            Value::StrictArray(values) => format!("{} codecs", values.len()),
            Value::Number(number) => format!("{number}"),
            other => format!("{} entries", other.properties().map_or(0, <[_]>::len)),
        }),
        Some(_) => fail("answered with another type"),
    }
}

const HEADER: &[u8] = b"\x90hvc1";
const KEY: &[u8] = b"\x91hvc1\0\0\0";
const FRAME: &[u8] = b"\xa1hvc1\0\0\0";

fn header() -> Media {
    Media::video(1000, body(HEADER, 100, 40))
}

async fn sequence_end(lab: &Lab) -> Finding {
    let start = [header(), Media::video(1000, body(KEY, 0, 200))];
    let mut scene = Scene::start_with(lab, &start).await?;
    let end = [Media::video(1040, body(FRAME, 1, 100)), Media::video(1041, Bytes::from_static(b"\x92hvc1"))];
    scene.relays(&end).await?;
    pass("it arrives")
}

/// The bodies of video that a late viewer gets, up to a keyframe that is sent when it has joined.
async fn joins(lab: &Lab, opening: &[Media]) -> Result<Vec<Bytes>, Trouble> {
    let mut publisher = publishing(lab, opening).await?;
    let mut viewer = lab.viewer().await?;
    let last = Media::video(1200, body(KEY, 50, 200));
    send(&mut publisher, &[Media::video(1160, body(FRAME, 49, 100)), last.clone()]).await?;
    let mut got = Vec::new();
    loop {
        let message = viewer.media("a keyframe").await?;
        if message.type_id == last.type_id {
            got.push(message.body);
        }
        if got.last() == Some(&last.body) {
            return Ok(got);
        }
    }
}

async fn join_header(lab: &Lab) -> Finding {
    let frames = [Media::video(1000, body(KEY, 0, 200)), Media::video(1040, body(FRAME, 1, 100))];
    let got = joins(lab, &[&[header()], &frames[..]].concat()).await?;
    let header = header().body;
    match got.iter().position(|body| *body == header) {
        Some(0) => pass("it comes first"),
        Some(before) => fail(format!("behind {before} messages")),
        None => fail("no SequenceStart"),
    }
}

async fn join_keyframe(lab: &Lab) -> Finding {
    let frames = [Media::video(1000, body(KEY, 0, 200)), Media::video(1040, body(FRAME, 1, 100))];
    let got = joins(lab, &[&[header()], &frames[..]].concat()).await?;
    match got.iter().find(|body| !body.starts_with(HEADER)) {
        Some(first) if first.starts_with(KEY) => pass("it is"),
        _ => fail("a frame that needs others"),
    }
}

async fn join_tracks(lab: &Lab) -> Finding {
    let track =
        |id: u8| Media::video(1000, body(&[b"\x96\x00hvc1", &[id][..]].concat(), 100 + u32::from(id), 40));
    let (one, two) = (track(1), track(2));
    let opening = [header(), one.clone(), two.clone(), Media::video(1000, body(KEY, 0, 200))];
    let got = joins(lab, &opening).await?;
    let missing = [header(), one, two].iter().filter(|header| !got.contains(&header.body)).count();
    match missing {
        0 => pass("all three headers"),
        _ => fail(format!("{missing} of 3 headers are missing")),
    }
}

async fn join_colour(lab: &Lab) -> Finding {
    let colour = Value::object([("colorConfig", Value::object([("colorPrimaries", Value::Number(9.0))]))]);
    let colour = [b"\x94hvc1", &values(&[Value::string("colorInfo"), colour])[..]].concat();
    let colour = Media::video(1000, colour);
    let opening = [header(), colour.clone(), Media::video(1000, body(KEY, 0, 200))];
    match joins(lab, &opening).await?.contains(&colour.body) {
        true => pass("it arrives"),
        false => fail("no colour information"),
    }
}
