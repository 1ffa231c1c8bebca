//! What a text may do to its session.

use super::budget::MAX_SETTINGS;
use super::{NameUse, PidUse, Pin, SettingChange};
use crate::bearing::{Bearing, Customs};

/// What a text may do to its session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// It makes state that can neither be carried nor asked for.
    pub pin: Option<Pin>,
    /// It has a `SET`, `RESET` or the like, so that such a command tag is no surprise.
    pub foreseen: bool,
    /// Settings that it may change for longer than a transaction, and that PostgreSQL does not report; in lower case.
    pub settings: Vec<String>,
    /// It may make an object of the session that is no setting: a temporary table, a lock, a channel, ….
    pub makes_objects: bool,
    /// That may be a temporary object, which others of its name are hidden by.
    pub temporary: bool,
    /// It may end one.
    pub ends_objects: bool,
    /// It asks for the channels that the session listens to, or changes them.
    pub channels: bool,
    /// It sends a notification, perhaps to its own session.
    pub notifies: bool,
    /// It asks for the last value of a sequence, which belongs to the server process.
    pub reads_sequences: bool,
    /// It changes the session's user, or goes back to it: PostgreSQL reports what came of that.
    pub authorizes: bool,
    /// `DEALLOCATE ALL` or `DISCARD ALL`: no prepared statement is left.
    pub deallocates_all: bool,
    /// What it says of settings, in its order: if PostgreSQL reports that one has changed, this tells a default from a value.
    pub changes: Vec<SettingChange>,
    /// `RESET ALL` or `DISCARD ALL`: every setting goes back to its default.
    pub resets_all: bool,
    /// It has a `RESET`.
    pub resets: bool,
    /// Names of prepared statements that it uses, in its order. Of a statement's own text only.
    pub names: Vec<(NameUse, Box<[u8]>)>,
    /// It asks for the list of them.
    pub lists_names: bool,
    /// A database that nobody may be connected to, for it to be run. Of a statement's own text only.
    pub needs_database: Option<String>,
    /// It is about the number of a server process. Of a statement's own text only.
    pub pid: Option<Box<PidUse>>,
    /// It names a `pgusher.…` elsewhere.
    pub names_ours: bool,
    /// `SHOW pgusher.name`, as the only statement.
    pub shows: Option<String>,
    /// A `pgusher.name` that it would set or reset, in lower case: that cannot be, and is refused. Of a statement's own text only.
    pub sets_ours: Option<String>,
    /// It runs SQL that cannot be seen: everything is asked for that can be.
    pub asks_all: bool,
    /// `CALL`: the procedure decides.
    pub calls: bool,
    /// It defines or changes a function, a trigger or the like: what others may do changes with it.
    pub defines: bool,
    /// What that will do when it is run.
    pub defined: Option<Box<Self>>,
    /// The same of a table, a view or the like: that matters only with others that do.
    pub relates: bool,
    /// It may change how the statements behind it are read.
    pub rereads: bool,
    /// It may put the session's temporary schema into `search_path`: what is made then without the word is temporary, too.
    pub temp_path: bool,
}

/// Settings that decide where the tokens of the statements behind end.
const READING: [&str; 3] = ["client_encoding", "names", "standard_conforming_strings"];

impl Effects {
    /// Of a text that cannot be seen through.
    pub fn opaque() -> Self {
        Self { pin: Some(Pin::Opaque), foreseen: true, ..Self::default() }
    }

    /// Of a text that is perhaps not read as usual, and does this if it is: what it is told by tells that at least.
    pub fn unread(read: Option<&Self>) -> Box<Self> {
        let Some(read) = read else { return Box::new(Self::opaque()) };
        let (changes, names, lists_names) = (read.changes.clone(), read.names.clone(), read.lists_names);
        Box::new(Self { changes, names, lists_names, ..Self::opaque() })
    }

    pub(super) fn pin_for(&mut self, reason: Pin) {
        self.pin.get_or_insert(reason);
    }

    /// There is more of it than may be looked at: it may do anything.
    pub(super) fn see_nothing(&mut self) {
        self.pin_for(Pin::Opaque);
        (self.foreseen, self.asks_all) = (true, true);
    }

