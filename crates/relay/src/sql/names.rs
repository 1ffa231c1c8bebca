//! Names of prepared statements that SQL uses: those of the protocol are the same, and the upstream has others for them.

use super::Effects;
use super::budget::MAX_SETTINGS;
use super::lexer::Token;

/// What SQL does with the name of a prepared statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameUse {
    /// `EXECUTE`, also behind `EXPLAIN` or `AS`, or wherever it is not known what.
    Executes,
    /// `DEALLOCATE`, for which the tag of a command comes.
    Deallocates,
    /// `PREPARE`: it must not be there.
    Prepares,
}

/// Where a statement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// It is the client's own.
    Outside,
    /// In a block, or another text.
    Within,
}

/// Whether these name one of pgusher's own settings: `pgusher.x`, `"pgusher.x"`, `'pgusher.x'`.
fn is_ours(token: &Token<'_>, next: Option<&Token<'_>>) -> bool {
    let begins =
        |text: &str| text.as_bytes().get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"pgusher."));
    match token {
        Token::Word(word) => begins(word) || word == "pgusher" && next == Some(&Token::Symbol(b'.')),
        Token::Text(Some(text)) => begins(text),
        _ => false,
    }
}

/// The names in one statement. Of more than can be kept, the connection is.
pub(super) fn names(statement: &[Token<'_>], place: Where, effects: &mut Effects) {
    for (i, token) in statement.iter().enumerate() {
        if is_ours(token, statement.get(i + 1)) && effects.shows.is_none() {
            (effects.names_ours, effects.foreseen) = (true, true);
        }
        effects.lists_names |= token.is("pg_prepared_statements") || token.is("pg_prepared_statement");
        let name = |at: usize| match statement.get(at) {
            Some(Token::Word(name)) => Some(name.as_bytes()),
            _ => None,
        };
        let (name_use, name) = match i {
            _ if token.is("execute") => (NameUse::Executes, name(i + 1)),
            0 if token.is("deallocate") => {
                let behind = if statement.get(1).is_some_and(|t| t.is("prepare")) { 2 } else { 1 };
                let known = if place == Where::Outside { NameUse::Deallocates } else { NameUse::Executes };
                (known, name(behind).filter(|name| *name != b"all"))
            }
            0 if token.is("prepare") => (NameUse::Prepares, name(1).filter(|name| *name != b"transaction")),
            _ => continue,
        };
        let Some(name) = name else { continue };
        if effects.names.len() < MAX_SETTINGS {
            effects.names.push((name_use, name.into()));
        } else {
            effects.pin_for(super::Pin::Prepare);
        }
    }
}
