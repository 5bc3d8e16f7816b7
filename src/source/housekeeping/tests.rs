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
        slot::prepare(&stage.client, &source, &sinks).await.unwrap();
        stage.client.batch_execute(sql).await.unwrap();
        let views = SharedViews::new(Views::default());
        views.sources.insert("app".to_owned(), SourceView::new(SourceState::Streaming, SystemTime::now()));
        let client = Arc::new(stage.session(&stage.cluster.url("postgres")).await);
        let housekeeping = Housekeeping { client, source, sinks, views: Arc::clone(&views), troubles: Vec::new() };
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
