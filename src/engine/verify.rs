//! Verify: every checksum of a directory that no engine has open, without changing a byte of it.
//!
//! ```text
//! CURRENT ──> manifest ──> each table it names: there, as large as it says, block by block       (files::table)
//!                     └──> each level: tables in order, none over another
//!                     └──> each log from its log number on: frames, batches, none missing        (recovery)
//! ```
//!
//! A manifest that cannot be read does not end it: every table in the directory is checked for itself then. What
//! cannot be told: damage to the very last group of the last log looks like a write that a crash cut short, and is
//! noted, not counted as damage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::files::{Finding, LogFile, ManifestFile, TableFile};
use super::sst::{SstMeta, table_path};
use super::version::Level;
use super::version::manifest::{self, manifest_path};
use super::version::set::{Replayed, table_number};
use super::{Error, WriteBatch, read_only, recovery, wal};
use crate::env::vfs::read_file;
use crate::env::{Env, Vfs};

/// What was looked at, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Tables read.
    pub tables: u64,
    /// Logs read.
    pub logs: u64,
    /// Batches in those logs.
    pub batches: u64,
    /// Entries in tables and logs that are whole.
    pub entries: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is not as it was written.
    pub findings: Vec<Finding>,
    /// What is worth a word and no damage.
    pub notes: Vec<String>,
}

/// Told how many more bytes were read, and how many there are in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Checks an engine's directory. Blocks; takes as long as reading all of it does.
///
/// # Errors
/// `Locked` when an engine has it open; `Io` when the directory cannot be listed. Everything else is a finding.
pub fn verify(env: &Env, dir: &Path, progress: Progress<'_>) -> Result<Verified, Error> {
    let _lock = read_only::lock(env, dir)?;
    let names = env.fs.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let mut verified = Verified::default();
    let replayed = verified.check_manifest(env, dir, &names);
    let tables: BTreeMap<u64, Option<SstMeta>> = match &replayed {
        Some(replayed) => {
            replayed.tables.iter().map(|((_, number), meta)| (*number, Some(meta.clone()))).collect()
        }
        None => names.iter().filter_map(|name| table_number(name)).map(|number| (number, None)).collect(),
    };
    let logs = recovery::list_logs(env, dir)?;
    // Without a manifest nobody knows which logs there should be: those that are there.
    let log_number =
        replayed.as_ref().map_or(logs.first().copied().unwrap_or(0), |replayed| replayed.log_number);
    let logs: Vec<u64> = logs.into_iter().filter(|number| *number >= log_number).collect();
    let mut meter = Meter::new(&*env.fs, dir, &tables, &logs, progress);
    for (number, meta) in &tables {
        verified.check_table(&env.fs, dir, *number, meta.as_ref(), &mut meter);
    }
    if let Some(replayed) = &replayed {
        verified.check_levels(dir, replayed);
    }
    verified.check_logs(env, dir, &logs, log_number, &mut meter);
    verified.bytes = meter.done;
    verified.note_strangers(&names, &tables, replayed.is_some());
    Ok(verified)
}

/// Counts bytes.
struct Meter<'a> {
    done: u64,
    total: u64,
    progress: Progress<'a>,
}

impl<'a> Meter<'a> {
    fn new(
        fs: &dyn Vfs,
        dir: &Path,
        tables: &BTreeMap<u64, Option<SstMeta>>,
        logs: &[u64],
        progress: Progress<'a>,
    ) -> Self {
        let len = |path: PathBuf| fs.open(&path).and_then(|file| file.len()).unwrap_or(0);
        let tables: u64 = tables.keys().map(|number| len(table_path(dir, *number))).sum();
        let logs: u64 = logs.iter().map(|number| len(dir.join(wal::file_name(*number)))).sum();
        Self { done: 0, total: tables + logs, progress }
    }

    fn read(&mut self, bytes: u64) {
        self.done += bytes;
        (self.progress)(bytes, self.total);
    }
}

impl Verified {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Adds what another part came to.
    pub fn merge(&mut self, other: Self) {
        self.tables += other.tables;
        self.logs += other.logs;
        self.batches += other.batches;
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.findings.extend(other.findings);
        self.notes.extend(other.notes);
    }

