//! What is known of a session: who it is, its settings, and what its database has; and so what a text may do.

use std::sync::{Arc, LazyLock};

use crate::catalog::Catalog;
use crate::settings::{Parameters, SessionSettings};
use crate::sql::{self, Effects, Pin};
use crate::{PoolMode, UserMemory};
use wire::error::{Fault, Refusal, SqlState};
use wire::{UserName, literal};

/// What is known of a database before a session was lent a connection to it. One for all: most sessions are idle.
static NO_CATALOG: LazyLock<Arc<Catalog>> = LazyLock::new(Arc::default);

/// Whose session this is and where it was routed. `SHOW pgusher.…` shows it, and the pin; the user decides resets, the connection
/// which statements are shared.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The name of the environment.
    pub environment: String,
    /// The name of the connection in the configuration.
    pub connection: String,
    /// The authenticated user.
    pub user: UserName,
    /// Why it is routed there, in words, with the generation.
    pub route: String,
    /// What the sessions of its user remember together.
    pub memory: Arc<UserMemory>,
}

/// What is a session's alone.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    /// Its number, which no other session has.
    pub id: u64,
    /// The number that stands for it where PostgreSQL has that of a process, above [`MAX_PROCESS`](crate::MAX_PROCESS); `None` in session
    /// mode, where the process's own is shown.
    pub pid: Option<u32>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct SessionFacts {
    own: Own,
    mode: PoolMode,
    shown: Arc<Facts>,
    settings: SessionSettings,
    /// What the database's own functions may do.
    catalog: Arc<Catalog>,
    /// Something is being defined that others may run, and this is what it may do.
    defines: Option<Box<Effects>>,
    /// A statement is about to run that needs this database to itself.
    needs_database: Option<Box<str>>,
    lex_rules: LexRules,
    temp_path: TempPath,
}

/// Whether the session's temporary schema is, or was, in its `search_path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TempPath {
    Never,
    /// Whatever it makes may be temporary.
    Perhaps,
}

/// What a text is read with: what is seen in it depends on that.
#[derive(Debug, Clone)]
pub(super) struct LexContext {
    is_lexable: bool,
    catalog: Arc<Catalog>,
}

impl PartialEq for LexContext {
    fn eq(&self, other: &Self) -> bool {
        self.is_lexable == other.is_lexable && Arc::ptr_eq(&self.catalog, &other.catalog)
    }
}

/// Whether it is known how texts are read (`standard_conforming_strings`, `client_encoding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LexRules {
    Known,
    /// This request, which may be under way, may change it.
    Changing {
        by: u64,
    },
}

impl SessionFacts {
    /// Of a session that has just logged in.
    pub(super) fn new(own: Own, mode: PoolMode, shown: Arc<Facts>, settings: SessionSettings) -> Self {
        let catalog = NO_CATALOG.clone();
        let (lex_rules, temp_path) = (LexRules::Known, TempPath::Never);
        let (defines, needs_database) = (None, None);
        let mut facts =
            Self { own, mode, shown, settings, catalog, defines, needs_database, lex_rules, temp_path };
        facts.look_at_path();
        facts
    }

    /// The session's settings are other ones.
    pub(super) fn look_at_path(&mut self) {
        if self.settings.search_path().is_some_and(sql::names_temp_schema) {
            self.temp_path = TempPath::Perhaps;
        }
    }

    /// Its number, which no other session has.
    pub(super) fn id(&self) -> u64 {
        self.own.id
    }

