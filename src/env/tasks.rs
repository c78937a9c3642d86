//! The only way to spawn, so that whoever stops a node stops all it started.

use std::future::Future;
use std::sync::Arc;
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
}

impl Tasks {
    /// A set whose tasks can all be ended at a stroke: a simulated crash. Costs a handle a task.
    pub fn abortable() -> Self {
        Self { tracker: TaskTracker::new(), handles: Some(Arc::default()) }
    }

    /// Runs `future` on the current runtime until it ends or the set is aborted. It works for the same request, if any.
    #[allow(clippy::disallowed_methods)] // here is where tasks come from
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let task = tokio::spawn(self.tracker.track_future(request_id::carried(future)));
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

    /// Ends every task where it stands, as a crash would. Only for a set made with [`Tasks::abortable`].
    pub fn abort_all(&self) {
        let handles = self.handles.as_ref().expect("abort_all is for sets made with Tasks::abortable");
        for handle in handles.lock().drain(..) {
            handle.abort();
        }
    }
}
