//! Expiry: when this node says that a value is over, and that it never says otherwise again.
//!
//! ```text
//! disk holds    value until e        this clock    before e                       said: the value
//!                                                  past e, mark on disk past e    said: a tombstone at its own timestamp
//!                                                  past e, mark not               the mark is raised first, then the same
//! ```
//!
//! Every replica decides for itself, by its hybrid logical clock, what it *says* a record is; what lies on its disk stays as it
//! is until compaction. All that reads, for clients, repair or rebuild, sees what is said. That is all there is to it, for a
//! tombstone that was said is as lasting as one that was written: the clock never goes back, and its mark on disk lies
//! beyond the expiry before the first answer that depends on it. So whatever holds of deletions holds of expiry. Replicas
//! whose clocks differ disagree around the moment itself; then the tombstone wins, and a read that sees it makes it durable
//! on N − R + 1 replicas before it answers: a value that was read as gone never comes back.

use tokio::time::timeout;

use super::shared::{Shared, count};
use crate::hlc::Reached;
use crate::types::{Key, Record};

/// What a record of this disk is said to be now; `None` when that must wait for the clock's mark.
#[allow(clippy::option_option)] // the answer to a lookup, or none yet
pub(super) fn at_once(shared: &Shared, record: Option<Record>) -> Option<Option<Record>> {
    let Some(expires_at) = record.as_ref().and_then(Record::pending_expiry) else { return Some(record) };
    match shared.hlc.reach(expires_at.timestamp()) {
        Reached::NotYet => Some(record),
        Reached::UntilRestart => None,
        Reached::Durably => {
            count(&shared.counters.expired, 1);
            Some(record.map(Record::expired))
        }
    }
}

/// What a record of this disk is said to be now.
pub(super) async fn as_of_now(shared: &Shared, record: Option<Record>) -> Option<Record> {
    if record.as_ref().and_then(Record::pending_expiry).is_none() {
        return record;
    }
    if let Some(said) = at_once(shared, record.clone()) {
        return said;
    }
    mark(shared).await;
    count(&shared.counters.expired, 1);
    record.map(Record::expired)
}

/// The same of many.
pub(super) async fn all_as_of_now(shared: &Shared, items: &mut [(Key, Record)]) {
    let (mut expired, mut is_marked) = (0, true);
    for (_, record) in items {
        let Some(expires_at) = record.pending_expiry() else { continue };
        match shared.hlc.reach(expires_at.timestamp()) {
            Reached::NotYet => continue,
            Reached::UntilRestart => is_marked = false,
            Reached::Durably => {}
        }
        *record = Record::expired(std::mem::replace(record, Record::tombstone(record.timestamp())));
        expired += 1;
    }
    count(&shared.counters.expired, expired);
    if !is_marked {
        mark(shared).await;
    }
}

/// Waits until the mark on disk lies beyond what the clock has reached.
///
/// Where it cannot be written (the disk failed, or takes too long), what has expired is said to have all the same: a value
/// could come back then only if this node were restarted with its clock set back.
async fn mark(shared: &Shared) {
    // The next timestamp lies beyond all that was reached, and below the mark.
    let _ = timeout(shared.settings.network_timeout, shared.clock_keeper.tick()).await;
}