    /// The number that stands for it where PostgreSQL has that of a process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.own.pid
    }

    /// For how long it is lent a connection.
    pub(super) fn mode(&self) -> PoolMode {
        self.mode
    }

    /// True if it is lent one for each transaction.
    pub(super) fn is_lent_for_transactions(&self) -> bool {
        self.mode == PoolMode::Transaction
    }

    pub(super) fn user(&self) -> &UserName {
        &self.shown.user
    }

    /// The connection of the configuration.
    pub(super) fn connection(&self) -> &str {
        &self.shown.connection
    }

    pub(super) fn settings(&self) -> &SessionSettings {
        &self.settings
    }

    pub(super) fn settings_mut(&mut self) -> &mut SessionSettings {
        &mut self.settings
    }

    /// Those of its settings that a statement is known by, with their values.
    pub(super) fn scope(&self) -> Parameters {
        self.settings.scope(self.catalog.customs())
    }

    /// What the sessions of its user remember together.
    pub(super) fn memory(&self) -> &UserMemory {
        &self.shown.memory
    }

    pub(super) fn is_utf8(&self) -> bool {
        self.settings.reported().get(b"client_encoding") == Some(b"UTF8")
    }

    pub(super) fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// A request is about to be under way that may do this.
    pub(super) fn note_effects(&mut self, effects: &Effects, request: u64) {
        if effects.defines {
            self.define(effects.defined.as_deref());
        }
        if self.catalog.may_reread(effects) {
            self.lex_rules = LexRules::Changing { by: request };
        }
        if effects.temp_path {
            self.temp_path = TempPath::Perhaps;
        }
        self.note_database(effects);
    }

    /// A statement that may do this needs a database to itself, perhaps.
    pub(super) fn note_database(&mut self, effects: &Effects) {
        if let Some(database) = &effects.needs_database {
            self.needs_database = Some(database.as_str().into());
        }
    }

    /// True if something is being defined, or a database is needed.
    pub(super) fn has_to_tell(&self) -> bool {
        self.defines.is_some() || self.needs_database.is_some()
    }

    /// The database that is needed, if one is: said once.
    pub(super) fn take_needed_database(&mut self) -> Option<Box<str>> {
        self.needs_database.take()
    }

    /// What a text that comes now is read with.
    pub(super) fn lex_context(&self) -> LexContext {
        LexContext { is_lexable: self.can_lex(), catalog: self.catalog.clone() }
    }

    /// The query of this request has ended, and what was sent before it.
    pub(super) fn is_answered(&mut self, request: u64) {
        if matches!(self.lex_rules, LexRules::Changing { by } if by <= request) {
            self.lex_rules = LexRules::Known;
        }
    }

    /// The request under way that may change how texts are read.
    pub(super) fn lex_rules_changed_by(&self) -> Option<u64> {
        match self.lex_rules {
            LexRules::Known => None,
            LexRules::Changing { by } => Some(by),
        }
    }

    /// True if something is under way that may change how texts are read.
    pub(super) fn are_lex_rules_changing(&self) -> bool {
        self.lex_rules != LexRules::Known
    }

    /// What a text may do to the session.
    pub(super) fn effects(&self, text: &[u8]) -> Option<Box<Effects>> {
        let own = match sql::is_suspicious(text) {
            false => None,
            true => {
                let read = sql::suspected(text);
                match self.can_lex() || sql::reads_alike(text) {
                    true => read,
                    false => Some(Effects::unread(read.as_deref())),
                }
            }
        };
        self.with_catalog(own, || self.catalog.mentioned(text))
    }

    /// Whether the lexer reads a text that comes now as the upstream will.
    pub(super) fn can_lex(&self) -> bool {
        self.settings.is_lexable() && !self.are_lex_rules_changing()
    }

    /// What a statement may do by itself, with what the database's functions may do that it names.
    pub(super) fn with_catalog(
        &self,
        own: Option<Box<Effects>>,
        mentioned: impl FnOnce() -> Option<Box<Effects>>,
    ) -> Option<Box<Effects>> {
        let effects = self.joined(own, mentioned);
        match self.temp_path {
            TempPath::Never => effects,
            TempPath::Perhaps => {
                let mut effects = effects.unwrap_or_default();
                (effects.makes_objects, effects.temporary) = (true, true);
                Some(effects)
            }
        }
    }

    fn joined(
        &self,
        own: Option<Box<Effects>>,
        mentioned: impl FnOnce() -> Option<Box<Effects>>,
    ) -> Option<Box<Effects>> {
        if self.catalog.is_plain() && own.is_none() {
            return None;
        }
        let mentioned = if self.catalog.is_plain() { None } else { mentioned() };
        let Some(mut effects) = own else { return mentioned };
        // A view of nothing that matters is nothing that matters.
        let itself = effects.pin.is_some() || !effects.settings.is_empty() || effects.reads_sequences;
        effects.defines |= effects.relates && (mentioned.is_some() || itself);
        effects.asks_all |= effects.calls && !self.catalog.is_known();
        mentioned.iter().for_each(|mentioned| effects.add(mentioned));
        Some(effects)
    }

    /// Takes what is known of the database from now on, if that is something else.
    pub(super) fn set_catalog(&mut self, catalog: impl FnOnce(&Arc<Catalog>) -> Option<Arc<Catalog>>) {
        if let Some(other) = catalog(&self.catalog) {
            self.catalog = other;
        }
    }

    /// Something is about to be defined, which can be used in the same transaction.
    pub(super) fn define(&mut self, defined: Option<&Effects>) {
        let all = self.defines.get_or_insert_default();
        defined.into_iter().for_each(|defined| all.add(defined));
        let doubted = self.catalog.doubted(all);
        // What is known of statements by it goes on to be known.
        if !doubted.doubts_as(&self.catalog) {
            self.catalog = Arc::new(doubted);
        }
    }

    /// What was defined since this was last asked, if anything.
    pub(super) fn take_defined(&mut self) -> Option<Box<Effects>> {
        self.defines.take()
    }

    /// What `SHOW pgusher.…` says, with the names.
    pub(super) fn ours(&self, pin: Option<Pin>) -> [(&'static str, &str); 5] {
        [
            ("environment", &self.shown.environment),
            ("connection", &self.shown.connection),
            ("user", self.shown.user.as_str()),
            ("route", &self.shown.route),
            ("pin", pin.map_or("", Pin::word)),
        ]
    }

    /// The query that `SHOW pgusher.name` becomes.
    pub(super) fn show(&self, name: &str, pin: Option<Pin>) -> Option<String> {
        let (_, value) = self.ours(pin).into_iter().find(|(known, _)| *known == name)?;
        Some(format!("SELECT {}::pg_catalog.text AS \"pgusher.{name}\"", literal(value.as_bytes())))
    }

    /// Why a statement is refused that would set or reset one of pgusher's own settings: somebody who believes to have
    /// changed the environment must not go on where he is.
    pub(super) fn refused_setting(&self, effects: &Effects) -> Option<Refusal> {
        let name = effects.sets_ours.as_deref()?;
        let (sqlstate, message) = match name.strip_prefix("pgusher.") {
            Some("environment") => (
                SqlState::CANT_CHANGE_PARAMETER,
                format!("parameter \"{name}\" cannot be changed after connection start"),
            ),
            Some("connection" | "user" | "route" | "pin") => {
                (SqlState::CANT_CHANGE_PARAMETER, format!("parameter \"{name}\" cannot be changed"))
            }
            _ => {
                let shown: String = name.chars().take(63).collect();
                (SqlState::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{shown}\""))
            }
        };
        let environment = &self.shown.environment;
        let refusal = Refusal::new(Fault::Client, sqlstate, message);
        let refusal =
            refusal.detail(format!("This session is in environment \"{environment}\"; nothing was run."));
        Some(
            refusal
                .hint("To be in another environment, connect anew with options=-c pgusher.environment=NAME."),
        )
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::catalog::{Function, Relations};
    use crate::sql::SettingChange;

    pub(in super::super) fn facts() -> SessionFacts {
        let shown = Facts {
            environment: "dev".into(),
            connection: "base".into(),
            user: "ann".into(),
            route: "default".into(),
            memory: Arc::default(),
        };
        let reported = [("client_encoding", "UTF8"), ("standard_conforming_strings", "on")];
        let reported = reported.map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into()));
        let settings = SessionSettings::new(Parameters::new(reported).into(), Arc::default(), None);
        SessionFacts::new(Own { id: 1, pid: None }, PoolMode::Transaction, shown.into(), settings)
    }

    fn of(effects: Option<Box<Effects>>) -> Effects {
        effects.map(|effects| *effects).unwrap_or_default()
    }

    /// Wherever that schema stands in the path: what is made without a word of it may be temporary.
    #[test]
    fn with_the_temporary_schema_in_the_path_whatever_is_made_is_asked_for() {
        let (mut facts, mut carried) = (facts(), facts());
        let makes = |facts: &SessionFacts, text: &[u8]| facts.effects(text).is_some_and(|e| e.makes_objects);
        assert!(!makes(&facts, b"CREATE TABLE t (a int)") && !makes(&facts, b"SELECT 1 AS a INTO t"));
        let plain = facts.effects(b"SET search_path = public").unwrap();
        facts.note_effects(&plain, 1);
        assert!(!plain.makes_objects && !makes(&facts, b"SELECT 1 AS a INTO t"));
        let together =
            facts.effects(b"SET search_path = \"PG_TEMP\", public; CREATE TABLE t (a int)").unwrap();
        assert!(together.makes_objects);
        facts.note_effects(&together, 2);
        assert!(makes(&facts, b"CREATE TABLE t (a int)") && makes(&facts, b"SELECT 1 AS a INTO t"));
        // However it got there.
        assert!(carried.settings_mut().carry(b"search_path", b"a, pg_temp"));
        carried.look_at_path();
        assert!(makes(&carried, b"SELECT 1 AS a INTO t"));
    }

    #[test]
    fn while_it_may_change_how_texts_are_read_a_text_that_may_matter_is_opaque() {
        let mut facts = facts();
        let text = b"SELECT 'it\\'; SET work_mem = 1; --'";
        assert!(facts.can_lex() && of(facts.effects(text)) != Effects::opaque());
        facts.note_effects(&of(facts.effects(b"SET standard_conforming_strings = off")), 2);
        facts.is_answered(1);
        assert!(facts.are_lex_rules_changing());
        let expected = Effects { changes: vec![SettingChange::Set("work_mem".into())], ..Effects::opaque() };
        assert_eq!(of(facts.effects(text)), expected);
        facts.is_answered(2);
        assert!(facts.can_lex());
    }

    /// Whoever creates functions has nobody kept on his connection, not even himself; unless they are seen to change it.
    #[test]
    fn what_is_being_defined_does_not_put_in_doubt_how_texts_are_read() {
        let known = Catalog::new(&[], &Relations::default());
        let doubted = |catalog: Catalog| {
            let mut facts = facts();
            facts.set_catalog(|_| Some(Arc::new(catalog)));
            facts.note_effects(&of(facts.effects(b"SELECT f('x')")), 1);
            (
                facts.effects(b"SELECT 1").is_some_and(|effects| effects.asks_all),
                facts.are_lex_rules_changing(),
            )
        };
        let rereads = Effects { rereads: true, ..Effects::default() };
        assert_eq!(doubted(known.doubted(&Effects::default())), (true, false));
        assert_eq!(doubted(known.doubted(&rereads)), (true, true));
        assert_eq!(doubted(known.doubted(&rereads).without_pin()), (true, false), "by others");
    }

    #[test]
    fn what_a_function_of_the_database_does_is_what_its_callers_do() {
        let mut facts = facts();
        let before = facts.lex_context();
        let source = b"begin set work_mem = 1; end";
        let functions = [Function::new(1, b"f", b"plpgsql", source)];
        let catalog = Arc::new(Catalog::new(&functions, &Relations::default()));
        assert!(of(facts.effects(b"SELECT f()")).settings.is_empty());
        facts.set_catalog(|known| (!Arc::ptr_eq(known, &catalog)).then(|| catalog.clone()));
        assert_eq!(of(facts.effects(b"SELECT f()")).settings, ["work_mem"]);
        assert!(before != facts.lex_context() && facts.lex_context() == facts.lex_context());
    }

    #[test]
    fn what_is_defined_may_be_used_at_once_and_is_told_once() {
        let mut facts = facts();
        assert_eq!(facts.take_defined(), None);
        let text = b"CREATE FUNCTION g() RETURNS void LANGUAGE sql AS 'SET work_mem = 1'";
        facts.note_effects(&of(facts.effects(text)), 1);
        assert!(of(facts.effects(b"SELECT g()")) != Effects::default());
        assert!(facts.take_defined().is_some() && facts.take_defined().is_none());
    }

    #[test]
    fn its_own_settings_are_shown_and_not_set() {
        let facts = facts();
        let shown = facts.show("environment", None).expect("it is one of ours");
        assert!(shown.contains("'dev'") && shown.contains("\"pgusher.environment\""), "{shown}");
        let pin = facts.show("pin", Some(Pin::Listen)).expect("it is one of ours");
        assert!(pin.contains(Pin::Listen.word()), "{pin}");
        assert_eq!(facts.show("password", None), None);
        for (text, sqlstate) in [
            (&b"SET pgusher.environment = 'prod'"[..], SqlState::CANT_CHANGE_PARAMETER),
            (b"RESET pgusher.user", SqlState::CANT_CHANGE_PARAMETER),
            (b"SET pgusher.other = 1", SqlState::UNDEFINED_OBJECT),
        ] {
            let refusal = facts.refused_setting(&of(facts.effects(text))).expect("it is refused");
            assert_eq!(refusal.sqlstate, sqlstate, "{refusal:?}");
        }
        assert!(facts.refused_setting(&of(facts.effects(b"SET work_mem = 1"))).is_none());
    }
}
