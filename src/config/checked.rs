//! The checked types: every value holds what its type says. The other rooms read these and check nothing again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderMap;
use secrecy::SecretString;
use url::Url;

use crate::address::PgAddress;
use crate::change::TableName;
use crate::deliver::egress::Egress;
use crate::deliver::sign::SigningSecret;

/// A whole configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// Databases, in the order of the file; at least one.
    pub sources: Vec<SourceConfig>,
    /// Endpoints, in the order of the file; at least one.
    pub sinks: Vec<SinkConfig>,
    /// The store on disk.
    pub state: StateConfig,
    /// The admin side.
    pub admin: AdminConfig,
    /// Bounds of the process.
    pub limits: LimitsConfig,
    /// Logs.
    pub log: LogConfig,
}

/// `[source.NAME]`.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// NAME: 1–63 of `a-z A-Z 0-9 _ -`, starting with a letter.
    pub name: String,
    /// Where the database is and as whom to speak.
    pub url: PgAddress,
    /// Replication slot, 1–63 of `a-z 0-9 _`.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Create and maintain publication and slot, or only check them.
    pub create: bool,
    /// How often `pg_logical_emit_message` is called; `None` = off.
    pub heartbeat: Option<Duration>,
    /// The slot is one that standbys keep a copy of (17 and later); false leaves it as it is.
    pub failover: bool,
    /// What becomes of a slot that the server has given up, or that is gone.
    pub on_slot_lost: OnSlotLost,
}

#[cfg(test)]
impl SourceConfig {
    /// One as the defaults make it, without heartbeats.
    pub(crate) fn example() -> Self {
        Self {
            name: "app".to_owned(),
            url: PgAddress::parse("postgres://walhook@h/app").unwrap_or_else(|error| panic!("{error}")),
            slot: "walhook_app".to_owned(),
            publication: "walhook_app".to_owned(),
            create: true,
            heartbeat: None,
            failover: false,
            on_slot_lost: OnSlotLost::Stop,
        }
    }
}

/// `on_slot_lost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSlotLost {
    /// The source stops, until a person accepts the gap.
    Stop,
    /// It is made anew, and the gap is marked.
    Recreate,
}

/// A part of `tables`: `schema.table`, either of which may be `*`, or hold `*` (`billing.*`, `public.order_*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePattern {
    /// Schema, with `*` for any run of characters.
    pub schema: String,
    /// Table, likewise.
    pub table: String,
}

impl TablePattern {
    /// Whether it names exactly one table.
    pub fn is_exact(&self) -> bool {
        !self.schema.contains('*') && !self.table.contains('*')
    }

    /// Whether `name` is one of the tables it names.
    pub fn matches(&self, name: &TableName) -> bool {
        star_matches(&self.schema, &name.schema) && star_matches(&self.table, &name.table)
    }
}

fn star_matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(rest) = text.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    if !pattern.contains('*') {
        return rest.is_empty();
    }
    let mut rest = rest;
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

/// Which kinds of change a sink takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Actions {
    /// insert
    pub insert: bool,
    /// update
    pub update: bool,
    /// delete
    pub delete: bool,
    /// truncate
    pub truncate: bool,
}

/// A part of `messages`: a prefix of logical messages, with `*` for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixPattern(pub String);

impl PrefixPattern {
    /// What walhook's own prefixes begin with.
    pub const OWN: &str = "walhook:";
    /// The longest pattern, in bytes.
    pub(super) const BYTES_MAX: usize = 255;

    /// Whether it names `prefix`. Prefixes that begin with `walhook:` are walhook's own and are named by none.
    pub fn matches(&self, prefix: &str) -> bool {
        !prefix.starts_with(Self::OWN) && star_matches(&self.0, prefix)
    }
}

/// `unchanged_toast`: what becomes of a large value that Postgres did not send because it is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnchangedToast {
    /// It is left out and named in `metadata.unchanged`.
    Omit,
    /// It is read from the table by primary key and named in `metadata.fetched`; where that is not possible, it is left out.
    Fetch,
}

