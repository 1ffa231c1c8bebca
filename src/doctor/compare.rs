//! What differs between a base and one of its environments, and will surprise whoever is moved from one to the other.

use super::Report;
use super::server::{Names, UpstreamFacts};

/// How many names are told of a difference.
const TOLD: usize = 10;

/// What a database has by names, and what two of one name may differ in.
struct NamedThings {
    plural: &'static str,
    detail: &'static str,
}

const EXTENSIONS: NamedThings = NamedThings { plural: "extensions", detail: "version" };
const SCHEMAS: NamedThings = NamedThings { plural: "schemas", detail: "" };
const RELATIONS: NamedThings = NamedThings { plural: "relations", detail: "columns" };

pub(super) fn compare(subject: &str, base: &UpstreamFacts, other: &UpstreamFacts, report: &mut Report) {
    identity(subject, base, other, report);
    if base.major != other.major {
        let text = format!("PostgreSQL {} where the base has {}", other.version, base.version);
        report.warn(subject, text, "What works in one may not work in the other.");
    }
    for (what, one, two) in [
        ("encoding", &base.encoding, &other.encoding),
        ("collation", &base.collation, &other.collation),
        ("TimeZone", &base.time_zone, &other.time_zone),
    ] {
        if one != two {
            let text = format!("its {what} is {two} where the base has {one}");
            report.warn(subject, text, "Texts, orders or times will differ.");
        }
    }
    let mut same = true;
    same &= EXTENSIONS.compare(subject, &base.extensions, &other.extensions, report);
    same &= SCHEMAS.compare(subject, &base.schemas, &other.schemas, report);
    if let (Some(one), Some(two)) = (&base.relations, &other.relations) {
        same &= RELATIONS.compare(subject, one, two, report);
        if same {
            report.ok(subject, format!("the same {} relations as the base", one.len()));
        }
    } else if same {
        report.ok(subject, "the same extensions and schemas as the base (--parity compares relations, too)");
    }
}

/// Whether they really are two.
fn identity(subject: &str, base: &UpstreamFacts, other: &UpstreamFacts, report: &mut Report) {
    let (Some(one), Some(two)) = (&base.identifier, &other.identifier) else {
        let text = "whether it is another server than the base's cannot be asked";
        return report.warn(
            subject,
            text,
            "GRANT EXECUTE ON FUNCTION pg_control_system() TO the role we log in as.",
        );
    };
    match () {
        () if one != two => {
            report.ok(subject, format!("another server than the base's (system_identifier {two})"));
        }
        () if base.started != other.started => {
            let text = "another server than the base's, and a copy of it: a standby, or restored from it (same system_identifier)";
            report.ok(subject, text);
        }
        () if base.database == other.database => report.wrong(
            subject,
            format!(
                "it is the base itself: database {} of the same server (system_identifier {two})",
                other.database
            ),
            "Check host, port and database of both connections.",
        ),
        () => report.warn(
            subject,
            format!("it is in the same server as the base (system_identifier {two})"),
            "A load on one is felt in the other, and roles are the same.",
        ),
    }
}

impl NamedThings {
    /// Names that only one has, and those of which something differs; true if none.
    fn compare(&self, subject: &str, base: &Names, other: &Names, report: &mut Report) -> bool {
        let Self { plural, detail } = self;
        let only =
            |one: &Names, two: &Names| one.keys().filter(|name| !two.contains_key(*name)).cloned().collect();
        let (missing, more): (Vec<String>, Vec<String>) = (only(base, other), only(other, base));
        let differ: Vec<String> = base
            .iter()
            .filter_map(|(name, one)| Some((name, one, other.get(name)?)))
            .filter(|(_, one, two)| one != two)
            .map(|(name, one, two)| format!("{name} ({})", difference(one, two)))
            .collect();
        let hint = "Queries that work in one will fail in the other.";
        if !missing.is_empty() {
            report.warn(
                subject,
                format!("{plural} of the base that are missing there: {}", some(&missing)),
                hint,
            );
        }
        if !more.is_empty() {
            report.warn(subject, format!("{plural} missing from the base: {}", some(&more)), hint);
        }
        if !differ.is_empty() {
            report.warn(subject, format!("{plural} with other {detail}: {}", some(&differ)), hint);
        }
        missing.is_empty() && more.is_empty() && differ.is_empty()
    }
}

/// Of lists, what only one of them has.
fn difference(base: &str, other: &str) -> String {
    let only = |one: &str, two: &str| {
        let two: Vec<&str> = two.split(", ").collect();
        one.split(", ").filter(|part| !two.contains(part)).collect::<Vec<_>>().join(", ")
    };
    let side = |text: String| if text.is_empty() { "nothing more".to_owned() } else { text };
    format!("base: {}; there: {}", side(only(base, other)), side(only(other, base)))
}

fn some(names: &[String]) -> String {
    let told = names.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(TOLD) {
        Some(rest) if rest > 0 => format!("{told}, and {rest} more"),
        _ => told,
    }
}
