//! Lane: a bounded queue of log lines in front of one sink, which a thread of its own writes.
//!
//! ```text
//! push ──> queue (QUEUE_BYTES_MAX) ──> the lane's thread ──> sink
//!   └─ full: the line is dropped and counted; once the sink takes lines again, it is told how many
//! ```
//!
//! Pushing never waits for the sink: a pipe whose reader has stopped, or a disk that hangs, costs lines and no requests.
//! What was pushed before the end still goes out, as long as the sink takes it ([`Lane::flush`]).
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the command line is where the real world begins

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Bytes of lines that wait for one sink, at most. As many again may be on their way into it.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// Where a lane's lines end up.
pub trait Sink: Send {
    /// Writes whole lines. May wait as long as it likes; only the lane's thread waits with it.
    fn write(&mut self, lines: &[u8]) -> io::Result<()>;

    /// Opens again what it writes to, where that has a name.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The side that is written to. A clone is the same lane.
#[derive(Clone)]
pub struct Lane {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    state: Mutex<State>,
    /// Told when there is work for the lane's thread.
    work: Condvar,
    /// Told when the lane's thread has nothing left to do.
    idle: Condvar,
    /// Lines that did not reach the sink. Relaxed: a counter.
    dropped: Arc<AtomicU64>,
}

/// Protected by `Shared::state`.
#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// The sink is to be opened again behind so many bytes of `lines`.
    reopen_at: Option<usize>,
    /// Whether the lane's thread is in the sink.
    is_busy: bool,
    /// Lines dropped since the sink was last told.
    untold: u64,
}

