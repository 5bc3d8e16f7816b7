//! Pure: the SQL that walhook advises people to run, each statement with whom it is for and what it costs others.
//!
//! A tired person pastes what is printed. So a statement names what it is about in full, takes nothing from anybody, and is
//! printed with the role that may run it. What is not known stands as `…`, which no server takes. Nothing here drops or
//! hands over what is not walhook's own, and a role is never made a member of one that is more than an owner of tables
//! ([`super::slot::owners`]). `docs/ADVICE.md` is the table of all kinds, and a test runs each of them.

use std::fmt;

use super::slot::creation::create_sql;
use super::slot::names::{literal, quoted, quoted_table};
use crate::change::TableName;
use crate::config::SourceConfig;

/// From this version on a membership says itself whether it hands privileges on.
const GRANT_OPTIONS_MIN: u32 = 160_000;

macro_rules! kinds {
    ($($name:ident $slug:literal,)+) => {
        /// What a statement does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Kind {
            $($name,)+
        }

        #[cfg(test)]
        impl Kind {
            /// Every kind, in the order of the page.
            const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name on the page.
            fn slug(self) -> &'static str {
                match self {
                    $(Self::$name => $slug,)+
                }
            }
        }
    };
}

kinds! {
    IdentityFull "identity-full",
    IdentityDefault "identity-default",
    SetLogged "set-logged",
    PrimaryKey "primary-key",
    UseSlots "use-slots",
    UseSlotsOnRds "use-slots-rds",
    CreateOnDatabase "create-on-database",
    JoinOwner "join-owner",
    InheritPrivileges "inherit",
    MakePublication "make-publication",
    ChangePublication "change-publication",
    PassGenerated "pass-generated",
    LeavePublication "leave-publication",
    MakeSlot "make-slot",
    DropSlot "drop-slot",
    KeepCopies "keep-copies",
    LogSnapshot "log-snapshot",
    WalLevel "wal-level",
    OutputPlugins "output-plugins",
    KeepSize "keep-size",
    StandbySlots "standby-slots",
    SenderTimeout "sender-timeout",
    StandbyNames "standby-names",
    LookAtStandbys "look-at-standbys",
    ReadTable "read-table",
    LookAtSessions "look-at-sessions",
    LookAtPrepared "look-at-prepared",
    OwnRole "own-role",
}

impl Kind {
    /// What it costs others, where it costs anything, as the end of a sentence.
    pub(crate) fn cost(self) -> Option<&'static str> {
        Some(match self {
            Self::IdentityFull => "every UPDATE and DELETE writes the whole old row to the WAL",
            Self::IdentityDefault => "old rows carry the primary key only, to every reader of the table's changes",
            Self::SetLogged => "the table is written anew, and nobody reads or writes it meanwhile",
            Self::PrimaryKey => "an index is built, and nobody reads or writes the table meanwhile",
            Self::JoinOwner => {
                "walhook's role may then do whatever this owner may, with all that it owns or was granted, in other databases too"
            }
            Self::PassGenerated => "every reader of the publication gets the generated columns of all its tables",
            Self::LeavePublication => "no reader of the publication gets the table's changes any more",
            Self::DropSlot => "what was not read from it yet is lost to walhook",
            Self::WalLevel => "needs a restart of the server, which ends every session; more WAL is written",
            Self::KeepSize => "it bounds every slot of the server: one that keeps more is lost",
            Self::StandbySlots => "while one of these standbys is down, every reader of a slot with failover waits",
            Self::UseSlots
            | Self::UseSlotsOnRds
            | Self::CreateOnDatabase
            | Self::InheritPrivileges
            | Self::MakePublication
            | Self::ChangePublication
            | Self::MakeSlot
            | Self::KeepCopies
            | Self::LogSnapshot
            | Self::OutputPlugins
            | Self::SenderTimeout
            | Self::StandbyNames
            | Self::LookAtStandbys
            | Self::ReadTable
            | Self::LookAtSessions
            | Self::LookAtPrepared
            | Self::OwnRole => return None,
        })
    }
}

/// One statement that a person may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) kind: Kind,
    /// The role that may run it: `a superuser`.
    whom: String,
    sql: String,
}

impl Statement {
    fn new(kind: Kind, whom: impl Into<String>, sql: String) -> Self {
        Self { kind, whom: whom.into(), sql }
    }

    /// `owner` is empty where it is not known.
    fn of_owner(kind: Kind, owner: &str, sql: String) -> Self {
        let whom = match owner {
            "" => "the owner of the table".to_owned(),
            owner => format!("{owner}, the owner of the table"),
        };
        Self::new(kind, whom, sql)
    }

    fn of_superuser(kind: Kind, sql: String) -> Self {
        Self::new(kind, "a superuser", sql)
    }

