//! What a user's password setting holds: a verifier as PostgreSQL stores it, or the password itself.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest, Md5};
use secrecy::{ExposeSecret, SecretString};

/// PostgreSQL's default iteration count.
pub const SCRAM_ITERATIONS: u32 = 4096;
const MAX_ITERATIONS: u32 = 10_000_000;
const SCRAM_PREFIX: &str = "SCRAM-SHA-256$";
/// What is wrong with a password of which SASLprep leaves nothing.
pub const EMPTY: &str = "the password is empty (a byte-order mark or another invisible character alone is none): \
                         give one that can be seen";

/// A SCRAM-SHA-256 verifier (RFC 5803 as PostgreSQL writes it, `pg_authid.rolpassword`).
#[derive(Clone)]
pub struct ScramVerifier {
    /// The salt, raw.
    pub salt: Vec<u8>,
    /// The iteration count.
    pub iterations: u32,
    /// `SHA256(ClientKey)`, 32 bytes.
    pub stored_key: Vec<u8>,
    /// 32 bytes.
    pub server_key: Vec<u8>,
}

/// What a password can be checked against.
#[derive(Clone)]
pub enum Verifier {
    /// A SCRAM-SHA-256 verifier.
    Scram(ScramVerifier),
    /// 32 hexadecimal digits of `md5(password || user)`, in lower case.
    Md5(String),
    /// The password.
    Plain(SecretString),
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramVerifier(***)")
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(***)")
    }
}

impl Verifier {
    /// Tells which of the three a password setting is, the way PostgreSQL does (`get_password_type`).
    ///
    /// # Errors
    /// A text that begins like a SCRAM verifier and is not one: it would never let anybody in. An [`EMPTY`] password: it
    /// would let in whoever sends none.
    pub fn parse(secret: &SecretString) -> Result<Self, &'static str> {
        let text = secret.expose_secret();
        if let Some(rest) = text.strip_prefix(SCRAM_PREFIX) {
            return scram(rest).map(Self::Scram).ok_or("this is not a complete SCRAM-SHA-256 verifier");
        }
        match text.strip_prefix("md5") {
            Some(hex) if hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(Self::Md5(hex.to_ascii_lowercase()))
            }
            _ if is_empty(text) => Err(EMPTY),
            _ => Ok(Self::Plain(secret.clone())),
        }
    }
}

impl Verifier {
    /// True if it was made of the empty password, as earlier versions did of invisible characters. Slow on purpose, for SCRAM.
    pub fn is_of_empty(&self, user: &str) -> bool {
        match self {
            Self::Scram(verifier) => verifier.accepts(""),
            Self::Md5(hex) => *hex == md5_hex([b"", user.as_bytes()]),
            Self::Plain(_) => false,
        }
    }
}

/// True if a password setting is not the password itself.
pub fn is_verifier(secret: &SecretString) -> bool {
    matches!(Verifier::parse(secret), Ok(Verifier::Scram(_) | Verifier::Md5(_)))
}

/// True for a password of which SASLprep (RFC 4013) leaves nothing: it has only characters that are mapped to nothing, such
/// as a byte-order mark or a soft hyphen.
pub fn is_empty(password: &str) -> bool {
    stringprep::saslprep(password).map_or(password.is_empty(), |prepared| prepared.is_empty())
}

/// As PostgreSQL's `pg_saslprep` is used: what cannot be prepared, or of which nothing is left, is taken as it is.
fn prepared(password: &str) -> Cow<'_, str> {
    stringprep::saslprep(password).ok().filter(|text| !text.is_empty()).unwrap_or(Cow::Borrowed(password))
}

/// The MD5 of these parts, one behind the other, in lower-case hexadecimal.
pub fn md5_hex(parts: [&[u8]; 2]) -> String {
    let mut hash = Md5::new();
    parts.iter().for_each(|part| hash.update(part));
    wire::hex(&hash.finalize())
}

/// The answer to `AuthenticationMD5Password`: `md5` and the hash of the stored hash and the salt.
pub fn md5_response(stored: &str, salt: [u8; 4]) -> String {
    format!("md5{}", md5_hex([stored.as_bytes(), &salt]))
}

fn scram(rest: &str) -> Option<ScramVerifier> {
    let (parameters, keys) = rest.split_once('$')?;
    let (iterations, salt) = parameters.split_once(':')?;
    let (stored_key, server_key) = keys.split_once(':')?;
    let verifier = ScramVerifier {
        salt: BASE64.decode(salt).ok()?,
        iterations: iterations.parse().ok().filter(|i| (1..=MAX_ITERATIONS).contains(i))?,
        stored_key: BASE64.decode(stored_key).ok()?,
        server_key: BASE64.decode(server_key).ok()?,
    };
    (verifier.stored_key.len() == 32 && verifier.server_key.len() == 32).then_some(verifier)
}

