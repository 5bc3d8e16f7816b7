//! What came of one attempt, and the pure rule that decides it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::StatusCode;

use super::category::Category;
use crate::config::SuccessRule;

/// One HTTP request for a delivery, when it is over.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What came of it.
    pub verdict: Verdict,
    /// The status, if an answer began; it may stand beside a failure that came after it.
    pub status: Option<u16>,
    /// When it began.
    pub started_at: SystemTime,
    /// How long it took, from connect to the end of the answer.
    pub duration: Duration,
    /// The answer's body, as far as it is kept.
    pub response: Kept,
    /// The wait that a 429 or 503 asked for, at most a year.
    pub retry_after: Option<Duration>,
    /// How often the request was sent again at once, because the endpoint had certainly not taken it.
    pub resent: u32,
}

impl Attempt {
    /// An attempt that could not be made, for a reason of ours.
    pub fn unbuildable(started_at: SystemTime, message: &str) -> Self {
        Self::not_made(started_at, Category::Unbuildable, message)
    }

    /// An attempt that is not made, because the message is too large.
    pub fn too_large(started_at: SystemTime, message: &str) -> Self {
        Self::not_made(started_at, Category::TooLarge, message)
    }

    /// An attempt that is not made, because the store has damaged a message.
    pub fn damaged(started_at: SystemTime, message: &str) -> Self {
        Self::not_made(started_at, Category::Damaged, message)
    }

    fn not_made(started_at: SystemTime, category: Category, message: &str) -> Self {
        let verdict = Verdict::failed(category, message);
        let (duration, response) = (Duration::ZERO, Kept::default());
        Self { verdict, status: None, started_at, duration, response, retry_after: None, resent: 0 }
    }
}

/// The start of an answer's body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// At most 16 KiB.
    pub body: Bytes,
    /// There was more.
    pub truncated: bool,
}

/// Whether a delivery is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver has it.
    Acknowledged,
    /// The whole delivery failed.
    Failed {
        /// Why, as a word.
        category: Category,
        /// Why, for a person.
        message: String,
    },
}

impl Verdict {
    /// Whether it is [`Verdict::Acknowledged`].
    pub fn is_acknowledged(&self) -> bool {
        match self {
            Self::Acknowledged => true,
            Self::Failed { .. } => false,
        }
    }

    pub(super) fn failed(category: Category, message: impl Into<String>) -> Self {
        Self::Failed { category, message: message.into() }
    }
}

/// What a status says, given that its body was read.
pub(super) fn of_status(status: StatusCode, success: &SuccessRule) -> Verdict {
    if success.accepts(status.as_u16()) {
        return Verdict::Acknowledged;
    }
    let category = match status.as_u16() {
        200..=299 => return Verdict::failed(Category::UnexpectedSuccessStatus, unexpected(status, success)),
        300..=399 => return Verdict::failed(Category::StatusRedirect, redirect(status)),
        401 | 403 => Category::StatusUnauthorized,
        410 => Category::StatusGone,
        413 => Category::StatusPayloadTooLarge,
        429 => Category::StatusRateLimited,
        400..=499 => Category::StatusClientError,
        500..=599 => Category::StatusServerError,
        _ => {
            let message = format!("{} is not the status of a final answer", phrase(status));
            return Verdict::failed(Category::ProtocolError, message);
        }
    };
    Verdict::failed(category, phrase(status))
}

/// `503 Service Unavailable`, or the number alone if it has no name.
pub(super) fn phrase(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

fn unexpected(status: StatusCode, success: &SuccessRule) -> String {
    let rule = match success {
        SuccessRule::Any2xx => "\"2xx\"".to_owned(),
        SuccessRule::Only(statuses) => {
            let quoted: Vec<_> = statuses.iter().map(|status| format!("\"{status}\"")).collect();
            if quoted.len() == 1 { quoted.concat() } else { format!("[{}]", quoted.join(", ")) }
        }
    };
    format!("{} is not in success = {rule}; success = \"2xx\" would accept it", phrase(status))
}

fn redirect(status: StatusCode) -> String {
    if status == StatusCode::NOT_MODIFIED {
        return format!("{} answers a question that was not asked", phrase(status));
    }
    format!("{} points to another place and walhook follows none; set url to where it points", phrase(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, success: &SuccessRule) -> (&'static str, String) {
        match of_status(StatusCode::from_u16(status).unwrap(), success) {
            Verdict::Acknowledged => ("", String::new()),
            Verdict::Failed { category, message } => (category.as_str(), message),
        }
    }

    #[test]
    fn statuses_have_their_categories() {
        for (status, word) in [
            (200, ""),
            (204, ""),
            (299, ""),
            (101, "protocol_error"),
            (301, "status_redirect"),
            (304, "status_redirect"),
            (400, "status_client_error"),
            (401, "status_unauthorized"),
            (403, "status_unauthorized"),
            (404, "status_client_error"),
            (410, "status_gone"),
            (413, "status_payload_too_large"),
            (422, "status_client_error"),
            (429, "status_rate_limited"),
            (500, "status_server_error"),
            (599, "status_server_error"),
            (600, "protocol_error"),
        ] {
            assert_eq!(judged(status, &SuccessRule::Any2xx).0, word, "{status}");
        }
    }

    #[test]
    fn a_2xx_outside_success_names_the_setting() {
        let (word, message) = judged(204, &SuccessRule::Only(vec![200]));
        assert_eq!(word, "unexpected_success_status");
        assert_eq!(message, "204 No Content is not in success = \"200\"; success = \"2xx\" would accept it");
        let (_, message) = judged(299, &SuccessRule::Only(vec![200, 202]));
        assert_eq!(message, "299 is not in success = [\"200\", \"202\"]; success = \"2xx\" would accept it");
        assert_eq!(judged(200, &SuccessRule::Only(vec![200])).0, "");
    }
}
