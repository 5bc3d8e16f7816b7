//! Random values of the built-in scalar types, as the text that their input functions read: the odd ones more often than
//! chance would have it.

use fastrand::Rng;

/// A value of the built-in type `name`, or `None` for a type that is not known here.
pub(crate) fn literal(name: &str, rng: &mut Rng) -> Option<String> {
    Some(match name {
        "bool" => pick(rng, &["true", "false"]).to_owned(),
        "int2" => integer(rng, 16),
        "int4" => integer(rng, 32),
        "int8" => integer(rng, 64),
        "oid" | "xid" | "cid" => rng.u32(..).to_string(),
        "xid8" => (rng.u64(..) >> rng.u32(..64)).to_string(),
        "tid" => format!("({},{})", rng.u32(..), rng.u16(..)),
        "numeric" => numeric(rng),
        "float4" => float(rng, |rng| f32::from_bits(rng.u32(..)).to_string()),
        "float8" => float(rng, |rng| f64::from_bits(rng.u64(..)).to_string()),
        "money" => format!("{}.{:02}", rng.i64(-92_233_720_368_547_757..92_233_720_368_547_757), rng.u8(..100)),
        "text" | "varchar" | "bpchar" | "name" | "citext" | "refcursor" => text(rng),
        // Before 16 a letter outside ASCII is cut to its first byte.
        "char" => char::from(rng.u8(1..127)).to_string(),
        "bytea" => format!("\\x{}", hex(rng, 20)),
        "json" | "jsonb" => json(rng, 4),
        "jsonpath" => pick(rng, &["$", "$.a[*] ? (@ > 1.5)", "lax $.\"q \\\" r\".b", "strict $[0 to last]"]).to_owned(),
        "xml" => pick(rng, &["<a b=\"c\">&amp; \u{e9}</a>", "text only", "<!-- c --><a/>", ""]).to_owned(),
        "uuid" => (0..16).map(|_| format!("{:02x}", rng.u8(..))).collect(),
        "date" => date(rng, 5_874_897),
        "time" => time(rng),
        "timetz" => format!("{}{}", time(rng), offset(rng)),
        "timestamp" => timestamp(rng, ""),
        "timestamptz" => {
            let offset = offset(rng);
            timestamp(rng, &offset)
        }
        "interval" => interval(rng),
        "bit" | "varbit" => (0..rng.usize(..70)).map(|_| if rng.bool() { '1' } else { '0' }).collect(),
        "inet" => {
            pick(rng, &["10.0.0.1/8", "::1", "192.168.1.5", "2001:db8::ff00:42:8329/64", "::ffff:1.2.3.4"]).to_owned()
        }
        "cidr" => pick(rng, &["10.0.0.0/8", "::/0", "192.168.1.5/32", "2001:db8::/32"]).to_owned(),
        "macaddr" => hex_pairs(rng, 6),
        "macaddr8" => hex_pairs(rng, 8),
        "point" => point(rng),
        "line" => format!("{{{},{},{}}}", rng.i8(1..), coordinate(rng), coordinate(rng)),
        "lseg" => format!("[{},{}]", point(rng), point(rng)),
        "box" => format!("{},{}", point(rng), point(rng)),
        "path" => format!("[{},{}]", point(rng), point(rng)),
        "polygon" => format!("({},{},{})", point(rng), point(rng), point(rng)),
        "circle" => format!("<{},{}>", point(rng), rng.u16(..)),
        "pg_lsn" => format!("{:X}/{:X}", rng.u32(..), rng.u32(..)),
        "tsvector" => pick(rng, &["a:1 'b c':2A,5 'it''s'", "", "'\\\\':3", "\u{e9}t\u{e9}"]).to_owned(),
        "tsquery" => pick(rng, &["a & !b | 'c d':*", "", "a <-> b", "'\"':AB"]).to_owned(),
        "int2vector" => (0..rng.usize(..5)).map(|_| integer(rng, 16)).collect::<Vec<_>>().join(" "),
        "oidvector" => (0..rng.usize(..5)).map(|_| rng.u32(..).to_string()).collect::<Vec<_>>().join(" "),
        "txid_snapshot" | "pg_snapshot" => pick(rng, &["10:20:10,14,15", "1:1:", "3:9:5"]).to_owned(),
        _ => return None,
    })
}

