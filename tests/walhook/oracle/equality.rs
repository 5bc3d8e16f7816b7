//! The server is the oracle of equality too: of every type that can be in a primary key, random values that its own `=` calls
//! equal are one group whatever their texts, and values that differ are not, except for types whose texts do not tell.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use fastrand::Rng;
use tokio_postgres::{Client, SimpleQueryMessage};
use walhook::address::PgAddress;
use walhook::change::{Change, Datum, Lsn, ReplicaIdentity, Row, Table, Transaction, Tuple};
use walhook::config::SinkConfig;
use walhook::source::connection;
use walhook::source::pgoutput::{Relation, RelationColumn};
use walhook::source::relation::Catalogue;
use walhook::source::route::routes;
use walhook::ties::Groups;

use super::types::{Types, quoted};
use super::{EXTENSIONS, MADE};
use crate::postgres::Postgres;

/// Values of a type.
const VALUES: usize = 60;

/// What people make beside [`MADE`], where the text does not tell. The enum has an `=` of its own, blind to case.
const ODD: &str = "CREATE COLLATION nd (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE DOMAIN nd_text AS text COLLATE nd; CREATE TYPE nd_pair AS (a int, b text COLLATE nd);
    CREATE TYPE nd_span AS RANGE (subtype = text, collation = nd); CREATE DOMAIN code AS char(4);
    CREATE TYPE interval_span AS RANGE (subtype = interval); CREATE TYPE price_span AS RANGE (subtype = price);
    CREATE TYPE pattern_span AS RANGE (subtype = text, subtype_opclass = text_pattern_ops);
    CREATE TYPE plain_pair AS (a int, b text, c price);
    CREATE TYPE shout AS ENUM ('a', 'A', 'b');
    CREATE FUNCTION shout_cmp(shout, shout) RETURNS int LANGUAGE sql IMMUTABLE AS
        $$ SELECT btint4cmp(ascii(lower($1::text)), ascii(lower($2::text))) $$;";

const OWN_OPERATORS: [(&str, &str, u8); 5] =
    [("<", "lt", 1), ("<=", "le", 2), ("=", "eq", 3), (">=", "ge", 4), (">", "gt", 5)];

/// Columns that no name of a type alone describes.
const COLUMNS: &[&str] = &[
    "numeric(12, 2)",
    "numeric(12, 2)[]",
    "char(5)",
    "char(3)[]",
    "varchar(5)",
    "interval(0)",
    "timestamp(0)",
    "varbit(70)",
    "text COLLATE nd",
    "varchar COLLATE nd",
    "bpchar COLLATE nd",
    "text[] COLLATE nd",
    "name COLLATE nd",
    "text COLLATE \"C\"",
];

/// Types whose texts do not tell which values are equal, so that their tables are one group. Row types with such
/// attributes, and arrays, ranges and domains of such types, are not listed.
const FALLBACKS: &[&str] = &[
    "bpchar[]",
    "citext",
    "cube",
    "halfvec",
    "jsonb",
    // Compared as bytea, whose operator class does not declare equal images on 14.
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
    "seg",
    "shout",
    "sparsevec",
    "tsquery",
    "tsvector",
    "vector",
    "text COLLATE nd",
    "varchar COLLATE nd",
    "bpchar COLLATE nd",
    "text[] COLLATE nd",
    "name COLLATE nd",
    "nd_text",
    "nd_pair",
    "nd_span",
    "pattern_span",
];

/// Texts of values that are often equal.
fn pool(bare: &str) -> Option<&'static [&'static str]> {
    Some(match bare {
        "numeric" => {
            &["0", "0.0", "-0.00", "1", "1.0", "1.00", "10", "1e1", "10.0", "-1.5", "-1.50", "NaN", "100.010", "100.01"]
        }
        "price" => &["0", "1", "1.0", "10", "100.01", "-1.5"],
        "float4" | "float8" => &["0", "-0", "0", "-0", "1", "-1.5", "NaN", "Infinity", "1e20"],
        "interval" => &[
            "0",
            "1 mon -30 days",
            "1 day -24:00",
            "1 mon",
            "30 days",
            "720:00",
            "29 days 24:00",
            "1 year",
            "360 days",
            "-1 day",
            "-24:00",
            "1 day -00:00:00.5",
            "23:59:59.5",
            "1 mon 00:00:01",
        ],
        "text" | "varchar" | "name" | "citext" | "bpchar" | "code" | "nd_text" => {
            &["", " ", "a", "A", "a ", "a  ", "b", "B", "\u{e1}", "\u{c1}", "a\u{301}"]
        }
        "jsonb" => &["1", "1.0", "{\"a\": 1.0}", "{\"a\": 1}", "[1, 2]", "null"],
        "cube" => &["(1)", "(1),(1)", "(0)", "(-0)", "(1,2)"],
        "regclass" => &["pg_class", "pg_type"],
        "shout" => &["a", "A", "b"],
        _ => return None,
    })
}

