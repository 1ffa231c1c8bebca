//! What a session's bytes mean: it walks over the headers of messages (PostgreSQL's manual, "Message Flow"), from either side and
//! cut as they happen to be, and answers how much of a piece it has dealt with; what is left is shown again with more behind it.
//! What goes out is ranges of the input as long as nothing has to be changed.

mod bound;
mod channels;
mod doubts;
mod extended;
mod facts;
mod from_client;
mod from_upstream;
mod transfer;
mod leaving;
mod lend_names;
mod names;
mod output;
mod parse;
mod pids;
mod position;
mod prepare;
mod probe;
mod query;
mod refuse;
mod replay;
mod requests;
mod residue;
mod rest;
mod sequences;
mod statements;
mod teaching;
mod undo;

use std::sync::Arc;

pub use channels::{ListenRequest, Mark, Seal};
pub use facts::{Facts, Own};
pub(crate) use output::OutputBuffer;
pub use pids::{Act, MAX_PROCESS, Reached, Signalled};
pub use position::Counts;
pub(crate) use rest::Resting;

use crate::PoolMode;
use crate::bearing::Bearing;
use crate::catalog::Catalog;
use crate::reset::{self, Proof};
use crate::settings::{AUTHORIZATION, BackendSettings, Parameters, SessionSettings};
use crate::sql::{Effects, NameUse, Pin};
use crate::statement::{Interner, Lesson, PreparedStatements};
use channels::Channels;
use facts::SessionFacts;
use from_client::needs_connection;
use pids::{Armed, Signalling};
use position::Position;
use probe::Touched;
use replay::Batch;
use requests::{Kind, Note};
use residue::{Probed, Residue};
use statements::Statements;
use wire::UserName;

/// A message up to this long is looked at whole; it is waited for if only a part of it is there.
pub const GATHER: usize = 16 << 10;
/// The longest named `Parse` that is taken; longer ones are refused with `54000`.
pub const MAX_NAMED_PARSE: usize = 16 << 20;
/// The longest unnamed statement that is remembered from one transaction to the next whatever others there are.
const MAX_UNNAMED: usize = 64 << 10;

/// Bytes of pgusher's own (statements that are prepared again) that may be sent on top of the client's before all is answered.
const MAX_ADDED: usize = 1 << 20;
/// Bytes that may be kept to undo requests under way (names that are taken back if they fail) before all is answered.
const MAX_NOTED: usize = 8 << 20;

/// The part of an upstream connection that the core knows: what was done on it.
#[derive(Debug)]
pub struct BackendState {
    /// Of the process that answers, if it is the one that has logged us in.
    pid: Option<u32>,
    /// Its settings.
    pub settings: BackendSettings,
    prepared: PreparedStatements,
    max_prepared: usize,
    /// What it says of a statement that we have asked for.
    lesson: Option<Box<Lesson>>,
    /// Whose unnamed statement it holds.
    unnamed: Option<UnnamedStamp>,
    /// Whom it is or was lent to, and whether it may know last values of sequences of somebody else.
    session: u64,
    foreign_sequences: bool,
    /// Something of the client's was run in this lease.
    has_run: bool,
    /// The session that had it last asks for last values of sequences, and may come back for them.
    kept: bool,
    batch: Batch,
    /// The user that it was lent for last.
    last_user: Option<UserName>,
    /// Nothing can be left of that user: it has not been lent since it was opened or reset.
    clean: bool,
}

/// A session's number, and that of its request that parsed the unnamed statement.
type UnnamedStamp = (u64, u64);

impl BackendState {
    /// Of a connection that has just logged in and reported these; `pid` is of the process that answers, if it is known.
    pub fn new(reported: Arc<Parameters>, max_prepared: usize, pid: Option<u32>) -> Self {
        Self {
            pid,
            settings: BackendSettings::new(reported),
            prepared: PreparedStatements::default(),
            max_prepared,
            lesson: None,
            unnamed: None,
            session: 0,
            foreign_sequences: false,
            has_run: false,
            kept: false,
            batch: Batch::default(),
            last_user: None,
            clean: true,
        }
    }

