//! What nodes answer to operators' questions, as far as commands look at it (`http::admin` gives them).

use serde::Deserialize;

/// `GET /health`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Whether it takes requests.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// Its name; none while it starts.
    pub node_id: Option<String>,
    /// Its version.
    pub version: String,
    /// How long its port has been open.
    pub uptime_seconds: u64,
    /// Keys on its disk, about.
    pub keys: u64,
    /// Tables and logs.
    pub segments: u64,
    /// Mebibytes of them.
    pub total_mb: f64,
}

/// `GET /cluster/status`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// Who was asked.
    pub node_id: String,
    /// All members.
    pub nodes: Vec<Member>,
    /// N.
    pub replication_factor: usize,
    /// W.
    pub write_quorum: usize,
    /// R.
    pub read_quorum: usize,
    /// Ranges of the ring.
    pub ranges: u32,
    /// `MAX_CLOCK_SKEW`; none from an older node.
    pub clock_skew_max_ms: Option<u64>,
    /// How far the ring's time is ahead of its wall clocks.
    pub ring_ahead_ms: u64,
    /// Whether the node listens beyond loopback and asks nobody for a token.
    pub open_to_all: bool,
}

/// A member as another one sees it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// `up`, `rebuilding`, `suspect` or `down`.
    pub state: String,
    /// Its part of the ring, 0 to 1.
    pub share: f64,
    /// Hints that wait for it.
    pub hints_pending: u64,
    /// Bytes of them.
    pub hint_bytes: u64,
    /// Its clock minus that of the node asked.
    pub clock_offset_ms: Option<i64>,
    /// When its clock was last out of bounds, if within the last hour.
    pub clock_was_off: Option<ClockWasOff>,
    /// Why it is refused as a peer.
    pub mismatch: Option<String>,
}

/// That a member's clock was out of bounds.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct ClockWasOff {
    /// By how much.
    pub ms: i64,
    /// How long ago.
    pub seconds_ago: u64,
}

/// `GET /ring`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Ring {
    /// All members.
    pub members: Vec<RingMember>,
    /// N.
    pub replication_factor: usize,
    /// Who owns what.
    pub ranges: Vec<RingRange>,
}

/// A member's part of the ring.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct RingMember {
    /// Its name.
    pub name: String,
    /// Its virtual nodes.
    pub weight: u32,
    /// Where it stands.
    pub zone: Option<String>,
    /// Its part, 0 to 1.
    pub share: f64,
}

/// One range.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RingRange {
    /// Its number.
    pub range: u32,
    /// Its first token.
    pub first: String,
    /// Its last token.
    pub last: String,
    /// Who holds it.
    pub primaries: Vec<String>,
}

/// `GET /ring?key=`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Place {
    /// The key's hash.
    pub token: String,
    /// Its range.
    pub range: u32,
    /// Who holds it.
    pub primaries: Vec<String>,
    /// Who stands in.
    pub fallbacks: Vec<String>,
}

/// `GET /explain?key=`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// Whose record counts.
    pub winner: Option<String>,
    /// What each replica holds.
    pub replicas: Vec<Replica>,
}

/// What one replica holds of a key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Replica {
    /// Which node.
    pub node: String,
    /// `value`, `tombstone`, `missing` or `unreachable`.
    pub state: String,
    /// When it was written.
    pub timestamp: Option<u64>,
    /// Bytes of value.
    pub size: Option<u64>,
    /// Why it could not be asked.
    pub reason: Option<String>,
}
