//! Where settings come from: flags over environment over a file over defaults.
//!
//! ```text
//! -port 8082      ┐
//! NET_PORT=8083   ├─ first that says something ─> ("NET_PORT", "8082", flag -port)
//! .env line 2     ┘
//! ```
//!
//! A value that is empty says nothing, wherever it stands: the next source decides. Names that nobody knows are
//! refused as flags, pointed out in a file, and left alone in the environment, which is not ours.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::Error;
use super::settings::{SETTINGS, Setting};

/// A file of settings is never larger, in bytes.
const FILE_SIZE_MAX: u64 = 1 << 20;
/// How many unknown names of a file are told one by one.
const STRANGERS_MAX: usize = 3;
/// Bytes of another program's line that a warning repeats, at most.
const STRANGER_LEN_MAX: usize = 64;
/// How alike two names are, 0 to 1, before one is guessed to be meant by the other.
const GUESS_LIKENESS_MIN: f64 = 0.75;

/// Where a value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On the command line, as this flag.
    Flag(String),
    /// In the environment.
    Environment,
    /// In the environment or a file, under the name that another store gives it.
    Foreign(String),
    /// In this line of a file.
    File(PathBuf, usize),
    /// Nowhere: it is the default.
    Default,
}

/// What a source says, by field.
pub(super) type Values = BTreeMap<&'static str, (String, Origin)>;

