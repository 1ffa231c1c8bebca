//! Turns a file into a checked configuration: references, what may stand only once, near misses.

mod management;
mod permissions;
mod targets;

pub use management::{MIN_TOKEN, hash_of_token};

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::file::{self, AuditFailure, AuthType, File, ListenAddress, OnUnmatched, SslMode};
use super::problems::Problems;
use super::read::{FilePath, Named, Setting, Strings};
use super::{
    Base, CONSOLE_DATABASES, Config, Connection, Environment, Host, Machine, Reading, Surroundings, Target,
    UpstreamScram, UpstreamTls, User, near_miss,
};
use secrecy::ExposeSecret;

use aws_lc_rs::digest::{SHA256, digest};

use uuid::Uuid;

use crate::names::{
    AttributeName, ConnectionName, DatabaseName, EnvironmentName, GroupName, UserName, id_of,
};
use crate::secret::{Secret, Source};
use crate::verifier::{EMPTY, Verifier, is_empty};

type Attributes = BTreeMap<AttributeName, Vec<String>>;

/// Checks what one setting alone cannot show. The result is to be used only if no error was recorded.
pub(super) fn check(path: &Path, file: &File, around: Surroundings<'_>, problems: &mut Problems) -> Config {
    if let Some(machine) = around.machine {
        permissions::check(path, file, machine, problems);
    }
    check_server(file, problems);
    check_environments(file, problems);
    check_attribute_names(file, problems);
    let connections = connections(file, around, problems);
    check_ids(file, &connections, problems);
    targets::check(file, &connections, problems);
    check_isolation(file, problems);
    Config {
        path: path.to_owned(),
        certificates: match around.machine {
            Some(machine) => certificates(path, file, &connections, machine),
            None => BTreeMap::new(),
        },
        connections,
        databases: databases(file, problems),
        attribute_defaults: attribute_defaults(file, problems),
        groups: groups(file, problems),
        users: users(file, around, problems),
        management: management::check(path, file, around, problems),
        state_directory: around.state_directory.map(Path::to_owned),
        source: secrecy::SecretString::default(),
        server: file.server.clone().into_inner(),
    }
}

/// Users of a connection that is shared without a reset should be as one.
fn check_isolation(file: &File, problems: &mut Problems) {
    let facts = |user: &file::User| {
        let groups: Vec<&str> = user.groups.iter().map(|group| group.as_str()).collect();
        let values = |(name, values): &(Setting<String>, Strings)| ((**name).clone(), plain(&values.0));
        let mut attributes: Vec<_> = user.attributes.0.iter().map(values).collect();
        attributes.sort();
        (groups.join("\n"), attributes)
    };
    let mut all = file.users.0.iter().map(|(_, user)| facts(user));
    let Some(first) = all.next() else { return };
    if all.all(|other| other == first) {
        return;
    }
    for (_, connection) in file.connections.0.iter().filter(|(_, c)| *c.isolation == file::Isolation::Shared)
    {
        problems
            .warning(
                connection.isolation.span(),
                "users whose groups or attributes differ share these connections as they are",
            )
            .help("each may change what the others' statements mean; the default, isolation = \"user\", resets a connection in between");
    }
}

