//! The manifest: a log of edits, and `CURRENT`, the small file that names it.
//!
//! ```text
//! CURRENT           "MANIFEST-000005 1a2b3c4d\n"        name, then the CRC-32 of the name in hex
//! MANIFEST-000005   header │ frame: all tables │ frame: an edit │ …
//! header            magic u64 │ format version u32 │ number u64 │ salt u64 │ CRC-32 u32
//! frame             length u32 │ CRC-32 u32 │ salt u64 │ edit      the CRC covers number, offset, salt and edit
//! ```
//!
//! Edits hold keys, which clients choose, and opening searches what lies behind a bad frame for a whole one. The salt, 64
//! random bits per manifest, keeps bytes of a key from being found there. Version 1 had none; it is still read.
//!
//! Every frame is synced before the next is written, and header and first frame before `CURRENT` names the file.
//! So a bad frame with no good one behind it is a crash's torn tail and is cut, and any other is damage. A
//! manifest is never taken up again after a restart: opening writes a new one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BufMut;

use super::VersionEdit;
use crate::engine::Error;
use crate::env::vfs::read_file;
use crate::env::{Env, Mistake, Planted, Vfs, VfsFile};
use crate::util::coding::{DecodeError, Reader};

/// The first eight bytes of a manifest.
const MAGIC: u64 = u64::from_le_bytes(*b"kvsmanif");
/// What this version writes.
const FORMAT_VERSION: u32 = 2;
/// Read, and not written any more: without a salt.
const FORMAT_VERSION_UNSALTED: u32 = 1;
const CURRENT: &str = "CURRENT";
const PREFIX: &str = "MANIFEST-";

/// The name of manifest `number`.
pub fn manifest_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number:06}"))
}

/// The number of a manifest's file name, if it is one.
pub fn manifest_number(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// The end of the current manifest, where edits are appended.
#[derive(Debug)]
pub struct ManifestWriter {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    form: Form,
    len: u64,
    planted: Planted,
}

/// What distinguishes the frames of one manifest from all other bytes.
#[derive(Debug, Clone, Copy)]
struct Form {
    number: u64,
    /// Absent in version 1.
    salt: Option<u64>,
}

impl Form {
    fn header_len(self) -> usize {
        if self.salt.is_some() { 32 } else { 24 }
    }

    fn frame_head_len(self) -> usize {
        if self.salt.is_some() { 16 } else { 8 }
    }

    fn frame_crc(self, offset: u64, body: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.number.to_le_bytes());
        crc.update(&offset.to_le_bytes());
        if let Some(salt) = self.salt {
            crc.update(&salt.to_le_bytes());
        }
        crc.update(body);
        crc.finalize()
    }

    fn put_frame(self, out: &mut Vec<u8>, offset: u64, edit: &VersionEdit) {
        let mut body = Vec::new();
        edit.encode(&mut body);
        out.put_u32_le(body.len() as u32);
        out.put_u32_le(self.frame_crc(offset, &body));
        if let Some(salt) = self.salt {
            out.put_u64_le(salt);
        }
        out.extend_from_slice(&body);
    }

    /// The body of the frame at `offset`, if salt and checksum are right.
    fn frame_at(self, bytes: &[u8], offset: usize) -> Option<&[u8]> {
        let mut reader = Reader::new(bytes.get(offset..)?);
        let (len, crc) = (reader.u32().ok()?, reader.u32().ok()?);
        if self.salt.is_some_and(|salt| reader.u64() != Ok(salt)) {
            return None;
        }
        let body = reader.take(len as usize).ok()?;
        (!body.is_empty() && self.frame_crc(offset as u64, body) == crc).then_some(body)
    }
}

impl ManifestWriter {
    /// Makes manifest `number`, which begins with `snapshot`: all tables there are. Durable, but not current.
    pub fn create(env: &Env, dir: &Path, number: u64, snapshot: &VersionEdit) -> Result<Self, Error> {
        let path = manifest_path(dir, number);
        let file = env.fs.create(&path).map_err(|error| Error::io("create", &path, error))?;
        let salt = env.rng.secret_u64();
        let form = Form { number, salt: Some(salt) };
        let mut bytes = Vec::new();
        bytes.put_u64_le(MAGIC);
        bytes.put_u32_le(FORMAT_VERSION);
        bytes.put_u64_le(number);
        bytes.put_u64_le(salt);
        let crc = crc32fast::hash(&bytes);
        bytes.put_u32_le(crc);
        form.put_frame(&mut bytes, form.header_len() as u64, snapshot);
        let mut writer = Self { file, path, form, len: 0, planted: env.planted };
        writer.append_bytes(&bytes)?;
        sync_dir(env, dir)?;
        Ok(writer)
    }

