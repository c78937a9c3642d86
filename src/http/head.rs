//! Head: what a request's header fields say of its framing, its body and its sender, found in one walk over them.
//!
//! ```text
//! one walk ──> Head ──┬── framing: two readers would take it for two different requests ──> 400, 501
//!                     ├── body: not what the store keeps (a part, a coding) ──> 400, 415, on writes
//!                     ├── conditions ──> 501 on writes; `conditions` judges reads
//!                     └── sender: another site's page ──> `sites` decides
//! ```
//!
//! Most requests have none of these fields; for them the walk is all there is.

use hyper::header::{CONTENT_ENCODING, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::{Request, Version};

use super::status::Fault;

/// Which of the fields that matter are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    hosts: u8,
    /// `Host` has bytes that no host has.
    bad_host: bool,
    lengths: bool,
    transfer_codings: bool,
    content_codings: bool,
    content_range: bool,
    /// A condition on the value, or on the part of it, that the request is about.
    pub is_conditional: bool,
    /// The browser that sent it says whose page made it do so.
    pub has_site: bool,
}

impl Head {
    /// Walks over the fields.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut head = Self::default();
        for (name, value) in headers {
            match name.as_str() {
                "host" => {
                    head.hosts = head.hosts.saturating_add(1);
                    head.bad_host |= !value.as_bytes().iter().copied().all(is_of_host);
                }
                "content-length" => head.lengths = true,
                "transfer-encoding" => head.transfer_codings = true,
                "content-encoding" => head.content_codings = true,
                "content-range" => head.content_range = true,
                "if-match" | "if-none-match" | "if-modified-since" | "if-unmodified-since" => {
                    head.is_conditional = true;
                }
                "origin" | "sec-fetch-site" => head.has_site = true,
                _ => {}
            }
        }
        head
    }

    /// Refuses what two readers may frame or route differently: a request that names its length twice over, or its host
    /// not exactly once (HTTP/1.0 need not name one), or whose body is coded as we cannot undo.
    ///
    /// # Errors
    /// [`Fault::BadRequest`] or [`Fault::NotImplemented`].
    pub fn check_framing<B>(&self, request: &Request<B>) -> Result<(), Fault> {
        match self.hosts {
            1 => {}
            0 if request.version() == Version::HTTP_10 => {}
            0 => return Err(Fault::BadRequest("the Host header is missing".to_owned())),
            _ => return Err(Fault::BadRequest("more than one Host header".to_owned())),
        }
        if self.bad_host {
            return Err(Fault::BadRequest("the Host header names no host".to_owned()));
        }
        if !self.transfer_codings {
            return Ok(());
        }
        if self.lengths {
            return Err(Fault::BadRequest("both Content-Length and Transfer-Encoding".to_owned()));
        }
        let mut codings = codings(request.headers(), TRANSFER_ENCODING);
        match (codings.next(), codings.next()) {
            (Some(only), None) if only.eq_ignore_ascii_case(b"chunked") => Ok(()),
            _ => Err(Fault::NotImplemented("the only transfer coding that is understood is chunked")),
        }
    }

    /// Refuses a write of something other than a whole value as it is.
    ///
    /// # Errors
    /// [`Fault::BadRequest`] or [`Fault::NotImplemented`].
    pub fn check_write(&self, headers: &HeaderMap) -> Result<(), Fault> {
        if self.content_range {
            return Err(Fault::BadRequest(
                "a part of a value cannot be written (Content-Range); send all of it".to_owned(),
            ));
        }
        // What concerns only reads is to be ignored by writes (RFC 9110, section 13.1.3).
        let is_condition = |name: &str| ["if-match", "if-none-match", "if-unmodified-since"].contains(&name);
        if self.is_conditional && headers.keys().any(|name| is_condition(name.as_str())) {
            return Err(Fault::NotImplemented("conditional writes are not implemented; nothing was written"));
        }
        Ok(())
    }

    /// Refuses a body in a coding: it would be given back to readers who cannot know of it.
    ///
    /// # Errors
    /// [`Fault::UnsupportedCoding`].
    pub fn check_body(&self, headers: &HeaderMap) -> Result<(), Fault> {
        let is_coded = |coding: &[u8]| !coding.eq_ignore_ascii_case(b"identity");
        if self.content_codings && codings(headers, CONTENT_ENCODING).any(is_coded) {
            return Err(Fault::UnsupportedCoding);
        }
        Ok(())
    }
}

/// Whether a host and its port may have this byte (RFC 3986, section 3.2.2). A comma may stand in one, too, but then a proxy
/// has rather joined two fields.
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._:[]~%!$&'()*+;=".contains(&byte)
}

/// The codings that all lines of a field list.
fn codings(headers: &HeaderMap, name: hyper::header::HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    lines
        .flat_map(|line| line.split(|c| *c == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|coding| !coding.is_empty())
}
