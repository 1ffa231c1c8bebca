//! What is kept of a session that does nothing: nearly all of what it is made of is then as it was when it logged in.

use std::sync::Arc;

use super::Core;
use super::channels::Channels;
use super::facts::SessionFacts;
use super::pids::Signalling;
use super::position::{Numbers, Position};
use super::residue::Residue;
use super::statements::Statements;
use crate::statement::Interner;

/// See the module.
#[derive(Debug)]
pub(crate) struct Resting {
    facts: SessionFacts,
    statements: Result<Box<Statements>, Arc<Interner>>,
    numbers: Numbers,
}

impl Core {
    /// True if nothing is lost when the session rests.
    pub(crate) fn may_rest(&self) -> bool {
        let Self { facts: _, position, statements: _, residue, channels, signalling, armed: None } = self
        else {
            return false;
        };
        position.is_as_new()
            && residue.is_as_new()
            && channels.are_none()
            && matches!(signalling, Signalling::None)
    }

    /// What is kept of a session that [may rest](Self::may_rest).
    pub(crate) fn rest(self) -> Resting {
        let Self { facts, statements, position, .. } = self;
        let numbers = position.numbers();
        Resting { facts, statements: statements.rest(), numbers }
    }
}

impl Resting {
    /// The session as it was.
    pub(crate) fn wake(self) -> Core {
        let Self { facts, statements, numbers } = self;
        Core {
            facts,
            position: Position::after(numbers),
            statements: statements.map_or_else(Statements::new, |statements| *statements),
            residue: Residue::default(),
            channels: Channels::default(),
            signalling: Signalling::None,
            armed: None,
        }
    }
}
