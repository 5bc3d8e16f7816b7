//! What kind of server this is, as whom we speak to it, and whether it can do what walhook needs.

use std::time::Duration;

use tokio_postgres::Client;

use super::error::{Passing, PrepareError, bounded};
use super::names::{literal, quoted};
use crate::view::Trouble;

/// The oldest server walhook reads from, as `server_version_num`.
pub(crate) const VERSION_MIN: u32 = 140_000;

/// The oldest server whose standbys keep copies of slots.
const FAILOVER_MIN: u32 = 170_000;
/// An `idle_replication_slot_timeout` below this is shorter than many an outage or planned stop.
const IDLE_TIMEOUT_MIN: Duration = Duration::from_secs(3600);

/// Facts of one server and session.
#[derive(Debug, Clone)]
pub(crate) struct ServerFacts {
    /// `server_version_num`: 150018 is 15.18.
    pub(crate) version: u32,
    /// `wal_level`, or PG19's `effective_wal_level`.
    pub(crate) wal_level: String,
    /// A standby.
    pub(crate) in_recovery: bool,
    /// Database of this session.
    pub(crate) database: String,
    /// Role of this session.
    pub(crate) role: String,
    /// The role may create and read slots.
    pub(crate) may_replicate: bool,
    /// The role may create a publication.
    pub(crate) may_create: bool,
    /// `rds_replication` exists: what the role must be granted on Amazon RDS.
    pub(crate) is_rds: bool,
    /// `idle_replication_slot_timeout` (18); zero: never.
    pub(crate) idle_timeout: Duration,
    /// `output_plugin_libraries`, where the server has it (minor releases of August 2026 on).
    pub(crate) output_plugins: Option<String>,
}

/// `current_setting` raises for a setting that the role may not see; pg_settings leaves it out.
const FACTS: &str = "
select current_setting('server_version_num')::int4,
       coalesce(current_setting('effective_wal_level', true), current_setting('wal_level')),
       pg_is_in_recovery(),
       current_database()::text,
       current_user::text,
       (select r.rolsuper or r.rolreplication from pg_roles r where r.rolname = current_user)
         or exists (select from pg_roles r where r.rolname = 'rds_replication' and pg_has_role(r.oid, 'MEMBER')),
       has_database_privilege(current_database(), 'CREATE'),
       exists (select from pg_roles where rolname = 'rds_replication'),
       (select setting from pg_settings where name = 'output_plugin_libraries'),
       extract(epoch from coalesce(current_setting('idle_replication_slot_timeout', true), '0')::interval)::int8";

/// Reads the facts.
pub(crate) async fn read(client: &Client) -> Result<ServerFacts, PrepareError> {
    let row = bounded("read the server's settings", client.query_one(FACTS, &[])).await?;
    let version: i32 = row.get(0);
    Ok(ServerFacts {
        version: u32::try_from(version).unwrap_or_default(),
        wal_level: row.get(1),
        in_recovery: row.get(2),
        database: row.get(3),
        role: row.get(4),
        may_replicate: row.get(5),
        may_create: row.get(6),
        is_rds: row.get(7),
        output_plugins: row.get(8),
        idle_timeout: Duration::from_secs(u64::try_from(row.get::<_, i64>(9)).unwrap_or_default()),
    })
}

/// Settings that decide how long a slot lives and whether another fits.
#[derive(Debug, Clone)]
pub(crate) struct ServerLimits {
    pub(crate) slots_max: i64,
    pub(crate) slots_used: i64,
    pub(crate) senders_max: i64,
    pub(crate) senders_used: i64,
    /// `max_slot_wal_keep_size` as shown; `-1` = no bound.
    pub(crate) keep_size: String,
    /// `idle_replication_slot_timeout` as shown, where the server has it (18); `0` = never.
    pub(crate) idle_timeout: Option<String>,
    /// `wal_sender_timeout` as shown; `0` = never.
    pub(crate) sender_timeout: String,
    /// `wal_level` as configured, whatever is in effect.
    pub(crate) wal_level: String,
    /// `synchronized_standby_slots` (17); empty: a walsender waits for no standby.
    pub(crate) synchronized_standbys: String,
}

