//! A thread that relays on io_uring: its tasks, its sockets, and the way to both from other threads.
//!
//! Tasks are polled until none is ready; what they have asked of their sockets meanwhile goes to the kernel in one turn.

mod balance;
mod relays;
mod socket;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use policy::config::Server;
use policy::config::file::Io;
use ring::{Bell, Freed, Ring, Sockets, Token, Wait};
use tokio::sync::oneshot;
use tracing::error;

pub(crate) use relays::Relays;
use relays::Running;
pub(crate) use ring::Unavailable;
pub(crate) use socket::{Coming, Socket};

/// How many tasks are polled before the sockets are looked at again.
const MOST_POLLS: usize = 256;

/// How many threads are to relay: `threads`, or one for each core.
pub(crate) fn threads(server: &Server) -> usize {
    match *server.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads as usize,
    }
}

/// Whether they are to be on io_uring, if there is one to be had.
pub(crate) fn is_wanted(server: &Server) -> bool {
    *server.io != Io::Epoll
}

/// What another thread asks for.
enum Letter {
    Spawn(Running),
    Wake(Arc<Turn>),
    Close(Token, Box<[u8]>),
    Free(Token, oneshot::Sender<io::Result<Freed>>),
    Stop,
}

/// The way to a thread that relays, from any other.
#[derive(Clone)]
struct Relay(Arc<Door>);

struct Door {
    /// `None` when the thread has ended: nobody reads any more.
    letters: Mutex<Option<Vec<Letter>>>,
    /// There are some.
    has_letters: AtomicBool,
    /// The thread waits in its ring, and must be rung out of it.
    sleeps: AtomicBool,
    bell: Bell,
    /// From 1.
    number: u16,
    /// The thread's number in the system, for whoever looks how busy it is.
    thread: i32,
    census: Census,
}

/// How many sessions a thread has, and which of them are to go to another.
#[derive(Default)]
struct Census {
    /// All, those included that are on their way.
    sessions: AtomicUsize,
    /// Since when the active ones are counted, which is also how each knows whether it has been.
    round: AtomicU32,
    active: AtomicUsize,
    /// So many of those that are idle next go.
    leaving: AtomicUsize,
    /// Where they go.
    to: Mutex<Weak<Door>>,
}

/// A task's place among those that are ready.
struct Turn {
    door: Arc<Door>,
    task: usize,
    is_ready: AtomicBool,
}

struct Task {
    future: Running,
    turn: Arc<Turn>,
    waker: Waker,
}

struct Here {
    door: Arc<Door>,
    sockets: Sockets<Ring>,
}

/// What a thread that relays has for its tasks; each part is lent by itself, as one wakes another.
struct Thread {
    /// The address of its door, to compare; 0 if it has none.
    door: Cell<usize>,
    home: Cell<u16>,
    ready: RefCell<VecDeque<Arc<Turn>>>,
    here: RefCell<Option<Here>>,
    /// Where the task whose turn it is goes.
    departs: Cell<Option<Relay>>,
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            door: Cell::new(0),
            home: Cell::new(0),
            ready: RefCell::new(VecDeque::new()),
            here: RefCell::new(None),
            departs: Cell::new(None),
        }
    };
}

fn is_here(door: &Arc<Door>) -> bool {
    THREAD.try_with(|thread| thread.door.get()) == Ok(Arc::as_ptr(door).addr())
}

/// Whether a session that does nothing now may be asked to go to another thread. It is counted, once in a round, among those that have
/// been active.
pub(crate) fn may_leave(round: &mut u32) -> bool {
    THREAD.with(|thread| {
        let here = thread.here.borrow();
        let Some(Here { door, .. }) = &*here else { return false };
        let now = door.census.round.load(Ordering::Relaxed);
        if *round != now {
            *round = now;
            door.census.active.fetch_add(1, Ordering::Relaxed);
        }
        door.census.leaving.load(Ordering::Relaxed) > 0
    })
}

