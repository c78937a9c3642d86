//! Identity: what a data directory knows of itself, its cluster, and its peers' directories.
//!
//! ```text
//! IDENTITY   magic "KVIDENT2" │ body │ crc32 u32 of all before it
//! body       uuid u128 │ cluster name │ Q u32 │ N u32 │ members: count, (name, weight u32, zone?)…
//!            │ boot u64 │ has_voted u8 │ standing u8 │ former uuids: count, u128… │ settled mark u64
//!            │ rebuild: count, (peer, 0 = done │ 1 ++ next key)… │ peers: count, (name, uuid u128, mark u64, run u64)…
//!            │ founders: count, name…
//! ```
//!
//! ("KVIDENT1", which is still read, has no runs and no founders. Counts are varints; names, zones and keys are bytes with a length.) The file is replaced whole and
//! atomically. That a node is rebuilding, that it votes, and that it has ever voted are on disk before they
//! have any effect. What it remembers of its peers is written lazily: it helps *them* to notice that their disk
//! was swapped or set back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes};
use parking_lot::Mutex;

use super::Standing;
use crate::cluster::Member;
use crate::env::{Env, Lane, Mistake, vfs};
use crate::types::{NodeId, Timestamp};
use crate::util::coding::{DecodeError, Reader, put_bytes, put_varint};

const MAGIC: &[u8; 8] = b"KVIDENT2";
/// Of the version before, which has neither the run of a peer in which its mark was heard nor founders.
const MAGIC_1: &[u8; 8] = b"KVIDENT1";

/// Whether bytes begin as an identity does.
pub fn is_identity(head: &[u8]) -> bool {
    head.starts_with(MAGIC) || head.starts_with(MAGIC_1)
}

/// What a directory belongs to. It never changes: other figures over existing data are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founding {
    /// `CLUSTER_NAME`.
    pub cluster_name: String,
    /// Q.
    pub range_count: u32,
    /// N in force.
    pub replication_factor: usize,
    /// All members, sorted by name.
    pub members: Vec<Member>,
}

/// How far a rebuild has read one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Everything before this key is stored here; everything there is, where it is `None`.
    pub next: Option<Bytes>,
    /// Whether the peer's disk counted with every page and none lacked damaged blocks: another peer may have lost what it
    /// acknowledged.
    pub whole: bool,
}

/// What is remembered of a peer's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// Which directory.
    pub uuid: u128,
    /// The highest mark heard from it.
    pub mark: Timestamp,
    /// The run of the peer in which that mark was heard ([`crate::rpc::Facts::run`]); zero if a version that did
    /// not write runs down has heard it.
    pub run: u64,
}

/// What a data directory knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Drawn when the directory was made.
    pub uuid: u128,
    /// What it belongs to.
    pub founding: Founding,
    /// How often it was opened, this time included.
    pub boot: u64,
    /// Whether it has ever counted for R and W.
    pub has_voted: bool,
    /// Whether it counts.
    pub standing: Standing,
    /// Directories that peers remembered under this node's name, and that a rebuild has made up for.
    pub former: BTreeSet<u128>,
    /// The highest mark that peers remembered of this directory, or of a former one, and that a rebuild has made up for.
    pub settled_mark: Timestamp,
    /// How far the rebuild under way has come.
    pub rebuild: BTreeMap<NodeId, Progress>,
    /// What is remembered of peers' directories.
    pub peers: BTreeMap<NodeId, Remembered>,
    /// Peers whose remembered directory had never voted when this one cast its first vote: the cluster began with them,
    /// and they may vote without reading from anybody.
    pub founders: BTreeSet<NodeId>,
}

/// Why an identity could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("identity file {}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("identity file {} is damaged: {detail}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

/// How often a change that found the disk full is written again.
const RETRY_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// An identity could not be made durable. The node does not vote by it until it is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the identity file could not be written")]
pub struct NotSaved;

