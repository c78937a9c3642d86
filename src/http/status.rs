//! The one table from what went wrong to what the client is told.
//!
//! 503 means that no replica was sent anything, 504 that some may have it: promise 7 of DESIGN is kept or broken here,
//! so there is one `match` and no `_` in it.

use hyper::StatusCode;

use crate::replication::{CheckpointError, NotSent, ReadError, WriteError};

/// Why a request is not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The request is not what the dialect says: what and where.
    #[error("{0}")]
    BadRequest(String),
    /// Nothing lives at this path.
    #[error("No such path")]
    NoSuchPath,
    /// The path knows other methods.
    #[error("method not allowed; use {allow}")]
    MethodNotAllowed {
        /// The methods it knows.
        allow: String,
    },
    /// No token, or none that is known.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// A peer may not come in this way, or a token may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// The node is not known by the name in `Host`.
    #[error(
        "this node is not known as \"{0}\"; list the name in KVSTORE_ALLOWED_HOSTS, or have clients show tokens (API_TOKEN)"
    )]
    UnknownHost(String),
    /// Another web site's page has a browser write.
    #[error("a page of another site may not write without a token")]
    CrossSite,
    /// What is asked for is understood, and not offered.
    #[error("{0}")]
    NotImplemented(&'static str),
    /// The value is not the one that the request means.
    #[error("the value is not the one that the request's conditions name")]
    PreconditionFailed,
    /// The body is in a coding.
    #[error(
        "a body with a Content-Encoding is not taken, since it could not be told from other bytes; send it as it is"
    )]
    UnsupportedCoding,
    /// The body did not come in time.
    #[error("the request's body came too slowly")]
    TooSlow,
    /// The body is longer than `MAX_BODY_SIZE`.
    #[error("body has more than {limit} bytes")]
    BodyTooLarge {
        /// `MAX_BODY_SIZE`.
        limit: usize,
    },
    /// A key or a value is too long: which, and how long it may be.
    #[error("{0}")]
    TooLarge(String),
    /// `MAX_INFLIGHT_BYTES` are in flight.
    #[error("too many bytes in flight; try again")]
    Overloaded,
    /// The node is starting or stopping.
    #[error("not ready: {0}")]
    NotReady(&'static str),
    /// A write was not acknowledged.
    #[error("{0}")]
    Write(#[from] WriteError),
    /// A read was not answered.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// A checkpoint was not made, listed or removed.
    #[error("{0}")]
    Checkpoint(#[from] CheckpointError),
}

/// Whether a client may come back soon: seconds for `Retry-After`.
pub const RETRY_AFTER_SECONDS: u64 = 1;

impl Fault {
    /// The status code of the answer.
    pub fn code(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NoSuchPath | Self::Checkpoint(CheckpointError::Missing) => StatusCode::NOT_FOUND,
            Self::Checkpoint(CheckpointError::Exists) => StatusCode::CONFLICT,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) | Self::UnknownHost(_) | Self::CrossSite => StatusCode::FORBIDDEN,
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::UnsupportedCoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } | Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Overloaded
            | Self::NotReady(_)
            | Self::Checkpoint(CheckpointError::Busy)
            | Self::Write(WriteError::NotSent(
                NotSent::TooFewReplicas { .. }
                | NotSent::ClockAhead(_)
                | NotSent::NotReady(_)
                | NotSent::Overloaded,
            ))
            | Self::Read(ReadError::NotSent(
                NotSent::TooFewReplicas { .. }
                | NotSent::ClockAhead(_)
                | NotSent::NotReady(_)
                | NotSent::Overloaded,
            )) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Write(WriteError::Unknown { .. }) | Self::Read(ReadError::Unanswered { .. }) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Write(WriteError::NoSpace) | Self::Checkpoint(CheckpointError::NoSpace) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            Self::Read(ReadError::Damaged { .. }) | Self::Checkpoint(CheckpointError::Failed(_)) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

/// The status code of a batch of which some items were not acknowledged: the worst of their outcomes.
pub fn of_batch<'a>(failures: impl Iterator<Item = &'a WriteError>) -> StatusCode {
    let mut all_out_of_space = true;
    for failure in failures {
        match failure {
            WriteError::Unknown { .. } => return StatusCode::GATEWAY_TIMEOUT,
            WriteError::NotSent(_) => all_out_of_space = false,
            WriteError::NoSpace => {}
        }
    }
    if all_out_of_space { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::SERVICE_UNAVAILABLE }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::answer;
    use crate::replication::Acks;
    use crate::types::Timestamp;
    use hyper::header::RETRY_AFTER;

    fn unknown() -> WriteError {
        let acks = Acks { durable: 1, hinted: 1, failed: 0, pending: 1 };
        WriteError::Unknown {
            timestamp: Timestamp::from_u64(7),
            acks,
            needed: 2,
            causes: "b: timed out".to_owned(),
        }
    }

    fn not_sent() -> [NotSent; 4] {
        [
            NotSent::TooFewReplicas { needed: 2, reachable: 1, total: 3 },
            NotSent::ClockAhead(Duration::from_secs(1)),
            NotSent::NotReady("stopping".to_owned()),
            NotSent::Overloaded,
        ]
    }

    #[test]
    fn nothing_sent_is_503_with_a_time_to_come_back_and_maybe_sent_is_504() {
        for reason in not_sent() {
            for fault in [Fault::Write(reason.clone().into()), Fault::Read(reason.clone().into())] {
                let response = answer::fault(&fault);
                assert_eq!(response.status(), 503, "{fault}");
                assert_eq!(response.headers()[RETRY_AFTER], "1");
            }
        }
        let unanswered = ReadError::Unanswered { answered: 1, needed: 2, causes: String::new() };
        for fault in [Fault::Write(unknown()), Fault::Read(unanswered)] {
            let response = answer::fault(&fault);
            assert_eq!(response.status(), 504, "{fault}");
            assert!(response.headers().get(RETRY_AFTER).is_none(), "a retry may write a second time");
        }
    }

    #[test]
    fn a_write_of_unknown_outcome_says_its_timestamp_and_where_it_stood() {
        let response = answer::fault(&Fault::Write(unknown()));
        assert_eq!(response.headers()[answer::X_KV_TIMESTAMP], "7");
        assert_eq!(response.headers()[answer::X_KV_ACKS], "durable=1 hinted=1 failed=0 pending=1");
    }

    #[test]
    fn a_full_cluster_is_507_and_damage_everywhere_500() {
        assert_eq!(Fault::Write(WriteError::NoSpace).code(), 507);
        assert_eq!(Fault::Read(ReadError::Damaged { causes: String::new() }).code(), 500);
    }

    #[test]
    fn no_fault_has_an_empty_text() {
        let faults = [
            Fault::NoSuchPath,
            Fault::MethodNotAllowed { allow: "GET".to_owned() },
            Fault::TooSlow,
            Fault::BodyTooLarge { limit: 1 },
            Fault::Overloaded,
            Fault::UnknownHost("evil.test".to_owned()),
            Fault::CrossSite,
            Fault::NotImplemented("x"),
            Fault::PreconditionFailed,
            Fault::UnsupportedCoding,
            Fault::NotReady("x"),
            Fault::Write(unknown()),
            Fault::Write(WriteError::NoSpace),
        ];
        for fault in faults {
            assert!(!fault.to_string().is_empty(), "{fault:?}");
            assert!(fault.code().is_client_error() || fault.code().is_server_error());
        }
    }

    #[test]
    fn a_batch_is_as_bad_as_its_worst_item() {
        let nothing = WriteError::NotSent(NotSent::ClockAhead(Duration::from_secs(1)));
        let code = |items: &[WriteError]| of_batch(items.iter()).as_u16();
        assert_eq!(code(&[nothing.clone(), unknown()]), 504);
        assert_eq!(code(&[nothing.clone(), WriteError::NoSpace]), 503);
        assert_eq!(code(&[WriteError::NoSpace]), 507);
        assert_eq!(code(&[nothing]), 503);
    }
}
