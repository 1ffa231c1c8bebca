//! Isolation between users: whatever one of them does to a connection, the next one finds it as if it were fresh. Nothing here rests
//! on what pgusher sees in a statement: most of it is hidden from whoever reads SQL.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::console::{OPERATORS, cell, console};
use super::fake::unharmed;
use super::house::{Pgusher, Postgres, Random, eventually, size};
use super::state::done;
use super::wire::{Message, Raw, bind, execute, message, parse, query, startup, sync};

const VERSION: u32 = 0x0003_0000;

// ── the server ──

/// The role owns a schema and is no superuser. What it may define there runs any text, called by something else than a function's
/// name: an operator, a cast, a domain, an aggregate, a partition's key.
const ROLES: &str = "CREATE ROLE plain2 LOGIN; CREATE ROLE helper2; GRANT helper2 TO plain2; \
    CREATE SCHEMA plain2 AUTHORIZATION plain2";
const DEFINITIONS: &str = "SET ROLE plain2; SET search_path = plain2;
CREATE SEQUENCE numbers;
CREATE FUNCTION run(command text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE command; RETURN 1; END $$;
CREATE FUNCTION run_beside(command text, other int) RETURNS int LANGUAGE plpgsql
    AS $$ BEGIN RETURN plain2.run(command); END $$;
CREATE OPERATOR @@@ (LEFTARG = text, RIGHTARG = int, FUNCTION = run_beside);
CREATE VIEW viewed AS SELECT 'set my.viewed = ''of ann''' OPERATOR(plain2.@@@) 1 AS ran;
CREATE TYPE boxed AS (command text);
CREATE FUNCTION run_boxed(boxed) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN plain2.run(($1).command); END $$;
CREATE CAST (boxed AS int) WITH FUNCTION run_boxed(boxed);
CREATE DOMAIN checked AS text CHECK (plain2.run(VALUE) = 1);
CREATE TABLE with_domain (command checked);
CREATE FUNCTION run_next(state int, command text) RETURNS int LANGUAGE plpgsql
    AS $$ BEGIN RETURN plain2.run(command); END $$;
CREATE AGGREGATE aggregated(text) (SFUNC = run_next, STYPE = int, INITCOND = 0);
CREATE FUNCTION key_of(command text) RETURNS int IMMUTABLE LANGUAGE plpgsql
    AS $$ BEGIN EXECUTE command; RETURN 1; END $$;
CREATE TABLE parted (command text) PARTITION BY LIST (plain2.key_of(command));
CREATE TABLE parted_1 PARTITION OF parted DEFAULT;";

/// A server for these tests alone: what its settings are is compared.
fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Postgres::start("isolation");
        server.sql("isolation", ROLES);
        server.sql("isolation", DEFINITIONS);
        server
    })
}

/// Ann and Ben share a pool of this size. The database is not asked for what its functions do: whatever is hidden stays so.
fn config(pool_size: usize, connection: &str) -> String {
    let port = server().port;
    format!(
        "[server]\nlisten = [\"127.0.0.1:@PORT@\"]\nthreads = 2\nlog_level = \"debug\"\n\
         catalog_interval = \"0s\"\n\n\
         [connections.warehouse]\nhost = \"127.0.0.1\"\nport = {port}\ndatabase = \"isolation\"\nusername = \"plain2\"\n\
         query_timeout = \"5s\"\npool_size = {pool_size}\n{connection}\n{USERS}{OPERATORS}"
    )
}

pub(crate) const USERS: &str = "\n[users.ann]\nauth_type = \"trust\"\n\n[users.ben]\nauth_type = \"trust\"\n";

fn login(pgusher: &Pgusher, user: &str) -> Raw {
    Raw::login(pgusher.address(), user)
}

fn direct() -> Raw {
    let address: SocketAddr = ([127, 0, 0, 1], server().port).into();
    Raw::login_with(address, VERSION, &[("user", "plain2"), ("database", "isolation")])
}

fn pid(raw: &mut Raw) -> String {
    raw.value("SELECT 0 + pg_backend_pid()")
}

