//! Changes of the configuration that come by the API: written to its file and in force, or neither.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use toml_edit::{DocumentMut, InlineTable, Value};
use tracing::warn;
use uuid::Uuid;

use super::{Configuration, Generation, LoadError};
use crate::store::{self, Store, StoreError};
use policy::config::Config;
use policy::config::file::{self, SecretStore};
use policy::names::id_of;
use policy::plan::Plan;

const MINUTE: Duration = Duration::from_secs(60);
/// How many wrong passwords of one caller are told from the right one in a minute.
const MAX_GUESSES: u32 = 20;
/// How the files of secrets that we have written end.
const SUFFIX: &str = ".secret";

/// What is to be done about a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    /// It is made.
    Write,
    /// It is only said what would change (`dry_run`).
    DryRun,
}

impl Intent {
    /// Whether nothing is to be changed.
    pub(crate) fn is_dry(self) -> bool {
        self == Self::DryRun
    }
}

/// A change under way.
pub(crate) struct Change<'a> {
    /// The file, which keeps its comments and its order.
    pub document: DocumentMut,
    /// What it says until now.
    pub generation: &'a Generation,
    /// Nobody shall newly reach a production database by it.
    pub keeps_production: bool,
    /// It goes back to an earlier configuration.
    pub goes_back: bool,
    /// The passwords that came with it, by their connections' names: whoever says one may say where it goes.
    pub given: BTreeMap<String, SecretString>,
    /// Rows of the plan: passwords that are another, as far as whoever says them is told.
    said: BTreeSet<String>,
    by: &'a str,
    guesses: &'a PasswordGuesses,
    intent: Intent,
    secrets: Vec<(PathBuf, SecretString)>,
}

/// How many passwords each caller has said in his last minute that are not the ones that are there. Callers are tokens of the
/// configuration.
#[derive(Debug, Default)]
pub(super) struct PasswordGuesses(Mutex<HashMap<String, (Instant, u32)>>);

impl PasswordGuesses {
    /// Whether another of this caller's may be compared.
    fn is_free(&self, by: &str) -> bool {
        let mut minutes = self.0.lock();
        minutes.retain(|_, (began, _)| began.elapsed() < MINUTE);
        minutes.get(by).is_none_or(|(_, wrong)| *wrong < MAX_GUESSES)
    }

    fn count(&self, by: &str) {
        self.0.lock().entry(by.to_owned()).or_insert_with(|| (Instant::now(), 0)).1 += 1;
    }
}

