//! What a shared statement means: sessions with settings of their own, tenants with schemas of their own, and functions, whose plans
//! no name parts, take turns on the same connections with the same texts, and are answered as each is directly.

use std::net::SocketAddr;

use super::differential::{normal, shown};
use super::house::{Pgusher, pair, warehouse};
use super::wire::{Message, Raw, bind, execute, message, parse, query, sync};

/// One step: whose it is, and what it sends.
type Step = (usize, Vec<u8>);

fn run(
    address: SocketAddr,
    pairs: [(&str, &str); 2],
    startups: &[&str],
    steps: &[Step],
) -> Vec<Vec<Message>> {
    let mut sessions: Vec<Raw> = startups
        .iter()
        .map(|options| Raw::login_with(address, 0x0003_0000, &[pairs[0], pairs[1], ("options", options)]))
        .collect();
    let mut answers = Vec::new();
    for (session, bytes) in steps {
        let answer = sessions[*session].ask(bytes);
        answers.push(answer.into_iter().map(normal).collect());
    }
    answers
}

/// What each is answered is what it is answered directly, on however many connections.
fn alike(name: &str, startups: &[&str], steps: &[Step]) {
    let direct: SocketAddr = ([127, 0, 0, 1], pair().dev.port).into();
    let expected = run(direct, [("user", "app"), ("database", "dev")], startups, steps);
    // Who has his strings read otherwise may be kept on a connection.
    let least = if name.starts_with("strings") { 2 } else { 1 };
    for pool_size in [least, 2, 5] {
        let config = warehouse(&format!("default_pool_size = {pool_size}\nmax_pinned = {pool_size}"), "", "");
        let pgusher = Pgusher::start(&config);
        let got = run(pgusher.address(), [("user", "raw"), ("database", "warehouse")], startups, steps);
        for (number, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let (session, bytes) = &steps[number];
            assert_eq!(
                shown(got),
                shown(expected),
                "{name}: step {number} of session {session} on {pool_size} connections: {}",
                bytes.escape_ascii()
            );
        }
    }
}

fn prepares(name: &str, text: &str) -> Vec<u8> {
    [parse(name, text), sync()].concat()
}

fn uses(name: &str) -> Vec<u8> {
    uses_with(name, &[])
}

fn uses_with(name: &str, parameters: &[&str]) -> Vec<u8> {
    [bind("", name, parameters), execute(), sync()].concat()
}

/// Two sessions, each with its settings by turns at startup, by `SET` and in the transaction alone, prepare the same texts and use
/// them often enough to have them planned for good.
fn take_turns(name: &str, settings: [&[(&str, &str)]; 2], texts: &[&str]) {
    let options = settings.map(|settings| {
        settings
            .iter()
            .map(|(name, value)| format!("-c {name}={}", value.replace(' ', "\\ ")))
            .collect::<Vec<_>>()
            .join(" ")
    });
    let set = |number: usize, local: &str| {
        let sql = settings[number].iter().map(|(name, value)| format!("SET {local} {name} = '{value}'"));
        sql.map(|sql| query(&sql)).collect::<Vec<_>>()
    };
    for way in ["startup", "set", "local"] {
        let mut steps = Vec::new();
        for number in 0..2 {
            if way == "set" {
                steps.extend(set(number, "").into_iter().map(|sql| (number, sql)));
            }
        }
        let around = |steps: &mut Vec<Step>, number: usize, what: Vec<Vec<u8>>| {
            let is_local = way == "local";
            if is_local {
                steps.push((number, query("BEGIN")));
                steps.extend(set(number, "LOCAL").into_iter().map(|sql| (number, sql)));
            }
            steps.extend(what.into_iter().map(|bytes| (number, bytes)));
            if is_local {
                steps.push((number, query("COMMIT")));
            }
        };
        for number in [0, 1] {
            let all = texts.iter().enumerate().map(|(at, text)| prepares(&format!("s{at}"), text)).collect();
            around(&mut steps, number, all);
        }
        for _ in 0..7 {
            for number in [0, 1] {
                let parameters = |text: &str| if text.contains("$1") { &["on"][..] } else { &[] };
                let all = texts.iter().enumerate();
                let all = all.map(|(at, text)| uses_with(&format!("s{at}"), parameters(text))).collect();
                around(&mut steps, number, all);
            }
        }
        let startups = [0, 1].map(|number| if way == "startup" { options[number].as_str() } else { "" });
        alike(&format!("{name}, {way}"), &startups, &steps);
    }
}

