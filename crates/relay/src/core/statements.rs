//! The statements of one session: those that it has named, the unnamed one, and whether the connection can be trusted to have
//! them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::facts::LexContext;
use super::position::Transaction;
use super::replay::Replay;
use super::transfer::Protocol;
use crate::sql::{Effects, PidUse};
use crate::statement::{
    Description, Interner, NamedStatement, Names, Shape, Statement, Unnamed, UnnamedText, significant,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Statements {
    interner: Arc<Interner>,
    /// Only clients that name statements have any.
    names: Option<Box<Names>>,
    unnamed: Unnamed,
    /// What it has to do with the number of a process, if anything, and the request that it was made by.
    pid_use: Option<Box<(u64, PidUse)>>,
    /// What the unnamed statement may do, once it was looked at.
    seen: Option<Box<Reading>>,
    trust: Trust,
    replay: Replay,
    in_sql: Option<Box<InSql>>,
    /// The statement, by the request that gave its name, that was prepared again and compared, for the message that waits for it.
    outcome: Option<(u64, Preparation)>,
    /// What a `Describe` that waits for that was told.
    describes: Option<Arc<Shape>>,
}

/// Names that SQL uses which is under way.
#[derive(Debug, Default)]
struct InSql {
    /// The connection has these, until the query or the batch ends.
    lent: BTreeSet<Box<[u8]>>,
    /// It may deallocate these, in this order.
    deallocations: VecDeque<Deallocation>,
}

#[derive(Debug)]
struct Deallocation {
    request: u64,
    protocol: Protocol,
    name: Box<[u8]>,
}

/// How a statement that was prepared again compares with what the client was told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preparation {
    /// It is the same, under this number.
    Same(u64),
    /// It has other columns, or other parameters.
    Differs,
}

/// Whether the connection has what it was told to prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    Full,
    /// There may be a portal that deallocates every statement when it is executed.
    Portal,
    /// This request, which may be under way, may deallocate every statement.
    Lost(u64),
}

/// What an unnamed statement may do, and with what it was read.
#[derive(Debug)]
struct Reading {
    stamp: u64,
    lex_context: LexContext,
    effects: Option<Arc<Effects>>,
}

impl Statements {
    /// Of a session that has none yet.
    pub(super) fn new(interner: Arc<Interner>) -> Self {
        let (unnamed, replay) = (Unnamed::default(), Replay::None);
        Self {
            interner,
            names: None,
            unnamed,
            pid_use: None,
            seen: None,
            trust: Trust::Full,
            replay,
            in_sql: None,
            outcome: None,
            describes: None,
        }
    }

    /// What is kept of them when nothing is under way: most clients have none.
    pub(super) fn rest(self) -> Result<Box<Self>, Arc<Interner>> {
        match self {
            Self {
                interner,
                names: None,
                unnamed: Unnamed { text: UnnamedText::None, .. },
                pid_use: None,
                trust: Trust::Full,
                replay: Replay::None,
                in_sql: None,
                outcome: None,
                seen: _,
                describes: _,
            } => Err(interner),
            some => Ok(Box::new(some)),
        }
    }

    /// Those of all sessions.
    pub(super) fn interner(&self) -> &Interner {
        &self.interner
    }

    /// How many the session has named.
    pub(super) fn count(&self) -> usize {
        self.names.as_ref().map_or(0, |names| names.count())
    }

    /// How many bytes they have.
    pub(super) fn bytes(&self) -> usize {
        self.names.as_ref().map_or(0, |names| names.bytes())
    }

    /// The one of this name.
    pub(super) fn named(&self, name: &[u8]) -> Option<&NamedStatement> {
        self.names.as_ref()?.get(name)
    }

    /// Gives a name a statement, or takes it away; answers what it had.
    pub(super) fn put(&mut self, name: &[u8], named: Option<NamedStatement>) -> Option<NamedStatement> {
        let interner = &self.interner;
        self.names.get_or_insert_with(|| Box::new(interner.names())).put(name, named)
    }

    /// The name that this request gave.
    pub(super) fn name_given_by(&self, request: u64) -> Option<&[u8]> {
        self.names.as_ref()?.given_by(request)
    }

    /// What this request named, if it still has that name.
    pub(super) fn given_by(&self, request: u64) -> Option<&NamedStatement> {
        self.named(self.name_given_by(request)?)
    }

