//! What a client was told of a statement: the types of its parameters, and its columns. Wherever it is prepared again, it is to be
//! the same, or the client would read rows, and send parameters, of other types than it believes.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

use wire::HEADER;

/// The number of no shape.
pub(super) const NO_SHAPE: u64 = 0;

/// What its columns are told by.
type Digest = [u8; 32];

/// See the module.
#[derive(Debug)]
pub struct Shape {
    id: u64,
    described: Described,
    owner: Owner,
}

/// Whose a shape is, and what is prepared of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// All sessions' who were told the same of the same text.
    All,
    /// One session's: it was parsed under settings that are not those by which it is known, or among its temporary objects.
    Session,
}

/// What a server says of a statement (PostgreSQL's manual, "Message Formats": `ParameterDescription`, `RowDescription`, `NoData`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// How many parameters (16 bits), and their types (32 bits each): as `Parse` gives them.
    parameters: Box<[u8]>,
    /// A digest of what matters of the columns: their names, types, sizes and modifiers. The table that they are of is told to
    /// clients, and is no part of what PostgreSQL compares. `None` if it has none.
    columns: Option<Digest>,
}

impl Shape {
    /// What was described, under a number that no other has.
    pub(super) fn new(id: u64, described: Described, owner: Owner) -> Self {
        Self { id, described, owner }
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The types of its parameters, as `Parse` gives them behind the text.
    pub fn parameters(&self) -> &[u8] {
        &self.described.parameters
    }

    /// What is answered to a `Describe` before its columns are looked at, and found to be others: its `ParameterDescription`.
    pub fn described(&self) -> Vec<u8> {
        let mut answer = Vec::new();
        wire::message(&mut answer, b't', |out| out.extend_from_slice(self.parameters()));
        answer
    }

    /// True if it has no columns.
    pub fn has_no_columns(&self) -> bool {
        self.described.columns.is_none()
    }

    /// True if this is what the client was told.
    pub fn is(&self, described: &Described) -> bool {
        self.described == *described
    }
}

/// An answer to a `Describe` of ours, as it comes in pieces.
pub struct Lesson {
    parameters: Vec<u8>,
    columns: Option<Columns>,
    /// Of the message at hand: bytes of its header that are still to come.
    header: usize,
}

/// The columns of a `RowDescription`, as far as they have come.
struct Columns {
    digest: Context,
    at: At,
}

/// Where in a `RowDescription` the next byte is.
#[derive(Clone, Copy)]
enum At {
    /// In the number of columns.
    Count(u8),
    Name,
    /// Behind a name: 18 bytes of which those from the seventh to the sixteenth are the type, its size and its modifier; before
    /// them is the table's column, and behind them the format.
    Column(u8),
}

impl fmt::Debug for Lesson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lesson").field("parameters", &self.parameters).finish_non_exhaustive()
    }
}

impl Lesson {
    /// A `ParameterDescription` comes.
    pub fn parameters() -> Self {
        Self { parameters: Vec::new(), columns: None, header: HEADER }
    }

    /// Behind it a `RowDescription`.
    pub fn columns(&mut self) {
        self.header = HEADER;
        self.columns = Some(Columns { digest: Context::new(&SHA256), at: At::Count(0) });
    }

    /// True if that comes: it is the last.
    pub fn is_of_columns(&self) -> bool {
        self.columns.is_some()
    }

    /// The next bytes of the message at hand.
    pub fn feed(&mut self, bytes: &[u8]) {
        let skipped = self.header.min(bytes.len());
        self.header -= skipped;
        let bytes = &bytes[skipped..];
        match &mut self.columns {
            None => self.parameters.extend_from_slice(bytes),
            Some(columns) => columns.feed(bytes),
        }
    }

    /// What was described.
    pub fn ends(self) -> Described {
        let digest = |columns: Columns| {
            let mut digest = Digest::default();
            digest.copy_from_slice(columns.digest.finish().as_ref());
            digest
        };
        Described { parameters: self.parameters.into(), columns: self.columns.map(digest) }
    }
}

impl Columns {
    fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            let taken = match self.at {
                At::Count(1) => {
                    self.at = At::Name;
                    1
                }
                At::Count(_) => {
                    self.at = At::Count(1);
                    1
                }
                At::Name => {
                    let end = memchr::memchr(0, bytes);
                    let taken = end.map_or(bytes.len(), |end| end + 1);
                    self.digest.update(&bytes[..taken]);
                    if end.is_some() {
                        self.at = At::Column(0);
                    }
                    taken
                }
                At::Column(at) => {
                    if (6..16).contains(&at) {
                        self.digest.update(&[*first]);
                    }
                    self.at = if at == 17 { At::Name } else { At::Column(at + 1) };
                    1
                }
            };
            bytes = &bytes[taken..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Column = (String, [u8; 6], [u8; 10], [u8; 2]);

    fn row(columns: &[Column]) -> Vec<u8> {
        let mut message = Vec::new();
        wire::message(&mut message, b'T', |out| {
            out.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
            for (name, table, kind, format) in columns {
                wire::push_cstr(out, name);
                out.extend_from_slice(&[&table[..], kind, format].concat());
            }
        });
        message
    }

    fn described(parameters: &[u8], row: Option<&[u8]>, cuts: &[usize]) -> Described {
        let mut lesson = Lesson::parameters();
        let fed = |lesson: &mut Lesson, mut bytes: &[u8]| {
            let mut cuts = cuts.iter().cycle();
            while !bytes.is_empty() {
                let (piece, rest) = bytes.split_at((*cuts.next().unwrap()).min(bytes.len()));
                lesson.feed(piece);
                bytes = rest;
            }
        };
        let mut message = Vec::new();
        wire::message(&mut message, b't', |out| out.extend_from_slice(parameters));
        fed(&mut lesson, &message);
        if let Some(row) = row {
            lesson.columns();
            fed(&mut lesson, row);
        }
        lesson.ends()
    }

    fn column() -> impl Strategy<Value = Column> {
        ("[a-c]{0,2}", any::<[u8; 6]>(), prop::array::uniform10(0..2_u8), any::<[u8; 2]>())
    }

    proptest! {
        /// Whatever the pieces are; and two that are told apart differ in a name, a type, a size or a modifier.
        #[test]
        fn columns_are_told_apart_by_what_postgresql_compares(
            one in prop::collection::vec(column(), 0..4),
            other in prop::collection::vec(column(), 0..4),
            cuts in prop::collection::vec(1..9_usize, 1..9),
        ) {
            let whole = [usize::MAX];
            let compared = |columns: &[Column]| {
                columns.iter().map(|(name, _, kind, _)| (name.clone(), *kind)).collect::<Vec<_>>()
            };
            let (a, b) = (
                described(b"\0\0", Some(&row(&one)), &cuts),
                described(b"\0\0", Some(&row(&other)), &whole),
            );
            prop_assert_eq!(a == b, compared(&one) == compared(&other));
            prop_assert!(described(b"\0\0", Some(&row(&one)), &whole) == a);
        }
    }

    #[test]
    fn parameters_and_having_no_columns_are_told_apart() {
        let none = described(b"\0\0", None, &[1]);
        assert_eq!(none, described(b"\0\0", None, &[9]));
        assert_ne!(none, described(b"\0\0", Some(&row(&[])), &[1]));
        assert_ne!(none, described(b"\0\x01\0\0\0\x17", None, &[3]));
        let shape = Shape::new(3, none.clone(), Owner::All);
        assert!(
            shape.is(&none) && shape.has_no_columns() && shape.parameters() == b"\0\0" && shape.id() == 3
        );
    }
}
