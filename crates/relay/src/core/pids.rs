//! A session's own number where it is lent one process of the server after another: it stands for the session wherever PostgreSQL has
//! the number of a process (`BackendKeyData`, `pg_backend_pid()`, its own notifications), and whoever may can cancel or end it by that.

use super::Core;
use super::bound::Bound;
use super::from_client::{Incoming, Step};
use super::position::Transaction;
use crate::bearing::Bearing;
use crate::sql::{Call, Operand, PidUse, Pin, Signal};
use wire::{cstr, identifier};

/// The largest number that a process of the server can have (`PID_MAX_LIMIT` of Linux): those of sessions are above, so that none of
/// them ever hits a process.
pub const MAX_PROCESS: u32 = 4_194_304;

/// Somebody who is to be signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signalled {
    /// A session's number.
    pub pid: u32,
    /// What is done to it.
    pub signal: Signal,
    /// Whether it is done now.
    pub act: Act,
}

/// What is wanted of a session that is to be signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// To know whether it may be reached.
    Look,
    /// The signal.
    Send,
}

/// A portal of the batch at hand, with whom its execution signals.
#[derive(Debug)]
pub(super) struct Armed {
    portal: Box<[u8]>,
    signalled: Signalled,
}

/// The signal of the message at hand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Signalling {
    #[default]
    None,
    Wanted(Signalled),
    /// It was sent, or there is nobody whom it may reach.
    Done(Signalled, Reached),
}

/// Whether there was a session for a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// There was one.
    Session,
    /// There was none that the caller may signal.
    Nobody,
}

/// What becomes of a statement that is about the number of a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is about processes: PostgreSQL knows.
    AsItIs,
    /// It is dealt with when more is known.
    Wait,
    /// This is run in its place; and whom its execution signals, if it is only bound now.
    Instead(String, Option<Signalled>),
}

impl Core {
    /// The session's number in place of a process's, in a statement that asks for that.
    pub(super) fn own_pid(&self, pid_use: Option<&PidUse>) -> Option<String> {
        match (pid_use, self.facts.pid()) {
            (Some(PidUse::Own { column }), Some(pid)) => {
                Some(format!("SELECT {pid}::pg_catalog.int4 AS {}", identifier(column)))
            }
            _ => None,
        }
    }

    /// What becomes of a statement that is run now, or bound with these parameters (what a `Bind` has behind the statement's name).
    pub(super) fn signals(&mut self, pid_use: &PidUse, bound: Option<&[u8]>, up: &mut Vec<u8>) -> Verdict {
        let call = match pid_use {
            PidUse::Own { .. } => {
                let own = self.own_pid(Some(pid_use));
                return own.map_or(Verdict::AsItIs, |sql| Verdict::Instead(sql, None));
            }
            PidUse::Signals(call) => call,
        };
        let whom = whom(call, bound).filter(|_| self.facts.pid().is_some());
        let Some(pid) = whom else { return Verdict::AsItIs };
        if self.facts.pid() == Some(pid) {
            let itself = "pg_catalog.pg_backend_pid()";
            let result = format!("pg_catalog.{}({itself})", call.signal.function());
            return Verdict::Instead(instead(call, &result), None);
        }
        if !self.position.may_defer() {
            return Verdict::AsItIs;
        }
        // Another role may do less, and then PostgreSQL says what; and elsewhere the name may mean another function.
        if self.may_mean_another() {
            return Verdict::AsItIs;
        }
        let now = Signalled { pid, signal: call.signal, act: Act::Send };
        // What is bound signals when it is executed.
        let (now, later) = match bound {
            None => (now, None),
            Some(_) => (Signalled { act: Act::Look, ..now }, Some(now)),
        };
        match self.ask(now, up) {
            None => Verdict::Wait,
            Some(Reached::Session) => Verdict::Instead(instead(call, "true"), later),
            // PostgreSQL says so in its own words.
            Some(Reached::Nobody) => Verdict::AsItIs,
        }
    }

    fn may_mean_another(&self) -> bool {
        let path = self.facts.settings().search_path().unwrap_or_default();
        memchr::memmem::find(&path.to_ascii_lowercase(), b"pg_catalog").is_some()
            || self.facts.settings().has_role()
            || self.residue.mixed() > Bearing::None
            || self.pin() == Some(Pin::Role)
    }

    /// Whether a session may be signalled, or was; `None` while that is not known. Only what is really run signals anybody: whether it
    /// is, what is under way decides.
    fn ask(&mut self, signalled: Signalled, up: &mut Vec<u8>) -> Option<Reached> {
        if !self.position.requests().only_local() {
            self.ask_for_all_answers(up);
            return None;
        }
        if self.position.transaction() == Transaction::Failed {
            return Some(Reached::Nobody);
        }
        match std::mem::take(&mut self.signalling) {
            Signalling::Done(done, reached) if done == signalled => Some(reached),
            _ => {
                self.signalling = Signalling::Wanted(signalled);
                None
            }
        }
    }

    /// What executes this portal signals somebody, in the batch at hand. `before` is what a `Bind` has before the statement's name.
    pub(super) fn arm(&mut self, before: &[u8], signalled: Signalled) {
        let portal = before.strip_suffix(&[0]).unwrap_or(before).into();
        self.armed = Some(Box::new(Armed { portal, signalled }));
    }

