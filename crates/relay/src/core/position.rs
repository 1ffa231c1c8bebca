//! Where a conversation is in the protocol: what is owed, which message has begun, which series, COPY and transaction are open,
//! and how much may still be sent before answers are waited for.

use super::requests::Requests;
use crate::catalog::Words;
use crate::sql::Scan;

/// How many requests may be under way before the upstream is asked to answer, whether or not the client asks.
pub(super) const MAX_UNASKED: usize = 1000;
/// How many may be under way before no more are taken from the client.
pub(super) const MAX_REQUESTS: usize = 8 * MAX_UNASKED;
/// How many bytes of statements that are bound may be gone through before answers are waited for.
const MAX_SCANNED: usize = 512 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Position {
    requests: Requests,
    series: Series,
    transaction: Transaction,
    copy: Copy,
    client_remainder: (usize, Remainder),
    upstream_remainder: (usize, Forward),
    fatal: Fatal,
    /// At how many requests answers are asked for next.
    flush_at: usize,
    /// Up to this request all must be answered before more is sent: much is under way.
    ahead: u64,
    /// What is deferred waits for the answer to this request, at the most.
    deferred_until: u64,
    /// How many bytes of bound statements were gone through since answers were waited for.
    scanned: usize,
    transactions: u64,
    /// How many queries were answered, as far as that tells one from the next.
    queries: u32,
    counts: Counts,
}

/// How far a session has come: these go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    /// Of its last request.
    request: u64,
    /// How many transactions have ended.
    transactions: u64,
}

/// What was sent of the extended protocol since the last `Sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Series {
    Nothing,
    Something,
    /// The upstream ignores everything up to a `Sync` that the client has still to send.
    Skipped,
    /// A request was refused for want of a connection; the rest up to its `Sync` is ignored.
    Refused,
}

/// What the last `ReadyForQuery` has said (PostgreSQL's manual, "Message Formats").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transaction {
    /// `I`
    None,
    /// `T`
    Open,
    /// `E`
    Failed,
}

impl Transaction {
    /// By its letter.
    pub(super) fn of(letter: u8) -> Option<Self> {
        match letter {
            b'I' => Some(Self::None),
            b'T' => Some(Self::Open),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }
}

/// How far a COPY has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    None,
    /// The upstream reads data; `has_sync` if the client sent a `Sync` meanwhile, which the upstream ignores.
    In {
        has_sync: bool,
    },
    /// The client has ended it; the upstream has still to say so.
    Ending {
        has_sync: bool,
    },
}

/// What happens to the rest of a message of the client's whose beginning has gone already.
#[derive(Debug)]
pub(super) enum Remainder {
    Pass,
    Drop,
    /// It is SQL too long to be looked at whole.
    Scan(Box<(Scan, Words)>),
}

/// What happens to a message of the upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forward {
    Pass,
    Drop,
    /// It describes a statement of ours.
    Learn,
}

/// Whether the upstream has said that it ends the connection (severity FATAL or PANIC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fatal {
    No,
    Sent,
}

/// Numbers of messages since they were last taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// `ReadyForQuery` to the client; those that answer pgusher's own queries are not counted.
    pub queries: u32,
    /// `Parse` messages of the client, also those that were refused.
    pub client_parses: u32,
    /// `Parse` messages sent for statements of the client, named ones that are prepared again included; not the unnamed one sent
    /// again, nor pgusher's own.
    pub server_parses: u32,
    /// `Bind` messages of the client.
    pub binds: u32,
}

impl Default for Position {
    /// Of a session that has just logged in.
    fn default() -> Self {
        Self::after(Numbers { request: 0, transactions: 0 })
    }
}

