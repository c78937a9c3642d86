//! What operators ask: health, readiness, metrics, the cluster, the ring, and what each replica holds of a key.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, VARY};
use hyper::{Request, Response, StatusCode};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::api::{Api, Door};
use super::body::Body;
use super::dialects::item;
use super::figures::{self, Figure, Kind};
use super::metrics::Totals;
use super::process;
use super::prometheus::{self, Family};
use super::router::Route;
use super::status::Fault;
use super::{accept, answer};
use crate::cluster::{RangeId, Ring, Token};
use crate::replication::hot_keys::{KEYS_MAX, SAMPLED};
use crate::replication::{
    Check, CheckpointInfo, CheckpointName, Coordinator, EngineStats, HotKey, NodeState, NodeStatus,
    ReplicaState,
};
use crate::types::{Key, NodeId};

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    ready: bool,
    reasons: Vec<String>,
    node_id: Option<&'a str>,
    version: &'static str,
    uptime_seconds: u64,
    /// Every node takes writes: what VikDB calls a leader and its followers.
    role: &'static str,
    memtable_size: usize,
    wal_size: u64,
    sstable_count: usize,
    volume_id: &'a str,
    keys: u64,
    segments: usize,
    total_mb: f64,
    uptime_secs: u64,
}

/// What the seeds' pages say of a store, in our terms: a segment is a log or a table.
struct Volume {
    keys: u64,
    segments: usize,
    bytes: u64,
    active_segment: u64,
    oldest_segment: u64,
}

impl Volume {
    fn of(engine: &EngineStats) -> Self {
        let records = engine.memtable_records + engine.table_records;
        Self {
            // At most: a key that was written again counts twice until a compaction meets both of its records.
            keys: records.saturating_sub(engine.tombstones),
            segments: tables(engine) + 1 + engine.memtables_sealed,
            bytes: engine.held_bytes(),
            active_segment: engine.log_number,
            oldest_segment: engine.oldest_table.unwrap_or(engine.log_number),
        }
    }

    fn total_mb(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20)
    }

    fn value_size_mean(&self) -> f64 {
        if self.keys == 0 { 0.0 } else { self.bytes as f64 / self.keys as f64 }
    }
}

fn tables(engine: &EngineStats) -> usize {
    engine.level_files.iter().sum()
}

/// `GET /health`: 200 while the process serves; what is amiss is in `status`.
pub fn health(door: &Door) -> Response<Body> {
    let api = &door.api;
    let reasons = problems(&checks(door));
    let coordinator = api.opened();
    let engine = coordinator.map(Coordinator::engine_stats).unwrap_or_default();
    let (volume, uptime) = (Volume::of(&engine), api.shared.started.elapsed().as_secs());
    let body = Health {
        status: "healthy",
        ready: reasons.is_empty(),
        reasons,
        node_id: coordinator.map(|coordinator| coordinator.own().as_str()),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: uptime,
        role: "peer",
        memtable_size: engine.memtable_bytes,
        wal_size: engine.log_bytes,
        sstable_count: tables(&engine),
        volume_id: &api.shared.settings.volume_id,
        keys: volume.keys,
        segments: volume.segments,
        total_mb: volume.total_mb(),
        uptime_secs: uptime,
    };
    answer::json(StatusCode::OK, &body)
}

#[derive(Serialize)]
struct Readiness<'a> {
    status: &'static str,
    reasons: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Vec<CheckView<'a>>>,
    /// How far the ring's time is ahead of its wall clocks: no reason not to be ready, and worth knowing.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring_ahead_seconds: Option<f64>,
}

#[derive(Serialize)]
struct CheckView<'a> {
    name: &'a str,
    ok: bool,
    problem: Option<&'a str>,
}

impl<'a> CheckView<'a> {
    fn of(check: &'a Check) -> Self {
        Self { name: check.name, ok: check.problem.is_none(), problem: check.problem.as_deref() }
    }
}

/// `GET /readyz[?verbose]`: 200 once recovered, voting and with a clock in bounds; 503 with reasons otherwise.
pub fn readyz(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let verbose = Route::Readyz.query(request.uri())?.flag("verbose")?;
    let checks = checks(door);
    let reasons = problems(&checks);
    let (code, status) = if reasons.is_empty() {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready")
    };
    let each = || checks.iter().map(CheckView::of).collect();
    let ahead = door.api.opened().filter(|_| verbose).and_then(Coordinator::ring_ahead);
    let ring_ahead_seconds = ahead.map(|ahead| ahead.as_secs_f64());
    let body = Readiness { status, reasons, checks: verbose.then(each), ring_ahead_seconds };
    let mut response = answer::json(code, &body);
    answer::retry_later(&mut response);
    Ok(response)
}

