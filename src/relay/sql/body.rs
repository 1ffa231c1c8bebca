//! What running the source of a function may do to its session.

use super::lexer::{Token, tokens};
use super::{Effects, Pin, look_at};

/// The longest source that is looked at.
const MAX_SOURCE: usize = 1 << 20;

/// Words that a statement of PL/pgSQL may begin behind.
const BEFORE: [&str; 4] = ["begin", "then", "else", "loop"];

/// Of a function in the database: its name, its language and its source, as `pg_proc` has them.
pub fn of_function(name: &[u8], language: &[u8], source: &[u8]) -> Effects {
    let mut effects = Effects::default();
    match language {
        b"sql" | b"plpgsql" => source_of(language, body_of(source), &mut effects),
        // Of these, only some of the extensions' that are known.
        b"c" | b"internal" => effects.pin_for(Pin::Opaque),
        _ => other_language(source, &mut effects),
    }
    if name.starts_with(b"dblink") {
        effects.pin_for(Pin::Opaque);
    }
    effects
}

/// Without what `pg_get_functiondef` puts before the body of a function that is kept parsed.
fn body_of(source: &[u8]) -> &[u8] {
    let from = |word: &[u8]| memchr::memmem::find(source, word);
    match source.starts_with(b"CREATE OR REPLACE") {
        true => from(b"\nBEGIN ATOMIC").or(from(b"\nRETURN")).map_or(source, |at| &source[at..]),
        false => source,
    }
}

/// Of a `DO` statement.
pub(super) fn block(statement: &[Token], effects: &mut Effects) {
    let language = statement.iter().position(|t| t.is("language")).and_then(|i| statement.get(i + 1));
    let language = match language {
        None => "plpgsql",
        Some(Token::Word(name) | Token::Text(Some(name))) => name,
        Some(_) => "",
    };
    let is_source = |(i, token): &(usize, &Token)| {
        matches!(token, Token::Text(_)) && (*i == 0 || !statement[i - 1].is("language"))
    };
    match statement.iter().enumerate().find(is_source) {
        Some((_, Token::Text(Some(source)))) => match language {
            "plpgsql" | "sql" => source_of(language.as_bytes(), source.as_bytes(), effects),
            _ => other_language(source.as_bytes(), effects),
        },
        _ => effects.pin_for(Pin::Opaque),
    }
}

/// Of `CREATE FUNCTION` and its like: what is defined will do.
pub(super) fn definition(statement: &[Token], effects: &mut Effects) {
    let mut defined = Effects::default();
    for token in statement {
        if let Token::Text(Some(source)) = token {
            source_of(b"plpgsql", source.as_bytes(), &mut defined);
        }
    }
    if defined.matter() {
        effects.defined.get_or_insert_default().add(&defined);
    }
}

/// A language that runs SQL by calls of its own; some keep state of their own, too.
fn other_language(source: &[u8], effects: &mut Effects) {
    effects.asks_all = true;
    let shared: [&[u8]; 3] = [b"GD", b"SD", b"_SHARED"];
    if shared.iter().any(|word| memchr::memmem::find(source, word).is_some()) {
        effects.pin_for(Pin::Opaque);
    }
}

fn source_of(language: &[u8], source: &[u8], effects: &mut Effects) {
    if source.len() > MAX_SOURCE {
        return effects.pin_for(Pin::Opaque);
    }
    let tokens = tokens(source);
    let mut begins = true;
    for (i, token) in tokens.iter().enumerate() {
        if begins {
            let end = tokens[i..].iter().position(|t| *t == Token::Symbol(b';'));
            look_at(&tokens[i..end.map_or(tokens.len(), |end| i + end)], false, effects);
        }
        if language == b"plpgsql" && token.is("execute") {
            dynamic(&tokens[i + 1..], effects);
        }
        begins = *token == Token::Symbol(b';') || BEFORE.iter().any(|word| token.is(word));
    }
}

/// `EXECUTE` of PL/pgSQL: the text is put together when it runs, unless it is one constant.
fn dynamic(rest: &[Token], effects: &mut Effects) {
    let end =
        |t: &Token| *t == Token::Symbol(b';') || ["using", "into", "loop"].iter().any(|word| t.is(word));
    let text = &rest[..rest.iter().position(end).unwrap_or(rest.len())];
    effects.asks_all |= !matches!(text, [Token::Text(Some(_))]);
    for token in text {
        if let Token::Text(Some(piece)) = token {
            for statement in tokens(piece.as_bytes()).split(|t| *t == Token::Symbol(b';')) {
                look_at(statement, false, effects);
            }
        }
    }
}
