//! Items: what a request says, whatever its dialect: keys and values out of JSON bodies, quorums and times to live out of
//! queries.
//!
//! Strings without escapes stay slices of the body; nothing is copied on the way to the log. A name given twice in one
//! object is refused, since readers differ in which one counts. Other names than ours are ignored, but that a near miss of
//! one of ours is refused: whoever writes `"tll":60` would otherwise get a value that lives for ever.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::http::query::Query;
use crate::http::status::Fault;
use crate::replication::{Coordinator, ReadOptions, WriteOptions};
use crate::types::key::KeyError;
use crate::types::{Key, Ttl, Value};
use crate::util::guess::near_miss;
use crate::util::units::parse_duration;

/// What a request says about quorums, and how long what it writes is to live.
#[derive(Debug, Clone, Copy)]
pub struct Quorums {
    /// `w` and `sloppy`.
    pub write: WriteOptions,
    /// `r`.
    pub read: ReadOptions,
    /// `ttl`.
    pub ttl: Option<Ttl>,
}

impl Quorums {
    /// How a request is to be made that deletes.
    ///
    /// # Errors
    /// [`Fault::BadRequest`] when it gives a ttl: a deletion has no end, and whoever asks for one means something else.
    pub fn of_delete(&self) -> Result<WriteOptions, Fault> {
        match self.ttl {
            None => Ok(self.write),
            Some(_) => Err(Fault::BadRequest("\"ttl\" is for writes; a deletion has none".to_owned())),
        }
    }
}

/// Reads a time to live: `60` (seconds), `500ms`, `60s`, `5m`, `12h` or `7d`.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn ttl(text: &[u8]) -> Result<Ttl, String> {
    let number_of_seconds = |text: &str| Some(Duration::from_secs(text.parse().ok()?));
    let duration =
        std::str::from_utf8(text).ok().and_then(|text| match text.bytes().all(|c| c.is_ascii_digit()) {
            true => number_of_seconds(text),
            false if text.trim() == text && !text.to_ascii_lowercase().ends_with("us") => {
                parse_duration(text).ok()
            }
            false => None,
        });
    duration.and_then(Ttl::new).ok_or_else(|| {
        let days_max = Ttl::MAX.as_secs() / 86_400;
        format!(
            "\"ttl\" must be a whole number of seconds, or have a unit: ms, s, m, h or d, as in 60, 500ms or 7d, from 1ms to \
             {days_max}d, not \"{}\"",
            text.escape_ascii()
        )
    })
}

/// A time to live in a JSON body: a string, as [`ttl`] reads it, or a whole number of seconds.
#[derive(Debug, Clone, Copy)]
pub struct Lifetime(pub Ttl);

impl<'de> Deserialize<'de> for Lifetime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Lifetime;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a ttl: a string or a whole number of seconds")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Lifetime, E> {
                ttl(text.as_bytes()).map(Lifetime).map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Lifetime, E> {
                self.visit_str(&seconds.to_string())
            }

            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Lifetime, E> {
                self.visit_str(&seconds.to_string())
            }
        }

        deserializer.deserialize_any(Text)
    }
}

/// Reads `w`, `r`, `sloppy` and `ttl`; each is checked on every data request, also where it has nothing to say.
pub fn quorums(coordinator: &Coordinator, query: &Query<'_>) -> Result<Quorums, Fault> {
    let nodes_max = coordinator.ring().replication_factor();
    Ok(Quorums {
        write: WriteOptions { write_quorum: query.number("w", 1, nodes_max)?, sloppy: query.flag("sloppy")? },
        read: ReadOptions { read_quorum: query.number("r", 1, nodes_max)? },
        ttl: query.bytes("ttl").map(ttl).transpose().map_err(Fault::BadRequest)?,
    })
}

/// The key that a query names.
pub fn key_of(query: &Query<'_>) -> Result<Key, Fault> {
    let bytes =
        query.bytes("key").ok_or_else(|| Fault::BadRequest("parameter \"key\" is missing".to_owned()))?;
    key(Bytes::copy_from_slice(bytes), "")
}

