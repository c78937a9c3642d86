//! mini-kvstore's dialect: raw bytes by key, each with its type and a checksum for a name.

use std::borrow::Cow;

use hyper::body::Incoming;
use hyper::header::{ETAG, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde::Serialize;

use super::raw::{self, Served};
use super::scan::{self, Encoding, Listing, Shape};
use super::{begin, item};
use crate::http::answer::{self, ascii_header};
use crate::http::api::Door;
use crate::http::body::Body;
use crate::http::query::Query;
use crate::http::router::Route;
use crate::http::status::Fault;
use crate::replication::Mutation;
use crate::types::{Record, Value};

#[derive(Serialize)]
struct Stored<'a> {
    key: Cow<'a, str>,
    etag: &'a str,
    size: usize,
    volume_id: &'a str,
}

#[derive(Serialize)]
struct Failed<'a> {
    error: &'a str,
}

/// What this dialect says of whatever went wrong.
pub fn failed(code: StatusCode, error: &str) -> Response<Body> {
    answer::json(code, &Failed { error })
}

/// CRC-32 of the bytes, in eight hex digits between quotes.
fn etag_of(bytes: &[u8]) -> HeaderValue {
    let mut text = Vec::with_capacity(10);
    text.push(b'"');
    answer::push_hex(&mut text, crc32fast::hash(bytes).into(), 8);
    text.push(b'"');
    ascii_header(text)
}

/// `POST|PUT /blobs/{key}`.
pub async fn put(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::BlobPut, &request)?;
    let key = raw::key_of(Route::BlobPut.key_in(request.uri().path()))?;
    let (value, _reservation) = raw::value_of(door, request).await?;
    let (etag, size) = (etag_of(value.as_bytes()), value.len());
    let mutation = Mutation::put(value, options.ttl);
    let receipt = coordinator.write(key.clone(), mutation, options.write).await?;
    let stored = Stored {
        key: String::from_utf8_lossy(key.as_bytes()),
        etag: etag.to_str().unwrap_or_default().trim_matches('"'),
        size,
        volume_id: &door.api.shared.settings.volume_id,
    };
    let mut response = answer::of_put(answer::json(StatusCode::CREATED, &stored), &receipt, options.ttl);
    response.headers_mut().insert(ETAG, etag);
    Ok(response)
}

/// `GET /blobs/{key}`.
pub async fn get(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::BlobGet, request)?;
    let key = raw::key_of(Route::BlobGet.key_in(request.uri().path()))?;
    match coordinator.get(key, options.read).await? {
        Some(record @ Record::Value { .. }) => {
            let etag = etag_of(record.as_value().map(Value::as_bytes).unwrap_or_default());
            Ok(match raw::serve(door, request, &record, etag)? {
                Served::Answer(response) => response,
                Served::BeyondEnd(headers) => {
                    let mut response =
                        failed(StatusCode::RANGE_NOT_SATISFIABLE, "Range lies beyond the blob");
                    response.headers_mut().extend(headers);
                    response
                }
            })
        }
        absent => Ok(answer::of_absence(failed(StatusCode::NOT_FOUND, "Blob not found"), absent.as_ref())),
    }
}

/// `DELETE /blobs/{key}`: 204, also when there was nothing.
pub async fn delete(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let (coordinator, options) = begin(door, Route::BlobDelete, request)?;
    let key = raw::key_of(Route::BlobDelete.key_in(request.uri().path()))?;
    let receipt = coordinator.delete(key, options.of_delete()?).await?;
    Ok(answer::of_write(answer::no_content(), &receipt))
}

/// `GET /blobs[?prefix&limit&cursor]`: the keys, in order.
pub async fn list(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let query = Query::parse(request.uri().query())?;
    let listing = Listing {
        range: scan::range(&query)?,
        read_quorum: item::quorums(coordinator, &query)?.read.read_quorum,
        limit: query.number("limit", 1, scan::LIMIT_MAX)?,
        shape: Shape::Keys,
        encoding: Encoding::of(&query)?,
    };
    scan::list(door, listing, request.uri()).await
}
