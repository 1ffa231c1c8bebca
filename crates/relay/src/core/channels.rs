//! The channels of a session, which are transferred to the pool's listener, and brought back to the connection for statements
//! that ask for them or change them.

use std::sync::Arc;

use aws_lc_rs::hmac;

use super::position::Transaction;
use crate::sql::Effects;
use wire::{identifier, unicode_identifier};

/// How many channels of a session are transferred: each statement that may notify its session brings them all back. One with
/// more keeps its connection.
const MAX_CHANNELS: usize = 1000;

/// How many steps of one transfer may fail.
const MAX_INTERRUPTED: u8 = 8;

/// How a session is known to the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Its number.
    pub id: u64,
    /// The channel of pgusher's own.
    pub channel: Arc<str>,
    /// What nobody else can seal with.
    pub seal: Seal,
}

/// A secret with which pgusher seals what it says on its own channel: whoever shares the upstream's role can read the channel's
/// name, and what was said there, in `pg_stat_activity`. A seal is of the server process that says it, so it is of no use on
/// another connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seal([u8; 32]);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(***)")
    }
}

impl Seal {
    /// Of random bytes.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    fn of(self, pid: u32, words: &str) -> u64 {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let tag = hmac::sign(&key, format!("{pid} {words}").as_bytes());
        tag.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
    }

    /// What the body of a notification on pgusher's own channel says: of which session, what, and its number. `None` if it
    /// was not said by pgusher, on the connection of that process.
    pub fn read(self, body: &[u8]) -> Option<(u64, u8, u64)> {
        let pid = u32::from_be_bytes(*body.first_chunk()?);
        let (_, payload) = wire::notification(body)?;
        let (words, tag) = str::from_utf8(payload).ok()?.rsplit_once('.')?;
        let tag = u64::from_str_radix(tag, 16).ok()?;
        // Where another process answers than the one that has logged us in, its number is not known.
        if tag != self.of(pid, words) && tag != self.of(UNKNOWN, words) {
            return None;
        }
        let (id, rest) = words.split_once('.')?;
        let what = *rest.as_bytes().first()?;
        Some((id.parse().ok()?, what, rest.get(1..)?.parse().ok()?))
    }
}

/// The number of no process.
const UNKNOWN: u32 = 0;

impl Mark {
    /// Up to here the lent connection delivers.
    pub const MARKER: u8 = b'm';
    /// The channels were brought back, by a transaction that was committed.
    pub const RECALL: u8 = b'r';
    /// So they were, and from here on the lent connection delivers.
    pub const PAUSE: u8 = b'p';

    /// What is said on the channel, on the connection of this process if it is known.
    fn payload(&self, what: u8, number: u64, pid: Option<u32>) -> String {
        let words = format!("{}.{}{number}", self.id, what as char);
        format!("'{words}.{:016x}'", self.seal.of(pid.unwrap_or(UNKNOWN), &words))
    }
}

/// What the listener is asked to take over.
#[derive(Debug, PartialEq, Eq)]
pub struct ListenRequest {
    /// What the connection listens to.
    pub channels: Vec<String>,
    /// The number of the recall since the last time; 0 for none.
    pub recall: u64,
    /// The number of the marker that will be sent.
    pub number: u64,
}

/// The channels of one session. Only sessions that listen have any.
#[derive(Debug, Default)]
pub(super) struct Channels(Option<Box<State>>);

#[derive(Debug, Default)]
struct State {
    /// What the listener delivers, in order. Never empty without a mark.
    carried: Vec<String>,
    mark: Option<Mark>,
    /// Of the last marker or recall.
    number: u64,
    recall: Recall,
    stage: Stage,
    interrupted: Interrupted,
}

/// Whether the step of the transfer that is under way has failed (a cancel that came too late), and how many have.
#[derive(Debug, Default)]
struct Interrupted {
    now: bool,
    steps: u8,
}

/// Whether the connection listens to what the listener delivers as well, since which number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Recall {
    #[default]
    None,
    /// It does, and does not deliver.
    Silent(u64),
    /// It does, and the listener stops to deliver.
    TakingOver(u64, Delivery),
}

/// Who delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Listener,
    /// The connection, but what the listener has delivered before comes first.
    Pausing,
    Connection,
}

