//! Between two users of one connection: who may get it, and how it is reset.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::lease::Usage;
use super::{Lease, Pool, Pooled};
use crate::upstream::{Allowance, Backend, UpstreamError, rows};
use policy::config::file::Isolation;
use policy::names::UserName;
use relay::conductor::Condition;
use relay::ledger::Limits;
use relay::reset::{DISCARD, Proof};

/// The longest that a reset may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the answers to the questions of a first connection may be, in bytes.
const MAX_ANSWER: usize = 64 << 10;
/// A setting that is set to see whether it is taken away again.
const PROBE: &str = "pgusher.isolation_probe";

/// Why the connections of a pool cannot be reset; known from its first one on.
#[derive(Debug, Default)]
pub(super) struct Resettable(OnceLock<Option<String>>);

impl Pooled {
    /// It is used for this user from now on; to be said before anything of the user's is sent.
    pub(super) fn serve(&mut self, user: &UserName) {
        if self.state.serve(user) {
            self.target.is_used_for(user);
        }
    }
}

impl Pool {
    /// How sessions of different users share its connections, and why that is not what the configuration says.
    pub fn isolation(&self) -> (Isolation, Option<String>) {
        let reason = self.resettable.0.get().cloned().flatten();
        (self.ledger.lock().limits().isolation, reason)
    }

    /// What is in force where the configuration says this.
    pub(super) fn isolation_of(&self, configured: Isolation) -> Isolation {
        match self.resettable.0.get() {
            Some(Some(_)) if configured == Isolation::User => Isolation::Strict,
            _ => configured,
        }
    }

    /// Whether it is known.
    pub(super) fn is_proved(&self) -> bool {
        self.resettable.0.get().is_some()
    }

    /// Whether it can be: the process that has logged us in is the one that answers.
    pub(super) fn is_resettable(&self) -> bool {
        matches!(self.resettable.0.get(), Some(None))
    }

    /// The first connection is asked whether it can be reset: another pooler between us and the server, or a server that
    /// only looks like PostgreSQL, would say that it was. Such a one serves one user for all its life.
    ///
    /// # Errors
    /// The connection was lost, or the new one that takes its place.
    pub(super) async fn prove_resettable(&self, backend: &mut Backend) -> Result<(), UpstreamError> {
        if self.resettable.0.get().is_some() {
            return Ok(());
        }
        let proved = tokio::time::timeout(PATIENCE, prove(backend)).await;
        let reason = match proved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(()) => None,
            // It has answered, and said no.
            Err(error) if error.kind() == io::ErrorKind::Other => Some(error.to_string()),
            // Answers may still come: nobody else may have this connection, and the next one is asked again.
            Err(error) => return Err(error.into()),
        };
        if let Some(reason) = self.resettable.0.get_or_init(|| reason) {
            // With what is configured now, and not with what was before a reload.
            let _one_at_a_time = self.changing.lock();
            let connection = self.connection();
            warn!(
                connection = %connection.name, %reason,
                "its connections cannot be reset: each serves one user until it is closed (isolation \"strict\")"
            );
            let mut ledger = self.ledger.lock();
            let isolation = self.isolation_of(connection.isolation);
            let limits = Limits { isolation, ..ledger.limits().clone() };
            ledger.update(limits);
        }
        Ok(())
    }

    /// Resets the connections that are idle with something of their last users on them: no lock, channel or cursor outlives
    /// its owner there. They are not to be had meanwhile.
    pub(super) fn reset_idle(self: &Arc<Self>) {
        if self.resettable.0.get().is_some_and(Option::is_some) {
            return;
        }
        let now = self.now();
        let dirty = self.ledger.lock().lend_dirty(now);
        for pooled in dirty {
            let lease = Lease::of(self, pooled);
            self.runtimes.tasks.spawn_on(lease.clean(), &self.runtimes.control);
        }
    }
}

