//! What a viewer gets that joins a running stream: metadata, headers, and a picture that it can begin with.

use crate::conform::bodies::{self, Media};
use crate::conform::check::{Check, Finding, Group, fail, info, judge, pass};
use crate::conform::lab::Lab;
use crate::conform::peer::{Peer, Trouble, data_of, is_media};
use crate::conform::scene::{arrive, publishing, send};
use crate::rtmp::message::{AUDIO, DATA_AMF0, Message, VIDEO};

const G: Group = Group::Join;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "metadata-first", "onMetaData before all media", "ffprobe", |lab| {
        Box::pin(metadata_first(lab))
    }),
    Check::new(G, "metadata-time", "its time is 0", "ffmpeg -map 0 waits for it otherwise", |lab| {
        Box::pin(metadata_time(lab))
    }),
    Check::new(G, "video-header", "the sequence header before any frame", "every player", |lab| {
        Box::pin(header(lab, VIDEO, bodies::avc_header()))
    }),
    Check::new(G, "audio-header", "the sequence header before any frame", "every player", |lab| {
        Box::pin(header(lab, AUDIO, bodies::aac_header()))
    }),
    Check::new(G, "keyframe-first", "the first frame of video is a keyframe", "every player", |lab| {
        Box::pin(keyframe_first(lab))
    }),
    Check::new(
        G,
        "frames-whole",
        "no frame is missing from there on",
        "decoders show grey otherwise",
        |lab| Box::pin(frames_whole(lab)),
    ),
    Check::new(G, "at-once", "a picture before the next keyframe", "players that start fast", |lab| {
        Box::pin(at_once(lab))
    }),
    Check::new(G, "audio-only", "a stream without video starts", "radio", |lab| Box::pin(audio_only(lab))),
    Check::new(G, "video-only", "a stream without audio starts", "cameras", |lab| Box::pin(video_only(lab))),
    Check::new(
        G,
        "newest-header",
        "after a change only the new header",
        "encoders that change size",
        |lab| Box::pin(newest_header(lab)),
    ),
    Check::new(G, "newest-metadata", "after a change the new metadata", "encoders that change size", |lab| {
        Box::pin(newest_metadata(lab))
    }),
];

/// When the stream begins, far from 0.
const START: u32 = 60_000;

/// A stream that has run for a while: a keyframe, and frames that need it.
fn running() -> Vec<Media> {
    vec![
        bodies::sent_metadata(START, 320.0),
        Media::video(START, bodies::avc_header()),
        Media::audio(START, bodies::aac_header()),
        Media::video(START, bodies::avc_key(1)),
        Media::audio(START + 10, bodies::aac_frame(1)),
        Media::video(START + 40, bodies::avc_frame(2)),
        Media::audio(START + 50, bodies::aac_frame(2)),
        Media::video(START + 80, bodies::avc_frame(3)),
    ]
}

/// And how it goes on: servers without a start cache begin with the next keyframe.
fn going_on() -> Vec<Media> {
    vec![
        Media::video(START + 120, bodies::avc_frame(4)),
        Media::audio(START + 130, bodies::aac_frame(4)),
        Media::video(START + 160, bodies::avc_key(5)),
        Media::audio(START + 170, bodies::aac_frame(5)),
        Media::video(START + 200, bodies::avc_frame(6)),
        Media::audio(START + 210, bodies::aac_frame(6)),
        Media::video(START + 240, bodies::avc_frame(7)),
    ]
}

/// What a late viewer gets up to a frame of the end.
async fn joined(lab: &Lab) -> Result<Vec<Message>, Trouble> {
    let mut publisher = publishing(lab, &running()).await?;
    let mut viewer = lab.viewer().await?;
    send(&mut publisher, &going_on()).await?;
    until_body(&mut viewer, &bodies::avc_frame(7)).await
}

async fn until_body(viewer: &mut Peer, last: &[u8]) -> Result<Vec<Message>, Trouble> {
    let mut got = Vec::new();
    while got.last().is_none_or(|message: &Message| message.body != last) {
        got.push(viewer.media("the last frame").await?);
    }
    Ok(got)
}

fn is_metadata(message: &Message) -> bool {
    data_of(message).is_some_and(|(name, _)| name == "onMetaData")
}

async fn metadata_first(lab: &Lab) -> Finding {
    let got = joined(lab).await?;
    // Other data may stand before it.
    let mut media = got.iter().filter(|message| message.type_id != DATA_AMF0 || is_metadata(message));
    match media.position(is_metadata) {
        Some(0) => pass("it comes first"),
        Some(before) => fail(format!("behind {before} messages")),
        None => fail("no onMetaData"),
    }
}

async fn metadata_time(lab: &Lab) -> Finding {
    let got = joined(lab).await?;
    match got.iter().find(|message| is_metadata(message)) {
        Some(message) => judge(message.timestamp == 0, format!("time {}", message.timestamp)),
        None => fail("no onMetaData"),
    }
}

