//! What a setting has to do with a prepared statement. A statement is parsed, rewritten and planned under settings, and what came of
//! that is used again under others: who share one must agree about every setting that can tell in it.
//!
//! The lists are of the settings that a client can change in `pg_settings` of PostgreSQL 15, by their categories, and by what
//! PostgreSQL's manual says that each is read for: those of the parser, of the planner, and of functions that the planner folds tell.
//! What is not listed, as one of another version, tells.

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bearing {
    /// None: it is read when a statement runs, or by the server about itself.
    #[default]
    None,
    /// A plan is another one, but does the same; or PostgreSQL itself plans anew when it has changed (`search_path`, `role`,
    /// `row_security`: `RevalidateCachedQuery` in plancache.c).
    Plan,
    /// It is in a plan, as a constant: in those of functions, too, which no name parts.
    Constants,
}

/// Whether an application's own settings can be in plans: only where the database has a function that reads settings and is declared
/// `IMMUTABLE`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Customs {
    /// They cannot.
    #[default]
    Unread,
    /// They can.
    Read,
}

/// Read when a statement runs: by `executor`, `commands`, `storage`, `access` and `tcop`, and by what writes the log.
const NONE: [&str; 27] = [
    "application_name",
    "client_connection_check_interval",
    "client_min_messages",
    "commit_delay",
    "commit_siblings",
    "compute_query_id",
    "deadlock_timeout",
    "default_table_access_method",
    "default_tablespace",
    "default_toast_compression",
    "exit_on_error",
    "gin_pending_list_limit",
    "in_hot_standby",
    "integer_datetimes",
    "lc_messages",
    "lock_timeout",
    "logical_decoding_work_mem",
    "maintenance_work_mem",
    "password_encryption",
    "scram_iterations",
    "server_encoding",
    "server_version",
    "statement_timeout",
    "synchronous_commit",
    "temp_buffers",
    "temp_tablespaces",
    "update_process_title",
];
const NONE_OF: [&str; 10] = [
    "debug_print_",
    "default_transaction_",
    "idle_",
    "log_",
    "tcp_",
    "trace_",
    "track_",
    "transaction_",
    "vacuum_",
    "wal_",
];

/// Read by the planner to choose among plans that do the same, or watched by PostgreSQL.
const PLAN: [&str; 17] = [
    "constraint_exclusion",
    "cursor_tuple_fraction",
    "default_statistics_target",
    "effective_cache_size",
    "effective_io_concurrency",
    "from_collapse_limit",
    "hash_mem_multiplier",
    "join_collapse_limit",
    "maintenance_io_concurrency",
    "plan_cache_mode",
    "random_page_cost",
    "recursive_worktable_factor",
    "role",
    "row_security",
    "search_path",
    "seq_page_cost",
    "work_mem",
];
const PLAN_OF: [&str; 7] = ["cpu_", "enable_", "geqo", "jit", "max_parallel_", "min_parallel_", "parallel_"];

impl Bearing {
    /// Of the setting of this name, in whatever case.
    pub fn of(name: &[u8], customs: Customs) -> Self {
        let is = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
        let begins = |prefix: &&str| {
            name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        let is_of = |names: &[&str], prefixes: &[&str]| names.iter().any(is) || prefixes.iter().any(begins);
        match name.contains(&b'.') {
            true if customs == Customs::Unread => Self::None,
            true => Self::Constants,
            false if is_of(&NONE, &NONE_OF) => Self::None,
            false if is_of(&PLAN, &PLAN_OF) => Self::Plan,
            false => Self::Constants,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_tells() {
        for (name, expected) in [
            ("TimeZone", Bearing::Constants),
            ("datestyle", Bearing::Constants),
            ("bytea_output", Bearing::Constants),
            ("session_authorization", Bearing::Constants),
            ("session_replication_role", Bearing::Constants),
            ("a_setting_of_postgresql_30", Bearing::Constants),
            ("Search_Path", Bearing::Plan),
            ("ENABLE_SEQSCAN", Bearing::Plan),
            ("role", Bearing::Plan),
            ("Application_Name", Bearing::None),
            ("log_min_duration_statement", Bearing::None),
            ("idle_in_transaction_session_timeout", Bearing::None),
            ("default_transaction_read_only", Bearing::None),
            ("", Bearing::Constants),
        ] {
            for customs in [Customs::Unread, Customs::Read] {
                assert_eq!(Bearing::of(name.as_bytes(), customs), expected, "{name}");
            }
        }
        assert_eq!(Bearing::of(b"app.tenant", Customs::Unread), Bearing::None);
        assert_eq!(Bearing::of(b"app.tenant", Customs::Read), Bearing::Constants);
    }
}
