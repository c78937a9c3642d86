//! Wall clocks that are wrong: set off, drifting, jumping, each node's its own.

use kvstore::env::Clock;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Where every world's wall time starts, in microseconds since 1970.
pub const EPOCH_MICROS: i64 = 1_700_000_000_000_000;

/// A node's wall clock over virtual time.
#[derive(Debug)]
pub struct SimClock {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// Since when `drift_ppm` holds.
    anchor: Instant,
    /// How far off it was then, in microseconds.
    offset: i64,
    drift_ppm: i64,
}

impl SimClock {
    /// A clock that is right, in a world that began at `start`.
    pub fn right(start: Instant) -> Self {
        Self { start, state: Mutex::new(State { anchor: start, offset: 0, drift_ppm: 0 }) }
    }

    /// How far it is ahead of true time, in microseconds.
    pub fn offset(&self) -> i64 {
        let state = *self.state.lock();
        state.offset + state.anchor.elapsed().as_micros() as i64 * state.drift_ppm / 1_000_000
    }

    /// Jumps so that it is this far ahead of true time, in microseconds.
    pub fn set_offset(&self, micros: i64) {
        let mut state = self.state.lock();
        state.anchor = Instant::now();
        state.offset = micros;
    }

    /// Runs faster by this many millionths from now on.
    pub fn set_drift(&self, drift_ppm: i64) {
        let offset = self.offset();
        *self.state.lock() = State { anchor: Instant::now(), offset, drift_ppm };
    }
}

impl Clock for SimClock {
    fn wall_micros(&self) -> u64 {
        let now = EPOCH_MICROS + self.start.elapsed().as_micros() as i64;
        (now + self.offset()).max(0).cast_unsigned()
    }
}
