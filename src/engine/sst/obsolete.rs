//! `ObsoleteTables`: table files that a compaction replaced, waiting to be closed and removed in the background.
//!
//! ```text
//! compaction installs ──► table marked obsolete ──last user lets go──► here ──background job──► closed, removed
//!                                                 (often a reader)
//! ```
//!
//! Closing the last handle of a file and removing its name can take milliseconds: the file system frees the blocks
//! then. The last user of a table is often a reader that must not wait for a disk, so a reader only puts the
//! file here, and whoever runs in the background removes what has gathered.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::env::{Vfs, VfsFile};

/// Files that nobody reads any more. All methods may be called from any thread.
#[derive(Debug, Default)]
pub struct ObsoleteTables {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    files: Vec<(PathBuf, Option<Arc<dyn VfsFile>>)>,
    /// The directory is not ours any more: nothing in it is removed.
    is_closed: bool,
}

impl ObsoleteTables {
    /// Takes over a file that is to be removed, and its last handle if it is open. Does no I/O while the engine is open.
    pub(super) fn push(&self, path: PathBuf, file: Option<Arc<dyn VfsFile>>) {
        let mut waiting = self.waiting.lock();
        if !waiting.is_closed {
            waiting.files.push((path, file));
        }
    }

    /// Whether a file is waiting.
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().files.is_empty()
    }

    /// Closes and removes the files that are waiting. Blocks on the disk: for background threads.
    pub fn remove_all(&self, fs: &dyn Vfs) {
        let files = std::mem::take(&mut self.waiting.lock().files);
        remove(fs, files);
    }

    /// Removes the files that are waiting. Files that come later are orphans, which the next opening removes: another
    /// engine may own the directory by then.
    pub fn close(&self, fs: &dyn Vfs) {
        let files = {
            let mut waiting = self.waiting.lock();
            waiting.is_closed = true;
            std::mem::take(&mut waiting.files)
        };
        remove(fs, files);
    }
}

fn remove(fs: &dyn Vfs, files: Vec<(PathBuf, Option<Arc<dyn VfsFile>>)>) {
    for (path, file) in files {
        drop(file);
        let _ = fs.remove(&path); // what stays is an orphan, and removed by the next opening
    }
}
