//! Sessions over a socket pair, with an upstream that follows a script: what is relayed, and what becomes of either side when
//! the other one goes.

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::*;
use crate::login_permits::LoginLimits;
use crate::pool::{Data, Runtimes};
use crate::prepare;
use crate::proxy::Proxy;
use crate::stream::Block;

const PATIENCE: Duration = Duration::from_secs(20);
const KEY: [u8; 8] = *b"\0\0\0\x07seal";

/// What an upstream has seen, and on which of its connections.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Query(usize, String),
    Cancel,
    Gone(usize),
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    wire::message(&mut out, tag, |out| out.extend_from_slice(body));
    out
}

fn row(value: &str) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    message(b'D', &[b"\0\x01", &length[..], value.as_bytes()].concat())
}

fn description() -> Vec<u8> {
    message(b'T', b"\0\x01c\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0")
}

/// An upstream: it lets everybody in and answers with the number of the connection. `die` ends it behind a whole message, `die
/// within` in the middle of one, and `hang` never answers.
async fn upstream(listener: TcpListener, seen: mpsc::UnboundedSender<Seen>) {
    for number in 0.. {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(serve_one(number, stream, seen.clone()));
    }
}

async fn serve_one(number: usize, mut stream: TcpStream, seen: mpsc::UnboundedSender<Seen>) -> Option<()> {
    let length = stream.read_u32().await.ok()?;
    let mut packet = vec![0; length as usize - 4];
    stream.read_exact(&mut packet).await.ok()?;
    if packet.starts_with(&80_877_102_u32.to_be_bytes()) {
        assert_eq!(packet[4..], KEY, "another connection's key");
        return seen.send(Seen::Cancel).ok();
    }
    let parameters =
        [&b"server_version\x0015.0\0"[..], b"client_encoding\0UTF8\0", b"standard_conforming_strings\0on\0"];
    let mut greeting = message(b'R', &[0; 4]);
    parameters.iter().for_each(|parameter| greeting.extend(message(b'S', parameter)));
    greeting.extend([message(b'K', &KEY), message(b'Z', b"I")].concat());
    stream.write_all(&greeting).await.ok()?;
    while let Some((tag, body)) = next(&mut stream).await {
        let sql = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned();
        let answer = match sql.as_str() {
            _ if tag != b'Q' => continue,
            "select" => {
                [description(), row(&number.to_string()), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")]
                    .concat()
            }
            "die" => [description(), row("half")].concat(),
            "die within" => [description(), row("half")[..9].to_vec()].concat(),
            "hang" => Vec::new(),
            _ => [message(b'C', b"OK\0"), message(b'Z', b"I")].concat(),
        };
        stream.write_all(&answer).await.ok()?;
        if sql.starts_with("die") {
            return None;
        }
        if ["select", "hang"].contains(&sql.as_str()) {
            seen.send(Seen::Query(number, sql)).ok()?;
        }
    }
    seen.send(Seen::Gone(number)).ok()
}

/// A whole message; `None` at the end.
async fn next(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; wire::HEADER];
    stream.read_exact(&mut header).await.ok()?;
    let mut body = vec![0; wire::Header::read(&header)?.ok()?.total - wire::HEADER];
    stream.read_exact(&mut body).await.ok()?;
    Some((header[0], body))
}

/// A proxy in this process, with one connection to its upstream.
struct House {
    entrance: Arc<Entrance>,
    console: Arc<Console>,
    seen: mpsc::UnboundedReceiver<Seen>,
    folder: std::path::PathBuf,
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl House {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        #[expect(clippy::disallowed_methods, reason = "a test")]
        let (sender, seen) = mpsc::unbounded_channel();
        tokio::spawn(upstream(listener, sender));
        let folder = std::env::temp_dir().join(format!("pgusher-session-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:1\"]\ncatalog_interval = \"0s\"\n[users.raw]\nauth_type = \"trust\"\n\
             [connections.k]\nhost = \"127.0.0.1\"\nport = {port}\nusername = \"app\"\npassword = \"x\"\n\
             sslmode = \"disable\"\npool_size = 1\n"
        );
        let prepared = prepare::parse(&folder.join("pgusher.toml"), &text).unwrap();
        let (control, data) = (Handle::current(), Data::Tokio(Handle::current()));
        let runtimes = Runtimes { control, data, tasks: TaskTracker::new() };
        let proxy = Proxy::new(prepared, runtimes, Audit::default()).unwrap();
        let (entrance, console) = (Entrance::of(&proxy, None).into(), Console::of(&proxy).into());
        Self { entrance, console, seen, folder }
    }

    /// A client that has sent its startup packet.
    async fn connect(&self, database: &str) -> UnixStream {
        let (near, mut far) = UnixStream::pair().unwrap();
        let login_permit =
            self.entrance.login_permits.enter(Block::UNIX, LoginLimits { all: 9, reserved: 0 }).unwrap();
        tokio::spawn(serve(
            self.entrance.clone(),
            self.console.clone(),
            Socket::Unix(near),
            "unix".into(),
            login_permit,
        ));
        let mut packet = 0x0003_0000_u32.to_be_bytes().to_vec();
        for text in ["user", "raw", "database", database, ""] {
            wire::push_cstr(&mut packet, text);
        }
        far.write_u32(u32::try_from(packet.len() + 4).unwrap()).await.unwrap();
        far.write_all(&packet).await.unwrap();
        far
    }

    /// One that is in.
    async fn log_in(&self) -> UnixStream {
        let mut client = self.connect("k").await;
        let tags = until_ready(&mut client).await;
        assert_eq!(tags.iter().map(|(tag, _)| *tag).find(|tag| *tag == b'E'), None, "{tags:?}");
        client
    }

    async fn sees(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("the upstream sees nothing").unwrap()
    }

    /// Every session is out of all registers.
    async fn is_empty(&self) {
        let empty = async {
            while !self.entrance.sessions.list().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, empty).await.expect("a session stays");
    }
}

/// All that comes up to `ReadyForQuery`, or to the end.
async fn until_ready(client: &mut UnixStream) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    let read = async {
        while let Some(message) = next(client).await {
            let tag = message.0;
            all.push(message);
            if tag == b'Z' {
                return;
            }
        }
    };
    timeout(PATIENCE, read).await.expect("it neither answers nor ends");
    all
}

