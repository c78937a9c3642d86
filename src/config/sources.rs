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
pub(super) fn from_file(path: &Path, shown: &Path) -> Result<Option<(Values, Vec<String>)>, Error> {
    let error = |line: Option<usize>, problem: String| Error::File { path: shown.to_owned(), line, problem };
    let mut text = String::new();
    #[allow(clippy::disallowed_methods)] // settings are read before there is an Env to read them through
    let opened = std::fs::File::open(path);
    match opened {
        Err(io) if io.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(io) => return Err(error(None, io.to_string())),
        Ok(file) => {
            let read = file.take(FILE_SIZE_MAX + 1).read_to_string(&mut text);
            read.map_err(|io| error(None, io.to_string()))?;
        }
    }
    if text.len() as u64 > FILE_SIZE_MAX {
        return Err(error(None, format!("a file of settings has at most {FILE_SIZE_MAX} bytes")));
    }
    let (mut values, mut foreign) = (Values::new(), Values::new());
    let mut warnings = Vec::new();
    for (line, content) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let Some((name, value)) = parse_line(content).map_err(|problem| error(Some(line), problem))? else {
            continue;
        };
        let origin = Origin::File(shown.to_owned(), line);
        match Setting::named(&name) {
            None if Setting::foreign(&name, &value).next().is_some() => {
                foreign.extend(from_foreign(&name, &value));
            }
            None => {
                let guess = guess(&name, SETTINGS.iter().map(Setting::name))
                    .map_or(String::new(), |name| format!("; did you mean {name}?"));
                warnings.push(format!("{origin}: unknown setting {name}{guess}"));
            }
            Some(setting) => {
                let earlier = values.insert(setting.field, (value, origin.clone()));
                if let Some((_, earlier)) = earlier {
                    warnings.push(format!(
                        "{origin}: {name} is said a second time; the first, {earlier}, is ignored"
                    ));
                }
            }
        }
    }
    Ok(Some((with_foreign(values, foreign), warnings)))
}

/// One line of a file, read by dotenvy. The error is the rest of a sentence.
fn parse_line(line: &str) -> Result<Option<(String, String)>, String> {
    if has_substitution(line) {
        // dotenvy would look the name up in the environment: a secret with `$` in it would become another.
        return Err("`$` is not substituted here; put the value in single quotes if it is meant".to_owned());
    }
    match dotenvy::from_read_iter(line.as_bytes()).next() {
        None => Ok(None),
        Some(Ok(pair)) => Ok(Some(pair)),
        Some(Err(_)) => Err("it is no NAME=value; a value with spaces needs quotes".to_owned()),
    }
}

/// Whether there is a `$` that stands neither in single quotes, nor after a backslash, nor in a comment.
fn has_substitution(line: &str) -> bool {
    let (mut strong, mut weak, mut escaped, mut after_space) = (false, false, false, true);
    for c in line.chars() {
        match c {
            _ if escaped => escaped = false,
            '\'' if !weak => strong = !strong,
            _ if strong => {}
            '"' => weak = !weak,
            '\\' => escaped = true,
            '#' if after_space && !weak => return false,
            '$' => return true,
            _ => {}
        }
        after_space = c.is_whitespace();
    }
    false
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

    #[test]
    fn a_dollar_is_found_only_where_it_would_be_substituted() {
        for line in ["A=$B", "A=x$y", "A=\"$B\"", "A=\"it's $B\""] {
            assert!(has_substitution(line), "{line}");
        }
        for line in ["A='$B'", "A=\\$B", "A=1 # costs $5", "# $A", "A=a#b", "A=\"'\""] {
            assert!(!has_substitution(line), "{line}");
        }
    }
}
