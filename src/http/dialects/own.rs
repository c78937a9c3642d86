//! Our own dialect, `/v1`, for what the others cannot say: raw bytes of any type, many keys at once, lists that run backwards,
//! and faults that a program can act on.
//!
//! A fault is `application/problem+json` (RFC 9457):
//!
//! | member | what it says |
//! | --- | --- |
//! | `title`, `status` | the status code's words and number |
//! | `detail` | what went wrong, for people |
//! | `code` | what went wrong, for programs: `code_of` lists them |
//! | `retryable` | whether the same request may simply be sent again |
//! | `outcome` | `not_sent`: nothing was written; `unknown`: some replicas may have it |

use std::borrow::Cow;
use std::collections::VecDeque;

use futures_util::StreamExt as _;
use futures_util::stream;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::raw::{self, Served};
use super::scan::{self, Encoding};
use super::{begin, cursor, delete_range, item};
use crate::http::answer::{self, X_KV_LOSSY, X_NEXT_CURSOR, ascii_header};
use crate::http::api::Door;
use crate::http::body::{self, Body};
use crate::http::query::Query;
use crate::http::router::Route;
use crate::http::status::{self, Fault};
use crate::replication::{
    BatchReceipt, CheckpointError, Coordinator, Mutation, NotSent, ReadError, ReadOptions, ValuePage,
    WriteError,
};
use crate::types::{Expiry, Key, KeyRange, Record, Ttl, Value};

/// Items a page of a list when the request does not say.
const LIMIT_DEFAULT: usize = 1_000;
/// Keys that a list backwards looks at, at most, deleted ones included: it walks its range from the start.
const REVERSE_EXAMINED_MAX: usize = 1_000_000;
/// Keys of one request that are read at a time.
const GETS_IN_FLIGHT: usize = 32;
/// Keys of one request.
const KEYS_MAX: usize = 10_000;
/// Bytes of values that one answer holds, at most; keys beyond are told to be asked for again.
const GET_BYTES_MAX: usize = 8 << 20;

#[derive(Serialize)]
struct Problem<'a> {
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    retryable: bool,
    outcome: &'a str,
}

fn problem(status: StatusCode, detail: &str, code: &str, retryable: bool, outcome: &str) -> Response<Body> {
    let title = status.canonical_reason().unwrap_or("Error");
    with_problem(status, &Problem { title, status: status.as_u16(), detail, code, retryable, outcome })
}

fn with_problem(status: StatusCode, problem: &impl Serialize) -> Response<Body> {
    const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
    let body = serde_json::to_vec(problem).expect("our own structures have string keys and finite numbers");
    answer::with_type(status, PROBLEM, body)
}

/// What this dialect says of whatever went wrong.
pub fn failed(fault: &Fault) -> Response<Body> {
    let outcome = match fault {
        Fault::Write(error) => outcome_of(error),
        _ => "not_sent",
    };
    problem(fault.code(), &fault.to_string(), code_of(fault), is_retryable(fault), outcome)
}

/// Whether nothing was written, or perhaps something.
pub(super) fn outcome_of(error: &WriteError) -> &'static str {
    match error {
        WriteError::NotSent(_) | WriteError::NoSpace => "not_sent",
        WriteError::Unknown { .. } => "unknown",
    }
}

/// What went wrong, for programs.
fn code_of(fault: &Fault) -> &'static str {
    match fault {
        Fault::BadRequest(_) => "bad_request",
        Fault::NoSuchPath => "no_such_path",
        Fault::MethodNotAllowed { .. } => "method_not_allowed",
        Fault::Unauthorized(_) => "unauthorized",
        Fault::Forbidden(_) => "forbidden",
        Fault::UnknownHost(_) => "unknown_host",
        Fault::CrossSite => "cross_site",
        Fault::NotImplemented(_) => "not_implemented",
        Fault::PreconditionFailed => "precondition_failed",
        Fault::UnsupportedCoding => "unsupported_coding",
        Fault::TooSlow => "body_too_slow",
        Fault::BodyTooLarge { .. } | Fault::TooLarge(_) => "too_large",
        Fault::Overloaded => "overloaded",
        Fault::NotReady(_) => "not_ready",
        Fault::Write(WriteError::NotSent(reason)) | Fault::Read(ReadError::NotSent(reason)) => match reason {
            NotSent::TooFewReplicas { .. } => "too_few_replicas",
            NotSent::ClockAhead(_) => "clock_ahead",
            NotSent::NotReady(_) => "not_ready",
            NotSent::Overloaded => "overloaded",
        },
        Fault::Write(WriteError::NoSpace) => "no_space",
        Fault::Write(WriteError::Unknown { .. }) => "outcome_unknown",
        Fault::Read(ReadError::Unanswered { .. }) => "unanswered",
        Fault::Read(ReadError::Damaged { .. }) => "damaged",
        Fault::Checkpoint(_) => "checkpoint",
    }
}

