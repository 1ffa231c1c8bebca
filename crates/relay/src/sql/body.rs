//! Texts within texts: what running the source of a function, a block, or a text that is put together may do.

use super::budget::Budget;
use super::lexer::{Token, tokens};
use super::names::Where;
use super::{Company, Effects, Pin, functions, look_at};

/// Words that a statement of PL/pgSQL may begin behind.
const BEFORE: [&str; 4] = ["begin", "then", "else", "loop"];

/// PostgreSQL's own functions that run a text which they are given, or read a relation of which they are given the name (those of
/// `pg_proc` in version 18 whose source uses `SPI_prepare` or `SPI_execute` with an argument; `dblink` and what other extensions
/// have, are seen by their names).
pub const RUN_TEXTS: [&str; 13] = [
    "query_to_xml",
    "query_to_xmlschema",
    "query_to_xml_and_xmlschema",
    "table_to_xml",
    "table_to_xmlschema",
    "table_to_xml_and_xmlschema",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "ts_stat",
    "ts_rewrite",
    "cursor_to_xml",
];

const SEARCH_PATH: &str = "search_path";

/// Whether these bytes have the name of a session's temporary schema, by which it is known in every session.
pub fn names_temp_schema(text: &[u8]) -> bool {
    let name = b"pg_temp";
    text.windows(name.len()).any(|piece| piece.eq_ignore_ascii_case(name))
}

/// How a text is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    /// A statement, or several.
    Statements,
    /// The body of a function in SQL.
    Sql,
    /// The body of one in PL/pgSQL.
    PlPgSql,
}

impl Language {
    fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"sql" => Some(Self::Sql),
            b"plpgsql" => Some(Self::PlPgSql),
            _ => None,
        }
    }
}

/// When a text runs that is found within another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runs {
    /// With it.
    Now,
    /// When what is defined by it is used.
    Later,
}

/// A text that is still to be read.
#[derive(Debug)]
struct Text<'a> {
    text: &'a [u8],
    language: Language,
    runs: Runs,
    depth: u8,
}

/// What is found in a text: its effects so far, and the texts within it that are still to be read.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    pub(super) effects: Effects,
    defined: Effects,
    /// Where the text at hand is.
    runs: Runs,
    depth: u8,
    /// It is not the only statement of its text.
    several: bool,
    later: Vec<Text<'a>>,
}

impl<'a> Findings<'a> {
    /// Of what is at hand.
    pub(super) fn here(&mut self) -> &mut Effects {
        match self.runs {
            Runs::Now => &mut self.effects,
            Runs::Later => &mut self.defined,
        }
    }

    /// Whether what is at hand is the client's own.
    pub(super) fn place(&self) -> Where {
        match self.depth == 0 && self.runs == Runs::Now {
            true => Where::Outside,
            false => Where::Within,
        }
    }

    fn put_off(&mut self, text: &'a str, language: Language, runs: Runs) {
        let runs = if self.runs == Runs::Later { Runs::Later } else { runs };
        self.later.push(Text { text: text.as_bytes(), language, runs, depth: self.depth + 1 });
    }
}

/// How many bytes are read to know what a text may do.
#[cfg(test)]
pub(super) fn bytes_read(text: &[u8]) -> usize {
    let mut budget = Budget::of(text.len());
    read_within(text, Language::Statements, &mut budget);
    Budget::of(text.len()).left() - budget.left()
}

/// What a text may do, with all that is within it.
pub(super) fn read(text: &[u8], language: Language) -> Effects {
    read_within(text, language, &mut Budget::of(text.len()))
}

fn read_within(text: &[u8], language: Language, budget: &mut Budget) -> Effects {
    let mut findings = Findings {
        effects: Effects::default(),
        defined: Effects::default(),
        runs: Runs::Now,
        depth: 0,
        several: false,
        later: vec![Text { text, language, runs: Runs::Now, depth: 0 }],
    };
    while let Some(next) = findings.later.pop() {
        (findings.runs, findings.depth) = (next.runs, next.depth);
        if budget.take(next.text.len(), next.depth) {
            look_through(next.text, next.language, &mut findings);
        } else {
            findings.here().see_nothing();
        }
    }
    let Findings { mut effects, mut defined, several, .. } = findings;
    for found in [&mut effects, &mut defined] {
        found.temp_path = found.settings.iter().any(|name| name == SEARCH_PATH) && names_temp_schema(text);
        found.makes_objects |= found.temp_path;
    }
    if effects.defines && several {
        // Another of these statements may use what one of them defines.
        effects.asks_all = true;
        effects.add(&defined);
    }
    if defined.matter() {
        effects.defined.get_or_insert_default().add(&defined);
    }
    effects
}