    /// Appends an edit and syncs.
    ///
    /// # Errors
    /// After an [`Error::is_clean`] the edit is not there, and the next one is written over what was begun of it.
    /// Otherwise whether it is durable is unknown: nothing may be appended any more.
    pub fn append(&mut self, edit: &VersionEdit) -> Result<(), Error> {
        let mut bytes = Vec::new();
        self.form.put_frame(&mut bytes, self.len, edit);
        self.append_bytes(&bytes)
    }

    fn append_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_at(bytes, self.len).map_err(|error| Error::io("write", &self.path, error))?;
        if !self.planted.has(Mistake::ManifestNotSynced) || self.len == 0 {
            self.file.sync().map_err(|error| Error::io("sync", &self.path, error))?;
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a manifest begins with a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Names the file.
    pub fn number(&self) -> u64 {
        self.form.number
    }
}

/// Reads the edits of manifest `number`, the first of which is its snapshot. A torn tail is left out.
pub fn read(fs: &dyn Vfs, dir: &Path, number: u64) -> Result<Vec<VersionEdit>, Error> {
    let path = manifest_path(dir, number);
    let damaged = |offset: usize, detail: &str| Error::corruption(&path, offset as u64, detail);
    let bytes = read_file(fs, &path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged(0, "the manifest is missing"),
        _ => Error::io("read", &path, error),
    })?;
    let file = ManifestFile::parse(&bytes, Some(number));
    match file.damage {
        Some((offset, detail)) => Err(Error::corruption(&path, offset, detail)),
        None => Ok(file.edits.into_iter().map(|(_, edit)| edit).collect()),
    }
}

/// A manifest taken apart, as far as it is whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManifestFile {
    /// Which manifest it says it is.
    pub number: u64,
    /// Its edits, each with the offset of its frame; the first is its snapshot.
    pub edits: Vec<(u64, VersionEdit)>,
    /// Where the tail begins that a crash cut short, if one did.
    pub torn_at: Option<u64>,
    /// Where damage begins, and what it is. Nothing behind it is read.
    pub damage: Option<(u64, String)>,
}

impl ManifestFile {
    /// Whether bytes begin as a manifest does.
    pub fn is_one(head: &[u8]) -> bool {
        head.starts_with(&MAGIC.to_le_bytes())
    }

    /// Takes a manifest apart, which is to be this one if a number is given. Pure.
    pub fn parse(bytes: &[u8], number: Option<u64>) -> Self {
        let own = bytes.get(12..20).map_or(0, |at| u64::from_le_bytes(at.try_into().expect("eight bytes")));
        let number = number.unwrap_or(own);
        let mut file = Self { number, ..Self::default() };
        let form = match read_header(bytes, number) {
            Ok(form) => form,
            Err(detail) => {
                file.damage = Some((0, detail.to_owned()));
                return file;
            }
        };
        let mut offset = form.header_len();
        while offset < bytes.len() {
            let Some(body) = form.frame_at(bytes, offset) else {
                if (offset + 1..bytes.len()).any(|later| form.frame_at(bytes, later).is_some()) {
                    let detail = "a frame is damaged: a later one is whole".to_owned();
                    file.damage = Some((offset as u64, detail));
                } else {
                    file.torn_at = Some(offset as u64);
                }
                break;
            };
            match VersionEdit::decode(body) {
                Ok(edit) => file.edits.push((offset as u64, edit)),
                Err(error) => {
                    file.damage = Some((offset as u64, error.to_string()));
                    break;
                }
            }
            offset += form.frame_head_len() + body.len();
        }
        if file.edits.is_empty() && file.damage.is_none() {
            file.damage = Some((form.header_len() as u64, "the first frame is damaged".to_owned()));
        }
        file
    }
}

