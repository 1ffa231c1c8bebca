//! What is wrong with a file, each with its place, and no secret in what is shown of its lines.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken; somebody should look.
    Warning,
}

/// One thing wrong with the file, and where.
#[derive(Clone, Debug)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// The bytes it is about.
    pub span: Option<Range<usize>>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// It is right in itself, and does not fit what else there is.
    pub is_conflict: bool,
}

/// How many problems are kept, errors before warnings; the others are counted. Each shows a line of the file, and a file may
/// have as many as it has bytes.
const MAX_PROBLEMS: usize = 200;
/// How many characters of a line are shown, before the place that is meant and from there on.
const SHOWN_BEFORE: usize = 200;
const SHOWN_BEHIND: usize = 300;
/// How many names are compared with one that is unknown, and how long that may be.
const MAX_NEAR: usize = 1000;
/// The longest message that is shown, in bytes.
const MAX_MESSAGE: usize = 4096;
pub(super) const MAX_NEAR_LENGTH: usize = 255;

/// All that is wrong with one file, rendered with line, column and the line itself.
pub struct Problems {
    path: PathBuf,
    text: String,
    list: Vec<Problem>,
    /// The last one that was not kept.
    beyond: Option<Problem>,
    errors: usize,
    warnings: usize,
    /// Where keys stand, and values that by the schema are no secrets: by their first bytes, with their ends. Nothing else
    /// of a line is shown.
    public: BTreeMap<usize, usize>,
}

impl fmt::Debug for Problems {
    /// Without the text, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Problems").field("path", &self.path).field("list", &self.list).finish_non_exhaustive()
    }
}

impl Problems {
    /// Nothing wrong yet with this text.
    pub fn new(path: &Path, text: &str) -> Self {
        let (path, text) = (path.to_owned(), text.to_owned());
        let (list, beyond, public) = (Vec::new(), None, BTreeMap::new());
        Self { path, text, list, beyond, errors: 0, warnings: 0, public }
    }

    /// The folder that relative paths are relative to.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Here is nothing secret.
    pub(super) fn publish(&mut self, span: Range<usize>) {
        self.public.insert(span.start, span.end);
    }

    /// Of a table, only its name: between braces may be anything.
    pub(super) fn publish_header(&mut self, span: Range<usize>) {
        if self.text.get(span.clone()).is_some_and(|text| text.starts_with('[') && text.ends_with(']')) {
            self.publish(span);
        }
    }

    /// Records an error.
    pub fn error(&mut self, span: Option<Range<usize>>, message: impl Into<String>) -> &mut Problem {
        self.push(Severity::Error, span, message.into())
    }

    /// Records a warning.
    pub fn warning(&mut self, span: Option<Range<usize>>, message: impl Into<String>) -> &mut Problem {
        self.push(Severity::Warning, span, message.into())
    }

    fn push(&mut self, severity: Severity, span: Option<Range<usize>>, message: String) -> &mut Problem {
        match severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
        }
        let problem = Problem { severity, span, message, help: None, is_conflict: false };
        if self.list.len() >= MAX_PROBLEMS {
            let warning = self.list.iter().rposition(|known| known.severity == Severity::Warning);
            match warning.filter(|_| severity == Severity::Error) {
                Some(at) => drop(self.list.remove(at)),
                None => return self.beyond.insert(problem),
            }
        }
        let index = self.list.len();
        self.list.push(problem);
        &mut self.list[index]
    }

    /// True if any of them refuses the file.
    pub fn refuse(&self) -> bool {
        self.errors > 0
    }

    /// Every problem that is kept, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// What refuses the file, on one line; of several, what was found first.
    pub fn reason(&self) -> Option<String> {
        let first = self.iter().find(|problem| problem.severity == Severity::Error);
        first.map(|problem| self.line_without_help(problem))
    }

    /// How many there are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        match severity {
            Severity::Error => self.errors,
            Severity::Warning => self.warnings,
        }
    }

    /// `file:line:column: message (help)` of one problem, on one line, for the log.
    pub fn line(&self, problem: &Problem) -> String {
        let help = problem.help.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
        format!("{}{help}", self.line_without_help(problem))
    }

    /// `file:line:column: message` of one problem.
    pub fn line_without_help(&self, problem: &Problem) -> String {
        let path = self.path.display();
        match &problem.span {
            Some(span) => {
                let (line, column) = self.position(span.start);
                format!("{path}:{line}:{column}: {}", problem.message)
            }
            None => format!("{path}: {}", problem.message),
        }
    }

    /// Line and column (in characters), both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset.min(self.text.len())).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }
}