impl ScramVerifier {
    /// Derives the verifier of a password. Slow on purpose: call it where blocking is allowed.
    pub fn derive(password: &str, salt: Vec<u8>, iterations: u32) -> Self {
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        let mut salted = zeroize::Zeroizing::new([0; 32]);
        let text = prepared(password);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, text.as_bytes(), &mut *salted);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*salted);
        let client_key = hmac::sign(&key, b"Client Key");
        Self {
            salt,
            iterations,
            stored_key: digest::digest(&digest::SHA256, client_key.as_ref()).as_ref().to_vec(),
            server_key: hmac::sign(&key, b"Server Key").as_ref().to_vec(),
        }
    }

    /// True if a password given in clear text is the one.
    pub fn accepts(&self, password: &str) -> bool {
        use subtle::ConstantTimeEq;
        let derived = Self::derive(password, self.salt.clone(), self.iterations);
        derived.stored_key.ct_eq(&self.stored_key).into()
    }
}

/// As PostgreSQL stores it: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
impl fmt::Display for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] =
            [&self.salt, &self.stored_key, &self.server_key].map(|b| BASE64.encode(b));
        write!(f, "{SCRAM_PREFIX}{}:{salt}${stored}:{server}", self.iterations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_verifier_reads_back_and_accepts_only_its_password() {
        let text = ScramVerifier::derive("pencil", vec![7; 16], 4096).to_string();
        let Ok(Verifier::Scram(read)) = Verifier::parse(&text.into()) else { panic!("not a verifier") };
        assert!(read.accepts("pencil"));
        assert!(!read.accepts("pencil "));
    }

    #[test]
    fn a_verifier_of_postgresql_is_understood() {
        // Made by PostgreSQL 15: alter role … password 'pencil'.
        let stored = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        let Ok(Verifier::Scram(read)) = Verifier::parse(&stored.to_owned().into()) else { panic!() };
        assert!(read.accepts("pencil"));
    }

    #[test]
    fn a_password_of_which_nothing_is_left_is_refused_and_never_the_empty_one() {
        for text in ["", "\u{feff}", "\u{ad}", "\u{200d}\u{2060}\u{feff}"] {
            assert!(is_empty(text), "{text:?}");
            let Err(why) = Verifier::parse(&text.to_owned().into()) else { panic!("{text:?}") };
            assert_eq!(why, EMPTY);
            assert!(!is_verifier(&text.to_owned().into()));
        }
        for text in [" ", "x", "\u{ad}x", "\u{7}", "\u{a0}"] {
            assert!(!is_empty(text), "{text:?}");
            assert!(matches!(Verifier::parse(&text.to_owned().into()), Ok(Verifier::Plain(_))), "{text:?}");
        }
        let soft_hyphen = ScramVerifier::derive("\u{ad}", vec![7; 16], 4096);
        assert!(soft_hyphen.accepts("\u{ad}"), "PostgreSQL takes the raw bytes");
        assert!(!soft_hyphen.accepts(""));
        let empty = Verifier::Scram(ScramVerifier::derive("", vec![7; 16], 4096));
        assert!(empty.is_of_empty("bob") && !Verifier::Scram(soft_hyphen).is_of_empty("bob"));
        assert!(Verifier::Md5(md5_hex([b"", b"bob"])).is_of_empty("bob"));
    }

    #[test]
    fn a_password_is_prepared_as_postgresql_prepares_it() {
        let verifier = ScramVerifier::derive("I\u{ad}X\u{a0}\u{2168}", vec![7; 16], 4096);
        assert!(verifier.accepts("IX IX"));
        assert!(!verifier.accepts("IX  IX"));
        // What SASLprep prohibits is taken as it is.
        let control = ScramVerifier::derive("a\u{7}\u{ad}", vec![7; 16], 4096);
        assert!(control.accepts("a\u{7}\u{ad}") && !control.accepts("a\u{7}"));
    }

    #[test]
    fn a_broken_verifier_is_refused() {
        assert!(Verifier::parse(&"SCRAM-SHA-256$4096:x".to_owned().into()).is_err());
        assert!(matches!(Verifier::parse(&"md5short".to_owned().into()), Ok(Verifier::Plain(_))));
    }
}
