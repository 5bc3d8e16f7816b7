//! What rustls does not tell of a certificate: its dates (RFC 5280, 4.1). Pure; the bytes are from outside.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use rustls::pki_types::UnixTime;

use crate::source::wire::Cursor;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] EXPLICIT`, which only versions after the first have.
const VERSION: u8 = 0xa0;

/// 9999-12-31 23:59:59 (RFC 5280, 4.1.2.5).
const NEVER: i64 = 253_402_300_799;

/// A certificate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
}

impl Facts {
    /// `None` if the bytes are no certificate.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let mut whole = Cursor::new(certificate);
        let mut certificate = Cursor::new(expected(&mut whole, SEQUENCE)?);
        let mut body = Cursor::new(expected(&mut certificate, SEQUENCE)?);
        let (first, _) = value(&mut body)?;
        if first == VERSION {
            // The serial number.
            value(&mut body)?;
        }
        // How it is signed, and by whom.
        expected(&mut body, SEQUENCE)?;
        expected(&mut body, SEQUENCE)?;
        let mut validity = Cursor::new(expected(&mut body, SEQUENCE)?);
        Some(Self { not_before: time(value(&mut validity)?)?, not_after: time(value(&mut validity)?)? })
    }
}

fn expected<'a>(cursor: &mut Cursor<'a>, tag: u8) -> Option<&'a [u8]> {
    value(cursor).filter(|(found, _)| *found == tag).map(|(_, content)| content)
}

/// The next DER value: its tag and its content.
fn value<'a>(cursor: &mut Cursor<'a>) -> Option<(u8, &'a [u8])> {
    let tag = cursor.u8().ok()?;
    let length = match cursor.u8().ok()? {
        short @ 0..=0x7f => usize::from(short),
        long => {
            let bytes = cursor.take(usize::from(long & 0x7f)).ok()?;
            bytes.iter().fold(0usize, |length, byte| length.saturating_mul(256).saturating_add(usize::from(*byte)))
        }
    };
    Some((tag, cursor.take(length).ok()?))
}

/// `YYMMDDHHMMSSZ` of 1950 to 2049, or `YYYYMMDDHHMMSSZ`; before 1970 is 1970.
fn time((tag, text): (u8, &[u8])) -> Option<UnixTime> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i16>().ok();
    let (year, rest) = match tag {
        UTC_TIME => {
            let year = number(0..2)?;
            (year.checked_add(if year < 50 { 2000 } else { 1900 })?, 2)
        }
        GENERALIZED_TIME => (number(0..4)?, 4),
        _ => return None,
    };
    let part = |index: usize| {
        let start = index.checked_mul(2)?.checked_add(rest)?;
        i8::try_from(number(start..start.checked_add(2)?)?).ok()
    };
    let moment = DateTime::new(year, part(0)?, part(1)?, part(2)?, part(3)?, part(4)?, 0).ok()?;
    // The last hours of the year 9999, which stand for "never", are beyond what jiff calls a moment.
    let unix = moment.to_zoned(TimeZone::UTC).map_or(NEVER, |zoned| zoned.timestamp().as_second());
    Some(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(unix).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(secs: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(secs))
    }

    #[test]
    fn both_forms_of_time_are_read_and_nonsense_is_none() {
        assert_eq!(time((UTC_TIME, b"991231235959Z")), Some(unix(946_684_799)));
        assert_eq!(time((UTC_TIME, b"491231235959Z")), Some(unix(2_524_607_999)));
        assert_eq!(time((GENERALIZED_TIME, b"20000101000000Z")), Some(unix(946_684_800)));
        assert_eq!(time((GENERALIZED_TIME, b"19500101000000Z")), Some(unix(0)));
        assert_eq!(time((GENERALIZED_TIME, b"99991231235959Z")), Some(unix(253_402_300_799)));
        for nonsense in [&b""[..], b"Z", b"9912312359Z", b"991331235959Z", b"991231235959", b"99123123595\xffZ"] {
            assert_eq!(time((UTC_TIME, nonsense)), None, "{nonsense:?}");
        }
        assert_eq!(time((SEQUENCE, b"991231235959Z")), None);
    }

    #[test]
    fn dates_are_read_of_a_certificate_and_no_prefix_of_one_panics() {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 2, 3);
        params.not_after = rcgen::date_time_ymd(2061, 2, 3);
        let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let facts = Facts::of(&der).unwrap();
        assert_eq!((facts.not_before, facts.not_after), (unix(981_158_400), unix(2_874_614_400)));
        for end in 0..der.len() {
            assert_eq!(der.get(..end).and_then(Facts::of), None);
        }
        for at in 0..der.len().min(200) {
            let mut broken = der.clone();
            *broken.get_mut(at).unwrap() ^= 0xff;
            std::hint::black_box(Facts::of(&broken));
        }
    }
}