fn checks(door: &Door) -> Vec<Check> {
    checks_of(&door.api)
}

/// What must hold before a node takes requests.
pub(super) fn checks_of(api: &Api) -> Vec<Check> {
    let mut checks = match api.opened() {
        Some(coordinator) => coordinator.readiness(),
        None => vec![Check { name: "recovered", problem: Some("the node is starting".to_owned()) }],
    };
    if api.is_leaving() {
        checks.push(Check { name: "stopping", problem: Some("the node is stopping".to_owned()) });
    }
    checks
}

/// What does not hold, in a line each.
pub(super) fn problems(checks: &[Check]) -> Vec<String> {
    let named = |check: &Check| check.problem.as_ref().map(|problem| format!("{}: {problem}", check.name));
    checks.iter().filter_map(named).collect()
}

/// What Prometheus asks for.
const TEXTS: [&str; 2] = ["text/plain", "application/openmetrics-text"];

/// `GET /metrics`: JSON, or Prometheus text for whoever would rather have text.
pub fn metrics(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    const ACCEPT: HeaderValue = HeaderValue::from_static("accept");
    let query = Route::Metrics.query(request.uri())?;
    let as_text = match query.bytes("format") {
        None => accept::prefers(request.headers(), &TEXTS, &["application/json"]),
        Some(b"prometheus") => true,
        Some(b"json") => false,
        Some(other) => {
            let other = other.escape_ascii();
            return Err(Fault::BadRequest(format!("\"format\" must be json or prometheus, not \"{other}\"")));
        }
    };
    if let Some(coordinator) = door.api.opened() {
        coordinator.measure_space(); // what is told is what the write, or the look, before this one found
    }
    let totals = door.api.shared.metrics.totals();
    let mut figures = figures::of_requests(&door.api, &totals);
    figures.extend(figures::of_node(door.api.opened()));
    let mut response = if as_text {
        const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        let families = door.api.opened().map(families).unwrap_or_default();
        let mut text = prometheus::render(&totals, &figures, &families);
        if let Some(coordinator) = door.api.opened() {
            prometheus::render_disk(&mut text, &coordinator.engine_stats());
        }
        process::render(&mut text);
        answer::with_type(StatusCode::OK, TEXT, text)
    } else {
        answer::json(StatusCode::OK, &MetricsView { totals: &totals, figures: &figures, api: &door.api })
    };
    response.headers_mut().insert(VARY, ACCEPT);
    Ok(response)
}

/// The JSON form: the figures in the table's order, then what needs more than one number.
struct MetricsView<'a> {
    totals: &'a Totals,
    figures: &'a [Figure],
    api: &'a Api,
}

