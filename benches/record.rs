//! What rendering a message costs.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walhook::change::{
    Change, Column, Datum, Equality, Lsn, OldRow, ReplicaIdentity, Row, Table, TableName, Transaction, Tuple,
};
use walhook::config::{MessageForm, Numbers};
use walhook::record::{ArrayKind, Kind, Rendering, RenderingSettings};

fn change(columns: &[(&str, Kind, &str)], row: impl Fn(Tuple) -> Row) -> Change {
    let column = |(name, kind, _): &(&str, Kind, &str)| Column {
        name: (*name).to_owned(),
        type_oid: 0,
        type_modifier: -1,
        in_identity: true,
        kind: kind.clone(),
        equality: Equality::Text,
        shape: 0,
        altered: None,
    };
    let name = TableName { schema: "public".to_owned(), table: "orders".to_owned() };
    let columns_of_table = columns.iter().map(column).collect();
    let texts: Vec<_> = columns.iter().map(|(_, _, text)| Datum::Text(text.as_bytes())).collect();
    Change {
        transaction: Arc::new(Transaction {
            commit_lsn: Lsn(123_456_789),
            commit_micros: 1_710_948_600_123_456,
            xid: 7,
        }),
        index: 1,
        table: Arc::new(Table::new(1, name, ReplicaIdentity::Full, columns_of_table, vec![0])),
        row: row(Tuple::from_values(&texts)),
        annotations: None,
        oversize: None,
        received_at: Instant::now(),
    }
}

fn plain() -> Vec<(&'static str, Kind, &'static str)> {
    vec![
        ("id", Kind::BigInt, "123456789"),
        ("customer_id", Kind::Int, "78901"),
        ("status", Kind::Text, "shipped"),
        ("total", Kind::Numeric, "1234.50"),
        (
            "note",
            Kind::Text,
            "a note of about a hundred and twenty letters, as one finds them in a table of orders in many a shop today",
        ),
        ("created_at", Kind::TimestampTz, "2024-03-20 15:30:00.123456+00"),
    ]
}

fn nested() -> Vec<(&'static str, Kind, &'static str)> {
    let array = |kind| Kind::Array(ArrayKind::new(kind, b','));
    vec![
        ("id", Kind::BigInt, "123456789"),
        ("numbers", array(Kind::Int), "{1,22,333,4444,55555,666666,NULL,8,9,10,11,12,13,14,15,16,17,18,19,20}"),
        ("words", array(Kind::Text), r#"{a,"b c","d \"e\"",NULL,f,g,h,"i, j",k,l}"#),
        ("docs", array(Kind::Json), r#"{"{\"a\": [1, 2, 3]}","{\"b\": \"text\"}"}"#),
        (
            "doc",
            Kind::Json,
            r#"{"name": "A person", "tags": ["x", "y", "z"], "address": {"street": "Long street 1", "zip": "12345"}, "n": 1.25, "ok": true}"#,
        ),
        ("note", Kind::Text, "two lines\nand \"quotes\" – and a dash"),
    ]
}

fn numbers_and_times() -> Vec<(&'static str, Kind, &'static str)> {
    vec![
        ("id", Kind::BigInt, "123456789"),
        ("a", Kind::Numeric, "17636684.142857142857"),
        ("b", Kind::Numeric, "567.89"),
        ("c", Kind::Numeric, "124980246.0126543210"),
        ("d", Kind::Float, "41152263"),
        ("e", Kind::Float, "0.12345678900000001"),
        ("at", Kind::TimestampTz, "2024-03-20 15:30:00.123456+00"),
        ("seen", Kind::TimestampTz, "2024-03-20 15:30:00+00"),
        ("done", Kind::Timestamp, "2024-03-20 15:30:00.123456"),
        ("due", Kind::TimestampTz, "2024-03-20 15:30:00.123+00"),
        ("day", Kind::Text, "2024-03-20"),
    ]
}

fn document() -> Vec<(&'static str, Kind, &'static str)> {
    let doc = r#"{"name": "202cb962ac59075b964b07152d234b70", "open": true, "lines": [{"n": 4, "sku": "250cf8b51c773f3f8dc8b4be867a9a02", "note": "word word word word word word word word word word word word ", "price": 12.50}, {"n": 1, "sku": "99c5e07b4d5de9d18c350cdf64c5aa3d", "note": "line 
 "two"", "price": 0.99}], "total": 1.23, "address": {"zip": "12345", "city": "Zürich", "street": "Long street 23"}}"#;
    vec![("id", Kind::BigInt, "123"), ("doc", Kind::Json, doc), ("tags", Kind::Json, r#"["a", "b", 123, null, true]"#)]
}

fn bench(criterion: &mut Criterion) {
    let (form, numbers) = (MessageForm::Change, Numbers::Json);
    let rendering = Rendering::new(&RenderingSettings { source: "app", sink: "orders", form, numbers, system_id: 7 });
    let cases = [
        ("insert, 6 columns, 200 bytes", change(&plain(), |new| Row::Insert { new })),
        (
            "update under FULL, the same",
            change(&plain(), |new| Row::Update { old: Some(OldRow::Full(new.clone())), new }),
        ),
        ("insert, arrays and json", change(&nested(), |new| Row::Insert { new })),
        ("insert, numbers and times", change(&numbers_and_times(), |new| Row::Insert { new })),
        ("insert, jsonb of 430 bytes", change(&document(), |new| Row::Insert { new })),
    ];
    let mut group = criterion.benchmark_group("record");
    for (name, change) in &cases {
        let mut out = Vec::with_capacity(4096);
        rendering.append(change, &mut out);
        group.throughput(Throughput::Bytes(u64::try_from(out.len()).unwrap_or(u64::MAX)));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                out.clear();
                rendering.append(black_box(change), &mut out);
                out.len()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
