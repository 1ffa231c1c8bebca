//! What pgusher itself asks an upstream.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stream::Stream;
use crate::wire::{self, HEADER, Header};

/// The longest row that is read.
const MAX_ROW: usize = 8 << 20;

/// Runs one simple query on a connection that nobody else uses meanwhile, and shows each of its rows; a row that is not
/// understood is an error.
///
/// # Errors
/// The query failed (`InvalidData`, in the server's words), or the connection is lost.
pub async fn rows(
    stream: &mut Stream,
    sql: &str,
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
            _ => return Err(invalid("a message that is too long".into())),
        };
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
