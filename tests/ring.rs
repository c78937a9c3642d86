//! Placement: golden cases, and its promises over random clusters of up to 200 nodes.

#![allow(clippy::disallowed_methods)] // golden files are read where they lie
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::ref_option_ref,
    clippy::needless_for_each
)] // short test code

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use kvstore::cluster::{Member, Membership, Ring, RingSettings, assign};
use kvstore::types::NodeId;
use proptest::prelude::*;

// ---- golden cases ----

/// Every file of `tests/data/ring` holds steps: `assign` or `again` (from the ring before) with settings, a member a
/// line, `----`, and what comes out. `REWRITE=1` writes what comes out today.
#[test]
fn placement_is_that_of_the_golden_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ring");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4, "the golden cases are in {}", folder.display());
    for file in files {
        let written = std::fs::read_to_string(&file).unwrap();
        let now = run_golden(&written);
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&file, now).unwrap();
        } else {
            assert_eq!(now, written, "{} (REWRITE=1 accepts)", file.display());
        }
    }
}

fn run_golden(file: &str) -> String {
    let mut out = String::new();
    let mut before: Option<Ring> = None;
    for case in file.split("\n\n").map(str::trim).filter(|case| !case.is_empty()) {
        let input = case.split("\n----").next().unwrap();
        let mut lines = input.lines().filter(|line| !line.starts_with('#'));
        let command: Vec<&str> = lines.next().expect("a command").split_whitespace().collect();
        let number = |name: &str| -> usize {
            let found = command.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("{name}= in `{input}`")).parse().unwrap()
        };
        let settings = RingSettings { range_count: number("q") as u32, replication_factor: number("n") };
        let membership = Membership::parse(&lines.collect::<Vec<_>>().join(","), 10).unwrap();
        let previous = before.take().filter(|_| command[0] == "again");
        let ring = assign(previous.as_ref(), &membership, settings);
        writeln!(out, "{input}\n----\n{}", describe(&ring, previous.as_ref())).unwrap();
        before = Some(ring);
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

fn describe(ring: &Ring, previous: Option<&Ring>) -> String {
    let mut text = format!("epoch {} sets {}", ring.epoch().0, ring.replica_sets());
    if let Some(previous) = previous {
        write!(text, " moves {}", moves(previous, ring)).unwrap();
    }
    text.push('\n');
    for member in ring.membership().members() {
        let first = ring.ranges().filter(|range| ring.primaries(*range)[0] == member.id).count();
        let held = ring.ranges_of(&member.id).count();
        writeln!(text, "{member}: {held} ranges, first in {first}").unwrap();
    }
    for range in ring.ranges() {
        let row: Vec<&str> = ring.primaries(range).iter().map(NodeId::as_str).collect();
        writeln!(text, "{range} {}", row.join(" ")).unwrap();
    }
    text
}

// ---- what is promised, computed anew here and the slow way ----

/// How many vnodes of `after` were not in `before`.
fn moves(before: &Ring, after: &Ring) -> usize {
    let old: BTreeSet<_> = before.vnodes().collect();
    after.vnodes().filter(|vnode| !old.contains(vnode)).count()
}

fn by_zone<'a>(members: impl Iterator<Item = &'a Member>) -> BTreeMap<Option<&'a str>, usize> {
    let mut counts = BTreeMap::new();
    members.for_each(|member| *counts.entry(member.zone.as_deref()).or_default() += 1);
    counts
}

