//! Opens the store and loads what it has of every sink, before anything is read. What may pass by itself, such as a full
//! disk, is waited out and shown meanwhile.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::config::{Config, StateConfig};
use crate::fault::chain;
use crate::store::{AbsentSink, Health, Loaded, SinkKey, Store, StoreError};
use crate::view::{StoreView, Trouble, Views};

/// How long it waits between tries.
const TRY_EVERY: Duration = Duration::from_secs(2);

/// The store and what it has.
pub(super) struct Opened {
    pub(super) store: Store,
    /// By sink name, which is unique over all sources.
    sinks: HashMap<String, (SinkKey, Loaded)>,
    /// By source name, also of sources that the config does not have: sinks that left the config and still hold something.
    absent: HashMap<String, Vec<AbsentSink>>,
}

impl Opened {
    /// What the store has of a sink of the config.
    pub(super) fn take(&mut self, sink: &str) -> Option<(SinkKey, Loaded)> {
        self.sinks.remove(sink)
    }

    /// What is said of sinks that left the config; it is logged too.
    pub(super) fn absent(&mut self, source: &str) -> Vec<Trouble> {
        let absent = self.absent.remove(source).unwrap_or_default();
        said(source, absent.iter().map(trouble_of_absent).collect())
    }

    /// The same of the sources that are left, which the config does not have.
    pub(super) fn strangers(&mut self) -> Vec<(String, Vec<Trouble>)> {
        let mut left: Vec<(String, Vec<AbsentSink>)> = self.absent.drain().collect();
        left.sort_by(|(one, _), (other, _)| one.cmp(other));
        let troubles = |(source, absent): (String, Vec<AbsentSink>)| {
            let troubles = said(&source, absent.iter().map(trouble_of_stranger).collect());
            (source, troubles)
        };
        left.into_iter().map(troubles).collect()
    }
}

fn said(source: &str, troubles: Vec<Trouble>) -> Vec<Trouble> {
    for Trouble { what, advice } in &troubles {
        warn!(source, advice, "{what}");
    }
    troubles
}

/// Of each source the sinks' names and the rules by which they group.
type Wanted = Vec<(String, Vec<(String, String)>)>;

/// Opens it, however long that takes.
///
/// # Errors
/// For a reason that waiting does not mend.
pub(super) async fn open(config: &Config, views: &Views) -> Result<Opened, StoreError> {
    let sinks_of = |source: &str| {
        let own = config.sinks.iter().filter(|sink| sink.source == source);
        own.map(|sink| (sink.name.clone(), sink.grouping())).collect::<Vec<_>>()
    };
    let wanted: Wanted = config.sources.iter().map(|it| (it.name.clone(), sinks_of(&it.name))).collect();
    loop {
        let (state, wanted) = (config.state.clone(), wanted.clone());
        let error = match spawn_blocking(move || try_to_open(&state, &wanted)).await {
            Ok(Ok(opened)) => {
                info!(path = %config.state.path.display(), "store opened");
                views.show_store(view_of(&config.state.path, opened.store.health()));
                return Ok(opened);
            }
            Ok(Err(error)) if error.is_lasting() => return Err(error),
            Ok(Err(error)) => chain(&error),
            Err(lost) => chain(&lost),
        };
        let Trouble { what, advice } = trouble_of_opening(&error);
        warn!(path = %config.state.path.display(), advice, retry_in_secs = TRY_EVERY.as_secs_f64(), "the store: {what}");
        let trouble = Some(Trouble { what, advice });
        let (path, max_bytes) = (config.state.path.clone(), config.state.max_bytes);
        views.show_store(StoreView { path, max_bytes, is_failing: true, trouble, ..StoreView::default() });
        sleep(TRY_EVERY).await;
    }
}

/// Writes what was submitted, within the bounds that the store sets itself.
pub(super) async fn close(store: Store) {
    if let Err(lost) = spawn_blocking(move || store.close()).await {
        error!(error = %lost, "the store was not closed cleanly; what was not durable comes again");
    }
}

/// What people see of it.
pub(super) fn view_of(path: &Path, health: Health) -> StoreView {
    let Health {
        is_full, is_failing, trouble, used_bytes, wal_bytes, max_bytes, until_full_bytes, log_rows_lost, ..
    } = health;
    let (path, room_bytes) = (path.to_owned(), until_full_bytes);
    StoreView { path, used_bytes, wal_bytes, max_bytes, room_bytes, is_full, is_failing, trouble, log_rows_lost }
}

fn try_to_open(state: &StateConfig, wanted: &Wanted) -> Result<Opened, StoreError> {
    let store = Store::open(state, wanted.iter().map(|(_, sinks)| sinks.len()).sum())?;
    match load(&store, wanted) {
        Ok(All { sinks, absent }) => Ok(Opened { store, sinks, absent }),
        Err(error) => {
            // The next try opens it anew, which its lock must let pass.
            store.close();
            Err(error)
        }
    }
}

#[derive(Default)]
struct All {
    sinks: HashMap<String, (SinkKey, Loaded)>,
    absent: HashMap<String, Vec<AbsentSink>>,
}

fn load(store: &Store, wanted: &Wanted) -> Result<All, StoreError> {
    let mut all = All::default();
    for (source, sinks) in wanted {
        let names: Vec<&str> = sinks.iter().map(|(name, _)| name.as_str()).collect();
        all.absent.insert(source.clone(), store.register(source, &names)?);
        for (sink, grouping) in sinks {
            store.agree_on_grouping(source, sink, grouping)?;
            // Also beyond an accepted gap: the first mark, at the slot's position, moves a sink forward.
            all.sinks.insert(sink.clone(), store.load(source, sink)?);
        }
    }
    let configured: Vec<&str> = wanted.iter().map(|(source, _)| source.as_str()).collect();
    for sink in store.leave_out(&configured)? {
        all.absent.entry(sink.source.clone()).or_default().push(sink);
    }
    Ok(all)
}

fn trouble_of_opening(error: &str) -> Trouble {
    Trouble {
        what: format!("it cannot be opened: {error}; nothing is read before it can"),
        advice: "free some of the disk, or see what the system says of it; it is tried again every 2 s".to_owned(),
    }
}

fn trouble_of_absent(sink: &AbsentSink) -> Trouble {
    let AbsentSink { source, name, holds } = sink;
    Trouble {
        what: format!("sink {name} left the config, and the store keeps what it holds for it: {holds}"),
        advice: format!(
            "put the sink back to deliver it, or stop walhook and run `walhook state forget {name} --source {source}` to drop it"
        ),
    }
}

fn trouble_of_stranger(sink: &AbsentSink) -> Trouble {
    let AbsentSink { source, name, holds } = sink;
    Trouble {
        what: format!(
            "source {source} is not in the config, and the store keeps what it holds for its sink {name}: {holds}"
        ),
        advice: format!(
            "put source and sink back under these names to deliver it (under another name a source is another one to the \
             store), or stop walhook and run `walhook state forget {name} --source {source}` to drop it"
        ),
    }
}
