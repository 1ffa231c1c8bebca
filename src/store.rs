//! The configuration's file, exchanged as a whole: never half of it, and never what somebody else has written meanwhile.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, RenameFlags};
use thiserror::Error;
use tracing::warn;

use crate::files;
use crate::files::beside;

/// Why a file stays as it is.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// It holds something else than was expected.
    #[error(
        "the file {} differs from the running configuration: it was edited since, or the console has gone back to an earlier \
         configuration; reload it first",
        .0.display()
    )]
    Changed(PathBuf),
    /// Another process writes it, and does not end.
    #[error("the file {} is being written by another process", .0.display())]
    Busy(PathBuf),
    /// It is not to be written.
    #[error("the file {} is read-only", .0.display())]
    ReadOnly(PathBuf),
    /// The system's reason.
    #[error("the file {} cannot be written: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A file that one writer at a time exchanges: also of those of other processes.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    folder: File,
    _lock: File,
}

/// How long another process may write.
const PATIENCE: Duration = Duration::from_secs(5);

impl Store {
    /// Waits a little until no other process writes. A symbolic link stays one: what it leads to is written.
    ///
    /// # Errors
    /// It is not there, or not to be written.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.canonicalize().map_err(|error| StoreError::Io { path: path.to_owned(), error })?;
        let failed = |error| StoreError::Io { path: path.clone(), error };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let file_mode = path.metadata().map_err(failed)?.permissions().mode();
        // Root may write anything: whoever takes the right to write away means him, too.
        let is_writable = file_mode & 0o222 != 0
            && rustix::fs::accessat(CWD, &path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
            && rustix::fs::accessat(CWD, folder, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
        if !is_writable {
            return Err(StoreError::ReadOnly(path));
        }
        let folder = File::open(folder).map_err(failed)?;
        // A file of our own, which nobody else can open: whoever could lock another would hold us up.
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let lock = files::open_own(&mut options, &beside(&path, ".lock")).map_err(failed)?;
        files::lock(&lock, PATIENCE).map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::Busy(path.clone()),
            TryLockError::Error(error) => failed(error),
        })?;
        Ok(Self { path: path.clone(), folder, _lock: lock })
    }

    /// Puts a text in place of another. Whenever the process is killed, the old file or the new one is there, whole.
    ///
    /// # Errors
    /// It holds another text by now, which stays; or the disk takes nothing.
    pub(crate) fn exchange(&self, old: &str, new: &str) -> Result<(), StoreError> {
        let aside = beside(&self.path, ".new");
        let done = self.write(&aside, new).and_then(|()| self.swap(&aside, old));
        // What is there now is the old file, or one that is not wanted.
        let _ = std::fs::remove_file(&aside);
        match done {
            Ok(true) => {
                // It holds from now on; only after a power failure might the old one be back.
                if let Err(error) = self.folder.sync_all() {
                    warn!(file = %self.path.display(), %error, "the folder of the configuration cannot be synced");
                }
                Ok(())
            }
            Ok(false) => Err(StoreError::Changed(self.path.clone())),
            Err(error) => Err(StoreError::Io { path: self.path.clone(), error }),
        }
    }

    fn write(&self, aside: &Path, text: &str) -> io::Result<()> {
        let old = self.path.metadata()?;
        // Left by a process that was killed: what it holds may be somebody's edit.
        let _ = std::fs::rename(aside, beside(&self.path, ".saved"));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(aside)?;
        file.write_all(text.as_bytes())?;
        // Another owner's file stays his, where we may say so.
        let _ = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
        file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
        file.sync_all()
    }

    /// The two change places at once, and what was there is looked at: an editor may have been faster. False if so.
    fn swap(&self, aside: &Path, old: &str) -> io::Result<bool> {
        let exchange = || rustix::fs::renameat_with(CWD, aside, CWD, &self.path, RenameFlags::EXCHANGE);
        match exchange() {
            Ok(()) => {
                let there = std::fs::read(aside);
                let is_old = there.as_ref().is_ok_and(|there| there == old.as_bytes());
                if !is_old {
                    exchange()?;
                }
                there.map(|_| is_old)
            }
            // Some file systems cannot do that: then there is a moment in which an edit would be lost.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                let is_old = std::fs::read(&self.path)? == old.as_bytes();
                if is_old {
                    std::fs::rename(aside, &self.path)?;
                }
                Ok(is_old)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a file holds this.
///
/// # Errors
/// [`StoreError::Changed`] if not.
pub(crate) fn expect(path: &Path, text: &str) -> Result<(), StoreError> {
    match std::fs::read(path) {
        Ok(now) if now == text.as_bytes() => Ok(()),
        Ok(_) => Err(StoreError::Changed(path.to_owned())),
        Err(error) => Err(StoreError::Io { path: path.to_owned(), error }),
    }
}

/// Writes a secret to a file of its own, for nobody else's eyes; a folder that is missing is made.
///
/// # Errors
/// The system's reason.
pub(crate) fn write_secret(path: &Path, secret: &str) -> io::Result<()> {
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(secret.as_bytes())?;
    // One line end is removed when the file is read: add one if the secret itself ends with one.
    if secret.ends_with(['\r', '\n']) {
        file.write_all(b"\r\n")?;
    }
    file.sync_all()?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("pgusher-store-{}-{name}", std::process::id()));
        std::fs::write(&path, "old").unwrap();
        path
    }

    /// One line end is removed when a secret's file is read.
    #[test]
    fn a_secret_that_ends_with_a_line_end_keeps_it() {
        let path = file("secret");
        for secret in ["abc", "abc\n", "abc\r", "abc\r\n", "abc\n\n", "\n"] {
            let _ = std::fs::remove_file(&path);
            write_secret(&path, secret).unwrap();
            let source = policy::secret::Source::File(path.clone());
            let read = crate::machine::read(&source).unwrap();
            assert_eq!(secrecy::ExposeSecret::expose_secret(&read), secret, "{secret:?}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_is_exchanged_with_its_mode_and_a_link_stays_a_link() {
        let path = file("link");
        let link = path.with_extension("toml");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&path, &link).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        Store::open(&link).unwrap().exchange("old", "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink() && !beside(&path, ".new").exists());
        std::fs::remove_file(link).unwrap();
        std::fs::remove_file(beside(&path, ".lock")).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_somebody_else_has_written_stays() {
        let path = file("edited");
        let store = Store::open(&path).unwrap();
        std::fs::write(&path, "edited").unwrap();
        assert!(matches!(expect(&path, "old"), Err(StoreError::Changed(_))));
        assert!(matches!(store.exchange("old", "new"), Err(StoreError::Changed(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "edited");
        assert!(!beside(&path, ".new").exists());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_nobody_may_write_stays() {
        let path = file("read-only");
        std::fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::ReadOnly(_))));
        std::fs::remove_file(path).unwrap();
    }
}