    /// An `Execute`; what becomes of it if it has to wait until somebody is signalled.
    pub(super) fn execute_armed(&mut self, message: &Incoming<'_>, up: &mut Vec<u8>) -> Option<Step> {
        let armed = self.armed.as_deref()?;
        if !message.is_whole() {
            return Some(Step::Need(message.header.total));
        }
        let (portal, _) = cstr(message.body())?;
        // During a COPY it is an error, whatever it would execute.
        if *armed.portal != *portal || !self.position.may_defer() {
            return None;
        }
        if self.ask(armed.signalled, up).is_none() {
            return Some(Step::Defer);
        }
        self.armed = None;
        None
    }

    /// The batch is over, and so are its portals.
    pub(super) fn disarm(&mut self) {
        self.armed = None;
    }

    /// Who is to be signalled now, if anybody is.
    pub(crate) fn wants_signal(&self) -> Option<Signalled> {
        match self.signalling {
            Signalling::Wanted(signalled) => Some(signalled),
            Signalling::None | Signalling::Done(..) => None,
        }
    }

    /// That was done.
    pub(crate) fn has_signalled(&mut self, reached: Reached) {
        if let Signalling::Wanted(signalled) = self.signalling {
            self.signalling = Signalling::Done(signalled, reached);
        }
    }

    /// Whether a notification comes from the process that the session is lent: it is the session's own.
    pub(super) fn is_own_notification(&self, body: &[u8], process: Option<u32>) -> Option<u32> {
        let sender = body.first_chunk().map(|pid| u32::from_be_bytes(*pid));
        self.facts.pid().filter(|_| process.is_some() && sender == process)
    }
}

/// What is run in place of a call: with the same column and parameters.
fn instead(call: &Call, result: &str) -> String {
    let mut sql = format!("SELECT {result} AS {}", identifier(&call.column));
    if let Operand::Parameter(number) = call.whom {
        sql.push_str(&format!(" WHERE ${number}::pg_catalog.int4 IS NOT NULL"));
    }
    if let Some(number) = call.timeout {
        let word = if sql.contains(" WHERE ") { "AND" } else { "WHERE" };
        sql.push_str(&format!(" {word} ${number}::pg_catalog.int8 IS NOT NULL"));
    }
    sql
}

/// Whom a call signals that is run, or bound with these parameters; `None` if PostgreSQL would refuse them, or the number is none that a
/// session can have.
fn whom(call: &Call, bound: Option<&[u8]>) -> Option<u32> {
    let bound = match bound {
        Some(bound) => Some(Bound::read(bound)?),
        None => None,
    };
    let number = |number| bound.as_ref().and_then(|bound| bound.number(number));
    let (pid, highest) = match call.whom {
        Operand::Number(pid) => (pid, 0),
        Operand::Parameter(parameter) => (number(parameter)?, parameter),
    };
    let is_timeout = |parameter| number(parameter).is_some_and(|time| i32::try_from(time).is_ok());
    let expected = highest.max(call.timeout.unwrap_or(0));
    let is_as_called = bound.as_ref().is_none_or(|bound| bound.count == expected);
    (pid > MAX_PROCESS && is_as_called && call.timeout.is_none_or(is_timeout)).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_read_in_either_format_and_a_broken_bind_has_none() {
        let number = |bytes: &[u8], number| Bound::read(bytes)?.number(number);
        let bound = |formats: &[u16], values: &[Option<&[u8]>]| {
            let mut out = u16::try_from(formats.len()).unwrap().to_be_bytes().to_vec();
            formats.iter().for_each(|format| out.extend(format.to_be_bytes()));
            out.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
            for value in values {
                out.extend(value.map_or(u32::MAX, |value| u32::try_from(value.len()).unwrap()).to_be_bytes());
                out.extend_from_slice(value.unwrap_or_default());
            }
            out.extend([0; 2]);
            out
        };
        let (text, long): (&[u8], &[u8]) = (b" 4194305 ", &[0, 0, 0, 0, 0, 0x40, 0, 1]);
        assert_eq!(number(&bound(&[], &[Some(text)]), 1), Some(4_194_305));
        assert_eq!(number(&bound(&[1], &[None, Some(&long[4..])]), 2), Some(4_194_305));
        assert_eq!(number(&bound(&[0, 1], &[Some(b"x"), Some(long)]), 2), Some(4_194_305));
        assert_eq!(number(&bound(&[0, 1], &[Some(b"x"), Some(long)]), 1), None);
        assert_eq!(number(&bound(&[], &[None]), 1), None);
        assert_eq!(number(&bound(&[], &[Some(text)]), 2), None);
        let whole = bound(&[0, 1], &[Some(b"x"), Some(long)]);
        for end in 0..whole.len() - 2 {
            assert_eq!(number(&whole[..end], 2), None, "{end}");
        }
    }

    #[test]
    fn what_is_run_instead_has_the_same_parameters() {
        let call = |whom, timeout| Call { signal: Signal::Terminate, whom, timeout, column: "a b".into() };
        for (whom, timeout, expected) in [
            (Operand::Number(5), None, "SELECT true AS \"a b\""),
            (
                Operand::Parameter(2),
                Some(1),
                "SELECT true AS \"a b\" WHERE $2::pg_catalog.int4 IS NOT NULL AND $1::pg_catalog.int8 IS NOT NULL",
            ),
            (Operand::Number(5), Some(1), "SELECT true AS \"a b\" WHERE $1::pg_catalog.int8 IS NOT NULL"),
        ] {
            assert_eq!(instead(&call(whom, timeout), "true"), expected);
        }
    }
}
