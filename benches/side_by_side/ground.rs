//! The database both contestants read: a throw-away Postgres, its tables, loads and slots.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use walhook::demo::cluster::roles::Role;
use walhook::demo::cluster::{Cluster, ClusterOptions};

/// The publication of all tables.
pub(crate) const PUBLICATION: &str = "bench";
/// The slot whose copies the runs read.
const BASE: &str = "base";
/// Rows in a transaction of a load of many transactions.
const TRANSACTION_ROWS: u32 = 1000;
/// How long a slot may take to be let go by the walsender of a client that has left.
const RELEASE: Duration = Duration::from_secs(10);

/// Nothing but the load and the contestants works while they are measured: no checkpoint, no autovacuum.
const SETTINGS: &[(&str, &str)] = &[
    ("max_wal_size", "32GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    ("wal_sender_timeout", "60s"),
    ("shared_buffers", "256MB"),
    ("full_page_writes", "off"),
];

/// Rows of about 200 bytes as text.
const SCHEMA: &str = "
    create table items (id bigint primary key, customer_id int, note text, created_at timestamptz, amount numeric(10,2),
        is_open boolean);
    create table hot (like items including all);
    create table trickle (like items including all);
    create table outage (like items including all);
    alter table outage replica identity full;
    create table documents (id bigint primary key, doc jsonb, tags jsonb);
    create table numbers (id bigint primary key, a numeric, b numeric(12,2), c numeric(30,10), d float8, e float8, f int8, g int4,
        at timestamptz, seen timestamptz, done timestamp, paid timestamp, due timestamptz, sent timestamptz, day date, gone timestamptz);
    insert into hot select id, 0, '', now(), 0, true from generate_series(1, 10) id;
    create publication bench for table items, hot, trickle, outage, documents, numbers;
";

/// Row `i` is of customer `i % CUSTOMERS`.
pub(crate) const CUSTOMERS: u32 = 100_000;
/// The columns of row `i` but its id.
const COLUMNS: &str = "(i % 100000)::int, repeat(md5(i::text), 4), now(), (i % 100000) / 100.0, i % 2 = 0";

/// The columns of document `i` but its id, and those of row `i` of numbers and times.
const DOCUMENTS: &str = "jsonb_build_object('name', md5(i::text), 'total', (i % 100000) / 100.0, 'open', i % 2 = 0, 'lines',
    jsonb_build_array(jsonb_build_object('sku', md5((i + 1)::text), 'n', i % 7, 'price', 12.50, 'note', repeat('word ', 12)),
        jsonb_build_object('sku', md5((i + 2)::text), 'n', 1, 'price', 0.99, 'note', E'line \\n \"two\"')),
    'address', jsonb_build_object('street', 'Long street ' || i % 100, 'zip', '12345', 'city', 'Zürich')),
    jsonb_build_array('a', 'b', i, null, true)";
const NUMBERS: &str = "i / 7.0, (i % 100000) / 100.0, i * 1.0123456789, i / 3.0::float8, i * 1e-9::float8, i::int8 * 1000003, (i % 100000)::int,
    now() + i * interval '1 us', now() - i * interval '1 s', localtimestamp, localtimestamp + i * interval '1 ms', now(), now(),
    date '2024-01-01' + (i % 365)::int, null";

/// What is written before a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Inserts in transactions of 1,000.
    Rows,
    /// Updates of 10 rows in turn, in transactions of 1,000.
    HotKeys,
    /// Inserts in one transaction.
    OneTransaction,
    /// Inserts in transactions of 1,000, into a table whose messages are grouped by customer.
    Customers,
    /// Inserts of rows that are mostly jsonb, in transactions of 1,000.
    Documents,
    /// Inserts of rows of numbers and times, in transactions of 1,000.
    Numbers,
}

impl Load {
    /// Its table.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::Rows | Self::OneTransaction => "items",
            Self::HotKeys => "hot",
            Self::Customers => "outage",
            Self::Documents => "documents",
            Self::Numbers => "numbers",
        }
    }

    fn sql(self, rows: u32) -> String {
        let (transactions, table) = (rows / TRANSACTION_ROWS, self.table());
        match self {
            Self::Rows | Self::Customers => inserts(table, COLUMNS, transactions),
            Self::Documents => inserts(table, DOCUMENTS, transactions),
            Self::Numbers => inserts(table, NUMBERS, transactions),
            Self::HotKeys => format!(
                "do $$ begin for i in 1..{transactions} * {TRANSACTION_ROWS} loop
                    update hot set (customer_id, note, created_at, amount, is_open) = ({COLUMNS}) where id = i % 10 + 1;
                    if i % {TRANSACTION_ROWS} = 0 then commit; end if;
                end loop; end $$"
            ),
            Self::OneTransaction => {
                format!("insert into items select i, {COLUMNS} from generate_series(1, {rows}) i")
            }
        }
    }
}

