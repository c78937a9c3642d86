//! Placement: which nodes hold which ranges, from nothing or from the ring before with few moves.
//!
//! From nothing, members stand in a line (zone by zone), each as long as its target ([`super::share`]), and the line is
//! wrapped around the Q rows:
//!
//! ```text
//! line      a a a a a b | b b b b c c | c c c d d d       Q = 6, N = 3: targets a 5, b 5, c 5, d 3
//! row       0 1 2 3 4 5   0 1 2 3 4 5   0 1 2 3 4 5
//!           row 0 = a b c    row 3 = a b d    row 5 = b c d
//! ```
//!
//! No target exceeds Q, so nobody meets itself in a row; and a zone whose members take T vnodes in sum has ⌊T/Q⌋ or
//! ⌈T/Q⌉ replicas of every range, which is within its bounds. A new replica set starts only where a member ends, so
//! there are fewer sets than members plus N. That is McNaughton's wrap-around rule (1959). Rows are numbered by bit
//! reversal: neighbouring ranges have different nodes, so a dead node's fallbacks are many.
//!
//! From a ring before, rows that were alike are one *kind*, and a least-cost flow ([`super::flow`]) says how many rows
//! of each kind each member gets:
//!
//! ```text
//! pool ── fair share, ── member ── up to every row of the kind, ── kind, ── zone bounds ── kind
//!         down or up               1 a row where it is new         zone     times rows     lacks N times rows
//! ```
//!
//! It starts from the rows as they were, which cost nothing but are out of balance: kinds lack those who have left, and
//! those who have joined have all their ranges in excess. Then each kind wraps its own line around its own rows. From nothing, all rows are of one
//! kind, so there is only this one way.
//!
//! Promises, all tested: every row has N distinct members; zones are apart when there are N or more, else spread as
//! evenly as they allow; every member holds its fair share rounded down or up, and is first in an Nth of its rows,
//! rounded down or up; from a ring before, no placement that is as even moves fewer vnodes; the same input gives the
//! same ring everywhere.

use std::collections::BTreeMap;

use super::flow::Network;
use super::share::{FairShares, Zones};
use super::{Membership, Ring, RingEpoch, RingSettings};
use crate::types::NodeId;

/// Makes a ring: from nothing, or from `previous` with the fewest moves. Deterministic.
///
/// A previous ring of another Q cannot be moved range by range and counts only for its epoch.
///
/// # Panics
/// If Q is no power of two from 1 to 65,536.
pub fn assign(previous: Option<&Ring>, membership: &Membership, settings: RingSettings) -> Ring {
    let range_count = settings.range_count;
    assert!(
        range_count.is_power_of_two() && range_count <= RingSettings::RANGE_COUNT_MAX,
        "Q = {range_count} is no power of two from 1 to 65,536"
    );
    let nodes = membership.members();
    let replication_factor = settings.replication_factor.min(nodes.len());
    let kinds = kinds(previous.filter(|ring| ring.range_count() == range_count), membership, range_count);
    let zones = Zones::new(nodes, replication_factor);
    let shares = FairShares::new(nodes, &zones, range_count, replication_factor);

    let mut rows = vec![Vec::with_capacity(replication_factor); range_count as usize];
    for (kind, parts) in kinds.iter().zip(parts(&kinds, &zones, &shares, replication_factor)) {
        wrap(kind, &parts, &zones, &mut rows);
    }
    put_in_order(&mut rows, nodes.len());
    let rows = rows.iter().flatten().map(|member| nodes[*member].id.clone()).collect();
    let epoch = RingEpoch(previous.map_or(1, |ring| ring.epoch().0 + 1));
    Ring::from_rows(epoch, membership.clone(), settings, replication_factor, rows)
}

/// Rows that had the same members.
struct Kind {
    /// Those who are still here, by index.
    before: Vec<usize>,
    /// By bit reversal: neighbours here are far apart in the ring.
    rows: Vec<usize>,
}

fn kinds(previous: Option<&Ring>, membership: &Membership, range_count: u32) -> Vec<Kind> {
    let index_of = |node: &NodeId| membership.members().binary_search_by(|member| member.id.cmp(node)).ok();
    let mut before = vec![Vec::new(); range_count as usize];
    if let Some(ring) = previous {
        for (row, range) in before.iter_mut().zip(ring.ranges()) {
            *row = ring.primaries(range).iter().filter_map(index_of).collect();
            row.sort_unstable();
        }
    }
    let mut rows_of: BTreeMap<&[usize], Vec<usize>> = BTreeMap::new();
    for row in (0..range_count).map(|place| reverse_bits(place, range_count)) {
        rows_of.entry(&before[row]).or_default().push(row);
    }
    rows_of.into_iter().map(|(before, rows)| Kind { before: before.to_vec(), rows }).collect()
}

