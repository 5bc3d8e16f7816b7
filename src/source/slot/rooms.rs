//! How many sessions the role may still have: its own limit, the database's, the server's.

use tokio_postgres::Client;

use super::error::PrepareError;
use super::unseen::{Question, Unseen, ask};

/// Sessions that walhook has at most for one source beside those that fetch rows: two for SQL and two for replication, for the
/// moment in which one takes the other's place.
pub(crate) const SESSIONS: i64 = 4;

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    /// What bounds it, as the beginning of a sentence.
    pub(crate) of: &'static str,
    /// Sessions that are left, without this one; `None`: no bound, or not known.
    pub(crate) free: Option<i64>,
    /// What mends it.
    pub(crate) mend: &'static str,
}

const OTHERS: &str = "select count(*) from pg_stat_activity a where a.pid <> pg_backend_pid()";

/// Reads them.
pub(crate) async fn read(client: &Client) -> Result<(Vec<Room>, Vec<Unseen>), PrepareError> {
    let leaves_open = "whether there is room for walhook's sessions";
    let role = format!(
        "select case when r.rolconnlimit >= 0 and not r.rolsuper then r.rolconnlimit - ({OTHERS} and a.usesysid = r.oid) end \
         from pg_roles r where r.rolname = session_user"
    );
    let database = format!(
        "select case when d.datconnlimit >= 0 and not r.rolsuper then d.datconnlimit - ({OTHERS} and a.datid = d.oid) end \
         from pg_database d, pg_roles r where d.datname = current_database() and r.rolname = session_user"
    );
    // WAL senders are counted apart.
    let server = format!(
        "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int \
         - coalesce(current_setting('reserved_connections', true)::int, 0) - ({OTHERS} and a.backend_type = 'client backend')"
    );
    let questions = [
        Question::new("the role's CONNECTION LIMIT", role, leaves_open),
        Question::new("the database's CONNECTION LIMIT", database, leaves_open),
        Question::new("max_connections", server, leaves_open),
    ];
    let mut answers = ask(client, "ask for the limits of connections", &questions).await?;
    let rooms = vec![
        Room {
            of: "the role's CONNECTION LIMIT",
            free: answers.number(),
            mend: "raise it above what it is, or take it off: ALTER ROLE … CONNECTION LIMIT …, for the role in the source's url, as a \
                   superuser or a role that made it",
        },
        Room {
            of: "the database's CONNECTION LIMIT",
            free: answers.number(),
            mend: "raise it above what it is, ALTER DATABASE … CONNECTION LIMIT …, or let applications hold fewer connections",
        },
        Room {
            of: "max_connections",
            free: answers.number(),
            mend: "let applications hold fewer connections, or raise max_connections (needs a restart of the server)",
        },
    ];
    Ok((rooms, answers.unseen))
}
