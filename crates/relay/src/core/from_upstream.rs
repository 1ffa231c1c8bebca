//! From the upstream to the client.

use super::position::{Forward, Transaction};
use super::prepare::lesson;
use super::requests::{Kind, NO_COLUMNS, Note, Request, Whose};
use super::residue::User;
use super::transfer::Protocol;
use super::{BackendState, Broken, Core, GATHER, OutputBuffer};
use crate::bearing::Bearing;
use crate::settings::{AUTHORIZATION, SessionSettings};
use crate::sql::Pin;
use wire::{HEADER, Header, cstr};

/// The longest answer to a state probe; the engine has room for it and what comes behind it.
const MAX_ANSWER: usize = 3 * GATHER;

/// Of the tags of commands (`CommandComplete`) that are looked at: `DEALLOCATE ALL`.
const LONGEST_TAG: usize = 14;

/// What becomes of one message from the upstream.
enum Step {
    Pass,
    Drop,
    /// It describes a statement of ours.
    Learn,
    /// More of it must be there.
    Wait,
}

impl Core {
    /// Deals with bytes from the upstream; answers how many of them need not be shown again. `down` takes what
    /// goes to the client.
    ///
    /// # Errors
    /// The connection cannot be used any further. What is in `down` may still be sent.
    pub(crate) fn upstream_sent(
        &mut self,
        input: &[u8],
        backend: &mut BackendState,
        down: &mut OutputBuffer<'_>,
    ) -> Result<usize, Broken> {
        let mut at = self.go_on_down(input, 0, backend, down);
        self.send_local_answers_to(down);
        while self.pausing().is_none() {
            let rest = &input[at..];
            let header = match Header::read(rest) {
                None => return Ok(at),
                Some(Err(length)) => return Err(Broken::Desync(format!("a message of length {length}"))),
                Some(Ok(header)) => header,
            };
            let step = match header.tag {
                b'D' | b'd' => self.data(header, rest)?,
                _ => self.answer(header, rest, backend, down)?,
            };
            match step {
                Step::Pass => self.position.expect_of_upstream(header.total, Forward::Pass),
                Step::Drop => self.position.expect_of_upstream(header.total, Forward::Drop),
                Step::Learn => self.position.expect_of_upstream(header.total, Forward::Learn),
                Step::Wait => return Ok(at),
            }
            at += self.go_on_down(input, at, backend, down);
            if header.tag != b'D' && header.tag != b'd' {
                self.send_local_answers_to(down);
            }
        }
        Ok(at)
    }

    fn go_on_down(
        &mut self,
        input: &[u8],
        at: usize,
        backend: &mut BackendState,
        down: &mut OutputBuffer<'_>,
    ) -> usize {
        let (here, answer) = self.position.pass_of_upstream(input.len() - at);
        if here > 0 {
            match answer {
                Forward::Pass => down.pass(at..at + here),
                Forward::Drop => {}
                Forward::Learn => self.learn(&input[at..at + here], backend),
            }
        }
        here
    }

    fn data(&mut self, header: Header, input: &[u8]) -> Result<Step, Broken> {
        match self.position.requests().front_kind() {
            Some(Kind::Query | Kind::Execute) => Ok(Step::Pass),
            Some(Kind::Reset) => self.proved(header, input),
            Some(Kind::Setup | Kind::Transfer) => Ok(Step::Drop),
            Some(Kind::Probe) => self.answered(header, input),
            front => Err(Broken::Desync(format!("data in answer to {front:?}"))),
        }
    }

    /// The row that answers a reset is our own, or what comes on this connection answers something else.
    fn proved(&mut self, header: Header, input: &[u8]) -> Result<Step, Broken> {
        let Some(proof) = self.position.requests().front_proof().filter(|_| header.total <= GATHER) else {
            return Err(Broken::Reset(Vec::new()));
        };
        let Some(row) = input.get(HEADER..header.total) else { return Ok(Step::Wait) };
        if !proof.is_in(row) {
            return Err(Broken::Reset(Vec::new()));
        }
        self.position.requests_mut().take_front_note();
        Ok(Step::Drop)
    }

