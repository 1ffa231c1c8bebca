//! The console: the databases `pgusher` and `pgbouncer` on the ordinary listener, in both query protocols.

pub(crate) mod act;
pub(crate) mod command;
mod login;
pub(crate) mod show;
mod present;
mod reach;
pub(crate) mod table;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::audit::{self, Event, Refused};
use crate::handshake::Arrival;
use crate::proxy::LoginAttempt;
use crate::stream::Reader;
use act::Reply;
use command::Command;
use login::{Operator, log_in, loses_right, no_longer, right_of};
use policy::config::CONSOLE_DATABASES;
use policy::config::file::{AuditFailure, Console as Right};
use present::Present;
pub(crate) use reach::Console;
use table::{Table, Value};
use wire::error::{Fault, Refusal, Shown, SqlState};
use wire::{HEADER, Header, Severity, cstr};

/// The longest message that is read.
const MAX_MESSAGE: usize = 2 << 20;
/// How many statements one console session may keep.
const MAX_NAMED: usize = 1000;
/// And how many portals, of which one may be suspended, with the rest of a table.
const MAX_PORTALS: usize = 16;
/// How many bytes of statements.
const MAX_TEXTS: usize = 1 << 20;
/// How much is sent at a time, and how long a client may take nothing of it where no limit is set.
const WRITTEN: usize = 64 << 10;
const LONGEST_WRITE: std::time::Duration = std::time::Duration::from_secs(300);
/// How long a client that is refused may take to read why.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);

/// Whether a database is the console.
pub(crate) fn is_database(name: &str) -> bool {
    CONSOLE_DATABASES.contains(&name)
}

/// Serves an operator, from the proof of who he is to the last byte. The login has the rest of its time.
pub(crate) async fn serve(console: Arc<Console>, attempt: LoginAttempt, mut arrival: Box<Arrival>) {
    attempt.login_permit.asks_for_console();
    let (user, peer) = (arrival.startup.user.clone(), &attempt.peer);
    let logged_in = attempt.in_time(log_in(&console, &attempt, &mut arrival)).await;
    let (operator, right, _permit) = match logged_in {
        Ok(who) => who,
        Err(refusal) => {
            let (what, database) = ("console login refused", &arrival.startup.database);
            console.journal.refused(Refused { what, refusal: &refusal, user: &user, database, peer });
            wire::error_response(&mut arrival.pending, Severity::Fatal, &refusal);
            let _ = timeout(LAST_WORDS, arrival.flush_pending()).await;
            return;
        }
    };
    let (name, proof) = (operator.name.clone(), operator.proof.word());
    info!(user = %name, peer, right = right.word(), proof, "console login");
    let event = |event| {
        let event = Event::new(event).text("user", &name).text("peer", peer);
        event.text("right", right.word()).text("proof", proof)
    };
    console.journal.audit.record(|| event("console_login"));
    let leave = CancellationToken::new();
    let _here = console.presence.enter(Present {
        id: console.sessions.next(),
        user: name.to_string(),
        right: right.word(),
        proof,
        peer: peer.clone(),
        since: SystemTime::now(),
        leave: leave.clone(),
    });
    let session = Session {
        console: console.clone(),
        user: operator,
        right,
        peer: peer.clone(),
        out: Vec::new(),
        statements: HashMap::new(),
        portals: HashMap::new(),
        in_transaction: false,
        skipping: false,
        described: None,
        held: Vec::new(),
    };
    let mut reader = arrival.reader;
    let served = tokio::select! {
        served = session.run(&mut reader) => served,
        () = leave.cancelled() => Ok(Ended::Closing),
    };
    if let Ok(Ended::Closing) = served {
        let mut out = Vec::new();
        let message = "terminating connection due to administrator command";
        let refusal = Refusal::new(Fault::Operator, SqlState::ADMIN_SHUTDOWN, message);
        wire::error_response(&mut out, Severity::Fatal, &refusal);
        let _ = timeout(LAST_WORDS, reader.stream.write_all(&out)).await;
    }
    let _ = timeout(LAST_WORDS, reader.stream.shutdown()).await;
    info!(user = %name, peer, "console session ended");
    console.journal.audit.record(|| event("console_end"));
}

/// How a console session ended.
enum Ended {
    /// The client has left.
    Left,
    /// pgusher ends.
    Closing,
}

