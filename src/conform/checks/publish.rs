//! How a publish begins and ends, and what data a publisher may send.

use crate::conform::bodies::{self, Media, values};
use crate::conform::check::{Check, Finding, Group, fail, info, pass};
use crate::conform::lab::{Lab, PUBLISH_START, Side, create_stream, publish};
use crate::conform::peer::{Peer, Trouble, data_of, status_of};
use crate::conform::scene::{Scene, arrive, opening, publishing, send};
use crate::rtmp::amf0::Value;
use crate::rtmp::message::{DATA_AMF0, DATA_AMF3};
use tokio::time::Instant;

const G: Group = Group::Publish;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "start", "Publish.Start on the message stream", "RTMP 1.0 §7.2.2.6", |lab| {
        Box::pin(start(lab))
    }),
    Check::new(G, "type-missing", "publish without a type", "encoders in the field", |lab| {
        Box::pin(publishes(lab, vec![]))
    }),
    Check::new(G, "type-upper-case", "publish as LIVE", "encoders in the field", |lab| {
        Box::pin(publishes(lab, vec![Value::string("LIVE")]))
    }),
    Check::new(G, "type-record", "publish to be recorded", "RTMP 1.0 §7.2.2.6", |lab| {
        Box::pin(publishes(lab, vec![Value::string("record")]))
    }),
    Check::new(G, "type-append", "publish to be appended", "RTMP 1.0 §7.2.2.6", |lab| {
        Box::pin(publishes(lab, vec![Value::string("append")]))
    }),
    Check::new(G, "eager-media", "media right behind publish is relayed", "encoders that pipeline", |lab| {
        Box::pin(eager(lab))
    }),
    Check::new(
        G,
        "second",
        "BadName and a close, or a takeover",
        "OBS hangs on one without the other",
        |lab| Box::pin(second(lab)),
    ),
    Check::new(
        G,
        "comes-back",
        "the name is free when its publisher is cut",
        "encoders that reconnect",
        |lab| Box::pin(comes_back(lab, End::Cut)),
    ),
    Check::new(G, "delete-stream", "the name is free after deleteStream", "RTMP 1.0 §7.2.2.3", |lab| {
        Box::pin(comes_back(lab, End::DeleteStream))
    }),
    Check::new(G, "again", "publish anew on the same connection", "RTMP 1.0 §7.2.2.6", |lab| {
        Box::pin(again(lab))
    }),
    Check::new(G, "set-data-frame", "viewers get onMetaData without it", "OBS, ffmpeg, FMLE", |lab| {
        Box::pin(metadata(lab, DATA_AMF0, bodies::set_data_frame(640.0).to_vec()))
    }),
    Check::new(G, "bare-metadata", "onMetaData without @setDataFrame", "encoders in the field", |lab| {
        Box::pin(metadata(lab, DATA_AMF0, bodies::metadata(640.0).to_vec()))
    }),
    Check::new(G, "amf3-metadata", "data of type 15: a zero, then AMF 0", "Flash", |lab| {
        Box::pin(metadata(lab, DATA_AMF3, [&[0], &bodies::set_data_frame(640.0)[..]].concat()))
    }),
    Check::new(G, "clear-data-frame", "late viewers get no metadata after it", "FMLE", |lab| {
        Box::pin(clear_data_frame(lab))
    }),
    Check::new(
        G,
        "other-data",
        "onCuePoint, onTextData are relayed",
        "captions, advertisement marks",
        |lab| Box::pin(other_data(lab)),
    ),
];

async fn start(lab: &Lab) -> Finding {
    let mut peer = lab.ready(Side::Publish).await?;
    let key = [Value::string(lab.key(Side::Publish)), Value::string("live")];
    peer.call(peer.stream_id, "publish", key).await?;
    let (status, stream_id) =
        peer.until("the answer to publish", |message| Some((status_of(message)?, message.stream_id))).await?;
    match (status.code == PUBLISH_START, stream_id == peer.stream_id) {
        (true, true) => pass(format!("{}, on stream {stream_id}", status.code)),
        (true, false) => fail(format!("{}, but on stream {stream_id}", status.code)),
        (false, _) => Err(Trouble::Refused { what: "publish".to_owned(), code: status.code }),
    }
}

async fn publishes(lab: &Lab, kind: Vec<Value>) -> Finding {
    let mut peer = lab.ready(Side::Publish).await?;
    let key = Value::string(lab.key(Side::Publish));
    let status = publish(&mut peer, [&[key][..], &kind].concat()).await?;
    pass(status.code)
}

async fn eager(lab: &Lab) -> Finding {
    let mut publisher = lab.ready(Side::Publish).await?;
    let key = [Value::string(lab.key(Side::Publish)), Value::string("live")];
    publisher.call(publisher.stream_id, "publish", key).await?;
    send(&mut publisher, &opening(1000)).await?;
    publisher.status("the answer to publish", &[PUBLISH_START]).await?;
    publisher.goes_on().await?;
    let mut viewer = lab.viewer().await?;
    let next = Media::video(1040, bodies::avc_key(1));
    send(&mut publisher, std::slice::from_ref(&next)).await?;
    // The headers are kept for late viewers, so they are looked for and not the first frames.
    let header = Media::video(1000, bodies::avc_header());
    arrive(&mut viewer, &[header]).await?;
    arrive(&mut viewer, &[next]).await?;
    pass("headers and frames arrive")
}

