//! The checker that knows timestamps: cheap, and precise about what went wrong.
//!
//! It walks all starts and ends in the order of real time and keeps, for each key and each W and R, the highest timestamp
//! that was acknowledged and the highest that was read. A read must not be below those that its own R promises it to see
//! (R + W > N for writes, about 2R > N for reads), as they stood when it started.
//! It trusts that a write has one timestamp, so it is blind to a write that got two: `checker_values` is for that.

use std::collections::{BTreeMap, BTreeSet};

use kvstore::types::{Expiry, Timestamp};

use super::history::{Action, Operation, Outcome, Quorum, Scanned, Seen, ValueId, ttl_of};

/// What had been promised about a key at some moment, for each W and R.
#[derive(Debug, Clone, Default)]
struct Floor {
    /// The highest timestamp acknowledged, and by which operation.
    acknowledged: BTreeMap<usize, (Timestamp, usize)>,
    /// The highest timestamp read, whether its value was gone (once it is, it does not come back), and by which operation.
    read: BTreeMap<usize, ((Timestamp, bool), usize)>,
}

/// Which acknowledgements and reads promise something: those of W or R replicas that cannot all have been lost.
#[derive(Debug, Clone, Copy)]
pub struct Promises {
    /// The smallest W that survives every fault of the run.
    pub needed_min: usize,
}

impl Promises {
    fn of_write(self, operation: &Operation) -> Option<Timestamp> {
        match operation.outcome {
            Outcome::Acknowledged { at_least, .. } => {
                let is_promise = !operation.quorum.sloppy && operation.quorum.needed >= self.needed_min;
                is_promise.then_some(at_least)
            }
            _ => None,
        }
    }
}

/// Returns what is wrong with a history, a line each.
pub fn check(operations: &[Operation], scans: &[Scanned], promises: Promises) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut keys: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, operation) in operations.iter().enumerate() {
        keys.entry(operation.key).or_default().push(number);
    }
    for (key, numbers) in keys {
        check_reads(operations, &numbers, promises, &mut wrong);
        check_origins(operations, &numbers, &mut wrong);
        check_scans(operations, &numbers, key, scans, promises, &mut wrong);
    }
    check_timestamps(operations, &mut wrong);
    wrong
}

/// No node gives a timestamp twice. What timestamp an unanswered write had, its readers know.
fn check_timestamps(operations: &[Operation], wrong: &mut Vec<String>) {
    let mut seen: BTreeMap<ValueId, Timestamp> = BTreeMap::new();
    for operation in operations {
        if let Outcome::Seen(Some(Seen { timestamp, value: Some(value), .. })) = operation.outcome {
            seen.insert(value, timestamp);
        }
    }
    let mut given: BTreeMap<(usize, Timestamp), &Operation> = BTreeMap::new();
    for operation in operations {
        let timestamp = match (operation.action, operation.outcome) {
            (_, Outcome::Acknowledged { at_least, at_most }) if at_least == at_most => Some(at_least),
            (Action::Put(value), _) => seen.get(&value).copied(),
            _ => None,
        };
        if let Some(timestamp) = timestamp
            && let Some(other) = given.insert((operation.node, timestamp), operation)
        {
            wrong.push(format!("versions: {timestamp:?} was given twice: {other:?} and {operation:?}"));
        }
    }
}

/// No read is older than what was acknowledged, or read, before it started.
fn check_reads(operations: &[Operation], numbers: &[usize], promises: Promises, wrong: &mut Vec<String>) {
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for &number in numbers {
        let operation = &operations[number];
        moments.push((operation.start, false, number));
        moments.extend(operation.end.map(|end| (end, true, number)));
    }
    moments.sort_unstable();
    let mut floor = Floor::default();
    let mut floors_at_start = BTreeMap::new();
    for (_, is_end, number) in moments {
        let operation = &operations[number];
        if !is_end {
            if operation.action == Action::Get {
                floors_at_start.insert(number, floor.clone());
            }
            continue;
        }
        let needed = operation.quorum.needed;
        if let Some(at_least) = promises.of_write(operation) {
            let highest = floor.acknowledged.entry(needed).or_insert((at_least, number));
            *highest = (*highest).max((at_least, number));
        }
        if let Outcome::Seen(seen) = operation.outcome {
            let read = seen.map_or((Timestamp::ZERO, false), |seen| (seen.timestamp, seen.value.is_none()));
            let promised = floors_at_start.remove(&number).expect("it started before it ended");
            describe(operations, number, read, &promised, wrong);
            // What few replicas said may be on few disks, and lost with them.
            if needed >= promises.needed_min {
                let highest = floor.read.entry(needed).or_insert((read, number));
                *highest = (*highest).max((read, number));
            }
        }
    }
}

