//! What kind of server this is, as whom we speak to it, and whether it can do what walhook needs.

use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::error::{Passing, PrepareError, bounded, misread};
use super::lockers;
use super::rooms::{self, Room};
use super::synchronous;
use super::unseen::{Question, Unseen, ask};
use crate::source::advice::Statement;
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
    /// `wal_level`, or PG19's `effective_wal_level`, if the role may see it.
    pub(crate) wal_level: Option<String>,
    /// A standby.
    pub(crate) in_recovery: bool,
    /// Database of this session.
    pub(crate) database: String,
    /// Role of this session.
    pub(crate) role: String,
    /// The role of this session, or the one that logged in, is a superuser.
    pub(crate) is_superuser: bool,
    /// The role may create and read slots.
    pub(crate) may_replicate: bool,
    /// The role may create a publication.
    pub(crate) may_create: bool,
    /// `rds_replication` exists: what the role must be granted on Amazon RDS.
    pub(crate) is_rds: bool,
    /// The role has the privileges of the roles that it is a member of, unless a membership says otherwise.
    pub(crate) inherits: bool,
    /// `idle_replication_slot_timeout` (18); zero: never.
    pub(crate) idle_timeout: Duration,
    /// `output_plugin_libraries`, where the server has it (minor releases of August 2026 on) and the role may see it.
    pub(crate) output_plugins: Option<String>,
    /// `synchronous_standby_names`, if the role may see it.
    pub(crate) synchronous_standbys: Option<String>,
    /// How long to wait for the lock of one table, see [`lockers`].
    pub(crate) lock_wait: Duration,
    /// What of these could not be seen.
    pub(crate) unseen: Vec<Unseen>,
}

/// What nothing can be done without.
const FACTS: &str = "
select current_setting('server_version_num')::int4, pg_is_in_recovery(), current_database()::text, current_user::text";

/// What the facts have beside that. The list of output plugins is asked of pg_settings, which leaves out what a role may
/// not see: `current_setting` raises for it, and this is asked again and again.
fn questions() -> Vec<Question> {
    let timeout = "extract(epoch from coalesce(current_setting('idle_replication_slot_timeout', true), '0')::interval)";
    vec![
        Question::setting("wal_level", "whether the server writes what walhook reads"),
        Question::newer_setting("effective_wal_level", "whether the server writes what walhook reads"),
        Question::new(
            "pg_roles",
            "select r.rolsuper or r.rolreplication from pg_roles r where r.rolname = current_user",
            "whether the role may use replication slots",
        ),
        Question::new(
            "pg_roles",
            "exists (select from pg_roles where rolname = 'rds_replication')",
            "whether this is Amazon RDS",
        ),
        Question::new(
            "pg_has_role",
            "exists (select from pg_roles r where r.rolname = 'rds_replication' and pg_has_role(r.oid, 'MEMBER'))",
            "whether the role may use replication slots on Amazon RDS",
        ),
        Question::new(
            "has_database_privilege",
            "has_database_privilege(current_database(), 'CREATE')",
            "whether the role may make a publication",
        ),
        Question::new(
            "pg_settings",
            "select setting from pg_settings where name = 'output_plugin_libraries'",
            "whether the server lets pgoutput be used",
        ),
        Question::new(
            "idle_replication_slot_timeout",
            format!("{timeout}::int8"),
            "how soon the server gives up a slot",
        ),
        Question::setting("synchronous_standby_names", "whether commits wait for walhook"),
        Question::new(
            "pg_roles",
            "select r.rolinherit from pg_roles r where r.rolname = current_user",
            "whether the role has the privileges of its memberships",
        ),
        lockers::deadlock_timeout(),
        Question::new(
            "pg_roles",
            "exists (select from pg_roles r where r.rolname in (current_user, session_user) and r.rolsuper)",
            "whether the role is a superuser",
        ),
    ]
}

/// What [`FACTS`] answers.
struct Facts {
    version: i32,
    in_recovery: bool,
    database: String,
    role: String,
}

impl Facts {
    fn of_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            version: row.try_get(0)?,
            in_recovery: row.try_get(1)?,
            database: row.try_get(2)?,
            role: row.try_get(3)?,
        })
    }
}

