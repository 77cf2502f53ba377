//! How a play begins and ends, and what a viewer may ask for meanwhile.

use crate::conform::bodies::{self, Media};
use crate::conform::check::{Check, Finding, Group, fail, info, judge, pass};
use crate::conform::lab::{Lab, PLAY_START, Side, create_stream, play};
use crate::conform::peer::{Peer, Trouble, is_media, status_of};
use crate::conform::scene::{Scene, arrive, opening, publishing, send};
use crate::rtmp::amf0::Value;
use crate::rtmp::message::{AUDIO, Control, Message, UserControl, VIDEO};

const G: Group = Group::Play;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "start", "Play.Start on the message stream", "RTMP 1.0 §7.2.2.1", |lab| {
        Box::pin(start(lab))
    }),
    Check::new(G, "stream-begin", "StreamBegin before Play.Start", "RTMP 1.0 §7.2.2.1, Flash", |lab| {
        Box::pin(stream_begin(lab))
    }),
    Check::new(G, "reset", "Play.Reset first, where a reset is asked for", "RTMP 1.0 §7.2.2.1", |lab| {
        Box::pin(reset(lab))
    }),
    Check::new(G, "arguments-missing", "play with the name alone", "RTMP 1.0 §7.2.2.1", |lab| {
        Box::pin(name_alone(lab))
    }),
    Check::new(G, "unknown-name", "StreamNotFound, or it waits", "RTMP 1.0 §7.2.2.1", |lab| {
        Box::pin(unknown(lab))
    }),
    Check::new(
        G,
        "before-publish",
        "StreamNotFound, or media once it is there",
        "players that come early",
        |lab| Box::pin(before_publish(lab)),
    ),
    Check::new(
        G,
        "before-media",
        "answered while its publisher says nothing",
        "players that give up",
        |lab| Box::pin(before_media(lab)),
    ),
    Check::new(G, "pause", "media stops", "RTMP 1.0 §7.2.2.8", |lab| Box::pin(pause(lab))),
    Check::new(G, "unpause", "media goes on", "RTMP 1.0 §7.2.2.8", |lab| Box::pin(unpause(lab))),
    Check::new(G, "seek", "a live stream goes on", "RTMP 1.0 §7.2.2.7", |lab| Box::pin(seek(lab))),
    Check::new(G, "receive-video-false", "no video, audio goes on", "RTMP 1.0 §7.2.2.5", |lab| {
        Box::pin(receive(lab, "receiveVideo", VIDEO))
    }),
    Check::new(G, "receive-audio-false", "no audio, video goes on", "RTMP 1.0 §7.2.2.4", |lab| {
        Box::pin(receive(lab, "receiveAudio", AUDIO))
    }),
    Check::new(G, "receive-video-true", "video again, from a keyframe", "RTMP 1.0 §7.2.2.5", |lab| {
        Box::pin(receive_again(lab))
    }),
    Check::new(G, "close-stream", "media stops, the connection stays", "Flash, librtmp", |lab| {
        Box::pin(stops(lab, "closeStream"))
    }),
    Check::new(G, "delete-stream", "media stops, the connection stays", "RTMP 1.0 §7.2.2.3", |lab| {
        Box::pin(stops(lab, "deleteStream"))
    }),
    Check::new(G, "again", "play anew on the same connection", "Flash, playlists", |lab| {
        Box::pin(again(lab))
    }),
    Check::new(
        G,
        "unpublish-told",
        "UnpublishNotify or StreamEOF",
        "RTMP 1.0 §7.2.2, ffmpeg waits for it",
        |lab| Box::pin(unpublish_told(lab)),
    ),
    Check::new(G, "two-viewers", "both get the same", "every player", |lab| Box::pin(two_viewers(lab))),
];

/// Audio or video; servers say things in data messages of their own.
fn is_frame(message: &Message) -> bool {
    matches!(message.type_id, AUDIO | VIDEO)
}

/// What the server says from play to Play.Start, and the answer itself.
async fn until_start(peer: &mut Peer, arguments: Vec<Value>) -> Result<(Vec<Message>, Message), Trouble> {
    peer.call(peer.stream_id, "play", arguments).await?;
    let mut said = Vec::new();
    let start = peer
        .until("the answer to play", |message| {
            let status = status_of(message);
            if status.as_ref().is_some_and(|status| status.code == PLAY_START || status.level == "error") {
                return Some(message.clone());
            }
            said.extend((!is_media(message)).then(|| message.clone()));
            None
        })
        .await?;
    match status_of(&start) {
        Some(status) if status.code == PLAY_START => Ok((said, start)),
        status => {
            let code = status.map(|status| status.code).unwrap_or_default();
            Err(Trouble::Refused { what: "play".to_owned(), code })
        }
    }
}

/// A running stream, and a connection that is ready to play it.
async fn ready(lab: &Lab) -> Result<(Peer, Peer), Trouble> {
    Ok((publishing(lab, &opening(1000)).await?, lab.ready(Side::Play).await?))
}

