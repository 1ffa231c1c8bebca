//! The messages of the authentication methods, read with bounds that hold before anybody is authenticated.

use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth};
use pgwire::error::PgWireError;
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::handshake::Arrival;
use wire::error::{Fault, Refusal, Shown, SqlState};

/// The longest SASL message (`PG_MAX_SASL_MESSAGE_LENGTH`) and the longest password (`PG_MAX_AUTH_TOKEN_LENGTH`).
const MAX_SASL_LENGTH: usize = 1024;
const MAX_PASSWORD_LENGTH: usize = 65_535;

const SCRAM: &[u8] = b"SCRAM-SHA-256";
const SCRAM_PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";

/// `Authentication…` codes (PostgreSQL's manual, "Message Formats").
const CLEARTEXT: u32 = 3;
const MD5: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// The SASL mechanisms that a client is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// `SCRAM-SHA-256` alone.
    Scram,
    /// And `SCRAM-SHA-256-PLUS`, with channel binding.
    ScramAndPlus,
}

impl Offered {
    fn by(scram: &ScramServerAuth) -> Self {
        if scram.supports_channel_binding() { Self::ScramAndPlus } else { Self::Scram }
    }
}

/// One client's side of an authentication.
pub(super) struct Exchange<'a>(&'a mut Arrival);

impl<'a> Exchange<'a> {
    pub(super) fn new(arrival: &'a mut Arrival) -> Self {
        Self(arrival)
    }

    /// Asks for the password in clear text.
    pub(super) async fn cleartext(&mut self) -> Result<SecretString, Refusal> {
        self.ask(CLEARTEXT, &[]).await?;
        self.password().await
    }

    /// Asks for its salted MD5.
    pub(super) async fn md5(&mut self, salt: [u8; 4]) -> Result<SecretString, Refusal> {
        self.ask(MD5, &salt).await?;
        self.password().await
    }

    /// Runs SCRAM; `-PLUS` is offered exactly when `scram` has a certificate, which is when this is TLS. False is
    /// a proof that is wrong.
    pub(super) async fn scram(
        &mut self,
        scram: &ScramServerAuth,
        secret: ScramSecret,
    ) -> Result<bool, Refusal> {
        let mut mechanisms = Vec::new();
        let offered = Offered::by(scram);
        if offered == Offered::ScramAndPlus {
            mechanisms.extend_from_slice(SCRAM_PLUS);
            mechanisms.push(0);
        }
        mechanisms.extend_from_slice(SCRAM);
        mechanisms.extend_from_slice(&[0, 0]);
        self.ask(SASL, &mechanisms).await?;
        let initial = self.message(MAX_SASL_LENGTH, "SASL").await?;
        let client_first = initial_response(&initial, offered)?;
        let (server_first, waiting) =
            scram.on_client_first_message_with_secret(client_first, secret).map_err(|e| malformed(&e))?;
        self.ask(SASL_CONTINUE, server_first.as_bytes()).await?;
        let client_final = self.message(MAX_SASL_LENGTH, "SASL").await?;
        match waiting.on_client_final_message(&client_final) {
            Ok(server_final) => {
                // Nobody waits for it alone: it goes with what follows from it.
                authentication(&mut self.0.pending, SASL_FINAL, server_final.as_bytes());
                Ok(true)
            }
            Err(PgWireError::InvalidPassword(_)) => Ok(false),
            Err(error) => Err(malformed(&error)),
        }
    }

    async fn ask(&mut self, code: u32, data: &[u8]) -> Result<(), Refusal> {
        authentication(&mut self.0.pending, code, data);
        self.0.flush_pending().await.map_err(|_| left())
    }

    async fn password(&mut self) -> Result<SecretString, Refusal> {
        let body = self.message(MAX_PASSWORD_LENGTH, "password").await?;
        let Some((password, [])) = wire::cstr(&body) else {
            return Err(Refusal::protocol("invalid password packet size"));
        };
        if password.is_empty() {
            return Err(Refusal::new(
                Fault::Client,
                SqlState::INVALID_PASSWORD,
                "empty password returned by client",
            ));
        }
        String::from_utf8(password.to_vec()).map(SecretString::from).map_err(|_| {
            Refusal::new(Fault::Client, SqlState::INVALID_PASSWORD, "the password is not valid UTF-8")
        })
    }

