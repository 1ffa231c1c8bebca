//! A thread that relays on io_uring: its tasks, its sockets, and the way to both from other threads.
//!
//! Tasks are polled until none is ready; what they have asked of their sockets meanwhile goes to the kernel in one turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use policy::config::Server;
use policy::config::file::Io;
pub(crate) use ring::Freed;
use ring::{Bell, Ending, Notice, Ring, Sockets, Token, Wait};
use tokio::io::ReadBuf;
use tokio::sync::oneshot;
use tracing::error;

pub(crate) use ring::Unavailable;

/// How many tasks are polled before the sockets are looked at again.
const MOST_POLLS: usize = 256;

/// With up to so many threads to relay, one on io_uring does more than all of them on epoll.
const IS_WORTH: usize = 2;

/// How many threads are to relay: `threads`, or one for each core.
pub(crate) fn threads(server: &Server) -> usize {
    match *server.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads as usize,
    }
}

/// Whether one of them is to be on io_uring, if there is one to be had.
pub(crate) fn is_wanted(server: &Server) -> bool {
    match *server.io {
        Io::Epoll => false,
        Io::Auto => threads(server) <= IS_WORTH,
        Io::IoUring => true,
    }
}

/// What another thread asks for.
enum Letter {
    Spawn(Pin<Box<dyn Future<Output = ()> + Send>>),
    Wake(Arc<Turn>),
    Close(Token, Box<[u8]>),
    Free(Token, oneshot::Sender<io::Result<Freed>>),
    Stop,
}

/// The way to a thread that relays, from any other.
#[derive(Clone)]
pub struct Relay(Arc<Door>);

struct Door {
    /// `None` when the thread has ended: nobody reads any more.
    letters: Mutex<Option<Vec<Letter>>>,
    /// There are some.
    has_letters: AtomicBool,
    /// The thread waits in its ring, and must be rung out of it.
    sleeps: AtomicBool,
    bell: Bell,
}

/// A task's place among those that are ready.
struct Turn {
    door: Arc<Door>,
    task: usize,
    is_ready: AtomicBool,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
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
    ready: RefCell<VecDeque<Arc<Turn>>>,
    here: RefCell<Option<Here>>,
}

thread_local! {
    static THREAD: Thread = const {
        Thread { door: Cell::new(0), ready: RefCell::new(VecDeque::new()), here: RefCell::new(None) }
    };
}

fn is_here(door: &Arc<Door>) -> bool {
    THREAD.try_with(|thread| thread.door.get()) == Ok(Arc::as_ptr(door).addr())
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
    pub fn start() -> Result<(Self, JoinHandle<()>), Unavailable> {
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

    /// Has the thread run this to its end.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.0.post(Letter::Spawn(Box::pin(future)));
    }

    /// Ends the thread, with all that it runs.
    pub fn stop(&self) {
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
    fn add(&mut self, door: &Arc<Door>, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let task = self.free.pop().unwrap_or_else(|| {
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
        if !matches!(polled, Ok(Poll::Pending)) {
            let over = place.take();
            self.free.push(turn.task);
            if catch_unwind(AssertUnwindSafe(|| drop(over))).is_err() {
                error!("a task has panicked at its end");
            }
        }
    }
}

fn run(door: &Arc<Door>, ring: Ring) {
    THREAD.with(|thread| {
        thread.door.set(Arc::as_ptr(door).addr());
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
    drop(door.letters.lock().take());
    drop(tasks);
    THREAD.with(|thread| {
        thread.ready.take();
        drop(thread.here.take());
        thread.door.set(0);
    });
}

/// Nothing on this thread would ever go on, and no client be served: whoever has started the process starts another.
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

/// A socket of such a thread. Elsewhere it can only be closed, or asked to be freed.
pub struct Socket {
    door: Arc<Door>,
    token: Token,
    notice: Arc<Notice>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Socket {
    /// Whether this thread has a ring for sockets.
    pub(crate) fn can_be_here() -> bool {
        THREAD.with(|thread| thread.door.get()) != 0
    }

    /// Takes a socket, which must not block, to this thread's ring.
    ///
    /// # Errors
    /// The thread has none.
    pub(crate) fn enter(descriptor: OwnedFd) -> io::Result<Self> {
        THREAD.with(|thread| {
            let mut here = thread.here.borrow_mut();
            let here = here.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let (token, notice) = here.sockets.add(descriptor);
            Ok(Self { door: here.door.clone(), token, notice })
        })
    }

    /// Whether it is of this thread's ring.
    pub(crate) fn is_here(&self) -> bool {
        is_here(&self.door)
    }

    /// Takes it off its ring, from whatever thread.
    ///
    /// # Errors
    /// Its thread has ended.
    pub(crate) async fn free(self) -> io::Result<Freed> {
        let (sender, freed) = oneshot::channel();
        self.door.post(Letter::Free(self.token, sender));
        // That it is dropped means nothing any more: its place is free, or another's.
        freed.await.map_err(|_| io::ErrorKind::NotConnected)?
    }

    /// As of [`crate::stream::Stream::is_quiet`].
    pub(crate) fn is_quiet(&self) -> bool {
        self.notice.is_quiet()
    }

    /// Has it known when something comes though nobody reads.
    pub(crate) fn watch(&self) {
        let _ = with(&self.door, |sockets| sockets.receive(self.token));
    }

    /// As of [`crate::stream::Stream::end`].
    pub(crate) fn end(&self, cx: &Context<'_>) -> Option<Ending> {
        with(&self.door, |sockets| sockets.end(self.token, cx)).flatten()
    }

    /// Whether the other side does not take what was sent; then the task is woken when it has.
    pub(crate) fn is_full(&self, cx: &Context<'_>) -> bool {
        with(&self.door, |sockets| sockets.is_full(self.token, cx)).unwrap_or(false)
    }

    /// Whether something that was written is not sent; then the task is woken when it is.
    pub(crate) fn is_unsent(&self, cx: &Context<'_>) -> bool {
        with(&self.door, |sockets| sockets.is_unsent(self.token, cx)).unwrap_or(false)
    }

    /// Whether nothing can be sent any more.
    pub(crate) fn is_broken(&self) -> bool {
        with(&self.door, |sockets| sockets.is_broken(self.token)).unwrap_or(false)
    }

    /// Sends these bytes, if there is room for them, and closes it.
    pub(crate) fn close(&self, last: &[u8]) {
        if with(&self.door, |sockets| sockets.close(self.token, last)).is_none() {
            self.door.post(Letter::Close(self.token, last.into()));
        }
    }

    #[inline(never)]
    pub(crate) fn poll_read(&self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let into = buf.initialize_unfilled();
        let read = with(&self.door, |sockets| sockets.poll_read(self.token, into, cx));
        match read.unwrap_or_else(elsewhere) {
            Poll::Ready(Ok(length)) => {
                buf.advance(length);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    #[inline(never)]
    pub(crate) fn poll_write(&self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        with(&self.door, |sockets| sockets.poll_write(self.token, bytes, cx)).unwrap_or_else(elsewhere)
    }

    pub(crate) fn poll_shutdown(&self) -> Poll<io::Result<()>> {
        let _ = with(&self.door, |sockets| sockets.finish(self.token));
        Poll::Ready(Ok(()))
    }
}

fn elsewhere<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.close(&[]);
    }
}
