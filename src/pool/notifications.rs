//! One connection that listens for all sessions of a pool.
//!
//! A session's `LISTEN` runs on whatever connection it is lent. When that could go back, the channels are transferred:
//! the listener listens to them too, and then a notification on a channel of pgusher's own, the *marker*, is sent
//! through the lent connection. PostgreSQL puts all notifications of a database in one order, the same for everybody:
//! what comes before the marker was the lent connection's to deliver, what comes behind it is the listener's. So none
//! is lost, and none comes twice.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tracing::{debug, warn};

use crate::stream::Stream;
use crate::upstream::Dialer;
use relay::conductor::Answer;
use relay::{ListenRequest, Mark, Seal};
use wire::error::{Fault, Refusal, SqlState};
use wire::startup::Settings;
use wire::{HEADER, Header, identifier, unicode_identifier};

/// How many bytes of notifications may wait for one session, and for all that one connection listens for: over that, those
/// who have more than their share are ended.
const MAX_MAIL: usize = 16 << 20;
const MAX_ALL_MAIL: usize = 128 << 20;
/// What a message that waits costs beside its own bytes.
const OVERHEAD: usize = 64;
/// The longest message that an upstream sends to a connection that only listens.
const MAX_MESSAGE: usize = 64 << 10;
/// How long the connection is kept when nobody listens any more, and nobody else waits for its place at the host.
const LINGER: Duration = Duration::from_secs(30);
/// How long the upstream may take for a `LISTEN`, and a session for its marker.
const PATIENCE: Duration = Duration::from_secs(30);

/// One session's part of the listener; dropped, the session listens no more.
#[derive(Debug)]
pub struct Subscription {
    mailbox: Arc<Mailbox>,
    commands: UnboundedSender<Command>,
}

#[derive(Debug)]
pub(super) struct Mailbox {
    id: u64,
    waker: Waker,
    /// There are messages, or the end.
    pending: AtomicBool,
    mail: Mutex<Mail>,
    all: Arc<Post>,
}

/// What waits in all mailboxes of one connection that listens.
#[derive(Debug, Default)]
pub(super) struct Post {
    bytes: AtomicUsize,
    mailboxes: AtomicUsize,
}

impl Post {
    /// Whether it is too much, and one who has so much has more than his share.
    fn is_too_much_for(&self, own: usize) -> bool {
        let share = MAX_ALL_MAIL / self.mailboxes.load(Ordering::Relaxed).max(1);
        own > MAX_MAIL || self.bytes.load(Ordering::Relaxed) > MAX_ALL_MAIL && own > share
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.mail.get_mut().bytes, Ordering::Relaxed);
        self.all.mailboxes.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Mail {
    messages: Vec<Arc<[u8]>>,
    bytes: usize,
    answer: Option<Answer>,
    /// The last recall with which the listener has stopped to deliver.
    paused: u64,
    end: Option<Refusal>,
}

/// The way to a listener: what it is told, and what waits there. At most two commands of each session are on their way: it
/// asks again only when it was answered.
pub(super) type Line = (UnboundedSender<Command>, Arc<Post>);

#[derive(Debug)]
pub(super) enum Command {
    Ask(Arc<Mailbox>, ListenRequest),
    Leave(u64),
}

impl Subscription {
    /// For the session of this number; `waker` is its task's.
    pub(super) fn new(id: u64, waker: Waker, (commands, all): Line) -> Self {
        Self { mailbox: Mailbox::new(id, waker, all), commands }
    }

    /// Asks the listener to take over.
    pub fn ask(&self, asked: ListenRequest) {
        self.mailbox.mail.lock().answer = None;
        if self.commands.send(Command::Ask(self.mailbox.clone(), asked)).is_err() {
            self.mailbox.end(&lost("it has ended"));
        }
    }

    /// What it has answered, once; or why it cannot.
    pub fn answer(&self) -> Option<Result<Answer, Refusal>> {
        let mut mail = self.mailbox.mail.lock();
        match &mail.end {
            Some(end) => Some(Err(end.clone())),
            None => mail.answer.take().map(Ok),
        }
    }

