//! Answers: the few shapes that every door shares.

use bytes::Bytes;
use hyper::header::{
    ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::body::{Body, Budget};
use super::status::{Fault, RETRY_AFTER_SECONDS};
use crate::replication::{Acks, BatchReceipt, WriteError, WriteReceipt};
use crate::types::{Expiry, Record, Timestamp, Ttl};

/// The timestamp of what was written or read, decimal.
pub const X_KV_TIMESTAMP: HeaderName = HeaderName::from_static("x-kv-timestamp");
/// Where a write stood when it was answered.
pub const X_KV_ACKS: HeaderName = HeaderName::from_static("x-kv-acks");
/// The newer timestamp that a write met.
pub const X_KV_OVERTAKEN: HeaderName = HeaderName::from_static("x-kv-overtaken");
/// Whether bytes that are no UTF-8 were replaced.
pub const X_KV_LOSSY: HeaderName = HeaderName::from_static("x-kv-lossy");
/// Which request an answer and its log lines belong to.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// When a value ends, in RFC 3339.
pub const X_KV_EXPIRES: HeaderName = HeaderName::from_static("x-kv-expires");
/// Where the next page of a scan starts.
pub const X_NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer in plain text.
pub fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    with_type(code, TEXT, body)
}

/// An answer in JSON that is made already.
pub fn json_bytes(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    with_type(code, JSON, body)
}

/// An answer in JSON.
pub fn json(code: StatusCode, body: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_vec(body).expect("our own structures have string keys and finite numbers");
    json_bytes(code, body)
}

/// An answer without a body.
pub fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// An answer of some other type.
pub fn with_type(code: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// What a client is told of a fault in plain text, with the headers that go with its status.
pub fn fault(fault: &Fault) -> Response<Body> {
    dressed(text(fault.code(), fault.to_string()), fault)
}

/// Adds the headers that go with a fault, in whatever dialect it is worded.
pub fn dressed(mut response: Response<Body>, fault: &Fault) -> Response<Body> {
    let headers = response.headers_mut();
    if let Fault::MethodNotAllowed { allow } = fault {
        headers.insert(ALLOW, ascii_header(allow.clone()));
    }
    let challenge = match fault {
        Fault::Unauthorized(_) => Some("Bearer realm=\"kvstore\""),
        Fault::Forbidden(_) => Some("Bearer realm=\"kvstore\", error=\"insufficient_scope\""),
        _ => None,
    };
    if let Some(challenge) = challenge {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if let Fault::UnsupportedCoding = fault {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if let Fault::Write(WriteError::Unknown { timestamp, acks, .. }) = fault {
        headers.insert(X_KV_TIMESTAMP, timestamp_header(*timestamp));
        headers.insert(X_KV_ACKS, acks_header(*acks));
    }
    retry_later(&mut response);
    response
}

/// Says of a write when it was made and where it stood.
pub fn of_write(mut response: Response<Body>, receipt: &WriteReceipt) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(X_KV_TIMESTAMP, timestamp_header(receipt.timestamp));
    headers.insert(X_KV_ACKS, acks_header(receipt.acks));
    overtaken(headers, receipt.overtaken);
    response
}

/// The same of a write that gave its key a value for so long.
pub fn of_put(response: Response<Body>, receipt: &WriteReceipt, ttl: Option<Ttl>) -> Response<Body> {
    let mut response = of_write(response, receipt);
    expires(response.headers_mut(), ttl.map(|ttl| Expiry::after(receipt.timestamp, ttl)));
    response
}

/// Says when a value ends, if it does.
pub fn expires(headers: &mut HeaderMap, expires_at: Option<Expiry>) {
    if let Some(expires_at) = expires_at {
        headers.insert(X_KV_EXPIRES, ascii_header(expires_at.to_string()));
    }
}

/// Says of a batch when its last item was written and where the worst of it stood.
pub fn of_batch(mut response: Response<Body>, receipt: &BatchReceipt) -> Response<Body> {
    retry_later(&mut response);
    let headers = response.headers_mut();
    if let Some(acks) = receipt.acks {
        headers.insert(X_KV_TIMESTAMP, timestamp_header(receipt.timestamp));
        headers.insert(X_KV_ACKS, acks_header(acks));
    }
    overtaken(headers, receipt.overtaken);
    response
}

fn overtaken(headers: &mut HeaderMap, newer: Option<Timestamp>) {
    if let Some(newer) = newer {
        headers.insert(X_KV_OVERTAKEN, timestamp_header(newer));
    }
}

/// Says of a value that was read when it was written, and names it.
pub fn of_value(mut response: Response<Body>, record: &Record) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(X_KV_TIMESTAMP, timestamp_header(record.timestamp()));
    headers.insert(ETAG, etag(record));
    expires(headers, record.expires_at());
    response
}

/// Says of a key that has no value when it was deleted, or when the value that has expired was written and when it ended.
pub fn of_absence(mut response: Response<Body>, record: Option<&Record>) -> Response<Body> {
    if let Some(record) = record {
        response.headers_mut().insert(X_KV_TIMESTAMP, timestamp_header(record.timestamp()));
        expires(response.headers_mut(), record.expires_at());
    }
    response
}

/// `"<16 hex of timestamp>-<8 hex of the value's hash>"`.
pub fn etag(record: &Record) -> HeaderValue {
    let hash = (record.content_hash() >> 32) as u32; // the high half: the low bit of the hash is always set
    let mut text = Vec::with_capacity(27);
    text.push(b'"');
    push_hex(&mut text, record.timestamp().as_u64(), 16);
    text.push(b'-');
    push_hex(&mut text, hash.into(), 8);
    text.push(b'"');
    ascii_header(text)
}

/// Answers of this many bytes count as in flight until a slow reader has taken them; smaller ones weigh no more than
/// the connection's own buffers.
const RESERVED_MIN: usize = 16 << 10;

/// Bytes on their way out, counted against the budget if they are many.
///
/// # Errors
/// [`Fault::Overloaded`] when the budget is spent.
pub fn reserved(budget: &Budget, bytes: Bytes) -> Result<Bytes, Fault> {
    if bytes.len() < RESERVED_MIN {
        return Ok(bytes);
    }
    let mut reservation = budget.reserve_none();
    reservation.grow(bytes.len())?;
    Ok(reservation.hold(bytes))
}

/// Says when to come back, on an answer of 503.
pub fn retry_later(response: &mut Response<Body>) {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    }
}