/// Reads the facts.
pub(crate) async fn read(client: &Client) -> Result<ServerFacts, PrepareError> {
    let doing = "read the server's settings";
    let row = bounded(doing, client.query_one(FACTS, &[])).await?;
    let facts = Facts::of_row(&row).map_err(misread(doing))?;
    let mut answers = ask(client, doing, &questions()).await?;
    let (configured, effective) = (answers.text(), answers.text());
    let (attribute, is_rds, is_granted) = (answers.truth(), answers.truth(), answers.truth());
    Ok(ServerFacts {
        version: u32::try_from(facts.version).unwrap_or_default(),
        wal_level: effective.or(configured),
        in_recovery: facts.in_recovery,
        database: facts.database,
        role: facts.role,
        may_replicate: attribute != Some(false) || is_granted == Some(true),
        is_rds: is_rds == Some(true),
        may_create: answers.truth() != Some(false),
        output_plugins: answers.text(),
        idle_timeout: Duration::from_secs(answers.number().and_then(|secs| secs.try_into().ok()).unwrap_or_default()),
        synchronous_standbys: answers.text(),
        inherits: answers.truth() != Some(false),
        lock_wait: lockers::past(answers.number()),
        is_superuser: answers.truth() == Some(true),
        unseen: answers.unseen,
    })
}

/// The cluster's system identifier, if the role may ask for it, and the database's name.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn whose(client: &Client) -> Result<(Option<u64>, String), PrepareError> {
    let questions = [
        Question::new("pg_control_system", "select system_identifier from pg_control_system()", "which cluster it is"),
        Question::new("current_database", "current_database()", "which database it is"),
    ];
    let mut answers = ask(client, "ask which database it is", &questions).await?;
    Ok((answers.number().map(i64::cast_unsigned), answers.text().unwrap_or_default()))
}

/// Settings that decide how long a slot lives and whether another fits; `None` is unknown.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerLimits {
    pub(crate) slots_max: Option<i64>,
    pub(crate) slots_used: Option<i64>,
    pub(crate) senders_max: Option<i64>,
    pub(crate) senders_used: Option<i64>,
    /// `max_slot_wal_keep_size` as shown; `-1` = no bound.
    pub(crate) keep_size: Option<String>,
    /// `idle_replication_slot_timeout` as shown, where the server has it (18); `0` = never.
    pub(crate) idle_timeout: Option<String>,
    /// `wal_sender_timeout` as shown; `0` = never.
    pub(crate) sender_timeout: Option<String>,
    /// `wal_level` as configured, whatever is in effect.
    pub(crate) wal_level: Option<String>,
    /// `synchronized_standby_slots` (17); empty: a walsender waits for no standby.
    pub(crate) synchronized_standbys: Option<String>,
    /// Sessions that may still be had.
    pub(crate) rooms: Vec<Room>,
    /// What of these could not be seen.
    pub(crate) unseen: Vec<Unseen>,
}