fn inserts(table: &str, columns: &str, transactions: u32) -> String {
    format!(
        "do $$ begin for t in 0..{transactions} - 1 loop
            insert into {table} select i, {columns}
                from generate_series(t * {TRANSACTION_ROWS} + 1, (t + 1) * {TRANSACTION_ROWS}) i;
            commit;
        end loop; end $$"
    )
}

/// The database.
pub(crate) struct Ground {
    /// The owner of the tables.
    owner: Client,
    /// A superuser, for slots and checkpoints.
    admin: Client,
    _drivers: JoinSet<()>,
    /// Last, so that the connections end before it.
    pub(crate) cluster: Cluster,
}

impl Ground {
    /// Starts it, with empty tables.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let settings = SETTINGS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let cluster = Cluster::start(&ClusterOptions { settings, ..ClusterOptions::default() })?;
        let mut drivers = JoinSet::new();
        let owner = connect(&cluster, Role::Owner, &mut drivers).await?;
        let admin = connect(&cluster, Role::Superuser, &mut drivers).await?;
        owner.batch_execute(SCHEMA).await?;
        Ok(Self { owner, admin, _drivers: drivers, cluster })
    }

    /// What the server calls itself.
    pub(crate) async fn version(&self) -> anyhow::Result<String> {
        Ok(format!("Postgres {}", self.value("show server_version").await?.unwrap_or_default()))
    }

    /// Writes the load behind a new base slot; gives the position where it ends.
    pub(crate) async fn load(&self, load: Load, rows: u32) -> anyhow::Result<String> {
        if load.table() == "items" {
            self.owner.batch_execute("truncate items").await?;
        }
        self.create_slot(BASE).await?;
        self.owner.batch_execute(&load.sql(rows)).await?;
        let end = self.value("select pg_current_wal_insert_lsn()").await?.context("the server has no position")?;
        // Something behind the end, so that the server's position passes it.
        self.value("select pg_logical_emit_message(false, 'bench', 'the end')").await?;
        self.admin.batch_execute("checkpoint").await?;
        Ok(end)
    }

    /// Writes the load on a connection of its own, while others work; gives the position where it ends, and when its last
    /// transaction was committed.
    pub(crate) async fn write(&self, load: Load, rows: u32) -> anyhow::Result<(String, Instant)> {
        let mut drivers = JoinSet::new();
        let client = connect(&self.cluster, Role::Owner, &mut drivers).await?;
        client.batch_execute(&load.sql(rows)).await?;
        let committed = Instant::now();
        let end = self.value("select pg_current_wal_insert_lsn()").await?.context("the server has no position")?;
        self.value("select pg_logical_emit_message(false, 'bench', 'the end')").await?;
        Ok((end, committed))
    }

    /// Whether the slot was confirmed up to there.
    pub(crate) async fn is_confirmed(&self, slot: &str, end: &str) -> anyhow::Result<bool> {
        let sql = format!("select confirmed_flush_lsn >= '{end}' from pg_replication_slots where slot_name = '{slot}'");
        Ok(self.value(&sql).await?.is_some_and(|is| is == "t"))
    }

    /// A slot of its own for one run, at the position of the base slot.
    pub(crate) async fn copy_slot(&self, slot: &str) -> anyhow::Result<()> {
        self.value(&format!("select pg_copy_logical_replication_slot('{BASE}', '{slot}')")).await.map(drop)
    }

    /// A slot at the end of the WAL.
    pub(crate) async fn create_slot(&self, slot: &str) -> anyhow::Result<()> {
        self.value(&format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await.map(drop)
    }

    /// Process id of the walsender that serves the slot.
    pub(crate) async fn walsender(&self, slot: &str) -> anyhow::Result<Option<u32>> {
        let sql = format!("select active_pid from pg_replication_slots where slot_name = '{slot}'");
        Ok(self.value(&sql).await?.and_then(|pid| pid.parse().ok()))
    }

    /// Drops a slot as soon as nobody uses it.
    pub(crate) async fn drop_slot(&self, slot: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.walsender(slot).await?.is_some() {
            if started.elapsed() > RELEASE {
                bail!("slot {slot} is still in use {RELEASE:?} after its client left");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.value(&format!("select pg_drop_replication_slot('{slot}')")).await.map(drop)
    }

    /// Drops the base slot; the WAL of its load may go.
    pub(crate) async fn drop_base(&self) -> anyhow::Result<()> {
        self.drop_slot(BASE).await
    }

    /// The first value of the first row, as superuser.
    pub(crate) async fn value(&self, sql: &str) -> anyhow::Result<Option<String>> {
        let messages = self.admin.simple_query(sql).await.with_context(|| sql.to_owned())?;
        let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
        Ok(messages.into_iter().find_map(row).and_then(|row| row.get(0).map(str::to_owned)))
    }
}

/// A session that is driven for as long as `drivers` lives.
async fn connect(cluster: &Cluster, role: Role, drivers: &mut JoinSet<()>) -> anyhow::Result<Client> {
    let (client, driver) = tokio_postgres::connect(&cluster.url_as(role, "postgres"), NoTls).await?;
    drivers.spawn(async move { drop(driver.await) });
    Ok(client)
}
