//! How long one row message takes to decode: every change passes here.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walhook::source::pgoutput::decode;

fn tuple(values: &[&str]) -> Vec<u8> {
    let mut bytes = u16::try_from(values.len()).unwrap_or_default().to_be_bytes().to_vec();
    for value in values {
        bytes.push(b't');
        bytes.extend(u32::try_from(value.len()).unwrap_or_default().to_be_bytes());
        bytes.extend(value.as_bytes());
    }
    bytes
}

/// An order of six columns, about 200 bytes.
fn order(status: &str) -> Vec<u8> {
    let note =
        "please leave the parcel with the neighbours on the second floor if nobody answers the door bell, thank you";
    tuple(&["184467", "99120", status, "249.90", "2024-03-20 15:30:00.123456+00", note])
}

fn decoder(criterion: &mut Criterion) {
    let relation = 16_385u32.to_be_bytes();
    let insert = Bytes::from([&b"I"[..], &relation, b"N", &order("pending")].concat());
    let update = Bytes::from([&b"U"[..], &relation, b"O", &order("pending"), b"N", &order("shipped")].concat());
    let mut group = criterion.benchmark_group("decode");
    for (name, frame) in [("insert", insert), ("update, full identity", update)] {
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| decode(std::hint::black_box(frame.clone()))));
    }
    group.finish();
}

criterion_group!(benches, decoder);
criterion_main!(benches);
