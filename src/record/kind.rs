//! How a column's text becomes JSON, and how that follows from the catalogue.

use std::collections::HashMap;
use std::sync::Arc;

use super::builtin;
use super::keys::json_key;
use super::size::BYTES_A_VALUE;

/// How a column's text becomes JSON. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON string of the text: text, enums, ranges, dates, intervals, bytea, oid, and whatever is not known.
    Text,
    /// `true` or `false`.
    Bool,
    /// int2 and int4.
    Int,
    /// int8; a string where the sink asks for it.
    BigInt,
    /// float4 and float8; NaN and infinities are strings.
    Float,
    /// numeric; NaN and infinities are strings, and everything is where the sink asks for it.
    Numeric,
    /// json and jsonb, byte for byte.
    Json,
    /// timestamp, with a `T` between date and time.
    Timestamp,
    /// timestamptz, likewise, with minutes in its offset.
    TimestampTz,
    /// int2vector, `1 2 3`.
    IntVector,
    /// oidvector; its elements are strings, as every oid.
    OidVector,
    /// An array.
    Array(Arc<ArrayKind>),
    /// A row type: a JSON object.
    Composite(Arc<CompositeKind>),
    /// hstore: a JSON object of strings and nulls, as its cast to json gives.
    Hstore,
}

/// What an array is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayKind {
    /// Its elements.
    pub element: Kind,
    /// Between elements: `,`, or `;` for box.
    pub delimiter: u8,
}

impl ArrayKind {
    /// Ready to be put into [`Kind::Array`].
    pub fn new(element: Kind, delimiter: u8) -> Arc<Self> {
        Arc::new(Self { element, delimiter })
    }
}

/// What a row type is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompositeKind {
    /// Its attributes in order, dropped ones left out.
    pub(super) fields: Vec<Field>,
    /// Bytes of all member names that one value may spell out, nested ones included. Known from the start, because types
    /// that share others have more ways through them than one could walk.
    pub(super) name_bytes: usize,
}

impl CompositeKind {
    /// Ready to be put into [`Kind::Composite`].
    pub fn new(fields: Vec<Field>) -> Arc<Self> {
        let bytes = |field: &Field| field.kind.member_name_bytes().saturating_add(field.key.len() + BYTES_A_VALUE);
        let name_bytes = fields.iter().map(bytes).fold(0, usize::saturating_add);
        Arc::new(Self { fields, name_bytes })
    }
}

/// One attribute of a [`CompositeKind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// `"name":`, escaped.
    pub(super) key: Box<[u8]>,
    /// Its kind.
    pub(super) kind: Kind,
}

impl Field {
    /// The attribute `name`.
    pub fn new(name: &str, kind: Kind) -> Self {
        Self { key: json_key(name), kind }
    }
}

/// What `pg_type` says of a type, as far as rendering needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeFacts {
    /// `pg_type.oid`.
    pub oid: u32,
    /// `typname`.
    pub name: String,
    /// Its schema.
    pub namespace: String,
    /// `typtype`: `b` base, `c` composite, `d` domain, `e` enum, `r` range, `m` multirange, `p` pseudo.
    pub typtype: u8,
    /// `typelem` of a true array (subscripted as arrays are), else 0.
    pub elem: u32,
    /// `typbasetype` of a domain, else 0.
    pub base: u32,
    /// `typrelid` of a row type, else 0.
    pub relid: u32,
    /// `typdelim`; an array has that of its elements.
    pub delimiter: u8,
    /// Name and type of a row type's attributes in order, dropped ones left out.
    pub attributes: Vec<(String, u32)>,
}

/// Types within types that are followed; what lies deeper is text.
const DEPTH_MAX: usize = 32;

impl Kind {
    /// The kind of type `oid`. Built-in types need no facts; a type that has none, or that holds itself, is text.
    pub fn resolve(oid: u32, facts: &HashMap<u32, TypeFacts>) -> Self {
        Resolver { facts, known: HashMap::new() }.kind(oid, 0)
    }

    /// Whether the catalogue has to be asked about type `oid`.
    pub fn needs_facts(oid: u32) -> bool {
        builtin::kind(oid).is_none()
    }

