//! Frames of the PostgreSQL protocol: their headers, and the few messages that pgusher writes itself.

use crate::error::{Refusal, SqlState};

/// The length of a message's header: a tag of one byte and a length of four.
pub const HEADER: usize = 5;
/// The longest message body that PostgreSQL takes (`MaxAllocSize`), header's length field included.
pub const MAX_LENGTH: u32 = 0x3fff_ffff;
/// The longest message of the kinds that carry no data (`PQ_SMALL_MESSAGE_LIMIT`).
pub const MAX_SMALL_LENGTH: u32 = 10_000;

/// A message's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub tag: u8,
    /// Its whole length in bytes, header included.
    pub total: usize,
}

impl Header {
    /// Reads a header; `None` if fewer than five bytes are there.
    ///
    /// # Errors
    /// The length field, if it is none (below 4, or above [`MAX_LENGTH`]).
    pub fn read(bytes: &[u8]) -> Option<Result<Self, u32>> {
        let (head, _) = bytes.split_first_chunk::<HEADER>()?;
        let [tag, length @ ..] = *head;
        let length = u32::from_be_bytes(length);
        if !(4..=MAX_LENGTH).contains(&length) {
            return Some(Err(length));
        }
        Some(Ok(Self { tag, total: length as usize + 1 }))
    }
}

/// A text that ends with NUL at the start of these bytes, and what is behind the NUL.
pub fn cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    // Most names in messages are empty.
    if let [0, rest @ ..] = bytes {
        return Some((&[], rest));
    }
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Writes one message: the header, with a length that `body` decides.
pub fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    put_length(out, at, MAX_LENGTH);
}

/// Writes the length field of a message that was begun at `at`. What pgusher writes itself is far shorter than the
/// longest message; a longer one would be a bug, and must become neither a length that wraps nor a body that is read
/// as messages: it loses its body.
fn put_length(out: &mut Vec<u8>, at: usize, longest: u32) {
    let length = u32::try_from(out.len() - at).ok().filter(|l| *l <= longest);
    let length = length.unwrap_or_else(|| {
        out.truncate(at + 4);
        4
    });
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a text and its NUL; a NUL inside would end it early and is left out.
pub fn push_cstr(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().filter(|b| *b != 0));
    out.push(0);
}

/// How bad an error is: whether the session survives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// `ErrorResponse`
pub fn error_response(out: &mut Vec<u8>, severity: Severity, refusal: &Refusal) {
    message(out, b'E', |out| {
        let field = |out: &mut Vec<u8>, code: u8, text: &str| {
            out.push(code);
            push_cstr(out, text);
        };
        field(out, b'S', severity.word());
        field(out, b'V', severity.word());
        field(out, b'C', refusal.sqlstate.as_str());
        field(out, b'M', &refusal.message);
        if let Some(detail) = &refusal.detail {
            field(out, b'D', detail);
        }
        if let Some(hint) = &refusal.hint {
            field(out, b'H', hint);
        }
        out.push(0);
    });
}

/// `NoticeResponse` with severity NOTICE and SQLSTATE `00000`.
pub fn notice_response(out: &mut Vec<u8>, text: &str) {
    notice(out, "NOTICE", "00000", text, None);
}

/// `NoticeResponse` with severity WARNING.
pub fn warning_response(out: &mut Vec<u8>, sqlstate: SqlState, text: &str, hint: Option<&str>) {
    notice(out, "WARNING", sqlstate.as_str(), text, hint);
}

fn notice(out: &mut Vec<u8>, severity: &str, code: &str, text: &str, hint: Option<&str>) {
    message(out, b'N', |out| {
        let hint = hint.map(|hint| (b'H', hint));
        let fields = [(b'S', severity), (b'V', severity), (b'C', code), (b'M', text)];
        for (code, value) in fields.into_iter().chain(hint) {
            out.push(code);
            push_cstr(out, value);
        }
        out.push(0);
    });
}

/// `ParameterStatus`
pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    message(out, b'S', |out| {
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(value);
        out.push(0);
    });
}

/// `BackendKeyData`
pub fn backend_key_data(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    message(out, b'K', |out| {
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(secret);
    });
}

/// `ReadyForQuery` with its transaction status: `I`, `T` or `E`.
pub fn ready_for_query(out: &mut Vec<u8>, status: u8) {
    message(out, b'Z', |out| out.push(status));
}

/// `Query`
pub fn query(out: &mut Vec<u8>, sql: &str) {
    message(out, b'Q', |out| push_cstr(out, sql));
}

