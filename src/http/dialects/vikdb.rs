//! VikDB's dialect: JSON both ways, keys and values in base64.
//!
//! ```text
//! key in a path    URL-safe base64, padded or not; what does not decode is taken as it stands
//! key in a query   as it stands
//! key in a body    standard base64, and so are all values
//! ```
//!
//! A key of letters alone may decode by accident (`test` does): whoever writes keys as they stand into paths reads them
//! back the same way, but other doors see what they decode to. That is the seed's own behaviour.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::scan::{self, Encoding, Listing, Shape};
use super::{begin, item};
use crate::http::answer;
use crate::http::api::Door;
use crate::http::body::{self, Body};
use crate::http::query::{self, Query};
use crate::http::router::Route;
use crate::http::status::{self, Fault};
use crate::replication::{BatchReceipt, Mutation};
use crate::types::{Key, KeyRange, Record, Ttl, Value};

/// Of keys in paths, read as the seed's Go library does: bits left over behind the last byte are not looked at.
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Serialize)]
struct Done {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<usize>,
}

#[derive(Serialize)]
struct Failed<'a> {
    success: bool,
    error: &'a str,
}

fn done(message: &'static str) -> Response<Body> {
    answer::json(StatusCode::OK, &Done { success: true, message: Some(message), count: None })
}

/// What this dialect says of whatever went wrong.
pub fn failed(code: StatusCode, error: &str) -> Response<Body> {
    answer::json(code, &Failed { success: false, error })
}

#[derive(Deserialize)]
struct PutBody<'a> {
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(default)]
    ttl: Option<item::Lifetime>,
}

/// `PUT /kv/{key}` `{"value":…}`.
pub async fn put(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::VikdbPut, &request)?;
    let key = key_in_path(Route::VikdbPut, request.uri().path())?;
    let shared = &door.api.shared;
    let body = body::read(request.into_body(), shared.limits.body, &shared.budget).await?;
    let PutBody { value, ttl } = item::json(&body.bytes)?;
    let value = decode_value(&value, shared.limits.value_size_max, "value: ")?;
    let ttl = ttl.map(|item::Lifetime(ttl)| ttl).or(options.ttl);
    let receipt = coordinator.write(key, Mutation::put(value, ttl), options.write).await?;
    Ok(answer::of_put(done("key stored successfully"), &receipt, ttl))
}

/// `GET /kv/{key}`.
pub async fn get(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::VikdbGet, request)?;
    let key = key_in_path(Route::VikdbGet, request.uri().path())?;
    match coordinator.get(key, options.read).await? {
        Some(record @ Record::Value { .. }) => {
            let value = record.as_value().map(Value::as_bytes).unwrap_or_default();
            let mut body = Vec::with_capacity(32 + value.len().div_ceil(3) * 4);
            body.extend_from_slice(br#"{"success":true,"value":"#);
            item::push_base64(&mut body, value);
            body.push(b'}');
            let body = answer::reserved(&door.api.shared.budget, body.into())?;
            Ok(answer::of_value(answer::json_bytes(StatusCode::OK, body), &record))
        }
        absent => Ok(answer::of_absence(failed(StatusCode::NOT_FOUND, "key not found"), absent.as_ref())),
    }
}

/// `DELETE /kv/{key}`.
pub async fn delete(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::VikdbDelete, request)?;
    let key = key_in_path(Route::VikdbDelete, request.uri().path())?;
    let receipt = coordinator.delete(key, options.of_delete()?).await?;
    Ok(answer::of_write(done("key deleted successfully"), &receipt))
}

#[derive(Deserialize)]
struct RangeBody<'a> {
    #[serde(borrow, default)]
    start_key: Cow<'a, str>,
    #[serde(borrow, default)]
    end_key: Cow<'a, str>,
}

/// `GET /kv/range?start&end` and `POST /kv/range` `{"start_key","end_key"}`: from `start` to before `end`, or to the last
/// key when there is no end.
pub async fn range(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (_, options) = begin(door, Route::VikdbRange, &request)?;
    let uri = request.uri().clone();
    let in_body = request.method() == Method::POST;
    let start_name = if in_body { "start_key" } else { "start" };
    let (start, end) = if in_body {
        let shared = &door.api.shared;
        let body = body::read(request.into_body(), shared.limits.body, &shared.budget).await?;
        let RangeBody { start_key, end_key } = item::json(&body.bytes)?;
        let bound = |text: &str, name| match text {
            "" => Ok(None),
            text => item::decode_base64(text, &format!("{name}: ")).map(Some),
        };
        (bound(&start_key, start_name)?, bound(&end_key, "end_key")?)
    } else {
        let query = Query::parse(uri.query())?;
        (scan::bound(&query, start_name), scan::bound(&query, "end"))
    };
    if start.is_none() {
        return Err(Fault::BadRequest(format!("\"{start_name}\" is missing")));
    }
    let listing = Listing {
        range: KeyRange { start, end },
        read_quorum: options.read.read_quorum,
        limit: None,
        shape: Shape::Items,
        encoding: Encoding::Base64,
    };
    scan::list(door, listing, &uri).await
}