impl Serialize for MetricsView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for figure in self.figures {
            map.serialize_entry(figure.json, &figure.value)?;
        }
        let latencies = Route::ALL.iter().zip(&self.totals.latencies);
        let latencies = latencies.filter_map(|(route, histogram)| Some((route, histogram.as_ref()?)));
        let latencies: BTreeMap<_, _> =
            latencies.map(|(route, histogram)| (route.name(), Quantiles::of(histogram))).collect();
        map.serialize_entry("latency_micros", &latencies)?;
        let coordinator = self.api.opened();
        let engine = coordinator.map(Coordinator::engine_stats).unwrap_or_default();
        let volume = Volume::of(&engine);
        map.serialize_entry("volume_id", &self.api.shared.settings.volume_id)?;
        map.serialize_entry("keys", &volume.keys)?;
        map.serialize_entry("total_keys", &volume.keys)?;
        map.serialize_entry("segments", &volume.segments)?;
        map.serialize_entry("total_segments", &volume.segments)?;
        map.serialize_entry("total_mb", &volume.total_mb())?;
        map.serialize_entry("active_segment_id", &volume.active_segment)?;
        map.serialize_entry("oldest_segment_id", &volume.oldest_segment)?;
        map.serialize_entry("avg_value_size_bytes", &volume.value_size_mean())?;
        map.serialize_entry("uptime_secs", &self.api.shared.started.elapsed().as_secs())?;
        if let Some(coordinator) = coordinator {
            map.serialize_entry("level_files", &engine.level_files)?;
            map.serialize_entry("level_bytes", &engine.level_bytes)?;
            map.serialize_entry("disk_free_bytes", &engine.free_bytes)?;
            map.serialize_entry("wal_sync_micros_total", &engine.sync_times.micros)?;
            map.serialize_entry("node_id", coordinator.own().as_str())?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Quantiles {
    count: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Quantiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

fn families(coordinator: &Coordinator) -> Vec<Family> {
    let engine = coordinator.engine_stats();
    let nodes = coordinator.nodes();
    let by_level = |values: Vec<f64>| {
        values.into_iter().enumerate().map(|(level, value)| (level.to_string(), value)).collect()
    };
    let by_peer = |figure: &dyn Fn(&NodeStatus) -> Option<f64>| {
        nodes.iter().filter_map(|node| Some((node.node.as_str().to_owned(), figure(node)?))).collect()
    };
    let family = |name, help, label, values| Family { name, help, kind: Kind::Gauge, label, values };
    vec![
        family(
            "kvstore_build_info",
            "Always 1; the label says which version runs.",
            "version",
            vec![(env!("CARGO_PKG_VERSION").to_owned(), 1.0)],
        ),
        family(
            "kvstore_level_files",
            "Tables, by level.",
            "level",
            by_level(engine.level_files.map(|files| files as f64).to_vec()),
        ),
        family(
            "kvstore_level_bytes",
            "Bytes of tables, by level.",
            "level",
            by_level(engine.level_bytes.map(|bytes| bytes as f64).to_vec()),
        ),
        family(
            "kvstore_peer_up",
            "Whether this node believes a member up: 1 or 0.",
            "peer",
            by_peer(&|node| Some(f64::from(u8::from(node.state == NodeState::Up)))),
        ),
        family(
            "kvstore_hints_pending",
            "Hints held for a member.",
            "peer",
            by_peer(&|node| Some(node.hints_pending as f64)),
        ),
        family(
            "kvstore_hints_pending_bytes",
            "Bytes of hints held for a member.",
            "peer",
            by_peer(&|node| Some(node.hint_bytes as f64)),
        ),
        family(
            "kvstore_clock_offset_seconds",
            "A member's clock minus this node's, as of the last ping.",
            "peer",
            by_peer(&|node| Some(node.clock_offset_ms? as f64 / 1e3)),
        ),
    ]
}

#[derive(Serialize)]
struct ClusterStatus<'a> {
    node_id: &'a str,
    nodes: Vec<NodeView<'a>>,
    replication_factor: usize,
    write_quorum: usize,
    read_quorum: usize,
    ranges: u32,
    ready: bool,
    clock: u64,
    clock_skew_max_ms: u64,
    /// How far the ring's time is ahead of its wall clocks, which were ahead once.
    ring_ahead_ms: u64,
    /// Whether the node listens beyond loopback and asks nobody for a token.
    open_to_all: bool,
    /// Always: what VikDB's clients look for before they write.
    replication: bool,
    is_leader: bool,
    role: &'static str,
}

/// A member as this node sees it.
#[derive(Serialize)]
pub(super) struct NodeView<'a> {
    name: &'a str,
    state: &'static str,
    share: f64,
    hints_pending: u64,
    hint_bytes: u64,
    clock_offset_ms: Option<i64>,
    /// By how much its clock was last seen out of bounds within the last hour, and how long ago that was.
    clock_was_off: Option<ClockWasOff>,
    mismatch: Option<&'a str>,
}

#[derive(Serialize)]
struct ClockWasOff {
    ms: i64,
    seconds_ago: u64,
}

impl<'a> NodeView<'a> {
    pub(super) fn of(node: &'a NodeStatus) -> Self {
        Self {
            name: node.node.as_str(),
            state: state_name(node.state),
            share: node.share,
            hints_pending: node.hints_pending,
            hint_bytes: node.hint_bytes,
            clock_offset_ms: node.clock_offset_ms,
            clock_was_off: node.clock_was_off.map(|(ms, ago)| ClockWasOff { ms, seconds_ago: ago.as_secs() }),
            mismatch: node.mismatch.as_deref(),
        }
    }
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Up => "up",
        NodeState::Rebuilding => "rebuilding",
        NodeState::Suspect => "suspect",
        NodeState::Down => "down",
    }
}

