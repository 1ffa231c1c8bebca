//! What a client is told when pgusher refuses or loses it, and whose fault that is.

use std::borrow::Cow;
use std::fmt;

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

/// A five-character SQLSTATE (PostgreSQL manual, appendix A).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlState(pub &'static str);

impl SqlState {
    /// `protocol_violation`
    pub const PROTOCOL_VIOLATION: Self = Self("08P01");
    /// `connection_failure`
    pub const CONNECTION_FAILURE: Self = Self("08006");
    /// `sqlclient_unable_to_establish_sqlconnection`
    pub const UNABLE_TO_CONNECT: Self = Self("08001");
    /// `feature_not_supported`
    pub const NOT_SUPPORTED: Self = Self("0A000");
    /// `invalid_authorization_specification`
    pub const INVALID_AUTHORIZATION: Self = Self("28000");
    /// `invalid_password`
    pub const INVALID_PASSWORD: Self = Self("28P01");
    /// `invalid_sql_statement_name`
    pub const INVALID_STATEMENT_NAME: Self = Self("26000");
    /// `invalid_catalog_name`
    pub const UNKNOWN_DATABASE: Self = Self("3D000");
    /// `syntax_error`
    pub const SYNTAX_ERROR: Self = Self("42601");
    /// `insufficient_privilege`
    pub const INSUFFICIENT_PRIVILEGE: Self = Self("42501");
    /// `undefined_object`
    pub const UNDEFINED_OBJECT: Self = Self("42704");
    /// `object_not_in_prerequisite_state`
    pub const NOT_IN_PREREQUISITE_STATE: Self = Self("55000");
    /// `duplicate_prepared_statement`
    pub const DUPLICATE_STATEMENT: Self = Self("42P05");
    /// `too_many_connections`
    pub const TOO_MANY_CONNECTIONS: Self = Self("53300");
    /// `program_limit_exceeded`
    pub const LIMIT_EXCEEDED: Self = Self("54000");
    /// `out_of_memory`
    pub const OUT_OF_MEMORY: Self = Self("53200");
    /// `untranslatable_character`
    pub const UNTRANSLATABLE_CHARACTER: Self = Self("22P05");
    /// `query_canceled`
    pub const QUERY_CANCELED: Self = Self("57014");
    /// `admin_shutdown`
    pub const ADMIN_SHUTDOWN: Self = Self("57P01");
    /// `cannot_connect_now`
    pub const CANNOT_CONNECT_NOW: Self = Self("57P03");
    /// `idle_session_timeout`
    pub const IDLE_SESSION_TIMEOUT: Self = Self("57P05");
    /// `idle_in_transaction_session_timeout`
    pub const IDLE_IN_TRANSACTION_TIMEOUT: Self = Self("25P03");
    /// `internal_error`
    pub const INTERNAL: Self = Self("XX000");
}

/// What PostgreSQL says of a statement or a setting, and of nothing that is about the login itself.
const OF_STATEMENTS: [&str; 22] = [
    "0A000", "22021", "22023", "22026", "22P02", "22P05", "25001", "25006", "42501", "42601", "42602",
    "42622", "42704", "42883", "53200", "54000", "54001", "55000", "55006", "55P02", "57014", "57P01",
];

impl SqlState {
    /// The state that an upstream gave for a statement of a client's, or for a setting; `None` for one that is about
    /// something else.
    pub fn of_statement(state: &str) -> Option<Self> {
        OF_STATEMENTS.into_iter().find(|known| *known == state).map(Self)
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
}

impl Refusal {
    /// A refusal with neither DETAIL nor HINT.
    pub fn new(fault: Fault, sqlstate: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self { fault, sqlstate, message: message.into(), detail: None, hint: None }
    }

    /// The client broke the protocol: `08P01`.
    pub fn protocol(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Fault::Client, SqlState::PROTOCOL_VIOLATION, message)
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
        write!(f, "{} ({})", self.message, self.sqlstate.0)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}