fn describe(
    operations: &[Operation],
    number: usize,
    read: (Timestamp, bool),
    promised: &Floor,
    wrong: &mut Vec<String>,
) {
    let own = operations[number].quorum;
    let quorum = |needed: usize| Quorum { needed, ..own };
    let acknowledged = promised.acknowledged.iter().filter(|(needed, _)| quorum(**needed).binds(own));
    let acknowledged = acknowledged.map(|(_, promise)| *promise).max();
    let seen = promised.read.iter().filter(|(needed, _)| quorum(**needed).binds_reads(own));
    let seen = seen.map(|(_, promise)| *promise).max();
    let (timestamp, _) = read;
    if own.replicas == 1 && timestamp == Timestamp::ZERO {
        return; // alone a node lets go of tombstones and of what has expired: `checker_values` looks at that
    }
    if let Some((_, write)) = acknowledged.filter(|(floor, _)| timestamp < *floor) {
        let what = match operations[write].action {
            Action::Delete => "a deleted key came back",
            _ => "an acknowledged write was lost, or the read was stale",
        };
        wrong.push(format!("versions: {what}: {:?} was before {:?}", operations[write], operations[number]));
    } else if let Some((floor, earlier)) = seen.filter(|(floor, _)| read < *floor) {
        let what = if timestamp == floor.0 { "what was gone came back" } else { "reads went back" };
        wrong
            .push(format!("versions: {what}: {:?} was before {:?}", operations[earlier], operations[number]));
    }
}

/// Nothing is read that was not written.
fn check_origins(operations: &[Operation], numbers: &[usize], wrong: &mut Vec<String>) {
    let mut written: BTreeMap<ValueId, &Operation> = BTreeMap::new();
    let mut deletes: Vec<&Operation> = Vec::new();
    for operation in numbers.iter().map(|number| &operations[*number]) {
        match operation.action {
            _ if operation.outcome == Outcome::NotSent => {}
            Action::Put(value) => drop(written.insert(value, operation)),
            Action::Delete => deletes.push(operation),
            Action::Get => {}
        }
    }
    for read in numbers.iter().map(|number| &operations[*number]) {
        let Outcome::Seen(Some(Seen { timestamp, value, expires_at })) = read.outcome else { continue };
        let before_its_end = |write: &Operation| read.end.is_some_and(|end| write.start < end);
        let known = match value {
            Some(value) => written.get(&value).is_some_and(|write| before_its_end(write)),
            None if expires_at.is_some() => written.iter().any(|(value, write)| {
                before_its_end(write)
                    && ttl_of(*value).map(|ttl| Expiry::after(timestamp, ttl)) == expires_at
                    && may_have(write, timestamp)
            }),
            None => deletes.iter().any(|delete| before_its_end(delete) && may_have(delete, timestamp)),
        };
        if !known {
            wrong.push(format!("versions: read what nobody wrote: {read:?}"));
        }
    }
}

/// Whether a write may have been given a timestamp.
fn may_have(write: &Operation, timestamp: Timestamp) -> bool {
    match write.outcome {
        Outcome::Acknowledged { at_least, at_most } => (at_least..=at_most).contains(&timestamp),
        _ => true,
    }
}