fn live(lab: &Lab) -> Vec<Value> {
    vec![Value::string(lab.key(Side::Play)), Value::Number(-2000.0)]
}

async fn start(lab: &Lab) -> Finding {
    let (_publisher, mut viewer) = ready(lab).await?;
    let (_, start) = until_start(&mut viewer, live(lab)).await?;
    let stream_id = start.stream_id;
    judge(stream_id == viewer.stream_id, format!("{PLAY_START}, on stream {stream_id}"))
}

async fn stream_begin(lab: &Lab) -> Finding {
    let (_publisher, mut viewer) = ready(lab).await?;
    let (said, _) = until_start(&mut viewer, live(lab)).await?;
    let begun = said.iter().find_map(|message| match Control::parse(message) {
        Ok(Some(Control::User(UserControl::StreamBegin(id)))) => Some(id),
        _ => None,
    });
    match begun {
        Some(id) => judge(id == viewer.stream_id, format!("StreamBegin of stream {id}")),
        None => fail("no StreamBegin"),
    }
}

async fn reset(lab: &Lab) -> Finding {
    let (_publisher, mut viewer) = ready(lab).await?;
    let arguments = [&live(lab)[..], &[Value::Number(-1.0), Value::Boolean(true)]].concat();
    let (said, _) = until_start(&mut viewer, arguments).await?;
    let codes: Vec<String> = said.iter().filter_map(status_of).map(|status| status.code).collect();
    match codes.iter().any(|code| code == "NetStream.Play.Reset") {
        true => pass("NetStream.Play.Reset"),
        false => fail(format!("no NetStream.Play.Reset; {} other", codes.len())),
    }
}

async fn name_alone(lab: &Lab) -> Finding {
    let (_publisher, mut viewer) = ready(lab).await?;
    until_start(&mut viewer, vec![Value::string(lab.key(Side::Play))]).await?;
    pass(PLAY_START)
}

async fn unknown(lab: &Lab) -> Finding {
    let mut viewer = lab.ready(Side::Play).await?;
    match play(&mut viewer, &lab.unknown_key()).await {
        Ok(()) => match viewer.all_within(lab.quiet()).await?.iter().any(is_frame) {
            true => fail("media of a stream that is not there"),
            false => info("Play.Start, and it waits"),
        },
        Err(Trouble::Refused { code, .. }) => info(code),
        Err(Trouble::Silent(_)) => info("it waits, without a word"),
        Err(trouble) => Err(trouble),
    }
}

async fn before_publish(lab: &Lab) -> Finding {
    let mut viewer = lab.ready(Side::Play).await?;
    viewer.call(viewer.stream_id, "play", live(lab)).await?;
    let (said, ended) = viewer.heard_within(lab.quiet()).await;
    let mut publisher = lab.publisher().await?;
    send(&mut publisher, &opening(1000)).await?;
    if let Some(status) = said.iter().filter_map(status_of).find(|status| status.level == "error") {
        return info(status.code);
    }
    if let Some(trouble) = ended {
        return Err(trouble);
    }
    let media = [Media::video(1040, bodies::avc_key(1))];
    send(&mut publisher, &media).await?;
    arrive(&mut viewer, &media).await?;
    info("it waits, and media comes")
}

async fn before_media(lab: &Lab) -> Finding {
    let mut publisher = lab.publisher().await?;
    let mut viewer = lab.ready(Side::Play).await?;
    viewer.call(viewer.stream_id, "play", live(lab)).await?;
    let said = viewer.all_within(lab.quiet() * 2).await?;
    let answered = said.iter().filter_map(status_of).any(|status| status.code == PLAY_START);
    send(&mut publisher, &opening(1000)).await?;
    let media = [Media::video(1040, bodies::avc_key(1))];
    send(&mut publisher, &media).await?;
    arrive(&mut viewer, &media).await?;
    match answered {
        true => pass("Play.Start at once, then media"),
        false => fail("media comes, but no answer before it"),
    }
}

/// Pauses or goes on, and waits until the server has taken it.
async fn set_pause(viewer: &mut Peer, paused: bool) -> Result<(), Trouble> {
    viewer.call(viewer.stream_id, "pause", [Value::Boolean(paused), Value::Number(1000.0)]).await?;
    viewer.goes_on().await
}

async fn pause(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    scene.relays(&[Media::video(1040, bodies::avc_key(1))]).await?;
    set_pause(&mut scene.viewer, true).await?;
    send(&mut scene.publisher, &[Media::video(1080, bodies::avc_frame(2))]).await?;
    let media =
        scene.viewer.all_within(lab.quiet()).await?.iter().filter(|message| is_frame(message)).count();
    judge(media == 0, format!("{media} messages while paused"))
}

