//! Raw bytes in and out, for the dialects in which a value is the whole body: blobs and our own.
//!
//! ```text
//! Range: one part of the bytes ──> 206, or 416 when it lies beyond them     (GET only; If-Range heeded)
//!        several, or nonsense  ──> all of them: RFC 9110 (section 14.2) allows it
//! ```
//!
//! Conditions on the value are judged when the answer is ready (`http::conditions`). A value is stored as it is sent: a body in
//! a coding (`Content-Encoding`) is refused, since no other dialect could tell its readers.
//!
//! A value is served as the type that its writer gave it. It was written by a stranger and lies at our own address, so a
//! browser is told not to guess at types and to run it in a sandbox.

use std::ops::Range;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, RANGE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};

use super::item;
use crate::http::answer::{self, X_KV_TIMESTAMP, ascii_header, timestamp_header};
use crate::http::api::Door;
use crate::http::body::{self, Body, Reservation};
use crate::http::conditions;
use crate::http::query;
use crate::http::status::Fault;
use crate::types::{ContentType, Key, Record, Value};

/// The type that a value without one is served as.
const OCTETS: &str = "application/octet-stream";

/// The key in a path, percent-decoded.
pub fn key_of(raw: &str) -> Result<Key, Fault> {
    item::key(Bytes::from(query::decode_path(raw)?.into_owned()), "")
}

/// The request's body as a value, with its type, and what it takes of the budget until the request is answered.
pub async fn value_of(door: &Door, request: Request<Incoming>) -> Result<(Value, Reservation), Fault> {
    let content_type = content_type_of(request.headers())?;
    let shared = &door.api.shared;
    let body = body::read(request.into_body(), shared.limits.body, &shared.budget).await?;
    item::check_value(body.bytes.len(), shared.limits.value_size_max, "")?;
    Ok((Value::new(body.bytes).of_type(content_type), body.reservation))
}

/// The type that a request gives its body.
fn content_type_of(headers: &HeaderMap) -> Result<Option<ContentType>, Fault> {
    let mut types = headers.get_all(CONTENT_TYPE).iter().map(HeaderValue::as_bytes);
    match (types.next(), types.next()) {
        (_, Some(_)) => Err(Fault::BadRequest("more than one Content-Type header".to_owned())),
        (None | Some(b""), None) => Ok(None),
        (Some(text), None) => content_type(text, "Content-Type"),
    }
}

/// The type that a client gives a value under some name. Octets are what a value without a type is: that is not kept.
pub fn content_type(text: &[u8], name: &str) -> Result<Option<ContentType>, Fault> {
    if text == OCTETS.as_bytes() {
        return Ok(None);
    }
    // What is no media type would be served as one, to clients that fail on it.
    ContentType::new(text).filter(|_| is_media_type(text)).map(Some).ok_or_else(|| {
        let max = ContentType::MAX_LEN;
        Fault::BadRequest(format!(
            "{name} must be a media type such as text/plain, of at most {max} characters"
        ))
    })
}

/// Whether it is a type, a slash, a subtype, and perhaps parameters (RFC 9110, 8.3.1).
fn is_media_type(text: &[u8]) -> bool {
    let is_token = |part: &[u8]| {
        !part.is_empty() && part.iter().all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(c))
    };
    let essence = text.split(|c| *c == b';').next().unwrap_or_default().trim_ascii_end();
    let mut parts = essence.splitn(2, |c| *c == b'/');
    parts.next().is_some_and(is_token) && parts.next().is_some_and(is_token)
}

/// Names the type of a value, as it is served.
pub fn add_type(headers: &mut HeaderMap, record: &Record) {
    let typed = record.content_type().and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok());
    let Some(content_type) = typed else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(OCTETS));
        return;
    };
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
}

/// What a request is answered with that asks for a value.
#[derive(Debug)]
pub enum Served {
    /// The bytes, or a part of them.
    Answer(Response<Body>),
    /// It asks for a part that lies beyond the value's end. To be worded by the dialect, with these headers.
    BeyondEnd(HeaderMap),
}

