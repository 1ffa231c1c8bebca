//! `/users`, `/groups`, `/user-attributes`

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::Response;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use toml_edit::{InlineTable, TableLike, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::answer::{Outcome, Problem, written};
use super::body::{Changed, List, Name, New, Password, Patch, Values, body};
use super::declared::{Declared, OptionValues};
use super::things::{Thing, change, create, delete, list, read};
use super::{Api, Id, View, WriteRequest, edit};
use crate::proxy::Change;
use policy::config::file::{self, AuthType};
use policy::names::id_of;
use policy::plan;
use policy::secret::Secret;
use policy::verifier::{EMPTY, SCRAM_ITERATIONS, ScramVerifier, Verifier, is_empty, is_verifier};

body! {
    /// What can be said about a user.
    UserBody as "User" with the options of file::User {
        /// Who logs in. It cannot be changed.
        name: Name, fixed;
        /// The password, of which only a SCRAM verifier is kept (unless `authType` needs more); or such a verifier.
        passwordUnencrypted: Password;
        /// The names of groups, the most important one first.
        groups: List;
        /// Values by attribute; no values: none of its own.
        attributes: Values;
    }
}

body! {
    /// What can be said about a group.
    GroupBody as "Group" {
        /// What it is called. It cannot be changed.
        name: Name, fixed;
        /// Values by attribute, for those of its users who have none.
        attributes: Values;
    }
}

body! {
    /// What can be said about an attribute.
    AttributeBody as "UserAttribute" {
        /// What it is called. It cannot be changed.
        name: Name, fixed;
        /// The values of users who have none, neither themselves nor by a group.
        defaultValues: List;
    }
}

type UserOptions = OptionValues<file::User>;

/// A user, as it is stored. The password is never shown.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct User {
    /// Made of the name.
    id: Uuid,
    /// Who logs in.
    name: String,
    /// Whether there is a password.
    has_password: bool,
    /// The most important one first.
    groups: Vec<String>,
    /// Values by attribute: the user's own.
    attributes: BTreeMap<String, Vec<String>>,
    /// The rest is as in the file.
    #[serde(flatten)]
    options: UserOptions,
}

/// A group, as it is stored.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Group {
    /// Made of the name.
    id: Uuid,
    /// What it is called.
    name: String,
    /// Values by attribute.
    attributes: BTreeMap<String, Vec<String>>,
}

/// An attribute, as it is stored.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct UserAttribute {
    /// Made of the name.
    id: Uuid,
    /// What it is called.
    name: String,
    /// The values of users who have none.
    default_values: Vec<String>,
    /// False if a connection picks by it, and nothing else is said about it.
    declared: bool,
}

written! {
    /// What became of a write of a user.
    UserWritten { user: User }
}
written! {
    /// What became of a write of a group.
    GroupWritten { group: Group }
}
written! {
    /// What became of a write of an attribute.
    UserAttributeWritten { user_attribute: UserAttribute }
}

/// Users.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Users {
    /// Those that were asked for.
    users: Vec<User>,
    /// How many there are in all, before `offset` and `limit`.
    total: usize,
}
/// Groups.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Groups {
    /// Those that were asked for.
    groups: Vec<Group>,
    /// How many there are in all, before `offset` and `limit`.
    total: usize,
}
/// Attributes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct UserAttributes {
    /// Those that were asked for.
    user_attributes: Vec<UserAttribute>,
    /// How many there are in all, before `offset` and `limit`.
    total: usize,
}

fn values(attributes: &BTreeMap<policy::names::AttributeName, Vec<String>>) -> BTreeMap<String, Vec<String>> {
    attributes.iter().map(|(name, values)| (name.to_string(), values.clone())).collect()
}

/// Names of attributes and their values, as they are searched.
fn searched(attributes: &BTreeMap<String, Vec<String>>) -> String {
    let words = attributes.iter().flat_map(|(name, values)| std::iter::once(name).chain(values));
    words.map(String::as_str).collect::<Vec<_>>().join(" ")
}