/// Texts that one type or another reads; what is tried with types that are not known here.
pub(crate) const POOL: &[&str] = &[
    "",
    "0",
    "1",
    "-7",
    "1.5",
    "a",
    "a.b",
    "A B",
    "t",
    "(1,2)",
    "(1,2),(3,4)",
    "{1,2}",
    "{1:1.5}/3",
    "[1,5)",
    "1 .. 2",
    "$.a",
    "1 & 2",
    "a=>1,b=>NULL,\"c \\\"d\\\\\\\\\"=>\"q\\\"\\\\\\\\\"",
    "x=>\"\u{e9} \\n\"",
    "2024-02-29",
    "10.0.0.1",
    "16/B374D848",
    "[1,2,3]",
    "[]",
    "null",
    "978-0-393-04002-9",
    "0-393-04002-X",
    "1436-4522",
    "M-3452-4680-5",
    "979-0-060-11561-5",
    "9780393040029",
    "220356483481",
    "pg_class",
    "int4",
    "pg_catalog.int4",
    "pg_catalog",
    "postgres",
    "postgres=r/postgres",
    "english",
    "simple",
    "now",
    "now()",
    "lower(text)",
    "+(integer,integer)",
    "!~",
    "pg_catalog.+(integer,integer)",
    "\"C\"",
    "default",
    "POINT(1 2)",
    "<a/>",
];

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

fn integer(rng: &mut Rng, bits: u32) -> String {
    let (least, most) = (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits));
    match rng.u8(..6) {
        0 => least.to_string(),
        1 => most.to_string(),
        _ => (rng.i64(least..=most) >> rng.u32(..bits)).to_string(),
    }
}

fn digits(rng: &mut Rng, count: usize) -> String {
    (0..count).map(|_| char::from(b'0' + rng.u8(..10))).collect()
}

fn numeric(rng: &mut Rng) -> String {
    match rng.u8(..12) {
        0 => "NaN".to_owned(),
        1 => pick(rng, &["Infinity", "-Infinity", "-0.00", "0", "1e-30", "1e40", "1.50"]).to_owned(),
        2 => format!("{}.{}", digits(rng, 1000), digits(rng, 300)),
        3 => format!("0.{}{}", "0".repeat(rng.usize(..40)), digits(rng, 5)),
        _ => {
            let (sign, whole, fraction) = (pick(rng, &["", "-"]), rng.usize(1..30), rng.usize(1..20));
            format!("{sign}{}.{}", digits(rng, whole), digits(rng, fraction))
        }
    }
}

fn float(rng: &mut Rng, any: fn(&mut Rng) -> String) -> String {
    let any = any(rng);
    let odd = ["NaN", "Infinity", "-Infinity", "-0", "0.1", "1e15", "1e16", "1e-5", "123456.789", "1e-37"];
    if rng.u8(..4) == 0 || any == "inf" || any == "-inf" { pick(rng, &odd).to_owned() } else { any }
}

/// Letters that something between the table and the receiver might take for more than a letter.
const LETTERS: &[&str] = &[
    "a",
    "Z",
    "0",
    " ",
    "\"",
    "\\",
    "'",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    "=>",
    ":",
    "NULL",
    "null",
    "\n",
    "\r",
    "\t",
    "\u{1}",
    "\u{8}",
    "\u{b}",
    "\u{c}",
    "\u{1b}",
    "\u{1f}",
    "\u{7f}",
    "\u{80}",
    "\u{a0}",
    "\u{e9}",
    "e\u{301}",
    "\u{df}",
    "\u{3a9}",
    "\u{6f22}",
    "\u{5d0}",
    "\u{200d}",
    "\u{202e}",
    "\u{2028}",
    "\u{2029}",
    "\u{feff}",
    "\u{fffd}",
    "\u{ffff}",
    "\u{1f600}",
    "\u{1f468}\u{200d}\u{1f469}",
    "\u{10ffff}",
    "\\u0041",
    "&lt;",
    "</script>",
    "%s",
    "$1",
    "--",
    "/*",
];

/// Any text, now and then one that is kept out of line.
pub(crate) fn text(rng: &mut Rng) -> String {
    match rng.u8(..40) {
        0 => (0..4000).map(|_| char::from(rng.u8(32..127))).collect(),
        1 => pick(rng, &["", "NULL", "null", "t", "infinity", "{}", "()", " ", "\\", "\""]).to_owned(),
        2 => pick(rng, LETTERS).repeat(3000),
        _ => (0..rng.usize(..12)).map(|_| pick(rng, LETTERS)).collect(),
    }
}