/// What the command line says.
#[derive(Debug, Default)]
pub(super) struct CommandLine {
    pub values: Values,
    /// `-config FILE`.
    pub file: Option<PathBuf>,
    /// `--help` or `-h`.
    pub help: bool,
    /// `--version` or `-V`.
    pub version: bool,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment => f.write_str("environment"),
            Self::Foreign(name) => f.write_str(name),
            Self::File(path, line) => write!(f, "{} line {line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

impl CommandLine {
    /// Reads `-x v`, `-x=v`, `--x v` and `--x=v`.
    pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        let mut line = Self::default();
        let mut args = args.map(|arg| {
            arg.into_string()
                .map_err(|arg| Error::CommandLine(format!("{} is no UTF-8", arg.to_string_lossy())))
        });
        while let Some(arg) = args.next().transpose()? {
            let Some((dashed, flag, inline)) = split_flag(&arg) else {
                return Err(Error::CommandLine(format!(
                    "unexpected argument `{arg}`; settings are given as -name value"
                )));
            };
            match flag {
                "help" | "h" => {
                    line.help = true;
                    continue;
                }
                "version" | "V" => {
                    line.version = true;
                    continue;
                }
                _ if flag != "config" && Setting::of_flag(flag).is_none() => {
                    let guess = guess(flag, Setting::flags())
                        .map_or(String::new(), |name| format!("; did you mean -{name}?"));
                    return Err(Error::CommandLine(format!("unknown flag {dashed}{guess}")));
                }
                _ => {}
            }
            let value = match inline {
                Some(value) => value.to_owned(),
                None => match args.next().transpose()? {
                    Some(next) if !is_flag(&next) => next,
                    _ => return Err(Error::CommandLine(format!("flag {dashed} needs a value"))),
                },
            };
            line.take(dashed, flag, value)?;
        }
        Ok(line)
    }

    fn take(&mut self, dashed: &str, flag: &str, value: String) -> Result<(), Error> {
        let twice = || Error::CommandLine(format!("flag {dashed} is given twice"));
        let Some(setting) = Setting::of_flag(flag) else {
            return match self.file.replace(PathBuf::from(value)) {
                None => Ok(()),
                Some(_) => Err(twice()),
            };
        };
        match self.values.insert(setting.field, (value, Origin::Flag(dashed.to_owned()))) {
            None => Ok(()),
            Some(_) => Err(twice()),
        }
    }
}

/// Splits an argument into the flag with its dashes, without them, and what follows `=`.
fn split_flag(arg: &str) -> Option<(&str, &str, Option<&str>)> {
    let (dashed, inline) = arg.split_once('=').map_or((arg, None), |(flag, value)| (flag, Some(value)));
    let flag = dashed.strip_prefix("--").or_else(|| dashed.strip_prefix('-'))?;
    (!flag.is_empty()).then_some((dashed, flag, inline))
}

/// Whether an argument is one of our flags, and so no value of the flag before it.
fn is_flag(arg: &str) -> bool {
    split_flag(arg).is_some_and(|(_, flag, _)| {
        ["config", "help", "h", "version", "V"].contains(&flag) || Setting::of_flag(flag).is_some()
    })
}

/// The settings among the variables of the environment.
pub(super) fn from_environment(env: impl Iterator<Item = (OsString, OsString)>) -> Result<Values, Error> {
    let mut values = Values::new();
    let mut foreign = Values::new();
    for (name, value) in env {
        let Some(setting) = name.to_str().and_then(Setting::named) else {
            if let (Some(name), Some(value)) = (name.to_str(), value.to_str()) {
                foreign.extend(from_foreign(name, value));
            }
            continue;
        };
        let value = value.into_string().map_err(|_| Error::Setting {
            name: setting.name(),
            value: "…".to_owned(),
            origin: Origin::Environment,
            problem: "it is no UTF-8".to_owned(),
        })?;
        values.insert(setting.field, (value, Origin::Environment));
    }
    Ok(with_foreign(values, foreign))
}

/// What another store's name says, by field.
fn from_foreign(name: &str, value: &str) -> Values {
    let settings = Setting::foreign(name, value);
    settings.map(|(setting, value)| (setting.field, (value, Origin::Foreign(name.to_owned())))).collect()
}

/// A setting's own name is heard before another store's.
fn with_foreign(mut values: Values, foreign: Values) -> Values {
    values.retain(|_, (value, _)| !value.trim().is_empty());
    for (field, value) in foreign {
        values.entry(field).or_insert(value);
    }
    values
}

/// The settings in a file, and what there is to say about other lines. `Ok(None)` if there is no file.
///
/// The file may be shared with other programs: a line that sets none of our names is passed over, however it is written.
pub(super) fn from_file(path: &Path, shown: &Path) -> Result<Option<(Values, Vec<String>)>, Error> {
    let error = |line: Option<usize>, problem: String| Error::File { path: shown.to_owned(), line, problem };
    let mut content = Vec::new();
    #[allow(clippy::disallowed_methods)] // settings are read before there is an Env to read them through
    let opened = std::fs::File::open(path);
    match opened {
        Err(io) if io.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(io) => return Err(error(None, io.to_string())),
        Ok(file) => {
            let read = file.take(FILE_SIZE_MAX + 1).read_to_end(&mut content);
            read.map_err(|io| error(None, io.to_string()))?;
        }
    }
    if content.len() as u64 > FILE_SIZE_MAX {
        return Err(error(None, format!("a file of settings has at most {FILE_SIZE_MAX} bytes")));
    }
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err(error(None, "it is UTF-16; save it as UTF-8".to_owned()));
    }
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
    let (mut values, mut foreign) = (Values::new(), Values::new());
    let (mut warnings, mut strangers) = (Vec::new(), Vec::new());
    for Line { number, content } in lines_of(content) {
        let origin = Origin::File(shown.to_owned(), number);
        match content {
            Content::Setting(setting, value) => {
                let value = value.map_err(|problem| error(Some(number), problem))?;
                let earlier = values.insert(setting.field, (value, origin.clone()));
                if let Some((_, earlier)) = earlier {
                    let name = setting.name();
                    warnings.push(format!(
                        "{origin}: {name} is said a second time; the first, {earlier}, is ignored"
                    ));
                }
            }
            Content::Foreign(name, Ok(value)) => foreign.extend(from_foreign(name, &value)),
            Content::Foreign(name, Err(problem)) => {
                warnings.push(format!("{origin}: {name} is ignored: {problem}"));
            }
            Content::NameAlone(name) => {
                warnings.push(format!("{origin}: {name} is ignored, since it has no value"));
            }
            Content::NotOurs(name) => match guess(&name, SETTINGS.iter().map(Setting::name)) {
                Some(guess) => {
                    warnings.push(format!("{origin}: unknown setting {name}; did you mean {guess}?"));
                }
                None => strangers.push((origin, name)),
            },
        }
    }
    if strangers.len() <= STRANGERS_MAX {
        warnings.extend(strangers.iter().map(|(origin, name)| format!("{origin}: unknown setting {name}")));
    } else {
        let names: Vec<_> = strangers.iter().take(STRANGERS_MAX).map(|(_, name)| name.as_str()).collect();
        let (shown, count, names) = (shown.display(), strangers.len(), names.join(", "));
        warnings.push(format!("{shown}: {count} lines set other names and are ignored: {names}, …"));
    }
    Ok(Some((with_foreign(values, foreign), warnings)))
}

/// One line of a file that says something, and the number it has there, from 1.
struct Line<'f> {
    number: usize,
    content: Content<'f>,
}