/// `GET /cluster/status`: every member as this node sees it.
pub fn cluster_status(door: &Door) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let (write_quorum, read_quorum) = coordinator.quorums();
    let nodes = coordinator.nodes();
    let body = ClusterStatus {
        node_id: coordinator.own().as_str(),
        nodes: nodes.iter().map(NodeView::of).collect(),
        replication_factor: coordinator.ring().replication_factor(),
        write_quorum,
        read_quorum,
        ranges: coordinator.ring().range_count(),
        ready: problems(&checks(door)).is_empty(),
        clock: coordinator.clock().as_u64(),
        clock_skew_max_ms: coordinator.clock_skew_max().as_millis() as u64,
        ring_ahead_ms: coordinator.ring_ahead().unwrap_or_default().as_millis() as u64,
        open_to_all: door.api.shared.settings.is_open_to_all(),
        replication: true,
        is_leader: true,
        role: "peer",
    };
    Ok(answer::json(StatusCode::OK, &body))
}

fn hex(token: Token) -> String {
    format!("{:016x}", token.0) // as text: JSON numbers lose digits beyond 2^53 in many clients
}

/// `GET /ring`: who owns which range, or with `?key=` where one key lies.
pub fn ring(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let query = Route::Ring.query(request.uri())?;
    let ring = coordinator.ring();
    Ok(if query.has("key") {
        answer::json(StatusCode::OK, &Place::of(ring, &item::key_of(&query)?))
    } else {
        answer::json(StatusCode::OK, &Table::of(ring))
    })
}

/// Where one key lies.
#[derive(Serialize)]
struct Place<'a> {
    key: Cow<'a, str>,
    token: String,
    range: u16,
    primaries: Vec<String>,
    fallbacks: Vec<String>,
}

impl<'a> Place<'a> {
    fn of(ring: &Ring, key: &'a Key) -> Self {
        let token = Token::of(key.as_bytes());
        let range = ring.range_of(token);
        let list = ring.preference_list(range);
        let owned = |nodes: &[NodeId]| nodes.iter().map(NodeId::to_string).collect();
        Self {
            key: String::from_utf8_lossy(key.as_bytes()),
            token: hex(token),
            range: range.0,
            primaries: owned(list.primaries()),
            fallbacks: owned(list.fallbacks()),
        }
    }
}

/// Who owns which range.
#[derive(Serialize)]
struct Table<'a> {
    members: Vec<MemberView<'a>>,
    replication_factor: usize,
    ranges: Vec<RangeView<'a>>,
}

#[derive(Serialize)]
struct MemberView<'a> {
    name: &'a str,
    weight: u32,
    zone: Option<&'a str>,
    share: f64,
}

#[derive(Serialize)]
struct RangeView<'a> {
    range: u16,
    first: String,
    last: String,
    primaries: Vec<&'a str>,
}

impl<'a> Table<'a> {
    fn of(ring: &'a Ring) -> Self {
        let members = ring.membership().members().iter().map(|member| MemberView {
            name: member.id.as_str(),
            weight: member.weight,
            zone: member.zone.as_deref(),
            share: ring.share(&member.id),
        });
        let ranges = (0..ring.range_count()).map(|number| {
            let range = RangeId(number as u16); // at most 65,536 ranges
            let tokens = ring.tokens_of(range);
            RangeView {
                range: range.0,
                first: hex(tokens.first),
                last: hex(tokens.last),
                primaries: ring.primaries(range).iter().map(NodeId::as_str).collect(),
            }
        });
        Self {
            members: members.collect(),
            replication_factor: ring.replication_factor(),
            ranges: ranges.collect(),
        }
    }
}

/// Keys listed where a request does not say how many.
const HOT_KEYS_DEFAULT: usize = 20;

#[derive(Serialize)]
struct HotKeysView<'a> {
    /// One request in so many is looked at.
    sampled: u32,
    /// Requests looked at in the last minutes; a request of a minute ago counts half of one of now.
    looked_at: u64,
    keys: Vec<HotKeyView<'a>>,
}

#[derive(Serialize)]
struct HotKeyView<'a> {
    key: Cow<'a, str>,
    /// Where the key is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// The key's part of the requests looked at, 0 to 1; too high by `error` of them at most.
    share: f64,
    reads: u64,
    writes: u64,
    error: u64,
}

