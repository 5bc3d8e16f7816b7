//! What comes of an attempt, by how its exchange ended and what of an answer was there by then. Pure.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;

use crate::config::SuccessRule;
use crate::deliver::answer::Answer;
use crate::deliver::attempt::{Verdict, of_status, phrase};
use crate::deliver::category::Category;
use crate::deliver::connection::error::SendError;
use crate::deliver::failure::{classify, describe, find};

/// How an exchange ended.
pub(super) enum End {
    Whole,
    Broken(Arc<SendError>),
    Late,
    /// In time there was no stream for it.
    Queued,
}

/// What a sink says that bears on the verdict.
pub(super) struct Terms<'a> {
    pub(super) success: &'a SuccessRule,
    pub(super) request_timeout: Duration,
    /// Host and port.
    pub(super) peer: &'a str,
    /// http, not https.
    pub(super) is_plain: bool,
    /// The endpoint has answered before.
    pub(super) is_answered: bool,
    pub(super) own: Own,
}

pub(super) fn judge(answer: &Answer, end: End, terms: &Terms<'_>) -> Verdict {
    relieved(sorted(answer, end, terms), answer, terms.own)
}

fn sorted(answer: &Answer, end: End, terms: &Terms<'_>) -> Verdict {
    match (answer.status.map(|status| (status, of_status(status, terms.success))), end) {
        // A refusal is one, however its body ended.
        (Some((status, refused @ Verdict::Failed { .. })), _) => {
            told_plainly(status, &answer.body, terms).unwrap_or(refused)
        }
        (Some((status, Verdict::Acknowledged)), End::Whole) if answer.is_early => early(status),
        (Some((_, Verdict::Acknowledged)), End::Whole) => Verdict::Acknowledged,
        (status, End::Late) => late(status.map(|(status, _)| status), terms.request_timeout),
        (_, End::Queued) => queued(terms.request_timeout),
        (_, End::Broken(error)) => broken(&error, terms),
        (None, End::Whole) => Verdict::failed(Category::ProtocolError, "the answer has no status"),
    }
}

/// What of walhook's own clock may be why an attempt failed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Own {
    /// The process did not run while the attempt was under way.
    pub(super) has_slept: bool,
    /// How far the wall clock was set since the process began, in seconds.
    pub(super) astray_secs: i64,
}

/// A deadline that passed while the process slept, and a connection that was given up meanwhile, are not the endpoint's
/// fault; an answer is one, however long nobody was there to read it.
fn relieved(verdict: Verdict, answer: &Answer, own: Own) -> Verdict {
    let is_answered = answer.status.is_some_and(|status| !status.is_success());
    match verdict {
        Verdict::Failed { category, message } if own.has_slept && !is_answered && is_of_time(category) => {
            let message = format!("walhook did not run while the request was under way: {message}");
            Verdict::failed(Category::OwnClock, message)
        }
        Verdict::Failed { .. } | Verdict::Acknowledged => verdict,
    }
}

fn is_of_time(category: Category) -> bool {
    matches!(category, Category::Timeout | Category::ConnectTimeout | Category::ConnectionReset)
}

/// By a clock that was set a good certificate is over, or has not begun: by the clock as it was it holds.
fn is_of_wall_clock(error: &SendError, own: Own) -> bool {
    if own.astray_secs == 0 {
        return false;
    }
    let Some(rustls::Error::InvalidCertificate(fault)) = find::<rustls::Error>(error) else { return false };
    let unset = |now: &UnixTime| i128::from(now.as_secs()) - i128::from(own.astray_secs);
    if let CertificateError::ExpiredContext { time, not_after } = fault {
        return unset(time) <= i128::from(not_after.as_secs());
    }
    if let CertificateError::NotValidYetContext { time, not_before } = fault {
        return unset(time) >= i128::from(not_before.as_secs());
    }
    false
}

