//! Store and slot at the beginning of a life, against a real server and a real store.

use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::change::Position;
use crate::config::{Hold, StateConfig};
use crate::demo::cluster::roles::Role;
use crate::feed::Progress;
use crate::memory::Memory;
use crate::metrics::SourceMetrics;
use crate::source::slot::tests::{Stage, sink};
use crate::source::{Consumer, SourceParts};
use crate::store::{AcceptedBy, Batch, KeptProgress, SourceBinding};
use crate::view::Views;

/// A server with a table, and a directory for a store.
struct House {
    stage: Stage,
    directory: TempDir,
}

/// One life of a daemon, as far as the opening of its source.
struct Life {
    source: Source,
    store: Store,
}

impl House {
    async fn new() -> Self {
        let stage = Stage::new(&[], "create table orders (id int primary key)").await;
        Self { stage, directory: tempfile::tempdir().unwrap() }
    }

    fn live(&self) -> Life {
        self.live_with("walhook_app")
    }

    fn state_config(&self) -> StateConfig {
        StateConfig {
            path: self.directory.path().join("state"),
            hold: Hold::Store,
            max_bytes: 64 << 20,
            dead_letter_retention: Duration::from_secs(60),
            log_retention: Duration::from_secs(60),
            log_max_rows: 10,
        }
    }

    fn live_with(&self, slot: &str) -> Life {
        let state = self.state_config();
        let store = Store::open(&state, 1).unwrap();
        store.register("app", &["s"]).unwrap();
        let appetite = Arc::new(Notify::new());
        let progress = Arc::new(Progress::new(Arc::clone(&appetite)));
        let source = Source::new(SourceParts {
            config: crate::config::SourceConfig { slot: slot.to_owned(), ..self.stage.source() },
            consumers: vec![Consumer { config: sink("s", &["public.orders"]), feed: None, progress }],
            appetite,
            memory: Memory::new(64 << 20),
            views: Arc::new(Views::default()),
            metrics: SourceMetrics::new("app"),
            store: store.clone(),
            store_path: state.path,
            absent: Vec::new(),
            seed: 1,
        });
        Life { source, store }
    }

    async fn sql(&self, sql: &str) {
        self.stage.client.batch_execute(sql).await.unwrap();
    }

    /// As superuser, or another role with REPLICATION.
    async fn admin_sql(&self, sql: &str) {
        self.stage.admin.batch_execute(sql).await.unwrap();
    }

    /// Starts the server on a new timeline.
    async fn promote(&mut self) {
        let cluster = &self.stage.cluster;
        cluster.stop("fast").unwrap();
        let auto = cluster.data().join("postgresql.auto.conf");
        let settings = std::fs::read_to_string(&auto).unwrap_or_default();
        // From 16 on a server in recovery keeps logical slots only if it takes connections.
        let major: u32 = std::fs::read_to_string(cluster.data().join("PG_VERSION")).unwrap().trim().parse().unwrap();
        let closed = if major < 16 { "hot_standby = off\n" } else { "" };
        std::fs::write(&auto, settings + closed).unwrap();
        let signal = cluster.data().join("standby.signal");
        std::fs::write(&signal, "").unwrap();
        // The server runs as the owner of its data, who must be able to remove the signal.
        let owner = format!("--reference={}", cluster.data().display());
        assert!(std::process::Command::new("chown").arg(owner).arg(&signal).status().unwrap().success());
        cluster.resume_without_waiting().unwrap();
        cluster.promote().unwrap();
        let urls = [Role::Owner, Role::Superuser].map(|role| self.stage.cluster.url_as(role, "postgres"));
        self.stage.client = self.stage.session(&urls[0]).await;
        self.stage.admin = self.stage.session(&urls[1]).await;
    }

    /// What `walhook state accept-gap` notes.
    fn accept_gap(&self) {
        let store = Store::open(&self.state_config(), 1).unwrap();
        store.accept_gap("app", Some(AcceptedBy::Person)).unwrap();
        store.close();
    }

    /// Changes one row of the store.
    fn write(&self, sql: &str) {
        let db = rusqlite::Connection::open(self.directory.path().join("state/state.db")).unwrap();
        assert_eq!(db.execute(sql, []).unwrap(), 1);
    }
}

