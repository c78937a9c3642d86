//! scan: keys and values in key order, page by page as they come.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use unicode_width::UnicodeWidthStr as _;

use super::client::{self, Client, with_query};
use super::exit::Error;
use super::options::{Connect, ReadQuorum};
use super::output::{Out, about_key, columns, counted, cut, put_bytes, shown};

/// Keys a page, at most: what the doors give.
const PAGE: u64 = 1_000;
/// On a terminal a longer key does not push the values of the others aside.
const KEY_COLUMNS_MAX: usize = 40;

/// Lists keys and values in key order
///
/// A line each: the key, a tab, the value; what is no text in quotes with "\xff". On a terminal they are aligned, and
/// values cut to its width. With --json a JSON object each, with `value_base64` for values that are no text.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  kvstore scan --prefix user: --limit 10
  kvstore scan --start a --end m --keys-only
  kvstore scan --json | jq -r .key")]
pub struct Args {
    /// Only keys that begin with this
    #[arg(short, long, value_name = "PREFIX")]
    prefix: Option<OsString>,
    /// Only from this key on
    #[arg(short, long, value_name = "KEY")]
    start: Option<OsString>,
    /// Only up to this key, itself included
    #[arg(short, long, value_name = "KEY")]
    end: Option<OsString>,
    /// At most so many
    #[arg(short, long, value_name = "COUNT")]
    limit: Option<u64>,
    /// Leave the values out
    #[arg(short, long)]
    keys_only: bool,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    #[command(flatten)]
    read: ReadQuorum,
    #[command(flatten)]
    connect: Connect,
}

/// What a scan asks for, whoever asks.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// With which keys begin.
    pub prefix: Option<Vec<u8>>,
    /// The first key.
    pub start: Option<Vec<u8>>,
    /// The last key.
    pub end: Option<Vec<u8>>,
    /// Keys, at most.
    pub limit: Option<u64>,
    /// Without values.
    pub keys_only: bool,
    /// Backwards.
    pub reverse: bool,
    /// R.
    pub read: ReadQuorum,
}

/// One key of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: Vec<u8>,
    /// Its value, unless only keys were asked for.
    pub value: Option<Vec<u8>>,
    /// Its type.
    pub content_type: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<RawItem>,
    next_cursor: Option<String>,
}

/// As it comes: in base64.
#[derive(Deserialize)]
struct RawItem {
    key: String,
    value: Option<String>,
    content_type: Option<String>,
}

impl RawItem {
    fn decode(self) -> Option<Item> {
        let value = self.value.map(|value| STANDARD.decode(value)).transpose().ok()?;
        let content_type = self.content_type;
        Some(Item { key: STANDARD.decode(self.key).ok()?, value, content_type })
    }
}

/// Fetches a range, page by page.
#[derive(Debug)]
pub struct Pages {
    range: Range,
    cursor: Option<String>,
    left: u64,
    has_ended: bool,
}

impl Pages {
    /// The pages of a range.
    pub fn new(range: Range) -> Self {
        Self { left: range.limit.unwrap_or(u64::MAX), range, cursor: None, has_ended: false }
    }

    /// The next page; `None` after the last. A page may be empty.
    pub async fn next(&mut self, client: &mut Client) -> Result<Option<Vec<Item>>, Error> {
        if self.has_ended || self.left == 0 {
            return Ok(None);
        }
        let page: Page = client.get_json(&with_query("/v1/kv", &self.query())).await?;
        self.left -= (page.items.len() as u64).min(self.left);
        self.cursor = page.next_cursor;
        self.has_ended = self.cursor.is_none();
        let items = page.items.into_iter().map(RawItem::decode).collect::<Option<_>>();
        items.map(Some).ok_or_else(|| Error::Failed("a page that is no base64".to_owned()))
    }

    fn query(&self) -> Vec<(&'static str, Vec<u8>)> {
        let Range { prefix, start, end, keys_only, reverse, read, .. } = &self.range;
        let mut query = vec![
            ("encoding", b"base64".to_vec()), // nothing is lost, whatever the bytes are
            ("limit", self.left.min(PAGE).to_string().into_bytes()),
        ];
        let cursor = self.cursor.as_ref().map(|cursor| cursor.clone().into_bytes());
        for (name, value) in [("prefix", prefix), ("start", start), ("end", end), ("cursor", &cursor)] {
            query.extend(value.clone().map(|value| (name, value)));
        }
        for (name, _) in [("keys_only", keys_only), ("reverse", reverse)].into_iter().filter(|(_, on)| **on) {
            query.push((name, b"true".to_vec()));
        }
        query.extend(read.query());
        query
    }
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    client::run(&args.connect, async |client, out| scan(args, client, out).await)
}

async fn scan(args: &Args, client: &mut Client, out: &mut Out) -> Result<(), Error> {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = |text: &Option<OsString>| text.as_ref().map(|text| text.as_bytes().to_vec());
    let mut pages = Pages::new(Range {
        prefix: bytes(&args.prefix),
        start: bytes(&args.start),
        end: bytes(&args.end),
        limit: args.limit,
        keys_only: args.keys_only,
        reverse: args.reverse,
        read: args.read,
    });
    let mut total = 0;
    while let Some(items) = pages.next(client).await? {
        total += items.len() as u64;
        print(&items, args.connect.json, out)?;
        out.flush()?;
    }
    if out.is_terminal() && !args.connect.json {
        let _ = writeln!(io::stderr(), "({})", counted(total, "key"));
    }
    Ok(())
}

/// Prints some keys and their values.
pub fn print(items: &[Item], json: bool, out: &mut Out) -> Result<(), Error> {
    if json {
        return items.iter().try_for_each(|item| out.json(&object(item)));
    }
    if !out.is_terminal() {
        return items.iter().try_for_each(|item| match &item.value {
            Some(value) => out.line(&format!("{}\t{}", shown(&item.key), shown(value))),
            None => out.line(&shown(&item.key)),
        });
    }
    let widths = items.iter().map(|item| shown(&item.key).width());
    let width = widths.filter(|width| *width <= KEY_COLUMNS_MAX).max().unwrap_or_default();
    items.iter().try_for_each(|item| {
        let key = shown(&item.key);
        let Some(value) = &item.value else { return out.line(&key) };
        let space = " ".repeat(width.saturating_sub(key.width()));
        let left = columns().saturating_sub(width.max(key.width()) + 2).max(8);
        out.line(&format!("{key}{space}  {}", cut(&shown(value), left)))
    })
}

fn object(item: &Item) -> serde_json::Map<String, serde_json::Value> {
    let mut object = about_key(&item.key);
    if let Some(value) = &item.value {
        put_bytes(&mut object, "value", value);
    }
    if let Some(content_type) = &item.content_type {
        object.insert("content_type".to_owned(), content_type.as_str().into());
    }
    object
}