/// How many rows of each kind each member gets, so that all bounds are kept and the fewest vnodes move.
fn parts(kinds: &[Kind], zones: &Zones, shares: &FairShares, replication_factor: usize) -> Vec<Vec<u32>> {
    let member_count = zones.of_member.len();
    let mut held = vec![0; member_count];
    for kind in kinds {
        for member in &kind.before {
            held[*member] += kind.rows.len() as u64;
        }
    }
    let mut network = Network::default();
    let targets = shares.targets(zones, &held);
    let pool = network.node(targets.iter().sum::<u64>().cast_signed());
    let members: Vec<usize> = (0..member_count).map(|_| network.node(0)).collect();
    for (member, target) in targets.iter().enumerate() {
        let (least, most) = shares.shares[member].bounds().into_inner();
        network.edge((pool, members[member]), least as u32..=most as u32, *target as u32, 0);
    }
    // By kind: the edges that say how many of its rows a member gets.
    let mut edges = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let row_count = kind.rows.len() as u32;
        let whole = network.node(-i64::from(row_count) * replication_factor as i64);
        let mut standing = vec![0; zones.bounds.len()];
        for member in &kind.before {
            standing[zones.of_member[*member]] += row_count;
        }
        let in_zone: Vec<usize> = zones
            .bounds
            .iter()
            .zip(standing)
            .map(|(bounds, standing)| {
                let (least, most) = (bounds.min as u32 * row_count, bounds.max as u32 * row_count);
                let zone = network.node(0);
                network.edge((zone, whole), least..=most, standing.clamp(least, most), 0);
                zone
            })
            .collect();
        let gets = |member: usize| {
            let (start, cost) = if kind.before.contains(&member) { (row_count, 0) } else { (0, 1) };
            network.edge((members[member], in_zone[zones.of_member[member]]), 0..=row_count, start, cost)
        };
        edges.push((0..member_count).map(gets).collect::<Vec<usize>>());
    }
    let flow =
        network.balance().expect("the line of all targets, wrapped around all rows, is within all bounds");
    edges.iter().map(|edges| edges.iter().map(|edge| flow[*edge]).collect()).collect()
}

/// Wraps the line of a kind's members around its rows.
fn wrap(kind: &Kind, parts: &[u32], zones: &Zones, rows: &mut [Vec<usize>]) {
    let mut line: Vec<usize> = (0..parts.len()).collect();
    line.sort_by_key(|member| zones.of_member[*member]);
    let mut places = kind.rows.iter().cycle();
    for member in line {
        for row in places.by_ref().take(parts[member] as usize) {
            rows[*row].push(member);
        }
    }
}

/// Puts each row in an order so that every member stands first, second, … about as often as its part of all rows asks;
/// first, exactly so but for rounding.
fn put_in_order(rows: &mut [Vec<usize>], member_count: usize) {
    let mut held = vec![0u64; member_count];
    for member in rows.iter().flatten() {
        held[*member] += 1;
    }
    let mut stood = vec![vec![0u64; member_count]; rows[0].len()];
    for row in rows.iter_mut() {
        for place in 0..row.len() {
            // Whoever stood here least for its part; cross-multiplied, so that no rounding decides.
            let next = (place..row.len())
                .min_by(|a, b| {
                    let (a, b) = (row[*a], row[*b]);
                    (stood[place][a] * held[b]).cmp(&(stood[place][b] * held[a])).then(a.cmp(&b))
                })
                .expect("place is below the row's length");
            row.swap(place, next);
            stood[place][row[place]] += 1;
        }
    }
    balance_first_places(rows, &held);
}

/// Hands first places on within rows until every member has an Nth of its rows, rounded down or up. An Nth of every
/// vnode is such a flow but for the rounding, so there is a whole one too.
fn balance_first_places(rows: &mut [Vec<usize>], held: &[u64]) {
    let replicas = rows[0].len() as u64;
    if replicas == 0 {
        return; // nobody is a member
    }
    let mut first = vec![0; held.len()];
    for row in rows.iter() {
        first[row[0]] += 1;
    }
    let mut network = Network::default();
    let pool = network.node(-(rows.len() as i64));
    let members: Vec<usize> = (0..held.len()).map(|_| network.node(0)).collect();
    for ((member, held), first) in members.iter().zip(held).zip(first) {
        let bounds = (held / replicas) as u32..=held.div_ceil(replicas) as u32;
        let start = first.clamp(*bounds.start(), *bounds.end());
        network.edge((*member, pool), bounds, start, 0);
    }
    let edges: Vec<Vec<usize>> = rows
        .iter()
        .map(|row| {
            let whole = network.node(1);
            let stands_first = |place| u32::from(place == 0);
            (0..row.len())
                .map(|place| network.edge((whole, members[row[place]]), 0..=1, stands_first(place), 0))
                .collect()
        })
        .collect();
    let flow = network.balance().expect("an Nth of every vnode is within all bounds");
    for (row, edges) in rows.iter_mut().zip(edges) {
        if let Some(place) = edges.iter().position(|edge| flow[*edge] == 1) {
            row.swap(0, place);
        }
    }
}

/// The place whose number has the bits of `place` in reverse, among `range_count` (a power of two) places.
fn reverse_bits(place: u32, range_count: u32) -> usize {
    let reversed = u64::from(place).reverse_bits();
    reversed.checked_shr(u64::BITS - range_count.trailing_zeros()).unwrap_or(0) as usize
}
