//! Proves who a client is, by the method that its user has, and makes the [`Identity`].

mod exchange;

use std::sync::Arc;

use aws_lc_rs::hmac;
use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::config::file::AuthType;
use crate::config::{Config, User};
use crate::error::{Fault, Refusal, Shown, SqlState};
use crate::handshake::Arrival;
use crate::names::UserName;
use crate::tls::ServerTls;
use crate::verifier::{SCRAM_ITERATIONS, ScramVerifier, Verifier, md5_hex, md5_response};
use exchange::Exchange;

/// Somebody whose proof was good. Made only by [`Authenticator::authenticate`].
#[derive(Debug, Clone)]
pub struct Identity(UserName);

impl Identity {
    /// Who.
    pub fn user(&self) -> &UserName {
        &self.0
    }
}

/// What all logins of a process share: the key that the salts of unknown users come from.
pub struct Authenticator {
    key: hmac::Key,
}

impl Authenticator {
    /// With a fresh random key.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key) })
    }

    /// Runs the exchange of the user's method, up to but without `AuthenticationOk`: whoever routes next may
    /// still refuse.
    ///
    /// Not cancel-safe: drop the client with it.
    ///
    /// # Errors
    /// `28P01` for a wrong password and for an unknown user alike; `28000` for other proofs; `08P01` for broken
    /// messages.
    pub async fn authenticate(
        &self,
        arrival: &mut Arrival,
        config: &Config,
        tls: Option<&ServerTls>,
    ) -> Result<Identity, Refusal> {
        let name = arrival.startup.user.clone();
        let user = config.users.get(name.as_str());
        let method = user.map_or(*config.server.auth_type, |u| u.auth_type);
        let verifier = user.and_then(|u| Verifier::parse(&u.password.as_ref()?.value()).ok());
        let bound = if arrival.reader.stream.is_tls() { tls } else { None };
        let certified = arrival.certificate_name.as_deref() == Some(name.as_str());
        let mut exchange = Exchange::new(arrival);
        let proved = match method {
            AuthType::Trust => user.is_some(),
            AuthType::Cert => user.is_some() && certified,
            AuthType::Password => {
                let given = exchange.cleartext().await?;
                accepts(&name, verifier, given).await
            }
            AuthType::Md5 => {
                let mut salt = [0; 4];
                getrandom::fill(&mut salt).map_err(|_| no_random())?;
                let given = exchange.md5(salt).await?;
                accepts_md5(&name, verifier, &given, salt)
            }
            AuthType::ScramSha256 => {
                let secret = self.scram_secret(user, verifier).await;
                let known = secret.is_some();
                let secret = secret.unwrap_or_else(|| self.mock_secret(&name));
                let plain = ScramServerAuth::new();
                let scram = bound.map_or(&plain, |tls| &tls.scram);
                exchange.scram(scram, secret).await? && known
            }
        };
        match user {
            Some(user) if proved => allow(user),
            _ => Err(wrong(&name, method)),
        }
    }

    /// What to check a SCRAM proof against; `None` for unknown users and unusable secrets.
    async fn scram_secret(
        &self,
        user: Option<&Arc<User>>,
        verifier: Option<Verifier>,
    ) -> Option<ScramSecret> {
        let verifier = match verifier? {
            Verifier::Scram(verifier) => verifier,
            Verifier::Md5(_) => return None,
            Verifier::Plain(password) => {
                let user = user?.clone();
                let salt = self.salt(user.name.as_str());
                let derive = move || ScramVerifier::derive(password.expose_secret(), salt, SCRAM_ITERATIONS);
                let work = move || user.derived.get_or_init(derive).clone();
                tokio::task::spawn_blocking(work).await.ok()?
            }
        };
        Some(ScramSecret::Verifier {
            salt: verifier.salt,
            iterations: verifier.iterations as usize,
            stored_key: verifier.stored_key,
            server_key: verifier.server_key,
        })
    }

    /// The same for every login of this name: an unknown user looks like a known one.
    fn salt(&self, name: &str) -> Vec<u8> {
        hmac::sign(&self.key, name.as_bytes()).as_ref()[..16].to_vec()
    }

    fn mock_secret(&self, name: &str) -> ScramSecret {
        let key = hmac::sign(&self.key, format!("{name}\0mock").as_bytes()).as_ref().to_vec();
        ScramSecret::Verifier {
            salt: self.salt(name),
            iterations: SCRAM_ITERATIONS as usize,
            stored_key: key.clone(),
            server_key: key,
        }
    }
}

fn allow(user: &User) -> Result<Identity, Refusal> {
    if user.disabled {
        let message = format!("role \"{}\" is not permitted to log in", user.name);
        return Err(Refusal::new(Fault::Client, SqlState::INVALID_AUTHORIZATION, message));
    }
    Ok(Identity(user.name.clone()))
}

/// As PostgreSQL's `auth_failed` words it.
fn wrong(name: &str, method: AuthType) -> Refusal {
    let (state, method) = match method {
        AuthType::Cert => (SqlState::INVALID_AUTHORIZATION, "certificate"),
        AuthType::Trust => (SqlState::INVALID_AUTHORIZATION, "\"trust\""),
        _ => (SqlState::INVALID_PASSWORD, "password"),
    };
    Refusal::new(
        Fault::Client,
        state,
        format!("{method} authentication failed for user \"{}\"", Shown::name(name)),
    )
}

fn no_random() -> Refusal {
    Refusal::new(Fault::Ours, SqlState::INTERNAL, "no random bytes")
}

async fn accepts(name: &str, verifier: Option<Verifier>, given: SecretString) -> bool {
    let name = name.to_owned();
    let work = move || match verifier {
        Some(Verifier::Scram(verifier)) => verifier.accepts(given.expose_secret()),
        Some(Verifier::Md5(hex)) => {
            equal(&md5_hex([given.expose_secret().as_bytes(), name.as_bytes()]), &hex)
        }
        Some(Verifier::Plain(password)) => equal(password.expose_secret(), given.expose_secret()),
        None => {
            equal("", given.expose_secret());
            false
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(false)
}

/// The client sends `md5` and `md5(md5(password || user) || salt)` in hexadecimal.
fn accepts_md5(name: &str, verifier: Option<Verifier>, given: &SecretString, salt: [u8; 4]) -> bool {
    let inner = match verifier {
        Some(Verifier::Md5(hex)) => hex,
        Some(Verifier::Plain(password)) => md5_hex([password.expose_secret().as_bytes(), name.as_bytes()]),
        Some(Verifier::Scram(_)) | None => return false,
    };
    equal(&md5_response(&inner, salt), given.expose_secret())
}

/// In a time that does not tell where they differ.
fn equal(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}
