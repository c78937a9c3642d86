//! A line of an export: one key and its value, as JSON.
//!
//! ```text
//! {"key":"city:1","value":"Wien","timestamp":7312…}
//! {"key_base64":"/wA=","value_base64":"iVBORw==","content_type":"image/png","timestamp":7312…}
//! {"key":"session:7","value":"Alice","expires_at":"2026-11-21T16:45:01.250000Z","timestamp":7312…}
//! ```
//!
//! Each of the two is text where it is UTF-8, and standard base64 under the other name where it is not. The timestamp is
//! for information: an import gives new ones. Names that are not known are skipped by an import into a directory; a node refuses them.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::types::{ContentType, Expiry, Key, Timestamp, Value};

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
    #[serde(borrow)]
    expires_at: Option<Text<'a>>,
    /// What a node reads, and a directory does not.
    ttl: Option<IgnoredAny>,
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
    let Fields { key, key_base64, value, value_base64, content_type, expires_at, ttl } = fields(line)?;
    if ttl.is_some() {
        return Err("\"ttl\" is for nodes; a line for a directory says \"expires_at\"".to_owned());
    }
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
    let expires_at = expires_at.map(|Text(moment)| {
        Expiry::parse(&moment)
            .ok_or_else(|| "expires_at is no moment such as 2026-11-21T16:45:01.25Z".to_owned())
    });
    Ok((key, Value::new(value).of_type(content_type).expiring(expires_at.transpose()?)))
}

/// Reads the key of a line, and whether it has a value.
pub fn key_of(line: &[u8]) -> Result<(Vec<u8>, bool), String> {
    let fields = fields(line)?;
    let has_value = fields.value.is_some() || fields.value_base64.is_some();
    Ok((bytes("key", fields.key, fields.key_base64)?, has_value))
}

/// A value as a line tells of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Content<'a> {
    /// Its bytes.
    pub value: &'a [u8],
    /// Their type.
    pub content_type: Option<&'a str>,
    /// When it ends, as [`Expiry`] is shown.
    pub expires_at: Option<&'a str>,
}

/// Appends a line; `content`: nothing for keys alone.
pub fn push(out: &mut Vec<u8>, key: &[u8], content: Option<Content<'_>>, timestamp: Timestamp) {
    out.push(b'{');
    push_bytes(out, "key", key);
    if let Some(Content { value, content_type, expires_at }) = content {
        out.push(b',');
        push_bytes(out, "value", value);
        for (name, text) in [("content_type", content_type), ("expires_at", expires_at)] {
            if let Some(text) = text {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b"\":");
                push_text(out, text);
            }
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
        let mut add =
            |key: &[u8], content, timestamp| push(&mut out, key, content, Timestamp::from_u64(timestamp));
        add(b"city:1", Some(Content { value: b"Wien", ..Content::default() }), 7);
        let (value, content_type) = (&b"\x89PNG"[..], Some("image/png"));
        add(
            b"\xff\0",
            Some(Content { value, content_type, expires_at: Some("2026-11-21T16:45:01.250000Z") }),
            8,
        );
        add(b"k", None, 9);
        let expected = concat!(
            r#"{"key":"city:1","value":"Wien","timestamp":7}"#,
            "\n",
            r#"{"key_base64":"/wA=","value_base64":"iVBORw==","content_type":"image/png","expires_at":"2026-11-21T16:45:01.250000Z","timestamp":8}"#,
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
        assert!(
            wrong(r#"{"key":"k","value":"","expires_at":"tomorrow"}"#).starts_with("expires_at is no moment")
        );
        assert!(wrong(r#"{"key":"k","value":"","ttl":60}"#).starts_with("\"ttl\" is for nodes"));
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
            micros in proptest::option::of(1u64..1 << 52),
        ) {
            let mut out = Vec::new();
            let end = micros.and_then(Expiry::from_u64);
            let expires_at = end.map(|end| end.to_string());
            let content = Content { value: &value, content_type: of.as_deref(), expires_at: expires_at.as_deref() };
            push(&mut out, &key, Some(content), Timestamp::from_u64(1));
            let (read_key, read) = parse(&out).unwrap();
            prop_assert_eq!(read.expires_at(), end);
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
