//! A text as tokens, as far as they matter here.

use super::scan::WORD;

/// A token, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A word or a quoted identifier: a word in lower case, an identifier as it is.
    Word(String),
    /// A string; what is in it, if that can be read without an escape.
    Text(Option<String>),
    /// Anything else.
    Symbol(u8),
}

impl Token {
    /// Whether it is this word.
    pub fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w == word)
    }
}

/// The tokens of a text, without comments.
pub fn tokens(text: &[u8]) -> Vec<Token> {
    let mut lexer = Lexer { text, at: 0, tokens: Vec::new() };
    while lexer.at < text.len() {
        lexer.step();
    }
    lexer.tokens
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0, _) => self.at += 1,
            (b'-', b'-') => self.skip_to(b'\n'),
            (b'/', b'*') => self.block_comment(),
            (b'\'', _) => self.string(false),
            (b'e' | b'E', b'\'') => {
                self.at += 1;
                self.string(true);
            }
            (b'"', _) => self.quoted_identifier(),
            // An identifier with escapes can hide any name.
            (b'u' | b'U', b'&') if self.peek(2) == b'"' => {
                self.tokens.push(Token::Word("setseed".into()));
                self.at += 2;
                self.quoted_identifier();
            }
            (b'$', _) => self.dollar(),
            (byte, _) if WORD[byte as usize] => self.word(),
            (byte, _) => {
                self.tokens.push(Token::Symbol(byte));
                self.at += 1;
            }
        }
    }

    fn skip_to(&mut self, end: u8) {
        let rest = &self.text[self.at..];
        self.at += memchr::memchr(end, rest).map_or(rest.len(), |i| i + 1);
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
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

    fn string(&mut self, escapes: bool) {
        self.at += 1;
        let from = self.at;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'\\', _) if escapes => self.at += 2,
                (b'\'', b'\'') => self.at += 2,
                (b'\'', _) => {
                    self.at += 1;
                    break;
                }
                _ => self.at += 1,
            }
        }
        let inside = self.text.get(from..self.at.saturating_sub(1)).unwrap_or_default();
        let plain = !escapes && !inside.contains(&b'\'');
        let inside = str::from_utf8(inside).ok().filter(|_| plain);
        self.tokens.push(Token::Text(inside.map(str::to_owned)));
    }

    fn quoted_identifier(&mut self) {
        self.at += 1;
        let mut name = Vec::new();
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'"', b'"') => {
                    name.push(b'"');
                    self.at += 2;
                }
                (b'"', _) => {
                    self.at += 1;
                    break;
                }
                (byte, _) => {
                    name.push(byte);
                    self.at += 1;
                }
            }
        }
        self.tokens.push(Token::Word(String::from_utf8_lossy(&name).into_owned()));
    }

    /// `$tag$…$tag$`, or a parameter, or nothing.
    fn dollar(&mut self) {
        let rest = &self.text[self.at..];
        let tag = rest[1..].iter().position(|b| *b == b'$').map(|end| &rest[..end + 2]);
        let is_tag = |tag: &&[u8]| {
            let name = &tag[1..tag.len() - 1];
            name.iter().all(|b| WORD[*b as usize]) && !name.first().is_some_and(u8::is_ascii_digit)
        };
        match tag.filter(is_tag) {
            Some(tag) => {
                let body = &rest[tag.len()..];
                let end = memchr::memmem::find(body, tag).map_or(body.len(), |i| i + tag.len());
                self.at += tag.len() + end;
                let inside = str::from_utf8(&body[..end.saturating_sub(tag.len())]).ok();
                self.tokens.push(Token::Text(inside.map(str::to_owned)));
            }
            None => {
                self.tokens.push(Token::Symbol(b'$'));
                self.at += 1;
            }
        }
    }

    fn word(&mut self) {
        let from = self.at;
        while self.at < self.text.len() && WORD[self.text[self.at] as usize] {
            self.at += 1;
        }
        let word = String::from_utf8_lossy(&self.text[from..self.at]).to_lowercase();
        self.tokens.push(Token::Word(word));
    }
}
