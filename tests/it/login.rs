//! How clients prove who they are, and how pgusher proves itself to upstreams.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use policy::verifier::Verifier;

use super::fake::{Fake, refused};
use super::house::{
    Pgusher, Postgres, WAREHOUSE, eventually, free_port, pair, run, size, temporary_folder, warehouse,
};
use super::tls::certificates;
use super::wire::{Raw, message, query, startup};

#[test]
fn every_method_takes_the_right_password_only() {
    let config = warehouse("", "", "")
        + r#"
[users.m]
auth_type = "md5"
password = "m"
[users.stored]
auth_type = "md5"
password = "md5@MD5@"
[users.clear]
auth_type = "password"
password = "clear"
[users.verifier]
auth_type = "password"
password = "@VERIFIER@"
[users.scram]
password = "@VERIFIER@"
[users.gone]
password = "gone"
disabled = true
"#;
    let hashed = {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pgusher"))
            .arg("hash-password")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"s3same\n").unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
    };
    let md5 = policy::verifier::md5_hex([b"stored", b"stored"]);
    let pgusher = Pgusher::start(&config.replace("@VERIFIER@", &hashed).replace("@MD5@", &md5));
    let login = |user: &str, password: &str| pgusher.psql_with(user, password, &[], &["SELECT 1"]);
    for (user, password) in [
        ("m", "m"),
        ("stored", "stored"),
        ("clear", "clear"),
        ("verifier", "s3same"),
        ("scram", "s3same"),
        ("dana", "dana"),
    ] {
        assert_eq!(login(user, password).as_deref(), Ok("1"), "{user}");
        for wrong in ["x", "S3SAME", &format!("{password} ")] {
            let error = login(user, wrong).unwrap_err();
            let expected = format!("password authentication failed for user \"{user}\"");
            assert!(error.contains(&expected), "{user} {wrong}: {error}");
        }
    }
    assert!(login("gone", "gone").unwrap_err().contains("role \"gone\" is not permitted to log in"));
    assert!(login("gone", "x").unwrap_err().contains("password authentication failed"));
    assert!(!pgusher.log().contains("s3same"), "a password in the log");
}

#[test]
fn protocol_3_2_has_long_keys_and_what_is_newer_is_negotiated() {
    let pgusher = Pgusher::start(&warehouse("", "", ""));
    let pairs = [("user", "raw"), ("database", "warehouse")];
    let raw = Raw::login_with(pgusher.address(), 0x0003_0002, &pairs);
    assert_eq!(raw.key.1.len(), 32);
    assert_eq!(Raw::login_with(pgusher.address(), 0x0003_0000, &pairs).key.1.len(), 4);
    let mut grease = Raw::connect(pgusher.address());
    grease.send(&startup(0x0003_270f, &[&pairs[..], &[("_pq_.no_such_thing", "x")]].concat()));
    let answer = grease.until_ready();
    let negotiated = answer.iter().find(|m| m.tag == 'v').unwrap();
    assert_eq!(negotiated.body[..8], [0, 3, 0, 2, 0, 0, 0, 1]);
    assert_eq!(&negotiated.body[8..], b"_pq_.no_such_thing\0");
    assert_eq!(answer.last().unwrap().tag, 'Z');
    let mut old = Raw::connect(pgusher.address());
    old.send(&startup(0x0002_0000, &pairs));
    assert_eq!(old.next().unwrap().field('C'), "0A000");
}

#[test]
fn gss_encryption_is_refused_and_the_login_goes_on() {
    let pgusher = Pgusher::start(&warehouse("", "", ""));
    let mut raw = Raw::connect(pgusher.address());
    for request in [[4, 210, 22, 48], [4, 210, 22, 47]] {
        raw.send(&[&[0, 0, 0, 8], &request[..]].concat());
        let mut answer = [0];
        raw.stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"N");
    }
    raw.send(&startup(0x0003_0000, &[("user", "raw"), ("database", "warehouse")]));
    assert_eq!(raw.until_ready().last().unwrap().tag, 'Z');
}

