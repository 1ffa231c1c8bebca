//! Which database a statement needs to itself: PostgreSQL refuses it while anybody is connected to that.

use super::lexer::Token;

/// The one that `DROP DATABASE`, `ALTER DATABASE … RENAME` or `CREATE DATABASE … TEMPLATE` needs, if a statement is one of them.
pub(super) fn needed(statement: &[Token<'_>]) -> Option<String> {
    let is = |at: usize, word: &str| statement.get(at).is_some_and(|token| token.is(word));
    let name = |at: usize| match statement.get(at) {
        Some(Token::Word(name)) => Some(name.to_string()),
        Some(Token::Text(Some(name))) => Some(name.to_string()),
        _ => None,
    };
    if !is(1, "database") {
        return None;
    }
    match statement.first() {
        Some(first) if first.is("drop") => name(if is(2, "if") && is(3, "exists") { 4 } else { 2 }),
        Some(first) if first.is("alter") && is(3, "rename") => name(2),
        Some(first) if first.is("create") => {
            let at = statement.iter().position(|token| token.is("template"))? + 1;
            name(if statement.get(at) == Some(&Token::Symbol(b'=')) { at + 1 } else { at })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::sql::effects;

    #[test]
    fn a_database_that_must_be_free_is_named() {
        for (text, expected) in [
            ("DROP DATABASE testdb", Some("testdb")),
            ("drop database if exists \"Test DB\" with (force)", Some("Test DB")),
            ("ALTER DATABASE a RENAME TO b", Some("a")),
            ("CREATE DATABASE b WITH OWNER x TEMPLATE = a ENCODING 'UTF8'", Some("a")),
            ("CREATE DATABASE b TEMPLATE a", Some("a")),
            ("CREATE DATABASE b", None),
            ("ALTER DATABASE a SET work_mem = '1MB'", None),
            ("DROP TABLE database", None),
        ] {
            let needed = effects(text.as_bytes()).and_then(|effects| effects.needs_database);
            assert_eq!(needed.as_deref(), expected, "{text}");
        }
    }
}