impl Thing for User {
    const KIND: &'static str = "users";
    const WORD: &'static str = "User";
    const ID: &'static str = "user";
    type Body = UserBody;

    fn all(View { config, file }: View<'_>) -> Vec<Self> {
        let shown = |user: &Arc<policy::config::User>| {
            let written = file.users.find(user.name.as_str())?;
            Some(Self {
                id: id_of(Self::ID, user.name.as_str()),
                name: user.name.to_string(),
                has_password: user.password.is_some(),
                groups: user.groups.iter().map(ToString::to_string).collect(),
                attributes: values(&user.attributes),
                options: OptionValues::of(written, user),
            })
        };
        config.users.values().filter_map(shown).collect()
    }
    fn id(&self) -> Uuid {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn hidden(&self, View { config, file }: View<'_>) -> String {
        let password = config.users.get(self.name.as_str()).and_then(|user| user.password.as_ref());
        let password = password.map(|password| password.value().expose_secret().to_owned());
        format!("{password:?} {:?}", file.users.find(&self.name).map(Declared::shown))
    }
    fn name_of(body: &UserBody) -> Patch<Name> {
        body.name.clone()
    }
    fn write(body: UserBody, change: &mut Change<'_>, name: &str) -> Result<(), Problem> {
        let config = &change.generation.config;
        let default = *config.server.auth_type;
        let auth_type = match body.options.said("auth_type") {
            Patch::Set(said) => said.as_str().and_then(AuthType::of_word).unwrap_or(default),
            Patch::Null => default,
            Patch::Absent => config.users.get(name).map_or(default, |user| user.auth_type),
        };
        let password = body
            .passwordUnencrypted
            .try_map(|Password(secret)| password_value(change, name, auth_type, &secret))?;
        let table = edit::needed(&mut change.document, Self::KIND, name)?;
        edit::put(table, "password", password);
        edit::put_list(table, "groups", body.groups);
        put_values(table, body.attributes);
        body.options.write(table)
    }
    fn listed(users: Vec<Self>, total: usize) -> impl Serialize {
        Users { users, total }
    }
    fn text(&self) -> String {
        let word = |option| self.options.get(option).as_str().unwrap_or_default();
        let disabled = if self.options.get("disabled") == true { "disabled" } else { "" };
        let groups = self.groups.join(" ");
        [&self.name, &groups, &searched(&self.attributes), word("console"), word("authType"), disabled]
            .join(" ")
    }
    fn written(self, outcome: Outcome) -> impl Serialize {
        UserWritten { outcome, data: self.id, user: self }
    }
}

/// How a user's password is to stand in the file: as it does, if it is the same; as a verifier, where that is enough.
pub(super) fn password_value(
    change: &mut Change<'_>,
    name: &str,
    auth_type: AuthType,
    secret: &SecretString,
) -> Result<Value, Problem> {
    if is_verifier(secret) {
        return Ok(secret.expose_secret().into());
    }
    if is_empty(secret.expose_secret()) {
        return Err(Problem::field("password", EMPTY));
    }
    let is_scram = auth_type == AuthType::ScramSha256;
    let known = change.generation.config.users.get(name).and_then(|user| user.password.as_ref());
    let known = known.map(Secret::value);
    let is_same = || {
        known.as_ref().is_some_and(|known| match Verifier::parse(known) {
            Ok(Verifier::Scram(verifier)) => is_scram && verifier.accepts(secret.expose_secret()),
            Ok(Verifier::Plain(text)) => !is_scram && text.expose_secret() == secret.expose_secret(),
            _ => false,
        })
    };
    if known.is_some()
        && change.is_same_password(plan::password_of("user", name), is_same)
        && let Some(kept) = edit::value(&mut change.document, "users", name, "password")
    {
        return Ok(kept);
    }
    if !is_scram {
        return change.secret(&id_of("user", name).to_string(), secret).map_err(Problem::ours);
    }
    let mut salt = vec![0; 16];
    getrandom::fill(&mut salt).map_err(Problem::ours)?;
    Ok(ScramVerifier::derive(secret.expose_secret(), salt, SCRAM_ITERATIONS).to_string().into())
}

impl Thing for Group {
    const KIND: &'static str = "groups";
    const WORD: &'static str = "Group";
    const ID: &'static str = "group";
    type Body = GroupBody;

