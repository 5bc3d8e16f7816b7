//! The server is the oracle: what a record holds of any type is what the server's own `to_jsonb` says of the row.
//!
//! The types are those of the server at hand and of the extensions that it has, made ones beside them. A trigger writes
//! down `to_jsonb` of every old and new row, which is compared with what arrived.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use crate::daemon::{Config, Daemon};
use crate::postgres::{Postgres, state, until};
use crate::receiver::Receiver;

#[path = "oracle/equality.rs"]
mod equality;
#[path = "oracle/json.rs"]
mod json;
#[path = "oracle/literals.rs"]
mod literals;
#[path = "oracle/types.rs"]
mod types;

use json::Json;
use types::Types;

/// Columns of a table, and rows of one.
const COLUMNS: usize = 40;
const ROWS: usize = 60;
/// Rows of tables with row types of the catalogue, which are wide and alike.
const CATALOGUE_ROWS: usize = 4;

/// Extensions with types, where they are to be had.
const EXTENSIONS: &str = "DO $$ DECLARE e text; BEGIN
    FOR e IN SELECT name FROM pg_available_extensions WHERE name = ANY ('{hstore,citext,ltree,cube,isn,seg,lo,intarray,pg_trgm,
        earthdistance,tablefunc,btree_gist,vector,postgis,pg_walinspect,pgrowlocks}') ORDER BY name = 'earthdistance', name
    LOOP EXECUTE format('CREATE EXTENSION %I', e); END LOOP; END $$";

/// Types that people make.
const MADE: &str = r#"CREATE SCHEMA "Odd ""Schema""";
    CREATE TYPE mood AS ENUM ('so "so", {ok}', 'NULL', '', 'ü', 't');
    CREATE TYPE "Odd ""Schema"""."My ""type"", (x)" AS ENUM ('a');
    CREATE DOMAIN small AS int8; CREATE DOMAIN list AS int4[]; CREATE DOMAIN words AS text[]; CREATE DOMAIN price AS numeric(12, 2);
    CREATE DOMAIN smaller AS small; CREATE DOMAIN moods AS mood[]; CREATE DOMAIN flag AS bool; CREATE DOMAIN doc AS jsonb;
    CREATE TYPE pair AS (a numeric, "b ""c"", (d)" text); CREATE TYPE empty AS (); CREATE TYPE single AS ("only" text);
    CREATE DOMAIN named_pair AS pair; CREATE DOMAIN pairs AS pair[];
    CREATE TYPE nest AS (pairs pair[], doc jsonb, raw json, at timestamptz, moods mood[], small small, gone int, np named_pair, ok bool);
    ALTER TYPE nest DROP ATTRIBUTE gone;
    CREATE TYPE "Ünest" AS (nest nest, nests nest[], pairs pairs, list list, one single, span int4range, "é" "Odd ""Schema"""."My ""type"", (x)");
    CREATE TYPE float_span AS RANGE (subtype = float8); CREATE TYPE text_span AS RANGE (subtype = text, collation = "C");
    CREATE DOMAIN float_spans AS float_span[];"#;

const HSTORES: &str =
    "CREATE DOMAIN labels AS hstore; CREATE TYPE tagged AS (tags hstore, all_tags hstore[], labels labels)";

const AUDIT: &str =
    "CREATE SCHEMA audit; CREATE TABLE audit.rows (n bigserial PRIMARY KEY, name text, op text, old jsonb, new jsonb);
    CREATE FUNCTION audit.write() RETURNS trigger LANGUAGE plpgsql SET TimeZone = 'UTC' AS $$ BEGIN
        INSERT INTO audit.rows (name, op, old, new) VALUES (TG_TABLE_NAME, lower(TG_OP),
            CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END, CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
        RETURN NULL; END $$";

/// Types that refuse every text: their values are made inside the server only.
const BARREN: &[&str] = &[
    "pg_catalog.gtsvector",
    "pg_catalog.pg_brin_bloom_summary",
    "pg_catalog.pg_brin_minmax_multi_summary",
    "pg_catalog.pg_dependencies",
    "pg_catalog.pg_mcv_list",
    "pg_catalog.pg_ndistinct",
    "pg_catalog.pg_node_tree",
    "pg_catalog.xml",
    "public.gbtreekey16",
    "public.gbtreekey2",
    "public.gbtreekey32",
    "public.gbtreekey4",
    "public.gbtreekey8",
    "public.gbtreekey_var",
    "public.ghstore",
    "public.gtrgm",
    "public.intbig_gkey",
    "public.ltree_gist",
];

/// A table of the test.
struct Table {
    name: String,
    /// Type of `c0`, `c1`, ….
    columns: Vec<u32>,
    rows: usize,
}

impl Table {
    async fn create(&self, postgres: &Postgres, types: &Types) {
        let columns: Vec<_> =
            self.columns.iter().enumerate().map(|(n, oid)| format!("c{n} {}", types.all[oid].name)).collect();
        let name = &self.name;
        postgres
            .sql(&format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, {}); ALTER TABLE {name} REPLICA IDENTITY FULL;
                 CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION audit.write()",
                columns.join(", ")
            ))
            .await;
    }

    /// Inserts a row, changes some of its columns, and removes it.
    async fn live(&self, client: &tokio_postgres::Client, types: &Types, id: usize, rng: &mut Rng) {
        let name = &self.name;
        let values: Vec<_> = self.columns.iter().map(|oid| types.value(*oid, rng)).collect();
        let mut sets: Vec<_> = self.columns.iter().enumerate().filter(|_| rng.u8(..3) == 0).collect();
        sets.truncate(if id.is_multiple_of(7) { 0 } else { usize::MAX });
        let mut sets: Vec<_> = sets.into_iter().map(|(n, oid)| format!("c{n} = {}", types.value(*oid, rng))).collect();
        sets.push("id = id".to_owned());
        for sql in [
            format!("INSERT INTO {name} VALUES ({id}, {})", values.join(", ")),
            format!("UPDATE {name} SET {} WHERE id = {id}", sets.join(", ")),
            format!("DELETE FROM {name} WHERE id = {id}"),
        ] {
            if let Err(error) = client.batch_execute(&sql).await {
                panic!("{error:?}\n{}", sql.chars().take(20_000).collect::<String>());
            }
        }
    }
}