impl Lease {
    /// Has the server take away all that the last user has left. On an error the connection must not be used any more.
    ///
    /// Not cancel-safe: dropped, it must not be used either (and is not: the lease goes with it).
    ///
    /// # Errors
    /// The server refuses, does not answer in time, or has gone.
    async fn reset(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let reset = async {
            let (seed, proof) = seed_and_proof()?;
            let refused = |_| io::Error::other("the server refuses to reset it");
            self.simple(DISCARD).await?.map_err(refused)?;
            let row = self.simple(&proof.new_seed(seed)).await?.map_err(refused)?;
            match row.is_some_and(|row| proof.is_in(&row)) {
                true => Ok(()),
                false => Err(io::Error::other("what answers is not the answer to the reset")),
            }
        };
        let done = tokio::time::timeout(PATIENCE, reset).await;
        let done = done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let counts = &self.pool().stats.isolated;
        match &done {
            Ok(()) => {
                counts.reset(begun.elapsed());
                self.state.discarded();
            }
            Err(error) => {
                counts.failed();
                info!(connection = %self.pool().connection().name, %error, "a connection could not be reset, and is closed");
            }
        }
        done
    }

    /// As [`Lease::reset`]; `None` if it fails: then it is closed.
    pub(super) async fn reset_or_discard(mut self) -> Option<Self> {
        match self.reset().await {
            Ok(()) => Some(self),
            Err(_) => {
                self.cancel_and_discard();
                None
            }
        }
    }

    /// Makes it fit for this user, before anything of the user's is sent on it, and says whether the user has used it before;
    /// `None` if it cannot be: then it is closed.
    pub(super) async fn make_fit_for(self, user: &UserName) -> Option<(Self, Usage)> {
        let mut lease = self;
        let must_reset = lease.must_reset_for(user);
        let usage = match !lease.state.is_clean() && !must_reset {
            true => Usage::Used,
            false => Usage::Unused,
        };
        if must_reset {
            lease.pool().stats.isolated.hand_overs.fetch_add(1, Ordering::Relaxed);
            lease = lease.reset_or_discard().await?;
        }
        lease.serve(user);
        Some((lease, usage))
    }

    /// True if the server must reset it before this user may use it.
    fn must_reset_for(&self, user: &UserName) -> bool {
        self.state.is_foreign_to(user) && self.isolation != Isolation::Shared
    }

    /// It is lent to a session of this user: in what condition. What is left of another user is to be reset before anything
    /// of this one's is sent.
    pub fn lend_to(&mut self, user: &UserName) -> Condition {
        if self.state.last_user() != Some(user) {
            self.target.is_used_for(user);
        }
        if self.must_reset_for(user) { Condition::OfAnother } else { Condition::AsItIs }
    }
}

fn seed_and_proof() -> io::Result<(u64, Proof)> {
    let random = || getrandom::u64().map_err(io::Error::other);
    Ok((random()?, Proof::new(random()?)))
}

/// Whether it is one server process that answers, which forgets a setting and takes a seed: a connection that nobody uses
/// yet is asked.
///
/// # Errors
/// Why it cannot be reset between users (`Other`); anything else, and it cannot be used any further.
pub(crate) async fn prove(backend: &mut Backend) -> io::Result<()> {
    let allowed = &mut Allowance::bytes(MAX_ANSWER);
    let set = format!("SELECT pg_catalog.set_config('{PROBE}','x',false)");
    let look =
        format!("SELECT pg_catalog.pg_backend_pid(),COALESCE(pg_catalog.current_setting('{PROBE}',true),'')");
    let (seed, proof) = seed_and_proof()?;
    let seed = proof.new_seed(seed);
    let (mut pid, mut left) = (None, None);
    for sql in [&set, DISCARD, &seed, &look] {
        rows(&mut backend.stream, sql, allowed, |row| {
            if let [Some(first), Some(second)] = row {
                pid = str::from_utf8(first).ok().and_then(|pid| pid.parse::<u32>().ok());
                left = Some(!second.is_empty());
            }
            Some(())
        })
        .await?;
    }
    match (pid, left) {
        (Some(pid), _) if pid != backend.target.pid() => Err(io::Error::other(
            "another process answers than the one that has logged us in: a pooler is in between",
        )),
        (Some(_), Some(false)) => Ok(()),
        _ => Err(io::Error::other("a setting is still there behind DISCARD ALL")),
    }
}
