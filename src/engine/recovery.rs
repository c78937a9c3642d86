//! Recovery: from manifest and logs back to what was acknowledged.
//!
//! ```text
//! manifest: logs below L are in tables          000007.log  000009.log  000012.log
//!                                                obsolete    L ─────────► the last one: a torn tail is cut
//!                                                            read to where 12 says that it ended
//! all frames from L on ──► one memtable ──► a table of level 0 ──► manifest: logs below the new one are in tables
//! ```
//!
//! What is read back goes into a table before anything is served from it. A log's bytes may stand in the page
//! cache and not on the disk (a process killed between write and sync, or a sync that failed and was then taken
//! for done), and nothing but writing them anew tells which.
//!
//! Only reads, until that table is installed: a crash at any point leaves the same logs to be read again.

use std::path::Path;

use bytes::Bytes;

use super::memtable::Memtable;
use super::wal::reader::{LogContent, ReadLog};
use super::wal::{self, Opening};
use super::{Error, Options, WriteBatch};
use crate::env::vfs::read_file;
use crate::env::{Env, Mistake};

/// What the logs hold.
#[derive(Debug)]
pub struct Recovered {
    /// Every record of every log that is not in tables yet.
    pub memtable: Memtable,
    /// Frames that went into it.
    pub frames: u64,
    /// What was lost to damage.
    pub damage: Vec<String>,
    /// The number and the end of the last log, as the next log's opening frame names it.
    pub last: Opening,
    /// Logs in the directory, obsolete ones too.
    pub logs: Vec<u64>,
}

/// Reads the logs from `log_number` on; they stay as they are.
///
/// # Errors
/// `Corruption` when bytes that were synced are gone, unless `Options::drop_damaged`; `Io` when a file cannot be read.
pub fn recover(
    env: &Env,
    dir: &Path,
    log_number: u64,
    options: &Options,
    seed: u64,
) -> Result<Recovered, Error> {
    let logs = list_logs(env, dir)?;
    let mut recovered = Recovered {
        memtable: Memtable::new(log_number, options.memtable_size, seed),
        frames: 0,
        damage: Vec::new(),
        last: Opening::default(),
        logs: logs.clone(),
    };
    for log in read_logs(env, dir, logs.into_iter().filter(|number| *number >= log_number), log_number)? {
        recovered.take(dir, &log, options.drop_damaged)?;
    }
    Ok(recovered)
}

pub(super) fn list_logs(env: &Env, dir: &Path) -> Result<Vec<u64>, Error> {
    let names = env.fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let mut logs: Vec<u64> = names.iter().filter_map(|name| wal::parse_file_name(name)).collect();
    logs.sort_unstable();
    Ok(logs)
}

/// One log that is not in tables yet.
pub(super) struct Log {
    pub number: u64,
    pub content: LogContent,
    /// The number of a log that must have been before this one and is not there.
    missing: Option<u64>,
}

/// Reads logs, the last one first: each says where the one before it ended.
pub(super) fn read_logs(
    env: &Env,
    dir: &Path,
    numbers: impl DoubleEndedIterator<Item = u64>,
    log_number: u64,
) -> Result<Vec<Log>, Error> {
    let cut_at_first_bad = env.planted.has(Mistake::LogCutAtFirstBadFrame);
    let mut logs: Vec<Log> = Vec::new();
    let mut expected = Opening::default();
    for number in numbers.rev() {
        let path = dir.join(wal::file_name(number));
        let file = Bytes::from(read_file(&*env.fs, &path).map_err(|e| Error::io("read log", &path, e))?);
        let synced_end = (expected.previous == number).then_some(expected.previous_end);
        let content = ReadLog { synced_end, cut_at_first_bad }.read(number, &file);
        if content.opening.is_none() && content.batches.is_empty() && content.damage.is_empty() {
            continue; // a crash stopped its making: nothing was ever written to it
        }
        if expected.previous > number
            && let Some(later) = logs.last_mut()
        {
            later.missing = Some(expected.previous);
        }
        expected = content.opening.unwrap_or_default();
        logs.push(Log { number, content, missing: None });
    }
    if expected.previous >= log_number.max(1)
        && let Some(oldest) = logs.last_mut()
    {
        oldest.missing = Some(expected.previous);
    }
    logs.reverse();
    Ok(logs)
}

impl Recovered {
    /// Adds what a log holds; the logs come in order.
    fn take(&mut self, dir: &Path, log: &Log, drop_damaged: bool) -> Result<(), Error> {
        let path = dir.join(wal::file_name(log.number));
        let mut damage = log.damage(dir, &path);
        for (offset, encoded) in &log.content.batches {
            match WriteBatch::decode(encoded) {
                Ok(batch) => self.apply(&batch),
                Err(error) => damage.push(Error::corruption(&path, *offset, format!("a batch: {error}"))),
            }
        }
        self.last = Opening { previous: log.number, previous_end: log.content.end };
        for error in damage {
            if !drop_damaged {
                return Err(error);
            }
            tracing::warn!(%error, "dropped what is damaged");
            self.damage.push(error.to_string());
        }
        Ok(())
    }

    fn apply(&mut self, batch: &WriteBatch) {
        self.frames += 1;
        self.memtable.insert(batch.items());
    }
}

impl Log {
    /// What of it, and before it, was synced once and is gone.
    pub fn damage(&self, dir: &Path, path: &Path) -> Vec<Error> {
        let mut damage = Vec::new();
        if let Some(missing) = self.missing {
            let gone = dir.join(wal::file_name(missing));
            damage.push(Error::corruption(
                gone,
                0,
                format!("missing, though log {} follows it", self.number),
            ));
        }
        damage.extend(self.content.damage.iter().map(|d| Error::corruption(path, d.offset, &d.detail)));
        damage
    }
}
