//! `LogWriter`: appends frames to the log of the active memtable.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BufMut;

use super::{FORMAT_VERSION, KIND_BATCH, KIND_OPENING, Opening, encode_frame, file_name};
use crate::engine::{Error, WriteBatch};
use crate::env::{Env, Mistake, VfsFile};

/// A log that takes appends. Not shared: whoever commits has it alone.
///
/// Invariants: `synced <= written <= allocated`; what lies beyond `written` is zeros or of an earlier life.
#[derive(Debug)]
pub struct LogWriter {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    number: u64,
    /// Where the next frame goes.
    written: u64,
    /// What a sync has covered.
    synced: u64,
    /// How long the file is.
    allocated: u64,
    /// By how much the file grows at a time.
    step: u64,
    /// The frames of the next append; its room is kept from group to group.
    staged: Vec<u8>,
}

/// How to make a new log.
#[derive(Debug)]
pub struct NewLog<'a> {
    /// Its number, never used before.
    pub number: u64,
    /// What came before it.
    pub opening: Opening,
    /// By how many bytes its file grows at a time.
    pub step: u64,
    /// The file of a log that is in tables by now, to be used again.
    pub recycled: Option<&'a Path>,
}

/// The room kept for staging frames; a group of larger batches takes more and gives it back.
const STAGED_KEPT: usize = 1 << 20;

impl LogWriter {
    /// Makes a log in `dir`: zero-filled, opened, synced, and its name made durable, before it is used.
    ///
    /// # Errors
    /// `Io`: with `StorageFull` nothing was lost and a later try may succeed, under another number.
    pub fn create(env: &Env, dir: &Path, new: &NewLog<'_>) -> Result<Self, Error> {
        let path = dir.join(file_name(new.number));
        let temporary = new.recycled.unwrap_or(&path);
        let file = match new.recycled {
            Some(old) => env.fs.open_write(old).map_err(|e| Error::io("open log to recycle", old, e))?,
            None => env.fs.create(&path).map_err(|e| Error::io("create log", &path, e))?,
        };
        let allocated = file.len().map_err(|e| Error::io("measure log", temporary, e))?;
        let mut log = Self {
            file,
            path: temporary.to_owned(),
            number: new.number,
            written: 0,
            synced: 0,
            allocated,
            step: new.step,
            staged: Vec::new(),
        };
        log.open(new.opening)?;
        if new.recycled.is_some() {
            env.fs.rename(temporary, &path).map_err(|e| Error::io("rename log", &path, e))?;
            log.path = path;
        }
        if !env.planted.has(Mistake::DirectoryNotSynced) {
            env.fs.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))?;
        }
        Ok(log)
    }

    fn open(&mut self, opening: Opening) -> Result<(), Error> {
        encode_frame(&mut self.staged, self.number, 0, 0, |out| {
            out.put_u8(KIND_OPENING);
            out.put_u8(FORMAT_VERSION);
            out.put_u64_le(opening.previous);
            out.put_u64_le(opening.previous_end);
        });
        self.make_room()?;
        self.append()?;
        self.sync()
    }

    /// Adds a batch's frame to the next append.
    pub fn stage(&mut self, batch: &WriteBatch) {
        let offset = self.written + self.staged.len() as u64;
        encode_frame(&mut self.staged, self.number, offset, self.synced, |out| {
            out.put_u8(KIND_BATCH);
            batch.encode(out);
        });
    }

    /// Forgets what is staged.
    pub fn unstage(&mut self) {
        self.staged.clear();
    }

    /// Grows the file so that what is staged fits into it.
    ///
    /// # Errors
    /// The log stays as it was: after `StorageFull` it goes on when there is space again.
    pub fn make_room(&mut self) -> Result<(), Error> {
        let end = self.written + self.staged.len() as u64;
        if end > self.allocated {
            let len = end.next_multiple_of(self.step.max(1));
            self.file.allocate(len).map_err(|e| Error::io("extend log", &self.path, e))?;
            self.allocated = len;
        }
        Ok(())
    }

    /// Writes what is staged, in one piece; returns how many bytes that were. [`LogWriter::make_room`] came before.
    ///
    /// # Errors
    /// What is in the file is unknown: the log must not be used again.
    pub fn append(&mut self) -> Result<u64, Error> {
        let len = self.staged.len() as u64;
        self.file
            .write_at(&self.staged, self.written)
            .map_err(|e| Error::io("append to log", &self.path, e))?;
        self.written += len;
        self.staged.clear();
        self.staged.shrink_to(STAGED_KEPT);
        Ok(len)
    }

    /// Makes what was appended durable.
    ///
    /// # Errors
    /// What is durable is unknown, and a second sync would prove nothing: the log must not be used again.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.file.sync().map_err(|e| Error::io("sync log", &self.path, e))?;
        self.synced = self.written;
        Ok(())
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where the next frame goes.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether all that was appended is synced.
    pub fn is_synced(&self) -> bool {
        self.synced == self.written
    }
}
