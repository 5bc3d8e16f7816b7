//! The way of a log line out of the process: a bounded queue, and a thread of its own that writes.
//!
//! Whoever logs never waits for whoever reads the log. A reader that stands still lets the queue fill, and one that has
//! gone, or a full disk, makes writes fail: lines are lost then, which is counted, told in a line once one can be written
//! again, and shown by `/readyz` and a metric. Nothing else comes to harm.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait for the reader.
const BYTES_MAX: usize = 4 << 20;

/// How the lines fare, for the admin side.
#[derive(Debug, Default)]
pub struct Health {
    lost: AtomicU64,
    /// The last line was lost.
    is_losing: AtomicBool,
    /// Since when one is being written, microseconds since 1970-01-01 UTC; 0 while none is.
    writing_since: AtomicU64,
}

impl Health {
    /// Lines that were lost since the start of the process.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether the last line was lost.
    pub fn is_losing(&self) -> bool {
        self.is_losing.load(Ordering::Relaxed)
    }

    /// For how long whoever reads the log has not taken a line that waits for them.
    pub fn waits(&self, now: SystemTime) -> Duration {
        match self.writing_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_micros(micros(now).saturating_sub(since)),
        }
    }

    /// Another line is lost.
    pub fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.is_losing.store(true, Ordering::Relaxed);
    }

    /// A line is being written from `now` on.
    pub fn begin(&self, now: SystemTime) {
        self.writing_since.store(micros(now), Ordering::Relaxed);
    }

    fn end(&self, written: bool) {
        self.writing_since.store(0, Ordering::Relaxed);
        if written {
            self.is_losing.store(false, Ordering::Relaxed);
        } else {
            self.lose();
        }
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Where lines go in.
#[derive(Clone, Debug)]
pub(super) struct Outlet(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
    health: Arc<Health>,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// One was taken out and is being written.
    is_writing: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<u8> {
        let mut queue = self.queue();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len();
                queue.is_writing = true;
                return line;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn written(&self) {
        let mut queue = self.queue();
        queue.is_writing = false;
        if queue.lines.is_empty() {
            self.emptied.notify_all();
        }
    }
}

impl Outlet {
    /// Starts the thread. `told` makes the line that says how many were lost.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(
        mut writer: impl Write + Send + 'static,
        told: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let outlet = Self(Arc::clone(&shared));
        let writes = move || {
            let (health, mut said) = (&shared.health, 0);
            loop {
                let line = shared.take();
                health.begin(SystemTime::now());
                let lost = health.lost();
                if lost > said && writer.write_all(told(lost - said).as_bytes()).is_ok() {
                    said = lost;
                }
                health.end(writer.write_all(&line).and_then(|()| writer.flush()).is_ok());
                shared.written();
            }
        };
        std::thread::Builder::new().name("log".to_owned()).spawn(writes)?;
        Ok(outlet)
    }

    /// Puts in a line, or loses it if there is no room.
    pub(super) fn put(&self, line: &[u8]) {
        let mut queue = self.0.queue();
        if queue.bytes.saturating_add(line.len()) > BYTES_MAX {
            drop(queue);
            self.0.health.lose();
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        self.0.filled.notify_one();
    }

    /// Waits until every line is written, but not for ever; whether they are.
    pub(super) fn flush(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut queue = self.0.queue();
        while queue.is_writing || !queue.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.0.emptied.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// How its lines fare.
    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.0.health)
    }
}

/// An event is one write.
impl Write for &Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Outlet {
    type Writer = &'a Outlet;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Longer than any of these tests waits.
    const LONG: Duration = Duration::from_secs(60);

    /// A reader: takes what is written while it has orders, one for each write; an order says whether it succeeds.
    struct Reader {
        orders: mpsc::Receiver<bool>,
        read: mpsc::Sender<String>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !self.orders.recv().unwrap_or(true) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            // The test may have ended.
            drop(self.read.send(String::from_utf8_lossy(bytes).into_owned()));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn outlet() -> (Outlet, mpsc::Sender<bool>, mpsc::Receiver<String>) {
        let (order, orders) = mpsc::channel();
        let (read, lines) = mpsc::channel();
        (Outlet::start(Reader { orders, read }, |lost| format!("lost {lost}\n")).unwrap(), order, lines)
    }

    #[test]
    fn a_reader_that_stands_still_holds_nobody_up_and_is_told_what_it_missed() {
        let (outlet, order, lines) = outlet();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..10 {
            outlet.put(&line);
        }
        assert!(!outlet.flush(Duration::ZERO));
        // One may have been taken out to be written.
        let health = outlet.health();
        let lost = health.lost();
        assert!((5..=6).contains(&lost), "{lost}");
        assert!(health.is_losing());
        drop(order);
        assert!(outlet.flush(LONG));
        assert!(!health.is_losing());
        assert_eq!(health.waits(SystemTime::now()), Duration::ZERO);
        let read: Vec<String> = lines.try_iter().collect();
        let told: Vec<&String> = read.iter().filter(|line| line.starts_with("lost")).collect();
        assert_eq!(told, [&format!("lost {lost}\n")]);
        assert_eq!(read.len() - 1, 10 - usize::try_from(lost).unwrap());
    }

    #[test]
    fn a_reader_that_has_gone_costs_lines_and_nothing_else() {
        let (outlet, order, lines) = outlet();
        for _ in 0..2 {
            order.send(false).unwrap();
        }
        outlet.put(b"one\n");
        // It is told of with the first line that can be written; the telling fails as well here.
        outlet.put(b"two\n");
        drop(order);
        assert!(outlet.flush(LONG));
        outlet.put(b"three\n");
        assert!(outlet.flush(LONG));
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), ["two\n", "lost 1\n", "three\n"]);
    }
}
