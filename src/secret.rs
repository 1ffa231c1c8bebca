//! A secret: where it comes from, read again on demand, never printed.

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

use crate::files;

/// The longest secret that is read from a file, an environment variable or a command, in bytes.
pub const MAX_LENGTH: usize = 65_536;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a secret stands.
#[derive(Clone)]
pub enum Source {
    /// In the configuration itself.
    Plain(SecretString),
    /// In a file; a byte-order mark at its start and one trailing line end are not part of it.
    File(PathBuf),
    /// In an environment variable of the pgusher process.
    Env(String),
    /// On the standard output of a command; one trailing line end is not part of it.
    Command(Vec<String>),
}

/// A secret that has been read and can be read again.
pub struct Secret {
    source: Source,
    value: RwLock<SecretString>,
}

/// Why a secret cannot be had. Never holds any of it.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret file {0}: {1}")]
    File(PathBuf, io::Error),
    /// The variable is not set, or not UTF-8.
    #[error("the environment variable {0} is not set")]
    Env(String),
    /// The command cannot be started, failed, or took too long.
    #[error("the secret command {0:?} {1}")]
    Command(String, String),
    /// Too long, or not UTF-8.
    #[error("the secret is not a text of at most {MAX_LENGTH} bytes")]
    Form,
}

impl Secret {
    /// Reads the secret once; blocks for as long as a command runs (at most 10 s).
    pub fn read(source: Source) -> Result<Self, SecretError> {
        let value = RwLock::new(read(&source)?);
        Ok(Self { source, value })
    }

    /// The value as last read.
    pub fn value(&self) -> SecretString {
        self.value.read().clone()
    }

    /// Reads it again; true if it differs from what was known. Blocks like [`Secret::read`].
    pub fn reread(&self) -> Result<bool, SecretError> {
        let new = read(&self.source)?;
        let mut value = self.value.write();
        let changed = new.expose_secret() != value.expose_secret();
        *value = new;
        Ok(changed)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.value.read().expose_secret() == other.value.read().expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source(***)")
    }
}

fn read(source: &Source) -> Result<SecretString, SecretError> {
    match source {
        Source::Plain(value) => Ok(value.clone()),
        Source::File(path) => {
            let bytes =
                files::read(path, files::MAX_SMALL).map_err(|e| SecretError::File(path.clone(), e))?;
            bounded(bytes.as_slice()).map(without_mark).map_err(|_| SecretError::Form)
        }
        Source::Env(name) => {
            let value = std::env::var(name).map_err(|_| SecretError::Env(name.clone()))?;
            bounded(value.as_bytes()).map_err(|_| SecretError::Form)
        }
        Source::Command(words) => run(words),
    }
}

/// Some editors begin a file with a byte-order mark.
fn without_mark(text: SecretString) -> SecretString {
    match text.expose_secret().strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned().into(),
        None => text,
    }
}

fn run(words: &[String]) -> Result<SecretString, SecretError> {
    let program = words.first().cloned().unwrap_or_default();
    let failed = |why: String| SecretError::Command(program.clone(), why);
    let mut child = Command::new(&program)
        .args(words.get(1..).unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(format!("cannot be started: {e}")))?;
    let output = child.stdout.take();
    let reader = std::thread::spawn(move || output.map(bounded));
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| failed(e.to_string()))? {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed("took longer than 10 seconds".into()));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if !status.success() {
        return Err(failed(format!("ended with {status}")));
    }
    match reader.join() {
        Ok(Some(Ok(secret))) => Ok(secret),
        _ => Err(SecretError::Form),
    }
}

/// Reads at most [`MAX_LENGTH`] bytes of UTF-8 and takes one trailing line end off; anything else is
/// `InvalidData`.
fn bounded(mut input: impl Read) -> io::Result<SecretString> {
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    input.by_ref().take(MAX_LENGTH as u64 + 2).read_to_end(&mut bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let text = text.strip_suffix('\n').map_or(text, |t| t.strip_suffix('\r').unwrap_or(t));
    if text.len() > MAX_LENGTH {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(SecretString::from(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::read(Source::Plain("hunter2".to_owned().into())).unwrap();
        assert!(!format!("{secret:?}").contains("hunter2"));
    }

    #[test]
    fn a_command_gives_its_output_without_the_line_end() {
        let words = ["printf", "s3cret\\n"].map(str::to_owned).to_vec();
        let secret = Secret::read(Source::Command(words)).unwrap();
        assert_eq!(secret.value().expose_secret(), "s3cret");
    }

    #[test]
    fn a_failing_command_says_which() {
        let error = Secret::read(Source::Command(vec!["false".into()])).unwrap_err();
        assert!(error.to_string().contains("false"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_at_the_start_of_a_file_is_not_part_of_the_secret() {
        let path = std::env::temp_dir().join(format!("pgusher-mark-{}", std::process::id()));
        for (text, expected) in
            [("\u{feff}", ""), ("\u{feff}\r\n", ""), ("\u{feff}one\r\n", "one"), ("a\u{feff}\n", "a\u{feff}")]
        {
            std::fs::write(&path, text).unwrap();
            let secret = Secret::read(Source::File(path.clone())).unwrap();
            assert_eq!(secret.value().expose_secret(), expected, "{text:?}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_changed_file_is_seen_by_reread() {
        let dir = std::env::temp_dir().join(format!("pgusher-secret-{}", std::process::id()));
        std::fs::write(&dir, "one\n").unwrap();
        let secret = Secret::read(Source::File(dir.clone())).unwrap();
        assert!(!secret.reread().unwrap());
        std::fs::write(&dir, "two\n").unwrap();
        assert!(secret.reread().unwrap());
        assert_eq!(secret.value().expose_secret(), "two");
        std::fs::remove_file(dir).unwrap();
    }
}
