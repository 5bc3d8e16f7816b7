//! `Retry-After` (RFC 9110, 10.2.3): seconds, or an HTTP date in one of the three forms of 5.6.7.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, StatusCode, header};
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// The longest wait that is told; whoever waits has a lower limit.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The wait that an answer asks for, at most a year. Only 429 and 503 may ask; what cannot be read asks for nothing; a past
/// date or a negative number asks for no wait.
pub(super) fn retry_after(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::SERVICE_UNAVAILABLE {
        return None;
    }
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = seconds(text).or_else(|| Some(date(text)?.duration_since(now).unwrap_or_default()))?;
    Some(wait.min(LONGEST))
}

fn seconds(text: &str) -> Option<Duration> {
    let (digits, negative) = text.strip_prefix('-').map_or((text, false), |digits| (digits, true));
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if negative {
        return Some(Duration::ZERO);
    }
    Some(digits.parse().map_or(LONGEST, Duration::from_secs))
}

fn date(text: &str) -> Option<SystemTime> {
    const FORMS: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let parsed = FORMS.iter().find_map(|form| strtime::parse(form, text).ok()?.to_datetime().ok())?;
    let unix = parsed.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
    Some(u64::try_from(unix).map_or(UNIX_EPOCH, |unix| UNIX_EPOCH + Duration::from_secs(unix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(status: u16, value: &str) -> Option<u64> {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
        // Sun, 06 Nov 1994 08:49:00 GMT
        let now = UNIX_EPOCH + Duration::from_secs(784_111_740);
        retry_after(StatusCode::from_u16(status).unwrap(), &headers, now).map(|wait| wait.as_secs())
    }

    #[test]
    fn seconds_and_the_three_dates_are_read_and_nonsense_asks_for_nothing() {
        for status in [429, 503] {
            assert_eq!(asked(status, "120"), Some(120));
            assert_eq!(asked(status, "-5"), Some(0));
            assert_eq!(asked(status, "99999999999999999999999999"), Some(LONGEST.as_secs()));
            assert_eq!(asked(status, "Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
            assert_eq!(asked(status, "Sunday, 06-Nov-94 08:49:37 GMT"), Some(37));
            assert_eq!(asked(status, "Sun Nov  6 08:49:37 1994"), Some(37));
            assert_eq!(asked(status, "Sun, 06 Nov 1994 08:48:37 GMT"), Some(0));
            assert_eq!(asked(status, "Thu, 31 Dec 9998 23:59:59 GMT"), Some(LONGEST.as_secs()));
            for nonsense in ["", "-", "soon", "1.5", "Sun, 99 Nov 1994 08:49:37 GMT", "Mon, 06 Nov 1994 08:49:37 GMT"] {
                assert_eq!(asked(status, nonsense), None, "{nonsense}");
            }
        }
        assert_eq!(asked(500, "120"), None);
    }
}
