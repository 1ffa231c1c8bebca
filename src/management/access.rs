//! Who may call the API, how often, and what is told of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use subtle::ConstantTimeEq;
use tracing::{info, warn};

use super::Api;
use super::answer::Problem;
use crate::audit::{self, Audit, Event};
use crate::auth::keep_the_busiest;
use crate::http::RequestPeer;
use crate::stream::Block;
use policy::config::file::{AuditFailure, Role};
use policy::config::{Config, Token};
use wire::error::{Fault, Refusal, SqlState};

/// What may be had without a token: the page, the document, and the page of the document. None of them tells anything about
/// this pgusher.
pub(super) const OPEN: [&str; 3] = ["/", "/api/v1/openapi.json", "/api/v1/docs"];
/// How many addresses or tokens are remembered.
const MAX_KEPT: usize = 4096;
/// How long a call has that has just taken its own token away, to be answered.
const GRACE: Duration = Duration::from_millis(200);

/// Who calls: a token, as it was known when the call began.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    token: Token,
    /// A write of this call has begun: then it is answered, whatever it does to the token itself.
    writes: Arc<AtomicBool>,
}

impl Caller {
    /// Whether it may change anything.
    pub(super) fn may_write(&self) -> bool {
        self.token.role == Role::Admin
    }

    /// What it may do, in a word.
    pub(super) fn role(&self) -> &'static str {
        self.token.role.word()
    }

    /// Its write begins, with the right that it has now.
    pub(super) fn begins_to_write(&self) {
        self.writes.store(true, Ordering::Release);
    }

    /// Whether it is the token of this name.
    pub(super) fn is(&self, name: &str) -> bool {
        *self.token.name == *name
    }

    /// As it stands in the audit and in the history.
    pub(super) fn name(&self) -> String {
        format!("token {}", self.token.name)
    }

    /// Whether the token is known in this configuration, and may do there what it might when the call began. What a call
    /// does late, it asks this first.
    ///
    /// # Errors
    /// 401, 403
    pub(super) fn may_still(&self, config: &Config) -> Result<(), Problem> {
        let known = config.management.tokens.iter().find(|token| token.digest == self.token.digest);
        match known {
            Some(token) if token.role == Role::Admin || token.role == self.token.role => Ok(()),
            Some(_) => Err(Problem::denied()),
            None => Err(unknown()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unknown)
    }
}

/// How much each may do in a minute: it fills again bit by bit.
#[derive(Debug)]
struct Budget<K>(Mutex<HashMap<K, (f64, Instant)>>);

impl<K> Default for Budget<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// What is left of it.
#[derive(Debug, Clone, Copy)]
struct Remaining {
    limit: u32,
    remaining: u32,
    /// Seconds until it is full again, or until there is one again.
    reset: u64,
}

impl<K: std::hash::Hash + Eq> Budget<K> {
    /// What is left after taking so much; `None` if there is not so much. Of nothing, it only looks.
    fn take(&self, key: K, limit: u32, much: u32) -> Result<Remaining, Remaining> {
        let (limit_f, much) = (f64::from(limit), f64::from(much));
        let mut kept = self.0.lock();
        let now = Instant::now();
        let filled = |(left, at): &(f64, Instant)| {
            (left + now.duration_since(*at).as_secs_f64() * limit_f / 60.0).min(limit_f)
        };
        if kept.len() >= MAX_KEPT && !kept.contains_key(&key) {
            kept.retain(|_, entry| filled(entry) < limit_f);
            if kept.len() >= MAX_KEPT {
                keep_the_busiest(&mut kept, |entry| limit_f - filled(entry));
            }
        }
        let left = kept.get(&key).map_or(limit_f, filled);
        let is_enough = left >= much.max(1.0);
        let after = if is_enough { left - much } else { left };
        kept.insert(key, (after, now));
        let missing = if is_enough { limit_f - after } else { 1.0 - after };
        // Both are small and not negative.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let left = Remaining {
            limit,
            remaining: if is_enough { after as u32 } else { 0 },
            reset: (missing.max(0.0) * 60.0 / limit_f).ceil() as u64,
        };
        if is_enough { Ok(left) } else { Err(left) }
    }
}