/// `STRICT`: a near miss of a name is refused.
struct Item<'a, const STRICT: bool> {
    key: Cow<'a, str>,
    value: Cow<'a, str>,
    ttl: Option<Lifetime>,
}

/// A name in an object.
enum Field<const STRICT: bool> {
    Key,
    Value,
    Ttl,
    Other,
}

impl<'de, const STRICT: bool> Deserialize<'de> for Field<STRICT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name<const STRICT: bool>;

        impl<const STRICT: bool> Visitor<'_> for Name<STRICT> {
            type Value = Field<STRICT>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
                match name {
                    "key" => Ok(Field::Key),
                    "value" => Ok(Field::Value),
                    "ttl" => Ok(Field::Ttl),
                    other if STRICT => known_or_other(other, &["key", "value", "ttl"]).map(|()| Field::Other),
                    _ => Ok(Field::Other),
                }
            }
        }

        deserializer.deserialize_identifier(Name)
    }
}

/// Lets a name pass that is none of ours, unless it is nearly one.
fn known_or_other<E: serde::de::Error>(name: &str, known: &[&str]) -> Result<(), E> {
    match near_miss(name, known) {
        None => Ok(()),
        Some(meant) => {
            let name = name.escape_debug();
            Err(E::custom(format_args!("unknown field `{name}`; did you mean `{meant}`?")))
        }
    }
}

impl<'de: 'a, 'a, const STRICT: bool> Deserialize<'de> for Item<'a, STRICT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<const STRICT: bool>;

        impl<'de, const STRICT: bool> Visitor<'de> for Object<STRICT> {
            type Value = Item<'de, STRICT>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a key and a value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut key, mut value, mut ttl) = (None, None, None);
                while let Some(field) = map.next_key::<Field<STRICT>>()? {
                    match field {
                        Field::Key if key.is_some() => return Err(A::Error::duplicate_field("key")),
                        Field::Key => key = Some(map.next_value::<Text<'de>>()?.0),
                        Field::Value if value.is_some() => return Err(A::Error::duplicate_field("value")),
                        Field::Value => value = Some(map.next_value::<Text<'de>>()?.0),
                        Field::Ttl if ttl.is_some() => return Err(A::Error::duplicate_field("ttl")),
                        Field::Ttl => ttl = Some(map.next_value::<Option<Lifetime>>()?),
                        Field::Other => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Item {
                    key: key.ok_or_else(|| A::Error::missing_field("key"))?,
                    value: value.ok_or_else(|| A::Error::missing_field("value"))?,
                    ttl: ttl.flatten(),
                })
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// What is to be written: a key, its value, and for how long if the item itself says so.
pub type Write = (Key, Value, Option<Ttl>);

struct Batch<'a> {
    items: Vec<Item<'a, true>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Batch<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Batch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with items")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut items = None;
                while let Some(Text(name)) = map.next_key()? {
                    if name != "items" {
                        known_or_other(&name, &["items"])?;
                        map.next_value::<IgnoredAny>()?;
                    } else if items.replace(map.next_value::<Numbered<'de>>()?.0).is_some() {
                        return Err(A::Error::duplicate_field("items"));
                    }
                }
                Ok(Batch { items: items.ok_or_else(|| A::Error::missing_field("items"))? })
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Reads `{"key":…,"value":…}`, and perhaps `"ttl":…`.
///
/// # Errors
/// [`Fault::BadRequest`] and [`Fault::TooLarge`] with what and where.
pub fn one(body: &Bytes, value_size_max: usize) -> Result<Write, Fault> {
    let item: Item<'_, true> = json(body)?;
    checked(body, item, value_size_max, "")
}

/// Reads [`one`]'s object, or one without both names: a single pair, `{"colour":"blue"}`.
///
/// # Errors
/// As [`one`].
pub fn one_or_pair(body: &Bytes, value_size_max: usize) -> Result<Write, Fault> {
    let named = match serde_json::from_slice::<Item<'_, false>>(body) {
        Ok(item) => return checked(body, item, value_size_max, ""),
        Err(error) => error,
    };
    match serde_json::from_slice::<Pair<'_>>(body) {
        Ok(Pair(Some((key, value)))) => {
            let item: Item<'_, false> = Item { key, value, ttl: None };
            checked(body, item, value_size_max, "")
        }
        Ok(Pair(None)) => Err(malformed(body, &named)),
        Err(error) => Err(malformed(body, &error)),
    }
}

/// Reads `{"items":[{"key":…,"value":…},…]}`, each perhaps with a `"ttl":…`: all of it, or nothing and the first bad item's index.
///
/// # Errors
/// As [`one`].
pub fn many(body: &Bytes, value_size_max: usize) -> Result<Vec<Write>, Fault> {
    let batch: Batch<'_> = json(body)?;
    let mut items = Vec::with_capacity(batch.items.len()); // collecting results would grow it step by step
    for (index, item) in batch.items.into_iter().enumerate() {
        items.push(checked(body, item, value_size_max, &format!("items[{index}]: "))?);
    }
    Ok(items)
}

/// Checks the length of a key that came in a request.
pub fn key(bytes: Bytes, place: &str) -> Result<Key, Fault> {
    Key::new(bytes).map_err(|error| match error {
        KeyError::Empty => Fault::BadRequest(format!("{place}{error}")),
        KeyError::TooLong(_) => Fault::TooLarge(format!("{place}{error}")),
    })
}

/// Reads a JSON body, or says what is wrong with it.
pub fn json<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|error| malformed(body, &error))
}

