//! One client's life, from the first byte to the last; the only place that answers a failure.

mod life;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{Duration, timeout, timeout_at};
use tracing::debug;

use crate::audit::{self, Audit, Refused};
use crate::auth::{Identity, Terms, may_stay};
use crate::cancel::{Slot, ToldPid};
use crate::console::{self, Console};
use crate::entrance::Entrance;
use crate::handshake::{self, Arrival, HandshakeError, Opened};
use crate::login_permits::LoginPermit;
use crate::pool::{Admission, Lease, Pool, Welcome, waited_too_long};
use crate::proxy::{Asked, ClientPermit, Current, Generation, LiveSession, LoginAttempt, SessionTarget};
use crate::stats::Counter;
use crate::stream::{Socket, Stream};
use policy::config::Config;
use policy::config::file::{AuditFailure, PoolMode};
use policy::names::UserName;
use relay::conductor::{Conductor, Session};
use relay::{Facts, Own, Parameters, SessionSettings};
use wire::Severity;
use wire::error::{Fault, Refusal, Shown, SqlState};
use wire::startup::{CancelKey, NEWEST_MINOR, Settings};

/// How long a client that is refused may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves one accepted socket until it is closed. Runs on the control runtime; the relay on the other.
pub(crate) async fn serve(
    entrance: Arc<Entrance>,
    console: Arc<Console>,
    socket: Socket,
    peer: String,
    login_permit: LoginPermit,
) {
    let accepted = Instant::now();
    let generation = entrance.current.generation();
    let limit = *generation.config.server.client_login_timeout;
    let deadline = tokio::time::Instant::from_std(accepted + limit);
    let attempt = LoginAttempt { accepted_by: generation, deadline, peer, login_permit };
    let LoginAttempt { accepted_by, peer, login_permit, .. } = &attempt;
    let opened =
        match timeout_at(deadline, handshake::open(socket, accepted_by.tls.as_ref(), login_permit)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(HandshakeError::Refused(stream, refusal))) => {
                entrance.journal.refused(refused(&refusal, "-", "-", peer));
                return refuse(*stream, &[], &refusal).await;
            }
            Ok(Err(HandshakeError::Tls(cause))) => {
                let refusal = Refusal::protocol(format!("TLS handshake failed: {cause}"));
                return entrance.journal.refused(refused(&refusal, "-", "-", peer));
            }
            Ok(Err(error)) => return debug!(peer, %error, "no login"),
            Err(_) => return debug!(peer, "client_login_timeout before a login"),
        };
    let mut arrival = match opened {
        Opened::Login(arrival) => arrival,
        Opened::Cancel(key, mut stream) => {
            if login_permit.is_known().is_err() {
                return;
            }
            entrance.journal.counters.cancels.fetch_add(1, Ordering::Relaxed);
            let cancel = async {
                if !entrance.keys.cancel(&key).await
                    && let Some(siblings) = &entrance.siblings
                {
                    siblings.cancel(&key).await;
                }
            };
            let _ = timeout(limit, cancel).await;
            let _ = stream.shutdown().await;
            return;
        }
    };
    if console::is_database(&arrival.startup.database) {
        return console::serve(console, attempt, arrival).await;
    }
    match attempt.in_time(log_in(&entrance, &attempt, &mut arrival)).await {
        Ok(parts) => {
            entrance.journal.counters.logins.observe(accepted.elapsed());
            life::begin(entrance, *arrival, parts);
        }
        Err(refusal) => {
            let startup = &arrival.startup;
            entrance.journal.refused(refused(&refusal, &startup.user, &startup.database, peer));
            refuse(arrival.reader.stream, &arrival.pending, &refusal).await;
        }
    }
}

/// How often a login may be decided anew because of what is put in force meanwhile.
const MAX_DECISIONS: usize = 8;

/// What a login leads to, all but the client's socket.
struct LoggedIn {
    live: Arc<LiveSession>,
    conductor: Conductor,
    lease: Option<Lease>,
    permit: ClientPermit,
}

/// A login whose user has proved who he is.
struct Login<'a> {
    entrance: &'a Entrance,
    arrival: &'a mut Arrival,
    peer: &'a str,
    /// Of the session to be.
    id: u64,
    identity: Identity,
    /// What was in force when the proof was given.
    proved: Arc<Generation>,
}

