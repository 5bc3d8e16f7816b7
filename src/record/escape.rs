//! JSON strings from bytes (RFC 8259, section 7).

use std::str;

/// Appends `bytes` as a JSON string; what is not UTF-8 becomes U+FFFD.
pub(super) fn append_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    append_escaped(out, bytes);
    out.push(b'"');
}

/// The same without the quotes.
fn append_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
    } else if str::from_utf8(bytes).is_ok() {
        append_runs(out, bytes);
    } else {
        for chunk in bytes.utf8_chunks() {
            append_runs(out, chunk.valid().as_bytes());
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{FFFD}".as_bytes());
            }
        }
    }
}

/// Whether all of it is ASCII that a JSON string holds as it is. Looks at eight bytes at a time: in a byte of `found` the top
/// bit is set if that byte, or one below it in the word, needs care.
fn is_plain(bytes: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| {
        let word = u64::from_le_bytes(*word);
        let (quote, backslash) = (word ^ (ONES * 0x22), word ^ (ONES * 0x5C));
        let control = word.wrapping_sub(ONES * 0x20);
        let found = word | control | quote.wrapping_sub(ONES) | backslash.wrapping_sub(ONES);
        found & TOPS == 0
    }) && rest.iter().all(|byte| !needs_escape(*byte) && byte.is_ascii())
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Appends valid UTF-8, copying the runs between bytes that must be escaped.
fn append_runs(out: &mut Vec<u8>, mut rest: &[u8]) {
    while let Some(place) = rest.iter().position(|byte| needs_escape(*byte)) {
        let (run, after) = rest.split_at(place);
        out.extend_from_slice(run);
        let Some((byte, after)) = after.split_first() else { return };
        append_escape(out, *byte);
        rest = after;
    }
    out.extend_from_slice(rest);
}

fn append_escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        0x09 => b't',
        0x0A => b'n',
        0x0C => b'f',
        0x0D => b'r',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend([byte >> 4, byte & 0xF].map(hex_digit));
            return;
        }
    };
    out.extend([b'\\', short]);
}

/// The lower-case hexadecimal digit of a number below 16.
pub(super) fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + (nibble & 0xF) - 10 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        append_string(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_byte_alone_and_after_seven_others_is_read_back() {
        for byte in 0..=255_u8 {
            for text in [vec![byte], [b"1234567".as_slice(), &[byte], b"abcdefgh"].concat()] {
                let back: String = serde_json::from_str(&string(&text)).unwrap();
                assert_eq!(back, String::from_utf8_lossy(&text));
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_back_as_their_lossy_text(bytes: Vec<u8>) {
            let back: String = serde_json::from_str(&string(&bytes)).unwrap();
            prop_assert_eq!(back, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_text_is_read_back(text in ".*") {
            let back: String = serde_json::from_str(&string(text.as_bytes())).unwrap();
            prop_assert_eq!(back, text);
        }
    }
}
