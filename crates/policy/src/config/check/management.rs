//! `[management]`: who may use the API, and that it is not open to everybody.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use secrecy::{ExposeSecret, SecretString};

use super::super::file::{File, Token as Written};
use super::super::problems::Problems;
use super::super::read::Setting;
use super::super::{Management, Reading, Surroundings, Token};
use super::Source;

/// The shortest token: a shorter one can be guessed.
pub const MIN_TOKEN: usize = 16;
/// How the hash of a token begins.
const HASHED: &str = "sha256:";

/// What `[management]` says.
pub(super) fn check(
    path: &Path,
    file: &File,
    around: Surroundings<'_>,
    problems: &mut Problems,
) -> Management {
    let management = &file.management;
    let mut tokens: Vec<Token> = Vec::new();
    for (name, written) in &management.tokens.0 {
        let secret = match around.secret(&written.token) {
            Ok(Reading::Value(secret)) => secret,
            Ok(Reading::Left | Reading::NotInForce) => continue,
            Err(error) => {
                problems.error(written.token.span(), error.to_string());
                continue;
            }
        };
        let Some(digest) = hash(written, &secret, problems) else { continue };
        if let Some(other) = tokens.iter().find(|other| other.digest == digest) {
            problems.error(written.token.span(), format!("this is the token of `{}`, too", other.name));
        }
        tokens.push(Token { name: (**name).clone(), role: *written.role, digest });
    }
    if let Some(address) = *management.listen {
        let is_open = !address.ip().is_loopback();
        let place = management.listen.span();
        if is_open && management.tokens.0.is_empty() {
            problems
                .error(place, "the API would listen for other machines, and there is no token")
                .help("add [management.tokens.NAME], or listen on 127.0.0.1");
        } else if management.tokens.0.is_empty() {
            problems
                .warning(place, "there is no token: nobody can use the API")
                .help("add [management.tokens.NAME]");
        }
        if is_open && file.server.tls.is_none() {
            problems
                .warning(
                    management.listen.span(),
                    "tokens and passwords would go over the network in the clear",
                )
                .help("set [server.tls]");
        }
    }
    Management {
        listen: *management.listen,
        tokens,
        requests_per_minute: *management.requests_per_minute,
        max_failed_requests: *management.max_failed_requests,
        secrets: *management.secrets,
        secrets_folder: folder(path, management.secrets_folder.as_deref()),
        said_folder: management.secrets_folder.as_deref().map(str::to_owned),
    }
}

fn folder(path: &Path, said: Option<&str>) -> PathBuf {
    let beside = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    said.map_or_else(|| beside.join(format!("{name}.secrets")), |said| beside.join(said))
}

/// Whether the token itself stands in the file.
pub(super) fn is_plain(token: &Setting<Source>) -> bool {
    matches!(&**token, Source::Plain(text) if !text.expose_secret().starts_with(HASHED))
}

/// What the file has in place of a token: `sha256:` and its hash.
pub fn hash_of_token(token: &str) -> String {
    format!("{HASHED}{}", wire::hex(digest(&SHA256, token.as_bytes()).as_ref()))
}

/// The hash of a token; `None` after a problem was recorded.
fn hash(written: &Written, secret: &SecretString, problems: &mut Problems) -> Option<[u8; 32]> {
    let span = written.token.span();
    let text = secret.expose_secret();
    let Some(hash) = text.strip_prefix(HASHED) else {
        if text.len() < MIN_TOKEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
            let message = format!("a token has at least {MIN_TOKEN} characters, all of them visible ASCII");
            problems.error(span, message).help("`pgusher hash-token` makes one");
            return None;
        }
        return digest(&SHA256, text.as_bytes()).as_ref().try_into().ok();
    };
    let bytes: Option<Vec<u8>> =
        (0..hash.len()).step_by(2).map(|at| u8::from_str_radix(hash.get(at..at + 2)?, 16).ok()).collect();
    let bytes = bytes.filter(|_| hash.bytes().all(|b| b.is_ascii_hexdigit()));
    let digest = bytes.and_then(|bytes| bytes.try_into().ok());
    if digest.is_none() {
        problems.error(span, "`sha256:` and 64 hexadecimal digits are the hash of a token");
    }
    digest
}
