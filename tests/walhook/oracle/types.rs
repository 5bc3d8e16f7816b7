//! The types of a server that a column can have, and SQL expressions for random values of them.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::literals::{POOL, literal};
use crate::postgres::Postgres;

/// A type, as the catalogue has it.
#[derive(Clone, Debug)]
pub(crate) struct Type {
    /// Qualified and quoted.
    pub(crate) name: String,
    /// `typname`.
    pub(crate) bare: String,
    /// `typtype`, with `a` for arrays.
    pub(crate) sort: char,
    /// Whether it came with the server.
    pub(crate) built_in: bool,
    /// Row type of a table or view of the catalogue.
    pub(crate) of_catalogue: bool,
    /// Element, base, subtype, or a multirange's range; 0 if none.
    pub(crate) inner: u32,
    /// Of a row type.
    pub(crate) attributes: Vec<u32>,
    /// What an enum or a type that is not known takes.
    choices: Vec<String>,
}

/// The types of one server.
#[derive(Debug)]
pub(crate) struct Types {
    pub(crate) all: BTreeMap<u32, Type>,
    /// Names of those of which no value can be made.
    pub(crate) barren: BTreeSet<String>,
}

/// Whether a text is a value of a type, and whether a table can have a column of one.
const PROBES: &str = "CREATE SCHEMA oracle;
    CREATE FUNCTION oracle.reads(text, text) RETURNS bool LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE format('SELECT to_jsonb(%L::%s)', $1, $2); RETURN true; EXCEPTION WHEN others THEN RETURN false; END $$;
    CREATE FUNCTION oracle.stores(text) RETURNS bool LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE format('CREATE TABLE oracle.probe (c %s)', $1); DROP TABLE oracle.probe; RETURN true;
            EXCEPTION WHEN others THEN RETURN false; END $$;";

