//! Errors of pgusher's own, in place of what the upstream would say.

use super::Core;
use super::bound::Bound;
use super::requests::{Kind, Note};
use crate::sql;
use wire::error::{Refusal, SqlState};
use wire::{HEADER, Header, cstr};

impl Core {
    /// True if this refusal of the session's settings is because it may not have its role: that was dropped, or is not its any more.
    /// Whatever language it is in, the role's name is in it.
    pub(crate) fn is_refused_its_role(&self, refusal: &Refusal) -> bool {
        let Some(role) = self.facts.settings().role() else { return false };
        let of_roles =
            [SqlState::INVALID_PARAMETER, SqlState::INSUFFICIENT_PRIVILEGE, SqlState::UNDEFINED_OBJECT];
        let is_named = refusal.message.contains(&*format!("\"{}\"", String::from_utf8_lossy(role)));
        is_named && of_roles.contains(&refusal.sqlstate)
    }

    /// True if the client's next statement gives its role up, and nothing can come in between: from here on it is none of the session's
    /// settings. Who came with it would go back to it.
    pub(crate) fn gives_up_role(&mut self, input: &[u8]) -> bool {
        let settings = self.facts.settings_mut();
        let gives_up =
            !settings.has_from_startup(b"role") && lone_statement(input).is_some_and(sql::gives_up_role);
        if gives_up {
            settings.reset(b"role");
        }
        gives_up
    }

    /// An error of pgusher's own for the present request.
    #[cold]
    pub(super) fn refuse_request(&mut self, refusal: &Refusal, up: &mut Vec<u8>) {
        self.refuse_behind(Vec::new(), refusal, up);
    }

    /// The same behind a part of an answer.
    #[cold]
    pub(super) fn refuse_behind(&mut self, mut error: Vec<u8>, refusal: &Refusal, up: &mut Vec<u8>) {
        wire::error_response(&mut error, wire::Severity::Error, refusal);
        // The upstream must fail there too, so that it skips to the Sync: it is asked for a statement that is none.
        wire::message(up, b'D', |out| {
            out.push(b'S');
            wire::push_cstr(out, &self.statements.interner().name(0));
        });
        self.position.requests_mut().push_noted(Kind::Fail, Note::Refused(error));
    }

    /// The same of a simple query, none of which is run: the upstream must fail there, too, so that a transaction does.
    #[cold]
    pub(super) fn refuse_query(&mut self, refusal: &Refusal, up: &mut Vec<u8>) {
        let mut error = Vec::new();
        wire::error_response(&mut error, wire::Severity::Error, refusal);
        let none = wire::identifier(&self.statements.interner().name(0));
        wire::query(up, &format!("DEALLOCATE {none}"));
        self.statements.drop_unnamed();
        self.position.requests_mut().push_noted(Kind::Query, Note::Refused(error));
    }
}

/// The text of a statement that is a query, or a whole batch, of its own, without parameters.
fn lone_statement(input: &[u8]) -> Option<&[u8]> {
    let mut rest = input;
    let mut next = || {
        let header = Header::read(rest)?.ok()?;
        let (message, behind) = rest.split_at_checked(header.total)?;
        rest = behind;
        Some((header.tag, &message[HEADER..]))
    };
    let (tag, body) = next()?;
    if tag == b'Q' {
        return Some(body);
    }
    let (_, statement) = cstr(body).filter(|_| tag == b'P')?;
    let (text, types) = cstr(statement)?;
    let bound = next().filter(|(tag, _)| *tag == b'B')?.1;
    let parameters = Bound::read(cstr(cstr(bound)?.1)?.1)?;
    let mut tail = next()?;
    if tail.0 == b'D' {
        tail = next()?;
    }
    let is_whole = tail.0 == b'E' && next()?.0 == b'S';
    (is_whole && types == [0; 2] && parameters.has_none()).then_some(text)
}