    /// The client was told this of what this request named, which is this statement. False if it has lost its name.
    pub(super) fn tell(&mut self, request: u64, statement: &Arc<Statement>, told: &Description) -> bool {
        self.names.as_mut().is_some_and(|names| names.tell(request, statement, told))
    }

    /// What this request named was prepared again.
    pub(super) fn compared(&mut self, request: u64, outcome: Preparation) {
        self.outcome = Some((request, outcome));
    }

    /// What came of that, if a message has waited for it: said once.
    pub(super) fn take_outcome(&mut self, request: u64) -> Option<Preparation> {
        self.describes = None;
        self.outcome.take().filter(|(compared, _)| *compared == request).map(|(_, outcome)| outcome)
    }

    /// A statement of this shape is being prepared again, and compared, for a `Describe` of it; or for something else.
    pub(super) fn wait_to_describe(&mut self, shape: Option<Arc<Shape>>) {
        self.describes = shape;
    }

    /// The shape, if a `Describe` waited: said once.
    pub(super) fn take_described(&mut self) -> Option<Arc<Shape>> {
        self.describes.take()
    }

    /// So many of the names, at the most.
    pub(super) fn some_names(&self, most: usize) -> Vec<Arc<[u8]>> {
        self.names.iter().flat_map(|names| names.some(most)).cloned().collect()
    }

    /// The connection has this name from now on; false if it has it already.
    pub(super) fn lend(&mut self, name: &[u8]) -> bool {
        self.in_sql.get_or_insert_default().lent.insert(name.into())
    }

    /// True if the connection has this name.
    pub(super) fn is_lent(&self, name: &[u8]) -> bool {
        self.in_sql.as_ref().is_some_and(|names| names.lent.contains(significant(name)))
    }

    /// The connection has this name no more; false if it had not.
    pub(super) fn take_back(&mut self, name: &[u8]) -> bool {
        self.in_sql.as_mut().is_some_and(|names| names.lent.remove(significant(name)))
    }

    /// True if it has any.
    pub(super) fn has_lent(&self) -> bool {
        self.in_sql.as_ref().is_some_and(|names| !names.lent.is_empty())
    }

    /// Those that it has, which are taken away.
    pub(super) fn take_lent(&mut self) -> BTreeSet<Box<[u8]>> {
        self.in_sql.as_mut().map(|names| std::mem::take(&mut names.lent)).unwrap_or_default()
    }

    /// This request may deallocate a name.
    pub(super) fn note_deallocation(&mut self, request: u64, protocol: Protocol, name: &[u8]) {
        let deallocation = Deallocation { request, protocol, name: name.into() };
        self.in_sql.get_or_insert_default().deallocations.push_back(deallocation);
    }

    /// The last request that may deallocate a name.
    pub(super) fn deallocated_by(&self, name: &[u8]) -> Option<u64> {
        let all = &self.in_sql.as_ref()?.deallocations;
        all.iter().rfind(|one| *one.name == *significant(name)).map(|one| one.request)
    }

    /// A command of this request has deallocated the next one.
    pub(super) fn deallocated(&mut self, request: u64, protocol: Protocol) {
        let Some(in_sql) = &mut self.in_sql else { return };
        let is_by = |one: &Deallocation| {
            one.protocol == protocol
                && match protocol {
                    Protocol::Simple => one.request == request,
                    Protocol::Extended => one.request < request,
                }
        };
        if let Some(at) = in_sql.deallocations.iter().position(is_by)
            && let Some(deallocation) = in_sql.deallocations.remove(at)
        {
            self.put(&deallocation.name, None);
        }
    }

    /// The query or batch of this request has ended, and what was sent before it.
    pub(super) fn is_answered(&mut self, request: u64) {
        if let Some(in_sql) = &mut self.in_sql {
            in_sql.deallocations.retain(|one| one.request > request);
            if in_sql.deallocations.is_empty() && in_sql.lent.is_empty() {
                self.in_sql = None;
            }
        }
    }

    /// Everything named before this request is gone.
    pub(super) fn forget_before(&mut self, request: u64) {
        self.names.iter_mut().for_each(|names| names.forget_before(request));
    }

    /// The request that made the unnamed statement what it is.
    pub(super) fn stamp(&self) -> u64 {
        self.unnamed.stamp
    }

    pub(super) fn unnamed(&self) -> &UnnamedText {
        &self.unnamed.text
    }

    /// The unnamed statement is this one from now on, by the request of this number; answers what it was.
    pub(super) fn replace_unnamed(&mut self, stamp: u64, text: UnnamedText) -> Unnamed {
        std::mem::replace(&mut self.unnamed, Unnamed { stamp, text })
    }

