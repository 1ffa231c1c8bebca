//! A client on its way from its socket to its login.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::Generation;
use crate::login_permits::{LoginPermit, no_permit};
use wire::error::{Fault, Refusal, SqlState};

/// A client that has not logged in yet.
pub(crate) struct LoginAttempt {
    /// What was in force when its socket was accepted.
    pub accepted_by: Arc<Generation>,
    /// Until when it must have logged in.
    pub deadline: Instant,
    /// Its other end.
    pub peer: String,
    /// Its permit as a client that has not logged in yet.
    pub login_permit: LoginPermit,
}

impl LoginAttempt {
    /// Runs a login, as long as the client has time and a permit.
    ///
    /// # Errors
    /// Why the login failed; `57014` when its time is over, `53300` when it must make room for others.
    pub(crate) async fn in_time<T>(
        &self,
        login: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let logged_in = tokio::select! {
            logged_in = timeout_at(self.deadline, login) => logged_in,
            () = self.login_permit.must_leave() => Ok(Err(no_permit())),
        };
        logged_in.unwrap_or_else(|_| {
            let message = "canceling authentication due to client_login_timeout";
            Err(Refusal::new(Fault::Client, SqlState::QUERY_CANCELED, message))
        })
    }
}
