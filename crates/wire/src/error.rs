//! What a client is told when pgusher refuses or loses it, and whose fault that is.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Whose fault a failure is: what the log says and the counters count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The client sent something wrong, or asked for what it may not have.
    Client,
    /// The PostgreSQL server behind the route failed or refused.
    Upstream,
    /// The configuration, or an order of the operator (reload, shutdown).
    Operator,
    /// A bug or an exhausted resource of pgusher.
    Ours,
}

impl Fault {
    /// As metrics and the log say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Operator => "operator",
            Self::Ours => "pgusher",
        }
    }
}

/// A five-character SQLSTATE (PostgreSQL manual, appendix A): one of ours, or whatever an upstream has sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SqlState([u8; 5]);

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({})", self.as_str())
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl SqlState {
    /// Of a text of five digits and capital letters, known when this is compiled.
    ///
    /// # Panics
    /// It is another text: in a constant, that is an error of the compiler's.
    pub const fn new(text: &'static str) -> Self {
        let state = match text.as_bytes().first_chunk() {
            Some(state) if text.len() == 5 => *state,
            _ => [0; 5],
        };
        assert!(is_state(state), "a SQLSTATE has five digits or capital letters");
        Self(state)
    }

    /// Of what an upstream has sent; `None` if it is not a SQLSTATE.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let state = *<&[u8; 5]>::try_from(text).ok()?;
        is_state(state).then_some(Self(state))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// `protocol_violation`
    pub const PROTOCOL_VIOLATION: Self = Self::new("08P01");
    /// `connection_failure`
    pub const CONNECTION_FAILURE: Self = Self::new("08006");
    /// `sqlclient_unable_to_establish_sqlconnection`
    pub const UNABLE_TO_CONNECT: Self = Self::new("08001");
    /// `feature_not_supported`
    pub const NOT_SUPPORTED: Self = Self::new("0A000");
    /// `invalid_authorization_specification`
    pub const INVALID_AUTHORIZATION: Self = Self::new("28000");
    /// `invalid_password`
    pub const INVALID_PASSWORD: Self = Self::new("28P01");
    /// `invalid_sql_statement_name`
    pub const INVALID_STATEMENT_NAME: Self = Self::new("26000");
    /// `invalid_catalog_name`
    pub const UNKNOWN_DATABASE: Self = Self::new("3D000");
    /// `syntax_error`
    pub const SYNTAX_ERROR: Self = Self::new("42601");
    /// `invalid_parameter_value`
    pub const INVALID_PARAMETER: Self = Self::new("22023");
    /// `insufficient_privilege`
    pub const INSUFFICIENT_PRIVILEGE: Self = Self::new("42501");
    /// `undefined_object`
    pub const UNDEFINED_OBJECT: Self = Self::new("42704");
    /// `object_not_in_prerequisite_state`
    pub const NOT_IN_PREREQUISITE_STATE: Self = Self::new("55000");
    /// `duplicate_prepared_statement`
    pub const DUPLICATE_STATEMENT: Self = Self::new("42P05");
    /// `too_many_connections`
    pub const TOO_MANY_CONNECTIONS: Self = Self::new("53300");
    /// `program_limit_exceeded`
    pub const LIMIT_EXCEEDED: Self = Self::new("54000");
    /// `out_of_memory`
    pub const OUT_OF_MEMORY: Self = Self::new("53200");
    /// `untranslatable_character`
    pub const UNTRANSLATABLE_CHARACTER: Self = Self::new("22P05");
    /// `query_canceled`
    pub const QUERY_CANCELED: Self = Self::new("57014");
    /// `admin_shutdown`
    pub const ADMIN_SHUTDOWN: Self = Self::new("57P01");
    /// `cannot_connect_now`
    pub const CANNOT_CONNECT_NOW: Self = Self::new("57P03");
    /// `idle_session_timeout`
    pub const IDLE_SESSION_TIMEOUT: Self = Self::new("57P05");
    /// `idle_in_transaction_session_timeout`
    pub const IDLE_IN_TRANSACTION_TIMEOUT: Self = Self::new("25P03");
    /// `active_sql_transaction`
    pub const ACTIVE_SQL_TRANSACTION: Self = Self::new("25001");
    /// `no_active_sql_transaction`
    pub const NO_ACTIVE_SQL_TRANSACTION: Self = Self::new("25P01");
    /// `character_not_in_repertoire`
    pub const CHARACTER_NOT_IN_REPERTOIRE: Self = Self::new("22021");
    /// `cant_change_runtime_param`
    pub const CANT_CHANGE_PARAMETER: Self = Self::new("55P02");
    /// `invalid_name`
    pub const INVALID_NAME: Self = Self::new("42602");
    /// `config_file_error`
    pub const CONFIG_FILE_ERROR: Self = Self::new("F0000");
    /// `internal_error`
    pub const INTERNAL: Self = Self::new("XX000");
}

