//! Whether an audit is whole.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::chain::{Head, Link, files, hash, read_head};
use crate::files::beside;

/// A file, open, with the length that it had.
pub(super) type Part = (PathBuf, File, u64);

/// All files as they are at one moment, and the head.
///
/// # Errors
/// A file cannot be read, or there is none.
pub(super) fn open_all(path: &Path) -> io::Result<(Vec<Part>, Option<Head>)> {
    // The lock keeps files from being exchanged between the look for them and their being opened.
    let head_file = File::open(beside(path, ".head")).ok();
    if let Some(head) = &head_file {
        head.lock_shared()?;
    }
    let mut parts = Vec::new();
    for path in files(path)? {
        let file = File::open(&path)?;
        let length = file.metadata()?.len();
        parts.push((path, file, length));
    }
    let head = head_file.as_ref().map(read_head).transpose()?.flatten();
    if let Some(file) = &head_file {
        file.unlock()?;
    }
    if parts.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no {}", path.display())));
    }
    Ok((parts, head))
}

/// Something that is wrong, or to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainFinding {
    /// Where.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What.
    pub what: String,
    /// False if it only is to be known.
    pub is_wrong: bool,
}

impl fmt::Display for ChainFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_wrong { "" } else { "note: " };
        write!(f, "{}:{}: {kind}{}", self.file.display(), self.line, self.what)
    }
}

/// What a look at all lines has found.
#[derive(Debug, Default)]
pub struct Verified {
    /// How many lines there are.
    pub lines: u64,
    /// In how many files.
    pub files: usize,
    /// The last one.
    pub head: Head,
    /// What was found, in order.
    pub findings: Vec<ChainFinding>,
}

impl Verified {
    /// Whether no line was changed and none is missing.
    pub fn is_whole(&self) -> bool {
        !self.findings.iter().any(|finding| finding.is_wrong)
    }
}

/// Looks at every line. A process may write meanwhile. With `known`, the hash of a line that was the last one once, that
/// one must be there.
///
/// # Errors
/// A file cannot be read, or there is none.
pub fn verify(path: &Path, known: Option<&str>) -> io::Result<Verified> {
    let (parts, head) = open_all(path)?;
    let mut look = Look {
        seen: Verified { files: parts.len(), ..Verified::default() },
        known: known.map(str::to_ascii_lowercase),
        ..Look::default()
    };
    for (path, file, length) in parts {
        look.file(&path, BufReader::with_capacity(1 << 20, file.take(length)))?;
    }
    Ok(look.end(path, head))
}

/// A line that was no line, of which the next one may say that its writer was killed.
struct Odd {
    file: PathBuf,
    line: usize,
    length: u64,
}

#[derive(Default)]
struct Look {
    seen: Verified,
    odd: Option<Odd>,
    /// The hash that one of the lines must have.
    known: Option<String>,
    /// Where the last line was.
    last: (PathBuf, usize),
}

#[derive(Deserialize)]
struct Recovered {
    event: String,
    torn: Option<u64>,
}

impl Look {
    fn file(&mut self, path: &Path, mut lines: impl BufRead) -> io::Result<()> {
        let mut number = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            number += 1;
            let is_whole = line.pop_if(|last| *last == b'\n').is_some();
            match serde_json::from_slice::<Link>(&line) {
                Ok(link) if is_whole => self.line(path, number, &line, &link),
                _ => {
                    self.settle_odd();
                    self.odd = Some(Odd { file: path.to_owned(), line: number, length: line.len() as u64 });
                }
            }
        }
    }

    fn line(&mut self, path: &Path, number: usize, line: &[u8], link: &Link) {
        let said = serde_json::from_slice::<Recovered>(line).ok().filter(|said| said.event == "recovered");
        if let Some(odd) = self.odd.take_if(|odd| said.is_some_and(|said| said.torn == Some(odd.length))) {
            let what = "an unfinished line: its process was killed while it wrote; the next line says so";
            self.note(odd.file, odd.line, what.into());
        }
        self.settle_odd();
        let before = self.seen.head.clone();
        if self.seen.lines == 0 && link.seq > 1 {
            let what = format!("begins with line {}: the files of those before are not here", link.seq);
            self.note(path.to_owned(), number, what);
        } else if link.seq != before.seq + 1 {
            let what = match link.seq.checked_sub(before.seq + 2) {
                Some(_) => {
                    format!("lines {} to {} are missing before this one", before.seq + 1, link.seq - 1)
                }
                None => format!("line {} stands behind line {}", link.seq, before.seq),
            };
            self.wrong(path.to_owned(), number, what);
        } else if link.prev != before.hash {
            let (file, line) = self.last.clone();
            let (file, line) = if line == 0 { (path.to_owned(), number) } else { (file, line) };
            let what = format!("line {} was changed, or the one behind it", before.seq);
            self.wrong(file, line, what);
        }
        self.seen.lines += 1;
        self.seen.head = Head { seq: link.seq, hash: hash(line) };
        self.known.take_if(|known| *known == self.seen.head.hash);
        self.last = (path.to_owned(), number);
    }

    fn settle_odd(&mut self) {
        if let Some(odd) = self.odd.take() {
            self.wrong(odd.file, odd.line, "this is no line of an audit".into());
        }
    }

    fn wrong(&mut self, file: PathBuf, line: usize, what: String) {
        self.seen.findings.push(ChainFinding { file, line, what, is_wrong: true });
    }

    fn note(&mut self, file: PathBuf, line: usize, what: String) {
        self.seen.findings.push(ChainFinding { file, line, what, is_wrong: false });
    }

    fn end(mut self, path: &Path, head: Option<Head>) -> Verified {
        if let Some(odd) = self.odd.take() {
            let what = "an unfinished line at the end: its process was killed while it wrote, or was cut off";
            self.note(odd.file, odd.line, what.into());
        }
        let (file, line) = self.last.clone();
        let last = self.seen.head.clone();
        if let Some(known) = self.known.take() {
            self.wrong(file.clone(), line, format!("no line has the SHA-256 {known}"));
        }
        match head {
            None => {
                let what = format!(
                    "{} is not here: lines may have been taken away at the end. Keep it with the file wherever that goes",
                    beside(path, ".head").display()
                );
                // Beside a file without a line there is nothing to be said.
                match self.seen.lines {
                    0 => self.note(file, line, what),
                    _ => self.wrong(file, line, what),
                }
            }
            Some(head) if head.seq > last.seq => {
                let what = format!("lines {} to {} are missing at the end", last.seq + 1, head.seq);
                self.wrong(file, line, what);
            }
            Some(head) if head.seq == last.seq && head.hash != last.hash => {
                self.wrong(file, line, format!("line {} was changed", last.seq));
            }
            Some(_) => {}
        }
        self.seen
    }
}