impl Remaining {
    /// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10).
    fn tell(self, headers: &mut HeaderMap) {
        let policy = format!("\"minute\";q={};w=60", self.limit);
        let left = format!("\"minute\";r={};t={}", self.remaining, self.reset);
        for (name, value) in [("ratelimit-policy", policy), ("ratelimit", left)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }
}

/// The door.
#[derive(Debug, Default)]
pub(super) struct Gate {
    failed: Budget<Block>,
    tokens: Budget<Arc<str>>,
    repeats: Repeats,
}

/// What a page asks for again and again, while it is open.
const REPEATED: [&str; 3] = ["/api/v1/overview", "/api/v1/sessions", "/api/v1/settings"];
/// How often the audit is told of that, for each token.
const TOLD_AGAIN: Duration = Duration::from_secs(3600);

/// How often each token has repeated a read since the audit was told of it: one entry for each of these paths and each token of the
/// configuration.
#[derive(Debug, Default)]
struct Repeats(Mutex<HashMap<(Arc<str>, &'static str), Repeated>>);

/// Since when, and how often.
type Repeated = (Instant, u64);

impl Repeats {
    /// How many went before that the audit was not told of; `None` if it is not told of this one either.
    fn count(&self, token: &str, method: &Method, path: &str) -> Option<u64> {
        let Some(path) = REPEATED.iter().find(|known| **known == path && only_looks(method)) else {
            return Some(0);
        };
        let mut all = self.0.lock();
        if all.len() > MAX_KEPT {
            all.clear();
        }
        match all.get_mut(&(token.into(), *path)) {
            Some((since, count)) if since.elapsed() < TOLD_AGAIN => {
                *count += 1;
                None
            }
            known => {
                let before = known.map_or(0, |(_, count)| *count);
                all.insert((token.into(), *path), (Instant::now(), 0));
                Some(before)
            }
        }
    }
}

fn unknown() -> Problem {
    let detail = "Unauthorized: a known token is needed (Authorization: Bearer …)";
    Problem::new(StatusCode::UNAUTHORIZED, detail)
}

fn too_many(detail: &str, left: Remaining) -> Problem {
    let mut problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, format!("Too Many Requests: {detail}"));
    problem.retry_after = Some(left.reset.max(1));
    problem
}

/// The token that is presented. Every known one is looked at, wholly, whichever it is.
fn known<'t>(tokens: &'t [Token], headers: &HeaderMap) -> Option<&'t Token> {
    let mut said = headers.get_all(header::AUTHORIZATION).iter();
    let (said, None) = (said.next()?, said.next()) else { return None };
    let (scheme, token) = said.as_bytes().split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return None;
    }
    let presented = digest(&SHA256, token.trim_ascii());
    tokens.iter().fold(None, |found, token| match token.digest.ct_eq(presented.as_ref()).into() {
        true => Some(token),
        false => found,
    })
}

/// A page of somebody else's may not call: only a browser says where a call comes from, and there it is true.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else { return false };
    let host = origin.split_once("://").map(|(_, host)| host);
    host.is_none() || host != text(header::HOST)
}

impl Gate {
    fn admit(
        &self,
        api: &Api,
        request: &Request,
        peer: &RequestPeer,
    ) -> Result<(Token, Remaining), Box<Refused>> {
        let generation = api.current.generation();
        let management = &generation.config.management;
        let address = Block::of_address(peer.address.ip());
        let failed = |much| self.failed.take(address, management.max_failed_requests, much);
        // A token that is known is let in however many others there were from this address: it cannot be guessed, and
        // whoever guesses must not be able to keep others out.
        let Some(token) = known(&management.tokens, request.headers()) else {
            let wait = "this address has had too many requests without a known token";
            let left = failed(1).map_err(|left| Box::new(Refused::unnamed(too_many(wait, left))))?;
            if left.remaining == 0 {
                warn!(%address, "too many requests without a known token: this address has to wait");
            }
            // As for refused logins: the first are recorded one by one, further ones are only counted.
            let why = Refusal::new(Fault::Client, SqlState::INVALID_PASSWORD, "no known token");
            let is_told = api.journal.is_refusal_told(&peer.address.to_string(), &why);
            return Err(Box::new(Refused { is_told, ..Refused::unnamed(unknown()) }));
        };
        let named =
            |problem, left| Box::new(Refused { problem, token: Some(token.clone()), left, is_told: true });
        if is_foreign(request.headers()) {
            return Err(named(Problem::denied(), None));
        }
        let name: Arc<str> = token.name.as_str().into();
        let left = self.tokens.take(name, management.requests_per_minute, 1).map_err(|left| {
            let mut refused = named(too_many("this token has used up its requests", left), Some(left));
            refused.is_told = false;
            refused
        })?;
        if token.role != Role::Admin && !may_look(request.method(), request.uri().path()) {
            return Err(named(Problem::denied(), Some(left)));
        }
        Ok((token.clone(), left))
    }
}

