//! Published relations whose own UPDATE and DELETE fail, because the server finds no replica identity that it can use.
//!
//! The server asks this at each UPDATE and DELETE (`CheckCmdReplicaIdentity`), of the partition that has the row and of every
//! publication that covers it. Here the same is asked of one publication, for all that it covers, in one query that takes no lock
//! on any of the tables.

mod query;
mod taking;

pub(crate) use self::query::{exists, look, places};
use self::taking::out_sql;
pub(crate) use self::taking::{TakenOut, Taking, end_of_wal};
use crate::change::{Lsn, TableName};
use crate::config::SourceConfig;
use crate::source::advice::Statement;
use crate::view::Trouble;

/// Why the server finds no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    Index,
    NoKey,
    Deferrable,
    InvalidIndex,
    /// 18: under FULL, a column that is computed when it is read.
    Virtual,
    /// 18: a stored generated column of the identity that the publication does not pass on.
    Generated,
    /// 15: a column list that lacks a column of the identity; under FULL any.
    ColumnList,
    /// 15: a row filter with a column that is not of the identity.
    RowFilter,
}

/// A relation that is published and has no identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bare {
    /// What the publication names: the relation itself, or a table that it is a partition of.
    pub(crate) table: TableName,
    /// Its `pg_class.oid`.
    pub(crate) oid: u32,
    /// The relation whose UPDATE and DELETE fail.
    pub(crate) relation: TableName,
    pub(crate) fault: Fault,
    /// The publication names the table itself, so that it can be taken out; not by `FOR ALL TABLES` or a schema.
    pub(crate) is_member: bool,
    /// The publication passes on only some of its columns or rows.
    pub(crate) is_partial: bool,
    /// Its place in the publication, `pg_publication_rel.oid`: another one once it was out and is back. 0: it is no member.
    pub(crate) place: u32,
    /// Not in the publication, but asked for: its writes would fail if it was.
    pub(crate) is_candidate: bool,
    /// Why they would fail with REPLICA IDENTITY FULL too.
    pub(crate) breaks_in_full: Option<String>,
}

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    /// The publication was made by walhook for this slot; this and the next are asked only where something is bare.
    pub(crate) is_ours: bool,
    /// The role may change it.
    pub(crate) is_owned: bool,
    pub(crate) in_recovery: bool,
    /// `server_version_num`.
    pub(crate) version: u32,
    /// `pg_publication.oid`.
    pub(crate) publication: u32,
    /// Another text once the publication names other tables, or one of them anew.
    pub(crate) members: String,
    /// Which of UPDATE and DELETE it passes on.
    pub(crate) updates: bool,
    pub(crate) deletes: bool,
    /// End of the server's WAL before the look; none on a standby.
    pub(crate) end: Option<Lsn>,
    pub(crate) bare: Vec<Bare>,
    /// There are more.
    pub(crate) is_cut: bool,
}

impl Look {
    /// Why the table cannot be taken out of the publication by walhook, whatever else happens.
    pub(crate) fn hindrance(&self, source: &SourceConfig, bare: &Bare) -> Option<&'static str> {
        if !bare.is_member {
            Some("the publication holds all tables, or all of the schema")
        } else if !source.create {
            Some("walhook changes no publication with create = false")
        } else if self.in_recovery {
            Some("the server is a standby")
        } else if !self.is_ours {
            Some("walhook did not make the publication for this slot")
        } else if !self.is_owned {
            Some("the publication belongs to another role")
        } else if bare.is_partial {
            Some("the column list or row filter that a person gave it there would be lost")
        } else {
            None
        }
    }

    /// What a person sees of it. `since` is when it was first seen, `hindrance` why the table is still published.
    pub(crate) fn harm(&self, source: &SourceConfig, bare: &Bare, since: Option<&str>, hindrance: &str) -> Trouble {
        let Bare { table, relation, fault, breaks_in_full, .. } = bare;
        let fails = match (self.updates, self.deletes) {
            (true, false) => "UPDATE fails",
            (false, true) => "DELETE fails",
            (true, true) | (false, false) => "UPDATE and DELETE fail",
        };
        let (why, since) = (fault.why(), since.map(|since| format!(" since {since}")).unwrap_or_default());
        let reason = if relation == table { format!("it {why}") } else { format!("its partition {relation} {why}") };
        Trouble {
            what: format!(
                "{table} is published and its own {fails}{since}: {reason}; it is not taken out of the publication: \
                 {hindrance}"
            ),
            advice: format!("{}\nor {}", fault.mend(source, relation, breaks_in_full.as_deref()), bare.way_out(source)),
        }
    }
}

