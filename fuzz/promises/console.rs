//! What an operator types: any text is one command or a short error, and a name in quotes is that name, whatever is in it.

use crate::measure::bounded;
use pgusher::inside::Command;

/// The longest error, whatever was said.
const MAX_ERROR: usize = 2048;
/// A command may be so long.
const MAX_COMMAND: usize = 64 << 10;

/// As a name or a text is quoted.
fn quoted(text: &str, quote: char) -> String {
    let quote = quote.to_string();
    format!("{quote}{}{quote}", text.replace(&quote, &quote.repeat(2)))
}

/// See the module.
pub(crate) fn holds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let command = bounded(text.len(), 256, || Command::parse(text));
    assert_eq!(command, Command::parse(text), "the same text is another command");
    match &command {
        Err(refusal) => {
            assert!(["42601", "0A000"].contains(&refusal.sqlstate.as_str()), "{refusal}");
            assert!(format!("{refusal:?}").len() <= MAX_ERROR, "{refusal:?}");
        }
        // Quotes may make it longer than a command may be.
        Ok(said) if text.len() <= MAX_COMMAND / 4 => {
            assert_eq!(Command::parse(&said.to_string()), command, "the audit has another command");
            assert_eq!(Command::parse(&format!("\n {text};")), command, "space and an end change nothing");
        }
        Ok(_) if text.len() + 4 <= MAX_COMMAND => {
            assert_eq!(Command::parse(&format!("\n {text};")), command, "space and an end change nothing");
        }
        Ok(_) => {}
    }
    if text.len() > MAX_COMMAND / 4 {
        return;
    }
    let named = Some(text.to_owned());
    assert_eq!(Command::parse(&format!("pause {}", quoted(text, '"'))), Ok(Command::Pause(named.clone())));
    let explain = format!("EXPLAIN ROUTE FOR {} ON {0} AS {}", quoted(text, '\''), quoted(text, '"'));
    let (user, database) = (text.to_owned(), text.to_owned());
    assert_eq!(
        Command::parse(&explain),
        Ok(Command::ExplainRoute { user, database, environment: named.clone() })
    );
    let revoke = format!("REVOKE ENVIRONMENT {} ON {0} FROM {0}", quoted(text, '"'));
    let (environment, user) = (text.to_owned(), text.to_owned());
    assert_eq!(Command::parse(&revoke), Ok(Command::Revoke { environment, database: named, user }));
    // What is in quotes is never a second command.
    assert!(Command::parse(&format!("RELOAD {}", quoted(text, '\''))).is_err());
}
