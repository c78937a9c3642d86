//! The engine's files, one by one, for those who check or show them. Their names say what they are, or, where a file has
//! another name, their bytes do. What is damaged is read as far as it goes.
//!
//! ```text
//! NNNNNN.sst, else last 8 bytes "kvsstabl"             a table       table
//! NNNNNN.log, else an opening frame at the start       a log         log
//! first 8 bytes "kvsmanif"                             a manifest    version::manifest
//! "MANIFEST-" at the start                             CURRENT
//! ```
//!
//! The name comes first because the end of a log, and the beginning of a table, may hold bytes that a client chose.

pub mod log;
pub mod table;

use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use super::version::manifest::ManifestFile;
use super::version::set::table_number;
pub use log::LogFile;
pub use table::TableFile;

use super::{Error, wal};
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
    /// Opens a file as what its name or its bytes say it is; `None` if that is no file of an engine. Blocks.
    ///
    /// # Errors
    /// `Io`. Damage is no error here: it is told in what is returned.
    pub fn open(env: &Env, path: &Path) -> Result<Option<Self>, Error> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let named_log = wal::parse_file_name(name);
        if named_log.is_none()
            && let Some(table) = TableFile::open(&env.fs, path)?
            && (table.has_magic() || table_number(name).is_some())
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
        Ok(LogFile::number_in(&bytes)
            .or(named_log)
            .map(|number| Self::Log(LogFile::read(number, &bytes, None))))
    }
}
