//! What a database is asked of its functions and of what runs them. Objects are two columns: the catalog that they are in, and their
//! number there.

use relay::sql::RUN_TEXTS;

/// The settings of these questions end with their transaction: names mean PostgreSQL's own, and come as UTF-8.
pub(super) const BEGIN: &str = "BEGIN READ ONLY;SET LOCAL search_path=pg_catalog,pg_temp;SET LOCAL client_encoding='UTF8';SET LOCAL statement_timeout='30s'";

/// `prosrc` is empty where the body is kept parsed (`BEGIN ATOMIC`). Of the functions in C, those that are known to
/// matter; an aggregate does what the functions do that it is made of.
pub(super) const FUNCTIONS: &str = "SELECT p.oid, p.proname, CASE WHEN p.prokind = 'a' THEN 'sql' ELSE l.lanname END, \
    CASE WHEN p.prokind = 'a' THEN '' ELSE \
      left(CASE WHEN p.prosrc = '' THEN pg_get_functiondef(p.oid) ELSE p.prosrc END, 65537) END, \
    p.prorettype = 'event_trigger'::regtype, p.provolatile = 'i', array_to_string(p.proconfig, E'\\n') \
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
    WHERE p.oid >= 16384 AND (p.prokind = 'a' OR l.lanname NOT IN ('c', 'internal') OR p.proname ~ '^(dblink|set_limit$)')";

/// Every expression that the server keeps parsed (columns of the type `pg_node_tree`), and what runs it; beside those of partitions'
/// bounds, which are constants, of publications, which no client runs, and of functions' bodies, of which the text is read.
/// (`stxexprs` is there from version 14 on.)
const EXPRESSIONS: &str = "\
    SELECT 'pg_class'::regclass AS class, ev_class AS object, concat(ev_qual::text, ev_action::text) AS expression \
      FROM pg_rewrite WHERE ev_class >= 16384 \
    UNION ALL SELECT 'pg_class'::regclass, adrelid, adbin::text FROM pg_attrdef WHERE adrelid >= 16384 \
    UNION ALL SELECT 'pg_class'::regclass, polrelid, concat(polqual::text, polwithcheck::text) FROM pg_policy \
    UNION ALL SELECT CASE WHEN conrelid > 0 THEN 'pg_class' ELSE 'pg_type' END::regclass, \
      CASE WHEN conrelid > 0 THEN conrelid ELSE contypid END, conbin::text FROM pg_constraint \
      WHERE oid >= 16384 AND conbin IS NOT NULL \
    UNION ALL SELECT 'pg_class'::regclass, tgrelid, tgqual::text FROM pg_trigger WHERE tgqual IS NOT NULL \
    UNION ALL SELECT 'pg_class'::regclass, indrelid, concat(indexprs::text, indpred::text) FROM pg_index \
      WHERE indrelid >= 16384 AND (indexprs IS NOT NULL OR indpred IS NOT NULL) \
    UNION ALL SELECT 'pg_class'::regclass, partrelid, partexprs::text FROM pg_partitioned_table WHERE partexprs IS NOT NULL \
    UNION ALL SELECT 'pg_class'::regclass, stxrelid, to_jsonb(s)->>'stxexprs' FROM pg_statistic_ext s \
    UNION ALL SELECT 'pg_proc'::regclass, oid, proargdefaults::text FROM pg_proc \
      WHERE oid >= 16384 AND proargdefaults IS NOT NULL \
    UNION ALL SELECT 'pg_type'::regclass, oid, typdefaultbin::text FROM pg_type \
      WHERE oid >= 16384 AND typdefaultbin IS NOT NULL";

/// What runs functions of PostgreSQL's own that leave something: by an expression, or made of them (aggregates, operators). No
/// dependencies are kept of those (`pg_depend` in the manual). What it does is the third column; a view of `pg_settings` can be updated.
pub(super) fn direct() -> String {
    let run_texts = RUN_TEXTS.map(|name| format!("'{name}'")).join(",");
    format!(
        "WITH f AS (SELECT oid, CASE WHEN proname IN ('set_config', 'setseed') THEN 'settings' \
            WHEN proname IN ({run_texts}) THEN 'texts' \
            WHEN proname IN ('currval', 'lastval', 'pg_notify') OR proname ~ '^pg_(try_)?advisory_(lock|unlock)' THEN 'objects' \
            END AS does FROM pg_proc WHERE oid < 16384), \
        p AS (SELECT does, ':(op)?funcid (' || string_agg(oid::text, '|') || ') ' AS pattern, array_agg(oid) AS functions \
            FROM f WHERE does IS NOT NULL GROUP BY does \
          UNION ALL SELECT 'texts', ':relid ' || 'pg_settings'::regclass::oid || ' ', '{{}}'::oid[]), \
        x AS ({EXPRESSIONS}) \
        SELECT x.class::oid, x.object, p.does FROM x JOIN p ON x.expression ~ p.pattern \
        UNION ALL SELECT 'pg_proc'::regclass, a.aggfnoid, p.does FROM pg_aggregate a JOIN p ON p.functions && ARRAY[\
            a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, \
            a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[] WHERE a.aggfnoid >= 16384 \
        UNION ALL SELECT 'pg_operator'::regclass, o.oid, p.does FROM pg_operator o \
            JOIN p ON o.oprcode::oid = ANY (p.functions) WHERE o.oid >= 16384"
    )
}

