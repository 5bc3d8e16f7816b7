//! What an endpoint refuses for ever: it is taken out of its delivery, waits alone with its group, and ends as the retry rules
//! say, while everybody else goes on.

use std::time::Duration;

use serde_json::Value;

use crate::daemon::{Config, Daemon, text_of, troubles};
use crate::order::counters;
use crate::outage::wait_confirmed;
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Keep, Receiver, Reply, Request};

/// The row that is refused.
const POISON: i64 = 37;

fn is_poison(message: &Value) -> bool {
    message["record"]["id"] == POISON && message["record"]["n"] == 0
}

/// Answers `status` to whatever holds the poison row's first change.
fn refusing(status: u16) -> impl Fn(&Request) -> Reply + Send + Sync {
    move |request| Reply::status(if request.messages.iter().any(is_poison) { status } else { 200 })
}

/// How many messages each request with the poison held, and which attempt it said it was.
fn poisoned(receiver: &Receiver) -> Vec<(usize, u32)> {
    let requests = receiver.requests().into_iter().filter(|request| request.messages.iter().any(is_poison));
    requests.map(|request| (request.messages.len(), request.header("walhook-attempt").parse().unwrap())).collect()
}

/// Fails unless the sizes go down by halves: three attempts of the whole, one of each part, then the single message's own.
#[track_caller]
fn assert_halved(seen: &[(usize, u32)], whole: usize) {
    assert_eq!(&seen[..3], [(whole, 1), (whole, 2), (whole, 3)], "the whole delivery has three attempts: {seen:?}");
    let mut size = whole;
    let mut rest = &seen[3..];
    while size > 1 {
        let (next, attempt) = rest[0];
        assert!(next == size / 2 || next == size.div_ceil(2), "{size} should be halved, not become {next}: {seen:?}");
        assert_eq!(attempt, 1, "a part begins with attempt 1: {seen:?}");
        (size, rest) = (next, &rest[1..]);
        if size > 1 {
            assert!(rest[0].0 < size, "a part is split at its first such failure: {seen:?}");
        }
    }
    for (index, (size, _)) in rest.iter().enumerate() {
        assert_eq!(*size, 1, "the message stays alone: attempt {index} of {seen:?}");
    }
}

struct Case {
    postgres: Postgres,
    receiver: Receiver,
    config: Config,
    daemon: Daemon,
}

/// One delivery of `rows` rows, one of them refused with `status`; what the sink's retry table says beside quick waits.
async fn begin(rows: i64, status: u16, retry: &str) -> Case {
    begin_with("", rows, status, retry).await
}

/// The same with further lines of the sink.
async fn begin_with(sink: &str, rows: i64, status: u16, retry: &str) -> Case {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::scripted(refusing(status)).await;
    let lines = format!(
        "{sink}\nbatch_size = 100\nbatch_timeout = \"400ms\"\n[sink.orders.retry]\ninitial = \"50ms\"\nmax = \"200ms\"\n{retry}"
    );
    let config = Config::one_sink(&postgres, &receiver.url(), &lines);
    let daemon = Daemon::start(&config).await;
    receiver.ledger(|ledger| {
        if retry.contains("max_a") {
            ledger.may_die(&format!("counters/{POISON}"), 0);
        }
    });
    postgres.sql(&format!("INSERT INTO counters SELECT i, 0 FROM generate_series(1, {rows}) i")).await;
    receiver.wait("the delivery", |receiver| receiver.request_count() >= 1).await;
    Case { postgres, receiver, config, daemon }
}

impl Case {
    /// The slot follows the end of the WAL, also of other tables.
    async fn slot_moves_on(&self) {
        self.postgres.sql("CREATE TABLE IF NOT EXISTS other (body text)").await;
        self.postgres.sql("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 9500)").await;
        let end = self.postgres.value("SELECT pg_current_wal_lsn()").await;
        wait_confirmed(&self.postgres, &end, Duration::from_secs(10)).await;
    }

    /// Every row's change `n` but the poison's arrived.
    async fn others_have(&self, rows: i64, n: i64) {
        let missing = |receiver: &Receiver| {
            let others = (1..=rows).filter(|row| *row != POISON);
            receiver.ledger(|ledger| others.filter(|row| !ledger.has(&format!("counters/{row}"), n)).count())
        };
        self.receiver.wait(&format!("n = {n} of all other rows"), |receiver| missing(receiver) == 0).await;
    }

    fn poison_has(&self, n: i64) -> bool {
        self.receiver.ledger(|ledger| ledger.has(&format!("counters/{POISON}"), n))
    }

    async fn another_attempt(&self) {
        let seen = poisoned(&self.receiver).len();
        self.receiver.wait("another attempt of the message", |receiver| poisoned(receiver).len() > seen).await;
    }

