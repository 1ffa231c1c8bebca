//! The house is kept: walls, stair, no circles, no statics, nothing too long. What is not there yet is in lists; what
//! is short enough must leave its list.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

#[path = "it/sources.rs"]
mod sources;

use sources::{repository, sources};

/// The sources of each crate, from the one that knows most to the one that knows least.
const CRATES: [&str; 5] =
    ["src", "crates/ring/src", "crates/policy/src", "crates/relay/src", "crates/wire/src"];
/// The longest file and function, in lines, tests aside.
const MAX_FILE: usize = 600;
const MAX_FUNCTION: usize = 70;

/// Files that are still longer, and how long they may be.
const LONG_FILES: [(&str, usize); 0] = [];

/// Functions that are still longer.
const LONG_FUNCTIONS: [(&str, &str); 6] = [
    ("crates/policy/src/config/check.rs", "connection"),
    ("crates/relay/src/sql.rs", "look_at"),
    ("src/console/act.rs", "act"),
    ("src/console/command.rs", "parse"),
    ("src/metrics.rs", "process"),
    ("src/upstream/login.rs", "authentication"),
];

/// Parameters that are still a bare `bool`, by file, function and name.
const BARE_BOOLS: [(&str, &str, &str); 2] = [
    // As serde and the standard library have them.
    ("src/console/table.rs", "from", "yes"),
    ("src/management/json.rs", "visit_bool", "value"),
];

/// Statics, and why each may be.
const STATICS: [(&str, &str); 6] = [
    // Buffers of a relaying thread: sessions own none.
    ("src/engine.rs", "SCRATCH"),
    // A thread's own ring, and its tasks that are ready.
    ("src/ring.rs", "THREAD"),
    // The allocator of the process.
    ("src/main.rs", "ALLOCATOR"),
    // One empty catalog for all idle sessions.
    ("crates/relay/src/core/facts.rs", "NO_CATALOG"),
    // A table that is made when it is compiled.
    ("crates/relay/src/sql/scan.rs", "AUTOMATON"),
    // Of tests alone: how much a thread has looked through.
    ("crates/relay/src/sql/budget.rs", "GONE_THROUGH"),
];

/// Modules of one folder that still use each other.
const CIRCLES: [&str; 0] = [];

fn all_sources() -> BTreeMap<String, String> {
    CRATES.iter().flat_map(|folder| sources(folder)).collect()
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// A file without its tests, and without its comments.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| line.split(" // ").next().unwrap()).collect::<Vec<_>>().join("\n")
}

#[test]
fn nothing_below_the_process_knows_a_runtime() {
    for package in ["pgusher-wire", "pgusher-relay", "pgusher-policy", "pgusher-ring"] {
        let tree = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "-p", package])
            .current_dir(repository())
            .output()
            .unwrap();
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let tree = String::from_utf8(tree.stdout).unwrap();
        assert!(tree.starts_with(package));
        for name in tree.lines().filter_map(|line| line.split(' ').next()) {
            let knows_one = ["tokio", "mio", "async-std", "smol", "pgwire", "socket2"].contains(&name);
            assert!(!knows_one && !name.starts_with("tokio-"), "{package} uses {name}");
        }
    }
}

/// Neither do they read files, the environment or the clock.
#[test]
fn nothing_below_the_process_asks_the_system() {
    const ASKS: [&str; 8] = [
        "std::fs",
        "std::net::Tcp",
        "std::process",
        "std::env",
        "std::thread::",
        "Instant::now",
        "SystemTime::now",
        "getrandom",
    ];
    for (path, text) in
        CRATES[2..].iter().flat_map(|folder| sources(folder)).filter(|(path, _)| !is_test(path))
    {
        for what in ASKS {
            assert!(!code(&text).contains(what), "{path}: {what}");
        }
    }
}

#[test]
fn each_file_says_first_what_it_is_for() {
    for (path, text) in all_sources() {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! ") && first.len() > 20, "{path}: {first}");
    }
}