fn is_there(pid: &str) -> bool {
    server().sql("isolation", &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")) == "1"
}

// ── what a connection shows of those who had it before ──

/// What she seeds the random numbers with.
const SEEDS: [&str; 2] = ["0.25", "1"];

/// Each kind of state, and how all of it is asked for. (What a library that was loaded brings with it stays: its own settings,
/// at their defaults.)
const KINDS: [(&str, &str); 9] = [
    (
        "settings",
        "(SELECT string_agg(name || ' = ' || coalesce(setting, ''), E'\\n' ORDER BY name COLLATE \"C\") \
           FROM pg_settings WHERE name !~ '^plpgsql[.]')",
    ),
    (
        "custom settings",
        "concat_ws(' ', coalesce(current_setting('my.ann', true), ''), coalesce(current_setting('my.viewed', true), ''), \
           coalesce(current_setting('plain2.x', true), ''), coalesce(current_setting('other.y', true), ''))",
    ),
    ("role", "concat_ws(' ', current_user, session_user, current_setting('role'))"),
    ("search_path", "current_setting('search_path')"),
    ("locks", "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"),
    ("cursors", "(SELECT string_agg(name, ',') FROM pg_cursors)"),
    ("channels", "(SELECT string_agg(c, ',') FROM pg_listening_channels() AS c)"),
    (
        "temporary objects",
        "(SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()) \
         + (SELECT count(*) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()) \
         + (SELECT count(*) FROM pg_type WHERE typnamespace = pg_my_temp_schema()) \
         + (SELECT count(*) FROM pg_operator WHERE oprnamespace = pg_my_temp_schema())",
    ),
    // Not by its name: the connection would be given the session's own for that.
    (
        "statements",
        "(SELECT xpath('//statement/text()', query_to_xml('SELECT statement FROM pg_pre' || 'pared_statements', true, \
         false, ''))::text)",
    ),
];

/// All that is seen of a connection, kind by kind.
#[derive(Debug, Clone)]
struct Digest {
    kinds: Vec<(&'static str, String)>,
    pid: String,
    random: String,
}

impl Digest {
    /// Of the connection that somebody is lent now, in one transaction.
    fn of(raw: &mut Raw) -> Self {
        let expressions: Vec<&str> = KINDS.iter().map(|(_, expression)| *expression).collect();
        let all = format!("SELECT {}, pg_backend_pid(), random()", expressions.join(", "));
        // What Ann listens to would come in front of an answer, or behind one.
        let asked = [query("BEGIN"), query(&all), query("SELECT lastval()"), query("ROLLBACK")].concat();
        raw.send(&asked);
        let answers: Vec<Vec<Message>> = (0..4).map(|_| raw.until_ready()).collect();
        let row = answers[1].iter().find(|m| m.tag == 'D').unwrap_or_else(|| panic!("{answers:?}"));
        let mut columns = row.columns();
        let random = columns.pop().unwrap();
        let pid = columns.pop().unwrap();
        let mut kinds: Vec<_> = KINDS.iter().map(|(kind, _)| *kind).zip(columns).collect();
        let last = answers[2].iter().find(|m| m.tag == 'D' || m.tag == 'E').unwrap();
        kinds.push(("sequence", if last.tag == 'E' { last.field('C') } else { "a value".to_owned() }));
        let heard = answers.iter().flatten().filter(|m| m.tag == 'A').count();
        kinds.push(("notifications", heard.to_string()));
        let foreseen = if foreseen().contains(&random) { "foreseen" } else { "" };
        kinds.push(("random", foreseen.to_owned()));
        Self { kinds, pid, random }
    }

    fn kind(&self, kind: &str) -> &str {
        &self.kinds.iter().find(|(name, _)| *name == kind).unwrap_or_else(|| panic!("no {kind}")).1
    }

    /// What there is here and not in another: kind and lines.
    fn differences(&self, clean: &Self) -> Vec<String> {
        let mut all = Vec::new();
        for (kind, value) in &self.kinds {
            let expected: HashSet<&str> = clean.kind(kind).lines().collect();
            if value != clean.kind(kind) {
                let lines: Vec<&str> = value.lines().filter(|line| !expected.contains(line)).collect();
                all.push(format!("{kind}: {:?}, clean {:?}", lines.join(" | "), expected.len()));
            }
        }
        all
    }
}

/// What `random()` says after the seeds that Ann takes.
fn foreseen() -> &'static HashSet<String> {
    static FORESEEN: OnceLock<HashSet<String>> = OnceLock::new();
    FORESEEN.get_or_init(|| {
        let mut raw = direct();
        let mut all = HashSet::new();
        for seed in SEEDS {
            done(&mut raw, &format!("SELECT setseed({seed})"));
            let answer = done(&mut raw, "SELECT random() FROM generate_series(1, 5000)");
            all.extend(answer.iter().filter(|m| m.tag == 'D').map(|m| m.columns().remove(0)));
        }
        all
    })
}

/// What a connection shows that nobody has had before.
fn clean(pool_size: usize) -> Digest {
    let pgusher = Pgusher::start(&config(pool_size, ""));
    Digest::of(&mut login(&pgusher, "ben"))
}

// ── what leaves something ──

/// Commands, each with the kind of state that it leaves.
const LEAVES: [(&str, &str); 27] = [
    ("settings", "set work_mem = '9MB'"),
    ("settings", "set timezone = 'Asia/Tokyo'"),
    ("settings", "set datestyle = 'German'"),
    ("settings", "set client_encoding = 'LATIN1'"),
    ("settings", "set statement_timeout = '4s'"),
    ("settings", "set plan_cache_mode = force_generic_plan"),
    ("settings", "set standard_conforming_strings = off"),
    ("settings", "set session characteristics as transaction read only"),
    ("settings", "select set_config('default_transaction_isolation', 'serializable', false)"),
    ("search_path", "set search_path = evil, public"),
    ("search_path", "select set_config('search_path', 'evil', false)"),
    ("custom settings", "set my.ann = 'of ann'"),
    (
        "custom settings",
        "select set_config('plain2.x', 'of ann', false), set_config('other.y', 'of ann', false)",
    ),
    ("role", "set role helper2"),
    ("role", "select set_config('role', 'helper2', false)"),
    ("locks", "select pg_advisory_lock_shared(41)"),
    ("locks", "select pg_try_advisory_lock(42, pg_backend_pid())"),
    ("cursors", "declare ann_cursor cursor with hold for select 'of ann'"),
    ("channels", "listen ann_channel"),
    ("temporary objects", "create temp table whoami as select 'of ann' as name"),
    ("temporary objects", "create temp view ann_view as select 1 as a"),
    ("temporary objects", "create function pg_temp.ann() returns int language sql as 'select 1'"),
    ("temporary objects", "create temp sequence ann_sequence"),
    ("temporary objects", "create type pg_temp.ann_type as (a int)"),
    ("statements", "prepare ann_statement as select 'of ann'"),
    ("sequence", "select nextval('plain2.numbers')"),
    ("random", "select setseed(0.25)"),
];

/// Ways to run a command without saying so: any one, and (from the sixth on) one that begins with `select`.
const WAYS: [&str; 9] = [
    "SELECT '%' OPERATOR(plain2.@@@) 1",
    "SELECT (ROW('%')::plain2.boxed)::int",
    "SELECT '%'::plain2.checked",
    "SELECT plain2.aggregated('%')",
    "INSERT INTO plain2.with_domain VALUES ('%')",
    "INSERT INTO plain2.parted VALUES ('%')",
    "SELECT query_to_xml('%', true, false, '')",
    "SELECT query_to_xml_and_xmlschema('%', true, false, '')",
    "SELECT * FROM ts_stat('SELECT null::tsvector FROM (%) AS x')",
];
const ANY_COMMAND: usize = 5;

fn by_way(way: &str, command: &str) -> String {
    way.replace('%', &command.replace('\'', "''"))
}

/// Run by an operator.
fn hidden(command: &str) -> String {
    by_way(WAYS[0], command)
}

fn in_any_way(random: &mut Random, command: &str) -> String {
    let ways = if command.starts_with("select") { WAYS.len() } else { ANY_COMMAND };
    by_way(WAYS[random.below(ways)], command)
}

/// Most of these are not to be seen in the statement; some are, and then the session may keep its connection.
fn something_left(random: &mut Random) -> String {
    let (_, command) = random.of(&LEAVES);
    match random.below(20) {
        0 => command.to_owned(),
        1 => format!("begin; {command}; commit"),
        2 => format!("do $do$ begin execute '{}'; end $do$", command.replace('\'', "''")),
        3 => "SELECT * FROM plain2.viewed".to_owned(),
        _ => in_any_way(random, command),
    }
}

// ── every function ──

/// Functions that are not called, and why. A star stands for any end.
const LEFT_OUT: [(&str, &str); 12] = [
    ("pg_sleep*", "waits, and leaves nothing"),
    ("pg_terminate_backend", "ends another connection of the role: its right, which no reset takes away"),
    ("pg_cancel_backend", "the same for a statement"),
    ("pg_advisory_lock*", "waits for another connection; what it takes is taken by name"),
    ("pg_advisory_xact_lock*", "waits for another connection, and leaves nothing"),
    ("lo_*", "makes objects of the database, not of a connection"),
    ("pg_read_*", "files of the server, for superusers"),
    ("pg_ls_*", "files of the server, for superusers"),
    ("pg_stat_reset*", "counters of the server, for superusers"),
    ("pg_promote", "of a standby, and waits"),
    ("binary_upgrade_*", "of pg_upgrade alone"),
    ("dblink*", "connections of its own outlive a reset, as the manual says"),
];

fn is_left_out(name: &str) -> bool {
    LEFT_OUT.iter().any(|(pattern, _)| match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == *pattern,
    })
}

