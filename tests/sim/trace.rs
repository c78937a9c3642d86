//! What happened, in order: a hash of all of it, and the last events as text.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::Arc;

use kvstore::env::Rng;
use parking_lot::Mutex;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How many events are kept as text.
const EVENTS_KEPT: usize = 200;

/// The trace of one run. A clone is the same trace.
#[derive(Clone)]
pub struct Trace {
    state: Arc<Mutex<State>>,
    start: Instant,
}

struct State {
    hash: u64,
    events: u64,
    last: VecDeque<String>,
    kept: usize,
}

impl Trace {
    /// An empty trace that starts now.
    pub fn new(keeps_all: bool) -> Self {
        let kept = if keeps_all { usize::MAX } else { EVENTS_KEPT };
        Self {
            state: Arc::new(Mutex::new(State { hash: 0, events: 0, last: VecDeque::new(), kept })),
            start: Instant::now(),
        }
    }

    /// Adds an event.
    pub fn event(&self, what: fmt::Arguments<'_>) {
        let at = self.start.elapsed();
        let mut state = self.state.lock();
        let mut line = if state.last.len() == state.kept {
            state.last.pop_front().unwrap_or_default()
        } else {
            String::new()
        };
        line.clear();
        write!(line, "{:>9.3} {what}", at.as_secs_f64()).expect("a string takes any text");
        state.hash = xxh3_64_with_seed(line.as_bytes(), state.hash);
        state.events += 1;
        state.last.push_back(line);
    }

    /// Adds what a generator would draw next: two runs that drew differently differ here at the latest.
    pub fn draw(&self, rng: &Rng) {
        self.event(format_args!("drawn {}", rng.u64()));
    }

    /// The hash of all events so far.
    pub fn hash(&self) -> u64 {
        self.state.lock().hash
    }

    /// How many events there were.
    pub fn len(&self) -> u64 {
        self.state.lock().events
    }

    /// The last events.
    pub fn last(&self) -> Vec<String> {
        self.state.lock().last.iter().cloned().collect()
    }
}

/// Adds an event to a trace, as `format!` would write it.
#[macro_export]
macro_rules! trace {
    ($trace:expr, $($what:tt)*) => { $trace.event(format_args!($($what)*)) };
}