impl Recall {
    /// 0 for none.
    fn number(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Silent(number) | Self::TakingOver(number, _) => number,
        }
    }

    /// Whether the connection delivers all that it listens to.
    fn delivers(self) -> bool {
        matches!(self, Self::TakingOver(_, Delivery::Pausing | Delivery::Connection))
    }
}

/// How far the transfer has come.
#[derive(Debug, Default, PartialEq, Eq)]
enum Stage {
    /// There is none.
    #[default]
    Idle,
    /// The connection listens to these.
    Found(Vec<String>),
    /// The listener was asked.
    ListenRequest,
    /// The marker could not be sent: it is sent again.
    Unmarked,
    /// The marker was sent; what of it has come back.
    Marking(Marking),
    /// It has.
    Marked,
    /// The connection is told to listen no more.
    Unlistening,
    /// It does not: the listener has still to say that it delivers.
    Settling,
}

/// What has come of a marker. PostgreSQL tells a session what it has notified itself with the end of its transaction; but if another
/// that has notified is just being committed, it comes behind that (`asyncQueueReadAllNotifications`), and so behind the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marking {
    Nothing,
    Seen,
    Answered,
}

impl Channels {
    /// True if the session has none, nor had any that are not settled.
    pub(super) fn are_none(&self) -> bool {
        self.0.is_none()
    }

    fn is(&self, so: impl FnOnce(&State) -> bool) -> bool {
        self.0.as_deref().is_some_and(so)
    }

    /// True if the session has any.
    pub(super) fn is_any(&self) -> bool {
        self.0.is_some()
    }

    /// True while they are on their way to the listener.
    pub(super) fn is_transferring(&self) -> bool {
        self.is(|all| all.stage != Stage::Idle)
    }

    /// True if the listener delivers some.
    pub(super) fn is_carried(&self) -> bool {
        self.is(|all| !all.carried.is_empty())
    }

    /// True if they were brought back to the connection.
    pub(super) fn is_recalled(&self) -> bool {
        self.is(|all| all.recall != Recall::None)
    }

    /// True if the listener's first answer is awaited, or its last one.
    pub(super) fn awaits_listener(&self) -> bool {
        self.is(|all| matches!(all.stage, Stage::ListenRequest | Stage::Settling))
    }

    /// True if the connection does not listen any more, and the listener has not said that it delivers.
    pub(super) fn is_transfer_ending(&self) -> bool {
        self.is(|all| all.stage == Stage::Settling)
    }

    /// The recall with which the listener stops to deliver, while nothing that comes from the upstream may be dealt
    /// with: what the listener has delivered comes first.
    pub(super) fn pausing(&self) -> Option<u64> {
        match self.0.as_deref()?.recall {
            Recall::TakingOver(number, Delivery::Pausing) => Some(number),
            _ => None,
        }
    }

    /// What the listener has delivered has been sent.
    pub(super) fn paused(&mut self) {
        if let Some(State { recall: Recall::TakingOver(_, delivery @ Delivery::Pausing), .. }) =
            self.0.as_deref_mut()
        {
            *delivery = Delivery::Connection;
        }
    }

    /// The connection keeps them: none is transferred.
    pub(super) fn give_up(&mut self) {
        self.0 = None;
    }

    /// The connection says that it listens to these; false if they are too many to be transferred.
    pub(super) fn found(&mut self, mut found: Vec<String>) -> bool {
        if found.len() > MAX_CHANNELS {
            return false;
        }
        if found.is_empty() && !self.is_recalled() {
            return true;
        }
        let all = self.0.get_or_insert_default();
        if let Some(mark) = &all.mark {
            found.retain(|channel| **channel != *mark.channel);
        }
        all.stage = Stage::Found(found);
        true
    }

    /// What the listener is to be asked now, if anything.
    pub(super) fn ask(&mut self) -> Option<ListenRequest> {
        let all = self.0.as_mut()?;
        let Stage::Found(found) = &mut all.stage else { return None };
        let channels = std::mem::take(found);
        all.number += 1;
        all.stage = Stage::ListenRequest;
        Some(ListenRequest { channels, recall: all.recall.number(), number: all.number })
    }

    /// The listener listens: the query that sends the marker, on the connection of this process. `None` if there is nothing
    /// that it could listen to.
    pub(super) fn mark(&mut self, mark: Mark, pid: Option<u32>) -> Option<String> {
        let all = self.0.as_mut()?;
        let channel = identifier(&mark.channel);
        let payload = mark.payload(Mark::MARKER, all.number, pid);
        (all.mark, all.stage) = (Some(mark), Stage::Marking(Marking::Nothing));
        Some(format!("LISTEN {channel};NOTIFY {channel},{payload}"))
    }

