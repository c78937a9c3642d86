//! How hints reach their targets: over the same peers as everything else.

use std::sync::Arc;

use crate::env::Mistake;
use crate::gossip::Liveness;
use crate::hints::{Delivery, Outcome};
use crate::replication::{Failure, Shared, write_to};
use crate::rpc::{BoxFuture, Refusal, WriteOrigin};
use crate::types::{Key, NodeId, Record};
use crate::util::ticker::Ticks;

/// Delivers hints for the node that `shared` belongs to.
#[derive(Debug)]
pub(super) struct PeerDelivery {
    shared: Arc<Shared>,
}

impl PeerDelivery {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone() }
    }
}

impl Delivery for PeerDelivery {
    fn is_alive(&self, target: &NodeId) -> bool {
        if self.shared.env.planted.has(Mistake::HintsNeverSent) {
            return false;
        }
        *target == self.shared.own || self.shared.detector.liveness(target) == Liveness::Alive
    }

    fn liveness_changes(&self) -> Ticks {
        self.shared.detector.subscribe()
    }

    fn send(&self, target: &NodeId, items: Vec<(Key, Record)>) -> BoxFuture<Outcome> {
        let (shared, target) = (self.shared.clone(), target.clone());
        Box::pin(async move {
            let planted = shared.env.planted;
            let items = if planted.has(Mistake::HintWithoutExpiry) { without_expiry(items) } else { items };
            match write_to(&shared, &target, WriteOrigin::Hint, items).await {
                Err(Failure::Refused(_)) if planted.has(Mistake::RefusedHintDropped) => Outcome::Delivered,
                Ok(_) => Outcome::Delivered,
                Err(Failure::Refused(Refusal::NotAReplica)) => Outcome::Unwanted,
                Err(Failure::Refused(Refusal::TooFarAhead { .. })) => Outcome::NotYet,
                Err(_) => Outcome::Later,
            }
        })
    }
}

/// Takes the time at which they end off values: only as a planted bug.
fn without_expiry(items: Vec<(Key, Record)>) -> Vec<(Key, Record)> {
    let strip = |(key, record): (Key, Record)| match record {
        Record::Value { timestamp, value } => (key, Record::value(timestamp, value.expiring(None))),
        other => (key, other),
    };
    items.into_iter().map(strip).collect()
}
