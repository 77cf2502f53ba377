//! Reads the head of an FLV tag body: what it carries, for which tracks, in which codec.
//!
//! Legacy bodies follow the FLV specification 10.1 (E.4.2.1 AUDIODATA, E.4.3.1 VIDEODATA), enhanced ones Enhanced RTMP
//! v2 ("Enhanced Audio", "Enhanced Video"), of which v1 is a subset. Nothing here fails and nothing looks into the coded
//! data: a body that is cut short, or that a later version of the specification will explain, is a plain frame.

use super::Codec;

/// What the body is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// It configures the decoder: AVC and AAC sequence headers, enhanced `SequenceStart` and `MPEG2TSSequenceStart`.
    SequenceHeader,
    /// Coded frames, or anything that was not understood.
    Frame,
    /// No more frames follow until the next sequence header.
    EndOfSequence,
    /// Enhanced video metadata, for example the colour information of HDR.
    VideoMetadata,
    /// Enhanced audio `MultichannelConfig`: the order of the channels.
    ChannelConfig,
    /// A video command (seek start or end); no picture.
    Command,
}

/// An FLV tag body, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag<'a> {
    /// What the body is for.
    pub content: Content,
    /// Video coded frames that a decoder can start with. Never set for sequence headers.
    pub keyframe: bool,
    /// The tracks with something in this body: one, unless it is a multitrack body of several.
    pub tracks: Tracks<'a>,
}

/// The part of a tag body that belongs to one track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track<'a> {
    /// The track's number; 0 where the body is not multitrack.
    pub id: u8,
    /// The codec of `data`.
    pub codec: Codec,
    /// Milliseconds from decoding to showing (CTS). 0 where the codec or packet type has none.
    pub composition_time: i32,
    /// What the decoder gets: the coded frames, or the configuration record.
    pub data: &'a [u8],
}

/// The tracks in a tag body, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracks<'a> {
    rest: &'a [u8],
    layout: Layout,
    /// The codec of all tracks; unless the layout names one for each.
    codec: Codec,
    /// A composition time stands before the data of codecs that have one.
    composition_time: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// No track id, and the composition time is read already: the rest is the data.
    Legacy(i32),
    /// No track id: the rest is the data.
    Single,
    /// A track id, then the rest is the data.
    One,
    /// Track id, size, data, again and again.
    Many,
    /// Track id, FourCC, size, data, again and again.
    ManyCodecs,
    /// All tracks were given out.
    End,
}

impl<'a> Iterator for Tracks<'a> {
    type Item = Track<'a>;

    fn next(&mut self) -> Option<Track<'a>> {
        let track = self.read();
        if track.is_none() || !matches!(self.layout, Layout::Many | Layout::ManyCodecs) {
            self.layout = Layout::End;
        }
        track
    }
}

impl<'a> Tracks<'a> {
    fn read(&mut self) -> Option<Track<'a>> {
        let (mut id, mut codec, mut rest) = (0, self.codec, self.rest);
        match self.layout {
            Layout::End => return None,
            Layout::Legacy(composition_time) => {
                return Some(Track { id, codec, composition_time, data: rest });
            }
            Layout::Single => {}
            Layout::One | Layout::Many | Layout::ManyCodecs => {
                (id, rest) = rest.split_first().map(|(id, rest)| (*id, rest))?
            }
        }
        if self.layout == Layout::ManyCodecs {
            let (four_cc, after) = rest.split_first_chunk()?;
            (codec, rest) = (Codec::from_four_cc(*four_cc), after);
        }
        if matches!(self.layout, Layout::Many | Layout::ManyCodecs) {
            let (&[a, b, c], after) = rest.split_first_chunk()?;
            let size = u32::from_be_bytes([0, a, b, c]) as usize;
            (rest, self.rest) = after.split_at_checked(size)?;
        }
        if self.composition_time && codec.has_composition_time() {
            let (offset, data) = rest.split_first_chunk()?;
            return Some(Track { id, codec, composition_time: signed24(*offset), data });
        }
        Some(Track { id, codec, composition_time: 0, data: rest })
    }
}

/// Reads the body of a video message.
pub fn video(body: &[u8]) -> Tag<'_> {
    read_video(body).unwrap_or(plain(body))
}

/// Reads the body of an audio message.
pub fn audio(body: &[u8]) -> Tag<'_> {
    read_audio(body).unwrap_or(plain(body))
}