/// What the files of certificates and keys hold now; those that cannot be read are told of where they are used.
fn certificates(
    path: &Path,
    file: &File,
    connections: &BTreeMap<ConnectionName, Arc<Connection>>,
    machine: &dyn Machine,
) -> BTreeMap<String, Vec<u8>> {
    let mut files = Vec::new();
    if let Some(tls) = &*file.server.tls {
        let folder = path.parent().unwrap_or(Path::new(""));
        files.push(("certificate of [server.tls]".to_owned(), folder.join(&*tls.certificate)));
        files.push(("key of [server.tls]".to_owned(), folder.join(&*tls.key)));
        let ca = tls.client_ca.as_ref().map(|ca| folder.join(ca));
        files.extend(ca.map(|ca| ("client_ca of [server.tls]".to_owned(), ca)));
        let crl = tls.client_crl.as_ref().map(|crl| folder.join(crl));
        files.extend(crl.map(|crl| ("client_crl of [server.tls]".to_owned(), crl)));
    }
    for (name, connection) in connections {
        let tls = &connection.tls;
        files.extend(tls.root_cert.clone().map(|ca| (format!("sslrootcert of connection {name}"), ca)));
        files.extend(tls.revoked.clone().map(|crl| (format!("sslcrl of connection {name}"), crl)));
        if let Some((certificate, key)) = tls.identity.clone() {
            files.push((format!("sslcert of connection {name}"), certificate));
            files.push((format!("sslkey of connection {name}"), key));
        }
    }
    let digest = |bytes: &[u8]| digest(&SHA256, bytes).as_ref().to_vec();
    files.into_iter().filter_map(|(what, path)| Some((what, digest(&machine.small_file(&path)?)))).collect()
}

