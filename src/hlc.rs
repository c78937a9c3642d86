//! Hlc: the hybrid logical clock. Ticks for every write, moves past every timestamp it sees.
//!
//! ```text
//! wall clock ──within what a majority's clocks allow──max──> last ──tick──> after last    never gives a timestamp twice,
//! messages   ────────────────────────────────────────max──┘                              never goes back
//! limit: what the mark on disk allows; a tick beyond it waits until a higher mark is synced
//! ```
//!
//! The high-water mark is on disk *ahead* of use: after a restart the clock starts at the mark, so that a wall
//! clock set back gives no timestamp twice.
//!
//! In a ring, this node's wall clock counts only as far as a majority's clocks bear it out ([`majority`]): further than
//! `skew_max` beyond the majority's time it counts for nothing, and it is never taken to be before that time. So one wrong clock moves
//! no timestamp, its own node's included, and a ring's time lies at most `skew_max` beyond the majority's time, for as long as that never goes back.
//! What other nodes gave is followed however far ahead it is, if their own clocks are in bounds (`replication::clocks` decides).
//!
//! **Where the wall clocks were set back**, the ring's time is ahead of them for good reason: what was given stays given.
//! Up to a second plus `skew_max` the clock then stands still, but for ticks, until they have caught up. Further ahead
//! it runs on by the machine's monotonic clock, a 64th slower, so that what was written for two seconds ends in two seconds, and
//! not when the wall clocks come to where they once were. Being slower, it falls back towards them, and no drift adds up.
//!
//! In a ring, the lowest eight bits of a timestamp name the member that gave it, so that no two members give the same one.
//!
//! Source: Kulkarni et al., "Logical Physical Clocks" (2014); cockroachdb `pkg/util/hlc`. The counter here is
//! the low bits of one integer, so a tick is one compare-and-swap.

pub mod keeper;
pub mod majority;

pub use keeper::{ClockKeeper, MarkFailed};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::env::Clock;
use crate::types::Timestamp;
use majority::{Span, Verdict};

/// A hybrid logical clock. All methods may be called from any thread.
#[derive(Debug)]
pub struct Hlc {
    clock: Arc<dyn Clock>,
    /// The highest timestamp given or seen. Relaxed: it orders nothing but itself.
    last: AtomicU64,
    /// Timestamps below it may be given.
    limit: AtomicU64,
    /// How far a clock may be from the majority's time.
    skew_max: Duration,
    /// Where the monotonic clock's micros are counted from.
    started: Instant,
    /// What a majority's clocks allow.
    bounds: Bounds,
    /// Where the clock runs on by itself: its reading when the monotonic clock stood at zero. Only ever raised.
    run: AtomicU64,
    /// The lowest bits of what is given; [`UNTAGGED`] where nobody else gives any.
    tag: AtomicU64,
}

/// The clocks of a majority, as they would have been at `Hlc::started`: the monotonic clock carries them on, so that a
/// jump of this node's wall clock shows at once. Relaxed, each by itself: a moment's mixture of old and new is
/// as good as either.
#[derive(Debug)]
struct Bounds {
    /// [`Span::lowest`]; zero: none.
    lowest: AtomicU64,
    /// [`Span::highest`]; [`UNBOUNDED`] or [`UNCHECKED`] instead.
    highest: AtomicU64,
    /// When they were last confirmed, by the monotonic clock.
    confirmed: AtomicU64,
}

/// There is no other clock to compare with.
const UNBOUNDED: u64 = u64::MAX;
/// There is, and it has not been done.
const UNCHECKED: u64 = 0;
/// No member is named in timestamps.
const UNTAGGED: u64 = u64::MAX;
/// Timestamps that differ in these bits alone differ in who gave them.
const TAGS: u64 = 1 << 8;
/// How long clocks that were heard speak against this node's: then the peers are away, or the machine was asleep.
const CONFIRMED_FOR: Duration = Duration::from_secs(2);

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

/// A remote timestamp is further ahead than the majority's clocks explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timestamp {timestamp} is {} ms ahead of this node's clock", .ahead.as_millis())]
pub struct TooFarAhead {
    /// Which.
    pub timestamp: Timestamp,
    /// How far it is ahead of this clock.
    pub ahead: Duration,
}

impl Hlc {
    /// How far the mark on disk runs ahead of the clock.
    pub const MARK_AHEAD: Duration = Duration::from_millis(400);
    /// How far where the clock is ahead of all wall clocks already and stands still: restarts in quick succession, each of which
    /// begins at the mark, shall not carry it away.
    const MARK_AHEAD_STANDING: Duration = Duration::from_millis(20);
    /// How far ahead of the wall clocks, beside `skew_max`, it waits for them. Some restarts fit in.
    const STANDS_STILL: Duration = Duration::from_secs(1);