#[derive(Deserialize)]
struct BatchBody<'a> {
    #[serde(borrow)]
    keys: Vec<item::Text<'a>>,
    #[serde(borrow)]
    values: Vec<item::Text<'a>>,
}

/// `POST /kv/batch` `{"keys":[…],"values":[…]}`.
pub async fn batch(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::VikdbBatch, &request)?;
    let shared = &door.api.shared;
    let body = body::read(request.into_body(), shared.limits.body, &shared.budget).await?;
    let items = items(&body.bytes, options.ttl, shared.limits.value_size_max)?;
    let count = items.len();
    let receipt = coordinator.batch(items, options.write).await;
    Ok(answer::of_batch(batch_answer(&receipt, count), &receipt))
}

fn items(body: &Bytes, ttl: Option<Ttl>, value_size_max: usize) -> Result<Vec<(Key, Mutation)>, Fault> {
    let BatchBody { keys, values } = item::json(body)?;
    if keys.len() != values.len() {
        let (keys, values) = (keys.len(), values.len());
        return Err(Fault::BadRequest(format!(
            "keys and values must be equally many: {keys} keys, {values} values"
        )));
    }
    let pairs = keys.iter().zip(&values).enumerate();
    pairs
        .map(|(index, (key, value))| {
            let place = format!("keys[{index}]: ");
            let key = item::key(item::decode_base64(&key.0, &place)?, &place)?;
            let value = decode_value(&value.0, value_size_max, &format!("values[{index}]: "))?;
            Ok((key, Mutation::put(value, ttl)))
        })
        .collect()
}

fn batch_answer(receipt: &BatchReceipt, count: usize) -> Response<Body> {
    let Some(first) = receipt.failed.first() else {
        return answer::json(StatusCode::OK, &Done { success: true, message: None, count: Some(count) });
    };
    let code = status::of_batch(receipt.failed.iter().map(|item| &item.error));
    let failures = receipt.failed.len();
    failed(code, &format!("{failures} of {count} items failed; the first, {:?}: {}", first.key, first.error))
}

fn key_in_path(route: Route, path: &str) -> Result<Key, Fault> {
    let raw = query::decode_path(route.key_in(path))?;
    let bytes = URL_SAFE.decode(&raw).unwrap_or_else(|_| raw.into_owned());
    item::key(bytes.into(), "")
}

fn decode_value(text: &str, value_size_max: usize, place: &str) -> Result<Value, Fault> {
    let bytes = item::decode_base64(text, place)?;
    item::check_value(bytes.len(), value_size_max, place)?;
    Ok(Value::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Vec<u8> {
        key_in_path(Route::VikdbGet, path).unwrap().as_bytes().to_vec()
    }

    #[test]
    fn a_key_in_a_path_is_url_safe_base64_or_stands_for_itself() {
        for path in ["/kv/dGVzdC1rZXk=", "/kv/dGVzdC1rZXk", "/kv/dGVzdC1rZXk%3D", "/kv/dGVzdC1rZXl="] {
            assert_eq!(key(path), b"test-key", "{path}");
        }
        assert_eq!(key("/kv/_-8="), b"\xff\xef");
        assert_eq!(key("/kv/a%20key!"), b"a key!");
        assert_eq!(key("/kv/a+b"), b"a+b", "plus is of the other alphabet");
        assert_eq!(key("/kv/abcde"), b"abcde", "no base64 has this length");
        assert_eq!(key("/kv/user:1/x"), b"user:1/x");
        assert!(key_in_path(Route::VikdbGet, "/kv/").is_err());
    }

    #[test]
    fn what_is_wrong_with_a_batch_is_said_with_its_index() {
        let batch = |json: &str| match items(&Bytes::copy_from_slice(json.as_bytes()), None, 4) {
            Ok(items) => items.len().to_string(),
            Err(fault) => format!("{} {fault}", fault.code().as_u16()),
        };
        assert_eq!(batch(r#"{"keys":["a2V5MQ=="],"values":["dg=="]}"#), "1");
        assert_eq!(batch(r#"{"keys":[],"values":[]}"#), "0");
        assert_eq!(
            batch(r#"{"keys":["a2V5MQ==","a2V5Mg=="],"values":["dg=="]}"#),
            "400 keys and values must be equally many: 2 keys, 1 values"
        );
        assert!(batch(r#"{"keys":["YQ==","@"],"values":["",""]}"#).starts_with("400 keys[1]: bad base64: "));
        assert!(batch(r#"{"keys":["YQ=="],"values":["YQ"]}"#).starts_with("400 values[0]: bad base64: "));
        assert_eq!(batch(r#"{"keys":["YQ==",""],"values":["",""]}"#), "400 keys[1]: key is empty");
        assert!(
            batch(r#"{"keys":["YQ=="],"values":["MTIzNDU="]}"#).starts_with("413 values[0]: value has 5")
        );
        assert!(batch(r#"{"keys":["YQ=="]}"#).contains("missing field `values`"));
    }
}