    /// Once the marker has come back: the query with which the connection listens no more; and what is to be asked again.
    pub(super) fn go_on(&mut self, pid: Option<u32>) -> Option<String> {
        let all = self.0.as_mut()?;
        match all.stage {
            Stage::Marked => {
                all.stage = Stage::Unlistening;
                Some("UNLISTEN *".to_owned())
            }
            Stage::Unmarked => {
                let mark = all.mark.take()?;
                self.mark(mark, pid)
            }
            _ => None,
        }
    }

    /// The step that is under way has failed.
    pub(super) fn interrupted(&mut self) {
        self.0.iter_mut().for_each(|all| all.interrupted.now = true);
    }

    /// The `ReadyForQuery` of a step of the transfer; false if it failed.
    pub(super) fn transferred(&mut self) -> bool {
        let Some(all) = &mut self.0 else { return false };
        let failed = std::mem::take(&mut all.interrupted.now);
        all.interrupted.steps += u8::from(failed);
        all.stage = match all.stage {
            _ if all.interrupted.steps > MAX_INTERRUPTED => return false,
            Stage::Marking(_) if failed => Stage::Unmarked,
            Stage::Unlistening if failed => Stage::Marked,
            Stage::Marking(Marking::Seen) => Stage::Marked,
            Stage::Marking(Marking::Nothing) => Stage::Marking(Marking::Answered),
            Stage::Unlistening => Stage::Settling,
            _ => return false,
        };
        true
    }

    /// The listener delivers what comes on these.
    pub(super) fn carry(&mut self, mut carried: Vec<String>) {
        carried.sort_unstable();
        self.0 = self.0.take().filter(|_| !carried.is_empty());
        if let Some(all) = &mut self.0 {
            (all.carried, all.stage, all.recall) = (carried, Stage::Idle, Recall::None);
            all.interrupted = Interrupted::default();
        }
    }

    /// Whether a notification is the connection's to deliver.
    pub(super) fn delivers(&mut self, body: &[u8]) -> bool {
        let Some(all) = &mut self.0 else { return true };
        let Some((channel, _)) = wire::notification(body) else { return true };
        if let Some(mark) = all.mark.as_ref().filter(|mark| mark.channel.as_bytes() == channel) {
            let said = mark.seal.read(body);
            if let Recall::TakingOver(number, delivery) = &mut all.recall
                && said == Some((mark.id, Mark::PAUSE, *number))
            {
                *delivery = Delivery::Pausing;
            }
            if said == Some((mark.id, Mark::MARKER, all.number)) {
                all.stage = match std::mem::take(&mut all.stage) {
                    Stage::Marking(Marking::Nothing) => Stage::Marking(Marking::Seen),
                    Stage::Marking(Marking::Answered) => Stage::Marked,
                    other => other,
                };
            }
            return false;
        }
        match &all.stage {
            Stage::Marking(Marking::Seen) | Stage::Marked | Stage::Unlistening => false,
            _ => {
                let carried = all.carried.binary_search_by(|carried| carried.as_bytes().cmp(channel));
                all.recall.delivers() || carried.is_err()
            }
        }
    }

    /// A statement that has to do with channels, or may notify its own session, is about to run on the connection of this
    /// process: the statements with which that listens to those of the session, in the same transaction. `None` if it does
    /// already, or has not to. Within a transaction that was begun before, a rollback to a savepoint may have taken them back: then
    /// they are sent again (PostgreSQL drops what is notified twice).
    pub(super) fn recall(
        &mut self,
        effects: &Effects,
        transaction: Transaction,
        pid: Option<u32>,
    ) -> Option<Vec<String>> {
        if !effects.channels && !effects.notifies {
            return None;
        }
        let all = self.0.as_mut()?;
        if let Recall::TakingOver(number, Delivery::Listener) = all.recall
            && !effects.channels
            && transaction == Transaction::Open
        {
            return all.listen_again(Mark::PAUSE, number, pid);
        }
        if all.recall != Recall::None {
            if let Recall::TakingOver(_, delivery @ Delivery::Listener) = &mut all.recall
                && effects.channels
            {
                // Whatever the connection listens to then is its own to deliver.
                *delivery = Delivery::Connection;
            }
            return None;
        }
        let what = if effects.channels { Mark::RECALL } else { Mark::PAUSE };
        let statements = all.listen_again(what, all.number + 1, pid)?;
        all.number += 1;
        all.recall = match what {
            Mark::PAUSE => Recall::TakingOver(all.number, Delivery::Listener),
            _ => Recall::Silent(all.number),
        };
        Some(statements)
    }
}

