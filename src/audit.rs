//! The audit: who was where and why, and who changed what. One JSON object a line, each with the SHA-256 of the line
//! before it, so that a changed or missing line is found. Never a password, a key, or the SQL of a client.

mod chain;
mod read;
mod refusals;
mod who;

use std::fmt::{Display, Write};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::{error, info};

use chain::Chain;
pub(crate) use chain::Head;
pub use chain::files;
pub use read::verify;
pub(crate) use refusals::{Refusals, Refused};
pub(crate) use who::{AuditQuestion, Visits, who};
use wire::error::{Fault, Refusal, SqlState, escape_json};

/// How many events may wait while the disk takes none, and how many bytes of them; those that come then are counted, and
/// lost.
const MAX_WAITING: usize = 65_536;
const MAX_WAITING_BYTES: usize = 32 << 20;
/// The longest text of an event, in bytes.
const MAX_TEXT: usize = 1024;
/// How many are written at once.
const MAX_BATCH: usize = 4096;
/// The bytes of a short event.
const EVENT: u64 = 256;
/// How long it takes at most until what was written is safe from a power failure, and between two attempts.
const SYNC: Duration = Duration::from_secs(1);
/// How often the log says that the disk takes nothing.
const REMIND: Duration = Duration::from_secs(60);

/// Something that happened, as it will be written.
#[derive(Debug)]
pub struct Event {
    at: SystemTime,
    text: String,
}

impl Event {
    /// Now.
    pub fn new(name: &'static str) -> Self {
        Self { at: SystemTime::now(), text: format!("\"event\":\"{name}\"") }
    }

    /// With a text.
    #[must_use]
    pub fn text(mut self, name: &'static str, value: impl Display) -> Self {
        let _ = write!(self.text, ",\"{name}\":{}", quoted(&value.to_string()));
        self
    }