/// `message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageForm {
    /// Record, changes, action, metadata.
    Change,
    /// Record and a short metadata.
    Row,
}

/// `body`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyForm {
    /// `{"data": [message, …]}`
    Batch,
    /// `[message, …]`
    Array,
    /// The bare message; `batch_size` is 1.
    Single,
}

/// `numbers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// int8 and numeric as JSON numbers.
    Json,
    /// int8 and numeric as JSON strings.
    String,
}

/// `group_by`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupBy {
    /// The catalogue's primary key; the whole table if there is none.
    PrimaryKey,
    /// These columns; at least one.
    Columns(Vec<String>),
    /// The whole table.
    Table,
    /// Every message by itself: no order.
    None,
}

/// As the config has it.
impl std::fmt::Display for GroupBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PrimaryKey => f.write_str("primary_key"),
            Self::Columns(names) => write!(f, "{names:?}"),
            Self::Table => f.write_str("table"),
            Self::None => f.write_str("none"),
        }
    }
}

/// `success`: which statuses acknowledge. At least one of 200–299 is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SuccessRule {
    /// 200–299.
    Any2xx,
    /// Exactly these, each 200–299.
    Only(Vec<u16>),
}

impl SuccessRule {
    /// Whether `status` acknowledges.
    pub fn accepts(&self, status: u16) -> bool {
        match self {
            Self::Any2xx => (200..300).contains(&status),
            Self::Only(statuses) => statuses.contains(&status),
        }
    }
}

/// `[sink.NAME.retry]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConfig {
    /// First wait; at least 10 ms.
    pub initial: Duration,
    /// Longest wait; at least `initial`.
    pub max: Duration,
    /// Attempts after which a delivery is a dead letter; `None`: never.
    pub max_attempts: Option<u32>,
    /// Age, counted from the first attempt, at which a delivery that fails is a dead letter; `None`: never.
    pub max_age: Option<Duration>,
    /// What happens then.
    pub on_exhausted: OnExhausted,
    /// The failure with 400, 413 or 422 from which on a delivery of several messages is split; at least 1.
    pub split_after: u32,
}

impl RetryConfig {
    /// For ever, with these waits; everything else as the defaults have it.
    pub fn of_waits(initial: Duration, max: Duration) -> Self {
        Self { initial, max, max_attempts: None, max_age: None, on_exhausted: OnExhausted::Continue, split_after: 3 }
    }
}

/// `retry.on_exhausted`: what happens to the rest when a delivery is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExhausted {
    /// It is a dead letter and its groups go on.
    Continue,
    /// It is kept and its groups wait for a person.
    BlockGroup,
    /// It is a dead letter and the sink pauses.
    PauseSink,
}

/// `[sink.NAME]`.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// NAME: 1–63 of `a-z A-Z 0-9 _ -`, starting with a letter.
    pub name: String,
    /// Name of its source.
    pub source: String,
    /// `url` and `path` joined.
    pub endpoint: Url,
    /// File of the authorities that may vouch for the endpoint, instead of the machine's; joined with the directory of the
    /// config file.
    pub tls_ca: Option<PathBuf>,
    /// Where it may not lead, as no endpoint may.
    pub egress: Egress,
    /// At least one, or there is one in `messages`.
    pub tables: Vec<TablePattern>,
    /// Logical messages that it takes.
    pub messages: Vec<PrefixPattern>,
    /// Of its tables; at least one.
    pub actions: Actions,
    /// Form of a message.
    pub message: MessageForm,
    /// Form of a body.
    pub body: BodyForm,
    /// 1..=1000 messages; 1 with `BodyForm::Single`.
    pub batch_size: usize,
    /// Bytes of body that a delivery of several messages may have.
    pub batch_bytes: usize,
    /// How long a delivery that is not full may wait for more.
    pub batch_timeout: Duration,
    /// Whole time of an attempt, counted from connect.
    pub request_timeout: Duration,
    /// Unacknowledged messages at most; at least 1.
    pub max_ack_pending: usize,
    /// Requests at a time at most; at least 1.
    pub max_in_flight: usize,
    /// What acknowledges.
    pub success: SuccessRule,
    /// Grouping of the sink's tables.
    pub group_by: GroupBy,
    /// Grouping of single tables, before `group_by`.
    pub group_by_table: Vec<(TableName, GroupBy)>,
    /// The sink's own headers.
    pub headers: HeaderMap,
    /// Standard Webhooks secrets; the first signs first, each adds a signature.
    pub signing_secrets: Vec<SigningSecret>,
    /// int8 and numeric.
    pub numbers: Numbers,
    /// Large values that Postgres did not send.
    pub unchanged_toast: UnchangedToast,
    /// Starts paused.
    pub paused: bool,
    /// Waits between attempts.
    pub retry: RetryConfig,
}

