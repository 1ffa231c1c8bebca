//! What others write and what grows with it has bounds: `docs/bounds.md` names all of it, and here is what shows some.

use std::collections::BTreeSet;
use std::path::Path;

use pgusher::inside::Command;
use relay::sql;
use wire::startup;

use super::console::{OPERATORS, console};
use super::fake::{Fake, login, ready, refused, unharmed};
use super::house::{Pgusher, size, warehouse};
use super::sources::{repository, sources};
use super::state::done;
use super::wire::{Raw, bind, execute, message, parse, query, sync};

// ── the document ──

/// What gives a parser away, and what a queue or a map.
const PARSERS: [&str; 15] = [
    "serde_json::from_",
    "DeTable::parse",
    "parse::<DocumentMut>",
    "X509Certificate::from_der(",
    "pem_slice",
    "fn parse(",
    "fn tokens(",
    "fn options(",
    "fn columns(",
    "fn feed(",
    "fn words(",
    "Header::read(",
    "try_from_uri(",
    "on_client_first_message",
    "ScramSha256::new(",
];
const QUEUES: [&str; 8] = [
    "unbounded_channel(",
    "mpsc::channel(",
    "broadcast::channel(",
    "sync_channel(",
    "watch::Sender",
    "VecDeque<",
    "DashMap<",
    "HashMap<",
];

/// The rows of the table under a heading, each as its cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let document = std::fs::read_to_string(repository().join("docs/bounds.md")).unwrap();
    let section = document.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let lines = section.lines().filter(|line| line.starts_with("| "));
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<Vec<String>> = lines.skip(1).map(cells).collect();
    assert!(rows.len() > 20, "{heading}: {rows:?}");
    rows
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn paths(rows: &[Vec<String>]) -> BTreeSet<&str> {
    rows.iter().flat_map(|row| quoted(&row[1])).collect()
}

/// The lines of a file that are neither tests nor comments and have one of these.
fn found<'a>(text: &'a str, patterns: &[&str]) -> Vec<&'a str> {
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    let is_code =
        |line: &&str| !line.trim_start().starts_with("//") && !line.trim_start().starts_with("use ");
    code.lines().filter(is_code).filter(|line| patterns.iter().any(|p| line.contains(p))).collect()
}

#[test]
fn every_parser_and_every_queue_is_in_the_document() {
    let (parsers, queues) = (table("What reads what others write"), table("Queues, maps and buffers"));
    for (path, text) in sources("src").into_iter().chain(sources("crates")) {
        if path.contains("/tests") {
            continue;
        }
        for (rows, patterns) in [(&parsers, &PARSERS[..]), (&queues, &QUEUES[..])] {
            let lines = found(&text, patterns);
            assert!(
                lines.is_empty() || paths(rows).contains(&*path),
                "{path} is not in docs/bounds.md: {lines:?}"
            );
        }
        if !found(&text, &["unbounded_channel("]).is_empty() {
            let says_why = |row: &&Vec<String>| {
                row[1].contains(&path)
                    && row[0].contains("unbounded_channel")
                    && row[2].contains("bounded by")
            };
            assert!(queues.iter().any(|row| says_why(&row)), "{path}: why is that channel bounded?");
        }
    }
}

#[test]
fn what_the_document_names_is_there() {
    let mut tests = String::new();
    for folder in ["src", "crates", "tests/it"] {
        sources(folder).into_values().for_each(|text| tests += &text);
    }
    for heading in ["What reads what others write", "Queues, maps and buffers"] {
        let rows = table(heading);
        let columns = rows[0].len();
        for row in &rows {
            assert_eq!(row.len(), columns, "{row:?}");
            for path in quoted(&row[1]) {
                assert!(repository().join(path).is_file(), "{path}: {row:?}");
            }
            let named: Vec<_> = quoted(&row[columns - 1]).collect();
            assert!(!named.is_empty(), "no test: {row:?}");
            for test in named {
                let is_there = tests.contains(&format!("]\n    fn {test}()"))
                    || tests.contains(&format!("]\nfn {test}()"))
                    || tests.contains(&format!("async fn {test}()"));
                assert!(is_there, "there is no test {test}: {row:?}");
            }
        }
    }
}

// ── what reads ──

const SIZES: [usize; 3] = [1 << 10, 64 << 10, 1 << 20];

