//! inspect: one file of a data directory, shown. What it is is told by its bytes.
//!
//! ```text
//! first what the file says of itself, then what is in it, then what is damaged
//! text    name: value lines, then an entry a line        JSON    an object a line, in the same order
//! ```

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Map, Value as Json, json};

use super::transfer::Ended;
use crate::engine::files::{EngineFile, Finding, LogFile, ManifestFile, TableFile};
use crate::engine::iter::EntryRef;
use crate::engine::sst::SstMeta;
use crate::engine::version::VersionEdit;
use crate::engine::{self, WriteBatch};
use crate::env::Env;
use crate::hlc::keeper;
use crate::replication::identity::{self, Identity};
use crate::types::Timestamp;

/// Shows what is in a table, log, manifest, identity or clock file
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// The file; what it is is told by its bytes, whatever it is called
    file: PathBuf,
    /// Show so many entries at most; 0: only what the file says of itself
    #[arg(long)]
    limit: Option<u64>,
    /// Show values too
    #[arg(long)]
    values: bool,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Runs the command. Exit codes: 0 shown, 1 damaged (shown as far as it goes) or not ours, 2 bad arguments.
pub fn run(args: &InspectArgs) -> ExitCode {
    match inspect(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(ended) => ended.exit(),
    }
}

/// Shows the file; says whether it is whole.
fn inspect(args: &InspectArgs) -> Result<bool, Ended> {
    let env = Env::real();
    let mut page = Page { args, out: BufWriter::new(io::stdout()), shown: 0, is_whole: true };
    let failed = |error: engine::Error| match error {
        engine::Error::Io { path, source, .. } => Ended::io("cannot read", &path, &source),
        other => Ended::Failed(other.to_string()),
    };
    if let Some(shown) = page.show_node_file(&env)? {
        return Ok(shown);
    }
    match EngineFile::open(&env, &args.file).map_err(failed)? {
        Some(EngineFile::Table(mut table)) => page.table(&mut table)?,
        Some(EngineFile::Log(log)) => page.log(&log)?,
        Some(EngineFile::Manifest(manifest)) => page.manifest(&manifest)?,
        Some(EngineFile::Current(text)) => page.current(&text)?,
        None => {
            let path = args.file.display();
            return Err(Ended::Failed(format!(
                "{path}: not a file of this store, or damaged where it says which"
            )));
        }
    }
    page.end()
}

/// What is shown, as text or as JSON.
struct Page<'a> {
    args: &'a InspectArgs,
    out: BufWriter<io::Stdout>,
    /// Entries so far.
    shown: u64,
    is_whole: bool,
}