/// Standard base64, read as Go's library does: bits left over behind the last byte are not looked at.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Reads standard base64, padded.
pub fn decode_base64(text: &str, place: &str) -> Result<Bytes, Fault> {
    let decoded = BASE64.decode(text.as_bytes()).map(Bytes::from);
    decoded.map_err(|error| Fault::BadRequest(format!("{place}bad base64: {error}")))
}

/// Bytes in standard base64.
pub fn encode_base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// Appends bytes as a JSON string of standard base64.
pub fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    let len = base64::encoded_len(bytes.len(), true).expect("a value's length in base64 is a usize");
    out.resize(start + len, 0);
    BASE64.encode_slice(bytes, &mut out[start..]).expect("there is room for just as much");
    out.push(b'"');
}

/// Checks the length of a value that came in a request.
pub fn check_value(len: usize, value_size_max: usize, place: &str) -> Result<(), Fault> {
    if len > value_size_max {
        return Err(Fault::TooLarge(format!(
            "{place}value has {len} bytes; at most {value_size_max} are allowed"
        )));
    }
    Ok(())
}

/// What is told of a body that is no JSON, or other JSON.
fn malformed(body: &Bytes, error: &serde_json::Error) -> Fault {
    if body.is_empty() {
        return Fault::BadRequest("the body is empty; JSON is expected".to_owned());
    }
    Fault::BadRequest(format!("bad JSON body: {error}"))
}

fn checked<const STRICT: bool>(
    body: &Bytes,
    item: Item<'_, STRICT>,
    value_size_max: usize,
    place: &str,
) -> Result<Write, Fault> {
    let key = key(shared(body, item.key), place)?;
    check_value(item.value.len(), value_size_max, place)?;
    Ok((key, Value::new(shared(body, item.value)), item.ttl.map(|Lifetime(ttl)| ttl)))
}