/// An expression for a value out of few.
fn few(types: &Types, oid: u32, rng: &mut Rng, depth: u8) -> String {
    let kind = &types.all[&oid];
    let (name, inner) = (&kind.name, kind.inner);
    if let Some(texts) = pool(&kind.bare) {
        return format!("{}::{name}", quoted(texts[rng.usize(..texts.len())]));
    }
    let mut part = |oid| match types.all.get(&oid) {
        Some(kind) if depth > 3 => format!("NULL::{}", kind.name),
        Some(_) => few(types, oid, rng, depth + 1),
        None => "NULL".to_owned(),
    };
    match kind.sort {
        'a' => {
            let (one, two) = (part(inner), part(inner));
            match rng.u8(..5) {
                0 => format!("'{{}}'::{name}"),
                1 => format!("ARRAY[{one}, NULL]::{name}"),
                2 => format!("ARRAY[ARRAY[{one}], ARRAY[{two}]]::{name}"),
                3 => format!("('[0:1]=' || ARRAY[{one}, {two}]::{name}::text)::{name}"),
                _ => format!("ARRAY[{one}]::{name}"),
            }
        }
        'd' if !["cardinal_number", "yes_or_no", "earth"].contains(&kind.bare.as_str()) => {
            format!("({})::{name}", part(inner))
        }
        'c' => {
            let fields: Vec<String> = kind.attributes.iter().map(|oid| part(*oid)).collect();
            format!("ROW({})::{name}", fields.join(", "))
        }
        // Which of two is less depends on the range's collation.
        'r' if kind.bare.ends_with("_span") && types.all[&inner].bare == "text" => {
            format!("{name}({}, NULL)", part(inner))
        }
        'r' => {
            let (one, two) = (part(inner), part(inner));
            let bounds =
                if ["int4range", "int8range", "daterange"].contains(&kind.bare.as_str()) { "[)" } else { "[]" };
            let bounds = if rng.bool() { bounds } else { "[)" };
            format!("{name}(LEAST({one}, {two}), GREATEST({one}, {two}), '{bounds}')")
        }
        'm' => format!("{name}({})", part(inner)),
        _ => match types.value(oid, &mut Rng::with_seed(u64::from(oid) * 8 + rng.u64(..8))).as_str() {
            "NULL" => format!("NULL::{name}"),
            value => value.to_owned(),
        },
    }
}

/// A column definition, and an expression for its values.
struct Candidate {
    definition: String,
    values: Vec<String>,
}

fn candidates(types: &Types, rng: &mut Rng) -> Vec<Candidate> {
    let is_row = |oid: &u32| types.all.get(oid).is_some_and(|kind| kind.of_catalogue);
    let plain = types.all.iter().filter(|(oid, kind)| !is_row(oid) && !is_row(&kind.inner));
    let of_type = |(oid, definition): (&u32, &str)| Candidate {
        definition: definition.to_owned(),
        values: (0..VALUES).map(|_| few(types, *oid, rng, 0)).collect(),
    };
    let built_in = types.all.iter().filter(|(_, kind)| kind.built_in);
    let by_name: HashMap<String, &u32> = built_in.map(|(oid, kind)| (kind.bare.clone(), oid)).collect();
    let base = |definition: &str| {
        let (name, array) = (definition.split([' ', '(', '[']).next().unwrap(), definition.contains("[]"));
        let name = if name == "char" { "bpchar" } else { name };
        by_name[&if array { format!("_{name}") } else { name.to_owned() }]
    };
    let described = COLUMNS.iter().map(|definition| (base(definition), *definition));
    plain.map(|(oid, kind)| (oid, kind.name.as_str())).chain(described).map(of_type).collect()
}