    /// What the manifest in force adds up to; `None` if that cannot be known.
    fn check_manifest(&mut self, env: &Env, dir: &Path, names: &[String]) -> Option<Replayed> {
        let number = match manifest::read_current(&*env.fs, dir) {
            Ok(Some(number)) => number,
            Ok(None) => {
                if names.iter().any(|name| table_number(name).is_some()) {
                    self.findings.push(Finding::new(
                        dir.join("CURRENT"),
                        0,
                        "it is missing, and there are tables",
                    ));
                    return None;
                }
                return Some(Replayed::default());
            }
            Err(error) => {
                self.findings.push(Finding::of(&error, &dir.join("CURRENT")));
                return None;
            }
        };
        let path = manifest_path(dir, number);
        let bytes = match read_file(&*env.fs, &path) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.findings.push(Finding::new(&path, 0, format!("cannot be read: {error}")));
                return None;
            }
        };
        let file = ManifestFile::parse(&bytes, Some(number));
        if let Some(at) = file.torn_at {
            self.notes.push(format!("{}: byte {at}: an edit that a crash cut short", path.display()));
        }
        if let Some((offset, detail)) = file.damage {
            self.findings.push(Finding::new(&path, offset, detail));
            return None;
        }
        Some(Replayed::of(file.edits.into_iter().map(|(_, edit)| edit).collect()))
    }

    fn check_table(
        &mut self,
        fs: &Arc<dyn Vfs>,
        dir: &Path,
        number: u64,
        meta: Option<&SstMeta>,
        meter: &mut Meter<'_>,
    ) {
        let path = table_path(dir, number);
        let mut table = match TableFile::open(fs, &path) {
            Ok(Some(table)) => table,
            Ok(None) => {
                self.findings.push(Finding::new(path, 0, "the table is shorter than its footer"));
                return;
            }
            Err(error) => {
                self.findings.push(Finding::of(&error, &path));
                return;
            }
        };
        self.tables += 1;
        table.check(&mut |bytes| meter.read(bytes));
        self.entries += table.meta().map_or(0, |meta| meta.entries);
        let footer_at = table.size().saturating_sub(super::sst::FOOTER_LEN as u64);
        let is_another = table.number() != 0 && table.number() != number;
        let differs = table.meta().zip(meta).is_some_and(|(own, named)| own != named);
        let findings = table.into_findings();
        if is_another {
            self.findings.push(Finding::new(&path, footer_at, "the footer is of another file"));
        } else if differs && findings.is_empty() {
            let detail = "the table is not the one that the manifest means";
            self.findings.push(Finding::new(&path, footer_at, detail));
        }
        self.findings.extend(findings);
    }

    /// Below level 0 no two tables of a level may hold the same keys.
    fn check_levels(&mut self, dir: &Path, replayed: &Replayed) {
        for level in Level::all().skip(1) {
            let of_level = replayed.tables.iter().filter(|((of, _), _)| *of == level);
            let mut metas: Vec<&SstMeta> = of_level.map(|(_, meta)| meta).collect();
            metas.sort_by(|a, b| a.smallest.cmp(&b.smallest));
            for pair in metas.windows(2).filter(|pair| pair[0].largest >= pair[1].smallest) {
                let detail = format!("it overlaps table {} of level {}", pair[0].number, level.number());
                self.findings.push(Finding::new(table_path(dir, pair[1].number), 0, detail));
            }
        }
    }

    fn check_logs(&mut self, env: &Env, dir: &Path, numbers: &[u64], log_number: u64, meter: &mut Meter<'_>) {
        let logs = match recovery::read_logs(env, dir, numbers.iter().copied(), log_number) {
            Ok(logs) => logs,
            Err(error) => {
                self.findings.push(Finding::of(&error, dir));
                return;
            }
        };
        for log in logs {
            let path = dir.join(wal::file_name(log.number));
            self.logs += 1;
            self.findings.extend(log.damage(dir, &path).iter().map(|error| Finding::of(error, &path)));
            for (offset, encoded) in &log.content.batches {
                self.batches += 1;
                match WriteBatch::decode(encoded) {
                    Ok(batch) => self.entries += batch.items().len() as u64,
                    Err(error) => {
                        self.findings.push(Finding::new(&path, *offset, format!("a batch: {error}")));
                    }
                }
            }
            let bytes = Bytes::from(read_file(&*env.fs, &path).unwrap_or_default());
            meter.read(bytes.len() as u64);
            let log = LogFile::of(log.number, log.content);
            if log.is_torn && log.damage.is_empty() {
                let end = log.end;
                self.notes.push(format!(
                    "{}, byte {end}: a write that a crash cut short, or damage to the last group written",
                    path.display()
                ));
            }
        }
    }

    fn note_strangers(&mut self, names: &[String], tables: &BTreeMap<u64, Option<SstMeta>>, is_known: bool) {
        for name in names {
            if name.ends_with(".damaged") {
                self.notes.push(format!("{name}: was set aside as damaged"));
            } else if is_known && table_number(name).is_some_and(|number| !tables.contains_key(&number)) {
                self.notes.push(format!("{name}: named by no manifest; the next start removes it"));
            }
        }
    }
}
