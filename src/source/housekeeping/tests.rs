//! Against a real server, beside no stream at all.

use std::time::SystemTime;

use tokio::task::JoinSet;

use super::*;
use crate::source::slot::tests::{Stage, sink};
use crate::view::{SourceState, SourceView, Views};

/// A server with a table and slot and publication for it, and housekeeping that runs.
struct House {
    stage: Stage,
    views: SharedViews,
    _running: JoinSet<()>,
}

impl House {
    /// `sql` runs between the two.
    async fn new(sql: &str) -> Self {
        let mut stage = Stage::new(&[], "create table orders (id int primary key)").await;
        let (source, sinks) = (stage.source(), vec![sink("s", &["public.orders"])]);
        slot::prepare(&stage.own, &source, &sinks, &|_| {}).await.unwrap();
        stage.admin.batch_execute(sql).await.unwrap();
        let views = SharedViews::new(Views::default());
        views.sources.insert("app".to_owned(), SourceView::new(SourceState::Streaming, SystemTime::now()));
        let client = Arc::new(stage.session(&stage.cluster.url("postgres")).await);
        let housekeeping = Housekeeping {
            client,
            source,
            sinks,
            views: Arc::clone(&views),
            troubles: Vec::new(),
            uncaptured: Vec::new(),
        };
        let mut running = JoinSet::new();
        running.spawn(housekeeping.run());
        Self { stage, views, _running: running }
    }

    /// The trouble that says `what`, once it is shown.
    async fn trouble(&self, what: &str) -> Trouble {
        loop {
            let troubles = self.views.sources.get("app").unwrap().troubles.clone();
            if let Some(trouble) = troubles.into_iter().find(|trouble| trouble.what.contains(what)) {
                return trouble;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_publication_that_is_gone_is_shown() {
    let house = House::new("drop publication walhook_app").await;
    let trouble = house.trouble("the publication walhook_app does not").await;
    assert!(trouble.advice.contains("pg_drop_replication_slot"), "{trouble:?}");
}

/// The second of these takes a turn of 5 s; the usual one takes longer than the test is given.
#[tokio::test]
async fn a_named_table_that_is_made_anew_is_published_soon_and_what_was_missed_is_said_until_the_end() {
    let house = House::new("drop table orders").await;
    house.trouble("the database has no table public.orders").await;
    house.stage.client.batch_execute("create table orders (id int primary key)").await.unwrap();
    let said = "public.orders was made or renamed while the source ran";
    let late = Duration::from_secs(20);
    tokio::time::timeout(late, house.trouble(said)).await.unwrap();
    let published = "select count(*) from pg_publication_rel";
    assert_eq!(house.stage.client.query_one(published, &[]).await.unwrap().get::<_, i64>(0), 1);
    let kept = house.views.sources.get("app").unwrap().uncaptured.clone();
    assert_eq!(kept.len(), 1, "{kept:?}");
}
