//! Fair shares: how many ranges each member should hold.
//!
//! ```text
//! Q = 8, N = 2: 16 vnodes      weights  a 1   b 1   c 6
//! by weight alone                       2     2     12
//! nobody owns a range twice: cap Q      4     4      8
//! ```
//!
//! A member's fair share is its part of all Q·N vnodes by weight, bounded twice. A member owns a range at most once,
//! so no share exceeds Q; what it cannot take is shared among the others. And zones bound how many replicas of one
//! range may stand together ([`RowBounds`]), so a zone's members hold between Q·min and Q·max in sum: where weights
//! ask for more or less, the zone gets its bound and its members share *that* by weight. In both cases the weights
//! keep deciding among all members that no bound holds back.
//!
//! All sums are of whole numbers, so that every machine rounds alike.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::Member;

/// How many replicas of one range may stand in a zone, so that replicas are spread as evenly as zones allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowBounds {
    /// At least.
    pub min: usize,
    /// At most: 1 when there are N zones or more.
    pub max: usize,
}

/// Which zone each member stands in, by index, and what each zone may hold of one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zones {
    /// By member.
    pub of_member: Vec<usize>,
    /// By zone.
    pub bounds: Vec<RowBounds>,
    /// The zones with a minimum above 0: fewer than N, since below the level that suffices replicas are left over.
    pub with_min: Vec<usize>,
}

/// What a member should hold: `whole` ranges and `remainder / denominator` of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Whole ranges.
    pub whole: u64,
    /// Less than `denominator`.
    pub remainder: u64,
    /// Equal for all members of a `Group` that no cap holds back.
    pub denominator: u64,
}

/// Members that share one whole number of vnodes: those of a zone that is at a bound, or all others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    members: Vec<usize>,
    total: u64,
}

/// The fair shares of all members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FairShares {
    /// By member.
    pub shares: Vec<Share>,
    groups: Vec<Group>,
    range_count: u64,
}

impl Share {
    /// Rounded down, to rounded up.
    pub fn bounds(&self) -> RangeInclusive<u64> {
        self.whole..=self.whole + u64::from(self.remainder > 0)
    }
}

impl Zones {
    /// Numbers the zones by name; the members that name none are one zone.
    ///
    /// Bounds are those of pouring N replicas into the zones evenly, a zone being full when each of its members has
    /// one: `max` is the level that suffices, and one below it still leaves replicas over.
    pub fn new(members: &[Member], replication_factor: usize) -> Self {
        let mut sizes: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        for member in members {
            *sizes.entry(member.zone.as_deref()).or_default() += 1;
        }
        let names: Vec<Option<&str>> = sizes.keys().copied().collect();
        let of_member = members
            .iter()
            .map(|member| names.binary_search(&member.zone.as_deref()).expect("every zone was numbered"))
            .collect();
        let poured = |level: usize| sizes.values().map(|size| level.min(*size)).sum::<usize>();
        let level = (1..=replication_factor).find(|level| poured(*level) >= replication_factor).unwrap_or(1);
        let bounds: Vec<RowBounds> = sizes
            .values()
            .map(|size| RowBounds { min: (level - 1).min(*size), max: level.min(*size) })
            .collect();
        let with_min = (0..bounds.len()).filter(|zone| bounds[*zone].min > 0).collect();
        Self { of_member, bounds, with_min }
    }
}

impl FairShares {
    /// The fair shares of a ring of `range_count` ranges with `replication_factor` (at most the members) replicas each.
    pub fn new(members: &[Member], zones: &Zones, range_count: u32, replication_factor: usize) -> Self {
        let range_count = u64::from(range_count);
        let weights: Vec<u64> = members.iter().map(|member| u64::from(member.weight.max(1))).collect();
        let mut free: Vec<usize> = (0..members.len()).collect();
        let mut left = range_count * replication_factor as u64;
        let mut groups = Vec::new();
        loop {
            let shares = by_weight(left, &free, &weights, range_count);
            let settled = settle(&shares, &free, zones, range_count);
            if settled.is_empty() {
                break;
            }
            for (zone, total) in settled {
                let members =
                    free.iter().copied().filter(|member| zones.of_member[*member] == zone).collect();
                free.retain(|member| zones.of_member[*member] != zone);
                left -= total;
                groups.push(Group { members, total });
            }
        }
        groups.push(Group { members: free, total: left });

        let mut shares = vec![Share { whole: 0, remainder: 0, denominator: 1 }; members.len()];
        for group in &groups {
            for (member, share) in
                group.members.iter().zip(by_weight(group.total, &group.members, &weights, range_count))
            {
                shares[*member] = share;
            }
        }
        Self { shares, groups, range_count }
    }

    /// Rounds every share down or up so that all vnodes are given out, and no zone leaves its bounds.
    ///
    /// `held` is what each member has already. Who has enough for the larger number gets it before anyone else, since
    /// that saves a move; then the largest remainder decides, then the name.
    pub fn targets(&self, zones: &Zones, held: &[u64]) -> Vec<u64> {
        let mut targets: Vec<u64> = self.shares.iter().map(|share| share.whole).collect();
        for group in &self.groups {
            let mut by_claim: Vec<usize> =
                group.members.iter().copied().filter(|member| self.shares[*member].remainder > 0).collect();
            by_claim.sort_by_key(|member| {
                let share = self.shares[*member];
                (held[*member] <= share.whole, std::cmp::Reverse(share.remainder), *member)
            });
            let mut left = group.total - group.members.iter().map(|member| targets[*member]).sum::<u64>();
            let mut in_zone = vec![0; zones.bounds.len()];
            for (member, target) in targets.iter().enumerate() {
                in_zone[zones.of_member[member]] += target;
            }
            // First what zones need to reach their minimum, then the rest up to their maximum.
            for bound in [|bounds: RowBounds| bounds.min, |bounds: RowBounds| bounds.max] {
                by_claim.retain(|member| {
                    let zone = zones.of_member[*member];
                    let takes =
                        left > 0 && in_zone[zone] < bound(zones.bounds[zone]) as u64 * self.range_count;
                    if takes {
                        targets[*member] += 1;
                        in_zone[zone] += 1;
                        left -= 1;
                    }
                    !takes
                });
            }
            debug_assert_eq!(left, 0, "remainders add up to what is left");
        }
        targets
    }
}

