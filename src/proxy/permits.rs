//! How many clients there may be: of all, of a user, of a connection, and of those who only look at the console.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;

use super::Generation;
use crate::auth::Identity;
use policy::config::file;
use policy::names::{ConnectionName, UserName};
use policy::route::Route;
use wire::error::{Fault, Refusal, SqlState};

/// The maximum number of console sessions of users with `console = "stats"`.
const MAX_LOOKERS: u32 = 100;

/// All that there are now.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    all: Arc<AtomicUsize>,
    users: DashMap<UserName, Arc<AtomicUsize>>,
    connections: DashMap<ConnectionName, Arc<AtomicUsize>>,
    /// Console sessions of users with `console = "stats"`.
    lookers: Arc<AtomicUsize>,
}

/// A permit that is counted: of all clients, of a user's, of a connection's.
#[derive(Debug, Default)]
pub(crate) struct ClientPermit([Option<Arc<AtomicUsize>>; 3]);

impl ClientPermit {
    /// One more of these. 0 is no limit.
    fn take(&mut self, count: Arc<AtomicUsize>, limit: u32, message: String) -> Result<(), Refusal> {
        let taken = count.fetch_add(1, Ordering::AcqRel);
        if let Some(free) = self.0.iter_mut().find(|count| count.is_none()) {
            *free = Some(count);
        }
        if limit > 0 && taken >= limit as usize {
            return Err(Refusal::new(Fault::Client, SqlState::TOO_MANY_CONNECTIONS, message));
        }
        Ok(())
    }
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        for count in self.0.iter().flatten() {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Permits {
    /// A login takes its permits, if there are any.
    ///
    /// # Errors
    /// `53300`
    pub(crate) fn for_login(
        &self,
        generation: &Generation,
        identity: &Identity,
        route: &Route<Identity>,
    ) -> Result<ClientPermit, Refusal> {
        let config = &generation.config;
        let user = config.users.get(identity.user());
        let connection = config.connections.get(route.connection());
        let mut permit = ClientPermit::default();
        let message = "sorry, too many clients already";
        permit.take(self.all.clone(), *config.server.max_client_conn, message.into())?;
        permit.take(
            self.users.entry(identity.user().clone()).or_default().clone(),
            user.map_or(0, |u| u.max_client_connections),
            format!("too many connections for role \"{}\"", identity.user()),
        )?;
        permit.take(
            self.connections.entry(route.connection().clone()).or_default().clone(),
            connection.map_or(0, |c| c.max_client_connections),
            format!("too many connections for database \"{}\"", route.base()),
        )?;
        Ok(permit)
    }

    /// A permit for a console session. Users with `console = "stats"` share a fixed number of permits.
    ///
    /// # Errors
    /// `53300`
    pub(crate) fn for_console(
        &self,
        generation: &Generation,
        user: &UserName,
        right: file::Console,
    ) -> Result<ClientPermit, Refusal> {
        let mut permit = ClientPermit::default();
        if right == file::Console::Stats {
            let message =
                format!("too many sessions of the console for users with console = \"{}\"", right.word());
            permit.take(self.lookers.clone(), MAX_LOOKERS, message)?;
        }
        permit.take(
            self.users.entry(user.clone()).or_default().clone(),
            generation.config.users.get(user).map_or(0, |u| u.max_client_connections),
            format!("too many connections for role \"{user}\""),
        )?;
        Ok(permit)
    }
}
