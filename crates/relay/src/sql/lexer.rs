//! A text as tokens, as far as they matter here. Where a token ends is PostgreSQL's rule (`scan.l`): a test compares them.

use std::borrow::Cow;

use super::words::WORD;

/// A token, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A word or a quoted identifier: a word in lower case, an identifier as it is.
    Word(Cow<'a, str>),
    /// A string; what is in it, if that can be read without an escape.
    Text(Option<&'a str>),
    /// Anything else.
    Symbol(u8),
}

impl Token<'_> {
    /// Whether it is this word.
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w == word)
    }
}

/// The tokens of a text, without comments: at most one for each byte, each byte looked at twice at most.
pub(super) fn tokens(text: &[u8]) -> Vec<Token<'_>> {
    let mut lexer = Lexer { text, at: 0, tokens: Vec::new() };
    while lexer.at < text.len() {
        lexer.step();
    }
    lexer.tokens
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    tokens: Vec<Token<'a>>,
}

/// What a backslash is in a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backslash {
    IsPlain,
    Escapes,
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0, _) => self.at += 1,
            (b'-', b'-') => self.at = end_of_line(self.text, self.at),
            (b'/', b'*') => self.block_comment(),
            (b'\'', _) => self.string(Backslash::IsPlain),
            (b'e' | b'E', b'\'') => {
                self.at += 1;
                self.string(Backslash::Escapes);
            }
            (b'"', _) => self.quoted_identifier(),
            // An identifier with escapes can hide any name.
            (b'u' | b'U', b'&') if self.peek(2) == b'"' => {
                self.tokens.push(Token::Word("setseed".into()));
                self.at += 2;
                self.quoted_identifier();
            }
            (b'$', _) => self.dollar(),
            (byte, _) if WORD[byte as usize] => self.word(byte),
            (byte, _) => {
                self.tokens.push(Token::Symbol(byte));
                self.at += 1;
            }
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// A string, and those that go on with it: behind a line's end and another quote it is still the same, of the kind that
    /// it began with (manual section 4.1.2.1).
    fn string(&mut self, backslash: Backslash) {
        let escapes = backslash == Backslash::Escapes;
        self.at += 1;
        let from = self.at;
        let mut plain = !escapes;
        loop {
            match (self.peek(0), self.peek(1)) {
                _ if self.at >= self.text.len() => break,
                (b'\\', _) if escapes => self.at += 2,
                (b'\'', b'\'') => {
                    plain = false;
                    self.at += 2;
                }
                (b'\'', _) => match goes_on(self.text, self.at + 1) {
                    Some(at) => {
                        plain = false;
                        self.at = at;
                    }
                    None => break,
                },
                _ => self.at += 1,
            }
        }
        let inside = self.text.get(from..self.at).unwrap_or_default();
        self.at += 1;
        self.tokens.push(Token::Text(str::from_utf8(inside).ok().filter(|_| plain)));
    }

    fn quoted_identifier(&mut self) {
        self.at += 1;
        let from = self.at;
        let mut doubled = false;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'"', b'"') => {
                    doubled = true;
                    self.at += 2;
                }
                (b'"', _) => break,
                _ => self.at += 1,
            }
        }
        let name = String::from_utf8_lossy(self.text.get(from..self.at).unwrap_or_default());
        self.at += 1;
        self.tokens.push(Token::Word(if doubled { name.replace("\"\"", "\"").into() } else { name }));
    }

    /// `$tag$…$tag$`, or a parameter, or nothing.
    fn dollar(&mut self) {
        let rest = &self.text[self.at..];
        let tag = memchr::memchr(b'$', &rest[1..]).map(|end| &rest[..end + 2]);
        let is_tag = |tag: &&[u8]| {
            let name = &tag[1..tag.len() - 1];
            name.iter().all(|b| WORD[*b as usize]) && !name.first().is_some_and(u8::is_ascii_digit)
        };
        match tag.filter(is_tag) {
            Some(tag) => {
                let body = &rest[tag.len()..];
                let end = memchr::memmem::find(body, tag);
                self.at += tag.len() + end.map_or(body.len(), |end| end + tag.len());
                self.tokens.push(Token::Text(str::from_utf8(&body[..end.unwrap_or(body.len())]).ok()));
            }
            None => {
                self.tokens.push(Token::Symbol(b'$'));
                self.at += 1;
            }
        }
    }

    /// A word. A number ends where its digits do: up to PostgreSQL 14, a word may follow without a space.
    fn word(&mut self, first: u8) {
        let rest = &self.text[self.at..];
        let is_within = |byte: &&u8| match first.is_ascii_digit() {
            true => byte.is_ascii_digit(),
            false => WORD[**byte as usize],
        };
        let word = &rest[..rest.iter().take_while(is_within).count()];
        self.at += word.len();
        let word = String::from_utf8_lossy(word);
        let lower = word.bytes().any(|byte| byte.is_ascii_uppercase());
        self.tokens.push(Token::Word(if lower { word.to_ascii_lowercase().into() } else { word }));
    }
}

fn end_of_line(text: &[u8], at: usize) -> usize {
    let rest = &text[at..];
    at + memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len())
}

/// Where the next piece of a string begins whose last quote is before `at`: behind white space and comments with a line's
/// end among them, and a quote (`quotecontinue` of `scan.l`).
fn goes_on(text: &[u8], mut at: usize) -> Option<usize> {
    let mut lines = false;
    loop {
        match text.get(at)? {
            b'\n' | b'\r' => lines = true,
            b' ' | b'\t' | 0x0b | 0x0c => {}
            b'-' if text.get(at + 1) == Some(&b'-') => {
                at = end_of_line(text, at);
                continue;
            }
            b'\'' if lines => return Some(at + 1),
            _ => return None,
        }
        at += 1;
    }
}
