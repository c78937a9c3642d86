//! `LogWriter`: appends frames to the log of the active memtable.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BufMut;

use super::{KIND_BATCH, LogKey, Opening, encode_frame, encode_openings, file_name, temporary_name};
use crate::engine::{Error, WriteBatch};
use crate::env::{Env, Mistake, Vfs, VfsFile};

/// A log that takes appends. Not shared: whoever commits has it alone.
///
/// Invariants: `synced <= written <= allocated`; what lies beyond `written` is zeros or of an earlier life.
#[derive(Debug)]
pub struct LogWriter {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    number: u64,
    /// Goes into every frame.
    key: LogKey,
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
    /// Makes a log in `dir`: zero-filled, opened and synced under another name, then renamed and its name made durable,
    /// all before it is used.
    ///
    /// # Errors
    /// `Io`: with `StorageFull` nothing was lost and a later try may succeed.
    pub fn create(env: &Env, dir: &Path, new: &NewLog<'_>) -> Result<Self, Error> {
        let path = dir.join(file_name(new.number));
        let temporary = match new.recycled {
            Some(old) => old.to_owned(),
            None => dir.join(temporary_name(new.number)),
        };
        let made = Self::make(env, &temporary, new);
        let renamed = made.and_then(|mut log| {
            env.fs.rename(&temporary, &path).map_err(|e| Error::io("rename log", &path, e))?;
            log.path = path;
            Ok(log)
        });
        if renamed.is_err() && new.recycled.is_none() {
            // As far as possible: a disk that is full gets its blocks back. The next opening removes what is left.
            let _ = env.fs.remove(&temporary);
        }
        let log = renamed?;
        if !env.planted.has(Mistake::DirectoryNotSynced) {
            env.fs.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))?;
        }
        Ok(log)
    }

    /// Writes the opening frames and syncs them.
    fn make(env: &Env, path: &Path, new: &NewLog<'_>) -> Result<Self, Error> {
        let file = match new.recycled {
            Some(_) => env.fs.open_write(path).map_err(|e| Error::io("open log to recycle", path, e))?,
            None => create_anew(&*env.fs, path).map_err(|e| Error::io("create log", path, e))?,
        };
        let allocated = file.len().map_err(|e| Error::io("measure log", path, e))?;
        let salt = env.rng.secret_u64();
        let mut log = Self {
            file,
            path: path.to_owned(),
            number: new.number,
            key: LogKey::salted(new.number, salt),
            written: 0,
            synced: 0,
            allocated,
            step: new.step,
            staged: Vec::new(),
        };
        encode_openings(&mut log.staged, new.number, new.opening, salt);
        log.make_room()?;
        log.append()?;
        log.sync()?;
        Ok(log)
    }

    /// Adds a batch's frame to the next append.
    pub fn stage(&mut self, batch: &WriteBatch) {
        let offset = self.written + self.staged.len() as u64;
        encode_frame(&mut self.staged, self.key, offset, self.synced, |out| {
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

/// Makes a file, also where an earlier try that failed left one.
fn create_anew(fs: &dyn Vfs, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
    match fs.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs.remove(path)?;
            fs.create(path)
        }
        created => created,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    use crate::env::vfs::read_file;
    use crate::env::{MemVfs, Rng};
    use crate::types::{Key, Record, Timestamp, Value};

    fn env() -> Env {
        let mut env = Env::real();
        env.fs = Arc::new(MemVfs::new());
        env.rng = Rng::from_seed(1);
        env.fs.create_dir_all(Path::new("/db")).unwrap();
        env
    }

    /// Lines of 16 bytes, each with its offset; lines of zeros are left out.
    fn hex(bytes: &[u8]) -> String {
        let mut text = String::new();
        for (line, bytes) in bytes.chunks(16).enumerate().filter(|(_, bytes)| bytes.iter().any(|b| *b != 0)) {
            let _ = write!(text, "{:04x} ", line * 16); // a string takes everything
            text.extend(bytes.iter().map(|byte| format!("{byte:02x}")));
            text.push('\n');
        }
        text
    }

    #[test]
    fn the_bytes_of_a_log_are_those_of_format_version_2() {
        let env = env();
        let opening = Opening { previous: 5, previous_end: 0x1234 };
        let new = NewLog { number: 7, opening, step: 1 << 14, recycled: None };
        let mut log = LogWriter::create(&env, Path::new("/db"), &new).unwrap();
        let put = |key: &'static str, ts| {
            let record = Record::value(Timestamp::from_u64(ts), Value::new("red"));
            WriteBatch::one(Key::new(key).unwrap(), record)
        };
        log.stage(&put("apple", 0x1001));
        log.stage(&put("pear", 0x1002));
        log.make_room().unwrap();
        log.append().unwrap();
        log.sync().unwrap();
        log.stage(&WriteBatch::one(
            Key::new("plum").unwrap(),
            Record::tombstone(Timestamp::from_u64(0x1003)),
        ));
        log.make_room().unwrap();
        log.append().unwrap();
        let bytes = read_file(&*env.fs, Path::new("/db/000007.log")).unwrap();
        assert_eq!(bytes.len(), 1 << 14);
        let golden = include_str!("../../../tests/data/log_v2.hex");
        assert_eq!(hex(&bytes), golden, "a changed format needs a new version and keeps reading this one");
    }

    #[test]
    fn each_log_has_a_salt_of_its_own_and_in_production_no_seed_tells_it() {
        let salt = |env: &Env, number| {
            let new = NewLog { number, opening: Opening::default(), step: 1, recycled: None };
            LogWriter::create(env, Path::new("/db"), &new).unwrap().key
        };
        let env = env();
        assert_ne!(salt(&env, 1), salt(&env, 2));
        let real = Rng::from_entropy();
        let fork = real.fork();
        assert_ne!(fork.secret_u64(), fork.secret_u64());
    }
}