impl Problem {
    /// Says what to do about it.
    pub fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }

    /// It would be right if something else were not there.
    pub fn conflict(&mut self) {
        self.is_conflict = true;
    }

    /// Names the nearest of the valid names, if one is near; otherwise lists them, if they are few.
    pub fn nearest<'a>(&mut self, name: &str, valid: impl IntoIterator<Item = &'a str>) {
        let valid: Vec<&str> = valid.into_iter().collect();
        let is_bounded = name.len() <= MAX_NEAR_LENGTH && valid.len() <= MAX_NEAR;
        let compared = valid.iter().filter(|_| is_bounded);
        let near = compared.map(|v| (strsim::damerau_levenshtein(v, name), *v)).min();
        match near {
            Some((distance, v)) if distance <= 1 + v.len() / 3 => self.help(format!("did you mean `{v}`?")),
            _ if !valid.is_empty() && valid.len() <= 8 => self.help(format!("valid: {}", valid.join(", "))),
            _ => {}
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&Problem> = self.list.iter().collect();
        sorted.sort_by_key(|p| p.span.as_ref().map_or(usize::MAX, |s| s.start));
        for problem in sorted {
            // Names may be anything: what a terminal would obey is escaped.
            let message = wire::error::Shown::within(&problem.message, MAX_MESSAGE);
            let severity = match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(f, "{severity}: {message}")?;
            match &problem.span {
                Some(span) => self.show_line(f, span)?,
                None => writeln!(f, "  --> {}", self.path.display())?,
            }
            if let Some(help) = &problem.help {
                writeln!(f, "  = help: {help}")?;
            }
            writeln!(f)?;
        }
        match (self.errors + self.warnings).saturating_sub(self.list.len()) {
            0 => Ok(()),
            more => writeln!(f, "and {more} more"),
        }
    }
}

impl Problems {
    fn show_line(&self, f: &mut fmt::Formatter<'_>, span: &Range<usize>) -> fmt::Result {
        let (line, column) = self.position(span.start);
        let start = self.text.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
        let text = self.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
        let shown = self.without_secrets(start, text);
        let at = shown.iter().position(|(at, _)| *at >= span.start).unwrap_or(shown.len());
        let shown = &shown[at.saturating_sub(SHOWN_BEFORE)..shown.len().min(at + SHOWN_BEHIND)];
        let gutter = line.to_string().len();
        let before = shown.iter().filter(|(at, _)| *at < span.start).count();
        let marked = shown.iter().filter(|(at, _)| span.contains(at)).count().max(1);
        writeln!(f, "{:gutter$}--> {}:{line}:{column}", "", self.path.display())?;
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{line} | {}", shown.iter().map(|(_, c)| c).collect::<String>())?;
        writeln!(f, "{:gutter$} | {:before$}{}", "", "", "^".repeat(marked))
    }

    /// A line of the file, which begins at this byte, with all blanked that may be a secret; each character with the byte
    /// that it stands for. A secret may be under any key but those of the schema, and go over several lines.
    fn without_secrets(&self, start: usize, line: &str) -> Vec<(usize, char)> {
        let end = start + line.len();
        // Where what is public here ends: of one that began on a line before, and then of each that begins.
        let mut until = self.public.range(..start).next_back().map_or(0, |(_, end)| *end);
        if self.public.is_empty() {
            until = start + beginning(line);
        }
        let mut public = self.public.range(start..=end).peekable();
        let stars = |at: usize| "***".chars().map(move |star| (at, star));
        let mut shown = Vec::new();
        let mut hidden = None;
        for (at, c) in line.char_indices().map(|(at, c)| (start + at, c)) {
            while let Some((_, end)) = public.next_if(|(from, _)| **from <= at) {
                until = until.max(*end);
            }
            let is_public = at < until;
            if is_public || (hidden.is_none() && "[]{}=,. \t".contains(c)) {
                shown.extend(hidden.take().into_iter().flat_map(stars));
                shown.push((at, c));
            } else {
                hidden = hidden.or(Some(at));
            }
        }
        shown.extend(hidden.into_iter().flat_map(stars));
        shown
    }
}

