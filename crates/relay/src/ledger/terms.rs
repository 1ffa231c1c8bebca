//! What a ledger is told, and what it says.

use std::sync::Arc;
use std::time::Duration;

use wire::UserName;
use wire::startup::Settings;

/// How sessions of different users share upstream connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Isolation {
    /// The server resets a connection before it serves another user than its last.
    #[default]
    User,
    /// A connection is closed rather than serve a second user.
    Strict,
    /// The users trust each other.
    Shared,
}

impl Isolation {
    /// As each is written.
    pub const WORDS: &'static [&'static str] = &["user", "strict", "shared"];

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Strict => "strict",
            Self::Shared => "shared",
        }
    }

    /// The one that is written so.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::User, Self::Strict, Self::Shared].into_iter().find(|isolation| isolation.word() == word)
    }
}

/// What the ledger has to know of a connection.
pub trait Lendable {
    /// The user whom it has served last, if it has served one.
    fn last_user(&self) -> Option<&UserName>;
    /// The number of the session that had it last for a transaction; 0 for none.
    fn last_session(&self) -> u64;
    /// That session may come back for what only this connection has: others rather have another.
    fn is_kept(&self) -> bool;
    /// Nobody has used it since it was opened or reset.
    fn is_clean(&self) -> bool;
    /// Something may be left on it of somebody else than this user.
    fn is_foreign_to(&self, user: &UserName) -> bool;
    /// In session mode: the startup settings of the client that it was opened with.
    fn startup(&self) -> Option<&Arc<Settings>>;
    /// Which edition of the settings it was opened with.
    fn epoch(&self) -> u64;
    /// When it was opened.
    fn born(&self) -> Duration;
    /// Something was done to it that it must not go on with.
    fn is_spoiled(&self) -> bool;
    /// Since when it was found idle.
    fn idle_since(&mut self) -> &mut Option<Duration>;
    /// The thread that has it.
    fn home(&self) -> Home;
}

/// A thread: it costs less to lend a connection to a session on the one that has it. 0 is none, or any.
pub type Home = u16;

/// A session that asks for a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asker {
    /// Its number, which rather has the connection that it had last; 0 is none.
    pub session: u64,
    /// Its thread.
    pub home: Home,
}

/// How much may be open, and for how long.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// The most connections.
    pub size: usize,
    /// How many more for those who have waited for [`Limits::reserve_after`].
    pub reserve: usize,
    /// See there.
    pub reserve_after: Duration,
    /// The least, once the pool was used.
    pub min: usize,
    /// How long a connection may be idle; zero is for ever.
    pub idle_timeout: Duration,
    /// How old it may become; zero is any age.
    pub lifetime: Duration,
    /// Those of another one are replaced.
    pub epoch: u64,
    /// How users share connections.
    pub isolation: Isolation,
}

/// What somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Any connection that was opened without a client's settings, for this user.
    Any(UserName),
    /// One that was opened with these settings, for this user.
    Own(UserName, Arc<Settings>),
    /// One that nobody has used, for the pool itself.
    Clean,
}

impl Wanted {
    /// To look for it at once.
    pub fn want(&self) -> Want<'_> {
        match self {
            Self::Any(user) => Want::Any(user),
            Self::Own(user, startup) => Want::Own(user, startup),
            Self::Clean => Want::Clean,
        }
    }
}

/// The same, at hand.
#[derive(Debug, Clone, Copy)]
pub enum Want<'a> {
    /// See [`Wanted::Any`].
    Any(&'a UserName),
    /// See [`Wanted::Own`].
    Own(&'a UserName, &'a Arc<Settings>),
    /// See [`Wanted::Clean`].
    Clean,
}

/// Somebody who waits.
#[derive(Debug)]
pub struct Queued<W> {
    /// Who.
    pub who: W,
    /// What for.
    pub wanted: Wanted,
    /// Since when.
    pub since: Duration,
}

/// Why nothing is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// `PAUSE`: connections are closed as they come back.
    Paused,
    /// `SUSPEND`: they are kept.
    Suspended,
}

/// A connection that is to be opened. It is counted from the moment that this is said.
#[derive(Debug)]
pub enum Dial<W> {
    /// For whoever waits longest when it is there.
    Plain,
    /// To take the place of one that grows too old.
    Succeeding,
    /// With the settings of the one who gets it.
    Own(W, Arc<Settings>),
}

/// The same, when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialed {
    /// See [`Dial::Plain`].
    Plain,
    /// See [`Dial::Succeeding`].
    Succeeding,
    /// See [`Dial::Own`].
    Own,
}

/// What is to be done with a connection.
#[derive(Debug)]
pub enum Disposition<C, W> {
    /// It is this one's; who cannot be given it after all comes first again ([`Ledger::wait_first`](super::Ledger::wait_first)).
    Grant(Queued<W>, C),
    /// It is closed, and its place is another's, which is opened.
    Replace(C, Dial<W>),
    /// It is closed.
    Close(C),
    /// It is idle.
    Idle,
}

/// What a dial that has failed means.
#[derive(Debug)]
pub struct Failure<W> {
    /// After how long the next attempt may be made.
    pub again_after: Duration,
    /// Who is to be told, because there is nothing that they could still get.
    pub refused: Vec<W>,
}

/// A ledger at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Connections that can be lent.
    pub idle: usize,
    /// Connections that are lent.
    pub lent: usize,
    /// Connections that are being opened.
    pub dialing: usize,
    /// How many wait.
    pub waiting: usize,
    /// Since when the first of them does.
    pub first_since: Option<Duration>,
    /// Why nothing is lent.
    pub halted: Option<Halt>,
    /// The last attempt to open a connection has failed.
    pub failing: bool,
}
