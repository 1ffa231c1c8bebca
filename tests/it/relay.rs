//! Transaction pooling: what a client sees of it, which should be nothing.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::house::{Pgusher, eventually, pair, size, warehouse};
use super::wire::{
    Raw, bind, close_statement, describe_statement, execute, flush, message, parse, query, sync,
};

pub(crate) fn one_connection() -> Pgusher {
    Pgusher::start(&warehouse("default_pool_size = 1", "", ""))
}

/// What a connection has prepared, asked so that it is not given the session's own names for the question.
pub(crate) fn unseen(what: &str) -> String {
    format!(
        "SELECT (xpath('//x/text()', query_to_xml('SELECT {what} AS x FROM pg_pre' || 'pared_statements', true, false, '')))[1]::text"
    )
}

#[test]
fn many_clients_share_few_connections() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let mut clients: Vec<Raw> = (0..20).map(|_| Raw::login(pgusher.address(), "raw")).collect();
    let mut pids = std::collections::HashSet::new();
    for _ in 0..3 {
        clients.iter_mut().for_each(|c| c.send(&query("SELECT 0 + pg_backend_pid()")));
        for client in &mut clients {
            let answer = client.until_ready();
            pids.insert(answer.iter().find(|m| m.tag == 'D').unwrap().columns());
        }
    }
    assert!(pids.len() <= 2, "{pids:?}");
}

#[test]
fn a_transaction_keeps_its_connection_and_others_wait_their_turn() {
    let pgusher = one_connection();
    let mut first = Raw::login(pgusher.address(), "raw");
    let mut second = Raw::login(pgusher.address(), "raw");
    let mut third = Raw::login(pgusher.address(), "raw");
    first.value("BEGIN");
    second.send(&query("SELECT 'second', clock_timestamp()"));
    std::thread::sleep(Duration::from_millis(50));
    third.send(&query("SELECT 'third', clock_timestamp()"));
    std::thread::sleep(Duration::from_millis(50));
    first.value("COMMIT");
    let at = |messages: Vec<super::wire::Message>| {
        messages.iter().find(|m| m.tag == 'D').unwrap().columns()[1].clone()
    };
    let (second, third) = (at(second.until_ready()), at(third.until_ready()));
    assert!(second < third, "first come, first served: {second} {third}");
}

#[test]
fn a_setting_of_one_client_is_carried_and_never_seen_by_another() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    one.value("SET TimeZone = 'Asia/Tokyo'");
    one.value("SET datestyle = 'German'");
    one.value("SET application_name = 'one'");
    for _ in 0..3 {
        assert_eq!(other.value("SHOW TimeZone"), pair().dev.sql("dev", "SHOW TimeZone"));
        assert_eq!(other.value("SHOW application_name"), "");
        assert_eq!(one.value("SHOW TimeZone"), "Asia/Tokyo");
        assert_eq!(one.value("SELECT date '2026-01-02'"), "02.01.2026");
        assert_eq!(one.value("SHOW application_name"), "one");
    }
}

#[test]
fn startup_settings_are_carried_reported_or_not() {
    let pgusher = one_connection();
    let with = |pairs: &[(&str, &str)]| {
        let mut all = vec![("user", "raw"), ("database", "warehouse")];
        all.extend_from_slice(pairs);
        Raw::login_with(pgusher.address(), 0x0003_0000, &all)
    };
    let mut one = with(&[("options", "-c work_mem=7MB -c my.setting=a\\ b"), ("TimeZone", "Asia/Tokyo")]);
    let mut other = with(&[]);
    let zone = |raw: &Raw| raw.parameters.iter().find(|(n, _)| n == "TimeZone").unwrap().1.clone();
    assert_eq!(zone(&one), "Asia/Tokyo");
    for _ in 0..3 {
        assert_eq!(one.value("SHOW work_mem"), "7MB");
        assert_eq!(one.value("SHOW my.setting"), "a b");
        assert_eq!(one.value("SHOW TimeZone"), "Asia/Tokyo");
        assert_eq!(other.value("SHOW work_mem"), "4MB");
        assert_eq!(other.value("SHOW my.setting"), "");
        assert_eq!(other.value("SHOW TimeZone"), zone(&other));
    }
}

