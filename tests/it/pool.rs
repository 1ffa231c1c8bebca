//! A pool by itself, for what a whole process would show by chance only.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgusher::config::Config;
use pgusher::error::{Fault, Refusal, SqlState};
use pgusher::names::UserName;
use pgusher::pool::{HostCount, Pool, PoolSettings, Runtimes};
use pgusher::upstream::Dialer;
use tokio_util::task::TaskTracker;

use super::fake::{Fake, probed, ready};

/// It can be reset, as far as it says.
fn upstream() -> Fake {
    Fake::start(|peer| {
        peer.welcome();
        peer.serve(|sql| sql.contains("pg_backend_pid").then(|| [probed(), ready()].concat()));
    })
}

fn settings_of(fake: &Fake, more: &str) -> PoolSettings {
    let text = fake.config("", &["k0".into()], &format!("sslmode = \"disable\"\npool_size = 1\n{more}"));
    let config = Config::parse(Path::new("pgusher.toml"), &text.replace("@PORT@", "1")).unwrap().config;
    let connection = config.connections.values().next().unwrap();
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
    let runtimes = Runtimes { control, data, tasks: TaskTracker::new() };
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
    assert!(matches!(granted, Ok(pgusher::pool::Outcome::Granted(_))), "{granted:?}");
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
    assert!(pool.try_lend(Some(&user)).is_some(), "it was outworn when it was opened");
}