#[test]
fn what_is_sent_behind_the_startup_packet_is_answered_behind_the_login() {
    let pgusher = Pgusher::start(&warehouse("", "", ""));
    let login = startup(0x0003_0000, &[("user", "raw"), ("database", "warehouse")]);
    let long = format!("SELECT length('{}')", "x".repeat(100_000));
    for sql in ["SELECT 'at once'", long.as_str()] {
        let bytes = [&login[..], &query(sql)].concat();
        for split in [bytes.len(), login.len(), login.len() + 1, login.len() + 5, login.len() + 10, 9] {
            let mut raw = Raw::connect(pgusher.address());
            raw.send(&bytes[..split]);
            raw.send(&bytes[split..]);
            assert_eq!(raw.until_ready().last().map(|m| m.tag), Some('Z'));
            let answer = raw.until_ready();
            assert_eq!(answer.iter().map(|m| m.tag).collect::<String>(), "TDCZ", "{split}");
        }
    }
}

/// A pgusher with one connection, to a server, with these lines.
fn towards(server: &Postgres, lines: &str, folder: std::path::PathBuf) -> Pgusher {
    let config = format!(
        "[server]\nlisten = [\"127.0.0.1:@PORT@\"]\n[connections.warehouse]\nhost = \"127.0.0.1\"\nport = {}\n\
         database = \"secured\"\n{lines}\n[users.dana]\nauth_type = \"trust\"\n",
        server.port
    );
    Pgusher::start_in(folder, &config)
}

