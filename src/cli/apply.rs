//! What the command line says to the management API of a running pgusher.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{Fallback, Format};
use crate::proxy::Intent;
use crate::tls;
use policy::plan::Plan;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The management API of a running pgusher.
#[derive(Debug, Args)]
pub(super) struct ApiAddress {
    /// Where it is.
    #[arg(long, env = "PGUSHER_URL", default_value = "http://127.0.0.1:6433")]
    url: String,
    /// The file that holds a token with `role = "admin"`; by default, the token is taken from PGUSHER_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The authorities of its certificate, a PEM file; by default the system's.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
}

/// A line of the plan.
#[derive(Debug, Deserialize)]
struct Row {
    change: String,
    subject: String,
    from: String,
    to: String,
    note: String,
}

#[derive(Debug, Deserialize)]
struct Outcome {
    generation: u64,
    changed: bool,
    plan: Vec<Row>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Said {
    detail: String,
}

/// How to apply.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// Whether only the plan is printed.
    pub intent: Intent,
    /// Whether users may lose their environment.
    pub fallback: Fallback,
    /// How it is told.
    pub format: Format,
}

/// Makes a running pgusher's configuration say what a file says.
pub(super) fn apply(target: &ApiAddress, file: &Path, how: How) -> ExitCode {
    match Call::of(target, file).and_then(|call| call.make_so(how)) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

struct Call {
    agent: ureq::Agent,
    url: String,
    authorization: String,
    content_type: &'static str,
    desired: String,
}

impl Call {
    fn of(target: &ApiAddress, file: &Path) -> Result<Self, String> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let token = match &target.token_file {
            Some(path) => read(path)?,
            None => std::env::var("PGUSHER_TOKEN")
                .map_err(|_| "there is no token: set PGUSHER_TOKEN, or say --token-file FILE".to_owned())?,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let known = match &target.cacert {
            Some(path) => tls::certificates(path).map_err(|error| error.to_string())?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let known: Vec<_> = known.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(RootCerts::new_with_certs(&known));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(PATIENCE))
            .tls_config(tls.build())
            .build();
        Ok(Self {
            agent: config.into(),
            url: format!("{}/api/v1/config", target.url.trim_end_matches('/')),
            authorization: format!("Bearer {}", token.trim()),
            content_type: match file.extension().is_some_and(|extension| extension == "json") {
                true => "application/json",
                false => "application/toml",
            },
            desired: read(file)?,
        })
    }

    fn make_so(&self, how: How) -> Result<ExitCode, String> {
        let advice = match self.url.strip_prefix("http://") {
            Some(rest) => {
                format!(" (if it wants TLS: --url https://{})", rest.split('/').next().unwrap_or_default())
            }
            None => String::new(),
        };
        let failed = |error: ureq::Error| format!("{} does not answer: {error}{advice}", self.url);
        let now = self.agent.get(&self.url).header("authorization", &self.authorization).call();
        let mut now = now.map_err(failed)?;
        let edition = now.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let Some(edition) = edition.filter(|_| now.status().is_success()) else {
            return Err(refused(&mut now));
        };
        // What is planned is what is applied: nobody may change anything between the two.
        let put = |query: &str| -> Result<Outcome, String> {
            let request = self.agent.put(format!("{}{query}", self.url));
            let request = request.header("authorization", &self.authorization).header("if-match", &edition);
            let mut answer = request.content_type(self.content_type).send(&self.desired).map_err(failed)?;
            match answer.status().is_success() {
                true => answer.body_mut().read_json().map_err(failed),
                false => Err(refused(&mut answer)),
            }
        };
        let planned = put("?dry_run=true")?;
        let rows: Vec<_> =
            planned.plan.into_iter().map(|r| [r.change, r.subject, r.from, r.to, r.note]).collect();
        let loses = rows.iter().any(|row| row[0] == Plan::FALLBACK) && how.fallback == Fallback::Refused;
        let applies = planned.changed && !loses && how.intent == Intent::Write;
        if how.format == Format::Text {
            tell(planned.changed.then_some(&rows), &planned.warnings);
        }
        let generation = if applies { put("")?.generation } else { planned.generation };
        match how.format {
            // One object, whatever has come of it.
            Format::Json => {
                let (changed, warnings) = (planned.changed, planned.warnings);
                let plan = super::plan_as_json(&rows);
                let text = serde_json::json!({ "generation": generation, "changed": changed, "applied": applies,
                    "plan": plan, "warnings": warnings });
                say!("{text}");
            }
            Format::Text if applies => say!("Applied: generation {generation} is in force."),
            Format::Text => {}
        }
        if loses {
            eprintln!("{}", super::FALLBACK);
        }
        Ok(match (planned.changed, loses) {
            (true, true) => ExitCode::FAILURE,
            (true, false) if how.intent == Intent::DryRun => ExitCode::from(2),
            _ => ExitCode::SUCCESS,
        })
    }
}

/// The plan, for people; `None` if nothing changes.
fn tell(plan: Option<&Vec<[String; 5]>>, warnings: &[String]) {
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    match plan {
        None => say!("No change."),
        Some(rows) if rows.is_empty() => {
            say!("The configuration changes, and nobody's route, session, pool or secret.");
        }
        Some(rows) => super::print_plan(rows),
    }
}

fn refused(answer: &mut ureq::http::Response<ureq::Body>) -> String {
    let status = answer.status();
    match answer.body_mut().read_json::<Said>() {
        Ok(said) => format!("refused ({}): {}", status.as_u16(), said.detail),
        Err(_) => format!("refused ({status})"),
    }
}
