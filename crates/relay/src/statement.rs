//! Prepared statements: one identity for every text, its name on the upstream connections, and what each side
//! knows of it.

mod names;
mod prepared;
mod shape;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use dashmap::DashMap;
use parking_lot::Mutex;

pub use names::{Description, LongText, NamedStatement, Names, Unnamed, UnnamedText, significant};
pub use prepared::{Held, PreparedStatements};
pub use shape::{Described, Lesson, Owner, Shape};

use super::Catalog;
use super::settings::Parameters;
use super::sql::{self, Effects};

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
    /// The length of the body; the body: the query, NUL, the types, which is the rest of a `Parse` message behind its name;
    /// the connection; the settings.
    key: Arc<[u8]>,
    length: usize,
    effects: Option<Box<Effects>>,
    /// Whether it may mean something else where texts are read otherwise than usual: looked at once, as texts are long.
    strange: OnceLock<bool>,
    /// What it names in the catalog that it was last looked up in.
    mentions: Mutex<Mentions>,
    /// What was told last of it.
    shape: Mutex<Option<Arc<Shape>>>,
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

    /// Whether PostgreSQL looks at what it uses again when that has changed, and holds it to its columns: not utility statements that
    /// answer rows (`FETCH`, `EXECUTE`, `SHOW`; `stmt_requires_parse_analysis` in parser/analyze.c).
    pub fn has_fixed_columns(&self) -> bool {
        let text = wire::cstr(self.body()).map_or(self.body(), |(text, _)| text).trim_ascii_start();
        let word = text.split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
        ![&b"fetch"[..], b"execute", b"show"].iter().any(|known| known.eq_ignore_ascii_case(word))
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

    /// What was described is its shape: all who were told the same of it share one.
    pub fn shaped(&self, described: Described, interner: &Interner) -> Arc<Shape> {
        let mut last = self.shape.lock();
        if let Some(shape) = last.as_ref().filter(|shape| shape.is(&described)) {
            return shape.clone();
        }
        let shape = Arc::new(Shape::new(interner.number(), described, Owner::All));
        *last = Some(shape.clone());
        shape
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
        let statement = Arc::new(Statement {
            key,
            length: body.len(),
            effects: sql::effects(text),
            strange: OnceLock::new(),
            mentions: Mutex::default(),
            shape: Mutex::default(),
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
        Names::new(self.statements.clone())
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
        Some(LongText::new(text, self.long.clone()))
    }

    /// A number under which something can be prepared: no other of this process has it, or had it.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// What was described, shared with nobody.
    pub fn own_shape(&self, described: Described) -> Arc<Shape> {
        Arc::new(Shape::new(self.number(), described, Owner::Session))
    }

    /// What is prepared under a number is called so on upstream connections.
    pub fn name(&self, number: u64) -> String {
        format!("{}{number:x}", self.prefix)
    }

    /// The same, with the NUL behind it, behind what is there: without memory of its own.
    pub fn push_name(&self, out: &mut Vec<u8>, number: u64) {
        out.extend_from_slice(self.prefix.as_bytes());
        let digits = 16 - (number | 1).leading_zeros() / 4;
        for digit in (0..digits).rev() {
            out.push(b"0123456789abcdef"[(number >> (4 * digit) & 15) as usize]);
        }
        out.push(0);
    }

    /// How long that is, without the NUL.
    pub fn name_length(&self, number: u64) -> usize {
        self.prefix.len() + 16 - (number | 1).leading_zeros() as usize / 4
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
    fn a_name_is_written_as_it_is_formatted() {
        let interner = Interner::new(7);
        for number in [0, 1, 15, 16, 255, 256, 0xdead_beef, u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            interner.push_name(&mut out, number);
            assert_eq!(out, [interner.name(number).as_bytes(), &[0]].concat());
            assert_eq!(out.len() - 1, interner.name_length(number));
        }
    }

    #[test]
    fn all_who_were_told_the_same_share_it() {
        let interner = Interner::new(7);
        let statement = interner.intern(b"x\0\0\0", "c", &Parameters::default());
        let described = |parameters: &[u8]| {
            let mut lesson = Lesson::parameters();
            lesson.feed(&[&[0; 5], parameters].concat());
            lesson.ends()
        };
        let one = statement.shaped(described(b"\0\0"), &interner);
        assert!(Arc::ptr_eq(&one, &statement.shaped(described(b"\0\0"), &interner)));
        let other = statement.shaped(described(b"\0\x01\0\0\0\x17"), &interner);
        assert!(one.id() != other.id() && interner.own_shape(described(b"\0\0")).id() != one.id());
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
}
