//! A client that sends nothing more, and may be reading still.

use super::Core;

impl Core {
    /// True if the upstream will say nothing more before the client does: it waits for the rest of a message, for data of a COPY, or for
    /// a `Sync`, and has answered every query before that.
    pub(crate) fn awaits_client(&self) -> bool {
        let requests = self.position.requests();
        match () {
            () if self.position.is_copying() => true,
            () if self.position.is_in_clients_message() => !requests.has_an_end_before_the_last(),
            () => self.position.is_unsynced() && !requests.has_an_end(),
        }
    }

    /// Says something to the client that changes nothing for it: the value of a setting that it was told last.
    pub(crate) fn repeat_a_setting(&self, down: &mut Vec<u8>) {
        if let Some((name, value)) = self.facts.settings().last_told() {
            wire::parameter_status(down, name, value);
        }
    }
}