impl State {
    /// What has the connection listen to what the listener delivers, and tells the listener.
    fn listen_again(&self, what: u8, number: u64, pid: Option<u32>) -> Option<Vec<String>> {
        let mark = self.mark.as_ref().filter(|_| !self.carried.is_empty())?;
        let own = identifier(&mark.channel);
        let listen = |channel: &String| format!("LISTEN {}", unicode_identifier(channel));
        let mut statements: Vec<String> = self.carried.iter().map(listen).collect();
        // One that asks for the channels must not see the one of pgusher's own.
        if what == Mark::PAUSE {
            statements.push(format!("LISTEN {own}"));
        }
        statements.push(format!("NOTIFY {own},{}", mark.payload(what, number, pid)));
        Some(statements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark { id: 5, channel: "ours".into(), seal: Seal::new([7; 32]) }
    }

    /// A notification that this process sends on pgusher's own channel.
    fn said(what: u8, number: u64) -> Vec<u8> {
        let payload = mark().payload(what, number, Some(9));
        let mut body = 9u32.to_be_bytes().to_vec();
        wire::push_cstr(&mut body, "ours");
        wire::push_cstr(&mut body, payload.trim_matches('\''));
        body
    }

    fn notified(channel: &str) -> Vec<u8> {
        let mut body = 9u32.to_be_bytes().to_vec();
        wire::push_cstr(&mut body, channel);
        wire::push_cstr(&mut body, "");
        body
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Those of a session that the listener delivers.
    fn carried() -> Channels {
        let mut channels = Channels::default();
        assert!(channels.found(names(&["b", "a"])));
        let asked = channels.ask().expect("the listener is asked");
        assert_eq!(asked, ListenRequest { channels: names(&["b", "a"]), recall: 0, number: 1 });
        assert!(channels.awaits_listener() && channels.ask().is_none());
        assert!(channels.go_on(Some(9)).is_none(), "the marker was not even sent");
        channels.mark(mark(), Some(9)).expect("the marker is sent");
        assert!(channels.delivers(&notified("a")), "until the marker comes back");
        assert!(!channels.delivers(&said(Mark::MARKER, 1)));
        assert!(!channels.delivers(&notified("a")), "the listener delivers it");
        assert!(channels.transferred());
        channels.go_on(Some(9)).expect("it listens no more");
        assert!(channels.transferred() && channels.is_transfer_ending());
        channels.carry(names(&["b", "a"]));
        assert!(channels.is_carried() && !channels.is_transferring());
        channels
    }

    #[test]
    fn a_marker_that_comes_behind_its_answer_is_waited_for() {
        let mut channels = Channels::default();
        assert!(!channels.transferred());
        channels.found(names(&["a"]));
        channels.ask();
        channels.mark(mark(), Some(9)).expect("the marker is sent");
        channels.delivers(&said(Mark::MARKER, 2));
        assert!(channels.transferred());
        assert!(channels.go_on(Some(9)).is_none(), "that was the marker of another transfer");
        assert!(channels.delivers(&notified("a")), "the listener does not deliver what comes before");
        assert!(!channels.transferred(), "it was answered already");
        channels.delivers(&said(Mark::MARKER, 1));
        assert!(!channels.delivers(&notified("a")));
        assert_eq!(channels.go_on(Some(9)).as_deref(), Some("UNLISTEN *"));
        assert!(channels.transferred() && channels.is_transfer_ending());
    }

    /// A cancel that meets the transfer is none of the client's business.
    #[test]
    fn a_step_that_fails_is_made_again_and_not_for_ever() {
        let mut channels = Channels::default();
        channels.found(names(&["a"]));
        channels.ask();
        let marks = channels.mark(mark(), Some(9));
        channels.interrupted();
        assert!(channels.transferred() && channels.is_transferring());
        assert_eq!(channels.go_on(Some(9)), marks);
        assert!(channels.go_on(Some(9)).is_none() && channels.delivers(&notified("a")));
        assert!(!channels.delivers(&said(Mark::MARKER, 1)) && channels.transferred());
        for round in 1..=MAX_INTERRUPTED {
            assert_eq!(channels.go_on(Some(9)).as_deref(), Some("UNLISTEN *"));
            channels.interrupted();
            assert_eq!(channels.transferred(), round < MAX_INTERRUPTED, "{round}");
        }
    }

    #[test]
    fn who_delivers_after_a_recall_is_said_by_the_connection() {
        let mut channels = carried();
        let notifies = Effects { notifies: true, ..Effects::default() };
        let none = Transaction::None;
        let statements = channels.recall(&notifies, none, Some(9)).expect("they are brought back");
        assert!(statements.contains(&"LISTEN \"ours\"".to_owned()), "{statements:?}");
        assert!(channels.recall(&notifies, none, Some(9)).is_none(), "once");
        let again = channels.recall(&notifies, Transaction::Open, Some(9));
        assert_eq!(again, Some(statements), "a rollback to a savepoint may have taken them back");
        assert!(!channels.delivers(&notified("a")), "the listener still does");
        assert!(channels.delivers(&notified("other")));
        assert!(!channels.delivers(&said(Mark::PAUSE, 1)), "another recall's");
        assert_eq!(channels.pausing(), None);
        assert!(!channels.delivers(&said(Mark::PAUSE, 2)));
        assert_eq!(channels.pausing(), Some(2));
        channels.paused();
        assert_eq!((channels.pausing(), channels.delivers(&notified("a"))), (None, true));
    }

    #[test]
    fn a_statement_that_asks_for_the_channels_does_not_see_pgushers_own() {
        let mut channels = carried();
        let asks = Effects { channels: true, ..Effects::default() };
        let statements = channels.recall(&asks, Transaction::None, Some(9)).expect("they are brought back");
        assert!(!statements.contains(&"LISTEN \"ours\"".to_owned()), "{statements:?}");
        assert!(!channels.delivers(&notified("a")) && channels.pausing().is_none());
        channels.carry(Vec::new());
        assert!(!channels.is_any());
    }

    #[test]
    fn what_changes_channels_in_a_recall_makes_the_connection_deliver() {
        let mut channels = carried();
        let mut recall = |effects| channels.recall(&effects, Transaction::None, Some(9));
        recall(Effects { notifies: true, ..Effects::default() }).expect("brought back");
        recall(Effects { channels: true, ..Effects::default() });
        assert!(channels.delivers(&notified("a")) && channels.pausing().is_none());
    }

    #[test]
    fn too_many_are_not_handed_over_and_none_need_not_be() {
        let mut channels = Channels::default();
        assert!(channels.found(Vec::new()) && !channels.is_any());
        assert!(channels.found((0..MAX_CHANNELS).map(|i| i.to_string()).collect()));
        assert!(!channels.found((0..=MAX_CHANNELS).map(|i| i.to_string()).collect()));
        channels.give_up();
        assert!(!channels.is_any());
    }

    /// Whoever shares the upstream's role can read what was said on the channel of pgusher's own, and say it again.
    #[test]
    fn what_others_say_on_our_own_channel_is_not_heard() {
        let mark = Mark { id: 7, channel: "c".into(), seal: Seal::new([1; 32]) };
        let said = |pid: u32, payload: &str| {
            [&pid.to_be_bytes()[..], b"c\0", payload.trim_matches('\'').as_bytes(), b"\0"].concat()
        };
        let payload = mark.payload(Mark::RECALL, 3, Some(42));
        assert_eq!(mark.seal.read(&said(42, &payload)), Some((7, Mark::RECALL, 3)));
        assert_eq!(mark.seal.read(&said(43, &payload)), None, "copied");
        assert_eq!(mark.seal.read(&said(42, &payload.replacen('3', "4", 1))), None, "changed");
        assert_eq!(mark.seal.read(&said(42, "7.r3")), None, "without a seal");
        assert_eq!(mark.seal.read(&said(42, "7.r3.0000000000000000")), None);
        assert_eq!(Seal::new([2; 32]).read(&said(42, &payload)), None, "of another listener");
        let unknown = mark.payload(Mark::PAUSE, 3, None);
        assert_eq!(mark.seal.read(&said(44, &unknown)), Some((7, Mark::PAUSE, 3)));
    }
}
