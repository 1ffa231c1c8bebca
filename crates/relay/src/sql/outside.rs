//! What of a text stands outside of its strings and comments. It can be fed a text in pieces, and agrees with the lexer.

use super::words::WORD;

/// The longest `$tag$`: of a longer one nothing is known.
const MAX_TAG: usize = 128;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Outside {
    state: State,
    token: Token,
}

/// Where in the text the next byte is (`scan.l`).
#[derive(Debug, Clone, Default)]
enum State {
    #[default]
    Plain,
    /// Behind one `-`.
    Dash,
    /// Behind one `/`.
    Slash,
    LineComment,
    BlockComment {
        depth: u32,
        last: u8,
    },
    Text(Backslash),
    /// Behind a backslash in a string in which that escapes.
    Escaped,
    /// Behind a quote that is the string's last, or the first of two.
    Quote(Backslash),
    /// Behind a string with escapes: it may go on behind the end of a line.
    Behind {
        lines: u32,
    },
    Identifier,
    /// Behind a dollar sign, with what came since.
    Tag(Vec<u8>),
    /// In a text between two of these, of which so much is there again.
    Dollars(Vec<u8>, usize),
}

/// What a backslash is in a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backslash {
    IsPlain,
    Escapes,
}

/// Which token the last byte was part of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Token {
    /// None that the next one could be part of.
    #[default]
    None,
    Number,
    /// The one letter that makes the string behind it one with escapes.
    E,
    Word,
}

/// Nothing is known of what follows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost;

impl Outside {
    /// Shows the bytes of the next piece that are outside; a string and a comment are shown as a space each.
    ///
    /// # Errors
    /// It cannot be told any more.
    pub(super) fn feed(&mut self, piece: &[u8], show: &mut impl FnMut(u8)) -> Result<(), Lost> {
        piece.iter().try_for_each(|byte| self.step(*byte, show))
    }

    /// Whether it has been shown bytes that are outside, if they are no tag.
    pub(super) fn is_within_tag(&self) -> bool {
        matches!(&self.state, State::Tag(tag) if !tag.is_empty())
    }

    fn step(&mut self, byte: u8, show: &mut impl FnMut(u8)) -> Result<(), Lost> {
        match &mut self.state {
            State::Plain => self.plain(byte, show),
            State::Dash if byte == b'-' => self.state = State::LineComment,
            State::Slash if byte == b'*' => self.state = State::BlockComment { depth: 1, last: 0 },
            State::Dash => self.not(b"-", byte, show),
            State::Slash => self.not(b"/", byte, show),
            State::LineComment if matches!(byte, b'\n' | b'\r') => self.not(b"", byte, show),
            State::LineComment => {}
            State::BlockComment { depth, last } => {
                match (*last, byte) {
                    (b'/', b'*') => (*depth, *last) = (*depth + 1, 0),
                    (b'*', b'/') => (*depth, *last) = (*depth - 1, 0),
                    _ => *last = byte,
                }
                if *depth == 0 {
                    show(b' ');
                    self.state = State::Plain;
                }
            }
            State::Identifier => {
                show(byte);
                if byte == b'"' {
                    self.state = State::Plain;
                }
            }
            State::Text(_) | State::Escaped | State::Quote(_) | State::Behind { .. } => {
                return self.in_text(byte, show);
            }
            State::Tag(_) => return self.in_tag(byte, show),
            State::Dollars(tag, there) => {
                *there = if tag[*there] == byte { *there + 1 } else { usize::from(byte == b'$') };
                if *there == tag.len() {
                    self.state = State::Plain;
                }
            }
        }
        Ok(())
    }

    fn in_text(&mut self, byte: u8, show: &mut impl FnMut(u8)) -> Result<(), Lost> {
        match &mut self.state {
            State::Text(Backslash::Escapes) if byte == b'\\' => self.state = State::Escaped,
            State::Text(backslash) if byte == b'\'' => self.state = State::Quote(*backslash),
            State::Escaped => self.state = State::Text(Backslash::Escapes),
            State::Quote(backslash) if byte == b'\'' => self.state = State::Text(*backslash),
            State::Quote(Backslash::IsPlain) => self.not(b"", byte, show),
            State::Quote(Backslash::Escapes) => {
                self.state = State::Behind { lines: 0 };
                return self.in_text(byte, show);
            }
            State::Behind { lines } => match byte {
                b'\n' | b'\r' => *lines = 1,
                b' ' | b'\t' | 0x0b | 0x0c => {}
                b'\'' if *lines > 0 => self.state = State::Text(Backslash::Escapes),
                // Perhaps a comment behind which it goes on.
                b'-' => return Err(Lost),
                _ => self.not(b" ", byte, show),
            },
            _ => {}
        }
        Ok(())
    }

    fn in_tag(&mut self, byte: u8, show: &mut impl FnMut(u8)) -> Result<(), Lost> {
        let State::Tag(tag) = &mut self.state else { return Ok(()) };
        if byte == b'$' {
            let tag = [b"$", &tag[..], b"$"].concat();
            show(b' ');
            self.state = State::Dollars(tag, 0);
            return Ok(());
        }
        if WORD[usize::from(byte)] && !(tag.is_empty() && byte.is_ascii_digit()) {
            tag.push(byte);
            return if tag.len() > MAX_TAG { Err(Lost) } else { Ok(()) };
        }
        // It is none: a dollar sign, and perhaps a word.
        let word = std::mem::take(tag);
        show(b'$');
        (self.state, self.token) = (State::Plain, Token::None);
        word.iter().chain([&byte]).try_for_each(|byte| self.step(*byte, show))
    }

