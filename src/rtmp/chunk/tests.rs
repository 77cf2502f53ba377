//! The reader against an independent, naive writer of chunks in every format.

use super::*;
use crate::rtmp::message::Message;
use crate::rtmp::{Error, Limits};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

/// All messages in `wire`, given to the reader in pieces that end where `cuts` says.
fn read_cut(reader: &mut Reader, wire: &[u8], cuts: &[usize]) -> Result<Vec<Message>, Error> {
    let mut messages = Vec::new();
    let mut start = 0;
    for &end in cuts.iter().chain([&wire.len()]) {
        let mut piece = &wire[start.min(end)..end.max(start)];
        start = end.max(start);
        while let Some(message) = reader.read(&mut piece)? {
            messages.push(message);
        }
        assert!(piece.is_empty(), "input was left");
    }
    Ok(messages)
}

fn read(wire: &[u8]) -> Result<Vec<Message>, Error> {
    read_cut(&mut Reader::new(&Limits::default()), wire, &[])
}

fn read_bytewise(wire: &[u8]) -> Result<Vec<Message>, Error> {
    read_cut(&mut Reader::new(&Limits::default()), wire, &(0..wire.len()).collect::<Vec<_>>())
}

fn message(chunk_stream_id: u32, timestamp: u32, body: &[u8]) -> Message {
    Message { type_id: 9, timestamp, stream_id: 1, chunk_stream_id, body: Bytes::copy_from_slice(body) }
}

/// Format 0 header on a one-byte chunk stream, message type 9 on stream 1.
fn full(id: u8, field: u32, length: usize) -> Vec<u8> {
    let (field, length) = (field.to_be_bytes(), (length as u32).to_be_bytes());
    [&[id][..], &field[1..], &length[1..], &[9, 1, 0, 0, 0]].concat()
}

#[test]
fn what_is_missing_is_known_at_every_byte() {
    let (body, sound) = ([7; 200], [8; 20]);
    // A video message, another one in whole between its chunks, and the rest.
    let parts = [&full(6, 10, 200)[..], &body[..128], &full(4, 11, 20), &sound, &[0xC6], &body[128..]];
    let wire = parts.concat();
    let mut reader = Reader::new(&Limits::default());
    let mut missing = vec![reader.missing()];
    for byte in wire.chunks(1) {
        reader.read(&mut &byte[..]).unwrap();
        missing.push(reader.missing());
    }
    assert_eq!((missing[0], missing[wire.len()]), (0, 0), "between messages");
    assert!(missing[1..wire.len()].iter().all(|missing| *missing > 0));
    let header = parts[0].len();
    assert_eq!(missing[header], 200);
    assert_eq!(missing[header + 100], 100);
    assert_eq!(missing[header + 128 + parts[2].len()], 72 + 20, "of both");
    assert_eq!(missing[header + 128 + parts[2].len() + 20], 72);
}

#[test]
fn interleaved_chunks_make_whole_messages() {
    let (video, audio): (Vec<u8>, Vec<u8>) = ((0..200).collect(), (0..150).rev().collect());
    let wire = [
        &full(6, 10, 200)[..],
        &video[..128],
        &full(4, 11, 150),
        &audio[..128],
        &[0xC6],
        &video[128..],
        &[0xC4],
        &audio[128..],
    ]
    .concat();
    let want = vec![message(6, 10, &video), message(4, 11, &audio)];
    assert_eq!(read(&wire), Ok(want.clone()));
    assert_eq!(read_bytewise(&wire), Ok(want));
}

#[test]
fn chunk_stream_ids_have_one_two_or_three_bytes() {
    let tail = &full(0, 5, 1)[1..];
    for (basic, id) in [
        (&[2][..], 2),
        (&[63], 63),
        (&[0, 0], 64),
        (&[0, 255], 319),
        (&[1, 0, 1], 320),
        (&[1, 0, 0], 64),
        (&[1, 255, 255], 65_599),
    ] {
        let wire = [basic, tail, b"x"].concat();
        assert_eq!(read(&wire), Ok(vec![message(id, 5, b"x")]));
        assert_eq!(read_bytewise(&wire), Ok(vec![message(id, 5, b"x")]));
    }
}