    /// Reads one `p` message; its length is checked before anything is allocated for it.
    async fn message(&mut self, limit: usize, expected: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let header = self.0.reader.fill(wire::HEADER).await.map_err(|_| left())?;
        if header[0] != b'p' {
            let tag = header[0];
            return Err(Refusal::protocol(format!("expected {expected} response, got message type {tag}")));
        }
        let total = match wire::Header::read(header) {
            Some(Ok(header)) if header.total - wire::HEADER <= limit => header.total,
            _ => return Err(Refusal::protocol("invalid message length")),
        };
        self.0.reader.fill(total).await.map_err(|_| left())?;
        let mut message = self.0.reader.take(total);
        message.drain(..wire::HEADER);
        Ok(message)
    }
}

/// An `Authentication…` message.
fn authentication(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    wire::message(out, b'R', |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(data);
    });
}

/// The client's first message in a `SASLInitialResponse`: the mechanism, the length of the data, the data.
///
/// # Errors
/// `08P01`, or `28000` where the client thinks that there is no channel binding though it was offered.
pub fn initial_response(body: &[u8], offered: Offered) -> Result<&[u8], Refusal> {
    let (mechanism, rest) = wire::cstr(body).ok_or_else(|| malformed_message("SASLInitialResponse"))?;
    let (length, data) =
        rest.split_first_chunk::<4>().ok_or_else(|| malformed_message("SASLInitialResponse"))?;
    if usize::try_from(u32::from_be_bytes(*length)).ok() != Some(data.len()) {
        return Err(malformed_message("SASLInitialResponse"));
    }
    // The mechanism and the channel binding flag of its first message must say the same (RFC 5802 section 6).
    let binds = data.first() == Some(&b'p');
    let offers_plus = offered == Offered::ScramAndPlus;
    match mechanism {
        SCRAM if offers_plus && data.first() == Some(&b'y') => Err(Refusal::new(
            Fault::Client,
            SqlState::INVALID_AUTHORIZATION,
            "SCRAM channel binding negotiation error",
        )
        .detail(
            "The client supports SCRAM channel binding but thinks the server does not.  However, this server does \
             support channel binding.",
        )),
        SCRAM_PLUS if offers_plus && binds => Ok(data),
        SCRAM if !binds => Ok(data),
        SCRAM | SCRAM_PLUS if offers_plus => Err(malformed_message("SCRAM channel binding flag")),
        _ => Err(Refusal::protocol("client selected an invalid SASL authentication mechanism")),
    }
}

fn malformed(error: &PgWireError) -> Refusal {
    Refusal::protocol("malformed SCRAM message").detail(Shown::sentence(&error.to_string()).to_string())
}

fn malformed_message(what: &str) -> Refusal {
    Refusal::protocol("malformed SCRAM message").detail(format!("Invalid {what}."))
}

fn left() -> Refusal {
    Refusal::new(Fault::Client, SqlState::CONNECTION_FAILURE, "the client left during authentication")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_lengths_that_lie_are_refused() {
        for inner in [-2i32 as u32, i32::MIN as u32, u32::MAX, 0, 1, 4, 6, i32::MAX as u32] {
            let mut body = b"SCRAM-SHA-256\0".to_vec();
            body.extend(inner.to_be_bytes());
            body.extend(b"n,,x=");
            assert!(initial_response(&body, Offered::Scram).is_err(), "{inner}");
        }
        assert!(initial_response(b"SCRAM-SHA-256\0\0\0\0\x03n,,", Offered::Scram).is_ok());
        assert!(initial_response(b"SCRAM-SHA-256-PLUS\0\0\0\0\x03p,,", Offered::Scram).is_err());
        assert!(initial_response(b"SCRAM-SHA-256\0\0\0\0\x03p,,", Offered::ScramAndPlus).is_err());
        assert!(initial_response(b"SCRAM-SHA-256", Offered::Scram).is_err());
    }
}
