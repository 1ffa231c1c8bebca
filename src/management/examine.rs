//! `/doctor`: what is wrong with what a running pgusher needs, as `pgusher doctor` says it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::Problem;
use crate::doctor::{self, Comparison, Finding};
use crate::prepare;
use crate::proxy::LoadError;

/// How long it may take, however many databases there are.
const PATIENCE: Duration = Duration::from_secs(120);

/// All that was looked at.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Findings {
    /// The worst first.
    findings: Vec<Finding>,
}

/// Examines what pgusher needs: the file, names, logins, certificates, limits, and whether environments are different databases. It
/// logs in to each database, and takes as long as these take; one examination at a time.
#[utoipa::path(post, path = "/api/v1/doctor", tag = "configuration", operation_id = "examine",
    responses((status = 200, description = "What was found.", body = Findings)))]
pub(super) async fn doctor(State(api): State<Arc<Api>>) -> Result<Json<Findings>, Problem> {
    let Ok(alone) = api.examinations.clone().try_lock_owned() else {
        return Err(Problem::conflict("an examination is under way: ask again when it is over"));
    };
    let path = api.current.generation().config.path.clone();
    let examined = tokio::task::spawn_blocking(move || {
        let _alone = alone;
        examine(&path)
    });
    examined.await.unwrap_or_else(|_| Err(Problem::ours("the examination was lost"))).map(Json)
}

/// On a runtime of its own: nobody else waits for it.
fn examine(path: &Path) -> Result<Findings, Problem> {
    let checked =
        prepare::reviewed(path).map_err(|rejected| Problem::from(&LoadError::Rejected(rejected)))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Problem::ours)?;
    let examined = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, doctor::examine(&checked, Comparison::Schemas)).await
    });
    let mut all = examined.map_err(|_| Problem::ours("the databases took more than two minutes"))?;
    all.sort_by_key(|finding| std::cmp::Reverse(finding.grade));
    Ok(Findings { findings: all })
}
