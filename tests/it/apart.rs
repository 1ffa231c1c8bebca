//! No environment hurts another through the house: whatever goes wrong with one, at once, the others' logins, queries,
//! cancels and console commands end.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::fake::{Fake, Relay};
use super::house::{Pgusher, Postgres, pair, size};
use super::wire::{Raw, cancel, query, startup};

const VERSION: u32 = 0x0003_0000;

fn config(evil: u16, hole: u16) -> String {
    let prod = pair().prod.port;
    let connection = |name: &str, port: u16, database: &str| {
        format!(
            "[connections.{name}]\nhost = \"127.0.0.1\"\nport = {port}\ndatabase = \"{database}\"\nusername = \"app\"\n"
        )
    };
    format!(
        "[server]\nlisten = [\"127.0.0.1:@PORT@\"]\nthreads = 2\ncatalog_interval = \"1s\"\n\
         server_connect_timeout = \"5s\"\ncancel_wait_timeout = \"8s\"\n\
         {}user_attribute = \"environment\"\ndefault_values = [\"dev\"]\n\
         environments = [{{ connection = \"warehouse_prod\", name = \"prod\", values = [\"prod\"] }}]\n\
         {}production = true\n{}\
         [users.raw]\nauth_type = \"trust\"\n[users.ops]\nauth_type = \"trust\"\nconsole = \"admin\"\n\
         [users.pete]\npassword = \"pete\"\nattributes = {{ environment = \"prod\" }}\n\
         [users.rawprod]\nauth_type = \"trust\"\nattributes = {{ environment = \"prod\" }}\n",
        connection("warehouse", evil, "evil"),
        connection("warehouse_prod", prod, "prod"),
        connection("hole", hole, "hole"),
    )
}

/// What whoever may define functions in one database can do with that.
fn fill_with_hostile_functions(evil: &Postgres) {
    let define = "SET check_function_bodies = off; CREATE SCHEMA hostile; ";
    let nested: String = (0..6000).map(|i| format!("DO $x{i:x}$ ")).collect();
    let functions = [
        format!("CREATE FUNCTION hostile.nested() RETURNS void LANGUAGE plpgsql AS $a$ {nested} $a$"),
        format!(
            "CREATE FUNCTION hostile.cubic() RETURNS void LANGUAGE plpgsql AS $a$ {} $a$",
            "begin set_config( ".repeat(3000)
        ),
        "DO $do$ BEGIN FOR i IN 1..3000 LOOP EXECUTE format('CREATE FUNCTION hostile.f%s() RETURNS void LANGUAGE \
         plpgsql AS $a$ begin perform hostile.f%s(); set my.x%s = 1; end $a$', i, i % 3000 + 1, i); END LOOP; END $do$"
            .to_owned(),
        "DO $do$ BEGIN FOR i IN 1..30 LOOP EXECUTE format('CREATE FUNCTION hostile.words%s() RETURNS void LANGUAGE \
         plpgsql AS %L', i, (SELECT string_agg(md5((i * 100000 + n)::text), ' ') FROM generate_series(1, 30000) AS n)); \
         END LOOP; END $do$"
            .to_owned(),
    ];
    evil.sql("evil", &format!("{define}{}", functions.join("; ")));
}

