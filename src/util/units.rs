//! Sizes and times as people write them.
//!
//! `MB` and `MiB` both mean 1,048,576 bytes: every one of these settings is a buffer or a bound on one, and files
//! written for the stores we come from say `67108864  # 64MB`.

use std::time::Duration;

/// Why a text is no size or time, as the rest of a sentence about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(pub String);

const SIZES: [(&str, u64); 5] = [("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];
const TIMES: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// Splits `64 MB` into 64 and `MB`.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

/// Reads `67108864`, `64MB`, `64MiB` or `64m`, in bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let error = || {
        UnitError("a size is a whole number of bytes, or has a unit, as in 67108864, 64MB or 64MiB".into())
    };
    let (number, unit) = split(text).ok_or_else(error)?;
    let unit = unit.to_ascii_uppercase();
    let prefix = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
    let (_, factor) = SIZES.iter().find(|(name, _)| *name == prefix).ok_or_else(error)?;
    number.checked_mul(*factor).ok_or_else(error)
}

/// Reads `500us`, `5ms`, `2s`, `1m`, `3h` or `7d`. Only zero needs no unit.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error =
        || UnitError("a time is a whole number with a unit: us, ms, s, m, h or d, as in 5ms or 2s".into());
    let (number, unit) = split(text).ok_or_else(error)?;
    if number == 0 && unit.is_empty() {
        return Ok(Duration::ZERO);
    }
    let (_, micros) = TIMES.iter().find(|(name, _)| *name == unit.to_ascii_lowercase()).ok_or_else(error)?;
    number.checked_mul(*micros).map(Duration::from_micros).ok_or_else(error)
}

/// Writes bytes as [`parse_size`] reads them, in the largest unit that leaves a whole number.
pub fn format_size(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes.is_multiple_of(*factor) && (bytes > 0 || *factor == 1);
    match SIZES.iter().rev().find(fits) {
        Some((prefix, factor)) if *factor > 1 => format!("{}{prefix}iB", bytes / factor),
        _ => bytes.to_string(),
    }
}

/// Writes a time as [`parse_duration`] reads it, in the largest unit that leaves a whole number.
pub fn format_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    let fits = |(_, factor): &&(&str, u64)| micros > 0 && micros.is_multiple_of(u128::from(*factor));
    match TIMES.iter().rev().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", micros / u128::from(*factor)),
        None => "0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_size_may_have_a_unit() {
        for text in ["67108864", "64MB", "64MiB", "64 mb", "64M", "65536KB", "67108864B"] {
            assert_eq!(parse_size(text), Ok(64 << 20), "{text}");
        }
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "MB", "-1", "1.5GB", "64XB", "64MBB", "99999999999999999999", "99999999TB", "0x10"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_needs_a_unit() {
        for (text, micros) in [
            ("500us", 500),
            ("5ms", 5_000),
            ("2s", 2_000_000),
            ("1m", 60_000_000),
            ("3H", 10_800_000_000),
            ("7d", 604_800_000_000),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "5", "ms", "-5ms", "1.5s", "5 parsecs", "99999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(number in any::<u64>(), shift in 0u32..64) {
            let number = number >> shift;
            prop_assert_eq!(parse_size(&format_size(number)), Ok(number));
            let duration = Duration::from_micros(number);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
