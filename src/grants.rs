//! Access for a while: environments that users may request until a time, given by operators and kept over restarts.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::files::{self, beside};
use policy::grant::{Grant, Which};

/// The longest file of grants, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// How long the lock of the file is waited for. Grants expire in time, even if another process does not release it.
const PATIENCE: Duration = Duration::from_secs(1);

/// As it stands in the file. What is for all databases is written as before there were others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    user: String,
    environment: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    database: Option<String>,
    since: String,
    until: String,
    reason: String,
    by: String,
}

impl Written {
    fn of(grant: &Grant) -> Self {
        let time = |at| humantime::format_rfc3339_millis(at).to_string();
        Self {
            user: grant.user.to_string(),
            environment: grant.environment.to_string(),
            database: grant.database.as_ref().map(ToString::to_string),
            since: time(grant.since),
            until: time(grant.until),
            reason: grant.reason.clone(),
            by: grant.by.to_string(),
        }
    }

    fn read(self) -> Result<Grant, humantime::TimestampError> {
        Ok(Grant {
            since: humantime::parse_rfc3339(&self.since)?,
            until: humantime::parse_rfc3339(&self.until)?,
            user: self.user.as_str().into(),
            environment: self.environment.as_str().into(),
            database: self.database.as_deref().map(Into::into),
            reason: self.reason,
            by: self.by.as_str().into(),
        })
    }
}

/// All of them, as they stand in their file. Other processes may change that: each locks `FILE.lock` while it does.
#[derive(Debug)]
pub(crate) struct Grants {
    path: PathBuf,
    now: ArcSwap<Vec<Grant>>,
    /// Which edition of the file was read last.
    read: Mutex<Option<(u64, SystemTime)>>,
}

impl Grants {
    /// Those that a file holds, if there is one. One that cannot be understood is put aside and said: nobody gets more
    /// than the configuration gives by that.
    pub(crate) fn load(path: PathBuf) -> Self {
        let grants = Self { path, now: ArcSwap::default(), read: Mutex::default() };
        if let Err(error) = grants.read_again() {
            let aside = grants.path.with_extension("broken");
            let broken = error.kind() == io::ErrorKind::InvalidData;
            let moved = broken && std::fs::rename(&grants.path, &aside).is_ok();
            error!(file = %grants.path.display(), %error, moved, "the grants cannot be read: no grant is in effect");
        }
        grants
    }

    /// Where they are kept.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All that have not been ended, the first to end first.
    pub(crate) fn all(&self) -> Arc<Vec<Grant>> {
        self.now.load_full()
    }

    /// Those that a user has now.
    pub(crate) fn of(&self, user: &str) -> Vec<Grant> {
        let all = self.now.load();
        if all.is_empty() {
            return Vec::new();
        }
        let now = SystemTime::now();
        all.iter().filter(|grant| grant.user.as_str() == user && grant.until > now).cloned().collect()
    }

    /// One more, in place of another of the same environment and database to the same user. Blocks.
    ///
    /// # Errors
    /// It cannot be written, or not be kept over a power failure; it holds only if the file has it all the same.
    pub(crate) fn add(&self, grant: Grant) -> io::Result<()> {
        self.change(|grants| {
            grants.retain(|known| !known.is_like(&grant));
            grants.push(grant);
            grants.sort_by_key(|grant| grant.until);
        })
    }

    /// Ends those that are meant; what they were. Blocks.
    ///
    /// # Errors
    /// It cannot be written, or not be kept over a power failure; what the file still has holds.
    pub(crate) fn remove(&self, user: &str, environment: &str, which: &Which) -> io::Result<Vec<Grant>> {
        let mut removed = Vec::new();
        self.change(|grants| {
            removed = grants.extract_if(.., |grant| grant.is_for(user, environment, which)).collect();
        })?;
        Ok(removed)
    }

    /// Whether somebody's time is over, or another process has changed the file.
    pub(crate) fn are_due(&self) -> bool {
        let now = SystemTime::now();
        self.now.load().iter().any(|grant| grant.until <= now) || edition(&self.path) != *self.read.lock()
    }