    /// With a text, if there is one.
    #[must_use]
    pub fn maybe(self, name: &'static str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    /// With a number.
    #[must_use]
    pub fn number(mut self, name: &'static str, value: u64) -> Self {
        let _ = write!(self.text, ",\"{name}\":{value}");
        self
    }

    /// With several texts.
    #[must_use]
    pub fn texts(mut self, name: &'static str, values: impl IntoIterator<Item: Display>) -> Self {
        let values: Vec<_> = values.into_iter().map(|value| quoted(&value.to_string())).collect();
        let _ = write!(self.text, ",\"{name}\":[{}]", values.join(","));
        self
    }

    /// With a time.
    #[must_use]
    pub fn time(self, name: &'static str, at: SystemTime) -> Self {
        self.text(name, humantime::format_rfc3339_micros(at))
    }
}

/// As JSON, in one line whatever reads it; of a text that is too long, its beginning.
fn quoted(text: &str) -> String {
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    escape_json(&serde_json::Value::from(&text[..end]).to_string()).into_owned()
}

/// What a client is told while the audit cannot be written, and `audit_failure = "refuse"`.
pub(crate) fn not_written() -> Refusal {
    let message = "the audit cannot be written";
    Refusal::new(Fault::Ours, SqlState::CANNOT_CONNECT_NOW, message)
        .hint("The log of pgusher says why. audit_failure = \"continue\" serves without.")
}

struct Entry {
    event: Event,
    written: Option<oneshot::Sender<()>>,
    _weight: Option<Weight>,
}

/// What an event weighs as long as it waits.
struct Weight {
    state: Arc<State>,
    bytes: usize,
}

impl Weight {
    /// `None` if too much waits already.
    fn of(event: &Event, state: &Arc<State>) -> Option<Self> {
        let bytes = event.text.capacity() + size_of::<Entry>();
        let weight = Self { state: state.clone(), bytes };
        let waiting = state.waiting.fetch_add(bytes, Ordering::AcqRel);
        (waiting + bytes <= MAX_WAITING_BYTES).then_some(weight)
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.state.waiting.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// What can be seen of it.
#[derive(Debug, Default)]
struct State {
    /// Nothing comes any more.
    closing: AtomicBool,
    /// The disk takes nothing.
    failing: AtomicBool,
    failures: AtomicU64,
    written: AtomicU64,
    lost: AtomicU64,
    tampered: AtomicU64,
    /// Bytes of the events that wait.
    waiting: AtomicUsize,
    head: Mutex<Head>,
}

/// Where events go; cheap to copy. Without an `audit_file`, nowhere.
#[derive(Debug, Clone, Default)]
pub struct Audit(Option<Arc<Open>>);

#[derive(Debug)]
struct Open {
    /// Of this process: the numbers of its sessions are its own.
    run: String,
    sender: Mutex<Option<SyncSender<Entry>>>,
    state: Arc<State>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// The figures of an [`Audit`].
#[derive(Debug, Clone)]
pub struct AuditFigures {
    /// The disk takes nothing now.
    pub failing: bool,
    /// How often writing has failed.
    pub failures: u64,
    /// Lines that were written.
    pub written: u64,
    /// Events that were lost, because too many waited for the disk.
    pub lost: u64,
    /// How often lines were missing or changed that had been written.
    pub tampered: u64,
    /// The last line.
    pub head: Head,
}

/// Whether a file could be gone on with as an audit, if it is there. Nothing is written.
///
/// # Errors
/// It is something else, or cannot be read.
pub(crate) fn expect_audit(path: &Path) -> io::Result<()> {
    chain::expect(path)
}

impl Audit {
    /// Goes on with this file, or begins it. A line that a killed process has left unfinished is closed, and said.
    ///
    /// # Errors
    /// The file cannot be opened or written, or holds something else.
    pub fn open(path: &Path, max_size: u64) -> io::Result<Self> {
        let mut chain = Chain::open(path, max_size)?;
        let torn = chain.append([])?;
        let mut run = [0; 4];
        getrandom::fill(&mut run).map_err(io::Error::other)?;
        let run = format!("{:08x}", u32::from_be_bytes(run));
        let state = Arc::new(State::default());
        *state.head.lock() = chain.head();
        tell_gap(&mut chain, &state);
        let (sender, receiver) = sync_channel(MAX_WAITING);
        let writer = Writer { chain, state: state.clone(), dirty: torn, reminded: None, batch: Vec::new() };
        let writer = std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&receiver))?;
        let (sender, writer) = (Mutex::new(Some(sender)), Mutex::new(Some(writer)));
        Ok(Self(Some(Arc::new(Open { run, sender, state, writer }))))
    }

    /// What a session is called in it: also that of another process is told apart.
    pub fn session(&self, id: u64) -> String {
        self.0.as_ref().map_or_else(|| id.to_string(), |open| format!("{}-{id}", open.run))
    }

    /// Takes an event, and does not wait for anything.
    pub fn record(&self, event: impl FnOnce() -> Event) {
        if let Some(open) = &self.0 {
            open.send(event(), None);
        }
    }

    /// Takes an event, and waits until it is written; false if it cannot be now.
    pub async fn record_surely(&self, event: impl FnOnce() -> Event) -> bool {
        let Some(open) = &self.0 else { return true };
        if open.state.failing.load(Ordering::Acquire) {
            return false;
        }
        let (sender, written) = oneshot::channel();
        open.send(event(), Some(sender)) && written.await.is_ok()
    }

    /// Its figures, if it is on.
    pub fn seen(&self) -> Option<AuditFigures> {
        let state = &self.0.as_ref()?.state;
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Some(AuditFigures {
            failing: state.failing.load(Ordering::Relaxed),
            failures: get(&state.failures),
            written: get(&state.written),
            lost: get(&state.lost),
            tampered: get(&state.tampered),
            head: state.head.lock().clone(),
        })
    }

    /// Writes what waits, and ends. Blocks; what the disk does not take is lost.
    pub fn close(&self) {
        if let Some(open) = &self.0 {
            open.state.closing.store(true, Ordering::Release);
            drop(open.sender.lock().take());
            if let Some(writer) = open.writer.lock().take() {
                let _ = writer.join();
            }
        }
    }
}

impl Open {
    fn send(&self, event: Event, written: Option<oneshot::Sender<()>>) -> bool {
        let weight = Weight::of(&event, &self.state);
        let sent = weight.is_some() && {
            let entry = Entry { event, written, _weight: weight };
            self.sender.lock().as_ref().is_some_and(|sender| sender.try_send(entry).is_ok())
        };
        if !sent {
            self.state.lost.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }
}

/// Lines that were written are missing or changed: the chain says so, and goes on from what is known.
fn tell_gap(chain: &mut Chain, state: &State) {
    if let Some(gap) = chain.take_gap() {
        state.tampered.fetch_add(1, Ordering::Relaxed);
        let file = chain.path().display();
        error!(
            %file, why = gap.why, known = gap.known, found = gap.found,
            "lines of the audit are missing or were changed: see who can write to its folder, and run pgusher audit verify"
        );
    }
}

/// What the writer does after it has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterFailure {
    /// It tries again after a while.
    Retry,
    /// Nothing more: the process ends.
    GiveUp,
}

/// The thread that writes.
struct Writer {
    chain: Chain,
    state: Arc<State>,
    /// Something was written since the last sync.
    dirty: bool,
    /// When the log was last told that the disk takes nothing.
    reminded: Option<Instant>,
    batch: Vec<Entry>,
}

impl Writer {
    fn run(mut self, events: &Receiver<Entry>) {
        let mut lost = 0;
        let mut last_sync = Instant::now();
        loop {
            let ended = self.gather(events);
            let now = self.state.lost.load(Ordering::Relaxed);
            if now > lost && self.batch.len() < self.most() {
                let event = Event::new("lost").number("events", now - lost);
                self.batch.push(Entry { event, written: None, _weight: None });
                lost = now;
            }
            let mut outcome = if self.batch.is_empty() { Ok(()) } else { self.write() };
            if outcome.is_ok() && self.dirty && (ended || last_sync.elapsed() >= SYNC) {
                outcome = self.chain.sync();
                self.dirty = outcome.is_err();
                last_sync = Instant::now();
            }
            match outcome {
                Ok(()) if ended => return,
                Ok(()) => self.works(),
                Err(error) => {
                    // Whoever ends does not wait until somebody makes room.
                    let gives_up = ended || self.state.closing.load(Ordering::Acquire);
                    let then = if gives_up { AfterFailure::GiveUp } else { AfterFailure::Retry };
                    self.fails(&error, then);
                    if then == AfterFailure::GiveUp {
                        return;
                    }
                }
            }
        }
    }

