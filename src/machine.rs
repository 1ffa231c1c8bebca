//! The machine that a configuration is checked on: its secrets, its files, and who may read and write them.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::files;
use policy::config::Machine;
use policy::secret::{MAX_LENGTH, Secret, SecretError, Source};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// The machine that this process runs on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ThisMachine;

impl Machine for ThisMachine {
    fn secret(&self, source: &Source) -> Result<SecretString, SecretError> {
        read(source)
    }

    fn small_file(&self, path: &Path) -> Option<Zeroizing<Vec<u8>>> {
        files::read(path, files::MAX_SMALL).ok()
    }

    fn is_private(&self, path: &Path) -> bool {
        files::is_private(path)
    }

    fn is_open_to_others(&self, path: &Path) -> bool {
        files::is_open_to_others(path)
    }

    fn is_readable_by_everybody(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o004 != 0)
    }
}

/// Reads a secret; blocks for as long as a command runs (at most 10 s).
///
/// # Errors
/// It cannot be had.
pub(crate) fn read(source: &Source) -> Result<SecretString, SecretError> {
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

/// Reads a secret again; true if it differs from what was known. Blocks like [`read`].
///
/// # Errors
/// As [`read`]; what was known stays.
pub(crate) fn reread(secret: &Secret) -> Result<bool, SecretError> {
    Ok(secret.renew(read(secret.source())?))
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
        #[expect(
            clippy::disallowed_methods,
            reason = "on a thread that may block: a child is looked for, not heard of"
        )]
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
    let mut bytes = Zeroizing::new(Vec::new());
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
    fn a_command_gives_its_output_without_the_line_end() {
        let words = ["printf", "s3cret\\n"].map(str::to_owned).to_vec();
        let secret = read(&Source::Command(words)).unwrap();
        assert_eq!(secret.expose_secret(), "s3cret");
    }

    #[test]
    fn a_failing_command_says_which() {
        let error = read(&Source::Command(vec!["false".into()])).unwrap_err();
        assert!(error.to_string().contains("false"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_at_the_start_of_a_file_is_not_part_of_the_secret() {
        let path = std::env::temp_dir().join(format!("pgusher-mark-{}", std::process::id()));
        for (text, expected) in
            [("\u{feff}", ""), ("\u{feff}\r\n", ""), ("\u{feff}one\r\n", "one"), ("a\u{feff}\n", "a\u{feff}")]
        {
            std::fs::write(&path, text).unwrap();
            let secret = read(&Source::File(path.clone())).unwrap();
            assert_eq!(secret.expose_secret(), expected, "{text:?}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_changed_file_is_seen_by_reread() {
        let dir = std::env::temp_dir().join(format!("pgusher-secret-{}", std::process::id()));
        std::fs::write(&dir, "one\n").unwrap();
        let source = Source::File(dir.clone());
        let secret = Secret::new(source.clone(), read(&source).unwrap());
        assert!(!reread(&secret).unwrap());
        std::fs::write(&dir, "two\n").unwrap();
        assert!(reread(&secret).unwrap());
        assert_eq!(secret.value().expose_secret(), "two");
        std::fs::remove_file(dir).unwrap();
    }
}
