//! Sockets over a fake kernel, which does what it is asked in any order and in any portions; and over the real one.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::kernel::Ring;
use crate::lent::Operation;

/// What a fake was asked to do and has not done.
enum Asked {
    Receive(u64),
    Send(u64, Vec<u8>, usize),
}

/// The other side of a fake's socket.
#[derive(Default)]
struct Peer {
    /// It has sent this, and we have not received it.
    sent: VecDeque<u8>,
    /// It has received this.
    received: Vec<u8>,
    /// How much more it takes.
    room: usize,
    has_ended: bool,
}

/// A kernel that does something of what it was asked in each turn, as `choices` say.
#[derive(Default)]
struct Fake {
    asked: Vec<(Operation, Asked)>,
    next: u32,
    done: VecDeque<Done>,
    /// By token.
    peers: HashMap<u64, Peer>,
    buffers: HashMap<u16, Vec<u8>>,
    free: Vec<u16>,
    choices: VecDeque<u8>,
    /// What it has lent, in all.
    lent: usize,
}

impl Fake {
    fn new(buffers: u16, choices: Vec<u8>) -> Self {
        Self { free: (0..buffers).collect(), choices: choices.into(), ..Self::default() }
    }

    fn ask(&mut self, asked: Asked) -> Operation {
        self.next += 1;
        self.asked.push((Operation(self.next), asked));
        Operation(self.next)
    }

    fn choice(&mut self, below: usize) -> usize {
        self.choices.pop_front().map_or(0, usize::from) % below.max(1)
    }

    /// Does it as far as that is possible; gives it back if it is not.
    fn perform(&mut self, asked: Asked) -> Option<Asked> {
        match asked {
            Asked::Receive(token) => {
                let peer = self.peers.entry(token).or_default();
                let length = peer.sent.len().min(BUFFER);
                if length == 0 && !peer.has_ended {
                    return Some(Asked::Receive(token));
                }
                if length == 0 {
                    self.done.push_back(Done::Received(token, Ok(None)));
                    return None;
                }
                let Some(buffer) = self.free.pop() else {
                    let error = io::Error::from_raw_os_error(Errno::NOBUFS.raw_os_error());
                    self.done.push_back(Done::Received(token, Err(error)));
                    return None;
                };
                self.buffers.insert(buffer, peer.sent.drain(..length).collect());
                self.lent += 1;
                self.done.push_back(Done::Received(
                    token,
                    Ok(Some(Lent { buffer, length: u32::try_from(length).unwrap() })),
                ));
            }
            Asked::Send(token, bytes, from) => {
                let peer = self.peers.entry(token).or_default();
                let length = (bytes.len() - from).min(peer.room);
                if length == 0 && from < bytes.len() {
                    return Some(Asked::Send(token, bytes, from));
                }
                peer.room -= length;
                peer.received.extend_from_slice(&bytes[from..from + length]);
                self.done.push_back(Done::Sent(token, Ok(length), bytes));
            }
        }
        None
    }
}

impl Kernel for Fake {
    fn receive(&mut self, _: &Rc<OwnedFd>, token: u64) -> Operation {
        self.ask(Asked::Receive(token))
    }

    fn receive_now(&mut self, _: &Rc<OwnedFd>, token: u64, into: &mut [u8]) -> io::Result<usize> {
        let peer = self.peers.entry(token).or_default();
        let length = into.len().min(peer.sent.len());
        if length == 0 && !peer.has_ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        into[..length].iter_mut().for_each(|byte| *byte = peer.sent.pop_front().unwrap());
        Ok(length)
    }

    fn send(&mut self, _: &Rc<OwnedFd>, token: u64, bytes: Vec<u8>, from: usize) -> Operation {
        self.ask(Asked::Send(token, bytes, from))
    }

    fn cancel(&mut self, operation: Operation) {
        let Some(at) = self.asked.iter().position(|(asked, _)| *asked == operation) else { return };
        let error = io::Error::from_raw_os_error(Errno::CANCELED.raw_os_error());
        self.done.push_back(match self.asked.remove(at).1 {
            Asked::Receive(token) => Done::Received(token, Err(error)),
            Asked::Send(token, bytes, _) => Done::Sent(token, Err(error), bytes),
        });
    }

