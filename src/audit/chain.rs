//! The file that is written: its last line, its lock, its successor.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::files::beside;
use serde::Deserialize;

use super::Event;

/// What stands in place of the hash before the first line.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The length of a file that is to be looked at before it is written.
const UNKNOWN: u64 = u64::MAX;
/// The longest line that is looked for at the end of a file.
const MAX_LINE: u64 = 4 << 20;

/// A line's number and hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// From 1; 0 is before the first line.
    pub seq: u64,
    /// SHA-256 of the line without its newline, in hexadecimal digits.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { seq: 0, hash: NOTHING.into() }
    }
}

/// What every line has.
#[derive(Debug, Deserialize)]
pub(super) struct Link {
    pub seq: u64,
    pub prev: String,
}

/// SHA-256 in hexadecimal digits.
pub(super) fn hash(line: &[u8]) -> String {
    wire::hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, line).as_ref())
}

/// What `FILE.head` says: the number and the hash of the last line, written after it. It shows that lines are missing at
/// the end, or that the last one was changed.
pub(super) fn read_head(file: &File) -> io::Result<Option<Head>> {
    let mut text = vec![0; 128];
    let read = file.read_at(&mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..read]);
    let mut words = text.split_whitespace();
    let seq = words.next().and_then(|word| word.parse().ok());
    let hash = words.next().filter(|hash| hash.len() == NOTHING.len());
    Ok(seq.zip(hash).map(|(seq, hash)| Head { seq, hash: hash.to_owned() }))
}

/// How a file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// With a whole line, or it is empty.
    Whole,
    /// With a line that lacks its newline.
    Unended,
    /// With the beginning of a line, so many bytes.
    Torn(u64),
}

const NO_HEAD: &str = "FILE.head is missing, or holds something else";

/// A file, whatever it is called: its device and its number there.
type FileId = (u64, u64);

fn file_id(file: &std::fs::Metadata) -> FileId {
    (file.dev(), file.ino())
}

/// Lines that were there and are not, or are others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    /// What was seen.
    pub why: &'static str,
    /// The number of the last line that is known.
    pub known: u64,
    /// And of the last one that was found in the file.
    pub found: u64,
}

impl Gap {
    fn event(self) -> Event {
        let event = Event::new("audit_gap").text("why", self.why);
        event.number("known", self.known).number("found", self.found)
    }
}

/// See the module. Several processes may write to one file: each locks `FILE.head` while it does.
#[derive(Debug)]
pub(super) struct Chain {
    path: PathBuf,
    max_size: u64,
    file: File,
    /// Also the lock.
    head_file: File,
    head: Head,
    /// How long the file is, if it is as we left it.
    length: u64,
    /// How long it was when we left it, and which file that was.
    left: Option<(FileId, u64)>,
    /// `FILE.head` was removed, or another one was put in its place.
    lost_head: bool,
    /// What is found missing, until a line says so.
    gap: Option<Gap>,
    /// The last one that a line has said.
    told: Option<Gap>,
    /// The number of the file's first line.
    first: u64,
}

impl Chain {
    /// How long a file becomes before another is begun, in bytes.
    pub(super) fn max_size(&self) -> u64 {
        self.max_size
    }

    pub(super) fn open(path: &Path, max_size: u64) -> io::Result<Self> {
        let file = open(path)?;
        let head_file = open_head(path)?;
        Ok(Self {
            path: path.to_owned(),
            max_size,
            file,
            head_file,
            head: Head::default(),
            length: UNKNOWN,
            left: None,
            lost_head: false,
            gap: None,
            told: None,
            first: 0,
        })
    }

    /// What was found missing since the last time.
    pub(super) fn take_gap(&mut self) -> Option<Gap> {
        self.told.take()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn head(&self) -> Head {
        self.head.clone()
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        let synced = self.file.sync_data();
        if synced.is_err() {
            // Something may be gone, and the system says that once only.
            self.length = UNKNOWN;
        }
        synced
    }

    /// Takes turns with other processes: by the file that `FILE.head` is now.
    fn lock(&mut self) -> io::Result<()> {
        let there = std::fs::metadata(beside(&self.path, ".head")).ok();
        let ours = file_id(&self.head_file.metadata()?);
        if there.is_none_or(|there| file_id(&there) != ours) {
            self.head_file = open_head(&self.path)?;
            (self.lost_head, self.length) = (true, UNKNOWN);
        }
        self.head_file.lock()
    }

    /// Writes all of these or none; true if anything was written.
    pub(super) fn append<'a>(&mut self, events: impl IntoIterator<Item = &'a Event>) -> io::Result<bool> {
        self.lock()?;
        let appended = self.append_locked(events);
        self.head_file.unlock()?;
        appended
    }