/// `lib.rs` declares modules as a stair: each uses only those above it.
#[test]
fn modules_use_only_those_above_them() {
    for folder in CRATES {
        let library = std::fs::read_to_string(repository().join(folder).join("lib.rs")).unwrap();
        let declared = |line: &str| {
            let name = line.trim().strip_suffix(';')?;
            let name = name.strip_prefix("pub mod ").or_else(|| name.strip_prefix("mod "))?;
            Some(name.to_owned())
        };
        let order: Vec<String> = library.lines().filter_map(declared).collect();
        for (path, text) in sources(folder).into_iter().filter(|(path, _)| !is_test(path)) {
            let inner = path.strip_prefix(folder).unwrap().trim_start_matches('/');
            let module = inner.split('/').next().unwrap().trim_end_matches(".rs");
            let Some(own) = order.iter().position(|name| name == module) else { continue };
            for used in code(&text).split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let above = order.iter().position(|name| *name == used);
                assert!(above.is_none_or(|above| above <= own), "{path} uses {used}, which is below it");
            }
        }
    }
}

/// Modules of one folder that use each other, directly or by others: `a -> b -> a`.
fn circles(folder: &str) -> BTreeSet<String> {
    let sources = sources(folder);
    let mut folders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in sources.keys().filter(|path| !is_test(path)) {
        let (parent, name) = path.rsplit_once('/').unwrap();
        folders.entry(parent.to_owned()).or_default().insert(name.trim_end_matches(".rs").to_owned());
    }
    let mut found = BTreeSet::new();
    for (parent, modules) in folders.iter().filter(|(parent, _)| *parent != folder) {
        let uses = |module: &str| -> BTreeSet<String> {
            let text = code(&sources[&format!("{parent}/{module}.rs")]);
            let from_above: String = text
                .split("use super::")
                .skip(1)
                .filter_map(|rest| rest.split(';').next())
                .filter(|rest| !rest.starts_with("super::"))
                .collect::<Vec<_>>()
                .join(" , ");
            let names = |other: &&String| {
                *other != module
                    && (from_above
                        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                        .any(|word| word == other.as_str())
                        || text.replace("super::super::", "").contains(&format!("super::{other}::")))
            };
            modules.iter().filter(names).cloned().collect()
        };
        let graph: BTreeMap<&str, BTreeSet<String>> = modules.iter().map(|m| (m.as_str(), uses(m))).collect();
        for start in modules {
            let (mut reached, mut queue) = (BTreeSet::new(), vec![start.clone()]);
            while let Some(next) = queue.pop() {
                for other in &graph[next.as_str()] {
                    if reached.insert(other.clone()) {
                        queue.push(other.clone());
                    }
                }
            }
            if reached.contains(start) {
                found.insert(format!("{parent}/{start}"));
            }
        }
    }
    found
}

#[test]
fn no_modules_use_each_other() {
    let found: BTreeSet<String> = CRATES.iter().flat_map(|folder| circles(folder)).collect();
    let known: BTreeSet<String> = CIRCLES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, known, "modules that use each other");
}

#[test]
fn there_is_no_static_but_those_with_a_reason() {
    let mut found = BTreeSet::new();
    for (path, text) in all_sources() {
        for line in code(&text).lines() {
            let line = line.trim_start();
            let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")).unwrap_or(line);
            if let Some(name) = line.strip_prefix("static ") {
                found.insert((path.clone(), name.split(':').next().unwrap().to_owned()));
            }
        }
    }
    let known = STATICS.iter().map(|(path, name)| ((*path).to_owned(), (*name).to_owned())).collect();
    assert_eq!(found, known);
}

#[test]
fn files_are_not_too_long_and_those_that_are_become_shorter() {
    let known: BTreeMap<&str, usize> = LONG_FILES.into_iter().collect();
    let mut long = BTreeSet::new();
    for (path, text) in all_sources().into_iter().filter(|(path, _)| !is_test(path)) {
        let lines = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap().lines().count();
        let most = known.get(&*path).copied().unwrap_or(MAX_FILE);
        assert!(lines <= most, "{path} has {lines} lines, and may have {most}");
        if lines > MAX_FILE {
            long.insert(path);
        }
    }
    let listed: BTreeSet<String> = known.into_keys().map(str::to_owned).collect();
    assert_eq!(listed.difference(&long).next(), None, "it is short enough now: take it off the list");
}

