//! A line of an export: one key and its value, as JSON.
//!
//! ```text
//! {"key":"city:1","value":"Wien","timestamp":7312…}
//! {"key_base64":"/wA=","value_base64":"iVBORw==","content_type":"image/png","timestamp":7312…}
//! ```
//!
//! Each of the two is text where it is UTF-8, and standard base64 under the other name where it is not. The timestamp is
//! for information: an import gives new ones. Names that are not known are skipped, so that later versions may add some.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::types::{ContentType, Key, Timestamp, Value};

/// What a value without a type is served as: as good as none.
const OCTETS: &str = "application/octet-stream";

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    key: Option<Text<'a>>,
    #[serde(borrow)]
    key_base64: Option<Text<'a>>,
    #[serde(borrow)]
    value: Option<Text<'a>>,
    #[serde(borrow)]
    value_base64: Option<Text<'a>>,
    #[serde(borrow)]
    content_type: Option<Text<'a>>,
}

fn fields(line: &[u8]) -> Result<Fields<'_>, String> {
    serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        // A line has one line: the column is what helps.
        format!("bad JSON: {}", text.replace(" at line 1 column ", " at column "))
    })
}

fn bytes(name: &str, text: Option<Text<'_>>, base64: Option<Text<'_>>) -> Result<Vec<u8>, String> {
    match (text, base64) {
        (Some(Text(text)), None) => Ok(text.into_owned().into_bytes()),
        (None, Some(Text(text))) => {
            STANDARD.decode(text.as_bytes()).map_err(|error| format!("{name}_base64: {error}"))
        }
        (None, None) => Err(format!("no \"{name}\"")),
        (Some(_), Some(_)) => Err(format!("both \"{name}\" and \"{name}_base64\"")),
    }
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(line: &[u8]) -> Result<(Key, Value), String> {
    let Fields { key, key_base64, value, value_base64, content_type } = fields(line)?;
    let key = Key::new(bytes("key", key, key_base64)?).map_err(|error| error.to_string())?;
    let value = bytes("value", value, value_base64)?;
    let content_type = match content_type {
        Some(Text(text)) if text != OCTETS => {
            let wrong =
                || format!("content_type is not 1 to {} printable ASCII characters", ContentType::MAX_LEN);
            Some(ContentType::new(text.as_bytes()).ok_or_else(wrong)?)
        }
        _ => None,
    };
    Ok((key, Value::new(value).of_type(content_type)))
}

/// Reads the key of a line, and whether it has a value.
pub fn key_of(line: &[u8]) -> Result<(Vec<u8>, bool), String> {
    let fields = fields(line)?;
    let has_value = fields.value.is_some() || fields.value_base64.is_some();
    Ok((bytes("key", fields.key, fields.key_base64)?, has_value))
}

/// Appends a line; `value`: nothing for keys alone.
pub fn push(
    out: &mut Vec<u8>,
    key: &[u8],
    value: Option<&[u8]>,
    content_type: Option<&str>,
    timestamp: Timestamp,
) {
    out.push(b'{');
    push_bytes(out, "key", key);
    if let Some(value) = value {
        out.push(b',');
        push_bytes(out, "value", value);
        if let Some(content_type) = content_type {
            out.extend_from_slice(br#","content_type":"#);
            push_text(out, content_type);
        }
    }
    out.extend_from_slice(br#","timestamp":"#);
    out.extend_from_slice(itoa::Buffer::new().format(timestamp.as_u64()).as_bytes());
    out.extend_from_slice(b"}\n");
}

fn push_bytes(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    if let Ok(text) = std::str::from_utf8(bytes) {
        out.extend_from_slice(b"\":");
        push_text(out, text);
    } else {
        out.extend_from_slice(b"_base64\":\"");
        out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
        out.push(b'"');
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing to memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_reads_as_drawn() {
        let mut out = Vec::new();
        push(&mut out, b"city:1", Some(b"Wien"), None, Timestamp::from_u64(7));
        push(&mut out, b"\xff\0", Some(b"\x89PNG"), Some("image/png"), Timestamp::from_u64(8));
        push(&mut out, b"k", None, Some("a/b"), Timestamp::from_u64(9));
        let expected = concat!(
            r#"{"key":"city:1","value":"Wien","timestamp":7}"#,
            "\n",
            r#"{"key_base64":"/wA=","value_base64":"iVBORw==","content_type":"image/png","timestamp":8}"#,
            "\n",
            r#"{"key":"k","timestamp":9}"#,
            "\n",
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let wrong = |line: &str| parse(line.as_bytes()).unwrap_err();
        assert_eq!(wrong(r#"{"key":"k"}"#), "no \"value\"");
        assert_eq!(wrong(r#"{"value":"k"}"#), "no \"key\"");
        assert_eq!(wrong(r#"{"key":"k","key_base64":"aw==","value":""}"#), "both \"key\" and \"key_base64\"");
        assert_eq!(wrong(r#"{"key":"","value":""}"#), "key is empty");
        assert!(wrong(r#"{"key":"k","value_base64":"?"}"#).starts_with("value_base64: "));
        assert!(wrong(r#"{"key":"k","value":7}"#).contains("expected a string at column 20"));
        assert!(wrong(r#"{"key":"k","value":"#).starts_with("bad JSON: EOF"));
        assert!(wrong(r#"{"key":"k","value":"","content_type":"a\nb"}"#).starts_with("content_type is not"));
        assert!(wrong("[]").starts_with("bad JSON: "));
    }

    #[test]
    fn names_of_later_versions_are_skipped() {
        let line = br#"{"key":"k","expires":17,"value":"v","more":{"a":[1]},"content_type":"application/octet-stream"}"#;
        let (key, value) = parse(line).unwrap();
        assert_eq!((key.as_bytes(), value), (&b"k"[..], Value::new("v")));
    }

    proptest! {
        #[test]
        fn any_bytes_of_any_type_come_back(
            key in proptest::collection::vec(any::<u8>(), 1..20), value: Vec<u8>, of in proptest::option::of("[ -~]{1,9}"),
        ) {
            let mut out = Vec::new();
            push(&mut out, &key, Some(&value), of.as_deref(), Timestamp::from_u64(1));
            let (read_key, read) = parse(&out).unwrap();
            prop_assert_eq!(read_key.as_bytes(), &key[..]);
            prop_assert_eq!(read.as_bytes(), &value[..]);
            prop_assert_eq!(read.content_type().map(ContentType::as_bytes), of.as_deref().map(str::as_bytes));
            prop_assert_eq!(key_of(&out).unwrap(), (key, true));
        }

        #[test]
        fn no_line_panics(line: Vec<u8>) {
            let _ = parse(&line);
        }
    }
}
