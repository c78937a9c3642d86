//! Paths and methods: which request goes where.
//!
//! ```text
//! (method, path) ── one table, no state ──> route, and the key in the path
//!                                             └── its dialect words every fault, whoever found it
//! ```

use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::time::Instant;

use super::access::{self, Access};
use super::answer::X_REQUEST_ID;
use super::api::Door;
use super::body::Body;
use super::conditions::Conditions;
use super::dialects::{Dialect, blobs, delete_range, own, plain, scan, simple, vikdb};
use super::head::Head;
use super::query::Query;
use super::status::Fault;
use super::{admin, answer, events, openapi, page, sites};
use crate::util::request_id::RequestId;

/// Which paths are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// This one.
    Is(&'static str),
    /// All that begin with this; what follows is a key, percent-encoded.
    Under(&'static str),
    /// Whatever nothing else matches.
    Other,
}

/// What a request does, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Gives one key a value.
    Write,
    /// Reads one key, or some that are named.
    Read,
    /// Writes many keys.
    Batch,
    /// Reads keys in order.
    Scan,
    /// Deletes keys.
    Delete,
    /// Nothing to data: an operator's question, or a peer's.
    Other,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What it leads to.
    pub route: Route,
    /// Its name in metrics.
    pub name: &'static str,
    /// Its methods.
    pub methods: &'static [&'static str],
    /// Its paths.
    pub pattern: Pattern,
    /// How its faults are worded.
    pub dialect: Dialect,
    /// How it is counted.
    pub operation: Operation,
    /// Whom it lets in.
    pub access: Access,
    /// Which query parameters it knows.
    pub parameters: Parameters,
}

