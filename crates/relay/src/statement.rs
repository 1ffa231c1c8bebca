//! Prepared statements: one identity for every text, its name on the upstream connections, and what each side
//! knows of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use dashmap::DashMap;
use parking_lot::Mutex;

use super::Catalog;
use super::settings::Parameters;
use super::sql::{self, Effects};

/// PostgreSQL tells statement names apart by this many bytes.
const NAME_LENGTH: usize = 63;
/// The longest unnamed statement that is remembered from one transaction to the next, and how many bytes of those longer
/// than most are remembered in all sessions together.
const MAX_LONG: usize = 2 << 20;
const MAX_ALL_LONG: usize = 64 << 20;

/// How many bytes of named statements one session may have, and all of them together: over that, those who have more than
/// their share are refused. A text that several have counts for each of them, and once in all.
const MAX_OF_SESSION: usize = 64 << 20;
const MAX_OF_ALL: usize = 1 << 30;
/// What a statement costs beside its text.
const OVERHEAD: usize = 512;

/// A text with its parameter types. Two with an equal text, equal types, and equal settings that could change
/// their meaning are one: compared by the bytes, never only by a hash.
#[derive(Debug)]
pub struct Statement {
    id: u64,
    /// The length of the body; the body: the query, NUL, the types, which is the rest of a `Parse` message behind its name;
    /// the connection; the settings.
    key: Arc<[u8]>,
    length: usize,
    effects: Option<Box<Effects>>,
    /// Whether it may mean something else where texts are read otherwise than usual: looked at once, as texts are long.
    strange: OnceLock<bool>,
    /// What it names in the catalog that it was last looked up in.
    mentions: Mutex<Mentions>,
    name: Box<str>,
    /// How often it was found that what connections had prepared of it is of no use any more.
    outdated: AtomicU64,
    all: Arc<Statements>,
}

/// Those of all sessions, by their keys.
#[derive(Debug, Default)]
struct Statements {
    known: DashMap<Arc<[u8]>, Weak<Statement>>,
    bytes: AtomicUsize,
    /// How many sessions have any.
    holders: AtomicUsize,
}

impl Drop for Statement {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.key.len() + OVERHEAD, Ordering::Relaxed);
        // Another of the same text may have taken the place meanwhile.
        self.all.known.remove_if(&self.key, |_, statement| statement.strong_count() == 0);
    }
}

impl Statement {
    /// What it is called on upstream connections.
    pub fn upstream_name(&self) -> &str {
        &self.name
    }

    /// What a `Parse` message has behind the name.
    pub fn body(&self) -> &[u8] {
        &self.key[LENGTH..LENGTH + self.length]
    }

    /// How many bytes it costs.
    pub fn cost(&self) -> usize {
        self.key.len() + OVERHEAD
    }

    /// What it may do to a session.
    pub fn effects(&self) -> Option<&Effects> {
        self.effects.as_deref()
    }

    /// The same where texts are not read as usual.
    pub fn effects_unread(&self) -> Option<Box<Effects>> {
        let look = || sql::is_suspicious(self.body()) && !sql::reads_alike(self.body());
        match *self.strange.get_or_init(look) {
            true => Some(Effects::unread(self.effects())),
            false => self.effects.clone(),
        }
    }

    /// Whether it surely has neither parameters nor columns: PostgreSQL describes it so in a failed transaction, too.
    pub fn answers_nothing(&self) -> bool {
        let Some((text, types)) = wire::cstr(self.body()) else { return false };
        if types != [0; 2] || text.contains(&b'$') {
            return false;
        }
        let text = text.trim_ascii().to_ascii_lowercase();
        let word = text.split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
        let is_written = matches!(word, b"insert" | b"update" | b"delete");
        text.is_empty()
            || is_written && memchr::memmem::find(&text, b"returning").is_none()
            || WITHOUT_COLUMNS.iter().any(|known| known.as_bytes() == word)
    }