    /// The row that answers a state probe; one that is too long is no answer.
    fn answered(&mut self, header: Header, input: &[u8]) -> Result<Step, Broken> {
        if header.total > MAX_ANSWER {
            return Ok(Step::Drop);
        }
        let Some(row) = input.get(HEADER..header.total) else { return Ok(Step::Wait) };
        match self.residue.answer(row) {
            true => Ok(Step::Drop),
            false => Err(Broken::Desync("a row that answers something else than what was asked".into())),
        }
    }

    /// Sends the local answers whose turn has come, with a `Flush` from the client.
    pub(super) fn send_local_answers(&mut self, down: &mut Vec<u8>) {
        while let Some(Kind::Local(tag)) = self.position.requests().front_kind() {
            let note = self.position.requests_mut().take_front_note();
            self.position.requests_mut().pop();
            match tag {
                NO_COLUMNS => match note.as_deref() {
                    Some(Note::Answer(answer)) => down.extend_from_slice(answer),
                    _ => {
                        wire::message(down, b't', |out| out.extend([0; 2]));
                        wire::message(down, b'n', |_| {});
                    }
                },
                tag => wire::message(down, tag, |_| {}),
            }
        }
    }

    /// Asked at each message, and mostly there is none.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn send_local_answers_to(&mut self, down: &mut OutputBuffer<'_>) {
        if matches!(self.position.requests().front_kind(), Some(Kind::Local(_))) {
            self.send_waiting_answers(down);
        }
    }

    #[inline(never)]
    fn send_waiting_answers(&mut self, down: &mut OutputBuffer<'_>) {
        if self.position.between_messages() {
            self.send_local_answers(down.buffer());
        }
    }

    fn answer(
        &mut self,
        header: Header,
        input: &[u8],
        backend: &mut BackendState,
        down: &mut OutputBuffer<'_>,
    ) -> Result<Step, Broken> {
        // Local answers in front of the message that this answers go first.
        if !matches!(header.tag, b'S' | b'N' | b'A') {
            self.send_local_answers_to(down);
        }
        let body = input.get(HEADER..header.total);
        let looked_at = matches!(header.tag, b'S' | b'C' | b'E' | b'Z' | b'N')
            || header.tag == b'A' && (self.channels.is_any() || self.facts.pid().is_some());
        if body.is_none() && header.total <= GATHER && looked_at {
            return Ok(Step::Wait);
        }
        let ours = self.position.requests().front().is_some_and(|r| {
            matches!(r.kind, Kind::Reset | Kind::Setup | Kind::Probe | Kind::Transfer)
                || r.is_hidden() && matches!(r.kind, Kind::Query | Kind::Execute)
        });
        match header.tag {
            b'Z' => self.ready(body.and_then(|b| b.first().copied()), header, backend),
            b'C' => {
                if !self.complete(body.unwrap_or_default(), backend) {
                    let front = self.position.requests().front_kind();
                    return Err(Broken::Desync(format!("an end of a command in answer to {front:?}")));
                }
                Ok(if ours { Step::Drop } else { Step::Pass })
            }
            b'E' => {
                let translated = body.and_then(|body| self.in_the_clients_words(body));
                let step = self.failed(body, backend, down)?;
                match (step, translated) {
                    (Step::Pass, Some(body)) => {
                        wire::message(down.buffer(), b'E', |out| out.extend_from_slice(&body));
                        Ok(Step::Drop)
                    }
                    (step, _) => Ok(step),
                }
            }
            b'S' => self.parameter(body, backend, down),
            // So it is if it is said of what is prepared unseen.
            b'N' if ours || self.position.requests().front().is_some_and(Request::is_hidden) => {
                Ok(Step::Drop)
            }
            // A notification is the client's, whatever it meets, unless the listener delivers it.
            b'A' if !self.is_setting_up() => Ok(self.notified(body.unwrap_or_default(), backend, down)),
            b'N' => Ok(Step::Pass),
            _ if ours => Ok(Step::Drop),
            tag @ (b't' | b'T' | b'n') if self.is_learning() => match lesson(tag, backend) {
                true if tag == b'n' => {
                    self.learned(backend);
                    Ok(Step::Drop)
                }
                true => Ok(Step::Learn),
                false => Err(Broken::Desync("columns of a statement without its parameters".into())),
            },
            tag => self.structure(tag),
        }
    }

    /// A notification of the lent connection. The session's own come from its own number.
    fn notified(&mut self, body: &[u8], backend: &BackendState, down: &mut OutputBuffer<'_>) -> Step {
        if !self.channels.delivers(body) {
            return Step::Drop;
        }
        let (Some(pid), Some(rest)) = (self.is_own_notification(body, backend.pid), body.get(4..)) else {
            return Step::Pass;
        };
        wire::message(down.buffer(), b'A', |out| {
            out.extend(pid.to_be_bytes());
            out.extend_from_slice(rest);
        });
        Step::Drop
    }

    /// Messages that answer one request each, and those that a query is made of.
    fn structure(&mut self, tag: u8) -> Result<Step, Broken> {
        let front = self.position.requests().front_kind();
        let answered = match (tag, front) {
            (b'1', Some(Kind::Parse | Kind::ParseUnnamed))
            | (b'2', Some(Kind::Bind))
            | (b'3', Some(Kind::Close))
            | (b'n' | b'T', Some(Kind::Describe))
            | (b's' | b'I', Some(Kind::Execute)) => self.position.requests_mut().pop(),
            (b'T' | b'I', Some(Kind::Query))
            | (b't', Some(Kind::Describe))
            | (b'V', Some(Kind::FunctionCall))
            | (b'H' | b'c', Some(Kind::Query | Kind::Execute)) => return Ok(Step::Pass),
            (b'G', Some(Kind::Query | Kind::Execute)) => {
                let has_sync = self.position.begin_copy();
                // A `Sync` that the COPY has swallowed ends nothing.
                if has_sync && front == Some(Kind::Execute) && !self.position.requests().has_a_sync() {
                    self.position.begin_series();
                }
                return Ok(Step::Pass);
            }
            _ => {
                return Err(Broken::Desync(format!("message {:?} in answer to {front:?}", tag as char)));
            }
        };
        Ok(if answered.is_some_and(|request| request.is_hidden()) { Step::Drop } else { Step::Pass })
    }

    /// `ReadyForQuery`
    fn ready(
        &mut self,
        status: Option<u8>,
        header: Header,
        backend: &mut BackendState,
    ) -> Result<Step, Broken> {
        let (Some(transaction), 6) = (status.and_then(Transaction::of), header.total) else {
            return Err(Broken::Desync("a broken ReadyForQuery".into()));
        };
        let front = self.position.requests().front_kind();
        let ends = |kind| {
            use Kind::{FunctionCall, Probe, Query, Reset, Setup, Sync, Transfer};
            matches!(kind, Reset | Setup | Probe | Transfer | Query | FunctionCall | Sync)
        };
        if !front.is_some_and(ends) {
            return Err(Broken::Desync(format!("ReadyForQuery in answer to {front:?}")));
        }
        if front == Some(Kind::Reset)
            && (transaction != Transaction::None || self.position.requests().front_proof().is_some())
        {
            // A transaction is open, or this answers something else.
            return Err(Broken::Reset(Vec::new()));
        }
        let request = self.position.requests_mut().pop();
        let hidden = request.as_ref().is_some_and(Request::is_hidden);
        self.position.end_copy();
        self.residue.end_reset();
        let all_is_answered = self.position.requests().only_local();
        if self.facts.are_lex_rules_changing() || self.residue.has_changes() {
            self.settings_are_told(match request {
                _ if all_is_answered => u64::MAX,
                Some(request) if !hidden => request.number,
                _ => 0,
            });
        }
        if all_is_answered {
            self.all_is_answered(transaction, backend);
        }
        if let Some(kind) = front
            && let Some(step) = self.own_is_done(kind, backend)
        {
            return step;
        }
        if hidden {
            self.statements.is_ready();
            return Ok(Step::Drop);
        }
        self.position.ready(transaction);
        if self.residue.mixed() > Bearing::None
            && transaction == Transaction::None
            && self.position.requests().is_empty()
            && !self.residue.is_touched()
        {
            self.unmix(backend);
        }
        Ok(Step::Pass)
    }

    /// One of our own queries is answered; `None` if it was none.
    fn own_is_done(&mut self, kind: Kind, backend: &mut BackendState) -> Option<Result<Step, Broken>> {
        match kind {
            Kind::Reset if self.position.requests().is_empty() => backend.discarded(),
            Kind::Reset => {}
            Kind::Setup => self.facts.settings().settled(&mut backend.settings),
            Kind::Probe => self.probed(backend),
            Kind::Transfer if self.channels.transferred() => {}
            Kind::Transfer => return Some(Err(Broken::Desync("a marker did not come back".into()))),
            _ => return None,
        }
        Some(Ok(Step::Drop))
    }

    /// Nothing is under way any more.
    fn all_is_answered(&mut self, transaction: Transaction, backend: &mut BackendState) {
        self.position.all_is_answered();
        if !self.statements.is_trusted() {
            backend.prepared.doubt_all();
        }
        self.statements.all_is_answered(transaction);
        self.statements.is_answered(u64::MAX);
    }

    /// What requests up to this one have changed of settings that are reported was reported.
    #[cold]
    fn settings_are_told(&mut self, request: u64) {
        self.facts.is_answered(request);
        self.residue.is_answered(request);
    }

    /// `CommandComplete`; false if nothing was asked that ends so.
    fn complete(&mut self, tag: &[u8], backend: &mut BackendState) -> bool {
        let front = self.position.requests().front();
        let number = front.map_or(0, |r| r.number);
        // Those that matter are short, and most are: a loop is quicker than a search.
        let end = tag.iter().take(LONGEST_TAG + 1).position(|byte| *byte == 0);
        let tag = &tag[..end.unwrap_or(tag.len())];
        let is_query = front.is_some_and(|front| front.kind == Kind::Query);
        match self.position.requests().front_kind() {
            Some(Kind::Reset | Kind::Setup | Kind::Probe | Kind::Transfer) => return true,
            Some(Kind::Query) if front.is_some_and(Request::is_hidden) => return true,
            Some(Kind::Query) => {}
            Some(Kind::Execute) => drop(self.position.requests_mut().pop()),
            _ => return false,
        }
        if self.position.is_copying() {
            // It cannot be over, as the client has not ended it: what is owed is not what was counted.
            self.lose_count();
        }
        self.position.end_copy();
        if matches!(tag, [b'S', b'E', b'L', ..] | [b'I' | b'U' | b'B' | b'F', ..]) {
            // `SELECT`, `INSERT`, `UPDATE`, `BEGIN`, `FETCH`: none of those below.
            return true;
        }
        match tag {
            b"RESET" | b"DISCARD ALL" if self.facts.is_lent_for_transactions() => self.residue.begin_reset(),
            b"RESET" | b"DISCARD ALL" | b"SET" | b"ROLLBACK" => self.residue.end_reset(),
            _ => {}
        }
        match tag {
            b"DEALLOCATE" => {
                let protocol = if is_query { Protocol::Simple } else { Protocol::Extended };
                self.statements.deallocated(number, protocol);
            }
            b"DEALLOCATE ALL" | b"DISCARD ALL" => {
                self.statements.forget_before(number);
                backend.prepared.forget_before(number);
                if tag == b"DISCARD ALL" {
                    backend.unnamed = None;
                    if !self.residue.are_effects_noted() {
                        self.pin_for(Pin::Opaque);
                    }
                }
            }
            b"SET" | b"RESET" | b"LISTEN" | b"PREPARE" | b"LOAD" | b"DO" | b"CALL"
                if !self.residue.are_effects_noted() =>
            {
                // The lexer did not see it coming: then it did not see what it does either.
                self.pin_for(Pin::Opaque);
            }
            _ => {}
        }
        true
    }

    /// Nobody knows how many answers are still to come: nobody else may have this connection, ever.
    fn lose_count(&mut self) {
        self.pin_for(Pin::Copy);
        self.residue.mark_dirty();
    }

    /// `ErrorResponse`
    fn failed(
        &mut self,
        body: Option<&[u8]>,
        backend: &mut BackendState,
        down: &mut OutputBuffer<'_>,
    ) -> Result<Step, Broken> {
        let severity = body.and_then(|b| wire::error_field(b, b'V').or_else(|| wire::error_field(b, b'S')));
        if matches!(severity, Some(b"FATAL" | b"PANIC")) {
            self.position.note_fatal();
        }
        if self.position.has_sync_in_copy() && !self.has_read_the_end(body) {
            // Whether the upstream ignored that Sync or answers it depends on when it failed.
            self.residue.doubt_count();
        }
        self.position.end_copy();
        let skipped = match self.position.requests().front_kind() {
            Some(Kind::Reset) => return Err(Broken::Reset(body.unwrap_or_default().to_vec())),
            Some(Kind::Setup) => return Err(Broken::Setup(body.unwrap_or_default().to_vec())),
            // A cancel that came too late, or a very short statement_timeout: it is asked again.
            Some(kind @ (Kind::Probe | Kind::Transfer)) => {
                if kind == Kind::Transfer {
                    self.channels.interrupted();
                }
                return Ok(if self.position.has_sent_fatal() { Step::Pass } else { Step::Drop });
            }
            // A server that owes nothing says only why it leaves: nobody knows any more what it owes.
            None => {
                if !self.position.has_sent_fatal() {
                    self.lose_count();
                }
                return Ok(Step::Pass);
            }
            Some(Kind::Sync | Kind::FunctionCall) => return Ok(Step::Pass),
            // It failed with the transaction: what it was to prepare fails as well.
            Some(Kind::Query) if self.position.requests().front().is_some_and(Request::is_hidden) => {
                backend.foreign_sequences = true;
                return Ok(if self.position.has_sent_fatal() { Step::Pass } else { Step::Drop });
            }
            Some(Kind::Query) => return Ok(self.failed_query(body, down, backend)),
            Some(_) => self.position.requests_mut().skip_to_sync(),
        };
        if !skipped.has_sync {
            self.position.skip_series();
        }
        // The name of a statement that its query uses could not be had: what ends the query is the client's.
        let is_query = |request: &Request| request.kind == Kind::Query && !request.is_hidden();
        if skipped.requests.iter().any(is_query) {
            self.position.requests_mut().show_sync();
        }
        let replays = self.plan_replay(body.unwrap_or_default(), &skipped, backend);
        let skipped = skipped.requests;
        let refused = match skipped.first() {
            Some(Request { kind: Kind::Fail, note: Some(note), .. }) => match &**note {
                Note::Refused(error) => Some(error.clone()),
                _ => None,
            },
            _ => None,
        };
        let described = self.statements.take_described();
        if let Some(shape) = described.filter(|_| !replays && is_prepared_again(&skipped, body)) {
            down.buffer().extend_from_slice(&shape.described());
        }
        self.undo(skipped, backend);
        match refused {
            Some(error) if !self.position.has_sent_fatal() => {
                down.buffer().extend_from_slice(&error);
                Ok(Step::Drop)
            }
            _ if replays => Ok(Step::Drop),
            _ => Ok(Step::Pass),
        }
    }

    /// Whether a COPY has failed because the client has said so (`CopyFail`): then all that came before that was read. By the
    /// place in the server's source, which no `RAISE` can give.
    fn has_read_the_end(&self, body: Option<&[u8]>) -> bool {
        let field = |code| body.and_then(|body| wire::error_field(body, code));
        self.position.is_copy_ending() && field(b'C') == Some(b"57014") && field(b'R') == Some(b"CopyGetData")
    }

    /// An error that speaks of a statement by the name that it has on the connection, with the client's name for it.
    fn in_the_clients_words(&self, body: &[u8]) -> Option<Vec<u8>> {
        let at = self.statements.interner().find_name(body)?;
        let giver = self.position.requests().front()?.uses;
        let given = self.statements.name_given_by(giver);
        let of_client = given.or_else(|| self.position.requests().name_taken(giver))?;
        Some([&body[..at.start], of_client, &body[at.end..]].concat())
    }

    /// What the client hears of a simple query that has failed.
    #[cold]
    fn failed_query(
        &mut self,
        body: Option<&[u8]>,
        down: &mut OutputBuffer<'_>,
        backend: &mut BackendState,
    ) -> Step {
        // In a transaction that has failed before, that is what PostgreSQL says.
        let has_failed = body.and_then(|b| wire::error_field(b, b'C')) == Some(b"25P02");
        match self.take_back_query(backend) {
            Some(error) if !self.position.has_sent_fatal() && !has_failed => {
                down.buffer().extend_from_slice(&error);
                Step::Drop
            }
            _ => Step::Pass,
        }
    }

    /// A simple query failed; if it was a `DEALLOCATE` of ours, the name is still there. If it was there to fail, what is to
    /// be said in place of the upstream's error.
    fn take_back_query(&mut self, backend: &mut BackendState) -> Option<Vec<u8>> {
        match *self.position.requests_mut().take_front_note()? {
            Note::Refused(error) => Some(error),
            note => {
                let note = Some(Box::new(note));
                let request = Request { kind: Kind::Query, whose: Whose::Clients, number: 0, uses: 0, note };
                self.undo(vec![request], backend);
                None
            }
        }
    }

    /// `ParameterStatus`
    fn parameter(
        &mut self,
        body: Option<&[u8]>,
        backend: &mut BackendState,
        down: &mut OutputBuffer<'_>,
    ) -> Result<Step, Broken> {
        let setup = self.is_setting_up();
        let pair = body.and_then(cstr).and_then(|(name, rest)| Some((name, cstr(rest)?.0)));
        if body.is_none() {
            return Err(Broken::Desync("a setting that is longer than a server reports".into()));
        }
        let Some((name, value)) = pair else { return Ok(Step::Pass) };
        if !backend.settings.report(name, value) {
            return Err(Broken::Desync("more settings than a server reports".into()));
        }
        if name == AUTHORIZATION {
            self.residue.belongs_to(match backend.settings.is_own_session() {
                true => User::Own,
                false => User::Other,
            });
        }
        let news = |news| Ok(if news { Step::Pass } else { Step::Drop });
        if self.is_resetting() {
            // The server's defaults on the way to the session's settings.
            return Ok(Step::Drop);
        }
        if self.facts.settings().hides(name) && setup {
            return Ok(Step::Drop);
        }
        if setup {
            return news(self.facts.settings_mut().told(name, value));
        }
        if SessionSettings::is_settable(name) && self.residue.is_default(name) {
            self.residue.drift();
            if let Some(value) = self.facts.settings_mut().reset_reported(name) {
                wire::parameter_status(down.buffer(), name, &value);
            }
            return Ok(Step::Drop);
        }
        news(self.facts.settings_mut().report(name, value))
    }
}

/// True if it is a statement that could not be prepared again which has failed so, and not because its transaction had before.
fn is_prepared_again(skipped: &[Request], body: Option<&[u8]>) -> bool {
    let is_again =
        |first: &Request| first.is_hidden() && matches!(first.note.as_deref(), Some(Note::Prepared(_)));
    skipped.first().is_some_and(is_again) && body.and_then(|b| wire::error_field(b, b'C')) != Some(b"25P02")
}