    /// What was begun is over, or was nothing but these: the byte stands outside of it.
    fn not(&mut self, shown: &[u8], byte: u8, show: &mut impl FnMut(u8)) {
        shown.iter().for_each(|byte| show(*byte));
        self.state = State::Plain;
        self.token = Token::None;
        self.plain(byte, show);
    }

    fn plain(&mut self, byte: u8, show: &mut impl FnMut(u8)) {
        let (token, state) = match (byte, self.token) {
            (b'-', _) => (Token::None, State::Dash),
            (b'/', _) => (Token::None, State::Slash),
            (b'\'', Token::E) => (Token::None, State::Text(Backslash::Escapes)),
            (b'\'', _) => (Token::None, State::Text(Backslash::IsPlain)),
            (b'"', _) => (Token::None, State::Identifier),
            (b'$', Token::None | Token::Number) => (Token::None, State::Tag(Vec::new())),
            (b'0'..=b'9', Token::None | Token::Number) => (Token::Number, State::Plain),
            (b'e' | b'E', Token::None | Token::Number) => (Token::E, State::Plain),
            _ if WORD[usize::from(byte)] => (Token::Word, State::Plain),
            _ => (Token::None, State::Plain),
        };
        match state {
            State::Dash | State::Slash | State::Tag(_) => {}
            State::Text(_) => show(b' '),
            _ => show(byte),
        }
        (self.token, self.state) = (token, state);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sql::lexer::{self, tokens};

    /// The text with its strings and comments taken out, in pieces of this size.
    fn shown(text: &[u8], size: usize) -> Result<Vec<u8>, Lost> {
        let (mut outside, mut shown) = (Outside::default(), Vec::new());
        for piece in text.chunks(size) {
            outside.feed(piece, &mut |byte| shown.push(byte))?;
        }
        match &outside.state {
            State::Tag(tag) => shown.extend([b"$", &tag[..]].concat()),
            State::Slash => shown.push(b'/'),
            State::Dash => shown.push(b'-'),
            _ => {}
        }
        Ok(shown)
    }

    fn plainly(text: &str) -> String {
        shown(text.as_bytes(), usize::MAX).map_or("lost".into(), |shown| String::from_utf8(shown).unwrap())
    }

    #[test]
    fn strings_and_comments_are_passed_over() {
        for (text, expected) in [
            ("a 'b; set' c", "a   c"),
            ("a 'it''s' E'\\'x' b", "a   E  b"),
            ("E'a'\n 'b\\'' c", "E  c"),
            ("E'a' 'b\\' c", "E    c"),
            ("ze'a\\' b", "ze  b"),
            ("1e'a\\'' b", "1e  b"),
            ("a -- b\nc /* d /* e */ f */ g - h / i", "a \nc   g - h / i"),
            ("a \"b'c\" 'd'", "a \"b'c\"  "),
            ("$$a'b$$ c $x$ $y$ ' $x$ d$e$ f$1 $2'", "  c   d$e$ f$1 $2 "),
            ("$a b$ '", "$a b$  "),
            ("E'a' -- b", "lost"),
        ] {
            assert_eq!(plainly(text), expected, "{text}");
        }
    }

    /// A text of pieces that begin, end and look like strings and comments.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let pieces: Vec<&'static [u8]> = vec![
            b"'",
            b"''",
            b"\\",
            b"\"",
            b"$",
            b"$$",
            b"$a$",
            b"$b$",
            b"e'",
            b"E'",
            b"1",
            b"a",
            b"set",
            b" ",
            b"\n",
            b";",
            b"-",
            b"--",
            b"/",
            b"/*",
            b"*/",
            b"*",
            b"(",
            b"\xc3\xa4",
            b"u&\"",
            b"1e'",
            b"ae'",
        ];
        prop::collection::vec(prop::sample::select(pieces), 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        /// What the lexer takes for words and symbols is shown, in the same order, however the text is cut; and no more of it than
        /// there is.
        #[test]
        fn what_is_outside_for_the_lexer_is_shown(text in text(), size in 1..9_usize) {
            let whole = shown(&text, usize::MAX);
            prop_assert_eq!(&whole, &shown(&text, size));
            let Ok(shown) = whole else { return Ok(()) };
            let is_text = |token: &lexer::Token<'_>| matches!(token, lexer::Token::Text(_));
            let of_text: Vec<_> = tokens(&text).into_iter().filter(|token| !is_text(token)).collect();
            // But for the letter that a string with escapes begins with.
            let words = |tokens: Vec<_>| tokens.into_iter().filter(|token: &lexer::Token<'_>| !token.is("e")).collect::<Vec<_>>();
            prop_assert_eq!(format!("{:?}", words(of_text)), format!("{:?}", words(tokens(&shown))));
        }
    }
}
