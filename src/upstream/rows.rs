//! What pgusher itself asks an upstream.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stream::Stream;
use crate::wire::{self, HEADER, Header};

/// The longest message that is read, in bytes.
const MAX_ROW: usize = 1 << 20;

/// How many bytes of answers are still read: whoever may define things in a database chooses them.
#[derive(Debug)]
pub struct Allowance(usize);

impl Allowance {
    /// So many bytes, all messages and their headers included.
    pub fn bytes(bytes: usize) -> Self {
        Self(bytes)
    }
}

/// Runs one simple query on a connection that nobody else uses meanwhile, and shows each of its rows; a row that is not
/// understood is an error.
///
/// # Errors
/// The query failed (`InvalidData`, in the server's words), the answer is longer than allowed (`QuotaExceeded`), or the
/// connection is lost. But for the first, the connection cannot be used any further.
pub async fn rows(
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
            b'Z' => return failed.map_or(Ok(()), |message| Err(invalid(message))),
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
