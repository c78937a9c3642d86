//! What a session works on: a node over HTTP, or the directory of one that does not run.

use std::path::Path;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Map, Value as Json, json};

use crate::cli::client::{Client, path_of};
use crate::cli::exit::Error;
use crate::cli::explain;
use crate::cli::output::{Out, about_key, count, moment, shown, size};
use crate::cli::scan::{Item, Pages, Range};
use crate::cli::table::{Align, Table};
use crate::engine::db::EngineScan;
use crate::env::Env;
use crate::node::{StartError, StoppedNode};
use crate::types::{Key, KeyRange, Record, Timestamp, Value};

/// Keys that are read from a directory before they are shown.
const PAGE: usize = 1_000;
/// Bytes of values after which they are shown.
const PAGE_BYTES: usize = 4 << 20;

/// What a session works on.
pub enum Store {
    /// A node that runs.
    Node(Client),
    /// The directory of one that does not.
    Directory(Box<StoppedNode>),
}

/// A listing under way.
pub enum Listing {
    /// From a node, page by page.
    Node(Pages),
    /// From a directory.
    Directory {
        /// What is left of it.
        scan: EngineScan,
        /// How many more.
        left: u64,
        /// Whether values are left out.
        keys_only: bool,
    },
}

impl Store {
    /// Opens a directory.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        match StoppedNode::open(&Env::real(), dir) {
            Ok(node) => Ok(Self::Directory(Box::new(node))),
            Err(error @ StartError::Locked { .. }) => Err(Error::Failed(format!(
                "{error}, a running node most likely: talk to that with `kvstore repl --connect host:port`"
            ))),
            Err(error) => Err(Error::Failed(error.to_string())),
        }
    }

    /// The value of a key, with what else is known of it.
    pub async fn get(&mut self, key: &[u8]) -> Result<Option<(Bytes, Map<String, Json>)>, Error> {
        match self {
            Self::Node(client) => match client.get(&path_of(key, &[])).await?.good().await {
                Err(Error::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
                Ok(answer) => {
                    let mut about = about_key(key);
                    about.insert("timestamp".to_owned(), answer.number("x-kv-timestamp").into());
                    about.insert("content_type".to_owned(), answer.header("content-type").into());
                    Ok(Some((answer.bytes().await?.into(), about)))
                }
            },
            Self::Directory(node) => {
                let record = node.engine().get(&checked(key)?).map_err(failed)?;
                Ok(record.and_then(|record| {
                    let mut about = about_key(key);
                    about.insert("timestamp".to_owned(), record.timestamp().as_u64().into());
                    about.insert("content_type".to_owned(), type_of(&record).into());
                    Some((record.value_at(now())?.to_bytes(), about))
                }))
            }
        }
    }

    /// Gives a key a value; or with none deletes it.
    pub async fn write(&mut self, key: &[u8], value: Option<Vec<u8>>) -> Result<(), Error> {
        match self {
            Self::Node(client) => {
                let method = if value.is_some() { Method::PUT } else { Method::DELETE };
                let body = value.unwrap_or_default().into();
                client.send(method, &path_of(key, &[]), None, body).await?.good().await.map(drop)
            }
            Self::Directory(node) => {
                let key = checked(key)?;
                if let (_, members @ 2..) = node.cluster() {
                    return Err(Error::Failed(format!(
                        "this directory is one of {members} members': a write here would be on one disk and no quorum; \
                         start the node and use --connect"
                    )));
                }
                let timestamp = node.tick().await.map_err(|error| Error::Failed(error.to_string()))?;
                let written = match value {
                    Some(value) => node.engine().put(key, Value::new(value), timestamp),
                    None => node.engine().delete(key, timestamp),
                };
                written.map(drop).map_err(failed)
            }
        }
    }

    /// Begins a listing.
    pub fn list(&self, range: Range) -> Listing {
        match self {
            Self::Node(_) => Listing::Node(Pages::new(range)),
            Self::Directory(node) => {
                let bound = |bound: &Option<Vec<u8>>| bound.clone().map(Bytes::from);
                let keys = KeyRange::inclusive(bound(&range.start), bound(&range.end));
                let keys = match &range.prefix {
                    Some(prefix) => keys.intersect(KeyRange::prefix(prefix)),
                    None => keys,
                };
                let (left, keys_only) = (range.limit.unwrap_or(u64::MAX), range.keys_only);
                Listing::Directory { scan: node.engine().scan(&keys), left, keys_only }
            }
        }
    }

    /// Some more of a listing; `None` after the last.
    pub async fn more(&mut self, listing: &mut Listing) -> Result<Option<Vec<Item>>, Error> {
        match (self, listing) {
            (Self::Node(client), Listing::Node(pages)) => pages.next(client).await,
            (_, Listing::Directory { scan, left, keys_only }) => {
                let (mut items, mut bytes, now) = (Vec::new(), 0, now());
                while items.len() < PAGE && bytes < PAGE_BYTES && *left > 0 {
                    let Some(entry) = scan.next() else { break };
                    let (key, record) = entry.map_err(failed)?;
                    let Some(value) = record.value_at(now) else { continue };
                    *left -= 1;
                    bytes += value.len();
                    items.push(Item {
                        key: key.as_bytes().to_vec(),
                        value: (!*keys_only).then(|| value.as_bytes().to_vec()),
                        content_type: if *keys_only { None } else { type_of(&record) },
                    });
                }
                Ok((!items.is_empty()).then_some(items))
            }
            (Self::Directory(_), Listing::Node(_)) => Ok(None),
        }
    }

    /// Keys that begin so, a few.
    pub async fn keys(&mut self, prefix: Vec<u8>, limit: u64) -> Result<Vec<Vec<u8>>, Error> {
        let range = Range { prefix: Some(prefix), limit: Some(limit), keys_only: true, ..Range::default() };
        let (mut listing, mut keys) = (self.list(range), Vec::new());
        while let Some(items) = self.more(&mut listing).await? {
            keys.extend(items.into_iter().map(|item| item.key));
        }
        Ok(keys)
    }

    /// Prints figures.
    pub async fn stats(&mut self, json: bool, out: &mut Out) -> Result<(), Error> {
        let figures = match self {
            Self::Node(client) => client.get_json("/metrics?format=json").await?,
            Self::Directory(node) => of_engine(node),
        };
        if json {
            return out.json(&figures);
        }
        let mut table = Table::new([("", Align::Left), ("", Align::Left)]);
        for (name, word, is_size) in STATS {
            let Some(number) = figures.get(name) else { continue };
            let text = match (number.as_u64(), is_size) {
                (Some(bytes), true) => size(bytes),
                (Some(number), false) => count(number),
                (None, _) => number.as_str().map_or_else(|| number.to_string(), str::to_owned),
            };
            table.row([(*word).into(), text.into()]);
        }
        table.print(out)
    }

    /// Merges all tables.
    pub fn compact(&self) -> Result<(), Error> {
        match self {
            Self::Node(_) => Err(Error::Failed(
                "a node compacts by itself; `compact` works on the directory of one that does not run"
                    .to_owned(),
            )),
            Self::Directory(node) => node.engine().compact().map_err(failed),
        }
    }

    /// Prints what is held of a key.
    pub async fn explain(&mut self, key: &[u8], json: bool, out: &mut Out) -> Result<(), Error> {
        let node = match self {
            Self::Node(client) => return explain::explain(key, json, client, out).await,
            Self::Directory(node) => node,
        };
        let record = node.engine().get(&checked(key)?).map_err(failed)?;
        let state = match &record {
            None => "missing",
            Some(record) if record.is_tombstone() => "tombstone",
            Some(record) if record.value_at(now()).is_none() => "expired",
            Some(_) => "value",
        };
        let timestamp = record.as_ref().map(|record| record.timestamp().as_u64());
        let bytes = record.as_ref().and_then(Record::as_value).map(|value| value.len() as u64);
        let content_type = record.as_ref().and_then(type_of);
        if json {
            let mut object = about_key(key);
            object.insert("state".to_owned(), state.into());
            object.insert("timestamp".to_owned(), timestamp.into());
            object.insert("size".to_owned(), bytes.into());
            object.insert("content_type".to_owned(), content_type.into());
            return out.json(&object);
        }
        let written =
            timestamp.map_or(String::new(), |at| format!(", written {} (timestamp {at})", moment(at)));
        let held = bytes.map_or(String::new(), |bytes| format!(" of {}", size(bytes)));
        let typed = content_type.map_or(String::new(), |content_type| format!(", {content_type}"));
        out.line(&format!("{}: {state}{held}{typed}{written}", shown(key)))
    }

    /// Lets go of what was open.
    pub async fn close(&mut self) -> Result<(), Error> {
        match self {
            Self::Node(_) => Ok(()),
            Self::Directory(node) => node.close().await.map_err(failed),
        }
    }
}

