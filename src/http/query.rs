//! Query strings: form-decoded into bytes, since a key is any bytes.
//!
//! `+` is a space and `%2F` a slash; a percent sign without two hex digits is refused, not kept: a client that forgot
//! to encode would otherwise write under one key and read under another. A parameter given twice is refused for the
//! same reason. Which names are known depends on the route. A key in a path is decoded alike, but that a plus there is a plus.

use std::borrow::Cow;

use super::status::Fault;
use crate::util::guess::guess;

/// A name or value, borrowed where nothing had to be decoded.
type Decoded<'a> = Cow<'a, [u8]>;

/// The parameters of one query string, each name once.
#[derive(Debug, Default)]
pub struct Query<'a> {
    /// Decoded names and values, in the order given. A handful: searched, not hashed.
    parameters: Vec<(Decoded<'a>, Decoded<'a>)>,
}

/// Parameters that a query string may have: more is no request of ours.
const PARAMETERS_MAX: usize = 32;

impl<'a> Query<'a> {
    /// Parses what stands behind the `?`, if anything does.
    pub fn parse(raw: Option<&'a str>) -> Result<Self, Fault> {
        let mut parameters: Vec<(Decoded<'a>, Decoded<'a>)> = Vec::new();
        for piece in raw.unwrap_or_default().split('&').filter(|piece| !piece.is_empty()) {
            let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(Fault::BadRequest(format!(
                    "parameter \"{}\" is given twice",
                    name.escape_ascii()
                )));
            }
            if parameters.len() == PARAMETERS_MAX {
                return Err(Fault::BadRequest(format!("more than {PARAMETERS_MAX} parameters")));
            }
            parameters.push((name, value));
        }
        Ok(Self { parameters })
    }

    /// The value of a parameter, decoded.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.parameters
            .iter()
            .find(|(known, _)| known.as_ref() == name.as_bytes())
            .map(|(_, value)| value.as_ref())
    }

    /// Says whether all parameters are among `known`.
    ///
    /// # Errors
    /// [`Fault::BadRequest`] with the first that is not, and the one that may be meant.
    pub fn check_names(&self, known: &[&[&str]]) -> Result<(), Fault> {
        let is_known = |name: &[u8]| known.iter().copied().flatten().any(|known| known.as_bytes() == name);
        let Some((name, _)) = self.parameters.iter().find(|(name, _)| !is_known(name)) else {
            return Ok(());
        };
        let name = String::from_utf8_lossy(name);
        let known = || known.iter().copied().flatten().copied();
        let hint = match guess(&name, known()) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None if known().next().is_none() => "there are none here".to_owned(),
            None => format!("known here are {}", known().collect::<Vec<_>>().join(", ")),
        };
        Err(Fault::BadRequest(format!("unknown parameter \"{}\"; {hint}", name.escape_debug())))
    }

    /// Whether a parameter is there, with a value or without.
    pub fn has(&self, name: &str) -> bool {
        self.bytes(name).is_some()
    }

    /// A whole number from `min` to `max`, if the parameter is there.
    pub fn number(&self, name: &str, min: usize, max: usize) -> Result<Option<usize>, Fault> {
        let Some(raw) = self.bytes(name) else { return Ok(None) };
        std::str::from_utf8(raw)
            .ok()
            .filter(|text| !text.starts_with('+'))
            .and_then(|text| text.parse::<usize>().ok())
            .filter(|number| (min..=max).contains(number))
            .map(Some)
            .ok_or_else(|| {
                let raw = raw.escape_ascii();
                Fault::BadRequest(format!(
                    "\"{name}\" must be a whole number from {min} to {max}, not \"{raw}\""
                ))
            })
    }

    /// `true` or `false` (also `1`, `0`); absent is false, present without a value true.
    pub fn flag(&self, name: &str) -> Result<bool, Fault> {
        match self.bytes(name) {
            None | Some(b"false" | b"0") => Ok(false),
            Some(b"true" | b"1" | b"") => Ok(true),
            Some(raw) => Err(Fault::BadRequest(format!(
                "\"{name}\" must be true or false, not \"{}\"",
                raw.escape_ascii()
            ))),
        }
    }
}

/// Percent-decodes a part of a path; borrows what needs no decoding.
pub fn decode_path(raw: &str) -> Result<Decoded<'_>, Fault> {
    percent_decode(raw, b'+', "path")
}

