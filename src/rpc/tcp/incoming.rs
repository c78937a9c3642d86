//! Incoming: frames as they come in from one connection.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

use crate::rpc::frame::{Frame, FrameError};

/// Room for one read, in bytes.
const READ_LEN: usize = 64 << 10;
/// Room made at once for a frame that says it is longer: memory follows the bytes that come, not the claim.
const RESERVE_MAX: usize = 1 << 20;
/// The longest head of an HTTP answer, in bytes.
const HEAD_LEN_MAX: usize = 8 << 10;

/// Why no further frame comes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The peer closed the connection.
    #[error("closed by the peer")]
    Closed,
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(super) struct Incoming<R> {
    io: R,
    received: BytesMut,
    /// When the newest of `received` came.
    arrived: Instant,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Reads from `io`; `received` came in already.
    pub fn new(io: R, received: BytesMut) -> Self {
        Self { io, received, arrived: Instant::now() }
    }

    /// When the frame taken last was here, at the latest.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Waits for the next frame. Cancel-safe: what was read stays.
    pub async fn frame(&mut self, len_max: usize) -> Result<Frame, Ended> {
        loop {
            if let Some(frame) = Frame::take(&mut self.received, len_max)? {
                return Ok(frame);
            }
            self.read().await?;
        }
    }

    /// Waits for the head of an HTTP answer and returns its first line.
    pub async fn status_line(&mut self) -> Result<String, Ended> {
        loop {
            if let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.received.split_to(end + 4);
                let line = head[..].split(|byte| *byte == b'\r').next().unwrap_or_default();
                return Ok(String::from_utf8_lossy(line).into_owned());
            }
            if self.received.len() > HEAD_LEN_MAX {
                return Err(io::Error::other("an HTTP head that is too long").into());
            }
            self.read().await?;
        }
    }

    /// Gives the connection back, for tests that speak by hand.
    #[cfg(test)]
    pub fn into_inner(self) -> R {
        assert!(self.received.is_empty(), "nothing was read ahead");
        self.io
    }

    async fn read(&mut self) -> Result<(), Ended> {
        if self.received.capacity() - self.received.len() < READ_LEN / 4 {
            self.received.reserve(self.missing().clamp(READ_LEN, RESERVE_MAX));
        }
        match self.io.read_buf(&mut self.received).await {
            Ok(0) => Err(Ended::Closed),
            // TLS that ends without a farewell. Nothing is lost by it: a frame says itself whether it is whole.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Ended::Closed),
            Err(error) => Err(error.into()),
            Ok(_) => {
                self.arrived = Instant::now();
                Ok(())
            }
        }
    }

    /// How many bytes the frame that is coming in still lacks.
    fn missing(&self) -> usize {
        let length =
            self.received.first_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        length.saturating_add(4).saturating_sub(self.received.len())
    }
}
