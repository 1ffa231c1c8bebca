//! Which statement gives up the role that a session has taken.

use super::lexer::{Token, tokens};

/// The longest text that is looked at.
const MAX_TEXT: usize = 256;

/// True if a text is one statement that gives up the role, whatever that was, and does nothing else: `RESET ROLE`, `SET ROLE NONE` and
/// their like (PostgreSQL's manual, SET ROLE and SET SESSION AUTHORIZATION), or `DISCARD ALL`.
pub fn gives_up_role(text: &[u8]) -> bool {
    // What is quoted is a name.
    if text.len() > MAX_TEXT || text.contains(&b'"') {
        return false;
    }
    let mut tokens = tokens(text);
    tokens.pop_if(|last| *last == Token::Symbol(b';'));
    let words: Option<Vec<&str>> = tokens
        .iter()
        .map(|token| match token {
            Token::Word(word) => Some(&**word),
            Token::Symbol(b'=') => Some("to"),
            Token::Text(_) | Token::Symbol(_) => None,
        })
        .collect();
    matches!(
        words.as_deref(),
        Some(
            ["reset", "role"]
                | ["reset", "session", "authorization"]
                | ["set", "role", "none"]
                | ["set", "session", "role", "none"]
                | ["set", "role", "to", "none" | "default"]
                | ["set", "session", "role", "to", "none" | "default"]
                | ["set", "session", "authorization", "default"]
                | ["discard", "all"]
        )
    )
}

#[cfg(test)]
mod tests {
    use super::gives_up_role;

    #[test]
    fn a_role_is_given_up_by_a_statement_that_does_nothing_else() {
        for text in [
            "RESET ROLE",
            "reset /* it */ role;",
            "set session role to default",
            "RESET SESSION AUTHORIZATION",
            "SET SESSION AUTHORIZATION DEFAULT",
            "DISCARD ALL",
            "SET ROLE NONE",
            "SET role = none",
            "set session role none;",
        ] {
            assert!(gives_up_role(text.as_bytes()), "{text}");
        }
        for text in [
            "RESET ROLE; SELECT 1",
            "RESET; ROLE",
            "RESET ROLE;;",
            "DISCARD \"all\"",
            "SET LOCAL ROLE NONE",
            "SET ROLE bob",
            "RESET ALL",
            "SELECT 'reset', role",
            "",
            &format!("RESET ROLE --{}", " ".repeat(300)),
        ] {
            assert!(!gives_up_role(text.as_bytes()), "{text}");
        }
    }
}
