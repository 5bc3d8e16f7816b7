//! `walhook listen`: a receiver that prints what it gets.
//!
//! The receiving half is [`receiver::Receiver`], which `walhook demo` runs in its own process; this file has the
//! arguments and the printing.

pub mod message;
mod places;
pub mod receiver;
mod show;

pub(crate) use show::text_lines;

use std::io::{self, IsTerminal as _, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::deliver::sign::SigningSecret;
use receiver::{Behaviour, Counts, Received, Receiver};
use show::json_line;

/// Arguments of `walhook listen`.
#[derive(clap::Args, Clone, Debug)]
pub struct ListenArgs {
    /// Address to listen on; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Share of requests that are refused, such as 10% [default: 0%, or 100% with --status]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub fail: Option<f64>,
    /// Wait before each answer: 50ms, or a range such as 0..50ms to choose from
    #[arg(long, value_name = "TIME", value_parser = delay, default_value = "0ms")]
    pub delay: RangeInclusive<Duration>,
    /// Status of refused requests [default: 503]
    #[arg(long, value_name = "STATUS", value_parser = status)]
    pub status: Option<StatusCode>,
    /// Signing secret (whsec_…); repeat it while rotating. With it, requests without a valid signature get a 401
    #[arg(long, value_name = "SECRET", value_parser = SigningSecret::parse)]
    pub secret: Vec<SigningSecret>,
    /// Print the counts at the end only
    #[arg(long)]
    pub quiet: bool,
    /// Print one JSON object a line, one for each request
    #[arg(long)]
    pub json: bool,
    /// No colours; the environment's NO_COLOR does the same
    #[arg(long, env = "NO_COLOR", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_color: bool,
    /// Seed by which requests to refuse are chosen [default: the time]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
}

/// Receives until `stop`, and prints to `out`. Ends early, and well, when nobody reads `out` any more.
pub async fn listen(args: ListenArgs, stop: CancellationToken, out: impl Write + Send + 'static) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr().context("cannot tell the address listened on")?;
    let stop = stop.child_token();
    let printer = Arc::new(Printer::new(&args, stop.clone(), out));
    printer.opening(address);
    let receiver = Receiver::new(behaviour(args), {
        let printer = Arc::clone(&printer);
        move |received| printer.received(received)
    });
    receiver.serve(listener, stop).await.context("cannot go on receiving")?;
    printer.counts(receiver.counts());
    printer.finish()
}

fn behaviour(args: ListenArgs) -> Behaviour {
    let refuse_all = if args.status.is_some() { 1.0 } else { 0.0 };
    let nanos = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    Behaviour {
        fail: args.fail.unwrap_or(refuse_all),
        status: args.status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        delay: args.delay,
        secrets: args.secret,
        seed: args.seed.unwrap_or_else(|| u64::from(nanos())),
    }
}

struct Printer<W> {
    quiet: bool,
    json: bool,
    colours: bool,
    stop: CancellationToken,
    out: Mutex<Out<W>>,
}

struct Out<W> {
    writer: W,
    error: Option<io::Error>,
}

impl<W: Write> Printer<W> {
    fn new(args: &ListenArgs, stop: CancellationToken, writer: W) -> Self {
        let colours = !args.json && !args.no_color && io::stdout().is_terminal();
        Self { quiet: args.quiet, json: args.json, colours, stop, out: Mutex::new(Out { writer, error: None }) }
    }

    fn opening(&self, address: SocketAddr) {
        self.print(&if self.json {
            format!("{}\n", serde_json::json!({ "event": "listening", "address": address }))
        } else {
            format!("listening on http://{address} (times are UTC, ctrl-c ends)\n")
        });
    }

    fn received(&self, received: &Received<'_>) {
        if self.quiet {
            return;
        }
        self.print(&if self.json { json_line(received) } else { text_lines(received, self.colours) });
    }

    fn counts(&self, counts: Counts) {
        self.print(&if self.json {
            format!("{}\n", serde_json::json!({ "event": "counts", "counts": counts }))
        } else {
            format!("{counts}\n")
        });
    }

    /// Whoever cannot print stops; the reason is told at the end.
    fn print(&self, text: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.error.is_some() {
            return;
        }
        if let Err(error) = out.writer.write_all(text.as_bytes()).and_then(|()| out.writer.flush()) {
            out.error = Some(error);
            self.stop.cancel();
        }
    }

    fn finish(&self) -> anyhow::Result<()> {
        match self.out.lock().unwrap_or_else(PoisonError::into_inner).error.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
            Some(_) | None => Ok(()),
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    match number.trim().parse::<f64>().map(|number| number / scale) {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        Ok(_) | Err(_) => Err("a share is between 0% and 100%".to_owned()),
    }
}

fn status(text: &str) -> Result<StatusCode, String> {
    let status: u16 = text.parse().map_err(|_| "a status is a number such as 503")?;
    match status {
        200..=599 => StatusCode::from_u16(status).map_err(|error| error.to_string()),
        _ => Err("a status is between 200 and 599".to_owned()),
    }
}

fn delay(text: &str) -> Result<RangeInclusive<Duration>, String> {
    let Some((from, to)) = text.split_once("..") else { return duration(text).map(|both| both..=both) };
    let to_time = duration(to)?;
    let unit = to.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let bare = !from.is_empty() && from.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let from_time = if bare { duration(&format!("{from}{unit}"))? } else { duration(from)? };
    if from_time > to_time {
        return Err("the range begins after its end".to_owned());
    }
    Ok(from_time..=to_time)
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a time is a number with ms or s, at most an hour, such as 50ms".to_owned();
    let (number, scale) = match text.strip_suffix("ms") {
        Some(number) => (number, 1000.0),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, 1.0),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? / scale;
    if !(0.0..=3600.0).contains(&seconds) {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests;
