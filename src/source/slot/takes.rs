//! Pure: which tables a sink takes, for thousands of tables and thousands of names at once.

use std::collections::HashSet;

use crate::change::TableName;
use crate::config::{SinkConfig, TablePattern};

/// A sink's names and patterns. The names are looked up and not compared one by one: 6,000 names and 6,000 tables would
/// be 36 million comparisons at every look.
#[derive(Debug)]
pub(crate) struct Takes<'a> {
    pub(crate) sink: &'a SinkConfig,
    exact: HashSet<(&'a str, &'a str)>,
    patterns: Vec<&'a TablePattern>,
    grouped: HashSet<(&'a str, &'a str)>,
}

impl<'a> Takes<'a> {
    /// Of each sink.
    pub(crate) fn all(sinks: &'a [SinkConfig]) -> Vec<Self> {
        sinks.iter().map(Self::new).collect()
    }

    fn new(sink: &'a SinkConfig) -> Self {
        let (exact, patterns): (Vec<&TablePattern>, Vec<&TablePattern>) =
            sink.tables.iter().partition(|pattern| pattern.is_exact());
        let exact = exact.into_iter().map(|pattern| (pattern.schema.as_str(), pattern.table.as_str())).collect();
        let grouped = sink.group_by_table.iter().map(|(name, _)| pair(name)).collect();
        Self { sink, exact, patterns, grouped }
    }

    /// As [`SinkConfig::takes_table`].
    pub(crate) fn takes(&self, table: &TableName) -> bool {
        self.exact.contains(&pair(table)) || self.patterns.iter().any(|pattern| pattern.matches(table))
    }

    /// Whether the sink takes the table and names it itself: without a pattern, or with a `group_by` of its own.
    pub(crate) fn names(&self, table: &TableName) -> bool {
        self.exact.contains(&pair(table)) || self.grouped.contains(&pair(table))
    }

    /// The tables that it names without a pattern.
    pub(crate) fn exact(&self) -> impl Iterator<Item = TableName> {
        self.exact.iter().map(|(schema, table)| TableName { schema: (*schema).to_owned(), table: (*table).to_owned() })
    }
}

fn pair(name: &TableName) -> (&str, &str) {
    (name.schema.as_str(), name.table.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GroupBy;
    use crate::source::slot::tests::sink;

    #[test]
    fn names_and_patterns_take_what_the_sink_takes() {
        let name = |schema: &str, table: &str| TableName { schema: schema.to_owned(), table: table.to_owned() };
        let mut sink = sink("s", &["public.orders", "billing.*", "public.order_*"]);
        sink.group_by_table = vec![(name("billing", "lines"), GroupBy::Table)];
        let takes = Takes::new(&sink);
        for (schema, table, is_named) in [
            ("public", "orders", true),
            ("billing", "lines", true),
            ("billing", "other", false),
            ("public", "order_1", false),
            ("public", "other", false),
            ("Public", "orders", false),
        ] {
            let table = name(schema, table);
            assert_eq!(takes.takes(&table), sink.takes_table(&table), "{table}");
            assert_eq!(takes.names(&table), is_named, "{table}");
        }
        assert_eq!(takes.exact().collect::<Vec<_>>(), [name("public", "orders")]);
    }
}