/// What `role = "read"` may do: whatever changes nothing, and has nothing read that a caller names. A plan of such a token looks at
/// what is written alone.
fn may_look(method: &Method, path: &str) -> bool {
    only_looks(method) || *method == Method::POST && path == "/api/v1/plan"
}

/// What changes nothing by its method.
pub(super) fn only_looks(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

struct Refused {
    problem: Problem,
    token: Option<Token>,
    left: Option<Remaining>,
    /// Whether the audit is told: a flood would only fill it.
    is_told: bool,
}

impl Refused {
    fn unnamed(problem: Problem) -> Self {
        Self { problem, token: None, left: None, is_told: false }
    }
}

/// Lets a request in, or not; and tells of it.
pub(super) async fn guard(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let asked: Option<String> = request.uri().query().map(|query| query.chars().take(200).collect());
    if OPEN.contains(&path.as_str()) && only_looks(&method) {
        return harden(next.run(request).await);
    }
    let Some(peer) = request.extensions().get::<RequestPeer>().cloned() else {
        return harden(Problem::ours("a request from nowhere").into_response());
    };
    let event = |token: Option<&str>, status: &str| {
        let shown: String = path.chars().take(200).collect();
        Event::new("api")
            .maybe("token", token)
            .text("peer", peer.address)
            .text("method", &method)
            .text("path", shown)
            .maybe("query", asked.as_deref())
            .text("status", status)
    };
    let (token, left) = match api.gate.admit(&api, &request, &peer) {
        Ok(admitted) => admitted,
        Err(refused) => {
            if refused.is_told {
                let name = refused.token.as_ref().map(|token| token.name.as_str());
                api.journal.audit.record(|| event(name, refused.problem.status.as_str()));
            }
            let mut response = refused.problem.into_response();
            refused.left.inspect(|left| left.tell(response.headers_mut()));
            return harden(response);
        }
    };
    let _running = peer.begins();
    let name = token.name.as_str();
    let refuses = *api.current.generation().config.server.audit_failure == AuditFailure::Refuse;
    if refuses
        && !only_looks(&method)
        && !api.journal.audit.record_surely(|| event(Some(name), "begun")).await
    {
        return harden(Problem::ours(audit::not_written()).into_response());
    }
    let before = api.gate.repeats.count(name, &method, &path);
    let caller = Caller { token: token.clone(), writes: Arc::default() };
    request.extensions_mut().insert(caller.clone());
    let mut told = AuditAtEnd {
        audit: &api.journal.audit,
        event: |status: &str| match before {
            None => None,
            Some(0) => Some(event(Some(name), status)),
            Some(before) => Some(event(Some(name), status).number("repeated", before)),
        },
        status: None,
    };
    let mut response = tokio::select! {
        biased;
        response = next.run(request) => response,
        problem = lost(&api, &caller) => problem.into_response(),
    };
    told.status = Some(response.status());
    drop(told);
    if !only_looks(&method) {
        info!(token = name, peer = %peer.address, %method, path, status = response.status().as_u16(), "API call");
    }
    left.tell(response.headers_mut());
    harden(response)
}

/// Returns when a token is gone, or has lost its right, while its call waits: for its turn, for its body, for a file.
async fn lost(api: &Api, caller: &Caller) -> Problem {
    let mut changes = api.current.changes();
    loop {
        if let Err(problem) = caller.may_still(&api.current.generation().config) {
            match caller.writes.load(Ordering::Acquire) {
                true => return std::future::pending().await,
                false => return problem,
            }
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(GRACE).await;
    }
}

/// The audit is told how a call has ended, also if its caller has left meanwhile: what it has begun goes on.
struct AuditAtEnd<'a, F: Fn(&str) -> Option<Event>> {
    audit: &'a Audit,
    event: F,
    status: Option<StatusCode>,
}

impl<F: Fn(&str) -> Option<Event>> Drop for AuditAtEnd<'_, F> {
    fn drop(&mut self) {
        let status = self.status.as_ref().map_or("left", StatusCode::as_str);
        if let Some(event) = (self.event)(status) {
            self.audit.record(|| event);
        }
    }
}