fn read_header(bytes: &[u8], number: u64) -> Result<Form, &'static str> {
    let mut reader = Reader::new(bytes);
    let mut begin = || Ok::<_, DecodeError>((reader.u64()?, reader.u32()?, reader.u64()?));
    let (magic, version, own_number) = begin().map_err(|_| "the manifest has no header")?;
    if magic != MAGIC {
        return Err("the file is not a manifest");
    }
    let salt = match version {
        FORMAT_VERSION => Some(reader.u64().map_err(|_| "the manifest has no header")?),
        FORMAT_VERSION_UNSALTED => None,
        _ => return Err("the manifest is of a format that this version does not know"),
    };
    let form = Form { number: own_number, salt };
    let crc = reader.u32().map_err(|_| "the manifest has no header")?;
    if crc != crc32fast::hash(&bytes[..form.header_len() - 4]) {
        return Err("the header does not match its checksum");
    }
    if own_number != number {
        return Err("the file is another manifest");
    }
    Ok(form)
}

/// Makes manifest `number` the current one, atomically and durably.
///
/// # Errors
/// Before the sync of the directory the old one is still current; after a failure of that sync it is unknown which is.
pub fn set_current(env: &Env, dir: &Path, number: u64) -> Result<(), Error> {
    let path = dir.join(CURRENT);
    let name = format!("{PREFIX}{number:06}");
    let text = format!("{name} {:08x}\n", crc32fast::hash(name.as_bytes()));
    replace_without_sync_dir(&*env.fs, &path, text.as_bytes())
        .map_err(|error| Error::io("replace", &path, error))?;
    sync_dir(env, dir)
}

fn replace_without_sync_dir(fs: &dyn Vfs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    if fs.exists(&temporary)? {
        fs.remove(&temporary)?; // left by a crash
    }
    let file = fs.create(&temporary)?;
    file.append(bytes)?;
    file.sync()?;
    fs.rename(&temporary, path)
}

