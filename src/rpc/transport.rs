//! Transport, the client side of messages between replicas, and Handler, the server side.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use super::{Request, Response};
use crate::types::NodeId;

/// A future that is boxed and may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why no answer came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was sent: there is no connection.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// Nothing was sent: too much is in flight to this peer.
    #[error("too many requests in flight")]
    Overloaded,
    /// It may have been sent; no answer came in time.
    #[error("no answer in time")]
    TimedOut,
    /// It may have been sent; the connection broke before the answer.
    #[error("connection lost: {0}")]
    Disconnected(String),
}

impl Error {
    /// Whether the peer may have got the request.
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Disconnected(_))
    }
}

/// Sends requests to peers. Dropping the future gives up waiting, not what was sent.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Sends a request and waits for its answer, at most `timeout`. The request is queued when the call is made,
    /// before the future is polled.
    fn call(&self, to: &NodeId, request: Request, timeout: Duration) -> BoxFuture<Result<Response, Error>>;

    /// Why this node and `peer` do not talk though both run (another ring, another secret), in one line with both
    /// values; `None` when nothing of the kind is known.
    fn mismatch(&self, _peer: &NodeId) -> Option<String> {
        None
    }
}

/// Serves requests of peers. Implemented by `replication`.
pub trait Handler: Send + Sync + fmt::Debug {
    /// Answers a request. Never fails: what cannot be done is refused in the answer.
    fn handle(&self, from: &NodeId, request: Request) -> BoxFuture<Response>;
}