    /// Kills the daemon and starts it anew.
    async fn restart(self) -> Self {
        let Self { postgres, receiver, config, daemon } = self;
        daemon.kill9();
        receiver.abandoned().await;
        receiver.ledger(|ledger| ledger.new_run());
        let daemon = Daemon::launch(&config);
        Self { postgres, receiver, config, daemon }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_row_is_isolated_and_delays_only_itself() {
    let mut case = begin(100, 400, "").await;
    case.receiver
        .wait("attempts of the message alone", |receiver| {
            poisoned(receiver).iter().filter(|(size, _)| *size == 1).count() >= 3
        })
        .await;
    assert_halved(&poisoned(&case.receiver), 100);
    case.others_have(100, 0).await;

    case.postgres.sql("UPDATE counters SET n = 1").await;
    case.others_have(100, 1).await;
    case.slot_moves_on().await;
    assert!(!case.poison_has(1), "the row's later change overtook the refused one");

    let before: Vec<Request> =
        case.receiver.requests().into_iter().filter(|r| r.messages.iter().any(is_poison)).collect();
    let last = before.last().unwrap();
    case = case.restart().await;
    case.daemon.wait_ready().await;
    case.another_attempt().await;
    let after = case.receiver.requests().into_iter().rfind(|r| r.messages.iter().any(is_poison)).unwrap();
    assert_eq!(after.messages.len(), 1, "it stays alone over a restart");
    assert_eq!(after.header("webhook-id"), last.header("webhook-id"), "it is the same delivery after a restart");
    assert_eq!(after.body, last.body, "frozen, also over a restart");
    let numbers = [last, &after].map(|request| request.header("walhook-attempt").parse::<u32>().unwrap());
    assert!(numbers[1] > numbers[0], "attempts are counted on over a restart: {numbers:?}");

    case.receiver.script(|_| Reply::status(200));
    case.receiver.wait_acknowledged(200).await;
    case.receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert!(ledger.has(&format!("counters/{POISON}"), 1));
        assert_eq!(ledger.repeats, 0, "all that was acknowledged long before the crash was known to be");
    });
    assert!(case.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_413_and_422_split_too_and_404_does_not() {
    for (status, splits, sink) in
        [(413, true, "body = \"array\""), (422, true, "message = \"row\""), (404, false, "body = \"array\"")]
    {
        let case = begin_with(sink, 50, status, "").await;
        case.receiver.wait("ten attempts", |receiver| poisoned(receiver).len() >= 10).await;
        let seen = poisoned(&case.receiver);
        if splits {
            assert_halved(&seen, 50);
            case.others_have(50, 0).await;
        } else {
            assert!(seen.iter().all(|(size, _)| *size == 50), "{status} says nothing about single messages: {seen:?}");
        }
        case.receiver.ledger(|ledger| ledger.assert_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_split_delivery_stay_in_order() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE log (id int PRIMARY KEY, n bigint)").await;
    let script = |request: &Request| {
        Reply::status(if request.messages.iter().any(|message| message["record"]["n"] == POISON) { 400 } else { 200 })
    };
    let receiver = Receiver::with(Keep::Ledger, script, |_| "log".to_owned()).await;
    let lines = "group_by = \"table\"\nbatch_size = 64\nbatch_timeout = \"300ms\"\n[sink.orders.retry]\ninitial = \"50ms\"\nmax = \"100ms\"";
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), lines)).await;
    postgres.sql("INSERT INTO log SELECT i, i FROM generate_series(1, 100) i").await;

    receiver
        .wait("everything before the refused message", |receiver| receiver.ledger(|l| l.has("log", POISON - 1)))
        .await;
    let tried = receiver.request_count();
    receiver.wait("more attempts of it", |receiver| receiver.request_count() >= tried + 4).await;
    receiver.ledger(|ledger| {
        assert_eq!(ledger.acknowledged(), 36, "the whole table waits behind it");
        ledger.assert_clean();
    });
    receiver.script(|_| Reply::status(200));
    receiver.wait_acknowledged(100).await;
    receiver.ledger(|ledger| ledger.assert_clean());
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn max_attempts_makes_a_dead_letter_after_exactly_so_many() {
    let mut case = begin(100, 400, "max_attempts = 5").await;
    case.postgres.sql("UPDATE counters SET n = 1").await;
    case.receiver
        .wait("two attempts of the message alone", |receiver| {
            poisoned(receiver).iter().filter(|(size, _)| *size == 1).count() >= 2
        })
        .await;
    // The count goes on over a crash.
    case = case.restart().await;
    case.receiver.wait("the row's later change", |_| case.poison_has(1)).await;
    case.others_have(100, 1).await;
    let alone: Vec<u32> = poisoned(&case.receiver).into_iter().filter(|(size, _)| *size == 1).map(|(_, n)| n).collect();
    // The attempt under way at the crash may have been made without being counted.
    let counted = alone.iter().max().copied();
    assert_eq!(counted, Some(5), "the numbers of its attempts: {alone:?}");
    assert!(alone.len() == 5 || alone.len() == 6, "attempts of the single message: {alone:?}");
    case.daemon.wait_logged("dead letter").await;

    let tried = poisoned(&case.receiver).len();
    case.slot_moves_on().await;
    case = case.restart().await;
    case.postgres.sql("UPDATE counters SET n = 2").await;
    case.receiver.wait("the row's next change", |_| case.poison_has(2)).await;
    assert_eq!(poisoned(&case.receiver).len(), tried, "a dead letter is not tried again");
    case.receiver.ledger(|ledger| ledger.assert_clean());
    assert!(case.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_five_attempts_without_a_crash() {
    let case = begin(1, 404, "max_attempts = 5").await;
    case.postgres.sql(&format!("INSERT INTO counters VALUES ({POISON}, 0)")).await;
    case.receiver.wait("its first attempt", |receiver| !poisoned(receiver).is_empty()).await;
    case.postgres.sql("UPDATE counters SET n = 1").await;
    case.receiver.wait("the row's later change", |_| case.poison_has(1)).await;
    assert_eq!(poisoned(&case.receiver).iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    case.daemon.wait_logged("dead letter").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn max_age_makes_a_dead_letter() {
    let case = begin(100, 400, "max_age = \"3s\"\nsplit_after = 1").await;
    case.postgres.sql("UPDATE counters SET n = 1").await;
    case.receiver.wait("the row's later change", |_| case.poison_has(1)).await;
    let requests: Vec<Request> = case.receiver.requests();
    let alone: Vec<&Request> =
        requests.iter().filter(|r| r.messages.len() == 1 && r.messages.iter().any(is_poison)).collect();
    let age = alone.last().unwrap().arrived - alone[0].arrived;
    assert!(alone.len() >= 3, "{} attempts in three seconds", alone.len());
    assert!(age >= Duration::from_secs(2), "given up at the age of {age:?}");
    case.daemon.wait_logged("dead letter").await;
    case.others_have(100, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn block_group_keeps_the_group_waiting_for_a_person() {
    let mut case = begin(100, 400, "max_attempts = 3\nsplit_after = 1\non_exhausted = \"block_group\"").await;
    let alone = |receiver: &Receiver| poisoned(receiver).iter().filter(|(size, _)| *size == 1).count();
    case.receiver.wait("three attempts of the message alone", |receiver| alone(receiver) >= 3).await;
    for n in 1..=2 {
        case.postgres.sql(&format!("UPDATE counters SET n = {n}")).await;
        case.others_have(100, n).await;
        case.slot_moves_on().await;
        assert!(!case.poison_has(n), "the group goes on though it is blocked");
        assert_eq!(alone(&case.receiver), 3, "a blocked delivery is not tried by itself");
        until("readyz to name the blocked group", || async {
            let (status, body) = case.daemon.ready().await.unwrap();
            state(status == 200 && troubles(&body).contains("sink:orders"), body)
        })
        .await;
        case = case.restart().await;
        case.daemon.wait_ready().await;
    }
    let shown = case.config.state_command(&["show"]);
    assert!(shown.status.success(), "{}", text_of(&shown));
    assert!(text_of(&shown).contains("blocked"), "state show names what is blocked: {}", text_of(&shown));
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_sink_stops_the_sink_until_it_is_resumed() {
    let mut case = begin(100, 400, "max_attempts = 3\nsplit_after = 1\non_exhausted = \"pause_sink\"").await;
    until("readyz to say that the sink is paused", || async {
        let body = case.daemon.ready().await.unwrap().1;
        state(body["sinks"]["orders"]["state"] == "paused" && troubles(&body).contains("sink:orders"), body)
    })
    .await;
    case.receiver.wait("its requests to be over", |receiver| receiver.ledger(|ledger| ledger.concurrent() == 0)).await;
    let sent = case.receiver.request_count();
    case.postgres.sql("UPDATE counters SET n = 1").await;
    case.slot_moves_on().await;
    case = case.restart().await;
    case.daemon.wait_ready().await;
    case.postgres.sql("UPDATE counters SET n = 2").await;
    case.slot_moves_on().await;
    assert_eq!(case.receiver.request_count(), sent, "a paused sink sends nothing, also after a restart");
    assert!(case.daemon.sigterm().await.success());

    let resumed = case.config.state_command(&["resume", "orders"]);
    assert!(resumed.status.success(), "{}", text_of(&resumed));
    let _daemon = Daemon::start(&case.config).await;
    case.receiver
        .wait("the row's last change", |receiver| {
            receiver.ledger(|ledger| (1..=100).all(|row| ledger.has(&format!("counters/{row}"), 2)))
        })
        .await;
    let alone = poisoned(&case.receiver).iter().filter(|(size, _)| *size == 1).count();
    assert_eq!(alone, 3, "what was given up is not tried again");
    case.receiver.ledger(|ledger| ledger.assert_clean());
}