    /// What it may do by what it names that is in a catalog. A very long one is not looked through, as a catalog may change
    /// often: it may name anything. How many bytes were gone through is added.
    pub fn mentions(&self, catalog: &Arc<Catalog>, gone_through: &mut usize) -> Option<Box<Effects>> {
        if self.length > MAX_MENTIONING {
            return Some(Box::new(Effects::opaque()));
        }
        let mut known = self.mentions.lock();
        match &*known {
            Some((of, effects)) if Arc::ptr_eq(of, catalog) => effects.clone(),
            _ => {
                *gone_through += self.body().len();
                let effects = catalog.mentioned(self.body());
                *known = Some((catalog.clone(), effects.clone()));
                effects
            }
        }
    }

    /// Its number, which no other statement of this process has or had.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What any connection has prepared of it is of no use any more.
    pub fn outdate(&self) {
        self.outdated.fetch_add(1, Ordering::Relaxed);
    }

    /// Differs from what it was when a connection prepared it, if that is of no use any more.
    pub fn edition(&self) -> u64 {
        self.outdated.load(Ordering::Relaxed)
    }
}

type Mentions = Option<(Arc<Catalog>, Option<Box<Effects>>)>;

/// All statements that any session has.
#[derive(Debug)]
pub struct Interner {
    statements: Arc<Statements>,
    next: AtomicU64,
    /// Of all long unnamed statements together.
    long: Arc<AtomicUsize>,
    /// Of all messages that sessions wait for the rest of.
    gathered: Arc<Gathering>,
    prefix: String,
}

/// The first words of statements that never have columns.
const WITHOUT_COLUMNS: [&str; 33] = [
    "abort",
    "alter",
    "analyze",
    "begin",
    "checkpoint",
    "close",
    "cluster",
    "comment",
    "commit",
    "copy",
    "create",
    "deallocate",
    "declare",
    "discard",
    "do",
    "drop",
    "end",
    "grant",
    "listen",
    "load",
    "lock",
    "move",
    "notify",
    "prepare",
    "refresh",
    "reindex",
    "release",
    "reset",
    "revoke",
    "rollback",
    "savepoint",
    "set",
    "truncate",
];
/// The longest statement that is looked through again for what it names whenever the catalog is another.
pub(super) const MAX_MENTIONING: usize = 256 << 10;
/// Messages of clients that are kept because they cannot go on yet, or are not there whole: of all sessions.
#[derive(Debug, Default)]
pub struct Gathering {
    bytes: AtomicUsize,
    sessions: AtomicUsize,
}

/// What one session has of them, counted as long as this lives.
#[derive(Debug)]
pub struct Gathered {
    own: usize,
    all: Arc<Gathering>,
}

impl Gathering {
    /// One session more that keeps some.
    pub fn enter(self: &Arc<Self>) -> Gathered {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Gathered { own: 0, all: self.clone() }
    }
}

impl Gathered {
    /// So many more; false if that is too much, and more than this session's share.
    pub fn add(&mut self, bytes: usize) -> bool {
        self.own += bytes;
        let all = self.all.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        all <= MAX_GATHERED || self.own <= MAX_GATHERED / self.all.sessions.load(Ordering::Relaxed).max(1)
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.own, Ordering::Relaxed);
        self.all.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many bytes of those may be kept of all sessions: over that, those who have more than their share are refused.
const MAX_GATHERED: usize = 512 << 20;
const LENGTH: usize = size_of::<usize>();

impl Interner {
    /// Empty, with this random number in its names so that no client can guess one.
    pub fn new(random: u64) -> Self {
        Self {
            statements: Arc::default(),
            next: AtomicU64::new(1),
            long: Arc::default(),
            gathered: Arc::default(),
            prefix: format!("_pgusher_{random:016x}_"),
        }
    }