    /// What it has to do with prepared statements that settings may be others than the session's, from its beginning to the end of its
    /// transaction.
    pub fn mixes(&self, customs: Customs) -> Bearing {
        let is_any = self.asks_all || self.calls || self.resets_all || self.rereads || self.authorizes;
        if is_any || matches!(self.pin, Some(Pin::Opaque | Pin::Setting)) {
            return Bearing::Constants;
        }
        let changed = self
            .changes
            .iter()
            .filter_map(SettingChange::name)
            .chain(self.settings.iter().map(String::as_str));
        changed.map(|name| Bearing::of(name.as_bytes(), customs)).max().unwrap_or(Bearing::None)
    }

    /// True if what comes behind it may be read otherwise than what came before.
    pub fn may_reread(&self) -> bool {
        self.rereads || self.asks_all || self.calls || self.pin == Some(Pin::Opaque)
    }

    /// How many bytes are compared, at the most, when it is foreseen.
    pub fn cost(&self) -> usize {
        let bytes: usize = self.settings.iter().map(String::len).sum();
        let defined = self.defined.as_deref().map_or(0, Self::cost);
        bytes * self.settings.len() + defined
    }

    /// Whether there is anything that a session does beside its statements' ordinary work.
    pub fn matter(&self) -> bool {
        let (foreseen, relates) = (self.foreseen, self.relates);
        let (changes, names, pid) = (self.changes.clone(), self.names.clone(), self.pid.clone());
        *self != Self { foreseen, relates, changes, names, pid, ..Self::default() }
            || self.mixes(Customs::Unread) > Bearing::None
    }

    /// It sets or resets this, for however long.
    pub(super) fn sets(&mut self, name: &str) {
        self.rereads |= READING.contains(&name);
        if name == "session_authorization" {
            self.authorize();
        }
        let is_ours = name.starts_with("pgusher.");
        self.sets_ours = self.sets_ours.take().or(is_ours.then(|| name.to_owned()));
    }

    /// It may be another user from here on; the role is none then.
    pub(super) fn authorize(&mut self) {
        self.authorizes = true;
        self.add_setting("role".into());
    }

    /// Of more than can be kept, the command tags tell which is which.
    pub fn change(&mut self, change: SettingChange) {
        self.changes.retain(|known| *known != change);
        if self.changes.len() < MAX_SETTINGS {
            self.changes.push(change);
        }
    }

    pub(super) fn add_setting(&mut self, name: String) {
        if self.settings.contains(&name) {
            return;
        }
        if self.settings.len() < MAX_SETTINGS {
            self.settings.push(name);
        } else {
            self.pin_for(Pin::Setting);
        }
    }

    /// These too. What only a statement of its own does (`DEALLOCATE name`, `SHOW`, setting what is ours) stays as it is.
    pub fn add(&mut self, other: &Self) {
        self.pin = self.pin.or(other.pin);
        other.settings.iter().for_each(|name| self.add_setting(name.clone()));
        let news = other.changes.iter().filter(|change| !self.changes.contains(change)).cloned();
        news.collect::<Vec<_>>().into_iter().for_each(|change| self.change(change));
        self.foreseen |= other.foreseen;
        self.makes_objects |= other.makes_objects;
        self.temporary |= other.temporary;
        self.ends_objects |= other.ends_objects;
        self.channels |= other.channels;
        self.notifies |= other.notifies;
        self.reads_sequences |= other.reads_sequences;
        self.authorizes |= other.authorizes;
        self.deallocates_all |= other.deallocates_all;
        self.resets_all |= other.resets_all;
        self.resets |= other.resets;
        self.asks_all |= other.asks_all;
        self.calls |= other.calls;
        self.defines |= other.defines;
        if let Some(defined) = &other.defined {
            self.defined.get_or_insert_default().add(defined);
        }
        self.relates |= other.relates;
        self.lists_names |= other.lists_names;
        self.names_ours |= other.names_ours;
        self.rereads |= other.rereads;
        self.temp_path |= other.temp_path;
    }

    /// It may change this setting; one whose name depends on the client's encoding cannot be asked for.
    pub(super) fn changes(&mut self, name: String) {
        // What ends with a dot was put together of pieces.
        if name.is_ascii() && !name.ends_with('.') {
            self.add_setting(name);
        } else {
            self.pin_for(Pin::Setting);
        }
    }
}