/// The query parameters of a row's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameters {
    /// Those that it does not know are ignored: its clients are another store's, probes, or browsers.
    Any,
    /// No others than these; a name that is misspelt must not change what is done.
    Only(&'static [&'static [&'static str]]),
}

macro_rules! routes {
    ($($route:ident $name:literal: $methods:expr, $pattern:expr, $dialect:ident, $operation:ident, $access:ident, $parameters:expr;)*) => {
        /// What a method and a path ask for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)] // the table says it
        pub enum Route {
            $($route,)*
        }

        impl Route {
            /// Every route, in the order of their numbers.
            pub const ALL: [Self; [$(Self::$route),*].len()] = [$(Self::$route),*];
        }

        /// The one table, in the order of the routes' numbers. Of rows that match a path the first decides which pattern
        /// it is; its methods are those of all rows with the same pattern.
        static ROWS: [Row; Route::ALL.len()] = [
            $(Row {
                route: Route::$route,
                name: $name,
                methods: &$methods,
                pattern: $pattern,
                dialect: Dialect::$dialect,
                operation: Operation::$operation,
                access: Access::$access,
                parameters: $parameters,
            },)*
        ];
    };
}

use Parameters::{Any, Only};
use Pattern::{Is, Other, Under};

/// What every data request may say.
const OPTIONS: &[&str] = &["w", "r", "sloppy", "ttl"];
/// What names a range of keys.
const RANGE: &[&str] = &["start", "end", "prefix", "cursor"];

// The busiest first: a request walks the table down to its row.
routes! {
    Put "put": ["POST"], Is("/put"), Plain, Write, Write, Only(&[OPTIONS]);
    Get "get": ["GET", "HEAD"], Is("/get"), Plain, Read, Read, Only(&[&["key"], OPTIONS]);
    Batch "batch": ["POST"], Is("/batch"), Plain, Batch, Write, Only(&[OPTIONS]);
    Scan "scan": ["GET", "HEAD"], Is("/scan"), Plain, Scan, Read, Only(&[RANGE, &["limit", "encoding"], OPTIONS]);
    Delete "delete": ["POST"], Is("/delete"), Plain, Delete, Write, Only(&[&["key"], OPTIONS]);

    DeleteRange "delete_range": ["POST"], Is("/delete-range"), Plain, Delete, Write, Only(&[RANGE, &["all"], OPTIONS]);

    SimpleSet "simple_set": ["POST"], Is("/set"), Plain, Write, Write, Any;
    SimpleDelete "simple_delete": ["DELETE"], Is("/del"), Plain, Delete, Write, Any;

    VikdbRange "vikdb_range": ["GET", "HEAD", "POST"], Is("/kv/range"), Vikdb, Scan, Read, Any;
    VikdbBatch "vikdb_batch": ["POST"], Is("/kv/batch"), Vikdb, Batch, Write, Any;
    VikdbPut "vikdb_put": ["PUT"], Under("/kv/"), Vikdb, Write, Write, Any;
    VikdbGet "vikdb_get": ["GET", "HEAD"], Under("/kv/"), Vikdb, Read, Read, Any;
    VikdbDelete "vikdb_delete": ["DELETE"], Under("/kv/"), Vikdb, Delete, Write, Any;

    BlobList "blob_list": ["GET", "HEAD"], Is("/blobs"), Blobs, Scan, Read, Any;
    BlobPut "blob_put": ["POST", "PUT"], Under("/blobs/"), Blobs, Write, Write, Any;
    BlobGet "blob_get": ["GET", "HEAD"], Under("/blobs/"), Blobs, Read, Read, Any;
    BlobDelete "blob_delete": ["DELETE"], Under("/blobs/"), Blobs, Delete, Write, Any;

    OwnList "v1_list": ["GET", "HEAD"], Is("/v1/kv"), Own, Scan, Read, Only(&[RANGE, &["limit", "encoding", "reverse", "keys_only", "timestamps"], OPTIONS]);
    OwnGetMany "v1_get_many": ["POST"], Is("/v1/kv:get"), Own, Read, Read, Only(&[&["encoding"], OPTIONS]);
    OwnPutMany "v1_put_many": ["POST"], Is("/v1/kv:put"), Own, Batch, Write, Only(&[&["encoding"], OPTIONS]);
    OwnDeleteMany "v1_delete_many": ["POST"], Is("/v1/kv:delete"), Own, Delete, Write, Only(&[&["encoding"], OPTIONS]);
    OwnDeleteRange "v1_delete_range": ["POST"], Is("/v1/kv:delete-range"), Own, Delete, Write, Only(&[RANGE, &["all"], OPTIONS]);
    OwnPut "v1_put": ["PUT"], Under("/v1/kv/"), Own, Write, Write, Only(&[OPTIONS]);
    OwnGet "v1_get": ["GET", "HEAD"], Under("/v1/kv/"), Own, Read, Read, Only(&[OPTIONS]);
    OwnDelete "v1_delete": ["DELETE"], Under("/v1/kv/"), Own, Delete, Write, Only(&[OPTIONS]);

    Page "page": ["GET", "HEAD"], Is("/"), Plain, Other, Admin, Any;
    Events "events": ["GET", "HEAD"], Is("/events"), Plain, Other, Admin, Any;
    OpenApi "openapi": ["GET", "HEAD"], Is("/openapi.json"), Plain, Other, Open, Any;
    Explain "explain": ["GET", "HEAD"], Is("/explain"), Plain, Other, Read, Only(&[&["key"], OPTIONS]);
    Metrics "metrics": ["GET", "HEAD"], Is("/metrics"), Plain, Other, Read, Only(&[&["format"]]);
    Health "health": ["GET", "HEAD"], Is("/health"), Plain, Other, Read, Any;
    Livez "livez": ["GET", "HEAD"], Is("/livez"), Plain, Other, Open, Any;
    Readyz "readyz": ["GET", "HEAD"], Is("/readyz"), Plain, Other, Open, Any;
    ClusterStatus "cluster_status": ["GET", "HEAD"], Is("/cluster/status"), Plain, Other, Admin, Any;
    Ring "ring": ["GET", "HEAD"], Is("/ring"), Plain, Other, Admin, Only(&[&["key"]]);
    HotKeys "hot_keys": ["GET", "HEAD"], Is("/debug/hotkeys"), Plain, Other, Admin, Only(&[&["limit"]]);
    CheckpointList "checkpoint_list": ["GET", "HEAD"], Is("/checkpoint"), Plain, Other, Admin, Any;
    CheckpointMake "checkpoint_make": ["POST"], Is("/checkpoint"), Plain, Other, AdminWrite, Only(&[&["name"]]);
    CheckpointRemove "checkpoint_remove": ["DELETE"], Is("/checkpoint"), Plain, Other, AdminWrite, Only(&[&["name"]]);
    Rpc "rpc": ["GET"], Is("/internal/rpc"), Plain, Other, Peers, Any;
    Unknown "unknown": [], Other, Plain, Other, Open, Any;
}

impl Route {
    /// Its row of the table.
    pub fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The parameters of a request of its.
    ///
    /// # Errors
    /// [`Fault::BadRequest`] for a query string that cannot be read, and for parameters that it does not know.
    pub fn query(self, uri: &Uri) -> Result<Query<'_>, Fault> {
        let query = Query::parse(uri.query())?;
        if let Only(names) = self.row().parameters {
            query.check_names(names)?;
        }
        Ok(query)
    }

    /// What one of its paths says behind a [`Pattern::Under`], as it stands there.
    pub fn key_in(self, path: &str) -> &str {
        match self.row().pattern {
            Under(prefix) => path.strip_prefix(prefix).unwrap_or_default(),
            Is(_) | Other => "",
        }
    }
}