/// Whoever answers before there is a request has not read it, whatever the answer says.
fn early(status: StatusCode) -> Verdict {
    let message = format!(
        "{} was whole before all of the request had been sent, so it does not speak of the message: the endpoint must read a request \
         before it acknowledges it",
        phrase(status)
    );
    Verdict::failed(Category::ProtocolError, message)
}

fn late(status: Option<StatusCode>, timeout: Duration) -> Verdict {
    let message = match status {
        Some(status) => {
            format!("{}, but its body did not end within {timeout:?} (request_timeout)", phrase(status))
        }
        None => format!("no answer within {timeout:?} (request_timeout)"),
    };
    Verdict::failed(Category::Timeout, message)
}

fn queued(timeout: Duration) -> Verdict {
    let message = format!(
        "not sent within {timeout:?} (request_timeout): as many requests as the endpoint takes at a time on its HTTP/2 \
         connections were under way; lower max_in_flight, or let the endpoint take more streams"
    );
    Verdict::failed(Category::Timeout, message)
}

fn broken(error: &SendError, terms: &Terms<'_>) -> Verdict {
    let category = classify(error);
    let mut message = describe(error, category, terms.peer);
    if is_of_wall_clock(error, terms.own) {
        let message = format!("the wall clock was set since walhook began: {message}");
        return Verdict::failed(Category::OwnClock, message);
    }
    // A port with TLS hangs up on what it does not understand, and so may anything else.
    if terms.is_plain && !terms.is_answered && category == Category::ConnectionReset {
        message.push_str("; a port that speaks TLS does this to http://: if it does, write https:// in the sink's url");
    }
    Verdict::failed(category, message)
}

/// A server that was spoken to without TLS on its port for it: the request was not looked at.
fn told_plainly(status: StatusCode, body: &[u8], terms: &Terms<'_>) -> Option<Verdict> {
    let told = terms.is_plain && status == StatusCode::BAD_REQUEST && says_tls(body);
    told.then(|| {
        let message = format!(
            "{}: the port speaks TLS ({}), and the sink's url says http://: write https://",
            phrase(status),
            terms.peer
        );
        Verdict::failed(Category::ProtocolError, message)
    })
}