#[test]
fn a_startup_setting_that_is_wrong_is_refused_in_postgresqls_words() {
    let pgusher = one_connection();
    let error =
        pgusher.psql_with("dana", "dana", &[("PGOPTIONS", "-c work_mem=lots")], &["SELECT 1"]).unwrap_err();
    assert!(error.contains("invalid value for parameter \"work_mem\": \"lots\""), "{error}");
    assert_eq!(pgusher.psql("dana", "SHOW work_mem").unwrap(), "4MB");
}

#[test]
fn a_named_statement_follows_its_session_from_connection_to_connection() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut two = Raw::login(pgusher.address(), "raw");
    let mut blocker = Raw::login(pgusher.address(), "raw");
    one.ask(&[parse("s", "SELECT 'one', $1::text"), sync()].concat());
    two.ask(&[parse("s", "SELECT 'two', $1::text"), sync()].concat());
    let run = |raw: &mut Raw| {
        let answer = raw.ask(&[bind("", "s", &["x"]), execute(), sync()].concat());
        answer.iter().find(|m| m.tag == 'D').map(|m| m.columns()).unwrap_or_else(|| panic!("{answer:?}"))
    };
    for round in 0..4 {
        if round % 2 == 0 {
            blocker.value("BEGIN")
        } else {
            blocker.value("COMMIT")
        };
        assert_eq!(run(&mut one), ["one", "x"]);
        assert_eq!(run(&mut two), ["two", "x"]);
    }
}

#[test]
fn statement_names_answer_as_postgresql_does() {
    let pgusher = one_connection();
    let mut raw = Raw::login(pgusher.address(), "raw");
    assert_eq!(raw.tags(&[parse("a", "SELECT 1"), describe_statement("a"), sync()].concat()), "1tTZ");
    let twice = raw.ask(&[parse("a", "SELECT 2"), sync()].concat());
    assert_eq!(twice[0].field('C'), "42P05");
    assert_eq!(twice[0].field('M'), "prepared statement \"a\" already exists");
    assert_eq!(
        raw.tags(
            &[close_statement("a"), parse("a", "SELECT 3"), bind("", "a", &[]), execute(), sync()].concat()
        ),
        "312DCZ"
    );
    let unknown = raw.ask(&[bind("", "none", &[]), sync()].concat());
    assert_eq!(unknown[0].field('M'), "prepared statement \"none\" does not exist");
    assert_eq!(raw.tags(&[close_statement("none"), sync()].concat()), "3Z");
    // A Parse that fails leaves no statement; one behind it in the pipeline was never read.
    assert_eq!(raw.tags(&[parse("b", "SELEC"), parse("c", "SELECT 1"), sync()].concat()), "EZ");
    for name in ["b", "c"] {
        let missing = raw.ask(&[bind("", name, &[]), sync()].concat());
        assert_eq!(missing[0].field('C'), "26000");
    }
    assert_eq!(raw.tags(&[parse("b", "SELECT 1"), bind("", "b", &[]), execute(), sync()].concat()), "12DCZ");
}

#[test]
fn the_unnamed_statement_survives_its_transaction() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    assert_eq!(one.tags(&[parse("", "SELECT 'mine'"), describe_statement(""), sync()].concat()), "1tTZ");
    assert_eq!(other.tags(&[parse("", "SELECT 'theirs'"), sync()].concat()), "1Z");
    let answer = one.ask(&[bind("", "", &[]), execute(), sync()].concat());
    assert_eq!(answer.iter().find(|m| m.tag == 'D').unwrap().columns(), ["mine"]);
    // A simple query destroys it.
    one.value("SELECT 1");
    other.ask(&[parse("", "SELECT 'theirs'"), sync()].concat());
    let gone = one.ask(&[bind("", "", &[]), execute(), sync()].concat());
    assert_eq!(gone[0].field('C'), "26000", "{gone:?}");
}

