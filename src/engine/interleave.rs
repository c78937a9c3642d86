//! Runs a few threads in every order of their steps, up to a number of preemptions. For unit tests.
//!
//! ```text
//! thread 0   ──•──•──┐        ┌──•──•──end     a step ends at each operation on an atomic or a lock of `engine::sync`
//! thread 1           └──•──•──┘                one thread at a time goes on; where it goes on is a choice
//! ```
//!
//! The threads are real, and a baton lets one of them run at a time. The first run makes the first choice everywhere: the
//! same thread goes on. Each further run repeats the last one up to its last choice that has an alternative left, takes that, and
//! goes on from there, until all have been taken. Most bugs of ordering need one or two preemptions, and the number of runs grows with
//! the power of their number.
//!
//! All threads see each other's writes at once and in order. What a weaker order of memory would allow beyond that is not
//! explored: `scripts/test_threads.sh` looks for it with `ThreadSanitizer`, which sees where an ordering that is needed is missing.
//!
//! Source: Musuvathi and Qadeer, "Iterative Context Bounding for Systematic Testing of Multithreaded Programs" (PLDI 2007).
#![allow(clippy::disallowed_methods)] // threads are what is tested here

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};

/// A thread's work.
pub type Work = Box<dyn FnOnce() + Send>;

/// Which of how many alternatives was taken.
#[derive(Debug, Clone, Copy)]
struct Choice {
    taken: usize,
    alternatives: usize,
}

struct State {
    /// Who has the baton.
    current: usize,
    alive: Vec<bool>,
    /// Found a lock taken, and nobody has made a step since.
    waiting: Vec<bool>,
    preemptions_left: usize,
    /// What is to be chosen, then what was.
    choices: Vec<Choice>,
    at: usize,
    /// A thread panicked: the others end without order.
    is_broken: bool,
}

struct Schedule {
    state: Mutex<State>,
    passed: Condvar,
}

thread_local! {
    static RUN: RefCell<Option<(Arc<Schedule>, usize)>> = const { RefCell::new(None) };
}

impl State {
    /// Chooses among `alternatives` as is to be repeated, or the first one.
    fn choose(&mut self, alternatives: usize) -> usize {
        if self.at == self.choices.len() {
            self.choices.push(Choice { taken: 0, alternatives });
        }
        let choice = self.choices[self.at];
        assert_eq!(choice.alternatives, alternatives, "the same choices lead to the same run");
        self.at += 1;
        choice.taken
    }

    fn others(&self, me: usize) -> Vec<usize> {
        (0..self.alive.len())
            .filter(|other| *other != me && self.alive[*other] && !self.waiting[*other])
            .collect()
    }
}

impl Schedule {
    fn wait_for_turn(&self, state: &mut parking_lot::MutexGuard<'_, State>, me: usize) {
        self.passed.notify_all();
        while state.current != me && !state.is_broken {
            self.passed.wait(state);
        }
    }

    fn point(&self, me: usize) {
        let mut state = self.state.lock();
        state.waiting.fill(false);
        let others = state.others(me);
        if state.is_broken || state.preemptions_left == 0 || others.is_empty() {
            return;
        }
        let taken = state.choose(1 + others.len());
        if taken > 0 {
            state.preemptions_left -= 1;
            state.current = others[taken - 1];
            self.wait_for_turn(&mut state, me);
        }
    }

    fn blocked(&self, me: usize) {
        let mut state = self.state.lock();
        state.waiting[me] = true;
        let others = state.others(me);
        if !state.is_broken {
            assert!(!others.is_empty(), "everybody waits for a lock");
            let taken = state.choose(others.len());
            state.current = others[taken];
            self.wait_for_turn(&mut state, me);
        }
    }

    fn end(&self, me: usize, is_broken: bool) {
        let mut state = self.state.lock();
        state.alive[me] = false;
        state.waiting.fill(false);
        state.is_broken |= is_broken;
        let others = state.others(me);
        if !others.is_empty() && !state.is_broken {
            let taken = state.choose(others.len());
            state.current = others[taken];
        }
        self.passed.notify_all();
    }
}

/// Another thread may go on here.
pub fn point() {
    let run = RUN.with_borrow(Clone::clone);
    if let Some((schedule, me)) = run {
        schedule.point(me);
    }
}