    /// What the unnamed statement, which is new, has to do with the number of a process.
    pub(super) fn note_pid_use(&mut self, pid_use: Option<Box<PidUse>>) {
        if pid_use.is_some() || self.pid_use.is_some() {
            self.pid_use = pid_use.map(|pid_use| Box::new((self.unnamed.stamp, *pid_use)));
        }
    }

    /// That of the unnamed statement as it is now.
    pub(super) fn pid_use(&self) -> Option<&PidUse> {
        let (stamp, pid_use) = self.pid_use.as_deref()?;
        (*stamp == self.unnamed.stamp).then_some(pid_use)
    }

    /// There is no unnamed statement any more.
    pub(super) fn drop_unnamed(&mut self) {
        self.unnamed = Unnamed::default();
    }

    /// It is again what it was before the request of this number, if that is what it is by.
    #[must_use]
    pub(super) fn restore_unnamed(&mut self, stamp: u64, previous: Unnamed) -> Option<Unnamed> {
        if self.unnamed.stamp != stamp {
            return Some(previous);
        }
        self.unnamed = previous;
        None
    }

    /// The memory of the unnamed statement, for the next one.
    pub(super) fn take_unnamed_memory(&mut self) -> Vec<u8> {
        match &mut self.unnamed.text {
            UnnamedText::Known(text) => std::mem::take(text),
            _ => Vec::new(),
        }
    }

    /// What the unnamed statement may do, from `look` if it was not looked at with this reader; `None` if it does nothing, or
    /// it is not known what it is.
    pub(super) fn see_unnamed(
        &mut self,
        lex_context: LexContext,
        look: impl FnOnce(&[u8]) -> Option<Box<Effects>>,
    ) -> Option<Arc<Effects>> {
        let is_it = |seen: &Reading| seen.stamp == self.unnamed.stamp && seen.lex_context == lex_context;
        if !self.seen.as_deref().is_some_and(is_it) {
            let text = self.unnamed.text.text()?;
            let effects = look(wire::cstr(text).map_or(text, |(text, _)| text)).map(Arc::from);
            self.seen = Some(Box::new(Reading { stamp: self.unnamed.stamp, lex_context, effects }));
        }
        self.seen.as_ref()?.effects.clone()
    }

    /// The request of this number is about to be under way, and may do this.
    pub(super) fn note_effects(&mut self, effects: &Effects, request: u64) {
        if effects.deallocates_all {
            self.trust = Trust::Lost(request);
        }
    }

    /// The request of this number executes a portal.
    pub(super) fn executes(&mut self, request: u64) {
        if self.trust != Trust::Full {
            self.trust = Trust::Lost(request);
        }
    }

    /// Nothing is under way any more; a portal may be there if a transaction is open.
    pub(super) fn all_is_answered(&mut self, transaction: Transaction) {
        self.trust = match (self.trust, transaction) {
            (Trust::Portal | Trust::Lost(_), Transaction::Open) => Trust::Portal,
            _ => Trust::Full,
        };
    }

    /// True if the connection has what it was told to prepare.
    pub(super) fn is_trusted(&self) -> bool {
        !matches!(self.trust, Trust::Lost(_))
    }

    /// True if a request that may be under way may take names away.
    pub(super) fn may_lose_names(&self) -> bool {
        self.lost_by().is_some() || self.in_sql.is_some()
    }

    /// The last request that may take every statement away, if it may be under way.
    pub(super) fn lost_by(&self) -> Option<u64> {
        match self.trust {
            Trust::Lost(request) => Some(request),
            Trust::Full | Trust::Portal => None,
        }
    }

    /// The batch is asked again when the upstream has answered its `Sync`.
    pub(super) fn replay_at_ready(&mut self) {
        self.replay = Replay::AtReady;
    }

    /// The upstream has answered a `Sync` of ours.
    pub(super) fn is_ready(&mut self) {
        if self.replay == Replay::AtReady {
            self.replay = Replay::Due;
        }
    }

    /// True while a batch is to be asked again.
    pub(super) fn replays(&self) -> bool {
        self.replay != Replay::None
    }

