//! Against a real server, beside no stream at all.

use std::time::SystemTime;

use tokio::task::JoinSet;

use super::*;
use crate::config::{Hold, StateConfig};
use crate::source::slot::tests::{Stage, sink, site};
use crate::store::{NoteKind, Store};
use crate::view::{SourceState, SourceView, Views};

/// A server with a table and slot and publication for it, and housekeeping that runs.
struct House {
    stage: Stage,
    views: SharedViews,
    store: Store,
    _directory: tempfile::TempDir,
    _running: JoinSet<()>,
}

impl House {
    /// `sql` runs between the two.
    async fn new(sql: &str) -> Self {
        let mut stage = Stage::new(&[], "create table orders (id int primary key)").await;
        let (source, sinks) = (stage.source(), vec![sink("s", &["public.orders"])]);
        slot::prepare(site(&stage.own, &source, &sinks), &|_| {}, None).await.unwrap();
        stage.admin.batch_execute(sql).await.unwrap();
        let views = SharedViews::new(Views::default());
        views.sources.insert("app".to_owned(), SourceView::new(SourceState::Streaming, SystemTime::now()));
        let client = Arc::new(stage.session(&stage.cluster.url("postgres")).await);
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&state(directory.path()), 1).unwrap();
        let housekeeping = Housekeeping {
            client,
            watch: Watch::new(source.clone(), sinks.clone()),
            harms: Vec::new(),
            source,
            sinks,
            views: Arc::clone(&views),
            notes: Notes::load(&store, "app").await.unwrap(),
            troubles: Vec::new(),
            errors: Vec::new(),
            missed: Missed::default(),
            learnt: Learnt::default(),
        };
        let mut running = JoinSet::new();
        running.spawn(housekeeping.run());
        Self { stage, views, store, _directory: directory, _running: running }
    }

    /// The trouble that says `what`, once it is shown: a turn takes 5 s where a table is missing, and longer than this where
    /// none is.
    async fn trouble(&self, what: &str) -> Trouble {
        let shown = async {
            loop {
                let view = self.views.sources.get("app").unwrap().clone();
                let troubles = view.troubles.into_iter().chain(view.errors).chain(view.notes.warnings);
                if let Some(trouble) = { troubles }.find(|trouble| trouble.what.contains(what)) {
                    return trouble;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let shown = tokio::time::timeout(Duration::from_secs(20), shown).await;
        shown.unwrap_or_else(|_| panic!("nothing says {what}"))
    }
}

fn state(path: &std::path::Path) -> StateConfig {
    StateConfig {
        path: path.to_owned(),
        hold: Hold::Store,
        max_bytes: 8 << 20,
        dead_letter_retention: Duration::from_secs(60),
        log_retention: Duration::from_secs(60),
        log_max_rows: 10,
    }
}

#[tokio::test]
async fn a_publication_that_is_gone_is_shown() {
    let house = House::new("drop publication walhook_app").await;
    let trouble = house.trouble("the publication walhook_app does not").await;
    assert!(trouble.advice.contains("pg_drop_replication_slot"), "{trouble:?}");
}

#[tokio::test]
async fn a_named_table_that_is_made_anew_is_published_soon_and_what_was_missed_is_said_until_the_end() {
    let house = House::new("drop table orders").await;
    house.trouble("the database has no table public.orders").await;
    house.stage.client.batch_execute("create table orders (id int primary key)").await.unwrap();
    let said = "public.orders was made or renamed while the source ran";
    house.trouble(said).await;
    let published = "select count(*) from pg_publication_rel";
    assert_eq!(house.stage.client.query_one(published, &[]).await.unwrap().get::<_, i64>(0), 1);
    let kept = house.store.notes("app").unwrap();
    assert_eq!((kept.len(), kept[0].key.kind), (1, NoteKind::MadeAnew), "{kept:?}");
}
