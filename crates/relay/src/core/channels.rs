//! `LISTEN` without a connection of one's own: the channels of a session are handed over to the pool's listener, and
//! brought back to the connection for statements that ask for them or change them.

use std::sync::Arc;

use aws_lc_rs::hmac;

use super::requests::Kind;
use super::{BackendState, Core};
use crate::PoolMode;
use crate::sql::{Effects, Pin};
use wire::{identifier, unicode_identifier};

/// How many channels of a session are handed over: each statement that may notify its session brings them all back. One with
/// more keeps its connection.
const MAX_CHANNELS: usize = 1000;

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

    pub(super) fn payload(&self, what: u8, number: u64, backend: &BackendState) -> String {
        let words = format!("{}.{}{number}", self.id, what as char);
        format!("'{words}.{:016x}'", self.seal.of(backend.pid.unwrap_or(UNKNOWN), &words))
    }
}

/// What the listener is asked to take over.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    /// What the connection listens to.
    pub channels: Vec<String>,
    /// The number of the recall since the last time; 0 for none.
    pub recall: u64,
    /// The number of the marker that will be sent.
    pub number: u64,
}

/// The channels of one session.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// What the listener delivers, in order. Never empty without a mark.
    carried: Vec<String>,
    mark: Option<Mark>,
    /// Of the last marker or recall.
    number: u64,
    /// Of the last recall, since which the connection listens to them as well; 0 for none.
    recall: u64,
    /// With which the listener stops to deliver.
    pauses: bool,
    /// It is the connection that delivers.
    paused: bool,
    /// What it delivers must wait for what the listener has delivered before.
    pausing: bool,
    stage: Stage,
}

/// How a statement comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Simple,
    Extended,
}

/// How far the hand-over has come.
#[derive(Debug, Default, PartialEq, Eq)]
enum Stage {
    /// There is none.
    #[default]
    Still,
    /// The connection listens to these.
    Found(Vec<String>),
    /// The listener was asked.
    Asked,
    /// The marker was sent; whether it has come back.
    Marking { seen: bool },
    /// It has.
    Marked,
    /// The connection is told to listen no more.
    Unlistening,
    /// It does not: the listener has still to say that it delivers.
    Settling,
}

