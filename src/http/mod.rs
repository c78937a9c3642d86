//! The doors: HTTP dialects, metrics and status pages.
//!
//! ```text
//! socket ── server ── router ──┬── dialects ── replication::Coordinator
//!           accept,   Host,    ├── admin, metrics     (set once the node has recovered;
//!           timeouts, path,    └── /internal/rpc       until then data requests get 503)
//!           limits    method         (handed to whoever registered for it)
//! ```
//!
//! What a request's header fields ask for that is not done is refused before its body is read: `head` finds it, `sites` tells
//! other web sites' pages, and `conditions` judges the answers to reads.
//!
//! `server` knows sockets and no key; `router` knows paths and no socket; a dialect turns one seed's requests into
//! calls of the coordinator and its answers back. `status` is the one table from errors to status codes.
//!
//! What is promised: every error answer has a body; a request body is read within `MAX_BODY_SIZE`, and all bodies and
//! values in flight within `MAX_INFLIGHT_BYTES`; no peer can hold a connection by being slow. What is not: a bare LF is
//! taken as the end of a header line, as RFC 9112 (section 2.2) allows and the HTTP library does.

pub mod accept;
pub mod access;
pub mod admin;
pub mod answer;
pub mod api;
pub mod body;
pub mod conditions;
pub mod dialects;
pub mod events;
pub mod figures;
pub mod head;
pub mod load;
pub mod metrics;
pub mod openapi;
pub mod page;
pub mod process;
pub mod prometheus;
pub mod query;
pub mod router;
pub mod server;
pub mod sites;
pub mod slow;
pub mod status;

pub use api::{Api, ApiLimits, ApiSettings};
pub use body::Body;
pub use server::{ServerLimits, Service, bind, serve, serve_tls};