#[test]
fn deallocate_and_discard_forget_statements() {
    let pgusher = one_connection();
    let mut raw = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    other.ask(&[parse("keep", "SELECT 'kept'"), sync()].concat());
    for all in ["DEALLOCATE ALL", "DISCARD ALL"] {
        raw.ask(&[parse("a", "SELECT 1"), sync()].concat());
        assert_eq!(raw.tags(&query(all)), "CZ", "{all}");
        assert_eq!(raw.ask(&[bind("", "a", &[]), sync()].concat())[0].field('C'), "26000");
        let kept = other.tags(&[bind("", "keep", &[]), execute(), sync()].concat());
        assert_eq!(kept, "2DCZ", "another session's statement");
        // In one pipeline, what is prepared behind it stays.
        raw.send(&[query(all), parse("b", "SELECT 1"), sync()].concat());
        raw.until_ready();
        raw.until_ready();
        assert_eq!(
            raw.tags(&[bind("", "b", &[]), execute(), close_statement("b"), sync()].concat()),
            "2DC3Z"
        );
    }
    raw.ask(&[parse("Named", "SELECT 1"), sync()].concat());
    assert_eq!(raw.tags(&query("DEALLOCATE \"Named\"")), "CZ");
    assert_eq!(raw.ask(&[bind("", "Named", &[]), sync()].concat())[0].field('C'), "26000");
    assert_eq!(raw.ask(&query("DEALLOCATE nothing"))[0].field('C'), "26000");
}

#[test]
fn eviction_inside_a_pipeline_loses_nothing() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 1\nmax_prepared_statements = 2", "", ""));
    let mut raw = Raw::login(pgusher.address(), "raw");
    let names: Vec<String> = (0..5).map(|i| format!("s{i}")).collect();
    let mut batch = Vec::new();
    for (i, name) in names.iter().enumerate() {
        batch.extend(parse(name, &format!("SELECT {i}")));
    }
    for name in names.iter().chain(names.iter().rev()) {
        batch.extend([bind("", name, &[]), execute()].concat());
    }
    batch.extend(sync());
    let answer = raw.ask(&batch);
    let rows: Vec<String> = answer.iter().filter(|m| m.tag == 'D').map(|m| m.columns().remove(0)).collect();
    assert_eq!(rows, ["0", "1", "2", "3", "4", "4", "3", "2", "1", "0"]);
    assert!(!answer.iter().any(|m| m.tag == 'E'));
    let held = raw.value(&unseen("count(*)"));
    assert!(held.parse::<u32>().unwrap() <= 2, "{held}");
}

#[test]
fn pipelines_and_flush_answer_as_postgresql_does() {
    let pgusher = one_connection();
    let direct = std::net::SocketAddr::from(([127, 0, 0, 1], pair().dev.port));
    let conversations: Vec<(&str, Vec<u8>)> = vec![
        (
            "an error, then what it skips",
            [
                parse("", "SELECT 1"),
                bind("", "", &[]),
                execute(),
                parse("", "SELEC"),
                bind("", "", &[]),
                execute(),
                sync(),
                parse("", "SELECT 2"),
                bind("", "", &[]),
                execute(),
                sync(),
            ]
            .concat(),
        ),
        ("two simple queries at once", [query("SELECT 1; SELECT 2"), query("SELECT 3")].concat()),
        ("an empty query", [query(""), parse("", ""), bind("", "", &[]), execute(), sync()].concat()),
        (
            "a portal in pieces",
            [
                query("BEGIN"),
                parse("", "SELECT generate_series(1,3)"),
                bind("p", "", &[]),
                message('E', b"p\0\0\0\0\x02"),
                message('E', b"p\0\0\0\0\0"),
                sync(),
                query("COMMIT"),
            ]
            .concat(),
        ),
        (
            "a failed transaction",
            [query("BEGIN"), query("SELECT 1/0"), query("SELECT 1"), query("ROLLBACK")].concat(),
        ),
        ("syncs only", [sync(), sync(), sync()].concat()),
        (
            "a deferred error at Sync",
            [
                query("CREATE TABLE IF NOT EXISTS deferred (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)"),
                parse("", "INSERT INTO deferred VALUES (1), (1)"),
                bind("", "", &[]),
                execute(),
                sync(),
                query("DROP TABLE deferred"),
            ]
            .concat(),
        ),
        ("function call", message('F', &[&1299u32.to_be_bytes()[..], &[0, 0, 0, 0, 0, 0]].concat())),
    ];
    for (what, bytes) in conversations {
        let count = |raw: &mut Raw| {
            raw.send(&bytes);
            raw.send(&query("SELECT 'the end'"));
            let mut tags = String::new();
            loop {
                let answer = raw.until_ready();
                tags.extend(answer.iter().filter(|m| m.tag != 'S').map(|m| m.tag));
                if answer.is_empty() || answer.iter().any(|m| m.tag == 'D' && m.columns() == ["the end"]) {
                    return tags;
                }
            }
        };
        let expected =
            count(&mut Raw::login_with(direct, 0x0003_0000, &[("user", "app"), ("database", "dev")]));
        assert_eq!(count(&mut Raw::login(pgusher.address(), "raw")), expected, "{what}");
    }
    let mut raw = Raw::login(pgusher.address(), "raw");
    raw.send(&[parse("f", "SELECT 1"), flush()].concat());
    assert_eq!(raw.next().unwrap().tag, '1');
    raw.send(&[bind("", "f", &[]), execute(), flush()].concat());
    assert_eq!((raw.next().unwrap().tag, raw.next().unwrap().tag, raw.next().unwrap().tag), ('2', 'D', 'C'));
    assert_eq!(raw.tags(&sync()), "Z");
    // The second client's Parse of the same text is answered without the upstream: a Flush must show it.
    let mut other = Raw::login(pgusher.address(), "raw");
    other.send(&[parse("g", "SELECT 1"), flush()].concat());
    assert_eq!(other.next().unwrap().tag, '1');
    assert_eq!(other.tags(&sync()), "Z");
}

