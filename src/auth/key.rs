//! The key that everything is made of that names without a password of their own are shown: the same in every process of
//! this configuration, so that neither a restart nor another instance tells them from the others.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use tracing::warn;
use zeroize::Zeroizing;

use crate::files;

/// The shortest text that is taken for a key, and how much of a file is read.
const SHORTEST: usize = 16;
const LONGEST: u64 = 4096;

/// A key of HMAC-SHA-256.
pub(super) struct Key(hmac::Key);

impl Key {
    /// That of a file, which is made if it is not there. If that cannot be, one for this process alone, with a warning.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(super) fn of(path: &Path) -> Result<Self, getrandom::Error> {
        match read_or_create(path) {
            Ok(key) => Ok(key),
            Err(error) => {
                warn!(
                    file = %path.display(), %error,
                    "the key of auth_key_file cannot be read or made: until a restart another one is used, and after it can \
                     be told which users there are. Let pgusher write that file, or put 32 random bytes there in \
                     hexadecimal digits"
                );
                random().map(|key| Self::of_text(key.as_bytes()))
            }
        }
    }

    fn of_text(text: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, digest(&SHA256, text).as_ref()))
    }

    /// 32 bytes that only this key makes of these parts.
    pub(super) fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut signature = [0; 32];
        signature.copy_from_slice(context.sign().as_ref());
        signature
    }
}

/// 32 random bytes in hexadecimal digits.
fn random() -> Result<Zeroizing<String>, getrandom::Error> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes)?;
    Ok(Zeroizing::new(wire::hex(&*bytes)))
}

fn read_or_create(path: &Path) -> io::Result<Key> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path)?;
            read(path)
        }
        read => read,
    }
}

fn read(path: &Path) -> io::Result<Key> {
    let file = File::open(path)?;
    if !files::is_private(path) {
        warn!(file = %path.display(), "others may read the key of auth_key_file: chmod 600");
    }
    let mut text = Zeroizing::new(Vec::new());
    file.take(LONGEST).read_to_end(&mut text)?;
    let key = text.trim_ascii();
    if key.len() < SHORTEST {
        let message = format!("it holds fewer than {SHORTEST} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(Key::of_text(key))
}

/// The file is there whole or not at all; of several processes that begin at once, one makes it.
fn create(path: &Path) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let aside = PathBuf::from(aside);
    let text = random().map_err(io::Error::other)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        match std::fs::hard_link(&aside, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let written = write();
    let _ = std::fs::remove_file(&aside);
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_only_and_is_the_same_afterwards() {
        let folder = std::env::temp_dir().join(format!("pgusher-key-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("pgusher.toml.key");
        let keys: Vec<_> = (0..2).map(|_| Key::of(&path).unwrap().sign(&[b"ghost"])).collect();
        assert_eq!(keys[0], keys[1]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
        // One that was given is taken, one that cannot be one is left alone.
        std::fs::write(&path, "0123456789abcdef").unwrap();
        let given = Key::of(&path).unwrap().sign(&[b"ghost"]);
        assert_ne!(given, keys[0]);
        assert_eq!(given, Key::of(&path).unwrap().sign(&[b"ghost"]));
        std::fs::write(&path, "short").unwrap();
        assert_ne!(Key::of(&path).unwrap().sign(&[b"ghost"]), Key::of(&path).unwrap().sign(&[b"ghost"]));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
        let nowhere = folder.join("nowhere/key");
        assert_ne!(Key::of(&nowhere).unwrap().sign(&[b"ghost"]), keys[0]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn parts_do_not_run_into_one_another() {
        let key = Key::of_text(b"0123456789abcdef");
        assert_ne!(key.sign(&[b"ab", b"c"]), key.sign(&[b"a", b"bc"]));
    }
}