    /// Old rows in full.
    pub(crate) fn identity_full(table: &TableName, owner: &str) -> Self {
        let sql = format!("ALTER TABLE {} REPLICA IDENTITY FULL;", quoted_table(table));
        Self::of_owner(Kind::IdentityFull, owner, sql)
    }

    /// Old rows with the primary key.
    pub(crate) fn identity_default(table: &TableName, owner: &str) -> Self {
        let sql = format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT;", quoted_table(table));
        Self::of_owner(Kind::IdentityDefault, owner, sql)
    }

    /// An unlogged table becomes one whose changes are in the WAL.
    pub(crate) fn set_logged(table: &TableName, owner: &str) -> Self {
        Self::of_owner(Kind::SetLogged, owner, format!("ALTER TABLE {} SET LOGGED;", quoted_table(table)))
    }

    /// Which columns are the key only the owner knows.
    pub(crate) fn primary_key(table: &TableName, owner: &str) -> Self {
        Self::of_owner(Kind::PrimaryKey, owner, format!("ALTER TABLE {} ADD PRIMARY KEY (…);", quoted_table(table)))
    }

    /// Lets a role use replication slots.
    pub(crate) fn use_slots(role: &str, is_rds: bool) -> Self {
        let role = quoted(role);
        match is_rds {
            true => {
                let sql = format!("GRANT rds_replication TO {role};");
                Self::new(Kind::UseSlotsOnRds, "a member of rds_superuser", sql)
            }
            false => Self::of_superuser(Kind::UseSlots, format!("ALTER ROLE {role} REPLICATION;")),
        }
    }

    /// A role for walhook alone, in the place of this one. Its password, if it needs one, is a person's to choose.
    pub(crate) fn own_role(role: &str) -> Self {
        let name = if role == "walhook" { "walhook_role" } else { "walhook" };
        Self::of_superuser(Kind::OwnRole, format!("CREATE ROLE {} LOGIN REPLICATION;", quoted(name)))
    }

    /// Lets a role make publications.
    pub(crate) fn create_on_database(database: &str, role: &str) -> Self {
        let sql = format!("GRANT CREATE ON DATABASE {} TO {};", quoted(database), quoted(role));
        Self::new(Kind::CreateOnDatabase, "the owner of the database or a superuser", sql)
    }

    /// Makes `role` a member of the owner of tables, without `SET ROLE` where that can be told apart.
    pub(crate) fn join_owner(owner: &str, role: &str, version: u32) -> Self {
        let options = if version >= GRANT_OPTIONS_MIN { " WITH INHERIT TRUE, SET FALSE" } else { "" };
        let sql = format!("GRANT {} TO {}{options};", quoted(owner), quoted(role));
        let whom = format!("a superuser, or a role with ADMIN OPTION on {owner}");
        Self::new(Kind::JoinOwner, whom, sql)
    }

    /// A role that is NOINHERIT has nothing of its memberships; from 16 on the grant itself says so.
    pub(crate) fn inherit(role: &str, version: u32) -> Option<Self> {
        let sql = format!("ALTER ROLE {} INHERIT;", quoted(role));
        (version < GRANT_OPTIONS_MIN).then(|| Self::of_superuser(Kind::InheritPrivileges, sql))
    }

    /// A publication made by `whom`.
    pub(crate) fn make_publication(whom: &str, sql: &str) -> Self {
        Self::new(Kind::MakePublication, whom, sql.to_owned())
    }

    /// A publication that is there, changed by `whom`.
    pub(crate) fn change_publication(whom: &str, sql: &str) -> Self {
        Self::new(Kind::ChangePublication, whom, sql.to_owned())
    }

    /// Generated columns are passed on (18).
    pub(crate) fn pass_generated(publication: &str) -> Self {
        let sql = format!("ALTER PUBLICATION {} SET (publish_generated_columns = stored);", quoted(publication));
        Self::new(Kind::PassGenerated, "the owner of the publication", sql)
    }

    /// A table is taken out of a publication.
    pub(crate) fn leave_publication(sql: &str) -> Self {
        Self::new(Kind::LeavePublication, "the owner of the publication", sql.to_owned())
    }

    /// The slot, made by the role that reads it.
    pub(crate) fn make_slot(source: &SourceConfig, role: &str) -> Self {
        Self::new(Kind::MakeSlot, format!("{role}, the role of the source's url"), create_sql(source))
    }

    /// A slot of ours, which can no longer be read.
    pub(crate) fn drop_slot(slot: &str) -> Self {
        let sql = format!("SELECT pg_drop_replication_slot({});", literal(slot));
        Self::new(Kind::DropSlot, "the role of the source's url", sql)
    }