#[test]
fn bytes_one_at_a_time_are_the_same_conversation() {
    let pgusher = one_connection();
    let mut raw = Raw::login(pgusher.address(), "raw");
    let bytes = [
        query("SELECT 'a'"),
        parse("s", "SELECT $1::text"),
        bind("", "s", &["b"]),
        describe_statement("s"),
        execute(),
        close_statement("s"),
        sync(),
    ]
    .concat();
    for byte in bytes {
        raw.send(&[byte]);
        std::thread::sleep(Duration::from_micros(200));
    }
    let tags = |messages: Vec<super::wire::Message>| messages.iter().map(|m| m.tag).collect::<String>();
    assert_eq!(tags(raw.until_ready()), "TDCZ");
    assert_eq!(tags(raw.until_ready()), "12tTDC3Z");
}

#[test]
fn copy_works_both_ways_and_fails_as_directly() {
    let pgusher = one_connection();
    let mut raw = Raw::login(pgusher.address(), "raw");
    raw.value("DROP TABLE IF EXISTS copied");
    raw.value("CREATE TABLE copied (a int, b text)");
    raw.send(&query("COPY copied FROM STDIN"));
    assert_eq!(raw.next().unwrap().tag, 'G');
    raw.send(&[message('d', b"1\tone\n2\ttwo\n"), message('d', b"3\tthree\n"), message('c', b"")].concat());
    assert_eq!(raw.until_ready().iter().map(|m| m.tag).collect::<String>(), "CZ");
    assert_eq!(raw.tags(&query("COPY copied TO STDOUT")), "HdddcCZ");
    // Extended, with the Sync in front of the data, as libpq sends it.
    raw.send(&[parse("", "COPY copied FROM STDIN"), bind("", "", &[]), execute(), sync()].concat());
    assert_eq!((raw.next().unwrap().tag, raw.next().unwrap().tag, raw.next().unwrap().tag), ('1', '2', 'G'));
    raw.send(&[message('d', b"4\tfour\n"), message('c', b""), sync()].concat());
    assert_eq!(raw.until_ready().iter().map(|m| m.tag).collect::<String>(), "CZ");
    // The client gives up; the data is bad and the rest of it comes late.
    raw.send(&query("COPY copied FROM STDIN"));
    raw.next();
    assert_eq!(raw.tags(&message('f', b"no\0")), "EZ");
    raw.send(&query("COPY copied FROM STDIN"));
    raw.next();
    raw.send(&message('d', b"x\ty\n"));
    assert_eq!(raw.until_ready().iter().map(|m| m.tag).collect::<String>(), "EZ");
    raw.send(&[message('d', b"5\tfive\n"), message('c', b"")].concat());
    assert_eq!(raw.value("SELECT count(*) FROM copied"), "4");
    let mut other = Raw::login(pgusher.address(), "raw");
    assert_eq!(other.value("SELECT count(*) FROM copied"), "4");
    other.value("DROP TABLE copied");
}