const fn is_state(state: [u8; 5]) -> bool {
    let mut at = 0;
    while at < state.len() {
        if !state[at].is_ascii_digit() && !state[at].is_ascii_uppercase() {
            return false;
        }
        at += 1;
    }
    true
}

/// The longest name that is shown, in bytes: PostgreSQL's `NAMEDATALEN - 1`.
const MAX_NAME: usize = 63;
/// The longest sentence that is shown, in bytes.
const MAX_SENTENCE: usize = 512;

/// A text that somebody else sent, as it may stand in a message, a log, an audit or a notice: short, and on one line.
/// Whatever a terminal or a reader of lines would obey (control characters, line separators, marks that turn the
/// direction of writing) is escaped as Rust escapes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// A name or a value: at most 63 bytes, as PostgreSQL cuts names.
    pub fn name(text: &str) -> Self {
        Self::within(text, MAX_NAME)
    }

    /// The same, of bytes that may not be UTF-8.
    pub fn bytes(text: &[u8]) -> Self {
        // No more is looked at than can be shown.
        Self::name(&String::from_utf8_lossy(&text[..text.len().min(2 * MAX_NAME)]))
    }

    /// A whole sentence: at most 512 bytes.
    pub fn sentence(text: &str) -> Self {
        Self::within(text, MAX_SENTENCE)
    }

    /// At most so many bytes, cut where a character, or what stands for it, ends.
    pub fn within(text: &str, limit: usize) -> Self {
        let mut shown = String::with_capacity(text.len().min(limit));
        for c in text.chars() {
            let before = shown.len();
            if is_obeyed(c) {
                let _ = write!(shown, "{}", c.escape_default());
            } else {
                shown.push(c);
            }
            if shown.len() > limit {
                shown.truncate(before);
                break;
            }
        }
        Self(shown)
    }

    /// As it is shown.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a character does something in place of being seen.