fn json(rng: &mut Rng, depth: u8) -> String {
    let space = pick(rng, &["", "", " ", "\n", "\t "]);
    let inner = |rng: &mut Rng| format!("{space}{}{space}", json(rng, depth - 1));
    match rng.u8(..if depth == 0 { 5 } else { 8 }) {
        0 => pick(rng, &["null", "true", "false"]).to_owned(),
        1 => json_number(rng),
        2 => integer(rng, 64),
        3..=4 => json_string(rng),
        5 => format!("[{}]", (0..rng.usize(..4)).map(|_| inner(rng)).collect::<Vec<_>>().join(",")),
        _ => {
            // Names come twice now and then.
            let member = |rng: &mut Rng| {
                format!("{}{space}:{}", pick(rng, &["\"a\"", "\"b\"", "\"\"", "\"\\u0061\""]), inner(rng))
            };
            format!("{{{}}}", (0..rng.usize(..5)).map(|_| member(rng)).collect::<Vec<_>>().join(","))
        }
    }
}

fn json_number(rng: &mut Rng) -> String {
    let odd = [
        "-0",
        "-0.0",
        "1E5",
        "1e-7",
        "2.50",
        "0e10",
        "0.5e3",
        "123456789012345678901234567890.123456789",
        "1e400",
        "-1.5E-400",
    ];
    pick(rng, &odd).to_owned()
}

fn json_string(rng: &mut Rng) -> String {
    if rng.u8(..3) == 0 {
        return pick(rng, &["\"\\u00e9\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\ud83d\\ude00\"", "\"\\u2028\"", "\"{}\""])
            .to_owned();
    }
    serde_json::to_string(&text(rng)).unwrap()
}

fn date(rng: &mut Rng, years: i32) -> String {
    let year = match rng.u8(..8) {
        0 => return pick(rng, &["infinity", "-infinity", "0044-03-15 BC", "4714-11-24 BC", "2024-02-29"]).to_owned(),
        1 => rng.i32(-4712..1),
        2 => rng.i32(10_000..years),
        _ => rng.i32(1..10_000),
    };
    let (month, day) = (rng.u8(1..13), rng.u8(1..29));
    if year > 0 { format!("{year:04}-{month:02}-{day:02}") } else { format!("{:04}-{month:02}-{day:02} BC", 1 - year) }
}

fn time(rng: &mut Rng) -> String {
    if rng.u8(..8) == 0 {
        return pick(rng, &["24:00:00", "00:00:00", "23:59:59.999999"]).to_owned();
    }
    let seconds = format!("{:02}:{:02}:{:02}", rng.u8(..24), rng.u8(..60), rng.u8(..60));
    if rng.bool() { format!("{seconds}.{:06}", rng.u32(..1_000_000)) } else { seconds }
}

fn offset(rng: &mut Rng) -> String {
    pick(rng, &["+00", "+05:30", "-15:59:59", "+15:59:59", "-03", "+14", "-00:00:01"]).to_owned()
}

fn timestamp(rng: &mut Rng, offset: &str) -> String {
    let date = date(rng, 294_000);
    if date.ends_with("infinity") || date.starts_with("4714") {
        return date;
    }
    let (date, era) = date.strip_suffix(" BC").map_or((date.as_str(), ""), |date| (date, " BC"));
    format!("{date} {}{offset}{era}", time(rng))
}

fn interval(rng: &mut Rng) -> String {
    let (years, months, days) = (rng.i16(-999..999), rng.i8(-11..12), rng.i16(-40..40));
    let parts = [
        format!("{years} years"),
        format!("{months} mons"),
        format!("{days} days"),
        format!("{}{}", pick(rng, &["", "-"]), time(rng)),
    ];
    let kept: Vec<String> = parts.into_iter().filter(|_| rng.bool()).collect();
    if kept.is_empty() { "0".to_owned() } else { kept.join(" ") }
}

fn hex(rng: &mut Rng, most: usize) -> String {
    let count = if rng.u8(..30) == 0 { 4000 } else { rng.usize(..most) };
    (0..count).map(|_| format!("{:02x}", rng.u8(..))).collect()
}

fn hex_pairs(rng: &mut Rng, count: usize) -> String {
    (0..count).map(|_| format!("{:02x}", rng.u8(..))).collect::<Vec<_>>().join(":")
}

fn coordinate(rng: &mut Rng) -> String {
    pick(rng, &["0", "-0", "1.5", "-2", "1e300", "0.1", "123456.789"]).to_owned()
}

fn point(rng: &mut Rng) -> String {
    let odd = rng.u8(..10) == 0;
    let second = if odd { pick(rng, &["NaN", "Infinity", "-Infinity"]).to_owned() } else { coordinate(rng) };
    format!("({},{second})", coordinate(rng))
}
