//! What viewers were sent of a clip, message by message: the bodies as they left the encoder, from a keyframe on, none missing.

use crate::common::witness::Publish;
use lb::media::{Packet, flv};
use std::path::Path;

/// More than any tag of a clip.
const TAG_LIMIT: usize = 1 << 20;

/// The tags of a clip, as an encoder sends them.
#[track_caller]
pub fn packets(file: &Path) -> Vec<Packet> {
    let bytes = std::fs::read(file).unwrap();
    let (mut reader, mut rest, mut packets) = (flv::Reader::new(TAG_LIMIT), &bytes[..], Vec::new());
    while let Some(packet) = reader.read(&mut rest).unwrap() {
        packets.push(packet);
    }
    packets
}

/// Checks one publish: the headers are those of the clip and come before any frame, and the frames are an unbroken piece of
/// it, which is repeated without end, that begins with a keyframe.
#[track_caller]
pub fn assert_publish(publish: &Publish, clip: &[Packet]) {
    let received: Vec<Packet> = [&publish.headers, &publish.video, &publish.audio]
        .into_iter()
        .flatten()
        .map(|received| received.packet.clone())
        .collect();
    assert_shown(&received, clip);
}

/// As [`assert_publish`], of messages.
#[track_caller]
pub fn assert_shown(received: &[Packet], clip: &[Packet]) {
    let configuration = |packets: &[Packet]| {
        let headers = packets.iter().filter(|packet| packet.kind.is_header() && packet.type_id() != 18);
        let mut bodies: Vec<_> = headers.map(|packet| (packet.type_id(), packet.body.clone())).collect();
        bodies.sort();
        bodies.dedup();
        bodies
    };
    assert_eq!(configuration(received), configuration(clip), "headers");
    for type_id in [9, 8] {
        let frames = |packets: &[Packet]| -> Vec<Packet> {
            let of_type = packets.iter().filter(|packet| packet.type_id() == type_id);
            of_type
                .filter(|packet| packet.kind.is_video_frame() || packet.kind.is_audio_frame())
                .cloned()
                .collect()
        };
        let (got, sent) = (frames(received), frames(clip));
        let first = got.first().unwrap_or_else(|| panic!("no frames of type {type_id}"));
        let start = sent.iter().position(|packet| packet.body == first.body);
        let start = start.unwrap_or_else(|| panic!("the first frame of type {type_id} was never sent"));
        assert!(type_id == 8 || sent[start].kind.is_keyframe(), "it begins with frame {start}");
        for (index, (got, sent)) in got.iter().zip(sent.iter().cycle().skip(start)).enumerate() {
            assert_eq!(got.body, sent.body, "frame {index} of type {type_id}");
        }
    }
}