    /// Takes up what another process has changed, and ends those whose time is over: they hold no longer even if that
    /// cannot be written. Those that this process has ended. Blocks.
    pub(crate) fn expire(&self) -> Vec<Grant> {
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
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let lock = files::open_own(&mut options, &beside(&self.path, ".lock"))?;
        files::lock(&lock, PATIENCE)?;
        self.read_again()?;
        let mut grants = Vec::clone(&self.now.load());
        change(&mut grants);
        if let Err(error) = self.write(&grants) {
            // It may have failed before the file was there, or after.
            self.read_again()?;
            return Err(error);
        }
        self.now.store(Arc::new(grants));
        *self.read.lock() = edition(&self.path);
        lock.unlock()
    }

    fn read_again(&self) -> io::Result<()> {
        let read = edition(&self.path);
        let grants = match files::read_own(&self.path, MAX_FILE) {
            Ok(text) => understand(&text).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        self.now.store(Arc::new(grants));
        *self.read.lock() = read;
        Ok(())
    }

    /// The old file or the new one is there, whatever happens; the new one when this returns, also after a power failure.
    fn write(&self, grants: &[Grant]) -> io::Result<()> {
        let written: Vec<_> = grants.iter().map(Written::of).collect();
        let aside = beside(&self.path, ".new");
        // What is there was left by a process that was killed, or put there by somebody.
        let _ = std::fs::remove_file(&aside);
        let mut file = files::open_own(OpenOptions::new().write(true).create_new(true), &aside)?;
        serde_json::to_writer_pretty(&mut file, &written)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&aside, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// What tells one edition of a file from another; `None` if there is none.
fn edition(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}

fn understand(text: &[u8]) -> Result<Vec<Grant>, String> {
    let written: Vec<Written> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let grants: Result<Vec<_>, _> = written.into_iter().map(Written::read).collect();
    grants.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pgusher-grants-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join("grants.json")
    }

    fn grant(environment: &str, database: Option<&str>) -> Grant {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Grant {
            user: "alice".into(),
            environment: environment.into(),
            database: database.map(Into::into),
            since,
            until: since + Duration::from_secs(86_400 * 36_500),
            reason: "INC-7".into(),
            by: "root".into(),
        }
    }

    #[test]
    fn a_file_of_before_is_understood_and_what_it_says_is_for_all_databases() {
        let path = file("before");
        let text = r#"[{"user": "alice", "environment": "prod", "since": "2027-01-15T08:00:00.000Z",
            "until": "2126-12-22T08:00:00.000Z", "reason": "INC-7", "by": "root"}]"#;
        std::fs::write(&path, text).unwrap();
        let grants = Grants::load(path.clone());
        assert_eq!(*grants.all(), [grant("prod", None)]);
        // And is written so that a pgusher of before understands it.
        grants.add(grant("prod", None)).unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().contains("database"));
        grants.add(grant("prod", Some("warehouse"))).unwrap();
        assert_eq!(Grants::load(path.clone()).all().len(), 2);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    /// A process that stands still may hold the lock for as long as it likes.
    #[test]
    fn a_grant_ends_in_time_whoever_holds_its_file() {
        let path = file("held");
        let grants = Grants::load(path.clone());
        let over = Grant { until: SystemTime::UNIX_EPOCH, ..grant("prod", None) };
        grants.add(over.clone()).unwrap();
        grants.add(grant("stage", None)).unwrap();
        let holder = File::open(beside(&path, ".lock")).unwrap();
        holder.lock().unwrap();
        assert_eq!(grants.expire(), [over]);
        assert_eq!(grants.all().len(), 1);
        assert!(grants.add(grant("test", None)).is_err());
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_grant_takes_the_place_of_its_like_and_is_ended_by_itself_or_with_all() {
        let path = file("like");
        let grants = Grants::load(path.clone());
        let add = |grant| grants.add(grant).unwrap();
        let ended = |which: Which| grants.remove("alice", "prod", &which).unwrap().len();
        let all = || grants.all().len();
        for database in [None, Some("warehouse"), Some("hr"), Some("warehouse"), None] {
            add(grant("prod", database));
        }
        add(grant("staging", None));
        assert_eq!(all(), 4);
        assert_eq!((ended(Which::Of(Some("warehouse".into()))), all()), (1, 3));
        assert_eq!((ended(Which::Of(None)), ended(Which::Of(None)), all()), (1, 0, 2));
        add(grant("prod", Some("warehouse")));
        assert_eq!((ended(Which::All), ended(Which::All), all()), (2, 0, 1));
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