impl Position {
    /// Of a session that has come so far, of which nothing is under way.
    pub(super) fn after(numbers: Numbers) -> Self {
        Self {
            requests: Requests::after(numbers.request),
            series: Series::Nothing,
            transaction: Transaction::None,
            copy: Copy::None,
            client_remainder: (0, Remainder::Pass),
            upstream_remainder: (0, Forward::Pass),
            fatal: Fatal::No,
            flush_at: MAX_UNASKED,
            ahead: 0,
            deferred_until: 0,
            scanned: 0,
            transactions: numbers.transactions,
            queries: 0,
            counts: Counts::default(),
        }
    }

    /// How far it has come.
    pub(super) fn numbers(&self) -> Numbers {
        Numbers { request: self.requests.last_number(), transactions: self.transactions }
    }

    /// True if it is as [`Position::after`] its numbers, but for what means nothing while no request is under way.
    pub(super) fn is_as_new(&self) -> bool {
        let Self {
            requests,
            series: Series::Nothing,
            transaction: Transaction::None,
            copy: Copy::None,
            client_remainder: (0, Remainder::Pass),
            upstream_remainder: (0, _),
            fatal: Fatal::No,
            flush_at: MAX_UNASKED,
            ahead: _,
            deferred_until: _,
            scanned: _,
            transactions: _,
            queries: _,
            counts,
        } = self
        else {
            return false;
        };
        requests.is_empty() && *counts == Counts::default()
    }

    /// What is owed.
    pub(super) fn requests(&self) -> &Requests {
        &self.requests
    }

    pub(super) fn requests_mut(&mut self) -> &mut Requests {
        &mut self.requests
    }

