//! What we make of a value's text beside what the server's own `to_jsonb` makes of the value.

use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::append_value;
use crate::change::{Column, ReplicaIdentity, Table};
use crate::config::Numbers;
use crate::demo::cluster::{Cluster, ClusterOptions};
use crate::source::pgoutput::{Relation, RelationColumn};
use crate::source::relation::Catalogue;

#[path = "../../tests/walhook/oracle/json.rs"]
mod json;

use json::Json;

/// Types with odd values of each, as SQL expressions. Every type is tried alone and in an array of one and two dimensions.
const ODD: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("int2", &["0", "-32768", "32767"]),
    ("int4", &["'-2147483648'", "7"]),
    ("int8", &["'-9223372036854775808'", "9007199254740993"]),
    ("oid", &["'4294967295'", "0"]),
    ("xid", &["'4294967295'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("cid", &["'1'"]),
    ("tid", &["'(1,2)'"]),
    ("regclass", &["'pg_class'", "'0'"]),
    ("regtype", &["'timestamptz'"]),
    (
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0",
            "'-0.00'",
            "1.500",
            "'1e-30'",
            "'1e40'",
            "'12345678901234567890.123456789012345678901234567890'",
        ],
    ),
    ("float4", &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "1e-7", "'3.4028235e38'", "0.1", "'1e-45'"]),
    (
        "float8",
        &["'NaN'", "'-Infinity'", "'-0'", "0.1", "'1.7976931348623157e308'", "'5e-324'", "1e15", "1e16", "123456.789"],
    ),
    ("money", &["'1234.5'", "'-1'"]),
    (
        "text",
        &[
            "''",
            "'NULL'",
            "'null'",
            "'a\"b\\c'",
            "E'\\x01\\t\\n\\r\\b\\f\\x7f'",
            "'{a,b}'",
            "'(a,b)'",
            "' x '",
            "'é日本😀'",
            "repeat('x\"', 5000)",
        ],
    ),
    ("varchar(5)", &["'ab'"]),
    ("char(5)", &["'ab'"]),
    ("\"char\"", &["'x'", "''", "'\\200'"]),
    ("name", &["'n a'"]),
    ("bytea", &["''", "'\\x00ff'", "'a\\\\b'"]),
    ("json", &["'null'", "'{\"a\": [1, 2.50,\"x\\u00e9\\\"\"],\n \"b\" : {}}'", "'1e5'", "'\"NULL\"'"]),
    (
        "jsonb",
        &["'null'", "'{\"a\": [1, 2.50,\"x\\u00e9\\\"\"], \"b\" : {}}'", "'\"{}\"'", "'12345678901234567890.10'"],
    ),
    ("jsonpath", &["'$.a[*]'"]),
    ("xml", &["'<a b=\"c\">&amp;</a>'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("date", &["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'12345-01-02'", "'2024-02-29'", "'4714-11-24 BC'"]),
    ("time", &["'24:00:00'", "'12:34:56.789'", "'0:0'"]),
    ("timetz", &["'24:00:00+15:59:59'", "'12:34:56.7-05:30'"]),
    (
        "timestamp",
        &[
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 12:00 BC'",
            "'12345-01-02 3:4:5.000001'",
            "'2024-02-29 24:00'",
            "'294276-12-31 23:59:59.999999'",
        ],
    ),
    (
        "timestamptz",
        &[
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 12:00:00.5+02 BC'",
            "'12345-01-02 3:4:5.1+00'",
            "'2024-02-29 1:2:3.120+05:30'",
            "'4714-11-24 00:00:00+00 BC'",
        ],
    ),
    ("interval", &["'1 year -2 mon +3 days -4:05:06.7'", "'0'", "'-1 day'"]),
    ("bit(3)", &["'101'"]),
    ("varbit", &["''", "'1'"]),
    ("inet", &["'10.0.0.1/8'", "'::1'"]),
    ("cidr", &["'10.0.0.0/8'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("point", &["'(1,-2.5)'", "'(Infinity,NaN)'"]),
    ("line", &["'{1,2,3}'"]),
    ("lseg", &["'[(1,2),(3,4)]'"]),
    ("box", &["'(1,2),(0,0)'"]),
    ("path", &["'[(1,2),(3,4)]'", "'((1,2),(3,4))'"]),
    ("polygon", &["'((1,2),(3,4))'"]),
    ("circle", &["'<(1,2),3>'"]),
    ("tsvector", &["'a:1 ''b c'':2A'"]),
    ("tsquery", &["'a & !b'"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("txid_snapshot", &["'10:20:10,14'"]),
    ("int2vector", &["''", "'1 2 -3'"]),
    ("oidvector", &["''", "'1 4294967295'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'(,)'"]),
    ("tstzrange", &["'[2024-01-01 00:00+00,)'"]),
    ("int4multirange", &["'{}'", "'{[1,2),[4,5)}'"]),
    ("mood", &["'so \"so\", {ok}'", "'NULL'"]),
    ("small", &["7"]),
    ("list", &["'{1,NULL}'", "'[0:1]={1,2}'"]),
    ("pair", &["'(,)'", "ROW(1.50, E'a\"b\\\\c (d), e\\n')", "ROW('NaN', '')"]),
    (
        "nest",
        &[
            "ROW(ARRAY[ROW(1, 'x \"y\"')::pair, NULL, ROW(NULL, '{}')::pair], '{\"k\": [\"v\\\\\"]}', '2024-01-01', ARRAY['a=>\"b c\"'::hstore])",
        ],
    ),
    ("empty", &["ROW()"]),
    ("hstore", &["''", "'a=>1,b=>NULL,\"c \\\"d\\\\\\\\\"=>\"q\\\"\\\\\\\\\"'"]),
    ("labels", &["'a=>1'"]),
    ("citext", &["'Ab'"]),
    ("ltree", &["'a.b'"]),
    ("cube", &["'(1,2),(3,4)'"]),
    ("pg_catalog.pg_database", &["NULL"]),
    ("information_schema.cardinal_number", &["3"]),
];

const TYPES: &str = "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION cube;
    CREATE TYPE mood AS ENUM ('so \"so\", {ok}', 'NULL');
    CREATE DOMAIN small AS int8 CHECK (VALUE < 100); CREATE DOMAIN list AS int4[]; CREATE DOMAIN labels AS hstore;
    CREATE TYPE pair AS (a numeric, \"b \"\"c\" text); CREATE TYPE empty AS ();
    CREATE TYPE nest AS (pairs pair[], doc jsonb, at timestamptz, tags hstore[]);";

/// Random values of each column, from a seeded generator of the server.
const RANDOM: &str = "CREATE TABLE random_values AS SELECT
    (r * 1e9)::int4 a, ((r - 0.5) * 1e19)::numeric::text::numeric b, (r - 0.5)::float4 * 10 ^ (i % 30 - 15) c,
    (r - 0.5) * 10::float8 ^ (i % 400 - 200) d, round(((r - 0.5) * 1e12)::numeric, i % 13) e,
    timestamptz '2000-01-01' + (r - 0.5) * interval '9000 years' f, (timestamp '2000-01-01' + (r - 0.5) * interval '9000 years') g,
    (date '2000-01-01' + ((r - 0.5) * 3e6)::int) h, ARRAY[(r * 9)::int8, NULL, i] k,
    (SELECT string_agg(chr(CASE WHEN random() < 0.7 THEN 1 + (random() * 126)::int ELSE 200 + (random() * 50000)::int END), '')
        FROM generate_series(0, i % 20)) t
    FROM (SELECT i, random() r FROM generate_series(1, 800) i) s;
    ALTER TABLE random_values ADD ta text[], ADD p pair, ADD pa pair[], ADD j jsonb, ADD n nest;
    UPDATE random_values SET ta = ARRAY[t, reverse(t), NULL], p = ROW(e, t);
    UPDATE random_values SET pa = ARRAY[p, NULL, p], j = to_jsonb(ta);
    UPDATE random_values SET n = ROW(pa, j, f, ARRAY[hstore(t, reverse(t))]);";

#[tokio::test]
async fn every_type_is_rendered_as_to_jsonb_does() {
    let cluster = Cluster::start(&ClusterOptions::default()).unwrap();
    let mut config: tokio_postgres::Config = cluster.url("postgres").parse().unwrap();
    config.options(
        "-c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=3 -c bytea_output=hex",
    );
    let (client, connection) = config.connect(NoTls).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    client.batch_execute(TYPES).await.unwrap();
    create_odd_values(&client).await;
    client.batch_execute("SELECT setseed(0.42)").await.unwrap();
    client.batch_execute(RANDOM).await.unwrap();

    let mut compared = 0;
    for table in ["odd_values", "random_values"] {
        compared += compare(&client, table).await;
    }
    assert!(compared > 10_000, "{compared}");
}

/// One column for each type, one for its arrays; in row n each type's n-th odd value.
async fn create_odd_values(client: &Client) {
    let columns: Vec<_> = (0..ODD.len()).zip(ODD).map(|(n, (name, _))| format!("c{n} {name}, a{n} {name}[]")).collect();
    client.batch_execute(&format!("CREATE TABLE odd_values ({})", columns.join(", "))).await.unwrap();
    let rows = ODD.iter().map(|(_, values)| values.len()).max().unwrap();
    for row in 0..rows {
        let cell = |(name, values): &(&str, &[&str])| {
            let value = values.get(row).map_or("NULL".to_owned(), |value| format!("({value})::{name}"));
            // An array made of arrays of a domain keeps the domain as its element.
            let array = match row % 3 {
                0 => format!("ARRAY[{value}, NULL]::{name}[]"),
                1 => format!("ARRAY[ARRAY[{value}]::{name}[], ARRAY[NULL]::{name}[]]"),
                _ => format!("('[-1:0]=' || ARRAY[{value}, {value}]::{name}[]::text)::{name}[]"),
            };
            format!("{value}, {array}")
        };
        let cells: Vec<_> = ODD.iter().map(cell).collect();
        client.batch_execute(&format!("INSERT INTO odd_values VALUES ({})", cells.join(", "))).await.unwrap();
    }
}

/// Compares every value of a table; returns how many.
async fn compare(client: &Client, name: &str) -> usize {
    let table = table(client, name).await;
    let columns: Vec<_> = table.columns.iter().map(|column| column.name.as_str()).collect();
    let sql = format!("SELECT {}, to_jsonb(whole) FROM {name} whole", columns.join(", "));
    let mut compared = 0;
    for message in client.simple_query(&sql).await.unwrap() {
        if let SimpleQueryMessage::Row(row) = message {
            compared += compare_row(&table.columns, &row);
        }
    }
    compared
}

fn compare_row(columns: &[Column], row: &SimpleQueryRow) -> usize {
    let Json::Object(mut oracle) = Json::read(row.get(columns.len()).unwrap()) else { panic!("not a row") };
    for (place, column) in columns.iter().enumerate() {
        let mut out = Vec::new();
        let text = row.get(place);
        let fallbacks = text.map_or(0, |text| append_value(&mut out, &column.kind, text.as_bytes(), Numbers::Json));
        assert_eq!(fallbacks, 0, "{} {:?} {text:?}", column.name, column.kind);
        let ours = if text.is_some() { Json::read(std::str::from_utf8(&out).unwrap()) } else { Json::Null };
        let theirs = oracle.remove(&column.name).unwrap();
        assert_eq!(ours, theirs, "{} {:?} {text:?}", column.name, column.kind);
    }
    columns.len()
}

async fn table(client: &Client, name: &str) -> Table {
    let sql = "SELECT attname::text, atttypid, atttypmod, attrelid FROM pg_attribute
        WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
    let rows = client.query(sql, &[&name]).await.unwrap();
    let columns = rows.iter().map(|row| RelationColumn {
        name: row.get(0),
        in_identity: false,
        type_oid: row.get(1),
        type_modifier: row.get(2),
    });
    let relation = Relation {
        oid: rows[0].get(3),
        namespace: "public".to_owned(),
        name: name.to_owned(),
        identity: ReplicaIdentity::Default,
        columns: columns.collect(),
    };
    Catalogue::new().table(client, &relation).await.unwrap()
}
