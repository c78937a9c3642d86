//! Problems: why connections with a peer are refused, told once and not five times a second.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::NodeId;

/// The same line about the same peer is logged again after this.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Another line about the same peer is logged after this at the soonest.
const SAY_APART: Duration = Duration::from_secs(1);
/// Lines remembered of a peer.
const LINES_MAX: usize = 4;

/// Who opened the connection that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// We did.
    Outgoing,
    /// The peer did.
    Incoming,
}

/// What stands between this node and its peers.
#[derive(Debug)]
pub(super) struct Problems {
    /// One entry a member, made at the start: strangers, who can call themselves anything, share one.
    members: Mutex<BTreeMap<NodeId, Problem>>,
    strangers: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Problem {
    outgoing: Option<String>,
    incoming: Option<String>,
    said: Said,
}

/// What was logged of late.
#[derive(Debug, Default)]
struct Said {
    lines: Vec<(String, Instant)>,
}

impl Problems {
    pub fn new(members: impl Iterator<Item = NodeId>) -> Self {
        let members = members.map(|node| (node, Problem::default())).collect();
        Self { members: Mutex::new(members), strangers: Mutex::default() }
    }

    /// Notes and logs why a connection is refused.
    pub fn set(&self, peer: &NodeId, direction: Direction, text: &str) {
        let say = match self.members.lock().get_mut(peer) {
            Some(problem) => {
                *problem.of(direction) = Some(text.to_owned());
                problem.said.is_news(text, Instant::now())
            }
            None => return self.say_of_stranger(peer, text),
        };
        if say {
            tracing::warn!(%peer, problem = text, "connection between nodes refused");
        }
    }

    /// Logs that somebody was refused whose name is not known or not proved.
    pub fn say_of_stranger(&self, who: &dyn std::fmt::Display, text: &str) {
        if self.strangers.lock().is_news(text, Instant::now()) {
            tracing::warn!(from = %who, problem = text, "connection refused");
        }
    }

    /// Nothing speaks against such connections any more.
    pub fn clear(&self, peer: &NodeId, direction: Direction) {
        if let Some(problem) = self.members.lock().get_mut(peer) {
            *problem.of(direction) = None;
        }
    }

    /// Why connections that we open are, or should be, refused.
    pub fn of(&self, peer: &NodeId) -> Option<String> {
        let members = self.members.lock();
        let problem = members.get(peer)?;
        problem.outgoing.clone().or_else(|| problem.incoming.clone())
    }

    /// Why the connections that the peer opens are refused.
    pub fn incoming(&self, peer: &NodeId) -> Option<String> {
        self.members.lock().get(peer)?.incoming.clone()
    }
}

impl Problem {
    fn of(&mut self, direction: Direction) -> &mut Option<String> {
        match direction {
            Direction::Outgoing => &mut self.outgoing,
            Direction::Incoming => &mut self.incoming,
        }
    }
}

impl Said {
    /// Whether a line is to be logged; if so it counts as logged now.
    fn is_news(&mut self, text: &str, now: Instant) -> bool {
        if let Some(at) = self.lines.iter().position(|(line, _)| line == text) {
            if now.duration_since(self.lines[at].1) < SAY_AGAIN_AFTER {
                return false;
            }
            self.lines.remove(at);
        } else if self.lines.last().is_some_and(|(_, last)| now.duration_since(*last) < SAY_APART) {
            return false;
        }
        if self.lines.len() == LINES_MAX {
            self.lines.remove(0);
        }
        self.lines.push((text.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_is_logged_once_a_minute_and_another_a_second_later() {
        let mut said = Said::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(said.is_news("a", at(0)));
        assert!(!said.is_news("a", at(200)));
        assert!(!said.is_news("b", at(400)));
        assert!(said.is_news("b", at(1000)));
        assert!(!said.is_news("a", at(59_000)));
        assert!(said.is_news("a", at(61_000)));
    }

    #[test]
    fn a_direction_is_cleared_by_itself() {
        let peer = NodeId::from_canonical("a:1");
        let problems = Problems::new([peer.clone()].into_iter());
        problems.set(&peer, Direction::Incoming, "in");
        problems.set(&peer, Direction::Outgoing, "out");
        assert_eq!(problems.of(&peer).as_deref(), Some("out"));
        problems.clear(&peer, Direction::Outgoing);
        assert_eq!(problems.of(&peer).as_deref(), Some("in"));
        problems.clear(&peer, Direction::Incoming);
        assert_eq!(problems.of(&peer), None);
    }
}
