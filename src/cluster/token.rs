//! Tokens and token ranges: where on the ring a key lies.
//!
//! ```text
//! key ── xxh3_64, seed 0 ──> token 0 … 2^64 − 1
//!                            ├── range 0 ──┼── range 1 ──┼── …  ──┼── range Q − 1 ──┤
//! ```
//!
//! A wire and disk contract: all nodes of all versions place a key alike. Changing anything here moves every key.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// A place on the ring: `xxh3_64` of a key, seed 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// One of the ring's Q equal token ranges, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeId(pub u16);

/// A stretch of tokens, both ends included: a range that excluded its end could not reach the last token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRange {
    /// The first token.
    pub first: Token,
    /// The last token.
    pub last: Token,
}

impl Token {
    /// The token of a key.
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }
}

impl TokenRange {
    /// Whether `token` lies in it.
    pub fn contains(self, token: Token) -> bool {
        (self.first..=self.last).contains(&token)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for RangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_those_of_the_first_release() {
        // Computed by another implementation of xxh3_64 (the reference library).
        let golden: [(&[u8], u64); 7] = [
            (b"", 0x2d06_8005_38d3_94c2),
            (b"a", 0xe6c6_32b6_1e96_4e1f),
            (b"user:1001", 0x7838_6458_0ee6_6e90),
            (b"city:US:5128581", 0xeb22_5741_6f3a_6de0),
            (b"\0\xff", 0xa99b_043a_346c_8bf3),
            (&[b'x'; 4096], 0x854c_6670_88ef_e093),
            ("clé".as_bytes(), 0x061b_b717_7f5a_5f6a),
        ];
        for (key, token) in golden {
            assert_eq!(Token::of(key).to_string(), format!("{token:016x}"), "{}", key.escape_ascii());
        }
    }

    #[test]
    fn a_token_range_holds_both_its_ends() {
        let range = TokenRange { first: Token(4), last: Token(7) };
        let inside: Vec<u64> = (0..10).filter(|token| range.contains(Token(*token))).collect();
        assert_eq!(inside, [4, 5, 6, 7]);
    }
}