impl SinkConfig {
    /// Whether changes of `table` are for this sink.
    pub fn takes_table(&self, table: &TableName) -> bool {
        self.tables.iter().any(|pattern| pattern.matches(table))
    }

    /// Whether logical messages with this prefix are for this sink.
    pub fn takes_prefix(&self, prefix: &str) -> bool {
        self.messages.iter().any(|pattern| pattern.matches(prefix))
    }

    /// The rules by which its messages are grouped, as one text that is the same for the same rules.
    pub fn grouping(&self) -> String {
        let mut tables: Vec<String> =
            self.group_by_table.iter().map(|(table, rule)| format!("{table} {rule}")).collect();
        tables.sort_unstable();
        std::iter::once(self.group_by.to_string()).chain(tables).collect::<Vec<_>>().join(", ")
    }

    /// The rule by which changes of `table` are grouped.
    pub fn group_rule(&self, table: &TableName) -> &GroupBy {
        self.group_by_table.iter().find(|(name, _)| name == table).map_or(&self.group_by, |(_, rule)| rule)
    }
}

/// `[state]`.
#[derive(Debug, Clone)]
pub struct StateConfig {
    /// Directory, absolute or relative to the config file's (joined with it here).
    pub path: PathBuf,
    /// Where a change waits that cannot be delivered soon.
    pub hold: Hold,
    /// Bytes of disk that the store may use; at least 8 MiB.
    pub max_bytes: u64,
    /// How long a dead letter is kept, counted in the time that walhook runs.
    pub dead_letter_retention: Duration,
    /// How long a delivered delivery stays in the log.
    pub log_retention: Duration,
    /// Rows of the delivery log at most.
    pub log_max_rows: u64,
}

/// `state.hold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// On the store's disk; the slot moves on.
    Store,
    /// In the WAL; nothing is confirmed before it is delivered or dead.
    Wal,
}

/// `[admin]`.
#[derive(Debug)]
pub struct AdminConfig {
    /// Address; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Bearer tokens; never empty when `listen` is not loopback.
    pub tokens: Vec<AdminToken>,
}

/// One of `admin.tokens`.
#[derive(Debug)]
pub struct AdminToken {
    /// The bearer token.
    pub token: SecretString,
    /// May operate, or only read.
    pub operate: bool,
    /// Only these sinks; `None` = all.
    pub sinks: Option<Vec<String>>,
}

/// `[limits]`.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Bytes of changes held in memory, over all sinks; at least 32 MiB.
    pub memory_limit: usize,
    /// Bytes of the row values of one change, as the server sends them, that are taken in whole; at most a quarter of
    /// `memory_limit`.
    pub message_bytes_max: usize,
    /// How long a stop waits for requests in flight.
    pub shutdown_grace: Duration,
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Form.
    pub format: LogFormat,
    /// A `tracing_subscriber::EnvFilter` directive list, checked.
    pub level: String,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// JSON lines.
    Json,
}