/// What a generation decides of a login.
struct Decided {
    target: Arc<SessionTarget>,
    permit: ClientPermit,
    pool: Arc<Pool>,
    mode: PoolMode,
}

/// From "who are you" to the first `ReadyForQuery`.
///
/// A login can take long, in its proof and in the queue for a connection. It is decided by what is in force when it
/// enters: whatever is put in force before, decides it anew.
async fn log_in(
    entrance: &Entrance,
    attempt: &LoginAttempt,
    arrival: &mut Arrival,
) -> Result<LoggedIn, Refusal> {
    let LoginAttempt { accepted_by, peer, login_permit, .. } = attempt;
    negotiate_version(arrival);
    let proved = entrance.current.generation();
    may_stay(&accepted_by.config, &proved.config)?;
    // TLS was made with what was in force when the socket was accepted.
    let terms = Terms { tls: accepted_by.tls.as_deref(), ..proved.terms() };
    let identity = entrance.authenticator.authenticate(arrival, terms, peer).await?;
    login_permit.is_known()?;
    if arrival.startup.replication {
        return Err(Refusal::new(
            Fault::Client,
            SqlState::NOT_SUPPORTED,
            "replication connections are not supported",
        ));
    }
    let mut login = Login { entrance, arrival, peer, id: entrance.sessions.next(), identity, proved };
    for _ in 0..MAX_DECISIONS {
        let mut changes = entrance.current.changes();
        let generation = entrance.current.generation();
        let Login { identity, proved, arrival, .. } = &login;
        identity.is_still(&proved.config, &generation.config)?;
        let decided = decide(entrance, &generation, identity, arrival)?;
        let _arriving = entrance.sessions.arrives(login.id, generation.number);
        let in_environment = |refusal: Refusal| {
            let route = &decided.target.route;
            refusal.in_environment(route.environment().as_str(), route.connection().as_str())
        };
        let welcome =
            welcome(&decided.pool, decided.mode, &arrival.startup.settings, identity.user(), &generation);
        let welcomed = tokio::select! {
            biased;
            welcomed = welcome => Some(welcomed.map_err(in_environment)?),
            () = another(&entrance.current, &mut changes, &decided, identity, proved) => None,
        };
        let Some((welcome, lease)) = welcomed else { continue };
        if let Some(logged_in) = login.enter(&generation, decided, (welcome, lease)).await? {
            return Ok(logged_in);
        }
    }
    let message = "the configuration changed again and again while this login ran";
    Err(Refusal::new(Fault::Operator, SqlState::CANNOT_CONNECT_NOW, message).hint("Try again."))
}

fn decide(
    entrance: &Entrance,
    generation: &Generation,
    identity: &Identity,
    arrival: &Arrival,
) -> Result<Decided, Refusal> {
    if entrance.life.is_draining() {
        return Err(Refusal::new(
            Fault::Operator,
            SqlState::CANNOT_CONNECT_NOW,
            "the system is shutting down",
        ));
    }
    let startup = &arrival.startup;
    let asked = Asked {
        database: startup.database.as_str().into(),
        environment: startup.environment.as_deref().map(Into::into),
    };
    let looked_up = Instant::now();
    let target = generation.target_for(identity, asked)?;
    entrance.journal.counters.lookups.observe(looked_up.elapsed());
    let route = &target.route;
    let in_environment =
        |refusal: Refusal| refusal.in_environment(route.environment().as_str(), route.connection().as_str());
    let permit = entrance.permits.for_login(generation, identity, route).map_err(in_environment)?;
    let missing = || Refusal::new(Fault::Ours, SqlState::INTERNAL, "a connection without a pool");
    let pool = generation.pools.get(route.connection()).ok_or_else(missing)?.clone();
    let connection = pool.connection();
    let closed = match pool.admission() {
        Admission::Open => None,
        // PgBouncer's words.
        Admission::Disabled => Some(format!("database \"{}\" is disabled", target.route.base())),
        Admission::Drained => Some(format!("environment \"{}\" is drained", target.route.environment())),
    };
    if let Some(message) = closed {
        let refusal = Refusal::new(Fault::Operator, SqlState::CANNOT_CONNECT_NOW, message);
        return Err(in_environment(refusal.hint("An operator has closed it for a while: try again later.")));
    }
    let user = generation.config.users.get(identity.user());
    let mode = user.and_then(|user| user.pool_mode).unwrap_or(connection.pool_mode);
    Ok(Decided { target, permit, pool, mode })
}

