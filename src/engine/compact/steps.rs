//! Steps: a compaction of many tables is carried out a few tables of its output level at a time, each step installed before
//! the next begins, so that it needs little space of its own; where less than that is free, one table at a time.
//!
//! ```text
//! upper     ├────────────────a────────────────┤         free ≥ a + b + c + d     as few steps as `step_bytes` allows
//! output    ├──b──┤     ├────c────┤      ├─d──┤         free ≥ a + the largest   three: up to b's last key, up to c's, the rest
//!           └ step 1 ┘└── step 2 ──┘└── step 3 ─►       less                     none is begun
//! ```
//!
//! A step removes the table of the output level that it has rewritten; the tables above go with the last step. Until then
//! some records lie in two tables, which changes nothing: where a record lies says nothing about its age. Pure.

use bytes::Bytes;

use super::picker::{Pickable, Plan};
use crate::engine::version::Level;
use crate::types::KeyRange;

/// The records of a key range, and the inputs that are not needed any more once they are rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which records.
    pub range: KeyRange,
    /// Which inputs go, by level and number.
    pub done: Vec<(Level, u64)>,
}

/// The steps of a compaction, for `free` bytes. A step rewrites about `step_bytes` of the output level at most.
///
/// # Errors
/// The bytes that must be free for it.
pub fn steps<T: Pickable>(plan: &Plan<T>, free: u64, step_bytes: u64) -> Result<Vec<Step>, u64> {
    let size = |(_, table): &(Level, T)| table.meta().size;
    let all: u64 = plan.inputs.iter().map(size).sum();
    let named = |(level, table): &(Level, T)| (*level, table.meta().number);
    if free >= all && all <= step_bytes {
        let done = plan.inputs.iter().map(named).collect();
        return Ok(vec![Step { range: KeyRange::all(), done }]);
    }
    let (mut rewritten, above): (Vec<_>, Vec<_>) =
        plan.inputs.iter().cloned().partition(|(level, _)| *level == plan.output && *level != Level::L0);
    let largest = rewritten.iter().map(size).max().unwrap_or(0);
    let needed = above.iter().map(size).sum::<u64>() + largest;
    if free < needed {
        return Err(needed);
    }
    let step_bytes = if free >= all { step_bytes } else { 0 };
    rewritten.sort_by(|(_, a), (_, b)| a.meta().smallest.cmp(&b.meta().smallest));
    let mut steps: Vec<Step> = Vec::new();
    let (mut start, mut in_step) = (None, 0);
    for input in &rewritten {
        let end = Some(successor(&input.1.meta().largest));
        in_step += size(input);
        match steps.last_mut() {
            Some(step) if in_step <= step_bytes => {
                step.range.end.clone_from(&end);
                step.done.push(named(input));
            }
            _ => {
                in_step = size(input);
                steps.push(Step { range: KeyRange { start, end: end.clone() }, done: vec![named(input)] });
            }
        }
        start = end;
    }
    let Some(last) = steps.last_mut() else {
        return Ok(vec![Step { range: KeyRange::all(), done: above.iter().map(named).collect() }]);
    };
    last.range.end = None;
    last.done.extend(above.iter().map(named));
    Ok(steps)
}

/// The first key behind another.
fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sst::{Expiries, SstMeta};
    use crate::types::Timestamp;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Drawn(SstMeta);

    impl Pickable for Drawn {
        fn meta(&self) -> &SstMeta {
            &self.0
        }

        fn is_damaged(&self) -> bool {
            false
        }
    }

    fn table(level: usize, number: u64, keys: (&'static str, &'static str), size: u64) -> (Level, Drawn) {
        let meta = SstMeta {
            number,
            size,
            entries: 1,
            tombstones: 0,
            oldest: Timestamp::ZERO,
            newest: Timestamp::ZERO,
            smallest: Bytes::from_static(keys.0.as_bytes()),
            largest: Bytes::from_static(keys.1.as_bytes()),
            expiries: Expiries::default(),
            content_bytes: 0,
        };
        (Level::new(level).unwrap(), Drawn(meta))
    }

    fn plan() -> Plan<Drawn> {
        let inputs = vec![
            table(1, 1, ("a", "z"), 10),
            table(2, 4, ("p", "q"), 7),
            table(2, 2, ("b", "c"), 5),
            table(2, 3, ("h", "i"), 9),
        ];
        Plan { inputs, output: Level::new(2).unwrap(), is_move: false }
    }

    fn numbers(step: &Step) -> Vec<u64> {
        step.done.iter().map(|(_, number)| *number).collect()
    }

    #[test]
    fn what_fits_is_one_step_and_what_cannot_fit_says_what_it_needs() {
        let all = steps(&plan(), 31, 31).unwrap();
        assert_eq!((all.len(), numbers(&all[0]), &all[0].range), (1, vec![1, 4, 2, 3], &KeyRange::all()));
        assert_eq!(steps(&plan(), 18, 100), Err(19));
    }

    #[test]
    fn the_steps_join_without_a_gap_and_the_upper_tables_go_last() {
        let three = steps(&plan(), 30, 100).unwrap();
        assert_eq!(three.iter().map(numbers).collect::<Vec<_>>(), [vec![2], vec![3], vec![4, 1]]);
        let bounds: Vec<_> =
            three.iter().map(|step| (step.range.start.clone(), step.range.end.clone())).collect();
        let after = |key: &'static [u8]| Some(Bytes::from_static(key));
        assert_eq!(bounds, [(None, after(b"c\0")), (after(b"c\0"), after(b"i\0")), (after(b"i\0"), None)]);
    }

    #[test]
    fn a_step_takes_as_many_tables_as_it_may() {
        let of =
            |step_bytes| steps(&plan(), 1_000, step_bytes).unwrap().iter().map(numbers).collect::<Vec<_>>();
        assert_eq!(of(14), [vec![2, 3], vec![4, 1]]);
        assert_eq!(of(13), [vec![2], vec![3], vec![4, 1]]);
        assert_eq!(of(30), [vec![2, 3, 4, 1]]);
    }

    #[test]
    fn what_replaces_nothing_is_one_step_whatever_its_size() {
        let alone = Plan {
            inputs: vec![table(1, 1, ("a", "z"), 10)],
            output: Level::new(2).unwrap(),
            is_move: false,
        };
        let one = steps(&alone, 1_000, 1).unwrap();
        assert_eq!((one.len(), numbers(&one[0]), &one[0].range), (1, vec![1], &KeyRange::all()));
    }
}
