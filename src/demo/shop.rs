//! The shop of the demo: customers order products, orders are paid, shipped and, later, forgotten.

use std::time::Duration;

use anyhow::Context as _;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use crate::cli::say;

const SCHEMA: &str = "
    create table customers (id bigint generated always as identity primary key, name text not null, city text);
    create table products (id int primary key, name text not null, price numeric(8,2) not null, stock int not null);
    create table orders (
        id bigint generated always as identity primary key, customer_id bigint not null, product_id int not null,
        quantity int not null, status text not null default 'new', tags text[] not null default '{}',
        created_at timestamptz not null default now()
    );
    alter table orders replica identity full;
    insert into products values (1, 'tea', 4.20, 100), (2, 'biscuits', 2.75, 80), (3, 'honey', 6.90, 40);
";

/// What happens, one statement after another, round and round.
const TRADE: [&str; 7] = [
    "insert into customers (name, city) values ((array['Ada','Grace','Edsger','Barbara'])[1 + (random() * 3)::int], 'London')",
    "insert into orders (customer_id, product_id, quantity, tags) \
     select max(id), 1 + (random() * 2)::int, 1 + (random() * 4)::int, '{web,new}' from customers",
    "update products set stock = stock - 1 where id in (select product_id from orders order by id desc limit 1)",
    "begin; update orders set status = 'paid' where status = 'new'; \
     select pg_logical_emit_message(true, 'shop.paid', json_build_object('group', id, 'quantity', quantity)::text) \
       from orders where status = 'paid'; commit",
    "update products set price = price + 0.01 where id in (select product_id from orders order by id desc limit 1)",
    "update orders set status = 'shipped', tags = '{web}' where status = 'paid'",
    "delete from orders where id < (select max(id) - 4 from orders)",
];

/// The wait between two statements.
const PACE: Duration = Duration::from_millis(300);

/// An open shop.
pub(super) struct Shop {
    client: Client,
}

impl Shop {
    /// Makes the tables.
    pub(super) async fn open(url: &str) -> anyhow::Result<Self> {
        let (client, driver) =
            tokio_postgres::connect(url, NoTls).await.context("cannot reach the throw-away Postgres")?;
        #[expect(clippy::disallowed_methods, reason = "it ends with the client, which the shop owns")]
        tokio::spawn(driver);
        client.batch_execute(SCHEMA).await.context("cannot make the tables of the shop")?;
        Ok(Self { client })
    }

    /// Trades until the stop.
    pub(super) async fn trade(self, stop: CancellationToken) {
        let mut pace = tokio::time::interval(PACE);
        for statement in TRADE.iter().cycle() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = pace.tick() => {}
            }
            if let Err(error) = self.client.batch_execute(statement).await {
                say(&format!("the shop closes: {error}"));
                return;
            }
        }
    }
}