    /// The one statement of this text on this connection of the configuration: no environment has to do with what is known of
    /// another's. `scope` are the session's settings that belong to what it means.
    pub fn intern(&self, body: &[u8], connection: &str, scope: &Parameters) -> Arc<Statement> {
        // The length first: where the body ends and the scope begins must not be a matter of reading.
        let mut key = body.len().to_be_bytes().to_vec();
        key.extend_from_slice(body);
        key.extend_from_slice(connection.as_bytes());
        for (name, value) in scope.iter() {
            key.push(0);
            key.extend_from_slice(name);
            key.push(b'=');
            key.extend_from_slice(value);
        }
        let key: Arc<[u8]> = key.into();
        let mut entry = self.statements.known.entry(key.clone()).or_default();
        if let Some(statement) = entry.upgrade() {
            return statement;
        }
        let text = wire::cstr(body).map_or(body, |(text, _)| text);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (effects, outdated) = (sql::effects(text), AtomicU64::new(0));
        let statement = Arc::new(Statement {
            id,
            key,
            length: body.len(),
            effects,
            strange: OnceLock::new(),
            mentions: Mutex::default(),
            name: self.name(id).into(),
            outdated,
            all: self.statements.clone(),
        });
        *entry = Arc::downgrade(&statement);
        self.statements.bytes.fetch_add(statement.cost(), Ordering::Relaxed);
        statement
    }

    /// Whether a session that has so many bytes of statements may have one more, of this length.
    pub fn may_add(&self, own: usize, length: usize) -> bool {
        let cost = length + OVERHEAD;
        let share = MAX_OF_ALL / self.statements.holders.load(Ordering::Relaxed).max(1);
        let all = self.statements.bytes.load(Ordering::Relaxed) + cost;
        own + cost <= MAX_OF_SESSION && (all <= MAX_OF_ALL || own + cost <= share)
    }

    /// A session has no names yet.
    pub fn names(&self) -> Names {
        self.statements.holders.fetch_add(1, Ordering::Relaxed);
        Names { known: BTreeMap::new(), given: BTreeMap::new(), bytes: 0, all: self.statements.clone() }
    }

    /// What is counted of messages of which the rest is waited for.
    pub fn gathered(&self) -> &Arc<Gathering> {
        &self.gathered
    }

    /// Whether a long unnamed statement of this length can be remembered.
    pub fn has_room(&self, length: usize) -> bool {
        length <= MAX_LONG && self.long.load(Ordering::Relaxed) + length <= MAX_ALL_LONG
    }

    /// Remembers one, if it can be.
    pub fn keep_long(&self, text: &[u8]) -> Option<LongText> {
        if !self.has_room(text.len()) {
            return None;
        }
        self.long.fetch_add(text.len(), Ordering::Relaxed);
        Some(LongText { text: text.into(), all: self.long.clone() })
    }

    /// What a statement is called on upstream connections.
    pub fn name(&self, id: u64) -> String {
        format!("{}{id:x}", self.prefix)
    }

    /// Where in a text the name of a statement on upstream connections stands, if any does.
    pub fn find_name(&self, text: &[u8]) -> Option<Range<usize>> {
        let start = memchr::memmem::find(text, self.prefix.as_bytes())?;
        let number = &text[start + self.prefix.len()..];
        let length = number.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        Some(start..start + self.prefix.len() + length)
    }

    /// True for a name that only pgusher may use.
    pub fn is_reserved(&self, name: &[u8]) -> bool {
        name.starts_with(self.prefix.as_bytes())
    }
}

/// A statement under a client's name.
#[derive(Debug, Clone)]
pub struct Named {
    /// Which.
    pub statement: Arc<Statement>,
    /// The request that made it, in the order of the session's requests.
    pub request: u64,
}

/// The unnamed statement of one session.
#[derive(Debug, Default)]
pub struct Unnamed {
    /// The request that made it what it is.
    pub stamp: u64,
    /// What its `Parse` had behind the name.
    pub text: UnnamedText,
}

/// See [`Unnamed`].
#[derive(Debug, Default)]
pub enum UnnamedText {
    /// There is no unnamed statement.
    #[default]
    None,
    /// It can be prepared on any connection.
    Known(Vec<u8>),
    /// And so can this one, which is long.
    Long(LongText),
    /// It was too long to be remembered: only the connection knows it, which the session keeps.
    OnConnection,
}

impl UnnamedText {
    /// What its `Parse` had behind the name, if that is remembered.
    pub fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Known(text) => Some(text),
            Self::Long(long) => Some(&long.text),
            Self::None | Self::OnConnection => None,
        }
    }
}

