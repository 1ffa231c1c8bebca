//! The document that is served is what is answered: schemathesis makes requests of it, right and wrong ones, and looks at
//! each answer. The proof of its size runs under `make soak`.

use std::process::Command;

use super::{ADMIN, Managed};
use crate::house::{size, warehouse};

const MORE: &str = "\n[groups.analysts]\nattributes = { environment = \"prod\" }\n\n[users.ann]\npassword = \"ann\"\n\
    groups = [\"analysts\"]\n";

#[test]
fn schemathesis_finds_no_answer_that_the_document_does_not_have() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/schemathesis/bin/st");
    assert!(program.exists(), "schemathesis is missing: make schemathesis installs it");
    let api = Managed::start(&(warehouse("audit_file = \"audit.jsonl\"", "", "") + MORE));
    let seconds = size(25, 600).to_string();
    // What a document cannot say is left out: that names must exist (positive_data_acceptance), and that what is asked with
    // ?dry_run=true makes and deletes nothing (ensure_resource_availability, use_after_free).
    let output = Command::new(program)
        .args(["run", &api.url("/openapi.json"), "--no-color", "--continue-on-failure", "--seed", "20261127"])
        .args(["--header", &format!("Authorization: Bearer {ADMIN}"), "--max-time", &seconds])
        .args(["--exclude-checks", "positive_data_acceptance,ensure_resource_availability,use_after_free"])
        // They would take away the token that all the others are called with.
        .args(["--exclude-operation-id", "rotateToken", "--exclude-operation-id", "deleteToken"])
        .args(["--suppress-health-check", "all"])
        .current_dir(&api.pgusher.folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let summary = said.split("SUMMARY").nth(1).unwrap_or_default();
    // "3 generated, 2 passed, 1 failed": a warning may say that an authentication failed, as it should.
    let cases = summary.lines().find(|line| line.contains(" generated, ")).unwrap_or_default();
    assert!(
        summary.contains("Tested: 48") && cases.contains(" passed") && !cases.contains(" failed"),
        "{said}"
    );
    println!("{summary}");
    let log = api.pgusher.log();
    assert!(!log.contains("panicked"), "{log}");
    // It still does what it is there for.
    api.get("/overview").ok();
}