/// The identity in memory and on disk. A clone is the same.
#[derive(Debug, Clone)]
pub struct IdentityFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    env: Env,
    path: PathBuf,
    identity: Mutex<Identity>,
    /// Held while the file is written, so that an older state never replaces a newer one.
    writer: Mutex<()>,
    /// A write failed: what is on disk is unknown. Relaxed: the writer alone acts on it, and holds its lock.
    failed: AtomicBool,
}

impl Identity {
    /// Makes one for a new directory. It does not vote yet.
    pub fn new(uuid: u128, founding: Founding) -> Self {
        Self {
            uuid,
            founding,
            boot: 0,
            has_voted: false,
            standing: Standing::Rebuilding,
            former: BTreeSet::new(),
            settled_mark: Timestamp::ZERO,
            rebuild: BTreeMap::new(),
            peers: BTreeMap::new(),
            founders: BTreeSet::new(),
        }
    }

    /// Stops counting: a rebuild begins anew.
    pub fn fall(&mut self) {
        self.standing = Standing::Rebuilding;
        self.rebuild.clear();
    }

    /// Reads an identity file.
    pub fn read(env: &Env, path: &Path) -> Result<Self, Error> {
        let bytes =
            vfs::read_file(&*env.fs, path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::decode(&bytes)
            .map_err(|error| Error::Damaged { path: path.to_owned(), detail: error.to_string() })
    }

    /// Writes an identity file, durably.
    pub fn write(&self, env: &Env, path: &Path) -> io::Result<()> {
        if env.planted.has(Mistake::RebuildMarkForgotten) {
            let forgetful = Self { standing: Standing::Voting, ..self.clone() };
            return vfs::replace_file(&*env.fs, path, &forgetful.encode());
        }
        vfs::replace_file(&*env.fs, path, &self.encode())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.put_u128_le(self.uuid);
        self.founding.encode(&mut out);
        out.put_u64_le(self.boot);
        out.put_u8(u8::from(self.has_voted));
        out.put_u8(self.standing as u8);
        put_varint(&mut out, self.former.len() as u64);
        for uuid in &self.former {
            out.put_u128_le(*uuid);
        }
        out.put_u64_le(self.settled_mark.as_u64());
        put_varint(&mut out, self.rebuild.len() as u64);
        for (peer, progress) in &self.rebuild {
            put_bytes(&mut out, peer.as_str().as_bytes());
            out.put_u8(u8::from(progress.next.is_some()) | u8::from(progress.whole) << 1);
            if let Some(key) = &progress.next {
                put_bytes(&mut out, key);
            }
        }
        put_varint(&mut out, self.peers.len() as u64);
        for (peer, remembered) in &self.peers {
            put_bytes(&mut out, peer.as_str().as_bytes());
            out.put_u128_le(remembered.uuid);
            out.put_u64_le(remembered.mark.as_u64());
            out.put_u64_le(remembered.run);
        }
        put_varint(&mut out, self.founders.len() as u64);
        for peer in &self.founders {
            put_bytes(&mut out, peer.as_str().as_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.put_u32_le(crc);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(DecodeError("a checksum"))?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(DecodeError("a checksum that fits"));
        }
        let mut reader = Reader::new(body);
        let magic = reader.take(8)?;
        let has_runs = magic == MAGIC;
        if !has_runs && magic != MAGIC_1 {
            return Err(DecodeError("an identity of a version that is known"));
        }
        let uuid = u128_of(&mut reader)?;
        let founding = Founding::decode(&mut reader)?;
        let (boot, has_voted) = (reader.u64()?, reader.u8()? != 0);
        let standing = match reader.u8()? {
            0 => Standing::Voting,
            1 => Standing::Rebuilding,
            _ => return Err(DecodeError("a standing")),
        };
        let mut identity = Self { boot, has_voted, standing, ..Self::new(uuid, founding) };
        for _ in 0..reader.varint()? {
            identity.former.insert(u128_of(&mut reader)?);
        }
        identity.settled_mark = Timestamp::from_u64(reader.u64()?);
        for _ in 0..reader.varint()? {
            let peer = NodeId::from_canonical(reader.text()?);
            let flags = reader.u8()?;
            let next = (flags & 1 != 0).then(|| reader.bytes().map(Bytes::copy_from_slice)).transpose()?;
            let progress = Progress { next, whole: flags & 2 != 0 };
            identity.rebuild.insert(peer, progress);
        }
        for _ in 0..reader.varint()? {
            let peer = NodeId::from_canonical(reader.text()?);
            let (uuid, mark) = (u128_of(&mut reader)?, Timestamp::from_u64(reader.u64()?));
            let run = if has_runs { reader.u64()? } else { 0 };
            identity.peers.insert(peer, Remembered { uuid, mark, run });
        }
        if has_runs {
            for _ in 0..reader.varint()? {
                identity.founders.insert(NodeId::from_canonical(reader.text()?));
            }
        }
        reader.finish()?;
        Ok(identity)
    }
}

impl Founding {
    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.cluster_name.as_bytes());
        out.put_u32_le(self.range_count);
        out.put_u32_le(self.replication_factor as u32);
        put_varint(out, self.members.len() as u64);
        for member in &self.members {
            put_bytes(out, member.id.as_str().as_bytes());
            out.put_u32_le(member.weight);
            out.put_u8(u8::from(member.zone.is_some()));
            if let Some(zone) = &member.zone {
                put_bytes(out, zone.as_bytes());
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let cluster_name = reader.text()?.to_owned();
        let (range_count, replication_factor) = (reader.u32()?, reader.u32()? as usize);
        let mut members = Vec::new();
        for _ in 0..reader.varint()? {
            let id = NodeId::from_canonical(reader.text()?);
            let weight = reader.u32()?;
            let zone = match reader.u8()? {
                0 => None,
                _ => Some(reader.text()?.to_owned()),
            };
            members.push(Member { id, weight, zone });
        }
        Ok(Self { cluster_name, range_count, replication_factor, members })
    }

    /// The first figure that differs, with both values: one line for whoever changed it.
    pub fn difference(&self, configured: &Self) -> Option<String> {
        let differ = |name: &str, here: String, there: String| {
            (here != there).then(|| format!("{name}: the data was made with {here}, configured is {there}"))
        };
        let numbers =
            |founding: &Self| (founding.replication_factor.to_string(), founding.range_count.to_string());
        let (here, there) = (numbers(self), numbers(configured));
        differ("CLUSTER_NAME", self.cluster_name.clone(), configured.cluster_name.clone())
            .or_else(|| differ("members", self.members_line(), configured.members_line()))
            .or_else(|| differ("replication factor", here.0, there.0))
            .or_else(|| differ("CLUSTER_RANGES", here.1, there.1))
    }

    fn members_line(&self) -> String {
        let member = |member: &Member| match &member.zone {
            None => format!("{};vnodes={}", member.id, member.weight),
            Some(zone) => format!("{};vnodes={};zone={zone}", member.id, member.weight),
        };
        self.members.iter().map(member).collect::<Vec<_>>().join(",")
    }
}

fn u128_of(reader: &mut Reader<'_>) -> Result<u128, DecodeError> {
    let (low, high) = (reader.u64()?, reader.u64()?);
    Ok(u128::from(high) << 64 | u128::from(low))
}

impl IdentityFile {
    /// Keeps an identity that is on disk as it is given here.
    pub fn new(env: &Env, path: PathBuf, identity: Identity) -> Self {
        let inner = Inner {
            env: env.clone(),
            path,
            identity: Mutex::new(identity),
            writer: Mutex::default(),
            failed: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Looks at it.
    pub fn with<T>(&self, look: impl FnOnce(&Identity) -> T) -> T {
        look(&self.inner.identity.lock())
    }

    /// Whether a write failed: nothing more can be remembered until a restart. Costs no I/O.
    pub fn has_failed(&self) -> bool {
        self.inner.failed.load(Ordering::Relaxed)
    }

    /// Changes it in memory; the change goes to disk with the next [`IdentityFile::update`].
    pub fn note<T>(&self, change: impl FnOnce(&mut Identity) -> T) -> T {
        change(&mut self.inner.identity.lock())
    }

    /// Changes it, and returns once the change is on disk.
    pub async fn update(&self, change: impl FnOnce(&mut Identity)) -> Result<(), NotSaved> {
        self.note(change);
        let inner = self.inner.clone();
        self.inner.env.pool.run(Lane::Aside, move || inner.save()).await
    }

    /// Changes it, and returns once the change is on disk. While the disk is full it is tried again: what a node may vote by
    /// must be written before it goes on, and space may return.
    pub async fn update_once_there_is_room(
        &self,
        change: impl FnOnce(&mut Identity),
    ) -> Result<(), NotSaved> {
        let mut saved = self.update(change).await;
        while saved.is_err() && !self.has_failed() {
            tokio::time::sleep(RETRY_EVERY).await;
            saved = self.update(|_| {}).await;
        }
        saved
    }
}

impl Inner {
    fn save(&self) -> Result<(), NotSaved> {
        let _writer = self.writer.lock();
        if self.failed.load(Ordering::Relaxed) {
            return Err(NotSaved);
        }
        let identity = self.identity.lock().clone();
        identity.write(&self.env, &self.path).map_err(|error| {
            tracing::error!(%error, path = %self.path.display(), "identity not written");
            // After a full disk, or a shortage that passes, there is the old one or the new one, and the next try writes
            // all of it again.
            let may_be_tried_again = vfs::is_no_space(&error) || vfs::is_passing(&error);
            self.failed.fetch_or(!may_be_tried_again, Ordering::Relaxed);
            NotSaved
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founding() -> Founding {
        let member = |name: &str, zone: Option<&str>| Member {
            id: NodeId::from_canonical(name),
            weight: 10,
            zone: zone.map(str::to_owned),
        };
        Founding {
            cluster_name: "kvstore".to_owned(),
            range_count: 1024,
            replication_factor: 2,
            members: vec![member("a:1", None), member("b:1", Some("x"))],
        }
    }

    fn identity() -> Identity {
        let (a, b) = (NodeId::from_canonical("a:1"), NodeId::from_canonical("b:1"));
        Identity {
            boot: 7,
            has_voted: true,
            former: [3, u128::MAX].into(),
            settled_mark: Timestamp::from_u64(9),
            rebuild: [
                (a.clone(), Progress { next: None, whole: true }),
                (b, Progress { next: Some(Bytes::from_static(b"k\0")), whole: false }),
            ]
            .into(),
            peers: [(a.clone(), Remembered { uuid: u128::MAX / 3, mark: Timestamp::from_u64(5), run: 77 })]
                .into(),
            founders: [a].into(),
            ..Identity::new(u128::MAX / 7, founding())
        }
    }

    #[test]
    fn an_identity_reads_back_as_written() {
        let identity = identity();
        assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
    }

    #[test]
    fn an_identity_of_the_version_before_is_read_and_has_neither_runs_nor_founders() {
        let mut expected = Identity { founders: BTreeSet::new(), ..identity() };
        let mut bytes = expected.encode();
        bytes.truncate(bytes.len() - 4 - 1 - 8); // the checksum, no founders, and the run of the last and only peer
        bytes[..8].copy_from_slice(MAGIC_1);
        let crc = crc32fast::hash(&bytes);
        bytes.put_u32_le(crc);
        expected.peers.values_mut().for_each(|remembered| remembered.run = 0);
        assert_eq!(Identity::decode(&bytes), Ok(expected));
        assert!(is_identity(&bytes));
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed() {
        let bytes = identity().encode();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::decode(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Identity::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn a_difference_names_both_values() {
        let here = founding();
        assert_eq!(here.difference(&here), None);
        let mut there = founding();
        there.members.pop();
        assert_eq!(
            here.difference(&there).unwrap(),
            "members: the data was made with a:1;vnodes=10,b:1;vnodes=10;zone=x, configured is a:1;vnodes=10"
        );
        let there = Founding { range_count: 8, ..founding() };
        assert!(here.difference(&there).unwrap().contains("1024, configured is 8"));
    }
}
