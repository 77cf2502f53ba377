//! The fuzz targets' bodies on generated input: noise, and bytes that look like RTMP.

use crate::rtmp;
use proptest::prelude::*;

#[path = "../../fuzz/bodies.rs"]
mod bodies;

const NAMES: [&str; 8] =
    ["connect", "createStream", "publish", "play", "pause", "FCUnpublish", "deleteStream", "onStatus"];

/// Well-formed messages of every kind with arbitrary bodies, in chunks, with some bytes spoilt.
fn likely_wire() -> impl Strategy<Value = Vec<u8>> {
    let values = prop::collection::vec(rtmp::amf0::tests::any_value(), 0..4);
    let command =
        (prop::sample::select(&NAMES[..]), 0..9u8, values).prop_map(|(name, transaction, values)| {
            let mut body = Vec::new();
            rtmp::amf0::write(&mut body, &rtmp::amf0::Value::string(name));
            rtmp::amf0::write(&mut body, &rtmp::amf0::Value::Number(transaction.into()));
            values.iter().for_each(|value| rtmp::amf0::write(&mut body, value));
            body
        });
    let body = prop_oneof![command, prop::collection::vec(any::<u8>(), 0..300)];
    let type_id = prop::sample::select(vec![1u8, 2, 3, 4, 5, 6, 8, 9, 15, 17, 18, 20, 20, 20, 22]);
    let message = (2..70u32, any::<u32>(), type_id, body);
    let spoilt = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (any::<u8>(), prop::collection::vec(message, 0..12), spoilt).prop_map(|(steer, messages, spoilt)| {
        let mut wire = bytes::BytesMut::from(&[steer][..]);
        for (id, timestamp, type_id, body) in messages {
            rtmp::chunk::write_message(&mut wire, id, timestamp, type_id, 1, &body, 128);
        }
        for (at, byte) in spoilt {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        wire.into()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn nothing_panics_on_noise(data in prop::collection::vec(any::<u8>(), 0..4000)) {
        bodies::amf0(&data);
        bodies::chunk(&data);
        bodies::handshake(&data);
        bodies::server_session(&data);
        bodies::client_session(&data);
    }

    #[test]
    fn nothing_panics_on_what_looks_like_rtmp(data in likely_wire()) {
        bodies::chunk(&data);
        bodies::server_session(&data);
        bodies::client_session(&data);
    }

    #[test]
    fn nothing_panics_on_spoilt_values(
        values in prop::collection::vec(rtmp::amf0::tests::any_value(), 0..4),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut body = vec![0];
        values.iter().for_each(|value| rtmp::amf0::write(&mut body, value));
        let at = at.index(body.len());
        body[at] = byte;
        bodies::amf0(&body);
    }
}
