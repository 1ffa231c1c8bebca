//! The frames of the protocol: a stream cut anywhere is the same messages, and what is written is read again.

use crate::input::Input;
use crate::measure::bounded;
use wire::error::{Fault, Refusal, SqlState};
use wire::{HEADER, Header, MAX_LENGTH, Severity};

/// Messages, each with its tag; and what is left behind them, or the length that is none.
type Walked = (Vec<(u8, Vec<u8>)>, Result<Vec<u8>, u32>);

/// The messages of a stream that arrives in these pieces, until one has a length that is none; and what is left of it.
fn walk<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Walked {
    let (mut messages, mut buffer) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match Header::read(&buffer) {
                None => break,
                Some(Err(length)) => {
                    assert!(!(4..=MAX_LENGTH).contains(&length));
                    return (messages, Err(length));
                }
                Some(Ok(header)) if buffer.len() < header.total => break,
                Some(Ok(header)) => {
                    assert!(header.total >= HEADER);
                    let behind = buffer.split_off(header.total);
                    messages.push((header.tag, buffer.split_off(HEADER)));
                    buffer = behind;
                }
            }
        }
    }
    (messages, Ok(buffer))
}

/// Whatever a body is read as, it is read within itself.
fn read_as_everything(body: &[u8]) {
    let columns = bounded(body.len(), 64, || wire::columns(body));
    if let Some(columns) = columns {
        let mut again = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for column in columns {
            let length = column.map_or(-1, |value| i32::try_from(value.len()).unwrap());
            again.extend(length.to_be_bytes());
            again.extend_from_slice(column.unwrap_or_default());
        }
        // Any length below zero is no value, of which -1 is written.
        assert_eq!(again.len(), body.len());
        assert_eq!(wire::columns(&again), wire::columns(body));
    }
    for code in [b'S', b'C', b'M', 0] {
        let field = wire::error_field(body, code);
        assert!(field.is_none_or(|field| field.len() + 2 <= body.len() && !field.contains(&0)));
    }
    if let Some((channel, payload)) = wire::notification(body) {
        assert!(channel.len() + payload.len() + 6 <= body.len());
    }
    if let Some((text, rest)) = wire::cstr(body) {
        assert_eq!([text, rest].concat().len() + 1, body.len());
    }
}

/// What pgusher writes is one message, of which everything is found again but what would end a text early.
fn is_written_and_read(text: &str) {
    let plain: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
    let refusal = Refusal::new(Fault::Client, SqlState::SYNTAX_ERROR, text.to_owned()).hint(text.to_owned());
    let mut out = Vec::new();
    wire::error_response(&mut out, Severity::Fatal, &refusal);
    wire::notice_response(&mut out, text);
    wire::query(&mut out, text);
    wire::parameter_status(&mut out, b"name", &plain);
    let (messages, rest) = walk([&out[..]].into_iter());
    assert_eq!(rest, Ok(Vec::new()));
    let tags: Vec<u8> = messages.iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, *b"ENQS");
    assert_eq!(wire::error_field(&messages[0].1, b'M'), Some(&plain[..]));
    assert_eq!(wire::error_field(&messages[0].1, b'H'), Some(&plain[..]));
    assert_eq!(wire::error_field(&messages[1].1, b'M'), Some(&plain[..]));
    assert_eq!(wire::cstr(&messages[2].1), Some((&plain[..], &[][..])));
}

/// A literal is plain, and is the text again to whoever reads it as PostgreSQL does.
fn is_a_literal(text: &[u8]) {
    let literal = bounded(text.len(), 16, || wire::literal(text));
    assert!(literal.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
    let inner = literal.strip_prefix("E'").and_then(|inner| inner.strip_suffix('\'')).unwrap();
    let (mut read, mut rest) = (Vec::new(), inner.as_bytes());
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        match (byte, behind) {
            (b'\'', [b'\'', behind @ ..]) | (b'\\', [b'\\', behind @ ..]) => {
                read.push(*byte);
                rest = behind;
            }
            (b'\\', [b'x', high, low, behind @ ..]) => {
                let digits = [*high, *low];
                read.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                rest = behind;
            }
            (b'\'' | b'\\', _) => panic!("{literal} ends early"),
            (byte, _) => read.push(*byte),
        }
    }
    assert_eq!(read, text);
}

/// See the module.
pub(crate) fn holds(data: &[u8]) {
    let mut input = Input(data);
    let cut = usize::from(input.byte());
    let stream = input.0;
    let whole = walk([stream].into_iter());
    assert_eq!(walk(stream.chunks(cut % 13 + 1)), whole, "in pieces it is another stream");
    let (one, other) = stream.split_at((cut * 3).min(stream.len()));
    assert_eq!(walk([one, other].into_iter()), whole);
    whole.0.iter().for_each(|(_, body)| read_as_everything(body));
    read_as_everything(stream);
    is_written_and_read(&String::from_utf8_lossy(stream));
    is_a_literal(stream);
}
