//! Hello: who a node is and what ring it knows; where two of them differ; how a shared secret is proved. Pure.
//!
//! ```text
//! dialler                                   server
//! Hello { nonce, names, ring } ───────────>
//!          <─────────── Hello { nonce, names, ring }
//! Verdict { proof, problem } ─────────────>              checks the proof before it gives its own
//!          <─────────── Verdict { proof, problem }
//! ```
//!
//! A proof is `HMAC-SHA256(secret, role ++ both hellos)`: the hellos hold a fresh nonce each and both names, and
//! the role keeps a proof from being sent back to who made it. The secret itself never travels. This proves who is
//! there when a connection begins; it neither hides nor seals what is said afterwards.

use bytes::{BufMut, BytesMut};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::cluster::Member;
#[cfg(test)]
use crate::rpc::WIRE_VERSIONS;
use crate::rpc::codec::NAME_LEN_MAX;
use crate::types::NodeId;
use crate::util::coding::{DecodeError, Reader, put_bytes, put_varint};

/// Members in a hello, at most.
const MEMBERS_MAX: usize = 4096;
/// The longest problem that a verdict tells, in bytes.
const PROBLEM_LEN_MAX: usize = 4096;
/// Names shown of those that only one side has.
const NAMES_SHOWN_MAX: usize = 5;
const PROOF_LEN: usize = 32;

/// What one side says of itself. Both fill every field alike; see [`differences`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// Fresh for every connection.
    pub nonce: [u8; 32],
    /// Oldest and newest wire format it speaks.
    pub wire_versions: (u16, u16),
    /// Its own name.
    pub from: NodeId,
    /// The name it takes the other for: what it dialled, or what the dialler called itself.
    pub to: NodeId,
    pub cluster_name: String,
    /// Which of the dialler's workers this connection is for: it replaces an earlier one of the same worker.
    pub worker: u16,
    /// Whether it has a `CLUSTER_SECRET`.
    pub has_secret: bool,
    /// N in force.
    pub replication_factor: u32,
    /// Q.
    pub range_count: u32,
    /// The seed of the hash that places keys.
    pub hash_seed: u64,
    /// All members, sorted by name.
    pub members: Vec<Member>,
}

/// What one side concludes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Verdict {
    /// Proof of the secret; empty without one.
    pub proof: Vec<u8>,
    /// Why the connection is refused; empty when it is not.
    pub problem: String,
}

/// Which side proves. Numbered inside the proof: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Dialler = 1,
    Server = 2,
}

impl Hello {
    /// Appends the body of a hello frame.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.nonce);
        out.put_u16_le(self.wire_versions.0);
        out.put_u16_le(self.wire_versions.1);
        put_bytes(out, self.from.as_str().as_bytes());
        put_bytes(out, self.to.as_str().as_bytes());
        put_bytes(out, self.cluster_name.as_bytes());
        out.put_u16_le(self.worker);
        out.put_u8(self.has_secret.into());
        out.put_u32_le(self.replication_factor);
        out.put_u32_le(self.range_count);
        out.put_u64_le(self.hash_seed);
        put_varint(out, self.members.len() as u64);
        for member in &self.members {
            put_bytes(out, member.id.as_str().as_bytes());
            out.put_u32_le(member.weight);
            put_bytes(out, member.zone.as_deref().unwrap_or_default().as_bytes());
        }
    }

    /// Reads the body of a hello frame. Bytes beyond what this version knows are a later version's, and skipped.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let mut nonce = [0; 32];
        nonce.copy_from_slice(reader.take(32)?);
        let wire_versions = (reader.u16()?, reader.u16()?);
        let (from, to) = (name(&mut reader)?, name(&mut reader)?);
        let cluster_name = text(&mut reader)?.to_owned();
        let worker = reader.u16()?;
        let has_secret = reader.u8()? != 0;
        let (replication_factor, range_count) = (reader.u32()?, reader.u32()?);
        let hash_seed = reader.u64()?;
        let count = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        if count > MEMBERS_MAX {
            return Err(DecodeError("at most 4096 members"));
        }
        let mut members = Vec::new();
        for _ in 0..count {
            let (id, weight) = (name(&mut reader)?, reader.u32()?);
            let zone = Some(text(&mut reader)?).filter(|zone| !zone.is_empty()).map(str::to_owned);
            members.push(Member { id, weight, zone });
        }
        Ok(Self {
            nonce,
            wire_versions,
            from,
            to,
            cluster_name,
            worker,
            has_secret,
            replication_factor,
            range_count,
            hash_seed,
            members,
        })
    }
}

impl Verdict {
    /// Appends the body of a verdict frame.
    pub fn encode(&self, out: &mut BytesMut) {
        put_bytes(out, &self.proof);
        let mut shown = self.problem.len().min(PROBLEM_LEN_MAX);
        while !self.problem.is_char_boundary(shown) {
            shown -= 1;
        }
        put_bytes(out, &self.problem.as_bytes()[..shown]);
    }

