//! A password goes only where it was meant to go: whoever has a token of the API may set passwords, and not have those that
//! are there sent to another host.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use toml_edit::{DocumentMut, Item, TableLike};

use super::answer::Problem;
use super::edit;
use crate::proxy::{Change, Configuration};
use policy::config::file::{ChannelBinding, SslMode, SslNegotiation};
use policy::config::{Host, UpstreamTls};
use policy::names::id_of;

/// Refuses a change by which a password would go to another host or port than until now, or less well guarded, unless the
/// password came with the change. A reference (`{ file = … }`) stays bound to the host that it was written for: where its
/// connection leads elsewhere, what came with the change is kept as a secret of its own.
///
/// # Errors
/// 409, with what to do.
pub(super) fn check(configuration: &Configuration, change: &mut Change<'_>) -> Result<(), Problem> {
    let before = known(configuration, change)?;
    let mut own = Vec::new();
    for (name, connection) in connections(&change.document) {
        let Some(password) = connection.get("password") else { continue };
        let (said, guard) = (meaning(password), Guard::of(connection));
        let is_bound = match change.goes_back {
            // Mostly it is as it was: then nothing else needs to be looked at.
            _ if before[0].is_as_it_was(name, &said, &guard) => true,
            false => leads_where_it_led(&before[..1], &said, &guard),
            true => led_there_last(&before, name, &said, &guard),
        };
        match change.given.get(name) {
            _ if is_bound => {}
            Some(secret) if password.is_table_like() && before[0].passwords.contains_key(&said) => {
                own.push((name.to_owned(), secret.clone()));
            }
            Some(_) => {}
            None => return Err(refused(name, change)),
        }
    }
    own.into_iter().try_for_each(|(name, secret)| keep_by_itself(change, &name, &secret))
}

fn refused(name: &str, change: &Change<'_>) -> Problem {
    let what_to_do = match change.goes_back {
        false => {
            "send the password in the same call (passwordUnencrypted; in a whole configuration, password), or edit \
             the file where pgusher runs"
        }
        true => {
            "change this connection first, together with its password, or go back where pgusher runs (ROLLBACK \
             CONFIG on the console, or the file)"
        }
    };
    Problem::conflict(format!(
        "connection {name}: its password was given for another host or port, for stronger TLS, or for stricter proofs (require_auth): {what_to_do}"
    ))
}

/// What is in force, and, for going back, what was before, the newest first.
fn known(configuration: &Configuration, change: &Change<'_>) -> Result<Vec<Before>, Problem> {
    let now = change.generation.config.source.clone();
    let earlier = configuration.history().into_iter().rev().filter(|_| change.goes_back);
    let earlier = earlier.filter_map(|known| configuration.source(known.number));
    let sources = std::iter::once(now).chain(earlier);
    let documents: Result<Vec<Before>, toml_edit::TomlError> =
        sources.map(|source| Ok(Before::of(&source.expose_secret().parse()?))).collect();
    documents.map_err(|_| Problem::conflict("the configuration in force cannot be edited"))
}

fn connections(document: &DocumentMut) -> impl Iterator<Item = (&str, &dyn TableLike)> {
    let tables = document.get("connections").and_then(Item::as_table_like);
    let tables = tables.into_iter().flat_map(|tables| tables.iter());
    tables.filter_map(|(name, item)| Some((name, item.as_table_like()?)))
}

/// What a value says, however it is written.
fn meaning(item: &Item) -> String {
    edit::meaning(item).to_string()
}

/// A configuration that is or was in force, with what is asked of it at hand: it may have thousands of connections.
struct Before {
    /// The password and the guard of each connection that has one.
    names: HashMap<String, (String, Guard)>,
    /// Where each password leads.
    passwords: HashMap<String, HashSet<Guard>>,
}

