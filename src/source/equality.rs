//! When two values of a column are one value to Postgres, decided from the catalogue: by the column's type and collation, and
//! for a column of the primary key by the operator class of the key's index.
//!
//! An operator class says with its support function 4 whether equal values have the same image (manual page "B-Tree
//! Support Functions", `equalimage`); then they have the same text too. It is not the whole truth: bpchar has that function and
//! counts no blanks at the end, and equal regclasses have different texts once the table behind them is renamed. So what is
//! known of built-in types stands in a table here, and the function's word is taken for types of extensions and users.
//!
//! What the catalogue does not know (any more) is [`Equality::Unknown`], the safe side.

mod asking;
pub(crate) mod facts;
pub(crate) mod shape;
#[cfg(test)]
mod tests;
pub(crate) mod types;

use std::collections::HashMap;

use self::facts::{ColumnFacts, Comparison};
use self::types::{Attribute, Class, TypeFacts};
use crate::change::{Equality, Form};
use crate::record::array_element;

/// Types within types that are followed.
const DEPTH_MAX: usize = 32;

/// A type as a column, an attribute or an element has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Typed {
    pub(crate) oid: u32,
    /// `atttypmod`, or -1.
    pub(crate) modifier: i32,
    /// Its collation is known, and equal texts are the same bytes under it; true of a type without a collation.
    pub(crate) is_deterministic: bool,
}

/// What a column's texts say about equal values, and what that rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) equality: Equality,
    /// See [`shape::Shape::hash`].
    pub(crate) shape: u64,
    /// The transaction that altered last what this rests on: of rows of before nothing is told. `None` if it is as it was made.
    pub(crate) altered: Option<u32>,
}

/// What is told of a column of this type, as the rows have it. `column` is what the catalogue has under its name.
pub(crate) fn of_column(
    (oid, modifier): (u32, i32),
    column: Option<&ColumnFacts>,
    types: &HashMap<u32, TypeFacts>,
) -> Told {
    // A catalogue that has another type there is newer than the rows.
    let column = column.filter(|column| column.typed.oid == oid);
    let told =
        |is_deterministic| Walk { types, known: HashMap::new() }.equality(Typed { oid, modifier, is_deterministic }, 0);
    let by_type = told(column.is_some_and(|column| column.typed.is_deterministic));
    let equality = match column.and_then(|column| column.key.as_ref()).map(|key| key.comparison) {
        Some(Comparison::Overlap) => Equality::Overlap,
        Some(Comparison::Unknown) => Equality::Unknown,
        Some(Comparison::Own(made_for)) if made_for != base(oid, types) => Equality::Unknown,
        Some(Comparison::Own(_) | Comparison::Equal) | None => by_type,
    };
    let shape = shape::of_type(oid, types);
    // What the type alone tells is told of all rows that have it.
    let of_column = column.and_then(|column| column.altered).filter(|_| by_type != told(false));
    Told { equality, shape: shape.hash, altered: shape::later(of_column, shape.altered) }
}

/// What a domain is made from in the end.
fn base(oid: u32, types: &HashMap<u32, TypeFacts>) -> u32 {
    let mut oid = oid;
    for _ in 0..DEPTH_MAX {
        match types.get(&oid) {
            Some(facts) if facts.typtype == b'd' => oid = facts.base.oid,
            Some(_) | None => break,
        }
    }
    oid
}

/// Of the types that every server has under the same OID, as far as they are known to be in keys (`pg_opclass.dat` of the
/// Postgres source). Collations of database and column are those of the texts.
fn built_in(typed: Typed) -> Option<Equality> {
    let text_if = |is_so: bool| if is_so { Equality::Text } else { Equality::Unknown };
    let text_or = |is_text: bool, form| if is_text { Equality::Text } else { Equality::Canonical(form) };
    let has_modifier = typed.modifier >= 0;
    match typed.oid {
        // bool, bytea, char, int8, int2, int2vector, int4, oid, tid, xid, cid, oidvector
        16..=18 | 20..=23 | 26..=30 => Some(Equality::Text),
        // cidr, macaddr8, money, macaddr, inet, date, time, timestamp, timestamptz, timetz, bit, varbit
        650 | 774 | 790 | 829 | 869 | 1082 | 1083 | 1114 | 1184 | 1266 | 1560 | 1562 => Some(Equality::Text),
        // uuid, pg_lsn, xid8
        2950 | 3220 | 5069 => Some(Equality::Text),
        // Ranges and multiranges of int4, timestamp, timestamptz, date and int8
        3904 | 3908 | 3910 | 3912 | 3926 | 4451 | 4533..=4536 => Some(Equality::Text),
        // name, text, varchar
        19 | 25 | 1043 => Some(text_if(typed.is_deterministic)),
        // bpchar: of a fixed length all values are filled up to it
        1042 if !typed.is_deterministic => Some(Equality::Unknown),
        1042 => Some(text_or(has_modifier, Form::Blanks)),
        // numeric: of a fixed scale all values have as many digits behind the point
        1700 => Some(text_or(has_modifier, Form::Numeric)),
        700 | 701 => Some(Equality::Canonical(Form::Float)),
        1186 => Some(Equality::Canonical(Form::Interval)),
        // numrange, nummultirange
        3906 | 4532 => Some(Equality::Canonical(Form::Numerics)),
        _ => None,
    }
}

/// One walk through the types. Each is looked at once, so that the work is linear however types share others.
struct Walk<'a> {
    types: &'a HashMap<u32, TypeFacts>,
    known: HashMap<Typed, Equality>,
}

impl Walk<'_> {
    fn equality(&mut self, typed: Typed, depth: usize) -> Equality {
        if let Some(equality) = built_in(typed).or_else(|| self.known.get(&typed).copied()) {
            return equality;
        }
        // Until it is known nothing is said of it, which ends a circle.
        self.known.insert(typed, Equality::Unknown);
        let types = self.types;
        let equality = match (array_element(typed.oid), types.get(&typed.oid)) {
            _ if depth >= DEPTH_MAX => Equality::Unknown,
            (Some(oid), _) => self.equality(Typed { oid, ..typed }, depth + 1).within(),
            (None, Some(facts)) => self.of_facts(typed, facts, depth + 1),
            (None, None) => Equality::Unknown,
        };
        self.known.insert(typed, equality);
        equality
    }

    fn of_facts(&mut self, typed: Typed, facts: &TypeFacts, depth: usize) -> Equality {
        match (facts.class, facts.typtype) {
            (Some(Class::SameImage), _) => Equality::Text,
            (Some(Class::SameImageIfDeterministic), _) if typed.is_deterministic => Equality::Text,
            (Some(Class::SameImageIfDeterministic | Class::Other), _) => Equality::Unknown,
            (None, b'e') => Equality::Text,
            // The domain's modifier counts, its columns have none.
            (None, b'd') => {
                let Typed { oid, modifier, .. } = facts.base;
                self.equality(Typed { oid, modifier, ..typed }, depth)
            }
            (None, b'b') if facts.element != 0 => self.equality(Typed { oid: facts.element, ..typed }, depth).within(),
            (None, b'r' | b'm') => self.equality(facts.base, depth).within(),
            (None, b'c') => {
                let is_text = |one: &Attribute| self.equality(one.typed, depth) == Equality::Text;
                if facts.attributes.iter().all(is_text) { Equality::Text } else { Equality::Unknown }
            }
            (None, _) => Equality::Unknown,
        }
    }
}
