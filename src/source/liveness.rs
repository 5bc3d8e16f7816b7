//! When a server counts as silent, and when it is given up: pure.
//!
//! Two connections are listened to: the stream, which is asked for a sign of life whenever it has said nothing for a while,
//! and SQL, where the server is asked for its end. A walsender that decodes a huge transaction may say nothing for a minute, and
//! is not cut as long as SQL answers and the slot is read.

use std::time::Duration;

use crate::view::Trouble;

/// After so long without a byte the stream is asked for a sign of life.
pub(super) const ASK_AFTER: Duration = Duration::from_secs(5);
/// Silence that is told: a sign of life was asked for, and time enough for it has gone by.
const TOLD_AFTER: Duration = Duration::from_secs(8);
/// The same over SQL, where it counts from a question that is asked every 5 s.
const SQL_TOLD_AFTER: Duration = Duration::from_secs(4);
/// Silence after which a connection is given up, if SQL does not answer either.
const CUT_AFTER: Duration = Duration::from_secs(60);

/// An answer over SQL takes no longer, unless SQL is silent too.
const SQL_ANSWERS: Duration = Duration::from_secs(2);

/// Which side is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The stream, while SQL answers.
    Stream,
    /// SQL, while the stream goes on.
    Sql,
    /// Both.
    Both,
}

/// For how long nothing was heard where something was to be expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Silence {
    /// On the stream.
    pub(super) stream: Duration,
    /// On SQL.
    pub(super) sql: Duration,
}

impl Silence {
    /// Whether the session is of no use any more: SQL has been silent for too long, whatever the stream says, or the stream has
    /// been and nobody reads the slot any more.
    pub(super) fn is_over(self, slot_is_read: bool) -> bool {
        let without_reader = self.stream >= CUT_AFTER.min(TOLD_AFTER * 2) && !slot_is_read;
        self.sql >= CUT_AFTER || without_reader
    }

    /// Which side is to be told of. While the stream is silent SQL is asked every second, so that one answer that is due says
    /// as much as the silence of the other.
    pub(super) fn side(self) -> Option<Side> {
        match (self.stream >= TOLD_AFTER, self.sql >= SQL_TOLD_AFTER) {
            (true, _) if self.sql >= SQL_ANSWERS => Some(Side::Both),
            (true, _) => Some(Side::Stream),
            (false, true) => Some(Side::Sql),
            (false, false) => None,
        }
    }

    /// What is told.
    pub(super) fn trouble(self) -> Option<Trouble> {
        let (stream, sql) = (self.stream.as_secs(), self.sql.as_secs());
        let trouble = |what: String, advice: &str| Some(Trouble { what, advice: advice.to_owned() });
        match self.side()? {
            Side::Both => trouble(
                format!("the database has not answered for {stream} s, neither on the stream nor over SQL"),
                "see whether the server is frozen, overloaded or cut off from here (a firewall that forgets connections drops \
                 packets in silence); after 60 s walhook connects anew",
            ),
            Side::Stream => trouble(
                format!(
                    "the walsender has sent nothing for {stream} s, not even an answer, while SQL answers: it decodes a large \
                     transaction, or is stopped"
                ),
                "look at pg_stat_replication and pg_stat_activity for the walsender; if its process is stopped (state T in ps), \
                 let it go on, or end it with pg_terminate_backend: walhook connects anew",
            ),
            Side::Sql => trouble(
                format!("the database has not answered over SQL for {sql} s, while the stream goes on"),
                "see whether the server is overloaded, or the backend of walhook's SQL session is stopped; after 60 s walhook \
                 connects anew",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence(stream: u64, sql: u64) -> Silence {
        Silence { stream: Duration::from_secs(stream), sql: Duration::from_secs(sql) }
    }

    #[test]
    fn silence_is_told_before_ten_seconds_and_says_on_which_side_it_is() {
        assert_eq!(silence(7, 3).trouble(), None);
        for (stream, sql, expected) in [
            (8, 9, "neither on the stream nor"),
            (8, 2, "neither on the stream nor"),
            (9, 1, "while SQL answers"),
            (0, 4, "over SQL for 4 s"),
        ] {
            let Trouble { what, advice } = silence(stream, sql).trouble().unwrap();
            assert!(what.contains(expected) && !advice.is_empty(), "{what}");
        }
    }

    #[test]
    fn a_walsender_that_is_busy_is_not_cut_while_sql_answers_and_the_slot_is_read() {
        assert!(!silence(3600, 0).is_over(true));
        assert!(!silence(59, 59).is_over(true));
        assert!(silence(60, 60).is_over(true));
        assert!(silence(0, 60).is_over(true), "sql alone");
        assert!(silence(16, 0).is_over(false), "its reader is gone, and the stream does not say so");
        assert!(!silence(15, 0).is_over(false));
    }
}