fn made(sql: &str) {
    pair().dev.sql("dev", sql);
}

#[test]
fn constants_are_read_under_each_sessions_own_settings() {
    made(
        "CREATE TABLE meant (at timestamptz); INSERT INTO meant VALUES ('2024-01-01 00:00Z'), ('2024-01-01 06:00Z'); \
         CREATE FUNCTION meant_f() RETURNS float8 LANGUAGE plpgsql AS \
         $$ BEGIN RETURN extract(epoch FROM timestamptz '2024-01-01 00:00'); END $$; \
         CREATE FUNCTION meant_count() RETURNS bigint LANGUAGE plpgsql AS \
         $$ BEGIN RETURN (SELECT count(*) FROM meant WHERE at >= '2024-01-01 00:00'); END $$; GRANT ALL ON meant TO public",
    );
    take_turns(
        "time zones",
        [&[("TimeZone", "Asia/Tokyo")], &[("TimeZone", "America/New_York")]],
        &[
            "SELECT extract(epoch FROM '2024-01-01 00:00'::timestamptz)",
            "SELECT count(*) FROM meant WHERE at >= '2024-01-01 00:00'",
            "SELECT meant_f()",
            "SELECT meant_count()",
            "SELECT '2024-01-01 00:00'::timestamptz::text, now()::date > '2000-01-01'",
        ],
    );
    take_turns(
        "dates and intervals",
        [
            &[("DateStyle", "ISO, DMY"), ("IntervalStyle", "iso_8601"), ("bytea_output", "escape")],
            &[("DateStyle", "SQL, MDY"), ("IntervalStyle", "sql_standard"), ("extra_float_digits", "-3")],
        ],
        &[
            "SELECT '01/02/2024'::date::text",
            "SELECT '1 2:03:04'::interval::text, '-1 2:03:04'::interval::text",
            "SELECT '\\x414200'::bytea::text",
            "SELECT (1::float8 / 3)::text",
        ],
    );
    take_turns(
        "strings",
        [&[("standard_conforming_strings", "off")], &[("standard_conforming_strings", "on")]],
        &["SELECT 'a\\\\b', length('\\n')"],
    );
    take_turns(
        "documents",
        [
            &[("xmloption", "document"), ("default_text_search_config", "english")],
            &[("default_text_search_config", "simple")],
        ],
        &[
            "SELECT '<a/><b/>'::text::xml::text",
            "SELECT to_tsvector('the cats')::text, array_to_string('{NULL}'::text[], ',', '*')",
        ],
    );
    made("DROP FUNCTION meant_f(); DROP FUNCTION meant_count(); DROP TABLE meant");
}

#[test]
fn names_are_found_in_each_sessions_own_schemas() {
    made(
        "CREATE SCHEMA tenant_one; CREATE SCHEMA tenant_two; \
         CREATE TYPE tenant_one.st AS ENUM ('on'); CREATE TYPE tenant_two.st AS ENUM ('on'); \
         CREATE TABLE tenant_one.rented (x tenant_one.st, n int); CREATE TABLE tenant_two.rented (x tenant_two.st, n bigint); \
         INSERT INTO tenant_one.rented VALUES ('on', 1); INSERT INTO tenant_two.rented VALUES ('on', 2); \
         CREATE FUNCTION tenant_n() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT n FROM rented); END $$; \
         GRANT ALL ON SCHEMA tenant_one, tenant_two TO public; GRANT ALL ON tenant_one.rented, tenant_two.rented TO public",
    );
    take_turns(
        "schemas",
        [&[("search_path", "tenant_one, public")], &[("search_path", "tenant_two, public")]],
        &[
            "SELECT n FROM rented",
            "SELECT n FROM rented WHERE x = 'on'",
            "SELECT n FROM rented WHERE x = $1",
            "SELECT tenant_n()",
        ],
    );
    made("DROP SCHEMA tenant_one CASCADE; DROP SCHEMA tenant_two CASCADE; DROP FUNCTION tenant_n()");
}

