//! Request ids: which request a log line is about.
//!
//! ```text
//! client's X-Request-Id ──valid?──> that one, echoed on the answer
//!            └ none or unusable ──> the next number, put into words when a line or an answer of 500 and above needs it
//! ```
//!
//! The id goes with the task, not with a span: making a span for every request costs more than most requests have to
//! say. `env::Tasks` hands it on to what a request spawns, and the log's writer asks for it line by line.
//!
//! It stands in `util` because three layers meet in it: `http` knows it, `env` carries it and `cli` writes it.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// The longest id taken from a client, in bytes: a UUID or a trace context fits twice.
pub const LEN_MAX: usize = 128;

/// Which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestId {
    /// As the client said: 1 to [`LEN_MAX`] letters, digits and `-_.:/+=@`.
    Given(Bytes),
    /// A number of this process's own: the thread's in the upper 16 bits, then a count.
    Made(u64),
}

tokio::task_local! {
    static CURRENT: Option<RequestId>;
}

/// Threads that have made ids.
static THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The next number of this thread: no two threads touch one memory.
    static NEXT: Cell<u64> = Cell::new((THREADS.fetch_add(1, Ordering::Relaxed) & 0xffff) << 48);
}

impl RequestId {
    /// The id that a client gave. `None` if it is too long, or could be taken for something else in a log.
    pub fn given(text: &[u8]) -> Option<Self> {
        let usable = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
        let valid = (1..=LEN_MAX).contains(&text.len()) && text.iter().all(usable);
        valid.then(|| Self::Given(Bytes::copy_from_slice(text)))
    }

    /// A new one.
    pub fn made() -> Self {
        Self::Made(NEXT.with(|next| {
            let number = next.get();
            next.set(number.wrapping_add(1));
            number
        }))
    }

    /// Whether the client gave it.
    pub fn is_given(&self) -> bool {
        matches!(self, Self::Given(_))
    }

    /// Runs `future` as work for this request.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Some(self), future)
    }

    /// Calls `work` as work for this request.
    pub fn sync_scope<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(Some(self), work)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(text) => f.write_str(&String::from_utf8_lossy(text)), // ASCII: it was checked
            // The process's number tells a node's lives apart in one log.
            Self::Made(number) => write!(f, "{:x}-{number:x}", std::process::id()),
        }
    }
}

/// The request that the current task works for, if it does for one.
pub fn current() -> Option<RequestId> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// Makes `future` work for the request that the current task works for, wherever it runs.
pub fn carried<F: Future>(future: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(current(), future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_cannot_be_mistaken_in_a_log_are_taken() {
        for good in [
            "a",
            "7f9c24e8-3b12-4fef-91e0-56f1c5e0a1b2",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-01",
            "k8s:pod/a_b.c+1=@2",
        ] {
            assert_eq!(RequestId::given(good.as_bytes()).unwrap().to_string(), good);
        }
        assert!(RequestId::given(&[b'a'; LEN_MAX]).is_some());
        for bad in ["", "a b", "a\tb", "a\"b", "a\\b", "a{b}", "é", &"a".repeat(LEN_MAX + 1)] {
            assert_eq!(RequestId::given(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn no_two_threads_make_the_same_one() {
        let made = || (0..1000).map(|_| RequestId::made().to_string()).collect::<Vec<_>>();
        let mut all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(made)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 4000);
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods)] // a test's own task
    async fn an_id_is_there_for_its_request_and_what_that_carries_on() {
        assert_eq!(current(), None);
        let id = RequestId::given(b"one").unwrap();
        let seen = id.clone().scope(async {
            let bare = tokio::spawn(async { current() });
            let carried = tokio::spawn(carried(async { current() }));
            (current(), carried.await.unwrap(), bare.await.unwrap())
        });
        assert_eq!(seen.await, (Some(id.clone()), Some(id), None));
        assert_eq!(current(), None);
    }
}
