//! The life of the process: whether clients are accepted, and how it ends.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How pgusher is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Now.
    Immediate,
    /// When no transaction is under way any more.
    WaitForServers,
    /// When no client is there any more.
    WaitForClients,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lifetime {
    listening: AtomicBool,
    draining: AtomicBool,
    closing: CancellationToken,
    /// A token for each listener that is open, and for each client that is not in yet.
    door: TaskTracker,
    end: watch::Sender<Option<Shutdown>>,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self {
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            closing: CancellationToken::new(),
            door: TaskTracker::new(),
            end: watch::Sender::new(None),
        }
    }
}

impl Lifetime {
    /// Clients are accepted from now on.
    pub(crate) fn listens(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// Whether they have been.
    pub(crate) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Acquire)
    }

    /// Whoever holds this is on the way in, or lets others in.
    pub(crate) fn at_the_door(&self) -> TaskTrackerToken {
        self.door.token()
    }

    /// No more clients are accepted from now on.
    pub(crate) fn close(&self) {
        self.closing.cancel();
        self.door.close();
    }

    /// For whoever accepts, and for those who stop when nobody is accepted any more.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Nobody is at the door any more. Only after [`Lifetime::close`] is that so for good.
    pub(crate) async fn door_is_empty(&self) {
        self.door.wait().await;
    }

    /// Sessions end from now on, each at its next idle point.
    pub(crate) fn drains(&self) {
        self.draining.store(true, Ordering::Release);
        self.close();
    }

    /// Whether the process is about to end.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Asks the process to end.
    pub(crate) fn ask_to_end(&self, how: Shutdown) {
        self.end.send_replace(Some(how));
    }

    /// Waits until somebody asks that.
    pub(crate) async fn asked_to_end(&self) -> Shutdown {
        let mut asked = self.end.subscribe();
        let how = asked.wait_for(Option::is_some).await.map(|how| *how);
        match how {
            Ok(Some(how)) => how,
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_door_is_empty_when_the_last_has_come_in_or_left() {
        let life = Lifetime::default();
        let (listener, client) = (life.at_the_door(), life.at_the_door());
        life.close();
        drop(listener);
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, life.door_is_empty()).await.is_err());
        drop(client);
        life.door_is_empty().await;
        life.ask_to_end(Shutdown::WaitForClients);
        assert_eq!(life.asked_to_end().await, Shutdown::WaitForClients);
    }
}
