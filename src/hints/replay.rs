//! `HintReplayer`: delivers hints once their target is back.
//!
//! ```text
//!            target alive, hints waiting
//!  wait ─────────────────────────────────> walk: page ─> send ─> acknowledged ─> delete ─┐
//!    ^                                       ^    └ refused or unanswered: back off      │
//!    └────────── nothing left ───────────────┴───────────────────────────────────────────┘
//! ```
//!
//! One loop a target and one batch in flight, so that a node that comes back to a heap of hints is not buried
//! by them: after each batch the loop rests for as long as the target took to answer, and longer when it
//! refuses. Only what was acknowledged is deleted; a batch whose answer was lost is sent again, which changes
//! nothing at the target.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{Hint, HintStore};
use crate::env::{Lane, Pool, Tasks};
use crate::rpc::BoxFuture;
use crate::types::{Key, NodeId, Record};
use crate::util::shutdown::ShutdownListener;
use crate::util::ticker::Ticks;

/// Hints a batch, at most.
const ROWS_MAX: usize = 256;
/// Bytes of hints a batch, at most (one hint may exceed it alone).
const BYTES_MAX: usize = 512 << 10;
/// A hint for a target that is alive waits this long: others may follow, and what failed a moment ago may not be over.
const GATHER: Duration = Duration::from_millis(200);
/// The first rest after a failure, doubled with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest rest, so that replay starts within a second of the target's return.
const BACKOFF_MAX: Duration = Duration::from_millis(800);
/// How often a loop looks for work that no signal told it of.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How a replayer knows and reaches its targets. Implemented by `replication`.
pub trait Delivery: Send + Sync + fmt::Debug {
    /// Whether the target is believed to answer.
    fn is_alive(&self, target: &NodeId) -> bool;
    /// Ticks whenever that changes for any target.
    fn liveness_changes(&self) -> Ticks;
    /// Sends records as [`crate::rpc::WriteOrigin::Hint`] and waits for what becomes of them.
    fn send(&self, target: &NodeId, items: Vec<(Key, Record)>) -> BoxFuture<Outcome>;
}

/// Starts the loops that deliver hints.
#[derive(Debug, Clone)]
pub struct HintReplayer {
    store: HintStore,
    delivery: Arc<dyn Delivery>,
    pool: Pool,
}

/// What became of a walk over a target's hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// Nothing is left.
    Done,
    /// The target did not take a batch.
    Refused,
}

/// What a target's answer means for the batch it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is durable there.
    Delivered,
    /// It will never take (one of) them.
    Unwanted,
    /// It may take them later, others now.
    NotYet,
    /// It takes nothing now.
    Later,
}

impl HintReplayer {
    /// Prepares to deliver what `store` holds.
    pub fn new(store: HintStore, delivery: Arc<dyn Delivery>, pool: Pool) -> Self {
        Self { store, delivery, pool }
    }

    /// Starts a loop for each target; they end at `stop`.
    pub fn start(
        &self,
        tasks: &Tasks,
        targets: impl IntoIterator<Item = NodeId>,
        stop: &ShutdownListener,
    ) -> Vec<JoinHandle<()>> {
        let loops = targets.into_iter().map(|target| tasks.spawn(self.clone().run(target, stop.clone())));
        loops.collect()
    }

    async fn run(self, target: NodeId, mut stop: ShutdownListener) {
        tokio::select! {
            biased;
            () = stop.signalled() => {}
            () = self.deliver_for_ever(&target) => {}
        }
    }

    async fn deliver_for_ever(&self, target: &NodeId) {
        let mut liveness = self.delivery.liveness_changes();
        let mut stored = self.store.subscribe();
        let mut backoff = BACKOFF_MIN;
        loop {
            let was_alive = self.delivery.is_alive(target);
            self.store.tick();
            if !was_alive || !self.store.is_waiting(target) {
                let _ = timeout(LOOK_AGAIN, changed(&mut liveness, &mut stored)).await;
                if was_alive && self.store.is_waiting(target) {
                    sleep(GATHER).await;
                }
                continue;
            }
            stored.mark_unchanged();
            backoff = match self.walk(target).await {
                Walk::Done => BACKOFF_MIN,
                Walk::Refused => {
                    sleep(backoff).await;
                    (backoff * 2).min(BACKOFF_MAX)
                }
            };
            if self.store.is_waiting(target) {
                sleep(BACKOFF_MIN).await; // never a loop without a rest, whatever the counts say
            }
        }
    }

    /// Delivers page after page until nothing is left or the target will not have it.
    async fn walk(&self, target: &NodeId) -> Walk {
        let quiet = self.store.quiet(target);
        let mut after: Option<Key> = None;
        let (mut rows_max, mut kept) = (ROWS_MAX, false);
        loop {
            let Some(page) = self.page(target, after.clone(), rows_max).await else { return Walk::Refused };
            let Some(last) = page.last().map(|hint| hint.key.clone()) else { break };
            let (old, page): (Vec<_>, Vec<_>) =
                page.into_iter().partition(|hint| self.store.is_too_old(hint));
            if !old.is_empty()
                && self.store.discard(target, &old, "they are older than HINTS_MAX_AGE").await.is_err()
            {
                return Walk::Refused;
            }
            if page.is_empty() {
                after = Some(last);
                continue;
            }
            let begun = Instant::now();
            let items = page.iter().map(|hint| (hint.key.clone(), hint.record.clone())).collect();
            let outcome = self.delivery.send(target, items).await;
            let took = begun.elapsed();
            let deleted = match outcome {
                Outcome::Delivered => self.store.delivered(target, &page).await,
                Outcome::Later => return Walk::Refused,
                Outcome::Unwanted | Outcome::NotYet if page.len() > 1 => {
                    rows_max = page.len() / 2; // find out which ones, and let the others go in large batches again
                    continue;
                }
                Outcome::Unwanted => self.store.discard(target, &page, "it does not want them").await,
                Outcome::NotYet => {
                    kept = true;
                    Ok(())
                }
            };
            if deleted.is_err() {
                return Walk::Refused; // our own disk: they will be sent again
            }
            after = Some(last);
            rows_max = (rows_max * 2).min(ROWS_MAX);
            sleep(took).await; // a slow target gets half of the time for others
        }
        if kept {
            return Walk::Refused;
        }
        self.store.settle(target, quiet);
        Walk::Done
    }

    async fn page(&self, target: &NodeId, after: Option<Key>, rows_max: usize) -> Option<Vec<Hint>> {
        let (store, id) = (self.store.clone(), target.clone());
        let read = move || store.page(&id, after.as_ref(), rows_max, BYTES_MAX);
        match self.pool.run(Lane::Read, read).await {
            Ok(page) => Some(page),
            Err(error) => {
                tracing::warn!(%target, %error, "hints not readable");
                None
            }
        }
    }
}

/// Waits until either ticks.
async fn changed(liveness: &mut Ticks, stored: &mut Ticks) {
    tokio::select! {
        biased;
        () = liveness.changed() => {}
        () = stored.changed() => {}
    }
}