impl Bare {
    /// What a person does who would rather not give it an identity.
    fn way_out(&self, source: &SourceConfig) -> String {
        let leave = Statement::leave_publication(&out_sql(source, &self.table));
        match (self.is_member, self.is_partial && source.create) {
            (true, false) => format!("let nothing of it be captured any more, {leave}"),
            (true, true) => format!(
                "let nothing of it be captured any more: take it out of the tables of every sink and restart walhook, or it is \
                 published again with all its columns and rows; then {leave}"
            ),
            (false, _) => format!(
                "read a publication that names its tables one by one, without {}: one FOR ALL TABLES or of a schema cannot \
                 leave out a table",
                self.table
            ),
        }
    }
}

impl Fault {
    fn why(self) -> &'static str {
        match self {
            Self::Nothing => "has REPLICA IDENTITY NOTHING",
            Self::Index => "has lost the index of its replica identity",
            Self::NoKey => "has no primary key and no replica identity",
            Self::Deferrable => "has a deferrable primary key, which is no replica identity",
            Self::InvalidIndex => "has a primary key whose index is invalid",
            Self::Virtual => "has REPLICA IDENTITY FULL and a virtual generated column",
            Self::Generated => "has a generated column in its replica identity that the publication does not pass on",
            Self::ColumnList => "has a replica identity that the publication's column list does not cover",
            Self::RowFilter => "is filtered in the publication by a column that is not of its replica identity",
        }
    }

    /// The way out that keeps the table's changes coming. `breaks` is why REPLICA IDENTITY FULL would not.
    fn mend(self, source: &SourceConfig, relation: &TableName, breaks: Option<&str>) -> String {
        let publication = &source.publication;
        let default = Statement::identity_default(relation, "");
        let keyed = "where there is a primary key that is not deferrable,";
        let full = match breaks {
            None => format!("give it an identity, {}", Statement::identity_full(relation, "")),
            Some(why) => format!("not REPLICA IDENTITY FULL: {why}. {}", self.give_key(relation)),
        };
        match self {
            Self::Nothing => format!("{full}\n{keyed} {default}"),
            Self::Index | Self::NoKey | Self::Deferrable | Self::InvalidIndex | Self::RowFilter => full,
            Self::Virtual => {
                format!("give it an identity, {keyed} {default}")
            }
            Self::Generated => {
                format!("pass the column on, {}", Statement::pass_generated(publication))
            }
            Self::ColumnList => format!(
                "put the columns of its identity into the list of the publication {publication}\nor, {keyed} {default}"
            ),
        }
    }

    /// The way to an identity by a key.
    fn give_key(self, relation: &TableName) -> String {
        let key = "Give it a primary key that is not deferrable, or make a unique index that is not, over columns that are NOT NULL, \
                   its replica identity (USING INDEX)";
        match self {
            Self::NoKey => format!("Give it a primary key, {}", Statement::primary_key(relation, "")),
            Self::InvalidIndex => "Build the index of its primary key anew (REINDEX INDEX CONCURRENTLY)".to_owned(),
            Self::RowFilter => format!("{key}, with the columns of the publication's filter among them"),
            Self::Nothing | Self::Index | Self::Deferrable | Self::Virtual | Self::Generated | Self::ColumnList => {
                key.to_owned()
            }
        }
    }
}
