//! The handshake over a connection: hellos, proofs and verdicts, both sides of it (`tcp::hello` draws it).

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::Shared;
use super::hello::{Hello, Role, Transcript, Verdict, common_wire_version, differences};
use super::incoming::{Ended, Incoming};
use crate::rpc::frame::{Frame, Kind};
use crate::tls::PeerCertificate;
use crate::types::{NodeId, Timestamp};
use crate::util::coding::DecodeError;

/// The longest hello or verdict, in bytes: all that a stranger can make us hold.
const LEN_MAX: usize = 256 << 10;

/// Why a connection was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It broke, or what came was no handshake. Trying again may help.
    #[error("{0}")]
    Failed(String),
    /// It is there, and takes no peers yet.
    #[error("{0}")]
    NotYet(String),
    /// The two nodes must not talk. Trying again helps once somebody has changed a setting.
    #[error("{text}")]
    Problem {
        /// What stands between them, in one line.
        text: String,
        /// Who the other is, where that is proved.
        from: Option<NodeId>,
    },
}

impl From<Ended> for Refused {
    fn from(ended: Ended) -> Self {
        Self::Failed(ended.to_string())
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<DecodeError> for Refused {
    fn from(error: DecodeError) -> Self {
        Self::Failed(format!("handshake: {error}"))
    }
}

/// Shakes hands with the node dialled as `peer`, for one of our workers; returns the wire version to speak.
pub(super) async fn dial<R: AsyncRead + Unpin>(
    shared: &Shared,
    peer: &NodeId,
    worker: u16,
    incoming: &mut Incoming<R>,
    io: &mut (impl AsyncWrite + Unpin),
) -> Result<u16, Refused> {
    let ours = shared.hello(peer.clone(), worker);
    let our_body = send(io, Kind::Hello, |out| ours.encode(out)).await?;
    let their_body = receive(incoming, Kind::Hello).await?;
    let theirs = Hello::decode(&their_body)?;
    let transcript = Transcript { dialler: &our_body, server: &their_body };
    let secret = shared.settings.secret.as_deref();
    let problem = differences(&ours, &theirs, Role::Dialler);
    let verdict = Verdict {
        // A node without a secret gets no proof: it could not check it, only guess at it.
        proof: transcript.prove(secret.filter(|_| theirs.has_secret), Role::Dialler),
        problem: problem.clone().unwrap_or_default(),
    };
    send(io, Kind::Verdict, |out| verdict.encode(out)).await?;
    let verdict = Verdict::decode(&receive(incoming, Kind::Verdict).await?)?;
    let text = if let Some(problem) = problem {
        problem
    } else if !verdict.problem.is_empty() {
        format!("refused by the peer: {}", verdict.problem)
    } else if !transcript.is_proved(secret, Role::Server, &verdict.proof) {
        "CLUSTER_SECRET is not the same".to_owned()
    } else {
        return Ok(wire_version(&ours, &theirs));
    };
    Err(Refused::Problem { text, from: Some(peer.clone()) })
}

/// The wire version that two nodes speak which have found no difference between them.
fn wire_version(ours: &Hello, theirs: &Hello) -> u16 {
    common_wire_version(ours.wire_versions, theirs.wire_versions).expect("a difference was looked for before")
}

/// Shakes hands with whoever dialled this node; returns who it is, for which of its workers, and the wire version to speak. A
/// certificate that it has shown must name the host that it claims to be.
pub(super) async fn accept<R: AsyncRead + Unpin>(
    shared: &Shared,
    certificate: Option<&PeerCertificate>,
    incoming: &mut Incoming<R>,
    io: &mut (impl AsyncWrite + Unpin),
) -> Result<(NodeId, u16, u16), Refused> {
    let their_body = receive(incoming, Kind::Hello).await?;
    let theirs = Hello::decode(&their_body)?;
    let ours = shared.hello(theirs.from.clone(), 0);
    let our_body = send(io, Kind::Hello, |out| ours.encode(out)).await?;
    let transcript = Transcript { dialler: &their_body, server: &our_body };
    let secret = shared.settings.secret.as_deref();
    let verdict = Verdict::decode(&receive(incoming, Kind::Verdict).await?)?;
    let is_named = certificate.is_none_or(|certificate| certificate.names(&theirs.from));
    let has_secret = transcript.is_proved(secret, Role::Dialler, &verdict.proof);
    let proved = is_named && has_secret;
    let problem = differences(&ours, &theirs, Role::Server)
        .or_else(|| (!has_secret).then(|| "CLUSTER_SECRET is not the same".to_owned()))
        .or_else(|| {
            (!is_named).then(|| format!("the certificate shown does not name the host of {}", theirs.from))
        });
    let answer = Verdict {
        proof: transcript.prove(secret.filter(|_| proved), Role::Server),
        problem: problem.clone().unwrap_or_default(),
    };
    send(io, Kind::Verdict, |out| answer.encode(out)).await?;
    let from = proved.then(|| theirs.from.clone());
    if let Some(text) = problem {
        return Err(Refused::Problem { text, from });
    }
    if !verdict.problem.is_empty() {
        let text = format!("refused by the peer: {}", verdict.problem);
        return Err(Refused::Problem { text, from });
    }
    let wire = wire_version(&ours, &theirs);
    Ok((theirs.from, theirs.worker, wire))
}

/// Sends one frame and returns its body.
async fn send(
    io: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    encode: impl FnOnce(&mut BytesMut),
) -> Result<Bytes, Refused> {
    let mut body = BytesMut::new();
    encode(&mut body);
    let body = body.freeze();
    let mut out = BytesMut::new();
    Frame::encode(0, kind, 0, Timestamp::ZERO, &mut out, |out| out.extend_from_slice(&body))
        .map_err(|error| Refused::Failed(error.to_string()))?;
    io.write_all(&out).await?;
    io.flush().await?;
    Ok(body)
}

async fn receive<R: AsyncRead + Unpin>(incoming: &mut Incoming<R>, kind: Kind) -> Result<Bytes, Refused> {
    let frame = incoming.frame(LEN_MAX).await?;
    if frame.kind != kind {
        return Err(Refused::Failed(format!("handshake: {:?} where {kind:?} was expected", frame.kind)));
    }
    Ok(frame.body)
}
