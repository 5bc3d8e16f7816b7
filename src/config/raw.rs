//! The TOML as a person writes it: every key with its meaning, default and bounds.
//!
//! The defaults here are the lowest layer that a file is laid over, and the JSON Schema of `walhook config schema` is
//! derived from these structs, so that the two cannot differ.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::deliver::egress::DENIED;

/// A duration: a whole number and one of ms, s, m, h, d.
#[derive(Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^[0-9]+(ms|s|m|h|d)$"))]
pub(crate) struct DurationText(&'static str);

/// A size: a whole number and one of B, KB, KiB, MB, MiB, GB, GiB, TB, TiB.
#[derive(Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^[0-9]+([KMGT]i?)?B$"))]
pub(crate) struct SizeText(&'static str);

/// A string or a list of strings.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum TextOrList {
    /// One.
    One(&'static str),
    /// Several.
    #[expect(dead_code, reason = "no default is a list, but the schema knows that there are lists")]
    Many(Vec<String>),
}

/// walhook.toml: which databases are read and where their changes go.
#[derive(Serialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
#[schemars(title = "walhook")]
pub(crate) struct RawConfig {
    /// Databases by name: [source.NAME]. A name is 1 to 63 of letters, digits, _ and -, and begins with a letter.
    #[schemars(extend("minProperties" = 1, "propertyNames" = {"pattern": "^[a-zA-Z][a-zA-Z0-9_-]{0,62}$"}))]
    source: BTreeMap<String, RawSource>,
    /// Endpoints by name: [sink.NAME], 1 to 1000 of them; names as those of sources.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 1000, "propertyNames" = {"pattern": "^[a-zA-Z][a-zA-Z0-9_-]{0,62}$"}))]
    sink: BTreeMap<String, RawSink>,
    /// The store on disk: what must outlive the process.
    #[serde(default)]
    state: RawState,
    /// The admin side: /metrics, /healthz, /readyz.
    #[serde(default)]
    admin: RawAdmin,
    /// Where no endpoint may lead.
    #[serde(default)]
    egress: RawEgress,
    /// Bounds of the process.
    #[serde(default)]
    limits: RawLimits,
    /// Logs.
    #[serde(default)]
    log: RawLog,
}

impl RawConfig {
    /// The defaults of everything, with a table for each of the named sources and sinks.
    pub(super) fn defaults(sources: Vec<String>, sinks: Vec<String>) -> Self {
        Self {
            source: sources.into_iter().map(|name| (name, RawSource::default())).collect(),
            sink: sinks.into_iter().map(|name| (name, RawSink::default())).collect(),
            ..Self::default()
        }
    }
}

/// A database, read through one replication slot.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["url"]))]
pub(crate) struct RawSource {
    /// Where the database is and as whom to speak: postgres://user@host:port/database, with sslmode, sslrootcert, require_auth, application_name and so on as libpq has them; sslrootcert alone means verify-full.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    url: Option<String>,
    /// Replication slot, 1 to 63 of a-z, 0-9 and _. Left out, it is walhook_NAME in lower case with _ for -.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = "^[a-z0-9_]{1,63}$"))]
    slot: Option<String>,
    /// Publication, 1 to 63 bytes. Left out, it is walhook_NAME in lower case with _ for -.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 63))]
    publication: Option<String>,
    /// Create and maintain the publication and the slot; false only checks them.
    create: bool,
    /// How often a heartbeat is written to the WAL, so that the slot moves on in a quiet database: 1s to 24h; "0s" turns it off.
    heartbeat: DurationText,
    /// Make the slot one that standbys keep a copy of, so that a promoted one can be read on, and make an existing one such: Postgres 17 and later. false leaves it as it is.
    failover: bool,
    /// When the server has given the slot up, or somebody has dropped it: "stop" waits for a person, "recreate" makes it anew and marks the gap, three times an hour at most; it needs create.
    #[schemars(extend("enum" = ["stop", "recreate"]))]
    on_slot_lost: &'static str,
}

impl Default for RawSource {
    fn default() -> Self {
        let (create, heartbeat) = (true, DurationText("10s"));
        let (failover, on_slot_lost) = (false, "stop");
        Self { url: None, slot: None, publication: None, create, heartbeat, failover, on_slot_lost }
    }
}

/// An endpoint and the rules by which it gets its messages.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["url"], "anyOf" = [{"required": ["tables"]}, {"required": ["messages"]}]))]
pub(crate) struct RawSink {
    /// Name of its source; may be left out when there is only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    source: Option<String>,
    /// Endpoint, http or https, without user, password and fragment. A query is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = "^https?://"))]
    url: Option<String>,
    /// Path that is appended to the url with exactly one slash between them; may be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    path: Option<String>,
    /// Tables whose changes are sent, each schema.table as the catalogue has it; * stands for any run of characters, and names with dots or spaces are put in double quotes. At least one; may be left out where there are messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>", length(min = 1))]
    tables: Option<Vec<String>>,
    /// Prefixes of the logical messages that are sent, those which pg_logical_emit_message(true, prefix, content) wrote, each once; * stands for any run of characters, and prefixes that begin with walhook: are walhook's own.
    #[schemars(extend("uniqueItems" = true, "items" = {"type": "string", "minLength": 1, "maxLength": 255, "not": {"pattern": "^walhook:"}}))]
    messages: Vec<String>,
    /// Kinds of change of the tables that are sent: insert, update, delete, truncate. At least one, each once.
    #[schemars(length(min = 1), extend("uniqueItems" = true, "items" = {"enum": ["insert", "update", "delete", "truncate"]}))]
    actions: Vec<&'static str>,
    /// Form of a message: "change" has record, changes, action and metadata; "row" has the record and a short metadata, and leaves out deletes and truncates.
    #[schemars(extend("enum" = ["change", "row"]))]
    message: &'static str,
    /// Form of a body: "batch" is {"data": [message, …]}, "array" is [message, …], "single" is the bare message and needs batch_size = 1.
    #[schemars(extend("enum" = ["batch", "array", "single"]))]
    body: &'static str,
    /// Messages in a delivery at most, 1 to 1000.
    #[schemars(range(min = 1, max = 1000))]
    batch_size: u32,
    /// Bytes of body that a delivery of several messages may have, 1KiB to 64MiB; a larger message goes alone.
    batch_bytes: SizeText,
    /// How long a delivery that is not full waits for more messages, 0s to 60s.
    batch_timeout: DurationText,
    /// Whole time of an attempt, counted from connect, 100ms to 15m.
    request_timeout: DurationText,
    /// Messages sent and not acknowledged at most, 1 to 10000000.
    #[schemars(range(min = 1, max = 10_000_000))]
    max_ack_pending: u32,
    /// Requests at a time at most, 1 to 10000.
    #[schemars(range(min = 1, max = 10_000))]
    max_in_flight: u32,
    /// Statuses that acknowledge: "2xx", one such as "200", or a list such as ["200", "202"], each from 200 to 299.
    success: TextOrList,
    /// What is delivered in order: "primary_key" (each row), a list of columns (rows with equal values), "table" (the whole table), or "none". Equal is what Postgres calls equal; where the text of a column does not tell that (citext, jsonb …), the whole table is in order. Logical messages are in order by their group, whichever of the first three it is.
    group_by: TextOrList,
    /// How an https endpoint is told from others.
    tls: RawTls,
    /// The sink's own headers, name and value. Those that walhook or HTTP itself sets are refused.
    headers: BTreeMap<String, String>,
    /// Standard Webhooks secrets, whsec_ and the base64 of 24 to 64 bytes, 10 at most; each adds a signature, the first comes first.
    #[schemars(length(max = 10))]
    signing_secrets: Vec<String>,
    /// How int8 and numeric are written: "json" as JSON numbers with every digit, "string" as strings for receivers that would lose digits.
    #[schemars(extend("enum" = ["json", "string"]))]
    numbers: &'static str,
    /// What becomes of a large value that Postgres did not send because it is unchanged: "omit" leaves it out and names it in metadata.unchanged, "fetch" reads it from the table by primary key and names it in metadata.fetched.
    #[schemars(extend("enum" = ["omit", "fetch"]))]
    unchanged_toast: &'static str,
    /// Whether rows that already exist are sent first: "none". This version knows nothing else.
    #[schemars(extend("enum" = ["none"]))]
    backfill: &'static str,
    /// Start paused.
    paused: bool,
    /// Attempts of a delivery that fails.
    retry: RawRetry,
    /// Rules of single tables, by schema.table: [sink.NAME.table."public.orders"].
    table: BTreeMap<String, RawTable>,
}

impl Default for RawSink {
    fn default() -> Self {
        Self {
            source: None,
            url: None,
            path: None,
            tables: None,
            messages: Vec::new(),
            actions: vec!["insert", "update", "delete"],
            message: "change",
            body: "batch",
            batch_size: 1,
            batch_bytes: SizeText("1MiB"),
            batch_timeout: DurationText("10ms"),
            request_timeout: DurationText("30s"),
            max_ack_pending: 10_000,
            max_in_flight: 32,
            success: TextOrList::One("2xx"),
            group_by: TextOrList::One("primary_key"),
            tls: RawTls::default(),
            headers: BTreeMap::new(),
            signing_secrets: Vec::new(),
            numbers: "json",
            unchanged_toast: "omit",
            backfill: "none",
            paused: false,
            retry: RawRetry::default(),
            table: BTreeMap::new(),
        }
    }
}

/// How an https endpoint is told from others: by a certificate that an authority vouches for.
#[derive(Serialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTls {
    /// PEM file, absolute or relative to the directory of the configuration file, with the certificates of the authorities that may vouch for the endpoint, or with its own if it is self-signed. It is read at the start and takes the place of the machine's list for this sink.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    ca: Option<String>,
}

/// Attempts of a delivery that fails: for ever unless max_attempts or max_age is set, with waits of a random part, from half to all, of initial doubled with each attempt, up to max.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRetry {
    /// First wait, at least 10ms and at most max.
    initial: DurationText,
    /// Longest wait, at most 24h.
    max: DurationText,
    /// Attempts after which a delivery is given up and kept as a dead letter, at least 1. Left out, it is never given up for its attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 1))]
    max_attempts: Option<u32>,
    /// Age, counted from the first attempt, from which on a delivery that fails is given up and kept as a dead letter, 1s to 3650d. Left out, it is never given up for its age.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    max_age: Option<DurationText>,
    /// What happens when a delivery is given up: "continue" makes it a dead letter and its groups go on, "block_group" keeps it and its groups wait for a person, "pause_sink" makes it a dead letter and pauses the sink.
    #[schemars(extend("enum" = ["continue", "block_group", "pause_sink"]))]
    on_exhausted: &'static str,
    /// From which failure with 400, 413 or 422 on a delivery of several messages is split in two, at least 1; the halves are split at their first one.
    #[schemars(range(min = 1))]
    split_after: u32,
}