/// Serves a value as a request asks for it.
///
/// # Errors
/// [`Fault::Overloaded`] when too much is in flight.
pub fn serve(
    door: &Door,
    request: &Request<Incoming>,
    record: &Record,
    etag: HeaderValue,
) -> Result<Served, Fault> {
    let headers = request.headers();
    let value = record.as_value().map(Value::to_bytes).unwrap_or_default();
    let mut response = Response::new(Body::empty());
    add_type(response.headers_mut(), record);
    response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let bytes = match part_asked(request.method(), headers, &etag, value.len()) {
        Part::All => value,
        Part::Of(range) => {
            let (first, last, len) = (range.start, range.end - 1, value.len());
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let content_range = ascii_header(format!("bytes {first}-{last}/{len}"));
            response.headers_mut().insert(CONTENT_RANGE, content_range);
            value.slice(range)
        }
        Part::None => {
            let content_range = ascii_header(format!("bytes */{}", value.len()));
            let timestamp = timestamp_header(record.timestamp());
            let headers = [(CONTENT_RANGE, content_range), (ETAG, etag), (X_KV_TIMESTAMP, timestamp)];
            return Ok(Served::BeyondEnd(headers.into_iter().collect()));
        }
    };
    *response.body_mut() = Body::whole(answer::reserved(&door.api.shared.budget, bytes)?);
    response.headers_mut().insert(ETAG, etag);
    response.headers_mut().insert(X_KV_TIMESTAMP, timestamp_header(record.timestamp()));
    answer::expires(response.headers_mut(), record.expires_at());
    Ok(Served::Answer(response))
}

/// Which of a value's bytes a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    All,
    Of(Range<usize>),
    None,
}

fn part_asked(method: &Method, headers: &HeaderMap, etag: &HeaderValue, len: usize) -> Part {
    let mut ranges = headers.get_all(RANGE).iter();
    match (ranges.next().and_then(|range| range.to_str().ok()), ranges.next()) {
        (Some(range), None) if method == Method::GET && conditions::is_range_of(headers, etag) => {
            parse_range(range, len)
        }
        _ => Part::All,
    }
}

/// Reads `bytes=a-b`, `bytes=a-` and `bytes=-n`; whatever else is there asks for everything.
fn parse_range(range: &str, len: usize) -> Part {
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        is_number.then(|| text.parse::<usize>().unwrap_or(usize::MAX)) // beyond any value is beyond any value
    };
    let unit_and_bounds = range.split_once('=').filter(|(unit, _)| unit.eq_ignore_ascii_case("bytes"));
    let bounds = unit_and_bounds.and_then(|(_, bounds)| bounds.trim().split_once('-'));
    let Some((first, last)) = bounds else { return Part::All };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(len),
        (Some(first), None) if last.is_empty() => first..len,
        (None, Some(count)) if first.is_empty() => len.saturating_sub(count)..len,
        _ => return Part::All,
    };
    if range.is_empty() { Part::None } else { Part::Of(range) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_a_media_type_is_taken_for_one() {
        for good in ["text/html; charset=utf-8", "application/vnd.api+json", "a/b ;c=d", "x/*"] {
            assert!(content_type(good.as_bytes(), "it").unwrap().is_some(), "{good}");
        }
        assert!(content_type(OCTETS.as_bytes(), "it").unwrap().is_none());
        for bad in ["gIAi@1+v", "text", "/html", "text/", "text/a b", "text/a/b", "\n", ";"] {
            assert!(content_type(bad.as_bytes(), "it").is_err(), "{bad}");
        }
    }

    #[test]
    fn one_range_is_a_part_and_anything_else_is_everything() {
        let cases = [
            ("bytes=0-3", Part::Of(0..4)),
            ("bytes=4-", Part::Of(4..10)),
            ("bytes=-3", Part::Of(7..10)),
            ("Bytes=0-3", Part::Of(0..4)), // names of units have no case (RFC 9110, section 14.1)
            ("bytes=-99", Part::Of(0..10)),
            ("bytes=8-99999999999999999999999", Part::Of(8..10)),
            ("bytes=10-", Part::None),
            ("bytes=10-12", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=3-2", Part::All),
            ("bytes=0-1,4-5", Part::All),
            ("bytes=a-b", Part::All),
            ("bytes=+1-2", Part::All),
            ("bytes=-", Part::All),
            ("items=0-3", Part::All),
            ("", Part::All),
        ];
        for (range, part) in cases {
            assert_eq!(parse_range(range, 10), part, "{range}");
        }
        assert_eq!(parse_range("bytes=0-0", 0), Part::None);
    }

    proptest! {
        #[test]
        fn no_range_leads_out_of_the_value(range in "bytes=[0-9]{0,20}-[0-9]{0,20}", len in 0usize..50) {
            if let Part::Of(part) = parse_range(&range, len) {
                prop_assert!(part.start < part.end && part.end <= len);
            }
        }
    }
}