/// Reads the limits, and what of the facts only an error tells from what the server does not have. For `check`.
pub(crate) async fn limits(client: &Client) -> Result<ServerLimits, PrepareError> {
    let questions = [
        Question::setting("max_replication_slots", "whether a slot is free"),
        Question::new("pg_replication_slots", "select count(*) from pg_replication_slots", "whether a slot is free"),
        Question::setting("max_wal_senders", "whether a WAL sender is free"),
        Question::new(
            "pg_stat_replication",
            "select count(*) from pg_stat_replication",
            "whether a WAL sender is free",
        ),
        Question::setting("max_slot_wal_keep_size", "how much WAL the server keeps for a slot"),
        Question::newer_setting("idle_replication_slot_timeout", "how soon the server gives up a slot"),
        Question::setting("wal_sender_timeout", "how soon the server notices a reader that is gone"),
        Question::setting("wal_level", "what the server is set to write"),
        Question::newer_setting("synchronized_standby_slots", "whether walhook may be ahead of a standby"),
        Question::newer_setting("output_plugin_libraries", "whether the server lets pgoutput be used"),
    ];
    let mut answers = ask(client, "read the server's limits", &questions).await?;
    let (rooms, unseen) = rooms::read(client).await?;
    Ok(ServerLimits {
        slots_max: answers.number(),
        slots_used: answers.number(),
        senders_max: answers.number(),
        senders_used: answers.number(),
        keep_size: answers.text(),
        idle_timeout: answers.text(),
        sender_timeout: answers.text(),
        wal_level: answers.text(),
        synchronized_standbys: answers.text(),
        rooms,
        unseen: answers.unseen.into_iter().chain(unseen).collect(),
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
        let raises_itself = |level: &str| self.version >= 190_000 && level == "replica";
        if let Some(level) = self.wal_level.as_deref().filter(|level| *level != "logical" && !raises_itself(level)) {
            let what = format!("wal_level is {level}; logical replication needs logical");
            let managed = "(Amazon RDS: rds.logical_replication = 1, Cloud SQL: cloudsql.logical_decoding = on, Azure: \
                           wal_level, all of them in the service's own parameters)";
            obstacles.push((what, format!("{}\nthen restart the server {managed}", Statement::wal_level())));
        }
        if self.in_recovery && self.version < 160_000 {
            let what =
                format!("the server is a standby, and Postgres {} has no logical slots there", self.version_text());
            obstacles.push((what, "name the primary in the source's url, or upgrade to 16".to_owned()));
        }
        if !self.may_replicate {
            let what = format!("the role {} may not use replication slots", self.role);
            obstacles.push((what, Statement::use_slots(&self.role, self.is_rds).to_string()));
        }
        if let Some(allowed) = &self.output_plugins
            && !allowed.split(',').any(|name| name.trim() == "pgoutput")
        {
            let what = format!("output_plugin_libraries ({allowed}) does not allow pgoutput");
            let others = allowed.split(',').map(str::trim).filter(|name| !name.is_empty());
            let list: Vec<&str> = std::iter::once("pgoutput").chain(others).collect();
            obstacles.push((what, Statement::output_plugins(&list).to_string()));
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
            advice: "set it above the longest outage you plan for, or to 0, with which no slot of the server is given up for \
                     being idle; then reload the server's configuration"
                .to_owned(),
        })
    }

    /// Commits of others wait for the session with this name, which reads the slot.
    pub(crate) fn commits_wait(&self, application: &str) -> Option<Trouble> {
        synchronous::trouble(self.synchronous_standbys.as_deref()?, application)
    }

    /// The role may do anything, and so may whatever it is brought to call.
    pub(crate) fn is_overpowered(&self) -> Option<Trouble> {
        self.is_superuser.then(|| Trouble {
            what: format!("the role {} is a superuser, and walhook needs none", self.role),
            advice: format!(
                "give walhook a role of its own, name it in the source's url, and let `walhook check` say what else it needs \
                 (docs/OPERATING.md has all of it)\n{}",
                Statement::own_role(&self.role)
            ),
        })
    }

    /// It has `restrict_nonsystem_relation_kind`, which came with minor releases of August 2024.
    pub(super) fn keeps_views_apart(&self) -> bool {
        matches!(self.version, 140_013..=149_999 | 150_008..=159_999 | 160_004..)
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
            wal_level: Some("logical".to_owned()),
            in_recovery: false,
            database: "app".to_owned(),
            role: "walhook".to_owned(),
            is_superuser: false,
            may_replicate: true,
            may_create: true,
            is_rds: false,
            inherits: true,
            idle_timeout: Duration::ZERO,
            output_plugins: None,
            synchronous_standbys: Some(String::new()),
            lock_wait: Duration::ZERO,
            unseen: Vec::new(),
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
            mend.contains("ALTER SYSTEM SET output_plugin_libraries = 'pgoutput', 'wal2json', 'test_decoding';"),
            "{mend}"
        );
    }

    #[test]
    fn pitfall_45_a_server_that_raises_its_wal_level_by_itself_is_let_do_so() {
        let level = |version, wal_level: &str| {
            ServerFacts { version, wal_level: Some(wal_level.to_owned()), ..facts() }.obstacles().len()
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

    #[test]
    fn views_are_kept_apart_from_the_minor_releases_of_august_2024_on() {
        for (version, keeps) in [
            (140_012, false),
            (140_013, true),
            (150_007, false),
            (150_008, true),
            (160_003, false),
            (160_004, true),
            (170_000, true),
        ] {
            assert_eq!(ServerFacts { version, ..facts() }.keeps_views_apart(), keeps, "{version}");
        }
    }
}