#[test]
fn upstream_logins_use_every_method_and_every_sslmode() {
    let server = Postgres::start("secured");
    let folder = temporary_folder("upstream");
    certificates(&folder);
    let data = server.folder.join("data");
    for file in ["server.crt", "server.key", "ca.crt"] {
        run(Command::new("cp").arg(folder.join(file)).arg(data.join(file)));
        run(Command::new("chown").arg("--reference").arg(&data).arg(data.join(file)));
        run(Command::new("chmod").arg("600").arg(data.join(file)));
    }
    server.sql("postgres", "ALTER SYSTEM SET ssl = on");
    server.sql("postgres", "ALTER SYSTEM SET ssl_ca_file = 'ca.crt'");
    server.sql("postgres", "CREATE ROLE pete LOGIN");
    server.sql("postgres", "CREATE ROLE s LOGIN PASSWORD 's'; SET password_encryption = md5; CREATE ROLE m LOGIN PASSWORD 'm'; CREATE ROLE p LOGIN PASSWORD 'p'; CREATE ROLE plainonly LOGIN; CREATE ROLE tlsonly LOGIN");
    let rules = "local all all trust\nhost all s all scram-sha-256\nhost all m all md5\nhost all p all password\n\
                 hostnossl all plainonly all trust\nhostssl all tlsonly all trust\nhostssl all pete all cert\nhost all all all trust\n";
    let rules =
        rules.replace("host all all all trust", "host all postgres all trust\nhost all app all trust");
    std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
    server.ctl("restart", &[]);
    let select = |lines: &str| {
        let pgusher = towards(&server, lines, temporary_folder("mode"));
        let tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        pgusher.psql("dana", tls)
    };
    let ca = folder.join("ca.crt").display().to_string();
    let other = folder.join("other_ca.crt").display().to_string();
    let certified = |name: &str| {
        let [certificate, key] =
            ["crt", "key"].map(|end| folder.join(format!("{name}.{end}")).display().to_string());
        format!("username = \"pete\"\nsslcert = \"{certificate}\"\nsslkey = \"{key}\"")
    };
    for (lines, expected) in [
        ("username = \"s\"\npassword = \"s\"\nsslmode = \"disable\"".to_owned(), "f"),
        (
            "username = \"s\"\npassword = \"s\"\nsslmode = \"prefer\"\nchannel_binding = \"require\""
                .to_owned(),
            "t",
        ),
        ("username = \"m\"\npassword = \"m\"\nsslmode = \"allow\"\nrequire_auth = \"md5\"".to_owned(), "f"),
        (
            "username = \"p\"\npassword = { command = [\"printf\", \"p\"] }\nsslmode = \"require\"\n\
             require_auth = [\"scram-sha-256\", \"password\"]"
                .to_owned(),
            "t",
        ),
        // Whoever is verified may ask for a password in any form.
        (format!("username = \"m\"\npassword = \"m\"\nsslmode = \"verify-ca\"\nsslrootcert = \"{ca}\""), "t"),
        (
            format!("username = \"p\"\npassword = \"p\"\nsslmode = \"verify-full\"\nsslrootcert = \"{ca}\""),
            "t",
        ),
        ("username = \"tlsonly\"\nsslmode = \"allow\"".to_owned(), "t"),
        ("username = \"plainonly\"\nsslmode = \"prefer\"".to_owned(), "f"),
        (format!("username = \"app\"\nsslmode = \"verify-ca\"\nsslrootcert = \"{ca}\""), "t"),
        (format!("username = \"app\"\nsslmode = \"verify-full\"\nsslrootcert = \"{ca}\""), "t"),
        (certified("pete"), "t"),
    ] {
        assert_eq!(select(&lines).as_deref(), Ok(expected), "{lines}");
    }
    for (lines, expected) in [
        (format!("username = \"app\"\nsslmode = \"verify-ca\"\nsslrootcert = \"{other}\""), "UnknownIssuer"),
        ("username = \"s\"\npassword = \"wrong\"".to_owned(), "password authentication failed for user"),
        ("username = \"s\"".to_owned(), "wants a password and none is set"),
        (
            "username = \"m\"\npassword = \"m\"\nsslmode = \"require\"".to_owned(),
            "asks for an MD5 hash of the password, which require_auth does not allow",
        ),
        (
            "username = \"p\"\npassword = \"p\"\nsslmode = \"prefer\"".to_owned(),
            "asks for the password in clear text, which require_auth does not allow",
        ),
        (
            "username = \"s\"\npassword = \"s\"\nrequire_auth = \"md5, password\"".to_owned(),
            "asks for a SCRAM proof, which require_auth does not allow",
        ),
        (
            "username = \"tlsonly\"\nsslmode = \"require\"\nrequire_auth = \"scram-sha-256\"".to_owned(),
            "asks for no proof, which require_auth does not allow",
        ),
        ("username = \"tlsonly\"\nsslmode = \"disable\"".to_owned(), "pg_hba.conf"),
        (
            "username = \"m\"\npassword = \"m\"\nsslmode = \"require\"\nchannel_binding = \"require\""
                .to_owned(),
            "channel binding is required",
        ),
        (
            "username = \"s\"\npassword = \"s\"\nscram_min_iterations = 50000".to_owned(),
            "scram_min_iterations",
        ),
        (certified("dana"), "certificate authentication failed for user \"pete\""),
    ] {
        let error = select(&lines).unwrap_err();
        assert!(error.contains(expected), "{lines}: {error}");
        assert!(error.contains("Environment \"base\""), "{error}");
        assert!(!error.contains("\"dana\""), "it is not the client's password that is wrong: {error}");
    }
    let socket = format!("username = \"app\"\n# {}", server.folder.display());
    let config_host = format!("host = \"{}\"", server.folder.display());
    let config = format!(
        "[server]\nlisten = [\"127.0.0.1:@PORT@\"]\n[connections.warehouse]\n{config_host}\nport = {}\ndatabase = \"secured\"\n{socket}\n[users.dana]\nauth_type = \"trust\"\n",
        server.port
    );
    assert_eq!(Pgusher::start(&config).psql("dana", "SELECT inet_server_addr() IS NULL").unwrap(), "t");
}

