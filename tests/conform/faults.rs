//! "lb conform finds every fault of a server that has them put in by hand": one fault after the other, and the rows that it
//! must fail. No other row may.

use super::faulty::{Attack, Fault, Faulty};
use super::wire::Wire;
use futures::{StreamExt, stream};
use lb::conform::{Check, Site, Verdict, all};
use lb::net::location::Location;
use std::collections::BTreeSet;
use std::time::Duration;

/// Which rows fail.
enum Meant {
    Only(&'static [&'static str]),
    /// Nothing works any more but these.
    AllBut(&'static [&'static str]),
}

use Meant::{AllBut, Only};

/// What needs no connect.
const HANDSHAKE: &[&str] = &[
    "handshake/simple",
    "handshake/digest-schema-0",
    "handshake/digest-schema-1",
    "handshake/digest-of-s1",
    "handshake/byte-by-byte",
    "handshake/early-c2",
    "handshake/foreign-c2",
    "handshake/other-version",
];

#[rustfmt::skip]
const FAULTS: &[(Fault, Meant)] = &[
    (Fault::None, Only(&[])),
    (Fault::FetchesAfterStart, Only(&[])),
    // Handshake.
    (Fault::S2Random, Only(&["handshake/simple"])),
    (Fault::S2Unsigned(0), Only(&["handshake/digest-schema-0"])),
    (Fault::S2Unsigned(1), Only(&["handshake/digest-schema-1"])),
    (Fault::S1Unsigned, Only(&["handshake/digest-of-s1"])),
    (Fault::WholeHello, Only(&["handshake/byte-by-byte"])),
    (Fault::DropsBehindC1, Only(&["handshake/early-c2"])),
    // Who sends C2 early cannot repeat S1.
    (Fault::ChecksC2, Only(&["handshake/foreign-c2", "handshake/early-c2"])),
    (Fault::AnswersVersion6, Only(&["handshake/other-version"])),
    // Chunks.
    (Fault::Wire(Wire::NoId2), Only(&["chunks/id-2-byte"])),
    (Fault::Wire(Wire::NoId3), Only(&["chunks/id-3-byte"])),
    (Fault::Wire(Wire::OnePartial), Only(&["chunks/interleaved"])),
    (Fault::Wire(Wire::ControlEndsPartial), Only(&["chunks/control-inside"])),
    (Fault::Wire(Wire::Format1Delta), Only(&["chunks/format-1", "chunks/format-3", "timestamps/extended-then-delta"])),
    (Fault::Wire(Wire::Format2Delta), Only(&["chunks/format-2"])),
    (Fault::Wire(Wire::Format3Delta), Only(&["chunks/format-3"])),
    (Fault::Wire(Wire::Format3After0), Only(&["chunks/format-3-after-0"])),
    (Fault::Wire(Wire::NoSmallSize), Only(&["chunks/size-1"])),
    (Fault::Wire(Wire::No65536), Only(&["chunks/size-65536"])),
    (Fault::Wire(Wire::NoLargeSize), Only(&["chunks/size-maximum"])),
    (Fault::Wire(Wire::FirstSizeOnly), Only(&["chunks/size-changes"])),
    (Fault::Wire(Wire::NoAbort), Only(&["chunks/abort"])),
    (Fault::Wire(Wire::EmptyCloses), Only(&["chunks/empty-message"])),
    // Timestamps.
    (Fault::AudioRounded, Only(&[
        "timestamps/in-order", "timestamps/past-0xffffff", "timestamps/exactly-0xffffff", "timestamps/wrap", "media/aggregate-times",
    ])),
    (Fault::HighByteLost, Only(&["timestamps/past-0xffffff", "timestamps/exactly-0xffffff", "timestamps/wrap"])),
    (Fault::Wire(Wire::LiteralFfffff), Only(&["timestamps/exactly-0xffffff"])),
    (Fault::Wire(Wire::ExtendedIsPayload), Only(&[
        "timestamps/past-0xffffff", "timestamps/exactly-0xffffff", "timestamps/wrap", "timestamps/extended-repeated",
        "timestamps/extended-once", "timestamps/extended-then-delta",
    ])),
    (Fault::Wire(Wire::ExtendedAlwaysRepeated), Only(&["timestamps/extended-once"])),
    (Fault::Wire(Wire::DeltaForgetsExtended), Only(&["timestamps/extended-then-delta"])),
    (Fault::ClockNeverWraps, Only(&["timestamps/wrap"])),
    (Fault::DataMovesClock, Only(&["timestamps/data-at-zero"])),
    // Control messages.
    (Fault::NoWindow, Only(&["control/window-ack-size"])),
    (Fault::NoBandwidth, Only(&["control/peer-bandwidth"])),
    (Fault::NoAcknowledgement, Only(&["control/acknowledgement"])),
    (Fault::NoPong, Only(&["control/ping-answered"])),
    (Fault::NoPongToViewers, Only(&["control/ping-while-playing"])),
    (Fault::UnknownEventCloses, Only(&["control/unknown-event"])),
    (Fault::ShortControlCloses, Only(&["control/short-control"])),
    (Fault::UnknownTypeCloses, Only(&["control/unknown-type"])),
    // Connect.
    (Fault::ConnectCode, AllBut(&["connect/unknown-app", "connect/pipelined", "control/window-ack-size", "control/peer-bandwidth", "amf/ecma-array-count", "limits/garbage"])),
    (Fault::NeedsTcUrl, Only(&["connect/app-alone"])),
    (Fault::ShortConnectOnly, Only(&["connect/long-connect"])),
    (Fault::NoAmf3Clients, Only(&["connect/object-encoding-3"])),
    (Fault::NoArguments, Only(&["connect/extra-arguments"])),
    (Fault::NoSlash, Only(&["connect/app-slash"])),
    (Fault::NoQuery, Only(&["connect/app-query"])),
    (Fault::NoInstance, Only(&["connect/app-instance"])),
    (Fault::QueryIsName, Only(&["connect/key-query"])),
    (Fault::UnknownAppUnanswered, Only(&["connect/unknown-app"])),
    (Fault::DropsPipelined, Only(&["connect/pipelined"])),
    (Fault::NoAmf3Commands, Only(&["connect/amf3-commands"])),
    (Fault::Unanswered("fourCcList"), Only(&["enhanced/fourcc-list"])),
    (Fault::Unanswered("videoFourCcInfoMap"), Only(&["enhanced/video-fourcc-map"])),
    (Fault::Unanswered("audioFourCcInfoMap"), Only(&["enhanced/audio-fourcc-map"])),
    (Fault::Unanswered("capsEx"), Only(&["enhanced/caps-ex"])),
    // Commands.
    (Fault::Closes("releaseStream"), Only(&["commands/release-stream"])),
    (Fault::Closes("FCPublish"), Only(&["commands/fc-publish"])),
    (Fault::Closes("FCUnpublish"), Only(&["commands/fc-unpublish"])),
    (Fault::Closes("FCSubscribe"), Only(&["commands/fc-subscribe"])),
    (Fault::Closes("_checkbw"), Only(&["commands/check-bandwidth"])),
    (Fault::Closes("getStreamLength"), Only(&["commands/get-stream-length"])),
    (Fault::Closes("setPeerInfo"), Only(&["commands/set-peer-info"])),
    (Fault::Closes("conformNoSuchCall"), Only(&["commands/unknown-call"])),
    (Fault::AnswersEverything, Only(&["commands/no-transaction"])),
    (Fault::StreamIdIsText, AllBut(&[
        "connect/success", "connect/app-alone", "connect/long-connect", "connect/object-encoding-3", "connect/extra-arguments",
        "connect/pipelined", "connect/amf3-commands", "control/window-ack-size", "control/peer-bandwidth", "commands/release-stream",
        "commands/fc-publish", "commands/fc-unpublish", "commands/fc-subscribe", "commands/check-bandwidth",
        "commands/get-stream-length", "commands/set-peer-info", "commands/unknown-call", "commands/no-transaction",
        "commands/delete-unknown", "amf/long-string", "amf/date", "amf/undefined", "amf/unsupported", "amf/xml", "amf/typed-object",
        "amf/reference", "amf/strict-array", "amf/ecma-array-count", "enhanced/fourcc-list", "enhanced/video-fourcc-map",
        "enhanced/audio-fourcc-map", "enhanced/caps-ex", "limits/garbage", "limits/format-3-first", "limits/many-streams",
        "limits/many-calls", "limits/random-chunks", "limits/long-app", "connect/unknown-app",
    ])),
    (Fault::DeleteUnknownCloses, Only(&["commands/delete-unknown"])),
    // AMF.
    (Fault::Unreadable("long-string"), Only(&["amf/long-string"])),
    (Fault::Unreadable("date"), Only(&["amf/date"])),
    (Fault::Unreadable("undefined"), Only(&["amf/undefined"])),
    (Fault::Unreadable("unsupported"), Only(&["amf/unsupported"])),
    (Fault::Unreadable("xml"), Only(&["amf/xml"])),
    (Fault::Unreadable("typed-object"), Only(&["amf/typed-object"])),
    (Fault::Unreadable("reference"), Only(&["amf/reference"])),
    (Fault::Unreadable("strict-array"), Only(&["amf/strict-array", "enhanced/fourcc-list"])),
    (Fault::EcmaCountBelieved, Only(&["amf/ecma-array-count"])),
    (Fault::UnknownMarkerCloses, Only(&["amf/unknown-marker"])),
    (Fault::Crash(Attack::DeepNesting), Only(&["amf/deep-nesting"])),
    (Fault::Crash(Attack::ClaimedCount), Only(&["amf/claimed-count"])),
    // Publish.
    (Fault::PublishOnStream0, Only(&["publish/start"])),
    (Fault::Refuses(None), Only(&["publish/type-missing"])),
    (Fault::Refuses(Some("LIVE")), Only(&["publish/type-upper-case"])),
    (Fault::Refuses(Some("record")), Only(&["publish/type-record"])),
    (Fault::Refuses(Some("append")), Only(&["publish/type-append"])),
    (Fault::EagerMediaDropped, Only(&["publish/eager-media"])),
    (Fault::BadNameStaysOpen, Only(&["publish/second"])),
    (Fault::NameStaysAfterCut, Only(&["publish/comes-back"])),
    (Fault::NameStaysAfterDelete, Only(&["publish/delete-stream", "publish/again"])),
    (Fault::PublishesOnce, Only(&["publish/again"])),
    (Fault::KeepsSetDataFrame, Only(&[
        "publish/set-data-frame", "publish/bare-metadata", "publish/amf3-metadata", "join/metadata-first", "join/metadata-time",
        "join/newest-metadata",
    ])),
    (Fault::NoBareMetadata, Only(&["publish/bare-metadata"])),
    (Fault::NoAmf3Data, Only(&["publish/amf3-metadata"])),
    (Fault::IgnoresClear, Only(&["publish/clear-data-frame"])),
    (Fault::NoOtherData, Only(&["publish/other-data"])),
    // Play.
    (Fault::PlayOnStream0, Only(&["play/start"])),
    (Fault::NoStreamBegin, Only(&["play/stream-begin"])),
    (Fault::NoReset, Only(&["play/reset"])),
    (Fault::NeedsPlayArguments, Only(&["play/arguments-missing"])),
    (Fault::NobodyCloses, Only(&["play/unknown-name"])),
    (Fault::EarlyPlayCloses, Only(&["play/before-publish"])),
    (Fault::StartWaitsForMedia, Only(&["play/before-media"])),
    (Fault::IgnoresPause, Only(&["play/pause"])),
    (Fault::IgnoresUnpause, Only(&["play/unpause"])),
    (Fault::SeekCloses, Only(&["play/seek"])),
    (Fault::IgnoresReceive(9), Only(&["play/receive-video-false"])),
    (Fault::IgnoresReceive(8), Only(&["play/receive-audio-false"])),
    (Fault::ReceiveVideoIsFinal, Only(&["play/receive-video-true"])),
    (Fault::IgnoresStop("closeStream"), Only(&["play/close-stream"])),
    (Fault::IgnoresStop("deleteStream"), Only(&["play/delete-stream"])),
    (Fault::PlaysOnce, Only(&["play/again"])),
    (Fault::EndUntold, Only(&["play/unpublish-told"])),
    (Fault::OneViewer, Only(&["play/two-viewers", "media/codec-change"])),
    // Late viewers.
    (Fault::MetadataLast, Only(&["join/metadata-first"])),
    (Fault::MetadataNow, Only(&["join/metadata-time"])),
    (Fault::NoHeader(b"\x17\0"), Only(&["join/video-header", "join/newest-header", "publish/eager-media"])),
    (Fault::NoHeader(b"\xaf\0"), Only(&["join/audio-header"])),
    (Fault::StartsWithoutKey(b"\x17"), Only(&["join/keyframe-first", "join/at-once"])),
    (Fault::LosesLastFrame, Only(&["join/frames-whole"])),
    (Fault::AudioNeedsVideo, Only(&["join/audio-only"])),
    (Fault::VideoNeedsAudio, Only(&[
        "join/video-only", "enhanced/sequence-end", "enhanced/join-header", "enhanced/join-keyframe", "enhanced/join-tracks",
        "enhanced/join-colour",
    ])),
    (Fault::FirstHeader, Only(&["join/newest-header", "media/codec-change"])),
    (Fault::FirstMetadata, Only(&["join/newest-metadata"])),
    // Media.
    (Fault::Spoils(b"\x17\x01\0\0\x50", 0), Only(&["media/avc"])),
    (Fault::Spoils(b"\x1c\x01", 0), Only(&["media/hevc-codec-12", "media/codec-change"])),
    (Fault::Spoils(b"\x12", 0), Only(&["media/h263"])),
    (Fault::Spoils(b"\x14", 0), Only(&["media/vp6"])),
    (Fault::Spoils(b"\xaf\x01", 90), Only(&["media/aac"])),
    (Fault::Spoils(b"\x2f", 0), Only(&["media/mp3", "media/codec-change"])),
    (Fault::Spoils(b"\xb2", 0), Only(&["media/speex"])),
    (Fault::Spoils(b"\x72", 0), Only(&["media/g711"])),
    (Fault::CutsLong, Only(&["media/large-frame"])),
    (Fault::NoAggregates, Only(&["media/aggregate", "media/aggregate-times"])),
    (Fault::TagsOwnTimes, Only(&["media/aggregate-times"])),
    (Fault::HeaderPerCodec, Only(&["media/codec-change"])),
    // Enhanced RTMP.
    (Fault::Spoils(b"\x91avc1", 0), Only(&["enhanced/avc"])),
    (Fault::Spoils(b"\xa3hvc1", 0), Only(&["enhanced/hevc"])),
    (Fault::Spoils(b"\x91vvc1", 0), Only(&["enhanced/vvc"])),
    (Fault::Spoils(b"\x91av01", 0), Only(&["enhanced/av1"])),
    (Fault::Spoils(b"\x91vp08", 0), Only(&["enhanced/vp8"])),
    (Fault::Spoils(b"\x91vp09", 0), Only(&["enhanced/vp9"])),
    (Fault::Spoils(b"\x91Opus", 0), Only(&["enhanced/opus"])),
    (Fault::Spoils(b"\x91fLaC", 0), Only(&["enhanced/flac"])),
    (Fault::Spoils(b"\x91ac-3", 0), Only(&["enhanced/ac3"])),
    (Fault::Spoils(b"\x91ec-3", 0), Only(&["enhanced/eac3"])),
    (Fault::Spoils(b"\x96\x01", 0), Only(&["enhanced/multitrack-video"])),
    (Fault::Spoils(b"\x95\x01", 0), Only(&["enhanced/multitrack-audio"])),
    (Fault::Spoils(b"\x97", 0), Only(&["enhanced/mod-ex"])),
    (Fault::Spoils(b"\x91cfm1", 0), Only(&["enhanced/unknown-fourcc"])),
    (Fault::Drops(b"\x92"), Only(&["enhanced/sequence-end"])),
    (Fault::NoHeader(b"\x90hvc1"), Only(&["enhanced/join-header", "enhanced/join-tracks"])),
    (Fault::StartsWithoutKey(b"\x91hvc1"), Only(&["enhanced/join-keyframe"])),
    (Fault::OneTrack, Only(&["enhanced/join-tracks"])),
    (Fault::NoColour, Only(&["enhanced/join-colour"])),
    // Limits.
    (Fault::AnswersHttp, Only(&["limits/garbage"])),
    (Fault::HangsAtSize0, Only(&["limits/chunk-size-0"])),
    (Fault::Crash(Attack::ChunkSize0), Only(&["limits/chunk-size-0"])),
    (Fault::Crash(Attack::NoHeader), Only(&["limits/format-3-first"])),
    (Fault::Crash(Attack::Unfinished), Only(&["limits/unfinished-message"])),
    (Fault::Crash(Attack::ManyChunkStreams), Only(&["limits/many-chunk-streams"])),
    (Fault::Crash(Attack::ManyStreams), Only(&["limits/many-streams"])),
    (Fault::Crash(Attack::ManyCalls), Only(&["limits/many-calls"])),
    (Fault::Crash(Attack::Noise), Only(&["limits/random-chunks"])),
    (Fault::Crash(Attack::LongApp), Only(&["limits/long-app"])),
    (Fault::RefusesAfterLongApp, Only(&["limits/alive"])),
];