    /// True if it has said which channels it delivers from now on: what it has delivered before is there.
    pub fn is_settled(&self) -> bool {
        matches!(self.mailbox.mail.lock().answer, Some(Answer::Marked(_)))
    }

    /// True if it has stopped to deliver, with this recall.
    ///
    /// # Errors
    /// It will not.
    pub fn has_paused(&self, recall: u64) -> Result<bool, Refusal> {
        let mail = self.mailbox.mail.lock();
        mail.end.as_ref().map_or(Ok(mail.paused == recall), |end| Err(end.clone()))
    }

    /// True if [`Subscription::take`] has something.
    pub fn is_pending(&self) -> bool {
        self.mailbox.pending.load(Ordering::Acquire)
    }

    /// The notifications that have come, as they came.
    ///
    /// # Errors
    /// There will be no more: others are lost.
    pub fn take(&self) -> Result<Vec<Arc<[u8]>>, Refusal> {
        let mut mail = self.mailbox.mail.lock();
        if let Some(end) = &mail.end {
            return Err(end.clone());
        }
        self.mailbox.pending.store(false, Ordering::Release);
        let bytes = std::mem::take(&mut mail.bytes);
        self.mailbox.all.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok(std::mem::take(&mut mail.messages))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Leave(self.mailbox.id));
    }
}

impl Mailbox {
    fn new(id: u64, waker: Waker, all: Arc<Post>) -> Arc<Self> {
        all.mailboxes.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { id, waker, pending: AtomicBool::new(false), mail: Mutex::default(), all })
    }

    fn answers(&self, answer: Answer) {
        self.mail.lock().answer = Some(answer);
        self.waker.wake_by_ref();
    }

    fn pauses(&self, recall: u64) {
        self.mail.lock().paused = recall;
        self.waker.wake_by_ref();
    }

    fn deliver(&self, message: &Arc<[u8]>) {
        let full = {
            let mut mail = self.mail.lock();
            if mail.end.is_some() {
                return;
            }
            mail.messages.push(message.clone());
            self.counts(&mut mail, message.len() + OVERHEAD)
        };
        if full {
            return self.end(&too_many());
        }
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.waker.wake_by_ref();
        }
    }

    /// So much more waits; true if that is too much.
    fn counts(&self, mail: &mut Mail, bytes: usize) -> bool {
        mail.bytes += bytes;
        self.all.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.all.is_too_much_for(mail.bytes)
    }

    /// So much more waits that cannot be delivered yet; true if that is too much.
    fn holds_back(&self, bytes: usize) -> bool {
        self.counts(&mut self.mail.lock(), bytes)
    }

    /// What was held back waits no more.
    fn lets_go(&self, bytes: usize) {
        let mut mail = self.mail.lock();
        // Whoever has taken all that waits has been let go of it, too.
        let bytes = bytes.min(mail.bytes);
        mail.bytes -= bytes;
        self.all.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn end(&self, refusal: &Refusal) {
        let mut mail = self.mail.lock();
        let bytes = std::mem::take(&mut mail.bytes);
        self.all.bytes.fetch_sub(bytes, Ordering::Relaxed);
        mail.messages = Vec::new();
        mail.end.get_or_insert_with(|| refusal.clone());
        drop(mail);
        self.pending.store(true, Ordering::Release);
        self.waker.wake_by_ref();
    }
}

fn lost(why: &str) -> Refusal {
    let message = "the connection that listens for this session was lost";
    Refusal::new(Fault::Upstream, SqlState::CONNECTION_FAILURE, message)
        .detail(format!("Notifications may be lost: {why}."))
}

fn too_many() -> Refusal {
    let message = "too many notifications wait for this session";
    Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message).detail(format!(
        "More than {MAX_MAIL} bytes came while it did not read them, or did not end its transaction."
    ))
}

