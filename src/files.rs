//! Files that others may have put there: read within a bound, and never waited for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// The longest secret file, certificate or key, in bytes.
pub const MAX_SMALL: u64 = 1 << 20;

/// Reads a regular file of at most so many bytes. Opening a FIFO or a device does not block: they are refused.
///
/// # Errors
/// The system's; `InvalidInput` for what is not a regular file, `FileTooLarge` for one that is too long.
pub fn read(path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
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

/// Whether nobody but its owner may read a file (or root's group one of root's, as PostgreSQL allows for keys). One that
/// is not there is nobody's.
pub fn is_private(path: &Path) -> bool {
    let others = |about: std::fs::Metadata| about.mode() & if about.uid() == 0 { 0o037 } else { 0o077 };
    std::fs::metadata(path).map_or(0, others) == 0
}

/// Whether others than its owner may write a file, or put another one in the place of those in a folder.
pub fn is_open_to_others(path: &Path) -> bool {
    const STICKY: u32 = 0o1000;
    let open = |about: std::fs::Metadata| {
        about.mode() & 0o022 != 0 && !(about.is_dir() && about.mode() & STICKY != 0)
    };
    std::fs::metadata(path).is_ok_and(open)
}

#[cfg(test)]
mod tests {
    use super::*;

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
