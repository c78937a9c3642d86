//! Figures: the one table of what `/metrics` says, by its name in JSON and in Prometheus.

use std::sync::atomic::Ordering;

use super::admin;
use super::api::Api;
use super::metrics::Totals;
use super::router::Operation;
use crate::replication::Coordinator;

/// Whether a figure only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It counts since the node started.
    Counter,
    /// It is what it is now.
    Gauge,
}

/// One figure without labels.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Its name in JSON.
    pub json: &'static str,
    /// Its name in Prometheus text.
    pub prometheus: &'static str,
    /// Whether it only rises.
    pub kind: Kind,
    /// What it says.
    pub help: &'static str,
    /// Its value.
    pub value: u64,
}

fn counter(json: &'static str, prometheus: &'static str, value: u64, help: &'static str) -> Figure {
    Figure { json, prometheus, kind: Kind::Counter, help, value }
}

fn gauge(json: &'static str, prometheus: &'static str, value: u64, help: &'static str) -> Figure {
    Figure { json, prometheus, kind: Kind::Gauge, help, value }
}

/// What clients asked of this node. There from the moment the port is open.
pub fn of_requests(api: &Api, totals: &Totals) -> Vec<Figure> {
    let requests = |operation| totals.operations(operation);
    let mut figures = vec![
        counter("writes", "kvstore_writes_total", requests(Operation::Write), "Put requests taken."),
        counter("reads", "kvstore_reads_total", requests(Operation::Read), "Get requests taken."),
        counter("batches", "kvstore_batches_total", requests(Operation::Batch), "Batch requests taken."),
        counter("scans", "kvstore_scans_total", requests(Operation::Scan), "Scan requests taken."),
        counter("deletes", "kvstore_deletes_total", requests(Operation::Delete), "Delete requests taken."),
        counter("errors", "kvstore_errors_total", totals.errors(), "Answers of 500 and above."),
        counter(
            "slow_requests",
            "kvstore_slow_requests_total",
            api.shared.slow_log.count(),
            "Requests that took longer than SLOW_REQUEST_TIME.",
        ),
        counter(
            "log_lines_dropped",
            "kvstore_log_lines_dropped_total",
            api.shared.settings.log_lines_dropped.load(Ordering::Relaxed),
            "Log lines that stdout or node.log did not take in time.",
        ),
        gauge(
            "uptime_seconds",
            "kvstore_uptime_seconds",
            api.shared.started.elapsed().as_secs(),
            "Time since the port was opened.",
        ),
        gauge(
            "ready",
            "kvstore_ready",
            u64::from(admin::problems(&admin::checks_of(api)).is_empty()),
            "1 while the node takes requests: recovered, voting, its clock in bounds.",
        ),
        gauge(
            "http_bytes_in_flight",
            "kvstore_http_in_flight_bytes",
            api.shared.budget.taken() as u64,
            "Bytes of bodies and values in flight at the door.",
        ),
    ];
    if let Some(tls) = &api.shared.settings.tls {
        figures.push(gauge(
            "tls_certificate_expiry",
            "kvstore_tls_certificate_expiry_timestamp_seconds",
            tls.material().expires(),
            "When the certificate in force expires, in seconds since 1970.",
        ));
        figures.push(counter(
            "tls_handshakes_failed",
            "kvstore_tls_handshakes_failed_total",
            tls.handshakes_failed(),
            "Connections of clients or peers that came to no TLS.",
        ));
    }
    figures
}

