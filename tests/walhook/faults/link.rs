//! A hostile database: whatever it says, memory stays flat, nothing panics, no password goes out that should not, nothing is lost,
//! and once it behaves everything goes on by itself.

#[path = "link/endpoint.rs"]
mod endpoint;
#[path = "link/hostile.rs"]
mod hostile;

use self::hostile::{At, Attack, Hostile, announced, message};
use crate::daemon::{Config, Daemon, text_of, walhook};
use crate::order::counters;
use crate::postgres::{Postgres, state, until};
use crate::receiver::Receiver;

/// AuthenticationOk.
fn let_in() -> Vec<u8> {
    message(b'R', &0_u32.to_be_bytes())
}

/// A ParameterStatus that none before had.
fn parameter(number: u64) -> Vec<u8> {
    message(b'S', format!("a_parameter_{number}\0{}\0", "x".repeat(1000)).as_bytes())
}

fn notice() -> Vec<u8> {
    message(b'N', format!("SWARNING\0VWARNING\0C01000\0M{}\0\0", "hello ".repeat(170)).as_bytes())
}

/// A row of one text.
fn row() -> Vec<u8> {
    message(b'D', &[&[0, 1][..], &1000_u32.to_be_bytes(), &[b'x'; 1000]].concat())
}

/// Much of the same in one piece, so that it goes quickly.
fn many(one: &[u8]) -> Vec<u8> {
    one.repeat(64)
}

/// So much that a client which gathers it would show it.
const FLOOD: u32 = 0x7fff_ffff;

struct Stand {
    postgres: Postgres,
    hostile: Hostile,
    receiver: Receiver,
    daemon: Daemon,
}

impl Stand {
    async fn new() -> Self {
        let postgres = Postgres::start();
        counters(&postgres).await;
        let (hostile, receiver) = (Hostile::before(&postgres).await, Receiver::start().await);
        let config = Config::new(&(hostile.source(&postgres) + &Config::sink("orders", &receiver.url(), "")));
        let daemon = Daemon::start(&config).await;
        Self { postgres, hostile, receiver, daemon }
    }

    /// Attacks until the client has given up; a row that was written meanwhile arrives afterwards.
    async fn survives(&self, number: usize, what: &str, attack: Attack) {
        let before = self.hostile.hung_up();
        self.hostile.attack(Some(attack));
        until(&format!("an end of: {what}"), || async {
            let ends = self.hostile.hung_up() - before;
            state(ends >= 1, (ends, self.hostile.sent()))
        })
        .await;
        self.postgres.sql(&format!("INSERT INTO counters VALUES ({number}, 0)")).await;
        self.hostile.attack(None);
        self.receiver.wait(what, |receiver| receiver.messages().len() == number).await;
        println!("{what}: {} KiB at most so far", self.daemon.peak_kib());
    }

    /// Nothing was gathered, came twice, or was said a thousand times.
    fn is_sound(&self, peak_mib: u64) {
        let peak = self.daemon.peak_kib() / 1024;
        assert!(peak < peak_mib, "{peak} MiB were resident");
        assert!(!self.daemon.logged("panicked"), "{}", self.daemon.printed());
        assert!(self.daemon.logs().len() < 2000, "{} lines were logged", self.daemon.logs().len());
        self.receiver.ledger(|ledger| ledger.assert_clean());
    }
}

/// So many attacks on one daemon; after more of them it would wait long before it tries again.
const AT_ONCE: usize = 2;

async fn each(attacks: &[(&str, Attack)], peak_mib: u64) {
    for some in attacks.chunks(AT_ONCE) {
        let stand = Stand::new().await;
        for (number, (what, attack)) in some.iter().enumerate() {
            stand.survives(number + 1, what, attack.clone()).await;
        }
        stand.is_sound(peak_mib);
    }
}