/// An application's own settings are in plans where a function says that it does not read them.
#[test]
fn what_an_immutable_function_reads_is_each_sessions_own() {
    made(
        "CREATE TABLE owned AS SELECT t, t || ' data' AS v FROM unnest('{a,b}'::text[]) AS t; GRANT ALL ON owned TO public; \
         CREATE FUNCTION owner_of() RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT current_setting('own.t') $$",
    );
    take_turns(
        "own settings",
        [&[("own.t", "a")], &[("own.t", "b")]],
        &["SELECT v FROM owned WHERE t = owner_of()"],
    );
    made("DROP TABLE owned; DROP FUNCTION owner_of()");
}

/// A plan that is made anew under a setting of a transaction alone is gone when that is over.
#[test]
fn a_plan_made_within_a_transaction_is_no_other_sessions() {
    made(
        "CREATE TABLE replanned (a int); GRANT ALL ON replanned TO public; ALTER TABLE replanned OWNER TO app",
    );
    let text = "SELECT extract(epoch FROM '2024-01-01 00:00'::timestamptz), count(*) FROM replanned";
    let mut steps: Vec<Step> = vec![(0, prepares("s", text)), (1, prepares("s", text))];
    for number in [0, 1] {
        steps.push((number, uses("s")));
    }
    for (local, by) in
        [("SET LOCAL TimeZone = 'Asia/Tokyo'", "COMMIT"), ("SET TimeZone = 'Asia/Tokyo'", "ROLLBACK")]
    {
        steps.push((
            2,
            query("ALTER TABLE replanned ALTER a SET NOT NULL; ALTER TABLE replanned ALTER a DROP NOT NULL"),
        ));
        steps.push((0, query("BEGIN")));
        steps.push((0, query(local)));
        // It is parsed again, under the settings of now.
        steps.push((0, uses("s")));
        steps.push((0, query(by)));
        for _ in 0..3 {
            steps.push((1, uses("s")));
        }
    }
    alike("replanned", &["", "", ""], &steps);
    made("DROP TABLE replanned");
}

/// Who has a temporary table of a name means that, whatever the connection has had before.
#[test]
fn a_temporary_table_hides_another_in_every_order() {
    made(
        "CREATE TABLE hidden_by (a int); INSERT INTO hidden_by VALUES (1); GRANT ALL ON hidden_by TO public",
    );
    let (read, write) = ("SELECT a FROM hidden_by ORDER BY 1", "INSERT INTO hidden_by VALUES (7)");
    let both = |number| [(number, prepares("r", read)), (number, prepares("w", write))];
    let use_both = |number| [(number, uses("w")), (number, uses("r"))];
    let make = |number| (number, query("CREATE TEMP TABLE hidden_by (a int)"));
    let drops = |number| (number, query("DROP TABLE pg_temp.hidden_by"));
    let begin = |number| (number, query("BEGIN"));
    let rollback = |number| (number, query("ROLLBACK"));
    // The connections have had temporary objects of others; a third one reads and writes the permanent table, and takes that back.
    let close = || [message('C', b"Sr\0"), message('C', b"Sw\0"), sync()].concat();
    let mut steps = vec![make(1), drops(1)];
    steps.extend(both(2));
    for order in 0..3 {
        if order == 0 {
            steps.extend(both(0));
            steps.extend([begin(0), (0, uses("r")), rollback(0)]);
        }
        steps.push(make(0));
        if order > 0 {
            steps.push((0, close()));
            steps.extend(both(0));
        }
        steps.extend(use_both(0));
        steps.push(drops(0));
        steps.push(begin(2));
        steps.extend(use_both(2));
        steps.push(rollback(2));
        steps.extend([begin(0), (0, uses("r")), rollback(0)]);
    }
    alike("temporary", &["", "", ""], &steps);
    made("DROP TABLE hidden_by");
}
