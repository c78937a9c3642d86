//! Lines: what somebody typed, taken apart. Pure.
//!
//! ```text
//! get user:1                 a word stands as it is
//! get "a b\xff\n"            in double quotes with escapes: \" \\ \n \r \t \xHH
//! get 'a "b"'                in single quotes as it stands
//! set user:1 Alice Smith     a value is the rest of the line, unless it is one quoted word
//! ```

use crate::cli::exit::Error;

/// Guessed only if so alike, 0 to 1.
const GUESS_LIKENESS_MIN: f64 = 0.75;

/// What a line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Nothing, or a comment.
    Empty,
    /// Gives a key a value.
    Set(Vec<u8>, Vec<u8>),
    /// Shows a value.
    Get(Vec<u8>),
    /// Deletes a key.
    Delete(Vec<u8>),
    /// Keys that begin so; how many, at most.
    List(Vec<u8>, Option<u64>),
    /// Keys and values from one to another; how many, at most.
    Scan(Vec<u8>, Vec<u8>, Option<u64>),
    /// Figures.
    Stats,
    /// Compacts.
    Compact,
    /// What is held of a key.
    Explain(Vec<u8>),
    /// What there is.
    Help,
    /// Ends the session.
    Quit,
}

/// A command's names, what it takes, and what it does.
#[derive(Debug, Clone, Copy)]
pub struct Verb {
    /// Its name, then others for it.
    pub names: &'static [&'static str],
    /// What it takes.
    pub takes: &'static str,
    /// What it does.
    pub does: &'static str,
    /// Whether its first word is a key.
    pub has_key: bool,
}

const fn verb(
    names: &'static [&'static str],
    takes: &'static str,
    does: &'static str,
    has_key: bool,
) -> Verb {
    Verb { names, takes, does, has_key }
}

/// Every command.
pub const VERBS: &[Verb] = &[
    verb(&["set", "put"], "KEY VALUE", "gives a key a value: the rest of the line", true),
    verb(&["get"], "KEY", "shows the value of a key", true),
    verb(&["delete", "del", "rm"], "KEY", "deletes a key", true),
    verb(&["list", "keys", "ls"], "[PREFIX] [LIMIT]", "lists keys", true),
    verb(&["scan"], "[START] [END] [LIMIT]", "lists keys and values, both ends included", true),
    verb(&["explain"], "KEY", "shows what is held of a key, and since when", true),
    verb(&["stats"], "", "shows figures of the store", false),
    verb(&["compact"], "", "merges all tables (on a directory)", false),
    verb(&["help", "?"], "", "shows this", false),
    verb(&["quit", "exit"], "", "ends the session, as Ctrl-D does", false),
];

impl Verb {
    /// The command of that name, in whatever case.
    pub fn named(name: &[u8]) -> Option<&'static Self> {
        VERBS.iter().find(|verb| verb.names.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name)))
    }
}

/// Reads a line.
pub fn parse(line: &[u8]) -> Result<Line, Error> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(Line::Empty);
    }
    let (name, rest) = next_word(line)?.unwrap_or_default();
    let verb = Verb::named(&name).ok_or_else(|| unknown(&name))?;
    let usage = || {
        Error::Usage(format!(
            "{} takes {}",
            verb.names[0],
            if verb.takes.is_empty() { "nothing more" } else { verb.takes }
        ))
    };
    if verb.names[0] == "set" {
        let (key, rest) = next_word(rest)?.ok_or_else(usage)?;
        return Ok(Line::Set(checked(key)?, value(rest)?.ok_or_else(usage)?));
    }
    let mut words = Vec::new();
    let mut rest = rest;
    while let Some((word, after)) = next_word(rest)? {
        words.push(word);
        rest = after;
    }
    let mut words = words.into_iter();
    let mut word = || words.next();
    let line = match verb.names[0] {
        "get" => Line::Get(checked(word().ok_or_else(usage)?)?),
        "delete" => Line::Delete(checked(word().ok_or_else(usage)?)?),
        "explain" => Line::Explain(checked(word().ok_or_else(usage)?)?),
        "list" => Line::List(word().unwrap_or_default(), limit(word())?),
        "scan" => Line::Scan(word().unwrap_or_default(), word().unwrap_or_default(), limit(word())?),
        "stats" => Line::Stats,
        "compact" => Line::Compact,
        "help" => Line::Help,
        _ => Line::Quit,
    };
    if word().is_some() { Err(usage()) } else { Ok(line) }
}

