//! Files that hold a secret: read whole, within a bound, and only where others may not read them.
#![allow(clippy::disallowed_methods)] // secrets are read before there is an Env to read them through, and for no part of it

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// UTF-8's.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Who besides its owner and group may read a file that holds a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Readers {
    /// Nobody.
    #[default]
    OwnerAndGroup,
    /// Everyone, as where the secrets of a container are mounted with mode 0444. Nobody else may change it all the same.
    Everyone,
}

impl Readers {
    fn check(self, mode: u32) -> Result<(), String> {
        let refused = match self {
            Self::OwnerAndGroup => 0o007,
            Self::Everyone => 0o002,
        };
        match mode & refused {
            0 => Ok(()),
            0o004 => Err(format!(
                "everyone on this machine may use it (mode {mode:03o}); chmod 600 it, or set \
                 ALLOW_WORLD_READABLE_SECRETS=true where it is mounted like that, as by Docker and compose"
            )),
            _ => Err(format!("everyone on this machine may use it (mode {mode:03o}); chmod 600 it")),
        }
    }
}

/// Reads a file of at most `len_max` bytes that may hold a secret, without the byte-order mark that some editors put first.
///
/// # Errors
/// The rest of a sentence: it cannot be read, is not a regular file, is too large, or others than `readers` may use it.
pub fn read(path: &Path, len_max: u64, readers: Readers) -> Result<Vec<u8>, String> {
    read_if(path, len_max, |mode| readers.check(mode))
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
        return Err("it is not a regular file".to_owned());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    check(metadata.mode() & 0o777)?;
    let mut content = Vec::new();
    file.take(len_max + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() as u64 > len_max {
        return Err(format!("it has more than {len_max} bytes"));
    }
    if content.starts_with(BYTE_ORDER_MARK) {
        content.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn who_may_read_and_who_may_change_a_secret_are_told_apart() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read_with = |mode, readers| {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            read(file.path(), 100, readers)
        };
        for mode in [0o600, 0o640, 0o440, 0o660] {
            assert!(read_with(mode, Readers::OwnerAndGroup).is_ok(), "{mode:o}");
        }
        assert!(read_with(0o444, Readers::Everyone).is_ok());
        let problem = read_with(0o444, Readers::OwnerAndGroup).unwrap_err();
        assert!(
            problem.contains("(mode 444)") && problem.contains("ALLOW_WORLD_READABLE_SECRETS"),
            "{problem}"
        );
        let problem = read_with(0o666, Readers::Everyone).unwrap_err();
        assert_eq!(problem, "everyone on this machine may use it (mode 666); chmod 600 it");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}secret").unwrap();
        assert_eq!(read(file.path(), 100, Readers::Everyone).as_deref(), Ok(&b"secret"[..]));
        assert_eq!(read_public(file.path(), 100).as_deref(), Ok(&b"secret"[..]));
    }
}