impl Life {
    /// Opens, and lets the sink have resolved everything up to where the stream begins; that position.
    async fn go(mut self) -> Lsn {
        drop(self.source.open().await.unwrap_or_else(|problem| panic!("{problem}")));
        let (key, _) = self.store.load("app", "s").unwrap();
        let resolved = self.source.confirmed;
        let progress = Some(KeptProgress { resolved, high: None, unresolved: Vec::new() });
        self.store.submit(Batch { sink: key, ops: Vec::new(), progress }).await.unwrap();
        self.store.close();
        resolved
    }

    /// What keeps it from opening, and that nothing was made.
    async fn refusal(mut self) -> (String, String) {
        let Err(problem) = self.source.open().await else { panic!("it opened") };
        self.store.close();
        assert!(problem.fatal_at_start().is_some(), "{problem:?}");
        (problem.to_string(), problem.advice())
    }

    /// What its sink is told.
    fn fed(&mut self) -> tokio::sync::mpsc::Receiver<Vec<Feed>> {
        let (feed, fed) = tokio::sync::mpsc::channel(4);
        self.source.consumers[0].feed = Some(feed);
        fed
    }

    fn binding(&self) -> SourceBinding {
        self.store.source("app").unwrap().unwrap()
    }
}

const SLOTS: &str = "select count(*) from pg_replication_slots";
const MAKE: &str = "select pg_create_logical_replication_slot('walhook_app', 'pgoutput')";
const DROP: &str = "select pg_drop_replication_slot('walhook_app')";

async fn slots(house: &House) -> i64 {
    house.stage.client.query_one(SLOTS, &[]).await.unwrap().get(0)
}

