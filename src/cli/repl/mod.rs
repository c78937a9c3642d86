//! repl: a session with a store, line by line.
//!
//! ```text
//! terminal ── editor (history, completion) ──┐                     an error is told, and the session goes on
//! pipe     ── lines as they come ────────────┴─> line ──> store    an error is told with its line; the first one's exit
//!                                                                  code is the session's
//! ```

mod editor;
mod line;
mod store;

use std::cell::RefCell;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use serde_json::json;
use tokio::runtime::Runtime;

use super::client::{self, Client};
use super::exit::{self, Error};
use super::options::Connect;
use super::output::{Out, put_bytes, shown};
use super::scan::{self, Range};
use super::table::{Align, Table};
use editor::Lines;
use line::{Line, VERBS};
use store::Store;

/// Keys that `list` and `scan` show on a terminal when nobody says how many.
const SHOWN_MAX: u64 = 100;

/// Opens a session with a node, or on a stopped node's directory
///
/// Commands: set get delete list scan explain stats compact help quit. On a terminal with history and completion of
/// commands and keys; otherwise lines are read from standard input, and the exit code is that of the first that failed.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  kvstore repl --connect node1:8081
  kvstore repl ./data
  printf 'set k v\\nget k\\n' | kvstore repl --json")]
pub struct Args {
    /// The data directory of a node that does not run
    #[arg(conflicts_with = "connect", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let json = args.connect.json;
    exit::end(json, session(args))
}

fn session(args: &Args) -> Result<(), Error> {
    let runtime = Rc::new(client::runtime()?);
    let (store, name) = if let Some(dir) = &args.dir {
        let _context = runtime.enter();
        (Store::open(dir)?, dir.display().to_string())
    } else {
        let mut client = Client::new(&args.connect)?;
        runtime.block_on(async { client.get("/livez").await?.good().await.map(drop) })?;
        let name = client.target().to_string();
        (Store::Node(client), name)
    };
    let mut session =
        Session { store: Rc::new(RefCell::new(store)), runtime, out: Out::stdout(), json: args.connect.json };
    let outcome = if io::stdin().is_terminal() { session.of_terminal(&name) } else { session.of_pipe() };
    let mut store = session.store.borrow_mut();
    let closed = session.runtime.block_on(store.close());
    outcome.and(closed)
}

struct Session {
    store: Rc<RefCell<Store>>,
    runtime: Rc<Runtime>,
    out: Out,
    json: bool,
}

impl Session {
    fn of_terminal(&mut self, name: &str) -> Result<(), Error> {
        if let Store::Directory(node) = &*self.store.borrow()
            && !node.is_whole()
        {
            talk("this node was being rebuilt when it stopped: keys may be missing here that the ring has");
        }
        talk("`help` lists the commands, Tab completes commands and keys, Ctrl-D ends.");
        let mut lines = Lines::new(format!("{name}> "), self.store.clone(), self.runtime.clone())?;
        while let Some(line) = lines.next()? {
            match self.carry_out(line.as_bytes()) {
                Ok(true) => {}
                Ok(false) | Err(Error::Unread) => break,
                Err(error) => error.tell(self.json),
            }
        }
        Ok(())
    }

    fn of_pipe(&mut self) -> Result<(), Error> {
        let mut stdin = io::stdin().lock();
        let (mut line, mut number, mut first) = (Vec::new(), 0, None);
        loop {
            line.clear();
            let read = stdin.read_until(b'\n', &mut line);
            if read.map_err(|error| Error::Failed(format!("cannot read standard input: {error}")))? == 0 {
                break;
            }
            number += 1;
            match self.carry_out(&line) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Error::Unread) => return Err(Error::Unread),
                Err(error) => {
                    first.get_or_insert(error.code());
                    error.at_line(number).tell(self.json);
                }
            }
        }
        first.map_or(Ok(()), |code| Err(Error::Told(code)))
    }

    /// Does what a line says; false when the session is to end.
    fn carry_out(&mut self, line: &[u8]) -> Result<bool, Error> {
        let line = line::parse(line)?;
        if line == Line::Quit {
            return Ok(false);
        }
        let Self { store, runtime, out, json } = self;
        let mut store = store.borrow_mut();
        let outcome = runtime.block_on(answer(line, &mut store, *json, out));
        out.flush()?;
        outcome.map(|()| true)
    }
}

