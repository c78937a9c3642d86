//! Majority: what a majority of the members' wall clocks say, and where this node's clock stands to it. Pure.
//!
//! **The majority's time** is the latest moment that the wall clocks of a majority of all members have reached. One
//! clock cannot move it, nor can any minority, and where a tie leaves no majority it is the earlier time.
//!
//! ```text
//! five members, three are a majority     b ─── d ─────── us ──────────── c ─────────────────── e
//! lowest  = what three peers have reached      d          │              │
//! highest = what two peers have reached                   │              c     (with this node: three)
//! the majority's time = our own clock, but not before lowest and not beyond highest
//! ```
//!
//! Members that were not heard count as clocks that have reached nothing.
//!
//! Source: Marzullo, "Maintaining the Time in a Distributed System" (1984), for readings as intervals and for
//! believing what most of them allow. Unlike there, clocks are only compared, never set.

use std::time::Duration;

/// Between which moments a peer's wall clock is now, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Not before this.
    pub earliest: u64,
    /// Not after this.
    pub latest: u64,
}

/// What the peers' clocks allow a majority's time to be, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// A majority of all members, this node not needed, has reached it; `None` if too few peers are known.
    pub lowest: Option<u64>,
    /// A majority of all members that includes this node can have reached no more than this.
    pub highest: u64,
}

impl Span {
    /// The span of `readings`, one a peer, in a ring of so many members; `None` while too few peers are known for a
    /// majority, this node included, or where the node is alone and nobody bounds it.
    pub fn of(readings: &[Reading], members: usize) -> Option<Self> {
        let majority = members / 2 + 1;
        let mut latest: Vec<_> = readings.iter().map(|reading| reading.latest).collect();
        let mut earliest: Vec<_> = readings.iter().map(|reading| reading.earliest).collect();
        latest.sort_unstable_by(|a, b| b.cmp(a));
        earliest.sort_unstable_by(|a, b| b.cmp(a));
        let highest = *latest.get(majority.checked_sub(2)?)?;
        Some(Self { lowest: earliest.get(majority - 1).copied(), highest })
    }
}

/// Where this node's wall clock stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has not been compared with a majority's yet.
    Unchecked,
    /// Within `MAX_CLOCK_SKEW` of the majority's time.
    InBounds,
    /// Ahead by this much, which is more.
    Ahead(Duration),
    /// Behind by this much, which is more.
    Behind(Duration),
}

impl Verdict {
    /// Judges a wall clock that says `wall`.
    pub fn of(wall: u64, span: Span, skew_max: Duration) -> Self {
        let ahead = Duration::from_micros(wall.saturating_sub(span.highest));
        let behind = Duration::from_micros(span.lowest.unwrap_or(0).saturating_sub(wall));
        if ahead > skew_max {
            Self::Ahead(ahead)
        } else if behind > skew_max {
            Self::Behind(behind)
        } else {
            Self::InBounds
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEW: Duration = Duration::from_micros(5);

    fn exact(clocks: &[u64]) -> Vec<Reading> {
        clocks.iter().map(|clock| Reading { earliest: *clock, latest: *clock }).collect()
    }

    fn verdict(own: u64, peers: &[u64], members: usize) -> Verdict {
        Span::of(&exact(peers), members).map_or(Verdict::Unchecked, |span| Verdict::of(own, span, SKEW))
    }

    #[test]
    fn of_three_clocks_the_one_that_differs_is_wrong_whoever_asks() {
        let micros = Duration::from_micros;
        assert_eq!(verdict(1000, &[100, 100], 3), Verdict::Ahead(micros(900)));
        assert_eq!(verdict(100, &[1000, 100], 3), Verdict::InBounds);
        assert_eq!(verdict(100, &[1000, 1000], 3), Verdict::Behind(micros(900)));
        assert_eq!(verdict(1000, &[1000, 100], 3), Verdict::InBounds);
        assert_eq!(verdict(105, &[100, 100], 3), Verdict::InBounds);
        assert_eq!(verdict(106, &[100, 100], 3), Verdict::Ahead(micros(6)));
    }

    #[test]
    fn a_tie_is_decided_for_the_earlier_time_and_shuts_nobody_else_out() {
        assert_eq!(verdict(1000, &[100], 2), Verdict::Ahead(Duration::from_micros(900)));
        assert_eq!(verdict(100, &[1000], 2), Verdict::InBounds);
        assert_eq!(verdict(1000, &[1000, 100, 100], 4), Verdict::Ahead(Duration::from_micros(900)));
        assert_eq!(verdict(100, &[1000, 1000, 100], 4), Verdict::InBounds);
        assert_eq!(verdict(1000, &[100], 3), Verdict::Ahead(Duration::from_micros(900)), "the third is away");
        assert_eq!(verdict(100, &[1000], 3), Verdict::InBounds, "the third is away");
    }

    #[test]
    fn too_few_peers_decide_nothing_and_a_node_alone_has_nobody() {
        assert_eq!(verdict(100, &[], 3), Verdict::Unchecked);
        assert_eq!(verdict(100, &[100], 5), Verdict::Unchecked);
        assert_eq!(Span::of(&[], 1), None);
    }

    #[test]
    fn what_a_reading_leaves_open_speaks_for_the_clock_that_is_judged() {
        let vague = [Reading { earliest: 50, latest: 200 }; 2];
        let span = Span::of(&vague, 3).unwrap();
        assert_eq!(Verdict::of(205, span, SKEW), Verdict::InBounds);
        assert_eq!(Verdict::of(45, span, SKEW), Verdict::InBounds);
        assert_eq!(Verdict::of(206, span, SKEW), Verdict::Ahead(Duration::from_micros(6)));
        assert_eq!(Verdict::of(44, span, SKEW), Verdict::Behind(Duration::from_micros(6)));
    }

    #[test]
    fn no_minority_moves_the_majoritys_time_and_no_majority_is_out_of_bounds() {
        for members in 2..8_usize {
            for wrong in 0..members {
                // So many clocks are far ahead, the others agree.
                let clocks: Vec<u64> = (0..members).map(|n| if n < wrong { 9000 } else { 100 }).collect();
                for (own, clock) in clocks.iter().enumerate() {
                    let peers: Vec<u64> = clocks
                        .iter()
                        .enumerate()
                        .filter(|(n, _)| *n != own)
                        .map(|(_, clock)| *clock)
                        .collect();
                    let expected_ahead = *clock == 9000 && wrong <= members / 2;
                    let expected_behind = *clock == 100 && wrong > members / 2;
                    let seen = verdict(*clock, &peers, members);
                    assert_eq!(matches!(seen, Verdict::Ahead(_)), expected_ahead, "{clocks:?} {own}");
                    assert_eq!(matches!(seen, Verdict::Behind(_)), expected_behind, "{clocks:?} {own}");
                }
            }
        }
    }
}
