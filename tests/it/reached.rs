//! What functions leave in a session that no statement names: whatever keeps an expression or is made of functions runs them, as
//! PostgreSQL's own dependencies (`pg_depend`) and expressions (`pg_node_tree`) say.

use super::functions::is_carried;
use super::house::{Pgusher, pair, warehouse};

const SETS: &str = "
CREATE FUNCTION sets(v text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN set_config('my.x', v, false); END $$;
CREATE FUNCTION sets_step(state text, v text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set_config('my.x', v, false); END $$;
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE FUNCTION sets_by_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('my.x', '9MB', false); END $$;";

const NAMED: &str = "
CREATE AGGREGATE collects(text) (sfunc = sets_step, stype = text);
CREATE AGGREGATE ends(text) (sfunc = textcat, stype = text, finalfunc = sets, initcond = '');
CREATE AGGREGATE collects_directly(text, boolean) (sfunc = set_config, stype = text, initcond = 'my.x');
CREATE TABLE checked_by_trigger (a text);
CREATE TRIGGER t BEFORE INSERT ON checked_by_trigger FOR EACH ROW WHEN (sets(NEW.a) <> '') EXECUTE FUNCTION nothing();
CREATE TABLE directly_by_trigger (a text);
CREATE TRIGGER t BEFORE INSERT ON directly_by_trigger FOR EACH ROW
  WHEN (set_config('my.x', NEW.a, false) <> '') EXECUTE FUNCTION nothing();
CREATE TABLE ruled (a text);
CREATE RULE r AS ON INSERT TO ruled WHERE sets(NEW.a) = '' DO INSTEAD NOTHING;
CREATE TABLE ruled_directly (a text);
CREATE RULE r AS ON INSERT TO ruled_directly WHERE set_config('my.x', NEW.a, false) = '' DO INSTEAD NOTHING;
CREATE TABLE partitioned (a text) PARTITION BY LIST (sets(a));
CREATE TABLE part PARTITION OF partitioned DEFAULT;
CREATE VIEW calls_it AS SELECT sets('9MB') AS a;
CREATE TABLE guarded (a int);
CREATE POLICY p ON guarded USING ((SELECT a FROM calls_it) IS NOT NULL);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
INSERT INTO guarded VALUES (1);
CREATE TABLE above (a int PRIMARY KEY);
CREATE TABLE below (a int REFERENCES above);
CREATE FUNCTION on_truncate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM sets('9MB'); RETURN NULL; END $$;
CREATE TRIGGER t BEFORE TRUNCATE ON below EXECUTE FUNCTION on_truncate();
CREATE DOMAIN dom AS text CHECK (sets(VALUE) <> '');
CREATE DOMAIN dom_directly AS text CHECK (set_config('my.x', VALUE, false) <> '');
CREATE TABLE of_domain (a dom);
CREATE TABLE of_domains (a dom[]);
CREATE TYPE composed AS (a dom);
CREATE FUNCTION takes_domain(a dom) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
CREATE TYPE mood AS ENUM ('9MB');
CREATE FUNCTION from_mood(mood) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN sets('9MB'); END $$;
CREATE CAST (mood AS text) WITH FUNCTION from_mood(mood) AS IMPLICIT;
CREATE TABLE of_mood (a mood);
INSERT INTO of_mood VALUES ('9MB');
CREATE TABLE indexed (a text);
CREATE INDEX ON indexed (sets(a));
CREATE TABLE partly (a text);
CREATE INDEX ON partly (a) WHERE sets(a) <> '';
CREATE FUNCTION by_default(a text DEFAULT sets('9MB')) RETURNS text LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION by_default_directly(a text DEFAULT set_config('my.x', '9MB', false)) RETURNS text LANGUAGE sql AS 'SELECT a';
CREATE VIEW runs_a_text AS SELECT query_to_xml('SELECT set_config(''work_mem'', ''9MB'', false)', true, true, '') AS a;
CREATE VIEW settings AS SELECT name, setting FROM pg_settings;
CREATE TABLE seen (a int);
CREATE MATERIALIZED VIEW kept AS SELECT 1 AS a;
GRANT SELECT ON guarded, calls_it TO plain;
GRANT UPDATE ON settings TO app;
ALTER MATERIALIZED VIEW kept OWNER TO app;
ALTER TABLE seen OWNER TO app;
CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION sets_by_event();";

const UNNAMED: &str = "
CREATE FUNCTION compares(a int, b int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM sets('9MB'); RETURN true; END $$;
CREATE OPERATOR ~~~ (LEFTARG = int, RIGHTARG = int, FUNCTION = compares);
CREATE FUNCTION \"-+-\"() RETURNS text LANGUAGE sql AS $$ SELECT sets('9MB') $$;";

/// A database of its own for each: what can run with anything would run for all tests.
fn start(database: &str, definitions: &str) -> Pgusher {
    let dev = &pair().dev;
    dev.sql("postgres", &format!("CREATE DATABASE {database} OWNER app"));
    dev.sql(database, &format!("{SETS}{definitions}"));
    dev.sql(
        database,
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO app; GRANT CREATE ON SCHEMA public TO app",
    );
    let config = warehouse("default_pool_size = 1", "", "");
    Pgusher::start(&config.replacen("database = \"dev\"", &format!("database = \"{database}\""), 1))
}

#[test]
fn what_is_run_by_what_a_statement_names_is_carried() {
    let pgusher = start("reached", NAMED);
    for make in [
        "SELECT collects(a) FROM (VALUES ('9MB')) AS v (a)",
        "SELECT ends(a) FROM (VALUES ('9MB')) AS v (a)",
        "INSERT INTO checked_by_trigger VALUES ('9MB')",
        "INSERT INTO ruled VALUES ('9MB')",
        "INSERT INTO partitioned VALUES ('9MB')",
        "BEGIN; SET LOCAL ROLE plain; SELECT * FROM guarded; COMMIT",
        "TRUNCATE above CASCADE",
        "SELECT '9MB'::dom",
        "INSERT INTO of_domain VALUES ('9MB')",
        "INSERT INTO of_domains VALUES ('{9MB}')",
        "SELECT ROW('9MB')::composed",
        "SELECT takes_domain('9MB')",
        "SELECT upper(a) FROM of_mood",
        "SELECT upper('9MB'::mood)",
        "INSERT INTO indexed VALUES ('9MB')",
        "INSERT INTO partly VALUES ('9MB')",
        "SELECT by_default()",
        "SELECT * FROM runs_a_text",
        "UPDATE settings SET setting = '9MB' WHERE name = 'work_mem'",
        "COMMENT ON TABLE seen IS 'seen'",
        "GRANT SELECT ON seen TO PUBLIC",
        "REVOKE SELECT ON seen FROM PUBLIC",
        "SELECT 1 AS a INTO made",
        "REFRESH MATERIALIZED VIEW kept",
        "DROP TABLE made",
    ] {
        is_carried(&pgusher, make, "");
    }
    // What PostgreSQL's own function has set by itself cannot be asked for: its name is in an expression.
    for make in [
        "SELECT collects_directly('9MB', false)",
        "INSERT INTO directly_by_trigger VALUES ('9MB')",
        "INSERT INTO ruled_directly VALUES ('9MB')",
        "SELECT '9MB'::dom_directly",
        "SELECT by_default_directly()",
    ] {
        is_carried(&pgusher, make, "setting");
    }
}

#[test]
fn what_is_run_by_what_has_no_name_is_carried() {
    let pgusher = start("unnamed", UNNAMED);
    for make in ["SELECT 1 ~~~ 2", "SELECT \"-+-\"()", "DO $$ BEGIN PERFORM 1 ~~~ 2; END $$"] {
        is_carried(&pgusher, make, "");
    }
}

/// The catalogs in which the server keeps expressions. A new one is to be added to what the database is asked
/// (`src/pool/catalog/questions.rs`), and here.
#[test]
fn every_catalog_that_keeps_expressions_is_looked_through() {
    let others = pair().dev.sql(
        "postgres",
        "SELECT string_agg(c, ' ') FROM (SELECT attrelid::regclass || '.' || attname FROM pg_attribute \
         WHERE atttypid = 'pg_node_tree'::regtype AND attrelid < 16384) AS v (c) \
         WHERE c NOT IN ('pg_attrdef.adbin', 'pg_constraint.conbin', 'pg_index.indexprs', 'pg_index.indpred', \
         'pg_partitioned_table.partexprs', 'pg_policy.polqual', 'pg_policy.polwithcheck', 'pg_proc.proargdefaults', \
         'pg_proc.prosqlbody', 'pg_rewrite.ev_action', 'pg_rewrite.ev_qual', 'pg_statistic_ext.stxexprs', \
         'pg_trigger.tgqual', 'pg_type.typdefaultbin', 'pg_class.relpartbound', 'pg_publication_rel.prqual')",
    );
    assert_eq!(others.trim(), "");
}