/// Goes on until it is dropped.
struct Trouble {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Trouble {
    fn make(parts: Vec<Box<dyn Fn() + Send>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = parts
            .into_iter()
            .map(|part| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        part();
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Somebody says hello to these, and waits a while for whatever comes.
fn knock(address: SocketAddr, user: &str, database: &str, sql: &str) {
    let Ok(mut stream) = TcpStream::connect(address) else { return };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
    let bytes = [startup(VERSION, &[("user", user), ("database", database)]), query(sql)].concat();
    let _ = std::io::Write::write_all(&mut stream, &bytes);
    let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
    std::thread::sleep(Duration::from_millis(20));
}

/// So many logins, queries, cancels and console commands of prod; how long each took, sorted. All of them end.
fn work(pgusher: &Pgusher, rounds: usize) -> Vec<(&'static str, Vec<Duration>)> {
    let address = pgusher.address();
    let took = |begun: Instant, times: &mut Vec<Duration>| times.push(begun.elapsed());
    let (mut logins, mut queries, mut cancels, mut commands) = (vec![], vec![], vec![], vec![]);
    let mut console = Raw::login_with(address, VERSION, &[("user", "ops"), ("database", "pgusher")]);
    for round in 0..rounds {
        let begun = Instant::now();
        let mut raw = Raw::login(address, "rawprod");
        took(begun, &mut logins);
        let begun = Instant::now();
        assert_eq!(raw.value("SELECT name FROM whoami"), "prod");
        took(begun, &mut queries);
        if round % 20 == 0 {
            raw.send(&query("SELECT pg_sleep(60)"));
            std::thread::sleep(Duration::from_millis(10));
            let begun = Instant::now();
            // Sent before the query runs, a cancel does nothing: it is sent again.
            cancel(address, raw.key.0, &raw.key.1);
            while !raw.answers_within(Duration::from_secs(1)) {
                cancel(address, raw.key.0, &raw.key.1);
            }
            let answer = raw.until_ready();
            assert!(answer.iter().any(|m| m.tag == 'E' && m.field('C') == "57014"), "{answer:?}");
            took(begun, &mut cancels);
            let begun = Instant::now();
            assert!(console.tags(&query("SHOW POOLS")).ends_with("CZ"));
            took(begun, &mut commands);
        }
        if round % 50 == 0 {
            // Not only those who are trusted.
            assert_eq!(pgusher.psql("pete", "SELECT name FROM whoami").unwrap(), "prod");
        }
    }
    let mut all = vec![("login", logins), ("query", queries), ("cancel", cancels), ("console", commands)];
    all.iter_mut().for_each(|(_, times)| times.sort());
    all
}

fn tell(when: &str, all: &[(&'static str, Vec<Duration>)]) {
    for (what, times) in all {
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        println!("{when}: {} × {what}: p50 {:?}, p99 {:?}", times.len(), at(50), at(99));
    }
}

#[test]
fn prod_works_while_all_that_can_go_wrong_with_dev_does() {
    let evil = Postgres::start("evil");
    let relay = Relay::to(evil.port);
    let hole = Fake::start_raw(|_| std::thread::sleep(Duration::from_secs(3600)));
    // A command that is in force: another would not be run.
    let config = config(relay.port(), hole.port())
        + "[users.slow]\npassword = { command = [\"sh\", \"-c\", \"sleep 3; echo x\"] }\n";
    let pgusher = Pgusher::start(&config);
    let rounds = size(100, 1000);
    tell("quiet", &work(&pgusher, rounds));

    fill_with_hostile_functions(&evil);
    let address = pgusher.address();
    // A cancel of dev's takes as long as it may.
    relay.delay_cancels(Duration::from_secs(30));
    let mut sleeper = Raw::login(address, "raw");
    sleeper.send(&query("SELECT pg_sleep(3600)"));
    let key = sleeper.key.clone();
    let slow = pgusher.folder.join("slow.toml");
    let plan = config.replace("@PORT@", &pgusher.port.to_string());
    std::fs::write(&slow, plan).unwrap();
    let cancelled = Arc::new(AtomicUsize::new(0));
    let mut parts: Vec<Box<dyn Fn() + Send>> = Vec::new();
    for _ in 0..8 {
        let (key, cancelled) = (key.clone(), cancelled.clone());
        parts.push(Box::new(move || {
            let mut packet = (12 + key.1.len() as u32).to_be_bytes().to_vec();
            packet.extend(80_877_102_u32.to_be_bytes());
            packet.extend(key.0.to_be_bytes());
            packet.extend(&key.1);
            if let Ok(mut stream) = TcpStream::connect(address) {
                let _ = std::io::Write::write_all(&mut stream, &packet);
                cancelled.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(10));
        }));
        parts.push(Box::new(move || knock(address, "raw", "warehouse", "SELECT hostile.nested()")));
        parts.push(Box::new(move || knock(address, "raw", "hole", "SELECT 1")));
    }
    let nested: String = (0..8500).map(|i| format!("DO $y{i:x}$")).take(6000).collect();
    parts.push(Box::new(move || knock(address, "raw", "warehouse", &nested)));
    parts.push(Box::new(move || {
        let Ok(mut stream) = TcpStream::connect(address) else { return };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(4)));
        let command = query(&format!("PLAN '{}'", slow.display()));
        let hello = startup(VERSION, &[("user", "ops"), ("database", "pgusher")]);
        let _ = std::io::Write::write_all(&mut stream, &[hello, command].concat());
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
    }));
    let trouble = Trouble::make(parts);
    tell("with all that", &work(&pgusher, rounds));
    drop(trouble);
    assert!(cancelled.load(Ordering::Relaxed) > 100);
    drop(sleeper);
    super::fake::unharmed(&pgusher);
}
