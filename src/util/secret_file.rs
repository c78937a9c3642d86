//! Files that hold a secret: read whole, within a bound, and only where others may not read them.
#![allow(clippy::disallowed_methods)] // secrets are read before there is an Env to read them through, and for no part of it

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Reads a file of at most `len_max` bytes that may hold a secret.
///
/// # Errors
/// The rest of a sentence: it cannot be read, is no file, is too large, or everyone on this machine may use it.
pub fn read(path: &Path, len_max: u64) -> Result<Vec<u8>, String> {
    read_if(path, len_max, |mode| match mode & 0o007 {
        0 => Ok(()),
        _ => Err(format!("everyone on this machine may use it (mode {mode:03o}); chmod 600 it")),
    })
}

/// Reads a file of at most `len_max` bytes that everyone may know.
///
/// # Errors
/// As [`read`], but for who may use it.
pub fn read_public(path: &Path, len_max: u64) -> Result<Vec<u8>, String> {
    read_if(path, len_max, |_| Ok(()))
}

fn read_if(path: &Path, len_max: u64, check: impl Fn(u32) -> Result<(), String>) -> Result<Vec<u8>, String> {
    // Before it is opened: opening a pipe would wait for somebody who writes into it.
    let is_file = std::fs::metadata(path).map_err(|error| error.to_string())?.is_file();
    if !is_file {
        return Err("it is no file".to_owned());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    check(metadata.mode() & 0o777)?;
    let mut content = Vec::new();
    file.take(len_max + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() as u64 > len_max {
        return Err(format!("it has more than {len_max} bytes"));
    }
    Ok(content)
}
