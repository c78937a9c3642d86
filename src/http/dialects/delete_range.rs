//! `POST /delete-range`: deletes every key that a scan of a range finds.
//!
//! ```text
//! page of the range, read at R ──> its keys deleted as one batch, at W ──> next page ── … ──> {"deleted":n}
//!        └ failed                        └ some failed                         └ the node stops
//!             503, 504, 507, 500 {"deleted":n, …, "next_cursor":c}: the same request with cursor=c goes on
//! ```
//!
//! One page is in memory at a time. It is no step of its own: a key that is written behind the scan stays, one that is
//! written between its page and its batch goes, and whoever reads meanwhile sees a part of the range. It ends with its
//! client: what was not begun by then is not deleted.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde::Serialize;

use super::{cursor, item, own, scan};
use crate::http::answer;
use crate::http::api::Door;
use crate::http::body::Body;
use crate::http::query::Query;
use crate::http::router::Route;
use crate::http::status::Fault;
use crate::replication::{BatchReceipt, Mutation, ReadError, WriteError};
use crate::types::{Key, KeyRange};

/// Keys a page: one message a replica for each batch of them.
const PAGE_KEYS: usize = 1_000;

#[derive(Serialize)]
struct Deleted {
    deleted: u64,
}

/// What the plain dialect says of a range of which only a part was deleted.
#[derive(Serialize)]
struct Stopped<'a> {
    deleted: u64,
    error: String,
    retryable: bool,
    outcome: &'a str,
    next_cursor: &'a str,
}

/// Whether the same request, with the cursor, may simply be sent again: always, unless a part of the range cannot be read.
/// It deletes what it finds, whenever that was written.
pub fn is_retryable(fault: &Fault) -> bool {
    !matches!(fault, Fault::Read(ReadError::Damaged { .. }))
}

/// What became of the keys that were not counted.
pub fn outcome_of(fault: &Fault) -> &'static str {
    match fault {
        Fault::Write(error) => own::outcome_of(error),
        _ => "not_sent",
    }
}

/// `POST /delete-range` and `POST /v1/kv:delete-range`.
pub async fn delete_range(
    door: &Door,
    route: Route,
    request: &Request<Incoming>,
) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let query = route.query(request.uri())?;
    let options = item::quorums(coordinator, &query)?;
    let write = options.of_delete()?;
    let mut range = range_asked(&query)?;
    let mut reservation = door.api.shared.budget.reserve_none();
    reservation.grow(scan::page_guess(PAGE_KEYS))?;
    let mut deleted = 0;
    loop {
        let page = if door.api.is_draining() {
            Err(Fault::NotReady("the node is stopping"))
        } else {
            let page = scan::page_options(range.clone(), options.read.read_quorum, PAGE_KEYS);
            scan::fetch(coordinator, page).await.map_err(Fault::from)
        };
        let page = match page {
            Ok(page) => page,
            Err(fault) => {
                let at = range.start.unwrap_or_default();
                return Ok(stopped(route, &fault, deleted, &at));
            }
        };
        let keys: Vec<_> = page.items.into_iter().map(|(key, _)| (key, Mutation::Delete)).collect();
        let count = keys.len() as u64;
        let receipt = coordinator.batch(keys, write).await;
        deleted += count - receipt.failed.len() as u64;
        if let Some((at, worst)) = failure(&receipt) {
            return Ok(stopped(route, &Fault::Write(worst), deleted, at.as_bytes()));
        }
        match page.resume {
            Some(resume) => range.start = Some(resume),
            None => return Ok(answer::json(StatusCode::OK, &Deleted { deleted })),
        }
    }
}

/// The keys a request asks for. All of them only if it says so: a parameter that was misspelt must not cost everything.
fn range_asked(query: &Query<'_>) -> Result<KeyRange, Fault> {
    let all = query.flag("all")?;
    let is_bounded = ["start", "end", "prefix"].into_iter().any(|name| scan::bound(query, name).is_some());
    match (all, is_bounded) {
        (true, true) => Err(Fault::BadRequest(
            "\"all\" means every key; leave it out beside \"start\", \"end\" or \"prefix\"".to_owned(),
        )),
        (false, false) => Err(Fault::BadRequest(
            "\"start\", \"end\" or \"prefix\" is missing; \"all=true\" deletes every key".to_owned(),
        )),
        _ => scan::range(query),
    }
}

/// The first key of a batch that was not deleted, and the worst that happened to one.
fn failure(receipt: &BatchReceipt) -> Option<(&Key, WriteError)> {
    let rank = |error: &WriteError| match error {
        WriteError::Unknown { .. } => 2,
        WriteError::NotSent(_) => 1,
        WriteError::NoSpace => 0,
    };
    let worst = receipt.failed.iter().max_by_key(|item| rank(&item.error))?;
    Some((&receipt.failed.first()?.key, worst.error.clone()))
}

fn stopped(route: Route, fault: &Fault, deleted: u64, at: &[u8]) -> Response<Body> {
    let next_cursor = &cursor::encode(at);
    let response = if route == Route::OwnDeleteRange {
        own::stopped(fault, deleted, next_cursor)
    } else {
        let (error, retryable, outcome) = (fault.to_string(), is_retryable(fault), outcome_of(fault));
        answer::json(fault.code(), &Stopped { deleted, error, retryable, outcome, next_cursor })
    };
    answer::dressed(response, fault)
}