    /// Whether values hold attributes of a row type.
    pub fn holds_row_type(&self) -> bool {
        match self {
            Self::Composite(_) => true,
            Self::Array(array) => array.element.holds_row_type(),
            Self::Text | Self::Bool | Self::Int | Self::BigInt | Self::Float | Self::Numeric | Self::Json => false,
            Self::Timestamp | Self::TimestampTz | Self::IntVector | Self::OidVector | Self::Hstore => false,
        }
    }
}

/// One walk through the facts. Each type is looked at once, so that the work is linear however types share others.
struct Resolver<'a> {
    facts: &'a HashMap<u32, TypeFacts>,
    known: HashMap<u32, Kind>,
}

impl Resolver<'_> {
    fn kind(&mut self, oid: u32, depth: usize) -> Kind {
        if let Some(kind) = builtin::kind(oid).or_else(|| self.known.get(&oid).cloned()) {
            return kind;
        }
        // Until it is known a type is text, which ends a circle.
        self.known.insert(oid, Kind::Text);
        let facts = self.facts;
        let kind = match facts.get(&oid) {
            Some(facts) if depth < DEPTH_MAX => self.kind_of(facts, depth + 1),
            Some(_) | None => Kind::Text,
        };
        self.known.insert(oid, kind.clone());
        kind
    }

    fn kind_of(&mut self, facts: &TypeFacts, depth: usize) -> Kind {
        match facts.typtype {
            b'd' => self.kind(facts.base, depth),
            b'c' => {
                let field = |(name, oid): &(String, u32)| Field::new(name, self.kind(*oid, depth));
                Kind::Composite(CompositeKind::new(facts.attributes.iter().map(field).collect()))
            }
            b'b' if facts.elem != 0 => Kind::Array(ArrayKind::new(self.kind(facts.elem, depth), facts.delimiter)),
            b'b' if facts.name == "hstore" => Kind::Hstore,
            _ => Kind::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::size::value_bytes_max;
    use super::*;

    fn facts(oid: u32, typtype: u8) -> TypeFacts {
        let (name, namespace) = (format!("t{oid}"), "public".to_owned());
        TypeFacts { oid, name, namespace, typtype, elem: 0, base: 0, relid: 0, delimiter: b',', attributes: Vec::new() }
    }

    fn table(all: impl IntoIterator<Item = TypeFacts>) -> HashMap<u32, TypeFacts> {
        all.into_iter().map(|facts| (facts.oid, facts)).collect()
    }

    #[test]
    fn domains_arrays_and_composites_are_followed() {
        let facts = table([
            TypeFacts { base: 20, ..facts(20_000, b'd') },
            TypeFacts { elem: 20_000, ..facts(20_001, b'b') },
            TypeFacts { attributes: vec![("a".into(), 20_001), ("b".into(), 25)], ..facts(20_002, b'c') },
            facts(20_003, b'e'),
        ]);
        let array = Kind::Array(ArrayKind::new(Kind::BigInt, b','));
        assert_eq!(Kind::resolve(20_000, &facts), Kind::BigInt);
        assert_eq!(Kind::resolve(20_001, &facts), array);
        let fields = vec![Field::new("a", array), Field::new("b", Kind::Text)];
        assert_eq!(Kind::resolve(20_002, &facts), Kind::Composite(CompositeKind::new(fields)));
        assert_eq!(Kind::resolve(20_003, &facts), Kind::Text);
        assert_eq!(Kind::resolve(20_004, &facts), Kind::Text);
    }

    #[test]
    fn circles_chains_and_wide_sharing_end() {
        let circle = table([
            TypeFacts { elem: 20_001, ..facts(20_000, b'b') },
            TypeFacts { base: 20_000, ..facts(20_001, b'd') },
        ]);
        assert!(matches!(Kind::resolve(20_000, &circle), Kind::Array(_)));
        let chain = table((20_000..30_000).map(|oid| TypeFacts { base: oid + 1, ..facts(oid, b'd') }));
        assert_eq!(Kind::resolve(20_000, &chain), Kind::Text);
        let pair = |oid| vec![("a".to_owned(), oid), ("b".to_owned(), oid)];
        let shared = table((20_000..20_030).map(|oid| TypeFacts { attributes: pair(oid + 1), ..facts(oid, b'c') }));
        let kind = Kind::resolve(20_000, &shared);
        assert!(matches!(kind, Kind::Composite(_)));
        assert!(value_bytes_max(&kind, b"(,)") > 1 << 30, "two names on each of 30 levels, and at once");
    }
}
