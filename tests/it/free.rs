//! Statements that need a database to themselves: right after its last client has left they work, as directly.

use super::house::{Pgusher, pair, warehouse};
use super::state::done;
use super::wire::{Raw, bind, execute, parse, query, sync};

fn login(pgusher: &Pgusher, user: &str, database: &str) -> Raw {
    Raw::login_with(pgusher.address(), 0x0003_0000, &[("user", user), ("database", database)])
}

#[test]
fn a_database_is_free_when_its_last_client_has_left() {
    let dev = &pair().dev;
    for mode in ["transaction", "session"] {
        let connection = |name: &str, port: u16, more: &str| {
            format!(
                "[connections.{name}]\nhost = \"127.0.0.1\"\nport = {port}\ndatabase = \"freed\"\nusername = \"app\"\n\
                 min_pool_size = 1\n{more}\n"
            )
        };
        // The same database of another environment is nobody's here to close.
        let more = connection(
            "freed",
            dev.port,
            "user_attribute = \"environment\"\ndefault_values = [\"dev\"]\n\
                               environments = [{ connection = \"freed_other\", name = \"other\", values = [\"prod\"] }]",
        ) + &connection("freed_other", dev.port, "");
        let config = warehouse(&format!("pool_mode = \"{mode}\""), "", "") + &more;
        let pgusher = Pgusher::start(&config);
        let mut owner = login(&pgusher, "raw", "warehouse");
        let statements = [
            "DROP DATABASE freed",
            "ALTER DATABASE freed RENAME TO freed_2",
            "CREATE DATABASE freed_3 TEMPLATE freed",
        ];
        for (number, text) in statements.iter().enumerate() {
            for extended in [false, true] {
                done(&mut owner, "CREATE DATABASE freed");
                assert_eq!(login(&pgusher, "raw", "freed").value("SELECT 1"), "1");
                let bytes = match extended {
                    true => [parse("", text), bind("", "", &[]), execute(), sync()].concat(),
                    false => query(text),
                };
                let answer = owner.ask(&bytes);
                let error = answer.iter().find(|m| m.tag == 'E').map(|m| m.field('M'));
                assert_eq!(error, None, "{text}, {mode}");
                match number {
                    0 => {}
                    1 => drop(done(&mut owner, "DROP DATABASE freed_2")),
                    _ => {
                        done(&mut owner, "DROP DATABASE freed_3");
                        done(&mut owner, "DROP DATABASE freed");
                    }
                }
            }
        }
        // Whoever is connected keeps it, as directly; and so does whom another environment has.
        done(&mut owner, "CREATE DATABASE freed");
        let mut other = login(&pgusher, "rawprod", "freed");
        let pid = other.value("SELECT 0 + pg_backend_pid()");
        assert_eq!(owner.ask(&query("DROP DATABASE freed"))[0].field('C'), "55006", "{mode}");
        assert_eq!(other.value("SELECT 0 + pg_backend_pid()"), pid);
        drop((other, owner, pgusher));
        let alone =
            || dev.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE datname = 'freed'") == "0";
        super::house::eventually("nobody is connected", alone);
        dev.sql("postgres", "DROP DATABASE freed");
    }
}