fn tables(types: &Types) -> Vec<Table> {
    let (wide, plain): (Vec<u32>, Vec<u32>) = types.all.iter().map(|(oid, kind)| (*oid, kind.of_catalogue)).fold(
        (Vec::new(), Vec::new()),
        |(mut wide, mut plain), (oid, of_catalogue)| {
            if of_catalogue {
                wide.push(oid)
            } else {
                plain.push(oid)
            }
            (wide, plain)
        },
    );
    let table = |(n, columns): (usize, &[u32]), rows, name| Table {
        name: format!("{name}_{n}"),
        columns: columns.to_vec(),
        rows,
    };
    let plain = plain.chunks(COLUMNS).enumerate().map(|chunk| table(chunk, ROWS, "plain"));
    plain.chain(wide.chunks(COLUMNS).enumerate().map(|chunk| table(chunk, CATALOGUE_ROWS, "wide"))).collect()
}

/// A message that arrived, or what it should have been.
#[derive(Debug)]
struct Event {
    action: String,
    old: Json,
    new: Json,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_as_to_jsonb_has_it() {
    let seed = std::env::var("WALHOOK_ORACLE_SEED").map_or(4, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let postgres = Postgres::start();
    postgres.admin_sql(EXTENSIONS).await;
    for setup in [MADE, AUDIT] {
        postgres.sql(setup).await;
    }
    if !postgres.value("SELECT to_regtype('hstore')").await.is_empty() {
        postgres.sql(HSTORES).await;
    }
    let types = Types::of(&postgres).await;
    let unexpected: Vec<_> = types.barren.iter().filter(|name| !BARREN.contains(&name.as_str())).collect();
    assert!(unexpected.is_empty(), "no value is known of types that take some: {unexpected:?}");
    let tables = tables(&types);
    for table in &tables {
        table.create(&postgres, &types).await;
    }
    let receiver = Receiver::start().await;
    let sink = "batch_size = 100\nbatch_bytes = \"4MiB\"";
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), sink)).await;

    let mut rng = Rng::with_seed(seed);
    let client = postgres.client().await;
    for table in &tables {
        for id in 0..table.rows {
            table.live(&client, &types, id, &mut rng).await;
        }
    }
    let count: u32 = postgres.value("SELECT count(*) FROM audit.rows").await.parse().unwrap();
    // The receiver does not count bodies with numbers that its own JSON cannot hold.
    until("everything to be acknowledged", || async {
        let acknowledged = daemon.metrics().await.sum("walhook_sink_acknowledged_messages_total", &[]);
        state(acknowledged == Some(f64::from(count)), (acknowledged, count))
    })
    .await;
    let fallbacks = daemon.wait_shown(&postgres).await.sum("walhook_source_text_fallback_values_total", &[]);
    assert!(daemon.sigterm().await.success());
    assert_eq!(fallbacks, Some(0.0), "every text of every type is understood");

    let mut events = audited(&postgres).await;
    let mut comparison = Comparison::new(&types, &tables);
    for request in receiver.requests() {
        let Json::Object(mut body) = Json::read(std::str::from_utf8(&request.body).unwrap()) else {
            panic!("no object")
        };
        let Some(Json::Array(messages)) = body.remove("data") else { panic!("no data") };
        messages.into_iter().for_each(|message| comparison.compare(message, &mut events));
    }
    assert!(events.is_empty(), "never arrived: {:?}", events.keys());
    comparison.report(&types);
}

/// Table, id and action: each row is inserted, changed and removed once.
type Which = (String, String, String);