    /// Starts at `mark`, the high-water mark found on disk (zero for a new node), with no timestamp allowed yet.
    pub fn new(clock: Arc<dyn Clock>, mark: Timestamp, skew_max: Duration) -> Self {
        Self {
            clock,
            last: mark.as_u64().into(),
            limit: mark.as_u64().into(),
            skew_max,
            started: Instant::now(),
            bounds: Bounds { lowest: 0.into(), highest: UNBOUNDED.into(), confirmed: 0.into() },
            run: 0.into(),
            tag: UNTAGGED.into(),
        }
    }

    /// A clock without a mark on disk: for tests, and for an engine used alone by one process run.
    pub fn unlimited(clock: Arc<dyn Clock>, skew_max: Duration) -> Self {
        let hlc = Self::new(clock, Timestamp::ZERO, skew_max);
        hlc.raise_limit(Timestamp::MAX);
        hlc
    }

    /// This node is the `place`th of several members: what it gives names it, and its wall clock counts for nothing until it
    /// was compared with a majority's. With more than 256 members some share a name, and may give the same timestamp.
    pub fn join_ring(&self, place: usize) {
        self.tag.store(place as u64 % TAGS, Ordering::Relaxed);
        self.bounds.highest.store(UNCHECKED, Ordering::Relaxed);
    }

    /// What a majority's clocks allow as of now. Nothing to a clock that has joined no ring.
    pub fn set_bounds(&self, span: Span) {
        if self.is_unbounded() {
            return; // it has joined no ring
        }
        let elapsed = self.elapsed();
        let lowest = span.lowest.map_or(0, |lowest| lowest.saturating_sub(elapsed));
        self.bounds.lowest.store(lowest, Ordering::Relaxed);
        self.bounds.highest.store(span.highest.saturating_sub(elapsed).max(1), Ordering::Relaxed);
        self.bounds.confirmed.store(elapsed, Ordering::Relaxed);
    }

    /// What a majority's clocks allow now; `None` where they are not known, or there is nobody else.
    fn span(&self) -> Option<Span> {
        let highest = self.bounds.highest.load(Ordering::Relaxed);
        if highest == UNBOUNDED || highest == UNCHECKED {
            return None;
        }
        let elapsed = self.elapsed();
        let lowest = self.bounds.lowest.load(Ordering::Relaxed);
        Some(Span { lowest: (lowest > 0).then_some(lowest + elapsed), highest: highest + elapsed })
    }

    fn is_unbounded(&self) -> bool {
        self.bounds.highest.load(Ordering::Relaxed) == UNBOUNDED
    }

    /// Where this node's wall clock stands to a majority's.
    pub fn verdict(&self) -> Verdict {
        if self.is_unbounded() {
            return Verdict::InBounds;
        }
        let Some(span) = self.span() else { return Verdict::Unchecked };
        let confirmed = Duration::from_micros(self.bounds.confirmed.load(Ordering::Relaxed));
        if Duration::from_micros(self.elapsed()).saturating_sub(confirmed) > CONFIRMED_FOR {
            return Verdict::InBounds; // it is bounded by what was heard last, as ever
        }
        Verdict::of(self.clock.wall_micros(), span, self.skew_max)
    }

    /// The majority's time, as far as this node knows; its own wall clock's where it knows of no other.
    pub fn majority_time(&self) -> Timestamp {
        let wall = self.clock.wall_micros();
        let time = self.span().map_or(wall, |span| wall.min(span.highest).max(span.lowest.unwrap_or(0)));
        Timestamp::from_micros(time)
    }

    /// What the wall clock counts for: as much as a majority's clocks bear out.
    fn borne_out(&self) -> u64 {
        let wall = self.clock.wall_micros();
        let Some(span) = self.span() else {
            return if self.is_unbounded() { Timestamp::from_micros(wall).as_u64() } else { 0 };
        };
        let skew_max = self.skew_max.as_micros() as u64;
        // Out of bounds, it counts for nothing at all: at the very bound, peers who see it a little differently would
        // refuse all that this node says.
        let believed = if wall > span.highest.saturating_add(skew_max) { span.highest } else { wall };
        let micros = believed.max(span.lowest.unwrap_or(0));
        let borne_out = Timestamp::from_micros(micros).as_u64();
        if micros != wall {
            // Whoever is out of bounds goes by others' clocks: when these are no longer heard, that does not go back.
            self.last.fetch_max(borne_out, Ordering::Relaxed);
        }
        borne_out
    }