fn look_through<'a>(text: &'a [u8], language: Language, findings: &mut Findings<'a>) {
    let outermost = findings.depth == 0;
    let tokens = tokens(text);
    if language != Language::Statements {
        functions(&tokens, findings.here());
    }
    if tokens.iter().any(|token| RUN_TEXTS.iter().any(|name| token.is(name))) {
        findings.here().asks_all = true;
        for token in &tokens {
            if let Token::Text(Some(text)) = token {
                findings.put_off(text, Language::Statements, Runs::Now);
            }
        }
    }
    if language == Language::Statements {
        let ends = |token: &Token<'_>| *token == Token::Symbol(b';');
        let statements = || tokens.split(ends).filter(|statement| !statement.is_empty());
        let alone = outermost && statements().nth(1).is_none();
        let company = if alone { Company::Alone } else { Company::Others };
        for statement in statements() {
            // In their order: what a later one says of a setting counts.
            functions(statement, findings.here());
            look_at(statement, company, findings);
        }
        if outermost && !alone {
            findings.several = true;
        }
        return;
    }
    let mut rest = &tokens[..];
    while !rest.is_empty() {
        // Cut wherever a statement may begin, so that no token is in two of them.
        let begins =
            |token: &Token<'_>| *token == Token::Symbol(b';') || BEFORE.iter().any(|word| token.is(word));
        let end = rest.iter().position(begins).unwrap_or(rest.len());
        look_at(&rest[..end], Company::Others, findings);
        if language == Language::PlPgSql {
            dynamic(&rest[..end], findings);
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
}

/// `EXECUTE` of PL/pgSQL: the text is put together when it runs, unless it is one constant.
fn dynamic<'a>(statement: &[Token<'a>], findings: &mut Findings<'a>) {
    for execute in statement.split(|token| token.is("execute")).skip(1) {
        let end = |token: &Token<'_>| ["using", "into"].iter().any(|word| token.is(word));
        let text = &execute[..execute.iter().position(end).unwrap_or(execute.len())];
        findings.here().asks_all |= !matches!(text, [Token::Text(Some(_))]);
        for token in text {
            if let Token::Text(Some(piece)) = token {
                findings.put_off(piece, Language::Statements, Runs::Now);
            }
        }
    }
}

/// Of a function in the database: its name, its language and its source, as `pg_proc` has them.
pub fn of_function(name: &[u8], language: &[u8], source: &[u8]) -> Effects {
    let mut effects = match (Language::named(language), language) {
        (Some(language), _) => read(body_of(source), language),
        // Of these, only some of the extensions' that are known.
        (None, b"c" | b"internal") => Effects::opaque(),
        (None, _) => {
            let mut effects = Effects::default();
            other_language(source, &mut effects);
            effects
        }
    };
    if name.starts_with(b"dblink") {
        effects.pin_for(Pin::Opaque);
    }
    // Whoever calls it has not said that.
    effects.sets_ours = None;
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
pub(super) fn block<'a>(statement: &[Token<'a>], findings: &mut Findings<'a>) {
    let language = statement.iter().position(|t| t.is("language")).and_then(|i| statement.get(i + 1));
    let language = match language {
        None => "plpgsql",
        Some(Token::Word(name)) => name,
        Some(Token::Text(Some(name))) => name,
        Some(_) => "",
    };
    let is_source = |(i, token): &(usize, &Token<'a>)| {
        matches!(token, Token::Text(_)) && (*i == 0 || !statement[i - 1].is("language"))
    };
    match statement.iter().enumerate().find(is_source) {
        Some((_, Token::Text(Some(source)))) => match Language::named(language.as_bytes()) {
            Some(language) => findings.put_off(source, language, Runs::Now),
            None => other_language(source.as_bytes(), findings.here()),
        },
        _ => findings.here().pin_for(Pin::Opaque),
    }
}

/// Of `CREATE FUNCTION` and its like: what is defined will do.
pub(super) fn definition<'a>(statement: &[Token<'a>], findings: &mut Findings<'a>) {
    for token in statement {
        if let Token::Text(Some(source)) = token {
            findings.put_off(source, Language::PlPgSql, Runs::Later);
        }
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
