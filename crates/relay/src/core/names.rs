//! The names at the beginning of a message: of a statement, or of a portal.

use super::requests::Kind;
use wire::cstr;

/// The names at the beginning of a body.
pub(super) struct NamesIn<'a> {
    /// What stands before the statement's name.
    pub(super) before: &'a [u8],
    /// The statement's name; `None` if it is about a portal.
    pub(super) statement: Option<&'a [u8]>,
    /// What stands behind it.
    pub(super) after: &'a [u8],
}

/// Those of a message of this kind, which is about a statement or a portal; `None` if it is broken.
pub(super) fn names(kind: Kind, body: &[u8]) -> Option<NamesIn<'_>> {
    let before = match kind {
        Kind::Parse => 0,
        Kind::Bind => cstr(body)?.0.len() + 1,
        _ => match body.first()? {
            b'S' => 1,
            _ => return Some(NamesIn { before: body, statement: None, after: &[] }),
        },
    };
    let (name, after) = cstr(&body[before..])?;
    Some(NamesIn { before: &body[..before], statement: Some(name), after })
}