/// The bounds are those of one answer; nothing of a flood stays beyond them.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_floods_a_session_is_given_up_with_memory_flat() {
    let zeros = |_| vec![0; 1 << 16];
    let parameters = |number: u64| (0..64).flat_map(|place| parameter(number * 64 + place)).collect();
    let entered = || let_in();
    let attacks = [
        ("a frame of 2 GB at the login", Attack::endless(At::Login, announced(b'R', FLOOD, b""), zeros)),
        ("a frame of 2 GB in an answer", Attack::endless(At::Answer, announced(b'D', FLOOD, b""), zeros)),
        ("parameters at the login", Attack::endless(At::Login, entered(), parameters)),
        ("parameters in an answer", Attack::endless(At::Answer, Vec::new(), parameters)),
        ("parameters at the stream's login", Attack::endless(At::StreamLogin, entered(), parameters)),
        ("a frame of 2 GB at the stream's login", Attack::endless(At::StreamLogin, announced(b'R', FLOOD, b""), zeros)),
        ("a frame of 2 GB in the stream", Attack::endless(At::Stream, announced(b'd', FLOOD, b"w"), zeros)),
        ("another frame of 2 GB in the stream", Attack::endless(At::Stream, announced(b'S', FLOOD, b""), zeros)),
    ];
    each(&attacks, 160).await;
    each(&[("rows without an end", Attack::endless(At::Answer, Vec::new(), |_| many(&row())))], 320).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_none_end_a_session_and_nothing_else() {
    let attacks = [
        ("a length of 0", Attack::once(At::Answer, announced(b'Z', 0, b"I"))),
        ("a negative length", Attack::once(At::Answer, announced(b'D', 0xffff_fff0, b"\0\x01"))),
        ("a row that ends early", Attack::once(At::Answer, message(b'D', &[0, 9, 0, 0, 0, 200]))),
        ("an error without an end", Attack::once(At::Login, message(b'E', b"SFATAL\0C57P03"))),
        ("an authentication of no kind", Attack::once(At::Login, message(b'R', b"\0"))),
        ("a length of 0 at the stream's login", Attack::once(At::StreamLogin, announced(b'Z', 0, b"I"))),
        ("a key that ends early", Attack::once(At::StreamLogin, [let_in(), message(b'K', b"\0")].concat())),
        ("a change of no kind", Attack::once(At::Stream, message(b'd', &[&b"w"[..], &[0; 24], b"?"].concat()))),
        ("a change that ends early", Attack::once(At::Stream, message(b'd', &[&b"w"[..], &[0; 24], b"I\0"].concat()))),
        ("copy data without content", Attack::once(At::Stream, message(b'd', b""))),
        ("an error without an end in the stream", Attack::once(At::Stream, message(b'E', b"SERROR"))),
        ("a length of 3 in the stream", Attack::once(At::Stream, announced(b'd', 3, b""))),
    ];
    each(&attacks, 160).await;
}

/// Whoever answers in the server's place gets nothing to log in with, whatever he asks for.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_less_than_it_should_learns_no_password() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let hostile = Hostile::before(&postgres).await;
    let url = hostile.through(&postgres.url()).replace("walhook@", "walhook:a-pass-word@");
    let source = |methods: &str| format!("[source.app]\nurl = \"{url}?require_auth={methods}\"\n");
    let config = Config::new("");
    let asks = |kind: u32, more: &[u8]| message(b'R', &[&kind.to_be_bytes()[..], more].concat());
    let scram = asks(10, b"SCRAM-SHA-256\0\0");
    for (what, says, methods, said) in [
        ("the password in clear", asks(3, b""), "scram-sha-256", "require_auth"),
        ("its hash", asks(5, b"salt"), "scram-sha-256", "require_auth"),
        ("nothing", let_in(), "scram-sha-256", "require_auth"),
        ("half an exchange", [scram, let_in()].concat(), "scram-sha-256", ""),
        ("the password in clear, when nothing is allowed", asks(3, b""), "none", "require_auth"),
    ] {
        hostile.attack(Some(Attack::once(At::Login, says)));
        config.rewrite(&(source(methods) + "[sink.a]\nurl = \"http://127.0.0.1:1\"\ntables = [\"public.*\"]\n"));
        let path = config.path();
        let check = move || walhook(&["check", "--config", &path.to_string_lossy()]);
        let output = tokio::task::spawn_blocking(check).await.unwrap();
        let text = text_of(&output);
        assert_eq!(output.status.code(), Some(69), "{what}: {text}");
        assert!(text.contains(said), "{what}: {text}");
        let heard = hostile.heard();
        assert!(!heard.windows(11).any(|bytes| bytes == b"a-pass-word"), "{what}");
        assert!(!heard.windows(3).any(|bytes| bytes == b"md5"), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_without_an_end_are_neither_gathered_nor_all_logged() {
    let stand = Stand::new().await;
    let attack =
        Attack { at: At::Stream, says: std::sync::Arc::new(|number| (number < 2000).then(|| many(&notice()))) };
    stand.hostile.attack(Some(attack));
    until("the notices to be sent", || async {
        let sent = stand.hostile.sent();
        state(sent >= 2000 * many(&notice()).len() as u64, sent)
    })
    .await;
    stand.postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    stand.hostile.attack(None);
    stand.receiver.wait_messages(1).await;
    stand.is_sound(160);
}