impl Change<'_> {
    /// Whether a password that is said is the one that is there, which then stays as it is written. Too many that are not are
    /// not compared any more, but taken for others: a look is no way to find out a password.
    pub(crate) fn is_same_password(&mut self, row: String, compare: impl FnOnce() -> bool) -> bool {
        let is_same = self.guesses.is_free(self.by) && compare();
        if !is_same {
            self.guesses.count(self.by);
            self.said.insert(row);
        }
        is_same
    }

    /// How a secret is to stand in the file. Unless it shall stand there itself, it goes to a file of its own.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(crate) fn secret(&mut self, owner: &str, secret: &SecretString) -> io::Result<Value> {
        let management = &self.generation.config.management;
        if self.intent.is_dry() || management.secrets == SecretStore::Inline {
            return Ok(Value::from(secret.expose_secret()));
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        // Never the file of before: an earlier configuration may be gone back to.
        let ours = mark(&self.generation.config.path);
        let name = format!("{ours}-{owner}-{:016x}{SUFFIX}", u64::from_be_bytes(random));
        let path = management.secrets_folder.join(name);
        // As it may stand in the file: the two can be moved together.
        let folder = self.generation.config.path.parent().unwrap_or(Path::new(""));
        let shown = path.strip_prefix(folder).unwrap_or(&path);
        let mut reference = InlineTable::new();
        reference.insert("file", shown.display().to_string().into());
        self.secrets.push((path, secret.clone()));
        Ok(reference.into())
    }
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Written {
    /// What is in force now.
    pub generation: Arc<Generation>,
    /// What would be, if it was only a look.
    pub planned: Option<Box<(Config, file::File)>>,
    /// Whether the file had to be changed.
    pub is_changed: bool,
    /// What it would change, or has changed.
    pub plan: Plan,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

/// Why nothing was changed.
#[derive(Debug, Error)]
pub(crate) enum WriteError<E> {
    /// It cannot be asked for.
    #[error("{0}")]
    Edit(E),
    /// The file is not as it was, or not to be written.
    #[error("{0}")]
    Store(StoreError),
    /// The file cannot be edited.
    #[error("the file cannot be edited: {}", .0.message())]
    Toml(toml_edit::TomlError),
    /// The configuration would be wrong.
    #[error("{0}")]
    Load(LoadError),
    /// The configuration in force cannot be loaded any more, and that has nothing to do with the change.
    #[error("the configuration in force cannot be loaded any more: {}", first_line(.0))]
    Broken(LoadError),
    /// Users would newly reach a production database.
    #[error("{0} would newly reach a production database (allow_production=true if that is meant)")]
    Production(String),
    /// A secret cannot be written.
    #[error("the secret cannot be written to {}: {error}", path.display())]
    Secret {
        /// Where to.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Configuration {
    /// Changes the file, and what is in force with it; or only says what would change. Blocks.
    ///
    /// # Errors
    /// Why it does not; then nothing was changed.
    pub(crate) fn write<E>(
        &self,
        by: &str,
        intent: Intent,
        edit: impl FnOnce(&mut Change<'_>) -> Result<(), E>,
    ) -> Result<Written, WriteError<E>> {
        // A look changes nothing: a file that is read-only may be looked at.
        let store = match intent {
            Intent::DryRun => None,
            Intent::Write => Some(Store::open(&self.path).map_err(WriteError::Store)?),
        };
        let _one_at_a_time = self.reloading.lock();
        let generation = self.current.generation();
        let old = generation.config.source.expose_secret();
        store::expect(&self.path, old).map_err(WriteError::Store)?;
        let document = old.parse().map_err(WriteError::Toml)?;
        let mut change = Change {
            document,
            generation: &generation,
            keeps_production: false,
            goes_back: false,
            given: BTreeMap::new(),
            said: BTreeSet::new(),
            by,
            guesses: &self.password_guesses,
            intent,
            secrets: Vec::new(),
        };
        edit(&mut change).map_err(WriteError::Edit)?;
        let new = as_written(old, change.document.to_string());
        let mut files = NewFiles::default();
        if intent == Intent::Write {
            files.write(&change.secrets).map_err(|(path, error)| WriteError::Secret { path, error })?;
        }
        let prepared = self.prepare(&new).map_err(|error| match self.prepare(old) {
            Ok(_) => WriteError::Load(error),
            Err(error) => WriteError::Broken(error),
        })?;
        let mut plan = self.plan_of(prepared.checked().config());
        // Whether a password that was not compared is the same as before must not be visible.
        let has_said = !change.said.is_empty();
        plan.also_secrets(change.said);
        let reaching = plan.routes.iter().find(|moved| moved.reaches_production());
        if let Some(moved) = reaching.filter(|_| change.keeps_production) {
            return Err(WriteError::Production(format!("{} on {}", moved.user, moved.database)));
        }
        let warnings = prepared.checked().warnings();
        let warnings = warnings.iter().map(|problem| problem.message.clone()).collect();
        // What was set on the console is taken back also where the text stays.
        let is_changed = new != old || !self.overrides.lock().is_empty();
        let Some(store) = store.filter(|_| is_changed) else {
            let planned = intent.is_dry().then(|| Box::new(prepared.into_parts().0.into_parts()));
            return Ok(Written { generation, planned, is_changed: is_changed || has_said, plan, warnings });
        };
        if new != old {
            store.exchange(old, &new).map_err(WriteError::Store)?;
        }
        files.stay();
        let generation = self.apply(prepared, by, &plan);
        self.remove_old_secrets(&generation);
        Ok(Written { generation, planned: None, is_changed, plan, warnings })
    }

    /// The text of a configuration that was in force, or is, if it is still remembered.
    pub(crate) fn source(&self, number: u64) -> Option<SecretString> {
        let generation = self.current.generation();
        if (self.first.load(Ordering::Relaxed)..=generation.number).contains(&number) {
            return Some(generation.config.source.clone());
        }
        let earlier = self.earlier.lock();
        earlier.iter().find(|known| known.numbers.contains(&number)).map(|known| known.source.clone())
    }

    /// Those that neither the configuration nor one that can be gone back to refers to.
    fn remove_old_secrets(&self, generation: &Generation) {
        let folder = &generation.config.management.secrets_folder;
        let ours = mark(&generation.config.path);
        let Ok(entries) = folder.read_dir() else { return };
        let names: BTreeSet<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_ours(name, &ours))
            .collect();
        let earlier = self.earlier.lock();
        let sources = earlier.iter().map(|known| &known.source).chain([&generation.config.source]);
        let sources: Vec<_> = sources.map(ExposeSecret::expose_secret).collect();
        for name in names.iter().filter(|name| !sources.iter().any(|source| source.contains(*name))) {
            if let Err(error) = std::fs::remove_file(folder.join(name)) {
                warn!(file = name, %error, "a secret that is not needed any more cannot be removed");
            }
        }
    }
}

/// What tells our files of secrets from those of another configuration in the same folder.
fn mark(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    id_of("configuration", &path.display().to_string()).simple().to_string()[..8].to_owned()
}

/// `MARK-UUID-RANDOM.secret`: what else stands there is somebody else's.
fn is_ours(name: &str, mark: &str) -> bool {
    let parts = name.strip_suffix(SUFFIX).and_then(|name| name.strip_prefix(mark)?.strip_prefix('-'));
    let parts = parts.and_then(|rest| rest.split_at_checked(36));
    parts.is_some_and(|(owner, random)| {
        Uuid::parse_str(owner).is_ok() && random.len() == 17 && random.starts_with('-')
    })
}

/// With the line ends, and the mark of UTF-8 at its beginning, that the file had.
fn as_written(old: &str, new: String) -> String {
    let new = match old.contains("\r\n") && old.matches('\n').count() == old.matches("\r\n").count() {
        true => new.replace("\r\n", "\n").replace('\n', "\r\n"),
        false => new,
    };
    match old.starts_with('\u{feff}') && !new.starts_with('\u{feff}') {
        true => format!("\u{feff}{new}"),
        false => new,
    }
}

fn first_line(error: &LoadError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Files that are gone again unless what they are for comes about.
#[derive(Default)]
struct NewFiles(Vec<PathBuf>);

impl NewFiles {
    fn write(&mut self, secrets: &[(PathBuf, SecretString)]) -> Result<(), (PathBuf, io::Error)> {
        for (path, secret) in secrets {
            self.0.push(path.clone());
            store::write_secret(path, secret.expose_secret()).map_err(|error| (path.clone(), error))?;
        }
        Ok(())
    }

    fn stay(mut self) {
        self.0.clear();
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        self.0.iter().map(Path::new).for_each(|path| drop(std::fs::remove_file(path)));
    }
}
