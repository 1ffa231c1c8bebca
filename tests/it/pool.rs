//! A pool by itself, for what a whole process would show by chance only.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgusher::inside::Dialer;
use pgusher::inside::{Data, HostCount, Pool, PoolSettings, Runtimes, WaitEnd, Waiter};
use policy::config::Connection;
use policy::names::UserName;
use relay::Effects;
use tokio_util::task::TaskTracker;
use wire::error::{Fault, Refusal, SqlState};
use wire::startup::Settings;

use super::fake::{Fake, probed, ready};
use super::house::eventually;

/// It can be reset, as far as it says.
fn upstream() -> Fake {
    counted_upstream().0
}

/// The same, and how many connections to it were opened.
fn counted_upstream() -> (Fake, Arc<AtomicUsize>) {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    let fake = Fake::start(move |peer| {
        count.fetch_add(1, Ordering::SeqCst);
        peer.welcome();
        peer.serve(|sql| sql.contains("pg_backend_pid").then(|| [probed(), ready()].concat()));
    });
    (fake, opened)
}

fn settings_of(fake: &Fake, more: &str) -> PoolSettings {
    settings_with(fake, &format!("pool_size = 1\n{more}"))
}

fn settings_with(fake: &Fake, connection: &str) -> PoolSettings {
    settings_after(fake, connection, |_| {})
}

fn settings_after(fake: &Fake, connection: &str, change: impl FnOnce(&mut Connection)) -> PoolSettings {
    let text = fake.config("", &["k0".into()], &format!("sslmode = \"disable\"\n{connection}"));
    let mut config =
        pgusher::inside::draft_of(Path::new("pgusher.toml"), &text.replace("@PORT@", "1")).unwrap().config;
    let connection = config.connections.values_mut().next().unwrap();
    change(Arc::get_mut(connection).unwrap());
    let connection = &connection.clone();
    PoolSettings {
        dialer: Dialer::of(&config.server, connection).unwrap(),
        reserve_pool_timeout: Duration::ZERO,
        idle_timeout: Duration::ZERO,
        lifetime: Duration::ZERO,
        max_prepared_statements: 0,
        catalog_interval: Duration::ZERO,
    }
}

/// One of one connection to this upstream.
fn pool(fake: &Fake) -> (tokio::runtime::Runtime, Arc<Pool>, PoolSettings) {
    let settings = settings_of(fake, "");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (control, data) = (runtime.handle().clone(), runtime.handle().clone());
    let runtimes = Runtimes { control, data: Data::Tokio(data), tasks: TaskTracker::new() };
    let pool = Pool::new(settings.clone(), 1, runtimes, &Arc::new(HostCount::default()));
    (runtime, pool, settings)
}

/// Few bytes of stack are enough for any number of them.
#[test]
fn a_connection_passes_over_however_many_have_left_while_they_waited() {
    let fake = upstream();
    let (runtime, pool, _) = pool(&fake);
    let user = UserName::from("ann");
    let lease = runtime.block_on(pool.acquire(&user)).unwrap();
    let (left, waits): (Vec<_>, _) = ((0..100_000).map(|_| pool.wait(&user)).collect(), pool.wait(&user));
    left.iter()
        .for_each(|t| t.refuse(Refusal::new(Fault::Client, SqlState::ADMIN_SHUTDOWN, "it was told to go")));
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, || lease.release()).unwrap();
    });
    let granted = runtime.block_on(async {
        let turn = std::future::poll_fn(|cx| waits.poll(cx));
        tokio::time::timeout(Duration::from_secs(20), turn).await
    });
    assert!(matches!(granted, Ok(WaitEnd::Granted(_))), "{granted:?}");
}

/// Settings and the order to reconnect come from different threads: neither leaves the pool with connections that are outworn
/// when they are opened.
#[test]
fn new_settings_and_orders_to_reconnect_at_the_same_time_leave_a_pool_that_serves() {
    let fake = upstream();
    let (runtime, pool, settings) = pool(&fake);
    let other = settings_of(&fake, "include_schemas = [\"elsewhere\"]");
    std::thread::scope(|scope| {
        scope.spawn(|| (0..2_000).for_each(|_| pool.reconnect()));
        scope.spawn(|| {
            (0..1_000).for_each(|_| [&other, &settings].into_iter().for_each(|s| pool.update(s.clone())));
        });
    });
    let user = UserName::from("ann");
    let acquired =
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), pool.acquire(&user)).await });
    let lease = acquired.expect("nobody is served").unwrap();
    lease.release();
    assert!(pool.try_lend(&user, 0).is_some(), "it was outworn when it was opened");
}

/// A fault of ours while a connection is opened costs the client that waits for it an error, and nobody a connection.
#[test]
fn a_dial_that_panics_has_failed_and_the_pool_goes_on() {
    let fake = upstream();
    let (runtime, pool, settings) = pool(&fake);
    // No instant is so far away: the check lets no such time through.
    let endless =
        settings_after(&fake, "pool_size = 1", |connection| connection.connect_timeout = Duration::MAX);
    let user = UserName::from("ann");
    let acquire = || {
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), pool.acquire(&user)).await })
    };
    pool.update(endless);
    for _ in 0..3 {
        let refused = acquire().expect("nobody is told").expect_err("it was opened");
        assert_eq!((refused.fault, refused.sqlstate), (Fault::Ours, SqlState::INTERNAL), "{refused:?}");
    }
    pool.update(settings);
    acquire().expect("nobody is served").unwrap().release();
}