/// A constant of a type (its kind and name); `None` if SQL cannot write one.
fn constant(kind: &str, name: &str) -> Option<String> {
    let text = match name {
        "bool" => "true",
        "json" | "jsonb" => "{\"a\":1}",
        "jsonpath" => "$.a",
        "xml" => "<a/>",
        "date" | "timestamp" | "timestamptz" => "2026-01-02",
        "time" | "timetz" => "01:02",
        "interval" => "1 s",
        "point" => "(1,1)",
        "lseg" | "path" => "[(1,1),(2,2)]",
        "box" | "polygon" => "(1,1),(2,2)",
        "line" => "{1,1,1}",
        "circle" => "<(1,1),1>",
        "inet" | "cidr" => "10.0.0.0/8",
        "macaddr" => "08:00:2b:01:02:03",
        "macaddr8" => "08:00:2b:01:02:03:04:05",
        "uuid" => "00000000-0000-0000-0000-000000000001",
        "pg_lsn" => "0/1",
        "tid" => "(0,1)",
        "pg_snapshot" | "txid_snapshot" => "1:2:",
        "aclitem" => "=r/plain2",
        "int4range" | "int8range" | "numrange" => "[1,2)",
        "daterange" | "tsrange" | "tstzrange" => "[2026-01-01,2026-01-02)",
        "anyelement" | "anynonarray" | "anycompatible" | "anycompatiblenonarray" | "any" => {
            return Some("1".into());
        }
        "anyarray" | "anycompatiblearray" => return Some("'{1}'::int[]".into()),
        "anyrange" | "anycompatiblerange" => return Some("'[1,2)'::int4range".into()),
        "anymultirange" | "anycompatiblemultirange" => return Some("'{[1,2)}'::int4multirange".into()),
        "record" => return Some("ROW(1)".into()),
        "cstring" => return Some("'1'::cstring".into()),
        _ if kind == "p" => return None,
        _ if kind == "m" || name.starts_with('_') => "{}",
        _ if ["text", "varchar", "bpchar", "name", "char", "refcursor", "tsvector", "tsquery", "bytea"]
            .contains(&name) =>
        {
            "a"
        }
        // Numbers, and what is written as one: regclass and its like, bit, oidvector, xid.
        _ => "1",
    };
    Some(format!("'{text}'::pg_catalog.\"{name}\""))
}

/// A call, with constants, of every function of PostgreSQL's that the role may execute.
fn calls() -> Vec<String> {
    let all = server().sql(
        "isolation",
        "SELECT p.prokind, p.proname, coalesce((SELECT string_agg(t.typtype::text || ':' || t.typname, ',' ORDER BY a.place) \
           FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, place) JOIN pg_type t ON t.oid = a.type), '') \
         FROM pg_proc p WHERE pronamespace = 'pg_catalog'::regnamespace \
           AND has_function_privilege('plain2', p.oid, 'EXECUTE') ORDER BY p.oid",
    );
    let (mut calls, mut left_out, mut not_to_write) = (Vec::new(), 0, 0);
    for line in all.lines() {
        let mut parts = line.split('|');
        let [kind, name, types] = [(); 3].map(|()| parts.next().unwrap());
        if is_left_out(name) {
            left_out += 1;
            continue;
        }
        let each = types.split(',').filter(|text| !text.is_empty());
        let arguments: Option<Vec<String>> =
            each.map(|text| text.split_once(':').and_then(|(kind, name)| constant(kind, name))).collect();
        let Some(arguments) = arguments else {
            not_to_write += 1;
            continue;
        };
        let call = format!("pg_catalog.\"{name}\"({})", arguments.join(", "));
        calls.push(match kind {
            "p" => format!("CALL {call}"),
            "w" => format!("SELECT {call} OVER ()"),
            _ => format!("SELECT {call}"),
        });
    }
    println!(
        "{} functions, {left_out} left out, {not_to_write} with arguments that SQL cannot write",
        calls.len()
    );
    assert!(calls.len() > 2000 && left_out < 100, "{} {left_out}", calls.len());
    calls
}

// ── many hand-overs ──

/// What all threads of one proof share.
struct Proof {
    pgusher: Pgusher,
    clean: Digest,
    calls: Vec<String>,
    next_call: AtomicUsize,
    accepted: AtomicUsize,
    /// Who had each connection last, by its process ID.
    last: Mutex<HashMap<String, &'static str>>,
    hand_overs: AtomicUsize,
    seen: Mutex<HashSet<String>>,
}

impl Proof {
    fn next_call(&self) -> String {
        self.calls[self.next_call.fetch_add(1, Ordering::Relaxed) % self.calls.len()].clone()
    }

