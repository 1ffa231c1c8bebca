//! What a service manager and a container expect: systemd's notifications and sockets, a restart that nobody notices, the
//! duties of process 1.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::house::{Pgusher, eventually, free_port, pair, size, temporary_folder, warehouse};
use super::wire::{Raw, query};

#[test]
fn systemd_is_told_when_it_is_ready_reloads_lives_and_stops() {
    let folder = temporary_folder("notify");
    let path = folder.join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let heard = || {
        let mut text = [0; 4096];
        let length = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let notify = format!("NOTIFY_SOCKET={}", path.display());
    let config = warehouse("", "", "");
    let mut pgusher = Pgusher::start_by(&config, &["env", &notify, "WATCHDOG_USEC=300000"]);
    let until = |what: &str| loop {
        let text = heard();
        if text.contains(what) {
            return text;
        }
        // Nothing else comes than the signs of life.
        assert!(text.starts_with("WATCHDOG=1"), "{text} instead of {what}");
    };
    until("READY=1");
    let began = Instant::now();
    for _ in 0..5 {
        until("WATCHDOG=1");
    }
    assert!(began.elapsed() > Duration::from_millis(250) && began.elapsed() < Duration::from_secs(3));
    pgusher.signal("HUP");
    assert!(until("RELOADING=1").contains("MONOTONIC_USEC="));
    until("READY=1");
    pgusher.signal("TERM");
    until("STOPPING=1");
    assert!(pgusher.child.wait().unwrap().success());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn sockets_of_the_service_manager_are_listened_on_in_place_of_the_files() {
    let port = free_port();
    // What systemd does: the socket is descriptor 3, and who is meant is said.
    let activate = format!(
        "import os, socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', {port})); s.listen(16)
os.dup2(os.dup(s.fileno()), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')
os.execv(sys.argv[1], sys.argv[1:])"
    );
    let mut pgusher = Pgusher::spawn_by(&warehouse("", "", ""), &["python3", "-c", &activate]);
    let own = pgusher.port;
    pgusher.port = port;
    pgusher.answers();
    let mut raw = Raw::login(pgusher.address(), "raw");
    assert_eq!(raw.value("SELECT 1"), "1");
    let own: SocketAddr = (Ipv4Addr::LOCALHOST, own).into();
    assert!(std::net::TcpStream::connect(own).is_err());
}

/// Clients that come, ask and leave, and clients that stay, while one process takes over from another: nobody is refused,
/// and no query fails.
#[test]
fn a_restart_beside_the_old_process_fails_nobody() {
    let mut old = Pgusher::start(&warehouse("so_reuseport = true", "", ""));
    let address = old.address();
    let first = old.descriptors();
    let (ends, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let rounds = size(3, 100);
    std::thread::scope(|scope| {
        for stays in [false, false, false, true] {
            let (ends, served) = (&ends, &served);
            scope.spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    let mut raw = Raw::login(address, "raw");
                    // Whoever stays, stays for a while: until then the old process serves him.
                    let until = Instant::now() + Duration::from_millis(if stays { 300 } else { 0 });
                    loop {
                        assert_eq!(raw.value("SELECT 'served'"), "served");
                        served.fetch_add(1, Ordering::Relaxed);
                        if Instant::now() >= until {
                            break;
                        }
                    }
                }
            });
        }
        for _ in 0..rounds {
            std::thread::sleep(Duration::from_millis(200));
            let new = Pgusher::start_beside(&warehouse("so_reuseport = true", "", ""), old.port);
            old.signal("USR2");
            let before = served.load(Ordering::Relaxed);
            eventually("the old one ends after its last client", || old.child.try_wait().unwrap().is_some());
            assert!(old.child.wait().unwrap().success());
            eventually("the new one serves", || served.load(Ordering::Relaxed) > before + 20);
            old = new;
        }
        ends.store(true, Ordering::Relaxed);
    });
    // Whatever a process is handed, or takes, is gone with it.
    assert!(
        old.descriptors() < first + 20,
        "{first} descriptors in the first, {} in the last",
        old.descriptors()
    );
    eprintln!("{rounds} restarts, {} queries, none failed", served.load(Ordering::Relaxed));
}

#[test]
fn a_unix_socket_changes_hands_too() {
    let folder = temporary_folder("unix");
    let server = "so_reuseport = true\nlisten = [\"127.0.0.1:@PORT@\", \"unix:@FOLDER@\"]";
    let config = warehouse(server, "", "").replace("listen = [\"127.0.0.1:@PORT@\"]\n", "");
    let config = config.replace("@FOLDER@", &folder.display().to_string());
    let mut old = Pgusher::start(&config);
    let port = old.port;
    let ask = || {
        let target = format!("host={} port={port} user=raw dbname=warehouse", folder.display());
        crate::house::psql().args(["-XAtqc", "SELECT 1", &target]).status().unwrap().success()
    };
    assert!(ask());
    let new = Pgusher::start_beside(&config, port);
    old.signal("USR2");
    eventually("it ends", || old.child.try_wait().unwrap().is_some());
    assert!(ask());
    drop(new);
    std::fs::remove_dir_all(folder).unwrap();
}

/// What those of PgBouncer, and scripts that rotate logs, send.
#[test]
fn signals_of_other_poolers_do_no_harm() {
    let mut pgusher = Pgusher::start(&warehouse("", "", ""));
    let mut raw = Raw::login(pgusher.address(), "raw");
    pgusher.signal("USR1");
    eventually("it says what to do", || pgusher.log().contains("SIGUSR1 does nothing here: PAUSE"));
    pgusher.signal("USR2");
    eventually("it is refused", || pgusher.log().contains("SIGUSR2 refused"));
    assert_eq!(raw.value("SELECT 1"), "1");
    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 1"), "1");
    pgusher.signal("QUIT");
    assert!(pgusher.child.wait().unwrap().success());
    assert!(pgusher.log().contains("SIGQUIT: ending at once"));
}

/// A reload waits for the commands of secrets, and a signal to stop must not wait for the reload.
#[test]
fn stopping_does_not_wait_for_a_reload_that_takes_long() {
    let text = warehouse("", "", "");
    let mut pgusher = Pgusher::start(&text);
    let mark = pgusher.folder.join("began");
    let slow = format!(
        "\n[connections.slow]\nhost = \"127.0.0.1\"\nusername = \"x\"\n\
         password = {{ command = [\"sh\", \"-c\", \"touch {}; exec sleep 30\"] }}\n",
        mark.display()
    );
    let text = (text + &slow).replace("@PORT@", &pgusher.port.to_string());
    std::fs::write(pgusher.folder.join("pgusher.toml"), text).unwrap();
    pgusher.signal("HUP");
    eventually("the command runs", || mark.exists());
    pgusher.signal("QUIT");
    assert!(pgusher.child.wait().unwrap().success());
    let log = pgusher.log();
    assert!(log.contains("SIGQUIT: ending at once") && !log.contains("reload refused"), "{log}");
}

#[test]
fn as_process_1_it_obeys_signals_and_buries_orphans() {
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !Command::new(unshare[0]).args(&unshare[1..]).arg("true").status().is_ok_and(|s| s.success()) {
        return eprintln!("not done: this machine gives no namespace of processes");
    }
    let secret = "password = { command = [\"sh\", \"-c\", \"sleep 0.1 & echo app\"] }";
    let config = warehouse("", secret, "");
    let mut pgusher = Pgusher::start_by(&config, &unshare);
    let inner = || {
        let children = format!("/proc/{0}/task/{0}/children", pgusher.child.id());
        std::fs::read_to_string(children).unwrap().trim().to_owned()
    };
    let first = inner();
    let dead = || {
        let output = Command::new("ps").args(["-o", "stat=", "--ppid", &first]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().filter(|stat| stat.starts_with('Z')).count()
    };
    eventually("the orphan has died", || dead() > 0);
    eventually("it is buried", || dead() == 0);
    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 1"), "1");
    assert!(Command::new("kill").args(["-TERM", &first]).status().unwrap().success());
    assert!(pgusher.child.wait().unwrap().success());
}

/// A cancel request that comes to the process that has not the session reaches it all the same, and nobody else gets its key.
#[test]
fn a_cancel_reaches_the_process_that_has_the_session() {
    let mut old = Pgusher::start(&warehouse("so_reuseport = true", "", ""));
    let address = old.address();
    let mut raw = Raw::login(address, "raw");
    raw.send(&query("SELECT pg_sleep(60)"));
    eventually("it runs", || {
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()";
        pair().dev.sql("dev", running) == "1"
    });
    let new = Pgusher::start_beside(&warehouse("so_reuseport = true", "", ""), old.port);
    old.signal("USR2");
    eventually("it lets nobody in", || old.log().contains("asked to end"));
    // From here on every connection is the new one's: a wrong key does nothing, and the right one ends the query.
    std::thread::sleep(Duration::from_millis(200));
    super::wire::cancel(address, raw.key.0, b"none");
    let begun = Instant::now();
    raw.cancel(address);
    let error = raw.until_ready().into_iter().find(|message| message.tag == 'E').unwrap();
    assert_eq!(error.field('C'), "57014");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(raw.value("SELECT 'goes on'"), "goes on");
    drop(raw);
    eventually("the old one ends after its last client", || old.child.try_wait().unwrap().is_some());
    let mut other = Raw::login(address, "raw");
    assert_eq!(other.value("SELECT 1"), "1");
    assert!(!new.log().contains("panicked"));
}
