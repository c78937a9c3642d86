//! The checker that knows values only: is every key linearizable, seen from outside?
//!
//! It looks for one order of a key's operations that real time allows and in which every read sees the write
//! before it. The search is Wing and Gong's with Lowe's memory of states that led nowhere. Three things keep it
//! small: a read that fits is taken at once; a value is unique, so that it is left only once all its reads are
//! taken; a write of unknown outcome whose value nobody read is left out.
//!
//! An unanswered write may take effect at any time after its start, or never. So may an overtaken one, which met a
//! timestamp as new that was acknowledged, or read, before it started: last writer wins lets it lose at once.
//! Deletions write "nothing", which is not unique; those of unknown outcome are taken in the order they started.
//! A value that is written for a time may be followed by a deletion of its own, which finds that value or does nothing.
//! When that may be, it does not know: the workload looks at the clocks.
//!
//! Only reads by a majority are held to it. Writes that a majority need not see are taken as if unanswered.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use kvstore::types::Timestamp;

use super::history::{Action, Operation, Outcome, ValueId, ttl_of};

/// How many steps a search may take for one key.
const STEPS_MAX: usize = 2_000_000;

/// An operation as the search sees it.
#[derive(Debug, Clone, Copy)]
struct Step {
    start: u64,
    /// `u64::MAX` where it may take effect at any later time.
    end: u64,
    value: Option<ValueId>,
    is_read: bool,
    /// Whether it may also never take effect.
    optional: bool,
    /// It takes effect only over this value.
    over: Option<ValueId>,
}

/// Returns what is wrong with a history, a line a key.
pub fn check(operations: &[Operation], needed_min: usize) -> Vec<String> {
    let mut keys: BTreeMap<usize, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        let majority = operation.quorum.replicas / 2 + 1;
        if operation.action != Action::Get || operation.quorum.needed >= majority {
            keys.entry(operation.key).or_default().push(operation);
        }
    }
    let checked = keys.into_iter().filter_map(|(key, operations)| {
        Search::new(steps(&operations, needed_min))
            .run()
            .err()
            .map(|why| format!("values: key {key} is not linearizable: {why}"))
    });
    checked.collect()
}

/// What a key's operations mean to the search.
fn steps(operations: &[&Operation], needed_min: usize) -> Vec<Step> {
    let read: BTreeSet<ValueId> = operations
        .iter()
        .filter_map(
            |operation| if let Outcome::Seen(Some(seen)) = operation.outcome { seen.value } else { None },
        )
        .collect();
    let overtaken = overtaken(operations);
    let mut steps = Vec::new();
    for (operation, overtaken) in operations.iter().zip(overtaken) {
        let start = operation.start;
        let written = match operation.action {
            Action::Put(value) => Some(value),
            Action::Delete | Action::Get => None,
        };
        let step = match (operation.outcome, operation.end) {
            (Outcome::Seen(seen), Some(end)) => {
                let value = seen.and_then(|seen| seen.value);
                Step { start, end, value, is_read: true, optional: false, over: None }
            }
            (Outcome::Acknowledged { .. }, Some(end))
                if !overtaken
                    && operation.quorum.binds_majorities()
                    && operation.quorum.needed >= needed_min =>
            {
                Step { start, end, value: written, is_read: false, optional: false, over: None }
            }
            (Outcome::NotSent, _) => continue,
            _ if operation.action == Action::Get => continue,
            _ => Step { start, end: u64::MAX, value: written, is_read: false, optional: true, over: None },
        };
        let unseen = step.optional && step.value.is_some_and(|value| !read.contains(&value));
        if !unseen {
            steps.push(step);
        }
        if written.and_then(ttl_of).is_some() {
            // Of a write that is left out, its end is what may be seen of it.
            let over = written.filter(|_| !unseen);
            steps.push(Step { start, end: u64::MAX, value: None, is_read: false, optional: true, over });
        }
    }
    steps.sort_by_key(|step| step.start);
    steps
}

/// Whether each operation is a write that may have met a newer timestamp that was known before it started.
fn overtaken(operations: &[&Operation]) -> Vec<bool> {
    let mut known: Vec<(u64, Timestamp)> = operations
        .iter()
        .filter_map(|operation| {
            let timestamp = match operation.outcome {
                Outcome::Acknowledged { at_most, .. } => at_most,
                Outcome::Seen(Some(seen)) => seen.timestamp,
                _ => return None,
            };
            operation.end.map(|end| (end, timestamp))
        })
        .collect();
    known.sort_unstable();
    let mut highest = Timestamp::ZERO;
    for (_, timestamp) in &mut known {
        highest = highest.max(*timestamp);
        *timestamp = highest;
    }
    let before = |start: u64| match known.partition_point(|(end, _)| *end < start) {
        0 => Timestamp::ZERO,
        count => known[count - 1].1,
    };
    operations
        .iter()
        .map(|operation| match operation.outcome {
            // At equal timestamps of two nodes the greater bytes win: the later write may lose as well.
            Outcome::Acknowledged { at_least, .. } => at_least <= before(operation.start),
            _ => false,
        })
        .collect()
}

