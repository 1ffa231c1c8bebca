//! A client that sends nothing more, and may be reading still.

use super::Core;

impl Core {
    /// True if what the client has asked for since its last `Sync` may be answered only when it sends another, or a `Flush`.
    pub(crate) fn awaits_sync(&self) -> bool {
        self.position.is_unsynced() && !self.position.is_in_clients_message()
    }

    /// True if the upstream will say nothing more before the client sends the rest of a message, or more data of a COPY.
    pub(crate) fn awaits_data(&self) -> bool {
        self.position.is_copying()
            || self.position.is_in_clients_message()
                && (self.position.requests().is_one_at_most() || self.position.is_unsynced())
    }

    /// Says something to the client that changes nothing for it: the value of a setting that it was told last.
    pub(crate) fn repeat_a_setting(&self, down: &mut Vec<u8>) {
        if let Some((name, value)) = self.facts.settings().last_told() {
            wire::parameter_status(down, name, value);
        }
    }
}
