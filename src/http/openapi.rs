//! The description of all doors for programs, `OpenAPI` 3.1: one JSON file in the binary.
//!
//! It is written by hand. `tests/openapi.rs` compares it with the router's table, `scripts/test_api.sh` has schemathesis compare
//! it with what a ring answers. It holds no data, so it asks for no token.

use std::sync::LazyLock;

use hyper::header::{CACHE_CONTROL, ETAG, HeaderValue};
use hyper::{Response, StatusCode};
use sha2::{Digest, Sha256};

use super::answer;
use super::body::Body;

/// The document, as it is served.
pub const DOCUMENT: &str = include_str!("openapi.json");

/// Names the document: another binary may have another one.
static NAME: LazyLock<HeaderValue> = LazyLock::new(|| {
    let digest = Sha256::digest(DOCUMENT);
    let mut name = b"\"".to_vec();
    for byte in &digest[..8] {
        answer::push_hex(&mut name, (*byte).into(), 2);
    }
    name.push(b'"');
    answer::ascii_header(name)
});

/// `GET /openapi.json`.
pub fn document() -> Response<Body> {
    let mut response = answer::json_bytes(StatusCode::OK, DOCUMENT);
    let headers = response.headers_mut();
    headers.insert(ETAG, NAME.clone());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache")); // kept, and asked for again by name
    response
}
