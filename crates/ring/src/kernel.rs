//! The kernel's side: queues, and buffers that are the kernel's until it gives them back.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};

use crate::lent::{Done, Kernel, Lent, Operation, Wait, grow};

/// How many operations may be asked for before the kernel takes them; more are taken in several goes.
const ENTRIES: u32 = 256;
/// How many answers may wait. What does not fit the kernel keeps (`IORING_FEAT_NODROP`).
const COMPLETIONS: u32 = 4096;
/// The buffers that are lent: so many, of so many bytes. Both are powers of two, and the number fits in 15 bits.
const BUFFERS: u16 = 256;
/// How long a buffer is that is lent.
pub const BUFFER: usize = BUFFER_LENGTH as usize;
const BUFFER_LENGTH: u32 = 4096;
/// Their group.
const GROUP: u16 = 0;
/// The kernel's own answers to cancels have this number, which no operation has.
const NOBODYS: u64 = u64::MAX;
/// How often, and for how long each time, the end waits for operations under way.
const LAST_TURNS: u32 = 100;
const LAST_TURN: Duration = Duration::from_millis(10);

/// Why there is no io_uring here.
#[derive(Debug)]
pub struct Unavailable(String);

impl Unavailable {
    /// For this reason.
    pub fn because(reason: String) -> Self {
        Self(reason)
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Something for a thread that waits in its ring: rung from any other.
#[derive(Debug, Clone)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// The thread's next turn, or the one at hand, ends with [`Done::Woken`].
    pub fn ring(&self) {
        // Nobody reads it; it cannot fail before it was rung 2^64 times.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// What the kernel is doing for us. The memory that it reads or writes is here, and stays until it says that it is done.
#[derive(Debug)]
enum InKernel {
    Receiving(u64),
    Sending(u64, Vec<u8>),
    Listening,
}

#[derive(Debug)]
struct UnderWay {
    doing: InKernel,
    /// Open for as long as the kernel may use it.
    _socket: Option<Rc<OwnedFd>>,
}

/// Buffers that the kernel chooses from (`IORING_REGISTER_PBUF_RING`), and their ring.
struct Buffers {
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
}

impl Buffers {
    const RING: Layout = Pages::<[BufRingEntry; BUFFERS as usize]>::LAYOUT;
    const MEMORY: Layout = Pages::<[[u8; BUFFER]; BUFFERS as usize]>::LAYOUT;

    fn new() -> Self {
        let ring = zeroed(Self::RING).cast();
        let memory = zeroed(Self::MEMORY);
        let mut buffers = Self { ring, memory, tail: 0 };
        (0..BUFFERS).for_each(|buffer| buffers.add(buffer));
        buffers.publish();
        buffers
    }

    /// Gives a buffer to the kernel, which sees it when it is published.
    fn add(&mut self, buffer: u16) {
        let at = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `at` is below the number of entries of the ring.
        let entry = unsafe { self.ring.add(at) };
        // SAFETY: within the memory, as `buffer` is below their number: it comes from `new`, or from the kernel, which was told those.
        let memory = unsafe { self.memory.add(usize::from(buffer) * BUFFER) };
        // SAFETY: the entry is initialised (zeroed), and ours: the kernel reads none at or behind the tail that was published.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(memory.as_ptr() as u64);
        entry.set_len(BUFFER_LENGTH);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: it is the address of the first entry, which is initialised.
        let tail = unsafe { BufRingEntry::tail(self.ring.as_ptr()) };
        // SAFETY: valid and aligned, and all of it is accessed as an atomic: by us here, by the kernel with an acquiring load.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    fn bytes(&self, buffer: u16, length: usize) -> &[u8] {
        let (buffer, length) = (usize::from(buffer.min(BUFFERS - 1)), length.min(BUFFER));
        // SAFETY: within the memory.
        let memory = unsafe { self.memory.add(buffer * BUFFER) };
        // SAFETY: initialised (zeroed, and then by the kernel), and lent: the kernel has not got it again before `add`, which takes
        // `&mut self`.
        unsafe { slice::from_raw_parts(memory.as_ptr(), length) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: from `zeroed` with the same layout; the kernel has been told that they are gone ([`Ring`]'s drop).
        unsafe { dealloc(self.ring.as_ptr().cast(), Self::RING) };
        // SAFETY: likewise.
        unsafe { dealloc(self.memory.as_ptr(), Self::MEMORY) };
    }
}

/// Something that begins with a page, as the kernel maps it.
#[repr(C, align(4096))]
struct Pages<T>(T);

impl<T> Pages<T> {
    const LAYOUT: Layout = Layout::new::<Self>();
}

fn zeroed(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here is of size 0.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

/// A ring of this thread's.
pub struct Ring {
    queues: ManuallyDrop<IoUring>,
    buffers: ManuallyDrop<Buffers>,
    /// By their number, which is what the kernel is given.
    under_way: ManuallyDrop<Vec<Option<UnderWay>>>,
    free: Vec<u32>,
    /// Free with the next turn: until then somebody may take them for what they were.
    ended: Vec<u32>,
    /// What the kernel's queue has no room for.
    waiting: VecDeque<squeue::Entry>,
    /// Answers that were taken from the kernel's other queue.
    done: VecDeque<Done>,
    bell: Bell,
    listens: bool,
    /// Buffers have come back of which the kernel does not know.
    unpublished: bool,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("under_way", &self.under_way.len()).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for this thread, which must be the only one that uses it.
    ///
    /// # Errors
    /// This kernel, or what it allows this process, does not do.
    pub fn new() -> Result<Self, Unavailable> {
        let queues = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .dontfork()
            .build(ENTRIES)
            .map_err(|error| Unavailable(why(&error)))?;
        if !queues.params().is_feature_nodrop() || !queues.params().is_feature_ext_arg() {
            return Err(Unavailable("this kernel is too old for it".into()));
        }
        let mut probe = Probe::new();
        let probed = queues.submitter().register_probe(&mut probe);
        let needed =
            [opcode::Recv::CODE, opcode::Send::CODE, opcode::PollAdd::CODE, opcode::AsyncCancel::CODE];
        if let Err(error) = probed {
            return Err(Unavailable(why(&error)));
        }
        if let Some(code) = needed.into_iter().find(|code| !probe.is_supported(*code)) {
            return Err(Unavailable(format!("this kernel does not know its operation {code}")));
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Unavailable(format!("no descriptor to wake the thread: {error}")))?;
        let buffers = Buffers::new();
        let ring = buffers.ring.as_ptr() as u64;
        // SAFETY: the memory is ours, of this size, aligned to pages, and stays until it is unregistered.
        unsafe { queues.submitter().register_buf_ring_with_flags(ring, BUFFERS, GROUP, 0) }
            .map_err(|error| Unavailable(format!("no buffers can be lent to the kernel: {}", why(&error))))?;
        Ok(Self {
            queues: ManuallyDrop::new(queues),
            buffers: ManuallyDrop::new(buffers),
            under_way: ManuallyDrop::default(),
            free: Vec::new(),
            ended: Vec::new(),
            waiting: VecDeque::new(),
            done: VecDeque::new(),
            bell: Bell(Arc::new(bell)),
            listens: false,
            unpublished: false,
        })
    }

    /// What other threads wake this one with.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// How many operations are under way.
    pub fn busy(&self) -> usize {
        self.under_way.len() - self.free.len() - self.ended.len()
    }

    fn begin(&mut self, doing: InKernel, socket: Option<&Rc<OwnedFd>>) -> u32 {
        let under_way = Some(UnderWay { doing, _socket: socket.cloned() });
        match self.free.pop() {
            Some(number) => {
                self.under_way[number as usize] = under_way;
                number
            }
            None => {
                grow(&mut self.under_way);
                self.under_way.push(under_way);
                u32::try_from(self.under_way.len() - 1).unwrap_or(u32::MAX)
            }
        }
    }

    /// Puts an operation in the kernel's queue, or in ours if that is full.
    fn push(&mut self, entry: squeue::Entry) {
        if !self.waiting.is_empty() || !self.fits(&entry) {
            self.waiting.push_back(entry);
        }
    }

    fn fits(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points to is in `under_way` under its number, or in no memory of ours at all, and stays there until
        // its answer has come; its descriptor likewise.
        unsafe { self.queues.submission().push(entry) }.is_ok()
    }

    /// Takes what the kernel has said; answers how much.
    fn collect(&mut self) -> usize {
        let before = self.done.len();
        for answer in self.queues.completion() {
            let Ok(number) = u32::try_from(answer.user_data()) else { continue };
            let Some(place) = self.under_way.get_mut(number as usize) else { continue };
            let goes_on = cqueue::more(answer.flags());
            if goes_on && matches!(place, Some(UnderWay { doing: InKernel::Listening, .. })) {
                self.done.push_back(Done::Woken);
                continue;
            }
            let Some(UnderWay { doing, .. }) = place.take() else { continue };
            self.ended.push(number);
            self.listens &= !matches!(doing, InKernel::Listening);
            if answer.result() <= 0
                && let Some(unused) = cqueue::buffer_select(answer.flags())
            {
                self.buffers.add(unused);
                self.unpublished = true;
            }
            self.done.push_back(done(doing, &answer));
        }
        self.done.len() - before
    }

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        let entered = match wait {
            Wait::ForOne => self.queues.submit_and_wait(1),
            Wait::No => self.queues.submit_and_wait(0),
            Wait::AtMost(time) => {
                let time = Timespec::from(time);
                self.queues.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match entered {
            Ok(_) => Ok(()),
            // A signal, the end of the time, or more than fits for now (EBUSY, EAGAIN): another turn comes.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::WouldBlock
                        | io::ErrorKind::ResourceBusy
                ) || error.raw_os_error() == Some(rustix::io::Errno::TIME.raw_os_error()) =>
            {
                Ok(())
            }
            // There is none for now. Nothing was begun.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "all that this thread does needs the memory that there is none of"
                )]
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl Kernel for Ring {
    fn receive(&mut self, socket: &Rc<OwnedFd>, token: u64) -> Operation {
        let number = self.begin(InKernel::Receiving(token), Some(socket));
        let entry = opcode::Recv::new(Fd(socket.as_raw_fd()), std::ptr::null_mut(), 0)
            .buf_group(GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT)
            .user_data(number.into());
        self.push(entry);
        Operation(number)
    }

    fn receive_now(&mut self, socket: &Rc<OwnedFd>, _: u64, into: &mut [u8]) -> io::Result<usize> {
        let (_, length) = rustix::net::recv(socket, into, rustix::net::RecvFlags::DONTWAIT)?;
        Ok(length)
    }

    fn send(&mut self, socket: &Rc<OwnedFd>, token: u64, bytes: Vec<u8>, from: usize) -> Operation {
        let from = from.min(bytes.len());
        let length = u32::try_from(bytes.len() - from).unwrap_or(u32::MAX);
        // What a vector holds stays where it is when the vector is moved.
        let start = bytes[from..].as_ptr();
        let number = self.begin(InKernel::Sending(token, bytes), Some(socket));
        let flags = rustix::net::SendFlags::NOSIGNAL.bits().cast_signed() | MSG_WAITALL;
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), start, length)
            .flags(flags)
            .build()
            .user_data(number.into());
        self.push(entry);
        Operation(number)
    }

    fn cancel(&mut self, operation: Operation) {
        let entry = opcode::AsyncCancel::new(operation.0.into()).build().user_data(NOBODYS);
        self.push(entry);
    }

    fn turn(&mut self, wait: Wait) -> io::Result<()> {
        self.free.append(&mut self.ended);
        if !self.listens {
            self.listens = true;
            let number = self.begin(InKernel::Listening, None);
            // Of an eventfd: POLLIN, told at every write, so that it need not be read.
            let bell = opcode::PollAdd::new(Fd(self.bell.0.as_raw_fd()), 1).multi(true);
            let entry = bell.build().user_data(number.into());
            self.push(entry);
        }
        if std::mem::take(&mut self.unpublished) {
            self.buffers.publish();
        }
        while !self.waiting.is_empty() {
            self.enter(Wait::No)?;
            self.collect();
            while let Some(entry) = self.waiting.pop_front() {
                if !self.fits(&entry) {
                    self.waiting.push_front(entry);
                    break;
                }
            }
        }
        let wait = if self.done.is_empty() { wait } else { Wait::No };
        self.enter(wait)?;
        // With IORING_SETUP_DEFER_TASKRUN one call brings some 20 answers: under load it is asked for more.
        while self.collect() >= 16 {
            self.enter(Wait::No)?;
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn bytes(&self, lent: &Lent) -> &[u8] {
        self.buffers.bytes(lent.buffer, lent.len())
    }

    fn give_back(&mut self, lent: Lent) {
        if lent.buffer < BUFFERS {
            self.buffers.add(lent.buffer);
            self.unpublished = true;
        }
    }
}

/// `MSG_WAITALL`: a send goes on until all of it is taken (io_uring_enter(2), `IORING_OP_SEND`).
const MSG_WAITALL: i32 = 0x100;

fn done(doing: InKernel, answer: &cqueue::Entry) -> Done {
    let result = match answer.result() {
        code @ ..0 => Err(io::Error::from_raw_os_error(-code)),
        length => Ok(usize::try_from(length).unwrap_or(0)),
    };
    match doing {
        InKernel::Listening => Done::Woken,
        InKernel::Sending(token, bytes) => Done::Sent(token, result, bytes),
        InKernel::Receiving(token) => {
            let lent = |length| {
                let length = u32::try_from(length).unwrap_or(BUFFER_LENGTH);
                cqueue::buffer_select(answer.flags()).map(|buffer| Lent { buffer, length })
            };
            Done::Received(token, result.map(|length| if length > 0 { lent(length) } else { None }))
        }
    }
}

/// What a kernel's refusal means, and what to do.
fn why(error: &io::Error) -> String {
    let advice = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
            " (forbidden: by kernel.io_uring_disabled, or by the container's seccomp profile)"
        }
        Some(rustix::io::Errno::NOSYS) => " (this kernel has none, or seccomp hides it)",
        Some(rustix::io::Errno::INVAL) => " (this kernel is older than 6.1)",
        Some(rustix::io::Errno::NOMEM) => " (no memory, or the limit of locked memory is too low: ulimit -l)",
        _ => "",
    };
    format!("{error}{advice}")
}

impl Drop for Ring {
    /// The kernel may write to buffers after the ring is closed: all is cancelled and waited for before. If that does not end, the memory
    /// is never freed.
    fn drop(&mut self) {
        let _ = self.queues.submitter().register_sync_cancel(Some(Timespec::new()), CancelBuilder::any());
        for _ in 0..LAST_TURNS {
            if self.busy() == 0 || self.enter(Wait::AtMost(LAST_TURN)).is_err() {
                break;
            }
            self.collect();
            let _ = self.queues.submitter().register_sync_cancel(Some(Timespec::new()), CancelBuilder::any());
        }
        if self.busy() > 0 {
            return;
        }
        let _ = self.queues.submitter().unregister_buf_ring(GROUP);
        // SAFETY: dropped once, here; nothing is under way that uses it.
        unsafe { ManuallyDrop::drop(&mut self.queues) };
        // SAFETY: likewise; the kernel has been told that they are gone, and its ring is closed.
        unsafe { ManuallyDrop::drop(&mut self.buffers) };
        // SAFETY: likewise.
        unsafe { ManuallyDrop::drop(&mut self.under_way) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also what Miri looks at: every buffer has its own memory, and the entries go round.
    #[test]
    fn each_buffer_has_its_own_memory_however_often_it_is_lent() {
        let mut buffers = Buffers::new();
        let mut starts = std::collections::BTreeSet::new();
        for round in 0..3 {
            for buffer in 0..BUFFERS {
                let bytes = buffers.bytes(buffer, BUFFER);
                assert!(bytes.len() == BUFFER && bytes[BUFFER - 1] == 0);
                starts.insert(bytes.as_ptr().addr());
            }
            (0..BUFFERS).rev().for_each(|buffer| buffers.add(buffer));
            buffers.publish();
            assert_eq!(buffers.tail, BUFFERS * (round + 2));
        }
        assert_eq!(starts.len(), usize::from(BUFFERS));
        assert!(starts.iter().zip(starts.iter().skip(1)).all(|(one, next)| next - one >= BUFFER));
        // Nothing that is said wrongly reaches beyond.
        assert_eq!(buffers.bytes(u16::MAX, usize::MAX).len(), BUFFER);
    }
}
