//! `Expiries`: how much of a table has expired by a given moment, in a few numbers.
//!
//! ```text
//! values that end at    3 4 4 9 │ 20 21 22 │ 50 51 …      a histogram of at most 16 bins, each named by the moment
//! bins                        9 │       22 │      …       at which the last of its values ends
//! ```
//!
//! A bin is counted once all of its values have ended, so the answer is a lower bound: what is reported as
//! expired has expired. Where a bin too many arises, the two neighbours closest to each other become one.
//!
//! Source: Ben-Haim and Tom-Tov, "A Streaming Parallel Decision Tree Algorithm" (JMLR 2010); Apache Cassandra keeps such a
//! histogram of droppable tombstones in each table (`StreamingTombstoneHistogramBuilder`).

use bytes::BufMut;

use crate::engine::options::is_beyond;
use crate::types::{Expiry, Timestamp};
use crate::util::coding::{DecodeError, Reader, put_varint};

/// Bins a table, at most.
const BINS_MAX: usize = 16;

/// Values that end, and the bytes of their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ended {
    /// How many.
    pub values: u64,
    /// Bytes of values and content types, before compression.
    pub bytes: u64,
}

/// When the values of a table end.
///
/// Invariant: bins are sorted by their moment, and no two have the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expiries {
    bins: Vec<(Expiry, Ended)>,
}

impl Expiries {
    /// Counts a value of `bytes` bytes that ends at `expires_at`.
    pub fn add(&mut self, expires_at: Expiry, bytes: u64) {
        let at = self.bins.partition_point(|(end, _)| *end < expires_at);
        if self.bins.get(at).is_none_or(|(end, _)| *end != expires_at) {
            self.bins.insert(at, (expires_at, Ended::default()));
        }
        let ended = &mut self.bins[at].1;
        ended.values += 1;
        ended.bytes += bytes;
        if self.bins.len() > BINS_MAX {
            self.merge_closest();
        }
    }

    fn merge_closest(&mut self) {
        let gap = |at: &usize| self.bins[at + 1].0.as_u64() - self.bins[*at].0.as_u64();
        let Some(closest) = (0..self.bins.len() - 1).min_by_key(gap) else { return };
        let (_, earlier) = self.bins.remove(closest);
        let later = &mut self.bins[closest].1;
        later.values += earlier.values;
        later.bytes += earlier.bytes;
    }

    /// Whether no value ends.
    pub fn is_empty(&self) -> bool {
        self.bins.is_empty()
    }

    /// What has expired for good by this reading of the horizon, at least.
    pub fn ended(&self, horizon: Timestamp) -> Ended {
        self.bins.iter().take_while(|(end, _)| is_beyond(horizon, *end)).fold(
            Ended::default(),
            |sum, (_, bin)| Ended {
                values: sum.values.saturating_add(bin.values),
                bytes: sum.bytes.saturating_add(bin.bytes),
            },
        )
    }

    /// Appends how many bins there are, and each.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.bins.len() as u64);
        for (end, ended) in &self.bins {
            out.put_u64_le(end.as_u64());
            put_varint(out, ended.values);
            put_varint(out, ended.bytes);
        }
    }

    /// Reads what [`Expiries::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = reader.varint()?;
        let mut bins: Vec<(Expiry, Ended)> = Vec::new();
        for _ in 0..len {
            let end = Expiry::from_u64(reader.u64()?).ok_or(DecodeError("an expiry"))?;
            if bins.len() == BINS_MAX || bins.last().is_some_and(|(last, _)| *last >= end) {
                return Err(DecodeError("at most 16 expiries that rise"));
            }
            bins.push((end, Ended { values: reader.varint()?, bytes: reader.varint()? }));
        }
        Ok(Self { bins })
    }
}

#[cfg(test)]
pub(in crate::engine) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn any_expiries() -> impl Strategy<Value = Expiries> {
        proptest::collection::vec((1u64..1_000_000, 0u64..1_000), 0..40).prop_map(|values| {
            let mut expiries = Expiries::default();
            for (end, bytes) in values {
                expiries.add(Expiry::from_u64(end).expect("not zero"), bytes);
            }
            expiries
        })
    }

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    proptest! {
        #[test]
        fn nothing_is_counted_before_it_has_ended_and_everything_in_the_end(
            values in proptest::collection::vec((1u64..500, 0u64..1_000), 0..80), horizons in proptest::collection::vec(0u64..510, 1..20),
        ) {
            let mut expiries = Expiries::default();
            for (end, bytes) in &values {
                expiries.add(Expiry::from_u64(*end).unwrap(), *bytes);
            }
            let sum = |horizon: u64| {
                let ended = values.iter().filter(|(end, _)| *end < horizon);
                ended.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes))
            };
            for horizon in horizons {
                let Ended { values, bytes } = expiries.ended(at(horizon));
                let (count, sum) = sum(horizon);
                prop_assert!(values <= count && bytes <= sum);
            }
            let all = expiries.ended(at(501));
            prop_assert_eq!((all.values, all.bytes), sum(501));
            prop_assert!(expiries.bins.len() <= BINS_MAX);
            prop_assert!(expiries.bins.is_sorted_by(|a, b| a.0 < b.0));
        }

        #[test]
        fn they_decode_as_encoded(expiries in any_expiries()) {
            let mut bytes = Vec::new();
            expiries.encode(&mut bytes);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(Expiries::decode(&mut reader), Ok(expiries));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let _ = Expiries::decode(&mut Reader::new(&bytes));
        }
    }

    #[test]
    fn few_moments_are_kept_exactly() {
        let mut expiries = Expiries::default();
        for _ in 0..100 {
            expiries.add(Expiry::from_u64(10).unwrap(), 5);
            expiries.add(Expiry::from_u64(20).unwrap(), 7);
        }
        assert_eq!(expiries.ended(at(10)), Ended::default());
        assert_eq!(expiries.ended(at(11)), Ended { values: 100, bytes: 500 });
        assert_eq!(expiries.ended(at(21)), Ended { values: 200, bytes: 1_200 });
    }
}