/// Whether the same request may be sent again without a thought. A write of unknown outcome may not: sent again it is a
/// newer write, and may overwrite what somebody else has written since.
fn is_retryable(fault: &Fault) -> bool {
    match fault {
        Fault::TooSlow
        | Fault::Checkpoint(CheckpointError::Busy)
        | Fault::Overloaded
        | Fault::NotReady(_)
        | Fault::Write(WriteError::NotSent(_) | WriteError::NoSpace)
        | Fault::Read(ReadError::NotSent(_) | ReadError::Unanswered { .. }) => true,
        Fault::BadRequest(_)
        | Fault::NoSuchPath
        | Fault::MethodNotAllowed { .. }
        | Fault::Unauthorized(_)
        | Fault::Forbidden(_)
        | Fault::UnknownHost(_)
        | Fault::CrossSite
        | Fault::NotImplemented(_)
        | Fault::PreconditionFailed
        | Fault::UnsupportedCoding
        | Fault::BodyTooLarge { .. }
        | Fault::TooLarge(_)
        | Fault::Checkpoint(_)
        | Fault::Write(WriteError::Unknown { .. })
        | Fault::Read(ReadError::Damaged { .. }) => false,
    }
}

fn not_found() -> Response<Body> {
    problem(StatusCode::NOT_FOUND, "the key has no value", "not_found", false, "not_sent")
}

/// `PUT /v1/kv/{key}`: the body is the value, `Content-Type` its type.
pub async fn put(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::OwnPut, &request)?;
    let key = raw::key_of(Route::OwnPut.key_in(request.uri().path()))?;
    let (value, _reservation) = raw::value_of(door, request).await?;
    let receipt = coordinator.write(key, Mutation::put(value, options.ttl), options.write).await?;
    Ok(answer::of_put(answer::no_content(), &receipt, options.ttl))
}

/// `GET|HEAD /v1/kv/{key}`.
pub async fn get(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::OwnGet, request)?;
    let key = raw::key_of(Route::OwnGet.key_in(request.uri().path()))?;
    match coordinator.get(key, options.read).await? {
        Some(record @ Record::Value { .. }) => {
            Ok(match raw::serve(door, request, &record, answer::etag(&record))? {
                Served::Answer(response) => response,
                Served::BeyondEnd(headers) => {
                    let code = StatusCode::RANGE_NOT_SATISFIABLE;
                    let mut response =
                        problem(code, "the range lies beyond the value", "bad_range", false, "not_sent");
                    response.headers_mut().extend(headers);
                    response
                }
            })
        }
        absent => Ok(answer::of_absence(not_found(), absent.as_ref())),
    }
}

/// `DELETE /v1/kv/{key}`: 204, also when there was nothing.
pub async fn delete(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::OwnDelete, request)?;
    let key = raw::key_of(Route::OwnDelete.key_in(request.uri().path()))?;
    let receipt = coordinator.delete(key, options.of_delete()?).await?;
    Ok(answer::of_write(answer::no_content(), &receipt))
}

// ---- lists ----

