//! Hlc: the hybrid logical clock. Ticks for every write, moves past every timestamp it sees.
//!
//! ```text
//! wall clock ──max──> last ──tick──> last + 1          never gives a timestamp twice,
//! messages  ──max──┘                                    never goes back
//! limit: what the mark on disk allows; a tick beyond it waits until a higher mark is synced
//! ```
//!
//! The high-water mark is on disk *ahead* of use: after a restart the clock starts at the mark, so that a wall
//! clock set back gives no timestamp twice. The mark runs at most [`Hlc::MARK_AHEAD`] in front, which is less
//! than the skew that peers forgive, so a restarted node is not taken for one with a wrong clock.
//!
//! A remote timestamp beyond max(wall clock, own clock) + `skew_max` is refused: one wrong clock must not drag
//! the others along, nor poison keys for years.
//!
//! Source: Kulkarni et al., "Logical Physical Clocks" (2014); cockroachdb `pkg/util/hlc`. The counter here is
//! the low bits of one integer, so a tick is one compare-and-swap.

pub mod keeper;

pub use keeper::{ClockKeeper, MarkFailed};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::env::Clock;
use crate::types::Timestamp;

/// A hybrid logical clock. All methods may be called from any thread.
#[derive(Debug)]
pub struct Hlc {
    clock: Arc<dyn Clock>,
    /// The highest timestamp given or seen. Relaxed: it orders nothing but itself.
    last: AtomicU64,
    /// Timestamps below it may be given.
    limit: AtomicU64,
    /// How far ahead of us a remote timestamp may be.
    skew_max: Duration,
}

/// A tick reached the limit: a higher mark must be made durable first ([`Hlc::raise_limit`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the clock's mark on disk must be raised first")]
pub struct LimitReached;

/// Whether the clock has reached a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// It has not.
    NotYet,
    /// It has, and is not before it again until a restart: the mark on disk lies below.
    UntilRestart,
    /// It has, and is never before it again.
    Durably,
}

/// A remote timestamp was too far ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timestamp {timestamp} is {} ms ahead of this node's clock", .ahead.as_millis())]
pub struct TooFarAhead {
    /// What was refused.
    pub timestamp: Timestamp,
    /// How far it is ahead of the wall clock and of this clock.
    pub ahead: Duration,
}

impl Hlc {
    /// How far the mark on disk runs ahead of the clock.
    pub const MARK_AHEAD: Duration = Duration::from_millis(400);

    /// Starts at `mark`, the high-water mark found on disk (zero for a new node), with no timestamp allowed yet.
    pub fn new(clock: Arc<dyn Clock>, mark: Timestamp, skew_max: Duration) -> Self {
        Self { clock, last: mark.as_u64().into(), limit: mark.as_u64().into(), skew_max }
    }

    /// A clock without a mark on disk: for tests, and for an engine used alone by one process run.
    pub fn unlimited(clock: Arc<dyn Clock>, skew_max: Duration) -> Self {
        let hlc = Self::new(clock, Timestamp::ZERO, skew_max);
        hlc.raise_limit(Timestamp::MAX);
        hlc
    }