/// Listens until nobody wants it any more, or until the connection is lost. Whether somebody waits for its place is asked of
/// `is_coveted`.
pub(super) async fn run(
    dialer: Dialer,
    mut commands: UnboundedReceiver<Command>,
    is_coveted: impl Fn() -> bool,
) {
    let mut hub = Hub::default();
    let name = dialer.connection.name.clone();
    let end = match ListeningConnection::dial(&dialer).await {
        Ok(listener) => listener.listen(&mut hub, &mut commands, is_coveted).await,
        Err(why) => Err(why),
    };
    commands.close();
    let why = match &end {
        Ok(()) => "nobody listened",
        Err(why) => why.as_str(),
    };
    if end.is_err() {
        warn!(connection = %name, why, "the connection that listens was lost");
    }
    let refusal =
        lost(why).in_environment(dialer.connection.environment.as_str(), dialer.connection.name.as_str());
    hub.members.values().for_each(|member| member.mailbox.end(&refusal));
    while let Ok(command) = commands.try_recv() {
        if let Command::Ask(mailbox, _) = command {
            mailbox.end(&refusal);
        }
    }
}

/// The socket of it.
struct ListeningConnection {
    stream: Stream,
    channel: Arc<str>,
    seal: Seal,
    /// The queries that are under way, oldest first: who is told when they are done, and since when.
    asked: VecDeque<(Vec<u64>, Instant)>,
}

impl ListeningConnection {
    async fn dial(dialer: &Dialer) -> Result<Self, String> {
        let utf8 = Settings::ours([("client_encoding", "UTF8".to_owned())]);
        let backend = dialer.dial(&utf8).await.map_err(|error| error.to_string())?;
        let number = getrandom::u64().map_err(|error| error.to_string())?;
        let channel = format!("_pgusher_{number:016x}").into();
        debug!(connection = %dialer.connection.name, pid = backend.target.pid(), "listening connection opened");
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        Ok(Self { stream: backend.stream, channel, seal: Seal::new(random), asked: VecDeque::new() })
    }

    async fn listen(
        mut self,
        hub: &mut Hub,
        commands: &mut UnboundedReceiver<Command>,
        is_coveted: impl Fn() -> bool,
    ) -> Result<(), String> {
        self.ask(&format!("LISTEN {}", identifier(&self.channel)), Vec::new()).await?;
        let mut input = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut idle_since = None;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Ask(mailbox, asked)) => {
                        let id = mailbox.id;
                        let new = hub.ask(mailbox, asked);
                        self.listen_to(&new, id, hub).await?;
                    }
                    Some(Command::Leave(id)) => hub.leave(id),
                    None => return Ok(()),
                },
                read = self.stream.read_buf(&mut input) => {
                    if read.map_err(|error| error.to_string())? == 0 {
                        return Err("the server closed it".into());
                    }
                    self.take_in(&mut input, hub)?;
                }
                _ = tick.tick() => {
                    if self.asked.front().is_some_and(|(_, since)| since.elapsed() > PATIENCE) {
                        return Err("the server does not answer".into());
                    }
                    hub.lose_patience();
                    // Whoever has asked and was not heard yet is no member yet.
                    let is_idle = hub.members.is_empty() && commands.is_empty();
                    idle_since = is_idle.then(|| idle_since.unwrap_or_else(Instant::now));
                    if idle_since.is_some_and(|since| since.elapsed() > LINGER || is_coveted()) {
                        // From now on another is opened for whoever comes.
                        commands.close();
                        let bye = self.stream.write_all(&[b'X', 0, 0, 0, 4]);
                        let _ = tokio::time::timeout(Duration::from_secs(1), bye).await;
                        return Ok(());
                    }
                }
            }
            let forsaken = hub.forsaken();
            if !forsaken.is_empty() {
                self.ask(&statements("UNLISTEN", &forsaken), Vec::new()).await?;
            }
        }
    }

    /// Listens to these, and then tells the member; at once if it does so already.
    async fn listen_to(&mut self, new: &[String], id: u64, hub: &Hub) -> Result<(), String> {
        if !new.is_empty() {
            return self.ask(&statements("LISTEN", new), vec![id]).await;
        }
        match self.asked.back_mut() {
            Some((waiting, _)) => waiting.push(id),
            None => self.tell(hub, id),
        }
        Ok(())
    }

    async fn ask(&mut self, sql: &str, waiting: Vec<u64>) -> Result<(), String> {
        let mut out = Vec::new();
        wire::query(&mut out, sql);
        self.asked.push_back((waiting, Instant::now()));
        // A server that reads nothing must not keep all the others of this database waiting.
        let written = async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(PATIENCE, written).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(_) => Err("it takes no statements".into()),
        }
    }

    fn tell(&self, hub: &Hub, id: u64) {
        if let Some(member) = hub.members.get(&id) {
            let mark = Mark { id, channel: self.channel.clone(), seal: self.seal };
            member.mailbox.answers(Answer::Listening(mark));
        }
    }

    /// Deals with the messages that are whole.
    fn take_in(&mut self, input: &mut Vec<u8>, hub: &mut Hub) -> Result<(), String> {
        let mut at = 0;
        while let Some(header) = Header::read(&input[at..]) {
            let header = header.map_err(|length| format!("a message of length {length}"))?;
            if header.total > MAX_MESSAGE {
                return Err(format!("a message of {} bytes", header.total));
            }
            let Some(message) = input.get(at..at + header.total) else { break };
            let body = &message[HEADER..];
            match header.tag {
                b'A' => self.notified(message, hub)?,
                b'Z' => {
                    let (told, _) = self.asked.pop_front().ok_or("a ReadyForQuery too many")?;
                    told.into_iter().for_each(|id| self.tell(hub, id));
                }
                b'E' => {
                    let text = wire::error_field(body, b'M').unwrap_or(b"no message");
                    return Err(String::from_utf8_lossy(text).into_owned());
                }
                _ => {}
            }
            at += header.total;
        }
        input.drain(..at);
        Ok(())
    }

    fn notified(&self, message: &[u8], hub: &mut Hub) -> Result<(), String> {
        let body = &message[HEADER..];
        let (channel, _) = wire::notification(body).ok_or("a broken NotificationResponse")?;
        if channel == self.channel.as_bytes() {
            if let Some((id, what, number)) = self.seal.read(body) {
                hub.marked(id, what, number);
            }
        } else {
            hub.deliver(channel, message);
        }
        Ok(())
    }
}