/// Waits until something is in force by which this login would go elsewhere, or nowhere.
async fn another(
    current: &Current,
    changes: &mut watch::Receiver<u64>,
    decided: &Decided,
    identity: &Identity,
    proved: &Generation,
) {
    while changes.changed().await.is_ok() {
        let now = current.generation();
        let leads_here = |target: Arc<SessionTarget>| {
            now.pools.get(target.route.connection()).is_some_and(|pool| Arc::ptr_eq(pool, &decided.pool))
        };
        let same = identity.is_still(&proved.config, &now.config).is_ok()
            && now.target_for(identity, decided.target.asked.clone()).is_ok_and(leads_here);
        if !same {
            return;
        }
    }
    std::future::pending::<()>().await;
}

impl Login<'_> {
    /// The last step of a login; `None` if it must be decided anew.
    async fn enter(
        &mut self,
        generation: &Generation,
        decided: Decided,
        (welcome, lease): (Welcome, Option<Lease>),
    ) -> Result<Option<LoggedIn>, Refusal> {
        let Self { entrance, arrival, peer, id, identity, proved } = self;
        let (entrance, id) = (*entrance, *id);
        let Decided { target, permit, pool, mode } = decided;
        let (config, startup) = (&generation.config, &arrival.startup);
        let slot = Arc::new(Slot::default());
        let pid = lease.as_ref().map(|lease| lease.target.pid());
        let suffix = config
            .server
            .application_name_add_user
            .then(|| format!(" [{}@{}]", identity.user(), target.route.environment()).into());
        let settings = SessionSettings::new(
            welcome.reported,
            welcome.extra,
            suffix.filter(|_| mode == PoolMode::Transaction),
        );
        let application_name = settings.reported().get(b"application_name").unwrap_or_default();
        let live = Arc::new(LiveSession {
            id,
            identity: identity.clone(),
            target: target.clone(),
            orders: Arc::default(),
            slot: slot.clone(),
            pid: ToldPid::default(),
            pool: pool.clone(),
            mode,
            peer: (*peer).into(),
            since: SystemTime::now(),
            application_name: String::from_utf8_lossy(application_name).into(),
            tls: arrival.reader.stream.tls(),
            told: Mutex::default(),
        });
        if !entrance.sessions.enter(&live, &proved.config)? {
            return Ok(None);
        }
        let mut entering = Entering { entrance, live: &live, audited: false, done: false };
        let random =
            |error| Refusal::new(Fault::Ours, SqlState::INTERNAL, "no random bytes").caused_by(&error);
        let key = entrance.keys.issue(startup.minor, pid, (id, &slot)).map_err(random)?;
        live.pid.set(key.pid);
        pool.stats().add(Counter::Logins, 1);
        entering.audited = true;
        if let Err(refusal) = audit_login(&entrance.journal.audit, config, &live).await {
            entering.audited = false;
            let route = &live.target.route;
            return Err(refusal.in_environment(route.environment().as_str(), route.connection().as_str()));
        }
        let notice = config.server.login_notice.then(|| target.route.to_string());
        let greeting =
            greeting((settings.reported(), &welcome.notices), &target.facts, &key, notice.as_deref());
        arrival.pending.extend_from_slice(&greeting);
        if let Err(error) = arrival.flush_pending().await {
            let left = Refusal::new(Fault::Client, SqlState::CONNECTION_FAILURE, "the client left");
            return Err(left.caused_by(&error));
        }
        entering.done = true;
        drop(entering);
        let interner = entrance.interner.clone();
        let own = Own { id, pid: (mode == PoolMode::Transaction).then_some(key.pid) };
        let conductor =
            Conductor::new(Session { own, mode, interner, facts: target.facts.clone(), settings });
        Ok(Some(LoggedIn { live, conductor, lease, permit }))
    }
}

/// A client whose login is nearly done. Dropped before it is, also because its time is over, it leaves nothing.
struct Entering<'a> {
    entrance: &'a Entrance,
    live: &'a LiveSession,
    /// The audit was told where it goes.
    audited: bool,
    done: bool,
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        life::withdraw(self.entrance, self.live);
        if self.audited {
            life::audit_end(&self.entrance.journal.audit, self.live, (0, (0, 0)), "it did not come in");
        }
    }
}

