//! Scans: one page when a limit is given, otherwise the whole range as a stream.
//!
//! ```text
//! limit     one page ── JSON object, X-Next-Cursor and Link while there is more
//! no limit  page ── taken by the client? ── page ── … ── `}`        memory: one page
//!                                            └ failed: the connection is cut, the JSON never closed
//! ```
//!
//! Each record was current at some moment of the scan; a scan is no snapshot. Keys that become equal when bytes are
//! replaced by U+FFFD stand in the object once each.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LINK, TRAILER};
use hyper::{Request, Response, StatusCode, Uri};

use super::{cursor, item};
use crate::http::answer::{self, X_KV_LOSSY, X_NEXT_CURSOR, ascii_header};
use crate::http::api::Door;
use crate::http::body::{Body, CutShort, Reservation};
use crate::http::query::Query;
use crate::http::router::Route;
use crate::http::status::Fault;
use crate::replication::{Coordinator, ReadError, ScanOptions, ValuePage};
use crate::types::KeyRange;

/// Values a page, at most, whatever `limit` says.
pub const LIMIT_MAX: usize = 10_000;
/// Bytes and entries examined a page that a client asked for.
pub const PAGE_BYTES: usize = 4 << 20;
const PAGE_EXAMINED: usize = 100_000;
/// What a stream fetches at a time: enough to be worth a round trip to every node, little enough for a thousand streams.
const STREAM_ROWS: usize = 1_000;
const STREAM_BYTES: usize = 1 << 20;
const STREAM_EXAMINED: usize = 20_000;
/// What a value is guessed to weigh when memory is set aside for a page before it is read.
const VALUE_GUESS: usize = 4 << 10;

/// What a listing asks for, whatever its dialect.
#[derive(Debug)]
pub struct Listing {
    /// Which keys.
    pub range: KeyRange,
    /// R for this request.
    pub read_quorum: Option<usize>,
    /// Values a page; `None`: all, as a stream.
    pub limit: Option<usize>,
    /// What the JSON looks like.
    pub shape: Shape,
    /// How bytes become strings.
    pub encoding: Encoding,
}

/// What the JSON of a listing looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `{"a":"1",…}`.
    Object,
    /// `{"success":true,"items":[{"key":"a","value":"1"},…]}`.
    Items,
    /// `["a",…]`.
    Keys,
}

impl Shape {
    fn open(self) -> &'static [u8] {
        match self {
            Self::Object => b"{",
            Self::Items => br#"{"success":true,"items":["#,
            Self::Keys => b"[",
        }
    }

    fn close(self) -> &'static [u8] {
        match self {
            Self::Object => b"}",
            Self::Items => b"]}",
            Self::Keys => b"]",
        }
    }
}

/// `GET /scan`.
pub async fn scan(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let query = Route::Scan.query(request.uri())?;
    let listing = Listing {
        range: range(&query)?,
        read_quorum: item::quorums(coordinator, &query)?.read.read_quorum,
        limit: query.number("limit", 1, LIMIT_MAX)?,
        shape: Shape::Object,
        encoding: Encoding::of(&query)?,
    };
    list(door, listing, request.uri()).await
}

/// Answers with a listing; `uri` is the request's, for the link to the next page.
pub async fn list(door: &Door, listing: Listing, uri: &Uri) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let Listing { range, read_quorum, limit, shape, encoding } = listing;
    let mut reservation = door.api.shared.budget.reserve_none();
    let options = if let Some(limit) = limit {
        page_options(range, read_quorum, limit)
    } else {
        let (rows_max, bytes_max) = (STREAM_ROWS, STREAM_BYTES);
        ScanOptions { range, read_quorum, rows_max, bytes_max, examined_max: STREAM_EXAMINED }
    };
    reservation.grow(options.bytes_max.min(options.rows_max * VALUE_GUESS))?;
    let first = fetch(coordinator, options.clone()).await?;
    let json = Json { shape, encoding, begun: false, lossy: false };
    Ok(if limit.is_some() {
        one_page(first, json, uri, reservation)
    } else {
        let coordinator = coordinator.clone();
        let fetcher = move |options| -> Fetching {
            let coordinator = coordinator.clone();
            Box::pin(async move { fetch(&coordinator, options).await })
        };
        stream(Box::new(fetcher), options, &first, json, reservation)
    })
}

