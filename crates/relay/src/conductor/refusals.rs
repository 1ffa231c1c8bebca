//! What a client is told when its session is refused something, or ends.

use super::event::{Database, UpstreamEnd, World};
use super::{Cause, Conductor, End, Turn};
use crate::Pin;
use wire::error::{Fault, Refusal, SqlState};

impl Conductor {
    /// `max_pinned` is reached.
    pub(super) fn too_many_pinned<W: World>(&self, turn: &Turn<'_, '_, W>) -> Refusal {
        let reason = self.core.pin().map_or("", Pin::word);
        let message = "too many pinned sessions";
        let refusal = Refusal::new(Fault::Client, SqlState::TOO_MANY_CONNECTIONS, message)
            .detail(format!("This session would be pinned (reason: {reason}), and max_pinned is reached."))
            .hint("End pinned sessions, or what pins them; or use session mode.");
        at(turn, refusal)
    }

    /// The upstream's connection has ended: in its own words if it sent any.
    pub(super) fn upstream_lost<W: World>(&self, end: UpstreamEnd, turn: &Turn<'_, '_, W>) -> Cause {
        if self.core.is_fatal() || !self.core.between_messages() || end.partial {
            return Cause::Upstream;
        }
        let why = end.why.unwrap_or_else(|| "the server closed it".to_owned());
        let message = "server closed the connection unexpectedly";
        let refusal = Refusal::new(Fault::Upstream, SqlState::CONNECTION_FAILURE, message)
            .detail(format!("The upstream connection was lost: {why}."));
        Cause::Refused(at(turn, refusal))
    }
}

/// The upstream sent what the protocol does not allow.
pub(super) fn desync<W: World>(what: String, turn: &Turn<'_, '_, W>) -> Box<End> {
    let message = "the upstream server broke the protocol";
    let refusal = Refusal::new(Fault::Upstream, SqlState::PROTOCOL_VIOLATION, message);
    Box::new(End { cause: Cause::Refused(at(turn, refusal)), broke: Some(what) })
}

/// The same with the place where it happened.
pub(super) fn at<W: World>(turn: &Turn<'_, '_, W>, refusal: Refusal) -> Refusal {
    let Database { environment, connection, .. } = turn.world.database();
    refusal.in_environment(&environment, &connection)
}

/// The system gives no random bits.
pub(super) fn no_random() -> Refusal {
    Refusal::new(Fault::Ours, SqlState::INTERNAL, "no random bytes")
}

/// No connection could be reset that another user had last.
pub fn not_reset() -> Refusal {
    let message = "no upstream connection could be reset after another user";
    Refusal::new(Fault::Upstream, SqlState::CONNECTION_FAILURE, message)
}

/// The listener reads notifications in UTF-8, and the client does not.
pub(super) fn untranslatable() -> Refusal {
    let message = "a notification cannot be represented in this session's client_encoding";
    Refusal::new(Fault::Client, SqlState::UNTRANSLATABLE_CHARACTER, message)
        .hint("LISTEN after client_encoding is set, or leave it as the server has it.")
}
