//! `walhook init`: writes a commented configuration from a live database.

mod draft;
#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::task::JoinSet;

use self::draft::{Draft, draft};
use crate::address::PgAddress;
use crate::fault::chain;
use crate::source::connection;
use crate::source::slot::{PrepareError, server, survey};

/// No address is longer.
const INPUT_BYTES_MAX: u64 = 64 << 10;

/// Arguments of `walhook init`.
#[derive(clap::Args, Clone)]
pub struct InitArgs {
    /// The database, as libpq has it; - reads it from standard input, so that no password stands in the list of processes
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub url: String,
    /// Where to write; - is standard output
    #[arg(long, short, value_name = "FILE", default_value = "walhook.toml")]
    pub output: PathBuf,
    /// Overwrite the file
    #[arg(long)]
    pub force: bool,
}

/// Without the url, which may hold a password.
impl std::fmt::Debug for InitArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InitArgs").field("output", &self.output).field("force", &self.force).finish_non_exhaustive()
    }
}

/// Looks, writes, says what is next; the exit code: 0, 1 the file could not be written, 69 the database is missing, 78 the
/// url is none.
pub async fn init(args: InitArgs) -> u8 {
    let (code, text) = match work(&args).await {
        Ok(next) => (0, next),
        Err(Failure { code, error }) => (code, format!("error: {error:#}\n")),
    };
    match io::stderr().lock().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => 1,
    }
}

struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    fn of(code: u8) -> impl Fn(anyhow::Error) -> Self {
        move |error| Self { code, error }
    }
}

/// Writes the file; what to do next.
async fn work(args: &InitArgs) -> Result<String, Failure> {
    let to_stdout = args.output == Path::new("-");
    if !to_stdout && !args.force && args.output.exists() {
        let error = anyhow::anyhow!("{} exists; --force overwrites it", args.output.display());
        return Err(Failure { code: 1, error });
    }
    let url = if args.url == "-" { from_input(io::stdin().lock()).map_err(Failure::of(78))? } else { args.url.clone() };
    let address = PgAddress::parse(&url).context("--url is not the address of a database");
    let address = address.map_err(Failure::of(78))?;
    let draft = look(&address, &url).await.map_err(Failure::of(69))?;
    if to_stdout {
        io::stdout().lock().write_all(draft.text.as_bytes()).context("could not write").map_err(Failure::of(1))?;
    } else {
        write(&args.output, &draft.text, args.force).map_err(Failure::of(1))?;
    }
    Ok(next_steps(&args.output, &draft))
}

/// The first line; what comes after it is nobody's.
fn from_input(input: impl io::BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    io::BufRead::read_line(&mut input.take(INPUT_BYTES_MAX), &mut line)
        .context("could not read the address of the database from standard input")?;
    Ok(line.trim().to_owned())
}

async fn look(address: &PgAddress, url: &str) -> anyhow::Result<Draft> {
    let session = connection::sql(address).await;
    let (client, driver) = session.map_err(|error| anyhow::anyhow!("{}\n  {}", chain(&error), error.advice()))?;
    // The driver ends with this function.
    let mut drivers = JoinSet::new();
    drivers.spawn(async move { driver.await.is_ok() });
    let asked = async { Ok::<_, PrepareError>((server::read(&client).await?, survey::read(&client).await?)) };
    let (server, tables) = asked.await.map_err(|error| error.with_grant(&address.user))?;
    Ok(draft(url, &server, &tables)?)
}

/// The file may name hosts and roles, so only its owner reads it.
fn write(path: &Path, text: &str, force: bool) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    // Without --force a file that came meanwhile is kept too.
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = options.open(path).with_context(|| format!("could not make {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("could not write {}", path.display()))
}

fn next_steps(output: &Path, draft: &Draft) -> String {
    let file = if output == Path::new("-") { Path::new("walhook.toml") } else { output };
    let mut text = format!("{} tables listed, {} left out (see the comments)\n\nnext:\n", draft.listed, draft.left_out);
    if let Some(form) = draft.password {
        text += &format!(
            "  export {}='…'          # the password, which the file does not hold, {}\n",
            draft::PASSWORD,
            form.rule()
        );
    }
    let file = file.display();
    text + &format!(
        "  walhook listen                             # a receiver that prints what it gets\n  \
           walhook check --config {file}\n  walhook run --config {file}\n"
    )
}
