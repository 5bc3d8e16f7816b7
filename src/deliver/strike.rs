//! Pure: what a request carries to prove whose it is does not stay in what is kept of its answer. Many an endpoint sends back
//! what it got, and the log of deliveries is read by more people than the configuration.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};
use memchr::memmem;

/// A value shorter than this stands in any text by chance.
const BYTES_MIN: usize = 4;
/// In the place of a value; no longer than any.
const STRUCK: &[u8] = b"***";

/// The values of a sink's own headers, and the parts of them that are secret.
#[derive(Clone, Debug, Default)]
pub(super) struct Strike {
    needles: Vec<Vec<u8>>,
}

impl Strike {
    /// Of the headers that the configuration sets.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut needles = Vec::new();
        headers.values().for_each(|value| add(&mut needles, value.as_bytes()));
        Self::sorted(needles)
    }

    /// And of a signature.
    pub(super) fn and(&self, signature: Option<&HeaderValue>) -> Self {
        let Some(signature) = signature else { return self.clone() };
        let mut needles = self.needles.clone();
        for part in signature.as_bytes().split(|byte| *byte == b' ' || *byte == b',') {
            add(&mut needles, part);
        }
        Self::sorted(needles)
    }

    /// The longest first, so that one does not leave the rest of another that it is a part of.
    fn sorted(mut needles: Vec<Vec<u8>>) -> Self {
        needles.sort_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        needles.dedup();
        Self { needles }
    }

    /// Without them. Of one that is cut off at the end nothing is left either.
    pub(super) fn out_of_bytes(&self, mut bytes: Vec<u8>, is_cut: bool) -> Vec<u8> {
        for needle in &self.needles {
            if memmem::find(&bytes, needle).is_some() {
                bytes = replaced(&bytes, needle);
            }
        }
        if is_cut {
            let rest = self.needles.iter().map(|needle| shared(&bytes, needle)).max().unwrap_or(0);
            bytes.truncate(bytes.len() - rest);
        }
        bytes
    }

    /// The same of a text.
    pub(super) fn out_of_text(&self, text: String) -> String {
        if self.needles.is_empty() {
            return text;
        }
        // A needle begins and ends at a character's border, since a header's value is no piece of one.
        String::from_utf8_lossy(&self.out_of_bytes(text.into_bytes(), false)).into_owned()
    }
}

/// A value, what follows its scheme (`Bearer …`), the password in `Basic …`, and each as JSON writes it.
fn add(needles: &mut Vec<Vec<u8>>, value: &[u8]) {
    let mut values = vec![value.to_vec()];
    if let Some(at) = value.iter().position(|byte| *byte == b' ') {
        let (scheme, rest) = (value.get(..at).unwrap_or_default(), value.get(at + 1..).unwrap_or_default());
        values.push(rest.to_vec());
        let is_basic = scheme.eq_ignore_ascii_case(b"basic");
        if let Some(plain) = is_basic.then(|| STANDARD.decode(rest).ok()).flatten() {
            values.extend(
                plain.iter().position(|byte| *byte == b':').map(|at| plain.get(at + 1..).unwrap_or_default().to_vec()),
            );
            values.push(plain);
        }
    }
    for value in values {
        let in_json = std::str::from_utf8(&value).ok().and_then(|text| serde_json::to_string(text).ok());
        let in_json = in_json.map(|text| text.trim_matches('"').to_owned());
        let slashed = in_json.as_ref().map(|text| text.replace('/', "\\/"));
        let forms = [Some(value), in_json.map(String::into_bytes), slashed.map(String::into_bytes)];
        needles.extend(forms.into_iter().flatten().filter(|form| form.len() >= BYTES_MIN));
    }
}

fn replaced(bytes: &[u8], needle: &[u8]) -> Vec<u8> {
    let (mut out, mut from) = (Vec::with_capacity(bytes.len()), 0);
    for at in memmem::find_iter(bytes, needle) {
        out.extend_from_slice(bytes.get(from..at).unwrap_or_default());
        out.extend_from_slice(STRUCK);
        from = at + needle.len();
    }
    out.extend_from_slice(bytes.get(from..).unwrap_or_default());
    out
}

/// How much of the needle's beginning the bytes end with.
fn shared(bytes: &[u8], needle: &[u8]) -> usize {
    let longest = needle.len().saturating_sub(1).min(bytes.len());
    let is_end = |length: &usize| needle.get(..*length).is_some_and(|start| bytes.ends_with(start));
    (BYTES_MIN..=longest).rev().find(is_end).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strike(values: &[&str]) -> Strike {
        let name = |at: usize| http::HeaderName::from_bytes(format!("x-{at}").as_bytes()).unwrap();
        let headers = values.iter().enumerate().map(|(at, value)| (name(at), HeaderValue::from_str(value).unwrap()));
        Strike::of(&headers.collect())
    }

    fn left(strike: &Strike, text: &str) -> String {
        strike.out_of_text(text.to_owned())
    }

    #[test]
    fn own_values_are_struck_out_in_every_form() {
        let strike = strike(&["Bearer tok/en-1234", "Basic dXNlcjpwYSJzcw==", "quoted\"value", "abc"]);
        for (text, expected) in [
            ("authorization: Bearer tok/en-1234.", "authorization: ***."),
            ("no such token: tok/en-1234", "no such token: ***"),
            (r#"{"got": "tok\/en-1234"}"#, r#"{"got": "***"}"#),
            ("dXNlcjpwYSJzcw== is user:pa\"ss", "*** is ***"),
            (r#"wrong password pa\"ss for user"#, "wrong password *** for user"),
            (r#"{"x": "quoted\"value"}"#, r#"{"x": "***"}"#),
            ("abc is too short to be one", "abc is too short to be one"),
            ("tok/en-123", "tok/en-123"),
        ] {
            assert_eq!(left(&strike, text), expected, "{text}");
        }
    }

    #[test]
    fn signatures_are_struck_out_one_by_one() {
        let signature = HeaderValue::from_static("v1,b25lb25l v1,dHdvdHdv");
        let strike = Strike::default().and(Some(&signature));
        assert_eq!(left(&strike, "expected dHdvdHdv, got v1,b25lb25l"), "expected ***, got v1,***");
        assert_eq!(left(&Strike::default().and(None), "v1,b25lb25l"), "v1,b25lb25l");
    }

    #[test]
    fn one_that_is_cut_off_leaves_nothing_of_itself() {
        let strike = strike(&["Bearer secret-token"]);
        let cut = |text: &str, is_cut| String::from_utf8(strike.out_of_bytes(text.into(), is_cut)).unwrap();
        assert_eq!(cut("got secret-tok", true), "got ");
        assert_eq!(cut("got Bearer secret-tok", true), "got ");
        assert_eq!(cut("got secret-tok", false), "got secret-tok");
        assert_eq!(cut("secret-token", true), "***");
        assert_eq!(cut("", true), "");
    }
}