/// Fair shares by bisection instead of by groups: the factor that, applied to all weights and bounded by Q for a
/// member and by its zone's bounds for a zone, gives Q·N in sum.
fn fair_shares(
    membership: &Membership,
    q: f64,
    zone_bounds: &BTreeMap<Option<&str>, (f64, f64)>,
    n: f64,
) -> Vec<f64> {
    let members = membership.members();
    let zone_sum = |zone: &Option<&str>, factor: f64| -> f64 {
        let of_zone = members.iter().filter(|member| member.zone.as_deref() == *zone);
        of_zone.map(|member| (f64::from(member.weight) * factor).min(q)).sum()
    };
    let bisect = |sum: &dyn Fn(f64) -> f64, wanted: f64| -> f64 {
        let (mut low, mut high) = (0.0, 2.0 * q);
        for _ in 0..200 {
            let middle = f64::midpoint(low, high);
            if sum(middle) < wanted { low = middle } else { high = middle }
        }
        high
    };
    let whole = |factor: f64| -> f64 {
        zone_bounds.iter().map(|(zone, (min, max))| zone_sum(zone, factor).clamp(min * q, max * q)).sum()
    };
    let factor = bisect(&whole, q * n - 1e-6);
    let zone_factor: BTreeMap<_, f64> = zone_bounds
        .iter()
        .map(|(zone, (min, max))| {
            let wanted = zone_sum(zone, factor).clamp(min * q, max * q);
            (*zone, bisect(&|factor| zone_sum(zone, factor), wanted - 1e-6))
        })
        .collect();
    let share = |member: &Member| f64::from(member.weight) * zone_factor[&member.zone.as_deref()];
    members.iter().map(|member| share(member).min(q)).collect()
}

/// The least and most replicas of one range a zone may have, when N are poured into the zones evenly.
fn zone_bounds(membership: &Membership, n: usize) -> BTreeMap<Option<&str>, (f64, f64)> {
    let sizes = by_zone(membership.members().iter());
    let mut poured: BTreeMap<_, usize> = sizes.keys().map(|zone| (*zone, 0)).collect();
    let mut left = n;
    loop {
        let open: Vec<_> =
            sizes.iter().filter(|(zone, size)| poured[*zone] < **size).map(|(zone, _)| *zone).collect();
        if left == 0 || open.len() > left {
            let level = |zone: &Option<&str>, more: usize| (poured[zone] + more).min(sizes[zone]) as f64;
            let more = usize::from(left > 0);
            return sizes.keys().map(|zone| (*zone, (poured[zone] as f64, level(zone, more)))).collect();
        }
        left -= open.len();
        open.into_iter().for_each(|zone| *poured.get_mut(&zone).unwrap() += 1);
    }
}

/// A fair share, rounded down and up. What bisection is off by is far less than what any share lacks of a whole one.
fn rounded(share: f64) -> (usize, usize) {
    const BISECTION_ERROR_MAX: f64 = 1e-5;
    ((share + BISECTION_ERROR_MAX).floor() as usize, (share - BISECTION_ERROR_MAX).ceil() as usize)
}

/// Checks every promise that needs no ring before; returns the fair shares, rounded down and up.
fn check(ring: &Ring) -> Vec<(usize, usize)> {
    let membership = ring.membership();
    let n = ring.settings().replication_factor.min(membership.members().len());
    let bounds = zone_bounds(membership, n);
    for range in ring.ranges() {
        let row = ring.primaries(range);
        assert_eq!(row.iter().collect::<BTreeSet<_>>().len(), n, "range {range}: {row:?}");
        let zones = by_zone(row.iter().map(|node| membership.get(node).expect("a member")));
        for (zone, (min, max)) in &bounds {
            let here = *zones.get(zone).unwrap_or(&0) as f64;
            assert!((*min..=*max).contains(&here), "range {range}: {here} in {zone:?}, not {min} to {max}");
        }
    }
    let shares = fair_shares(membership, f64::from(ring.range_count()), &bounds, n as f64);
    for (member, share) in membership.members().iter().zip(&shares) {
        let (down, up) = rounded(*share);
        let held = ring.ranges_of(&member.id).count();
        assert!(down <= held && held <= up, "{member} holds {held}, its share is {share}");
        let first = ring.ranges().filter(|range| ring.primaries(*range)[0] == member.id).count();
        let in_n_rows = |count: usize| count / n == first || count.div_ceil(n) == first;
        assert!(in_n_rows(held), "{member} is first in {first} of {held} ranges, N = {n}");
    }
    shares.into_iter().map(rounded).collect()
}