async fn ask(client: &mut UnixStream, sql: &str) {
    client.write_all(&message(b'Q', format!("{sql}\0").as_bytes())).await.unwrap();
}

/// The column of the row that answers `select`.
async fn select(client: &mut UnixStream) -> String {
    ask(client, "select").await;
    let answer = until_ready(client).await;
    assert_eq!(answer.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), b"TDCZ");
    String::from_utf8(answer[1].1[6..].to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_are_relayed_and_who_terminates_leaves_the_connection_to_the_next() {
    let mut house = House::new().await;
    let mut first = house.log_in().await;
    let connection = select(&mut first).await;
    assert_eq!(select(&mut first).await, connection);
    first.write_all(&message(b'X', b"")).await.unwrap();
    assert_eq!(until_ready(&mut first).await, [], "nothing is said to who terminates");
    house.is_empty().await;
    let mut second = house.log_in().await;
    assert_eq!(select(&mut second).await, connection, "the connection that was there");
    for _ in 0..3 {
        assert!(matches!(house.sees().await, Seen::Query(..)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_dies_within_an_answer_ends_its_session_and_no_other() {
    let house = House::new().await;
    let mut bystander = house.log_in().await;
    let mut client = house.log_in().await;
    // Between two messages there is room for an error, and within one there is none.
    ask(&mut client, "die").await;
    let answer = until_ready(&mut client).await;
    assert_eq!(answer.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), b"TDE");
    assert_eq!(wire::error_field(&answer[2].1, b'S'), Some(&b"FATAL"[..]));
    assert_eq!(wire::error_field(&answer[2].1, b'C'), Some(&b"08006"[..]));
    let mut client = house.log_in().await;
    ask(&mut client, "die within").await;
    let mut rest = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut rest)).await.expect("it stays open").unwrap();
    assert_eq!(rest, [description(), row("half")[..9].to_vec()].concat(), "an error within a message");
    select(&mut bystander).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_while_its_query_runs_is_cancelled_and_holds_up_nobody() {
    let mut house = House::new().await;
    let mut client = house.log_in().await;
    ask(&mut client, "hang").await;
    let Seen::Query(connection, _) = house.sees().await else { panic!("it was not relayed") };
    drop(client);
    assert_eq!(house.sees().await, Seen::Cancel);
    assert_eq!(house.sees().await, Seen::Gone(connection), "a connection with a query on it was kept");
    house.is_empty().await;
    let mut next = house.log_in().await;
    assert_ne!(select(&mut next).await, connection.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_within_a_message_or_between_two_leaves_nothing() {
    let house = House::new().await;
    let whole = message(b'Q', b"select\0");
    for cut in 0..whole.len() {
        let mut client = house.log_in().await;
        client.write_all(&whole[..cut]).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(until_ready(&mut client).await, [], "{cut}");
    }
    house.is_empty().await;
    select(&mut house.log_in().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_what_is_not_there_is_told_so_once() {
    let house = House::new().await;
    let mut client = house.connect("elsewhere").await;
    let answer = until_ready(&mut client).await;
    assert_eq!(answer.len(), 1, "{answer:?}");
    assert_eq!(wire::error_field(&answer[0].1, b'C'), Some(&b"3D000"[..]));
    assert_eq!(house.entrance.sessions.list().len(), 0);
}
