//! The real file system of a Unix machine.
//!
//! What fails for a want of descriptors or memory that may pass is tried again, for a tenth of a second. Longer shortages
//! are reported, and their callers decide.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // here is where the disk comes in

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, StatVfsMountFlags, flock, statvfs};

use super::vfs::{Vfs, VfsFile, VfsLock, failed_sync, is_passing};

/// This machine's disks. Files are made readable by their owner alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskVfs;

#[derive(Debug)]
struct DiskFile {
    file: File,
}

#[derive(Debug)]
struct DiskLock {
    /// Holds the lock until it is closed.
    _file: File,
}

/// How long to wait before each further try of what failed in passing; 107 ms in all.
const PAUSES_MS: [u64; 5] = [1, 3, 10, 30, 63];

/// Tries again what failed in passing.
fn patiently<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for pause in PAUSES_MS {
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {} // a signal, and no shortage
            Err(error) if is_passing(&error) => std::thread::sleep(Duration::from_millis(pause)),
            done => return done,
        }
    }
    operation()
}

/// How much is written at once when a file is filled with zeros.
const ZEROS: &[u8] = &[0; 256 * 1024];

impl Vfs for DiskVfs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = patiently(|| options.open(path))?;
        Ok(Arc::new(DiskFile { file }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(DiskFile { file: patiently(|| File::open(path))? }))
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let file = patiently(|| OpenOptions::new().read(true).write(true).open(path))?;
        Ok(Arc::new(DiskFile { file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        patiently(|| std::fs::rename(from, to))
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        patiently(|| std::fs::hard_link(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        patiently(|| std::fs::remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let names: io::Result<Vec<_>> = patiently(|| std::fs::read_dir(dir))?
            .map(|entry| {
                let name = entry?.file_name();
                name.into_string().map_err(|_| io::Error::other("a file name that is not UTF-8"))
            })
            .collect();
        let mut names = names?;
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        patiently(|| File::open(dir))?.sync_all().map_err(failed_sync)
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let stat = statvfs(path)?;
        if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = patiently(|| options.open(path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(DiskLock { _file: file }))
    }
}

impl VfsFile for DiskFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match patiently(|| self.file.read_at(&mut buf[done..], offset + done as u64))? {
                0 => break,
                read => done += read,
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        patiently(|| self.file.write_all_at(bytes, offset)) // the same bytes to the same place
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        // One appender a file, as everywhere here; O_APPEND would make write_at append too.
        self.write_at(bytes, self.len()?)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(failed_sync) // fdatasync: the length is data enough to be synced with it
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        // Written, not only reserved: a sync that turns reserved blocks into written ones costs half as much again.
        let mut at = self.len()?;
        while at < len {
            let step = (len - at).min(ZEROS.len() as u64);
            self.write_at(&ZEROS[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

impl VfsLock for DiskLock {}
