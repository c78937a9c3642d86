//! `MergingIterator`: many sorted inputs as one.
//!
//! A binary heap of the inputs, smallest current entry on top. Moving on costs one step of the top input and
//! a walk down the heap; an input that stays the smallest, as in long runs of one table, costs two comparisons.

use std::cmp::Ordering;

use super::{EntryRef, InternalIterator};
use crate::engine::Error;

/// Gives the entries of all inputs in order. An entry that two inputs hold comes twice.
pub struct MergingIterator<'a> {
    inputs: Vec<Box<dyn InternalIterator + 'a>>,
    /// Indices of the inputs that stand at an entry; a heap, the smallest entry first.
    heap: Vec<usize>,
}

impl<'a> MergingIterator<'a> {
    /// Merges `inputs`, none of which need have been sought.
    pub fn new(inputs: Vec<Box<dyn InternalIterator + 'a>>) -> Self {
        Self { heap: Vec::with_capacity(inputs.len()), inputs }
    }

    /// Seeks every input, then builds the heap; an error leaves it empty.
    fn seek_each(
        &mut self,
        mut seek: impl FnMut(&mut (dyn InternalIterator + 'a)) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.heap.clear();
        for input in &mut self.inputs {
            seek(&mut **input)?;
        }
        self.heap.extend((0..self.inputs.len()).filter(|&i| self.inputs[i].current().is_some()));
        for root in (0..self.heap.len() / 2).rev() {
            self.sift_down(root);
        }
        Ok(())
    }

    /// Whether the input in heap place `a` comes before the one in `b`.
    fn precedes(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.heap[a], self.heap[b]);
        let order = match (self.inputs[a].current(), self.inputs[b].current()) {
            (Some(a), Some(b)) => a.order(&b),
            _ => unreachable!("only inputs that stand at an entry are in the heap"),
        };
        // The place among the inputs decides between equal entries, so that a run always goes the same way.
        order.then(a.cmp(&b)) == Ordering::Less
    }

    fn sift_down(&mut self, mut root: usize) {
        loop {
            let mut child = 2 * root + 1;
            if child >= self.heap.len() {
                return;
            }
            if child + 1 < self.heap.len() && self.precedes(child + 1, child) {
                child += 1;
            }
            if !self.precedes(child, root) {
                return;
            }
            self.heap.swap(child, root);
            root = child;
        }
    }
}

impl InternalIterator for MergingIterator<'_> {
    fn seek_to_first(&mut self) -> Result<(), Error> {
        self.seek_each(InternalIterator::seek_to_first)
    }

    fn seek(&mut self, user_key: &[u8]) -> Result<(), Error> {
        self.seek_each(|input| input.seek(user_key))
    }

    fn next(&mut self) -> Result<(), Error> {
        let Some(&top) = self.heap.first() else { return Ok(()) };
        if let Err(error) = self.inputs[top].next() {
            self.heap.clear(); // what follows would lack this input's entries
            return Err(error);
        }
        if self.inputs[top].current().is_none() {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    fn current(&self) -> Option<EntryRef<'_>> {
        self.inputs[*self.heap.first()?].current()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::iter::model::{ModelIterator, any_entries, check, drain, entry_ref};
    use proptest::prelude::*;

    fn merge(inputs: Vec<ModelIterator>) -> MergingIterator<'static> {
        MergingIterator::new(inputs.into_iter().map(|input| Box::new(input) as _).collect())
    }

    proptest! {
        #[test]
        fn a_merge_gives_what_one_sorted_vector_of_all_entries_would(
            inputs in proptest::collection::vec(any_entries(40), 0..6),
            seeks in any_entries(5),
        ) {
            let models: Vec<_> = inputs.into_iter().map(ModelIterator::new).collect();
            let mut all: Vec<_> = models.iter().flat_map(|model| model.entries.clone()).collect();
            all.sort_by(|a, b| entry_ref(a).order(&entry_ref(b)));
            check(&mut merge(models), &all, &seeks);
        }

        #[test]
        fn an_input_that_fails_is_never_left_out_in_silence(
            good in any_entries(20), bad in any_entries(20), fails_at in 0usize..20,
        ) {
            let mut bad = ModelIterator::new(bad);
            bad.fails_at = Some(fails_at.min(bad.entries.len()));
            let mut merged = merge(vec![ModelIterator::new(good), bad]);
            let result = merged.seek_to_first().and_then(|()| drain(&mut merged).map(|_| ()));
            prop_assert!(result.is_err());
            prop_assert_eq!(merged.current(), None);
        }
    }
}