    /// Standbys keep a copy of the slot (17).
    pub(crate) fn keep_copies(slot: &str) -> Self {
        let whom = "the role of the source's url, on a replication connection to the database (psql \"dbname=… \
                    replication=database\") while nobody reads the slot";
        Self::new(Kind::KeepCopies, whom, format!("ALTER_REPLICATION_SLOT {} (FAILOVER true);", quoted(slot)))
    }

    /// The primary logs which transactions run, which the making of a slot on a standby waits for.
    pub(crate) fn log_snapshot() -> Self {
        let sql = "SELECT pg_log_standby_snapshot();".to_owned();
        Self::new(Kind::LogSnapshot, "a superuser, on the primary", sql)
    }

    /// With the restart that it needs, which is a person's to choose.
    pub(crate) fn wal_level() -> Self {
        Self::of_superuser(Kind::WalLevel, "ALTER SYSTEM SET wal_level = 'logical';".to_owned())
    }

    /// The list of today, and ours.
    pub(crate) fn output_plugins(plugins: &[&str]) -> Self {
        let list = plugins.iter().map(|plugin| literal(plugin)).collect::<Vec<_>>().join(", ");
        Self::of_superuser(Kind::OutputPlugins, reloaded(&format!("output_plugin_libraries = {list}")))
    }

    /// How much only the operator knows.
    pub(crate) fn keep_size() -> Self {
        Self::of_superuser(Kind::KeepSize, reloaded("max_slot_wal_keep_size = '…'"))
    }

    /// Which ones only the operator knows.
    pub(crate) fn standby_slots() -> Self {
        Self::of_superuser(Kind::StandbySlots, reloaded("synchronized_standby_slots = '…'"))
    }

    /// For the role's sessions only: standbys keep theirs.
    pub(crate) fn sender_timeout(role: &str) -> Self {
        let sql = format!("ALTER ROLE {} SET wal_sender_timeout = '60s';", quoted(role));
        Self::new(Kind::SenderTimeout, format!("{role} itself"), sql)
    }

    /// The list of those that commits wait for without walhook; `names` is the whole value.
    pub(crate) fn standby_names(names: &str) -> Self {
        let setting = format!("synchronous_standby_names = {}", literal(names));
        Self::of_superuser(Kind::StandbyNames, reloaded(&setting))
    }

    /// Who is connected as a standby at this moment.
    pub(crate) fn look_at_standbys() -> Self {
        let sql = "SELECT application_name, state, sync_state FROM pg_stat_replication;".to_owned();
        Self::of_superuser(Kind::LookAtStandbys, sql)
    }

    /// Lets a role read a table.
    pub(crate) fn read_table(table: &TableName, owner: &str, role: &str) -> Vec<Self> {
        let (schema, name, role) = (quoted(&table.schema), quoted_table(table), quoted(role));
        let usage = format!("GRANT USAGE ON SCHEMA {schema} TO {role};");
        vec![
            Self::new(Kind::ReadTable, "the owner of the schema", usage),
            Self::of_owner(Kind::ReadTable, owner, format!("GRANT SELECT ON {name} TO {role};")),
        ]
    }

    /// Whose sessions these are.
    pub(crate) fn look_at_sessions(pids: &[i32]) -> Self {
        let pids = pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
        let columns = "pid, usename, application_name, client_addr, xact_start, state, query";
        let sql = format!("SELECT {columns} FROM pg_stat_activity WHERE pid IN ({pids});");
        Self::of_superuser(Kind::LookAtSessions, sql)
    }

    /// Whose prepared transactions these are.
    pub(crate) fn look_at_prepared() -> Self {
        let sql = "SELECT gid, owner, database, prepared FROM pg_prepared_xacts ORDER BY prepared;".to_owned();
        Self::new(Kind::LookAtPrepared, "any role", sql)
    }
}

/// A setting for the whole server, in effect at once. Two lines, for ALTER SYSTEM runs in no transaction with others.
fn reloaded(setting: &str) -> String {
    format!("ALTER SYSTEM SET {setting};\nSELECT pg_reload_conf();")
}

/// `as a superuser: ALTER …;`
impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(std::slice::from_ref(self)))
    }
}

/// Statements in their order, each below whom it is for and what it costs; said once for those that follow one another.
pub(crate) fn text(statements: &[Statement]) -> String {
    let alike = |one: &Statement, other: &Statement| one.kind == other.kind && one.whom == other.whom;
    let blocks = statements.chunk_by(alike).filter_map(|block| {
        let Statement { kind, whom, .. } = block.first()?;
        let cost = kind.cost().map_or_else(String::new, |cost| format!(" ({cost})"));
        let sql: Vec<&str> = block.iter().map(|statement| statement.sql.as_str()).collect();
        let sql = sql.join("\n");
        let gap = if sql.contains('\n') { "\n" } else { " " };
        Some(format!("as {whom}{cost}:{gap}{sql}"))
    });
    blocks.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
pub(crate) mod tests;
