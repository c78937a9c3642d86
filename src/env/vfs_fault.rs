//! Wraps any file system and fails the operations that a rule picks.
//!
//! Three uses: fail the k-th operation for every k, once or from then on; fail at random, from a seed; and halt,
//! after which nothing works any more, as for a process that the machine has left (what it had written and not
//! synced is then the inner file system's to lose).
//!
//! A sync that was made to fail stays a lie: later syncs of that file succeed and make nothing durable, as on
//! Linux, where the failed pages are dropped and marked clean (Rebello et al., "Can Applications Recover from
//! fsync Failures?", 2020). A new file under the same name is trusted again.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::vfs::{Vfs, VfsFile, VfsLock, failed_sync};

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // each is the method of its name
pub enum Op {
    Create,
    Open,
    OpenWrite,
    Rename,
    HardLink,
    Remove,
    RemoveDir,
    CreateDirAll,
    List,
    Exists,
    SyncDir,
    FreeSpace,
    Lock,
    ReadAt,
    WriteAt,
    Append,
    Sync,
    Allocate,
    Len,
}

impl Op {
    /// Whether it changes what is on disk, or makes it durable.
    pub fn is_change(self) -> bool {
        !matches!(self, Self::Open | Self::List | Self::Exists | Self::FreeSpace | Self::ReadAt | Self::Len)
    }

    /// Whether it makes something durable.
    pub fn is_sync(self) -> bool {
        matches!(self, Self::Sync | Self::SyncDir)
    }
}

/// An operation about to be done.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a> {
    /// What.
    pub op: Op,
    /// On which file; for a rename or a link, the old name.
    pub path: &'a Path,
    /// How many operations were done or failed before it.
    pub number: u64,
}

/// What is to happen to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Pass,
    /// It fails and has no effect.
    Fail(io::ErrorKind),
    /// The same, with an error number of the operating system: some, like EMFILE, have no kind.
    FailOs(i32),
    /// It fails, and so does every one after it: the process is gone.
    Halt,
}

/// How long a failure lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// The one operation fails.
    Once,
    /// So do all later ones of the same choice.
    Sticky,
    /// So does every later one: a crash at that moment.
    Halt,
}

/// Picks operations to fail.
pub type Rule = Box<dyn FnMut(&Operation<'_>) -> Verdict + Send>;

/// A file system whose operations can be made to fail. A clone is the same one.
#[derive(Clone)]
pub struct FaultVfs {
    inner: Arc<dyn Vfs>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    operations: u64,
    failures: u64,
    rule: Option<Rule>,
    halted: bool,
    /// Files of which a sync failed: later ones lie.
    untrusted: BTreeSet<PathBuf>,
}

struct FaultFile {
    inner: Arc<dyn VfsFile>,
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for FaultVfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultVfs over {:?}", self.inner)
    }
}

impl fmt::Debug for FaultFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultFile {}", self.path.display())
    }
}

