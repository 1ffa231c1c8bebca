//! What texts hide: settings by odd names, texts that functions run, temporary objects without a word of it, and data that only
//! looks like statements.

use super::differential::{normal, shown};
use super::house::{Pgusher, pair, warehouse};
use super::relay::one_connection;
use super::state::done;
use super::wire::{Message, Raw, bind, close_statement, execute, parse, query, sync};

#[test]
fn settings_of_odd_names_are_carried_and_seen_by_nobody_else() {
    let pgusher = one_connection();
    for (make, name) in [
        ("SET session.x = '5'", "session.x"),
        ("SET local.x TO '5'", "local.x"),
        ("SET SESSION transaction.x = '5'", "transaction.x"),
        ("SET constraints.x = '5'", "constraints.x"),
    ] {
        let (mut one, mut other) =
            (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
        done(&mut one, make);
        let look = format!("SELECT coalesce(nullif(current_setting('{name}', true), ''), 'nothing')");
        assert_eq!(other.value(&look), "nothing", "{make}");
        assert_eq!(one.value(&look), "5", "{make}");
        assert_eq!(one.value("SHOW pgusher.pin"), "", "{make}");
    }
}

#[test]
fn settings_whose_names_are_put_together_stay_with_their_session() {
    for make in [
        "SELECT set_config('tenant' || '.id', '5', false)",
        "SELECT set_config('tenant.i' || 'd', '5', false)",
        "SELECT set_config('tenant'\n'.id', '5', false)",
    ] {
        let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
        let (mut one, mut other) =
            (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
        done(&mut one, make);
        let look = "SELECT coalesce(current_setting('tenant.id', true), 'nothing')";
        assert_eq!((other.value(look), one.value(look)), ("nothing".into(), "5".into()), "{make}");
    }
}

/// PostgreSQL never forgets a name that was set once, wherever the session goes on.
#[test]
fn a_setting_that_was_reset_is_empty_and_not_unknown() {
    for make in [
        "SET app.gone = '5'; RESET app.gone",
        "SET app.gone = ''",
        "SELECT set_config('app.gone', '', false)",
    ] {
        let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
        let (mut one, mut other) =
            (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
        done(&mut one, make);
        for _ in 0..3 {
            // The connection that it had is another's.
            done(&mut other, "BEGIN");
            assert_eq!(one.value("SELECT current_setting('app.gone')"), "", "{make}");
            done(&mut other, "COMMIT");
            done(&mut one, "BEGIN");
            assert_eq!(other.value("SELECT coalesce(current_setting('app.gone', true), '')"), "", "{make}");
            done(&mut one, "COMMIT");
        }
        assert_eq!(one.value("SHOW pgusher.pin"), "");
    }
}

/// What such a text leaves is asked for, or goes when the connection does.
#[test]
fn a_text_that_one_of_the_servers_functions_runs_leaves_nothing_to_others() {
    let pgusher = one_connection();
    for run in [
        "SELECT query_to_xml($$%$$, true, true, '')",
        "SELECT query_to_xml(concat('%'::text), true, true, '')",
        "SELECT query_to_xml_and_xmlschema($$%$$, true, true, '')",
    ] {
        for (text, look, others) in [
            (
                "select set_config($x$search_path$x$, $x$pg_catalog$x$, false)",
                "SHOW search_path",
                "\"$user\", public",
            ),
            ("select set_config($x$work_mem$x$, $x$9MB$x$, false)", "SHOW work_mem", "4MB"),
            ("select set_config($x$role$x$, $x$plain$x$, false)", "SELECT current_user", "app"),
            (
                "select set_config($x$hidden.x$x$, $x$5$x$, false)",
                "SELECT coalesce(nullif(current_setting('hidden.x', true), ''), 'nothing')",
                "nothing",
            ),
        ] {
            let (mut one, mut other) =
                (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
            let made = run.replace('%', text);
            done(&mut one, &made);
            assert_eq!(other.value(look), others, "{made}");
        }
        let (mut one, mut other) =
            (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
        done(&mut one, &run.replace('%', "select pg_advisory_lock(7711)"));
        assert_eq!(one.value("SHOW pgusher.pin"), "advisory lock");
        done(&mut one, "SELECT pg_advisory_unlock(7711)");
        assert_eq!(other.value("SELECT 'free'"), "free");
    }
    let tsvector = "SELECT * FROM ts_stat('select set_config(''work_mem'', ''9MB'', false)::tsvector')";
    let (mut one, mut other) = (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
    done(&mut one, tsvector);
    assert_eq!((other.value("SHOW work_mem"), one.value("SHOW work_mem")), ("4MB".into(), "9MB".into()));
}

/// Where `search_path` begins with it, whatever is made is in the session's temporary schema.
#[test]
fn what_is_made_in_the_temporary_schema_without_a_word_of_it_keeps_its_connection() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 20", "", ""));
    pair().dev.sql(
        "dev",
        "CREATE TABLE path_shadowed AS SELECT 'of all' AS a; GRANT ALL ON path_shadowed TO public",
    );
    for (set, make) in [
        ("SET search_path = pg_temp, public", "CREATE TABLE path_shadowed AS SELECT 'own' AS a"),
        (
            "SELECT set_config('search_path', 'PG_TEMP, public', false)",
            "SELECT 'own' AS a INTO path_shadowed",
        ),
        ("SET search_path = 'pg_temp'", "CREATE VIEW path_shadowed AS SELECT 'own' AS a"),
    ] {
        for together in [false, true] {
            let (mut one, mut other) =
                (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
            if together {
                done(&mut one, &format!("{set}; {make}"));
            } else {
                done(&mut one, set);
                done(&mut one, make);
            }
            assert_eq!(one.value("SHOW pgusher.pin"), "temporary object", "{set}, {make}");
            assert_eq!(other.value("SELECT a FROM path_shadowed"), "of all", "{set}, {make}");
            assert_eq!(one.value("SELECT a FROM path_shadowed"), "own", "{set}, {make}");
        }
    }
    let pairs = [("user", "raw"), ("database", "warehouse"), ("options", "-c search_path=pg_temp,public")];
    let mut startup = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
    done(&mut startup, "CREATE TABLE path_shadowed AS SELECT 'own' AS a");
    assert_eq!(startup.value("SHOW pgusher.pin"), "temporary object");
    drop(startup);
    pair().dev.sql("dev", "DROP TABLE path_shadowed");
}

/// However long a query is, and however it is cut on its way: what is in its strings and comments is data.
#[test]
fn data_in_long_queries_pins_nothing() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 1", "", ""));
    pair().dev.sql("dev", "CREATE TABLE long_data (t text); GRANT ALL ON long_data TO public");
    let (mut one, mut other) = (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
    let datum = "('temp hold; set_config(''a'', ''b''); SET x = 1; (see /* -- DISCARD ALL'), (E'it\\'s; LISTEN'), ($d$; RESET ALL$d$)";
    for length in [2_000, 20_000, 40_000, 150_000, 400_000] {
        let rows = vec![datum; length / datum.len() + 1].join(", ");
        for begin in ["INSERT INTO long_data VALUES ", "/* temp; set x = 1 */ INSERT INTO long_data VALUES "]
        {
            let message = query(&format!("{begin}{rows}"));
            for piece in [message.len(), 16_000, 7_001] {
                for part in message.chunks(piece) {
                    one.send(part);
                    if piece < message.len() {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                }
                let answer = one.until_ready();
                assert!(answer.iter().all(|m| m.tag != 'E'), "{answer:?}");
                assert_eq!(one.value("SHOW pgusher.pin"), "", "{length} bytes by {piece}");
                assert_eq!(other.value("SELECT 'free'"), "free");
            }
        }
    }
    // And what is none is seen behind any data.
    let rows = vec![datum; 150_000 / datum.len()].join(", ");
    done(&mut one, &format!("INSERT INTO long_data VALUES {rows}; SET work_mem = '9MB'"));
    assert_eq!(one.value("SHOW pgusher.pin"), "opaque statement");
    drop(one);
    assert_eq!(other.value("SHOW work_mem"), "4MB");
    pair().dev.sql("dev", "DROP TABLE long_data");
}

/// A connection that idles in the pool is nobody's: what one session has said of its own idleness does not hold there.
#[test]
fn one_clients_limit_of_idleness_ends_nobody_elses_session() {
    let pgusher = one_connection();
    let pairs = [("user", "raw"), ("database", "warehouse"), ("options", "-c idle_session_timeout=300ms")];
    let mut other = Raw::login(pgusher.address(), "raw");
    for mut one in
        [Raw::login(pgusher.address(), "raw"), Raw::login_with(pgusher.address(), 0x0003_0000, &pairs)]
    {
        let pid = other.value("SELECT 0 + pg_backend_pid()");
        done(&mut one, "SET idle_session_timeout = '300ms'");
        assert_eq!(one.value("SHOW idle_session_timeout"), "300ms");
        std::thread::sleep(std::time::Duration::from_millis(900));
        assert_eq!(other.value("SELECT 0 + pg_backend_pid()"), pid, "the connection is still there");
        assert_eq!(other.value("SHOW idle_session_timeout"), "0");
        assert_eq!(one.value("SHOW idle_session_timeout"), "300ms");
    }
}

/// However it is pipelined: behind the end of the transaction of a `RESET`, what was set at startup is in force.
#[test]
fn what_is_pipelined_behind_a_reset_finds_the_startup_values() {
    let pgusher = one_connection();
    let pairs = [
        ("user", "raw"),
        ("database", "warehouse"),
        ("application_name", "mine"),
        ("options", "-c work_mem=7MB"),
    ];
    let mut raw = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
    let extended = |text: &str| [parse("", text), bind("", "", &[]), execute(), sync()].concat();
    let look = "SELECT concat(current_setting('application_name'), ' ', current_setting('work_mem'))";
    for reset in [
        "RESET ALL",
        "RESET application_name",
        "RESET work_mem",
        "DISCARD ALL",
        "SET application_name TO DEFAULT",
    ] {
        for first in [query(reset), extended(reset)] {
            for between in [Vec::new(), sync(), [close_statement("c"), sync()].concat(), query("SELECT 1")] {
                for last in [query(look), extended(look)] {
                    raw.send(&[&first[..], &between, &last, &query("")].concat());
                    let mut answer = Vec::new();
                    while !answer.iter().any(|m: &Message| m.tag == 'I') {
                        answer.extend(raw.until_ready());
                    }
                    let rows: Vec<_> =
                        answer.iter().filter(|m| m.tag == 'D').map(|m| m.columns().remove(0)).collect();
                    assert_eq!(
                        rows.last().map(String::as_str),
                        Some("mine 7MB"),
                        "{reset}: {}",
                        between.escape_ascii()
                    );
                }
            }
        }
    }
}

/// What is skipped behind an error sets nothing, nor does it take anything back.
#[test]
fn a_reset_that_is_skipped_takes_no_setting_back() {
    let pgusher = one_connection();
    let direct = ([127, 0, 0, 1], pair().dev.port).into();
    let look = || query("SHOW datestyle");
    for reset in ["RESET datestyle", "RESET ALL", "SET datestyle TO DEFAULT", "SET datestyle = 'ISO'"] {
        for end in ["ROLLBACK", "COMMIT"] {
            for behind in
                [[parse("", reset), bind("", "", &[]), execute()].concat(), query(reset), parse("", reset)]
            {
                let mut direct =
                    Raw::login_with(direct, 0x0003_0000, &[("user", "app"), ("database", "dev")]);
                let mut pooled = Raw::login(pgusher.address(), "raw");
                let [expected, got] = [&mut direct, &mut pooled].map(|raw| {
                    let mut told = raw.ask(&query("SET datestyle = 'German'"));
                    told.extend(raw.ask(&query("BEGIN")));
                    told.extend(raw.ask(&query("SET datestyle = 'SQL'")));
                    told.extend(raw.ask(&[bind("", "nosuch", &[]), behind.clone(), sync()].concat()));
                    told.extend(raw.ask(&query(end)));
                    told.extend(raw.ask(&look()));
                    shown(&told.into_iter().map(normal).collect::<Vec<_>>())
                });
                assert_eq!(got, expected, "{reset}; {end}");
            }
        }
    }
}