impl Before {
    fn of(document: &DocumentMut) -> Self {
        let mut before = Self { names: HashMap::new(), passwords: HashMap::new() };
        for (name, connection) in connections(document) {
            let Some(password) = connection.get("password") else { continue };
            let (said, guard) = (meaning(password), Guard::of(connection));
            before.passwords.entry(said.clone()).or_default().insert(guard.clone());
            before.names.insert(name.to_owned(), (said, guard));
        }
        before
    }

    fn is_as_it_was(&self, name: &str, password: &str, guard: &Guard) -> bool {
        self.names.get(name).is_some_and(|(known, old)| known == password && guard.is_as_safe_as(old))
    }

    /// Whether this password is sent there already; `None` if it is not known.
    fn leads_there(&self, password: &str, guard: &Guard) -> Option<bool> {
        let known = self.passwords.get(password)?;
        Some(known.contains(guard) || known.iter().any(|old| guard.is_as_safe_as(old)))
    }
}

/// The same password goes there already.
fn leads_where_it_led(before: &[Before], password: &str, guard: &Guard) -> bool {
    before.iter().find_map(|known| known.leads_there(password, guard)) == Some(true)
}

/// The last time that the password was in use it went there, and so did the last password of that connection.
fn led_there_last(before: &[Before], name: &str, password: &str, guard: &Guard) -> bool {
    let of_name = before.iter().find_map(|known| Some(guard.is_as_safe_as(&known.names.get(name)?.1)));
    leads_where_it_led(before, password, guard) && of_name != Some(false)
}

/// Where a password goes, and what guards it on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Guard {
    place: (String, i64),
    tls: usize,
    root: String,
    revoked: String,
    /// The proofs that the server may ask for.
    methods: BTreeSet<String>,
    binding: usize,
    iterations: i64,
}

impl Guard {
    fn of(connection: &dyn TableLike) -> Self {
        let said = |key: &str| connection.get(key).map(meaning).unwrap_or_default();
        let word = |key: &str, words: &[&str], default: &str| {
            rank(words, connection.get(key).and_then(Item::as_str).unwrap_or(default))
        };
        let number = |key: &str, default| connection.get(key).and_then(Item::as_integer).unwrap_or(default);
        Self {
            place: (said("host"), number("port", 5432)),
            tls: word("sslmode", SslMode::WORDS, "prefer"),
            root: said("sslrootcert"),
            revoked: said("sslcrl"),
            methods: connection.get("require_auth").map_or_else(|| usual_methods(connection), methods),
            binding: word("channel_binding", ChannelBinding::WORDS, "prefer"),
            iterations: number("scram_min_iterations", 4096),
        }
    }

    /// Whether what is sent to the other could as well be sent here: the same place, and no weaker guard. Whom an authority
    /// vouches for may ask for the password itself, where the file does not say otherwise: so whoever names one, also one
    /// that is not asked yet, says who may have it.
    fn is_as_safe_as(&self, old: &Self) -> bool {
        self.place == old.place
            && self.tls >= old.tls
            && self.binding >= old.binding
            && self.iterations >= old.iterations
            && self.methods.is_subset(&old.methods)
            && self.root == old.root
            && (self.revoked == old.revoked || old.revoked.is_empty())
    }
}

/// The proofs that a server may ask for where `require_auth` is not there.
fn usual_methods(connection: &dyn TableLike) -> BTreeSet<String> {
    let text = |key: &str| connection.get(key).and_then(Item::as_str);
    let tls = UpstreamTls {
        mode: text("sslmode").map_or(Some(SslMode::Prefer), SslMode::of_word).unwrap_or(SslMode::Disable),
        negotiation: SslNegotiation::Postgres,
        root_cert: text("sslrootcert").map(PathBuf::from),
        revoked: None,
        identity: None,
    };
    let methods = tls.usual_methods(&Host::of(text("host").unwrap_or_default()));
    methods.into_iter().map(|method| method.word().to_owned()).collect()
}

/// In either form that the file has for them.
fn methods(item: &Item) -> BTreeSet<String> {
    let texts: Vec<&str> = match (item.as_str(), item.as_array()) {
        (Some(text), _) => text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect(),
        (None, Some(list)) => list.iter().filter_map(toml_edit::Value::as_str).collect(),
        (None, None) => Vec::new(),
    };
    texts.into_iter().map(str::to_owned).collect()
}

