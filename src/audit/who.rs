//! Who was in an environment: the sessions of an audit, by user.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use memchr::memmem;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::read::open_all;

/// How much of a file one thread takes at a time.
const PIECE: u64 = 8 << 20;
/// The longest line: a piece is read so far beyond its end.
const MAX_LINE: usize = 4 << 20;
/// How many different addresses are told of one user.
const MAX_PEERS: usize = 10;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct AuditQuestion<'a> {
    /// The environment.
    pub environment: &'a str,
    /// From when on.
    pub since: SystemTime,
    /// Only this user.
    pub user: Option<&'a str>,
}

/// What one user did there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Visits {
    /// How many sessions there were at any time since then.
    pub sessions: u64,
    /// How many of them have no end in the audit: they go on, or their process was killed.
    pub open: i64,
    /// When the first of these events was.
    pub first: String,
    /// And the last.
    pub last: String,
    /// How many transactions the sessions that have ended had.
    pub transactions: u64,
    /// Bytes that they sent.
    pub bytes_in: u64,
    /// Bytes that they were sent.
    pub bytes_out: u64,
    /// Through which connections.
    pub connections: BTreeSet<String>,
    /// From where: some of the addresses.
    pub peers: BTreeSet<String>,
    /// Why, at the last time.
    pub reasons: Vec<String>,
}

/// A line of an event that is about a session.
#[derive(Debug, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    at: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    session: Cow<'a, str>,
    #[serde(borrow, default)]
    user: Cow<'a, str>,
    #[serde(borrow, default)]
    environment: Cow<'a, str>,
    #[serde(borrow, default)]
    connection: Cow<'a, str>,
    #[serde(borrow, default)]
    peer: Cow<'a, str>,
    #[serde(borrow, default)]
    began: Cow<'a, str>,
    #[serde(default)]
    transactions: u64,
    #[serde(default)]
    bytes_in: u64,
    #[serde(default)]
    bytes_out: u64,
}

#[derive(Debug, Deserialize)]
struct Reasons {
    #[serde(default)]
    reasons: Vec<String>,
}

/// What was found in some of the lines.
#[derive(Debug, Default)]
struct Matches {
    users: HashMap<String, Visits>,
    /// The line with the reasons, of each user.
    last_route: HashMap<String, (String, Vec<u8>)>,
    /// Sessions that had begun before: whose they are.
    earlier: HashMap<String, String>,
    /// Sessions that had begun before and have ended, at any time.
    ended: HashSet<String>,
}

/// Answers by user. Reads with as many threads as there are cores.
///
/// # Errors
/// A file cannot be read, or there is none.
pub(crate) fn who(path: &Path, question: &AuditQuestion<'_>) -> io::Result<BTreeMap<String, Visits>> {
    let mut pieces = Vec::new();
    for (_, file, length) in open_all(path)?.0 {
        let file = std::sync::Arc::new(file);
        pieces.extend((0..length.div_ceil(PIECE)).map(|n| (file.clone(), n * PIECE, length)));
    }
    let since = humantime::format_rfc3339_micros(question.since.max(SystemTime::UNIX_EPOCH)).to_string();
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Ok(Matches::default())));
    let work = || {
        let mut found = Matches::default();
        let mut outcome = Ok(());
        while let (Some((file, from, length)), true) =
            (pieces.get(next.fetch_add(1, Ordering::Relaxed)), outcome.is_ok())
        {
            outcome = read_piece(file, *from, *length).map(|piece| found.read(&piece, question, &since));
        }
        let mut all = all.lock();
        match (outcome, &mut *all) {
            (Ok(()), Ok(all)) => all.add(found),
            (Err(error), all) => *all = Err(error),
            (Ok(()), Err(_)) => {}
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores).for_each(|_| drop(scope.spawn(work)));
    });
    Ok(all.into_inner()?.users_now())
}

/// The lines that begin in a piece of a file.
fn read_piece(file: &File, from: u64, length: u64) -> io::Result<Vec<u8>> {
    let end = (from + PIECE).min(length);
    // From one byte before: a line begins behind a newline.
    let start = from.saturating_sub(1);
    let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
    file.read_exact_at(&mut bytes, start)?;
    let mut rest = vec![0; 64 << 10];
    let mut at = end;
    while at < length
        && bytes.last() != Some(&b'\n')
        && bytes.len() < usize::try_from(PIECE).unwrap_or(0) + MAX_LINE
    {
        let read = file.read_at(&mut rest, at)?;
        let line_end = memchr::memchr(b'\n', &rest[..read]).map_or(read, |end| end + 1);
        bytes.extend(&rest[..line_end]);
        at += line_end as u64;
        if read == 0 {
            break;
        }
    }
    if from > 0 {
        let begins = memchr::memchr(b'\n', &bytes).map_or(bytes.len(), |at| at + 1);
        bytes.drain(..begins);
    }
    Ok(bytes)
}