async fn header(lab: &Lab, type_id: u8, header: bytes::Bytes) -> Finding {
    let got = joined(lab).await?;
    let first = got.iter().find(|message| message.type_id == type_id);
    let anywhere = got.iter().any(|message| message.body == header);
    match first {
        Some(first) if first.body == header => pass("it comes first"),
        Some(_) if anywhere => fail("frames come before it"),
        Some(_) => fail("no sequence header"),
        None => fail("nothing of the kind"),
    }
}

/// The frames of video in what a viewer got, by their place in the stream; those before the header count too.
fn frames(got: &[Message]) -> Vec<Option<u32>> {
    let header = bodies::avc_header();
    let frames = got.iter().filter(|message| message.type_id == VIDEO && message.body != header);
    let place = |message: &Message| {
        (1..8).find(|mark| message.body == bodies::avc_key(*mark) || message.body == bodies::avc_frame(*mark))
    };
    frames.map(place).collect()
}

async fn keyframe_first(lab: &Lab) -> Finding {
    match frames(&joined(lab).await?).first() {
        Some(Some(1 | 5)) => pass("it is"),
        Some(Some(other)) => fail(format!("the first is frame {other} of 7, which needs others")),
        _ => fail("the first is something else"),
    }
}

async fn frames_whole(lab: &Lab) -> Finding {
    let frames = frames(&joined(lab).await?);
    let gap = frames.windows(2).find_map(|pair| match pair {
        [Some(one), Some(next)] if *next == one + 1 => None,
        [one, next] => Some((*one, *next)),
        _ => None,
    });
    match gap {
        None => pass(format!("{} frames in a row", frames.len())),
        Some((one, next)) => fail(format!("frame {} follows frame {}", shown(next), shown(one))),
    }
}

fn shown(place: Option<u32>) -> String {
    place.map_or_else(|| "?".to_owned(), |place| place.to_string())
}

async fn at_once(lab: &Lab) -> Finding {
    let _publisher = publishing(lab, &running()).await?;
    let mut viewer = lab.viewer().await?;
    let got = viewer.all_within(lab.quiet()).await?;
    match frames(&got).first() {
        Some(Some(1)) => pass("from the last keyframe"),
        Some(_) => fail("a frame that needs others"),
        None => info("nothing until the next keyframe"),
    }
}

async fn audio_only(lab: &Lab) -> Finding {
    let audio = |mark| Media::audio(START + 20 * mark, bodies::aac_frame(mark));
    let opening = [Media::audio(START, bodies::aac_header()), audio(0), audio(1)];
    let mut publisher = publishing(lab, &opening).await?;
    let mut viewer = lab.viewer().await?;
    let media = [audio(2), audio(3), audio(4)];
    send(&mut publisher, &media).await?;
    arrive(&mut viewer, &media).await?;
    pass("audio comes")
}

async fn video_only(lab: &Lab) -> Finding {
    let opening = [Media::video(START, bodies::avc_header()), Media::video(START, bodies::avc_key(0))];
    let mut publisher = publishing(lab, &opening).await?;
    let mut viewer = lab.viewer().await?;
    let media =
        [Media::video(START + 40, bodies::avc_key(1)), Media::video(START + 80, bodies::avc_frame(2))];
    send(&mut publisher, &media).await?;
    arrive(&mut viewer, &media).await?;
    pass("video comes")
}

async fn newest_header(lab: &Lab) -> Finding {
    let mut publisher = publishing(lab, &running()).await?;
    let change = [
        Media::video(START + 100, bodies::other_avc_header()),
        Media::video(START + 100, bodies::avc_key(9)),
        Media::video(START + 110, bodies::avc_frame(9)),
    ];
    send(&mut publisher, &change).await?;
    publisher.goes_on().await?;
    let mut viewer = lab.viewer().await?;
    send(&mut publisher, &going_on()).await?;
    let got = until_body(&mut viewer, &bodies::avc_frame(7)).await?;
    let first = got.iter().find(|message| message.type_id == VIDEO);
    match first {
        Some(first) if first.body == bodies::other_avc_header() => pass("the new header"),
        Some(first) if first.body == bodies::avc_header() => fail("the old header"),
        _ => fail("a frame before any header"),
    }
}

async fn newest_metadata(lab: &Lab) -> Finding {
    let mut publisher = publishing(lab, &running()).await?;
    send(&mut publisher, &[bodies::sent_metadata(START + 100, 1280.0)]).await?;
    send(&mut publisher, &[Media::video(START + 100, bodies::avc_key(8))]).await?;
    publisher.goes_on().await?;
    let mut viewer = lab.viewer().await?;
    send(&mut publisher, &going_on()).await?;
    let got = until_body(&mut viewer, &bodies::avc_frame(7)).await?;
    let widths = got.iter().filter(|message| is_media(message) && is_metadata(message));
    let width = |message: &Message| data_of(message)?.1.first()?.get("width")?.as_number();
    match widths.filter_map(width).next_back() {
        Some(1280.0) => pass("the new metadata"),
        Some(_) => fail("the old metadata"),
        None => fail("no metadata with a width"),
    }
}
