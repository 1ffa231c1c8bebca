//! Prepared statements: one identity for every text, its name on the upstream connections, and what each side
//! knows of it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

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
/// How many bytes of statements may be kept before those that nobody has any more are looked for.
const SWEEP_AT: usize = 64 << 10;

/// A text with its parameter types. Two with an equal text, equal types, and equal settings that could change
/// their meaning are one: compared by the bytes, never only by a hash.
#[derive(Debug)]
pub struct Statement {
    id: u64,
    /// The query, NUL, the types: the rest of a `Parse` message behind its name.
    body: Box<[u8]>,
    effects: Option<Box<Effects>>,
    /// What it names in the catalog that it was last looked up in.
    mentions: Mutex<Mentions>,
    name: Box<str>,
    /// How often it was found that what connections had prepared of it is of no use any more.
    outdated: AtomicU64,
}

impl Statement {
    /// What it is called on upstream connections.
    pub fn upstream_name(&self) -> &str {
        &self.name
    }

    /// What a `Parse` message has behind the name.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// What it may do to a session.
    pub fn effects(&self) -> Option<&Effects> {
        self.effects.as_deref()
    }

    /// What it may do by what it names that is in a catalog.
    pub fn mentions(&self, catalog: &Arc<Catalog>) -> Option<Box<Effects>> {
        let mut known = self.mentions.lock();
        match &*known {
            Some((of, effects)) if Arc::ptr_eq(of, catalog) => effects.clone(),
            _ => {
                let effects = catalog.mentioned(&self.body);
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
    statements: DashMap<Box<[u8]>, Weak<Statement>>,
    next: AtomicU64,
    /// Of all keys together, those of statements that nobody has any more included.
    bytes: AtomicUsize,
    sweep_at: AtomicUsize,
    /// Of all long unnamed statements together.
    long: Arc<AtomicUsize>,
    prefix: String,
}

impl Interner {
    /// Empty, with a random part in its names so that no client can guess one.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new() -> Result<Self, getrandom::Error> {
        Ok(Self {
            statements: DashMap::new(),
            next: AtomicU64::new(1),
            bytes: AtomicUsize::new(0),
            sweep_at: AtomicUsize::new(SWEEP_AT),
            long: Arc::default(),
            prefix: format!("_pgusher_{:016x}_", getrandom::u64()?),
        })
    }

    /// The one statement of this text. `scope` are the session's settings that are not reported.
    pub fn intern(&self, body: &[u8], scope: &Parameters) -> Arc<Statement> {
        // The length first: where the body ends and the scope begins must not be a matter of reading.
        let mut key = body.len().to_be_bytes().to_vec();
        key.extend_from_slice(body);
        for (name, value) in scope.iter() {
            key.push(0);
            key.extend_from_slice(name);
            key.push(b'=');
            key.extend_from_slice(value);
        }
        let key = key.into_boxed_slice();
        let length = key.len();
        self.sweep();
        let mut entry = self.statements.entry(key).or_default();
        if let Some(statement) = entry.upgrade() {
            return statement;
        }
        let text = crate::wire::cstr(body).map_or(body, |(text, _)| text);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let name = self.name(id).into();
        let (effects, outdated) = (sql::effects(text), AtomicU64::new(0));
        let (body, mentions) = (body.into(), Mutex::default());
        let statement = Arc::new(Statement { id, body, effects, mentions, name, outdated });
        *entry = Arc::downgrade(&statement);
        self.bytes.fetch_add(length, Ordering::Relaxed);
        statement
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

    /// Forgets statements that nobody has any more, each time what is kept has doubled.
    fn sweep(&self) {
        if self.bytes.load(Ordering::Relaxed) > self.sweep_at.load(Ordering::Relaxed) {
            let mut kept = 0;
            self.statements.retain(|key, statement| {
                let lives = statement.strong_count() > 0;
                kept += if lives { key.len() } else { 0 };
                lives
            });
            self.bytes.store(kept, Ordering::Relaxed);
            self.sweep_at.store((2 * kept).max(SWEEP_AT), Ordering::Relaxed);
        }
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
#[derive(Debug, Default)]
pub struct Names(HashMap<Box<[u8]>, Named>);

fn significant(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME_LENGTH)]
}

impl Names {
    /// Under this name.
    pub fn get(&self, name: &[u8]) -> Option<&Named> {
        self.0.get(significant(name))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Gives a name a statement, or takes it away; answers what it had.
    pub fn put(&mut self, name: &[u8], named: Option<Named>) -> Option<Named> {
        match named {
            Some(named) => self.0.insert(significant(name).into(), named),
            None => self.0.remove(significant(name)),
        }
    }

    /// The name that this request gave.
    pub fn given_by(&self, request: u64) -> Option<&[u8]> {
        self.0.iter().find(|(_, named)| named.request == request).map(|(name, _)| &**name)
    }

    /// Everything made before this request is gone.
    pub fn forget_before(&mut self, request: u64) {
        self.0.retain(|_, named| named.request > request);
    }
}

/// What one upstream connection has prepared; the least recently used go first.
#[derive(Debug, Default)]
pub struct Prepared {
    known: HashMap<u64, Use>,
    clock: u64,
}

#[derive(Debug)]
struct Use {
    last: u64,
    /// The request of the present lease that prepared it; 0 if an earlier lease did.
    request: u64,
    edition: u64,
}

/// Whether a connection has a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It does not.
    No,
    /// Prepared before it was outdated.
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
        self.known.insert(id, Use { last: self.clock, request, edition });
        if self.known.len() <= limit.max(1) {
            return None;
        }
        let oldest =
            self.known.iter().filter(|(k, _)| **k != id).min_by_key(|(_, u)| u.last).map(|(k, _)| *k)?;
        self.known.remove(&oldest);
        Some(oldest)
    }

    /// One that it has, if it has any.
    pub fn any(&self) -> Option<u64> {
        self.known.keys().next().copied()
    }

    /// It does not have it after all.
    pub fn remove(&mut self, id: u64) {
        self.known.remove(&id);
    }

    /// Everything prepared before this request of the present lease is gone.
    pub fn forget_before(&mut self, request: u64) {
        self.known.retain(|_, u| u.request > request);
    }

    /// The lease is over: request numbers of the next one start anew.
    pub fn end_lease(&mut self) {
        if self.known.values().any(|u| u.request != 0) {
            self.known.values_mut().for_each(|u| u.request = 0);
        }
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

    #[test]
    fn equal_texts_are_one_statement_and_scopes_part_them() {
        let interner = Interner::new().unwrap();
        let none = Parameters::default();
        let scope = none.with(b"search_path", b"x");
        let one = interner.intern(b"select 1\0\0\0", &none);
        assert!(Arc::ptr_eq(&one, &interner.intern(b"select 1\0\0\0", &none)));
        assert!(!Arc::ptr_eq(&one, &interner.intern(b"select 1\0\0\0", &scope)));
        assert!(!Arc::ptr_eq(&one, &interner.intern(b"select 2\0\0\0", &none)));
    }

    #[test]
    fn statements_that_nobody_has_are_swept() {
        let interner = Interner::new().unwrap();
        for i in 0..5000 {
            interner.intern(format!("select {i}\0\0\0").as_bytes(), &Parameters::default());
        }
        assert!(interner.statements.len() < 2048, "{}", interner.statements.len());
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
    fn an_outdated_statement_is_held_no_longer() {
        let interner = Interner::new().unwrap();
        let statement = interner.intern(b"x\0\0\0", &Parameters::default());
        let mut prepared = Prepared::default();
        assert_eq!(prepared.hold(&statement), Held::No);
        prepared.insert(statement.id(), statement.edition(), 1, 2);
        assert_eq!(prepared.hold(&statement), Held::Yes);
        statement.outdate();
        assert_eq!(prepared.hold(&statement), Held::Outdated);
    }

    #[test]
    fn names_differ_in_their_first_63_bytes() {
        let interner = Interner::new().unwrap();
        let statement = interner.intern(b"x\0\0\0", &Parameters::default());
        let mut names = Names::default();
        let long = [b'a'; 70];
        names.put(&long, Some(Named { statement, request: 1 }));
        assert!(names.get(&long[..63]).is_some() && names.get(&long[..62]).is_none());
    }
}