/// What a line says. The error of a value is the rest of a sentence.
enum Content<'f> {
    /// A setting of ours.
    Setting(&'static Setting, Result<String, String>),
    /// A name by which another store was told one of our settings.
    Foreign(&'f str, Result<String, String>),
    /// One of our names, and nothing else.
    NameAlone(&'f str),
    /// Another program's; what it begins with.
    NotOurs(String),
}

/// Reads a file line by line; a value of another program may take several lines.
fn lines_of(content: &[u8]) -> Vec<Line<'_>> {
    let lines: Vec<&[u8]> = content.split(|byte| *byte == b'\n').collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let (number, line) = (at + 1, lines[at].trim_ascii());
        at += 1;
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let (name, value) = split_line(line);
        let ours = name.and_then(|name| Some((name, Setting::named(name)?)));
        let content = match (ours, value) {
            (Some((_, setting)), Some(value)) => Content::Setting(setting, value_of(value)),
            (Some((name, _)), None) if name.len() == without_export(line).len() => Content::NameAlone(name),
            (Some((_, setting)), None) => Content::Setting(
                setting,
                Err("it is not NAME=value; there is no `=` after the name".to_owned()),
            ),
            (None, value) => {
                if let Some(value) = value {
                    at += lines_of_quoted(value, &lines[at..]);
                }
                match name.filter(|name| Setting::foreign(name, "").next().is_some()) {
                    Some(name) => Content::Foreign(name, value_of(value.unwrap_or_default())),
                    None => Content::NotOurs(stranger(line)),
                }
            }
        };
        found.push(Line { number, content });
    }
    found
}

/// Splits a line into its name and what follows `=`. A line without `=` has for its name whatever it begins with.
fn split_line(line: &[u8]) -> (Option<&str>, Option<&[u8]>) {
    let line = without_export(line);
    let (name, value) = match line.iter().position(|byte| *byte == b'=') {
        Some(at) => (&line[..at], Some(&line[at + 1..])),
        None => (line.split(|byte| byte.is_ascii_whitespace() || *byte == b':').next().unwrap_or(line), None),
    };
    (std::str::from_utf8(name.trim_ascii()).ok(), value)
}

fn without_export(line: &[u8]) -> &[u8] {
    match line.strip_prefix(b"export") {
        Some(rest) if rest.first().is_some_and(u8::is_ascii_whitespace) => rest.trim_ascii_start(),
        _ => line,
    }
}

/// What a line of another program is called in a warning: its name, or its beginning; never its value.
fn stranger(line: &[u8]) -> String {
    let line = without_export(line);
    let name = line.split(|byte| *byte == b'=' || byte.is_ascii_whitespace()).next().unwrap_or(line);
    String::from_utf8_lossy(&name[..name.len().min(STRANGER_LEN_MAX)]).into_owned()
}

/// How many of the lines that follow belong to a value whose quote is opened and not closed on its own line, as a PEM key's.
/// None if the quote is never closed, or if one of our settings comes first: then it was an apostrophe.
fn lines_of_quoted(value: &[u8], following: &[&[u8]]) -> usize {
    let value = value.trim_ascii();
    let Some(quote @ (b'"' | b'\'')) = value.first().copied() else { return 0 };
    let closes = |text: &[u8]| {
        let mut escaped = false;
        text.iter().any(|byte| {
            let is_end = *byte == quote && !escaped;
            escaped = *byte == b'\\' && !escaped && quote == b'"';
            is_end
        })
    };
    if closes(&value[1..]) {
        return 0;
    }
    let sets_ours = |line: &[u8]| matches!(split_line(line.trim_ascii()), (Some(name), Some(_)) if Setting::named(name).is_some());
    let end = following.iter().position(|line| sets_ours(line) || closes(line));
    end.filter(|end| !sets_ours(following[*end])).map_or(0, |end| end + 1)
}

/// Reads what follows `NAME=`: blanks around it and a comment after a blank are no part of it, quotes keep what is in them,
/// and a backslash takes the next character as it stands. The error is the rest of a sentence.
fn value_of(raw: &[u8]) -> Result<String, String> {
    let raw = std::str::from_utf8(raw).map_err(|_| "its value is not valid UTF-8".to_owned())?;
    let mut value = String::new();
    // Where the value ends, unless more than blanks follows.
    let mut end = 0;
    let (mut quote, mut after_blank) = (None, true);
    let mut chars = raw.trim().chars();
    while let Some(c) = chars.next() {
        let is_blank = quote.is_none() && c.is_whitespace();
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => value.push(c),
            (_, '$') => {
                // A secret with `$` in it would become another where a shell or compose reads the same file.
                return Err(
                    "`$` is not substituted here; put the value in single quotes if it is meant".to_owned()
                );
            }
            (_, '\\') => match chars.next() {
                Some('n') => value.push('\n'),
                Some(c @ ('\\' | '\'' | '"' | '$' | ' ' | '#')) => value.push(c),
                _ => {
                    return Err(
                        "`\\` stands before `n`, a quote, `$`, `#`, a space or another `\\`; put the \
                                value in single quotes if it is meant"
                            .to_owned(),
                    );
                }
            },
            (None, '"' | '\'') => quote = Some(c),
            (None, '#') if after_blank => break,
            (_, c) => value.push(c),
        }
        if !is_blank {
            end = value.len();
        }
        after_blank = is_blank;
    }
    if quote.is_some() {
        return Err("a quote in its value is not closed".to_owned());
    }
    value.truncate(end);
    Ok(value)
}