fn unknown(name: &[u8]) -> Error {
    let name = String::from_utf8_lossy(name).to_lowercase();
    let names =
        VERBS.iter().flat_map(|verb| verb.names).map(|known| (strsim::jaro_winkler(&name, known), known));
    let guess =
        names.filter(|(likeness, _)| *likeness >= GUESS_LIKENESS_MIN).max_by(|a, b| a.0.total_cmp(&b.0));
    Error::Usage(match guess {
        Some((_, guess)) => format!("unknown command `{name}`; did you mean `{guess}`?"),
        None => format!("unknown command `{name}`; `help` lists them"),
    })
}

fn checked(key: Vec<u8>) -> Result<Vec<u8>, Error> {
    if key.is_empty() { Err(Error::Usage("a key has at least one byte".to_owned())) } else { Ok(key) }
}

fn limit(word: Option<Vec<u8>>) -> Result<Option<u64>, Error> {
    word.map(|word| {
        let number = std::str::from_utf8(&word).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| Error::Usage("LIMIT is a whole number".to_owned()))
    })
    .transpose()
}

/// The rest of a line as a value: one quoted word, or all of it as it stands.
fn value(rest: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let rest = rest.trim_ascii();
    if rest.is_empty() {
        return Ok(None);
    }
    if rest.starts_with(b"\"") || rest.starts_with(b"'") {
        match next_word(rest) {
            Ok(Some((word, after))) if after.trim_ascii().is_empty() => return Ok(Some(word)),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(rest.to_vec()))
}

/// A word and what follows it.
type Split<'l> = (Vec<u8>, &'l [u8]);

/// Takes the first word off; `None` when there is none.
fn next_word(text: &[u8]) -> Result<Option<Split<'_>>, Error> {
    let text = text.trim_ascii_start();
    let not_closed = || Error::Usage("a quote is not closed".to_owned());
    match text.first() {
        None => Ok(None),
        Some(b'"') => quoted(&text[1..]).map(Some),
        Some(b'\'') => {
            let end = text[1..].iter().position(|byte| *byte == b'\'').ok_or_else(not_closed)?;
            Ok(Some((text[1..=end].to_vec(), &text[end + 2..])))
        }
        Some(_) => {
            let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
            Ok(Some((text[..end].to_vec(), &text[end..])))
        }
    }
}

/// Reads up to the closing quote.
fn quoted(text: &[u8]) -> Result<Split<'_>, Error> {
    let mut word = Vec::new();
    let mut rest = text;
    loop {
        match rest {
            [] => return Err(Error::Usage("a quote is not closed".to_owned())),
            [b'"', after @ ..] => return Ok((word, after)),
            [b'\\', b'x', high, low, after @ ..] => {
                let byte = hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low);
                word.push(byte.ok_or_else(|| Error::Usage("\\x takes two hex digits".to_owned()))?);
                rest = after;
            }
            [b'\\', escaped, after @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'"' | b'\\' => *escaped,
                    _ => return Err(Error::Usage("escapes are \\\" \\\\ \\n \\r \\t and \\xHH".to_owned())),
                });
                rest = after;
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