    /// Ann logs in, perhaps with settings of her own.
    fn ann(&self, random: &mut Random) -> Raw {
        let own = [
            ("work_mem", "3MB"),
            ("search_path", "evil"),
            ("TimeZone", "Asia/Tokyo"),
            ("my.ann", "at startup"),
            ("application_name", "of ann"),
            ("client_encoding", "LATIN1"),
            ("options", "-c geqo=off"),
        ];
        let mut pairs = vec![("user", "ann"), ("database", "warehouse")];
        pairs.extend(own.iter().filter(|_| random.chance(10)));
        Raw::login_with(self.pgusher.address(), VERSION, &pairs)
    }

    /// She does a lot, one by one or at once, by both protocols; answers what.
    fn is_busy(&self, ann: &mut Raw, random: &mut Random) -> Vec<String> {
        let mut said: Vec<String> = (0..25).map(|_| self.next_call()).collect();
        for _ in 0..1 + random.below(4) {
            said.insert(random.below(said.len() + 1), something_left(random));
        }
        let at_once = random.chance(50);
        let mut batch = Vec::new();
        for (i, sql) in said.iter().enumerate() {
            let bytes = match random.below(4) {
                0 => [parse("", sql), bind("", "", &[]), execute(), sync()].concat(),
                1 => {
                    let name = format!("ann{i}");
                    [parse(&name, sql), bind("", &name, &[]), execute(), sync()].concat()
                }
                _ => query(sql),
            };
            if at_once {
                batch.push(bytes);
            } else {
                self.count(&ann_asks(ann, &bytes));
            }
        }
        if at_once && send(ann, &batch.concat()) {
            (0..said.len()).for_each(|_| self.count(&ann.until_ready()));
        }
        said
    }

    fn count(&self, answer: &[Message]) {
        let accepted = !answer.is_empty() && !answer.iter().any(|m| m.tag == 'E');
        self.accepted.fetch_add(usize::from(accepted), Ordering::Relaxed);
    }