/// The server may take a moment to notice that a reader is gone.
async fn free(house: &House) {
    let active = "select count(*) from pg_replication_slots where active";
    while house.stage.client.query_one(active, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_new_source_is_bound_and_goes_on_where_the_store_is_though_the_slot_is_behind() {
    let house = House::new().await;
    let first = house.live();
    assert_eq!(first.store.source("app").unwrap(), None);
    let began = first.go().await;
    free(&house).await;

    let mut second = house.live();
    let binding = second.binding();
    assert_eq!((binding.confirmed, binding.slot.as_str()), (Some(began), "walhook_app"));
    // What a crashed server forgot of the slot's position is not read again.
    let (key, _) = second.store.load("app", "s").unwrap();
    house.admin_sql("insert into orders values (1); select pg_switch_wal()").await;
    let ahead = Lsn(began.0 + 64);
    let progress = Some(KeptProgress { resolved: ahead, high: None, unresolved: Vec::new() });
    second.store.submit(Batch { sink: key, ops: Vec::new(), progress }).await.unwrap();
    drop(second.source.open().await.unwrap_or_else(|problem| panic!("{problem}")));
    assert_eq!(second.source.confirmed, ahead);
}

#[tokio::test]
async fn a_slot_that_is_gone_is_a_gap_until_it_is_accepted_and_is_not_made_before() {
    let house = House::new().await;
    let known = house.live().go().await;
    free(&house).await;
    house.admin_sql(DROP).await;
    house.sql("insert into orders values (1)").await;

    let (what, advice) = house.live().refusal().await;
    assert!(what.contains("is gone") && what.contains(&known.to_string()), "{what}");
    assert!(advice.contains("walhook state accept-gap app"), "{advice}");
    assert_eq!(slots(&house).await, 0, "a slot was made over the gap");

    house.accept_gap();
    let from = house.live().go().await;
    assert!(from > known);
    let after = house.live();
    assert_eq!((after.binding().gap_accepted, after.binding().confirmed), (None, Some(from)));
}

#[tokio::test]
async fn a_slot_that_is_gone_is_a_gap_though_all_sinks_are_new() {
    let house = House::new().await;
    let known = house.live().go().await;
    free(&house).await;
    house.admin_sql(DROP).await;
    house.write("UPDATE sink SET name = 'before'");
    let (what, _) = house.live().refusal().await;
    assert!(what.contains("is gone") && what.contains(&known.to_string()), "{what}");
    assert_eq!(slots(&house).await, 0, "a slot was made over the gap");
}

#[tokio::test]
async fn a_slot_that_was_made_anew_is_a_gap_from_one_position_to_another() {
    let house = House::new().await;
    let known = house.live().go().await;
    free(&house).await;
    house.admin_sql(DROP).await;
    house.sql("insert into orders values (1)").await;
    house.admin_sql(MAKE).await;
    let (what, _) = house.live().refusal().await;
    assert!(what.contains(&format!("from {known} to ")), "{what}");
    house.accept_gap();
    assert!(house.live().go().await > known);
}

#[tokio::test]
async fn another_slot_or_another_database_is_refused_before_anything_is_made() {
    let house = House::new().await;
    house.live().go().await;
    free(&house).await;
    let (what, _) = house.live_with("walhook_two").refusal().await;
    assert!(what.contains("belongs to slot walhook_app"), "{what}");
    assert_eq!(slots(&house).await, 1);

    let elsewhere = House::new().await;
    let moved = House { stage: elsewhere.stage, directory: house.directory };
    let (what, advice) = moved.live().refusal().await;
    assert!(what.contains("belongs to cluster"), "{what}");
    assert!(advice.contains("state.path"), "{advice}");
    assert_eq!(slots(&moved).await, 0);
}

#[tokio::test]
async fn a_promotion_while_it_was_away_goes_on_only_if_it_kept_all_that_was_read() {
    let mut house = House::new().await;
    house.live().go().await;
    free(&house).await;
    house.promote().await;
    let after = house.live();
    assert_eq!(after.binding().timeline, Some(1));
    let resolved = after.go().await;
    free(&house).await;
    let life = house.live();
    assert_eq!(life.binding().timeline, Some(2), "known before anything of it is read");

    // As after the promotion of a standby that lacked the change that was read last.
    let (key, _) = life.store.load("app", "s").unwrap();
    let lacked = Position { commit_lsn: Lsn(resolved.0 + (1 << 30)), index: 1 };
    let progress = Some(KeptProgress { resolved, high: Some(lacked), unresolved: Vec::new() });
    life.store.submit(Batch { sink: key, ops: Vec::new(), progress }).await.unwrap();
    life.store.close();
    house.promote().await;
    let (what, _) = house.live().refusal().await;
    assert!(what.contains("left timeline 2 at") && what.contains("never happened"), "{what}");
}

#[tokio::test]
async fn while_the_database_is_down_the_sinks_go_on_with_what_the_store_holds_but_not_after_a_refusal() {
    let house = House::new().await;
    house.live().go().await;
    free(&house).await;
    let mut other = house.live_with("walhook_two");
    assert!(other.source.open().await.is_err());
    assert!(!other.source.has_begun, "what is refused is not begun");
    other.store.close();

    house.stage.cluster.stop("immediate").unwrap();
    let mut life = house.live();
    assert!(matches!(life.source.open().await, Err(Problem::Connect(_))));
    let mut fed = life.fed();
    life.source.let_sinks_begin().await;
    let told = fed.try_recv().unwrap();
    let system_id = life.binding().system_id;
    assert!(
        matches!(told.as_slice(), [Feed::Database { system_id: told }, Feed::Weight(_)] if *told == system_id),
        "{told:?}"
    );
    life.source.let_sinks_begin().await;
    assert!(fed.try_recv().is_err(), "once is enough");
}

#[tokio::test]
async fn after_an_accepted_gap_the_sinks_begin_where_the_store_is_bound_and_not_before() {
    let house = House::new().await;
    house.live().go().await;
    free(&house).await;
    house.admin_sql(DROP).await;
    house.accept_gap();
    house.stage.cluster.stop("immediate").unwrap();
    let mut life = house.live();
    let mut fed = life.fed();
    assert!(matches!(life.source.open().await, Err(Problem::Connect(_))));
    life.source.let_sinks_begin().await;
    assert!(fed.try_recv().is_err(), "their progress would be behind what the store is bound to next");

    house.stage.cluster.resume().unwrap();
    drop(life.source.open().await.unwrap_or_else(|problem| panic!("{problem}")));
    let (told, bound) = (fed.try_recv().unwrap(), life.binding().confirmed.unwrap());
    assert!(
        matches!(told.as_slice(), [Feed::Database { .. }, Feed::Mark(at), Feed::Weight(_)] if *at == bound),
        "{bound}: {told:?}"
    );
}

#[tokio::test]
async fn sinks_go_on_with_what_the_store_holds_as_soon_as_it_is_known_to_be_of_the_database() {
    let house = House::new().await;
    house.live().go().await;
    free(&house).await;
    let mut life = house.live();
    let mut fed = life.fed();
    // Before the slot is made ready, which may take hours.
    let (_, _, step) = life.source.agree(&house.stage.own).await.unwrap_or_else(|problem| panic!("{problem}"));
    assert_eq!(step, Step::GoOn);
    let told = fed.try_recv().unwrap();
    assert!(matches!(told.as_slice(), [Feed::Database { .. }, Feed::Weight(_)]), "{told:?}");
}

#[tokio::test]
async fn a_store_that_is_missing_beside_a_slot_goes_on_from_its_position() {
    let house = House::new().await;
    let began = house.live().go().await;
    free(&house).await;
    std::fs::remove_dir_all(house.directory.path().join("state")).unwrap();
    let again = house.live();
    assert_eq!(again.store.source("app").unwrap(), None);
    assert!(again.go().await <= began);
    assert_eq!(house.live().binding().slot, "walhook_app");
}

#[tokio::test]
async fn recreate_replaces_a_lost_slot_also_when_a_crash_lies_between_the_decision_and_the_slot() {
    let house = House::new().await;
    let known = house.live().go().await;
    free(&house).await;
    for crashes in [false, true] {
        house.admin_sql(DROP).await;
        house.sql("insert into orders select coalesce(max(id), 0) + 1 from orders").await;
        let mut life = house.live();
        life.source.config.on_slot_lost = OnSlotLost::Recreate;
        let Err(problem) = life.source.open().await else { panic!("it opened over the gap") };
        assert!(matches!(problem, Problem::Lost(_)), "{problem:?}");
        life.source.replace_lost(problem).await.unwrap_or_else(|problem| panic!("{problem}"));
        assert!(life.binding().gap_accepted.is_some() && slots(&house).await == 0, "the decision comes first");
        if crashes {
            life.store.close();
            life = house.live();
            life.source.config.on_slot_lost = OnSlotLost::Recreate;
        }
        drop(life.source.open().await.unwrap_or_else(|problem| panic!("{problem}")));
        let gaps = life.store.gaps("app").unwrap();
        assert_eq!(gaps.len(), 1 + usize::from(crashes), "{gaps:?}");
        assert_eq!(gaps[0].why, if crashes { "lost" } else { "dropped" });
        assert_eq!((gaps[0].to, life.binding().gap_accepted), (life.source.confirmed, None));
        assert!(gaps[0].from >= Some(known) && gaps[0].from < Some(gaps[0].to), "{gaps:?}");
        assert_eq!(life.source.views.sources.get("app").unwrap().gaps.len(), 1);
        life.store.close();
        free(&house).await;
    }
}

#[tokio::test]
async fn what_the_setting_accepted_is_void_once_it_says_stop() {
    let house = House::new().await;
    house.live().go().await;
    free(&house).await;
    house.admin_sql(DROP).await;
    let mut life = house.live();
    life.source.config.on_slot_lost = OnSlotLost::Recreate;
    let Err(problem) = life.source.open().await else { panic!("it opened over the gap") };
    life.source.replace_lost(problem).await.unwrap_or_else(|problem| panic!("{problem}"));
    assert_eq!(life.binding().gap_accepted, Some(AcceptedBy::Setting));
    life.store.close();

    let (what, _) = house.live().refusal().await;
    assert!(what.contains("is gone"), "{what}");
    assert_eq!(slots(&house).await, 0, "a slot was made over a gap that nobody accepted");
    house.accept_gap();
    house.live().go().await;
}

#[tokio::test]
async fn a_slot_that_is_there_after_all_is_no_gap() {
    let house = House::new().await;
    let known = house.live().go().await;
    free(&house).await;
    let mut life = house.live();
    life.source.config.on_slot_lost = OnSlotLost::Recreate;
    for has_streamed in [false, true] {
        let lost = LostSlot::dropped(None, Trouble { what: "gone".to_owned(), advice: String::new() });
        life.source.replace_lost(Problem::Lost(Box::new(lost))).await.unwrap_or_else(|problem| panic!("{problem}"));
        assert!(life.source.lost.is_some() && life.binding().gap_accepted.is_some());
        drop(life.source.open().await.unwrap_or_else(|problem| panic!("{problem}")));
        assert_eq!(life.store.gaps("app").unwrap(), []);
        assert!(life.source.lost.is_none() && life.source.accepted_until.is_none());
        assert_eq!((life.binding().gap_accepted, life.source.confirmed), (None, known), "{has_streamed}");
        life.source.has_streamed = true;
        free(&house).await;
    }
}