/// Has the task whose turn it is go on at another thread, when it has said that it waits; false if it is not asked to any more.
pub(crate) fn leave() -> bool {
    THREAD.with(|thread| {
        let here = thread.here.borrow();
        let to = here.as_ref().and_then(|here| here.door.census.take_leave());
        let leaves = to.is_some();
        thread.departs.set(to.map(Relay));
        leaves
    })
}

/// The number of this thread, if it has a ring; else 0.
pub(crate) fn home() -> u16 {
    THREAD.try_with(|thread| thread.home.get()).unwrap_or(0)
}

/// Does something with the sockets of this thread, if they are those behind this door.
fn with<R>(door: &Arc<Door>, work: impl FnOnce(&mut Sockets<Ring>) -> R) -> Option<R> {
    if !is_here(door) {
        return None;
    }
    let here =
        |thread: &Thread| thread.here.try_borrow_mut().ok()?.as_mut().map(|here| work(&mut here.sockets));
    THREAD.try_with(here).ok().flatten()
}

impl Census {
    fn take_leave(&self) -> Option<Arc<Door>> {
        let one_less = |left: usize| left.checked_sub(1);
        self.leaving.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok()?;
        self.to.lock().upgrade()
    }
}

impl Thread {
    fn push(&self, turn: Arc<Turn>) {
        self.ready.borrow_mut().push_back(turn);
    }

    fn pop(&self) -> Option<Arc<Turn>> {
        self.ready.borrow_mut().pop_front()
    }
}

impl Door {
    fn post(&self, letter: Letter) {
        match &mut *self.letters.lock() {
            Some(letters) => letters.push(letter),
            None => return,
        }
        self.has_letters.store(true, Ordering::SeqCst);
        if self.sleeps.swap(false, Ordering::SeqCst) {
            self.bell.ring();
        }
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_ready.swap(true, Ordering::AcqRel) {
            return;
        }
        if !is_here(&self.door) || THREAD.try_with(|thread| thread.push(self.clone())).is_err() {
            self.door.post(Letter::Wake(self.clone()));
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Relay")
    }
}

impl Relay {
    /// Starts a thread with a ring of its own.
    ///
    /// # Errors
    /// There is none to be had here, or no thread.
    fn start(number: u16) -> Result<(Self, JoinHandle<()>), Unavailable> {
        let (sender, started) = mpsc::channel();
        let work = move || {
            let ring = match Ring::new() {
                Ok(ring) => ring,
                Err(unavailable) => return drop(sender.send(Err(unavailable))),
            };
            let door = Arc::new(Door {
                letters: Mutex::new(Some(Vec::new())),
                has_letters: AtomicBool::new(false),
                sleeps: AtomicBool::new(false),
                bell: ring.bell(),
                number,
                thread: rustix::thread::gettid().as_raw_nonzero().get(),
                census: Census::default(),
            });
            let _ = sender.send(Ok(Self(door.clone())));
            drop(sender);
            if catch_unwind(AssertUnwindSafe(|| run(&door, ring))).is_err() {
                given_up("it has panicked");
            }
        };
        let thread = std::thread::Builder::new()
            .name("relay".into())
            .spawn(work)
            .map_err(|error| Unavailable::because(format!("no thread for it: {error}")))?;
        let relay = started.recv().map_err(|_| Unavailable::because("its thread has ended".into()))??;
        Ok((relay, thread))
    }

    fn spawn(&self, future: Running) {
        self.0.census.sessions.fetch_add(1, Ordering::Relaxed);
        self.0.post(Letter::Spawn(future));
    }

    fn stop(&self) {
        self.0.post(Letter::Stop);
    }
}

/// The tasks of this thread, by their places.
#[derive(Default)]
struct Tasks {
    all: Vec<Option<Task>>,
    free: Vec<usize>,
}

impl Tasks {
    fn add(&mut self, door: &Arc<Door>, future: Running) {
        let task = self.free.pop().unwrap_or_else(|| {
            ::ring::grow(&mut self.all);
            self.all.push(None);
            self.all.len() - 1
        });
        let turn = Arc::new(Turn { door: door.clone(), task, is_ready: AtomicBool::new(false) });
        turn.wake_by_ref();
        self.all[task] = Some(Task { future, waker: turn.clone().into(), turn });
    }