const LIMITS: &str = "
select current_setting('max_replication_slots')::int8, (select count(*) from pg_replication_slots),
       current_setting('max_wal_senders')::int8, (select count(*) from pg_stat_replication),
       current_setting('max_slot_wal_keep_size'),
       current_setting('idle_replication_slot_timeout', true), current_setting('wal_sender_timeout'),
       current_setting('wal_level'), coalesce(current_setting('synchronized_standby_slots', true), '')";

/// Reads the limits.
pub(crate) async fn limits(client: &Client) -> Result<ServerLimits, PrepareError> {
    let row = bounded("read the server's limits", client.query_one(LIMITS, &[])).await?;
    Ok(ServerLimits {
        slots_max: row.get(0),
        slots_used: row.get(1),
        senders_max: row.get(2),
        senders_used: row.get(3),
        keep_size: row.get(4),
        idle_timeout: row.get(5),
        sender_timeout: row.get(6),
        wal_level: row.get(7),
        synchronized_standbys: row.get(8),
    })
}

impl ServerFacts {
    /// What keeps walhook from reading this server at all, each with what mends it.
    pub(crate) fn obstacles(&self) -> Vec<(String, String)> {
        let mut obstacles = Vec::new();
        if self.version < VERSION_MIN {
            let what = format!("the server is Postgres {}; walhook reads 14 and later", self.version_text());
            obstacles.push((what, "upgrade the server".to_owned()));
        }
        // PG19 raises the level by itself when the first logical slot is made, unless it is minimal.
        let raises_itself = self.version >= 190_000 && self.wal_level == "replica";
        if self.wal_level != "logical" && !raises_itself {
            let what = format!("wal_level is {}; logical replication needs logical", self.wal_level);
            let advice = "ALTER SYSTEM SET wal_level = 'logical'; then restart the server (Amazon RDS: \
                          rds.logical_replication = 1, Cloud SQL: cloudsql.logical_decoding = on, Azure: \
                          wal_level in the server parameters)";
            obstacles.push((what, advice.to_owned()));
        }
        if self.in_recovery && self.version < 160_000 {
            let what =
                format!("the server is a standby, and Postgres {} has no logical slots there", self.version_text());
            obstacles.push((what, "name the primary in the source's url, or upgrade to 16".to_owned()));
        }
        if !self.may_replicate {
            let what = format!("the role {} may not use replication slots", self.role);
            obstacles.push((what, self.grant_replication()));
        }
        if let Some(allowed) = &self.output_plugins
            && !allowed.split(',').any(|name| name.trim() == "pgoutput")
        {
            let what = format!("output_plugin_libraries ({allowed}) does not allow pgoutput");
            let others = allowed.split(',').map(str::trim).filter(|name| !name.is_empty());
            let list: Vec<String> = std::iter::once("pgoutput").chain(others).map(literal).collect();
            let list = list.join(", ");
            let mend = format!("ALTER SYSTEM SET output_plugin_libraries = {list}; SELECT pg_reload_conf();");
            obstacles.push((what, mend));
        }
        obstacles
    }

    /// The obstacles as one error.
    pub(crate) fn usable(&self) -> Result<(), PrepareError> {
        let obstacles = self.obstacles();
        if obstacles.is_empty() {
            return Ok(());
        }
        let (what, advice): (Vec<_>, Vec<_>) = obstacles.into_iter().unzip();
        Err(PrepareError::lasting(what.join("; "), advice.join("\n")))
    }

    /// Whether a slot may be one for a failover here.
    pub(crate) fn keeps_copies(&self) -> Result<(), PrepareError> {
        if self.version < FAILOVER_MIN {
            let what =
                format!("failover = true needs Postgres 17 or later; the server is Postgres {}", self.version_text());
            let advice = "upgrade the server, or set failover = false: then a promoted standby has no copy of the slot";
            return Err(PrepareError::lasting(what, advice));
        }
        match self.in_recovery {
            true => {
                Err(Passing::Standby("with failover = true the slot is read on the primary: waiting for one").into())
            }
            false => Ok(()),
        }
    }

