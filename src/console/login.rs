//! Who may use the console, and for how long.

use super::Console;
use crate::auth::{Terms, may_stay};
use crate::handshake::Arrival;
use crate::proxy::{ClientPermit, Generation, LoginAttempt};
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
) -> Result<(UserName, Right, ClientPermit), Refusal> {
    let LoginAttempt { accepted_by, peer, login_permit, .. } = attempt;
    let proved = console.current.generation();
    may_stay(&accepted_by.config, &proved.config)?;
    // TLS was made with what was in force when the socket was accepted.
    let terms = Terms { tls: accepted_by.tls.as_deref(), ..proved.terms() };
    let identity = console.authenticator.authenticate(arrival, terms, peer).await?;
    let name = identity.user().clone();
    // By what is in force now: the proof may have taken long.
    let now = console.current.generation();
    identity.is_still(&proved.config, &now.config)?;
    let right = right_of(&now, &name).ok_or_else(|| {
        let message = format!("user \"{name}\" may not use the console");
        Refusal::new(Fault::Client, SqlState::INVALID_AUTHORIZATION, message)
            .hint("It takes console = \"admin\" or \"stats\" in [users.NAME].")
    })?;
    let permit = console.permits.for_console(&now, &name, right)?;
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
    Ok((name, right, permit))
}

/// What a user may do on the console by this generation.
pub(super) fn right_of(generation: &Generation, user: &UserName) -> Option<Right> {
    generation.config.users.get(user).filter(|user| !user.disabled)?.console
}

pub(super) fn no_longer() -> Refusal {
    let message = "terminating connection because this user may not use the console any more";
    Refusal::new(Fault::Operator, SqlState::ADMIN_SHUTDOWN, message)
}

/// Waits until this user may not use the console any more.
pub(super) async fn loses_right(console: &Console, user: &UserName) {
    let mut changes = console.current.changes();
    while right_of(&console.current.generation(), user).is_some() {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