/// A long text, counted as long as it lives.
#[derive(Debug)]
pub struct LongText {
    text: Box<[u8]>,
    all: Arc<AtomicUsize>,
}

impl Drop for LongText {
    fn drop(&mut self) {
        self.all.fetch_sub(self.text.len(), Ordering::Relaxed);
    }
}

/// The names of one session.
#[derive(Debug)]
pub struct Names {
    /// Compared and not hashed: most sessions have few, and clients choose them.
    known: BTreeMap<Arc<[u8]>, Named>,
    /// The same, by the requests that gave them.
    given: BTreeMap<u64, Arc<[u8]>>,
    bytes: usize,
    all: Arc<Statements>,
}

impl Drop for Names {
    fn drop(&mut self) {
        self.all.holders.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What PostgreSQL takes of a name.
pub fn significant(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME_LENGTH)]
}

impl Names {
    /// Under this name.
    pub fn get(&self, name: &[u8]) -> Option<&Named> {
        self.known.get(significant(name))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// How many bytes their statements have.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives a name a statement, or takes it away; answers what it had.
    pub fn put(&mut self, name: &[u8], named: Option<Named>) -> Option<Named> {
        self.bytes += named.as_ref().map_or(0, |named| named.statement.cost());
        let before = self.known.remove(significant(name));
        self.bytes -= before.as_ref().map_or(0, |named| named.statement.cost());
        before.iter().for_each(|named| drop(self.given.remove(&named.request)));
        if let Some(named) = named {
            let name: Arc<[u8]> = significant(name).into();
            self.given.insert(named.request, name.clone());
            self.known.insert(name, named);
        }
        before
    }

    /// The name that this request gave.
    pub fn given_by(&self, request: u64) -> Option<&[u8]> {
        self.given.get(&request).map(|name| &**name)
    }

    /// Everything made before this request is gone.
    pub fn forget_before(&mut self, request: u64) {
        self.known.retain(|_, named| named.request > request);
        self.given.retain(|given, _| *given > request);
        self.bytes = self.known.values().map(|named| named.statement.cost()).sum();
    }
}

/// The edition of a statement that a connection may have lost: no other one.
const DOUBTED: u64 = u64::MAX;

/// What one upstream connection has prepared; the least recently used go first.
#[derive(Debug, Default)]
pub struct Prepared {
    known: BTreeMap<u64, Use>,
    /// When each was used, at the latest, the longest ago first: as it was when that was looked at.
    uses: BinaryHeap<Reverse<(u64, u64)>>,
    clock: u64,
    /// Which lease it is: requests are numbered within one.
    lease: u64,
}

#[derive(Debug)]
struct Use {
    last: u64,
    /// The request that prepared it, and in which lease.
    request: u64,
    lease: u64,
    edition: u64,
}

/// Whether a connection has a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It does not.
    No,
    /// Prepared before it was outdated; or it may have lost it.
    Outdated,
    /// It does.
    Yes,
}

impl Prepared {
    /// Whether it has one of this number; that counts as a use.
    pub fn touch(&mut self, id: u64) -> bool {
        self.used(id).is_some()
    }

    /// Whether it has this one; that counts as a use.
    pub fn hold(&mut self, statement: &Statement) -> Held {
        match self.used(statement.id) {
            None => Held::No,
            Some(edition) if edition != statement.edition() => Held::Outdated,
            Some(_) => Held::Yes,
        }
    }

    fn used(&mut self, id: u64) -> Option<u64> {
        self.clock += 1;
        let used = self.known.get_mut(&id)?;
        used.last = self.clock;
        Some(used.edition)
    }

    /// It has this edition of it now. Answers which one must go to keep to the limit.
    pub fn insert(&mut self, id: u64, edition: u64, request: u64, limit: usize) -> Option<u64> {
        self.clock += 1;
        self.known.insert(id, Use { last: self.clock, request, lease: self.lease, edition });
        if self.uses.len() > 2 * self.known.len() {
            // Of many that are there no more.
            self.uses = self.known.iter().map(|(id, used)| Reverse((used.last, *id))).collect();
        } else {
            self.uses.push(Reverse((self.clock, id)));
        }
        if self.known.len() <= limit.max(1) { None } else { self.take_oldest() }
    }