#[test]
fn a_cancel_reaches_its_own_query_and_no_other() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let address = pgusher.address();
    let mut victim = Raw::login(address, "raw");
    let mut bystander = Raw::login(address, "raw");
    bystander.send(&query("SELECT pg_sleep(1), 'unharmed'"));
    victim.send(&query("SELECT pg_sleep(30)"));
    eventually("the query runs", || {
        pair().dev.sql("dev", "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30)%'")
            == "1"
    });
    super::wire::cancel(address, victim.key.0, &[0; 4]);
    super::wire::cancel(address, victim.key.0 ^ 1, &victim.key.1);
    let started = Instant::now();
    victim.cancel(address);
    let answer = victim.until_ready();
    let error = answer.iter().find(|m| m.tag == 'E').unwrap();
    assert_eq!(error.field('C'), "57014");
    assert!(started.elapsed() < Duration::from_secs(5));
    // A cancel of a client that does nothing does nothing.
    for _ in 0..20 {
        victim.cancel(address);
    }
    assert_eq!(victim.value("SELECT 'fine'"), "fine");
    assert!(bystander.until_ready().iter().any(|m| m.tag == 'D'));
}

#[test]
fn a_client_that_waits_can_be_cancelled() {
    let pgusher = one_connection();
    let mut holder = Raw::login(pgusher.address(), "raw");
    let mut waiter = Raw::login(pgusher.address(), "raw");
    holder.value("BEGIN");
    waiter.send(&query("SELECT 1"));
    std::thread::sleep(Duration::from_millis(100));
    waiter.cancel(pgusher.address());
    let answer = waiter.until_ready();
    assert_eq!(answer[0].field('C'), "57014");
    assert!(answer[0].field('D').contains("Environment \"dev\""));
    waiter.send(&[parse("", "SELECT 1"), bind("", "", &[]), execute(), sync()].concat());
    std::thread::sleep(Duration::from_millis(100));
    waiter.cancel(pgusher.address());
    assert_eq!(waiter.until_ready().iter().map(|m| m.tag).collect::<String>(), "EZ");
    holder.value("COMMIT");
    assert_eq!(waiter.value("SELECT 'now'"), "now");
}

#[test]
fn session_mode_is_a_connection_of_ones_own() {
    let pgusher = Pgusher::start(&warehouse("pool_mode = \"session\"\ndefault_pool_size = 2", "", ""));
    let pairs = [("user", "raw"), ("database", "warehouse"), ("options", "-c work_mem=6MB")];
    let mut raw = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
    assert_eq!(raw.value("SELECT 0 + pg_backend_pid()"), raw.key.0.to_string(), "the real process ID");
    raw.value("SET work_mem = '9MB'");
    raw.value("CREATE TEMP TABLE t AS SELECT 1");
    raw.value("RESET work_mem");
    assert_eq!(raw.value("SHOW work_mem"), "6MB", "RESET goes back to the startup value");
    raw.send(&message('X', b""));
    assert!(raw.is_closed());
    let mut again = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
    assert_eq!(again.value("SHOW work_mem"), "6MB");
    assert_eq!(again.value("SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()"), "0");
    let mut plain = Raw::login(pgusher.address(), "raw");
    assert_eq!(plain.value("SHOW work_mem"), "4MB");
}