const FRAME_TYPE_KEY: u8 = 1;
const FRAME_TYPE_GENERATED_KEY: u8 = 4;
const FRAME_TYPE_COMMAND: u8 = 5;

fn read_video(body: &[u8]) -> Option<Tag<'_>> {
    let (&first, rest) = body.split_first()?;
    let frame_type = (first >> 4) & 0b0111;
    let key = matches!(frame_type, FRAME_TYPE_KEY | FRAME_TYPE_GENERATED_KEY);
    if first & 0x80 != 0 {
        return read_enhanced_video(first & 0x0f, frame_type, rest);
    }
    let codec = Codec::from_video_codec_id(first & 0x0f);
    if frame_type == FRAME_TYPE_COMMAND {
        return Some(single(Content::Command, false, codec, 0, rest));
    }
    if !matches!(codec, Codec::Avc | Codec::Hevc) {
        return Some(single(Content::Frame, key, codec, 0, rest));
    }
    let (&packet_type, rest) = rest.split_first()?;
    let (offset, data) = rest.split_first_chunk()?;
    Some(match packet_type {
        0 => single(Content::SequenceHeader, false, codec, 0, data),
        1 => single(Content::Frame, key, codec, signed24(*offset), data),
        2 => single(Content::EndOfSequence, false, codec, 0, data),
        _ => single(Content::Frame, false, codec, 0, rest),
    })
}

fn read_enhanced_video(packet_type: u8, frame_type: u8, rest: &[u8]) -> Option<Tag<'_>> {
    const CODED_FRAMES: u8 = 1;
    const METADATA: u8 = 4;
    const MULTITRACK: u8 = 6;
    let (packet_type, rest) = skip_mod_ex(packet_type, rest)?;
    if frame_type == FRAME_TYPE_COMMAND && packet_type != METADATA {
        return Some(single(Content::Command, false, Codec::Unknown, 0, rest));
    }
    let (packet_type, layout, codec, rest) = tracks_head(packet_type, MULTITRACK, rest)?;
    let (content, coded) = match packet_type {
        0 | 5 => (Content::SequenceHeader, false),
        CODED_FRAMES | 3 => (Content::Frame, true),
        2 => (Content::EndOfSequence, false),
        METADATA => (Content::VideoMetadata, false),
        _ => (Content::Frame, false),
    };
    let keyframe = coded && matches!(frame_type, FRAME_TYPE_KEY | FRAME_TYPE_GENERATED_KEY);
    let tracks = Tracks { rest, layout, codec, composition_time: packet_type == CODED_FRAMES };
    Some(Tag { content, keyframe, tracks })
}

fn read_audio(body: &[u8]) -> Option<Tag<'_>> {
    const SOUND_FORMAT_ENHANCED: u8 = 9;
    let (&first, rest) = body.split_first()?;
    if first >> 4 == SOUND_FORMAT_ENHANCED {
        return read_enhanced_audio(first & 0x0f, rest);
    }
    let codec = Codec::from_sound_format(first >> 4);
    if codec != Codec::Aac {
        return Some(single(Content::Frame, false, codec, 0, rest));
    }
    let (&packet_type, data) = rest.split_first()?;
    let content = if packet_type == 0 { Content::SequenceHeader } else { Content::Frame };
    Some(single(content, false, codec, 0, data))
}

fn read_enhanced_audio(packet_type: u8, rest: &[u8]) -> Option<Tag<'_>> {
    const MULTITRACK: u8 = 5;
    let (packet_type, rest) = skip_mod_ex(packet_type, rest)?;
    let (packet_type, layout, codec, rest) = tracks_head(packet_type, MULTITRACK, rest)?;
    let content = match packet_type {
        0 => Content::SequenceHeader,
        2 => Content::EndOfSequence,
        4 => Content::ChannelConfig,
        _ => Content::Frame,
    };
    let tracks = Tracks { rest, layout, codec, composition_time: false };
    Some(Tag { content, keyframe: false, tracks })
}

/// `ModEx` packets (type 7) wrap another packet: size, data, and in one byte the extension's and the packet's type.
/// They nest, each costing at least three bytes of the body. Also gives the packet type inside.
fn skip_mod_ex(mut packet_type: u8, mut rest: &[u8]) -> Option<(u8, &[u8])> {
    const MOD_EX: u8 = 7;
    while packet_type == MOD_EX {
        let (&short, after) = rest.split_first()?;
        let mut size = usize::from(short) + 1;
        rest = after;
        if size == 256 {
            let (long, after) = rest.split_first_chunk()?;
            size = usize::from(u16::from_be_bytes(*long)) + 1;
            rest = after;
        }
        let (&types, after) = rest.get(size..)?.split_first()?;
        packet_type = types & 0x0f;
        rest = after;
    }
    Some((packet_type, rest))
}

