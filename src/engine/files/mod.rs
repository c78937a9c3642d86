//! The engine's files, one by one, for whoever checks or shows them: what they are is told by their bytes, not by their
//! names, and what is damaged is read as far as it goes.
//!
//! ```text
//! last 8 bytes "kvsstabl"                          a table       table
//! first 8 bytes "kvsmanif"                         a manifest    version::manifest
//! a frame that names its log and its own offset    a log         log
//! "MANIFEST-" at the start                         CURRENT
//! ```

pub mod log;
pub mod table;

use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use super::version::manifest::ManifestFile;
pub use log::LogFile;
pub use table::TableFile;

use super::Error;
use crate::env::Env;
use crate::env::vfs::read_file;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// In which file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What is wrong.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, byte {}: {}", self.path.display(), self.offset, self.detail)
    }
}

impl Finding {
    /// Something at a place in a file.
    pub fn new(path: impl Into<PathBuf>, offset: u64, detail: impl Into<String>) -> Self {
        Self { path: path.into(), offset, detail: detail.into() }
    }

    /// What an error says is wrong with a file.
    pub fn of(error: &Error, path: &Path) -> Self {
        match error {
            Error::Corruption { path, offset, detail } => Self::new(path, *offset, detail),
            Error::Io { op, path, source } => Self::new(path, 0, format!("cannot {op}: {source}")),
            other => Self::new(path, 0, other.to_string()),
        }
    }
}

/// A file of an engine.
#[derive(Debug)]
pub enum EngineFile {
    /// Sorted entries.
    Table(Box<TableFile>),
    /// A write-ahead log.
    Log(LogFile),
    /// A log of table sets.
    Manifest(ManifestFile),
    /// The text that names the manifest in force.
    Current(String),
}

impl EngineFile {
    /// Opens a file as what its bytes say it is; `None` when they are those of no file of an engine. Blocks.
    ///
    /// # Errors
    /// `Io`. Damage is no error here: it is told in what is returned.
    pub fn open(env: &Env, path: &Path) -> Result<Option<Self>, Error> {
        if let Some(table) = TableFile::open(&env.fs, path)?
            && table.has_magic()
        {
            return Ok(Some(Self::Table(Box::new(table))));
        }
        let bytes = Bytes::from(read_file(&*env.fs, path).map_err(|error| Error::io("read", path, error))?);
        if ManifestFile::is_one(&bytes) {
            return Ok(Some(Self::Manifest(ManifestFile::parse(&bytes, None))));
        }
        if bytes.starts_with(b"MANIFEST-") {
            return Ok(Some(Self::Current(String::from_utf8_lossy(&bytes).into_owned())));
        }
        Ok(LogFile::number_in(&bytes).map(|number| Self::Log(LogFile::read(number, &bytes, None))))
    }
}
