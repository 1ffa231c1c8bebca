//! One connection of a pool, and its loan to one session.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tracing::warn;

use super::{HostPermit, Pool, Welcome};
use crate::stream::Stream;
use crate::upstream::{CancelTarget, keep_notice};
use policy::config::file::Isolation;
use relay::reset::Proof;
use relay::{BackendState, Parameters};
use wire::error::{Fault, Refusal, SqlState};
use wire::startup::Settings;
use wire::{HEADER, Header};

/// How often a statement is cancelled whose session has gone, and how long is waited for its end each time.
const MAX_CANCELLED: u32 = 12;
const CANCELLED_AGAIN: Duration = Duration::from_secs(5);

/// One upstream connection with what is known of it.
#[derive(Debug)]
pub struct Pooled {
    /// Its bytes.
    pub stream: Stream,
    /// What was done on it.
    pub state: BackendState,
    /// For cancels.
    pub target: Arc<CancelTarget>,
    /// The `statement_timeout` that it was opened with; zero is none.
    pub query_timeout: Duration,
    /// When it was opened, since the pool was made.
    pub(super) born: Duration,
    /// Since the first look at the idle ones that found it there.
    pub(super) idle_since: Option<Duration>,
    pub(super) epoch: u64,
    /// In session mode: the client's startup settings that it was opened with.
    pub(super) startup: Option<Arc<Settings>>,
    /// And what it said then, until that was told.
    pub notices: Box<[u8]>,
    /// How it is shared, as of when it was lent.
    pub(super) isolation: Isolation,
    /// The host's, for as long as it is open.
    pub(super) permit: HostPermit,
}

/// A connection on loan. Dropped, it is closed; released, it goes back.
#[derive(Debug)]
pub struct Lease {
    pooled: Option<Box<Pooled>>,
    pool: Arc<Pool>,
}

impl Pooled {
    /// False if it has ended or says something that an idle connection has no business to say.
    pub(crate) fn is_usable(&mut self) -> bool {
        if self.stream.is_quiet() {
            return true;
        }
        let mut space = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            let cx = &mut Context::from_waker(Waker::noop());
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return true,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    if !self.idle_messages(buffer.filled()) {
                        return false;
                    }
                }
                Poll::Ready(_) => return false,
            }
        }
    }

    /// Takes in what an upstream may say unasked: changed settings and notices.
    fn idle_messages(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some(Ok(header)) = Header::read(bytes) else { return false };
            let Some(body) = bytes.get(HEADER..header.total) else { return false };
            match header.tag {
                b'N' => {}
                b'S' if self.reported(body) => {}
                _ => return false,
            }
            bytes = &bytes[header.total..];
        }
        true
    }

    /// Takes in a `ParameterStatus`; false if it is broken.
    fn reported(&mut self, body: &[u8]) -> bool {
        let pair = wire::cstr(body).and_then(|(name, rest)| Some((name, wire::cstr(rest)?.0)));
        pair.is_some_and(|(name, value)| self.state.settings.report(name, value))
    }

    /// Sends `Terminate`, if that is possible at once, and closes. Its permit may be another's.
    pub(super) fn terminate(self: Box<Self>) -> HostPermit {
        self.stream.close_with(&[b'X', 0, 0, 0, 4]);
        self.permit
    }
}

impl std::ops::Deref for Lease {
    type Target = Pooled;
    fn deref(&self) -> &Pooled {
        self.pooled.as_ref().expect("a lease has its connection until it is consumed")
    }
}

impl std::ops::DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Pooled {
        self.pooled.as_mut().expect("a lease has its connection until it is consumed")
    }
}

/// Whether something of its user ran on a connection before, since it was opened or reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    /// Something did.
    Used,
    /// Nothing did.
    Unused,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pooled) = self.pooled.take() {
            drop(pooled);
            self.pool.lost();
        }
    }
}

impl Lease {
    /// Of a connection that the ledger has lent: it must come back, or be closed.
    pub(super) fn of(pool: &Arc<Pool>, pooled: Box<Pooled>) -> Self {
        Self { pooled: Some(pooled), pool: pool.clone() }
    }

    /// The connection, which is still counted as lent.
    pub(super) fn into_pooled(mut self) -> Option<Box<Pooled>> {
        self.pooled.take()
    }

    /// Where it comes from.
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Gives the connection back, clean. It waits for cancels that are under way to it.
    pub fn release(mut self) {
        let Some(pooled) = self.pooled.take() else { return };
        let pool = self.pool.clone();
        if !pooled.target.is_fenced() {
            return pool.put(pooled);
        }
        let wait = async move {
            pooled.target.unfenced().await;
            pool.put(pooled);
        };
        self.pool.runtimes.tasks.spawn_on(wait, &self.pool.runtimes.control);
    }

    /// Closes it because its session ended in the middle of a query that still runs, which is cancelled. Its place is taken
    /// until the server has ended it, too: otherwise whoever starts statements that do not heed a cancel and leaves would
    /// have as many server processes as he likes.
    pub fn cancel_and_discard(mut self) {
        let (runtimes, target) = (self.pool.runtimes.clone(), self.target.clone());
        let fence = target.fence();
        let end = async move {
            let _ = target.cancel().await;
            drop(fence);
            if !self.ends().await {
                let connection = self.pool.connection();
                warn!(connection = %connection.name, pid = target.pid(), "an upstream process goes on though it was cancelled and left");
            }
            drop(self);
        };
        runtimes.tasks.spawn_on(end, &runtimes.control);
    }