#[test]
fn reset_all_goes_back_to_the_startup_values() {
    let pgusher = one_connection();
    let pairs = [
        ("user", "raw"),
        ("database", "warehouse"),
        ("datestyle", "Postgres, MDY"),
        ("options", "-c work_mem=6MB"),
    ];
    let mut raw = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
    for reset in ["RESET ALL", "DISCARD ALL", "RESET datestyle"] {
        raw.value("SET datestyle = 'German'");
        raw.value(reset);
        assert_eq!(raw.value("SHOW datestyle"), "Postgres, MDY", "{reset}");
        assert_eq!(raw.value("SHOW work_mem"), "6MB", "{reset}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_on_five_connections_get_their_own_answers() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 5", "", ""));
    let clients = join_all((0..200).map(|i| pgusher.client(if i % 2 == 0 { "dana" } else { "pete" }))).await;
    let work = clients.into_iter().enumerate().map(|(i, mut client)| async move {
        let environment = if i % 2 == 0 { "dev" } else { "prod" };
        for round in 0..20i32 {
            let nonce = i as i32 * 1000 + round;
            let row = client.query_one("SELECT $1::int4, name FROM whoami", &[&nonce]).await.unwrap();
            assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (nonce, environment));
            let transaction = client.transaction().await.unwrap();
            let row = transaction.query_one("SELECT $1::int4 + 1", &[&nonce]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), nonce + 1);
            transaction.commit().await.unwrap();
        }
    });
    join_all(work).await;
    for (server, name) in [(&pair().dev, "dev"), (&pair().prod, "prod")] {
        let open =
            format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND usename = 'app'");
        assert!(server.sql("postgres", &open).parse::<u32>().unwrap() < 200);
    }
}

#[test]
fn a_great_copy_and_a_great_value_pass_through_in_little_memory() {
    let pgusher = one_connection();
    let mut raw = Raw::login(pgusher.address(), "raw");
    let mib = size(64, 512);
    let value = raw.ask(&query(&format!("SELECT repeat('x', {mib} * 1024 * 1024)")));
    assert_eq!(value.iter().find(|m| m.tag == 'D').unwrap().body.len(), mib * 1024 * 1024 + 6);
    drop(value);
    let big = bind("", "", &[&"y".repeat(mib * 1024 * 1024)]);
    let length = raw.ask(&[parse("", "SELECT length($1)"), big, execute(), sync()].concat());
    assert_eq!(length.iter().find(|m| m.tag == 'D').unwrap().columns(), [(mib * 1024 * 1024).to_string()]);
    let rows = size(256 << 10, 1 << 20);
    raw.send(&query(&format!("COPY (SELECT repeat('x', 1023) FROM generate_series(1, {rows})) TO STDOUT")));
    let mut bytes = 0;
    while let Some(message) = raw.next() {
        bytes += message.body.len();
        if message.tag == 'Z' {
            break;
        }
    }
    assert!(bytes >= rows << 10, "{bytes}");
    let most = pgusher.most_resident();
    eprintln!("values of {mib} MiB both ways and a COPY of {bytes} bytes: {most} KiB at most");
    assert!(most < 64 << 10, "{most} KiB");
}

/// A client with these startup options, in a pool of one connection.
pub(crate) fn with_options(pgusher: &Pgusher, options: &str) -> Raw {
    let pairs = [("user", "raw"), ("database", "warehouse"), ("options", options)];
    Raw::login_with(pgusher.address(), 0x0003_0000, &pairs)
}

#[test]
fn a_reset_that_is_rolled_back_leaves_nothing_to_the_next_client() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    for conversation in [
        &["BEGIN", "RESET ALL", "ROLLBACK"][..],
        &["RESET ALL; SELECT 1/0"][..],
        &["BEGIN", "RESET search_path", "COMMIT"][..],
    ] {
        let mut one = with_options(&pgusher, "-c search_path=pg_catalog");
        conversation.iter().for_each(|sql| drop(one.value(sql)));
        let mut other = Raw::login(pgusher.address(), "raw");
        assert_eq!(other.value("SHOW search_path"), "\"$user\", public", "{conversation:?}");
        drop(one);
        assert_eq!(other.value("SHOW search_path"), "\"$user\", public", "{conversation:?}");
    }
}

#[test]
fn a_role_of_the_startup_packet_is_never_anothers() {
    let pgusher = one_connection();
    let mut one = with_options(&pgusher, "-c role=plain");
    assert_eq!(one.value("SELECT current_user"), "plain");
    // A login with settings that nobody had is asked about on the same connection.
    let mut other = with_options(&pgusher, "-c my.unseen=1");
    assert_eq!(other.value("SELECT current_user"), "app");
    assert_eq!(one.value("SELECT current_user"), "plain");
    one.value("RESET ALL");
    assert_eq!(other.value("SELECT current_user"), "app");
    assert_eq!(one.value("SELECT current_user"), "plain");
}

