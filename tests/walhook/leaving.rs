//! Sinks and sources that leave the configuration, return, or are forgotten.

use super::Case;
use crate::daemon::{Config, Daemon, text_of, troubles};
use crate::ledger::Ledger;
use crate::postgres::{state, until};
use crate::receiver::{Receiver, Reply};

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_returns_alone_is_no_gap() {
    let case = Case::begin().await;
    let with = |sink: &str| Config::source(&case.postgres) + &Config::sink(sink, &case.receiver.url(), "");
    let mut last = 0;
    for sink in ["orders", "other", "orders"] {
        case.config.rewrite(&with(sink));
        let daemon = Daemon::start(&case.config).await;
        case.insert(last + 1, last + 10).await;
        last += 10;
        case.wait_row(last).await;
        assert!(daemon.sigterm().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_leaves_keeps_what_is_stored_until_it_returns_or_is_forgotten() {
    let case = Case::begin().await;
    let other = Receiver::scripted(|_| Reply::status(500)).await;
    let alone = Config::source(&case.postgres) + &Config::sink("orders", &case.receiver.url(), "");
    let both = alone.clone() + &Config::sink("other", &other.url(), "");
    case.config.rewrite(&both);
    let daemon = Daemon::start(&case.config).await;
    case.insert(1, 20).await;
    case.receiver.wait_acknowledged(20).await;
    other.wait("an attempt", |receiver| receiver.request_count() >= 1).await;
    // Only what the store holds outlives its absence.
    let end: f64 = case.postgres.value("SELECT pg_current_wal_lsn() - '0/0'").await.parse().unwrap();
    until("the store to hold what the other sink did not take", || async {
        let resolved = daemon.metrics().await.sum("walhook_sink_resolved_lsn_bytes", &[("sink", "other")]);
        state(resolved >= Some(end), resolved)
    })
    .await;
    assert!(daemon.sigterm().await.success());

    case.config.rewrite(&alone);
    let daemon = Daemon::start(&case.config).await;
    let warned = |line: &serde_json::Value| line["level"] == "WARN" && line.to_string().contains("other");
    assert!(daemon.logs().iter().any(warned), "no warning that messages of `other` are kept:\n{}", daemon.printed());
    case.insert(21, 30).await;
    case.receiver.wait_acknowledged(30).await;
    assert!(daemon.sigterm().await.success());
    let shown = text_of(&case.config.state_command(&["show"]));
    assert!(shown.contains("other") && shown.contains("20"), "state show should tell what is kept for it:\n{shown}");

    other.ledger(|ledger| ledger.new_run());
    other.script(|_| Reply::status(200));
    case.config.rewrite(&both);
    let daemon = Daemon::start(&case.config).await;
    other.wait_acknowledged(20).await;
    case.insert(31, 40).await;
    let all = |ledger: &mut Ledger| (1..=20).chain(31..=40).all(|row| ledger.has(&format!("counters/{row}"), 0));
    other.wait("all that is its own", |receiver| receiver.ledger(all)).await;
    other.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0);
    });
    case.receiver.wait_acknowledged(40).await;
    case.receiver.ledger(|ledger| assert_eq!(ledger.repeats, 0, "the other sink's return repeats nothing here"));
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_leaves_and_returns_behind_the_others_is_warned_of_with_both_positions() {
    let case = Case::begin().await;
    let other = Receiver::scripted(|_| Reply::status(500)).await;
    let alone = Config::source(&case.postgres)
        + "[state]\nhold = \"wal\"\n"
        + &Config::sink("orders", &case.receiver.url(), "");
    let both = alone.clone() + &Config::sink("other", &other.url(), "");
    let mut last = 0;
    for (text, said) in [(&both, None), (&alone, Some("left the config")), (&both, Some("is back"))] {
        case.config.rewrite(text);
        let daemon = Daemon::start(&case.config).await;
        case.insert(last + 1, last + 10).await;
        last += 10;
        case.wait_row(last).await;
        let warned = |line: &serde_json::Value| {
            let text = line.to_string();
            line["level"] == "WARN"
                && text.contains("\"from\"")
                && text.contains("\"to\"")
                && said.is_some_and(|said| text.contains(said))
        };
        assert_eq!(daemon.logs().iter().any(warned), said.is_some(), "{said:?}:\n{}", daemon.printed());
        assert!(daemon.sigterm().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_for_a_source_that_was_renamed_is_said() {
    let case = Case::begin().await;
    case.deliver_all_but_row_5().await;
    let text = Config::source(&case.postgres) + &Config::sink("orders", &case.receiver.url(), "");
    let renamed = text.replace("[source.app]", "[source.renamed]\nslot = \"walhook_other\"");
    assert_ne!(renamed, text);
    case.config.rewrite(&renamed);
    let daemon = Daemon::start(&case.config).await;
    let warned =
        |line: &serde_json::Value| line["level"] == "WARN" && line.to_string().contains("forget orders --source app");
    assert!(daemon.logs().iter().any(warned), "no warning that messages of `app` are kept:\n{}", daemon.printed());
    let (_, body) = daemon.ready().await.unwrap();
    assert!(troubles(&body).contains("source app is not in the config"), "{}", troubles(&body));
    assert!(daemon.sigterm().await.success());

    case.config.rewrite(&text);
    let daemon = Daemon::start(&case.config).await;
    case.wait_row(5).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_sink_begins_anew() {
    let case = Case::begin().await;
    case.deliver_all_but_row_5().await;
    let unknown = case.config.state_command(&["forget", "nobody"]);
    assert_ne!(unknown.status.code(), Some(0), "{}", text_of(&unknown));
    let forgotten = case.config.state_command(&["forget", "orders"]);
    assert!(forgotten.status.success(), "{}", text_of(&forgotten));
    let daemon = Daemon::start(&case.config).await;
    case.insert(11, 20).await;
    for row in 11..=20 {
        case.wait_row(row).await;
    }
    assert!(!case.has(5), "a person said that this is to be forgotten");
    assert!(daemon.sigterm().await.success());
}