/// `GET /v1/kv`: a page of keys and values in key order, or from the last one backwards.
///
/// Backwards, the range is walked from its start all the same, and the page is its end: name a start or a prefix that is
/// close. Beyond `REVERSE_EXAMINED_MAX` items it is refused.
pub async fn list(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::OwnList, request)?;
    let query = Query::parse(request.uri().query())?;
    let (reverse, keys_only) = (query.flag("reverse")?, query.flag("keys_only")?);
    let timestamps = query.flag("timestamps")?;
    let encoding = Encoding::of(&query)?;
    let limit = query.number("limit", 1, scan::LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
    let mut reservation = door.api.shared.budget.reserve_none();
    reservation.grow(scan::page_guess(limit))?;
    let read_quorum = options.read.read_quorum;
    let page = if reverse {
        let range = scan::range_backwards(&query)?;
        last_page(coordinator, range, read_quorum, limit).await?
    } else {
        scan::fetch(coordinator, scan::page_options(scan::range(&query)?, read_quorum, limit)).await?
    };
    let (mut json, mut lossy) = (br#"{"items":["#.to_vec(), false);
    for (number, (key, record)) in page.items.iter().enumerate() {
        json.extend_from_slice(if number == 0 { br#"{"key":"# } else { br#",{"key":"# });
        lossy |= encoding.push(&mut json, key.as_bytes());
        if let Some(value) = record.as_value().filter(|_| !keys_only) {
            lossy |= push_value(&mut json, encoding, value);
        }
        if timestamps {
            json.extend_from_slice(br#","timestamp":"#);
            json.extend_from_slice(itoa::Buffer::new().format(record.timestamp().as_u64()).as_bytes());
        }
        json.push(b'}');
    }
    json.push(b']');
    let cursor = page.resume.map(|resume| cursor::encode(&resume));
    if let Some(cursor) = &cursor {
        json.extend_from_slice(format!(r#","next_cursor":"{cursor}""#).as_bytes());
    }
    json.push(b'}');
    let mut response = answer::json_bytes(StatusCode::OK, reservation.hold(json.into()));
    if let Some(cursor) = cursor {
        response.headers_mut().insert(X_NEXT_CURSOR, ascii_header(cursor));
    }
    if lossy {
        response.headers_mut().insert(X_KV_LOSSY, HeaderValue::from_static("1"));
    }
    Ok(response)
}

/// Appends `,"value":…` and, if it has them, `,"content_type":…` and `,"expires_at":…`; says whether bytes were replaced.
fn push_value(json: &mut Vec<u8>, encoding: Encoding, value: &Value) -> bool {
    json.extend_from_slice(br#","value":"#);
    let lossy = encoding.push(json, value.as_bytes());
    if let Some(content_type) = value.content_type() {
        json.extend_from_slice(br#","content_type":"#);
        Encoding::Text.push(json, content_type.as_bytes());
    }
    if let Some(expires_at) = value.expires_at() {
        json.extend_from_slice(format!(r#","expires_at":"{expires_at}""#).as_bytes());
    }
    lossy
}

/// The last items of a range, the last one first; `resume` is the end of what lies before them.
async fn last_page(
    coordinator: &Coordinator,
    mut range: KeyRange,
    read_quorum: Option<usize>,
    limit: usize,
) -> Result<ValuePage, Fault> {
    let (mut last, mut bytes, mut seen) = (VecDeque::new(), 0, 0);
    let mut dropped = false;
    loop {
        let page =
            scan::fetch(coordinator, scan::page_options(range.clone(), read_quorum, scan::LIMIT_MAX)).await?;
        seen += page.examined;
        for (key, record) in page.items {
            bytes += key.as_bytes().len() + record.value_len();
            last.push_front((key, record));
            while last.len() > limit || (bytes > scan::PAGE_BYTES && last.len() > 1) {
                let (key, record) = last.pop_back().expect("it is longer than one");
                bytes -= key.as_bytes().len() + record.value_len();
                dropped = true;
            }
        }
        let Some(resume) = page.resume else { break };
        if seen > REVERSE_EXAMINED_MAX {
            return Err(Fault::BadRequest(format!(
                "\"reverse\" walks at most {REVERSE_EXAMINED_MAX} keys, deleted ones included; name a start or a prefix that is closer"
            )));
        }
        range.start = Some(resume);
    }
    let resume = last.back().filter(|_| dropped).map(|(key, _)| key.to_bytes());
    Ok(ValuePage { items: last.into(), resume, examined: seen })
}

// ---- many keys ----

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys<'a> {
    #[serde(borrow)]
    keys: Vec<item::Text<'a>>,
}

/// Reads `{"keys":[…]}`, keys as the query's `encoding` says.
async fn keys_of(door: &Door, request: Request<Incoming>) -> Result<(Vec<Key>, Encoding), Fault> {
    let encoding = Encoding::of(&Query::parse(request.uri().query())?)?; // its names are checked already
    let shared = &door.api.shared;
    let body = body::read(request.into_body(), shared.limits.body, &shared.budget).await?;
    let Keys { keys } = item::json(&body.bytes)?;
    if keys.len() > KEYS_MAX {
        return Err(Fault::TooLarge(format!("{} keys; at most {KEYS_MAX} are allowed", keys.len())));
    }
    let keys = keys.iter().enumerate().map(|(index, item::Text(text))| {
        let place = format!("keys[{index}]: ");
        item::key(encoding.decode(text, &place)?, &place)
    });
    Ok((keys.collect::<Result<_, _>>()?, encoding))
}

/// `POST /v1/kv:get` `{"keys":[…]}`: `{"items":[…],"missing":[…],"deferred":[…]}`, each key in one of the three, in the order
/// asked. What is deferred did not fit into one answer: ask again for it.
pub async fn get_many(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::OwnGetMany, &request)?;
    let (keys, encoding) = keys_of(door, request).await?;
    let found = read_all(door, coordinator, keys, options.read).await?;
    let mut reservation = door.api.shared.budget.reserve_none();
    let (mut items, mut missing, mut deferred) = (Vec::new(), Vec::new(), Vec::new());
    let mut lossy = false;
    for (key, read) in found {
        let out = match &read {
            Read::Value(_) => &mut items,
            Read::Nothing => &mut missing,
            Read::Deferred => &mut deferred,
        };
        if !out.is_empty() {
            out.push(b',');
        }
        if let Read::Value(value) = &read {
            out.extend_from_slice(br#"{"key":"#);
            lossy |= encoding.push(out, key.as_bytes());
            lossy |= push_value(out, encoding, value);
            out.push(b'}');
        } else {
            lossy |= encoding.push(out, key.as_bytes());
        }
    }
    let parts: [&[u8]; 7] =
        [br#"{"items":["#, &items, br#"],"missing":["#, &missing, br#"],"deferred":["#, &deferred, b"]}"];
    let json = parts.concat();
    reservation.grow(json.len())?;
    let mut response = answer::json_bytes(StatusCode::OK, reservation.hold(json.into()));
    if lossy {
        response.headers_mut().insert(X_KV_LOSSY, HeaderValue::from_static("1"));
    }
    Ok(response)
}

/// What came of one key among many.
enum Read {
    Value(Value),
    Nothing,
    /// The answer is full.
    Deferred,
}

/// Reads keys, some at a time, in order. One that cannot be read fails all.
async fn read_all(
    door: &Door,
    coordinator: &Coordinator,
    keys: Vec<Key>,
    options: ReadOptions,
) -> Result<Vec<(Key, Read)>, Fault> {
    let mut reservation = door.api.shared.budget.reserve_none();
    let (mut bytes, mut found) = (0, Vec::with_capacity(keys.len()));
    let mut keys = keys.into_iter();
    while bytes < GET_BYTES_MAX {
        // In groups, so that keys beyond the bound are not read at all.
        let group: Vec<_> = keys.by_ref().take(GETS_IN_FLIGHT).collect();
        if group.is_empty() {
            break;
        }
        let reads = stream::iter(group)
            .map(|key| async move { (key.clone(), coordinator.get(key, options).await) })
            .buffered(GETS_IN_FLIGHT);
        for (key, record) in reads.collect::<Vec<_>>().await {
            let read = match record?.as_ref().and_then(Record::as_value) {
                Some(value) if bytes == 0 || bytes + value.len() <= GET_BYTES_MAX => {
                    bytes += value.len();
                    reservation.grow(value.len())?;
                    Read::Value(value.clone())
                }
                Some(_) => Read::Deferred,
                None => Read::Nothing,
            };
            found.push((key, read));
        }
    }
    found.extend(keys.map(|key| (key, Read::Deferred)));
    Ok(found)
}

/// What `kv:put` and `kv:delete` answer.
#[derive(Serialize)]
struct Changed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed: Vec<FailedKey<'a>>,
}

/// A range of which only a part was deleted.
#[derive(Serialize)]
struct Stopped<'a> {
    #[serde(flatten)]
    problem: Problem<'a>,
    deleted: u64,
    next_cursor: &'a str,
}

/// What this dialect says of a range of which only a part was deleted.
pub fn stopped(fault: &Fault, deleted: u64, next_cursor: &str) -> Response<Body> {
    let (status, detail) = (fault.code(), fault.to_string());
    let problem = Problem {
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail: &detail,
        code: code_of(fault),
        retryable: delete_range::is_retryable(fault),
        outcome: delete_range::outcome_of(fault),
    };
    with_problem(status, &Stopped { problem, deleted, next_cursor })
}

#[derive(Serialize)]
struct FailedKey<'a> {
    key: Cow<'a, str>,
    code: &'static str,
    retryable: bool,
    outcome: &'static str,
    detail: String,
}

/// An item of `kv:put`: a line of `kvstore export`. Each of the two is text, or base64 under the other name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewItem<'a> {
    #[serde(borrow)]
    key: Option<item::Text<'a>>,
    #[serde(borrow)]
    key_base64: Option<item::Text<'a>>,
    #[serde(borrow)]
    value: Option<item::Text<'a>>,
    #[serde(borrow)]
    value_base64: Option<item::Text<'a>>,
    #[serde(borrow)]
    content_type: Option<item::Text<'a>>,
    ttl: Option<item::Lifetime>,
    /// When it ends, in place of a ttl: as scans and exports say it.
    #[serde(borrow)]
    expires_at: Option<item::Text<'a>>,
    /// An export says it; a write is given a new one.
    #[serde(default, rename = "timestamp")]
    _timestamp: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewItems<'a> {
    #[serde(borrow)]
    items: Vec<NewItem<'a>>,
}

impl NewItem<'_> {
    /// `ttl`: that of an item that says nothing of its end.
    fn read(
        self,
        encoding: Encoding,
        value_size_max: usize,
        ttl: Option<Ttl>,
        place: &str,
    ) -> Result<(Key, Mutation), Fault> {
        let bytes =
            |name: &str, text: Option<item::Text<'_>>, base64: Option<item::Text<'_>>| match (text, base64) {
                (Some(item::Text(text)), None) => encoding.decode(&text, place),
                (None, Some(item::Text(text))) => item::decode_base64(&text, place),
                (None, None) => Err(Fault::BadRequest(format!("{place}missing field `{name}`"))),
                (Some(_), Some(_)) => {
                    Err(Fault::BadRequest(format!("{place}both `{name}` and `{name}_base64`")))
                }
            };
        let key = item::key(bytes("key", self.key, self.key_base64)?, place)?;
        let value = bytes("value", self.value, self.value_base64)?;
        item::check_value(value.len(), value_size_max, place)?;
        let content_type = match &self.content_type {
            None => None,
            Some(item::Text(text)) => raw::content_type(text.as_bytes(), &format!("{place}content_type"))?,
        };
        let value = Value::new(value).of_type(content_type);
        let mutation = match (self.ttl, self.expires_at) {
            (ttl_of_its_own, None) => {
                Mutation::put(value, ttl_of_its_own.map(|item::Lifetime(ttl)| ttl).or(ttl))
            }
            (None, Some(item::Text(moment))) => {
                let expires_at = Expiry::parse(&moment).ok_or_else(|| {
                    let example = "2026-11-21T16:45:01.25Z";
                    Fault::BadRequest(format!("{place}expires_at must be a moment such as {example}"))
                })?;
                Mutation::Put(value.expiring(Some(expires_at)))
            }
            (Some(_), Some(_)) => {
                return Err(Fault::BadRequest(format!("{place}both `ttl` and `expires_at`")));
            }
        };
        Ok((key, mutation))
    }
}

/// `POST /v1/kv:put` `{"items":[{"key","value","content_type"?,"ttl"?},…]}`: `{"written":n}`. Any bytes of any type, many at a time.
/// Not atomic: of those that failed each is told of; of two items with one key the later wins.
pub async fn put_many(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::OwnPutMany, &request)?;
    let encoding = Encoding::of(&Query::parse(request.uri().query())?)?;
    let shared = &door.api.shared;
    let body = body::read(request.into_body(), shared.limits.body, &shared.budget).await?;
    let NewItems { items: given } = item::json(&body.bytes)?;
    let mut items = Vec::with_capacity(given.len());
    for (index, item) in given.into_iter().enumerate() {
        let place = format!("items[{index}]: ");
        items.push(item.read(encoding, shared.limits.value_size_max, options.ttl, &place)?);
    }
    let count = items.len();
    let receipt = coordinator.batch(items, options.write).await;
    Ok(answer::of_batch(changed(&receipt, count, encoding, true), &receipt))
}

/// `POST /v1/kv:delete` `{"keys":[…]}`: `{"deleted":n}`, also for keys that were not there. Not atomic: of those that failed
/// each is told of.
pub async fn delete_many(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::OwnDeleteMany, &request)?;
    let options = options.of_delete()?;
    let (keys, encoding) = keys_of(door, request).await?;
    let count = keys.len();
    let items = keys.into_iter().map(|key| (key, Mutation::Delete)).collect();
    let receipt = coordinator.batch(items, options).await;
    Ok(answer::of_batch(changed(&receipt, count, encoding, false), &receipt))
}

fn changed(receipt: &BatchReceipt, count: usize, encoding: Encoding, is_put: bool) -> Response<Body> {
    let code = match receipt.failed.as_slice() {
        [] => StatusCode::OK,
        failed => status::of_batch(failed.iter().map(|item| &item.error)),
    };
    let failed = receipt.failed.iter().map(|item| {
        let fault = Fault::Write(item.error.clone());
        FailedKey {
            key: encoding.text(item.key.as_bytes()),
            code: code_of(&fault),
            retryable: is_retryable(&fault),
            outcome: outcome_of(&item.error),
            detail: fault.to_string(),
        }
    });
    let done = Some(count - receipt.failed.len());
    let (written, deleted) = if is_put { (done, None) } else { (None, done) };
    answer::json(code, &Changed { written, deleted, failed: failed.collect() })
}
