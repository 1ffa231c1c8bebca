//! Errors of pgusher's own, in place of what the upstream would say.

use super::Core;
use super::requests::{Kind, Note};
use crate::sql;
use wire::error::{Refusal, SqlState};
use wire::{HEADER, Header};

impl Core {
    /// True if this refusal of the session's settings is because it may not have its role: that was dropped, or is not its any more.
    pub(crate) fn is_refused_its_role(&self, refusal: &Refusal) -> bool {
        let of_roles =
            [SqlState::INVALID_PARAMETER, SqlState::INSUFFICIENT_PRIVILEGE, SqlState::UNDEFINED_OBJECT];
        self.facts.settings().has_role() && of_roles.contains(&refusal.sqlstate)
    }

    /// True if the client's next statement gives its role up: from here on it is none of the session's settings.
    pub(crate) fn gives_up_role(&mut self, input: &[u8]) -> bool {
        let text = match Header::read(input) {
            Some(Ok(header)) if header.tag == b'Q' => input.get(HEADER..header.total),
            // A name and the text.
            Some(Ok(header)) if header.tag == b'P' => input.get(HEADER..header.total).and_then(|body| {
                let mut parts = body.splitn(3, |byte| *byte == 0);
                parts.next().and(parts.next())
            }),
            _ => None,
        };
        let gives_up = text.is_some_and(sql::gives_up_role);
        if gives_up {
            self.facts.settings_mut().reset(b"role");
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