    fn append_locked<'a>(&mut self, events: impl IntoIterator<Item = &'a Event>) -> io::Result<bool> {
        let tail = self.catch_up()?;
        let mut lines = Vec::new();
        let mut head = self.head.clone();
        let first = head.seq + 1;
        if tail != Tail::Whole {
            lines.push(b'\n');
        }
        if let Tail::Torn(bytes) = tail {
            push(&mut lines, &mut head, &Event::new("recovered").number("torn", bytes));
        }
        if let Some(gap) = &self.gap {
            push(&mut lines, &mut head, &gap.event());
        }
        events.into_iter().for_each(|event| push(&mut lines, &mut head, event));
        if lines.is_empty() {
            return Ok(false);
        }
        if let Err(error) = self.file.write_all(&lines) {
            // Whatever part of it was written is no line. What is there is to be looked at again.
            let length = std::mem::replace(&mut self.length, UNKNOWN);
            self.file.set_len(length)?;
            return Err(error);
        }
        if self.length == 0 {
            self.first = first;
        }
        self.length += lines.len() as u64;
        self.left = self.file.metadata().ok().map(|file| (file_id(&file), self.length));
        self.head = head;
        self.told = self.gap.take().or(self.told.take());
        // What is written is written: should this fail, the next one says more.
        let _ = self.write_head();
        Ok(true)
    }

    fn write_head(&self) -> io::Result<()> {
        self.head_file.write_all_at(format!("{:020} {}\n", self.head.seq, self.head.hash).as_bytes(), 0)
    }

    /// Finds the end of the file, if it is not as we left it.
    fn catch_up(&mut self) -> io::Result<Tail> {
        let here = self.file.metadata()?;
        let there = std::fs::metadata(&self.path).ok();
        let same = there.as_ref().is_some_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino()));
        if same && here.len() == self.length {
            return Ok(Tail::Whole);
        }
        self.length = UNKNOWN;
        let lost = self.lost(&here);
        if !same {
            self.file = open(&self.path)?;
        }
        let length = self.file.metadata()?.len();
        let (last, rest) = last_line(&mut self.file, length)?;
        let written = last.map(|line| head_of(&self.path, &line)).transpose()?;
        let last = match &written {
            Some(last) => Some(last.clone()),
            None => self.last_of_earlier()?,
        };
        let said = read_head(&self.head_file)?;
        // The chain goes on from what was written last, also if that is not there any more: so it is seen. What this
        // process has written itself, nobody can talk it out of.
        let all = [last.as_ref(), said.as_ref(), Some(&self.head)];
        let head = all.into_iter().flatten().max_by_key(|head| head.seq).cloned().unwrap_or_default();
        if let Some(why) = lost.or_else(|| self.missing(said.as_ref(), written.as_ref())) {
            let found = last.as_ref().map_or(0, |last| last.seq);
            self.gap = Some(Gap { why, known: head.seq, found });
        }
        self.lost_head = false;
        let follows = |link: &Link| link.seq == head.seq + 1 && link.prev == head.hash;
        let (head, tail) = match serde_json::from_slice::<Link>(&rest).ok().filter(follows) {
            // All but its newline was written.
            Some(link) => (Head { seq: link.seq, hash: hash(&rest) }, Tail::Unended),
            None if rest.is_empty() => (head, Tail::Whole),
            None => (head, Tail::Torn(rest.len() as u64)),
        };
        self.first = match first_line(&self.file)? {
            Some(line) => serde_json::from_slice::<Link>(&line).map_or(head.seq, |link| link.seq),
            None => head.seq + 1,
        };
        let is_known = tail == Tail::Whole && written.as_ref() == Some(&head);
        self.left = if is_known { Some((file_id(&self.file.metadata()?), length)) } else { None };
        (self.head, self.length) = (head, length);
        Ok(tail)
    }

    /// What became of the file as this process left it, if that was nothing good.
    fn lost(&self, here: &std::fs::Metadata) -> Option<&'static str> {
        let (_, length) = self.left.filter(|(id, _)| *id == file_id(here))?;
        if here.nlink() == 0 {
            return Some("the file was removed");
        }
        if here.len() < length {
            return Some("the file was cut");
        }
        if length == 0 {
            return None;
        }
        let last = line_before(&self.file, length).ok()?;
        (hash(&last) != self.head.hash).then_some("lines of this process were changed")
    }

    /// What is missing, by what `FILE.head` says, by the last line in the file, and by what this process has written.
    fn missing(&self, said: Option<&Head>, last: Option<&Head>) -> Option<&'static str> {
        let ours = &self.head;
        match (said, last) {
            (None, _) if self.lost_head && ours.seq > 0 => return Some(NO_HEAD),
            // At the start. Later it may be that the disk did not take it.
            (None, Some(_)) if ours.seq == 0 => return Some(NO_HEAD),
            (Some(said), Some(last)) if last.seq < said.seq => return Some("lines are missing at the end"),
            (Some(said), Some(last)) if last.seq == said.seq && last.hash != said.hash => {
                return Some("the last line was changed");
            }
            _ => {}
        }
        let found = [last, said].into_iter().flatten().max_by_key(|head| head.seq);
        match found {
            Some(found) if found.seq == ours.seq && found.hash != ours.hash => {
                Some("the last line was changed")
            }
            Some(found) if found.seq >= ours.seq => None,
            _ if ours.seq == 0 => None,
            _ => Some("lines of this process are missing at the end"),
        }
    }

    /// The last line of the newest of the files that were put away.
    fn last_of_earlier(&self) -> io::Result<Option<Head>> {
        let Some(newest) = files(&self.path)?.into_iter().rfind(|path| *path != self.path) else {
            return Ok(None);
        };
        let mut file = File::open(newest)?;
        let length = file.metadata()?.len();
        last_line(&mut file, length)?.0.map(|line| head_of(&self.path, &line)).transpose()
    }

    /// If the file is long enough, it gets the number of its first line behind its name, and a new one is begun.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        if self.length < self.max_size {
            return Ok(());
        }
        self.lock()?;
        let rotated = self.rotate_locked();
        self.head_file.unlock()?;
        rotated
    }

    fn rotate_locked(&mut self) -> io::Result<()> {
        if self.catch_up()? != Tail::Whole || self.length < self.max_size {
            // The next line says what there is.
            self.length = UNKNOWN;
            return Ok(());
        }
        self.file.sync_data()?;
        self.head_file.sync_data()?;
        let aside = beside(&self.path, &format!(".{:012}", self.first));
        if aside.exists() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} is there already", aside.display()),
            ));
        }
        std::fs::rename(&self.path, aside)?;
        self.file = open(&self.path)?;
        self.length = 0;
        self.left = self.file.metadata().ok().map(|file| (file_id(&file), 0));
        Ok(())
    }
}

