//! Equality as it follows from the catalogue's words.

use super::facts::KeyFacts;
use super::types::Attribute;
use super::*;

const TEXT: Equality = Equality::Text;
const UNKNOWN: Equality = Equality::Unknown;

fn canonical(form: Form) -> Equality {
    Equality::Canonical(form)
}

fn typed(oid: u32, modifier: i32) -> Typed {
    Typed { oid, modifier, is_deterministic: true }
}

/// A column of the primary key, by the default operator class that came with the server.
fn column(oid: u32, is_deterministic: bool) -> ColumnFacts {
    let key = Some(KeyFacts { place: 1, comparison: Comparison::Equal });
    let typed = Typed { oid, modifier: -1, is_deterministic };
    ColumnFacts { name: "k".to_owned(), typed, type_name: "t".to_owned(), key, altered: None }
}

fn types(all: impl IntoIterator<Item = TypeFacts>) -> HashMap<u32, TypeFacts> {
    all.into_iter().map(|facts| (facts.oid, facts)).collect()
}

fn facts(oid: u32, typtype: u8) -> TypeFacts {
    TypeFacts { oid, typtype, element: 0, base: typed(0, -1), class: None, attributes: Vec::new(), altered: None }
}

fn of(oid: u32, modifier: i32, types: &HashMap<u32, TypeFacts>) -> Equality {
    told((oid, modifier), Some(&column(oid, true)), types)
}

fn told(typed: (u32, i32), column: Option<&ColumnFacts>, types: &HashMap<u32, TypeFacts>) -> Equality {
    of_column(typed, column, types).equality
}

/// Attributes of these types.
fn attributes<const N: usize>(all: [Typed; N]) -> Vec<Attribute> {
    all.into_iter().zip(1..).map(|(typed, number)| Attribute { number, typed }).collect()
}

#[test]
fn pitfall_55_built_in_types_are_as_their_comparison_is() {
    let none = HashMap::new();
    for (oid, modifier, equality) in [
        (23, -1, TEXT),
        (2950, -1, TEXT),
        (25, -1, TEXT),
        (1043, 24, TEXT),
        // numeric, numeric(12,2)
        (1700, -1, canonical(Form::Numeric)),
        (1700, 786_438, TEXT),
        // bpchar, char(5)
        (1042, -1, canonical(Form::Blanks)),
        (1042, 9, TEXT),
        (701, -1, canonical(Form::Float)),
        (1186, -1, canonical(Form::Interval)),
        // timestamptz
        (1184, -1, TEXT),
        // Arrays: int4, numeric, numeric(12,2), bpchar, float8, text
        (1007, -1, TEXT),
        (1231, -1, canonical(Form::Numerics)),
        (1231, 786_438, TEXT),
        (1014, -1, UNKNOWN),
        (1022, -1, canonical(Form::Floats)),
        (1009, -1, TEXT),
        // int8range, numrange, an array of numranges
        (3926, -1, TEXT),
        (3906, -1, canonical(Form::Numerics)),
        (3907, -1, canonical(Form::Numerics)),
        // jsonb, tsvector, an array of jsonb
        (3802, -1, UNKNOWN),
        (3614, -1, UNKNOWN),
        (3807, -1, UNKNOWN),
        // regclass, which is written as the table is named at the time
        (2205, -1, UNKNOWN),
        // Nothing that is known
        (9999, -1, UNKNOWN),
    ] {
        assert_eq!(of(oid, modifier, &none), equality, "type {oid}, modifier {modifier}");
    }
}

#[test]
fn pitfall_55_a_collation_that_is_not_known_to_be_deterministic_tells_nothing_of_strings_and_nothing_else() {
    let none = HashMap::new();
    for (oid, equality) in
        [(25, UNKNOWN), (1043, UNKNOWN), (1042, UNKNOWN), (19, UNKNOWN), (1009, UNKNOWN), (23, TEXT), (1007, TEXT)]
    {
        assert_eq!(told((oid, -1), Some(&column(oid, false)), &none), equality, "{oid}");
        assert_eq!(told((oid, -1), None, &none), equality, "{oid}: the catalogue has no such column any more");
        let newer = column(oid + 1, true);
        assert_eq!(told((oid, -1), Some(&newer), &none), equality, "{oid}: it has another type by now");
    }
}

#[test]
fn pitfall_55_types_of_extensions_and_users_are_what_their_operator_class_says() {
    let own = |class| TypeFacts { class: Some(class), ..facts(20_000, b'b') };
    for (class, equality) in
        [(Class::SameImage, TEXT), (Class::SameImageIfDeterministic, TEXT), (Class::Other, UNKNOWN)]
    {
        assert_eq!(of(20_000, -1, &types([own(class)])), equality, "{class:?}");
    }
    let under = told((20_000, -1), Some(&column(20_000, false)), &types([own(Class::SameImageIfDeterministic)]));
    assert_eq!(under, UNKNOWN);
    assert_eq!(of(20_000, -1, &types([facts(20_000, b'b')])), UNKNOWN, "it has no operator class");
    assert_eq!(of(20_000, -1, &types([facts(20_000, b'e')])), TEXT, "an enum");
    let enum_of_its_own_mind = TypeFacts { class: Some(Class::Other), ..facts(20_000, b'e') };
    assert_eq!(of(20_000, -1, &types([enum_of_its_own_mind])), UNKNOWN);
}

