//! Cursor: where the next page of a scan starts, in a form that a client hands back untouched.
//!
//! ```text
//! base64url without padding of   version u8 = 1 │ crc32 of the key u32 │ key
//! ```
//!
//! The checksum tells a cursor from a key or a cut-off copy. It is no signature: a made-up cursor can only start a scan
//! somewhere else, which its maker could have asked for anyway.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use crate::http::status::Fault;
use crate::types::Key;

const VERSION: u8 = 1;
const HEADER_LEN: usize = 5;
/// A resume point may be a key and one byte more.
const KEY_MAX: usize = Key::MAX_LEN + 1;

/// Encodes the key at which the next page starts.
pub fn encode(resume: &[u8]) -> String {
    let mut raw = Vec::with_capacity(HEADER_LEN + resume.len());
    raw.push(VERSION);
    raw.extend_from_slice(&crc32fast::hash(resume).to_le_bytes());
    raw.extend_from_slice(resume);
    URL_SAFE_NO_PAD.encode(raw)
}

/// Decodes what [`encode`] made.
///
/// # Errors
/// [`Fault::BadRequest`] for anything else.
pub fn decode(cursor: &[u8]) -> Result<Bytes, Fault> {
    let bad = || Fault::BadRequest("\"cursor\" is none that this store gave".to_owned());
    if cursor.len() > (HEADER_LEN + KEY_MAX).div_ceil(3) * 4 {
        return Err(bad());
    }
    let raw = Bytes::from(URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad())?);
    let (header, key) = raw.split_first_chunk::<HEADER_LEN>().ok_or_else(bad)?;
    let [version, checksum @ ..] = *header;
    if version != VERSION || u32::from_le_bytes(checksum) != crc32fast::hash(key) {
        return Err(bad());
    }
    Ok(raw.slice(HEADER_LEN..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_decodes_as_encoded_and_is_safe_in_a_url(key: Vec<u8>) {
            let cursor = encode(&key);
            prop_assert!(cursor.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(&decode(cursor.as_bytes()).unwrap()[..], &key[..]);
        }

        #[test]
        fn anything_else_is_refused(bytes: Vec<u8>) {
            prop_assert!(decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_cursor_of_another_version_is_refused() {
        let mut raw = URL_SAFE_NO_PAD.decode(encode(b"k")).unwrap();
        raw[0] = 2;
        assert!(decode(URL_SAFE_NO_PAD.encode(raw).as_bytes()).is_err());
    }
}