/// An answer that is being fetched.
struct Portal {
    text: String,
    formats: Vec<u16>,
    /// Its rows that were not sent yet, if it has been run.
    rest: Option<Rest>,
}

impl Portal {
    fn is_suspended(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| !rest.rows.is_empty())
    }
}

/// What is left of an answer.
struct Rest {
    table: Table,
    rows: VecDeque<Vec<Value>>,
    tag: &'static str,
    held: Option<OwnedSemaphorePermit>,
}

struct Session {
    console: Arc<Console>,
    user: Operator,
    right: Right,
    peer: String,
    out: Vec<u8>,
    statements: HashMap<Vec<u8>, String>,
    portals: HashMap<Vec<u8>, Portal>,
    in_transaction: bool,
    /// An extended message failed: all is ignored up to the next `Sync`.
    skipping: bool,
    /// What was described last, and its columns.
    described: Option<(Command, Option<Table>)>,
    /// Room for what is about to be sent.
    held: Vec<OwnedSemaphorePermit>,
}

type CommandResult = Result<(), Refusal>;

impl Session {
    async fn run(mut self, reader: &mut Reader) -> io::Result<Ended> {
        let closing = self.console.life.closing().clone();
        let mut changes = self.console.current.changes();
        loop {
            let (tag, body) = tokio::select! {
                biased;
                _ = changes.changed() => match self.look_again() {
                    Ok(()) => continue,
                    Err(refusal) => return self.end_with(&refusal, reader).await,
                },
                message = read(reader) => match message? {
                    Some(message) => message,
                    None => return Ok(Ended::Left),
                },
                () = closing.cancelled() => return Ok(Ended::Closing),
            };
            // Whoever leaves while he waits (PAUSE, WAIT_CLOSE) waits no longer, nor whoever has lost the right to.
            let (console, user) = (self.console.clone(), self.user.clone());
            let dealt = match self.look_again() {
                Err(refusal) => Err(refusal),
                Ok(()) => tokio::select! {
                    biased;
                    dealt = self.deal_with(tag, &body) => dealt,
                    () = loses_right(&console, &user) => Err(no_longer()),
                    () = gone(reader) => return Ok(Ended::Left),
                },
            };
            match dealt {
                Ok(true) => {}
                Ok(false) => return Ok(Ended::Left),
                Err(refusal) => return self.end_with(&refusal, reader).await,
            }
            if !self.out.is_empty() {
                self.send(reader).await?;
            }
        }
    }