    /// How many events are written at once: not many more than one file holds, so that files keep to their size however
    /// much has come meanwhile.
    fn most(&self) -> usize {
        usize::try_from(self.chain.max_size() / EVENT).unwrap_or(MAX_BATCH).clamp(1, MAX_BATCH)
    }

    /// Takes what there is, or waits for something; true if nothing will come any more.
    fn gather(&mut self, events: &Receiver<Entry>) -> bool {
        match if self.batch.len() < self.most() {
            events.recv_timeout(SYNC)
        } else {
            Err(RecvTimeoutError::Timeout)
        } {
            Ok(entry) => self.batch.push(entry),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
        }
        while self.batch.len() < self.most() {
            match events.try_recv() {
                Ok(entry) => self.batch.push(entry),
                Err(_) => break,
            }
        }
        false
    }

    fn write(&mut self) -> io::Result<()> {
        self.dirty |= self.chain.append(self.batch.iter().map(|entry| &entry.event))?;
        self.state.written.fetch_add(self.batch.len() as u64, Ordering::Relaxed);
        *self.state.head.lock() = self.chain.head();
        tell_gap(&mut self.chain, &self.state);
        for entry in self.batch.drain(..) {
            entry.written.map(|written| written.send(()));
        }
        if let Err(error) = self.chain.rotate() {
            self.state.failures.fetch_add(1, Ordering::Relaxed);
            if self.is_time_to_remind() {
                let file = self.chain.path().display();
                error!(%file, %error, "cannot begin a new file of the audit: this one grows on");
            }
        }
        Ok(())
    }

    fn is_time_to_remind(&mut self) -> bool {
        let is_time = self.reminded.is_none_or(|at| at.elapsed() >= REMIND);
        if is_time {
            self.reminded = Some(Instant::now());
        }
        is_time
    }

    fn works(&mut self) {
        if self.state.failing.swap(false, Ordering::AcqRel) {
            self.reminded = None;
            info!("the audit is written again");
        }
    }

    /// Whoever waits is told so; the events stay, for the next attempt.
    fn fails(&mut self, error: &io::Error, then: AfterFailure) {
        self.state.failures.fetch_add(1, Ordering::Relaxed);
        self.state.failing.store(true, Ordering::Release);
        // What somebody waits for does not happen now.
        self.batch.retain(|entry| entry.written.is_none());
        if self.is_time_to_remind() || then == AfterFailure::GiveUp {
            let (file, waiting) = (self.chain.path().display(), self.batch.len());
            error!(%file, %error, waiting, "the audit cannot be written: events wait, and are lost when too many do");
        }
        if then == AfterFailure::Retry {
            #[expect(
                clippy::disallowed_methods,
                reason = "a thread of its own, which has nothing else to do"
            )]
            std::thread::sleep(SYNC);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_wait_are_bounded_in_bytes_and_what_is_written_makes_room() {
        let state = Arc::new(State::default());
        let event = Event::new("api").text("path", "x".repeat(100_000));
        assert!(event.text.len() < 2 * MAX_TEXT, "a text is bounded, too");
        let mut waiting = Vec::new();
        while let Some(weight) = Weight::of(&event, &state) {
            waiting.push(weight);
        }
        assert!(waiting.len() > 1_000 && waiting.len() * event.text.len() <= MAX_WAITING_BYTES);
        waiting.pop();
        assert!(Weight::of(&event, &state).is_some());
        waiting.clear();
        assert_eq!(state.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_text_is_one_line_whatever_it_holds() {
        assert_eq!(quoted("a\n\u{7f}\u{9b}\u{2028}ä"), "\"a\\n\\u007f\\u009b\\u2028ä\"");
        assert_eq!(quoted(&"ä".repeat(9_999)).len(), MAX_TEXT + 2);
    }
}