/// Another thread must go on here: this one waits for a lock. False outside of [`explore`].
pub fn blocked() -> bool {
    let run = RUN.with_borrow(Clone::clone);
    let is_explored = run.is_some();
    if let Some((schedule, me)) = run {
        schedule.blocked(me);
    }
    is_explored
}

/// Runs what `begin` makes in every order with at most `preemptions` preemptions, each time from the beginning; `end` looks at
/// what came of each run. Gives the number of runs. `INTERLEAVE_PREEMPTIONS` in the environment takes the place of `preemptions`.
pub fn explore<T>(preemptions: usize, begin: impl Fn() -> (T, Vec<Work>), end: impl Fn(T)) -> u64 {
    let more = std::env::var("INTERLEAVE_PREEMPTIONS").ok().and_then(|text| text.parse().ok());
    let preemptions = more.unwrap_or(preemptions);
    let (mut choices, mut runs) = (Vec::new(), 0);
    loop {
        let (outcome, works) = begin();
        choices = run(preemptions, choices, works);
        end(outcome);
        runs += 1;
        while choices.last().is_some_and(|last: &Choice| last.taken + 1 == last.alternatives) {
            choices.pop();
        }
        match choices.last_mut() {
            Some(last) => last.taken += 1,
            None => return runs,
        }
    }
}

/// One run; gives the choices that were made. Panics as its threads do, and says by which choices.
fn run(preemptions: usize, choices: Vec<Choice>, works: Vec<Work>) -> Vec<Choice> {
    let state = State {
        current: 0,
        alive: vec![true; works.len()],
        waiting: vec![false; works.len()],
        preemptions_left: preemptions,
        choices,
        at: 0,
        is_broken: false,
    };
    let schedule = Arc::new(Schedule { state: Mutex::new(state), passed: Condvar::new() });
    let threads: Vec<_> = works
        .into_iter()
        .enumerate()
        .map(|(me, work)| {
            let schedule = schedule.clone();
            thread::spawn(move || {
                schedule.wait_for_turn(&mut schedule.state.lock(), me);
                RUN.set(Some((schedule.clone(), me)));
                let result = catch_unwind(AssertUnwindSafe(work));
                RUN.set(None);
                schedule.end(me, result.is_err());
                result
            })
        })
        .collect();
    let results: Vec<_> =
        threads.into_iter().map(|thread| thread.join().expect("panics are caught")).collect();
    let choices = std::mem::take(&mut schedule.state.lock().choices);
    for result in results {
        if let Err(panic) = result {
            let taken: Vec<_> = choices.iter().map(|choice| choice.taken).collect();
            eprintln!("the choices of this run: {taken:?}");
            resume_unwind(panic);
        }
    }
    choices
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::engine::sync::{AtomicUsize, Mutex};

    /// Two threads that add one by a load and a store: some orders lose an addition, and all are met.
    #[test]
    fn a_lost_update_is_found_and_orders_are_met_once_each() {
        let sums = Mutex::new(Vec::new());
        let runs = explore(
            1,
            || {
                let sum = Arc::new(AtomicUsize::new(0));
                let add = |sum: Arc<AtomicUsize>| -> Work {
                    Box::new(move || sum.store(sum.load(Ordering::SeqCst) + 1, Ordering::SeqCst))
                };
                (sum.clone(), vec![add(sum.clone()), add(sum)])
            },
            |sum| sums.lock().push(sum.load(Ordering::SeqCst)),
        );
        let sums = sums.lock();
        assert_eq!(runs, sums.len() as u64);
        assert!(sums.contains(&1) && sums.contains(&2), "{sums:?}");
        assert!(runs < 20, "{runs}");
    }

    #[test]
    fn a_lock_keeps_others_out_in_every_order() {
        let runs = explore(
            2,
            || {
                let sum = Arc::new(Mutex::new(0));
                let add = |sum: Arc<Mutex<u32>>| -> Work {
                    Box::new(move || {
                        let mut sum = sum.lock();
                        let before = *sum;
                        point();
                        *sum = before + 1;
                    })
                };
                (sum.clone(), (0..3).map(|_| add(sum.clone())).collect())
            },
            |sum| assert_eq!(*sum.lock(), 3),
        );
        assert!(runs > 5, "{runs}");
    }
}