    /// Reads the body of a verdict frame, skipping what a later version added.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let proof = reader.bytes()?;
        let problem = reader.text()?;
        if proof.len() > PROOF_LEN || problem.len() > PROBLEM_LEN_MAX {
            return Err(DecodeError("a verdict of bounded size"));
        }
        // It is shown in one line of a log.
        let problem = problem.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Ok(Self { proof: proof.to_vec(), problem })
    }
}

fn text<'a>(reader: &mut Reader<'a>) -> Result<&'a str, DecodeError> {
    let text = reader.text()?;
    if text.len() > NAME_LEN_MAX || text.chars().any(char::is_control) {
        return Err(DecodeError("a printable name of at most 512 bytes"));
    }
    Ok(text)
}

fn name(reader: &mut Reader<'_>) -> Result<NodeId, DecodeError> {
    text(reader).map(NodeId::from_canonical)
}

/// The newest wire format that both sides speak.
pub(super) fn common_wire_version(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let newest = ours.1.min(theirs.1);
    (newest >= ours.0 && newest >= theirs.0).then_some(newest)
}

/// Says where two hellos differ, with both values, in one line; `None` when the two nodes may talk.
pub(super) fn differences(ours: &Hello, theirs: &Hello, role: Role) -> Option<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, here: &dyn ToString, there: &dyn ToString| {
        let (here, there) = (here.to_string(), there.to_string());
        if here != there {
            found.push(format!("{what} is {here} here, {there} there"));
        }
    };
    compare("cluster name", &ours.cluster_name, &theirs.cluster_name);
    compare("N", &ours.replication_factor, &theirs.replication_factor);
    compare("Q", &ours.range_count, &theirs.range_count);
    compare("hash seed", &ours.hash_seed, &theirs.hash_seed);
    let secret = |hello: &Hello| if hello.has_secret { "set" } else { "not set" };
    compare("CLUSTER_SECRET", &secret(ours), &secret(theirs));
    match role {
        Role::Dialler if ours.to != theirs.from => {
            found.push(format!("the node dialled as {} calls itself {}", ours.to, theirs.from));
        }
        Role::Server if theirs.to != ours.from => {
            found.push(format!("{} dialled this node as {}; it is {}", theirs.from, theirs.to, ours.from));
        }
        Role::Dialler | Role::Server => {}
    }
    if common_wire_version(ours.wire_versions, theirs.wire_versions).is_none() {
        let ((a, b), (c, d)) = (ours.wire_versions, theirs.wire_versions);
        found.push(format!("wire versions are {a} to {b} here, {c} to {d} there"));
    }
    if ours.members != theirs.members {
        let (here, there) =
            (only_in(&ours.members, &theirs.members), only_in(&theirs.members, &ours.members));
        found.push(format!("members only here: {here}; only there: {there}"));
    } else if !ours.members.iter().any(|member| member.id == theirs.from) {
        found.push(format!("{} is no member", theirs.from));
    }
    if ours.from == theirs.from {
        found.push(format!("both nodes are named {}", ours.from));
    }
    (!found.is_empty()).then(|| found.join("; "))
}

