//! What pgusher itself asks an upstream.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stream::Stream;
use wire::{HEADER, Header};

/// The longest message that is read, in bytes.
const MAX_ROW: usize = 1 << 20;

/// How many bytes of answers are still read: whoever may define things in a database chooses them.
#[derive(Debug)]
pub(crate) struct Allowance(usize);

impl Allowance {
    /// So many bytes, all messages and their headers included.
    pub(crate) fn bytes(bytes: usize) -> Self {
        Self(bytes)
    }
}

/// Runs one simple query on a connection that nobody else uses meanwhile, and shows each of its rows; a row that is not
/// understood is an error.
///
/// # Errors
/// The query failed (`Other`, in the server's words), the answer is broken (`InvalidData`) or longer than allowed (`QuotaExceeded`), or the
/// connection is lost. But for the first, the connection cannot be used any further.
pub(crate) async fn rows(
    stream: &mut Stream,
    sql: &str,
    allowed: &mut Allowance,
    mut each: impl FnMut(&[Option<&[u8]>]) -> Option<()>,
) -> io::Result<()> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut out = Vec::new();
    wire::query(&mut out, sql);
    stream.write_all(&out).await?;
    stream.flush().await?;
    let mut failed = None;
    let mut body = Vec::new();
    loop {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await?;
        let header = match Header::read(&header) {
            Some(Ok(header)) if header.total <= MAX_ROW => header,
            _ => return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "a message that is too long")),
        };
        allowed.0 = allowed.0.checked_sub(header.total).ok_or(io::ErrorKind::QuotaExceeded)?;
        body.resize(header.total - HEADER, 0);
        stream.read_exact(&mut body).await?;
        match header.tag {
            b'Z' => return failed.map_or(Ok(()), |message: String| Err(io::Error::other(message))),
            b'E' => {
                let message = wire::error_field(&body, b'M').unwrap_or_default();
                failed = Some(String::from_utf8_lossy(message).into_owned());
            }
            b'D' => {
                let row = wire::columns(&body).ok_or_else(|| invalid("a broken row".into()))?;
                each(&row).ok_or_else(|| invalid("a row of another kind".into()))?;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Socket;

    /// Asks a peer that answers with this without end, and is allowed so much.
    async fn asked(answer: Vec<u8>, allowed: usize) -> (io::Result<()>, usize) {
        let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
        let endless = async move { while far.write_all(&answer).await.is_ok() {} };
        tokio::spawn(endless);
        let (mut stream, mut seen) = (Stream::Plain(Socket::Unix(near)), 0);
        let count = |row: &[Option<&[u8]>]| {
            seen += row.iter().flatten().map(|value| value.len()).sum::<usize>();
            Some(())
        };
        let outcome = rows(&mut stream, "SELECT", &mut Allowance::bytes(allowed), count).await;
        (outcome, seen)
    }

    #[tokio::test]
    async fn answers_are_read_as_far_as_they_are_allowed() {
        let mut row = Vec::new();
        wire::message(&mut row, b'D', |out| {
            out.extend([0, 1]);
            out.extend(1000_u32.to_be_bytes());
            out.extend([b'x'; 1000]);
        });
        for allowed in [1 << 10, 64 << 10, 1 << 20] {
            let (outcome, seen) = asked(row.clone(), allowed).await;
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
            assert!(seen <= allowed, "{seen} of {allowed}");
            // Messages that are no rows count as well.
            let mut notice = Vec::new();
            wire::notice_response(&mut notice, "endless");
            assert_eq!(asked(notice, allowed).await.0.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        }
        let huge = [&b"D"[..], &(1_u32 << 29).to_be_bytes()].concat();
        assert_eq!(asked(huge, usize::MAX).await.0.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        let broken = [&b"D\0\0\0\x06"[..], &[0xff; 2]].concat();
        assert_eq!(asked(broken, 1 << 20).await.0.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