/// Without quotes, and without the schemas that need no name.
fn short(name: &str) -> String {
    name.trim_start_matches("pg_catalog.").trim_start_matches("public.").replace('"', "")
}

/// The name under which a type is listed.
fn listed(name: &str) -> String {
    let name = short(name);
    name.strip_prefix('_').map_or(name.clone(), |element| format!("{element}[]"))
}

/// Made by hand: the relation as its message would announce it.
async fn announced(client: &Client, table: &str) -> Relation {
    let sql = format!(
        "SELECT attrelid, atttypid, atttypmod FROM pg_attribute WHERE attrelid = 'public.{table}'::regclass AND attnum = 1"
    );
    let row = client.query_one(&sql, &[]).await.unwrap();
    let column =
        RelationColumn { name: "k".to_owned(), in_identity: true, type_oid: row.get(1), type_modifier: row.get(2) };
    let (namespace, name) = ("public".to_owned(), table.to_owned());
    Relation { oid: row.get(0), namespace, name, identity: ReplicaIdentity::Default, columns: vec![column] }
}

fn group(table: &Table, sink: &SinkConfig, text: &str) -> Groups {
    let change = Change {
        transaction: Arc::new(Transaction { commit_lsn: Lsn(1), commit_micros: 0, xid: 1 }),
        index: 1,
        table: Arc::new(table.clone()),
        row: Row::Insert { new: Tuple::from_values(&[Datum::Text(text.as_bytes())]) },
        annotations: None,
        oversize: None,
        received_at: Instant::now(),
    };
    routes(table, std::slice::from_ref(sink))[0].groups(&change, &mut Vec::new())
}

async fn rows(client: &Client, sql: &str) -> Result<Vec<(i32, String)>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0)?.parse().unwrap(), row.get(1)?.to_owned())),
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// What was found of one type.
struct Found {
    falls_back: bool,
    /// Pairs that are equal and have different texts.
    equal: usize,
    differing: usize,
}

/// Compares all pairs of values with the server; nothing if the type cannot be in a key.
async fn compare(owner: &Client, own: &Client, sink: &SinkConfig, n: usize, candidate: &Candidate) -> Option<Found> {
    let (definition, key, values) = (&candidate.definition, format!("key_{n}"), format!("values_{n}"));
    let made = owner.batch_execute(&format!("CREATE TABLE {key} (k {definition} PRIMARY KEY)")).await;
    made.ok()?;
    owner.batch_execute(&format!("CREATE TABLE {values} (n serial, k {definition})")).await.unwrap();
    for value in &candidate.values {
        let sql = format!("INSERT INTO {values} (k) VALUES ({value})");
        owner.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
    }
    let equals = format!("SELECT a.n, b.n FROM {values} a JOIN {values} b ON a.n < b.n AND a.k = b.k");
    // Row types can hold what has no equality at all.
    let equals = rows(owner, &equals).await.ok()?;
    let equals: HashSet<(i32, i32)> = equals.into_iter().map(|(a, b)| (a, b.parse().unwrap())).collect();

    let table = Catalogue::new().table(own, &announced(own, &key).await).await.unwrap();
    assert_eq!(table.primary_key, [0]);
    let texts = rows(own, &format!("SELECT n, k FROM {values} WHERE k IS NOT NULL ORDER BY n")).await.unwrap();
    let groups: Vec<_> = texts.iter().map(|(n, text)| (*n, text, group(&table, sink, text))).collect();
    let falls_back = &*routes(&table, std::slice::from_ref(sink))[0].rule == "table";
    let mut found = Found { falls_back, equal: 0, differing: 0 };
    for (at, (n, text, group)) in groups.iter().enumerate() {
        for (m, other, another) in &groups[at + 1..] {
            let is_equal = equals.contains(&(*n, *m));
            let why =
                format!("{definition}: {text:?} and {other:?}, equal: {is_equal}, rule {}", table.columns[0].type_oid);
            assert!(!is_equal || group == another, "equal values are in two groups: {why}");
            assert!(is_equal || group != another || falls_back, "differing values are in one group: {why}");
            found.equal += usize::from(is_equal && text != other);
            found.differing += usize::from(!is_equal);
        }
    }
    Some(found)
}

