//! File: `node.log`, bounded by rotation.
//!
//! ```text
//! node.log would pass LOG_MAX_SIZE:  node.log.1 -> node.log.2 …  node.log -> node.log.1  a new node.log
//!                                    beyond LOG_MAX_FILES old ones the oldest goes
//! ```
//!
//! A log file belongs to operators: others may rename or remove it at any time, and a SIGHUP then makes a new one.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the command line is where the real world begins

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::lane::Sink;

/// A file of lines that is renamed away before it grows beyond a bound.
pub struct RotatedFile {
    path: PathBuf,
    file: File,
    /// Bytes in `file`.
    len: u64,
    len_max: u64,
    /// How many old files stay.
    old_max: u32,
}

impl RotatedFile {
    /// Opens a file to append to, or makes it.
    pub fn open(path: PathBuf, len_max: u64, old_max: u32) -> io::Result<Self> {
        let (file, len) = open(&path)?;
        Ok(Self { path, file, len, len_max, old_max })
    }

    /// Renames the old files and this one out of the way, and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        match self.old_max {
            0 => ignore_missing(fs::remove_file(&self.path))?,
            old_max => {
                for number in (1..old_max).rev() {
                    ignore_missing(fs::rename(self.old(number), self.old(number + 1)))?;
                }
                ignore_missing(fs::rename(&self.path, self.old(1)))?;
            }
        }
        self.reopen()
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Sink for RotatedFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let len = lines.len() as u64;
        if self.len > 0 && self.len + len > self.len_max && self.rotate().is_err() {
            // A log that cannot be rotated is still better than none. Tried again after as many bytes.
            self.len = 0;
        }
        self.len += len;
        self.file.write_all(lines)
    }

    fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.len) = open(&self.path)?;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path, name: &str) -> Option<String> {
        fs::read_to_string(dir.join(name)).ok()
    }

    #[test]
    fn a_full_file_is_renamed_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatedFile::open(dir.path().join("node.log"), 10, 2).unwrap();
        for number in 0..5 {
            log.write(format!("line {number}\n").as_bytes()).unwrap(); // 7 bytes: one a file
        }
        let dir = dir.path();
        assert_eq!(read(dir, "node.log").as_deref(), Some("line 4\n"));
        assert_eq!(read(dir, "node.log.1").as_deref(), Some("line 3\n"));
        assert_eq!(read(dir, "node.log.2").as_deref(), Some("line 2\n"));
        assert_eq!(read(dir, "node.log.3"), None);
    }

    #[test]
    fn without_old_files_the_log_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatedFile::open(dir.path().join("node.log"), 10, 0).unwrap();
        log.write(b"line 1\n").unwrap();
        log.write(b"line 2\n").unwrap();
        assert_eq!(read(dir.path(), "node.log").as_deref(), Some("line 2\n"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_an_earlier_run_wrote_counts_and_one_large_line_is_written_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        fs::write(&path, "12345\n").unwrap();
        let mut log = RotatedFile::open(path, 10, 1).unwrap();
        log.write(b"a line of more than ten bytes\n").unwrap();
        assert_eq!(read(dir.path(), "node.log.1").as_deref(), Some("12345\n"));
        assert_eq!(read(dir.path(), "node.log").as_deref(), Some("a line of more than ten bytes\n"));
    }

    #[test]
    fn a_file_that_somebody_renamed_is_written_to_until_it_is_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        let mut log = RotatedFile::open(path.clone(), 1000, 1).unwrap();
        log.write(b"1\n").unwrap();
        fs::rename(&path, dir.path().join("mine")).unwrap();
        log.write(b"2\n").unwrap();
        log.reopen().unwrap();
        log.write(b"3\n").unwrap();
        assert_eq!(read(dir.path(), "mine").as_deref(), Some("1\n2\n"));
        assert_eq!(read(dir.path(), "node.log").as_deref(), Some("3\n"));
    }

    #[test]
    fn a_log_that_cannot_be_rotated_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatedFile::open(dir.path().join("node.log"), 10, 1).unwrap();
        fs::create_dir_all(dir.path().join("node.log.1/in-the-way")).unwrap();
        log.write(b"line 1\n").unwrap();
        log.write(b"line 2\n").unwrap();
        assert_eq!(read(dir.path(), "node.log").as_deref(), Some("line 1\nline 2\n"));
    }
}
