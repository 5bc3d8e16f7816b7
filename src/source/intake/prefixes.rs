//! The prefixes of logical messages: what each one's messages carry, and which sinks take them.

use std::collections::HashMap;
use std::sync::Arc;

use super::Known;
use crate::change::Table;
use crate::config::SinkConfig;
use crate::source::route::message_routes;

/// Prefixes remembered; when there are more, all are forgotten. Whoever may write messages chooses them.
const PREFIXES_MAX: usize = 1024;

/// Bytes that are shown of a prefix. Every message that waits carries them some times over, and memory is charged for
/// what was read only.
const SHOWN_BYTES_MAX: usize = 255;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    known: HashMap<Box<[u8]>, Arc<Known>>,
}

impl Prefixes {
    /// What is known of a prefix's messages. No route if no sink takes them.
    pub(super) fn of(&mut self, prefix: &[u8], sinks: &[SinkConfig]) -> Arc<Known> {
        if let Some(known) = self.known.get(prefix) {
            return Arc::clone(known);
        }
        let text = String::from_utf8_lossy(prefix);
        let table = Table::of_messages(&shown(&text));
        let routes = message_routes(&table, &text, sinks);
        let known = Arc::new(Known { table: Arc::new(table), routes });
        if prefix.len() <= SHOWN_BYTES_MAX {
            if self.known.len() >= PREFIXES_MAX {
                self.known.clear();
            }
            self.known.insert(prefix.into(), Arc::clone(&known));
        }
        known
    }
}

/// The prefix, cut where it is too long to be carried around.
fn shown(prefix: &str) -> String {
    if prefix.len() <= SHOWN_BYTES_MAX {
        return prefix.to_owned();
    }
    let room = SHOWN_BYTES_MAX - '…'.len_utf8();
    let ends = prefix.char_indices().map(|(at, letter)| at + letter.len_utf8());
    let end = ends.take_while(|end| *end <= room).last().unwrap_or_default();
    format!("{}…", prefix.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Action;
    use crate::config;

    fn sinks() -> Vec<SinkConfig> {
        let text = "[source.app]\nurl = \"postgres://u@localhost/app\"\n[sink.s]\nurl = \"http://localhost/\"\n\
            messages = [\"outbox.*\"]\n[sink.t]\nurl = \"http://localhost/\"\nmessages = [\"*\"]\n";
        config::parse(text, std::path::Path::new("t.toml"), &|_| None, &[]).unwrap().sinks
    }

    fn takers(prefixes: &mut Prefixes, prefix: &[u8]) -> Vec<usize> {
        prefixes.of(prefix, &sinks()).routes.iter().map(|route| route.sink).collect()
    }

    #[test]
    fn each_prefix_goes_to_the_sinks_whose_pattern_it_fits_and_walhooks_own_to_none() {
        let mut prefixes = Prefixes::default();
        for _ in 0..2 {
            assert_eq!(takers(&mut prefixes, b"outbox.orders"), [0, 1]);
            assert_eq!(takers(&mut prefixes, b"outbox"), [1]);
            assert_eq!(takers(&mut prefixes, b""), [1]);
            assert_eq!(takers(&mut prefixes, b"walhook:outbox."), [0; 0]);
            assert_eq!(takers(&mut prefixes, b"\xFF"), [1]);
        }
    }

    #[test]
    fn however_many_prefixes_come_a_bounded_number_is_remembered_and_a_long_one_is_cut() {
        let (mut prefixes, sinks) = (Prefixes::default(), sinks());
        for number in 0..5 * PREFIXES_MAX {
            prefixes.of(format!("outbox.{number}").as_bytes(), &sinks);
        }
        assert!(prefixes.known.len() <= PREFIXES_MAX);
        let remembered = prefixes.known.len();
        let known = prefixes.of("outbox.é".repeat(1 << 20).as_bytes(), &sinks);
        assert_eq!((prefixes.known.len(), known.routes.len()), (remembered, 2));
        let event = known.table.event(Action::Message);
        assert!(event.ends_with("….message") && event.len() <= SHOWN_BYTES_MAX + ".message".len(), "{event}");
    }
}