#[test]
fn formats_1_to_3_carry_and_repeat_deltas() {
    let wire = [
        &full(6, 1000, 1)[..],
        b"a",
        b"\x46\0\0\x28\0\0\x02\x09bb",
        b"\x86\0\0\x0Acc",
        b"\xC6dd",
        b"\xC6ee",
        &full(6, 500, 2),
        b"ff",
    ]
    .concat();
    let want = [(1000, "a"), (1040, "bb"), (1050, "cc"), (1060, "dd"), (1070, "ee"), (500, "ff")];
    let want: Vec<_> = want.iter().map(|(time, body)| message(6, *time, body.as_bytes())).collect();
    assert_eq!(read(&wire), Ok(want.clone()));
    assert_eq!(read_bytewise(&wire), Ok(want));
}

#[test]
fn format_3_after_format_0_repeats_its_timestamp_as_the_delta() {
    let wire = [&full(6, 40, 1)[..], b"a\xC6b\xC6c"].concat();
    assert_eq!(read(&wire), Ok(vec![message(6, 40, b"a"), message(6, 80, b"b"), message(6, 120, b"c")]));
}

#[test]
fn extended_timestamps_are_read_in_both_styles() {
    let body: Vec<u8> = (0..200).collect();
    let time = 0x0123_4567u32;
    for repeated in [true, false] {
        let again = if repeated { &time.to_be_bytes()[..] } else { &[] };
        let head = [&full(6, 0xFF_FFFF, 200)[..], &time.to_be_bytes()].concat();
        let wire = [
            &head,
            &body[..128],
            &[0xC6],
            again,
            &body[128..],
            &head,
            &body[..128],
            &[0xC6],
            again,
            &body[128..],
        ]
        .concat();
        let want = vec![message(6, time, &body); 2];
        assert_eq!(read(&wire), Ok(want.clone()), "repeated: {repeated}");
        assert_eq!(read_bytewise(&wire), Ok(want), "repeated: {repeated}");
    }
}

#[test]
fn a_short_last_chunk_without_the_repetition_is_not_waited_for() {
    let head = [&full(6, 0xFF_FFFF, 129)[..], &[1, 2, 3, 4]].concat();
    let wire = [&head[..], &[7; 128], &[0xC6, 9]].concat();
    assert_eq!(read(&wire).map(|messages| messages.len()), Ok(1));
}

#[test]
fn payload_that_starts_like_the_extended_timestamp_is_not_lost() {
    let head = [&full(6, 0xFF_FFFF, 131)[..], &[1, 2, 3, 4]].concat();
    let body = [&[7; 128][..], &[1, 2, 9]].concat();
    let wire = [&head[..], &body[..128], &[0xC6], &body[128..]].concat();
    assert_eq!(read(&wire), Ok(vec![message(6, 0x0102_0304, &body)]));
    assert_eq!(read_bytewise(&wire), Ok(vec![message(6, 0x0102_0304, &body)]));

    // The last chunk's one byte and the next header look like the timestamp's first two bytes.
    let head = [&full(6, 0xFF_FFFF, 129)[..], &[1, 0xC6, 3, 4]].concat();
    let body = [&[7; 128][..], &[1]].concat();
    let wire = [&head[..], &body[..128], b"\xC6\x01\xC6", &body[..128], b"\xC6\x01"].concat();
    let want = vec![message(6, 0x01C6_0304, &body); 2];
    let messages = |read: Result<Vec<Message>, Error>| read.unwrap();
    // Nothing tells the last byte from the timestamp's first until something else follows.
    let wire = [&wire[..], &full(5, 0, 0)].concat();
    assert_eq!(messages(read(&wire))[..2], want);
    assert_eq!(messages(read_bytewise(&wire))[..2], want);
}

