//! Conditions: what a client says must hold before it is answered (RFC 9110, section 13).
//!
//! ```text
//! on a read    If-Match ── else If-Unmodified-Since ──false──> 412
//!                 └ true: If-None-Match ── else If-Modified-Since ──false──> 304, no bytes
//!                            └ true: Range, heeding If-Range
//! on a write   501: a check before the write would say nothing about the moment of the write
//! ```
//!
//! A condition counts only where the answer would be a value otherwise: a key without one stays 404. What names itself by an
//! `ETag` can be asked for under conditions; lists and figures have none, so conditions on them are ignored.
//!
//! No `Last-Modified` is sent: in whole seconds it would be the same for several versions of a value. A client that asks with
//! a date of its own is answered by the microsecond at which the value was written. In `If-Range` a date never counts, as the
//! standard requires of a date that several versions may share.

use std::time::{Duration, SystemTime};

use hyper::header::{
    ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE,
};
use hyper::{Response, StatusCode};

use super::answer::X_KV_TIMESTAMP;
use super::body::Body;
use super::status::Fault;
use crate::types::Timestamp;

/// The conditions of one request, as they were sent.
#[derive(Debug, Default)]
pub struct Conditions {
    matches: Vec<HeaderValue>,
    matches_none: Vec<HeaderValue>,
    modified_since: Option<SystemTime>,
    unmodified_since: Option<SystemTime>,
}

/// Of an answer without bytes: what comes of asking under a condition that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Holds,
    /// The client has it already.
    NotModified,
    /// It is not what the client means.
    Failed,
}

impl Conditions {
    /// The conditions among a request's headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let all = |name: HeaderName| headers.get_all(name).iter().cloned().collect();
        Self {
            matches: all(IF_MATCH),
            matches_none: all(IF_NONE_MATCH),
            modified_since: date(headers, IF_MODIFIED_SINCE),
            unmodified_since: date(headers, IF_UNMODIFIED_SINCE),
        }
    }

    /// Judges an answer that is otherwise ready: passes it on, or says what the client is told instead.
    ///
    /// # Errors
    /// [`Fault::PreconditionFailed`].
    pub fn judge(&self, response: Response<Body>) -> Result<Response<Body>, Fault> {
        let Some(etag) = response.headers().get(ETAG) else { return Ok(response) };
        let written = response.headers().get(X_KV_TIMESTAMP).and_then(written_at);
        match self.outcome(etag, written) {
            Outcome::Holds => Ok(response),
            Outcome::NotModified => Ok(not_modified(response)),
            Outcome::Failed => Err(Fault::PreconditionFailed),
        }
    }

    fn outcome(&self, etag: &HeaderValue, written: Option<SystemTime>) -> Outcome {
        if !self.matches.is_empty() {
            if !names(&self.matches, etag, Comparison::Strong) {
                return Outcome::Failed;
            }
        } else if let (Some(date), Some(written)) = (self.unmodified_since, written)
            && written > date
        {
            return Outcome::Failed;
        }
        let is_known = if self.matches_none.is_empty() {
            matches!((self.modified_since, written), (Some(date), Some(written)) if written <= date)
        } else {
            names(&self.matches_none, etag, Comparison::Weak)
        };
        if is_known { Outcome::NotModified } else { Outcome::Holds }
    }
}

/// Whether a request's `Range` may be served from the value of that name: without `If-Range` always. A date does not count.
pub fn is_range_of(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let mut conditions = headers.get_all(IF_RANGE).iter();
    match (conditions.next(), conditions.next()) {
        (None, _) => true,
        (Some(only), None) => only == etag,
        (Some(_), Some(_)) => false,
    }
}

/// Whether weak names count (RFC 9110, section 8.8.3.2). Ours are all strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of names, or `*`, names a value. Ours have no commas, so that a list may be cut at any of them.
fn names(lists: &[HeaderValue], etag: &HeaderValue, comparison: Comparison) -> bool {
    let names = lists.iter().flat_map(|list| list.as_bytes().split(|c| *c == b','));
    names.map(<[u8]>::trim_ascii).any(|name| {
        let name = match comparison {
            Comparison::Strong => name,
            Comparison::Weak => name.strip_prefix(b"W/").unwrap_or(name),
        };
        name == b"*" || name == etag.as_bytes()
    })
}

/// A date; what is none, and what is sent twice, is to be ignored.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    let mut dates = headers.get_all(name).iter();
    let (Some(only), None) = (dates.next(), dates.next()) else { return None };
    httpdate::parse_http_date(only.to_str().ok()?).ok()
}

/// When a value was written, by the timestamp that its answer tells.
fn written_at(timestamp: &HeaderValue) -> Option<SystemTime> {
    let timestamp = Timestamp::from_u64(timestamp.to_str().ok()?.parse().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(timestamp.micros()))
}

/// The answer without its bytes, and without what describes them.
fn not_modified(mut response: Response<Body>) -> Response<Body> {
    use hyper::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE};
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    for name in [CONTENT_TYPE, CONTENT_RANGE, ACCEPT_RANGES] {
        response.headers_mut().remove(name);
    }
    *response.body_mut() = Body::empty();
    response
}
