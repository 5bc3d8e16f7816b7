//! What of the tables is not captured, as far as a survey shows it.

use super::plan::Naming;
use super::{Survey, Turn};
use crate::change::TableName;

/// What of single tables is not captured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missed {
    /// Tables that a sink names and that are published only now, when the source has streamed: a name that was made anew, or
    /// taken over by another table.
    pub made_anew: Vec<TableName>,
}

impl Survey {
    pub(super) fn missed(&self, turn: Turn) -> Missed {
        let named =
            self.plan.publish.iter().filter(|(_, naming)| *naming == Naming::Exact).map(|(table, _)| &table.name);
        let late = named.filter(|name| !turn.is_first() && self.steps.added.contains(name));
        Missed { made_anew: late.cloned().collect() }
    }
}