/// Checks that no ring with these shares would move fewer vnodes, by the textbook's criterion: a flow is of least cost
/// if no circle of changes to it has a negative cost. Every row is one for itself here.
///
/// pool ─ share ─ member ─ 1, costs a move unless it was there ─ (zone, range) ─ zone bounds ─ range
fn check_moves_are_the_fewest(before: &Ring, after: &Ring, shares: &[(usize, usize)]) {
    let (members, q) = (after.membership().members(), after.range_count() as usize);
    let zones: Vec<_> = zone_bounds(after.membership(), after.replication_factor()).into_iter().collect();
    let zone_of: Vec<usize> = members
        .iter()
        .map(|member| zones.iter().position(|(zone, _)| *zone == member.zone.as_deref()).unwrap())
        .collect();
    let pool = members.len();
    let zone_at = |zone: usize, range: usize| pool + 1 + zone * q + range;
    let range_at = |range: usize| pool + 1 + zones.len() * q + range;

    // Every unit more or less that an edge could carry: from, to, moves.
    let mut changes: Vec<(usize, usize, i64)> = Vec::new();
    for (member, (down, up)) in shares.iter().enumerate() {
        let held = after.ranges_of(&members[member].id).count();
        changes.extend((held < *up).then_some((pool, member, 0)));
        changes.extend((held > *down).then_some((member, pool, 0)));
    }
    for range in after.ranges() {
        let at = usize::from(range.0);
        let mut in_zone = vec![0.0; zones.len()];
        for (member, zone) in zone_of.iter().enumerate() {
            let node = &members[member].id;
            let is_new = i64::from(!before.primaries(range).contains(node));
            if after.primaries(range).contains(node) {
                in_zone[*zone] += 1.0;
                changes.push((zone_at(*zone, at), member, -is_new));
            } else {
                changes.push((member, zone_at(*zone, at), is_new));
            }
        }
        for (zone, (_, (min, max))) in zones.iter().enumerate() {
            changes.extend((in_zone[zone] < *max).then_some((zone_at(zone, at), range_at(at), 0)));
            changes.extend((in_zone[zone] > *min).then_some((range_at(at), zone_at(zone, at), 0)));
        }
    }
    // Bellman and Ford's way. Only a member's leaving a row saves a move, so that a path which meets nobody twice saves
    // at most one a member; one that saves more has gone round a circle.
    let mut cost = vec![0; range_at(q)];
    let mut fell = true;
    while fell {
        fell = false;
        for (from, to, moves_more) in &changes {
            if cost[*from] + moves_more < cost[*to] {
                cost[*to] = cost[*from] + moves_more;
                fell = true;
                assert!(cost[*to] >= -(pool as i64), "{} moves, fewer would do", moves(before, after));
            }
        }
    }
}

fn check_change(before: &Ring, after: &Ring) {
    check_moves_are_the_fewest(before, after, &check(after));
}

// ---- random clusters ----

#[derive(Debug, Clone)]
struct Cluster {
    members: Vec<(u32, u32)>,
    zone_count: u32,
    range_count: u32,
    replication_factor: usize,
}

impl Cluster {
    fn member(&self, index: usize) -> Member {
        let (weight, zone) = self.members[index];
        Member {
            id: NodeId::from_canonical(&format!("node-{index:03}:8081")),
            weight,
            zone: (self.zone_count > 0).then(|| format!("zone-{}", zone % self.zone_count)),
        }
    }

    fn membership(&self, without: impl Fn(usize) -> bool) -> Membership {
        let here = (0..self.members.len()).filter(|index| !without(*index));
        Membership::new(here.map(|index| self.member(index)).collect())
    }

    fn settings(&self) -> RingSettings {
        RingSettings { range_count: self.range_count, replication_factor: self.replication_factor }
    }
}

fn clusters(size_max: usize) -> impl Strategy<Value = Cluster> {
    let weight = prop_oneof![3 => Just(10u32), 1 => 1u32..40];
    let even = proptest::collection::vec((Just(10u32), 0u32..50), 1..=size_max);
    let uneven = proptest::collection::vec((weight, 0u32..50), 1..=size_max);
    (prop_oneof![even, uneven], prop_oneof![Just(0u32), 1u32..8], 0u32..=10, 1usize..=5).prop_map(
        |(members, zone_count, range_bits, replication_factor)| Cluster {
            members,
            zone_count,
            range_count: 1 << range_bits,
            replication_factor,
        },
    )
}

