//! Api: what all doors of one node share.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::time::Instant;

use super::body::{Body, BodyLimits, Budget};
use super::events::Feed;
use super::load::{OwnLoad, Sampler};
use super::metrics::{Metrics, Recorder};
use super::router;
use super::server::Service;
use super::slow::SlowLog;
use super::status::Fault;
use crate::replication::Coordinator;
use crate::tls::Tls;
use crate::util::hosts::Hosts;
use crate::util::shutdown::Shutdown;
use crate::util::tokens::Tokens;

/// Bounds on requests.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// `MAX_VALUE_SIZE`, bytes after decoding.
    pub value_size_max: usize,
    /// How a body may come; `MAX_BODY_SIZE` is in it.
    pub body: BodyLimits,
    /// `MAX_INFLIGHT_BYTES`.
    pub inflight_bytes_max: usize,
}

/// What is told of this node that no part of it knows.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// `VOLUME_ID`.
    pub volume_id: String,
    /// `API_TOKEN`, until [`Api::set_tokens`].
    pub tokens: Tokens,
    /// The names by which this node may be asked for where no token is (`KVSTORE_ALLOWED_HOSTS`, the members, this machine).
    pub hosts: Hosts,
    /// Whether others than this machine reach the doors.
    pub beyond_loopback: bool,
    /// `SLOW_REQUEST_TIME`: a request that takes longer is logged; zero: none is.
    pub slow_request_time: Duration,
    /// How many lines of the log reached neither its file nor stdout; whoever writes it counts.
    pub log_lines_dropped: Arc<AtomicU64>,
    /// The certificate that clients are shown; `None`: they are spoken to in plaintext.
    pub tls: Option<Arc<Tls>>,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            volume_id: "vol-1".to_owned(),
            tokens: Tokens::default(),
            hosts: Hosts::default(),
            beyond_loopback: false,
            slow_request_time: Duration::from_millis(500),
            log_lines_dropped: Arc::default(),
            tls: None,
        }
    }
}

impl ApiSettings {
    /// Whether everyone who reaches the port from another machine may do everything.
    pub fn is_open_to_all(&self) -> bool {
        self.beyond_loopback && self.tokens.is_empty()
    }
}

/// Takes connections of peers: an `Upgrade` request on `/internal/rpc` and where it came from.
pub type PeerDoor = Box<dyn Fn(Request<Incoming>, SocketAddr) -> Response<Body> + Send + Sync>;

/// What all doors of one node share. A clone is the same one.
///
/// It answers from the moment the port is open; data requests get 503 until [`Api::open`] gives it a coordinator.
#[derive(Clone)]
pub struct Api {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    coordinator: OnceLock<Coordinator>,
    peer_door: OnceLock<PeerDoor>,
    /// Whether the node will stop soon: `/readyz` says so, and answers close their connections. Relaxed: it guards nothing.
    leaving: AtomicBool,
    /// Given when the node begins to stop: streams that would not end by themselves do then.
    pub(super) draining: Shutdown,
    pub(super) limits: ApiLimits,
    pub(super) settings: ApiSettings,
    /// The tokens that are known now.
    pub(super) tokens: ArcSwap<Tokens>,
    pub(super) budget: Budget,
    pub(super) metrics: Metrics,
    pub(super) sampler: Sampler,
    pub(super) feed: Feed,
    pub(super) slow_log: SlowLog,
    pub(super) started: Instant,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("ready", &self.shared.coordinator.get().is_some()).finish_non_exhaustive()
    }
}

impl Api {
    /// An interface whose node is still starting.
    pub fn new(limits: ApiLimits) -> Self {
        Self::with(limits, ApiSettings::default())
    }

    /// The same, with settings.
    pub fn with(limits: ApiLimits, settings: ApiSettings) -> Self {
        Self {
            shared: Arc::new(Shared {
                coordinator: OnceLock::new(),
                peer_door: OnceLock::new(),
                leaving: AtomicBool::new(false),
                draining: Shutdown::default(),
                limits,
                slow_log: SlowLog::new(settings.slow_request_time),
                tokens: ArcSwap::from_pointee(settings.tokens.clone()),
                settings,
                budget: Budget::new(limits.inflight_bytes_max),
                metrics: Metrics::default(),
                sampler: Sampler::default(),
                feed: Feed::default(),
                started: Instant::now(),
            }),
        }
    }

    /// Serves data requests from now on. Opening twice changes nothing.
    pub fn open(&self, coordinator: Coordinator) {
        coordinator.set_load_source(Arc::new(OwnLoad::new(self)));
        let _ = self.shared.coordinator.set(coordinator); // the first stays: a node has one coordinator
    }

    /// Lets these tokens in from now on, and no others. Whether there are any does not change: none are ignored.
    pub fn set_tokens(&self, tokens: Tokens) {
        if !tokens.is_empty() {
            self.shared.tokens.store(Arc::new(tokens));
        }
    }

    /// Hands connections of peers to `door` from now on.
    pub fn open_to_peers(&self, door: PeerDoor) {
        let _ = self.shared.peer_door.set(door); // the first stays: a node has one transport
    }

    /// Says on `/readyz` that the node is stopping, and closes each connection behind its next answer. Everything is
    /// still served: load balancers have time to notice.
    pub fn leave(&self) {
        self.shared.leaving.store(true, Ordering::Relaxed);
    }

    /// The same, and ends the streams of `/events`. Requests are still answered.
    pub fn drain(&self) {
        self.leave();
        self.shared.draining.signal();
    }

    /// A door for one worker thread: it keeps its own latencies.
    pub fn door(&self) -> Door {
        Door { api: self.clone(), recorder: self.shared.metrics.recorder() }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.shared.leaving.load(Ordering::Relaxed)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared.draining.listener().is_signalled()
    }

    pub(super) fn opened(&self) -> Option<&Coordinator> {
        self.shared.coordinator.get()
    }

    /// The coordinator, or why there is none.
    pub(super) fn coordinator(&self) -> Result<&Coordinator, Fault> {
        self.shared.coordinator.get().ok_or(Fault::NotReady("the node is starting"))
    }

    pub(super) fn peer_door(&self) -> Option<&PeerDoor> {
        self.shared.peer_door.get()
    }
}

/// One worker thread's way into the [`Api`].
#[derive(Debug, Clone)]
pub struct Door {
    pub(super) api: Api,
    pub(super) recorder: Arc<Recorder>,
}

impl Service for Door {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        router::answer(self, request, peer).await
    }

    fn ends_with_its_client(request: &Request<Incoming>) -> bool {
        router::ends_with_its_client(request.uri().path())
    }
}
