//! Access for a while: environments that users may request until a time, given by operators and kept over restarts.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::names::{EnvironmentName, UserName};

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

/// All of them; written to their file at each change.
#[derive(Debug)]
pub struct Grants {
    path: PathBuf,
    now: ArcSwap<Vec<Grant>>,
    changing: Mutex<()>,
}

impl Grants {
    /// Those that a file holds, if there is one. One that cannot be understood is put aside and said: nobody gets more
    /// than the configuration gives by that.
    pub fn load(path: PathBuf) -> Self {
        let grants = match std::fs::read(&path) {
            Ok(text) => understand(&text).unwrap_or_else(|why| {
                let aside = path.with_extension("broken");
                let moved = std::fs::rename(&path, &aside).is_ok();
                error!(file = %path.display(), why, moved, "the grants cannot be read: none holds");
                Vec::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                error!(file = %path.display(), %error, "the grants cannot be read: none holds");
                Vec::new()
            }
        };
        Self { path, now: ArcSwap::from_pointee(grants), changing: Mutex::default() }
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

    /// One more, in place of another of the same environment to the same user.
    ///
    /// # Errors
    /// It cannot be written; then it does not hold.
    pub fn add(&self, grant: Grant) -> io::Result<()> {
        let _one_at_a_time = self.changing.lock();
        let mut grants = Vec::clone(&self.now.load());
        grants.retain(|known| !known.is_for(grant.user.as_str(), grant.environment.as_str()));
        grants.push(grant);
        grants.sort_by_key(|grant| grant.until);
        self.keep(grants)
    }

    /// Ends one; what it was, if there was one.
    ///
    /// # Errors
    /// It cannot be written; then it still holds.
    pub fn remove(&self, user: &str, environment: &str) -> io::Result<Option<Grant>> {
        let _one_at_a_time = self.changing.lock();
        let mut grants = Vec::clone(&self.now.load());
        let Some(at) = grants.iter().position(|grant| grant.is_for(user, environment)) else {
            return Ok(None);
        };
        let removed = grants.remove(at);
        self.keep(grants)?;
        Ok(Some(removed))
    }

    /// Ends those whose time is over. They hold no longer even if that cannot be written.
    pub fn expire(&self) -> Vec<Grant> {
        let now = SystemTime::now();
        if self.now.load().iter().all(|grant| grant.until > now) {
            return Vec::new();
        }
        let _one_at_a_time = self.changing.lock();
        let (left, over): (Vec<_>, Vec<_>) = self.now.load().iter().cloned().partition(|g| g.until > now);
        if let Err(error) = self.write(&left) {
            error!(file = %self.path.display(), %error, "the grants cannot be written");
        }
        self.now.store(Arc::new(left));
        over
    }

    fn keep(&self, grants: Vec<Grant>) -> io::Result<()> {
        self.write(&grants)?;
        self.now.store(Arc::new(grants));
        Ok(())
    }

    /// The old file or the new one is there, whatever happens.
    fn write(&self, grants: &[Grant]) -> io::Result<()> {
        let written: Vec<_> = grants.iter().map(Grant::written).collect();
        let aside = self.path.with_extension("new");
        let mut file = File::create(&aside)?;
        serde_json::to_writer_pretty(&mut file, &written)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&aside, &self.path)
    }
}

fn understand(text: &[u8]) -> Result<Vec<Grant>, String> {
    let written: Vec<Written> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let grants: Result<Vec<_>, _> = written.into_iter().map(Grant::read).collect();
    grants.map_err(|error| error.to_string())
}