/// The unfinished last word of what was typed: where it begins, and the bytes it stands for so far. `None` inside an escape.
pub fn unfinished(typed: &str) -> Option<(usize, Vec<u8>)> {
    let bytes = typed.as_bytes();
    let mut at = 0;
    loop {
        at += bytes[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let rest = &bytes[at..];
        match next_word(rest) {
            Ok(None) => return Some((at, Vec::new())),
            Ok(Some((word, []))) if !rest.starts_with(b"\"") && !rest.starts_with(b"'") => {
                return Some((at, word));
            }
            Ok(Some((_, []))) => return None, // a closed quote is finished
            Ok(Some((_, after))) => at = bytes.len() - after.len(),
            Err(_) => {
                let closing: &[u8] = if rest.starts_with(b"'") { b"'" } else { b"\"" };
                let closed = [rest, closing].concat();
                let (word, _) = next_word(&closed).ok().flatten()?;
                return Some((at, word));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::quoted as in_quotes;
    use proptest::prelude::*;

    #[test]
    fn words_stand_as_they_are_and_quotes_hold_what_words_cannot() {
        for (line, expected) in [
            ("get user:1", Line::Get(b"user:1".to_vec())),
            ("  GET   a\\b  ", Line::Get(b"a\\b".to_vec())),
            (r#"get "a b\xff\n\"""#, Line::Get(b"a b\xff\n\"".to_vec())),
            ("get 'a \"b\\'", Line::Get(b"a \"b\\".to_vec())),
            ("set k a  b", Line::Set(b"k".to_vec(), b"a  b".to_vec())),
            (r#"set k "a b""#, Line::Set(b"k".to_vec(), b"a b".to_vec())),
            (r#"set k "a" b"#, Line::Set(b"k".to_vec(), b"\"a\" b".to_vec())),
            (r#"set k """#, Line::Set(b"k".to_vec(), Vec::new())),
            (r#"set k {"a": 1}"#, Line::Set(b"k".to_vec(), b"{\"a\": 1}".to_vec())),
            ("list", Line::List(Vec::new(), None)),
            ("ls user: 5", Line::List(b"user:".to_vec(), Some(5))),
            (r#"scan a "" 3"#, Line::Scan(b"a".to_vec(), Vec::new(), Some(3))),
            ("del k", Line::Delete(b"k".to_vec())),
            ("# a comment", Line::Empty),
            ("", Line::Empty),
            ("exit", Line::Quit),
        ] {
            assert_eq!(parse(line.as_bytes()).unwrap(), expected, "{line}");
        }
        assert_eq!(parse(b"get \xff").unwrap(), Line::Get(b"\xff".to_vec()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_does() {
        for (line, says) in [
            ("get", "get takes KEY"),
            ("get a b", "get takes KEY"),
            ("set k", "set takes KEY VALUE"),
            ("get \"\"", "a key has at least one byte"),
            ("get \"a", "a quote is not closed"),
            ("get 'a", "a quote is not closed"),
            ("get \"\\xg0\"", "\\x takes two hex digits"),
            ("get \"\\q\"", "escapes are"),
            ("list a b", "LIMIT is a whole number"),
            ("stats x", "stats takes nothing more"),
            ("delte k", "did you mean `delete`?"),
            ("frobnicate", "`help` lists them"),
        ] {
            let Err(error) = parse(line.as_bytes()) else { panic!("{line}") };
            assert!(error.to_string().contains(says), "{line}: {error}");
            assert_eq!(error.code(), 2);
        }
    }

    #[test]
    fn the_word_being_typed_is_known() {
        for (typed, expected) in [
            ("", Some((0, ""))),
            ("ge", Some((0, "ge"))),
            ("get ", Some((4, ""))),
            ("get us", Some((4, "us"))),
            ("get \"a b", Some((4, "a b"))),
            ("get 'a", Some((4, "a"))),
            ("get \"a\"", None),
            ("get \"a\\", None),
        ] {
            let expected = expected.map(|(at, word)| (at, word.as_bytes().to_vec()));
            assert_eq!(unfinished(typed), expected, "{typed}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_typed(key in proptest::collection::vec(any::<u8>(), 1..20), value: Vec<u8>) {
            let line = format!("set {} {}", in_quotes(&key), in_quotes(&value));
            prop_assert_eq!(parse(line.as_bytes()).unwrap(), Line::Set(key, value));
        }

        #[test]
        fn no_line_panics(line: Vec<u8>, typed in "\\PC*") {
            let _ = parse(&line);
            let _ = unfinished(&typed);
        }
    }
}
