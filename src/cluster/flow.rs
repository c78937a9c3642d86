//! Least-cost flow: brings a network into balance, at the least cost, from where it stands.
//!
//! ```text
//! excess 2 ── 0..=2 ──> 0 ── 0..=2 ──────────> lacks 1        one unit goes each way; with 2 lacking above,
//!                       └─── 0..=2, cost 1 ──> lacks 1        and none below, none would pay
//! ```
//!
//! An edge carries whole units, at least and at most so many, at a cost each. A node's *excess* is what it brings or
//! receives beyond what it sends on; below 0, it lacks. The start may leave excess anywhere, but no other flow with the
//! same excess may be cheaper: edges that cost something start with their least.
//!
//! From there excess goes to nodes that lack, over the cheapest ways; over edges in reverse it takes back what they
//! carry. Every node has a *price* of a unit, and a way goes only over edges that cost just what the unit gains in price.
//! When no such way is left, the prices of all nodes out of reach rise until one more edge is open. No edge ever costs
//! less than a unit gains over it: that is why what is carried in the end is of least cost.
//!
//! Sources: Ford and Fulkerson's primal-dual method, with Dinic's levels for the pushing; both are in Ahuja, Magnanti
//! and Orlin, "Network Flows" (1993), sections 9.8 and 7.5.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// Nodes with excess, edges with bounds and costs, and what the edges carry.
#[derive(Debug, Default)]
pub struct Network {
    edges: Vec<Edge>,
    excess: Vec<i64>,
}

/// `from` sends `flow` units to `to`.
#[derive(Debug, Clone, Copy)]
struct Edge {
    from: u32,
    to: u32,
    least: u32,
    most: u32,
    flow: u32,
    cost: u32,
}

/// What [`Network::balance`] knows beside the network; all by node.
#[derive(Debug)]
struct Search {
    /// The edges that start or end there.
    edges: Vec<Vec<u32>>,
    price: Vec<i64>,
    /// How many open edges away from the nearest excess; `None` out of reach.
    level: Vec<Option<u32>>,
    /// How many of its edges are known to lead nowhere at these levels.
    tried: Vec<usize>,
}

impl Network {
    /// Adds a node that brings `excess` units, or lacks them. Returns its number.
    pub fn node(&mut self, excess: i64) -> usize {
        self.excess.push(excess);
        self.excess.len() - 1
    }

    /// Adds an edge that carries `flow` units to begin with. Returns its number.
    ///
    /// # Panics
    /// If `flow` is not within `bounds`, or above their least at a cost.
    pub fn edge(
        &mut self,
        (from, to): (usize, usize),
        bounds: RangeInclusive<u32>,
        flow: u32,
        cost: u32,
    ) -> usize {
        let (least, most) = bounds.into_inner();
        assert!(least <= flow && flow <= most, "an edge of {least} to {most} cannot carry {flow}");
        assert!(cost == 0 || flow == least, "what costs something starts at its least");
        self.excess[from] -= i64::from(flow);
        self.excess[to] += i64::from(flow);
        self.edges.push(Edge { from: from as u32, to: to as u32, least, most, flow, cost });
        self.edges.len() - 1
    }

    /// Leaves every node without excess, at the least cost. Returns what each edge carries, or `None` if that cannot be.
    pub fn balance(mut self) -> Option<Vec<u32>> {
        let mut search = Search::new(&self);
        loop {
            search.find_levels(&self);
            if self.excess.iter().zip(&search.level).any(|(excess, level)| *excess < 0 && level.is_some()) {
                for node in 0..self.excess.len() {
                    while self.excess[node] > 0 {
                        let excess = self.excess[node];
                        let pushed = search.push(&mut self, node, excess);
                        if pushed == 0 {
                            break;
                        }
                        self.excess[node] -= pushed;
                    }
                }
            } else if !search.raise_prices(&self) {
                let balanced = self.excess.iter().all(|excess| *excess == 0);
                return balanced.then(|| self.edges.iter().map(|edge| edge.flow).collect());
            }
        }
    }
}

impl Search {
    fn new(network: &Network) -> Self {
        let node_count = network.excess.len();
        let mut edges = vec![Vec::new(); node_count];
        for (number, edge) in network.edges.iter().enumerate() {
            edges[edge.from as usize].push(number as u32);
            edges[edge.to as usize].push(number as u32);
        }
        Self { edges, price: vec![0; node_count], level: vec![None; node_count], tried: vec![0; node_count] }
    }

    /// From `node` over `edge`, in its direction or in reverse: where to, how many more units can go, and by how much
    /// the cost exceeds what a unit gains.
    fn over(&self, edge: &Edge, node: usize) -> (usize, i64, i64) {
        let (from, to) = (edge.from as usize, edge.to as usize);
        let dearer = i64::from(edge.cost) + self.price[from] - self.price[to];
        if from == node {
            (to, i64::from(edge.most - edge.flow), dearer)
        } else {
            (from, i64::from(edge.flow - edge.least), -dearer)
        }
    }