    /// True if it is to be asked now, which is said once.
    pub(super) fn take_replay(&mut self) -> bool {
        let is_due = self.replay == Replay::Due;
        if is_due {
            self.replay = Replay::None;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::facts::{SessionFacts, tests::facts};
    use crate::settings::Parameters;

    fn statements() -> Statements {
        Statements::new(Arc::new(Interner::new(7)))
    }

    fn known(text: &[u8]) -> UnnamedText {
        UnnamedText::Known([text, b"\0\0\0"].concat())
    }

    #[test]
    fn names_are_given_taken_back_and_forgotten() {
        let mut statements = statements();
        let statement = statements.interner().intern(b"x\0\0\0", "c", &Parameters::default());
        let named = |request| {
            Some(NamedStatement { statement: statement.clone(), request, told: Description::Soon(request) })
        };
        assert!(statements.put(b"a", named(1)).is_none());
        assert_eq!((statements.count(), statements.bytes()), (1, statement.cost()));
        assert_eq!(statements.name_given_by(1), Some(&b"a"[..]));
        assert!(statements.given_by(1).is_some_and(|given| Arc::ptr_eq(&given.statement, &statement)));
        let before = statements.put(b"a", None);
        assert!(statements.named(b"a").is_none() && statements.given_by(1).is_none());
        statements.put(b"a", before);
        statements.put(b"b", named(2));
        statements.forget_before(1);
        assert!(statements.named(b"a").is_none() && statements.named(b"b").is_some());
    }

    #[test]
    fn the_unnamed_statement_is_what_the_last_request_made_it() {
        let mut statements = statements();
        statements.replace_unnamed(1, known(b"one"));
        let one = statements.replace_unnamed(2, known(b"two"));
        assert!(statements.restore_unnamed(3, Unnamed::default()).is_some(), "it is by another by now");
        assert_eq!((statements.stamp(), statements.unnamed().text()), (2, Some(&b"two\0\0\0"[..])));
        assert!(statements.restore_unnamed(2, one).is_none());
        assert_eq!((statements.stamp(), statements.unnamed().text()), (1, Some(&b"one\0\0\0"[..])));
        statements.drop_unnamed();
        assert!(matches!(statements.unnamed(), UnnamedText::None));
        assert!(statements.take_unnamed_memory().is_empty());
    }

    #[test]
    fn the_unnamed_statement_is_looked_at_once_for_each_way_of_reading_and_each_catalog() {
        let mut statements = statements();
        let mut facts = facts();
        let looks = |statements: &mut Statements, facts: &SessionFacts| {
            let mut looked = 0;
            let seen = statements.see_unnamed(facts.lex_context(), |text| {
                assert_eq!(text, b"one");
                looked += 1;
                Some(Box::new(Effects::opaque()))
            });
            (seen.is_some(), looked)
        };
        assert_eq!(looks(&mut statements, &facts), (false, 0), "there is none");
        statements.replace_unnamed(1, known(b"one"));
        assert_eq!(looks(&mut statements, &facts), (true, 1));
        assert_eq!(looks(&mut statements, &facts), (true, 0));
        facts.note_effects(&Effects::opaque(), 1);
        assert_eq!(looks(&mut statements, &facts), (true, 1));
        facts.set_catalog(|_| Some(Arc::default()));
        assert_eq!(looks(&mut statements, &facts), (true, 1));
        statements.replace_unnamed(2, known(b"one"));
        assert_eq!(looks(&mut statements, &facts), (true, 1));
    }

    #[test]
    fn what_may_deallocate_all_is_not_trusted_until_all_is_answered() {
        let mut statements = statements();
        statements.note_effects(&Effects::default(), 1);
        statements.executes(1);
        assert!(statements.is_trusted() && statements.lost_by().is_none());
        statements.note_effects(&Effects { deallocates_all: true, ..Effects::default() }, 2);
        statements.note_effects(&Effects::default(), 3);
        assert!(!statements.is_trusted() && statements.lost_by() == Some(2));
        statements.executes(4);
        assert_eq!(statements.lost_by(), Some(4));
        // Its portal may still be there, and be executed again.
        statements.all_is_answered(Transaction::Open);
        assert!(statements.is_trusted() && statements.lost_by().is_none());
        statements.executes(5);
        assert_eq!(statements.lost_by(), Some(5));
        statements.all_is_answered(Transaction::None);
        statements.executes(6);
        assert!(statements.is_trusted());
    }

    #[test]
    fn a_batch_is_asked_again_once_behind_its_sync() {
        let mut statements = statements();
        statements.is_ready();
        assert!(!statements.replays() && !statements.take_replay());
        statements.replay_at_ready();
        assert!(statements.replays() && !statements.take_replay());
        statements.is_ready();
        assert!(statements.take_replay() && !statements.take_replay() && !statements.replays());
    }
}