/// How much of a line of a text that is not TOML is a key, or the name of a table, most likely.
fn beginning(line: &str) -> usize {
    let is_of_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-. ".contains(c);
    let is_of_table = |c: char| c.is_alphanumeric() || "_-. []".contains(c);
    match line.split_once('=') {
        Some((key, value)) if key.chars().all(is_of_key) && !value.trim().is_empty() => key.len() + 1,
        None if line.starts_with('[')
            && line.trim_end().ends_with(']')
            && line.trim_end().chars().all(is_of_table) =>
        {
            line.len()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of a file that is refused.
    fn shown(text: &str) -> String {
        let mut problems = Problems::new(Path::new("f.toml"), text);
        super::super::file::File::parse(text, &mut problems);
        // Wherever a problem may be.
        for (at, _) in text.char_indices() {
            problems.error(Some(at..at + 1), "here");
        }
        problems.to_string()
    }

    #[test]
    fn of_a_line_only_what_cannot_be_a_secret_is_shown() {
        const SECRET: &str = "hunter2";
        for text in [
            // Misspelt, misplaced, of another type, under a key of no meaning.
            "[connections.w]\npasword = \"hunter2\"\n",
            "[connections]\nw = { host = \"h\", passwrd = \"hunter2\" }\n",
            "[management.tokens]\nops = \"hunter2\"\n",
            "[users]\nbob = \"hunter2\"\n",
            "[users.bob]\nkey = \"hunter2\"\nverifier = 'hunter2'\n",
            "[users.bob]\nattributes = { environment = \"dev\", password = \"hunter2\" }\n",
            "[connections.w]\ndsn = \"postgres://u:hunter2@h/db\"\n",
            "[connections.w]\nhost = \"postgres://u:hunter2@h/db\"\n",
            "[connections.w]\nhost = \"h password=hunter2\"\n",
            "[connections.w]\nhost = { password = \"hunter2\" }\n",
            "[connections.w]\npassword = { env = \"hunter2\", file = \"x\" }\n",
            "[connections.w]\npassword = [\"hunter2\",\n\"hunter2\"]\n",
            "[connections.w]\npassword = 1 # not hunter2\n",
            // Over several lines.
            "[connections.w]\npassword = \"\"\"\nhunter2\n[hunter2]\nhunter2 = hunter2=\n\"\"\"\n",
            // Not TOML.
            "[connections.w]\npassword = hunter2\n",
            "[connections.w]\npassword = \"hunter2\n",
            "hunter2\n",
            "hunter2=\n",
            "PGPASSWORD=hunter2\n",
            "  hunter2\"\"\"\n",
        ] {
            let shown = shown(text);
            let without_messages = shown.replace("unknown key `hunter2`", "");
            assert!(!without_messages.contains(SECRET), "{text} -> {shown}");
        }
    }

    #[test]
    fn what_is_no_secret_is_shown_with_its_place() {
        let text = "[connections.w]\nhost = \"h\"\nusername = \"u\"\nport = \"x\"\nx = 1\n";
        let mut problems = Problems::new(Path::new("f.toml"), text);
        assert!(super::super::file::File::parse(text, &mut problems).is_none());
        let shown = problems.to_string();
        assert!(shown.contains(" --> f.toml:4:8\n  |\n4 | port = \"x\"\n  |        ^^^\n"), "{shown}");
        assert!(shown.contains("5 | x = ***\n  | ^\n"), "{shown}");
    }

    #[test]
    fn however_many_problems_there_are_so_many_are_shown_and_errors_before_warnings() {
        let text = format!("a = {{ {} }}", "x = 1, ".repeat(50_000));
        let mut problems = Problems::new(Path::new("x.toml"), &text);
        (0..300).for_each(|at| drop(problems.warning(Some(at..at + 1), "odd").help.take()));
        (0..100_000).for_each(|at| drop(problems.error(Some(at..at + 1), "wrong").help.take()));
        assert_eq!((problems.count(Severity::Error), problems.count(Severity::Warning)), (100_000, 300));
        assert_eq!(problems.iter().filter(|p| p.severity == Severity::Error).count(), MAX_PROBLEMS);
        let shown = problems.to_string();
        assert!(problems.refuse() && shown.ends_with("and 100100 more\n"), "{}", &shown[shown.len() - 100..]);
        assert!(shown.len() < MAX_PROBLEMS * 1500, "{}", shown.len());
    }

    #[test]
    fn the_reason_of_a_refusal_is_an_error_and_no_warning() {
        let mut problems = Problems::new(Path::new("x.toml"), "a = 1\nb = 2\n");
        problems.warning(Some(0..1), "odd");
        assert_eq!(problems.reason(), None);
        problems.error(Some(6..7), "wrong");
        assert_eq!(problems.reason().as_deref(), Some("x.toml:2:1: wrong"));
    }

    #[test]
    fn a_host_is_a_name_an_address_or_a_folder() {
        let says = |host: &str| shown(&format!("[connections.w]\nusername = \"u\"\nhost = \"{host}\"\n"));
        for host in ["db.example.com", "10.0.0.7", "fe80::1", "/var/run/a folder", "/ün"] {
            assert!(!says(host).contains("a host name or an IP address"), "{host}");
        }
        for host in ["", " ", "a b", "db.example.com ", "ünï.example", "db\\n"] {
            assert!(
                says(host).contains("a host name or an IP address has only ASCII characters and no spaces"),
                "{host}"
            );
        }
    }

    #[test]
    fn a_long_line_is_shown_around_the_place_that_is_meant() {
        let text = format!("{}here = 1 # {}", "[a] ".repeat(1000), "y".repeat(5000));
        let at = text.find("here").unwrap();
        let mut problems = Problems::new(Path::new("x.toml"), &text);
        problems.publish(0..text.len());
        problems.error(Some(at..at + 4), "not here");
        let shown = problems.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        let (line, marks) = (lines[3], lines[4]);
        assert!(line.len() < 600, "{line}");
        assert_eq!(line.find("here"), marks.find('^'), "{shown}");
        assert_eq!(marks.matches('^').count(), 4);
    }
}
