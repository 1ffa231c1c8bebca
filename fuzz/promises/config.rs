//! The configuration: any text is taken or refused, and no message about it holds a password.

use std::path::Path;

use policy::config::problems::{Problems, Severity};

/// Stands where an input has a line `password = @`, and nowhere else.
const CANARY: &str = "canary-4b1d-sings";

/// All that is said of it, as on a terminal and as in the log.
fn shown(problems: &Problems) -> String {
    let lines: Vec<String> = problems.iter().map(|problem| problems.line(problem)).collect();
    problems.to_string() + &lines.join("\n")
}

/// See the module.
pub(crate) fn holds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A secret's command would be run, and escapes could spell it.
    if text.contains("command") || text.contains('\\') || text.contains(CANARY) {
        return;
    }
    let canary = format!("password = \"{CANARY}\"");
    let with_canary = |line: &str| if line == "password = @" { canary.clone() } else { line.to_owned() };
    let text = text.split('\n').map(with_canary).collect::<Vec<_>>().join("\n");
    // Within a text of several lines it would be no password.
    let is_plain = !text.contains("'''") && !text.contains("\"\"\"");
    let says = match pgusher::inside::draft_of(Path::new("/nowhere/pgusher.toml"), &text) {
        Err(rejected) => {
            assert!(rejected.0.refuse());
            shown(&rejected.0)
        }
        Ok(draft) => {
            let says = shown(&draft.problems) + &format!("{:?}", draft.config);
            match draft.accept() {
                Err(rejected) => assert!(rejected.0.refuse()),
                Ok(checked) => assert_eq!(checked.warnings().count(Severity::Error), 0),
            }
            says
        }
    };
    assert!(!is_plain || !says.contains(CANARY), "{says}");
}
