//! What passwords are checked against, made before a configuration takes effect: no login does any of it, so none is slower
//! than another, be it the first of its user or of a user who does not exist.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use secrecy::ExposeSecret;

use super::key::Key;
use policy::config::file::AuthType;
use policy::config::{Config, User};
use policy::names::UserName;
use policy::verifier::{SCRAM_ITERATIONS, ScramVerifier, Verifier, md5_hex};

/// What can be seen of a SCRAM verifier before a proof: its iteration count, and how many bytes its salt has.
type Shape = (u32, usize);

/// The shapes of a method's users: how many have each.
#[derive(Debug, Default)]
struct Counts(BTreeMap<Shape, u32>);

const SALT: usize = 16;
/// That of the verifiers that are made here.
const OURS: Shape = (SCRAM_ITERATIONS, SALT);

impl Counts {
    /// That of a name that has none: as likely the one or the other as the file has them, and the same at each login, also
    /// when others come or go (weighted rendezvous hashing). `None` if the file has none at all.
    fn draw(&self, key: &Key, name: &str) -> Option<Shape> {
        let score = |(shape, users): (&Shape, &u32)| {
            let (iterations, salt) = (shape.0.to_be_bytes(), shape.1.to_be_bytes());
            // What salts of the usual length draw is what it was before there were others.
            let parts = [b"iterations", name.as_bytes(), &iterations, &salt];
            let parts = if shape.1 == SALT { &parts[..3] } else { &parts[..] };
            let [a, b, c, d, ..] = key.sign(parts);
            let even = (f64::from(u32::from_be_bytes([a, b, c, d])) + 0.5) / (f64::from(u32::MAX) + 1.0);
            (-f64::from(*users) / even.ln(), *shape)
        };
        self.0.iter().map(score).max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, shape)| shape)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    verifiers: HashMap<UserName, Verifier>,
    scram: Counts,
    clear: Counts,
}

impl Logins {
    /// Those of a configuration; what has not changed since the old one is taken from there. Slow: a plain password under
    /// SCRAM takes about a millisecond of one core.
    pub(super) fn of(key: &Key, config: &Config, old: Option<(&Config, &Self)>) -> Self {
        let mut logins = Self::default();
        let mut plain = Vec::new();
        for user in config.users.values() {
            let Some(verifier) = parse(user) else { continue };
            let counts = match user.auth_type {
                AuthType::ScramSha256 => &mut logins.scram.0,
                AuthType::Password => &mut logins.clear.0,
                _ => &mut BTreeMap::new(),
            };
            match verifier {
                Verifier::Scram(ref scram) => {
                    *counts.entry((scram.iterations, scram.salt.len())).or_default() += 1;
                }
                Verifier::Plain(_) if user.auth_type == AuthType::ScramSha256 => {
                    *counts.entry(OURS).or_default() += 1;
                    match old.and_then(|(config, logins)| logins.unchanged(config, user)) {
                        Some(known) => drop(logins.verifiers.insert(user.name.clone(), known)),
                        None => plain.push(user.clone()),
                    }
                    continue;
                }
                _ => {}
            }
            logins.verifiers.insert(user.name.clone(), verifier);
        }
        logins.verifiers.extend(derive_all(key, &plain));
        logins
    }

    /// What is known of a user whose password is what it was.
    fn unchanged(&self, config: &Config, user: &User) -> Option<Verifier> {
        let before = config.users.get(&user.name)?;
        let is_same = before.auth_type == user.auth_type && before.password == user.password;
        self.verifiers.get(&user.name).filter(|known| is_same && matches!(known, Verifier::Scram(_))).cloned()
    }

    /// What a password of this user is checked against.
    pub(super) fn verifier(&self, name: &str) -> Option<&Verifier> {
        self.verifiers.get(name)
    }

    /// What anybody under SCRAM is shown who has no verifier: nobody's password fits it.
    pub(super) fn scram_mock(&self, key: &Key, name: &str) -> ScramVerifier {
        mock(key, name, self.scram.draw(key, name).unwrap_or(OURS))
    }

    /// What a clear-text password of somebody without a SCRAM verifier is checked against, so that it takes as long;
    /// `None` if nobody has one.
    pub(super) fn clear_mock(&self, key: &Key, name: &str) -> Option<ScramVerifier> {
        Some(mock(key, name, self.clear.draw(key, name)?))
    }
}

/// A user's password setting; an MD5 of plain passwords where that is what will be compared.
fn parse(user: &User) -> Option<Verifier> {
    let verifier = Verifier::parse(&user.password.as_ref()?.value()).ok()?;
    Some(match (user.auth_type, verifier) {
        (AuthType::Md5, Verifier::Plain(password)) => {
            Verifier::Md5(md5_hex([password.expose_secret().as_bytes(), user.name.as_str().as_bytes()]))
        }
        (_, verifier) => verifier,
    })
}

