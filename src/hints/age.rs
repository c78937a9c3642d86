//! `AgeClock`: by what hints grow old.
//!
//! A hint's age is judged by its record's timestamp, so by wall time. The wall clock of the holder may jump, and a jump
//! forward must not make all hints too old in one moment. So this clock follows the wall clock at no more than twice
//! the speed of the time that really passes, and never goes back.
//!
//! ```text
//! wall      ────────┐                    a jump of four hours that lasts six seconds
//!                   └ ┈ ┈ ┈ ┈
//! this clock ─────────────────           is ahead by some seconds afterwards, and waits for the wall clock
//! ```
//!
//! It starts at the oldest hint: how long ago that was is a question to the wall clock, too. Hints live longer for it after
//! a restart, by as much time as they were old; their bytes are bounded all the same.

use std::time::Duration;

use tokio::time::Instant;

use crate::types::Timestamp;

/// How fast it may run, as a multiple of real time.
const SPEED_MAX: u32 = 2;

/// Wall time that does not jump. To be read often: it may move on by twice the time since it was last read.
#[derive(Debug, Clone, Copy)]
pub(super) struct AgeClock {
    reading: Timestamp,
    read_at: Instant,
}

impl AgeClock {
    /// Starts at the timestamp of the oldest hint, or at the wall clock if there is none.
    pub fn new(wall: Timestamp, oldest: Option<Timestamp>) -> Self {
        Self { reading: oldest.map_or(wall, |oldest| oldest.min(wall)), read_at: Instant::now() }
    }

    /// Moves on towards the wall clock, and returns the reading.
    pub fn read(&mut self, wall: Timestamp) -> Timestamp {
        let now = Instant::now();
        let passed: Duration = now.duration_since(self.read_at);
        self.read_at = now;
        self.reading = wall.clamp(self.reading, self.reading.plus(passed * SPEED_MAX));
        self.reading
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_moves_it_by_no_more_than_twice_the_time_that_passed() {
        let mut clock = AgeClock::new(at(100_000), None);
        for second in 0..6 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(clock.read(at(100_000 + 4 * 3600 + second)) <= at(100_000 + 2 * (second + 1)));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clock.read(at(100_007)), at(100_012), "it never goes back");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(clock.read(at(100_017)), at(100_017), "and is caught up with");
    }

    #[tokio::test(start_paused = true)]
    async fn it_starts_at_the_oldest_hint_and_catches_up() {
        let mut clock = AgeClock::new(at(100_000), Some(at(99_000)));
        assert_eq!(clock.read(at(100_000)), at(99_000));
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(clock.read(at(100_100)), at(99_200));
        tokio::time::advance(Duration::from_secs(5000)).await;
        assert_eq!(clock.read(at(105_100)), at(105_100));
        assert_eq!(
            AgeClock::new(at(5), Some(at(9))).read(at(5)),
            at(5),
            "a hint from the future changes nothing"
        );
    }
}
