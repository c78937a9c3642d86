//! simple-kv's dialect: `POST /set` and `DELETE /del`. Its `GET /get` is the plain one.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};

use super::item::{self, key_of, quorums};
use super::plain;
use crate::http::answer;
use crate::http::api::Door;
use crate::http::body::{self, Body};
use crate::http::query::Query;
use crate::http::status::Fault;
use crate::replication::Mutation;
use crate::types::Record;

/// `POST /set`: `{"key":"k","value":"v"}`, or one pair, `{"colour":"blue"}`.
pub async fn set(door: &Door, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let options = quorums(coordinator, &Query::parse(request.uri().query())?)?;
    let shared = &door.api.shared;
    let body = body::read(request.into_body(), shared.limits.body, &shared.budget).await?;
    let (key, value, ttl) = item::one_or_pair(&body.bytes, shared.limits.value_size_max)?;
    let ttl = ttl.or(options.ttl);
    let receipt = coordinator.write(key, Mutation::put(value, ttl), options.write).await?;
    Ok(answer::of_put(answer::text(StatusCode::OK, "OK"), &receipt, ttl))
}

/// `DELETE /del`: deletes a key and answers with the value it had; 404, and nothing written, when there was none.
///
/// A read and then a write, not one step: of two that delete a key at once, both may be given its value.
pub async fn delete(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let query = Query::parse(request.uri().query())?;
    let options = quorums(coordinator, &query)?;
    let write = options.of_delete()?;
    let key = key_of(&query)?;
    match coordinator.get(key.clone(), options.read).await? {
        Some(record @ Record::Value { .. }) => {
            let removed = plain::found(door, &record)?;
            let receipt = coordinator.delete(key, write).await?;
            Ok(answer::of_write(removed, &receipt))
        }
        absent => Ok(answer::of_absence(plain::not_found(), absent.as_ref())),
    }
}