    /// How many prepared statements it holds.
    pub fn prepared(&self) -> usize {
        self.prepared.len()
    }

    /// `DISCARD ALL` was run on it by us, and it has a new seed.
    pub fn discarded(&mut self) {
        self.clean = true;
        (self.session, self.kept) = (0, false);
        self.prepared = PreparedStatements::default();
        self.unnamed = None;
        self.foreign_sequences = false;
        self.settings.discard_all();
    }

    /// A simple query of our own was run on it.
    pub fn forget_unnamed(&mut self) {
        self.unnamed = None;
    }

    /// Whom it was used for last, if it was used.
    pub fn last_user(&self) -> Option<&UserName> {
        self.last_user.as_ref()
    }

    /// The session that had it last for a transaction; 0 if none had, or it was reset since.
    pub fn last_session(&self) -> u64 {
        self.session
    }

    /// True if that session may come back for the last values of its sequences.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// True if nobody has used it since it was opened or reset.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// True if something may be left on it of somebody else than this user.
    pub fn is_foreign_to(&self, user: &UserName) -> bool {
        !self.clean && self.last_user.as_ref().is_none_or(|last| last != user)
    }

    /// From now on it is used for this user. True if that was somebody else before.
    pub fn serve(&mut self, user: &UserName) -> bool {
        self.clean = false;
        let changes = self.last_user.as_ref() != Some(user);
        if changes {
            self.last_user = Some(user.clone());
        }
        changes
    }
}

/// What a piece of the client's bytes led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// All that is whole was dealt with.
    More,
    /// The message at the front is needed up to this length before anything can be said.
    Need(usize),
    /// What the message at the front means depends on an answer that the upstream has still to give: it is to be
    /// shown again when some have come.
    Defer,
    /// The message at the front needs an upstream connection, and there is none.
    Lease,
    /// The client has said goodbye.
    Terminate,
}

/// How much was dealt with, and what next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes of the input that need not be shown again.
    pub consumed: usize,
    /// What next.
    pub then: Then,
}

/// Why an upstream connection cannot be used any further.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It sent what the protocol does not allow here.
    Desync(String),
    /// It did not take the session's settings; its `ErrorResponse` body.
    Setup(Vec<u8>),
    /// It could not be reset for another user; its `ErrorResponse` body.
    Reset(Vec<u8>),
}

/// The protocol state machine of one session.
#[derive(Debug)]
pub(crate) struct Core {
    facts: SessionFacts,
    position: Position,
    statements: Statements,
    residue: Residue,
    channels: Channels,
    signalling: Signalling,
    armed: Option<Box<Armed>>,
}

impl Core {
    /// A session that has just logged in.
    pub(crate) fn new(
        own: Own,
        mode: PoolMode,
        interner: Arc<Interner>,
        facts: Arc<Facts>,
        settings: SessionSettings,
    ) -> Self {
        Self {
            facts: SessionFacts::new(own, mode, facts, settings),
            position: Position::default(),
            statements: Statements::new(interner),
            residue: Residue::default(),
            channels: Channels::default(),
            signalling: Signalling::None,
            armed: None,
        }
    }

    /// True while a connection is reset for the session, or given its settings: nothing of the client's may be sent before.
    pub(crate) fn is_setting_up(&self) -> bool {
        matches!(self.position.requests().front_kind(), Some(Kind::Reset | Kind::Setup))
    }

    /// True while nothing of the client's runs on the connection: it is reset, set up or probed, or the
    /// session's channels are on their way to the listener.
    pub(crate) fn is_about_its_own(&self) -> bool {
        matches!(self.position.requests().front_kind(), Some(Kind::Reset | Kind::Setup | Kind::Probe))
            || self.is_transferring()
    }

    /// True while nothing more of the client's may be sent: what it sends next may depend on what is under way.
    pub(crate) fn holds_client(&self) -> bool {
        self.is_about_its_own() || self.statements.replays()
    }

