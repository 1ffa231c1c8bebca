//! What an operator sees of a pool, and what he can do to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Pool;
use crate::stats::Stats;
use crate::upstream::CancelTarget;

/// Why a pool lends nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// `PAUSE`: its connections are closed as they come back.
    Paused,
    /// `SUSPEND`: they are kept.
    Suspended,
}

/// A pool at one moment.
#[derive(Debug)]
pub struct View {
    /// Connections that wait to be lent.
    pub idle: usize,
    /// Connections that are lent, or kept.
    pub active: usize,
    /// Connections that are being opened.
    pub dialing: usize,
    /// Sessions that wait, and for how long the first of them.
    pub waiting: usize,
    /// Zero if none waits.
    pub longest_wait: Duration,
    /// Sessions that keep a connection.
    pub pinned: usize,
    /// Why it lends nothing.
    pub halted: Option<Halt>,
    /// Nobody may log in to it.
    pub disabled: bool,
    /// The upstream could not be reached at the last attempt.
    pub failing: bool,
}

impl View {
    /// In a word.
    pub fn health(&self) -> &'static str {
        match () {
            () if self.disabled => "disabled",
            () if self.halted.is_some() => "paused",
            () if self.failing => "failing",
            () if self.active + self.idle == 0 => "unused",
            () => "up",
        }
    }
}

impl Pool {
    /// What is counted of it.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How it is now.
    pub fn view(&self) -> View {
        let state = self.state.lock();
        View {
            idle: state.idle.len(),
            active: state.open.saturating_sub(state.idle.len()),
            dialing: state.dialing,
            waiting: state.waiters.len(),
            longest_wait: state.waiters.front().map_or(Duration::ZERO, |ticket| ticket.since.elapsed()),
            pinned: self.pinned.load(Ordering::Relaxed),
            halted: state.halted,
            disabled: self.is_disabled(),
            failing: state.failures > 0,
        }
    }

    /// Its connections, and whether each is idle.
    pub fn servers(&self) -> Vec<(Arc<CancelTarget>, bool)> {
        let idle: Vec<u32> = self.state.lock().idle.iter().map(|pooled| pooled.target.pid()).collect();
        let all = self.servers.lock();
        let living = all.iter().filter_map(|(_, server)| server.upgrade());
        living.map(|target| (target.clone(), idle.contains(&target.pid()))).collect()
    }

    /// Lends nothing any more, until [`Pool::resume`].
    pub fn halt(self: &Arc<Self>, halt: Halt) {
        let idle = {
            let mut state = self.state.lock();
            state.halted = Some(halt);
            let idle = if halt == Halt::Paused { std::mem::take(&mut state.idle) } else { Vec::new() };
            idle.iter().for_each(|_| state.one_less());
            idle
        };
        idle.into_iter().for_each(|pooled| self.see_off(pooled));
    }

    /// Whether its route went elsewhere while it was halted: it lends nothing any more, whoever resumes.
    pub fn is_stranded(&self) -> bool {
        self.state.lock().stranded
    }

    /// Lends again; false if it did so already, or never will.
    pub fn resume(self: &Arc<Self>) -> bool {
        let halted = {
            let mut state = self.state.lock();
            if state.stranded { None } else { state.halted.take() }
        };
        self.serve_waiters();
        self.open_more();
        halted.is_some()
    }

    /// Every connection there is, is replaced when it comes back.
    pub fn reconnect(self: &Arc<Self>) {
        {
            let _one_at_a_time = self.changing.lock();
            let epoch = self.settings.load().0 + 1;
            self.settings.rcu(|settings| (epoch, settings.1.clone()));
            self.startups.lock().clear();
            self.state.lock().epoch = epoch;
        }
        self.close_outworn();
        self.open_more();
    }

    /// Whether connections are left that were opened before the last [`Pool::reconnect`] or change of settings.
    pub fn has_outworn(&self) -> bool {
        let epoch = self.state.lock().epoch;
        let all = self.servers.lock();
        all.iter().any(|(opened, server)| *opened < epoch && server.strong_count() > 0)
    }

    /// Whether anybody may log in to it.
    pub fn set_disabled(&self, disabled: bool) {
        self.disabled.store(disabled, Ordering::Relaxed);
    }

    /// Whether nobody may.
    pub fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Relaxed)
    }
}
