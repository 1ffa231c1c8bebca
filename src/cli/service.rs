//! What a service manager and a container expect of the process: systemd's notifications and watchdog, and, as process 1,
//! that orphans are buried.

use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};
use sd_notify::NotifyState;
use tracing::debug;

use crate::pool::Data;

/// How often process 1 looks for orphans. One that was dead at the last look, too, is nobody's who waits for it.
const BURIAL: Duration = Duration::from_secs(5);

/// Tells systemd, if it wants to know (`NOTIFY_SOCKET`, sd_notify(3)).
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "cannot notify the service manager");
    }
}

/// Clients are served.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The configuration is read again; then [`ready`].
pub(super) fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    notify(&[Ok(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
}

/// The process ends.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells systemd's watchdog, if there is one, that both runtimes do their work.
pub(super) async fn watchdog(data: Data) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut beat = tokio::time::interval(limit / 3);
    loop {
        beat.tick().await;
        if data.answer().await {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

/// As process 1 of a container, waits for the orphans that commands have left: nobody else does.
pub(super) async fn bury_orphans() {
    if std::process::id() != 1 {
        return;
    }
    let mut before = Vec::new();
    loop {
        tokio::time::sleep(BURIAL).await;
        let dead = dead_children();
        // Our own children are waited for where they were begun, and at once.
        for pid in dead.iter().filter(|pid| before.contains(*pid)) {
            let _ = waitpid(Some(*pid), WaitOptions::NOHANG);
        }
        before = dead;
    }
}

/// Processes that have ended and that process 1 is to wait for (proc_pid_stat(5)).
fn dead_children() -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let is_dead = |stat: &str| {
        let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        behind_name.split_whitespace().take(2).eq(["Z", "1"])
    };
    let dead = processes.flatten().filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
        if is_dead(&stat) { Pid::from_raw(pid) } else { None }
    });
    dead.collect()
}