async fn unpause(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    set_pause(&mut scene.viewer, true).await?;
    set_pause(&mut scene.viewer, false).await?;
    scene.relays(&[Media::video(1080, bodies::avc_key(2)), Media::video(1120, bodies::avc_frame(3))]).await?;
    pass("media goes on")
}

async fn seek(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    scene.viewer.call(scene.viewer.stream_id, "seek", [Value::Number(0.0)]).await?;
    scene.viewer.goes_on().await?;
    scene.relays(&[Media::video(1080, bodies::avc_key(2))]).await?;
    pass("media goes on")
}

/// Tells the server that a kind is not wanted, or wanted again, and waits until it has taken it.
async fn want(viewer: &mut Peer, call: &str, wanted: bool) -> Result<(), Trouble> {
    viewer.call(viewer.stream_id, call, [Value::Boolean(wanted)]).await?;
    viewer.goes_on().await
}

async fn receive(lab: &Lab, call: &str, unwanted: u8) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    scene.relays(&[Media::video(1040, bodies::avc_key(1)), Media::audio(1040, bodies::aac_frame(1))]).await?;
    want(&mut scene.viewer, call, false).await?;
    let frames = (2..6).flat_map(|mark| {
        let time = 1000 + 40 * mark;
        [Media::video(time, bodies::avc_frame(mark)), Media::audio(time, bodies::aac_frame(mark))]
    });
    let frames: Vec<Media> = frames.collect();
    send(&mut scene.publisher, &frames).await?;
    let (mut came, mut open) = (0, frames.iter().filter(|media| media.type_id != unwanted).count());
    while open > 0 {
        let message = scene.viewer.media("the kind that is wanted").await?;
        let sent = frames.iter().any(|media| media.body == message.body);
        came += usize::from(sent && message.type_id == unwanted);
        open -= usize::from(sent && message.type_id != unwanted);
    }
    let rest = scene.viewer.all_within(lab.quiet()).await?;
    came += rest.iter().filter(|message| message.type_id == unwanted).count();
    match came {
        0 => pass("the other kind goes on alone"),
        _ => fail(format!("{came} unwanted messages")),
    }
}

async fn receive_again(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    want(&mut scene.viewer, "receiveVideo", false).await?;
    want(&mut scene.viewer, "receiveVideo", true).await?;
    scene.relays(&[Media::video(1080, bodies::avc_key(2)), Media::video(1120, bodies::avc_frame(3))]).await?;
    pass("video is back")
}

async fn stops(lab: &Lab, call: &str) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    scene.relays(&[Media::video(1040, bodies::avc_key(1))]).await?;
    stop(&mut scene.viewer, call).await?;
    send(&mut scene.publisher, &[Media::video(1080, bodies::avc_key(2))]).await?;
    let media =
        scene.viewer.all_within(lab.quiet()).await?.iter().filter(|message| is_frame(message)).count();
    judge(media == 0, format!("{media} messages afterwards"))
}

/// Ends what a viewer plays, and waits until the server has taken it.
async fn stop(viewer: &mut Peer, call: &str) -> Result<(), Trouble> {
    let id = Value::Number(viewer.stream_id.into());
    // closeStream names its stream by where it stands, deleteStream by its argument.
    match call {
        "closeStream" => viewer.call(viewer.stream_id, call, []).await?,
        _ => viewer.call(0, call, [id]).await?,
    };
    viewer.goes_on().await
}

async fn again(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    stop(&mut scene.viewer, "deleteStream").await?;
    create_stream(&mut scene.viewer).await?;
    lab.watch(&mut scene.viewer).await?;
    scene.relays(&[Media::video(1080, bodies::avc_key(2))]).await?;
    pass("media comes")
}

async fn unpublish_told(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let id = Value::Number(scene.publisher.stream_id.into());
    scene.publisher.call(0, "FCUnpublish", [Value::string(lab.key(Side::Publish))]).await?;
    scene.publisher.call(0, "deleteStream", [id]).await?;
    drop(scene.publisher);
    let told = scene.viewer.until("a word that the stream has ended", |message| {
        if let Ok(Some(Control::User(UserControl::StreamEof(_)))) = Control::parse(message) {
            return Some("StreamEOF".to_owned());
        }
        let code = status_of(message)?.code;
        matches!(code.as_str(), "NetStream.Play.UnpublishNotify" | "NetStream.Play.Stop").then_some(code)
    });
    match told.await {
        Ok(word) => pass(word),
        Err(Trouble::Closed(_)) => fail("closed without a word"),
        Err(trouble) => Err(trouble),
    }
}

async fn two_viewers(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let mut other = lab.viewer().await?;
    let media = [Media::video(1040, bodies::avc_key(1)), Media::audio(1040, bodies::aac_frame(1))];
    scene.relays(&media).await?;
    arrive(&mut other, &media).await?;
    let gone = std::mem::replace(&mut scene.viewer, other);
    drop(gone);
    scene.relays(&[Media::video(1080, bodies::avc_key(2))]).await?;
    pass("both get it, and one alone goes on")
}
