//! Replica-to-replica messages, and the two traits that carry and serve them.

pub mod codec;
pub mod frame;
pub mod message;
pub mod tcp;
pub mod transport;

pub use codec::{
    WIRE_VERSIONS, decode_request, decode_response, encode_request, encode_request_as, encode_response,
    encode_response_as,
};
pub use frame::{Frame, FrameError, Kind};
pub use message::{
    Facts, GROUP_BYTES_MAX, HeldVersion, ITEMS_MAX, Refusal, ReplicaRequest, ReplicaResponse, Request,
    Response, ScanPage, ScanRequest, WriteOrigin,
};
pub use transport::{BoxFuture, Error, Handler, Transport};