impl Default for RawRetry {
    fn default() -> Self {
        Self {
            initial: DurationText("1s"),
            max: DurationText("180s"),
            max_attempts: None,
            max_age: None,
            on_exhausted: "continue",
            split_after: 3,
        }
    }
}

/// Rules of one table of a sink.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTable {
    /// Grouping of this table, in place of the sink's.
    group_by: TextOrList,
}

/// The store on disk: what must outlive the process.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawState {
    /// Directory of the store, absolute or relative to that of the configuration file. One daemon uses it at a time.
    path: &'static str,
    /// Where a change waits that cannot be delivered soon: "store" is on disk, and the slot moves on; "wal" confirms nothing before it is delivered or given up, for machines whose disk does not last.
    #[schemars(extend("enum" = ["store", "wal"]))]
    hold: &'static str,
    /// Bytes of disk that the store may use, at least 8MiB and half a MiB for each sink.
    max_bytes: SizeText,
    /// How long a dead letter is kept, counted in the time that walhook runs, 1m to 3650d.
    dead_letter_retention: DurationText,
    /// How long deliveries and attempts that have ended stay in the log, 1m to 3650d.
    log_retention: DurationText,
    /// Rows of the log at most, 1 to 100000000.
    #[schemars(range(min = 1, max = 100_000_000))]
    log_max_rows: u32,
}

