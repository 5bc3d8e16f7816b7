//! The kinds of the types that every server has under the same OID (`pg_type.dat` of the Postgres source).

use super::kind::{ArrayKind, Kind};

/// The kind of a type that needs no catalogue, or `None` for every other.
pub(super) fn kind(oid: u32) -> Option<Kind> {
    scalar(oid).or_else(|| {
        let delimiter = if oid == BOX_ARRAY { b';' } else { b',' };
        Some(Kind::Array(ArrayKind::new(scalar(array_element(oid)?)?, delimiter)))
    })
}

/// The type of the elements, if the type is an array that every server has.
pub fn array_element(oid: u32) -> Option<u32> {
    let place = ARRAYS.binary_search_by_key(&oid, |(array, _)| *array).ok()?;
    ARRAYS.get(place).map(|(_, element)| *element)
}

fn scalar(oid: u32) -> Option<Kind> {
    match oid {
        16 => Some(Kind::Bool),
        21 | 23 => Some(Kind::Int),
        20 => Some(Kind::BigInt),
        700 | 701 => Some(Kind::Float),
        1700 => Some(Kind::Numeric),
        114 | 3802 => Some(Kind::Json),
        1114 => Some(Kind::Timestamp),
        1184 => Some(Kind::TimestampTz),
        22 => Some(Kind::IntVector),
        30 => Some(Kind::OidVector),
        _ => TEXTS.binary_search(&oid).is_ok().then_some(Kind::Text),
    }
}

const BOX_ARRAY: u32 = 1020;

/// Types that `to_jsonb` passes as a string of their text, in order.
const TEXTS: [u32; 69] = [
    17, 18, 19, 24, 25, 26, 27, 28, 29, 142, 194, 600, 601, 602, 603, 604, 628, 650, 718, 774, 790, 829, 869, 1033,
    1042, 1043, 1082, 1083, 1186, 1266, 1560, 1562, 1790, 2202, 2203, 2204, 2205, 2206, 2950, 2970, 3220, 3361, 3402,
    3614, 3615, 3642, 3734, 3769, 3904, 3906, 3908, 3910, 3912, 3926, 4072, 4089, 4096, 4191, 4451, 4532, 4533, 4534,
    4535, 4536, 4600, 4601, 5017, 5038, 5069,
];

/// Array types with the type of their elements, in the order of the array's OID.
const ARRAYS: [(u32, u32); 76] = [
    (143, 142),
    (199, 114),
    (271, 5069),
    (629, 628),
    (651, 650),
    (719, 718),
    (775, 774),
    (791, 790),
    (1000, 16),
    (1001, 17),
    (1002, 18),
    (1003, 19),
    (1005, 21),
    (1006, 22),
    (1007, 23),
    (1008, 24),
    (1009, 25),
    (1010, 27),
    (1011, 28),
    (1012, 29),
    (1013, 30),
    (1014, 1042),
    (1015, 1043),
    (1016, 20),
    (1017, 600),
    (1018, 601),
    (1019, 602),
    (1020, 603),
    (1021, 700),
    (1022, 701),
    (1027, 604),
    (1028, 26),
    (1034, 1033),
    (1040, 829),
    (1041, 869),
    (1115, 1114),
    (1182, 1082),
    (1183, 1083),
    (1185, 1184),
    (1187, 1186),
    (1231, 1700),
    (1270, 1266),
    (1561, 1560),
    (1563, 1562),
    (2201, 1790),
    (2207, 2202),
    (2208, 2203),
    (2209, 2204),
    (2210, 2205),
    (2211, 2206),
    (2949, 2970),
    (2951, 2950),
    (3221, 3220),
    (3643, 3614),
    (3644, 3642),
    (3645, 3615),
    (3735, 3734),
    (3770, 3769),
    (3807, 3802),
    (3905, 3904),
    (3907, 3906),
    (3909, 3908),
    (3911, 3910),
    (3913, 3912),
    (3927, 3926),
    (4073, 4072),
    (4090, 4089),
    (4097, 4096),
    (4192, 4191),
    (5039, 5038),
    (6150, 4451),
    (6151, 4532),
    (6152, 4533),
    (6153, 4534),
    (6155, 4535),
    (6157, 4536),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted_and_every_element_is_known() {
        assert!(TEXTS.is_sorted());
        assert!(ARRAYS.is_sorted());
        for (array, element) in ARRAYS {
            assert!(scalar(element).is_some(), "{element}");
            assert!(kind(array).is_some(), "{array}");
        }
        assert_eq!(kind(71), None, "row types of the catalogue need facts");
        assert_eq!(kind(16_384), None);
    }
}