    /// Sends what there is to be sent, to a client that takes it.
    async fn send(&mut self, reader: &mut Reader) -> io::Result<()> {
        let out = std::mem::take(&mut self.out);
        let limit = *self.console.current.generation().config.server.client_write_timeout;
        let limit = if limit.is_zero() { LONGEST_WRITE } else { limit };
        for piece in out.chunks(WRITTEN) {
            timeout(limit, reader.stream.write_all(piece)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        }
        timeout(limit, reader.stream.flush()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        self.held.clear();
        Ok(())
    }

    /// Room for an answer, as a table and as bytes.
    fn room_for(&self, table: &Table) -> Result<OwnedSemaphorePermit, Refusal> {
        let kib = u32::try_from(2 * table.bytes() / 1024 + 1).unwrap_or(u32::MAX);
        self.console.answers.clone().try_acquire_many_owned(kib).map_err(|_| {
            let message = "the answers of the console hold too much memory";
            Refusal::new(Fault::Client, SqlState::OUT_OF_MEMORY, message)
                .hint("Read them to their ends, or close their portals, in all sessions.")
        })
    }

    async fn end_with(&mut self, refusal: &Refusal, reader: &mut Reader) -> io::Result<Ended> {
        wire::error_response(&mut self.out, Severity::Fatal, refusal);
        reader.stream.write_all(&self.out).await?;
        Ok(Ended::Left)
    }

    /// What the user may do is what is in force now, and not what was when he logged in.
    fn look_again(&mut self) -> CommandResult {
        self.right = right_of(&self.console.current.generation(), &self.user).ok_or_else(no_longer)?;
        Ok(())
    }

    /// One message; false for goodbye.
    async fn deal_with(&mut self, tag: u8, body: &[u8]) -> Result<bool, Refusal> {
        if self.skipping && !matches!(tag, b'S' | b'X') {
            return Ok(true);
        }
        let outcome = match tag {
            b'X' => return Ok(false),
            b'Q' => {
                let outcome = match text_of(body) {
                    Ok((text, _)) => self.query(&text).await,
                    Err(refusal) => Err(refusal),
                };
                self.say(outcome);
                self.ready();
                return Ok(true);
            }
            b'S' => {
                self.skipping = false;
                self.ready();
                return Ok(true);
            }
            b'H' | b'd' | b'c' | b'f' => Ok(()),
            b'P' => self.parse(body),
            b'B' => self.bind(body),
            b'D' => self.describe(body).await,
            b'E' => self.execute(body).await,
            b'C' => self.close(body),
            b'F' => {
                let message = "function calls are not supported on the console";
                self.say(Err(Refusal::new(Fault::Client, SqlState::NOT_SUPPORTED, message)));
                self.ready();
                return Ok(true);
            }
            tag => return Err(Refusal::protocol(format!("invalid frontend message type {tag}"))),
        };
        self.skipping = outcome.is_err();
        self.say(outcome);
        Ok(true)
    }

    fn ready(&mut self) {
        wire::ready_for_query(&mut self.out, if self.in_transaction { b'T' } else { b'I' });
    }

    fn say(&mut self, outcome: CommandResult) {
        if let Err(refusal) = outcome {
            wire::error_response(&mut self.out, Severity::Error, &refusal);
        }
    }

    /// Whether this user may say that.
    fn permit(&self, command: &Command) -> CommandResult {
        if self.right == Right::Admin || command.only_looks() {
            return Ok(());
        }
        Err(Refusal::new(Fault::Client, SqlState::INSUFFICIENT_PRIVILEGE, "admin access needed"))
    }

    async fn act(&mut self, command: &Command) -> Result<Reply, Refusal> {
        if command.only_looks() {
            if let Command::Transaction(tag) = command {
                self.transaction(tag);
            }
            return act::act(&self.console, &self.user.name, command).await;
        }
        if let Err(refusal) = self.permit(command) {
            if self.console.journal.is_refusal_told(&self.peer, &refusal) {
                self.console
                    .journal
                    .audit
                    .record(|| self.event(command).text("outcome", refusal.sqlstate.as_str()));
            }
            return Err(refusal);
        }
        info!(user = %self.user.name, %command, "console command");
        let refuses = *self.console.current.generation().config.server.audit_failure == AuditFailure::Refuse;
        if refuses
            && !self
                .console
                .journal
                .audit
                .record_surely(|| self.event(command).text("outcome", "begun"))
                .await
        {
            return Err(audit::not_written());
        }
        let mut told = AuditAtEnd {
            console: &self.console,
            event: Some(self.event(command)),
            outcome: "left".to_owned(),
        };
        let acted = act::act(&self.console, &self.user.name, command).await;
        told.outcome = acted.as_ref().err().map_or("done".into(), |refusal| refusal.sqlstate.to_string());
        drop(told);
        acted
    }

    /// Drivers and pools begin and end transactions, whether there is one or not.
    fn transaction(&mut self, tag: &str) {
        let begins = tag == "BEGIN";
        let was_in = std::mem::replace(&mut self.in_transaction, begins);
        let (state, text) = match (begins, was_in) {
            (true, true) => (SqlState::ACTIVE_SQL_TRANSACTION, "there is already a transaction in progress"),
            (false, false) => (SqlState::NO_ACTIVE_SQL_TRANSACTION, "there is no transaction in progress"),
            (true, false) | (false, true) => return,
        };
        let hint = (tag == "ROLLBACK")
            .then_some("ROLLBACK CONFIG [TO generation] puts an earlier configuration back in force.");
        wire::warning_response(&mut self.out, state, text, hint);
    }

    /// What was said. That holds neither secrets nor a client's SQL.
    fn event(&self, command: &Command) -> Event {
        let event = Event::new("console").text("user", &self.user.name).text("peer", &self.peer);
        event.text("command", command)
    }

    async fn query(&mut self, text: &str) -> CommandResult {
        let command = Command::parse(text)?;
        if command == Command::Empty {
            wire::message(&mut self.out, b'I', |_| {});
            return Ok(());
        }
        let reply = self.act(&command).await?;
        if let Some(table) = &reply.table {
            let room = self.room_for(table)?;
            self.held.push(room);
            table.describe(&[], &mut self.out);
            table.rows.iter().for_each(|row| table.row(row, &[], &mut self.out));
        }
        self.complete(&reply);
        Ok(())
    }

    fn complete(&mut self, reply: &Reply) {
        if let Some(notice) = &reply.notice {
            wire::notice_response(&mut self.out, notice);
        }
        wire::message(&mut self.out, b'C', |out| wire::push_cstr(out, reply.tag));
    }

    fn parse(&mut self, body: &[u8]) -> CommandResult {
        let (name, rest) = cstr(body).ok_or_else(broken)?;
        let (text, types) = text_of(rest)?;
        if !name.is_empty() && (self.statements.contains_key(name) || self.statements.len() >= MAX_NAMED) {
            let message = "that prepared statement exists, or there are too many";
            return Err(Refusal::new(Fault::Client, SqlState::DUPLICATE_STATEMENT, message));
        }
        if types.len() < 2 {
            return Err(broken());
        }
        Command::parse(&text)?;
        if self.statements.values().map(String::len).sum::<usize>() + text.len() > MAX_TEXTS {
            let message = "too many bytes of prepared statements";
            return Err(Refusal::new(Fault::Client, SqlState::OUT_OF_MEMORY, message));
        }
        self.statements.insert(name.to_vec(), text);
        wire::message(&mut self.out, b'1', |_| {});
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> CommandResult {
        let (portal, rest) = cstr(body).ok_or_else(broken)?;
        let (name, rest) = cstr(rest).ok_or_else(broken)?;
        let text = self.statements.get(name).cloned().ok_or_else(|| no_such("prepared statement", name))?;
        let (_, rest) = numbers(rest).ok_or_else(broken)?;
        let (count, rest) = rest.split_first_chunk::<2>().ok_or_else(broken)?;
        if u16::from_be_bytes(*count) != 0 {
            return Err(Refusal::protocol("console commands take no parameters"));
        }
        let (formats, rest) = numbers(rest).ok_or_else(broken)?;
        if !rest.is_empty() {
            return Err(broken());
        }
        if self.portals.len() >= MAX_PORTALS && !self.portals.contains_key(portal) {
            let message = format!("more than {MAX_PORTALS} portals");
            return Err(Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message).hint("Close some."));
        }
        self.portals.insert(portal.to_vec(), Portal { text, formats, rest: None });
        wire::message(&mut self.out, b'2', |_| {});
        Ok(())
    }

    async fn describe(&mut self, body: &[u8]) -> CommandResult {
        let (kind, rest) = body.split_first().ok_or_else(broken)?;
        let (name, _) = cstr(rest).ok_or_else(broken)?;
        let (text, formats) = match kind {
            b'S' => {
                let text = self.statements.get(name).ok_or_else(|| no_such("prepared statement", name))?;
                wire::message(&mut self.out, b't', |out| out.extend([0; 2]));
                (text.clone(), Vec::new())
            }
            b'P' => {
                let portal = self.portals.get(name).ok_or_else(|| no_such("portal", name))?;
                (portal.text.clone(), portal.formats.clone())
            }
            _ => return Err(broken()),
        };
        let command = Command::parse(&text)?;
        self.permit(&command)?;
        if self.described.as_ref().is_none_or(|(known, _)| *known != command) {
            let mut table = act::table(&self.console, &command).await?;
            table.iter_mut().for_each(|table| table.rows = Vec::new());
            self.described = Some((command, table));
        }
        match self.described.as_ref().and_then(|(_, table)| table.as_ref()) {
            Some(table) => table.describe(&formats, &mut self.out),
            None => wire::message(&mut self.out, b'n', |_| {}),
        }
        Ok(())
    }

    async fn execute(&mut self, body: &[u8]) -> CommandResult {
        let (name, rest) = cstr(body).ok_or_else(broken)?;
        let most = rest.first_chunk().map(|most| u32::from_be_bytes(*most)).ok_or_else(broken)? as usize;
        let portal = self.portals.get(name).ok_or_else(|| no_such("portal", name))?;
        if portal.rest.is_none() {
            let command = Command::parse(&portal.text)?;
            if command == Command::Empty {
                wire::message(&mut self.out, b'I', |_| {});
                return Ok(());
            }
            if self.portals.iter().any(|(other, portal)| other != name && portal.is_suspended()) {
                let message = "another portal is suspended";
                return Err(Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message)
                    .hint("Fetch the rest of it, or close it."));
            }
            let mut reply = self.act(&command).await?;
            let Some(mut table) = reply.table.take() else {
                self.complete(&reply);
                return Ok(());
            };
            let held = Some(self.room_for(&table)?);
            let rows = std::mem::take(&mut table.rows).into();
            if let Some(portal) = self.portals.get_mut(name) {
                portal.rest = Some(Rest { table, rows, tag: reply.tag, held });
            }
        }
        let Some(Portal { rest: Some(rest), formats, .. }) = self.portals.get_mut(name) else {
            return Ok(());
        };
        let Rest { table, rows, tag, held } = rest;
        let now = if most == 0 { rows.len() } else { most.min(rows.len()) };
        rows.drain(..now).for_each(|row| table.row(&row, formats, &mut self.out));
        if most > 0 && !rows.is_empty() {
            wire::message(&mut self.out, b's', |_| {});
        } else {
            self.held.extend(held.take());
            wire::message(&mut self.out, b'C', |out| wire::push_cstr(out, tag));
        }
        Ok(())
    }

    fn close(&mut self, body: &[u8]) -> CommandResult {
        let (kind, rest) = body.split_first().ok_or_else(broken)?;
        let (name, _) = cstr(rest).ok_or_else(broken)?;
        match kind {
            b'S' => drop(self.statements.remove(name)),
            b'P' => drop(self.portals.remove(name)),
            _ => return Err(broken()),
        }
        wire::message(&mut self.out, b'3', |_| {});
        Ok(())
    }
}

/// Tells the audit of a command when it is over, also of one whose operator has left while it waited.
struct AuditAtEnd<'a> {
    console: &'a Console,
    event: Option<Event>,
    outcome: String,
}