fn statements(verb: &str, channels: &[String]) -> String {
    let statement = |channel: &String| format!("{verb} {}", unicode_identifier(channel));
    channels.iter().map(statement).collect::<Vec<_>>().join(";")
}

/// Who listens to what.
#[derive(Debug, Default)]
struct Hub {
    members: HashMap<u64, Member>,
    /// Who is delivered what comes on a channel.
    audience: HashMap<String, BTreeSet<u64>>,
    /// What the connection listens to, and how many members have it or ask for it.
    listened: HashMap<String, usize>,
    /// What nobody has or asks for any more.
    forsaken: Vec<String>,
}

#[derive(Debug)]
struct Member {
    mailbox: Arc<Mailbox>,
    channels: Vec<String>,
    asked: Option<(ListenRequest, Instant)>,
    /// The last recall that was committed.
    recalled: u64,
    /// The last marker.
    settled: u64,
    /// What came since then, on channels that it may have left meanwhile.
    limbo: Option<Vec<(String, Arc<[u8]>)>>,
}

impl Hub {
    /// A member asks to take over; answers what must be listened to, and is not yet.
    fn ask(&mut self, mailbox: Arc<Mailbox>, asked: ListenRequest) -> Vec<String> {
        let is_new = |channel: &&String| !self.listened.contains_key(*channel);
        let new: Vec<String> = asked.channels.iter().filter(is_new).cloned().collect();
        asked.channels.iter().for_each(|channel| *self.listened.entry(channel.clone()).or_default() += 1);
        let id = mailbox.id;
        let member =
            || Member { mailbox, channels: Vec::new(), asked: None, recalled: 0, settled: 0, limbo: None };
        let member = self.members.entry(id).or_insert_with(member);
        if let Some((before, _)) = member.asked.replace((asked, Instant::now())) {
            self.let_go(&before.channels);
        }
        new
    }

    /// One member less has these or asks for them.
    fn let_go(&mut self, channels: &[String]) {
        for channel in channels {
            let Some(count) = self.listened.get_mut(channel) else { continue };
            *count -= 1;
            if *count == 0 {
                self.forsaken.push(channel.clone());
            }
        }
    }