/// What stands between the packet type and the tracks: for multitrack the kind of it and the packet type of all tracks;
/// the FourCC, unless each track has its own.
fn tracks_head(packet_type: u8, multitrack: u8, rest: &[u8]) -> Option<(u8, Layout, Codec, &[u8])> {
    let (packet_type, layout, rest) = if packet_type == multitrack {
        let (&types, rest) = rest.split_first()?;
        let layout = match types >> 4 {
            0 => Layout::One,
            1 => Layout::Many,
            2 => Layout::ManyCodecs,
            _ => return None,
        };
        (types & 0x0f, layout, rest)
    } else {
        (packet_type, Layout::Single, rest)
    };
    if layout == Layout::ManyCodecs {
        return Some((packet_type, layout, Codec::Unknown, rest));
    }
    let (four_cc, rest) = rest.split_first_chunk()?;
    Some((packet_type, layout, Codec::from_four_cc(*four_cc), rest))
}

fn single(content: Content, keyframe: bool, codec: Codec, composition_time: i32, data: &[u8]) -> Tag<'_> {
    let layout = Layout::Legacy(composition_time);
    Tag { content, keyframe, tracks: Tracks { rest: data, layout, codec, composition_time: false } }
}

fn plain(body: &[u8]) -> Tag<'_> {
    single(Content::Frame, false, Codec::Unknown, 0, body)
}