    fn find_levels(&mut self, network: &Network) {
        self.tried.fill(0);
        let has_excess = |excess: &i64| (*excess > 0).then_some(0);
        self.level = network.excess.iter().map(has_excess).collect();
        let mut queue: VecDeque<usize> =
            (0..self.level.len()).filter(|node| self.level[*node].is_some()).collect();
        while let Some(node) = queue.pop_front() {
            let further = self.level[node].map(|level| level + 1);
            for edge in &self.edges[node] {
                let (next, room, dearer) = self.over(&network.edges[*edge as usize], node);
                if room > 0 && dearer == 0 && self.level[next].is_none() {
                    self.level[next] = further;
                    queue.push_back(next);
                }
            }
        }
    }

    /// Sends up to `units` from `node` to one that lacks them, a level with every step. Returns how many.
    ///
    /// Calls itself once a level. The shortest ways meet no node twice; in placement every few steps are a member's, so
    /// levels are few.
    fn push(&mut self, network: &mut Network, node: usize, units: i64) -> i64 {
        let lacking = -network.excess[node];
        if lacking > 0 {
            let taken = units.min(lacking);
            network.excess[node] += taken;
            return taken;
        }
        while let Some(number) = self.edges[node].get(self.tried[node]).map(|edge| *edge as usize) {
            let (next, room, dearer) = self.over(&network.edges[number], node);
            if room > 0 && dearer == 0 && self.level[next] == self.level[node].map(|level| level + 1) {
                let pushed = self.push(network, next, units.min(room));
                if pushed > 0 {
                    let edge = &mut network.edges[number];
                    let forwards = edge.from as usize == node;
                    edge.flow = if forwards { edge.flow + pushed as u32 } else { edge.flow - pushed as u32 };
                    return pushed;
                }
            }
            self.tried[node] += 1;
        }
        0
    }

    /// Raises the prices of all nodes out of reach until an edge leads to one of them. Returns whether one can.
    fn raise_prices(&mut self, network: &Network) -> bool {
        let reached = |node: &usize| self.level[*node].is_some();
        let gap = (0..self.level.len())
            .filter(reached)
            .flat_map(|node| self.edges[node].iter().map(move |edge| (node, *edge as usize)))
            .map(|(node, edge)| self.over(&network.edges[edge], node))
            .filter(|(next, room, _)| *room > 0 && !reached(next))
            .map(|(_, _, dearer)| dearer)
            .min();
        let Some(gap) = gap else { return false };
        for (price, level) in self.price.iter_mut().zip(&self.level) {
            if level.is_none() {
                *price += gap;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    struct Case {
        ends: (usize, usize),
        least: u32,
        most: u32,
        start: u32,
        cost: u32,
        /// What it carries in a flow that is in balance.
        balanced: u32,
    }

    const NODES: usize = 4;

    fn case() -> impl Strategy<Value = Case> {
        (0..NODES, 1..NODES, 0u32..2, 0u32..3, 0u32..3, 0u32..3, 0u32..3).prop_map(
            |(from, step, least, room, start, balanced, cost)| Case {
                ends: (from, (from + step) % NODES),
                least,
                most: least + room,
                start: if cost == 0 { least + start.min(room) } else { least },
                cost,
                balanced: least + balanced.min(room),
            },
        )
    }

    /// What every node sends beyond what it receives.
    fn sent(cases: &[Case], flow: &[u32]) -> [i64; NODES] {
        let mut sent = [0; NODES];
        for (case, flow) in cases.iter().zip(flow) {
            sent[case.ends.0] += i64::from(*flow);
            sent[case.ends.1] -= i64::from(*flow);
        }
        sent
    }

    fn cost(cases: &[Case], flow: &[u32]) -> u32 {
        cases.iter().zip(flow).map(|(case, flow)| case.cost * flow).sum()
    }

    fn every_flow(cases: &[Case]) -> Vec<Vec<u32>> {
        cases.iter().fold(vec![Vec::new()], |flows, case| {
            let longer =
                |flow: Vec<u32>| (case.least..=case.most).map(move |units| [&flow[..], &[units]].concat());
            flows.into_iter().flat_map(longer).collect()
        })
    }

    proptest! {
        #[test]
        fn no_flow_in_balance_is_cheaper(cases in proptest::collection::vec(case(), 0..7)) {
            let brought = sent(&cases, &cases.iter().map(|case| case.balanced).collect::<Vec<_>>());
            let mut network = Network::default();
            for excess in brought {
                network.node(excess);
            }
            for case in &cases {
                network.edge(case.ends, case.least..=case.most, case.start, case.cost);
            }
            let flow = network.balance().expect("one flow is in balance");
            let all = every_flow(&cases);
            prop_assert!(all.contains(&flow), "{flow:?} breaks bounds");
            prop_assert_eq!(sent(&cases, &flow), brought);
            let least = all.iter().filter(|flow| sent(&cases, flow) == brought).map(|flow| cost(&cases, flow)).min();
            prop_assert_eq!(Some(cost(&cases, &flow)), least);
        }
    }

    #[test]
    fn what_cannot_reach_a_node_that_lacks_it_is_out_of_balance() {
        let of_two_units = |edges: usize| {
            let mut network = Network::default();
            let (from, to) = (network.node(2), network.node(-2));
            for _ in 0..edges {
                network.edge((from, to), 0..=1, 0, 1);
            }
            network.balance()
        };
        assert_eq!(of_two_units(1), None);
        assert_eq!(of_two_units(2), Some(vec![1, 1]));
    }
}