    /// The server soon gives up a slot that nobody reads.
    pub(crate) fn impatience(&self) -> Option<Trouble> {
        let timeout = self.idle_timeout;
        (timeout > Duration::ZERO && timeout < IDLE_TIMEOUT_MIN).then(|| Trouble {
            what: format!(
                "idle_replication_slot_timeout is {} s: a longer stop of walhook, or a longer loss of the connection, loses \
                 the slot",
                timeout.as_secs()
            ),
            advice: "set it to 0, or above the longest outage you plan for; then SELECT pg_reload_conf();".to_owned(),
        })
    }

    /// SQL that lets the role use slots.
    pub(crate) fn grant_replication(&self) -> String {
        match self.is_rds {
            true => format!("GRANT rds_replication TO {};", quoted(&self.role)),
            false => format!("ALTER ROLE {} REPLICATION;", quoted(&self.role)),
        }
    }

    /// SQL that lets the role create a publication.
    pub(crate) fn grant_create(&self) -> String {
        format!("GRANT CREATE ON DATABASE {} TO {};", quoted(&self.database), quoted(&self.role))
    }

    /// `15.18`
    pub(crate) fn version_text(&self) -> String {
        format!("{}.{}", self.version / 10_000, self.version % 10_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ServerFacts {
        ServerFacts {
            version: 170_011,
            wal_level: "logical".to_owned(),
            in_recovery: false,
            database: "app".to_owned(),
            role: "walhook".to_owned(),
            may_replicate: true,
            may_create: true,
            is_rds: false,
            idle_timeout: Duration::ZERO,
            output_plugins: None,
        }
    }

    #[test]
    fn pitfall_44_a_list_of_output_plugins_without_ours_is_an_obstacle() {
        let listed = |list: &str| ServerFacts { output_plugins: Some(list.to_owned()), ..facts() }.obstacles();
        assert!(facts().obstacles().is_empty());
        assert!(listed("pgoutput, test_decoding").is_empty());
        let obstacles = listed("wal2json, test_decoding");
        let [(what, mend)] = obstacles.as_slice() else { panic!("{obstacles:?}") };
        assert_eq!(what, "output_plugin_libraries (wal2json, test_decoding) does not allow pgoutput");
        assert!(
            mend.starts_with("ALTER SYSTEM SET output_plugin_libraries = 'pgoutput', 'wal2json', 'test_decoding';"),
            "{mend}"
        );
    }

    #[test]
    fn pitfall_45_a_server_that_raises_its_wal_level_by_itself_is_let_do_so() {
        let level = |version, wal_level: &str| {
            ServerFacts { version, wal_level: wal_level.to_owned(), ..facts() }.obstacles().len()
        };
        assert_eq!((level(180_000, "replica"), level(190_000, "replica"), level(190_000, "minimal")), (1, 0, 1));
    }

    #[test]
    fn pitfall_35_a_timeout_shorter_than_an_hour_is_warned_of() {
        let impatience = |secs| ServerFacts { idle_timeout: Duration::from_secs(secs), ..facts() }.impatience();
        assert_eq!((impatience(0), impatience(3600)), (None, None));
        assert!(impatience(3599).unwrap().what.contains("idle_replication_slot_timeout is 3599 s"));
    }

    #[test]
    fn pitfall_39_a_copy_of_the_slot_needs_17_and_a_primary() {
        assert!(facts().keeps_copies().is_ok());
        let older = ServerFacts { version: 160_014, ..facts() }.keeps_copies().unwrap_err();
        assert_eq!(older.to_string(), "failover = true needs Postgres 17 or later; the server is Postgres 16.14");
        let standby = ServerFacts { in_recovery: true, ..facts() }.keeps_copies().unwrap_err();
        assert!(matches!(standby, PrepareError::Passing(Passing::Standby(_))), "{standby}");
    }
}
