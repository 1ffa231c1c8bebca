//! Logins by a scripted client over a socket pair: what each method takes, and what it makes of everything else.

use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::handshake::{self, Opened};
use crate::login_permits::{LoginLimits, LoginPermits};
use crate::stream::Socket;

const CONFIG: &str = "
[server]
listen = [\"127.0.0.1:1\"]
auth_type = \"scram-sha-256\"
[users.scram]
password = \"pencil\"
[users.clear]
auth_type = \"password\"
password = \"pencil\"
[users.hashed]
auth_type = \"md5\"
password = \"pencil\"
[users.trusted]
auth_type = \"trust\"
[users.gone]
password = \"pencil\"
disabled = true
[connections.k]
host = \"127.0.0.1\"
port = 1
username = \"app\"
password = \"x\"
";

/// A client that says what a test says.
struct Client(UnixStream);

impl Client {
    async fn say(&mut self, tag: u8, body: &[u8]) {
        let mut out = Vec::new();
        wire::message(&mut out, tag, |out| out.extend_from_slice(body));
        self.0.write_all(&out).await.unwrap();
    }

    /// The code of the authentication that is asked for, and its data; `None` at the end.
    async fn asked(&mut self) -> Option<(u32, Vec<u8>)> {
        let mut header = [0; wire::HEADER];
        self.0.read_exact(&mut header).await.ok()?;
        assert_eq!(header[0], b'R', "an authentication message");
        let mut body = vec![0; wire::Header::read(&header)?.ok()?.total - wire::HEADER];
        self.0.read_exact(&mut body).await.ok()?;
        let data = body.split_off(4);
        Some((u32::from_be_bytes(body.try_into().unwrap()), data))
    }

    /// The password, as the method that is asked for wants it.
    async fn give(&mut self, user: &str, password: &str) {
        match self.asked().await {
            Some((3, _)) => self.say(b'p', format!("{password}\0").as_bytes()).await,
            Some((5, salt)) => {
                let stored = md5_hex([password.as_bytes(), user.as_bytes()]);
                let answer = md5_response(&stored, salt.try_into().unwrap());
                self.say(b'p', format!("{answer}\0").as_bytes()).await;
            }
            Some((10, mechanisms)) => {
                assert_eq!(mechanisms, b"SCRAM-SHA-256\0\0");
                let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                self.say(b'p', &initial(scram.message())).await;
                let (code, first) = self.asked().await.unwrap();
                assert_eq!(code, 11);
                scram.update(&first).unwrap();
                self.say(b'p', scram.message()).await;
            }
            other => panic!("{other:?}"),
        }
    }

    /// It says nothing more, and still reads.
    async fn ends(&mut self) {
        self.0.shutdown().await.unwrap();
    }
}

/// A `SASLInitialResponse` for SCRAM-SHA-256.
fn initial(first: &[u8]) -> Vec<u8> {
    let length = u32::try_from(first.len()).unwrap().to_be_bytes();
    [&b"SCRAM-SHA-256\0"[..], &length, first].concat()
}

/// What a login as this user comes to, with a client that behaves so.
async fn login(user: &str, behaves: impl AsyncFnOnce(&mut Client)) -> Result<Identity, Refusal> {
    let folder = std::env::temp_dir().join(format!(
        "pgusher-auth-{}-{}",
        std::process::id(),
        getrandom::u64().unwrap()
    ));
    std::fs::create_dir_all(&folder).unwrap();
    let config = crate::prepare::draft_of(&folder.join("pgusher.toml"), CONFIG).unwrap().config;
    let authenticator = Authenticator::new(&folder.join("auth.key")).unwrap();
    let logins = authenticator.prepare(&config, None);
    let (near, far) = UnixStream::pair().unwrap();
    let mut client = Client(far);
    let mut packet = 0x0003_0000_u32.to_be_bytes().to_vec();
    for text in ["user", user, "database", "k", ""] {
        wire::push_cstr(&mut packet, text);
    }
    let length = u32::try_from(packet.len() + 4).unwrap().to_be_bytes();
    client.0.write_all(&[&length[..], &packet].concat()).await.unwrap();
    let login_permit =
        Arc::new(LoginPermits::default()).enter(Block::UNIX, LoginLimits { all: 1, reserved: 0 }).unwrap();
    let Ok(Opened::Login(mut arrival)) = handshake::open(Socket::Unix(near), None, &login_permit).await
    else {
        panic!("no login");
    };
    let terms = Terms { config: &config, logins: &logins, tls: None };
    let authenticated = authenticator.authenticate(&mut arrival, terms, "unix");
    let both = async { tokio::join!(authenticated, behaves(&mut client)).0 };
    let outcome =
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("it neither ends nor goes on");
    std::fs::remove_dir_all(&folder).unwrap();
    outcome
}

fn state(outcome: Result<Identity, Refusal>) -> String {
    outcome.unwrap_err().sqlstate.to_string()
}

#[tokio::test]
async fn each_method_takes_the_right_password_and_no_other() {
    for user in ["scram", "clear", "hashed"] {
        let right = login(user, async |client| client.give(user, "pencil").await).await;
        assert_eq!(right.unwrap().user().as_str(), user);
        for guess in ["pencil ", "Pencil", "pen", "x"] {
            let refusal = login(user, async |client| client.give(user, guess).await).await.unwrap_err();
            assert_eq!(refusal.sqlstate, SqlState::INVALID_PASSWORD, "{user} {guess}");
            assert_eq!(refusal.message, format!("password authentication failed for user \"{user}\""));
        }
    }
    let trusted = login("trusted", async |_| {}).await;
    assert_eq!(trusted.unwrap().user().as_str(), "trusted");
}

/// Who does not exist is asked the same and told the same; who is disabled is told so only once he has proved himself.
#[tokio::test]
async fn a_name_that_does_not_exist_is_asked_and_told_what_a_wrong_password_is() {
    let refusal = login("nobody", async |client| client.give("nobody", "pencil").await).await.unwrap_err();
    assert_eq!(refusal.sqlstate, SqlState::INVALID_PASSWORD);
    assert_eq!(refusal.message, "password authentication failed for user \"nobody\"");
    let guessed = login("gone", async |client| client.give("gone", "x").await).await;
    assert_eq!(state(guessed), "28P01");
    let proved = login("gone", async |client| client.give("gone", "pencil").await).await;
    assert_eq!(state(proved), "28000");
}

#[tokio::test]
async fn steps_out_of_order_are_broken_messages_and_let_nobody_in() {
    // The proof before it was asked for, and something else than a first message.
    for first in [&b"c=biws,r=x,p=AAAA"[..], b"", b"pencil\0", b"SCRAM-SHA-256\0\xff\xff\xff\xff"] {
        let outcome = login("scram", async |client| {
            client.asked().await.unwrap();
            client.say(b'p', first).await;
        });
        assert_eq!(state(outcome.await), "08P01", "{first:?}");
    }
    // The first message again, an empty one, and the proof of another login where the proof is asked for.
    for last in [&initial(b"n,,n=,r=x")[..], b"", b"c=biws,r=other,p=AAAA", b"c=biws,r=x"] {
        let outcome = login("scram", async |client| {
            client.asked().await.unwrap();
            client.say(b'p', &initial(b"n,,n=,r=x")).await;
            assert_eq!(client.asked().await.unwrap().0, 11);
            client.say(b'p', last).await;
        });
        assert_eq!(state(outcome.await), "08P01", "{last:?}");
    }
    // A binding that was not offered, since this is not TLS.
    for (mechanism, first) in
        [("SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,n=,r=x"), ("SCRAM-SHA-256", "p=x,,n=,r=x")]
    {
        let length = u32::try_from(first.len()).unwrap().to_be_bytes();
        let message = [mechanism.as_bytes(), b"\0", &length, first.as_bytes()].concat();
        let outcome = login("scram", async |client| client.say(b'p', &message).await).await;
        assert_eq!(state(outcome), "08P01", "{mechanism}");
    }
    // Another kind of message altogether, at either step.
    for user in ["scram", "clear", "hashed"] {
        let outcome = login(user, async |client| client.say(b'Q', b"select 1\0").await).await;
        assert_eq!(state(outcome), "08P01", "{user}");
    }
}

/// The length of a message is refused before any of it is waited for.
#[tokio::test]
async fn messages_that_are_too_long_are_refused_by_their_length_alone() {
    for (user, most) in [("scram", 1024_u32), ("clear", 65_535), ("hashed", 65_535)] {
        for length in [most + 5, 1 << 20, u32::MAX, 3, 0] {
            let header = [&b"p"[..], &length.to_be_bytes()].concat();
            let outcome = login(user, async |client| client.0.write_all(&header).await.unwrap()).await;
            assert_eq!(state(outcome), "08P01", "{user} {length}");
        }
        // As long as it may be, it is waited for.
        let header = [&b"p"[..], &(most + 4).to_be_bytes()].concat();
        let outcome = login(user, async |client| {
            client.0.write_all(&header).await.unwrap();
            client.ends().await;
        });
        assert_eq!(state(outcome.await), "08006", "{user}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_at_any_byte_is_let_in_by_nothing() {
    let mut whole = Vec::new();
    wire::message(&mut whole, b'p', |out| out.extend_from_slice(b"pencil\0"));
    for cut in 0..whole.len() {
        let outcome = login("clear", async |client| {
            client.0.write_all(&whole[..cut]).await.unwrap();
            client.ends().await;
        });
        assert_eq!(state(outcome.await), "08006", "{cut}");
    }
    let mut first = Vec::new();
    wire::message(&mut first, b'p', |out| out.extend_from_slice(&initial(b"n,,n=,r=x")));
    for cut in (0..=first.len()).step_by(3).chain([first.len()]) {
        let outcome = login("scram", async |client| {
            client.0.write_all(&first[..cut]).await.unwrap();
            client.ends().await;
        });
        assert_eq!(state(outcome.await), "08006", "{cut}");
    }
    // Within the proof, however much of it is there.
    for missing in [1, 2, 40] {
        let outcome = login("scram", async |client| {
            client.asked().await.unwrap();
            let mut scram = ScramSha256::new(b"pencil", ChannelBinding::unsupported());
            client.say(b'p', &initial(scram.message())).await;
            scram.update(&client.asked().await.unwrap().1).unwrap();
            let mut last = Vec::new();
            wire::message(&mut last, b'p', |out| out.extend_from_slice(scram.message()));
            client.0.write_all(&last[..last.len() - missing]).await.unwrap();
            client.ends().await;
        });
        assert_eq!(state(outcome.await), "08006", "{missing}");
    }
}

#[tokio::test]
async fn passwords_that_are_none_are_refused() {
    for (body, expected) in [
        (&b"\0"[..], "28P01"),
        (b"pencil", "08P01"),
        (b"pencil\0x", "08P01"),
        (b"pen\0cil\0", "08P01"),
        (b"\xff\0", "28P01"),
        (b"", "08P01"),
    ] {
        let outcome = login("clear", async |client| client.say(b'p', body).await).await;
        assert_eq!(state(outcome), expected, "{body:?}");
    }
}
