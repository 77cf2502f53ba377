//! Bodies of media messages: small, but whole enough for servers that look into them.

use crate::rtmp::amf0::{self, Value};
use crate::rtmp::message::{AUDIO, DATA_AMF0, VIDEO};
use bytes::{BufMut, Bytes, BytesMut};

/// A media message to send, or one that is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Media {
    pub type_id: u8,
    pub time: u32,
    pub body: Bytes,
}

impl Media {
    pub fn new(type_id: u8, time: u32, body: impl Into<Bytes>) -> Media {
        Media { type_id, time, body: body.into() }
    }

    pub fn video(time: u32, body: impl Into<Bytes>) -> Media {
        Media::new(VIDEO, time, body)
    }

    pub fn audio(time: u32, body: impl Into<Bytes>) -> Media {
        Media::new(AUDIO, time, body)
    }

    /// What stands for it in a row.
    pub fn kind(&self) -> &'static str {
        kind(self.type_id)
    }
}

/// What a message type is called.
pub(super) fn kind(type_id: u8) -> &'static str {
    match type_id {
        AUDIO => "audio",
        VIDEO => "video",
        _ => "data",
    }
}

/// The configuration of H.264 at 320x180, baseline.
const AVCC: &[u8] = b"\x01\x42\xc0\x0d\xff\xe1\x00\x17\x67\x42\xc0\x0d\xda\x05\x06\x7e\x78\x40\x00\x00\x03\x00\x40\x00\x00\x07\xa3\xc5\x0a\xa8\x00\x01\x00\x04\x68\xce\x0f\xc8";

pub(super) fn avc_header() -> Bytes {
    [b"\x17\x00\x00\x00\x00", AVCC].concat().into()
}

/// Another configuration: the same with another level.
pub(super) fn other_avc_header() -> Bytes {
    let mut config = AVCC.to_vec();
    config.iter_mut().skip(3).take(1).for_each(|level| *level = 0x1e);
    [b"\x17\x00\x00\x00\x00", &config[..]].concat().into()
}

/// A keyframe that differs for each mark.
pub(super) fn avc_key(mark: u32) -> Bytes {
    coded(b"\x17\x01\x00\x00\x00", 0x65, mark, 60)
}

/// A frame that needs those before it.
pub(super) fn avc_frame(mark: u32) -> Bytes {
    coded(b"\x27\x01\x00\x00\x00", 0x41, mark, 60)
}

/// A keyframe of some length.
pub(super) fn long_avc_key(mark: u32, length: usize) -> Bytes {
    coded(b"\x17\x01\x00\x00\x00", 0x65, mark, length)
}

pub(super) fn aac_header() -> Bytes {
    Bytes::from_static(b"\xaf\x00\x12\x10")
}

pub(super) fn aac_frame(mark: u32) -> Bytes {
    [b"\xaf\x01", &noise(mark, 30)[..]].concat().into()
}

/// `onMetaData` as it is relayed, with the width by which it is known again.
pub(super) fn metadata(width: f64) -> Bytes {
    let properties = [
        ("width", Value::Number(width)),
        ("height", Value::Number(180.0)),
        ("videocodecid", Value::Number(7.0)),
        ("audiocodecid", Value::Number(10.0)),
        ("encoder", Value::string("lb conform")),
    ];
    let properties = properties.map(|(name, value)| (name.to_owned(), value)).into();
    values(&[Value::string("onMetaData"), Value::EcmaArray(properties)])
}

/// The same as publishers send it.
pub(super) fn set_data_frame(width: f64) -> Bytes {
    [&values(&[Value::string("@setDataFrame")])[..], &metadata(width)].concat().into()
}

/// AMF 0 values one after the other.
pub(super) fn values(values: &[Value]) -> Bytes {
    let mut body = BytesMut::new();
    values.iter().for_each(|value| amf0::write(&mut body, value));
    body.freeze()
}

/// Metadata as a publisher sends it.
pub(super) fn sent_metadata(time: u32, width: f64) -> Media {
    Media::new(DATA_AMF0, time, set_data_frame(width))
}

/// A head, then one NAL unit of this type with `length` bytes behind it.
fn coded(head: &[u8], unit: u8, mark: u32, length: usize) -> Bytes {
    let mut body = BytesMut::from(head);
    body.put_u32(u32::try_from(length + 1).unwrap_or(u32::MAX));
    body.put_u8(unit);
    body.put_slice(&noise(mark, length));
    body.freeze()
}

/// Bytes that differ for each mark and have no pattern that a parser could take for something.
pub(super) fn noise(mark: u32, length: usize) -> Vec<u8> {
    // Xorshift, whose state is never zero. No zero bytes: three of them in a row would begin a unit of their own.
    let mut state = mark.wrapping_mul(0x9E37_79B9) | 1;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8 | 1
    });
    bytes.take(length).collect()
}
