//! Which threads close and remove files: those that run in the background, and never one that reads.
//!
//! Closing the last handle of a large file that has no name any more makes the file system free its blocks, which takes
//! milliseconds. Readers used to do that whenever they were the last users of a table that a compaction had replaced.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // threads are what is tested here

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kvstore::engine::{Engine, Options, WriteBatch};
use kvstore::env::{Env, MemVfs, Rng, Vfs, VfsFile, VfsLock};
use kvstore::types::{Key, KeyRange, Record, Timestamp, Value};
use parking_lot::Mutex;

const KEYS: u64 = 2_000;

/// How often each thread closed or removed a table, by the thread's name.
type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

fn count(counts: &Counts, path: &Path) {
    if path.extension().is_some_and(|extension| extension == "sst") {
        let name = thread::current().name().unwrap_or("?").to_owned();
        *counts.lock().entry(name).or_default() += 1;
    }
}

/// A file system that counts removals and closes.
#[derive(Debug)]
struct Watched {
    inner: MemVfs,
    counts: Counts,
}

#[derive(Debug)]
struct WatchedFile {
    inner: Arc<dyn VfsFile>,
    path: std::path::PathBuf,
    counts: Counts,
}

impl Drop for WatchedFile {
    fn drop(&mut self) {
        count(&self.counts, &self.path);
    }
}

impl Watched {
    fn watch(&self, path: &Path, file: io::Result<Arc<dyn VfsFile>>) -> io::Result<Arc<dyn VfsFile>> {
        let inner = file?;
        Ok(Arc::new(WatchedFile { inner, path: path.to_owned(), counts: self.counts.clone() }))
    }
}

impl VfsFile for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(bytes, offset)
    }
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.inner.append(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
}

impl Vfs for Watched {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.watch(path, self.inner.create(path))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.watch(path, self.inner.open(path))
    }
    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.watch(path, self.inner.open_write(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.hard_link(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        count(&self.counts, path);
        self.inner.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }
    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.inner.free_space(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>> {
        self.inner.lock(path)
    }
}

fn key(number: u64) -> Key {
    Key::new(format!("key-{number:05}")).unwrap()
}

fn batch(numbers: impl Iterator<Item = u64>, round: u64) -> WriteBatch {
    let record = |number| {
        Record::value(Timestamp::from_u64(round * KEYS + number + 1), Value::new(vec![round as u8; 60]))
    };
    WriteBatch::from(numbers.map(|number| (key(number), record(number))).collect::<Vec<_>>())
}

fn open() -> (Engine, MemVfs, Counts) {
    let (disk, counts) = (MemVfs::new(), Counts::default());
    let mut env = Env::real();
    env.fs = Arc::new(Watched { inner: disk.clone(), counts: counts.clone() });
    let options = Options { memtable_size: 64 << 10, l0_files_max: 2, ..Options::default() };
    let (engine, _) = Engine::open(&env, Path::new("/db"), options).unwrap();
    (engine, disk, counts)
}

/// Reads in every way until told to stop; the thread of each way has its name.
fn read(engine: &Engine, way: &'static str, stop: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let (engine, stop) = (engine.clone(), stop.clone());
    let rng = Rng::from_seed(7);
    let work = move || {
        let mut reads = 0;
        while !stop.load(Ordering::Relaxed) {
            match way {
                "try_get" => drop(engine.try_get(&key(rng.below(0..KEYS)))),
                "get" => drop(engine.get(&key(rng.below(0..KEYS))).unwrap()),
                _ => assert!(engine.scan(&KeyRange::all()).take(300).all(|item| item.is_ok())),
            }
            reads += 1;
        }
        reads
    };
    thread::Builder::new().name(way.to_owned()).spawn(work).unwrap()
}

#[test]
fn no_reader_closes_or_removes_a_table() {
    let (engine, _, counts) = open();
    let stop = Arc::new(AtomicBool::new(false));
    let readers = ["try_get", "get", "scan"].map(|way| read(&engine, way, &stop));
    for round in 0..60 {
        for chunk in 0..KEYS / 200 {
            engine.write(batch(chunk * 200..(chunk + 1) * 200, round)).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let reads: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    engine.close().unwrap();
    let counts = counts.lock().clone();
    let in_background = counts.get("kv-background").copied().unwrap_or_default();
    assert!(in_background > 300, "{counts:?} beside {reads:?} reads");
    assert!(
        counts.keys().all(|name| name == "kv-background"),
        "only the background closes and removes tables: {counts:?} beside {reads:?} reads"
    );
}

/// What a reader held for longer than the compaction took goes with the next call of `maintain`, though nothing is written.
#[test]
fn what_a_slow_reader_held_is_removed_soon_after() {
    let (engine, disk, counts) = open();
    engine.write(batch(0..KEYS, 0)).unwrap();
    engine.flush().unwrap();
    let mut scan = engine.scan(&KeyRange::all());
    scan.next().unwrap().unwrap();
    engine.write(batch(0..KEYS, 1)).unwrap();
    engine.compact().unwrap();
    let is_table = |name: &&String| Path::new(name).extension().is_some_and(|end| end == "sst");
    let tables = || disk.list(Path::new("/db")).unwrap().iter().filter(is_table).count();
    let held = tables();
    drop(scan);
    assert_eq!(tables(), held, "the reader does not remove them itself");
    let in_tables = engine.stats().level_files.iter().sum::<usize>();
    assert!(held > in_tables);
    for _ in 0..1_000 {
        engine.maintain();
        if tables() == in_tables {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(tables(), in_tables);
    assert!(counts.lock().keys().all(|name| name == "kv-background"));
    engine.close().unwrap();
}