/// What is wrong with a value as it stands in the environment, if it has what only a file of settings may have: nobody
/// has taken quotes or a comment away, as happens where such a file is handed to `docker run --env-file`.
pub(super) fn problem_of_unread(value: &str) -> Option<&'static str> {
    let value = value.trim();
    if value.starts_with(['"', '\'']) {
        return Some("the quotes are part of the value here; leave them out");
    }
    let comment = value.match_indices('#').any(|(at, _)| value[..at].ends_with(char::is_whitespace));
    comment.then_some("the comment is part of the value here; leave it out")
}

/// The name most like `name`, if any is like it.
pub(super) fn guess(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let likeness =
        |candidate: &str| strsim::jaro_winkler(&name.to_ascii_lowercase(), &candidate.to_ascii_lowercase());
    known
        .map(|candidate| (likeness(&candidate), candidate))
        .filter(|(likeness, _)| *likeness >= GUESS_LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(raw: &str) -> Result<String, String> {
        value_of(raw.as_bytes())
    }

    #[test]
    fn a_dollar_is_refused_only_where_it_would_be_substituted() {
        for raw in ["$B", "x$y", "\"$B\"", "\"it's $B\""] {
            assert!(value(raw).unwrap_err().starts_with("`$` is not substituted"), "{raw}");
        }
        for (raw, expected) in
            [("'$B'", "$B"), ("\\$B", "$B"), ("1 # costs $5", "1"), ("a#b", "a#b"), ("\"'\"", "'")]
        {
            assert_eq!(value(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn a_value_ends_before_blanks_and_comments_and_quotes_keep_what_is_in_them() {
        for (raw, expected) in [
            ("", ""),
            ("  9123 \t\r", "9123"),
            ("9123\t# port", "9123"),
            ("# none yet", ""),
            ("a:1, b:2  # two", "a:1, b:2"),
            ("\" a # b \" # c", " a # b "),
            ("'a'\"b\"c", "abc"),
            ("\"a\\n\\\"b\\\\\"", "a\n\"b\\"),
            ("a\\ # b", "a # b"),
        ] {
            assert_eq!(value(raw).as_deref(), Ok(expected), "{raw}");
        }
        for raw in ["it's", "\"a", "C:\\Users", "a\\"] {
            assert!(value(raw).is_err(), "{raw}");
        }
        assert!(value_of(b"caf\xe9").unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn a_value_of_several_lines_hides_what_is_in_it_and_an_apostrophe_hides_nothing() {
        let set = |content: &str| {
            let lines = lines_of(content.as_bytes());
            let ours = lines.iter().filter(|line| matches!(line.content, Content::Setting(..)));
            ours.map(|line| line.number).collect::<Vec<_>>()
        };
        assert_eq!(set("KEY=\"-----BEGIN\nabc=\n-----END\"\nNET_PORT=1\n"), [4]);
        assert_eq!(set("KEY='a\nb\n' # end\nNET_PORT=1\n"), [4]);
        assert_eq!(set("KEY=\"a\\\"\nb\"\nNET_PORT=1\n"), [3]);
        assert_eq!(set("OWNER=O'Neil\nNET_PORT=1\nX='\n"), [2]);
        assert_eq!(set("X=\"never closed\nNET_PORT=1\nY=\"z\"\n"), [2], "our own setting is not swallowed");
        assert_eq!(set("X='\nY=1\nNET_PORT=1"), [3]);
    }

    #[test]
    fn what_only_a_file_may_have_is_found_in_the_environment() {
        for bad in ["\"./data\"", "'x'", "\"", " \"a", "./data # mine", "8081\t#port"] {
            assert!(problem_of_unread(bad).is_some(), "{bad}");
        }
        for good in ["", "./data", "a#b", "it's", "a:1, b:2", "#", "C:\\x"] {
            assert_eq!(problem_of_unread(good), None, "{good}");
        }
    }
}