struct Search {
    steps: Vec<Step>,
    taken: Vec<u64>,
    /// Steps left that must be taken.
    required_left: usize,
    /// Reads of each value that are not taken yet.
    reads_left: BTreeMap<Option<ValueId>, usize>,
    deletions_left: usize,
    value: Option<ValueId>,
    seen: HashSet<(Vec<u64>, Option<ValueId>)>,
    /// The most steps any attempt took, and where it stood.
    best: (usize, String),
    taken_count: usize,
}

/// A choice made: what to undo, and what else could have been chosen.
struct Choice {
    step: usize,
    value_before: Option<ValueId>,
    others: Vec<usize>,
}

impl Search {
    fn new(steps: Vec<Step>) -> Self {
        let mut reads_left = BTreeMap::new();
        for step in steps.iter().filter(|step| step.is_read) {
            *reads_left.entry(step.value).or_insert(0) += 1;
        }
        Self {
            taken: vec![0; steps.len().div_ceil(64)],
            required_left: steps.iter().filter(|step| !step.optional).count(),
            reads_left,
            deletions_left: steps.iter().filter(|step| !step.is_read && step.value.is_none()).count(),
            value: None,
            seen: HashSet::new(),
            best: (0, String::new()),
            taken_count: 0,
            steps,
        }
    }

    fn run(mut self) -> Result<(), String> {
        let mut choices: Vec<Choice> = Vec::new();
        let mut candidates = self.candidates();
        for _ in 0..STEPS_MAX {
            if self.required_left == 0 {
                return Ok(());
            }
            if self.taken_count >= self.best.0 {
                self.best = (self.taken_count, String::new());
            }
            while candidates.is_empty() {
                self.note_best();
                let Some(mut choice) = choices.pop() else { return Err(self.best.1) };
                self.undo(&choice);
                candidates = std::mem::take(&mut choice.others);
            }
            let step = candidates.remove(0);
            choices.push(Choice { step, value_before: self.value, others: candidates });
            self.take(step);
            candidates = if self.seen.insert((self.taken.clone(), self.value)) {
                self.candidates()
            } else {
                Vec::new()
            };
        }
        Err(format!("gave up after {STEPS_MAX} steps"))
    }

    /// The steps that may come next, those that lead on first.
    fn candidates(&self) -> Vec<usize> {
        let mut found = Vec::new();
        let mut end_min = u64::MAX;
        let mut deletion_found = false;
        let may_leave = match self.value {
            Some(_) => !self.reads_left.contains_key(&self.value),
            None => self.deletions_left > 0 || !self.reads_left.contains_key(&None),
        };
        for (number, step) in self.steps.iter().enumerate() {
            if self.is_taken(number) {
                continue;
            }
            if step.start > end_min {
                break;
            }
            end_min = end_min.min(step.end);
            if step.is_read {
                if step.value == self.value {
                    return vec![number]; // taking it now can only help
                }
            } else if step.over.is_some() {
                if may_leave && step.over == self.value {
                    found.push(number);
                }
            } else if may_leave {
                let another_deletion = step.optional && step.value.is_none();
                if !another_deletion || !deletion_found {
                    found.push(number);
                }
                deletion_found |= another_deletion;
            }
        }
        // A write that must end soonest first: real histories are mostly in order.
        found.sort_by_key(|number| self.steps[*number].end);
        found
    }

    fn take(&mut self, number: usize) {
        let step = self.steps[number];
        self.taken[number / 64] |= 1 << (number % 64);
        self.taken_count += 1;
        self.required_left -= usize::from(!step.optional);
        if step.is_read {
            let left = self.reads_left.get_mut(&step.value).expect("counted when the search was made");
            *left -= 1;
            if *left == 0 {
                self.reads_left.remove(&step.value);
            }
        } else {
            self.deletions_left -= usize::from(step.value.is_none());
            self.value = step.value;
        }
    }

    fn undo(&mut self, choice: &Choice) {
        let step = self.steps[choice.step];
        self.taken[choice.step / 64] &= !(1 << (choice.step % 64));
        self.taken_count -= 1;
        self.required_left += usize::from(!step.optional);
        if step.is_read {
            *self.reads_left.entry(step.value).or_insert(0) += 1;
        } else {
            self.deletions_left += usize::from(step.value.is_none());
        }
        self.value = choice.value_before;
    }

    fn is_taken(&self, number: usize) -> bool {
        self.taken[number / 64] & (1 << (number % 64)) != 0
    }