/// What `stats` shows of the figures, in which words, and whether it is bytes.
const STATS: &[(&str, &str, bool)] = &[
    ("node_id", "node", false),
    ("cluster", "cluster", false),
    ("members", "members", false),
    ("standing", "standing", false),
    ("uptime_seconds", "seconds up", false),
    ("keys", "keys, at most", false),
    ("tombstones", "tombstones in tables", false),
    ("total_bytes", "bytes held", true),
    ("memtable_bytes", "in memory", true),
    ("level_files", "tables, by level", false),
    ("flushes", "flushes", false),
    ("compactions", "compactions", false),
    ("wal_syncs", "syncs of the log", false),
    ("writes", "puts", false),
    ("reads", "gets", false),
    ("deletes", "deletes", false),
    ("scans", "scans", false),
    ("batches", "batches", false),
    ("errors", "errors", false),
    ("disk_free_bytes", "free on its disk", true),
];

fn of_engine(node: &StoppedNode) -> Json {
    let stats = node.engine().stats();
    let (cluster, members) = node.cluster();
    json!({
        "cluster": cluster,
        "members": members,
        "standing": if node.is_whole() { "whole" } else { "rebuilding" },
        "keys": (stats.memtable_records + stats.table_records).saturating_sub(stats.tombstones),
        "tombstones": stats.tombstones,
        "total_bytes": stats.held_bytes(),
        "memtable_bytes": stats.memtable_bytes,
        "level_files": stats.level_files,
        "level_bytes": stats.level_bytes,
        "flushes": stats.flushes,
        "compactions": stats.compactions,
        "wal_syncs": stats.wal_syncs,
    })
}

fn type_of(record: &Record) -> Option<String> {
    record.content_type().map(|content_type| String::from_utf8_lossy(content_type.as_bytes()).into_owned())
}

fn checked(key: &[u8]) -> Result<Key, Error> {
    Key::new(Bytes::copy_from_slice(key)).map_err(|error| Error::Usage(error.to_string()))
}

/// What an engine says, with its cause.
#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn failed(error: crate::engine::Error) -> Error {
    use std::error::Error as _;
    let cause = error.source().map_or(String::new(), |cause| format!(": {cause}"));
    Error::Failed(format!("{error}{cause}"))
}

/// What a directory's values are measured against that end.
fn now() -> Timestamp {
    Timestamp::from_micros(Env::real().clock.wall_micros())
}
