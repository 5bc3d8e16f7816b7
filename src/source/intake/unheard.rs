//! Logs of what may come with every change: a line each, as long as they are not too many. The log of TRUNCATEs that no
//! sink takes is one.

use std::time::{Duration, Instant};

/// Lines in so long at most; what comes beyond is counted in the next line.
const LINES_MAX: u32 = 10;
const LINES_WITHIN: Duration = Duration::from_secs(60);
/// Tables that a line names.
const NAMES_MAX: usize = 5;

/// Bounds the lines of one log.
#[derive(Debug, Default)]
pub(super) struct Lines {
    since: Option<Instant>,
    lines: u32,
    unsaid: u64,
}

impl Lines {
    /// Whether there is a line for one more; then how many were not logged before it.
    pub(super) fn one(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= LINES_WITHIN) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= LINES_MAX {
            self.unsaid = self.unsaid.saturating_add(1);
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unheard(Lines);

impl Unheard {
    /// A TRUNCATE emptied these tables and no sink was told. What to log, with how many such were not logged before it.
    pub(super) fn line(&mut self, tables: &[String], now: Instant) -> Option<(String, u64)> {
        if tables.is_empty() {
            return None;
        }
        let unsaid = self.0.one(now)?;
        let names = tables.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = tables.len().saturating_sub(NAMES_MAX);
        let names = if more > 0 { format!("{names} and {more} more") } else { names };
        Some((names, unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_truncate_has_a_line_until_there_are_too_many_and_what_was_left_out_is_counted() {
        let (mut unheard, start) = (Unheard::default(), Instant::now());
        let one = ["public.a".to_owned()];
        assert_eq!(unheard.line(&[], start), None);
        for _ in 0..10 {
            assert_eq!(unheard.line(&one, start), Some(("public.a".to_owned(), 0)));
        }
        for _ in 0..7 {
            assert_eq!(unheard.line(&one, start + Duration::from_secs(59)), None);
        }
        let many: Vec<String> = (0..8).map(|n| format!("t{n}")).collect();
        let later = start + Duration::from_secs(60);
        assert_eq!(unheard.line(&many, later), Some(("t0, t1, t2, t3, t4 and 3 more".to_owned(), 7)));
        assert_eq!(unheard.line(&one, later), Some(("public.a".to_owned(), 0)));
    }
}