/// What the engine and the request path have done. Zeros until the node has recovered.
pub fn of_node(coordinator: Option<&Coordinator>) -> Vec<Figure> {
    let engine = coordinator.map(Coordinator::engine_stats).unwrap_or_default();
    let paths = coordinator.map(Coordinator::stats).unwrap_or_default();
    let flag = u64::from;
    vec![
        counter("compactions", "kvstore_compactions_total", engine.compactions, "Compactions run."),
        counter("flushes", "kvstore_flushes_total", engine.flushes, "Memtables flushed to level 0."),
        counter("wal_syncs", "kvstore_wal_syncs_total", engine.wal_syncs, "Syncs of the write-ahead log."),
        gauge("l0_files", "kvstore_l0_files", engine.level_files[0] as u64, "Tables in level 0."),
        gauge(
            "total_bytes",
            "kvstore_held_bytes",
            engine.held_bytes(),
            "Bytes of data held: tables, and records of the log that are not in tables yet.",
        ),
        counter("wal_bytes", "kvstore_wal_bytes_total", engine.wal_bytes, "Bytes appended to the log."),
        counter(
            "batches_written",
            "kvstore_engine_batches_total",
            engine.batches_written,
            "Batches written by the engine.",
        ),
        counter(
            "records_written",
            "kvstore_engine_records_total",
            engine.records_written,
            "Records written by the engine, replicas' writes included.",
        ),
        counter(
            "compaction_bytes_read",
            "kvstore_compaction_read_bytes_total",
            engine.compaction_bytes.0,
            "Bytes read by compactions.",
        ),
        counter(
            "compaction_bytes_written",
            "kvstore_compaction_written_bytes_total",
            engine.compaction_bytes.1,
            "Bytes written by compactions.",
        ),
        gauge(
            "memtable_bytes",
            "kvstore_memtable_bytes",
            engine.memtable_bytes as u64,
            "Bytes in memtables.",
        ),
        gauge(
            "memtables_sealed",
            "kvstore_memtables_sealed",
            engine.memtables_sealed as u64,
            "Sealed memtables that wait for their flush.",
        ),
        gauge("tombstones", "kvstore_tombstones", engine.tombstones, "Tombstones in tables."),
        counter(
            "expired_dropped",
            "kvstore_expired_dropped_total",
            engine.expired,
            "Expired values whose bytes flushes and compactions let go.",
        ),
        counter(
            "expired_reads",
            "kvstore_expired_reads_total",
            paths.expired,
            "Times a value on this node's disk was found to have expired.",
        ),
        counter(
            "cache_hits",
            "kvstore_block_cache_hits_total",
            engine.cache_hits,
            "Blocks found in the cache.",
        ),
        counter(
            "cache_misses",
            "kvstore_block_cache_misses_total",
            engine.cache_misses,
            "Blocks read from disk.",
        ),
        gauge("cache_bytes", "kvstore_block_cache_bytes", engine.cache_bytes, "Bytes in the block cache."),
        counter(
            "corruptions",
            "kvstore_corruptions_total",
            engine.corruptions,
            "Blocks found damaged, and not served.",
        ),
        gauge(
            "throttled",
            "kvstore_writes_throttled",
            flag(engine.throttled),
            "1 while writers are held back for compaction.",
        ),
        counter(
            "throttles",
            "kvstore_write_throttles_total",
            engine.throttles,
            "Times writers were held back.",
        ),
        gauge(
            "poisoned",
            "kvstore_engine_poisoned",
            flag(engine.poisoned),
            "1 when a sync failed: writes are refused until a restart.",
        ),
        gauge(
            "out_of_space",
            "kvstore_engine_out_of_space",
            flag(engine.out_of_space),
            "1 while writes are refused for want of space.",
        ),
        counter(
            "lww_overtaken",
            "kvstore_lww_overtaken_total",
            paths.overtaken,
            "Acknowledged writes that met a newer record: a lower bound.",
        ),
        counter("hints_stored", "kvstore_hints_stored_total", paths.hints_stored, "Hints made durable."),
        counter(
            "hints_delivered",
            "kvstore_hints_delivered_total",
            paths.hints_delivered,
            "Hints delivered.",
        ),
        counter(
            "hints_dropped",
            "kvstore_hints_dropped_total",
            paths.hints_dropped,
            "Hints dropped at the cap or of old age.",
        ),
        counter(
            "read_repairs",
            "kvstore_read_repairs_total",
            paths.read_repairs,
            "Records sent to replicas that a read found behind.",
        ),
        counter(
            "write_backs",
            "kvstore_read_write_backs_total",
            paths.write_backs,
            "Reads that made the winner durable before they answered.",
        ),
        counter(
            "hedged_reads",
            "kvstore_hedged_reads_total",
            paths.hedged_reads,
            "Reads sent to one more replica.",
        ),
        counter(
            "timestamps_refused",
            "kvstore_timestamps_refused_total",
            paths.timestamps_refused,
            "Timestamps refused because they were too far ahead.",
        ),
        counter(
            "peer_failures",
            "kvstore_peer_failures_total",
            paths.peer_failures,
            "Requests to peers that failed or timed out.",
        ),
        counter(
            "rebuilt_records",
            "kvstore_rebuilt_records_total",
            paths.rebuilt_records,
            "Records received by rebuilds.",
        ),
        gauge(
            "inflight_bytes",
            "kvstore_in_flight_bytes",
            paths.inflight_bytes,
            "Bytes of requests in flight on the request path.",
        ),
    ]
}
