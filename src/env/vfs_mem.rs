//! A file system in memory, whose crashes keep any subset of what was not synced.
//!
//! ```text
//! directory   live names ──sync_dir──> durable names        a crash applies any subset of the unsynced
//!             create, rename, link, remove wait in a list   operations, in order, to the durable names
//! file        live blocks ──sync──> durable blocks          a crash keeps any subset of the unsynced 4 KiB
//!             and length                    and length      blocks, each torn at any byte or to any subset of
//!                                                           its sectors, and any length between that holds
//!                                                           them; what is lost of a file that grew may hold
//!                                                           bytes of files that were removed before
//! ```
//!
//! It promises what `env::vfs` promises and not a bit more: a synced file whose name was not synced is lost, a
//! name that was synced may lead to an empty file. A file lives by its inode, so a rename that survives without
//! the creation before it still leads to the file. What survives a crash is the new durable state.
//!
//! Blocks never written cost nothing, so logs may be preallocated. All is deterministic: the same calls with
//! the same [`Rng`] leave the same bytes.
//!
//! Idea: cockroachdb `vfs/mem_fs.go` (`CrashClone`) and Pillai et al., "All File Systems Are Not Created Equal"
//! (2014). Unlike the former, blocks are torn and lengths vary too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::Rng;
use super::vfs::{Vfs, VfsFile, VfsLock};

/// What a crash keeps or loses at once, in bytes.
pub const BLOCK_LEN: usize = 4096;

/// What a disk writes whole: a torn block keeps any subset of its sectors.
const SECTOR_LEN: usize = 512;

/// Blocks of removed files that a crash may leave in files that grew.
const STALE_MAX: usize = 16;

/// What [`Vfs::free_space`] answers where no capacity is set.
const UNBOUNDED: u64 = 1 << 40;

type Ino = u64;
type Block = Arc<[u8; BLOCK_LEN]>;

const ROOT: Ino = 0;

/// A file system in memory. A clone is the same one.
#[derive(Clone)]
pub struct MemVfs {
    state: Arc<Mutex<State>>,
    /// The life whose path operations work; `None`: those of every life do.
    life: Option<u64>,
}

#[derive(Clone)]
struct State {
    inodes: BTreeMap<Ino, Inode>,
    ino_next: Ino,
    /// Directory operations that no `sync_dir` has covered, in order.
    unsynced: Vec<DirOperation>,
    locks: BTreeSet<Ino>,
    /// How many crashes there were: handles of an earlier life are dead.
    life: u64,
    capacity: Option<u64>,
    /// What removed files held.
    stale: Vec<Block>,
}

#[derive(Clone)]
enum Inode {
    Dir(Dir),
    File(File),
}

#[derive(Clone, Default)]
struct Dir {
    live: BTreeMap<String, Ino>,
    durable: BTreeMap<String, Ino>,
}

#[derive(Clone, Default)]
struct File {
    live: Content,
    durable: Content,
    /// Blocks written since the last sync.
    dirty: BTreeSet<u64>,
    /// Open handles: a removed file stays while it is held open.
    handles: usize,
}

#[derive(Clone, Default)]
struct Content {
    /// An absent block reads as zeros.
    blocks: BTreeMap<u64, Block>,
    len: u64,
}

/// One change to names, kept or lost whole by a crash.
#[derive(Clone)]
struct DirOperation {
    /// Directory, name, and what the name leads to from now on.
    changes: Vec<(Ino, String, Option<Ino>)>,
}

/// What a crash does to what was not synced.
enum Fate<'a> {
    KeepAll,
    LoseAll,
    Any { rng: &'a Rng, names: f64, blocks: f64, torn: f64 },
}

#[derive(Clone)]
struct MemFile {
    state: Arc<Mutex<State>>,
    ino: Ino,
    life: u64,
    writable: bool,
}

struct MemLock {
    state: Arc<Mutex<State>>,
    ino: Ino,
    life: u64,
}