#[test]
fn a_password_goes_only_to_an_upstream_that_may_have_it() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    // The name of the database says what it asks for.
    let fake = Fake::start(move |peer| {
        let code: u8 = if peer.database.starts_with("md5") { 5 } else { 3 };
        let salt: &[u8] = if code == 5 { b"salt" } else { b"" };
        peer.send(&message('R', &[&[0, 0, 0, code], salt].concat()));
        let Some(answer) = peer.next() else { return };
        told.lock().unwrap().push((peer.database.clone(), answer.body));
        peer.welcome();
        peer.serve(|_| None);
    });
    let names = ["md5_refused", "clear_refused"].map(str::to_owned);
    for lines in ["", "require_auth = \"scram-sha-256, none\"", "sslmode = \"prefer\""] {
        let pgusher = Pgusher::start(&fake.config("", &names, lines));
        for (name, word) in [("md5_refused", "md5"), ("clear_refused", "password")] {
            let error = refused(&pgusher, "raw", name);
            assert_eq!(error.field('C'), "08001");
            assert!(error.field('M').contains("which require_auth does not allow"), "{}", error.field('M'));
            let hint = error.field('H');
            assert!(hint.contains(&format!("require_auth = \"{word}\"")), "{hint}");
            assert!(hint.contains(&format!("[connections.{name}]")), "{hint}");
            // The log says it, too: that is where the operator looks.
            eventually("the log says it", || pgusher.log().contains(&format!("[connections.{name}]")));
        }
        assert!(seen.lock().unwrap().is_empty(), "{lines}: {:?}", seen.lock().unwrap());
    }
    let names = ["md5_given", "clear_given"].map(str::to_owned);
    let pgusher = Pgusher::start(&fake.config("", &names, "require_auth = \"md5, password\""));
    for name in &names {
        drop(super::fake::login(&pgusher, name));
    }
    let seen = seen.lock().unwrap();
    assert!(seen.iter().any(|(name, body)| name == "clear_given" && body == b"secret\0"), "{seen:?}");
    assert!(seen.iter().any(|(name, body)| name == "md5_given" && body.starts_with(b"md5")), "{seen:?}");
}

