//! Files that others may have put there: read within a bound, and never waited for.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// The longest secret file, certificate or key, in bytes.
pub(crate) const MAX_SMALL: u64 = 1 << 20;

/// Reads a regular file of at most so many bytes. Opening a FIFO or a device does not block: they are refused.
///
/// # Errors
/// The system's; `InvalidInput` for what is not a regular file, `FileTooLarge` for one that is too long.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = OpenOptions::new().read(true).custom_flags(nonblocking()?).open(path)?;
    bounded(&file, most)
}

fn bounded(file: &File, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    // It may grow while it is read, and files of /proc say that they are empty.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(about.len().min(most)).unwrap_or(0)));
    file.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {most} bytes"))),
        false => Ok(bytes),
    }
}

/// The same of a file that pgusher has written itself, and whose content it trusts.
///
/// # Errors
/// `PermissionDenied` also for one that belongs to somebody else than this user or root, or is a link.
pub(crate) fn read_own(path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = OpenOptions::new().read(true).custom_flags(no_link()? | nonblocking()?).open(path)?;
    expect_own(&file)?;
    bounded(&file, most)
}

/// Opens a file that only this process, and those of its user, write to; it is made if it is not there.
///
/// # Errors
/// It belongs to somebody else, or is a link: in a folder in which others may write, they may have put it there.
pub(crate) fn open_own(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.mode(0o600).custom_flags(no_link()? | nonblocking()?).open(path)?;
    expect_own(&file)?;
    Ok(file)
}

fn no_link() -> io::Result<i32> {
    i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)
}

fn nonblocking() -> io::Result<i32> {
    i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)
}

fn expect_own(file: &File) -> io::Result<()> {
    let owner = file.metadata()?.uid();
    match owner == 0 || owner == rustix::process::geteuid().as_raw() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else")),
    }
}

/// The file with a suffix behind its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Locks a file, and gives up after this long: a process that is stopped may hold the lock.
///
/// # Errors
/// The system's; `WouldBlock` if another process has it all the time.
#[expect(
    clippy::disallowed_methods,
    reason = "on a thread that may block: the system tells nobody when a lock is free"
)]
pub(crate) fn lock(file: &File, patience: Duration) -> Result<(), TryLockError> {
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            done => return done,
        }
    }
}

/// Whether nobody but its owner may read a file (or root's group one of root's, as PostgreSQL allows for keys). One that
/// is not there is nobody's.
pub(crate) fn is_private(path: &Path) -> bool {
    let others = |about: std::fs::Metadata| about.mode() & if about.uid() == 0 { 0o037 } else { 0o077 };
    std::fs::metadata(path).map_or(0, others) == 0
}

/// Whether others than its owner may write a file, or put files in a folder: a sticky one keeps those that are there, and not
/// those that are looked for and not there yet.
pub(crate) fn is_open_to_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|about| about.mode() & 0o022 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a folder that others write to, another user may have created it.
    #[test]
    fn what_somebody_else_has_put_there_is_not_believed() {
        let folder = std::env::temp_dir().join(format!("pgusher-own-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (own, link) = (folder.join("own"), folder.join("link"));
        std::fs::write(&own, "x").unwrap();
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert_eq!(&**read_own(&own, 10).unwrap(), b"x");
        assert!(read_own(&link, 10).is_err());
        assert!(open_own(OpenOptions::new().write(true), &link).is_err());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&own, Some(65_534), None).unwrap();
            assert_eq!(read_own(&own, 10).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_no_file_or_too_long_is_refused_at_once() {
        let folder = std::env::temp_dir().join(format!("pgusher-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (fifo, file) = (folder.join("fifo"), folder.join("file"));
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        std::fs::write(&file, [b'x'; 10]).unwrap();
        for path in [fifo.as_path(), folder.as_path(), Path::new("/dev/zero")] {
            assert_eq!(read(path, 10).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", path.display());
        }
        assert_eq!(read(&file, 10).unwrap().len(), 10);
        assert_eq!(read(&file, 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(&folder.join("none"), 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
