use std::path::Path;

use super::*;
use crate::env::vfs::{read_file, replace_file};

fn path(name: &str) -> &Path {
    Path::new(name)
}

/// `/d`, durable, with the file `/d/f` holding `old`, durable.
fn with_old() -> MemVfs {
    let fs = MemVfs::new();
    fs.create_dir_all(path("/d")).unwrap();
    fs.sync_dir(path("/")).unwrap();
    let file = fs.create(path("/d/f")).unwrap();
    file.append(b"old").unwrap();
    file.sync().unwrap();
    fs.sync_dir(path("/d")).unwrap();
    fs
}

fn content(fs: &MemVfs, name: &str) -> Option<Vec<u8>> {
    fs.exists(path(name)).unwrap().then(|| read_file(fs, path(name)).unwrap())
}

#[test]
fn what_was_synced_survives_every_crash() {
    for seed in 0..50 {
        let fs = with_old();
        fs.open_write(path("/d/f")).unwrap().write_at(b"!", 2).unwrap();
        fs.create(path("/d/g")).unwrap();
        fs.crash(&Rng::from_seed(seed));
        let bytes = content(&fs, "/d/f").expect("its name was synced");
        assert!(bytes == b"old" || bytes == b"ol!", "seed {seed}: {bytes:?}");
    }
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_lost() {
    let fs = with_old();
    let file = fs.create(path("/d/g")).unwrap();
    file.append(b"bytes").unwrap();
    file.sync().unwrap();
    fs.crash_lose_all();
    assert_eq!(content(&fs, "/d/g"), None);
}

#[test]
fn a_synced_name_may_lead_to_an_empty_file() {
    let fs = with_old();
    fs.create(path("/d/g")).unwrap().append(b"bytes").unwrap();
    fs.sync_dir(path("/d")).unwrap();
    fs.crash_lose_all();
    assert_eq!(content(&fs, "/d/g"), Some(Vec::new()));
}

#[test]
fn a_directory_whose_own_name_was_not_synced_takes_its_files_along() {
    let fs = MemVfs::new();
    fs.create_dir_all(path("/a/b")).unwrap();
    fs.create(path("/a/b/f")).unwrap().sync().unwrap();
    fs.sync_dir(path("/a/b")).unwrap();
    fs.sync_dir(path("/")).unwrap();
    fs.crash_lose_all();
    assert!(fs.exists(path("/a")).unwrap());
    assert!(!fs.exists(path("/a/b")).unwrap());
}

#[test]
fn a_replaced_file_is_old_or_new_whatever_a_crash_keeps() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..200 {
        let fs = with_old();
        let file = fs.create(path("/d/t")).unwrap();
        file.append(b"newer").unwrap();
        file.sync().unwrap();
        fs.rename(path("/d/t"), path("/d/f")).unwrap();
        fs.crash(&Rng::from_seed(seed));
        match content(&fs, "/d/f").as_deref() {
            Some(b"old") => old += 1,
            Some(b"newer") => new += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(old > 20 && new > 20, "both happen: {old} {new}");
}

#[test]
fn replace_file_is_durable_when_it_returns() {
    let fs = with_old();
    replace_file(&fs, path("/d/f"), b"newer").unwrap();
    fs.crash_lose_all();
    assert_eq!(content(&fs, "/d/f").unwrap(), b"newer");
    assert_eq!(fs.list(path("/d")).unwrap(), ["f"]);
}

#[test]
fn unsynced_blocks_survive_independently_and_torn() {
    let (mut holes, mut tears) = (0, 0);
    for seed in 0..300 {
        let fs = with_old();
        let file = fs.create(path("/d/g")).unwrap();
        fs.sync_dir(path("/d")).unwrap();
        file.append(&[7; 4 * BLOCK_LEN]).unwrap();
        fs.crash(&Rng::from_seed(seed));
        let bytes = content(&fs, "/d/g").unwrap();
        assert!(bytes.iter().all(|byte| [0, 7].contains(byte)));
        let first_zero = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        holes += usize::from(bytes[first_zero..].contains(&7));
        tears += usize::from(!first_zero.is_multiple_of(BLOCK_LEN));
    }
    assert!(holes > 30, "{holes}");
    assert!(tears > 30, "{tears}");
}

#[test]
fn a_torn_overwrite_keeps_the_old_bytes_where_it_is_torn() {
    for seed in 0..100 {
        let fs = with_old();
        let file = fs.create(path("/d/g")).unwrap();
        file.append(&[1; BLOCK_LEN]).unwrap();
        file.sync().unwrap();
        fs.sync_dir(path("/d")).unwrap();
        file.write_at(&[2; BLOCK_LEN], 0).unwrap();
        fs.crash(&Rng::from_seed(seed));
        let bytes = content(&fs, "/d/g").unwrap();
        assert!(bytes.iter().all(|byte| [1, 2].contains(byte)), "seed {seed}");
        // The head of the block, or whole sectors of it, are new.
        let is_head = bytes.is_sorted_by(|a, b| a >= b);
        let sectors = bytes.chunks(SECTOR_LEN);
        let are_sectors = sectors.into_iter().all(|sector| sector.iter().all(|byte| *byte == sector[0]));
        assert!(is_head || are_sectors, "seed {seed}");
    }
}

#[test]
fn a_rename_between_directories_is_never_undone_by_a_sync_of_one_of_them() {
    for first in ["/a", "/b"] {
        let fs = MemVfs::new();
        fs.create_dir_all(path("/a")).unwrap();
        fs.create_dir_all(path("/b")).unwrap();
        fs.sync_dir(path("/")).unwrap();
        fs.create(path("/a/x")).unwrap().sync().unwrap();
        fs.rename(path("/a/x"), path("/b/y")).unwrap();
        fs.sync_dir(path(first)).unwrap();
        fs.crash_lose_all();
        assert!(!fs.exists(path("/a/x")).unwrap());
        assert!(fs.exists(path("/b/y")).unwrap());
    }
}

#[test]
fn handles_of_before_a_crash_are_dead_and_locks_are_free() {
    let fs = with_old();
    let lock = fs.lock(path("/d/LOCK")).unwrap();
    assert_eq!(fs.lock(path("/d/LOCK")).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let file = fs.open_write(path("/d/f")).unwrap();
    fs.crash_keep_all();
    assert!(file.sync().is_err() && file.append(b"x").is_err() && file.len().is_err());
    let again = fs.lock(path("/d/LOCK")).unwrap();
    drop(lock);
    assert!(fs.lock(path("/d/LOCK")).is_err(), "a lock of before the crash does not free the new one");
    drop(again);
    assert!(fs.lock(path("/d/LOCK")).is_ok());
}

#[test]
fn a_removed_file_is_read_by_who_has_it_open_and_comes_back_where_the_removal_is_lost() {
    let fs = with_old();
    let file = fs.open(path("/d/f")).unwrap();
    fs.remove(path("/d/f")).unwrap();
    let mut bytes = [0; 3];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"old");
    let unlucky = fs.fork();
    unlucky.crash_lose_all();
    assert_eq!(content(&unlucky, "/d/f").unwrap(), b"old");
    fs.sync_dir(path("/d")).unwrap();
    fs.crash_lose_all();
    assert_eq!(content(&fs, "/d/f"), None);
}

#[test]
fn a_full_disk_refuses_to_grow_and_takes_again_once_space_is_free() {
    let fs = with_old();
    fs.set_capacity(Some(4 * BLOCK_LEN as u64));
    let file = fs.create(path("/d/g")).unwrap();
    file.allocate(3 * BLOCK_LEN as u64).unwrap();
    assert_eq!(fs.free_space(path("/d")).unwrap(), 0);
    file.write_at(b"inside", 5000).unwrap();
    assert_eq!(file.append(b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
    fs.remove(path("/d/f")).unwrap();
    file.append(b"x").unwrap();
}

#[test]
fn preallocated_blocks_cost_nothing_and_read_as_zeros() {
    let fs = with_old();
    let file = fs.create(path("/d/g")).unwrap();
    file.allocate(1 << 40).unwrap();
    let mut bytes = [1; 16];
    file.read_exact_at(&mut bytes, 1 << 39).unwrap();
    assert_eq!(bytes, [0; 16]);
}

#[test]
fn rot_stays_after_a_crash() {
    let fs = with_old();
    fs.flip_byte(path("/d/f"), 1).unwrap();
    assert_eq!(content(&fs, "/d/f").unwrap(), [b'o', b'l' ^ 0xFF, b'd']);
    fs.crash_lose_all();
    assert_eq!(content(&fs, "/d/f").unwrap(), [b'o', b'l' ^ 0xFF, b'd']);
    assert!(fs.flip_byte(path("/d/f"), 3).is_err());
}

#[test]
fn a_wiped_disk_is_empty() {
    let fs = with_old();
    fs.wipe();
    assert!(fs.list(path("/")).unwrap().is_empty());
}

#[test]
fn the_same_seed_leaves_the_same_bytes() {
    let crashed = |seed| {
        let fs = with_old();
        fs.open_write(path("/d/f")).unwrap().append(&[9; 10_000]).unwrap();
        fs.create(path("/d/g")).unwrap().append(&[8; 10_000]).unwrap();
        fs.crash(&Rng::from_seed(seed));
        (content(&fs, "/d/f"), content(&fs, "/d/g"))
    };
    for seed in 0..20 {
        assert_eq!(crashed(seed), crashed(seed));
    }
}

#[test]
fn what_survived_one_crash_survives_the_next() {
    for seed in 0..50 {
        let rng = Rng::from_seed(seed);
        let fs = with_old();
        fs.open_write(path("/d/f")).unwrap().append(&[9; 10_000]).unwrap();
        fs.crash(&rng);
        let survived = content(&fs, "/d/f");
        fs.crash(&rng);
        assert_eq!(content(&fs, "/d/f"), survived, "seed {seed}");
        assert_eq!(fs.unsynced(), (0, 0));
    }
}

#[test]
fn a_torn_block_keeps_any_of_its_sectors() {
    let mut gaps = 0;
    for seed in 0..200 {
        let fs = with_old();
        let file = fs.create(path("/d/g")).unwrap();
        fs.sync_dir(path("/d")).unwrap();
        file.append(&[7; BLOCK_LEN]).unwrap();
        file.sync().unwrap();
        file.write_at(&[9; BLOCK_LEN], 0).unwrap();
        fs.crash(&Rng::from_seed(seed));
        let bytes = content(&fs, "/d/g").unwrap();
        let first_old = bytes.iter().position(|byte| *byte == 7).unwrap_or(bytes.len());
        gaps += usize::from(bytes[first_old..].contains(&9));
    }
    assert!(gaps > 10, "{gaps}");
}

#[test]
fn a_file_that_grew_may_hold_what_a_removed_one_held() {
    let mut stale = 0;
    for seed in 0..200 {
        let fs = with_old();
        let file = fs.create(path("/d/secret")).unwrap();
        file.append(&[5; BLOCK_LEN]).unwrap();
        file.sync().unwrap();
        fs.sync_dir(path("/d")).unwrap();
        drop(file);
        fs.remove(path("/d/secret")).unwrap();
        fs.sync_dir(path("/d")).unwrap();
        let file = fs.create(path("/d/g")).unwrap();
        fs.sync_dir(path("/d")).unwrap();
        file.append(&[7; 2 * BLOCK_LEN]).unwrap();
        fs.crash(&Rng::from_seed(seed));
        stale += usize::from(content(&fs, "/d/g").unwrap().contains(&5));
        assert_eq!(content(&fs, "/d/f").unwrap(), b"old", "what was synced stays as it is");
    }
    assert!(stale > 10, "{stale}");
}

#[test]
fn a_full_disk_takes_no_more_names() {
    let fs = with_old();
    fs.set_capacity(Some(BLOCK_LEN as u64));
    let refused =
        |result: io::Result<()>| result.is_err_and(|error| error.kind() == io::ErrorKind::StorageFull);
    assert!(refused(fs.create(path("/d/g")).map(drop)));
    assert!(refused(fs.create_dir_all(path("/d/e"))));
    assert!(refused(fs.hard_link(path("/d/f"), path("/d/g"))));
    fs.rename(path("/d/f"), path("/d/h")).unwrap();
    fs.remove(path("/d/h")).unwrap();
    fs.create(path("/d/g")).unwrap();
}

#[test]
fn after_a_crash_a_mounted_file_system_is_of_an_earlier_life() {
    let fs = with_old();
    let before = fs.boot();
    assert!(before.exists(path("/d/f")).unwrap());
    fs.crash_keep_all();
    assert!(before.remove(path("/d/f")).is_err() && before.create(path("/d/g")).is_err());
    assert!(fs.boot().exists(path("/d/f")).unwrap());
}

#[test]
fn a_disk_in_another_ones_place_is_that_one_and_goes_its_own_way() {
    let (fs, other) = (with_old(), with_old());
    let handle = fs.open_write(path("/d/f")).unwrap();
    other.create(path("/d/g")).unwrap();
    fs.replace_by(&other);
    assert!(fs.exists(path("/d/g")).unwrap());
    assert!(handle.append(b"lost").is_err());
    fs.remove(path("/d/g")).unwrap();
    assert!(other.exists(path("/d/g")).unwrap());
    assert_eq!(fs.open_handles(), 0);
}
