//! The line editor of a terminal: history, and completion of commands and keys.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use tokio::runtime::Runtime;

use super::line::{self, VERBS, Verb};
use super::store::Store;
use crate::cli::exit::Error;
use crate::cli::output::{quoted, shown};

/// Lines that are remembered.
const HISTORY_LEN: usize = 1_000;
/// Keys that are offered.
const KEYS_OFFERED: u64 = 50;

/// Reads lines of a terminal.
pub struct Lines {
    editor: Editor<Completion, DefaultHistory>,
    history: Option<PathBuf>,
    prompt: String,
}

impl Lines {
    /// A reader that knows what was typed in sessions before.
    pub fn new(prompt: String, store: Rc<RefCell<Store>>, runtime: Rc<Runtime>) -> Result<Self, Error> {
        let unusable = |error: ReadlineError| Error::Failed(format!("the terminal cannot be used: {error}"));
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .auto_add_history(true)
            .history_ignore_space(true)
            .max_history_size(HISTORY_LEN)
            .map_err(unusable)?
            .build();
        let mut editor = Editor::with_config(config).map_err(unusable)?;
        editor.set_helper(Some(Completion { store, runtime }));
        let history = history_file();
        if let Some(path) = &history {
            let _ = editor.load_history(path); // there is none before the first session
        }
        Ok(Self { editor, history, prompt })
    }

    /// The next line; `None` at the end.
    pub fn next(&mut self) -> Result<Option<String>, Error> {
        loop {
            match self.editor.readline(&self.prompt) {
                Ok(line) => {
                    if let Some(path) = &self.history {
                        let _ = self.editor.append_history(path); // a session goes on without
                    }
                    return Ok(Some(line));
                }
                Err(ReadlineError::Interrupted) => {} // gives up the line, not the session
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(Error::Failed(format!("the terminal cannot be read: {error}"))),
            }
        }
    }
}

/// Where lines are remembered; none where there is no place for it.
#[allow(clippy::disallowed_methods)] // a file of whoever calls
fn history_file() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    let dir = state.join("kvstore");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}

/// Completes commands and keys.
struct Completion {
    store: Rc<RefCell<Store>>,
    runtime: Rc<Runtime>,
}

impl Completion {
    fn keys(&self, prefix: Vec<u8>) -> Vec<Vec<u8>> {
        let mut store = self.store.borrow_mut();
        self.runtime.block_on(store.keys(prefix, KEYS_OFFERED)).unwrap_or_default() // nothing to offer
    }
}

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..pos];
        let Some((at, word)) = line::unfinished(typed) else { return Ok((pos, Vec::new())) };
        let before: Vec<_> = typed[..at].split_whitespace().collect();
        let candidates = match before[..] {
            [] => commands(&String::from_utf8_lossy(&word).to_lowercase()),
            [verb] if Verb::named(verb.as_bytes()).is_some_and(|verb| verb.has_key) => {
                self.keys(word).iter().map(|key| candidate(key)).collect()
            }
            _ => Vec::new(),
        };
        Ok((at, candidates))
    }
}

fn commands(begun: &str) -> Vec<Pair> {
    let names = VERBS.iter().map(|verb| verb.names[0]).filter(|name| name.starts_with(begun));
    names.map(|name| Pair { display: name.to_owned(), replacement: format!("{name} ") }).collect()
}

/// A key as it is typed.
fn candidate(key: &[u8]) -> Pair {
    let plain = shown(key);
    let needs_quotes = plain.contains(|c: char| c.is_whitespace()) || plain.starts_with(['"', '\'']);
    let text = if needs_quotes { Cow::Owned(quoted(key)) } else { plain };
    Pair { display: text.clone().into_owned(), replacement: text.into_owned() }
}

impl Hinter for Completion {
    type Hint = String;
}
impl Highlighter for Completion {}
impl Validator for Completion {}
impl Helper for Completion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_offered_as_it_must_be_typed() {
        for (key, typed) in
            [(&b"user:1"[..], "user:1"), (b"a b", "\"a b\""), (b"\xff", "\"\\xff\""), (b"'a", "\"'a\"")]
        {
            assert_eq!(candidate(key).replacement, typed);
            let line = format!("get {typed}");
            assert_eq!(line::parse(line.as_bytes()).unwrap(), line::Line::Get(key.to_vec()));
        }
        assert_eq!(commands("s").len(), 3, "set, scan, stats");
    }
}
