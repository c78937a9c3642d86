//! Verify: every checksum of a stopped node's directory, or of a checkpoint, without changing a byte of it.

use std::io;
use std::path::Path;

use super::checkpoints::{self, MARKER};
use super::directory::{CLOCK, DATA, HINTS, IDENTITY};
use super::{StartError, directory, part};
use crate::engine::files::Finding;
use crate::engine::verify::Verified;
use crate::engine::{self, read_only};
use crate::env::Env;
use crate::hlc::keeper;
use crate::replication::identity::{self, Identity};

/// Checks a node's directory, a checkpoint, or one engine's directory; `progress` is told how many more bytes were
/// read, and how many there are in all as far as is known. Blocks.
///
/// # Errors
/// The directory is in use, is not there, or is none of ours. What is damaged is told in what is returned.
pub fn verify(env: &Env, dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified, StartError> {
    let exists = |name: &str| {
        env.fs.exists(&part(dir, name)).map_err(|source| directory::io_error("looking", dir, source))
    };
    if exists("CURRENT")? {
        return engine::verify::verify(env, dir, progress)
            .map_err(|error| directory::engine_error(dir, error));
    }
    if !exists(IDENTITY)? && !exists(DATA)? {
        let source = io::Error::new(io::ErrorKind::NotFound, "no data of a node is here");
        return Err(directory::io_error("looking", dir, source));
    }
    let _lock =
        read_only::lock(env, dir).map_err(|error| directory::engine_error(&part(dir, DATA), error))?;
    let mut verified = Verified::default();
    check_small_files(env, dir, exists(MARKER)?, &mut verified);
    for name in [DATA, HINTS] {
        let path = part(dir, name);
        if !exists(name)? {
            if name == DATA {
                verified.findings.push(Finding::new(path, 0, "it is missing"));
            }
            continue;
        }
        let before = verified.bytes;
        let of_part = engine::verify::verify(env, &path, &mut |more, total| progress(more, before + total))
            .map_err(|error| directory::engine_error(&path, error))?;
        verified.merge(of_part);
    }
    Ok(verified)
}

fn check_small_files(env: &Env, dir: &Path, is_checkpoint: bool, verified: &mut Verified) {
    let path = part(dir, IDENTITY);
    match Identity::read(env, &path) {
        Ok(_) => {}
        Err(identity::Error::Io { source, .. }) => {
            verified.findings.push(Finding::new(path, 0, format!("cannot be read: {source}")));
        }
        Err(identity::Error::Damaged { detail, .. }) => verified.findings.push(Finding::new(path, 0, detail)),
    }
    let path = part(dir, CLOCK);
    match keeper::slots(env, &path) {
        Ok([None, None]) => verified.findings.push(Finding::new(path, 0, "neither slot is whole")),
        Ok([Some(_), Some(_)]) => {}
        // The first mark of a new file stands in one slot, and the other is empty.
        Ok([first, second]) => {
            let only = first.or(second).map_or(0, |slot| slot.sequence);
            if only > 0 {
                verified.notes.push(format!(
                    "{}: one slot is not whole, as after a crash; the other one counts",
                    path.display()
                ));
            }
        }
        Err(error) => verified.findings.push(Finding::new(path, 0, format!("cannot be read: {error}"))),
    }
    if is_checkpoint && let Err(detail) = checkpoints::read(env, dir) {
        verified.findings.push(Finding::new(part(dir, MARKER), 0, detail));
    }
}