/// The functions of a file, and how many lines each has.
fn functions(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut all = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(place) = words.iter().position(|word| *word == "fn") else { continue };
        let modifier = |word: &&str| {
            word.starts_with("pub")
                || ["const", "async"].contains(word)
                || word.starts_with("in")
                || word.ends_with(')')
        };
        if !words[..place].iter().all(modifier) {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[at..].iter().position(|line| line.starts_with(&end)).map_or(0, |end| end + 1);
        let name = words.get(place + 1).copied().unwrap_or_default();
        all.push((name.split(['(', '<']).next().unwrap().to_owned(), length));
    }
    all
}

#[test]
fn functions_are_a_screen_and_those_that_are_not_are_listed() {
    let mut long = BTreeSet::new();
    for (path, text) in all_sources().into_iter().filter(|(path, _)| !is_test(path)) {
        for (name, length) in functions(&code(&text)) {
            if length > MAX_FUNCTION {
                long.insert((path.clone(), name));
            }
        }
    }
    let known: BTreeSet<_> =
        LONG_FUNCTIONS.iter().map(|(path, name)| ((*path).to_owned(), (*name).to_owned())).collect();
    assert_eq!(long, known);
}

/// What follows a `fn`, cut into the function's name and its parameters, however many lines they take.
fn signature(text: &str) -> Option<(&str, Vec<&str>)> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
    let (name, rest) = text.split_at(end);
    let (mut depth, mut angles) = (0_usize, 0_usize);
    let (mut parameters, mut begin, mut before) = (Vec::new(), None, ' ');
    for (at, c) in rest.char_indices() {
        match c {
            '<' => angles += 1,
            '>' if before != '-' => angles = angles.checked_sub(1)?,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        match (begin, c) {
            (None, '(') if depth == 1 && angles == 0 => begin = Some(at + 1),
            // What is no function, but a type or a word.
            (None, _) if !c.is_whitespace() && depth == 0 && angles == 0 && c != '>' => return None,
            (Some(from), ',') if depth == 1 && angles == 0 => {
                parameters.push(rest[from..at].trim());
                begin = Some(at + 1);
            }
            (Some(from), ')') if depth == 0 => {
                parameters.push(rest[from..at].trim());
                return Some((name, parameters));
            }
            _ => {}
        }
        before = c;
    }
    None
}

/// The functions of a file with a parameter that is a bare `bool`, and its name.
fn bare_bools(code: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, parameters) in code.split("fn ").skip(1).filter_map(signature) {
        for (parameter, kind) in parameters.iter().filter_map(|parameter| parameter.split_once(':')) {
            if kind.trim() == "bool" {
                found.push((name.to_owned(), parameter.trim().trim_start_matches("mut ").to_owned()));
            }
        }
    }
    found
}

#[test]
fn signatures_are_read_over_several_lines() {
    let code = "fn one<T: Fn(bool) -> bool, const N: bool>(\n    &self,\n    mut a: bool,\n    b: Option<bool>,\n) -> bool {}\n\
        fn two(f: impl Fn(u8, bool) -> bool, (c, d): (bool, bool)) {}\nfn three(\n    e: bool) {}";
    let found = bare_bools(code);
    let expected = [("one", "a"), ("three", "e")].map(|(name, of)| (name.to_owned(), of.to_owned()));
    assert_eq!(found, expected);
}

#[test]
fn no_parameter_is_a_bare_bool_but_those_listed() {
    let mut found = BTreeSet::new();
    for (path, text) in all_sources().into_iter().filter(|(path, _)| !is_test(path)) {
        for (name, parameter) in bare_bools(&code(&text)) {
            found.insert((path.clone(), name, parameter));
        }
    }
    let owned = |(path, name, parameter): (&str, &str, &str)| {
        (path.to_owned(), name.to_owned(), parameter.to_owned())
    };
    let known: BTreeSet<_> = BARE_BOOLS.into_iter().map(owned).collect();
    assert_eq!(found, known, "pass an enum, or write two functions");
}