/// What servers say then; there is no status for it.
fn says_tls(body: &[u8]) -> bool {
    const WORDS: [&str; 4] = [
        // nginx; Go and what is built with it (Caddy, Traefik); Apache; Tomcat.
        "the plain http request was sent to https port",
        "client sent an http request to an https server",
        "speaking plain http to an ssl-enabled server port",
        "this combination of host and port requires tls",
    ];
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    WORDS.iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn judged(status: u16, body: &[u8], end: End, (is_plain, is_answered): (bool, bool)) -> (&'static str, String) {
        let mut answer = Answer::default();
        (answer.status, answer.body) = (StatusCode::from_u16(status).ok(), body.to_vec());
        let (success, request_timeout) = (&SuccessRule::Any2xx, Duration::from_secs(3));
        let own = Own::default();
        let terms = Terms { success, request_timeout, peer: "hooks.test:443", is_plain, is_answered, own };
        match judge(&answer, end, &terms) {
            Verdict::Acknowledged => ("", String::new()),
            Verdict::Failed { category, message } => (category.as_str(), message),
        }
    }

    #[test]
    fn a_port_that_speaks_tls_is_named_as_one_by_what_its_server_says_to_plain_http() {
        let told: [&[u8]; 4] = [
            b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
            b"Client sent an HTTP request to an HTTPS server.\n",
            b"Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
            b"Bad Request\r\nThis combination of host and port requires TLS.\r\n",
        ];
        for body in told {
            let (word, message) = judged(400, body, End::Whole, (true, false));
            assert_eq!(word, "protocol_error");
            assert!(message.contains("speaks TLS (hooks.test:443)") && message.contains("write https://"), "{message}");
            assert_eq!(judged(400, body, End::Whole, (false, false)).0, "status_client_error", "it speaks TLS with us");
            assert_eq!(judged(422, body, End::Whole, (true, false)).0, "status_client_error");
        }
        assert_eq!(judged(400, b"no https server here", End::Whole, (true, false)).0, "status_client_error");
    }

    #[test]
    fn a_plain_port_that_has_never_answered_and_hangs_up_may_be_one_with_tls() {
        let reset = || {
            let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            End::Broken(Arc::new(SendError::Tls(error)))
        };
        for (is_plain, is_answered, is_told) in [(true, false, true), (true, true, false), (false, false, false)] {
            let (word, message) = judged(0, b"", reset(), (is_plain, is_answered));
            assert_eq!((word, message.contains("https://")), ("connection_reset", is_told), "{message}");
        }
    }

    #[test]
    fn an_answer_that_has_not_waited_for_the_request_is_no_acknowledgement_and_a_refusal_all_the_same() {
        let terms = |success| Terms {
            success,
            request_timeout: Duration::from_secs(3),
            peer: "hooks.test:80",
            is_plain: true,
            is_answered: true,
            own: Own::default(),
        };
        for (status, word) in [(200, "protocol_error"), (204, "protocol_error"), (413, "status_payload_too_large")] {
            let mut answer = Answer::default();
            (answer.status, answer.is_early) = (StatusCode::from_u16(status).ok(), true);
            match judge(&answer, End::Whole, &terms(&SuccessRule::Any2xx)) {
                Verdict::Acknowledged => panic!("{status:?}"),
                Verdict::Failed { category, message } => assert_eq!(category.as_str(), word, "{message}"),
            }
        }
    }

    #[test]
    fn what_our_own_clock_did_is_not_the_endpoints_fault_and_what_it_said_is() {
        let awake = Own::default();
        let slept = Own { has_slept: true, ..awake };
        let astray = Own { astray_secs: 86_400, ..awake };
        let reset = || Arc::new(SendError::Connect(io::ErrorKind::ConnectionReset.into()));
        let refused = || Arc::new(SendError::Connect(io::ErrorKind::ConnectionRefused.into()));
        let ended = |secs_ago: u64| {
            let [time, not_after] =
                [1_000_000, 1_000_000 - secs_ago].map(|secs| UnixTime::since_unix_epoch(Duration::from_secs(secs)));
            let error = rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after });
            Arc::new(SendError::Tls(io::Error::new(io::ErrorKind::InvalidData, error)))
        };
        let expired = || ended(3600);
        for (status, end, own, word) in [
            (0, End::Late, awake, "timeout"),
            (0, End::Late, slept, "own_clock"),
            (0, End::Queued, slept, "own_clock"),
            (200, End::Late, slept, "own_clock"),
            (200, End::Whole, slept, ""),
            (503, End::Late, slept, "status_server_error"),
            (0, End::Broken(reset()), awake, "connection_reset"),
            (0, End::Broken(reset()), slept, "own_clock"),
            (0, End::Broken(refused()), slept, "connect_refused"),
            (0, End::Broken(expired()), awake, "tls_error"),
            (0, End::Broken(expired()), slept, "tls_error"),
            (0, End::Broken(expired()), astray, "own_clock"),
            // It was over before the clock was set, too.
            (0, End::Broken(ended(90_000)), astray, "tls_error"),
            (0, End::Late, astray, "timeout"),
        ] {
            let mut answer = Answer::default();
            answer.status = StatusCode::from_u16(status).ok();
            let (success, request_timeout) = (&SuccessRule::Any2xx, Duration::from_secs(3));
            let (peer, is_plain, is_answered) = ("hooks.test:443", false, true);
            let terms = Terms { success, request_timeout, peer, is_plain, is_answered, own };
            let found = match judge(&answer, end, &terms) {
                Verdict::Acknowledged => "",
                Verdict::Failed { category, .. } => category.as_str(),
            };
            assert_eq!(found, word, "{status} {own:?}");
        }
    }
}
