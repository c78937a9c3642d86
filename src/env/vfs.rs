//! The file system as the engine needs it, and exactly what it promises.
//!
//! - What `write_at` or `append` wrote is durable once a later [`VfsFile::sync`] of that file has returned
//!   `Ok`; before that a crash may keep any part of it, in any order, torn anywhere.
//! - A created, renamed, linked or removed name is durable once a later [`Vfs::sync_dir`] of its directory has
//!   returned `Ok`; before that a crash may keep the old state or the new.
//! - A `sync` or `sync_dir` that failed says nothing about what is durable, and a second one proves nothing
//!   either (fsyncgate): the caller must stop trusting the file.
//! - An error for which [`is_passing`] holds had no effect, and the same operation may succeed a moment later. A failed
//!   sync is never reported as such.
//! - A rename replaces its target at once for all who open it, and a crash shows either the old or the new.
//!
//! Paths are whole paths; a directory must exist before files are made in it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

/// A file system. All operations may block.
pub trait Vfs: Send + Sync + fmt::Debug {
    /// Makes a new, empty file, to be read and written. `AlreadyExists` if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    /// Opens a file that exists, for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    /// Opens a file that exists, for reading and writing.
    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;
    /// Gives a file a new name in place of whatever had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name. `AlreadyExists` if it is taken.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name; the bytes go with the last name and the last handle.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory that is empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and those above it; it is no error if they exist. Their entries are synced by `sync_dir`
    /// of the parent, as for files.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted; directories among them.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Whether the name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that files beside this file, or in this directory, could still take. `NotFound` if it is gone,
    /// `ReadOnlyFilesystem` if nothing can be written there.
    fn free_space(&self, path: &Path) -> io::Result<u64>;
    /// Takes the one lock that a path carries, making the file if need be; `WouldBlock` when another process, or
    /// another holder in this one, has it. Released when the lock is dropped, and by a crash.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>>;
}

/// An open file. All operations may block; offsets and lengths are in bytes.
pub trait VfsFile: Send + Sync + fmt::Debug {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all bytes at an offset, growing the file where need be (a hole reads as zeros).
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Writes all bytes at the end.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;
    /// Makes all that was written durable, the length included.
    fn sync(&self) -> io::Result<()>;
    /// Makes the file `len` bytes long and its blocks really there, zero-filled, so that later writes inside it
    /// neither fail for want of space nor change its metadata. Not durable before a `sync`.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// How long the file is.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads exactly `buf.len()` bytes, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.read_at(buf, offset)?;
        if read == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// A lock held; dropping it lets go.
pub trait VfsLock: Send + Sync + fmt::Debug {}

/// Whether the disk, or what this user may take of it, is full.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an operation failed only because the process or the machine was short of descriptors or memory, or because of
/// a signal: EMFILE, ENFILE, ENOMEM, EINTR.
pub fn is_passing(error: &io::Error) -> bool {
    const CODES: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR];
    match error.raw_os_error() {
        Some(code) => CODES.iter().any(|passing| passing.raw_os_error() == code),
        None => matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::OutOfMemory),
    }
}

/// What a sync reports that failed with `error`: what is durable is unknown, whatever the reason, so it never passes for
/// an error that [`is_passing`].
pub(super) fn failed_sync(error: io::Error) -> io::Error {
    if is_passing(&error) { io::Error::other(format!("the sync failed: {error}")) } else { error }
}

/// Replaces a small file atomically and durably: a temporary name, a sync, a rename, a sync of the directory.
pub fn replace_file(fs: &dyn Vfs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = path.with_extension("tmp");
    if fs.exists(&temporary)? {
        fs.remove(&temporary)?; // left by a crash
    }
    let file = fs.create(&temporary)?;
    file.append(bytes)?;
    file.sync()?;
    fs.rename(&temporary, path)?;
    fs.sync_dir(dir)
}

/// Removes a directory and all that is in it. Not durable before a `sync_dir` of the one above.
pub fn remove_tree(fs: &dyn Vfs, dir: &Path) -> io::Result<()> {
    for name in fs.list(dir)? {
        let path = dir.join(name);
        match fs.list(&path) {
            Ok(_) => remove_tree(fs, &path)?,
            Err(_) => fs.remove(&path)?,
        }
    }
    fs.remove_dir(dir)
}

/// Reads a small file whole.
pub fn read_file(fs: &dyn Vfs, path: &Path) -> io::Result<Vec<u8>> {
    let file = fs.open(path)?;
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(|_| io::ErrorKind::InvalidData)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
