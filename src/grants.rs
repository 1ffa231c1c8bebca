//! Access for a while: environments that users may request until a time, given by operators and kept over restarts.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::audit::beside;
use crate::files;
use crate::names::{EnvironmentName, UserName};

/// The longest file of grants, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The longest that an environment is granted for.
pub const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// To whom.
    pub user: UserName,
    /// What they may request.
    pub environment: EnvironmentName,
    /// Since when.
    pub since: SystemTime,
    /// Until when.
    pub until: SystemTime,
    /// Why.
    pub reason: String,
    /// The operator who gave it.
    pub by: UserName,
}

/// As it stands in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    user: String,
    environment: String,
    since: String,
    until: String,
    reason: String,
    by: String,
}

impl Grant {
    fn written(&self) -> Written {
        let time = |at| humantime::format_rfc3339_millis(at).to_string();
        Written {
            user: self.user.to_string(),
            environment: self.environment.to_string(),
            since: time(self.since),
            until: time(self.until),
            reason: self.reason.clone(),
            by: self.by.to_string(),
        }
    }

    fn read(written: Written) -> Result<Self, humantime::TimestampError> {
        Ok(Self {
            since: humantime::parse_rfc3339(&written.since)?,
            until: humantime::parse_rfc3339(&written.until)?,
            user: written.user.as_str().into(),
            environment: written.environment.as_str().into(),
            reason: written.reason,
            by: written.by.as_str().into(),
        })
    }

    fn is_for(&self, user: &str, environment: &str) -> bool {
        self.user.as_str() == user && self.environment.as_str() == environment
    }
}

/// All of them, as they stand in their file. Other processes may change that: each locks `FILE.lock` while it does.
#[derive(Debug)]
pub struct Grants {
    path: PathBuf,
    now: ArcSwap<Vec<Grant>>,
    /// Which edition of the file was read last.
    read: Mutex<Option<(u64, SystemTime)>>,
}

impl Grants {
    /// Those that a file holds, if there is one. One that cannot be understood is put aside and said: nobody gets more
    /// than the configuration gives by that.
    pub fn load(path: PathBuf) -> Self {
        let grants = Self { path, now: ArcSwap::default(), read: Mutex::default() };
        if let Err(error) = grants.read_again() {
            let aside = grants.path.with_extension("broken");
            let broken = error.kind() == io::ErrorKind::InvalidData;
            let moved = broken && std::fs::rename(&grants.path, &aside).is_ok();
            error!(file = %grants.path.display(), %error, moved, "the grants cannot be read: none holds");
        }
        grants
    }

    /// Where they are kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All that have not been ended, the first to end first.
    pub fn all(&self) -> Arc<Vec<Grant>> {
        self.now.load_full()
    }

    /// Those that a user has now.
    pub fn of(&self, user: &UserName) -> Vec<Grant> {
        let all = self.now.load();
        if all.is_empty() {
            return Vec::new();
        }
        let now = SystemTime::now();
        all.iter().filter(|grant| grant.user == *user && grant.until > now).cloned().collect()
    }

    /// One more, in place of another of the same environment to the same user. Blocks.
    ///
    /// # Errors
    /// It cannot be written; then it does not hold.
    pub fn add(&self, grant: Grant) -> io::Result<()> {
        self.change(|grants| {
            grants.retain(|known| !known.is_for(grant.user.as_str(), grant.environment.as_str()));
            grants.push(grant);
            grants.sort_by_key(|grant| grant.until);
        })
    }

    /// Ends one; what it was, if there was one. Blocks.
    ///
    /// # Errors
    /// It cannot be written; then it still holds.
    pub fn remove(&self, user: &str, environment: &str) -> io::Result<Option<Grant>> {
        let mut removed = None;
        self.change(|grants| {
            removed = grants.extract_if(.., |grant| grant.is_for(user, environment)).next();
        })?;
        Ok(removed)
    }

    /// Whether somebody's time is over, or another process has changed the file.
    pub fn are_due(&self) -> bool {
        let now = SystemTime::now();
        self.now.load().iter().any(|grant| grant.until <= now) || edition(&self.path) != *self.read.lock()
    }

    /// Takes up what another process has changed, and ends those whose time is over: they hold no longer even if that
    /// cannot be written. Those that this process has ended. Blocks.
    pub fn expire(&self) -> Vec<Grant> {
        let now = SystemTime::now();
        let is_over = |grant: &mut Grant| grant.until <= now;
        let mut over = Vec::new();
        let changed = match self.read_again() {
            Ok(()) if !self.now.load().iter().any(|grant| grant.until <= now) => return over,
            Ok(()) => self.change(|grants| over = grants.extract_if(.., is_over).collect()),
            Err(error) => Err(error),
        };
        if let Err(error) = changed {
            error!(file = %self.path.display(), %error, "the grants cannot be read or written");
            let mut left = Vec::clone(&self.now.load());
            over = left.extract_if(.., is_over).collect();
            self.now.store(Arc::new(left));
            *self.read.lock() = edition(&self.path);
        }
        over
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Grant>)) -> io::Result<()> {
        let lock = private().write(true).open(beside(&self.path, ".lock"))?;
        lock.lock()?;
        self.read_again()?;
        let mut grants = Vec::clone(&self.now.load());
        change(&mut grants);
        self.write(&grants)?;
        self.now.store(Arc::new(grants));
        *self.read.lock() = edition(&self.path);
        lock.unlock()
    }

    fn read_again(&self) -> io::Result<()> {
        let read = edition(&self.path);
        let grants = match files::read(&self.path, MAX_FILE) {
            Ok(text) => understand(&text).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        self.now.store(Arc::new(grants));
        *self.read.lock() = read;
        Ok(())
    }

    /// The old file or the new one is there, whatever happens.
    fn write(&self, grants: &[Grant]) -> io::Result<()> {
        let written: Vec<_> = grants.iter().map(Grant::written).collect();
        let aside = beside(&self.path, ".new");
        let mut file = private().write(true).truncate(true).open(&aside)?;
        serde_json::to_writer_pretty(&mut file, &written)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&aside, &self.path)
    }
}

/// Nobody else's business.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

/// What tells one edition of a file from another; `None` if there is none.
fn edition(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}

fn understand(text: &[u8]) -> Result<Vec<Grant>, String> {
    let written: Vec<Written> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let grants: Result<Vec<_>, _> = written.into_iter().map(Grant::read).collect();
    grants.map_err(|error| error.to_string())
}