    /// Polls a task whose turn it is. One that panics is over, as it is on tokio.
    fn poll(&mut self, turn: &Arc<Turn>) {
        // Not a mere store: what is read behind it must not be older (`Turn::wake_by_ref` swaps, too).
        turn.is_ready.swap(false, Ordering::AcqRel);
        let Some(place) = self.all.get_mut(turn.task) else { return };
        let Some(task) = place.as_mut().filter(|task| Arc::ptr_eq(&task.turn, turn)) else { return };
        let mut cx = Context::from_waker(&task.waker);
        let polled = catch_unwind(AssertUnwindSafe(|| task.future.as_mut().poll(&mut cx)));
        let departs = THREAD.with(|thread| thread.departs.take());
        if matches!(polled, Ok(Poll::Pending)) && departs.is_none() {
            return;
        }
        let over = place.take();
        self.free.push(turn.task);
        turn.door.census.sessions.fetch_sub(1, Ordering::Relaxed);
        match (polled, departs, over) {
            (Ok(Poll::Pending), Some(to), Some(task)) => to.spawn(task.future),
            (_, _, over) => {
                if catch_unwind(AssertUnwindSafe(|| drop(over))).is_err() {
                    error!("a task has panicked at its end");
                }
            }
        }
    }
}

fn run(door: &Arc<Door>, ring: Ring) {
    THREAD.with(|thread| {
        thread.door.set(Arc::as_ptr(door).addr());
        thread.home.set(door.number);
        thread.here.replace(Some(Here { door: door.clone(), sockets: Sockets::new(ring) }));
    });
    let mut tasks = Tasks::default();
    while read_letters(door, &mut tasks) {
        for _ in 0..MOST_POLLS {
            let Some(turn) = THREAD.with(Thread::pop) else { break };
            tasks.poll(&turn);
        }
        if let Err(error) = turn(door) {
            given_up(&error.to_string());
        }
    }
    // Whoever waits for an answer has none.
    let left = door.letters.lock().take();
    drop(left);
    drop(tasks);
    THREAD.with(|thread| {
        thread.ready.take();
        drop(thread.here.take());
        thread.door.set(0);
    });
}

/// Nothing on this thread would ever go on, and no client be served: whoever has started the process starts another.
#[expect(clippy::disallowed_methods, reason = "nobody can be served any more")]
fn given_up(why: &str) -> ! {
    // The log may not be written to its end.
    eprintln!("the thread that relays on io_uring has failed: {why}");
    std::process::exit(1)
}

/// True if the thread is to go on.
fn read_letters(door: &Arc<Door>, tasks: &mut Tasks) -> bool {
    if !door.has_letters.swap(false, Ordering::SeqCst) {
        return true;
    }
    let letters = door.letters.lock().as_mut().map(std::mem::take).unwrap_or_default();
    for letter in letters {
        match letter {
            Letter::Spawn(future) => tasks.add(door, future),
            Letter::Wake(turn) => THREAD.with(|thread| thread.push(turn)),
            Letter::Close(token, last) => drop(with(door, |sockets| sockets.close(token, &last))),
            Letter::Free(token, answer) => drop(with(door, |sockets| {
                sockets.leave(token, |freed| drop(answer.send(freed)));
            })),
            Letter::Stop => return false,
        }
    }
    true
}

fn turn(door: &Arc<Door>) -> io::Result<()> {
    let mut wait = Wait::No;
    if THREAD.with(|thread| thread.ready.borrow().is_empty()) {
        door.sleeps.store(true, Ordering::SeqCst);
        if !door.has_letters.load(Ordering::SeqCst) {
            wait = Wait::ForOne;
        }
    }
    let done = with(door, |sockets| sockets.turn(wait));
    door.sleeps.store(false, Ordering::SeqCst);
    done.unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into())).map(drop)
}