/// What a login is shown of settings is shown to all later ones: on a connection that was used it must be proved.
#[test]
fn a_used_connection_that_does_not_answer_what_it_was_asked_welcomes_nobody() {
    let fake = upstream();
    let (runtime, pool, _) = pool(&fake);
    let user = UserName::from("ann");
    let startup = |value: &str| Settings::ours([("work_mem", value.to_owned())]);
    assert!(runtime.block_on(pool.welcome(&startup("1MB"), &user)).is_ok(), "nobody had used it");
    // This upstream answers every query without a row, as one does that is still busy with another.
    assert!(runtime.block_on(pool.welcome(&startup("2MB"), &user)).is_err());
}

/// Two definitions together change more settings than are told apart: no reason to keep everybody on a connection.
#[test]
fn what_others_define_pins_nobody() {
    let fake = upstream();
    let (_runtime, pool, mut settings) = pool(&fake);
    settings.catalog_interval = Duration::from_secs(3600);
    pool.update(settings);
    for name in ["a", "b"] {
        let settings = (0..60).map(|n| format!("my.{name}{n}")).collect();
        pool.outdate_catalog(&Effects { settings, defines: true, ..Effects::default() });
        let effects = pool.catalog().mentioned(b"SELECT 1").unwrap();
        assert_eq!(effects.pin, None, "{name}");
        assert!(effects.asks_all);
    }
}

/// Two pools of one host, which may have so many connections.
fn pools(limit: u32, settings: [PoolSettings; 2]) -> (tokio::runtime::Runtime, [Arc<Pool>; 2]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = Arc::new(HostCount::default());
    host.set_limit(limit);
    let pools = settings.map(|settings| {
        let (control, data) = (runtime.handle().clone(), runtime.handle().clone());
        Pool::new(
            settings,
            1,
            Runtimes { control, data: Data::Tokio(data), tasks: TaskTracker::new() },
            &host,
        )
    });
    (runtime, pools)
}

/// What a dial gives back is offered to the host's other pools at once, not at the next second.
#[test]
fn a_dial_that_fails_leaves_its_turn_to_another_pool() {
    let (begun, begins) = std::sync::mpsc::channel();
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let ends = std::sync::Mutex::new(ends);
    let refusing = Fake::start(move |_| {
        begun.send(()).unwrap();
        let _ = ends.lock().unwrap().recv();
    });
    let serving = upstream();
    let (runtime, [failing, waiting]) = pools(1, [settings_of(&refusing, ""), settings_of(&serving, "")]);
    let user = UserName::from("ann");
    let first = failing.wait(&user);
    begins.recv().unwrap();
    let second = waiting.wait(&user);
    drop(end);
    let answer = |waiter: Arc<Waiter>| {
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), std::future::poll_fn(|cx| waiter.poll(cx))).await
        })
    };
    let (first, second) = (answer(first), answer(second));
    assert!(matches!(first, Ok(WaitEnd::Refused(_))), "{first:?}");
    assert!(matches!(second, Ok(WaitEnd::Granted(_))), "{second:?}");
}

/// A pool that nobody waits for does not close another's connections to have its least: that one would do the same.
#[test]
fn pools_do_not_take_from_each_other_what_nobody_waits_for() {
    let (fake, opened) = counted_upstream();
    let settings = || settings_with(&fake, "pool_size = 2\nmin_pool_size = 2");
    let (runtime, pools) = pools(3, [settings(), settings()]);
    let user = UserName::from("ann");
    for pool in &pools {
        runtime.block_on(pool.acquire(&user)).unwrap().release();
    }
    for _ in 0..10 {
        for pool in &pools {
            pool.tend();
            eventually("it has dialled", || pool.view().dialing == 0);
        }
    }
    assert_eq!(pools.map(|pool| pool.view().idle).iter().sum::<usize>(), 3);
    assert_eq!(opened.load(Ordering::SeqCst), 3);
}

/// Somebody who waits for one more connection of dev must not have prod's only one closed: it would be of no use to dev, as a
/// place is kept for prod.
#[test]
fn who_waits_in_one_pool_closes_no_connection_that_is_of_no_use_to_it() {
    let (fake, opened) = counted_upstream();
    let settings = |least| settings_with(&fake, &format!("pool_size = 9\nmin_pool_size = {least}"));
    let (runtime, [dev, prod]) = pools(4, [settings(0), settings(1)]);
    let user = UserName::from("ann");
    runtime.block_on(prod.acquire(&user)).unwrap().release();
    let held: Vec<_> = (0..3).map(|_| runtime.block_on(dev.acquire(&user)).unwrap()).collect();
    let waits = dev.wait(&user);
    for _ in 0..50 {
        runtime.block_on(prod.acquire(&user)).unwrap().release();
        [&dev, &prod].into_iter().for_each(|pool| pool.tend());
    }
    assert_eq!(opened.load(Ordering::SeqCst), 4, "prod's only connection was closed and opened again");
    drop(held);
    let turn = async {
        let turn = std::future::poll_fn(|cx| waits.poll(cx));
        tokio::time::timeout(Duration::from_secs(20), turn).await
    };
    assert!(matches!(runtime.block_on(turn), Ok(WaitEnd::Granted(_))));
}
