//! Duplicate: a second directory of the same content, made from one that no engine has open.
//!
//! ```text
//! tables            never change: linked, or copied where a link cannot be
//! logs, manifest    may be written to: copied
//! CURRENT           last: without it there is no engine
//! ```

use std::io;
use std::path::Path;

use super::version::manifest::{self, ManifestFile, manifest_path};
use super::version::set::Replayed;
use super::{Checkpoint, Error, read_only, recovery, wal};
use crate::engine::sst::table_path;
use crate::env::vfs::{read_file, replace_file};
use crate::env::{Env, Vfs};

/// Bytes copied at a time.
const COPY_STEP: usize = 1 << 20;

/// Makes `to`, which must be empty or not exist, hold what `from` holds. Durable. Blocks.
///
/// # Errors
/// `Locked`, `Corruption` when the manifest cannot be read, `Io`. Tables are not looked into: [`super::verify`] does.
pub fn duplicate(env: &Env, from: &Path, to: &Path) -> Result<Checkpoint, Error> {
    let _lock = read_only::lock(env, from)?;
    let fs = &*env.fs;
    let number = manifest::read_current(fs, from)?.ok_or_else(|| {
        Error::corruption(from.join("CURRENT"), 0, "it is missing: there is no engine here")
    })?;
    let path = manifest_path(from, number);
    let bytes = read_file(fs, &path).map_err(|error| Error::io("read", &path, error))?;
    let file = ManifestFile::parse(&bytes, Some(number));
    if let Some((offset, detail)) = file.damage {
        return Err(Error::corruption(path, offset, detail));
    }
    let replayed = Replayed::of(file.edits.into_iter().map(|(_, edit)| edit).collect());
    fs.create_dir_all(to).map_err(|error| Error::io("make directory", to, error))?;
    let mut done = Checkpoint::default();
    for meta in replayed.tables.values() {
        link(fs, &table_path(from, meta.number), &table_path(to, meta.number))?;
        done.tables += 1;
        done.bytes += meta.size;
        done.records += meta.entries;
        done.tombstones += meta.tombstones;
    }
    for log in recovery::list_logs(env, from)?.into_iter().filter(|log| *log >= replayed.log_number) {
        copy(fs, &from.join(wal::file_name(log)), &to.join(wal::file_name(log)))?;
    }
    copy(fs, &path, &manifest_path(to, number))?;
    fs.sync_dir(to).map_err(|error| Error::io("sync directory", to, error))?;
    let current = read_file(fs, &from.join("CURRENT")).map_err(|error| Error::io("read", from, error))?;
    replace_file(fs, &to.join("CURRENT"), &current).map_err(|error| Error::io("write", to, error))?;
    Ok(done)
}

fn link(fs: &dyn Vfs, from: &Path, to: &Path) -> Result<(), Error> {
    match fs.hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::io("link", to, error)),
        Err(_) => copy(fs, from, to), // another file system, or one without links
    }
}

fn copy(fs: &dyn Vfs, from: &Path, to: &Path) -> Result<(), Error> {
    let copied = || {
        let (source, target) = (fs.open(from)?, fs.create(to)?);
        let mut buf = vec![0; COPY_STEP];
        let mut at = 0;
        loop {
            let read = source.read_at(&mut buf, at)?;
            if read == 0 {
                return target.sync();
            }
            target.write_at(&buf[..read], at)?;
            at += read as u64;
        }
    };
    copied().map_err(|error: io::Error| Error::io("copy", from, error))
}