async fn second(lab: &Lab) -> Finding {
    let mut first = publishing(lab, &opening(1000)).await?;
    let mut second = lab.ready(Side::Publish).await?;
    let key = [Value::string(lab.key(Side::Publish)), Value::string("live")];
    match publish(&mut second, key).await {
        Ok(_) => {
            send(&mut second, &opening(1000)).await?;
            match first.closes_within(lab.quiet() * 4).await {
                true => info("takeover: the first is closed"),
                false => fail("both publish under one name"),
            }
        }
        Err(Trouble::Refused { code, .. }) => match second.closes_within(lab.quiet() * 4).await {
            true => info(format!("refused: {code}, and closed")),
            false => fail(format!("{code} without a close")),
        },
        Err(Trouble::Closed(_)) => fail("closed without BadName"),
        Err(trouble) => Err(trouble),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Cut,
    DeleteStream,
}

async fn comes_back(lab: &Lab, end: End) -> Finding {
    let mut publisher = publishing(lab, &opening(1000)).await?;
    let held = match end {
        End::Cut => {
            drop(publisher);
            None
        }
        End::DeleteStream => {
            let id = Value::Number(publisher.stream_id.into());
            publisher.call(0, "deleteStream", [id]).await?;
            publisher.goes_on().await?;
            Some(publisher)
        }
    };
    // An encoder tries again; a server may need a moment to see that a connection is gone.
    let begun = Instant::now();
    loop {
        match lab.publisher().await {
            Ok(_) => break,
            Err(Trouble::Refused { .. } | Trouble::Closed(_)) if begun.elapsed() < lab.quiet() * 4 => {
                tokio::time::sleep(lab.quiet() / 8).await;
            }
            Err(trouble) => return Err(trouble),
        }
    }
    drop(held);
    pass(format!("published anew after {} ms", begun.elapsed().as_millis()))
}

async fn again(lab: &Lab) -> Finding {
    let mut publisher = publishing(lab, &opening(1000)).await?;
    let id = Value::Number(publisher.stream_id.into());
    publisher.call(0, "deleteStream", [id]).await?;
    create_stream(&mut publisher).await?;
    publish(&mut publisher, [Value::string(lab.key(Side::Publish)), Value::string("live")]).await?;
    pass(PUBLISH_START)
}

/// Metadata in the form in which this publisher sends it; viewers get it as `onMetaData` in AMF 0.
async fn metadata(lab: &Lab, type_id: u8, body: Vec<u8>) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    scene.publisher.send(type_id, 1040, &body).await?;
    // Some servers hold data back until there is media.
    send(&mut scene.publisher, &[Media::video(1040, bodies::avc_key(1))]).await?;
    loop {
        let message = scene.viewer.media("onMetaData with a width of 640").await?;
        let Some((name, values)) = data_of(&message) else { continue };
        let width = values.first().and_then(|object| object.get("width")?.as_number());
        match (name.as_str(), width) {
            ("onMetaData", Some(640.0)) => return pass("onMetaData with its values"),
            ("@setDataFrame", _) => return fail("viewers get @setDataFrame"),
            _ => {}
        }
    }
}

async fn clear_data_frame(lab: &Lab) -> Finding {
    let mut publisher = publishing(lab, &opening(1000)).await?;
    let body = values(&[Value::string("@clearDataFrame"), Value::string("onMetaData")]);
    publisher.send(DATA_AMF0, 1040, &body).await?;
    publisher.goes_on().await?;
    let mut viewer = lab.viewer().await?;
    let picture = [Media::video(1040, bodies::avc_key(1))];
    send(&mut publisher, &picture).await?;
    let (kept, passed_on) = names_until(&mut viewer, &picture).await?;
    match (kept, passed_on) {
        (false, false) => pass("no metadata"),
        (true, _) => fail("the old metadata is still given out"),
        (_, true) => fail("@clearDataFrame is given out"),
    }
}

/// Whether `onMetaData` and `@clearDataFrame` come before a picture.
async fn names_until(viewer: &mut Peer, picture: &[Media]) -> Result<(bool, bool), Trouble> {
    let (mut kept, mut passed_on) = (false, false);
    loop {
        let message = viewer.media("the picture").await?;
        if let Some((name, _)) = data_of(&message) {
            kept |= name == "onMetaData";
            passed_on |= name == "@clearDataFrame";
        }
        if picture.iter().any(|picture| picture.body == message.body) {
            return Ok((kept, passed_on));
        }
    }
}

async fn other_data(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let data = ["onCuePoint", "onTextData"].map(|name| {
        let object = Value::object([("text", Value::string("conform")), ("time", Value::Number(1.0))]);
        Media::new(DATA_AMF0, 1040, values(&[Value::string(name), object]))
    });
    send(&mut scene.publisher, &data).await?;
    send(&mut scene.publisher, &[Media::video(1040, bodies::avc_key(1))]).await?;
    scene.arrives(&data).await?;
    pass("both arrive")
}