impl FaultVfs {
    /// Wraps a file system; nothing fails yet.
    pub fn new(inner: Arc<dyn Vfs>) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// Puts a rule in place of the one before.
    pub fn set_rule(&self, rule: impl FnMut(&Operation<'_>) -> Verdict + Send + 'static) {
        self.state.lock().rule = Some(Box::new(rule));
    }

    /// From now on nothing fails, but for what is halted.
    pub fn clear_rule(&self) {
        self.state.lock().rule = None;
    }

    /// Fails the operation after `skipped` others among those `chosen` from now on, for `lasting`.
    pub fn fail_after(
        &self,
        skipped: u64,
        lasting: Lasting,
        chosen: impl Fn(&Operation<'_>) -> bool + Send + 'static,
    ) {
        self.fail_with(io::ErrorKind::Other, skipped, lasting, chosen);
    }

    /// Like [`FaultVfs::fail_after`], with an error of this kind.
    pub fn fail_with(
        &self,
        kind: io::ErrorKind,
        skipped: u64,
        lasting: Lasting,
        chosen: impl Fn(&Operation<'_>) -> bool + Send + 'static,
    ) {
        let mut seen = 0;
        self.set_rule(move |operation| {
            if !chosen(operation) {
                return Verdict::Pass;
            }
            seen += 1;
            match lasting {
                Lasting::Once if seen == skipped + 1 => Verdict::Fail(kind),
                Lasting::Sticky if seen > skipped => Verdict::Fail(kind),
                Lasting::Halt if seen > skipped => Verdict::Halt,
                _ => Verdict::Pass,
            }
        });
    }

    /// Every later operation fails: the process is gone.
    pub fn halt(&self) {
        self.state.lock().halted = true;
    }

    /// Whether every operation fails.
    pub fn is_halted(&self) -> bool {
        self.state.lock().halted
    }

    /// How many operations there were, failed ones among them.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// How many operations a rule failed.
    pub fn failures(&self) -> u64 {
        self.state.lock().failures
    }

    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        self.state.lock().before(op, path)
    }

    fn wrap(&self, path: &Path, inner: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        Arc::new(FaultFile { inner, path: path.to_owned(), state: self.state.clone() })
    }
}

impl State {
    fn before(&mut self, op: Op, path: &Path) -> io::Result<()> {
        let operation = Operation { op, path, number: self.operations };
        self.operations += 1;
        let verdict = match &mut self.rule {
            Some(rule) if !self.halted => rule(&operation),
            _ => Verdict::Pass,
        };
        self.halted |= verdict == Verdict::Halt;
        if self.halted {
            return Err(io::Error::other("halted"));
        }
        let error = match verdict {
            Verdict::Fail(kind) => io::Error::new(kind, "made to fail"),
            Verdict::FailOs(number) => io::Error::from_raw_os_error(number),
            Verdict::Pass | Verdict::Halt => return Ok(()),
        };
        self.failures += 1;
        if op == Op::Sync {
            self.untrusted.insert(path.to_owned());
        }
        // A directory is opened before it is synced, so that EMFILE and ENFILE mean that nothing was tried.
        let is_unopened = op == Op::SyncDir
            && [Errno::MFILE, Errno::NFILE]
                .iter()
                .any(|code| error.raw_os_error() == Some(code.raw_os_error()));
        Err(if op.is_sync() && !is_unopened { failed_sync(error) } else { error })
    }
}

impl Vfs for FaultVfs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.before(Op::Create, path)?;
        let file = self.inner.create(path)?;
        self.state.lock().untrusted.remove(path);
        Ok(self.wrap(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.before(Op::Open, path)?;
        Ok(self.wrap(path, self.inner.open(path)?))
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.before(Op::OpenWrite, path)?;
        Ok(self.wrap(path, self.inner.open_write(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Op::Rename, from)?;
        self.inner.rename(from, to)?;
        let untrusted = &mut self.state.lock().untrusted;
        untrusted.remove(to);
        if untrusted.remove(from) {
            untrusted.insert(to.to_owned());
        }
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Op::HardLink, from)?;
        self.inner.hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.before(Op::Remove, path)?;
        self.inner.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.before(Op::RemoveDir, path)?;
        self.inner.remove_dir(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.before(Op::CreateDirAll, path)?;
        self.inner.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.before(Op::List, dir)?;
        self.inner.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.before(Op::Exists, path)?;
        self.inner.exists(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.before(Op::SyncDir, dir)?;
        self.inner.sync_dir(dir)
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.before(Op::FreeSpace, dir)?;
        self.inner.free_space(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>> {
        self.before(Op::Lock, path)?;
        self.inner.lock(path)
    }
}

impl FaultFile {
    fn before(&self, op: Op) -> io::Result<()> {
        self.state.lock().before(op, &self.path)
    }
}

impl VfsFile for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.before(Op::ReadAt)?;
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.before(Op::WriteAt)?;
        self.inner.write_at(bytes, offset)
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.before(Op::Append)?;
        self.inner.append(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.before(Op::Sync)?;
        if self.state.lock().untrusted.contains(&self.path) {
            return Ok(()); // the pages were dropped when the first one failed
        }
        self.inner.sync()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.before(Op::Allocate)?;
        self.inner.allocate(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.before(Op::Len)?;
        self.inner.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::MemVfs;
    use crate::env::vfs::{read_file, replace_file};

    fn path(name: &str) -> &Path {
        Path::new(name)
    }

    #[test]
    fn the_operation_picked_fails_once_and_leaves_no_effect() {
        let fs = FaultVfs::new(Arc::new(MemVfs::new()));
        let file = fs.create(path("/f")).unwrap();
        fs.fail_after(1, Lasting::Once, |operation| operation.op == Op::Append);
        file.append(b"a").unwrap();
        assert!(file.append(b"b").is_err());
        file.append(b"c").unwrap();
        assert_eq!(read_file(&fs, path("/f")).unwrap(), b"ac");
        assert_eq!(fs.failures(), 1);
    }

    #[test]
    fn a_sticky_failure_stays_until_the_rule_is_cleared() {
        let fs = FaultVfs::new(Arc::new(MemVfs::new()));
        fs.fail_after(0, Lasting::Sticky, |operation| operation.path.ends_with("f"));
        assert!(fs.create(path("/f")).is_err());
        assert!(fs.create(path("/f")).is_err());
        fs.create(path("/g")).unwrap();
        fs.clear_rule();
        fs.create(path("/f")).unwrap();
    }

    #[test]
    fn after_a_halt_nothing_works_any_more() {
        let fs = FaultVfs::new(Arc::new(MemVfs::new()));
        let file = fs.create(path("/f")).unwrap();
        fs.fail_after(0, Lasting::Halt, |operation| operation.op == Op::Sync);
        file.append(b"a").unwrap();
        assert!(file.sync().is_err());
        assert!(file.len().is_err() && fs.exists(path("/f")).is_err());
        assert!(fs.is_halted());
    }

    #[test]
    fn a_second_sync_after_a_failed_one_succeeds_and_proves_nothing() {
        let memory = MemVfs::new();
        let fs = FaultVfs::new(Arc::new(memory.clone()));
        let file = fs.create(path("/f")).unwrap();
        fs.sync_dir(path("/")).unwrap();
        file.append(b"a").unwrap();
        fs.fail_after(0, Lasting::Once, |operation| operation.op == Op::Sync);
        assert!(file.sync().is_err());
        file.sync().unwrap();
        memory.crash_lose_all();
        assert_eq!(read_file(&memory, path("/f")).unwrap(), b"");
    }

    #[test]
    fn every_operation_is_counted_so_that_each_can_be_failed_in_turn() {
        let counted = FaultVfs::new(Arc::new(MemVfs::new()));
        replace_file(&counted, path("/f"), b"bytes").unwrap();
        assert_eq!(counted.operations(), 6);
        for skipped in 0..counted.operations() {
            let fs = FaultVfs::new(Arc::new(MemVfs::new()));
            fs.fail_after(skipped, Lasting::Once, |_| true);
            assert!(replace_file(&fs, path("/f"), b"bytes").is_err(), "operation {skipped}");
        }
    }
}
