//! Proves who a client is, by the method that its user has, and makes the [`Identity`].

mod exchange;
mod guesses;
mod key;
mod logins;
#[cfg(test)]
mod tests;

pub(crate) use guesses::keep_the_busiest;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::aside::Aside;
use crate::handshake::Arrival;
use crate::stream::Block;
use crate::tls::ServerTls;
use exchange::Exchange;
pub use exchange::{Offered, initial_response};
use guesses::Guesses;
use key::Key;
pub(crate) use logins::Logins;
use policy::attribute::Subject;
use policy::config::file::AuthType;
use policy::config::{Config, User};
use policy::names::UserName;
use policy::verifier::{ScramVerifier, Verifier, md5_hex, md5_response};
use wire::error::{Fault, Refusal, Shown, SqlState};

/// Somebody whose proof was good. Made only by [`Authenticator::authenticate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity(UserName);

impl Subject for Identity {
    fn user(&self) -> &UserName {
        &self.0
    }
}

impl Identity {
    /// The name of the user who has logged in.
    pub(crate) fn user(&self) -> &UserName {
        &self.0
    }

    /// Whether the proof that was good for one configuration is so for another: the user is there, may log in, and proves
    /// it by the same method and secret.
    ///
    /// # Errors
    /// As of [`Authenticator::authenticate`]: `28P01` or `28000`.
    pub(crate) fn is_still(&self, proved: &Config, now: &Config) -> Result<(), Refusal> {
        may_stay(proved, now)?;
        let name = self.0.as_str();
        let (Some(then), Some(user)) = (proved.users.get(name), now.users.get(name)) else {
            return Err(wrong(name, *now.server.auth_type));
        };
        let secret = |user: &User| user.password.as_ref().map(|p| p.value().expose_secret().to_owned());
        if !Arc::ptr_eq(then, user) && (then.auth_type != user.auth_type || secret(then) != secret(user)) {
            return Err(wrong(name, user.auth_type));
        }
        allow(user).map(|_| ())
    }
}

/// A client that came before the rules of TLS towards clients were changed has shown what those before asked for.
///
/// # Errors
/// `57P03`: it may come again.
pub(crate) fn may_stay(then: &Config, now: &Config) -> Result<(), Refusal> {
    let rules = |config: &Config| {
        let certificates = config.certificates.iter().filter(|(what, _)| what.starts_with("client_c"));
        let certificates: Vec<_> =
            certificates.map(|(what, digest)| (what.clone(), digest.clone())).collect();
        let tls = config.server.tls.as_ref();
        (tls.map(|tls| (*tls.mode, (*tls.client_ca).clone(), (*tls.client_crl).clone())), certificates)
    };
    if std::ptr::eq(then, now) || rules(then) == rules(now) {
        return Ok(());
    }
    let message = "the rules for TLS were changed while this login ran";
    Err(Refusal::new(Fault::Operator, SqlState::CANNOT_CONNECT_NOW, message).hint("Connect again."))
}

/// What a login is decided by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// Who there is.
    pub config: &'a Config,
    /// What their passwords are checked against.
    pub logins: &'a Logins,
    /// TLS towards clients.
    pub tls: Option<&'a ServerTls>,
}

/// What all logins of a process share: the key that everything is made of which unknown users are shown, and who has
/// guessed.
pub(crate) struct Authenticator {
    key: Key,
    guesses: Guesses,
    aside: Aside,
}

