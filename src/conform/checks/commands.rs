//! Calls that encoders and players make besides, which many servers do not know: they may answer or not, but they go on.

use crate::conform::check::{Check, Finding, Group, fail, pass};
use crate::conform::lab::{Lab, Side, create_stream};
use crate::conform::peer::{Status, answer_to};
use crate::rtmp::amf0::Value;
use crate::rtmp::message::Command;

const G: Group = Group::Commands;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "release-stream", "answered or ignored", "ffmpeg, OBS, FMLE", |lab| {
        Box::pin(polite(lab, "releaseStream", vec![Value::string(lab.key(Side::Publish))]))
    }),
    Check::new(G, "fc-publish", "answered or ignored", "ffmpeg, OBS, FMLE", |lab| {
        Box::pin(polite(lab, "FCPublish", vec![Value::string(lab.key(Side::Publish))]))
    }),
    Check::new(G, "fc-unpublish", "answered or ignored", "ffmpeg, OBS, FMLE", |lab| {
        Box::pin(polite(lab, "FCUnpublish", vec![Value::string(lab.key(Side::Publish))]))
    }),
    Check::new(G, "fc-subscribe", "answered or ignored", "librtmp, ffmpeg", |lab| {
        Box::pin(polite(lab, "FCSubscribe", vec![Value::string(lab.key(Side::Play))]))
    }),
    Check::new(G, "check-bandwidth", "answered or ignored", "ffmpeg, librtmp", |lab| {
        Box::pin(polite(lab, "_checkbw", vec![]))
    }),
    Check::new(G, "get-stream-length", "answered or ignored", "ffmpeg", |lab| {
        Box::pin(polite(lab, "getStreamLength", vec![Value::string(lab.key(Side::Play))]))
    }),
    Check::new(G, "set-peer-info", "answered or ignored", "Flash Player", |lab| {
        Box::pin(polite(lab, "setPeerInfo", vec![Value::Null]))
    }),
    Check::new(G, "unknown-call", "answered or ignored", "RTMP 1.0 §7.2.1.2", |lab| {
        Box::pin(polite(lab, "conformNoSuchCall", vec![Value::Number(1.0)]))
    }),
    Check::new(G, "no-transaction", "a call without one is not answered", "RTMP 1.0 §7.2.1.2", |lab| {
        Box::pin(without_transaction(lab))
    }),
    Check::new(G, "create-stream", "_result with a number of 1 or more", "RTMP 1.0 §7.2.1.3", |lab| {
        Box::pin(create(lab))
    }),
    Check::new(G, "delete-unknown", "deleteStream of one that is not there", "RTMP 1.0 §7.2.2.3", |lab| {
        Box::pin(polite(lab, "deleteStream", vec![Value::Number(77.0)]))
    }),
];

/// The call costs nothing; what the server says to it is only reported.
async fn polite(lab: &Lab, name: &str, arguments: Vec<Value>) -> Finding {
    let mut peer = lab.connected(Side::Publish).await?;
    let transaction = peer.call(0, name, arguments).await?;
    // Answers come in order, so by the time of the next one there is an answer or none.
    let fence = peer.call(0, "createStream", []).await?;
    let mut answer = None;
    peer.until("the answer to the next call", |message| {
        answer = answer.take().or_else(|| answer_to(message, transaction));
        answer_to(message, fence)
    })
    .await?;
    match answer {
        Some(answer) if answer.name == "_error" => pass(format!("_error {}", Status::of(&answer).code)),
        Some(_) => pass("_result"),
        None => pass("ignored"),
    }
}

async fn without_transaction(lab: &Lab) -> Finding {
    let mut peer = lab.connected(Side::Publish).await?;
    let command = Command::new("conformNoSuchCall", 0.0, Value::Null, [Value::Number(1.0)]);
    peer.command(0, &command).await?;
    let fence = peer.call(0, "createStream", []).await?;
    let mut answered = false;
    peer.until("the answer to the next call", |message| {
        answered |= answer_to(message, 0.0).is_some();
        answer_to(message, fence)
    })
    .await?;
    if answered { fail("answered to transaction 0") } else { pass("not answered") }
}

async fn create(lab: &Lab) -> Finding {
    let mut peer = lab.connected(Side::Publish).await?;
    create_stream(&mut peer).await?;
    pass(format!("message stream {}", peer.stream_id))
}