    /// True if nothing is under way: no transaction, no answer outstanding, no message begun.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.transaction == Transaction::None
            && matches!(self.series, Series::Nothing | Series::Refused)
            && self.copy == Copy::None
            && self.client_remainder.0 == 0
            && self.upstream_remainder.0 == 0
    }

    /// True if the client is owed no answer, whether or not a transaction is open.
    pub(super) fn is_clients_turn(&self) -> bool {
        self.requests.is_empty() && self.upstream_remainder.0 == 0
    }

    /// The connection is gone, and nothing of the client's was sent on it.
    pub(super) fn lose_connection(&mut self) {
        self.fatal = Fatal::No;
        self.requests.clear();
        self.upstream_remainder = (0, Forward::Pass);
    }

    /// The connection goes back.
    pub(super) fn end_lease(&mut self) {
        self.flush_at = MAX_UNASKED;
    }

    // ── messages that are not there whole ──

    /// True if a message of the client's has begun and not ended.
    pub(super) fn is_in_clients_message(&self) -> bool {
        self.client_remainder.0 > 0
    }

    /// So many bytes of the client's are still to come that are treated like this.
    pub(super) fn expect_of_client(&mut self, length: usize, rest: Remainder) {
        self.client_remainder = (length, rest);
    }

    /// How the client's next bytes are treated, and how many of so many.
    pub(super) fn client_remainder(&mut self, there: usize) -> (usize, &mut Remainder) {
        (self.client_remainder.0.min(there), &mut self.client_remainder.1)
    }

    /// So many of them were dealt with; how, if these were the last.
    pub(super) fn passed_of_client(&mut self, length: usize) -> Option<Remainder> {
        self.client_remainder.0 -= length;
        let is_over = self.client_remainder.0 == 0;
        is_over.then(|| std::mem::replace(&mut self.client_remainder.1, Remainder::Pass))
    }

    /// True if no message of the upstream's has begun and not ended.
    pub(super) fn between_messages(&self) -> bool {
        self.upstream_remainder.0 == 0
    }

    /// So many bytes of the upstream's are still to come that are treated like this.
    pub(super) fn expect_of_upstream(&mut self, length: usize, forward: Forward) {
        self.upstream_remainder = (length, forward);
    }

    /// How many of so many bytes of the upstream's belong to the message that has begun, and how they are treated.
    pub(super) fn pass_of_upstream(&mut self, there: usize) -> (usize, Forward) {
        let here = self.upstream_remainder.0.min(there);
        self.upstream_remainder.0 -= here;
        (here, self.upstream_remainder.1)
    }

    // ── series of the extended protocol ──

    /// True if something was sent since the last `Sync`.
    pub(super) fn is_unsynced(&self) -> bool {
        matches!(self.series, Series::Something | Series::Skipped)
    }

    /// True if the upstream ignores what the client sends, up to a `Sync`.
    pub(super) fn is_skipping(&self) -> bool {
        self.series == Series::Skipped
    }

    /// True if we ignore it ourselves.
    pub(super) fn is_refusing(&self) -> bool {
        self.series == Series::Refused
    }

    /// Something is sent.
    pub(super) fn begin_series(&mut self) {
        if self.series == Series::Nothing {
            self.series = Series::Something;
        }
    }

    /// The upstream has refused something, and the client has not sent its `Sync`.
    pub(super) fn skip_series(&mut self) {
        self.series = Series::Skipped;
    }

    /// There is no connection for it.
    pub(super) fn refuse_series(&mut self) {
        self.series = Series::Refused;
    }

    /// A `Sync`.
    pub(super) fn end_series(&mut self) {
        self.series = Series::Nothing;
    }

    // ── COPY ──

    /// True while the upstream waits for data.
    pub(super) fn is_copying(&self) -> bool {
        matches!(self.copy, Copy::In { .. })
    }

    /// True when the client has ended a COPY, and the upstream has not said that it is over.
    pub(super) fn is_copy_ending(&self) -> bool {
        matches!(self.copy, Copy::Ending { .. })
    }

    /// True if the client has sent a `Sync` during the COPY.
    pub(super) fn has_sync_in_copy(&self) -> bool {
        matches!(self.copy, Copy::In { has_sync: true } | Copy::Ending { has_sync: true })
    }

    /// The upstream waits for data: what is under way behind the request is a part of it, perhaps up to its end. True if it
    /// ignores a `Sync` of that.
    pub(super) fn begin_copy(&mut self) -> bool {
        let (ended, has_sync) = self.requests.begin_copy();
        self.copy = if ended { Copy::Ending { has_sync } } else { Copy::In { has_sync } };
        has_sync
    }

    /// A `Sync` of the client's. True if a COPY is open, which ignores it; else it ends the series.
    pub(super) fn note_sync_in_copy(&mut self) -> bool {
        match &mut self.copy {
            Copy::In { has_sync } => {
                *has_sync = true;
                true
            }
            Copy::None | Copy::Ending { .. } => false,
        }
    }

    /// `CopyDone` or `CopyFail`; false if no COPY is open.
    pub(super) fn client_ends_copy(&mut self) -> bool {
        match self.copy {
            Copy::In { has_sync } => {
                self.copy = Copy::Ending { has_sync };
                true
            }
            Copy::None | Copy::Ending { .. } => false,
        }
    }

    /// It is over.
    pub(super) fn end_copy(&mut self) {
        self.copy = Copy::None;
    }

    // ── transactions ──

    pub(super) fn transaction(&self) -> Transaction {
        self.transaction
    }

    /// True if what comes now begins a transaction: none is open, and no series.
    pub(super) fn is_before_transaction(&self) -> bool {
        self.transaction == Transaction::None && !self.is_unsynced()
    }

    /// `ReadyForQuery`, of the client's.
    pub(super) fn ready(&mut self, transaction: Transaction) {
        self.transaction = transaction;
        self.transactions += u64::from(transaction == Transaction::None);
        self.queries = self.queries.wrapping_add(1);
        self.counts.queries += 1;
    }

    /// A number that tells the query under way from the one before it.
    pub(super) fn query_number(&self) -> u32 {
        self.queries
    }

    /// How many transactions (and queries outside of one) have ended.
    pub(super) fn transactions(&self) -> u64 {
        self.transactions
    }

    /// What is counted.
    pub(super) fn counts_mut(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// The upstream has said that it ends the connection.
    pub(super) fn note_fatal(&mut self) {
        self.fatal = Fatal::Sent;
    }

    pub(super) fn has_sent_fatal(&self) -> bool {
        self.fatal == Fatal::Sent
    }

    // ── how much is under way ──

    /// True if so much is under way that no more should be read from the client.
    pub(super) fn is_full(&self) -> bool {
        self.requests.len() > MAX_REQUESTS
    }

    /// True if answers are to be asked for.
    pub(super) fn wants_answers(&self) -> bool {
        self.requests.len() >= self.flush_at
    }

    /// They have been.
    pub(super) fn asked_for_answers(&mut self) {
        self.flush_at = self.requests.len() + MAX_UNASKED;
    }

    /// Nothing is under way any more.
    pub(super) fn all_is_answered(&mut self) {
        self.flush_at = MAX_UNASKED;
    }

    /// Counts bytes of a text that was gone through and is longer than the message at hand, such as a statement that is bound.
    /// Beyond a limit all that is under way must be answered first, so that the other sessions of this thread have their turns.
    pub(super) fn add_scanned_bytes(&mut self, bytes: usize) {
        self.scanned += bytes;
        if self.scanned > MAX_SCANNED {
            self.flush_at = 0;
        }
    }

    /// True if it is beyond that limit, which is said once.
    pub(super) fn take_scan_limit_reached(&mut self) -> bool {
        let is_much = self.scanned > MAX_SCANNED && self.client_remainder.0 == 0;
        if is_much {
            self.scanned = 0;
        }
        is_much
    }

    /// What is under way must be answered before more is sent.
    pub(super) fn wait_for_all(&mut self) {
        self.ahead = self.requests.next_number() - 1;
    }

    /// True while that is not done.
    pub(super) fn is_ahead(&self) -> bool {
        self.requests.front().is_some_and(|front| front.number <= self.ahead)
    }

    /// A message waits for what is under way.
    pub(super) fn defer(&mut self) {
        self.deferred_until = self.requests.last_end().max(self.ahead);
    }

    /// True if it may be looked at again: what it waits for may have been answered.
    pub(super) fn may_go_on(&self) -> bool {
        let is_over = self.requests.front().is_none_or(|front| front.number > self.deferred_until);
        is_over || self.is_copying()
    }

    /// During a COPY the upstream waits for the client, and whatever else that sends is an error.
    pub(super) fn may_defer(&self) -> bool {
        !self.is_copying()
    }
}

