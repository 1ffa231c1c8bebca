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

/// Few bytes of stack are enough for any number of them.
#[test]
fn a_connection_passes_over_however_many_have_left_while_they_waited() {
    let fake = Fake::start(|peer| {
        peer.welcome();
        peer.serve(|sql| sql.contains("pg_backend_pid").then(|| [probed(), ready()].concat()));
    });
    let text = fake.config("", &["k0".into()], "sslmode = \"disable\"\npool_size = 1");
    let config = Config::parse(Path::new("pgusher.toml"), &text.replace("@PORT@", "1")).unwrap().config;
    let connection = config.connections.values().next().unwrap();
    let settings = PoolSettings {
        dialer: Dialer::of(&config.server, connection).unwrap(),
        reserve_pool_timeout: Duration::ZERO,
        idle_timeout: Duration::ZERO,
        lifetime: Duration::ZERO,
        max_prepared_statements: 0,
        catalog_interval: Duration::ZERO,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (control, data) = (runtime.handle().clone(), runtime.handle().clone());
    let runtimes = Runtimes { control, data, tasks: TaskTracker::new() };
    let pool = Pool::new(settings, 1, runtimes, &Arc::new(HostCount::default()));
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