/// Shares `total` by weight, nobody above `cap`; what one cannot take goes to the others. In the order of `members`.
fn by_weight(total: u64, members: &[usize], weights: &[u64], cap: u64) -> Vec<Share> {
    let mut capped = vec![false; members.len()];
    loop {
        let at_cap = capped.iter().filter(|capped| **capped).count() as u64;
        let rest = total.saturating_sub(at_cap * cap);
        let uncapped = || members.iter().zip(&capped).filter(|(_, capped)| !**capped);
        let denominator: u64 = uncapped().map(|(member, _)| weights[*member]).sum::<u64>().max(1);
        let over: Vec<usize> = (0..members.len())
            .filter(|i| !capped[*i] && weights[members[*i]] * rest > cap * denominator)
            .collect();
        if over.is_empty() {
            return members
                .iter()
                .zip(&capped)
                .map(|(member, capped)| match capped {
                    true => Share { whole: cap, remainder: 0, denominator },
                    false => {
                        let parts = weights[*member] * rest;
                        Share { whole: parts / denominator, remainder: parts % denominator, denominator }
                    }
                })
                .collect();
        }
        for i in over {
            capped[i] = true;
        }
    }
}

/// The zones whose members would hold more, or less, than they may, each with its bound.
///
/// Only the side that is off by more is settled: settling one side moves vnodes to or from the other, which may bring
/// it back within its bounds, but never pushes the settled side back.
fn settle(shares: &[Share], members: &[usize], zones: &Zones, range_count: u64) -> Vec<(usize, u64)> {
    // All in parts of one denominator; a group's members have it in common.
    let denominator = shares.iter().map(|share| u128::from(share.denominator)).max().unwrap_or(1);
    let mut held: BTreeMap<usize, u128> = BTreeMap::new();
    for (share, member) in shares.iter().zip(members) {
        *held.entry(zones.of_member[*member]).or_default() +=
            u128::from(share.whole) * denominator + u128::from(share.remainder);
    }
    let (mut above, mut below, mut off_above, mut off_below) = (Vec::new(), Vec::new(), 0, 0);
    for (zone, held) in held {
        let bounds = zones.bounds[zone];
        let (min, max) = (bounds.min as u64 * range_count, bounds.max as u64 * range_count);
        let (min_parts, max_parts) = (u128::from(min) * denominator, u128::from(max) * denominator);
        if held > max_parts {
            above.push((zone, max));
            off_above += held - max_parts;
        } else if held < min_parts {
            below.push((zone, min));
            off_below += min_parts - held;
        }
    }
    if off_above >= off_below { above } else { below }
}

#[cfg(test)]
mod tests {
    use super::super::Membership;
    use super::*;

    fn targets(members: &str, range_count: u32, replication_factor: usize) -> Vec<u64> {
        let membership = Membership::parse(members, 1).expect("a member list");
        let zones = Zones::new(membership.members(), replication_factor);
        let shares = FairShares::new(membership.members(), &zones, range_count, replication_factor);
        shares.targets(&zones, &vec![0; membership.members().len()])
    }

    #[test]
    fn shares_go_by_weight() {
        assert_eq!(targets("a:1,b:1;vnodes=3", 64, 1), [16, 48]);
        assert_eq!(targets("a:1,b:1,c:1", 16, 2), [11, 11, 10]);
    }

    #[test]
    fn what_a_heavy_member_cannot_take_is_shared_by_the_others() {
        assert_eq!(targets("a:1,b:1,c:1;vnodes=6", 8, 2), [4, 4, 8]);
        assert_eq!(targets("a:1,b:1;vnodes=9,c:1;vnodes=90", 8, 3), [8, 8, 8]);
    }

    #[test]
    fn with_as_many_zones_as_replicas_each_zone_has_one_of_each_range() {
        assert_eq!(targets("a:1;zone=x,b:1;zone=x,c:1;zone=y,d:1;zone=z", 8, 3), [4, 4, 8, 8]);
    }

    #[test]
    fn a_zone_that_asks_for_too_much_leaves_the_rest_to_the_others_by_weight() {
        // Four zones, N = 2. Zone x asks for 12 of 16 and may have 8; of the other 8 the weights decide.
        let members = "a:1;zone=x;vnodes=6,b:1;zone=x;vnodes=6,c:1;zone=y,d:1;zone=z;vnodes=2,e:1;zone=w";
        assert_eq!(targets(members, 8, 2), [4, 4, 2, 4, 2]);
    }

    #[test]
    fn fewer_zones_than_replicas_hold_as_even_a_number_as_their_members_allow() {
        let membership =
            Membership::parse("a:1;zone=x,b:1;zone=y,c:1;zone=y,d:1;zone=y,e:1", 1).expect("members");
        let zones = Zones::new(membership.members(), 5);
        let bounds: Vec<_> = zones.bounds.iter().map(|bounds| (bounds.min, bounds.max)).collect();
        assert_eq!(bounds, [(1, 1), (1, 1), (2, 3)]);
        assert_eq!(zones.of_member, [1, 2, 2, 2, 0]);
    }
}