/// A timestamp as a header.
pub fn timestamp_header(timestamp: Timestamp) -> HeaderValue {
    HeaderValue::from(timestamp.as_u64())
}

/// Acknowledgements as a header, put together by hand: it is on the path of every write, and formatting costs ten times as
/// much.
pub fn acks_header(acks: Acks) -> HeaderValue {
    let Acks { durable, hinted, failed, pending } = acks;
    let mut text = Vec::with_capacity(48);
    let counts = [("durable=", durable), (" hinted=", hinted), (" failed=", failed), (" pending=", pending)];
    for (name, count) in counts {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
    }
    ascii_header(text)
}

/// Appends the lowest `digits` hexadecimal digits of a number.
pub fn push_hex(text: &mut Vec<u8>, number: u64, digits: u32) {
    text.extend((0..digits).rev().map(|digit| b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]));
}

/// A header of text that is printable ASCII by construction.
pub fn ascii_header(text: impl Into<Bytes>) -> HeaderValue {
    HeaderValue::from_maybe_shared(text.into())
        .expect("numbers, base64url and encoded queries are printable ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_shown_as_they_are_printed() {
        for acks in [
            Acks::default(),
            Acks { durable: 2, hinted: 0, failed: 0, pending: 1 },
            Acks { durable: 10, hinted: 123, failed: 4, pending: 0 },
        ] {
            assert_eq!(acks_header(acks), acks.to_string());
        }
    }

    #[test]
    fn hexadecimal_digits_are_those_that_formatting_gives() {
        for number in [0, 1, 0xf, 0x1234_5678_9abc_def0, u64::MAX] {
            let mut text = Vec::new();
            push_hex(&mut text, number, 16);
            assert_eq!(String::from_utf8(text).unwrap(), format!("{number:016x}"));
        }
    }
}