/// Form-decodes one name or value; borrows what needs no decoding.
fn decode(raw: &str) -> Result<Decoded<'_>, Fault> {
    percent_decode(raw, b' ', "query string")
}

fn percent_decode<'a>(raw: &'a str, plus: u8, place: &str) -> Result<Decoded<'a>, Fault> {
    let bytes = raw.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => decoded.push(plus),
            b'%' => {
                let digits = after.first_chunk::<2>().and_then(|[high, low]| Some((hex(*high)?, hex(*low)?)));
                let Some((high, low)) = digits else {
                    let at = bytes.len() - after.len() - 1;
                    return Err(Fault::BadRequest(format!(
                        "percent sign without two hex digits at byte {at} of \"{}\" in the {place}",
                        bytes.escape_ascii()
                    )));
                };
                decoded.push(high << 4 | low);
                rest = &after[2..];
            }
            other => decoded.push(*other),
        }
    }
    Ok(Cow::Owned(decoded))
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_plus_is_a_space_and_an_encoded_plus_is_a_plus() {
        let query = Query::parse(Some("key=a+b%2Bc%20d")).unwrap();
        assert_eq!(query.bytes("key"), Some(&b"a b+c d"[..]));
    }

    #[test]
    fn in_a_path_a_plus_is_a_plus() {
        assert_eq!(&decode_path("a+b%2Bc%20d").unwrap()[..], b"a+b+c d");
        assert!(decode_path("a%2").unwrap_err().to_string().ends_with("in the path"));
    }

    #[test]
    fn bytes_that_are_no_text_stay_bytes() {
        assert_eq!(Query::parse(Some("key=%ff%00")).unwrap().bytes("key"), Some(&b"\xff\0"[..]));
    }

    #[test]
    fn a_percent_sign_without_two_hex_digits_is_refused() {
        for bad in ["key=%", "key=a%2", "key=%zz", "k%ey=a", "key=%+1", "x=%&key=a"] {
            assert!(matches!(Query::parse(Some(bad)), Err(Fault::BadRequest(_))), "{bad}");
        }
    }

    #[test]
    fn a_parameter_given_twice_is_refused_also_when_spelled_differently() {
        assert!(Query::parse(Some("key=a&key=a")).is_err());
        assert!(Query::parse(Some("key=a&%6bey=b")).is_err());
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_one_that_is_meant() {
        let known: &[&[&str]] = &[&["key"], &["w", "r", "sloppy", "ttl"]];
        let check =
            |raw| Query::parse(Some(raw)).unwrap().check_names(known).map_err(|fault| fault.to_string());
        assert_eq!(check("key=k&ttl=1&r=1"), Ok(()));
        assert_eq!(
            check("key=k&tll=60s"),
            Err("unknown parameter \"tll\"; did you mean \"ttl\"?".to_owned())
        );
        assert_eq!(check("KEY=k"), Err("unknown parameter \"KEY\"; did you mean \"key\"?".to_owned()));
        let all = "unknown parameter \"\\n\u{fffd}\"; known here are key, w, r, sloppy, ttl";
        assert_eq!(check("%0a%ff"), Err(all.to_owned()));
        let none = Query::parse(Some("x")).unwrap().check_names(&[]).unwrap_err().to_string();
        assert_eq!(none, "unknown parameter \"x\"; there are none here");
    }

    #[test]
    fn a_number_must_be_digits_within_bounds() {
        let query = Query::parse(Some("a=3&b=0&c=11&d=x&e=&f=%2B3")).unwrap();
        assert_eq!(query.number("a", 1, 10).unwrap(), Some(3));
        assert_eq!(query.number("z", 1, 10).unwrap(), None);
        for bad in ["b", "c", "d", "e", "f"] {
            assert!(query.number(bad, 1, 10).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_was_form_encoded_comes_back(key: Vec<u8>, value: Vec<u8>) {
            let raw = format!(
                "key={}&v={}",
                form_urlencoded::byte_serialize(&key).collect::<String>(),
                form_urlencoded::byte_serialize(&value).collect::<String>(),
            );
            let query = Query::parse(Some(&raw)).unwrap();
            prop_assert_eq!(query.bytes("key"), Some(&key[..]));
            prop_assert_eq!(query.bytes("v"), Some(&value[..]));
        }

        #[test]
        fn no_query_string_panics(raw in "\\PC*") {
            let _ = Query::parse(Some(&raw));
        }
    }
}