/// `PROPTEST_RNG_SEED=n` runs the same clusters again.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_new_ring_keeps_every_promise(cluster in clusters(200)) {
        let membership = cluster.membership(|_| false);
        let ring = assign(None, &membership, cluster.settings());
        check(&ring);
        prop_assert_eq!(&ring, &assign(None, &membership, cluster.settings()), "the same again");
        let most_sets = membership.members().len() + ring.replication_factor();
        prop_assert!(ring.replica_sets() <= most_sets, "{} sets, {most_sets} are enough", ring.replica_sets());
    }

    #[test]
    fn joining_moves_little(cluster in clusters(200), joining in 1usize..4) {
        let first = cluster.members.len().saturating_sub(joining).max(1);
        let before = assign(None, &cluster.membership(|index| index >= first), cluster.settings());
        let after = assign(Some(&before), &cluster.membership(|_| false), cluster.settings());
        check_change(&before, &after);
    }

    #[test]
    fn leaving_moves_little(cluster in clusters(200), leaving in proptest::collection::vec(0usize..200, 1..4)) {
        let before = assign(None, &cluster.membership(|_| false), cluster.settings());
        let gone = |index: usize| leaving.iter().any(|one| one % cluster.members.len() == index);
        let left = cluster.membership(gone);
        prop_assume!(!left.members().is_empty());
        check_change(&before, &assign(Some(&before), &left, cluster.settings()));
    }

    #[test]
    fn a_long_life_of_joins_and_leaves_keeps_every_promise(cluster in clusters(60), seeds in proptest::collection::vec(0usize..60, 1..12)) {
        let mut present: BTreeSet<usize> = (0..cluster.members.len().div_ceil(2)).collect();
        let mut ring = assign(None, &cluster.membership(|index| !present.contains(&index)), cluster.settings());
        for seed in seeds {
            let index = seed % cluster.members.len();
            if !present.remove(&index) || present.is_empty() {
                present.insert(index);
            }
            let next = assign(Some(&ring), &cluster.membership(|index| !present.contains(&index)), cluster.settings());
            check_change(&ring, &next);
            ring = next;
        }
    }

    #[test]
    fn other_weights_move_little(cluster in clusters(80), changed in 0usize..80, weight in 1u32..40) {
        let before = assign(None, &cluster.membership(|_| false), cluster.settings());
        let mut other = cluster.clone();
        let index = changed % other.members.len();
        other.members[index].0 = weight;
        check_change(&before, &assign(Some(&before), &other.membership(|_| false), other.settings()));
    }

    #[test]
    fn other_zones_or_another_n_move_little(cluster in clusters(80), zone_count in 0u32..8, n in 1usize..=5) {
        let before = assign(None, &cluster.membership(|_| false), cluster.settings());
        let other = Cluster { zone_count, replication_factor: n, ..cluster };
        check_change(&before, &assign(Some(&before), &other.membership(|_| false), other.settings()));
    }
}

#[test]
fn an_unchanged_membership_moves_nothing() {
    let membership = Membership::parse("a:1,b:1;vnodes=3,c:1;zone=x,d:1;zone=y,e:1;zone=y", 10).unwrap();
    let settings = RingSettings { range_count: 256, replication_factor: 3 };
    let before = assign(None, &membership, settings);
    assert_eq!(moves(&before, &assign(Some(&before), &membership, settings)), 0);
}

#[test]
fn two_hundred_nodes_on_sixteen_thousand_ranges_come_and_go() {
    let members: Vec<(u32, u32)> = (0..200).map(|i| (if i % 7 == 0 { 20 } else { 10 }, i)).collect();
    let cluster = Cluster { members, zone_count: 5, range_count: 16_384, replication_factor: 3 };
    let whole = assign(None, &cluster.membership(|_| false), cluster.settings());
    check(&whole);
    let fewer = assign(Some(&whole), &cluster.membership(|index| index % 50 == 3), cluster.settings());
    check_change(&whole, &fewer);
    check_change(&fewer, &assign(Some(&fewer), &cluster.membership(|_| false), cluster.settings()));
}