    /// Up to which lead over the wall clocks the clock stands still until they have caught up.
    fn stands_still_up_to(&self) -> Duration {
        Self::STANDS_STILL + self.skew_max
    }

    /// How far the clock is ahead of the majority's time; zero when it is not.
    pub fn lead(&self) -> Duration {
        Timestamp::from_u64(self.last.load(Ordering::Relaxed)).since(self.majority_time())
    }

    /// Whether it is so far ahead of the wall clocks that it runs on by itself.
    pub fn runs_ahead(&self) -> bool {
        self.lead() > self.stands_still_up_to()
    }

    /// Where the clock stands when the wall clock counts for `borne_out`.
    fn reading(&self, borne_out: u64) -> u64 {
        let last = self.last.load(Ordering::Relaxed);
        if last <= Timestamp::from_u64(borne_out).plus(self.stands_still_up_to()).as_u64() {
            return borne_out.max(last);
        }
        let elapsed = Timestamp::from_micros(self.elapsed()).as_u64();
        let elapsed = elapsed - elapsed / 64;
        let begun = last.saturating_sub(elapsed);
        let reading = self.run.fetch_max(begun, Ordering::Relaxed).max(begun).saturating_add(elapsed);
        self.last.fetch_max(reading, Ordering::Relaxed).max(reading) // what was read is never before again
    }

    /// Gives the next timestamp, never given before.
    ///
    /// # Errors
    /// [`LimitReached`] when the mark on disk must be raised first; nothing was given.
    pub fn tick(&self) -> Result<Timestamp, LimitReached> {
        let now = self.reading(self.borne_out());
        let limit = self.limit.load(Ordering::Acquire);
        let tag = self.tag.load(Ordering::Relaxed);
        self.last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                let next = next_after(last, now, tag);
                (next < limit).then_some(next)
            })
            .map(|last| Timestamp::from_u64(next_after(last, now, tag)))
            .map_err(|_| LimitReached)
    }

    /// The highest timestamp given or seen, or the wall clock's if that is higher and borne out: what every message carries.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_u64(self.reading(self.borne_out()))
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

    /// Moves past a timestamp that a message carried, if that is no further ahead than the majority's clocks explain.
    ///
    /// # Errors
    /// [`TooFarAhead`]; the clock stays where it was.
    pub fn observe(&self, remote: Timestamp) -> Result<(), TooFarAhead> {
        if remote.as_u64() <= self.last.load(Ordering::Relaxed) {
            return Ok(());
        }
        let allowed = self.majority_time().plus(self.skew_max);
        if remote > allowed {
            let ahead = remote.since(self.majority_time().max(self.now()));
            return Err(TooFarAhead { timestamp: remote, ahead });
        }
        self.follow(remote);
        Ok(())
    }

    /// Moves past a timestamp however far ahead it is: one whose sender's clock is in bounds, or that was read from this node's own
    /// disk.
    pub fn follow(&self, given: Timestamp) {
        self.last.fetch_max(given.as_u64(), Ordering::Relaxed);
    }

    /// Takes over what this node's own disk holds: its timestamps were judged when they came in.
    pub fn recover(&self, own: Timestamp) {
        self.follow(own);
    }

    /// The wall clock's reading.
    pub fn wall(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.wall_micros())
    }

    /// How far a clock may be from the majority's time.
    pub fn skew_max(&self) -> Duration {
        self.skew_max
    }

    /// Timestamps below it may be given.
    pub fn limit(&self) -> Timestamp {
        Timestamp::from_u64(self.limit.load(Ordering::Acquire))
    }

    /// The mark that should be made durable next.
    pub fn next_mark(&self) -> Timestamp {
        let borne_out = self.borne_out();
        self.mark_after(borne_out, self.reading(borne_out))
    }

    fn mark_after(&self, borne_out: u64, now: u64) -> Timestamp {
        let (now, wall) = (Timestamp::from_u64(now), Timestamp::from_u64(borne_out));
        let stands = now.since(wall) <= self.stands_still_up_to();
        let ahead = if stands { Self::MARK_AHEAD_STANDING } else { Self::MARK_AHEAD };
        wall.plus(Self::MARK_AHEAD).max(now.plus(ahead))
    }

    /// Whether less than half of the way to the limit is left, so that the next mark should be written now.
    pub fn wants_mark(&self) -> bool {
        let borne_out = self.borne_out();
        let reading = self.reading(borne_out);
        let (now, next) = (Timestamp::from_u64(reading), self.mark_after(borne_out, reading));
        now.plus(next.since(now) / 2) >= self.limit()
    }

    /// Allows timestamps below `mark`, which is durable by now.
    pub fn raise_limit(&self, mark: Timestamp) {
        self.limit.fetch_max(mark.as_u64(), Ordering::Release);
    }

    /// Microseconds by the monotonic clock.
    fn elapsed(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }
}

