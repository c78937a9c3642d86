//! `WriteGroups`: the single writes of one turn of the runtime, written together.
//!
//! ```text
//!  put a ─┐ same replicas, W and mode, and all of them puts or all deletes
//!  put b ─┼──> open group ──the turn is over, or it is full──> WriteOp: one message a replica, one frame of its log
//!  put c ─┘        │
//!  put d, other ──> open group ──> WriteOp
//!
//!  what came of the operation ──each item's own timestamp, and whether *it* was overtaken──> a, b, c
//! ```
//!
//! Every item has its own timestamp and its own answer; they share messages, a sync and their fate, as they would have had by
//! going to the same disks at the same moment. A task, a timer and three messages for each would cost twice all else that a
//! write does. A write that comes alone is a group of one, and waits for nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::api::{WriteError, WriteReceipt};
use super::batch::How;
use super::quorum::QuorumMode;
use super::shared::{InflightPermit, Shared};
use super::write::{Met, WriteOp, torn_down};
use crate::cluster::{RangeId, ReplicaSetId};
use crate::rpc::GROUP_BYTES_MAX;
use crate::types::{Key, Record, Timestamp};

/// Items in a group, at most.
const ITEMS_MAX: usize = 256;

type Answer = Result<WriteReceipt, WriteError>;

/// What the writes of a group have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Common {
    replicas: ReplicaSetId,
    needed: usize,
    mode: QuorumMode,
    /// Deletes are apart from values: a replica that is short of space takes those alone.
    is_delete: bool,
}

/// Writes that will be one operation.
#[derive(Debug)]
struct Group {
    /// A range whose replicas all items have.
    range: RangeId,
    items: Vec<(Key, Record)>,
    answers: Vec<oneshot::Sender<Answer>>,
    /// The bytes of all items.
    permit: InflightPermit,
}

/// The groups that take further writes.
///
/// Invariant: each has a task that will take it away.
#[derive(Debug, Default)]
pub struct WriteGroups {
    open: Mutex<BTreeMap<Common, Group>>,
}

/// Writes one item that may be written: joins the group of this turn of the runtime, and waits for its outcome. Dropping the
/// future stops nothing.
pub(super) async fn write(
    shared: &Arc<Shared>,
    range: RangeId,
    How { needed, mode }: How,
    item: (Key, Record),
    permit: InflightPermit,
) -> Answer {
    let (answer, receiver) = oneshot::channel();
    let is_delete = item.1.is_tombstone();
    let common = Common { replicas: shared.ring.replica_set(range), needed, mode, is_delete };
    let (begins, full) = {
        let mut open = shared.write_groups.open.lock();
        match open.get_mut(&common) {
            Some(group)
                if group.items.len() < ITEMS_MAX
                    && group.permit.bytes() + permit.bytes() <= GROUP_BYTES_MAX =>
            {
                group.items.push(item);
                group.answers.push(answer);
                group.permit.take_over(permit);
                (false, None)
            }
            before => {
                let begins = before.is_none();
                let group = Group { range, items: vec![item], answers: vec![answer], permit };
                (begins, open.insert(common, group))
            }
        }
    };
    if begins {
        shared.env.tasks.spawn(close(shared.clone(), common));
    }
    if let Some(full) = full {
        shared.env.tasks.spawn(full.run(shared.clone(), common));
    }
    receiver.await.unwrap_or_else(|_| Err(torn_down()))
}

/// Writes the open group, once this turn of the runtime is over.
async fn close(shared: Arc<Shared>, common: Common) {
    tokio::task::yield_now().await;
    let group = shared.write_groups.open.lock().remove(&common);
    if let Some(group) = group {
        group.run(shared, common).await;
    }
}

impl Group {
    async fn run(self, shared: Arc<Shared>, Common { needed, mode, .. }: Common) {
        let Self { range, items, answers, permit } = self;
        let timestamps: Vec<_> = items.iter().map(|(_, record)| record.timestamp()).collect();
        let outcome = WriteOp { shared, range, items, needed, mode, _permit: permit }.start().await;
        for (place, (answer, timestamp)) in answers.into_iter().zip(timestamps).enumerate() {
            let own = match &outcome {
                Ok(Met { acks, overtaken }) => {
                    let overtaken = overtaken.get(&(place as u32)).copied();
                    Ok(WriteReceipt { timestamp, acks: *acks, overtaken })
                }
                Err(error) => Err(of_item(error, timestamp)),
            };
            let _ = answer.send(own); // the client is gone: the write goes on
        }
    }
}

/// The error of a group, as it is told of one item.
fn of_item(error: &WriteError, own: Timestamp) -> WriteError {
    let mut error = error.clone();
    if let WriteError::Unknown { timestamp, .. } = &mut error {
        *timestamp = own;
    }
    error
}