/// Where a request belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The route; that of another method where the path does not know this one.
    pub route: Route,
    /// Whether the path knows the method.
    pub allowed: bool,
}

/// Finds the route of a request. Pure; [`Route::key_in`] tells the key in the path.
pub fn find(method: &Method, path: &str) -> Found {
    let mut of_path: Option<&Row> = None;
    for row in &ROWS {
        let is_here = match (of_path, row.pattern) {
            (Some(first), pattern) => pattern == first.pattern,
            (None, Is(whole)) => whole == path,
            (None, Under(prefix)) => path.starts_with(prefix),
            (None, Other) => false,
        };
        if !is_here {
            continue;
        }
        if row.methods.contains(&method.as_str()) {
            return Found { route: row.route, allowed: true };
        }
        of_path.get_or_insert(row);
    }
    Found { route: of_path.map_or(Route::Unknown, |row| row.route), allowed: false }
}

/// Whether what a path asks for goes on for long, and only for as long as somebody waits for it. Asked of every request,
/// before the table is.
pub fn ends_with_its_client(path: &str) -> bool {
    let is_of = |route: Route| matches!(route.row().pattern, Is(whole) if whole == path);
    path.ends_with("delete-range") && (is_of(Route::DeleteRange) || is_of(Route::OwnDeleteRange))
}

/// The methods that a route's paths know, as `Allow` lists them.
pub fn allow(route: Route) -> String {
    let same = ROWS.iter().filter(|row| row.pattern == route.row().pattern);
    let methods: Vec<_> = same.flat_map(|row| row.methods).copied().chain(["OPTIONS"]).collect();
    methods.join(", ")
}

/// The methods that some path knows: what `OPTIONS *` asks for.
fn allow_anywhere() -> String {
    let mut methods: Vec<&str> = Vec::new();
    for method in ROWS.iter().flat_map(|row| row.methods).chain(&["OPTIONS"]) {
        if !methods.contains(method) {
            methods.push(method);
        }
    }
    methods.join(", ")
}