fn push(lines: &mut Vec<u8>, head: &mut Head, event: &Event) {
    let at = humantime::format_rfc3339_micros(event.at.max(SystemTime::UNIX_EPOCH));
    let seq = head.seq + 1;
    let line = format!("{{\"seq\":{seq},\"at\":\"{at}\",{},\"prev\":\"{}\"}}", event.text, head.hash);
    *head = Head { seq, hash: hash(line.as_bytes()) };
    lines.extend(line.as_bytes());
    lines.push(b'\n');
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

fn open_head(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(beside(path, ".head"))
}

fn head_of(path: &Path, line: &[u8]) -> io::Result<Head> {
    let link: Link = serde_json::from_slice(line).map_err(|_| {
        let message = format!("{} does not end with a line of an audit", path.display());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })?;
    Ok(Head { seq: link.seq, hash: hash(line) })
}

/// Whether lines could be appended to what there is, if there is anything.
pub(super) fn expect(path: &Path) -> io::Result<()> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let length = file.metadata()?.len();
    match last_line(&mut file, length)? {
        (Some(line), _) => head_of(path, &line).map(drop),
        (None, _) => Ok(()),
    }
}

/// The last whole line, and what stands behind it.
fn last_line(file: &mut File, length: u64) -> io::Result<(Option<Vec<u8>>, Vec<u8>)> {
    let from = length.saturating_sub(MAX_LINE);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(MAX_LINE).read_to_end(&mut tail)?;
    let Some(end) = memchr::memrchr(b'\n', &tail) else { return Ok((None, tail)) };
    let start = memchr::memrchr(b'\n', &tail[..end]).map_or(0, |at| at + 1);
    Ok((Some(tail[start..end].to_vec()), tail.split_off(end + 1)))
}

/// The line that ends, with its newline, at this length of a file; empty at its beginning.
fn line_before(file: &File, end: u64) -> io::Result<Vec<u8>> {
    // Nearly every line is short.
    for most in [64 << 10, MAX_LINE] {
        let from = end.saturating_sub(most);
        let mut tail = vec![0; usize::try_from(end - from).unwrap_or(0)];
        file.read_exact_at(&mut tail, from)?;
        tail.pop();
        match memchr::memrchr(b'\n', &tail) {
            Some(at) => return Ok(tail.split_off(at + 1)),
            None if from == 0 => return Ok(tail),
            None => {}
        }
    }
    Ok(Vec::new())
}

fn first_line(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut beginning = vec![0; 64 << 10];
    let read = file.read_at(&mut beginning, 0)?;
    beginning.truncate(read);
    let end = memchr::memchr(b'\n', &beginning);
    Ok(end.map(|end| beginning[..end].to_vec()))
}

/// The files of an audit, the oldest first; the one that is written is the last.
///
/// # Errors
/// The folder cannot be read.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut earlier = Vec::new();
    for entry in folder.read_dir()? {
        let entry = entry?.file_name().to_string_lossy().into_owned();
        let number = entry.strip_prefix(&name).and_then(|rest| rest.strip_prefix('.')?.parse::<u64>().ok());
        earlier.extend(number.map(|number| (number, folder.join(entry))));
    }
    earlier.sort();
    let mut all: Vec<_> = earlier.into_iter().map(|(_, path)| path).collect();
    if path.exists() {
        all.push(path.to_owned());
    }
    Ok(all)
}