fn check_server(file: &File, problems: &mut Problems) {
    let server = &file.server;
    if server.listen.is_empty() {
        problems.error(server.listen.span(), "`listen` is empty");
    }
    if *server.audit_failure == AuditFailure::Refuse && server.audit_file.is_none() {
        problems
            .error(
                server.audit_failure.span(),
                "`audit_failure = \"refuse\"` without an `audit_file` refuses nobody",
            )
            .help("set audit_file");
    }
    let Some(tls) = &*server.tls else { return };
    let verifies = matches!(*tls.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    if verifies && tls.client_ca.is_none() {
        problems.error(tls.mode.span(), format!("mode {:?} needs `client_ca`", tls.mode.word()));
    }
    if tls.client_crl.is_some() && tls.client_ca.is_none() {
        problems
            .error(tls.client_crl.span(), "`client_crl` needs `client_ca`")
            .help("set client_ca to the authorities whose list this is");
    }
}

/// What holds between connections: who is whose environment, and what may stand only once.
fn check_environments(file: &File, problems: &mut Problems) {
    let names: Vec<&str> = file.connections.names().collect();
    let mut owner: BTreeMap<&str, &str> = BTreeMap::new();
    for (base_name, base) in &file.connections.0 {
        check_values(base, problems);
        for environment in base.environments.iter() {
            let connection = &environment.connection;
            let target = file.connections.find(connection);
            if target.is_none() {
                let message = format!("there is no connection `{}`", **connection);
                problems.error(connection.span(), message).nearest(connection, names.iter().copied());
            } else if **connection == **base_name {
                problems.error(connection.span(), "a connection cannot be its own environment");
            } else if target.is_some_and(|t| !t.environments.is_empty()) {
                let message = format!("`{}` has environments itself, so it cannot be one", **connection);
                problems.error(connection.span(), message);
            }
            if let Some(other) = owner.insert(connection.as_str(), base_name.as_str()) {
                let message = format!("`{}` is already an environment of `{other}`", **connection);
                problems.error(connection.span(), message).conflict();
            }
            if environment.values.is_empty() {
                problems
                    .warning(environment.span(), "an environment without values: nobody is sent there yet");
            }
        }
        check_names(base, problems);
        if !base.environments.is_empty() && base.user_attribute.is_none() {
            let message = "environments without `user_attribute`: everybody goes to the base";
            problems.warning(base.environments.span(), message);
        }
        let falls_back = *base.on_unmatched == OnUnmatched::Base && base.user_attribute.is_some();
        if *base.production && falls_back && !*base.allow_production_fallback {
            problems
                .error(
                    base.production.span(),
                    "users that match nothing would reach this production database",
                )
                .help("set on_unmatched = \"reject\", or allow_production_fallback = true if that is meant");
        }
    }
}

/// A value stands at most once among a base's environments and defaults.
fn check_values(base: &file::Connection, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    let environments = base.environments.iter().flat_map(|e| e.values.iter());
    for value in base.default_values.iter().chain(environments) {
        if !seen.insert(value.as_str()) {
            let message = format!("User attribute value \"{}\" is already in use", **value);
            problems.error(value.span(), message).conflict();
        }
    }
}

/// Names of environments are unique within a base, the base's own included.
fn check_names(base: &file::Connection, problems: &mut Problems) {
    let mut seen = BTreeSet::from([base_environment(base)]);
    for environment in base.environments.iter() {
        let name = environment_name(environment);
        if !seen.insert(name.to_owned()) {
            let span = environment.name.span().or(environment.connection.span());
            let message = format!("the environment name \"{name}\" is already in use for this base");
            problems.error(span, message).conflict();
        }
    }
}

fn base_environment(base: &file::Connection) -> String {
    let first_value = || base.default_values.first().map(|v| v.as_str().to_owned());
    (*base.environment_name).clone().or_else(first_value).unwrap_or_else(|| "base".into())
}

fn environment_name(environment: &file::Environment) -> &str {
    environment.name.as_deref().unwrap_or(&environment.connection)
}

/// Attribute names are known if they are declared or if a connection picks by them.
fn check_attribute_names(file: &File, problems: &mut Problems) {
    let mut known: BTreeSet<&str> = file.attributes.names().collect();
    known.extend(file.connections.0.iter().filter_map(|(_, c)| c.user_attribute.as_deref()));
    let users = file.users.0.iter().flat_map(|(_, u)| &u.attributes.0);
    let groups = file.groups.0.iter().flat_map(|(_, g)| &g.attributes.0);
    for (name, _) in users.chain(groups) {
        if !known.contains(name.as_str()) {
            let problem = problems.error(name.span(), format!("there is no attribute `{}`", **name));
            problem.nearest(name, known.iter().copied());
            if problem.help.is_none() {
                problem.help(format!("declare it: [attributes.{}]", **name));
            }
        }
    }
}

fn connections(
    file: &File,
    around: Surroundings<'_>,
    problems: &mut Problems,
) -> BTreeMap<ConnectionName, Arc<Connection>> {
    let mut environment_of = BTreeMap::new();
    for (_, base) in &file.connections.0 {
        for environment in base.environments.iter() {
            environment_of.insert(environment.connection.as_str(), environment_name(environment));
        }
    }
    let build = |(name, c): &(Setting<String>, file::Connection)| {
        let environment = environment_of.get(name.as_str()).copied();
        Some((
            ConnectionName::from(name.as_str()),
            Arc::new(connection(name, c, environment, (file, around), problems)?),
        ))
    };
    file.connections.0.iter().filter_map(build).collect()
}

fn connection(
    name: &str,
    c: &file::Connection,
    environment: Option<&str>,
    (file, around): (&File, Surroundings<'_>),
    problems: &mut Problems,
) -> Option<Connection> {
    let folder = problems.folder().to_owned();
    let resolve = |path: &Option<FilePath>| path.as_ref().map(|p| folder.join(p));
    let identity = match (resolve(&c.sslcert), resolve(&c.sslkey)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            problems.error(c.sslcert.span().or(c.sslkey.span()), "`sslcert` and `sslkey` go together");
            None
        }
    };
    if *c.sslnegotiation == file::SslNegotiation::Direct
        && matches!(*c.sslmode, SslMode::Disable | SslMode::Allow | SslMode::Prefer)
    {
        let message = "sslnegotiation = \"direct\" needs sslmode = \"require\" or stronger";
        problems.error(c.sslnegotiation.span(), message);
    }
    let server = &file.server;
    let host = Host::of(&c.host);
    let tls = UpstreamTls {
        mode: *c.sslmode,
        negotiation: *c.sslnegotiation,
        root_cert: resolve(&c.sslrootcert),
        revoked: resolve(&c.sslcrl),
        identity,
    };
    if tls.revoked.is_some() && !tls.verifies() {
        problems
            .error(c.sslcrl.span(), "`sslcrl` is used only where the certificate is verified")
            .help("set sslmode = \"verify-full\" or \"verify-ca\"");
    }
    Some(Connection {
        name: name.into(),
        id: connection_id(name, c, problems),
        methods: match &*c.require_auth {
            Some(said) => said.0.clone(),
            None => tls.usual_methods(&host),
        },
        target: Target {
            host,
            port: u16::try_from(*c.port).ok()?,
            database: (*c.database).clone().unwrap_or_else(|| name.to_owned()),
            username: (*c.username).clone(),
        },
        password: upstream_password(&c.password, around, problems).map(Arc::new),
        tls,
        scram: UpstreamScram { channel_binding: *c.channel_binding, min_iterations: *c.scram_min_iterations },
        search_path: search_path(&c.include_schemas),
        query_timeout: *c.query_timeout,
        connect_timeout: c
            .connect_timeout
            .filter(|t| *t > Duration::ZERO)
            .unwrap_or(*server.server_connect_timeout),
        pool_mode: c.pool_mode.unwrap_or(*server.pool_mode),
        isolation: *c.isolation,
        pool_size: c.pool_size.unwrap_or(*server.default_pool_size).max(1),
        min_pool_size: c.min_pool_size.unwrap_or(*server.min_pool_size),
        reserve_pool_size: c.reserve_pool_size.unwrap_or(*server.reserve_pool_size),
        max_pinned: c.max_pinned.unwrap_or(*server.max_pinned),
        max_client_connections: *c.max_client_connections,
        production: *c.production,
        allow_production_fallback: *c.allow_production_fallback,
        environment: environment.map_or_else(|| base_environment(c).into(), EnvironmentName::from),
        base: environment.is_none().then(|| base(c)),
    })
}

fn connection_id(name: &str, c: &file::Connection, problems: &mut Problems) -> Uuid {
    let Some(id) = &*c.id else { return id_of("connection", name) };
    Uuid::parse_str(id).unwrap_or_else(|_| {
        problems.error(c.id.span(), format!("`{id}` is not a UUID")).help("leave the key out");
        Uuid::nil()
    })
}

/// What the API calls things must be unique.
fn check_ids(file: &File, connections: &BTreeMap<ConnectionName, Arc<Connection>>, problems: &mut Problems) {
    let mut seen = BTreeMap::new();
    for (name, connection) in connections {
        if let Some(other) = seen.insert(connection.id, name) {
            let span = |name: &ConnectionName| file.connections.find(name.as_str()).and_then(|c| c.id.span());
            let message = format!("connection `{name}` has the id of connection `{other}`");
            problems.error(span(name).or(span(other)), message);
        }
    }
}

fn base(c: &file::Connection) -> Base {
    let environment = |e: &Setting<file::Environment>| Environment {
        connection: e.connection.as_str().into(),
        name: environment_name(e).into(),
        values: plain(&e.values),
    };
    Base {
        attribute: c.user_attribute.as_deref().map(AttributeName::from),
        default_values: plain(&c.default_values),
        environments: c.environments.iter().map(environment).collect(),
        on_unmatched: *c.on_unmatched,
    }
}

fn plain(values: &[Setting<String>]) -> Vec<String> {
    values.iter().map(|v| (**v).clone()).collect()
}

/// `include_schemas` as a `search_path`, each name quoted (`$user` keeps its meaning, as in PostgreSQL).
fn search_path(schemas: &[Setting<String>]) -> Option<String> {
    let quoted = schemas.iter().map(|s| format!("\"{}\"", s.replace('"', "\"\"")));
    (!schemas.is_empty()).then(|| quoted.collect::<Vec<_>>().join(", "))
}

/// `Some(None)` if there is none, or it is left alone; `None` if it cannot be read, which is then a problem.
fn read_secret(
    source: &Setting<Option<Source>>,
    around: Surroundings<'_>,
    problems: &mut Problems,
) -> Option<Option<Secret>> {
    let Some(inner) = &**source else { return Some(None) };
    match around.secret(inner) {
        Ok(Reading::Value(value)) => Some(Some(Secret::new(inner.clone(), value))),
        Ok(Reading::Left) => Some(None),
        Ok(Reading::NotInForce) => {
            problems
                .warning(source.span(), "this command is not in force, so it was not run")
                .help("`pgusher check` runs it where you are");
            Some(None)
        }
        Err(error) => {
            problems.error(source.span(), error.to_string());
            None
        }
    }
}

/// An upstream's password, which cannot be empty: libpq would not send it either.
fn upstream_password(
    source: &Setting<Option<Source>>,
    around: Surroundings<'_>,
    problems: &mut Problems,
) -> Option<Secret> {
    let secret = read_secret(source, around, problems)??;
    if is_empty(secret.value().expose_secret()) {
        problems.error(source.span(), EMPTY);
        return None;
    }
    Some(secret)
}

/// The names that clients may ask for.
fn databases(file: &File, problems: &mut Problems) -> BTreeMap<DatabaseName, ConnectionName> {
    let environments: BTreeSet<&str> = file
        .connections
        .0
        .iter()
        .flat_map(|(_, c)| c.environments.iter().map(|e| e.connection.as_str()))
        .collect();
    let mut databases = BTreeMap::new();
    let all: BTreeSet<&str> = file.connections.names().collect();
    for (name, connection) in &file.connections.0 {
        if CONSOLE_DATABASES.contains(&name.as_str()) {
            problems.error(name.span(), format!("`{}` is the name of the console", **name));
        }
        let is_environment = environments.contains(name.as_str());
        if !is_environment {
            databases.insert(DatabaseName::from(name.as_str()), ConnectionName::from(name.as_str()));
        }
        for alias in connection.aliases.iter() {
            if is_environment {
                problems.error(
                    alias.span(),
                    "aliases are not allowed on an environment: clients cannot ask for it by name",
                );
            }
            let taken = all.contains(alias.as_str())
                || CONSOLE_DATABASES.contains(&alias.as_str())
                || databases.contains_key(alias.as_str());
            if taken {
                problems.error(alias.span(), format!("the name `{}` is already in use", **alias)).conflict();
            }
            databases.insert(DatabaseName::from(alias.as_str()), ConnectionName::from(name.as_str()));
        }
    }
    databases
}

fn attribute_defaults(file: &File, problems: &mut Problems) -> Attributes {
    let default = |(name, attribute): &(Setting<String>, file::Attribute)| {
        let values = attribute.default.as_ref()?;
        Some((
            AttributeName::from(name.as_str()),
            attribute_values(name, values, attribute.default.span(), problems),
        ))
    };
    file.attributes.0.iter().filter_map(default).collect()
}

fn attributes(named: &Named<Strings>, problems: &mut Problems) -> Attributes {
    let values = |(name, values): &(Setting<String>, Strings)| {
        (AttributeName::from(name.as_str()), attribute_values(name.as_str(), values, name.span(), problems))
    };
    named.0.iter().map(values).collect()
}

fn attribute_values(
    name: &str,
    values: &Strings,
    place: Option<std::ops::Range<usize>>,
    problems: &mut Problems,
) -> Vec<String> {
    if values.0.is_empty() {
        problems.error(place, format!("`{name}` has no values")).help("leave the key out");
    }
    plain(&values.0)
}

fn groups(file: &File, problems: &mut Problems) -> BTreeMap<GroupName, Attributes> {
    let groups = file.groups.0.iter();
    groups.map(|(name, g)| (GroupName::from(name.as_str()), attributes(&g.attributes, problems))).collect()
}

fn users(file: &File, around: Surroundings<'_>, problems: &mut Problems) -> BTreeMap<UserName, Arc<User>> {
    let mut users = BTreeMap::new();
    for (name, u) in &file.users.0 {
        let known = |group: &str| file.groups.find(group).is_some();
        for group in u.groups.iter().filter(|g| !known(g)) {
            let problem = problems.error(group.span(), format!("there is no group `{}`", **group));
            problem.nearest(group, file.groups.names());
        }
        let password = read_secret(&u.password, around, problems).unwrap_or(None);
        check_auth((name, u), password.as_ref(), file, problems);
        let user = User {
            name: name.as_str().into(),
            auth_type: auth_type_of(u, file),
            password,
            groups: u.groups.iter().map(|g| GroupName::from(g.as_str())).collect(),
            attributes: attributes(&u.attributes, problems),
            pool_mode: *u.pool_mode,
            max_client_connections: u
                .max_client_connections
                .unwrap_or(*file.server.max_user_client_connections),
            console: *u.console,
            disabled: *u.disabled,
        };
        users.insert(user.name.clone(), Arc::new(user));
    }
    users
}

/// A user's own, or that of all.
fn auth_type_of(user: &file::User, file: &File) -> AuthType {
    user.auth_type.unwrap_or(*file.server.auth_type)
}

/// Each method needs something to check against.
fn check_auth(
    (name, u): (&Setting<String>, &file::User),
    password: Option<&Secret>,
    file: &File,
    problems: &mut Problems,
) {
    let auth_type = auth_type_of(u, file);
    let needs_password = matches!(auth_type, AuthType::ScramSha256 | AuthType::Md5 | AuthType::Password);
    let given = u.password.is_some();
    if needs_password && !given {
        problems
            .error(name.span(), format!("user `{}` has no password", **name))
            .help("set `password`; `pgusher hash-password` makes a verifier");
    }
    if let Some(secret) = password
        && needs_password
        && let Err(why) =
            Verifier::parse(&secret.value()).and_then(|verifier| check_verifier(&verifier, auth_type))
    {
        problems.error(u.password.span(), why);
    }
    let has_client_ca = file.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if auth_type == AuthType::Cert && !has_client_ca {
        let span = u.auth_type.span().or(name.span());
        problems.error(span, "auth_type \"cert\" needs `client_ca` in [server.tls]");
    }
    let is_reached = |address: &Setting<ListenAddress>| matches!(&**address, ListenAddress::Tcp(a) if !a.ip().is_loopback());
    if auth_type == AuthType::Trust && file.server.listen.iter().any(is_reached) {
        let span = u.auth_type.span().or(file.server.auth_type.span()).or(name.span());
        problems
            .warning(
                span,
                format!("whoever reaches this address may log in as `{}`, without a proof", **name),
            )
            .help("listen on 127.0.0.1 or a unix socket only, or set another auth_type");
    }
}

/// Whether a password setting can serve a method.
fn check_verifier(verifier: &Verifier, method: AuthType) -> Result<(), &'static str> {
    match (method, verifier) {
        (AuthType::ScramSha256, Verifier::Md5(_)) => Err(
            "an md5 verifier cannot serve scram-sha-256: store a SCRAM verifier (`pgusher hash-password`)",
        ),
        (AuthType::Md5, Verifier::Scram(_)) => {
            Err("a SCRAM verifier cannot serve md5: use auth_type = \"scram-sha-256\"")
        }
        _ => Ok(()),
    }
}

impl Base {
    /// All values that lead somewhere.
    pub fn known_values(&self) -> impl Iterator<Item = &String> {
        self.default_values.iter().chain(self.environments.iter().flat_map(|e| e.values.iter()))
    }

    /// The known value that this unknown one probably means.
    pub fn near_miss(&self, value: &str) -> Option<&str> {
        if self.known_values().any(|known| known == value) {
            return None;
        }
        self.known_values().find(|known| near_miss(value, known)).map(String::as_str)
    }
}
