//! A TLS stream that a patient one can stand on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;

use super::ServerStream;
use crate::util::patience::Socket;

impl Socket for ServerStream {
    /// Reads what has come, as far as the next byte of the conversation: an end is said inside of TLS, so it cannot be
    /// seen from outside.
    fn has_left(&mut self, cx: &mut Context<'_>) -> bool {
        let (stream, session) = self.get_mut();
        let mut source = Source { stream, cx };
        loop {
            match session.process_new_packets() {
                Err(_) => return true,
                Ok(state) if state.plaintext_bytes_to_read() > 0 => return false,
                Ok(state) if state.peer_has_closed() => return true,
                Ok(_) => {}
            }
            if !session.wants_read() {
                return false;
            }
            match session.read_tls(&mut source) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }
}

/// Reads from a socket as it is polled.
struct Source<'a, 'c> {
    stream: &'a mut TcpStream,
    cx: &'a mut Context<'c>,
}

impl io::Read for Source<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(bytes);
        match Pin::new(&mut *self.stream).poll_read(self.cx, &mut buf) {
            Poll::Ready(Ok(())) => Ok(buf.filled().len()),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