    fn all(View { config, .. }: View<'_>) -> Vec<Self> {
        let shown = |(name, attributes): (&policy::names::GroupName, &BTreeMap<_, _>)| Self {
            id: id_of(Self::ID, name.as_str()),
            name: name.to_string(),
            attributes: values(attributes),
        };
        config.groups.iter().map(shown).collect()
    }
    fn id(&self) -> Uuid {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn name_of(body: &GroupBody) -> Patch<Name> {
        body.name.clone()
    }
    fn write(body: GroupBody, change: &mut Change<'_>, name: &str) -> Result<(), Problem> {
        put_values(edit::needed(&mut change.document, Self::KIND, name)?, body.attributes);
        Ok(())
    }
    fn listed(groups: Vec<Self>, total: usize) -> impl Serialize {
        Groups { groups, total }
    }
    fn text(&self) -> String {
        format!("{} {}", self.name, searched(&self.attributes))
    }
    fn written(self, outcome: Outcome) -> impl Serialize {
        GroupWritten { outcome, data: self.id, group: self }
    }
}

impl Thing for UserAttribute {
    const KIND: &'static str = "attributes";
    const WORD: &'static str = "User attribute";
    const ID: &'static str = "attribute";
    type Body = AttributeBody;

    fn all(View { config, file }: View<'_>) -> Vec<Self> {
        let mut names: BTreeMap<String, bool> =
            file.attributes.names().map(|name| (name.to_owned(), true)).collect();
        let picking = config.connections.values().filter_map(|c| c.base.as_ref()?.attribute.as_ref());
        picking.for_each(|name| {
            names.entry(name.to_string()).or_insert(false);
        });
        let shown = |(name, declared): (String, bool)| Self {
            id: id_of(Self::ID, &name),
            default_values: config.attribute_defaults.get(name.as_str()).cloned().unwrap_or_default(),
            name,
            declared,
        };
        names.into_iter().map(shown).collect()
    }
    fn id(&self) -> Uuid {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn name_of(body: &AttributeBody) -> Patch<Name> {
        body.name.clone()
    }
    fn write(body: AttributeBody, change: &mut Change<'_>, name: &str) -> Result<(), Problem> {
        if edit::table(&mut change.document, Self::KIND, name).is_none() {
            edit::add(&mut change.document, Self::KIND, name);
        }
        edit::put_list(edit::needed(&mut change.document, Self::KIND, name)?, "default", body.defaultValues);
        Ok(())
    }
    fn listed(user_attributes: Vec<Self>, total: usize) -> impl Serialize {
        UserAttributes { user_attributes, total }
    }
    fn text(&self) -> String {
        format!("{} {}", self.name, self.default_values.join(" "))
    }
    fn written(self, outcome: Outcome) -> impl Serialize {
        UserAttributeWritten { outcome, data: self.id, user_attribute: self }
    }
}

fn put_values(table: &mut dyn TableLike, values: Patch<Values>) {
    let value = values.map(|Values(values)| {
        let mut attributes = InlineTable::new();
        for (name, list) in values.iter().filter(|(_, list)| !list.is_empty()) {
            let value = match list.as_slice() {
                [one] => Value::from(one.as_str()),
                several => edit::list(several),
            };
            attributes.insert(name, value);
        }
        attributes
    });
    match value {
        Patch::Set(attributes) if attributes.is_empty() => edit::set(table, "attributes", None),
        value => edit::put(table, "attributes", value.map(Into::into)),
    }
}

/// Declares the five calls for one kind of things.
macro_rules! calls {
    ($Thing:ident, $Body:ident, $NewBody:ident, $ChangedBody:ident, $Listed:ident, $Written:ident, $path:literal, $one:literal, $tag:literal,
        $list:ident $list_id:literal, $create:ident $create_id:literal, $read:ident $read_id:literal,
        $change:ident $change_id:literal, $delete:ident $delete_id:literal) => {
        type $NewBody = New<$Body>;
        type $ChangedBody = Changed<$Body>;

        /// Lists them.
        #[utoipa::path(get, path = $path, tag = $tag, operation_id = $list_id,
                    params(("name" = Option<String>, Query, description = "Only the one of this name."),
                        ("q" = Option<String>, Query, description = "Only those in which all of these words stand."),
                        ("offset" = Option<u32>, Query, minimum = 0, maximum = 1000000, description = "How many to leave out first."),
                        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10000, description = "How many at most; by default all.")),
                    responses((status = 200, description = "All of them.", body = $Listed)))]
        pub(crate) async fn $list(State(api): State<Arc<Api>>, parts: Parts) -> Result<Response, Problem> {
            api.blocking(move |api| list::<$Thing>(api, &parts)).await
        }