impl Page<'_> {
    fn line(&mut self, text: &str) -> Result<(), Ended> {
        writeln!(self.out, "{text}").map_err(|error| Ended::output(&error))
    }

    fn end(mut self) -> Result<bool, Ended> {
        self.out.flush().map_err(|error| Ended::output(&error))?;
        Ok(self.is_whole)
    }

    /// What the file says of itself.
    fn head(&mut self, fields: &Json) -> Result<(), Ended> {
        if self.args.json {
            return self.line(&fields.to_string());
        }
        let mut named: Vec<_> = fields.as_object().into_iter().flatten().collect();
        named.sort_by_key(|(name, _)| *name != "kind"); // the others stay in the order of their names
        for (name, value) in named {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.line(&format!("{}: {value}", name.replace('_', " ")))?;
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.args.limit.is_none_or(|limit| self.shown < limit)
    }

    /// One entry: its fields as JSON, or as a line of text.
    fn entry(&mut self, fields: &Json, text: impl FnOnce() -> String) -> Result<(), Ended> {
        self.shown += 1;
        let line = if self.args.json { fields.to_string() } else { text() };
        self.line(&line)
    }

    fn record(&mut self, at: Option<u64>, entry: &EntryRef<'_>) -> Result<(), Ended> {
        let kind = if entry.value.is_some() { "value" } else { "tombstone" };
        let of = entry.content_type.map(String::from_utf8_lossy);
        let mut fields = Map::new();
        if let Some(at) = at {
            fields.insert("offset".to_owned(), at.into());
        }
        put_bytes(&mut fields, "key", entry.key);
        fields.insert("timestamp".to_owned(), entry.timestamp.as_u64().into());
        fields.insert("kind".to_owned(), kind.into());
        if let Some(of) = &of {
            fields.insert("content_type".to_owned(), of.clone().into());
        }
        if let Some(value) = entry.value {
            fields.insert("size".to_owned(), value.len().into());
            if self.args.values {
                put_bytes(&mut fields, "value", value);
            }
        }
        let values = self.args.values;
        self.entry(&Json::Object(fields), || {
            let at = at.map_or(String::new(), |at| format!("{at:>10}  "));
            let size = entry.value.map_or(String::new(), |value| format!("  {} bytes", value.len()));
            let of = of.map_or(String::new(), |of| format!("  {of}"));
            let key = entry.key.escape_ascii();
            let value = match entry.value {
                Some(value) if values => format!("  \"{}\"", value.escape_ascii()),
                _ => String::new(),
            };
            format!("{at}{}  {kind:<9}  \"{key}\"{size}{of}{value}", entry.timestamp)
        })
    }

    fn damage(&mut self, offset: u64, detail: &str) -> Result<(), Ended> {
        self.is_whole = false;
        if self.args.json {
            self.line(&json!({"damage": {"offset": offset, "detail": detail}}).to_string())
        } else {
            self.line(&format!("damaged, byte {offset}: {detail}"))
        }
    }

    fn damages(&mut self, findings: &[Finding]) -> Result<(), Ended> {
        findings.iter().try_for_each(|finding| self.damage(finding.offset, &finding.detail))
    }

    fn table(&mut self, table: &mut TableFile) -> Result<(), Ended> {
        let mut head = json!({
            "kind": "table", "number": table.number(), "format_version": table.format_version(),
            "bytes": table.size(), "blocks": table.blocks(), "bloom_filter": table.has_bloom(),
        });
        if let (Some(meta), Some(head)) = (table.meta(), head.as_object_mut()) {
            head.extend(of_meta(meta));
        }
        self.head(&head)?;
        let mut outcome = Ok(());
        if self.has_room() {
            let _ = table.each(&mut |entry| {
                outcome = self.record(None, entry);
                if outcome.is_ok() && self.has_room() {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
        }
        outcome?;
        self.damages(table.findings())
    }

    fn log(&mut self, log: &LogFile) -> Result<(), Ended> {
        let opening = log.opening.unwrap_or_default();
        self.head(&json!({
            "kind": "log", "number": log.number, "batches": log.batches.len(), "end": log.end,
            "previous_log": opening.previous, "previous_end": opening.previous_end,
            "cut_short": log.is_torn,
        }))?;
        if log.opening.is_none() {
            self.damage(0, "no opening frame where the log begins")?;
        }
        for (offset, encoded) in &log.batches {
            match WriteBatch::decode(encoded) {
                Ok(batch) => {
                    for (key, record) in batch.items() {
                        if self.has_room() {
                            self.record(Some(*offset), &EntryRef::of(key.as_bytes(), record))?;
                        }
                    }
                }
                Err(error) => self.damage(*offset, &format!("a batch: {error}"))?,
            }
        }
        log.damage.iter().try_for_each(|damage| self.damage(damage.offset, &damage.detail))
    }

    fn manifest(&mut self, manifest: &ManifestFile) -> Result<(), Ended> {
        self.head(&json!({
            "kind": "manifest", "number": manifest.number, "edits": manifest.edits.len(), "cut_short_at": manifest.torn_at,
        }))?;
        for (offset, edit) in &manifest.edits {
            if self.has_room() {
                self.entry(&of_edit(*offset, edit), || edit_line(*offset, edit))?;
            }
        }
        manifest.damage.iter().try_for_each(|(offset, detail)| self.damage(*offset, detail))
    }

    fn current(&mut self, text: &str) -> Result<(), Ended> {
        let (name, crc) = text.trim_end_matches('\n').split_once(' ').unwrap_or((text, ""));
        self.head(&json!({"kind": "current", "manifest": name, "crc32": crc}))?;
        if crc != format!("{:08x}", crc32fast::hash(name.as_bytes())) || !text.ends_with('\n') {
            self.damage(0, "the checksum is not that of the name")?;
        }
        Ok(())
    }

    /// Shows an identity or a clock file, and says whether it is whole; `None` if it is neither.
    fn show_node_file(&mut self, env: &Env) -> Result<Option<bool>, Ended> {
        let path = &self.args.file;
        let head = head_of(env, path).map_err(|error| Ended::io("cannot read", path, &error))?;
        if identity::is_identity(&head) {
            match Identity::read(env, path) {
                Ok(identity) => self.head(&of_identity(&identity))?,
                Err(error) => {
                    self.head(&json!({"kind": "identity"}))?;
                    self.damage(0, &error.to_string())?;
                }
            }
        } else if keeper::is_clock(&head) {
            self.clock(env)?;
        } else {
            return Ok(None);
        }
        self.out.flush().map_err(|error| Ended::output(&error))?;
        Ok(Some(self.is_whole))
    }

    fn clock(&mut self, env: &Env) -> Result<(), Ended> {
        let path = &self.args.file;
        let slots = keeper::slots(env, path).map_err(|error| Ended::io("cannot read", path, &error))?;
        let mark = slots.iter().flatten().max_by_key(|slot| slot.sequence).map(|slot| slot.mark);
        let of_slot = |slot: &keeper::Slot| json!({"sequence": slot.sequence, "mark": slot.mark.as_u64()});
        let slots: Vec<_> = slots.iter().map(|slot| slot.as_ref().map(of_slot)).collect();
        self.head(&json!({
            "kind": "clock", "mark": mark.map(Timestamp::as_u64), "mark_micros": mark.map(Timestamp::micros), "slots": slots,
        }))?;
        if mark.is_none() { self.damage(0, "neither slot is whole") } else { Ok(()) }
    }
}

/// The first bytes of a file: more than both slots of a clock.
fn head_of(env: &Env, path: &std::path::Path) -> io::Result<Vec<u8>> {
    let file = env.fs.open(path)?;
    let mut head = vec![0; 4096 + 8];
    let read = file.read_at(&mut head, 0)?;
    head.truncate(read);
    Ok(head)
}

/// Bytes under their name if they are text, else as base64.
fn put_bytes(fields: &mut Map<String, Json>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => fields.insert(name.to_owned(), text.into()),
        Err(_) => fields.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

fn of_meta(meta: &SstMeta) -> Map<String, Json> {
    let mut fields = Map::new();
    let mut put = |name: &str, value: u64| fields.insert(name.to_owned(), value.into());
    put("entries", meta.entries);
    put("tombstones", meta.tombstones);
    put("oldest", meta.oldest.as_u64());
    put("newest", meta.newest.as_u64());
    put_bytes(&mut fields, "smallest", &meta.smallest);
    put_bytes(&mut fields, "largest", &meta.largest);
    fields
}

fn of_edit(offset: u64, edit: &VersionEdit) -> Json {
    let VersionEdit { log_number, next_file_number, compact_pointers, removed, added } = edit;
    let added: Vec<_> = added
        .iter()
        .map(|(level, meta)| {
            let mut fields = of_meta(meta);
            fields.insert("level".to_owned(), level.number().into());
            fields.insert("number".to_owned(), meta.number.into());
            fields.insert("bytes".to_owned(), meta.size.into());
            fields
        })
        .collect();
    let removed: Vec<_> =
        removed.iter().map(|(level, number)| json!({"level": level.number(), "number": number})).collect();
    let pointers: Vec<_> = compact_pointers
        .iter()
        .map(|(level, key)| {
            let mut fields = Map::from_iter([("level".to_owned(), level.number().into())]);
            put_bytes(&mut fields, "key", key);
            fields
        })
        .collect();
    json!({
        "offset": offset, "log_number": log_number, "next_file_number": next_file_number,
        "compact_pointers": pointers, "removed": removed, "added": added,
    })
}

fn edit_line(offset: u64, edit: &VersionEdit) -> String {
    let mut parts: Vec<Cow<'_, str>> = Vec::new();
    parts.extend(edit.log_number.map(|number| format!("logs from {number}").into()));
    parts.extend(edit.next_file_number.map(|number| format!("next file {number}").into()));
    for (level, key) in &edit.compact_pointers {
        parts.push(format!("level {} compacted up to \"{}\"", level.number(), key.escape_ascii()).into());
    }
    parts.extend(
        edit.removed.iter().map(|(level, number)| format!("-{number} from level {}", level.number()).into()),
    );
    for (level, meta) in &edit.added {
        let (smallest, largest) = (meta.smallest.escape_ascii(), meta.largest.escape_ascii());
        let SstMeta { number, size, entries, .. } = meta;
        let level = level.number();
        parts.push(
            format!("+{number} to level {level} ({entries} entries, {size} bytes, \"{smallest}\" to \"{largest}\")").into(),
        );
    }
    format!("{offset:>10}  {}", parts.join(", "))
}

fn of_identity(identity: &Identity) -> Json {
    let uuid = |uuid: u128| uuid::Uuid::from_u128(uuid).to_string();
    let members: Vec<_> = identity
        .founding
        .members
        .iter()
        .map(|member| json!({"name": member.id.as_str(), "weight": member.weight, "zone": member.zone}))
        .collect();
    let rebuild: Vec<_> = identity
        .rebuild
        .iter()
        .map(|(peer, progress)| json!({"peer": peer.as_str(), "done": progress.next.is_none(), "whole": progress.whole}))
        .collect();
    let peers: Vec<_> = identity
        .peers
        .iter()
        .map(|(peer, of)| json!({"peer": peer.as_str(), "uuid": uuid(of.uuid), "mark": of.mark.as_u64()}))
        .collect();
    let former: Vec<_> = identity.former.iter().map(|of| uuid(*of)).collect();
    json!({
        "kind": "identity", "uuid": uuid(identity.uuid), "cluster": identity.founding.cluster_name,
        "ranges": identity.founding.range_count, "replication_factor": identity.founding.replication_factor,
        "members": members, "boot": identity.boot, "has_voted": identity.has_voted,
        "standing": format!("{:?}", identity.standing).to_lowercase(), "former": former,
        "settled_mark": identity.settled_mark.as_u64(), "rebuild": rebuild, "peers": peers,
    })
}
