//! Named places at which a debug build dies when the environment says so: what crash tests are made of.
//!
//! `WALHOOK_FAILPOINT=store.before_commit` aborts the process when it comes there, `store.before_commit:3` at the third
//! time, and with `:3:panic` only its task does, by a panic. In a release build the calls are nothing.

/// Dies here if the environment names this place.
#[inline]
pub fn hit(name: &str) {
    #[cfg(debug_assertions)]
    armed::hit(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Armed {
        name: String,
        times_left: AtomicU32,
        panics: bool,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    pub(super) fn hit(name: &str) {
        let Some(armed) = ARMED.get_or_init(from_environment) else { return };
        if armed.name == name && armed.times_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            assert!(!armed.panics, "the failpoint {name}");
            std::process::abort();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "only debug builds look, and only here")]
    fn from_environment() -> Option<Armed> {
        let text = std::env::var("WALHOOK_FAILPOINT").ok()?;
        let mut parts = text.split(':');
        let (name, times) = (parts.next()?.to_owned(), parts.next().unwrap_or("1"));
        Some(Armed { name, times_left: AtomicU32::new(times.parse().ok()?), panics: parts.next() == Some("panic") })
    }
}
