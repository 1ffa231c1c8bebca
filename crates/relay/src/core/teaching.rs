//! What is to be learned of a statement that is described.

use std::sync::Arc;

use crate::statement::{Owner, Shape, Statement};

/// See the module.
#[derive(Debug)]
pub(crate) struct Teaching {
    /// The request that gave its name.
    pub(super) giver: u64,
    pub(super) statement: Arc<Statement>,
    pub(super) number: u64,
    pub(super) owner: Owner,
    /// What the client was told of it.
    pub(super) expected: Option<Arc<Shape>>,
}