    fn turn(&mut self, _: Wait) -> io::Result<()> {
        for _ in 0..=self.choice(4) {
            if self.asked.is_empty() {
                break;
            }
            let at = self.choice(self.asked.len());
            let (operation, asked) = self.asked.remove(at);
            if let Some(asked) = self.perform(asked) {
                self.asked.push((operation, asked));
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn bytes(&self, lent: &Lent) -> &[u8] {
        &self.buffers[&lent.buffer]
    }

    fn give_back(&mut self, lent: Lent) {
        assert!(self.buffers.remove(&lent.buffer).is_some(), "given back twice");
        self.free.push(lent.buffer);
        self.lent -= 1;
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn descriptor() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[derive(Debug, Clone)]
enum Step {
    /// The peer of a socket sends so much, or takes so much more, or ends.
    PeerSends(usize, usize),
    PeerTakes(usize, usize),
    PeerEnds(usize),
    Read(usize, usize),
    Write(usize, usize),
    Turn,
    Move(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let socket = 0..3_usize;
    prop_oneof![
        (socket.clone(), 1..9000_usize).prop_map(|(s, n)| Step::PeerSends(s, n)),
        (socket.clone(), 1..9000_usize).prop_map(|(s, n)| Step::PeerTakes(s, n)),
        socket.clone().prop_map(Step::PeerEnds),
        (socket.clone(), 1..9000_usize).prop_map(|(s, n)| Step::Read(s, n)),
        (socket, 1..9000_usize).prop_map(|(s, n)| Step::Write(s, n)),
        Just(Step::Turn),
        Just(Step::Turn),
        (0..3_usize).prop_map(Step::Move),
    ]
}

/// A socket that goes elsewhere and comes back, if nothing is to be sent: with what was received, and with its other side.
fn moved(sockets: &mut Sockets<Fake>, token: Token) -> Token {
    if sockets.is_unsent(token, &noop()) {
        return token;
    }
    let freed = Rc::new(std::cell::RefCell::new(None));
    let answer = freed.clone();
    sockets.leave(token, move |freed| *answer.borrow_mut() = freed.ok());
    for _ in 0..2000 {
        let Some(Freed { descriptor, unread, is_lost, .. }) = freed.take() else {
            drop(sockets.turn(Wait::No));
            continue;
        };
        assert!(!is_lost);
        let peer = sockets.kernel.peers.remove(&token.packed());
        let (token, notice) = sockets.add(descriptor, unread);
        assert!(notice.is_quiet() || matches!(sockets.get(token).unwrap().inbox, Inbox::Kept(..)));
        sockets.kernel.peers.extend(peer.map(|peer| (token.packed(), peer)));
        return token;
    }
    panic!("it never comes");
}

proptest! {
    /// Whatever the kernel does when, and wherever a socket goes: each byte comes once, in order, to whom it was sent; and no buffer is lost.
    #[test]
    fn bytes_come_once_in_order_and_to_their_own_socket(
        steps in proptest::collection::vec(step(), 1..200),
        choices in proptest::collection::vec(any::<u8>(), 0..400),
        buffers in 1..4_u16,
    ) {
        let mut sockets = Sockets::new(Fake::new(buffers, choices));
        let tokens: [_; 3] = std::array::from_fn(|_| std::cell::Cell::new(sockets.add(descriptor(), Vec::new()).0));
        // What each was sent, has read, and has written; each byte tells its socket and its place.
        let byte = |socket: usize, at: usize| u8::try_from((at * 3 + socket) % 251).unwrap();
        let mut sent = [0_usize; 3];
        let mut read = [0_usize; 3];
        let mut written = [0_usize; 3];
        let mut ended = [false; 3];
        let mut space = vec![0; 9000];
        let drive = |sockets: &mut Sockets<Fake>, step: Step, space: &mut Vec<u8>, all: (&mut [usize; 3], &mut [usize; 3], &mut [usize; 3], &mut [bool; 3])| {
            let (sent, read, written, ended) = all;
            match step {
                Step::PeerSends(s, n) if !ended[s] => {
                    let peer = sockets.kernel.peers.entry(tokens[s].get().packed()).or_default();
                    peer.sent.extend((sent[s]..sent[s] + n).map(|at| byte(s, at)));
                    sent[s] += n;
                }
                Step::PeerTakes(s, n) => sockets.kernel.peers.entry(tokens[s].get().packed()).or_default().room += n,
                Step::PeerEnds(s) => {
                    ended[s] = true;
                    sockets.kernel.peers.entry(tokens[s].get().packed()).or_default().has_ended = true;
                }
                Step::Read(s, n) => match sockets.poll_read(tokens[s].get(), &mut space[..n], &noop()) {
                    Poll::Ready(Ok(0)) => assert!(ended[s] && read[s] == sent[s], "an end before the end"),
                    Poll::Ready(Ok(length)) => {
                        for got in &space[..length] {
                            assert_eq!(*got, byte(s, read[s]));
                            read[s] += 1;
                        }
                    }
                    Poll::Ready(Err(error)) => panic!("{error}"),
                    Poll::Pending => {}
                },
                Step::Write(s, n) => {
                    let bytes: Vec<u8> = (written[s]..written[s] + n).map(|at| byte(s, at)).collect();
                    if let Poll::Ready(Ok(length)) = sockets.poll_write(tokens[s].get(), &bytes, &noop()) {
                        written[s] += length;
                    }
                }
                Step::Turn => drop(sockets.turn(Wait::No)),
                Step::Move(s) => tokens[s].set(moved(sockets, tokens[s].get())),
                Step::PeerSends(..) => {}
            }
        };
        for step in steps {
            drive(&mut sockets, step, &mut space, (&mut sent, &mut read, &mut written, &mut ended));
        }
        // In the end all of it is there.
        for _ in 0..2000 {
            for s in 0..3 {
                drive(&mut sockets, Step::PeerTakes(s, 9000), &mut space, (&mut sent, &mut read, &mut written, &mut ended));
                drive(&mut sockets, Step::Read(s, 9000), &mut space, (&mut sent, &mut read, &mut written, &mut ended));
            }
            drive(&mut sockets, Step::Turn, &mut space, (&mut sent, &mut read, &mut written, &mut ended));
        }
        for s in 0..3 {
            prop_assert_eq!(read[s], sent[s]);
            let received = &sockets.kernel.peers[&tokens[s].get().packed()].received;
            prop_assert!(received.iter().enumerate().all(|(at, got)| *got == byte(s, at)));
            prop_assert_eq!(received.len(), written[s]);
        }
        prop_assert_eq!(sockets.kernel.lent, 0, "a buffer was not given back");
    }
}

/// Nobody is received from who is not read: what has come is kept, and the kernel's buffers go round.
#[test]
fn who_is_not_read_keeps_no_buffer_from_the_others() {
    let mut sockets = Sockets::new(Fake::new(1, vec![3; 100]));
    let (slow, _) = sockets.add(descriptor(), Vec::new());
    let (other, _) = sockets.add(descriptor(), Vec::new());
    for token in [slow, other] {
        let peer = sockets.kernel.peers.entry(token.packed()).or_default();
        peer.sent.extend([7; 100_000]);
    }
    let mut space = [0; 1000];
    // It asks once, and reads no more.
    assert!(sockets.poll_read(slow, &mut space, &noop()).is_pending());
    let mut read = 0;
    for _ in 0..1000 {
        if let Poll::Ready(Ok(length)) = sockets.poll_read(other, &mut space, &noop()) {
            read += length;
        }
        sockets.turn(Wait::No).unwrap();
    }
    assert_eq!(read, 100_000);
    assert_eq!(sockets.kernel.peers[&slow.packed()].sent.len(), 100_000 - BUFFER, "one buffer's worth");
}

/// What comes for a socket that is gone is nobody's, also when another has its place.
#[test]
fn what_is_done_for_a_socket_that_is_gone_touches_nobody_else() {
    let mut sockets = Sockets::new(Fake::new(2, Vec::new()));
    let (gone, _) = sockets.add(descriptor(), Vec::new());
    let mut space = [0; 10];
    assert!(sockets.poll_read(gone, &mut space, &noop()).is_pending());
    // The kernel has the bytes already when it is asked to cancel that.
    let late = Lent { buffer: 0, length: 4 };
    sockets.kernel.buffers.insert(0, b"late".to_vec());
    sockets.kernel.free.retain(|buffer| *buffer != 0);
    sockets.kernel.lent = 1;
    sockets.kernel.asked.clear();
    sockets.close(gone, b"");
    assert_eq!(sockets.len(), 1, "something is under way on it");
    sockets.kernel.done.push_back(Done::Received(gone.packed(), Ok(Some(late))));
    sockets.turn(Wait::No).unwrap();
    assert_eq!((sockets.len(), sockets.kernel.lent), (0, 0));
    let (next, notice) = sockets.add(descriptor(), Vec::new());
    assert_eq!(next.slot, gone.slot);
    let lent = Lent { buffer: 1, length: 4 };
    sockets.kernel.buffers.insert(1, b"late".to_vec());
    sockets.kernel.lent = 1;
    sockets.kernel.done.push_back(Done::Received(gone.packed(), Ok(Some(lent))));
    sockets.kernel.done.push_back(Done::Sent(gone.packed(), Ok(3), vec![1, 2, 3]));
    sockets.turn(Wait::No).unwrap();
    assert!(notice.is_quiet() && sockets.kernel.lent == 0);
    assert!(sockets.poll_read(next, &mut space, &noop()).is_pending());
    assert!(matches!(sockets.poll_read(gone, &mut space, &noop()), Poll::Ready(Err(_))));
    assert!(matches!(sockets.poll_write(gone, b"x", &noop()), Poll::Ready(Err(_))));
}

/// One that takes nothing is closed without what it did not take, and one that goes elsewhere does not wait for it.
#[test]
fn a_socket_that_takes_nothing_is_closed_all_the_same() {
    for leaves in [false, true] {
        let mut sockets = Sockets::new(Fake::new(1, Vec::new()));
        let (token, _) = sockets.add(descriptor(), Vec::new());
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let cx = Context::from_waker(&waker);
        assert!(sockets.poll_write(token, b"much", &cx).is_ready());
        assert!(!sockets.is_full(token, &cx) && sockets.is_unsent(token, &cx));
        sockets.turn(Wait::No).unwrap();
        assert!(sockets.is_full(token, &cx) && sockets.poll_write(token, b"more", &cx).is_pending());
        if leaves {
            let freed = Rc::new(std::cell::Cell::new(None));
            let answer = freed.clone();
            sockets.leave(token, move |freed| answer.set(Some(freed.is_ok_and(|freed| freed.is_whole()))));
            (0..3).for_each(|_| drop(sockets.turn(Wait::No)));
            assert_eq!(freed.take(), Some(false), "what was to be sent is lost");
        } else {
            sockets.close(token, b"");
            (0..3).for_each(|_| drop(sockets.turn(Wait::No)));
        }
        assert!(sockets.is_empty());
        assert!(!sockets.is_full(token, &noop()));
    }
}

#[test]
fn what_was_received_and_not_read_goes_with_a_socket_that_leaves() {
    let mut sockets = Sockets::new(Fake::new(1, Vec::new()));
    let (token, notice) = sockets.add(descriptor(), Vec::new());
    sockets.kernel.peers.entry(token.packed()).or_default().sent.extend(b"unread");
    sockets.receive(token);
    sockets.turn(Wait::No).unwrap();
    assert!(!notice.is_quiet());
    let freed = Rc::new(std::cell::RefCell::new(Vec::new()));
    let answer = freed.clone();
    sockets.leave(token, move |freed| *answer.borrow_mut() = freed.unwrap().unread);
    assert_eq!(*freed.borrow(), b"unread");
    assert!(sockets.is_empty() && sockets.kernel.lent == 0);
}

// ── the real kernel ──

fn pair(sockets: &mut Sockets<Ring>) -> (Token, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    (sockets.add(near.into(), Vec::new()).0, far)
}

/// A machine without io_uring has nothing to test here, and says so.
fn ring() -> Option<Sockets<Ring>> {
    match Ring::new() {
        Ok(ring) => Some(Sockets::new(ring)),
        Err(unavailable) => {
            println!("no io_uring here: {unavailable}");
            None
        }
    }
}

fn turns<R>(sockets: &mut Sockets<Ring>, mut until: impl FnMut(&mut Sockets<Ring>) -> Option<R>) -> R {
    for _ in 0..2000 {
        if let Some(done) = until(sockets) {
            return done;
        }
        sockets.turn(Wait::AtMost(Duration::from_millis(5))).unwrap();
    }
    panic!("it does not come");
}

#[test]
fn a_real_socket_is_read_and_written_also_in_bulk() {
    let Some(mut sockets) = ring() else { return };
    let (token, mut far) = pair(&mut sockets);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[1] ^ at.to_le_bytes()[0]).collect();
    let expected = sent.clone();
    let peer = std::thread::spawn(move || {
        let mut received = vec![0; expected.len()];
        far.read_exact(&mut received).unwrap();
        assert!(received == expected, "what comes is not what was written");
        far.write_all(&received).unwrap();
    });
    let mut written = 0;
    turns(&mut sockets, |sockets| {
        while let Poll::Ready(Ok(length)) = sockets.poll_write(token, &sent[written..], &noop()) {
            written += length;
            if written == sent.len() {
                return Some(());
            }
        }
        None
    });
    let mut read = Vec::new();
    let mut space = vec![0; 64 << 10];
    turns(&mut sockets, |sockets| {
        while let Poll::Ready(length) = sockets.poll_read(token, &mut space, &noop()) {
            match length.unwrap() {
                0 => return Some(()),
                length => read.extend_from_slice(&space[..length]),
            }
        }
        None
    });
    peer.join().unwrap();
    assert!(read == sent, "what was read is not what was sent back");
}

/// What it has said before it left is read, though nothing can be sent to it any more.
#[test]
fn the_last_words_of_a_peer_that_is_gone_are_read() {
    let Some(mut sockets) = ring() else { return };
    let (token, mut far) = pair(&mut sockets);
    far.write_all(b"goodbye").unwrap();
    drop(far);
    assert!(sockets.poll_write(token, b"anybody?", &noop()).is_ready());
    turns(&mut sockets, |sockets| {
        sockets.poll_write(token, b"x", &noop()).map(|sent| sent.is_err()).is_ready().then_some(())
    });
    let mut space = [0; 64];
    let length = turns(&mut sockets, |sockets| match sockets.poll_read(token, &mut space, &noop()) {
        Poll::Ready(read) => Some(read.unwrap()),
        Poll::Pending => None,
    });
    assert_eq!(&space[..length], b"goodbye");
    let end = turns(&mut sockets, |sockets| match sockets.poll_read(token, &mut space, &noop()) {
        Poll::Ready(read) => Some(read.unwrap_or(0)),
        Poll::Pending => None,
    });
    assert_eq!(end, 0);
}

/// A ring that goes while much is under way takes its memory back first: under a sanitizer this would tell.
#[test]
fn a_ring_that_goes_waits_for_what_is_under_way() {
    for _ in 0..50 {
        let Some(mut sockets) = ring() else { return };
        let peers: Vec<_> = (0..20).map(|_| pair(&mut sockets)).collect();
        for (token, _) in &peers {
            let _ = sockets.poll_write(*token, &vec![1; 256 << 10], &noop());
            sockets.receive(*token);
        }
        sockets.turn(Wait::No).unwrap();
        let writers: Vec<_> = peers
            .into_iter()
            .map(|(_, mut far)| std::thread::spawn(move || far.write_all(&[2; 5000])))
            .collect();
        drop(sockets);
        writers.into_iter().for_each(|writer| drop(writer.join()));
    }
}

#[test]
fn a_bell_wakes_a_thread_that_waits_and_more_is_asked_than_the_queue_holds() {
    let Some(mut sockets) = ring() else { return };
    let bell = sockets.kernel().bell();
    std::thread::spawn(move || {
        #[expect(clippy::disallowed_methods, reason = "a test, on a thread of its own")]
        std::thread::sleep(Duration::from_millis(20));
        bell.ring();
    });
    assert!(sockets.turn(Wait::ForOne).unwrap().rung);
    // Four times the entries of the queue.
    let mut peers: Vec<_> = (0..1000).map(|_| pair(&mut sockets)).collect();
    peers.iter().for_each(|(token, _)| sockets.receive(*token));
    sockets.turn(Wait::No).unwrap();
    peers.iter_mut().for_each(|(_, far)| far.write_all(b"hello").unwrap());
    let mut space = [0; 8];
    let mut heard = 0;
    turns(&mut sockets, |sockets| {
        for (token, _) in &peers {
            heard +=
                usize::from(matches!(sockets.poll_read(*token, &mut space, &noop()), Poll::Ready(Ok(5))));
        }
        (heard == peers.len()).then_some(())
    });
}