const CATALOGUE: &str = "SELECT t.oid, quote_ident(n.nspname) || '.' || quote_ident(t.typname), t.typname,
        CASE WHEN t.typcategory = 'A' AND t.oid NOT IN (22, 30) AND t.typtype = 'b' THEN 'a' ELSE t.typtype END,
        t.oid < 16384, t.typtype = 'c' AND t.oid < 16384,
        coalesce(r.rngsubtype, m.rngtypid, nullif(t.typbasetype, 0),
            CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc THEN t.typelem END, 0),
        (SELECT string_agg(a.atttypid::text, ' ' ORDER BY a.attnum) FROM pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
        LEFT JOIN pg_range r ON r.rngtypid = t.oid LEFT JOIN pg_range m ON m.rngmultitypid = t.oid
    WHERE t.typtype <> 'p' AND t.typisdefined AND n.nspname NOT IN ('pg_toast', 'oracle') AND oracle.stores(format('%I.%I', n.nspname, t.typname))
    ORDER BY t.oid";

impl Types {
    /// All that can be stored.
    pub(crate) async fn of(postgres: &Postgres) -> Self {
        postgres.sql(PROBES).await;
        let mut all = BTreeMap::new();
        for row in postgres.rows(CATALOGUE).await {
            let at = |place: usize| row[place].clone().unwrap_or_default();
            let of_catalogue = at(5) == "t";
            let kind = Type {
                name: at(1),
                bare: at(2),
                sort: at(3).chars().next().unwrap(),
                built_in: at(4) == "t",
                of_catalogue,
                inner: at(6).parse().unwrap(),
                attributes: at(7).split(' ').filter(|oid| !oid.is_empty()).map(|oid| oid.parse().unwrap()).collect(),
                choices: Vec::new(),
            };
            all.insert(at(0).parse().unwrap(), kind);
        }
        let mut types = Self { all, barren: BTreeSet::new() };
        types.find_choices(postgres).await;
        types
    }

    /// Labels of enums, and what types that are not known here read.
    async fn find_choices(&mut self, postgres: &Postgres) {
        for row in postgres.rows("SELECT enumtypid, enumlabel FROM pg_enum ORDER BY enumtypid, enumsortorder").await {
            let oid: u32 = row[0].as_ref().unwrap().parse().unwrap();
            if let Some(kind) = self.all.get_mut(&oid) {
                kind.choices.extend(row[1].clone());
            }
        }
        let pool = POOL.iter().map(|text| format!("({})", quoted(text))).collect::<Vec<_>>().join(", ");
        let known = &mut Rng::with_seed(0);
        for kind in self
            .all
            .values_mut()
            .filter(|kind| kind.sort == 'b' && (literal(&kind.bare, known).is_none() || kind.bare == "xml"))
        {
            let sql = format!(
                "SELECT text FROM (VALUES {pool}) pool (text) WHERE oracle.reads(text, {})",
                quoted(&kind.name)
            );
            kind.choices = postgres.rows(&sql).await.into_iter().flatten().flatten().collect();
            if kind.choices.is_empty() {
                self.barren.insert(kind.name.clone());
            }
        }
    }

    /// An expression for a random value, sometimes NULL.
    pub(crate) fn value(&self, oid: u32, rng: &mut Rng) -> String {
        if rng.u8(..10) == 0 { "NULL".to_owned() } else { self.some(oid, rng, 0) }
    }

    fn maybe(&self, oid: u32, rng: &mut Rng, depth: u8) -> String {
        let name = self.all.get(&oid).map_or("text", |kind| &kind.name);
        if rng.u8(..6) == 0 || depth > 5 { format!("NULL::{name}") } else { self.some(oid, rng, depth) }
    }

    fn some(&self, oid: u32, rng: &mut Rng, depth: u8) -> String {
        let Some(kind) = self.all.get(&oid) else { return "NULL".to_owned() };
        let (name, inner) = (&kind.name, kind.inner);
        match kind.sort {
            'a' => self.array(kind, rng, depth + 1),
            'd' => match kind.bare.as_str() {
                "cardinal_number" => format!("{}::{name}", rng.u16(..)),
                "price" => format!("{}.5::{name}", rng.i32(..)),
                "yes_or_no" => format!("'YES'::{name}"),
                "earth" => format!("'(6378168, 0, 0)'::{name}"),
                _ => format!("({})::{name}", self.some(inner, rng, depth + 1)),
            },
            'c' => {
                let fields: Vec<_> = kind.attributes.iter().map(|oid| self.maybe(*oid, rng, depth + 1)).collect();
                format!("ROW({})::{name}", fields.join(", "))
            }
            'r' => self.range(kind, rng),
            'm' if rng.u8(..4) == 0 => format!("'{{}}'::{name}"),
            'm' => {
                let range = &self.all[&inner];
                format!("{name}({}, {})", self.range(range, rng), self.range(range, rng))
            }
            _ if !kind.choices.is_empty() => {
                format!("{}::{name}", quoted(&kind.choices[rng.usize(..kind.choices.len())]))
            }
            _ => match literal(&kind.bare, rng).filter(|_| !self.barren.contains(name)) {
                Some(text) => format!("{}::{name}", quoted(&text)),
                None => "NULL".to_owned(),
            },
        }
    }

    /// Empty, flat with a NULL, of two dimensions, with bounds of its own.
    fn array(&self, kind: &Type, rng: &mut Rng, depth: u8) -> String {
        let name = &kind.name;
        let mut element = || self.maybe(kind.inner, rng, depth);
        let (one, two, three) = (element(), element(), element());
        match rng.u8(..5) {
            0 => format!("'{{}}'::{name}"),
            1 => format!("ARRAY[{one}, NULL, {two}]::{name}"),
            2 => format!("ARRAY[ARRAY[{one}, {two}]::{name}, ARRAY[NULL, {three}]::{name}]::{name}"),
            3 => format!("('[-1:0]=' || ARRAY[{one}, {two}]::{name}::text)::{name}"),
            _ => format!("ARRAY[{one}]::{name}"),
        }
    }

    /// The upper bound of a range of days or integers is left out: its successor may not exist.
    fn range(&self, kind: &Type, rng: &mut Rng) -> String {
        let name = &kind.name;
        let (one, other) = (self.some(kind.inner, rng, 4), self.some(kind.inner, rng, 4));
        match rng.u8(..6) {
            0 => format!("'empty'::{name}"),
            1 => format!("{name}({one}, NULL)"),
            2 => format!("{name}(NULL, NULL)"),
            _ => format!("{name}(LEAST({one}, {other}), GREATEST({one}, {other}), '[)')"),
        }
    }
}

/// A string constant.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