/// What a page of this many values is asked with.
pub fn page_options(range: KeyRange, read_quorum: Option<usize>, limit: usize) -> ScanOptions {
    ScanOptions { range, read_quorum, rows_max: limit, bytes_max: PAGE_BYTES, examined_max: PAGE_EXAMINED }
}

/// Bytes that are set aside for such a page before it is read.
pub fn page_guess(limit: usize) -> usize {
    PAGE_BYTES.min(limit * VALUE_GUESS)
}

/// Fetches one page.
pub async fn fetch(coordinator: &Coordinator, options: ScanOptions) -> Result<ValuePage, ReadError> {
    if options.range.is_empty() {
        return Ok(ValuePage::default());
    }
    coordinator.scan_page(options).await
}

/// A key of a range, if the query names one that is not empty.
pub fn bound(query: &Query<'_>, name: &str) -> Option<Bytes> {
    query.bytes(name).filter(|bytes| !bytes.is_empty()).map(Bytes::copy_from_slice)
}

/// The keys a request asks for. An empty `start`, `end` or `prefix` is an absent one: no key is empty.
pub fn range(query: &Query<'_>) -> Result<KeyRange, Fault> {
    let cursor = query.bytes("cursor").map(cursor::decode).transpose()?;
    Ok(range_asked(query).intersect(KeyRange { start: cursor, end: None }))
}

/// The same for a list that runs backwards: its cursor says where what is left ends.
pub fn range_backwards(query: &Query<'_>) -> Result<KeyRange, Fault> {
    let cursor = query.bytes("cursor").map(cursor::decode).transpose()?;
    Ok(range_asked(query).intersect(KeyRange { start: None, end: cursor }))
}

fn range_asked(query: &Query<'_>) -> KeyRange {
    let range = KeyRange::inclusive(bound(query, "start"), bound(query, "end"));
    match bound(query, "prefix") {
        Some(prefix) => range.intersect(KeyRange::prefix(&prefix)),
        None => range,
    }
}

/// How bytes become JSON strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As text; what is no UTF-8 becomes U+FFFD.
    Text,
    /// As base64, keys and values alike.
    Base64,
}

impl Encoding {
    /// The one that a query asks for.
    pub fn of(query: &Query<'_>) -> Result<Self, Fault> {
        match query.bytes("encoding") {
            None => Ok(Self::Text),
            Some(b"base64") => Ok(Self::Base64),
            Some(other) => Err(Fault::BadRequest(format!(
                "\"encoding\" must be base64 when it is given, not \"{}\"",
                other.escape_ascii()
            ))),
        }
    }

    /// The bytes that a string of a request stands for.
    pub fn decode(self, text: &str, place: &str) -> Result<Bytes, Fault> {
        match self {
            Self::Text => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Self::Base64 => item::decode_base64(text, place),
        }
    }

    /// Bytes as text.
    pub fn text(self, bytes: &[u8]) -> Cow<'_, str> {
        match self {
            Self::Text => String::from_utf8_lossy(bytes),
            Self::Base64 => Cow::Owned(item::encode_base64(bytes)),
        }
    }

    /// Appends a JSON string; says whether bytes were replaced.
    pub fn push(self, out: &mut Vec<u8>, bytes: &[u8]) -> bool {
        match self {
            Self::Base64 => {
                item::push_base64(out, bytes);
                false
            }
            Self::Text => {
                let text = String::from_utf8_lossy(bytes);
                serde_json::to_writer(&mut *out, &text).expect("writing to memory does not fail");
                matches!(text, Cow::Owned(_))
            }
        }
    }
}

/// A listing's JSON in the making.
#[derive(Debug)]
struct Json {
    shape: Shape,
    encoding: Encoding,
    /// Whether a member was written, so that the next needs a comma.
    begun: bool,
    /// Whether bytes were replaced so far.
    lossy: bool,
}

