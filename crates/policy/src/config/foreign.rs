//! The names that PgBouncer and libpq have for what has another name here, or needs no setting: whoever writes one of them is led
//! to ours, and never to one that only looks alike.

/// What to write in place of a key that another program has, in a table of the file (`[server]`, `[connections.NAME]`, …).
pub(super) fn help(table: &str, key: &str) -> Option<&'static str> {
    let kind = match table {
        "[server]" => SERVER,
        _ if table.starts_with("[connections.") => CONNECTION,
        _ if table.starts_with("[users.") => USER,
        "the file" => FILE,
        _ => return None,
    };
    kind.iter().find(|(names, _)| names.contains(&key)).map(|(_, help)| *help)
}

type Names = &'static [(&'static [&'static str], &'static str)];

const FILE: Names = &[
    (&["databases"], "write [connections.NAME] for each database"),
    (&["pgbouncer"], "write [server]"),
    (&["peers"], "there are no peers: leave it out"),
];

const SERVER: Names = &[
    (&["listen_addr", "listen_port"], "write listen = [\"ADDRESS:PORT\"]"),
    (&["unix_socket_dir"], "write listen = [\"ADDRESS:PORT\", \"unix:/run/pgusher\"]"),
    (&["auth_file"], "write [users.NAME] with `password` for each user"),
    (
        &["auth_query", "auth_user", "auth_dbname"],
        "not supported: list each user in [users.NAME], or create users through the management API",
    ),
    (
        &["auth_hba_file", "auth_ident_file", "auth_ldap_options"],
        "write auth_type and `password` in [users.NAME]",
    ),
    (&["reserve_pool"], "write reserve_pool_size"),
    (&["admin_users"], "write console = \"admin\" in [users.NAME]"),
    (&["stats_users"], "write console = \"stats\" in [users.NAME]"),
    (
        &["max_db_connections"],
        "write pool_size in [connections.NAME], or max_host_connections for all pools of one host",
    ),
    (&["max_db_client_connections"], "write max_client_connections in [connections.NAME]"),
    (&["max_user_connections"], "a pool serves all users: write pool_size in [connections.NAME]"),
    (&["query_timeout"], "write query_timeout in [connections.NAME]"),
    (
        &["ignore_startup_parameters"],
        "not needed: pgusher applies the client's startup parameters to its upstream connection",
    ),
    (
        &["track_extra_parameters"],
        "leave it out: every setting of a session is carried from connection to connection",
    ),
    (
        &["server_reset_query", "server_reset_query_always"],
        "leave it out: a connection is reset before another user gets it (`isolation` in [connections.NAME])",
    ),
    (
        &["server_check_query", "server_check_delay"],
        "leave it out: a connection that the server has closed is noticed without a query",
    ),
    (&["server_fast_close"], "write RECONNECT on the console: connections are replaced as they come back"),
    (&["client_tls_sslmode"], "write [server.tls] with mode = \"…\""),
    (&["client_tls_cert_file"], "write certificate = \"…\" in [server.tls]"),
    (&["client_tls_key_file"], "write key = \"…\" in [server.tls]"),
    (&["client_tls_ca_file"], "write client_ca = \"…\" in [server.tls]"),
    (&["server_tls_sslmode"], "write sslmode in [connections.NAME]"),
    (&["server_tls_ca_file"], "write sslrootcert in [connections.NAME]"),
    (&["server_tls_cert_file"], "write sslcert in [connections.NAME]"),
    (&["server_tls_key_file"], "write sslkey in [connections.NAME]"),
    (
        &["logfile", "syslog", "syslog_ident", "syslog_facility"],
        "leave it out: the log goes to standard error, for whoever starts pgusher",
    ),
    (&["verbose"], "write log_level = \"debug\""),
    (
        &["log_connections", "log_disconnections", "log_stats", "stats_period"],
        "leave it out: see log_level, SHOW STATS and metrics_listen",
    ),
    (
        &["pidfile", "user"],
        "leave it out: the service manager knows the process, and starts it as its user (dist/systemd)",
    ),
    (&["job_name", "service_name", "conffile"], "leave it out"),
    (&["tcp_keepalive"], "write tcp_keepidle = \"0s\" to switch it off"),
    (&["tcp_keepcnt", "tcp_keepintvl"], "write tcp_keepidle; the others are the system's"),
    (
        &["dns_max_ttl", "dns_nxdomain_ttl", "dns_zone_check_period", "resolv_conf"],
        "leave it out: a name is looked up each time a connection is opened",
    ),
    (&["peer_id"], "leave it out: there are no peers"),
    (&["watch"], "leave it out: RELOAD on the console, SIGHUP or `pgusher apply` puts a file in force"),
];

const CONNECTION: Names = &[
    (&["dbname"], "write database"),
    (&["user", "auth_user", "force_user"], "write username: pgusher logs in to a connection as one role"),
    (&["hostaddr"], "write host"),
    (&["statement_timeout"], "write query_timeout"),
    (&["max_db_connections"], "write pool_size"),
    (&["max_db_client_connections"], "write max_client_connections"),
    (&["reserve_pool"], "write reserve_pool_size"),
    (
        &["options", "client_encoding", "datestyle", "timezone"],
        "set it on the server: ALTER ROLE … SET or ALTER DATABASE … SET",
    ),
    (&["connect_query"], "set it on the server: ALTER ROLE … SET"),
    (
        &["auth_query", "auth_dbname"],
        "not supported: list each user in [users.NAME], or create users through the management API",
    ),
    (&["ssl"], "write sslmode"),
    (
        &["target_session_attrs", "load_balance_hosts"],
        "write the host that is meant: one connection is one server",
    ),
];

const USER: Names = &[
    (
        &["max_user_connections", "pool_size", "reserve_pool_size"],
        "a pool serves all users: write pool_size in [connections.NAME]",
    ),
    (&["max_user_client_connections"], "write max_client_connections"),
    (&["environment"], "write attributes = { environment = \"…\" }"),
    (&["verifier", "passwd", "hash"], "write password: it takes a SCRAM verifier, too"),
    (&["admin"], "write console = \"admin\""),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::{Connection, Server, User};

    #[test]
    fn no_name_of_ours_is_taken_for_another_programs() {
        let tables: [(&str, Vec<&str>); 3] = [
            ("[server]", Server::manual().2.iter().map(|option| option.name).collect()),
            ("[connections.NAME]", Connection::manual().2.iter().map(|option| option.name).collect()),
            ("[users.NAME]", User::manual().2.iter().map(|option| option.name).collect()),
        ];
        for (table, names) in &tables {
            for name in names {
                assert_eq!(help(table, name), None, "{name} in {table}");
            }
        }
    }

    /// What a help tells to write is there.
    #[test]
    fn what_is_to_be_written_in_place_of_another_programs_name_is_there() {
        let known: Vec<&str> = [Server::manual().2, Connection::manual().2, User::manual().2]
            .iter()
            .flatten()
            .map(|option| option.name)
            .collect();
        for (names, help) in [SERVER, CONNECTION, USER].concat() {
            let Some(said) = help.split("write ").nth(1) else { continue };
            let name: String = said.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let elsewhere = name.is_empty() || said.starts_with("mode") || said.starts_with("the host");
            let of_tls = ["certificate", "key", "client_ca"].contains(&name.as_str());
            assert!(elsewhere || of_tls || known.contains(&name.as_str()), "{names:?}: {help}");
        }
    }
}