#[test]
fn a_delta_may_be_extended_too() {
    let wire = [&full(6, 5, 1)[..], b"a", b"\x86\xFF\xFF\xFF\x01\0\0\0b", b"\xC6\x01\0\0\0c"].concat();
    let want = vec![message(6, 5, b"a"), message(6, 0x0100_0005, b"b"), message(6, 0x0200_0005, b"c")];
    assert_eq!(read(&wire), Ok(want.clone()));
    assert_eq!(read_bytewise(&wire), Ok(want));
}

#[test]
fn an_extended_timestamp_is_not_repeated_as_a_delta() {
    for again in [&b"\x01\0\0\0"[..], b""] {
        let wire = [&full(6, 0xFF_FFFF, 1)[..], b"\x01\0\0\0a", b"\xC6", again, b"b"].concat();
        assert_eq!(read(&wire), Ok(vec![message(6, 0x0100_0000, b"a"), message(6, 0x0100_0000, b"b")]));
    }
}

#[test]
fn the_clock_wraps() {
    let wire = [&full(6, 0xFF_FFFF, 1)[..], b"\xFF\xFF\xFF\xF0a", b"\x86\0\0\x20b"].concat();
    assert_eq!(read(&wire), Ok(vec![message(6, 0xFFFF_FFF0, b"a"), message(6, 0x10, b"b")]));
}

#[test]
fn the_chunk_size_changes_between_messages_even_for_unfinished_ones() {
    let mut reader = Reader::new(&Limits::default());
    let body = [7; 300];
    let first = [&full(6, 0, 300)[..], &body[..128]].concat();
    assert_eq!(read_cut(&mut reader, &first, &[]), Ok(vec![]));
    reader.set_chunk_size(1000).unwrap();
    let rest = [&[0xC6][..], &body[128..]].concat();
    assert_eq!(read_cut(&mut reader, &rest, &[]), Ok(vec![message(6, 0, &body)]));
}

#[test]
fn a_chunk_size_out_of_range_is_an_error() {
    let mut reader = Reader::new(&Limits::default());
    for size in [0, 0x8000_0000, u32::MAX] {
        assert_eq!(reader.set_chunk_size(size), Err(Error::ChunkSize { size, max: 0x7FFF_FFFF }));
    }
    assert_eq!(reader.set_chunk_size(0x7FFF_FFFF), Ok(()));
    assert_eq!(reader.set_chunk_size(1), Ok(()));
}

#[test]
fn abort_drops_what_has_arrived_of_a_message() {
    let mut reader = Reader::new(&Limits::default());
    let first = [&full(6, 0, 300)[..], &[7; 128]].concat();
    assert_eq!(read_cut(&mut reader, &first, &[]), Ok(vec![]));
    assert!(!reader.abort(5));
    assert!(reader.abort(6));
    assert_eq!(reader.partial_bytes(), 0);
    let next = [&full(6, 3, 1)[..], b"x"].concat();
    assert_eq!(read_cut(&mut reader, &next, &[]), Ok(vec![message(6, 3, b"x")]));
}

#[test]
fn a_16_mb_length_field_does_not_allocate_16_mb() {
    let limits = Limits { message_bytes: MAX_MESSAGE_LENGTH, partial_bytes: 64 << 20, ..Limits::default() };
    let mut reader = Reader::new(&limits);
    reader.set_chunk_size(0x7FFF_FFFF).unwrap();
    let wire = [&full(6, 0, MAX_MESSAGE_LENGTH)[..], &[1; 1000]].concat();
    assert_eq!(read_cut(&mut reader, &wire, &[]), Ok(vec![]));
    assert!(reader.partial_bytes() <= 16 << 10, "{}", reader.partial_bytes());
    let longer = [2; 40_000];
    assert_eq!(read_cut(&mut reader, &longer, &[]), Ok(vec![]));
    assert!(reader.partial_bytes() <= 128 << 10, "{}", reader.partial_bytes());
}

