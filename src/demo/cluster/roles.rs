//! The roles of a throw-away cluster: those of docs/OPERATING.md, with exactly the grants that stand there.

use std::fmt;

/// Whom to speak to the server as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `walhook`: REPLICATION, may create in the database, a member of the role that owns the tables; for `create = true`.
    Walhook,
    /// `walhook_reader`: REPLICATION and nothing else; for `create = false`.
    Reader,
    /// `app`: owns the database and the tables, as an application's role does.
    Owner,
    /// `postgres`: superuser. walhook is not meant to connect as one.
    Superuser,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Walhook => "walhook",
            Self::Reader => "walhook_reader",
            Self::Owner => "app",
            Self::Superuser => "postgres",
        })
    }
}

/// Makes the roles of a new cluster. A statement a line.
pub(super) const MAKE: &str = "\
CREATE ROLE app LOGIN;
CREATE ROLE walhook LOGIN REPLICATION;
CREATE ROLE walhook_reader LOGIN REPLICATION;
GRANT app TO walhook;
";

/// Gives a database to its owner, and the others what is documented for it. A statement a line.
pub fn grants(database: &str) -> String {
    format!(
        "ALTER DATABASE {database} OWNER TO app;\n\
         GRANT CONNECT ON DATABASE {database} TO walhook;\n\
         GRANT CREATE ON DATABASE {database} TO walhook;\n\
         GRANT CONNECT ON DATABASE {database} TO walhook_reader;\n"
    )
}