/// What `pgusher check` says of this configuration, and whether it takes it.
fn check(config: &str, files: &[(&str, &str)]) -> (bool, String) {
    let folder = temporary_folder("check");
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let path = folder.join("pgusher.toml");
    std::fs::write(&path, config.replace("@PORT@", "6432")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pgusher")).arg("check").arg(path).output().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_password_that_is_empty_or_cannot_be_seen_is_refused_at_load() {
    let files =
        [("mark", "\u{feff}"), ("mark_and_line", "\u{feff}\r\n"), ("nothing", ""), ("good", "\u{feff}x\n")];
    let user = |password: &str| warehouse("", "", "") + &format!("\n[users.bob]\npassword = {password}\n");
    let connection = |password: &str| warehouse("", &format!("password = {password}"), "");
    for password in [
        "\"\"",
        "\"\\u00ad\"",
        "\"\\ufeff\"",
        "{ file = \"mark\" }",
        "{ file = \"mark_and_line\" }",
        "{ file = \"nothing\" }",
        "{ command = [\"printf\", \"\"] }",
    ] {
        for config in [user(password), connection(password)] {
            let (taken, said) = check(&config, &files);
            assert!(!taken && said.contains("the password is empty"), "{password}: {said}");
            assert!(said.contains("pgusher.toml:"), "where: {said}");
        }
    }
    for config in [user("{ file = \"good\" }"), connection("{ file = \"good\" }")] {
        let (taken, said) = check(&config, &files);
        assert!(taken, "{said}");
    }
    let (taken, said) = check(&connection("\"x\"\nrequire_auth = \"scram, none\""), &[]);
    assert!(!taken && said.contains("scram-sha-256"), "{said}");
    let (taken, said) = check(&connection("\"x\"\nsslcrl = \"list.pem\""), &[]);
    assert!(!taken && said.contains("sslmode"), "{said}");
}

/// `pgusher hash-password` with this on its standard input.
fn hash_password(input: &str) -> std::process::Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pgusher"))
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn accepts(verifier: &[u8], password: &str) -> bool {
    let text = String::from_utf8(verifier.to_vec()).unwrap().trim().to_owned();
    match Verifier::parse(&text.into()) {
        Ok(Verifier::Scram(verifier)) => verifier.accepts(password),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hash_password_makes_no_verifier_of_an_empty_password() {
    for input in ["", "\n", "\r\n", "\u{feff}\n", "\u{ad}\n"] {
        let output = hash_password(input);
        assert!(!output.status.success() && output.stdout.is_empty(), "{input:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("empty"), "{input:?}: {output:?}");
    }
    assert!(accepts(&hash_password("\u{feff}s3same\r\n").stdout, "s3same"));
}

#[test]
fn what_is_typed_for_hash_password_is_not_shown() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    // What is typed, and whether a verifier comes of it.
    for (typed, comes) in
        [(["s3same\n", "s3same\n"], true), (["s3same\n", "s3sane\n"], false), (["s3same\u{3}", ""], false)]
    {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let terminal = std::fs::File::options().read(true).write(true).open(name).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pgusher"))
            .arg("hash-password")
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut master = std::fs::File::from(master);
        let mut prompts = child.stderr.take().unwrap();
        for (prompt, line) in ["Password: ", "Again: "].into_iter().zip(typed) {
            if line.is_empty() {
                break;
            }
            let mut asked = vec![0; prompt.len()];
            prompts.read_exact(&mut asked).unwrap();
            assert_eq!(asked, prompt.as_bytes());
            master.write_all(line.as_bytes()).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.success(), comes, "{typed:?}: {output:?}");
        assert!(!comes || accepts(&output.stdout, "s3same"));
        // The terminal shows again what is typed; before that, nothing was shown but line ends.
        master.write_all(b"shown").unwrap();
        let mut screen = Vec::new();
        while !screen.ends_with(b"shown") {
            let mut piece = [0; 64];
            let read = master.read(&mut piece).unwrap();
            screen.extend_from_slice(&piece[..read]);
        }
        let screen = String::from_utf8(screen).unwrap();
        assert!(!screen.contains("s3sa"), "{screen:?}");
        drop(terminal);
    }
}

#[test]
fn a_name_with_several_addresses_is_tried_to_the_end() {
    // `localhost` is ::1 first where the system has it, and the server listens on 127.0.0.1 only.
    let config = WAREHOUSE
        .replace("host = \"127.0.0.1\"", "host = \"localhost\"")
        .replace("@DEV@", &pair().dev.port.to_string())
        .replace("@PROD@", &pair().prod.port.to_string());
    let config =
        ["@SERVER@", "@BASE@", "@ENVIRONMENT@", "@USERS@"].iter().fold(config, |c, p| c.replace(p, ""));
    assert_eq!(Pgusher::start(&config).psql("pete", "SELECT name FROM whoami").unwrap(), "prod");
}

#[test]
fn an_unreachable_upstream_is_an_error_within_connect_timeout_and_names_its_environment() {
    let port = free_port();
    let config = warehouse("", "", "connect_timeout = \"2s\"")
        .replace(&format!("port = {}", pair().prod.port), &format!("port = {port}"));
    let pgusher = Pgusher::start(&config);
    let error = pgusher.psql("pete", "SELECT 1").unwrap_err();
    assert!(error.contains("Environment \"prod\" (connection \"warehouse_prod\")"), "{error}");
    assert_eq!(pgusher.psql("dana", "SELECT name FROM whoami").unwrap(), "dev");
}

#[test]
fn a_rotated_upstream_password_is_read_again_before_anybody_sees_an_error() {
    let server = Postgres::start("secured");
    server.sql(
        "postgres",
        "CREATE ROLE rotating LOGIN PASSWORD 'old'; GRANT SELECT ON pg_database TO rotating",
    );
    std::fs::write(
        server.folder.join("data/pg_hba.conf"),
        "local all all trust\nhost all rotating all scram-sha-256\nhost all all all trust\n",
    )
    .unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()");
    let folder = temporary_folder("rotated");
    std::fs::write(folder.join("secret"), "old\n").unwrap();
    // Connections live shortly, so that there are logins all the time.
    let pgusher = towards(
        &server,
        "username = \"rotating\"\npassword = { file = \"secret\" }\npool_mode = \"session\"",
        folder,
    );
    assert_eq!(pgusher.psql("dana", "SELECT 1").unwrap(), "1");
    let logins = AtomicUsize::new(0);
    let (clients, each) = (6, size(120, 2000));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for i in 0..clients {
            let (pgusher, logins) = (&pgusher, &logins);
            scope.spawn(move || {
                for j in 0..each {
                    // Different settings each time: in session mode, a login upstream each time.
                    let options = format!("-c my.n={i}.{j}");
                    let pairs = [("user", "dana"), ("database", "warehouse"), ("options", &options)];
                    let mut raw = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
                    assert_eq!(raw.value("SHOW my.n"), format!("{i}.{j}"));
                    logins.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for (change, password) in ["new", "newer", "newest"].into_iter().enumerate() {
            let after = (change + 1) * clients * each / 4;
            while logins.load(Ordering::Relaxed) <= after {
                let until_now = logins.load(Ordering::Relaxed);
                eventually("another login", || logins.load(Ordering::Relaxed) > until_now);
            }
            std::fs::write(pgusher.folder.join("secret"), format!("{password}\n")).unwrap();
            server.sql("postgres", &format!("ALTER ROLE rotating PASSWORD '{password}'"));
        }
    });
    let rate = (clients * each) as f64 / started.elapsed().as_secs_f64();
    eprintln!("{} logins, {rate:.0} a second, 3 passwords changed, no failure", clients * each);
    assert!(!pgusher.log().contains("\"new\"") && !pgusher.log().contains("\"old\""));
}

#[test]
fn limits_refuse_with_53300() {
    let config = warehouse("max_client_conn = 3\nmax_user_client_connections = 2", "", "");
    let pgusher = Pgusher::start(&config);
    let _held = [Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw")];
    let error = |user: &str| {
        let mut raw = Raw::connect(pgusher.address());
        raw.send(&startup(0x0003_0000, &[("user", user), ("database", "warehouse")]));
        raw.until_ready().iter().find(|m| m.tag == 'E').map(|m| format!("{} {}", m.field('C'), m.field('M')))
    };
    assert_eq!(error("raw").unwrap(), "53300 too many connections for role \"raw\"");
    let third = Raw::login(pgusher.address(), "rawprod");
    assert_eq!(error("rawprod").unwrap(), "53300 sorry, too many clients already");
    drop(third);
    eventually("a place is free again", || error("rawprod").is_none());
}

#[test]
fn idle_clients_and_idle_transactions_are_ended_with_postgresqls_codes() {
    let config = warehouse(
        "client_idle_timeout = \"300ms\"\nidle_transaction_timeout = \"200ms\"\nquery_wait_timeout = \"300ms\"\ndefault_pool_size = 1",
        "",
        "",
    );
    let pgusher = Pgusher::start(&config);
    let mut idle = Raw::login(pgusher.address(), "raw");
    assert_eq!(idle.next().unwrap().field('C'), "57P05");
    let mut open = Raw::login(pgusher.address(), "raw");
    open.value("BEGIN");
    let mut waiting = Raw::login(pgusher.address(), "raw");
    waiting.send(&query("SELECT 'served'"));
    let mut blocker = Raw::login(pgusher.address(), "rawprod");
    blocker.send(&query("SELECT pg_sleep(1)"));
    assert_eq!(open.next().unwrap().field('C'), "25P03");
    assert!(
        waiting.until_ready().iter().any(|m| m.tag == 'D'),
        "the place of the one that was ended is free"
    );
    let mut queued = Raw::login(pgusher.address(), "rawprod");
    let answer = queued.ask(&query("SELECT 1"));
    assert_eq!(answer[0].field('C'), "53300", "{answer:?}");
    assert!(answer[0].field('M').contains("query_wait_timeout"));
}

/// Also of those that do nothing, and of whom nothing comes that would have them look at the clock.
#[test]
fn a_limit_that_a_reload_sets_is_heard_of_by_sessions_that_do_nothing() {
    for before in ["", "client_idle_timeout = \"1h\"\n"] {
        let pgusher = Pgusher::start(&warehouse(before, "", ""));
        let silent = Raw::login(pgusher.address(), "raw");
        let mut has_asked = Raw::login(pgusher.address(), "raw");
        has_asked.value("SELECT 1");
        let mut keeps = Raw::login(pgusher.address(), "raw");
        keeps.value("CREATE TEMP TABLE kept (a int)");
        // They are told to rest by then, where they are not told at once.
        std::thread::sleep(Duration::from_millis(2500));
        pgusher.reload(&warehouse("client_idle_timeout = \"300ms\"\n", "", ""));
        for mut raw in [silent, has_asked, keeps] {
            assert_eq!(
                raw.next().expect("an end within the patience of tests").field('C'),
                "57P05",
                "{before}"
            );
        }
    }
}