fn shared(body: &Bytes, text: Cow<'_, str>) -> Bytes {
    match text {
        Cow::Borrowed(text) => body.slice_ref(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    }
}

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// The one pair of an object; `None` of an object that has none or several.
struct Pair<'a>(Option<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pair<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Pair<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let Some(Text(key)) = map.next_key()? else { return Ok(Pair(None)) };
                let value = map.next_value::<Either<'de>>()?;
                if map.next_key::<IgnoredAny>()?.is_some() {
                    map.next_value::<IgnoredAny>()?;
                    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                    return Ok(Pair(None));
                }
                match value {
                    Either::Text(value) => Ok(Pair(Some((key, value)))),
                    Either::Other(_) => Err(A::Error::custom("the value of a pair must be a string")),
                }
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// A string, or anything else.
#[derive(Deserialize)]
#[serde(untagged)]
enum Either<'a> {
    #[serde(borrow)]
    Text(Cow<'a, str>),
    Other(IgnoredAny),
}

/// Items, read so that an error names the item it is in.
struct Numbered<'a>(Vec<Item<'a, true>>);

impl<'de: 'a, 'a> Deserialize<'de> for Numbered<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;

        impl<'de> Visitor<'de> for Items {
            type Value = Numbered<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                loop {
                    match seq.next_element() {
                        Ok(Some(item)) => items.push(item),
                        Ok(None) => return Ok(Numbered(items)),
                        Err(error) => {
                            return Err(A::Error::custom(format_args!("items[{}]: {error}", items.len())));
                        }
                    }
                }
            }
        }

        deserializer.deserialize_seq(Items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(json: &str) -> Result<(Key, Value), String> {
        one(&Bytes::copy_from_slice(json.as_bytes()), 100)
            .map(|(key, value, _)| (key, value))
            .map_err(|fault| format!("{} {fault}", fault.code().as_u16()))
    }

    fn batch(json: &str) -> Result<usize, String> {
        let body = Bytes::copy_from_slice(json.as_bytes());
        many(&body, 100)
            .map(|items| items.len())
            .map_err(|fault| format!("{} {fault}", fault.code().as_u16()))
    }

    #[test]
    fn plain_strings_are_slices_of_the_body() {
        let body = Bytes::from_static(br#"{"key":"k","value":"v"}"#);
        let (_, value, _) = one(&body, 100).unwrap();
        assert!(body.as_ptr_range().contains(&value.as_bytes().as_ptr()));
    }

    #[test]
    fn escapes_are_decoded_and_other_fields_ignored() {
        let (key, value) =
            put(r#"{"n":{"a":[1,{}]},"value":"\u0000\n\ud83d\ude00","key":"\u0000"}"#).unwrap();
        assert_eq!(key.as_bytes(), b"\0");
        assert_eq!(value.as_bytes(), "\0\n😀".as_bytes());
    }

    #[test]
    fn what_is_wrong_with_an_item_is_said_with_its_place() {
        let cases = [
            (r#"{"value":"v"}"#, "400 bad JSON body: missing field `key` at line 1 column 13"),
            (r#"{"key":"k"}"#, "400 bad JSON body: missing field `value` at line 1 column 11"),
            (
                r#"{"key":"k","value":5}"#,
                "400 bad JSON body: invalid type: integer `5`, expected a string at line 1 column 20",
            ),
            (
                r#"{"key":"k","value":null}"#,
                "400 bad JSON body: invalid type: null, expected a string at line 1 column 23",
            ),
            (
                r#"{"key":"k","key":"l","value":"v"}"#,
                "400 bad JSON body: duplicate field `key` at line 1 column 16",
            ),
            (r#"{"key":"","value":"v"}"#, "400 key is empty"),
            ("", "400 the body is empty; JSON is expected"),
        ];
        for (json, expected) in cases {
            assert_eq!(put(json).unwrap_err(), expected, "{json}");
        }
        assert!(put(r#"{"key":"k","value":"v"} x"#).unwrap_err().contains("trailing characters"));
        assert!(put(r#"{"key":"k","value":"\ud800"}"#).unwrap_err().starts_with("400 bad JSON body"));
    }

    #[test]
    fn a_near_miss_of_a_name_is_refused_and_other_names_are_not() {
        let refused = put(r#"{"key":"k","value":"v","tll":60}"#).unwrap_err();
        assert!(
            refused.starts_with("400 bad JSON body: unknown field `tll`; did you mean `ttl`?"),
            "{refused}"
        );
        for (json, meant) in [
            (r#"{"Key":"k","value":"v"}"#, "did you mean `key`?"),
            (r#"{"key":"k","vlaue":"v"}"#, "did you mean `value`?"),
            (r#"{"key":"k","value":"v","TTL":"1h"}"#, "did you mean `ttl`?"),
        ] {
            assert!(put(json).unwrap_err().contains(meant), "{json}");
            let many = batch(&format!(r#"{{"items":[{{"key":"a","value":""}},{json}]}}"#)).unwrap_err();
            assert!(many.contains("items[1]: ") && many.contains(meant), "{many}");
        }
        assert!(batch(r#"{"items":[],"item":[]}"#).unwrap_err().contains("did you mean `items`?"));
        assert!(batch(r#"{"items":[],"items":[]}"#).unwrap_err().contains("duplicate field `items`"));
        assert_eq!(
            batch(r#"{"id":7,"items":[{"key":"a","value":"b","type":"c","id":{}}],"note":null}"#),
            Ok(1)
        );
        let lenient = |json: &'static str| one_or_pair(&Bytes::from_static(json.as_bytes()), 100).map(drop);
        assert!(lenient(r#"{"key":"k","value":"v","tll":60}"#).is_ok(), "another store's dialect");
        assert!(lenient(r#"{"vlaue":"v"}"#).is_ok(), "a pair");
    }

    #[test]
    fn an_object_without_both_names_is_one_pair() {
        let pair = |json: &str| match one_or_pair(&Bytes::copy_from_slice(json.as_bytes()), 10) {
            Ok((key, value, _)) => format!("{key:?} {value:?}"),
            Err(fault) => fault.to_string(),
        };
        assert_eq!(pair(r#"{"key":"k","value":"v"}"#), r#""k" "v""#);
        assert_eq!(pair(r#"{"value":"v","more":1,"key":"k"}"#), r#""k" "v""#);
        assert_eq!(pair(r#"{"colour":"blue"}"#), r#""colour" "blue""#);
        assert_eq!(pair(r#"{"a\tb":"\u0041"}"#), r#""a\tb" "A""#);
        assert_eq!(pair(r#"{"key":"k"}"#), r#""key" "k""#, "one name alone is a pair's");
        assert!(pair(r#"{"colour":7}"#).contains("the value of a pair must be a string"));
        assert!(pair(r#"{"a":"1","b":"2"}"#).contains("missing field `key`"));
        assert!(pair(r#"{"key":"k","value":7}"#).contains("expected a string"));
        assert!(pair("{}").contains("missing field `key`"));
        assert!(pair("[]").contains("bad JSON body"));
        assert!(pair("").contains("the body is empty"));
        assert!(pair(r#"{"":"v"}"#).contains("key is empty"));
        assert!(pair(r#"{"k":"01234567890"}"#).contains("value has 11 bytes"));
    }

    #[test]
    fn a_key_may_have_4096_bytes_and_a_value_as_many_as_is_set() {
        let item = |key: usize, value: usize| {
            put(&format!(r#"{{"key":"{}","value":"{}"}}"#, "k".repeat(key), "v".repeat(value)))
        };
        assert!(item(4096, 100).is_ok());
        assert!(item(4097, 1).unwrap_err().starts_with("413 key has 4097 bytes"));
        assert!(item(1, 101).unwrap_err().starts_with("413 value has 101 bytes"));
    }

    #[test]
    fn a_ttl_has_a_unit_or_is_in_seconds() {
        let cases = [
            ("60", 60_000),
            ("1", 1_000),
            ("500ms", 500),
            ("60s", 60_000),
            ("5m", 300_000),
            ("12h", 43_200_000),
            ("7d", 604_800_000),
            ("7300d", 630_720_000_000),
        ];
        for (text, millis) in cases {
            assert_eq!(ttl(text.as_bytes()).unwrap().as_duration(), Duration::from_millis(millis), "{text}");
        }
        let bad = [
            "",
            "0",
            "0s",
            "0ms",
            "-1",
            "-1s",
            "+1",
            "1.5s",
            "1e3",
            "s",
            "1w",
            "500us",
            " 1s",
            "1s ",
            "1 s1",
            "7301d",
            "18446744073709551615",
            "99999999999999999999",
            "99999999999999999999d",
            "\u{664}s",
            "soon",
        ];
        for text in bad {
            let why = ttl(text.as_bytes()).unwrap_err();
            assert!(
                why.starts_with(
                    "\"ttl\" must be a whole number of seconds, or have a unit: ms, s, m, h or d"
                ),
                "{why}"
            );
        }
        assert!(ttl(b"\xff").is_err());
    }

    #[test]
    fn an_item_may_have_a_ttl_of_its_own() {
        let of = |ttl: &str| {
            let json = format!(r#"{{"key":"k","value":"v","ttl":{ttl}}}"#);
            one(&Bytes::from(json), 100)
                .map(|(_, _, ttl)| ttl.map(Ttl::as_duration))
                .map_err(|e| e.to_string())
        };
        assert_eq!(of(r#""5m""#), Ok(Some(Duration::from_secs(300))));
        assert_eq!(of("60"), Ok(Some(Duration::from_secs(60))));
        assert_eq!(of("null"), Ok(None));
        for bad in ["0", "-1", "1.5", "true", "[]", "{}", r#"" ""#, r#""tomorrow""#, "99999999999999999999"] {
            assert!(of(bad).unwrap_err().contains("ttl"), "{bad}: {:?}", of(bad));
        }
        let bad = batch(r#"{"items":[{"key":"a","value":"b"},{"key":"a","value":"b","ttl":"0"}]}"#);
        assert!(bad.unwrap_err().starts_with("400 bad JSON body: items[1]: \"ttl\" must be"));
    }

    #[test]
    fn a_value_is_measured_after_decoding() {
        assert!(put(&format!(r#"{{"key":"k","value":"{}"}}"#, r"\u0041".repeat(100))).is_ok());
    }

    #[test]
    fn a_bad_batch_item_is_named_by_its_index() {
        assert_eq!(batch(r#"{"items":[]}"#), Ok(0));
        assert_eq!(batch(r#"{"items":[{"key":"a","value":""}],"more":1}"#), Ok(1));
        let bad = batch(r#"{"items":[{"key":"a","value":"b"},{"key":"a"}]}"#).unwrap_err();
        assert_eq!(bad, "400 bad JSON body: items[1]: missing field `value` at line 1 column 45");
        assert_eq!(
            batch(r#"{"items":[{"key":"a","value":"b"},{"key":"","value":""}]}"#).unwrap_err(),
            "400 items[1]: key is empty"
        );
        assert!(
            batch(r#"{"items":[{"key":"a","value":"b"},7]}"#).unwrap_err().contains("items[1]: invalid type")
        );
        assert!(batch(r#"{"items":{}}"#).unwrap_err().contains("expected an array of items"));
        assert!(batch("{}").unwrap_err().contains("missing field `items`"));
    }

    proptest! {
        #[test]
        fn any_text_comes_through_json(key in "\\PC{1,20}", value: String) {
            let json = serde_json::json!({"key": key, "value": value}).to_string();
            let (got_key, got_value, _) = one(&Bytes::from(json), 1 << 20).unwrap();
            prop_assert_eq!(got_key.as_bytes(), key.as_bytes());
            prop_assert_eq!(got_value.as_bytes(), value.as_bytes());
        }

        #[test]
        fn no_body_panics(body: Vec<u8>) {
            let body = Bytes::from(body);
            let _ = one(&body, 100);
            let _ = many(&body, 100);
        }
    }
}
