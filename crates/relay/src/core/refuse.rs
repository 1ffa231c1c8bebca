//! Errors of pgusher's own, in place of what the upstream would say.

use super::Core;
use super::requests::{Kind, Note};
use wire::error::Refusal;

impl Core {
    /// An error of pgusher's own for the present request.
    #[cold]
    pub(super) fn refuse_request(&mut self, refusal: &Refusal, up: &mut Vec<u8>) {
        let mut error = Vec::new();
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