#[cfg(test)]
mod tests {
    use super::super::requests::Kind;
    use super::*;

    #[test]
    fn it_is_idle_when_nothing_is_under_way() {
        type Change = fn(&mut Position);
        let changes: [(Change, Change); 6] = [
            (|p| p.requests_mut().push(Kind::Query), |p| drop(p.requests_mut().pop())),
            (Position::begin_series, Position::end_series),
            (Position::skip_series, Position::end_series),
            (|p| p.ready(Transaction::Failed), |p| p.ready(Transaction::None)),
            (|p| p.expect_of_client(1, Remainder::Drop), |p| drop(p.passed_of_client(1))),
            (|p| p.expect_of_upstream(1, Forward::Drop), |p| assert_eq!(p.pass_of_upstream(9).0, 1)),
        ];
        for (change, back) in changes {
            let mut position = Position::default();
            change(&mut position);
            assert!(!position.is_idle(), "{position:?}");
            back(&mut position);
            assert!(position.is_idle(), "{position:?}");
        }
        let mut position = Position::default();
        position.refuse_series();
        assert!(position.is_idle() && !position.is_unsynced());
    }

    #[test]
    fn a_series_is_skipped_or_refused_up_to_its_sync() {
        let mut position = Position::default();
        position.begin_series();
        assert!(position.is_unsynced() && !position.is_skipping());
        position.skip_series();
        position.begin_series();
        assert!(position.is_skipping() && position.is_unsynced());
        position.end_series();
        position.refuse_series();
        position.begin_series();
        assert!(position.is_refusing() && !position.is_unsynced());
        position.end_series();
        assert!(position.is_before_transaction());
    }