    /// True if the connection must be asked what is left on it before anything is decided.
    pub(crate) fn wants_probe(&self) -> bool {
        self.residue.is_touched() && self.facts.is_lent_for_transactions() && self.is_idle()
    }

    /// True if the connection is no longer at the session's startup values, and must be given them again.
    pub(crate) fn wants_setup(&self) -> bool {
        self.residue.has_drifted() && self.is_idle() && !self.residue.is_touched() && !self.is_transferring()
    }

    /// Asks it; to be called when [`Core::wants_probe`] says so.
    pub(crate) fn probe(&mut self, proof: Proof, backend: &mut BackendState, up: &mut Vec<u8>) {
        let Some(question) = self.residue.ask(proof, self.facts.settings()) else { return };
        wire::query(up, &question);
        // A simple query destroys the unnamed statement.
        backend.unnamed = None;
        self.position.requests_mut().push(Kind::Probe);
    }

    /// The connection has answered, or could not.
    fn probed(&mut self, backend: &mut BackendState) {
        let (touched, left) = match self.residue.probed() {
            Some(Probed::Known(touched, left)) => (touched, left),
            Some(Probed::Never) if self.channels.is_recalled() => {
                // More channels than can be told: the connection listens to them itself from now on.
                self.keep_channels();
                return self.pin_for(Pin::Listen);
            }
            Some(Probed::Never) => return self.pin_for(Pin::Opaque),
            Some(Probed::Again) | None => return,
        };
        for (name, value) in &left.settings {
            let name = name.as_bytes();
            // What it has set at startup it goes back to: that is what an empty one is then.
            let is_reset = |value: &[u8]| value.is_empty() && self.facts.settings().has_from_startup(name);
            match value.as_deref().filter(|value| !is_reset(value)) {
                // Its value has been reported already.
                Some(_) if self.facts.settings().reports(name) => {}
                Some(value) if self.facts.settings_mut().carry(name, value) => {
                    backend.settings.carry(name, value);
                }
                // More than is carried from one connection to the next.
                Some(_) => self.pin_for(Pin::Setting),
                None => {
                    backend.settings.reset(name);
                    self.facts.settings_mut().reset(name);
                    self.residue.drift();
                }
            }
        }
        if left.prepared.is_some_and(|count| count < backend.prepared.len()) {
            backend.prepared.doubt_all();
        }
        match left.channels {
            _ if !touched.objects => {}
            Some(channels) => self.found_channels(channels),
            None => self.keep_channels(),
        }
        self.facts.look_at_path();
        self.unmix(backend);
        self.facts.settings().settled(&mut backend.settings);
    }

    /// Asks the server to take away what another user has left on it; nothing of this one's may be sent before that is
    /// done: see [`Core::is_setting_up`].
    pub(crate) fn reset(&mut self, seed: u64, proof: Proof, up: &mut Vec<u8>) {
        wire::query(up, reset::DISCARD);
        wire::query(up, &proof.new_seed(seed));
        self.position.requests_mut().push(Kind::Reset);
        self.position.requests_mut().push_noted(Kind::Reset, Note::Proof(proof));
    }

    /// True while that is not done.
    pub(crate) fn is_resetting(&self) -> bool {
        self.position.requests().front_kind() == Some(Kind::Reset)
    }

    /// Who the session's user is.
    #[cfg(test)]
    pub(crate) fn user(&self) -> &UserName {
        self.facts.user()
    }

    /// The connection that was to be set up is gone; nothing of the client's was sent on it.
    pub(crate) fn abandon_setup(&mut self) {
        self.position.lose_connection();
    }

    /// True if what was deferred may be looked at again: what it waits for may have been answered. It may be long, so that is not
    /// done at each piece of an answer.
    pub(crate) fn may_go_on(&self) -> bool {
        self.position.may_go_on()
    }

    /// For how long the session has a connection.
    pub(crate) fn mode(&self) -> PoolMode {
        self.facts.mode()
    }

