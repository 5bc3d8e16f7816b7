//! Everything on one machine: a throw-away Postgres, a receiver, a little shop that changes rows, and walhook between
//! them. Nothing is left behind: the cluster, with its slot, is removed at the end.

pub mod cluster;
mod shop;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::cluster::roles::Role;
use self::cluster::{Cluster, ClusterOptions};
use crate::app::{self, Orders};
use crate::cli::listen::receiver::{Behaviour, Counts, Receiver};
use crate::cli::listen::text_lines;
use crate::cli::{FAILED, UNAVAILABLE, explain, say, signals};
use crate::config::{self, LogFormat};
use crate::logging;

/// Arguments of `walhook demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct DemoArgs {
    /// Address of metrics and readiness; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8377")]
    pub admin: SocketAddr,
    /// End by itself after so many acknowledged messages; 0 = only by Ctrl-C
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub messages: u64,
}

/// Runs the demo; the exit code.
pub async fn demo(args: DemoArgs) -> u8 {
    match show(args).await {
        Ok(code) => code,
        Err(error) => {
            say(&format!("error: {error:#}"));
            UNAVAILABLE
        }
    }
}

async fn show(args: DemoArgs) -> anyhow::Result<u8> {
    let orders = Orders::default();
    let signals = signals::listen(orders.clone()).context("cannot listen for signals")?;
    tokio::select! {
        code = play(args, orders.clone()) => code,
        never = signals => match never {},
    }
}

async fn play(args: DemoArgs, orders: Orders) -> anyhow::Result<u8> {
    logging::init(LogFormat::Auto, "warn,walhook=info").context("cannot start the logs")?;
    print("walhook demo: starting a throw-away Postgres …\n");
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(&ClusterOptions::default())).await?;
    let cluster = cluster.context("cannot start a throw-away Postgres")?;
    let shop = shop::Shop::open(&cluster.url_as(Role::Owner, "postgres")).await?;
    let mut tasks = JoinSet::new();
    let receivers =
        [receive(&mut tasks, "orders", 0.0, &orders).await?, receive(&mut tasks, "stock", 0.3, &orders).await?];
    let config = configuration(&args, &cluster, &receivers)?;
    print(&introduction(&cluster, &args, &receivers));
    tasks.spawn(shop.trade(orders.stop.clone()));
    tasks.spawn(end_after(
        args.messages,
        receivers.iter().map(|one| Arc::clone(&one.receiver)).collect(),
        orders.stop.clone(),
    ));
    let result = app::run(config, orders.clone()).await;
    orders.stop.cancel();
    let code = if orders.abort.is_cancelled() { FAILED } else { result.map_or_else(explain, |()| 0) };
    while tasks.join_next().await.is_some() {}
    for one in &receivers {
        print(&format!("{}: {}\n", one.name, one.receiver.counts()));
    }
    // It stops a server and removes files, which takes a moment.
    tokio::task::spawn_blocking(move || drop(cluster)).await?;
    print("the throw-away Postgres and its slot are gone\n");
    Ok(code)
}

/// A receiver in this process.
struct Endpoint {
    name: &'static str,
    address: SocketAddr,
    receiver: Arc<Receiver>,
}

/// Starts one that refuses a share of the requests.
async fn receive(tasks: &mut JoinSet<()>, name: &'static str, fail: f64, orders: &Orders) -> anyhow::Result<Endpoint> {
    let behaviour = Behaviour {
        fail,
        status: StatusCode::SERVICE_UNAVAILABLE,
        delay: Duration::from_millis(5)..=Duration::from_millis(40),
        secrets: Vec::new(),
        seed: 1,
    };
    let receiver = Receiver::new(behaviour, move |received| print(&text_lines(received, false)));
    let receiver = Arc::new(receiver);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen on loopback")?;
    let address = listener.local_addr().context("cannot tell the address listened on")?;
    let (serving, stop) = (Arc::clone(&receiver), orders.stop.clone());
    tasks.spawn(async move {
        // Requests under way at the stop are still answered: the receiver lingers a little longer than the daemon needs.
        let end = CancellationToken::new();
        let ended = end.clone();
        let linger = async move {
            stop.cancelled().await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            ended.cancel();
        };
        let (served, ()) = tokio::join!(serving.serve(listener, end), linger);
        if let Err(error) = served {
            say(&format!("error: the receiver {name} ended: {error}"));
        }
    });
    Ok(Endpoint { name, address, receiver })
}

fn configuration(
    args: &DemoArgs,
    cluster: &Cluster,
    [orders, stock]: &[Endpoint; 2],
) -> anyhow::Result<config::Config> {
    let (url, admin) = (cluster.url("postgres"), args.admin);
    let (orders, stock) = (orders.address, stock.address);
    // Gone with the cluster.
    let state = cluster.dir().join("walhook-state").display().to_string();
    let state = toml::Value::String(state.replace('$', "$$"));
    let text = format!(
        "[source.shop]\nurl = \"{url}\"\n\n\
         [sink.orders]\nurl = \"http://{orders}\"\npath = \"/orders\"\ntables = [\"public.customers\", \"public.orders\"]\n\
         messages = [\"shop.*\"]\n\n\
         [sink.stock]\nurl = \"http://{stock}\"\npath = \"/stock\"\ntables = [\"public.products\"]\n\
         [sink.stock.retry]\ninitial = \"1s\"\nmax = \"5s\"\n\n\
         [state]\npath = {state}\n\n\
         [admin]\nlisten = \"{admin}\"\n"
    );
    config::parse(&text, Path::new("demo.toml"), &|_| None, &[]).map_err(|faults| anyhow::anyhow!("{faults}"))
}

fn introduction(cluster: &Cluster, args: &DemoArgs, receivers: &[Endpoint; 2]) -> String {
    let [orders, stock] = receivers;
    let metrics = match args.admin.port() {
        0 => "/metrics at the address of the line \"admin listening\" below, readiness at /readyz".to_owned(),
        _ => format!("http://{}/metrics, readiness at /readyz", args.admin),
    };
    format!(
        "\n  database   {}\n  sink orders  public.customers, public.orders and the shop's own messages to http://{}/orders, which answers 200\n  \
         sink stock   public.products to http://{}/stock, which refuses three in ten with 503\n  \
         metrics    {}\n\n  \
         Change rows yourself: psql '{}'\n  Ctrl-C ends it. Each line below is a message as a receiver got it.\n\n",
        cluster.url("postgres"),
        orders.address,
        stock.address,
        metrics,
        cluster.url_as(Role::Owner, "postgres"),
    )
}

/// Orders the stop when the receivers have acknowledged enough.
async fn end_after(messages: u64, receivers: Vec<Arc<Receiver>>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let acknowledged: u64 = receivers.iter().map(|receiver| acknowledged(receiver.counts())).sum();
        if messages > 0 && acknowledged >= messages {
            stop.cancel();
        }
    }
}

fn acknowledged(counts: Counts) -> u64 {
    counts.acknowledged
}

/// To the terminal; when nobody reads it, the demo has no other use.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