async fn audited(postgres: &Postgres) -> BTreeMap<Which, Event> {
    let sql =
        "SELECT name, op, coalesce(new, old)->>'id', coalesce(old, 'null'), coalesce(new, 'null') FROM audit.rows";
    let rows = postgres.rows(sql).await.into_iter().map(|row| row.into_iter().map(Option::unwrap).collect::<Vec<_>>());
    rows.map(|row| {
        let event = Event { action: row[1].clone(), old: Json::read(&row[3]), new: Json::read(&row[4]) };
        ((row[0].clone(), row[2].clone(), row[1].clone()), event)
    })
    .collect()
}

/// What was compared so far.
struct Comparison {
    compared: usize,
    /// Types by table and column.
    columns: BTreeMap<(String, String), u32>,
    /// Values of each type, NULL left out.
    seen: BTreeMap<u32, usize>,
    /// Types of which some value was no string.
    more_than_text: BTreeSet<u32>,
}

impl Comparison {
    fn new(types: &Types, tables: &[Table]) -> Self {
        let of = |table: &Table| {
            let name = table.name.clone();
            let columns = table.columns.clone().into_iter().enumerate();
            columns.map(move |(n, oid)| ((name.clone(), format!("c{n}")), oid))
        };
        let seen = types.all.keys().map(|oid| (*oid, 0)).collect();
        Self { compared: 0, columns: tables.iter().flat_map(of).collect(), seen, more_than_text: BTreeSet::new() }
    }

    fn compare(&mut self, message: Json, events: &mut BTreeMap<Which, Event>) {
        let table = string(message.at("metadata").at("table_name"));
        let (record, action) = (message.at("record"), string(message.at("action")));
        let Json::Number(id) = record.at("id") else { panic!("no id: {record:?}") };
        let which = (table, id.clone(), action);
        let event = events.remove(&which).unwrap_or_else(|| panic!("nobody made {which:?}, or it came twice"));
        let row = if event.action == "delete" { &event.old } else { &event.new };
        self.same(&which, record, row, true);
        match event.action.as_str() {
            "update" => self.changes(&which, message.at("changes"), &event),
            _ => assert_eq!(message.at("changes"), &Json::Null, "{which:?}"),
        }
    }

    /// All members of `ours` as `theirs` has them; `whole` if there may be no others.
    fn same(&mut self, which: &Which, ours: &Json, theirs: &Json, whole: bool) {
        let (Json::Object(ours), Json::Object(theirs)) = (ours, theirs) else {
            panic!("{which:?}: not a row: {ours:?}")
        };
        if whole {
            assert!(ours.keys().eq(theirs.keys()), "{which:?} {:?}", ours.keys());
        }
        for (name, value) in ours {
            let Some(oid) = self.columns.get(&(which.0.clone(), name.clone())).copied() else { continue };
            assert_eq!(Some(value), theirs.get(name), "{which:?}, column {name}, type {oid}");
            self.compared += 1;
            if *value != Json::Null {
                *self.seen.entry(oid).or_default() += 1;
            }
            if !matches!(value, Json::Null | Json::String(_)) {
                self.more_than_text.insert(oid);
            }
        }
    }

    /// What stands in `changes` is the old value, and what does not is the same in both rows.
    fn changes(&mut self, which: &Which, changes: &Json, event: &Event) {
        self.same(which, changes, &event.old, false);
        let (Json::Object(changes), Json::Object(old)) = (changes, &event.old) else {
            panic!("no object: {changes:?}")
        };
        for name in old.keys().filter(|name| !changes.contains_key(*name)) {
            assert_eq!(event.old.at(name), event.new.at(name), "{which:?}: {name} changed and is not named");
        }
        assert!(!changes.contains_key("id"), "{which:?}");
    }

    fn report(&self, types: &Types) {
        let name = |oid: &u32| types.all[oid].name.clone();
        let never: Vec<_> = self.seen.iter().filter(|(_, count)| **count == 0).map(|(oid, _)| name(oid)).collect();
        let made: BTreeSet<_> = types.all.iter().filter(|(_, kind)| !kind.built_in).map(|(oid, _)| *oid).collect();
        let text: Vec<_> = made.difference(&self.more_than_text).map(name).collect();
        println!("{} values of {} types compared", self.compared, self.seen.len());
        println!("built in and passed as text: {}", self.texts(types, true).join(" "));
        println!("not built in and passed as text: {}", text.join(" "));
        println!("never more than NULL: {}", never.join(" "));
        assert!(self.compared > 30_000, "{}", self.compared);
        let mute: Vec<_> = never.iter().filter(|name| !BARREN.contains(&name.as_str())).collect();
        assert!(mute.is_empty(), "no value of these was ever compared: {mute:?}");
    }

    fn texts(&self, types: &Types, built_in: bool) -> Vec<String> {
        let kinds =
            types.all.iter().filter(|(oid, kind)| kind.built_in == built_in && !self.more_than_text.contains(oid));
        kinds.map(|(_, kind)| kind.name.trim_start_matches("pg_catalog.").to_owned()).collect()
    }
}

fn string(json: &Json) -> String {
    let Json::String(text) = json else { panic!("not a string: {json:?}") };
    text.clone()
}