#[test]
fn nothing_of_a_clients_runs_before_its_settings_are_there() {
    let pgusher = one_connection();
    pair().dev.sql("dev", "CREATE TABLE IF NOT EXISTS guarded (who text); GRANT INSERT ON guarded TO public");
    pair().dev.sql("dev", "CREATE ROLE fading");
    let mut one = with_options(&pgusher, "-c role=fading");
    assert_eq!(one.value("SELECT current_user"), "fading");
    let mut other = Raw::login(pgusher.address(), "raw");
    other.value("SELECT 1");
    pair().dev.sql("dev", "DROP ROLE fading");
    let answer = one.ask(&query("INSERT INTO guarded VALUES (current_user)"));
    assert!(answer.iter().any(|m| m.tag == 'E' && m.field('M').contains("fading")), "{answer:?}");
    assert_eq!(pair().dev.sql("dev", "SELECT count(*) FROM guarded"), "0", "it ran without its role");
    pair().dev.sql("dev", "DROP TABLE guarded");
    assert_eq!(other.value("SELECT 'unharmed'"), "unharmed");
}

#[test]
fn a_deallocate_that_fails_poisons_nobodys_statement() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    one.ask(&[parse("s", "SELECT 'shared'"), sync()].concat());
    for sql in ["BEGIN", "SELECT 1/0", "DEALLOCATE s", "ROLLBACK"] {
        one.value(sql);
    }
    let prepared =
        other.tags(&[parse("t", "SELECT 'shared'"), bind("", "t", &[]), execute(), sync()].concat());
    assert_eq!(prepared, "12DCZ");
    assert_eq!(
        one.tags(&[bind("", "s", &[]), execute(), sync()].concat()),
        "2DCZ",
        "the name is still there"
    );
    // Nor can a client take away what others use.
    let name = one.value(&unseen("max(name)"));
    assert!(name.starts_with("_pgusher"), "{name}");
    assert!(one.value(&format!("DEALLOCATE \"{name}\"")).starts_with("26000"));
    assert_eq!(other.tags(&[bind("", "t", &[]), execute(), sync()].concat()), "2DCZ");
}

#[test]
fn an_unnamed_statement_survives_another_clients_settings() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = with_options(&pgusher, "-c my.x=1");
    assert_eq!(one.tags(&[parse("", "SELECT 'mine'"), sync()].concat()), "1Z");
    other.value("SELECT 1");
    assert_eq!(one.tags(&[bind("", "", &[]), execute(), sync()].concat()), "2DCZ");
    other.ask(&[parse("x", "SELECT 1"), bind("", "x", &[]), execute(), sync()].concat());
    assert_eq!(one.tags(&[bind("", "", &[]), execute(), sync()].concat()), "2DCZ");
}

#[test]
fn a_query_behind_an_answer_that_is_read_slowly_is_answered() {
    let pgusher = one_connection();
    for _ in 0..5 {
        let mut raw = Raw::login(pgusher.address(), "raw");
        raw.send(&query("SELECT repeat('x', 20000000)"));
        std::thread::sleep(Duration::from_millis(150));
        raw.send(&query("SELECT 'second'"));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(raw.until_ready().last().unwrap().tag, 'Z');
        let second = raw.until_ready();
        assert_eq!(second.iter().find(|m| m.tag == 'D').unwrap().columns(), ["second"]);
    }
}

#[test]
fn connections_left_by_session_mode_make_way_for_those_who_wait() {
    let config = warehouse("default_pool_size = 1", "", "")
        + "[users.own]\nauth_type = \"trust\"\npool_mode = \"session\"\n";
    let pgusher = Pgusher::start(&config);
    let mut own = Raw::login(pgusher.address(), "own");
    own.value("SELECT 1");
    own.send(&message('X', b""));
    assert!(own.is_closed());
    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 'served'"), "served");
}