    #[test]
    fn a_sync_within_a_copy_is_stray() {
        let mut position = Position::default();
        assert!(!position.note_sync_in_copy() && !position.client_ends_copy());
        position.requests_mut().push(Kind::Query);
        assert!(!position.begin_copy());
        assert!(position.is_copying() && !position.may_defer());
        assert!(!position.has_sync_in_copy() && position.note_sync_in_copy() && position.has_sync_in_copy());
        assert!(position.client_ends_copy() && position.is_copy_ending() && position.has_sync_in_copy());
        assert!(!position.client_ends_copy() && !position.note_sync_in_copy() && position.may_defer());
        position.end_copy();
        assert!(!position.is_copy_ending() && !position.has_sync_in_copy());
    }

    #[test]
    fn a_copy_whose_end_was_sent_already_is_ending() {
        let mut position = Position::default();
        for kind in [Kind::Execute, Kind::Sync, Kind::CopyEnd, Kind::Sync] {
            position.requests_mut().push(kind);
        }
        assert!(position.begin_copy());
        assert!(position.is_copy_ending() && position.has_sync_in_copy());
        assert_eq!(position.requests().len(), 2);
    }

    #[test]
    fn much_that_is_under_way_is_asked_for_and_waited_for() {
        let mut position = Position::default();
        (1..MAX_UNASKED).for_each(|_| position.requests_mut().push(Kind::Execute));
        assert!(!position.wants_answers());
        position.requests_mut().push(Kind::Sync);
        assert!(position.wants_answers());
        position.asked_for_answers();
        assert!(!position.wants_answers());
        position.wait_for_all();
        position.defer();
        assert!(position.is_ahead() && !position.may_go_on());
        position.add_scanned_bytes(MAX_SCANNED);
        assert!(!position.wants_answers() && !position.take_scan_limit_reached());
        position.add_scanned_bytes(1);
        assert!(
            position.wants_answers()
                && position.take_scan_limit_reached()
                && !position.take_scan_limit_reached()
        );
        while position.requests_mut().pop().is_some() {}
        position.all_is_answered();
        assert!(!position.is_ahead() && position.may_go_on() && !position.wants_answers());
        (0..=MAX_REQUESTS).for_each(|_| position.requests_mut().push(Kind::Execute));
        assert!(position.is_full());
        position.lose_connection();
        assert!(!position.is_full() && position.is_idle());
    }

    #[test]
    fn what_is_begun_is_treated_alike_up_to_its_end() {
        let mut position = Position::default();
        position.expect_of_client(5, Remainder::Drop);
        assert!(matches!(position.client_remainder(3), (3, Remainder::Drop)));
        assert!(position.passed_of_client(3).is_none() && position.is_in_clients_message());
        assert!(matches!(position.client_remainder(9), (2, Remainder::Drop)));
        assert!(matches!(position.passed_of_client(2), Some(Remainder::Drop)));
        position.expect_of_upstream(5, Forward::Drop);
        assert_eq!(position.pass_of_upstream(4), (4, Forward::Drop));
        assert!(!position.between_messages());
        assert_eq!(position.pass_of_upstream(4), (1, Forward::Drop));
        assert!(position.between_messages());
    }

    #[test]
    fn transactions_are_counted_when_they_end() {
        let mut position = Position::default();
        for letter in *b"TEITI" {
            position.ready(Transaction::of(letter).expect("a letter"));
        }
        assert_eq!((position.transactions(), position.counts_mut().queries), (2, 5));
        assert_eq!(Transaction::of(b'X'), None);
        position.note_fatal();
        assert!(position.has_sent_fatal());
    }
}