/// The first timestamp of this tag that is after `last` and not before `now`.
fn next_after(last: u64, now: u64, tag: u64) -> u64 {
    let least = now.max(last.saturating_add(1));
    if tag == UNTAGGED {
        return least;
    }
    let tagged = least / TAGS * TAGS + tag;
    if tagged < least { tagged.saturating_add(TAGS) } else { tagged }
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

    fn span(lowest: u64, highest: u64) -> Span {
        Span { lowest: Some(lowest), highest }
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_ring_the_wall_clock_counts_only_as_far_as_a_majority_bears_it_out() {
        let (clock, hlc) = clock_at(9_000_000);
        hlc.join_ring(0);
        assert_eq!((hlc.verdict(), hlc.now()), (Verdict::Unchecked, Timestamp::ZERO), "nobody was heard");
        hlc.set_bounds(span(9_000_000, 9_000_100));
        assert_eq!((hlc.verdict(), hlc.now().micros()), (Verdict::InBounds, 9_000_000));
        clock.set(99_000_000);
        assert_eq!(hlc.verdict(), Verdict::Ahead(Duration::from_micros(89_999_900)), "at once");
        assert_eq!(hlc.tick().unwrap().micros(), 9_000_100, "what the others' clocks allow");
        clock.set(1);
        assert_eq!(hlc.verdict(), Verdict::Behind(Duration::from_micros(8_999_999)));
        let behind = Hlc::unlimited(clock.clone(), SKEW);
        behind.join_ring(0);
        behind.set_bounds(span(9_000_000, 9_000_100));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(
            behind.now().micros(),
            9_100_000,
            "it goes by the others', and between their answers, too"
        );
        clock.set(99_000_000);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(hlc.verdict(), Verdict::InBounds, "nobody has confirmed it of late");
        assert!(hlc.now().micros() <= 9_000_100 + 3_100_000 + 500_000, "it is bounded all the same");
    }

    #[tokio::test(start_paused = true)]
    async fn far_ahead_of_the_wall_clock_it_runs_on_a_little_slower_and_near_it_stands_still() {
        let day = 86_400_000_000;
        let (clock, hlc) = clock_at(400 * day);
        let before = hlc.tick().unwrap();
        clock.set(day);
        let start = hlc.now();
        assert_eq!(start, before);
        for second in 1..=100 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let ran = hlc.now().since(start).as_secs_f64();
            let expected = f64::from(second) * 63.0 / 64.0;
            assert!((ran - expected).abs() < 0.001, "{ran} after {second} s");
        }
        assert!(hlc.runs_ahead());
        let (clock, hlc) = clock_at(1_000_000);
        let before = hlc.tick().unwrap();
        clock.set(200_000);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(hlc.now(), before, "0.8 s: the wall clock will be there soon");
    }

    #[test]
    fn restarts_in_quick_succession_carry_the_clock_hardly_further_than_one() {
        let clock = Arc::new(ManualClock::at(5_000_000));
        let mut mark = Timestamp::ZERO;
        for _ in 0..10 {
            let hlc = Hlc::new(clock.clone(), mark, SKEW);
            hlc.raise_limit(hlc.next_mark());
            hlc.tick().unwrap();
            mark = hlc.limit();
        }
        assert!(mark.since(hlc_wall(&clock)) <= Duration::from_millis(850), "{mark:?}");
    }

    fn hlc_wall(clock: &Arc<ManualClock>) -> Timestamp {
        Timestamp::from_micros(clock.wall_micros())
    }

    #[test]
    fn no_two_members_of_a_ring_give_one_timestamp() {
        let clock = Arc::new(ManualClock::at(5_000_000));
        let mut given = std::collections::BTreeSet::new();
        let members: Vec<_> = (0..3)
            .map(|place| {
                let hlc = Hlc::unlimited(clock.clone(), SKEW);
                hlc.join_ring(place);
                hlc.set_bounds(span(5_000_000, 5_000_000));
                hlc
            })
            .collect();
        for _ in 0..1000 {
            for hlc in &members {
                assert!(given.insert(hlc.tick().unwrap()));
            }
        }
        for (last, tag) in [(0, 0), (254, 255), (255, 255), (256, 3), (1000, 0)] {
            let next = next_after(last, 0, tag);
            assert!(next > last && next <= last + TAGS && next % TAGS == tag, "{last} {tag}: {next}");
            assert_eq!(next_after(last, 5000, tag), next_after(4999, 0, tag));
        }
    }
}
