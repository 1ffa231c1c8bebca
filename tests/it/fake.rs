//! A scripted upstream, and a relay that breaks what passes through it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use socket2::SockRef;

use super::house::{PATIENCE, Pgusher, Random, eventually};
use super::wire::{Message, Raw, message, startup};

const SSL_REQUEST: u32 = 80_877_103;
const CANCEL_REQUEST: u32 = 80_877_102;

/// What every fake gives out as its process ID and secret.
pub(crate) const FAKE_KEY: [u8; 8] = [0x00, 0x5e, 0xc0, 0xde, 0xca, 0xfe, 0xba, 0xbe];

/// Accepts on a port of its own, and does the same with each connection on a thread of its own, until dropped.
struct Acceptor {
    port: u16,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<Weak<TcpStream>>>>,
}

impl Acceptor {
    fn start(serve: impl Fn(usize, Arc<TcpStream>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = Self { port, stop: Arc::default(), open: Arc::default() };
        let (stop, open, serve) = (acceptor.stop.clone(), acceptor.open.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let _ = stream.set_nodelay(true);
                let stream = Arc::new(stream);
                open.lock().unwrap().push(Arc::downgrade(&stream));
                let serve = serve.clone();
                std::thread::spawn(move || serve(number, stream));
            }
        });
        acceptor
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        for stream in self.open.lock().unwrap().drain(..).filter_map(|weak| weak.upgrade()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// An upstream that follows a script.
pub(crate) struct Fake {
    acceptor: Acceptor,
    /// Connections that were no login.
    others: Arc<AtomicUsize>,
}

impl Fake {
    /// Every connection that is no cancel is shown to the script, its startup packet already read.
    pub(crate) fn start(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        let others = Arc::new(AtomicUsize::new(0));
        let count = others.clone();
        let acceptor = Acceptor::start(move |number, stream| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut peer = Peer { stream, number, database: String::new() };
            if peer.begin() {
                script(&mut peer);
            } else {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { acceptor, others }
    }

    /// The same, before anything was read.
    pub(crate) fn start_raw(script: impl Fn(&TcpStream) + Send + Sync + 'static) -> Self {
        Self { acceptor: Acceptor::start(move |_, stream| script(&stream)), others: Arc::default() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.acceptor.port
    }

    /// How many cancel requests have come, and others who did not log in.
    pub(crate) fn others(&self) -> usize {
        self.others.load(Ordering::SeqCst)
    }

    /// A configuration with one base connection for each name, all of them to this fake.
    pub(crate) fn config(&self, server: &str, names: &[String], connection: &str) -> String {
        let bases: Vec<_> = names.iter().map(|name| (name.clone(), self.port())).collect();
        config(server, &bases, connection)
    }
}

/// A configuration of base connections (name, which is the database's too, and port) in which `raw` is trusted.
pub(crate) fn config(server: &str, bases: &[(String, u16)], connection: &str) -> String {
    let mut text = format!(
        "[server]\nlisten = [\"127.0.0.1:@PORT@\"]\nthreads = 2\nlog_level = \"debug\"\n{server}\n\n\
         [users.raw]\nauth_type = \"trust\"\n"
    );
    for (name, port) in bases {
        text += &format!(
            "\n[connections.{name}]\nhost = \"127.0.0.1\"\nport = {port}\nusername = \"app\"\n\
             password = \"secret\"\n{connection}\n"
        );
    }
    text
}

/// `raw`, logged in to this database.
pub(crate) fn login(pgusher: &Pgusher, database: &str) -> Raw {
    Raw::login_with(pgusher.address(), 0x0003_0000, &[("user", "raw"), ("database", database)])
}

/// The error that this login is refused with.
pub(crate) fn refused(pgusher: &Pgusher, user: &str, database: &str) -> Message {
    let mut raw = Raw::connect(pgusher.address());
    raw.send(&startup(0x0003_0000, &[("user", user), ("database", database)]));
    let error = raw.next().unwrap_or_else(|| panic!("closed without a word: {database}"));
    assert_eq!(error.tag, 'E', "{database}: {error:?}");
    assert!(raw.next().is_none(), "{database}: something behind a fatal error");
    error
}

/// The process lives, and nothing in it has panicked.
pub(crate) fn unharmed(pgusher: &Pgusher) {
    assert!(std::path::Path::new(&format!("/proc/{}/fd/0", pgusher.child.id())).exists(), "pgusher is gone");
    let log = pgusher.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// pgusher, as a fake sees it.
pub(crate) struct Peer {
    pub stream: Arc<TcpStream>,
    /// Which connection of the fake this is, from 0.
    pub number: usize,
    /// What it asked for.
    pub database: String,
}

impl Peer {
    /// Reads the startup packet; TLS is declined. False for a cancel request.
    fn begin(&mut self) -> bool {
        loop {
            let mut length = [0; 4];
            if (&*self.stream).read_exact(&mut length).is_err() {
                return false;
            }
            let mut packet = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
            if (&*self.stream).read_exact(&mut packet).is_err() {
                return false;
            }
            match u32::from_be_bytes(packet[..4].try_into().unwrap()) {
                SSL_REQUEST => self.send(b"N"),
                CANCEL_REQUEST => return false,
                _ => {
                    let words: Vec<_> = packet[4..].split(|b| *b == 0).collect();
                    let database = words.chunks(2).find(|pair| pair[0] == b"database").unwrap()[1];
                    self.database = String::from_utf8(database.to_vec()).unwrap();
                    return true;
                }
            }
        }
    }

    /// The other side may have left: then it does not matter.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = (&*self.stream).write_all(bytes);
    }

    pub(crate) fn next(&mut self) -> Option<Message> {
        let mut header = [0; 5];
        (&*self.stream).read_exact(&mut header).ok()?;
        let mut body = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4];
        (&*self.stream).read_exact(&mut body).ok()?;
        Some(Message { tag: header[0] as char, body })
    }

    /// `AuthenticationOk` to `ReadyForQuery`.
    pub(crate) fn welcome(&mut self) {
        let mut bytes = message('R', &[0; 4]);
        for (name, value) in [
            ("server_version", "15.0"),
            ("client_encoding", "UTF8"),
            ("standard_conforming_strings", "on"),
            ("TimeZone", "UTC"),
            ("application_name", ""),
        ] {
            bytes.extend(message('S', format!("{name}\0{value}\0").as_bytes()));
        }
        bytes.extend(message('K', &FAKE_KEY));
        bytes.extend(ready());
        self.send(&bytes);
    }

    /// Answers queries until the other side leaves: with what `special` gives, else with one row that holds the
    /// number of this connection.
    pub(crate) fn serve(&mut self, special: impl Fn(&str) -> Option<Vec<u8>>) {
        while let Some(message) = self.next() {
            let answer = match message.tag {
                'X' => return,
                'Q' => {
                    let sql = String::from_utf8_lossy(&message.body).trim_end_matches('\0').to_owned();
                    let usual = || match sql.contains("pg_proc") {
                        true => [complete("SELECT 0"), ready()].concat(),
                        false => {
                            let answer = seeded(&sql).unwrap_or_else(|| row(&self.number.to_string()));
                            [answer, ready()].concat()
                        }
                    };
                    if sql.starts_with("RESET ALL") {
                        [complete("RESET"), ready()].concat()
                    } else {
                        special(&sql).unwrap_or_else(usual)
                    }
                }
                'S' => ready(),
                _ => continue,
            };
            self.send(&answer);
        }
    }
}

/// Lets in whoever has sent a startup packet, and answers their queries.
pub(crate) fn let_in(stream: &TcpStream) {
    let stream = Arc::new(stream.try_clone().unwrap());
    let mut peer = Peer { stream, number: 0, database: String::new() };
    peer.welcome();
    peer.serve(|_| None);
}

pub(crate) fn ready() -> Vec<u8> {
    message('Z', b"I")
}

pub(crate) fn complete(tag: &str) -> Vec<u8> {
    message('C', format!("{tag}\0").as_bytes())
}

/// `RowDescription` of one text column.
pub(crate) fn description() -> Vec<u8> {
    message('T', b"\0\x01c\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0")
}

pub(crate) fn data(value: &str) -> Vec<u8> {
    let mut body = vec![0, 1];
    body.extend((value.len() as u32).to_be_bytes());
    body.extend(value.as_bytes());
    message('D', &body)
}

/// One row, whole.
pub(crate) fn row(value: &str) -> Vec<u8> {
    [description(), data(value), complete("SELECT 1")].concat()
}

/// What a server answers that can be reset: the process that has logged in, and nothing left of a setting.
pub(crate) fn probed() -> Vec<u8> {
    let pid = u32::from_be_bytes(FAKE_KEY[..4].try_into().unwrap()).to_string();
    let mut body = vec![0, 2];
    body.extend((pid.len() as u32).to_be_bytes());
    body.extend(pid.as_bytes());
    body.extend(0_u32.to_be_bytes());
    [message('D', &body), complete("SELECT 1")].concat()
}

/// What the second statement of a reset is answered with, which asks for a new seed and a word of its own.
pub(crate) fn seeded(sql: &str) -> Option<Vec<u8>> {
    let word = sql.contains("setseed").then(|| sql.rsplit('\'').nth(1))??;
    let mut body = vec![0, 2, 0, 0, 0, 0];
    body.extend((word.len() as u32).to_be_bytes());
    body.extend(word.as_bytes());
    Some([message('D', &body), complete("SELECT 1")].concat())
}

/// An `ErrorResponse` of these fields.
pub(crate) fn error(fields: &[(char, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (code, value) in fields {
        body.push(*code as u8);
        body.extend(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    message('E', &body)
}

/// How a relay ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Fin,
    Rst,
    /// It stays, and whatever is sent into it is lost.
    Dark,
}

/// What is done to bytes on their way.
#[derive(Default)]
struct Faults {
    /// The longest piece that is passed on at once; 0 is as it comes.
    pieces: AtomicUsize,
    /// How many bytes of answers still pass before the connection is cut; negative is no limit.
    answers: AtomicI64,
    how: Mutex<Option<Cut>>,
    /// A cancel request is held up by a random time up to this, in milliseconds.
    cancels: AtomicUsize,
}

/// A TCP relay to one port.
pub(crate) struct Relay {
    acceptor: Acceptor,
    faults: Arc<Faults>,
    links: Arc<Mutex<Vec<Weak<Link>>>>,
}

/// One relayed connection.
struct Link {
    number: usize,
    near: Arc<TcpStream>,
    far: TcpStream,
    reset: AtomicBool,
    dark: AtomicBool,
}

impl Relay {
    pub(crate) fn to(port: u16) -> Self {
        let faults = Arc::new(Faults { answers: AtomicI64::new(-1), ..Faults::default() });
        let links = Arc::new(Mutex::new(Vec::new()));
        let (shared, known) = (faults.clone(), links.clone());
        let acceptor = Acceptor::start(move |number, near| {
            let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
            far.set_nodelay(true).unwrap();
            let link = Arc::new(Link {
                number,
                near,
                far,
                reset: AtomicBool::new(false),
                dark: AtomicBool::new(false),
            });
            known.lock().unwrap().push(Arc::downgrade(&link));
            let (there, faults) = (link.clone(), shared.clone());
            std::thread::spawn(move || there.requests(&faults));
            link.answers(&shared);
        });
        Self { acceptor, faults, links }
    }

    pub(crate) fn port(&self) -> u16 {
        self.acceptor.port
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port()).into()
    }

    /// Nothing longer than this is passed on at once, either way.
    pub(crate) fn split(&self, pieces: usize) {
        self.faults.pieces.store(pieces, Ordering::SeqCst);
    }

    /// Each cancel request is held up by a random time up to this.
    pub(crate) fn delay_cancels(&self, most: Duration) {
        self.faults.cancels.store(most.as_millis() as usize, Ordering::SeqCst);
    }

    /// After so many more bytes of answers, the connection ends.
    pub(crate) fn cut_after(&self, bytes: usize, how: Cut) {
        *self.faults.how.lock().unwrap() = Some(how);
        self.faults.answers.store(bytes as i64, Ordering::SeqCst);
    }

    /// No cut any more.
    pub(crate) fn mend(&self) {
        self.faults.answers.store(-1, Ordering::SeqCst);
    }

    /// Ends every connection there is; answers how many those were.
    pub(crate) fn cut_now(&self, how: Cut) -> usize {
        let links: Vec<_> = self.links.lock().unwrap().drain(..).filter_map(|link| link.upgrade()).collect();
        links.iter().for_each(|link| link.end(how));
        if how == Cut::Dark {
            return links.len();
        }
        let left: Vec<_> = links.iter().map(Arc::downgrade).collect();
        drop(links);
        eventually("the relay lets go", || left.iter().all(|link| link.strong_count() == 0));
        left.len()
    }
}

impl Link {
    fn requests(&self, faults: &Faults) {
        let mut space = [0; 16 << 10];
        let mut is_first = true;
        while let Ok(read @ 1..) = (&*self.near).read(&mut space) {
            let most = faults.cancels.load(Ordering::SeqCst);
            if std::mem::take(&mut is_first) && most > 0 && space[4..8] == CANCEL_REQUEST.to_be_bytes() {
                let milliseconds = Random(0xca4c_e100 + self.number as u64).below(most);
                std::thread::sleep(Duration::from_millis(milliseconds as u64));
            }
            if !self.dark.load(Ordering::SeqCst) && pass(&self.far, &space[..read], faults).is_err() {
                break;
            }
        }
        self.end(Cut::Fin);
    }

    fn answers(&self, faults: &Faults) {
        let mut space = [0; 16 << 10];
        while let Ok(read @ 1..) = (&self.far).read(&mut space) {
            if self.dark.load(Ordering::SeqCst) {
                continue;
            }
            let budget = faults.answers.load(Ordering::SeqCst);
            let cut = budget >= 0 && read as i64 >= budget;
            let passed = if cut { budget as usize } else { read };
            if budget >= 0 {
                faults.answers.fetch_sub(passed as i64, Ordering::SeqCst);
            }
            if pass(&self.near, &space[..passed], faults).is_err() {
                break;
            }
            if cut {
                let how = faults.how.lock().unwrap().unwrap_or(Cut::Fin);
                self.end(how);
                if how != Cut::Dark {
                    return;
                }
            }
        }
        self.end(Cut::Fin);
    }

    fn end(&self, how: Cut) {
        if how == Cut::Dark {
            return self.dark.store(true, Ordering::SeqCst);
        }
        if how == Cut::Fin && !self.reset.load(Ordering::SeqCst) {
            let _ = self.near.shutdown(Shutdown::Both);
            let _ = self.far.shutdown(Shutdown::Both);
            return;
        }
        // A RST goes out when the last handle is closed: both threads are woken without a FIN, and let go of it.
        self.reset.store(true, Ordering::SeqCst);
        for stream in [&*self.near, &self.far] {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

fn pass(mut to: &TcpStream, bytes: &[u8], faults: &Faults) -> std::io::Result<()> {
    match faults.pieces.load(Ordering::SeqCst) {
        0 => to.write_all(bytes),
        pieces => bytes.chunks(pieces).try_for_each(|piece| to.write_all(piece)),
    }
}
