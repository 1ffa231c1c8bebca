//! First packets by a scripted client over socket pairs: what each leads to, and that nothing else leads anywhere.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::*;
use crate::login_permits::{LoginLimits, LoginPermits};
use crate::stream::Block;

const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
const CANCEL: u32 = 80_877_102;

/// A packet with its length.
fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(rest.len() + 8).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
}

fn startup() -> Vec<u8> {
    packet(0x0003_0000, b"user\0ann\0database\0w\0\0")
}

/// What these bytes lead to, all of which are sent at once, and what was answered.
async fn opened(bytes: &[u8]) -> (Result<Opened, HandshakeError>, Vec<u8>) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let login_permit =
        Arc::new(LoginPermits::default()).enter(Block::UNIX, LoginLimits { all: 1, reserved: 0 }).unwrap();
    far.write_all(bytes).await.unwrap();
    far.shutdown().await.unwrap();
    let opened = timeout(Duration::from_secs(20), open(Socket::Unix(near), None, &login_permit))
        .await
        .expect("it waits");
    let mut answer = Vec::new();
    let mut read = [0; 64];
    while let Ok(Ok(length @ 1..)) = timeout(Duration::from_millis(5), far.read(&mut read)).await {
        answer.extend_from_slice(&read[..length]);
    }
    (opened, answer)
}

/// Encryption is asked for first, and answered, one request after the other.
async fn after(requests: &[u32], then: &[u8]) -> Result<Opened, HandshakeError> {
    let (near, mut far) = UnixStream::pair().unwrap();
    let login_permit =
        Arc::new(LoginPermits::default()).enter(Block::UNIX, LoginLimits { all: 1, reserved: 0 }).unwrap();
    let client = async {
        for code in requests {
            far.write_all(&packet(*code, b"")).await.unwrap();
            let mut answer = [0];
            match far.read(&mut answer).await {
                Ok(1) => assert_eq!(answer, *b"N", "there is no TLS"),
                _ => return,
            }
        }
        let _ = far.write_all(then).await;
    };
    let said = async {
        client.await;
        std::future::pending().await
    };
    let opened = async {
        tokio::select! {
            opened = open(Socket::Unix(near), None, &login_permit) => opened,
            never = said => never,
        }
    };
    timeout(Duration::from_secs(20), opened).await.expect("it waits")
}

fn message(outcome: Result<Opened, HandshakeError>) -> String {
    match outcome {
        Err(HandshakeError::Refused(_, refusal)) => refusal.message.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_startup_packet_is_a_login_with_whatever_was_sent_behind_it() {
    let (outcome, answer) = opened(&[&startup()[..], b"p\0\0"].concat()).await;
    let Ok(Opened::Login(arrival)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((arrival.startup.user.as_str(), arrival.startup.database.as_str()), ("ann", "w"));
    assert_eq!(arrival.reader.ahead(), b"p\0\0");
    assert!(answer.is_empty() && arrival.pending.is_empty() && arrival.certificate_name.is_none());
}

#[tokio::test]
async fn encryption_is_declined_once_each_and_then_a_login_is_a_login() {
    for requests in [&[][..], &[SSL], &[GSS], &[SSL, GSS], &[GSS, SSL]] {
        let outcome = after(requests, &startup()).await;
        assert!(matches!(outcome, Ok(Opened::Login(_))), "{requests:?}: {outcome:?}");
    }
    for requests in [[SSL, SSL], [GSS, GSS]] {
        assert_eq!(message(after(&requests, b"").await), "received a second encryption request");
    }
}

/// What is in the clear behind a request for encryption is read as nothing, though it were a whole login.
#[tokio::test]
async fn what_is_sent_behind_a_request_for_encryption_is_refused() {
    for (code, name) in [(SSL, "SSL"), (GSS, "GSSAPI encryption")] {
        for behind in [&startup()[..], b"x"] {
            let (outcome, answer) = opened(&[&packet(code, b"")[..], behind].concat()).await;
            assert_eq!(message(outcome), format!("received unencrypted data after {name} request"));
            assert_eq!(answer, b"N");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_at_any_byte_wanted_nothing() {
    for whole in [startup(), packet(SSL, b""), packet(CANCEL, b"\0\0\0\x07seal")] {
        for cut in 0..whole.len() {
            let (outcome, answer) = opened(&whole[..cut]).await;
            assert!(
                matches!(outcome, Err(HandshakeError::Silent(_) | HandshakeError::Io(_))),
                "{cut}: {outcome:?}"
            );
            assert!(answer.is_empty(), "{cut}");
        }
    }
}

/// The length is judged before anything of the packet is waited for, and answered by nothing.
#[tokio::test]
async fn lengths_that_no_packet_has_are_left_without_a_word() {
    for length in [0, 4, 7, 10_001, 1 << 20, u32::MAX] {
        let (outcome, answer) = opened(&[&length.to_be_bytes()[..], &[0; 64]].concat()).await;
        assert!(matches!(outcome, Err(HandshakeError::Silent(_))), "{length}: {outcome:?}");
        assert!(answer.is_empty());
    }
    let longest =
        packet(0x0003_0000, &[&b"user\0ann\0x\0"[..], &vec![b'y'; 10_000 - 8 - 13], b"\0\0"].concat());
    assert_eq!(longest.len(), 10_000);
    assert!(matches!(opened(&longest).await.0, Ok(Opened::Login(_))));
}

#[tokio::test]
async fn a_cancel_request_is_its_key_and_nothing_else() {
    let (outcome, answer) = opened(&packet(CANCEL, b"\0\0\0\x07seal")).await;
    let Ok(Opened::Cancel(key, _)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((key.pid, &*key.secret), (7, &b"seal"[..]));
    assert!(answer.is_empty());
    for broken in [&b""[..], b"\0\0\0\x07", &[1; 4 + 257]] {
        assert_eq!(message(opened(&packet(CANCEL, broken)).await.0), "invalid length of startup packet");
    }
}

#[tokio::test]
async fn who_must_make_room_is_told_so_while_nothing_has_come() {
    let (near, _far) = UnixStream::pair().unwrap();
    let (all, limits) = (Arc::new(LoginPermits::default()), LoginLimits { all: 2, reserved: 0 });
    let crowd = Block::of_peer("192.0.2.1:1");
    let [first, _second] = [0; 2].map(|_| all.enter(crowd, limits).unwrap());
    let opening = open(Socket::Unix(near), None, &first);
    let enters = async { all.enter(Block::of_peer("192.0.2.2:1"), limits) };
    let (outcome, entered) =
        timeout(Duration::from_secs(20), async { tokio::join!(opening, enters) }).await.expect("it stays");
    assert_eq!(message(outcome), "sorry, too many clients already");
    assert!(entered.is_some());
}