    /// Gives the next timestamp, never given before.
    ///
    /// # Errors
    /// [`LimitReached`] when the mark on disk must be raised first; nothing was given.
    pub fn tick(&self) -> Result<Timestamp, LimitReached> {
        let wall = self.wall().as_u64();
        let limit = self.limit.load(Ordering::Acquire);
        self.last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                let next = wall.max(last + 1);
                (next < limit).then_some(next)
            })
            .map(|last| Timestamp::from_u64(wall.max(last + 1)))
            .map_err(|_| LimitReached)
    }

    /// The highest timestamp given or seen, or the wall clock's if that is higher: what every message carries.
    pub fn now(&self) -> Timestamp {
        self.wall().max(Timestamp::from_u64(self.last.load(Ordering::Relaxed)))
    }

    /// Whether the clock has reached a moment. If it has, it is never before it again, wherever the wall clock goes.
    pub fn reach(&self, moment: Timestamp) -> Reached {
        if self.now() < moment {
            return Reached::NotYet;
        }
        self.last.fetch_max(moment.as_u64(), Ordering::Relaxed);
        if self.limit() > moment { Reached::Durably } else { Reached::UntilRestart }
    }

    /// The highest moment that the clock has been seen to reach, by what it gave or heard and not by the wall clock alone,
    /// and that a restart does not take back. It never goes back.
    pub fn vouched(&self) -> Timestamp {
        Timestamp::from_u64(self.last.load(Ordering::Relaxed)).min(self.limit())
    }

    /// Moves past a timestamp that a message carried.
    ///
    /// # Errors
    /// [`TooFarAhead`]; the clock stays where it was.
    pub fn observe(&self, remote: Timestamp) -> Result<(), TooFarAhead> {
        self.check(remote)?;
        self.last.fetch_max(remote.as_u64(), Ordering::Relaxed);
        Ok(())
    }

    /// Says whether a timestamp is within bounds, without moving.
    pub fn check(&self, remote: Timestamp) -> Result<(), TooFarAhead> {
        let now = self.now();
        if remote > now.plus(self.skew_max) {
            return Err(TooFarAhead { timestamp: remote, ahead: remote.since(now) });
        }
        Ok(())
    }

    /// Takes over what this node's own disk holds: its timestamps were checked when they came in.
    pub fn recover(&self, own: Timestamp) {
        self.last.fetch_max(own.as_u64(), Ordering::Relaxed);
    }

    /// The wall clock's reading.
    pub fn wall(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.wall_micros())
    }

    /// How far ahead a remote timestamp may be.
    pub fn skew_max(&self) -> Duration {
        self.skew_max
    }

    /// Timestamps below it may be given.
    pub fn limit(&self) -> Timestamp {
        Timestamp::from_u64(self.limit.load(Ordering::Acquire))
    }

    /// The mark that should be made durable next: [`Hlc::MARK_AHEAD`] in front of the clock.
    pub fn next_mark(&self) -> Timestamp {
        self.now().plus(Self::MARK_AHEAD)
    }

    /// Whether less than half of the way to the limit is left, so that the next mark should be written now.
    pub fn wants_mark(&self) -> bool {
        self.now().plus(Self::MARK_AHEAD / 2) >= self.limit()
    }

    /// Allows timestamps below `mark`, which is durable by now.
    pub fn raise_limit(&self, mark: Timestamp) {
        self.limit.fetch_max(mark.as_u64(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::ManualClock;

    const SKEW: Duration = Duration::from_millis(500);

    fn clock_at(micros: u64) -> (Arc<ManualClock>, Hlc) {
        let clock = Arc::new(ManualClock::at(micros));
        (clock.clone(), Hlc::unlimited(clock, SKEW))
    }

    #[test]
    fn a_wall_clock_set_back_gives_no_timestamp_twice() {
        let (clock, hlc) = clock_at(1_000_000);
        let before = hlc.tick().unwrap();
        clock.set(1);
        assert!(hlc.tick().unwrap() > before);
    }

    #[test]
    fn a_moment_that_was_reached_stays_so_when_the_wall_clock_is_set_back_and_once_marked_after_a_restart() {
        let clock = Arc::new(ManualClock::at(1_000_000));
        let hlc = Hlc::new(clock.clone(), Timestamp::ZERO, SKEW);
        let (moment, later) = (Timestamp::from_micros(1_000_000), Timestamp::from_micros(1_000_001));
        assert_eq!((hlc.reach(later), hlc.reach(moment)), (Reached::NotYet, Reached::UntilRestart));
        clock.set(1);
        assert_eq!(hlc.reach(moment), Reached::UntilRestart);
        assert_eq!(hlc.vouched(), Timestamp::ZERO, "a restart would take it back");
        let mark = hlc.next_mark();
        hlc.raise_limit(mark);
        assert_eq!((hlc.reach(moment), hlc.vouched()), (Reached::Durably, moment));
        let restarted = Hlc::new(clock, mark, SKEW);
        assert_eq!(restarted.reach(moment), Reached::Durably);
    }

    #[test]
    fn a_wall_clock_alone_vouches_for_nothing() {
        let (clock, hlc) = clock_at(1_000_000);
        let given = hlc.tick().unwrap();
        clock.set(9_000_000_000);
        assert_eq!(hlc.vouched(), given);
    }

    #[test]
    fn the_clock_moves_past_what_it_sees() {
        let (_, hlc) = clock_at(1_000_000);
        let seen = Timestamp::from_micros(1_400_000);
        hlc.observe(seen).unwrap();
        assert!(hlc.tick().unwrap() > seen);
    }

    #[test]
    fn a_timestamp_beyond_the_skew_is_refused_and_moves_nothing() {
        let (_, hlc) = clock_at(1_000_000);
        let before = hlc.now();
        assert!(hlc.observe(Timestamp::from_micros(1_500_002)).is_err());
        assert_eq!(hlc.now(), before);
        assert!(hlc.observe(Timestamp::from_micros(1_500_000)).is_ok());
    }

    #[test]
    fn no_timestamp_is_given_beyond_the_mark_on_disk() {
        let clock = Arc::new(ManualClock::at(5_000_000));
        let hlc = Hlc::new(clock.clone(), Timestamp::from_micros(6_000_000), SKEW);
        assert_eq!(hlc.tick(), Err(LimitReached));
        hlc.raise_limit(hlc.next_mark());
        let first = hlc.tick().unwrap();
        assert!(
            first > Timestamp::from_micros(6_000_000),
            "what was given before the restart lies below the mark"
        );
        assert!(first < hlc.limit());
        clock.set(7_000_000);
        assert!(hlc.wants_mark());
        assert_eq!(hlc.tick(), Err(LimitReached));
    }
}