#[test]
fn pitfall_55_domains_arrays_ranges_and_row_types_are_what_they_are_made_of() {
    let all = types([
        TypeFacts { base: typed(1700, 786_438), ..facts(20_001, b'd') },
        TypeFacts { base: typed(1700, -1), ..facts(20_002, b'd') },
        TypeFacts { element: 20_002, ..facts(20_003, b'b') },
        TypeFacts { base: typed(701, -1), ..facts(20_004, b'r') },
        TypeFacts { base: typed(20_004, -1), ..facts(20_005, b'm') },
        TypeFacts { base: Typed { is_deterministic: false, ..typed(25, -1) }, ..facts(20_006, b'r') },
        TypeFacts { attributes: attributes([typed(23, -1), typed(25, -1)]), ..facts(20_007, b'c') },
        TypeFacts { attributes: attributes([typed(23, -1), typed(1700, -1)]), ..facts(20_008, b'c') },
        TypeFacts { base: typed(0, -1), ..facts(20_009, b'r') },
        TypeFacts { element: 20_007, ..facts(20_010, b'b') },
    ]);
    for (oid, equality) in [
        (20_001, TEXT),
        (20_002, canonical(Form::Numeric)),
        (20_003, canonical(Form::Numerics)),
        (20_004, canonical(Form::Floats)),
        (20_005, canonical(Form::Floats)),
        (20_006, UNKNOWN),
        (20_007, TEXT),
        (20_008, UNKNOWN),
        (20_009, UNKNOWN),
        (20_010, TEXT),
        (20_011, UNKNOWN),
    ] {
        assert_eq!(of(oid, -1, &all), equality, "{oid}");
    }
}

#[test]
fn pitfall_55_an_index_that_compares_otherwise_than_the_type_does_tells_nothing() {
    let none = HashMap::new();
    let by = |comparison| {
        let key = Some(KeyFacts { place: 1, comparison });
        told((23, -1), Some(&ColumnFacts { key, ..column(23, true) }), &none)
    };
    assert_eq!(by(Comparison::Equal), TEXT);
    assert_eq!(by(Comparison::Overlap), Equality::Overlap);
    assert_eq!(by(Comparison::Unknown), UNKNOWN);
    assert_eq!(by(Comparison::Own(1007)), UNKNOWN);
    let domain = types([
        TypeFacts { base: typed(20_001, -1), ..facts(20_000, b'd') },
        TypeFacts { class: Some(Class::SameImage), ..facts(20_001, b'b') },
    ]);
    let key = Some(KeyFacts { place: 1, comparison: Comparison::Own(20_001) });
    assert_eq!(told((20_000, -1), Some(&ColumnFacts { key, ..column(20_000, true) }), &domain), TEXT);
}

#[test]
fn pitfall_55_what_was_altered_counts_where_equality_rests_on_it() {
    let none = HashMap::new();
    let altered = |oid, is_deterministic, altered| {
        of_column((oid, -1), Some(&ColumnFacts { altered, ..column(oid, is_deterministic) }), &none).altered
    };
    assert_eq!(altered(25, true, Some(7)), Some(7), "rows of before may have had another collation");
    assert_eq!(altered(1009, true, Some(7)), Some(7));
    assert_eq!(altered(25, true, None), None);
    assert_eq!(altered(25, false, Some(7)), None, "nothing is told of any row");
    for oid in [23, 1700, 2950, 1184, 3802] {
        assert_eq!(altered(oid, true, Some(7)), None, "{oid} is as its type is");
    }
    let pair = TypeFacts { attributes: attributes([typed(23, -1)]), altered: Some(9), ..facts(20_000, b'c') };
    let told = of_column((20_000, -1), Some(&column(20_000, true)), &types([pair]));
    assert_eq!((told.equality, told.altered), (TEXT, Some(9)));
    assert_ne!(told.shape, 0);
}

#[test]
fn circles_chains_and_wide_sharing_end() {
    let circle = types([
        TypeFacts { element: 20_001, ..facts(20_000, b'b') },
        TypeFacts { base: typed(20_000, -1), ..facts(20_001, b'd') },
    ]);
    assert_eq!(of(20_000, -1, &circle), UNKNOWN);
    let chain = types((20_000..30_000).map(|oid| TypeFacts { base: typed(oid + 1, -1), ..facts(oid, b'd') }));
    assert_eq!(of(20_000, -1, &chain), UNKNOWN);
    let pair = |oid| attributes([typed(oid, -1), typed(oid, -1)]);
    let last = TypeFacts { attributes: pair(23), ..facts(20_030, b'c') };
    let shared = (20_000..20_030).map(|oid| TypeFacts { attributes: pair(oid + 1), ..facts(oid, b'c') });
    assert_eq!(of(20_000, -1, &types(shared.chain([last]))), TEXT);
}
