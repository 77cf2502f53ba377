//! What RTMP costs a byte and a message: chunks in, chunks out, AMF 0.

// A bench that cannot go on has nobody to tell, and criterion's macro writes an undocumented function.
#![allow(clippy::expect_used, missing_docs)]

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lb::rtmp::amf0::{self, Value};
use lb::rtmp::chunk::{self, Reader};
use lb::rtmp::{Limits, session};
use std::hint::black_box;

/// A second of 2.5 Mb/s: 30 video and 43 audio messages, as they interleave.
fn second(chunk_size: usize) -> BytesMut {
    let mut wire = BytesMut::new();
    let (video, audio) = (vec![7; 9_600], vec![7; 370]);
    for index in 0..73u32 {
        let (type_id, body) = if index % 5 < 2 { (9, &video) } else { (8, &audio) };
        let id = session::chunk_stream(type_id);
        chunk::write_message(&mut wire, id, index * 14, type_id, 1, body, chunk_size);
    }
    wire
}

fn chunks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunk");
    for chunk_size in [128, 4096, session::OUT_CHUNK_SIZE] {
        let wire = second(chunk_size);
        group.throughput(Throughput::Bytes(wire.len() as u64));
        group.bench_function(format!("read a second, chunks of {chunk_size}"), |bencher| {
            let mut reader = Reader::new(&Limits::default());
            reader.set_chunk_size(chunk_size as u32).expect("a size in range");
            bencher.iter(|| {
                // What one read of a socket brings.
                for mut piece in wire.chunks(16 << 10) {
                    while let Some(message) = reader.read(&mut piece).expect("sound chunks") {
                        black_box(message);
                    }
                }
            });
        });
        group.bench_function(format!("write a second, chunks of {chunk_size}"), |bencher| {
            bencher.iter(|| black_box(second(chunk_size)));
        });
    }
}

fn values(criterion: &mut Criterion) {
    let number = |name: &str, value| (name.to_owned(), Value::Number(value));
    let metadata = Value::EcmaArray(vec![
        number("width", 1920.0),
        number("height", 1080.0),
        number("framerate", 30.0),
        number("videodatarate", 2500.0),
        ("encoder".to_owned(), Value::string("an encoder of some version")),
    ]);
    let mut body = BytesMut::new();
    amf0::write(&mut body, &Value::string("onMetaData"));
    amf0::write(&mut body, &metadata);
    let mut group = criterion.benchmark_group("amf0");
    group.bench_function("read metadata", |bencher| {
        bencher.iter(|| black_box(amf0::read_all(&body, &amf0::Limits::default())));
    });
    group.bench_function("write metadata", |bencher| {
        bencher.iter_batched_ref(
            || BytesMut::with_capacity(256),
            |out| amf0::write(out, &metadata),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, chunks, values);
criterion_main!(benches);