impl Default for MemVfs {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemVfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemVfs")
    }
}

impl fmt::Debug for MemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemFile {}", self.ino)
    }
}

impl fmt::Debug for MemLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemLock {}", self.ino)
    }
}

impl MemVfs {
    /// An empty file system without a bound.
    pub fn new() -> Self {
        Self { state: Arc::new(Mutex::new(State::new(None, 0))), life: None }
    }

    /// The file system as one run of a machine sees it: after the next crash every operation by this handle fails, so that
    /// what an earlier life left behind cannot change the files of the next.
    #[must_use]
    pub fn boot(&self) -> Self {
        let life = self.state.lock().life;
        Self { state: self.state.clone(), life: Some(life) }
    }

    /// Puts the disk of another machine, or an earlier state of this one, in this one's place, as a crash at that moment
    /// would have left it had everything reached the disk. Handles of before are dead, locks are free.
    pub fn replace_by(&self, other: &Self) {
        let copy = other.fork();
        copy.crash_keep_all();
        let mut state = self.state.lock();
        let (capacity, life) = (state.capacity, state.life + 1);
        *state = State { life, capacity, ..copy.state.lock().clone() };
    }

    /// How many handles of files are open.
    pub fn open_handles(&self) -> usize {
        let state = self.state.lock();
        let handles = state.inodes.values().map(|inode| match inode {
            Inode::File(file) => file.handles,
            Inode::Dir(_) => 0,
        });
        handles.sum()
    }

    /// Bytes that files take.
    pub fn used_space(&self) -> u64 {
        self.state.lock().used()
    }

    /// Bounds the bytes that files may take together; `None` lifts the bound. What is there stays.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Crashes: keeps any subset of the unsynced names and blocks, tears blocks, kills handles, frees locks.
    pub fn crash(&self, rng: &Rng) {
        let likelihood = || match rng.below(0..5) {
            0 => 0.0,
            1 => 1.0,
            _ => rng.below(0..1001) as f64 / 1000.0,
        };
        let (names, blocks, torn) = (likelihood(), likelihood(), likelihood() / 2.0);
        self.state.lock().crash(&Fate::Any { rng, names, blocks, torn });
    }

    /// Crashes, and everything unsynced had reached the disk by chance: what `kill -9` does.
    pub fn crash_keep_all(&self) {
        self.state.lock().crash(&Fate::KeepAll);
    }

    /// Crashes, and nothing unsynced had reached the disk.
    pub fn crash_lose_all(&self) {
        self.state.lock().crash(&Fate::LoseAll);
    }

    /// Puts an empty disk in this one's place. Handles of before are dead, locks are free.
    pub fn wipe(&self) {
        let mut state = self.state.lock();
        *state = State::new(state.capacity, state.life + 1);
    }

    /// An independent copy, unsynced state included, without handles and locks: to try several crashes of one moment.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut state = self.state.lock().clone();
        state.locks.clear();
        for inode in state.inodes.values_mut() {
            if let Inode::File(file) = inode {
                file.handles = 0;
            }
        }
        Self { state: Arc::new(Mutex::new(state)), life: None }
    }

    /// Rot: inverts the bits of a byte, in the file and on the disk below it alike.
    pub fn flip_byte(&self, path: &Path, offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let ino = state.find(path)?;
        let file = state.file_mut(ino)?;
        if offset >= file.live.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for content in [&mut file.live, &mut file.durable] {
            content.block_mut(offset / BLOCK_LEN as u64)[offset as usize % BLOCK_LEN] ^= 0xFF;
        }
        Ok(())
    }

    /// How many directory operations and blocks a crash could lose now.
    pub fn unsynced(&self) -> (usize, usize) {
        let state = self.state.lock();
        let blocks = state.inodes.values().map(|inode| match inode {
            Inode::File(file) => {
                file.dirty.len() + usize::from(file.dirty.is_empty() && file.live.len != file.durable.len)
            }
            Inode::Dir(_) => 0,
        });
        (state.unsynced.len(), blocks.sum())
    }
}

