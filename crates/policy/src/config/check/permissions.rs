//! Who else on this machine may read secrets, or change the configuration.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::Machine;
use super::super::file::File;
use super::super::problems::Problems;
use super::super::read::Setting;
use super::Source;
use super::management;
use crate::verifier::is_verifier;

/// Warns of all that others may read or write and should not.
pub(super) fn check(path: &Path, file: &File, machine: &dyn Machine, problems: &mut Problems) {
    plain_secrets(path, file, machine, problems);
    secret_files(file, machine, problems);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder_of = |name: &str| {
        let path = folder.join(name);
        path.parent().map_or_else(|| folder.to_owned(), Path::to_owned)
    };
    let server = &file.server;
    let mut places = vec![
        ("this file", path.to_owned()),
        ("the folder of this file", folder.to_owned()),
        ("the folder of the grants", folder_of(&server.grants_file)),
    ];
    places.extend(server.auth_key_file.as_ref().map(|key| ("the folder of the key", folder_of(key))));
    places.extend(
        file.management.secrets_folder.as_ref().map(|name| ("the secrets_folder", folder.join(name))),
    );
    let mut told = BTreeSet::new();
    for (what, place) in places {
        if machine.is_open_to_others(&place) && told.insert(place.clone()) {
            let message =
                format!("others than its owner may write to {what}: who does decides who may do what");
            problems.warning(None, message).help(format!("chmod go-w {}", place.display()));
        }
    }
}

/// A plain secret in a file that everybody can read.
fn plain_secrets(path: &Path, file: &File, machine: &dyn Machine, problems: &mut Problems) {
    let connections = file.connections.0.iter().map(|(_, c)| &c.password);
    let users = file.users.0.iter().map(|(_, u)| &u.password);
    let plain = connections.chain(users).find(|p| match &***p {
        Some(Source::Plain(text)) => !is_verifier(text),
        _ => false,
    });
    let tokens = file.management.tokens.0.iter().map(|(_, t)| &t.token);
    let token = tokens.into_iter().find(|token| management::is_plain(token));
    let span = plain.map(Setting::span).or(token.map(Setting::span));
    if let Some(span) = span
        && machine.is_readable_by_everybody(path)
    {
        let message = "this file holds a plain-text secret, and everybody on this machine can read the file";
        problems.warning(span, message).help(format!("chmod o-r {}", path.display()));
    }
}

/// Secrets that have a file of their own.
fn secret_files(file: &File, machine: &dyn Machine, problems: &mut Problems) {
    let connections = file.connections.0.iter().map(|(_, c)| &c.password);
    let users = file.users.0.iter().map(|(_, u)| &u.password);
    let passwords = connections.chain(users).filter_map(|p| Some(((**p).as_ref()?, p.span())));
    let tokens = file.management.tokens.0.iter().map(|(_, t)| (&*t.token, t.token.span()));
    for (source, span) in passwords.chain(tokens) {
        let Source::File(secret) = source else { continue };
        if !machine.is_private(secret) {
            let message = "others than its owner may read this secret file";
            problems.warning(span, message).help(format!("chmod 600 {}", secret.display()));
        }
    }
}