    /// Takes out the one that was not used for longest. Each use is looked at once, when its turn has come.
    fn take_oldest(&mut self) -> Option<u64> {
        loop {
            let Reverse((when, id)) = self.uses.pop()?;
            match self.known.get(&id) {
                Some(used) if used.last == when => {
                    self.known.remove(&id);
                    return Some(id);
                }
                Some(used) if used.last > when => self.uses.push(Reverse((used.last, id))),
                _ => {}
            }
        }
    }

    /// One that it has, if it has any: this one, if it can be.
    pub fn any(&self, rather: u64) -> Option<u64> {
        let has = |used: &Use| used.edition != DOUBTED;
        let any = || self.known.iter().find(|(_, used)| has(used)).map(|(id, _)| *id);
        self.known.get(&rather).is_some_and(has).then_some(rather).or_else(any)
    }

    /// It may have none of them any more.
    pub fn doubt_all(&mut self) {
        self.known.values_mut().for_each(|used| used.edition = DOUBTED);
    }

    /// It does not have it after all.
    pub fn remove(&mut self, id: u64) {
        self.known.remove(&id);
    }

    /// Everything prepared before this request of the present lease is gone.
    pub fn forget_before(&mut self, request: u64) {
        let lease = self.lease;
        self.known.retain(|_, u| u.lease == lease && u.request > request);
    }