#[test]
fn each_limit_is_an_error_that_names_its_place() {
    let limits = Limits {
        message_bytes: 100_000,
        partial_messages: 2,
        partial_bytes: 200_000,
        chunk_streams: 4,
        ..Limits::default()
    };
    let read = |wire: &[u8]| read_cut(&mut Reader::new(&limits), wire, &[]);
    let (id, max) = (6, 100_000);
    let error = Error::MessageTooLong { chunk_stream_id: id, type_id: 9, length: 100_001, max };
    assert_eq!(read(&full(6, 0, 100_001)), Err(error));

    let begun = |id| [&full(id, 0, 129)[..], &[0; 128]].concat();
    let wire = [begun(4), begun(5), begun(6)].concat();
    assert_eq!(read(&wire), Err(Error::TooManyPartialMessages { chunk_stream_id: 6, max: 2 }));

    let wire: Vec<u8> = (3..8).flat_map(|id| [&full(id, 0, 1)[..], b"x"].concat()).collect();
    assert_eq!(read(&wire), Err(Error::TooManyChunkStreams { chunk_stream_id: 7, max: 4 }));

    let small = Limits { partial_bytes: 10_000, ..limits };
    let wire = [&full(6, 0, 50_000)[..], &[0; 128]].concat();
    let error = Error::TooManyPartialBytes { chunk_stream_id: 6, max: 10_000 };
    assert_eq!(read_cut(&mut Reader::new(&small), &wire, &[]), Err(error));
}

#[test]
fn headers_out_of_place_are_errors() {
    assert_eq!(read(b"\xC6"), Err(Error::NoHeader { chunk_stream_id: 6, format: 3 }));
    let wire = [&full(6, 0, 200)[..], &[0; 128], &full(6, 0, 200)].concat();
    assert_eq!(read(&wire), Err(Error::HeaderInsideMessage { chunk_stream_id: 6, format: 0 }));
}

#[test]
fn an_idle_reader_is_small_and_owns_no_buffer() {
    assert!(size_of::<Reader>() < 300, "{}", size_of::<Reader>());
    let mut reader = Reader::new(&Limits::default());
    let wire =
        [&full(6, 0, 200)[..], &[0; 128], &full(4, 0, 200), &[0; 128], &[0xC6], &[0; 72], &[0xC4], &[0; 72]];
    assert_eq!(read_cut(&mut reader, &wire.concat(), &[]).map(|messages| messages.len()), Ok(2));
    assert_eq!(reader.partial_bytes(), 0);
    assert!(reader.owns_nothing());
}

/// What one message looks like before it is on the wire.
#[derive(Clone, Debug)]
struct Plan {
    /// Index of the chunk stream.
    stream: usize,
    /// The step of its timestamp.
    step: u32,
    type_id: u8,
    length: usize,
    /// Use the shortest header that says it.
    short: bool,
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let step = prop_oneof![4 => 0..100u32, 1 => 0xFF_FFF0..0x100_0010u32, 1 => any::<u32>()];
    let length = prop_oneof![3 => 0..400usize, 1 => 0..40_000usize];
    (0..3usize, step, 8..10u8, length, any::<bool>())
        .prop_map(|(stream, step, type_id, length, short)| Plan { stream, step, type_id, length, short })
}

const IDS: [u32; 3] = [5, 100, 40_000];

#[derive(Clone, Default)]
struct Last {
    timestamp: u32,
    length: usize,
    type_id: u8,
    delta: Option<u32>,
    known: bool,
}

fn basic(out: &mut Vec<u8>, format: u8, id: u32) {
    match id {
        0..=63 => out.push(format * 64 + id as u8),
        64..=319 => out.extend([format * 64, (id - 64) as u8]),
        _ => out.extend([format * 64 + 1, ((id - 64) % 256) as u8, ((id - 64) / 256) as u8]),
    }
}