/// Nothing of ours runs, or is shown, anywhere else.
fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry("content-security-policy")
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_repeats_is_told_once_and_everything_else_each_time() {
        let repeats = Repeats::default();
        let count = |token, method, path| repeats.count(token, &method, path);
        assert_eq!(count("a", Method::GET, "/api/v1/overview"), Some(0));
        assert_eq!(count("a", Method::GET, "/api/v1/overview"), None);
        assert_eq!(count("b", Method::GET, "/api/v1/overview"), Some(0));
        for _ in 0..3 {
            assert_eq!(count("a", Method::DELETE, "/api/v1/sessions"), Some(0));
            assert_eq!(count("a", Method::GET, "/api/v1/config"), Some(0));
        }
        repeats.0.lock().values_mut().for_each(|(since, _)| *since -= TOLD_AGAIN);
        assert_eq!(count("a", Method::GET, "/api/v1/overview"), Some(1), "and how often it was since");
    }

    #[test]
    fn a_budget_is_used_up_and_says_when_there_is_more() {
        let budget = Budget::default();
        for left in (0..60).rev() {
            assert_eq!(budget.take("a", 60, 1).unwrap().remaining, left);
        }
        assert_eq!(budget.take("a", 60, 1).unwrap_err().reset, 1);
        assert!(budget.take("b", 60, 1).is_ok());
        for i in 0..3 * MAX_KEPT {
            let _ = budget.take(Box::leak(format!("{i}").into_boxed_str()), 60, 1);
        }
        assert!(budget.0.lock().len() <= MAX_KEPT);
        assert!(budget.take("a", 60, 30).is_err(), "whoever has used his up is remembered");
    }

    /// T-34, as dudect has it: Welch's t between two kinds of wrong tokens, one of which begins as the right one does.
    #[test]
    fn a_wrong_token_takes_as_long_whatever_it_begins_with() {
        let right = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let digest = digest(&SHA256, right.as_bytes()).as_ref().try_into().unwrap();
        let tokens = [Token { name: "ops".into(), role: Role::Admin, digest }];
        let header = |token: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
            headers
        };
        let kinds = [format!("{}X", &right[..63]), format!("X{}", &right[1..])];
        let t = || {
            let (mut times, mut random) = ([const { Vec::new() }; 2], crate::random::Random(0x5eed));
            for _ in 0..200_000 {
                let kind = random.below(2);
                // At a place of its own each time: two that stay would differ by where they stand.
                let headers = header(&kinds[kind]);
                let begun = Instant::now();
                assert!(std::hint::black_box(known(&tokens, std::hint::black_box(&headers))).is_none());
                times[kind].push(begun.elapsed().as_nanos() as f64);
            }
            // What an interrupt has lengthened says nothing.
            let mut all: Vec<f64> = times.iter().flatten().copied().collect();
            all.sort_by(f64::total_cmp);
            let most = all[all.len() * 9 / 10];
            let [(mean, error), (other, other_error)] = times.map(|mut times| {
                times.retain(|time| *time <= most);
                let count = times.len() as f64;
                let mean = times.iter().sum::<f64>() / count;
                (mean, times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0) / count)
            });
            ((mean - other) / (error + other_error).sqrt()).abs()
        };
        // By chance one round in ten thousand is above.
        let rounds: Vec<f64> = (0..3).map(|_| t()).collect();
        assert!(rounds.iter().any(|t| *t < 4.5), "{rounds:?}");
    }

    #[test]
    fn only_one_whole_bearer_token_is_known() {
        let digest_of = |text: &str| digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap();
        let tokens = [Token { name: "ops".into(), role: Role::Admin, digest: digest_of("0123456789abcdef") }];
        let found = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            });
            known(&tokens, &headers).is_some()
        };
        assert!(found(&["Bearer 0123456789abcdef"]) && found(&["bearer 0123456789abcdef"]));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
        ] {
            assert!(!found(&[wrong]), "{wrong}");
        }
        assert!(!found(&["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"]));
    }
}