    /// Remembers where the longest attempt got stuck.
    fn note_best(&mut self) {
        if self.taken_count < self.best.0 || !self.best.1.is_empty() {
            return;
        }
        let waiting: Vec<String> = (0..self.steps.len())
            .filter(|number| !self.is_taken(*number))
            .take(6)
            .map(|number| {
                let Step { start, end, value, is_read, optional, .. } = self.steps[number];
                let what = if is_read { "read" } else { "write" };
                let value = value.map_or("nothing".to_owned(), |value| value.to_string());
                let end = if end == u64::MAX { "∞".to_owned() } else { end.to_string() };
                format!("{what} {value} [{start}, {end}]{}", if optional { "?" } else { "" })
            })
            .collect();
        let value = self.value.map_or("nothing".to_owned(), |value| value.to_string());
        self.best.1 = format!(
            "after {} of {} operations the key holds {value}, and none of these fits: {}",
            self.taken_count,
            self.steps.len(),
            waiting.join(", ")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::by_hand::{delete, expired, get, gone, lost, miss, put};
    use super::super::history::expiring;
    use super::*;

    #[test]
    fn a_value_that_is_written_for_a_time_ends_once_and_ends_nothing_else() {
        let id = expiring(10);
        fine(&[put(1, 2, id, 1), get(3, 4, id, 1), expired(5, 6, id, 1), expired(7, 8, id, 1)]);
        fine(&[put(1, 2, 9, 1), lost(3, id), get(4, 5, 9, 1), expired(6, 7, id, 2)]);
        wrong(&[put(1, 2, id, 1), expired(3, 4, id, 1), get(5, 6, id, 1)]);
        wrong(&[put(1, 2, id, 1), get(3, 4, id, 1), put(5, 6, 11, 2), get(7, 8, 11, 2), miss(9, 10)]);
    }

    fn check(history: &[Operation]) -> Vec<String> {
        super::check(history, 1)
    }

    fn fine(history: &[Operation]) {
        assert_eq!(check(history), Vec::<String>::new());
    }

    fn wrong(history: &[Operation]) {
        assert_eq!(check(history).len(), 1, "{history:?}");
    }

    #[test]
    fn reads_and_writes_in_turn_are_linearizable() {
        fine(&[
            miss(1, 2),
            put(3, 4, 10, 1),
            get(5, 6, 10, 1),
            delete(7, 8, 2),
            gone(9, 10, 2),
            put(11, 12, 11, 3),
            get(13, 14, 11, 3),
        ]);
    }

    #[test]
    fn a_stale_read_is_not() {
        wrong(&[put(1, 2, 10, 1), put(3, 4, 11, 2), get(5, 6, 10, 1)]);
        wrong(&[put(1, 2, 10, 1), miss(3, 4)]);
    }

    #[test]
    fn a_concurrent_write_may_be_seen_or_not_but_not_both_ways_around() {
        fine(&[put(1, 9, 10, 1), miss(2, 3), get(4, 5, 10, 1)]);
        wrong(&[put(1, 9, 10, 1), get(2, 3, 10, 1), miss(4, 5)]);
    }

    #[test]
    fn an_unanswered_write_may_take_effect_late_or_never_but_once() {
        fine(&[put(1, 2, 10, 1), lost(3, 11), get(4, 5, 10, 1), get(6, 7, 11, 2)]);
        fine(&[put(1, 2, 10, 1), lost(3, 11), get(4, 5, 10, 1)]);
        wrong(&[put(1, 2, 10, 1), lost(3, 11), get(4, 5, 11, 2), get(6, 7, 10, 1)]);
    }

    #[test]
    fn a_write_with_two_timestamps_is_seen() {
        // A value is read, then another, then the first again: its second timestamp won.
        wrong(&[put(1, 9, 10, 7), get(2, 3, 10, 5), put(4, 5, 11, 6), get(6, 7, 11, 6), get(10, 11, 10, 7)]);
    }

    #[test]
    fn a_write_that_was_overtaken_before_it_started_may_never_be_seen() {
        fine(&[put(1, 2, 10, 9), put(3, 4, 11, 5), get(5, 6, 10, 9)]);
        fine(&[lost(1, 10), get(2, 3, 10, 9), put(4, 5, 11, 5), get(6, 7, 10, 9)]);
        wrong(&[put(1, 2, 10, 5), put(3, 4, 11, 9), get(5, 6, 10, 5)]);
    }

    #[test]
    fn deletions_of_unknown_outcome_explain_a_missing_value_each_once() {
        let maybe = |start| Operation { action: Action::Delete, ..lost(start, 0) };
        fine(&[put(1, 2, 10, 1), maybe(3), miss(4, 5), put(6, 7, 11, 3), get(8, 9, 11, 3)]);
        wrong(&[put(1, 2, 10, 1), maybe(3), miss(4, 5), put(6, 7, 11, 3), get(8, 9, 11, 3), miss(10, 11)]);
    }

    #[test]
    fn a_value_that_nobody_wrote_is_seen() {
        wrong(&[get(1, 2, 10, 1)]);
    }

    #[test]
    fn a_long_history_with_many_unanswered_writes_is_checked_quickly() {
        let mut history = Vec::new();
        for round in 0..400 {
            let at = round * 10;
            history.push(lost(at + 1, round * 3 + 1));
            history.push(lost(at + 2, round * 3 + 2));
            history.push(Operation { action: Action::Delete, ..lost(at + 3, 0) });
            history.push(get(at + 4, at + 6, round * 3 + 2, round * 3 + 2));
            history.push(get(at + 7, at + 8, round * 3 + 1, round * 3 + 3));
        }
        fine(&history);
        history.push(get(5000, 5001, 1, 1));
        wrong(&history);
    }
}
