//! Timestamps order records; node identities name who holds them.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A reading of a hybrid logical clock: 52 bits of microseconds since 1970, then 12 bits of counter. In a ring the lowest eight
/// of them name the member that gave it.
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

    /// The timestamp this much wall time earlier.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> Self::COUNTER_BITS);
        Self(self.0.saturating_sub(micros.saturating_mul(1 << Self::COUNTER_BITS)))
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

/// When a value ends: a microsecond since 1970, set once by the coordinator of its write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expiry(NonZeroU64);

impl Expiry {
    /// The end of what is written at `timestamp` for `ttl`.
    pub fn after(timestamp: Timestamp, ttl: Ttl) -> Self {
        Self::at(timestamp.plus(ttl.as_duration()))
    }

    /// The microsecond that a timestamp lies in, and the first after 1970 began at the least.
    pub fn at(timestamp: Timestamp) -> Self {
        Self(NonZeroU64::new(timestamp.micros()).unwrap_or(NonZeroU64::MIN))
    }

    /// Microseconds since 1970: as it is stored and sent.
    pub fn as_u64(self) -> u64 {
        self.0.get()
    }

    /// What was stored or sent as `raw`; zero is none.
    pub fn from_u64(raw: u64) -> Option<Self> {
        NonZeroU64::new(raw).map(Self)
    }

    /// Reads what [`Expiry`] is shown as; `None` if it is not that. Fractions of a microsecond are dropped.
    pub fn parse(text: &str) -> Option<Self> {
        let since_1970 = humantime::parse_rfc3339(text).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(Self::at(Timestamp::ZERO.plus(since_1970)))
    }

    /// The first timestamp at which it is over.
    pub fn timestamp(self) -> Timestamp {
        Timestamp::from_micros(self.0.get())
    }
}

/// In RFC 3339: `2026-11-21T16:45:01.250000Z`.
impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_micros(SystemTime::UNIX_EPOCH + Duration::from_micros(self.as_u64())).fmt(f)
    }
}

impl fmt::Debug for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}µs", self.0)
    }
}

/// How long a value is to live: [`Ttl::MIN`] to [`Ttl::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ttl(Duration);

impl Ttl {
    /// A millisecond.
    pub const MIN: Duration = Duration::from_millis(1);
    /// Twenty years: an expiry stays far from where timestamps end.
    pub const MAX: Duration = Duration::from_secs(7300 * 86_400);

    /// Checks the bounds.
    pub fn new(duration: Duration) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&duration).then_some(Self(duration))
    }

    /// How long.
    pub fn as_duration(self) -> Duration {
        self.0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_told_to_the_microsecond_and_read_back() {
        let told = |micros| Expiry::from_u64(micros).unwrap().to_string();
        assert_eq!(told(1), "1970-01-01T00:00:00.000001Z");
        assert_eq!(told(1_795_279_501_250_000), "2026-11-21T16:45:01.250000Z");
        assert_eq!(Expiry::at(Timestamp::MAX).to_string(), "2112-09-17T23:53:47.370495Z");
        for micros in [1, 1_795_279_501_250_000, Timestamp::MAX.micros()] {
            assert_eq!(Expiry::parse(&told(micros)).map(Expiry::as_u64), Some(micros));
        }
        assert_eq!(
            Expiry::parse("9999-12-31T23:59:59Z"),
            Some(Expiry::at(Timestamp::MAX)),
            "the last there is"
        );
        for bad in ["", "1969-12-31T23:59:59Z", "2026-11-21", "2026-11-21T16:45:01+01:00", "1795279501"] {
            assert_eq!(Expiry::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_expiry_lies_its_ttl_behind_the_timestamp_and_never_before_1970() {
        let written = Timestamp::from_u64(Timestamp::from_micros(5_000_000).as_u64() + 77);
        let expiry = Expiry::after(written, Ttl::new(Duration::from_millis(250)).unwrap());
        assert_eq!((expiry.as_u64(), expiry.timestamp()), (5_250_000, Timestamp::from_micros(5_250_000)));
        assert_eq!(Expiry::from_u64(expiry.as_u64()), Some(expiry));
        assert_eq!((Expiry::from_u64(0), Expiry::at(Timestamp::ZERO).as_u64()), (None, 1));
    }

    #[test]
    fn a_ttl_is_a_millisecond_at_least_and_twenty_years_at_most() {
        for bad in [Duration::ZERO, Duration::from_micros(999), Ttl::MAX + Duration::from_micros(1)] {
            assert_eq!(Ttl::new(bad), None, "{bad:?}");
        }
        assert!(Ttl::new(Ttl::MIN).is_some() && Ttl::new(Ttl::MAX).is_some());
    }
}