impl Default for RawState {
    fn default() -> Self {
        Self {
            path: "walhook-state",
            hold: "store",
            max_bytes: SizeText("10GiB"),
            dead_letter_retention: DurationText("7d"),
            log_retention: DurationText("24h"),
            log_max_rows: 100_000,
        }
    }
}

/// The admin side: /metrics, /healthz, /readyz.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAdmin {
    /// Address and port; port 0 lets the system choose. Without tokens only a loopback address.
    listen: &'static str,
    /// Bearer tokens, each { token = "…", role = "read" or "operate", sinks = ["orders"] }.
    #[schemars(with = "Vec<RawToken>")]
    tokens: Vec<()>,
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8377", tokens: Vec::new() }
    }
}

/// A bearer token of the admin side.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["token"]))]
pub(crate) struct RawToken {
    /// The token, of visible ASCII characters without spaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    token: Option<String>,
    /// "read" or "operate"; in this version both may read, and there is nothing to operate.
    #[schemars(extend("enum" = ["read", "operate"]))]
    role: &'static str,
    /// Sinks it is for; left out, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>", length(min = 1))]
    sinks: Option<Vec<String>>,
}

impl Default for RawToken {
    fn default() -> Self {
        Self { token: None, role: "read", sinks: None }
    }
}

/// Where no endpoint may lead.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawEgress {
    /// Networks, each an IP address with the bits of its network, or a single address. The address that a host's name leads to is looked at before each connection; an IPv4 address counts in whichever of IPv6's forms it comes (mapped, NAT64, 6to4). The default is where clouds hand out credentials; a list of one's own replaces it, and [] denies nothing.
    deny: Vec<&'static str>,
}

impl Default for RawEgress {
    fn default() -> Self {
        Self { deny: DENIED.to_vec() }
    }
}

/// Bounds of the process.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLimits {
    /// Bytes of changes held in memory, at least 32MiB; the sources that have sinks get equal shares.
    memory_limit: SizeText,
    /// Bytes of one change, as the server sends its values, up to which it is taken in whole: at least 1MiB, at most a quarter of memory_limit; left out, an eighth of memory_limit. A larger one becomes a dead letter without its large values.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SizeText")]
    max_message: Option<SizeText>,
    /// How long a stop waits for requests in flight, 0s to 15m.
    shutdown_grace: DurationText,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self { memory_limit: SizeText("256MiB"), max_message: None, shutdown_grace: DurationText("30s") }
    }
}

/// Logs.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLog {
    /// "text", "json", or "auto": text on a terminal, JSON otherwise.
    #[schemars(extend("enum" = ["auto", "text", "json"]))]
    format: &'static str,
    /// error, warn, info, debug, trace or off, also for single modules: "info,walhook::deliver=debug".
    level: &'static str,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { format: "auto", level: "info" }
    }
}
