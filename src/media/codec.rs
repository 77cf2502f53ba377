//! The codecs that FLV and Enhanced RTMP can name.
//!
//! A codec that is not known here is still relayed; this is for those who show it or translate it.

use std::fmt;

/// A codec, by the number (FLV 10.1, E.4.2.1 and E.4.3.1) or the FourCC (Enhanced RTMP v2) that named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// H.264: video codec 7, FourCC `avc1`.
    Avc,
    /// H.265: FourCC `hvc1`, and the unofficial video codec 12 of older encoders.
    Hevc,
    /// H.266: FourCC `vvc1`.
    Vvc,
    /// AV1: FourCC `av01`.
    Av1,
    /// VP8: FourCC `vp08`.
    Vp8,
    /// VP9: FourCC `vp09`.
    Vp9,
    /// AAC: sound format 10, FourCC `mp4a`.
    Aac,
    /// MP3: sound formats 2 and 14, FourCC `.mp3`.
    Mp3,
    /// Opus: FourCC `Opus`.
    Opus,
    /// FLAC: FourCC `fLaC`.
    Flac,
    /// AC-3: FourCC `ac-3`.
    Ac3,
    /// E-AC-3: FourCC `ec-3`.
    Eac3,
    /// Another FourCC.
    FourCc([u8; 4]),
    /// Another video codec number of FLV (0 to 15).
    LegacyVideo(u8),
    /// Another sound format number of FLV (0 to 15).
    LegacyAudio(u8),
    /// The body ends before it names one, or names none.
    Unknown,
}

impl Codec {
    pub(super) fn from_four_cc(four_cc: [u8; 4]) -> Self {
        match &four_cc {
            b"avc1" => Codec::Avc,
            b"hvc1" => Codec::Hevc,
            b"vvc1" => Codec::Vvc,
            b"av01" => Codec::Av1,
            b"vp08" => Codec::Vp8,
            b"vp09" => Codec::Vp9,
            b"mp4a" => Codec::Aac,
            b".mp3" => Codec::Mp3,
            b"Opus" => Codec::Opus,
            b"fLaC" => Codec::Flac,
            b"ac-3" => Codec::Ac3,
            b"ec-3" => Codec::Eac3,
            _ => Codec::FourCc(four_cc),
        }
    }

    pub(super) fn from_video_codec_id(id: u8) -> Self {
        match id {
            7 => Codec::Avc,
            12 => Codec::Hevc,
            other => Codec::LegacyVideo(other),
        }
    }

    pub(super) fn from_sound_format(format: u8) -> Self {
        match format {
            2 | 14 => Codec::Mp3,
            10 => Codec::Aac,
            other => Codec::LegacyAudio(other),
        }
    }

    /// Enhanced RTMP puts a composition time offset before the coded frames of these codecs.
    pub(super) fn has_composition_time(self) -> bool {
        matches!(self, Codec::Avc | Codec::Hevc | Codec::Vvc)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Codec::Avc => "H.264",
            Codec::Hevc => "H.265",
            Codec::Vvc => "H.266",
            Codec::Av1 => "AV1",
            Codec::Vp8 => "VP8",
            Codec::Vp9 => "VP9",
            Codec::Aac => "AAC",
            Codec::Mp3 => "MP3",
            Codec::Opus => "Opus",
            Codec::Flac => "FLAC",
            Codec::Ac3 => "AC-3",
            Codec::Eac3 => "E-AC-3",
            Codec::FourCc(four_cc) => return write!(f, "{}", four_cc.escape_ascii()),
            Codec::LegacyVideo(id) => return write!(f, "FLV video codec {id}"),
            Codec::LegacyAudio(format) => return write!(f, "FLV sound format {format}"),
            Codec::Unknown => "unknown",
        };
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_is_shown_by_its_name_and_a_strange_one_harmlessly() {
        assert_eq!(Codec::from_four_cc(*b"hvc1").to_string(), "H.265");
        assert_eq!(Codec::from_four_cc(*b"abcd").to_string(), "abcd");
        assert_eq!(Codec::from_four_cc([0, b'a', b'\n', 0xff]).to_string(), "\\x00a\\n\\xff");
        assert_eq!(Codec::from_video_codec_id(4).to_string(), "FLV video codec 4");
    }
}