impl<'a> HotKeyView<'a> {
    fn of(hot: &'a HotKey, looked_at: u64) -> Self {
        let key = String::from_utf8_lossy(hot.key.as_bytes());
        let is_lossy = matches!(key, Cow::Owned(_));
        Self {
            key,
            key_base64: is_lossy.then(|| STANDARD.encode(hot.key.as_bytes())),
            share: hot.count() as f64 / looked_at.max(hot.count()).max(1) as f64,
            reads: hot.reads,
            writes: hot.writes,
            error: hot.error,
        }
    }
}

/// `GET /debug/hotkeys[?limit=]`: which keys clients of this node ask for most.
pub fn hot_keys(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let query = Route::HotKeys.query(request.uri())?;
    let limit = query.number("limit", 1, KEYS_MAX)?.unwrap_or(HOT_KEYS_DEFAULT);
    let hottest = coordinator.hottest_keys(limit);
    let keys = hottest.keys.iter().map(|hot| HotKeyView::of(hot, hottest.looked_at)).collect();
    let body = HotKeysView { sampled: SAMPLED, looked_at: hottest.looked_at, keys };
    Ok(answer::json(StatusCode::OK, &body))
}

#[derive(Serialize)]
struct CheckpointsView {
    checkpoints: Vec<CheckpointInfo>,
}

/// `GET /checkpoint`: the copies of this node's directory, by name.
pub async fn checkpoints(door: &Door) -> Result<Response<Body>, Fault> {
    let checkpoints = door.api.coordinator()?.checkpoints().await?;
    Ok(answer::json(StatusCode::OK, &CheckpointsView { checkpoints }))
}

/// `POST /checkpoint?name=`: copies this node's directory while it serves, and says where the copy lies.
pub async fn make_checkpoint(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let info = coordinator.checkpoint(checkpoint_name(request)?).await?;
    Ok(answer::json(StatusCode::CREATED, &info))
}

/// `DELETE /checkpoint?name=`.
pub async fn remove_checkpoint(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    coordinator.remove_checkpoint(checkpoint_name(request)?).await?;
    Ok(answer::no_content())
}

/// The name that a query gives: never a path.
fn checkpoint_name(request: &Request<Incoming>) -> Result<CheckpointName, Fault> {
    let query = Route::CheckpointMake.query(request.uri())?;
    let name =
        query.bytes("name").and_then(|name| std::str::from_utf8(name).ok()).and_then(CheckpointName::new);
    name.ok_or_else(|| {
        let max = CheckpointName::MAX_LEN;
        Fault::BadRequest(format!(
            "\"name\" must have 1 to {max} letters, digits, `.`, `_` and `-`, and no dot in front"
        ))
    })
}

/// `GET /explain?key=`: what each replica holds of a key, and who wins.
pub async fn explain(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    let coordinator = door.api.coordinator()?;
    let query = Route::Explain.query(request.uri())?;
    item::quorums(coordinator, &query)?;
    let key = item::key_of(&query)?;
    let explanation = coordinator.explain(key.clone()).await;
    let body = ExplanationView {
        key: String::from_utf8_lossy(key.as_bytes()),
        winner: explanation.winner.as_ref().map(NodeId::as_str),
        replicas: explanation.replicas.iter().map(ReplicaView::of).collect(),
    };
    Ok(answer::json(StatusCode::OK, &body))
}

#[derive(Serialize)]
struct ExplanationView<'a> {
    key: Cow<'a, str>,
    winner: Option<&'a str>,
    replicas: Vec<ReplicaView<'a>>,
}

#[derive(Serialize)]
struct ReplicaView<'a> {
    node: &'a str,
    state: &'static str,
    timestamp: Option<u64>,
    size: Option<usize>,
    /// When its value ends, or ended; and which of the two. Left out where there is no expiry.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expired: Option<bool>,
    reason: Option<&'a str>,
}

impl<'a> ReplicaView<'a> {
    fn of((node, state): &'a (NodeId, ReplicaState)) -> Self {
        let without = |state, reason| Self {
            node: node.as_str(),
            state,
            timestamp: None,
            size: None,
            expires_at: None,
            expired: None,
            reason,
        };
        match state {
            ReplicaState::Holds(record) => Self {
                timestamp: Some(record.timestamp().as_u64()),
                size: Some(record.value_len()),
                expires_at: record.expires_at().map(|end| end.to_string()),
                expired: record.expires_at().map(|_| record.is_tombstone()),
                ..without(if record.is_tombstone() { "tombstone" } else { "value" }, None)
            },
            ReplicaState::Missing => without("missing", None),
            ReplicaState::Unreachable(reason) => without("unreachable", Some(reason)),
        }
    }
}