    /// Ann, and behind her Ben, again and again.
    fn go_round(&self, rounds: usize, mut random: Random) {
        let mut ben = login(&self.pgusher, "ben");
        let mut stays = None;
        for round in 0..rounds {
            let mut ann = stays.take().unwrap_or_else(|| self.ann(&mut random));
            let said = self.is_busy(&mut ann, &mut random);
            let her_last = value_of(&mut ann, "SELECT 0 + pg_catalog.pg_backend_pid()");
            self.last.lock().unwrap().insert(her_last, "ann");
            // A session that keeps its connection has to go.
            if random.chance(50) && value_of(&mut ann, "SHOW pgusher.pin").is_empty() && is_answered(&mut ann)
            {
                stays = Some(ann);
            } else {
                if random.chance(50) {
                    send(&mut ann, &message('X', b""));
                }
                drop(ann);
            }
            if random.chance(10) {
                ben = login(&self.pgusher, "ben");
            }
            let digest = Digest::of(&mut ben);
            let differences = digest.differences(&self.clean);
            assert!(differences.is_empty(), "round {round}: {differences:#?}\nbehind: {said:#?}");
            assert!(self.seen.lock().unwrap().insert(digest.random.clone()), "random() says the same again");
            if self.last.lock().unwrap().insert(digest.pid, "ben") == Some("ann") {
                self.hand_overs.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// She may have been shown the door.
fn send(raw: &mut Raw, bytes: &[u8]) -> bool {
    std::io::Write::write_all(&mut raw.stream, bytes).is_ok()
}

fn ann_asks(raw: &mut Raw, bytes: &[u8]) -> Vec<Message> {
    if send(raw, bytes) { raw.until_ready() } else { Vec::new() }
}

fn value_of(raw: &mut Raw, sql: &str) -> String {
    let answer = ann_asks(raw, &query(sql));
    answer.iter().find(|m| m.tag == 'D').map(|m| m.columns().remove(0)).unwrap_or_default()
}

fn is_answered(raw: &mut Raw) -> bool {
    value_of(raw, "SELECT 'here'") == "here"
}

fn many_hand_overs(pool_size: usize) {
    let proof = Proof {
        pgusher: Pgusher::start(&config(pool_size, "")),
        clean: clean(pool_size),
        calls: calls(),
        next_call: AtomicUsize::new(pool_size * 700),
        accepted: AtomicUsize::new(0),
        last: Mutex::default(),
        hand_overs: AtomicUsize::new(0),
        seen: Mutex::default(),
    };
    let rounds = size(120, 50_000);
    std::thread::scope(|scope| {
        for thread in 0..pool_size {
            let random = Random(0x0150_1a7e + thread as u64 * 977 + pool_size as u64);
            scope.spawn(|| proof.go_round(rounds.div_ceil(pool_size), random));
        }
    });
    let (hand_overs, accepted) =
        (proof.hand_overs.load(Ordering::Relaxed), proof.accepted.load(Ordering::Relaxed));
    println!(
        "pool of {pool_size}: {hand_overs} hand-overs in {rounds} rounds, {accepted} of Ann's statements accepted"
    );
    assert!(accepted > rounds * 5, "{accepted}");
    assert!(hand_overs > rounds / if pool_size == 1 { 6 } else { 20 }, "{hand_overs}");
    unharmed(&proof.pgusher);
}

#[test]
fn whatever_one_user_runs_the_next_finds_a_fresh_connection_in_a_pool_of_one() {
    many_hand_overs(1);
}

#[test]
fn whatever_one_user_runs_the_next_finds_a_fresh_connection_in_a_pool_of_two() {
    many_hand_overs(2);
}

#[test]
fn whatever_one_user_runs_the_next_finds_a_fresh_connection_in_a_pool_of_five() {
    many_hand_overs(5);
}

// ── the digest finds what there is to find ──

#[test]
fn every_kind_of_state_that_is_planted_is_found() {
    let clean = Digest::of(&mut direct());
    let mut found = HashSet::new();
    for (kind, command) in LEAVES {
        for sql in [command.to_owned(), hidden(command)] {
            let mut raw = direct();
            done(&mut raw, &sql);
            let differences = Digest::of(&mut raw).differences(&clean);
            assert!(
                differences.iter().any(|line| line.starts_with(&format!("{kind}: "))),
                "{sql}: not found: {differences:?}"
            );
            found.insert(kind);
        }
    }
    // A statement of the protocol, and a notification that nobody has read.
    let mut raw = direct();
    raw.ask(&[parse("n", "SELECT 'of ann'"), sync()].concat());
    assert!(Digest::of(&mut raw).kind("statements").contains("of ann"));
    done(&mut raw, "LISTEN ann_channel");
    server().sql("isolation", "NOTIFY ann_channel");
    let heard = (0..100).any(|_| Digest::of(&mut raw).kind("notifications") != "0");
    assert!(heard, "the notification is not found");
    found.insert("notifications");
    let all: HashSet<&str> = clean.kinds.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(found, all, "a kind that nothing was planted of");
    assert!(Digest::of(&mut direct()).differences(&clean).is_empty(), "a fresh connection differs");
    // Every way runs every command that it is said to run.
    for (number, way) in WAYS.iter().enumerate() {
        for (kind, command) in LEAVES {
            if number < ANY_COMMAND || command == "select set_config('search_path', 'evil', false)" {
                let mut raw = direct();
                let sql = by_way(way, command);
                done(&mut raw, &sql);
                assert!(!Digest::of(&mut raw).differences(&clean).is_empty(), "{kind}, {sql}");
            }
        }
    }
}

/// Each kind by itself: what Ann leaves is gone when Ben is lent the same connection.
#[test]
fn a_connection_is_reset_before_it_serves_another_user() {
    let clean = clean(1);
    let pgusher = Pgusher::start(&config(1, ""));
    let mut same = 0;
    for (kind, command) in LEAVES {
        for way in &WAYS[..ANY_COMMAND] {
            let sql = by_way(way, command);
            let mut ann = login(&pgusher, "ann");
            ann.ask(&query(&sql));
            let hers = value_of(&mut ann, "SELECT 0 + pg_catalog.pg_backend_pid()");
            drop(ann);
            let digest = Digest::of(&mut login(&pgusher, "ben"));
            assert!(digest.differences(&clean).is_empty(), "{kind}, {sql}: {:?}", digest.differences(&clean));
            same += usize::from(digest.pid == hers);
        }
    }
    println!("{same} of {} on the same connection", LEAVES.len() * ANY_COMMAND);
    assert!(same > LEAVES.len() * ANY_COMMAND / 4, "{same}: they were not handed over");
}

// ── the three ways ──

/// Not by its name: the connection would be given the session's own for that.
const PREPARED: &str = "SELECT (xpath('//c/text()', \
    query_to_xml('SELECT count(*) AS c FROM pg_pre' || 'pared_statements', true, false, '')))[1]::text";

/// Whether what one has prepared is still there when another session comes at once, which is before the connection has been idle for a
/// second: asked again if this machine was too slow.
fn is_kept(one: &mut Raw, other: &mut Raw) -> bool {
    for turn in 0..20 {
        let began = Instant::now();
        let name = format!("kept{turn}");
        let answer = one.ask(&[parse(&name, &format!("SELECT 'of ann', {turn}")), sync()].concat());
        assert_eq!(answer.last().unwrap().tag, 'Z');
        let there = other.value(PREPARED) != "0";
        if there || began.elapsed() < Duration::from_millis(900) {
            return there;
        }
    }
    panic!("this machine is too slow to say");
}

#[test]
fn a_user_keeps_his_connection_as_it_is_and_another_does_not_see_it() {
    let pgusher = Pgusher::start(&config(1, "isolation = \"user\""));
    let (mut one, mut other, mut ben) =
        (login(&pgusher, "ann"), login(&pgusher, "ann"), login(&pgusher, "ben"));
    assert!(is_kept(&mut one, &mut other), "reset between two sessions of one user");
    let hers = pid(&mut other);
    assert_eq!(ben.value(PREPARED), "0");
    assert_eq!(pid(&mut ben), hers, "it was closed where a reset is enough");
    // What a session has prepared is prepared again, and is what it was.
    assert_eq!(one.tags(&[parse("mine", "SELECT 'mine'"), sync()].concat()), "1Z");
    for _ in 0..3 {
        assert_eq!(ben.value(PREPARED), "0");
        let answer = one.ask(&[bind("", "mine", &[]), execute(), sync()].concat());
        assert!(answer.iter().any(|m| m.tag == 'D' && m.columns() == ["mine"]), "{answer:?}");
    }
}

#[test]
fn what_a_session_has_set_is_its_own_again_behind_another_user() {
    let pgusher = Pgusher::start(&config(1, ""));
    let (mut ann, mut ben) = (login(&pgusher, "ann"), login(&pgusher, "ben"));
    done(&mut ann, "SET work_mem = '9MB'; SET my.ann = 'of ann'; SET timezone = 'Asia/Tokyo'");
    done(&mut ben, "SET my.ann = 'of ben'");
    for _ in 0..5 {
        assert_eq!(
            ben.value("SELECT concat_ws(' ', current_setting('work_mem'), current_setting('my.ann'))"),
            "4MB of ben"
        );
        assert_eq!(
            ann.value("SELECT concat_ws(' ', current_setting('work_mem'), current_setting('my.ann'))"),
            "9MB of ann"
        );
        assert_eq!(ann.value("SHOW timezone"), "Asia/Tokyo");
    }
}

#[test]
fn strict_closes_a_connection_rather_than_let_it_serve_a_second_user() {
    let pgusher = Pgusher::start(&config(1, "isolation = \"strict\""));
    let (mut ann, mut another, mut ben) =
        (login(&pgusher, "ann"), login(&pgusher, "ann"), login(&pgusher, "ben"));
    let hers = pid(&mut ann);
    assert_eq!(
        (pid(&mut ann), pid(&mut another)),
        (hers.clone(), hers.clone()),
        "a user's own sessions share it"
    );
    let his = pid(&mut ben);
    assert_ne!(hers, his);
    eventually("hers is closed", || !is_there(&hers));
    let third = pid(&mut ann);
    assert!(third != hers && third != his, "{hers} {his} {third}");
    eventually("his is closed", || !is_there(&his));
    unharmed(&pgusher);
}

/// Also where it has been reset meanwhile because nobody used it, and where another would have to be closed first.
#[test]
fn strict_serves_no_second_user_from_what_was_idle() {
    let pgusher = Pgusher::start(&config(2, "isolation = \"strict\""));
    let mut ann = login(&pgusher, "ann");
    let hers = pid(&mut ann);
    let said = format!("SELECT query FROM pg_stat_activity WHERE pid = {hers}");
    let is_reset = || !server().sql("isolation", &said).contains("pg_backend_pid");
    eventually("hers is reset", is_reset);
    assert_eq!(pid(&mut ann), hers, "her own was closed");
    eventually("hers is reset again", is_reset);
    let mut ben = login(&pgusher, "ben");
    assert_ne!(pid(&mut ben), hers, "a connection of hers, which a reset has not made his");

    // The host has no room for a third.
    let full =
        config(4, "isolation = \"strict\"").replace("threads = 2", "threads = 2\nmax_host_connections = 2");
    let pgusher = Pgusher::start(&full);
    let (mut one, mut other) = (login(&pgusher, "ann"), login(&pgusher, "ann"));
    for raw in [&mut one, &mut other] {
        done(raw, "BEGIN");
    }
    let hers = [pid(&mut one), pid(&mut other)];
    for raw in [&mut one, &mut other] {
        done(raw, "COMMIT");
    }
    // A client has its answer before its connection is back in the pool; one that comes back while Ben waits is closed, too.
    let mut ops = console(&pgusher, "operator");
    let idle = |ops: &mut Raw| cell(ops, "SHOW POOLS", ("database", "warehouse"), "sv_idle");
    eventually("both are idle", || idle(&mut ops) == "2");
    let his = pid(&mut login(&pgusher, "ben"));
    assert!(!hers.contains(&his), "{hers:?} {his}");
    assert_eq!(hers.iter().filter(|pid| is_there(pid)).count(), 1, "one of hers made way");
    unharmed(&pgusher);
}

#[test]
fn users_who_shared_a_connection_are_isolated_from_the_reload_that_says_so() {
    let pgusher = Pgusher::start(&config(1, "isolation = \"shared\""));
    let (mut ann, mut ben) = (login(&pgusher, "ann"), login(&pgusher, "ben"));
    assert!(is_kept(&mut ann, &mut ben), "reset between users who share");
    let before = pid(&mut ann);
    pgusher.reload(&config(1, "isolation = \"user\""));
    assert_eq!(ben.value(PREPARED), "0");
    assert_ne!(pid(&mut ben), before, "what others have left on it before the reload is still there");
}

/// It has changed nothing, so nothing is to be closed.
#[test]
fn a_startup_setting_that_the_server_refuses_costs_no_connection() {
    let pgusher = Pgusher::start(&config(1, ""));
    let before = pid(&mut login(&pgusher, "ann"));
    for turn in 0..20 {
        let mut raw = Raw::connect(pgusher.address());
        let value = format!("{turn}MBB");
        raw.send(&startup(VERSION, &[("user", "ann"), ("database", "warehouse"), ("work_mem", &value)]));
        let answer = raw.until_ready();
        assert_eq!(answer.last().unwrap().tag, 'E', "{answer:?}");
    }
    assert_eq!(pid(&mut login(&pgusher, "ann")), before);
}

/// A statement that no cancel request ends keeps its place in the pool until the server is through with it: else whoever comes
/// and leaves opens more connections than `pool_size`.
#[test]
fn who_leaves_a_statement_behind_keeps_its_place_until_the_server_has_ended_it() {
    const STUBBORN: &str = "CREATE OR REPLACE FUNCTION plain2.stubborn(ends timestamptz) RETURNS int LANGUAGE plpgsql AS $$ \
        BEGIN LOOP BEGIN PERFORM pg_sleep(0.05); EXIT WHEN clock_timestamp() > ends; \
        EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN 1; END $$";
    server().sql("isolation", STUBBORN);
    let long = config(2, "").replace("query_timeout = \"5s\"\n", "");
    let pgusher = Pgusher::start(&format!("{long}\n[users.stubborn]\nauth_type = \"trust\"\n"));
    let count =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%stubborn%' AND pid <> pg_backend_pid()";
    let mut held = Vec::new();
    for _ in 0..6 {
        let mut raw = login(&pgusher, "stubborn");
        raw.send(&query("SELECT plain2.stubborn(now() + interval '4 s')"));
        std::thread::sleep(Duration::from_millis(200));
        raw.send(b"X\0\0\0\x04");
        drop(raw);
        held.push(server().sql("isolation", count).parse::<usize>().unwrap());
    }
    assert!(held.iter().all(|&open| open <= 2), "{held:?}");
    assert!(held.contains(&2), "they were cancelled after all: {held:?}");
    eventually("they are over, and others are served", || !pid(&mut login(&pgusher, "ann")).is_empty());
    unharmed(&pgusher);
}

/// The same of one that does not read what it was sent: by the time that its session is ended, much of that is on its way.
#[test]
fn who_is_ended_in_a_copy_that_is_not_read_keeps_its_place_until_the_server_has_ended_it() {
    const STUBBORN: &str = "CREATE TABLE plain2.copied (a text); GRANT ALL ON plain2.copied TO PUBLIC; \
        CREATE FUNCTION plain2.stubborn_row() RETURNS trigger LANGUAGE plpgsql AS $$ \
        BEGIN LOOP BEGIN EXIT WHEN clock_timestamp() > TG_ARGV[0]::timestamptz; PERFORM pg_sleep(0.05); \
        EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN NEW; END $$";
    server().sql("isolation", STUBBORN);
    let ends = server().sql("isolation", "SELECT clock_timestamp() + interval '8 s'");
    server().sql(
        "isolation",
        &format!(
            "CREATE TRIGGER stubborn BEFORE INSERT ON plain2.copied FOR EACH ROW \
             EXECUTE FUNCTION plain2.stubborn_row('{ends}')"
        ),
    );
    let long = config(2, "").replace("query_timeout = \"5s\"\n", "");
    let pgusher = Pgusher::start(&format!("{long}\n[users.stubborn]\nauth_type = \"trust\"\n"));
    let mut operator = console(&pgusher, "operator");
    let count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY plain2.copied%'";
    let mut held = Vec::new();
    let row = message('d', &[vec![b'x'; 8000], b"\n".to_vec()].concat());
    for _ in 0..5 {
        let mut raw = login(&pgusher, "stubborn");
        raw.send(&query("COPY plain2.copied FROM STDIN"));
        raw.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        // Until nobody takes any more.
        while std::io::Write::write_all(&mut raw.stream, &row).is_ok() {}
        done(&mut operator, "KILL warehouse");
        done(&mut operator, "RESUME warehouse");
        held.push(server().sql("isolation", count).parse::<usize>().unwrap());
    }
    assert!(held.iter().all(|&open| open <= 2), "{held:?}");
    assert!(held.contains(&2), "they were ended after all: {held:?}");
    eventually("they are over, and others are served", || !pid(&mut login(&pgusher, "ann")).is_empty());
    server().sql("isolation", "DROP TABLE plain2.copied; DROP FUNCTION plain2.stubborn_row()");
}

#[test]
fn shared_hands_a_connection_over_as_it_is() {
    let pgusher = Pgusher::start(&config(1, "isolation = \"shared\""));
    let (mut ann, mut ben) = (login(&pgusher, "ann"), login(&pgusher, "ben"));
    assert!(is_kept(&mut ann, &mut ben), "reset between users who share");
    assert_eq!(pid(&mut ann), pid(&mut ben));
    // So what is hidden in a statement is seen by the next: the operator was warned.
    let clean = clean(1);
    let mut operator = console(&pgusher, "operator");
    let mut found = Vec::new();
    for (kind, command) in LEAVES {
        let mut ann = login(&pgusher, "ann");
        ann.ask(&query(&hidden(command)));
        let hers = value_of(&mut ann, "SELECT 0 + pg_catalog.pg_backend_pid()");
        drop(ann);
        let digest = Digest::of(&mut login(&pgusher, "ben"));
        if digest.pid == hers && digest.differences(&clean).iter().any(|line| line.starts_with(kind)) {
            found.push(command);
        }
        // Another connection for the next kind.
        done(&mut operator, "RECONNECT");
        eventually("the connection is closed", || !is_there(&digest.pid));
    }
    println!("seen by the next user where connections are shared: {found:#?}");
    assert!(found.len() >= 3, "the digest finds nothing where nothing is reset: {found:?}");
}

// ── whose turn ──

#[test]
fn a_pool_lends_a_connection_to_the_user_who_had_it_last() {
    let pgusher = Pgusher::start(&config(2, ""));
    let (mut ann, mut ben) = (login(&pgusher, "ann"), login(&pgusher, "ben"));
    // Two at the same time, so that each has one.
    done(&mut ann, "BEGIN");
    done(&mut ben, "BEGIN");
    let (hers, his) = (pid(&mut ann), pid(&mut ben));
    assert_ne!(hers, his);
    done(&mut ann, "COMMIT");
    done(&mut ben, "COMMIT");
    let mut random = Random(0x1e4d);
    let own = (0..200).filter(|_| match random.chance(50) {
        true => pid(&mut ann) == hers,
        false => pid(&mut ben) == his,
    });
    let own = own.count();
    assert!(own >= 190, "{own} of 200");
}

#[test]
fn who_had_a_connection_last_is_shown() {
    let pgusher = Pgusher::start(&config(1, ""));
    let (mut ann, mut ben) = (login(&pgusher, "ann"), login(&pgusher, "ben"));
    let mut operator = console(&pgusher, "operator");
    for (raw, user) in [(&mut ann, "ann"), (&mut ben, "ben")] {
        let pid = pid(raw);
        assert_eq!(cell(&mut operator, "SHOW SERVERS", ("remote_pid", &pid), "last_user"), user);
    }
}

#[test]
fn a_connection_that_nobody_uses_is_reset_after_a_second() {
    let pgusher = Pgusher::start(&config(1, ""));
    let mut ann = login(&pgusher, "ann");
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4141";
    // By the check of a domain.
    let take = by_way(WAYS[2], "select pg_advisory_lock(4141)");
    let answer = ann.ask(&query(&format!("{take}; {held}; SELECT 0 + pg_backend_pid()")));
    let rows: Vec<_> = answer.iter().filter(|m| m.tag == 'D').map(|m| m.columns().remove(0)).collect();
    assert_eq!(rows[1], "1", "{answer:?}");
    assert_eq!(ann.value("SHOW pgusher.pin"), "", "it was seen, and is not idle");
    eventually("the lock is gone", || server().sql("isolation", held) == "0");
    assert!(is_there(&rows[2]), "a reset is enough");
    assert_eq!(pid(&mut ann), rows[2]);
    // A channel and a held cursor as well. Nobody but pgusher says anything on it meanwhile.
    for command in ["listen ann_channel", "declare ann_cursor cursor with hold for select 1"] {
        done(&mut ann, &by_way(WAYS[2], command));
    }
    let said = format!("SELECT query FROM pg_stat_activity WHERE pid = {}", rows[2]);
    eventually("it is reset again", || !server().sql("isolation", &said).contains("ann_cursor"));
    let digest = Digest::of(&mut ann);
    assert_eq!((digest.kind("channels"), digest.kind("cursors")), ("", ""), "{:?}", digest.pid);
}

// ── what is still under way ──

/// A COPY that fails leaves it open how many of the `Sync`s behind it are answered. Whoever makes the proxy lose count, with
/// slow queries of his own behind, never gives the next user his answers, nor gets theirs.
#[test]
fn answers_that_are_still_under_way_are_never_taken_for_those_of_the_next_user() {
    server().sql("isolation", "CREATE TABLE IF NOT EXISTS plain2.numbers_copied (n int)");
    server().sql("isolation", "GRANT ALL ON plain2.numbers_copied TO plain2");
    let copy = "COPY plain2.numbers_copied FROM STDIN";
    let late: Vec<u8> = ["pg_sleep(0.4), 'a'", "'b'", "'forged'"]
        .iter()
        .flat_map(|s| query(&format!("SELECT {s}")))
        .collect();
    let extended = [parse("", copy), bind("", "", &[]), execute()].concat();
    for mode in ["transaction", "session"] {
        let pgusher = Pgusher::start(&config(1, &format!("pool_mode = \"{mode}\"")));
        for begin in [query(copy), extended.clone()] {
            for syncs in 1..5 {
                let mut ann = login(&pgusher, "ann");
                ann.send(&[&begin[..], &message('d', b"abc\n"), &sync().repeat(syncs), &late].concat());
                // She leaves when pgusher may think that she is through.
                for _ in 0..syncs {
                    ann.until_ready();
                }
                if mode == "session" {
                    drop(ann);
                }
                let mut ben = login(&pgusher, "ben");
                for turn in 0..3 {
                    let own = format!("of ben {syncs} {turn}");
                    assert_eq!(ben.value(&format!("SELECT '{own}'")), own, "{mode}");
                }
            }
        }
        unharmed(&pgusher);
    }
}

/// What an honest driver sends (tokio-postgres: the `Sync` in front of the data) costs nobody a connection, when it fails.
#[test]
fn a_copy_that_fails_gives_its_connection_back_when_that_has_proved_itself() {
    server().sql("isolation", "CREATE TABLE IF NOT EXISTS plain2.numbers_honest (n int)");
    server().sql("isolation", "GRANT ALL ON plain2.numbers_honest TO plain2");
    let pgusher = Pgusher::start(&config(1, ""));
    let mut ann = login(&pgusher, "ann");
    let pid = ann.value("SELECT 0 + pg_backend_pid()");
    let copy = parse("", "COPY plain2.numbers_honest FROM STDIN");
    for turn in 0..3 {
        ann.send(&[&copy[..], &bind("", "", &[]), &execute(), &sync()].concat());
        let begun: Vec<char> = (0..3).map(|_| ann.next().unwrap().tag).collect();
        assert_eq!(begun, ['1', '2', 'G']);
        ann.send(&[message('d', b"abc\n"), message('c', b""), sync()].concat());
        let failed: Vec<char> = ann.until_ready().iter().map(|m| m.tag).collect();
        assert_eq!(failed, ['E', 'Z']);
        // She stays, and there is but one connection.
        let mut other = login(&pgusher, "ann");
        assert_eq!(other.value("SELECT 0 + pg_backend_pid()"), pid, "{turn}: it was closed");
        assert_eq!(ann.value("SHOW pgusher.pin"), "");
    }
    unharmed(&pgusher);
}

/// What a COPY has said to be done is committed by the `Sync` behind it, and by nobody else: no other session gets the
/// connection in between.
#[test]
fn a_copy_is_committed_by_its_own_sync() {
    server().sql("isolation", "CREATE TABLE IF NOT EXISTS plain2.numbers_flushed (n int)");
    server()
        .sql("isolation", "TRUNCATE plain2.numbers_flushed; GRANT ALL ON plain2.numbers_flushed TO plain2");
    let pgusher = Pgusher::start(&config(1, ""));
    let mut ann = login(&pgusher, "ann");
    let copy = parse("", "COPY plain2.numbers_flushed FROM STDIN");
    ann.send(&[&copy[..], &bind("", "", &[]), &execute(), &sync()].concat());
    let begun: Vec<char> = (0..3).map(|_| ann.next().unwrap().tag).collect();
    assert_eq!(begun, ['1', '2', 'G']);
    ann.send(&[message('d', b"1\n2\n"), message('c', b""), message('H', b"")].concat());
    assert_eq!(ann.next().unwrap().tag, 'C');
    // Another session waits for the only connection, and does not get it inside this transaction.
    let mut other = login(&pgusher, "ann");
    other.send(&query("SELECT 1/0"));
    let busy = server().sql("isolation", "SELECT count(*) FROM plain2.numbers_flushed");
    assert_eq!(busy, "0");
    ann.send(&sync());
    assert_eq!(ann.until_ready().last().unwrap().tag, 'Z');
    assert_eq!(server().sql("isolation", "SELECT count(*) FROM plain2.numbers_flushed"), "2");
    assert!(other.until_ready().iter().any(|m| m.tag == 'E' && m.field('C') == "22012"));
    unharmed(&pgusher);
}

/// If `statement_timeout` fires just then, a server answers COPY data that it is not waiting for. A client that makes the proxy
/// lose count in this way gives no other session its answers, and no later login its settings.
#[test]
fn a_timeout_that_meets_data_shifts_nobodys_answers() {
    let pgusher = Pgusher::start(&config(1, ""));
    for turn in 0..3 {
        let mut ann = login(&pgusher, "ann");
        ann.ask(&query("SET statement_timeout = '300ms'"));
        ann.ask(&query("SET standard_conforming_strings = off"));
        ann.send(&[&parse("", "SELECT 1")[..], &bind("", "", &[]), &message('H', b"")].concat());
        let begun: Vec<char> = (0..2).map(|_| ann.next().unwrap().tag).collect();
        assert_eq!(begun, ['1', '2']);
        std::thread::sleep(Duration::from_millis(500));
        let late = query("SELECT 'of ann', pg_sleep(0.2)");
        ann.send(&[&message('d', b"")[..], &sync(), &late].concat());
        ann.until_ready();
        ann.until_ready();
        // Settings that nobody has logged in with yet are asked for on a connection of this user's.
        let options = format!("-c work_mem={}MB", turn + 5);
        let mut later = Raw::connect(pgusher.address());
        let pairs = [("user", "ann"), ("database", "warehouse"), ("options", options.as_str())];
        later.send(&startup(VERSION, &pairs));
        let told = later.until_ready();
        let strings =
            told.iter().find(|m| m.tag == 'S' && m.body.starts_with(b"standard_conforming_strings"));
        assert!(strings.is_none_or(|m| m.body.ends_with(b"on\0")), "{strings:?}");
        assert_eq!(later.value("SELECT 'own'"), "own");
    }
    unharmed(&pgusher);
}

/// Whether connections can be reset is asked on one that no client has made slow.
#[test]
fn a_client_does_not_decide_by_its_settings_whether_connections_can_be_reset() {
    let pgusher = Pgusher::start(&config(1, "pool_mode = \"session\""));
    let options =
        "-c statement_timeout=1 -c jit_above_cost=0 -c jit_inline_above_cost=0 -c jit_optimize_above_cost=0";
    let pairs = [("user", "ann"), ("database", "warehouse"), ("options", options)];
    let mut raw = Raw::connect(pgusher.address());
    raw.send(&startup(VERSION, &pairs));
    raw.until_ready();
    drop(raw);
    assert_eq!(login(&pgusher, "ben").value("SELECT 'here'"), "here");
    assert!(!pgusher.log().contains("cannot be reset"), "{}", pgusher.log());
    unharmed(&pgusher);
}