    /// Gives a connection to the session; what must be sent on it first goes to `up`.
    pub(crate) fn attach(&mut self, backend: &mut BackendState, up: &mut Vec<u8>) {
        if !self.facts.is_lent_for_transactions() {
            return;
        }
        backend.serve(self.facts.user());
        backend.foreign_sequences |= backend.session != self.facts.id() && backend.session != 0;
        backend.session = self.facts.id();
        self.residue.give_defaults();
        if let Some(sql) = self.facts.settings().setup(&mut backend.settings, self.facts.catalog().customs())
        {
            wire::query(up, &sql);
            // A simple query destroys the unnamed statement.
            backend.unnamed = None;
            self.position.requests_mut().push(Kind::Setup);
        }
        if self.facts.memory().asks_for_last_values() {
            self.forget_sequences(backend, up);
        }
    }

    /// True if the connection can go back to its pool now: nothing is owed on it and nothing is left on it.
    pub(crate) fn may_release(&self) -> bool {
        self.is_idle()
            && self.facts.is_lent_for_transactions()
            && self.residue.is_nothing()
            && !self.is_transferring()
    }

    /// The session's settings are its own again, and known: what was planned meanwhile is nobody's.
    fn unmix(&mut self, backend: &mut BackendState) {
        if self.residue.unmix() == Bearing::Constants {
            backend.settings.doubt_plans();
        }
    }

    /// The connection goes back.
    pub(crate) fn detach(&mut self, backend: &mut BackendState) {
        self.unmix(backend);
        if self.residue.end_lease() {
            backend.settings.doubt();
        }
        self.position.end_lease();
        backend.has_run = false;
        backend.kept = self.facts.memory().asks_for_last_values();
        backend.prepared.end_lease();
        backend.batch.end();
    }

    /// True if the session could end here and leave its connection as a `DISCARD ALL` would find it: no
    /// transaction, no answer outstanding.
    pub(crate) fn is_idle(&self) -> bool {
        self.position.is_idle()
    }

    /// True if a `DISCARD ALL` leaves nothing of the session: no library that it loaded, no seed, no remote connection.
    pub(crate) fn is_cleanable(&self) -> bool {
        self.is_idle() && self.residue.is_cleanable()
    }

    /// True if what statements do is to be told to others: mostly not.
    pub(crate) fn has_to_tell(&self) -> bool {
        self.facts.has_to_tell()
    }

    /// The database that a statement under way needs to itself, if one does: said once.
    pub(crate) fn take_needed_database(&mut self) -> Option<Box<str>> {
        self.facts.take_needed_database()
    }

    /// A statement that may do this is about to run in session mode.
    fn mark_dirty(&mut self, effects: &Effects) {
        self.facts.note_database(effects);
        self.residue.mark_dirty_by(effects);
        if effects.defines {
            self.facts.define(effects.defined.as_deref());
        }
    }

    /// True if the client is owed no answer, whether or not a transaction is open: it is its turn.
    pub(crate) fn is_clients_turn(&self) -> bool {
        self.position.is_clients_turn()
    }

    /// True if something of the session's may still run on its connection.
    pub(crate) fn may_be_busy(&self) -> bool {
        !self.is_clients_turn() || !self.residue.is_cleanable()
    }

    /// True if so much is under way that no more should be read from the client.
    pub(crate) fn is_full(&self) -> bool {
        self.position.is_full()
    }

    /// True if an error can be put in between what the client gets: no message has been begun and not ended.
    pub(crate) fn between_messages(&self) -> bool {
        self.position.between_messages()
    }

    /// Why the session keeps its connection.
    pub(crate) fn pin(&self) -> Option<Pin> {
        self.residue.pin()
    }

    /// True if the upstream has said that it ends the connection (severity FATAL or PANIC).
    pub(crate) fn is_fatal(&self) -> bool {
        self.position.has_sent_fatal()
    }