pub fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A JSON text in which every character that would be obeyed is written as an escape: it means the same.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_obeyed) {
        return json.into();
    }
    let escape = |mut out: String, c: char| {
        match is_obeyed(c) {
            true => drop(write!(out, "\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
        out
    };
    json.chars().fold(String::with_capacity(json.len() + 16), escape).into()
}

/// What PostgreSQL says of a statement or a setting, and of nothing that is about the login itself.
const OF_STATEMENTS: [&str; 22] = [
    "0A000", "22021", "22023", "22026", "22P02", "22P05", "25001", "25006", "42501", "42601", "42602",
    "42622", "42704", "42883", "53200", "54000", "54001", "55000", "55006", "55P02", "57014", "57P01",
];

impl SqlState {
    /// Whether PostgreSQL says it of a statement or a setting, and of nothing that is about the login itself.
    pub fn is_of_statement(self) -> bool {
        OF_STATEMENTS.contains(&self.as_str())
    }
}

/// An error that pgusher itself raises towards a client (protocol: `ErrorResponse`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whose fault it is.
    pub fault: Fault,
    /// The SQLSTATE, PostgreSQL's own where PostgreSQL would have said the same.
    pub sqlstate: SqlState,
    /// One sentence, in PostgreSQL's manner: lower case, no full stop.
    pub message: Cow<'static, str>,
    /// What exactly, for the person who reads it.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<Cow<'static, str>>,
    /// What has brought it about: for the log, and never for the client.
    cause: Option<Box<str>>,
}

impl Refusal {
    /// A refusal with neither DETAIL nor HINT.
    pub fn new(fault: Fault, sqlstate: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self { fault, sqlstate, message: message.into(), detail: None, hint: None, cause: None }
    }

    /// The client broke the protocol: `08P01`.
    pub fn protocol(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Fault::Client, SqlState::PROTOCOL_VIOLATION, message)
    }

    /// The upstream's own words: of the body of an `ErrorResponse`.
    pub fn of_response(body: &[u8]) -> Self {
        let text = |code| crate::error_field(body, code).map(|t| String::from_utf8_lossy(t).into_owned());
        let state = crate::error_field(body, b'C').and_then(SqlState::parse).unwrap_or(SqlState::INTERNAL);
        let message = text(b'M').unwrap_or_else(|| "no message".into());
        Self {
            detail: text(b'D'),
            hint: text(b'H').map(Into::into),
            ..Self::new(if state.is_of_statement() { Fault::Client } else { Fault::Upstream }, state, message)
        }
    }

    /// The same with a DETAIL.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same with a HINT.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with what has brought it about, which only the log is told.
    #[must_use]
    pub fn caused_by(mut self, cause: &dyn fmt::Display) -> Self {
        self.cause = Some(Shown::sentence(&cause.to_string()).0.into());
        self
    }

    /// As the log tells it: with its cause, if that is known.
    pub fn for_log(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{self}; cause: {cause}"),
            None => self.to_string(),
        }
    }

    /// The same with the environment named in the DETAIL, behind what stands there.
    #[must_use]
    pub fn in_environment(mut self, environment: &str, connection: &str) -> Self {
        let place = format!("Environment \"{environment}\" (connection \"{connection}\").");
        self.detail = Some(match self.detail.take() {
            Some(detail) if detail.contains(&place) => detail,
            Some(detail) => format!("{detail} {place}"),
            None => place,
        });
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.sqlstate)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_a_refusal_is_told_to_the_log_and_not_to_the_client() {
        let refusal = Refusal::new(Fault::Ours, SqlState::INTERNAL, "no random bytes").caused_by(&"EIO\n");
        assert_eq!(refusal.for_log(), "no random bytes (XX000); cause: EIO\\n");
        let mut sent = Vec::new();
        crate::error_response(&mut sent, crate::Severity::Fatal, &refusal);
        assert!(!String::from_utf8_lossy(&sent).contains("EIO"));
        assert!(!refusal.to_string().contains("EIO"));
    }

    #[test]
    fn any_sqlstate_of_an_upstream_is_passed_on_and_nothing_else_is_one() {
        for state in ["22012", "P0001", "XX000", "ZZZZZ", "00000"] {
            assert_eq!(SqlState::parse(state.as_bytes()).unwrap().as_str(), state);
        }
        for other in ["", "2201", "220123", "2201a", "22 12", "22\n12", "2201\u{e9}"] {
            assert_eq!(SqlState::parse(other.as_bytes()), None, "{other:?}");
        }
        let body = b"SERROR\0C23505\0Mduplicate key\0Ddetail\0\0";
        let refusal = Refusal::of_response(body);
        assert_eq!((refusal.sqlstate.as_str(), &*refusal.message), ("23505", "duplicate key"));
        assert_eq!(refusal.fault, Fault::Upstream);
        assert_eq!(Refusal::of_response(b"SERROR\0C22023\0Mno\0\0").fault, Fault::Client, "its own setting");
        let refusal = Refusal::of_response(b"SERROR\0Cnonsense\0Mno\0\0");
        assert_eq!(refusal.sqlstate, SqlState::INTERNAL);
    }

    #[test]
    fn what_others_send_is_shown_short_and_on_one_line() {
        for (text, shown) in [
            ("alice", "alice"),
            ("x\n2026-11-27T00:00:00.000000Z  INFO forged", "x\\n2026-11-27T00:00:00.000000Z  INFO forged"),
            ("\u{1b}[2J\r\t\u{7f}\u{9b}", "\\u{1b}[2J\\r\\t\\u{7f}\\u{9b}"),
            ("a\u{2028}b\u{202e}c", "a\\u{2028}b\\u{202e}c"),
            ("käse 😀", "käse 😀"),
        ] {
            assert_eq!(Shown::name(text).as_str(), shown);
        }
        assert_eq!(Shown::name(&"n".repeat(10_000)).as_str(), "n".repeat(63));
        assert_eq!(Shown::bytes(&[b'n'; 10_000]).as_str(), "n".repeat(63));
        // Neither a character nor an escape is cut in two.
        assert_eq!(Shown::name(&"ä".repeat(63)).as_str(), "ä".repeat(31));
        assert_eq!(Shown::name(&"\u{1}".repeat(4_900)).as_str(), "\\u{1}".repeat(12));
        assert_eq!(Shown::bytes(b"\xff\xfe\0").as_str(), "\u{fffd}\u{fffd}\\u{0}");
        assert!(Shown::sentence(&"\u{7}".repeat(9_000)).as_str().len() <= MAX_SENTENCE);
    }
}