impl Drop for AuditAtEnd<'_> {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.console.journal.audit.record(|| event.text("outcome", &self.outcome));
        }
    }
}

fn broken() -> Refusal {
    Refusal::protocol("invalid message format")
}

fn no_such(what: &str, name: &[u8]) -> Refusal {
    let message = format!("{what} \"{}\" does not exist", Shown::bytes(name));
    Refusal::new(Fault::Client, SqlState::INVALID_STATEMENT_NAME, message)
}

/// A text up to its NUL, and what stands behind.
fn text_of(body: &[u8]) -> Result<(String, &[u8]), Refusal> {
    let (text, rest) = cstr(body).ok_or_else(broken)?;
    match str::from_utf8(text) {
        Ok(text) => Ok((text.to_owned(), rest)),
        Err(_) => {
            let message = "invalid byte sequence for encoding \"UTF8\"";
            Err(Refusal::new(Fault::Client, SqlState::CHARACTER_NOT_IN_REPERTOIRE, message))
        }
    }
}

/// A count and so many `Int16`.
fn numbers(bytes: &[u8]) -> Option<(Vec<u16>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let (numbers, rest) = rest.split_at_checked(2 * usize::from(u16::from_be_bytes(*count)))?;
    Some((numbers.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect(), rest))
}

/// The next message; `None` if the client has left, or what it sends is none.
async fn read(reader: &mut Reader) -> io::Result<Option<(u8, Vec<u8>)>> {
    match reader.fill(HEADER).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let Some(Ok(header)) =
        Header::read(reader.ahead()).filter(|h| matches!(h, Ok(h) if h.total <= MAX_MESSAGE))
    else {
        return Ok(None);
    };
    reader.fill(header.total).await?;
    Ok(Some((header.tag, reader.take(header.total)[HEADER..].to_vec())))
}

/// Returns when the client has left; what it sends meanwhile is kept for later, up to a bound.
async fn gone(reader: &mut Reader) {
    loop {
        let ahead = reader.ahead().len();
        if ahead > MAX_MESSAGE {
            return std::future::pending().await;
        }
        if reader.fill(ahead + 1).await.is_err() {
            return;
        }
    }
}