/// Talk for somebody who looks.
fn talk(text: &str) {
    let _ = writeln!(io::stderr(), "{text}"); // nobody is left to tell if stderr is closed
}

async fn answer(line: Line, store: &mut Store, json: bool, out: &mut Out) -> Result<(), Error> {
    match line {
        Line::Empty | Line::Quit => Ok(()),
        Line::Set(key, value) => {
            let size = value.len();
            store.write(&key, Some(value)).await?;
            done(&key, json!({"size": size}), json, out)
        }
        Line::Delete(key) => {
            store.write(&key, None).await?;
            done(&key, json!({"deleted": true}), json, out)
        }
        Line::Get(key) => match store.get(&key).await? {
            None => Err(Error::NotFound(format!("{} has no value", shown(&key)))),
            Some((value, mut about)) if json => {
                put_bytes(&mut about, "value", &value);
                out.json(&about)
            }
            Some((value, _)) => out.line(&shown(&value)),
        },
        Line::List(prefix, limit) => {
            let range = Range { prefix: Some(prefix), keys_only: true, ..Range::default() };
            list(range, limit, store, json, out).await
        }
        Line::Scan(start, end, limit) => {
            let bound = |key: Vec<u8>| Some(key).filter(|key| !key.is_empty());
            let range = Range { start: bound(start), end: bound(end), ..Range::default() };
            list(range, limit, store, json, out).await
        }
        Line::Stats => store.stats(json, out).await,
        Line::Compact => {
            store.compact()?;
            if json { out.json(&json!({"compacted": true})) } else { out.line("OK") }
        }
        Line::Explain(key) => store.explain(&key, json, out).await,
        Line::Help => help(json, out),
    }
}

fn done(key: &[u8], more: serde_json::Value, json: bool, out: &mut Out) -> Result<(), Error> {
    if !json {
        return out.line("OK");
    }
    let mut object = super::output::about_key(key);
    if let serde_json::Value::Object(mut more) = more {
        object.append(&mut more);
    }
    out.json(&object)
}

async fn list(
    range: Range,
    limit: Option<u64>,
    store: &mut Store,
    json: bool,
    out: &mut Out,
) -> Result<(), Error> {
    // One more than is shown tells whether there is more.
    let looks = out.is_terminal() && !json && limit.is_none();
    let limit = if looks { Some(SHOWN_MAX + 1) } else { limit };
    let mut listing = store.list(Range { limit, ..range });
    let mut total = 0;
    while let Some(mut items) = store.more(&mut listing).await? {
        total += items.len() as u64;
        if looks && total > SHOWN_MAX {
            items.pop();
        }
        scan::print(&items, json, out)?;
        out.flush()?;
    }
    if looks && total > SHOWN_MAX {
        talk(&format!("(the first {SHOWN_MAX}; say how many, or a prefix, to see others)"));
    } else if looks && total == 0 {
        talk("(none)");
    }
    Ok(())
}

fn help(json: bool, out: &mut Out) -> Result<(), Error> {
    if json {
        let verbs = VERBS
            .iter()
            .map(|verb| json!({"command": verb.names[0], "takes": verb.takes, "does": verb.does}));
        return out.json(&verbs.collect::<Vec<_>>());
    }
    let mut table = Table::new([("", Align::Left), ("", Align::Left)]);
    for verb in VERBS {
        table.row([format!("{} {}", verb.names[0], verb.takes).trim_end().into(), verb.does.into()]);
    }
    table.print(out)?;
    out.line("Words with spaces or bytes that are no text stand in quotes: \"a b\\xff\\n\", 'a \"b\"'.")
}
