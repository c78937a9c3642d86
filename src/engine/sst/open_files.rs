//! `OpenFiles`: the files of tables that are open, bounded in number.
//!
//! A table's file is opened when a block is read from it, and stays open until others were used more recently. So the number
//! of tables is not bounded by the descriptors that the process may have.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::env::VfsFile;

/// Open files by the numbers of their tables. All methods may be called from any thread.
#[derive(Debug)]
pub struct OpenFiles {
    /// At least one. Readers at work may hold a few more for a moment.
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, OpenFile>,
    /// Counts uses.
    now: u64,
}

#[derive(Debug)]
struct OpenFile {
    file: Arc<dyn VfsFile>,
    used: u64,
}

impl OpenFiles {
    /// At most `max` files.
    pub fn new(max: usize) -> Self {
        Self { max: max.max(1), state: Mutex::default() }
    }

    /// The file of table `number`; `open` is called if it is not open, and may wait for a disk.
    pub fn get(
        &self,
        number: u64,
        open: impl FnOnce() -> io::Result<Arc<dyn VfsFile>>,
    ) -> io::Result<Arc<dyn VfsFile>> {
        {
            let state = &mut *self.state.lock();
            state.now += 1;
            if let Some(found) = state.files.get_mut(&number) {
                found.used = state.now;
                return Ok(found.file.clone());
            }
        }
        let file = open()?;
        self.keep(number, file.clone());
        Ok(file)
    }

    /// Keeps a file that was just opened.
    pub fn keep(&self, number: u64, file: Arc<dyn VfsFile>) {
        let mut closed = Vec::new(); // outside the lock: closing a file may take long
        {
            let state = &mut *self.state.lock();
            state.now += 1;
            closed.extend(state.files.insert(number, OpenFile { file, used: state.now }));
            while state.files.len() > self.max {
                let oldest = state.files.iter().min_by_key(|(_, open)| open.used).map(|(number, _)| *number);
                closed.extend(oldest.and_then(|number| state.files.remove(&number)));
            }
        }
        drop(closed);
    }

    /// Gives up the file of a table that will not be read any more, if it is open: the caller closes it.
    pub fn take(&self, number: u64) -> Option<Arc<dyn VfsFile>> {
        self.state.lock().files.remove(&number).map(|open| open.file)
    }

    /// How many are open.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.state.lock().files.len()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::env::{MemVfs, Vfs as _};

    #[test]
    fn the_file_used_longest_ago_is_closed_and_opened_again_when_it_is_needed() {
        let fs = MemVfs::new();
        let path = |number: u64| PathBuf::from(format!("/{number}"));
        for number in 1..=4 {
            fs.create(&path(number)).unwrap();
        }
        let files = OpenFiles::new(2);
        let opened = std::cell::Cell::new(0);
        let get = |number| {
            files.get(number, || {
                opened.set(opened.get() + 1);
                fs.open(&path(number))
            })
        };
        for number in [1, 2, 1, 3, 1] {
            get(number).unwrap();
        }
        assert_eq!((opened.get(), files.len()), (3, 2), "1 was used more recently than 2");
        get(2).unwrap();
        assert_eq!((opened.get(), files.len()), (4, 2));
        assert!(files.take(2).is_some() && files.take(2).is_none());
        assert_eq!(files.len(), 1);
        fs.remove(&path(4)).unwrap();
        assert!(get(4).is_err());
        assert_eq!(files.len(), 1);
    }
}