/// The same at each login of this name.
fn salt(key: &Key, name: &str, length: usize) -> Vec<u8> {
    let first = key.sign(&[b"salt", name.as_bytes()]);
    let more = (1_u32..).flat_map(|n| key.sign(&[b"salt", name.as_bytes(), &n.to_be_bytes()]));
    first.into_iter().chain(more).take(length).collect()
}

fn mock(key: &Key, name: &str, (iterations, length): Shape) -> ScramVerifier {
    let nobodys = key.sign(&[b"mock", name.as_bytes()]).to_vec();
    ScramVerifier {
        salt: salt(key, name, length),
        iterations,
        stored_key: nobodys.clone(),
        server_key: nobodys,
    }
}

/// With as many threads as there are cores.
fn derive_all(key: &Key, users: &[Arc<User>]) -> Vec<(UserName, Verifier)> {
    let derive = |user: &Arc<User>| {
        let password = user.password.as_ref()?.value();
        let salt = salt(key, user.name.as_str(), SALT);
        let verifier = ScramVerifier::derive(password.expose_secret(), salt, SCRAM_ITERATIONS);
        Some((user.name.clone(), Verifier::Scram(verifier)))
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let work = |part: &[Arc<User>]| part.iter().filter_map(derive).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let parts = users.chunks(users.len().div_ceil(cores).max(1));
        let threads: Vec<_> = parts.map(|part| scope.spawn(|| work(part))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        let path = std::env::temp_dir().join(format!("pgusher-logins-{}.key", std::process::id()));
        std::fs::write(&path, "0123456789abcdef0123456789abcdef").unwrap();
        Key::of(&path).unwrap()
    }

    #[test]
    fn iterations_of_unknown_names_are_spread_as_those_of_the_file_and_stay() {
        let key = key();
        let counts = Counts([((4096, 16), 900), ((10_000, 12), 100)].into());
        let names: Vec<String> = (0..2_000).map(|n| format!("ghost{n}")).collect();
        let drawn = |counts: &Counts| names.iter().map(|name| counts.draw(&key, name)).collect::<Vec<_>>();
        let one = drawn(&counts);
        assert_eq!(one, drawn(&counts));
        let many = one.iter().filter(|i| **i == Some((10_000, 12))).count();
        assert!((120..280).contains(&many), "{many} of 2000 have what 10 % of the file have");
        // One more user changes hardly anything for anybody else.
        let other = drawn(&Counts([((4096, 16), 900), ((10_000, 12), 101)].into()));
        assert!(one.iter().zip(&other).filter(|(one, other)| one != other).count() < 20);
        assert_eq!(Counts::default().draw(&key, "ghost"), None);
        // And a salt is as long as those who have that count have theirs.
        assert_eq!(mock(&key, "ghost", (10_000, 12)).salt.len(), 12);
        assert_eq!(mock(&key, "ghost", (10_000, 70)).salt.len(), 70);
    }

    #[test]
    fn what_is_derived_is_taken_over_while_the_password_stays() {
        let key = key();
        let config = |password: &str| {
            let text = format!(
                "[connections.a]\nhost = \"h\"\nusername = \"u\"\n[users.alice]\npassword = \"{password}\"\n\
                 [users.five]\nauth_type = \"md5\"\npassword = \"x\"\n"
            );
            Config::draft(
                std::path::Path::new("pgusher.toml"),
                &text,
                policy::config::Surroundings::default(),
            )
            .unwrap()
            .config
        };
        let (one, same, other) = (config("first"), config("first"), config("second"));
        let old = Logins::of(&key, &one, None);
        let accepts = |logins: &Logins, password: &str| match logins.verifier("alice") {
            Some(Verifier::Scram(scram)) => scram.accepts(password),
            other => panic!("{other:?}"),
        };
        assert!(accepts(&old, "first"));
        assert!(accepts(&Logins::of(&key, &same, Some((&one, &old))), "first"));
        let new = Logins::of(&key, &other, Some((&one, &old)));
        assert!(accepts(&new, "second") && !accepts(&new, "first"));
        assert!(matches!(new.verifier("five"), Some(Verifier::Md5(_))));
        // Before and after somebody gets a plain password, the salt is the same.
        let Some(Verifier::Scram(alice)) = old.verifier("alice") else { panic!() };
        assert_eq!(alice.salt, Logins::default().scram_mock(&key, "alice").salt);
    }
}