/// No scan shows a key older than what was acknowledged before the scan started.
fn check_scans(
    operations: &[Operation],
    numbers: &[usize],
    key: usize,
    scans: &[Scanned],
    promises: Promises,
    wrong: &mut Vec<String>,
) {
    let mine = || numbers.iter().map(|number| &operations[*number]);
    let mut timestamps: BTreeMap<ValueId, Timestamp> = BTreeMap::new();
    for operation in mine() {
        match (operation.action, operation.outcome) {
            (Action::Put(value), Outcome::Acknowledged { at_least, at_most }) if at_least == at_most => {
                timestamps.insert(value, at_least);
            }
            (_, Outcome::Seen(Some(Seen { timestamp, value: Some(value), .. }))) => {
                timestamps.insert(value, timestamp);
            }
            _ => {}
        }
    }
    let written: BTreeSet<ValueId> = mine()
        .filter(|operation| operation.outcome != Outcome::NotSent)
        .filter_map(|operation| if let Action::Put(value) = operation.action { Some(value) } else { None })
        .collect();
    for scan in scans {
        let floor = mine()
            .filter(|operation| operation.end.is_some_and(|end| end < scan.start))
            .filter(|operation| operation.quorum.binds(scan.quorum))
            .filter_map(|operation| Some((promises.of_write(operation)?, operation)))
            .max_by_key(|(at_least, _)| *at_least);
        let reads = || {
            mine().filter(|read| {
                read.quorum.binds_reads(scan.quorum) && read.quorum.needed >= promises.needed_min
            })
        };
        match scan.values[key] {
            Some(value) if !written.contains(&value) => {
                wrong.push(format!("versions: scanned what nobody wrote: key {key}, value {value}"));
            }
            Some(value) => {
                let Some(timestamp) = timestamps.get(&value) else { continue };
                if let Some(gone) = gone_before(reads(), scan.start).filter(|gone| timestamp <= gone) {
                    wrong.push(format!("versions: a scan shows what was gone: key {key}, value {value} at {timestamp:?}, gone at {gone:?}"));
                }
                if let Some((floor, write)) = floor
                    && *timestamp < floor
                {
                    wrong.push(format!("versions: a scan was stale: key {key}, value {value} at {timestamp:?}, after {write:?}"));
                }
            }
            None => {
                let Some((floor, write)) = floor.filter(|(_, write)| matches!(write.action, Action::Put(_)))
                else {
                    continue;
                };
                let ends = |action| match action {
                    Action::Delete => true,
                    Action::Put(value) => ttl_of(value).is_some(),
                    Action::Get => false,
                };
                let may_be_gone = mine().any(|delete| {
                    ends(delete.action)
                        && delete.start < scan.end
                        && match delete.outcome {
                            // At equal timestamps the deletion wins, and so does what ends first.
                            Outcome::Acknowledged { at_most, .. } => at_most >= floor,
                            Outcome::NotSent => false,
                            _ => true,
                        }
                });
                if !may_be_gone {
                    wrong.push(format!("versions: a scan missed key {key}, written by {write:?}"));
                }
            }
        }
    }
}