/// Who runs or reaches whom. What depends on something uses it, as `pg_depend` has it: of functions, operators and their classes, and
/// types whoever has them, of relations rules and policies. And what belongs to something is run by it: a default, a rule, a policy, a
/// constraint, a trigger, an index and extended statistics by their relation; a domain's constraint, a cast and what is in operator
/// classes by their types. (An operator may run with any statement.) A parent reaches its children, and what is referenced reaches what references it (it may have to
/// change, be deleted or truncated with it).
pub(super) const USES: &str = "\
    WITH d AS (SELECT classid, objid, refclassid, refobjid FROM pg_depend WHERE refobjid >= 16384 \
      AND (refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_opclass'::regclass, 'pg_type'::regclass) \
        OR refclassid = 'pg_class'::regclass AND classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass))), \
    u AS (SELECT DISTINCT classid, objid FROM d), \
    o AS (SELECT u.*, coalesce(a.adrelid, r.ev_class, p.polrelid, c.conrelid, t.tgrelid, i.indrelid, s.stxrelid, 0) AS relation, \
        ARRAY[c.contypid, k.castsource, k.casttarget, l.opcintype, f.amproclefttype, f.amprocrighttype] AS types \
      FROM u LEFT JOIN pg_attrdef a ON u.classid = 'pg_attrdef'::regclass AND a.oid = u.objid \
      LEFT JOIN pg_rewrite r ON u.classid = 'pg_rewrite'::regclass AND r.oid = u.objid \
      LEFT JOIN pg_policy p ON u.classid = 'pg_policy'::regclass AND p.oid = u.objid \
      LEFT JOIN pg_constraint c ON u.classid = 'pg_constraint'::regclass AND c.oid = u.objid \
      LEFT JOIN pg_trigger t ON u.classid = 'pg_trigger'::regclass AND t.oid = u.objid \
      LEFT JOIN pg_index i ON u.classid = 'pg_class'::regclass AND i.indexrelid = u.objid \
      LEFT JOIN pg_statistic_ext s ON u.classid = 'pg_statistic_ext'::regclass AND s.oid = u.objid \
      LEFT JOIN pg_cast k ON u.classid = 'pg_cast'::regclass AND k.oid = u.objid \
      LEFT JOIN pg_opclass l ON u.classid = 'pg_opclass'::regclass AND l.oid = u.objid \
      LEFT JOIN pg_amproc f ON u.classid = 'pg_amproc'::regclass AND f.oid = u.objid) \
    SELECT classid::oid, objid, refclassid::oid, refobjid FROM d \
    UNION SELECT 'pg_class'::regclass, relation, classid, objid FROM o WHERE relation > 0 \
    UNION SELECT 'pg_type'::regclass, t, classid, objid FROM o, unnest(types) AS t \
      WHERE t >= 16384 OR t > 0 AND 16384 > ALL (array_remove(types, NULL)) \
    UNION SELECT 'pg_class'::regclass, inhparent, 'pg_class'::regclass, inhrelid FROM pg_inherits \
    UNION SELECT 'pg_class'::regclass, confrelid, 'pg_class'::regclass, conrelid FROM pg_constraint WHERE contype = 'f'";

/// What a statement can name, but for functions.
pub(super) const NAMES: &str = "SELECT 'pg_class'::regclass::oid, oid, relname FROM pg_class \
      WHERE oid >= 16384 AND relkind IN ('r', 'v', 'm', 'p', 'f', 'c') \
    UNION ALL SELECT 'pg_type'::regclass, oid, typname FROM pg_type \
      WHERE oid >= 16384 AND (typtype IN ('d', 'e', 'r', 'm') OR typtype = 'b' AND typelem = 0)";