impl Authenticator {
    /// With the key of a file, which is made if it is not there.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(crate) fn new(key_file: &Path) -> Result<Self, getrandom::Error> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { key: Key::of(key_file)?, guesses: Guesses::default(), aside: Aside::new(cores) })
    }

    /// Makes what the logins of a configuration need; what has not changed is taken from the old one. Blocks.
    pub(crate) fn prepare(&self, config: &Config, old: Option<(&Config, &Logins)>) -> Logins {
        Logins::of(&self.key, config, old)
    }

    /// Runs the exchange of the user's method, up to but without `AuthenticationOk`: whoever routes next may
    /// still refuse.
    ///
    /// Among the users of one method a name that does not exist does the same work as one that does, and nothing that is
    /// sent tells them apart (`docs/architecture.md`).
    ///
    /// Not cancel-safe: drop the client with it.
    ///
    /// # Errors
    /// `28P01` for a wrong password and for an unknown user alike; `28000` for other proofs; `08P01` for broken
    /// messages.
    pub(crate) async fn authenticate(
        &self,
        arrival: &mut Arrival,
        terms: Terms<'_>,
        peer: &str,
    ) -> Result<Identity, Refusal> {
        let Terms { config, logins, tls } = terms;
        let name = arrival.startup.user.clone();
        let user = config.users.get(name.as_str());
        let method = user.map_or(*config.server.auth_type, |u| u.auth_type);
        let verifier = logins.verifier(&name);
        let bound = if arrival.reader.stream.is_tls() { tls } else { None };
        let certified = arrival.certificate_name.as_deref() == Some(name.as_str());
        let mut exchange = Exchange::new(arrival);
        let proved = match method {
            AuthType::Trust => user.is_some(),
            AuthType::Cert => user.is_some() && certified,
            AuthType::Password => {
                let mock = logins.clear_mock(&self.key, &name);
                let given = exchange.cleartext().await?;
                let work = accepts(name.clone(), verifier.cloned(), mock, given);
                self.aside.run(work).await.unwrap_or(false)
            }
            AuthType::Md5 => {
                let mut salt = [0; 4];
                getrandom::fill(&mut salt).map_err(|_| no_random())?;
                let given = exchange.md5(salt).await?;
                accepts_md5(&self.key, &name, verifier, &given, salt)
            }
            AuthType::ScramSha256 => {
                // Made for everybody, so that it takes everybody's time.
                let mock = logins.scram_mock(&self.key, &name);
                let (shown, is_known) = match verifier {
                    Some(Verifier::Scram(known)) => (known, true),
                    _ => (&mock, false),
                };
                let plain = ScramServerAuth::new();
                let scram = bound.map_or(&plain, |tls| &tls.scram);
                exchange.scram(scram, scram_secret(shown.clone())).await? && is_known
            }
        };
        if !matches!(method, AuthType::Trust | AuthType::Cert) {
            // Whoever guesses waits for the answer, also for the right one; there is always some time left for it.
            let (block, free) = (Block::of_peer(peer), *config.server.max_failed_logins);
            let wait = match proved {
                true => self.guesses.right(&name, block, free),
                false => self.guesses.wrong(&name, block, free),
            };
            let wait = wait.min(*config.server.client_login_timeout / 4);
            if wait > Duration::ZERO {
                self.guesses.wait(&name, block, wait).await;
            }
        }
        match user {
            Some(user) if proved => allow(user),
            _ => Err(wrong(&name, method)),
        }
    }
}

fn scram_secret(verifier: ScramVerifier) -> ScramSecret {
    ScramSecret::Verifier {
        salt: verifier.salt,
        iterations: verifier.iterations as usize,
        stored_key: verifier.stored_key,
        server_key: verifier.server_key,
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

/// Whether a password given in clear text is the user's. Whoever has no SCRAM verifier, or does not exist, is checked
/// against a mock, too: it takes as long.
fn accepts(
    name: String,
    verifier: Option<Verifier>,
    mock: Option<ScramVerifier>,
    given: SecretString,
) -> impl FnOnce() -> bool + Send + 'static {
    move || {
        let given = given.expose_secret();
        if let Some(Verifier::Scram(verifier)) = verifier {
            return verifier.accepts(given);
        }
        if let Some(mock) = mock {
            std::hint::black_box(mock.accepts(given));
        }
        let md5 = md5_hex([given.as_bytes(), name.as_bytes()]);
        match verifier {
            Some(Verifier::Md5(hex)) => equal(&md5, &hex),
            Some(Verifier::Plain(password)) => equal(password.expose_secret(), given),
            _ => false,
        }
    }
}

/// The client sends `md5` and `md5(md5(password || user) || salt)` in hexadecimal. Whoever has nothing that this can be
/// checked against is checked against what nobody knows.
fn accepts_md5(
    key: &Key,
    name: &str,
    verifier: Option<&Verifier>,
    given: &SecretString,
    salt: [u8; 4],
) -> bool {
    let mock = md5_hex([&key.sign(&[b"md5", name.as_bytes()]), b""]);
    let (stored, is_known) = match verifier {
        Some(Verifier::Md5(hex)) => (hex, true),
        _ => (&mock, false),
    };
    equal(&md5_response(stored, salt), given.expose_secret()) && is_known
}

/// In a time that does not tell where they differ.
fn equal(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}