        /// Makes one.
        #[utoipa::path(post, path = $path, tag = $tag, operation_id = $create_id, request_body = $NewBody,
                    params(("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
                    responses((status = 201, description = "It was made.", body = $Written),
                        (status = 200, description = "It would be made.", body = $Written)))]
        pub(crate) async fn $create(
            State(api): State<Arc<Api>>,
            asked: WriteRequest,
            New(body): New<$Body>,
        ) -> Result<Response, Problem> {
            create::<$Thing>(api, asked, body).await
        }

        /// Reads one.
        #[utoipa::path(get, path = $one, tag = $tag, operation_id = $read_id,
                    params(("id" = String, Path, description = "Its identifier, or its name.")),
                    responses((status = 200, description = "It.", body = $Thing)))]
        pub(crate) async fn $read(
            State(api): State<Arc<Api>>,
            id: Id,
            headers: HeaderMap,
        ) -> Result<Response, Problem> {
            api.blocking(move |api| read::<$Thing>(api, id.0, &headers)).await
        }

        /// Changes one: what is not named stays, `null` takes away.
        #[utoipa::path(patch, path = $one, tag = $tag, operation_id = $change_id, request_body = $ChangedBody,
                    params(("id" = String, Path, description = "Its identifier, or its name."),
                        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
                    responses((status = 200, description = "It is so now, or would be.", body = $Written)))]
        pub(crate) async fn $change(
            State(api): State<Arc<Api>>,
            asked: WriteRequest,
            id: Id,
            Changed(body): Changed<$Body>,
        ) -> Result<Response, Problem> {
            change::<$Thing>(api, asked, id.0, body).await
        }

        /// Deletes one that nothing refers to.
        #[utoipa::path(delete, path = $one, tag = $tag, operation_id = $delete_id,
                    params(("id" = String, Path, description = "Its identifier, or its name."),
                        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
                    responses((status = 200, description = "It is gone, or would be.", body = $Written)))]
        pub(crate) async fn $delete(State(api): State<Arc<Api>>, asked: WriteRequest, id: Id) -> Result<Response, Problem> {
            delete::<$Thing>(api, asked, id.0).await
        }
    };
}

calls!(User, UserBody, NewUser, ChangedUser, Users, UserWritten, "/api/v1/users", "/api/v1/users/{id}", "users",
    list_users "listUsers", create_user "createUser", read_user "readUser", change_user "changeUser",
    delete_user "deleteUser");
calls!(Group, GroupBody, NewGroup, ChangedGroup, Groups, GroupWritten, "/api/v1/groups", "/api/v1/groups/{id}", "groups",
    list_groups "listGroups", create_group "createGroup", read_group "readGroup", change_group "changeGroup",
    delete_group "deleteGroup");
calls!(UserAttribute, AttributeBody, NewAttribute, ChangedAttribute, UserAttributes, UserAttributeWritten, "/api/v1/user-attributes",
    "/api/v1/user-attributes/{id}", "user attributes", list_attributes "listUserAttributes",
    create_attribute "createUserAttribute", read_attribute "readUserAttribute",
    change_attribute "changeUserAttribute", delete_attribute "deleteUserAttribute");
