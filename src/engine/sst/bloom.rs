//! Bloom filter: says of most keys that a table does not hold them, without reading it.
//!
//! ```text
//! encoded   filter version u32 (1) │ hash count u32 │ words u64 …
//! ```
//!
//! Fed with `xxh3_64` of user keys and nothing else: the library's own hasher is random, and its serialized form
//! has changed between releases. What it makes of a hash is part of the format; a golden test holds it.

use bytes::BufMut;
use fastbloom::BloomFilter as Filter;
use xxhash_rust::xxh3::xxh3_64;

use crate::util::coding::{DecodeError, Reader};

/// How bits are set for a hash: bumped if that ever changes.
const FILTER_VERSION: u32 = 1;
/// More hashes than this per key never pay.
const HASHES_MAX: u32 = 30;

/// A set of keys that may claim to hold more than it does, never less.
#[derive(Debug)]
pub struct BloomFilter {
    filter: Filter,
}

/// What filters, and the indexes of memtables, know of a user key.
pub fn hash(user_key: &[u8]) -> u64 {
    xxh3_64(user_key)
}

impl BloomFilter {
    /// Makes a filter of about `bits` bits, rounded up to 64, for these keys' hashes.
    pub fn build(hashes: &[u64], bits: usize) -> Self {
        let words = bits.div_ceil(64).max(1);
        let count = fastbloom::optimal_hashes(words * 64, hashes.len().max(1)).clamp(1, HASHES_MAX);
        let mut filter = Filter::from_vec(vec![0; words]).seed(&0).hashes(count);
        for hash in hashes {
            filter.insert_hash(*hash);
        }
        Self { filter }
    }

    /// False only if the key is not in the table.
    #[inline]
    pub fn may_contain(&self, hash: u64) -> bool {
        self.filter.contains_hash(hash)
    }

    /// Appends the filter.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(FILTER_VERSION);
        out.put_u32_le(self.filter.num_hashes());
        for word in self.filter.as_slice() {
            out.put_u64_le(*word);
        }
    }

    /// Reads what [`BloomFilter::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        if reader.u32()? != FILTER_VERSION {
            return Err(DecodeError("bloom filter version 1"));
        }
        let hashes = reader.u32()?;
        let (words, rest) = reader.rest().as_chunks::<8>();
        if hashes == 0 || hashes > HASHES_MAX || words.is_empty() || !rest.is_empty() {
            return Err(DecodeError("a bloom filter with hashes and words"));
        }
        let words = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        Ok(Self { filter: Filter::from_vec(words).seed(&0).hashes(hashes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_filter_never_denies_a_key_it_was_given(
            keys in proptest::collection::vec(any::<Vec<u8>>(), 0..200), bits in 0usize..4000,
        ) {
            let hashes: Vec<_> = keys.iter().map(|key| hash(key)).collect();
            let mut bytes = Vec::new();
            BloomFilter::build(&hashes, bits).encode(&mut bytes);
            let filter = BloomFilter::decode(&bytes).unwrap();
            prop_assert!(hashes.iter().all(|hash| filter.may_contain(*hash)));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let _ = BloomFilter::decode(&bytes);
        }
    }

    #[test]
    fn ten_bits_a_key_let_about_one_in_a_hundred_pass() {
        let hashes: Vec<_> = (0..10_000u32).map(|n| hash(&n.to_le_bytes())).collect();
        let filter = BloomFilter::build(&hashes, 100_000);
        let passed = (10_000..110_000u32).filter(|n| filter.may_contain(hash(&n.to_le_bytes()))).count();
        assert!(passed < 1_500, "{passed} of 100,000 absent keys passed");
    }

    #[test]
    fn the_bits_set_for_a_key_are_part_of_the_format() {
        let hashes: Vec<_> = [&b"a"[..], b"b", b"city:US:5128581"].map(hash).to_vec();
        let mut bytes = Vec::new();
        BloomFilter::build(&hashes, 30).encode(&mut bytes);
        assert_eq!(hex(&bytes), "010000000f000000782827fe812a0d6f");
    }

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write;
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}