impl Lane {
    /// Starts the lane's thread. `dropped` counts the lines that do not reach the sink.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(name: &'static str, sink: impl Sink + 'static, dropped: Arc<AtomicU64>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            name,
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            dropped,
        });
        let lane = Self { shared: shared.clone() };
        std::thread::Builder::new().name("kv-log".to_owned()).spawn(move || shared.run(sink))?;
        Ok(lane)
    }

    /// Queues one event's lines, or drops them if the sink has too many to write. Never waits.
    pub fn push(&self, lines: &[u8]) {
        let mut state = self.shared.state.lock();
        if state.lines.len() + lines.len() > QUEUE_BYTES_MAX {
            state.untold += 1;
            drop(state);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.lines.extend_from_slice(lines);
        let is_idle = !state.is_busy;
        drop(state);
        if is_idle {
            self.shared.work.notify_one();
        }
    }

    /// Opens again what the sink writes to, between the lines that were pushed before and those that follow.
    pub fn reopen(&self) {
        let mut state = self.shared.state.lock();
        state.reopen_at = Some(state.lines.len());
        self.shared.work.notify_one();
    }

    /// Waits until everything that was pushed has reached the sink, but not beyond `deadline`.
    pub fn flush(&self, deadline: Instant) {
        let mut state = self.shared.state.lock();
        while state.is_busy || state.has_work() {
            if self.shared.idle.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

impl State {
    fn has_work(&self) -> bool {
        self.reopen_at.is_some() || !self.lines.is_empty()
    }
}

impl Shared {
    fn run(&self, mut sink: impl Sink) {
        let mut lines = Vec::new();
        loop {
            let mut state = self.state.lock();
            state.is_busy = false;
            while !state.has_work() {
                self.idle.notify_all();
                self.work.wait(&mut state);
            }
            state.is_busy = true;
            lines.clear();
            std::mem::swap(&mut lines, &mut state.lines);
            let reopen_at = state.reopen_at.take();
            drop(state);

            let (before, after) = lines.split_at(reopen_at.unwrap_or(lines.len()));
            let mut is_taken = self.write(&mut sink, before);
            if reopen_at.is_some() {
                if let Err(error) = sink.reopen() {
                    tracing::error!(%error, "cannot reopen {}, the file that was open stays in use", self.name);
                }
                is_taken = self.write(&mut sink, after);
            }
            let untold = if is_taken { std::mem::take(&mut self.state.lock().untold) } else { 0 };
            if untold > 0 {
                tracing::warn!(lines = untold, "log lines dropped: {} did not take them in time", self.name);
            }
        }
    }

    /// Writes lines, and counts those that the sink refuses: nobody can be told here, but the counter knows.
    fn write(&self, sink: &mut impl Sink, lines: &[u8]) -> bool {
        let is_taken = lines.is_empty() || sink.write(lines).is_ok();
        if !is_taken {
            let lost = lines.split(|byte| *byte == b'\n').count() as u64 - 1; // each line has its end
            self.dropped.fetch_add(lost, Ordering::Relaxed);
        }
        is_taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// A sink that takes lines only when it is let.
    struct Gate {
        entered: mpsc::Sender<()>,
        open: mpsc::Receiver<io::Result<()>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Sink for Gate {
        fn write(&mut self, lines: &[u8]) -> io::Result<()> {
            let _ = self.entered.send(());
            self.open.recv().unwrap_or(Ok(()))?;
            self.written.lock().extend_from_slice(lines);
            Ok(())
        }

        fn reopen(&mut self) -> io::Result<()> {
            self.written.lock().extend_from_slice(b"--\n");
            Ok(())
        }
    }

    struct Gated {
        lane: Lane,
        entered: mpsc::Receiver<()>,
        open: mpsc::Sender<io::Result<()>>,
        written: Arc<Mutex<Vec<u8>>>,
        dropped: Arc<AtomicU64>,
    }

    fn gated() -> Gated {
        let (entered_in, entered) = mpsc::channel();
        let (open, open_out) = mpsc::channel();
        let (written, dropped) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<AtomicU64>::default());
        let gate = Gate { entered: entered_in, open: open_out, written: written.clone() };
        let lane = Lane::start("gate", gate, dropped.clone()).unwrap();
        Gated { lane, entered, open, written, dropped }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn lines_come_out_whole_and_in_order_and_a_flush_waits_for_them() {
        let gated = gated();
        drop(gated.open);
        for number in 0..1000 {
            gated.lane.push(format!("line {number}\n").as_bytes());
        }
        gated.lane.flush(soon());
        let expected: String =
            (0..1000).fold(String::new(), |text, number| text + &format!("line {number}\n"));
        assert_eq!(String::from_utf8(gated.written.lock().clone()).unwrap(), expected);
        assert_eq!(gated.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_sink_that_stands_still_costs_lines_and_never_a_wait() {
        let gated = gated();
        gated.lane.push(b"first\n");
        gated.entered.recv().unwrap(); // the lane's thread hangs in the sink
        let line = [b'x'; 1 << 10];
        let lines_max = QUEUE_BYTES_MAX / line.len();
        for _ in 0..lines_max + 7 {
            gated.lane.push(&line); // a push that waited would hang this test
        }
        assert_eq!(gated.dropped.load(Ordering::Relaxed), 7);
        let before = Instant::now();
        gated.lane.flush(before + Duration::from_millis(50));
        assert!(before.elapsed() < Duration::from_secs(5), "a flush has an end");
        drop(gated.open);
        gated.lane.flush(soon());
        assert_eq!(gated.written.lock().len(), "first\n".len() + lines_max * line.len());
        gated.lane.push(b"and on\n");
        gated.lane.flush(soon());
        assert!(gated.written.lock().ends_with(b"and on\n"));
        assert_eq!(gated.dropped.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn lines_that_a_sink_refuses_are_counted() {
        let gated = gated();
        gated.open.send(Err(io::Error::other("disk full"))).unwrap();
        gated.lane.push(b"one\ntwo\n");
        gated.lane.flush(soon());
        assert_eq!(gated.dropped.load(Ordering::Relaxed), 2);
        gated.open.send(Ok(())).unwrap();
        gated.lane.push(b"three\n");
        gated.lane.flush(soon());
        assert_eq!(gated.written.lock().as_slice(), b"three\n");
    }

    #[test]
    fn a_reopening_comes_between_the_lines_before_it_and_those_behind_it() {
        let gated = gated();
        gated.lane.push(b"first\n");
        gated.entered.recv().unwrap(); // what follows gathers in the queue
        gated.lane.push(b"before\n");
        gated.lane.reopen();
        gated.lane.push(b"behind\n");
        drop(gated.open);
        gated.lane.flush(soon());
        assert_eq!(gated.written.lock().as_slice(), b"first\nbefore\n--\nbehind\n");
    }
}
