//! Who may use the console, and for how long.

use super::Console;
use crate::auth::{Terms, may_stay};
use crate::handshake::Arrival;
use crate::proxy::{ClientPermit, Generation, LoginAttempt};
use policy::config::CONSOLE_DATABASES;
use policy::config::file::Console as Right;
use policy::names::UserName;
use wire::error::{Fault, Refusal, SqlState};

/// The proof of who it is, and his right.
///
/// # Errors
/// Why he is not let in.
pub(super) async fn log_in(
    console: &Console,
    attempt: &LoginAttempt,
    arrival: &mut Arrival,
) -> Result<(Operator, Right, ClientPermit), Refusal> {
    let LoginAttempt { accepted_by, login_permit, .. } = attempt;
    let proved = console.current.generation();
    may_stay(&accepted_by.config, &proved.config)?;
    let permitted = match peer_of_ours(arrival, &proved) {
        Some(operator) => operator,
        None => prove(console, attempt, arrival, &proved).await?,
    };
    // By what is in force now: the proof may have taken long.
    let now = console.current.generation();
    let right = right_of(&now, &permitted).ok_or_else(|| {
        let message = format!("user \"{}\" may not use the console", permitted.name);
        Refusal::new(Fault::Client, SqlState::INVALID_AUTHORIZATION, message)
            .hint("It takes console = \"admin\" or \"stats\" in [users.NAME].")
    })?;
    let permit = console.permits.for_console(&now, &permitted.name, right)?;
    // `reserved_connections` are for users with `console = "admin"`.
    match right {
        Right::Admin => login_permit.is_operator()?,
        Right::Stats => login_permit.is_known()?,
    }
    let out = &mut arrival.pending;
    wire::message(out, b'R', |out| out.extend([0; 4]));
    for (name, value) in [
        ("server_version", concat!("17.0 (pgusher ", env!("CARGO_PKG_VERSION"), ")")),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("integer_datetimes", "on"),
        ("is_superuser", "on"),
    ] {
        wire::parameter_status(out, name.as_bytes(), value.as_bytes());
    }
    wire::ready_for_query(out, b'I');
    let left = |error| {
        Refusal::new(Fault::Client, SqlState::CONNECTION_FAILURE, "the client left").caused_by(&error)
    };
    arrival.flush_pending().await.map_err(left)?;
    Ok((permitted, right, permit))
}

/// Who uses the console, and how that is known.
#[derive(Debug, Clone)]
pub(super) struct Operator {
    pub(super) name: UserName,
    pub(super) proof: IdentityProof,
}

/// How it is known who somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdentityProof {
    /// A user of the configuration, as its `auth_type` has it.
    Configured,
    /// The user of the operating system that pgusher runs as, by the unix socket (PostgreSQL's and PgBouncer's `peer`): so that
    /// nobody is locked out of his own pgusher.
    Peer,
}

impl IdentityProof {
    /// As the audit has it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Configured => "login",
            Self::Peer => "peer",
        }
    }
}

/// Whoever runs pgusher and says one of these names, while no user of the configuration has it.
fn peer_of_ours(arrival: &Arrival, generation: &Generation) -> Option<Operator> {
    let name: UserName = arrival.startup.user.as_str().into();
    let is_free = CONSOLE_DATABASES.contains(&name.as_str()) && !generation.config.users.contains_key(&name);
    let own = rustix::process::geteuid().as_raw();
    let is_own = || arrival.reader.stream.peer_uid() == Some(own);
    (is_free && is_own()).then_some(Operator { name, proof: IdentityProof::Peer })
}

async fn prove(
    console: &Console,
    attempt: &LoginAttempt,
    arrival: &mut Arrival,
    proved: &Generation,
) -> Result<Operator, Refusal> {
    // TLS was made with what was in force when the socket was accepted.
    let terms = Terms { tls: attempt.accepted_by.tls.as_deref(), ..proved.terms() };
    let identity = console.authenticator.authenticate(arrival, terms, &attempt.peer).await?;
    identity.is_still(&proved.config, &console.current.generation().config)?;
    Ok(Operator { name: identity.user().clone(), proof: IdentityProof::Configured })
}

/// What a user may do on the console by this generation.
pub(super) fn right_of(generation: &Generation, operator: &Operator) -> Option<Right> {
    match (generation.config.users.get(&operator.name), operator.proof) {
        (Some(user), IdentityProof::Configured) => user.console.filter(|_| !user.disabled),
        (None, IdentityProof::Peer) => Some(Right::Admin),
        // A name that the configuration has meanwhile, or has no longer.
        (Some(_), IdentityProof::Peer) | (None, IdentityProof::Configured) => None,
    }
}

pub(super) fn no_longer() -> Refusal {
    let message = "terminating connection because this user may not use the console any more";
    Refusal::new(Fault::Operator, SqlState::ADMIN_SHUTDOWN, message)
}

/// Waits until this user may not use the console any more.
pub(super) async fn loses_right(console: &Console, user: &Operator) {
    let mut changes = console.current.changes();
    while right_of(&console.current.generation(), user).is_some() {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