/// The weakest has 0; so has what is no word, which is refused later.
fn rank(words: &[&str], word: &str) -> usize {
    words.iter().position(|known| *known == word).unwrap_or(0)
}

fn keep_by_itself(change: &mut Change<'_>, name: &str, secret: &SecretString) -> Result<(), Problem> {
    let value = change.secret(&id_of("connection", name).to_string(), secret).map_err(Problem::ours)?;
    let connection = edit::needed(&mut change.document, "connections", name)?;
    // It may be a table of its own, or dotted keys.
    connection.remove("password");
    edit::set(connection, "password", Some(value));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(password: &str, rest: &str) -> DocumentMut {
        let text = format!("[connections.c]\nhost = \"db\"\nusername = \"u\"\npassword = {password}\n{rest}");
        text.parse().unwrap()
    }

    fn only(document: &DocumentMut) -> (String, Guard) {
        let (_, connection) = connections(document).next().unwrap();
        (meaning(connection.get("password").unwrap()), Guard::of(connection))
    }

    #[test]
    fn a_server_may_ask_for_no_proof_that_it_could_not_ask_for() {
        let guard = |require_auth: &str| only(&document("\"pw\"", require_auth)).1;
        for (old, new, expected) in [
            ("", "", true),
            ("require_auth = \"md5, none\"", "require_auth = [\"none\", \"md5\", \"none\"]", true),
            ("require_auth = \"md5, none\"", "require_auth = \"md5\"", true),
            ("require_auth = \"md5\"", "require_auth = \"md5, none\"", false),
            ("require_auth = \"none\"", "require_auth = \"scram-sha-256\"", false),
            ("require_auth = \"scram-sha-256\"", "", false),
            ("", "require_auth = \"none\"", true),
            ("", "require_auth = \"password\"", false),
        ] {
            assert_eq!(guard(new).is_as_safe_as(&guard(old)), expected, "{old} -> {new}");
        }
    }

    #[test]
    fn a_password_stays_where_it_is_and_as_well_guarded() {
        let before = document("{ file = \"c.pw\" }", "sslmode = \"require\"\n");
        let goes = |text: &str| {
            let after: DocumentMut = text.parse().unwrap();
            let (password, guard) = only(&after);
            leads_where_it_led(&[Before::of(&before)], &password, &guard)
        };
        let same = "host = \"db\"\npassword.file = \"c.pw\"\n";
        for (more, expected) in [
            ("sslmode = \"require\"", true),
            ("sslmode = \"require\"\nport = 5432\ndatabase = \"x\"\nusername = \"y\"", true),
            // Whom an authority vouches for may ask for the password itself, unless the file says otherwise.
            ("sslmode = \"verify-full\"", false),
            ("sslmode = \"verify-full\"\nrequire_auth = \"scram-sha-256, none\"", true),
            ("sslmode = \"verify-full\"\nsslrootcert = \"ca.pem\"\nsslcrl = \"crl.pem\"", false),
            ("sslmode = \"require\"\nchannel_binding = \"require\"", true),
            ("", false),
            ("sslmode = \"verify-ca\"\nsslrootcert = \"theirs.pem\"", false),
            ("sslmode = \"require\"\nsslrootcert = \"theirs.pem\"", false),
            ("sslmode = \"prefer\"\nsslrootcert = \"theirs.pem\"", false),
            ("sslmode = \"disable\"", false),
            ("sslmode = \"require\"\nport = 5433", false),
            ("sslmode = \"require\"\nchannel_binding = \"disable\"", false),
            ("sslmode = \"require\"\nscram_min_iterations = 1", false),
            ("sslmode = \"require\"\nrequire_auth = \"password\"", false),
            ("sslmode = \"require\"\nrequire_auth = \"none, md5\"", false),
            ("sslmode = \"require\"\nrequire_auth = [\"none\", \"scram-sha-256\"]", true),
            ("sslmode = \"require\"\nrequire_auth = \"scram-sha-256\"", true),
        ] {
            assert_eq!(goes(&format!("[connections.other]\n{same}{more}\n")), expected, "{more}");
        }
        let elsewhere =
            "[connections.c]\nhost = \"evil\"\npassword = { file = \"c.pw\" }\nsslmode = \"require\"\n";
        assert!(!goes(elsewhere));
        // Another password of the same host, though it may be the same text.
        assert!(!goes(
            "[connections.c]\nhost = \"db\"\npassword = { file = \"d.pw\" }\nsslmode = \"require\"\n"
        ));
    }

    /// Also where nothing is verified yet: the next step would be to verify.
    #[test]
    fn an_authority_is_not_named_before_it_is_asked() {
        let before = document("\"pw\"", "sslmode = \"prefer\"\n");
        let (password, guard) =
            only(&document("\"pw\"", "sslmode = \"prefer\"\nsslrootcert = \"theirs.pem\"\n"));
        assert!(!leads_where_it_led(&[Before::of(&before)], &password, &guard));
    }

    #[test]
    fn a_verified_certificate_is_not_traded_for_another_authority() {
        let before = document(
            "\"pw\"",
            "sslmode = \"verify-full\"\nsslrootcert = \"ours.pem\"\nsslcrl = \"crl.pem\"\n",
        );
        for (rest, expected) in [
            ("sslmode = \"verify-full\"\nsslrootcert = \"ours.pem\"\nsslcrl = \"crl.pem\"\n", true),
            ("sslmode = \"verify-full\"\nsslrootcert = \"other.pem\"\nsslcrl = \"crl.pem\"\n", false),
            ("sslmode = \"verify-full\"\nsslcrl = \"crl.pem\"\n", false),
            ("sslmode = \"verify-full\"\nsslrootcert = \"ours.pem\"\n", false),
            ("sslmode = \"verify-ca\"\nsslrootcert = \"ours.pem\"\nsslcrl = \"crl.pem\"\n", false),
        ] {
            let after = document("\"pw\"", rest);
            let (password, guard) = only(&after);
            let goes = leads_where_it_led(&[Before::of(&before)], &password, &guard);
            assert_eq!(goes, expected, "{rest}");
        }
    }

    #[test]
    fn going_back_takes_a_password_only_where_it_was_last() {
        let of =
            |texts: &[&str]| texts.iter().map(|text| Before::of(&text.parse().unwrap())).collect::<Vec<_>>();
        let (first, second) =
            ("host = \"a\"\npassword = { file = \"1\" }\n", "host = \"b\"\npassword = { file = \"1\" }\n");
        let rotated = "host = \"a\"\npassword = { file = \"2\" }\n";
        let moved = "host = \"b\"\npassword = { file = \"2\" }\n";
        let c = |text: &str| format!("[connections.c]\n{text}");
        let d = |text: &str| format!("[connections.d]\n{text}");
        let target: DocumentMut = c(first).parse().unwrap();
        let (password, guard) = only(&target);
        for (what, before, expected) in [
            ("nothing has changed", vec![c(first)], true),
            ("it was deleted", vec![String::new(), c(first)], true),
            ("it was renamed", vec![d(first), c(first)], true),
            ("its password was changed", vec![c(rotated), c(first)], true),
            ("its host was changed", vec![c(second), c(first)], false),
            ("its host, and it was deleted", vec![String::new(), c(second), c(first)], false),
            ("its host, and it was renamed", vec![d(second), c(first)], false),
            ("its host, and another has its name", vec![d(second) + &c(rotated), c(first)], false),
            ("its host and its password", vec![c(moved), c(first)], false),
            ("its host and its password, and both again", vec![c(rotated), c(moved), c(first)], true),
        ] {
            let before: Vec<_> = before.iter().map(String::as_str).collect();
            assert_eq!(led_there_last(&of(&before), "c", &password, &guard), expected, "{what}");
        }
    }
}
