//! What a database's catalog says of what runs what.

use crate::sql::{Effects, Pin};

/// Something that the database has: the catalog that it is in, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    /// The oid of the catalog (`pg_depend.classid`).
    pub class: u32,
    /// The object's own oid.
    pub oid: u32,
}

impl Object {
    /// The oid of `pg_proc`, as in `pg_proc.h`; and so on.
    const FUNCTION: u32 = 1255;
    /// Of `pg_type`.
    pub(super) const TYPE: u32 = 1247;
    /// Of `pg_operator`.
    pub(super) const OPERATOR: u32 = 2617;
    /// What the server itself brings has smaller numbers (`FirstNormalObjectId`).
    const FIRST_OF_USERS: u32 = 16_384;

    /// A function, procedure or aggregate.
    pub fn function(oid: u32) -> Self {
        Self { class: Self::FUNCTION, oid }
    }

    /// True if a statement can run it and need not name it, nor anything that is made with it: an operator, or what belongs to one of
    /// PostgreSQL's own types (a cast between two of them).
    pub(super) fn may_run_unnamed(self) -> bool {
        match self.class {
            Self::OPERATOR => true,
            Self::TYPE => self.oid < Self::FIRST_OF_USERS,
            _ => false,
        }
    }
}

/// What an expression does that the database keeps, by one of PostgreSQL's own functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// It locks, notifies or asks for the last value of a sequence.
    Objects,
    /// It sets a setting, or the seed.
    Settings,
    /// It runs a text, or changes `pg_settings`.
    Texts,
}

impl Does {
    pub(super) fn effects(self) -> Effects {
        let objects =
            Effects { makes_objects: true, notifies: true, reads_sequences: true, ..Effects::default() };
        match self {
            Self::Objects => objects,
            // It cannot be asked what came of it.
            Self::Settings => Effects { pin: Some(Pin::Setting), ..objects },
            Self::Texts => Effects { asks_all: true, ..objects },
        }
    }
}

/// What can run a function without naming it.
#[derive(Debug, Default)]
pub struct Relations {
    /// What a statement can name: relations and types.
    pub names: Vec<(Object, Vec<u8>)>,
    /// Who runs or reaches whom: the user first, then what is used.
    pub uses: Vec<(Object, Object)>,
    /// What runs PostgreSQL's own functions that matter.
    pub direct: Vec<(Object, Does)>,
}