/// Answers one request, counts it, and says in the log if it was slow.
pub fn answer(
    door: &Door,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> impl Future<Output = Response<Body>> + Send {
    let given = request.headers().get(X_REQUEST_ID).and_then(|id| RequestId::given(id.as_bytes()));
    let id = given.unwrap_or_else(RequestId::made);
    id.clone().scope(answer_as(door, request, peer, id))
}

async fn answer_as(
    door: &Door,
    request: Request<Incoming>,
    peer: SocketAddr,
    id: RequestId,
) -> Response<Body> {
    let started = Instant::now();
    let method = request.method().clone();
    let Found { route, allowed } = find(&method, request.uri().path());
    let mut response = match dispatch(door, route, allowed, request, peer).await {
        Ok(response) => response,
        Err(fault) => {
            let mut response = route.row().dialect.fault(&fault);
            if route == Route::Page {
                access::ask_browser(&mut response);
            }
            response
        }
    };
    let (status, took) = (response.status(), started.elapsed());
    door.recorder.record(route, status, took);
    let slow_log = &door.api.shared.slow_log;
    let is_slow = slow_log.is_slow(took);
    if is_slow {
        slow_log.note(route, &method, status, took, peer);
    }
    // An id of our own costs bytes on every answer: it goes where somebody will look it up.
    if id.is_given() || is_slow || status.is_server_error() {
        response.headers_mut().insert(X_REQUEST_ID, answer::ascii_header(id.to_string()));
    }
    if door.api.is_leaving() && status != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| body.of_request(id))
}