    /// A marker has come, or a sign that a recall was committed.
    fn marked(&mut self, id: u64, what: u8, number: u64) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if what != Mark::MARKER {
            if number <= member.settled {
                // Somebody says again what was said before.
                return;
            }
            member.recalled = number;
            match what {
                Mark::PAUSE => {
                    member.channels.iter().for_each(|c| remove(&mut self.audience, c, id));
                    member.mailbox.pauses(number);
                }
                _ => member.limbo = Some(Vec::new()),
            }
            return;
        }
        let Some((asked, _)) = member.asked.take_if(|(asked, _)| asked.number == number) else { return };
        member.settled = number;
        // What was recalled in a transaction that was rolled back is still here.
        let is_all = asked.recall == member.recalled || member.channels.is_empty();
        let mut channels = asked.channels.clone();
        if !is_all {
            channels.extend(member.channels.iter().cloned());
            channels.sort();
            channels.dedup();
        }
        let before = std::mem::replace(&mut member.channels, channels.clone());
        before.iter().for_each(|channel| remove(&mut self.audience, channel, id));
        for channel in &channels {
            self.audience.entry(channel.clone()).or_default().insert(id);
            *self.listened.entry(channel.clone()).or_default() += 1;
        }
        for (channel, message) in member.limbo.take().unwrap_or_default() {
            member.mailbox.lets_go(held(&channel, &message));
            if self.audience.get(&channel).is_some_and(|audience| audience.contains(&id)) {
                member.mailbox.deliver(&message);
            }
        }
        member.mailbox.answers(Answer::Marked(channels));
        self.let_go(&asked.channels);
        self.let_go(&before);
    }

    fn deliver(&mut self, channel: &[u8], message: &[u8]) {
        let Ok(channel) = str::from_utf8(channel) else { return };
        let Some(audience) = self.audience.get(channel) else { return };
        let message: Arc<[u8]> = message.into();
        for id in audience {
            let Some(member) = self.members.get_mut(id) else { continue };
            match &mut member.limbo {
                Some(limbo) if member.mailbox.holds_back(held(channel, &message)) => {
                    *limbo = Vec::new();
                    member.mailbox.end(&too_many());
                }
                Some(limbo) => limbo.push((channel.to_owned(), message.clone())),
                None => member.mailbox.deliver(&message),
            }
        }
    }

    fn leave(&mut self, id: u64) {
        let Some(member) = self.members.remove(&id) else { return };
        member.channels.iter().for_each(|channel| remove(&mut self.audience, channel, id));
        self.let_go(&member.channels);
        if let Some((asked, _)) = member.asked {
            self.let_go(&asked.channels);
        }
    }

    /// What is listened to for nobody any more; it is forgotten here. Looks at nothing else: with very many channels, each
    /// session that comes or goes would cost all the others.
    fn forsaken(&mut self) -> Vec<String> {
        let mut forsaken = std::mem::take(&mut self.forsaken);
        // One may have been asked for again, or given up twice.
        let listened = &mut self.listened;
        forsaken.retain(|channel| {
            let is_forsaken = listened.get(channel) == Some(&0);
            if is_forsaken {
                listened.remove(channel);
            }
            is_forsaken
        });
        forsaken
    }

    /// Gives up on markers that never came.
    fn lose_patience(&self) {
        let late = |member: &&Member| member.asked.as_ref().is_some_and(|(_, t)| t.elapsed() > PATIENCE);
        self.members.values().filter(late).for_each(|m| m.mailbox.end(&lost("a marker did not come")));
    }
}

fn held(channel: &str, message: &[u8]) -> usize {
    channel.len() + message.len() + OVERHEAD
}

