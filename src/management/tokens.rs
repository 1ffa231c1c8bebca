//! `/tokens`: who may use the API. A token is answered once, when it is made; the file has its hash.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use toml_edit::{DocumentMut, Item, Table, TableLike};
use utoipa::ToSchema;

use super::access::Caller;
use super::answer::{self, Outcome, Problem};
use super::body::{Field, Name, New, body, word, word_schema};
use super::edit::Form;
use super::{Api, NameInPath, WriteRequest, apply, edit};
use crate::proxy::Change;
use policy::config::file::Role;
use policy::config::{Config, hash_of_token};

impl Field for Role {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        word_schema(Self::WORDS)
    }
    fn read(value: serde_json::Value) -> Result<Self, String> {
        word(value, Self::WORDS, Self::of_word)
    }
}

body! {
    /// What can be said about a token.
    TokenBody as "Token" {
        /// Whose it is; its calls are recorded under this name.
        name: Name, fixed;
        /// What its bearer may do; by default `read`.
        role: Role;
    }
}
type NewToken = New<TokenBody>;

/// A token, without itself.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Token {
    /// Whose it is.
    name: String,
    /// `admin` or `read`
    role: &'static str,
    /// It is the one that asks.
    yours: bool,
}

/// All tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tokens {
    /// In the order of the file.
    tokens: Vec<Token>,
}

/// What became of a token.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenWritten {
    #[serde(flatten)]
    outcome: Outcome,
    /// Whose it is, or was.
    name: String,
    /// The token itself, only now: it is kept nowhere. `null` where none was made.
    token: Option<String>,
}

/// Lists tokens, without themselves.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", operation_id = "listTokens",
    responses((status = 200, description = "All of them.", body = Tokens)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    parts: Parts,
) -> Result<Json<Tokens>, Problem> {
    super::query(&parts, &[])?;
    let generation = api.current.generation();
    let shown = |token: &policy::config::Token| Token {
        name: token.name.clone(),
        role: token.role.word(),
        yours: caller.is(&token.name),
    };
    Ok(Json(Tokens { tokens: generation.config.management.tokens.iter().map(shown).collect() }))
}

/// Makes a token.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", operation_id = "createToken", request_body = NewToken,
    params(("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 201, description = "It was made.", body = TokenWritten),
        (status = 200, description = "It would be made.", body = TokenWritten)))]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    New(body): New<TokenBody>,
) -> Result<Response, Problem> {
    let Name(name) = body.name.required("name")?;
    check_name(&name)?;
    let role = body.role.given().unwrap_or(Role::Read);
    let Made { token, hash } = Made::new(&asked)?;
    let wanted = name.clone();
    let outcome = write(&api, &asked, move |change| {
        if is_there(&change.generation.config, &wanted) {
            return Err(Problem::conflict(format!("Token with name {wanted} already exists")));
        }
        let tokens = tokens_of(&mut change.document)?;
        let is_inline = tokens.iter().any(|(_, item)| item.is_value()) || tokens.is_dotted();
        let form = if is_inline { Form::Inline } else { Form::Header };
        let token = edit::add_to(tokens, &wanted, form);
        let token =
            token.ok_or_else(|| Problem::conflict("[management.tokens] is not a table of the file"))?;
        edit::set(token, "token", Some(hash.into()));
        edit::set(token, "role", Some(role.word().into()));
        Ok(())
    })
    .await?;
    Ok((asked.created(), Json(TokenWritten { outcome, name, token })).into_response())
}

