//! What connections say of the databases that they lead to: two names of one database, two databases of one name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::Connection;
use super::super::file::{self, File};
use super::super::problems::Problems;
use crate::names::ConnectionName;

type Connections = BTreeMap<ConnectionName, Arc<Connection>>;

/// Compares all connections with those that are labelled `production`, and each base with what clients call it.
pub(super) fn check(file: &File, connections: &Connections, problems: &mut Problems) {
    labels(file, connections, problems);
    names(file, connections, problems);
    aliases(file, connections, problems);
    sizes(file, connections, problems);
}

/// A database that is `production` under one name is so under all; and with one role on one server, what is labelled
/// otherwise is not kept apart.
fn labels(file: &File, connections: &Connections, problems: &mut Problems) {
    let (mut places, mut servers) = (BTreeMap::new(), BTreeMap::new());
    for production in connections.values().filter(|c| c.production) {
        places.entry(production.target.place()).or_insert(production);
        servers.entry((production.target.server(), &production.target.username)).or_insert(production);
    }
    for (name, written) in &file.connections.0 {
        let Some(connection) = connections.get(name.as_str()).filter(|c| !c.production) else { continue };
        let target = &connection.target;
        if let Some(production) = places.get(&target.place()) {
            let span = written.database.span().or(written.host.span());
            let message = format!(
                "`{name}` is the production database of `{}` under another name, and has not `production = true`",
                production.name,
                name = **name
            );
            let labelled = file.connections.find(production.name.as_str());
            let is_meant = *written.allow_production_fallback
                || labelled.is_some_and(|labelled| *labelled.allow_production_fallback);
            match is_meant {
                true => problems.warning(span, message),
                false => problems.error(span, message),
            }
            .help("set production = true here too, or correct host, port or database");
        } else if let Some(production) = servers.get(&(target.server(), &target.username)) {
            let message = format!(
                "`{}` and the production database of `{}` are on one server and log in as one role: users of \
                 `{0}` can see production's statements, end its sessions and change settings of its role",
                **name, production.name
            );
            problems.warning(written.username.span(), message).help(
                "log in as a role of its own for each, and better use a server of its own (docs/security.md)",
            );
        }
    }
}

/// An alias that is what an environment, or its database, is called, is taken for that environment, and is the base all the same.
fn aliases(file: &File, connections: &Connections, problems: &mut Problems) {
    for (name, base) in &file.connections.0 {
        let own = connections.get(name.as_str());
        let mut taken: Vec<(&str, &str)> = Vec::new();
        for environment in base.environments.iter() {
            let Some(other) = connections.get(environment.connection.as_str()) else { continue };
            taken.push((other.environment.as_str(), "is the name of an environment"));
            if own.is_none_or(|own| own.target.database != other.target.database) {
                taken.push((&other.target.database, "is the database of an environment"));
            }
        }
        for alias in base.aliases.iter() {
            if let Some((_, what)) = taken.iter().find(|(taken, _)| *taken == alias.as_str()) {
                let message = format!(
                    "the alias `{}` of `{}` {what}, and leads wherever the user is routed",
                    **alias, **name
                );
                problems.warning(alias.span(), message).help(
                    "take another name: who connects to this one may believe to be there (options=-c pgusher.environment=… asks for it)",
                );
            }
        }
    }
}

/// What nobody can have meant: nobody to serve, nothing to serve from, and more open connections than there may be.
fn sizes(file: &File, connections: &Connections, problems: &mut Problems) {
    if file.connections.0.is_empty() {
        problems
            .warning(None, "there is no connection: no client can be served")
            .help("add [connections.NAME]");
    }
    if file.users.0.is_empty() {
        problems.warning(None, "there is no user: nobody can log in").help("add [users.NAME]");
    }
    for (name, written) in &file.connections.0 {
        let Some(connection) = connections.get(name.as_str()) else { continue };
        let (least, most) = (connection.min_pool_size, connection.pool_size);
        if least > most {
            let message = format!(
                "`{}` keeps at least {least} connections open and may have {most}: it keeps {most}",
                **name
            );
            problems
                .warning(written.min_pool_size.span().or(written.pool_size.span()), message)
                .help("lower min_pool_size, or raise pool_size");
        }
    }
}

/// Many tools write the name they connected with before each table, and PostgreSQL knows itself by its own name alone.
fn names(file: &File, connections: &Connections, problems: &mut Problems) {
    const HELP: &str = "tools that qualify names by the database they connected to (dbt, pgAdmin, catalog queries) need \
        the same name everywhere: ALTER DATABASE … RENAME TO …, or name the connection so";
    let database = |written: &file::Connection| written.database.span();
    for (name, base) in &file.connections.0 {
        let Some(connection) = connections.get(name.as_str()).filter(|c| c.base.is_some()) else { continue };
        let own = &connection.target.database;
        if own != name.as_str() {
            let message = format!("clients ask for `{}`, and the database there is named `{own}`", **name);
            problems.warning(database(base), message).help(HELP);
        }
        for environment in base.environments.iter() {
            let Some(other) = connections.get(environment.connection.as_str()) else { continue };
            let there = &other.target.database;
            if there != own && there != name.as_str() {
                let span = file.connections.find(&environment.connection).and_then(database);
                let message = format!(
                    "clients ask for `{}`, and in `{}` the database is named `{there}`",
                    name.as_str(),
                    environment.connection.as_str()
                );
                problems.warning(span.or(environment.connection.span()), message).help(HELP);
            }
        }
    }
}
