//! The statements of one session, by their names; and the unnamed one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Held, PreparedStatements, Shape, Statement, Statements};

/// PostgreSQL tells statement names apart by this many bytes.
const NAME_LENGTH: usize = 63;

/// A statement under a client's name.
#[derive(Debug, Clone)]
pub struct NamedStatement {
    /// Which.
    pub statement: Arc<Statement>,
    /// The request that made it, in the order of the session's requests.
    pub request: u64,
    /// What the client was told of it, or is about to be.
    pub told: Description,
}

/// What a client was told of a statement when it named it.
#[derive(Debug, Clone)]
pub enum Description {
    /// The connection is asked, on which it is prepared under this number. (That is no number on any other connection: where it was
    /// never told, it is prepared as if for the first time.)
    Soon(u64),
    /// This, wherever it is prepared.
    Shape(Arc<Shape>),
}

impl NamedStatement {
    /// Whether a connection has it as the client knows it.
    pub fn held(&self, prepared: &mut PreparedStatements) -> Held {
        match &self.told {
            Description::Soon(number) => prepared.hold(*number),
            Description::Shape(shape) => prepared.hold_shape(shape.id()),
        }
    }

    /// Whether it surely has neither parameters nor columns: PostgreSQL describes it so in a failed transaction, too.
    pub fn answers_nothing(&self) -> bool {
        match &self.told {
            Description::Soon(_) => self.statement.answers_nothing(),
            Description::Shape(shape) => shape.has_no_columns() && shape.parameters() == [0; 2],
        }
    }

    /// What the client was told of it.
    pub fn shape(&self) -> Option<&Arc<Shape>> {
        match &self.told {
            Description::Soon(_) => None,
            Description::Shape(shape) => Some(shape),
        }
    }
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

impl LongText {
    /// One of all that are counted here.
    pub(super) fn new(text: &[u8], all: Arc<AtomicUsize>) -> Self {
        all.fetch_add(text.len(), Ordering::Relaxed);
        Self { text: text.into(), all }
    }
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
    known: BTreeMap<Arc<[u8]>, NamedStatement>,
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
    /// Of a session more.
    pub(super) fn new(all: Arc<Statements>) -> Self {
        all.holders.fetch_add(1, Ordering::Relaxed);
        Self { known: BTreeMap::new(), given: BTreeMap::new(), bytes: 0, all }
    }

    /// Under this name.
    pub fn get(&self, name: &[u8]) -> Option<&NamedStatement> {
        self.known.get(significant(name))
    }

    /// So many of them, at the most.
    pub fn some(&self, most: usize) -> impl Iterator<Item = &Arc<[u8]>> {
        self.known.keys().take(most)
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
    pub fn put(&mut self, name: &[u8], named: Option<NamedStatement>) -> Option<NamedStatement> {
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

    /// The statement of the name that this request gave is told so, and is this one from now on. False if the name is another's.
    pub fn tell(&mut self, request: u64, statement: &Arc<Statement>, told: &Description) -> bool {
        let named = self.given.get(&request).and_then(|name| self.known.get_mut(name));
        let Some(named) = named else { return false };
        self.bytes = self.bytes + statement.cost() - named.statement.cost();
        (named.statement, named.told) = (statement.clone(), told.clone());
        true
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Parameters;
    use crate::statement::Interner;

    #[test]
    fn names_differ_in_their_first_63_bytes() {
        let interner = Interner::new(7);
        let statement = interner.intern(b"x\0\0\0", "c", &Parameters::default());
        let mut names = interner.names();
        let long = [b'a'; 70];
        names.put(&long, Some(NamedStatement { statement, request: 1, told: Description::Soon(1) }));
        assert!(names.get(&long[..63]).is_some() && names.get(&long[..62]).is_none());
    }

    #[test]
    fn the_name_that_a_request_gave_is_found_by_its_number() {
        let interner = Interner::new(7);
        let statement = interner.intern(b"x\0\0\0", "c", &Parameters::default());
        let named = |request| {
            Some(NamedStatement { statement: statement.clone(), request, told: Description::Soon(request) })
        };
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
