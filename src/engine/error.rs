//! Why the engine could not do what it was asked.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::env::vfs::{is_no_space, is_passing};

/// Why the storage engine could not do what it was asked. Cheap to clone: a group of writers shares one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused. A read may be retried; after a write, see [`Error::Poisoned`].
    #[error("{op} {}", .path.display())]
    Io {
        /// What was being done.
        op: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Bytes read back are not bytes we wrote. Never retried: serve the key from another replica.
    #[error("corrupt {}, byte {offset}: {detail}", .path.display())]
    Corruption {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// An earlier write or sync failed, so what is durable is unknown. Writes stay refused until a reopen.
    #[error("engine is read-only: an earlier write or sync failed")]
    Poisoned,
    /// Too little space is free to flush and compact what would be written (`engine::space`). Nothing was written; writes
    /// resume by themselves.
    #[error("out of space: {free} bytes free, {needed} needed")]
    NoSpace {
        /// Bytes free.
        free: u64,
        /// Bytes that must be free.
        needed: u64,
    },
    /// Compaction is behind and the queue of writers is full. Nothing was written; try again later.
    #[error("compaction is behind: {queued} bytes are waiting to be written")]
    Busy {
        /// Bytes waiting.
        queued: usize,
    },
    /// Another process has the directory open.
    #[error("{} is in use by another process", .path.display())]
    Locked {
        /// Which directory.
        path: PathBuf,
    },
    /// The engine was closed.
    #[error("engine is closed")]
    Closed,
}

impl Error {
    /// Wraps what the system said about a file.
    pub fn io(op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { op, path: path.into(), source: Arc::new(source) }
    }

    /// Reports bytes that are not what was written.
    pub fn corruption(path: impl Into<PathBuf>, offset: u64, detail: impl Into<String>) -> Self {
        Self::Corruption { path: path.into(), offset, detail: detail.into() }
    }

    /// Whether nothing was done, and it may be possible a moment later: the process was short of descriptors, say.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Busy { .. } => true,
            Self::Io { source, .. } => is_passing(source),
            _ => false,
        }
    }

    /// Whether what failed left nothing in doubt, so that it may be tried again. (Operations that sync are named so.)
    pub fn is_clean(&self) -> bool {
        let is_sync = matches!(self, Self::Io { op, .. } if op.starts_with("sync"));
        (self.is_no_space() || self.is_passing()) && !is_sync
    }

    /// Whether a full disk refused something before anything became doubtful: no sync failed, and what the refused
    /// operation left behind may be overwritten or removed. (Operations that sync are named so.)
    pub fn is_clean_no_space(&self) -> bool {
        self.is_no_space() && !matches!(self, Self::Io { op, .. } if op.starts_with("sync"))
    }

    /// The error and what the system said, in one line.
    pub fn with_source(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            other => other.to_string(),
        }
    }

    /// Names what was being done while another operation failed.
    #[must_use]
    pub fn during(self, op: &'static str) -> Self {
        match self {
            Self::Io { path, source, .. } => Self::Io { op, path, source },
            other => other,
        }
    }

    /// Whether what was read is lost: it is not what was written, or the disk cannot read the place.
    pub fn is_damage(&self) -> bool {
        const EIO: i32 = 5;
        match self {
            Self::Corruption { .. } => true,
            Self::Io { source, .. } => source.raw_os_error() == Some(EIO),
            _ => false,
        }
    }

    /// Whether the disk is full: nothing is wrong with it, and it may have room later.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } => is_no_space(source),
            _ => false,
        }
    }
}