/// Each message as a list of chunks.
fn chunks_of(plan: &Plan, serial: usize, last: &mut Last, size: usize) -> (Message, Vec<Vec<u8>>) {
    let id = IDS[plan.stream];
    let timestamp = last.timestamp.wrapping_add(plan.step);
    let body: Vec<u8> = (0..plan.length).map(|at| (at * 7 + serial * 13) as u8).collect();
    let short = plan.short && last.known;
    let format = match short {
        false => 0,
        true if last.length != plan.length || last.type_id != plan.type_id => 1,
        true if last.delta != Some(plan.step) => 2,
        true => 3,
    };
    let field = if format == 0 { timestamp } else { plan.step };
    let mut chunk = Vec::new();
    basic(&mut chunk, format, id);
    if format < 3 {
        chunk.extend(&field.min(0xFF_FFFF).to_be_bytes()[1..]);
    }
    if format < 2 {
        chunk.extend(&(plan.length as u32).to_be_bytes()[1..]);
        chunk.push(plan.type_id);
    }
    if format == 0 {
        chunk.extend([1, 0, 0, 0]);
    }
    let mut chunks = Vec::new();
    let mut rest = &body[..];
    loop {
        if field >= 0xFF_FFFF {
            chunk.extend(field.to_be_bytes());
        }
        let now = rest.len().min(size);
        chunk.extend(&rest[..now]);
        rest = &rest[now..];
        chunks.push(std::mem::take(&mut chunk));
        if rest.is_empty() {
            break;
        }
        basic(&mut chunk, 3, id);
    }
    let delta = (format != 0).then_some(plan.step);
    *last = Last { timestamp, length: plan.length, type_id: plan.type_id, delta, known: true };
    let message =
        Message { type_id: plan.type_id, timestamp, stream_id: 1, chunk_stream_id: id, body: body.into() };
    (message, chunks)
}

proptest! {
    #[test]
    fn any_interleaving_in_any_pieces_reads_back(
        plans in prop::collection::vec(any_plan(), 1..12),
        size in 1..3000usize,
        order in prop::collection::vec(0..3usize, 0..400),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut lasts = vec![Last::default(); IDS.len()];
        let mut queues = vec![std::collections::VecDeque::new(); IDS.len()];
        let mut expected = vec![Vec::new(); IDS.len()];
        for (serial, plan) in plans.iter().enumerate() {
            let (message, chunks) = chunks_of(plan, serial, &mut lasts[plan.stream], size);
            queues[plan.stream].extend(chunks);
            expected[plan.stream].push(message);
        }
        let mut wire = Vec::new();
        for stream in order {
            wire.extend(queues[stream].pop_front().unwrap_or_default());
        }
        queues.into_iter().flatten().for_each(|chunk| wire.extend(chunk));
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
        cuts.sort();
        let mut reader = Reader::new(&Limits::default());
        reader.set_chunk_size(size as u32).unwrap();
        let messages = read_cut(&mut reader, &wire, &cuts).unwrap();
        for (stream, expected) in expected.into_iter().enumerate() {
            let got: Vec<_> = messages.iter().filter(|got| got.chunk_stream_id == IDS[stream]).cloned().collect();
            prop_assert_eq!(got, expected);
        }
        prop_assert!(reader.owns_nothing());
    }

    #[test]
    fn what_the_writer_writes_the_reader_reads(
        id in 2..65_600u32,
        timestamp in any::<u32>(),
        body in prop::collection::vec(any::<u8>(), 0..2000),
        size in 1..2500usize,
    ) {
        let mut wire = BytesMut::new();
        write_message(&mut wire, id, timestamp, 9, 1, &body, size);
        for cut in 0..wire.len().min(40) {
            let mut reader = Reader::new(&Limits::default());
            reader.set_chunk_size(size as u32).unwrap();
            let want = vec![message(id, timestamp, &body)];
            prop_assert_eq!(read_cut(&mut reader, &wire, &[cut]), Ok(want));
        }
    }
}