/// A text of about this length that begins, repeats, and is never ended.
fn shapes(size: usize, pieces: &[&str]) -> Vec<String> {
    let repeated = pieces.iter().map(|piece| piece.repeat(size / piece.len()));
    let numbered = pieces.iter().map(|piece| {
        (0..size / (piece.len() + 6)).fold(String::new(), |text, i| text + piece + &format!("{i:06x}"))
    });
    repeated.chain(numbered).collect()
}

#[test]
fn hostile_texts_are_an_answer_of_bounded_size() {
    let pieces = [
        "(",
        "/*",
        "'",
        "$a$",
        "\"",
        "E'\\",
        "U&\"",
        "set a=1;",
        "set_config('a.b',",
        "do $$",
        "$",
        "--\r",
        "'\n'",
        "begin execute '",
        "create function f() as '",
        ";",
        "listen a;",
        "deallocate x;",
        "a.",
        "\0",
        "é",
    ];
    for size in SIZES {
        for text in shapes(size, &pieces) {
            for text in [text.clone(), format!("do $x$ {text}"), format!("select 1; {text}")] {
                let Some(effects) = sql::effects(text.as_bytes()) else { continue };
                let shown: String = text.chars().take(40).collect();
                assert!(effects.settings.len() <= sql::budget::MAX_SETTINGS, "{shown}");
                let bytes: usize = effects.settings.iter().map(String::len).sum();
                assert!(bytes <= 2 * text.len(), "{shown}: {bytes}");
                let defined = effects.defined.as_deref();
                assert!(defined.is_none_or(|defined| defined.defined.is_none()), "{shown}");
            }
        }
    }
}

#[test]
fn startup_packets_of_any_form_are_an_answer() {
    let pieces: [&[u8]; 6] =
        [b"a\0b\0", b"options\0-c a=b\0", b"options\0", b"\0", b"_pq_.x\0y\0", b"user\0u"];
    for size in SIZES {
        for piece in pieces {
            let body = piece.repeat(size / piece.len());
            let packet = [&0x0003_0000_u32.to_be_bytes()[..], b"user\0u\0", &body].concat();
            if let Ok(startup::FirstPacket::Startup(read)) = startup::parse(&packet) {
                assert!(read.settings.iter().count() <= startup::MAX_SETTINGS);
            }
        }
    }
}

#[test]
fn toml_that_is_deep_wide_or_cut_off_is_refused() {
    let parse = |text: &str| {
        let read = pgusher::inside::draft_of(Path::new("x.toml"), text);
        read.and_then(policy::config::Draft::accept).map(drop)
    };
    for size in [SIZES[0], SIZES[1], size(256 << 10, SIZES[2])] {
        for open in ["[", "a.", "{a=", "[a.", "a=[", "[[", "\"", "'''", "a={"] {
            let text = open.repeat(size / open.len());
            for text in
                [text.clone(), format!("a = {text}"), format!("[{text}a]\n"), format!("{text}a = 1\n")]
            {
                assert!(parse(&text).is_err(), "{open}");
            }
        }
        let wide: String = (0..size / 16).map(|i| format!("key{i:08} = 1\n")).collect();
        for text in
            [wide.clone(), format!("[users]\n{wide}"), format!("x = {{ {} }}", wide.replace('\n', ","))]
        {
            let rejected = parse(&text).unwrap_err().to_string();
            assert!(rejected.len() < 400 << 10, "{} bytes of problems", rejected.len());
        }
    }
}

#[test]
fn console_commands_of_any_form_are_an_answer() {
    for size in SIZES {
        for text in
            shapes(size, &["'", "\"\"", ";", "show ", "= ", ",", "grant environment ", "\u{a0}", "''''"])
        {
            match Command::parse(&text) {
                Ok(command) => assert!(format!("{command:?}").len() <= 8 * text.len() + 100),
                Err(refusal) => assert!(refusal.message.len() < 1000, "{}", refusal.message.len()),
            }
        }
    }
}

#[test]
fn errors_and_notifications_of_any_form_are_an_answer() {
    for size in SIZES {
        for piece in [&b"M"[..], b"\0", b"Mx\0", b"CC\0", b"\xff"] {
            let body = piece.repeat(size / piece.len());
            let field = wire::error_field(&body, b'?').map_or(0, <[u8]>::len);
            let notification =
                wire::notification(&body).map_or(0, |(channel, payload)| channel.len() + payload.len());
            assert!(field <= body.len() && notification <= body.len());
        }
    }
}