impl State {
    fn new(capacity: Option<u64>, life: u64) -> Self {
        Self {
            inodes: BTreeMap::from([(ROOT, Inode::Dir(Dir::default()))]),
            ino_next: ROOT + 1,
            unsynced: Vec::new(),
            locks: BTreeSet::new(),
            life,
            capacity,
            stale: Vec::new(),
        }
    }

    fn dir(&self, ino: Ino) -> io::Result<&Dir> {
        match self.inodes.get(&ino) {
            Some(Inode::Dir(dir)) => Ok(dir),
            Some(Inode::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn file(&self, ino: Ino) -> io::Result<&File> {
        match self.inodes.get(&ino) {
            Some(Inode::File(file)) => Ok(file),
            Some(Inode::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> io::Result<&mut File> {
        match self.inodes.get_mut(&ino) {
            Some(Inode::File(file)) => Ok(file),
            Some(Inode::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Ino> {
        names_of(path)?.iter().try_fold(ROOT, |ino, name| {
            self.dir(ino)?.live.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    /// The directory that a path's last name stands in, and that name.
    fn find_parent(&self, path: &Path) -> io::Result<(Ino, String)> {
        let mut names = names_of(path)?;
        let name = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = names.iter().try_fold(ROOT, |ino, name| {
            self.dir(ino)?.live.get(name).copied().ok_or(io::Error::from(io::ErrorKind::NotFound))
        })?;
        self.dir(dir)?;
        Ok((dir, name))
    }

    fn add(&mut self, inode: Inode) -> Ino {
        let ino = self.ino_next;
        self.ino_next += 1;
        self.inodes.insert(ino, inode);
        ino
    }

    /// Makes a change to names, at once for all who look and unsynced.
    fn change(&mut self, changes: Vec<(Ino, String, Option<Ino>)>) {
        for (dir, name, target) in &changes {
            if let Some(Inode::Dir(dir)) = self.inodes.get_mut(dir) {
                set(&mut dir.live, name, *target);
            }
        }
        self.unsynced.push(DirOperation { changes });
    }

    fn create(&mut self, path: &Path) -> io::Result<Ino> {
        let (dir, name) = self.find_parent(path)?;
        if self.dir(dir)?.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.reserve_name()?;
        let ino = self.add(Inode::File(File::default()));
        self.change(vec![(dir, name, Some(ino))]);
        Ok(ino)
    }

    /// Makes the operations on one directory durable, and with them what they build on in others.
    fn sync_dir(&mut self, ino: Ino) {
        let mut touched: BTreeSet<(Ino, String)> = BTreeSet::new();
        let mut covered = vec![false; self.unsynced.len()];
        for (operation, covered) in self.unsynced.iter().zip(&mut covered).rev() {
            // A rename between directories takes along what was done earlier to the same names.
            let here =
                |(dir, name, _): &(Ino, String, _)| *dir == ino || touched.contains(&(*dir, name.clone()));
            *covered = operation.changes.iter().any(here);
            if *covered {
                touched.extend(operation.changes.iter().map(|(dir, name, _)| (*dir, name.clone())));
            }
        }
        let mut covered = covered.into_iter();
        let (synced, unsynced) =
            std::mem::take(&mut self.unsynced).into_iter().partition(|_| covered.next() == Some(true));
        self.unsynced = unsynced;
        self.make_durable(synced);
        self.collect();
    }

    fn make_durable(&mut self, operations: Vec<DirOperation>) {
        for (dir, name, target) in operations.into_iter().flat_map(|operation| operation.changes) {
            if let Some(Inode::Dir(dir)) = self.inodes.get_mut(&dir) {
                set(&mut dir.durable, &name, target);
            }
        }
    }

    /// Forgets inodes that no name, no handle and no crash can lead to.
    fn collect(&mut self) {
        let mut reachable = BTreeSet::from([ROOT]);
        for inode in self.inodes.values() {
            if let Inode::Dir(dir) = inode {
                reachable.extend(dir.live.values().chain(dir.durable.values()));
            }
        }
        let waiting = self.unsynced.iter().flat_map(|operation| &operation.changes);
        reachable.extend(waiting.filter_map(|(_, _, target)| *target));
        let stale = &mut self.stale;
        self.inodes.retain(|ino, inode| match inode {
            Inode::File(file) => {
                let stays = file.handles > 0 || reachable.contains(ino);
                if !stays {
                    stale.extend(file.durable.blocks.values().take(STALE_MAX).cloned());
                }
                stays
            }
            Inode::Dir(_) => reachable.contains(ino),
        });
        self.stale.drain(..self.stale.len().saturating_sub(STALE_MAX));
    }

    fn crash(&mut self, fate: &Fate<'_>) {
        self.life += 1;
        self.locks.clear();
        let survivors =
            std::mem::take(&mut self.unsynced).into_iter().filter(|_| fate.keeps_name()).collect();
        self.make_durable(survivors);
        for inode in self.inodes.values_mut() {
            match inode {
                Inode::Dir(dir) => dir.live = dir.durable.clone(),
                Inode::File(file) => file.crash(fate, &self.stale),
            }
        }
        self.collect();
    }

    /// Bytes that files take: those with a name, and those held open.
    fn used(&self) -> u64 {
        let mut named: BTreeSet<Ino> = BTreeSet::new();
        for inode in self.inodes.values() {
            if let Inode::Dir(dir) = inode {
                named.extend(dir.live.values());
            }
        }
        let lens = self.inodes.iter().map(|(ino, inode)| match inode {
            Inode::File(file) if file.handles > 0 || named.contains(ino) => {
                file.live.len.next_multiple_of(BLOCK_LEN as u64)
            }
            _ => 0,
        });
        lens.sum()
    }

    fn free(&self) -> u64 {
        self.capacity.map_or(UNBOUNDED, |capacity| capacity.saturating_sub(self.used()))
    }

    /// Checks that there is room for one more name.
    fn reserve_name(&self) -> io::Result<()> {
        if self.free() < BLOCK_LEN as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Checks that a file may become `len` bytes long.
    fn reserve(&self, ino: Ino, len: u64) -> io::Result<()> {
        let held = self.file(ino)?.live.len;
        let more =
            len.next_multiple_of(BLOCK_LEN as u64).saturating_sub(held.next_multiple_of(BLOCK_LEN as u64));
        if self.capacity.is_some() && more > 0 && more > self.free() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Fate<'_> {
    fn keeps_name(&self) -> bool {
        match self {
            Self::KeepAll => true,
            Self::LoseAll => false,
            Self::Any { rng, names, .. } => rng.chance(*names),
        }
    }
}

impl File {
    fn sync(&mut self) {
        for index in std::mem::take(&mut self.dirty) {
            if let Some(block) = self.live.blocks.get(&index) {
                self.durable.blocks.insert(index, block.clone());
            }
        }
        self.durable.len = self.live.len;
    }

    fn crash(&mut self, fate: &Fate<'_>, stale: &[Block]) {
        self.handles = 0;
        match fate {
            Fate::KeepAll => self.sync(),
            Fate::LoseAll => {}
            Fate::Any { rng, blocks, torn, .. } => self.keep_some(rng, *blocks, *torn, stale),
        }
        self.dirty.clear();
        self.live = self.durable.clone();
    }

    fn keep_some(&mut self, rng: &Rng, keep: f64, torn: f64, stale: &[Block]) {
        let mut len_min = self.durable.len;
        let was_len = self.durable.len;
        for index in std::mem::take(&mut self.dirty) {
            let begin = index * BLOCK_LEN as u64;
            if begin >= was_len && !stale.is_empty() && rng.chance(0.25) {
                let block = &stale[rng.below(0..stale.len() as u64) as usize];
                self.durable.blocks.insert(index, block.clone()); // what lay there before the file grew
            }
            if !rng.chance(keep) {
                continue;
            }
            let Some(new) = self.live.blocks.get(&index) else { continue };
            let block = self.durable.block_mut(index);
            let mut kept = 0;
            if !rng.chance(torn) {
                kept = BLOCK_LEN;
                block.copy_from_slice(&new[..]);
            } else if rng.chance(0.5) {
                kept = rng.below(0..BLOCK_LEN as u64 + 1) as usize;
                block[..kept].copy_from_slice(&new[..kept]);
            } else {
                for sector in (0..BLOCK_LEN).step_by(SECTOR_LEN).filter(|_| rng.chance(0.5)) {
                    kept = sector + SECTOR_LEN;
                    block[sector..kept].copy_from_slice(&new[sector..kept]);
                }
            }
            len_min = len_min.max((begin + kept as u64).min(self.live.len));
        }
        self.durable.len = match rng.below(0..3) {
            0 => len_min,
            1 => self.live.len,
            _ => rng.below(len_min..self.live.len + 1),
        };
        self.durable.zero_beyond_len();
    }
}

impl Content {
    fn block_mut(&mut self, index: u64) -> &mut [u8; BLOCK_LEN] {
        Arc::make_mut(self.blocks.entry(index).or_insert_with(|| Arc::new([0; BLOCK_LEN])))
    }

    /// A file that grows again must read as zeros there.
    fn zero_beyond_len(&mut self) {
        let (last, within) = (self.len / BLOCK_LEN as u64, self.len as usize % BLOCK_LEN);
        drop(self.blocks.split_off(&(last + 1)));
        if self.blocks.contains_key(&last) {
            self.block_mut(last)[within..].fill(0);
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let wanted = (buf.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        let mut done = 0;
        while done < wanted {
            let (index, within, step) = step(offset + done as u64, wanted - done);
            match self.blocks.get(&index) {
                Some(block) => buf[done..done + step].copy_from_slice(&block[within..within + step]),
                None => buf[done..done + step].fill(0),
            }
            done += step;
        }
        wanted
    }
}

/// Which block `offset` lies in, where in it, and how many of `left` bytes lie in the same block.
fn step(offset: u64, left: usize) -> (u64, usize, usize) {
    let within = offset as usize % BLOCK_LEN;
    (offset / BLOCK_LEN as u64, within, left.min(BLOCK_LEN - within))
}

fn set(names: &mut BTreeMap<String, Ino>, name: &str, target: Option<Ino>) {
    match target {
        Some(ino) => drop(names.insert(name.to_owned(), ino)),
        None => drop(names.remove(name)),
    }
}

/// The names of a path from the root; relative paths start there too.
fn names_of(path: &Path) -> io::Result<Vec<String>> {
    path.components()
        .filter(|component| !matches!(component, Component::RootDir | Component::CurDir))
        .map(|component| match component {
            Component::Normal(name) => Ok(name.to_str().ok_or(io::ErrorKind::InvalidInput)?.to_owned()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        })
        .collect()
}

impl MemVfs {
    /// The state, for an operation by path.
    fn enter(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state.lock();
        if self.life.is_some_and(|life| life != state.life) {
            return Err(io::Error::other("the machine crashed after this file system was mounted"));
        }
        Ok(state)
    }

    fn handle(&self, state: &mut State, ino: Ino, writable: bool) -> io::Result<Arc<dyn VfsFile>> {
        state.file_mut(ino)?.handles += 1;
        Ok(Arc::new(MemFile { state: self.state.clone(), ino, life: state.life, writable }))
    }
}

impl Vfs for MemVfs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut state = self.enter()?;
        let ino = state.create(path)?;
        self.handle(&mut state, ino, true)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut state = self.enter()?;
        let ino = state.find(path)?;
        self.handle(&mut state, ino, false)
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut state = self.enter()?;
        let ino = state.find(path)?;
        self.handle(&mut state, ino, true)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        let ino = state.find(from)?;
        let (from_dir, from_name) = state.find_parent(from)?;
        let (to_dir, to_name) = state.find_parent(to)?;
        match state.dir(to_dir)?.live.get(&to_name) {
            Some(target) if *target == ino => return Ok(()),
            Some(target) => drop(state.file(*target)?), // nothing is renamed over a directory
            None if from_dir != to_dir => state.reserve_name()?,
            None => {}
        }
        state.change(vec![(from_dir, from_name, None), (to_dir, to_name, Some(ino))]);
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        let ino = state.find(from)?;
        state.file(ino)?;
        let (dir, name) = state.find_parent(to)?;
        if state.dir(dir)?.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.reserve_name()?;
        state.change(vec![(dir, name, Some(ino))]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        let ino = state.find(path)?;
        state.file(ino)?;
        let (dir, name) = state.find_parent(path)?;
        state.change(vec![(dir, name, None)]);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        let ino = state.find(path)?;
        if !state.dir(ino)?.live.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (dir, name) = state.find_parent(path)?;
        state.change(vec![(dir, name, None)]);
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        let mut at = ROOT;
        for name in names_of(path)? {
            at = if let Some(ino) = state.dir(at)?.live.get(&name) {
                *ino
            } else {
                state.reserve_name()?;
                let ino = state.add(Inode::Dir(Dir::default()));
                state.change(vec![(at, name, Some(ino))]);
                ino
            };
        }
        state.dir(at).map(drop)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.enter()?;
        Ok(state.dir(state.find(dir)?)?.live.keys().cloned().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.enter()?.find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.enter()?;
        let ino = state.find(dir)?;
        state.dir(ino)?;
        state.sync_dir(ino);
        Ok(())
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let state = self.enter()?;
        state.find(path)?;
        Ok(state.free())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>> {
        let mut state = self.enter()?;
        let ino = match state.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => state.create(path)?,
            found => found?,
        };
        if !state.locks.insert(ino) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock { state: self.state.clone(), ino, life: state.life }))
    }
}

impl MemFile {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.life != self.life {
            return Err(io::Error::other("the machine crashed after this file was opened"));
        }
        work(&mut state)
    }

    fn change(&self, work: impl FnOnce(&mut State) -> io::Result<()>) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.with(work)
    }

    fn write(&self, state: &mut State, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        state.reserve(self.ino, end)?;
        let file = state.file_mut(self.ino)?;
        let mut done = 0;
        while done < bytes.len() {
            let (index, within, step) = step(offset + done as u64, bytes.len() - done);
            file.live.block_mut(index)[within..within + step].copy_from_slice(&bytes[done..done + step]);
            file.dirty.insert(index);
            done += step;
        }
        file.live.len = file.live.len.max(end);
        Ok(())
    }
}

impl VfsFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| Ok(state.file(self.ino)?.live.read(buf, offset)))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(|state| self.write(state, bytes, offset))
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.change(|state| {
            let end = state.file(self.ino)?.live.len;
            self.write(state, bytes, end)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            state.file_mut(self.ino)?.sync();
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change(|state| {
            state.reserve(self.ino, len)?;
            let file = state.file_mut(self.ino)?;
            file.live.len = file.live.len.max(len);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.file(self.ino)?.live.len))
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.life == self.life
            && let Ok(file) = state.file_mut(self.ino)
        {
            file.handles -= 1;
        }
    }
}

impl VfsLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.life == self.life {
            state.locks.remove(&self.ino);
        }
    }
}

#[cfg(test)]
mod tests;
