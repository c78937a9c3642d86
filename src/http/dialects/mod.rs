//! Dialects: one seed's requests turned into calls of the coordinator, and its answers back.
//!
//! | file | whose requests | bodies |
//! | --- | --- | --- |
//! | `plain` | kv-store's, the main one | JSON in, plain text out |
//! | `simple` | simple-kv's | as `plain`; it shares `GET /get` |
//! | `vikdb` | VikDB's | JSON with base64 |
//! | `blobs` | mini-kvstore's | raw bytes |
//! | `own` | those of `/v1`, for what the others cannot say | raw bytes, JSON for many keys |
//!
//! All of them reach the same data: a dialect words requests and answers, and decides nothing else. What they share
//! stands beside them: `item` reads keys, values and quorums, `raw` takes and serves bytes, `scan` pages and streams,
//! `delete_range` deletes what a scan finds.

pub mod blobs;
pub mod cursor;
pub mod delete_range;
pub mod item;
pub mod own;
pub mod plain;
pub mod raw;
pub mod scan;
pub mod simple;
pub mod vikdb;

use hyper::body::Incoming;
use hyper::{Request, Response};
use item::Quorums;

use super::answer;
use super::api::Door;
use super::body::Body;
use super::router::Route;
use super::status::Fault;
use crate::replication::Coordinator;

/// How a request's faults are worded, wherever they are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// One line of text.
    Plain,
    /// `{"success":false,"error":"…"}`.
    Vikdb,
    /// `{"error":"…"}`.
    Blobs,
    /// `application/problem+json`.
    Own,
}

impl Dialect {
    /// The answer to a request that is not answered with what it asked for.
    pub fn fault(self, fault: &Fault) -> Response<Body> {
        match self {
            Self::Plain => answer::fault(fault),
            Self::Vikdb => answer::dressed(vikdb::failed(fault.code(), &fault.to_string()), fault),
            Self::Blobs => answer::dressed(blobs::failed(fault.code(), &fault.to_string()), fault),
            Self::Own => answer::dressed(own::failed(fault), fault),
        }
    }
}

/// What every data request begins with: a node that is ready, and quorums that are in bounds.
fn begin<'d>(
    door: &'d Door,
    route: Route,
    request: &Request<Incoming>,
) -> Result<(&'d Coordinator, Quorums), Fault> {
    let coordinator = door.api.coordinator()?;
    Ok((coordinator, item::quorums(coordinator, &route.query(request.uri())?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::answer::{X_KV_ACKS, X_KV_TIMESTAMP};
    use crate::replication::{Acks, ReadError, WriteError};
    use crate::types::Timestamp;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    async fn worded(dialect: Dialect, fault: &Fault) -> (Response<()>, Vec<u8>) {
        let (head, body) = dialect.fault(fault).into_parts();
        (Response::from_parts(head, ()), body.collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn a_write_of_unknown_outcome_is_504_with_its_headers_in_every_dialect() {
        let acks = Acks { durable: 1, hinted: 1, failed: 0, pending: 1 };
        let (timestamp, causes) = (Timestamp::from_u64(7), "b: timed out".to_owned());
        let fault = Fault::Write(WriteError::Unknown { timestamp, acks, needed: 2, causes });
        let text = fault.to_string();
        for dialect in [Dialect::Plain, Dialect::Vikdb, Dialect::Blobs, Dialect::Own] {
            let (head, body) = worded(dialect, &fault).await;
            assert_eq!(head.status(), 504, "{dialect:?}");
            assert_eq!(head.headers()[X_KV_TIMESTAMP], "7");
            assert_eq!(head.headers()[X_KV_ACKS], "durable=1 hinted=1 failed=0 pending=1");
            if dialect == Dialect::Plain {
                assert_eq!(body, text.as_bytes());
                continue;
            }
            let body: Value = serde_json::from_slice(&body).unwrap();
            let expected = match dialect {
                Dialect::Plain => unreachable!("told above"),
                Dialect::Vikdb => json!({"success": false, "error": text}),
                Dialect::Blobs => json!({"error": text}),
                Dialect::Own => json!({
                    "title": "Gateway Timeout", "status": 504, "detail": text,
                    "code": "outcome_unknown", "retryable": false, "outcome": "unknown",
                }),
            };
            assert_eq!(body, expected);
        }
    }

    #[tokio::test]
    async fn a_read_that_nobody_answered_wrote_nothing_and_may_be_asked_again() {
        let fault = Fault::Read(ReadError::Unanswered { answered: 1, needed: 2, causes: String::new() });
        let (_, body) = worded(Dialect::Own, &fault).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["code"], &body["retryable"]), (&json!("unanswered"), &json!(true)));
        assert_eq!(body["outcome"], "not_sent");
    }
}