/// The number of the current manifest; `None` in a new directory.
pub fn read_current(fs: &dyn Vfs, dir: &Path) -> Result<Option<u64>, Error> {
    let path = dir.join(CURRENT);
    let bytes = match read_file(fs, &path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let parsed = std::str::from_utf8(&bytes).ok().and_then(|text| {
        let (name, crc) = text.strip_suffix('\n')?.split_once(' ')?;
        (crc == format!("{:08x}", crc32fast::hash(name.as_bytes()))).then_some(name)
    });
    match parsed.and_then(manifest_number) {
        Some(number) => Ok(Some(number)),
        None => Err(Error::corruption(path, 0, "it does not name a manifest")),
    }
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(env: &Env, dir: &Path) -> Result<(), Error> {
    if env.planted.has(Mistake::DirectoryNotSynced) {
        return Ok(());
    }
    env.fs.sync_dir(dir).map_err(|error| Error::io("sync directory", dir, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sst::{Expiries, SstMeta};
    use crate::engine::version::Level;
    use crate::engine::version::edit::tests::any_edit;
    use crate::env::Rng;
    use crate::env::vfs_mem::MemVfs;
    use crate::types::Timestamp;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn dir() -> &'static Path {
        Path::new("/db")
    }

    fn env() -> Env {
        let mut env = Env::real();
        env.rng = Rng::from_seed(1);
        env.fs = Arc::new(MemVfs::new());
        env.fs.create_dir_all(dir()).unwrap();
        env
    }

    fn write(env: &Env, edits: &[VersionEdit]) -> Vec<u8> {
        let mut writer = ManifestWriter::create(env, dir(), 5, &edits[0]).unwrap();
        for edit in &edits[1..] {
            writer.append(edit).unwrap();
        }
        let bytes = read_file(&*env.fs, &manifest_path(dir(), 5)).unwrap();
        assert_eq!(bytes.len() as u64, writer.len());
        bytes
    }

    fn replace(env: &Env, bytes: &[u8]) {
        let path = manifest_path(dir(), 5);
        env.fs.remove(&path).unwrap();
        env.fs.create(&path).unwrap().append(bytes).unwrap();
    }

    proptest! {
        #[test]
        fn of_a_manifest_cut_anywhere_the_whole_frames_are_read(
            edits in proptest::collection::vec(any_edit(), 1..5), cut in any::<prop::sample::Index>(),
            torn in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut edits = edits;
            for edit in &mut edits {
                edit.log_number.get_or_insert(1); // an edit without a field is never written
            }
            let env = env();
            let whole = write(&env, &edits);
            prop_assert_eq!(&read(&*env.fs, dir(), 5).unwrap(), &edits);
            let cut = cut.index(whole.len() + 1);
            replace(&env, &[&whole[..cut], &torn[..]].concat());
            match read(&*env.fs, dir(), 5) {
                Ok(kept) => prop_assert_eq!(&kept[..], &edits[..kept.len()]),
                Err(error) => {
                    prop_assert!(cut < whole.len(), "nothing was cut");
                    let is_corruption = matches!(error, Error::Corruption { .. });
                    prop_assert!(is_corruption);
                }
            }
        }
    }

    fn golden_edits() -> [VersionEdit; 2] {
        let meta = SstMeta {
            number: 300,
            size: 70_000,
            entries: 1000,
            tombstones: 7,
            oldest: Timestamp::from_u64(1),
            newest: Timestamp::from_u64(0x0102_0304_0506_0708),
            smallest: Bytes::from_static(b"apple"),
            largest: Bytes::from_static(b"plum"),
            expiries: Expiries::default(),
            content_bytes: 0,
        };
        let (l1, l2) = (Level::new(1).unwrap(), Level::new(2).unwrap());
        let first = VersionEdit {
            log_number: Some(4),
            next_file_number: Some(301),
            added: vec![(l1, meta.clone())],
            ..VersionEdit::default()
        };
        let second = VersionEdit {
            compact_pointers: vec![(l1, Bytes::from_static(b"plum"))],
            removed: vec![(l1, 300)],
            added: vec![(l2, meta)],
            ..VersionEdit::default()
        };
        [first, second]
    }

    #[test]
    fn the_bytes_of_a_manifest_are_those_of_format_version_2() {
        let bytes = write(&env(), &golden_edits());
        let mut text = String::new();
        for line in bytes.chunks(16) {
            text.extend(line.iter().map(|byte| format!("{byte:02x}")));
            text.push('\n');
        }
        let golden = include_str!("../../../tests/data/manifest_v2.hex");
        assert_eq!(text, golden, "a changed format needs a new version and keeps reading this one");
    }

    #[test]
    fn a_manifest_of_format_version_1_is_read() {
        let text: String = include_str!("../../../tests/data/manifest_v1.hex").split_whitespace().collect();
        let bytes: Vec<u8> =
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
        let file = ManifestFile::parse(&bytes, Some(5));
        assert_eq!((file.torn_at, file.damage), (None, None));
        assert_eq!(file.edits.into_iter().map(|(_, edit)| edit).collect::<Vec<_>>(), golden_edits());
    }

    /// A client knows a manifest's number, and where in it an edit will be that holds its key. It does not know the salt.
    #[test]
    fn a_frame_within_a_key_is_not_found_behind_an_edit_that_a_crash_cut_short() {
        let env = env();
        let begun = write(&env, &golden_edits());
        let edit = VersionEdit { log_number: Some(9), ..VersionEdit::default() };
        let filler = b"more of the key".repeat(4);
        // The key follows the heads of frame and edit, pointer tag, level, and its length in two bytes.
        let key_at = begun.len() as u64 + 16 + 4;
        for salt in [None, Some(0), Some(u64::MAX)] {
            let mut key = Vec::new();
            Form { number: 5, salt }.put_frame(&mut key, key_at, &edit);
            key.extend_from_slice(&filler);
            key.resize(200, b'x');
            let holds_key = VersionEdit {
                compact_pointers: vec![(Level::new(1).unwrap(), Bytes::from(key.clone()))],
                ..VersionEdit::default()
            };
            let own = read_header(&begun, 5).unwrap();
            let mut bytes = begun.clone();
            own.put_frame(&mut bytes, begun.len() as u64, &holds_key);
            assert_eq!(bytes[key_at as usize..][..key.len()], key[..], "the key is where its frame says");
            bytes.truncate(bytes.len() - 5);
            let file = ManifestFile::parse(&bytes, Some(5));
            assert_eq!((file.torn_at, file.damage), (Some(begun.len() as u64), None), "salt {salt:?}");
        }
    }

    #[test]
    fn current_reads_as_it_says() {
        let env = env();
        assert_eq!(read_current(&*env.fs, dir()).unwrap(), None);
        set_current(&env, dir(), 5).unwrap();
        let text = read_file(&*env.fs, &dir().join(CURRENT)).unwrap();
        assert_eq!(text, b"MANIFEST-000005 5d689b3a\n");
        assert_eq!(read_current(&*env.fs, dir()).unwrap(), Some(5));
    }
}
