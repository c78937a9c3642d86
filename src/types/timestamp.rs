//! Timestamps order records; node identities name who holds them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A reading of a hybrid logical clock: 52 bits of microseconds since 1970, then 12 bits of counter.
///
/// Given once, by the coordinator of a write, and never anew to the same write. Zero is before every write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Before every timestamp that a clock gives.
    pub const ZERO: Self = Self(0);
    /// After every timestamp that a clock gives.
    pub const MAX: Self = Self(u64::MAX);
    const COUNTER_BITS: u32 = 12;

    /// The first timestamp of a microsecond since 1970. Beyond 52 bits (the year 2112) it stays at the last.
    pub fn from_micros(micros: u64) -> Self {
        Self(micros.min((1 << 52) - 1) << Self::COUNTER_BITS)
    }

    /// The microsecond since 1970 it lies in.
    pub fn micros(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// The timestamp as it is stored, sent and shown.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The timestamp stored or sent as `raw`.
    pub fn from_u64(raw: u64) -> Self {
        Self(raw)
    }

    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The timestamp this much wall time later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> Self::COUNTER_BITS);
        Self(self.0.saturating_add(micros.saturating_mul(1 << Self::COUNTER_BITS)))
    }

    /// How much wall time lies between `earlier` and this; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.micros().saturating_sub(earlier.micros()))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}µs+{}", self.micros(), self.0 & ((1 << Self::COUNTER_BITS) - 1))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A member of the cluster, by its canonical `host:port`. A clone shares the name.
///
/// Canonical means: lower case, and `localhost`, 127.0.0.0/8 and `::1` read as 127.0.0.1. Whoever parses an
/// address makes it so (`cluster::membership`); two identities are equal when their names are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Wraps a name that is canonical already.
    pub fn from_canonical(name: &str) -> Self {
        Self(name.into())
    }

    /// The canonical `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