/// A server that somebody has taken over: neither at its login nor later does it fill the memory with settings.
#[test]
fn a_server_that_reports_without_end_is_left() {
    let settings = |count: usize, length: usize| {
        let value = "x".repeat(length);
        (0..count).flat_map(|i| message('S', format!("s{i}\0{value}\0").as_bytes())).collect::<Vec<u8>>()
    };
    let (many, large) = (settings(100_000, 1), settings(500, 60_000));
    let flood = [settings(10_000, 1), ready()].concat();
    let fake = Fake::start(move |peer| match &*peer.database.clone() {
        "many" => peer.send(&[message('R', &[0; 4]), many.clone()].concat()),
        "large" => peer.send(&[message('R', &[0; 4]), large.clone()].concat()),
        _ => {
            peer.welcome();
            peer.serve(|sql| (sql == "SELECT flood").then(|| flood.clone()));
        }
    });
    let names = ["many", "large", "later"].map(str::to_owned);
    let pgusher = Pgusher::start(&fake.config("default_pool_size = 1", &names, "sslmode = \"disable\""));
    let before = pgusher.resident();
    for name in &names[..2] {
        refused(&pgusher, "raw", name);
    }
    assert!(pgusher.log().contains("more settings than a server reports"), "{}", pgusher.log());
    let mut raw = login(&pgusher, "later");
    let answer = raw.ask(&query("SELECT flood"));
    assert!(answer.iter().any(|m| m.tag == 'E'), "{} messages", answer.len());
    assert_ne!(login(&pgusher, "later").value("SELECT 1"), "");
    assert!(pgusher.resident() < before + (32 << 10), "{} KiB", pgusher.resident() - before);
    unharmed(&pgusher);
}

#[test]
fn a_database_that_has_too_much_is_served_without_being_looked_through() {
    let function = |number: usize| {
        let source = "begin set_config( ".repeat(3000);
        let number = number.to_string();
        let mut body = vec![0, 7];
        for value in [&*number, "f", "plpgsql", &*source, "f", "f", ""] {
            body.extend((value.len() as u32).to_be_bytes());
            body.extend(value.as_bytes());
        }
        message('D', &body)
    };
    let functions: Vec<u8> = (0..400).flat_map(function).collect();
    let fake = Fake::start(move |peer| {
        peer.welcome();
        peer.serve(|sql| sql.contains("prosrc").then(|| functions.clone()));
    });
    let names = ["vast".to_owned()];
    let pgusher = Pgusher::start(&fake.config("default_pool_size = 1", &names, "sslmode = \"disable\""));
    assert_ne!(login(&pgusher, "vast").value("SELECT 1"), "");
    let log = pgusher.log();
    assert!(log.contains("more functions, relations or source than is looked through"), "{log}");
    assert!(pgusher.most_resident() < 200 << 10, "{} KiB", pgusher.most_resident());
    unharmed(&pgusher);
}

// ── what grows ──

/// The SQLSTATE that this is refused with; empty if it is not.
fn state_of(raw: &mut Raw, bytes: &[u8]) -> String {
    let answer = raw.ask(bytes);
    answer.iter().find(|m| m.tag == 'E').map(|m| m.field('C')).unwrap_or_default()
}

#[test]
fn a_client_with_very_long_statements_is_refused_and_leaves_nothing() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let prepare = |raw: &mut Raw, i: usize| {
        let text = format!("SELECT '{i}{}'", "x".repeat(15 << 20));
        state_of(raw, &[parse(&format!("s{i}"), &text), sync()].concat())
    };
    let mut raw = Raw::login(pgusher.address(), "raw");
    let states: Vec<String> = (0..size(12, 40)).map(|i| prepare(&mut raw, i)).collect();
    assert!(states[..4].iter().all(String::is_empty), "{states:?}");
    assert!(states[4..].iter().all(|state| state == "53200"), "{states:?}");
    assert!(pgusher.resident() < 200 << 10, "{} KiB", pgusher.resident());
    // What it gives back, it has again.
    assert_eq!(state_of(&mut raw, &query("DEALLOCATE ALL")), "");
    assert_eq!(prepare(&mut raw, 50), "");
    drop(raw);
    // And whoever comes after it has the same memory, and not 60 MiB more each. (An allocator gives free memory back only when
    // it is asked for more: what the last two have left may still be there.)
    for round in 1..=5 {
        let mut other = Raw::login(pgusher.address(), "raw");
        assert!((0..4).all(|i| prepare(&mut other, 100 * round + i).is_empty()));
    }
    assert!(pgusher.resident() < 300 << 10, "{} KiB", pgusher.resident());
}