impl Matches {
    fn read(&mut self, bytes: &[u8], question: &AuditQuestion<'_>, since: &str) {
        let wanted = format!("\"environment\":{}", super::quoted(question.environment));
        let finder = memmem::Finder::new(&wanted);
        let mut from = 0;
        while let Some(hit) = finder.find(&bytes[from..]) {
            let hit = from + hit;
            let start = memchr::memrchr(b'\n', &bytes[..hit]).map_or(0, |at| at + 1);
            let end = memchr::memchr(b'\n', &bytes[hit..]).map_or(bytes.len(), |at| hit + at);
            from = end;
            if let Ok(line) = serde_json::from_slice::<Line<'_>>(&bytes[start..end])
                && line.environment == question.environment
                && question.user.is_none_or(|user| line.user == user)
            {
                self.line(&line, &bytes[start..end], since);
            }
        }
    }

    fn line(&mut self, line: &Line<'_>, text: &[u8], since: &str) {
        match &*line.event {
            "route" if *line.at < *since => {
                self.earlier.insert(line.session.clone().into_owned(), line.user.clone().into_owned());
            }
            "route" => {
                let visits = self.user(line);
                visits.sessions += 1;
                visits.open += 1;
                if self.last_route.get(&*line.user).is_none_or(|(at, _)| **at < *line.at) {
                    let last = (line.at.clone().into_owned(), text.to_vec());
                    self.last_route.insert(line.user.clone().into_owned(), last);
                }
            }
            "end" => {
                let began_before = *line.began < *since;
                if began_before {
                    self.ended.insert(line.session.clone().into_owned());
                }
                if *line.at < *since {
                    return;
                }
                let visits = self.user(line);
                visits.sessions += u64::from(began_before);
                // Its beginning may stand in another piece.
                visits.open -= i64::from(!began_before);
                visits.transactions += line.transactions;
                visits.bytes_in += line.bytes_in;
                visits.bytes_out += line.bytes_out;
            }
            _ => {}
        }
    }

    fn user(&mut self, line: &Line<'_>) -> &mut Visits {
        let visits = self.users.entry(line.user.clone().into_owned()).or_default();
        if visits.first.is_empty() || *visits.first > *line.at {
            visits.first = line.at.clone().into_owned();
        }
        if *visits.last < *line.at {
            visits.last = line.at.clone().into_owned();
        }
        if !visits.connections.contains(&*line.connection) {
            visits.connections.insert(line.connection.clone().into_owned());
        }
        let host = line.peer.rsplit_once(':').map_or(&*line.peer, |(host, _)| host);
        if visits.peers.len() < MAX_PEERS && !visits.peers.contains(host) {
            visits.peers.insert(host.to_owned());
        }
        visits
    }

    fn add(&mut self, other: Self) {
        for (user, visits) in other.users {
            self.users.entry(user).or_default().add(visits);
        }
        for (user, (at, text)) in other.last_route {
            if self.last_route.get(&user).is_none_or(|(known, _)| *known < at) {
                self.last_route.insert(user, (at, text));
            }
        }
        self.earlier.extend(other.earlier);
        self.ended.extend(other.ended);
    }

    fn users_now(mut self) -> BTreeMap<String, Visits> {
        for (session, user) in &self.earlier {
            if !self.ended.contains(session) {
                let visits = self.users.entry(user.clone()).or_default();
                visits.sessions += 1;
                visits.open += 1;
            }
        }
        for (user, (_, line)) in &self.last_route {
            if let (Some(visits), Ok(said)) =
                (self.users.get_mut(user), serde_json::from_slice::<Reasons>(line))
            {
                visits.reasons = said.reasons;
            }
        }
        self.users.into_iter().collect()
    }
}

impl Visits {
    fn add(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.open += other.open;
        self.transactions += other.transactions;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        if self.first.is_empty() || (!other.first.is_empty() && other.first < self.first) {
            self.first = other.first;
        }
        self.last = std::mem::take(&mut self.last).max(other.last);
        self.connections.extend(other.connections);
        self.peers.extend(other.peers);
        while self.peers.len() > MAX_PEERS {
            self.peers.pop_last();
        }
    }
}
