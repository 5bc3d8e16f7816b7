//! Looks the endpoint's name up: once at a time, however many connections wait for the answer.
//!
//! The system's resolver takes a thread for each question, and there is a bound of threads: a resolver that is slow or
//! away must not get one for each connection. A lookup that nobody waits for any more goes on to its end, and whoever
//! comes meanwhile waits for that one.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dns_lookup::{AddrInfo, AddrInfoHints, LookupError, LookupErrorKind, SockType, getaddrinfo};
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How a name is looked up.
pub(in crate::deliver) type Lookup =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// A name that nobody has.
const NOBODYS: &str = "walhook.invalid.";
/// A resolver that answers at all answers within this.
const QUICK: Duration = Duration::from_secs(3);

/// Nobody could be asked: the name may exist or not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::deliver) struct Unasked(pub(in crate::deliver) String);

/// By the system's resolver.
pub(in crate::deliver) fn system() -> Lookup {
    Arc::new(|host, port| {
        Box::pin(async move {
            let found = tokio::task::spawn_blocking(move || ask_system(&host, port)).await;
            found.unwrap_or_else(|lost| Err(io::Error::other(lost)))
        })
    })
}

fn ask_system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let began = Instant::now();
    let found = getaddrinfo(Some(host), None, Some(hints())).map_err(|error| error_of(error, began.elapsed()))?;
    let address = |found: AddrInfo| {
        let mut address = found.sockaddr;
        address.set_port(port);
        address
    };
    found.map(|found| found.map(address)).collect()
}

fn hints() -> AddrInfoHints {
    AddrInfoHints { socktype: SockType::Stream.into(), ..AddrInfoHints::default() }
}

/// Whether the resolver answers for other names: getaddrinfo(3) says the same of a resolver that is away and of a name whose
/// own servers fail. Nobody has this one (RFC 6761, 6.4), so an answer says so, and comes from nearby.
fn answers_others() -> bool {
    match getaddrinfo(Some(NOBODYS), None, Some(hints())) {
        Ok(_) => true,
        Err(error) => matches!(error.kind(), LookupErrorKind::NoName | LookupErrorKind::NoData),
    }
}

/// What getaddrinfo(3) says: that there is no such name, that nobody could be asked, or what this machine lacks. A resolver that
/// took its time for that is away itself, and not asked for more.
fn error_of(error: LookupError, took: Duration) -> io::Error {
    match error.kind() {
        LookupErrorKind::Again | LookupErrorKind::Fail if took < QUICK && answers_others() => error.into(),
        LookupErrorKind::Again | LookupErrorKind::Fail => io::Error::other(Unasked(io::Error::from(error).to_string())),
        LookupErrorKind::Memory => rustix::io::Errno::NOMEM.into(),
        LookupErrorKind::NoName
        | LookupErrorKind::NoData
        | LookupErrorKind::System
        | LookupErrorKind::Badflags
        | LookupErrorKind::Family
        | LookupErrorKind::Socktype
        | LookupErrorKind::Service
        | LookupErrorKind::Unknown
        | LookupErrorKind::IO => error.into(),
    }
}

/// The error is the one of the resolver, the same for all that have waited.
type Found = Result<Arc<[SocketAddr]>, Arc<io::Error>>;

/// The lookups of one endpoint.
pub(in crate::deliver) struct Lookups {
    lookup: Lookup,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<watch::Receiver<Option<Found>>>,
    tasks: JoinSet<()>,
}

impl Lookups {
    pub(in crate::deliver) fn new(lookup: Lookup) -> Self {
        Self { lookup, state: Mutex::default() }
    }

    /// Where `host` is: of the lookup that is under way, or of another.
    pub(super) async fn addresses(&self, host: &str, port: u16) -> Found {
        let mut answer = self.ask(host, port);
        let found = answer.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        found.unwrap_or_else(|| Err(Arc::new(io::Error::other("the lookup ended without an answer"))))
    }

    fn ask(&self, host: &str, port: u16) -> watch::Receiver<Option<Found>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is remembered: who asks after an answer gets a new one.
        let is_under_way =
            |last: &watch::Receiver<Option<Found>>| last.has_changed().is_ok() && last.borrow().is_none();
        if let Some(last) = state.last.as_ref().filter(|last| is_under_way(last)) {
            return last.clone();
        }
        let (tell, answer) = watch::channel(None);
        let found = (self.lookup)(host.to_owned(), port);
        while state.tasks.try_join_next().is_some() {}
        state.tasks.spawn(async move {
            let found = found.await.map(Into::into).map_err(Arc::new);
            tell.send_replace(Some(found));
        });
        state.last = Some(answer.clone());
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    /// A resolver that answers when it is told to, at first with an error, and counts what it was asked.
    fn resolver() -> (Lookups, Arc<AtomicUsize>, Arc<Notify>) {
        let (asked, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let lookup = {
            let (asked, go_on) = (Arc::clone(&asked), Arc::clone(&go_on));
            move |_: String, port: u16| -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
                let (number, go_on) = (asked.fetch_add(1, Ordering::SeqCst), Arc::clone(&go_on));
                Box::pin(async move {
                    go_on.notified().await;
                    let found = vec![SocketAddr::from(([127, 0, 0, 1], port))];
                    if number == 0 { Err(io::Error::from_raw_os_error(24)) } else { Ok(found) }
                })
            }
        };
        (Lookups::new(Arc::new(lookup)), asked, go_on)
    }

    #[tokio::test]
    async fn one_lookup_is_for_all_that_wait_and_its_error_says_what_it_was() {
        let (lookups, asked, go_on) = resolver();
        let all = join_all((0..100).map(|_| lookups.addresses("hooks.test", 80)));
        let (found, ()) = tokio::join!(all, async { go_on.notify_one() });
        assert!(found.iter().all(|found| found.as_ref().is_err_and(|error| error.raw_os_error() == Some(24))));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        go_on.notify_one();
        let found = lookups.addresses("hooks.test", 80).await.unwrap();
        assert_eq!((found.len(), asked.load(Ordering::SeqCst)), (1, 2), "an answer is not remembered");
    }

    #[tokio::test]
    async fn a_lookup_that_was_given_up_is_waited_for_and_not_begun_again() {
        let (lookups, asked, go_on) = resolver();
        for _ in 0..10 {
            let mut given_up = Box::pin(lookups.addresses("hooks.test", 80));
            let waits = std::future::poll_fn(|cx| Poll::Ready(given_up.as_mut().poll(cx).is_pending()));
            assert!(waits.await);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        go_on.notify_one();
        assert!(lookups.addresses("hooks.test", 80).await.is_err());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_lookup_that_breaks_down_is_an_error_and_the_next_is_another() {
        let asked = Arc::new(AtomicUsize::new(0));
        let lookup = {
            let asked = Arc::clone(&asked);
            move |_: String, _: u16| -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
                let number = asked.fetch_add(1, Ordering::SeqCst);
                Box::pin(async move { if number == 0 { panic!("as a resolver may") } else { Ok(Vec::new()) } })
            }
        };
        let lookups = Lookups::new(Arc::new(lookup));
        assert!(lookups.addresses("hooks.test", 80).await.is_err());
        assert!(lookups.addresses("hooks.test", 80).await.is_ok());
    }
}