async fn set_up(postgres: &Postgres) {
    postgres.admin_sql(EXTENSIONS).await;
    postgres.sql(MADE).await;
    postgres.sql(ODD).await;
    let mut class = "CREATE OPERATOR CLASS shout_ops DEFAULT FOR TYPE shout USING btree AS ".to_owned();
    for (operator, name, number) in OWN_OPERATORS {
        let sql = format!(
            "CREATE FUNCTION shout_{name}(shout, shout) RETURNS bool LANGUAGE sql IMMUTABLE AS
                $$ SELECT shout_cmp($1, $2) {operator} 0 $$;
             CREATE OPERATOR {operator} (LEFTARG = shout, RIGHTARG = shout, FUNCTION = shout_{name})"
        );
        postgres.sql(&sql).await;
        class += &format!("OPERATOR {number} {operator}, ");
    }
    postgres.admin_sql(&(class + "FUNCTION 1 shout_cmp(shout, shout)")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_55_keys_are_one_group_exactly_where_the_server_calls_them_equal() {
    let seed = std::env::var("WALHOOK_ORACLE_SEED").map_or(5, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let postgres = Postgres::start();
    if !postgres.has_icu().await {
        return;
    }
    set_up(&postgres).await;
    let types = Types::of(&postgres).await;
    let candidates = candidates(&types, &mut Rng::with_seed(seed));
    let sink = "[source.app]\nurl = \"postgres://u@localhost/app\"\n[sink.s]\nurl = \"http://localhost/\"\ntables = [\"public.*\"]\n";
    let sink = walhook::config::parse(sink, std::path::Path::new("t.toml"), &|_| None, &[]).unwrap().sinks.remove(0);
    let address: PgAddress = PgAddress::parse(&postgres.url()).unwrap();
    let (own, driver) = connection::sql(&address).await.unwrap();
    tokio::spawn(driver);
    // Texts are to be those of the stream, whose session has this path.
    own.batch_execute("RESET search_path").await.unwrap();
    let owner = postgres.client().await;

    let (mut keys, mut pairs, mut no_keys) = (0, 0, Vec::new());
    let (mut fallbacks, mut odd, mut inner) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (n, candidate) in candidates.iter().enumerate() {
        let name = listed(&candidate.definition);
        let Some(found) = compare(&owner, &own, &sink, n, candidate).await else {
            no_keys.push(name);
            continue;
        };
        keys += 1;
        pairs += found.differing;
        if found.equal > 0 {
            odd.insert(name.clone());
        }
        if found.falls_back {
            let is_made = types
                .all
                .values()
                .any(|kind| short(&kind.name) == short(&candidate.definition) && "acdrm".contains(kind.sort));
            if is_made && !FALLBACKS.contains(&name.as_str()) {
                inner.insert(name)
            } else {
                fallbacks.insert(name)
            };
        }
    }
    println!("{keys} keys, {pairs} pairs that differ; equal with different texts: {odd:?}");
    println!("one group a table: {fallbacks:?}");
    println!("one group a table, made of what is: {inner:?}");
    println!("no keys: {no_keys:?}");
    let unlisted: Vec<_> = fallbacks.iter().filter(|name| !FALLBACKS.contains(&name.as_str())).collect();
    assert!(unlisted.is_empty(), "these fall back and are not listed: {unlisted:?}");
    for name in [
        "numeric",
        "float4",
        "float8",
        "interval",
        "bpchar",
        "jsonb",
        "numeric[]",
        "numrange",
        "nummultirange",
        "float8[]",
    ] {
        assert!(odd.contains(name), "no equal values of {name} with different texts came up: {odd:?}");
    }
    for name in [
        "interval[]",
        "float_span",
        "interval_span",
        "pair",
        "text COLLATE nd",
        "nd_text",
        "nd_pair",
        "nd_span",
        "shout",
    ] {
        assert!(odd.contains(name), "no equal values of {name} with different texts came up: {odd:?}");
    }
    for name in
        ["int4[]", "text[]", "tsrange", "mood", "mood[]", "plain_pair", "price", "price_span", "numeric[]", "numrange"]
    {
        assert!(!fallbacks.contains(name) && !inner.contains(name) && !no_keys.contains(&name.to_owned()), "{name}");
    }
    assert!(keys > 100 && pairs > 20_000, "{keys} keys, {pairs} pairs");
}