impl Json {
    fn push_page(&mut self, out: &mut Vec<u8>, page: &ValuePage) {
        for (key, value) in page.values() {
            if self.begun {
                out.push(b',');
            }
            self.begun = true;
            match self.shape {
                Shape::Object => {
                    self.push(out, key.as_bytes());
                    out.push(b':');
                    self.push(out, value.as_bytes());
                }
                Shape::Items => {
                    out.extend_from_slice(br#"{"key":"#);
                    self.push(out, key.as_bytes());
                    out.extend_from_slice(br#","value":"#);
                    self.push(out, value.as_bytes());
                    out.push(b'}');
                }
                Shape::Keys => self.push(out, key.as_bytes()),
            }
        }
    }

    fn push(&mut self, out: &mut Vec<u8>, bytes: &[u8]) {
        self.lossy |= self.encoding.push(out, bytes);
    }
}

fn one_page(page: ValuePage, mut json: Json, uri: &Uri, mut reservation: Reservation) -> Response<Body> {
    let mut out = json.shape.open().to_vec();
    json.push_page(&mut out, &page);
    out.extend_from_slice(json.shape.close());
    let _ = reservation.grow(out.len()); // it is here already: counted, so that the next request is refused
    let mut response = answer::json_bytes(StatusCode::OK, reservation.hold(out.into()));
    let headers = response.headers_mut();
    if json.lossy {
        headers.insert(X_KV_LOSSY, HeaderValue::from_static("1"));
    }
    if let Some(resume) = page.resume {
        let cursor = cursor::encode(&resume);
        let query = next_query(uri.query().unwrap_or_default(), &cursor);
        headers.insert(LINK, ascii_header(format!("<{}?{query}>; rel=\"next\"", uri.path())));
        headers.insert(X_NEXT_CURSOR, ascii_header(cursor));
    }
    response
}

/// The same query with another cursor. What a client wrote raw is encoded where it would end the link.
fn next_query(raw_query: &str, cursor: &str) -> String {
    let kept = raw_query.split('&').filter(|piece| !piece.is_empty() && !piece.starts_with("cursor="));
    let mut next = String::with_capacity(raw_query.len() + cursor.len() + 8);
    for piece in kept {
        for byte in piece.bytes() {
            match byte {
                b'!'..=b'~' if !matches!(byte, b'<' | b'>' | b'"') => next.push(char::from(byte)),
                other => next.push_str(percent_encoding::percent_encode_byte(other)),
            }
        }
        next.push('&');
    }
    next.push_str("cursor=");
    next.push_str(cursor);
    next
}

fn stream(
    fetcher: Fetcher,
    options: ScanOptions,
    first: &ValuePage,
    mut json: Json,
    reservation: Reservation,
) -> Response<Body> {
    let encoding = json.encoding;
    let mut out = json.shape.open().to_vec();
    json.push_page(&mut out, first);
    let next = match &first.resume {
        Some(resume) => Step::Fetch(resume.clone()),
        None => Step::Close,
    };
    if next == Step::Close {
        // Short scans are the common ones: they get a length, and the header instead of the trailer.
        out.extend_from_slice(json.shape.close());
        let mut response = answer::json_bytes(StatusCode::OK, reservation.hold(out.into()));
        if json.lossy {
            response.headers_mut().insert(X_KV_LOSSY, HeaderValue::from_static("1"));
        }
        return response;
    }
    let pages = Pages {
        fetcher,
        options,
        json,
        next: Step::Send(out.into()),
        then: next,
        fetching: None,
        _reservation: reservation,
    };
    let mut response = Response::new(Body::Streamed(Box::pin(pages)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if encoding == Encoding::Text {
        headers.insert(TRAILER, HeaderValue::from_static("x-kv-lossy"));
    }
    response
}

/// What a stream does when it is asked for its next piece.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Sends these bytes.
    Send(Bytes),
    /// Fetches the page that starts here.
    Fetch(Bytes),
    /// Closes the JSON.
    Close,
    /// Says whether bytes were replaced.
    Trailers,
    /// Nothing.
    End,
}

/// A page on its way.
type Fetching = Pin<Box<dyn Future<Output = Result<ValuePage, ReadError>> + Send>>;
/// Sends for a page.
type Fetcher = Box<dyn Fn(ScanOptions) -> Fetching + Send>;

/// The body of a streamed scan. The next page is fetched when the last was taken: a slow reader slows the scan.
struct Pages {
    fetcher: Fetcher,
    options: ScanOptions,
    json: Json,
    next: Step,
    /// What follows once `next` was sent.
    then: Step,
    fetching: Option<Fetching>,
    _reservation: Reservation,
}

impl Pages {
    fn start_fetch(&self, resume: Bytes) -> Fetching {
        let mut options = self.options.clone();
        options.range.start = Some(resume);
        (self.fetcher)(options)
    }

    fn take_page(&mut self, page: &ValuePage) {
        let mut out = Vec::new();
        self.json.push_page(&mut out, page);
        self.then = page.resume.clone().map_or(Step::Close, Step::Fetch);
        self.next = Step::Send(out.into());
    }
}

impl hyper::body::Body for Pages {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let this = self.get_mut();
        loop {
            if let Some(fetching) = &mut this.fetching {
                let page = ready!(fetching.as_mut().poll(cx));
                this.fetching = None;
                match page {
                    Ok(page) => this.take_page(&page),
                    Err(error) => {
                        this.next = Step::End;
                        tracing::warn!(%error, "scan cut short");
                        return Poll::Ready(Some(Err(CutShort(error.to_string()))));
                    }
                }
            }
            match std::mem::replace(&mut this.next, Step::End) {
                Step::Send(bytes) => {
                    this.next = std::mem::replace(&mut this.then, Step::End);
                    if !bytes.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                Step::Fetch(resume) => this.fetching = Some(this.start_fetch(resume)),
                Step::Close => {
                    this.next = Step::Trailers;
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(this.json.shape.close())))));
                }
                Step::Trailers => {
                    if this.json.lossy {
                        let mut trailers = HeaderMap::with_capacity(1);
                        trailers.insert(X_KV_LOSSY, HeaderValue::from_static("1"));
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
                Step::End => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next == Step::End && self.fetching.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::Budget;
    use crate::types::{Key, Record, Timestamp, Value};
    use http_body_util::BodyExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn page(keys: &[&'static [u8]], resume: Option<&'static str>) -> ValuePage {
        let record = |key: &&'static [u8]| Record::value(Timestamp::from_u64(1), Value::new(*key));
        let items: Vec<_> = keys.iter().map(|key| (Key::new(*key).unwrap(), record(key))).collect();
        ValuePage { examined: items.len(), items, resume: resume.map(Bytes::from) }
    }

    fn json(encoding: Encoding) -> Json {
        Json { shape: Shape::Object, encoding, begun: false, lossy: false }
    }

    fn no_answer() -> ReadError {
        ReadError::Unanswered { answered: 1, needed: 2, causes: "b: no answer in time".to_owned() }
    }

    /// A stream of the given pages, one after the other, and how many were asked for.
    fn streamed(
        encoding: Encoding,
        mut pages: Vec<Result<ValuePage, ReadError>>,
    ) -> (Response<Body>, Arc<AtomicUsize>) {
        let first = pages.remove(0).unwrap();
        let fetched = Arc::new(AtomicUsize::new(0));
        let counter = fetched.clone();
        let fetcher = move |_| -> Fetching {
            let page = pages[counter.fetch_add(1, Ordering::Relaxed)].clone();
            Box::pin(async move { page })
        };
        let reservation = Budget::new(1 << 30).reserve_none();
        (stream(Box::new(fetcher), ScanOptions::default(), &first, json(encoding), reservation), fetched)
    }

    #[tokio::test]
    async fn pages_are_joined_into_one_object_also_when_some_are_empty() {
        let pages = vec![
            Ok(page(&[], Some("a"))),
            Ok(page(&[b"a", b"b"], Some("c"))),
            Ok(page(&[], Some("d"))),
            Ok(page(&[b"d"], None)),
        ];
        let (response, _) = streamed(Encoding::Text, pages);
        let body = response.into_body().collect().await.unwrap();
        assert!(body.trailers().is_none());
        assert_eq!(&body.to_bytes()[..], br#"{"a":"a","b":"b","d":"d"}"#);
    }

    #[tokio::test]
    async fn items_are_closed_as_they_were_opened() {
        let json = Json { shape: Shape::Items, ..json(Encoding::Base64) };
        let fetcher = |_| -> Fetching { Box::pin(async { Ok(page(&[b"b"], None)) }) };
        let reservation = Budget::new(1 << 30).reserve_none();
        let first = page(&[b"a"], Some("b"));
        let response = stream(Box::new(fetcher), ScanOptions::default(), &first, json, reservation);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            &body[..],
            br#"{"success":true,"items":[{"key":"YQ==","value":"YQ=="},{"key":"Yg==","value":"Yg=="}]}"#
        );
    }

    #[tokio::test]
    async fn a_failure_after_the_first_byte_cuts_the_body_before_the_object_is_closed() {
        let (response, _) = streamed(Encoding::Text, vec![Ok(page(&[b"a"], Some("b"))), Err(no_answer())]);
        let mut body = response.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(&first[..], br#"{"a":"a""#);
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none(), "nothing follows, no brace above all");
    }

    #[tokio::test]
    async fn the_next_page_is_fetched_only_when_the_last_was_taken() {
        let pages = vec![Ok(page(&[b"a"], Some("b"))), Ok(page(&[b"b"], Some("c"))), Ok(page(&[b"c"], None))];
        let (response, fetched) = streamed(Encoding::Text, pages);
        let mut body = response.into_body();
        for expected in 0..3 {
            assert_eq!(fetched.load(Ordering::Relaxed), usize::saturating_sub(expected, 1));
            body.frame().await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn replaced_bytes_are_announced_in_a_trailer_and_never_in_base64() {
        let pages = || vec![Ok(page(&[b"a"], Some("b"))), Ok(page(&[b"b\xff"], None))];
        let (response, _) = streamed(Encoding::Text, pages());
        assert_eq!(response.headers()[TRAILER], "x-kv-lossy");
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()[X_KV_LOSSY], "1");
        let text = body.to_bytes();
        assert_eq!(&text[..], "{\"a\":\"a\",\"b\u{fffd}\":\"b\u{fffd}\"}".as_bytes());
        let (response, _) = streamed(Encoding::Base64, pages());
        assert!(response.headers().get(TRAILER).is_none());
        let body = response.into_body().collect().await.unwrap();
        assert!(body.trailers().is_none());
        assert_eq!(&body.to_bytes()[..], br#"{"YQ==":"YQ==","Yv8=":"Yv8="}"#);
    }

    #[tokio::test]
    async fn a_scan_that_fits_into_one_page_has_a_length_and_a_header() {
        let (response, _) = streamed(Encoding::Text, vec![Ok(page(&[b"\xff"], None))]);
        assert_eq!(response.headers()[X_KV_LOSSY], "1");
        assert!(hyper::body::Body::size_hint(response.body()).exact().is_some());
    }

    #[tokio::test]
    async fn a_page_links_to_the_next_while_there_is_more() {
        let reservation = Budget::new(1 << 20).reserve_none();
        let uri: Uri = "/scan?start=a&cursor=old&limit=1&prefix=a%2Bb%3Ec".parse().unwrap();
        let response = one_page(page(&[b"a"], Some("b")), json(Encoding::Text), &uri, reservation);
        let cursor = response.headers()[X_NEXT_CURSOR].to_str().unwrap();
        assert_eq!(&cursor::decode(cursor.as_bytes()).unwrap()[..], b"b");
        let link = response.headers()[LINK].to_str().unwrap();
        assert_eq!(link, format!("</scan?start=a&limit=1&prefix=a%2Bb%3Ec&cursor={cursor}>; rel=\"next\""));
        let last = one_page(page(&[b"a"], None), json(Encoding::Text), &uri, Budget::new(9).reserve_none());
        assert!(last.headers().get(X_NEXT_CURSOR).is_none() && last.headers().get(LINK).is_none());
    }
}
