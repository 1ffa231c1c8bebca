//! What others may tell a session to do, and it others: to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

use super::SessionStatistics;
use super::activity::Activity;
use relay::{Reached, Signalled};
use wire::error::Refusal;

/// What others may tell a session to do.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    told: Mutex<Told>,
    pending: AtomicBool,
    /// Whether it does anything.
    pub(super) activity: Activity,
    /// What can be seen of the session meanwhile.
    pub statistics: SessionStatistics,
}

#[derive(Debug, Default)]
struct Told {
    order: Option<Box<Order>>,
    /// Of the session's task.
    waker: Option<Waker>,
}

/// Whose an order is: what one has ordered, another does not take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderedBy {
    /// The configuration: its user does not go there any more.
    Route,
    /// An operator, or the end of the process.
    Operator,
}

/// When a session ends by an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum When {
    /// At the next idle point.
    Idle,
    /// Now.
    Now,
}

/// What a session may tell others to do, as PostgreSQL's processes by their numbers.
pub(crate) trait Signals: Send + Sync {
    /// Signals a session, if there is one that this caller may signal.
    fn signal(&self, caller: u64, signalled: Signalled) -> Reached;
}

/// An order to end.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// Whose it is.
    pub by: OrderedBy,
    /// When.
    pub when: When,
    /// What the client is told.
    pub refusal: Refusal,
}

impl Orders {
    /// Gives an order; a later one replaces it, but "now" stays "now", and an operator's is not replaced by the configuration's.
    pub(crate) fn give(&self, order: Order) {
        let mut told = self.told.lock();
        let when = told.order.as_ref().map_or(order.when, |known| order.when.max(known.when));
        match &mut told.order {
            Some(known) if known.by == OrderedBy::Operator && order.by == OrderedBy::Route => {
                known.when = when;
            }
            none_or_other => *none_or_other = Some(Box::new(Order { when, ..order })),
        }
        drop(told);
        self.pending.store(true, Ordering::Release);
        self.wake();
    }

    /// Has the session look at its clock, and at whatever else there may be.
    pub(crate) fn wake(&self) {
        let waker = self.told.lock().waker.clone();
        waker.into_iter().for_each(Waker::wake);
    }

    /// The session's task has this waker from now on: it is another when it goes to another thread.
    pub(super) fn is_woken_by(&self, waker: &Waker) {
        self.told.lock().waker = Some(waker.clone());
    }

    /// Has the session rest if it has done nothing since the last call; true if it was woken for that.
    pub(crate) fn tend(&self) -> bool {
        let rests = self.activity.look();
        if rests {
            self.wake();
        }
        rests
    }

    /// Takes back what the configuration has ordered: the reason for it is gone. What an operator has ordered stays.
    pub(crate) fn take_back(&self) {
        let mut told = self.told.lock();
        if told.order.as_ref().is_some_and(|order| order.by == OrderedBy::Route) {
            told.order = None;
            self.pending.store(false, Ordering::Release);
        }
    }

    /// The order in force, if there is one.
    pub(super) fn pending(&self) -> Option<Order> {
        self.told.lock().order.as_deref().cloned()
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(by: OrderedBy, when: When) -> Order {
        Order { by, when, refusal: Refusal::protocol("an order") }
    }

    fn held(orders: &Orders) -> Option<(OrderedBy, When)> {
        assert_eq!(orders.is_pending(), orders.told.lock().order.is_some());
        orders.told.lock().order.as_ref().map(|order| (order.by, order.when))
    }

    #[test]
    fn what_an_operator_has_ordered_the_configuration_does_not_take_back() {
        use OrderedBy::{Operator, Route};
        let orders = Orders::default();
        orders.give(order(Route, When::Idle));
        orders.take_back();
        assert_eq!(held(&orders), None);
        // In whichever order they come, and "now" stays.
        for (first, second) in [(Route, Operator), (Operator, Route)] {
            let orders = Orders::default();
            orders.give(order(first, When::Now));
            orders.give(order(second, When::Idle));
            orders.take_back();
            assert_eq!(held(&orders), Some((Operator, When::Now)), "{first:?}, then {second:?}");
        }
    }
}