/// Servers that are looked at side by side; most of the time is waiting.
const SIDE_BY_SIDE: usize = 8;

/// Long enough for two busy cores: a row that is meant to fail may take as long.
const TIMEOUT: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(150);

/// The checks that are run unasked.
fn checks() -> Vec<Check> {
    all().into_iter().filter(|check| check.slow.is_none()).collect()
}

/// The rows that fail on a server with this fault, and what they say.
async fn failing(fault: Fault) -> Vec<(String, String)> {
    let server = Faulty::start(fault).await;
    let url = Location::parse(&format!("rtmp://127.0.0.1:{}/live/x", server.port)).unwrap();
    let site = Site { publish: url.clone(), play: url, timeout: TIMEOUT, quiet: QUIET, exact_key: false };
    let mut failing = Vec::new();
    // One after the other, as a crash hits every connection there is.
    lb::conform::run(&site, &checks(), 1, |row| {
        if row.seen.verdict == Verdict::Fail {
            failing.push((row.check.id(), row.seen.text));
        }
    })
    .await;
    failing
}

#[test]
fn every_fault_fails_the_rows_that_are_meant_and_no_other() {
    let all: BTreeSet<String> = checks().iter().map(Check::id).collect();
    let only = std::env::var("FAULT").unwrap_or_default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let wrong: Vec<String> = runtime.block_on(async {
        let wanted = FAULTS.iter().filter(|(fault, _)| format!("{fault:?}").contains(&only));
        let all = &all;
        let runs = stream::iter(wanted).map(|(fault, meant)| async move {
            let seen = failing(*fault).await;
            let found: BTreeSet<String> = seen.iter().map(|(id, _)| id.clone()).collect();
            let meant: BTreeSet<String> = match meant {
                Only(rows) => rows.iter().map(|row| (*row).to_owned()).collect(),
                AllBut(rows) => {
                    let spared: BTreeSet<_> =
                        rows.iter().chain(HANDSHAKE).map(|row| (*row).to_owned()).collect();
                    all.difference(&spared).cloned().collect()
                }
            };
            let unfound: Vec<_> = meant.difference(&found).collect();
            let unmeant: Vec<_> = seen.iter().filter(|(id, _)| !meant.contains(id)).collect();
            (!unfound.is_empty() || !unmeant.is_empty())
                .then(|| format!("{fault:?}: not found {unfound:?}; failed too {unmeant:?}"))
        });
        runs.buffer_unordered(SIDE_BY_SIDE).filter_map(std::future::ready).collect().await
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_check_has_a_fault_that_it_finds() {
    let mut found = BTreeSet::new();
    for (_, meant) in FAULTS {
        if let Only(rows) = meant {
            found.extend(rows.iter().map(|row| (*row).to_owned()));
        }
    }
    // Without these nothing else works, so they never fail alone.
    found.extend(["connect/success", "commands/create-stream"].map(str::to_owned));
    let all: BTreeSet<String> = checks().iter().map(Check::id).collect();
    assert_eq!(found, all);
}