async fn dispatch(
    door: &Door,
    route: Route,
    allowed: bool,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<Body>, Fault> {
    let head = Head::of(request.headers());
    head.check_framing(&request)?;
    if !allowed {
        return not_with(route, &request);
    }
    let access = route.row().access;
    let tokens = door.api.shared.tokens.load();
    access::check(&tokens, access, request.headers())?;
    if tokens.is_empty() {
        sites::check(&door.api.shared.settings.hosts, access, &head, &request)?;
    }
    drop(tokens);
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads {
        head.check_body(request.headers())?;
    }
    if matches!(access, Access::Write | Access::AdminWrite) {
        head.check_write(request.headers())?;
    }
    if reads && head.is_conditional {
        let conditions = Conditions::of(request.headers());
        return conditions.judge(Box::pin(serve(door, route, request, peer)).await?);
    }
    serve(door, route, request, peer).await
}

/// Has a request answered that may be.
async fn serve(
    door: &Door,
    route: Route,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<Body>, Fault> {
    match route {
        Route::Put => plain::put(door, request).await,
        Route::Get => plain::get(door, &request).await,
        Route::Delete => plain::delete(door, &request).await,
        // Boxed: they are large and rare, and would make every connection's future as large.
        Route::Batch => Box::pin(plain::batch(door, request)).await,
        Route::Scan => Box::pin(scan::scan(door, &request)).await,
        Route::DeleteRange | Route::OwnDeleteRange => {
            Box::pin(delete_range::delete_range(door, route, &request)).await
        }
        Route::SimpleSet => simple::set(door, request).await,
        Route::SimpleDelete => Box::pin(simple::delete(door, &request)).await,
        Route::VikdbPut => vikdb::put(door, request).await,
        Route::VikdbGet => vikdb::get(door, &request).await,
        Route::VikdbDelete => vikdb::delete(door, &request).await,
        Route::VikdbRange => Box::pin(vikdb::range(door, request)).await,
        Route::VikdbBatch => Box::pin(vikdb::batch(door, request)).await,
        Route::Page => Ok(page::page()),
        Route::Events => events::events(door, &request),
        Route::OpenApi => Ok(openapi::document()),
        Route::BlobPut => blobs::put(door, request).await,
        Route::BlobGet => blobs::get(door, &request).await,
        Route::BlobDelete => blobs::delete(door, &request).await,
        Route::BlobList => Box::pin(blobs::list(door, &request)).await,
        Route::OwnPut => own::put(door, request).await,
        Route::OwnGet => own::get(door, &request).await,
        Route::OwnDelete => own::delete(door, &request).await,
        Route::OwnList => Box::pin(own::list(door, &request)).await,
        Route::OwnGetMany => Box::pin(own::get_many(door, request)).await,
        Route::OwnPutMany => Box::pin(own::put_many(door, request)).await,
        Route::OwnDeleteMany => Box::pin(own::delete_many(door, request)).await,
        Route::Explain => Box::pin(admin::explain(door, &request)).await,
        Route::Metrics => admin::metrics(door, &request),
        Route::Health => Ok(admin::health(door)),
        Route::Livez => Ok(answer::text(StatusCode::OK, "alive")),
        Route::Readyz => admin::readyz(door, &request),
        Route::ClusterStatus => admin::cluster_status(door),
        Route::Ring => admin::ring(door, &request),
        Route::HotKeys => admin::hot_keys(door, &request),
        Route::CheckpointList => Box::pin(admin::checkpoints(door)).await,
        Route::CheckpointMake => Box::pin(admin::make_checkpoint(door, &request)).await,
        Route::CheckpointRemove => Box::pin(admin::remove_checkpoint(door, &request)).await,
        Route::Rpc => peer_door(door, request, peer),
        Route::Unknown => Err(Fault::NoSuchPath),
    }
}

/// Answers a request whose path does not know its method.
fn not_with(route: Route, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let is_options = request.method() == Method::OPTIONS;
    let allow = match route {
        Route::Unknown if is_options && request.uri().path() == "*" => allow_anywhere(),
        Route::Unknown => return Err(Fault::NoSuchPath),
        route => allow(route),
    };
    if !is_options {
        return Err(Fault::MethodNotAllowed { allow });
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let allow = HeaderValue::try_from(allow).expect("methods and commas are printable ASCII");
    response.headers_mut().insert(ALLOW, allow);
    Ok(response)
}

fn peer_door(door: &Door, request: Request<Incoming>, peer: SocketAddr) -> Result<Response<Body>, Fault> {
    let open = door.api.peer_door().ok_or(Fault::NotReady("the node is starting"))?;
    Ok(open(request, peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: &str, path: &'static str) -> (Route, &'static str, bool) {
        let Found { route, allowed } = find(&method.parse().unwrap(), path);
        (route, route.key_in(path), allowed)
    }

    #[test]
    fn routes_are_numbered_as_the_table_lists_them() {
        for (number, row) in ROWS.iter().enumerate() {
            assert_eq!(row.route as usize, number, "{}", row.name);
        }
        let mut names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len(), "each route has a name of its own");
    }

    #[test]
    fn every_method_of_every_row_leads_to_it() {
        for row in &ROWS {
            let path = match row.pattern {
                Is(path) => path.to_owned(),
                Under(prefix) => format!("{prefix}some%20key"),
                Other => "/nowhere".to_owned(),
            };
            for method in row.methods {
                let found = find(&method.parse().unwrap(), &path);
                assert_eq!((found.route, found.allowed), (row.route, true), "{method} {path}");
            }
            let other = find(&"BREW".parse().unwrap(), &path);
            assert_eq!(other.route.row().pattern, row.pattern, "BREW {path}");
            assert!(!other.allowed);
        }
    }

    #[test]
    fn a_path_that_is_named_hides_the_key_of_that_name() {
        assert_eq!(found("GET", "/kv/range"), (Route::VikdbRange, "", true));
        assert_eq!(found("PUT", "/kv/range"), (Route::VikdbRange, "", false));
        assert_eq!(found("PUT", "/kv/ranges"), (Route::VikdbPut, "ranges", true));
        assert_eq!(found("GET", "/kv/a/b%2F"), (Route::VikdbGet, "a/b%2F", true));
        assert_eq!(found("GET", "/kv/"), (Route::VikdbGet, "", true));
        assert_eq!(found("GET", "/kv"), (Route::Unknown, "", false));
    }

    #[test]
    fn allow_lists_the_methods_of_all_rows_of_a_path() {
        assert_eq!(allow(Route::Put), "POST, OPTIONS");
        assert_eq!(allow(Route::VikdbDelete), "PUT, GET, HEAD, DELETE, OPTIONS");
    }
}