/// The highest timestamp at which a read saw that a key has no value, before some moment.
fn gone_before<'a>(operations: impl Iterator<Item = &'a Operation>, moment: u64) -> Option<Timestamp> {
    let ended = operations.filter(|operation| operation.end.is_some_and(|end| end < moment));
    ended
        .filter_map(|operation| match operation.outcome {
            Outcome::Seen(Some(Seen { timestamp, value: None, .. })) => Some(timestamp),
            _ => None,
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::super::history::by_hand::{delete, expired, get, gone, lost, miss, put};
    use super::super::history::expiring;
    use super::*;

    fn check(operations: &[Operation], scans: &[Scanned]) -> Vec<String> {
        super::check(operations, scans, Promises { needed_min: 1 })
    }

    #[test]
    fn an_expired_value_that_comes_back_is_seen() {
        let id = expiring(10);
        let gone_at_last = [put(1, 2, id, 5), get(3, 4, id, 5), expired(5, 6, id, 5), expired(7, 8, id, 5)];
        assert_eq!(check(&gone_at_last, &[]), Vec::<String>::new());
        let back = [put(1, 2, id, 5), expired(3, 4, id, 5), get(5, 6, id, 5)];
        assert!(check(&back, &[])[0].contains("what was gone came back"));
        let older = [put(1, 2, 9, 4), put(3, 4, id, 5), get(5, 6, 9, 4)];
        assert!(check(&older, &[])[0].contains("lost"), "an expired value hides what it overwrote");
        assert!(check(&[put(1, 2, 9, 5), expired(3, 4, id, 5)], &[])[0].contains("nobody wrote"));
        let scan = |values| Scanned { quorum: Quorum::new(2, 3), start: 7, end: 8, values };
        assert!(check(&back[..2], &[scan(vec![None])]).is_empty());
        let seen = [put(1, 2, id, 5), get(3, 4, id, 5), expired(5, 6, id, 5)];
        assert!(check(&seen, &[scan(vec![Some(id)])])[0].contains("what was gone"));
    }

    #[test]
    fn reads_that_see_the_newest_write_are_fine() {
        let history = [
            put(1, 2, 10, 5),
            get(3, 4, 10, 5),
            delete(5, 6, 7),
            gone(7, 8, 7),
            lost(9, 11),
            get(10, 12, 11, 9),
        ];
        assert_eq!(check(&history, &[]), Vec::<String>::new());
    }

    #[test]
    fn a_read_that_misses_an_acknowledged_write_is_seen() {
        assert_eq!(check(&[put(1, 2, 10, 5), miss(3, 4)], &[]).len(), 1);
        assert!(check(&[put(1, 4, 10, 5), miss(3, 5)], &[]).is_empty(), "it was not acknowledged yet");
    }

    #[test]
    fn reads_that_go_back_are_seen() {
        let history = [put(1, 9, 10, 5), get(2, 3, 10, 5), miss(4, 5)];
        assert!(check(&history, &[])[0].contains("went back"));
    }

    #[test]
    fn a_deleted_key_that_comes_back_is_seen() {
        let history = [put(1, 2, 10, 5), delete(3, 4, 6), get(5, 6, 10, 5)];
        assert!(check(&history, &[])[0].contains("came back"));
    }

    #[test]
    fn a_value_that_nobody_wrote_is_seen() {
        assert!(check(&[get(1, 2, 10, 5)], &[])[0].contains("nobody wrote"));
        let refused = Operation { outcome: Outcome::NotSent, ..put(1, 2, 10, 5) };
        assert!(check(&[refused, get(3, 4, 10, 5)], &[])[0].contains("nobody wrote"));
        assert!(check(&[gone(1, 2, 5)], &[])[0].contains("nobody wrote"));
    }

    #[test]
    fn a_timestamp_that_a_node_gives_twice_is_seen() {
        assert!(check(&[put(1, 2, 10, 5), put(3, 4, 11, 5)], &[])[0].contains("twice"));
        assert!(check(&[put(1, 2, 10, 5), Operation { node: 1, ..put(3, 4, 11, 5) }], &[]).is_empty());
    }

    #[test]
    fn a_scan_that_is_stale_or_misses_a_key_is_seen() {
        let scan = |values| Scanned { quorum: Quorum::new(2, 3), start: 5, end: 6, values };
        let history = [put(1, 2, 10, 5), put(3, 4, 11, 6)];
        assert!(check(&history, &[scan(vec![Some(11)])]).is_empty());
        assert!(check(&history, &[scan(vec![Some(10)])])[0].contains("stale"));
        assert!(check(&history, &[scan(vec![None])])[0].contains("missed"));
        let tied = [put(1, 3, 10, 5), Operation { node: 1, ..delete(2, 4, 5) }];
        assert!(
            check(&tied, &[scan(vec![None])]).is_empty(),
            "a deletion beats a value of the same timestamp"
        );
    }

    #[test]
    fn a_write_with_two_timestamps_is_not_seen() {
        let history =
            [put(1, 9, 10, 7), get(2, 3, 10, 5), put(4, 5, 11, 6), get(5, 6, 11, 6), get(10, 11, 10, 7)];
        assert!(check(&history, &[]).is_empty());
    }

    #[test]
    fn a_read_is_promised_only_what_its_own_quorum_overlaps() {
        let with = |needed, operation: Operation| Operation { quorum: Quorum::new(needed, 3), ..operation };
        let old = [put(1, 2, 10, 5), with(1, put(3, 4, 11, 6)), get(5, 6, 10, 5)];
        assert!(check(&old, &[]).is_empty(), "W = 1 and R = 2 of 3 do not overlap");
        let all = [put(1, 2, 10, 5), with(1, put(3, 4, 11, 6)), with(3, get(5, 6, 10, 5))];
        assert!(check(&all, &[])[0].contains("lost"));
        let any = [with(3, put(1, 2, 10, 5)), with(1, miss(3, 4))];
        assert!(check(&any, &[])[0].contains("lost"));
        let sloppy = Quorum { sloppy: true, ..Quorum::new(3, 3) };
        let hinted = [Operation { quorum: sloppy, ..put(1, 2, 10, 5) }, miss(3, 4)];
        assert!(check(&hinted, &[]).is_empty());
    }

    #[test]
    fn reads_of_one_replica_may_go_back() {
        let one = |operation: Operation| Operation { quorum: Quorum::new(1, 3), ..operation };
        let history = [put(1, 9, 10, 5), get(2, 3, 10, 5), one(miss(4, 5)), one(miss(6, 7))];
        assert!(check(&history, &[]).is_empty());
    }
}