impl Core {
    /// True while the session's channels are on their way to the listener.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.channels.as_ref().is_some_and(|c| c.stage != Stage::Still)
    }

    /// True if a notification can be put in between what the client gets, as PostgreSQL would: outside a transaction.
    pub(crate) fn takes_notifications(&self) -> bool {
        self.is_idle() && !self.refusing
    }

    /// True if the session has channels that the listener delivers.
    pub(crate) fn has_carried_channels(&self) -> bool {
        self.channels.as_ref().is_some_and(|c| !c.carried.is_empty())
    }

    pub(super) fn has_recalled(&self) -> bool {
        self.channels.as_ref().is_some_and(|c| c.recall != 0)
    }

    /// True if what the client sends must wait: channels were brought back in a transaction that is over, or may be,
    /// and in the next one it must be known what became of them.
    pub(super) fn must_settle_first(&self) -> bool {
        self.has_recalled() && (self.requests.has_an_end() || self.status == b'I' && !self.unsynced)
    }

    /// The connection says that it listens to these.
    pub(super) fn found_channels(&mut self, mut found: Vec<String>) {
        if found.is_empty() && !self.has_recalled() {
            return;
        }
        if found.len() > MAX_CHANNELS {
            return self.keep_channels();
        }
        let channels = self.channels.get_or_insert_default();
        if let Some(mark) = &channels.mark {
            found.retain(|channel| **channel != *mark.channel);
        }
        channels.stage = Stage::Found(found);
    }

    /// What the listener is to be asked now, if anything.
    pub(crate) fn ask_listener(&mut self) -> Option<Asked> {
        let channels = self.channels.as_mut()?;
        let Stage::Found(found) = &mut channels.stage else { return None };
        let found = std::mem::take(found);
        channels.number += 1;
        channels.stage = Stage::Asked;
        Some(Asked { channels: found, recall: channels.recall, number: channels.number })
    }

    /// True if the listener's first answer is awaited, or its last one.
    pub(crate) fn awaits_listener(&self) -> bool {
        self.channels.as_ref().is_some_and(|c| matches!(c.stage, Stage::Asked | Stage::Settling))
    }

    /// The listener listens: the marker is sent. False if it would deliver in another encoding than the client's:
    /// it does so in UTF-8.
    pub(crate) fn mark(&mut self, mark: Mark, backend: &mut BackendState, up: &mut Vec<u8>) -> bool {
        let is_utf8 = self.is_utf8();
        let Some(channels) = self.channels.as_mut().filter(|c| is_utf8 || !c.carried.is_empty()) else {
            return false;
        };
        let channel = identifier(&mark.channel);
        let payload = mark.payload(Mark::MARKER, channels.number, backend);
        wire::query(up, &format!("LISTEN {channel};NOTIFY {channel},{payload}"));
        backend.unnamed = None;
        self.requests.push(Kind::HandOver);
        channels.mark = Some(mark);
        channels.stage = Stage::Marking { seen: false };
        true
    }

    /// Once the marker has come back: the connection is to listen no more. False if it is not the time.
    pub(crate) fn unlisten(&mut self, up: &mut Vec<u8>) -> bool {
        let Some(channels) = self.channels.as_mut().filter(|c| c.stage == Stage::Marked) else {
            return false;
        };
        wire::query(up, "UNLISTEN *");
        self.requests.push(Kind::HandOver);
        channels.stage = Stage::Unlistening;
        true
    }

    /// The listener delivers what comes on these.
    pub(crate) fn carry_channels(&mut self, mut carried: Vec<String>) {
        carried.sort_unstable();
        self.channels = match self.channels.take() {
            Some(mut channels) if !carried.is_empty() => {
                (channels.carried, channels.stage) = (carried, Stage::Still);
                (channels.recall, channels.paused) = (0, false);
                Some(channels)
            }
            _ => None,
        };
    }

    /// There is no listener to be had: the session keeps its connection.
    pub(crate) fn keep_channels(&mut self) {
        self.channels = None;
        self.residue.pin_until_gone(Pin::Listen);
    }

    /// True if the session has any.
    pub(crate) fn has_channels(&self) -> bool {
        self.channels.is_some()
    }

    /// True if the connection does not listen any more, and the listener has not said that it delivers.
    pub(crate) fn is_settling(&self) -> bool {
        self.channels.as_ref().is_some_and(|c| c.stage == Stage::Settling)
    }

    /// The recall with which the listener stops to deliver, while nothing that comes from the upstream may be dealt
    /// with: what the listener has delivered comes first.
    pub(crate) fn pausing(&self) -> Option<u64> {
        self.channels.as_ref().filter(|c| c.pausing).map(|c| c.recall)
    }

    /// They have been sent.
    pub(crate) fn paused(&mut self) {
        if let Some(channels) = &mut self.channels {
            channels.pausing = false;
        }
    }

    /// False if a notification has characters that the listener was sent in another encoding than the client's.
    pub(crate) fn can_be_told(&self, message: &[u8]) -> bool {
        self.is_utf8() || message.get(wire::HEADER + 4..).unwrap_or_default().is_ascii()
    }

    fn is_utf8(&self) -> bool {
        self.settings.reported().get(b"client_encoding") == Some(b"UTF8")
    }

    /// The `ReadyForQuery` of a step of the hand-over; false if it failed.
    pub(super) fn handed_over(&mut self) -> bool {
        let Some(channels) = &mut self.channels else { return false };
        channels.stage = match channels.stage {
            Stage::Marking { seen: true } => Stage::Marked,
            Stage::Unlistening => Stage::Settling,
            _ => return false,
        };
        true
    }

    /// Whether a notification is this connection's to deliver.
    pub(super) fn delivers(&mut self, body: &[u8]) -> bool {
        let Some(channels) = &mut self.channels else { return true };
        let Some((channel, _)) = wire::notification(body) else { return true };
        if let Some(mark) = channels.mark.as_ref().filter(|mark| mark.channel.as_bytes() == channel) {
            let said = mark.seal.read(body);
            if said == Some((mark.id, Mark::PAUSE, channels.recall)) {
                (channels.paused, channels.pausing) = (true, true);
            }
            if let Stage::Marking { seen } = &mut channels.stage {
                *seen |= said == Some((mark.id, Mark::MARKER, channels.number));
            }
            return false;
        }
        match &channels.stage {
            Stage::Marking { seen: true } | Stage::Marked | Stage::Unlistening => false,
            _ => {
                let carried = channels.carried.binary_search_by(|carried| carried.as_bytes().cmp(channel));
                channels.paused || carried.is_err()
            }
        }
    }

    /// A statement that has to do with channels, or may notify its own session, is about to run: the connection is to
    /// listen to those of the session, in the same transaction. A `Query` would end an implicit
    /// transaction.
    pub(super) fn recall_channels(
        &mut self,
        effects: &Effects,
        protocol: Protocol,
        backend: &mut BackendState,
        up: &mut Vec<u8>,
    ) {
        if !effects.channels && !effects.notifies {
            return;
        }
        let Some(channels) = &mut self.channels else { return };
        if channels.recall != 0 {
            // Whatever the connection listens to then is its own to deliver.
            channels.paused |= channels.pauses && effects.channels;
            return;
        }
        let Some(mark) = channels.mark.as_ref().filter(|_| !channels.carried.is_empty()) else { return };
        channels.number += 1;
        channels.recall = channels.number;
        // One that asks for the channels must not see the one of pgusher's own.
        let what = if effects.channels { Mark::RECALL } else { Mark::PAUSE };
        let own = identifier(&mark.channel);
        let mut statements: Vec<String> = channels
            .carried
            .iter()
            .map(|channel| format!("LISTEN {}", unicode_identifier(channel)))
            .collect();
        channels.pauses = what == Mark::PAUSE;
        if channels.pauses {
            statements.push(format!("LISTEN {own}"));
        }
        statements.push(format!("NOTIFY {own},{}", mark.payload(what, channels.recall, backend)));
        backend.unnamed = None;
        // LISTEN takes effect when its transaction ends: where none has begun, it has one of its own.
        if protocol == Protocol::Simple || self.status == b'I' && !self.unsynced {
            wire::query(up, &statements.join(";"));
            self.requests.push_hidden(Kind::Query, None);
        } else {
            statements.iter().for_each(|statement| self.run_hidden(statement, up));
        }
    }

    /// `Parse`, `Bind` and `Execute` of a statement of our own, inside the transaction that the client is in.
    pub(super) fn run_hidden(&mut self, statement: &str, up: &mut Vec<u8>) {
        debug_assert_eq!(self.mode, PoolMode::Transaction);
        wire::message(up, b'P', |out| {
            out.push(0);
            wire::push_cstr(out, statement);
            out.extend([0; 2]);
        });
        // Not the unnamed portal, which the client may have, or may ask for because it has none.
        let portal = self.interner.name(0);
        wire::message(up, b'B', |out| {
            wire::push_cstr(out, &portal);
            out.extend([0; 7]);
        });
        wire::message(up, b'E', |out| {
            wire::push_cstr(out, &portal);
            out.extend([0; 4]);
        });
        wire::message(up, b'C', |out| {
            out.push(b'P');
            wire::push_cstr(out, &portal);
        });
        for kind in [Kind::ParseUnnamed, Kind::Bind, Kind::Execute, Kind::Close] {
            self.requests.push_hidden(kind, None);
        }
    }
}
