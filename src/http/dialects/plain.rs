//! The main dialect, kv-store's: JSON in, plain text out, bodies exact and without a newline.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde::Serialize;

use super::item::{self, key_of, quorums};
use super::raw;
use crate::http::answer;
use crate::http::api::Door;
use crate::http::body::{self, Body};
use crate::http::router::Route;
use crate::http::status::{self, Fault};
use crate::replication::{BatchReceipt, Mutation, WriteError};
use crate::types::{Record, Value};

/// `POST /put`.
pub async fn put(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let options = quorums(coordinator, &Route::Put.query(request.uri())?)?;
    let shared = &door.api.shared;
    let body = body::read(request.into_body(), shared.limits.body, &shared.budget).await?;
    let (key, value, ttl) = item::one(&body.bytes, shared.limits.value_size_max)?;
    let ttl = ttl.or(options.ttl);
    let receipt = coordinator.write(key, Mutation::put(value, ttl), options.write).await?;
    Ok(answer::of_put(answer::text(StatusCode::OK, "OK"), &receipt, ttl))
}

/// `GET /get`.
pub async fn get(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let query = Route::Get.query(request.uri())?;
    let options = quorums(coordinator, &query)?.read;
    let record = coordinator.get(key_of(&query)?, options).await?;
    match record {
        Some(record @ Record::Value { .. }) => found(door, &record),
        absent => Ok(answer::of_absence(not_found(), absent.as_ref())),
    }
}

/// `POST /delete`.
pub async fn delete(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let query = Route::Delete.query(request.uri())?;
    let options = quorums(coordinator, &query)?.of_delete()?;
    let receipt = coordinator.delete(key_of(&query)?, options).await?;
    Ok(answer::of_write(answer::text(StatusCode::OK, "Deleted"), &receipt))
}

/// `POST /batch`.
pub async fn batch(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let options = quorums(coordinator, &Route::Batch.query(request.uri())?)?;
    let shared = &door.api.shared;
    let body = body::read(request.into_body(), shared.limits.body, &shared.budget).await?;
    let items = item::many(&body.bytes, shared.limits.value_size_max)?;
    let put = |(key, value, ttl): item::Write| (key, Mutation::put(value, ttl.or(options.ttl)));
    let receipt = coordinator.batch(items.into_iter().map(put).collect(), options.write).await;
    Ok(batch_answer(&receipt))
}

/// What is said of a key without a value.
pub fn not_found() -> Response<Body> {
    answer::text(StatusCode::NOT_FOUND, "Not Found")
}

/// A value's bytes, as they are.
pub fn found(door: &Door, record: &Record) -> Result<Response<Body>, Fault> {
    let value = record.as_value().map(Value::to_bytes).unwrap_or_default();
    let value = answer::reserved(&door.api.shared.budget, value)?;
    let mut response = answer::of_value(Response::new(Body::whole(value)), record);
    raw::add_type(response.headers_mut(), record);
    Ok(response)
}

/// An item of a batch that was not acknowledged, as the client is told.
#[derive(Serialize)]
struct Failed<'a> {
    key: std::borrow::Cow<'a, str>,
    outcome: &'static str,
    reason: String,
}

#[derive(Serialize)]
struct FailedBatch<'a> {
    failed: Vec<Failed<'a>>,
}

fn batch_answer(receipt: &BatchReceipt) -> Response<Body> {
    let response = if receipt.failed.is_empty() {
        answer::text(StatusCode::OK, "Batch Processed")
    } else {
        let failed = receipt.failed.iter().map(|item| Failed {
            key: String::from_utf8_lossy(item.key.as_bytes()),
            outcome: match item.error {
                WriteError::NotSent(_) | WriteError::NoSpace => "not_sent",
                WriteError::Unknown { .. } => "unknown",
            },
            reason: item.error.to_string(),
        });
        let code = status::of_batch(receipt.failed.iter().map(|item| &item.error));
        answer::json(code, &FailedBatch { failed: failed.collect() })
    };
    answer::of_batch(response, receipt)
}
