//! `walhook listen` over a socket, with station 3 as the sender.

use std::time::Duration;

use super::*;
use crate::config::BodyForm;
use crate::deliver::endpoint::Endpoint;
use crate::deliver::frozen::Frozen;
use crate::deliver::tests::rig::sink;
use crate::memory::Memory;
use crate::record::message::MessageId;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn frozen(id: u128, message: &str) -> Frozen {
    Frozen::build(&Memory::new(1 << 20), "orders", BodyForm::Batch, 16, [MessageId(id)], |_, _, body| {
        body.extend_from_slice(message.as_bytes());
    })
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: ListenArgs,
}

fn args(line: &str) -> ListenArgs {
    <Cli as clap::Parser>::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).unwrap().args
}

/// What is printed, one line a message; reading waits for it.
struct Lines(std::sync::mpsc::SyncSender<String>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8(bytes.to_vec()).unwrap();
        self.0.send(line).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Running {
    stop: CancellationToken,
    lines: std::sync::mpsc::Receiver<String>,
    task: tokio::task::JoinSet<anyhow::Result<()>>,
    url: String,
}

fn start(line: &str) -> Running {
    let (out, lines) = std::sync::mpsc::sync_channel(100);
    let stop = CancellationToken::new();
    let mut task = tokio::task::JoinSet::new();
    task.spawn(listen(args(&format!("--listen 127.0.0.1:0 --no-color {line}")), stop.clone(), Lines(out)));
    let opening = lines.recv().unwrap();
    let url = opening.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
    Running { stop, lines, task, url }
}

impl Running {
    async fn stopped(mut self) -> (Vec<String>, anyhow::Result<()>) {
        self.stop.cancel();
        let ended = self.task.join_next().await.unwrap().unwrap();
        (self.lines.try_iter().collect(), ended)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_prints_what_comes_verifies_signatures_and_tells_repeats() {
    let running = start(&format!("--secret {SECRET}"));
    let unsigned = sink(&running.url);
    let mut signed = unsigned.clone();
    signed.signing_secrets = vec![SigningSecret::parse(SECRET).unwrap()];
    let message = r#"{"record":{"id":5},"action":"insert","metadata":{"table_schema":"public","table_name":"orders"}}"#;
    let delivery = frozen(5, message);
    let (unsigned, signed) = (Endpoint::new(&unsigned).unwrap(), Endpoint::new(&signed).unwrap());
    let attempt = unsigned.attempt(&delivery, 1).await;
    assert_eq!(attempt.status, Some(401));
    assert!(attempt.response.body.starts_with(b"there is no webhook-signature"));
    for number in [2, 3] {
        assert!(signed.attempt(&delivery, number).await.verdict.is_acknowledged());
    }
    assert_eq!(signed.attempt(&frozen(6, "not json"), 1).await.status, Some(400));
    let (lines, ended) = running.stopped().await;
    ended.unwrap();
    for (line, parts) in lines.iter().zip([
        [" 401 new ", "#1", "-- there is no webhook-signature"],
        [" 200 retry ", "#2", "insert   public.orders"],
        [" 200 repeat ", "#3", "id=5"],
        [" 400 new ", "#1", "not JSON"],
        ["1 messages in 4 requests", "2 acknowledged (1 of them repeats)", "2 refused (1 for their signature)"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line:?} {parts:?}");
    }
    assert_eq!(lines.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_refuses_as_often_as_it_is_told_and_quiet_prints_counts_only() {
    let running = start("--fail 30% --status 429 --seed 7 --quiet");
    let endpoint = Endpoint::new(&sink(&running.url)).unwrap();
    let mut refused = 0;
    for id in 0..200 {
        let attempt = endpoint.attempt(&frozen(id, "{}"), 1).await;
        refused += u32::from(attempt.status == Some(429));
    }
    assert!((30..90).contains(&refused), "{refused}");
    let (lines, _) = running.stopped().await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(&format!("{refused} refused")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_401_on_purpose_is_no_bad_signature() {
    let running = start("--status 401 --quiet");
    let attempt = Endpoint::new(&sink(&running.url)).unwrap().attempt(&frozen(1, "{}"), 1).await;
    assert_eq!(attempt.status, Some(401));
    let (lines, _) = running.stopped().await;
    assert!(lines[0].contains("1 refused (0 for their signature)"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_well_when_nobody_reads_and_a_delay_ends_with_the_stop() {
    let mut unread = start("");
    unread.lines = std::sync::mpsc::sync_channel(0).1;
    let endpoint = Endpoint::new(&sink(&unread.url)).unwrap();
    endpoint.attempt(&frozen(1, "{}"), 1).await;
    unread.task.join_next().await.unwrap().unwrap().unwrap();

    let slow = start("--delay 1000s");
    let endpoint = Endpoint::new(&sink(&slow.url)).unwrap();
    let delivery = frozen(1, "{}");
    let attempt = endpoint.attempt(&delivery, 1);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        slow.stop.cancel();
    };
    let (attempt, ()) = tokio::join!(attempt, stop);
    assert!(attempt.verdict.is_acknowledged(), "{attempt:?}");
}

#[test]
fn arguments_are_read_and_refused_with_a_reason() {
    assert_eq!(args("--fail 10%").fail, Some(0.1));
    assert_eq!(args("--fail 0.25").fail, Some(0.25));
    let ms = Duration::from_millis;
    assert_eq!(args("--delay 50ms").delay, ms(50)..=ms(50));
    assert_eq!(args("--delay 0..50ms").delay, ms(0)..=ms(50));
    assert_eq!(args("--delay 10ms..2s").delay, ms(10)..=ms(2000));
    assert_eq!(behaviour(args("--status 410")).fail, 1.0);
    assert_eq!(behaviour(args("")).fail, 0.0);
    for line in
        ["--fail 101%", "--fail -1", "--fail NaN", "--delay 5", "--delay 9..1ms", "--status 99", "--secret whsec_x"]
    {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        assert!(<Cli as clap::Parser>::try_parse_from(words).is_err(), "{line}");
    }
}