/// Replaces the value of a token: the old one is refused from then on.
#[utoipa::path(post, path = "/api/v1/tokens/{name}/rotate", tag = "tokens", operation_id = "rotateToken",
    params(("name" = String, Path, description = "Whose it is."),
        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "It has another value, or would have.", body = TokenWritten)))]
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    NameInPath(name): NameInPath,
    asked: WriteRequest,
) -> Result<Json<TokenWritten>, Problem> {
    let Made { token, hash } = Made::new(&asked)?;
    let wanted = name.clone();
    let outcome = write(&api, &asked, move |change| {
        known(&change.generation.config, &wanted)?;
        let tokens = tokens_of(&mut change.document)?;
        let token = tokens.get_mut(&wanted).and_then(Item::as_table_like_mut);
        let token = token.ok_or_else(|| Problem::conflict("the token is not a table of the file"))?;
        edit::set(token, "token", Some(hash.into()));
        Ok(())
    })
    .await?;
    Ok(Json(TokenWritten { outcome, name, token }))
}

/// Takes a token away. The last one with `admin` stays: nobody could use the API any more.
#[utoipa::path(delete, path = "/api/v1/tokens/{name}", tag = "tokens", operation_id = "deleteToken",
    params(("name" = String, Path, description = "Whose it is."),
        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "It is gone, or would be.", body = TokenWritten)))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    NameInPath(name): NameInPath,
    asked: WriteRequest,
) -> Result<Json<TokenWritten>, Problem> {
    let wanted = name.clone();
    let outcome = write(&api, &asked, move |change| {
        let config = &change.generation.config;
        known(config, &wanted)?;
        let mut others = config.management.tokens.iter().filter(|token| token.name != wanted);
        if !others.any(|token| token.role == Role::Admin) {
            let what = "this is the last token with role admin: make another one first";
            return Err(Problem::conflict(what));
        }
        tokens_of(&mut change.document)?.remove(&wanted);
        Ok(())
    })
    .await?;
    Ok(Json(TokenWritten { outcome, name, token: None }))
}

/// Changes the file, if it is of the edition that the caller has seen (`GET /config`).
async fn write(
    api: &Arc<Api>,
    asked: &WriteRequest,
    edit: impl FnOnce(&mut Change<'_>) -> Result<(), Problem> + Send + 'static,
) -> Result<Outcome, Problem> {
    let if_match = asked.if_match.clone();
    let (written, ()) = api
        .write(asked, move |api, change| {
            answer::matches(if_match.as_deref(), &apply::tag(api, change.generation))?;
            edit(change)
        })
        .await?;
    Ok(Outcome::of(&written, asked.intent))
}

/// A name that can stand in a path, and that looks like no other.
fn check_name(name: &str) -> Result<(), Problem> {
    match name.trim() != name || [".", ".."].contains(&name) || name.chars().any(wire::error::is_obeyed) {
        true => Err(Problem::field(
            "name",
            "a name does not begin or end with a space, has no invisible characters, and is not `.` or `..`",
        )),
        false => Ok(()),
    }
}

/// A new value, and what the file has of it.
struct Made {
    /// `None` if it was only asked what would change.
    token: Option<String>,
    hash: String,
}

impl Made {
    fn new(asked: &WriteRequest) -> Result<Self, Problem> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(Problem::ours)?;
        let token = wire::hex(&random);
        let hash = hash_of_token(&token);
        Ok(Self { token: (!asked.intent.is_dry()).then_some(token), hash })
    }
}

fn is_there(config: &Config, name: &str) -> bool {
    config.management.tokens.iter().any(|token| token.name == name)
}

fn known(config: &Config, name: &str) -> Result<(), Problem> {
    match is_there(config, name) {
        true => Ok(()),
        false => Err(Problem::missing_named("Token", name)),
    }
}

/// `[management.tokens]`, in whatever form the file has it.
fn tokens_of(document: &mut DocumentMut) -> Result<&mut dyn TableLike, Problem> {
    let management = document.get_mut("management").and_then(Item::as_table_like_mut);
    let management = management.ok_or_else(|| Problem::conflict("the file has no [management]"))?;
    if !management.contains_key("tokens") {
        let mut tokens = Table::new();
        tokens.set_implicit(true);
        management.insert("tokens", Item::Table(tokens));
    }
    let tokens = management.get_mut("tokens").and_then(Item::as_table_like_mut);
    tokens.ok_or_else(|| Problem::conflict("[management.tokens] is not a table of the file"))
}
