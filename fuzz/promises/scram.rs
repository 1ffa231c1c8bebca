//! The messages of SCRAM, from both sides: whatever they hold, nobody gets in but by the right proof, and no server is believed
//! that does not have the verifier.

use crate::input::Input;
use crate::measure::bounded;
use pgusher::inside::{Offered, initial_response, server_iterations};
use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth};
use policy::verifier::ScramVerifier;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

/// What the work of one login is bounded by: more iterations are not tried here, and are refused above the library's maximum.
const TRIED: u64 = 64;
/// Those that the client asks for at the least.
const FLOOR: u32 = 8;
const PASSWORD: &str = "pencil";

fn secret(verifier: ScramVerifier) -> ScramSecret {
    let ScramVerifier { salt, iterations, stored_key, server_key } = verifier;
    ScramSecret::Verifier { salt, iterations: iterations as usize, stored_key, server_key }
}

/// As a client, shown anything as the server's first and last message.
fn client(first: &[u8], last: &[u8]) {
    let mut scram = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
    let own = scram.message().to_vec();
    let nonce = own.strip_prefix(b"n,,n=,r=").unwrap();
    // Half of the inputs begin with the client's nonce, without which nothing is looked at.
    let message = match first.strip_prefix(b"@") {
        Some(rest) => [b"r=", nonce, rest].concat(),
        None => first.to_vec(),
    };
    let Ok(iterations) = bounded(message.len(), 64, || server_iterations(&message, FLOOR)) else { return };
    assert!(iterations >= u64::from(FLOOR));
    if iterations > TRIED && iterations <= 100_000 {
        return;
    }
    if scram.update(&message).is_ok() {
        assert!(iterations <= TRIED, "so many are not done");
        let text = String::from_utf8(message).unwrap();
        let (before, counted) = text.rsplit_once(",i=").unwrap();
        assert_eq!(counted.parse(), Ok(iterations), "other iterations are done than were judged");
        assert!(
            before.as_bytes().strip_prefix(b"r=").unwrap().starts_with(nonce),
            "an answer to another login"
        );
        assert!(scram.finish(last).is_err(), "a server without the verifier is believed");
    }
}

/// As a server, shown anything as the client's first and last message.
fn server(first: &[u8], last: &[u8], verifier: &ScramVerifier) {
    for offered in [Offered::Scram, Offered::ScramAndPlus] {
        let offers_plus = offered == Offered::ScramAndPlus;
        let Ok(inner) = bounded(first.len(), 64, || initial_response(first, offered)) else { continue };
        assert!(first.ends_with(inner) && first.starts_with(b"SCRAM-SHA-256"));
        assert!(offers_plus || !inner.starts_with(b"p"), "a binding that nobody has offered");
        assert!(!offers_plus || !inner.starts_with(b"y"), "a client was told that there is no binding");
        let auth = ScramServerAuth::new();
        let answered = bounded(inner.len(), 256, || {
            auth.on_client_first_message_with_secret(inner, secret(verifier.clone()))
        });
        let Ok((answer, waiting)) = answered else { continue };
        assert!(answer.ends_with(&format!(",i={}", verifier.iterations)));
        assert!(answer.len() <= inner.len() + 128);
        assert!(
            bounded(last.len(), 256, || waiting.on_client_final_message(last)).is_err(),
            "no proof is enough"
        );
    }
}

/// A client and a server that both mean well agree; with one byte of the proof's message changed they do not.
fn both(verifier: &ScramVerifier, change: u8, at: usize) {
    let mut scram = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
    let first = scram.message().to_vec();
    let mut packet = b"SCRAM-SHA-256\0".to_vec();
    packet.extend(u32::try_from(first.len()).unwrap().to_be_bytes());
    packet.extend_from_slice(&first);
    let inner = initial_response(&packet, Offered::Scram).unwrap();
    let (answer, waiting) =
        ScramServerAuth::new().on_client_first_message_with_secret(inner, secret(verifier.clone())).unwrap();
    assert_eq!(server_iterations(answer.as_bytes(), 1), Ok(u64::from(verifier.iterations)));
    assert!(server_iterations(answer.as_bytes(), verifier.iterations + 1).is_err(), "fewer than are wanted");
    scram.update(answer.as_bytes()).unwrap();
    let proof = scram.message().to_vec();
    let mut changed = proof.clone();
    let at = at % changed.len();
    changed[at] ^= change;
    assert_eq!(waiting.on_client_final_message(&changed).is_ok(), change == 0, "{change} at {at}");
    let last = waiting.on_client_final_message(&proof).unwrap();
    let mut lie = last.clone().into_bytes();
    let at = at % lie.len();
    lie[at] ^= change;
    assert_eq!(scram.finish(&lie).is_ok(), change == 0, "{change} at {at}");
}

/// See the module.
pub(crate) fn holds(data: &[u8]) {
    let mut input = Input(data);
    let (change, at) = (input.byte(), usize::from(input.byte()));
    let salt = vec![change; usize::from(input.byte() % 24) + 1];
    let (server_first, server_last, client_last) = (input.line(), input.line(), input.line());
    let client_first = input.0;
    client(server_first, server_last);
    let verifier = ScramVerifier::derive(PASSWORD, salt, u32::from(change) % 8 + 1);
    server(client_first, client_last, &verifier);
    both(&verifier, change, at);
    let written = policy::verifier::Verifier::parse(&verifier.to_string().into());
    assert!(
        matches!(written, Ok(policy::verifier::Verifier::Scram(read)) if read.stored_key == verifier.stored_key)
    );
}