    /// The lease is over: request numbers of the next one start anew.
    pub fn end_lease(&mut self) {
        self.lease += 1;
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if it has none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of many may keep its share, and no more, however small what each has is beside the whole.
    #[test]
    fn over_the_total_of_long_messages_those_with_more_than_their_share_are_refused() {
        let all: Arc<Gathering> = Arc::default();
        let mut many: Vec<Gathered> = (0..200).map(|_| all.enter()).collect();
        let each = 5 << 20;
        let kept = many.iter_mut().filter_map(|one| one.add(each).then_some(())).count();
        assert!(kept * each <= MAX_GATHERED && kept * each > MAX_GATHERED - each, "{kept}");
        let mut little = all.enter();
        assert!(little.add(1 << 20));
        drop((many, little));
        assert!(all.enter().add(MAX_GATHERED));
    }

    #[test]
    fn equal_texts_are_one_statement_and_scopes_part_them() {
        let interner = Interner::new(7);
        let none = Parameters::default();
        let scope = none.with(b"search_path", b"x");
        let one = interner.intern(b"select 1\0\0\0", "c", &none);
        assert!(Arc::ptr_eq(&one, &interner.intern(b"select 1\0\0\0", "c", &none)));
        assert!(!Arc::ptr_eq(&one, &interner.intern(b"select 1\0\0\0", "c", &scope)));
        assert!(!Arc::ptr_eq(&one, &interner.intern(b"select 1\0\0\0", "of prod", &none)));
        assert!(!Arc::ptr_eq(&one, &interner.intern(b"select 2\0\0\0", "c", &none)));
    }

    #[test]
    fn a_statement_is_gone_with_the_last_who_has_it() {
        let interner = Interner::new(7);
        let none = Parameters::default();
        for i in 0..5000 {
            interner.intern(format!("select {i}\0\0\0").as_bytes(), "c", &none);
        }
        let (one, other) = (interner.intern(b"x\0\0\0", "c", &none), interner.intern(b"x\0\0\0", "c", &none));
        drop(one);
        assert_eq!(interner.statements.known.len(), 1);
        assert_eq!(interner.statements.bytes.load(Ordering::Relaxed), other.cost());
        drop(other);
        assert_eq!(interner.statements.known.len(), 0);
        assert_eq!(interner.statements.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn over_the_total_only_those_with_more_than_their_share_are_refused() {
        let interner = Interner::new(7);
        let names: Vec<Names> = (0..32).map(|_| interner.names()).collect();
        assert!(interner.may_add(0, MAX_OF_SESSION - OVERHEAD));
        assert!(!interner.may_add(1, MAX_OF_SESSION - OVERHEAD));
        interner.statements.bytes.store(MAX_OF_ALL, Ordering::Relaxed);
        let share = MAX_OF_ALL / names.len();
        assert!(interner.may_add(0, share - OVERHEAD) && !interner.may_add(1, share - OVERHEAD));
        drop(names);
        assert_eq!(interner.statements.holders.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut prepared = Prepared::default();
        assert_eq!(prepared.insert(1, 0, 1, 2), None);
        assert_eq!(prepared.insert(2, 0, 2, 2), None);
        assert!(prepared.touch(1));
        assert_eq!(prepared.insert(3, 0, 3, 2), Some(2));
        assert!(prepared.touch(1) && prepared.touch(3) && !prepared.touch(2));
    }

    #[test]
    fn a_statement_that_may_be_lost_is_prepared_again_and_is_not_one_that_is_there() {
        let interner = Interner::new(7);
        let none = Parameters::default();
        let (one, other) = (interner.intern(b"x\0\0\0", "c", &none), interner.intern(b"y\0\0\0", "c", &none));
        let mut prepared = Prepared::default();
        assert_eq!(prepared.any(one.id()), None);
        prepared.insert(one.id(), one.edition(), 1, 9);
        prepared.doubt_all();
        assert_eq!((prepared.hold(&one), prepared.any(one.id())), (Held::Outdated, None));
        prepared.insert(other.id(), other.edition(), 2, 9);
        assert_eq!((prepared.hold(&other), prepared.any(one.id())), (Held::Yes, Some(other.id())));
        prepared.insert(one.id(), one.edition(), 3, 9);
        assert_eq!((prepared.hold(&one), prepared.any(one.id())), (Held::Yes, Some(one.id())));
    }

    #[test]
    fn an_outdated_statement_is_held_no_longer() {
        let interner = Interner::new(7);
        let statement = interner.intern(b"x\0\0\0", "c", &Parameters::default());
        let mut prepared = Prepared::default();
        assert_eq!(prepared.hold(&statement), Held::No);
        prepared.insert(statement.id(), statement.edition(), 1, 2);
        assert_eq!(prepared.hold(&statement), Held::Yes);
        statement.outdate();
        assert_eq!(prepared.hold(&statement), Held::Outdated);
    }

    #[test]
    fn names_differ_in_their_first_63_bytes() {
        let interner = Interner::new(7);
        let statement = interner.intern(b"x\0\0\0", "c", &Parameters::default());
        let mut names = interner.names();
        let long = [b'a'; 70];
        names.put(&long, Some(Named { statement, request: 1 }));
        assert!(names.get(&long[..63]).is_some() && names.get(&long[..62]).is_none());
    }

    #[test]
    fn the_name_that_a_request_gave_is_found_by_its_number() {
        let interner = Interner::new(7);
        let statement = interner.intern(b"x\0\0\0", "c", &Parameters::default());
        let named = |request| Some(Named { statement: statement.clone(), request });
        let mut names = interner.names();
        names.put(b"a", named(1));
        names.put(b"b", named(2));
        assert_eq!((names.given_by(1), names.given_by(2)), (Some(&b"a"[..]), Some(&b"b"[..])));
        // Given anew, and taken back again.
        let before = names.put(b"a", named(3));
        assert_eq!((names.given_by(1), names.given_by(3)), (None, Some(&b"a"[..])));
        names.put(b"a", before);
        assert_eq!((names.given_by(1), names.given_by(3)), (Some(&b"a"[..]), None));
        assert_eq!((names.count(), names.bytes()), (2, 2 * statement.cost()));
        names.forget_before(1);
        assert_eq!((names.given_by(1), names.given_by(2)), (None, Some(&b"b"[..])));
        names.put(b"b", None);
        assert_eq!((names.count(), names.bytes(), names.given.len()), (0, 0, 0));
    }
}
