//! The only way to spawn, so that whoever stops a node stops all it started.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::task::TaskTracker;

use crate::util::request_id;

/// The tasks of one node. A clone is the same set. Tasks run on the runtime that spawns them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    /// What [`Tasks::abort_all`] ends; kept only by a set made with [`Tasks::abortable`].
    handles: Option<Arc<Mutex<Vec<AbortHandle>>>>,
    /// What [`Tasks::pause`] closes; kept only by a set made with [`Tasks::abortable`].
    gate: Option<Arc<Gate>>,
}

/// Holds back every task of a set while it is closed, as if the process were stopped.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
}

#[derive(Debug, Default)]
struct GateState {
    is_closed: bool,
    /// Tasks that had something to do meanwhile, in the order in which they had.
    held: Vec<Waker>,
}

impl Gate {
    /// Whether the task must wait; it is woken once it need not.
    fn holds(&self, context: &Context<'_>) -> bool {
        let mut state = self.state.lock();
        if state.is_closed {
            state.held.push(context.waker().clone());
        }
        state.is_closed
    }
}

async fn behind<F: Future>(gate: Option<Arc<Gate>>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| match &gate {
        Some(gate) if gate.holds(context) => Poll::Pending,
        _ => future.as_mut().poll(context),
    })
    .await
}

impl Tasks {
    /// A set whose tasks can all be ended at a stroke: a simulated crash. Costs a handle a task.
    pub fn abortable() -> Self {
        Self { tracker: TaskTracker::new(), handles: Some(Arc::default()), gate: Some(Arc::default()) }
    }

    /// Runs `future` on the current runtime until it ends or the set is aborted. It works for the same request, if any.
    #[allow(clippy::disallowed_methods)] // here is where tasks come from
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let future = behind(self.gate.clone(), request_id::carried(future));
        let task = tokio::spawn(self.tracker.track_future(future));
        if let Some(handles) = &self.handles {
            let mut handles = handles.lock();
            handles.push(task.abort_handle());
            if handles.len().is_power_of_two() {
                handles.retain(|handle| !handle.is_finished());
            }
        }
        task
    }

    /// How many are running.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether none is running.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until all have ended, at most `patience`; says whether they have. New ones may still be spawned.
    pub async fn wait(&self, patience: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(patience, self.tracker.wait()).await.is_ok()
    }

    /// Stops every task where it stands until [`Tasks::resume`]; those spawned meanwhile do not begin. Time goes on for all
    /// of them: a process that is paused. Only for a set made with [`Tasks::abortable`].
    pub fn pause(&self) {
        self.gate().state.lock().is_closed = true;
    }

    /// Lets paused tasks go on.
    pub fn resume(&self) {
        let held = {
            let mut state = self.gate().state.lock();
            state.is_closed = false;
            std::mem::take(&mut state.held)
        };
        held.into_iter().for_each(Waker::wake);
    }

    fn gate(&self) -> &Gate {
        self.gate.as_ref().expect("pause and resume are for sets made with Tasks::abortable")
    }

    /// Ends every task where it stands, as a crash would. Only for a set made with [`Tasks::abortable`].
    pub fn abort_all(&self) {
        let handles = self.handles.as_ref().expect("abort_all is for sets made with Tasks::abortable");
        for handle in handles.lock().drain(..) {
            handle.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_set_does_nothing_and_goes_on_where_it_stood() {
        let tasks = Tasks::abortable();
        let begun = Instant::now();
        let sleeping = tasks.spawn(async move {
            sleep(Duration::from_secs(1)).await;
            begun.elapsed()
        });
        tokio::task::yield_now().await;
        tasks.pause();
        let spawned_meanwhile = tasks.spawn(async move { begun.elapsed() });
        sleep(Duration::from_secs(60)).await;
        assert!(!sleeping.is_finished() && !spawned_meanwhile.is_finished());
        tasks.resume();
        assert!(sleeping.await.unwrap() >= Duration::from_secs(60));
        assert!(spawned_meanwhile.await.unwrap() >= Duration::from_secs(60));
        assert!(tasks.wait(Duration::ZERO).await);
    }
}