/// What the client is told of its settings: without a connection where one is not needed.
async fn welcome(
    pool: &Arc<Pool>,
    mode: PoolMode,
    settings: &Settings,
    user: &UserName,
    generation: &Generation,
) -> Result<(Welcome, Option<Lease>), Refusal> {
    let patience = *generation.config.server.query_wait_timeout;
    let welcome = welcome_patiently(pool, mode, settings, user);
    if patience.is_zero() {
        return welcome.await;
    }
    timeout(patience, welcome).await.unwrap_or_else(|_| Err(waited_too_long(patience)))
}

async fn welcome_patiently(
    pool: &Arc<Pool>,
    mode: PoolMode,
    settings: &Settings,
    user: &UserName,
) -> Result<(Welcome, Option<Lease>), Refusal> {
    match mode {
        PoolMode::Transaction => Ok((pool.welcome(settings, user).await?, None)),
        PoolMode::Session => {
            let mut lease = pool.acquire_session(&Arc::new(settings.clone()), user).await?;
            let reported = lease.state.settings.reported().clone();
            let notices = std::mem::take(&mut lease.notices).into();
            Ok((Welcome { reported, extra: Arc::default(), notices }, Some(lease)))
        }
    }
}

/// `NegotiateProtocolVersion`, where the client asked for more than there is.
fn negotiate_version(arrival: &mut Arrival) {
    let startup = &mut arrival.startup;
    if startup.minor <= NEWEST_MINOR && startup.unknown_extensions.is_empty() {
        return;
    }
    startup.minor = startup.minor.min(NEWEST_MINOR);
    wire::message(&mut arrival.pending, b'v', |out| {
        out.extend((0x0003_0000 | u32::from(startup.minor)).to_be_bytes());
        out.extend(u32::try_from(startup.unknown_extensions.len()).unwrap_or(0).to_be_bytes());
        startup.unknown_extensions.iter().for_each(|name| wire::push_cstr(out, name));
    });
}

/// `AuthenticationOk` to `ReadyForQuery`, with what the upstream reports and what it said.
fn greeting(
    (reported, notices): (&Parameters, &[u8]),
    facts: &Facts,
    key: &CancelKey,
    notice: Option<&str>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    wire::message(&mut out, b'R', |out| out.extend([0; 4]));
    out.extend_from_slice(notices);
    for (name, value) in reported.iter() {
        wire::parameter_status(&mut out, name, value);
    }
    wire::parameter_status(&mut out, b"pgusher.environment", facts.environment.as_bytes());
    wire::backend_key_data(&mut out, key.pid, &key.secret);
    if let Some(notice) = notice {
        wire::notice_response(&mut out, notice);
    }
    wire::ready_for_query(&mut out, b'I');
    out
}

/// Who has logged in and where that leads.
///
/// # Errors
/// It cannot be written, and `audit_failure = "refuse"`.
async fn audit_login(audit: &Audit, config: &Config, live: &LiveSession) -> Result<(), Refusal> {
    let login = || {
        let event = live.event("login", audit).text("application_name", Shown::name(&live.application_name));
        event.maybe("tls", live.tls.as_ref().map(|tls| tls.word()))
    };
    let route = || {
        let event = live.event("route", audit).maybe("requested", live.target.asked.environment.as_deref());
        event.texts("reasons", live.target.route.reasons())
    };
    audit.record(login);
    if *config.server.audit_failure == AuditFailure::Continue {
        audit.record(route);
    } else if !audit.record_surely(route).await {
        return Err(audit::not_written());
    }
    Ok(())
}

/// A login that did not lead to a session, as it is told.
fn refused<'a>(refusal: &'a Refusal, user: &'a str, database: &'a str, peer: &'a str) -> Refused<'a> {
    Refused { what: "login refused", refusal, user, database, peer }
}

/// A client that does not get in is told why, once, behind what it is owed.
async fn refuse(mut stream: Stream, pending: &[u8], refusal: &Refusal) {
    let mut out = pending.to_vec();
    wire::error_response(&mut out, Severity::Fatal, refusal);
    let farewell = async {
        stream.write_all(&out).await?;
        stream.shutdown().await
    };
    let _ = timeout(LAST_WORDS, farewell).await;
}
