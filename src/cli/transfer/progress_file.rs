//! The progress of an import: how far into its file all is acknowledged, kept beside that file while it runs.
//!
//! ```text
//! FILE.progress    {"version":1,"target":"127.0.0.1:8081","bytes":73400320,"lines":612000,"written":611998,"skipped":2,"crc":…}
//! crc              CRC-32 of the 4 KiB before that place: another file under the same name does not pass for this one
//! ```
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the command line lives in the real world

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Ended;
use super::reader::Place;

const VERSION: u32 = 1;
/// Bytes before a place that are looked at, at most.
const LOOK_BACK: u64 = 4096;

/// How far an import has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    version: u32,
    /// Where to: with another target nothing has been written yet.
    pub target: String,
    bytes: u64,
    lines: u64,
    /// Lines written.
    pub written: u64,
    /// Bad lines skipped.
    pub skipped: u64,
    crc: u32,
}

impl Progress {
    /// Where the next line begins.
    pub fn place(&self) -> Place {
        Place { bytes: self.bytes, lines: self.lines }
    }
}

/// Where the progress of a file's import is kept.
pub fn path_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".progress");
    PathBuf::from(name)
}

/// Notes how far an import has come, durably enough: what is lost is written twice, which is harmless.
pub fn save(file: &Path, target: &str, place: Place, written: u64, skipped: u64) -> io::Result<()> {
    let crc = checksum(file, place.bytes)?;
    let Place { bytes, lines } = place;
    let progress =
        Progress { version: VERSION, target: target.to_owned(), bytes, lines, written, skipped, crc };
    let (path, text) = (path_of(file), serde_json::to_string(&progress)?);
    let temporary = path.with_extension("progress.tmp");
    let mut out = File::create(&temporary)?;
    writeln!(out, "{text}")?;
    out.sync_data()?;
    std::fs::rename(temporary, path)
}

/// What was noted; `None` where nothing is.
///
/// # Errors
/// The note is of another file, or of an import to somewhere else: resuming would leave lines out.
pub fn load(file: &Path, target: &str) -> Result<Option<Progress>, Ended> {
    let path = path_of(file);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Ended::io("cannot read", &path, &error)),
    };
    let wrong = |what: String| {
        Ended::Usage(format!("{}: {what}; without --resume all is imported anew", path.display()))
    };
    let progress: Progress =
        serde_json::from_str(&text).map_err(|error| wrong(format!("not a note of progress: {error}")))?;
    if progress.version != VERSION {
        return Err(wrong("made by another version".to_owned()));
    }
    if progress.target != target {
        return Err(wrong(format!("it is of an import to {}, not to {target}", progress.target)));
    }
    if checksum(file, progress.bytes).ok() != Some(progress.crc) {
        return Err(wrong(format!("{} has changed since", file.display())));
    }
    Ok(Some(progress))
}

/// Takes the note away once all is imported.
pub fn remove(file: &Path) {
    let _ = std::fs::remove_file(path_of(file)); // a note that stays says that all was imported
}

/// CRC-32 of the bytes before a place.
fn checksum(file: &Path, before: u64) -> io::Result<u32> {
    let mut file = File::open(file)?;
    let begin = before.saturating_sub(LOOK_BACK);
    let mut bytes = vec![0; (before - begin) as usize];
    file.seek(SeekFrom::Start(begin))?;
    file.read_exact(&mut bytes)?;
    Ok(crc32fast::hash(&bytes))
}