#[test]
fn a_client_with_very_many_statements_is_refused_and_leaves_nothing() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let batch = |from: usize| {
        let mut bytes: Vec<u8> =
            (from..from + 1000).flat_map(|i| parse(&format!("s{i}"), &format!("SELECT {i}"))).collect();
        bytes.extend(sync());
        bytes
    };
    let mut raw = Raw::login(pgusher.address(), "raw");
    let refused =
        (0..200).find_map(|i| Some((i, state_of(&mut raw, &batch(1000 * i)))).filter(|(_, s)| !s.is_empty()));
    let (thousands, state) = refused.expect("200,000 statements are too many");
    assert_eq!(state, "53200");
    assert!((20..140).contains(&thousands), "{thousands}");
    assert!(pgusher.resident() < 200 << 10, "{} KiB", pgusher.resident());
    // It goes on with those that it has.
    assert_eq!(raw.value("SELECT 1"), "1");
    let run = [bind("", "s7", &[]), execute(), sync()].concat();
    assert_eq!(raw.ask(&run)[1].columns(), ["7"]);
    drop(raw);
    let mut other = Raw::login(pgusher.address(), "raw");
    assert_eq!(state_of(&mut other, &batch(0)), "");
}

/// One piece of a pipeline whose messages each become a long one.
#[test]
fn statements_that_are_prepared_again_and_again_cost_bounded_memory() {
    // Its connection keeps one of them.
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 1\nmax_prepared_statements = 1", "", ""));
    let mut raw = Raw::login(pgusher.address(), "raw");
    for name in ["a", "b"] {
        let text = format!("SELECT length('{}')", name.repeat(8 << 20));
        assert_eq!(raw.tags(&[parse(name, &text), sync()].concat()), "1Z");
    }
    let before = pgusher.resident();
    let both = [bind("", "a", &[]), bind("", "b", &[])].concat();
    assert_eq!(raw.tags(&[both.repeat(40), sync()].concat()), format!("{}Z", "2".repeat(80)));
    assert!(pgusher.most_resident() < before + (200 << 10), "{} KiB", pgusher.most_resident());
    assert_eq!(raw.value("SELECT 1"), "1");
}

#[test]
fn a_listen_to_very_many_channels_keeps_the_session_alive() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 3", "", ""));
    let mut raw = Raw::login(pgusher.address(), "raw");
    for from in (0..3000).step_by(500) {
        let listen: String = (from..from + 500).map(|i| format!("LISTEN \"bounds_{i}\";")).collect();
        done(&mut raw, &listen);
    }
    assert_eq!(raw.value("SHOW pgusher.pin"), "listen");
    assert_eq!(raw.value("SELECT count(*) FROM pg_listening_channels()"), "3000");
    let mut other = Raw::login(pgusher.address(), "raw");
    for i in [0, 999, 1000, 2999] {
        done(&mut other, &format!("NOTIFY bounds_{i}, 'x'"));
        let told = raw.next().unwrap();
        let text = format!("bounds_{i}\0x\0");
        assert!(told.tag == 'A' && told.body.ends_with(text.as_bytes()), "{told:?}");
    }
    done(&mut raw, "UNLISTEN *");
    assert_eq!(raw.value("SHOW pgusher.pin"), "");
}

#[test]
fn a_console_session_keeps_few_tables_and_texts() {
    let pgusher = Pgusher::start(&(warehouse("", "", "") + OPERATORS));
    let mut raw = console(&pgusher, "watcher");
    let portals: Vec<u8> = (0..17).flat_map(|i| bind(&format!("p{i}"), "s", &[])).collect();
    let answer = raw.ask(&[parse("s", "SHOW HELP"), portals, sync()].concat());
    let tags: String = answer.iter().map(|m| m.tag).collect();
    assert_eq!(tags, format!("1{}EZ", "2".repeat(16)));
    assert_eq!(answer[17].field('C'), "54000");
    // One that is there may be bound anew.
    assert_eq!(raw.tags(&[bind("p3", "s", &[]), sync()].concat()), "2Z");
    let long = format!("SHOW VERSION{}", " ".repeat(60_000));
    let states: Vec<String> =
        (0..30).map(|i| state_of(&mut raw, &[parse(&format!("t{i}"), &long), sync()].concat())).collect();
    assert_eq!(
        states.iter().filter(|state| *state == "53200").count(),
        30 - (1 << 20) / long.len(),
        "{states:?}"
    );
    assert_eq!(state_of(&mut raw, &query("SHOW VERSION")), "");
}