    /// What was counted since this was last called.
    pub(crate) fn take_counts(&mut self) -> Counts {
        std::mem::take(self.position.counts_mut())
    }

    /// How many statements the session has prepared by name.
    pub(crate) fn prepared(&self) -> usize {
        self.statements.count()
    }

    /// How many transactions (and queries outside of one) have ended.
    pub(crate) fn transactions(&self) -> u64 {
        self.position.transactions()
    }

    /// A number that tells the query under way from the one before it.
    pub(crate) fn query_number(&self) -> u32 {
        self.position.query_number()
    }

    /// From now on the session keeps its connection.
    fn pin_for(&mut self, reason: Pin) {
        if self.facts.is_lent_for_transactions() && !self.residue.is_pinned_for_good() {
            self.residue.pin_for_good(reason);
            if !self.channels.is_recalled() {
                self.residue.ask_only_for_resets();
            }
        }
    }

    /// True if a text is to be read when what is under way is answered: only then it is known how.
    fn must_know_how_to_read(&self, tag: u8) -> bool {
        let Some(by) = self.facts.lex_rules_changed_by() else { return false };
        let requests = self.position.requests();
        let is_over =
            !self.position.is_unsynced() || requests.are_ended() || requests.is_of_earlier_batch(by);
        matches!(tag, b'Q' | b'P' | b'B')
            && self.facts.is_lent_for_transactions()
            && is_over
            && !requests.is_empty()
    }

    /// True if what comes now stands behind the transaction of a `RESET`: the session goes back to what it set at startup, and the
    /// connection has to be asked, and given that, first.
    fn must_have_its_values_first(&self, tag: u8) -> bool {
        self.residue.owes_values()
            && needs_connection(tag)
            && self.position.is_before_transaction()
            && self.facts.is_lent_for_transactions()
    }

    /// Takes what is known of the database from now on, if that is something else.
    pub(crate) fn set_catalog(&mut self, catalog: impl FnOnce(&Arc<Catalog>) -> Option<Arc<Catalog>>) {
        self.facts.set_catalog(catalog);
    }

    /// What was defined since this was last asked, if anything: then the database is to be asked again.
    pub(crate) fn has_defined(&mut self) -> Option<Box<Effects>> {
        if self.is_idle() { self.facts.take_defined() } else { None }
    }

    /// A statement that may do this is about to run.
    fn note_effects(&mut self, effects: &Effects) {
        if effects.foreseen {
            self.residue.mark_effects_noted();
        }
        let request = self.position.requests().next_number();
        self.facts.note_effects(effects, request);
        if self.changes_what_is_reported(effects) {
            self.residue.note_changes(&effects.changes, request);
        }
        self.statements.note_effects(effects, request);
        self.residue.mix(effects.mixes(self.facts.catalog().customs()));
        if effects.temporary || effects.asks_all {
            self.residue.note_temporary();
        }
        if effects.asks_all || effects.names.iter().any(|(what, _)| *what == NameUse::Prepares) {
            self.residue.note_sql_names();
        }
        // A server that does not say whose session it is cannot be believed to have gone back to its own.
        let unsaid = effects.authorizes && !self.facts.settings().reports(AUTHORIZATION);
        if let Some(reason) = effects.pin.or(unsaid.then_some(Pin::Role)) {
            self.residue.mark_effects_noted();
            self.pin_for(reason);
        }
        let carried = self.has_carried_channels();
        let mut touched = Touched::by(effects);
        touched.objects |= effects.ends_objects && self.pin().is_some();
        touched.objects |= (effects.channels || effects.notifies) && carried;
        if touched.is_nothing() {
            return;
        }
        self.residue.mark_effects_noted();
        if self.residue.is_pinned_for_good() && !effects.resets && !carried {
            return;
        }
        self.residue.touch(&touched);
        if effects.makes_objects && (effects.asks_all || !effects.settings.is_empty()) {
            self.residue.mark_repeatable();
        }
        if self.residue.is_too_much() {
            self.pin_for(Pin::Setting);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