fn signed24([a, b, c]: [u8; 3]) -> i32 {
    // Into the upper three bytes and back, so that the sign comes along.
    i32::from_be_bytes([a, b, c, 0]) >> 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tracks(tag: Tag<'_>) -> Vec<(u8, Codec, i32, Vec<u8>)> {
        tag.tracks.map(|t| (t.id, t.codec, t.composition_time, t.data.to_vec())).collect()
    }

    fn body(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn legacy_video_tells_headers_keyframes_and_composition_time() {
        for (head, content, keyframe, codec, offset) in [
            ([0x17, 0, 0, 0, 0], Content::SequenceHeader, false, Codec::Avc, 0),
            ([0x17, 1, 0, 0, 66], Content::Frame, true, Codec::Avc, 66),
            ([0x27, 1, 0xff, 0xff, 0xfe], Content::Frame, false, Codec::Avc, -2),
            ([0x47, 1, 0x80, 0, 0], Content::Frame, true, Codec::Avc, -0x80_0000),
            ([0x17, 2, 0, 0, 0], Content::EndOfSequence, false, Codec::Avc, 0),
            ([0x1c, 1, 0, 1, 0], Content::Frame, true, Codec::Hevc, 256),
        ] {
            let body = body(&[&head, b"data"]);
            let tag = video(&body);
            assert_eq!((tag.content, tag.keyframe), (content, keyframe), "{head:x?}");
            assert_eq!(tracks(tag), [(0, codec, offset, b"data".to_vec())]);
        }
        assert!(video(&[0x14]).keyframe, "a codec without packet types");
        assert_eq!(video(&[0x57, 0]).content, Content::Command);
    }

    #[test]
    fn legacy_audio_tells_the_aac_header() {
        assert_eq!(audio(&[0xaf, 0, 0x12, 0x10]).content, Content::SequenceHeader);
        let tag = audio(&[0xaf, 1, 9]);
        assert_eq!((tag.content, tracks(tag)), (Content::Frame, vec![(0, Codec::Aac, 0, vec![9])]));
        assert_eq!(tracks(audio(&[0x2f, 0])), [(0, Codec::Mp3, 0, vec![0])]);
        assert_eq!(audio(&[0x2f, 0]).content, Content::Frame);
    }

    #[test]
    fn enhanced_video_tells_every_packet_type() {
        for (head, four_cc, content, keyframe, codec, offset) in [
            (0x90, b"hvc1", Content::SequenceHeader, false, Codec::Hevc, 0),
            (0x91, b"hvc1", Content::Frame, true, Codec::Hevc, 0x010203),
            (0xa1, b"avc1", Content::Frame, false, Codec::Avc, 0x010203),
            (0x91, b"av01", Content::Frame, true, Codec::Av1, 0),
            (0x92, b"av01", Content::EndOfSequence, false, Codec::Av1, 0),
            (0x93, b"hvc1", Content::Frame, true, Codec::Hevc, 0),
            (0xd4, b"hvc1", Content::VideoMetadata, false, Codec::Hevc, 0),
            (0x95, b"av01", Content::SequenceHeader, false, Codec::Av1, 0),
            (0x9f, b"vp09", Content::Frame, false, Codec::Vp9, 0),
        ] {
            let body = body(&[&[head], four_cc, &[1, 2, 3, 4]]);
            let tag = video(&body);
            assert_eq!((tag.content, tag.keyframe), (content, keyframe), "{head:x}");
            let data = if offset == 0 { vec![1, 2, 3, 4] } else { vec![4] };
            assert_eq!(tracks(tag), [(0, codec, offset, data)], "{head:x}");
        }
        assert_eq!(video(&[0xd1, 0]).content, Content::Command);
    }

    #[test]
    fn enhanced_audio_tells_every_packet_type() {
        for (head, content) in [
            (0x90, Content::SequenceHeader),
            (0x91, Content::Frame),
            (0x92, Content::EndOfSequence),
            (0x94, Content::ChannelConfig),
        ] {
            let body = body(&[&[head], b"Opus", b"x"]);
            assert_eq!(audio(&body).content, content);
            assert_eq!(tracks(audio(&body)), [(0, Codec::Opus, 0, b"x".to_vec())]);
        }
    }

    #[test]
    fn multitrack_bodies_give_each_track_its_own() {
        let one = body(&[&[0x96, 0x00], b"avc1", &[7], b"config"]);
        assert_eq!(video(&one).content, Content::SequenceHeader);
        assert_eq!(tracks(video(&one)), [(7, Codec::Avc, 0, b"config".to_vec())]);

        let many = body(&[&[0x96, 0x11], b"hvc1", &[0, 0, 0, 4, 0, 0, 5, b'a', 1, 0, 0, 3, 0, 0, 6]]);
        assert!(video(&many).keyframe);
        assert_eq!(tracks(video(&many)), [(0, Codec::Hevc, 5, b"a".to_vec()), (1, Codec::Hevc, 6, vec![])]);

        let codecs = body(&[&[0x95, 0x20, 3], b"Opus", &[0, 0, 1, b'o', 4], b"mp4a", &[0, 0, 1, b'm']]);
        assert_eq!(audio(&codecs).content, Content::SequenceHeader);
        let expected = [(3, Codec::Opus, 0, b"o".to_vec()), (4, Codec::Aac, 0, b"m".to_vec())];
        assert_eq!(tracks(audio(&codecs)), expected);
    }

    #[test]
    fn mod_ex_is_seen_through() {
        let short = body(&[&[0x97, 2, 0, 0, 9, 0x01], b"av01", b"frame"]);
        assert!(video(&short).keyframe);
        assert_eq!(tracks(video(&short)), [(0, Codec::Av1, 0, b"frame".to_vec())]);
        let long = body(&[&[0x97, 255, 1, 0], &[0; 257], &[0x07, 0, 0, 0x00], b"Opus", b"head"]);
        assert_eq!(audio(&long).content, Content::SequenceHeader);
    }

    #[test]
    fn what_is_cut_short_or_unknown_is_a_plain_frame() {
        for bad in
            [&[][..], &[0x17], &[0x17, 1, 0, 0], &[0x90, b'h', b'v'], &[0x97, 255], &[0x96, 0x31, 1, 2, 3, 4]]
        {
            assert_eq!((video(bad).content, video(bad).keyframe), (Content::Frame, false), "{bad:x?}");
        }
        assert_eq!(
            tracks(video(&[0x96, 0x10, b'a', b'v', b'c', b'1', 0, 0, 0, 9, 1])),
            [],
            "size past the end"
        );
    }

    proptest! {
        #[test]
        fn no_body_is_too_strange(head in any::<u8>(), rest in proptest::collection::vec(any::<u8>(), 0..64)) {
            let body = body(&[&[head], &rest]);
            for tag in [video(&body), audio(&body)] {
                prop_assert!(tag.tracks.map(|track| track.data.len()).sum::<usize>() <= body.len());
            }
        }
    }
}