fn remove(audience: &mut HashMap<String, BTreeSet<u64>>, channel: &str, id: u64) {
    if let Some(ids) = audience.get_mut(channel) {
        ids.remove(&id);
        if ids.is_empty() {
            audience.remove(channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(id: u64) -> Arc<Mailbox> {
        Mailbox::new(id, Waker::noop().clone(), Arc::default())
    }

    fn asked(channels: &[&str], recall: u64, number: u64) -> ListenRequest {
        ListenRequest { channels: channels.iter().map(ToString::to_string).collect(), recall, number }
    }

    fn settled(mailbox: &Mailbox) -> Vec<String> {
        match mailbox.mail.lock().answer.take() {
            Some(Answer::Marked(channels)) => channels,
            other => vec![format!("{other:?}")],
        }
    }

    /// What a payload says without its seal.
    fn mark(hub: &mut Hub, words: &[u8]) {
        let (id, rest) = str::from_utf8(words).unwrap().split_once('.').unwrap();
        hub.marked(id.parse().unwrap(), rest.as_bytes()[0], rest[1..].parse().unwrap());
    }

    #[test]
    fn what_comes_behind_the_marker_is_delivered_and_nothing_before() {
        let mut hub = Hub::default();
        let (one, two) = (mailbox(1), mailbox(2));
        assert_eq!(hub.ask(one.clone(), asked(&["a", "b"], 0, 1)), ["a", "b"]);
        hub.deliver(b"a", b"early");
        assert!(one.mail.lock().messages.is_empty());
        mark(&mut hub, b"1.m1");
        assert_eq!(settled(&one), ["a", "b"]);
        assert_eq!(hub.ask(two.clone(), asked(&["a"], 0, 1)), [""; 0]);
        hub.deliver(b"a", b"news");
        mark(&mut hub, b"2.m1");
        hub.deliver(b"a", b"more");
        hub.deliver(b"c", b"other");
        let texts = |m: &Mailbox| m.mail.lock().messages.iter().map(|m| m.to_vec()).collect::<Vec<_>>();
        assert_eq!(
            (texts(&one), texts(&two)),
            (vec![b"news".to_vec(), b"more".to_vec()], vec![b"more".to_vec()])
        );
        hub.leave(1);
        assert_eq!(hub.forsaken(), ["b"]);
        hub.leave(2);
        assert_eq!(hub.forsaken(), ["a"]);
    }

    #[test]
    fn a_recall_that_was_rolled_back_leaves_what_was_there() {
        let mut hub = Hub::default();
        let one = mailbox(1);
        hub.ask(one.clone(), asked(&["a"], 0, 1));
        mark(&mut hub, b"1.m1");
        settled(&one);
        // UNLISTEN a, rolled back: the connection listens to nothing, and no recall was seen.
        hub.ask(one.clone(), asked(&[], 2, 3));
        mark(&mut hub, b"1.m3");
        assert_eq!(settled(&one), ["a"]);
        // LISTEN b, in a transaction behind one that was rolled back.
        hub.ask(one.clone(), asked(&["b"], 4, 5));
        mark(&mut hub, b"1.m5");
        assert_eq!(settled(&one), ["a", "b"]);
        // UNLISTEN a, committed: what comes behind that is not for it.
        mark(&mut hub, b"1.r6");
        hub.deliver(b"a", b"too late");
        hub.deliver(b"b", b"kept");
        hub.ask(one.clone(), asked(&["b"], 6, 7));
        mark(&mut hub, b"1.m7");
        assert_eq!(settled(&one), ["b"]);
        assert_eq!(std::mem::take(&mut one.mail.lock().messages), [Arc::from(&b"kept"[..])]);
        // A marker of an older question says nothing.
        hub.ask(one.clone(), asked(&[], 8, 9));
        mark(&mut hub, b"1.m7");
        assert_eq!(settled(&one), ["None"]);
        mark(&mut hub, b"1.m9");
        assert_eq!(settled(&one), ["b"]);
        // While the lent connection delivers, the listener does not.
        mark(&mut hub, b"1.p10");
        hub.deliver(b"b", b"twice?");
        hub.ask(one.clone(), asked(&["b"], 10, 11));
        mark(&mut hub, b"1.m11");
        hub.deliver(b"b", b"once");
        assert_eq!(settled(&one), ["b"]);
        assert_eq!(one.mail.lock().messages, [Arc::from(&b"once"[..])]);
    }

    #[test]
    fn a_session_that_does_not_read_is_ended_and_costs_bounded_memory() {
        let one = mailbox(1);
        let message: Arc<[u8]> = vec![0; 8000].into();
        for _ in 0..=MAX_MAIL / 8000 {
            one.deliver(&message);
        }
        let mail = one.mail.lock();
        assert_eq!(mail.end.as_ref().unwrap().sqlstate, SqlState::LIMIT_EXCEEDED);
        assert!(mail.messages.is_empty());
    }

    #[test]
    fn what_is_held_back_for_a_session_that_recalls_its_channels_is_bounded() {
        let mut hub = Hub::default();
        let all: Arc<Post> = Arc::default();
        let one = Mailbox::new(1, Waker::noop().clone(), all.clone());
        hub.ask(one.clone(), asked(&["a"], 0, 1));
        mark(&mut hub, b"1.m1");
        settled(&one);
        mark(&mut hub, b"1.r2");
        let message = vec![0; 8000];
        let mut most = 0;
        for _ in 0..3 * MAX_MAIL / 8000 {
            hub.deliver(b"a", &message);
            most = most.max(all.bytes.load(Ordering::Relaxed));
        }
        assert_eq!(one.mail.lock().end.as_ref().unwrap().sqlstate, SqlState::LIMIT_EXCEEDED);
        assert!(most <= MAX_MAIL + 2 * 8000, "{most}");
        let held: usize = hub.members[&1].limbo.iter().flatten().map(|(c, m)| held(c, m)).sum();
        assert!(held <= MAX_MAIL + 2 * 8000, "{held}");
        hub.leave(1);
        drop(one);
        assert_eq!((all.bytes.load(Ordering::Relaxed), all.mailboxes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn over_the_total_those_with_more_than_their_share_are_ended() {
        let all: Arc<Post> = Arc::default();
        let many: Vec<_> = (0..32).map(|id| Mailbox::new(id, Waker::noop().clone(), all.clone())).collect();
        let message: Arc<[u8]> = vec![0; 60_000].into();
        many[0].deliver(&message);
        for one in &many[1..] {
            for _ in 0..MAX_MAIL / 60_100 {
                one.deliver(&message);
            }
        }
        assert!(all.bytes.load(Ordering::Relaxed) <= MAX_ALL_MAIL + MAX_ALL_MAIL / 32 + 60_100);
        assert!(many[0].mail.lock().end.is_none(), "it has less than its share");
        assert!(many.iter().any(|one| one.mail.lock().end.is_some()));
    }

    #[test]
    fn a_channel_is_forgotten_with_the_last_who_has_it_or_asks_for_it() {
        let mut hub = Hub::default();
        let (one, two) = (mailbox(1), mailbox(2));
        hub.ask(one.clone(), asked(&["a", "b"], 0, 1));
        // It asks again before it was answered.
        hub.ask(one.clone(), asked(&["b", "c"], 0, 2));
        assert_eq!(hub.forsaken(), ["a"]);
        assert_eq!(hub.ask(two.clone(), asked(&["c"], 0, 1)), [""; 0]);
        mark(&mut hub, b"1.m2");
        assert_eq!(hub.forsaken(), [""; 0]);
        // UNLISTEN b, committed.
        mark(&mut hub, b"1.r3");
        hub.ask(one.clone(), asked(&["c"], 3, 4));
        mark(&mut hub, b"1.m4");
        assert_eq!(hub.forsaken(), ["b"]);
        hub.leave(1);
        assert_eq!(hub.forsaken(), [""; 0], "the other asks for it");
        hub.leave(2);
        assert_eq!(hub.forsaken(), ["c"]);
        assert!(hub.listened.is_empty() && hub.audience.is_empty() && hub.members.is_empty());
    }

    /// With however many channels of others, an event looks at its own alone.
    #[test]
    fn who_comes_and_goes_does_not_look_at_the_channels_of_others() {
        let mut hub = Hub::default();
        let own: Vec<String> = (0..1000).map(|i| format!("c{i}")).collect();
        for id in 0..100 {
            let channels = own.iter().map(|channel| format!("{id}{channel}")).collect();
            hub.ask(mailbox(id), ListenRequest { channels, recall: 0, number: 1 });
            assert!(hub.forsaken.is_empty());
            mark(&mut hub, format!("{id}.m1").as_bytes());
            assert!(hub.forsaken.is_empty());
        }
        hub.leave(7);
        assert_eq!(hub.forsaken.len(), own.len());
        assert_eq!((hub.forsaken().len(), hub.listened.len()), (1000, 99_000));
    }
}
