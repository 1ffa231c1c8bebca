//! `SHOW STATE` and `SHOW CONFIG`: the process as a whole, and what it was told.

use crate::console::Console;
use crate::console::table::Kind::Text;
use crate::console::table::{Table, Value};
use crate::pool::Halt;
use policy::config::file::Server;
use policy::config::manual::Applies;

/// `SHOW STATE`
pub(super) fn state(console: &Console) -> Table {
    let mut table = Table::new(&[("key", Text), ("value", Text)]);
    let halted = console.standing.halted();
    let (threads, used) = console.runtimes.data.threads();
    let yes = |is: bool| Value::from(if is { "yes" } else { "no" });
    let rows = [
        ("active", yes(halted.is_none())),
        ("paused", yes(halted == Some(Halt::Paused))),
        ("suspended", yes(halted == Some(Halt::Suspended))),
        ("io", console.runtimes.data.io().into()),
        ("threads", format!("{used} of {threads}").into()),
    ];
    rows.into_iter().for_each(|(key, value)| table.push(vec![key.into(), value]));
    table
}

/// `SHOW CONFIG`
pub(super) fn config(console: &Console) -> Table {
    let mut table = Table::new(&[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)]);
    let generation = console.current.generation();
    let (_, _, options) = Server::manual();
    let bare = |text: &str| text.trim_matches('"').to_owned();
    for ((name, value), option) in generation.config.server.shown().into_iter().zip(options) {
        let changeable = if matches!(option.applies, Applies::Restart) { "no" } else { "yes" };
        let default = bare(&option.default.unwrap_or_default());
        table.push(vec![name.into(), bare(&value).into(), default.into(), changeable.into()]);
    }
    table
}