/// The columns of a `DataRow` (without its header); `None` if it is broken.
pub fn columns(row: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = row.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length < 0 {
            columns.push(None);
            rest = after;
        } else {
            let (value, behind) = after.split_at_checked(usize::try_from(length).ok()?)?;
            columns.push(Some(value));
            rest = behind;
        }
    }
    rest.is_empty().then_some(columns)
}

/// One field of an `ErrorResponse` or `NoticeResponse` body (without its header), by its code.
pub fn error_field(body: &[u8], code: u8) -> Option<&[u8]> {
    let mut rest = body;
    while let Some((&this, after)) = rest.split_first() {
        if this == 0 {
            return None;
        }
        let (value, next) = cstr(after)?;
        if this == code {
            return Some(value);
        }
        rest = next;
    }
    None
}

/// The channel and the payload of a `NotificationResponse` body.
pub fn notification(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (channel, rest) = cstr(body.get(4..)?)?;
    Some((channel, cstr(rest)?.0))
}

/// A text as a literal that means the same whatever the connection's `client_encoding` and
/// `standard_conforming_strings` are: `E'…'`, pure ASCII.
pub fn literal(text: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len() + 3);
    out.push_str("E'");
    for &byte in text {
        match byte {
            b'\'' => out.push_str("''"),
            b'\\' => out.push_str("\\\\"),
            0x20..=0x7e => out.push(byte as char),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out.push('\'');
    out
}

/// A name as a quoted identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The same, in ASCII, of a name in UTF-8 (PostgreSQL 4.1.1: `U&"…"`).
pub fn unicode_identifier(name: &str) -> String {
    use std::fmt::Write;
    if name.is_ascii() {
        return identifier(name);
    }
    let mut out = "U&\"".to_owned();
    for c in name.chars() {
        match c {
            '"' => out.push_str("\"\""),
            ' '..='~' if c != '\\' => out.push(c),
            _ => drop(write!(out, "\\+{:06x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_are_none_are_errors() {
        for length in [0u32, 1, 3, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend(length.to_be_bytes());
            assert_eq!(Header::read(&bytes), Some(Err(length)));
        }
        assert_eq!(Header::read(&[b'S', 0, 0, 0, 4]), Some(Ok(Header { tag: b'S', total: 5 })));
        assert_eq!(Header::read(&[b'S', 0, 0, 0]), None);
    }

    #[test]
    fn a_message_that_is_too_long_is_no_other_messages() {
        for (longest, whole) in [(40, true), (20, true), (19, false), (4, false)] {
            let mut out = b"before".to_vec();
            out.push(b'D');
            out.extend([0xff; 4]);
            out.extend([b'Q'; 16]);
            put_length(&mut out, 7, longest);
            let header = Header::read(&out[6..]).unwrap().unwrap();
            assert_eq!(header.total, if whole { 21 } else { 5 }, "{longest}");
            assert_eq!(out.len(), 6 + header.total, "nothing behind it");
        }
    }

    #[test]
    fn error_fields_are_found_and_broken_bodies_are_not_read_past() {
        let mut out = Vec::new();
        error_response(&mut out, Severity::Fatal, &Refusal::protocol("x").hint("y"));
        assert_eq!(error_field(&out[HEADER..], b'C'), Some(&b"08P01"[..]));
        assert_eq!(error_field(&out[HEADER..], b'D'), None);
        for end in 0..out.len() - HEADER {
            let _ = error_field(&out[HEADER..HEADER + end], b'?');
        }
    }

    #[test]
    fn an_identifier_is_ascii_whatever_goes_in() {
        assert_eq!(unicode_identifier("a\"b\\"), "\"a\"\"b\\\"");
        assert_eq!(unicode_identifier("é\"\\😀"), "U&\"\\+0000e9\"\"\\+00005c\\+01f600\"");
    }

    #[test]
    fn a_literal_is_ascii_whatever_goes_in() {
        assert_eq!(literal(b"it's \\ \xe4\n"), "E'it''s \\\\ \\xe4\\x0a'");
    }

    #[test]
    fn a_row_that_claims_more_columns_than_it_has_is_none() {
        for claimed in [1_u16, 6, 7, 8, 100, u16::MAX] {
            let row = [&claimed.to_be_bytes()[..], &[0xff; 4 * 7]].concat();
            assert_eq!(columns(&row).is_some(), claimed == 7, "{claimed}");
        }
        let row = [&[0, 2][..], &[0, 0, 0, 1, b'x'], &[0x7f, 0xff, 0xff, 0xff]].concat();
        assert_eq!(columns(&row), None);
        assert_eq!(
            columns(&[&u16::MAX.to_be_bytes()[..], &[0xff; 4 * 65_535]].concat()).unwrap().len(),
            65_535
        );
    }
}