/// The members of `these` that `others` does not have just so, the first few of them.
fn only_in(these: &[Member], others: &[Member]) -> String {
    let missing: Vec<&Member> = these.iter().filter(|member| !others.contains(member)).collect();
    if missing.is_empty() {
        return "none".to_owned();
    }
    let shown = missing.iter().take(NAMES_SHOWN_MAX).map(|Member { id, weight, zone }| {
        let zone = zone.as_ref().map(|zone| format!(";zone={zone}")).unwrap_or_default();
        format!("{id};vnodes={weight}{zone}")
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    match missing.len().saturating_sub(NAMES_SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The bodies of both hellos, as they travelled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transcript<'a> {
    pub dialler: &'a [u8],
    pub server: &'a [u8],
}

impl Transcript<'_> {
    fn mac(self, secret: &str, prover: Role) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
        mac.update(b"kvstore-rpc/1");
        mac.update(&[prover as u8]);
        for hello in [self.dialler, self.server] {
            mac.update(&(hello.len() as u64).to_le_bytes());
            mac.update(hello);
        }
        mac
    }

    /// What `prover` sends to show that it knows the secret; empty without one.
    pub fn prove(self, secret: Option<&str>, prover: Role) -> Vec<u8> {
        secret.map_or(Vec::new(), |secret| self.mac(secret, prover).finalize().into_bytes().to_vec())
    }

    /// Whether `proof` shows that `prover` knows our secret; compared in constant time. Without a secret of our own
    /// there is nothing to show.
    pub fn is_proved(self, secret: Option<&str>, prover: Role, proof: &[u8]) -> bool {
        secret.is_none_or(|secret| self.mac(secret, prover).verify_slice(proof).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(name: &str) -> Member {
        Member { id: NodeId::from_canonical(name), weight: 10, zone: None }
    }

    fn hello(from: &str, to: &str) -> Hello {
        Hello {
            nonce: [7; 32],
            wire_versions: WIRE_VERSIONS,
            from: NodeId::from_canonical(from),
            to: NodeId::from_canonical(to),
            cluster_name: "kvstore".to_owned(),
            worker: 3,
            has_secret: false,
            replication_factor: 3,
            range_count: 1024,
            hash_seed: 0,
            members: vec![member("a:1"), member("b:1"), member("c:1")],
        }
    }

    #[test]
    fn a_hello_decodes_as_encoded_and_skips_what_a_later_version_added() {
        let mut hello = hello("a:1", "b:1");
        hello.members[1].zone = Some("east".to_owned());
        let mut body = BytesMut::new();
        hello.encode(&mut body);
        body.put_slice(b"later");
        assert_eq!(Hello::decode(&body), Ok(hello));
    }

    #[test]
    fn two_nodes_of_one_ring_differ_in_nothing() {
        let (a, b) = (hello("a:1", "b:1"), hello("b:1", "a:1"));
        assert_eq!(differences(&a, &b, Role::Dialler), None);
        assert_eq!(differences(&b, &a, Role::Server), None);
    }

    #[test]
    fn every_difference_is_told_by_both_sides_with_both_values() {
        type Change<'a> = (&'a str, &'a dyn Fn(&mut Hello));
        let changes: [Change<'_>; 8] = [
            ("cluster name is kvstore here, other there", &|b| b.cluster_name = "other".to_owned()),
            ("N is 3 here, 2 there", &|b| b.replication_factor = 2),
            ("Q is 1024 here, 64 there", &|b| b.range_count = 64),
            ("hash seed is 0 here, 9 there", &|b| b.hash_seed = 9),
            ("CLUSTER_SECRET is not set here, set there", &|b| b.has_secret = true),
            ("wire versions are 1 to 2 here, 3 to 4 there", &|b| b.wire_versions = (3, 4)),
            ("only here: c:1;vnodes=10; only there: c:1;vnodes=20;zone=z", &|b| {
                b.members[2].weight = 20;
                b.members[2].zone = Some("z".to_owned());
            }),
            ("the node dialled as b:1 calls itself x:1", &|b| b.from = NodeId::from_canonical("x:1")),
        ];
        let a = hello("a:1", "b:1");
        for (expected, change) in changes {
            let mut b = hello("b:1", "a:1");
            change(&mut b);
            let told = differences(&a, &b, Role::Dialler).unwrap();
            assert!(told.contains(expected), "{told}");
            assert!(differences(&b, &a, Role::Server).is_some(), "{expected}");
        }
    }

    #[test]
    fn a_node_dialled_by_another_name_says_both_names() {
        let told = differences(&hello("b:1", "a:1"), &hello("a:1", "x:1"), Role::Server).unwrap();
        assert_eq!(told, "a:1 dialled this node as x:1; it is b:1");
    }

    #[test]
    fn the_highest_common_wire_version_is_used() {
        assert_eq!(common_wire_version((1, 3), (2, 5)), Some(3));
        assert_eq!(common_wire_version((1, 1), (1, 4)), Some(1));
        assert_eq!(common_wire_version((1, 1), (2, 4)), None);
    }

    #[test]
    fn a_proof_holds_for_its_secret_its_prover_and_its_hellos_alone() {
        let transcript = Transcript { dialler: b"one", server: b"two" };
        let proof = transcript.prove(Some("secret"), Role::Dialler);
        assert_eq!(proof.len(), PROOF_LEN);
        assert!(transcript.is_proved(Some("secret"), Role::Dialler, &proof));
        assert!(!transcript.is_proved(Some("Secret"), Role::Dialler, &proof));
        assert!(!transcript.is_proved(Some("secret"), Role::Server, &proof), "sent back to who made it");
        assert!(!Transcript { dialler: b"on", server: b"etwo" }.is_proved(
            Some("secret"),
            Role::Dialler,
            &proof
        ));
        assert!(!transcript.is_proved(Some("secret"), Role::Dialler, &[]));
        assert!(transcript.is_proved(None, Role::Dialler, &[]));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body: Vec<u8>) {
            let _ = Hello::decode(&body);
            let _ = Verdict::decode(&body);
        }

        #[test]
        fn a_verdict_decodes_as_encoded(proof in prop::collection::vec(any::<u8>(), 0..=32), problem in "[ -~]{0,80}") {
            let verdict = Verdict { proof, problem };
            let mut body = BytesMut::new();
            verdict.encode(&mut body);
            prop_assert_eq!(Verdict::decode(&body), Ok(verdict));
        }
    }
}