    /// Ends our side of it, and waits until the server has ended its own; false if it does not.
    async fn ends(&mut self) -> bool {
        let Some(pooled) = &mut self.pooled else { return true };
        let target = pooled.target.clone();
        if pooled.stream.come_to_end().await.is_err() {
            return true;
        }
        for _ in 0..MAX_CANCELLED {
            if timeout(CANCELLED_AGAIN, pooled.stream.see_its_end()).await.is_ok() {
                return true;
            }
            let _ = target.cancel().await;
        }
        false
    }

    /// Reset, then back; closed, if that fails.
    pub async fn clean(self) {
        if let Some(lease) = self.reset_or_discard().await {
            lease.release();
        }
    }

    /// Applies startup settings and answers what the upstream reports then, or why it refuses one of them. What a connection
    /// answers that was used before must be proved to be the answer: all logins with these settings will be told the same.
    ///
    /// # Errors
    /// The connection cannot be used any further.
    pub(super) async fn welcome(
        &mut self,
        startup: &Settings,
        usage: Usage,
    ) -> Result<Result<Welcome, Refusal>, Refusal> {
        let refused = startup.iter().any(|(name, _)| name.eq_ignore_ascii_case("session_authorization"));
        if refused {
            let message = "session_authorization cannot be set at startup in transaction mode";
            return Ok(Err(Refusal::new(Fault::Client, SqlState::NOT_SUPPORTED, message)));
        }
        let mut extra = Parameters::default();
        for (name, value) in startup.iter() {
            if self.state.settings.reported().get(name.as_bytes()).is_none() {
                extra = extra.with(name.as_bytes(), value.as_bytes());
            }
        }
        let wanted = Parameters::new(startup.iter().map(|(n, v)| (n.as_bytes().into(), v.as_bytes().into())));
        let calls: Vec<String> = wanted.iter().map(relay::settings::set_config).collect();
        // RESET ALL leaves the role alone, and may not be run by everybody who could set it.
        let resets = "SET SESSION AUTHORIZATION DEFAULT;RESET ROLE;RESET ALL";
        let sql =
            if calls.is_empty() { resets.to_owned() } else { format!("{resets};SELECT {}", calls.join(",")) };
        let connection = self.pool.connection();
        let mut notices = Vec::new();
        let answer = self.simple_heard(&sql, &mut notices).await;
        let proved = match answer {
            Ok(answer) if usage == Usage::Used => self.prove().await.map(|()| answer),
            answer => answer,
        };
        let answer = proved.map_err(|e| {
            Refusal::new(
                Fault::Upstream,
                SqlState::CONNECTION_FAILURE,
                format!("connection to server lost: {e}"),
            )
            .in_environment(connection.environment.as_str(), connection.name.as_str())
        })?;
        let extra = Arc::new(extra);
        match answer {
            Ok(_) => {
                self.state.settings.extra_is(extra.clone());
                let reported = self.state.settings.reported().clone();
                Ok(Ok(Welcome { reported, extra, notices: notices.into() }))
            }
            Err(body) => Ok(Err(Refusal::of_response(&body))),
        }
    }

    /// Makes sure that nothing is under way on the connection but what we ask.
    async fn prove(&mut self) -> io::Result<()> {
        let proof = Proof::new(getrandom::u64().map_err(io::Error::other)?);
        match self.simple(&proof.question()).await? {
            Ok(Some(row)) if proof.is_in(&row) => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Runs a statement of our own, and answers the body of its last row. The inner error is the upstream's `ErrorResponse`
    /// body.
    ///
    /// Not cancel-safe: dropped, the connection must not be used again (and is not: the lease goes with it).
    pub(super) async fn simple(&mut self, sql: &str) -> io::Result<Result<Option<Vec<u8>>, Vec<u8>>> {
        self.simple_heard(sql, &mut Vec::new()).await
    }

    /// The same; and what it is told beside.
    async fn simple_heard(
        &mut self,
        sql: &str,
        notices: &mut Vec<u8>,
    ) -> io::Result<Result<Option<Vec<u8>>, Vec<u8>>> {
        let mut out = Vec::new();
        wire::query(&mut out, sql);
        self.stream.come_here().await?;
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;
        self.state.forget_unnamed();
        let (mut failed, mut row) = (None, None);
        loop {
            let mut header = [0; HEADER];
            self.stream.read_exact(&mut header).await?;
            let Some(Ok(header)) = Header::read(&header).filter(|h| matches!(h, Ok(h) if h.total < 1 << 20))
            else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let mut body = vec![0; header.total - HEADER];
            self.stream.read_exact(&mut body).await?;
            match header.tag {
                b'Z' if body == b"I" => return Ok(failed.map_or(Ok(row), Err)),
                b'Z' => return Err(io::ErrorKind::InvalidData.into()),
                b'E' => failed = Some(body),
                b'D' => row = Some(body),
                b'N' => keep_notice(notices, &body),
                b'S' if !self.reported(&body) => return Err(io::ErrorKind::InvalidData.into()),
                _ => {}
            }
        }
    }
}
